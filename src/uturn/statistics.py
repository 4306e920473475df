"""Statistics of change: where a curve falls, how sharply, where two curves swap, and how sure we are.

A *curve* is a mean over items against the noise level. Confidence intervals come from a hierarchical bootstrap: grammars (if
there are several), then items, then trajectories are drawn with replacement, the same draw for all noise levels and tree levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.random import keys, uniforms

if TYPE_CHECKING:
    import xarray as xr

_BOOTSTRAP = 4  # purpose of a random stream, see uturn.sources


class Estimate(NamedTuple):
    """A number with a confidence interval; NaN where it does not exist."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Transition(NamedTuple):
    """A fall of a curve between two plateaus.

    `location`: noise at which half of the fall is done for the first time. `width`: noise between a quarter and three quarters of
    it, likewise for the first time, so that fluctuations on the lower plateau do not widen it. `sharpness`: location / width, the
    steepness on a logarithmic axis.
    """

    location: float
    width: float
    sharpness: float


def crossing(x: Any, y: Any, height: float, first: bool = False) -> float:
    """Where a curve falls below a height for the last time, or for the first (linear interpolation); NaN if it does not.

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
    """Location and width of the fall of a curve from `top` to `bottom` (its last value by default)."""
    y = np.asarray(y, float)
    bottom = float(y[-1]) if bottom is None else bottom
    at = [crossing(x, y, bottom + share * (top - bottom), first=True) for share in (0.75, 0.5, 0.25)]
    width = at[2] - at[0]
    return Transition(at[1], width, at[1] / width if width else float("inf"))


def inversion(x: Any, high_level: Any, low_level: Any) -> float:
    """Noise beyond which the curve of a high level stays below that of a low level; NaN if the order never inverts."""
    return crossing(x, np.asarray(high_level, float) - np.asarray(low_level, float), 0.0)


def shift(x: Any, y: Any, theory_x: Any, theory_y: Any, reach: float = 0.2) -> float:
    """Displacement d along x that brings a theory onto a measured curve: the least squares of y(x) - theory(x - d).

    The theory is given on a fine increasing grid and interpolated linearly, constant beyond its ends; |d| <= reach.
    """
    from scipy.optimize import minimize_scalar

    x, y = np.asarray(x, float), np.asarray(y, float)
    # A coarse look first: the squares can have several minima.
    steps = np.linspace(-reach, reach, 81)

    def loss(d: float) -> float:
        return float(np.sum((y - np.interp(x - d, theory_x, theory_y)) ** 2))

    best = steps[np.argmin([loss(d) for d in steps])]
    width = steps[1] - steps[0]
    return float(minimize_scalar(loss, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-6}).x)


def resampled_curves(values: xr.DataArray, num: int = 400, seed: int = 0) -> np.ndarray:
    """Bootstrap curves: means over items and trajectories of hierarchically resampled data.

    Parameters
    ----------
    values : DataArray with dims noise, item, perhaps trajectory, and others
        A coordinate `grammar` of `item`, if present, is the outermost level of resampling.

    Returns
    -------
    array (num, noise, ...others)
    """
    if "trajectory" not in values.dims:
        values = values.expand_dims("trajectory")
    data = values.transpose("noise", "item", "trajectory", ...).values
    weights = _weights(values, num, seed)
    return np.einsum("rit,nit...->rn...", weights, data.astype(float), optimize=True)


def _weights(values: xr.DataArray, num: int, seed: int) -> np.ndarray:
    """Weights (num, items, trajectories), rows adding up to 1, of a hierarchical bootstrap."""
    items, trajectories = values.sizes["item"], values.sizes["trajectory"]
    grammar = np.asarray(values.coords["grammar"].values) if "grammar" in values.coords else np.zeros(items, int)
    groups = [np.flatnonzero(grammar == g) for g in np.unique(grammar)]
    u = uniforms(keys(seed, _BOOTSTRAP, np.arange(num)), len(groups) + items * (1 + trajectories) + items)
    weights = np.zeros((num, items, trajectories))
    for r in range(num):
        stream = iter(u[r])

        def pick(n: int, stream: Any = stream) -> int:
            return int(next(stream) * n)

        chosen = [groups[pick(len(groups))] for _ in groups] if len(groups) > 1 else groups
        # Groups may differ in size: draw as many items as there were, over the chosen groups in turn.
        for k in range(items):
            group = chosen[k % len(chosen)]
            item = group[pick(len(group))]
            for _ in range(trajectories):
                weights[r, item, pick(trajectories)] += 1
    return weights / (items * trajectories)


def estimate(
    values: xr.DataArray,
    statistic: Callable[[np.ndarray], float],
    num: int = 400,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic of the mean curve (noise, ...others) with its bootstrap percentile interval.

    If the statistic does not exist (NaN) in more than 5 % of the resamples, there is no interval: its ends are NaN.
    """
    order = [d for d in ("noise", *values.dims) if d not in ("item", "trajectory")]
    dims = list(dict.fromkeys(order))
    mean = values.mean([d for d in ("item", "trajectory") if d in values.dims], dtype=float).transpose(*dims)
    draws = np.array([statistic(curve) for curve in resampled_curves(values, num, seed)])
    exists = np.isfinite(draws)
    low, high = np.nan, np.nan
    if exists.mean() >= 0.95:
        low, high = np.quantile(draws[exists], [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float(statistic(mean.values)), float(low), float(high))


def grammar_means(values: xr.DataArray) -> xr.DataArray:
    """Mean of every grammar: dims item (and trajectory) become `grammar`."""
    if "trajectory" in values.dims:
        values = values.mean("trajectory", dtype=float)
    return values.groupby("grammar").mean("item")
