"""The figure of one or several studies: panels for groups of readings, for changes and for calibration."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.measures.statistics import with_interval
from uturn.studies.axes import axis_words, common_axis, is_geometric
from uturn.studies.headline import headline_of
from uturn.studies.plotting.curves import (
    along,
    brief,
    draw_curve,
    draw_gap,
    draw_legend,
    draw_noise_axis,
    draw_transition,
    drawable,
    end_of,
    estimated,
    evenly_spaced,
    lying_on,
    markers,
    no_mathematics,
)
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, level_colors, style
from uturn.studies.tables import names_in_panel, nearest, panels_of, remarks, tested_families, title_of

if TYPE_CHECKING:
    import xarray as xr

_MOST_NAMED = 8  # curves named in a legend
_Draw = Callable[[Any], None]


def draw_study(study: xr.Dataset, groups: Sequence[str] = ()) -> Any:
    """All curves of a study with their intervals: one panel for each group, and one for each ordered series.

    None if nothing has a curve. `groups`: names of groups whose panels come first.
    """
    texts = ("level", "model", "probe", "group", "reading", "series", "words", "unit", "unit_of_distance")
    study, families = drawable(study, texts)
    panels = list(_panels(study, groups))
    if not panels:
        return None
    with style(families) as plt:
        figure, axes = _grid_of_panels(plt, len(panels), 4.5)
        for axis, draw in zip(axes, panels, strict=True):
            draw(axis)
        lines = [f"{study.attrs['description']}; bands and bars: 95 % intervals", *remarks(study)]
        wrapped = [part for line in lines for part in textwrap.wrap(no_mathematics(line), int(13.93 * figure.get_figwidth()))]
        figure.text(0.005, -0.01, "\n".join(wrapped), color=MUTED, fontsize=9, va="top")
    return figure


def draw_studies(studies: Mapping[str, xr.Dataset]) -> Any:
    """Several studies in one figure: a panel for each reading, a colour for each study. A series shows its first and last level.

    The axis is the noise if all studies have the same unit of noise, otherwise an axis that all have. None if nothing has a
    curve.
    """
    axis_name = common_axis(list(studies.values()))
    headlines = [headline_of(study) for study in studies.values()]
    labels = dict.fromkeys(headline.reading for headline in headlines if headline is not None and headline.reading)
    labels |= dict.fromkeys(label for study in studies.values() for label in _ends(study))
    changes = dict.fromkeys(str(name) for study in studies.values() if "chi" in study for name in study.changes.values)
    panels = [("curve", label) for label in labels] + [("chi", name) for name in changes]
    if not panels:
        return None
    sweep = len({name.partition(" = ")[0] for name in studies}) == 1 and all(
        _is_number(name.partition(" = ")[2]) for name in studies
    )
    colors = level_colors(len(studies)) if sweep or len(studies) > len(DISTINCT) else list(DISTINCT)
    with style() as plt:
        figure, axes = _grid_of_panels(plt, len(panels), 4.3)
        for axis, (kind, label) in zip(axes, panels, strict=True):
            for color, (name, study) in zip(colors, studies.items(), strict=False):
                dim = "reading" if kind == "curve" else "changes"
                if dim not in study.dims or label not in study[dim].values:
                    continue
                of_label = study.sel({dim: label})
                if kind == "curve":
                    place, title, unit = of_label.half_life, title_of(study, label), no_mathematics(str(of_label.unit.item()))
                else:
                    place, unit = of_label.peak_at, r"susceptibility $\chi$"
                    title = f"{of_label.unit_of_distance.item()} that change together"
                _draw_overlaid(axis, study, of_label[kind].values, place, axis_name, color, brief(name, 46))
                axis.set_ylabel(unit)
            axis.set_title("\n".join(textwrap.wrap(no_mathematics(title), 48)[:2]), fontsize=11, pad=8)
            first = next(iter(studies.values()))
            xlabel = axis_words(first) if axis_name == "noise" else str(first[axis_name].attrs.get("long_name", axis_name))
            axis.set_xlabel(no_mathematics(xlabel))
            if axis_name == "noise":
                draw_noise_axis(axis, np.unique(np.concatenate([_finite(study.noise.values) for study in studies.values()])))
        handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        handles["half-lives, peaks"] = axes[0].plot([], [], "|", color=MUTED, ms=9, mew=2)[0]
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9.5)
    return figure


def _grid_of_panels(plt: Any, count: int, height: float) -> tuple[Any, np.ndarray]:
    """A figure with `count` panels, and their axes; `height` of a panel in inches."""
    columns = min(count, 2 if count in (2, 4) else 3)
    rows = math.ceil(count / columns)
    figure = plt.figure(figsize=(5.6 * columns, height * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _ends(study: xr.Dataset) -> Iterator[str]:
    """Labels of the readings of an overlay: those without levels, and the first and the last level of the others."""
    for name in dict.fromkeys(study.variable.values.tolist()):
        of_variable = np.flatnonzero(study.variable.values == name)
        yield from (str(study.reading.values[k]) for k in dict.fromkeys((of_variable[0], of_variable[-1])))


def _draw_overlaid(axis: Any, study: xr.Dataset, curve: np.ndarray, place: Any, name: str, color: Any, label: str) -> None:
    x = (study.noise if name == "noise" else study[name]).values
    there = np.isfinite(x) & np.isfinite(curve[:, 0])
    points, band, look = along(x[there], curve[there])
    draw_curve(axis, points, band, color, 0.15, label=label, **look)
    at = float(place.sel(axis=name, estimate="value"))
    if np.isfinite(at):
        _tick_above(axis, at, color)


# --- panels of one study -----------------------------------------------------------------------------------------------


def _panels(study: xr.Dataset, groups: Sequence[str]) -> Iterator[_Draw]:
    """Functions that draw the panels of a study on an axis, group by group."""
    for title, chosen in panels_of(study, groups):
        yield partial(_draw_readings, study=study, chosen=chosen, title=title)
    for k in range(study.sizes.get("changes", 0)):
        changes = study.isel(changes=k)
        yield partial(draw_susceptibility, study=changes)
        if np.isfinite(changes.correlation.isel(estimate=0)).any() and study.sizes["distance"] > 1:
            yield partial(draw_correlations, study=changes)
        if np.isfinite(changes.xi.isel(estimate=0)).any():
            yield partial(_draw_length, study=changes)
    for family, tested in tested_families(study).items():
        title_of_family = f"calibration of {family.replace('_', ' ')}"
        yield partial(_draw_gaps, study=tested, title=title_of_family)


def _draw_readings(axis: Any, study: xr.Dataset, chosen: np.ndarray, title: str) -> None:
    """Curves of some readings, half-lives as ticks above them; t* of a class as a line, another headline in its own panel."""
    noise = _finite(study.noise.values)
    bands = study.curve.values[chosen, : len(noise)]  # (reading, noise, estimate)
    curves, half_lives = bands[..., 0], study.half_life.values[chosen, 0]
    variables, levels = study.variable.values[chosen], [str(level) for level in study.level.values[chosen]]
    several = len(set(variables.tolist())) > 1
    ordered = not several and (bool(study.order.values[chosen[0]]) or all(map(_is_number, levels)))
    colors = level_colors(len(chosen)) if ordered or len(chosen) > len(DISTINCT) else list(DISTINCT)
    few = len(chosen) <= _MOST_NAMED
    named = evenly_spaced(len(chosen), _MOST_NAMED if few else 4)
    below = lying_on(curves)
    x, drawn, marks = along(noise, bands)
    for k, name in enumerate(names_in_panel(study, chosen)):
        color, edge = colors[k % len(colors)], k == 0 or (not several and k == len(chosen) - 1)
        value, low, high = drawn[k].T
        if edge or few:
            axis.fill_between(x, low, high, color=color, alpha=0.2 if edge else 0.07, lw=0)
        over = {} if not below[k] else {"dashes": (4, 2) if below[k] == 1 else (1.5, 2)}  # dashes leave the curves below visible
        look = {"lw": 2.2, "zorder": 4, **marks} if edge else {"lw": 1.3 if few else 0.9, "zorder": 3}
        axis.plot(x, value, color=color, label=brief(name, 34) if k in named else None, **look, **over)
        if np.isfinite(half_lives[k, 0]) and (few or k in named):
            _tick_above(axis, half_lives[k, 0], color)
        if "theory" in study and np.isfinite(study.theory.values[chosen[k]]).any() and (few or k in named):
            _draw_theory(axis, noise, study.theory.values[chosen[k]], color)
    chance = float(study.chance.values[chosen[0]])
    if len(chosen) == 1 and np.isfinite(chance):
        axis.axhline(chance, color=colors[0], lw=0.8, ls=":", label="independent data")
    _label_axis(axis, study, title, _ylabel(study, chosen))
    _limit(axis, study, chosen, curves)
    notes, headline = [], headline_of(study)
    if headline is not None and np.isfinite(headline.place[0, 0]):
        of_panel, is_star = headline.reading in study.reading.values[chosen], headline.label == "t*"
        if of_panel or is_star:
            draw_transition(axis, headline.place[0], CLASS, of_panel)
        if of_panel:
            notes.append(f"{'$t^*$' if is_star else brief(headline.label, 40)} = {with_interval(headline.place[0])}")
    for k in range(study.sizes.get("series", 0)):
        inversion = study.inversion.values[k, 0]
        if str(study.series.values[k]).partition(",")[0] == variables[0] and not several and np.isfinite(inversion[0]):
            at = np.interp(inversion[0], noise, curves[0])
            axis.plot([inversion[0]], [at], "o", ls="", mfc="white", mec=THEORY, mew=1.4, ms=7, zorder=5, label="order inverts")
            notes.append(f"order inverts at {with_interval(inversion)}")
    if not notes and len(chosen) == 1 and np.isfinite(half_lives[0, 0]):
        notes = [f"half-life {with_interval(half_lives[0])}"]
    _beside(axis, "; ".join(notes))
    if "theory" in study and np.isfinite(study.theory.values[chosen]).any():
        _name_theory(axis, study)
    if np.isfinite(half_lives[:, 0]).any():
        axis.plot([], [], "|", color=MUTED, ms=9, mew=2, label="half-lives")
    title_of_legend = None if few or several else f"{len(chosen)} levels, first to last"
    bottom, top = axis.get_ylim()
    middle = axis.transData.inverted().transform(axis.transAxes.transform((0.45, 0)))[0]
    early = np.interp(middle, noise, np.nanmin(curves, axis=0, initial=np.inf)) < bottom + 0.55 * (top - bottom)
    rises = curves[:, -1].mean() > curves[:, 0].mean()
    place = "lower right" if rises else "upper right" if early else "lower left"
    draw_legend(axis, place, title=title_of_legend, title_fontsize=8.5)


def _draw_theory(axis: Any, noise: np.ndarray, theory: np.ndarray, color: Any) -> None:
    points, band, _ = along(noise, theory[: len(noise), None])
    axis.plot(points, band[:, 0], color=color, lw=1.3, ls=(0, (4, 2)), zorder=2)


def _name_theory(axis: Any, study: xr.Dataset) -> None:
    """The entry of the legend for the lines of the mean field, and ε*."""
    axis.plot([], [], color=MUTED, lw=1.3, ls=(0, (4, 2)), label="mean field")
    if "critical_noise" in study.attrs:
        axis.axvline(study.attrs["critical_noise"], color=THEORY, lw=1, ls=":", zorder=1, label=r"$\epsilon^*$ of the mean field")


def _tick_above(axis: Any, place: float, color: Any) -> None:
    axis.plot([place], [0.985], "|", transform=axis.get_xaxis_transform(), color=color, ms=10, mew=2)


def _ylabel(study: xr.Dataset, chosen: np.ndarray) -> str:
    long_names = set(study.words.values[chosen].tolist())
    units = {unit for unit in study.unit.values[chosen].tolist() if unit}
    if len(long_names) == 1:
        return "\n".join(textwrap.wrap(no_mathematics(str(long_names.pop())), 40)[:2])
    return ", ".join(sorted(units)) or "share of U-turns"


def _limit(axis: Any, study: xr.Dataset, chosen: np.ndarray, curves: np.ndarray) -> None:
    """Limit the vertical axis to 0 .. 1 for shares and similarities, and to 0 and above for readings that start at 0."""
    low, high = np.nanmin(curves, initial=np.inf), np.nanmax(curves, initial=-np.inf)
    if (study.start.values[chosen] == 1).any() and high <= 1.001:
        axis.set_ylim(min(-0.03, low - 0.03), 1.03)
    elif (study.start.values[chosen] == 0).all():
        axis.set_ylim(0, None)


def _label_axis(axis: Any, study: xr.Dataset, title: str, ylabel: str) -> None:
    noise = _finite(study.noise.values)
    draw_noise_axis(axis, noise)
    axis.set(xlabel=no_mathematics(axis_words(study)), ylabel=ylabel)
    axis.set_title(brief(title, 60), pad=22)


def _beside(axis: Any, text: str) -> None:
    """A number under the title of a panel."""
    axis.text(0, 1.02, text, transform=axis.transAxes, color=CLASS, fontsize=9.5).set_in_layout(False)


def _finite(noise: np.ndarray) -> np.ndarray:
    """The finite noise levels; an infinite level cannot be drawn."""
    return noise[np.isfinite(noise)]


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def draw_susceptibility(axis: Any, study: xr.Dataset) -> None:
    """chi with its peak."""
    noise, unit = _finite(study.noise.values), str(study.unit_of_distance.item())
    band = study.chi.values[: len(noise)]
    value, low, high = band.T
    points, curve, look = along(noise, band)
    draw_curve(axis, points, curve, ACCENT, 0.2, **look)
    axis.axhline(1, color=MUTED, lw=1.2, ls=":", label="independent changes")
    if "chi_theory" in study:
        _draw_theory(axis, noise, study.chi_theory.values, ACCENT)
        _name_theory(axis, study)
    axis.legend(fontsize=8.5, loc="upper left")
    star = study.peak_at.values[0]
    draw_transition(axis, star, CLASS, True)
    highest = float(np.nanmax(value, initial=1))  # a single original has no intervals
    top = min(float(np.nanmax(high, initial=highest)), 3 * highest)
    _label_axis(axis, study, f"{unit} that change together", r"susceptibility $\chi$")
    axis.set_ylim(max(0.0, float(np.nanmin(low, initial=0.8))), 1.08 * top)
    _beside(axis, f"$\\chi$ is largest at {with_interval(star)}" if np.isfinite(star[0]) else "no peak, see below")


def draw_correlations(axis: Any, study: xr.Dataset) -> None:
    """C(r)/C(0) against distance at several noise levels."""
    there = np.flatnonzero(estimated(study.correlation.isel(distance=0).values))
    chosen = there[evenly_spaced(len(there), 6)] if len(there) else there
    r, unit = study.distance.values, str(study.unit_of_distance.item())
    for color, k in zip(level_colors(len(chosen)), chosen, strict=True):
        look = {"lw": 1.5, "marker": "o", "ms": 3, "label": f"{study.noise.values[k]:.3g}"}
        draw_curve(axis, r[1:], study.correlation.isel(noise=int(k)).values[1:], color, 0.1, **look)
    axis.axhline(0, color=MUTED, lw=0.8, ls=":")
    lengths = study.xi.isel(estimate=0).values
    finite = lengths[np.isfinite(lengths)]
    reach = min(r[-1], max(12, 8 * float(np.max(finite, initial=1)))) if len(finite) else r[-1]
    axis.set(xscale="log", xlim=(0.93 * r[1], 1.05 * reach), xlabel=f"distance $r$ ({unit})", ylabel="$C(r)/C(0)$")
    axis.set_xticks([x for x in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if r[1] <= x <= reach])
    axis.minorticks_off()
    curves = study.correlation.isel(noise=chosen, estimate=0).where(study.distance <= reach).values[:, 1:]
    bottom, top = np.nanmin(curves, initial=0), np.nanmax(curves, initial=0.05)
    axis.set_ylim(bottom - 0.25 * (top - bottom), top + 0.25 * (top - bottom))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_title("correlation of changes", pad=22)
    if len(chosen):
        axis.legend(title="noise", fontsize=8.5, title_fontsize=8.5, loc="upper right")


def _draw_length(axis: Any, study: xr.Dataset) -> None:
    """Correlation length against noise; arrows mark lengths beyond the fitted distances; unbounded intervals reach the top."""
    noise, longest, unit = _finite(study.noise.values), float(study.distance[-1]), str(study.unit_of_distance.item())
    lengths = study.xi.values[: len(noise)]
    value, low, high = np.where(estimated(lengths), lengths.T, np.nan)
    finite = value <= longest
    top = 1.35 * np.max(value[finite], initial=1.0)
    ends = np.clip(low, 0, top), np.where(np.isnan(high), np.nan, np.minimum(high, top))
    axis.fill_between(noise, *ends, color=ACCENT, alpha=0.2, lw=0)
    axis.plot(noise, np.where(finite, value, np.nan), color=ACCENT, **markers(noise))
    for x in noise[value > longest]:
        axis.annotate("↑", (x, 0.97), xycoords=("data", "axes fraction"), color=ACCENT, ha="center", va="top")
    draw_transition(axis, study.peak_at.values[0], CLASS, False)
    _label_axis(axis, study, "correlation length", rf"$\xi$ ({unit})")
    axis.set_ylim(0, top)
    k = nearest(study, float(study.peak_at.values[0, 0]))
    if k is not None:
        length = f"above {low[k]:.3g}" if high[k] > 10 * longest else f"= {with_interval((value[k], low[k], high[k]))}"
        arrows = f"; ↑ above {longest:.3g}" if (value > longest).any() else ""
        _beside(axis, rf"$\xi$ {length} at {noise[k]:.3g}, next to the peak{arrows}")


def _draw_gaps(axis: Any, study: xr.Dataset, title: str) -> None:
    """Gaps of at most four readings of a family, side by side."""
    chosen = evenly_spaced(study.sizes["reading"], 4)
    noise, level = study.noise.values, float(study.gap_level)
    names = names_in_panel(study, np.arange(study.sizes["reading"]))
    axis.axhline(0, color=THEORY, lw=1, zorder=1)
    for place, (k, color) in enumerate(zip(chosen, level_colors(len(chosen)), strict=True)):
        p = study.gap_p.isel(reading=k).values
        tested = np.isfinite(p) & np.isfinite(noise)
        aside = place - (len(chosen) - 1) / 2
        x = noise[tested] * 1.05**aside if is_geometric(noise) else noise[tested] + 0.007 * end_of(_finite(noise)) * aside
        draw_gap(axis, x, study.gap.isel(reading=k).values[tested], p[tested] <= level, color, brief(names[k], 34))
    _label_axis(axis, study, title, r"gap $\mathbb{E}f(x_0,\hat{x})-\mathbb{E}f(\hat{x},\hat{x}\,^\prime)$")
    _beside(axis, f"0 for draws from the posterior; full marks: p by Holm ≤ {level:g}")
    axis.legend(fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")
