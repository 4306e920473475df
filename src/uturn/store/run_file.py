"""`run.json`: everything about a run but its readings.

It holds the experiment, its variables with their reading instructions, and all coordinates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.inputs import plain
from uturn.core.messages import shown
from uturn.core.protocols import Coordinates, Variable
from uturn.store.folders import RUN_ROOT
from uturn.store.limits import MOST_READINGS, MOST_TASKS, MOST_VARIABLES

FORMAT = "uturn.run"
VERSION = 7
NAME = RUN_ROOT
GROWING = ("noise", "item", "trajectory")
"""Dims along which a run grows."""

Plain = dict[str, Any]
"""A table of JSON."""


@dataclass(frozen=True)
class StoredVariable:
    """A variable as a run stores it."""

    dims: tuple[str, ...]
    attributes: Plain
    """Its description, and how it is read, as JSON."""


@dataclass(frozen=True)
class StoredCoordinate:
    """A coordinate as a run stores it."""

    dims: tuple[str, ...]
    labels: np.ndarray
    """Numbers, dates or texts."""
    attributes: Plain


class RunFile:
    """The content of `run.json`, checked.

    Its digest guards against damage of the file. All sizes are lengths of coordinates, whose labels
    the file lists. A small file can therefore claim large readings only by products of sizes, which
    are limited.
    """

    def __init__(self, table: Plain) -> None:
        self.key: str = table["key"]
        """Binds the files of tasks to the run."""
        self.attributes: Plain = table["attributes"]
        self.variables = {
            name: StoredVariable(tuple(entry["dims"]), _attributes(name, entry))
            for name, entry in table["variables"].items()
        }
        self.coordinates = {
            name: StoredCoordinate(
                tuple(entry["dims"]),
                _labels(entry["type"], entry["values"]),
                _attributes(name, entry),
            )
            for name, entry in table["coordinates"].items()
        }
        self.identity: Plain = self.attributes["identity"]
        self.noise = [float(level) for level in self.identity["corruption"]["noise"]]
        self.chunk: int = self.identity["chunk"]
        self.items: int = self.identity["items"]
        self.trajectories: int = self.identity["trajectories"]
        self.clones: int = self.identity.get("clones", 1)
        self._table = table
        self._check_counts()
        self._check_coordinates()
        self._check_variables()

    @classmethod
    def parsed(cls, content: bytes) -> RunFile:
        """The file with this content; errors of many kinds if it is damaged."""
        table = json.loads(content)
        _check_version(table.get("format"), table.get("version"))
        digest = table["digest"]
        expect(digest == _digest(table), f"{NAME}: digest", digest, "its own; copy the run again")
        return cls(table)

    @classmethod
    def made(
        cls,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        attributes: Mapping[str, Any],
        key: str = "",
    ) -> RunFile:
        """The file of an experiment. `key`: the key of a smaller run, which it extends."""
        if not key:
            key = _sha256([attributes[name] for name in ("identity", "models", "random_version")])
        table: Plain = {
            "format": FORMAT,
            "version": VERSION,
            "key": key[:16],
            "attributes": dict(attributes),
            "variables": {},
            "coordinates": {},
        }
        for name, variable in variables.items():
            attributes_of_variable = attributes_of(variable)
            table["variables"][name] = {
                "dims": variable.dims,
                "attributes": attributes_of_variable,
            }
        for name, coordinate in coordinates.items():
            labels = np.asarray(coordinate.values)
            table["coordinates"][name] = {
                "dims": coordinate.dims,
                "type": "text" if labels.dtype.kind in "UTO" else labels.dtype.str,
                "values": _plain(labels),
                "attributes": plain(dict(coordinate.attributes)),
            }
        return cls(_signed(table))

    def with_attributes(self, attributes: Mapping[str, Any]) -> RunFile:
        """The file with further or other attributes."""
        table = dict(self._table)
        table["attributes"] = {**self.attributes, **attributes}
        return RunFile(_signed(table))

    def content(self) -> bytes:
        return _content(self._table)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of labels of each dim."""
        return {
            name: len(coordinate.labels)
            for name, coordinate in self.coordinates.items()
            if coordinate.dims == (name,)
        }

    def layout(self) -> Plain:
        """What a larger run has too: dims of variables and coordinates, and sizes of dims that do
        not grow.
        """
        layout: Plain = {}
        for name, variable in self.variables.items():
            layout[name] = variable.dims
        for name, coordinate in self.coordinates.items():
            layout[name] = coordinate.dims
        for dim, size in self.sizes.items():
            if dim not in GROWING:
                layout[f"size of {dim}"] = size
        return layout

    @property
    def numbers(self) -> int:
        """Number of readings of the whole run."""
        shapes = [self.shape_of(name, self.items) for name in self.variables]
        return len(self.noise) * sum(map(math.prod, shapes))

    @cached_property
    def numbers_of_task(self) -> int:
        """Largest number of readings of a task."""
        return sum(math.prod(self.shape_of(name, self.chunk)) for name in self.variables)

    def shape_of(self, name: str, items: int, trajectories: int | None = None) -> tuple[int, ...]:
        """Shape of the readings of a variable for some items, by default with all trajectories."""
        sizes = dict(self.sizes)
        if trajectories is not None:
            sizes["trajectory"] = trajectories
        return items, *(sizes[dim] for dim in self.variables[name].dims[2:])

    def region(self, name: str, trajectories: int) -> tuple[slice, ...]:
        """Index of the first trajectories in the readings (items, ..) of a variable."""
        dims = self.variables[name].dims[1:]
        return tuple(slice(trajectories if dim == "trajectory" else None) for dim in dims)

    def texts(self) -> Plain:
        """The attributes as a dataset has them, where tables and lists are JSON."""
        return {
            name: json.dumps(value) if isinstance(value, dict | list) else value
            for name, value in self.attributes.items()
        }

    def _check_counts(self) -> None:
        counts = (self.chunk, self.items, self.trajectories, self.clones)
        are_counts = all(type(count) is int and count > 0 for count in counts)
        expect(are_counts, "its sizes", counts, "whole numbers above 0")
        tasks = len(self.noise) * -(-self.items // self.chunk)
        expect(tasks <= MOST_TASKS, "tasks", tasks, f"at most {MOST_TASKS}")
        for name in ("spec", "models"):
            table = self.attributes[name]
            expect(isinstance(table, dict), f"its attribute {name}", table, "a table")

    def _check_coordinates(self) -> None:
        counts = {
            "noise": len(self.noise),
            "item": self.items,
            "trajectory": self.trajectories,
        }
        if self.clones > 1:
            counts["clone"] = self.clones
        for dim, count in counts.items():
            expect(self.sizes[dim] == count, f"{dim}: size", self.sizes[dim], str(count))
        levels = self.coordinates["noise"].labels.tolist()
        expect(levels == self.noise, "its levels", levels, "those of the spec")
        for name, coordinate in self.coordinates.items():
            shape = tuple(self.sizes[dim] for dim in coordinate.dims)
            stored = coordinate.labels.shape
            expect(stored == shape, f"{name}: shape", stored, f"{shape}, by its dims")

    def _check_variables(self) -> None:
        number = len(self.variables)
        expect(number <= MOST_VARIABLES, "its variables", number, f"at most {MOST_VARIABLES}")
        for name, variable in self.variables.items():
            dims = variable.dims
            fits = dims[:2] == ("noise", "item") and len(set(dims)) == len(dims)
            expect(fits, f"{name}: dims", dims, "noise, item, and others, each once")
        numbers = self.numbers_of_task
        expect(numbers <= MOST_READINGS, "numbers of a task", numbers, f"at most {MOST_READINGS}")


def attributes_of(variable: Variable) -> dict[str, str]:
    """The attributes of a variable in a dataset: its description, and how it is read."""
    attributes = {"long_name": variable.long_name}
    instructions = variable.instructions()
    if instructions:
        attributes["reading"] = json.dumps(instructions)
    return attributes


def _attributes(name: str, entry: Plain) -> Plain:
    """The attributes in the entry of a variable or a coordinate."""
    attributes: Plain = entry["attributes"]
    expect(isinstance(attributes, dict), f"{name}: attributes", attributes, "a table")
    return attributes


def signed(table: Plain) -> bytes:
    """The content of a file with this table, with its digest."""
    return _content(_signed(table))


def _content(table: Plain) -> bytes:
    """A table as JSON, with a line for each of its entries."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _signed(table: Plain) -> Plain:
    """A table as JSON gives it back, with its digest."""
    copied: Plain = json.loads(json.dumps(table))
    copied["digest"] = _digest(copied)
    return copied


def _digest(table: Plain) -> str:
    return _sha256({name: value for name, value in table.items() if name != "digest"})


def _sha256(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _check_version(form: object, version: object) -> None:
    if form == FORMAT and isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"version {shown(version)} of the format; a newer uturn wrote it: update uturn"
        )
    is_readable = (form, version) == (FORMAT, VERSION)
    expected = f"{FORMAT!r} and {VERSION}"
    expect(is_readable, "its format and version", (form, version), expected)


def _plain(labels: np.ndarray) -> list[Any]:
    """Labels as a list of numbers or texts; dates are numbers."""
    if labels.dtype.kind in "UTO":
        return [str(text) for text in labels.tolist()]
    if labels.dtype.kind in "mM":
        labels = labels.astype(np.int64)
    values: list[Any] = labels.tolist()
    return values


def _labels(kind: str, values: list[Any]) -> np.ndarray:
    """The labels of a coordinate from their list. `kind`: "text", or a type of numpy."""
    if kind == "text":
        return np.asarray(values, np.dtypes.StringDType())
    dtype = np.dtype(kind)
    is_plain = dtype.kind in "biufmM" and dtype.itemsize <= 8
    expect(is_plain, "type of labels", kind, "numbers or dates")
    if dtype.kind in "mM":
        return np.asarray(values, np.int64).astype(dtype)
    return np.asarray(values, dtype)
