"""Verdicts of the figure `chains`."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import norm

from uturn.measures.calibration import holm
from uturn.measures.statistics import crossing, estimate
from uturn.paper.verdicts import Rule, Verdict, above, below, equal, estimates, increasing, listed, meets, verdict

LEVEL = 1e-3
"""False-alarm rate of the tests of a verdict together."""
REJECTED, OFF = 20, 5
"""|z| of a rejected chain, and of a wrong mean."""
INVERTS = (0.1, 0.17)
"""Where the mean order inverts: at .137 in sixteen other grammars, whose standard deviation is .032."""


def verdicts(data: xr.Dataset) -> list[Verdict]:
    """All verdicts on the data of the figure."""
    of_laws = [*_laws(data), *_matrix(data), *_tilted(data)]
    return [*of_laws, *_minimal(data), *_order(data), *_one_leaf(data)]


def _laws(data: xr.Dataset) -> list[Verdict]:
    right, wrong = data.sel(chain=["masking", "Gaussian"]), data.sel(chain=["confidence", "argmax"])
    where = "x_0 and x_k swapped, k = 1 and 16, largest |z|"
    return [
        verdict(f"{where}: posterior draws, masking .6 and Gaussian .1", _list(right.z), "no deviation", *_pass(right.p)),
        verdict(
            f"{where}: drawn confidence and argmax, masking .6",
            f"{_list(wrong.z)}; p = {float(wrong.p.max()):.2g}",
            "rejected",
            below(wrong.p, LEVEL),
            above(wrong.z.isel(turns=-1), REJECTED, f"|z| above {REJECTED} at k = 16"),
        ),
    ]


def _matrix(data: xr.Dataset) -> list[Verdict]:
    first, clones, argmax = data.overlap.isel(k=0), data.clones, data.argmax_overlap
    z = _z(first, clones.sel(moment="mean"), clones.sel(moment="error"))
    wrong = abs(_z(argmax, data.argmax_clones.sel(moment="mean")))
    return [
        _agrees("overlap of each level after 1, 2, .., 64 U-turns, masking .3", data.overlap, data.exact, 0.02),
        verdict(
            "overlap of x_0 and x_1, which is C(1) + chance, against that of two clones of one noisy datum, each level",
            f"|z| {_list(abs(z))}; argmax {_list(wrong)}",
            "equal for posterior draws, not for argmax",
            *_pass(_p(z)),
            above(wrong, REJECTED, f"argmax: |z| above {REJECTED}"),
        ),
    ]


def _tilted(data: xr.Dataset) -> list[Verdict]:
    own, wrong = data.energy.sel(sampler="exact"), data.energy.sel(sampler=["free", "confidence"])
    moved = abs(data.energy.sel(sampler="free", moment="mean") - data.exact_energy)
    numbers = (
        f"{mean:.3f}({1e3 * error:.0f}), exact {exact:.3f}"
        for (mean, error), exact in zip(own.values.reshape(-1, 2), data.exact_energy.values.ravel(), strict=True)
    )
    z = abs(_z(wrong, data.exact_energy))
    return [
        verdict(
            "mean energy with a Metropolis step: sum over leaves, β = .5 and 1.5; with pairs, β = .5 and 1.5",
            "; ".join(numbers),
            "belief propagation; enumeration",
            *_pass(_p(_z(own, data.exact_energy))),
            below(own.sel(moment="error") / moved, 0.05, "standard errors below 5 % of the change by the energy"),
        ),
        verdict(
            "the same without the Metropolis step; with drawn confidence in place of posterior draws",
            f"|z| {_list(z.sel(sampler='free'))}; {_list(z.sel(sampler='confidence'))}",
            "off",
            above(z, OFF, f"|z| above {OFF} each"),
        ),
    ]


def _minimal(data: xr.Dataset) -> list[Verdict]:
    last, some = data.isel(m2_k=-1), data.sel(m3_k=[64, 256, 1024])
    alone, mistaken, chains = (int(data[f"m2_{of}"].sum() + data[f"m3_{of}"].sum()) for of in ("alone", "mistaken", "chains"))
    where = "U-turns of one leaf, v = 6, L = 3, overlap of each level"
    left = below(last.m2_exact - last.m2_limit, 0.005, "the transition matrix leaves less than .005")
    return [
        _agrees(f"{where}: m = 2, plateau after {int(last.m2_k)}, six grammars", last.m2_overlap, last.m2_limit, 0.03, left),
        _agrees(f"{where}: m = 3 after 64, 256, 1,024", some.m3_overlap, some.m3_exact, 0.02),
        verdict(
            "chains of one leaf that never move",
            f"{alone} of {chains} start without a neighbour; {mistaken} mistaken",
            "those that start without a neighbour",
            equal(mistaken, 0, "exactly those"),
            above([alone, chains - alone], 0, ""),
        ),
    ]


def _order(data: xr.Dataset) -> list[Verdict]:
    x, sparse, dense = data.noise.values, data.log_ratio.sel(m=4), data.log_ratio.sel(m=6)
    place = estimate(sparse, lambda curve: crossing(x, -curve, 0.0, first=True))
    each = [crossing(x, -curve, 0.0, first=True) for curve in sparse.transpose("item", "noise").values]
    first, *_, last = estimates(sparse, lambda curve: curve)
    return [
        verdict(
            "v = 16, L = 5, m = 4: masked share at which leaves and class relax in one time; log of their ratio",
            f"{place:.3f}, each grammar {_list(each)}; {first:.2f} at {x[0]:g}, {last:.2f} at {x[-1]:g}",
            f"{INVERTS[0]:g} to {INVERTS[1]:g}, as in sixteen other grammars; leaves first below, class first above",
            meets(place, *INVERTS, "95 % interval over grammars meets the range and is narrower"),
            below(first.high, 0, "ratio below 1 at the lowest share"),
            above(last.low, 0, "above 1 at the highest"),
        ),
        verdict(
            "v = 16, L = 5, m = 6: log of the ratio of the relaxation times of leaves and class, each grammar and masked share",
            f"{float(dense.min()):.2f} to {float(dense.max()):.2f}",
            "class first everywhere",
            above(dense, 0),
        ),
    ]


def _one_leaf(data: xr.Dataset) -> list[Verdict]:
    last = {m: data.sel(case=f"5-{m}").one_leaf.dropna("turn").isel(turn=-1) for m in (4, 3, 2)}
    leaves, label = ([listed(of.sel(end=end))[0] for of in last.values()] for end in ("leaves", "class"))
    sparse, dense = data.sel(case="5-2"), data.sel(case="5-4", end="leaves")
    told = [str(of) for of in sparse.told.values]
    return [
        verdict(
            f"v = 8, L = 5, overlap of leaves / class after {int(last[2].turn):,} U-turns of one leaf, m = 2, 3, 4",
            "; ".join(f"{a.value:.2f} / {b.value:.2f}" for a, b in zip(leaves[::-1], label[::-1], strict=True))
            + f"; the last two doublings of m = 2 lose {_list(sparse.falls.sel(estimate='value'))}",
            "m = 2 is not ergodic",
            *(increasing(of, "m = 4 below 3 below 2, first and last apart") for of in (leaves, label)),
            below(sparse.falls.sel(estimate="high"), 0.05, "m = 2 falls no more (below .05)"),
            above([leaves[-1].low, label[-1].low], 0.7, "above .7"),
        ),
        verdict(
            "relaxation time of leaves, m = 4, from the first 32 U-turns and from all; of leaves and class, m = 2",
            f"{dense.told_of_cut.item()}; {listed(dense.relaxed)[0]:.0f}; {', '.join(told)}",
            "not decided while it falls; a number; longer than the chain",
            equal(str(dense.told_of_cut.item()).endswith("not decided, it still falls"), True, "not decided"),
            above(dense.relaxed, 32, "above 32"),
            equal([of.startswith("longer than") and "decided" not in of for of in told], True, "longer, and not undecided"),
        ),
    ]


def _z(values: xr.DataArray, expected: Any, error: Any = 0.0) -> xr.DataArray:
    """Deviations of means from expected numbers, in standard errors."""
    return (values.sel(moment="mean") - expected) / np.hypot(values.sel(moment="error"), error)


def _p(z: Any) -> np.ndarray:
    return 2 * norm.sf(np.abs(np.asarray(z, float)))


def _pass(p: Any) -> list[Rule]:
    adjusted = holm(p)
    return [above(adjusted, LEVEL, f"smallest p by Holm, {adjusted.min():.2g}, above {LEVEL:g}")]


def _agrees(quantity: str, values: xr.DataArray, expected: xr.DataArray, most: float, *rules: Rule) -> Verdict:
    """Means equal the expected numbers, with standard errors below `most`."""
    z, errors = _z(values, expected), values.sel(moment="error")
    measured = f"{z.size} numbers, largest |z| {float(abs(z).max()):.1f}, standard errors up to {float(errors.max()):.3f}"
    precise = below(errors, most, f"standard errors below {most:g}")
    return verdict(quantity, measured, "equal", *_pass(_p(z)), precise, *rules)


def _list(numbers: Any) -> str:
    return ", ".join(f"{x:.3g}" for x in np.ravel(numbers))
