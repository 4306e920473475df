"""Reading instructions of readings that were made elsewhere, from options and from the readings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import xarray as xr

from uturn.core.inputs import plain
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Variable
from uturn.measures.readings import draw_dims
from uturn.studies.own_arrays import is_twin
from uturn.studies.references import Rule
from uturn.studies.runs import is_kept_if_large, starts_at_one

Bounds = tuple[float | None, float | None] | None
Text = str | None


class ReadingOptions(TypedDict, total=False):
    """How readings are read: one value for all readings but twins, or values by reading
    (`uturn.readings` says what the options mean).
    """

    start: Rule | Mapping[str, Rule]
    chance: Rule | Mapping[str, Rule]
    bounds: Bounds | Mapping[str, Bounds]
    units: Text | Mapping[str, Text]
    group: Text | Mapping[str, Text]
    order: Text | Mapping[str, Text]
    family: Text | Mapping[str, Text]
    long_name: Text | Mapping[str, Text]


Settings = dict[str, Any]
"""The options of one reading."""


def by_reading(
    options: ReadingOptions,
    arrays: Mapping[str, xr.DataArray],
    sites: Mapping[str, xr.DataArray],
) -> dict[str, Settings]:
    """The options of each reading, and of each kind of sites whose changes are given.

    ValueError for other names, TypeError for other options.
    """
    unknown = options.keys() - ReadingOptions.__annotations__
    if unknown:
        name = min(unknown)
        raise TypeError(f"readings() got an unexpected keyword argument {name!r}")
    settings: dict[str, Settings] = {name: {} for name in (*arrays, *sites)}
    for key in ReadingOptions.__annotations__:
        value: object = options.get(key)
        if isinstance(value, Mapping):
            values = dict(value)
        elif value is None:
            values = {}
        else:
            values = {name: value for name in arrays if not is_twin(name, arrays)}
        for name in values:
            if name not in settings:
                raise ValueError(
                    f"{key}: {shown(name)} is not a reading; expected one of {', '.join(arrays)}"
                )
            settings[name][key] = values[name]
    return settings


def variable_of(
    name: str,
    array: xr.DataArray,
    options: Settings,
    noise: np.ndarray,
    arrays: Mapping[str, xr.DataArray],
) -> Variable:
    """A reading with its instructions, or a ValueError."""
    dims = tuple(map(str, array.dims))
    settings = {"unit" if key == "units" else key: value for key, value in options.items()}
    long_name = str(settings.pop("long_name", name.replace("_", " ")))
    twin = arrays.get(f"clone_{name}")
    if twin is not None and ("clone" not in dims or twin.dims != array.dims):
        raise ValueError(
            f"clone_{name} has dims {twin.dims}, {name} {dims}; expected the same, with trajectory"
            " and clone"
        )
    is_ranked = twin is None and f"original_{name}" in arrays and "clone" in dims
    if is_twin(name, arrays):
        settings = {"role": "record"}
    else:
        settings |= _defaults(name, array, settings, noise, is_ranked)
    try:
        variable = Variable(
            dims,
            long_name,
            **plain(settings),
            symmetric=twin is not None,
            ranked=is_ranked,
            probe="readings",
        )
        variable.check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    return variable


def _defaults(
    name: str, array: xr.DataArray, options: Settings, noise: np.ndarray, is_ranked: bool
) -> Settings:
    """The instructions of a reading that its options leave open."""
    defaults: Settings = {}
    start = options.get("start")
    if start is None and not is_ranked:
        start = _usual_start(name, array, noise)
        defaults["start"] = start
        defaults["guessed"] = start is not None and noise[0] > 0
    if "bounds" not in options:
        levels = [
            level
            for level in (start, options.get("chance"))
            if isinstance(level, int | float | np.number)
        ]
        low = min([float(array.min()), *levels])
        high = max([float(array.max()), *levels])
        if low >= 0 and high <= 1:
            defaults["bounds"] = (0.0, 1.0)
        elif low >= 0:
            defaults["bounds"] = (0.0 if start == 0 else None, None)
    if "group" not in options:
        defaults["group"] = "class" if starts_at_one(name) else name.replace("_", " ")
    return defaults


def _usual_start(name: str, array: xr.DataArray, noise: np.ndarray) -> float | None:
    """The start of a reading for which none is given; None if it is not known."""
    # Originals count equally.
    item_means = array.mean(draw_dims(array))
    first = float(item_means.isel(noise=0).mean())
    last = float(item_means.isel(noise=-1).mean())
    if noise[0] == 0 and np.isfinite(first):
        return first
    if float(array.min()) < 0 or float(array.max()) > 1:
        return None
    return 1.0 if is_kept_if_large(name) or not first < last else 0.0
