"""How far changes are correlated: C(r) of a grammar through its transition, its correlation length, controls, and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.experiment import Experiment
from uturn.measures.changes import correlations_of
from uturn.measures.scaling import correlation_length
from uturn.paper import chi, collapse
from uturn.paper.channels import ChannelSpec
from uturn.paper.correlated_runs import PAPER, PATCHES, controls, curves_at, images
from uturn.paper.verdicts import Verdict, above, apart, below, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.plotting.style import ACCENT, CLASS, MUTED, level_colors, style
from uturn.statistics import Estimate, estimate
from uturn.theory import MeanField

TITLE = "Correlations of changes against distance"
CLAIM = "The closer the noise is to the critical one, the farther apart are sites that still change together."
CAPTION = (
    "Correlation C(r)/C(0) of the changes of two sites at distance r, within one original. First: ε-process, (32, 8, 2), "
    "deepest tree of figure collapse, exact belief propagation (points; bars: 95 % intervals over grammars) and mean field "
    "(lines); r = 2^k for a common ancestor at level k; dotted: the power law r^-(2 - 2/ν) of ε*. Second: correlation length "
    "ξ of a fit with a cut-off, A r^-(2 - 2/ν) exp(-r/ξ), on both sides of ε*, of the points and of the mean field (lines); "
    "it grows towards ε* until it exceeds the tree. Third: a flat mixture has a large chi, but its C(r) does not depend on r; "
    "a Gaussian field loses its correlation over a few sites. Fourth: Fashion-MNIST, embedded model, against the distance of "
    "the patches in pixels."
)
SHOWN = (0.64, 0.68, 0.7, 0.71, 0.73)
IMAGE_TIMES = (0.2, 0.6, 1.0)
PIXELS = {"": 4, "feature": 2}
"""Pixels between neighbouring sites of images."""
TOLERANCE = 0.06  # of C(r)/C(0) against the mean field
LENGTH_TOLERANCE = 0.25  # of ξ against the mean field, as a share
GAUSSIAN = "gaussian-depth9"


def experiments(scale: Scale) -> dict[str, Experiment]:
    deepest = f"depth{collapse.depths(scale)[-1]}"
    return {deepest: collapse.experiments(scale)[deepest]}


def channels(scale: Scale) -> list[ChannelSpec]:
    return chi.channels(scale)


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    shared = {**controls(workshop.scale), **images(workshop.scale)}
    (grammar,) = workshop.runs("collapse", experiments(workshop.scale)).values()
    gaussian = workshop.runs("chi", {GAUSSIAN: chi.experiments(workshop.scale)[GAUSSIAN]})
    return {"epsilon": grammar, **gaussian, **workshop.runs("correlated", shared)}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {label: run.load() for label, run in runs.items()}
    theory = MeanField(*PAPER)
    run = runs["epsilon"]
    depth = run.sizes["distance"] - 1
    noise, exponent = run.noise.values, theory.decay_exponent or np.nan
    curves = correlations_of(run)
    exact = theory.pair_correlations(noise, depth)
    expected = xr.DataArray(exact[:, None], dims=("noise", "item", "distance"), coords={"noise": noise, "distance": run.distance})
    lengths, known = correlation_length(run.change_covariance, exponent), correlation_length(expected, exponent)
    data = xr.Dataset(
        {
            **{f"epsilon_{name}": curves[name] for name in ("correlation", "low", "high")},
            "theory": (("noise", "distance"), exact / exact[:, :1]),
            **{f"length_{name}": lengths[name] for name in ("length", "low", "high")},
            "length_theory": known.length,
        },
        attrs={"critical_noise": theory.critical_noise, "exponent": exponent, "nu": theory.correlation_exponent},
    )
    for label, one, at, name in _shown(runs):
        found = curves_at(one, at, name).rename(distance=f"r_{label}")
        data[label] = (f"r_{label}", "bound"), np.stack([found.correlation, found.low, found.high], axis=-1)
        data = data.assign_coords({f"r_{label}": found[f"r_{label}"].values})
    data = data.assign_coords(bound=["value", "low", "high"])
    return data, [
        _against_theory(data),
        _power_law(run, theory, exact),
        _lengths(data),
        *_controls(runs),
        *(_images(runs["images"], name) for name in PATCHES),
    ]


def _shown(runs: dict[str, xr.Dataset]) -> list[tuple[str, xr.Dataset, float, str]]:
    """What the third and fourth panels show: label, run, noise level, name of the probe."""
    peak = runs[GAUSSIAN].noise.values[_largest(runs[GAUSSIAN])]
    shown = [
        ("mixture", runs["mixture"], np.inf, ""),
        ("field", runs["field"], np.inf, ""),
        ("strings", runs[GAUSSIAN], peak, ""),
    ]
    shown = [(label, run, 1e9 if np.isinf(at) else at, name) for label, run, at, name in shown]
    return shown + [(f"images_{name or 'pixels'}_{t:g}", runs["images"], t, name) for name in PATCHES for t in IMAGE_TIMES]


def _largest(run: xr.Dataset) -> int:
    """Index of the noise level with the largest chi."""
    means = [run[name].mean("item").values for name in ("change_covariance_sum", "change_covariance")]
    return int(np.nanargmax(means[0] / means[1][:, 0]))


def _against_theory(data: xr.Dataset) -> Verdict:
    apart_by = (data.epsilon_correlation - data.theory).isel(distance=slice(1, None))
    worst = float(np.abs(apart_by).max())
    return verdict(
        "C(r)/C(0) against the mean field, ε-process: mean and largest difference over distances and noise levels",
        f"{float(apart_by.mean()):+.4f}; {worst:.4f}",
        "0 for the annealed average",
        within(apart_by.values.ravel(), TOLERANCE),
    )


def _power_law(run: xr.Dataset, theory: MeanField, exact: np.ndarray) -> Verdict:
    at = int(np.argmin(np.abs(run.noise.values - (theory.critical_noise or np.nan))))
    chosen = slice(2, run.sizes["distance"] - 2)  # the ends of the tree are not in the power law
    r = np.log(run.distance.values[chosen])

    def slope(means: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            y = np.log(means[0, chosen])
        return -float(np.polyfit(r, y, 1)[0]) if np.isfinite(y).all() else np.nan

    found = estimate(run.change_covariance.isel(noise=[at]), slope, 0.999)
    known = slope(exact[[at]])
    return verdict(
        f"exponent a of C(r) ~ r^-a at ε = {run.noise.values[at]:g}, r = {np.exp(r[0]):.0f} .. {np.exp(r[-1]):.0f}",
        f"{found} (99.9 % interval)",
        f"{known:.3f} (mean field, same fit); 2 - 2/ν = {theory.decay_exponent:.3f} in deep trees at ε*",
        below(found.low, known, "the interval holds the mean field and is narrower than 0.6"),
        above(found.high, known, ""),
        below(found.high - found.low, 0.6, ""),
    )


def _lengths(data: xr.Dataset) -> Verdict:
    judged = (data.length_theory < data.distance[-1] / 4).values
    ratio = (data.length_length / data.length_theory).values[judged] - 1
    noise = data.noise.values[judged]
    return verdict(
        f"ξ against that of the mean field, ε from {noise[0]:g} to {noise[-1]:g} where it is below a quarter of the tree",
        ", ".join(f"{float(one):.1f}" for one in data.length_length.values[judged]),
        ", ".join(f"{float(one):.1f}" for one in data.length_theory.values[judged]),
        within(ratio, LENGTH_TOLERANCE, f"all within {100 * LENGTH_TOLERANCE:.0f} %"),
    )


def _far_over_near(run: xr.Dataset, at: int, near: slice, far: slice) -> Estimate:
    """Mean covariance at large distances over that at small distances."""
    return estimate(run.change_covariance.isel(noise=[at]), lambda c: float(c[0, far].mean() / c[0, near].mean()), 0.999)


def _controls(runs: dict[str, xr.Dataset]) -> list[Verdict]:
    mixture = _far_over_near(runs["mixture"], -1, slice(1, 33), slice(33, 97))
    grammar = _far_over_near(runs[GAUSSIAN], _largest(runs[GAUSSIAN]), slice(1, 3), slice(-2, None))
    field = _far_over_near(runs["field"], -1, slice(1, 2), slice(4, 8))
    return [
        verdict(
            "C(r) at large over small distances: flat mixture at t = T; grammar (32, 8, 2), L = 9, Gaussian, at its largest chi",
            f"{mixture}; {grammar} (99.9 % intervals)",
            "1 where all sites change with the mode; near 0 in a grammar",
            above(mixture.low, 0.6),
            below(mixture.high, 1.4),
            apart(grammar, mixture, "intervals apart"),
        ),
        verdict(
            "C(r) at 4 to 7 sites over that at 1, Gaussian field at t = T",
            f"{field} (99.9 % interval)",
            "falls with distance",
            below(field.high, 0.2),
        ),
    ]


def _images(run: xr.Dataset, name: str) -> Verdict:
    found = curves_at(run, 0.6, name)
    near, far = (Estimate(*(float(found[key][k]) for key in ("correlation", "low", "high"))) for k in (1, 3))
    at = int(np.argmin(np.abs(run.noise.values - 0.6)))
    covariance = run[f"{name}_change_covariance" if name else "change_covariance"].isel(noise=[at])
    fall = estimate(covariance, lambda c: float((c[0, 1] - c[0, 3]) / c[0, 0]), 0.99)
    return verdict(
        f"C(r)/C(0) of Fashion-MNIST at t/T = 0.6, {PATCHES[name][0]}, at 1 and at 3 sites",
        f"{near}; {far}; difference {fall} (99 % interval)",
        "falls with distance",
        above(fall.low, 0, "interval of the difference above 0"),
    )


# -- drawing -----------------------------------------------------------------------------------------------------------------


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure, grid = plt.subplots(2, 2, figsize=(12.5, 9), layout="constrained")
        _draw_epsilon(grid[0, 0], data)
        _draw_lengths(grid[0, 1], data)
        _draw_controls(grid[1, 0], data)
        _draw_images(grid[1, 1], data)
    return figure


def _draw_epsilon(axes: Any, data: xr.Dataset) -> None:
    r = data.distance.values[1:]
    for color, epsilon in zip(level_colors(len(SHOWN)), SHOWN, strict=True):
        part = data.sel(noise=epsilon, method="nearest").isel(distance=slice(1, None))
        value, low, high = (part[f"epsilon_{key}"].values for key in ("correlation", "low", "high"))
        axes.plot(r, part.theory, color=color, lw=1.4)
        look = {"fmt": "o", "ms": 4.5, "lw": 1, "color": color, "label": rf"$\epsilon={float(part.noise):.2f}$"}
        positive = value > 0
        bars = [(value - np.maximum(low, 1e-6))[positive], (high - value)[positive]]
        axes.errorbar(r[positive], value[positive], bars, **look)
    law = 1.15 * r ** -data.attrs["exponent"]
    axes.plot(r, law * 1.3, color=MUTED, ls=":", lw=1.4, label=rf"$r^{{-{data.attrs['exponent']:.2f}}}$")
    axes.set(xscale="log", yscale="log", ylim=(3e-4, 1.2), xlabel="distance $r$", ylabel="$C(r)/C(0)$")
    axes.set_title(rf"$\epsilon$-process, $\epsilon^*={data.attrs['critical_noise']:.3f}$")
    axes.set_xticks(r, [f"{x:.0f}" for x in r])
    axes.minorticks_off()
    axes.legend(loc="lower left")


def _draw_lengths(axes: Any, data: xr.Dataset) -> None:
    away = data.noise.values - data.attrs["critical_noise"]
    size = float(data.distance[-1])
    for sign, color, words in ((-1, ACCENT, r"$\epsilon<\epsilon^*$"), (1, CLASS, r"$\epsilon>\epsilon^*$")):
        side = (np.sign(away) == sign) & np.isfinite(data.length_length.values) & (data.length_length.values < 4 * size)
        value, low, high = (data[f"length_{key}"].values[side] for key in ("length", "low", "high"))
        high = np.minimum(high, 1e5)
        axes.errorbar(np.abs(away[side]), value, [value - low, high - value], fmt="o", ms=5, lw=1, color=color, label=words)
        order = np.argsort(np.abs(away[side]))
        axes.plot(np.abs(away[side])[order], data.length_theory.values[side][order], color=color, lw=1.4)
    x = np.array([0.012, 0.04])
    axes.plot(
        x, 40 * (x / 0.02) ** -data.attrs["nu"], color=MUTED, ls=":", lw=1.4, label=rf"slope $-\nu=-{data.attrs['nu']:.2f}$"
    )
    axes.axhline(size, color=MUTED, lw=0.8, ls="--")
    axes.text(0.1, size * 1.06, "size of the tree", color=MUTED, ha="right", va="bottom", fontsize=9.5)
    axes.set(xscale="log", yscale="log", ylim=(2, 5 * size))
    axes.set(xlabel=r"$|\epsilon-\epsilon^*|$", ylabel=r"correlation length $\xi$", title="correlation length")
    axes.set_xticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes.minorticks_off()
    axes.legend(loc="lower left")


def _draw_controls(axes: Any, data: xr.Dataset) -> None:
    looks = {
        "mixture": ("mixture of 2 Gaussians", ACCENT, "o-"),
        "field": ("Gaussian field", "#009e73", "o-"),
        "strings": ("grammar (32, 8, 2), Gaussian noise", CLASS, "o-"),
    }
    for label, (words, color, marker) in looks.items():
        curve, r = data[label].values[1:], data[f"r_{label}"].values[1:]
        if label == "mixture":  # its distances have few pairs each
            r, curve = _by_octaves(r, curve)
        axes.plot(r, curve[:, 0], marker, ms=4.5, color=color, label=words, lw=1.4)
        axes.fill_between(r, curve[:, 1], curve[:, 2], color=color, alpha=0.2, lw=0)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(xscale="log", xlabel="distance $r$", ylabel="$C(r)/C(0)$", title="with and without a hierarchy", ylim=(-0.03, 0.75))
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 500], ["1", "2", "5", "10", "20", "50", "100", "500"])
    axes.minorticks_off()
    axes.legend(loc="upper right")


def _by_octaves(r: np.ndarray, curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over half octaves of r."""
    group = np.floor(2 * np.log2(r) + 1e-9)
    return tuple(np.array([one[group == g].mean(axis=0) for g in np.unique(group)]) for one in (r, curve))  # type: ignore[return-value]


def _draw_images(axes: Any, data: xr.Dataset) -> None:
    for name, dashes in (("", "o-"), ("feature", "s--")):
        for color, t in zip(level_colors(len(IMAGE_TIMES)), IMAGE_TIMES, strict=True):
            label = f"images_{name or 'pixels'}_{t:g}"
            curve, r = data[label].values, data[f"r_{label}"].values * PIXELS[name]
            axes.plot(r[1:], curve[1:, 0], dashes, ms=4, lw=1.3, color=color)
            axes.fill_between(r[1:], curve[1:, 1], curve[1:, 2], color=color, alpha=0.12, lw=0)
    for color, t in zip(level_colors(len(IMAGE_TIMES)), IMAGE_TIMES, strict=True):
        axes.plot([], [], color=color, label=f"$t/T={t:g}$")
    for name, dashes in (("", "o-"), ("feature", "s--")):
        axes.plot([], [], dashes, ms=4, lw=1.3, color=MUTED, label=PATCHES[name][0])
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(xlabel="distance in pixels", ylabel="$C(r)/C(0)$", title="Fashion-MNIST", ylim=(-0.15, 1))
    axes.legend(loc="upper right")
