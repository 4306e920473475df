"""A queue that keeps the batches of a network full: one call serves data at different steps, of
different blocks.

When a datum is done, the next one takes its place. `Queued` is the backward of such a network: it
passes the rows of blocks through `run_queue` and reassembles the blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from uturn.core import progress
from uturn.core.protocols import Backward
from uturn.core.random import Streams


class Process(Protocol):
    """The members of a model used by the queue. Each datum has a `name`, returned with its
    result and used in errors.
    """

    @property
    def places(self) -> int:
        """Largest number of data in the queue."""

    def calls(self, work: Any) -> int:
        """Number of network calls for a datum."""

    def unchanged(self, work: Any) -> np.ndarray:
        """The result for a datum without network calls."""

    def admitted(self, work: list[Any]) -> list[Any]:
        """New data in cohorts that advance together, with their `names`, number of `calls`, and
        calls made so far (`step`).
        """

    def advance(self, cohorts: list[Any]) -> None:
        """One step of all cohorts."""

    def results(self, cohort: Any) -> Iterable[np.ndarray]:
        """The results of a finished cohort, in the order of its names."""


def run_queue(process: Process, work: Iterable[Any]) -> Iterator[tuple[Any, np.ndarray]]:
    """Results `(name, array)` in the order of completion. `work` is read when places become
    free, so it may be lazy.
    """
    waiting, cohorts = iter(work), list[Any]()
    while True:
        free, entering = process.places - sum(len(cohort.names) for cohort in cohorts), list[Any]()
        while len(entering) < free and (new := next(waiting, None)) is not None:
            if process.calls(new):
                entering.append(new)
            else:
                progress.add()
                yield new.name, process.unchanged(new)
        cohorts += process.admitted(entering) if entering else []
        if not cohorts:
            return
        process.advance(cohorts)
        progress.add(sum(len(cohort.names) / cohort.calls for cohort in cohorts))
        ended = [
            (cohort.names, process.results(cohort))
            for cohort in cohorts
            if cohort.step == cohort.calls
        ]
        cohorts = [cohort for cohort in cohorts if cohort.step < cohort.calls]
        for names, results in ended:
            yield from zip(names, results, strict=True)


class Queued(Backward):
    """A backward whose network processes data of many blocks in one batch."""

    shares_batches: ClassVar[bool] = True
    blocks_ahead: ClassVar[int | None] = None

    @abstractmethod
    def works(self, noisy: Any, streams: Streams, clones: int) -> Iterable[Any]:
        """The input of the queue for each reconstruction of a block: named tuples with a field
        `name`.
        """

    @abstractmethod
    def queue(self, works: Iterator[Any]) -> Iterator[tuple[Any, np.ndarray]]:
        """`run_queue` with the process of this model."""

    def shaped(self, rows: np.ndarray, noisy: Any, streams: Streams) -> Any:
        """Reconstructions (items, draws, ...) from the rows (items * draws, ...) of a block."""
        return rows.reshape(len(streams.items), -1, *rows.shape[1:])

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        ((_, reconstructions),) = self.reconstruct_stream([(None, noisy, streams)], clones)
        return reconstructions

    def reconstruct_stream(
        self, blocks: Iterable[tuple[Any, Any, Streams]], clones: int = 1
    ) -> Iterator[tuple[Any, Any]]:
        under_way: dict[int, _Block] = {}

        def works() -> Iterator[Any]:
            for number, (key, noisy, streams) in enumerate(blocks):
                rows = len(streams.items) * streams.count * clones
                under_way[number] = _Block(key, noisy, streams, [None] * rows, rows)
                for row, work in enumerate(self.works(noisy, streams, clones)):
                    yield work._replace(name=_Place(number, row, streams, clones))

        for place, result in self.queue(works()):
            block = under_way[place.block]
            block.rows[place.row] = result
            block.left -= 1
            if block.left == 0:
                del under_way[place.block]
                yield block.key, self.shaped(np.stack(block.rows), block.noisy, block.streams)


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
        text = (
            f"item {self.streams.items[item]}, trajectory {self.streams.trajectories[trajectory]}"
        )
        return (
            f"({text}{f', clone {clone}' if self.clones > 1 else ''}, noise {self.streams.noise:g})"
        )


@dataclass
class _Block:
    """A block with unfinished reconstructions."""

    key: Any
    noisy: Any
    streams: Streams
    rows: list[Any]
    left: int
