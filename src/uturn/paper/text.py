"""U-turns of texts with the embedded masked model of characters: shares kept, correlated changes (arXiv:2410.13770), decoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.measures.changes import chi_parts
from uturn.measures.peaks import peak_of
from uturn.measures.statistics import Estimate, estimate
from uturn.paper.specs import Part, experiment_of
from uturn.paper.verdicts import Rule, Verdict, above, apart, below, decreasing, equal, listed, shows, verdict
from uturn.paper.workshop import Scale, Workshop
from uturn.studies import study
from uturn.studies.charts import changes_charts
from uturn.studies.figure import draw_chart
from uturn.studies.plotting.style import ACCENT, MUTED, THEORY, bars, style

TITLE = "Texts: what is kept, what changes together, and decoders"
CLAIM = "The characters of a text change in groups, which are largest at intermediate noise."
CAPTION = (
    "U-turns of passages of a novel with the embedded masked model of characters, which was trained on other novels; a share of "
    "the characters is masked and drawn again one by one. Bars and bands: 95 % intervals over passages. Share kept of "
    "single characters and of runs of four, for four decoders; the two that draw from the posterior of a consistent model "
    "agree. Susceptibility, the number of characters that change together, with its peak and the interval of its noise, and the "
    "correlation of changes against distance, both with random order. The gap E f(x0, x̂) - E f(x̂, x̂') is 0 for draws from "
    "the posterior of the text; it is not 0 for an inexact model, and larger for decoders that draw from another law."
)
DECODERS: dict[str, dict[str, Any]] = {
    "random": {},
    "entropy": {"order": "entropy"},
    "confidence": {"order": "confidence"},
    "temperature .5": {"temperature": 0.5},
}
COMPARED = (0.3, 0.6)  # noise levels at which decoders are compared
SPAN = 4  # of the runs that are compared
_WHERE = f"at noise {' and '.join(map(str, COMPARED))}"
FAR = 8  # distance at which characters belong to different words, in most cases
CURVES = "curves"  # the run of many noise levels, order random
_LEVELS = {"smoke": [0.0, 0.05, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0], "paper": np.linspace(0, 1, 21).round(2).tolist()}
# Characters; items and trajectories of the curves, and of the comparison of decoders.
_SIZES = {"smoke": (32, (32, 5), (36, 2)), "paper": (64, (100, 12), (200, 2))}
_COLORS = dict(zip(DECODERS, (ACCENT, "#56b4e9", "#d55e00", "#e69f00"), strict=True))


def experiments(scale: Scale) -> dict[str, Experiment]:
    """One run of many noise levels and trajectories; a run with clones for each decoder, of the same masked texts."""
    length, curves, compared = _SIZES[scale]

    def described(size: tuple[int, int], noise: Sequence[float], decoder: str, *probes: Part, clones: int = 1) -> Experiment:
        source, backward = {"type": "tokens", "windows": True, "length": length}, {"type": "language", **DECODERS[decoder]}
        sizes = {"items": size[0], "trajectories": size[1], "clones": clones, "chunk": 4}
        return experiment_of(source, "masking", noise, *probes, backward=backward, **sizes)

    agreement = {"type": "kept_tokens", "spans": [1, SPAN]}
    made = {CURVES: described(curves, _LEVELS[scale], "random", agreement, "changes")}
    return made | {label: described(compared, COMPARED, label, agreement, clones=2) for label in DECODERS}


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return workshop.runs("text", experiments(workshop.scale), apart=True)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {label: run.load() for label, run in runs.items()}
    curves = runs[CURVES].sortby("noise")
    whole = study(curves).isel(changes=0)
    data = whole[["curve", "chi", "n_eff", "xi", "correlation", "peak_at"]]
    for name, of in (("kept", lambda *at: _mean(_at(*at))), ("clone_gap", _gap)):
        rows = [[[of(runs[label], noise, span) for noise in COMPARED] for span in (1, SPAN)] for label in DECODERS]
        data[name] = ("decoder", "span", "compared", "estimate"), np.array(rows)
    data = data.assign_coords(decoder=list(DECODERS), span=[1, SPAN], compared=list(COMPARED))
    random, entropy = runs["random"], runs["entropy"]
    return data, [
        _identity(curves),
        _falls(curves),
        shows(
            f"share kept, order entropy minus order random, characters and runs of {SPAN}, {_WHERE}",
            _texts([_mean(_at(entropy, noise, span) - _at(random, noise, span)) for noise in COMPARED for span in (1, SPAN)]),
            "0 for a consistent model, since both orders draw from its posterior; no theory says how near a trained one comes",
        ),
        _cold(runs),
        _peak(data, curves),
        _correlations(data),
        _calibration(runs),
    ]


def _at(run: xr.Dataset, noise: float, span: int, name: str = "kept") -> xr.DataArray:
    """Readings at one noise level, with the dim noise."""
    k = int(np.abs(run.noise.values - noise).argmin())
    return run[name].sel(span=span).isel(noise=[k])


def _mean(values: xr.DataArray) -> Estimate:
    return estimate(values, lambda c: float(c[0]))


def _gap(run: xr.Dataset, noise: float, span: int) -> Estimate:
    """E f(x0, x̂) - E f(x̂, x̂')."""
    return _mean(_at(run, noise, span) - _at(run, noise, span, "clone_kept"))


def _texts(numbers: list[Estimate]) -> str:
    return "; ".join(f"{number:.3f}" for number in numbers)


def _identity(run: xr.Dataset) -> Verdict:
    """Nothing changes without noise, and a little of it changes no more than it masks."""
    least = float(run.noise[1])
    changed = 1 - _mean(_at(run, least, 1)).value
    return verdict(
        "share of characters kept at zero noise; share changed at the smallest noise",
        f"{float(run.kept.sel(noise=0).min()):g}; {changed:.4f} at {least:g}",
        "1; below the share that is masked",
        equal(run.kept.sel(noise=0).values, 1),
        Rule(0 < changed < least, f"between 0 and {least:g}"),
    )


def _falls(run: xr.Dataset) -> Verdict:
    single, runs = ([_mean(_at(run, noise, span)) for noise in run.noise.values] for span in (1, SPAN))
    both = [_mean(_at(run, COMPARED[1], span)) for span in (1, SPAN)]
    return verdict(
        f"share kept against noise, single characters and runs of {SPAN}",
        f"{single[-1].value:.3f} and {runs[-1].value:.4f} at noise 1; {_texts(both)} at {COMPARED[1]:g}",
        "fall with noise, runs before single characters",
        decreasing(single, "single: decreasing; first and last intervals apart"),
        Rule(all(b.value <= a.value for a, b in pairwise(runs)), "runs: not increasing"),
        apart(both[1], both[0], f"apart at {COMPARED[1]:g}"),
    )


def _cold(runs: dict[str, xr.Dataset]) -> Verdict:
    cold, random = runs["temperature .5"], runs["random"]
    shares, agreement = (
        [_mean(_at(cold, noise, 1, name) - _at(random, noise, 1, name)) for noise in COMPARED] for name in ("kept", "clone_kept")
    )
    return verdict(
        f"temperature .5 minus order random: share of characters kept; share that two draws have in common; {_WHERE}",
        f"{_texts(shares)}; {_texts(agreement)}",
        "above 0: the most probable characters are drawn more often",
        above(shares[0].low, 0, f"interval of the share kept above 0 at {COMPARED[0]:g}"),
        above([interval.low for interval in agreement], 0, "intervals of what draws have in common above 0"),
    )


def _peak(data: xr.Dataset, run: xr.Dataset) -> Verdict:
    peak = peak_of(chi_parts(run))
    noise, chi = data.noise.values[data.n_eff.values > 0], data.chi.values[data.n_eff.values > 0]
    ends = listed(chi[[0, -1]])
    return verdict(
        "peak of the susceptibility: noise, height at the measured levels, as found and cross-fitted; chi at the ends",
        f"{peak.place}; chi = {peak.height}, {peak.cross_fitted:.2f}; {ends[0]} at {noise[0]:g}, {ends[1]} at {noise[-1]:g}",
        "larger inside: masked characters are far from each other at small noise, and know nothing of the text at large noise",
        Rule(peak.inside and not any(peak.reaches), "chi at the smallest and at the largest noise is below the largest"),
        apart(ends[0], peak.height, "its interval apart from that of chi at the smallest noise"),
        apart(ends[1], peak.height, "and at the largest noise"),
    )


def _correlations(data: xr.Dataset) -> Verdict:
    k = int(np.abs(data.noise.values - COMPARED[1]).argmin())
    near, far = listed(data.correlation.isel(noise=k).sel(distance=[1, FAR]).transpose("distance", "estimate"))
    return verdict(
        f"C(r)/C(0) at noise {COMPARED[1]:g}, r = 1 and {FAR}",
        _texts([near, far]),
        "neighbours change together, characters of other words hardly",
        above(near.low, 0, "interval at 1 above 0"),
        below(far.high, near.low / 3, f"interval at {FAR} below a third of that at 1"),
    )


def _calibration(runs: dict[str, xr.Dataset]) -> Verdict:
    gaps = {label: _gap(runs[label], COMPARED[1], 1) for label in DECODERS}
    others = [gaps[label] for label in ("confidence", "temperature .5")]
    return verdict(
        f"gap E f(x0, x̂) - E f(x̂, x̂') of characters at noise {COMPARED[1]:g}",
        "; ".join(f"{label} {_texts([interval])}" for label, interval in gaps.items()),
        "0 for draws from the posterior of the text; below 0, and below order random, where draws resemble each other too much",
        below([interval.high for interval in others], 0, "confidence and temperature: intervals below 0"),
        below([interval.high for interval in others], gaps["random"].low, "and below the interval of order random"),
    )


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure, ((shares, chi), (far, gaps)) = plt.subplots(2, 2, figsize=(13, 7.9), layout="constrained")
        _draw_decoders(shares, data, "kept", joined=False)
        for reading, dash in (("kept, span = 1", "-"), (f"kept, span = {SPAN}", "--")):
            shares.plot(data.noise, data.curve.sel(reading=reading, estimate="value"), color=MUTED, lw=0.9, ls=dash, zorder=0)
        shares.set(ylabel="share kept", ylim=(-0.03, 1.03), title=f"kept: characters, and runs of {SPAN} (squares, dashed)")
        for axis, chart in zip((chi, far), changes_charts(data), strict=False):
            draw_chart(axis, chart)
        gaps.axhline(0, color=THEORY, lw=1, zorder=1)
        _draw_decoders(gaps, data, "clone_gap")
        gaps.set(title=f"calibration: characters, and runs of {SPAN} (squares, dashed)")
        gaps.set_ylabel(r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$")
        shares.legend(fontsize=9)
    return figure


def _draw_decoders(axes: Any, data: xr.Dataset, name: str, joined: bool = True) -> None:
    for k, label in enumerate(DECODERS):
        for span, dash, marker in ((1, "-", "o"), (SPAN, "--", "s")):
            look = {"ls": dash if joined else "", "ms": 4.5, "lw": 1.2, "color": _COLORS[label], "marker": marker}
            bounds = data[name].sel(decoder=label, span=span)
            bars(axes, data.compared + 0.012 * (k - 1.5), bounds, label=label if span == 1 else None, **look)
    axes.set(xlabel="masked fraction", xlim=(0, 1.03))
