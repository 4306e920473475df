"""A short timing of the parts of an experiment, as a process of its run uses them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core import threads
from uturn.core.experiment import Experiment
from uturn.engine.counts import Calls, Group, blocks_of, calls_of
from uturn.engine.measuring import measure, measurements, tasks_together
from uturn.store.record import Scratch
from uturn.store.resume import layout_of

_SHORT, _LONG = 1, 5  # calls of the network in the two U-turns whose difference is timed; more if they are fast
_REPEATS = 9  # times at most that they are made
_APART = 0.3  # seconds that the two should differ by
_LEVELS = 12  # noise levels at most that are timed, for backwards without a network
_WEIGHED = 5  # noise levels at most whose readings are weighed, for the others
_ON_DISK = 2.4  # time of a task's files and records on disk over that of the same arrays in memory, measured
_GROWTH = 4  # ratio of the sizes that are tried one after the other


class Trial(NamedTuple):
    """Some U-turns that were made: their number, their calls of networks, the time of all in seconds, and readings of a task."""

    u_turns: int
    calls: Calls
    seconds: float
    items: int
    trajectories: int
    readings: dict[str, np.ndarray]


@dataclass
class Costs:
    """Costs of an experiment in one process.

    `start`: seconds before the second U-turn: modules are imported, models loaded, kernels compiled. `per_u_turn`: seconds of a
    U-turn at noise levels, without the network of the backward. `per_call`, `per_datum`: seconds of a call of this network, and
    of each datum in it. `per_task`: seconds of writing. `sizes`: bytes of the files of a full task at noise levels. `layout`:
    files and bytes of the empty store. `memory`: peak in bytes.
    """

    start: float = 0.0
    per_u_turn: dict[float, float] = field(default_factory=dict)
    per_call: float = 0.0
    per_datum: float = 0.0
    per_task: float = 0.0
    sizes: dict[float, float] = field(default_factory=dict)
    layout: tuple[int, float] = (0, 0.0)
    memory: float = 0.0

    def seconds(self, experiment: Experiment, group: Group, calls: Calls) -> float:
        """Time of all tasks of a group, given their calls."""
        u_turns = group.tasks * group.u_turns(experiment)
        each = _between(self.per_u_turn, experiment.noise[group.noise_index])
        return u_turns * each + calls.backward * self.per_call + calls.data * self.per_datum + group.tasks * self.per_task

    def seconds_together(self, experiment: Experiment, groups: Sequence[Group]) -> float:
        """Time of all tasks in one process, whose network has the data of all of them in its batches."""
        calls, alone = calls_of(experiment, groups, True), [calls_of(experiment, [group], False) for group in groups]
        total = sum(self.seconds(experiment, group, one) for group, one in zip(groups, alone, strict=True))
        return total + (calls.backward - sum(one.backward for one in alone)) * self.per_call

    def size(self, noise: float) -> float:
        """Bytes of the files of a full task."""
        return _between(self.sizes, noise)


def _between(known: dict[float, float], noise: float) -> float:
    levels = sorted(known)
    return float(np.interp(noise, levels, [known[level] for level in levels]))


class Timing:
    """Tries the tasks of some groups; `together`: one process measures all tasks; `budget`: seconds, without the start."""

    def __init__(self, experiment: Experiment, groups: Sequence[Group], together: bool, budget: float) -> None:
        self.experiment, self.groups, self.together, self.budget = experiment, groups, together, budget
        self.costs = Costs()
        source, corruption, backward = experiment.parts.source, experiment.parts.corruption, experiment.parts.backward
        calls = {g: backward.network_calls(experiment.noise[g.noise_index], corruption, source) for g in groups}
        self.longest = max(groups, key=lambda group: calls[group][0])
        self.length, self.batch = calls[self.longest]

    def started(self) -> float:
        """Make a U-turn twice; returns the seconds of all tasks if they were as slow, an upper limit."""
        _forget_peak()
        if self.together:
            import xarray  # noqa: F401  (a run opens its results with it, which takes memory)
        short = _SHORT if self.has_network else None
        self.scratch = Scratch(*layout_of(self.experiment, self.experiment.models()))
        self._tried(self.longest, 1, short)
        self.costs.memory = _memory("VmHWM")
        self.costs.layout = self.scratch.files, self.scratch.size
        again = self._tried(self.longest, 1, short)
        each = again.seconds / max(again.u_turns, 1) / max(again.calls.data, 1)
        return sum(each * g.tasks * g.u_turns(self.experiment) * max(1, self.length) for g in self.groups)

    @property
    def has_network(self) -> bool:
        """Whether the time of a U-turn is that of its calls of a network."""
        return self.length > _SHORT

    def finished(self) -> Costs:
        """Costs from U-turns that fit into the budget."""
        self.end = time.perf_counter() + 1.5 * self.budget  # of further trials
        _forget_peak()
        before = _memory("VmRSS")
        largest = self._with_network() if self.has_network else self._by_levels()
        # The memory above that of an idle process grows with the U-turns that are made together.
        peak, unit = _memory("VmHWM"), self._unit()
        self.costs.memory = max(self.costs.memory, before + (peak - before) * max(1.0, unit / largest))
        return self.costs

    def _unit(self) -> int:
        """U-turns that are in memory together."""
        task = max(group.u_turns(self.experiment) for group in self.groups)
        total = sum(group.tasks * group.u_turns(self.experiment) for group in self.groups)
        if self.together and self.experiment.parts.backward.shares_batches:
            return min(total, max(self.batch, task))
        return min(total, task * tasks_together(self.experiment)) if self.together else task

    # -- backwards without a network -------------------------------------------------------------------------------------------
    def _by_levels(self) -> int:
        """Time whole U-turns at some noise levels; returns the largest number that was made together."""
        levels = self._some_levels(_LEVELS)
        largest = 1
        for group in levels:
            begin, share = time.perf_counter(), self.budget / len(levels)
            trial = self._grown(group, self._unit(), None, share)
            times = [trial.seconds]  # the first one is slower: its memory is new
            while len(times) < _REPEATS and time.perf_counter() - begin + times[-1] < share:
                times.append(self._tried(group, trial.u_turns, None).seconds)
            noise = self.experiment.noise[group.noise_index]
            self.costs.per_u_turn[noise] = float(np.median(times[1:] or times)) / trial.u_turns
            self._weigh(noise, trial)
            largest = max(largest, trial.u_turns)
        return largest

    # -- backwards with a network ----------------------------------------------------------------------------------------------
    def _with_network(self) -> int:
        """Time U-turns with few calls of the network; what a call takes is their difference."""
        costs, longer = self.costs, min(_LONG, self.length)
        most = self._unit()
        if self.together and self.experiment.parts.backward.shares_batches:
            most = min(most, self.batch)
        many = self._grown(self.longest, most, longer, self.budget / 3)
        longer = int(np.clip(_APART * longer / many.seconds, longer, self.length))
        sizes = sorted({many.u_turns, max(1, many.u_turns // 4)})
        per_call, per_u_turn = [], 0.0
        for size in sizes:
            per_call.append(self._call(size, longer))
        (_, rows, seconds, per_u_turn) = per_call[-1]
        costs.per_datum = seconds / rows
        if len(per_call) > 1:
            (_, fewer, less, _) = per_call[0]
            if rows > fewer:
                costs.per_datum = float(np.clip((seconds - less) / (rows - fewer), 0, seconds / rows))
        costs.per_call = max(0.0, seconds - rows * costs.per_datum)
        for noise in self.experiment.noise:
            costs.per_u_turn[noise] = per_u_turn
        self._weigh_whole(many)
        return many.u_turns

    def _call(self, size: int, longer: int) -> tuple[int, float, float, float]:
        """U-turns, data in a call, seconds of a call, and seconds of the rest of a U-turn."""
        begin = time.perf_counter()
        calls: list[float] = []
        rests: list[float] = []
        while not calls or (time.perf_counter() - begin < self.budget / 4 and len(calls) < _REPEATS):
            short, long = (self._tried(self.longest, size, length) for length in (_SHORT, longer))
            more = long.calls.backward - short.calls.backward
            calls.append((long.seconds - short.seconds) / more)
            rests.append(short.seconds - calls[-1] * short.calls.backward)
        call = max(float(np.median(calls)), 1e-6)
        return long.u_turns, long.calls.data / long.calls.backward, call, max(0.0, float(np.median(rests))) / long.u_turns

    def _weigh_whole(self, short: Trial) -> None:
        """Sizes of files from whole U-turns of a few originals, as many as there is time for, else from short ones."""
        experiment, levels = self.experiment, self._some_levels(_WEIGHED)
        kept = min([experiment.items, *(first for probe in experiment.parts.probes if (first := getattr(probe, "first", None)))])
        for group in levels:
            left = min(self.budget / len(levels), self.end - time.perf_counter())
            whole = [items for items in (8, 4, 2, 1) if items <= kept and self._whole(group, items) < left]
            draws = experiment.trajectories * experiment.clones
            trial = self._tried(group._replace(first=0), whole[0] * draws, None) if whole else short
            self._weigh(experiment.noise[group.noise_index], trial)

    def _whole(self, group: Group, items: int) -> float:
        """Seconds of the whole U-turns of some originals."""
        calls = calls_of(self.experiment, [Group(group.noise_index, (items,), 0, 1)], self.together)
        return calls.backward * self.costs.per_call + calls.data * self.costs.per_datum

    def _some_levels(self, most: int) -> list[Group]:
        """The largest group of some noise levels, from the lowest to the highest."""
        of_level = {group.noise_index: group for group in sorted(self.groups, key=lambda group: group.u_turns(self.experiment))}
        some = sorted(of_level.values(), key=lambda group: self.experiment.noise[group.noise_index])
        return [some[k] for k in sorted({round(x) for x in np.linspace(0, len(some) - 1, most)})]

    # -- trials ----------------------------------------------------------------------------------------------------------------
    def _grown(self, group: Group, most: int, length: int | None, seconds: float) -> Trial:
        """A trial with as many U-turns as fit into so many seconds, at most `most`."""
        size, begin = 1, time.perf_counter()
        while True:
            trial = self._tried(group, min(size, most), length)
            left = seconds - (time.perf_counter() - begin)
            if size >= most or trial.seconds * _GROWTH > left:
                return trial
            size = max(trial.u_turns, size) * _GROWTH

    def _tried(self, group: Group, u_turns: int, length: int | None) -> Trial:
        """Make about so many U-turns of a group, as the run would, with `length` calls of the network each if it is given."""
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
        some = [(None, 0, np.arange(start, min(start + items, experiment.items))) for start in starts]
        begin = time.perf_counter()
        if self.together:
            *_, (_, readings) = measurements(small, some, 0)
        else:
            for _, _, numbers in some:
                readings = measure(small, 0, numbers)
        seconds = time.perf_counter() - begin
        made = sum(len(numbers) for _, _, numbers in some)
        ends = np.minimum(np.cumsum(blocks_of(experiment)[0]), items)
        blocks = tuple(np.diff(np.unique(ends), prepend=0).tolist())
        calls = calls_of(small, [Group(0, blocks, 0, tasks)], self.together)
        return Trial(made * trajectories * clones, calls, seconds, len(some[-1][2]), trajectories, readings)

    def _weigh(self, noise: float, trial: Trial) -> None:
        """Note the size of a full task's files at a noise level."""
        experiment, begin = self.experiment, time.perf_counter()
        full = self.scratch.sizes_of(trial.readings)
        writing = _ON_DISK * (time.perf_counter() - begin)
        self.costs.per_task = min(writing, self.costs.per_task) if self.costs.sizes else writing  # the first one is slower
        half = max(1, trial.items // 2)
        fewer = self.scratch.sizes_of({name: values[:half] for name, values in trial.readings.items()})
        total = float(full.pop(""))
        declared = experiment.variables()
        for name, size in full.items():
            # The size is that of the codec's header, and a part in proportion to the readings.
            of_item = (size - fewer[name]) / (trial.items - half) if trial.items > half else size / trial.items
            wanted = min(experiment.chunk, experiment.items)
            more = experiment.trajectories / trial.trajectories if "trajectory" in declared[name].dims else 1
            share = self._kept(name)
            total += (size + max(0.0, of_item) * (wanted * share - trial.items)) * more
        self.costs.sizes[noise] = total

    def _kept(self, name: str) -> float:
        """Share of the items of which a variable is kept."""
        for one, probe in zip(self.experiment.declared, self.experiment.parts.probes, strict=True):
            first = getattr(probe, "first", None)
            if name in one.variables and first is not None:
                return min(1.0, first / self.experiment.items)
        return 1.0


def _like(experiment: Experiment, noise: float, trajectories: int, length: int | None) -> Experiment:
    """The experiment with another number of trajectories, at one noise level, or so that its network has so many calls."""
    parts = experiment.parts
    if length is not None:
        backward, noise = parts.backward.trial(length, noise)
        parts = parts._replace(backward=backward)
    table = {**experiment.corruption, "noise": [noise]}
    small = experiment.model_copy(update={"corruption": table, "trajectories": trajectories})
    for name in ("noise", "hash", "declared"):
        small.__dict__.pop(name, None)
    small.__dict__["parts"] = parts
    return small


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Context in which kernels and torch use at most so many threads."""
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
    """The peak of the memory counts from now on, on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
