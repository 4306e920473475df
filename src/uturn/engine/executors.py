"""Where the tasks of a run are measured: in this process, in several, or on a Ray cluster.

An executor measures tasks into the store of their run, which alone knows what is done, so that no
readings pass between processes.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial

from uturn.core.checks import expect
from uturn.core.experiment import Experiment
from uturn.core.messages import counted
from uturn.core.own_parts import is_own
from uturn.core.processes import in_processes
from uturn.engine.schedule import Left, bundled, rotated
from uturn.engine.tasks import Tasks
from uturn.store.folders import is_url
from uturn.store.run_folder import RunFolder

_BATCH = 256  # images in a call of a network on a GPU, if the backward does not say
_SEEN_SECONDS = 90.0
"""Seconds until a host sees the writes of another one on a network file system; 60 for NFS."""


@dataclass(frozen=True)
class Job:
    """The tasks of a run that are left, in the order in which they are begun."""

    tasks: Tasks
    left: list[Left]


class Executor(ABC):
    """Measures the tasks of runs."""

    @abstractmethod
    def measured(self, jobs: Sequence[Job]) -> Generator[int]:
        """Numbers of tasks that have been stored since the last number. Closing the iterator
        stops the measurement.
        """

    def note(self) -> str:
        """A text about the executor at this moment, shown behind the title of the progress."""
        return ""


class ThisProcess(Executor):
    """Measures in this process, with threads."""

    def measured(self, jobs: Sequence[Job]) -> Generator[int]:
        for job in jobs:
            for _ in job.tasks.measure(job.left):
                yield 1


@dataclass
class Processes(Executor):
    """Measures in several processes of this machine, which share its cores."""

    workers: int

    def measured(self, jobs: Sequence[Job]) -> Generator[int]:
        if sum(len(job.left) for job in jobs) == 1:
            yield from ThisProcess().measured(jobs)
            return
        calls = []
        for job in jobs:
            experiment = job.tasks.experiment
            spec = json.dumps(experiment.to_dict())
            for bundle in bundled(job.left, experiment.parts.backward):
                calls.append((spec, job.tasks.store.location, bundle.tasks))
        if calls:
            yield from in_processes(run_tasks, calls, min(self.workers, len(calls)))


@dataclass
class OnRay(Executor):
    """Measures on a Ray cluster, whose nodes share the file system of the store."""

    address: str
    most_workers: int | None = None
    """None: as many as the cluster has room for."""
    cpus: float | None = None
    """Of a worker; by default one core."""
    gpus: float | None = None
    """Of a worker; by default one for networks, if the cluster has any."""
    _alive: int = field(default=0, init=False)

    def note(self) -> str:
        return f", {counted(self._alive, 'worker')}"

    def measured(self, jobs: Sequence[Job]) -> Generator[int]:
        for job in jobs:
            if job.left:
                yield from self._measured(job)

    def _measured(self, job: Job) -> Generator[int]:
        from uturn.engine.cluster import on_cluster, whole_batches

        experiment = job.tasks.experiment
        store = job.tasks.store
        _check_modules(experiment)
        location = store.location
        if not is_url(location):
            location = os.path.abspath(location)
        backward = experiment.parts.backward
        least_on_gpu = 1
        if backward.shares_batches:
            u_turns = experiment.chunk * experiment.trajectories * experiment.clones
            least_on_gpu = whole_batches(u_turns, backward.data_in_call or _BATCH)
        tasks = [entry.task for entry in job.left]
        states = on_cluster(
            self.address,
            partial(_tasks_of, json.dumps(experiment.to_dict()), location),
            rotated(tasks, backward),
            label=store.words,
            cpus=self.cpus,
            gpus=self.gpus,
            wants_gpu=backward.shares_batches or backward.wants_processes,
            together=(lambda task: task.item_block) if backward.by_items else None,
            least_on_gpu=least_on_gpu,
            most_workers=self.most_workers,
            own_code=bool(experiment.own_code()),
        )
        before = len(tasks)
        with closing(states):  # so that the cluster is freed even after Ctrl-C
            for now, self._alive in states:
                yield before - now
                before = now
        _wait_until_seen(job)


def _check_modules(experiment: Experiment) -> None:
    """ValueError if code of the user is in the script itself, which workers cannot import."""
    for name, code in experiment.own_code().items():
        defined = code if inspect.isfunction(code) else type(code)
        module = defined.__module__
        expected = "a file that workers can import; move it to one of its own"
        expect(module != "__main__", f"module of {name}", module, expected)


def _wait_until_seen(job: Job) -> None:
    """Wait until this host sees the files of the workers; ValueError if it does not."""
    tasks = [entry.task for entry in job.left]
    end = time.monotonic() + _SEEN_SECONDS
    lost = job.tasks.recorded_left(tasks)
    while lost and time.monotonic() < end:
        time.sleep(1)
        lost = job.tasks.recorded_left(tasks)
    if lost:
        tasks_do = "task does" if len(lost) == 1 else "tasks do"
        raise ValueError(
            f"{job.tasks.store.location}: {len(lost)} measured {tasks_do} not appear on this host; use"
            " a file system that all nodes share, or object storage"
        )


def run_tasks(spec: str, location: str, left: Sequence[Left]) -> int:
    """Measure tasks into a store, in one of several processes; gives their number."""
    return sum(1 for _ in _tasks_of(spec, location).measure(left))


@lru_cache(maxsize=1)
def _tasks_of(spec: str, location: str) -> Tasks:
    """The tasks of a spec in another process, perhaps on another host; ValueError if the source
    has other data than the store.
    """
    experiment = Experiment.from_dict(json.loads(spec))
    store = RunFolder.open(location)
    source = experiment.parts.source
    is_same = is_own(source) or source.fingerprint() == store.models.get("source", "")
    expected = "data as they were when the run began; bring them back, and resume"
    expect(is_same, "source", source, expected)
    return Tasks(experiment, store)
