"""Fig. 14: marginals of every level against ε, belief propagation and mean field (from the run
of fig. 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.paper.fig7 import PARAMETERS, compare
from uturn.paper.fig7 import measure as measure
from uturn.paper.specs import mean_field
from uturn.paper.verdicts import Verdict, vanishes
from uturn.studies.plotting.levels import draw_level, draw_shifts
from uturn.studies.plotting.style import MUTED, level_colors, mark_noise, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Marginals of every level"
CLAIM = "Each level of the tree can be recovered up to a noise that theory predicts."
CAPTION = (
    "Posterior probability of the true symbol (mean over nodes), against the noise ε on the leaves,"
    " a panel for every level. Points: exact belief propagation, mean over grammars, bars: standard"
    " deviation between grammars. Lines: mean-field theory (Eq. 62). Dotted: ε*. Last panel: how"
    " far along ε each level is displaced from the mean field."
)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["epsilon"].load()
    L = PARAMETERS["depth"]
    n = PARAMETERS["vocab_size"]
    fine = np.linspace(0, 1, 4001)
    lines = mean_field(PARAMETERS).curves(fine, L).marginals
    what = "shift in ε of the marginals, BP against mean field"
    data, _ = compare(run.belief, fine, lines, range(L + 1), what)  # fig. 7 judges these shifts
    start = run.belief.sel(noise=0)
    end = run.belief.sel(noise=1).isel(tree_level=L)
    ends = max(float(abs(start - 1).max()), float(abs(end - 1 / n).max()))
    root = float(abs((run.belief - run.upward_belief).isel(tree_level=L)).max())
    quantity = (
        "marginal of the class against its upward message, string by string: largest difference"
    )
    return data, [
        vanishes(
            "marginal 1 without noise, and 1/n for the class at full noise: largest difference",
            ends,
            single=True,
        ),
        vanishes(quantity, root, "0 (uniform prior)", single=True),
    ]


def draw(data: xr.Dataset) -> Figure:
    depth = data.sizes["tree_level"] - 1
    colors = level_colors(depth + 1)
    columns = -(-(depth + 2) // 2)
    with style() as plt:
        figure, grid = plt.subplots(2, columns, figsize=(14, 5.6), layout="constrained")
        for level, axes in zip(range(depth + 1), grid.flat, strict=False):
            draw_level(axes, data, level, colors[level], bold=False)
            mark_noise(axes, data.attrs["critical_noise"])
            axes.axhline(1 / data.attrs["vocab_size"], color=MUTED, lw=0.8, ls="--", zorder=1)
            axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.set_xticklabels(["0", "0.5", "1"])
            axes.set_title(
                f"level {level}" + {0: ", leaves", depth: ", class"}.get(level, ""),
                color=colors[level],
            )
            axes.set(xlabel=r"noise $\epsilon$", ylabel="P(true symbol)")
            axes.label_outer()
        for axes in grid.flat[depth + 2 :]:
            axes.axis("off")
        last = grid.flat[depth + 1]
        draw_shifts(last, data, colors)
        last.set(ylabel="", xlabel=r"shift in $\epsilon$")
        last.yaxis.tick_right()
        last.spines["left"].set_visible(False)
        last.spines["right"].set_visible(True)
        last.set_title("shift by level", loc="left")
    return figure
