"""The part of figure `controls` with the nesting index: grammars against data without a hierarchy, and hierarchical filtering."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.hierarchy import nested_correlations, nesting, nesting_index, site_changes
from uturn.paper.nesting_cases import CONTROLS, HELD_OUT, NOISE, auc, changes, grammar_changes
from uturn.paper.specs import experiment_of, mean_field
from uturn.paper.verdicts import ESTIMATE, Verdict, above, below, decreasing, listed, verdict, within
from uturn.paper.workshop import Workshop, file_name
from uturn.studies.plotting.curves import draw_curve
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, bars, level_colors

LEAST = 0.95  # area under the curve of each comparison
NOTHING = 0.05  # an index below it counts as 0
BIAS = 0.1  # the annealed mean field is off by some 6 %: it keeps .78 of the leaves at small ε instead of .87
DIAL = {"vocab_size": 24, "multiplicity": 6, "branching": 2, "depth": 4, "grammars": 10}
THEORY = {"vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4, "grammars": 16}
EPSILON = np.linspace(0, 1, 31)[1:]
# Data of the first panel by label: kind and parameters; the first two are those of the third panel.
SHOWN = {
    "grammar (24, 6, 2), L = 4": None,
    "the same, above k = 2 removed": None,
    "one-level grammar, s = 8": ("one-level grammars", ((5, 1000, 8), 1)),
    "mixture, 6 modes": ("flat mixtures", (6, 28.0, 64)),
    "field": ("fields", (8, 0.8)),
}
LEVELS = 6


def measured(workshop: Workshop) -> xr.Dataset:
    """Indices of all data, computed once."""
    draws, items = (10, 200) if workshop.scale == "smoke" else (40, 800)
    drawn = {"draws": draws, "noise": NOISE.tolist(), "version": 1}
    jobs: dict[str, Any] = {
        f"controls-{file_name(kind)}": (
            {"held out": [repr(parameters) for parameters in every], **drawn},
            partial(_indices, kind, every, draws),
        )
        for kind, every in HELD_OUT.items()
    }
    of_kinds = [run.nesting_index for run in workshop.keep_all("nesting indices", jobs).values()]
    settings = {
        "dial": {**DIAL, "items": items},
        "theory": {**THEORY, "items": items, "epsilon": EPSILON.tolist()},
        "shown": {label: repr(case) for label, case in SHOWN.items()},
        "noise": NOISE.tolist(),
        "version": 2,
    }
    measurements = workshop.keep("controls-nesting", settings, partial(_filtered_and_shown, items))
    index = xr.concat(of_kinds, xr.DataArray(list(HELD_OUT), dims="data_kind", name="data_kind"))
    return measurements.assign(nesting_index=index)


def _filtered_and_shown(items: int) -> xr.Dataset:
    """Index against the level above which a tree is filtered; nested correlations of `SHOWN`; index in the ε-process."""
    # Strings whose tree above level k is replaced by independent draws.
    filtered = {
        k: grammar_changes({"type": "filtered_rhm", **DIAL, "filtered_above": k}, 0, items) for k in range(DIAL["depth"] + 1)
    }
    dial = [nesting_index(changed, DIAL["branching"]) for changed in filtered.values()]
    pinned = experiment_of({"type": "rhm", **THEORY}, "epsilon", EPSILON, "tree_levels", items=items, trajectories=8)
    first, second, *_ = SHOWN
    shown = {first: (filtered[DIAL["depth"]], 2), second: (filtered[2], 2)}
    shown |= {label: changes(case[0], case[1], 0) for label, case in SHOWN.items() if case}
    return xr.Dataset(
        {
            "nesting_dial": (("filtered_above", "estimate"), dial),
            "nested": (("data", "tree_level", "estimate"), [_levels(*changed) for changed in shown.values()]),
            "nesting_epsilon": ("estimate", list(nesting_index(site_changes(pinned), THEORY["branching"]))),
        },
        coords={
            "filtered_above": list(filtered),
            "estimate": ESTIMATE,
            "data": list(shown),
            "tree_level": np.arange(1, LEVELS + 1),
        },
    )


def _indices(kind: str, parameters: list[Any], draws: int) -> xr.Dataset:
    """Nesting index of draws of the data of a kind; draw k has parameters k modulo their number, and seed k."""
    index = [nesting_index(*changes(kind, parameters[k % len(parameters)], k)).value for k in range(draws)]
    return xr.Dataset({"nesting_index": ("draw", index)})


def mean_field_index() -> float:
    """Mean-field value of the index in the ε-process, which is measured over several grammars."""
    theory = mean_field(THEORY)
    changed = 1 - theory.curves(EPSILON, THEORY["depth"]).marginals[:, 0]
    covariance = theory.pair_correlations(EPSILON, THEORY["depth"])[:, None] / 4  # of 0 and 1 instead of -1 and 1
    return nesting(changed, covariance, theory.branching).value


def _levels(changed: xr.DataArray, branching: int) -> np.ndarray:
    """Nested correlations with intervals, (LEVELS, estimate); NaN beyond the largest block."""
    values = nested_correlations(changed, branching).nested.values
    return np.concatenate([values, np.full((LEVELS - len(values), 3), np.nan)])


def verdicts(data: xr.Dataset) -> list[Verdict]:
    grammars = data.nesting_index.sel(data_kind="grammars").values
    areas = {kind: auc(grammars, data.nesting_index.sel(data_kind=kind).values) for kind in CONTROLS}
    dial = dict(zip(data.filtered_above.values.tolist()[::-1], listed(data.nesting_dial)[::-1], strict=True))
    last = min(k for k in dial if k > 0)
    value, expected = listed(data.nesting_epsilon)[0], mean_field_index()
    return [
        verdict(
            f"nesting index, area under the curve of {len(grammars)} grammars (L >= 3, s f <= 3/4) against each control",
            "; ".join(f"{kind}: {area:.3f}" for kind, area in areas.items()),
            f"at least {LEAST} from 100 originals with 8 trajectories, with parameters on which the index was not chosen",
            above([*areas.values()], np.nextafter(LEAST, 0), f"each at least {LEAST}"),
        ),
        verdict(
            "nesting index, tree above level k replaced by independent draws",
            "; ".join(f"k = {k}: {index}" for k, index in dial.items()),
            "falls at every level that is removed",
            decreasing([index for k, index in dial.items() if k >= last], "falls at every step; first and last intervals apart"),
        ),
        verdict(
            "nesting index without shared changes above the first level",
            "; ".join(f"k = {k}: {dial[k]}" for k in (last, 0)),
            "about 0: a single level is no hierarchy, nor are independent leaves",
            below([dial[last].high, dial[0].high], NOTHING, f"intervals below {NOTHING}"),
        ),
        verdict(
            "nesting index in the ε-process, (16, 4, 2), L = 4",
            str(value),
            f"{expected:.3f} (mean field)",
            within(value.value / expected - 1, BIAS, f"within {BIAS:.0%}, the bias of the annealed mean field"),
        ),
    ]


def draw(figure: Any, data: xr.Dataset) -> None:
    """Three panels: levels, draws, dial."""
    levels, draws, dial = figure.subplots(1, 3, width_ratios=[1, 1.3, 1])
    colors = [CLASS, "#e69f00", ACCENT, "#56b4e9", "#009e73"]
    for color, marker, label in zip(colors, "osDv^", data.data.values.tolist(), strict=True):
        draw_curve(levels, data.tree_level, data.nested.sel(data=label).values, color, 0.2, marker=marker, ms=5, label=label)
    levels.axhline(0, color=MUTED, lw=0.8)
    levels.set(xlabel="level $k$ of the block", ylabel="nested correlation $D_k$", title="nested correlations")
    levels.legend(fontsize=8.5)
    kinds = data.data_kind.values.tolist()
    for row, kind in enumerate(kinds):
        values = data.nesting_index.sel(data_kind=kind).values
        spread = np.linspace(-0.25, 0.25, len(values))
        color = CLASS if kind == "grammars" else ACCENT
        draws.plot(values, row + spread, "o", ms=4.5, color=color, mfc="white" if row else color, clip_on=False)
    labels = [kind if kind != "grammars" else "grammars,\n$L \\geq 3$, $sf \\leq 3/4$" for kind in kinds]
    draws.set_yticks(range(len(kinds)), labels, fontsize=9.5)
    draws.invert_yaxis()
    draws.axvline(0, color=MUTED, lw=0.8)
    draws.set(xlabel="nesting index", title="every draw of all data", xlim=(-0.01, None))
    k = data.filtered_above.values
    for step, color in enumerate(level_colors(len(k))):
        bars(dial, k[[step]], data.nesting_dial[[step]], fmt="o", color=color, capsize=3)
    dial.plot(k, data.nesting_dial[:, 0], color=MUTED, lw=1, zorder=0)
    dial.set_xticks(k)
    dial.axhline(0, color=MUTED, lw=0.8)
    dial.set(xlabel="tree above level $k$ replaced", ylabel="nesting index", title="hierarchical filtering, (24, 6, 2)")
