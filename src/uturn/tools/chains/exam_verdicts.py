"""Verdicts of the figure `chains`."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import norm

from uturn.measures.calibration import holm
from uturn.paper.verdicts import Rule, Verdict, above, below, equal, verdict

LEVEL = 1e-3
"""False-alarm rate of the tests of a verdict together."""
REJECTED = 20
OFF = 5
"""|z| of a rejected chain, and of a wrong mean."""


def verdicts(data: xr.Dataset) -> list[Verdict]:
    """All verdicts on the data of the figure."""
    return [*_laws(data), *_matrix(data), *_tilted(data), *_minimal(data)]


def _laws(data: xr.Dataset) -> list[Verdict]:
    right = data.sel(chain=["masking", "Gaussian"])
    wrong = data.sel(chain=["confidence", "argmax"])
    where = "x_0 and x_k swapped, k = 1 and 16, largest |z|"
    return [
        verdict(
            f"{where}: posterior draws, masking .6 and Gaussian .1",
            _list(right.z),
            "no deviation",
            *_pass(right.p),
        ),
        verdict(
            f"{where}: drawn confidence and argmax, masking .6",
            f"{_list(wrong.z)}; p = {float(wrong.p.max()):.2g}",
            "rejected",
            below(wrong.p, LEVEL),
            above(wrong.z.isel(turns=-1), REJECTED, f"|z| above {REJECTED} at k = 16"),
        ),
    ]


def _matrix(data: xr.Dataset) -> list[Verdict]:
    first = data.overlap.isel(k=0)
    clones = data.clones
    argmax = data.argmax_overlap
    z = _z(first, clones.sel(moment="mean"), clones.sel(moment="error"))
    wrong = abs(_z(argmax, data.argmax_clones.sel(moment="mean")))
    return [
        _agrees(
            "overlap of each level after 1, 2, .., 64 U-turns, masking .3",
            data.overlap,
            data.exact,
            0.02,
        ),
        verdict(
            "overlap of x_0 and x_1, which is C(1) + chance, against that of two clones of one"
            " noisy datum, each level",
            f"|z| {_list(abs(z))}; argmax {_list(wrong)}",
            "equal for posterior draws, not for argmax",
            *_pass(_p(z)),
            above(wrong, REJECTED, f"argmax: |z| above {REJECTED}"),
        ),
    ]


def _tilted(data: xr.Dataset) -> list[Verdict]:
    own = data.energy.sel(sampler="exact")
    wrong = data.energy.sel(sampler=["free", "confidence"])
    moved = abs(data.energy.sel(sampler="free", moment="mean") - data.exact_energy)
    numbers = (
        f"{mean:.3f}({1e3 * error:.0f}), exact {exact:.3f}"
        for (mean, error), exact in zip(
            own.values.reshape(-1, 2), data.exact_energy.values.ravel(), strict=True
        )
    )
    z = abs(_z(wrong, data.exact_energy))
    return [
        verdict(
            "mean energy with a Metropolis step: sum over leaves, β = .5 and 1.5; with pairs, β ="
            " .5 and 1.5",
            "; ".join(numbers),
            "belief propagation; enumeration",
            *_pass(_p(_z(own, data.exact_energy))),
            below(
                own.sel(moment="error") / moved,
                0.05,
                "standard errors below 5 % of the change by the energy",
            ),
        ),
        verdict(
            "the same without the Metropolis step; with drawn confidence in place of posterior"
            " draws",
            f"|z| {_list(z.sel(sampler='free'))}; {_list(z.sel(sampler='confidence'))}",
            "off",
            above(z, OFF, f"|z| above {OFF} each"),
        ),
    ]


def _minimal(data: xr.Dataset) -> list[Verdict]:
    last = data.isel(m2_k=-1)
    some = data.sel(m3_k=[64, 256, 1024])
    alone, mistaken, chains = (
        int(data[f"m2_{of}"].sum() + data[f"m3_{of}"].sum())
        for of in ("alone", "mistaken", "chains")
    )
    where = "U-turns of one leaf, v = 6, L = 3, overlap of each level"
    left = below(
        last.m2_exact - last.m2_limit, 0.005, "the transition matrix leaves less than .005"
    )
    return [
        _agrees(
            f"{where}: m = 2, plateau after {int(last.m2_k)}, six grammars",
            last.m2_overlap,
            last.m2_limit,
            0.03,
            left,
        ),
        _agrees(f"{where}: m = 3 after 64, 256, 1,024", some.m3_overlap, some.m3_exact, 0.02),
        verdict(
            "chains of one leaf that never move",
            f"{alone} of {chains} start without a neighbour; {mistaken} mistaken",
            "those that start without a neighbour",
            equal(mistaken, 0, "exactly those"),
            above([alone, chains - alone], 0, ""),
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


def _agrees(
    quantity: str, values: xr.DataArray, expected: xr.DataArray, most: float, *rules: Rule
) -> Verdict:
    """Means equal the expected numbers, with standard errors below `most`."""
    z = _z(values, expected)
    errors = values.sel(moment="error")
    measured = (
        f"{z.size} numbers, largest |z| {float(abs(z).max()):.1f}, standard errors up to"
        f" {float(errors.max()):.3f}"
    )
    precise = below(errors, most, f"standard errors below {most:g}")
    return verdict(quantity, measured, "equal", *_pass(_p(z)), precise, *rules)


def _list(numbers: Any) -> str:
    return ", ".join(f"{x:.3g}" for x in np.ravel(numbers))
