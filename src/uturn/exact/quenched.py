"""Downward messages of belief propagation with the rules kept as they are drawn."""

from __future__ import annotations

import numpy as np

from uturn.core.random import Purpose, keys, uniforms
from uturn.exact.rhm import RandomHierarchyModel
from uturn.exact.theory import MeanField


def quenched_downward(
    vocab_size: int,
    multiplicity: int,
    branching: int,
    depth: int,
    noise: tuple[float, ...],
    grammars: int,
    paths: int = 8,
) -> np.ndarray:
    """Downward belief in the true symbol with the rules kept, only the siblings' messages in mean
    field: mean over the paths of each grammar, (grammars, noise, tree_level).

    The annealed map (Eq. 53) replaces the number K of rules that compete with the true one by its
    mean, but the mean of 1/(1+K) is larger than 1/(1 + mean K). Here random rules are drawn along
    paths from the root to a leaf, and Eq. 8 is applied to them with siblings that send the
    mean-field upward message. At ε = 0 this is exact, up to the number of paths.
    """
    v = vocab_size
    m = multiplicity
    s = branching
    L = depth
    up = MeanField(v, m, s).curves(np.array(noise), L).upward
    result = np.zeros((grammars, len(noise), L + 1))
    result[..., L] = 1 / v
    symbols = np.eye(v)
    for g, seed in enumerate(keys(0, Purpose.PICTURE, np.arange(grammars)).tolist()):
        rhm = RandomHierarchyModel(v, m, s, L, seed=seed)
        u = uniforms(keys(seed, Purpose.PICTURE, np.arange(paths)), 2 * L + 1)
        for path in range(paths):
            symbol = int(u[path, 0] * v)
            message = np.full((len(noise), v), 1 / v)
            for level in range(L, 0, -1):
                rules = rhm.rules[level].reshape(-1, s)
                true = rules[symbol * m + int(u[path, 2 * level - 1] * m)]
                child = int(u[path, 2 * level] * s)
                right = up[:, level - 1, None]
                weight = np.repeat(message, m, axis=1)
                for sibling in range(s):
                    if sibling != child:
                        weight *= np.where(
                            rules[:, sibling] == true[sibling], right, (1 - right) / (v - 1)
                        )
                message = weight @ symbols[rules[:, child]]
                message /= message.sum(axis=1, keepdims=True)
                symbol = int(true[child])
                result[g, :, level - 1] += message[:, symbol] / paths
    return result
