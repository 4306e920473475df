"""Comparison of two samplers of U-turns by exact tests: have their reconstructions of the same
originals one law?
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_array, expect
from uturn.core.random import Purpose, checked_seed, keys
from uturn.measures.calibration import holm
from uturn.measures.estimates import checked_share
from uturn.measures.relabelling import p_values

_PAIRS = list(itertools.combinations(range(4), 2))
"""Pairs of the four U-turns of an original; pair 0 are the U-turns of the first sampler."""


class TwoSamplers(NamedTuple):
    """The result of an exact test at each noise level, arrays (noise,).

    `statistic`: its mean over originals. `p_value` of each single level; `adjusted` by Holm.
    `level`: false-alarm rate of all levels together. `relabellings`: largest number of random
    relabellings B; no p-value is below 1 / (B + 1).
    """

    statistic: np.ndarray
    p_value: np.ndarray
    adjusted: np.ndarray
    level: float
    relabellings: int

    @property
    def passed(self) -> bool:
        """Whether all adjusted p-values are above the level."""
        return bool((self.adjusted > self.level).all())


def two_samplers(
    first: ArrayLike, second: ArrayLike, level: float = 1e-3, seed: int = 0
) -> TwoSamplers:
    """Test whether two samplers make U-turns of one law, from two U-turns of each original by each
    of them.

    With d the root mean square difference of two data, and a, a' the reconstructions of an original
    by the first sampler, b, b' those by the second, the statistic of the original is the energy
    distance (Szekely and Rizzo 2004) of the two pairs,

        e = (d(a, b) + d(a, b') + d(a', b) + d(a', b')) / 2 - d(a, a') - d(b, b'),

    whose expectation is 0 for samplers of one law, and positive for any others. The splits of the
    four reconstructions into two pairs are drawn uniformly for every original, B times, and the
    mean of e is compared with the means under these relabellings. An error that both samplers have,
    or noise shared by different originals, cannot be seen. No p is below 3^-n for n originals.

    `first`, `second`: reconstructions (noise, items, 2, ...) of the same originals at the same
    noise levels, with independent noise; further axes are those of a datum. `level`: false-alarm
    rate of all noise levels together (Holm). `seed`: of the relabellings.

    >>> import uturn as ut
    >>> x = ut.random.normals(ut.random.keys(0, range(200)), 4 * 16).reshape(1, 200, 4, 16)
    >>> two_samplers(x[:, :, :2], x[:, :, 2:]).passed, two_samplers(x[:, :, :2], 0.5 * x[:, :, 2:]).passed
    (True, False)
    """
    data = _together(first, second)
    distances = np.stack([_size(data[:, :, i] - data[:, :, j], 2) for i, j in _PAIRS], axis=-1)
    # Within the pairs of each split.
    halves = np.stack([distances[..., k] + distances[..., 5 - k] for k in range(3)], axis=-1)
    e = halves.sum(-1, keepdims=True) / 2 - 1.5 * halves
    # The sums of shifted values are positive, so that the test is one-sided.
    return _tested(e, e - e.min(-1, keepdims=True), distances.max(axis=(1, 2)), level, seed)


def sizes_of_change(
    originals: ArrayLike, first: ArrayLike, second: ArrayLike, level: float = 1e-3, seed: int = 0
) -> TwoSamplers:
    """Test whether the changes that two samplers make have the same mean size; arguments as in
    `two_samplers`.

    `originals`: array (items, ...). The statistic of an original is the mean of `change_sizes` over
    the U-turns of the first sampler, minus that over those of the second. Its labels are drawn
    uniformly among the six choices of two U-turns out of four, and the test has two sides.
    """
    sizes = change_sizes(originals, _together(first, second))
    means = [(sizes[..., i] + sizes[..., j]) / 2 for i, j in _PAIRS]
    differences = np.stack(
        [mean - other for mean, other in zip(means, means[::-1], strict=True)], axis=-1
    )
    return _tested(differences, differences, sizes.max(axis=(1, 2)), level, seed)


def change_sizes(originals: ArrayLike, reconstructions: ArrayLike) -> np.ndarray:
    """Root mean square change of each U-turn, float64 (noise, items, draws), of (items, ...) and
    (noise, items, draws, ...).
    """
    x = checked_array("originals", originals)
    y = checked_array("reconstructions", reconstructions)
    fits = y.ndim > 2 and x.shape == (y.shape[1], *y.shape[3:])
    where = "shapes of originals and reconstructions"
    expect(fits, where, (x.shape, y.shape), "(items, ...) and (noise, items, draws, ...)")
    return _size(y - x[:, None], 3)


def _together(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The U-turns of both samplers, (noise, items, 4, ...), checked."""
    a = checked_array("first", first)
    b = checked_array("second", second)
    fits = a.shape == b.shape and a.ndim > 2 and a.shape[2] == 2 and a.size
    expect(
        fits,
        "shapes of first and second",
        (a.shape, b.shape),
        "both (noise, items, 2, ...): two U-turns of each item",
    )
    data = np.concatenate([a, b], axis=2)
    is_finite = data.dtype.kind in "biuf" and np.isfinite(data).all()
    expect(
        is_finite,
        "first and second",
        data,
        "finite real numbers; leave out items with missing reconstructions",
    )
    return data.astype(np.result_type(data.dtype, np.float32), copy=False)


def _size(differences: np.ndarray, leading: int) -> np.ndarray:
    """Root mean square over the axes of a datum, those after the leading ones."""
    squares = np.square(differences, dtype=float)
    mean = squares.reshape(*differences.shape[:leading], -1).mean(axis=-1)
    return np.asarray(np.sqrt(mean))


def _tested(
    statistics: np.ndarray, compared: np.ndarray, scale: np.ndarray, level: float, seed: int
) -> TwoSamplers:
    """The test from statistics (noise, items, labellings), 0 as observed; `compared` are
    relabelled, in units of `scale`.
    """
    level = checked_share("level", level)
    B = math.ceil(100 * len(statistics) / level)
    units = np.where(scale > 0, scale, 1)[:, None, None]
    gaps = np.ascontiguousarray((compared / units).transpose(1, 2, 0))
    p = p_values(gaps, B, int(keys(checked_seed(seed), Purpose.CALIBRATION)))
    return TwoSamplers(statistics[..., 0].mean(axis=1), p, holm(p), level, B)
