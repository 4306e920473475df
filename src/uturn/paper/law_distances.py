"""Distances between the law of reconstructed strings and the exact law, from counts on independent sheets of strings."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys, uniforms

_SIGNS = (Purpose.DENOISING, 1)  # of the keys of random streams
_FLIPS = 2000  # of signs, for p-values


def deviations(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """q - p of every sheet: given observations (steps, observations, sheets, S), and of the data law (steps, 1, sheets, S)."""
    given = run.given_counts.values / run.attrs["strings"] - run.posterior.values[:, :, None]
    law = run.law_counts.values / run.attrs["strings"] - run.data_law.values
    return given, law[:, None]


def squared_distance(deviation: np.ndarray) -> np.ndarray:
    """Unbiased estimate of |E(q - p)|^2 from independent sheets (.., observations, sheets, S), mean over observations."""
    sheets = deviation.shape[-2]
    total = (deviation.sum(-2) ** 2).sum(-1) - (deviation**2).sum((-2, -1))
    return total.mean(-1) / (sheets * (sheets - 1))


def jackknife(deviation: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
    """A statistic of sheets (axis -2) and its standard error."""
    sheets = deviation.shape[-2]
    left_out = np.array([statistic(np.delete(deviation, k, axis=-2)) for k in range(sheets)])
    return statistic(deviation), np.sqrt((sheets - 1) * left_out.var(axis=0))


def by_chance(deviation: np.ndarray) -> np.ndarray:
    """Squared distances that chance alone gives, for one number of steps: signs of sheets flipped at random, 2,000 times."""
    sheets = deviation.shape[-2]
    total = np.zeros(_FLIPS)
    for one, signs in zip(deviation, _signs(deviation.shape[:-1]), strict=True):
        gram = one @ one.T
        total += ((signs @ gram) * signs).sum(-1) - np.trace(gram)
    return total / (len(deviation) * sheets * (sheets - 1))


@lru_cache(maxsize=8)
def _signs(shape: tuple[int, int]) -> np.ndarray:
    """Random signs (observations, 2,000, sheets)."""
    u = uniforms(keys(0, *_SIGNS, np.arange(shape[0] * _FLIPS)), shape[1])
    return np.where(u < 0.5, -1.0, 1.0).reshape(shape[0], _FLIPS, shape[1])


def p_value(deviation: np.ndarray) -> float:
    """Probability that chance gives such a distance between equal laws."""
    chance = by_chance(deviation)
    return float((1 + (chance >= squared_distance(deviation) * (1 - 1e-12)).sum()) / (1 + len(chance)))


def extrapolated(deviation: np.ndarray) -> np.ndarray:
    """To infinitely many steps, from the last two numbers of steps K and 2K: an error proportional to 1/K drops out."""
    return 2 * deviation[-1] - deviation[-2]


def order(deviation: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Order of convergence, -d log(distance)/d log(steps), and its standard error; NaN if fewer than 2 points tell.

    Weighted least squares over the numbers of steps >= 4 whose squared distance is at least 3 times what chance alone exceeds
    in 5 %.
    """
    chance = np.array([np.quantile(by_chance(d), 0.95) for d in deviation])
    value, error = jackknife(deviation, squared_distance)
    used = (steps >= 4) & (value > 3 * chance)
    if used.sum() < 2:
        return float("nan"), float("nan")
    weights = (value / np.maximum(error, 1e-3 * value))[used]

    def fit(sheets: np.ndarray) -> float:
        squares = np.maximum(squared_distance(sheets[used]), 1e-12)
        return float(-0.5 * np.polyfit(np.log(steps[used]), np.log(squares), 1, w=weights)[0])

    slope, error = jackknife(deviation, fit)
    return float(slope), float(error)


def _root(square: Any) -> np.ndarray:
    return np.sqrt(np.maximum(square, 0))


def distance(deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance with its 95 % interval, along the leading axis."""
    square, error = jackknife(deviation, squared_distance)
    return _root(square), _root(square - 1.96 * error), _root(square + 1.96 * error)


def resolution(deviation: np.ndarray) -> float:
    """Distance that chance alone exceeds in 1 % between equal laws."""
    return float(_root(np.quantile(by_chance(deviation), 0.99)))


def distance_text(deviation: np.ndarray) -> str:
    value, low, high = distance(deviation)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
