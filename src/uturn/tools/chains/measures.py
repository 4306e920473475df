"""Measures of chains of U-turns: relaxation times, the test of reversibility, and
autocorrelations by arviz.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import checked_integer, expect
from uturn.core.random import Purpose, keys
from uturn.measures.calibration import holm
from uturn.measures.estimates import ESTIMATE
from uturn.measures.replicates import replicates
from uturn.networks.libraries import library
from uturn.studies.checked_run import Run
from uturn.studies.keys import keys_of
from uturn.studies.references import LevelValues

_LEAST = 16  # U-turns of a chain whose effective draws are counted


def relaxation(ds: xr.Dataset) -> xr.Dataset:
    """Relaxation times of the readings of a chain: the number of U-turns at which a reading is
    halfway from start to chance.

    Let y(k) = (c(k) - chance)/(start - chance) with the mean c(k) over items and chains. The
    relaxation time is the first k with y(k) = 1/2. Between measured numbers of U-turns, log y is
    interpolated linearly, as for an exponential.

    `ds`: dataset of `uturn.run` with the corruption `repeated`; ValueError for others. Returns a
    dataset.

    - `left` (reading, noise, estimate): y(k) with its 95 % interval over items (grammars, if there
      are several); NaN without a known chance.
    - `time` (reading, estimate): where y and the ends of its interval are 1/2. If y is not, between
      the first and the last k, the value is NaN and the ends are bounds: at most the last k, and
      infinite, or at least the first.
    - `remark` (reading): "less than 1" if half is lost in the first U-turn; "longer than K" if more
      is left after all of them; "or about as long" if the interval of y there holds 1/2; "not
      decided" if y falls between K/2 and K, or if its chance is not known. Coordinates (reading):
      its `variable`, and the `order` of its levels, "" if they have none.
    """
    run = Run.of(checked_chains(ds))
    data = run.data
    changing = [
        name
        for name, how in run.instructions.items()
        if how.role == "reading" and how.start is not None
    ]
    # Dims, also of variables that do not say so, such as distances.
    ordered = {how.order for how in run.instructions.values()}
    order = {
        name: next((str(dim) for dim in data[name].dims if dim in ordered), "") for name in changing
    }
    named = [(key.label, name, order[name]) for name in changing for key in keys_of(data, name)]
    expect(
        named,
        "ds",
        [*map(str, data.data_vars)],
        "a run with readings that have a start, such as those of the probe 'chain'",
    )
    labels, variables, orders = map(list, zip(*named, strict=True))
    relaxed = [_relaxed(run, label) for label in labels]
    times, left, remarks = map(list, zip(*relaxed, strict=True))
    time = ("reading", "estimate"), times, {"units": "U-turns"}
    return xr.Dataset(
        {
            "time": time,
            "left": (("reading", "noise", "estimate"), left),
            "remark": ("reading", remarks),
        },
        {
            "reading": labels,
            "variable": ("reading", variables),
            "order": ("reading", orders),
            "noise": data.noise.values,
            "estimate": ESTIMATE,
        },
    )


def _relaxed(run: Run, label: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Relaxation time with its interval, what is left after each number of U-turns, and a
    remark.
    """
    level = LevelValues.of(run, label)
    values = level.values
    start = level.start
    chance = level.chance
    k = run.data.noise.values
    about = ", or about as long"
    if not np.isfinite(chance):
        return (
            np.full(3, np.nan),
            np.full((len(k), 3), np.nan),
            "not decided, since its chance is not known",
        )
    of = replicates((values - chance) / (start - chance))
    left = of.interval(lambda y: y)
    time, low, high = (_halfway(k, y) for y in left.T)
    remark = ""
    if time > k[-1]:
        remark = f"longer than {k[-1]:g}" + (about if low <= k[-1] else "")
        middle = max(0, int(np.searchsorted(k, k[-1] / 2, side="right")) - 1)
        if len(k) == 1 or of.interval(lambda y: y[middle] - y[-1])[1] > 0:
            remark += ": not decided, it still falls"
    elif time < k[0]:
        remark = f"less than {k[0]:g}" + (about if high > k[0] else "")
    return np.array([np.nan if remark else time, min(low, k[-1]), max(high, k[0])]), left, remark


def _halfway(k: np.ndarray, y: np.ndarray) -> float:
    """First k at which log y, linear between its points and 0 at k = 0, is log 1/2; infinite if
    none is, NaN for unknown y.
    """
    if np.isnan(y).any():
        return np.nan
    k = np.concatenate([[0.0], k])
    y = np.concatenate([[1.0], y])
    if (y > 0.5).all():
        return np.inf
    at = int(np.argmax(y <= 0.5))
    high = np.log(y[at - 1])
    low = np.log(max(y[at], 1e-3))
    return float(k[at - 1] + (high - np.log(0.5)) / (high - low) * (k[at] - k[at - 1]))


def known(data: xr.Dataset) -> list[str]:
    """The readings of `relaxation`, at one or several noise levels, whose chance is known."""
    return data.reading.values[
        np.isfinite(data.left).any(set(data.left.dims) - {"reading"}).values
    ].tolist()


def series_of(data: xr.Dataset) -> dict[str, list[str]]:
    """The readings, with known chance, of each variable that has levels in an order: {variable:
    readings}.
    """
    of = data.sel(reading=known(data))
    variables = dict.fromkeys(of.variable.values[of.order.values != ""].tolist())
    series = {
        variable: of.reading.values[of.variable.values == variable].tolist()
        for variable in variables
    }
    return {variable: names for variable, names in series.items() if len(names) > 1}


def reversibility(ds: xr.Dataset, *, repeats: int = 9999, seed: int = 0) -> xr.Dataset:
    """Test that a chain keeps the law of its originals and is reversible, by swapping x_0 and x_k.

    If x_0 is a draw from the law p that the chain keeps, and the chain is reversible, then (x_0,
    x_k) and (x_k, x_0) have one law for each k. So the originals and the states after k U-turns are
    swapped at random within each item. The statistic is the largest |z| of the sums over items of
    f(x_k) - f(x_0), for all functions f of the run (`before`, `after`), and of f(x_0) h(x_k) -
    h(x_0) f(x_k), for neighbouring f and h. The test is exact for any number of items. It rejects
    chains that do not keep p, such as those of a sampler that does not draw from the posterior, and
    chains that are not reversible; it does not say which. A deterministic flow that keeps p can be
    reversible, and passes.

    `ds`: dataset of `uturn.run` with the corruption `repeated` and the probe `chain`, without an
    energy (ValueError for others); of several trajectories of an item, the first is tested.
    `repeats`: number of random swaps; p is at least 1/(repeats + 1). Returns a dataset: `p`,
    `p_holm` (noise), p-values, single and adjusted over k by Holm; `z` (noise), the largest |z|.
    """
    run = checked_chains(ds)
    repeats = checked_integer("repeats", repeats, 1)
    expect("after" in run, "ds", [*map(str, run.data_vars)], "a run with the probe 'chain'")
    expect(
        "energy" not in run,
        "ds",
        "chains with an energy",
        "chains without: their originals are draws from another law",
    )
    rng = np.random.default_rng(int(keys(seed, Purpose.RANKS)))
    before = run.before.transpose("noise", "item", "observable").values
    after = run.after.isel(trajectory=0).transpose("noise", "item", "observable").values
    z, p = np.transpose([_swapped(x, y, repeats, rng) for x, y in zip(before, after, strict=True)])
    return xr.Dataset(
        {"p": ("noise", p), "p_holm": ("noise", holm(p)), "z": ("noise", z)},
        {"noise": run.noise.values},
    )


def _swapped(
    x: np.ndarray, y: np.ndarray, repeats: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Largest |z|, and its p-value, of functions (items, functions) of x_0 and x_k that are
    swapped within items.
    """
    both = np.concatenate([x, y])  # which swaps do not change
    expect(np.isfinite(both).all(), "functions of the data", np.nan, "finite numbers")
    x, y = ((of - both.mean(0)) / (both.std(0) + 1e-12) for of in (x, y))
    # Swaps change their signs.
    odd = np.concatenate([y - x, x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y], axis=1)
    size = np.sqrt((odd**2).sum(0))
    odd = odd[:, size > 1e-9] / size[size > 1e-9]
    z = np.abs(odd.sum(0)).max(initial=0)
    larger = 1
    for first in range(0, repeats, 1000):
        signs = rng.integers(0, 2, (min(1000, repeats - first), len(odd))) * 2.0 - 1
        larger += int((np.abs(signs @ odd).max(1, initial=0) >= z * (1 - 1e-12)).sum())
    return z, larger / (1 + repeats)


def to_arviz(ds: xr.Dataset, *, burn_in: int = 0) -> Any:
    """Chains as arviz takes them, for `arviz.ess`, `arviz.rhat`, `arviz.plot_autocorr`; needs the
    package arviz.

    Every trajectory of an item is a chain, and every measured number of U-turns beyond `burn_in` a
    draw, so all of 1, 2, .., K must be measured. The variables are `energy`, if there is one, and
    the functions of the probe `chain`, `after`. Returns an `arviz.InferenceData` with the group
    `posterior`; a DataTree from arviz 1.0 on. ValueError for other runs.
    """
    arviz = library("arviz", "to_arviz", "chains")
    return (getattr(arviz, "convert_to_datatree", None) or arviz.convert_to_inference_data)(
        _chains(ds, burn_in)
    )


def effective_draws(ds: xr.Dataset) -> tuple[float, float]:
    """Effective number of draws per U-turn (`arviz.ess`) and split-R̂ (`arviz.rhat`), each of the
    worst function of the data.

    If R̂ exceeds about 1.05, the chains are too short for the number of draws. Both are of the
    U-turns 1, 2, .., as far as all were measured; with an energy, of the second half of these, as
    the chains start from another law. NaN without arviz, or for fewer than 16 U-turns, since
    shorter chains give numbers that mean nothing.
    """
    run = checked_chains(ds)
    every = run.sel(noise=run.noise == np.arange(1, run.sizes["noise"] + 1))
    burn_in = every.sizes["noise"] // 2 if "energy" in run else 0
    if find_spec("arviz") is None or every.sizes["noise"] - burn_in < _LEAST:
        return np.nan, np.nan
    chains = _chains(every, burn_in)
    # Of a new version of arviz, and of functions that are constant.
    with warnings.catch_warnings(action="ignore"):
        import arviz

        draws = arviz.ess(chains, method="mean").to_array()
        ratio = arviz.rhat(chains, method="split").to_array()
    return float(np.nanmin(draws)) / (chains.sizes["chain"] * chains.sizes["draw"]), float(
        np.nanmax(ratio)
    )


def _chains(ds: xr.Dataset, burn_in: int) -> xr.Dataset:
    """Energy and functions of the data along the dims chain and draw."""
    run = checked_chains(ds)
    run = run.sel(noise=run.noise > checked_integer("burn_in", burn_in, 0))
    steps = run.noise.values
    names = [name for name in ("energy", "after") if name in run]
    expect(
        len(steps) > 3 and (np.diff(steps) == 1).all(),
        "noise",
        steps.tolist(),
        "all of 1, 2, .., 4 or more",
    )
    expect(names, "ds", [*map(str, run.data_vars)], "a run with the probe 'chain'")
    chains = run[names].stack(chain=("item", "trajectory"), create_index=False).rename(noise="draw")
    return chains.transpose("chain", "draw", ...).drop_vars(["item", "trajectory"], errors="ignore")


def checked_chains(ds: Any) -> xr.Dataset:
    """The dataset of a finished run of chains from the first U-turn on, in their order, or a
    ValueError.
    """
    run = Run.finished(ds).data
    unit = run.noise.attrs.get("long_name")
    expect(
        unit == "U-turns",
        "unit of the noise",
        unit,
        "U-turns, as of a run with the corruption 'repeated'",
    )
    expect((run.noise > 0).any(), "noise", run.noise.values.tolist(), "numbers of U-turns above 0")
    return run.sel(noise=run.noise > 0)
