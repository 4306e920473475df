"""Time of a whole U-turn experiment, against its parts alone: ratios measured in one run.

    python benchmarks/end_to_end.py [--threads N] [--rounds N] [--depths 7 10] [--markdown] [--json
    FILE]

`uturn.run` measures the tree levels (unchanged nodes and exact beliefs) in memory. The time of a
U-turn is the difference between a run of many items and a run of few, per U-turn; the rest is the
fixed cost. It is compared with two sums of parts, each part timed alone on the same data,
interleaved: inference and sampling; and these with the draws of originals and of normals.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import uturn as ut
from uturn.core import threads
from uturn.core.random import keys, normals

V, M, S = 32, 8, 2
CHANNELS = {"gaussian": 0.07, "masking": 0.25, "uniform": 0.15, "epsilon": 0.6}
BATCH = {7: 1024, 10: 64}  # U-turns of the parts alone, as in benchmarks/inference.py
FEW, MANY = 1, 9  # multiples of the block of items


def experiment(channel, depth, trajectories, items, noise=None):
    return ut.Experiment.from_dict(
        {
            "items": items,
            "trajectories": trajectories,
            "source": {
                "type": "rhm",
                "vocab_size": V,
                "multiplicity": M,
                "branching": S,
                "depth": depth,
            },
            "corruption": {
                "type": channel,
                "noise": [CHANNELS[channel]] if noise is None else noise,
            },
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}],
        }
    )


def parts(channel, depth, trajectories, items):
    """The work of the parts alone, for one noise level: {name: function}, and the number of
    U-turns.
    """
    source, corruption, _, _ = experiment(channel, depth, trajectories, items).parts
    rhm = source.grammar(0, 0)
    originals = rhm.sample(items, seed=1)
    draws = trajectories if corruption.is_random else 1
    leaves = np.repeat(originals.leaves, draws, axis=0)
    noisy = corruption.corrupt(leaves, CHANNELS[channel], vocab_size=V, seed=0)
    evidence = corruption.log_evidence(noisy, np.float32)
    numbers = np.arange(trajectories // draws, dtype=np.uint64)
    found = {
        "inference": lambda: ut.infer(rhm, evidence),
        "sampling": lambda: ut.sample_posterior(rhm, evidence, 0, numbers),
        "originals": lambda: rhm.sample(items, seed=1),
    }
    if channel == "gaussian":
        stream = keys(0, np.arange(len(leaves)))
        found["normals"] = lambda: normals(stream, rhm.num_leaves * V)
    return found


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(channel, depth, trajectories, rounds):
    """Medians of interleaved timings: one row of the table."""
    alone = max(1, BATCH.get(depth, 256) // trajectories)
    block = 4 * alone
    few, many = (experiment(channel, depth, trajectories, n * block) for n in (FEW, MANY))
    works = parts(channel, depth, trajectories, alone)
    works |= {"few": lambda: ut.run(few), "many": lambda: ut.run(many)}
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    median = {name: float(np.median(t)) for name, t in times.items()}
    whole = (median.pop("many") - median["few"]) / ((MANY - FEW) * block * trajectories)
    fixed = median.pop("few") - whole * block * trajectories
    median = {name: t / (alone * trajectories) for name, t in median.items()}
    kernel = median["inference"] + median["sampling"]
    return {
        "channel": channel,
        "depth": depth,
        "trajectories": trajectories,
        **{f"{name}_us": 1e6 * t for name, t in median.items()},
        "run_us": 1e6 * whole,
        "over_kernel": whole / kernel,
        "over_parts": whole / sum(median.values()),
        "fixed_s": fixed,
    }


def fixed_costs(rounds):
    """Seconds of a run of one item at 30 noise levels beyond that of the second such run in the
    process, by channel.
    """
    rows = {}
    for channel in CHANNELS:
        times = []
        for r in range(rounds):
            top = 0.3 if channel == "gaussian" else 0.9
            # Other levels, so that nothing is cached.
            levels = np.linspace(top / 30, top, 30) * (1 + 1e-9 * r)
            times.append(
                seconds(lambda c=channel, levels=levels: ut.run(experiment(c, 3, 1, 1, levels)))
            )
        rows[channel] = float(np.median(times))
    return rows


COLUMNS = {
    "channel": "channel",
    "depth": "L",
    "trajectories": "trajectories",
    "inference_us": "inference",
    "sampling_us": "sampling",
    "originals_us": "originals",
    "normals_us": "normals",
    "run_us": "uturn.run",
    "over_kernel": "over inference + sampling",
    "over_parts": "over all parts",
}


def show(rows, fixed, threads, markdown):
    """The table, in microseconds per U-turn, and the fixed costs."""
    cells = [
        [
            f"{x:.2f}" if isinstance(x, float) else str(x)
            for x in map(row.get, COLUMNS, [""] * len(COLUMNS))
        ]
        for row in rows
    ]
    words = ", ".join(f"{channel} {t:.3f} s" for channel, t in fixed.items())
    if markdown:
        print("", *COLUMNS.values(), "", sep=" | ")
        print("|", *["---|"] * len(COLUMNS), sep="")
        for row in cells:
            print("", *row, "", sep=" | ")
    else:
        table = Table(title=f"(32, 8, 2), float32, {threads} thread(s); microseconds per U-turn")
        for name in COLUMNS.values():
            table.add_column(name, justify="right")
        for row in cells:
            table.add_row(*row)
        Console(width=170).print(table)
    print(f"A run of one item at 30 noise levels: {words}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=threads.num_threads)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 10])
    parser.add_argument("--trajectories", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--channels", nargs="+", default=list(CHANNELS))
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of benchmarks/README.md"
    )
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    threads.num_threads = arguments.threads
    rows = [
        measured(channel, depth, trajectories, arguments.rounds)
        for channel in arguments.channels
        for depth in arguments.depths
        for trajectories in arguments.trajectories
    ]
    fixed = fixed_costs(3)
    show(rows, fixed, arguments.threads, arguments.markdown)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"machine": platform.processor(), "rows": rows, "fixed": fixed}, file, indent=1
            )


if __name__ == "__main__":
    main()
