"""Calibration: is a reconstruction a draw from the posterior of its own channel? A test that needs no ground truth.

Let x_0 be an original, x_t an observation of it, and x̂, x̂' two independent draws from p(x_0 | x_t), the *clones*. Given x_t
all three are independent and follow one law, so that for every function f of two data

    E f(x_0, x̂) = E f(x̂, x̂').

The difference of the two sides, the *gap*, is 0 for an exact posterior. A wrong posterior has a gap if f can see the error.
Overlap of sites is linear and does not see a sampler that draws every site from its own marginal; parsed tree levels or the
class, which depend on several sites at once, do. No f sees a posterior that ignores a part of the observation, nor a channel
that draws another amount of noise than it says while its evidence is right for what it drew: such a channel has to be
compared with its own law.
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

_MARGIN = 1e-6  # relabellings that give the same mean up to the rounding of float32 readings count as ties
_BLOCK = 1000  # relabellings a thread does in one go


class Calibration(NamedTuple):
    """Gaps of one or several readings, and the exact test that they are 0. All arrays have the shape (...) of the readings.

    Attributes
    ----------
    gap, low, high : mean of f(x_0, x̂) - f(x̂, x̂') over items, and its 95 % interval over items (Student's t)
    p_value : of the exact test, for each reading by itself
    adjusted : Holm's p-values: the probability of an adjusted value <= a anywhere is at most a, if all gaps are 0
    visible : size of gap that has an even chance to be seen at this level, given the spread of the readings
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
        """No gap differs from 0, at the level of all tests together."""
        return bool((self.adjusted > self.level).all())


def calibrate(
    with_original: Any, with_clones: Any, level: float = 1e-3, relabellings: int | None = None, seed: int = 0
) -> Calibration:
    """Test that originals and clones are exchangeable given the observation: `E f(x_0, x̂) = E f(x̂, x̂')`.

    Given x_t, the K + 1 data x_0, x̂_1 .. x̂_K are exchangeable. Let g_j be the mean of f between datum j and the others,
    minus the mean of f among these others. If the posterior is exact, the label "original" could sit on any datum. It is
    drawn uniformly for every item, B times, and `p = (1 + number of |G*| >= |G|) / (B + 1)` compares the mean G of g_0 over
    items with its values G* under relabelling. The test is exact for any number of items and any f. No normality is assumed,
    which matters: where almost nothing changes, the t statistic of 200 items reaches 3 to 4.5 for exact inference.

    Parameters
    ----------
    with_original : array (items, K, ...)
        f between the original and each of K >= 2 clones, for one or several symmetric f (trailing axes).
    with_clones : array (items, K, ...)
        For each clone the mean of f between it and the K - 1 others.
    level : float in (0, 1)
        False-alarm rate of all tests together (Holm).
    relabellings : int >= 1, optional
        B; by default 100 times the number of tests over the level, so that Holm's smallest threshold can be reached.
    seed : int
        Of the relabellings. All tests of one call use the same ones.

    Returns
    -------
    Calibration

    Notes
    -----
    Give exactly one observation of each original, chosen beforehand (trajectory 0). Several observations share their x_0, so
    that the test is not exact for them.

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
    """g_j of every datum j as the original, (items, K + 1, ...), from the arguments of `calibrate`; j = 0 is the true original.

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
    """Holm's adjusted p-values: those <= a can be called wrong with a false-alarm rate of at most a, however they depend."""
    p = np.asarray(p_values, float)
    flat = p.ravel()
    order = np.argsort(flat)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)).clip(max=1)
    return adjusted.reshape(p.shape)


def paired(data: Any, f: Callable[[Any, Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate` from the data themselves.

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
    """Agreement of originals and clones in an experiment with the exact posterior, in readings that see joint draws.

    Every original is observed once per noise level, as in trajectory 0 of the run, and K draws are made from the posterior
    given that observation; the first of them is the reconstruction of the run. Strings are read by parsing their leaves: f is
    the share of the nodes of a tree level that have the same symbol, and a node that is not grammatical equals nothing.
    Vectors are read by the cosine of their components, after the mean of the law is subtracted, and by their class.

    Parameters
    ----------
    experiment : Experiment
        Of strings or vectors, with the backward "exact". In a Bayesian channel all gaps are 0; the ε-process is not Bayesian.
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
        raise ValueError(f"backward = {experiment.backward['type']!r}: expected 'exact', which can draw several times")
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
    """The arguments of `calibrate` from strings: shares of nodes that have the same symbol, for every tree level.

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
    """The arguments of `calibrate` from vectors (items, K + 1, dimension): cosine, same class."""
    centred = np.asarray(values, float) - law.mean
    unit = centred / np.linalg.norm(centred, axis=2, keepdims=True)
    kinds = source.classify(values.reshape(-1, values.shape[2]), law).reshape(values.shape[:2])
    return _stacked([paired(unit, lambda a, b: (a * b).sum(axis=1)), paired(kinds, lambda a, b: a == b)])


def _stacked(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.stack(values, axis=-1) for values in zip(*pairs, strict=True))
    return first, second


def _exceeding(gaps: np.ndarray, relabellings: int, key: Any) -> np.ndarray:
    """How many relabellings give a mean gap at least as large as the observed one, in size: int64 (tests,)."""
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
