"""Figs. 3, 4 and 9: pictures of one small string, its tree, its messages and one of its factors.
They have no verdicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle, Wedge

from uturn.core.random import Purpose, keys
from uturn.corruption import Gaussian, Masking
from uturn.exact.grammar import Draw
from uturn.exact.inference import infer, sample_posterior
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper.verdicts import Verdict
from uturn.paper.workshop import Workshop
from uturn.studies.plotting import trees as drawing
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, Look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE_HIDDEN = 0.5
"""Share of the leaves that fig. 3 hides, on average."""
# Chosen by eye: one branch of the tree changes in the U-turn, and one hidden leaf is recovered from
# its context.
GRAMMAR = {"vocab_size": 6, "multiplicity": 2, "branching": 2, "depth": 3, "seed": 6}
SEED = 15
TIME = 0.14
"""Diffusion time of figs. 4 and 9: half of the leaves are misread on their own, and most are
corrected by their context.
"""
OUTPUTS = ("upward", "downward", "marginals")
PARENT_LEVEL = 2
PARENT_NODE = 1
"""The factor of fig. 9: that below this node."""
STEP = 0.92
"""From tile to tile in fig. 9."""


@dataclass(frozen=True)
class Picture:
    """A figure that shows an instance, with the members of `uturn.paper.registry.FigureModule`."""

    TITLE: str
    CLAIM: str
    CAPTION: str
    instance: Callable[[], xr.Dataset]
    """The data of the picture."""
    draw: Callable[[xr.Dataset], Any]
    """The matplotlib figure."""

    def measure(self, workshop: Workshop) -> dict[str, xr.Dataset]:
        return {"instance": self.instance()}

    def analyse(self, runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
        return runs["instance"], []


# -- the string and its tree -----------------------------------------------------------------------


def small_string() -> tuple[RandomHierarchyModel, Draw, np.ndarray]:
    """The grammar and the string of figs. 3, 4 and 9, and the key of the random numbers of its
    U-turn.
    """
    rhm = RandomHierarchyModel(**GRAMMAR)
    key = keys(SEED, Purpose.PICTURE, [0])
    return rhm, rhm.sample(1, key), key


def node_coordinates(rhm: RandomHierarchyModel, levels: int | None = None) -> dict[str, Any]:
    """Coordinates of the dimension `node`: the nodes of all levels of a tree, or of the lowest
    ones, leaves first.
    """
    sizes = [rhm.num_nodes(level) for level in range(levels or rhm.depth + 1)]
    return {
        "tree_level": ("node", np.repeat(np.arange(len(sizes)), sizes)),
        "position": ("node", np.concatenate([np.arange(size) for size in sizes])),
    }


def nodes(values: dict[int, Any]) -> np.ndarray:
    """One sample of {tree_level: (1, nodes, ...)} along the dimension `node`."""
    return np.concatenate([np.asarray(values[level])[0] for level in sorted(values)])


def by_level(values: xr.DataArray) -> dict[int, np.ndarray]:
    """The inverse of `nodes`: {tree_level: (nodes, ...)}."""
    levels = values.tree_level.values
    return {int(level): values.values[levels == level] for level in np.unique(levels)}


def tree_and_rules() -> xr.Dataset:
    """The tree of the string before and after a U-turn, and its observed leaves."""
    rhm, draw, key = small_string()
    noisy = Masking().corrupt(draw.leaves, SHARE_HIDDEN, vocab_size=rhm.vocab_size, seed=key)
    rebuilt = sample_posterior(rhm, Masking().log_evidence(noisy, np.float32), key)
    return xr.Dataset(
        {
            "original": ("node", nodes(draw.latents)),
            "reconstruction": ("node", nodes(rebuilt)),
            "observed": ("leaf", noisy.values[0]),
        },
        coords=node_coordinates(rhm),
        attrs={"noise": SHARE_HIDDEN},
    )


# -- fig. 3 ----------------------------------------------------------------------------------------


def rule_used(
    rhm: RandomHierarchyModel, latents: dict[int, np.ndarray]
) -> set[tuple[int, int, int]]:
    """Rules used in a tree: {(tree_level, parent symbol, rule)}."""
    parse = rhm.parse(latents[0][None])
    return {
        (level, int(y), int(k))
        for level in parse.rules
        for y, k in zip(parse.latents[level][0], parse.rules[level][0], strict=True)
    }


def draw_tree_and_rules(data: xr.Dataset) -> Figure:
    rhm = RandomHierarchyModel(**GRAMMAR)
    before, after = (by_level(data[name]) for name in ("original", "reconstruction"))
    changed = {level: before[level] != after[level] for level in before}
    L = rhm.depth
    d = rhm.num_leaves
    gap = 2.35
    middle = 8.9
    right = 17.6
    heights = gap * np.arange(L + 1)
    centres = drawing.leaf_centres(rhm.branching, L)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 5.4), layout="constrained")
        drawing.canvas(axes, (-2.4, right + d - 0.4), (-1.5, heights[L] + 1.2))
        for level in range(L + 1):
            axes.text(
                -0.75,
                heights[level],
                drawing.level_name(level, L),
                ha="right",
                va="center",
                color=MUTED,
                size=10,
            )
            axes.plot(
                [-0.6, right + d - 0.6], [heights[level]] * 2, color="#eeeeee", lw=1, zorder=0
            )
        titles = ("A string and its tree", "The rules, two for every symbol", "After a U-turn")
        for x, title in zip((3.5, middle + 3.4, right + 3.5), titles, strict=True):
            axes.text(x, heights[L] + 0.95, title, ha="center", va="center", size=13, weight="bold")
        drawing.draw_tree(axes, before, centres, heights)
        drawing.draw_tree(
            axes, after, {level: x + right for level, x in centres.items()}, heights, changed
        )
        for level in range(1, L + 1):
            frames: dict[tuple[int, int], list[Any]] = {}
            for color, tree in ((ACCENT, before), (CLASS, after)):
                for at, parent, k in rule_used(rhm, tree):
                    if at == level:
                        frames.setdefault((parent, k), []).append(color)
            drawing.rule_table(
                axes, middle, heights[level] - 0.52, rhm.rules[level], level, L, frames
            )
        for x, row_name in ((0.0, "seen through\nthe noise"), (right, "")):
            for leaf, symbol in enumerate(data.observed.values):
                place = x + leaf
                axes.plot([place, place], [-0.4, -0.85], color="#bbbbbb", lw=1, ls=":", zorder=1)
                color = "#e4e4e4" if symbol < 0 else drawing.SYMBOL_COLORS[symbol]
                look: dict[str, Any] = {
                    "boxstyle": "round,pad=0.04",
                    "fc": color,
                    "ec": "white",
                    "zorder": 3,
                }
                axes.add_patch(FancyBboxPatch((place - 0.2, -1.35), 0.4, 0.4, **look))
                name, color = (
                    ("?", MUTED)
                    if symbol < 0
                    else (drawing.symbol_name(int(symbol), 0, L), "white")
                )
                axes.text(
                    place,
                    -1.16,
                    name,
                    color=color,
                    weight="bold",
                    ha="center",
                    va="center",
                    zorder=4,
                )
            axes.text(-0.75, -1.15, row_name, ha="right", va="center", color=MUTED, size=10)
        key = ((ACCENT, "used in the original"), (CLASS, "used after the U-turn"))
        for k, (color, meaning) in enumerate(key):
            left = middle - 0.7 + 4.2 * k
            corners = "round,pad=0,rounding_size=0.1"
            axes.add_patch(
                FancyBboxPatch(
                    (left, -1.33), 0.5, 0.36, boxstyle=corners, fc="none", ec=color, lw=1.7
                )
            )
            axes.text(left + 0.65, -1.15, meaning, va="center", size=9.5)
    return figure


# -- fig. 4 ----------------------------------------------------------------------------------------


def observation(
    precision: type[np.floating] = np.float32,
) -> tuple[RandomHierarchyModel, dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Grammar, true tree, noisy leaves (leaf, symbol) and their log-evidence of the picture."""
    rhm, draw, key = small_string()
    noisy = Gaussian().corrupt(draw.leaves, TIME, vocab_size=rhm.vocab_size, seed=key)
    return rhm, draw.latents, noisy.values[0], Gaussian().log_evidence(noisy, precision)[0]


def messages() -> xr.Dataset:
    """The messages at all nodes of the tree, given noisy leaves."""
    rhm, latents, noisy, log_evidence = observation()
    beliefs = infer(rhm, log_evidence[None], outputs=OUTPUTS)
    return xr.Dataset(
        {
            "true_symbol": ("node", nodes(latents)),
            "noisy": (("leaf", "symbol"), noisy),
            "log_evidence": (("leaf", "symbol"), log_evidence),
            **{name: (("node", "symbol"), nodes(getattr(beliefs, name))) for name in OUTPUTS},
        },
        coords=node_coordinates(rhm),
        attrs={"time": TIME},
    )


def draw_messages(data: xr.Dataset) -> Figure:
    rhm = RandomHierarchyModel(**GRAMMAR)
    true, up, down, posterior = (by_level(data[name]) for name in ("true_symbol", *OUTPUTS))
    L = rhm.depth
    s = rhm.branching
    d = rhm.num_leaves
    spacing = 3.15
    gap = 2.9
    wide = 0.86
    high = 0.9
    aside = 1.06
    centres = drawing.leaf_centres(s, L, spacing)
    heights = gap * np.arange(L + 1)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 6.8), layout="constrained")
        drawing.canvas(axes, (-4.4, spacing * (d - 1) + 1.6), (-3.1, heights[L] + 0.9))
        for level in range(L + 1):
            axes.text(
                -1.75,
                heights[level],
                drawing.level_name(level, L),
                ha="right",
                va="center",
                color=MUTED,
                size=11,
            )
            for node, true_symbol in enumerate(true[level]):
                x = centres[level][node]
                y = heights[level]
                symbol = int(true_symbol)
                if level:
                    square = y - 0.52 * gap
                    axes.plot([x, x], [y, square], color="#999999", lw=1.6, zorder=1)
                    for below in centres[level - 1][s * node : s * (node + 1)]:
                        axes.plot(
                            [x, below],
                            [square, heights[level - 1]],
                            color="#999999",
                            lw=1.6,
                            zorder=1,
                        )
                    drawing.square(axes, x, square, 0.42)
                drawing.donut(axes, x, y, posterior[level][node], 0.58, 0.16)
                drawing.token(
                    axes, x, y, symbol, drawing.symbol_name(symbol, level, L), radius=0.38, size=12
                )
                foot = y - high / 2
                drawing.message_bars(
                    axes, x - aside, foot, up[level][node], wide, high, drawing.UP, symbol, "up"
                )
                drawing.message_bars(
                    axes,
                    x + aside,
                    foot,
                    down[level][node],
                    wide,
                    high,
                    drawing.DOWN,
                    symbol,
                    "down",
                )
        _draw_noisy_leaves(axes, data.noisy.values, centres[0], -1.85)
        axes.text(
            -1.75,
            -1.85,
            "noisy leaves $x_t$\n" + rf"$t={data.attrs['time']:g}$",
            ha="right",
            va="center",
            color=MUTED,
        )
        alone, together = (
            int((table[0].argmax(axis=1) != true[0]).sum()) for table in (up, posterior)
        )
        errors = (
            f"{alone} of {d} leaves from their own evidence, {together} of {d} from the posterior"
        )
        axes.text(
            spacing * (d - 1) / 2,
            -2.85,
            f"most probable symbol wrong: {errors}",
            ha="center",
            va="center",
            size=11,
        )
        _draw_key(axes, spacing * (d - 1) - 6.2, heights[L] + 0.4)
    return figure


def _draw_noisy_leaves(axes: Axes, noisy: np.ndarray, centres: np.ndarray, foot: float) -> None:
    """The components of every noisy leaf as bars in the colours of the symbols."""
    step = 1.5 / noisy.shape[1]
    scale = 0.72 / float(np.abs(noisy).max())
    for x, values in zip(centres, noisy, strict=True):
        axes.plot([x, x], [-0.6, foot + 0.78], color="#999999", lw=1.4, ls=":", zorder=1)
        left = x - 0.75 + (np.arange(len(values)) + 0.1) * step
        axes.bar(
            left,
            scale * values,
            0.8 * step,
            foot,
            align="edge",
            color=drawing.SYMBOL_COLORS[: len(values)],
            lw=0,
            zorder=3,
        )
        axes.plot([x - 0.8, x + 0.8], [foot, foot], color=MUTED, lw=1)


def _draw_key(axes: Axes, x: float, y: float) -> None:
    lines = (
        (drawing.UP, "up: what the leaves below say"),
        (drawing.DOWN, "down: what all other leaves say"),
        (None, "ring: posterior, disc: true symbol"),
        ("#333333", "factor: the rules of a level"),
    )
    for k, (color, meaning) in enumerate(lines):
        at = y - 0.62 * k
        if k < 2:
            axes.plot([x], [at], "^" if k == 0 else "v", color=color, ms=9, mew=0)
        elif k == 2:
            axes.add_patch(Circle((x, at), 0.13, fc=MUTED, lw=0))
            axes.add_patch(Wedge((x, at), 0.24, 0, 360, width=0.07, fc="#bbbbbb", lw=0))
        else:
            drawing.square(axes, x, at, 0.36, str(color))
        axes.text(x + 0.5, at, meaning, va="center", size=11)


# -- fig. 9 ----------------------------------------------------------------------------------------


def factor(precision: type[np.floating] = np.float32) -> xr.Dataset:
    """The messages on one factor of fig. 4, and what every rule contributes to them (Eqs. 7, 8):
    `contribution_up` and `contribution_left`, (parent, rule), not normalised.
    """
    rhm, latents, _, log_evidence = observation(precision)
    beliefs = infer(rhm, log_evidence[None], outputs=("upward", "downward"))
    s = rhm.branching
    children = slice(s * PARENT_NODE, s * (PARENT_NODE + 1))
    rules = rhm.rules[PARENT_LEVEL]
    up = beliefs.upward[PARENT_LEVEL - 1][0, children]
    down = beliefs.downward[PARENT_LEVEL][0, PARENT_NODE]
    return xr.Dataset(
        {
            "rules": (("parent", "rule", "child"), rules),
            "true_parent": int(latents[PARENT_LEVEL][0, PARENT_NODE]),
            "true_children": ("child", latents[PARENT_LEVEL - 1][0, children]),
            "upward_children": (("child", "symbol"), up),
            "upward_parent": ("symbol", beliefs.upward[PARENT_LEVEL][0, PARENT_NODE]),
            "downward_parent": ("symbol", down),
            "downward_children": (
                ("child", "symbol"),
                beliefs.downward[PARENT_LEVEL - 1][0, children],
            ),
            "contribution_up": (("parent", "rule"), up[0][rules[..., 0]] * up[1][rules[..., 1]]),
            "contribution_left": (("parent", "rule"), down[:, None] * up[1][rules[..., 1]]),
        },
        attrs={"tree_level": PARENT_LEVEL, "depth": rhm.depth, "time": TIME},
    )


def draw_factor(data: xr.Dataset) -> Figure:
    level = data.attrs["tree_level"]
    depth = data.attrs["depth"]
    v = data.sizes["symbol"]
    up = data.upward_children.values
    down_children = data.downward_children.values
    up_parent = data.upward_parent.values
    down_parent = data.downward_parent.values
    parent = int(data.true_parent)
    children = data.true_children.values
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 5.6), layout="constrained")
        drawing.canvas(axes, (-1.8, 25.7), (-2.9, 8.6))
        titles = (
            (1.8, "Messages on a factor"),
            (11.3, "Upward: sums over colours"),
            (21.3, "Downward, left: sums over columns"),
        )
        for x, title in titles:
            axes.text(x, 8.1, title, size=13, weight="bold", ha="center")
        # Left: the factor with its variables.
        top = 5.6
        foot = 0.0
        at = (-0.1, 3.7)
        axes.plot([1.8, 1.8], [top, 2.8], color="#999999", lw=1.8, zorder=1)
        for x in at:
            axes.plot([1.8, x], [2.8, foot], color="#999999", lw=1.8, zorder=1)
        drawing.square(axes, 1.8, 2.8, 0.55)
        drawing.token(axes, 1.8, top, parent, drawing.symbol_name(parent, level, depth), 0.45, 14)
        drawing.message_bars(axes, 0.35, top - 0.55, up_parent, 1.25, 1.1, drawing.UP, parent, "up")
        drawing.message_bars(
            axes, 3.25, top - 0.55, down_parent, 1.25, 1.1, drawing.DOWN, parent, "down"
        )
        for child, x in enumerate(at):
            true = int(children[child])
            drawing.token(
                axes, x, foot, true, drawing.symbol_name(true, level - 1, depth), 0.45, 14
            )
            drawing.message_bars(
                axes, x - 0.78, foot - 2.1, up[child], 1.25, 1.1, drawing.UP, true, "up"
            )
            drawing.message_bars(
                axes,
                x + 0.78,
                foot - 2.1,
                down_children[child],
                1.25,
                1.1,
                drawing.DOWN,
                true,
                "down",
            )
        # Middle and right: the rules as tiles at (a, b), with the messages they are multiplied with
        # on the sides.
        for x0, shares, color, top_message, top_text, summed_child, sums_text in (
            (
                8.3,
                data.contribution_up.values,
                drawing.UP,
                up[0],
                "left child says",
                None,
                "to the\nparent",
            ),
            (
                18.4,
                data.contribution_left.values,
                drawing.DOWN,
                down_parent,
                "parent says (by colour)",
                0,
                "to the\nleft child",
            ),
        ):
            _tiles(axes, x0, data.rules.values, shares, level, depth)
            edge = v * STEP + 0.15
            _profile(axes, x0 + edge, 0, up[1], upright=False)
            axes.text(
                x0 + edge + 0.1, edge, "right child says", color=drawing.UP, size=9.5, va="bottom"
            )
            _profile(axes, x0, edge, top_message, upright=True)
            axes.text(x0, v * STEP + 1.6, top_text, color=color, size=9.5, va="bottom")
            _sums(axes, x0, -1.1, shares, data.rules.values, summed_child, level, depth)
            axes.text(x0 - 0.25, -1.5, sums_text, color=color, size=9.5, ha="right", va="center")
    return figure


def _tiles(
    axes: Axes, x: float, rules: np.ndarray, shares: np.ndarray, level: int, depth: int
) -> None:
    v = len(rules)
    for a in range(v):
        for b in range(v):
            axes.add_patch(
                Rectangle(
                    (x + a * STEP, b * STEP),
                    STEP,
                    STEP,
                    fc="#fafafa",
                    ec="#e2e2e2",
                    lw=0.7,
                    zorder=1,
                )
            )
        name = drawing.symbol_name(a, level - 1, depth)
        drawing.token(axes, x + (a + 0.5) * STEP, -0.42, a, name, 0.27, 9)
        drawing.token(axes, x - 0.42, (a + 0.5) * STEP, a, name, 0.27, 9)
    for parent, options in enumerate(rules):
        for (a, b), share in zip(options, shares[parent], strict=True):
            corner = (x + (a + 0.05) * STEP, (b + 0.05) * STEP)
            color = drawing.SYMBOL_COLORS[parent]
            axes.add_patch(
                Rectangle(corner, 0.9 * STEP, 0.9 * STEP, fc=color, alpha=0.22, lw=0, zorder=2)
            )
            axes.add_patch(
                Rectangle(
                    corner, 0.9 * STEP, 0.9 * STEP * share / shares.max(), fc=color, lw=0, zorder=3
                )
            )
            name = drawing.symbol_name(parent, level, depth)
            axes.text(
                corner[0] + 0.45 * STEP,
                corner[1] + 0.45 * STEP,
                name,
                ha="center",
                va="center",
                size=11,
                zorder=5,
            )


def _profile(axes: Axes, x: float, y: float, message: np.ndarray, upright: bool) -> None:
    lengths = 1.3 * message / message.max()
    steps = (np.arange(len(message)) + 0.5) * STEP
    look: Look = {"color": drawing.SYMBOL_COLORS[: len(message)], "lw": 0, "zorder": 1}
    if upright:
        axes.bar(x + steps, lengths, 0.7 * STEP, y, **look)
        axes.plot([x, x + len(message) * STEP], [y, y], color=MUTED, lw=0.9)
    else:
        axes.barh(y + steps, lengths, 0.7 * STEP, x, **look)
        axes.plot([x, x], [y, y + len(message) * STEP], color=MUTED, lw=0.9)


def _sums(
    axes: Axes,
    x: float,
    y: float,
    shares: np.ndarray,
    rules: np.ndarray,
    child: int | None,
    level: int,
    depth: int,
) -> None:
    """Contributions stacked by parent symbol (child None) or by the symbol of a child, hanging
    below the tiles.
    """
    v = len(rules)
    groups: list[list[tuple[float, int]]] = [[] for _ in range(v)]
    for parent, options in enumerate(rules):
        for k, symbols in enumerate(options):
            groups[parent if child is None else symbols[child]].append(
                (float(shares[parent, k]), parent)
            )
    top = max(sum(share for share, _ in group) for group in groups)
    for k, group in enumerate(groups):
        at = y
        for share, parent in sorted(group, reverse=True):
            high = 1.2 * share / top
            left = x + (k + 0.15) * STEP
            axes.add_patch(
                Rectangle(
                    (left, at - high),
                    0.7 * STEP,
                    high,
                    fc=drawing.SYMBOL_COLORS[parent],
                    ec="white",
                    lw=0.8,
                )
            )
            at -= high
        if child is None:
            axes.text(
                x + (k + 0.5) * STEP,
                y - 1.5,
                drawing.symbol_name(k, level, depth),
                size=11,
                ha="center",
                va="center",
            )
    axes.plot(
        [x, x + v * STEP], [y, y], color=drawing.UP if child is None else drawing.DOWN, lw=1.6
    )


FIG3 = Picture(
    TITLE="A string, its tree and its grammar",
    CLAIM=(
        "A string of the solvable model grows from a tree of rules, and a U-turn changes whole"
        " branches of that tree."
    ),
    CAPTION=(
        "Left: a string of a small Random Hierarchy Model (6 symbols, 2 rules each, 2 children,"
        " depth 3) and the tree behind it; its class is the symbol on top. Middle: all rules of the"
        " grammar, level by level; framed: those the tree is made of. Right: a U-turn. Half of the"
        " leaves, on average, were hidden, and a string drawn from the exact posterior: red marks"
        " what changed. Below a changed latent at least one child has changed too, down to a hidden"
        " leaf, as two symbols share no rule. Hidden leaves elsewhere can come back, as their"
        " context determines them."
    ),
    instance=tree_and_rules,
    draw=draw_tree_and_rules,
)
FIG4 = Picture(
    TITLE="The factor graph and its messages",
    CLAIM=(
        "Messages from the noisy leaves, and back from the class, give the exact probability of"
        " every symbol in the tree."
    ),
    CAPTION=(
        "The string of fig. 3 seen through Gaussian diffusion. Discs: variables, with their true"
        " symbols; squares: factors, one for every rule used in the tree. Bars: the exact messages"
        " of belief propagation, a bar a symbol, marks under the true one. Blue, going up: what the"
        " leaves below a node say about it, starting from the evidence of the noisy leaves. Red,"
        " going down: what all other leaves say, starting from the uniform prior of the class."
        " Rings: the posterior probabilities, proportional to their product."
    ),
    instance=messages,
    draw=draw_messages,
)
FIG9 = Picture(
    TITLE="The messages on one factor",
    CLAIM="A message is a sum over the rules of the grammar that fit what is known.",
    CAPTION=(
        "One factor of fig. 4 and its rules. Upward (Eq. 7): a rule y → (a, b) contributes the"
        " product of what the two children say about a and b; the sum over the rules of y is the"
        " message to the parent. Downward (Eq. 8), to the left child: a rule contributes what the"
        " parent says about y times what the right child says about b; the sum over the rules with"
        " left symbol a is the message. Tiles: the rules, in the colour of their parent; filled"
        " part: their contribution, largest = full."
    ),
    instance=factor,
    draw=draw_factor,
)
