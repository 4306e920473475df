"""Readings of U-turns that were made elsewhere, as the dataset of a run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core import random
from uturn.core.checks import expect
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Coordinate, Variable
from uturn.core.registry import READINGS
from uturn.measures.changes import covariances_of
from uturn.store.folders import checked_location, is_empty
from uturn.store.reading import dataset_of
from uturn.store.resume import versions_used
from uturn.store.run_folder import RunFolder, fill, write_run
from uturn.studies.long_form import AXES, COLUMNS, Labels, LongForm, read_long_form
from uturn.studies.own_arrays import coordinates_of, is_rounded, joined, labelled, of_originals
from uturn.studies.own_instructions import ReadingOptions, by_reading, variable_of
from uturn.studies.runs import named_in

_CHUNK = 1024
"""Items of a task of a store."""
_LONGEST = 200
"""Bytes of a name; file systems take 255."""


def readings(
    values: Mapping[str, ArrayLike | xr.DataArray] | pandas.DataFrame,
    noise: ArrayLike | None = None,
    *,
    unit: str = "noise",
    coords: Mapping[str, ArrayLike | Labels] | Sequence[str] | None = None,
    changes: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    max_noise: float | None = None,
    description: str = "",
    source: str = "",
    store: str | Path | None = None,
    **options: Unpack[ReadingOptions],
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
    description, source : str
        What made the U-turns, and where they come from, for titles.
    store : path or URL, optional
        Where to store the readings as `uturn.run` stores its own, for all commands. A store of
        readings there is replaced.

    Other Parameters
    ----------------
    start, chance : number or str, or a dict of these by reading
        Value of a reading without changes, and of independent data, as in
        `uturn.protocols.Variable`. Without a start, no place is located on the curve;
        docs/made-elsewhere.md has the defaults.
    bounds : (low, high), or a dict of these by reading
        Smallest and largest possible value, None for no bound. By default (0, 1) for readings in
        [0, 1], (0, None) for other readings that start at 0 and are never below.
    units, group, order, family, long_name : str, or a dict of these by reading
        Unit of the values; panel of the figure ("class" for readings whose half-life is t*, by
        default those called same_..); dim of levels whose first and last may swap order; family of
        calibration tests; description.

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
        table = LongForm.of(values, coords)
        for name in table.coordinates:
            if name not in ("item", *(coords or ())):
                hints.append(
                    f"{name} is the same in all rows of an item, so it is a coordinate, not a"
                    " reading"
                )
        values = table.readings
        noise = table.noise
        coords = table.coordinates
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"values = {shown(values)}: expected a dict of arrays by name, or a DataFrame with"
            f" {COLUMNS}"
        )
    labels = coords or {}
    if not isinstance(labels, Mapping):
        raise ValueError(f"coords = {shown(coords)}: expected a dict by name")
    expect(isinstance(changes or {}, Mapping), "changes", changes, "a dict by name")
    _check_names([*AXES, "tasks", *values])
    exact = {name: labelled(name, array, (dims or {}).get(name)) for name, array in values.items()}
    for name, array in exact.items():
        if is_rounded(array):
            hints.append(
                f"{name} varies by few of the steps of single precision, in which readings are"
                " stored: subtract an offset"
            )
    single = {name: array.astype(np.float32) for name, array in exact.items()}
    arrays = {name: of_originals(name, array, single) for name, array in single.items()}
    sites = {}
    for name, changed in (changes or {}).items():
        array = labelled(name, changed, (*AXES[:3], f"{name}_site"))
        sites[name] = array.astype(np.float32)
    run = joined(_with_changes(arrays, sites), noise, labels)
    run.noise.attrs = {"long_name": unit}
    if max_noise is not None:
        run.noise.attrs["max"] = float(max_noise)
    own_dims = [str(dim) for array in arrays.values() for dim in array.dims if dim not in AXES]
    sizes = {"trajectory": 1, **{str(dim): size for dim, size in run.sizes.items()}}
    labelled_dims = [dim for dim in dict.fromkeys([*AXES[1:], *own_dims]) if dim in sizes]
    coordinates = coordinates_of(run, {dim: sizes[dim] for dim in labelled_dims})
    settings = by_reading(options, arrays, sites)
    variables = {}
    levels = run.noise.values
    for name, array in arrays.items():
        variables[name] = variable_of(name, array, settings[name], levels, arrays)
        _check_references(name, variables[name], {*coordinates, *arrays})
    names = [*variables, *coordinates]
    for name, array in sites.items():
        measured = _changes(name, array, settings[name].get("units", f"{name}s"))
        names += [*measured.variables, *measured.coordinates]
        variables |= measured.variables
        coordinates |= measured.coordinates
        arrays |= measured.arrays
    _check_names(names)
    attributes = _attributes(sizes, levels, source)
    attributes["models"] = {"readings": _digest(arrays)}
    if description:
        attributes["description"] = description
    if hints:
        attributes["warnings"] = hints
    folder = RunFolder.in_memory(variables, coordinates, attributes)
    fill(folder, {name: arrays[name].values for name in variables})
    if store is not None:
        _write(store, folder)
    return dataset_of(folder)


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
    cells are missing. `settings`: further arguments of `readings`.
    """
    table = read_long_form(path, coords, columns or {})
    try:
        return readings(table, coords=list(coords), source=str(path), **settings)
    except ValueError as error:  # one of several tables
        raise ValueError(f"{path}: {one_line(error, 400)}") from None


def _with_changes(
    arrays: Mapping[str, xr.DataArray], sites: Mapping[str, xr.DataArray]
) -> dict[str, xr.DataArray]:
    """Readings, and the changes of the first site, whose other dims are theirs."""
    first_sites = {}
    for name, array in sites.items():
        others = set(array.coords).difference(AXES)
        first_sites[f"changes of {name}"] = array[..., 0].drop_vars(others)
    return {**arrays, **first_sites}


def _check_references(name: str, variable: Variable, known: set[str]) -> None:
    """ValueError if a start or chance names neither a reading nor a coordinate."""
    unknown = sorted(set(named_in(variable.start, variable.chance)) - known)
    expected = "numbers, or names of readings and coordinates"
    expect(not unknown, f"start and chance of {name}", unknown, expected)


def _check_names(names: Sequence[str]) -> None:
    """ValueError for a name that no store can hold: arrays of zarr are folders, beside the file
    `zarr.json`.
    """
    where = "name of a reading or coordinate"
    times = Counter(names)
    for name in names:
        text = str(name).encode(errors="replace").decode()
        is_file = text.strip(".") == "" or text.startswith("__") or text == "zarr.json"
        is_folder = not is_file and set(text).isdisjoint("/\\\0")
        fits = is_folder and text == name and len(text.encode()) <= _LONGEST
        expect(fits, where, name, f"one that a folder can have, at most {_LONGEST} bytes")
        expected = f"one that no other has; {', '.join(AXES)} and tasks are taken"
        expect(times[name] == 1, where, name, expected)


# --- store ----------------------------------------------------------------------------------------


def _attributes(sizes: Mapping[str, int], levels: np.ndarray, source: str) -> dict[str, Any]:
    """The attributes of a store, except for the attributes of its readings."""
    part = {"type": READINGS}
    spec: dict[str, Any] = {
        "items": sizes["item"],
        "trajectories": sizes["trajectory"],
        "clones": sizes.get("clone", 1),
        "source": {**part, "path": source} if source else part,
        "corruption": part,
        "backward": part,
        "probes": [part],
    }
    chunk = min(sizes["item"], _CHUNK)
    corruption = {**part, "noise": levels.tolist()}
    return {
        "spec": spec,
        "identity": {**spec, "chunk": chunk, "corruption": corruption},
        "models": {},
        "versions": versions_used(),
        "random_version": random.VERSION,
    }


def _digest(arrays: Mapping[str, xr.DataArray]) -> str:
    """Digest of readings: by it a store notices chunks of other readings of equal shape."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(store: str | Path, folder: RunFolder) -> None:
    """Write readings to a store, in the place of other readings."""
    place = checked_location("store", store)
    if not is_empty(place) and not RunFolder.open(place).is_made_elsewhere:
        raise ValueError(f"store = {str(store)!r} holds a run of U-turns; choose another folder")
    write_run(place, folder)


# --- changes of sites -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Changes:
    """The covariances of the changes of sites, as the probe `changes` stores them."""

    variables: dict[str, Variable]
    coordinates: dict[str, Coordinate]
    arrays: dict[str, xr.DataArray]


def _changes(name: str, changed: xr.DataArray, unit: str) -> _Changes:
    """The covariances of the changes of sites on a line, or a ValueError."""
    measured = covariances_of(changed)
    distance = f"{name}_distance"
    pairs = measured.present_pairs
    sites = pairs.sizes["distance"]
    lengths = np.rint(pairs.isel(distance=0) * sites)
    expected_pairs = (lengths - pairs.distance).clip(0) / (sites - pairs.distance)
    if not np.allclose(pairs, expected_pairs):
        raise ValueError(
            f"changes: {name} has NaN for some sites of an item; expected NaN for a U-turn, or"
            " beyond the last site"
        )
    dims = ("noise", "item")
    change = Variable(
        dims, f"mean change of a {name}", start=0.0, group="changes", probe="readings"
    )
    words = f"mean covariance of the changes of two {unit}"
    covariance = Variable((*dims, distance), words, role="changes", unit=unit)
    words = "sum of all covariances over the number of sites"
    total = Variable(dims, words, role="changes")
    coordinates = {distance: Coordinate((distance,), measured.distance.values)}
    if not (lengths == sites).all():
        coordinates["length"] = Coordinate(("item",), lengths.values.astype(np.int64))
    return _Changes(
        {
            f"{name}_change": change,
            f"{name}_change_covariance": covariance,
            f"{name}_change_covariance_sum": total,
        },
        coordinates,
        {
            f"{name}_{key}": measured[key].astype(np.float32)
            for key in ("change", "change_covariance", "change_covariance_sum")
        },
    )
