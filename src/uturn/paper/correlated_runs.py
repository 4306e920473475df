"""The shared experiments of the figures on correlated changes, and their readings in the limit of
many trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import erf

from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.exact.changed_leaves import covariances_within_subtrees
from uturn.exact.rhm import RandomHierarchyModel
from uturn.measures.covariances import Grid, Tree
from uturn.paper.specs import experiment_of, rhm
from uturn.paper.workshop import Scale, Workshop
from uturn.sources import RHMSource
from uturn.sources.strings import NoisyStrings, Strings
from uturn.sources.vectors import Vectors

PAPER = (32, 8, 2)
STEEP = (16, 4, 2)
FIELD: dict[str, Any] = {"type": "gaussian_field", "size": 16, "exponent": 2.0}
MIXTURE: dict[str, Any] = {
    "type": "gaussian_mixture",
    "dimension": 128,
    "num_modes": 2,
    "separation": 2.0,
}
ONE_LEVEL = rhm(4, 512, 8, 1)
TIMES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, np.inf)
PATCHES = {"": ("patches of 4 x 4 pixels", 7 * 7), "feature": ("positions of block 4", 14 * 14)}
"""Probes of the changes of images: {name: (description of the sites, number of sites)}."""


def grammar(
    channel: str,
    sizes: tuple[int, int, int],
    depth: int,
    noise: Sequence[float],
    scale: Scale,
    factor: int = 1,
    turns: int = 1,
) -> Experiment:
    """U-turns of strings of several grammars. `factor`, `turns`: more items, more trajectories,
    for curves that need them.
    """
    grammars, items, trajectories = (
        (24, 48 * factor, 32) if scale == "smoke" else (48, 240 * factor, 64)
    )
    return _described(
        rhm(*sizes, depth, grammars=grammars), channel, noise, items, turns * trajectories
    )


def controls(scale: Scale) -> dict[str, Experiment]:
    """Laws without a hierarchy, or with a single level, in Gaussian diffusion."""
    items, trajectories = (96, 16) if scale == "smoke" else (480, 32)
    one_level = {**ONE_LEVEL, "grammars": 24}
    return {
        "field": _described(FIELD, "gaussian", TIMES, items, trajectories),
        "mixture": _described(MIXTURE, "gaussian", TIMES, items, trajectories),
        "one-level": _described(
            one_level, "gaussian", (*TIMES[:4], 0.3, *TIMES[4:7]), items, trajectories
        ),
    }


SITES = {
    "field": Grid((FIELD["size"],) * 2, periodic=True),
    "mixture": Grid((MIXTURE["dimension"],)),
}
"""Sites of the controls with their distances."""


def exact_of(
    workshop: Workshop, figure: str, label: str, experiment: Experiment, draws: int = 1
) -> xr.Dataset:
    """The exact covariances of the strings of an experiment, computed once."""
    return workshop.keep(
        f"{figure}-exact-{label}", exact_covariances, experiment=experiment, draws=draws
    )


def independent_changes(label: str, experiment: Experiment) -> xr.Dataset:
    """The readings of the probe `changes` of a control at t = T, where the reconstruction is
    independent of the original.

    Let f_i be `|x_i - x_0i|` of site i. Field: the differences are Gaussian, with the correlation
    rho of the field within a reconstruction, and rho/2 between two of them. With `E|U V| = (2/pi)
    g(rho)`, `g(c) = sqrt(1 - c**2) + c arcsin c`, the mean of C over originals is proportional to
    `g(rho) - g(rho/2)`. Mixture of two modes: sites of one mode are independent, so that for every
    original `C_ij = d_i d_j / 4` for i != j, with d_i the difference of E f_i between the modes of
    a reconstruction, and `C_ii = E f_i**2 - (E f_i)**2`.
    """
    source = experiment.parts.source
    sites = SITES[label]
    originals = next(source.blocks(np.arange(experiment.items), experiment.seed, experiment.items))
    assert isinstance(originals, Vectors)
    if label == "field":
        n = FIELD["size"]
        rho = np.fft.ifftn(originals.law.variance.reshape(n, n)).real.ravel()
        g, half = (
            np.sqrt(np.maximum(1 - c**2, 0)) + c * np.arcsin(np.clip(c, -1, 1))
            for c in (rho / rho[0], rho / rho[0] / 2)
        )
        step = np.minimum(np.arange(n), n - np.arange(n))
        distance = np.rint(np.hypot(step[:, None], step)).ravel()
        covariance = np.tile(
            [(g - half)[distance == r].mean() for r in sites.values], (experiment.items, 1)
        )
    else:
        gaps = originals.law.means[:, None] - originals.values
        # Mean of the absolute value of a Gaussian of variance 1 with these means.
        first, second = np.sqrt(2 / np.pi) * np.exp(-(gaps**2) / 2) + gaps * erf(gaps / np.sqrt(2))
        square = 1 + np.square(gaps).mean(axis=0)
        covariance = sites.products(((first - second) / 2)[:, None]) / sites.pairs
        covariance[:, 0] = (square - np.square((first + second) / 2)).mean(axis=1)
    return xr.Dataset(
        {
            "change_covariance": (("noise", "item", "distance"), covariance[None]),
            "change_covariance_sum": (
                ("noise", "item"),
                (covariance @ sites.pairs / sites.num_sites)[None],
            ),
        },
        {"noise": [np.inf], "distance": sites.values},
    )


def images(scale: Scale) -> dict[str, Experiment]:
    """Fashion-MNIST on the embedded model, with changes of patches of pixels and of positions of
    a layer.
    """
    items, trajectories, steps, levels = (12, 6, 10, 5) if scale == "smoke" else (200, 16, 50, 10)
    noise = np.arange(1, levels + 1) / levels
    probes = (
        "changes",
        {"type": "changes", "name": "feature", "layer": "block4"},
    )
    backward = {"type": "diffusion", "steps": steps, "timestep_spacing": "trailing"}
    sizes = {
        "items": items,
        "trajectories": trajectories,
        "chunk": items if scale == "smoke" else 20,
    }
    return {
        "images": experiment_of(
            "fashion_mnist", "diffusion", noise, *probes, backward=backward, **sizes
        )
    }


def _described(
    source: dict[str, Any], channel: str, noise: Sequence[float], items: int, trajectories: int
) -> Experiment:
    levels = np.round(noise, 4)
    chunk = min(items, 240)
    return experiment_of(
        source, channel, levels, "changes", items=items, trajectories=trajectories, chunk=chunk
    )


def beside_exact(readings: xr.DataArray, exact: xr.DataArray) -> xr.DataArray:
    """Readings of a run and their exact values, (noise, item, x) each, in one array (noise,
    item, of, x).
    """
    _, _, x = dims = readings.transpose("noise", "item", ...).dims
    values = np.stack([values.transpose(*dims).values for values in (readings, exact)], axis=2)
    along = {name: values for name, values in readings.coords.items() if values.dims == ("item",)}
    return xr.DataArray(
        values, dims=("noise", "item", "of", x), coords={"noise": readings.noise, **along}
    )


_FIRST = 2**20  # number of the first trajectory; runs have fewer


def exact_covariances(experiment: Experiment, draws: int = 32) -> xr.Dataset:
    """The readings of the probe `changes` in the limit of many trajectories, for an experiment on
    strings with exact posterior.

    The covariances are those of the exact posterior (`uturn.exact.changed_leaves`). A channel that
    draws its noise adds the variance of the expected changes between noisy strings of one original,
    estimated from `draws` further ones, independent of those of the run.

    Gives `change_covariance` (noise, item, distance) and `change_covariance_sum` (noise, item),
    with the coordinates of a run.
    """
    source, corruption, *_ = experiment.parts
    values = []
    for noise in experiment.noise:
        pieces = []
        for originals in source.blocks(
            np.arange(experiment.items), experiment.seed, experiment.items
        ):
            streams = Streams(
                experiment.seed, originals.items, noise, range(_FIRST, _FIRST + draws)
            )
            noisy = originals.observed_by(corruption, noise, streams)
            pieces.append(_within_subtrees(originals, noisy))
        values.append(np.concatenate(pieces))
    assert isinstance(source, RHMSource)
    within = np.array(values)
    tree = Tree(source.branching**source.depth, source.branching)
    along = {
        name: ("item", values)
        for name, values in source.coordinates(experiment.seed, experiment.items).items()
    }
    return xr.Dataset(
        {
            "change_covariance": (
                ("noise", "item", "distance"),
                np.diff(within, axis=-1, prepend=0) / tree.pairs,
            ),
            "change_covariance_sum": (("noise", "item"), within[..., -1] / tree.num_sites),
        },
        coords={"noise": experiment.noise, "distance": tree.values, **along},
    )


def _within_subtrees(originals: Strings, noisy: NoisyStrings) -> np.ndarray:
    """Covariances of the changes of all ordered pairs of leaves in the same subtree of each level,
    (items, tree levels).
    """
    rhm = originals.rhm
    assert isinstance(rhm, RandomHierarchyModel)
    return covariances_within_subtrees(
        rhm, noisy.log_evidence, originals.data, noisy.beliefs("marginals")
    )
