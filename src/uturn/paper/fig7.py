"""Fig. 7: probability of reconstruction per level against ε, belief propagation and mean field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.measures.curves import inversion, shift, transition
from uturn.measures.readings import grammar_means
from uturn.measures.replicates import estimate
from uturn.paper.specs import PAPER, experiment_of, mean_field, rhm
from uturn.paper.verdicts import ESTIMATE, Verdict, estimates, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.levels import draw_level
from uturn.studies.plotting.style import MUTED, level_bar, level_colors, mark_noise, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Reconstruction of every level in the ε-process"
CLAIM = (
    "Exact computation and theory agree on where each level of the tree is lost: the class"
    " abruptly, the leaves smoothly."
)
CAPTION = (
    "Probability that a latent of each tree level keeps its symbol, against the noise ε on the"
    " leaves. Points: exact belief propagation, mean over grammars, bars: standard deviation"
    " between grammars. Lines: mean-field theory. The class (level L) is lost abruptly, the leaves"
    " (level 0) smoothly, and the order of the levels inverts."
)
PARAMETERS = {**PAPER, "depth": 10}
TOLERANCE = 0.005  # in ε: 2.5 standard deviations of the thresholds of grammars (fig6)


def experiments(scale: Scale) -> dict[str, Experiment]:
    grammars, items, trajectories = (6, 24, 2) if scale == "smoke" else (24, 240, 4)
    noise = np.unique(np.r_[np.linspace(0, 1, 21), np.linspace(0.62, 0.84, 23)].round(6))
    # Messages: figs. 12, 13.
    source = rhm(**PARAMETERS, grammars=grammars)
    probes = ("tree_levels", "messages")
    return {
        "epsilon": experiment_of(
            source, "epsilon", noise, *probes, items=items, trajectories=trajectories, chunk=24
        )
    }


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return workshop.runs("fig7", experiments(workshop.scale))  # of figs. 12 to 14 too


def compare(
    values: xr.DataArray,
    theory_noise: np.ndarray,
    theory: np.ndarray,
    levels: Sequence[int],
    what: str,
) -> tuple[xr.Dataset, Verdict]:
    """Curves of the levels beside a theory (noise, tree_level), and the verdict on their shift
    in ε; also of figs. 12 to 14.
    """
    noise = values.noise.values

    def displacements(curves: np.ndarray) -> list[float]:
        return [shift(noise, curves[:, level], theory_noise, theory[:, level]) for level in levels]

    shifts = estimates(values, displacements)
    data = xr.Dataset(
        {
            "belief": grammar_means(values),
            "theory": (("theory_noise", "tree_level"), theory),
            "shift": (("shifted_level", "estimate"), shifts),
        },
        coords={"estimate": ESTIMATE, "shifted_level": list(levels), "theory_noise": theory_noise},
        attrs={
            "tolerance": TOLERANCE,
            "critical_noise": mean_field(PARAMETERS).critical_noise,
            **PARAMETERS,
        },
    )
    worst = int(np.argmax([abs(interval.value) for interval in shifts]))
    return data, verdict(
        f"{what}, levels {levels[0]} .. {levels[-1]}",
        ", ".join(f"{interval.value:+.4f}" for interval in shifts)
        + f"; largest {shifts[worst]} (level {levels[worst]})",
        "0",
        within([interval.value for interval in shifts], TOLERANCE, f"all within {TOLERANCE}"),
    )


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["epsilon"].load()
    L = PARAMETERS["depth"]
    theory = mean_field(PARAMETERS)
    fine = np.linspace(0, 1, 4001)
    lines = theory.curves(fine, L).marginals
    data, shifted = compare(
        run.belief, fine, lines, range(L + 1), "shift in ε, BP against mean field"
    )
    data["unchanged"] = grammar_means(run.unchanged)
    chance = 1 / PARAMETERS["vocab_size"]
    lost = estimate(
        run.belief, lambda c: transition(run.noise.values, c[:, L], 1.0, chance).location
    )
    data["transition"] = "estimate", list(lost)
    late = run.belief.sel(noise=slice(0.4, 1))
    swap = estimate(late, lambda c: inversion(late.noise.values, c[:, L], c[:, 0]))
    expected = theory.class_crossing(L) or np.nan
    swapped = verdict(
        "ε at which class and leaves swap order",
        swap,
        f"{expected:.4f} (mean field, L = {L}; ε* = {theory.critical_noise:.4f})",
        within(swap.value - expected, 2 * TOLERANCE),
    )
    return data, [shifted, swapped]


def draw(data: xr.Dataset) -> Figure:
    depth = data.attrs["depth"]
    critical = data.attrs["critical_noise"]
    colors = level_colors(depth + 1)
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4.4), width_ratios=[1, 1.15], sharey=True, layout="constrained"
        )
        for axes, levels in ((left, (0, depth)), (right, range(depth + 1))):
            for level in levels:
                draw_level(axes, data, level, colors[level], bold=level in (0, depth))
            mark_noise(
                axes, critical, rf"$\epsilon^*={critical:.3f}$" if axes is left else "", aside=0.01
            )
            axes.set(xlabel=r"noise $\epsilon$", xlim=(0, 1), ylim=(0, 1.03))
        left.text(0.83, 0.42, "leaves", color=colors[0])
        left.text(0.70, 0.42, "class", color=colors[depth], ha="right")
        left.plot([], [], "o", color=MUTED, ms=4.5, label="exact (belief propagation)")
        left.plot([], [], color=MUTED, lw=1.4, label="mean-field theory")
        left.legend(loc="lower left")
        left.set(ylabel="P(symbol unchanged)", title="class and leaves")
        right.set_title("all levels")
        level_bar(plt, right, depth + 1, "tree level (0 = leaves)")
    return figure
