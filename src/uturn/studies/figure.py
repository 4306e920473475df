"""The figure of one or several studies, a panel for each of their charts, and the grid of their
images.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.registry import stored_class
from uturn.measures.estimates import with_interval
from uturn.studies.axes import axis_words
from uturn.studies.charts import CRITICAL, SWAP, Panel, charts_of, overlaid
from uturn.studies.headline import PEAK, STAR, Headline
from uturn.studies.plotting import curves as plots
from uturn.studies.plotting.curves import (
    along,
    brief,
    drawable,
    evenly_spaced,
    lying_on,
    no_mathematics,
)
from uturn.studies.plotting.style import CLASS, DISTINCT, MUTED, THEORY, level_colors, style, ticks
from uturn.studies.runs import label, stored_spec
from uturn.studies.tables import remarks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

_MOST_NAMED = 8
"""Curves named in a legend."""
_ROWS = 8
"""Largest number of rows of a grid."""
_OF_THEORY: dict[str, Any] = {"lw": 1.3, "ls": (0, (4, 2)), "zorder": 2}
_TEXTS = ("level", "model", "probe", "group", "reading", "series", "words", "unit")
"""Coordinates of a study whose texts are drawn."""


def draw_study(study: xr.Dataset, groups: Sequence[str] = ()) -> Figure | None:
    """All curves of a study with their intervals, a panel for each chart (`groups` first); None
    if nothing has a curve.
    """
    study, families = drawable(study, (*_TEXTS, "unit_of_distance"))
    lines = [f"{study.attrs['description']}; bands: 95 % intervals", *remarks(study)]
    return drawn(list(charts_of(study, groups)), lines, families)


def draw_studies(
    studies: Mapping[str, xr.Dataset], marks: Sequence[Headline] = ()
) -> Figure | None:
    """Several studies in one figure: a panel for each reading, a colour for each study; None if
    nothing has a curve.
    """
    return drawn([chart for chart in overlaid(studies, marks) if chart.drawn])


def drawn(
    charts: Sequence[Panel], lines: Sequence[str] = (), families: Sequence[str] = ()
) -> Figure | None:
    """A figure with a panel for each chart, and lines of text below; None without charts.
    `families`: further fonts.
    """
    if not charts:
        return None
    columns = min(len(charts), 3)
    if len(charts) == 4:
        columns = 2
    rows = math.ceil(len(charts) / columns)
    with style(families) as plt:
        figure: Figure = plt.figure(figsize=(5.6 * columns, 4.5 * rows), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr,call-arg]
        panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for panel, chart in zip(panels, charts, strict=False):
            draw_chart(panel, chart)
        for panel in panels[len(charts) :]:
            panel.set_axis_off()
        text = _wrapped(map(no_mathematics, lines), int(13.93 * figure.get_figwidth()))
        figure.text(0.005, -0.01, text, color=MUTED, fontsize=9, va="top")
    return figure


def _wrapped(lines: Iterable[str], width: int) -> str:
    """Lines of text of limited width."""
    wrapped: list[str] = []
    for line in lines:
        wrapped += textwrap.wrap(line, width)
    return "\n".join(wrapped)


# --- a panel --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Lines:
    """The lines of a chart at the places where they can be drawn."""

    chart: Panel
    is_finite: np.ndarray
    """Which x are finite: an infinite noise cannot be drawn."""
    x: np.ndarray
    curves: np.ndarray
    """(line, x, estimate), clipped: ends of intervals may be infinite."""
    places: np.ndarray
    """(line, estimate), NaN where a line has none."""

    @classmethod
    def of(cls, chart: Panel) -> _Lines:
        x = chart.curves[chart.curves.dims[1]].values
        is_finite = np.isfinite(x)
        curves = chart.curves.values[:, is_finite]
        sizes = np.abs(curves[..., 0])
        highest = np.max(sizes, where=np.isfinite(sizes), initial=1.0)
        curves = np.clip(curves, -10 * highest, 10 * highest)
        places = chart.places
        if places is None:
            places = np.full((len(curves), 3), np.nan)
        return cls(chart, is_finite, x[is_finite], curves, places)

    @cached_property
    def has_few(self) -> bool:
        return len(self.curves) <= _MOST_NAMED

    @cached_property
    def named(self) -> list[int]:
        """The lines that are named in the legend."""
        if self.has_few:
            return evenly_spaced(len(self.curves), _MOST_NAMED)
        return evenly_spaced(len(self.curves), 4)

    @cached_property
    def colors(self) -> list[ColorType]:
        count = len(self.curves)
        if self.chart.ordered or count > len(DISTINCT):
            return level_colors(count)
        return list(DISTINCT)

    @cached_property
    def below(self) -> list[int]:
        """Number of earlier lines that each line lies on."""
        return lying_on(self.curves[..., 0])


def draw_chart(axis: Axes, chart: Panel) -> None:
    """The curves with their bands, ticks above at the places on them, and the marks; marks of
    other charts have no band.
    """
    lines = _Lines.of(chart)
    for k in range(len(lines.curves)):
        _draw_line(axis, lines, k)
    _mark(axis, chart, lines.places)
    ylabel = chart.unit
    if chart.places is not None and not chart.joined:
        ylabel = chart.words or chart.unit or "share of U-turns"
    axis.set_ylabel(_short(no_mathematics(ylabel), 40))
    x_axis = chart.curves[chart.curves.dims[1]]
    axis.set_xlabel(no_mathematics(label(x_axis.attrs.get("long_name", x_axis.name))))
    axis.set_title(_short(brief(chart.title, 92), 48), pad=22)
    if x_axis.name == "noise":
        plots.draw_noise_axis(axis, lines.x)
    elif x_axis.name == "distance":
        axis.set_xscale("log")
        distances = np.geomspace(lines.x[0], lines.x[-1], 6)
        ticks(axis, np.unique(distances.round()))
    _limit(axis, lines.curves, chart.level)
    if axis.get_legend_handles_labels()[0]:
        title = None
        if not lines.has_few:
            title = f"{len(lines.curves)} curves, first to last"
        plots.draw_legend(axis, "best", title=title, title_fontsize=8.5)


def _short(text: str, width: int) -> str:
    """A text in at most two lines."""
    return "\n".join(textwrap.wrap(text, width)[:2])


def _draw_line(axis: Axes, lines: _Lines, k: int) -> None:
    """A curve with its band, its mean field, and a tick above at its place."""
    chart = lines.chart
    curve = lines.curves[k]
    color = lines.colors[k]
    is_named = k in lines.named
    is_edge = chart.joined or k in (0, len(lines.curves) - 1)
    is_drawn = np.isfinite(curve[:, 0]) | (not chart.joined)
    x, band, markers = along(lines.x[is_drawn], curve[is_drawn])
    look: dict[str, Any] = {"lw": 0.9, "zorder": 3}
    if lines.has_few:
        look["lw"] = 1.3
    alpha = 0.07 * is_named
    if is_edge:
        look = {"lw": 2.2, "zorder": 4, **markers}
        alpha = 0.2
    if lines.below[k]:  # leaves the curves below visible
        look["dashes"] = (4, 2) if lines.below[k] == 1 else (1.5, 2)
    name = str(chart.curves.line.values[k])
    if name and is_named:
        look["label"] = brief(name, 46)
    plots.draw_curve(axis, x, band, color, alpha, **look)
    if chart.hollow is not None:
        hollow = np.where(chart.hollow[k][lines.is_finite], curve[:, 0], np.nan)
        axis.plot(lines.x, hollow, "o", ms=4, color=color, mfc="white", zorder=5)
    if not is_named:
        return
    if chart.theory is not None and np.isfinite(chart.theory[k]).any():
        x, band, _ = along(lines.x, chart.theory.values[k][lines.is_finite, None])
        axis.plot(x, band[:, 0], color=color, **_OF_THEORY)
    place = lines.places[k, :1]
    if np.isfinite(place[0]):
        above = axis.get_xaxis_transform()
        axis.plot(place, [0.985], "|", transform=above, color=color, ms=10, mew=2)


def _mark(axis: Axes, chart: Panel, places: np.ndarray) -> None:
    """The marks of a chart and its horizontal line, with their numbers under the title."""
    has_theory = chart.theory is not None and bool(np.isfinite(chart.theory).any())
    notes = []
    for mark in chart.marks:
        if mark.label != CRITICAL:
            notes += _mark_place(axis, chart, mark)
        elif has_theory:
            look: dict[str, Any] = {"color": THEORY, "lw": 1, "ls": "-.", "zorder": 1}
            axis.axvline(mark.place[0, 0], label="ε* of the mean field", **look)
    if not notes and len(places) == 1 and np.isfinite(places[0, 0]):
        notes = [f"half-life {with_interval(places[0])}"]
    if chart.hollow is not None:
        notes = ["0 for draws from the posterior; hollow: no gap is detected"]
    note = axis.text(0, 1.02, "; ".join(notes), transform=axis.transAxes, color=CLASS, fontsize=9.5)
    note.set_in_layout(False)
    if chart.level is not None:
        height, name = chart.level
        axis.axhline(height, color=MUTED, lw=1, ls=":", label=name or None)
    if has_theory:
        axis.plot([], [], color=MUTED, label="mean field", **_OF_THEORY)
    if np.isfinite(places[:, 0]).any():
        name = "half-lives"
        if list(chart.labels) == [""]:
            name = "peaks"
        axis.plot([], [], "|", color=MUTED, ms=9, mew=2, label=name)


def _mark_place(axis: Axes, chart: Panel, mark: Headline) -> list[str]:
    """A line at a mark; its number in words if the mark is one of the readings of the chart."""
    is_swap = mark.label == SWAP
    color = CLASS
    if is_swap:
        color = THEORY
    if mark.reading not in chart.labels:
        name = f"$t^*$ of {brief(mark.reading, 30)}"
        plots.draw_transition(axis, mark.place[0], color, False, name)
        return []
    plots.draw_transition(axis, mark.place[0], color, True, None)
    name = brief(mark.label, 40)
    if mark.label == STAR:
        name = "$t^*$"
    relation = "="
    if is_swap or mark.label == PEAK:
        relation = "at"
    return [f"{name} {relation} {with_interval(mark.place[0])}"]


def _limit(axis: Axes, curves: np.ndarray, level: tuple[float, str] | None) -> None:
    """Limit the vertical axis: to 0 .. 1 for what starts at 1, above 0 for what starts at 0;
    else long intervals are cut.
    """
    first = curves[:, :1, 0]
    values = curves[..., 0].ravel()
    if level is not None:
        values = np.r_[values, level[0]]
    low = np.nanmin(values, initial=np.inf)
    high = np.nanmax(values, initial=-np.inf)
    if (first == 1).any() and high <= 1.001:
        axis.set_ylim(min(-0.03, low - 0.03), 1.03)
    elif (first == 0).all():
        axis.set_ylim(0, None)
    elif low <= high:
        span = max(high - low, 0.1 * abs(high), 1e-9)
        bottom = max(np.nanmin(curves, initial=low), low - span)
        top = min(np.nanmax(curves, initial=high), high + 1.5 * span)
        axis.set_ylim(bottom - 0.05 * span, top + 0.05 * span)


# --- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where the images of a grid lie, in pixels."""

    width: int
    """Of an image."""
    height: int
    gap: int
    """Between images."""
    wide: int
    """Between the originals and the reconstructions."""
    left: np.ndarray
    """Of each column: originals, then a column for each noise level."""
    top: np.ndarray
    """Of each row."""

    @classmethod
    def of(cls, data: xr.Dataset) -> _Grid:
        width = data.sizes["column"]
        height = data.sizes["row"]
        gap = max(2, width // 12)
        wide = max(3, width // 6)
        columns = np.arange(1, data.sizes["shown_noise"] + 1)
        left = np.r_[0, wide - gap + (width + gap) * columns]
        top = (height + gap) * np.arange(data.sizes["item"])
        return cls(width, height, gap, wide, left, top)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return int(self.top[-1]) + self.height, int(self.left[-1]) + self.width


def draw_grid(data: xr.Dataset) -> Figure | None:
    """Originals, at most eight, and reconstructions, with a frame if the class changed; None if
    no images were stored.
    """
    if "image" not in data:
        return None
    chosen = data.isel(item=slice(_ROWS))
    data, families = drawable(chosen, ("item_name", "model", "reading", "series"))
    grid = _Grid.of(data)
    rows, columns = grid.shape
    with style(families) as plt:
        # The axes fill the figure; labels and legend lie outside and are included when it is saved.
        inch = min(1.0, 9.5 / len(grid.left)) / grid.width
        figure: Figure = plt.figure(figsize=(inch * columns, inch * rows))
        axis = figure.add_axes((0, 0, 1, 1))
        smooth = "antialiased"
        if grid.width < 64:
            smooth = "nearest"
        axis.imshow(_tiled(data, grid), interpolation=smooth, aspect="auto")
        _frame_changed(axis, data, grid)
        has_judge = _draw_star(axis, data, grid)
        noises = [f"{noise:.3g}" for noise in data.shown_noise.values]
        axis.set_xticks(grid.left + grid.width / 2 - 0.5, ["original", *noises])
        names = [brief(str(name)) for name in data.item_name.values]
        axis.set_yticks(grid.top + grid.height / 2 - 0.5, names)
        axis.tick_params(length=0)
        axis.xaxis.tick_top()
        axis.xaxis.set_label_position("top")
        axis.set_xlabel(no_mathematics(axis_words(data)))
        axis.spines[:].set_visible(False)
        axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        lines = [data.attrs["description"], *remarks(data)]
        width = max(40, int(13 * figure.get_figwidth()))
        below = -8
        if has_judge:
            below = -30
        axis.annotate(
            no_mathematics(_wrapped(lines, width)),
            (0, 0),
            (4, below),
            "axes fraction",
            "offset points",
            color=MUTED,
            fontsize=9,
            va="top",
        )
    return figure


def _frame_changed(axis: Axes, data: xr.Dataset, grid: _Grid) -> None:
    """A frame around each image whose class has changed."""
    from matplotlib.patches import Rectangle

    same_class = data.image_same_class.transpose("item", "shown_noise").values
    for item, level in np.argwhere(same_class == 0):
        corner = (grid.left[level + 1] - 0.5, grid.top[item] - 0.5)
        look: dict[str, Any] = {"fill": False, "ec": CLASS, "lw": 1.6, "clip_on": False}
        axis.add_patch(Rectangle(corner, grid.width, grid.height, **look))


def _draw_star(axis: Axes, data: xr.Dataset, grid: _Grid) -> bool:
    """A line before the first level beyond t*, and a legend; whether there is a reading of
    classes.
    """
    from matplotlib.lines import Line2D

    name = data.image_same_class.attrs.get("judge")
    if not name:
        return False
    judge = data.sel(reading=name)
    star = float(judge.half_life.sel(axis="noise")[0])
    network = brief(str(judge.model.item() or judge.probe.item()))
    look: dict[str, Any] = {
        "ls": "",
        "marker": "s",
        "mfc": "none",
        "mec": CLASS,
        "mew": 1.6,
        "ms": 9,
    }
    handles = [Line2D([], [], label=f"another class ({network})", **look)]
    beyond = np.flatnonzero(data.shown_noise.values >= star)
    if len(beyond):
        space = grid.wide
        if beyond[0]:
            space = grid.gap
        x = grid.left[beyond[0] + 1] - 0.5 - space / 2
        ends = [-0.5 - 2 * grid.gap, grid.shape[0] - 0.5 + grid.gap]
        look = {"clip_on": False, "color": THEORY, "lw": 1.4, "ls": (0, (1, 1.4))}
        handles += axis.plot([x, x], ends, label=f"$t^*$ = {star:.3g}", **look)
    axis.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncol=2,
        borderaxespad=0.6,
        borderpad=0,
    )
    return True


def _tiled(data: xr.Dataset, grid: _Grid) -> np.ndarray:
    """Originals in the first column, then one for each noise level, as RGBA; missing images stay
    empty.
    """
    source = stored_class("source", stored_spec(data)["source"])
    is_negative = getattr(source, "shows_negative", False)
    canvas = np.ones((*grid.shape, 4))
    canvas[..., 3] = 0
    tiles = np.concatenate([data.original.values[None], data.image.values])
    for column, item in np.ndindex(tiles.shape[:2]):
        image = tiles[column, item]
        if np.isfinite(image).all():
            top = grid.top[item]
            left = grid.left[column]
            area = (slice(top, top + grid.height), slice(left, left + grid.width))
            canvas[area] = _colours(image, is_negative)
    return canvas


def _colours(image: np.ndarray, is_negative: bool) -> np.ndarray:
    """An image (channels, height, width) in [-1, 1] as RGBA."""
    pixels = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    if pixels.shape[-1] == 1:
        if is_negative:
            pixels = 1 - pixels
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
