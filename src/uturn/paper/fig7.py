"""Fig. 7: probability of reconstruction per level against ε, belief propagation and mean field."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField
from uturn.measures.statistics import estimate, grammar_means, inversion, shift, transition
from uturn.paper.channels import ChannelSpec, channel_spec
from uturn.paper.messages import TOLERANCE, shift_verdict
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import Verdict, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.levels import draw_level
from uturn.studies.plotting.style import MUTED, THEORY, level_bar, level_colors, style

TITLE = "Reconstruction of every level in the ε-process"
CLAIM = "Exact computation and theory agree on where each level of the tree is lost: the class abruptly, the leaves smoothly."
CAPTION = (
    "Probability that a latent of each tree level keeps its symbol, against the noise ε on the leaves. Points: exact belief "
    "propagation, mean over grammars, bars: standard deviation between grammars. Lines: mean-field theory. The class (level L) "
    "is lost abruptly, the leaves (level 0) smoothly, and the order of the levels inverts."
)
PARAMETERS = {"vocab_size": 32, "multiplicity": 8, "branching": 2, "depth": 10}


def experiments(scale: Scale) -> dict[str, Experiment]:
    grammars, items, trajectories = (6, 24, 2) if scale == "smoke" else (24, 240, 4)
    noise = np.unique(np.r_[np.linspace(0, 1, 21), np.linspace(0.62, 0.84, 23)].round(6))
    source, probes = {"type": "rhm", **PARAMETERS, "grammars": grammars}, ("tree_levels", "messages")  # messages: figs. 12, 13
    return {"epsilon": experiment_of(source, "epsilon", noise, *probes, items=items, trajectories=trajectories, chunk=24)}


def channels(scale: Scale) -> list[ChannelSpec]:
    return [channel_spec("ε-process", {"type": "rhm", **PARAMETERS}, "epsilon", scale)]


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return workshop.runs("fig7", experiments(workshop.scale))  # of figs. 12 to 14 too


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["epsilon"].load()
    v, m, s, L = (PARAMETERS[key] for key in ("vocab_size", "multiplicity", "branching", "depth"))
    theory = MeanField(v, m, s)
    fine, noise = np.linspace(0, 1, 4001), run.noise.values
    lines = theory.curves(fine, L).marginals
    shifts = [estimate(run.belief, lambda c, k=k: shift(noise, c[:, k], fine, lines[:, k])) for k in range(L + 1)]  # type: ignore[misc]
    data = xr.Dataset(
        {
            "belief": grammar_means(run.belief),
            "unchanged": grammar_means(run.unchanged),
            "mean_field": (("noise", "tree_level"), theory.curves(noise, L).marginals),
            "shift": (("tree_level", "bound"), np.array(shifts)),
        },
        coords={"bound": ["value", "low", "high"]},
        attrs={"critical_noise": theory.critical_noise, **PARAMETERS},
    )
    lost = estimate(run.belief, lambda c: transition(noise, c[:, L], 1.0, 1 / v).location)
    data.attrs.update(transition=lost.value, transition_low=lost.low, transition_high=lost.high)
    return data, [
        shift_verdict("BP against mean field", shifts, range(L + 1), "shift in ε, "),
        _swap(run.belief, theory),
        _draws(run),
    ]


def _swap(belief: xr.DataArray, theory: MeanField) -> Verdict:
    noise, L = belief.noise.values, PARAMETERS["depth"]
    found = estimate(belief.sel(noise=slice(0.4, 1)), lambda c: inversion(noise[noise >= 0.4], c[:, L], c[:, 0]))
    expected = theory.class_crossing(L) or np.nan
    return verdict(
        "ε at which class and leaves swap order",
        found,
        f"{expected:.4f} (mean field, L = {L}; ε* = {theory.critical_noise:.4f})",
        within(found.value - expected, 2 * TOLERANCE),
    )


def _draws(run: xr.Dataset) -> Verdict:
    """A draw from the posterior keeps a symbol with its marginal probability: two measurements of one number.

    Items are independent, so the sum over noise levels has a t distribution with items - 1 degrees of freedom.
    """
    difference = (run.unchanged.mean("trajectory", dtype=float) - run.belief).sum("noise")
    t = (difference.mean("item") / (difference.std("item", ddof=1) / np.sqrt(run.sizes["item"]))).values
    return verdict(
        f"posterior draws against marginals, t statistic of levels 0 .. {PARAMETERS['depth']}",
        ", ".join(f"{value:+.1f}" for value in t),
        "0, standard deviation 1",
        within(t, 3.5, "below 3.5 in size at every level"),
    )


def draw(data: xr.Dataset) -> Any:
    depth = data.sizes["tree_level"] - 1
    colors = level_colors(depth + 1)
    theory = MeanField(*(data.attrs[key] for key in ("vocab_size", "multiplicity", "branching")))
    fine = np.linspace(0, 1, 500)
    lines = (("theory_noise", "tree_level"), theory.curves(fine, depth).marginals)
    data = data.assign(theory=lines, theory_noise=fine)
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=[1, 1.15], sharey=True, layout="constrained")
        for axes, levels in ((left, (0, depth)), (right, range(depth + 1))):
            for level in levels:
                draw_level(axes, data, level, colors[level], bold=level in (0, depth))
            axes.axvline(data.attrs["critical_noise"], color=THEORY, lw=1, ls=":", zorder=1)
            axes.set(xlabel=r"noise $\epsilon$", xlim=(0, 1), ylim=(0, 1.03))
        left.annotate(
            rf"$\epsilon^*={data.attrs['critical_noise']:.3f}$",
            (data.attrs["critical_noise"], 1.0), xytext=(5, 0), textcoords="offset points", va="top",
        )  # fmt: skip
        left.text(0.83, 0.42, "leaves", color=colors[0])
        left.text(0.70, 0.42, "class", color=colors[depth], ha="right")
        left.plot([], [], "o", color=MUTED, ms=4.5, label="exact (belief propagation)")
        left.plot([], [], color=MUTED, lw=1.4, label="mean-field theory")
        left.legend(loc="lower left")
        left.set(ylabel="P(symbol unchanged)", title="class and leaves")
        right.set_title("all levels")
        level_bar(plt, right, depth + 1, "tree level (0 = leaves)")
    return figure
