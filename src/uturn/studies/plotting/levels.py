"""Plots of the curves of all tree levels, with their displacement from a theory, and of all layers
of a network.

Datasets of tree levels have belief (noise, tree_level, grammar), theory (theory_noise, tree_level),
shift (shifted_level, estimate), and the attributes critical_noise and tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.studies.plotting.style import (
    ACCENT,
    MUTED,
    THEORY,
    bars,
    level_bar,
    level_colors,
    mark_noise,
    row_interval,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType


def draw_levels(data: xr.Dataset, ylabel: str, theory_name: str) -> Figure:
    """Left: curves of all levels, exact and in theory. Right: shift in ε of every level with its
    interval.
    """
    figure: Figure
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 4.6), width_ratios=[1.75, 1], layout="constrained"
        )
        depth = data.sizes["tree_level"] - 1
        colors = level_colors(depth + 1)
        for level in range(depth + 1):
            draw_level(left, data, level, colors[level], bold=level in (0, depth))
        if "mean_field" in data:
            shown = (0, depth // 2, depth - 1)
            look = {"lw": 1.3, "ls": (0, (4, 2))}
            for level in shown:
                line = data.mean_field.isel(tree_level=level)
                left.plot(data.theory_noise, line, color=colors[level], zorder=1, **look)
            name = "mean field,\nlevels {}, {}, {}".format(*shown)
            left.plot([], [], color=MUTED, label=name, **look)
        critical = data.attrs["critical_noise"]
        mark_noise(left, critical, rf"$\epsilon^*={critical:.3f}$", aside=0.012, height=0.98)
        left.plot([], [], "o", color=MUTED, ms=4.5, label="exact (BP)")
        left.plot([], [], color=MUTED, lw=1.4, label=theory_name)
        left.legend(
            loc="upper left", bbox_to_anchor=(critical + 0.005, 0.92), fontsize=9, handlelength=1.5
        )
        left.set(xlabel=r"noise $\epsilon$", ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.03))
        left.set_title("all levels")
        level_bar(plt, left, depth + 1, "tree level (0 = leaves)")
        draw_shifts(right, data, colors)
    return figure


def draw_level(axes: Axes, data: xr.Dataset, level: int, color: ColorType, bold: bool) -> None:
    """One level: points with the standard deviation between grammars, and the theory."""
    curve = data.belief.isel(tree_level=level)
    axes.plot(data.theory_noise, data.theory.isel(tree_level=level), color=color, lw=1.4, zorder=2)
    look: dict[str, Any] = {"fmt": ".", "ms": 4}
    if bold:
        look = {"fmt": "o", "ms": 4.2}
    look |= {"lw": 0.9, "color": color, "zorder": 3}
    axes.errorbar(data.noise, curve.mean("grammar"), curve.std("grammar"), **look)


def draw_shifts(axes: Axes, data: xr.Dataset, colors: Sequence[ColorType]) -> None:
    """The shift in ε of each level with its interval, and the tolerance of the verdict as a
    band.
    """
    levels = data.shifted_level.values
    tolerance = data.attrs["tolerance"]
    bounds = data["shift"].transpose("shifted_level", "estimate").values
    axes.axvspan(-tolerance, tolerance, color=ACCENT, alpha=0.1, lw=0)
    axes.axvline(0, color=THEORY, lw=1)
    for level, interval in zip(levels, bounds, strict=True):
        row_interval(axes, level, interval, colors[level], ms=6)
    ends = np.abs(bounds[:, 1:])
    reach = 1.15 * max(1.6 * tolerance, float(ends.max()))
    axes.set(
        xlim=(-reach, reach),
        yticks=levels,
        xlabel=r"shift in $\epsilon$ (exact minus theory)",
        ylabel="tree level",
    )
    low, high = (f"{tick:+g}".replace("-", "−") for tick in (-tolerance, tolerance))
    axes.set_xticks([-tolerance, 0, tolerance], [low, "0", high])
    axes.set_title("displacement, 95 % interval")
    axes.set_ylim(min(levels) - 0.6, max(levels) + 0.6)


def draw_similarities(
    axes: Axes, x: ArrayLike, bounds: np.ndarray, labels: Sequence[str]
) -> list[ColorType]:
    """Draw the layers of a network, `bounds` (x, layer, 3), the first and the last with
    intervals; returns the colours.
    """
    colors = level_colors(len(labels))
    for k, (color, label) in enumerate(zip(colors, labels, strict=True)):
        is_edge = k in (0, len(labels) - 1)
        look: dict[str, Any] = {"lw": 1.2, "zorder": 2}
        if is_edge:
            look = {"lw": 2.4, "zorder": 3}
        axes.plot(x, bounds[:, k, 0], color=color, label=label, **look)
        if is_edge:
            bars(axes, x, bounds[:, k], fmt="o", ms=3.5, lw=1, color=color, zorder=4)
    return colors
