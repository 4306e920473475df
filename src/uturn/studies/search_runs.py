"""The runs of a search: each level is a run of the experiment, in a store of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.errors import TasksFailed
from uturn.core.experiment import Experiment
from uturn.core.messages import shown
from uturn.engine.run import run
from uturn.measures.readings import draw_dims, independent_groups
from uturn.store.folders import checked_location, is_empty
from uturn.store.reading import dataset_of
from uturn.store.resume import attributes_of, layout_of
from uturn.store.run_folder import RunFolder
from uturn.studies.checked_run import Run, by_noise
from uturn.studies.keys import find_reading
from uturn.studies.references import LevelValues
from uturn.studies.search import CHUNK, Readings

RELATIVE_STEP = 1e-3  # distance of levels over the largest, where a model has no steps


@dataclass
class SearchRuns:
    """The runs of a search, each in the store of its noise level."""

    experiment: Experiment
    reading: str
    folder: str | Path
    options: dict[str, Any]
    """Options of `uturn.run`."""

    datasets: dict[str, xr.Dataset] = field(default_factory=dict)
    """The runs by name, in the order in which they were first measured."""

    seconds: float = 0.0
    """Time that the runs have taken."""

    noise_turned: float = 0.0
    """Sum of the noise of the U-turns that were made in this time."""

    def measure(self, level: float, originals: int) -> Readings:
        """Readings of the first originals at a level. What is stored beyond them is left out."""
        name = f"noise-{level:.6g}"
        dataset = self.datasets.get(name)
        if dataset is None or dataset.sizes["item"] < originals:
            dataset = self.run(level, originals)
            self.datasets[name] = dataset
        return readings_in(dataset, self.reading, originals)

    def seconds_for(self, noise_turned: float) -> float:
        """Expected time for U-turns whose noise has this sum, NaN before the first run."""
        if self.noise_turned == 0:
            return math.nan
        return self.seconds / self.noise_turned * noise_turned

    def run(self, level: float, originals: int) -> xr.Dataset:
        """A run of a level, repeated if another process has extended its store in the meantime."""
        store = store_of(self.folder, level)
        while True:
            stored = stored_originals(store)
            extended = self.sized_with(stored, level, originals)
            begun = time.perf_counter()
            try:
                dataset = run(extended, store, **self.options).load()
            except (ValueError, TasksFailed):
                if not self.is_overtaken(extended, store, level, originals):
                    raise
            else:
                if not self.is_overtaken(extended, store, level, originals):
                    self.count(dataset.sizes["item"] - stored, level, time.perf_counter() - begun)
                    return dataset

    def sized_with(self, stored: int, level: float, originals: int) -> Experiment:
        """The experiment at a level, with the originals that its store has if they are more."""
        return sized(self.experiment, [level], max(originals, stored))

    def is_overtaken(self, extended: Experiment, store: str, level: float, originals: int) -> bool:
        """Whether another process has extended the store beyond this experiment."""
        now = self.sized_with(stored_originals(store), level, originals)
        return extended.to_dict() != now.to_dict()

    def count(self, originals: int, level: float, seconds: float) -> None:
        """Count the time of new originals, which tells how long further ones take."""
        if originals > 0:
            self.seconds += seconds
            self.noise_turned += originals * level


def stored_originals(store: str) -> int:
    """Originals of the run in a store, 0 without one."""
    place = checked_location("store", store)
    if is_empty(place):
        return 0
    return RunFolder.open(place).num_items


def store_of(folder: str | Path, level: float) -> str:
    """The store of a noise level."""
    return f"{str(folder).rstrip('/')}/noise-{level:.6g}"


def readings_in(dataset: xr.Dataset, reading: str, originals: int) -> Readings:
    """A reading of the first originals of a run with one noise level, a mean for each original."""
    level = LevelValues.of(Run.of(dataset.isel(item=slice(0, originals))), reading)
    values = level.values
    if math.isnan(level.start):
        raise ValueError(f"reading = {reading!r}: its start is not known; choose another reading")
    if level.start == level.chance:
        raise ValueError(
            f"reading = {reading!r}: its chance equals its start, {level.start:g}; choose another"
            " reading"
        )
    means = values.mean(draw_dims(values)).isel(noise=0)
    if not np.isfinite(means.values).any():
        noise = float(values.noise[0])
        raise ValueError(
            f"reading = {reading!r}: it is missing for all originals at noise {noise:g}"
        )
    groups = independent_groups(values)
    return Readings(means.values.astype(float), groups, level.start, level.chance)


def sized(experiment: Experiment, levels: Iterable[float], originals: int) -> Experiment:
    """The experiment with other levels and originals; grammars grow in proportion to them."""
    spec = experiment.to_dict()
    source = dict(spec["source"])
    grammars = source.get("grammars", 1)
    if isinstance(grammars, int) and grammars > 1:
        multiple = math.lcm(CHUNK, experiment.items // grammars)
        originals = math.ceil(originals / multiple) * multiple
        source["grammars"] = originals // (experiment.items // grammars)
    noise = sorted(float(level) for level in levels)
    changed = {
        "items": originals,
        "chunk": CHUNK,
        "source": source,
        "corruption": {**spec["corruption"], "noise": noise},
    }
    return Experiment.from_dict({**spec, **changed})


@dataclass(frozen=True)
class Levels:
    """Noise levels of a search."""

    starting: list[float]
    """Levels to begin with, at most four."""

    largest: float
    step: float
    """Distance of neighbouring levels: a step of the model, or a thousandth of the largest."""


def checked_levels(experiment: Experiment, reading: str, width: float) -> Levels:
    """ValueError unless the width is one, and runs will have this reading, with a start."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise ValueError(
            f"width = {shown(width)}: expected the full width of the interval, a number above 0"
        )
    single = sized(experiment, experiment.noise, 1)
    layout = layout_of(single)
    attributes = attributes_of(single, {})
    folder = RunFolder.in_memory(layout.variables, layout.coordinates, attributes)
    run = Run.of(dataset_of(folder))
    variable = find_reading(run, reading).variable
    if run.instructions[variable].start is None:
        raise ValueError(
            f"reading = {reading!r}: it has no start from which it changes; choose another reading"
        )
    is_single = not experiment.parts.backward.by_items
    expect(
        is_single,
        "until: unit of the noise",
        experiment.parts.corruption.unit,
        "one in which levels are measured singly",
    )
    levels = [level for level in run.data.noise.values.tolist() if 0 < level < math.inf]
    expect(len(levels) > 1, "noise", experiment.noise, "at least two levels above 0 to begin with")
    step = RELATIVE_STEP * levels[-1]
    if {"step", "t_over_T"} <= set(run.data.coords):
        step = float(run.data.t_over_T.values.max() / run.data.step.values.max())
    starting = {levels[max(0, round(len(levels) * k / 5) - 1)] for k in range(1, 5)}
    return Levels(sorted(starting), levels[-1], step)


def joined_levels(datasets: Iterable[xr.Dataset]) -> xr.Dataset:
    """The coordinates of the noise levels of several runs, each level once, in increasing order."""
    by_level = []
    for dataset in datasets:
        coordinates = by_noise(dataset).coords.to_dataset()
        others = [name for name, values in coordinates.coords.items() if values.dims != ("noise",)]
        by_level.append(coordinates.drop_vars(others))
    joined = xr.concat(by_level, "noise", combine_attrs="override")
    joined.noise.attrs.update(by_level[0].noise.attrs)
    return joined.isel(noise=np.unique(joined.noise.values, return_index=True)[1])
