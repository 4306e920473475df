"""The cost of a run (tasks, U-turns, disk, time), from a few U-turns that are timed and thrown
away.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from uturn.core import threads
from uturn.core.checks import checked_integer
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.processes import cores
from uturn.core.progress import duration
from uturn.engine.measuring import measurements
from uturn.engine.run import chosen_workers
from uturn.engine.tasks import left_of
from uturn.store.blocks import Blocks
from uturn.store.folders import checked_location
from uturn.store.resume import trajectories_done

_LEVELS = 6  # largest number of noise levels that are timed
_GROWTH = 4  # ratio of consecutive numbers of originals
_MOST = 1024  # largest number of originals
_WRITING = 0.004  # seconds for writing a task


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a run."""

    tasks: int
    done: int  # stored tasks
    u_turns: int  # of the remaining tasks
    disk: float  # bytes of the readings of the complete store, before their compression
    workers: int  # processes on this machine, sharing its cores
    seconds: dict[int, float]
    """Time of the remaining tasks by number of processes, without loading models and
    compilation. Processes beyond `workers` are assumed to have separate cores.
    """

    def lines(self) -> list[str]:
        left = self.tasks - self.done
        lines = [
            f"tasks: {self.tasks:,}, {self.done:,} done, {left:,} left with {self.u_turns:,}"
            " U-turns"
        ]
        if not left:
            return lines
        processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
        lines += [
            f"disk: {_bytes(self.disk)} of readings, before compression",
            (
                f"time: {duration(self.seconds[self.workers])} in {processes} on this machine,"
                " after its start"
            ),
        ]
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
    least: float = 0.0,
) -> Plan | None:
    """The estimated cost of the tasks of an experiment that are missing in its store; errors as in
    `run`. Nothing is written.

    U-turns are timed at a few noise levels, the smallest first, with more and more originals while
    the budget lasts. A line in the noise level, to which the steps of a diffusion model are
    proportional, gives their time at all levels.

    `workers`: number of processes; None for the choice of `run`, and up to 8 in the table of times.
    `budget`: approximate seconds of timing, after first U-turns that load models and compile
    kernels. A time below `least` seconds gives None.
    """
    checked_experiment(experiment)
    most = 8 if workers is None else checked_integer("workers", workers, 1)
    done = trajectories_done(
        experiment, None if store is None else checked_location("store", store)
    )
    missing = {entry.task: entry.first for entry in left_of(experiment, done)}
    blocks = Blocks(experiment.chunk, experiment.items, experiment.noise)
    workers = max(1, min(chosen_workers(workers, experiment), cores(), len(missing)))
    u_turns: Counter[int] = Counter()
    originals = sum(
        len(blocks.items(task)) for task in {task.item_block: task for task in missing}.values()
    )
    costly = missing
    # The smaller noise levels of some items come with their largest.
    if experiment.parts.backward.by_items:
        ordered = sorted(missing, key=lambda task: experiment.noise[task.noise_index])
        costly = {
            task: missing[task] for task in {task.item_block: task for task in ordered}.values()
        }
    for task, first in costly.items():
        u_turns[task.noise_index] += (
            len(blocks.items(task)) * (experiment.trajectories - first) * experiment.clones
        )
    writing = _WRITING * len(missing)
    total = (
        writing
        + _seconds(experiment, originals, u_turns, workers, budget, least * workers - writing)
        if missing
        else 0.0
    )
    numbers = sorted({workers, most, *(2**k for k in range(most.bit_length()))})
    seconds = {k: total / min(k, max(1, len(missing))) for k in numbers if k >= workers}
    if seconds[workers] < least:
        return None
    coordinates = experiment.coordinates()
    shapes = [
        [len(coordinates[dim][1]) for dim in variable.dims]
        for variable in experiment.variables().values()
    ]
    disk = float(sum(4 * np.prod(shape, dtype=float) for shape in shapes))
    return Plan(len(done), len(done) - len(missing), sum(u_turns.values()), disk, workers, seconds)


def _seconds(
    experiment: Experiment,
    originals: int,
    u_turns: Counter[int],
    workers: int,
    budget: float,
    least: float,
) -> float:
    """Time of drawing originals and of U-turns {level: number} in one process; an upper limit if
    it is less than `least`.
    """
    source, noise, draws = (
        experiment.parts.source,
        np.array(experiment.noise),
        experiment.trajectories * experiment.clones,
    )
    levels = sorted(u_turns, key=lambda level: noise[level])
    timed = [
        levels[k] for k in np.unique(np.linspace(0, len(levels) - 1, _LEVELS).round().astype(int))
    ]
    of_original = 0.0  # seconds
    each: dict[float, float] = {}  # seconds of a U-turn, by noise level

    def made(first: int, end: int) -> None:
        # The number of items is given as that of the experiment, so that a source which draws ahead
        # draws no more of them.
        nonlocal of_original
        begin = time.perf_counter()
        for _ in source.blocks(np.arange(first, end), experiment.seed, end):
            pass
        of_original = (time.perf_counter() - begin) / (end - first)

    def measured(level: int, items: int) -> float:
        cuts, begin = [*range(0, items, experiment.chunk), items], time.perf_counter()
        tasks = [(None, level, np.arange(*ends)) for ends in pairwise(cuts)]
        for _ in measurements(experiment, tasks):
            pass
        each[noise[level]] = (time.perf_counter() - begin) / (items * draws)
        return time.perf_counter() - begin

    def total() -> float:
        slope, base = (
            np.polyfit(list(each), list(each.values()), 1)
            if len(each) > 1
            else (0.0, *each.values())
        )
        of_level = {level: max(base + slope * noise[level], min(each.values())) for level in levels}
        return originals * of_original + sum(
            number * of_level[level] for level, number in u_turns.items()
        )

    made(0, 1)
    # Loads models and compiles kernels, of which the smallest noise may need none.
    for level in timed[:2]:
        measured(level, 1)
    end, took = time.perf_counter() + budget, dict[int, float]()
    with _limited_threads(max(1, cores() // workers)):
        for level in timed:
            if len(took) < 2 or time.perf_counter() < end - budget / 2:
                took[level] = measured(level, 1)
        most, items = min(experiment.items, _MOST if workers == 1 else experiment.chunk), 1
        while items < most and total() >= least:
            if time.perf_counter() + _GROWTH * min(took.values()) > end:
                break
            before, items, ratio = items, min(_GROWTH * items, most), 1.0
            made(before, items)
            for level in took:
                fewer = each[noise[level]]
                if time.perf_counter() + _GROWTH * took[level] < end:
                    took[level] = measured(level, items)
                    ratio = each[noise[level]] / fewer
                else:  # as many originals take too long here; a U-turn among them gains what it gained at a smaller level
                    each[noise[level]] *= ratio
    return total()


@contextmanager
def _limited_threads(number: int) -> Iterator[None]:
    torch: Any = sys.modules.get("torch")
    before = threads.num_threads, torch.get_num_threads() if torch else 0
    threads.num_threads = min(number, before[0])
    if torch:
        torch.set_num_threads(min(number, before[1]))
    try:
        yield
    finally:
        threads.num_threads = before[0]
        if torch:
            torch.set_num_threads(before[1])


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
