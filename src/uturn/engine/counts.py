"""Counts of the U-turns and network calls of the tasks of an experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from uturn.core.experiment import Experiment
from uturn.engine.measuring import trajectories_together
from uturn.store.record import Task


class Group(NamedTuple):
    """Tasks of one noise level that cost the same.

    `blocks`: number of originals in each block of a task. `first`: the first trajectory that is missing.
    """

    noise_index: int
    blocks: tuple[int, ...]
    first: int
    tasks: int

    def u_turns(self, experiment: Experiment) -> int:
        """U-turns of a task."""
        return sum(self.blocks) * (experiment.trajectories - self.first) * experiment.clones


def groups_of(experiment: Experiment, missing: Mapping[Task, int]) -> list[Group]:
    """The missing tasks {task: first missing trajectory} as groups, largest noise first, in the order of `run`."""
    blocks = blocks_of(experiment)
    alike = Counter((task.noise_index, blocks[task.item_block], first) for task, first in missing.items())
    return sorted((Group(*kind, tasks) for kind, tasks in alike.items()), key=lambda group: -experiment.noise[group.noise_index])


def blocks_of(experiment: Experiment) -> list[tuple[int, ...]]:
    """Numbers of originals in the blocks of each task of a noise level; a block of strings is of one grammar."""
    starts = np.arange(0, experiment.items, experiment.chunk)
    grammar = experiment.coordinates().get("grammar")
    cuts = np.flatnonzero(np.diff(grammar[1])) + 1 if grammar is not None else np.array([], int)
    ends = np.union1d(np.r_[starts[1:], cuts], experiment.items)
    parts = np.split(np.diff(ends, prepend=0), np.searchsorted(ends, starts[1:], side="right"))
    return [tuple(part.tolist()) for part in parts]


def calls_of(experiment: Experiment, groups: Sequence[Group], together: bool) -> dict[str, int]:
    """Calls of the networks of the backward and of each probe, {part: calls}, for groups of tasks.

    `together`: whether all tasks are in one process and share the batches of the backward's network.
    """
    source, corruption, backward, probes = experiment.parts
    of_backward, of_probes = 0, [0] * len(probes)
    jobs: dict[int, list[tuple[int, int]]] = {}
    size = 1
    for noise_index, blocks, first, tasks in groups:
        calls, size = backward.network_calls(experiment.noise[noise_index], corruption, source)
        draws = (experiment.trajectories - first) * experiment.clones
        parts = _parts(experiment, experiment.trajectories - first)
        jobs.setdefault(first, []).append((tasks * sum(blocks) * draws, calls))
        for items in blocks:
            for trajectories, number in parts.items():
                rows = trajectories * experiment.clones
                of_backward += tasks * number * calls * -(-items * rows // size)
                for k, probe in enumerate(probes):
                    of_probes[k] += tasks * number * probe.network_calls(items, rows, experiment.clones, source)
    if backward.shares_batches and together:
        of_backward = sum(queue_calls(some, size) for some in jobs.values())
    return {"backward": of_backward, **{f"probes[{k}]": number for k, number in enumerate(of_probes)}}


def _parts(experiment: Experiment, trajectories: int) -> Counter[int]:
    """Numbers of trajectories in memory together, with their frequencies."""
    size = trajectories
    if all(probe.reads_in_parts for probe in experiment.parts.probes):
        first = next(iter(experiment.parts.source.blocks(np.arange(1), experiment.seed, experiment.items)))
        size = min(size, trajectories_together(experiment, first))
    return Counter(min(size, trajectories - start) for start in range(0, trajectories, size))


def queue_calls(jobs: Iterable[tuple[int, int]], size: int) -> int:
    """Calls of a network whose batches have `size` places, for jobs (number of data, calls of each) in this order.

    A place that becomes free is taken by the next datum (`uturn.backward.queue`).
    """
    free = {0: size}  # places that become free after so many calls
    for count, calls in jobs:
        while count and calls:
            if max(free) - min(free) <= calls and count > size:  # each place takes one datum before any of them takes two
                rounds = (count - 1) // size
                free = {end + rounds * calls: places for end, places in free.items()}
                count -= rounds * size
            first = min(free)
            places = free.pop(first)
            taken = min(count, places)
            count -= taken
            for end, number in ((first, places - taken), (first + calls, taken)):
                if number:
                    free[end] = free.get(end, 0) + number
    return max(free)
