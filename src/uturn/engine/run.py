"""Runs an experiment: its tasks are measured into a store, in this process, in several, or on a
cluster.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import time
import warnings
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, groupby
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.own_parts import is_own
from uturn.core.processes import cores, in_processes
from uturn.core.progress import progress_bar
from uturn.engine.tasks import Tasks
from uturn.store.blocks import Task
from uturn.store.folders import checked_location, is_url
from uturn.store.resume import open_store
from uturn.store.run_folder import RunFolder, warnings_of

if TYPE_CHECKING:
    import xarray as xr

_BATCH = 256  # default number of images in a network on a GPU
# Seconds until a host sees the writes of another host on a network file system; up to 60 for NFS.
_SEEN_SECONDS = 90.0


def run(
    experiment: Experiment,
    store: str | Path | None = None,
    resume: bool = True,
    *,
    workers: int | EllipsisType | None = ...,
    progress: bool = False,
    shard: tuple[int, int] = (1, 1),
    accept_changes: bool = False,
    cluster: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
) -> xr.Dataset:
    """Measure the tasks of an experiment that are missing in its store.

    ValueError, and an unchanged store, if it holds another experiment (the message names the
    difference) or cannot be read. On a cluster `TasksFailed`, after all other tasks are done, if a
    task raised three times, or was alone on three workers that died.

    Parameters
    ----------
    store : path or URL, optional
        The store that is filled task by task: a folder, or a URL of object storage
        (s3://bucket/run, gs://.., az://..) as text; in memory if not given.
    resume : bool
        Whether to complete an existing store of the same experiment, or to extend it by items,
        noise levels or trajectories; if False, an existing store is an error.
    workers : int or None
        Number of processes, which share the cores; by default 1. None chooses one process for exact
        inference, whose kernels use all cores, and one for each core for networks on the CPU.
        Several processes need a store, and a script guarded by `if __name__ == "__main__":`, since
        they import it.
    progress : bool
        Show a progress bar on stderr.
    shard : (i, n)
        Measure the i-th of n shares of the tasks, i = 1 .. n. Missing readings are NaN.
    accept_changes : bool
        Resume although the code or the fingerprint of a user-defined part has changed since the
        store was made.
    cluster, cpus_per_worker, gpus_per_worker : optional
        Ray cluster that measures the tasks: "local", started on this machine; "auto", the one that
        already runs on it; or its address "ray://host:port" or "host:port". All nodes must have
        access to the store. `workers` is then the largest number of workers; each takes, by
        default, one core, and for networks one GPU if the cluster has any.

    Returns
    -------
    xarray.Dataset
        Raw readings per item with labelled dims; attributes `spec` (JSON), `spec_hash`, `seed`,
        `models`, `versions`, `complete` (bool), `missing_tasks` (int) and, if something seems
        wrong, `warnings` (a JSON list of sentences). The readings depend only on the experiment;
        `chunk` and `workers` affect those of networks by floating-point rounding.
    """
    if workers is ...:
        workers = None if cluster is not None else 1
    if cluster is None or workers is not None:
        workers = chosen_workers(workers, experiment)
    expect(
        cluster is None or store is not None,
        "cluster",
        cluster,
        "a store with it, on a file system that its nodes share",
    )
    begun = begin(experiment, store, resume, accept_changes, shard, workers)
    work, left, workers_alive = begun.work, begun.left, ""
    if cluster is None and store is not None and min(workers or 1, len(left)) > 1:
        measured_in_processes([begun], workers or 1, progress, work.store.location)
        return begun.end()
    bar = progress_bar(
        progress, work.store.location, begun.tasks, begun.tasks - len(left), lambda: workers_alive
    )
    with bar as advance, work.store.finishing() as store_by:
        if cluster is not None and left:
            states = _on_cluster(work, left, cluster, workers, cpus_per_worker, gpus_per_worker)
            with closing(states):  # close it, so that the cluster is freed even after Ctrl-C
                for count, alive in states:
                    workers_alive = alive
                    for _ in range(count):
                        advance()
        else:
            for _ in work.measure(sorted(left.items(), key=lambda pair: pair[1]), call=store_by):
                advance()
    return begun.end()


def measured_in_processes(runs: Sequence[Begun], workers: int, progress: bool, title: str) -> None:
    """Measure the tasks that are left of some runs, in several processes."""
    jobs, total = (
        [job for begun in runs for job in begun.jobs()],
        sum(begun.tasks for begun in runs),
    )
    with (
        progress_bar(
            progress, title, total, total - sum(len(tasks) for *_, tasks in jobs)
        ) as advance,
        ExitStack() as stack,
    ):
        for begun in runs:
            stack.enter_context(begun.work.store.finishing())
        for count in in_processes(run_tasks, jobs, min(workers, len(jobs))) if jobs else ():
            for _ in range(count):
                advance()


def chosen_workers(workers: int | None, *experiments: Experiment) -> int:
    """The given number of processes; by default one, or one for each core for networks on the
    CPU.
    """
    if workers is not None:
        return checked_integer("workers", workers, 1)
    return (
        cores()
        if any(checked_experiment(one).parts.backward.wants_processes for one in experiments)
        else 1
    )


@dataclass(frozen=True)
class Begun:
    """A run whose store is open and whose networks are checked: `tasks`, number of its tasks;
    `left`, those to measure.
    """

    work: Tasks
    tasks: int
    left: dict[Task, int]
    doubts: list[str]

    def jobs(self) -> list[tuple[str, str, list[tuple[Task, int]]]]:
        experiment, left = self.work.experiment, self.left.items()
        spec, by_items = json.dumps(experiment.to_dict()), experiment.parts.backward.by_items
        groups = groupby(left, key=lambda pair: pair[0].item_block if by_items else pair[0])
        return [(spec, self.work.store.location, list(group)) for _, group in groups]

    def end(self) -> xr.Dataset:
        """The dataset of `run`, after the tasks were measured."""
        experiment, opened = self.work.experiment, self.work.store
        ds = opened.dataset()
        if self.left and ds.attrs["complete"] and (empty := _without_values(ds)):
            _noted(opened, self.doubts + empty, new=empty)
            ds = ds.assign_attrs(warnings=json.dumps(opened.attributes["warnings"]))
        # Use the caller's spec: figures build parts from it, and the text in a store is not
        # trusted.
        return ds.assign_attrs(spec=json.dumps(experiment.to_dict()), spec_hash=experiment.hash)


def begin(
    experiment: Experiment,
    store: str | Path | None,
    resume: bool,
    accept_changes: bool,
    shard: tuple[int, int],
    workers: int | None,
) -> Begun:
    """Open the store of an experiment, find the tasks that are left, in their order, and check
    the networks.
    """
    checked_experiment(experiment)
    place = None if store is None else checked_location("store", store)
    number, shares = (checked_integer("shard", part, 1) for part in shard)
    expect(number <= shares, "shard", shard, "(i, n) with 1 <= i <= n")
    expect(
        shares == 1 or store is not None,
        "shard",
        shard,
        "a store, in which the shares meet; give its folder",
    )
    # Check the parts, however the experiment was made.
    experiment = Experiment.from_dict(experiment.to_dict())
    opened = open_store(experiment, place, resume, accept_changes)
    # Neighbours of one noise level are measured together.
    tasks = sorted(opened.tasks(), key=lambda task: task.noise_index)
    if experiment.parts.backward.by_items:
        tasks = [
            task
            for task in sorted(tasks, key=lambda task: task.item_block)
            if task.item_block % shares == number - 1
        ]
    elif shares > 1 or workers != 1 or experiment.parts.backward.shares_batches:
        # Long U-turns first, so that all processes, and all images of the last batches, end at
        # about the same time. Round-robin assignment balances the shards.
        tasks = sorted(tasks, key=lambda task: -experiment.noise[task.noise_index])[
            number - 1 :: shares
        ]
    work = Tasks(experiment, opened)
    left = work.left(tasks)
    doubts = list(map(str, experiment.model_check())) if left else warnings_of(opened.file.texts())
    _noted(opened, doubts, new=doubts)
    return Begun(work, len(tasks), left, doubts)


def _noted(opened: RunFolder, texts: list[str], new: list[str]) -> None:
    """Store warnings in the attributes of a store, and give the new ones."""
    if texts != warnings_of(opened.file.texts()):
        opened.update(warnings=texts)
    for text in new:
        warnings.warn(text, stacklevel=4)


def _without_values(ds: xr.Dataset) -> list[str]:
    """Sentences on variables whose readings are all NaN. Levels are read until a number is
    found.
    """
    has_values = {
        name: any(np.isfinite(level.values).any() for level in ds[name])
        for name in ds.attrs["variables"]
    }
    return [f"all readings of {name} are NaN" for name, has in has_values.items() if not has]


def _on_cluster(
    work: Tasks,
    left: Mapping[Task, int],
    address: str,
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
) -> Generator[tuple[int, str]]:
    """Measure tasks on a Ray cluster; yields the number of newly finished tasks, and a text on
    the workers.
    """
    from uturn.engine.cluster import on_cluster, whole_batches

    experiment, opened = work.experiment, work.store
    for name, code in experiment.own_code().items():
        module = (code if inspect.isfunction(code) else type(code)).__module__
        expect(
            module != "__main__",
            f"module of {name}",
            module,
            "a file that workers can import; move it to one of its own",
        )
    backward, u_turns = (
        experiment.parts.backward,
        experiment.chunk * experiment.trajectories * experiment.clones,
    )
    batch = getattr(backward, "batch_size", None)
    where = opened.location if is_url(opened.location) else os.path.abspath(opened.location)
    tasks, by_items = list[Task](), backward.by_items
    alike = [
        list(group)
        for _, group in groupby(
            left, key=lambda task: task.item_block if by_items else task.noise_index
        )
    ]
    for level in [alike] if by_items else [[[task] for task in group] for group in alike]:
        some = deque(level)
        some.rotate(random.randrange(len(some)))  # so that other clusters take other tasks
        tasks += chain.from_iterable(some)
    states = on_cluster(
        address,
        partial(_tasks_of, json.dumps(experiment.to_dict()), where),
        tasks,
        label=opened.words,
        cpus=cpus,
        gpus=gpus,
        wants_gpu=backward.shares_batches or backward.wants_processes,
        together=(lambda task: task.item_block) if by_items else None,
        least_on_gpu=(
            whole_batches(u_turns, batch if isinstance(batch, int) else _BATCH)
            if backward.shares_batches
            else 1
        ),
        most_workers=workers,
        own_code=bool(experiment.own_code()),
    )
    before = len(left)
    with closing(states):
        for now, alive in states:
            yield before - now, f", {alive} {'worker' if alive == 1 else 'workers'}"
            before = now
    until = time.monotonic() + _SEEN_SECONDS
    while (lost := work.recorded_left(list(left))) and time.monotonic() < until:
        time.sleep(1)
    where = f"{opened.location}: measured tasks that this host does not see in it"
    expect(
        not lost,
        where,
        len(lost),
        "a store on a file system that all nodes share, or on object storage",
    )


def run_tasks(spec: str, store: str, tasks: list[tuple[Task, int]]) -> int:
    """Measure tasks (task, first trajectory) into a store, in one of several processes; gives
    their number.
    """
    return sum(1 for _ in _tasks_of(spec, store).measure(tasks))


@lru_cache(maxsize=1)
def _tasks_of(spec: str, store: str) -> Tasks:
    """The tasks of a spec in another process, perhaps on another host; ValueError if the source
    has other data than the store.
    """
    experiment, opened = Experiment.from_dict(json.loads(spec)), RunFolder.open(store)
    source = experiment.parts.source
    same = is_own(source) or source.fingerprint() == opened.models.get("source", "")
    expect(
        same, "source", source, "data as they were when the run began; bring them back, and resume"
    )
    return Tasks(experiment, opened)
