"""The small grammar and the string of figs. 3, 4 and 9, and conversion of trees to labelled data and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys
from uturn.exact.rhm import Draw, RandomHierarchyModel

# Chosen by eye: one branch of the tree changes in the U-turn, and one hidden leaf is recovered from its context.
GRAMMAR = {"vocab_size": 6, "multiplicity": 2, "branching": 2, "depth": 3, "seed": 6}
SEED = 15


def small_grammar() -> RandomHierarchyModel:
    """Six symbols, two rules each, a tree of depth 3: 768 strings, few enough to enumerate."""
    return RandomHierarchyModel(**GRAMMAR)


def small_string(rhm: RandomHierarchyModel) -> tuple[Draw, np.ndarray]:
    """The string of the pictures, and the key of the random numbers of its U-turn."""
    key = keys(SEED, Purpose.PICTURE, [0])
    return rhm.sample(1, key), key


def node_coordinates(rhm: RandomHierarchyModel, levels: int | None = None) -> dict[str, Any]:
    """Coordinates of the dimension `node`: the nodes of all levels of a tree, or of the lowest ones, leaves first."""
    sizes = [rhm.num_nodes(level) for level in range(levels or rhm.depth + 1)]
    return {
        "tree_level": ("node", np.repeat(np.arange(len(sizes)), sizes)),
        "position": ("node", np.concatenate([np.arange(size) for size in sizes])),
    }


def nodes(values: dict[int, Any]) -> np.ndarray:
    """One sample of {tree_level: (1, nodes, ...)} along the dimension `node`."""
    return np.concatenate([np.asarray(values[level])[0] for level in sorted(values)])


def by_level(values: xr.DataArray) -> dict[int, np.ndarray]:
    """The inverse of `nodes`: {tree_level: (nodes, ...)}."""
    levels = values.tree_level.values
    return {int(level): values.values[levels == level] for level in np.unique(levels)}
