"""Drawing of the figure `exam`."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.paper.exam_runs import EXACT, ORDERS, OTHERS, in_steps
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, style

_OTHER = "#8a4fb0"
_COLORS = dict(zip(ORDERS, (ACCENT, "#009e73", CLASS), strict=True))
_MARKS = dict(zip(list(OTHERS)[1:], ("v", "^", "s", "D"), strict=True))  # confidence is the end of a curve
_SHOWN = (4, 16)  # numbers of steps in the lower row
LEVEL = 1e-3


def draw(data: xr.Dataset) -> Any:
    """The figure: curves against calls of the network above, decoder by decoder below."""
    with style() as plt:
        figure = plt.figure(figsize=(14.5, 12), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.12])
        small, large, broken = top.subplots(1, 3)
        _draw_divergence(small, data.small_kl, data.small_calls, "small_decoder", data.attrs["small_rounding"])
        _draw_divergence(large, data.kl, data.calls, "decoder", data.attrs["large_rounding"])
        _draw_broken(broken, data)
        small.set_title(f"(a) divergence, {data.attrs['small_leaves']} tokens, enumerated")
        large.set_title(f"(b) divergence, {data.attrs['large_leaves']} tokens, from draws")
        large.text(0.03, 0.2, "random order, confidence:\nupper bounds", transform=large.transAxes, color=MUTED, fontsize=10)
        small.set_ylabel("KL(decoder ‖ posterior), nats")
        _legend(top)
        panels = bottom.subplots(1, 3, sharey=True, width_ratios=[1.15, 1, 0.8])
        _draw_table(panels, data)
    return figure


def _curve(calls: xr.DataArray, dim: str, label: str) -> list[str]:
    labels = [str(name) for name in calls[dim].values if str(name).startswith(f"{label}, ")]
    return [*labels, label]


def _look(denoiser: str, color: Any, line: bool = True) -> dict[str, Any]:
    full = denoiser == "exact"
    return {"color": color, "mfc": color if full else "white", "ls": ("-" if full else "--") if line else "", "lw": 1.5, "ms": 6}


def _draw_divergence(axes: Any, kl: xr.DataArray, calls: xr.DataArray, dim: str, rounding: float) -> None:
    """Divergences (denoiser, decoder) or (.., estimate) against calls; zeros at the lower edge."""
    values = kl.sel(estimate="value") if "estimate" in kl.dims else kl
    seen = values.where(values > 100 * rounding)
    floor = float(seen.min()) / 4
    axes.axhspan(floor / 2, floor * 1.5, color="#eeeeee", lw=0, zorder=0)
    for label, color in _COLORS.items():
        names = _curve(calls, dim, label)
        x = calls.sel({dim: names}).values
        for denoiser in values.denoiser.values:
            y: np.ndarray = values.sel({dim: names, "denoiser": denoiser}).values
            ends = kl.sel({dim: names, "denoiser": denoiser}) if "estimate" in kl.dims else None
            axes.plot(x, np.maximum(y, floor), marker="o", zorder=3, **_look(str(denoiser), color))
            if ends is not None:
                visible = y > floor
                low, high = (np.maximum(ends.sel(estimate=end).values, floor)[visible] for end in ("low", "high"))
                axes.vlines(x[visible], low, high, color=color, lw=1.2, zorder=2)
    for k, (label, mark) in enumerate(_MARKS.items()):
        at = float(calls.sel({dim: label})) * 1.16 ** (k + 1)
        for denoiser in values.denoiser.values:
            one = float(values.sel({dim: label, "denoiser": denoiser}))
            axes.plot([at], [one], marker=mark, zorder=3, **_look(str(denoiser), _OTHER, line=False))
    exact = calls.sel({dim: list(EXACT)}).values
    axes.plot(exact, np.full(len(exact), floor), "*", ms=15, color=THEORY, zorder=4)
    axes.text(calls.values.min(), floor, "0, the five exact orders", va="center", fontsize=10)
    axes.set(xscale="log", yscale="log", ylim=(floor / 2, 2.2 * float(values.max())), xlabel="calls of the network")
    _ticks(axes, calls, dim)


def _ticks(axes: Any, calls: xr.DataArray, dim: str) -> None:
    at = np.unique(np.round(calls.sel({dim: _curve(calls, dim, next(iter(ORDERS)))}).values))
    axes.set_xticks(at, [f"{x:g}" for x in at])
    axes.minorticks_off()


def _draw_broken(axes: Any, data: xr.Dataset) -> None:
    """(c) Share of impossible strings against calls."""
    for label, color in _COLORS.items():
        names = _curve(data.calls, "decoder", label)
        for denoiser in data.denoiser.values:
            one = data.broken.sel(decoder=names, denoiser=denoiser)
            x = data.calls.sel(decoder=names).values
            axes.plot(x, one.sel(estimate="value"), marker="o", zorder=3, **_look(str(denoiser), color))
            axes.vlines(x, one.sel(estimate="low").clip(0), one.sel(estimate="high").clip(max=1), color=color, lw=1.2, zorder=2)
    for k, (label, mark) in enumerate(_MARKS.items()):
        at = float(data.calls.sel(decoder=label)) * 1.16 ** (k + 1)
        for denoiser in data.denoiser.values:
            y = float(data.broken.sel(decoder=label, denoiser=denoiser, estimate="value"))
            axes.plot([at], [y], marker=mark, zorder=3, clip_on=False, **_look(str(denoiser), _OTHER, line=False))
    exact = data.calls.sel(decoder=list(EXACT)).values
    axes.plot(exact, np.zeros(len(exact)), "*", ms=15, color=THEORY, zorder=4, clip_on=False)
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="calls of the network", ylabel="share of strings")
    axes.set_title("(c) impossible strings, sparse grammar")
    _ticks(axes, data.calls, "decoder")


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color, marker="o", lw=1.5, label=label) for label, color in _COLORS.items()]
    marks = [Line2D([], [], ls="", marker=mark, color=_OTHER, label=label) for label, mark in _MARKS.items()]
    kinds = [
        Line2D([], [], color=MUTED, marker="o", lw=1.5, label="exact denoiser"),
        Line2D([], [], color=MUTED, marker="o", mfc="white", ls="--", lw=1.5, label="trained network"),
    ]
    figure.legend(handles=[*lines, *kinds, *marks], loc="outside lower center", ncols=9, columnspacing=1.3, handletextpad=0.4)


def _rows() -> list[tuple[str, Any]]:
    """Decoders of the lower row with their colours."""
    several = [(in_steps(label, number), color) for label, color in _COLORS.items() for number in _SHOWN]
    others = [(label, CLASS if label in ORDERS else _OTHER) for label in OTHERS]
    return [*((label, THEORY) for label in EXACT), *others, *several]


def _draw_table(panels: Any, data: xr.Dataset) -> None:
    """(d, e, f) Divergence, gap and share of impossible strings of every decoder."""
    kl, gap, broken = panels
    rows = _rows()
    floor = (
        float(data.kl.sel(estimate="value").where(data.kl.sel(estimate="value") > 100 * data.attrs["large_rounding"]).min()) / 4
    )
    for row, (label, color) in enumerate(rows):
        for denoiser in data.denoiser.values:
            one = data.sel(decoder=label, denoiser=denoiser)
            aside = row + (-0.16 if denoiser == "exact" else 0.16)
            seen = float(one.p.min()) * one.sizes["test"] <= LEVEL
            for axes, values, low in ((kl, one.kl.values, floor), (gap, one.gap.values, -np.inf), (broken, one.broken.values, 0)):
                value, first, last = np.maximum(values, low)
                mark = ("s" if seen else "o") if axes is gap else "o"
                if value > low:
                    axes.plot([first, last], [aside, aside], color=color, lw=1.6, zorder=2)
                axes.plot([value], [aside], marker=mark, zorder=3, clip_on=False, **_look(str(denoiser), color, line=False))
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
    kl.set_yticks(range(len(rows)), [label for label, _ in rows])
    for tick, (_, color) in zip(kl.get_yticklabels(), rows, strict=True):
        tick.set_color(color)
    kl.set_ylim(len(rows) - 0.5, -0.6)
