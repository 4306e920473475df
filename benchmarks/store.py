"""Seconds to write, resume and open a run of many short tasks in a folder.

    python benchmarks/store.py

Each row is the median of three runs. The time of the U-turns, which is that of a run in memory, is
part of the first column.
"""

import tempfile
import time
from statistics import median

import numpy as np

import uturn as ut

REPEATS = 3


def experiment(tasks, levels=20, chunk=16):
    """Exact inference on strings of 32 leaves, which takes about .1 ms a task."""
    spec = {
        "items": chunk * tasks // levels,
        "chunk": chunk,
        "trajectories": 4,
        "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 5},
        "corruption": {"type": "masking", "noise": np.linspace(0, 1, levels).tolist()},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    return ut.Experiment.from_dict(spec)


def seconds(*arguments):
    """Time of `uturn.run` with these arguments."""
    start = time.perf_counter()
    ut.run(*arguments)
    return time.perf_counter() - start


def main():
    ut.run(experiment(20))  # compiles the kernels
    print("| tasks | in memory | into a folder | again, all done |\n|---|---|---|---|")
    for tasks in (1_000, 10_000):
        one = experiment(tasks)
        rows = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as folder:
                store = f"{folder}/run"
                rows.append((seconds(one), seconds(one, store), seconds(one, store)))
        times = " | ".join(f"{median(column):.2f} s" for column in zip(*rows, strict=True))
        print(f"| {tasks:,} | {times} |", flush=True)


if __name__ == "__main__":
    main()
