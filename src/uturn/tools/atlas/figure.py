"""The figure of an atlas: the transitions of all models on one axis, log-SNR, one row a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from uturn.studies.plotting.style import MUTED, THEORY, fonts_for, level_colors, style

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#7b3294")  # one for each data set
_MARKERS = "osD^vPX*hp"  # one for each kind of model
_TEXTS = ("title", "group", "data", "kind")  # texts from the user's file; a "$" in them is literal
_INCH = 0.56  # height of a row
_MARGIN = 0.6  # nats beyond the outermost marks


def draw_atlas(atlas: xr.Dataset) -> Any:
    """The table of `uturn.tools.atlas.numbers.table_of` as a figure; noise grows to the right.

    Each row: a marker at the half-life of the class with its 95 % interval, a bar from a quarter to three quarters of its fall,
    ticks above the bar at the half-lives of the layers, a circle where the order of the layers inverts, and a star at
    speciation. Colours distinguish data sets, markers distinguish kinds of models. At the right: this half-life and the width.
    """
    plain = {name: ("entry", [str(text).replace("$", r"\$") for text in atlas[name].values]) for name in _TEXTS}
    atlas = atlas.assign_coords(plain)
    names, groups = [str(name) for name in atlas.name.values], [str(group) for group in atlas.group.values]
    places = _places(names, groups)
    headings = {group: places[groups.index(group)] - 0.85 for group in dict.fromkeys(groups) if group}
    colors = dict(zip(dict.fromkeys(map(str, atlas.data.values)), _COLORS * len(names), strict=False))
    markers = dict(zip(dict.fromkeys(map(str, atlas.kind.values)), _MARKERS * len(names), strict=False))
    titles = [str(title) for title in atlas.title.values]
    with style(fonts_for("".join([*titles, *groups, *colors, *markers]))[0]) as plt:
        heights = (0.35 + 0.22 * max(len(colors), len(markers), 3), 0.9 + _INCH * (max(places) + 1))
        figure, (above, axes) = plt.subplots(2, 1, figsize=(12.5, sum(heights)), height_ratios=heights, layout="constrained")
        low, high = _reach(atlas)
        for k, y in enumerate(places):
            entry = atlas.isel(entry=k)
            axes.plot([low, high], [y, y], color=MUTED, lw=0.6, alpha=0.35, zorder=0)
            _draw_row(axes, entry, y, colors[str(entry.data.item())], markers[str(entry.kind.item())])
        for group, y in headings.items():
            axes.text(high, y, group, fontweight="bold", va="center", fontsize=11)
        firsts = {name: y for name, y in reversed(list(zip(names, places, strict=True)))}
        title_of = dict(zip(names, titles, strict=True))
        axes.set_yticks([firsts[name] for name in title_of], list(title_of.values()))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED, lw=1, ls=":", zorder=0)
        axes.text(0, max(places) + 0.75, "as much noise as image", color=MUTED, fontsize=9, ha="center", va="center")
        # More noise is to the right, as on the axis t/T.
        axes.set(xlim=(high, low), ylim=(max(places) + 1.0, min([*places, *headings.values()]) - 0.6))
        axes.set_xlabel("log-SNR (nats), more noise to the right")
        _legend(plt, above, colors, markers)
    return figure


def _places(names: list[str], groups: list[str]) -> list[float]:
    """Vertical positions of the entries: classifiers of one row lie close together, and headings of groups get room."""
    pairs = list(pairwise(zip(names, groups, strict=True)))
    steps = [0.6 if name == above else 1.0 if group == group_above else 1.9 for (above, group_above), (name, group) in pairs]
    return [0.0, *np.cumsum(steps).tolist()]


def _reach(atlas: xr.Dataset) -> tuple[float, float]:
    """Least and largest log-SNR of the axis."""
    falls, half_lives = (values.sel(estimate="value") for values in (atlas.fall, atlas.half_life))
    drawn = (atlas.transition, falls, atlas.speciation, atlas.inversion[:, 0], half_lives)
    values = np.concatenate([np.ravel(numbers) for numbers in drawn])
    values = values[np.isfinite(values)].clip(-15, 15)
    return (float(values.min(initial=-1.0)) - _MARGIN, float(values.max(initial=1.0)) + _MARGIN)


def _draw_row(axes: Any, entry: xr.Dataset, y: float, color: str, marker: str) -> None:
    star, low, high = entry.transition.values
    early, late = entry.fall.sel(estimate="value").values
    if np.isfinite([early, late]).all():
        axes.barh(y, late - early, left=early, height=0.36, color=color, alpha=0.25, lw=0)
    if not np.isnan([low, high]).any():
        low, high = np.clip([low, high], *sorted(axes.get_xlim()))  # log-SNR is infinite without noise and for pure noise
        axes.plot([low, high], [y, y], color=color, lw=2.4, solid_capstyle="butt")
    layers = sum(bool(str(layer)) for layer in entry.layer.values)
    for k, tick in enumerate(level_colors(layers)):
        axes.plot([entry.half_life[k, 0]], [y - 0.31], "|", color=tick, ms=8, mew=2)
    axes.plot([entry.speciation], [y], "*", color=THEORY, ms=9, mew=0)
    axes.plot([entry.inversion[0]], [y], "o", mfc="none", mec=THEORY, mew=1.5, ms=12)
    if np.isfinite(star):
        axes.plot([star], [y], marker, color=color, mec="white", mew=0.8, ms=10, zorder=5)
    label = "failed" if entry.failure.item() else "no half-life"
    if np.isfinite(star):
        label = f"{star:.1f}" + (f", width {float(entry.width[0]):.1f}" if np.isfinite(entry.width[0]) else ", no width")
    axes.annotate(label.replace("-", "−"), (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=11, color=color)


def _legend(plt: Any, axes: Any, colors: dict[str, str], markers: dict[str, str]) -> None:
    """A legend of data sets, kinds of models and marks, in separate axes."""
    from matplotlib.legend import Legend

    first, *_, last = level_colors(3)
    tick: dict[str, Any] = {"ls": "", "marker": "|", "ms": 9, "mew": 2}
    marks = [
        plt.Rectangle((0, 0), 1, 1, fc=MUTED, alpha=0.3, lw=0, label="¼ to ¾ of the fall of the class"),
        plt.Line2D([], [], color=MUTED, lw=2.4, label="95 % interval of this half-life"),
        plt.Line2D([], [], color=first, label="half-life of the first layer", **tick),
        plt.Line2D([], [], color=last, label="half-life of the last layer", **tick),
        plt.Line2D([], [], ls="", marker="o", mfc="none", mec=THEORY, mew=1.5, ms=11, label="last layer falls below the first"),
        plt.Line2D([], [], ls="", marker="*", color=THEORY, mew=0, ms=10, label="speciation, abar = 1/Λ"),
    ]
    sets = [plt.Rectangle((0, 0), 1, 1, fc=color, lw=0, label=name) for name, color in colors.items()]
    look: dict[str, Any] = {"ls": "", "color": MUTED, "ms": 9, "mec": "white"}
    kinds = [plt.Line2D([], [], marker=marker, label=name, **look) for name, marker in markers.items() if name]
    axes.set_axis_off()
    columns = ((0.0, "data", sets, 1), (0.17, "model, at half-life of the class", kinds, 1), (0.5, "marks", marks, 2))
    for x, title, handles, count in columns:
        if handles:
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (x, 1.0), "alignment": "left", "borderpad": 0}
            legend = Legend(axes, handles, [handle.get_label() for handle in handles], title=title, ncol=count, **place)
            legend.get_title().set_fontweight("bold")
            axes.add_artist(legend)
