"""Checks of stored readings: each gives a remark on what it finds, or None."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from uturn.core.protocols import Variable
from uturn.measures.intervals import rests_on_few
from uturn.measures.peaks import among
from uturn.measures.readings import independent_groups
from uturn.studies.checked_run import LEVEL, Run, dims_except
from uturn.studies.remarks import Kind, Remark, first_names
from uturn.studies.runs import NAMES

_ROUNDING = 1e-6  # of readings in single precision


def bounds_of(instructions: Variable) -> tuple[float, float]:
    """The bounds of a reading, infinite where there is none."""
    low, high = instructions.bounds
    if low is None:
        low = -np.inf
    if high is None:
        high = np.inf
    return low, high


def outside_bounds(values: xr.DataArray, instructions: Variable) -> Remark | None:
    """A remark on readings that leave their bounds by more than rounding."""
    low, high = bounds_of(instructions)
    least = float(values.min())
    most = float(values.max())
    is_below = least < low - _ROUNDING * max(1, abs(low))
    is_above = most > high + _ROUNDING * max(1, abs(high))
    if not (is_below or is_above):
        return None
    text = (
        f"readings from {least:.3g} to {most:.3g} leave the bounds {low:g} and {high:g}, which are"
        " not used"
    )
    return Remark(Kind.BOUNDS, text)


def missing_readings(levels: xr.DataArray, run: Run) -> list[Remark | None]:
    """A remark on each level whose readings (noise, item, .., LEVEL) are not complete; none for an
    unfinished run.
    """
    if run.missing_tasks:
        return [None] * levels.sizes[LEVEL]
    is_missing = levels.isnull().transpose(LEVEL, "noise", "item", ...).values
    is_missing = is_missing.reshape(*is_missing.shape[:3], -1)
    return [_missing_of_level(level, run) for level in is_missing]


def _missing_of_level(is_missing: np.ndarray, run: Run) -> Remark | None:
    """`is_missing`: bool (noise, item, U-turn)."""
    # Items without any reading lack the level, such as a text without a region.
    items = np.flatnonzero(~is_missing.all(axis=(0, 2)))
    is_missing = is_missing[:, items]
    if not is_missing.any():
        return None
    places = first_names(list(_places(is_missing, items, run)), noun="places")
    text = f"{is_missing.sum()} of {is_missing.size} readings are missing: {places}"
    return Remark(Kind.MISSING, text)


def _places(is_missing: np.ndarray, items: np.ndarray, run: Run) -> Iterator[str]:
    """The noise levels without readings, then the items that lack some at other levels."""
    noise = run.data.noise.values
    all_missing = np.asarray(is_missing.all(axis=(1, 2)))
    for k in np.flatnonzero(all_missing):
        yield f"all at noise {noise[k]:.3g}"
    for k, i in np.argwhere(is_missing.any(axis=2)):
        if not all_missing[k]:
            yield f"{_item_name(run, items[i])} at noise {noise[k]:.3g}"


def _item_name(run: Run, item: np.intp) -> str:
    """The name of an item or of its file, or else its number."""
    for name in NAMES:
        if name in run.data.coords:
            # Semicolons separate remarks.
            return str(run.data[name].values[item]).replace(";", ",")
    return f"item {run.data.item.values[item]}"


def items_without_readings(run: Run, variables: Sequence[str]) -> list[str]:
    """Names of the items that have no reading of any of some variables."""
    has_reading = np.full(run.data.sizes["item"], not variables)
    for name in variables:
        values = run.data[name]
        has_reading |= values.notnull().any(dims_except(values, "item")).values
    return [_item_name(run, item) for item in np.flatnonzero(~has_reading)]


def shares_on_few(levels: xr.DataArray, run: Run, instructions: Variable) -> list[Remark | None]:
    """A remark on each level (noise, item, .., LEVEL) whose spread of shares comes from two
    originals (or grammars).

    All levels concerned share one remark.
    """
    nothing: list[Remark | None] = [None] * levels.sizes[LEVEL]
    if not instructions.is_share:
        return nothing
    noise = run.data.noise.values
    is_few = rests_on_few(levels.transpose("noise", ..., LEVEL)) & (noise > 0)[:, None]
    if not is_few.any():
        return nothing
    are_items = independent_groups(levels).max() + 1 == run.data.sizes["item"]
    units = "originals" if are_items else "grammars"
    concerned = noise[is_few.any(axis=1)]
    noises = among(concerned)
    if is_few.shape[1] > 1 and len(concerned) > 1:
        noises = f"some of {noises}"
    reason = f"similar {units} may be missing, so the interval may be too narrow"
    text = f"the spread comes from two {units} at {noises}: {reason}"
    remark = Remark(Kind.INTERVAL, text)
    return [remark if any_few else None for any_few in is_few.any(axis=0)]
