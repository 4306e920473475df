"""What `uturn study` says too surely, and how often: simulated runs of which the truth is known.

    python benchmarks/coverage_of_studies.py [--part NAME ..] [--runs 400] [--workers 2]

Each part draws runs with seeds 0, 1, .. and prints a line for each design.

- halves: two runs on the same originals at levels .1 apart. An original is kept up to a noise of
  its own, normal with the standard deviation in the name; both runs have noises with correlation
  .9, and those of the second are later by the shift. "tosses": 0 or 1. "smooth": a share that falls
  over .03. Where the fall lies between two levels is drawn anew. Coverage: share of 95 % intervals
  of `uturn.studies.difference` that hold the shift. "seen": share that do not hold 0. "identical"
  compares a run with itself.
- lengths: sites that change independently, so that there is no correlation length; and a row of
  sites with xi = 3. "xi": share of the runs and noise levels that have a correlation length.
- chi: susceptibility of 20 sites. "blocks": a U-turn changes one half of the sites, with a
  probability Beta(.2, 3) of the original. "rare originals": of 3 % of the originals, U-turns change
  all sites or none; sites of others change alone. "given": share of the runs with an interval;
  coverage is among those.
- bounds: share of the runs in which `uturn choose` answers with a level that misses the goal, for a
  distance without a largest value: 1 % of the originals are ten times as far as the others.
- inversions: two readings with the same law, in a series of two levels. "sure": share of the
  studies that say that they swap.
- turns: readings of 0 and 1, or distances. "turn": share of the studies with a remark on a rise
  after a fall, or on a fall after a rise. "no change": share that say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import xarray as xr

import uturn as ut
from uturn.studies import difference

Run = Callable[[int], dict[str, float]]
"""What a run with this seed says, by the name of a column; NaN where it says nothing."""

# --- halves ---------------------------------------------------------------------------------------

LEVELS = np.round(np.arange(0.1, 1.01, 0.1), 1)
CORRELATION = 0.9


def kept(kind: str, lost_at: np.ndarray) -> np.ndarray:
    """Readings (noise, item) of originals that are lost at these noises."""
    beyond = LEVELS[:, None] - lost_at
    if kind == "tosses":
        return np.where(beyond < 0, 1.0, 0.0)
    return 1 / (1 + np.exp(beyond / 0.03))


def halves_run(kind: str, items: int, spread: float, shift: float, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    centre = 0.4 + 0.1 * rng.random()
    own, other = rng.standard_normal((2, items))
    related = CORRELATION * own + np.sqrt(1 - CORRELATION**2) * other
    first = kept(kind, centre + spread * own)
    second = kept(kind, centre + shift + spread * related)
    if kind == "identical":
        second = first
    runs = {
        name: ut.readings({"kept": of}, LEVELS, start=1, chance=0)
        for name, of in (("a", first), ("b", second))
    }
    value, low, high = difference(runs).half_life.sel(reading="kept", axis="noise").values
    exists = np.isfinite([low, high]).all()
    return {
        "exists": float(exists),
        "coverage": float(low <= shift <= high) if exists else np.nan,
        "seen": float(low > 0 or high < 0) if exists else np.nan,
        "error": value - shift,
        "width": high - low,
    }


def halves() -> Iterator[tuple[str, Run]]:
    for kind in ("tosses", "smooth"):
        for items in (12, 60, 600):
            for spread in (0.02, 0.05, 0.1):
                for shift in (0.0, 0.07):
                    name = f"{kind}, {items} originals, spread {spread:g}, shift {shift:g}"
                    yield name, partial(halves_run, kind, items, spread, shift)
    yield (
        "identical, 60 originals, spread 0.05, shift 0",
        partial(halves_run, "identical", 60, 0.05, 0.0),
    )


# --- lengths and chi of changes -------------------------------------------------------------------


def independent(rng: np.random.Generator, rate: float, size: tuple[int, ...]) -> np.ndarray:
    return (rng.random(size) < rate).astype(float)


def row_of_sites(rng: np.random.Generator, rate: float, size: tuple[int, ...]) -> np.ndarray:
    """Sites that repeat the change of the one before with probability exp(-1/3), so that xi = 3."""
    drawn, repeats = rng.random(size) < rate, rng.random(size) < np.exp(-1 / 3)
    repeats[..., 0] = False
    last_drawn = np.maximum.accumulate(np.where(repeats, 0, np.arange(size[-1])), axis=-1)
    return np.take_along_axis(drawn, last_drawn, axis=-1).astype(float)


def lengths_run(
    law: Callable[..., np.ndarray], items: int, trajectories: int, seed: int
) -> dict[str, float]:
    rng, noise = np.random.default_rng(seed), [0.2, 0.4, 0.6, 0.8]
    changed = np.stack([law(rng, rate, (items, trajectories, 40)) for rate in (0.1, 0.2, 0.3, 0.4)])
    found = ut.study(ut.readings({"kept": 1 - changed.mean(-1)}, noise, changes={"site": changed}))
    value, low, high = found.xi.values[0, 1:].T
    given, bounded = np.isfinite(low), np.isfinite(low) & np.isfinite(value)
    return {
        "xi": float(given.mean()),
        "any xi": float(given.any()),
        "coverage of 3": float(((low <= 3) & (high >= 3))[given].mean()) if given.any() else np.nan,
        "finite": float(bounded.mean()),
    }


def lengths() -> Iterator[tuple[str, Run]]:
    for items, trajectories in ((20, 8), (40, 4), (100, 3)):
        for name, law in (("independent", independent), ("xi = 3", row_of_sites)):
            yield (
                f"{name}, {items} x {trajectories}",
                partial(lengths_run, law, items, trajectories),
            )


def blocks(rng: np.random.Generator, items: int, trajectories: int) -> np.ndarray:
    """Changes (item, trajectory, site): a U-turn changes one half of 20 sites, with a
    probability Beta(.2, 3) of the original.
    """
    changes = rng.random((items, trajectories)) < rng.beta(0.2, 3, items)[:, None]
    half = rng.integers(0, 2, (items, trajectories))
    return (changes[..., None] & (half[..., None] == np.arange(20) // 10)).astype(float)


def rare_originals(rng: np.random.Generator, items: int, trajectories: int) -> np.ndarray:
    """3 % of the originals change all of their sites in half of the U-turns; of others each site
    changes with probability .05.
    """
    is_rare = rng.random(items) < 0.03
    whole = np.broadcast_to(rng.random((items, trajectories, 1)) < 0.5, (items, trajectories, 20))
    return np.where(is_rare[:, None, None], whole, rng.random(whole.shape) < 0.05).astype(float)


def _chi_of_blocks() -> float:
    mean, square = 0.2 / 3.2, 0.2 * 1.2 / (3.2 * 4.2)  # of Beta(.2, 3)
    variance = mean / 2 - square / 4
    return (2 * 10**2 * variance - 2 * 10**2 * square / 4) / (20 * variance)


def _chi_of_rare() -> float:
    whole, single = 0.03 * 0.25, 0.97 * 0.05 * 0.95
    return (20 * whole + single) / (whole + single)


def chi_run(
    law: Callable[..., np.ndarray], truth: float, items: int, trajectories: int, seed: int
) -> dict[str, float]:
    _, low, high = ut.susceptibility(law(np.random.default_rng(seed), items, trajectories))
    given = np.isfinite(low)
    return {
        "truth": truth,
        "given": float(given),
        "coverage": float(low <= truth <= high) if given else np.nan,
        "too high": float(low > truth) if given else np.nan,
        "log of high/low": np.log(high / low),
    }


def chi() -> Iterator[tuple[str, Run]]:
    for name, law, truth in (
        ("blocks", blocks, _chi_of_blocks()),
        ("rare originals", rare_originals, _chi_of_rare()),
    ):
        for items, trajectories in ((40, 3), (100, 3), (200, 3), (400, 3), (40, 10)):
            yield (
                f"{name}, {items} x {trajectories}",
                partial(chi_run, law, truth, items, trajectories),
            )


# --- estimated bounds -----------------------------------------------------------------------------


def bounds_run(items: int, spread: float, seed: int) -> dict[str, float]:
    """Distances with the mean 1 + .01 * 9 at the first level, and a goal just below: no level
    reaches it.
    """
    rng = np.random.default_rng(seed)
    is_far = rng.random(items) < 0.01
    distances = rng.gamma(1 / spread**2, spread**2, items) * np.where(is_far, 10, 1)
    run = ut.readings({"rmsd": np.stack([distances, 3 * distances])}, [0.5, 1.0], start=0)
    return {"false": float(np.isfinite(ut.choose(run, "rmsd", keep=1.089).noise))}


def bounds() -> Iterator[tuple[str, Run]]:
    for spread in (0.05, 0.33):
        for items in (12, 50, 200, 1000):
            yield (
                f"1 % of {items} ten times as far, others vary by {spread:g}",
                partial(bounds_run, items, spread),
            )


# --- inversions and turns -------------------------------------------------------------------------


def inversions_run(widths: tuple[float, float], seed: int) -> dict[str, float]:
    rng, x = np.random.default_rng(seed), np.linspace(0.1, 1, 10)
    centre = 0.5 + 0.1 * rng.standard_normal(40)
    kept = [
        rng.random((10, 40)) < 1 / (1 + np.exp((x[:, None] - centre) / width)) for width in widths
    ]
    values = xr.DataArray(np.stack(kept, -1).astype(float), dims=("noise", "item", "layer"))
    remark = ut.study(
        ut.readings({"kept": values}, x, start=1, chance=0, order={"kept": "layer"})
    ).series_remark.item()
    return {"sure": float(remark == "")}


def inversions() -> Iterator[tuple[str, Run]]:
    yield "two equal curves, 40 originals", partial(inversions_run, (0.05, 0.05))
    yield (
        "the first falls over .2, the last over .02, 40 originals",
        partial(inversions_run, (0.2, 0.02)),
    )


TURNS: dict[str, np.ndarray] = {
    "flat": np.full(10, 0.3),
    "falls": np.linspace(0.9, 0.2, 10),
    "falls to a plateau": np.r_[0.9, 0.6, np.full(8, 0.4)],
    "doubles and comes back": 0.3 + 0.3 * np.exp(-(((np.linspace(0.1, 1, 10) - 0.5) / 0.15) ** 2)),
    "falls, rises by .3": np.r_[np.linspace(0.9, 0.3, 6), 0.4, 0.5, 0.6, 0.6],
}


def turns_run(curve: np.ndarray, kind: str, items: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    if kind == "tosses":
        values = (rng.random((10, items)) < curve[:, None]).astype(float)
    else:
        values = curve[:, None] * rng.lognormal(0, 0.3, items) * rng.lognormal(0, 0.3, (10, items))
    remark = ut.study(ut.readings({"r": values}, np.linspace(0, 0.9, 10))).remark.values[0]
    return {"turn": float("again" in remark), "no change": float("no change" in remark)}


def turns() -> Iterator[tuple[str, Run]]:
    for name, curve in TURNS.items():
        for kind in ("tosses", "distances"):
            for items in (12, 40, 200):
                yield f"{name}, {items} {kind}", partial(turns_run, curve, kind, items)


PARTS: dict[str, Callable[[], Iterator[tuple[str, Run]]]] = {
    "halves": halves,
    "lengths": lengths,
    "chi": chi,
    "bounds": bounds,
    "inversions": inversions,
    "turns": turns,
}


def _mean(values: np.ndarray) -> float:
    """Mean of the runs that say something; NaN if none does."""
    said = values[np.isfinite(values)]
    return float(said.mean()) if len(said) else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--only", default="", help="designs whose names hold this text")
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers) as pool:
        for part in options.part or PARTS:
            for name, run in PARTS[part]():
                if options.only not in name:
                    continue
                found = list(pool.map(run, range(options.runs), chunksize=20))
                columns = {key: np.array([one[key] for one in found]) for key in found[0]}
                words = [f"{key} {_mean(values):.3f}" for key, values in columns.items()]
                print(f"{part:10} {name:50} {'  '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
