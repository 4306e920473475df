"""The figure of one or several studies, a panel for each of their charts, and the grid of their
images.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.registry import stored_class
from uturn.measures.estimates import with_interval
from uturn.studies.axes import axis_words
from uturn.studies.charts import CRITICAL, Chart, charts_of, overlaid
from uturn.studies.headline import PEAK, Headline
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

_MOST_NAMED = 8  # curves named in a legend
_ROWS = 8  # largest number of rows of a grid
_OF_THEORY: dict[str, Any] = {"lw": 1.3, "ls": (0, (4, 2)), "zorder": 2}


def draw_study(study: xr.Dataset, groups: Sequence[str] = ()) -> Any:
    """All curves of a study with their intervals, a panel for each chart (`groups` first); None
    if nothing has a curve.
    """
    texts = (
        "level",
        "model",
        "probe",
        "group",
        "reading",
        "series",
        "words",
        "unit",
        "unit_of_distance",
    )
    study, families = drawable(study, texts)
    lines = [f"{study.attrs['description']}; bands: 95 % intervals", *remarks(study)]
    return drawn(list(charts_of(study, groups)), lines, families)


def draw_studies(studies: Mapping[str, xr.Dataset], marks: Sequence[Headline] = ()) -> Any:
    """Several studies in one figure: a panel for each reading, a colour for each study; None if
    nothing has a curve.
    """
    return drawn([chart for chart in overlaid(studies, marks) if chart.drawn])


def drawn(charts: Sequence[Chart], lines: Sequence[str] = (), families: Sequence[str] = ()) -> Any:
    """A figure with a panel for each chart, and lines of text below; None without charts.
    `families`: further fonts.
    """
    if not charts:
        return None
    columns = min(len(charts), 2 if len(charts) in (2, 4) else 3)
    rows = math.ceil(len(charts) / columns)
    with style(families) as plt:
        figure = plt.figure(figsize=(5.6 * columns, 4.5 * rows), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axis, chart in zip(axes, charts, strict=False):
            draw_chart(axis, chart)
        for axis in axes[len(charts) :]:
            axis.set_axis_off()
        wrapped = [
            part
            for line in lines
            for part in textwrap.wrap(no_mathematics(line), int(13.93 * figure.get_figwidth()))
        ]
        figure.text(0.005, -0.01, "\n".join(wrapped), color=MUTED, fontsize=9, va="top")
    return figure


def draw_chart(axis: Any, chart: Chart) -> None:
    """The curves with their bands, ticks above at the places on them, and the marks; marks of
    other charts have no band.
    """
    x_axis = chart.curves[chart.curves.dims[1]]
    finite = np.isfinite(x_axis.values)  # an infinite noise cannot be drawn
    x, curves = x_axis.values[finite], chart.curves.values[:, finite]
    highest = np.max(np.abs(curves[..., 0]), where=np.isfinite(curves[..., 0]), initial=1.0)
    curves = np.clip(curves, -10 * highest, 10 * highest)  # ends of intervals may be infinite
    count, values = len(curves), curves[..., 0]
    colors = level_colors(count) if chart.ordered or count > len(DISTINCT) else list(DISTINCT)
    few = count <= _MOST_NAMED
    named, below = evenly_spaced(count, _MOST_NAMED if few else 4), lying_on(values)
    places = np.full((count, 3), np.nan) if chart.places is None else chart.places
    for k, (name, curve, color) in enumerate(
        zip(chart.curves.line.values, curves, colors, strict=False)
    ):
        there, edge = (
            np.isfinite(values[k]) | (not chart.joined),
            chart.joined
            or k
            in (
                0,
                count - 1,
            ),
        )
        points, band, marks = along(x[there], curve[there])
        look: dict[str, Any] = (
            {"lw": 2.2, "zorder": 4, **marks} if edge else {"lw": 1.3 if few else 0.9, "zorder": 3}
        )
        # Leaves the curves below visible.
        look |= {} if not below[k] else {"dashes": (4, 2) if below[k] == 1 else (1.5, 2)}
        look["label"] = brief(str(name), 46) if name and k in named else None
        plots.draw_curve(axis, points, band, color, 0.2 if edge else 0.07 * (k in named), **look)
        if chart.hollow is not None:
            axis.plot(
                x,
                np.where(chart.hollow[k][finite], values[k], np.nan),
                "o",
                ms=4,
                color=color,
                mfc="white",
                zorder=5,
            )
        if chart.theory is not None and np.isfinite(chart.theory[k]).any() and k in named:
            points, band, _ = along(x, chart.theory.values[k][finite, None])
            axis.plot(points, band[:, 0], color=color, **_OF_THEORY)
        if np.isfinite(places[k, 0]) and k in named:
            axis.plot(
                places[k, :1],
                [0.985],
                "|",
                transform=axis.get_xaxis_transform(),
                color=color,
                ms=10,
                mew=2,
            )
    _mark(axis, chart, places)
    ylabel = (
        chart.unit
        if chart.joined or chart.places is None
        else chart.words or chart.unit or "share of U-turns"
    )
    axis.set_ylabel("\n".join(textwrap.wrap(no_mathematics(ylabel), 40)[:2]))
    axis.set_xlabel(no_mathematics(label(x_axis.attrs.get("long_name", x_axis.name))))
    axis.set_title("\n".join(textwrap.wrap(brief(chart.title, 92), 48)[:2]), pad=22)
    if x_axis.name == "noise":
        plots.draw_noise_axis(axis, x)
    elif x_axis.name == "distance":
        axis.set_xscale("log")
        ticks(axis, np.unique(np.geomspace(x[0], x[-1], 6).round()))
    _limit(axis, curves, values[:, :1], [] if chart.level is None else [chart.level[0]])
    if axis.get_legend_handles_labels()[0]:
        plots.draw_legend(
            axis,
            "best",
            title=None if few else f"{count} curves, first to last",
            title_fontsize=8.5,
        )


def _mark(axis: Any, chart: Chart, places: np.ndarray) -> None:
    """The marks of a chart and its horizontal line, with their numbers under the title."""
    notes, has_theory = [], chart.theory is not None and bool(np.isfinite(chart.theory).any())
    for mark in chart.marks:
        if mark.label == CRITICAL:
            if has_theory:
                axis.axvline(
                    mark.place[0, 0],
                    color=THEORY,
                    lw=1,
                    ls="-.",
                    zorder=1,
                    label="ε* of the mean field",
                )
            continue
        is_own = mark.reading in chart.labels
        of_other = None if is_own else f"$t^*$ of {brief(mark.reading, 30)}"
        plots.draw_transition(
            axis,
            mark.place[0],
            THEORY if mark.label == "order inverts" else CLASS,
            is_own,
            of_other,
        )
        if is_own:
            joined = "at" if mark.label in (PEAK, "order inverts") else "="
            notes.append(
                f"{'$t^*$' if mark.label == 't*' else brief(mark.label, 40)} {joined}"
                f" {with_interval(mark.place[0])}"
            )
    if not notes and len(places) == 1 and np.isfinite(places[0, 0]):
        notes = [f"half-life {with_interval(places[0])}"]
    if chart.hollow is not None:
        notes = ["0 for draws from the posterior; hollow: no gap is detected"]
    axis.text(
        0, 1.02, "; ".join(notes), transform=axis.transAxes, color=CLASS, fontsize=9.5
    ).set_in_layout(False)
    if chart.level is not None:
        axis.axhline(chart.level[0], color=MUTED, lw=1, ls=":", label=chart.level[1] or None)
    if has_theory:
        axis.plot([], [], color=MUTED, label="mean field", **_OF_THEORY)
    if np.isfinite(places[:, 0]).any():
        axis.plot(
            [],
            [],
            "|",
            color=MUTED,
            ms=9,
            mew=2,
            label="peaks" if chart.labels == [""] else "half-lives",
        )


def _limit(axis: Any, curves: np.ndarray, first: np.ndarray, level: list[float]) -> None:
    """Limit the vertical axis: to 0 .. 1 for what starts at 1, above 0 for what starts at 0;
    else long intervals are cut.
    """
    values = np.r_[curves[..., 0].ravel(), level]
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if (first == 1).any() and high <= 1.001:
        axis.set_ylim(min(-0.03, low - 0.03), 1.03)
    elif (first == 0).all():
        axis.set_ylim(0, None)
    elif low <= high:
        span = max(high - low, 0.1 * abs(high), 1e-9)
        ends = np.nanmin(curves, initial=low), np.nanmax(curves, initial=high)
        axis.set_ylim(
            max(ends[0], low - span) - 0.05 * span, min(ends[1], high + 1.5 * span) + 0.05 * span
        )


# --- images ---------------------------------------------------------------------------------------


def draw_grid(data: xr.Dataset) -> Any | None:
    """Originals, at most eight, and reconstructions, with a frame if the class changed; None if
    no images were stored.
    """
    if "image" not in data:
        return None
    data, families = drawable(
        data.isel(item=slice(_ROWS)), ("item_name", "model", "reading", "series")
    )
    height, width = data.sizes["row"], data.sizes["column"]
    gap, wide = max(2, width // 12), max(3, width // 6)  # between images, and after the originals
    left = np.r_[0, wide - gap + (width + gap) * np.arange(1, data.sizes["shown_noise"] + 1)]
    top = (height + gap) * np.arange(data.sizes["item"])
    canvas = _tiled(data, left, top)
    rows, columns = canvas.shape[:2]
    with style(families) as plt:
        # The axes fill the figure; labels and legend lie outside and are included when it is saved.
        inch = min(1.0, 9.5 / len(left)) / width
        figure = plt.figure(figsize=(inch * columns, inch * rows))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(canvas, interpolation="nearest" if width < 64 else "antialiased", aspect="auto")
        for item, level in np.argwhere(
            data.image_same_class.transpose("item", "shown_noise").values == 0
        ):
            corner = (left[level + 1] - 0.5, top[item] - 0.5)
            frame = plt.Rectangle(
                corner, width, height, fill=False, ec=CLASS, lw=1.6, clip_on=False
            )
            axis.add_patch(frame)  # marks a changed class
        name = data.image_same_class.attrs.get("judge")
        judge = data.sel(reading=name) if name else None
        star = np.nan if judge is None else float(judge.half_life.sel(axis="noise")[0])
        beyond, line = np.flatnonzero(data.shown_noise.values >= star), []
        if len(beyond):  # a line before the first level beyond t*
            at = left[beyond[0] + 1] - 0.5 - (gap if beyond[0] else wide) / 2
            ends = [-0.5 - 2 * gap, rows - 0.5 + gap]
            line = axis.plot(
                [at, at],
                ends,
                clip_on=False,
                color=THEORY,
                lw=1.4,
                ls=(0, (1, 1.4)),
                label=f"$t^*$ = {star:.3g}",
            )
        axis.set_xticks(
            left + width / 2 - 0.5, ["original", *(f"{x:.3g}" for x in data.shown_noise.values)]
        )
        axis.set_yticks(
            top + height / 2 - 0.5, [brief(str(name)) for name in data.item_name.values]
        )
        axis.tick_params(length=0)
        axis.xaxis.tick_top()
        axis.xaxis.set_label_position("top")
        axis.set_xlabel(no_mathematics(axis_words(data)))
        axis.spines[:].set_visible(False)
        axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        if judge is not None:
            look = {"ls": "", "marker": "s", "mfc": "none", "mec": CLASS, "mew": 1.6, "ms": 9}
            changed = plt.Line2D(
                [],
                [],
                **look,
                label=f"another class ({brief(str(judge.model.item() or judge.probe.item()))})",
            )
            axis.legend(
                handles=[changed, *line],
                loc="upper left",
                bbox_to_anchor=(0, 0),
                ncol=2,
                borderaxespad=0.6,
                borderpad=0,
            )
        wrap, below = max(40, int(13 * figure.get_figwidth())), -8 if judge is None else -30
        lines = [
            part
            for line in (data.attrs["description"], *remarks(data))
            for part in textwrap.wrap(line, wrap)
        ]
        caption = no_mathematics("\n".join(lines))
        axis.annotate(
            caption,
            (0, 0),
            (4, below),
            "axes fraction",
            "offset points",
            color=MUTED,
            fontsize=9,
            va="top",
        )
    return figure


def _tiled(data: xr.Dataset, left: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Originals in the first column, then one for each noise level, as RGBA; missing images stay
    empty.
    """
    height, width = data.sizes["row"], data.sizes["column"]
    source = stored_class("source", stored_spec(data)["source"])
    is_negative = getattr(source, "shows_negative", False)
    canvas = np.ones((top[-1] + height, left[-1] + width, 4))
    canvas[..., 3] = 0
    tiles = np.concatenate([data.original.values[None], data.image.values])
    for column, item in np.ndindex(tiles.shape[:2]):
        if np.isfinite(tiles[column, item]).all():
            rows, columns = (
                slice(top[item], top[item] + height),
                slice(left[column], left[column] + width),
            )
            canvas[rows, columns] = _colours(tiles[column, item], is_negative)
    return canvas


def _colours(image: np.ndarray, is_negative: bool) -> np.ndarray:
    """An image (channels, height, width) in [-1, 1] as RGBA."""
    pixels = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(1 - pixels if is_negative else pixels, 3, axis=-1)
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
