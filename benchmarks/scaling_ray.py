"""How fast a run on a Ray cluster hands out tasks: the second half of `benchmarks/scaling.py`.

    python benchmarks/scaling.py ray [--asynchronous 8] [--real 50] [--seconds 40]

Every measurement takes about so many seconds with all workers at work, and their start in addition. Prints the tables of
docs/cluster.md:

- overhead of a task against the local loop: an experiment of many small tasks, by `ut.run` in one process and by one worker;
- rate with 1, 2 and 4 workers, for tasks that compute and for tasks that sleep;
- tasks that sleep, on 1,000 slots of eight asynchronous workers, and on 50 real ones, one by one (no bundles): tasks a second
  through the driver, the share of what the slots could do, and the memory of a worker.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

SMALL = {
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 8},
    "corruption": {"type": "gaussian", "noise": [0.05]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}
LARGE = {**SMALL, "chunk": 256, "trajectories": 4}


class AsynchronousWorker:
    """A worker that sleeps for every task; one process has many slots."""

    seconds = 1.0

    def __init__(self, threads: int) -> None:
        pass

    async def start(self, **_: Any) -> dict[str, Any]:
        return {"pid": os.getpid(), "error": None}

    async def measure(self, tasks: list[Any]) -> dict[str, Any]:
        begin = time.monotonic()
        await asyncio.sleep(self.seconds * len(tasks))
        return {"error": None, "store": False, "measured": len(tasks), "twice": 0, "seconds": time.monotonic() - begin}

    async def pulse(self) -> float:
        return 0.0


class SleepingTasks:
    """Tasks of the real worker that sleep; nothing is stored."""

    twice = 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def recorded_left(self, tasks: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(tasks, 0)

    def measure(self, tasks: Any, *, check: bool = False) -> Any:
        for task, _ in tasks:
            time.sleep(self.seconds)
            yield task


@contextmanager
def machine(cores: int) -> Any:
    """A cluster of one node that says it has so many cores."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "object_store_memory": 2**28})
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def rate(states: Any, total: int, workers: int) -> float:
    """Tasks a second, between the moment when all workers have begun and that when less than so many slots are busy."""
    seen = [(time.monotonic(), state) for state in states]
    begun = next(k for k, (_, state) in enumerate(seen) if state.alive >= workers and state.left < total)
    ended = next(k for k, (_, state) in enumerate(seen) if state.left <= total // 10)
    if ended <= begun:
        raise SystemExit(f"too few tasks: {total}")
    (t0, first), (t1, last) = seen[begun], seen[ended]
    return (first.left - last.left) / (t1 - t0)


def asynchronous(address: str, workers: int, slots: int, duration: float) -> None:
    import ray.cloudpickle

    from uturn.engine.cluster import on_cluster
    from uturn.engine.cluster import workers as of_cluster

    total = int(slots * duration / AsynchronousWorker.seconds)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import this file
    options = {"cpus": 0.1, "slots": slots // workers, "most_workers": workers, "bundle_seconds": 0.0}
    of_cluster.Worker, worker = AsynchronousWorker, of_cluster.Worker
    found = rate(on_cluster(address, int, [(1.0, range(total))], **options), total, workers)
    of_cluster.Worker = worker
    possible = slots / AsynchronousWorker.seconds
    print(f"| {workers} asynchronous workers, {slots} slots, tasks of 1 s | {found:.0f} | {possible:.0f} | |", flush=True)


def real(address: str, workers: int, seconds: float, duration: float) -> None:
    from uturn.engine.cluster import on_cluster

    total = int(workers * duration / seconds)
    make = partial(SleepingTasks, seconds)
    options: dict[str, Any] = {"cpus": 0.1, "most_workers": workers, "bundle_seconds": 0.0}
    peak = []

    def watched() -> Any:
        for state in on_cluster(address, make, [(1.0, range(total))], **options):
            if state.alive == workers and not peak:
                peak.append(memory())
            yield state

    found = rate(watched(), total, workers)
    words = f"{workers} real {'worker' if workers == 1 else 'workers'}, tasks of {seconds:g} s"
    print(f"| {words} | {found:.0f} | {workers / seconds:.0f} | {peak[0] / workers / 2**20:.0f} MB |", flush=True)


def memory() -> float:
    """Bytes of all workers: what each of them has for itself, and its part of what it shares."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::Worker"):
                lines = (place / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def computing(address: str, duration: float) -> None:
    """Overhead of small tasks, and rates of large ones with more workers."""
    import uturn as ut
    from uturn.engine.run import _on_cluster
    from uturn.engine.tasks import Tasks
    from uturn.store.places import place_of
    from uturn.store.resume import open_store

    def local_seconds(spec: dict[str, Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            ut.run(ut.Experiment.from_dict({**spec, "items": spec["chunk"]}))  # compiled
            begin = time.monotonic()
            ut.run(ut.Experiment.from_dict(spec), Path(folder) / "x")
            return time.monotonic() - begin

    def cluster_rate(spec: dict[str, Any], workers: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            experiment = ut.Experiment.from_dict(spec)
            opened = open_store(experiment, place_of("store", Path(folder) / "x"), True, False)
            work = Tasks(experiment, opened)
            left = work.left(opened.tasks())
            seen, done = [], 0
            for count, words in _on_cluster(work, left, address, workers, 1.0, None):
                done += count
                seen.append((time.monotonic(), done, words))
            full = [k for k, (_, count, words) in enumerate(seen) if words.startswith(f", {workers} ") and count > 0]
            begin, end = full[0], next(k for k, (_, count, _) in enumerate(seen) if count >= 0.9 * len(left))
            return (seen[end][1] - seen[begin][1]) / (seen[end][0] - seen[begin][0])

    small = {**SMALL, "items": SMALL["chunk"] * int(300 * duration)}  # tasks of about 4 ms
    tasks = small["items"] // small["chunk"]
    one = local_seconds(small) / tasks
    print("| | ms a task |\n|---|---|")
    print(f"| local loop, one thread, {tasks} tasks of {small['chunk']} items | {1e3 * one:.2f} |")
    print(f"| one worker, bundles of about 10 s | {1e3 / cluster_rate(small, 1):.2f} |\n", flush=True)
    large = {**LARGE, "items": LARGE["chunk"] * int(10 * duration)}  # of about 50 ms
    print("| workers | tasks a second |\n|---|---|")
    for workers in (1, 2, 4):
        print(f"| {workers} | {cluster_rate(large, workers):.1f} |", flush=True)


def main(asynchronous_workers: int, real_workers: int, duration: float) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with machine(64) as address:
        computing(address, duration)
        print("\n| tasks that sleep | tasks a second | slots allow | memory of a worker |\n|---|---|---|---|")
        for workers in (1, 2, 4):
            real(address, workers, 0.05, duration)
        asynchronous(address, asynchronous_workers, 1000, duration)
        real(address, real_workers, 0.2, duration)
