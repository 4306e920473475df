"""How often a chosen noise misses the goal: `uturn.choose` against the largest level whose bound
passes, and by kind of reading.

    python benchmarks/choice.py [--runs 4000] [--plot docs/images/which-noise.png]

Runs are simulated: readings 0 and 1 with a probability that depends on the noise, n items, m
trajectories, a goal of .95. The U-turns of an item are independent, or correlated at all levels,
since a normal variable of the item is added to one of each U-turn before both are compared with a
threshold. A choice is false if the true probability at the chosen level is below the goal.

The table of laws has other readings, at one level that just misses the goal: how often the bound
passes that `uturn choose` takes for readings in a range, and how often the bound of Student's t,
which it takes for others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.special import ndtri, stdtrit

from uturn.measures.statistics import mean_bounds
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
    # Correlation of the normal variables that are compared with thresholds, within an item.
    alike: float

    def __str__(self) -> str:
        return f"{self.items} items, {self.trajectories} trajectories, correlation {self.alike:g}"


DESIGNS = [
    Design(100, 1, 0.0),
    Design(400, 1, 0.0),
    Design(100, 5, 0.0),
    Design(100, 5, 0.5),
    Design(400, 1, 0.7),
]


class Part(NamedTuple):
    """Readings of some of the originals: a draw for an array of originals, and its mean."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    mean: float


def shares(kept: float, sites: int) -> Part:
    return Part(lambda rng, size: rng.binomial(sites, kept, size) / sites, kept)


def beta(a: float, b: float, low: float = 0.0) -> Part:
    """Of a beta law on [low, 1]."""
    return Part(
        lambda rng, size: low + (1 - low) * rng.beta(a, b, size), low + (1 - low) * a / (a + b)
    )


def gamma(mean: float) -> Part:
    return Part(lambda rng, size: rng.gamma(9, mean / 9, size), mean)


def lognormal(sigma: float) -> Part:
    return Part(lambda rng, size: rng.lognormal(0, sigma, size), float(np.exp(sigma**2 / 2)))


class Law(NamedTuple):
    """Readings in [low, high], of the part `rare` for a share of the originals; `rises`: kept if
    at most the goal.
    """

    usual: Part
    share: float = 0.0
    rare: Part = Part(lambda rng, size: np.zeros(size), 0.0)
    low: float = 0.0
    high: float = 1.0
    rises: bool = False
    trajectories: int = 1

    @property
    def mean(self) -> float:
        return self.share * self.rare.mean + (1 - self.share) * self.usual.mean

    def readings(self, rng: np.random.Generator, items: int, runs: int) -> xr.DataArray:
        """Array (noise, item, trajectory, run) with one noise."""
        is_rare = rng.random((items, 1, runs)) < self.share
        rare, usual = (
            part.draw(rng, (items, self.trajectories, runs)) for part in (self.rare, self.usual)
        )
        return xr.DataArray(
            np.where(is_rare, rare, usual)[None], dims=("noise", "item", "trajectory", "run")
        )


NUMBERS = (10, 30, 100, 300)  # of originals
LAWS = {
    "class kept (0 or 1)": Law(shares(0.95, 1)),
    "class kept in 20 trajectories; 4 % of originals lose it in all": Law(
        shares(0.99, 1), 0.04, trajectories=20
    ),
    "share of 40 sites: .98; 4 % of originals .3": Law(shares(0.98, 40), 0.04, shares(0.3, 40)),
    "share of 40 sites: .95; 15 % of originals .6": Law(shares(0.95, 40), 0.15, shares(0.6, 40)),
    "belief: Beta(4, .4)": Law(beta(4, 0.4)),
    "belief: Beta(30, 1); 3 % of originals Beta(1, 3)": Law(beta(30, 1), 0.03, beta(1, 3)),
    "similarity in [-1, 1]: .94; 3 % of originals -.2": Law(
        beta(60, 2, -1), 0.03, beta(2, 3, -1), -1
    ),
    "distance: normal": Law(
        Part(lambda rng, size: rng.normal(1, 0.2, size), 1.0), high=np.inf, rises=True
    ),
    "distance: lognormal, sigma .5": Law(lognormal(0.5), high=np.inf, rises=True),
    "distance: lognormal, sigma 1": Law(lognormal(1), high=np.inf, rises=True),
    "distance: 3 % of originals ten times as far": Law(
        gamma(1), 0.03, gamma(10), high=np.inf, rises=True
    ),
}


def false_bounds(law: Law, items: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Share of runs whose bound is better than the true mean: of `mean_bounds` (NaN for none),
    and of Student's t.
    """
    values = law.readings(np.random.default_rng(seed), items, runs)
    low, high = mean_bounds(values, law.low, law.high, CONFIDENCE)
    of_items = values.mean("trajectory").values[0]
    half = stdtrit(items - 1, CONFIDENCE) * of_items.std(0, ddof=1) / np.sqrt(items)
    student = of_items.mean(0) + (half if law.rises else -half)
    found = {"mean_bounds": high if law.rises else low, "Student": student}
    better = {
        name: (of < law.mean if law.rises else of > law.mean).mean() for name, of in found.items()
    }
    return {
        name: float(share) if np.isfinite(found[name]).all() else np.nan
        for name, share in better.items()
    }


def bounds(curve: list[float], of: Design, runs: int, seed: int = 0) -> np.ndarray:
    """One-sided lower bounds of the shares (noise, runs)."""
    rng, noise = np.random.default_rng(seed), np.arange(1.0, 1 + len(curve))
    shared = rng.standard_normal((1, of.items, 1, runs), np.float32)
    own = rng.standard_normal((len(curve), of.items, of.trajectories, runs), np.float32)
    values = np.sqrt(of.alike) * shared + np.sqrt(1 - of.alike) * own < ndtri(
        np.array(curve)
    ).reshape(-1, 1, 1, 1)
    readings = xr.DataArray(
        values, dims=("noise", "item", "trajectory", "run"), coords={"noise": noise}
    )
    return mean_bounds(readings, 0, 1, CONFIDENCE)[0]


def false_choices(curve: list[float], of: Design, runs: int, seed: int = 0) -> dict[str, float]:
    """Share of runs with an accepted level that misses the goal: of the sequence of tests, and
    the largest that passes.
    """
    passes = bounds(curve, of, runs, seed) >= GOAL
    first = np.logical_and.accumulate(passes)
    misses = np.array(curve)[:, None] < GOAL
    largest = np.where(passes.any(0), len(curve) - 1 - passes[::-1].argmax(0), -1)
    return {
        "sequence": float((first & misses).any(0).mean()),
        "largest": float((misses[largest, 0] & (largest >= 0)).mean()),
    }


def draw(rows: list[tuple[str, str, dict[str, float]]], path: str) -> None:
    """False choices of both rules, and the power of the test of one level against the number of
    originals.
    """
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 3.6), width_ratios=(1.25, 1), constrained_layout=True
        )
        y = np.arange(len(CURVES))
        for shift, rule, colour, label in (
            (-0.2, "sequence", ACCENT, "uturn choose"),
            (0.2, "largest", CLASS, "the largest level that passes"),
        ):
            worst = [
                max(found[rule] for curve, _, found in rows if curve == name) for name in CURVES
            ]
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
        right.annotate(
            "59: fewer guarantee nothing",
            (0.9625, 59),
            (0, 4),
            textcoords="offset points",
            fontsize=9,
        )
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
    print(
        "\noriginals for a power of .8 at the goal .95, by the true share, and the power of the"
        " exact test with so many"
    )
    for share in (0.99, 0.98, 0.97):
        items = int(originals_needed(share, GOAL))
        print(f"{share:6.2f}{items:6d}{power(share, items):8.2f}")
    print(
        "\nfalse bounds at the goal, by the number of originals: of uturn choose (of Student's t)"
    )
    print(f"{'reading':64s}" + "".join(f"{items:16d}" for items in NUMBERS))
    for name, law in LAWS.items():
        found = [false_bounds(law, items, runs) for items in NUMBERS]
        print(
            f"{name:64s}"
            + "".join(f"{of['mean_bounds']:8.3f} ({of['Student']:.3f})" for of in found)
        )
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
