"""The charts of one or several studies: what the figure draws and the page shows, panel by
panel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.measures.estimates import with_interval
from uturn.studies.axes import common_axis
from uturn.studies.headline import PEAK, Headline, headline_of
from uturn.studies.plotting.curves import estimated, evenly_spaced
from uturn.studies.tables import names_in_panel, number_in, panels_of, tested_families, title_of

CRITICAL = "ε* (mean field)"  # label of a mark
_MOST_NOISES = 6  # curves of correlations against distance


class Chart(NamedTuple):
    """Curves (line, x, estimate) with their intervals on one axis; coordinates along the second dim
    are further axes.

    `name`: for files. `title`: of the panel. `words`: the quantity. `unit`: of the vertical axis.
    `labels`: the readings of the lines, "" for chi. `places` (line, estimate): on the curves.
    `marks`: further places; the figure draws the intervals of those of its own readings. `ordered`:
    whether lines are levels, from first to last. `level`: height and name of a horizontal line.
    `hollow` (line, x): where a test detects nothing. `theory` (line, x): the mean field. `joined`:
    whether lines go on over levels without a value. `shown`, `drawn`: whether the chart is unfolded
    in the page, and drawn in the figure.
    """

    name: str
    title: str
    words: str
    unit: str
    curves: xr.DataArray
    labels: Sequence[str] = ()
    places: np.ndarray | None = None
    marks: Sequence[Headline] = ()
    ordered: bool = False
    level: tuple[float, str] | None = None
    hollow: np.ndarray | None = None
    theory: xr.DataArray | None = None
    joined: bool = False
    shown: bool = False
    drawn: bool = True


def numbers_of(study: xr.Dataset) -> list[Headline]:
    """The headline of a study, where ordered levels swap, and where chi is largest: those that
    have a place.
    """
    first = headline_of(study)
    found = [] if first is None else [first]
    for k in range(study.sizes.get("series", 0)):
        series = study.isel(series=k)
        name = str(series.series.item())
        levels = np.flatnonzero(study.variable.values == series.series_variable.item())
        if len(levels):  # otherwise the study has too many to list them
            names = dict(
                zip(study.level.values[levels].tolist(), names_in_panel(study, levels), strict=True)
            )
            low, high = (
                names.get(level, level) for level in (series["last"].item(), series["first"].item())
            )
            claim = f"Beyond this noise, the curve of {low} lies below that of {high}"
            claim = "; ".join(filter(None, [claim, series.series_remark.item()]))
            label, reading = (
                f"{name.replace('_', ' ')}: order inverts",
                str(study.reading.values[levels[0]]),
            )
            found.append(Headline(label, reading, series.inversion.values, claim))
    for k in range(study.sizes.get("changes", 0)) if first is None or first.reading else ():
        changes = study.isel(changes=k)
        unit, peak = changes.unit_of_distance.item(), with_interval(changes.peak.values)
        claim = (
            f"The number of {unit} that change together is largest at this noise: χ = {peak} at the"
            " measured levels"
        )
        found.append(Headline(PEAK, "", changes.peak_at.values, claim))
    return [number for number in found if np.isfinite(number.place[0, 0])]


def charts_of(study: xr.Dataset, first: Sequence[str] = ()) -> Iterator[Chart]:
    """The charts of a study: groups of readings (`first` those of these names), changes, and
    calibration by families.
    """
    headline, numbers = headline_of(study), numbers_of(study)
    seen = {number.reading for number in (*numbers, *filter(None, [headline]))}
    stars = [number for number in numbers if number.label == "t*"]
    if "critical_noise" in study.attrs:
        stars.append(
            Headline(CRITICAL, "", np.array([[study.attrs["critical_noise"], np.nan, np.nan]]), "")
        )
    for k, (title, chosen) in enumerate(panels_of(study, first)):
        part, names = study.isel(reading=chosen), names_in_panel(study, chosen)
        labels, several = part.reading.values.tolist(), len(set(part.variable.values.tolist())) > 1
        words, units = (list(dict.fromkeys(part[key].values.tolist())) for key in ("words", "unit"))
        own = [number for number in numbers if number.reading in labels and number not in stars]
        levels = [number_in(str(level)) for level in part.level.values]
        yield Chart(
            f"readings-{k}",
            title,
            words[0] if len(words) == 1 else "",
            ", ".join(filter(None, units)) or ("share of U-turns" if title == "class" else ""),
            lines_of(part.curve, names),
            labels,
            part.half_life.values[:, 0],
            [*stars, *(number._replace(label=number.label.rpartition(": ")[2]) for number in own)],
            not several
            and (bool(part.order.values[0]) or all(isinstance(level, float) for level in levels)),
            (
                (float(part.chance[0]), "independent data")
                if len(labels) == 1 and np.isfinite(part.chance[0])
                else None
            ),
            theory=lines_of(part.theory, names) if "theory" in part else None,
            shown=not seen.isdisjoint(labels),
        )
    for k in range(study.sizes.get("changes", 0)):
        for chart in changes_charts(study.isel(changes=k), f"-{k}"):
            marks = chart.marks or (stars if chart.labels else [])
            yield chart._replace(marks=marks, shown=chart.name.startswith("chi") and "" in seen)
    for k, (family, tested) in enumerate(tested_families(study).items()):
        gaps = lines_of(tested.gap, names_in_panel(tested, np.arange(tested.sizes["reading"])))
        title, hollow = (
            f"calibration of {family.replace('_', ' ')}",
            ~(tested.gap_p.values <= float(study.gap_level)),
        )
        about, unit = f"{title}: 0 for draws from the posterior", "gap E f(x0, x̂) - E f(x̂, x̂')"
        ordered = len(set(tested.variable.values.tolist())) == 1
        yield Chart(
            f"gap-{k}", title, about, unit, gaps, ordered=ordered, level=(0.0, ""), hollow=hollow
        )


def changes_charts(changes: xr.Dataset, suffix: str = "") -> Iterator[Chart]:
    """Susceptibility, correlations at several noise levels, and correlation length of the
    changes of sites.
    """
    unit, place = str(changes.unit_of_distance.item()), changes.peak_at.values
    together = f"{unit} that change together"
    look: Any = {
        "labels": [""],
        "marks": [Headline(PEAK, "", place, "")] if np.isfinite(place[0, 0]) else [],
    }
    # A correlation length beyond the fitted distances is no number; the ends of its interval are.
    xi = changes.xi.where((changes.xi <= changes.distance[-1]) | (changes.estimate != "value"))
    chi, xi = (values.expand_dims(line=[""]) for values in (changes.chi, xi))
    theory = changes.chi_theory.expand_dims(line=[""]) if "chi_theory" in changes else None
    words, alone = f"susceptibility: number of {together}", (1.0, "independent changes")
    yield Chart(
        f"chi{suffix}", together, words, "susceptibility χ", chi, level=alone, theory=theory, **look
    )
    there = np.flatnonzero(estimated(changes.correlation.isel(distance=0).values))
    if len(there) and changes.sizes["distance"] > 1:
        noises = there[evenly_spaced(len(there), _MOST_NOISES)]
        some = changes.correlation.isel(noise=noises, distance=slice(1, None)).rename(noise="line")
        names = [f"noise {noise:.3g}" for noise in some.line.values]
        far = some.transpose("line", ...).drop_vars(
            [name for name, of in some.coords.items() if "line" in of.dims]
        )
        far = far.assign_coords(
            line=names,
            distance=("distance", some.distance.values, {"long_name": f"distance r ({unit})"}),
        )
        yield Chart(
            f"correlation{suffix}",
            "correlation of changes",
            "",
            "C(r)/C(0)",
            far,
            ordered=True,
            level=(0.0, ""),
        )
    if np.isfinite(xi.isel(estimate=0)).any():
        yield Chart(
            f"xi{suffix}",
            "correlation length",
            "correlation length of the changes",
            f"ξ ({unit})",
            xi,
            **look,
        )


def overlaid(studies: Mapping[str, xr.Dataset], marks: Sequence[Headline] = ()) -> list[Chart]:
    """A chart for each reading, chi and xi, with a line for each study that has it, on an axis that
    all have.

    Charts with a headline come first; `marks`: places found from all studies together. The figure
    draws only the first and the last level of a series, and no xi.
    """
    axis = common_axis(list(studies.values()))
    headlines = [*marks] or [
        found for study in studies.values() if (found := headline_of(study)) is not None
    ]
    first = {headline.reading for headline in headlines}
    fields, values = zip(*(name.partition(" = ")[::2] for name in studies), strict=True)
    sweep = len(set(fields)) == 1 and all(isinstance(number_in(value), float) for value in values)
    charts = []
    for label, parts in _by_label(studies, "reading").items():
        part = next(iter(parts.values()))
        of_variable = [
            of.reading.values[of.variable.values == part.variable.item()] for of in studies.values()
        ]
        ends = {str(of[k]) for of in of_variable if len(of) for k in (0, -1)}
        curves, places, title = (
            _together(parts, "curve", axis),
            _places(parts, "half_life", axis),
            title_of(part, label),
        )
        shown: Any = {"shown": label in first, "drawn": label in first | ends}
        shown["marks"] = [mark for mark in marks if mark.reading == label]
        charts.append(
            Chart("", title, title, str(part.unit.item()), curves, [label], places, **shown)
        )
    for parts in _by_label(studies, "changes").values():
        of_parts = {
            chart.name: chart
            for part in parts.values()
            for chart in changes_charts(part.isel(changes=0))
        }
        for chart in (of_parts[name] for name in ("chi", "xi") if name in of_parts):
            is_chi, curves = chart.name == "chi", _together(parts, chart.name, axis)
            look: Any = {
                "places": _places(parts, "peak_at", axis) if is_chi else None,
                "marks": (),
                "theory": None,
            }
            charts.append(
                chart._replace(curves=curves, drawn=is_chi, shown=is_chi and "" in first, **look)
            )
    charts.sort(key=lambda chart: not chart.shown)
    return [
        chart._replace(name=f"overlay-{k}", ordered=sweep, joined=True)
        for k, chart in enumerate(charts)
    ]


def lines_of(values: xr.DataArray, names: Sequence[str]) -> xr.DataArray:
    bare = values.drop_vars([name for name, of in values.coords.items() if "reading" in of.dims])
    return bare.rename(reading="line").assign_coords(line=list(names))


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
        curve = part[kind][0] if axis == "noise" else part[kind][0].swap_dims(noise=axis)
        curves.append(
            curve.drop_vars(
                [name for name in curve.coords if name not in (axis, "estimate")]
            ).sortby(axis)
        )
    together = xr.concat(curves, "line", join="outer", combine_attrs="drop").assign_coords(
        line=list(parts)
    )
    together[axis].attrs = next(iter(parts.values()))[axis].attrs
    return together


def _places(parts: Mapping[str, xr.Dataset], name: str, axis: str) -> np.ndarray:
    return np.stack([part[name].sel(axis=axis).values[0] for part in parts.values()])
