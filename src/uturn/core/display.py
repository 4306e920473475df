"""What objects show when they are printed: text with tables, and pieces of HTML for notebooks.

The HTML has no scripts, takes the colours of the notebook, and all of its text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH = 120  # characters of a line of text
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.35)"
_CELL = f"text-align: left; padding: 0.2em 1em 0.2em 0; background: none; {_LINE}"
_COLOR = "#3b8fd0"  # visible on white and on black
_GREY = "rgba(128, 128, 128, 0.25)"
_BAR = f"display: inline-block; width: 6em; height: 0.6em; margin-right: 0.6em; background: {_GREY}"
_TABLE = "border-collapse: collapse; margin: 0.4em 0; font: inherit; color: inherit"
_DROP = 34  # pixels between tree levels
_RADIUS = 6  # of a node, in pixels


def text(*parts: RenderableType) -> str:
    """Tables of rich and lines of text as they are printed, without colours."""
    from rich.console import Console

    console = Console(
        width=_WIDTH, color_system=None, force_jupyter=False, highlight=False, markup=False
    )
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get().rstrip()


class Html(NamedTuple):
    """HTML text that is not escaped again."""

    text: str


def html(value: object) -> str:
    """A value as HTML: text and numbers are escaped, `Html` is unchanged."""
    return value.text if isinstance(value, Html) else escape(str(value))


def bar(share: float, label: str) -> Html:
    """A bar filled to a share 0 .. 1, with text beside it."""
    width = 100 * min(max(share, 0.0), 1.0)
    filled = f"display: block; width: {width:.0f}%; height: 100%; background: {_COLOR}"
    return Html(f'<span style="{_BAR}"><span style="{filled}"></span></span>{escape(label)}')


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table with a row of names, which may be empty."""
    lines = [_row(cells, "td") for cells in rows]
    if head:
        lines.insert(0, _row(head, "th"))
    return Html(f'<table style="{_TABLE}">{"".join(lines)}</table>')


def _row(cells: Sequence[object], tag: str) -> str:
    inner = "".join(f'<{tag} style="{_CELL}">{html(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


def page(title: object, *parts: object, note: object = "") -> str:
    """The notebook view of an object: a title, tables or drawings, and a note below them."""
    below = f'<div style="opacity: 0.7; font-size: 90%">{html(note)}</div>' if note else ""
    return f"<div><div><b>{html(title)}</b></div>{''.join(map(html, parts))}{below}</div>"


def tree(symbols: Sequence[Sequence[int]], count: int) -> Html:
    """A drawing of a tree: the symbols of each level from the root down, in `count` colours."""
    num_leaves = len(symbols[-1])
    spacing = max(14, min(120, 480 / num_leaves))
    width = spacing * num_leaves
    height = _DROP * (len(symbols) - 1) + 4 * _RADIUS
    places = [_places(len(level), width, depth) for depth, level in enumerate(symbols)]
    shapes = []
    for above, below in pairwise(places):
        for k, (x, y) in enumerate(below):
            x0, y0 = above[k * len(above) // len(below)]
            ends = f'x1="{x0:.1f}" y1="{y0}" x2="{x:.1f}" y2="{y}"'
            shapes.append(f'<line {ends} stroke="currentColor" stroke-opacity="0.35"/>')
    for level, nodes in zip(symbols, places, strict=True):
        for symbol, (x, y) in zip(level, nodes, strict=True):
            color = f"hsl({360 * int(symbol) / max(count, 1):.0f}, 65%, 50%)"
            disc = f'<circle cx="{x:.1f}" cy="{y}" r="{_RADIUS}" fill="{color}">'
            shapes.append(f"{disc}<title>{int(symbol)}</title></circle>")
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    style = 'style="display: block; max-width: 100%; height: auto"'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {style}>'
    return Html(f"{drawing}{''.join(shapes)}</svg>")


def _places(count: int, width: float, depth: int) -> list[tuple[float, int]]:
    """The centres (x, y) of the nodes of a tree level."""
    y = 2 * _RADIUS + _DROP * depth
    return [(width * (k + 0.5) / count, y) for k in range(count)]
