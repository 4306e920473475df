"""Labelled data as charts of plain data: lines with intervals against noise, on all noise axes
of the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from uturn.measures.estimates import ESTIMATE
from uturn.pages.views import Axis, Chart, Line, Mark, numbers
from uturn.studies.axes import is_geometric
from uturn.studies.plotting.curves import evenly_spaced, lying_on

AXES = {
    "t_over_T": "t/T",
    "step": "steps",
    "log_snr": "log-SNR (nats)",
    "effective_epsilon": "effective ε",
    "bits_per_leaf": "information per site (bits)",
    "bits": "information about the original (bits)",
}
"""Coordinates that a chart can use as its axis instead of the noise itself: {name: label}."""
_MOST_LINES = 24
_MOST_POINTS = 400
_NO_LINES = {
    "item",
    "row",
    "column",
    "channel",
    "position",
    "trajectory",
    "clone",
    "shown_noise",
    "shown_item",
    "node",
}
"""Dims of single data: a variable with one of them has no curves."""


def charts_of(data: xr.Dataset) -> list[Chart]:
    """A chart for each curve in the data of a figure; charts against noise come first."""
    charts = []
    for name, variable in data.data_vars.items():
        if variable.dtype.kind not in "fiu":
            continue
        values = over_grammars(variable)
        x = _axis_of(values)
        if x is None or not _NO_LINES.isdisjoint(map(str, values.dims)):
            continue
        group = str(name).replace("_", " ")
        title = str(variable.attrs.get("long_name", "")) or group
        unit = str(variable.attrs.get("units", ""))
        charts.append(chart(str(name), title, values, x, unit=unit, group=group))
    return sorted(with_curves(charts), key=lambda chart: not chart.has_slider)


def over_grammars(values: xr.DataArray) -> xr.DataArray:
    """The mean over grammars, if there are several."""
    if "grammar" in values.dims:
        return values.mean("grammar")
    return values


def with_curves(charts: Iterable[Chart]) -> list[Chart]:
    """The charts that have a curve. Groups are added to equal titles."""
    drawn = [chart for chart in charts if chart.lines]
    titles = Counter(chart.title for chart in drawn)
    named = []
    for chart in drawn:
        if titles[chart.title] > 1 and chart.group:
            chart = replace(chart, title=f"{chart.title} ({chart.group})")
        named.append(chart)
    return named


def chart(
    name: str,
    title: str,
    values: xr.DataArray,
    x: str,
    marks: Iterable[Mark] = (),
    theory: xr.DataArray | None = None,
    *,
    unit: str = "",
    group: str = "",
    is_joined: bool = False,
    is_shown: bool = False,
    has_slider: bool | None = None,
) -> Chart:
    """A chart of at most 24 curves, evenly spaced, for the page.

    `values` (x, ..), with the dim `estimate` if there are intervals; `x`: dim of the axis; `marks`:
    places on it, made by `mark`; `theory` (x, ..): curves of the mean field. The other options are
    fields of `Chart`; `has_slider` is by default whether the axis is noise.
    """
    drawn = values.isel({x: evenly_spaced(values.sizes[x], _MOST_POINTS)})
    lines = _lines(drawn, x)
    covered = lying_on([line.value for line in lines])
    lines = [replace(line, covered=count) for line, count in zip(lines, covered, strict=True)]
    if theory is not None:
        predicted = theory.isel({x: evenly_spaced(theory.sizes[x], _MOST_POINTS)})
        lines += _predictions(_lines(predicted, x), lines)
    if has_slider is None:
        has_slider = _is_noise(x)
    curves = [size for dim, size in values.sizes.items() if dim not in (x, _bound(values))]
    return Chart(
        name=name,
        title=title[:1].upper() + title[1:],
        axes=_axes(drawn, x),
        lines=lines,
        marks=list(marks),
        unit=unit,
        group=group,
        left_out=max(math.prod(curves) - _MOST_LINES, 0),
        is_joined=is_joined,
        is_shown=is_shown,
        has_slider=has_slider,
    )


def _predictions(predicted: Sequence[Line], lines: Sequence[Line]) -> list[Line]:
    """Lines of the mean field, for the lines with the same names."""
    index = {line.name: k for k, line in enumerate(lines)}
    predictions = []
    for line in predicted:
        if line.name in index:
            name = f"{line.name}, mean field" if line.name else "mean field"
            predictions.append(replace(line, name=name, theory_of=index[line.name]))
    return predictions


def mark(label: str, places: Mapping[str, Sequence[float] | np.ndarray]) -> Mark:
    """A mark at (value, low, high) on each axis of a chart."""
    return Mark(label, {axis: numbers(place) for axis, place in places.items()})


def _axis_of(values: xr.DataArray) -> str | None:
    """The dim for the axis of a chart: noise, or else the longest dim of increasing numbers;
    None if there is no curve.
    """
    dims = [str(dim) for dim in values.dims if dim != _bound(values)]
    noises = [dim for dim in dims if _is_noise(dim)]
    if noises:
        return noises[0] if values.sizes[noises[0]] > 1 else None
    ordered = [dim for dim in dims if values.sizes[dim] > 2 and _increases(values, dim)]
    return max(ordered, key=lambda dim: values.sizes[dim], default=None)


def _increases(values: xr.DataArray, dim: str) -> bool:
    """Whether the labels of a dim are increasing numbers."""
    if dim not in values.coords or values[dim].dtype.kind not in "fiu":
        return False
    return bool((np.diff(values[dim]) > 0).all())


def _is_noise(dim: str) -> bool:
    return dim == "noise" or dim.endswith("_noise")


def _axes(values: xr.DataArray, x: str) -> list[Axis]:
    own_values = values[x].values
    label = str(values[x].attrs.get("long_name", x.replace("_", " ")))
    axes = [
        Axis(
            name="noise" if _is_noise(x) else x,
            label=label.replace("epsilon", "ε"),
            values=numbers(own_values),
            is_logarithmic=_is_noise(x) and is_geometric(own_values),
        )
    ]
    for name, label in AXES.items():
        if name in values.coords and values[name].dims == (x,):
            further = values[name].values
            if np.isfinite(further).sum() > 1:
                axes.append(Axis(name, label, numbers(further)))
    return axes


def _bound(values: xr.DataArray) -> Hashable | None:
    """The dim that holds a number and the ends of its interval; None if there is none."""
    for dim in values.dims:
        if dim in values.coords and values[dim].values.tolist() == ESTIMATE:
            return dim
    return None


def _lines(values: xr.DataArray, x: str) -> list[Line]:
    """The curves of a variable, at most 24 of them, evenly spaced."""
    bound = _bound(values)
    others = [dim for dim in values.dims if dim not in (x, bound)]
    flat = values.stack(_line=others) if others else values.expand_dims("_line")
    order: list[Hashable] = ["_line", x]
    if bound is not None:
        order.append(bound)
    flat = flat.transpose(*order, missing_dims="ignore")
    lines = []
    for k in evenly_spaced(flat.sizes["_line"], _MOST_LINES):
        line = flat.isel(_line=k)
        names = [_label(dim, line[dim].item()) for dim in others if dim in line.coords]
        value, low, high = _ends(line.values, bound is not None)
        if np.isfinite(value.astype(float)).sum() > 1:
            lines.append(Line(", ".join(names), numbers(value), numbers(low), numbers(high)))
    return lines


def _label(dim: Hashable, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{str(dim).replace('_', ' ')} {value:.4g}"


def _ends(line: np.ndarray, has_interval: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and ends of the intervals, which are NaN without intervals."""
    if has_interval:
        return line[:, 0], line[:, 1], line[:, 2]
    unknown = np.full(line.shape, np.nan)
    return line, unknown, unknown
