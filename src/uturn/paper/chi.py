"""How many sites change together: susceptibility of grammars in all channels, of controls, and of images (arXiv:2410.13770)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from uturn.experiment import Experiment
from uturn.measures.changes import chi_parts, susceptibility_of
from uturn.paper import thresholds
from uturn.paper.channels import ChannelSpec
from uturn.paper.correlated_runs import PAPER, PATCHES, STEEP, TIMES, control_channels, controls, grammar, images
from uturn.paper.verdicts import Rule, Verdict, above, apart, below, increasing, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.plotting.style import ACCENT, CLASS, MUTED, THEORY, level_colors, style
from uturn.statistics import Estimate, estimate
from uturn.theory import MeanField

TITLE = "Susceptibility: how many sites change together"
CLAIM = "Near the critical noise of a grammar many sites change together, and the more the deeper its tree."
CAPTION = (
    "Susceptibility chi = sum_ij C_ij / sum_i C_ii of the changes in U-turns of one original, averaged over originals: the "
    "number of sites that change together. Bars: 95 % intervals, over grammars or over items. First: the ε-process at (16, 4, "
    "2), exact belief propagation (points) and mean field (lines); chi peaks below ε* at finite depth. The averages over "
    "grammars lie a few per cent above the annealed average. Second: the channels that draw their noise, at (32, 8, 2), "
    "against the noise as a share of the threshold of deep trees (figure thresholds): the peak grows with depth there as "
    "well. Third: laws without a hierarchy. In the Gaussian field and in the mixture chi grows up to t = T and stays there, "
    "while a grammar of one level has a peak. Fourth: Fashion-MNIST, embedded model; share of the patches that change "
    "together."
)
DEPTHS = (5, 7, 10)
CHANNELS = ("gaussian", "masking", "uniform")
REACH = {"gaussian": (0.045, 0.105), "masking": (0.14, 0.46), "uniform": (0.08, 0.28)}
THRESHOLD = {"gaussian": 0.0699, "masking": 0.2741, "uniform": 0.1607}  # figure thresholds, one grammar, (32, 8, 2)
NEAR = 0.15  # of the peak at L = 9 and the threshold, as a share of it
PEAK_TOLERANCE = 0.008  # in ε: the standard deviation of the threshold between grammars
HEIGHT_TOLERANCE = 0.12  # of chi against the annealed average, as a share


HALF_WIDTH = {5: 0.06, 7: 0.035, 10: 0.016}  # of the peak in ε, where a parabola describes it


def epsilons(depth: int, scale: Scale) -> list[float]:
    """Noise levels, dense around the maximum of the mean field."""
    top, half = maximum(MeanField(*STEEP), depth), HALF_WIDTH[depth]
    dense = np.linspace(top - half, top + half, 7 if scale == "smoke" else 13)
    return np.r_[0.55, 0.65, top - 2 * half, dense, top + 2 * half, 0.9].round(4).tolist()


def maximum(theory: MeanField, depth: int) -> float:
    """ε at which chi of the mean field is largest."""
    grid = np.linspace(0.7, 0.83, 1301)
    return float(grid[theory.susceptibility(grid, depth).argmax()])


def channel_depths(scale: Scale) -> tuple[int, ...]:
    return (5, 9) if scale == "smoke" else (5, 7, 9)


def experiments(scale: Scale) -> dict[str, Experiment]:
    made = {f"epsilon-depth{L}": grammar("epsilon", STEEP, L, epsilons(L, scale), scale, factor=5) for L in DEPTHS}
    for channel in CHANNELS:
        noise = np.linspace(*REACH[channel], 9 if scale == "smoke" else 17).tolist()
        made |= {f"{channel}-depth{L}": grammar(channel, PAPER, L, noise, scale) for L in channel_depths(scale)}
    return made


def channels(scale: Scale) -> list[ChannelSpec]:
    return [*thresholds.channels(scale), *control_channels(scale)]


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    shared = {**controls(workshop.scale), **images(workshop.scale)}
    return {**workshop.runs("chi", experiments(workshop.scale)), **workshop.runs("correlated", shared)}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {label: run.load() for label, run in runs.items()}
    data = xr.Dataset()
    for label, run in runs.items():
        for name in PATCHES if label == "images" else ("",):
            key = f"{label}-{name}" if name else label
            found = susceptibility_of(run, name)
            bounds = np.stack([found.chi, found.low, found.high], axis=-1)
            data[f"chi_{key}"] = (f"noise_{label}", "bound"), bounds
            data = data.assign_coords({f"noise_{label}": run.noise.values, "bound": ["value", "low", "high"]})
    theory = MeanField(*STEEP)
    fine = np.linspace(0.5, 0.95, 901)
    data["theory"] = ("depth", "fine"), np.array([theory.susceptibility(fine, L) for L in DEPTHS])
    data = data.assign_coords(depth=list(DEPTHS), fine=fine).assign_attrs(critical_noise=theory.critical_noise)
    return data, [
        _peaks(runs, theory),
        _heights(data, theory),
        *(_channel(runs, channel) for channel in CHANNELS),
        *_controls(data, runs),
        *(_images(runs["images"], name) for name in PATCHES),
    ]


def peak(noise: np.ndarray, chosen: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Statistic of `chi_parts`: position and height of the peak, by a parabola through log chi at the chosen noise levels."""

    def statistic(means: np.ndarray) -> np.ndarray:
        x, y = noise[chosen], np.log(means[chosen, 0] / means[chosen, 1])
        middle = x.mean()  # of a parabola in x - middle, which is well conditioned
        bend, slope, offset = np.polyfit(x - middle, y, 2)
        if not bend < 0:
            return np.full(2, np.nan)
        return np.array([middle - slope / (2 * bend), np.exp(offset - slope**2 / (4 * bend))])

    return statistic


def _peak_of(run: xr.Dataset, chosen: np.ndarray) -> tuple[Estimate, Estimate]:
    """Position and height of the peak of chi."""
    statistic = peak(run.noise.values, chosen)
    position, height = (estimate(chi_parts(run), lambda c, k=k: float(statistic(c)[k])) for k in (0, 1))  # type: ignore[misc]
    return position, height


def _peaks(runs: dict[str, xr.Dataset], theory: MeanField) -> Verdict:
    found, expected = [], []
    for L in DEPTHS:
        run = runs[f"epsilon-depth{L}"]
        noise = run.noise.values
        curve = theory.susceptibility(noise, L)
        chosen = np.abs(noise - maximum(theory, L)) < 1.01 * HALF_WIDTH[L]
        found.append(_peak_of(run, chosen)[0])
        expected.append(float(peak(noise, chosen)(np.stack([curve, np.ones_like(curve)], axis=1))[0]))
    true = [maximum(theory, L) for L in DEPTHS]
    critical = theory.critical_noise or np.nan
    return verdict(
        f"ε at which chi peaks, ε-process {STEEP}, L = {', '.join(map(str, DEPTHS))}",
        "; ".join(map(str, found)),
        ", ".join(f"{one:.4f}" for one in expected)
        + f" (mean field, same parabola; its maxima: {', '.join(f'{x:.3f}' for x in true)}), below ε* = {critical:.3f}",
        within(np.subtract([one.value for one in found], expected), PEAK_TOLERANCE),
        below([one.high for one in found], critical, "intervals below ε*"),
        increasing(found),
    )


def _heights(data: xr.Dataset, theory: MeanField) -> Verdict:
    worst = []
    for L in DEPTHS:
        chi = data[f"chi_epsilon-depth{L}"].isel(bound=0).values
        worst.append(chi / theory.susceptibility(data[f"noise_epsilon-depth{L}"].values, L) - 1)
    return verdict(
        f"chi against the mean field, ε-process {STEEP}: mean and largest relative difference for each L",
        "; ".join(f"{100 * one.mean():+.1f} %, {100 * one[np.abs(one).argmax()]:+.1f} %" for one in worst),
        "0 for the annealed average; one grammar at a time lies some per cent above it",
        within(np.concatenate(worst), HEIGHT_TOLERANCE),
    )


def _channel(runs: dict[str, xr.Dataset], channel: str) -> Verdict:
    depths = sorted(int(label.partition("-depth")[2]) for label in runs if label.startswith(f"{channel}-depth"))
    found = []
    for L in depths:
        run = runs[f"{channel}-depth{L}"]
        chi = susceptibility_of(run).chi.values
        top = int(np.clip(chi.argmax(), 2, len(chi) - 3))
        found.append(_peak_of(run, np.abs(np.arange(len(chi)) - top) <= 2))
    position, limit = found[-1][0], THRESHOLD[channel]
    heights = [height for _, height in found]
    return verdict(
        f"peak of chi, {thresholds.CHANNELS[channel].label} {PAPER}, L = {', '.join(map(str, depths))}",
        f"at {position}, L = {depths[-1]}; height {'; '.join(map(str, heights))}",
        f"grows with depth, near the threshold {limit} of deep trees",
        within(position.value / limit - 1, NEAR, f"within {100 * NEAR:.0f} % of the threshold"),
        apart(heights[0], heights[-1], "intervals of the heights at the smallest and the largest depth apart"),
    )


def _controls(data: xr.Dataset, runs: dict[str, xr.Dataset]) -> list[Verdict]:
    found = []
    for label, words, least in (("field", "Gaussian random field", 4.0), ("mixture", "mixture of two Gaussians", 15.0)):
        chi = [Estimate(*row) for row in data[f"chi_{label}"].values.tolist()]
        highest = int(np.argmax([one.value for one in chi]))
        found.append(
            verdict(
                f"chi against time, {words}",
                f"{chi[0]} at t = {TIMES[0]}, {chi[-1]} at t = T; highest at t = {data[f'noise_{label}'].values[highest]:g}",
                "grows up to t = T, no peak",
                above(chi[-1].low, least),
                Rule(chi[-1].high > chi[highest].low, "the largest chi is not apart from chi at t = T"),
                apart(chi[0], chi[-1], "first and last intervals apart"),
            )
        )
    curves = data["chi_one-level"].values
    top = Estimate(*curves[curves[:, 0].argmax()].tolist())
    last = Estimate(*curves[-1].tolist())
    deep = [Estimate(*row) for row in data["chi_gaussian-depth9"].values.tolist()] if "chi_gaussian-depth9" in data else []
    highest_deep = max(deep, key=lambda one: one.value) if deep else Estimate(np.nan, np.nan, np.nan)
    found.append(
        verdict(
            "largest chi of a grammar of one level, and of the grammar (32, 8, 2), L = 9, Gaussian",
            f"{top}; {highest_deep}",
            "a peak, which the number of children bounds",
            apart(last, top, "apart from chi at the largest time"),
            apart(top, highest_deep, "apart from the larger peak of the deep grammar"),
        )
    )
    return found


def _images(run: xr.Dataset, name: str) -> Verdict:
    words, sites = PATCHES[name]
    early, late = (int(np.argmin(np.abs(run.noise.values - t))) for t in (0.2, 0.6))

    def chi(means: np.ndarray) -> np.ndarray:
        return means[[early, late], 0] / means[[early, late], 1]

    parts = chi_parts(run, name)
    at = [estimate(parts, lambda c, k=k: float(chi(c)[k])) for k in (0, 1)]  # type: ignore[misc]
    # The same originals at both noise levels: their differences drop out of the ratio.
    growth = estimate(parts, lambda c: float(np.diff(np.log(chi(c)))[0]), 0.99)
    return verdict(
        f"chi of Fashion-MNIST, {words} ({sites} sites), at t/T = 0.2 and 0.6",
        f"{at[0]}; {at[1]}; logarithm of the ratio {growth} (99 % interval)",
        "more sites change together at 0.6",
        above(growth.low, 0, "interval of the logarithm above 0"),
        below(at[1].high, sites, "below the number of sites"),
    )


# -- drawing -----------------------------------------------------------------------------------------------------------------


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure, grid = plt.subplots(2, 2, figsize=(12.5, 9), layout="constrained")
        _draw_epsilon(grid[0, 0], data)
        _draw_channels(grid[0, 1], data)
        _draw_controls(grid[1, 0], data)
        _draw_images(grid[1, 1], data)
        for axes in grid[0]:
            axes.set_ylabel(r"susceptibility $\chi$")
    return figure


def _bars(axes: Any, x: np.ndarray, chi: np.ndarray, **look: Any) -> None:
    """Points with intervals, joined by thin lines."""
    axes.errorbar(x, chi[:, 0], [chi[:, 0] - chi[:, 1], chi[:, 2] - chi[:, 0]], lw=1, capsize=0, **look)


def _draw_epsilon(axes: Any, data: xr.Dataset) -> None:
    colors = level_colors(len(DEPTHS))
    for color, L in zip(colors, DEPTHS, strict=True):
        axes.plot(data.fine, data.theory.sel(depth=L), color=color, lw=1.6)
        chi = data[f"chi_epsilon-depth{L}"].values
        _bars(axes, data[f"noise_epsilon-depth{L}"].values, chi, fmt="o", ms=4.5, color=color, label=f"$L={L}$")
    critical = data.attrs["critical_noise"]
    axes.axvline(critical, color=MUTED, ls=":", lw=1.2)
    axes.text(critical + 0.004, axes.get_ylim()[1], rf"$\epsilon^*={critical:.2f}$", color=MUTED, va="top")
    axes.plot([], [], color=MUTED, lw=1.6, label="mean field")
    axes.set(xlabel=r"$\epsilon$", xlim=(0.53, 0.92), title=r"$\epsilon$-process, (16, 4, 2)")
    axes.legend(loc="upper left")


def _draw_channels(axes: Any, data: xr.Dataset) -> None:
    for channel in CHANNELS:
        look = thresholds.CHANNELS[channel]
        found = (str(k) for k in data if str(k).startswith(f"chi_{channel}-depth"))
        labels = sorted(found, key=lambda k: int(k.partition("-depth")[2]))
        for k, label in enumerate(labels):
            deepest = k == len(labels) - 1
            noise = data[label.replace("chi_", "noise_")].values / THRESHOLD[channel]
            depth = label.partition("-depth")[2]
            words = f"{look.label}, $L={depth}$" if deepest else None
            alpha = 1 if deepest else 0.25 + 0.25 * k
            _bars(axes, noise, data[label].values, fmt="o-", ms=4.5, color=look.color, alpha=alpha, label=words)
    axes.axvline(1, color=MUTED, ls=":", lw=1.2)
    axes.plot([], [], "o-", ms=4.5, lw=1, color=MUTED, alpha=0.5, label="pale: shallower trees, from $L=5$")
    axes.set(xlabel="noise / threshold of deep trees", title="noise that is drawn, (32, 8, 2)")
    axes.legend(loc="upper right")


def _draw_controls(axes: Any, data: xr.Dataset) -> None:
    looks = {
        "mixture": ("mixture of 2 Gaussians, 128 sites", ACCENT),
        "field": ("Gaussian field, 256 sites", "#009e73"),
        "one-level": ("grammar of one level, 8 sites", CLASS),
    }
    for label, (words, color) in looks.items():
        chi, noise = data[f"chi_{label}"].values, data[f"noise_{label}"].values
        at = np.where(np.isinf(noise), 6.0, noise)
        _bars(axes, at, chi, fmt="o-", ms=4.5, color=color, label=words)
    axes.axhline(1, color=MUTED, lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="diffusion time $t$", title="without a hierarchy")
    axes.set_ylabel(r"susceptibility $\chi$")
    axes.set_xticks([0.02, 0.1, 0.5, 2, 6], ["0.02", "0.1", "0.5", "2", r"$\infty$"])
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(loc="upper left")


def _draw_images(axes: Any, data: xr.Dataset) -> None:
    for (name, (words, sites)), color in zip(PATCHES.items(), (THEORY, CLASS), strict=True):
        curves = data[f"chi_images-{name}" if name else "chi_images"]
        aside = 0.006 if name else -0.006  # the bars would cover each other
        x, look = data.noise_images.values + aside, {"fmt": "o-", "ms": 5, "color": color, "label": f"{words}: {sites} sites"}
        _bars(axes, x, curves.values / sites, **look)
    axes.set(xlabel="$t/T$", ylabel=r"share of the sites, $\chi/N$", ylim=(0, None), title="Fashion-MNIST")
    axes.legend(loc="upper left")
