"""Which decoders of masked strings draw from the posterior, and their cost in calls of the
network. Beyond the paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from uturn.measures.intervals import mean_interval
from uturn.paper.sampler_laws import calibrated
from uturn.paper.verdicts import ESTIMATE, Verdict
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    MUTED,
    THEORY,
    Look,
    name_rows,
    row_interval,
    style,
    ticks,
)
from uturn.tools.audit.exam_runs import DENOISERS, EXACT, ORDERS, OTHERS, in_steps
from uturn.tools.audit.exam_runs import measure as measure  # of the figure
from uturn.tools.audit.exam_verdicts import LEVEL, PLAIN, curve, detected, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

TITLE = "Which decoders of masked strings draw from the posterior?"
CLAIM = (
    "Filling in tokens in an order chosen beforehand is exact; taking the surest guess first, or"
    " several at once, is not."
)
CAPTION = (
    "Decoders that fill masked strings, with the exact denoiser (full marks) and with a trained"
    " network (hollow marks, dashed). (a) Divergence KL(decoder ‖ posterior) by enumeration,"
    " strings of 8 tokens, against the calls of the network for a reconstruction. Orders that are"
    " chosen before the token is drawn are exact with one token a step: 0 up to rounding. Marks of"
    " temperature, top-k and top-p, all from left to right, are shifted sideways. (b) The same for"
    " long strings, from draws and belief propagation; upper bounds for random orders and for the"
    " confidence of drawn tokens; 95 % intervals over strings. (c) Share of strings that a sparse"
    " grammar cannot produce, whose divergence is then infinite. (d, e, f) Decoder by decoder: the"
    " divergence of (b), in which the exact denoiser shows the error of the decoder, and the"
    " network that of both; the gap E f(x0, x̂) - E f(x̂, x̂') of parsed tree levels of both"
    " grammars where its p-value is smallest (square: p by Holm <= .001, circle: not detected); the"
    " share of (c)."
)
RELABELLINGS = 100_000
_OTHER = "#8a4fb0"
_COLORS = dict(zip(ORDERS, (ACCENT, "#009e73", CLASS), strict=True))
# Confidence is the end of a curve.
_MARKS = dict(zip(list(OTHERS)[1:], ("v", "^", "s", "D"), strict=True))
_SHOWN = (4, 16)  # numbers of steps in the lower row


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    small, dense, sparse = (
        {kind: runs[f"{name}-{kind}"] for kind in DENOISERS}
        for name in ("enumerated", "dense", "sparse")
    )
    impossible = {kind: np.isinf(sparse[kind].log_ratio).astype(float) for kind in DENOISERS}
    more = {
        kind: shares - shares.sel(decoder=PLAIN, drop=True) for kind, shares in impossible.items()
    }
    gaps = [_gaps(dense[kind], sparse[kind]) for kind in DENOISERS]
    ratios = {kind: dense[kind].log_ratio for kind in DENOISERS}
    dims = ("denoiser", "decoder")
    data = xr.Dataset(
        {
            **{
                name: (
                    (*dims, "estimate"),
                    np.array([_over_items(values[kind]) for kind in DENOISERS]),
                )
                for name, values in {
                    "kl": ratios,
                    "broken": impossible,
                    "more_broken": more,
                }.items()
            },
            "gap": ((*dims, "estimate"), np.array([gap for gap, _ in gaps])),
            "p": ((*dims, "test"), np.array([p for _, p in gaps])),
            "calls": ("decoder", dense["exact"].calls.values),
        },
        {
            "denoiser": list(DENOISERS),
            "decoder": dense["exact"].decoder.values,
            "estimate": ESTIMATE,
        },
    )
    means = [
        small[kind][["divergence", "calls"]].mean("observation").rename(decoder="small_decoder")
        for kind in DENOISERS
    ]
    data = data.assign(
        small_kl=xr.concat([of.divergence for of in means], data.denoiser),
        small_calls=means[0].calls,
    )
    for name, run in (("small", small["exact"]), ("large", dense["exact"])):
        grammar = json.loads(run.attrs["plan"])["grammar"]
        data.attrs[f"{name}_leaves"] = num_leaves = grammar["branching"] ** grammar["depth"]
        data.attrs[f"{name}_rounding"] = rounding_divergence(grammar, num_leaves)
    return data, verdicts(data, small)


def rounding_divergence(grammar: Mapping[str, float], tokens: int) -> float:
    """Upper bound of KL(decoder ‖ posterior) in nats for an exact decoder of `tokens` tokens with
    float32 beliefs.

    All terms of belief propagation are positive: sums do not amplify relative errors, and products
    add them. A belief depends on every node once upward and once downward. A message is a sum of at
    most v m products of s factors, divided by a sum of v terms, so a belief has at most K = 2 nodes
    (v m + s + v) roundings of 2^-24 each. With the sum of the weights by which the decoder divides,
    a token is drawn with a relative error of at most d = 2 K 2^-24, and by the chain rule

        KL = sum over tokens of E KL(q_i ‖ p_i) <= tokens d (e^d - 1),    since sum (q - p) log(q / p) <= (e^d - 1) d.
    """
    v, m, s, L = (grammar[name] for name in ("vocab_size", "multiplicity", "branching", "depth"))
    nodes = (s ** (L + 1) - 1) // (s - 1)
    d = 2 * 2 * nodes * (v * m + s + v) * 2.0**-24
    return float(tokens * d * np.expm1(d))


def _over_items(values: xr.DataArray) -> np.ndarray:
    """Mean over items and clones with a 95 % interval of Student's t over items, (decoder, 3);
    infinite if a value is.
    """
    items = values.mean("clone").transpose("item", "decoder").values
    return np.where(np.isinf(items.mean(axis=0))[:, None], np.inf, mean_interval(items))


def _gaps(*grammars: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Gap (decoder, 3) at the smallest p-value, and p-values (decoder, tests) of all tree levels
    of all grammars.
    """
    tests = [calibrated(run, LEVEL, RELABELLINGS) for run in grammars]
    numbers = ("p_value", "gap", "low", "high", "visible")
    p, *gap, visible = (
        np.concatenate([getattr(test, name) for test in tests], axis=1) for name in numbers
    )
    worst = np.lexsort((-np.abs(gap[0]) / visible, p), axis=1)[:, :1]
    return np.concatenate([np.take_along_axis(values, worst, axis=1) for values in gap], axis=1), p


# -- drawing ---------------------------------------------------------------------------------------


def draw(data: xr.Dataset) -> Figure:
    """The figure: curves against calls of the network above, decoder by decoder below."""
    with style() as plt:
        figure: Figure = plt.figure(figsize=(14.5, 12.2), layout="constrained")
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[1, 1.12])).tolist()
        small, large, broken = top.subplots(1, 3)
        _draw_divergence(
            small, data.small_kl, data.small_calls, "small_decoder", data.attrs["small_rounding"]
        )
        _draw_divergence(large, data.kl, data.calls, "decoder", data.attrs["large_rounding"])
        _draw_decoders(broken, data.broken.clip(max=1), data.calls, "decoder", floor=0)
        broken.set(
            ylim=(-0.03, 1.03),
            ylabel="share of strings",
            title="(c) impossible strings, sparse grammar",
        )
        small.set_title(f"(a) divergence, {data.attrs['small_leaves']} tokens, enumerated")
        large.set_title(f"(b) divergence, {data.attrs['large_leaves']} tokens, from draws")
        large.text(
            0.03,
            0.2,
            "random order, confidence:\nupper bounds",
            transform=large.transAxes,
            color=MUTED,
            fontsize=10,
        )
        small.set_ylabel("KL(decoder ‖ posterior), nats")
        _legend(top)
        panels = bottom.subplots(1, 3, sharey=True, width_ratios=[1.15, 1, 0.8])
        _draw_table(panels, data)
    return figure


def _face(denoiser: str, color: str) -> str:
    return color if denoiser == "exact" else "white"


def _draw_divergence(
    axes: Axes, kl: xr.DataArray, calls: xr.DataArray, dim: str, rounding: float
) -> None:
    """(a, b) Divergences (denoiser, decoder) or (.., estimate) against calls; zeros at the lower
    edge.
    """
    values = kl.sel(estimate="value") if "estimate" in kl.dims else kl
    floor = _floor(values, rounding)
    axes.axhspan(floor / 2, floor * 1.5, color="#eeeeee", lw=0, zorder=0)
    axes.text(calls.values.min(), floor, "0, the five exact orders", va="center", fontsize=10)
    axes.set(yscale="log", ylim=(floor / 2, 2.2 * float(values.max())))
    _draw_decoders(axes, kl, calls, dim, floor)


def _floor(values: xr.DataArray, rounding: float) -> float:
    """The height at which zeros are drawn on a logarithmic axis."""
    return float(values.where(values > 100 * rounding).min()) / 4


def _draw_decoders(
    axes: Axes, readings: xr.DataArray, calls: xr.DataArray, dim: str, floor: float
) -> None:
    """Readings (denoiser, decoder) or (.., estimate) against calls, clipped at `floor`; stars
    there: the exact orders.
    """
    values = readings.sel(estimate="value") if "estimate" in readings.dims else readings
    for denoiser in values.denoiser.values:
        for label, color in _COLORS.items():
            at = {dim: curve(calls, label, dim)}
            x = calls.sel(at).values
            y = values.sel({**at, "denoiser": denoiser}).values
            look: Look = {
                "mfc": _face(denoiser, color),
                "ls": "-" if denoiser == "exact" else "--",
                "lw": 1.5,
                "ms": 6,
            }
            axes.plot(x, np.maximum(y, floor), marker="o", zorder=3, color=color, **look)
            if values is not readings:
                ends = (
                    readings.sel({**at, "denoiser": denoiser})
                    .isel({dim: np.flatnonzero(y > floor)})
                    .clip(floor)
                )
                axes.vlines(
                    x[y > floor],
                    ends.sel(estimate="low"),
                    ends.sel(estimate="high"),
                    color=color,
                    lw=1.2,
                    zorder=2,
                )
        for k, (label, mark) in enumerate(_MARKS.items()):
            aside = 1.16 ** (k + 1)
            height = float(values.sel({dim: label, "denoiser": denoiser}))
            marks: Look = {
                "color": _OTHER,
                "mfc": _face(denoiser, _OTHER),
                "ms": 6,
                "zorder": 3,
                "clip_on": False,
            }
            axes.plot([float(calls.sel({dim: label})) * aside], [height], mark, **marks)
    exact = calls.sel({dim: list(EXACT)}).values
    axes.plot(exact, np.full(len(exact), floor), "*", ms=15, color=THEORY, zorder=4, clip_on=False)
    axes.set(xscale="log", xlabel="calls of the network")
    ticks(axes, np.unique(np.round(calls.sel({dim: curve(calls, next(iter(ORDERS)), dim)}).values)))


def _legend(figure: SubFigure) -> None:
    lines = [
        Line2D([], [], color=color, marker="o", lw=1.5, label=label)
        for label, color in _COLORS.items()
    ]
    lines.append(Line2D([], [], color=MUTED, marker="o", lw=1.5, label="exact denoiser"))
    lines.append(
        Line2D(
            [], [], color=MUTED, marker="o", mfc="white", ls="--", lw=1.5, label="trained network"
        )
    )
    marks = [
        Line2D([], [], ls="", marker=mark, color=_OTHER, label=label)
        for label, mark in _MARKS.items()
    ]
    figure.legend(
        handles=[*lines, *marks],
        loc="outside lower center",
        ncols=9,
        columnspacing=1.3,
        handletextpad=0.4,
    )


def _draw_table(panels: Sequence[Axes], data: xr.Dataset) -> None:
    """(d, e, f) Divergence, gap and share of impossible strings of every decoder."""
    kl, gap, broken = panels
    rows = [(label, THEORY) for label in EXACT] + [
        (label, CLASS if label in ORDERS else _OTHER) for label in OTHERS
    ]
    rows += [
        (in_steps(label, number), color) for label, color in _COLORS.items() for number in _SHOWN
    ]
    floor = _floor(data.kl.sel(estimate="value"), data.attrs["large_rounding"])
    for row, (label, color) in enumerate(rows):
        for denoiser in data.denoiser.values:
            readings = data.sel(decoder=label, denoiser=denoiser)
            aside = row + (-0.16 if denoiser == "exact" else 0.16)
            seen = detected(readings.p) <= LEVEL
            for axes, name, low in (
                (kl, "kl", floor),
                (gap, "gap", -np.inf),
                (broken, "broken", 0),
            ):
                value, first, last = np.maximum(readings[name].values, low)
                ends = (first, last) if value > low else (value, value)
                mark = "s" if axes is gap and seen else "o"
                row_interval(
                    axes,
                    aside,
                    (value, *ends),
                    color,
                    mark,
                    1.6,
                    mfc=_face(denoiser, color),
                    ms=6,
                    clip_on=False,
                )
    for axes in panels:
        for edge in (len(EXACT), len(EXACT) + len(OTHERS)):
            axes.axhline(edge - 0.5, color=MUTED, lw=0.8, ls=":")
    gap.axvline(0, color=THEORY, lw=1, zorder=1)
    kl.axvspan(floor / 1.3, floor * 1.3, color="#eeeeee", lw=0, zorder=0)
    kl.text(floor, len(rows) - 0.55, "0", ha="center", va="bottom", fontsize=10)
    kl.set(xscale="log", xlim=(floor / 1.3, None), xlabel="KL(decoder ‖ posterior), nats")
    kl.set_title("(d) divergence, as in (b)")
    gap.set(xlabel=r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$")
    gap.set_title("(e) calibration; squares: detected")
    broken.set(xlabel="share of strings", xlim=(-0.02, 1.02))
    broken.set_title("(f) impossible strings")
    name_rows(kl, *zip(*rows, strict=True))
