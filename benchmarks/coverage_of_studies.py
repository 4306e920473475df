"""What `uturn study` says too surely, and how often: simulated runs of which the truth is known.

    python benchmarks/coverage_of_studies.py [--part NAME ..] [--runs 400] [--workers 2]

Each part draws runs with seeds 0, 1, .. and prints a line for each design.

- halves: two runs on the same originals at levels .1 apart. An original is kept up to a noise of its own, normal with the standard
  deviation in the name; both runs have noises with correlation .9, and those of the second are later by the shift. "tosses": 0 or
  1. "smooth": a share that falls over .03. Where the fall lies between two levels is drawn anew. Coverage: share of 95 %
  intervals of `uturn.studies.difference` that hold the shift. "seen": share that do not hold 0. "identical" compares a run with
  itself.
- lengths: sites that change independently, so that there is no correlation length; and a row of sites with xi = 3. "xi": share of
  the runs and noise levels that have a correlation length.
- chi: susceptibility of blocks of 20 sites, two an original. "halves": each U-turn changes every block as a whole, with a
  probability of the original from the law in the name. "all": a share of the originals has U-turns that change all sites or none,
  and the other originals change single sites. "given": share of the runs with an interval; coverage is among those.
- bounds: share of the runs in which `uturn choose` answers with a level that misses the goal, for a distance without a largest
  value: 1 % of the originals are ten times as far as the others.
- inversions: two readings with the same law, in a series of two levels. "sure": share of the studies that say that they swap.
- turns: readings of 0 and 1, or distances. "rise": share of the studies with a remark on a rise after a fall, or on a fall after a
  rise. "no change": share that say so.
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

# --- halves ------------------------------------------------------------------------------------------------------------------

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
    runs = {name: ut.readings({"kept": of}, LEVELS, start=1, chance=0) for name, of in (("a", first), ("b", second))}
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
    yield "identical, 60 originals, spread 0.05, shift 0", partial(halves_run, "identical", 60, 0.05, 0.0)


PARTS: dict[str, Callable[[], Iterator[tuple[str, Run]]]] = {"halves": halves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
                words = [f"{key} {values[np.isfinite(values)].mean():.3f}" for key, values in columns.items()]
                print(f"{part:10} {name:50} {'  '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
