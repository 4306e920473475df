"""Curves against the noise: where they fall, cross and lie apart, and how they are rescaled.

A *curve* is a mean over items against the noise level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize_scalar


class Transition(NamedTuple):
    """A fall of a curve between two plateaus; NaN if the curve does not fall far enough.

    `location`: smallest noise at which the curve has fallen by half. `width`: difference of the
    smallest noises at which it has fallen by three quarters and by one quarter. `sharpness`:
    location / width.
    """

    location: float
    width: float
    sharpness: float


def crossing(x: ArrayLike, y: ArrayLike, height: float, first: bool = False) -> float:
    """Last (or, if `first`, first) x at which a curve falls below a height, by linear
    interpolation; NaN if it never does.

    >>> crossing([0, 0.2, 0.4, 0.6], [1, 0.9, 0.3, 0.1], 0.5)
    0.333...
    """
    x = np.asarray(x, float)
    above = np.asarray(y, float) - height
    falls = np.flatnonzero((above[:-1] > 0) & (above[1:] <= 0))
    if not len(falls):
        return float("nan")
    k = falls[0 if first else -1]
    step = x[k + 1] - x[k]
    fall = above[k] - above[k + 1]
    return float(x[k] + step * above[k] / fall)


def transition(
    x: ArrayLike, y: ArrayLike, top: float = 1.0, bottom: float | None = None
) -> Transition:
    """Location and width of the fall of a curve y(x), arrays (points,), from `top` to `bottom` (the
    last value by default).

    >>> transition([0, 0.2, 0.4, 0.6, 0.8], [1, 0.9, 0.4, 0.2, 0.2])
    Transition(location=0.32, width=0.16..., sharpness=1.99...)
    """
    y = np.asarray(y, float)
    if bottom is None:
        bottom = float(y[-1])

    def first_below(share: float) -> float:
        return crossing(x, y, bottom + share * (top - bottom), first=True)

    location = first_below(0.5)
    width = first_below(0.25) - first_below(0.75)
    sharpness = location / width if width else float("inf")
    return Transition(location, width, sharpness)


def inversion(x: ArrayLike, high_level: ArrayLike, low_level: ArrayLike) -> float:
    """Last noise x at which the curve of a high level falls below the curve of a low level; NaN if
    it never does.
    """
    return crossing(x, np.asarray(high_level, float) - np.asarray(low_level, float), 0.0)


def levels_around(x: ArrayLike, place: float) -> tuple[float, float]:
    """The two neighbouring values of x, increasing (points,), with a place between them or at
    the second; NaN if it is NaN.
    """
    if np.isnan(place):
        return float("nan"), float("nan")
    x = np.asarray(x)
    k = int(np.clip(np.searchsorted(x, place), 1, len(x) - 1))
    return float(x[k - 1]), float(x[k])


def shift(
    x: ArrayLike, y: ArrayLike, theory_x: ArrayLike, theory_y: ArrayLike, reach: float = 0.2
) -> float:
    """Displacement d along x that minimises the sum of squares of y(x) - theory(x - d), with |d| <=
    reach.

    The theory is given on a fine increasing grid and interpolated linearly; it is constant beyond
    the ends of the grid.
    """
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    theory_x = np.asarray(theory_x, float)
    theory_y = np.asarray(theory_y, float)

    def loss(d: float) -> float:
        return float(np.sum((y - np.interp(x - d, theory_x, theory_y)) ** 2))

    # A coarse grid comes first, because the sum of squares can have several minima.
    steps = np.linspace(-reach, reach, 81)
    best = steps[np.argmin([loss(d) for d in steps])]
    width = steps[1] - steps[0]
    bounds = (best - width, best + width)
    fit = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(fit.x)


def rescaled(curve: ArrayLike, floor: float | None = None) -> np.ndarray:
    """A curve rescaled to 1 without noise and 0 for independent data: `r = (c - floor)/(1 -
    floor)`.

    `floor`: value of the curve for independent data; by default its last value along the first
    axis, the noise.
    """
    curve = np.asarray(curve, float)
    bottom = curve[-1] if floor is None else floor
    return np.asarray((curve - bottom) / (1 - bottom))


def nonincreasing(curves: ArrayLike) -> np.ndarray:
    """The closest curves, in least squares, that never rise along the first axis (isotonic
    regression).
    """

    def fitted(curve: np.ndarray) -> np.ndarray:
        values: np.ndarray = isotonic_regression(curve, increasing=False).x
        return values

    return np.apply_along_axis(fitted, 0, np.asarray(curves, float))
