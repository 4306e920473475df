"""A short timing of the parts of an experiment under the conditions of its run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core import threads
from uturn.core.experiment import Experiment
from uturn.engine.counts import Group
from uturn.engine.measuring import measure, measurements, tasks_together
from uturn.store.record import Scratch
from uturn.store.resume import layout_of

_SHORT, _LONG = 1, 5  # network calls of the two U-turns whose difference is timed; more if they are fast
_REPEATS = 9  # largest number of repetitions
_APART = 0.3  # desired difference of their times in seconds
_LEVELS = 6  # largest number of noise levels with complete U-turns
_WEIGHED = 8  # largest number of originals at each of them, for backwards with a network
_ON_DISK = 2.4  # measured ratio of the times to write a task to disk and to memory
_GROWTH = 4  # ratio of consecutive sizes tried


class Trial(NamedTuple):
    """Timed U-turns: their number, the data in all network calls, the total seconds, and the readings of a task."""

    u_turns: int
    data: int
    seconds: float
    items: int
    trajectories: int
    readings: dict[str, np.ndarray]


class Timing:
    """Costs of the tasks of an experiment in one process, from trials of some of them.

    Parameters
    ----------
    groups
        The tasks.
    together
        Whether one process measures all tasks.
    budget
        Seconds for trials, excluding the start.

    Attributes
    ----------
    scratch : Scratch
        The empty store, with its number of files.
    memory : float
        Peak in bytes.
    """

    def __init__(self, experiment: Experiment, groups: Sequence[Group], together: bool, budget: float) -> None:
        self.experiment, self.groups, self.together, self.budget = experiment, groups, together, budget
        self.longest = max(groups, key=lambda group: _calls(experiment, group.noise_index))
        source, corruption, backward, _ = experiment.parts
        noise = experiment.noise[self.longest.noise_index]
        self.length, self.batch = backward.network_calls(noise, corruption, source)
        # Whether network calls determine the time of a U-turn, and there are U-turns with fewer calls to compare with.
        shorter, level = backward.trial(_SHORT, noise)
        self.has_network = self.length > _SHORT and shorter.network_calls(level, corruption, source)[0] < self.length
        self.per_datum = 0.0  # seconds of a network call for each datum
        self.per_u_turn: dict[float, float] = {}  # seconds of the rest of a U-turn at noise levels
        self.per_task = math.inf  # seconds of writing
        self.sizes: dict[float, float] = {}  # bytes of the files of a full task at noise levels
        self.scratch = Scratch(*layout_of(experiment, experiment.models()))
        self.memory = 0.0

    def seconds(self, group: Group) -> float:
        """Time of a task of a group."""
        each = _between(self.per_u_turn, self.experiment.noise[group.noise_index])
        calls = _calls(self.experiment, group.noise_index)
        return group.u_turns(self.experiment) * (each + calls * self.per_datum) + self.per_task

    def size(self) -> float:
        """Bytes of the files of the complete store."""
        full = self.experiment.items / min(self.experiment.chunk, self.experiment.items)  # tasks of a noise level
        return self.scratch.size + full * sum(_between(self.sizes, noise) for noise in self.experiment.noise)

    def started(self) -> float:
        """Make a U-turn twice; returns the seconds of all tasks at this speed, an upper limit."""
        _forget_peak()
        if self.together:
            import xarray  # noqa: F401  (a run opens its results with it, which takes memory)
        short = _SHORT if self.has_network else None
        self._tried(self.longest, 1, short)
        self.memory = _memory("VmHWM")
        again = self._tried(self.longest, 1, short)
        each = again.seconds / max(again.u_turns, again.data)
        return sum(each * g.tasks * g.u_turns(self.experiment) * max(1, self.length) for g in self.groups)

    def finish(self) -> None:
        """Time U-turns within the budget."""
        _forget_peak()
        before, unit = _memory("VmRSS"), self._unit()
        short = self._time_network(unit) if self.has_network else None
        largest = self._time_levels(unit, short)
        # The memory above that of an idle process grows with the number of simultaneous U-turns.
        self.memory = max(self.memory, before + (_memory("VmHWM") - before) * max(1.0, unit / largest))

    def _unit(self) -> int:
        """Number of U-turns in memory together."""
        task = max(group.u_turns(self.experiment) for group in self.groups)
        total = sum(group.tasks * group.u_turns(self.experiment) for group in self.groups)
        if self.together and self.experiment.parts.backward.shares_batches:
            return min(total, max(self.batch, task))
        return min(total, task * tasks_together(self.experiment)) if self.together else task

    def _time_network(self, unit: int) -> Trial:
        """Time a call of the network by U-turns with few calls, in batches as full as in the run; returns the last trial."""
        shares = self.together and self.experiment.parts.backward.shares_batches
        length = min(_LONG, self.length)
        long = self._grown(self.longest, min(unit, self.batch) if shares else unit, length, self.budget / 3)
        length = int(np.clip(_APART * length / long.seconds, length, self.length))
        end = time.perf_counter() + self.budget / 2
        of_datum: list[float] = []
        of_rest: list[float] = []
        while not of_datum or (time.perf_counter() < end and len(of_datum) < _REPEATS):
            short, long = (self._tried(self.longest, long.u_turns, calls) for calls in (_SHORT, length))
            of_datum.append(max((long.seconds - short.seconds) / (long.data - short.data), 1e-9))
            of_rest.append(max(0.0, short.seconds - of_datum[-1] * short.data) / short.u_turns)
        self.per_datum = float(np.median(of_datum))
        self.per_u_turn = {noise: float(np.median(of_rest)) for noise in self.experiment.noise}
        return long

    def _time_levels(self, unit: int, short: Trial | None) -> int:
        """Make complete U-turns at some noise levels; returns the largest number made together.

        They give the time of backwards without a network, and file sizes. If a U-turn takes too long, its file size is estimated
        by a short one.
        """
        experiment, largest = self.experiment, short.u_turns if short else 1
        largest_of = {group.noise_index: group for group in sorted(self.groups, key=lambda group: group.u_turns(experiment))}
        groups = sorted(largest_of.values(), key=lambda group: experiment.noise[group.noise_index])
        groups = [groups[k] for k in sorted({round(x) for x in np.linspace(0, len(groups) - 1, _LEVELS)})]
        draws, share = experiment.trajectories * experiment.clones, self.budget / len(groups)
        # Probes that store only the first items have no readings of later items.
        firsts = [first for probe in experiment.parts.probes if (first := getattr(probe, "first", None))]
        items = min([_WEIGHED, experiment.items, *firsts])
        for group in groups:
            noise = experiment.noise[group.noise_index]
            if short is None:
                trial = self._grown(group, unit, None, share / 2)
                trial = self._tried(group, trial.u_turns, None)  # repeat, since the first is slower, with newly allocated memory
                self.per_u_turn[noise] = trial.seconds / trial.u_turns
            else:
                each = draws * _calls(experiment, group.noise_index) * self.per_datum
                whole = min(items, int(share / max(each, 1e-9)))
                trial = self._tried(group._replace(first=0), whole * draws, None) if whole else short
            self._weigh(noise, trial)
            largest = max(largest, trial.u_turns)
        return largest

    def _grown(self, group: Group, most: int, length: int | None, seconds: float) -> Trial:
        """A trial with as many U-turns as fit into `seconds`, at most `most`."""
        size, begin = 1, time.perf_counter()
        while True:
            trial = self._tried(group, min(size, most), length)
            left = seconds - (time.perf_counter() - begin)
            if size >= most or trial.seconds * _GROWTH > left:
                return trial
            size = max(trial.u_turns, size) * _GROWTH

    def _tried(self, group: Group, u_turns: int, length: int | None) -> Trial:
        """Make about `u_turns` U-turns of a group as in the run, with `length` network calls each if given."""
        experiment, noise = self.experiment, self.experiment.noise[group.noise_index]
        trajectories, clones = experiment.trajectories - group.first, experiment.clones
        in_task, of_item = group.u_turns(experiment), trajectories * clones
        tasks, items = 1, sum(group.blocks)
        if u_turns >= in_task:
            tasks = min(u_turns // in_task, max(1, experiment.items // experiment.chunk))
        else:
            items = max(1, u_turns // of_item)
            least = max(probe.least_trajectories for probe in experiment.parts.probes)
            trajectories = trajectories if u_turns >= of_item else min(trajectories, max(least, u_turns // clones))
        small = _like(experiment, noise, trajectories, length)
        starts = [experiment.chunk * k % experiment.items for k in range(tasks)]
        named = [(None, 0, np.arange(start, min(start + items, experiment.items))) for start in starts]
        begin = time.perf_counter()
        if self.together:
            *_, (_, readings) = measurements(small, named, 0)
        else:
            for _, _, numbers in named:
                readings = measure(small, 0, numbers)
        seconds = time.perf_counter() - begin
        made = sum(len(numbers) for _, _, numbers in named) * trajectories * clones
        return Trial(made, made * _calls(small, 0), seconds, len(named[-1][2]), trajectories, readings)

    def _weigh(self, noise: float, trial: Trial) -> None:
        """Note the size of a full task's files at a noise level."""
        experiment, begin = self.experiment, time.perf_counter()
        full = self.scratch.sizes_of(trial.readings)
        writing = _ON_DISK * (time.perf_counter() - begin)
        self.per_task = min(writing, self.per_task)  # the first one is slower
        half = max(1, trial.items // 2)
        fewer = self.scratch.sizes_of({name: values[:half] for name, values in trial.readings.items()})
        total = float(full.pop(""))
        declared = experiment.variables()
        for name, size in full.items():
            # A file's size is the codec's header plus a part proportional to the readings.
            of_item = (size - fewer[name]) / (trial.items - half) if trial.items > half else size / trial.items
            wanted = min(experiment.chunk, experiment.items)
            more = experiment.trajectories / trial.trajectories if "trajectory" in declared[name].dims else 1
            share = self._kept(name)
            total += (size + max(0.0, of_item) * (wanted * share - trial.items)) * more
        self.sizes[noise] = total

    def _kept(self, name: str) -> float:
        """Share of the items for which a variable is stored."""
        for declared, probe in zip(self.experiment.declared, self.experiment.parts.probes, strict=True):
            first = getattr(probe, "first", None)
            if name in declared.variables and first is not None:
                return min(1.0, first / self.experiment.items)
        return 1.0


def _between(known: dict[float, float], noise: float) -> float:
    levels = sorted(known)
    return float(np.interp(noise, levels, [known[level] for level in levels]))


def _calls(experiment: Experiment, noise_index: int) -> int:
    """Calls of the network for a U-turn at a noise level."""
    source, corruption, backward, _ = experiment.parts
    return backward.network_calls(experiment.noise[noise_index], corruption, source)[0]


def _like(experiment: Experiment, noise: float, trajectories: int, length: int | None) -> Experiment:
    """The experiment with another number of trajectories, a single noise level, or another number of network calls."""
    parts = experiment.parts
    if length is not None:
        backward, noise = parts.backward.trial(length, noise)
        parts = parts._replace(backward=backward)
    small = experiment.model_copy(update={"noise": [noise], "trajectories": trajectories})
    for name in ("hash", "declared"):
        small.__dict__.pop(name, None)
    small.__dict__["parts"] = parts
    return small


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Context in which kernels and torch use at most `number` threads."""
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


# -- memory --------------------------------------------------------------------------------------------------------------------
def _memory(what: str) -> float:
    """Memory of this process in bytes: now ("VmRSS"), or its peak ("VmHWM")."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return 1024.0 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _forget_peak() -> None:
    """Reset the peak memory of this process, on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
