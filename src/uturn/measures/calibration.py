"""Calibration: a test of whether reconstructions are draws from the posterior. It needs no ground truth.

Let x_0 be an original, x_t its noisy datum, and x̂, x̂' two independent draws from p(x_0 | x_t), the *clones*. Given x_t all
three are independent and have the same law, so that for every function f of two data

    E f(x_0, x̂) = E f(x̂, x̂').

The difference of the two sides, the *gap*, is 0 for an exact posterior. A wrong posterior has a gap if f depends on the error.
The overlap of sites is linear and cannot detect a sampler that draws every site from its own marginal; parsed tree levels and the
class, which depend on several sites at once, can. No f detects a posterior that ignores a part of the noisy datum, nor a channel
that draws another amount of noise than it states if its evidence is right for the noise drawn. Such a channel has to be compared
with its own law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit, prange

from uturn.checks import checked_integer
from uturn.probes.clones import between_clones
from uturn.random import Purpose, Streams, fold, keys, philox

if TYPE_CHECKING:
    import xarray as xr

    from uturn.experiment import Experiment
    from uturn.rhm import RandomHierarchyModel

_MARGIN = 1e-6  # mean gaps that are equal up to the rounding of float32 readings count as ties
_BLOCK = 1000  # relabellings in one piece of work of a thread


class Calibration(NamedTuple):
    """Gaps of one or several readings, and the exact test that they are 0. All arrays have the shape (...) of the readings.

    Attributes
    ----------
    gap, low, high : mean of f(x_0, x̂) - f(x̂, x̂') over items, and its 95 % interval over items (Student's t)
    p_value : p-value of the exact test of each single reading
    adjusted : p-values adjusted by Holm: if all gaps are 0, any of them is <= a with a probability of at most a
    visible : size of a gap that the strictest of the tests detects with a probability of about one half
    level : false-alarm rate of all tests together
    relabellings : number of random relabellings B; no p-value is below 1 / (B + 1)
    """

    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    adjusted: np.ndarray
    visible: np.ndarray
    level: float
    relabellings: int

    @property
    def passed(self) -> bool:
        """Whether all adjusted p-values are above the level."""
        return bool((self.adjusted > self.level).all())


def calibrate(
    with_original: Any, with_clones: Any, level: float = 1e-3, relabellings: int | None = None, seed: int = 0
) -> Calibration:
    """Test whether original and clones are exchangeable given the noisy datum: `E f(x_0, x̂) = E f(x̂, x̂')`.

    Let g_j be the mean of f between datum j and the others, minus the mean of f among these others, where data are the original
    (j = 0) and its K clones. If the posterior is exact, the K + 1 data of an item are exchangeable, so any of them could be the
    original. The test draws the original uniformly among them, for every item and B times, and compares the mean G of g_0 over
    items with the means G* under relabelling: `p = (1 + number of |G*| >= |G|) / (B + 1)`. It is exact for any number of items
    and any f. It does not assume normality: where almost nothing changes, the t statistic of 200 items reaches 3 to 4.5 for
    exact inference.

    Parameters
    ----------
    with_original : array (items, K, ...)
        f between the original and each of K >= 2 clones, for one or several symmetric f (trailing axes).
    with_clones : array (items, K, ...)
        Mean of f between each clone and the K - 1 others.
    level : float in (0, 1)
        False-alarm rate of all tests together (Holm).
    relabellings : int >= 1, optional
        B; by default 100 times the number of tests over the level, so that p-values can fall below Holm's smallest threshold.
    seed : int
        Seed of the relabellings, which are the same for all tests of one call.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        For arrays of different shapes, fewer than two items or clones, values that are not finite, or a level out of range.

    Notes
    -----
    Give exactly one noisy datum of each original, chosen beforehand (trajectory 0). Several noisy data share their original, so
    the test would not be exact.

    Examples
    --------
    >>> import uturn as ut
    >>> x = ut.random.uniforms(ut.random.keys(0, range(500)), 4)  # an original and three clones, all drawn alike
    >>> like = -abs(x[:, :, None] - x[:, None, :])
    >>> found = calibrate(like[:, 0, 1:], like[:, 1:, 1:].sum(2) / 2, level=0.01)
    >>> found.passed, abs(float(found.gap)) < float(found.visible)
    (True, True)
    """
    from scipy.stats import norm, t

    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level = {level!r}: expected a false-alarm rate between 0 and 1")
    gaps = exchanged_gaps(with_original, with_clones)
    items, shape = len(gaps), gaps.shape[2:]
    tests = math.prod(shape)
    B = math.ceil(100 * tests / level) if relabellings is None else checked_integer("relabellings", relabellings, 1)
    table = np.ascontiguousarray(gaps.reshape(items, gaps.shape[1], tests))
    p_value = (1 + _exceeding(table, B, keys(seed, Purpose.CALIBRATION)[()])) / (B + 1)
    mean, error = gaps[:, 0].mean(axis=0), gaps[:, 0].std(axis=0, ddof=1) / np.sqrt(items)
    half = t.ppf(0.975, items - 1) * error
    # Standard deviation of G* over all relabellings: the g_j of an item add up to 0.
    spread = np.sqrt((gaps**2).mean(axis=1).sum(axis=0)) / items
    visible = norm.isf(level / tests / 2) * spread
    p_value = p_value.reshape(shape)
    return Calibration(mean, mean - half, mean + half, p_value, holm(p_value), visible, float(level), B)


def exchanged_gaps(with_original: Any, with_clones: Any) -> np.ndarray:
    """g_j of every datum j (see `calibrate`), float64 (items, K + 1, ...); j = 0 is the true original.

    With f_k = f(x_0, x̂_k) and r_k the mean of f between clone k and the other clones, the mean of datum k > 0 with all others is
    (f_k + (K-1) r_k)/K, and the sum over all pairs of data is sum_k f_k + (K-1)/2 sum_k r_k.
    """
    f, r = (np.asarray(values, float) for values in (with_original, with_clones))
    if f.ndim < 2 or f.shape != r.shape or f.shape[0] < 2 or f.shape[1] < 2:
        raise ValueError(
            f"with_original has shape {f.shape}, with_clones {r.shape}; expected both (items, clones, ...), at least two of each"
        )
    if not (np.isfinite(f).all() and np.isfinite(r).all()):
        raise ValueError("with_original or with_clones has readings that are not finite; finish the run, or drop what is missing")
    K = f.shape[1]
    own = np.concatenate([f.mean(axis=1, keepdims=True), (f + (K - 1) * r) / K], axis=1)  # mean of datum j with all others
    total = f.sum(axis=1, keepdims=True) + (K - 1) / 2 * r.sum(axis=1, keepdims=True)
    return own - (total - K * own) / (K * (K - 1) / 2)


def holm(p_values: Any) -> np.ndarray:
    """Adjusted p-values of Holm: rejecting those <= a has a false-alarm rate of at most a, for any dependence of the tests."""
    p = np.asarray(p_values, float)
    flat = p.ravel()
    order = np.argsort(flat)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)).clip(max=1)
    return adjusted.reshape(p.shape)


def paired(data: Any, f: Callable[[Any, Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate` from data.

    Parameters
    ----------
    data : array (items, K + 1, ...)
        The original of every item, then its clones.
    f : (array (items, ...), array (items, ...)) -> array (items, ...)
        Symmetric in its two arguments.

    Returns
    -------
    with_original, with_clones : arrays (items, K, ...)
    """
    original, clones = data[:, 0], data[:, 1:]
    first = [np.asarray(f(original, clones[:, k]), float) for k in range(clones.shape[1])]
    return np.stack(first, axis=1), between_clones(clones, clones.shape[1], f)


def clone_agreement(experiment: Experiment, clones: int = 8, noise: Any = None) -> xr.Dataset:
    """The arguments of `calibrate` for an experiment with the exact posterior, with readings that depend on joint draws.

    At each noise level every original gets the noisy datum of trajectory 0 of the run, and K posterior draws given it; clone 0
    is the reconstruction of the run. For strings, f is the share of the nodes of a tree level with the same symbol, after
    parsing the leaves; a node that is not grammatical equals nothing. For vectors, f is the cosine of their components after
    the mean of the law is subtracted, and equality of the class.

    Parameters
    ----------
    experiment : Experiment
        An experiment on strings or vectors with the backward "exact". For Bayesian channels all gaps are 0; the ε-process is not
        Bayesian.
    clones : int K >= 2
    noise : sequence of float, optional
        Noise levels; by default those of the experiment.

    Returns
    -------
    Dataset with dims noise, item, clone, reading
        `with_original`, `with_clones`: as in `calibrate`. `reading` is the tree level, or "cosine" and "class".

    Raises
    ------
    ValueError
        For another backward.
    """
    import xarray as xr

    from uturn.experiment import u_turn

    checked_integer("clones", clones, 2)
    source, corruption, backward, _ = experiment.parts
    if experiment.backward["type"] != "exact":
        raise ValueError(f"backward = {experiment.backward['type']!r}: expected 'exact', which draws from the posterior")
    levels = np.array(experiment.noise if noise is None else noise, float)
    items = np.arange(experiment.items)
    vectors = source.kind == "vectors"
    found: dict[str, list[np.ndarray]] = {"with_original": [], "with_clones": []}
    for level in levels:
        pairs = []
        for originals in source.blocks(items, experiment.seed, experiment.items):
            streams = Streams(experiment.seed, originals.items, float(level))
            u_turns = u_turn(originals, corruption, backward, float(level), streams, clones=clones)
            data = np.concatenate([originals.data[:, None], originals.data_of(u_turns.reconstructions)], axis=1)
            pairs.append(_vector_agreement(source, originals.law, data) if vectors else parsed_agreement(originals.rhm, data))
        for values, pieces in zip(found.values(), zip(*pairs, strict=True), strict=True):
            values.append(np.concatenate(pieces))
    reading = ["cosine", "class"] if vectors else [str(k) for k in range(originals.rhm.depth + 1)]
    return xr.Dataset(
        {name: (("noise", "item", "clone", "reading"), np.array(values)) for name, values in found.items()},
        coords={"noise": levels, "reading": reading, "item": items},
    )


def parsed_agreement(rhm: RandomHierarchyModel, strings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate` from strings: shares of nodes with the same symbol, for every tree level.

    Parameters
    ----------
    rhm : RandomHierarchyModel
    strings : int64 array (items, K + 1, num_leaves)
        The original of every item, then its clones. A node that is not grammatical equals nothing.

    Returns
    -------
    with_original, with_clones : arrays (items, K, tree levels)
    """
    latents = rhm.parse(strings.reshape(-1, strings.shape[2])).latents

    def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a == b) & (a >= 0)).mean(axis=1)

    return _stacked([paired(latents[level].reshape(*strings.shape[:2], -1), same) for level in sorted(latents)])


def _vector_agreement(source: Any, law: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate` from vectors (items, K + 1, dimension): cosine and equality of the class."""
    centred = np.asarray(values, float) - law.mean
    unit = centred / np.linalg.norm(centred, axis=2, keepdims=True)
    kinds = source.classify(values.reshape(-1, values.shape[2]), law).reshape(values.shape[:2])
    return _stacked([paired(unit, lambda a, b: (a * b).sum(axis=1)), paired(kinds, lambda a, b: a == b)])


def _stacked(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.stack(values, axis=-1) for values in zip(*pairs, strict=True))
    return first, second


def _exceeding(gaps: np.ndarray, relabellings: int, key: Any) -> np.ndarray:
    """Number of relabellings whose mean gap is at least as large in absolute value as the observed one: int64 (tests,)."""
    blocks = -(-relabellings // _BLOCK)
    hits = np.zeros((blocks, gaps.shape[2]), np.int64)
    least = np.abs(gaps[:, 0].mean(axis=0)) - _MARGIN
    _relabel(gaps, np.uint64(key), relabellings, least * len(gaps), hits)
    return hits.sum(axis=0)


@njit(parallel=True, cache=True)
def _relabel(gaps, key, relabellings, least, hits):
    items, size, tests = gaps.shape
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for block in prange(len(hits)):
        total = np.empty(tests)
        words = np.empty(4, np.uint64)
        for number in range(block * _BLOCK, min((block + 1) * _BLOCK, relabellings)):
            stream = fold(key, np.uint64(number))
            total[:] = 0
            for i in range(items):
                if i % 4 == 0:  # one Philox call gives four uniform words of 32 bits
                    a, b = philox(stream, np.uint64(i // 4))
                    words[0], words[1], words[2], words[3] = a & low, a >> shift, b & low, b >> shift
                j = (words[i % 4] * np.uint64(size)) >> shift
                for k in range(tests):
                    total[k] += gaps[i, j, k]
            for k in range(tests):
                if abs(total[k]) >= least[k]:
                    hits[block, k] += 1
