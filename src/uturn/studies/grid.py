"""The grid of images of a study: originals and their reconstructions at increasing noise, as in Fig. 1 of arXiv:2402.16991."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.studies.axes import axis_words
from uturn.studies.plotting.curves import brief, drawable, no_mathematics
from uturn.studies.plotting.style import CLASS, MUTED, THEORY, style
from uturn.studies.tables import remarks

if TYPE_CHECKING:
    import xarray as xr

_ROWS = 8  # largest number of rows


def draw_grid(data: xr.Dataset) -> Any | None:
    """Originals, at most eight, and reconstructions at increasing noise, with a frame if the class changed.

    None if no images were stored.
    """
    if "image" not in data:
        return None
    data, families = drawable(data.isel(item=slice(_ROWS)), ("item_name", "model", "reading", "series"))
    grid = _Grid.of(data)
    rows, columns = grid.canvas.shape[:2]
    with style(families) as plt:
        # The axes fill the figure; labels and legend lie outside and are included when it is saved.
        inch = min(1.0, 9.5 / len(grid.left)) / grid.width
        figure = plt.figure(figsize=(inch * columns, inch * rows))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(grid.canvas, interpolation="nearest" if grid.width < 64 else "antialiased", aspect="auto")
        for item, level in np.argwhere(data.image_same_class.transpose("item", "shown_noise").values == 0):
            corner = (grid.left[level + 1] - 0.5, grid.top[item] - 0.5)
            frame = plt.Rectangle(corner, grid.width, grid.height, fill=False, ec=CLASS, lw=1.6, clip_on=False)
            axis.add_patch(frame)  # marks a changed class
        name = data.image_same_class.attrs.get("judge")
        judge = data.sel(reading=name) if name else None
        star = [] if judge is None else _draw_transition(axis, data, grid, float(judge.half_life.sel(axis="noise")[0]))
        _label_grid(axis, data, grid)
        axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        if judge is not None:
            look = {"ls": "", "marker": "s", "mfc": "none", "mec": CLASS, "mew": 1.6, "ms": 9}
            changed = plt.Line2D([], [], **look, label=f"another class ({brief(str(judge.model.item() or judge.probe.item()))})")
            axis.legend(handles=[changed, *star], loc="upper left", bbox_to_anchor=(0, 0), ncol=2, borderaxespad=0.6, borderpad=0)
        width, below = max(40, int(13 * figure.get_figwidth())), -8 if judge is None else -30
        lines = [part for line in (data.attrs["description"], *remarks(data)) for part in textwrap.wrap(line, width)]
        caption = no_mathematics("\n".join(lines))
        axis.annotate(caption, (0, 0), (4, below), "axes fraction", "offset points", color=MUTED, fontsize=9, va="top")
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


def _draw_transition(axis: Any, data: xr.Dataset, grid: _Grid, star: float) -> list[Any]:
    """Draw a line before the first level beyond t*; returns its legend entry, or nothing if there is no such level."""
    beyond = np.flatnonzero(data.shown_noise.values >= star)
    if not len(beyond):
        return []
    at = grid.left[beyond[0] + 1] - 0.5 - (grid.gap if beyond[0] else grid.gap_after_originals) / 2
    ends = [-0.5 - 2 * grid.gap, len(grid.canvas) - 0.5 + grid.gap]
    return axis.plot([at, at], ends, clip_on=False, color=THEORY, lw=1.4, ls=(0, (1, 1.4)), label=f"$t^*$ = {star:.3g}")


def _label_grid(axis: Any, data: xr.Dataset, grid: _Grid) -> None:
    """Noise levels above the columns, names of the originals beside the rows."""
    axis.set_xticks(grid.left + grid.width / 2 - 0.5, ["original", *(f"{x:.3g}" for x in data.shown_noise.values)])
    axis.set_yticks(grid.top + grid.height / 2 - 0.5, [brief(str(name)) for name in data.item_name.values])
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(no_mathematics(axis_words(data)))
    axis.spines[:].set_visible(False)


def _colours(data: xr.Dataset, image: np.ndarray) -> np.ndarray:
    """An image (channels, height, width) in [-1, 1] as RGBA."""
    pixels = np.clip((image.transpose(1, 2, 0) + 1) / 2, 0, 1)
    if pixels.shape[-1] == 1:
        source = json.loads(data.attrs.get("spec", "{}")).get("source", {})
        # Garments are shown on white.
        pixels = np.repeat(1 - pixels if source.get("type") == "fashion_mnist" else pixels, 3, axis=-1)
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
