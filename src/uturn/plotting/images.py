"""Drawing of an analysis of images (`uturn.workflows.analyse`): the grid of Fig. 1, the curves of Figs. 2 and 16."""

from __future__ import annotations

import json
import math
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.plotting.calibration import draw_gap, draw_zero
from uturn.plotting.curves import (
    brief,
    draw_legend,
    draw_transition,
    drawable,
    end_of,
    evenly_spaced,
    interval,
    markers,
    no_mathematics,
)
from uturn.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, level_colors, style

if TYPE_CHECKING:
    import xarray as xr

_NAMES = ("classifier", "layer", "remark", "item_name", "measures")  # coordinates that are drawn
_ROWS = 8  # of the grid of images
_MOST_NAMED = 8  # layers named in the legend


def draw_layers(data: xr.Dataset) -> Any:
    """One panel for each network: similarity of its layers against noise, with t*. Then, if the run has them, a panel of the
    perceptual distance, and one of the share of U-turns that keep the class."""
    data, families = drawable(data, _NAMES)
    names = [str(name) for name in data.classifier.values]
    further = [_draw_perceptual] * ("perceptual" in data.dims) + [_draw_class] * bool(data.has_classes.any())
    panels = len(names) + len(further)
    columns = panels if panels <= 4 else min(math.ceil(panels / 2), 4)
    rows = math.ceil(panels / columns)
    with style(families) as plt:
        width = {1: 6.4, 2: 11.0, 3: 14.0}.get(columns, 17.0)
        figure = plt.figure(figsize=(width, 4.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axis in axes[panels:]:
            axis.set_axis_off()
        lowest = min(0.0, float(np.nanmin(data.similarity)))
        for k, (name, axis) in enumerate(zip(names, axes, strict=False)):
            axis.set(xlim=(0, end_of(data.noise.values)), ylim=(lowest - 0.03, 1.03), xlabel=_axis_label(data))
            axis.set_title(brief(name, 60), pad=34)
            _draw_similarity(axis, data.isel(classifier=k))
            if k % columns == 0:
                axis.set_ylabel("cosine similarity of layers")
            else:
                axis.tick_params(labelleft=False)
        for axis, draw in zip(axes[len(names) : panels], further, strict=True):
            draw(axis, data)
        words = _caption(data, "bands and brackets: 95 % intervals", int(14 * width))
        figure.text(0.005, -0.01, words, color=MUTED, fontsize=9, va="top")
    return figure


def draw_calibration(data: xr.Dataset) -> Any | None:
    """Gaps of same class and of first, middle and last layer, one panel for each network. None for a run without clones."""
    if "gap_class" not in data:
        return None
    data, families = drawable(data, _NAMES)
    names = [str(name) for name in data.classifier.values]
    with style(families) as plt:
        figure, panels = plt.subplots(
            1, len(names), figsize=(6.4 * len(names), 4.4), squeeze=False, sharey=True, layout="constrained"
        )
        for name, axis, k in zip(names, panels[0], range(len(names)), strict=True):
            one = data.isel(classifier=k)
            one = one.isel(noise=np.isfinite(one.gap_layer_p.isel(network_layer=0).values))
            level, layers = float(one.calibration_level), [str(layer) for layer in one.layer.values if str(layer)]
            draw_zero(axis)
            if one.has_classes:
                draw_gap(axis, one.noise, one.gap_class, one.gap_class_p <= level, CLASS, "same class", "s")
            colors = level_colors(len(layers))
            edges = evenly_spaced(len(layers), 3)
            for j in edges:
                gap, p = one.gap_layer.isel(network_layer=j), one.gap_layer_p.isel(network_layer=j)
                aside = (
                    0.006 * end_of(data.noise.values) * (1 + edges.index(j))
                )  # bars of several readings stand beside each other
                draw_gap(axis, one.noise + aside, gap, p <= level, colors[j], f"similarity of {brief(layers[j])}")
            axis.set(xlim=(0, end_of(data.noise.values)), xlabel=_axis_label(data))
            axis.set_title(brief(name, 60))
            axis.legend()
        panels[0, 0].set_ylabel(r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$")
        words = _caption(
            data, "0 for draws from the posterior; bars: 95 % intervals; full marks: p by Holm <= .001", int(90 * len(names))
        )
        figure.text(0.005, -0.01, words, color=MUTED, fontsize=9, va="top")
    return figure


def draw_grid(data: xr.Dataset) -> Any | None:
    """Originals, at most eight, and reconstructions at increasing noise, with a frame if the class changed.

    None if no images were kept.
    """
    if "image" not in data:
        return None
    data, families = drawable(data.isel(item=slice(_ROWS)), _NAMES)
    grid = _Grid.of(data)
    rows, columns = grid.canvas.shape[:2]
    with style(families) as plt:
        # The axes fill the figure; labels and legend lie outside and are included when it is saved.
        inch = min(1.0, 9.5 / len(grid.left)) / grid.width
        figure = plt.figure(figsize=(inch * columns, inch * rows))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(grid.canvas, interpolation="nearest" if grid.width < 64 else "antialiased", aspect="auto")
        _frame_changes(axis, data, grid)
        star = _draw_transition_in_grid(axis, data, grid)
        _label_grid(axis, data, grid)
        axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        judge = _judge(data)
        if judge is not None:
            look = {"ls": "", "marker": "s", "mfc": "none", "mec": CLASS, "mew": 1.6, "ms": 9}
            changed = plt.Line2D([], [], **look, label=f"another class ({brief(str(judge.classifier.item()))})")
            axis.legend(handles=[changed, *star], loc="upper left", bbox_to_anchor=(0, 0), ncol=2, borderaxespad=0.6, borderpad=0)
        words, below = _caption(data, "", max(40, int(13 * figure.get_figwidth()))), -8 if judge is None else -30
        axis.annotate(words, (0, 0), (4, below), "axes fraction", "offset points", color=MUTED, fontsize=9, va="top")
    return figure


class _Grid(NamedTuple):
    """Images on one canvas: RGBA array, first pixels of columns and rows, size of an image, gaps between images."""

    canvas: np.ndarray
    left: np.ndarray
    top: np.ndarray
    height: int
    width: int
    gap: int
    gap_after_originals: int

    @classmethod
    def of(cls, data: xr.Dataset) -> _Grid:
        """Originals in the first column, then one column for each noise level; missing images stay empty."""
        count, levels = data.sizes["item"], data.sizes["shown_noise"]
        height, width = data.sizes["row"], data.sizes["column"]
        gap, wide = max(2, width // 12), max(3, width // 6)
        left = np.r_[0, wide - gap + (width + gap) * np.arange(1, levels + 1)]
        top = (height + gap) * np.arange(count)
        canvas = np.ones((top[-1] + height, left[-1] + width, 4))
        canvas[..., 3] = 0
        tiles = np.concatenate([data.original.values[None], data.image.values])
        for column, item in np.ndindex(tiles.shape[:2]):
            if np.isfinite(tiles[column, item]).all():
                rows, columns = slice(top[item], top[item] + height), slice(left[column], left[column] + width)
                canvas[rows, columns] = _colours(data, tiles[column, item])
        return cls(canvas, left, top, height, width, gap, wide)


def _frame_changes(axis: Any, data: xr.Dataset, grid: _Grid) -> None:
    """A frame around each reconstruction of another class."""
    from matplotlib.patches import Rectangle

    for item, level in np.argwhere(data.image_same_class.transpose("item", "shown_noise").values == 0):
        corner = (grid.left[level + 1] - 0.5, grid.top[item] - 0.5)
        axis.add_patch(Rectangle(corner, grid.width, grid.height, fill=False, ec=CLASS, lw=1.6, clip_on=False))


def _draw_transition_in_grid(axis: Any, data: xr.Dataset, grid: _Grid) -> list[Any]:
    """Draw a line before the first level beyond t*; returns its legend entry, or nothing if there is no such level."""
    from matplotlib.lines import Line2D

    judge = _judge(data)
    star = np.nan if judge is None else float(judge.transition.sel(axis="noise", estimate="value"))
    beyond = np.flatnonzero(data.shown_noise.values >= star)
    if not len(beyond):
        return []
    at = grid.left[beyond[0] + 1] - 0.5 - (grid.gap if beyond[0] else grid.gap_after_originals) / 2
    ends = [-0.5 - 2 * grid.gap, len(grid.canvas) - 0.5 + grid.gap]
    look: dict[str, Any] = {"color": THEORY, "lw": 1.4, "ls": (0, (1, 1.4))}
    axis.plot([at, at], ends, clip_on=False, **look)
    return [Line2D([], [], label=f"$t^*$ = {star:.2f}", **look)]


def _judge(data: xr.Dataset) -> xr.Dataset | None:
    """The first classifier, whose classes the grid shows; None if all networks are encoders."""
    found = np.flatnonzero(data.has_classes.values)
    return data.isel(classifier=found[0]) if len(found) else None


def _label_grid(axis: Any, data: xr.Dataset, grid: _Grid) -> None:
    """Noise levels above the columns, names of the originals beside the rows."""
    axis.set_xticks(grid.left + grid.width / 2 - 0.5, ["original", *(f"{x:.3g}" for x in data.shown_noise.values)])
    axis.set_yticks(grid.top + grid.height / 2 - 0.5, [brief(str(name), 18) for name in data.item_name.values])
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(_axis_label(data))
    axis.spines[:].set_visible(False)


def _draw_similarity(axis: Any, data: xr.Dataset) -> None:
    """Curves of the layers of one classifier, t*, inversion and half-lives."""
    noise = data.noise.values
    layers = [str(name) for name in data.layer.values if str(name)]
    colors = level_colors(len(layers))
    few = len(layers) <= _MOST_NAMED
    named = evenly_spaced(len(layers), _MOST_NAMED if few else 4)
    for k, name in enumerate(layers):
        edge = k in (0, len(layers) - 1)
        value, low, high = data.similarity.isel(network_layer=k).values.T
        if edge or few:
            axis.fill_between(noise, low, high, color=colors[k], alpha=0.22 if edge else 0.07, lw=0)
        look = {"lw": 2.4, "zorder": 4, **markers(noise)} if edge else {"lw": 1.3 if few else 0.9, "zorder": 3}
        axis.plot(noise, value, color=colors[k], label=brief(name) if k in named else None, **look)
        half_life = float(data.half_life.sel(axis="noise", estimate="value").isel(network_layer=k))
        if few or k in named:
            axis.plot([half_life], [0.985], "|", transform=axis.get_xaxis_transform(), color=colors[k], ms=10, mew=2)
    star, swap = (data[name].sel(axis="noise").values for name in ("transition", "inversion"))
    draw_transition(axis, star, CLASS, True)
    words = [f"$t^*$ = {interval(star)}" if np.isfinite(star[0]) else "no $t^*$, see below"] if data.has_classes else []
    if np.isfinite(swap[0]):
        at = np.interp(swap[0], noise, data.similarity.isel(network_layer=0, estimate=0).values)
        axis.plot([swap[0]], [at], "o", ls="", mfc="white", mec=THEORY, mew=1.4, ms=7, zorder=5, label="order inverts")
        words.append(f"order inverts at {interval(swap)}")
    axis.text(0, 1.02, "\n".join(words), transform=axis.transAxes, color=CLASS, fontsize=9.5).set_in_layout(False)
    if np.isfinite(data.half_life.values).any():
        axis.plot([], [], "|", color=MUTED, ms=9, mew=2, label="half-lives")
    curves = data.similarity.sel(estimate="value").transpose("noise", "network_layer").values
    title = None if few else f"{len(layers)} layers, first to last"
    bottom, top = axis.get_ylim()
    early = np.interp(0.45 * noise[-1], noise, np.nanmin(curves, axis=1)) < bottom + 0.55 * (top - bottom)
    draw_legend(axis, early, title=title, title_fontsize=8.5)


def _draw_perceptual(axis: Any, data: xr.Dataset) -> None:
    """Perceptual distance to the original, with the noise at which half of its rise is done."""
    noise = data.noise.values
    for k, name in enumerate(map(str, data.measures.values)):
        one, color = data.isel(perceptual=k), DISTINCT[k % len(DISTINCT)]
        value, low, high = one.perceptual_distance.values.T
        axis.fill_between(noise, low, high, color=color, alpha=0.2, lw=0)
        axis.plot(noise, value, color=color, label=brief(name.removeprefix("perceptual distance, "), 60), **markers(noise))
        half = one.half_rise.sel(axis="noise").values
        if np.isfinite(half[0]):
            axis.plot([half[0]], [0.985], "|", transform=axis.get_xaxis_transform(), color=color, ms=10, mew=2)
    if data.sizes["perceptual"] == 1 and np.isfinite(half[0]):
        words = f"half of the rise at {interval(half)}"
        axis.text(0, 1.02, words, transform=axis.transAxes, color=MUTED, fontsize=9.5).set_in_layout(False)
    axis.set(xlim=(0, end_of(data.noise.values)), ylim=(0, None), ylabel="distance to the original", xlabel=_axis_label(data))
    axis.set_title("perceptual distance", pad=34)
    axis.legend(loc="lower right", fontsize=8.5)


def _draw_class(axis: Any, data: xr.Dataset) -> None:
    """Share of U-turns that keep the predicted class, for all classifiers; for a single one, also the other agreements."""
    noise = data.noise.values
    data = data.isel(classifier=data.has_classes.values)
    names = [str(name) for name in data.classifier.values]
    single = len(names) == 1
    curves = []
    for k, name in enumerate(names):
        one = data.isel(classifier=k)
        color = DISTINCT[k % len(DISTINCT)]
        value, low, high = one.same_class.values.T
        axis.fill_between(noise, low, high, color=color, alpha=0.2, lw=0)
        curves += axis.plot(noise, value, color=color, label=_named(name, one, single), **markers(noise))
        axis.axhline(float(one.chance), color=color, lw=0.8, ls=":")
        draw_transition(axis, one.transition.sel(axis="noise").values, CLASS if single else color, single)
    if single:
        for name, words, color, dash in (
            ("same_class_top5", "predicted class among the five first", ACCENT, "--"),
            ("label_top1", "true label first", MUTED, "-"),
            ("label_top5", "true label among the five first", MUTED, "--"),
        ):
            if name in data:
                value = data[name].isel(classifier=0, estimate=0)
                curves += axis.plot(noise, value, color=color, lw=1.3, ls=dash, label=words)
    if np.isfinite(data.chance).any():
        axis.plot([], [], color=MUTED, lw=0.8, ls=":", label="two random originals")
    axis.set(xlim=(0, end_of(data.noise.values)), ylim=(-0.03, 1.03), ylabel="share of U-turns", xlabel=_axis_label(data))
    axis.set_title("class", pad=34)
    draw_legend(axis, all(np.interp(0.6 * noise[-1], line.get_xdata(), line.get_ydata()) < 0.62 for line in curves))


def _named(name: str, data: xr.Dataset, single: bool) -> str:
    """Label of a curve in the class panel."""
    if single:
        return "predicted class"
    star = float(data.transition.sel(axis="noise", estimate="value"))
    return f"{brief(name)}, " + (f"$t^*$ = {star:.2f}" if np.isfinite(star) else "no $t^*$")


def _caption(data: xr.Dataset, addition: str, width: int) -> str:
    """The description of the run and the remarks of the analysis, in lines of at most `width` characters."""
    lines = ["; ".join(filter(None, (data.attrs["description"], addition)))]
    names, remarks = data.classifier.values, data.remark.values
    if len(set(remarks)) == 1:
        names = [""]
    lines += [f"{name}: {remark}" if name else str(remark) for name, remark in zip(names, remarks, strict=False) if remark]
    return "\n".join(no_mathematics(part) for line in lines for part in textwrap.wrap(line, width))


def _colours(data: xr.Dataset, image: np.ndarray) -> np.ndarray:
    """An image (channels, height, width) in [-1, 1] as RGBA."""
    pixels = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    if pixels.shape[-1] == 1:
        source = json.loads(data.attrs.get("spec", "{}")).get("source", {})
        pixels = np.repeat(1 - pixels if source.get("type") == "fashion_mnist" else pixels, 3, axis=-1)  # garments on white
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)


def _axis_label(data: xr.Dataset) -> str:
    return "inversion time $t/T$" if "step" in data.coords else no_mathematics(str(data.noise.attrs.get("long_name", "noise")))
