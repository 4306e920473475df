"""The cost of a run (tasks, network calls, memory, disk, time), from counts and a short timing of its parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from pathlib import Path

from uturn.core.checks import checked_integer
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.processes import cores
from uturn.core.progress import duration
from uturn.engine.counts import calls_of, groups_of
from uturn.engine.tasks import left_of
from uturn.engine.timing import Timing, limited_threads
from uturn.store.places import place_of
from uturn.store.resume import trajectories_done

_MOST = 20_000  # largest number of tasks that are distributed one by one


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a run.

    Attributes
    ----------
    tasks, done, u_turns : int
        Tasks of the experiment, stored tasks, and U-turns of the remaining tasks.
    calls : {part: int}
        Network calls of the remaining tasks, for each part with a network.
    memory : float
        Peak of a process, bytes.
    disk, files : float, int
        Bytes and number of the files of the complete store.
    start : float
        Seconds before a process measures, for importing modules, loading models and compiling kernels.
    workers : int
        Number of processes on this machine, sharing its cores.
    seconds : {workers: float}
        Time of the remaining tasks by number of processes, without the start. Processes beyond `workers` are assumed to have
        separate cores.
    """

    tasks: int
    done: int
    u_turns: int
    calls: dict[str, int]
    memory: float
    disk: float
    files: int
    start: float
    workers: int
    seconds: dict[int, float]

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        left = self.tasks - self.done
        lines = [f"tasks: {self.tasks:,}, {self.done:,} done, {left:,} left with {self.u_turns:,} U-turns"]
        if not left:
            return lines
        counts = ", ".join(f"{number:,} ({part})" for part, number in self.calls.items())
        each = " a process" if self.workers > 1 else ""
        start = f", and {duration(self.start)} to start" if self.start else ""
        processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
        lines += [
            f"calls of networks: {counts or 'none'}",
            f"memory: {_bytes(self.memory)}{each}",
            f"disk: {_bytes(self.disk)} in {self.files:,} files",
            f"time: {duration(self.seconds[self.workers])} in {processes} on this machine{start}",
        ]
        more = [f"{number}: {duration(seconds)}" for number, seconds in self.seconds.items() if number != self.workers]
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
    since: float | None = None,
) -> Plan | None:
    """Estimate the cost of running an experiment into a store. Nothing is written.

    Parameters
    ----------
    experiment, store
        As in `run`. Only tasks missing in the store are counted.
    workers
        Number of processes. Processes beyond the cores of this machine are assumed to have separate cores, in a cluster. None:
        the choice of `run`, and up to 8 in the table of times.
    budget
        Approximate seconds of timing, in addition to loading models and compilation.
    least
        If the remaining time is shorter than this number of seconds, the result is None.
    since
        Value of `time.perf_counter()` at the beginning of the start, by default at the call.

    Raises
    ------
    ValueError
        As in `run`, if a part or the store does not fit.
    """
    since = time.perf_counter() if since is None else since
    checked_experiment(experiment)
    workers = None if workers is None else checked_integer("workers", workers, 1)
    place = None if store is None else place_of("store", store)
    experiment = Experiment.from_dict(experiment.to_dict())
    experiment.__dict__["parts"] = experiment.parts._replace(source=experiment.parts.source.blank())
    done = trajectories_done(experiment, place)
    missing = left_of(experiment, done)
    groups = groups_of(experiment, missing)
    most = workers or 8
    if workers is None:
        workers = cores() if experiment.parts.backward.wants_processes else 1
    workers = max(1, min(workers, cores(), len(missing)))
    if not missing:
        return Plan(len(done), len(done), 0, {}, 0.0, 0.0, 0, 0.0, workers, {workers: 0.0}) if not least else None
    together = workers == 1
    timing, threads = Timing(experiment, groups, together, budget), max(1, cores() // workers)
    with limited_threads(threads):
        if timing.started() < least:
            return None
    # Several processes start in parallel, after the process that starts them.
    start = (time.perf_counter() - since) * (1 if together else 2)
    with limited_threads(threads):  # torch may have been imported by now
        timing.finish()
    source, _, _, probes = experiment.parts
    originals, of_originals = source.network_calls(experiment.items, experiment.chunk, probes)
    times = [(timing.seconds(group), group.tasks) for group in groups]
    numbers = sorted({workers, most, *(2**k for k in range(most.bit_length()))})
    seconds = {k: _seconds(times, k) + of_originals * timing.per_datum / k for k in numbers if k >= workers}
    if seconds[workers] < least:
        return None
    calls = {"source": originals, **calls_of(experiment, groups, together)}
    return Plan(
        tasks=len(done),
        done=len(done) - len(missing),
        u_turns=sum(group.tasks * group.u_turns(experiment) for group in groups),
        calls={part: number for part, number in calls.items() if number},
        memory=timing.memory,
        disk=timing.size(),
        files=timing.scratch.files + len(done) * (1 + len(experiment.variables())),
        start=start,
        workers=workers,
        seconds=seconds,
    )


def _seconds(times: Sequence[tuple[float, int]], workers: int) -> float:
    """Time of tasks (seconds, number) with `workers` processes, each of which takes the next task when it is free."""
    if workers == 1 or sum(number for _, number in times) > _MOST:
        return sum(seconds * number for seconds, number in times) / workers
    ends = [0.0] * workers
    heapify(ends)
    for seconds, number in times:
        for _ in range(number):
            heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
