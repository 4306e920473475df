"""A queue that keeps the batches of a network full: one call serves data at different steps, of
different blocks.

When a datum is done, the next one takes its place. `Queued` is the backward of such a network: it
passes the rows of blocks through `run_queue` and reassembles the blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, cast

import numpy as np
from typing_extensions import TypeVar

from uturn.core import progress
from uturn.core.data import N, Reconstructions
from uturn.core.protocols import Backward, K
from uturn.core.random import Streams


class Work(Protocol):
    """The input of the queue for one reconstruction: a named tuple."""

    @property
    def name(self) -> object:
        """Any value, which is returned with the result and named in errors."""

    def _replace(self, *, name: object) -> Self: ...


class Cohort(Protocol):
    """Data that advance together."""

    @property
    def names(self) -> Sequence[object]:
        """Names of the data."""

    @property
    def calls(self) -> int:
        """Number of network calls for each datum, as far as it is known beforehand."""

    @property
    def is_done(self) -> bool: ...


W = TypeVar("W", bound=Work, default=Any)
C = TypeVar("C", bound=Cohort, default=Any)


class Process(Protocol[W, C]):
    """The members of a model used by the queue."""

    @property
    def places(self) -> int:
        """Largest number of data in the queue."""

    def calls(self, work: W) -> int:
        """Number of network calls for a datum, as far as it is known beforehand."""

    def unchanged(self, work: W) -> np.ndarray:
        """The result for a datum without network calls."""

    def admitted(self, work: list[W]) -> list[C]:
        """New data in cohorts."""

    def advance(self, cohorts: list[C]) -> None:
        """One step of all cohorts, none of which is done."""

    def results(self, cohort: C) -> Iterable[np.ndarray]:
        """The results of a finished cohort, in the order of its names."""


def run_queue(process: Process[W, C], work: Iterable[W]) -> Iterator[tuple[object, np.ndarray]]:
    """Results `(name, array)` in the order of completion. `work` is read when places become
    free, so it may be lazy.
    """
    waiting = iter(work)
    cohorts: list[C] = []
    while True:
        free = process.places - sum(len(cohort.names) for cohort in cohorts)
        entering: list[W] = []
        while len(entering) < free and (new := next(waiting, None)) is not None:
            if process.calls(new):
                entering.append(new)
            else:
                progress.add()
                yield new.name, process.unchanged(new)
        if entering:
            cohorts += process.admitted(entering)
        if not cohorts:
            return
        running = [cohort for cohort in cohorts if not cohort.is_done]
        if running:
            process.advance(running)
            progress.add(sum(len(cohort.names) / cohort.calls for cohort in running))
        ended = [(cohort.names, process.results(cohort)) for cohort in cohorts if cohort.is_done]
        cohorts = [cohort for cohort in cohorts if not cohort.is_done]
        for names, results in ended:
            yield from zip(names, results, strict=True)


class Queued(Backward[N], Generic[N, W]):
    """A backward whose network processes data of many blocks in one batch."""

    shares_batches: ClassVar[bool] = True
    blocks_ahead: ClassVar[int | None] = None

    @abstractmethod
    def works(self, noisy: N, streams: Streams, clones: int) -> Iterable[W]:
        """The input of the queue for each reconstruction of a block."""

    @abstractmethod
    def queue(self, works: Iterator[W]) -> Iterator[tuple[object, np.ndarray]]:
        """`run_queue` with the process of this model."""

    def shaped(self, rows: np.ndarray, noisy: N, streams: Streams) -> Reconstructions:
        """Reconstructions (items, draws, ...) from the rows (items * draws, ...) of a block."""
        return rows.reshape(len(streams.items), -1, *rows.shape[1:])

    def reconstruct(self, noisy: N, streams: Streams, clones: int = 1) -> Reconstructions:
        ((_, reconstructions),) = self.reconstruct_stream([(None, noisy, streams)], clones)
        return reconstructions

    def reconstruct_stream(
        self, blocks: Iterable[tuple[K, N, Streams]], clones: int = 1
    ) -> Iterator[tuple[K, Reconstructions]]:
        under_way = _UnderWay(self, clones, blocks)
        for name, result in self.queue(under_way.works()):
            block = under_way.block_ended_by(cast(_Place, name), result)
            if block is not None:
                yield block.key, self.shaped(np.stack(block.results), block.noisy, block.streams)


class _Place(NamedTuple):
    """Block and row of a reconstruction in the queue; its text names item, trajectory, clone and
    noise in errors.
    """

    block: int
    row: int
    streams: Streams
    clones: int

    def __str__(self) -> str:
        item, draw = divmod(self.row, self.streams.count * self.clones)
        trajectory, clone = divmod(draw, self.clones)
        phrases = [
            f"item {self.streams.items[item]}",
            f"trajectory {self.streams.trajectories[trajectory]}",
        ]
        if self.clones > 1:
            phrases.append(f"clone {clone}")
        phrases.append(f"noise {self.streams.noise:g}")
        return f"({', '.join(phrases)})"


@dataclass
class _Block(Generic[K, N]):
    """A block with unfinished reconstructions."""

    key: K
    noisy: N
    streams: Streams
    rows: list[np.ndarray | None]
    """The reconstructions; None while they are unfinished."""
    num_left: int

    @property
    def results(self) -> list[np.ndarray]:
        return [row for row in self.rows if row is not None]


class _UnderWay(Generic[K, N, W]):
    """The blocks that a queue has read, and whose reconstructions have not all arrived."""

    def __init__(
        self, backward: Queued[N, W], clones: int, blocks: Iterable[tuple[K, N, Streams]]
    ) -> None:
        self.backward = backward
        self.clones = clones
        self.unread = blocks
        self.blocks: dict[int, _Block[K, N]] = {}

    def works(self) -> Iterator[W]:
        """What the queue reads: the reconstructions of all blocks, named by their places."""
        for number, (key, noisy, streams) in enumerate(self.unread):
            count = len(streams.items) * streams.count * self.clones
            self.blocks[number] = _Block(key, noisy, streams, [None] * count, count)
            for row, work in enumerate(self.backward.works(noisy, streams, self.clones)):
                yield work._replace(name=_Place(number, row, streams, self.clones))

    def block_ended_by(self, place: _Place, result: np.ndarray) -> _Block[K, N] | None:
        """The block of a result, if this was the last one of the block."""
        block = self.blocks[place.block]
        block.rows[place.row] = result
        block.num_left -= 1
        if block.num_left:
            return None
        return self.blocks.pop(place.block)
