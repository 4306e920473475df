"""How far changes are correlated: C(r) of a grammar through its transition, its correlation
length, controls, and images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.exact.theory import MeanField
from uturn.measures import changes
from uturn.measures.estimates import ESTIMATE, Estimate, with_ends
from uturn.measures.replicates import estimate
from uturn.measures.scaling import correlation_length
from uturn.paper import chi, collapse
from uturn.paper.correlated_runs import (
    PAPER,
    PATCHES,
    SITES,
    beside_exact,
    controls,
    exact_of,
    images,
    independent_changes,
)
from uturn.paper.specs import at_depth
from uturn.paper.verdicts import (
    Verdict,
    above,
    apart,
    estimates,
    holds,
    listed,
    numbers,
    shows,
    verdict,
)
from uturn.paper.workshop import Workshop
from uturn.studies.plotting.curves import draw_curve
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    MUTED,
    Look,
    bars,
    level_colors,
    style,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Correlations of changes against distance"
CLAIM = (
    "The closer the noise is to the critical one, the farther apart are sites that still change"
    " together; trees of all sizes follow one curve once the noise is scaled with their size."
)
CAPTION = (
    "Correlation C(r)/C(0) of the changes of two sites at distance r, within one original. Top"
    " left: ε-process, (32, 8, 2), deepest tree of the last row: U-turns (points; bars: 95 %"
    " intervals over grammars), exact covariances of the same strings (lines) and mean field"
    " (dashed); r = 2^k if the common ancestor is at level k; dotted: the power law r^-(2 - 2/ν) at"
    " ε*. Top right: correlation length ξ from a fit of A r^-(2 - 2/ν) exp(-r/ξ) on both sides of"
    " ε*, with the same symbols; it grows towards ε* until it exceeds the tree. Middle left: the"
    " C(r) of a flat mixture does not fall with r, although its chi is large; a Gaussian field"
    " loses its correlation over a few sites; dashed: exact, for a reconstruction that is"
    " independent of the original. Middle right: Fashion-MNIST, embedded model, against the"
    " distance of the patches in pixels. Last row: finite-size collapse. Correlation of the most"
    " distant leaves (common ancestor: the root) in trees of N = 2^L leaves, exact belief"
    " propagation (points; bars: standard error over grammars) and mean field (lines); the same"
    " with both axes rescaled by the fitted ν and critical ε; ν by the same fit of the measured"
    " curves (bar: 99.9 % interval) and of the mean field at the same and at larger depths, which"
    " approaches ν = log s / log F'(p*) = 1.893 (dashed)."
)
SHOWN = (0.64, 0.68, 0.7, 0.71, 0.73)
IMAGE_TIMES = (0.2, 0.6, 1.0)
PIXELS = {"": 4, "feature": 2}
"""Pixels between neighbouring sites of images."""
ALARM = 1e-3  # false-alarm rate of a verdict
# largest widths of intervals: of C(r)/C(0), and of far over near
WIDTH = 0.03
FAR_WIDTH = 0.05
LENGTH_WIDTH = 0.08  # of the interval of log ξ
GAUSSIAN = "gaussian-depth9"


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    shared = {**controls(workshop.scale), **images(workshop.scale)}
    trees = collapse.experiments(workshop.scale)
    deepest, experiment = list(trees.items())[-1]
    return {
        **workshop.runs("collapse", trees),
        "exact-epsilon": exact_of(workshop, "collapse", deepest, experiment),
        GAUSSIAN: workshop.run(f"chi-{GAUSSIAN}", chi.experiments(workshop.scale)[GAUSSIAN]),
        **workshop.runs("correlated", shared),
        **{f"exact-{label}": independent_changes(label, shared[label]) for label in SITES},
    }


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {label: run.load() for label, run in runs.items()}
    theory = MeanField(*PAPER)
    (trees, of_trees) = collapse.collapsed(runs)
    depth = int(trees.depth[-1])
    run = runs[at_depth(depth)]
    own = runs["exact-epsilon"].change_covariance
    noise = run.noise.values
    exponent = theory.decay_exponent or np.nan
    exact = theory.pair_correlations(noise, depth)
    expected = xr.DataArray(
        exact[:, None],
        dims=("noise", "item", "distance"),
        coords={"noise": noise, "distance": run.distance},
    )
    data = trees.assign(
        epsilon=(
            ("noise", "distance", "estimate"),
            with_ends(changes.correlations(run), "correlation"),
        ),
        theory=(("noise", "distance"), exact / exact[:, :1]),
        length=(("noise", "estimate"), with_ends(correlation_length(run, exponent), "length")),
        exact=changes.correlations(runs["exact-epsilon"]).correlation,
        length_theory=correlation_length(expected, exponent).length,
        length_exact=correlation_length(own, exponent).length,
    )
    data = data.assign_coords(estimate=ESTIMATE)
    data.attrs = {
        "critical_noise": theory.critical_noise,
        "exponent": exponent,
        "nu": theory.correlation_exponent,
    }
    for label, shown_run, at, name in _shown(runs):
        curve = curves_at(shown_run, at, name)
        data[label] = (f"r_{label}", "estimate"), with_ends(curve, "correlation")
        data = data.assign_coords({f"r_{label}": curve.distance.values})
    for label in SITES:
        known = changes.correlations(runs[f"exact-{label}"]).correlation
        data[f"{label}_exact"] = known.isel(noise=0, drop=True).rename(distance=f"r_{label}")
    both = beside_exact(run.change_covariance, own)
    off = (data.epsilon.sel(estimate="value") - data.theory).isel(distance=slice(1, None))
    ratio = (data.length.sel(estimate="value") / data.length_theory).values[_judged(data)]
    return data, [
        _against_exact(data, both),
        shows(
            "the annealed mean field beside it: C(r)/C(0), mean and largest difference; ξ over that"
            " of the mean field",
            f"{float(off.mean()):+.4f}; {float(np.abs(off).max()):.4f}; {numbers(ratio, '.2f')}",
            "0; 0; 1 for the annealed average",
        ),
        _lengths(data, both),
        *_controls(runs),
        *(_images(runs["images"], name) for name in PATCHES),
        *of_trees,
    ]


def _shown(runs: dict[str, xr.Dataset]) -> list[tuple[str, xr.Dataset, float, str]]:
    """What the third and fourth panels show: label, run, noise level, name of the probe."""
    peak = runs[GAUSSIAN].noise.values[_largest(runs[GAUSSIAN])]
    shown = [(label, runs[label], np.inf, "") for label in SITES] + [
        ("strings", runs[GAUSSIAN], peak, "")
    ]
    return shown + [
        (f"images_{name or 'pixels'}_{t:g}", runs["images"], t, name)
        for name in PATCHES
        for t in IMAGE_TIMES
    ]


def _largest(run: xr.Dataset) -> int:
    return int(np.nanargmax(changes.chi_of(changes.chi_parts(run))[:, 0]))


def curves_at(run: xr.Dataset, noise: float, name: str = "") -> xr.Dataset:
    """Correlations against distance at the noise level of a run that is closest to `noise`."""
    levels = np.nan_to_num(run.noise.values, posinf=1e9)
    return changes.correlations(run, name=name).isel(
        noise=int(np.argmin(np.abs(levels - min(noise, 1e9))))
    )


def _against_exact(data: xr.Dataset, both: xr.DataArray) -> Verdict:
    def gaps(c: np.ndarray) -> np.ndarray:
        measured, exact = np.moveaxis(c[..., 1:] / c[..., :1], 1, 0)
        return measured - exact

    intervals = estimates(both, gaps, 1 - ALARM / data.exact.isel(distance=slice(1, None)).size)
    values, low, high = np.array(intervals).T
    return verdict(
        "C(r)/C(0) against the exact value of the same strings, ε-process: mean and largest"
        " difference over r and ε",
        f"{values.mean():+.4f}; {np.abs(values).max():.4f}; intervals up to"
        f" {(high - low).max():.3f} wide",
        "0: covariances of the exact posterior",
        holds(
            intervals,
            0.0,
            WIDTH,
            f"{len(intervals)} intervals hold 0 (false alarms {ALARM:g}) and are narrower than"
            f" {WIDTH}",
        ),
    )


def _judged(data: xr.Dataset) -> np.ndarray:
    """Noise levels at which ξ of the mean field is below a quarter of the tree."""
    return (data.length_theory < data.distance[-1] / 4).values


def _lengths(data: xr.Dataset, both: xr.DataArray) -> Verdict:
    judged = _judged(data)
    distance = data.distance.values
    noise = data.noise.values[judged]

    def logarithm(c: np.ndarray) -> np.ndarray:
        means = xr.DataArray(
            c[:, None], dims=("noise", "item", "distance"), coords={"distance": distance}
        )
        lengths = correlation_length(means, data.attrs["exponent"]).length
        return np.log(lengths.where(np.isfinite(lengths)).values)

    def ratios(c: np.ndarray) -> np.ndarray:
        """Logarithms of measured over exact lengths at every noise level, and their mean."""
        each = logarithm(c[:, 0]) - logarithm(c[:, 1])
        return np.r_[each, each.mean()]

    judged_both = both.isel(noise=np.flatnonzero(judged))
    *_, mean = estimates(judged_both, ratios, 1 - ALARM)
    *each, _ = estimates(judged_both, ratios, 1 - ALARM / len(noise))
    return verdict(
        f"ξ against that of the exact covariances, ε from {noise[0]:g} to {noise[-1]:g} where it is"
        " below N/4",
        f"{numbers(data.length.values[judged, 0], '.1f')}; mean logarithm of the"
        f" ratio {mean} (99.9 % interval)",
        ", ".join(f"{float(x):.1f}" for x in data.length_exact.values[judged]),
        holds(
            mean,
            0.0,
            LENGTH_WIDTH,
            f"the interval of the mean holds 0 and is narrower than {LENGTH_WIDTH}",
        ),
        holds(each, 0.0, np.inf, f"so do those of every ε (false alarms {ALARM:g})"),
    )


def _controls(runs: dict[str, xr.Dataset]) -> list[Verdict]:
    def compared(label: str, near: slice, far: slice) -> tuple[Estimate, Estimate]:
        """Mean covariance at large over that at small distances at t = T, and its difference
        from the exact value.
        """
        both = beside_exact(
            runs[label].change_covariance.isel(noise=[-1]), runs[f"exact-{label}"].change_covariance
        )

        def ratios(c: np.ndarray) -> list[float]:
            measured, known = (curve[far].mean() / curve[near].mean() for curve in c[0])
            return [measured, measured - known]

        ratio, gap = estimates(both, ratios, 1 - ALARM)
        return ratio, gap

    mixture, gap = compared("mixture", slice(1, 33), slice(33, 97))
    known = mixture.value - gap.value
    field, field_gap = compared("field", slice(1, 2), slice(4, 8))
    largest = runs[GAUSSIAN].change_covariance.isel(noise=[_largest(runs[GAUSSIAN])])
    grammar = estimate(largest, lambda c: c[0][-2:].mean() / c[0][1:3].mean(), 1 - ALARM)
    within_width = f"the interval of the difference holds 0 and is narrower than {FAR_WIDTH}"
    return [
        verdict(
            "C(r) at large over small distances: flat mixture at t = T; grammar (32, 8, 2), L = 9,"
            " Gaussian, at its largest chi",
            f"{mixture}, minus the exact value: {gap}; {grammar} (99.9 % intervals)",
            f"{known:.3f} for these means and originals, as all sites change with the mode; near 0"
            " in a grammar",
            holds(gap, 0.0, FAR_WIDTH, within_width),
            apart(grammar, mixture, "intervals apart"),
        ),
        verdict(
            "C(r) at 4 to 7 sites over that at 1, Gaussian field at t = T",
            f"{field}, minus the exact value: {field_gap} (99.9 % intervals)",
            f"{field.value - field_gap.value:.3f} (closed formula)",
            holds(field_gap, 0.0, FAR_WIDTH, within_width),
        ),
    ]


def _images(run: xr.Dataset, name: str) -> Verdict:
    near, far = (listed(with_ends(curves_at(run, 0.6, name), "correlation"))[k] for k in (1, 3))
    covariance = run[f"{name}_change_covariance" if name else "change_covariance"].sel(
        noise=[0.6], method="nearest"
    )
    fall = estimate(covariance, lambda c: float((c[0, 1] - c[0, 3]) / c[0, 0]), 0.99)
    return verdict(
        f"C(r)/C(0) of Fashion-MNIST at t/T = 0.6, {PATCHES[name][0]}, at 1 and at 3 sites",
        f"{near}; {far}; difference {fall} (99 % interval)",
        "falls with distance",
        above(fall.low, 0, "interval of the difference above 0"),
    )


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure = plt.figure(figsize=(12.5, 13.2), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[9, 4.2])
        grid = top.subplots(2, 2)
        (left, middle, right) = bottom.subplots(1, 3, width_ratios=[1, 1, 0.95])
        _draw_epsilon(grid[0, 0], data)
        _draw_lengths(grid[0, 1], data)
        _draw_controls(grid[1, 0], data)
        _draw_images(grid[1, 1], data)
        collapse.draw_curves(left, middle, data)
        collapse.draw_exponents(right, data)
    return figure


def _draw_epsilon(axes: Axes, data: xr.Dataset) -> None:
    r = data.distance.values[1:]
    for color, epsilon in zip(level_colors(len(SHOWN)), SHOWN, strict=True):
        part = data.sel(noise=epsilon, method="nearest").isel(distance=slice(1, None))
        bounds = np.maximum(part.epsilon.values, [-np.inf, 1e-6, -np.inf])
        there = part.epsilon.values[:, 0] > 0
        axes.plot(r, part.exact, color=color, lw=1.4)
        axes.plot(r, part.theory, color=color, lw=1, ls="--", alpha=0.6)
        look: Look = {
            "fmt": "o",
            "ms": 4.5,
            "lw": 1,
            "color": color,
            "label": rf"$\epsilon={float(part.noise):.2f}$",
        }
        bars(axes, r[there], bounds[there], **look)
    law = 1.15 * r ** -data.attrs["exponent"]
    axes.plot(
        r, law * 1.3, color=MUTED, ls=":", lw=1.4, label=rf"$r^{{-{data.attrs['exponent']:.2f}}}$"
    )
    axes.set(
        xscale="log", yscale="log", ylim=(3e-4, 1.2), xlabel="distance $r$", ylabel="$C(r)/C(0)$"
    )
    axes.set_title(rf"$\epsilon$-process, $\epsilon^*={data.attrs['critical_noise']:.3f}$")
    ticks(axes, r)
    axes.legend(loc="lower left")


def _draw_lengths(axes: Axes, data: xr.Dataset) -> None:
    away = data.noise.values - data.attrs["critical_noise"]
    size = float(data.distance[-1])
    for sign, color, side_name in (
        (-1, ACCENT, r"$\epsilon<\epsilon^*$"),
        (1, CLASS, r"$\epsilon>\epsilon^*$"),
    ):
        side = (np.sign(away) == sign) & (data.length.values[:, 0] < 4 * size)
        # From small distances to large ones.
        part = data.isel(noise=np.flatnonzero(side)[:: int(sign)])
        x = np.abs(part.noise - data.attrs["critical_noise"])
        bars(axes, x, part.length.clip(max=1e5), fmt="o", ms=5, lw=1, color=color, label=side_name)
        axes.plot(x, part.length_exact, color=color, lw=1.4)
        axes.plot(x, part.length_theory, color=color, lw=1, ls="--", alpha=0.6)
    x = np.array([0.012, 0.04])
    nu = data.attrs["nu"]
    axes.plot(
        x, 40 * (x / 0.02) ** -nu, color=MUTED, ls=":", lw=1.4, label=rf"slope $-\nu=-{nu:.2f}$"
    )
    axes.axhline(size, color=MUTED, lw=0.8, ls="--")
    axes.text(
        0.1, size * 1.06, "size of the tree", color=MUTED, ha="right", va="bottom", fontsize=9.5
    )
    axes.set(xscale="log", yscale="log", ylim=(2, 5 * size))
    axes.set(
        xlabel=r"$|\epsilon-\epsilon^*|$",
        ylabel=r"correlation length $\xi$",
        title="correlation length",
    )
    ticks(axes, [0.01, 0.02, 0.05, 0.1])
    axes.legend(loc="lower left")


def _draw_controls(axes: Axes, data: xr.Dataset) -> None:
    looks = {
        "mixture": ("mixture of 2 Gaussians", ACCENT),
        "field": ("Gaussian field", "#009e73"),
        "strings": ("grammar (32, 8, 2), Gaussian noise", CLASS),
    }
    for label, (law_name, color) in looks.items():
        r = data[f"r_{label}"].values[1:]
        curve = data[label].values[1:]
        exact = data.get(f"{label}_exact", data[f"r_{label}"] * np.nan).values[1:]
        if label == "mixture":  # its distances have few pairs each
            group = np.floor(2 * np.log2(r) + 1e-9)  # half octaves
            r, curve, exact = (
                np.array([x[group == g].mean(axis=0) for g in np.unique(group)])
                for x in (r, curve, exact)
            )
        draw_curve(axes, r, curve, color, 0.2, marker="o", ms=4.5, label=law_name, lw=1.4)
        axes.plot(r, exact, "--", color=MUTED)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(
        xscale="log",
        xlabel="distance $r$",
        ylabel="$C(r)/C(0)$",
        title="with and without a hierarchy",
        ylim=(-0.03, 0.75),
    )
    ticks(axes, [1, 2, 5, 10, 20, 50, 100, 500])
    axes.legend(loc="upper right")


def _draw_images(axes: Axes, data: xr.Dataset) -> None:
    colors = dict(zip(IMAGE_TIMES, level_colors(len(IMAGE_TIMES)), strict=True))
    for t, color in colors.items():
        axes.plot([], [], color=color, label=f"$t/T={t:g}$")
    looks: dict[str, Look] = {
        "": {"marker": "o", "ls": "-"},
        "feature": {"marker": "s", "ls": "--"},
    }
    for name, look in looks.items():
        axes.plot([], [], ms=4, lw=1.3, color=MUTED, label=PATCHES[name][0], **look)
        for t, color in colors.items():
            label = f"images_{name or 'pixels'}_{t:g}"
            distance = data[f"r_{label}"].values[1:] * PIXELS[name]
            draw_curve(axes, distance, data[label].values[1:], color, 0.12, ms=4, lw=1.3, **look)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(
        xlabel="distance in pixels", ylabel="$C(r)/C(0)$", title="Fashion-MNIST", ylim=(-0.15, 1)
    )
    axes.legend(loc="upper right")
