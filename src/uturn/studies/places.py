"""Curves of readings against noise, and the places on them: where a curve has gone a share of the
way from its start to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.measures.curves import crossing, levels_around
from uturn.measures.intervals import proportion
from uturn.measures.replicates import Replicates, located, replicates
from uturn.studies.axes import Axes

SHARES = (0.25, 0.5, 0.75)
"""Shares of the way from start to chance: labels of the dim `share`."""
_HALF = SHARES.index(0.5)

Place = Callable[[np.ndarray], float]
"""A noise on a curve (noise,); NaN if the curve does not have it."""


def curve(values: xr.DataArray, noise: np.ndarray, start: ArrayLike, centre: str) -> Replicates:
    """Mean (or median) curve (noise, ..) of a variable and its replicates at the noise levels.

    `start` is the value at noise 0; it is prepended if there is one level more than the variable
    has.
    """
    measured = replicates(values, centre)
    if len(measured.mean) == len(noise):
        return measured
    first = np.full_like(measured.mean[:1], start)
    unmoved = np.zeros_like(measured.deviations[:, :1])
    return measured._replace(
        mean=np.concatenate([first, measured.mean]),
        deviations=np.concatenate([unmoved, measured.deviations], axis=1),
    )


def band(curves: Replicates, least: float, most: float, confidence: float) -> np.ndarray:
    """A curve and the ends of its intervals along a new last axis, clipped to [least, most]."""
    return np.asarray(np.clip(curves.interval(lambda mean: mean, confidence), least, most))


def band_of_shares(
    values: xr.DataArray, noise: np.ndarray, start: ArrayLike, confidence: float
) -> np.ndarray:
    """The mean curve and its intervals for readings in [0, 1] (`uturn.statistics.proportion`).

    At noise 0 nothing changes, so both ends equal the value; `start` is the value if noise 0 was
    not measured.
    """
    measured = proportion(values, confidence).values
    missing = len(noise) - len(measured)
    first = np.full_like(measured[:missing], np.expand_dims(start, -1))
    return np.concatenate([first, measured])


def located_on(curves: Replicates, place: Place, noise: np.ndarray) -> np.ndarray:
    """A place on a curve and the ends of its interval (`located`), clipped to the measured range;
    NaN for one level.
    """
    if len(noise) < 3:
        return np.full(3, np.nan)
    return np.asarray(np.clip(located(curves, place, noise), 0.0, noise[-1]))


@dataclass(frozen=True, eq=False)
class Places:
    """The places on one curve, with 95 % intervals; NaN where there is none."""

    at_shares: np.ndarray
    """(share, axis, estimate): smallest noise at which the curve has gone each of `SHARES`."""
    width: np.ndarray
    """(axis, estimate): distance between the first and the last of these."""

    @property
    def half_life(self) -> np.ndarray:
        """(axis, estimate)."""
        return np.asarray(self.at_shares[_HALF])

    @classmethod
    def none(cls, axes: Axes) -> Places:
        """No places, on as many axes."""
        shape = (len(axes.names), 3)
        return cls(np.full((len(SHARES), *shape), np.nan), np.full(shape, np.nan))

    @classmethod
    def on(cls, curve: Replicates, chance: float, axes: Axes) -> Places:
        """The places on a curve that begins at its start; none for a single level above 0."""
        if len(axes.finite_noise) < 3:
            return cls.none(axes)
        places = [reaching(curve.mean, chance, axes, share) for share in SHARES]
        at_shares = np.stack(
            [axes.convert_interval(located_on(curve, place, axes.finite_noise)) for place in places]
        )
        return cls(at_shares, _width(curve, places, at_shares, axes))


def reaching(mean: np.ndarray, chance: float, axes: Axes, share: float) -> Place:
    """A function: the first noise at which a curve like `mean` has gone a share of the way to
    chance (NaN: to its end).
    """
    is_finite = axes.is_finite
    noise = axes.finite_noise
    end = mean[-1] if np.isnan(chance) else chance
    sign = -1.0 if end > mean[0] else 1.0

    def place(curve: np.ndarray) -> float:
        bottom = curve[-1] if np.isnan(chance) else chance
        height = bottom + (1 - share) * (curve[0] - bottom)
        return crossing(noise, sign * curve[is_finite], sign * height, first=True)

    return place


def _width(curve: Replicates, places: list[Place], at_shares: np.ndarray, axes: Axes) -> np.ndarray:
    """Distance between the first and the last place, with its interval (axis, estimate)."""
    first_place = places[0]
    last_place = places[-1]
    noise = axes.finite_noise

    def distance(mean: np.ndarray) -> np.ndarray:
        ends = axes.convert(np.array([first_place(mean), last_place(mean)]))
        return np.asarray(np.abs(ends[:, 1] - ends[:, 0]))

    # Each place can lie anywhere between its two noise levels; the last one is not below the first.
    first = axes.convert(np.array(levels_around(noise, at_shares[0, 0, 0])))
    last = axes.convert(np.array(levels_around(noise, at_shares[-1, 0, 0])))
    decreases = last[:, 1:] < first[:, :1]  # abar and log-SNR do
    first *= np.where(decreases, -1, 1)
    last *= np.where(decreases, -1, 1)
    with np.errstate(invalid="ignore"):
        value, low, high = curve.interval(distance).T
        low = np.minimum(low, np.maximum(last[:, 0] - first[:, 1], 0))
        high = np.maximum(high, last[:, 1] - first[:, 0])
        largest = [noise[-1] if name == "noise" else np.inf for name in axes.names]
        return np.asarray(np.clip([value, low, high], 0, largest).T)
