"""Fig. 11: the upward messages of all nodes and symbols at the bottom of the tree, with the
mean-field values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys
from uturn.corruption import EpsilonBelief
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper.fig7 import TOLERANCE
from uturn.paper.pictures import by_level, node_coordinates, nodes
from uturn.paper.specs import PAPER, mean_field
from uturn.paper.verdicts import Verdict, equal, mean_estimate, numbers, vanishes, verdict, within
from uturn.paper.workshop import Workshop
from uturn.studies.plotting.style import MUTED, THEORY, level_colors, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Every message at the bottom of the tree"
CLAIM = "Single nodes differ in how well they are known, but their average follows the theory."
CAPTION = (
    "Upward messages of one string for every node and every symbol of the five lowest levels, in a"
    " grammar of depth 10 at one ε. Coloured: the true symbol of each node; grey: all others."
    " Lines: mean-field values for the true and for a wrong symbol; triangles: mean over the nodes."
    " Rules make the messages of nodes differ, their mean follows the theory."
)
DEPTH = 10
LEVELS = 5
NOISE = 0.4


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    grammars, strings = (24, 4) if workshop.scale == "smoke" else (96, 16)
    return {
        "messages": workshop.keep(
            "fig11-messages", upward_messages, grammars=grammars, strings=strings
        )
    }


def upward_messages(grammars: int, strings: int) -> xr.Dataset:
    """The messages of all nodes for the first string of the first grammar, and means over nodes
    for every string.
    """
    means = []
    first: dict[str, np.ndarray] = {}
    for seed in keys(0, Purpose.PICTURE, np.arange(grammars)).tolist():
        rhm = RandomHierarchyModel(**PAPER, depth=DEPTH, seed=seed)
        draw = rhm.sample(strings, keys(seed, Purpose.PICTURE, np.arange(strings)))
        noisy = EpsilonBelief().corrupt(draw.leaves, NOISE, vocab_size=rhm.vocab_size)
        up = infer(rhm, EpsilonBelief().log_evidence(noisy, np.float64), outputs=("upward",)).upward
        right = [
            np.take_along_axis(up[k], draw.latents[k][..., None], 2).mean(axis=(1, 2))
            for k in range(LEVELS)
        ]
        means.append(np.stack(right, axis=-1))
        if not first:
            first["upward"] = nodes({k: up[k] for k in range(LEVELS)})
            first["true_symbol"] = nodes({k: draw.latents[k] for k in range(LEVELS)})
    return xr.Dataset(
        {
            "upward": (("node", "symbol"), first["upward"]),
            "true_symbol": ("node", first["true_symbol"]),
            "mean_belief": (("grammar", "string", "level"), np.array(means)),
        },
        coords={**node_coordinates(rhm, LEVELS), "level": np.arange(LEVELS)},
        attrs={"noise": NOISE, "depth": DEPTH, **PAPER},
    )


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["messages"].load()
    noise = data.attrs["noise"]
    depth = data.attrs["depth"]
    levels = data.sizes["level"]
    v = PAPER["vocab_size"]
    theory = mean_field(PAPER)
    step = 1e-5
    curves = theory.curves([noise - step, noise, noise + step], depth).upward
    less, lines, more = curves[:, :levels]
    slope = (less - more) / (2 * step)  # -dp/dε: a curve displaced to larger ε lies higher
    data = data.assign(mean_field=("level", lines))
    messages = by_level(data.upward)
    exact = np.where(
        np.arange(v) == by_level(data.true_symbol)[0][:, None], 1 - noise + noise / v, noise / v
    )
    error = float(np.abs(messages[0] - exact).max())
    total = float(abs(data.upward.sum("symbol") - 1).max())
    # The leaves do not fluctuate.
    moved = (data.mean_belief - lines) / np.where(np.arange(levels) > 0, slope, np.nan)
    above_leaves = range(1, levels)
    shifts = [mean_estimate(moved.mean("string").values[:, level]) for level in above_leaves]
    spread = moved.std(("grammar", "string"), ddof=1).values
    means = np.array([_true(data, level).mean() for level in range(levels)])
    drawn = (means - lines) / slope
    nearest = [int(np.argmin(abs(curves[1] - means[level]))) for level in above_leaves]
    return data, [
        vanishes(
            "messages of the leaves against Eq. 21; sums over symbols against 1: largest"
            " difference",
            [error, total],
        ),
        verdict(
            f"mean message at the true symbol, {data.sizes['grammar']} grammars, as a shift in ε,"
            f" levels 1 .. {levels - 1}",
            numbers(shifts, "+.4f"),
            "0",
            within([s.value for s in shifts], TOLERANCE, f"all within {TOLERANCE}"),
        ),
        verdict(
            "the string of the picture, mean over nodes, as a shift in ε, levels 1 .."
            f" {levels - 1}",
            ", ".join(f"{drawn[level]:+.4f}" for level in above_leaves),
            "0; standard deviation between strings "
            + ", ".join(f"{spread[level]:.4f}" for level in above_leaves),
            within(
                drawn[1:],
                TOLERANCE + 3.5 * spread[1:],
                f"within {TOLERANCE} + 3.5 standard deviations",
            ),
            equal(nearest, list(above_leaves), "nearest to the mean field of its own level"),
        ),
    ]


def _true(data: xr.Dataset, level: int) -> np.ndarray:
    """Messages of a level at the true symbols, (nodes,)."""
    symbols = by_level(data.true_symbol)[level]
    return by_level(data.upward)[level][np.arange(len(symbols)), symbols]


def draw(data: xr.Dataset) -> Figure:
    levels = data.sizes["level"]
    v = data.sizes["symbol"]
    colors = level_colors(data.attrs["depth"] + 1)  # as in the figures of all levels
    with style() as plt:
        figure, panels = plt.subplots(
            1, levels, figsize=(14, 4.4), sharey=True, layout="constrained"
        )
        for level, axes in enumerate(panels):
            right = _true(data, level)
            messages = by_level(data.upward)[level]
            wrong = np.arange(v) != by_level(data.true_symbol)[level][:, None]
            place = np.broadcast_to(np.arange(1, len(right) + 1)[:, None], messages.shape)
            size, true_size = (2, 2.4) if len(right) > 300 else (3, 3.6)
            axes.plot(
                place[wrong],
                messages[wrong],
                ".",
                color="#b5b5b5",
                ms=size,
                mew=0,
                rasterized=True,
                zorder=1,
            )
            axes.plot(
                place[:, 0],
                right,
                "o",
                color=colors[level],
                ms=true_size,
                mew=0,
                alpha=0.8,
                rasterized=True,
                zorder=2,
            )
            p = float(data.mean_field[level])
            for value in (p, (1 - p) / (v - 1)):
                axes.axhline(value, color=THEORY, lw=1.5, zorder=3)
            at_the_edge = {"transform": axes.get_yaxis_transform(), "clip_on": False}
            axes.plot([1.02], [right.mean()], "<", color=colors[level], ms=9, mew=0, **at_the_edge)
            axes.set(xlim=(0, len(right) + 1), ylim=(-0.01, 1.02), xlabel="node")
            axes.set_xticks([1, len(right) // 2])
            axes.set_title(f"level {level}" + (", leaves" if level == 0 else ""))
        panels[0].set_ylabel("upward message")
        panels[0].plot([], [], "o", color=colors[0], ms=5, label="true symbol")
        panels[0].plot([], [], ".", color="#b5b5b5", ms=8, label="other symbols")
        panels[0].plot([], [], color=THEORY, lw=1.5, label="mean field")
        panels[0].plot([], [], "<", color=MUTED, ms=7, mew=0, label="mean over nodes")
        panels[0].legend(loc="center", bbox_to_anchor=(0.5, 0.34))
        figure.suptitle(
            rf"$v={v}$, $m={data.attrs['multiplicity']}$, $s={data.attrs['branching']}$, $L={data.attrs['depth']}$, "
            rf"$\epsilon={data.attrs['noise']:g}$", size=12,
        )  # fmt: skip
    return figure
