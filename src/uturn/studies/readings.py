"""Readings of U-turns that were made elsewhere, in the form in which `uturn.run` gives those of
its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import xarray as xr

from uturn.core import random
from uturn.core.checks import LARGEST, checked_array, expect, plain
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Coordinate, Variable
from uturn.core.registry import READINGS
from uturn.measures.changes import covariances_of
from uturn.store.folders import checked_location, is_empty
from uturn.store.resume import versions_used
from uturn.store.run_folder import RunFolder, fill, write_run
from uturn.studies.long_form import AXES, COLUMNS, NEAR, arrays_of, read_long_form
from uturn.studies.runs import is_kept_if_large, named_in

_CHUNK = 1024  # items of a chunk of a store
_LONGEST = 200  # bytes of a name; file systems take 255, with what zarr adds while it writes
_LARGEST = float(np.finfo(np.float32).max)
# Of single precision over which readings have to vary, or else it is said that they are rounded.
_STEPS = 2**7
_CONSTANT = 1e-12  # relative variation up to which readings count as equal
_OF_VARIABLES = ("start", "chance", "bounds", "units", "group", "order", "family", "long_name")


def readings(
    values: Any,
    noise: Any = None,
    *,
    unit: str = "noise",
    start: Any = None,
    chance: Any = None,
    bounds: Any = None,
    coords: Any = None,
    changes: Any = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    units: Any = None,
    group: Any = None,
    order: Any = None,
    family: Any = None,
    long_name: Any = None,
    max_noise: float | None = None,
    description: str = "",
    source: str = "",
    store: str | Path | None = None,
) -> xr.Dataset:
    """Readings of U-turns made elsewhere as a run: the dataset that `uturn.run` gives for U-turns
    of its own.

    A reading is a number for each U-turn: the Cα-RMSD of a protein after partial diffusion, or
    whether an image keeps its class.

    Parameters
    ----------
    values : dict of arrays, xarray Dataset, or pandas DataFrame
        Arrays or nested lists of numbers by name, `(noise, item[, trajectory[, clone]][, levels])`:
        `item` counts originals, `trajectory` independent noisy data of an original, `clone`
        independent reconstructions of one noisy datum, and levels are those of the reading, such as
        layers of a network, whose axis is named in `dims`. NaN where a reading is missing. A
        DataArray has dims of these names, in any order; the labels of a dim must be those of the
        other readings, in their order. A DataFrame has a row for each U-turn, with the columns
        noise, item, perhaps trajectory and clone, and a column for each reading. The reading
        `clone_NAME` is the twin of NAME, clone k compared with the other clones
        (`uturn.readings_of` computes both); `original_NAME` makes NAME a function h(x̂; y) of one
        reconstruction and the noisy datum, with h(x_0; y) for the original, without the dim clone.
        NAME is then tested for calibration (`uturn.calibration`, `uturn.ranks`).
    noise : array (noise,), optional
        Noise levels, increasing from 0 or more. Not needed for a DataFrame, or DataArrays with this
        coordinate.
    unit, max_noise : str, float
        What the noise is: the label of its axis; its largest possible value, such as 1 for a
        strength.
    start, chance : number or str, or a dict of these by reading
        Value of a reading without changes, and of independent data, as in
        `uturn.protocols.Variable`. Without a start, no place is located on the curve;
        docs/made-elsewhere.md has the defaults.
    bounds : (low, high), or a dict of these by reading
        Smallest and largest possible value, None for no bound. By default (0, 1) for readings in
        [0, 1], (0, None) for other readings that start at 0 and are never below.
    coords : dict of arrays, or for a DataFrame a list of columns
        Further labels by name, as (dim, values): {"log_snr": ("noise", ..), "label": ("item", ..)}.
        The values alone suffice for the labels of a dim, the names of originals or of levels:
        {"item": names, "layer": ["stem", "logits"]}. A column of a DataFrame must be constant for
        each item or noise. `log_snr` makes the axes sigma and abar, too.
    changes : dict of arrays (noise, item, trajectory, site), optional
        Changes of sites on a line, by the name of a site: {"residue": ..}, for the susceptibility
        and the correlation length. NaN where a U-turn is missing, and beyond the end of shorter
        items. The unit of distance is `units`, or else the plural.
    dims : dict of tuples of str, optional
        Dims of plain arrays, by reading, if they are not (noise, item[, trajectory[, clone]]):
        {"kept": ("noise", "item", "layer")}.
    units, group, order, family, long_name : str, or a dict of these by reading
        Unit of the values; panel of the figure ("class" for readings whose half-life is t*, by
        default those called same_..); dim of levels whose first and last may swap order; family of
        calibration tests; description.
    description, source : str
        What made the U-turns, and where they come from, for titles.
    store : path or URL, optional
        Where to store the readings as `uturn.run` stores its own, for all commands. A store of
        readings there is replaced.

    Returns
    -------
    Dataset
        The readings, float32, with reading instructions in their attributes; coordinates noise,
        item, trajectory (and clone) and those of `coords`. Items with other names than integers are
        numbered, and `item_name` holds the names.

    Examples
    --------
    >>> import uturn as ut
    >>> noise = np.array([2, 4, 8, 16, 32])
    >>> rmsd = 10 * noise[:, None] / (noise[:, None] + np.array([8, 9, 10, 11, 12]))  # (noise, item)
    >>> run = ut.readings({"rmsd": rmsd}, noise, unit="added noise (Å)", start=0, chance=10)
    >>> ut.study(run).half_life.sel(reading="rmsd", axis="noise", estimate="value").item()
    10.48...
    """
    hints: list[str] = []
    if isinstance(values, pandas.DataFrame):
        if noise is not None or dims:
            raise ValueError(
                f"noise = {shown(noise)}: a table has the column noise; leave out noise and dims"
            )
        hints += values.attrs.get("warnings", [])
        chosen, (values, noise, coords) = coords, arrays_of(values, coords)
        hints += [
            f"{name} is the same in all rows of an item, so it is a coordinate and no reading"
            for name in coords
            if name not in ("item", *(chosen or ()))
        ]
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"values = {shown(values)}: expected a dict of arrays by name, or a DataFrame with"
            f" {COLUMNS}"
        )
    for key, table in (("coords", coords), ("changes", changes)):
        expect(isinstance(table or {}, Mapping), key, table, "a dict by name")
    coords, changes, dims = dict(coords or {}), dict(changes or {}), dict(dims or {})
    _check_names([*AXES, "tasks", *values])
    given = {name: _labelled(name, of, dims.get(name)) for name, of in values.items()}
    few_steps = (
        "varies by few of the steps of single precision, in which readings are stored: subtract an"
        " offset"
    )
    hints += [f"{name} {few_steps}" for name, of in given.items() if _is_rounded(of)]
    arrays = {name: of.astype(np.float32) for name, of in given.items()}
    arrays = {name: _of_originals(name, array, arrays) for name, array in arrays.items()}
    sites = {
        name: _labelled(name, of, (*AXES[:3], f"{name}_site")).astype(np.float32)
        for name, of in changes.items()
    }
    own = dict.fromkeys(
        str(dim) for array in arrays.values() for dim in array.dims if dim not in AXES
    )
    of_u_turns = {
        f"changes of {name}": of[..., 0].drop_vars(set(of.coords).difference(AXES))
        for name, of in sites.items()
    }
    joined = _joined(arrays | of_u_turns, noise, coords)
    levels, sizes = joined.noise.values, {"trajectory": 1, **joined.sizes}
    joined.noise.attrs = {"long_name": unit} | (
        {} if max_noise is None else {"max": float(max_noise)}
    )
    coordinates = _coordinates(
        joined, {dim: sizes[dim] for dim in (*AXES[1:], *own) if dim in sizes}
    )
    values_of = zip(
        _OF_VARIABLES, (start, chance, bounds, units, group, order, family, long_name), strict=True
    )
    options = {key: _by_name(key, value, arrays, sites) for key, value in values_of}
    settings_of = {
        name: {key: of[name] for key, of in options.items() if name in of}
        for name in (*arrays, *sites)
    }
    variables = {}
    for name, array in arrays.items():
        variables[name] = _variable(name, array, settings_of[name], levels, arrays)
        unknown = set(named_in(variables[name].start, variables[name].chance)).difference(
            coordinates, arrays
        )
        expect(
            not unknown,
            f"start and chance of {name}",
            sorted(unknown),
            "numbers, or names of readings and coordinates",
        )
    names = [*variables, *coordinates]
    for name, array in sites.items():
        of_sites, further, arrays_of_sites = _changes(
            name, array, settings_of[name].get("units", f"{name}s")
        )
        names += [*of_sites, *further]
        variables, coordinates, arrays = (
            variables | of_sites,
            coordinates | further,
            arrays | arrays_of_sites,
        )
    _check_names(names)
    part = {"type": READINGS}
    spec: dict[str, Any] = {
        "items": sizes["item"],
        "trajectories": sizes["trajectory"],
        "clones": sizes.get("clone", 1),
    }
    spec |= {
        "source": part | ({"path": source} if source else {}),
        "corruption": part,
        "backward": part,
        "probes": [part],
    }
    chunk = min(sizes["item"], _CHUNK)
    attributes = {
        "spec": spec,
        "identity": {**spec, "chunk": chunk, "corruption": {**part, "noise": levels.tolist()}},
        "models": {"readings": _digest(arrays)},
        "versions": versions_used(),
        "random_version": random.VERSION,
    }
    attributes |= {"description": description} if description else {}
    attributes |= {"warnings": hints} if hints else {}
    run = RunFolder.in_memory(variables, coordinates, attributes)
    fill(run, {name: arrays[name].values for name in variables})
    if store is not None:
        place = checked_location("store", store)
        if not is_empty(place) and not RunFolder.open(place).is_made_elsewhere:
            raise ValueError(
                f"store = {str(store)!r} holds a run of U-turns; choose another folder"
            )
        write_run(place, run)
    return run.dataset()


def read_readings(
    path: str | Path,
    *,
    coords: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """`readings` from a table in long form: a CSV file, separated by commas, semicolons or tabs, or
    a Parquet file (.parquet).

    `coords`: columns that are labels of items or further axes of noise. `columns`: other names of
    the columns noise, item, trajectory and clone, {"noise": "sigma", "item": "molecule"}. Empty
    cells are missing. `settings`: those of `readings`.
    """
    table = read_long_form(path, coords, columns or {})
    try:
        return readings(table, coords=list(coords), source=str(path), **settings)
    except ValueError as error:  # one of several tables
        raise ValueError(f"{path}: {one_line(error, 400)}") from None


# --- arrays ---------------------------------------------------------------------------------------


def _labelled(name: str, values: Any, dims: Sequence[str] | None) -> xr.DataArray:
    """A reading as DataArray (noise, item[, trajectory[, clone]][, levels]), in its own
    precision, or a ValueError.
    """
    if not isinstance(values, xr.DataArray):
        is_masked = np.ma.isMaskedArray(values) and values.dtype.kind in "biuf"
        array = (
            np.ma.filled(values.astype(float), np.nan) if is_masked else checked_array(name, values)
        )
        axes = tuple(dims or (*AXES, "level")[: array.ndim])
        expect(
            len(axes) == array.ndim,
            f"{name}: shape",
            array.shape,
            "(noise, item[, trajectory[, clone]][, levels])",
        )
        values = xr.DataArray(array, dims=axes)
    expect(
        {"noise", "item"} <= set(values.dims),
        f"{name}: dims",
        values.dims,
        "(noise, item[, trajectory[, clone]][, levels])",
    )
    expect(values.size, f"{name}: shape", values.shape, "at least one value along each dim")
    expect(
        values.dtype.kind in "biuf",
        f"{name}: dtype",
        values.dtype,
        "numbers, with NaN where one is missing",
    )
    if "clone" in values.dims and "trajectory" not in values.dims:
        values = values.expand_dims("trajectory")
    if (beyond := abs(values) > _LARGEST).any() or values.isnull().all():
        too_large = (
            "infinite readings"
            if np.isinf(values).any()
            else f"readings beyond {_LARGEST:.1e}, the largest stored"
        )
        what = too_large if beyond.any() else "no reading: all are NaN"
        raise ValueError(f"{name} has {what}; expected numbers, with NaN where one is missing")
    values = values.drop_vars([key for key, of in values.coords.items() if of.ndim != 1])
    return values.transpose(*AXES, ..., missing_dims="ignore")


def _is_rounded(values: xr.DataArray) -> bool:
    """Whether a reading varies, but over so few steps of single precision that rounding changes
    its curve.
    """
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    return bool(_CONSTANT * largest < high - low < _STEPS * np.spacing(np.float32(largest)))


def _joined(
    arrays: Mapping[str, xr.DataArray], noise: Any, coords: Mapping[str, Any]
) -> xr.Dataset:
    """Arrays, noise levels and coordinates in one dataset; ValueError if their sizes or labels
    differ.
    """
    of_arrays = [array.noise.values for array in arrays.values() if "noise" in array.coords]
    levels = _checked_levels(noise if noise is not None or not of_arrays else of_arrays[0])
    dims, labels = {dim for array in arrays.values() for dim in array.dims}, {}
    for name, entry in coords.items():
        dim, of = (
            entry
            if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
            else (name, entry)
        )
        values = checked_array(f"coords {name}", of)
        is_list = (
            values.ndim == 1
            and values.dtype.kind in "biufUTO"
            and name not in ("noise", *AXES[2:], *arrays)
        )
        expect(is_list, f"coords: {name}", of, "a list of numbers or texts, with a name of its own")
        if dim not in dims or (name in dims and name != dim):
            raise ValueError(
                f"coords: {name} has {len(values)} values along {dim}, which is no dim of a"
                " reading; give ('noise', values) or ('item', values), or name the axis of levels"
                " in dims"
            )
        labels[name] = dim, values
    parts = []
    for name, array in arrays.items():
        own = array.noise.values if "noise" in array.coords else levels
        is_near = len(own) == len(levels) and np.allclose(own, levels, rtol=NEAR, atol=0)
        expect(
            is_near,
            f"{name}: noise",
            own.tolist(),
            f"{shown(levels.tolist())}, as given, or as that of another reading",
        )
        parts.append(array.drop_vars("noise", errors="ignore").rename(name))
    try:
        joined = xr.merge(
            [*parts, {"noise": levels}], join="exact", compat="equals", combine_attrs="drop"
        )
        return joined.drop_vars(AXES[2:], errors="ignore").assign_coords(labels)
    except ValueError as error:
        words = one_line(error, 400).partition(" You can skip")[0]
        raise ValueError(f"values: their sizes or labels differ: {words}") from None


def _checked_levels(noise: Any) -> np.ndarray:
    """Noise levels as float64, increasing from 0 or more, or a ValueError."""
    levels = np.asarray([]) if noise is None else checked_array("noise", noise)
    is_list = levels.ndim == 1 and len(levels) and levels.dtype.kind in "iuf"
    expect(is_list, "noise", noise, "a list of increasing numbers, 0 or more")
    levels = levels.astype(float)
    fits = ((levels >= 0) & ((levels < LARGEST) | np.isinf(levels))).all() and (
        np.diff(levels) > NEAR * levels[:-1]
    ).all()
    expect(fits, "noise", levels.tolist(), "increasing numbers, 0 or more")
    return levels


def _coordinates(run: xr.Dataset, sizes: Mapping[str, int]) -> dict[str, Coordinate]:
    """All coordinates of a run; its dims are numbered where they have no labels."""
    made = {dim: Coordinate((dim,), np.arange(size)) for dim, size in sizes.items()}
    for name, of in run.drop_vars("item", errors="ignore").coords.items():
        values = of.values.astype(str) if of.dtype.kind in "UTO" else of.values
        dims = tuple(map(str, of.dims))
        made[str(name)] = Coordinate(dims, values, of.attrs if name == "noise" else {})
    if "item" in run.coords:
        names = run.item.values
        different = len(np.unique(names))
        expected = (
            f"{len(names)}, one for each original; several U-turns of an original go along"
            " trajectory"
        )
        expect(different == len(names), "coords: different names in item", different, expected)
        if (
            names.dtype.kind in "iuf"
            and (names == np.floor(names)).all()
            and (np.abs(names.astype(float)) < 2.0**63).all()
        ):
            made["item"] = Coordinate(("item",), names.astype(np.int64))
        else:
            made["item_name"] = Coordinate(("item",), names.astype(str))
    return made


# --- reading instructions -------------------------------------------------------------------------


def _by_name(
    key: str, value: Any, arrays: Mapping[str, Any], sites: Mapping[str, Any]
) -> dict[str, Any]:
    """An option by reading; a single value is that of all readings but twins. ValueError for
    other names.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return {name: value for name in arrays if not _is_twin(name, arrays)}
    if unknown := [name for name in value if name not in {**arrays, **sites}]:
        raise ValueError(
            f"{key}: {shown(unknown[0])} is no reading; expected one of {', '.join(arrays)}"
        )
    return dict(value)


def _is_twin(name: str, arrays: Mapping[str, Any]) -> bool:
    return (
        name.startswith("clone_") and name.removeprefix("clone_") in arrays
    ) or _is_of_originals(name, arrays)


def _is_of_originals(name: str, arrays: Mapping[str, Any]) -> bool:
    """Whether an array holds the values h(x_0; y) of a reading whose values of clones are given
    too.
    """
    of = arrays.get(name.removeprefix("original_"))
    return name.startswith("original_") and of is not None and "clone" in of.dims


def _of_originals(
    name: str, array: xr.DataArray, arrays: Mapping[str, xr.DataArray]
) -> xr.DataArray:
    """The array; readings of originals with one for each trajectory. A table repeats them for
    each clone.
    """
    if not _is_of_originals(name, arrays):
        return array
    of = arrays[name.removeprefix("original_")]
    if "clone" in array.dims:
        if not ((array == array.isel(clone=0)) | array.isnull()).all():
            raise ValueError(
                f"{name} differs between clones of a noisy datum; expected one reading of the"
                " original for all"
            )
        array = array.max("clone")
    if "trajectory" not in array.dims:
        array = array.expand_dims(trajectory=of.sizes["trajectory"])
    dims = tuple(dim for dim in of.dims if dim != "clone")
    expect(
        set(array.dims) == set(dims),
        f"dims of {name}",
        array.dims,
        f"{dims}, those of {name.removeprefix('original_')}",
    )
    return array.transpose(*dims)


def _variable(
    name: str,
    array: xr.DataArray,
    options: Mapping[str, Any],
    noise: np.ndarray,
    arrays: Mapping[str, Any],
) -> Variable:
    """A reading with its instructions, or a ValueError."""
    dims = tuple(map(str, array.dims))
    settings = {"unit" if key == "units" else key: value for key, value in options.items()}
    long_name, twin = (
        str(settings.pop("long_name", name.replace("_", " "))),
        arrays.get(f"clone_{name}"),
    )
    if twin is not None and ("clone" not in dims or twin.dims != array.dims):
        raise ValueError(
            f"clone_{name} has dims {twin.dims}, {name} {dims}; expected the same, with trajectory"
            " and clone"
        )
    ranked = twin is None and f"original_{name}" in arrays and "clone" in dims
    if _is_twin(name, arrays):
        settings = {"role": "record"}
    else:
        low, high = float(array.min()), float(array.max())
        if settings.get("start") is None and not ranked:
            settings["start"] = _usual_start(name, array, noise, low, high)
            settings["guessed"] = settings["start"] is not None and noise[0] > 0
        known = [
            level
            for key in ("start", "chance")
            if isinstance(level := settings.get(key), int | float | np.number)
        ]
        if "bounds" not in settings and low >= 0 and min(known, default=0) >= 0:
            is_share = high <= 1 and max(known, default=1) <= 1
            settings["bounds"] = (
                (0.0, 1.0)
                if is_share
                else (0.0, None)
                if settings.get("start") == 0
                else (None, None)
            )
        settings.setdefault(
            "group", "class" if name.startswith("same_") else name.replace("_", " ")
        )
    try:
        variable = Variable(
            dims,
            long_name,
            **plain(settings),
            symmetric=twin is not None,
            ranked=ranked,
            probe="readings",
        )
        variable.check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    return variable


def _changes(
    name: str, changed: xr.DataArray, unit: str
) -> tuple[dict[str, Variable], dict[str, Any], dict[str, xr.DataArray]]:
    """The covariances of the changes of sites on a line, as the probe `changes` stores them, or
    a ValueError.
    """
    readings = covariances_of(changed)
    distance, whole = f"{name}_distance", readings.present_pairs
    sites = whole.sizes["distance"]
    lengths = np.rint(whole.isel(distance=0) * sites)
    if not np.allclose(whole, (lengths - whole.distance).clip(0) / (sites - whole.distance)):
        raise ValueError(
            f"changes: {name} has NaN for some sites of an item; expected NaN for a U-turn, or"
            " beyond the last site"
        )
    words, dims = f"mean covariance of the changes of two {unit}", ("noise", "item")
    variables = {
        "change": Variable(
            dims, f"mean change of a {name}", start=0.0, group="changes", probe="readings"
        ),
        "change_covariance": Variable((*dims, distance), words, role="changes", unit=unit),
        "change_covariance_sum": Variable(
            dims, "sum of all covariances over the number of sites", role="changes"
        ),
    }
    coordinates = {distance: Coordinate((distance,), readings.distance.values)}
    if not (lengths == sites).all():
        coordinates["length"] = Coordinate(("item",), lengths.values.astype(np.int64))
    arrays = {f"{name}_{key}": readings[key].astype(np.float32) for key in variables}
    return dict(zip(arrays, variables.values(), strict=True)), coordinates, arrays


def _usual_start(
    name: str, array: xr.DataArray, noise: np.ndarray, low: float, high: float
) -> float | None:
    """The start of a reading for which none is given; None if it is not known."""
    # Which count equally.
    of_originals = array.mean([dim for dim in ("trajectory", "clone") if dim in array.dims])
    first, last = (float(of_originals.isel(noise=k).mean()) for k in (0, -1))
    if noise[0] == 0 and np.isfinite(first):
        return first
    return (
        None if low < 0 or high > 1 else 1.0 if is_kept_if_large(name) or not first < last else 0.0
    )


def _check_names(names: Sequence[Any]) -> None:
    """ValueError for a name that no store can hold: arrays of zarr are folders, beside the file
    `zarr.json`.
    """
    for name in names:
        text, where = str(name).encode(errors="replace").decode(), "name of a reading or coordinate"
        is_folder = (
            not set(text) & set("/\\\0")
            and text.strip(".")
            and not text.startswith("__")
            and text != "zarr.json"
        )
        fits = is_folder and text == name and len(text.encode()) <= _LONGEST
        expect(fits, where, name, f"one that a folder can have, at most {_LONGEST} bytes")
        expect(
            names.count(name) == 1,
            where,
            name,
            f"one that no other has; {', '.join(AXES)} and tasks are taken",
        )


def _digest(arrays: Mapping[str, xr.DataArray]) -> str:
    """Digest of readings: by it a store notices chunks of other readings of equal shape."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
