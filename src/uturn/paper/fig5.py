"""Fig. 5: probability of the correct symbol per level against diffusion time, Gaussian process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.measures.curves import inversion, transition
from uturn.measures.readings import grammar_means
from uturn.measures.replicates import estimate
from uturn.paper.specs import PAPER, at_depth, depths_of, experiment_of, mean_field, rhm
from uturn.paper.verdicts import ESTIMATE, Verdict, above, increasing, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.style import (
    CLASS,
    MUTED,
    level_bar,
    level_colors,
    mark_noise,
    style,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Reconstruction of every level in Gaussian diffusion"
CLAIM = (
    "The class of a string is kept for long and lost abruptly at one diffusion time, while its"
    " leaves fade from the start."
)
CAPTION = (
    "Left: probability that a latent of each tree level keeps its symbol when Gaussian diffusion is"
    " reversed from time t, by exact belief propagation (mean over grammars; shading: standard"
    " deviation between grammars, for leaves and class). Right: the curve of the class sharpens as"
    " the tree grows deeper."
)
# Of exact belief propagation at (32, 8, 2); the ensemble spread is a few percent.
REFERENCE_TIME = 0.067
TOLERANCE = 0.007
NOISE = np.r_[
    np.geomspace(0.02, 0.045, 6)[:-1], np.linspace(0.045, 0.1, 12), np.geomspace(0.1, 1.5, 12)[1:]
].round(6)


def experiments(scale: Scale) -> dict[str, Experiment]:
    grammars, items, depths = (6, 96, (4, 7, 10)) if scale == "smoke" else (24, 240, (4, 6, 8, 10))
    sources = {at_depth(L): rhm(**PAPER, depth=L, grammars=grammars) for L in depths}
    sizes: dict[str, Any] = {"items": items, "chunk": 24}
    return {
        label: experiment_of(source, "gaussian", NOISE, "tree_levels", **sizes)
        for label, source in sources.items()
    }


def tree() -> Experiment:
    """Four strings of 64 leaves, whose nodes are kept one by one."""
    return experiment_of(
        rhm(**PAPER, depth=6),
        "gaussian",
        NOISE,
        "tree_levels",
        "tree_nodes",
        items=4,
        trajectories=16,
    )


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    workshop.run("fig5-tree", tree())  # for the page, which shows its nodes
    return workshop.runs("fig5", experiments(workshop.scale))


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    depths = depths_of(runs)
    beliefs = {depth: runs[at_depth(depth)].belief.load() for depth in depths}
    L = depths[-1]
    deepest = runs[at_depth(depths[-1])].load()
    time = deepest.noise.values
    chance = 1 / PAPER["vocab_size"]

    def fall(curves: np.ndarray) -> Any:
        return transition(time, curves[:, -1], 1.0, chance)

    location = estimate(deepest.belief, lambda c: fall(c).location)
    sharpness = [estimate(belief, lambda c: fall(c).sharpness) for belief in beliefs.values()]
    swap = estimate(deepest.belief, lambda c: inversion(time, c[:, -1], c[:, 0]))
    # Without a swap there is nothing to interpolate at.
    place = np.nan_to_num(swap.value, nan=float(time[0]))
    before, after = (deepest.belief.mean("item").interp(noise=place * f).values for f in (0.7, 1.4))
    epsilon = float(np.interp(location.value, time, deepest.effective_epsilon.values))
    critical = mean_field(PAPER).critical_noise or np.nan
    classes = [grammar_means(belief.isel(tree_level=-1, drop=True)) for belief in beliefs.values()]
    data = xr.Dataset(
        {
            "belief": grammar_means(deepest.belief),
            "class_belief": xr.concat(classes, dim="depth"),
            "sharpness": (("depth", "estimate"), sharpness),
            "transition": ("estimate", list(location)),
        },
        coords={"depth": depths, "estimate": ESTIMATE},
        attrs={**PAPER, "inversion_time": swap.value, "effective_epsilon": epsilon},
    )
    return data, [
        verdict(
            f"t*: half of the class is lost, L = {L}",
            location,
            f"about {REFERENCE_TIME} (exact BP; effective ε there far below ε* = {critical:.3f})",
            within(location.value - REFERENCE_TIME, TOLERANCE),
        ),
        verdict(
            "effective ε at t* (Eq. 63)",
            f"{epsilon:.3f}",
            f"about 0.43, below ε* = {critical:.3f}",
            within(
                epsilon - 0.43,
                0.06,
                "within 0.06: Eq. 63 maps the shape of the curves, not the threshold",
            ),
        ),
        verdict(
            f"sharpness t*/width of the class curve, L = {', '.join(map(str, depths))}",
            ", ".join(str(s) for s in sharpness),
            "grows with depth",
            increasing(sharpness),
        ),
        verdict(
            "t at which class and leaves swap order",
            swap,
            "near t*",
            within(swap.value / location.value - 1, 0.2, "within 20 % of t*"),
            above(
                [before[-1] - before[0], after[0] - after[-1]],
                0,
                "class above leaves before, below after",
            ),
        ),
    ]


def draw(data: xr.Dataset) -> Figure:
    time = data.noise.values
    chance = 1 / data.attrs["vocab_size"]
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4.4), width_ratios=[1.25, 1], sharey=True, layout="constrained"
        )
        _draw_levels(left, data)
        level_bar(plt, left, data.sizes["tree_level"], "tree level (0 = leaves)")
        _draw_depths(right, data)
        for axes in (left, right):
            axes.set(xscale="log", xlabel="diffusion time $t$", xlim=(time[0], time[-1]))
            axes.axhline(chance, color=MUTED, lw=0.8, ls="--")
            ticks(axes, [0.02, 0.05, 0.1, 0.2, 0.5, 1])
        right.text(time[0] * 1.05, chance + 0.01, "chance", color=MUTED, fontsize=9)
    return figure


def _draw_levels(axes: Axes, data: xr.Dataset) -> None:
    L = data.sizes["tree_level"] - 1
    star = float(data.transition[0])
    for level, color in enumerate(level_colors(L + 1)):
        curve = data.belief.isel(tree_level=level)
        edge = level in (0, L)
        mean = curve.mean("grammar")
        spread = curve.std("grammar")
        axes.plot(data.noise, mean, color=color, lw=2.4 if edge else 1.2, zorder=3)
        if edge:
            axes.fill_between(
                data.noise, mean - spread, mean + spread, color=color, alpha=0.18, lw=0
            )
    mark_noise(axes, star, f"$t^*={star:.3f}$", aside=0.04 * star)
    axes.set(ylabel="P(symbol unchanged)", ylim=(0, 1.03), title=f"all levels, $L={L}$")


def _draw_depths(axes: Axes, data: xr.Dataset) -> None:
    for k, depth in enumerate(data.depth.values):
        shade = 0.35 + 0.65 * k / max(data.sizes["depth"] - 1, 1)
        curve = data.class_belief.sel(depth=depth)
        mean = curve.mean("grammar")
        spread = curve.std("grammar")
        axes.plot(
            data.noise,
            mean,
            color=CLASS,
            alpha=shade,
            label=f"$L={depth}$",
            marker="os^D"[k % 4],
            ms=3.5,
        )
        axes.fill_between(data.noise, mean - spread, mean + spread, color=CLASS, alpha=0.09, lw=0)
    axes.set(title="class, growing depth")
    axes.legend()
