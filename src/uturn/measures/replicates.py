"""Replicates: a mean curve, and deviations with the spread of repetitions of the experiment.

Intervals are computed from the differences between independent groups of readings (`Replicates`).
Means of readings in [0, 1] (`uturn.measures.intervals.proportion`) and noise levels found between
two measured ones (`located`) have intervals of their own, since equal readings leave no
differences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import hadamard
from scipy.special import stdtrit

from uturn.core.checks import expect
from uturn.measures.curves import levels_around
from uturn.measures.estimates import Estimate, checked_share
from uturn.measures.readings import FEW, Readings, even_number

_MOST_GROUPS = 64
"""Largest number of groups. With 63 degrees of freedom intervals are only 2 % wider than with
infinitely many.
"""
_SMALLEST_STEP = 2.0**-10
_ONE = 1.5
"""Effective number of groups up to which one of them makes a spread."""

Statistic = Callable[[np.ndarray], ArrayLike]
"""A number or an array as a function of a curve (noise, ..)."""


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

    def error(self, statistic: Statistic) -> np.ndarray:
        """Standard error of a statistic of the curve, a number or an array; NaN for a single group,
        or if it does not exist.

        If the statistic exists for neither of `c ± d_r`, d_r is halved until it does, and the
        change is scaled up accordingly.
        """
        value = np.asarray(statistic(self.mean), float)
        squares = np.full((len(self.deviations), *value.shape), np.nan)
        for r, deviation in enumerate(self.deviations):
            squares[r] = self._squared_change(statistic, value, deviation)
        return np.asarray(np.sqrt(_mean_where_finite(squares)))

    def _squared_change(
        self, statistic: Statistic, value: np.ndarray, deviation: np.ndarray
    ) -> np.ndarray:
        """Mean square of the change of a statistic by `± deviation`, of the shape of its value."""
        squares = np.full(value.shape, np.nan)
        step = 1.0
        while step > _SMALLEST_STEP:
            missing = np.isnan(squares) & np.isfinite(value)
            if not missing.any():
                break
            moved = [self.mean + step * deviation, self.mean + -step * deviation]
            changes = [np.asarray(statistic(curve), float) - value for curve in moved]
            scaled_up = _mean_where_finite(np.square(changes)) / step**2
            squares = np.where(missing, scaled_up, squares)
            step /= 2
        return squares

    def half_width(
        self,
        statistic: Statistic,
        confidence: float = 0.95,
        number: ArrayLike | None = None,
        in_spread: ArrayLike | None = None,
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
            return np.asarray(stdtrit(self.freedom, upper) * self.error(statistic))
        decide = np.minimum(number, self.groups)
        freedom = np.maximum(decide - 1, 1)
        exists = decide >= FEW
        if in_spread is not None:
            in_spread = np.asarray(in_spread)
            freedom = np.minimum(freedom, np.maximum(3 * in_spread - 1, 1))
            exists = exists & (in_spread > _ONE)
        quantile = np.where(exists, stdtrit(freedom, upper), np.nan)
        return np.asarray(quantile * self.error(statistic))

    def interval(
        self, statistic: Statistic, confidence: float = 0.95, number: ArrayLike | None = None
    ) -> np.ndarray:
        """A statistic of the mean curve and the ends of its confidence interval: array (.., 3);
        `number` as in `half_width`.
        """
        value = np.asarray(statistic(self.mean), float)
        half = self.half_width(statistic, confidence, number)
        return np.stack([value, value - half, value + half], axis=-1)


def _mean_where_finite(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values along the first axis; NaN if there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    mean = np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


def replicates(values: xr.DataArray, centre: str = "mean") -> Replicates:
    """Replicates of the mean curve over items, trajectories and clones, from the differences
    between independent groups.

    With `centre` = "median", the curve is the median over items of their means over trajectories
    and clones, and the replicates are medians of half of the groups, those with H_rg = 1 (McCarthy
    1969), since the jackknife fails for medians.

    `values`: dims noise, item, perhaps trajectory and clone, and others. The groups are the
    grammars if `item` has a coordinate `grammar` with several values, otherwise the items; of more
    than 64, neighbours are joined. Items count equally: the mean is the mean of their means over
    the trajectories and clones that they have. Missing readings (NaN) are left out.

    Examples
    --------
    >>> import xarray as xr
    >>> kept = xr.DataArray([[1, 1, 1, 1], [1, 0, 1, 0]], dims=("noise", "item"), coords={"noise": [0.1, 0.5]})
    >>> replicates(kept).interval(lambda curve: curve[1] - curve[0]).round(3)  # value and ends, here of a difference
    array([-0.5  , -1.419,  0.419])
    """
    readings = Readings.of(values)
    num_groups = int(readings.group.max()) + 1
    group = readings.group * min(num_groups, _MOST_GROUPS) // num_groups
    of_groups = readings.sums(group)
    G = len(of_groups.sums)
    sizes = of_groups.counts.reshape(G, -1).sum(axis=1)
    freedom = max(float(even_number(sizes)) - 1, 1.0)
    # NaN where no readings are left (0/0), and where a reading is infinite (inf - inf).
    with np.errstate(invalid="ignore"):
        mean = of_groups.sum / of_groups.count
        if G == 1:
            return Replicates(mean, np.empty((0, *mean.shape)), 1, freedom)
        others = (of_groups.sum - of_groups.sums) / (of_groups.count - of_groups.counts)
        spread = np.sqrt((G - 1) / G) * (others - mean)
    signs = hadamard(1 << (G - 1).bit_length())[:, :G]
    if centre == "median":
        median, halves = _medians(readings, signs[1:, group] > 0)  # the first are all groups
        return Replicates(median, halves - median, G, freedom)
    return Replicates(mean, np.tensordot(signs, spread, 1), G, freedom)


def _medians(readings: Readings, in_half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians of the items, (noise, ..), and medians of several halves of them, (halves, noise,
    ..). `in_half`: bool (halves, items).
    """
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # without readings
        item_means = np.nanmean(readings.values, axis=readings.draw_axes)
        median = np.asarray(np.nanmedian(item_means, axis=0))
        halves = [np.nanmedian(item_means[chosen], axis=0) for chosen in in_half]
    return median, np.stack(halves)


def estimate(values: xr.DataArray, statistic: Statistic, confidence: float = 0.95) -> Estimate:
    """A statistic of the mean curve (noise, ..others) with its confidence interval, of Student's t;
    `values` as in `replicates`.

    The ends are NaN if the statistic does not exist (NaN, infinite), or if there is only one group.
    A mean of readings in [0, 1] has the interval of `proportion`, a noise between coarse levels
    the interval of `located`.
    """
    ends = replicates(values).interval(statistic, confidence)
    way = "one number; `replicates(values).interval(statistic)` gives the intervals of arrays"
    expect(ends.ndim == 1, "statistic: array of shape", ends.shape[:-1], way)
    return Estimate(*ends.tolist())


def located(curve: Replicates, statistic: Statistic, x: ArrayLike) -> np.ndarray:
    """A noise located between measured levels x by interpolation, and the ends of its 95 %
    interval: array (3,).

    The interval of `Replicates.interval` holds the place on the curve that is interpolated linearly
    between the levels. The true curve is not known between them, so the interval is widened to hold
    both levels around the place. It can miss the place if the curve stays just above the height up
    to the next level, and the sample puts that level below (`benchmarks/intervals.py --part
    grids`).

    `curve`: the curve at the increasing levels x (noise,). `statistic`: a noise found by
    interpolation, such as `crossing`, of a curve (noise, ..others).

    >>> import xarray as xr
    >>> from uturn.measures.curves import crossing
    >>> noise = [0, 0.9, 1]  # all of 40 readings change between .9 and 1
    >>> values = xr.DataArray(np.tile([[1], [1], [0]], 40), dims=("noise", "item"), coords={"noise": noise})
    >>> located(replicates(values), lambda curve: crossing(noise, curve, 0.5), noise)
    array([0.95, 0.9 , 1.  ])
    """
    value, low, high = curve.interval(statistic)
    least, most = levels_around(x, float(value))
    return np.array([value, np.minimum(low, least), np.maximum(high, most)])
