"""Data with and without a hierarchy for the nesting index, with held-out parameters.

The index was chosen on other sets (`benchmarks/hierarchy.py`); these were written down before it was computed on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.core.random import Purpose, keys, normals
from uturn.exact.laws import GaussianMixture, power_law, simplex
from uturn.measures.hierarchy import site_changes
from uturn.paper.specs import experiment_of

NOISE = np.r_[np.geomspace(0.01, 1, 18), 1.4, 2, 2.7, 3.5, np.inf].round(4)
"""Gaussian diffusion times, the same for all data: none is chosen with the transition of a law in view."""
SHARES = np.linspace(0, 1, 25)[1:].round(4)
"""Noise levels of the channels whose noise ends at 1."""
ITEMS, TRAJECTORIES = 100, 8

Sites = tuple[Any, ...]
"""A code over some sites: ("grammar", v, m, s) with one level of rules, or ("mixture", modes, distance, sites)."""

HELD_OUT: dict[str, list[Any]] = {
    "grammars": [
        *((24, 6, 2, 3), (24, 9, 2, 4), (12, 3, 2, 5), (12, 2, 2, 3), (20, 5, 2, 6)),
        *((20, 3, 2, 4), (48, 18, 2, 3), (6, 4, 3, 3), (5, 6, 3, 4), (4, 8, 4, 3)),
    ],
    "one-level grammars": [
        *(((3, 300, 9), 1), ((6, 200, 8), 1), ((5, 1000, 8), 1), ((16, 64, 4), 1), ((2, 8, 8), 1)),
        *(((4, 512, 8), 2), ((10, 30, 8), 2), ((3, 40, 8), 4), ((24, 4, 4), 4), ((12, 5, 2), 16)),
    ],
    "unrelated features": [
        [("grammar", 5, 100, 8), ("grammar", 3, 20, 8)],
        [("grammar", 12, 20, 4), ("grammar", 6, 3, 4)],
        [("mixture", 10, 12.0, 32), ("mixture", 3, 8.0, 32)],
        [("mixture", 100, 14.0, 32), ("grammar", 5, 20, 8), ("grammar", 3, 10, 8), ("mixture", 6, 10.0, 16)],
        [("grammar", 6, 200, 8), ("grammar", 10, 5, 4), ("grammar", 5, 3, 4)],
        [("grammar", 3, 8, 8), ("mixture", 20, 20.0, 8)],
        [("mixture", 3, 28.0, 64), ("mixture", 50, 12.0, 64)],
        [("grammar", 10, 30, 8), ("grammar", 3, 9, 8), ("grammar", 5, 400, 8), ("mixture", 5, 9.0, 8)],
        [("mixture", 300, 9.0, 64), ("mixture", 6, 5.0, 64)],
        [("mixture", 12, 20.0, 32), ("mixture", 12, 7.0, 16), ("mixture", 12, 3.0, 16)],
    ],
    "random codes": [(300, 8.5, 128), (800, 9.5, 64), (700, 10.5, 256), (400, 9.0, 64), (200, 8.0, 64)],
    "flat mixtures": [(3, 20.0, 128), (6, 28.0, 64), (12, 14.0, 64), (20, 40.0, 128), (48, 18.0, 256)],
    "unequal mixtures": [(4, 20.0, 128, 1.2), (10, 14.0, 64, 0.8), (6, 28.0, 64, 2.5), (24, 16.0, 128, 1.0), (12, 10.0, 32, 0.6)],
    "fields": [(8, 0.8), (16, 1.5), (8, 3.5), (16, 2.5), (16, 1.2)],
}
CONTROLS = tuple(kind for kind in HELD_OUT if kind != "grammars")


def changes(kind: str, parameters: Any, seed: int, items: int = ITEMS, channel: str = "gaussian") -> tuple[xr.DataArray, int]:
    """The changes of all sites (`ut.nesting_index`) of one draw of the data of a kind, and the branching of the blocks of sites.

    `channel`: for grammars only.
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
        return xr.concat([feature.drop_vars("grammar", errors="ignore") for feature in features], dim="site"), 2
    if kind == "fields":
        size, exponent = parameters
        law = GaussianMixture(np.zeros((1, size**2)), variance=power_law((size, size), exponent), grid=(size, size))
        return vector_changes(law, seed, items).isel(site=nested_order(size)), 2
    modes, distance, sites, *exponent = parameters
    weights = np.arange(1, modes + 1) ** -exponent[0] if exponent else np.ones(modes)
    return _mixture(modes, distance, sites, seed, items, weights / weights.sum()), 2


def grammar_changes(source: dict[str, Any], seed: int, items: int = ITEMS, channel: str = "gaussian") -> xr.DataArray:
    """Changes of the leaves of strings of a source, `rhm` unless it has another type."""
    return site_changes(grammar_experiment(source, seed, items, channel))


def grammar_experiment(source: dict[str, Any], seed: int, items: int = ITEMS, channel: str = "gaussian") -> Experiment:
    """U-turns of strings of a source, `rhm` unless it has another type."""
    source, noise = {"type": "rhm", **source}, NOISE if channel == "gaussian" else SHARES
    return experiment_of(source, channel, noise, "tree_levels", items=items, trajectories=TRAJECTORIES, seed=seed)


def vector_changes(law: GaussianMixture, seed: int, items: int = ITEMS) -> xr.DataArray:
    """Squared changes of the components of vectors of a law, in Gaussian diffusion with exact posterior draws."""
    originals = law.sample(items, keys(seed, Purpose.ORIGINAL, np.arange(items))).values
    copies, squares = np.repeat(originals, TRAJECTORIES, axis=0), []
    for n, noise in enumerate(NOISE):
        streams = (keys(seed, purpose, np.arange(len(copies)), n) for purpose in (Purpose.CORRUPTION, Purpose.RECONSTRUCTION))
        noisy = law.diffuse(copies, noise, next(streams))
        rebuilt = law.sample_posterior(noisy, noise, next(streams)).values
        squares.append(np.square(rebuilt - copies).reshape(items, TRAJECTORIES, -1))
    return xr.DataArray(np.array(squares), dims=("noise", "item", "trajectory", "site"), coords={"noise": NOISE})


def nested_order(size: int) -> np.ndarray:
    """The points of a size x size grid in an order in which blocks of 2**k neighbours are contiguous (Morton); size = 2**j."""
    bits = size.bit_length() - 1
    halves = np.arange(size**2).reshape((2,) * 2 * bits)
    return halves.transpose(np.arange(2 * bits).reshape(2, bits).T.ravel()).ravel()


def _code(code: Sites, seed: int, items: int, count: int = 1, channel: str = "gaussian") -> xr.DataArray:
    """Changes of the sites of a code; `count` independent strings of it side by side."""
    if code[0] == "mixture":
        modes, distance, sites = code[1:]
        return _mixture(modes, distance, sites, seed, items)
    v, m, s = code[1:]
    single = grammar_changes({"vocab_size": v, "multiplicity": m, "branching": s, "depth": 1}, seed, items * count, channel)
    strings = single.values.reshape(-1, items, count, TRAJECTORIES, s).swapaxes(2, 3)
    return xr.DataArray(strings.reshape(-1, items, TRAJECTORIES, count * s), dims=single.dims, coords={"noise": single.noise})


def _mixture(modes: int, distance: float, sites: int, seed: int, items: int, weights: Any = None) -> xr.DataArray:
    """Changes of the components of a mixture of Gaussians of variance 1 with means at equal distances.

    More modes than sites have independent random means, at about this distance from each other.
    """
    streams = keys(seed, Purpose.GRAMMAR, np.arange(modes))
    if modes <= sites:
        means = simplex(modes, sites, distance, streams)
    else:
        means = normals(streams, sites, np.float64) * distance / np.sqrt(2 * sites)
    return vector_changes(GaussianMixture(means, weights), seed, items)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive number is larger than a negative one; ties count one half."""
    pairs = np.subtract.outer(np.asarray(positive, float), np.asarray(negative, float))
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)
