"""Compare the numbers of this checkout with those of another commit: `python
benchmarks/same_numbers.py COMMIT`.

Both commits run the same small experiments, one for every way from an original to a reading, each
in a process of its own. Exact inference must agree in every bit. Networks must agree to
`TOLERANCE`, since float rounding depends on the order of operations.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parents[1]
RHM = {"type": "rhm", "vocab_size": 8, "multiplicity": 4, "branching": 2, "depth": 4, "grammars": 2}
TREE = [{"type": "tree_levels"}, {"type": "messages"}]
LEVELS = {
    "gaussian": [0.0, 0.3, 1.0, 300.0],
    "masking": [0.0, 0.4, 0.8, 1.0],
    "uniform": [0.0, 0.4, 0.8, 1.0],
    "epsilon": [0.0, 0.4, 0.8, 1.0],
    "diffusion": [0.0, 0.25, 0.5, 1.0],
}


def experiments() -> dict[str, dict[str, Any]]:
    """{name: spec}; names that begin with "network" are those whose numbers depend on float
    rounding.
    """
    found: dict[str, dict[str, Any]] = {}

    def add(
        name: str,
        source: dict[str, Any],
        channel: str,
        backward: dict[str, Any],
        probes: list[dict[str, Any]],
        **size: int,
    ) -> None:
        corruption = {"type": channel, "noise": LEVELS[channel]}
        size = {"items": 6, "trajectories": 3, "chunk": 4, "seed": 5, **size}
        found[name] = {
            **size,
            "source": source,
            "corruption": corruption,
            "backward": backward,
            "probes": probes,
        }

    for channel in ("gaussian", "masking", "uniform", "epsilon"):
        add(f"exact {channel}", RHM, channel, {"type": "exact"}, TREE)
    for channel in ("gaussian", "masking", "uniform"):
        add(f"denoiser {channel}", RHM, channel, {"type": "denoiser", "steps": 6}, TREE)
    for scheduler, eta in (
        ("ddpm", None),
        ("ddim", 0.5),
        ("dpm_solver", None),
        ("FlowMatchEulerDiscreteScheduler", None),
    ):
        backward = {
            "type": "score",
            "scheduler": scheduler,
            "steps": 20,
            **({} if eta is None else {"eta": eta}),
        }
        add(f"score {scheduler}", RHM, "diffusion", backward, TREE)
    for source in (
        {"type": "gaussian_mixture", "dimension": 32, "num_modes": 3},
        {"type": "gaussian_field", "size": 8},
    ):
        add(f"exact {source['type']}", source, "gaussian", {"type": "exact"}, [{"type": "scales"}])
    for scheduler, pure in product(("ddpm", "dpm_solver"), (False, True)):
        backward = {"type": "diffusion", "scheduler": scheduler, "steps": 8, "pure_noise": pure}
        probes = [{"type": "network_layers"}, {"type": "images", "first": 2}]
        add(
            f"network {scheduler}{' from pure noise' if pure else ''}",
            {"type": "fashion_mnist"},
            "diffusion",
            backward,
            probes,
        )
    return found


def write(path: Path) -> None:
    """Run every experiment with the package that is imported here; {"name/variable": array} in
    an .npz file.
    """
    import uturn as ut

    found = {}
    for name, spec in experiments().items():
        results = ut.run(ut.Experiment.from_dict(spec))
        found |= {
            f"{name}/{variable}": values.values for variable, values in results.variables.items()
        }
    np.savez(
        path,
        **{
            name: values if values.dtype.kind in "biuf" else np.array(values.tolist())
            for name, values in found.items()
        },
    )


def run_in(source: Path, path: Path) -> dict[str, np.ndarray]:
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    subprocess.run([sys.executable, __file__, "--write", str(path)], env=environment, check=True)
    with np.load(path) as found:
        return dict(found)


def differences(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{name}: only in one of the two" for name in sorted(before.keys() ^ after.keys())]
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        numbers = a.dtype.kind == "f" and a.shape == b.shape
        if np.array_equal(a, b, equal_nan=numbers):
            continue
        if (
            numbers
            and name.startswith("network")
            and np.allclose(a, b, rtol=0, atol=TOLERANCE, equal_nan=True)
        ):
            continue
        size = f", largest difference {np.nanmax(abs(a - b)):.3g}" if numbers else ""
        lines.append(f"{name}: {a.dtype} {a.shape} before, {b.dtype} {b.shape} after{size}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "checkout"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", other, arguments.commit],
            check=True,
        )
        try:
            before, after = (
                run_in(other, Path(folder) / "before.npz"),
                run_in(ROOT, Path(folder) / "after.npz"),
            )
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=True)
    lines = differences(before, after)
    print(
        "\n".join(lines)
        or f"{len(before)} arrays of {len(experiments())} experiments are the same as in {arguments.commit}"
    )
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
