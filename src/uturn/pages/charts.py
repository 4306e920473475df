"""Labelled data as charts of plain data: lines with intervals against noise, on all noise axes
of the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xarray as xr

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
_ENDS = ["value", "low", "high"]  # labels of a dim with a number and its interval
_MOST_LINES, _MOST_POINTS = 24, 400
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


def number(value: Any) -> float | None:
    """A number in full, since the page rounds it as its tables do; None if it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    return [number(value) for value in np.asarray(values, float).ravel()]


def charts_of(data: xr.Dataset) -> list[dict[str, Any]]:
    """A chart for each curve in the data of a figure; charts against noise come first."""
    charts = []
    for name, of in (
        (str(name), of) for name, of in data.data_vars.items() if of.dtype.kind in "fiu"
    ):
        values = of.mean("grammar") if "grammar" in of.dims else of
        x = _axis_of(values)
        if x is not None and not _NO_LINES & set(values.dims):
            group = name.replace("_", " ")
            title, unit = (
                str(of.attrs.get("long_name", "")) or group,
                str(of.attrs.get("units", "")),
            )
            charts.append(chart(name, title, values, x, y=unit, group=group))
    return sorted(with_curves(charts), key=lambda chart: not chart["slides"])


def with_curves(charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts that have a curve. Groups are added to equal titles."""
    charts = [chart for chart in charts if chart["lines"]]
    titles = Counter(chart["title"] for chart in charts)
    for chart in charts:
        chart["title"] += (
            f" ({chart['group']})" if titles[chart["title"]] > 1 and chart["group"] else ""
        )
    return charts


def chart(
    name: str,
    title: str,
    values: xr.DataArray,
    x: str,
    marks: Iterable[dict[str, Any]] = (),
    theory: xr.DataArray | None = None,
    **look: Any,
) -> dict[str, Any]:
    """A chart of at most 24 curves, evenly spaced, for the page.

    `values` (x, ..), with the dim `estimate` if there are intervals; `x`: dim of the axis; `marks`:
    places on it, made by `mark`; `theory` (x, ..): curves of the mean field. `look`: `y`, the unit
    of the vertical axis; `joined`, whether lines skip levels without a value; `shown`; `group`,
    which distinguishes charts with one title; `slides`, whether the chart follows the slider, by
    default if its axis is noise. In lines, `on` is the number of earlier lines that coincide with a
    line, and `of` the line to which one of the theory belongs.
    """
    some = values.isel({x: evenly_spaced(values.sizes[x], _MOST_POINTS)})
    lines = list(_lines(some, x))
    for line, on in zip(lines, lying_on([line["value"] for line in lines]), strict=True):
        line["on"] = on
    if theory is not None:
        predicted = _lines(theory.isel({x: evenly_spaced(theory.sizes[x], _MOST_POINTS)}), x)
        number_of = {line["name"]: k for k, line in enumerate(lines)}
        found = [
            line | {"on": 0, "of": number_of[line["name"]]}
            for line in predicted
            if line["name"] in number_of
        ]
        lines += [
            line | {"name": f"{line['name']}, mean field".removeprefix(", ")} for line in found
        ]
    count = math.prod(size for dim, size in values.sizes.items() if dim not in (x, _bound(values)))
    return {
        "name": name,
        "title": title[:1].upper() + title[1:],
        "axes": _axes(some, x),
        "lines": lines,
        "left_out": max(count - _MOST_LINES, 0),
        "marks": list(marks),
        "slides": _is_noise(x),
        **{"y": "", "joined": False, "shown": False, "group": ""},
        **look,
    }


def mark(label: str, place: dict[str, Any]) -> dict[str, Any]:
    return {"label": label, "at": {axis: numbers(values) for axis, values in place.items()}}


def _axis_of(values: xr.DataArray) -> str | None:
    """The dim for the axis of a chart: noise, or else the longest dim of increasing numbers;
    None if there is no curve.
    """
    dims = [str(dim) for dim in values.dims if dim != _bound(values)]
    noises = [dim for dim in dims if _is_noise(dim)]
    if noises:
        return noises[0] if values.sizes[noises[0]] > 1 else None
    ordered = [
        dim
        for dim in dims
        if values.sizes[dim] > 2
        and dim in values.coords
        and values[dim].dtype.kind in "fiu"
        and (np.diff(values[dim]) > 0).all()
    ]
    return max(ordered, key=lambda dim: values.sizes[dim], default=None)


def _is_noise(dim: str) -> bool:
    return dim == "noise" or dim.endswith("_noise")


def _axes(values: xr.DataArray, x: str) -> list[dict[str, Any]]:
    label_of_axis = str(values[x].attrs.get("long_name", x.replace("_", " "))).replace(
        "epsilon", "ε"
    )
    first = {
        "name": "noise" if _is_noise(x) else x,
        "words": label_of_axis,
        "values": numbers(values[x].values),
    }
    axes = [first | {"log": _is_noise(x) and is_geometric(values[x].values)}]
    for name, label in AXES.items():
        if (
            name in values.coords
            and values[name].dims == (x,)
            and np.isfinite(values[name]).sum() > 1
        ):
            axes.append({"name": name, "words": label, "values": numbers(values[name].values)})
    return axes


def _bound(values: xr.DataArray) -> Any:
    """The dim that holds a number and the ends of its interval; None if there is none."""
    return next(
        (
            dim
            for dim in values.dims
            if dim in values.coords and values[dim].values.tolist() == _ENDS
        ),
        None,
    )


def _lines(values: xr.DataArray, x: str) -> Iterator[dict[str, Any]]:
    """The curves of a variable, at most 24 of them, evenly spaced."""
    bound = _bound(values)
    others = [dim for dim in values.dims if dim not in (x, bound)]
    flat = values.stack(_line=others) if others else values.expand_dims("_line")
    flat = flat.transpose("_line", x, *([bound] if bound else []), missing_dims="ignore")
    for k in evenly_spaced(flat.sizes["_line"], _MOST_LINES):
        line = flat.isel(_line=k)
        labels = [
            (str(dim).replace("_", " "), line[dim].item()) for dim in others if dim in line.coords
        ]
        names = [value if isinstance(value, str) else f"{dim} {value:.4g}" for dim, value in labels]
        table = (
            line.values
            if bound
            else np.stack([line.values, *[np.full(line.shape, np.nan)] * 2], -1)
        )
        if np.isfinite(table[:, 0].astype(float)).sum() > 1:
            yield {
                "name": ", ".join(names),
                **{end: numbers(table[:, n]) for n, end in enumerate(_ENDS)},
            }
