"""Exact covariances of the changes of leaves in U-turns of strings, in the limit of many
reconstructions (arXiv:2410.13770).

Let n be the number of changed leaves below a node. Given the noisy string, its mean and mean square
for every symbol of the node follow from those of its children, rule by rule. With the marginals of
the nodes they give `E n` and `E n**2` of every subtree. The variance of n is the sum of the
covariances of all pairs of leaves of the subtree, so the subtrees of level k give all pairs whose
lowest common ancestor is at level k or below.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit

from uturn.core.threads import over_blocks
from uturn.exact.rhm import RandomHierarchyModel


def covariances_within_subtrees(
    rhm: RandomHierarchyModel,
    log_evidence: np.ndarray,
    truth: np.ndarray,
    marginals: Mapping[int, np.ndarray],
) -> np.ndarray:
    """Sum of the covariances of the changes of all ordered pairs of leaves in the same subtree.

    The covariances are those of the posterior of a noisy string, averaged over the noisy strings of
    an original. The variance of `E n` between these noisy strings is added, if there are several.

    Parameters
    ----------
    log_evidence : array (originals * draws, leaves, symbols)
        Of the noisy strings, those of one original after each other.
    truth : array (originals, leaves)
        The originals.
    marginals : {tree level: array (originals * draws, nodes, symbols)}
        Posterior of every node, as `uturn.infer` gives it.

    Returns
    -------
    array (originals, tree levels)
    """
    num_originals = len(truth)
    covariances = []
    repeated = np.repeat(truth, len(log_evidence) // num_originals, axis=0)
    moments = _moments_of_leaves(log_evidence, repeated)
    for k in range(rhm.depth + 1):
        if k > 0:
            shape = rhm.rules[k].shape[:2]
            weight = np.broadcast_to(rhm.rule_probabilities[k], shape).astype(float)
            moments = _moments_of_parents(moments, np.ascontiguousarray(rhm.rules[k]), weight)
        mean, square = (
            moment.reshape(num_originals, -1, moment.shape[1])
            for moment in _averaged(moments, marginals[k])
        )
        within = (square - mean**2).mean(axis=1)
        if mean.shape[1] > 1:
            within += mean.var(axis=1, ddof=1)  # between noisy strings
        covariances.append(within.sum(axis=1))
    return np.stack(covariances, axis=1)


@njit(nogil=True, cache=True)
def _moments_of_leaves(log_evidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
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


def _moments_of_parents(children: np.ndarray, rules: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Moments of the parents, (batch, nodes, symbols, 3), from those of their children."""
    batch, nodes = children.shape[:2]
    _, count, s = rules.shape
    above = np.empty((batch, nodes // s, len(rules), 3))
    over_blocks(
        batch,
        lambda i, j: _combine_children(children[i:j], rules, weight, above[i:j]),
        numbers=nodes * len(rules) * count,
    )
    return above


@njit(nogil=True, cache=True)
def _combine_children(
    children: np.ndarray, rules: np.ndarray, weight: np.ndarray, above: np.ndarray
) -> None:
    """Write the moments of the parents of a block, normalised to 1 a node, into `above`."""
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
def _averaged(moments: np.ndarray, beliefs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
