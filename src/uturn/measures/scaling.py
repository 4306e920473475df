"""Scaling of correlated changes: correlation length, and finite-size collapse with the exponent
of the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import minimize

from uturn.core.checks import checked_numbers, expect
from uturn.measures.changes import (
    Measured,
    OfPresent,
    correlated,
    covariances_of,
    effective_number,
    presence,
    replicated,
)
from uturn.measures.estimates import Estimate
from uturn.measures.readings import check_dims
from uturn.measures.replicates import replicates


def correlation_length(
    changed: Measured,
    exponent: float | None = None,
    confidence: float = 0.95,
    present: xr.DataArray | None = None,
    name: str = "",
) -> xr.Dataset:
    """Correlation length ξ at every noise level, by a fit of `C(r)/C(0) = A r**-a exp(-r/ξ)` for r
    > 0.

    The fit minimises the sum of squares over the distances. The interval is computed for 1/ξ, which
    is 0 where no decay beyond the power law is seen.

    `changed`, `present`, `name`: as in `uturn.measures.changes.correlations`, of arrays with the
    distance "index"; or a DataArray (noise, item, distance) of covariances. `exponent`: a >= 0 of
    the power law at the transition, such as `MeanField.decay_exponent`; by default it is fitted (0
    .. 4) at each noise level, which makes ξ less certain. Returns a Dataset (noise): `length`,
    `low`, `high`, in the unit of the distance; infinite where 1/ξ is not above 0. Degrees of
    freedom: n_eff - 1; the ends are NaN if n_eff < 5. All are NaN at a noise where no C(r) with r >
    0 is above 0 (`uturn.measures.changes.correlated`): independent sites have no correlation
    length.
    """
    if isinstance(changed, xr.DataArray) and "trajectory" not in changed.dims:
        changed = changed.to_dataset(name="change_covariance")
    readings = covariances_of(changed, name=name)
    covariance = readings["change_covariance"]
    check_dims("covariance", covariance, ("noise", "item", "distance"), ())
    exponents = np.linspace(0, 4, 81)
    if exponent is not None:
        exponents = checked_numbers("exponent", [exponent])
    expect((exponents >= 0).all(), "exponent", exponent, "a number >= 0, or None to fit it")
    r = covariance.distance.values[1:]
    expected = "at least 3, to fit a correlation length"
    expect(len(r) > 2, "covariance: distances above 0", len(r), expected)
    shapes = _Shapes.of(r, exponents)
    present_in = presence(readings, present)
    means, of_present = replicated(covariance, present_in)
    has_length = correlated(covariance, present_in)

    def rates(mean: np.ndarray) -> np.ndarray:
        return shapes.best_rates(of_present, mean)

    number = effective_number(covariance.isel(distance=0))
    value, low, high = means.interval(rates, confidence, number).T
    with np.errstate(divide="ignore"):
        lengths = {
            "length": 1 / value,
            "low": 1 / high,
            "high": 1 / np.where(np.isnan(low), np.nan, np.maximum(low, 0)),
        }
    variables = {}
    for variable, values in lengths.items():
        variables[variable] = ("noise", np.where(has_length, values, np.nan))
    return xr.Dataset(variables, coords={"noise": covariance.noise})


class _Shapes(NamedTuple):
    """The curves `r**-a exp(-r/ξ)` of all exponents a and all rates 1/ξ."""

    rates: np.ndarray
    """1/ξ, increasing from 0, (rates,)."""
    values: np.ndarray
    """The curves, each of norm 1, (exponents, rates, distances)."""

    @classmethod
    def of(cls, r: np.ndarray, exponents: np.ndarray) -> _Shapes:
        """The curves at the distances r (distances,)."""
        rates = np.r_[0, np.geomspace(0.01 / r[-1], 10 / r[0], 300)]
        decay = np.exp(-np.multiply.outer(rates, r - r[0]))
        values = r ** -exponents[:, None, None] * decay
        return cls(rates, values / np.linalg.norm(values, axis=-1, keepdims=True))

    def best_rates(self, of_present: OfPresent, mean: np.ndarray) -> np.ndarray:
        """1/ξ at every noise level, (noise,). The amplitude is linear, so the best curve has the
        largest projection.
        """
        curve = of_present(mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            y = curve[:, 1:] / curve[:, :1]
        projection = np.einsum("nr,aqr->qna", y, self.values).max(axis=-1)  # (rates, noise)
        exists = np.isfinite(y).all(axis=1) & (projection.max(axis=0) > 0)
        best = projection.argmax(axis=0)
        found = np.full(len(y), np.nan)
        for n in np.flatnonzero(exists):
            found[n] = _peak(self.rates, projection[:, n], best[n])
        return found


def _peak(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Position of the maximum of y(x) near its largest value at k, by a parabola in log x."""
    if not 1 < k < len(x) - 1:
        return float(x[k])
    left, middle, right = y[k - 1 : k + 2]
    bend = left - 2 * middle + right
    move = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float(x[k] * (x[k + 1] / x[k]) ** move)


def collapse_curves(runs: Sequence[xr.Dataset]) -> xr.DataArray:
    """The curves that `collapse` fits, DataArray (noise, item, size, part), from runs with the
    probe `changes`, one for a size.

    Part 0 is the covariance of the changes at the largest distance, part 1 the variance of a site.
    """
    sizes = []
    for run in runs:
        covariance = run["change_covariance"].drop_vars("distance")
        parts = [covariance.isel(distance=-1), covariance.isel(distance=0)]
        sizes.append(xr.concat(parts, dim="part"))
    curves: xr.DataArray = xr.concat(sizes, dim="size").transpose("noise", "item", "size", "part")
    return curves


class Collapse(NamedTuple):
    """Result of `collapse`; NaN if no collapse can be fitted."""

    exponent: Estimate
    """ν, the exponent of the correlation length."""
    critical_noise: Estimate
    spread: float
    """Variance between the collapsed curves over the variance along them, >= 0; 0 is a perfect
    collapse."""


def collapse(
    curves: xr.DataArray,
    sizes: Sequence[float],
    start: tuple[float, float],
    confidence: float = 0.95,
) -> Collapse:
    """Finite-size collapse of correlations at the largest distance r = N, with ν and the critical
    noise fitted.

    At the transition C(r)/C(0) falls as `r**-(2 - 2/ν)` (`MeanField.decay_exponent`). The only
    other length is `ξ ~ |ε - ε*|**-ν`, so the curves `N**(2 - 2/ν) C(N)/C(0)` of trees with N
    leaves are one function of `(ε - ε*) N**(1/ν)`. The fit minimises the variance between the
    curves, interpolated linearly where all of them exist.

    `curves`: those of `collapse_curves`. `sizes`: N of every size, at least two. `start`: (ν,
    critical noise), where the search begins, with ν between 0.5 and 20.
    """
    check_dims("curves", curves, ("noise", "item", "size", "part"), ())
    noise = checked_numbers("noise", curves.noise.values)
    rises = len(noise) > 1 and (np.diff(noise) > 0).all()
    expect(rises, "noise", noise.tolist(), "at least two increasing levels")
    N = checked_numbers("sizes", sizes)
    fits = N.shape == (curves.sizes["size"],) and len(np.unique(N)) > 1 and (N > 0).all()
    expected = "a positive number for each of at least two sizes of the curves"
    expect(fits, "sizes", N.tolist(), expected)
    checked_numbers("curves", curves.values)
    begin = checked_numbers("start", start)
    fits = begin.shape == (2,) and 0.5 < begin[0] < 20 and begin[1]
    expect(fits, "start", start, "(ν, critical noise) with ν between 0.5 and 20, noise not 0")

    def fitted(mean: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """ν, critical noise and spread, (3,), of mean curves (noise, size, part)."""
        simplex = begin * np.array([[1, 1], [1.1, 1], [1, 1.02]])
        options = {"initial_simplex": simplex, "xatol": 1e-4}
        # 0/0 where nothing changes; spreads of inf.
        with np.errstate(invalid="ignore", divide="ignore"):
            y = (mean[..., 0] / mean[..., 1]).T
            arguments = (noise, N, y)
            best = minimize(_spread, begin, arguments, method="Nelder-Mead", options=options)
        if not np.isfinite(best.fun):
            return np.full(3, np.nan)
        return np.array([*best.x, best.fun])

    means = replicates(curves.transpose("noise", "item", "size", "part"))
    whole = fitted(means.mean, begin)

    def statistic(mean: np.ndarray) -> np.ndarray:
        # A search can end in another minimum. Those of the replicates begin where the fit of the
        # whole ended, so that the interval is about the one minimum, and a poor start does not
        # widen it.
        return whole if mean is means.mean else fitted(mean, whole[:2])

    exponent, critical, spread = means.interval(statistic, confidence)
    return Collapse(
        Estimate(*exponent.tolist()), Estimate(*critical.tolist()), spread=float(spread[0])
    )


def _spread(parameters: np.ndarray, noise: np.ndarray, N: np.ndarray, y: np.ndarray) -> float:
    """Variance between the curves y (size, noise) of the sizes N, collapsed with the parameters
    (ν, critical noise), over the variance along them; infinite where they do not overlap.
    """
    nu, critical = parameters
    if not 0.5 < nu < 20:
        return np.inf
    x = (noise - critical) * N[:, None] ** (1 / nu)
    common = np.linspace(x[:, 0].max(), x[:, -1].min(), 200)
    if common[0] >= common[-1]:
        return np.inf
    scaled = y * N[:, None] ** (2 - 2 / nu)
    collapsed = np.array([np.interp(common, *curve) for curve in zip(x, scaled, strict=True)])
    between = collapsed.var(axis=0).sum()
    along = collapsed.mean(axis=0).var() * len(common)
    return float(between / along)
