"""How often 95 % intervals hold the truth, on simulated runs: `estimate`, `located`, `proportion`,
`hierarchy_index`, `study`.

    python benchmarks/intervals.py [--runs 2000] [--workers 2] [--part NAME ..]

Parts: curves, images, index, proportions, grids, skewed, rare, medians, flat, differences.

Readings are coin tosses. The truth is the statistic of the mean curve of the population at the same
noise levels, from an integral over what differs between grammars and items. Where it lies between
two noise levels is drawn anew for every run. (If the readings are much more precise than the
spacing of the levels, coverage depends on that place: with 16 trajectories it is between .915, at a
level, and .975.) "error": standard error of the coverage, from the number of runs. "missing": share
of the runs in which the statistic exists but its interval does not. "exists": share in which the
statistic does.

- proportions: readings 0 and 1 with probability p, n items, m trajectories that are independent,
  correlated (intraclass correlation .3, from a Beta law between items) or copies of each other; and
  shares of 20 sites. The last line is the worst.
- grids: half-lives of curves that are not straight between levels. The truth is the noise at which
  the curve passes 1/2, drawn anew for every run. "interpolated": `estimate`; "located": `located`,
  whose width over that of "interpolated" is on the right. "outwards": both ends moved to the next
  level; "undecided": from the last level before the first one that is not above 1/2 by its own
  interval to the first level from which on all are below.
- skewed: means of few or skewed numbers, and of grammars of 1 to 30 items.
- rare: shares of 20 sites, kept with a probability that is small for some originals (in the name).
  "without a remark": the same among the samples in which `rests_on_few` sees no two originals that
  make the spread; "missing" is the share that it sees.
- medians: of lognormal distances, and the noise at which the median curve crosses a height; beside
  them the mean.
- flat: readings that do not change with noise; 1 - coverage is how often a study takes them for
  changing.
- differences: of two runs on the same items, between shares and between half-lives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.measures.statistics import (
    crossing,
    estimate,
    hierarchy_index,
    inversion,
    levels_around,
    located,
    proportion,
    replicates,
    rests_on_few,
    transition,
)
from uturn.studies import difference, study
from uturn.studies.readings import readings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from forging import instructed


class Design(NamedTuple):
    """Sizes of a run, and the standard deviations, between grammars and between items, of the
    noise where a reading falls.
    """

    items: int = 40
    trajectories: int = 1
    grammars: int = 1
    between_grammars: float = 0.0
    between_items: float = 0.0
    levels: int = 21
    centre: float = 0.53


DESIGNS = {
    "1 grammar, 1 trajectory": Design(),
    "2 grammars": Design(grammars=2, between_grammars=0.05),
    "4 grammars": Design(grammars=4, between_grammars=0.05),
    "6 grammars": Design(items=42, grammars=6, between_grammars=0.05),
    "4 trajectories": Design(trajectories=4),
    "16 trajectories": Design(trajectories=16),
    "12 grammars": Design(items=48, grammars=12, between_grammars=0.05),
    "6 grammars that do not differ": Design(items=42, grammars=6),
    "6 grammars that differ much": Design(items=42, grammars=6, between_grammars=0.15),
    "6 grammars, 4 trajectories, items differ": Design(42, 4, 6, 0.05, 0.1),
    "4 trajectories, items differ": Design(trajectories=4, between_items=0.1),
    "10 items": Design(items=10, between_items=0.05),
    "100 items": Design(items=100, between_items=0.1),
    "1000 items": Design(items=1000, between_items=0.1),
    "11 noise levels": Design(levels=11),
    "41 noise levels": Design(levels=41),
    "next to the last level": Design(centre=0.96),
}
IMAGES = {
    "40 originals": Design(levels=10),
    "40 originals, 4 U-turns, items differ": Design(trajectories=4, between_items=0.1, levels=10),
    "200 originals, 20 levels": Design(items=200, between_items=0.1, levels=20),
}
DIFFERENCES = {
    "40 originals, 10 levels": Design(between_items=0.1, levels=11),
    "12 originals, 4 U-turns, 20 levels": Design(items=12, trajectories=4, between_items=0.1),
    "100 originals, 2 U-turns, 40 levels": Design(
        items=100, trajectories=2, between_items=0.1, levels=41
    ),
}
# Of levels: the noise where the high level is lost, and the width of its logistic fall; the low
# level: 0.45, 0.15.
PAIRS = {
    "an inversion": (0.45, 0.03),
    "an inversion that is not narrow": (0.45, 0.08),
    "a small index, or none": (0.15, 0.04),
    "no transition": (0.15, 0.10),
    "no difference": (0.45, 0.15),
}
_GRID = np.linspace(-4, 4, 161)
_WEIGHTS = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()


def logistic(x: np.ndarray, centre: np.ndarray | float, width: float) -> np.ndarray:
    """Probabilities (noise, ..) that fall from 1 to 0 around centres (..)."""
    return 1 / (1 + np.exp((x.reshape(-1, *[1] * np.ndim(centre)) - centre) / width))


def centres(design: Design, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of every item: where its readings fall, minus the mean of the population; and its grammar."""
    grammar = np.arange(design.items) * design.grammars // design.items
    effect = (design.between_grammars * rng.standard_normal(design.grammars))[grammar]
    return effect + design.between_items * rng.standard_normal(design.items), grammar


def population(design: Design, x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Mean curve (noise,) of all grammars and items."""
    spread = np.hypot(design.between_grammars, design.between_items)
    return logistic(x, centre + spread * _GRID, width) @ _WEIGHTS


def tossed(
    design: Design,
    rng: np.random.Generator,
    probability: np.ndarray,
    grammar: np.ndarray,
    x: np.ndarray,
) -> xr.DataArray:
    """Readings 0 or 1, dims noise, item, trajectory."""
    values = rng.random((*probability.shape, design.trajectories)) < probability[..., None]
    readings = xr.DataArray(
        values.astype(np.float32), dims=("noise", "item", "trajectory"), coords={"noise": x}
    )
    return readings.assign_coords(grammar=("item", grammar)) if design.grammars > 1 else readings


# --- simulated runs: {statistic: (truth, value, low, high)} ---------------------------------------


def curve_readings(
    design: Design, seed: int
) -> tuple[xr.DataArray, Callable[[np.ndarray], float], float]:
    """Readings, the statistic, and its value for the population."""
    rng, x = np.random.default_rng(seed), np.linspace(0, 1, design.levels)
    centre = design.centre + (rng.random() - 0.5) * x[1]
    offset, grammar = centres(design, rng)
    readings = tossed(design, rng, logistic(x, centre + offset, 0.08), grammar, x)

    def location(curve: np.ndarray) -> float:
        return transition(x, curve, 1.0, 0.0).location

    return readings, location, location(population(design, x, centre, 0.08))


def curve_run(design: Design, seed: int) -> dict[str, tuple[float, ...]]:
    readings, location, truth = curve_readings(design, seed)
    return {"location": (truth, *estimate(readings, location))}


# Of first layer and logits: their ends; centre and width of their falls.
FLOOR, LAYERS = (0.3, 0.04), ((0.5, 0.12), (0.6, 0.03))


def image_run(design: Design, seed: int) -> dict[str, tuple[float, ...]]:
    rng, x = np.random.default_rng(seed), np.arange(1, design.levels + 1) / design.levels
    moved = (rng.random() - 0.5) / design.levels
    offset, grammar = centres(design, rng)
    offset = offset + moved
    same = tossed(design, rng, 0.1 + 0.9 * logistic(x, design.centre + offset, 0.05), grammar, x)
    original = np.arange(design.items) % 10
    scatter = (
        0.1
        * rng.standard_normal((len(x), design.items, design.trajectories, 2))
        * x[:, None, None, None]
    )
    means = [
        f + (1 - f) * logistic(x, c + offset, w)[..., None]
        for f, (c, w) in zip(FLOOR, LAYERS, strict=True)
    ]
    run = xr.Dataset(
        {
            "similarity": ((*same.dims, "network_layer"), np.stack(means, axis=-1) + scatter),
            "same_class": same,
            "original_class": (("noise", "item"), np.tile(original, (len(x), 1))),
        },
        coords={"noise": x, "network_layer": ["first", "logits"]},
        attrs={"spec": '{"probes": [{"type": "network_layers"}]}'},
    )
    found, noise = study(instructed(run)).sel(axis="noise"), np.r_[0.0, x]
    layers = found.half_life.values[found.variable.values == "similarity"]

    def from_one(curve: np.ndarray) -> np.ndarray:
        return np.r_[1.0, curve]

    fall = transition(
        noise, from_one(0.1 + 0.9 * population(design, x, design.centre + moved, 0.05)), 1.0, 0.1
    )
    first, logits = (
        from_one(f + (1 - f) * population(design, x, c + moved, w))
        for f, (c, w) in zip(FLOOR, LAYERS, strict=True)
    )
    return {
        "half-life, class": (fall.location, *found.half_life.sel(reading="same_class").values),
        "width": (fall.width, *found.width.sel(reading="same_class").values),
        "inversion": (
            inversion(noise, logits, first),
            *found.inversion.sel(series="similarity").values,
        ),
        "half-life, first layer": (transition(noise, first).location, *layers[0]),
        "half-life, logits": (transition(noise, logits).location, *layers[1]),
    }


def index_run(pair: tuple[float, float], design: Design, seed: int) -> dict[str, tuple[float, ...]]:
    rng, x = np.random.default_rng(seed), np.linspace(0.04, 1, 25)
    offset, grammar = centres(design, rng)
    laws = (pair, (0.45, 0.15))
    high, low = (tossed(design, rng, logistic(x, c + offset, w), grammar, x) for c, w in laws)

    def index(curves: list[np.ndarray]) -> float:
        exact = [
            xr.DataArray(np.stack([c, c], axis=1), dims=("noise", "item"), coords={"noise": x})
            for c in curves
        ]
        return hierarchy_index(*exact, floors=(0.0, 0.0)).value

    return {
        "index": (
            index([population(design, x, *law) for law in laws]),
            *hierarchy_index(high, low, (0.0, 0.0)),
        )
    }


# --- means ----------------------------------------------------------------------------------------


class Tosses(NamedTuple):
    """Readings of probability p: items, trajectories, their intraclass correlation, and sites
    over which a reading is a share.
    """

    p: float
    items: int
    trajectories: int
    correlation: float
    sites: int = 1


PROPORTIONS = {
    f"p = {p}, {n} items, {words}": Tosses(p, n, m, correlation, sites)
    for p in (0.0, 0.01, 0.02, 0.1, 0.5)
    for n in (10, 40, 200)
    for words, m, correlation, sites in (
        ("1 trajectory", 1, 0.0, 1),
        ("5 independent", 5, 0.0, 1),
        ("5 correlated", 5, 0.3, 1),
        ("5 copies", 5, 1.0, 1),
        ("1 trajectory, share of 20 sites", 1, 0.0, 20),
    )
}
BATCH = 200
"""Runs of proportions that are simulated at once."""


def proportion_runs(of: Tosses, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if 0 < of.correlation < 1 and of.p:
        size = (1 - of.correlation) / of.correlation
        p = rng.beta(of.p * size, (1 - of.p) * size, (of.items, 1, BATCH))
    else:
        p = np.full((of.items, 1, BATCH), of.p)
    draws = 1 if of.correlation == 1 else of.trajectories
    shares = rng.binomial(of.sites, p, (of.items, draws, BATCH)) / of.sites
    values = xr.DataArray(
        shares.repeat(of.trajectories // draws, axis=1)[None],
        dims=("noise", "item", "trajectory", "run"),
    )
    found = {
        "Student's t": replicates(values).interval(lambda c: c),
        "proportion": proportion(values).values,
    }
    return {name: np.stack([np.full(BATCH, of.p), *ends[0].T]) for name, ends in found.items()}


SKEWED: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, float]]] = {
    # numbers of the items, their grammars, and the truth
    **{
        f"lognormal, {n} items": lambda rng, n=n: (
            rng.lognormal(size=n),
            np.zeros(n, int),
            float(np.exp(0.5)),
        )  # type: ignore[misc]
        for n in (10, 20, 40, 100, 400)
    },
    **{
        f"normal, {n} items": lambda rng, n=n: (rng.standard_normal(n), np.zeros(n, int), 0.0)
        for n in (5, 10)
    },  # type: ignore[misc]
    **{
        f"8 grammars of 1 to 30 items, sd {sd} between, 1 within": lambda rng, sd=sd: _unequal(
            rng, sd
        )  # type: ignore[misc]
        for sd in (0.0, 0.3, 1.0, 10.0)
    },
}


def _unequal(rng: np.random.Generator, sd: float) -> tuple[np.ndarray, np.ndarray, float]:
    grammar = np.repeat(np.arange(8), rng.integers(1, 31, 8))
    return sd * rng.standard_normal(8)[grammar] + rng.standard_normal(len(grammar)), grammar, 0.0


def skewed_run(law: str, seed: int) -> dict[str, tuple[float, ...]]:
    numbers, grammar, truth = SKEWED[law](np.random.default_rng(seed))
    values = xr.DataArray(
        numbers[None], dims=("noise", "item"), coords={"grammar": ("item", grammar)}
    )
    return {"mean": (truth, *estimate(values, lambda c: float(c[0])))}


# Probabilities that a site is kept, and their law.
_RARE: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "5 % at .3, others .98": lambda rng, n: np.where(rng.random(n) < 0.05, 0.3, 0.98),
    "5 % at .7, others .95": lambda rng, n: np.where(rng.random(n) < 0.05, 0.7, 0.95),
    "10 % at .3, others .95": lambda rng, n: np.where(rng.random(n) < 0.1, 0.3, 0.95),
    "all .99": lambda rng, n: np.full(n, 0.99),
    "all .8": lambda rng, n: np.full(n, 0.8),
    "Beta(4, 2)": lambda rng, n: rng.beta(4, 2, n),
}
_SIZES_OF_RARE = ((8, 4), (20, 4), (40, 4), (100, 2))


def rare_run(law: str, items: int, trajectories: int, seed: int) -> dict[str, tuple[float, ...]]:
    rng = np.random.default_rng(seed)
    shares = rng.binomial(20, _RARE[law](rng, items)[:, None], (items, trajectories)) / 20
    values, truth = (
        xr.DataArray(shares[None], dims=("noise", "item", "trajectory")),
        _RARE[law](np.random.default_rng(1), 10**6).mean(),
    )
    value, low, high = proportion(values).values[0]
    seen = bool(rests_on_few(values))
    ends = (np.nan, np.nan) if seen else (low, high)
    return {"proportion": (truth, value, low, high), "without a remark": (truth, value, *ends)}


# --- grids ----------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """Equal distances of noise levels, or the levels; items, trajectories; width of the logistic
    fall, 0 for a step.
    """

    levels: int | tuple[float, ...]
    items: int
    trajectories: int
    width: float
    plateau: bool = False

    def noise(self) -> np.ndarray:
        return (
            np.linspace(0, 1, self.levels)
            if isinstance(self.levels, int)
            else np.array(self.levels)
        )


GRIDS = {
    f"{'levels 0, .9, 1' if isinstance(levels, tuple) else f'{levels} levels'}, {n} x {m}, {words}": Grid(
        levels, n, m, width, plateau
    )
    for levels in ((0.0, 0.9, 1.0), 6, 11, 21, 51)
    for n, m in ((10, 1), (40, 1), (40, 4))
    for words, width, plateau in (
        ("logistic .08", 0.08, False),
        ("logistic .02", 0.02, False),
        ("logistic .005", 0.005, False),
        ("step", 0.0, False),
        ("two steps, .55 between", 0.0, True),
    )
}


def grid_run(grid: Grid, seed: int) -> dict[str, tuple[float, ...]]:
    rng, x = np.random.default_rng(seed), grid.noise()
    gap = levels_around(x, 0.95 if len(x) == 3 else 0.5)
    truth = gap[0] + (gap[1] - gap[0]) * rng.random()
    if grid.width:
        curve = 1 / (1 + np.exp(np.clip((x - truth) / grid.width, -700, 700)))
    else:
        curve = (x < truth).astype(float)
        if grid.plateau:  # just above 1/2 for one distance of levels
            curve[(x < truth) & (x >= truth - (gap[1] - gap[0]))] = 0.55
    curve[0] = 1.0
    tossed_values = rng.random((len(x), grid.items, grid.trajectories)) < curve[:, None, None]
    values = xr.DataArray(
        tossed_values.astype(float), dims=("noise", "item", "trajectory"), coords={"noise": x}
    )
    of = replicates(values)

    def place(c: np.ndarray) -> float:
        return crossing(x, c, 0.5, first=True)

    interpolated = of.interval(place)
    outwards = [levels_around(x, end)[k] for k, end in enumerate(interpolated[1:])]
    _, low, high = proportion(values).values.T
    first, last = (low > 0.5).argmin(), len(x) - 1 - (high < 0.5)[::-1].argmin()
    undecided = x[max(first - 1, 0)], x[min(last + 1, len(x) - 1)]
    return {
        "interpolated": (truth, *interpolated),
        "located": (truth, *located(of, place, x)),
        "outwards": (truth, interpolated[0], *outwards),
        "undecided": (truth, interpolated[0], *undecided),
    }


# --- medians, and readings that do not change -----------------------------------------------------

MEDIANS = (8, 10, 20, 40, 100, 400)
# Readings (noise, item) at the first and the last level.
FLAT: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "tosses .5": lambda rng, n: (rng.random((2, n)) < 0.5).astype(float),
    "tosses .9": lambda rng, n: (rng.random((2, n)) < 0.9).astype(float),
    "shares of 20 sites": lambda rng, n: rng.binomial(20, 0.3, (2, n)) / 20,
    "normal, items differ": (
        lambda rng, n: 3 * rng.standard_normal((1, n)) + rng.standard_normal((2, n))
    ),
    "lognormal": lambda rng, n: rng.lognormal(size=(2, n)),
}


def median_run(items: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Distances with heavy tails between items, which rise as a power of the noise: the median
    at a level, and its place.
    """
    rng, x, power = (
        np.random.default_rng(seed),
        np.linspace(0, 1, 41),
        np.random.default_rng([1, seed]).uniform(1.5, 2.5),
    )
    tails = rng.lognormal(0, 1.5, (1, items)) * rng.lognormal(0, 0.3, (len(x), items))
    of = replicates(xr.DataArray(x[:, None] ** power * tails, dims=("noise", "item")), "median")
    place = of.interval(lambda c: crossing(x, -c, -0.5, first=True))
    mean = replicates(xr.DataArray(tails[20:21], dims=("noise", "item"))).interval(lambda c: c[0])
    return {
        "median": (x[20] ** power, *of.interval(lambda c: c[20])),
        "place on it": (0.5 ** (1 / power), *place),
        "mean": (float(np.exp((1.5**2 + 0.3**2) / 2)), *mean),
    }


def flat_run(law: str, items: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Last minus first level, as the study tests whether a reading changes: coverage is 1 minus
    the false-alarm rate.
    """
    values = xr.DataArray(FLAT[law](np.random.default_rng(seed), items), dims=("noise", "item"))
    return {"last minus first": (0.0, *estimate(values, lambda c: float(c[1] - c[0])))}


def difference_run(design: Design, seed: int) -> dict[str, tuple[float, ...]]:
    """Two runs on the same items, the second with its fall later by .05: shares at two levels,
    and half-lives.
    """
    rng, x = np.random.default_rng(seed), np.linspace(0, 1, design.levels)[1:]
    centre = 0.45 + rng.random() * x[0]
    offset, grammar = centres(design, rng)
    runs, curves = {}, []
    for name, late in (("first", 0.0), ("second", 0.05)):
        kept = tossed(design, rng, logistic(x, centre + late + offset, 0.07), grammar, x)
        runs[name] = readings({"kept": kept}, start=1, chance=0.0)
        curves.append(population(design, x, centre + late, 0.07))
    found = difference(runs).sel(reading="kept")
    truth = curves[1] - curves[0]
    levels = {
        f"shares at {share}": int(np.abs(curves[0] - share).argmin()) for share in (0.99, 0.5)
    }
    of_curve = {name: (float(truth[k]), *found.curve.values[k]) for name, k in levels.items()}
    return {**of_curve, "half-lives": (0.05, *found.half_life.sel(axis="noise").values)}


# --- the table ------------------------------------------------------------------------------------


def simulated(part: str) -> dict[str, Callable[[int], Any]]:
    """Functions of a seed that give {statistic: (truth, value, low, high)}, of one run, or of
    `BATCH` runs of proportions.
    """
    if part == "curves":
        return {name: partial(curve_run, design) for name, design in DESIGNS.items()}
    if part == "images":
        return {name: partial(image_run, design) for name, design in IMAGES.items()}
    if part == "proportions":
        return {name: partial(proportion_runs, of) for name, of in PROPORTIONS.items()}
    if part == "grids":
        return {name: partial(grid_run, grid) for name, grid in GRIDS.items()}
    if part == "rare":
        return {
            f"{law}, {n} x {m}": partial(rare_run, law, n, m)
            for law in _RARE
            for n, m in _SIZES_OF_RARE
        }
    if part == "medians":
        return {f"{n} items": partial(median_run, n) for n in MEDIANS}
    if part == "flat":
        return {
            f"{law}, {n} items": partial(flat_run, law, n)
            for law in FLAT
            for n in (2, 3, 5, 10, 40, 200)
        }
    if part == "differences":
        return {name: partial(difference_run, design) for name, design in DIFFERENCES.items()}
    if part == "skewed":
        return {name: partial(skewed_run, name) for name in SKEWED}
    sizes = {
        "600 items": Design(items=600),
        "6 grammars of 20": Design(items=120, grammars=6, between_grammars=0.02),
    }
    return {
        f"{n}, {size}": partial(index_run, pair, design)
        for n, pair in PAIRS.items()
        for size, design in sizes.items()
    }


PARTS = (
    "curves",
    "images",
    "index",
    "proportions",
    "grids",
    "skewed",
    "rare",
    "medians",
    "flat",
    "differences",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{'design':44} {'statistic':24} {'truth':>6} {'coverage':>8} {'error':>6} {'width':>6}"
        f" {'missing':>7} {'exists':>6}"
    )
    with ProcessPoolExecutor(options.workers) as pool:
        for part in options.part or PARTS:
            worst: dict[str, tuple[float, str]] = {}
            for name, run in simulated(part).items():
                calls = -(-options.runs // BATCH) if part == "proportions" else options.runs
                found = list(
                    pool.map(run, range(calls), chunksize=1 if part == "proportions" else 20)
                )
                widths: list[float] = []
                for statistic in found[0]:
                    truth, value, low, high = np.concatenate(
                        [np.reshape(one[statistic], (4, -1)) for one in found], axis=1
                    )
                    exists = np.isfinite(value)
                    interval = exists & np.isfinite(low) & np.isfinite(high)
                    covered = ((low <= truth) & (truth <= high))[interval].mean()
                    error = np.sqrt(covered * (1 - covered) / interval.sum())
                    width, missing = (
                        (high - low)[interval].mean(),
                        1 - interval.sum() / exists.sum(),
                    )
                    widths.append(width)
                    ratio = (
                        f" {width / widths[0]:9.2f}" if part == "grids" and widths[0] > 0 else ""
                    )
                    print(
                        f"{name:44} {statistic:24} {truth.mean():6.3f} {covered:8.3f} {error:6.3f}"
                        f" {width:6.4f} {missing:7.3f} {exists.mean():6.3f}{ratio}",
                        flush=True,
                    )
                    worst[statistic] = min(worst.get(statistic, (2.0, "")), (float(covered), name))
            for statistic, (covered, name) in worst.items():
                print(f"worst of {part}: {statistic} {covered:.3f} ({name})", flush=True)


if __name__ == "__main__":
    main()
