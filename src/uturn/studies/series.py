"""Series of ordered levels, such as layers: the noise at which the first and the last swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.measures.curves import crossing
from uturn.measures.replicates import Replicates
from uturn.studies.checked_run import Run
from uturn.studies.keys import ReadingKey, keys_of
from uturn.studies.places import curve, located_on
from uturn.studies.references import reference
from uturn.studies.remarks import Kind, Remark

_FALSE_INVERSIONS = 0.05
"""Share of series of equal curves whose inversion is sure."""


@dataclass(frozen=True, eq=False)
class Series:
    """The levels of a variable along the dim in which they are ordered."""

    key: ReadingKey
    """The variable, and its level along each other dim of its own."""
    first: str
    """Value of the first level."""
    last: str
    """Value of the last level."""
    inversion: np.ndarray
    """(axis, estimate): noise beyond which the last level stays below the first; NaN if they do
    not swap.
    """
    remark: Remark | None


def series_of(run: Run, centre: str) -> list[Series]:
    """The series of all variables with at least two ordered levels."""
    series = []
    for name, instructions in run.readings.items():
        order = instructions.order
        if order is None or run.data.sizes[order] < 2:
            continue
        start = reference(run.data, name, instructions.start)
        if start is not None and "item" in start.dims:
            start = None
        ends = run.data[order].values
        for key in keys_of(run.data.isel({order: 0}), name):
            values = run.data[name].isel(key.indices, drop=True).transpose(..., order)
            starts = np.nan if start is None else start.isel(key.indices).values
            centre_of_curves = "mean" if instructions.is_share else centre
            curves = curve(values, run.axes.noise, starts, centre_of_curves)
            inversion, remark = _inversion(curves, run)
            series.append(Series(key, str(ends[0]), str(ends[-1]), inversion, remark))
    return series


def _inversion(curves: Replicates, run: Run) -> tuple[np.ndarray, Remark | None]:
    """Where the last of several curves, (noise, level), falls below the first, (axis, estimate)."""
    noise = run.axes.finite_noise
    is_finite = run.axes.is_finite
    rises = curves.mean[-1].sum() > curves.mean[0].sum()
    sign = -1.0 if rises else 1.0  # a distance rises where a similarity falls

    def difference(means: np.ndarray) -> np.ndarray:
        return np.asarray(sign * (means[is_finite, -1] - means[is_finite, 0]))

    place = located_on(curves, lambda means: crossing(noise, difference(means), 0.0), noise)
    inversion = run.axes.convert_interval(place)
    if np.isnan(place[0]):
        return inversion, Remark(Kind.PLACE, "the levels do not swap order")
    # One test for the series: of two equal curves, .05 are below at some noise.
    tests = max(int((noise > 0).sum()), 1)
    is_below = curves.interval(difference, 1 - 2 * _FALSE_INVERSIONS / tests)[..., 2] < 0
    if is_below.any():
        return inversion, None
    text = (
        "not sure: at no noise is the last level below the first, in one test of all noise levels"
    )
    return inversion, Remark(Kind.PLACE, text)


def dataset_of_series(series: Sequence[Series]) -> xr.Dataset:
    """The variables of a study with the dim `series`; empty if there are none."""
    if not series:
        return xr.Dataset()
    texts = {
        "series": [entry.key.label for entry in series],
        "series_variable": [entry.key.variable for entry in series],
        "first": [entry.first for entry in series],
        "last": [entry.last for entry in series],
        "series_remark": [entry.remark.text if entry.remark else "" for entry in series],
    }
    return xr.Dataset(
        {
            "inversion": (
                ("series", "axis", "estimate"),
                np.stack([entry.inversion for entry in series]),
            )
        },
        {name: ("series", np.array(column, str)) for name, column in texts.items()},
    )
