"""Comparison of originals, reconstructions and the clones of a noisy datum, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from uturn.core.checks import checked_array, expect


def between_clones(values: Any, clones: int, f: Callable[[Any, Any], Any]) -> np.ndarray:
    """f between each clone and the other clones of the same noisy datum, averaged over the others:
    float64 (items, draws, ...).

    `values` (items, draws, ...): reconstructions, or functions of them; the K clones of a noisy
    datum are next to each other. `f`: (n, ...), (n, ...) -> (n, ...), symmetric in its two
    arguments.
    """
    items, draws = values.shape[:2]
    groups = values.reshape(-1, clones, *values.shape[2:])
    sums: list[Any] = [0] * clones
    for j in range(clones):
        for k in range(j + 1, clones):
            value = np.asarray(f(groups[:, j], groups[:, k]), float)
            sums[j], sums[k] = sums[j] + value, sums[k] + value
    means = np.stack(sums, axis=1) / (clones - 1)
    return means.reshape(items, draws, *means.shape[2:])


def readings_of(
    originals: Any, reconstructions: Any, f: Callable[[Any, Any], Any], name: str | None = None
) -> dict[str, Any]:
    """A reading f of originals and reconstructions made elsewhere, and its twin for calibration, to
    be given to `uturn.readings`.

    `originals`: array (item, ...), the data x_0. `reconstructions`: array (noise, item[,
    trajectory[, clone]], ...), the data x̂, each of the shape of an original; NaN where one is
    missing. `f`: (n, ...), (n, ...) -> (n,) or (n, levels) compares data pairwise; it is given
    integers as float64, and is symmetric if there are clones. `name`: of the reading, by default
    that of the function. Returns DataArrays by name, float64 `(noise, item[, trajectory[, clone]][,
    levels])`, NaN where one is missing: `name`, f(x_0, x̂), and with two or more clones
    `clone_<name>`, the mean of f(x̂, x̂') over the other clones x̂' of the same noisy datum.
    """
    import xarray as xr

    before, after = (
        checked_array("originals", originals),
        checked_array("reconstructions", reconstructions),
    )
    draws = after.ndim - before.ndim - 1
    axes = ("noise", "item", "trajectory", "clone")[: draws + 2]
    data = before.shape[1:]
    fits = (
        before.ndim
        and 0 <= draws <= 2
        and after.shape[1] == len(before)
        and after.shape[after.ndim - len(data) :] == data
    )
    where, dims = (
        "shapes of reconstructions and originals",
        "(noise, item[, trajectory[, clone]], ..) and (item, ..)",
    )
    expect(
        fits and after.size,
        where,
        (after.shape, before.shape),
        f"{dims}, with the same items and data of one shape",
    )
    name = name or str(getattr(f, "__name__", "f"))
    clones = after.shape[3] if draws == 2 else 1

    def compared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """f of pairs; NaN where a datum is missing."""
        value = np.asarray(f(a, b), float)
        fits, of_pairs = value.shape[:1] == a.shape[:1], f"({len(a)},) or ({len(a)}, levels)"
        expect(fits, f"shape of f for {len(a)} pairs", value.shape, of_pairs)
        gone = (
            np.isnan(a) | np.isnan(b)
            if a.dtype.kind == "f" or b.dtype.kind == "f"
            else np.zeros(a.shape, bool)
        )
        return np.where(
            gone.reshape(len(a), -1).any(1).reshape(-1, *[1] * (value.ndim - 1)), np.nan, value
        )

    before = as_real(before)
    with_original, with_clones = [], []
    for turned in after:
        flat = as_real(turned).reshape(len(before), -1, *data)  # (item, draws, ...)
        of_each = [compared(before, flat[:, k]) for k in range(flat.shape[1])]
        with_original.append(
            np.stack(of_each, 1).reshape(*turned.shape[: draws + 1], *of_each[0].shape[1:])
        )
        if clones > 1:
            same = np.allclose(
                compared(flat[:, 0], before), of_each[0], rtol=1e-3, atol=1e-6, equal_nan=True
            )
            expect(
                same, "f", name, "a symmetric one, to compare clones; f(a, b) differs from f(b, a)"
            )
            with_clones.append(
                between_clones(flat, clones, compared).reshape(with_original[-1].shape)
            )
    levels = np.ndim(with_original[0]) + 1 - len(axes)
    expect(levels < 2, "axes of f for each pair", levels, "none, or one of levels")
    named, tables = (
        (*axes, f"{name}_level")[: len(axes) + levels],
        {
            name: with_original,
            f"clone_{name}": with_clones,
        },
    )
    return {
        key: xr.DataArray(np.stack(table), dims=named) for key, table in tables.items() if table
    }


def as_real(data: np.ndarray) -> np.ndarray:
    """Integers as float64, and other data unchanged."""
    return data.astype(float) if data.dtype.kind in "iu" else data
