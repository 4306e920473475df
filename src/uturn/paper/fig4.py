"""Fig. 4: the factor graph of a tree, and the messages that belief propagation sends along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.patches import Circle, Wedge

from uturn.corruption import Gaussian
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper import small_tree as small
from uturn.paper.channels import ChannelSpec, channel_spec
from uturn.paper.verdicts import Verdict, below, vanishes, verdict
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting import trees as drawing
from uturn.studies.plotting.style import MUTED, style

TITLE = "The factor graph and its messages"
CLAIM = "Messages from the noisy leaves, and back from the class, give the exact probability of every symbol in the tree."
CAPTION = (
    "The string of fig. 3 seen through Gaussian diffusion. Discs: variables, with their true symbols; squares: factors, one for "
    "every rule used in the tree. Bars: the exact messages of belief propagation, a bar a symbol, marks under the true one. "
    "Blue, going up: what the leaves below a node say about it, starting from the evidence of the noisy leaves. Red, going down: "
    "what all other leaves say, starting from the uniform prior of the class. Rings: the posterior probabilities, proportional "
    "to their product."
)
TIME = 0.14  # diffusion time: half of the leaves are misread on their own, and most of them corrected by their context
OUTPUTS = ("upward", "downward", "marginals")


def channels(scale: Scale) -> list[ChannelSpec]:
    return [channel_spec("Gaussian", small.SOURCE, "gaussian", scale, [TIME])]


def observation() -> tuple[RandomHierarchyModel, dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Grammar, true tree, noisy leaves (leaf, symbol) and their log-evidence of the picture."""
    rhm = small.small_grammar()
    draw, key = small.small_string(rhm)
    noisy = Gaussian().corrupt(draw.leaves, TIME, rhm.vocab_size, key)
    return rhm, draw.latents, noisy.values[0], Gaussian().log_evidence(noisy, np.float64)[0]


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    rhm, latents, noisy, log_evidence = observation()
    beliefs = infer(rhm, log_evidence[None], outputs=OUTPUTS)
    data = xr.Dataset(
        {
            "rules": small.rules_array(rhm),
            "true_symbol": ("node", small.nodes(latents)),
            "noisy": (("leaf", "symbol"), noisy),
            "log_evidence": (("leaf", "symbol"), log_evidence),
            **{name: (("node", "symbol"), small.nodes(getattr(beliefs, name))) for name in OUTPUTS},
        },
        coords=small.node_coordinates(rhm),
        attrs={"time": TIME},
    )
    return {"instance": data}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["instance"]
    rhm = small.grammar_of(data)
    exact = enumerated(rhm, data.log_evidence.values)
    names = {"upward": "upward messages", "downward": "downward messages", "marginals": "posterior probabilities"}
    verdicts, strings = [], rhm.num_classes * len(expansions(rhm, rhm.depth)[0])
    for name in OUTPUTS:
        written_out = np.concatenate([exact[name][level] for level in range(rhm.depth + 1)])
        error = float(np.abs(written_out - data[name].values).max())
        quantity = f"{names[name]} of all {data.sizes['node']} nodes, largest difference to enumeration"
        verdicts.append(vanishes(quantity, error, f"0 (sums over all {strings} strings written out)"))
    product = data.upward * data.downward
    error = float(abs(product / product.sum("symbol") - data.marginals).max())
    verdicts.append(
        verdict("posterior ∝ upward x downward, largest difference", f"{error:.1e}", "0 at every node", below(error, 1e-12))
    )
    return data, verdicts


def enumerated(rhm: RandomHierarchyModel, log_evidence: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """Messages and marginals {name: {tree_level: (nodes, symbols)}} without belief propagation: sums over strings written out.

    Upward: the mean likelihood of the leaves below a node over all that a symbol can become there. Marginals and downward: sums
    over the strings of the grammar, whose trees a parser reads, of the likelihood of all leaves, or of those outside the node.
    """
    L, d, v = rhm.depth, rhm.num_leaves, rhm.vocab_size
    likelihood = np.exp(log_evidence - log_evidence.max(axis=1, keepdims=True))
    strings = expansions(rhm, L).reshape(-1, d)
    of_leaf = likelihood[np.arange(d), strings]  # (strings, leaves)
    trees = rhm.parse(strings).latents
    result: dict[str, dict[int, np.ndarray]] = {"upward": {}, "downward": {}, "marginals": {}}
    for level in range(L + 1):
        below = expansions(rhm, level)
        tables: dict[str, list[np.ndarray]] = {name: [] for name in result}
        for node in range(rhm.num_nodes(level)):
            inside = np.zeros(d, bool)
            inside[node * below.shape[2] : (node + 1) * below.shape[2]] = True
            tables["upward"].append(likelihood[inside][np.arange(below.shape[2]), below].prod(axis=2).mean(axis=1))
            symbol = trees[level][:, node]
            tables["downward"].append(np.bincount(symbol, of_leaf[:, ~inside].prod(axis=1), v))
            tables["marginals"].append(np.bincount(symbol, of_leaf.prod(axis=1), v))
        for name, rows in tables.items():
            table = np.stack(rows)
            result[name][level] = table / table.sum(axis=1, keepdims=True)
    return result


def expansions(rhm: RandomHierarchyModel, tree_level: int) -> np.ndarray:
    """All strings that a node of a level can become, written out: (symbols, strings, s**tree_level)."""
    strings = np.arange(rhm.vocab_size)[:, None, None]
    for level in range(1, tree_level + 1):
        grown = []
        for rules in rhm.rules[level]:
            of_symbol = []
            for children in rules:
                joined = strings[children[0]]
                for child in children[1:]:
                    right = strings[child]
                    pairs = (np.repeat(joined, len(right), axis=0), np.tile(right, (len(joined), 1)))
                    joined = np.concatenate(pairs, axis=1)
                of_symbol.append(joined)
            grown.append(np.concatenate(of_symbol))
        strings = np.stack(grown)
    return strings


def draw(data: xr.Dataset) -> Any:
    rhm = small.grammar_of(data)
    true, up, down, posterior = (small.by_level(data[name]) for name in ("true_symbol", *OUTPUTS))
    L, s, d = rhm.depth, rhm.branching, rhm.num_leaves
    spacing, gap, wide, high, aside = 3.15, 2.9, 0.86, 0.9, 1.06
    centres, heights = drawing.leaf_centres(s, L, spacing), gap * np.arange(L + 1)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(14, 6.8), layout="constrained")
        drawing.canvas(axes, (-4.4, spacing * (d - 1) + 1.6), (-3.1, heights[L] + 0.9))
        for level in range(L + 1):
            axes.text(-1.75, heights[level], drawing.level_name(level, L), ha="right", va="center", color=MUTED, size=11)
            for node, true_symbol in enumerate(true[level]):
                x, y, symbol = centres[level][node], heights[level], int(true_symbol)
                if level:
                    square = y - 0.52 * gap
                    axes.plot([x, x], [y, square], color="#999999", lw=1.6, zorder=1)
                    for below in centres[level - 1][s * node : s * (node + 1)]:
                        axes.plot([x, below], [square, heights[level - 1]], color="#999999", lw=1.6, zorder=1)
                    drawing.square(axes, x, square, 0.42)
                drawing.donut(axes, x, y, posterior[level][node], 0.58, 0.16)
                drawing.token(axes, x, y, symbol, drawing.symbol_name(symbol, level, L), radius=0.38, size=12)
                foot = y - high / 2
                drawing.message_bars(axes, x - aside, foot, up[level][node], wide, high, drawing.UP, symbol, "up")
                drawing.message_bars(axes, x + aside, foot, down[level][node], wide, high, drawing.DOWN, symbol, "down")
        _draw_noisy(axes, data.noisy.values, centres[0], -1.85)
        axes.text(-1.75, -1.85, "noisy leaves $x_t$\n" + rf"$t={data.attrs['time']:g}$", ha="right", va="center", color=MUTED)
        alone, together = (int((table[0].argmax(axis=1) != true[0]).sum()) for table in (up, posterior))
        errors = f"{alone} of {d} leaves from their own evidence, {together} of {d} from the posterior"
        axes.text(spacing * (d - 1) / 2, -2.85, f"most probable symbol wrong: {errors}", ha="center", va="center", size=11)
        _key(axes, spacing * (d - 1) - 6.2, heights[L] + 0.4)
    return figure


def _draw_noisy(axes: Any, noisy: np.ndarray, centres: np.ndarray, foot: float) -> None:
    """The components of every noisy leaf as bars in the colours of the symbols."""
    step, scale = 1.5 / noisy.shape[1], 0.72 / float(np.abs(noisy).max())
    for x, values in zip(centres, noisy, strict=True):
        axes.plot([x, x], [-0.6, foot + 0.78], color="#999999", lw=1.4, ls=":", zorder=1)
        left = x - 0.75 + (np.arange(len(values)) + 0.1) * step
        axes.bar(left, scale * values, 0.8 * step, foot, align="edge", color=drawing.SYMBOL_COLORS[: len(values)], lw=0, zorder=3)
        axes.plot([x - 0.8, x + 0.8], [foot, foot], color=MUTED, lw=1)


def _key(axes: Any, x: float, y: float) -> None:
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
