"""Runs an experiment: its tasks are measured into a store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.processes import cores
from uturn.core.progress import progress_bar
from uturn.engine.executors import Executor, Job, OnRay, Processes, ThisProcess
from uturn.engine.schedule import Left, Share, ordered
from uturn.engine.tasks import Tasks
from uturn.store.folders import checked_location
from uturn.store.reading import dataset_of
from uturn.store.resume import open_store
from uturn.store.run_folder import RunFolder

if TYPE_CHECKING:
    import xarray as xr

Workers = int | Literal["auto"]
"""A number of processes. "auto": one for exact inference, whose kernels use all cores, and one for
each core for networks on the CPU.
"""


def run(
    experiment: Experiment,
    store: str | Path | None = None,
    resume: bool = True,
    *,
    workers: Workers | None = None,
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
    workers : int or "auto", optional
        Number of processes, which share the cores; by default 1. "auto" chooses one process for
        exact inference, whose kernels use all cores, and one for each core for networks on the CPU.
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
        access to the store. `workers` is then the largest number of workers, by default as many as
        there is room for; each takes, by default, one core, and for networks one GPU if the cluster
        has any.

    Returns
    -------
    xarray.Dataset
        Raw readings per item with labelled dims; attributes `spec` (JSON), `spec_hash`, `seed`,
        `models`, `versions`, `complete` (bool), `missing_tasks` (int) and, if something seems
        wrong, `warnings` (a JSON list of sentences). The readings depend only on the experiment;
        `chunk` and `workers` affect readings of networks by floating-point rounding.
    """
    checked_experiment(experiment)
    executor: Executor = ThisProcess()
    if cluster is not None:
        expected = "a store with it, on a file system that its nodes share"
        expect(store is not None, "cluster", cluster, expected)
        expect(isinstance(cluster, str), "cluster", cluster, "an address, as text")
        most = None
        if workers is not None:
            most = chosen_workers(workers, experiment)
        executor = OnRay(cluster, most, cpus_per_worker, gpus_per_worker)
    else:
        check_without_cluster(cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)
        number = 1
        if workers is not None:
            number = chosen_workers(workers, experiment)
        if workers != "auto" and number > 1 and store is None:
            raise ValueError(
                f"workers = {number} needs a store, because several processes write into it"
            )
        if number > 1 and store is not None:
            executor = Processes(number)
    begun = begin(experiment, store, resume, accept_changes, shard, executor)
    measure([begun], executor, progress, begun.tasks.store.location)
    return begun.end()


def check_without_cluster(**options: float | None) -> None:
    """ValueError if options for workers of a cluster are given without a cluster."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}: only used with cluster; give the address of a cluster")


def chosen_workers(workers: Workers, *experiments: Experiment) -> int:
    """The given number of processes, or the number that "auto" chooses for some experiments."""
    if workers != "auto":
        is_text = isinstance(workers, str)
        expect(not is_text, "workers", workers, "a number of processes, or 'auto'")
        return checked_integer("workers", workers, 1)
    for experiment in experiments:
        if checked_experiment(experiment).parts.backward.wants_processes:
            return cores()
    return 1


@dataclass(frozen=True)
class Begun:
    """A run whose store is open and whose networks are checked."""

    tasks: Tasks
    total: int
    """Number of tasks of its share."""
    left: list[Left]
    """Those to measure, in the order in which they are begun."""
    doubts: list[str]
    """What seems wrong with models and data, as sentences."""

    def end(self) -> xr.Dataset:
        """The dataset of `run`, after the tasks were measured."""
        experiment = self.tasks.experiment
        ds = dataset_of(self.tasks.store)
        if self.left and ds.attrs["complete"]:
            empty = _without_values(ds)
            if empty:
                _note(self.tasks.store, self.doubts + empty, new=empty)
                ds = ds.assign_attrs(warnings=json.dumps(self.doubts + empty))
        # The caller's spec: figures build parts from it, and the spec in a store is not trusted.
        return ds.assign_attrs(spec=json.dumps(experiment.to_dict()), spec_hash=experiment.hash)


def begin(
    experiment: Experiment,
    store: str | Path | None,
    resume: bool,
    accept_changes: bool,
    shard: tuple[int, int],
    executor: Executor,
) -> Begun:
    """Open the store of an experiment, find the tasks that are left, and check the networks."""
    share = _checked_share(shard, store)
    location = None
    if store is not None:
        location = checked_location("store", store)
    opened = open_store(experiment, location, resume, accept_changes)
    hints = experiment.parts.backward
    in_turn = isinstance(executor, ThisProcess)
    tasks = ordered(opened.tasks(), experiment.noise, hints, share, in_turn)
    work = Tasks(experiment, opened)
    left = work.left(tasks)
    if left:
        doubts = [str(finding) for finding in experiment.model_check()]
    else:
        doubts = opened.warnings
    _note(opened, doubts, new=doubts)
    return Begun(work, len(tasks), left, doubts)


def measure(runs: Sequence[Begun], executor: Executor, progress: bool, title: str) -> None:
    """Measure the tasks that are left of some runs, and show how many are done."""
    total = sum(begun.total for begun in runs)
    left = sum(len(begun.left) for begun in runs)
    with ExitStack() as stack:
        bar = progress_bar(progress, title, total, total - left, executor.note)
        advance = stack.enter_context(bar)
        for begun in runs:
            stack.enter_context(begun.tasks.store.writing())
        measured = executor.measured([Job(begun.tasks, begun.left) for begun in runs])
        stack.enter_context(closing(measured))
        for count in measured:
            for _ in range(count):
                advance()


def _checked_share(shard: tuple[int, int], store: str | Path | None) -> Share:
    expected = "(i, n) with 1 <= i <= n"
    is_pair = isinstance(shard, tuple | list) and len(shard) == 2
    expect(is_pair, "shard", shard, expected)
    number, count = (checked_integer("shard", part, 1) for part in shard)
    expect(number <= count, "shard", shard, expected)
    expected = "a store, in which the shares meet; give its folder"
    expect(count == 1 or store is not None, "shard", shard, expected)
    return Share(number, count)


def _note(store: RunFolder, sentences: list[str], new: list[str]) -> None:
    """Record sentences in a store, and warn of the new ones."""
    if sentences != store.warnings:
        store.update(warnings=sentences)
    for sentence in new:
        warnings.warn(sentence, stacklevel=4)


def _without_values(ds: xr.Dataset) -> list[str]:
    """Sentences on variables whose readings are all NaN."""
    sentences = []
    for name in ds.attrs["variables"]:
        # Levels are read until a number is found.
        if not any(np.isfinite(level.values).any() for level in ds[name]):
            sentences.append(f"all readings of {name} are NaN")
    return sentences
