"""Does a sampler draw from the posterior? Clones test it without ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.stats import binom

from uturn.engine.run import run
from uturn.measures.calibration import calibrate, calibration, holm
from uturn.measures.estimates import Estimate, with_ends
from uturn.paper import calibration_runs as trials
from uturn.paper.verdicts import ESTIMATE, Verdict, above, below, numbers, verdict
from uturn.paper.workshop import Workshop, file_name
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    MUTED,
    THEORY,
    Look,
    name_rows,
    row_interval,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Does a sampler draw from the posterior? Clones can deny it"
CLAIM = (
    "Two reconstructions of one noisy datum reveal most errors of a sampler without ground truth; a"
    " sampler that ignores the datum passes."
)
CAPTION = (
    "Gap E f(x0, x̂) - E f(x̂, x̂') between an original and its clones, 0 for draws from the"
    " posterior. (a) Samplers of strings and of a Gaussian mixture, 200 originals each, at the"
    " reading and noise with the smallest p-value; bars: 95 % intervals; full marks: p by Holm (at"
    " the right) <= .001. Below the second line: a sampler that only joint readings detect, and one"
    " that the test cannot detect. (b) Share of 200 experiments with exact inference whose p-value"
    " is at most a; band: binomial error of all tests (.001)."
)
LEVEL = 1e-3
LEVELS = (0.01, 0.05, 0.2)
GROUPS = 200  # experiments of which the false alarms are counted


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    scale = workshop.scale
    runs = {}
    tried = trials.samplers(scale, trials.trained_denoiser(workshop))
    experiments = {label: experiment for label, (experiment, _) in tried.items()}
    experiments |= {f"repeated-{kind}": trials.repeated(kind, scale) for kind in trials.NOISE}
    for label, experiment in experiments.items():
        runs[label] = workshop.keep(f"calibration-{file_name(label)}", run, experiment=experiment)
        if label in tried:
            runs[label].attrs["kind"] = tried[label][1]
    return runs


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    kinds = {label: ds.attrs["kind"] for label, ds in runs.items() if "kind" in ds.attrs}
    tried = {}
    for label in kinds:
        names = ["parsed"] if "parsed" in runs[label] else ["same_label", "scale_similarity"]
        tried[label] = calibration(runs[label], names, level=LEVEL)
    shares = false_alarms([runs[f"repeated-{kind}"] for kind in trials.NOISE])
    worst = [_worst(tests) for tests in tried.values()]
    of_samplers = xr.Dataset(
        {
            "gap": (("sampler", "estimate"), [with_ends(test, "gap") for test in worst]),
            "p_holm": ("sampler", [float(tests.p_holm.min()) for tests in tried.values()]),
            "visible": ("sampler", [float(test.visible) for test in worst]),
        },
        {"sampler": list(tried), "kind": ("sampler", list(kinds.values())), "estimate": ESTIMATE},
    )
    return xr.merge([of_samplers, shares]), [*_samplers(tried, kinds), _rates(shares)]


def _worst(tests: xr.Dataset) -> xr.Dataset:
    """The test with the smallest p-value; if several have it, the one with the largest gap
    relative to its detectable size.
    """
    stacked = tests.stack(test=("noise", "reading"))
    return stacked.isel(
        test=int(np.lexsort((-np.abs(stacked.gap) / stacked.visible, stacked.p))[0])
    )


def _samplers(tried: Mapping[str, xr.Dataset], kinds: dict[str, str]) -> list[Verdict]:
    exact, wrong, blind, (sites,) = (
        [x for x in tried if kinds[x] == kind] for kind in ("exact", "wrong", "blind", "sites")
    )
    smallest = {label: float(tests.p_holm.min()) for label, tests in tried.items()}

    def gap_of(label: str) -> str:
        worst = _worst(tried[label])
        gap = Estimate(*with_ends(worst, "gap").tolist())
        return f"{label}: p by Holm {smallest[label]:.2g}, gap {gap} at {float(worst.noise):g}"

    adjusted = holm(np.concatenate([np.ravel(tried[label].p) for label in exact]))
    single = tried[sites].reading.str.endswith("= 0")
    leaves, joint = (
        tried[sites].p_holm.isel(reading=chosen).values for chosen in (single, ~single)
    )
    return [
        verdict(
            f"calibration of exact samplers, {trials.ITEMS} originals each",
            f"{len(adjusted)} tests, smallest p by Holm {adjusted.min():.2g};"
            f" {'; '.join(map(gap_of, exact))}",
            "0: original and clones are exchangeable",
            above(adjusted, LEVEL, f"exact randomisation test: no p by Holm <= {LEVEL:g}"),
        ),
        verdict(
            f"calibration of wrong samplers, {trials.ITEMS} originals each",
            "; ".join(map(gap_of, wrong)),
            "not 0",
            below([smallest[label] for label in wrong], LEVEL, f"p by Holm < {LEVEL:g} each"),
        ),
        verdict(
            "every leaf from its own marginal: smallest p by Holm on leaves and on parsed levels",
            f"{leaves.min():.2g}; {joint.min():.2g}",
            "leaves one by one are drawn rightly; joint readings show that they are independent",
            above(leaves, LEVEL, f"above and below {LEVEL:g}"),
            below(joint.min(), LEVEL, ""),
        ),
        verdict(
            "draws that ignore the noisy datum",
            "; ".join(map(gap_of, blind)),
            "no gap: consistent, though nothing of the original is kept (the test does not measure"
            " sharpness)",
            above([smallest[label] for label in blind], LEVEL, f"no p by Holm <= {LEVEL:g}"),
        ),
    ]


def false_alarms(repetitions: list[xr.Dataset]) -> xr.Dataset:
    """Share of experiments (grammars) with p <= a: `share` (test, a), a test for each channel,
    noise and tree level.
    """
    p = []
    for ds in repetitions:
        draws = ds.isel(trajectory=0).transpose("item", "clone", "noise", "tree_level")
        f = draws.parsed.values
        r = draws.clone_parsed.values
        groups = [np.flatnonzero(ds.grammar.values == g) for g in range(GROUPS)]
        p.append(
            [
                calibrate(f[items], r[items], relabellings=5000, seed=g).p_value.ravel()
                for g, items in enumerate(groups)
            ]
        )
    values = np.concatenate(p, axis=1)
    a = np.r_[LEVELS, np.linspace(0.01, 1, 100)]
    return xr.Dataset({"share": (("test", "a"), (values[:, :, None] <= a).mean(axis=0))}, {"a": a})


def _rates(shares: xr.Dataset) -> Verdict:
    of_levels = shares.share.values[:, : len(LEVELS)]
    p = binom.sf(np.round(of_levels * GROUPS) - 1, GROUPS, np.array(LEVELS))
    return verdict(
        f"share of {GROUPS} experiments with exact inference whose p-value is at most"
        f" {numbers(LEVELS, 'g')}",
        "; ".join(
            f"{mean:.4f}, at most {most:.3f}"
            for mean, most in zip(of_levels.mean(0), of_levels.max(0), strict=True)
        )
        + f" ({len(of_levels)} tests: channels, noise levels, tree levels); smallest p of a larger"
        f" share by Holm {holm(p).min():.2g}",
        "not above these",
        above(holm(p), LEVEL, f"binomial test of each share: no p by Holm <= {LEVEL:g}"),
    )


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(14, 5.4), width_ratios=[2.1, 1], layout="constrained"
        )
        _draw_samplers(left, data)
        _draw_rates(right, data)
    return figure


_LOOKS = {"exact": ACCENT, "wrong": CLASS, "sites": "#e69f00", "blind": MUTED}


def _draw_samplers(axes: Axes, data: xr.Dataset) -> None:
    kinds = data.kind.values
    look: Look = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "fontsize": 9.5,
    }
    order = [k for kind in _LOOKS for k in np.flatnonzero(kinds == kind)]
    for row, k in enumerate(order):
        p = float(data.p_holm[k])
        color = _LOOKS[str(kinds[k])]
        row_interval(
            axes, row, data.gap[k].values, color, ms=7, mfc=color if p <= LEVEL else "white"
        )
        axes.text(1.01, row, f"{p:.2g}", color=color, **look)
    count = [int((kinds == kind).sum()) for kind in _LOOKS]
    for edge in np.cumsum(count)[:2]:
        axes.axhline(edge - 0.5, color=MUTED, lw=0.8, ls=":")
    axes.axvline(0, color=THEORY, lw=1, zorder=1)
    name_rows(
        axes,
        [str(name) for name in data.sampler.values[order]],
        [_LOOKS[str(kind)] for kind in kinds[order]],
    )
    axes.text(1.01, -0.95, "p by Holm", color=THEORY, **look)
    axes.set(
        xlabel=r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$",
        title="(a) samplers on trial",
    )


def _draw_rates(axes: Axes, data: xr.Dataset) -> None:
    shares = data.share.isel(a=slice(len(LEVELS), None))
    a = shares.a.values
    tests = shares.sizes["test"]
    error = binom.ppf(1 - 1e-3 / tests, GROUPS, a) / GROUPS
    axes.fill_between(a, 0, error, color=ACCENT, alpha=0.13, lw=0, label="binomial error")
    axes.plot(a, a, color=THEORY, lw=1)
    axes.plot(a, shares.max("test"), color=ACCENT, lw=1.6, label=f"largest of {tests} tests")
    axes.plot(a, shares.mean("test"), color=ACCENT, lw=1.6, ls="--", label="mean")
    axes.set(
        xlabel="$a$",
        ylabel=f"share of {GROUPS} experiments with $p\\leq a$",
        xlim=(0, 0.3),
        ylim=(0, 0.42),
    )
    axes.set_title("(b) exact inference: false alarms")
    axes.legend(loc="upper left")
