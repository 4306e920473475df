"""Curves of a run against noise, and places on them, with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.intervals import proportion
from uturn.measures.replicates import Replicates, located, replicates


def curve(
    values: xr.DataArray, x: np.ndarray, start: Any = 1.0, centre: str = "mean"
) -> Replicates:
    """Mean (or median) curve (noise, ..) of a variable and its replicates at the noise levels x.

    `start` is the value at noise 0; it is prepended if x has one level more than the variable.
    """
    of = replicates(values, centre)
    if len(of.mean) == len(x):
        return of
    return of._replace(
        mean=np.concatenate([np.full_like(of.mean[:1], start), of.mean]),
        deviations=np.concatenate([np.zeros_like(of.deviations[:, :1]), of.deviations], axis=1),
    )


def band(of: Replicates, least: float, most: float, confidence: float = 0.95) -> np.ndarray:
    """A curve and the ends of its intervals along a new last axis, clipped to [least, most]."""
    return np.clip(of.interval(lambda mean: mean, confidence), least, most)


def shares(
    values: xr.DataArray, x: np.ndarray, start: Any = 1.0, confidence: float = 0.95
) -> np.ndarray:
    """The mean curve and its intervals for readings in [0, 1] (`uturn.statistics.proportion`).

    At noise 0 nothing changes, so both ends equal the value; `start` is the value if noise 0 was
    not measured.
    """
    measured = proportion(values, confidence).values
    missing = len(x) - len(measured)
    return np.concatenate([np.full_like(measured[:missing], np.expand_dims(start, -1)), measured])


def place(of: Replicates, statistic: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """A noise located on a curve and the ends of its interval (`located`), clipped to the
    measured range; NaN for one level.
    """
    return np.full(3, np.nan) if len(x) < 3 else np.clip(located(of, statistic, x), 0.0, x[-1])
