"""Fig. 12: upward messages per level against ε, belief propagation and mean field (from the run
of fig. 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.measures.curves import inversion, transition
from uturn.measures.replicates import estimate
from uturn.paper.fig7 import PARAMETERS, TOLERANCE, compare
from uturn.paper.fig7 import measure as measure
from uturn.paper.specs import mean_field
from uturn.paper.verdicts import Verdict, decreasing, estimates, vanishes, verdict, within
from uturn.studies.plotting.levels import draw_levels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Upward messages of every level"
CLAIM = "The higher a node of the tree, the more abruptly its symbol is lost at the critical noise."
CAPTION = (
    "What the leaves below a node say about its true symbol (upward message, mean over nodes),"
    " against the noise ε on the leaves. Points: exact belief propagation, mean over grammars,"
    " bars: standard deviation between grammars. Lines: the mean-field map, iterated from the"
    " leaves. Up the tree the fall becomes a step at ε*, where all curves meet. Right: how far"
    " along ε each level is displaced from the mean field."
)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["epsilon"].load()
    v = PARAMETERS["vocab_size"]
    L = PARAMETERS["depth"]
    theory = mean_field(PARAMETERS)
    fine = np.linspace(0, 1, 4001)
    critical = theory.critical_noise or np.nan
    up = run.upward_belief
    noise = run.noise.values
    levels = range(1, L + 1)
    what = "shift in ε of the upward messages, BP against mean field"
    data, shifted = compare(up, fine, theory.curves(fine, L).upward, levels, what)
    error = float(abs(up.isel(tree_level=0) - (1 - run.noise + run.noise / v)).max())
    middle = (noise >= 0.4) & (noise <= 0.9)
    meeting = estimate(up.isel(noise=middle), lambda c: inversion(noise[middle], c[:, L], c[:, 0]))
    some = (1, L // 2, L)
    widths = estimates(
        up, lambda c: [transition(noise, c[:, level], 1.0, 1 / v).width for level in some]
    )
    return data, [
        vanishes(
            "messages of the leaves, largest difference to 1 - ε + ε/v (Eq. 21)", error, single=True
        ),
        shifted,
        verdict(
            "ε where class and leaves carry the same message, p_L = p_0",
            meeting,
            f"ε* = {critical:.4f} (mean field, any depth)",
            within(meeting.value - critical, TOLERANCE),
        ),
        verdict(
            f"width in ε of the fall (3/4 to 1/4), levels {', '.join(map(str, some))}",
            ", ".join(map(str, widths)),
            "smaller up the tree",
            decreasing(widths),
        ),
    ]


def draw(data: xr.Dataset) -> Figure:
    return draw_levels(data, "upward message at the true symbol", "mean field")
