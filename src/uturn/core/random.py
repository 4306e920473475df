"""Counter-based random numbers: every number is a function of (seed, coordinates, index) and of
nothing else.

The generator is Philox4x32-10 (Salmon et al., SC 2011). There is no state to share or to advance,
so results do not depend on batch size, order, number of workers or interruptions.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, DTypeLike

from uturn.core.box_muller import normal_pair, wide_vectors
from uturn.core.checks import expect
from uturn.core.threads import announce_compiling, over_blocks

announce_compiling()  # every module with kernels imports this one

# Version of the numbers made from a key; stores of another version cannot be resumed, to avoid
# mixing versions.
VERSION = 2
# Upper half of the 128-bit counter: keeps the two uses apart.
_UNIFORM = np.uint64(0)
_FOLD = np.uint64(1)
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TO_UNIT = 2.0**-53


@njit(inline="always", cache=True)
def philox(key, counter, domain=_UNIFORM):
    """Philox4x32-10 of a 64-bit key and the 128-bit counter (counter, domain): two uint64."""
    k0 = key & _LOW
    k1 = key >> _SHIFT
    c0 = counter & _LOW
    c1 = counter >> _SHIFT
    c2 = domain & _LOW
    c3 = domain >> _SHIFT
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _SHIFT) ^ c1 ^ k0
        c1 = p1 & _LOW
        c2 = (p0 >> _SHIFT) ^ c3 ^ k1
        c3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0 | (c1 << _SHIFT), c2 | (c3 << _SHIFT)


@njit(inline="always", cache=True)
def fold(key, coordinate):
    """Key of the sub-stream `coordinate` of the stream `key`."""
    return philox(key, coordinate, _FOLD)[0]


@njit(inline="always", cache=True)
def uniform_at(key, index):
    """The `index`-th uniform number in [0, 1) of the stream `key`, with 53 random bits."""
    return np.float64(philox(key, index)[0] >> np.uint64(11)) * _TO_UNIT


@njit(cache=True)
def _fold_all(parents, coordinates):
    out = np.empty_like(parents)
    for i in range(len(parents)):
        out[i] = fold(parents[i], coordinates[i])
    return out


@njit(nogil=True, cache=True)
def uniform_row(key, first, out):
    """Fill `out` with the uniform numbers first, first + 1, .. of the stream `key`."""
    wide_vectors()  # type: ignore[call-arg]
    for j in range(len(out)):
        out[j] = uniform_at(key, first + np.uint64(j))


@njit(nogil=True, cache=True)
def _uniforms(keys, first, last, out):
    for i in range(first, last):
        uniform_row(keys[i], np.uint64(0), out[i])


@njit(nogil=True, cache=True)
def normal_row(key, out):
    """Fill `out` with the first len(out) standard normal float32 numbers of the stream `key`.

    One Philox call gives four numbers. Sixteen calls are made together, so that the compiler turns
    them into vector code.
    """
    wide_vectors()  # type: ignore[call-arg]
    n = len(out)
    whole = n // 64 * 64
    for first in range(0, whole, 64):
        for call in range(16):
            a, b, c, d = _four_normals(key, np.uint64(first // 4 + call))
            at = first + 4 * call
            out[at] = a
            out[at + 1] = b
            out[at + 2] = c
            out[at + 3] = d
    for at in range(whole, n, 4):
        for k, x in enumerate(_four_normals(key, np.uint64(at // 4))):
            if at + k < n:
                out[at + k] = x


@njit(inline="always")
def _four_normals(key, counter):
    first, second = philox(key, counter)
    a, b = normal_pair(np.uint32(first & _LOW), np.uint32(first >> _SHIFT))
    c, d = normal_pair(np.uint32(second & _LOW), np.uint32(second >> _SHIFT))
    return a, b, c, d


@njit(nogil=True, cache=True)
def _normal_row_double(key, out):
    eleven = np.uint64(11)
    n = len(out)
    for j in range((n + 1) // 2):
        first, second = philox(key, np.uint64(j))
        u = np.float64((first >> eleven) + np.uint64(1)) * _TO_UNIT
        radius = np.sqrt(-2 * np.log(u))
        angle = 2 * np.pi * (np.float64(second >> eleven) * _TO_UNIT)
        out[2 * j] = radius * np.cos(angle)
        if 2 * j + 1 < n:
            out[2 * j + 1] = radius * np.sin(angle)


@njit(nogil=True, cache=True)
def _normals(keys, first, last, out):
    for i in range(first, last):
        normal_row(keys[i], out[i])


@njit(nogil=True, cache=True)
def _normals_double(keys, first, last, out):
    for i in range(first, last):
        _normal_row_double(keys[i], out[i])


def checked_seed(seed: object, name: str = "seed") -> int:
    """`seed` as an int in [0, 2**64), or a ValueError."""
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        value = -1
    expect(0 <= value < 2**64, name, seed, "an integer in [0, 2**64)")
    return value


def keys(seed: int, *coordinates: ArrayLike) -> np.ndarray:
    """Keys of independent random streams, one for every tuple of coordinates.

    They are uint64 of the broadcast shape of the coordinates. `seed`: 0 .. 2**64 - 1.
    `coordinates`: non-negative integers or integer arrays, such as the item, the trajectory and
    the noise level of a U-turn.

    Examples
    --------
    >>> a, b = keys(0, range(10)), keys(0, range(4))
    >>> bool((a[:4] == b).all()), len(set(a.tolist()))
    (True, 10)
    """
    columns = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in coordinates))
    shape = columns[0].shape if columns else ()
    key = np.zeros(int(np.prod(shape)), np.uint64)
    for column in [np.full(shape, checked_seed(seed), np.uint64), *columns]:
        key = _fold_all(key, np.ascontiguousarray(column).reshape(-1))
    return key.reshape(shape)


Seed = int | np.integer | np.ndarray
"""An integer, or one key for each sample, uint64 (batch,), as `keys` makes them."""


class Purpose(IntEnum):
    """Uses of random streams: the first coordinate of a key after the seed. Numbers above 99 are
    free for users.
    """

    GRAMMAR = 0
    ORIGINAL = 1
    CORRUPTION = 2
    RECONSTRUCTION = 3
    IMAGE_PAIRS = 5
    CLASSIFIER = 6
    POPULATION = 7
    DENOISER = 8
    DENOISING = 9
    FRESH = 10
    PICTURE = 11
    CALIBRATION = 12
    RANKS = 13
    PAIRS = 14
    CHAIN = 15
    KNOB = 16


# Sub-streams of a sample, so that noise is independent of the string when `sample` and `corrupt`
# get the same seed. Their numbers are far from those of posterior draws, which `sample_posterior`
# folds into the same keys.
STRINGS = 2**63 + 1
NOISE = 2**63 + 2


@dataclass(frozen=True)
class Streams:
    """The random streams of the U-turns of some `items` (items,) at one noise level, for a range of
    their `trajectories`.

    Keys depend on the value of `noise`, not on its index in a grid, so that a finer grid repeats
    the same numbers.
    """

    seed: int
    items: np.ndarray
    noise: float
    trajectories: range = range(1)

    @property
    def count(self) -> int:
        return len(self.trajectories)

    def keys(self, purpose: int, clones: int = 1) -> np.ndarray:
        """One key for each item, trajectory and clone: uint64 (items * trajectories * clones,), in
        C order.

        The keys of clone 0 are those of `clones=1`. `purpose`: a `Purpose`, or a number above 99.
        """
        level = np.float64(self.noise).view(np.uint64)
        items = np.asarray(self.items)[:, None]
        trajectories = np.asarray(self.trajectories)
        first = keys(self.seed, purpose, items, trajectories, level).reshape(-1)
        of_clones = [first]
        for clone in range(1, clones):
            of_clones.append(_fold_all(first, np.full(len(first), clone, np.uint64)))
        return np.stack(of_clones, axis=1).reshape(-1)

    def first(self) -> Streams:
        """The streams of trajectory 0 only."""
        return Streams(self.seed, self.items, self.noise)


def streams(
    seed: Seed, count: int, purpose: int | np.integer | np.ndarray | None = None
) -> np.ndarray:
    """One key for each sample, uint64 (count,).

    They are `keys(seed, range(count))`, or `seed` itself if it is already an array of keys.
    Explicit keys make the numbers of a sample independent of its batch. Different purposes (an
    integer, or one for each sample) give independent streams from one seed.
    """
    if isinstance(seed, np.ndarray) and seed.ndim:
        stream_keys = seed
    else:
        stream_keys = keys(seed, np.arange(count, dtype=np.uint64))  # type: ignore[arg-type]  # `keys` checks it
    are_keys = stream_keys.dtype == np.uint64 and stream_keys.shape == (count,)
    each = f"one uint64 key per sample, ({count},), as uturn.random.keys makes them"
    expect(are_keys, "seed", seed, f"an integer, or {each}")
    if purpose is None:
        return stream_keys
    folded: np.ndarray = _fold_all(stream_keys, np.full(count, purpose, np.uint64))
    return folded


def uniforms(keys: np.ndarray, n: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (len(keys), n). Row i: the first n of stream keys[i]."""
    out = np.empty((len(keys), n))
    over_blocks(len(keys), lambda first, last: _uniforms(keys, first, last, out), n)
    return out


def choices(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Indices int64 (..) drawn with probability ~ weights (.., v), by inverting their cumulative
    sums at uniform numbers (..).
    """
    below = np.cumsum(weights, axis=-1, dtype=np.float64)
    heights = u * below[..., -1]
    indices: np.ndarray = np.minimum((below <= heights[..., None]).sum(-1), weights.shape[-1] - 1)
    return indices


def normals(keys: np.ndarray, n: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Standard normal numbers, float32 or float64 (len(keys), n): row i holds the first n numbers
    of stream keys[i].

    float32 numbers are at most 6.66 in absolute value.
    """
    out = np.empty((len(keys), n), dtype)
    rows = _normals if out.dtype == np.float32 else _normals_double
    over_blocks(len(keys), lambda first, last: rows(keys, first, last, out), n)
    return out


@contextmanager
def globally_seeded(key: int) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and Python by a key, and restores them at the
    end.

    For code of others that draws from them. What it draws then depends on the key alone, if it gets
    one datum at a time.
    """
    import torch

    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # this generator is meant
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(key))
        random.seed(int(key))
        np.random.seed(int(key) % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
