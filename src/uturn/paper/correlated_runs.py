"""The shared experiments of the figures on correlated changes, and the exact covariances of the
changes of their strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numba import njit
from scipy.special import erf

from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.core.threads import over_blocks
from uturn.measures.covariances import Grid, Tree
from uturn.paper.specs import experiment_of, rhm
from uturn.paper.workshop import Scale, Workshop
from uturn.sources import RHMSource
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

    Let n be the number of changed leaves below a node. Given the noisy string, its mean and mean
    square for every symbol of the node follow from those of its children, rule by rule, and with
    the marginals of the nodes they give `E n` and `E n**2` of every subtree. The variance of n is
    the sum of the covariances of all pairs of leaves of the subtree, so that the subtrees of level
    k give all pairs whose lowest common ancestor is at level k or below. A channel that draws its
    noise adds the variance of `E n` between noisy strings of one original, estimated from `draws`
    further ones, independent of those of the run.

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
            pieces.append(
                _within_subtrees(originals, originals.observed_by(corruption, noise, streams))
            )
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


def _within_subtrees(originals: Any, noisy: Any) -> np.ndarray:
    """Covariances of all ordered pairs of leaves in the same subtree of level k = 0 .. L:
    (items, L + 1).
    """
    rhm = originals.rhm
    items = len(originals.items)
    beliefs = noisy.beliefs("marginals")
    covariances = []
    truth = np.repeat(originals.data, len(noisy.values) // items, axis=0)
    moments = _of_leaves(noisy.log_evidence, truth)
    for k in range(rhm.depth + 1):
        if k > 0:
            weight = np.broadcast_to(rhm.rule_probabilities[k], rhm.rules[k].shape[:2]).astype(
                float
            )
            moments = _above(moments, np.ascontiguousarray(rhm.rules[k]), weight)
        mean, square = (
            moment.reshape(items, -1, moment.shape[1]) for moment in _averaged(moments, beliefs[k])
        )
        within = (square - mean**2).mean(axis=1)
        if mean.shape[1] > 1:
            within += mean.var(axis=1, ddof=1)  # between noisy strings
        covariances.append(within.sum(axis=1))
    return np.stack(covariances, axis=1)


@njit(nogil=True, cache=True)
def _of_leaves(log_evidence: Any, truth: Any) -> Any:
    """Evidence of every symbol of the leaves, up to a factor a leaf, times 1, n and n**2:
    (batch, leaves, symbols, 3).
    """
    batch, leaves, symbols = log_evidence.shape
    moments = np.empty((batch, leaves, symbols, 3))
    for b in range(batch):
        for i in range(leaves):
            top = log_evidence[b, i].max()
            for x in range(symbols):
                likelihood = np.exp(log_evidence[b, i, x] - top)
                moments[b, i, x, 0] = likelihood
                moments[b, i, x, 1] = moments[b, i, x, 2] = likelihood * (x != truth[b, i])
    return moments


def _above(children: np.ndarray, rules: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same for the parents, (batch, nodes, symbols, 3), from their children."""
    batch, nodes = children.shape[:2]
    _, count, s = rules.shape
    above = np.empty((batch, nodes // s, len(rules), 3))
    over_blocks(
        batch,
        lambda i, j: _of_parents(children[i:j], rules, weight, above[i:j]),
        numbers=nodes * len(rules) * count,
    )
    return above


@njit(nogil=True, cache=True)
def _of_parents(children: Any, rules: Any, weight: Any, above: Any) -> None:
    batch, nodes = children.shape[:2]
    symbols, count, s = rules.shape
    for b in range(batch):
        for node in range(nodes // s):
            total = 0.0
            for y in range(symbols):
                sum_0 = 0.0
                sum_1 = 0.0
                sum_2 = 0.0
                for r in range(count):
                    zeroth = weight[y, r]
                    first = 0.0
                    second = 0.0
                    for j in range(s):
                        x = rules[y, r, j]
                        p = children[b, node * s + j, x, 0]
                        q = children[b, node * s + j, x, 1]
                        second = (
                            second * p + 2 * first * q + zeroth * children[b, node * s + j, x, 2]
                        )
                        first = first * p + zeroth * q
                        zeroth *= p
                    sum_0 = sum_0 + zeroth
                    sum_1 = sum_1 + first
                    sum_2 = sum_2 + second
                above[b, node, y, 0] = sum_0
                above[b, node, y, 1] = sum_1
                above[b, node, y, 2] = sum_2
                total += sum_0
            for y in range(symbols):
                for k in range(3):
                    above[b, node, y, k] /= total


@njit(nogil=True, cache=True)
def _averaged(moments: Any, beliefs: Any) -> Any:
    """E n and E n**2 of every node, (batch, nodes), over the marginal of its symbol, (batch,
    nodes, symbols).
    """
    batch, nodes, symbols = beliefs.shape
    mean = np.zeros((batch, nodes))
    square = np.zeros((batch, nodes))
    for b in range(batch):
        for i in range(nodes):
            for x in range(symbols):
                if moments[b, i, x, 0] > 0:  # else its belief is 0
                    share = beliefs[b, i, x] / moments[b, i, x, 0]
                    mean[b, i] += share * moments[b, i, x, 1]
                    square[b, i] += share * moments[b, i, x, 2]
    return mean, square
