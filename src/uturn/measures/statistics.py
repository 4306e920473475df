"""Statistics of curves: location and width of a fall, crossing of two curves, hierarchy index, with
confidence intervals.

A *curve* is a mean over items against the noise level. Intervals are computed from the differences
between independent groups of readings (`Replicates`). Means of readings in [0, 1] (`proportion`)
and noise levels found between two measured ones (`located`) have intervals of their own, since
equal readings leave no differences. A number with its interval is (value, low, high), along the
last axis, the dim `estimate` of datasets; `Estimate` is a single one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.linalg import hadamard
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from uturn.core.checks import checked_numbers, expect

# With 63 degrees of freedom intervals are only 2 % wider than with infinitely many.
_MOST_GROUPS = 64
_SMALLEST_STEP = 2.0**-10
_TIE = 1e-12  # areas are sums of some hundred products of numbers in [0, 1]
_ROUNDING = 1e-12  # of means of numbers in [0, 1]
_MOST_TRIALS = 1e9  # the interval of half of so many tosses is .5 ± .00003
_ONE = 1.5  # effective number of groups up to which one of them makes a spread
_FLOAT32 = 1e-6  # rounding of readings in single precision


FEW = 5
"""Number of originals below which, if they decide a ratio, rare ones may be missing in the
sample: the ratio has no interval.
"""

WITHIN = ("item", "trajectory", "clone")
"""Dims over which a curve is a mean."""

ESTIMATE = ["value", "low", "high"]
"""Labels of the dim `estimate`: a number and the ends of its interval."""


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
        return format(
            self, ".4g" if places is None or places > 6 or largest > 1e6 else f".{places}f"
        )

    def __format__(self, form: str) -> str:
        """The number and the ends of its interval, each with the given format.

        >>> f"{Estimate(0.73121, 0.71834, 0.74408):+.2f}"
        '+0.73 [+0.72, +0.74]'
        """
        return (
            f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]" if form else repr(self)
        )

    def _repr_html_(self) -> str:
        value, _, ends = repr(self).partition(" ")
        return f'<b>{value}</b> <span style="opacity: 0.7">{ends}</span>'


def with_interval(values: Any, form: str = ".3g", none: str = "none") -> str:
    """A number with its interval as text; `none` if there is no number.

    >>> with_interval((0.7312, 0.7184, 0.7441)), with_interval((0.7312, np.nan, np.nan), ".2f")
    ('0.731 [0.718, 0.744]', '0.73')
    >>> with_interval((-1e-9, -0.2, 0.2))  # a mean of 0, and the rounding of its terms
    '0 [-0.2, 0.2]'
    """
    number = Estimate(*np.asarray(values, float).tolist())
    if abs(number.value) < 1e-6 * (number.high - number.low):
        number = number._replace(value=0.0)
    if not np.isfinite(number.value):
        return none
    return format(number, form) if np.isfinite(number).all() else format(number.value, form)


def with_ends(ds: xr.Dataset, name: str) -> np.ndarray:
    """A variable and the ends `low` and `high` of its intervals, as results of measures have
    them, along a new last axis.
    """
    return np.stack([ds[key] for key in (name, "low", "high")], -1)


class Transition(NamedTuple):
    """A fall of a curve between two plateaus; NaN if the curve does not fall far enough.

    `location`: smallest noise at which the curve has fallen by half. `width`: difference of the
    smallest noises at which it has fallen by three quarters and by one quarter. `sharpness`:
    location / width.
    """

    location: float
    width: float
    sharpness: float


def crossing(x: Any, y: Any, height: float, first: bool = False) -> float:
    """Last (or, if `first`, first) x at which a curve falls below a height, by linear
    interpolation; NaN if it never does.

    >>> crossing([0, 0.2, 0.4, 0.6], [1, 0.9, 0.3, 0.1], 0.5)
    0.333...
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    above = y - height
    falls = np.flatnonzero((above[:-1] > 0) & (above[1:] <= 0))
    if not len(falls):
        return float("nan")
    k = falls[0 if first else -1]
    return float(x[k] + (x[k + 1] - x[k]) * above[k] / (above[k] - above[k + 1]))


def transition(x: Any, y: Any, top: float = 1.0, bottom: float | None = None) -> Transition:
    """Location and width of the fall of a curve y(x), arrays (points,), from `top` to `bottom` (the
    last value by default).

    >>> transition([0, 0.2, 0.4, 0.6, 0.8], [1, 0.9, 0.4, 0.2, 0.2])
    Transition(location=0.32, width=0.16..., sharpness=1.99...)
    """
    y = np.asarray(y, float)
    bottom = float(y[-1]) if bottom is None else bottom
    at = [
        crossing(x, y, bottom + share * (top - bottom), first=True) for share in (0.75, 0.5, 0.25)
    ]
    width = at[2] - at[0]
    return Transition(at[1], width, at[1] / width if width else float("inf"))


def inversion(x: Any, high_level: Any, low_level: Any) -> float:
    """Last noise x at which the curve of a high level falls below that of a low level; NaN if it
    never does.
    """
    return crossing(x, np.asarray(high_level, float) - np.asarray(low_level, float), 0.0)


def shift(x: Any, y: Any, theory_x: Any, theory_y: Any, reach: float = 0.2) -> float:
    """Displacement d along x that minimises the sum of squares of y(x) - theory(x - d), with |d| <=
    reach.

    The theory is given on a fine increasing grid and interpolated linearly; it is constant beyond
    the ends of the grid.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    # A coarse grid comes first, because the sum of squares can have several minima.
    steps = np.linspace(-reach, reach, 81)

    def loss(d: float) -> float:
        return float(np.sum((y - np.interp(x - d, theory_x, theory_y)) ** 2))

    best = steps[np.argmin([loss(d) for d in steps])]
    width = steps[1] - steps[0]
    return float(
        minimize_scalar(
            loss, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-6}
        ).x
    )


class Replicates(NamedTuple):
    """A mean curve, and deviations from it with the spread of repetitions of the experiment.

    The readings fall into G independent groups. Let c be the mean curve and c_g the mean curve
    without group g. The replicates are `c ± d_r` with

        d_r = sum_g H_rg sqrt((G - 1)/G) (c_g - c),

    where the signs H are columns of a Hadamard matrix, which are orthogonal: balanced repeated
    replication (McCarthy 1969, Fay 1989). The replicates are about as far from c as c is from the
    truth. This matters for the noise at which a curve crosses a height: a noisy curve crosses more
    than once, which leaving out one group (the jackknife) misses.

    `mean`: (noise, ..). `deviations`: d_r, (R, noise, ..), with R the smallest power of 2 that is
    at least G; empty for a single group. `groups`: G. `freedom`: degrees of freedom of Student's t,
    `(sum w)^2 / sum w^2 - 1` with the number of items w of every group (Kish 1965), at least 1; G -
    1 for groups of equal size.
    """

    mean: np.ndarray
    deviations: np.ndarray
    groups: int
    freedom: float

    def error(self, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
        """Standard error of a statistic of the curve, a number or an array; NaN for a single group,
        or if it does not exist.

        If the statistic exists for neither of `c ± d_r`, d_r is halved until it does, and the
        change is scaled up accordingly.
        """
        value = np.asarray(statistic(self.mean), float)
        squares = np.full((len(self.deviations), *value.shape), np.nan)
        for r, deviation in enumerate(self.deviations):
            step = 1.0
            while (
                step > _SMALLEST_STEP
                and (missing := np.isnan(squares[r]) & np.isfinite(value)).any()
            ):
                changes = [
                    np.asarray(statistic(self.mean + d), float) - value
                    for d in (step * deviation, -step * deviation)
                ]
                squares[r] = np.where(
                    missing, _mean_where_finite(np.square(changes)) / step**2, squares[r]
                )
                step /= 2
        return np.sqrt(_mean_where_finite(squares))

    def half_width(
        self,
        statistic: Callable[[np.ndarray], Any],
        confidence: float = 0.95,
        number: Any = None,
        in_spread: Any = None,
    ) -> np.ndarray:
        """Half the width of the confidence interval of a statistic: its standard error times the
        quantile of Student's t.

        `number`: how many groups decide the statistic (`uturn.measures.changes.effective_number`),
        an array that broadcasts with it; at most `groups` count. Where fewer than `FEW` decide, the
        width is NaN. `in_spread`: how many groups make the standard error
        (`uturn.measures.changes.number_in_spread`), a third of all groups if their deviations are
        normal. Where three times this number is smaller than `number`, it gives the degrees of
        freedom, and where a single group makes the error, the width is NaN.
        """
        upper = 0.5 + checked_share("confidence", confidence) / 2
        if number is None:
            return stdtrit(self.freedom, upper) * self.error(statistic)
        decide = np.minimum(number, self.groups)
        freedom, exists = np.maximum(decide - 1, 1), decide >= FEW
        if in_spread is not None:
            freedom = np.minimum(freedom, np.maximum(3 * np.asarray(in_spread) - 1, 1))
            exists = exists & (np.asarray(in_spread) > _ONE)
        return np.where(exists, stdtrit(freedom, upper), np.nan) * self.error(statistic)

    def interval(
        self, statistic: Callable[[np.ndarray], Any], confidence: float = 0.95, number: Any = None
    ) -> np.ndarray:
        """A statistic of the mean curve and the ends of its confidence interval: array (.., 3);
        `number` as in `half_width`.
        """
        value, half = (
            np.asarray(statistic(self.mean), float),
            self.half_width(statistic, confidence, number),
        )
        return np.stack([value, value - half, value + half], axis=-1)


def checked_share(name: str, value: Any) -> float:
    """A number between 0 and 1, such as the confidence of an interval or the false-alarm rate of
    a test, or a ValueError.
    """
    fits = not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1
    expect(fits, name, value, "a number between 0 and 1")
    return float(value)


def check_dims(
    name: str, values: Any, needed: Sequence[str], optional: Sequence[str] | None = None
) -> None:
    """ValueError unless `values` is a DataArray of numbers with the dims `needed`, and no others
    than `optional` (None: any).
    """
    is_array = isinstance(values, xr.DataArray)
    dims = set(values.dims) if is_array and values.size and values.dtype.kind in "biufO" else set()
    kind = f"{values.dtype} with sizes {dict(values.sizes)}" if is_array else type(values).__name__
    fits = set(needed) <= dims and (optional is None or dims <= {*needed, *optional})
    expect(
        fits,
        f"type of {name}",
        kind,
        f"a DataArray of numbers with dims {', '.join(needed)}, such as ds.unchanged",
    )


def _mean_where_finite(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values along the first axis; NaN if there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(
        count > 0, np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan
    )


def replicates(values: xr.DataArray, centre: str = "mean") -> Replicates:
    """Replicates of the mean curve over items, trajectories and clones, from the differences
    between independent groups.

    With `centre` = "median", the curve is the median over items of their means over trajectories
    and clones, and the replicates are medians of half of the groups, those with H_rg = 1 (McCarthy
    1969), since the jackknife fails for medians.

    `values`: dims noise, item, perhaps trajectory and clone, and others. The groups are the
    grammars if `item` has a coordinate `grammar` with several values, otherwise the items; of more
    than 64, neighbours are joined. Items count equally: the mean is that of their means over the
    trajectories and clones that they have. Missing readings (NaN) are left out.

    Examples
    --------
    >>> import xarray as xr
    >>> kept = xr.DataArray([[1, 1, 1, 1], [1, 0, 1, 0]], dims=("noise", "item"), coords={"noise": [0.1, 0.5]})
    >>> replicates(kept).interval(lambda curve: curve[1] - curve[0]).round(3)  # value and ends, here of a difference
    array([-0.5  , -1.419,  0.419])
    """
    readings, over = _readings(values)
    unit = independent_groups(values)
    count = int(unit.max()) + 1
    group = unit * min(count, _MOST_GROUPS) // count
    sums, counts = _sums(readings, group, over)
    G, sizes = len(sums), counts.reshape(len(counts), -1).sum(axis=1)
    freedom = max(float(_even_number(sizes)) - 1, 1.0)
    # NaN where no readings are left (0/0), and where a reading is infinite (inf - inf).
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        if G == 1:
            return Replicates(mean, np.empty((0, *mean.shape)), 1, freedom)
        without = (sums.sum(axis=0) - sums) / (counts.sum(axis=0) - counts)
        spread = np.sqrt((G - 1) / G) * (without - mean)
    signs = hadamard(1 << (G - 1).bit_length())[:, :G]
    if centre == "median":
        # Of levels without readings.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            of_items = np.nanmean(readings, axis=over[1:])
            mean = np.nanmedian(of_items, axis=0)
            # The first are all groups.
            halves = [np.nanmedian(of_items[half[group] > 0], axis=0) for half in signs[1:]]
        return Replicates(mean, np.stack(halves) - mean, G, freedom)
    return Replicates(mean, np.tensordot(signs, spread, 1), G, freedom)


def _readings(values: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Readings as float64, (item, trajectory, clone, noise, ..) as far as they exist, and the
    axes to average over.
    """
    check_dims("values", values, ("noise", "item"))
    within = [dim for dim in WITHIN if dim in values.dims]
    others = dict.fromkeys(d for d in ("noise", *values.dims) if d not in within)
    return values.transpose(*within, *others).values.astype(float), tuple(range(len(within)))


def _sums(
    readings: np.ndarray, label: np.ndarray, over: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of readings, group by group: two arrays (groups, noise, ..).

    Items count equally: one that lacks some of its readings enters with its mean, as if it had all;
    one without any is left out.
    """
    present, whole = (
        (~np.isnan(readings)).sum(axis=over[1:]),
        math.prod(readings.shape[axis] for axis in over[1:]),
    )
    sums = np.nansum(readings, axis=over[1:]) * (whole / np.maximum(present, 1))
    order = np.argsort(label, kind="stable")
    first = np.searchsorted(label[order], np.arange(label.max() + 1))
    counts = np.where(present > 0, whole, 0)
    return np.add.reduceat(sums[order], first, axis=0), np.add.reduceat(
        counts[order], first, axis=0
    )


def _even_number(sizes: np.ndarray) -> np.ndarray:
    """Number of groups of equal size that give a mean the variance of groups of these sizes,
    `(sum w)^2 / sum w^2`.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(sizes.sum(axis=0) ** 2 / (sizes**2).sum(axis=0))


def independent_groups(values: xr.DataArray) -> np.ndarray:
    """Index of the independent group of every item, int64 (items,): of its grammar if there are
    several, else of the item.
    """
    grammar = values.coords.get("grammar")
    if grammar is not None and grammar.dims == ("item",) and len(np.unique(grammar)) > 1:
        return np.unique(grammar, return_inverse=True)[1]
    return np.arange(values.sizes["item"])


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
    readings, over = _readings(values)
    ends = float(np.nanmin(readings, initial=0.0)), float(np.nanmax(readings, initial=1.0))
    fits = ends[0] >= -_FLOAT32 and ends[1] <= 1 + _FLOAT32
    expect(
        fits,
        "values: smallest and largest",
        ends,
        "readings in [0, 1]; `mean_curves` gives the intervals of others",
    )
    sums, counts = _sums(readings, independent_groups(values), over)
    total, n = counts.sum(axis=0), (counts > 0).sum(axis=0)
    # 0/0 without readings, with one group, or without differences.
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.clip(sums.sum(axis=0) / total, 0.0, 1.0)
        s2 = (n - 1) / n * (((sums - p * counts) / (total - counts)) ** 2).sum(axis=0)
        least = _even_number(counts)
        tosses = ((readings == 0) | (readings == 1) | np.isnan(readings)).all(axis=over)
        present = (~np.isnan(readings)).sum(axis=over[1:])
        whole = math.prod(readings.shape[axis] for axis in over[1:])
        most = (
            total
            * (present > 0).sum(axis=0)
            / np.where(present > 0, whole / present, 0).sum(axis=0)
        )
        most = np.where(tosses, most, _MOST_TRIALS)
        ratio = ndtri(upper) / stdtrit(np.maximum(least - 1, 1.0), upper)
        trials = np.where(
            s2 > _ROUNDING**2, np.clip(p * (1 - p) / s2 * ratio**2, least, most), least
        )
        low = np.where(p > 0, betaincinv(p * trials, (1 - p) * trials + 1, 1 - upper), 0.0)
        high = np.where(p < 1, betaincinv(p * trials + 1, (1 - p) * trials, upper), 1.0)
    estimates = np.stack([p, *np.where(n > 1, [low, high], np.nan)], axis=-1)
    if "noise" in values.coords:
        missing = np.isnan(readings)
        equal = np.where(missing, np.inf, readings).min(over) == np.where(
            missing, -np.inf, readings
        ).max(over)
        untouched = (values.noise.values == 0).reshape(-1, *[1] * (p.ndim - 1))
        estimates = np.where(
            ((untouched | (~tosses & (n > 1))) & equal)[..., None], p[..., None], estimates
        )
    return _labelled(estimates, values)


def mean_curves(values: xr.DataArray, confidence: float = 0.95) -> xr.DataArray:
    """Mean curves of any readings with their intervals of Student's t (`Replicates`): DataArray
    (noise, .., estimate).
    """
    return _labelled(replicates(values).interval(lambda curve: curve, confidence), values)


def _labelled(bounds: np.ndarray, values: xr.DataArray) -> xr.DataArray:
    """Numbers with intervals (noise, .., 3) of the mean curves of readings, with their labels."""
    dims = [str(dim) for dim in dict.fromkeys(("noise", *values.dims)) if dim not in WITHIN]
    coords = {name: of for name, of in values.coords.items() if set(of.dims) <= set(dims)}
    return xr.DataArray(bounds, coords | {"estimate": ESTIMATE}, (*dims, "estimate"))


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
    readings, over = _readings(values)
    sums, counts = _sums(readings, independent_groups(values), over)
    means = np.where(counts > 0, sums, sums.sum(axis=0)) / np.where(
        counts > 0, counts, np.maximum(counts.sum(axis=0), 1)
    )
    squares = np.sort((means - np.median(means, axis=0)) ** 2, axis=0)
    tosses = ((readings == 0) | (readings == 1) | np.isnan(readings)).all(axis=over)
    spread = (squares[-1] > _FLOAT32**2) & (len(means) >= FEW)
    return ~tosses & spread & (squares[-2:].sum(axis=0) > 0.9 * squares.sum(axis=0))


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
    out. At an infinite end `low` or `high` there is no bound: it is infinite. `confidence`: that of
    each bound, above .5.

    Examples
    --------
    >>> import xarray as xr
    >>> kept = xr.DataArray(np.ones((1, 59)), dims=("noise", "item"))
    >>> mean_bounds(kept, 0, 1).round(4)
    array([[0.9505],
           [1.    ]])
    """
    alpha = 1 - checked_share("confidence", confidence)
    readings, over = _readings(values)
    sums, counts = _sums(readings, independent_groups(values), over)
    x = np.clip(sums / np.maximum(counts, 1), low, high)
    with np.errstate(invalid="ignore"):  # 0/0 without readings
        weights = counts * _even_number(counts) / counts.sum(axis=0)
    bounds = [
        (
            end + sign * _least_mean(sign * (x - end), weights, alpha)
            if math.isfinite(end)
            else np.full(x.shape[1:], end)
        )
        for end, sign in ((float(low), 1), (float(high), -1))
    ]
    return np.stack(bounds)


def _least_mean(x: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The alpha quantile of sum_g W_g x_g for x >= 0, (groups, ..), and random weights (W_0, W_1,
    ..) ~ Dirichlet(1, weights).

    The quantile t is that at which a sum of independent gamma variables, sum_g E_g (x_g - t) - E_0
    t, is below 0 with probability alpha. In the saddlepoint formula for this probability, terms are
    weighted by 1 / (1 + v x_g), and v gives t in closed form.
    """
    scale = np.where(weights > 0, x, 0).max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x, k = (
        np.concatenate([np.full_like(of[:1], first), of])
        for of, first in ((x / scale, 0.0), (weights, 1.0))
    )
    two_valued = ((x == 0) | (x == 1) | (k == 0)).all(axis=0)

    def quantile(v: np.ndarray) -> np.ndarray:
        return np.asarray((k * x / (1 + v * x)).sum(axis=0) / (k / (1 + v * x)).sum(axis=0))

    def tail(v: np.ndarray) -> np.ndarray:
        t = quantile(v)
        tilt = (1 + v * x) / (1 + v * t)
        w = -np.sqrt(2 * (k * np.log(tilt)).sum(axis=0))
        u = -v / (1 + v * t) * np.sqrt((k * np.square((x - t) / tilt)).sum(axis=0))
        return np.asarray(ndtr(w) + np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi) * (1 / w - 1 / u))

    low, high = np.full(scale.shape, -9.0), np.full(scale.shape, 60.0)  # log v
    with np.errstate(invalid="ignore", divide="ignore"):  # where all x are 0
        for _ in range(0 if two_valued.all() else 50):
            middle = (low + high) / 2
            above = tail(np.exp(middle)) > alpha
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        one, zero = (k * x).sum(axis=0), (k * (1 - x)).sum(axis=0)
        exact = np.where(one == 0, 0.0, betaincinv(one, zero, alpha))
    return scale * np.where(two_valued, exact, quantile(np.exp(low)))


def mean_interval(values: Any, confidence: float = 0.95) -> np.ndarray:
    """Mean of independent numbers (n, ..) over their first axis, with its interval of Student's
    t: array (.., 3).
    """
    values = np.asarray(values, float)
    with np.errstate(invalid="ignore"):  # infinite numbers
        half = (
            values.std(axis=0, ddof=1)
            / np.sqrt(len(values))
            * stdtrit(len(values) - 1, 0.5 + confidence / 2)
        )
    mean = values.mean(axis=0)
    return np.stack([mean, mean - half, mean + half], axis=-1)


def levels_around(x: Any, place: float) -> tuple[float, float]:
    """The two neighbouring values of x, increasing (points,), with a place between them or at
    the second; NaN if it is NaN.
    """
    if np.isnan(place):
        return float("nan"), float("nan")
    k = int(np.clip(np.searchsorted(x, place), 1, len(x) - 1))
    return float(x[k - 1]), float(x[k])


def located(of: Replicates, statistic: Callable[[np.ndarray], float], x: Any) -> np.ndarray:
    """A noise located between measured levels x by interpolation, and the ends of its 95 %
    interval: array (3,).

    The interval of `Replicates.interval` holds the place on the curve that is interpolated linearly
    between the levels. The true curve is not known between them, so the interval is widened to hold
    both levels around the place. It can miss the place if the curve stays just above the height up
    to the next level, and the sample puts that level below (`benchmarks/intervals.py --part
    grids`).

    `of`: the curve at the increasing levels x (noise,). `statistic`: a noise found by
    interpolation, such as `crossing`, of a curve (noise, ..others).

    >>> import xarray as xr
    >>> noise = [0, 0.9, 1]  # all of 40 readings change between .9 and 1
    >>> values = xr.DataArray(np.tile([[1], [1], [0]], 40), dims=("noise", "item"), coords={"noise": noise})
    >>> located(replicates(values), lambda curve: crossing(noise, curve, 0.5), noise)
    array([0.95, 0.9 , 1.  ])
    """
    value, low, high = of.interval(statistic)
    least, most = levels_around(x, float(value))
    return np.array([value, np.minimum(low, least), np.maximum(high, most)])


def estimate(
    values: xr.DataArray, statistic: Callable[[np.ndarray], float], confidence: float = 0.95
) -> Estimate:
    """A statistic of the mean curve (noise, ..others) with its confidence interval, of Student's t;
    `values` as in `replicates`.

    The ends are NaN if the statistic does not exist (NaN, infinite), or if there is only one group.
    A mean of readings in [0, 1] has the interval of `proportion`, a noise between coarse levels
    that of `located`.
    """
    ends = replicates(values).interval(statistic, confidence)
    way = "one number; `replicates(values).interval(statistic)` gives the intervals of arrays"
    expect(ends.ndim == 1, "statistic: array of shape", ends.shape[:-1], way)
    return Estimate(*ends.tolist())


def grammar_means(values: xr.DataArray) -> xr.DataArray:
    """Mean over the items, trajectories and clones of every grammar; the dim `grammar` replaces
    theirs.
    """
    if draws := [dim for dim in WITHIN[1:] if dim in values.dims]:
        values = values.mean(draws, dtype=float)
    return values.groupby("grammar").mean("item")


def rescaled(curve: Any, floor: float | None = None) -> np.ndarray:
    """A curve rescaled to 1 without noise and 0 for independent data: `r = (c - floor)/(1 -
    floor)`.

    `floor`: value of the curve for independent data; by default its last value along the first
    axis, the noise.
    """
    curve = np.asarray(curve, float)
    bottom = curve[-1] if floor is None else floor
    return (curve - bottom) / (1 - bottom)


def nonincreasing(curves: Any) -> np.ndarray:
    """The closest curves, in least squares, that never rise along the first axis (isotonic
    regression).
    """
    return np.apply_along_axis(
        lambda curve: isotonic_regression(curve, increasing=False).x, 0, np.asarray(curves, float)
    )


def hierarchy_index(
    high_level: xr.DataArray,
    low_level: xr.DataArray,
    floors: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Hierarchy index in [0, 1]: strength of two signs of a hierarchy, an abrupt loss of the class
    and an inversion of levels.

    Both curves are rescaled, r = (c - floor)/(1 - floor), and the high level r_H is plotted against
    the low level r_L. As noise grows, the curve runs from (1, 1) to (0, 0). Let G be the signed
    area between curve and diagonal, from (1, 1) on: `G = int (r_H - r_L) (-dr_L)`. With

        A = largest value of G, at the inversion        (class better preserved, small noise)
        B = A - G at the end                            (low level better preserved, large noise)
        W = fall of r_L while r_H falls from 3/4 to 1/4 (width of the class transition)

    the index is `8 sqrt(A B) max(0, 1 - 2 W)`, and 0 if A or B is not positive: 1 for a class lost
    in one step at r_L = 1/2. For interpretation and limits, see docs/structure.md.

    Two steps prevent fluctuations of the curves from counting as an inversion. First, both curves
    are replaced by the closest non-increasing ones, since more noise never preserves more. Second,
    the items are split into two halves (alternating within a grammar): the largest G is located on
    one half, and A and B are measured there on the other half, averaged over both ways.

    `high_level`, `low_level` (noise, item, perhaps trajectory and clone): readings of the same
    items at the same increasing noise levels, 1 for unchanged data, such as `belief` of the root
    and of the leaves, or `same_class` and the similarity of the first layer. The low level may also
    be a known curve (noise,). Zero noise (both 1) and infinite noise (both at their floors) are
    added. `floors`: (high, low), values for independent data, below 1; by default those at the last
    noise level, which must then be nearly infinite. The interval is as in `estimate`, clipped to
    [0, 1]. NaN if the high level is not lost: r_H > 1/4 at the last noise.
    """
    _check_levels(high_level, low_level, floors)
    used = ("noise", "grammar", *WITHIN)
    curves = [
        values.drop_vars([name for name in values.coords if name not in used])
        for values in (high_level, low_level)
    ]
    both = xr.concat(xr.broadcast(*curves), dim="curve")
    bottoms = (None, None) if floors is None else floors

    def index(means: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.stack([rescaled(means[..., k], bottoms[k]) for k in (0, 1)], axis=-1)
        if not np.isfinite(r).all():  # a level that stays at 1 has the floor 1
            return float("nan")
        r = nonincreasing(r).clip(0, 1)
        return _index(np.concatenate([np.ones_like(r[:1]), r, np.zeros_like(r[:1])]))

    return Estimate(*np.clip(estimate(_halves(both), index, confidence), 0, 1).tolist())


def complete_items(ds: xr.Dataset, names: Iterable[str]) -> np.ndarray:
    """Which items have finite readings of all the variables `names`, bool (items,)."""
    finite: list[Any] = [np.isfinite(ds[name]) for name in names]
    return np.logical_and.reduce(
        [of.all([dim for dim in of.dims if dim != "item"]).values for of in finite]
    )


def _check_levels(high_level: xr.DataArray, low_level: xr.DataArray, floors: Any) -> None:
    """ValueError unless a hierarchy index can be computed from the levels and floors."""
    for name, values, needed in (
        ("high_level", high_level, ("noise", "item")),
        ("low_level", low_level, ("noise",)),
    ):
        check_dims(name, values, needed, WITHIN)
        is_complete = np.isfinite(values.astype(float)).all()
        expect(
            is_complete,
            name,
            values.values,
            "no missing or infinite readings; finish the run, or drop what is missing",
        )
    noise = high_level.noise.values
    expect(
        len(noise) > 1 and (np.diff(noise) > 0).all(),
        "noise of high_level",
        noise,
        "at least two increasing levels",
    )
    for dim in map(str, low_level.dims):
        same = dim in high_level.dims and np.array_equal(
            high_level[dim].values, low_level[dim].values
        )
        expect(
            same,
            f"low_level: values of {dim!r}",
            low_level[dim].values,
            "those of high_level, of the same U-turns",
        )
    fits = floors is None or (
        checked_numbers("floors", floors).shape == (2,) and (np.asarray(floors) < 1).all()
    )
    expect(fits, "floors", floors, "two numbers below 1, of the high and of the low level")


def _index(r: np.ndarray) -> float:
    """Hierarchy index of rescaled curves (noise, half, 2), high level first on the last axis."""
    high, low = r[..., 0], r[..., 1]
    excess = high - low
    steps = 0.5 * (excess[1:] + excess[:-1]) * (low[:-1] - low[1:])
    area = np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)])
    # The first of equal maxima: curves that coincide, as on the diagonal, have sums that differ by
    # rounding alone.
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


def _halves(values: xr.DataArray) -> xr.DataArray:
    """Items grouped in pairs of neighbours of the same grammar; the dim `half` numbers the items
    of a pair.
    """
    grammar = (
        np.asarray(values.coords["grammar"].values)
        if "grammar" in values.coords
        else np.zeros(values.sizes["item"], int)
    )
    groups = [np.flatnonzero(grammar == g) for g in np.unique(grammar)]
    index = np.concatenate([group[: len(group) // 2 * 2].reshape(-1, 2) for group in groups])
    expect(
        len(index),
        "items",
        values.sizes["item"],
        "at least two (of one grammar), to be split in halves",
    )
    halves = [values.isel(item=index[:, k]).drop_vars("item", errors="ignore") for k in (0, 1)]
    return xr.concat(halves, dim="half", coords="minimal", compat="override").transpose(
        "noise", "item", ..., "half", "curve"
    )
