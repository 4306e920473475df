"""The ends of a curve: its start, at noise 0, and chance, for independent data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.core.messages import shown
from uturn.measures.readings import WITHIN
from uturn.studies.checked_run import Run
from uturn.studies.keys import find_reading
from uturn.studies.runs import have_labels, named_in

Rule = float | str | None
"""How a start or chance is given (`uturn.protocols.Variable`)."""


@dataclass(frozen=True, eq=False)
class LevelValues:
    """The readings of one level, and the two values between which their curve runs."""

    values: xr.DataArray
    """Dims noise, item, perhaps trajectory and clone."""
    start: float
    """Value without noise; NaN if it is not known."""
    chance: float
    """Value for independent data; NaN if it is not known."""

    @classmethod
    def of(cls, run: Run, name: str) -> LevelValues:
        """The readings with a name; start and chance are means over the items."""
        key = find_reading(run, name)
        instructions = run.instructions[key.variable]

        def mean_of(rule: Rule) -> float:
            levels = reference(run.data, key.variable, rule)
            if levels is None:
                return np.nan
            return float(levels.isel(key.indices).mean())

        values = run.data[key.variable].isel(key.indices, drop=True)
        return cls(values, mean_of(instructions.start), mean_of(instructions.chance))


def reference(data: xr.Dataset, variable: str, rule: Rule) -> xr.DataArray | None:
    """The start or chance of all levels of a variable, with its own dims and perhaps `item`; None
    if none is known.
    """
    if rule is None:
        return None
    dims = {dim: 0 for dim in ("noise", *WITHIN) if dim in data[variable].dims}
    blank = data[variable].isel(dims, drop=True).reset_coords(drop=True)
    levels = xr.zeros_like(blank, float) + _value_of(data, variable, rule, blank)
    levels = levels.where(np.isfinite(levels))
    if levels.isnull().all():
        return None
    return levels


def _value_of(
    data: xr.Dataset, variable: str, rule: float | str, blank: xr.DataArray
) -> float | xr.DataArray:
    """What a rule stands for; NaN if it stands for nothing in the run. `blank` has the own dims of
    the variable.
    """
    if not isinstance(rule, str):
        return float(rule)
    if rule.startswith("same:"):
        name, *others = named_in(rule)
        if others:
            return _share_of_agreeing(data, name, others[0])
        return _same(data, name)
    if rule not in data:
        return np.nan
    numbers = _without_noise(data[rule])
    if numbers.dtype.kind not in "biuf" or not set(numbers.dims) <= {"item", *blank.dims}:
        which = f"{variable}: type and dims of its start or chance {shown(rule)}"
        raise ValueError(
            f"{which} = {numbers.dtype}, {numbers.dims}: expected numbers, by item or by"
            f" {blank.dims}"
        )
    return numbers.reset_coords(drop=True).astype(float)


def _same(data: xr.Dataset, name: str) -> float:
    """Probability that two labelled originals agree in a coordinate."""
    if name not in data:
        return np.nan
    labels = _without_noise(data[name]).values
    _, counts = np.unique(labels[have_labels(labels)], return_counts=True)
    if not len(counts):
        return np.nan
    shares = counts / counts.sum()
    return float(np.sum(shares**2))


def _share_of_agreeing(data: xr.Dataset, name: str, other: str) -> float:
    """Share of the originals labelled in `other` whose `name` is equal to it."""
    if name not in data or other not in data:
        return np.nan
    values = _without_noise(data[name]).values
    labels = _without_noise(data[other]).values
    are_numbers = values.dtype.kind in "biuf" and labels.dtype.kind in "biuf"
    if values.shape != labels.shape or not are_numbers:
        raise ValueError(f"same:{name}={other}: expected two arrays of numbers with one shape")
    is_labelled = labels >= 0
    if not is_labelled.any():
        return np.nan
    agrees = values == labels
    return float(agrees[is_labelled].mean())


def _without_noise(values: xr.DataArray) -> xr.DataArray:
    """Values without the dim noise: values that are stored at each level are taken at the first."""
    if "noise" not in values.dims:
        return values
    return values.isel(noise=0, drop=True)
