"""The peak of the susceptibility against noise: its place, its height, and a test against a
plateau.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from uturn.measures.changes import chi_of, effective_number, log_chi
from uturn.measures.estimates import Estimate
from uturn.measures.readings import FEW, independent_groups
from uturn.measures.replicates import replicates

_CONFIDENCE = 0.95
_NONE = Estimate(np.nan, np.nan, np.nan)


class Peak(NamedTuple):
    """The peak of the susceptibility chi against noise.

    `place`: its noise, the vertex of the parabola through the largest chi and its two neighbours,
    or an end of the range; the interval covers `levels` and half a step beyond them. `height`: the
    largest measured chi, too high on average. `cross_fitted`: chi of one half of the originals at
    the level where chi of the other half is largest, mean of both ways. `levels`, bool (noise,):
    those at which chi is not below its largest value. `used`, bool (noise,): those at which chi has
    an interval (n_eff >= 5), or a value if it has no interval anywhere. `largest`: index of the
    largest chi; -1 if none.
    """

    place: Estimate
    height: Estimate
    cross_fitted: float
    levels: np.ndarray
    used: np.ndarray
    largest: int

    @property
    def plateau(self) -> bool:
        """Whether chi is not below its largest value at three levels or more: the peak is flat,
        or not resolved.
        """
        return int(self.levels.sum()) >= 3

    @property
    def reaches(self) -> tuple[bool, bool]:
        """Whether the first, and whether the last, of the levels that take part is one of
        `levels`.
        """
        ends = self.levels[self.used]
        return (bool(ends[0]), bool(ends[-1])) if len(ends) else (False, False)

    @property
    def inside(self) -> bool:
        """Whether the largest chi is neither at the first nor at the last of the levels that
        take part.
        """
        return self.largest >= 0 and self.largest not in np.flatnonzero(self.used)[[0, -1]]


def peak_of(parts: xr.DataArray) -> Peak:
    """The peak of the susceptibility against noise.

    Let k be the level of the largest chi. Level l is one of the levels of the peak if

        log chi_k - log chi_l <= t se,

    with the standard error se of the paired difference over items, or over grammars if there are
    several, and t the one-sided 95 % quantile of Student's t with n_eff - 1 degrees of freedom,
    n_eff the smaller one of both levels. `parts` (noise, item, part):
    `uturn.measures.changes.chi_parts` of a run, with increasing noise. All NaN if nothing changes;
    without intervals and levels for a single original.
    """
    x = parts.noise.values.astype(float)
    bounds = chi_of(parts, _CONFIDENCE)
    chi, low, _ = bounds.T
    used = np.isfinite(low) if np.isfinite(low).any() else np.isfinite(chi)
    if not used.any():
        return Peak(_NONE, _NONE, np.nan, np.zeros(len(x), bool), used, -1)
    k = int(np.where(used, chi, -np.inf).argmax())
    height = Estimate(*bounds[k].tolist())
    levels = np.zeros(len(x), bool) if np.isnan(low[k]) else used & _not_below(parts, k)
    ends = _half_a_step_wider(x, levels, used)
    return Peak(
        Estimate(_vertex(x[used], chi[used]), *ends),
        height,
        _cross_fitted(parts, used),
        levels,
        used,
        k,
    )


def about_peak(peak: Peak, noise: np.ndarray, most: float = 1.0) -> Iterator[str]:
    """Remarks on a peak that may be outside the measured levels `noise`, up to `most` where
    possible, and on a plateau.
    """
    if peak.largest < 0:
        yield "nothing changes between trajectories: no susceptibility"
        return
    first, last = noise[peak.used][[0, -1]]
    beyond = "measure larger levels" if last < most - 1e-9 else "there is no larger noise"
    ends = (("smallest", first, "measure smaller levels"), ("largest", last, beyond))
    for k, (word, x, advice) in enumerate(ends):
        if not peak.inside and noise[peak.largest] == x:
            yield f"the susceptibility is largest at the {word} noise, {x:.3g}: no peak; {advice}"
        elif peak.reaches[k]:
            yield (
                f"the susceptibility at the {word} noise, {x:.3g}, is not below its largest: the"
                f" peak may lie there; {advice}"
            )
    if peak.plateau:
        yield (
            f"the susceptibility is not below its largest value at {among(noise[peak.levels])}: a"
            " plateau, or a peak that so few originals do not resolve"
        )


def about_few(
    number: np.ndarray, chi: np.ndarray, contributing: np.ndarray, noise: np.ndarray
) -> Iterator[str]:
    """Remarks on noise levels and distances at which fewer than five originals decide chi (n_eff)
    and C(r) (n_eff(r)).

    `chi` (noise, 3), with its interval, which does not exist either where a single original makes
    the spread.
    """
    few = (number > 0) & (number < FEW)
    if few.any():
        rare = "rare ones that change much may be missing, so that it has no interval there"
        yield (
            f"fewer than {FEW} originals decide the susceptibility at {among(noise[few])} (n_eff):"
            f" {rare}"
        )
    one = (number >= FEW) & np.isfinite(chi[:, 0]) & np.isnan(chi[:, 1])
    if one.any():
        alike = (
            "the others have one ratio of covariances to variances, so that it has no interval"
            " there"
        )
        yield (
            f"at most one original makes the spread of the susceptibility at {among(noise[one])}:"
            f" {alike}"
        )
    far = contributing[number >= FEW, 1:] < FEW
    if far.any():
        where = (
            f"at {far.sum()} of {far.size} pairs of noise and distance: C(r)/C(0) has no interval"
            " there"
        )
        yield f"in fewer than {FEW} originals sites change together {where}"


def about_independent(independent: np.ndarray, noise: np.ndarray) -> Iterator[str]:
    """A remark on noise levels at which no correlation of two sites is seen, bool (noise,)."""
    if independent.any():
        where = among(noise[independent])
        yield (
            f"at no distance are changes of two sites seen to be correlated at {where}: no"
            " correlation length"
        )


def among(levels: np.ndarray) -> str:
    """The noise levels in words."""
    return (
        f"noise {levels[0]:.3g}"
        if len(levels) == 1
        else f"{len(levels)} levels, noise {levels[0]:.3g} to {levels[-1]:.3g}"
    )


def _not_below(parts: xr.DataArray, k: int) -> np.ndarray:
    """Levels whose chi is not below that of level k, by one-sided tests of the paired
    differences of log chi.
    """
    of, number = replicates(parts), effective_number(parts.isel(part=1))

    def behind(means: np.ndarray) -> np.ndarray:
        log = log_chi(means)
        return log[k] - log

    one_sided = 2 * _CONFIDENCE - 1  # so that 5 % are left on one side
    return behind(of.mean) <= of.half_width(behind, one_sided, np.minimum(number, number[k]))


def _half_a_step_wider(x: np.ndarray, levels: np.ndarray, used: np.ndarray) -> tuple[float, float]:
    """The ends of some of the levels x, half a step wider on each side, but not beyond the
    levels that take part.
    """
    if not levels.any():
        return np.nan, np.nan
    x, chosen = x[used], np.flatnonzero(levels[used])
    a, b = chosen[0], chosen[-1]
    return float((x[a] + x[max(a - 1, 0)]) / 2), float((x[b] + x[min(b + 1, len(x) - 1)]) / 2)


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where a curve is largest: the vertex of the parabola through its largest value and the two
    beside it, or an end.
    """
    k = int(y.argmax())
    if not 0 < k < len(y) - 1:
        return float(x[k])
    a, b = x[k - 1] - x[k], x[k + 1] - x[k]
    # Slopes; y = y_k + slope u + bend u².
    left, right = (y[k - 1] - y[k]) / a, (y[k + 1] - y[k]) / b
    bend = (right - left) / (b - a)
    return float(x[k] - (left - bend * a) / (2 * bend)) if bend < 0 else float(x[k])


def _cross_fitted(parts: xr.DataArray, used: np.ndarray) -> float:
    """chi of each half of the originals at the level where that of the other half is largest;
    the mean of both.
    """
    half = independent_groups(parts) % 2
    if not half.any():
        return float("nan")
    logs = np.array([log_chi(replicates(parts.isel(item=half == k)).mean) for k in (0, 1)])
    in_both = used & np.isfinite(logs).all(axis=0)  # at small noise, nothing changes in some halves
    if not in_both.any():
        return float("nan")
    first, second = np.where(in_both, logs, -np.inf)
    return float(np.exp([first[second.argmax()], second[first.argmax()]]).mean())
