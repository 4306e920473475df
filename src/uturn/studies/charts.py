"""The charts of one or several studies: what the figure draws and the page shows, panel by
panel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from uturn.core.csv_text import number_in
from uturn.measures.estimates import with_interval
from uturn.studies.axes import common_axis
from uturn.studies.headline import PEAK, STAR, Headline, headline_of
from uturn.studies.plotting.curves import estimated, evenly_spaced
from uturn.studies.tables import names_in_panel, panels_of, tested_families, title_of

CRITICAL = "ε* (mean field)"
"""Label of a mark."""
SWAP = "order inverts"
"""Label of a mark: where the first and the last level of a series swap."""
_MOST_NOISES = 6
"""Curves of correlations against distance."""


class Panel(NamedTuple):
    """Curves with their intervals on one axis."""

    name: str
    """Name of the panel in files."""
    title: str
    words: str
    """The quantity in words."""
    unit: str
    """Unit or label of the vertical axis."""
    curves: xr.DataArray
    """(line, x, estimate). Coordinates along the second dim are further axes."""
    labels: Sequence[str] = ()
    """The readings of the lines, "" for chi."""
    places: np.ndarray | None = None
    """Places on the curves, (line, estimate)."""
    marks: Sequence[Headline] = ()
    """Further places. The figure draws an interval only for a place on one of its own lines."""
    ordered: bool = False
    """Whether lines are levels, from first to last."""
    level: tuple[float, str] | None = None
    """Height and name of a horizontal line."""
    hollow: np.ndarray | None = None
    """Where a test detects nothing, bool (line, x)."""
    theory: xr.DataArray | None = None
    """The mean field, (line, x)."""
    joined: bool = False
    """Whether lines go on over levels without a value."""
    shown: bool = False
    """Whether the chart is unfolded in the page."""
    drawn: bool = True
    """Whether the chart is drawn in the figure."""


def numbers_of(study: xr.Dataset) -> list[Headline]:
    """The places of a study: its headline, where ordered levels swap, and where chi is largest.
    Places that do not exist are left out.
    """
    headline = headline_of(study)
    numbers = []
    if headline is not None:
        numbers.append(headline)
    for k in range(study.sizes.get("series", 0)):
        series = study.isel(series=k)
        levels = np.flatnonzero(study.variable.values == series.series_variable.item())
        if len(levels):  # otherwise the study has too many to list them
            numbers.append(_inversion(study, series, levels))
    if headline is None or headline.reading:
        for k in range(study.sizes.get("changes", 0)):
            numbers.append(_peak(study.isel(changes=k)))
    return [number for number in numbers if np.isfinite(number.place[0, 0])]


def _inversion(study: xr.Dataset, series: xr.Dataset, levels: np.ndarray) -> Headline:
    """Where the levels of a series, readings `levels`, swap."""
    names = names_in_panel(study, levels)
    by_level = dict(zip(study.level.values[levels].tolist(), names, strict=True))
    first = series["first"].item()
    last = series["last"].item()
    claim = (
        f"Beyond this noise, the curve of {by_level.get(last, last)} lies below the curve of"
        f" {by_level.get(first, first)}"
    )
    remark = series.series_remark.item()
    name = series.series.item().replace("_", " ")
    reading = str(study.reading.values[levels[0]])
    if remark:
        claim += f"; {remark}"
    return Headline(SWAP, reading, series.inversion.values, claim, series=name)


def _peak(changes: xr.Dataset) -> Headline:
    """Where the chi of changes is largest."""
    claim = (
        f"The number of {changes.unit_of_distance.item()} that change together is largest at this"
        f" noise: χ = {with_interval(changes.peak.values)} at the measured levels"
    )
    return Headline(PEAK, "", changes.peak_at.values, claim)


def charts_of(study: xr.Dataset, first: Sequence[str] = ()) -> Iterator[Panel]:
    """The charts of a study: its groups of readings, beginning with the groups named `first`, its
    changes, and the calibration of each family.
    """
    numbers = numbers_of(study)
    headline = headline_of(study)
    shown = {number.reading for number in numbers}
    if headline is not None:
        shown.add(headline.reading)
    stars = [number for number in numbers if number.label == STAR]
    if "critical_noise" in study.attrs:
        place = np.array([[study.attrs["critical_noise"], np.nan, np.nan]])
        stars.append(Headline(CRITICAL, "", place, ""))
    others = [number for number in numbers if number not in stars]
    for k, (title, chosen) in enumerate(panels_of(study, first)):
        part = study.isel(reading=chosen)
        chart = _chart_of_readings(part, title)._replace(name=f"readings-{k}")
        marks = [*stars, *(number for number in others if number.reading in chart.labels)]
        is_shown = not shown.isdisjoint(chart.labels)
        yield chart._replace(marks=marks, shown=is_shown)
    for k in range(study.sizes.get("changes", 0)):
        for chart in changes_charts(study.isel(changes=k), f"-{k}"):
            marks = list(chart.marks) or (stars if chart.labels else [])
            is_shown = chart.name.startswith("chi") and "" in shown
            yield chart._replace(marks=marks, shown=is_shown)
    for k, (family, tested) in enumerate(tested_families(study).items()):
        title = f"calibration of {family.replace('_', ' ')}"
        names = names_in_panel(tested, np.arange(tested.sizes["reading"]))
        is_one_variable = len(set(tested.variable.values.tolist())) == 1
        is_detected = tested.gap_p.values <= float(study.gap_level)
        yield Panel(
            name=f"gap-{k}",
            title=title,
            words=f"{title}: 0 for draws from the posterior",
            unit="gap E f(x0, x̂) - E f(x̂, x̂')",
            curves=lines_of(tested.gap, names),
            ordered=is_one_variable,
            level=(0.0, ""),
            hollow=~is_detected,
        )


def _chart_of_readings(part: xr.Dataset, title: str) -> Panel:
    """A panel with the readings of a part of a study."""
    names = names_in_panel(part, np.arange(part.sizes["reading"]))
    labels = part.reading.values.tolist()
    words = list(dict.fromkeys(part.words.values.tolist()))
    units = filter(None, dict.fromkeys(part.unit.values.tolist()))
    unit = ", ".join(units)
    if not unit and title == "class":
        unit = "share of U-turns"
    are_numbers = all(isinstance(number_in(str(level)), float) for level in part.level.values)
    are_levels = bool(part.order.values[0]) or are_numbers
    level = None
    if len(labels) == 1 and np.isfinite(part.chance[0]):
        level = (float(part.chance[0]), "independent data")
    theory = None
    if "theory" in part:
        theory = lines_of(part.theory, names)
    is_one_variable = len(set(part.variable.values.tolist())) == 1
    if len(words) > 1:
        words = [""]
    return Panel(
        name="",
        title=title,
        words=words[0],
        unit=unit,
        curves=lines_of(part.curve, names),
        labels=labels,
        places=part.half_life.values[:, 0],
        ordered=are_levels and is_one_variable,
        level=level,
        theory=theory,
    )


def changes_charts(changes: xr.Dataset, suffix: str = "") -> Iterator[Panel]:
    """Susceptibility, correlations at several noise levels, and correlation length of the
    changes of sites.
    """
    unit = str(changes.unit_of_distance.item())
    together = f"{unit} that change together"
    place = changes.peak_at.values
    marks = []
    if np.isfinite(place[0, 0]):
        marks.append(Headline(PEAK, "", place, ""))
    theory = None
    if "chi_theory" in changes:
        theory = changes.chi_theory.expand_dims(line=[""])
    yield Panel(
        name=f"chi{suffix}",
        title=together,
        words=f"susceptibility: number of {together}",
        unit="susceptibility χ",
        curves=changes.chi.expand_dims(line=[""]),
        labels=[""],
        marks=marks,
        level=(1.0, "independent changes"),
        theory=theory,
    )
    measured = np.flatnonzero(estimated(changes.correlation.isel(distance=0).values))
    if len(measured) and changes.sizes["distance"] > 1:
        noises = measured[evenly_spaced(len(measured), _MOST_NOISES)]
        yield Panel(
            name=f"correlation{suffix}",
            title="correlation of changes",
            words="",
            unit="C(r)/C(0)",
            curves=_correlations(changes, noises, unit),
            ordered=True,
            level=(0.0, ""),
        )
    # Correlation lengths beyond the fitted distances are not drawn; the ends of intervals are.
    is_inside = changes.xi <= changes.distance[-1]
    lengths = changes.xi.where(is_inside | (changes.estimate != "value"))
    if np.isfinite(lengths.isel(estimate=0)).any():
        yield Panel(
            name=f"xi{suffix}",
            title="correlation length",
            words="correlation length of the changes",
            unit=f"ξ ({unit})",
            curves=lengths.expand_dims(line=[""]),
            labels=[""],
            marks=marks,
        )


def _correlations(changes: xr.Dataset, noises: np.ndarray, unit: str) -> xr.DataArray:
    """Correlations (line, distance, estimate) at some noise levels, beyond distance 0."""
    curves = changes.correlation.isel(noise=noises, distance=slice(1, None)).rename(noise="line")
    names = [f"noise {noise:.3g}" for noise in curves.line.values]
    others = [name for name, values in curves.coords.items() if "line" in values.dims]
    distance = ("distance", curves.distance.values, {"long_name": f"distance r ({unit})"})
    curves = curves.transpose("line", ...).drop_vars(others)
    named: xr.DataArray = curves.assign_coords(line=names, distance=distance)
    return named


# --- several studies ------------------------------------------------------------------------------


def overlaid(studies: Mapping[str, xr.Dataset], marks: Sequence[Headline] = ()) -> list[Panel]:
    """A chart for each reading, chi and xi, with a line for each study that has it, on an axis that
    all have.

    Charts with a headline come first; `marks`: places found from all studies together. The figure
    draws only the first and the last level of a series, and no xi.
    """
    axis = common_axis(list(studies.values()))
    headlines = list(marks) or [*filter(None, map(headline_of, studies.values()))]
    first = {headline.reading for headline in headlines}
    charts = []
    for label, parts in _by_label(studies, "reading").items():
        variable = next(iter(parts.values())).variable.item()
        is_drawn = label in first or label in _ends_of_series(studies, variable)
        chart = _overlay_of_reading(label, parts, axis)
        own = [mark for mark in marks if mark.reading == label]
        charts.append(chart._replace(marks=own, shown=label in first, drawn=is_drawn))
    for parts in _by_label(studies, "changes").values():
        charts += _overlays_of_changes(parts, axis, is_shown="" in first)
    charts.sort(key=lambda chart: not chart.shown)
    is_sweep = _is_sweep(list(studies))
    return [
        chart._replace(name=f"overlay-{k}", ordered=is_sweep, joined=True)
        for k, chart in enumerate(charts)
    ]


def _is_sweep(names: Sequence[str]) -> bool:
    """Whether studies are named by the numbers of one field, "multiplicity = 4"."""
    fields = {name.partition(" = ")[0] for name in names}
    values = [number_in(name.partition(" = ")[2]) for name in names]
    return len(fields) == 1 and all(isinstance(value, float) for value in values)


def _ends_of_series(studies: Mapping[str, xr.Dataset], variable: str) -> set[str]:
    """The first and the last reading of a variable in all studies."""
    ends: set[str] = set()
    for study in studies.values():
        labels = study.reading.values[study.variable.values == variable].tolist()
        ends.update(labels[:1], labels[-1:])
    return ends


def _overlay_of_reading(label: str, parts: Mapping[str, xr.Dataset], axis: str) -> Panel:
    """A chart with the curve of a reading in all studies that have it."""
    part = next(iter(parts.values()))
    title = title_of(part, label)
    return Panel(
        name="",
        title=title,
        words=title,
        unit=str(part.unit.item()),
        curves=_together(parts, "curve", axis),
        labels=[label],
        places=_places(parts, "half_life", axis),
    )


def _overlays_of_changes(
    parts: Mapping[str, xr.Dataset], axis: str, is_shown: bool
) -> Iterator[Panel]:
    """Charts with the chi and the xi of changes in all studies that have them."""
    charts: dict[str, Panel] = {}
    for part in parts.values():
        charts |= {chart.name: chart for chart in changes_charts(part.isel(changes=0))}
    for name in ("chi", "xi"):
        if name not in charts:
            continue
        is_chi = name == "chi"
        yield charts[name]._replace(
            curves=_together(parts, name, axis),
            places=_places(parts, "peak_at", axis) if is_chi else None,
            marks=(),
            theory=None,
            drawn=is_chi,
            shown=is_chi and is_shown,
        )


def lines_of(values: xr.DataArray, names: Sequence[str]) -> xr.DataArray:
    """Curves (reading, x, ..) as the lines of a chart, which get these names."""
    others = [name for name, labels in values.coords.items() if "reading" in labels.dims]
    return values.drop_vars(others).rename(reading="line").assign_coords(line=list(names))


def _by_label(studies: Mapping[str, xr.Dataset], dim: str) -> dict[str, dict[str, xr.Dataset]]:
    """The parts, of size 1, of all studies that have a label along a dim: {label: {name of the
    study: its part}}.
    """
    parts: dict[str, dict[str, xr.Dataset]] = {}
    for name, study in studies.items():
        for k in range(study.sizes.get(dim, 0)):
            parts.setdefault(str(study[dim].values[k]), {})[name] = study.isel({dim: [k]})
    return parts


def _together(parts: Mapping[str, xr.Dataset], kind: str, axis: str) -> xr.DataArray:
    """One curve of each study (line, axis, estimate); NaN at levels that only other studies have
    measured.
    """
    curves = []
    for part in parts.values():
        curve = part[kind][0]
        if axis != "noise":
            curve = curve.swap_dims(noise=axis)
        others = [name for name in curve.coords if name not in (axis, "estimate")]
        curves.append(curve.drop_vars(others).sortby(axis))
    together = xr.concat(curves, "line", join="outer", combine_attrs="drop")
    together = together.assign_coords(line=list(parts))
    together[axis].attrs = next(iter(parts.values()))[axis].attrs
    return together


def _places(parts: Mapping[str, xr.Dataset], name: str, axis: str) -> np.ndarray:
    return np.stack([part[name].sel(axis=axis).values[0] for part in parts.values()])
