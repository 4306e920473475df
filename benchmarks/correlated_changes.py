"""Correlated changes: how long they take, and how often their 95 % intervals hold the truth.

    python benchmarks/correlated_changes.py [--channel NAME ...] [--depth L] [--items N]
    [--trajectories N] python benchmarks/correlated_changes.py --part ratios [--runs 1000]
    [--workers 2] python benchmarks/correlated_changes.py --part peak [--runs 1000] [--workers 2]

`time`, the default: the susceptibility of one noise level, and what each part of it takes. Grammar
(32, 8, 2). The time is that of `uturn.run` with the probe `changes`, everything included but
compilation. The first line is the share of the probe: the covariances of as many changes. Half the
time of all threads is the least time on two cores, also on a machine with other work. The memory is
the growth of the largest resident memory during the run; trajectories are read part by part, so
that it does not grow with their number.

`ratios`: chi, C(r)/C(0) at r = 1 and 12, and 1/xi. An original has 40 sites in a row. Each site
repeats the change of the one before with probability exp(-1/3), and otherwise changes with the rate
of the original, so that xi = 3. Rates are .3 ("even"), Beta(.3, 1), or "rare": 5 % of the originals
have rate .5, and the others a small rate (in the name) at which sites change alone. "few": all
originals have the small rate in the name, so that few pairs of sites change together. "given":
share of the runs with an interval; coverage is among those, and "too low" the share of them that
lie below the truth.

`peak`: the level of the largest chi, for four curves chi(x), at ten levels. Every original has the
curve shifted along x by a normal number of its own (standard deviation .05); the truth is the
largest value of the population's curve. "plateau": share of the runs in which a plateau is named;
"end": in which chi is largest at an end. Heights are in per cent of the true one.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import xarray as xr

import uturn as ut
from uturn.measures import changes
from uturn.measures.covariances import Covariances, Grid, Tree
from uturn.measures.peaks import peak_of
from uturn.measures.scaling import correlation_length

NOISE = {"epsilon": 0.72, "gaussian": 0.067, "masking": 0.28, "uniform": 0.18}


def described(channel: str, depth: int, items: int, trajectories: int) -> ut.Experiment:
    return ut.Experiment.from_dict(
        {
            "items": items,
            "trajectories": trajectories,
            "source": {
                "type": "rhm",
                "vocab_size": 32,
                "multiplicity": 8,
                "branching": 2,
                "depth": depth,
            },
            "corruption": {"type": channel, "noise": [NOISE[channel]]},
            "backward": {"type": "exact"},
            "probes": [{"type": "changes"}],
        }
    )


def timed(options: argparse.Namespace) -> None:
    size = (options.items, options.trajectories, 2**options.depth)
    changed = np.random.default_rng(0).random(size, dtype=np.float32) < 0.3
    start = time.perf_counter()
    Covariances(Tree(size[2], 2)).add(changed)
    probe = time.perf_counter() - start
    del changed
    print(
        f"{options.items} originals, {options.trajectories} trajectories, L = {options.depth};"
        f" probe alone {probe:.2f} s"
    )
    for channel in options.channel:
        ut.run(described(channel, options.depth, 1, 2))  # compiles
        before, start, busy = _memory(), time.perf_counter(), time.process_time()
        ds = ut.run(described(channel, options.depth, options.items, options.trajectories))
        seconds, busy, grown = (
            time.perf_counter() - start,
            time.process_time() - busy,
            _memory() - before,
        )
        chi = changes.susceptibility(ds).isel(noise=0)
        words = f"chi = {chi.chi.item():.2f} [{chi.low.item():.2f}, {chi.high.item():.2f}]"
        each = 1e6 * seconds / size[0] / size[1]
        print(
            f"{channel:10} {seconds:6.1f} s, all threads {busy:.1f} s   {each:6.1f} us a U-turn  "
            f" +{grown:.0f} MB   {words}"
        )


def _memory() -> float:
    """Largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- ratios ---------------------------------------------------------------------------------------

SITES, REPEATED = 40, np.exp(-1 / 3)
DISTANCES = (1, 12)
_R = np.arange(1, SITES)
RATES: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    "even": lambda rng, n: (np.full(n, 0.3), np.ones(n, bool)),
    **{
        f"few, {rate:g}": partial(
            lambda rng, n, rate: (np.full(n, rate), np.ones(n, bool)), rate=rate
        )
        for rate in (0.005, 0.014, 0.03)
    },
    "Beta(.3, 1)": lambda rng, n: (rng.beta(0.3, 1.0, n), np.ones(n, bool)),
    **{
        f"rare, others {quiet:g}": partial(lambda rng, n, quiet: _rare(rng, n, quiet), quiet=quiet)
        for quiet in (0.002, 0.01)
    },
}
"""Rates of originals, and which of them are active: have sites that repeat each other."""
_SIZES = ((20, 2), (20, 8), (40, 4), (100, 2), (100, 3), (100, 8))
_SIZES_OF_FEW = ((8, 3), (8, 20), (12, 8), (20, 6), (60, 3), (100, 8))


def _rare(rng: np.random.Generator, n: int, quiet: float) -> tuple[np.ndarray, np.ndarray]:
    active = rng.random(n) < 0.05
    return np.where(active, 0.5, quiet), active


def chain(rng: np.random.Generator, rate: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    """Changes (.., sites); rate and probability of a repetition have the shape of the rest."""
    drawn = rng.random((*rate.shape, SITES)) < rate[..., None]
    repeats = rng.random(drawn.shape) < repeated[..., None]
    repeats[..., 0] = False
    # The last site that was drawn anew.
    source = np.maximum.accumulate(np.where(repeats, 0, np.arange(SITES)), axis=-1)
    return np.take_along_axis(drawn, source, axis=-1)


def susceptibility_of_chain(repeated: np.ndarray | float) -> np.ndarray:
    return 1 + 2 * ((1 - _R / SITES) * np.power.outer(repeated, _R)).sum(axis=-1)


def ratio_truth(name: str) -> dict[str, float]:
    rate, active = RATES[name](np.random.default_rng(1), 10**6)
    variance = rate * (1 - rate)
    share = variance[active].sum() / variance.sum()
    curve = {f"C({r})/C(0)": share * REPEATED**r for r in DISTANCES}
    return {
        "chi": 1 + share * (float(susceptibility_of_chain(REPEATED)) - 1),
        **curve,
        "1/xi": 1 / 3,
    }


def ratio_run(name: str, items: int, trajectories: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Value and ends of the interval of every number, and n_eff."""
    rng = np.random.default_rng(seed)
    rate, active = (
        np.repeat(one[:, None], trajectories, axis=1) for one in RATES[name](rng, items)
    )
    changed = Covariances(Grid((SITES,))).add(chain(rng, rate, np.where(active, REPEATED, 0.0)))
    chi, found = changes.susceptibility(changed), changes.correlations(changed)
    length = correlation_length(changed, exponent=0)
    at = {
        f"C({r})/C(0)": tuple(
            float(found[key].sel(distance=r)) for key in ("correlation", "low", "high")
        )
        for r in DISTANCES
    }
    with np.errstate(divide="ignore"):
        inverse = tuple(float(1 / length[key].values[0]) for key in ("length", "high", "low"))
    return {"chi": tuple(chi), **at, "1/xi": inverse, "n_eff": (float(found.n_eff),)}


def ratios(runs: int, pool: ProcessPoolExecutor) -> None:
    print(f"{'rates':18} {'size':>7} {'n_eff':>6} {'number':12} {'truth':>6} {'given':>6}", end=" ")
    print(f"{'coverage':>8} {'too low':>7} {'width':>7}")
    for name in RATES:
        truth = ratio_truth(name)
        for size in _SIZES_OF_FEW if name.startswith("few") else _SIZES:
            found = list(pool.map(partial(ratio_run, name, *size), range(runs), chunksize=20))
            number = np.median([one["n_eff"] for one in found])
            for key, true in truth.items():
                _, low, high = np.array([one[key] for one in found]).T
                given = np.isfinite(low) & np.isfinite(high)
                low, high = low[given], high[given]
                covered, missed = ((low <= true) & (true <= high)).mean(), (high < true).mean()
                words = (
                    f"{name:18} {'x'.join(map(str, size)):>7} {number:6.1f} {key:12} {true:6.3f}"
                    f" {given.mean():6.3f}"
                )
                print(
                    f"{words} {covered:8.3f} {missed:7.3f} {np.median(high - low):7.3f}", flush=True
                )


# --- peak -----------------------------------------------------------------------------------------

LEVELS, SHIFT = np.linspace(0.1, 1, 10), 0.05
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "peak": lambda x: 1.3 + 4 * np.exp(-(((x - 0.5) / 0.15) ** 2) / 2),
    "plateau": (
        lambda x: 1.3 + 3.2 / (1 + np.exp(-(x - 0.22) / 0.05)) / (1 + np.exp((x - 0.8) / 0.05))
    ),
    "tilted": lambda x: (
        1.3
        + (3.2 + 0.35 * (0.51 - x) / 0.3)
        / (1 + np.exp(-(x - 0.22) / 0.05))
        / (1 + np.exp((x - 0.82) / 0.05))
    ),
    "skew": lambda x: 1.2 + 4 * np.exp(-(((x - 0.62) / np.where(x < 0.62, 0.3, 0.1)) ** 2) / 2),
}
_TEXTS = ((12, 8), (20, 8), (40, 5), (150, 8))
_LAMBDA = np.linspace(0, 0.995, 400)
_CHI = susceptibility_of_chain(_LAMBDA)


def rates_at(x: np.ndarray) -> np.ndarray:
    return np.clip(0.02 + 0.85 * x, 0.02, 0.9)


def peak_truth(name: str) -> tuple[float, float]:
    """Place and height of the largest chi of the population."""
    x = np.linspace(LEVELS[0], LEVELS[-1], 1801)
    shifts, weights = np.polynomial.hermite_e.hermegauss(21)
    total = variance = np.zeros(len(x))
    for shift, weight in zip(SHIFT * shifts, weights, strict=True):
        v = weight * rates_at(x + shift) * (1 - rates_at(x + shift))
        total, variance = total + v * CURVES[name](x + shift), variance + v
    k = int((total / variance).argmax())
    return float(x[k]), float((total / variance)[k])


def peak_run(name: str, items: int, trajectories: int, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    x = np.repeat(
        (LEVELS[:, None] + SHIFT * rng.standard_normal(items))[..., None], trajectories, axis=2
    )
    changed = chain(rng, rates_at(x), np.interp(CURVES[name](x), _CHI, _LAMBDA))
    total, variance = changed.sum(-1).var(-1, ddof=1) / SITES, changed.var(-2, ddof=1).mean(-1)
    parts = xr.DataArray(
        np.stack([total, variance]), dims=("part", "noise", "item"), coords={"noise": LEVELS}
    )
    found = peak_of(parts)
    return (*found.place, *found.height, found.cross_fitted, found.plateau, not found.inside)


def peaks(runs: int, pool: ProcessPoolExecutor) -> None:
    print(
        f"{'curve':8} {'size':>6} {'peak':>5} {'coverage':>8} {'mean':>7} {'width':>6}"
        f" {'plateau':>7} {'end':>5}",
        end="   ",
    )
    print(f"{'height':>6} {'found':>6} {'coverage':>8} {'cross-fitted':>12}")
    for name in CURVES:
        place, height = peak_truth(name)
        for size in _TEXTS:
            found = np.array(
                list(pool.map(partial(peak_run, name, *size), range(runs), chunksize=20)), float
            )
            star, largest, (fitted, plateau, end) = (
                found[:, :3],
                found[:, 3:6],
                found[:, 6:].mean(axis=0),
            )
            covered = _held(star, place), _held(largest, height)
            bias = [100 * (mean / height - 1) for mean in (largest[:, 0].mean(), fitted)]
            mean, width = np.nanmean(star[:, 0]), np.nanmean(star[:, 2] - star[:, 1])
            words = (
                f"{name:8} {'x'.join(map(str, size)):>6} {place:5.3f} {covered[0]:8.3f} {mean:7.3f}"
                f" {width:6.3f} {plateau:7.2f}"
            )
            heights = f"{height:6.2f} {bias[0]:+6.1f} {covered[1]:8.3f} {bias[1]:+12.1f}"
            print(f"{words} {end:5.2f}   {heights}", flush=True)


def _held(found: np.ndarray, true: float) -> float:
    """Share of the intervals that hold the truth, among those that exist."""
    found = found[np.isfinite(found).all(axis=1)]
    return float(((found[:, 1] <= true + 1e-9) & (true <= found[:, 2] + 1e-9)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("time", "ratios", "peak"), default="time")
    parser.add_argument("--channel", nargs="+", choices=NOISE, default=list(NOISE))
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.part == "time":
        return timed(options)
    with ProcessPoolExecutor(options.workers) as pool:
        (ratios if options.part == "ratios" else peaks)(options.runs, pool)


if __name__ == "__main__":
    main()
