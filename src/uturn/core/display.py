"""Pieces of HTML for notebooks, without scripts, in the notebook's colours (light or dark). All
text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.35)"
_CELL = f"text-align: left; padding: 0.2em 1em 0.2em 0; background: none; {_LINE}"
_COLOR = "#3b8fd0"  # visible on white and on black


class Html(NamedTuple):
    """HTML text that is not escaped again."""

    text: str


def html(value: Any) -> str:
    """A value as HTML: text and numbers are escaped, `Html` is unchanged."""
    return value.text if isinstance(value, Html) else escape(str(value))


def bar(share: float, label: str) -> Html:
    """A bar filled to a share 0 .. 1, with text beside it."""
    full = (
        "display: inline-block; width: 6em; height: 0.6em; margin-right: 0.6em; background:"
        " rgba(128, 128, 128, 0.25)"
    )
    filled = (
        f"display: block; width: {100 * min(max(share, 0.0), 1.0):.0f}%; height: 100%; background:"
        f" {_COLOR}"
    )
    return Html(f'<span style="{full}"><span style="{filled}"></span></span>{escape(label)}')


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table with a row of names, which may be empty."""

    def row(cells: Sequence[Any], tag: str) -> str:
        return (
            "<tr>"
            + "".join(f'<{tag} style="{_CELL}">{html(cell)}</{tag}>' for cell in cells)
            + "</tr>"
        )

    lines = ([row(head, "th")] if head else []) + [row(cells, "td") for cells in rows]
    return Html(
        '<table style="border-collapse: collapse; margin: 0.4em 0; font: inherit; color:'
        f' inherit">{"".join(lines)}</table>'
    )


def page(title: Any, *parts: Any, note: Any = "") -> str:
    """The notebook view of an object: a title, tables or drawings, and a note below them."""
    below = f'<div style="opacity: 0.7; font-size: 90%">{html(note)}</div>' if note else ""
    return f"<div><div><b>{html(title)}</b></div>{''.join(map(html, parts))}{below}</div>"


def tree(symbols: Sequence[Sequence[int]], count: int) -> Html:
    """A drawing of a tree: the symbols of each level from the root down, in colours of `count`
    symbols.
    """
    spacing, drop, radius = max(14, min(120, 480 / len(symbols[-1]))), 34, 6
    width, height = spacing * len(symbols[-1]), drop * (len(symbols) - 1) + 4 * radius
    places = [
        [(width * (k + 0.5) / len(level), 2 * radius + drop * depth) for k in range(len(level))]
        for depth, level in enumerate(symbols)
    ]
    lines, discs = [], []
    for above, below in pairwise(places):
        for k, (x, y) in enumerate(below):
            x0, y0 = above[k * len(above) // len(below)]
            lines.append(
                f'<line x1="{x0:.1f}" y1="{y0}" x2="{x:.1f}" y2="{y}" stroke="currentColor"'
                ' stroke-opacity="0.35"/>'
            )
    for level, nodes in zip(symbols, places, strict=True):
        for symbol, (x, y) in zip(level, nodes, strict=True):
            color = f"hsl({360 * int(symbol) / max(count, 1):.0f}, 65%, 50%)"
            discs.append(
                f'<circle cx="{x:.1f}" cy="{y}" r="{radius}"'
                f' fill="{color}"><title>{int(symbol)}</title></circle>'
            )
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    style = "display: block; max-width: 100%; height: auto"
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
        f' style="{style}">{"".join(lines + discs)}</svg>'
    )
