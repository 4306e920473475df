"""Exact inference by enumeration of every tree of a small grammar: the reference for belief
propagation.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.stats import chisquare


def all_trees(rhm):
    """Every tree the grammar can produce: {tree_level: (trees, nodes)} and the log-probabilities
    (trees,).
    """
    with np.errstate(divide="ignore"):
        log_laws = {level: np.log(p) for level, p in rhm.rule_probabilities.items()}
        trees = [
            ({rhm.depth: (y,)}, float(np.log(p))) for y, p in enumerate(rhm.class_probabilities)
        ]
    for level in range(rhm.depth, 0, -1):
        rules, log_p = rhm.rules[level].tolist(), log_laws[level]
        grown = []
        for tree, weight in trees:
            for choice in product(*(range(len(rules[y])) for y in tree[level])):
                children = tuple(
                    x for y, k in zip(tree[level], choice, strict=True) for x in rules[y][k]
                )
                extra = sum(log_p[y, k] for y, k in zip(tree[level], choice, strict=True))
                grown.append(({**tree, level - 1: children}, weight + extra))
        trees = grown
    nodes = {level: np.array([tree[level] for tree, _ in trees]) for level in range(rhm.depth + 1)}
    return nodes, np.array([weight for _, weight in trees])


def tree_posterior(rhm, log_evidence):
    """Posterior of every tree given one sample's log-evidence (leaves, v), as (nodes,
    probabilities, log total).
    """
    nodes, weight = all_trees(rhm)
    leaves = nodes[0]
    weight = weight + log_evidence[np.arange(leaves.shape[1]), leaves].sum(1)
    top = weight.max()
    total = top + np.log(np.exp(weight - top).sum())
    return nodes, np.exp(weight - total), total


def marginals(rhm, log_evidence):
    """{tree_level: (nodes, symbols)} and the log-evidence of one sample."""
    nodes, p, total = tree_posterior(rhm, log_evidence)
    return {
        level: np.stack(
            [np.bincount(column, p, minlength=rhm.num_symbols(level)) for column in table.T]
        )
        for level, table in nodes.items()
    }, total


def joint_entropy(rhm, log_evidence=None):
    """{tree_level: joint entropy in nats of all nodes of the level}, of the posterior or (None)
    of the prior.
    """
    if log_evidence is None:
        nodes, weight = all_trees(rhm)
        p = np.exp(weight)
    else:
        nodes, p, _ = tree_posterior(rhm, log_evidence)
    entropy = {}
    for level, table in nodes.items():
        _, which = np.unique(table, axis=0, return_inverse=True)
        q = np.bincount(which.ravel(), p)
        q = q[q > 0]
        entropy[level] = float(-(q * np.log(q)).sum())
    return entropy


def drawn_as(strings, law):
    """p-value of the chi-square of strings (count, length) against a law {string: probability};
    0 for an impossible string.
    """
    expected = {string: q * len(strings) for string, q in law.items()}
    counts = dict.fromkeys(law, 0)
    for string in map(tuple, strings.tolist()):
        if string not in counts:
            return 0.0
        counts[string] += 1
    common = [string for string, number in expected.items() if number > 5]
    observed = np.array(
        [*(counts[x] for x in common), len(strings) - sum(counts[x] for x in common)]
    )
    wanted = np.array(
        [*(expected[x] for x in common), max(len(strings) - sum(expected[x] for x in common), 1e-3)]
    )
    return chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
