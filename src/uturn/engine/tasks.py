"""Tasks of an experiment in its store: the remaining tasks, and their measurement in any
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from uturn.core.experiment import Experiment
from uturn.engine.measuring import measurements
from uturn.store.blocks import Task
from uturn.store.run_folder import RunFolder, called


def left_of(experiment: Experiment, counts: Mapping[Task, int]) -> dict[Task, int]:
    """Tasks that are not done, with the first trajectory to be measured; `counts`: number of
    trajectories done of each task.
    """
    adds, wanted = experiment.adds_trajectories, experiment.trajectories
    return {task: done if adds else 0 for task, done in counts.items() if done < wanted}


class Tasks:
    """The tasks of an experiment, measured into its store."""

    def __init__(self, experiment: Experiment, store: RunFolder) -> None:
        self.experiment, self.store = experiment, store

    def left(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """The unfinished tasks, with the first trajectory to measure. Reads all readings;
        records of damaged ones are cleared.
        """
        return left_of(self.experiment, self.store.done(tasks))

    def recorded_left(self, tasks: Sequence[Task]) -> dict[Task, int]:
        """`left` according to the records alone, which is fast; tasks with damaged readings
        count as done.
        """
        return left_of(self.experiment, self.store.recorded(tasks))

    def measure(
        self,
        tasks: Iterable[tuple[Task, int]],
        *,
        check: bool = False,
        call: Callable[..., None] = called,
    ) -> Iterator[Task]:
        """Measure `tasks`, pairs (task, first trajectory); yields each task when its readings are
        handed to the store.

        Neighbours of equal first trajectory are measured together. `check`: whether to look for
        readings that another process has stored in the meantime. `call` calls the function that
        stores readings; that of `RunFolder.finishing` may do so later.
        """
        for first, group in groupby(tasks, key=lambda pair: pair[1]):
            named = ((task, task.noise_index, self.store.items(task)) for task, _ in group)
            for task, readings in measurements(self.experiment, named, first):
                if not check or not self.store.is_done(task):
                    call(self._write, task, readings, first)
                yield task

    def _write(self, task: Task, readings: dict[str, np.ndarray], first: int) -> None:
        """Store the readings of a task, combined with the stored readings of its first
        trajectories.
        """
        store = self.store
        if first:
            before = store.read(task, first)
            assert before is not None  # it was read when the run began
            axes = {
                name: variable.dims.index("trajectory") - 1
                for name, variable in store.file.variables.items()
                if "trajectory" in variable.dims
            }
            readings = {
                name: (
                    np.concatenate([before[name], values], axis=axes[name])
                    if name in axes
                    else values
                )
                for name, values in readings.items()
            }
        store.write(task, readings)
