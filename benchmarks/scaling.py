"""How time and memory grow with the size of an experiment.

    python benchmarks/scaling.py cost [--rounds N] [--plot docs/images/scaling.png]
    python benchmarks/scaling.py ray [--workers 50] [--seconds 40]

`cost`: time of one core and peak memory of a U-turn experiment in memory (`ut.run`: Gaussian noise,
exact posterior, tree levels, one thread) against the depth of the tree, the vocabulary and the
number of items in a task. The time is what as many items again take, so the fixed cost of a run
does not count. Exponents are those of power laws, fitted by least squares in logarithms, with
standard errors. Prints the table of benchmarks/README.md, and draws its picture.

`ray`: how fast a run on a Ray cluster hands out tasks; see `scaling_ray.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 3  # timed runs in each process


# -- one configuration, in a process of its own ----------------------------------------------------
@dataclass(frozen=True)
class Size:
    """A grammar with branching 2, and the number of items in the one task of a run."""

    vocab_size: int = 32
    multiplicity: int = 8
    depth: int = 8
    batch: int = 256

    @property
    def leaves(self) -> int:
        return 2**self.depth


def experiment(size: Size, items: int) -> Any:
    import uturn as ut

    grammar = {
        "vocab_size": size.vocab_size,
        "multiplicity": size.multiplicity,
        "branching": 2,
        "depth": size.depth,
    }
    return ut.Experiment.from_dict(
        {
            "items": items,
            "chunk": items,
            "source": {"type": "rhm", **grammar},
            "corruption": {"type": "gaussian", "noise": [0.07]},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}],
        }
    )


def cost_here(size: Size) -> dict[str, float]:
    """Seconds of runs with `size.batch` items and with twice as many, the shortest of some, and
    bytes of the former.
    """
    import uturn as ut

    small, some, twice = (experiment(size, items) for items in (1, size.batch, 2 * size.batch))

    def seconds(work: Any) -> float:  # of the core
        start = time.process_time()
        ut.run(work)
        return time.process_time() - start

    seconds(small)
    resident, _ = memory(reset=True)
    seconds(some)
    peak = memory()[1] - resident
    times = [(seconds(some), seconds(twice)) for _ in range(REPEATS)]
    shortest = [min(column) for column in zip(*times, strict=True)]
    return {"some": shortest[0], "twice": shortest[1], "bytes": peak}


def memory(reset: bool = False) -> tuple[int, int]:
    """Bytes in memory, and the most that there were since the last reset. Linux only."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, peak


def cost_of(size: Size) -> dict[str, float]:
    """`cost_here` in a new process with one thread, so that the memory is that of this size
    alone.
    """
    command = [sys.executable, __file__, "one", json.dumps(asdict(size))]
    environment = os.environ | dict.fromkeys(
        ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    return json.loads(
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )


# -- series of sizes, and their exponents ----------------------------------------------------------
QUANTITIES = {"seconds": "time", "bytes": "memory"}


@dataclass
class Series:
    """Sizes that differ in one number x, and what the operations and the noisy data let expect
    of time and memory.
    """

    title: str
    name: str  # of x
    values: list[int]
    sizes: list[Size]
    expected: dict[str, str]
    fitted_from: int = 0  # smallest x of the fit
    # Costs of all sizes, round by round.
    rounds: list[list[dict[str, float]]] = field(default_factory=list)

    def costs(self, what: str) -> np.ndarray:
        """Time or memory of all sizes: the shortest time, since other programs on the machine
        only add to it; median memory.
        """
        if what == "bytes":
            return np.median(self._measured("bytes"), axis=0)
        return self._measured("twice").min(axis=0) - self._measured("some").min(axis=0)

    def _measured(self, name: str) -> np.ndarray:
        return np.array([[cost[name] for cost in costs] for costs in self.rounds])

    def fit(self, what: str) -> tuple[float, float, float]:
        """Exponent, its standard error, and the logarithm of the factor, of the power law of
        time or memory.
        """
        kept = np.array(self.values) >= self.fitted_from
        x, y = np.log(np.array(self.values)[kept]), np.log(self.costs(what)[kept])
        (exponent, factor), covariance = np.polyfit(x, y, 1, cov=True)
        return float(exponent), float(np.sqrt(covariance[0, 0])), float(factor)


def all_series() -> list[Series]:
    depths, vocabularies, batches = (
        range(6, 14),
        [8, 16, 32, 64, 128, 256],
        [2**k for k in range(5, 13)],
    )
    base, deep = Size(), Size(depth=10)
    once = {"seconds": "1", "bytes": "1"}
    return [
        Series(
            "depth L",
            "leaves",
            [2**L for L in depths],
            [replace(base, depth=L) for L in depths],
            once,
        ),
        Series(
            "vocabulary v, m = v/4",
            "v",
            vocabularies,
            [replace(deep, vocab_size=v, multiplicity=v // 4) for v in vocabularies],
            {"seconds": "1 to 2", "bytes": "1 at large v"},
            fitted_from=32,
        ),
        Series(
            "vocabulary v, m = 8",
            "v",
            vocabularies,
            [replace(deep, vocab_size=v) for v in vocabularies],
            {"seconds": "1", "bytes": "1 at large v"},
            fitted_from=32,
        ),
        Series(
            "items in a task", "items", batches, [replace(base, batch=n) for n in batches], once
        ),
    ]


def fixed_words(size: Size, name: str) -> str:
    """The numbers of a series that stay the same."""
    numbers = {"L": (size.depth, "leaves"), "items": (size.batch, "items")}
    grammar = [] if name == "v" else [f"v = {size.vocab_size}, m = {size.multiplicity}"]
    return ", ".join(
        grammar + [f"{key} = {value}" for key, (value, varied) in numbers.items() if varied != name]
    )


def show_cost(series: Sequence[Series]) -> None:
    """The table, in Markdown."""
    print("| against | fixed | range | | smallest | largest | exponent | expected |")
    print("|---|---|---|---|---|---|---|---|")
    for one in series:
        for what, word in QUANTITIES.items():
            y, (exponent, error, _) = one.costs(what), one.fit(what)
            low, high = (
                f"{1e3 * t:.1f} ms" if what == "seconds" else f"{t / 1e6:.3g} MB"
                for t in (y[0], y[-1])
            )
            first = f"{one.name} = {one.values[0]} .. {one.values[-1]}"
            fitted = f", from {one.fitted_from}" if one.fitted_from else ""
            print(
                f"| {one.title} | {fixed_words(one.sizes[0], one.name)} | {first} | {word} | {low}"
                f" | {high} | {exponent:.2f} ± {error:.2f}{fitted} | {one.expected[what]} |"
            )


def draw_cost(series: Sequence[Series], path: Path) -> None:
    """Time and memory against depth, vocabulary and items, with the fitted power laws."""
    from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, style

    columns = [series[:1], series[1:3], series[3:]]
    labels = ["leaves $2^L$", "vocabulary $v$", "items in a task"]
    with style() as plt:
        figure, axes = plt.subplots(
            2, 3, figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
        )
        for row, (what, unit) in enumerate({"seconds": 1.0, "bytes": 1e6}.items()):
            for column, group in enumerate(columns):
                axis = axes[row, column]
                for one, color, marker, size in zip(
                    group, (ACCENT, CLASS), "os", (8, 5), strict=False
                ):
                    exponent, error, factor = one.fit(what)
                    x = np.array(one.values, float)
                    rule = f"{one.title.partition(', ')[2]}: " if len(group) > 1 else ""
                    text = f"{rule}exponent {exponent:.2f} ± {error:.2f}"
                    law = x[x >= one.fitted_from]
                    axis.plot(law, np.exp(factor) * law**exponent / unit, color=color)
                    axis.plot(
                        x, one.costs(what) / unit, marker, color=color, markersize=size, label=text
                    )
                lowest = min(one.costs(what)[-1] for one in group) / unit
                axis.plot(
                    x, lowest * x / x[-1] / 4, ":", color=MUTED, linewidth=1.4, label="exponent 1"
                )
                axis.set(xscale="log", yscale="log")
                axis.set_xscale("log", base=2)
                axis.legend(loc="upper left")
                if row == 1:
                    axis.set_xlabel(labels[column])
                if row == 0:
                    axis.set_title(
                        fixed_words(group[0].sizes[0], group[0].name),
                        fontsize=11,
                        fontweight="normal",
                    )
        axes[0, 0].set_ylabel("time of one core (s)")
        axes[1, 0].set_ylabel("memory (MB)")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def cost(arguments: argparse.Namespace) -> None:
    series = all_series()
    # Round by round, so that a change of the machine's speed meets all sizes.
    for number in range(arguments.rounds):
        for one in series:
            print(f"round {number + 1} of {arguments.rounds}: {one.title}", file=sys.stderr)
            one.rounds.append([cost_of(size) for size in one.sizes])
    show_cost(series)
    draw_cost(series, arguments.plot)


def ray(arguments: argparse.Namespace) -> None:
    import scaling_ray

    scaling_ray.main(arguments.workers, arguments.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "cost", help="time and memory of a run against depth, vocabulary and items"
    )
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--plot", type=Path, default=Path("docs/images/scaling.png"))
    command.set_defaults(work=cost)
    command = commands.add_parser("one", help="the cost of one size, for the processes of `cost`")
    command.add_argument("size", type=json.loads)
    command.set_defaults(
        work=lambda arguments: print(json.dumps(cost_here(Size(**arguments.size))))
    )
    command = commands.add_parser(
        "ray", help="how fast a run on a Ray cluster hands out tasks (scaling_ray.py)"
    )
    command.add_argument("--workers", type=int, default=50, help="largest number of workers")
    command.add_argument(
        "--seconds", type=float, default=40.0, help="about how long each measurement takes"
    )
    command.set_defaults(work=ray)
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
