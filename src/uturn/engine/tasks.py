"""The tasks of an experiment in its store: which are left, and their measurement in any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import numpy as np

from uturn.core.experiment import Experiment
from uturn.engine.measuring import measurements
from uturn.engine.schedule import Left
from uturn.store.blocks import Task
from uturn.store.run_folder import RunFolder


def left_of(experiment: Experiment, done: Mapping[Task, int]) -> list[Left]:
    """The tasks that are not done. `done`: number of trajectories done of each task."""
    left = []
    for task, count in done.items():
        if count < experiment.trajectories:
            left.append(Left(task, count if experiment.adds_trajectories else 0))
    return left


class Tasks:
    """The tasks of an experiment, measured into its store."""

    def __init__(self, experiment: Experiment, store: RunFolder) -> None:
        self.experiment = experiment
        self.store = store

    def left(self, tasks: Iterable[Task]) -> list[Left]:
        """The tasks that are not done. All files are read, and damaged ones are removed."""
        return left_of(self.experiment, self.store.done(tasks))

    def recorded_left(self, tasks: Iterable[Task]) -> list[Left]:
        """`left` by the names of files alone, which is fast; damaged files count as done."""
        return left_of(self.experiment, self.store.recorded(tasks))

    def measure(self, left: Iterable[Left], *, check: bool = False) -> Iterator[Task]:
        """Measure tasks, and yield each when its readings are handed to the store.

        `check`: whether to look for readings that another process has stored in the meantime.
        """
        in_order = sorted(left, key=lambda entry: entry.first)
        for first, group in groupby(in_order, key=lambda entry: entry.first):
            named = (
                (entry.task, entry.task.noise_index, self.store.items(entry.task))
                for entry in group
            )
            for task, readings in measurements(self.experiment, named, first):
                if not check or not self.store.is_done(task):
                    self._write(task, readings, first)
                yield task

    def _write(self, task: Task, readings: Mapping[str, np.ndarray], first: int) -> None:
        """Store the readings of a task, behind the stored readings of its first trajectories."""
        if first == 0:
            self.store.write(task, readings)
            return
        before = self.store.read(task, first)
        assert before is not None  # it was read when the run began
        joined = {}
        for name, variable in self.store.file.variables.items():
            joined[name] = readings[name]
            if "trajectory" in variable.dims:
                axis = variable.dims.index("trajectory") - 1
                joined[name] = np.concatenate([before[name], readings[name]], axis=axis)
        self.store.write(task, joined)
