"""Curves of a run against noise, the places found on them, and how they are written: value and 95 % interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.statistics import Replicates, replicates

if TYPE_CHECKING:
    import xarray as xr

ESTIMATE = ("value", "low", "high")  # labels of the dim `estimate`: a number and the ends of its 95 % interval


def with_zero(noise: np.ndarray) -> np.ndarray:
    """Increasing noise levels, with noise 0 in the first place."""
    return noise.astype(float) if np.isclose(noise[0], 0) else np.r_[0.0, noise.astype(float)]


def curve(values: xr.DataArray, x: np.ndarray, start: float = 1.0) -> Replicates:
    """Mean curve (noise, ..) of a variable and its replicates at the noise levels x.

    `start` is the value at noise 0, added if x has one level more than was measured.
    """
    mean, deviations, groups = replicates(values)
    if len(mean) < len(x):
        mean = np.concatenate([np.full_like(mean[:1], start), mean])
        deviations = np.concatenate([np.zeros_like(deviations[:, :1]), deviations], axis=1)
    return Replicates(mean, deviations, groups)


def no_curve(x: np.ndarray) -> Replicates:
    """The curve of what was not measured: NaN."""
    return Replicates(np.full(len(x), np.nan), np.empty((0, len(x))), 0)


def band(of: Replicates, least: float, most: float = 1.0) -> np.ndarray:
    """A curve and the ends of its intervals along a new last axis, clipped to [least, most]."""
    return np.clip(np.moveaxis(of.interval(lambda mean: mean), 0, -1), least, most)


def place(
    of: Replicates, statistic: Callable[[np.ndarray], float], x: np.ndarray, most: float | None = None, least: float = 0.0
) -> np.ndarray:
    """A noise located on a curve and the ends of its interval, clipped to the measured range, or to [least, most].

    NaN for a single level.
    """
    return np.full(3, np.nan) if len(x) < 3 else np.clip(of.interval(statistic), least, x[-1] if most is None else most)


def plain(values: Any) -> dict[str, float | None]:
    """A number with its interval as plain data: {"value", "low", "high"}, None where it does not exist."""
    return {part: float(v) if np.isfinite(v) else None for part, v in zip(ESTIMATE, values, strict=True)}


def with_interval(values: Any) -> str:
    """A number with its interval, for a table."""
    value, low, high = (f"{v:.3g}" for v in values)
    if not np.isfinite(values[0]):
        return "none"
    return f"{value} [{low}, {high}]" if np.isfinite(values[1:]).all() else value
