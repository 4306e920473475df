"""Which data look hierarchical? The same measurement on grammars with and without a transition, mixtures, and a random field."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.registry import build
from uturn.measures.statistics import Estimate, hierarchy_index, nonincreasing, replicates, rescaled
from uturn.paper import fig2, fig5, fig7, nesting
from uturn.paper.control_cases import COMPARISONS, OTHERS, TWO_SCALES, Case, cases, experiments, two_scales, two_scales_curves
from uturn.paper.specs import mean_field
from uturn.paper.verdicts import ESTIMATE, Verdict, above, apart, below, holds, shows, verdict, within
from uturn.paper.workshop import Workshop
from uturn.studies.plotting.curves import draw_curve
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, name_rows, row_interval, style, ticks

TITLE = "The signatures of a hierarchy, and their controls"
CLAIM = (
    "Sparse grammars keep the class better than details at small noise, and worse at large noise. Flat data can do the same; "
    "correlated changes at several levels tell the two apart."
)
CAPTION = (
    "U-turns with the exact posterior, in Gaussian diffusion unless stated otherwise. Top: share of the class and of the low "
    "level (leaves; all components of a mixture; finest octave of a field) that is kept, rescaled to 1 without noise and 0 for "
    "independent data, against diffusion time; shading: 95 % intervals; dashed: a low-level feature denoised on its own, without "
    "context. Bottom left and middle: the class against the isolated and the reconstructed low level; a hierarchy starts above "
    "the diagonal (class better preserved) and ends below it. Bottom right: hierarchy index with 95 % intervals against the "
    "isolated (circles) and the reconstructed low level (diamonds); pale: no verdict on its size. Grammars: (v, m, s), as many "
    "classes as symbols. The modes of the control mixtures are 32 standard deviations apart. Purple: data without a hierarchy "
    "whose index is above 0: two modes, 8 standard deviations apart, beside independent details of which half have variance .05 "
    "and half 1000; a random code, whose modes are 10 apart; a grammar with one level. Last row: the nesting index. Left: nested "
    "correlations D_k, the correlation of the changes of sibling blocks of sites beyond that of the next relatives (shading: 95 "
    "% intervals); a grammar has them at all levels, a flat code at one. Middle: the index of every draw, with parameters on "
    "which it was not chosen. Right: a grammar whose tree above level k is replaced by independent draws; bars: 95 % intervals."
)
LIMIT = 0.05  # an index below it counts as 0
SHIFT = 0.01  # in ε, between one grammar and the mean field; it changes 4 r (1 - r) by no more than 4 SHIFT


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    runs = workshop.runs("controls", experiments(workshop.scale))
    # Runs of other figures, at the paper's grammar and on images.
    runs["paper"] = workshop.run("fig5-depth10", fig5.experiments(workshop.scale)["depth10"])
    runs["paper-epsilon"] = workshop.run("fig7-epsilon", fig7.experiments(workshop.scale)["epsilon"])
    runs["images"] = workshop.run("fig2-stochastic", fig2.experiments(workshop.scale)["stochastic"])
    items = 600 if workshop.scale == "smoke" else 2000
    runs["two-scales"] = workshop.keep("controls-two-scales", {"items": items, "version": 1}, lambda: two_scales(items))
    runs["nesting"], runs["classifier"] = nesting.measured(workshop), fig2.classified(workshop)
    return runs


class Levels(NamedTuple):
    """A high level, the low level as reconstructed and on its own, and their values for independent originals, if known."""

    high: xr.DataArray
    low: xr.DataArray
    isolated: xr.DataArray | None
    floors: tuple[float, float] | None


def levels(run: xr.Dataset) -> Levels:
    """The levels of a run that are compared; isolated leaves keep a share 1 - effective ε (Eq. 63), rescaled."""
    if "high" in run:
        return Levels(run.high, run.low, run.isolated, (0.5, 0.0))
    if "belief" in run:
        high, low = (run.belief.isel(tree_level=k, drop=True) for k in (-1, 0))
        return Levels(high, low, (1 - run.effective_epsilon).reset_coords(drop=True), None)
    spec = json.loads(run.attrs["spec"])
    source = build("source", spec["source"], trusted=False)
    law = source.law(spec["seed"])
    # Correlation of two draws from the posterior of a single component of variance V, if it were Gaussian.
    power = xr.DataArray(law.power[list(source.scales().values())[-1]], dims="component")
    isolated = (power / (power + np.exp(-run.log_snr))).weighted(power).mean("component")
    chance = float((law.weights**2).sum()) if law.num_modes > 1 else 0.5  # the classes of a field are signs
    low = run.scale_similarity.isel(scale=-1, drop=True)
    return Levels(run.same_label, low, isolated.reset_coords(drop=True), (chance, 0.0))


def _exact(noise: np.ndarray, curve: np.ndarray) -> xr.DataArray:
    """An exact curve in the form of readings."""
    return xr.DataArray(curve, {"noise": noise}, "noise").expand_dims(item=2)


def mean_field_index(source: dict[str, Any], noise: np.ndarray) -> float:
    """Index of class against isolated leaves in the ε-process, by the mean field at the noise levels of a run."""
    kept = mean_field(source).curves(noise, source["depth"]).marginals[:, -1]
    return hierarchy_index(_exact(noise, kept), xr.DataArray(1 - noise, {"noise": noise}, "noise")).value


def image_levels(run: xr.Dataset, classifier: xr.Dataset) -> Levels:
    """Kind of garment and first block of the classifier, Fashion-MNIST."""
    values, (same, chance) = fig2.labels_retained(run, classifier.predicted.values)
    # Random pairs are of one class as often as two independent images are.
    alike, different = classifier.random_pairs.values[:, 0]
    floors = float(chance), float(same * alike + (1 - same) * different)
    return Levels(values.isel(label_set=1, drop=True), run.similarity.isel(network_layer=0, drop=True), None, floors)


Indices = dict[str, dict[str, Estimate]]
"""Hierarchy index by case and comparison."""


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    listed = [case for case in [*cases("paper"), *OTHERS, TWO_SCALES] if case.judged or case.label in runs]
    listed.sort(key=lambda case: ["hierarchy", "control", "flat", "other"].index(case.kind))
    compared = {case.label: levels(runs[case.label].load()) for case in listed if case.label != "images"}
    if "images" in runs:
        compared["images"] = image_levels(runs["images"].load(), runs["classifier"])
    index = {label: _indices(high_and_low) for label, high_and_low in compared.items()}
    drawn = [c.label for c in listed if c.panel or c == TWO_SCALES]
    data = xr.Dataset({f"r_{label}": _curves(compared[label]).rename(noise=f"time_{label}") for label in drawn})
    values = [[index[case.label].get(name, (np.nan,) * 3) for name in COMPARISONS] for case in listed]
    data["index"] = ("case", "comparison", "estimate"), np.array(values)
    data = data.assign_coords(
        case=[case.label for case in listed],
        comparison=list(COMPARISONS),
        estimate=ESTIMATE,
        words=("case", [case.title for case in listed]),
        kind=("case", [case.kind for case in listed]),
        judged=(("case", "comparison"), [[name in case.judged for name in COMPARISONS] for case in listed]),
    )
    flat = [case for case in listed if case.kind == "flat" and not case.judged]
    return data.merge(runs["nesting"]), [
        *(judged for name in COMPARISONS for judged in _hierarchies_and_controls(listed, index, name)),
        _mean_field(listed, index, runs),
        *(_depth(index, name) for name in COMPARISONS),
        _two_scales(listed, index, runs["two-scales"]),
        shows(
            "hierarchy index of other data without a hierarchy, isolated and reconstructed low level",
            "; ".join(f"{_plain(c.title)}: {', '.join(str(index[c.label][name]) for name in COMPARISONS)}" for c in flat),
            "may be above 0: a class that is lost abruptly gives an inversion without a hierarchy",
        ),
        *nesting.verdicts(runs["nesting"]),
    ]


def _indices(compared: Levels) -> dict[str, Estimate]:
    index = {"reconstructed": hierarchy_index(compared.high, compared.low, compared.floors)}
    if compared.isolated is not None:
        floors = None if compared.floors is None else (compared.floors[0], 0.0)
        index["isolated"] = hierarchy_index(compared.high, compared.isolated, floors)
    return index


def _hierarchies_and_controls(listed: list[Case], index: Indices, name: str) -> list[Verdict]:
    def text(kind: str, judged: bool) -> str:
        chosen = [c for c in listed if c.kind == kind and (name in c.judged) == judged and name in index[c.label]]
        return "; ".join(f"{_plain(c.title)}: {index[c.label][name]}" for c in chosen)

    positive, zero = (
        [index[case.label][name] for case in listed if case.kind == kind and name in case.judged]
        for kind in ("hierarchy", "control")
    )
    highest = max(estimate.high for estimate in zero)
    return [
        verdict(
            f"hierarchy index of grammars with s f < 1, class against the {name} low level",
            text("hierarchy", True),
            "clearly positive, apart from all controls" + _uncovered(text("hierarchy", False)),
            above(
                [estimate.low for estimate in positive],
                max(LIMIT, highest),
                f"intervals above {LIMIT} and above those of the controls",
            ),
        ),
        verdict(
            f"hierarchy index with s f > 1, with f = 1, of mixtures (modes 32 s.d. apart) and of a field, {name} low level",
            text("control", True),
            "about 0 (other flat data, of which three are shown, have an index above 0)" + _uncovered(text("other", False)),
            below([estimate.high for estimate in zero], LIMIT, f"intervals below {LIMIT}"),
        ),
    ]


def _uncovered(text: str) -> str:
    """A note on the cases that a verdict does not cover."""
    return f"; not covered, because no theory here says what to expect: {text}" if text else ""


def _two_scales(listed: list[Case], index: Indices, run: xr.Dataset) -> Verdict:
    """Data without a hierarchy have the index of their exact curves, which is above that of every grammar."""
    noise = run.noise.values
    high, low = (_exact(noise, curve) for curve in two_scales_curves(noise))
    known = hierarchy_index(high, low, (0.0, 0.0)).value
    largest = max(interval.value for case in listed if case.kind == "hierarchy" for interval in index[case.label].values())
    indices = index[TWO_SCALES.label]
    return verdict(
        "hierarchy index of 2 modes, 8 s.d. apart, beside independent details of variance .05 and 1000: isolated, reconstructed",
        "; ".join(str(indices[name]) for name in COMPARISONS),
        f"{known:.3f} (exact curves), although there is no hierarchy; largest index of a grammar here: {largest:.3f}",
        holds(list(indices.values()), known, 0.15, "intervals hold it, and are narrower than 0.15"),
        above([interval.low for interval in indices.values()], LIMIT),
    )


def _mean_field(listed: list[Case], index: Indices, runs: dict[str, xr.Dataset]) -> Verdict:
    pinned = [case for case in listed if case.channel == "epsilon"]
    theory = [mean_field_index(case.source, runs[case.label].noise.values) for case in pinned]
    measured = [index[case.label]["isolated"].value for case in pinned]
    return verdict(
        "hierarchy index in the ε-process, class against the isolated leaves",
        "; ".join(f"{_plain(case.title)}: {value:.3f}" for case, value in zip(pinned, measured, strict=True)),
        ", ".join(f"{value:.3f}" for value in theory) + " (mean field)",
        within(np.subtract(measured, theory), 4 * SHIFT, f"within {4 * SHIFT}: a shift of {SHIFT} in ε"),
    )


def _depth(index: Indices, name: str) -> Verdict:
    of_depth = {int(label.removeprefix("sparse-depth")): index[label][name] for label in index if "sparse-depth" in label}
    of_depth[7], shallowest = index["sparse"][name], min(of_depth)
    return verdict(
        f"hierarchy index of (32, 4, 2), s f = 1/4, as the tree grows deeper, against the {name} low level",
        "; ".join(f"L = {L}: {of_depth[L]}" for L in sorted(of_depth)),
        "grows from a shallow tree to L = 7",
        apart(of_depth[shallowest], of_depth[7], f"intervals of L = {shallowest} and L = 7 apart"),
    )


def _plain(text: str) -> str:
    for symbol, letter in ((r"\epsilon", "ε"), ("$", ""), ("=", " = "), (">", " > "), ("sf", "s f")):
        text = text.replace(symbol, letter)
    return text


def _curves(compared: Levels) -> xr.DataArray:
    """Rescaled curves and their intervals: dims noise, level, estimate."""
    pieces = []
    for values, floor in zip((compared.high, compared.low), compared.floors or (None, None), strict=True):
        pieces.append(replicates(values).interval(partial(rescaled, floor=floor)))
    assert compared.isolated is not None  # only images have none, and no panel
    pieces.append(np.repeat(rescaled(compared.isolated)[:, None], 3, axis=1))
    names = {"noise": compared.high.noise.values, "level": ["class", "reconstructed", "isolated"], "estimate": ESTIMATE}
    return xr.DataArray(np.stack(pieces, axis=1), names)


FLAT = "#7b3294"
PANEL_COLORS = {"sparse": CLASS, "beyond": "#e69f00", "full": "#8c6d00", "two-modes": ACCENT, "many-modes": "#56b4e9"}
PANEL_COLORS |= {"field": "#009e73", "two-scales": FLAT}


def draw(data: xr.Dataset) -> Any:
    labels = data.case.values.tolist()
    panels = [label for label in labels if f"r_{label}" in data and label != TWO_SCALES.label]
    titles = dict(zip(labels, data.words.values.tolist(), strict=True))
    with style() as plt:
        figure = plt.figure(figsize=(13.5, 13.8), layout="constrained")
        top, bottom, below = figure.subfigures(3, 1, height_ratios=[1.1, 1, 0.8])
        grid = top.subplots(2, 3, sharey=True)
        for axes, label in zip(grid.flat, panels, strict=True):
            _draw_case(axes, data[f"r_{label}"].rename({f"time_{label}": "time"}), titles[label])
        for axes in grid[1]:
            axes.set_xlabel("diffusion time $t$")
        for axes in grid[:, 0]:
            axes.set_ylabel("kept, rescaled: $r$")
        grid[0, 0].legend(loc="upper right")
        left, middle, right = bottom.subplots(1, 3, width_ratios=[1, 1, 1.25])
        for axes, name, title in ((left, "isolated", "isolated low level"), (middle, "reconstructed", "low level")):
            _draw_plane(axes, data, {label: titles[label] for label in [*panels, TWO_SCALES.label]}, name)
            axes.set_title(f"class against {title}")
        _draw_index(right, data)
        for axes, corner in ((left, "left"), (right, "right")):
            bottom.legend(*axes.get_legend_handles_labels(), fontsize=9, loc=f"outside lower {corner}", ncols=3)
        nesting.draw(below, data)
    return figure


def _draw_case(axes: Any, curves: xr.DataArray, title: str) -> None:
    finite = np.isfinite(curves.time.values)
    time = curves.time.values[finite]
    looks = ((CLASS, "class", "-", 1.9), (ACCENT, "low level", "-", 1.9), (MUTED, "low level, isolated", "--", 1.2))
    for k, (color, name, dashes, width) in enumerate(looks):
        draw_curve(axes, time, curves.isel(level=k).values[finite], color, 0.2, label=name, ls=dashes, lw=width)
    axes.set(xscale="log", xlim=(time[0], time[-1]), ylim=(-0.06, 1.04), title=title)
    axes.axhline(0, color=MUTED, lw=0.6)
    ticks(axes, [t for t in (0.02, 0.05, 0.1, 0.3, 1, 3) if time[0] <= t <= time[-1]])


def _draw_plane(axes: Any, data: xr.Dataset, titles: dict[str, str], name: str) -> None:
    for label, text in titles.items():
        curves = data[f"r_{label}"].isel(estimate=0)
        low, high = nonincreasing(curves.sel(level=name).values), nonincreasing(curves.sel(level="class").values)
        width, order = (2.8, 3) if label == "sparse" else (1.6, 2)
        axes.plot(np.r_[1, low], np.r_[1, high], label=text, color=PANEL_COLORS[label], lw=width, zorder=order)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--", zorder=1)
    axes.set(xlabel=f"low level, {name}: $r_L$", ylabel="class: $r_H$", xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    axes.set_box_aspect(1)


def _draw_index(axes: Any, data: xr.Dataset) -> None:
    colors = {"hierarchy": CLASS, "control": ACCENT, "flat": FLAT, "other": MUTED}
    for row, kind in enumerate(data.kind.values.tolist()):
        for k, (marker, offset) in enumerate((("o", -0.17), ("D", 0.17))):
            bounds, alpha = data["index"][row, k].values, 1 if data.judged[row, k] else 0.35
            look: dict[str, Any] = {"ms": 5.5, "mew": 1.5, "mfc": "white" if k else colors[kind], "alpha": alpha}
            row_interval(axes, row + offset, bounds, colors[kind], marker, **look)
    name_rows(axes, data.words.values.tolist(), fontsize=9)
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set(xlabel="hierarchy index", xlim=(-0.02, 1), title="hierarchy index")
    for marker, face, text in (("o", MUTED, "against isolated low level"), ("D", "white", "against low level")):
        axes.plot([], [], marker, ms=5.5, color=MUTED, mfc=face, mew=1.5, label=text)
    kinds = {"grammar $(v,m,s)$, $sf<1$": CLASS, "control": ACCENT, "no hierarchy, above 0": FLAT, "pale: not covered": MUTED}
    for text, color in kinds.items():
        axes.plot([], [], color=color, lw=2, label=text)
