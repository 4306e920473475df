"""How many sites change together: susceptibility of grammars in all channels, of controls, and
of images (arXiv:2410.13770).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField
from uturn.measures.changes import chi_of, chi_parts
from uturn.measures.estimates import Estimate
from uturn.measures.replicates import estimate, replicates
from uturn.paper import correlated_runs as shared
from uturn.paper import thresholds, verdicts
from uturn.paper.correlated_runs import PAPER, PATCHES, STEEP, TIMES, beside_exact
from uturn.paper.specs import at_depth, depths_of
from uturn.paper.verdicts import (
    ESTIMATE,
    Rule,
    Verdict,
    above,
    apart,
    below,
    estimates,
    holds,
    increasing,
    listed,
    numbers,
    verdict,
)
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    MUTED,
    THEORY,
    bars,
    level_colors,
    mark_noise,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Susceptibility: how many sites change together"
CLAIM = (
    "Near the critical noise of a grammar many sites change together, and more of them in deeper"
    " trees."
)
CAPTION = (
    "Susceptibility chi = sum_ij C_ij / sum_i C_ii of the changes in U-turns of one original,"
    " averaged over originals: the number of sites that change together. Points: U-turns; bars: 95"
    " % intervals, over grammars or over items; lines: the exact chi of the same strings, computed"
    " from the moments of their posterior. Top left: the ε-process at (16, 4, 2); dashed: mean"
    " field. Top right: the channels that draw their noise, at (32, 8, 2), against the noise"
    " divided by the threshold of deep trees (figure thresholds). Bottom left: data without a"
    " hierarchy; bars at the right edge: exact value at t = T. Bottom right: Fashion-MNIST,"
    " embedded model; share of the patches that change together."
)
DEPTHS = (5, 7, 10)
CHANNELS = ("gaussian", "masking", "uniform")
REACH = {"gaussian": (0.045, 0.105), "masking": (0.14, 0.46), "uniform": (0.08, 0.28)}
# Figure thresholds, one grammar, (32, 8, 2).
THRESHOLD = {"gaussian": 0.0699, "masking": 0.2741, "uniform": 0.1607}
DRAWS = 16  # noisy strings of an original for its exact chi
# of intervals of chi, as shares
EPSILON_WIDTH = 0.05
CHANNEL_WIDTH = 0.15
CONTROL_WIDTH = 0.3
CHANNEL_MOVED = 0.15  # of the interval of a displacement, as a share of the threshold
ALARM = 1e-3  # false-alarm rate of a verdict on chi against its exact value
HALF_WIDTH = {5: 0.06, 7: 0.035, 10: 0.016}  # of the peak in ε, where a parabola describes it


def epsilons(depth: int, scale: Scale) -> list[float]:
    """Noise levels, dense around the maximum of the mean field."""
    grid = np.linspace(0.7, 0.83, 1301)
    half = HALF_WIDTH[depth]
    top = float(grid[MeanField(*STEEP).susceptibility(grid, depth).argmax()])
    dense = np.linspace(top - half, top + half, 7 if scale == "smoke" else 13)
    return np.r_[0.55, 0.65, top - 2 * half, dense, top + 2 * half, 0.9].round(4).tolist()


def experiments(scale: Scale) -> dict[str, Experiment]:
    points, depths = (9, (5, 9)) if scale == "smoke" else (17, (5, 7, 9))
    made = {
        at_depth(L, "epsilon"): shared.grammar(
            "epsilon", STEEP, L, epsilons(L, scale), scale, factor=5
        )
        for L in DEPTHS
    }
    for channel in CHANNELS:
        noise = np.linspace(*REACH[channel], points).tolist()
        made |= {
            at_depth(L, channel): shared.grammar(channel, PAPER, L, noise, scale, turns=4)
            for L in depths
        }
    return made


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    common = {**shared.controls(workshop.scale), **shared.images(workshop.scale)}
    made = experiments(workshop.scale)
    exact = {
        f"exact-{label}": shared.exact_of(workshop, "chi", label, experiment, DRAWS)
        for label, experiment in made.items()
    }
    exact |= {
        f"exact-{label}": shared.independent_changes(label, common[label]) for label in shared.SITES
    }
    return {**workshop.runs("chi", made), **workshop.runs("correlated", common), **exact}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {label: run.load() for label, run in runs.items()}
    data = xr.Dataset()
    for label, run in runs.items():
        for name in PATCHES if label == "images" else ("",):
            key = f"{label}-{name}" if name else label
            data[f"chi_{key}"] = (f"noise_{label}", "estimate"), chi_of(chi_parts(run, name))
            data = data.assign_coords({f"noise_{label}": run.noise.values, "estimate": ESTIMATE})
    theory = MeanField(*STEEP)
    fine = np.linspace(0.5, 0.95, 901)
    data["theory"] = ("depth", "fine"), np.array([theory.susceptibility(fine, L) for L in DEPTHS])
    data = data.assign_coords(depth=list(DEPTHS), fine=fine).assign_attrs(
        critical_noise=theory.critical_noise
    )
    return data, [
        *_epsilon(data, runs, theory),
        *(judged for channel in CHANNELS for judged in _channel(runs, channel)),
        *_controls(data, runs),
        *(_images(runs["images"], name) for name in PATCHES),
    ]


def peak(noise: np.ndarray, chi: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Position and height of the peak of a parabola through log chi at the five noise levels
    around the maximum of `around`.
    """
    top = int(np.clip(around.argmax(), 2, len(noise) - 3))
    x = noise[top - 2 : top + 3]
    y = np.log(chi[top - 2 : top + 3])
    middle = x.mean()  # of a parabola in x - middle, which is well conditioned
    bend, slope, offset = np.polyfit(x - middle, y, 2)
    return (
        np.array([middle - slope / (2 * bend), np.exp(offset - slope**2 / (4 * bend))])
        if bend < 0
        else np.full(2, np.nan)
    )


class Compared(NamedTuple):
    """A run against the exact chi of its strings: log ratio, mean over noise and at every level;
    displacement along the noise (`shift`); position and height of the peak, with 95 % intervals;
    position of the exact peak; largest deviation of the points of the plot from the averages
    that are compared.
    """

    ratio: Estimate
    moved: Estimate
    levels: list[Estimate]
    position: Estimate
    height: Estimate
    exact: float
    drawn: float


def compared(run: xr.Dataset, exact: xr.Dataset, comparisons: int) -> Compared:
    """Log ratios and displacements have intervals with the false-alarm rate `ALARM` for all
    `comparisons` together.
    """
    both = beside_exact(chi_parts(run), chi_parts(exact))
    noise = run.noise.values
    level = ALARM / comparisons
    measured, known = _chi(replicates(both).mean).T
    ratio, moved = estimates(both, lambda c: [_log_ratio(c).mean(), shift(noise, c)], 1 - level)
    levels = estimates(both, _log_ratio, 1 - level / len(noise))
    position, height = estimates(both, lambda c: peak(noise, _chi(c)[:, 0], known))
    drawn = float(np.abs(chi_of(chi_parts(run))[:, 0] / measured - 1).max())
    return Compared(
        ratio, moved, levels, position, height, float(peak(noise, known, known)[0]), drawn
    )


def _chi(means: np.ndarray) -> np.ndarray:
    return means[..., 0] / means[..., 1]


def _log_ratio(c: np.ndarray) -> np.ndarray:
    """Logarithm of measured over exact chi at every noise level, from means of `beside_exact`."""
    measured, exact = np.log(_chi(c)).T
    return measured - exact


def shift(noise: np.ndarray, c: np.ndarray) -> float:
    """How far measured log chi is displaced along the noise: least squares of the log ratio on the
    slope of the exact curve.

    All noise levels contribute, most of all those on the flanks. The position of a broad peak is
    much less certain.
    """
    slope = -np.gradient(np.log(_chi(c[:, 1])), noise)
    slope -= slope.mean()
    return float(slope @ _log_ratio(c) / (slope @ slope))


def _against_exact(runs: Sequence[Compared], name: str, expected: str, width: float) -> Verdict:
    levels = [level for run in runs for level in run.levels]
    narrow = (
        f"mean over noise levels: intervals hold 0 and are narrower than {100 * width:.0f} % (false"
        f" alarms {ALARM:g})"
    )
    ratios = [
        f"{100 * r.value:+.1f} % [{100 * r.low:+.1f}, {100 * r.high:+.1f}]"
        for r in (run.ratio for run in runs)
    ]
    return verdict(
        f"chi against the exact chi of the same strings, {name}: relative difference",
        "; ".join(ratios)
        + f"; at one noise level up to {100 * max(abs(level.value) for level in levels):.1f} %",
        expected,
        holds([run.ratio for run in runs], 0.0, width, narrow),
        holds(levels, 0.0, np.inf, "so do those of every noise level"),
        verdicts.within([run.drawn for run in runs], 1e-5, ""),
    )


def _epsilon(data: xr.Dataset, runs: dict[str, xr.Dataset], theory: MeanField) -> list[Verdict]:
    of_depth = [
        compared(runs[at_depth(L, "epsilon")], runs[at_depth(L, "exact-epsilon")], len(DEPTHS))
        for L in DEPTHS
    ]
    critical = theory.critical_noise or np.nan
    depths = ", ".join(map(str, DEPTHS))
    annealed = []
    heights = []
    widths = np.array([HALF_WIDTH[L] for L in DEPTHS]) / 4
    narrow = "are narrower than 1/4 of the half-width of the peak"
    for L in DEPTHS:
        noise, measured, exact = (
            data[f"{name}{at_depth(L, 'epsilon')}"].values
            for name in ("noise_", "chi_", "chi_exact-")
        )
        curve = theory.susceptibility(noise, L)
        annealed.append(peak(noise, curve, exact[:, 0])[0])
        heights.append(100 * (measured[:, 0] / curve - 1))
    return [
        _against_exact(
            of_depth,
            f"ε-process {STEEP}, L = {depths}",
            "0: covariances of the exact posterior",
            EPSILON_WIDTH,
        ),
        verdict(
            f"ε at which chi peaks, ε-process {STEEP}, L = {depths}",
            f"{'; '.join(str(run.position) for run in of_depth)}; curves displaced by "
            f"{'; '.join(str(run.moved) for run in of_depth)}",
            ", ".join(f"{run.exact:.4f}" for run in of_depth)
            + f" (exact chi, same parabola), below ε* = {critical:.3f}; displaced by 0",
            holds(
                [run.moved for run in of_depth],
                0.0,
                widths,
                f"displacements: intervals hold 0, and {narrow}",
            ),
            below([run.position.high for run in of_depth], critical, "intervals below ε*"),
            increasing([run.position for run in of_depth]),
        ),
        verdicts.shows(
            f"the annealed mean field beside it, L = {depths}: peaks; mean and largest relative"
            " difference of chi",
            numbers(annealed, ".4f")
            + "; "
            + "; ".join(
                f"{percent.mean():+.1f} %, {percent[np.abs(percent).argmax()]:+.1f} %"
                for percent in heights
            ),
            "equal for the annealed average; one grammar at a time lies some per cent above it",
        ),
    ]


def _channel(runs: dict[str, xr.Dataset], channel: str) -> list[Verdict]:
    depths = depths_of(runs, channel)
    of_depth = [
        compared(runs[at_depth(L, channel)], runs[at_depth(L, f"exact-{channel}")], len(depths))
        for L in depths
    ]
    limit = THRESHOLD[channel]
    deepest = of_depth[-1]
    moved = Estimate(*(x / limit for x in deepest.moved))
    grammar = f"{thresholds.CHANNELS[channel].label} {PAPER}"
    name = f"{grammar}, L = {', '.join(map(str, depths))}"
    expected = f"0: moments of the exact posterior, {DRAWS} further noisy strings of every original"
    return [
        _against_exact(of_depth, name, expected, CHANNEL_WIDTH),
        verdict(
            f"peak of chi, {name}",
            f"at {deepest.position}, L = {depths[-1]}; the curve displaced by {moved} of the"
            f" threshold; height {'; '.join(str(run.height) for run in of_depth)}",
            f"at {deepest.exact:.4g} (exact chi, same parabola), displaced by 0; height grows with"
            " depth",
            holds(
                moved,
                0.0,
                CHANNEL_MOVED,
                f"displacement: the interval holds 0 and is narrower than {CHANNEL_MOVED}",
            ),
            apart(
                of_depth[0].height,
                deepest.height,
                "intervals of the heights at the smallest and the largest depth apart",
            ),
        ),
        verdicts.shows(
            f"peak of chi over the threshold of deep trees, {grammar}, L = {depths[-1]}",
            f"{deepest.position.value / limit:.3f}",
            f"near 1 in deep trees ({limit}); no theory here says how near at finite depth",
        ),
    ]


def _controls(data: xr.Dataset, runs: dict[str, xr.Dataset]) -> list[Verdict]:
    judged = []
    for label, law_name in (
        ("field", "Gaussian random field"),
        ("mixture", "mixture of two Gaussians"),
    ):
        chi = listed(data[f"chi_{label}"])
        known = float(data[f"chi_exact-{label}"][0, 0])
        highest = int(np.argmax([interval.value for interval in chi]))
        both = beside_exact(
            chi_parts(runs[label].isel(noise=[-1])), chi_parts(runs[f"exact-{label}"])
        )
        (ratio,) = estimates(both, _log_ratio, 1 - ALARM)
        judged.append(
            verdict(
                f"chi against time, {law_name}",
                f"{chi[0]} at t = {TIMES[0]}, {chi[-1]} at t = T, highest at t ="
                f" {data[f'noise_{label}'].values[highest]:g}; logarithm of measured over exact at"
                f" t = T: {ratio} (99.9 % interval)",
                f"grows up to {known:.2f} at t = T (closed formula: reconstruction independent of"
                " the original); no peak",
                holds(
                    ratio,
                    0.0,
                    CONTROL_WIDTH,
                    f"the interval of the logarithm holds 0 and is narrower than {CONTROL_WIDTH}",
                ),
                Rule(
                    chi[-1].high > chi[highest].low,
                    "the largest chi is not apart from chi at t = T",
                ),
                apart(chi[0], chi[-1], "first and last intervals apart"),
            )
        )
    one_level = listed(data["chi_one-level"])
    top, deep = (
        max(curve, key=lambda interval: interval.value)
        for curve in (one_level, listed(data["chi_gaussian-depth9"]))
    )
    judged.append(
        verdict(
            "largest chi of a grammar of one level, and of the grammar (32, 8, 2), L = 9, Gaussian",
            f"{top}; {deep}",
            "a peak, which the number of children bounds",
            apart(one_level[-1], top, "apart from chi at the largest time"),
            apart(top, deep, "apart from the larger peak of the deep grammar"),
        )
    )
    return judged


def _images(run: xr.Dataset, name: str) -> Verdict:
    sites_name, sites = PATCHES[name]
    parts = chi_parts(run, name).sel(noise=[0.2, 0.6], method="nearest")
    first, second = estimates(parts, _chi)
    # The same originals at both noise levels: their differences drop out of the ratio.
    growth = estimate(parts, lambda c: float(np.diff(np.log(_chi(c)))[0]), 0.99)
    return verdict(
        f"chi of Fashion-MNIST, {sites_name} ({sites} sites), at t/T = 0.2 and 0.6",
        f"{first}; {second}; logarithm of the ratio {growth} (99 % interval)",
        "more sites change together at 0.6",
        above(growth.low, 0, "interval of the logarithm above 0"),
        below(second.high, sites, "below the number of sites"),
    )


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure, grid = plt.subplots(2, 2, figsize=(12.5, 9), layout="constrained")
        _draw_epsilon(grid[0, 0], data)
        _draw_channels(grid[0, 1], data)
        _draw_controls(grid[1, 0], data)
        _draw_images(grid[1, 1], data)
        for axes in grid.flat[:3]:
            axes.set_ylabel(r"susceptibility $\chi$")
    return figure


def _draw_epsilon(axes: Axes, data: xr.Dataset) -> None:
    for color, L in zip(level_colors(len(DEPTHS)), DEPTHS, strict=True):
        axes.plot(data.fine, data.theory.sel(depth=L), color=color, lw=1, ls="--", alpha=0.7)
        _beside_exact(axes, data, at_depth(L, "epsilon"), 1.0, f"$L={L}$", lw=1.6, color=color)
    critical = data.attrs["critical_noise"]
    mark_noise(
        axes,
        critical,
        rf"$\epsilon^*={critical:.2f}$",
        MUTED,
        aside=0.004,
        height=axes.get_ylim()[1],
    )
    axes.plot([], [], color=MUTED, lw=1.6, label="exact, same strings")
    axes.plot([], [], color=MUTED, lw=1, ls="--", label="mean field")
    axes.set(xlabel=r"$\epsilon$", xlim=(0.53, 0.92), title=r"$\epsilon$-process, (16, 4, 2)")
    axes.legend(loc="upper left")


def _beside_exact(
    axes: Axes,
    data: xr.Dataset,
    label: str,
    scale: float,
    legend: str | None,
    lw: float,
    **look: Any,
) -> None:
    """Points of a run against its noise / scale, on the line of their exact values."""
    noise = data[f"noise_{label}"].values / scale
    axes.plot(noise, data[f"chi_exact-{label}"].isel(estimate=0), lw=lw, **look)
    bars(axes, noise, data[f"chi_{label}"], lw=1, fmt="o", ms=4.5, label=legend, **look)


def _draw_channels(axes: Axes, data: xr.Dataset) -> None:
    for channel in CHANNELS:
        look = thresholds.CHANNELS[channel]
        depths = depths_of(data, f"chi_{channel}")
        for k, depth in enumerate(depths):
            deepest = depth == depths[-1]
            name, alpha = (
                (f"{look.label}, $L={depth}$", 1.0) if deepest else (None, 0.25 + 0.25 * k)
            )
            _beside_exact(
                axes,
                data,
                at_depth(depth, channel),
                THRESHOLD[channel],
                name,
                lw=1.4,
                color=look.color,
                alpha=alpha,
            )
    axes.axvline(1, color=MUTED, ls=":", lw=1.2)
    axes.plot(
        [],
        [],
        "o-",
        ms=4.5,
        lw=1,
        color=MUTED,
        alpha=0.5,
        label="pale: shallower trees, from $L=5$",
    )
    axes.set(xlabel="noise / threshold of deep trees", title="noise that is drawn, (32, 8, 2)")
    axes.legend(loc="upper right")


def _draw_controls(axes: Axes, data: xr.Dataset) -> None:
    looks = {
        "mixture": ("mixture of 2 Gaussians, 128 sites", ACCENT),
        "field": ("Gaussian field, 256 sites", "#009e73"),
        "one-level": ("grammar of one level, 8 sites", CLASS),
    }
    for label, (law_name, color) in looks.items():
        chi = data[f"chi_{label}"].values
        noise = data[f"noise_{label}"].values
        at = np.where(np.isinf(noise), 6.0, noise)
        bars(axes, at, chi, lw=1, fmt="o-", ms=4.5, color=color, label=law_name)
        if f"chi_exact-{label}" in data:
            axes.plot(
                [4.5, 8], [data[f"chi_exact-{label}"][0, 0]] * 2, color=color, lw=3, alpha=0.4
            )
    axes.axhline(1, color=MUTED, lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="diffusion time $t$", title="without a hierarchy")
    axes.set_xticks([0.02, 0.1, 0.5, 2, 6], ["0.02", "0.1", "0.5", "2", r"$\infty$"])
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(loc="upper left")


def _draw_images(axes: Axes, data: xr.Dataset) -> None:
    for (name, (sites_name, sites)), color in zip(PATCHES.items(), (THEORY, CLASS), strict=True):
        curves = data[f"chi_images-{name}" if name else "chi_images"]
        aside = 0.006 if name else -0.006  # the bars would cover each other
        look = {"fmt": "o-", "ms": 5, "color": color, "label": f"{sites_name}: {sites} sites"}
        bars(axes, data.noise_images.values + aside, curves / sites, lw=1, **look)
    axes.set(
        xlabel="$t/T$",
        ylabel=r"share of the sites, $\chi/N$",
        ylim=(0, None),
        title="Fashion-MNIST",
    )
    axes.legend(loc="upper left")
