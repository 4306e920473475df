"""Statistics of curves: location and width of a fall, crossing of two curves, hierarchy index, with confidence intervals.

A *curve* is a mean over items against the noise level. Confidence intervals are computed from the differences between independent
groups of readings: the grammars if there are several, otherwise the items, each with all its reconstructions (`Replicates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_MOST_GROUPS = 64  # with 63 degrees of freedom intervals are only 2 % wider than with infinitely many
_SMALLEST_STEP = 2.0**-10
_TIE = 1e-12  # areas are sums of some hundred products of numbers in [0, 1]


WITHIN = ("item", "trajectory", "clone")
"""Dims over which a curve is a mean."""


class Estimate(NamedTuple):
    """A number with a confidence interval; NaN if the number or the interval does not exist."""

    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        """The number and its interval, with two digits of half the width.

        >>> Estimate(0.73121, 0.71834, 0.74408), Estimate(8.0, 8.0, 8.0)
        (0.731 [0.718, 0.744], 8 [8, 8])
        """
        half, largest = (self.high - self.low) / 2, max(map(abs, self))
        places = max(0, 1 - math.floor(math.log10(half))) if 0 < half < math.inf else None
        form = ".4g" if places is None or places > 6 or largest > 1e6 else f".{places}f"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def _repr_html_(self) -> str:
        value, _, ends = repr(self).partition(" ")
        return f'<b>{value}</b> <span style="opacity: 0.7">{ends}</span>'


class Transition(NamedTuple):
    """A fall of a curve between two plateaus; NaN if the curve does not fall far enough.

    `location`: smallest noise at which the curve has fallen by half. `width`: difference of the smallest noises at which it has
    fallen by three quarters and by one quarter; fluctuations on the lower plateau do not change it. `sharpness`: location /
    width, the steepness on a logarithmic axis.
    """

    location: float
    width: float
    sharpness: float


def crossing(x: Any, y: Any, height: float, first: bool = False) -> float:
    """Last (or, if `first`, first) x at which a curve falls below a height, by linear interpolation; NaN if it never does.

    Parameters
    ----------
    x : increasing array (points,)
    y : array (points,)
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    above = y - height
    falls = np.flatnonzero((above[:-1] > 0) & (above[1:] <= 0))
    if not len(falls):
        return float("nan")
    k = falls[0 if first else -1]
    return float(x[k] + (x[k + 1] - x[k]) * above[k] / (above[k] - above[k + 1]))


def transition(x: Any, y: Any, top: float = 1.0, bottom: float | None = None) -> Transition:
    """Location and width of the fall of a curve y(x), arrays (points,), from `top` to `bottom` (the last value by default)."""
    y = np.asarray(y, float)
    bottom = float(y[-1]) if bottom is None else bottom
    at = [crossing(x, y, bottom + share * (top - bottom), first=True) for share in (0.75, 0.5, 0.25)]
    width = at[2] - at[0]
    return Transition(at[1], width, at[1] / width if width else float("inf"))


def inversion(x: Any, high_level: Any, low_level: Any) -> float:
    """Last noise x at which the curve of a high level falls below that of a low level; NaN if it never does."""
    return crossing(x, np.asarray(high_level, float) - np.asarray(low_level, float), 0.0)


def shift(x: Any, y: Any, theory_x: Any, theory_y: Any, reach: float = 0.2) -> float:
    """Displacement d along x that minimises the sum of squares of y(x) - theory(x - d), with |d| <= reach.

    The theory is given on a fine increasing grid and interpolated linearly; it is constant beyond the ends of the grid.
    """
    from scipy.optimize import minimize_scalar

    x, y = np.asarray(x, float), np.asarray(y, float)
    # A coarse grid comes first, because the sum of squares can have several minima.
    steps = np.linspace(-reach, reach, 81)

    def loss(d: float) -> float:
        return float(np.sum((y - np.interp(x - d, theory_x, theory_y)) ** 2))

    best = steps[np.argmin([loss(d) for d in steps])]
    width = steps[1] - steps[0]
    return float(minimize_scalar(loss, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-6}).x)


class Replicates(NamedTuple):
    """A mean curve, and deviations from it with the spread of repetitions of the experiment.

    The readings fall into G independent groups. Let c be the mean curve and c_g the mean curve without group g. The replicates
    are `c ± d_r` with

        d_r = sum_g H_rg sqrt((G - 1)/G) (c_g - c),

    where the signs H are columns of a Hadamard matrix, which are orthogonal: balanced repeated replication (McCarthy 1969, Fay
    1989). For a mean, the root mean square of the deviations is the usual standard error, and the interval is that of Student's t
    with G - 1 degrees of freedom. The replicates are about as far from c as c is from the truth. This matters for the noise at
    which a curve crosses a height: a noisy curve crosses more than once, which leaving out one group (the jackknife) misses.

    Attributes
    ----------
    mean : array (noise, ..)
    deviations : array (R, noise, ..)
        d_r, with R the smallest power of 2 that is at least G; empty for a single group.
    groups : int
    """

    mean: np.ndarray
    deviations: np.ndarray
    groups: int

    def error(self, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
        """Standard error of a statistic of the curve, a number or an array; NaN for a single group, or if it does not exist.

        If the statistic exists for neither of `c ± d_r`, d_r is halved until it does, and the change is scaled up accordingly.
        """
        value = np.asarray(statistic(self.mean), float)
        squares = np.full((len(self.deviations), *value.shape), np.nan)
        for r, deviation in enumerate(self.deviations):
            step = 1.0
            while step > _SMALLEST_STEP and (missing := np.isnan(squares[r]) & np.isfinite(value)).any():
                changes = [np.asarray(statistic(self.mean + d), float) - value for d in (step * deviation, -step * deviation)]
                squares[r] = np.where(missing, _mean_where_finite(np.square(changes)) / step**2, squares[r])
                step /= 2
        return np.sqrt(_mean_where_finite(squares))

    def interval(self, statistic: Callable[[np.ndarray], Any], confidence: float = 0.95) -> np.ndarray:
        """A statistic of the mean curve and the ends of its confidence interval: array (3, ..)."""
        from scipy.special import stdtrit

        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
            raise ValueError(f"confidence = {confidence!r}: expected a number between 0 and 1")
        value = np.asarray(statistic(self.mean), float)
        half = stdtrit(max(self.groups - 1, 1), 0.5 + confidence / 2) * self.error(statistic)
        return np.stack([value, value - half, value + half])


def _mean_where_finite(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values along the first axis; NaN if there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(count > 0, np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def replicates(values: xr.DataArray) -> Replicates:
    """Replicates of the mean curve over items, trajectories and clones, from the differences between independent groups.

    Parameters
    ----------
    values : DataArray with dims noise, item, perhaps trajectory and clone, and others
        The groups are the grammars if `item` has a coordinate `grammar` with several values, otherwise the items. If they are
        more than 64, neighbours are joined into 64 groups. Missing readings (NaN) are left out of the means.

    Raises
    ------
    ValueError
        If `values` is no DataArray with the dims noise and item.
    """
    import xarray as xr
    from scipy.linalg import hadamard

    if not isinstance(values, xr.DataArray) or not {"noise", "item"} <= set(values.dims) or not values.sizes["item"]:
        kind = f"dims {values.dims}" if isinstance(values, xr.DataArray) else type(values).__name__
        raise ValueError(f"values: got {kind}; expected a DataArray with dims noise, item, such as ds.unchanged")
    within = [dim for dim in WITHIN if dim in values.dims]
    others = dict.fromkeys(d for d in ("noise", *values.dims) if d not in within)
    readings = values.transpose(*within, *others).values.astype(float)
    present = ~np.isnan(readings)
    label, over = _groups(values), tuple(range(len(within)))
    G = int(label.max()) + 1
    sums, counts = (
        np.stack([part[label == g].sum(axis=over) for g in range(G)]) for part in (np.where(present, readings, 0.0), present)
    )
    with np.errstate(invalid="ignore"):  # 0/0 where no readings are left
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        if G == 1:
            return Replicates(mean, np.empty((0, *mean.shape)), 1)
        without = (sums.sum(axis=0) - sums) / (counts.sum(axis=0) - counts)
    signs = hadamard(1 << (G - 1).bit_length())[:, :G]
    return Replicates(mean, np.tensordot(signs, np.sqrt((G - 1) / G) * (without - mean), 1), G)


def _groups(values: xr.DataArray) -> np.ndarray:
    """Index of the independent group of every item, int64 (items,)."""
    unit = np.arange(values.sizes["item"])
    if "grammar" in values.coords and len(np.unique(values.coords["grammar"])) > 1:
        unit = np.unique(values.coords["grammar"], return_inverse=True)[1]
    count = unit.max() + 1
    return unit * min(count, _MOST_GROUPS) // count


def estimate(values: xr.DataArray, statistic: Callable[[np.ndarray], float], confidence: float = 0.95) -> Estimate:
    """A statistic of the mean curve (noise, ..others) with its confidence interval, of Student's t (`Replicates`).

    The ends are NaN if the statistic does not exist (NaN, infinite), or if there is only one group. The statistic is calculated
    about 2 R times, where R is at most 64. `benchmarks/intervals.py` measures how often the intervals contain the truth.

    Parameters
    ----------
    values : DataArray with dims noise, item, perhaps trajectory and clone, and others
        See `replicates`.
    statistic : function of an array (noise, ..others)
    confidence : float in (0, 1)

    Raises
    ------
    ValueError
        For a confidence out of range.
    """
    return Estimate(*replicates(values).interval(statistic, confidence).tolist())


def grammar_means(values: xr.DataArray) -> xr.DataArray:
    """Mean over the items, trajectories and clones of every grammar; the dim `grammar` replaces theirs."""
    draws = [dim for dim in WITHIN[1:] if dim in values.dims]
    if draws:
        values = values.mean(draws, dtype=float)
    return values.groupby("grammar").mean("item")


def rescaled(curve: Any, floor: float | None = None) -> np.ndarray:
    """A curve rescaled to 1 without noise and 0 for independent data: `r = (c - floor)/(1 - floor)`.

    `floor`: value of the curve for independent data; by default its last value along the first axis, the noise.
    """
    curve = np.asarray(curve, float)
    bottom = curve[-1] if floor is None else floor
    return (curve - bottom) / (1 - bottom)


def nonincreasing(curves: Any) -> np.ndarray:
    """The closest curves, in least squares, that never rise along the first axis (isotonic regression)."""
    from scipy.optimize import isotonic_regression

    return np.apply_along_axis(lambda curve: isotonic_regression(curve, increasing=False).x, 0, np.asarray(curves, float))


def hierarchy_index(
    high_level: xr.DataArray,
    low_level: xr.DataArray,
    floors: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Hierarchy index in [0, 1]: strength of two signs of a hierarchy, an abrupt loss of the class and an inversion of levels.

    Both curves are rescaled, r = (c - floor)/(1 - floor), and the high level r_H is plotted against the low level r_L. As noise
    grows, the curve runs from (1, 1) to (0, 0); the unit of noise does not matter. Let G be the signed area between curve and
    diagonal, from (1, 1) on: `G = int (r_H - r_L) (-dr_L)`. It grows while the class is better preserved, and falls while the
    low level is. With

        A = largest value of G, at the inversion        (class better preserved, small noise)
        B = A - G at the end                            (low level better preserved, large noise)
        W = fall of r_L while r_H falls from 3/4 to 1/4 (width of the class transition)

    the index is `8 sqrt(A B) max(0, 1 - 2 W)`, and 0 if A or B is not positive. It is 1 for a class lost in one step at r_L =
    1/2, and 4 r (1 - r) for a step at r_L = r. It is 0 on the diagonal, for curves on one side of it, and if the low level is
    better preserved at small noise. It is no proof of a hierarchy: flat data whose details have two scales, one lost before the
    class and one after it, have an index of .8 and more. For interpretation and limits (grammars with as many classes as symbols;
    mixtures with distant modes), see docs/hierarchy-index.md.

    Two steps prevent fluctuations of the curves from counting as an inversion. First, both curves are replaced by the closest
    non-increasing ones, since more noise never preserves more. Second, the items are split into two halves (alternating within a
    grammar): the largest G is located on one half, and A and B are measured there on the other half. Both assignments are
    averaged, so that fluctuations enter A and B with either sign.

    Parameters
    ----------
    high_level, low_level : DataArray with dims noise, item, perhaps trajectory and clone
        Readings of the same items at the same increasing noise levels, 1 for unchanged data; for example `belief` of the root and
        of the leaves, or `same_class` and the similarity of the first layer. The low level may also be a known curve with the
        dim noise only. Zero noise (both 1) and infinite noise (both at their floors) are added.
    floors : (high, low), optional
        Values for independent data, below 1. By default the values at the last noise level, which must then be nearly infinite.
    confidence : float in (0, 1)
        Confidence of the interval.

    Returns
    -------
    Estimate
        With an interval as in `estimate`, clipped to [0, 1]. NaN if the high level is not lost: r_H > 1/4 at the last noise.

    Raises
    ------
    ValueError
        For other dims, missing readings, noise that does not increase, levels with different noise or items, and floors that
        are not numbers below 1.
    """
    import xarray as xr

    _check_levels(high_level, low_level, floors)
    curves = [values.drop_vars(_others(values)) for values in (high_level, low_level)]
    both = xr.concat(xr.broadcast(*curves), dim="curve")
    bottoms = (None, None) if floors is None else floors

    def index(means: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.stack([rescaled(means[..., k], bottoms[k]) for k in (0, 1)], axis=-1)
        if not np.isfinite(r).all():  # a level that stays at 1 has the floor 1
            return float("nan")
        r = nonincreasing(r).clip(0, 1)
        r = np.concatenate([np.ones_like(r[:1]), r, np.zeros_like(r[:1])])
        return _index(r)

    found = estimate(_halves(both), index, confidence)
    return Estimate(*np.clip(found, 0, 1).tolist())


def _check_levels(high_level: xr.DataArray, low_level: xr.DataArray, floors: Any) -> None:
    """ValueError unless a hierarchy index can be computed from the levels and floors."""
    import xarray as xr

    dims = {"noise", *WITHIN}
    for name, values, least in (("high_level", high_level, {"noise", "item"}), ("low_level", low_level, {"noise"})):
        if not isinstance(values, xr.DataArray) or values.dtype.kind not in "biuf":
            kind = f"{values.dtype} " if isinstance(values, xr.DataArray) else ""
            raise ValueError(f"{name} is a {kind}{type(values).__name__}; expected a DataArray of numbers, such as ds.belief")
        if not least <= set(values.dims) <= dims:
            raise ValueError(
                f"{name} has dims {values.dims}; expected noise, item, perhaps trajectory and clone; select one level"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has missing or infinite readings; finish the run, or drop what is missing")
    if high_level.sizes["noise"] < 2 or not (np.diff(high_level.noise.values) > 0).all():
        raise ValueError("noise of high_level does not increase; expected at least two increasing levels")
    for dim in map(str, low_level.dims):
        if dim not in high_level.dims or not np.array_equal(high_level[dim].values, low_level[dim].values):
            raise ValueError(f"low_level has other values of {dim!r} than high_level; expected readings of the same U-turns")
    if floors is not None:
        pair = np.asarray(floors, dtype=object)
        if pair.shape != (2,) or not all(isinstance(x, int | float) and -np.inf < x < 1 for x in pair):
            raise ValueError(f"floors = {floors!r}: expected two numbers below 1, of the high and of the low level")


def _index(r: np.ndarray) -> float:
    """Hierarchy index of rescaled curves (noise, half, 2), high level first on the last axis."""
    high, low = r[..., 0], r[..., 1]
    excess = high - low
    steps = 0.5 * (excess[1:] + excess[:-1]) * (low[:-1] - low[1:])
    area = np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)])
    # The first of equal maxima: curves that coincide, as on the diagonal, have sums that differ by rounding alone.
    first, second = (area > area.max(axis=0) - _TIE).argmax(axis=0)
    before = 0.5 * (area[first, 1] + area[second, 0])
    after = before - 0.5 * (area[-1, 0] + area[-1, 1])
    high, low = high.mean(axis=1), low.mean(axis=1)
    if high[-2] > 0.25:  # the last measured level
        return float("nan")
    at = [crossing(np.arange(len(high)), high, height, first=True) for height in (0.75, 0.25)]
    start, end = np.interp(at, np.arange(len(low)), low)
    narrow = max(0.0, 1 - 2 * abs(start - end))
    return 8 * float(np.sqrt(max(before, 0.0) * max(after, 0.0))) * narrow


def _others(values: xr.DataArray) -> list[str]:
    """Names of the coordinates that the estimate does not use."""
    return [str(name) for name in values.coords if name not in ("noise", "grammar", *WITHIN)]


def _halves(values: xr.DataArray) -> xr.DataArray:
    """Items grouped in pairs of neighbours of the same grammar; the dim `half` numbers the items of a pair."""
    import xarray as xr

    grammar = np.asarray(values.coords["grammar"].values) if "grammar" in values.coords else np.zeros(values.sizes["item"], int)
    groups = [np.flatnonzero(grammar == g) for g in np.unique(grammar)]
    index = np.concatenate([group[: len(group) // 2 * 2].reshape(-1, 2) for group in groups])
    if not len(index):
        raise ValueError(f"{values.sizes['item']} items: expected at least two (of one grammar), to be split in halves")
    halves = [values.isel(item=index[:, k]).drop_vars("item", errors="ignore") for k in (0, 1)]
    return xr.concat(halves, dim="half", coords="minimal", compat="override").transpose("noise", "item", ..., "half", "curve")
