"""Exact covariances of the changes of leaves in U-turns: moments of the posterior by dynamic programming, without draws.

Let n be the number of changed leaves below a node. Given the noisy string, its mean and mean square for every symbol of the node
follow from those of its children, rule by rule, and with the marginals of the nodes they give `E n` and `E n**2` of every
subtree. The variance of n is the sum of the covariances of all pairs of leaves of the subtree, so that the subtrees of level k
give all pairs whose lowest common ancestor is at level k or below.

A channel that draws its noise adds the variance of `E n` between noisy strings of one original. It is estimated from further
noisy strings, which are independent of those of the run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numba import njit

from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.core.threads import over_blocks
from uturn.measures.covariances import Tree

_FIRST = 2**20  # number of the first trajectory; runs have fewer


def exact_covariances(experiment: Experiment, draws: int = 32) -> xr.Dataset:
    """The readings of the probe `changes` in the limit of many trajectories, for an experiment on strings with exact posterior.

    Parameters
    ----------
    experiment : Experiment
    draws : int
        Noisy strings of every original. They leave an error in a channel that draws its noise, and none in the ε-process.

    Returns
    -------
    Dataset
        `change_covariance` (noise, item, distance) and `change_covariance_sum` (noise, item), with the coordinates of a run.
    """
    source, corruption, *_ = experiment.parts
    values = []
    for noise in experiment.noise:
        pieces = []
        for originals in source.blocks(np.arange(experiment.items), experiment.seed, experiment.items):
            streams = Streams(experiment.seed, originals.items, noise, range(_FIRST, _FIRST + draws))
            pieces.append(_within_subtrees(originals, originals.observed_by(corruption, noise, streams)))
        values.append(np.concatenate(pieces))
    within, tree = np.array(values), Tree(source.branching**source.depth, source.branching)
    along = {name: ("item", values) for name, values in source.coordinates(experiment.seed, experiment.items).items()}
    return xr.Dataset(
        {
            "change_covariance": (("noise", "item", "distance"), np.diff(within, axis=-1, prepend=0) / tree.pairs),
            "change_covariance_sum": (("noise", "item"), within[..., -1] / tree.num_sites),
        },
        coords={"noise": experiment.noise, "distance": tree.values, **along},
    )


def _within_subtrees(originals: Any, noisy: Any) -> np.ndarray:
    """Covariances of all ordered pairs of leaves in the same subtree of level k = 0 .. L: (items, L + 1)."""
    rhm, items = originals.rhm, len(originals.items)
    beliefs, covariances = noisy.beliefs("marginals"), []
    truth = np.repeat(originals.data, len(noisy.values) // items, axis=0)
    moments = _of_leaves(noisy.log_evidence, truth)
    for k in range(rhm.depth + 1):
        if k > 0:
            weight = np.broadcast_to(rhm.rule_probabilities[k], rhm.rules[k].shape[:2]).astype(float)
            moments = _above(moments, np.ascontiguousarray(rhm.rules[k]), weight)
        mean, square = (moment.reshape(items, -1, moment.shape[1]) for moment in _averaged(moments, beliefs[k]))
        within = (square - mean**2).mean(axis=1)
        if mean.shape[1] > 1:
            within += mean.var(axis=1, ddof=1)  # between noisy strings
        covariances.append(within.sum(axis=1))
    return np.stack(covariances, axis=1)


@njit(nogil=True, cache=True)
def _of_leaves(log_evidence: Any, truth: Any) -> Any:
    """Evidence of every symbol of the leaves, up to a factor a leaf, times 1, n and n**2: (batch, leaves, symbols, 3)."""
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
    over_blocks(batch, lambda i, j: _of_parents(children[i:j], rules, weight, above[i:j]), numbers=nodes * len(rules) * count)
    return above


@njit(nogil=True, cache=True)
def _of_parents(children: Any, rules: Any, weight: Any, above: Any) -> None:
    batch, nodes = children.shape[:2]
    symbols, count, s = rules.shape
    for b in range(batch):
        for node in range(nodes // s):
            total = 0.0
            for y in range(symbols):
                sum_0, sum_1, sum_2 = 0.0, 0.0, 0.0
                for r in range(count):
                    zeroth, first, second = weight[y, r], 0.0, 0.0
                    for j in range(s):
                        x = rules[y, r, j]
                        p, q = children[b, node * s + j, x, 0], children[b, node * s + j, x, 1]
                        second = second * p + 2 * first * q + zeroth * children[b, node * s + j, x, 2]
                        first = first * p + zeroth * q
                        zeroth *= p
                    sum_0, sum_1, sum_2 = sum_0 + zeroth, sum_1 + first, sum_2 + second
                above[b, node, y, 0], above[b, node, y, 1], above[b, node, y, 2] = sum_0, sum_1, sum_2
                total += sum_0
            for y in range(symbols):
                for k in range(3):
                    above[b, node, y, k] /= total


@njit(nogil=True, cache=True)
def _averaged(moments: Any, beliefs: Any) -> Any:
    """E n and E n**2 of every node, (batch, nodes), over the marginal of its symbol, (batch, nodes, symbols)."""
    batch, nodes, symbols = beliefs.shape
    mean, square = np.zeros((batch, nodes)), np.zeros((batch, nodes))
    for b in range(batch):
        for i in range(nodes):
            for x in range(symbols):
                if moments[b, i, x, 0] > 0:  # else its belief is 0
                    share = beliefs[b, i, x] / moments[b, i, x, 0]
                    mean[b, i] += share * moments[b, i, x, 1]
                    square[b, i] += share * moments[b, i, x, 2]
    return mean, square
