"""Comparison of originals, reconstructions and the clones of a noisy datum, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_array, expect

if TYPE_CHECKING:
    import torch
    from xarray import DataArray

A = TypeVar("A", np.ndarray, "torch.Tensor")
Comparer = Callable[[np.ndarray, np.ndarray], ArrayLike]
"""f(x, y) of two batches of data, pair by pair."""

_AXES = ("noise", "item", "trajectory", "clone")


def over_other_clones(clones: int, compare: Callable[[int, int], ArrayLike]) -> list[np.ndarray]:
    """Mean of `compare(j, k)` over the other clones k, for each clone j: one float64 array each.

    `compare` is symmetric in the numbers of the two clones, so each pair is compared once.
    """
    sums: list[np.ndarray] = [np.zeros(())] * clones
    for j, k in combinations(range(clones), 2):
        values = np.asarray(compare(j, k), float)
        sums[j] = sums[j] + values
        sums[k] = sums[k] + values
    return [total / (clones - 1) for total in sums]


def between_clones(values: A, clones: int, f: Callable[[A, A], ArrayLike]) -> np.ndarray:
    """f between each clone and the other clones of the same noisy datum, averaged over the others:
    float64 (items, draws, ...).

    `values` (items, draws, ...): reconstructions, or functions of them, an array or a tensor. The K
    clones of a noisy datum are next to each other. `f`: (n, ...), (n, ...) -> (n, ...), symmetric
    in its two arguments.
    """
    items, draws = values.shape[:2]
    groups = values.reshape(-1, clones, *values.shape[2:])
    means = over_other_clones(clones, lambda j, k: f(groups[:, j], groups[:, k]))
    table = np.stack(means, axis=1)
    return table.reshape(items, draws, *table.shape[2:])


def readings_of(
    originals: ArrayLike, reconstructions: ArrayLike, f: Comparer, name: str | None = None
) -> dict[str, DataArray]:
    """A reading f of originals and reconstructions made elsewhere, and its twin for calibration, to
    be given to `uturn.readings`.

    `originals`: array (item, ...), the data x_0. `reconstructions`: array (noise, item[,
    trajectory[, clone]], ...), the data x̂, each of the shape of an original; NaN where one is
    missing. `f`: (n, ...), (n, ...) -> (n,) or (n, levels) compares data pairwise; it is given
    integers as float64, and is symmetric if there are clones. `name`: of the reading, by default
    the name of the function. Returns DataArrays by name, float64 `(noise, item[, trajectory[,
    clone]][, levels])`, NaN where one is missing: `name`, f(x_0, x̂), and with two or more clones
    `clone_<name>`, the mean of f(x̂, x̂') over the other clones x̂' of the same noisy datum.
    """
    import xarray as xr

    before = checked_array("originals", originals)
    after = checked_array("reconstructions", reconstructions)
    num_axes = _checked_axes(before, after)
    clones = after.shape[3] if num_axes == 4 else 1
    name = name or str(getattr(f, "__name__", "f"))

    def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _compared(f, a, b)

    before = as_real(before)
    with_original: list[np.ndarray] = []
    with_clones: list[np.ndarray] = []
    for at_level in after:
        draws = as_real(at_level).reshape(len(before), -1, *before.shape[1:])
        columns = [compare(before, draws[:, k]) for k in range(draws.shape[1])]
        shape = (*at_level.shape[: num_axes - 1], *columns[0].shape[1:])
        with_original.append(np.stack(columns, axis=1).reshape(shape))
        if clones > 1:
            _check_symmetric(name, columns[0], compare(draws[:, 0], before))
            with_clones.append(between_clones(draws, clones, compare).reshape(shape))
    levels = with_original[0].ndim + 1 - num_axes
    expect(levels < 2, "axes of f for each pair", levels, "none, or one of levels")
    dims = _AXES[:num_axes]
    if levels:
        dims = (*dims, f"{name}_level")
    readings = {name: xr.DataArray(np.stack(with_original), dims=dims)}
    if clones > 1:
        readings[f"clone_{name}"] = xr.DataArray(np.stack(with_clones), dims=dims)
    return readings


def _checked_axes(originals: np.ndarray, reconstructions: np.ndarray) -> int:
    """Number of the axes (noise, item[, trajectory[, clone]]) of reconstructions; ValueError
    unless these are data of the same items and shape as the originals.
    """
    num_axes = reconstructions.ndim - originals.ndim + 1
    data = originals.shape[1:]
    fits = (
        originals.ndim > 0
        and 2 <= num_axes <= len(_AXES)
        and reconstructions.shape[1] == len(originals)
        and reconstructions.shape[num_axes:] == data
    )
    expect(
        fits and reconstructions.size,
        "shapes of reconstructions and originals",
        (reconstructions.shape, originals.shape),
        "(noise, item[, trajectory[, clone]], ..) and (item, ..), with the same items and data of"
        " one shape",
    )
    return num_axes


def _compared(f: Comparer, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f of pairs, float64 (n, ..); NaN where a datum is missing."""
    values = np.asarray(f(a, b), float)
    expect(
        values.shape[:1] == a.shape[:1],
        f"shape of f for {len(a)} pairs",
        values.shape,
        f"({len(a)},) or ({len(a)}, levels)",
    )
    missing = _is_missing(a) | _is_missing(b)
    return np.where(missing.reshape(-1, *[1] * (values.ndim - 1)), np.nan, values)


def _is_missing(data: np.ndarray) -> np.ndarray:
    """Which data have NaN, bool (n,)."""
    if data.dtype.kind != "f":
        return np.zeros(len(data), bool)
    components = data.reshape(len(data), -1)
    return np.asarray(np.isnan(components).any(axis=1))


def _check_symmetric(name: str, values: np.ndarray, swapped: np.ndarray) -> None:
    """ValueError unless f gives nearly the same values for swapped data."""
    expect(
        np.allclose(swapped, values, rtol=1e-3, atol=1e-6, equal_nan=True),
        "f",
        name,
        "a symmetric one, to compare clones; f(a, b) differs from f(b, a)",
    )


def as_real(data: np.ndarray) -> np.ndarray:
    """Integers as float64, and other data unchanged."""
    return data.astype(float) if data.dtype.kind in "iu" else data
