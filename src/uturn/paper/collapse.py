"""Finite-size collapse of the correlation of the most distant leaves: the part of figure
`correlations` with several depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField
from uturn.measures.replicates import replicates
from uturn.measures.scaling import Collapse, collapse, collapse_curves
from uturn.paper.correlated_runs import PAPER, grammar
from uturn.paper.specs import at_depth, depths_of
from uturn.paper.verdicts import Rule, Verdict, below, verdict, within
from uturn.paper.workshop import Scale
from uturn.studies.plotting.style import (
    CLASS,
    MUTED,
    THEORY,
    Look,
    level_colors,
    name_rows,
    row_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.999
DEEPER = ((6, 7, 8, 9, 10), (10, 11, 12, 13, 14), (16, 17, 18, 19, 20))
"""Depths of mean-field fits that show the approach to infinite depth."""


def depths(scale: Scale) -> tuple[int, ...]:
    return (4, 5, 6, 7, 8) if scale == "smoke" else (5, 6, 7, 8, 9)


def epsilons(scale: Scale) -> list[float]:
    return np.linspace(0.64, 0.8, 17 if scale == "smoke" else 25).round(4).tolist()


def experiments(scale: Scale) -> dict[str, Experiment]:
    return {
        at_depth(L): grammar("epsilon", PAPER, L, epsilons(scale), scale, factor=5)
        for L in depths(scale)
    }


def theory_curves(theory: MeanField, noise: np.ndarray, sizes: Sequence[int]) -> xr.DataArray:
    """Mean-field curves in the form of `collapse_curves`, with a single item."""
    curves = np.stack([theory.pair_correlations(noise, L)[:, [L, 0]] for L in sizes], axis=1)
    return xr.DataArray(
        curves[:, None], dims=("noise", "item", "size", "part"), coords={"noise": noise}
    )


def fitted(curves: xr.DataArray, sizes: Sequence[int], theory: MeanField) -> Collapse:
    return collapse(
        curves, [float(theory.branching) ** L for L in sizes], start_of(theory), CONFIDENCE
    )


def start_of(theory: MeanField) -> tuple[float, float]:
    """Starting point of the search: ν and critical ε."""
    return 0.9 * (theory.correlation_exponent or np.nan), 1.02 * (theory.critical_noise or np.nan)


def collapsed(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    """Correlations (noise, depth) of the most distant leaves, those of the mean field, and the
    exponents of all fits.
    """
    theory = MeanField(*PAPER)
    sizes = depths_of(runs)
    curves = collapse_curves([runs[at_depth(L)] for L in sizes])
    noise = curves.noise.values
    critical = theory.critical_noise or np.nan
    measured = fitted(curves, sizes, theory)
    expected = fitted(theory_curves(theory, noise, sizes), sizes, theory)
    deeper = []
    for depths in DEEPER:  # in a window of noise that narrows as N**(-1/ν)
        window = np.linspace(-0.11, 0.07, 73) * (theory.slope or np.nan) ** (4 - depths[0])
        deeper.append(fitted(theory_curves(theory, critical + window, depths), depths, theory))
    repeated = replicates(curves)
    fine = np.linspace(noise[0], noise[-1], 321)
    ranges = [f"mean field, L = {depths[0]} .. {depths[-1]}" for depths in DEEPER]

    def ratio(means: np.ndarray) -> np.ndarray:
        return means[..., 0] / means[..., 1]

    data = xr.Dataset(
        {
            "farthest": (("noise", "depth"), ratio(repeated.mean)),
            "farthest_error": (("noise", "depth"), repeated.error(ratio)),
            "farthest_theory": (
                ("fine", "depth"),
                ratio(theory_curves(theory, fine, sizes).values[:, 0]),
            ),
            "fitted_nu": (
                ("fit", "estimate"),
                [fit.exponent for fit in (measured, expected, *deeper)],
            ),
            "fitted_noise": ("estimate", list(measured.critical_noise)),
        },
        {"noise": noise, "depth": sizes, "fine": fine, "fit": ["measured", "mean field", *ranges]},
    )
    limit = theory.correlation_exponent or np.nan
    distances = [abs(fit.exponent.value - limit) for fit in (expected, *deeper)]
    nu = measured.exponent
    at = measured.critical_noise
    return data, [
        verdict(
            f"ν by collapse of C(N)/C(0), ε-process {PAPER}, L = {sizes[0]} .. {sizes[-1]}",
            str(nu),
            f"{expected.exponent.value:.3f} (mean field, same fit and depths); {limit:.3f} for"
            " infinite depth",
            Rule(
                nu.low < expected.exponent.value < nu.high,
                "the 99.9 % interval holds the mean field at these depths",
            ),
            below(nu.high - nu.low, 0.8, "and is narrower than 0.8"),
        ),
        verdict(
            "critical ε of the collapse",
            str(at),
            f"{expected.critical_noise.value:.4f} (mean field, same fit); ε* = {critical:.4f}",
            within(at.value - critical, 0.015),
            below(at.high - at.low, 0.05, "interval narrower than 0.05"),
        ),
        verdict(
            "variance between the collapsed curves, as a share of the variance along them",
            f"{measured.spread:.3f}",
            f"{expected.spread:.3f} (mean field); 1 for curves without relation",
            below(measured.spread, 0.15),
        ),
        verdict(
            "ν by collapse of the mean field: L = "
            + ", ".join(f"{m[0]} .. {m[-1]}" for m in (sizes, *DEEPER)),
            ", ".join(f"{fit.exponent.value:.3f}" for fit in (expected, *deeper)),
            f"approaches log s / log F'(p*) = {limit:.3f}",
            below(distances[-1], 0.02, "within 0.02 at the largest depths"),
            below(distances[-1], distances[0], "closer than at the measured depths"),
        ),
    ]


def draw_curves(left: Axes, middle: Axes, data: xr.Dataset) -> None:
    """The curves of all depths, and the same with both axes rescaled by the fitted ν and
    critical ε.
    """
    nu = float(data.fitted_nu[0, 0])
    critical = float(data.fitted_noise[0])
    for color, L in zip(level_colors(data.sizes["depth"]), data.depth.values, strict=True):
        part = data.sel(depth=L)
        N = 2.0**L
        look: Look = {"fmt": "o", "ms": 4, "lw": 1, "color": color}
        left.plot(data.fine, part.farthest_theory, color=color, lw=1.4)
        left.errorbar(data.noise, part.farthest, part.farthest_error, label=f"$L={L}$", **look)
        scale = N ** (2 - 2 / nu)
        x, fine = ((axis - critical) * N ** (1 / nu) for axis in (data.noise, data.fine))
        middle.plot(fine, part.farthest_theory * scale, color=color, lw=1.4)
        middle.errorbar(x, part.farthest * scale, part.farthest_error * scale, **look)
    left.axvline(data.attrs["critical_noise"], color=MUTED, ls=":", lw=1.2)
    left.set(xlabel=r"$\epsilon$", ylabel="$C(N)/C(0)$", title="the most distant leaves")
    left.locator_params(axis="x", nbins=5)
    left.plot([], [], color=MUTED, lw=1.4, label="mean field")
    middle.legend(*left.get_legend_handles_labels(), loc="upper left")
    rescaled = rf"$(\epsilon-\epsilon_c)\,N^{{1/\nu}}$, $\nu={nu:.2f}$"
    middle.set(
        xlabel=rescaled, ylabel=r"$N^{2-2/\nu}\,C(N)/C(0)$", title="collapsed", xlim=(-1.6, 1.0)
    )


def draw_exponents(axes: Axes, data: xr.Dataset) -> None:
    ranges = [
        f"mean field\n$L={depths[0]}$ to ${depths[-1]}$" for depths in (data.depth.values, *DEEPER)
    ]
    for row, bounds in enumerate(data.fitted_nu.values):  # the theory has no interval
        row_interval(axes, row, bounds, THEORY if row else CLASS, ms=7)
    axes.axvline(data.attrs["nu"], color=MUTED, ls="--", lw=1.2)
    name_rows(axes, ["measured", *ranges])
    axes.set(xlabel=r"exponent $\nu$", title=rf"$\nu$, infinite depth: {data.attrs['nu']:.3f}")
