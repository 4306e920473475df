"""The price of a place: calls and coverage of `ut.locate` against ten even levels.

    python benchmarks/locate.py [--repeats 400] [--first-seed 0] [--plot FILE]
    python benchmarks/locate.py --part shoulders [--repeats 400] [--first-seed 0]
    python benchmarks/locate.py --part readings [--repeats 400] [--first-seed 0]
    python benchmarks/locate.py --part images --store FOLDER [--repeats 400] [--first-seed 0]

Part curves: simulated originals, each with a threshold m of its own; a reading keeps its class with
the probability .1 + .9 / (1 + exp((x - m)/W)).

Part shoulders: the same with thresholds of two or three kinds, so that the curve falls, is flat or
slow, and falls again. No logistic describes it, and a fit finds a place where the curve is flat.
"reached" is the share of runs that reach the width with at most 6,000 originals; "wrong" is the
share of all runs that reach it with an interval that misses the place.

Part readings: smooth curves, and curves that fall slowly to just below half of the way or to just
above it, at the width .1, for six kinds of readings: 0 or 1, the mean of 16 sites, beliefs,
distances with a spread of their own, 0 or 1 in groups of five equal originals, and 0 or 1 whose
chance is unknown and measured at the largest noise. "no place" is the share of runs with this
answer.

Part images: the embedded Fashion-MNIST model. All its 1,000 originals make one U-turn of 20 steps
at each of the 20 levels, into a store that is resumed (16 minutes on two cores); then each search
draws its originals from these with replacement. The true place is therefore known: where the curve
of all 1,000 is halfway from 1 to its chance, by a logistic between the two neighbouring levels.

Calls are the sum of the noise of all U-turns, since a U-turn of a diffusion model from noise x
takes x times its steps. Ten even levels need n originals until the interval of the interpolated
crossing (jackknife) has the width; n is found from runs of 200 originals. The interval that `uturn
study` reports for them is wider: it contains both neighbouring levels.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from uturn.studies.search import Found, Readings, Search

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


SLOW: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "to .36": (lambda random, n: random.uniform(-0.02, 1.56, n), 0.005),
    "to .47": (lambda random, n: random.uniform(-0.02, 1.89, n), 0.005),
    "to .53": (lambda random, n: random.uniform(-0.02, 2.12, n), 0.005),
    "to .6": (lambda random, n: random.uniform(-0.02, 2.5, n), 0.005),
}
"""Curves that fall along a line until the share of the way in their names is left at the largest
noise.
"""

ALL = {**CURVES, **SHOULDERS, **SLOW}

KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "0/1": lambda random, p: (random.random(len(p)) < p).astype(float),
    "16 sites": lambda random, p: random.binomial(16, p) / 16,
    "belief": lambda random, p: p,
    "distance": lambda random, p: p + 0.6 * random.standard_normal(len(p)),
    "groups of 5": (
        lambda random, p: np.repeat((random.random(len(p)) < p)[::5], 5)[: len(p)].astype(float)
    ),
    "unknown chance": lambda random, p: (random.random(len(p)) < p).astype(float),
}
"""Readings of originals that have these means."""

# Readings of the first originals of a sample at a level.
Measured = Callable[[float, int], Readings]
Sample = Callable[[np.random.Generator, int], Measured]  # draws so many originals
Row = tuple[
    str, float, float, float, float, float
]  # curve, width, originals of ten even levels, originals, ratio of calls, coverage


def truth(name: str, kind: str = "0/1") -> float:
    """The noise at which the mean of all originals is halfway between 1 and chance; NaN if there
    is none up to 1.
    """
    draw, width = ALL[name]
    thresholds = draw(np.random.default_rng(99), 200_000)

    def left(noise: float) -> float:
        return float(expit((thresholds - noise) / width).mean())

    height = (1 + left(1.0)) / 2 if kind == "unknown chance" else 0.5
    low, high = 0.02, 1.3
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > height else (low, middle)
    return low if low <= 1 else np.nan


def simulated(name: str, kind: str = "0/1") -> Sample:
    """Originals with thresholds of their own; those of a group have one."""
    draw, width = ALL[name]
    chance = np.nan if kind == "unknown chance" else CHANCE
    size = 5 if kind == "groups of 5" else 1

    def sample(random: np.random.Generator, n: int) -> Measured:
        thresholds, kept = np.repeat(draw(random, n)[::size], size)[:n], {}

        def measured(level: float, items: int) -> Readings:
            if level not in kept:
                probability = CHANCE + (1 - CHANCE) * expit((thresholds - level) / width)
                kept[level] = KINDS[kind](random, probability)
            return Readings(kept[level][:items], np.arange(items) // size, 1.0, chance)

        return measured

    return sample


def embedded(store: str) -> tuple[Sample, float]:
    """Originals of the embedded model, drawn with replacement from a stored run, and the place
    on the curve of the whole run.
    """
    import uturn as ut
    from uturn.presets import image_experiment
    from uturn.studies.checked_run import Run, by_noise
    from uturn.studies.references import LevelValues

    experiment = image_experiment(steps=20, levels=20, items=1000, keep=0, compare_labels=False)
    stored = ut.run(experiment, store, workers=None, progress=True)
    run = by_noise(stored[["same_class", "original_class"]].load())

    def measured(rows: np.ndarray, level: float) -> Readings:
        chosen = run.isel(item=rows, noise=[round(20 * level) - 1])
        read = LevelValues.of(Run.of(chosen), "same_class")
        return Readings(
            read.values.mean("trajectory").isel(noise=0).values.astype(float),
            np.arange(len(rows)),
            read.start,
            read.chance,
        )

    def sample(random: np.random.Generator, n: int) -> Measured:
        rows = random.integers(run.sizes["item"], size=n)
        return lambda level, items: measured(rows[:items], level)

    whole = [measured(np.arange(run.sizes["item"]), level) for level in run.noise.values.tolist()]
    left = np.array([(of.values.mean() - of.chance) / (1 - of.chance) for of in whole])
    k = int(np.flatnonzero(left < 0.5)[0])
    heights, noise = logit(left[k - 1 : k + 1]), run.noise.values
    place = noise[k - 1] + heights[0] / (heights[0] - heights[1]) * (noise[k] - noise[k - 1])
    print(
        f"{run.sizes['item']} originals: chance {whole[0].chance:.4f}, place {place:.4f}, share of"
        " the way that is left"
    )
    print(", ".join(f"{level:g}: {share:.3f}" for level, share in zip(noise, left, strict=True)))
    return sample, float(place)


def crossing(curve: np.ndarray, chance: float) -> float:
    """The first crossing of a curve at LEVELS with the height halfway to chance, by
    interpolation.
    """
    half = (1 + chance) / 2
    below = np.flatnonzero(curve < half)
    if not len(below) or below[0] == 0:
        return float("nan")
    k = below[0]
    return float(
        LEVELS[k - 1]
        + (curve[k - 1] - half) / (curve[k - 1] - curve[k]) * (LEVELS[k] - LEVELS[k - 1])
    )


def width_of_one(sample: Sample, repeats: int = 200, n: int = 200) -> float:
    """Width of the interval of ten even levels, times the root of the number of originals."""
    widths = []
    for seed in range(repeats):
        measured = sample(np.random.default_rng(5000 + seed), n)
        readings = [measured(level, n) for level in LEVELS.round(10).tolist()]
        kept, chance = np.stack([of.values for of in readings], axis=1), readings[0].chance
        whole, sums = crossing(kept.mean(axis=0), chance), kept.sum(axis=0)
        parts = np.array([crossing((sums - one) / (n - 1), chance) for one in kept])
        widths.append(2 * 1.96 * np.sqrt((n - 1) / n * np.sum((parts - whole) ** 2)) * np.sqrt(n))
    return float(np.nanmean(widths))


def searched(sample: Sample, width: float, seeds: range, step: float) -> list[Found]:
    """A search for each seed, with at most 6,000 originals."""
    samples = [sample(np.random.default_rng(seed), 6000) for seed in seeds]
    return [
        Search(measured, width, step, 1.0, most=6000).run([0.2, 0.4, 0.6, 0.8])
        for measured in samples
    ]


def covers(found: Found, place: float) -> bool:
    """Whether an interval holds the place."""
    return found.place.low <= place <= found.place.high


def compared(name: str, sample: Sample, place: float, seeds: range, step: float) -> list[Row]:
    """Rows of the table for widths of a step or more at which ten even levels need at most 1,200
    originals.
    """
    rows, one = [], width_of_one(sample)
    for width in WIDTHS:
        even = (one / width) ** 2
        if even > 1200 or width < step:
            continue
        locations = searched(sample, width, seeds, step)
        ratio = float(np.mean([location.calls for location in locations])) / (even * LEVELS.sum())
        coverage = float(np.mean([covers(location, place) for location in locations]))
        rows.append(
            (
                name,
                width,
                even,
                float(np.mean([location.originals for location in locations])),
                ratio,
                coverage,
            )
        )
        print(
            f"{name:8s} {width:5g} {even:18.0f} {rows[-1][3]:17.0f} {ratio:18.2f} {coverage:23.3f}",
            flush=True,
        )
    return rows


def judged(cells: Iterable[tuple[str, str, float]], seeds: range) -> None:
    """The table of the parts shoulders and readings."""
    print(
        "curve         readings       width  place  reached  no place  wrong  of reached  calls,"
        " mean  median"
    )
    worst, total = 0.0, []
    for name, kind, width in cells:
        place = truth(name, kind)
        found = searched(simulated(name, kind), width, seeds, 1e-3)
        reached = np.array([one.reached for one in found])
        missed = reached & [not covers(one, place) for one in found]
        nowhere = np.mean([np.isnan(one.place.value) for one in found])
        calls = [one.calls for one in found]
        worst = max(worst, missed.mean())
        total.append(missed.mean())
        of_reached = missed.sum() / max(reached.sum(), 1)
        row = (
            f"{name:13s} {kind:14s} {width:5g}  {place:.3f}  {reached.mean():7.3f}  {nowhere:8.3f} "
            f" {missed.mean():.3f}"
        )
        print(
            f"{row}  {of_reached:10.3f}  {np.mean(calls):11.0f}  {np.median(calls):6.0f}",
            flush=True,
        )
    print(f"reached and wrong: {np.mean(total):.3f} on the mean of the rows, {worst:.3f} at most")


def draw(rows: list[Row], path: Path) -> None:
    """Calls against width, of ten even levels and of `locate`."""
    import matplotlib.pyplot as plt

    from uturn.studies.plotting.style import style

    with style():
        figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
        names = list(dict.fromkeys(row[0] for row in rows))
        for k, (name, marker) in enumerate(zip(names, "os^Dv", strict=True)):
            widths, even, ratios = zip(
                *((row[1], row[2] * LEVELS.sum(), row[4]) for row in rows if row[0] == name),
                strict=True,
            )
            axes.loglog(widths, even, f"{marker}--", color=f"C{k}", alpha=0.4)
            axes.loglog(widths, np.multiply(even, ratios), f"{marker}-", color=f"C{k}", label=name)
        axes.plot([], [], "--", color="0.6", label="ten even levels")
        axes.plot([], [], "-", color="0.2", label="--until")
        axes.set(
            xlabel="width of the interval of a half-life, in t/T",
            ylabel="U-turns, in chains from t/T = 1",
        )
        axes.set_title("what a half-life to a width costs")
        axes.set_xticks(WIDTHS, [f"{width:g}" for width in WIDTHS])
        axes.minorticks_off()
        axes.set_yticks(
            [20, 50, 100, 200, 500, 1000, 2000, 5000],
            ["20", "50", "100", "200", "500", "1,000", "2,000", "5,000"],
        )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="curve")
        figure.savefig(path, dpi=160)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--part", choices=("curves", "shoulders", "readings", "images"), default="curves"
    )
    parser.add_argument("--store", help="store of the run of part images")
    chosen = parser.parse_args()
    if chosen.part == "images" and chosen.store is None:
        parser.error("part images: expected --store")
    if chosen.plot is not None and chosen.part != "curves":
        parser.error("--plot: expected part curves")
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.repeats)
    if chosen.part == "shoulders":
        return judged(itertools.product(SHOULDERS, ("0/1",), (0.2, 0.1, 0.05)), seeds)
    if chosen.part == "readings":
        return judged(itertools.product((*CURVES, *SLOW), KINDS, (0.1,)), seeds)
    curves = {"images": (*embedded(chosen.store), 0.05)} if chosen.part == "images" else {}
    curves = curves or {name: (simulated(name), truth(name), 1e-3) for name in CURVES}
    print(
        "curve    width  originals of ten levels  originals  calls / calls of ten levels  coverage"
    )
    rows = [
        row
        for name, (sample, place, step) in curves.items()
        for row in compared(name, sample, place, seeds, step)
    ]
    for words, least, most in (("150 originals or more", 150, np.inf), ("50 to 150", 50, 150)):
        if ratios := [row[4] for row in rows if least <= row[2] < most]:
            print(f"largest ratio where ten levels need {words}: {max(ratios):.2f}")
    print(
        f"coverage: {np.mean([row[5] for row in rows]):.3f} pooled,"
        f" {min(row[5] for row in rows):.3f} at least"
    )
    if chosen.plot is not None:
        draw(rows, chosen.plot)


if __name__ == "__main__":
    main()
