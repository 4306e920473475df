"""Speed of exact inference: ratios to a fixed torch baseline, and the share of what the machine
could do, in one run.

    python benchmarks/inference.py [--threads N] [--rounds N] [--json FILE]

Absolute times vary from machine to machine and from hour to hour, so everything is measured in the
same run, interleaved, and medians are compared: the numba backend, the two baselines of
`baseline_torch.py` at their best, and the machine itself: loops of fused multiply-adds with two L1
loads each and with none, transposes of blocks of numbers in L1, and a streaming copy. From these
and the number of operations (`work_of`) follows the time that these parts take one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import torch
from numba import njit
from rich.console import Console
from rich.table import Table

from baseline_torch import PlainBaseline, TunedBaseline
from uturn.core import threads
from uturn.core.memory import aligned
from uturn.exact.inference import engine, infer, sample_posterior
from uturn.exact.inference.simd import (
    LANES,
    add,
    load,
    multiply_add,
    pointer,
    read_block,
    splat,
    store,
)
from uturn.exact.rhm import RandomHierarchyModel

# V, m, s, L, batch, wanted ratio.
CASES = [(32, 8, 2, 7, 1024, 30), (32, 8, 2, 10, 64, 30), (32, 8, 2, 16, 1, 20)]


# -- measuring -------------------------------------------------------------------------------------
def seconds(work, repeat=1):
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def interleaved(works, rounds, pause=0.0):
    """Median seconds of each, taking turns, so that other load on the machine hits all of them.

    Each turn repeats the work for at least a tenth of a second, so that waking up cores does not
    count.
    """
    repeats = {
        name: max(1, int(0.1 / min(seconds(work), seconds(work)))) for name, work in works.items()
    }
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            # Threads of the one before may spin for a while, on cores that this one wants.
            time.sleep(pause)
            work()  # and what it left in the caches shall not count either
            times[name].append(seconds(work, repeats[name]))
    return {name: float(np.median(t)) for name, t in times.items()}


@njit(nogil=True)
def fma_loop(workspace, index, repeat):
    """For each pair of indices: one fused multiply-add of LANES numbers with two loads from L1,
    in three chains.
    """
    ws, pairs = pointer(workspace), pointer(index)
    for _ in range(repeat):
        a = splat(ws[0] - ws[0])
        b, c = a, a
        for k in range(0, len(index), 6):
            a = multiply_add(load(ws, pairs[k]), load(ws, pairs[k + 1]), a)
            b = multiply_add(load(ws, pairs[k + 2]), load(ws, pairs[k + 3]), b)
            c = multiply_add(load(ws, pairs[k + 4]), load(ws, pairs[k + 5]), c)
        store(ws, 0, a)
        store(ws, LANES, b)
        store(ws, 2 * LANES, c)


@njit(nogil=True)
def arithmetic_loop(workspace, repeat):
    """Fused multiply-adds of LANES numbers in registers, in four chains."""
    ws = pointer(workspace)
    a, b, c, d = load(ws, 0), load(ws, LANES), load(ws, 2 * LANES), load(ws, 3 * LANES)
    for _ in range(repeat):
        a, b, c, d = (
            multiply_add(a, a, a),
            multiply_add(b, b, b),
            multiply_add(c, c, c),
            multiply_add(d, d, d),
        )
    store(ws, 0, add(add(a, b), add(c, d)))


@njit(nogil=True)
def transpose_loop(workspace, memory, repeat):
    """Blocks of one cache line each of 16 items, turned into columns of LANES numbers, within
    L1.
    """
    ws = pointer(workspace)
    address = np.int64(memory)
    for _ in range(repeat):
        for block in range(4):
            read_block(ws, block * 16 * LANES, address, 64, 0, 15, 0)


class Machine:
    """What the machine can do on `threads.num_threads` threads."""

    def __init__(self):
        self.space = [
            aligned((64 * LANES,), np.dtype(np.float32)) for _ in range(threads.num_threads)
        ]
        for space in self.space:
            space[:] = 1e-3
        self.pairs = 258
        self.index = (np.random.default_rng(0).integers(64, size=2 * self.pairs) * LANES).astype(
            np.uint32
        )
        self.source = np.ones(2**24, np.float32)
        self.target = np.ones(2**24, np.float32)

    def multiply_adds(self, repeat=4000):
        self._on_all_threads(lambda i: fma_loop(self.space[i], self.index, repeat))
        return repeat * self.pairs * LANES * threads.num_threads

    def _on_all_threads(self, work):
        def block(first, last):
            for i in range(first, last):
                work(i)

        threads.over_blocks(threads.num_threads, block)

    def arithmetic(self, repeat=500_000):
        self._on_all_threads(lambda i: arithmetic_loop(self.space[i], repeat))
        return 4 * repeat * LANES * threads.num_threads

    def transposes(self, repeat=20_000):
        rows = self.source.ctypes.data
        self._on_all_threads(lambda i: transpose_loop(self.space[i], rows, repeat))
        return 4 * 16 * 16 * repeat * threads.num_threads

    def copy(self):
        def block(first, last):
            self.target[first:last] = self.source[first:last]

        threads.over_blocks(len(self.source), block)
        return 2 * self.source.nbytes

    def near_copy(self):
        """A copy within the L3 cache: 4 MB of each array."""

        def block(first, last):
            self.target[first:last] = self.source[first:last]

        for _ in range(8):
            threads.over_blocks(2**20, block)
        return 8 * 2 * 2**20 * 4


# Operations of an exponential and of the maximum and sum around it: `exp_nonpositive`,
# `_exponentiate`.
EXP = 17


def work_of(rhm, batch):
    """What one float32 sample takes: multiply-adds, other operations, bytes of input and output,
    bytes beyond the L2 cache.

    Multiply-adds: the terms of the messages, upward once and downward to each child; upward once
    more in the bands below the top, whose messages are computed again. Other operations: those of
    the exponentials of the evidence, as often as it is read. Input and output: evidence, marginals,
    messages between bands. Beyond the L2 cache: the upward messages of a tree that stays whole
    although a tile of it is larger than 2 MB, written and read once.
    """
    s, L, v = rhm.branching, rhm.depth, rhm.vocab_size
    bands = engine.prepared_grammar(rhm, np.dtype(np.float32), batch).bands
    terms = {
        k: rhm.num_nodes(k) * rhm.rules[k].shape[0] * rhm.rules[k].shape[1] for k in range(1, L + 1)
    }
    again = sum(terms[k] for low, high in bands[:-1] for k in range(low + 1, high + 1))
    reads = 1 + (len(bands) > 1)
    evidence, messages = (
        rhm.num_leaves * v,
        sum(rhm.num_nodes(k) * rhm.num_symbols(k) for k in range(L + 1)),
    )
    # Written and read, upward and downward.
    links = sum(4 * rhm.num_nodes(high) * v for _, high in bands[:-1])
    beyond = 2 * 4 * messages if len(bands) == 1 and 4 * messages * LANES > 2**21 else 0
    return (
        (s - 1) * ((1 + s) * sum(terms.values()) + again),
        EXP * reads * evidence,
        4 * (reads * evidence + links + messages),
        beyond,
    )


# -- evidence --------------------------------------------------------------------------------------
def gaussian(rhm, leaves, noise, seed=0):
    rng, v = np.random.default_rng(seed), rhm.vocab_size
    abar = np.exp(-2 * noise)
    x = np.sqrt(abar) * np.eye(v, dtype=np.float32)[leaves] + np.sqrt(
        1 - abar
    ) * rng.standard_normal((*leaves.shape, v), np.float32)
    return (x * np.float32(np.sqrt(abar) / (1 - abar))).astype(np.float32)


def epsilon(rhm, leaves, noise):
    v = rhm.vocab_size
    return np.where(
        np.eye(v, dtype=bool)[leaves], np.log(1 - noise + noise / v), np.log(noise / v)
    ).astype(np.float32)


def case(v, m, s, L, batch):
    rhm = RandomHierarchyModel(v, m, s, L, seed=0)
    return rhm, gaussian(rhm, rhm.sample(batch, seed=1).leaves, 0.1)


# -- the parts of the report -----------------------------------------------------------------------
def at_its_best(baseline, rhm, log_evidence, *options):
    """A baseline with the fastest of its chunks and options, by a short search."""
    tensor = torch.from_numpy(log_evidence)
    chunks = [c for c in (1, 2, 4, 8, 16, 32, 64, 128) if c <= len(log_evidence)]
    candidates = [(c, *option) for c in chunks for option in options or ((),)]
    part = tensor[: 2 * max(chunks)]
    best = min(
        candidates, key=lambda x: min(seconds(partial(baseline(rhm, *x), part)) for _ in range(3))
    )
    return partial(baseline(rhm, *best), tensor), best


def speed(rounds, machine):
    rows = []
    for *sizes, batch, wanted in CASES:
        rhm, log_evidence = case(*sizes, batch)
        plain, (plain_chunk,) = at_its_best(PlainBaseline, rhm, log_evidence)
        tuned, (tuned_chunk, symbol_first) = at_its_best(
            TunedBaseline, rhm, log_evidence, (True,), (False,)
        )
        median = interleaved(
            {
                "numba": lambda rhm=rhm, x=log_evidence: infer(rhm, x),
                "multiply_adds": machine.multiply_adds,
                "arithmetic": machine.arithmetic,
                "transposes": machine.transposes,
                "sampling": lambda rhm=rhm, x=log_evidence: sample_posterior(rhm, x),
                "copy": machine.copy,
                "near_copy": machine.near_copy,
                "torch": plain,
                "tuned": tuned,
            },
            rounds,
            pause=0.25,
        )
        adds, others, moved, beyond = work_of(rhm, batch)
        compute = adds * batch / (machine.multiply_adds() / median["multiply_adds"])
        exponentials = others * batch / (machine.arithmetic() / median["arithmetic"])
        transposes = moved / 4 * batch / (machine.transposes() / median["transposes"])
        memory = moved * batch / (machine.copy() / median["copy"]) + beyond * batch / (
            machine.near_copy() / median["near_copy"]
        )
        parts = compute + exponentials + transposes + memory
        rows.append(
            {
                "v m s L": " ".join(map(str, sizes)),
                "batch": batch,
                "numba_us": 1e6 * median["numba"] / batch,
                "torch_us": 1e6 * median["torch"] / batch,
                "ratio": median["torch"] / median["numba"],
                "tuned_us": 1e6 * median["tuned"] / batch,
                "tuned_ratio": median["tuned"] / median["numba"],
                "wanted": wanted,
                "compute_us": 1e6 * compute / batch,
                "exponentials_us": 1e6 * exponentials / batch,
                "transposes_us": 1e6 * transposes / batch,
                "memory_us": 1e6 * memory / batch,
                "parts_fraction": parts / median["numba"],
                "sampling_over_marginals": median["sampling"] / median["numba"],
                "baseline": (
                    f"chunk {plain_chunk}; tuned: {tuned_chunk},"
                    f" {'symbol' if symbol_first else 'node'} first"
                ),
            }
        )
    return rows


def noise_grid(rounds):
    rhm = RandomHierarchyModel(32, 8, 2, 10, seed=0)
    leaves = rhm.sample(64, seed=1).leaves
    grid = {
        f"t = {t}": gaussian(rhm, leaves, t)
        for t in (0.001, 0.003, 0.01, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0, 3.0)
    }
    grid |= {
        f"eps = {e}": epsilon(rhm, leaves, e)
        for e in (1e-12, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.73, 0.76, 0.9)
    }
    grid["pure noise"] = np.zeros_like(grid["t = 0.1"])
    median = interleaved({name: partial(infer, rhm, x) for name, x in grid.items()}, rounds)
    return {name: t / median["pure noise"] for name, t in median.items()}


MEMORY_CODE = """
import sys, numpy as np
from uturn.core.memory import aligned
from uturn.exact.rhm import RandomHierarchyModel
from uturn.exact.inference import infer
L, batch, outputs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rhm = RandomHierarchyModel(32, 8, 2, L, seed=0)
infer(RandomHierarchyModel(32, 8, 2, 3, seed=0), np.zeros((1, 8, 32), np.float32), outputs=(outputs,))
x = np.zeros((batch, 2**L, 32), np.float32); x += 1
def peak():  # not getrusage, which starts at the parent's peak
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
out = infer(rhm, x, outputs=(outputs,))
size = sum(y.nbytes for y in out.marginals.values()) if outputs == "marginals" else 0
print((peak() - before - size) / 2**20)
"""

COMPILE_CODE = """
import time, sys, numpy as np
from uturn.core.memory import aligned
from uturn.exact.rhm import RandomHierarchyModel
from uturn.exact.inference import engine, infer, sample_posterior
rhm = RandomHierarchyModel(4, 2, 2, 2, seed=0)
times = []
for dtype in (np.float32, np.float64):
    for work in (infer, sample_posterior):
        start = time.perf_counter(); work(rhm, np.zeros((1, 4, 4), dtype)); times.append(time.perf_counter() - start)
print(*times)
"""


def in_process(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return [float(x) for x in result.stdout.split()]


def memory():
    cases = [
        (7, 4096, "marginals"),
        (10, 512, "marginals"),
        (16, 8, "marginals"),
        (20, 1, "marginals"),
        (20, 1, "log_evidence"),
    ]
    return {f"L = {L}, batch {b}, {o}": in_process(MEMORY_CODE, L, b, o)[0] for L, b, o in cases}


def compilation():
    with tempfile.TemporaryDirectory() as folder:
        cold = in_process(COMPILE_CODE, NUMBA_CACHE_DIR=folder)
        warm = in_process(COMPILE_CODE, NUMBA_CACHE_DIR=folder)
    names = ("infer float32", "sample float32", "infer float64", "sample float64")
    return {name: {"cold_s": a, "warm_s": b} for name, a, b in zip(names, cold, warm, strict=True)}


# -- report ----------------------------------------------------------------------------------------
def show(report):
    console = Console(width=170)
    table = Table(
        title=f"All marginals, float32, {report['threads']} thread(s); microseconds a sample"
    )
    for name in (
        "v m s L",
        "batch",
        "numba",
        "torch",
        "ratio (wanted)",
        "tuned torch",
        "its ratio",
        "parts: multiply-adds",
        "exponentials",
        "transposes",
        "memory",
        "sum of parts / numba",
        "sampling",
    ):
        table.add_column(name, justify="right")
    for r in report["speed"]:
        ratio = f"{r['ratio']:.1f} ({r['wanted']})"
        floors = [
            f"{r[name]:.2f}"
            for name in (
                "compute_us",
                "exponentials_us",
                "transposes_us",
                "memory_us",
                "parts_fraction",
            )
        ]
        tuned = f"{r['tuned_us']:.1f}", f"{r['tuned_ratio']:.1f}"
        numbers = f"{r['numba_us']:.2f}", f"{r['torch_us']:.1f}", ratio, *tuned, *floors
        table.add_row(
            r["v m s L"], str(r["batch"]), *numbers, f"{r['sampling_over_marginals']:.2f} x"
        )
    console.print(table)
    table = Table(title="Time over that of pure noise, (32, 8, 2, 10), batch 64: wanted below 2")
    for name in ("noise", "time"):
        table.add_column(name, justify="right")
    for name, ratio in report["noise"].items():
        table.add_row(name, f"{ratio:.2f}")
    console.print(table)
    table = Table(title="Peak memory beyond inputs and outputs, MB: wanted below 64")
    for name in ("case", "MB"):
        table.add_column(name, justify="right")
    for name, size in report["memory"].items():
        table.add_row(name, f"{size:.1f}")
    console.print(table)
    table = Table(title="First call in a process, seconds")
    for name in ("what", "compiling", "from the cache"):
        table.add_column(name, justify="right")
    for name, t in report["compilation"].items():
        table.add_row(name, f"{t['cold_s']:.2f}", f"{t['warm_s']:.2f}")
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--threads", type=int, default=threads.num_threads, help="threads of both contestants"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the interleaved timings")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    arguments = parser.parse_args()
    threads.num_threads = arguments.threads
    torch.set_num_threads(arguments.threads)
    report = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "speed": speed(arguments.rounds, Machine()),
        "noise": noise_grid(arguments.rounds),
        "memory": memory(),
        "compilation": compilation(),
    }
    show(report)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
