"""Fig. 13: downward messages per level against ε, belief propagation and theory (from the run of
fig. 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.stats import ttest_ind

from uturn.exact.quenched import quenched_downward
from uturn.exact.theory import MeanField
from uturn.measures.readings import grammar_means
from uturn.paper.fig7 import PARAMETERS, compare
from uturn.paper.fig7 import measure as measure
from uturn.paper.specs import mean_field
from uturn.paper.verdicts import Verdict, above, numbers, vanishes, verdict
from uturn.studies.plotting.levels import draw_levels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAMMARS = 300  # drawn for the theory
TITLE = "Downward messages of every level"
CLAIM = (
    "What the rest of the tree says about a node is never certain, since several rules fit the same"
    " surroundings."
)
CAPTION = (
    "What all other leaves say about the true symbol of a node (downward message, mean over nodes),"
    " against the noise ε on the leaves. Points: exact belief propagation, mean over grammars,"
    " bars: standard deviation between grammars. Even without noise a context does not determine a"
    " symbol: several rules may fit it, so the messages stay below 1 and fluctuate. The annealed"
    " mean field (dashed) counts those rules on average and lies too low at small ε; drawing them"
    " at random (lines) leaves no such gap."
)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["epsilon"].load()
    v, m, s, L = PARAMETERS.values()
    theory = mean_field(PARAMETERS)
    fine = np.unique(np.r_[np.linspace(0, 1, 21), np.linspace(0.6, 0.86, 53)].round(6))
    drawn = quenched_downward(v, m, s, L, tuple(fine.tolist()), GRAMMARS)
    what = "shift in ε of the downward messages, BP against rules drawn at random on each path"
    data, shifted = compare(run.downward_belief, fine, drawn.mean(axis=0), range(L), what)
    data["mean_field"] = ("theory_noise", "tree_level"), theory.curves(fine, L).downward
    error = float(abs(run.downward_belief.isel(tree_level=L) - 1 / v).max())
    low_noise = run.sel(noise=0.1)
    beliefs = (grammar_means(low_noise[name]) for name in ("downward_belief", "upward_belief"))
    down, up = (belief.std("grammar", ddof=1).values[1:L].mean() for belief in beliefs)
    return data, [
        vanishes("messages to the class, largest difference to 1/n", error, single=True),
        _without_noise(run.downward_belief, drawn[:, 0, :L], theory),
        shifted,
        # How many symbols fit a context depends on the grammar.
        verdict(
            f"spread between grammars at ε = 0.1, mean over levels 1 .. {L - 1}: downward, upward",
            f"{down:.2g}, {up:.2g}",
            "downward larger: a context has several fits",
            above(down, 2 * up, "more than twice"),
        ),
    ]


def _without_noise(belief: xr.DataArray, expected: np.ndarray, theory: MeanField) -> Verdict:
    """Without noise the siblings of a path are known for certain: drawn paths, with beliefs
    `expected`, follow the exact law.
    """
    L = expected.shape[1]
    measured = grammar_means(belief).sel(noise=0).transpose("grammar", "tree_level").values[:, :L]
    p = ttest_ind(measured, expected, equal_var=False).pvalue
    exact, drawn, annealed = (
        numbers(levels, ".3f")
        for levels in (
            measured.mean(axis=0),
            expected.mean(axis=0),
            theory.curves(0.0, L).downward[:L],
        )
    )
    return verdict(
        f"messages without noise, levels 0 .. {L - 1}",
        exact,
        f"{drawn}; annealed mean field {annealed}",
        above(p, 5e-4, f"Welch's test between grammars, every p > 0.0005 (smallest {p.min():.2g})"),
    )


def draw(data: xr.Dataset) -> Figure:
    return draw_levels(data, "downward message at the true symbol", "rules drawn\non each path")
