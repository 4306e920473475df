"""Predicted over measured: what `uturn plan` says of some specs, and what their runs then take.

    python benchmarks/plan.py [SPEC ..] [--seconds 30] [--workers N] [--cpu]

Each spec of examples/ is made larger until its run is expected to take so many seconds. Plan and
run are processes of their own; the time of loading models and compiling kernels is left out of
both. The disk of a plan is that of readings before their compression. The time of a run that shares
the machine with other programs is not that of a plan made before: keep the machine quiet, or
compare the time of the processor, with one thread (--cpu).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from uturn.core.experiment import Experiment
from uturn.engine.measuring import measure
from uturn.engine.plan import plan
from uturn.engine.run import run

HERE = Path(__file__).resolve().parents[1] / "examples"
SPECS = ("epsilon", "gaussian", "clones", "denoiser", "score", "images")


def enlarged(path: Path, factor: int) -> Experiment:
    """The experiment of a spec with `factor` times as many items."""
    experiment = Experiment.from_file(path)
    spec = experiment.to_dict()
    spec["items"] *= factor
    return Experiment.from_dict(spec)


def planned(path: Path, factor: int, workers: int) -> dict[str, Any]:
    """What a plan says."""
    found = plan(enlarged(path, factor), workers=workers)
    assert found is not None
    return {"seconds": found.seconds[found.workers], "disk": found.disk}


def measured(path: Path, factor: int, workers: int) -> dict[str, Any]:
    """What a run takes after its start, in which models are loaded and kernels compiled."""
    experiment = enlarged(path, factor)
    experiment.coordinates()
    measure(experiment, 0, np.arange(1))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run(experiment, Path(folder) / "x", workers=workers)
        seconds = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {"seconds": seconds, "disk": size}


def in_process(what: str, path: Path, factor: int, workers: int, cpu: bool) -> dict[str, Any]:
    """`planned` or `measured` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        str(path),
        "--one",
        what,
        "--factor",
        str(factor),
        "--workers",
        str(workers),
    ]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1") if cpu else {}
    done = subprocess.run(
        [*command, *(["--cpu"] if cpu else [])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **threads},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "specs", nargs="*", type=Path, default=[HERE / f"{name}.toml" for name in SPECS]
    )
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--one", choices=["planned", "measured"])
    parser.add_argument("--factor", type=int, default=1)
    options = parser.parse_args()
    if options.cpu:
        time.perf_counter = time.process_time
    if options.one:
        function = {"planned": planned, "measured": measured}[options.one]
        print(json.dumps(function(options.specs[0], options.factor, options.workers)))
        return
    print(f"{'spec':12}{'items':>8}{'time':>16}{'ratio':>7}{'disk':>7}   plan took   load")
    for path in options.specs:
        first = in_process("planned", path, 1, options.workers, options.cpu)
        factor = max(1, round(options.seconds / max(first["seconds"], 1e-3)))
        begin = time.monotonic()
        found = in_process("planned", path, factor, options.workers, options.cpu)
        took = time.monotonic() - begin
        real = in_process("measured", path, factor, options.workers, options.cpu)
        ratio = {key: found[key] / real[key] for key in real}
        items = enlarged(path, factor).items
        print(
            f"{path.stem:12}{items:8}{found['seconds']:7.1f} s{real['seconds']:6.1f} s"
            f"{ratio['seconds']:7.2f}{ratio['disk']:7.2f}{took:9.1f} s{os.getloadavg()[0]:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
