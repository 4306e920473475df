"""A run as studies read it: checked once, with its instructions and noise axes read once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import xarray as xr

from uturn.core.checks import LARGEST, expect
from uturn.core.messages import shown
from uturn.core.protocols import Variable
from uturn.measures.readings import draw_dims, own_dims
from uturn.studies.axes import Axes
from uturn.studies.runs import instructions_of, missing_tasks

LEVEL = "level of the variable"
"""A dim with all levels of a variable, named as no dim of a variable."""

_MOST_LEVELS = 512
"""Levels of a variable that has curves."""
_SURE = 16
"""Different rows of readings that all occur several times, or equal ones whose U-turns differ."""
_ONCE = "expected each original once, and its U-turns along trajectory"


@dataclass(frozen=True, eq=False)
class Run:
    """A run: its readings, and what studies need to know of them."""

    data: xr.Dataset
    """Readings with the dims noise (increasing), item, perhaps trajectory and clone, and others."""
    instructions: Mapping[str, Variable]
    """Reading instructions of all variables, in the order in which the probes declare them."""
    axes: Axes
    """The noise levels, with noise 0, on all axes of the run."""

    @classmethod
    def of(cls, ds: object) -> Self:
        """A run that may be unfinished; ValueError for anything else."""
        return cls._read(checked_dataset(ds))

    @classmethod
    def finished(cls, ds: object) -> Self:
        """A run with all its readings, of different originals; otherwise ValueError."""
        data = checked_dataset(ds)
        missing = missing_tasks(data)
        if missing:
            raise ValueError(
                f"the run is not finished: {missing} tasks are missing; run the same command again"
            )
        run = cls._read(data)
        _check_originals(run)
        return run

    @classmethod
    def _read(cls, dataset: xr.Dataset) -> Self:
        """The run of a dataset that is one."""
        data = by_noise(dataset)
        return cls(data, instructions_of(data), Axes.of(data))

    @cached_property
    def missing_tasks(self) -> int:
        """Number of tasks that are not measured yet; 0 for a finished run."""
        return missing_tasks(self.data)

    @cached_property
    def without_curve(self) -> dict[str, str]:
        """Why readings have no curve, by variable."""
        reasons = {
            name: _why_no_curve(self.data[name])
            for name, instructions in self.instructions.items()
            if instructions.role == "reading"
        }
        return {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def readings(self) -> dict[str, Variable]:
        """The variables that have curves, with their instructions."""
        return {
            name: instructions
            for name, instructions in self.instructions.items()
            if instructions.role == "reading" and name not in self.without_curve
        }

    def with_data(self, data: xr.Dataset) -> Self:
        """The run with other readings at the same noise levels."""
        return replace(self, data=data)


def checked_dataset(ds: object) -> xr.Dataset:
    """The dataset itself if it has readings of items at noise levels; otherwise ValueError."""
    sizes = dict(ds.sizes) if isinstance(ds, xr.Dataset) else {}
    is_run = sizes.get("noise", 0) * sizes.get("item", 0) > 0
    expect(is_run, "ds", sizes or ds, "the dataset that uturn.run gives, with dims noise and item")
    assert isinstance(ds, xr.Dataset)
    noise = ds.noise.values
    in_range = noise.dtype.kind in "biuf"
    in_range = in_range and ((noise >= 0) & ((noise < LARGEST) | np.isinf(noise))).all()
    is_sound = in_range and len(np.unique(noise)) == len(noise)
    expect(is_sound, "noise", noise.tolist(), "different levels, 0 or more")
    for name in {"step", "t_over_T", "timestep", "log_snr"} & set(ds.coords):
        coordinate = ds[name]
        are_numbers = coordinate.dims != ("noise",) or coordinate.dtype.kind in "iuf"
        are_numbers = are_numbers and "item" not in coordinate.dims
        expected = "numbers, one for each noise level"
        expect(are_numbers, name, coordinate.values.tolist(), expected)
        if name == "t_over_T":
            _check_whole_steps(noise, coordinate.values)
    return ds


def _check_whole_steps(noise: np.ndarray, t_over_T: np.ndarray) -> None:
    """ValueError unless each t/T, which takes the place of the noise, is the noise rounded to a
    whole step.
    """
    are_different = len(np.unique(t_over_T)) == len(t_over_T)
    is_sound = are_different and bool((np.isfinite(t_over_T) & (t_over_T >= 0)).all())
    expected = "different numbers of 0 or more, one for each noise level"
    expect(is_sound, "t_over_T", t_over_T.tolist(), expected)
    step = np.diff(np.unique([0, *t_over_T])).min(initial=np.inf)
    is_noise = (np.abs(t_over_T - noise) <= 0.51 * step).all()
    expected = f"the noise {shown(noise.tolist())} in whole steps, or another name"
    expect(is_noise, "t_over_T", t_over_T.tolist(), expected)


def by_noise(data: xr.Dataset) -> xr.Dataset:
    """A run with increasing noise levels. Levels of images become the exact k/N of whole steps."""
    if "t_over_T" in data.coords:  # the spec's levels are rounded to whole steps
        data = data.assign_coords(noise=("noise", data.t_over_T.values, data.noise.attrs))
    return data.sortby("noise")


def stacked(values: xr.DataArray, dims: Sequence[str]) -> xr.DataArray:
    """Some dims of an array stacked into one last dim `LEVEL`, of size 1 if there are none."""
    if not dims:
        return values.expand_dims(LEVEL).transpose(..., LEVEL)
    return values.stack({LEVEL: dims}).transpose(..., LEVEL)


def dims_except(values: xr.DataArray, *names: str) -> list[str]:
    """The dims of an array without some of them."""
    return [str(dim) for dim in values.dims if dim not in names]


def _why_no_curve(values: xr.DataArray) -> str:
    """Why a variable has no curve; "" if it has one."""
    if "item" not in values.dims:
        return "it has no dim item"
    if values.dtype.kind not in "biuf":
        return "its values are not numbers"
    if not values.size:
        return "it has no values"
    if math.prod(values.sizes[dim] for dim in own_dims(values)) > _MOST_LEVELS:
        return f"it has more than {_MOST_LEVELS} levels"
    return ""


# --- originals that occur several times -----------------------------------------------------------


def _check_originals(run: Run) -> None:
    """ValueError if originals occur several times, by labels or readings: copies would narrow all
    intervals.
    """
    for name in {"item", "item_name"} & set(run.data.coords):
        labels = Counter(np.ravel(run.data[name].values).tolist())
        label, times = labels.most_common(1)[0]
        if times > 1:
            raise ValueError(f"{name} = {shown(label)} occurs {times} times; {_ONCE}")
    times = _times_of_readings([run.data[name] for name in run.readings])
    if times > 1:
        raise ValueError(
            f"the readings of all originals occur {times} times or a multiple of that; {_ONCE}"
        )


def _times_of_readings(readings: Sequence[xr.DataArray]) -> int:
    """How many times the readings of every original occur; 1 if they may agree by chance.

    All rows of readings occur 2 (or 3, ..) times, or a multiple of that: for D different rows of
    other data with probability about 2^-D at most. Fewer rows suffice if they have many values.
    Where all rows are one and its trajectories differ, N originals agree with about 2^-N.
    """
    rows = []
    for reading in readings:
        array = reading.transpose("item", ...).values
        rows.append(array.reshape(len(array), -1))
    parts = [[row.tobytes() for row in values] for values in rows]
    copies = Counter(map(b"".join, zip(*parts, strict=True)))
    times = math.gcd(*copies.values())
    if times < 2:
        return 1
    ordered = [np.sort(values, axis=0) for values in rows]
    # Different values among originals, less one.
    further = np.concatenate([(values[1:] > values[:-1]).sum(0) for values in ordered])
    if len(copies) >= _SURE or further[further > 1].sum() >= _SURE:
        return times
    if len(copies) == 1 and times >= _SURE and any(map(_trajectories_differ, readings)):
        return times
    return 1


def _trajectories_differ(values: xr.DataArray) -> bool:
    """Whether any two U-turns of one original differ."""
    dims = draw_dims(values)
    return bool(dims) and bool((values.max(dims) > values.min(dims)).any())
