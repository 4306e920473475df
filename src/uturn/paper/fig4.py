"""Fig. 4: the factor graph of a tree, and the messages that belief propagation sends along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.patches import Circle, Wedge

from uturn.corruption import Gaussian
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper.fig3 import GRAMMAR, by_level, node_coordinates, nodes, small_string
from uturn.paper.verdicts import Verdict, below, verdict
from uturn.paper.workshop import Workshop
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


def observation() -> tuple[RandomHierarchyModel, dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Grammar, true tree, noisy leaves (leaf, symbol) and their log-evidence of the picture."""
    rhm, draw, key = small_string()
    noisy = Gaussian().corrupt(draw.leaves, TIME, rhm.vocab_size, key)
    return rhm, draw.latents, noisy.values[0], Gaussian().log_evidence(noisy, np.float64)[0]


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    rhm, latents, noisy, log_evidence = observation()
    beliefs = infer(rhm, log_evidence[None], outputs=OUTPUTS)
    data = xr.Dataset(
        {
            "true_symbol": ("node", nodes(latents)),
            "noisy": (("leaf", "symbol"), noisy),
            "log_evidence": (("leaf", "symbol"), log_evidence),
            **{name: (("node", "symbol"), nodes(getattr(beliefs, name))) for name in OUTPUTS},
        },
        coords=node_coordinates(rhm),
        attrs={"time": TIME},
    )
    return {"instance": data}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["instance"]
    product = data.upward * data.downward
    error = float(abs(product / product.sum("symbol") - data.marginals).max())
    quantity = "posterior ∝ upward x downward, largest difference"
    return data, [verdict(quantity, f"{error:.1e}", "0 at every node", below(error, 1e-12))]


def draw(data: xr.Dataset) -> Any:
    rhm = RandomHierarchyModel(**GRAMMAR)
    true, up, down, posterior = (by_level(data[name]) for name in ("true_symbol", *OUTPUTS))
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
