"""Fig. 10: which rules speak for the right symbol and which against it, at the paper's size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.patches import Rectangle

from uturn.core.random import Purpose, keys
from uturn.corruption import EpsilonBelief
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper.fig7 import TOLERANCE
from uturn.paper.specs import PAPER, mean_field
from uturn.paper.verdicts import Verdict, mean_estimate, vanishes, verdict, within
from uturn.paper.workshop import Workshop
from uturn.studies.plotting.style import ACCENT, CLASS, THEORY, Look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Rules for and against the right symbol"
CLAIM = (
    "Wrong rules that share a symbol with the right one compete with it, and their average number"
    " gives the theory."
)
RULES = PAPER["vocab_size"] * PAPER["multiplicity"]
CAPTION = (
    f"All {RULES} rules of one level of a grammar ({PAPER['vocab_size']} symbols,"
    f" {PAPER['multiplicity']} rules each) as pairs (a, b) of children. The belief is pinned on the"
    " true pair with noise ε: rules that share a symbol with it (on the cross) count less than the"
    " true rule, the others still less (Eqs. 22 to 26). Right: the upward message to the parent,"
    " split by the number of wrong symbols in the rules. Those of the right symbol add to its"
    " belief, all others compete. Line: mean field (Eq. 11), where every count of rules is"
    " replaced by its average (Eq. 31)."
)
NOISE = 0.5
# the true ones
PARENT = 0
RULE = 0


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    grammars = 200 if workshop.scale == "smoke" else 2000
    return {"factor": workshop.keep("fig10-factor", factor, grammars=grammars)}


def factor(grammars: int) -> xr.Dataset:
    """The rules and the message of one factor, and means over its true pairs for each of several
    grammars.
    """
    v = PAPER["vocab_size"]
    m = PAPER["multiplicity"]
    tables = []
    messages = []
    counts = []
    # The message of a factor depends on one level of rules only: trees of depth 1 are enough.
    for seed in keys(0, Purpose.PICTURE, np.arange(grammars)).tolist():
        rhm = RandomHierarchyModel(**PAPER, depth=1, seed=seed)
        pairs = rhm.rules[1].reshape(-1, 2)
        evidence = EpsilonBelief().log_evidence(
            EpsilonBelief().corrupt(pairs, NOISE, vocab_size=v), np.float64
        )
        wrong = (pairs[:, None] != pairs[None]).sum(axis=2)
        tables.append(rhm.rules[1])
        messages.append(infer(rhm, evidence, outputs=("upward",)).upward[1][:, 0])
        counts.append([(wrong == k).sum(axis=1).mean() for k in range(3)])
    right = [up[np.arange(len(up)), np.repeat(np.arange(v), m)].mean() for up in messages]
    return xr.Dataset(
        {
            "rules": (("parent", "rule", "child"), tables[0]),
            "upward": ("parent", messages[0][m * PARENT + RULE]),
            "rules_at_distance": (("grammar", "distance"), np.array(counts)),
            "mean_belief": ("grammar", np.array(right)),
        },
        coords={"distance": [0, 1, 2]},
        attrs={"noise": NOISE, "true_parent": PARENT, "true_rule": RULE, **PAPER},
    )


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = runs["factor"].load()
    v, m, s = PAPER.values()
    noise = data.attrs["noise"]
    rules = data.rules.values
    T = v**s - 1
    theory = mean_field(PAPER)
    truth = rules[data.attrs["true_parent"], data.attrs["true_rule"]]
    distance = (rules != truth).sum(axis=2)
    p = 1 - noise + noise / v
    weight = p ** (s - distance) * (noise / v) ** distance
    split = np.stack([(weight * (distance == k)).sum(axis=1) for k in range(s + 1)])
    data = data.assign(
        contribution=(("distance", "parent"), split / split.sum()),
        wrong_symbols=(("parent", "rule"), distance),
        mean_field=float(theory.upward_map(p)),
    )
    error = float(np.abs(split.sum(axis=0) / split.sum() - data.upward.values).max())
    quantity = (
        f"contributions of the {RULES} rules, summed, against the message of belief propagation"
        " (Eq. 7)"
    )
    # The other v m - 1 rules are drawn without replacement from the other v**s - 1 pairs (Eqs. 30,
    # 31). Their numbers at a distance, averaged over the true pairs of a grammar, are independent
    # between grammars.
    expected = (v * m - 1) * s * (v - 1) / T
    numbers = data.rules_at_distance.sel(distance=1).values
    z = (numbers.mean() - expected) / (numbers.std(ddof=1) / np.sqrt(len(numbers)))
    # Mean field is a ratio of averages and the belief an average of ratios, so they are compared by
    # their shift in ε.
    step = 1e-5
    # -dF/dε: p = 1 - ε (v-1)/v.
    slope = (theory.upward_map(p + step) - theory.upward_map(p - step)) / (2 * step) * (v - 1) / v
    belief = mean_estimate(data.mean_belief.values)
    shift = mean_estimate((data.mean_belief.values - float(data.mean_field)) / slope)
    return data, [
        vanishes(quantity, error, prefix="largest difference "),
        verdict(
            f"rules with one wrong symbol, mean over true pairs and {len(numbers)} grammars",
            mean_estimate(numbers),
            f"{expected:.3f} (hypergeometric, Eq. 31)",
            within(z, 3.5, f"t = {z:+.1f}, below 3.5 in size"),
        ),
        verdict(
            f"belief in the right symbol, mean over grammars, at ε = {noise}",
            f"{belief}; shift in ε {shift}",
            f"{float(data.mean_field):.4f} (mean field)",
            within(shift.value, TOLERANCE, f"within {TOLERANCE} in ε"),
        ),
    ]


_SHADES = (1.0, 0.62, 0.3)  # by the number of wrong symbols


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(13, 5.6), width_ratios=[1, 1.35], layout="constrained"
        )
        _draw_rules(left, data)
        _draw_message(right, data)
    return figure


def _draw_rules(axes: Axes, data: xr.Dataset) -> None:
    """The rules as squares at their pairs of children, darker the fewer of their symbols are
    wrong.
    """
    rules = data.rules.values
    parent = data.attrs["true_parent"]
    v = data.sizes["parent"]
    a, b = rules[parent, data.attrs["true_rule"]]
    axes.set(
        xlim=(-0.6, v - 0.4),
        ylim=(-0.6, v - 0.4),
        aspect="equal",
        xlabel="left child $a$",
        ylabel="right child $b$",
    )
    axes.set_title("the rules of a level, as pairs of children")
    axes.add_patch(Rectangle((a - 0.5, -0.5), 1, v, fc="#f3ecd2", lw=0, zorder=0))
    axes.add_patch(Rectangle((-0.5, b - 0.5), v, 1, fc="#f3ecd2", lw=0, zorder=0))
    axes.add_patch(
        Rectangle((a - 0.75, b - 0.75), 1.5, 1.5, fc="none", ec=THEORY, lw=1.8, zorder=4)
    )
    for y in range(v):
        for pair, wrong in zip(rules[y], data.wrong_symbols.values[y], strict=True):
            side, color, shade = (0.92, CLASS, 1) if y == parent else (0.8, ACCENT, _SHADES[wrong])
            axes.add_patch(
                Rectangle(pair - side / 2, side, side, fc=color, alpha=shade, lw=0, zorder=2)
            )
    ticks = [*range(0, v, v // 4), v - 1]
    names = [str(k + 1) for k in ticks]
    axes.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
    patches = [
        Rectangle((0, 0), 1, 1, fc="white", ec=THEORY, lw=1.8, label="the true pair"),
        Rectangle((0, 0), 1, 1, fc=CLASS, label="right symbol"),
        Rectangle((0, 0), 1, 1, fc=ACCENT, label="wrong symbols"),
        Rectangle((0, 0), 1, 1, fc="#f3ecd2", label="shares a child"),
    ]
    place: Look = {
        "loc": "upper center",
        "bbox_to_anchor": (0.48, -0.12),
        "ncols": 4,
        "columnspacing": 1.2,
    }
    axes.legend(handles=patches, handlelength=1, handleheight=1, **place)


def _draw_message(axes: Axes, data: xr.Dataset) -> None:
    """The message by symbol, split by the number of wrong symbols in the rules; the wrong
    symbols once more, enlarged.
    """
    v = data.sizes["parent"]
    parent = data.attrs["true_parent"]
    order = sorted(range(v), key=lambda y: (y != parent, -float(data.upward[y])))
    exact = float(data.upward[parent])
    field = float(data.mean_field)
    lens = axes.inset_axes((0.2, 0.2, 0.78, 0.42))
    heights = data.contribution.values[:, order]
    bottom = np.zeros(v)
    colors = [CLASS, *[ACCENT] * (v - 1)]
    for k, rules_name in enumerate(("the true rule", "one wrong symbol", "two wrong symbols")):
        for panel, first in ((axes, 0), (lens, 1)):
            look: Look = {
                "bottom": bottom[first:],
                "color": colors[first:],
                "alpha": _SHADES[k],
                "lw": 0,
            }
            panel.bar(np.arange(first, v), heights[k, first:], 0.8, **look)
        lens.bar(1, 0, color="#555555", alpha=_SHADES[k], label=rules_name)
        bottom += heights[k]
    axes.axhline(field, color=THEORY, lw=1.3, ls="--")
    axes.text(v - 0.5, field + 0.012, f"mean field, right symbol: {field:.2f}", ha="right")
    axes.text(0.75, exact + 0.01, f"right symbol: {exact:.2f}", color=CLASS, va="bottom")
    axes.set(
        xlabel="parent symbol (the right one first, then by message)",
        xlim=(-0.7, v - 0.3),
        xticks=[],
    )
    axes.set(ylabel="upward message to the parent", ylim=(0, 1.15 * max(exact, field)))
    axes.set_title(rf"the message they make, $\epsilon={data.attrs['noise']:g}$")
    lens.set_title(
        f"enlarged: the {v - 1} wrong symbols share {1 - exact:.2f}",
        color=ACCENT,
        size=11,
        weight="normal",
    )
    lens.set(xticks=[], xlim=(0.3, v - 0.3))
    lens.axhline((1 - field) / (v - 1), color=THEORY, lw=1.3, ls="--")
    lens.text(
        v - 0.5,
        (1 - field) / (v - 1) + 0.001,
        "mean field, wrong symbol",
        ha="right",
        va="bottom",
        size=9.5,
    )
    lens.legend(title="rules with", loc="upper right", alignment="left")
