"""How fast a run on a Ray cluster hands out tasks: the second half of `benchmarks/scaling.py`.

    python benchmarks/scaling.py ray [--workers 50] [--seconds 40]

Every measurement takes about so many seconds with all workers at work, and their start in addition.
Prints the tables of benchmarks/README.md:

- processor time of small tasks by `ut.run` in one process, and by one worker and its driver, which
  hardly depends on what other programs do meanwhile;
- tasks that sleep, handed out one by one (no bundles) to 1, 2, 4 and 50 workers: tasks a second,
  those that the workers could do, and the memory of a worker.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uturn.engine import cluster as engine_cluster
from uturn.engine.cluster import on_cluster
from uturn.engine.executors import Job, OnRay
from uturn.engine.schedule import Left
from uturn.engine.tasks import Tasks
from uturn.store.folders import checked_location
from uturn.store.resume import open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster_tasks import processes

SMALL = {
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 8},
    "corruption": {"type": "gaussian", "noise": [0.05]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


class SleepingTasks:
    """Tasks of a worker that sleep; nothing is stored."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def recorded_left(self, tasks: list[Any]) -> list[Left]:
        return [Left(task) for task in tasks]

    def measure(self, tasks: Any, *, check: bool = False) -> Any:
        for entry in tasks:
            time.sleep(self.seconds)
            yield entry.task


@contextmanager
def machine(cores: int) -> Any:
    """A cluster of one node that says it has so many cores."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cores, "object_store_memory": 2**28}
    )
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def rate(states: Any, total: int, workers: int) -> float:
    """Tasks a second, between the moment when all workers have begun and that when less than a
    tenth of the tasks is left.
    """
    seen = [(time.monotonic(), state) for state in states]
    begun = next(
        k for k, (_, (left, alive)) in enumerate(seen) if alive >= workers and left < total
    )
    ended = next(k for k, (_, (left, _)) in enumerate(seen) if left <= total // 10)
    if ended <= begun:
        raise SystemExit(f"too few tasks: {total}")
    (t0, first), (t1, last) = seen[begun], seen[ended]
    return (first[0] - last[0]) / (t1 - t0)


def sleeping(address: str, workers: int, seconds: float, duration: float) -> None:
    total = int(workers * duration / seconds)
    peak: list[float] = []

    def watched() -> Any:
        for state in on_cluster(
            address, partial(SleepingTasks, seconds), range(total), cpus=0.1, most_workers=workers
        ):
            if state[0] <= total // 2 and not peak:  # workers of another run have ended by then
                peak.extend(memory(pid) for pid in processes("ray::Worker"))
            yield state

    engine_cluster._SECONDS, before = 0.0, engine_cluster._SECONDS  # one task a bundle
    rate_of = rate(watched(), total, workers)
    engine_cluster._SECONDS = before
    words = f"{workers} {'worker' if workers == 1 else 'workers'}, tasks of {seconds:g} s"
    print(
        f"| {words} | {rate_of:.0f} | {workers / seconds:.0f} | {np.mean(peak) / 2**20:.0f} MB |",
        flush=True,
    )


def processor_seconds(pids: list[int]) -> float:
    """Processor time of processes, with all their threads."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Bytes of a process: what it has for itself, and its part of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def overhead(address: str, duration: float) -> None:
    """Processor time of small tasks, in a local loop and on a cluster, where it is that of the
    worker and of the driver.
    """
    import uturn as ut

    spec = {**SMALL, "items": SMALL["chunk"] * int(300 * duration)}  # tasks of about 4 ms
    experiment, total = ut.Experiment.from_dict(spec), spec["items"] // spec["chunk"]
    with tempfile.TemporaryDirectory() as folder:
        ut.run(ut.Experiment.from_dict({**spec, "items": spec["chunk"]}))  # compiled
        used = time.process_time()
        ut.run(experiment, Path(folder) / "local")
        local = time.process_time() - used
        opened = open_store(
            experiment, checked_location("store", Path(folder) / "cluster"), True, False
        )
        work = Tasks(experiment, opened)
        done, seen = 0, []
        job = Job(work, work.left(opened.tasks()))
        for count in OnRay(address, 1, 1.0).measured([job]):
            done += count
            if done and (workers := processes("ray::Worker")):
                seen.append((done, processor_seconds(workers), time.process_time()))
    begin, end = seen[0], next(state for state in seen if state[0] >= 0.9 * total)
    worker, driver = ((end[k] - begin[k]) / (end[0] - begin[0]) for k in (1, 2))
    print(f"| {total} tasks of {spec['chunk']} items | processor time of a task |\n|---|---|")
    print(f"| local loop | {1e3 * local / total:.2f} ms |")
    print(f"| one worker, bundles of about 10 s | {1e3 * worker:.2f} ms |")
    print(f"| its driver | {1e3 * driver:.2f} ms |", flush=True)


def main(workers: int, duration: float) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with machine(64) as address:
        overhead(address, duration)
        print(
            "\n| tasks that sleep | tasks a second | workers allow | memory of a worker"
            " |\n|---|---|---|---|"
        )
        for number in (1, 2, 4):
            sleeping(address, number, 0.05, duration)
        sleeping(address, workers, 0.2, duration)
