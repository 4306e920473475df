"""Does a sampler draw from the posterior? Clones test it without ground truth, and show when a class is decided."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import binom

from uturn.engine.run import run
from uturn.measures.calibration import calibrate, calibration, holm
from uturn.measures.statistics import Estimate, with_ends
from uturn.paper import calibration_runs as trials
from uturn.paper import decision_times
from uturn.paper.verdicts import ESTIMATE, Verdict, above, below, shows, verdict
from uturn.paper.workshop import Workshop, file_name
from uturn.studies.plotting.curves import draw_gap
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, name_rows, row_interval, style, ticks

TITLE = "Does a sampler draw from the posterior? Clones can deny it"
CLAIM = (
    "Two reconstructions of one noisy datum reveal most errors of a sampler without ground truth; a sampler that ignores the "
    "datum passes."
)
CAPTION = (
    "Gap E f(x0, x̂) - E f(x̂, x̂') between an original and its clones, 0 for draws from the posterior. (a) Samplers of strings "
    "and of a Gaussian mixture, 200 originals each, at the reading and noise with the smallest p-value; bars: 95 % intervals; "
    "full marks: p by Holm (at the right) <= .001. Below the second line: a sampler that only joint readings detect, and one "
    "that the test cannot detect. (b) Share of 200 experiments with exact inference whose p-value is at most a; band: binomial "
    "error of all tests (.001). (c) The embedded model of Fashion-MNIST, with (DDPM) and without (DDIM) noise in its reverse "
    "steps. (d) Probability that two clones have the same class, for mixtures of two Gaussians (points; lines: formula) and for "
    "Fashion-MNIST, against the distance from the speciation time t_S = log(Lambda)/2. (e) Probability that two clones are the "
    "same training datum, for the exact posterior of n Gaussian data in d dimensions, against the collapse time."
)
LEVEL = 1e-3
LEVELS = (0.01, 0.05, 0.2)
GROUPS = 200  # experiments of which the false alarms are counted


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    scale, runs = workshop.scale, {}
    tried = trials.samplers(scale, trials.trained_denoiser(workshop))
    experiments = {label: experiment for label, (experiment, _) in tried.items()}
    experiments |= {f"repeated-{kind}": trials.repeated(kind, scale) for kind in trials.NOISE}
    experiments |= {f"mixture-{separation:g}": trials.mixture_experiment(separation, scale) for separation in trials.SEPARATIONS}
    for label, experiment in experiments.items():
        settings = {"experiment": experiment.identity(), "models": experiment.models()}
        runs[label] = workshop.keep(f"calibration-{file_name(label)}", settings, partial(run, experiment))
        if label in tried:
            runs[label].attrs["kind"] = tried[label][1]
    runs["recall"] = workshop.keep("calibration-recall", {"codes": trials.CODES, "scale": scale}, partial(trials.recall, scale))
    images = workshop.runs("calibration", trials.image_experiments(scale), apart=True)
    return runs | {f"images-{label}": ds for label, ds in images.items()}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    kinds, tried = {label: ds.attrs["kind"] for label, ds in runs.items() if "kind" in ds.attrs}, {}
    for label in kinds:
        names = ["parsed"] if "parsed" in runs[label] else ["same_label", "scale_similarity"]
        tried[label] = calibration(runs[label], names, level=LEVEL)
    shares = false_alarms([runs[f"repeated-{kind}"] for kind in trials.NOISE])
    images = {label: calibration(ds, ["same_class", "similarity"]) for label, ds in runs.items() if label.startswith("images-")}
    worst = [_worst(tests) for tests in tried.values()]
    of_samplers = xr.Dataset(
        {
            "gap": (("sampler", "estimate"), [with_ends(test, "gap") for test in worst]),
            "p_holm": ("sampler", [float(tests.p_holm.min()) for tests in tried.values()]),
            "visible": ("sampler", [float(test.visible) for test in worst]),
        },
        {"sampler": list(tried), "kind": ("sampler", list(kinds.values())), "estimate": ESTIMATE},
    )
    parts = [of_samplers, shares, _images_data(images), decision_times.speciation(runs), decision_times.fashion(runs)]
    data = xr.merge(parts, combine_attrs="no_conflicts")
    data["recalled"] = runs["recall"].recalled.mean("item").rename(noise="recall_noise")
    return data, [
        *_samplers(tried, kinds),
        _rates(shares),
        *_images(images),
        decision_times.phi_verdict(runs),
        decision_times.speciation_verdict(data),
        decision_times.collapse_verdict(runs["recall"]),
        decision_times.fashion_verdict(data),
    ]


def _worst(tests: xr.Dataset) -> xr.Dataset:
    """The test with the smallest p-value; if several have it, the one with the largest gap relative to its detectable size."""
    stacked = tests.stack(test=("noise", "reading"))
    return stacked.isel(test=int(np.lexsort((-np.abs(stacked.gap) / stacked.visible, stacked.p))[0]))


def _samplers(tried: dict[str, xr.Dataset], kinds: dict[str, str]) -> list[Verdict]:
    exact, wrong, blind, (sites,) = ([x for x in tried if kinds[x] == kind] for kind in ("exact", "wrong", "blind", "sites"))
    smallest = {label: float(tests.p_holm.min()) for label, tests in tried.items()}

    def gap_of(label: str) -> str:
        worst = _worst(tried[label])
        gap = Estimate(*with_ends(worst, "gap").tolist())
        return f"{label}: p by Holm {smallest[label]:.2g}, gap {gap} at {float(worst.noise):g}"

    adjusted = holm(np.concatenate([np.ravel(tried[label].p) for label in exact]))
    single = tried[sites].reading.str.endswith("= 0")
    leaves, joint = (tried[sites].p_holm.isel(reading=chosen).values for chosen in (single, ~single))
    return [
        verdict(
            f"calibration of exact samplers, {trials.ITEMS} originals each",
            f"{len(adjusted)} tests, smallest p by Holm {adjusted.min():.2g}; {'; '.join(map(gap_of, exact))}",
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
            "no gap: consistent, though nothing of the original is kept (the test does not measure sharpness)",
            above([smallest[label] for label in blind], LEVEL, f"no p by Holm <= {LEVEL:g}"),
        ),
    ]


def false_alarms(repetitions: list[xr.Dataset]) -> xr.Dataset:
    """Share of experiments (grammars) with p <= a: `share` (test, a), a test for each channel, noise and tree level."""
    p = []
    for ds in repetitions:
        draws = ds.isel(trajectory=0).transpose("item", "clone", "noise", "tree_level")
        f, r = draws.parsed.values, draws.clone_parsed.values
        groups = [np.flatnonzero(ds.grammar.values == g) for g in range(GROUPS)]
        p.append([calibrate(f[items], r[items], relabellings=5000, seed=g).p_value.ravel() for g, items in enumerate(groups)])
    values = np.concatenate(p, axis=1)
    a = np.r_[LEVELS, np.linspace(0.01, 1, 100)]
    return xr.Dataset({"share": (("test", "a"), (values[:, :, None] <= a).mean(axis=0))}, {"a": a})


def _rates(shares: xr.Dataset) -> Verdict:
    of_levels = shares.share.values[:, : len(LEVELS)]
    p = binom.sf(np.round(of_levels * GROUPS) - 1, GROUPS, np.array(LEVELS))
    return verdict(
        f"share of {GROUPS} experiments with exact inference whose p-value is at most {', '.join(f'{a:g}' for a in LEVELS)}",
        "; ".join(f"{mean:.4f}, at most {most:.3f}" for mean, most in zip(of_levels.mean(0), of_levels.max(0), strict=True))
        + f" ({len(of_levels)} tests: channels, noise levels, tree levels); smallest p of a larger share by Holm "
        f"{holm(p).min():.2g}",
        "not above these",
        above(holm(p), LEVEL, f"binomial test of each share: no p by Holm <= {LEVEL:g}"),
    )


def _images_data(images: dict[str, xr.Dataset]) -> xr.Dataset:
    """Gaps of class, first block and logits, at every noise level: image_gap (scheduler, steps, shown, noise, estimate)."""
    steps = sorted({int(label.rpartition("-")[2]) for label in images})
    rows = [[images[f"images-{scheduler}-{number}"] for number in steps] for scheduler in trials.SCHEDULERS]
    tests = xr.concat([xr.concat(row, "steps") for row in rows], "scheduler").isel(reading=[0, 1, -1])
    tests = tests.transpose("scheduler", "steps", "reading", "noise")
    shown = ("scheduler", "steps", "shown", "image_noise")
    return xr.Dataset(
        {"image_gap": ((*shown, "estimate"), with_ends(tests, "gap")), "image_p": (shown, tests.p_holm.values)},
        {"scheduler": list(trials.SCHEDULERS), "steps": steps, "shown": ["same class", "first block", "logits"]}
        | {"image_noise": tests.noise.values, "estimate": ESTIMATE},
    )


def _images(images: dict[str, xr.Dataset]) -> list[Verdict]:
    data = _images_data(images)
    smallest = {label: float(tests.p_holm.min()) for label, tests in images.items()}

    def values(gaps: xr.DataArray) -> str:
        return ", ".join(f"{float(x):+.3f}" for x in gaps.sel(estimate="value"))

    def gaps_of(scheduler: str) -> str:
        parts = []
        for gaps in data.image_gap.sel(scheduler=scheduler):
            texts = "; ".join(f"{gap.shown.item()} {values(gap)}" for gap in gaps)
            parts.append(
                f"{int(gaps.steps)} steps: {texts}; smallest p by Holm {smallest[f'images-{scheduler}-{int(gaps.steps)}']:.2g}"
            )
        return " | ".join(parts)

    noise = ", ".join(f"{x:g}" for x in data.image_noise.values)
    block = data.image_gap.sel(shown="first block")
    few, many, ode = block.sel(scheduler="ddpm")[0], block.sel(scheduler="ddpm")[-1], block.sel(scheduler="ddim")[-1]
    first, last, without = (f"{int(gaps.steps)} steps: {values(gaps)}" for gaps in (few, many, ode))
    return [
        verdict(
            f"model of Fashion-MNIST with DDIM: gaps at t/T = {noise}",
            gaps_of("ddim"),
            "below 0: without noise all clones are equal",
            below(
                [p for label, p in smallest.items() if "ddim" in label], LEVEL, f"p by Holm < {LEVEL:g} for every number of steps"
            ),
            below(ode.sel(estimate="high").values, 0, "first block, most steps: intervals below 0"),
        ),
        verdict(
            f"model of Fashion-MNIST with DDPM: gaps of the first block at t/T = {noise}",
            f"{first} | {last}; without noise {without}",
            "nearer to 0 with more steps, and nearer than without noise",
            above((many - few).sel(estimate="value").mean(), 0, "first block, mean over noise: rises with the number of steps"),
            above(many.sel(estimate="low").values, ode.sel(estimate="high").values, "above DDIM, intervals apart"),
        ),
        shows(
            f"model of Fashion-MNIST with DDPM: gaps of all readings at t/T = {noise}",
            gaps_of("ddpm"),
            "0 for an exact sampler of a right model; class and logits need not come nearer with more steps",
        ),
    ]


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure = plt.figure(figsize=(14.5, 10.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.18, 1])
        left, right = top.subplots(1, 2, width_ratios=[2.1, 1])
        _draw_samplers(left, data)
        _draw_rates(right, data)
        images, speciated, collapsed = bottom.subplots(1, 3)
        _draw_images(images, data)
        decision_times.draw_speciation(speciated, data)
        decision_times.draw_collapse(collapsed, data)
    return figure


_LOOKS = {"exact": ACCENT, "wrong": CLASS, "sites": "#e69f00", "blind": MUTED}


def _draw_samplers(axes: Any, data: xr.Dataset) -> None:
    kinds, look = data.kind.values, {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    order = [k for kind in _LOOKS for k in np.flatnonzero(kinds == kind)]
    for row, k in enumerate(order):
        p, color = float(data.p_holm[k]), _LOOKS[str(kinds[k])]
        row_interval(axes, row, data.gap[k].values, color, ms=7, mfc=color if p <= LEVEL else "white")
        axes.text(1.01, row, f"{p:.2g}", color=color, **look)
    count = [int((kinds == kind).sum()) for kind in _LOOKS]
    for edge in np.cumsum(count)[:2]:
        axes.axhline(edge - 0.5, color=MUTED, lw=0.8, ls=":")
    axes.axvline(0, color=THEORY, lw=1, zorder=1)
    name_rows(axes, [str(name) for name in data.sampler.values[order]], [_LOOKS[str(kind)] for kind in kinds[order]])
    axes.text(1.01, -0.95, "p by Holm", color=THEORY, **look)
    axes.set(xlabel=r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$", title="(a) samplers on trial")


def _draw_rates(axes: Any, data: xr.Dataset) -> None:
    shares = data.share.isel(a=slice(len(LEVELS), None))
    a, tests = shares.a.values, shares.sizes["test"]
    error = binom.ppf(1 - 1e-3 / tests, GROUPS, a) / GROUPS
    axes.fill_between(a, 0, error, color=ACCENT, alpha=0.13, lw=0, label="binomial error")
    axes.plot(a, a, color=THEORY, lw=1)
    axes.plot(a, shares.max("test"), color=ACCENT, lw=1.6, label=f"largest of {tests} tests")
    axes.plot(a, shares.mean("test"), color=ACCENT, lw=1.6, ls="--", label="mean")
    axes.set(xlabel="$a$", ylabel=f"share of {GROUPS} experiments with $p\\leq a$", xlim=(0, 0.3), ylim=(0, 0.42))
    axes.set_title("(b) exact inference: false alarms")
    axes.legend(loc="upper left")


def _draw_images(axes: Any, data: xr.Dataset) -> None:
    steps = data.steps.values.astype(float)
    noise = float(data.image_noise[np.abs(data.image_noise.values - 0.6).argmin()])
    marks = {"same class": "s", "first block": "o", "logits": "^"}
    axes.axhline(0, color=THEORY, lw=1, zorder=1)
    for k, (scheduler, color) in enumerate(zip(trials.SCHEDULERS, (ACCENT, CLASS), strict=True)):
        for j, name in enumerate(data.shown.values):
            tests = data[["image_gap", "image_p"]].sel(scheduler=scheduler, shown=name, image_noise=noise)
            aside = 1 + 0.06 * (j - 1) + 0.02 * k
            draw_gap(axes, steps * aside, tests.image_gap, tests.image_p <= LEVEL, color, None, marks[str(name)])
        axes.plot([], [], color=color, lw=2, label=("DDPM, with noise", "DDIM, without")[k])
    for name, mark in marks.items():
        axes.plot([], [], ls="", marker=mark, color=MUTED, ms=5.5, label=name)
    axes.set(xscale="log", xlabel="reverse steps of the whole chain", ylabel="gap", ylim=(-1.25, 0.12))
    ticks(axes, steps)
    axes.set_title(f"(c) Fashion-MNIST model, $t/T={noise:g}$")
    axes.legend(fontsize=8.5, loc="lower center", ncols=2)
