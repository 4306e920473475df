"""Fig. 3: a tree of the Random Hierarchy Model with its symbols and rules, and what a U-turn does to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.patches import FancyBboxPatch

from uturn.core.random import Purpose, keys
from uturn.corruption import Masking
from uturn.exact.inference import sample_posterior
from uturn.exact.rhm import Draw, RandomHierarchyModel
from uturn.paper.verdicts import Verdict, equal, verdict
from uturn.paper.workshop import Workshop
from uturn.studies.plotting import trees as drawing
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, style

TITLE = "A string, its tree and its grammar"
CLAIM = "A string of the solvable model grows from a tree of rules, and a U-turn changes whole branches of that tree."
CAPTION = (
    "Left: a string of a small Random Hierarchy Model (6 symbols, 2 rules each, 2 children, depth 3) and the tree behind it; its "
    "class is the symbol on top. Middle: all rules of the grammar, level by level; framed: those the tree is made of. Right: a "
    "U-turn. Half of the leaves, on average, were hidden, and a string drawn from the exact posterior: red marks what changed. "
    "Below a changed latent at least one child has changed too, down to a hidden leaf, as two symbols share no rule. Hidden "
    "leaves elsewhere can come back, as their context determines them."
)
NOISE = 0.5
# Chosen by eye: one branch of the tree changes in the U-turn, and one hidden leaf is recovered from its context.
GRAMMAR = {"vocab_size": 6, "multiplicity": 2, "branching": 2, "depth": 3, "seed": 6}
SEED = 15


def small_string() -> tuple[RandomHierarchyModel, Draw, np.ndarray]:
    """The grammar and the string of figs. 3, 4 and 9, and the key of the random numbers of its U-turn."""
    rhm, key = RandomHierarchyModel(**GRAMMAR), keys(SEED, Purpose.PICTURE, [0])
    return rhm, rhm.sample(1, key), key


def node_coordinates(rhm: RandomHierarchyModel, levels: int | None = None) -> dict[str, Any]:
    """Coordinates of the dimension `node`: the nodes of all levels of a tree, or of the lowest ones, leaves first."""
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


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    rhm, draw, key = small_string()
    noisy = Masking().corrupt(draw.leaves, NOISE, rhm.vocab_size, key)
    rebuilt = sample_posterior(rhm, Masking().log_evidence(noisy), key)
    data = xr.Dataset(
        {
            "original": ("node", nodes(draw.latents)),
            "reconstruction": ("node", nodes(rebuilt)),
            "observed": ("leaf", noisy.values[0]),
        },
        coords=node_coordinates(rhm),
        attrs={"noise": NOISE},
    )
    return {"instance": data}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["instance"]
    trees = {name: by_level(data[name]) for name in ("original", "reconstruction")}
    seen = data.observed.values >= 0
    unchanged = {name: int((tree[0] == data.observed.values)[seen].sum()) for name, tree in trees.items()}
    return data, [
        verdict(
            "leaves that were seen and are unchanged: original, reconstruction",
            f"{unchanged['original']} and {unchanged['reconstruction']} of {int(seen.sum())}",
            "all",
            equal(list(unchanged.values()), int(seen.sum())),
        ),
    ]


def rule_used(rhm: RandomHierarchyModel, latents: dict[int, np.ndarray]) -> set[tuple[int, int, int]]:
    """Rules used in a tree: {(tree_level, parent symbol, rule)}."""
    parse = rhm.parse(latents[0][None])
    return {
        (level, int(y), int(k))
        for level in parse.rules
        for y, k in zip(parse.latents[level][0], parse.rules[level][0], strict=True)
    }


def draw(data: xr.Dataset) -> Any:
    rhm = RandomHierarchyModel(**GRAMMAR)
    before, after = (by_level(data[name]) for name in ("original", "reconstruction"))
    changed = {level: before[level] != after[level] for level in before}
    L, d = rhm.depth, rhm.num_leaves
    gap, middle, right = 2.35, 8.9, 17.6
    heights = gap * np.arange(L + 1)
    centres = drawing.leaf_centres(rhm.branching, L)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 5.4), layout="constrained")
        drawing.canvas(axes, (-2.4, right + d - 0.4), (-1.5, heights[L] + 1.2))
        for level in range(L + 1):
            axes.text(-0.75, heights[level], drawing.level_name(level, L), ha="right", va="center", color=MUTED, size=10)
            axes.plot([-0.6, right + d - 0.6], [heights[level]] * 2, color="#eeeeee", lw=1, zorder=0)
        titles = ("A string and its tree", "The rules, two for every symbol", "After a U-turn")
        for x, title in zip((3.5, middle + 3.4, right + 3.5), titles, strict=True):
            axes.text(x, heights[L] + 0.95, title, ha="center", va="center", size=13, weight="bold")
        drawing.draw_tree(axes, before, centres, heights)
        drawing.draw_tree(axes, after, {level: x + right for level, x in centres.items()}, heights, changed)
        for level in range(1, L + 1):
            frames: dict[tuple[int, int], list[Any]] = {}
            for color, tree in ((ACCENT, before), (CLASS, after)):
                for at, parent, k in rule_used(rhm, tree):
                    if at == level:
                        frames.setdefault((parent, k), []).append(color)
            drawing.rule_table(axes, middle, heights[level] - 0.52, rhm.rules[level], level, L, frames)
        for x, row_name in ((0.0, "seen through\nthe noise"), (right, "")):
            for leaf, symbol in enumerate(data.observed.values):
                place = x + leaf
                axes.plot([place, place], [-0.4, -0.85], color="#bbbbbb", lw=1, ls=":", zorder=1)
                color = "#e4e4e4" if symbol < 0 else drawing.SYMBOL_COLORS[symbol]
                look: dict[str, Any] = {"boxstyle": "round,pad=0.04", "fc": color, "ec": "white", "zorder": 3}
                axes.add_patch(FancyBboxPatch((place - 0.2, -1.35), 0.4, 0.4, **look))
                name, color = ("?", MUTED) if symbol < 0 else (drawing.symbol_name(int(symbol), 0, L), "white")
                axes.text(place, -1.16, name, color=color, weight="bold", ha="center", va="center", zorder=4)
            axes.text(-0.75, -1.15, row_name, ha="right", va="center", color=MUTED, size=10)
        key = ((ACCENT, "used in the original"), (CLASS, "used after the U-turn"))
        for k, (color, meaning) in enumerate(key):
            left, corners = middle - 0.7 + 4.2 * k, "round,pad=0,rounding_size=0.1"
            axes.add_patch(FancyBboxPatch((left, -1.33), 0.5, 0.36, boxstyle=corners, fc="none", ec=color, lw=1.7))
            axes.text(left + 0.65, -1.15, meaning, va="center", size=9.5)
    return figure
