"""The price of a place: calls and coverage of `ut.locate` against ten even levels.

    python benchmarks/locate.py [--repeats 400] [--first-seed 0] [--any-shape | --plot FILE]
    python benchmarks/locate.py --part shoulders [--repeats 400] [--first-seed 0] [--any-shape]
    python benchmarks/locate.py --part images --store FOLDER [--repeats 400] [--first-seed 0]

Part curves: simulated originals, each with a threshold m of its own; a reading keeps its class with the probability
.1 + .9 / (1 + exp((x - m)/W)).

Part shoulders: the same with thresholds of two or three kinds, so that the curve falls, is flat or slow, and falls again. No
logistic describes it, and a fit finds a place where the curve is flat. "reached" is the share of runs that reach the width with
at most 6,000 originals; "wrong" is the share of all runs that reach it with an interval that misses the place.

Part images: the embedded Fashion-MNIST model. All its 1,000 originals make one U-turn of 20 steps at each of the 20 levels, into
a store that is resumed (16 minutes on two cores); then each search draws its originals from these with replacement. The true
place is therefore known: where the curve of all 1,000 is halfway from 1 to its chance, by a logistic between the two neighbouring
levels. Pairs of levels that are known beforehand, with a pilot of 16 originals, show what a search could save at most with two
levels.

Calls are the sum of the noise of all U-turns, since a U-turn of a diffusion model from noise x takes x times its steps. Ten even
levels need n originals until the interval of the interpolated crossing (jackknife) has the width; n is found from runs of 200
originals. The interval that `uturn study` reports for them is wider: it contains both neighbouring levels.

With --any-shape the comparison is a grid whose spacing is the width, at which the same originals are measured. They must suffice
to tell, in .8 of all runs, that the two levels around the place, half a width from it, are above and below the height, each with
the false-alarm rate .05.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from uturn.studies.locate import Data, Location, _fitted, search

CHANCE, WIDTHS, LEVELS = 0.1, (0.2, 0.1, 0.05, 0.03), np.linspace(0.1, 1, 10)
CURVES: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda random, n: random.normal(0.57, 0.13, n), 0.035),
    "narrow": (lambda random, n: random.normal(0.57, 0.05, n), 0.03),
    "skew": (lambda random, n: 0.25 + random.gamma(2.0, 0.13, n), 0.035),
    "wide": (lambda random, n: random.normal(0.55, 0.22, n), 0.05),
    "early": (lambda random, n: random.normal(0.30, 0.08, n), 0.03),
}


def kinds(*parts: tuple[float, float, float]) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Thresholds of several kinds (share, centre, standard deviation)."""
    weights, centres, spreads = np.array(parts).T

    def draw(random: np.random.Generator, n: int) -> np.ndarray:
        kind = random.choice(len(weights), n, p=weights)
        return random.normal(centres[kind], spreads[kind])

    return draw


SHOULDERS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "at .62": (kinds((0.38, 0.25, 0.05), (0.62, 0.78, 0.05)), 0.03),
    "at .56": (kinds((0.44, 0.25, 0.05), (0.56, 0.78, 0.05)), 0.03),
    "at .53": (kinds((0.47, 0.3, 0.02), (0.53, 0.7, 0.02)), 0.01),
    "at .46": (kinds((0.54, 0.25, 0.05), (0.46, 0.78, 0.05)), 0.03),
    "at .40": (kinds((0.6, 0.25, 0.05), (0.4, 0.78, 0.05)), 0.03),
    "at .30": (kinds((0.7, 0.3, 0.05), (0.3, 0.8, 0.05)), 0.03),
    "at .30, steep": (kinds((0.7, 0.3, 0.02), (0.3, 0.8, 0.02)), 0.01),
    "three": (kinds((0.3, 0.2, 0.03), (0.4, 0.5, 0.03), (0.3, 0.8, 0.03)), 0.02),
    "tail": (kinds((0.5, 0.3, 0.03), (0.5, 0.6, 0.2)), 0.03),
    "one step": (kinds((1.0, 0.434, 0.004)), 0.001),
}


Measured = Callable[[Sequence[float], int], Data]  # readings of the first originals of a sample at some levels
Sample = Callable[[np.random.Generator, int], Measured]  # draws so many originals
Row = tuple[
    str, float, float, float, float, float
]  # curve, width, originals of ten even levels, originals, ratio of calls, coverage


def truth(name: str) -> float:
    """The noise at which the mean of all originals is halfway between 1 and chance."""
    draw, width = {**CURVES, **SHOULDERS}[name]
    thresholds, low, high = draw(np.random.default_rng(99), 200_000), 0.02, 1.3
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit((thresholds - middle) / width).mean() > 0.5 else (low, middle)
    return low


def simulated(name: str) -> Sample:
    """Originals with thresholds of their own."""
    draw, width = {**CURVES, **SHOULDERS}[name]

    def sample(random: np.random.Generator, n: int) -> Measured:
        thresholds, kept = draw(random, n), {}

        def measured(levels: Sequence[float], items: int) -> Data:
            for level in levels:
                if level not in kept:
                    probability = CHANCE + (1 - CHANCE) * expit((thresholds - level) / width)
                    kept[level] = (random.random(n) < probability).astype(float)
            values = np.stack([kept[level][:items] for level in levels], axis=1)
            return Data(np.array(levels), values, np.arange(items), 1.0, CHANCE)

        return measured

    return sample


def embedded(store: str) -> tuple[Sample, float]:
    """Originals of the embedded model, drawn with replacement from a stored run, and the place on the curve of the whole run."""
    import uturn as ut
    from uturn.presets import image_experiment
    from uturn.studies.analysis import by_noise, reading_of

    experiment = image_experiment(steps=20, levels=20, items=1000, keep=0, compare_labels=False)
    stored = ut.run(experiment, store, workers=None, progress=True)
    run = by_noise(stored[["same_class", "original_class"]].load())

    def measured(rows: np.ndarray, levels: Sequence[float]) -> Data:
        some = run.isel(item=rows, noise=np.rint(np.multiply(levels, 20)).astype(int) - 1)
        values, start, chance = reading_of(some, "same_class")
        return Data(
            some.noise.values, values.mean("trajectory").transpose("item", "noise").values, np.arange(len(rows)), start, chance
        )

    def sample(random: np.random.Generator, n: int) -> Measured:
        rows = random.integers(run.sizes["item"], size=n)
        return lambda levels, items: measured(rows[:items], levels)

    whole = measured(np.arange(run.sizes["item"]), run.noise.values)
    left = (whole.values.mean(axis=0) - whole.chance) / (1 - whole.chance)
    k = int(np.flatnonzero(left < 0.5)[0])
    heights = logit(left[k - 1 : k + 1])
    place = whole.noise[k - 1] + heights[0] / (heights[0] - heights[1]) * (whole.noise[k] - whole.noise[k - 1])
    print(f"{len(whole.values)} originals: chance {whole.chance:.4f}, place {place:.4f}, share of the way that is left")
    print(", ".join(f"{noise:g}: {share:.3f}" for noise, share in zip(whole.noise, left, strict=True)))
    one = (width_of_one(sample) / 0.05) ** 2
    for pair in ([0.35, 0.55], [0.4, 0.6], [0.45, 0.6], [0.5, 0.6]):
        fit = _fitted(whole, 0.5, pair)
        half = 1.96 * fit.error * np.sqrt(len(whole.values))
        originals = (2 * half / 0.05) ** 2
        ratio = (originals * sum(pair) + 16 * 2.0) / (one * LEVELS.sum())
        print(f"levels {pair}: place {fit.place:.4f}; {originals:.0f} originals for the width 0.05, {ratio:.2f} of the calls")
    return sample, float(place)


def crossing(curve: np.ndarray, chance: float) -> float:
    """The first crossing of a curve at LEVELS with the height halfway to chance, by interpolation."""
    half = (1 + chance) / 2
    below = np.flatnonzero(curve < half)
    if not len(below) or below[0] == 0:
        return float("nan")
    k = below[0]
    return float(LEVELS[k - 1] + (curve[k - 1] - half) / (curve[k - 1] - curve[k]) * (LEVELS[k] - LEVELS[k - 1]))


def width_of_one(sample: Sample, repeats: int = 200, n: int = 200) -> float:
    """Width of the interval of ten even levels, times the root of the number of originals."""
    widths = []
    for seed in range(repeats):
        data = sample(np.random.default_rng(5000 + seed), n)(LEVELS.round(10).tolist(), n)
        kept, chance = data.values, data.chance
        whole, sums = crossing(kept.mean(axis=0), chance), kept.sum(axis=0)
        parts = np.array([crossing((sums - one) / (n - 1), chance) for one in kept])
        widths.append(2 * 1.96 * np.sqrt((n - 1) / n * np.sum((parts - whole) ** 2)) * np.sqrt(n))
    return float(np.nanmean(widths))


def grid_of_the_width(name: str, place: float, width: float) -> float:
    """Calls of a grid whose spacing is the width, until the two levels around the place are seen to be above and below."""
    from scipy.special import ndtri

    draw, scale = {**CURVES, **SHOULDERS}[name]
    thresholds = draw(np.random.default_rng(98), 100_000)
    ends = (CHANCE + (1 - CHANCE) * expit((thresholds - (place + side * width / 2)) / scale).mean() for side in (-1, 1))
    distances = [(abs(end - (1 + CHANCE) / 2), end * (1 - end)) for end in ends]
    originals = max((ndtri(0.95) + ndtri(0.9)) ** 2 * variance / distance**2 for distance, variance in distances)
    return float(max(originals, 24.0) * np.arange(width, 1 + width / 2, width).sum())


def searched(sample: Sample, width: float, seeds: range, step: float, any_shape: bool = False) -> list[Location]:
    """A search for each seed, with at most 6,000 originals."""
    locations = []
    for seed in seeds:
        measured = sample(np.random.default_rng(seed), 6000)
        measure = lambda stage, levels, items, measured=measured: measured(levels, items)  # noqa: E731
        grid = LEVELS.round(10).tolist()
        locations.append(search(measure, grid, width, most=6000, any_shape=any_shape, unit=lambda: step))
    return locations


def covers(location: Location, place: float) -> bool:
    """Whether an interval holds the place."""
    return location.place.low <= place <= location.place.high


def compared(name: str, sample: Sample, place: float, seeds: range, step: float) -> list[Row]:
    """Rows of the table for widths of a step or more at which ten even levels need at most 1,200 originals."""
    rows, one = [], width_of_one(sample)
    for width in WIDTHS:
        even = (one / width) ** 2
        if even > 1200 or width < step:
            continue
        locations = searched(sample, width, seeds, step)
        ratio = float(np.mean([location.calls for location in locations])) / (even * LEVELS.sum())
        coverage = float(np.mean([covers(location, place) for location in locations]))
        rows.append((name, width, even, float(np.mean([location.items for location in locations])), ratio, coverage))
        print(f"{name:8s} {width:5g} {even:18.0f} {rows[-1][3]:17.0f} {ratio:18.2f} {coverage:23.3f}", flush=True)
    return rows


def judged(names: Sequence[str], seeds: range, any_shape: bool) -> None:
    """The table of part shoulders, and of all curves with --any-shape."""
    print(f"curve           width  place  reached  wrong  calls, mean  median{'  / grid of the width' if any_shape else ''}")
    worst = 0.0
    for name in names:
        place, sample = truth(name), simulated(name)
        for width in (0.2, 0.1, 0.05):
            locations = searched(sample, width, seeds, 1e-3, any_shape)
            reached = np.array([location.reached for location in locations])
            wrong = float(np.mean(reached & [not covers(location, place) for location in locations]))
            calls, worst = [location.calls for location in locations], max(worst, wrong)
            row = f"{name:15s} {width:5g}  {place:.3f}  {reached.mean():7.3f}  {wrong:.3f}  {np.mean(calls):11.0f}"
            row += f"  {np.median(calls):6.0f}"
            row += f"  {np.mean(calls) / grid_of_the_width(name, place, width):.2f}" if any_shape else ""
            print(row, flush=True)
    print(f"reached and wrong: {worst:.3f} at most")


def draw(rows: list[Row], path: Path) -> None:
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
        axes.set(xlabel="width of the interval of a half-life, in t/T", ylabel="U-turns, in chains from t/T = 1")
        axes.set_title("what a half-life to a width costs")
        axes.set_xticks(WIDTHS, [f"{width:g}" for width in WIDTHS])
        axes.minorticks_off()
        axes.set_yticks([20, 50, 100, 200, 500, 1000, 2000, 5000], ["20", "50", "100", "200", "500", "1,000", "2,000", "5,000"])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="curve")
        figure.savefig(path, dpi=160)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--part", choices=("curves", "shoulders", "images"), default="curves")
    parser.add_argument("--any-shape", action="store_true")
    parser.add_argument("--store", help="store of the run of part images")
    chosen = parser.parse_args()
    if chosen.part == "images" and (chosen.store is None or chosen.any_shape):
        parser.error("part images: expected --store, without --any-shape")
    if chosen.plot is not None and (chosen.part != "curves" or chosen.any_shape):
        parser.error("--plot: expected part curves, without --any-shape")
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.repeats)
    if chosen.any_shape or chosen.part == "shoulders":
        return judged(tuple(CURVES if chosen.part == "curves" else SHOULDERS), seeds, chosen.any_shape)
    curves = {"images": (*embedded(chosen.store), 0.05)} if chosen.part == "images" else {}
    curves = curves or {name: (simulated(name), truth(name), 1e-3) for name in CURVES}
    print("curve    width  originals of ten levels  originals  calls / calls of ten levels  coverage")
    rows = [row for name, (sample, place, step) in curves.items() for row in compared(name, sample, place, seeds, step)]
    for words, least, most in (("150 originals or more", 150, np.inf), ("50 to 150", 50, 150)):
        if ratios := [row[4] for row in rows if least <= row[2] < most]:
            print(f"largest ratio where ten levels need {words}: {max(ratios):.2f}")
    print(f"coverage: {np.mean([row[5] for row in rows]):.3f} pooled, {min(row[5] for row in rows):.3f} at least")
    if chosen.plot is not None:
        draw(rows, chosen.plot)


if __name__ == "__main__":
    main()
