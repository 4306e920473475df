"""Fig. 15: effective ε against diffusion time: the shape of the class curve is the same in all
channels, the threshold is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.core.registry import part_class
from uturn.measures.curves import crossing, inversion, shift
from uturn.measures.readings import grammar_means
from uturn.paper import fig5, fig7, thresholds
from uturn.paper.specs import at_depth, experiment_of, mean_field
from uturn.paper.verdicts import (
    ESTIMATE,
    Verdict,
    above,
    below,
    estimates,
    listed,
    meets,
    numbers,
    verdict,
)
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.style import (
    CLASS,
    MUTED,
    THEORY,
    Look,
    bars,
    level_bar,
    level_colors,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Effective ε gives the shape of the class curve, not the threshold"
CLAIM = "Different kinds of noise lose the class in the same way, but not at the same strength."
CAPTION = (
    "Effective ε (Eq. 63): the ε whose leaf beliefs have the mean that the channel gives."
    " Probability that a symbol is unchanged against it, by exact belief propagation (points: mean"
    " over grammars, bars: standard deviation between them), and mean field of the ε-process"
    " (lines). Fluctuations between leaves make the class harder to recover than their mean belief"
    " suggests. Dashed: belief of a leaf by itself. Last panel: displacement of every level along ε"
    " (bars: 95 % intervals)."
)
PARAMETERS = fig7.PARAMETERS
CHANNELS = {name: channel for name, channel in thresholds.CHANNELS.items() if name != "epsilon"}
MARKERS = {"gaussian": "o", "masking": "s", "uniform": "^"}
EXPECTED = {"gaussian": (0.37, 0.49), "masking": (0.25, 0.30), "uniform": (0.27, 0.36)}
"""Effective ε where half of the class is lost, exact belief propagation at L = 9, 10 of (32, 8,
2).
"""
REACH = 0.6  # largest displacement that is considered
EVEN = np.linspace(0.02, 0.98, 65)
"""Effective ε at which curves are compared: an even grid, so that dense regions of the runs do
not weigh more.
"""


def experiments(scale: Scale) -> dict[str, Experiment]:
    """Masking and replacement, in the size of Fig. 5; the Gaussian process and the ε-process are
    the runs of Figs. 5 and 7.
    """
    of = fig5.experiments(scale)[at_depth(PARAMETERS["depth"])]
    noise = {
        "masking": np.r_[
            np.linspace(0.02, 0.14, 4), np.linspace(0.17, 0.41, 13), np.linspace(0.45, 0.95, 8), 1.0
        ],
        "uniform": np.r_[
            np.linspace(0.01, 0.07, 4), np.linspace(0.09, 0.27, 13), np.linspace(0.32, 0.92, 8), 1.0
        ],
    }
    sizes: dict[str, Any] = {"items": of.items, "chunk": of.chunk}
    return {
        name: experiment_of(of.source, name, levels.round(6), *of.probes, **sizes)
        for name, levels in noise.items()
    }


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    deep = at_depth(PARAMETERS["depth"])
    return {
        **workshop.runs("fig7", fig7.experiments(workshop.scale)),
        "gaussian": workshop.run(f"fig5-{deep}", fig5.experiments(workshop.scale)[deep]),
        **workshop.runs("fig15", experiments(workshop.scale)),
    }


def findings(run: xr.Dataset, fine: np.ndarray, lines: np.ndarray) -> xr.Dataset:
    """A run beside the mean field `lines` (fine, tree_level) of the ε-process, along effective
    ε: displacement and root mean square distance from it, before and after the displacement;
    where half of the class is lost; where class and leaves swap order; largest distance of the
    leaves; their smallest gain over a leaf by itself, in standard errors over items.
    """
    v = PARAMETERS["vocab_size"]
    levels = range(PARAMETERS["depth"] + 1)
    x = run.effective_epsilon.values
    half = (1 + 1 / v) / 2

    def on_even(curves: np.ndarray) -> np.ndarray:
        """(noise, tree_level) to (tree_level, point); every channel starts at (0, 1)."""
        return np.array(
            [np.interp(EVEN, np.r_[0, x], np.r_[1, curves[:, level]]) for level in levels]
        )

    def displacements(c: np.ndarray) -> list[float]:
        return [
            shift(EVEN, curve, fine, lines[:, level], REACH)
            for level, curve in enumerate(on_even(c))
        ]

    def places(c: np.ndarray) -> list[float]:
        return [crossing(x, c[:, -1], half, first=True), inversion(x, c[:, -1], c[:, 0])]

    def distances(by: np.ndarray) -> list[float]:
        theory = [np.interp(EVEN - by[level], fine, lines[:, level]) for level in levels]
        return np.sqrt(((curves - theory) ** 2).mean(axis=1)).tolist()

    shifts = estimates(run.belief, displacements)
    (lost, swap) = estimates(run.belief, places)
    curves = on_even(run.belief.mean("item").transpose("noise", "tree_level").values)
    gain = run.belief.isel(tree_level=0) - (1 - run.effective_epsilon * (v - 1) / v)
    error = gain.std("item", ddof=1) / np.sqrt(run.sizes["item"])
    return xr.Dataset(
        {
            "shift": (("tree_level", "estimate"), shifts),
            "residual_before": ("tree_level", distances(np.zeros(len(levels)))),
            "residual_after": (
                "tree_level",
                distances(np.array([displaced.value for displaced in shifts])),
            ),
            "half_lost": ("estimate", list(lost)),
            "swap": ("estimate", list(swap)),
            "apart": np.abs(curves[0] - np.interp(EVEN, fine, lines[:, 0])).max(),
            "surplus": float((gain.mean("item") / error.clip(1e-12)).min()),
        }
    )


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    L = PARAMETERS["depth"]
    theory = mean_field(PARAMETERS)
    fine = np.linspace(0, 1, 1001)
    loaded = {name: runs[name].load() for name in ("epsilon", *CHANNELS)}
    lines = theory.curves(fine, L).marginals
    data = xr.concat([findings(loaded[name], fine, lines) for name in CHANNELS], "channel")
    data = data.assign_coords(
        channel=list(CHANNELS), estimate=ESTIMATE, tree_level=np.arange(L + 1)
    )
    data.attrs = {**PARAMETERS, "critical_noise": theory.critical_noise or np.nan}
    for name, run in loaded.items():
        mean = grammar_means(run.belief).transpose("grammar", "noise", "tree_level")
        point = f"{name}_point"
        data[f"{name}_belief"] = (("grammar", point, "tree_level"), mean.values)
        data[f"{name}_epsilon"] = (point, run.effective_epsilon.values)
        data[f"{name}_noise"] = (point, run.noise.values)
    critical = data.attrs["critical_noise"]
    names = ", ".join(channel.label for channel in CHANNELS.values())
    of_class = data.isel(tree_level=-1)
    displacements = listed(of_class["shift"])
    swaps = listed(data.swap)
    before = of_class.residual_before.values
    after = of_class.residual_after.values
    return data, [
        *(
            verdict(
                f"effective ε where half of the class is lost, {CHANNELS[name].label}",
                half,
                f"{low} to {high} (ε* = {critical:.3f})",
                meets(
                    half,
                    low,
                    high,
                    "95 % interval meets the range, exact BP at L = 9, 10, and is narrower",
                ),
            )
            for (name, (low, high)), half in zip(
                EXPECTED.items(), listed(data.half_lost), strict=True
            )
        ),
        verdict(
            f"displacement of the class curve from the ε-process: {names}",
            ", ".join(map(str, displacements)),
            "negative: the threshold is not mapped",
            below([interval.high for interval in displacements], 0, "95 % intervals below 0"),
        ),
        verdict(
            "class curve, root mean square distance from the ε-process before and after the"
            f" displacement: {names}",
            ", ".join(f"{b:.3f} to {a:.3f}" for b, a in zip(before, after, strict=True)),
            "the shape is mapped",
            below(after, before / 3, "less than a third is left"),
        ),
        verdict(
            "leaves: smallest gain over the belief of a leaf by itself, in standard errors:"
            f" {names}",
            numbers(data.surplus.values, "+.1f")
            + "; largest distance from the ε-process "
            + numbers(data.apart.values, ".2f"),
            "not negative: in a Bayesian channel context cannot lower the mean belief in the truth",
            above(data.surplus, -3.5, "above -3.5 at every noise level"),
        ),
        verdict(
            f"effective ε at which class and leaves swap order: {names}",
            ", ".join(map(str, swaps)),
            f"below ε* = {critical:.3f}",
            below(
                [swap.high for swap in swaps], critical, "in every channel, 95 % intervals below ε*"
            ),
        ),
    ]


def draw(data: xr.Dataset) -> Figure:
    fine = np.linspace(0, 1, 500)
    lines = mean_field(PARAMETERS).curves(fine, PARAMETERS["depth"]).marginals
    with style() as plt:
        figure, ((first, second), (third, fourth)) = plt.subplots(
            2, 2, figsize=(11.5, 8.4), layout="constrained"
        )
        _draw_map(first, data)
        _draw_levels(plt, second, data)
        _draw_class_and_leaves(third, data, fine, lines)
        for axes in (second, third):
            axes.axvline(data.attrs["critical_noise"], color=MUTED, lw=1, ls=":")
            axes.set(
                xlabel="effective ε", ylabel="P(symbol unchanged)", xlim=(0, 1), ylim=(0, 1.03)
            )
        _draw_displacements(fourth, data)
    return figure


def _draw_map(axes: Axes, data: xr.Dataset) -> None:
    share = np.linspace(0, 1, 101)[:-1]
    for name, channel in CHANNELS.items():
        noise = -np.log1p(-share) / 2 if name == "gaussian" else share
        axes.plot(
            share,
            part_class("corruption", name)().effective_epsilon(noise, PARAMETERS["vocab_size"]),
            color=channel.color,
        )
        at = float(data.half_lost.sel(channel=name, estimate="value"))
        x = float(np.interp(at, data[f"{name}_epsilon"], data[f"{name}_noise"]))
        x = -np.expm1(-2 * x) if name == "gaussian" else x
        axes.plot(x, at, MARKERS[name], ms=8, color=channel.color, label=channel.label)
    axes.plot([], [], " ", label="markers: half of\nthe class is lost")
    axes.set(
        xlabel=r"masked, replaced fraction; Gaussian: $1-\bar\alpha$",
        ylabel="effective ε (Eq. 63)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="lower right")
    above = axes.secondary_xaxis("top", functions=(lambda x: x, lambda x: x))
    times = np.array([0.05, 0.1, 0.2, 0.5, 1])
    above.set_xticks(-np.expm1(-2 * times), [f"{t:g}" for t in times])
    above.set_xlabel("Gaussian time $t$", color=CLASS)
    axes.set_title("effective ε of the channels")


def _draw_levels(plt: Any, axes: Axes, data: xr.Dataset) -> None:
    L = PARAMETERS["depth"]
    mean = data.gaussian_belief.mean("grammar")
    for level, color in enumerate(level_colors(L + 1)):
        width = 2 if level in (0, L) else 0.9
        axes.plot(
            data.gaussian_epsilon, mean.isel(tree_level=level), "-o", ms=3, color=color, lw=width
        )
    level_bar(plt, axes, L + 1, "tree level (0 = leaves)")
    axes.set(title="Gaussian, all levels")


def _draw_class_and_leaves(
    axes: Axes, data: xr.Dataset, fine: np.ndarray, lines: np.ndarray
) -> None:
    L = PARAMETERS["depth"]
    for name, channel in CHANNELS.items():
        curves = data[f"{name}_belief"]
        for level, fill in ((0, "white"), (L, channel.color)):
            curve = curves.isel(tree_level=level)
            look: Look = {
                "fmt": MARKERS[name],
                "ms": 4.5,
                "mfc": fill,
                "color": channel.color,
                "lw": 0.9,
                "zorder": 3 + level,
            }
            axes.errorbar(
                data[f"{name}_epsilon"], curve.mean("grammar"), curve.std("grammar", ddof=1), **look
            )
    axes.plot(fine, lines[:, [L, 0]], color=THEORY)
    axes.plot(fine, 1 - fine * (1 - 1 / PARAMETERS["vocab_size"]), color=MUTED, lw=1.2, ls="--")
    axes.text(0.76, 0.9, "ε-process,\nmean field", color=THEORY, va="center")
    axes.text(0.545, 0.3, "a leaf\nby itself", color=MUTED, va="center")
    axes.set(title="class (filled) and leaves (open)")


def _draw_displacements(axes: Axes, data: xr.Dataset) -> None:
    L = PARAMETERS["depth"]
    for offset, (name, channel) in zip((-0.15, 0, 0.15), CHANNELS.items(), strict=True):
        look: Look = {
            "fmt": MARKERS[name],
            "ms": 6,
            "color": channel.color,
            "capsize": 2,
            "label": channel.label,
        }
        bars(axes, data.tree_level + offset, data["shift"].sel(channel=name), **look)
    axes.axhline(0, color=THEORY, lw=1.4)
    axes.text(L + 0.3, 0.008, "ε-process", ha="right")
    axes.set(
        xlabel="tree level (0 = leaves, L = class)",
        ylabel="displacement along effective ε",
        title="displacement of every level",
    )
    axes.set_xticks(range(L + 1))
    axes.legend(loc="lower left")
