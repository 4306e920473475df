"""Labelled data as charts of plain data: lines with intervals against noise, on all axes that the data have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.studies.plotting.curves import evenly_spaced, lying_on

if TYPE_CHECKING:
    import xarray as xr

AXES = {
    "t_over_T": "t/T",
    "step": "steps",
    "log_snr": "log-SNR (nats)",
    "effective_epsilon": "effective ε",
    "bits_per_leaf": "information per site (bits)",
}
"""Coordinates of noise levels that a page can take as the axis of its charts, besides the noise itself: {name: words}."""
_ENDS = ["value", "low", "high"]  # labels of a dim that holds a number with its interval
_MOST_LINES, _MOST_POINTS = 24, 400
_NO_LINES = {"item", "row", "column", "channel", "position", "trajectory", "clone", "shown_noise", "shown_item", "node"}


def number(value: Any) -> float | None:
    """A number with six digits; None if it is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    return [number(value) for value in np.asarray(values, float).ravel()]


def charts_of(data: xr.Dataset) -> list[dict[str, Any]]:
    """A chart for each variable of the data of a figure that is a curve; those against noise come first."""
    charts = []
    for name in map(str, data.data_vars):
        values = data[name]
        ends = [data[f"{name}_{end}"] for end in ("low", "high") if f"{name}_{end}" in data]
        if name.endswith(("_low", "_high")) or values.dtype.kind not in "fiu":
            continue
        values = values.mean("grammar") if "grammar" in values.dims else values
        x = _axis_of(values)
        if x is None or _NO_LINES & set(values.dims):
            continue
        if [end.dims for end in ends] == [values.dims] * 2:
            import xarray as xr

            values = xr.concat([values, *ends], "bound").assign_coords(bound=_ENDS)
        words = str(data[name].attrs.get("long_name", "")) or name.replace("_", " ")
        charts.append(chart(name, words, values, x, y=str(data[name].attrs.get("units", "")), group=name.replace("_", " ")))
    return sorted(with_curves(charts), key=lambda chart: not chart["slides"])


def with_curves(charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of some charts that have a curve. Charts with the same title are told apart by their groups."""
    charts = [chart for chart in charts if chart["lines"]]
    titles = Counter(chart["title"] for chart in charts)
    for chart in charts:
        chart["title"] += f" ({chart['group']})" if titles[chart["title"]] > 1 and chart["group"] else ""
    return charts


def chart(
    name: str,
    title: str,
    values: xr.DataArray,
    x: str,
    marks: Iterable[dict[str, Any]] = (),
    *,
    y: str = "",
    joined: bool = False,
    shown: bool = False,
    group: str = "",
) -> dict[str, Any]:
    """A chart of at most 24 curves, evenly spaced, for the page.

    Parameters
    ----------
    name, title : for the names of files, and for people
    values : array (x, ..), with the dim "bound" if there are intervals
    x : dim of the axis
    marks : places on the axis, made by `mark`
    y : what the vertical axis shows, with its unit
    joined : whether points are joined across levels at which a curve has no value, since others were measured there
    shown : whether the chart is seen before the readings are unfolded
    group : tells charts with the same title apart

    Returns
    -------
    Axes {name, words, values}; lines {name, value, low, high, on}, where `on` is the number of lines before that the line lies
    on; the number of curves `left_out`; and whether the axis is noise (`slides`).
    """
    some = values.isel({x: evenly_spaced(values.sizes[x], _MOST_POINTS)})
    lines = list(_lines(some, x))
    for line, on in zip(lines, lying_on([line["value"] for line in lines]), strict=True):
        line["on"] = on
    count = math.prod(size for dim, size in values.sizes.items() if dim not in (x, _bound(values)))
    return {
        "name": name,
        "title": title[:1].upper() + title[1:],
        "axes": _axes(some, x),
        "lines": lines,
        "left_out": max(count - _MOST_LINES, 0),
        "marks": list(marks),
        "slides": _is_noise(x),
        "y": y,
        "joined": joined,
        "shown": shown,
        "group": group,
    }


def mark(label: str, place: dict[str, Any]) -> dict[str, Any]:
    """A place on the axes of a chart with its interval: {name of an axis: (value, low, high)}."""
    return {"label": label, "at": {axis: numbers(values) for axis, values in place.items()}}


def _axis_of(values: xr.DataArray) -> str | None:
    """The dim that is the axis of a chart: noise, or else the longest dim of increasing numbers; None for no curve."""
    dims = [str(dim) for dim in values.dims if dim != _bound(values)]
    noises = [dim for dim in dims if _is_noise(dim)]
    if noises:
        return noises[0] if values.sizes[noises[0]] > 1 else None
    ordered = [
        dim
        for dim in dims
        if values.sizes[dim] > 2 and dim in values.coords and values[dim].dtype.kind in "fiu" and (np.diff(values[dim]) > 0).all()
    ]
    return max(ordered, key=lambda dim: values.sizes[dim], default=None)


def _is_noise(dim: str) -> bool:
    return dim == "noise" or dim.endswith("_noise")


def _axes(values: xr.DataArray, x: str) -> list[dict[str, Any]]:
    words = str(values[x].attrs.get("long_name", x.replace("_", " "))).replace("epsilon", "ε")
    axes = [{"name": "noise" if _is_noise(x) else x, "words": words, "values": numbers(values[x].values)}]
    for name, label in AXES.items():
        if name in values.coords and values[name].dims == (x,) and np.isfinite(values[name]).sum() > 1:
            axes.append({"name": name, "words": label, "values": numbers(values[name].values)})
    return axes


def _bound(values: xr.DataArray) -> Any:
    """The dim of a number and the ends of its interval; None if there is none."""
    return next((dim for dim in values.dims if dim in values.coords and values[dim].values.tolist() == _ENDS), None)


def _lines(values: xr.DataArray, x: str) -> Iterator[dict[str, Any]]:
    """The curves of a variable, at most 24 of them, evenly spaced."""
    bound = _bound(values)
    others = [dim for dim in values.dims if dim not in (x, bound)]
    flat = values.stack(line=others) if others else values.expand_dims("line")
    flat = flat.transpose("line", x, *([bound] if bound else []), missing_dims="ignore")
    for k in evenly_spaced(flat.sizes["line"], _MOST_LINES):
        line = flat.isel(line=k)
        names = [_label(str(dim), line[dim].item()) for dim in others if dim in line.coords]
        table = line.values if bound else np.stack([line.values, *[np.full(line.shape, np.nan)] * 2], -1)
        if np.isfinite(table[:, 0].astype(float)).sum() > 1:
            yield {"name": ", ".join(names), **{end: numbers(table[:, n]) for n, end in enumerate(_ENDS)}}


def _label(dim: str, value: Any) -> str:
    """A coordinate in words: names as they are, numbers with their dim."""
    return value if isinstance(value, str) else f"{dim.replace('_', ' ')} {value:.4g}"
