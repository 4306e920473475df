"""The price of a place: calls and coverage of `ut.locate` against ten even levels.

    python benchmarks/locate.py [--repeats 400] [--plot FILE] [--part curves|images [--store FOLDER]]

Part curves: simulated originals, each with a threshold m of its own; a reading keeps its class with the probability
.1 + .9 / (1 + exp((x - m)/W)). Calls are the sum of the noise of all U-turns, since a U-turn of a diffusion model from noise x
takes x times its steps. Ten even levels need n originals until the interval of the interpolated crossing (jackknife) has the
width; n is found from runs of 200 originals. The interval that `uturn study` reports for them is wider: it contains both
neighbouring levels.

Part images: the embedded Fashion-MNIST model with 20 steps, one run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import expit

from uturn.studies.locate import Data, search

CHANCE, WIDTHS, LEVELS = 0.1, (0.2, 0.1, 0.05, 0.03), np.linspace(0.1, 1, 10)
CURVES: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda random, n: random.normal(0.57, 0.13, n), 0.035),
    "narrow": (lambda random, n: random.normal(0.57, 0.05, n), 0.03),
    "skew": (lambda random, n: 0.25 + random.gamma(2.0, 0.13, n), 0.035),
    "wide": (lambda random, n: random.normal(0.55, 0.22, n), 0.05),
    "early": (lambda random, n: random.normal(0.30, 0.08, n), 0.03),
}


def truth(name: str) -> float:
    """The noise at which the mean of all originals is halfway between 1 and chance."""
    draw, width = CURVES[name]
    thresholds, low, high = draw(np.random.default_rng(99), 200_000), 0.02, 1.3
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit((thresholds - middle) / width).mean() > 0.5 else (low, middle)
    return low


def crossing(curve: np.ndarray) -> float:
    """The first crossing of a curve at LEVELS with the height halfway to chance, by interpolation."""
    half = (1 + CHANCE) / 2
    below = np.flatnonzero(curve < half)
    if not len(below) or below[0] == 0:
        return float("nan")
    k = below[0]
    return float(LEVELS[k - 1] + (curve[k - 1] - half) / (curve[k - 1] - curve[k]) * (LEVELS[k] - LEVELS[k - 1]))


def width_of_one(draw: Callable[..., np.ndarray], width: float, repeats: int = 30, n: int = 200) -> float:
    """Width of the interval of ten even levels, times the root of the number of originals."""
    widths = []
    for seed in range(repeats):
        random = np.random.default_rng(5000 + seed)
        probability = CHANCE + (1 - CHANCE) * expit((draw(random, n)[:, None] - LEVELS) / width)
        kept = (random.random(probability.shape) < probability).astype(float)
        whole, sums = crossing(kept.mean(axis=0)), kept.sum(axis=0)
        parts = np.array([crossing((sums - one) / (n - 1)) for one in kept])
        widths.append(2 * 1.96 * np.sqrt((n - 1) / n * np.sum((parts - whole) ** 2)) * np.sqrt(n))
    return float(np.nanmean(widths))


def readings(name: str, seed: int) -> Callable[[str, list[float], int], Data]:
    """A function that measures simulated originals for `search`."""
    draw, width = CURVES[name]
    random = np.random.default_rng(seed)
    thresholds, kept = draw(random, 6000), {}

    def measure(stage: str, levels: list[float], items: int) -> Data:
        for level in levels:
            if level not in kept:
                probability = CHANCE + (1 - CHANCE) * expit((thresholds - level) / width)
                kept[level] = (random.random(len(thresholds)) < probability).astype(float)
        values = np.stack([kept[level][:items] for level in levels], axis=1)
        return Data(np.array(levels), values, np.arange(items), 1.0, CHANCE)

    return measure


def simulated(repeats: int) -> list[tuple[str, float, float, float, float, float]]:
    """Curve, width, originals of ten even levels, originals, ratio of calls, coverage."""
    rows = []
    print("curve    width  originals of ten levels  originals  calls / calls of ten levels  coverage")
    for name in CURVES:
        place, one = truth(name), width_of_one(*CURVES[name])
        for width in WIDTHS:
            even = (one / width) ** 2
            if even > 1200:
                continue
            locations = [search(readings(name, seed), LEVELS.round(10).tolist(), width, most=6000) for seed in range(repeats)]
            ratio = np.mean([location.calls for location in locations]) / (even * LEVELS.sum())
            coverage = np.mean([location.place.low <= place <= location.place.high for location in locations])
            rows.append((name, width, even, float(np.mean([location.items for location in locations])), ratio, coverage))
            print(f"{name:8s} {width:5g} {even:18.0f} {rows[-1][3]:17.0f} {ratio:18.2f} {coverage:23.3f}", flush=True)
    many, some = [row for row in rows if row[2] >= 150], [row for row in rows if 50 <= row[2] < 150]
    print(f"largest ratio where ten levels need 150 originals or more: {max(row[4] for row in many):.2f}")
    print(f"largest ratio where ten levels need 50 to 150: {max(row[4] for row in some):.2f}")
    print(f"coverage: {np.mean([row[5] for row in rows]):.3f} pooled, {min(row[5] for row in rows):.3f} at least")
    return rows


def images(store: str, width: float = 0.1) -> None:
    """One run of the embedded model, and what ten even levels would cost for a logistic curve through its readings."""
    import uturn as ut
    from uturn.cli.presets import image_experiment

    experiment = image_experiment(steps=20, levels=10, compare_labels=False)
    found = ut.locate(experiment, "same_class", width, store, tell=print, progress=True)
    print("\n".join(found.lines()))
    kept = found.refined.same_class.mean(("item", "trajectory")).to_series()
    left = (kept - CHANCE) / (1 - CHANCE)
    scale = (kept.index[-1] - kept.index[0]) / np.ptp(np.log(left / (1 - left)).iloc[[0, -1]])
    even = (width_of_one(lambda random, n: np.full(n, found.place.value), scale) / width) ** 2
    print(f"kept around t*: {kept.round(3).to_dict()}, so that w is {scale:.3f}")
    print(f"U-turns cost {found.calls:.0f} chains; ten even levels need {even:.0f} originals, {even * LEVELS.sum():.0f} chains")


def draw(rows: list[tuple[str, float, float, float, float, float]], path: Path) -> None:
    """Calls against width, of ten even levels and of `locate`."""
    import matplotlib.pyplot as plt

    from uturn.studies.plotting.style import style

    with style():
        figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
        names = list(dict.fromkeys(row[0] for row in rows))
        for k, (name, marker) in enumerate(zip(names, "os^Dv", strict=True)):
            widths, even, ratios = zip(*((row[1], row[2] * LEVELS.sum(), row[4]) for row in rows if row[0] == name), strict=True)
            axes.loglog(widths, even, f"{marker}--", color=f"C{k}", alpha=0.4)
            axes.loglog(widths, np.multiply(even, ratios), f"{marker}-", color=f"C{k}", label=name)
        axes.plot([], [], "--", color="0.6", label="ten even levels")
        axes.plot([], [], "-", color="0.2", label="--until")
        axes.set(xlabel="width of the 95 % interval of t*, in t/T", ylabel="U-turns, in chains from t/T = 1")
        axes.set_title("what t* to a width costs")
        axes.set_xticks(WIDTHS, [f"{width:g}" for width in WIDTHS])
        axes.minorticks_off()
        axes.set_yticks([20, 50, 100, 200, 500, 1000, 2000, 5000], ["20", "50", "100", "200", "500", "1,000", "2,000", "5,000"])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="curve")
        figure.savefig(path, dpi=160)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--part", choices=("curves", "images"), default="curves")
    parser.add_argument("--store", help="folder of the run of part images; by default a temporary one")
    chosen = parser.parse_args()
    if chosen.part == "images":
        with tempfile.TemporaryDirectory() as folder:
            return images(chosen.store or folder)
    rows = simulated(chosen.repeats)
    if chosen.plot is not None:
        draw(rows, chosen.plot)


if __name__ == "__main__":
    main()
