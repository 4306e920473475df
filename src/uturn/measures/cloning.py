"""Cloning, speciation and collapse: the times at which diffusion decides the class, and recalls a
training datum.

Noisy data are `x_t = sqrt(abar) x_0 + sqrt(1 - abar) xi` with `abar = exp(-2t)` (arXiv:2402.18491).
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from uturn.core.checks import checked_integer, checked_noise, checked_numbers, expect
from uturn.core.random import Purpose, keys, normals
from uturn.measures.intervals import proportion
from uturn.measures.readings import check_dims


def cloning_probability(same: xr.DataArray) -> xr.DataArray:
    """Probability phi(t) that two clones of one noisy datum fall in the same class
    (arXiv:2402.18491).

    `same`: DataArray (noise, item, clone[, trajectory]), the twin `clone_same_class` or
    `clone_same_label` of a run with several clones. Returns a DataArray (noise, estimate): the
    mean, and its 95 % interval (`uturn.statistics.proportion`).
    """
    check_dims("same", same, ("noise", "item", "clone"), ("trajectory",))
    is_twin = same.sizes["clone"] > 1 and "clone_" in str(same.name or "clone_")
    fits = is_twin and not same.isnull().any()
    expected = "a complete twin of several clones, such as ds.clone_same_class"
    expect(fits, "same", same.name, expected)
    return proportion(same)


def mixture_cloning_probability(
    noise: ArrayLike, squared_distance: float, variance: float = 1.0
) -> np.ndarray:
    """phi(t) of two equally frequent Gaussians of the same isotropic covariance (arXiv:2402.18491),
    float64 (...).

    With m = half the distance of the means and Gamma = abar variance + 1 - abar, the component z of
    x_t along the axis through the means decides: a clone belongs to mode 1 with probability `r(z) =
    1/(1 + exp(-2 sqrt(abar) m z / Gamma))`, and

        phi(t) = E[r(z)**2 + (1 - r(z))**2],    z ~ N(sqrt(abar) m, Gamma).

    `noise`: times t >= 0, (...). `squared_distance` of the two means; `variance` of each component
    of a mode.

    >>> mixture_cloning_probability([0.0, 3.0, np.inf], squared_distance=256).round(3).tolist()
    [1.0, 0.569, 0.5]
    """
    D = _positive("squared_distance", squared_distance)
    v = _positive("variance", variance)
    t = checked_noise(noise, np.inf)[..., None]
    abar = np.exp(-2 * t)
    m = np.sqrt(D) / 2
    gamma = abar * v - np.expm1(-2 * t)
    xi = np.linspace(-9, 9, 2001)
    weights = np.exp(-(xi**2) / 2)
    a = np.sqrt(abar) * m / np.sqrt(gamma)
    exponent = 2 * np.clip(a * (a + xi), -300, 300)
    r = 1 / (1 + np.exp(-exponent))
    mean = ((r * (1 - r)) @ weights) / weights.sum()
    return np.asarray(1 - 2 * mean)


def covariance_eigenvalues(data: ArrayLike) -> np.ndarray:
    """Eigenvalues of the covariance of data (items, ...), divided by items - 1, largest first:
    (min(items - 1, components),).
    """
    values = _checked_data(data, 2)
    values = values - values.mean(axis=0)
    items, components = values.shape
    # Both matrices of products have the same eigenvalues above 0. For large images, the products of
    # items are fewer.
    products = values @ values.T if items < components else values.T @ values
    eigenvalues = np.linalg.eigvalsh(products)[::-1]
    eigenvalues = eigenvalues.clip(0) / (items - 1)
    return np.asarray(eigenvalues[: min(items - 1, components)])


def largest_eigenvalue(data: ArrayLike) -> float:
    """Largest eigenvalue Lambda of the covariance of data (items, ...), whose further axes are
    components.
    """
    return float(covariance_eigenvalues(data)[0])


def speciation_time(eigenvalue: float) -> float:
    """Time t_S at which the class of a reconstruction is decided: `Lambda exp(-2 t_S) = 1`, abar_S
    = 1/Lambda (arXiv:2402.18491).

    Lambda is the largest eigenvalue of the covariance of the data, in units of the noise at full
    time. 0 for Lambda <= 1.

    >>> round(speciation_time(65.0), 3)
    2.087
    """
    value = _positive("eigenvalue", eigenvalue)
    return 0.5 * float(np.log(max(value, 1.0)))


def collapse_time(eigenvalues: ArrayLike, count: int) -> float:
    """Time t_C below which the exact posterior of `count` training data recalls one of them.

    The noisy data of n points of a Gaussian law are told apart where the capacity of the channel
    reaches the rate of the code,

        (1/2) sum_i log(1 + lambda_i / (exp(2 t_C) - 1)) = log n,

    with the eigenvalues lambda_i (components,) of the covariance. For d equal ones this is the
    formula of arXiv:2402.18491, `t_C = (1/2) log(1 + sigma^2 / (n^(2/d) - 1))`.

    >>> round(collapse_time(np.ones(64), 1000), 4), round(0.5 * float(np.log(1 + 1 / (1000 ** (2 / 64) - 1))), 4)
    (0.8195, 0.8195)
    """
    values = checked_numbers("eigenvalues", eigenvalues)
    fits = values.ndim == 1 and (values >= 0).all() and values.any()
    expect(fits, "eigenvalues", eigenvalues, "numbers >= 0 (components,), not all of them 0")
    wanted = math.log(checked_integer("count", count, 2))
    log_values = np.log(values[values > 0])

    def excess(log_noise: float) -> float:
        capacities = np.logaddexp(0, log_values - log_noise)
        return 0.5 * float(capacities.sum()) - wanted

    low = high = log_values.max()
    while excess(low) < 0:
        low -= 10
    while excess(high) > 0:
        high += 10
    log_noise = brentq(excess, low, high, xtol=1e-12)
    return 0.5 * float(np.log1p(np.exp(log_noise)))


def recall_probability(
    data: ArrayLike, noise: ArrayLike, seed: int = 0, observations: int = 500
) -> np.ndarray:
    """Probability that two clones are the same training datum, for the exact posterior of a finite
    set of data.

    It is E sum_i p(x_i | x_t)^2 with p(x_i | x_t) ~ `exp(-|x_t - sqrt(abar) x_i|^2 / (2 (1 -
    abar)))`: near 1 below `collapse_time`, and 1/n at full noise. Of n training data (items, ...)
    at times (levels,) > 0, with `observations` noisy data at each, of data 0, 1, .. in turn: the
    sums, (levels, observations).
    """
    x = _checked_data(data, 1)
    times = checked_noise(noise, np.inf)
    expect(times.ndim == 1 and (times > 0).all(), "noise", noise, "times above 0 (levels,)")
    number = np.arange(checked_integer("observations", observations, 1))
    originals = x[number % len(x)]
    squares = (x**2).sum(axis=1)
    agreement = []
    for k, t in enumerate(times):
        abar = np.exp(-2 * t)
        variance = -np.expm1(-2 * t)
        xi = normals(keys(seed, Purpose.CALIBRATION, k, number), x.shape[1], np.float64)
        noisy = np.sqrt(abar) * originals + np.sqrt(variance) * xi
        log_p = (np.sqrt(abar) * noisy @ x.T - abar * squares / 2) / variance
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        agreement.append((p**2).sum(axis=1) / p.sum(axis=1) ** 2)
    return np.array(agreement)


def _checked_data(data: ArrayLike, least: int) -> np.ndarray:
    """Data as float64 (items, components), or a ValueError."""
    values = checked_numbers("data", data)
    fits = values.ndim > 1 and len(values) >= least and values.size
    expect(fits, "shape of data", values.shape, f"(items, components), at least {least} items")
    return values.reshape(len(values), -1)


def _positive(name: str, value: float) -> float:
    expect(0 < value < np.inf, name, value, "a positive number")
    return float(value)
