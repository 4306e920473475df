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
    """The peak of the susceptibility chi against noise."""

    place: Estimate
    """Its noise, the vertex of the parabola through the largest chi and its two neighbours, or an
    end of the range. The interval covers `levels` and half a step beyond them."""
    height: Estimate
    """The largest measured chi, too high on average."""
    cross_fitted: float
    """chi of one half of the originals at the level where chi of the other half is largest, mean of
    both ways."""
    levels: np.ndarray
    """Noise levels at which chi is not below its largest value, bool (noise,)."""
    used: np.ndarray
    """Noise levels at which chi has an interval (n_eff >= 5), or a value if it has no interval
    anywhere, bool (noise,)."""
    largest: int
    """Index of the largest chi; -1 if there is none."""

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
        if not len(ends):
            return False, False
        return bool(ends[0]), bool(ends[-1])

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
    used = np.isfinite(low)
    if not used.any():
        used = np.isfinite(chi)
    levels = np.zeros(len(x), bool)
    if not used.any():
        return Peak(_NONE, _NONE, np.nan, levels, used, -1)
    k = int(np.where(used, chi, -np.inf).argmax())
    if np.isfinite(low[k]):
        levels = used & _not_below(parts, k)
    place = Estimate(_vertex(x[used], chi[used]), *_half_a_step_wider(x, levels, used))
    height = Estimate(*bounds[k].tolist())
    return Peak(place, height, _cross_fitted(parts, used), levels, used, k)


def about_peak(peak: Peak, noise: np.ndarray, most: float = 1.0) -> Iterator[str]:
    """Remarks on a peak that may be outside the measured levels `noise`, up to `most` where
    possible, and on a plateau.
    """
    if peak.largest < 0:
        yield "nothing changes between trajectories: no susceptibility"
        return
    first, last = noise[peak.used][[0, -1]]
    yield from _about_end(peak, noise, 0, f"smallest noise, {first:.3g}", "measure smaller levels")
    can_grow = last < most - 1e-9
    advice = "measure larger levels" if can_grow else "there is no larger noise"
    yield from _about_end(peak, noise, -1, f"largest noise, {last:.3g}", advice)
    if peak.plateau:
        yield (
            f"the susceptibility is not below its largest value at {among(noise[peak.levels])}: a"
            " plateau, or a peak that so few originals do not resolve"
        )


def _about_end(peak: Peak, noise: np.ndarray, end: int, level: str, advice: str) -> Iterator[str]:
    """A remark on a peak at the first (0) or the last (-1) of the levels that take part."""
    if not peak.inside and noise[peak.largest] == noise[peak.used][end]:
        yield f"the susceptibility is largest at the {level}: no peak; {advice}"
    elif peak.reaches[end]:
        yield (
            f"the susceptibility at the {level}, is not below its largest: the peak may lie there;"
            f" {advice}"
        )


def about_few(
    number: np.ndarray, chi: np.ndarray, contributing: np.ndarray, noise: np.ndarray
) -> Iterator[str]:
    """Remarks on noise levels and distances at which fewer than five originals decide chi (n_eff)
    and C(r) (n_eff(r)).

    `chi` (noise, 3), with its interval, which does not exist either where a single original makes
    the spread.
    """
    is_few = (number > 0) & (number < FEW)
    if is_few.any():
        yield (
            f"fewer than {FEW} originals decide the susceptibility at {among(noise[is_few])}"
            " (n_eff): rare ones that change much may be missing, so that it has no interval there"
        )
    is_one = (number >= FEW) & np.isfinite(chi[:, 0]) & np.isnan(chi[:, 1])
    if is_one.any():
        yield (
            f"at most one original makes the spread of the susceptibility at {among(noise[is_one])}:"
            " the others have one ratio of covariances to variances, so that it has no interval"
            " there"
        )
    is_rare = contributing[number >= FEW, 1:] < FEW
    if is_rare.any():
        yield (
            f"in fewer than {FEW} originals sites change together at {is_rare.sum()} of"
            f" {is_rare.size} pairs of noise and distance: C(r)/C(0) has no interval there"
        )


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
    if len(levels) == 1:
        return f"noise {levels[0]:.3g}"
    return f"{len(levels)} levels, noise {levels[0]:.3g} to {levels[-1]:.3g}"


def _not_below(parts: xr.DataArray, k: int) -> np.ndarray:
    """Levels whose chi is not below the chi of level k, by one-sided tests of the paired
    differences of log chi.
    """
    means = replicates(parts)
    number = effective_number(parts.isel(part=1))

    def below_largest(mean: np.ndarray) -> np.ndarray:
        log = log_chi(mean)
        return np.asarray(log[k] - log)

    one_sided = 2 * _CONFIDENCE - 1  # so that 5 % are left on one side
    half_width = means.half_width(below_largest, one_sided, np.minimum(number, number[k]))
    return np.asarray(below_largest(means.mean) <= half_width)


def _half_a_step_wider(x: np.ndarray, levels: np.ndarray, used: np.ndarray) -> tuple[float, float]:
    """The ends of some of the levels x, half a step wider on each side, but not beyond the
    levels that take part.
    """
    if not levels.any():
        return np.nan, np.nan
    places = x[used]
    first, last = np.flatnonzero(levels[used])[[0, -1]]
    below = max(first - 1, 0)
    above = min(last + 1, len(places) - 1)
    return float((places[first] + places[below]) / 2), float((places[last] + places[above]) / 2)


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where a curve is largest: the vertex of the parabola through its largest value and the two
    beside it, or an end.
    """
    k = int(y.argmax())
    if not 0 < k < len(y) - 1:
        return float(x[k])
    a = x[k - 1] - x[k]
    b = x[k + 1] - x[k]
    # Slopes; y = y_k + slope u + bend u².
    left = (y[k - 1] - y[k]) / a
    right = (y[k + 1] - y[k]) / b
    bend = (right - left) / (b - a)
    if bend >= 0:
        return float(x[k])
    return float(x[k] - (left - bend * a) / (2 * bend))


def _cross_fitted(parts: xr.DataArray, used: np.ndarray) -> float:
    """Mean of the chi of both halves of the originals, each at the level where the chi of the other
    half is largest.
    """
    half = independent_groups(parts) % 2
    if not half.any():
        return float("nan")
    logs = [log_chi(replicates(parts.isel(item=half == k)).mean) for k in (0, 1)]
    # At small noise, nothing changes in some halves.
    in_both = used & np.isfinite(logs).all(axis=0)
    if not in_both.any():
        return float("nan")
    first, second = np.where(in_both, logs, -np.inf)
    crossed = [first[second.argmax()], second[first.argmax()]]
    return float(np.exp(crossed).mean())
