"""The cost of a run (tasks, U-turns, disk, time), from a few U-turns that are timed and thrown
away.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from uturn.core import threads
from uturn.core.checks import checked_integer
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.processes import cores
from uturn.core.progress import duration, in_words
from uturn.engine.measuring import Wanted, measurements
from uturn.engine.run import chosen_workers
from uturn.engine.schedule import Left
from uturn.engine.tasks import left_of
from uturn.store.blocks import Blocks, Task
from uturn.store.folders import checked_location
from uturn.store.resume import trajectories_done

_MOST_LEVELS = 6
"""Noise levels that are timed."""
_GROWTH = 4
"""Ratio of consecutive numbers of originals that are timed."""
_MOST_ORIGINALS = 1024
_WRITING = 0.0001
"""Seconds for writing a task on a local disk."""
_MOST_PROCESSES = 8
"""Of the table of times, if no number is given."""


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a run."""

    tasks: int
    done: int
    """Stored tasks."""
    u_turns: int
    """Of the tasks that are left."""
    disk: float
    """Bytes of the readings of the complete store."""
    workers: int
    """Processes on this machine, which share its cores."""
    seconds: dict[int, float]
    """Time of the tasks that are left by number of processes, without loading models and
    compilation. Processes beyond `workers` are assumed to have cores of their own.
    """

    def lines(self) -> list[str]:
        """The plan as text."""
        tasks = in_words(self.done, self.tasks)
        if self.done == self.tasks:
            return [tasks]
        lines = [f"{tasks} with {self.u_turns:,} U-turns"]
        processes = f"{self.workers} processes"
        if self.workers == 1:
            processes = "1 process"
        time_here = duration(self.seconds[self.workers])
        lines.append(f"disk: {_bytes(self.disk)} of readings")
        lines.append(f"time: {time_here} in {processes} on this machine, after its start")
        more = [
            f"{number}: {duration(seconds)}"
            for number, seconds in self.seconds.items()
            if number != self.workers
        ]
        if more:
            lines.append(f"time in more such processes, on cores of their own: {', '.join(more)}")
        return lines


def plan(
    experiment: Experiment,
    store: str | Path | None = None,
    *,
    workers: int | None = None,
    budget: float = 5.0,
) -> Plan:
    """The estimated cost of the tasks of an experiment that are missing in its store; errors as in
    `run`. Nothing is written.

    U-turns are timed at a few noise levels, the smallest first, with more and more originals while
    the budget lasts. A line in the noise level, to which the steps of a diffusion model are
    proportional, gives their time at all levels.

    `workers`: number of processes; None for the choice of `run`, and up to 8 in the table of times.
    `budget`: approximate seconds of timing, after first U-turns that load models and compile
    kernels.
    """
    checked_experiment(experiment)
    most = _MOST_PROCESSES
    if workers is not None:
        most = checked_integer("workers", workers, 1)
    location = None
    if store is not None:
        location = checked_location("store", store)
    done = trajectories_done(experiment, location)
    left = left_of(experiment, done)
    chosen = chosen_workers("auto" if workers is None else workers, experiment)
    number = max(1, min(chosen, cores(), len(left)))
    work = _Work.of(experiment, left)
    total = 0.0
    if left:
        timing = _Timing(experiment, work, number)
        total = _WRITING * len(left) + timing.seconds(budget)
    numbers = sorted({number, most, *(2**power for power in range(most.bit_length()))})
    seconds = {
        processes: total / min(processes, max(1, len(left)))
        for processes in numbers
        if processes >= number
    }
    return Plan(
        tasks=len(done),
        done=len(done) - len(left),
        u_turns=sum(work.u_turns.values()),
        disk=_readings_in_bytes(experiment),
        workers=number,
        seconds=seconds,
    )


def _readings_in_bytes(experiment: Experiment) -> float:
    """Bytes of all readings as float32."""
    coordinates = experiment.coordinates()
    numbers = 0.0
    for variable in experiment.variables().values():
        shape = [len(coordinates[dim].values) for dim in variable.dims]
        numbers += np.prod(shape, dtype=float)
    return 4 * numbers


@dataclass(frozen=True)
class _Work:
    """What the tasks that are left take."""

    originals: int
    """That are drawn."""
    u_turns: Mapping[int, int]
    """Number of U-turns by index of the noise level."""

    @classmethod
    def of(cls, experiment: Experiment, left: list[Left]) -> _Work:
        blocks = Blocks(experiment.chunk, experiment.items, experiment.noise)
        one_of_each_block: dict[int, Task] = {}
        largest_of_each_block: dict[int, Left] = {}
        for entry in sorted(left, key=lambda entry: experiment.noise[entry.task.noise_index]):
            one_of_each_block[entry.task.item_block] = entry.task
            largest_of_each_block[entry.task.item_block] = entry
        originals = sum(len(blocks.items(task)) for task in one_of_each_block.values())
        costly = left
        if experiment.parts.backward.by_items:
            # The smaller noise levels of some items come with their largest.
            costly = list(largest_of_each_block.values())
        u_turns: Counter[int] = Counter()
        for entry in costly:
            trajectories = experiment.trajectories - entry.first
            items = len(blocks.items(entry.task))
            u_turns[entry.task.noise_index] += items * trajectories * experiment.clones
        return cls(originals, u_turns)


class _Timing:
    """Times U-turns of an experiment in one process, as it would be one of several."""

    def __init__(self, experiment: Experiment, work: _Work, workers: int) -> None:
        self.experiment = experiment
        self.work = work
        self.workers = workers
        self.noise = np.array(experiment.noise)
        self.levels = sorted(work.u_turns, key=lambda level: self.noise[level])
        places = np.linspace(0, len(self.levels) - 1, _MOST_LEVELS).round().astype(int)
        self.timed_levels = [self.levels[place] for place in np.unique(places)]
        self.of_original = 0.0
        """Seconds of drawing an original."""
        self.of_u_turn: dict[int, float] = {}
        """Seconds of a U-turn at the levels that were timed."""

    def seconds(self, budget: float) -> float:
        """Time of all originals and U-turns in one process."""
        self.draw_originals(0, 1)
        # Loads models and compiles kernels, of which the smallest noise may need none.
        for level in self.timed_levels[:2]:
            self.turn(level, 1)
        end = time.perf_counter() + budget
        took: dict[int, float] = {}
        with _limited_threads(max(1, cores() // self.workers)):
            for level in self.timed_levels:
                if len(took) < 2 or time.perf_counter() < end - budget / 2:
                    took[level] = self.turn(level, 1)
            self.turn_more(took, end)
        return self.total()

    def turn_more(self, took: dict[int, float], end: float) -> None:
        """Time more and more originals until the time `end`. `took`: seconds at each level."""
        most = min(self.experiment.items, self.experiment.chunk)
        if self.workers == 1:
            most = min(self.experiment.items, _MOST_ORIGINALS)
        items = 1
        while items < most and time.perf_counter() + _GROWTH * min(took.values()) <= end:
            before = items
            items = min(_GROWTH * items, most)
            self.draw_originals(before, items)
            gain = 1.0
            for level in took:
                fewer = self.of_u_turn[level]
                if time.perf_counter() + _GROWTH * took[level] < end:
                    took[level] = self.turn(level, items)
                    gain = self.of_u_turn[level] / fewer
                else:
                    # As many originals take too long here. A U-turn among them gains what it
                    # gained at a smaller level.
                    self.of_u_turn[level] *= gain

    def draw_originals(self, first: int, end: int) -> None:
        """Time the originals first .. end - 1."""
        begin = time.perf_counter()
        # `end` is given as the number of items of the experiment, so that a source which draws
        # ahead draws no more of them.
        blocks = self.experiment.parts.source.blocks(
            np.arange(first, end), self.experiment.seed, end
        )
        for _ in blocks:
            pass
        self.of_original = (time.perf_counter() - begin) / (end - first)

    def turn(self, level: int, items: int) -> float:
        """Time the U-turns of the first items at a noise level; gives their seconds."""
        cuts = [*range(0, items, self.experiment.chunk), items]
        tasks = [Wanted(None, level, np.arange(*ends)) for ends in pairwise(cuts)]
        begin = time.perf_counter()
        for _ in measurements(self.experiment, tasks):
            pass
        seconds = time.perf_counter() - begin
        draws = self.experiment.trajectories * self.experiment.clones
        self.of_u_turn[level] = seconds / (items * draws)
        return seconds

    def total(self) -> float:
        """Seconds of all originals and U-turns, from a line in the noise level."""
        seconds = list(self.of_u_turn.values())
        slope = 0.0
        base = seconds[0]
        if len(seconds) > 1:
            slope, base = np.polyfit([self.noise[level] for level in self.of_u_turn], seconds, 1)
        total = self.work.originals * self.of_original
        for level, number in self.work.u_turns.items():
            total += number * max(base + slope * self.noise[level], min(seconds))
        return float(total)


@contextmanager
def _limited_threads(number: int) -> Iterator[None]:
    """Context in which kernels and networks use fewer threads."""
    kernel_threads = threads.num_threads
    threads.num_threads = min(number, kernel_threads)
    try:
        with threads.torch_threads(number):
            yield
    finally:
        threads.num_threads = kernel_threads


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
