"""A U-turn is U = Backward ∘ Corruption. A stream of them is the only way to make them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.contracts import checked_reconstructions, read_only, undoes
from uturn.core.data import N, O, Reconstructed, UTurns, checked_noisy
from uturn.core.messages import shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.protocols import Backward, Corruption
from uturn.core.random import Streams, checked_seed

Key = TypeVar("Key", bound=Hashable)


def u_turns(
    blocks: Iterable[tuple[Key, O, float, Streams | int]],
    corruption: Corruption[O, N],
    backward: Backward[N],
    *,
    clones: int = 1,
) -> Iterator[tuple[Key, UTurns[O, N]]]:
    """U-turns of a stream of blocks of originals, each at its own noise level, in the order of
    completion.

    A backward that reconstructs the data of several blocks together, such as a queue that keeps the
    batches of a network full, takes the next block as soon as it has room. Blocks are read lazily,
    so the U-turns of a large run need not fit into memory.

    `blocks`: tuples (key, originals, noise, streams), with a hashable key that is unique among the
    blocks under way, and the rest as in `u_turn`. Yields (key, UTurns), each key once; ValueError
    if the backward returns other keys or shapes, or ends early.

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> originals = ut.sources.Strings(np.arange(5), rhm, rhm.sample(5, seed=0))
    >>> blocks = ((noise, originals, noise, 0) for noise in (0.3, 0.6))
    >>> for key, turned in u_turns(blocks, ut.Masking(), ut.backward.ExactPosterior()):
    ...     print(key, turned.reconstructions[0].shape)
    0.3 (5, 1, 8)
    0.6 (5, 1, 8)
    """
    clones = checked_integer("clones", clones, 1)
    if backward.blocks_ahead is not None:
        checked_integer("backward.blocks_ahead", backward.blocks_ahead, 1)
    expected = f"one that undoes {corruption.process!r}"
    expect(undoes(backward, corruption), "backward", backward, expected)
    return _Stream(iter(blocks), corruption, backward, clones).u_turns()


def u_turn(
    originals: O,
    corruption: Corruption[O, N],
    backward: Backward[N],
    noise: float,
    streams: Streams | int = 0,
    *,
    clones: int = 1,
) -> UTurns[O, N]:
    """Corrupt originals up to a noise level, and reconstruct them: `u_turns` of one block.

    The parts of an experiment fit together: `source, corruption, backward, probes =
    experiment.parts`. The corruption of a diffusion model is its forward process,
    `backward.forward_process(source)`.

    `originals`: a block of a source, such as `next(source.blocks(items, seed, num_items))`, or
    `uturn.sources.Strings(items, rhm, draw)`. `backward`: one that undoes the process of the
    corruption. `noise`: level in the unit of the corruption, 0 .. `corruption.max_noise`.
    `streams`: random streams of the items and trajectories at this noise level; an integer is a
    seed, for one trajectory of each item. `clones` >= 1: reconstructions of each noisy datum; clone
    0 equals the reconstruction of a U-turn with `clones=1`. Reconstructions have the shape (items,
    trajectories * clones, ...); those of strings are {tree_level: int64 (items, trajectories *
    clones, nodes)}.

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> originals = ut.sources.Strings(np.arange(5), rhm, rhm.sample(5, seed=0))
    >>> turned = u_turn(originals, ut.Masking(), ut.backward.ExactPosterior(), noise=0.3, clones=4)
    >>> turned.reconstructions[0].shape
    (5, 4, 8)
    """
    block = (None, originals, noise, streams)
    ((_, turned),) = u_turns([block], corruption, backward, clones=clones)
    return turned


class _Waiting(NamedTuple, Generic[O, N]):
    """A block that has been read, and whose reconstructions have not arrived."""

    originals: O
    noisy: N
    streams: Streams


class _Stream(Generic[Key, O, N]):
    """The blocks under way between a corruption and a backward."""

    def __init__(
        self,
        blocks: Iterator[tuple[Key, O, float, Streams | int]],
        corruption: Corruption[O, N],
        backward: Backward[N],
        clones: int,
    ) -> None:
        self.blocks = blocks
        self.corruption = corruption
        self.backward = backward
        self.clones = clones
        self.waiting: dict[Key, _Waiting[O, N]] = {}
        self.num_read = 0
        """Blocks read in the current call of the backward."""
        self.failures: list[_Failure] = []
        """Errors of source and corruption."""

    @property
    def where(self) -> str:
        return f"{name_of(self.backward, 'backward')}.reconstruct_stream"

    def u_turns(self) -> Iterator[tuple[Key, UTurns[O, N]]]:
        """U-turns of all blocks, in the order of completion.

        A backward that reads all its input before it answers gets `blocks_ahead` blocks, and is
        called again for the next ones.
        """
        for first in self.blocks:
            self.num_read = 0
            blocks = chain([first], self.blocks)
            del first
            for answer in self._answers(blocks):
                yield self._turned(answer)
                del answer
            if self.waiting or not self.num_read:
                num_left = max(1, len(self.waiting))
                ended = f"{self.where} ended before the reconstructions of {num_left} blocks"
                raise ValueError(f"{ended}; expected all of them")

    def _noisy(
        self, blocks: Iterator[tuple[Key, O, float, Streams | int]]
    ) -> Iterator[tuple[Key, N, Streams]]:
        """What the backward reads: noisy data of the next blocks."""
        most = self.backward.blocks_ahead
        try:
            for block in blocks:
                key, originals, noise, streams = self._checked(block)
                noisy = read_only(self._observed(originals, noise, streams))
                self.waiting[key] = _Waiting(originals, noisy, streams)
                self.num_read += 1
                del block, originals, noisy  # release them while the backward computes
                yield key, self.waiting[key].noisy, streams
                if most is not None and len(self.waiting) >= most:
                    return
        except Exception as error:
            self.failures.append(_Failure(error, error.__traceback__))
            raise

    def _observed(self, originals: O, noise: float, streams: Streams) -> N:
        """The noisy data of a block; ValueError unless a user's corruption gives one for each
        trajectory.
        """
        noisy = self.corruption.observe(originals, noise, streams)
        if not is_own(self.corruption):  # noisy data of a chain are of a class of their own
            return noisy
        items = len(originals.items)
        counts = [items * streams.count]
        if not self.corruption.is_random:
            counts.append(items)
        checked_noisy(noisy, f"{name_of(self.corruption, 'corruption')}.corrupt", counts)
        return noisy

    def _answers(self, blocks: Iterator[tuple[Key, O, float, Streams | int]]) -> Iterator[object]:
        """What the backward gives. Errors of source and corruption pass without its frames."""
        try:
            stream = self.backward.reconstruct_stream(self._noisy(blocks), self.clones)
            is_stream = isinstance(stream, Iterable)
            expect(is_stream, self.where, stream, "an iterator over (key, reconstructions)")
            yield from stream
        except Exception:
            if not self.failures:
                raise
        if self.failures:  # also where the backward took the error for the end of its input
            failure = self.failures[0]
            raise failure.error.with_traceback(failure.traceback) from None

    def _turned(self, answer: object) -> tuple[Key, UTurns[O, N]]:
        """The U-turns of a block, from an answer of the backward, (key, reconstructions)."""
        expected = "(key, reconstructions), each key of a block once"
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Hashable)):
            raise ValueError(f"{self.where} = {shown(answer)}: expected {expected}")
        key, reconstructions = answer
        expect(key in self.waiting, self.where, answer, expected)
        block = self.waiting.pop(key)
        num_draws = block.streams.count * self.clones
        records: Mapping[str, np.ndarray] = {}
        if isinstance(reconstructions, Reconstructed):
            records = reconstructions.records
            reconstructions = reconstructions.reconstructions
        checked = checked_reconstructions(
            self.backward, reconstructions, block.originals, num_draws
        )
        return key, UTurns(block.originals, block.noisy, checked, self.clones, records)

    def _checked(self, block: tuple[Key, O, float, Streams | int]) -> tuple[Key, O, float, Streams]:
        """A block with its `Streams`; ValueError if the block is malformed."""
        key, originals, noise, streams = block
        expect(key not in self.waiting, "key", key, "another one for each block under way")
        noise = float(checked_noise(noise, self.corruption.max_noise, batch=0))
        if not isinstance(streams, Streams):
            seed = checked_seed(streams, "streams")
            return key, originals, noise, Streams(seed, originals.items, noise)
        is_of_block = np.array_equal(streams.items, originals.items)
        expect(is_of_block, "streams: items", streams.items, shown(originals.items))
        expect(streams.noise == noise, "streams: noise", streams.noise, f"{noise}")
        return key, originals, noise, streams


class _Failure(NamedTuple):
    """An error with the traceback that it had when it was raised."""

    error: Exception
    traceback: TracebackType | None
