"""The readings of a run as arrays: small variables are read at once, large ones when needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)

from uturn.store import run_file
from uturn.store.blocks import Task
from uturn.store.folders import each
from uturn.store.run_folder import RunFolder

_MOST_AT_ONCE = 2**24
"""Numbers of the largest variable that is read at once."""


class Readings:
    """The readings of a run at this moment."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.trajectories = run.recorded(run.tasks())
        """Number of trajectories of each task that can be read."""
        self._arrays: dict[str, np.ndarray] = {}
        for name in run.file.variables:
            if math.prod(self.shape(name)) <= _MOST_AT_ONCE:
                self._arrays[name] = np.full(self.shape(name), np.nan, np.float32)
        stored = [task for task, count in self.trajectories.items() if count]
        each(run.location, self._read_at_once, stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a variable, (noise levels, items, ..)."""
        return len(self.run.noise), *self.run.file.shape_of(name, self.run.num_items)

    @property
    def missing(self) -> int:
        """Number of tasks that are not done."""
        complete = self.run.trajectories
        return sum(count != complete for count in self.trajectories.values())

    def values(self, name: str) -> np.ndarray | LazilyIndexedArray:
        """The values of a variable, in memory or lazily."""
        if name in self._arrays:
            return self._arrays[name]
        return LazilyIndexedArray(_LazyVariable(self, name))

    def _read_at_once(self, task: Task) -> None:
        readings = self.run.read(task, self.trajectories[task])
        if readings is None:
            self.trajectories[task] = 0
            return
        for name, array in self._arrays.items():
            part = array[task.noise_index, self.run.span(task)]
            part[self.run.file.region(name, self.trajectories[task])] = readings[name]


class _LazyVariable(BackendArray):
    """A variable whose files are read when it is indexed."""

    def __init__(self, readings: Readings, name: str) -> None:
        self.readings = readings
        self.name = name
        self.shape = readings.shape(name)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: ExplicitIndexer) -> np.ndarray:
        support = IndexingSupport.BASIC
        values: np.ndarray = explicit_indexing_adapter(key, self.shape, support, self._read)
        return values

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """The values at integers and slices."""
        run = self.readings.run
        levels = np.atleast_1d(np.arange(len(run.noise))[key[0]])
        items = np.atleast_1d(np.arange(run.num_items)[key[1]])
        values = np.full((len(levels), len(items), *self.shape[2:]), np.nan, np.float32)
        for row, level in enumerate(levels.tolist()):
            self._read_level(level, items, values[row])
        outer = [slice(None) if isinstance(index, slice) else 0 for index in key[:2]]
        index: tuple[Any, ...] = (*outer, *key[2:])
        selected: np.ndarray = values[index]
        return selected

    def _read_level(self, level: int, items: np.ndarray, values: np.ndarray) -> None:
        """Fill `values` (items, ..) with the readings of items at a noise level."""
        run = self.readings.run
        blocks = items // run.chunk
        for block in np.unique(blocks).tolist():
            task = Task(level, block)
            count = self.readings.trajectories[task]
            if count == 0:
                continue
            readings = run.read(task, count)
            if readings is None:
                raise ValueError(f"{run.location}: {run.words(task)} was damaged; open it again")
            rows = np.flatnonzero(blocks == block)
            in_task = items[rows] - block * run.chunk
            region: tuple[Any, ...] = (rows, *run.file.region(self.name, count)[1:])
            values[region] = readings[self.name][in_task]


def dataset_of(run: RunFolder) -> xr.Dataset:
    """A run as a labelled dataset; readings of missing and damaged tasks are NaN."""
    readings = Readings(run)
    variables = {}
    for name, variable in run.file.variables.items():
        variables[name] = (variable.dims, readings.values(name), variable.attributes)
    coordinates = {}
    for name, coordinate in run.file.coordinates.items():
        coordinates[name] = (coordinate.dims, coordinate.labels, coordinate.attributes)
    about = {
        "format": run_file.FORMAT,
        "version": run_file.VERSION,
        "chunk": run.chunk,
        "variables": list(run.file.variables),
        "complete": readings.missing == 0,
        "missing_tasks": readings.missing,
    }
    return xr.Dataset(variables, coordinates, {**about, **run.file.texts()})


def open_run(location: str | Path) -> xr.Dataset:
    """The run in a folder or at a URL; ValueError if there is none, or if it is damaged."""
    run = RunFolder.open(location)
    ds = dataset_of(run)
    missing = ds.attrs["missing_tasks"]
    if run.is_made_elsewhere and missing:
        raise ValueError(
            f"{run.location}: {missing} files of readings are missing or damaged; copy the store"
            " again"
        )
    return ds
