"""Chains of U-turns against exact laws: what they keep, what they sample with an energy, and
what they never leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.core.registry import build
from uturn.exact.inference import infer
from uturn.paper.verdicts import ESTIMATE, Verdict
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    DISTINCT,
    MUTED,
    THEORY,
    level_colors,
    name_rows,
    style,
    ticks,
)
from uturn.tools.chains.exam_runs import BETAS, ENDS, ENERGIES, LAWS, SEED, every_tree, with_pairs
from uturn.tools.chains.exam_runs import measure as measure  # of the figure
from uturn.tools.chains.exam_verdicts import LEVEL, verdicts
from uturn.tools.chains.measures import reversibility

TITLE = "What a chain of U-turns keeps, samples and never leaves"
CLAIM = (
    "Repeated U-turns sample the data if each draws from the posterior; in a sparse grammar, small"
    " ones stay in a part of it."
)
CAPTION = (
    "Chains of U-turns on random grammars with v symbols, m rules for each, and L levels. (a) Exact"
    " test that swaps x_0 and x_k: posterior draws pass, other decoders do not (red: p <= .001)."
    " (b) Autocorrelation of leaves (blue) to class (orange), (overlap - chance)/(1 - chance),"
    " masking .3: chains (dots) and powers of the transition matrix (lines); stars: two clones of"
    " one noisy datum, which share C(1). (c) Mean energy after 64 U-turns by masking .4, against"
    " its exact value (bars): by belief propagation for a sum over leaves, by enumeration with"
    " pairs. (d) U-turns that mask one leaf, v = 6, L = 3: overlap of the class in six grammars of"
    " m = 2 and its limit (dotted), from the components of the graph of strings that differ in one"
    " leaf; m = 3; lines: transition matrix."
)
SAMPLERS = ["exact", "free", "confidence"]
"""Chains with an energy: of posterior draws, without the Metropolis step, and of drawn
confidence.
"""


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    tests = [reversibility(runs[f"law-{name}"]) for name in LAWS]
    argmax = (
        runs["matrix-argmax"]
        .isel(k=0, drop=True)
        .rename(overlap="argmax_overlap", clones="argmax_clones")
    )
    parts = [
        xr.Dataset(
            {
                name: (("chain", "turns"), [test[name].values for test in tests])
                for name in ("z", "p")
            }
        ),
        runs["matrix"][["overlap", "exact", "clones", "chance"]],
        argmax[["argmax_overlap", "argmax_clones"]],
        _energies(runs),
        *(_minimal(runs, name) for name in ("m2", "m3")),
    ]
    data = xr.merge(parts).assign_coords(chain=list(LAWS), turns=list(ENDS), estimate=ESTIMATE)
    return data, verdicts(data)


def _energies(runs: dict[str, xr.Dataset]) -> xr.Dataset:
    """Mean energies (name, beta, sampler, moment) at the end of the chains, and exact ones
    (name, beta).
    """
    measured = []
    exact = []
    for name, (source, _) in ENERGIES.items():
        grammar = build("source", source).grammar(0, SEED)
        for beta in BETAS:
            if name == "leaves":  # a sum over leaves is evidence
                evidence = np.zeros((1, grammar.num_leaves, grammar.vocab_size))
                evidence[..., 0] = -beta
                exact.append(infer(grammar, evidence).marginals[0][..., 0].sum())
            else:
                energy = with_pairs(every_tree(grammar)[0])
                exact.append(np.average(energy, weights=np.exp(-beta * energy)))
            for label in (f"exact-{beta}", "exact-0.0", f"confidence-{beta}"):
                values = runs[f"energy-{name}-{label}"].energy.values
                measured.append((values.mean(), values.std(ddof=1) / np.sqrt(values.size)))
    shape = len(ENERGIES), len(BETAS)
    dims = "name", "beta", "sampler", "moment"
    return xr.Dataset(
        {
            "energy": (dims, np.reshape(measured, (*shape, -1, 2))),
            "exact_energy": (dims[:2], np.reshape(exact, shape)),
        },
        {
            "name": list(ENERGIES),
            "beta": list(BETAS),
            "sampler": SAMPLERS,
            "moment": ["mean", "error"],
        },
    )


def _minimal(runs: dict[str, xr.Dataset], name: str) -> xr.Dataset:
    """U-turns of one leaf on the grammars of one multiplicity, (grammar, k, tree_level)."""
    grammars = [run for label, run in runs.items() if label.startswith(f"{name}-")]
    joined = xr.concat([run[["overlap", "exact", "limit"]] for run in grammars], "grammar").assign(
        alone=("grammar", [int(run.alone.sum()) for run in grammars]),
        mistaken=("grammar", [int((run.alone == run.moved).sum()) for run in grammars]),
        chains=("grammar", [run.sizes["chain"] for run in grammars]),
    )
    return joined.rename(
        {of: f"{name}_{of}" for of in ("k", "grammar", *map(str, joined.data_vars))}
    )


# -- drawing ---------------------------------------------------------------------------------------

_GREEN = DISTINCT[2]
_LAWS = {
    "masking": "posterior draws,\nmasking",
    "Gaussian": "posterior draws,\nGaussian",
    "confidence": "drawn\nconfidence",
}
_ENERGIES = {"leaves": "sum over\nleaves", "pairs": "with pairs"}
_SAMPLERS = {
    "exact": ("posterior draws", THEORY, "o", (-52, 0)),
    "free": ("no Metropolis step", MUTED, "s", (0, -14)),
    "confidence": ("drawn confidence", CLASS, "D", (20, 14)),
}


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure, panels = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
        parts = (_draw_laws, _draw_matrix, _draw_energies, _draw_minimal)
        for axes, part in zip(panels.flat, parts, strict=True):
            part(axes, data)
    return figure


def _points(axes: Any, x: Any, moments: xr.DataArray, **look: Any) -> None:
    """Means with two standard errors."""
    mean, error = moments.transpose("moment", ...).values
    axes.errorbar(x, mean, 2 * error, fmt="o", lw=1, **look)


def _draw_laws(axes: Any, data: xr.Dataset) -> None:
    """(a) The test of reversibility."""
    for row, name in enumerate(data.chain.values):
        for turn in ENDS:
            z, p = (float(data[of].sel(chain=name, turns=turn)) for of in ("z", "p"))
            color = CLASS if p <= LEVEL else THEORY
            axes.plot([z], [row], "o", ms=9, color=color, mfc="white" if turn == ENDS[0] else color)
            aside = -10 if turn == ENDS[0] else 16
            axes.annotate(
                f"k = {turn}",
                (z, row),
                (0, aside),
                textcoords="offset points",
                ha="center",
                va="top",
                color=color,
                fontsize=9.5,
            )
    axes.set(
        xscale="log",
        xlim=(1.5, 70),
        xlabel="largest |z| of swaps of $x_0$ and $x_k$",
        title="(a) does the chain keep the law?",
    )
    axes.text(70, 0, "red: rejected", color=CLASS, ha="right", va="center")
    ticks(axes, [2, 5, 10, 20, 50])
    name_rows(axes, [_LAWS.get(name, name) for name in data.chain.values])


def _draw_matrix(axes: Any, data: xr.Dataset) -> None:
    """(b) Autocorrelations against the transition matrix."""
    k = data.k.values
    colors = level_colors(data.sizes["tree_level"])
    for level, color in enumerate(colors):
        of = data.isel(tree_level=level)
        scale = 1 - of.chance
        axes.plot(k, (of.exact - of.chance) / scale, color=color, lw=1.5)
        _points(
            axes, k, (of.overlap - of.chance * (of.moment == "mean")) / scale, color=color, ms=4.5
        )
        axes.plot(
            [1],
            (of.clones.sel(moment="mean") - of.chance) / scale,
            "*",
            color=color,
            ms=13,
            mfc="white",
            zorder=4,
        )
    axes.set(
        yscale="log",
        xlim=(0, 34),
        ylim=(0.008, 1.1),
        xlabel="U-turns $k$",
        title="(b) chains and transition matrix",
    )
    axes.set_ylabel("autocorrelation $C(k)/C(0)$")
    axes.text(10, 0.3, "leaves", color=colors[0])
    axes.text(3.2, 0.09, "class", color=colors[-1])
    axes.text(2.8, 0.88, "stars: two clones", color=MUTED, fontsize=9.5)


def _draw_energies(axes: Any, data: xr.Dataset) -> None:
    """(c) Mean energies."""
    rows = [(name, beta) for name in data.name.values for beta in data.beta.values]
    for row, (name, beta) in enumerate(rows):
        of = data.sel(name=name, beta=beta)
        axes.plot(
            [float(of.exact_energy)] * 2, [row - 0.3, row + 0.3], color=THEORY, lw=3, alpha=0.4
        )
        for sampler, (label, color, mark, place) in _SAMPLERS.items():
            mean, error = of.energy.sel(sampler=sampler).values
            axes.errorbar(mean, row, xerr=2 * error, fmt=mark, color=color, ms=6.5)
            if row == 0:
                axes.annotate(
                    label,
                    (mean, row),
                    place,
                    textcoords="offset points",
                    color=color,
                    ha="center",
                    va="center",
                    fontsize=9.5,
                )
    name_rows(axes, [f"{_ENERGIES[name]}, $\\beta={beta:g}$" for name, beta in rows])
    axes.set(
        xlabel="mean energy (bars: exact)",
        xlim=(0, 1.2 * float(data.energy.max())),
        title="(c) sampling with an energy",
    )


def _draw_minimal(axes: Any, data: xr.Dataset) -> None:
    """(d) The class after U-turns of one leaf, on enumerated grammars."""
    for name, color in (("m2", ACCENT), ("m3", _GREEN)):
        k = data[f"{name}_k"].values
        for grammar in range(data.sizes[f"{name}_grammar"]):
            of = data.isel({f"{name}_grammar": grammar, "tree_level": -1})
            axes.plot(k, of[f"{name}_exact"], color=color, lw=1.3)
            _points(axes, k, of[f"{name}_overlap"], color=color, ms=3.5)
            axes.plot([k[-1], 5000], [float(of[f"{name}_limit"])] * 2, ":", color=color, lw=1.5)
    axes.set(
        xscale="log", ylim=(0, 1.03), xlabel="U-turns of one leaf", ylabel="overlap of the class"
    )
    axes.set_title("(d) parts that are never left")
    axes.text(5000, 0.93, "$m=2$, six grammars", color=ACCENT, ha="right")
    axes.text(5000, 0.24, "$m=3$", color=_GREEN, ha="right")
