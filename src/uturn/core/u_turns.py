"""A U-turn is U = Backward ∘ Corruption. A stream of them is the only way to make them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.contracts import checked_reconstructions, read_only, undoes
from uturn.core.data import N, O, UTurns
from uturn.core.messages import shown
from uturn.core.own_parts import name_of
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
    >>> [(key, turned.reconstructions[0].shape) for key, turned in u_turns(blocks, ut.Masking(), ut.backward.ExactPosterior())]
    [(0.3, (5, 1, 8)), (0.6, (5, 1, 8))]
    """
    clones = checked_integer("clones", clones, 1)
    most = backward.blocks_ahead
    most = None if most is None else checked_integer("backward.blocks_ahead", most, 1)
    expect(
        undoes(backward, corruption),
        "backward",
        backward,
        f"one that undoes {corruption.process!r}",
    )
    return _stream(blocks, corruption, backward, clones, most)


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
    ((_, turned),) = u_turns(
        [(None, originals, noise, streams)], corruption, backward, clones=clones
    )
    return turned


def _stream(
    blocks: Iterable[tuple[Key, O, float, Streams | int]],
    corruption: Corruption[O, N],
    backward: Backward[N],
    clones: int,
    most: int | None,
) -> Iterator[tuple[Key, UTurns[O, N]]]:
    where = f"{name_of(backward, 'backward')}.reconstruct_stream"
    # Originals, noisy data and streams of the blocks under way.
    waiting: dict[Key, tuple[O, N, Streams]] = {}
    # Errors of source or corruption with their tracebacks.
    failures: list[tuple[Exception, Any]] = []
    number_read = 0  # blocks read in the current call of the backward

    def noisy(some: Iterator[Any]) -> Iterator[tuple[Key, N, Streams]]:
        nonlocal number_read
        try:
            for block in some:
                key, originals, noise, streams = _checked_block(block, corruption, waiting)
                waiting[key] = (
                    originals,
                    read_only(corruption.observe(originals, noise, streams)),
                    streams,
                )
                number_read += 1
                del block, originals  # release them while the backward computes
                yield key, waiting[key][1], streams
                if most is not None and len(waiting) >= most:
                    return
        except Exception as error:
            failures.append((error, error.__traceback__))
            raise

    def answers(some: Iterator[Any]) -> Iterator[Any]:
        """The answers of the backward. Errors of source and corruption pass without its frames,
        as they are none of its own.
        """
        try:
            stream = backward.reconstruct_stream(noisy(some), clones)
            expect(
                isinstance(stream, Iterable),
                where,
                stream,
                "an iterator over (key, reconstructions)",
            )
            yield from stream
        except Exception:
            if not failures:
                raise
        if failures:  # also where the backward treated the error as the end of its input
            error, frames = failures[0]
            raise error.with_traceback(frames) from None

    blocks = iter(blocks)
    for first in blocks:
        # A backward that reads all its input before it answers gets `most` blocks, and is called
        # again for the next.
        some, number_read = chain([first], blocks), 0
        del first
        for answer in answers(some):
            is_pair = (
                isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Hashable)
            )
            expect(
                is_pair and answer[0] in waiting,
                where,
                answer,
                "(key, reconstructions), each key of a block once",
            )
            key, (originals, observation, streams) = answer[0], waiting.pop(answer[0])
            made = checked_reconstructions(
                backward, answer[1], len(originals.items), streams.count * clones
            )
            yield key, UTurns(originals, observation, made, clones)
            del answer, originals, observation, made
        if waiting or not number_read:
            left = max(1, len(waiting))
            raise ValueError(
                f"{where} ended before the reconstructions of {left} blocks; expected all of them"
            )


def _checked_block(
    block: tuple[Key, O, float, Streams | int],
    corruption: Corruption[O, N],
    waiting: Collection[Key],
) -> tuple[Key, O, float, Streams]:
    """A block with its `Streams`; ValueError if the block is malformed."""
    key, originals, noise, streams = block
    expect(key not in waiting, "key", key, "another one for each block under way")
    noise = float(checked_noise(noise, corruption.max_noise, batch=0))
    if not isinstance(streams, Streams):
        return (
            key,
            originals,
            noise,
            Streams(checked_seed(streams, "streams"), originals.items, noise),
        )
    if not np.array_equal(streams.items, originals.items):
        raise ValueError(
            f"streams: items = {shown(streams.items)}: expected {shown(originals.items)}"
        )
    expect(streams.noise == noise, "streams: noise", streams.noise, f"{noise}")
    return key, originals, noise, streams
