"""Drawing of an analysis of texts (`uturn.workflows.analyse_texts`): curves against noise, and correlations."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.plotting.calibration import draw_gap, draw_zero
from uturn.plotting.curves import (
    brief,
    draw_legend,
    draw_transition,
    drawable,
    end_of,
    estimated,
    evenly_spaced,
    interval,
    markers,
    no_mathematics,
)
from uturn.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, level_colors, style

if TYPE_CHECKING:
    import xarray as xr

_MOST_NAMED = 8  # readings named in a legend


def draw_curves(data: xr.Dataset) -> Any:
    """Panels: kept tokens, susceptibility with t*, C(r), correlation length; regions, layers, calibration and likelihood."""
    data, families = drawable(data, ("name", "tested"), ("description", "remark"))
    panels = list(_panels(data))
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = math.ceil(len(panels) / columns)
    with style(families) as plt:
        figure = plt.figure(figsize=(5.4 * columns, 4.2 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, draw in zip(axes, panels, strict=False):
            draw(axis, data)
        remark = f"; {data.attrs['remark']}" if data.attrs["remark"] else ""
        words = f"{data.attrs['description']}; bands and bars: 95 % intervals{remark}"
        lines = textwrap.wrap(no_mathematics(words), int(75 * columns))
        figure.text(0.005, -0.01, "\n".join(lines), color=MUTED, fontsize=9, va="top")
    return figure


def _panels(data: xr.Dataset) -> list[Callable[[Any, xr.Dataset], None]]:
    """What is drawn of an analysis."""
    groups = set(data.group.values)
    wanted = [
        (_draw_kept, True),
        (draw_susceptibility, "chi" in data),
        (draw_correlations, "correlation" in data and data.sizes["distance"] > 1),
        (_draw_length, "correlation_length" in data),
        (_draw_regions, "regions" in groups),
        (_draw_layers, "layers" in groups),
        (_draw_calibration, "gap" in data),
        (_draw_likelihood, "log_likelihood" in data),
    ]
    return [draw for draw, there in wanted if there]


def _noise_axis(axis: Any, data: xr.Dataset, title: str, ylabel: str) -> None:
    axis.set(xlim=(0, end_of(data.noise.values)), xlabel=str(data.noise.attrs.get("long_name", "noise")), ylabel=ylabel)
    axis.set_title(title, pad=22)


def _beside(axis: Any, words: str) -> None:
    """A number under the title of a panel."""
    axis.text(0, 1.02, words, transform=axis.transAxes, color=CLASS, fontsize=9.5).set_in_layout(False)


def _draw_readings(axis: Any, data: xr.Dataset, chosen: np.ndarray, colors: list[Any], dash: str = "-") -> list[np.ndarray]:
    """Curves of some readings with their half-lives as ticks above."""
    noise = data.noise.values
    named = set(evenly_spaced(len(chosen), _MOST_NAMED))
    for k, index in enumerate(chosen):
        one, color = data.isel(reading=int(index)), colors[k % len(colors)]
        value, low, high = one.similarity.values.T
        edge = k in (0, len(chosen) - 1)
        if edge or len(chosen) <= _MOST_NAMED:
            axis.fill_between(noise, low, high, color=color, alpha=0.2 if edge else 0.07, lw=0)
        look = {"lw": 2.2, **markers(noise)} if edge else {"lw": 1.3}
        axis.plot(noise, value, color=color, ls=dash, label=brief(str(one.name.item()), 30) if k in named else None, **look)
        half = float(one.half_life.sel(estimate="value"))
        if np.isfinite(half):
            axis.plot([half], [0.985], "|", transform=axis.get_xaxis_transform(), color=color, ms=10, mew=2)
    return [data.similarity.isel(reading=int(index), estimate=0).values for index in chosen]


def _of_group(data: xr.Dataset, group: str) -> np.ndarray:
    return np.flatnonzero(data.group.values == group)


def _renamed(data: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    return data.assign_coords(name=("reading", [names.get(str(one), str(one)) for one in data.name.values]))


def _draw_kept(axis: Any, data: xr.Dataset) -> None:
    """Share of runs of tokens that are kept, of segments, and the similarity of sentences."""
    tokens = _of_group(data, "tokens")
    names = {str(name): f"run of {name.split()[0]}" if name != "kept" else "token" for name in map(str, data.name.values[tokens])}
    curves = _draw_readings(axis, _renamed(data, names), tokens, level_colors(len(tokens)))
    segments, sentence = _of_group(data, "segments"), _of_group(data, "sentence")
    if len(segments):
        curves += _draw_readings(axis, _renamed(data, {"kept whole": "segment"}), segments, ["#009e73"], "--")
    if len(sentence):
        curves += _draw_readings(axis, data, sentence, [THEORY], "-.")
    if "transition" in data:
        draw_transition(axis, data.transition.values, CLASS, False)
    axis.plot([], [], "|", color=MUTED, ms=9, mew=2, label="half-lives")
    _noise_axis(axis, data, "kept", "share kept" if not len(sentence) else "share kept, similarity")
    half = data.half_life.isel(reading=int(tokens[0])).values
    if np.isfinite(half[0]):
        _beside(axis, f"half-life of a token {interval(half)}")
    axis.set_ylim(min(-0.03, float(np.nanmin(curves))), 1.03)
    axis.legend(fontsize=8.5, labelspacing=0.3, loc="upper left", bbox_to_anchor=(1, 1))


def draw_susceptibility(axis: Any, data: xr.Dataset) -> None:
    """chi with its peak."""
    noise = data.noise.values
    value, low, high = data.chi.values.T
    axis.fill_between(noise, low, high, color=ACCENT, alpha=0.2, lw=0)
    axis.plot(noise, value, color=ACCENT, **markers(noise))
    axis.axhline(1, color=MUTED, lw=1.2, ls=":", label="independent tokens")
    axis.legend(fontsize=8.5, loc="upper left")
    star = data.transition.values
    draw_transition(axis, star, CLASS, True)
    highest = float(np.nanmax(value, initial=1))  # of a single original there are no intervals
    top = min(float(np.nanmax(high, initial=highest)), 3 * highest)
    axis.set_ylim(max(0.0, float(np.nanmin(low, initial=0.8))), 1.08 * top)
    _noise_axis(axis, data, "tokens that change together", r"susceptibility $\chi$")
    plateau = ", plateau" if "plateau" in data and bool(data.plateau) else ""
    _beside(axis, f"$t^*$ = {interval(star)}{plateau}" if np.isfinite(star[0]) else "no $t^*$, see below")


def draw_correlations(axis: Any, data: xr.Dataset) -> None:
    """C(r)/C(0) against distance at several noise levels."""
    there = np.flatnonzero(estimated(data.correlation.isel(distance=0).values))
    chosen = there[evenly_spaced(len(there), 6)] if len(there) else there
    r = data.distance.values
    for color, k in zip(level_colors(len(chosen)), chosen, strict=True):
        value, low, high = data.correlation.isel(noise=int(k)).values[1:].T
        axis.fill_between(r[1:], low, high, color=color, alpha=0.1, lw=0)
        axis.plot(r[1:], value, color=color, lw=1.5, marker="o", ms=3, label=f"{data.noise.values[k]:.2g}")
    axis.axhline(0, color=MUTED, lw=0.8, ls=":")
    lengths = data.correlation_length.isel(estimate=0).values if "correlation_length" in data else np.array([np.inf])
    reach = min(r[-1], max(12, 8 * float(np.max(lengths[np.isfinite(lengths)], initial=1))))
    axis.set(xscale="log", xlim=(0.93, 1.05 * reach), xlabel="distance $r$ (tokens)", ylabel="$C(r)/C(0)$")
    axis.set_xticks([x for x in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if x <= reach])
    axis.minorticks_off()
    curves = data.correlation.isel(noise=chosen, estimate=0).where(data.distance <= reach).values[:, 1:]
    bottom, top = np.nanmin(curves, initial=0), np.nanmax(curves, initial=0.05)
    axis.set_ylim(bottom - 0.25 * (top - bottom), top + 0.25 * (top - bottom))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_title("correlation of changes", pad=22)
    if len(chosen):
        axis.legend(title="noise", fontsize=8.5, title_fontsize=8.5, loc="upper right")


def _draw_length(axis: Any, data: xr.Dataset) -> None:
    """Correlation length against noise; lengths beyond the distances of the fit are arrows, ends of intervals reach the top."""
    noise, longest = data.noise.values, float(data.distance[-1])
    value, low, high = np.where(estimated(data.correlation_length.values), data.correlation_length.values.T, np.nan)
    finite = value <= longest
    top = 1.35 * np.max(value[finite], initial=1.0)
    axis.fill_between(
        noise, np.clip(low, 0, top), np.where(np.isnan(high), np.nan, np.minimum(high, top)), color=ACCENT, alpha=0.2, lw=0
    )
    axis.plot(noise, np.where(finite, value, np.nan), color=ACCENT, **markers(noise))
    for x in noise[value > longest]:
        axis.annotate("↑", (x, 0.97), xycoords=("data", "axes fraction"), color=ACCENT, ha="center", va="top")
    draw_transition(axis, data.transition.values, CLASS, False)
    _noise_axis(axis, data, "correlation length", r"$\xi$ (tokens)")
    axis.set_ylim(0, top)
    k = _nearest(data)
    if k is not None:
        words = f"above {low[k]:.3g}" if high[k] > 10 * longest else f"= {value[k]:.3g} [{low[k]:.3g}, {high[k]:.3g}]"
        arrows = f"; ↑ above {longest:.3g}" if (value > longest).any() else ""
        _beside(axis, rf"$\xi$ {words} at {noise[k]:.2g}, next to $t^*${arrows}")


def _nearest(data: xr.Dataset) -> int | None:
    """Number of the noise level that is closest to t*."""
    star = float(data.transition[0])
    return None if np.isnan(star) else int(np.abs(data.noise.values - star).argmin())


def _draw_regions(axis: Any, data: xr.Dataset) -> None:
    chosen = _of_group(data, "regions")
    _draw_readings(axis, data, chosen, list(DISTINCT) if len(chosen) <= len(DISTINCT) else level_colors(len(chosen)))
    _noise_axis(axis, data, "regions", "share of tokens kept")
    axis.set_ylim(-0.03, 1.03)
    draw_legend(axis, False, title="region", title_fontsize=8.5)


def _draw_layers(axis: Any, data: xr.Dataset) -> None:
    chosen = _of_group(data, "layers")
    curves = _draw_readings(axis, data, chosen, level_colors(len(chosen)))
    draw_transition(axis, data.transition.values if "transition" in data else np.full(3, np.nan), CLASS, False)
    _noise_axis(axis, data, "hidden states, mean over tokens", "cosine similarity")
    axis.set_ylim(min(-0.03, float(np.nanmin(curves))), 1.03)
    draw_legend(axis, False)


def _draw_calibration(axis: Any, data: xr.Dataset) -> None:
    """Gaps of at most four readings, which stand beside each other."""
    chosen = evenly_spaced(data.sizes["tested"], 4)
    noise, level = data.noise.values, float(data.calibration_level)
    draw_zero(axis)
    for place, (k, color) in enumerate(zip(chosen, level_colors(len(chosen)), strict=True)):
        one = data.isel(tested=k)
        there = np.isfinite(one.gap_p.values)
        x = noise[there] + 0.007 * end_of(noise) * (place - (len(chosen) - 1) / 2)
        draw_gap(axis, x, one.gap.values[there], one.gap_p.values[there] <= level, color, str(one.tested.item()))
    _noise_axis(axis, data, "calibration", r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$")
    _beside(axis, "0 for draws from the posterior; full marks: p by Holm ≤ .001")
    axis.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_likelihood(axis: Any, data: xr.Dataset) -> None:
    noise = data.noise.values
    value, low, high = data.log_likelihood.values.T
    axis.fill_between(noise, low, high, color=ACCENT, alpha=0.2, lw=0)
    axis.plot(noise, value, color=ACCENT, **markers(noise))
    axis.axhline(value[0], color=MUTED, lw=0.8, ls=":")
    _noise_axis(
        axis,
        data,
        f"likelihood under {brief(str(data.log_likelihood.attrs.get('model', 'a second model')))}",
        "nats per character",
    )
    _beside(axis, "dotted: originals")
