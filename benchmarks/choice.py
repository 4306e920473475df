"""How often a chosen noise misses the goal: `uturn.choose` against the largest level whose bound passes.

    python benchmarks/choice.py [--runs 4000] [--plot docs/images/which-noise.png]

Runs are simulated: readings 0 and 1 with a probability that depends on the noise, n items, m trajectories, a goal of .95. The
U-turns of an item are independent, or correlated at all levels, since a normal variable of the item is added to one of each
U-turn before both are compared with a threshold. A choice is false if the true probability at the chosen level is below the goal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.special import ndtri

from uturn.measures.statistics import proportion
from uturn.studies.choice import originals_needed
from uturn.studies.plotting.style import ACCENT, CLASS, save_figure, style

GOAL, CONFIDENCE = 0.95, 0.95
CURVES = {
    "falls steeply": [0.999, 0.99, 0.97, 0.9, 0.7, 0.4, 0.2, 0.1],
    "falls slowly": [0.99, 0.98, 0.97, 0.96, 0.949, 0.94, 0.93, 0.92],
    "just below the goal": [0.999, 0.949, 0.949, 0.949, 0.949, 0.949, 0.949, 0.949],
    "below it from the start": [0.949] * 12,
    "falls and rises again": [0.999, 0.98, 0.9, 0.92, 0.94, 0.949, 0.945, 0.9],
}


class Design(NamedTuple):
    items: int
    trajectories: int
    alike: float  # correlation of the normal variables that are compared with thresholds, within an item

    def __str__(self) -> str:
        return f"{self.items} items, {self.trajectories} trajectories, correlation {self.alike:g}"


DESIGNS = [Design(100, 1, 0.0), Design(400, 1, 0.0), Design(100, 5, 0.0), Design(100, 5, 0.5), Design(400, 1, 0.7)]


def bounds(curve: list[float], of: Design, runs: int, seed: int = 0) -> np.ndarray:
    """One-sided lower bounds of the shares (noise, runs)."""
    rng, noise = np.random.default_rng(seed), np.arange(1.0, 1 + len(curve))
    shared = rng.standard_normal((1, of.items, 1, runs), np.float32)
    own = rng.standard_normal((len(curve), of.items, of.trajectories, runs), np.float32)
    values = np.sqrt(of.alike) * shared + np.sqrt(1 - of.alike) * own < ndtri(np.array(curve)).reshape(-1, 1, 1, 1)
    readings = xr.DataArray(values, dims=("noise", "item", "trajectory", "run"), coords={"noise": noise})
    return proportion(readings, 2 * CONFIDENCE - 1)[1]


def false_choices(curve: list[float], of: Design, runs: int, seed: int = 0) -> dict[str, float]:
    """Share of runs with an accepted level that misses the goal: of the sequence of tests, and the largest that passes."""
    passes = bounds(curve, of, runs, seed) >= GOAL
    first = np.logical_and.accumulate(passes)
    misses = np.array(curve)[:, None] < GOAL
    largest = np.where(passes.any(0), len(curve) - 1 - passes[::-1].argmax(0), -1)
    return {
        "sequence": float((first & misses).any(0).mean()),
        "largest": float((misses[largest, 0] & (largest >= 0)).mean()),
    }


def draw(rows: list[tuple[str, str, dict[str, float]]], path: str) -> None:
    """False choices of both rules, and the power of the test of one level against the number of originals."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1.25, 1), constrained_layout=True)
        y = np.arange(len(CURVES))
        for shift, rule, colour, label in (
            (-0.2, "sequence", ACCENT, "uturn choose"),
            (0.2, "largest", CLASS, "the largest level that passes"),
        ):
            worst = [max(found[rule] for curve, _, found in rows if curve == name) for name in CURVES]
            left.barh(y + shift, worst, 0.38, color=colour, label=label)
        left.axvline(1 - CONFIDENCE, color="0.5", lw=0.8, ls="--", label="promised at most")
        left.set(yticks=y, yticklabels=list(CURVES), xlabel="share of false choices (worst design)")
        left.invert_yaxis()
        left.legend(loc="lower right")
        truth = np.linspace(0.962, 0.999, 75)
        right.semilogy(truth, [originals_needed(share, GOAL) for share in truth], color=ACCENT)
        for share in (0.97, 0.98, 0.99):
            n = originals_needed(share, GOAL)
            right.plot(share, n, "o", color=ACCENT)
            right.annotate(f"{n:.0f}", (share, n), (6, 4), textcoords="offset points")
        right.axhline(59, color="0.5", lw=0.8, ls="--")
        right.annotate("59: fewer guarantee nothing", (0.9625, 59), (0, 4), textcoords="offset points", fontsize=9)
        right.set(xlabel="true share that is kept", ylabel="originals needed", ylim=(40, 1500))
        save_figure(figure, Path(path))


def main(runs: int, plot: str | None) -> None:
    rows = []
    print(f"{'curve':26s}{'design':46s}{'uturn choose':>14s}{'largest that passes':>22s}")
    for name, curve in CURVES.items():
        for of in DESIGNS:
            found = false_choices(curve, of, runs)
            rows.append((name, str(of), found))
            print(f"{name:26s}{of!s:46s}{found['sequence']:14.3f}{found['largest']:22.3f}")
    print("\noriginals for a power of .8 at the goal .95, by the true share, and the power of the exact test with so many")
    for share in (0.99, 0.98, 0.97):
        items = int(originals_needed(share, GOAL))
        print(f"{share:6.2f}{items:6d}{power(share, items):8.2f}")
    if plot:
        draw(rows, plot)


def power(share: float, items: int) -> float:
    """Probability that the bound of so many items passes the goal."""
    from scipy.stats import beta, binom

    kept = np.arange(items + 1)
    passes = beta.ppf(1 - CONFIDENCE, kept, items - kept + 1) >= GOAL
    return float(binom.pmf(kept[passes], items, share).sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--plot", metavar="FILE")
    main(**vars(parser.parse_args()))
