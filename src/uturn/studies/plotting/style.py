"""The style of all figures: colours that are distinct with colour blindness and in grey print,
sizes legible on a projector.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

CLASS = "#b3261e"
THEORY = "#111111"
ACCENT = "#0072b2"
MUTED = "#777777"
DISTINCT = (ACCENT, "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours of Okabe and Ito, safe for colour blindness."""
Look = dict[str, Any]
"""Options of a drawing function of matplotlib."""


@contextmanager
def style(families: Sequence[str] = ()) -> Iterator[Any]:
    """Context with the matplotlib settings of the project, and further fonts (`fonts_for`);
    yields pyplot.
    """
    import matplotlib

    if "matplotlib.pyplot" not in sys.modules and "MPLBACKEND" not in os.environ:
        matplotlib.use("Agg")  # open no window, unless a notebook or the user chose a backend
    import matplotlib.pyplot as plt

    # Load the backend before the settings: leaving this context would undo those of notebooks.
    plt.draw_if_interactive()
    settings: dict[Any, Any] = {
        "figure.dpi": 100,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.linewidth": 1.8,
        "pdf.fonttype": 42,
        "mathtext.fontset": "cm",
    }
    with plt.rc_context(settings):
        plt.rcParams["font.family"] = [*plt.rcParams["font.family"], *families]
        yield plt


def save_figure(figure: Figure, *paths: Path) -> None:
    """Write a figure to files, in the formats that their endings name, and close it."""
    import matplotlib.pyplot as plt

    for path in paths:
        with whole_file(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    plt.close(figure)


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Installed fonts for the characters of a text that the default font lacks, and the
    characters that no font has.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    def characters(path: str) -> set[str]:
        font = get_font(path)
        return {chr(code) for code in font.get_charmap()} if font.scalable else set()

    usual = [
        findfont(FontProperties(family=rcParams["font.family"], weight=weight))
        for weight in ("normal", "bold")
    ]
    normal, bold = map(characters, usual)
    missing = {c for c in text if c.isprintable()} - (normal & bold)
    families = []
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.name, entry.weight)):
        if not missing or "Last Resort" in entry.name:
            continue
        covered = missing & characters(entry.fname)
        if covered:
            families.append(entry.name)
            missing -= covered
    return families, missing | {c for c in text if not c.isprintable()}


def bars(axes: Axes, x: ArrayLike, bounds: ArrayLike, **look: Any) -> None:
    """Points with intervals, `bounds` (points, 3): value, low, high."""
    value, low, high = np.asarray(bounds).T
    # Rounding can make these slightly negative.
    axes.errorbar(x, value, np.maximum([value - low, high - value], 0), **look)


def row_interval(
    axes: Axes,
    y: float,
    bounds: Sequence[float] | np.ndarray,
    color: ColorType,
    marker: str = "o",
    lw: float = 2,
    alpha: float = 1,
    **look: Any,
) -> None:
    """A number with its interval, `bounds` (value, low, high), as a horizontal line at height y
    with a marker.
    """
    value, low, high = bounds
    axes.plot([low, high], [y, y], color=color, lw=lw, alpha=alpha, zorder=2)
    axes.plot([value], [y], marker, color=color, alpha=alpha, zorder=3, **look)


def name_rows(
    axes: Axes, names: Sequence[str], colors: Sequence[ColorType] = (), **look: Any
) -> None:
    """Names of rows at the heights 0, 1, .. from the top down, in their colours."""
    axes.set_yticks(range(len(names)), names, **look)
    for tick, color in zip(axes.get_yticklabels(), colors, strict=False):
        tick.set_color(color)
    axes.set_ylim(len(names) - 0.5, -0.6)


def mark_noise(
    axes: Axes,
    x: float,
    text: str = "",
    color: ColorType = THEORY,
    aside: float = 0.0,
    height: float = 1.0,
) -> None:
    """A dotted vertical line at a noise level, with its name at (x + aside, height) in the units
    of the axes.
    """
    axes.axvline(x, color=color, lw=1, ls=":", zorder=1)
    axes.text(x + aside, height, text, color=color, va="top")


def ticks(axes: Axes, x: Sequence[float] | np.ndarray) -> None:
    """Set the ticks of a logarithmic axis, without minor ticks."""
    axes.set_xticks(x, [f"{place:g}" for place in x])
    axes.minorticks_off()


def level_colors(count: int) -> list[ColorType]:
    """Colours of levels, from the lowest (dark blue) to the highest (light orange)."""
    from matplotlib import colormaps

    return [colormaps["plasma"](0.03 + 0.73 * k / max(count - 1, 1)) for k in range(count)]


def level_bar(
    plt: Any,  # noqa: ANN401 - pyplot, a module that `style` gives
    axes: Axes,
    count: int,
    label: str,
) -> None:
    """A discrete colour bar for tree levels 0 .. count - 1."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    norm = BoundaryNorm([k - 0.5 for k in range(count + 1)], count)
    mappable = ScalarMappable(norm, ListedColormap(level_colors(count)))
    bar = plt.colorbar(mappable, ax=axes, ticks=range(count), pad=0.02, fraction=0.05)
    bar.set_label(label)
    bar.outline.set_visible(False)
