"""Confidence intervals of means: shares in [0, 1], curves, and bounds for readings of any law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from uturn.core.checks import expect
from uturn.measures.estimates import ESTIMATE, checked_share
from uturn.measures.readings import FEW, WITHIN, GroupSums, Readings, even_number
from uturn.measures.replicates import replicates

_ROUNDING = 1e-12
"""Rounding of means of numbers in [0, 1]."""
_MOST_TRIALS = 1e9
"""Largest effective number of tosses: the interval of a share of .5 is then .5 ± .00003."""
_FLOAT32 = 1e-6
"""Rounding of readings in single precision."""


def proportion(values: xr.DataArray, confidence: float = 0.95) -> xr.DataArray:
    """Mean curve of readings in [0, 1] with its Clopper-Pearson interval at the effective number of
    groups (noise, .., estimate).

    Clopper and Pearson (1934) invert the test of the binomial law; for readings that are not
    independent tosses the number of tosses is replaced by an effective one (Korn and Graubard
    1998). With the mean p, its variance s² from the differences between the n independent groups,
    and the quantiles t of Student's law with n - 1 degrees of freedom and z of the normal law,

        n_eff = p (1 - p) / s² (z/t)²,   at least n, and for readings 0 and 1 at most their number; n if s = 0
        low = BetaInv(a/2; p n_eff, (1 - p) n_eff + 1),   high = BetaInv(1 - a/2; p n_eff + 1, (1 - p) n_eff)

    with a = 1 - confidence, low = 0 for p = 0, and high = 1 for p = 1. For groups of unequal size,
    n is `(sum w)^2 / sum w^2`. At noise 0, and for readings strictly between 0 and 1, both ends are
    the value where all readings are equal. The ends are NaN for a single group.
    `benchmarks/intervals.py --part proportions` measures the coverage.

    `values`: readings in [0, 1], such as `same_class`, `kept`, `unchanged`, `belief`, with dims as
    in `replicates`. Missing ones (NaN) are left out, and items count equally. If some items lack
    readings 0 and 1, their number is `N^2 / sum 1/m` for N items with m each.

    Examples
    --------
    >>> import xarray as xr
    >>> kept = xr.DataArray(np.ones((2, 40)), dims=("noise", "item"), coords={"noise": [0.0, 0.1]})
    >>> proportion(kept).values.round(3)
    array([[1.   , 1.   , 1.   ],
           [1.   , 0.912, 1.   ]])
    """
    upper = 0.5 + checked_share("confidence", confidence) / 2
    readings = Readings.of(values)
    smallest = float(np.nanmin(readings.values, initial=0.0))
    largest = float(np.nanmax(readings.values, initial=1.0))
    expect(
        smallest >= -_FLOAT32 and largest <= 1 + _FLOAT32,
        "values: smallest and largest",
        (smallest, largest),
        "readings in [0, 1]; `mean_curves` gives the intervals of others",
    )
    groups = readings.sums()
    has_several = (groups.counts > 0).sum(axis=0) > 1
    # 0/0 without readings, with one group, or without differences.
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.clip(groups.sum / groups.count, 0.0, 1.0)
        trials = _effective_trials(readings, groups, p, upper)
        low = np.where(p > 0, betaincinv(p * trials, (1 - p) * trials + 1, 1 - upper), 0.0)
        high = np.where(p < 1, betaincinv(p * trials + 1, (1 - p) * trials, upper), 1.0)
    ends = np.where(has_several, [low, high], np.nan)
    estimates = np.stack([p, *ends], axis=-1)
    if "noise" in values.coords:
        is_clean = (values.noise.values == 0).reshape(-1, *[1] * (p.ndim - 1))
        is_exact = (is_clean | (~readings.are_tosses & has_several)) & readings.are_equal
        estimates = np.where(is_exact[..., None], p[..., None], estimates)
    return _labelled(estimates, values)


def _effective_trials(
    readings: Readings, groups: GroupSums, p: np.ndarray, upper: float
) -> np.ndarray:
    """Number of tosses n_eff with which the shares p (noise, ..) have the variance between the
    groups. `upper`: probability below the upper end of the interval.
    """
    n = (groups.counts > 0).sum(axis=0)
    total = groups.count
    changes = (groups.sums - p * groups.counts) / (total - groups.counts)
    s2 = (n - 1) / n * (changes**2).sum(axis=0)
    least = even_number(groups.counts)
    has_any = readings.present > 0
    inverse = np.where(has_any, readings.draws / readings.present, 0).sum(axis=0)
    most = np.where(readings.are_tosses, total * has_any.sum(axis=0) / inverse, _MOST_TRIALS)
    ratio = ndtri(upper) / stdtrit(np.maximum(least - 1, 1.0), upper)
    trials = np.clip(p * (1 - p) / s2 * ratio**2, least, most)
    return np.where(s2 > _ROUNDING**2, trials, least)


def mean_curves(values: xr.DataArray, confidence: float = 0.95) -> xr.DataArray:
    """Mean curves of any readings with their intervals of Student's t (`Replicates`): DataArray
    (noise, .., estimate).
    """
    return _labelled(replicates(values).interval(lambda curve: curve, confidence), values)


def _labelled(bounds: np.ndarray, values: xr.DataArray) -> xr.DataArray:
    """Numbers with intervals (noise, .., 3) of the mean curves of readings, with their labels."""
    dims = [str(dim) for dim in dict.fromkeys(("noise", *values.dims)) if dim not in WITHIN]
    axes = {name: axis for name, axis in values.coords.items() if set(axis.dims) <= set(dims)}
    return xr.DataArray(bounds, axes | {"estimate": ESTIMATE}, (*dims, "estimate"))


def rests_on_few(values: xr.DataArray) -> np.ndarray:
    """Whether the spread of shares rests on fewer than three independent groups, bool (noise, ..);
    `values` as in `proportion`.

    It does if two groups hold more than nine tenths of the squared deviations of the means of
    groups from their median. Rare groups that change much then make the interval of `proportion`
    too narrow (`benchmarks/intervals.py --part rare`). Readings 0 and 1, and samples of fewer than
    `FEW` groups, are left out.

    >>> import xarray as xr
    >>> kept = xr.DataArray([[0.96, 0.98, 1.0, 0.98, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5]], dims=("noise", "item"))
    >>> rests_on_few(kept).tolist()
    [True, False]
    """
    readings = Readings.of(values)
    groups = readings.sums()
    has_any = groups.counts > 0
    sums = np.where(has_any, groups.sums, groups.sum)
    counts = np.where(has_any, groups.counts, np.maximum(groups.count, 1))
    means = sums / counts
    squares = np.sort((means - np.median(means, axis=0)) ** 2, axis=0)
    has_spread = (squares[-1] > _FLOAT32**2) & (len(means) >= FEW)
    two_decide = squares[-2:].sum(axis=0) > 0.9 * squares.sum(axis=0)
    return np.asarray(~readings.are_tosses & has_spread & two_decide)


def mean_bounds(
    values: xr.DataArray, low: float, high: float, confidence: float = 0.95
) -> np.ndarray:
    """One-sided bounds of the mean of readings in [low, high], for readings of any law in this
    range: array (2, noise, ..).

    Bounds that are computed from the spread miss where a few originals differ much and the sample
    has none of them. The bound of Gaffke (2005) adds an original with the worst possible value.
    With the means x_g of the n independent groups and random weights W, the lower bound is the 1 -
    confidence quantile of

        low W_0 + sum_g x_g W_g,   (W_0, W_1, ..) ~ Dirichlet(1, k_1, ..),

    and the upper bound likewise with `high`. k_g is 1 for groups of equal size; otherwise it is
    proportional to the size w_g, and the sum is `(sum w)^2 / sum w^2`. For groups that are all kept
    or all lost, this is the bound of Clopper and Pearson; if all x_g equal x, it is low + (x - low)
    (1 - confidence)^(1/n). Other quantiles are approximated by the formula of Lugannani and Rice
    (1980), with which the probability of an error is .0479 to .05 at confidence .95 (n from 1 to
    300). No law is known for which the bound fails, but there is no proof for all laws
    (arXiv:1905.06208). `benchmarks/choice.py` measures how often it is wrong.

    `values`: dims and groups as in `replicates`, counted singly; missing readings (NaN) are left
    out. At an infinite end `low` or `high` there is no bound: it is infinite. `confidence` of each
    bound, above .5.

    Examples
    --------
    >>> import xarray as xr
    >>> kept = xr.DataArray(np.ones((1, 59)), dims=("noise", "item"))
    >>> mean_bounds(kept, 0, 1).round(4)
    array([[0.9505],
           [1.    ]])
    """
    alpha = 1 - checked_share("confidence", confidence)
    groups = Readings.of(values).sums()
    x = np.clip(groups.sums / np.maximum(groups.counts, 1), low, high)
    with np.errstate(invalid="ignore"):  # 0/0 without readings
        weights = groups.counts * even_number(groups.counts) / groups.count

    def bound(end: float, sign: int) -> np.ndarray:
        if not math.isfinite(end):
            return np.full(x.shape[1:], end)
        return end + sign * _least_mean(sign * (x - end), weights, alpha)

    return np.stack([bound(float(low), 1), bound(float(high), -1)])


@dataclass(frozen=True)
class _DirichletMean:
    """The mean sum_g W_g x_g with random weights W ~ Dirichlet(k), in the saddlepoint
    approximation.

    A quantile t is the number at which a sum of independent gamma variables, sum_g E_g (x_g - t),
    is below 0 with probability alpha. In the saddlepoint formula for this probability, terms are
    weighted by 1 / (1 + v x_g), and v gives t in closed form.
    """

    x: np.ndarray
    """Values >= 0, (groups, ..)."""
    k: np.ndarray
    """Parameters of the Dirichlet law, (groups, ..)."""

    def quantile(self, v: np.ndarray) -> np.ndarray:
        """t, of the shape of v (..)."""
        weights = self.k / (1 + v * self.x)
        terms = self.k * self.x / (1 + v * self.x)
        return np.asarray(terms.sum(axis=0) / weights.sum(axis=0))

    def tail(self, v: np.ndarray) -> np.ndarray:
        """The probability of a mean below `quantile(v)` (Lugannani and Rice)."""
        t = self.quantile(v)
        tilt = (1 + v * self.x) / (1 + v * t)
        divergences = self.k * np.log(tilt)
        w = -np.sqrt(2 * divergences.sum(axis=0))
        variances = self.k * np.square((self.x - t) / tilt)
        variance = variances.sum(axis=0)
        u = -v / (1 + v * t) * np.sqrt(variance)
        density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
        return np.asarray(ndtr(w) + density * (1 / w - 1 / u))


def _least_mean(x: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The alpha quantile of sum_g W_g x_g for x >= 0, (groups, ..), and random weights (W_0, W_1,
    ..) ~ Dirichlet(1, weights), with x_0 = 0.
    """
    scale = np.where(weights > 0, x, 0).max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x = x / scale
    x = np.concatenate([np.full_like(x[:1], 0.0), x])
    k = np.concatenate([np.full_like(weights[:1], 1.0), weights])
    is_two_valued = ((x == 0) | (x == 1) | (k == 0)).all(axis=0)
    mean = _DirichletMean(x, k)
    low = np.full(scale.shape, -9.0)  # log v
    high = np.full(scale.shape, 60.0)
    with np.errstate(invalid="ignore", divide="ignore"):  # where all x are 0
        for _ in range(0 if is_two_valued.all() else 50):
            middle = (low + high) / 2
            is_above = mean.tail(np.exp(middle)) > alpha
            low = np.where(is_above, middle, low)
            high = np.where(is_above, high, middle)
        k_at_one = (k * x).sum(axis=0)
        k_at_zero = (k * (1 - x)).sum(axis=0)
        exact = np.where(k_at_one == 0, 0.0, betaincinv(k_at_one, k_at_zero, alpha))
    return scale * np.where(is_two_valued, exact, mean.quantile(np.exp(low)))


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> np.ndarray:
    """Mean of independent numbers (n, ..) over their first axis, with its interval of Student's
    t: array (.., 3).
    """
    values = np.asarray(values, float)
    with np.errstate(invalid="ignore"):  # infinite numbers
        quantile = stdtrit(len(values) - 1, 0.5 + confidence / 2)
        half = values.std(axis=0, ddof=1) / np.sqrt(len(values)) * quantile
    mean = values.mean(axis=0)
    return np.stack([mean, mean - half, mean + half], axis=-1)
