"""Comparison of the clones of a noisy datum with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def between_clones(values: Any, clones: int, f: Callable[[Any, Any], Any]) -> np.ndarray:
    """f between each clone and the other clones of the same noisy datum, averaged over the others.

    Parameters
    ----------
    values : array (items, draws, ...)
        Reconstructions, or functions of them; the K clones of a noisy datum are next to each other.
    clones : int K >= 2
    f : (array (n, ...), array (n, ...)) -> array (n, ...)
        Symmetric in its two arguments.

    Returns
    -------
    float64 array (items, draws, ...)
        Entry of clone k: `sum_{j != k} f(x_k, x_j) / (K - 1)`.
    """
    if clones < 2:
        raise ValueError(f"clones = {clones}: expected at least 2, to be compared with each other")
    items, draws = values.shape[:2]
    groups = values.reshape(-1, clones, *values.shape[2:])
    sums: list[Any] = [0] * clones
    for j in range(clones):
        for k in range(j + 1, clones):
            value = np.asarray(f(groups[:, j], groups[:, k]), float)
            sums[j], sums[k] = sums[j] + value, sums[k] + value
    means = np.stack(sums, axis=1) / (clones - 1)
    return means.reshape(items, draws, *means.shape[2:])
