"""What `uturn check-sampler` says of right and wrong samplers, on a mixture of Gaussians.

    python benchmarks/samplers.py [--runs 20] [--plot docs/images/check-a-sampler.png]
    python benchmarks/samplers.py --right --rate 0.05 --runs 200
    python benchmarks/samplers.py --calibration --runs 50

The samplers are those of tests/tools/check_sampler/sampler_gallery.py.

Share of checks that fail, by test, for each sampler, in runs with other originals and other noise.
`--right`: right samplers alone, whose shares are compared with the false-alarm rate of a check,
`--rate`. `--calibration`: the share of p < .01 of the calibration of the right sampler, against the
number of steps, on originals of the mixture itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent / "tests" / "tools" / "check_sampler")
)

import sampler_gallery as gallery
import uturn as ut
from uturn.measures.report import Verdict

TESTS = ("size of the change", "two samples", "denoiser", "one repeated step")


def checked(folder: str, seed: int, options: dict, **more):
    """The report of one check, on originals of its own."""
    data = Path(folder) / f"{seed}.npy"
    if not data.exists():
        np.save(data, gallery.originals(200, seed).numpy())
    return ut.check_sampler(data=str(data), seed=seed, **options, **more)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--right", action="store_true")
    parser.add_argument("--calibration", action="store_true")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.calibration:
            return calibration(folder, chosen.runs)
        shares, sizes = {}, {}
        for name, options in {**gallery.RIGHT, **({} if chosen.right else gallery.WRONG)}.items():
            more = {"items": chosen.items, "false_alarm_rate": chosen.rate}
            reports = [checked(folder, seed, options, **more) for seed in range(chosen.runs)]
            failed = [np.mean([test in report.failed for report in reports]) for test in TESTS]
            tested = [reports[0][test].verdict is not Verdict.UNTESTED for test in TESTS]
            shares[name] = [
                *np.where(tested, failed, np.nan),
                np.mean([not report.passed for report in reports]),
            ]
            sizes[name] = [
                np.mean([report[TESTS[0]].numbers[key] for report in reports], axis=0)
                for key in ("noise", "size", "size_of_uturn")
            ]
    table = Table(
        "sampler",
        *TESTS,
        "any",
        title=f"share of {chosen.runs} checks that fail, {chosen.items} originals each",
    )
    for name, row in shares.items():
        table.add_row(name, *("" if np.isnan(share) else f"{share:.2f}" for share in row))
    Console(width=130).print(table)
    if chosen.plot:
        draw(shares, sizes, chosen.plot)


def calibration(folder: str, runs: int) -> None:
    """Share of p < .01, for each number of steps, of uturn's sampler with the exact denoiser."""
    for steps in (40, 100, 250, 1000):
        p = []
        for seed in range(runs):
            options = {
                "model": "sampler_gallery:model",
                "steps": steps,
                "levels": [0.5],
                "items": 100,
                "clones": 4,
            }
            report = checked(folder, seed, options)
            p.append(report["calibration with clones"].numbers["p"][-1])
        print(
            f"{steps:5d} steps: share of p < .01 at t/T = .5: {np.mean(np.array(p) < 0.01):.2f} of"
            f" {runs} runs",
            flush=True,
        )


def draw(shares: dict, sizes: dict, path: Path) -> None:
    from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, save_figure, style

    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1, 1.15)
        )
        noise, _, own = sizes["DDPM"]
        left.plot(
            noise, own, "o-", color=ACCENT, lw=2.4, label="uturn's sampler and the right DDPM"
        )
        drawn = ("t + 1 for t", "one noise for all", "timesteps in 0..1", "no noise added")
        for name, marker in zip(drawn, "s^Dv", strict=True):
            left.plot(*sizes[name][:2], f"{marker}--", color=CLASS, lw=1.2, ms=5, label=name)
        left.set(
            xscale="log",
            yscale="log",
            xlabel="noise, t/T",
            ylabel="size of the change (root mean square)",
        )
        left.set_xticks(noise, [f"{level:g}" for level in noise])
        left.set_xticks([], minor=True)
        left.set_title("how much a U-turn changes")
        left.legend(loc="lower right", fontsize=9)
        table = np.array([row for row in shares.values()])
        right.imshow(
            np.where(np.isnan(table), np.nan, table),
            cmap="Oranges",
            vmin=0,
            vmax=1.4,
            aspect="auto",
        )
        for (row, column), share in np.ndenumerate(table):
            text = (
                ""
                if np.isnan(share)
                else f"{share:.2f}".lstrip("0")
                if 0 < share < 1
                else f"{share:.0f}"
            )
            right.text(column, row, text, ha="center", va="center", fontsize=10)
        right.axhline(len(gallery.RIGHT) - 0.5, color=MUTED, lw=1.5)
        heads = [
            name.replace(" of the ", " of\n")
            .replace("one repeated ", "repeated\n")
            .replace("two ", "two\n")
            for name in TESTS
        ]
        right.set_xticks(range(len(TESTS) + 1), [*heads, "any"], fontsize=9.5)
        right.set_yticks(range(len(shares)), list(shares), fontsize=9.5)
        right.tick_params(length=0)
        right.xaxis.tick_top()
        right.grid(False)
        right.set_title("share of checks that fail: right samplers above the line", pad=34)
        save_figure(figure, path)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
