"""Exact prior and posterior entropies of the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.exact.inference.beliefs import entropy_of
from uturn.exact.inference.checks import check_model

if TYPE_CHECKING:
    from uturn.exact.rhm import RandomHierarchyModel


def prior_entropy(rhm: RandomHierarchyModel) -> dict[int, float]:
    """Joint entropy of all nodes of each tree level without any observation, {tree_level: nats}.

    `H(X_L)` is the entropy of the class. Every level below adds, for each node, the entropy of its rule averaged over its
    symbol, because the string of a level has one parse and determines all levels above. With uniform probabilities
    `H(X_0) = log n + (s**L - 1)/(s - 1) * log m`.
    """
    check_model(rhm)
    L = rhm.depth
    entropy = {L: float(entropy_of(rhm.class_probabilities))}
    counts = rhm.class_probabilities  # expected number of nodes of the level with each symbol
    for level in range(L, 0, -1):
        p, table = rhm.rule_probabilities[level], rhm.rules[level]
        entropy[level - 1] = entropy[level] + float(counts @ entropy_of(p))
        used = counts[:, None] * p
        counts = np.zeros(rhm.vocab_size)
        np.add.at(counts, table, used[:, :, None])
    return {level: entropy[level] for level in range(L + 1)}


def posterior_entropy(rhm: RandomHierarchyModel, log_evidence: Any) -> dict[int, np.ndarray]:
    """Joint entropy of all nodes of each tree level given the observation, {tree_level: (batch,)} in nats.

    `H(X_L | obs)` is the entropy of the root marginal, and `H(X_{l-1} | obs) = H(X_l | obs) + sum over nodes of sum_y marginal[y]
    * H(rule | y, obs)`, with `p(rule | y, obs) ~ p(rule) prod_i up_i[x_i]`, because the string of a level has one parse and
    determines all levels above. Messages are float64 for every type of evidence. The error is absolute, about 1e-15 nats a node.

    Raises
    ------
    ValueError
        As in `infer`.
    """
    from uturn.exact.inference.checks import floating_array
    from uturn.exact.inference.numba_backend import entropy_numba

    return entropy_numba(rhm, floating_array(rhm, log_evidence))


def mutual_information(rhm: RandomHierarchyModel, log_evidence: Any) -> dict[int, np.ndarray]:
    """Information of each observation about all nodes of a tree level, {tree_level: (batch,)} in nats.

    The value is `H(X_l) - H(X_l | obs)`. Its mean over noisy strings of the grammar is the mutual information
    I(X_l; observation); the value of a single sample can be negative.
    """
    before = prior_entropy(rhm)
    return {level: before[level] - after for level, after in posterior_entropy(rhm, log_evidence).items()}
