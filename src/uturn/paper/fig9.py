"""Fig. 9: the messages on one factor, and the rules that make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.patches import Rectangle

from uturn.exact.inference import infer
from uturn.paper import fig4
from uturn.paper.verdicts import Verdict, equal, vanishes, verdict
from uturn.paper.workshop import Workshop
from uturn.studies.plotting import trees as drawing
from uturn.studies.plotting.style import MUTED, style

TITLE = "The messages on one factor"
CLAIM = "A message is a sum over the rules of the grammar that fit what is known."
CAPTION = (
    "One factor of fig. 4 and its rules. Upward (Eq. 7): a rule y → (a, b) contributes the product of what the two children say "
    "about a and b; the sum over the rules of y is the message to the parent. Downward (Eq. 8), to the left child: a rule "
    "contributes what the parent says about y times what the right child says about b; the sum over the rules with left symbol a "
    "is the message. Tiles: the rules, in the colour of their parent; filled part: their contribution, largest = full."
)
LEVEL, NODE = 2, 1  # the parent
STEP = 0.92  # from tile to tile


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    rhm, latents, _, log_evidence = fig4.observation()
    beliefs = infer(rhm, log_evidence[None], outputs=("upward", "downward"))
    s = rhm.branching
    children = slice(s * NODE, s * (NODE + 1))
    return {
        "factor": xr.Dataset(
            {
                "rules": (("parent", "rule", "child"), rhm.rules[LEVEL]),
                "true_parent": int(latents[LEVEL][0, NODE]),
                "true_children": ("child", latents[LEVEL - 1][0, children]),
                "upward_children": (("child", "symbol"), beliefs.upward[LEVEL - 1][0, children]),
                "upward_parent": ("symbol", beliefs.upward[LEVEL][0, NODE]),
                "downward_parent": ("symbol", beliefs.downward[LEVEL][0, NODE]),
                "downward_children": (("child", "symbol"), beliefs.downward[LEVEL - 1][0, children]),
            },
            attrs={"tree_level": LEVEL, "depth": rhm.depth, "time": fig4.TIME},
        )
    }


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["factor"].load()
    rules, v = data.rules.values, data.sizes["symbol"]
    up, down = data.upward_children.values, data.downward_parent.values
    # One number a rule; every message is a sum of them.
    upward = up[0][rules[..., 0]] * up[1][rules[..., 1]]
    to_left, to_right = (down[:, None] * up[1 - child][rules[..., 1 - child]] for child in (0, 1))
    data = data.assign(
        contribution_up=(("parent", "rule"), upward),
        contribution_left=(("parent", "rule"), to_left),
        contribution_right=(("parent", "rule"), to_right),
    )
    sums = {"upward, to the parent (Eq. 7)": (upward.sum(axis=1), data.upward_parent.values)}
    for child, (side, shares) in enumerate((("left", to_left), ("right", to_right))):
        total = np.zeros(v)
        np.add.at(total, rules[..., child].ravel(), shares.ravel())
        sums[f"downward, to the {side} child (Eq. 8)"] = (total, data.downward_children.values[child])
    verdicts = []
    for message_name, (total, message) in sums.items():
        error = float(np.abs(total / total.sum() - message).max())
        quantity = f"contributions of the rules, summed, against the message {message_name}"
        verdicts.append(vanishes(quantity, error, prefix="largest difference "))
    distinct = len(np.unique(rules.reshape(-1, 2), axis=0))
    count = rules[..., 0].size
    verdicts.append(verdict("distinct pairs among the rules", distinct, f"v m = {count}", equal(distinct, count)))
    return data, verdicts


def draw(data: xr.Dataset) -> Any:
    level, depth, v = data.attrs["tree_level"], data.attrs["depth"], data.sizes["symbol"]
    up, down_children = data.upward_children.values, data.downward_children.values
    up_parent, down_parent = data.upward_parent.values, data.downward_parent.values
    parent, children = int(data.true_parent), data.true_children.values
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 5.6), layout="constrained")
        drawing.canvas(axes, (-1.8, 25.7), (-2.9, 8.6))
        titles = ((1.8, "Messages on a factor"), (11.3, "Upward: sums over colours"), (21.3, "Downward, left: sums over columns"))
        for x, title in titles:
            axes.text(x, 8.1, title, size=13, weight="bold", ha="center")
        # Left: the factor with its variables.
        top, foot, at = 5.6, 0.0, (-0.1, 3.7)
        axes.plot([1.8, 1.8], [top, 2.8], color="#999999", lw=1.8, zorder=1)
        for x in at:
            axes.plot([1.8, x], [2.8, foot], color="#999999", lw=1.8, zorder=1)
        drawing.square(axes, 1.8, 2.8, 0.55)
        drawing.token(axes, 1.8, top, parent, drawing.symbol_name(parent, level, depth), 0.45, 14)
        drawing.message_bars(axes, 0.35, top - 0.55, up_parent, 1.25, 1.1, drawing.UP, parent, "up")
        drawing.message_bars(axes, 3.25, top - 0.55, down_parent, 1.25, 1.1, drawing.DOWN, parent, "down")
        for child, x in enumerate(at):
            true = int(children[child])
            drawing.token(axes, x, foot, true, drawing.symbol_name(true, level - 1, depth), 0.45, 14)
            drawing.message_bars(axes, x - 0.78, foot - 2.1, up[child], 1.25, 1.1, drawing.UP, true, "up")
            drawing.message_bars(axes, x + 0.78, foot - 2.1, down_children[child], 1.25, 1.1, drawing.DOWN, true, "down")
        # Middle and right: the rules as tiles at (a, b), with the messages they are multiplied with on the sides.
        for x0, shares, color, top_message, top_text, summed_child, sums_text in (
            (8.3, data.contribution_up.values, drawing.UP, up[0], "left child says", None, "to the\nparent"),
            (18.4, data.contribution_left.values, drawing.DOWN, down_parent, "parent says (by colour)", 0, "to the\nleft child"),
        ):
            _tiles(axes, x0, data.rules.values, shares, level, depth)
            edge = v * STEP + 0.15
            _profile(axes, x0 + edge, 0, up[1], upright=False)
            axes.text(x0 + edge + 0.1, edge, "right child says", color=drawing.UP, size=9.5, va="bottom")
            _profile(axes, x0, edge, top_message, upright=True)
            axes.text(x0, v * STEP + 1.6, top_text, color=color, size=9.5, va="bottom")
            _sums(axes, x0, -1.1, shares, data.rules.values, summed_child, level, depth)
            axes.text(x0 - 0.25, -1.5, sums_text, color=color, size=9.5, ha="right", va="center")
    return figure


def _tiles(axes: Any, x: float, rules: np.ndarray, shares: np.ndarray, level: int, depth: int) -> None:
    v = len(rules)
    for a in range(v):
        for b in range(v):
            axes.add_patch(Rectangle((x + a * STEP, b * STEP), STEP, STEP, fc="#fafafa", ec="#e2e2e2", lw=0.7, zorder=1))
        name = drawing.symbol_name(a, level - 1, depth)
        drawing.token(axes, x + (a + 0.5) * STEP, -0.42, a, name, 0.27, 9)
        drawing.token(axes, x - 0.42, (a + 0.5) * STEP, a, name, 0.27, 9)
    for parent, options in enumerate(rules):
        for (a, b), share in zip(options, shares[parent], strict=True):
            corner = (x + (a + 0.05) * STEP, (b + 0.05) * STEP)
            color = drawing.SYMBOL_COLORS[parent]
            axes.add_patch(Rectangle(corner, 0.9 * STEP, 0.9 * STEP, fc=color, alpha=0.22, lw=0, zorder=2))
            axes.add_patch(Rectangle(corner, 0.9 * STEP, 0.9 * STEP * share / shares.max(), fc=color, lw=0, zorder=3))
            name = drawing.symbol_name(parent, level, depth)
            axes.text(corner[0] + 0.45 * STEP, corner[1] + 0.45 * STEP, name, ha="center", va="center", size=11, zorder=5)


def _profile(axes: Any, x: float, y: float, message: np.ndarray, upright: bool) -> None:
    lengths, steps = 1.3 * message / message.max(), (np.arange(len(message)) + 0.5) * STEP
    look = {"color": drawing.SYMBOL_COLORS[: len(message)], "lw": 0, "zorder": 1}
    if upright:
        axes.bar(x + steps, lengths, 0.7 * STEP, y, **look)
        axes.plot([x, x + len(message) * STEP], [y, y], color=MUTED, lw=0.9)
    else:
        axes.barh(y + steps, lengths, 0.7 * STEP, x, **look)
        axes.plot([x, x], [y, y + len(message) * STEP], color=MUTED, lw=0.9)


def _sums(
    axes: Any, x: float, y: float, shares: np.ndarray, rules: np.ndarray, child: int | None, level: int, depth: int
) -> None:
    """Contributions stacked by parent symbol (child None) or by the symbol of a child, hanging below the tiles."""
    v = len(rules)
    groups: list[list[tuple[float, int]]] = [[] for _ in range(v)]
    for parent, options in enumerate(rules):
        for k, symbols in enumerate(options):
            groups[parent if child is None else symbols[child]].append((float(shares[parent, k]), parent))
    top = max(sum(share for share, _ in group) for group in groups)
    for k, group in enumerate(groups):
        at = y
        for share, parent in sorted(group, reverse=True):
            high = 1.2 * share / top
            left = x + (k + 0.15) * STEP
            axes.add_patch(Rectangle((left, at - high), 0.7 * STEP, high, fc=drawing.SYMBOL_COLORS[parent], ec="white", lw=0.8))
            at -= high
        if child is None:
            axes.text(x + (k + 0.5) * STEP, y - 1.5, drawing.symbol_name(k, level, depth), size=11, ha="center", va="center")
    axes.plot([x, x + v * STEP], [y, y], color=drawing.UP if child is None else drawing.DOWN, lw=1.6)
