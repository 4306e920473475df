"""Arrays of readings that were made elsewhere: their checks, their dims, and one dataset of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import LARGEST, checked_array, expect
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Coordinate
from uturn.studies.long_form import AXES, NEAR, Labels

_SHAPE = "(noise, item[, trajectory[, clone]][, levels])"
_LARGEST = float(np.finfo(np.float32).max)
_STEPS = 2**7
"""Steps of single precision. Readings that vary over fewer steps get a warning."""
_CONSTANT = 1e-12
"""Relative variation up to which readings count as equal."""


def labelled(
    name: str, values: ArrayLike | xr.DataArray, dims: Sequence[str] | None
) -> xr.DataArray:
    """A reading as DataArray (noise, item[, trajectory[, clone]][, levels]), in its own
    precision, or a ValueError.
    """
    array = values if isinstance(values, xr.DataArray) else _with_dims(name, values, dims)
    expect({"noise", "item"} <= set(array.dims), f"{name}: dims", array.dims, _SHAPE)
    expect(array.size, f"{name}: shape", array.shape, "at least one value along each dim")
    is_number = array.dtype.kind in "biuf"
    expect(is_number, f"{name}: dtype", array.dtype, "numbers, with NaN where one is missing")
    if "clone" in array.dims and "trajectory" not in array.dims:
        array = array.expand_dims("trajectory")
    wrong = ""
    if (abs(array) > _LARGEST).any():
        wrong = f"readings beyond {_LARGEST:.1e}, the largest stored"
        if np.isinf(array).any():
            wrong = "infinite readings"
    elif array.isnull().all():
        wrong = "no reading: all are NaN"
    if wrong:
        raise ValueError(f"{name} has {wrong}; expected numbers, with NaN where one is missing")
    others = [key for key, coordinate in array.coords.items() if coordinate.ndim != 1]
    return array.drop_vars(others).transpose(*AXES, ..., missing_dims="ignore")


def _with_dims(name: str, values: ArrayLike, dims: Sequence[str] | None) -> xr.DataArray:
    """A plain array with its dims, by default `AXES` and then one of levels."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "biuf":
        array = np.ma.filled(values.astype(float), np.nan)
    else:
        array = checked_array(name, values)
    axes = tuple(dims or (*AXES, "level")[: array.ndim])
    expect(len(axes) == array.ndim, f"{name}: shape", array.shape, _SHAPE)
    return xr.DataArray(array, dims=axes)


def is_rounded(values: xr.DataArray) -> bool:
    """Whether a reading varies, but over so few steps of single precision that rounding changes
    its curve.
    """
    low = float(values.min())
    high = float(values.max())
    largest = max(abs(low), abs(high))
    return bool(_CONSTANT * largest < high - low < _STEPS * np.spacing(np.float32(largest)))


def is_twin(name: str, arrays: Mapping[str, xr.DataArray]) -> bool:
    """Whether an array is the twin of a reading: of its clones, or of the original."""
    of_clones = name.startswith("clone_") and name.removeprefix("clone_") in arrays
    return of_clones or _is_of_originals(name, arrays)


def _is_of_originals(name: str, arrays: Mapping[str, xr.DataArray]) -> bool:
    """Whether an array holds the values h(x_0; y) of a reading that clones have, too."""
    reading = arrays.get(name.removeprefix("original_"))
    return name.startswith("original_") and reading is not None and "clone" in reading.dims


def of_originals(
    name: str, array: xr.DataArray, arrays: Mapping[str, xr.DataArray]
) -> xr.DataArray:
    """The array; readings of originals with one for each trajectory. A table repeats them for
    each clone.
    """
    if not _is_of_originals(name, arrays):
        return array
    reading = name.removeprefix("original_")
    if "clone" in array.dims:
        if not ((array == array.isel(clone=0)) | array.isnull()).all():
            raise ValueError(
                f"{name} differs between clones of a noisy datum; expected one reading of the"
                " original for all"
            )
        array = array.max("clone")
    if "trajectory" not in array.dims:
        array = array.expand_dims(trajectory=arrays[reading].sizes["trajectory"])
    dims = tuple(dim for dim in arrays[reading].dims if dim != "clone")
    is_same = set(array.dims) == set(dims)
    expect(is_same, f"dims of {name}", array.dims, f"{dims}, those of {reading}")
    return array.transpose(*dims)


# --- one dataset ----------------------------------------------------------------------------------


def joined(
    arrays: Mapping[str, xr.DataArray],
    noise: ArrayLike | None,
    coords: Mapping[str, ArrayLike | Labels],
) -> xr.Dataset:
    """Arrays, noise levels and coordinates in one dataset; ValueError if their sizes or labels
    differ.
    """
    for array in arrays.values():
        if noise is None and "noise" in array.coords:
            noise = array.noise.values
    levels = _checked_levels(noise)
    labels = _checked_labels(arrays, coords)
    parts = []
    for name, array in arrays.items():
        own = array.noise.values if "noise" in array.coords else levels
        is_near = len(own) == len(levels) and np.allclose(own, levels, rtol=NEAR, atol=0)
        expected = f"{shown(levels.tolist())}, as given, or as that of another reading"
        expect(is_near, f"{name}: noise", own.tolist(), expected)
        parts.append(array.drop_vars("noise", errors="ignore").rename(name))
    try:
        run = xr.merge(
            [*parts, {"noise": levels}], join="exact", compat="equals", combine_attrs="drop"
        )
        return run.drop_vars(AXES[2:], errors="ignore").assign_coords(labels)
    except ValueError as error:
        words = one_line(error, 400).partition(" You can skip")[0]
        raise ValueError(f"values: their sizes or labels differ: {words}") from None


def _checked_levels(noise: ArrayLike | None) -> np.ndarray:
    """Noise levels as float64, increasing from 0 or more, or a ValueError."""
    levels = checked_array("noise", [] if noise is None else noise)
    is_list = levels.ndim == 1 and len(levels) and levels.dtype.kind in "iuf"
    expect(is_list, "noise", noise, "a list of increasing numbers, 0 or more")
    levels = levels.astype(float)
    are_levels = ((levels >= 0) & ((levels < LARGEST) | np.isinf(levels))).all()
    increases = (np.diff(levels) > NEAR * levels[:-1]).all()
    expect(are_levels and increases, "noise", levels.tolist(), "increasing numbers, 0 or more")
    return levels


def _checked_labels(
    arrays: Mapping[str, xr.DataArray], coords: Mapping[str, ArrayLike | Labels]
) -> dict[str, tuple[str, np.ndarray]]:
    """Coordinates as (dim, values), or a ValueError. The name of a coordinate may be its dim."""
    dims = {dim for array in arrays.values() for dim in array.dims}
    labels = {}
    for name, entry in coords.items():
        dim = name
        values = entry
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            dim, values = entry
        array = checked_array(f"coords {name}", values)
        is_taken = name in ("noise", *AXES[2:], *arrays)
        is_list = array.ndim == 1 and array.dtype.kind in "biufUTO" and not is_taken
        expected = "a list of numbers or texts, with a name of its own"
        expect(is_list, f"coords: {name}", values, expected)
        if dim not in dims or (name in dims and name != dim):
            raise ValueError(
                f"coords: {name} has {len(array)} values along {dim}, which is not a dim of a"
                " reading; give ('noise', values) or ('item', values), or name the axis of levels"
                " in dims"
            )
        labels[name] = (dim, array)
    return labels


def coordinates_of(run: xr.Dataset, sizes: Mapping[str, int]) -> dict[str, Coordinate]:
    """All coordinates of a run; its dims are numbered where they have no labels."""
    coordinates = {dim: Coordinate((dim,), np.arange(size)) for dim, size in sizes.items()}
    for name, labels in run.drop_vars("item", errors="ignore").coords.items():
        values = labels.values.astype(str) if labels.dtype.kind in "UTO" else labels.values
        attributes = labels.attrs if name == "noise" else {}
        coordinates[str(name)] = Coordinate(tuple(map(str, labels.dims)), values, attributes)
    if "item" not in run.coords:
        return coordinates
    items = run.item.values
    different = len(np.unique(items))
    expected = (
        f"{len(items)}, one for each original; several U-turns of an original go along trajectory"
    )
    expect(different == len(items), "coords: different names in item", different, expected)
    if _are_integers(items):
        coordinates["item"] = Coordinate(("item",), items.astype(np.int64))
    else:
        coordinates["item_name"] = Coordinate(("item",), items.astype(str))
    return coordinates


def _are_integers(values: np.ndarray) -> bool:
    """Whether numbers are integers that int64 holds."""
    if values.dtype.kind not in "iuf" or (values != np.floor(values)).any():
        return False
    return bool((np.abs(values.astype(float)) < 2.0**63).all())
