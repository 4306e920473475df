"""Changes of the sites of grammars and of data without a hierarchy, in Gaussian diffusion with
exact posterior draws.

The tests of the nesting index and `benchmarks/hierarchy.py` read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.core.random import Purpose, keys, normals
from uturn.corruption import Gaussian
from uturn.exact.laws import GaussianMixture, Sample, power_law, simplex
from uturn.measures.cloning import mixture_cloning_probability
from uturn.measures.hierarchy import site_changes
from uturn.paper.specs import experiment_of

NOISE = np.r_[np.geomspace(0.01, 1, 18), 1.4, 2, 2.7, 3.5, np.inf].round(4)
"""Gaussian diffusion times, the same for all data: none is chosen with the transition of a law
in view.
"""
SHARES = np.linspace(0, 1, 25)[1:].round(4)
"""Noise levels of the channels whose noise ends at 1."""
ITEMS, TRAJECTORIES = 100, 8

Sites = tuple[Any, ...]
"""A code over some sites: ("grammar", v, m, s) with one level of rules, or ("mixture", modes,
distance, sites).
"""


def changes(
    kind: str, parameters: Any, seed: int, items: int = ITEMS, channel: str = "gaussian"
) -> tuple[xr.DataArray, int]:
    """The changes of all sites of one draw of the data of a kind, and the branching of their
    blocks; `channel`: for grammars.
    """
    if kind == "grammars":
        v, m, s, L = parameters
        source = {"vocab_size": v, "multiplicity": m, "branching": s, "depth": L}
        return grammar_changes(source, seed, items, channel), s
    if kind == "one-level grammars":
        (v, m, s), count = parameters
        return _code(("grammar", v, m, s), seed, items, count, channel), 3 if s == 9 else 2
    if kind == "unrelated features":
        features = [_code(feature, seed + 1000 * k, items) for k, feature in enumerate(parameters)]
        return (
            xr.concat(
                [feature.drop_vars("grammar", errors="ignore") for feature in features], dim="site"
            ),
            2,
        )
    if kind == "fields":
        size, exponent = parameters
        law = GaussianMixture(
            np.zeros((1, size**2)), variance=power_law((size, size), exponent), grid=(size, size)
        )
        return vector_changes(law, seed, items).isel(site=nested_order(size)), 2
    modes, distance, sites, *exponent = parameters
    weights = np.arange(1, modes + 1) ** -exponent[0] if exponent else np.ones(modes)
    return _mixture(modes, distance, sites, seed, items, weights / weights.sum()), 2


def grammar_changes(
    source: dict[str, Any], seed: int, items: int = ITEMS, channel: str = "gaussian"
) -> xr.DataArray:
    """Changes of the leaves of strings of a source, `rhm` unless it has another type."""
    return site_changes(grammar_experiment(source, seed, items, channel))


def grammar_experiment(
    source: dict[str, Any], seed: int, items: int = ITEMS, channel: str = "gaussian"
) -> Experiment:
    """U-turns of strings of a source, `rhm` unless it has another type."""
    source, noise = {"type": "rhm", **source}, NOISE if channel == "gaussian" else SHARES
    return experiment_of(
        source, channel, noise, "tree_levels", items=items, trajectories=TRAJECTORIES, seed=seed
    )


def vector_changes(law: GaussianMixture, seed: int, items: int = ITEMS) -> xr.DataArray:
    """Squared changes of the components of vectors of a law, in Gaussian diffusion with exact
    posterior draws.
    """
    originals = law.sample(items, keys(seed, Purpose.ORIGINAL, np.arange(items))).values
    copies = np.repeat(originals, TRAJECTORIES, axis=0)
    squares = [
        np.square(x.values - copies).reshape(items, TRAJECTORIES, -1)
        for x in rebuilt(law, copies, NOISE, seed)
    ]
    return xr.DataArray(
        np.array(squares), dims=("noise", "item", "trajectory", "site"), coords={"noise": NOISE}
    )


def nested_order(size: int) -> np.ndarray:
    """The points of a size x size grid in an order in which blocks of 2**k neighbours are
    contiguous (Morton); size = 2**j.
    """
    bits = size.bit_length() - 1
    halves = np.arange(size**2).reshape((2,) * 2 * bits)
    return halves.transpose(np.arange(2 * bits).reshape(2, bits).T.ravel()).ravel()


def _code(
    code: Sites, seed: int, items: int, count: int = 1, channel: str = "gaussian"
) -> xr.DataArray:
    """Changes of the sites of a code; `count` independent strings of it side by side."""
    if code[0] == "mixture":
        modes, distance, sites = code[1:]
        return _mixture(modes, distance, sites, seed, items)
    v, m, s = code[1:]
    single = grammar_changes(
        {"vocab_size": v, "multiplicity": m, "branching": s, "depth": 1},
        seed,
        items * count,
        channel,
    )
    strings = single.values.reshape(-1, items, count, TRAJECTORIES, s).swapaxes(2, 3)
    return xr.DataArray(
        strings.reshape(-1, items, TRAJECTORIES, count * s),
        dims=single.dims,
        coords={"noise": single.noise},
    )


def _mixture(
    modes: int, distance: float, sites: int, seed: int, items: int, weights: Any = None
) -> xr.DataArray:
    """Changes of the components of a mixture of Gaussians of variance 1 with means at equal
    distances (more modes than sites: independent means at about this distance).
    """
    streams = keys(seed, Purpose.GRAMMAR, np.arange(modes))
    if modes <= sites:
        means = simplex(modes, sites, distance, streams)
    else:
        means = normals(streams, sites, np.float64) * distance / np.sqrt(2 * sites)
    return vector_changes(GaussianMixture(means, weights), seed, items)


DISTANCE = 8.0
"""Distance of the two modes in their own component, whose variance is 1."""
VARIANCES = (0.05, 1000.0)
DETAILS = (63, 64)
"""Variances of the other components, and how many have each."""


def two_scales_law() -> GaussianMixture:
    """Two modes that differ in the first component, and independent details of a small and of a
    large variance.
    """
    means = np.zeros((2, 1 + sum(DETAILS)))
    means[1, 0] = DISTANCE
    return GaussianMixture(means, variance=np.r_[1.0, np.repeat(VARIANCES, DETAILS)])


def two_scales_noise() -> np.ndarray:
    """Diffusion times at which first the details of small variance are lost, then the class,
    then the other details.
    """
    return np.r_[0.5 * np.log1p(1 / np.geomspace(1e4, 1e-6, 61)), np.inf].round(6)


def two_scales(items: int) -> xr.Dataset:
    """U-turns of these data: `high` (same mode), `low` (product of a detail with its original
    over its variance, mean of all details), both (noise, item), and `isolated` (noise), the same
    of a detail by itself, which is exact.
    """
    law, noise, dims = two_scales_law(), two_scales_noise(), ("noise", "item")
    originals, high, low = law.sample(items, keys(0, Purpose.ORIGINAL, np.arange(items))), [], []
    for draws in rebuilt(law, originals.values, noise, seed=0):
        high.append(draws.modes == originals.modes)
        low.append((draws.values * originals.values / law.variance)[:, 1:].mean(axis=1))
    curves = {
        "high": (dims, np.array(high, float)),
        "low": (dims, low),
        "isolated": ("noise", two_scales_curves(noise)[1]),
    }
    return xr.Dataset(curves, {"noise": noise})


def rebuilt(
    law: GaussianMixture, originals: np.ndarray, noise: np.ndarray, seed: int
) -> Iterator[Sample]:
    """U-turns of vectors of a law, noise by noise: Gaussian diffusion and exact posterior draws."""
    for n, t in enumerate(noise):
        corruption, draws = (
            keys(seed, use, np.arange(len(originals)), n)
            for use in (Purpose.CORRUPTION, Purpose.RECONSTRUCTION)
        )
        yield law.sample_posterior(law.diffuse(originals, t, corruption), t, draws)


def two_scales_curves(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact curves of class and details, 1 without noise and 0 for independent data: `2 phi -
    1`, with phi the probability that two clones have one mode, and the mean of `snr V / (snr V +
    1)`.
    """
    with np.errstate(divide="ignore"):
        snr = np.exp(Gaussian().log_snr(noise))
    share = np.multiply.outer(snr, VARIANCES)
    return 2 * mixture_cloning_probability(noise, DISTANCE**2) - 1, np.average(
        share / (share + 1), axis=1, weights=DETAILS
    )
