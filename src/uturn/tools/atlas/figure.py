"""The figure of an atlas: the transitions of all models on one axis, log-SNR, one row a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.studies.plotting.style import DISTINCT, MUTED, THEORY, fonts_for, level_colors, style

_MARGIN = 0.6  # nats beyond the outermost marks


def draw_atlas(table: xr.Dataset) -> Any:
    """The table of `uturn.tools.atlas.numbers.table_of` as a figure; noise grows to the right, as
    on the axis t/T.

    Each row: a marker at t* with its 95 % interval, a bar from a quarter to three quarters of the
    fall of the class, ticks above it at the half-lives of the first and the last layer, a circle
    where their order inverts. Each data set has a colour.
    """
    # A "$" of the user's file begins no formula.
    titles = [title.replace("$", r"\$") for title in table.title.values.tolist()]
    names = dict.fromkeys(table.data.values.tolist())
    colors = {name: DISTINCT[k % len(DISTINCT)] for k, name in enumerate(names)}
    marks = [
        table[name].sel(estimate="value").values for name in table.data_vars if name != "width"
    ]
    places = np.concatenate([*marks, table.transition.values.ravel()])
    places = places[np.isfinite(places)].clip(-15, 15)
    low = places.min(initial=-1.0) - _MARGIN
    high = places.max(initial=1.0) + _MARGIN
    with style(fonts_for("".join(titles))[0]) as plt:
        figure, axes = plt.subplots(figsize=(12.5, 1.8 + 0.56 * len(titles)), layout="constrained")
        for row in range(len(titles)):
            axes.axhline(row, color=MUTED, lw=0.6, alpha=0.35, zorder=0)
            entry = table.isel(entry=row)
            _draw_row(axes, entry, row, colors[entry.data.item()], (low, high))
        axes.set_yticks(range(len(titles)), titles)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED, lw=1, ls=":", zorder=0)
        axes.text(
            0.03,
            len(titles) - 0.3,
            "as much noise as image",
            color=MUTED,
            fontsize=9,
            ha="right",
            va="center",
        )
        axes.set(
            xlim=(high, low),
            ylim=(len(titles), -0.6),
            xlabel="log-SNR (nats), more noise to the right",
        )
        figure.legend(handles=_marks(plt), loc="outside upper center", ncols=3)
    return figure


def _draw_row(
    axes: Any, entry: xr.Dataset, row: int, color: str, reach: tuple[float, float]
) -> None:
    value = {str(name): float(entry[name].sel(estimate="value")) for name in entry.data_vars}
    ends = entry.transition.sel(estimate=["low", "high"]).values
    axes.plot(
        [value["quarter"], value["three_quarters"]],
        [row, row],
        color=color,
        alpha=0.25,
        lw=12,
        solid_capstyle="butt",
    )
    # Infinite without noise.
    axes.plot(ends.clip(*reach), [row, row], color=color, lw=2.4, solid_capstyle="butt")
    for layer, tick in zip(("first_layer", "last_layer"), level_colors(2), strict=True):
        axes.plot([value[layer]], [row - 0.31], "|", color=tick, ms=8, mew=2)
    axes.plot([value["inversion"]], [row], "o", mfc="none", mec=THEORY, mew=1.5, ms=12)
    axes.plot([value["transition"]], [row], "o", color=color, mec="white", mew=0.8, ms=10, zorder=5)
    label = "failed" if entry.is_failed.item() else "no $t^*$"
    if np.isfinite(value["transition"]):
        width = f", width {value['width']:.1f}" if np.isfinite(value["width"]) else ", no width"
        label = f"$t^*$ {value['transition']:.1f}{width}".replace("-", "−")
    axes.annotate(
        label,
        (1.01, row),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=11,
        color=color,
    )


def _marks(plt: Any) -> list[Any]:
    """The marks of the legend."""
    first, last = level_colors(2)
    tick: dict[str, Any] = {"ls": "", "marker": "|", "ms": 9, "mew": 2}
    return [
        plt.Line2D(
            [], [], ls="", marker="o", color=MUTED, ms=9, label="half of the class lost, t*"
        ),
        plt.Line2D([], [], color=MUTED, lw=2.4, label="its 95 % interval"),
        plt.Line2D([], [], color=MUTED, lw=9, alpha=0.3, label="¼ to ¾ of the fall of the class"),
        plt.Line2D([], [], color=first, label="half-life of the first layer", **tick),
        plt.Line2D([], [], color=last, label="half-life of the last layer", **tick),
        plt.Line2D(
            [],
            [],
            ls="",
            marker="o",
            mfc="none",
            mec=THEORY,
            mew=1.5,
            ms=11,
            label="last layer falls below the first",
        ),
    ]
