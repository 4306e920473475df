"""Keys of readings: a variable of a run and one of its levels; the search of a reading by name."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from uturn.core.messages import shown
from uturn.measures.calibration import label_of
from uturn.measures.readings import own_dims
from uturn.studies.checked_run import Run

_MOST_NAMES = 12
"""Names of readings in an error."""


@dataclass(frozen=True)
class Level:
    """A position along one of a variable's own dims, such as tree_level = 3."""

    dim: str
    index: int
    """Position along the dim, from 0."""
    value: object = field(compare=False)
    """Coordinate there; the index if the dim has no coordinate."""


@dataclass(frozen=True)
class ReadingKey:
    """A variable, and the level of a reading along each of the variable's own dims."""

    variable: str
    levels: tuple[Level, ...]

    @property
    def label(self) -> str:
        """The name of the reading in a study, such as "unchanged, tree_level = 3"."""
        return label_of(self.variable, {level.dim: level.value for level in self.levels})

    @property
    def level(self) -> str:
        """The values of the levels as text; "" for a variable without own dims."""
        return ", ".join(str(level.value) for level in self.levels)

    @property
    def level_dim(self) -> str:
        """The dim of the level; "" if the variable has several own dims, or none."""
        return self.levels[0].dim if len(self.levels) == 1 else ""

    @property
    def indices(self) -> dict[str, int]:
        """Index along each own dim, for `isel`; the dims are dropped."""
        return {level.dim: level.index for level in self.levels}

    @property
    def slices(self) -> dict[str, list[int]]:
        """Index along each own dim, for `isel`; the dims are kept, with size 1."""
        return {level.dim: [level.index] for level in self.levels}


def keys_of(data: xr.Dataset, variable: str) -> list[ReadingKey]:
    """The readings of a variable, one for each combination of its own dims; the last varies
    fastest.
    """
    values = data[variable]
    columns = {dim: values[dim].values for dim in own_dims(values)}
    keys = []
    for indices in np.ndindex(*map(len, columns.values())):
        places = zip(columns.items(), indices, strict=True)
        levels = tuple(Level(dim, k, column[k]) for (dim, column), k in places)
        keys.append(ReadingKey(variable, levels))
    return keys


def find_reading(run: Run, name: str) -> ReadingKey:
    """The reading with a name; ValueError if there is none, or several.

    A reading is called as in the study, by its variable if this has one level, or "first_layer" or
    "last_layer" if it is an end of a series.
    """
    matching: dict[str, ReadingKey] = {}
    names: list[str] = []
    for variable, instructions in run.readings.items():
        keys = keys_of(run.data, variable)
        for key in keys:
            short_names = _names_of_end(run.data, key, instructions.order)
            if name in (key.label, variable, *short_names):
                matching[key.label] = key
            if len(keys) == 1 and key.label != variable:
                names.append(variable)
            names += [*short_names, key.label]
    if len(matching) == 1:
        return next(iter(matching.values()))
    if matching:
        raise ValueError(_expected(name, list(matching), []))
    times = Counter(names)
    unique = [name for name in names if times[name] == 1]
    unique.sort(key=lambda name: "=" in name)  # short ones first
    close = difflib.get_close_matches(str(name), unique, n=3)
    raise ValueError(_expected(name, unique, close))


def _names_of_end(data: xr.Dataset, key: ReadingKey, order: str | None) -> list[str]:
    """Short names of an end of a series: "first_layer" if it is ordered along "network_layer"."""
    if order is None:
        return []
    noun = order.rpartition("_")[2]
    ends = {"first": 0, "last": data.sizes[order] - 1}
    return [f"{end}_{noun}" for end, index in ends.items() if key.indices[order] == index]


def _expected(name: str, names: list[str], close: list[str]) -> str:
    """The error for a name that means no reading, or several. `names`: names that mean one."""
    expected = "expected"
    if close:
        expected = f"did you mean {' or '.join(map(repr, close))}? Expected"
    listed = "; ".join(map(repr, names[:_MOST_NAMES])) or "the run has none"
    if len(names) > _MOST_NAMES:
        listed += f" and {len(names) - _MOST_NAMES} more"
    return f"reading = {shown(name)}: {expected} the name of one reading: {listed}"
