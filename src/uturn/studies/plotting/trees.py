"""Drawings of trees, symbols, rules and messages on a `canvas`; a unit of its axes is about the
distance of two leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge

from uturn.studies.plotting.style import ACCENT, CLASS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

SYMBOL_COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#999999",
    "#f0e442",
)
UP = ACCENT
DOWN = CLASS
# The levels have different alphabets, so their symbols get different letters.
_LETTERS = ("abcdefgh", "ABCDEFGH", "αβγδεζηθ")


def symbol_name(symbol: int, tree_level: int, depth: int) -> str:
    """Name of a symbol in a drawing: a digit for classes, otherwise a letter from the alphabet
    of the level.
    """
    if tree_level == depth:
        return str(symbol + 1)
    alphabet = _LETTERS[tree_level % len(_LETTERS)]
    return alphabet[symbol]


def level_name(tree_level: int, depth: int) -> str:
    return {0: "leaves", depth: "class"}.get(tree_level, f"level {tree_level}")


def canvas(axes: Axes, width: tuple[float, float], height: tuple[float, float]) -> None:
    """Set axes to equal aspect and remove their frame."""
    axes.set(xlim=width, ylim=height, aspect="equal")
    axes.axis("off")


def leaf_centres(branching: int, depth: int, spacing: float = 1.0) -> dict[int, np.ndarray]:
    """Horizontal positions of the nodes, {tree_level: (nodes,)}, with every parent at the centre
    of its children.
    """
    centres = {0: spacing * np.arange(branching**depth)}
    for level in range(1, depth + 1):
        centres[level] = centres[level - 1].reshape(-1, branching).mean(axis=1)
    return centres


def token(
    axes: Axes,
    x: float,
    y: float,
    symbol: int,
    name: str,
    radius: float = 0.34,
    size: float = 11,
    ring: ColorType | None = None,
) -> None:
    """Draw a symbol: a disc of its colour with its name; `ring` is the colour of a circle around
    it.
    """
    axes.add_patch(Circle((x, y), radius, fc=SYMBOL_COLORS[symbol], ec="white", lw=1.2, zorder=4))
    if ring is not None:
        axes.add_patch(Circle((x, y), radius * 1.24, fc="none", ec=ring, lw=2.2, zorder=5))
    axes.text(
        x,
        y - 0.02 * radius,
        name,
        color="white",
        size=size,
        weight="bold",
        ha="center",
        va="center_baseline",
        zorder=6,
    )


def donut(axes: Axes, x: float, y: float, shares: np.ndarray, radius: float, width: float) -> None:
    """Draw a ring whose arcs are the probabilities of the symbols, clockwise from the top."""
    cumulated = np.cumsum(shares / shares.sum())
    ends = 90 - 360 * np.r_[0, cumulated]
    for symbol, (start, end) in enumerate(pairwise(ends)):
        if start - end > 0.2:
            axes.add_patch(
                Wedge(
                    (x, y),
                    radius,
                    end,
                    start,
                    width=width,
                    fc=SYMBOL_COLORS[symbol],
                    ec="white",
                    lw=0.6,
                    zorder=3,
                )
            )


def square(axes: Axes, x: float, y: float, side: float, color: str = "#333333") -> None:
    """Draw a square, which stands for a factor of the graphical model."""
    axes.add_patch(
        Rectangle((x - side / 2, y - side / 2), side, side, fc=color, ec="white", lw=1, zorder=4)
    )


def message_bars(
    axes: Axes,
    x: float,
    y: float,
    message: Sequence[float] | np.ndarray,
    width: float,
    height: float,
    color: ColorType,
    true_symbol: int,
    arrow: str,
) -> None:
    """Draw a message as bars over a base line centred at (x, y), full height = probability 1;
    `color`: of line, arrow and dot.
    """
    v = len(message)
    step = width / v
    left = x - width / 2
    axes.add_patch(Rectangle((left, y), width, height, fc="white", ec="#dddddd", lw=0.7, zorder=2))
    places = left + (np.arange(v) + 0.5) * step
    axes.bar(
        places, height * np.asarray(message), 0.8 * step, y, color=SYMBOL_COLORS[:v], lw=0, zorder=3
    )
    axes.plot([left, left + width], [y, y], color=color, lw=1.6, solid_capstyle="butt", zorder=4)
    axes.plot(
        [left + (true_symbol + 0.5) * step],
        [y - 0.14 * height],
        "o",
        color=color,
        ms=4,
        mew=0,
        zorder=4,
    )
    marker = "v"
    if arrow == "up":
        marker = "^"
    axes.plot([x], [y + 1.2 * height], marker, color=color, ms=7, mew=0, zorder=4)


def draw_tree(
    axes: Axes,
    latents: dict[int, np.ndarray],
    centres: dict[int, np.ndarray],
    heights: Sequence[float] | np.ndarray,
    changed: dict[int, np.ndarray] | None = None,
) -> None:
    """Draw a tree of symbols, with marks on changed nodes and on the branches to them."""
    depth = max(latents)
    for level, symbols in latents.items():
        for node, symbol in enumerate(symbols):
            x = centres[level][node]
            y = heights[level]
            marked = changed is not None and bool(changed[level][node])
            color = "#888888"
            width = 1.4
            ring = None
            if marked:
                color = CLASS
                width = 2.2
                ring = CLASS
            if level < depth:
                parent = node * len(latents[level + 1]) // len(symbols)
                ends = [x, centres[level + 1][parent]], [y, heights[level + 1]]
                axes.plot(*ends, color=color, lw=width, zorder=1)
            name = symbol_name(int(symbol), level, depth)
            token(axes, x, y, int(symbol), name, ring=ring)


def rule_table(
    axes: Axes,
    x: float,
    y: float,
    rules: np.ndarray,
    tree_level: int,
    depth: int,
    frames: dict[tuple[int, int], list[ColorType]],
) -> None:
    """Draw the rules of a level, a column for each parent from (x, y) on; `frames`: colours by
    (parent, rule), inside out.
    """
    drop = 0.62
    half = 0.26
    for parent, options in enumerate(rules):
        column = x + 1.36 * parent
        token(
            axes, column, y, parent, symbol_name(parent, tree_level, depth), radius=0.29, size=9.5
        )
        for k, children in enumerate(options):
            row = y - 0.68 - k * drop
            colors = frames.get((parent, k), [])
            for n, color in enumerate(colors):
                wide = 1.08 + 0.13 * n
                high = 0.5 + 0.13 * n
                axes.add_patch(
                    FancyBboxPatch(
                        (column - wide / 2, row - high / 2), wide, high,
                        boxstyle="round,pad=0,rounding_size=0.12", fc="none", ec=color, lw=1.7, zorder=3,
                    )
                )  # fmt: skip
            offsets = (np.arange(len(children)) - (len(children) - 1) / 2) * 2 * half
            for offset, child in zip(offsets, children, strict=True):
                name = symbol_name(int(child), tree_level - 1, depth)
                token(axes, column + offset, row, int(child), name, radius=0.225, size=8)
