"""The readings of a run: the curve of each against noise, and the places on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xarray as xr

from uturn.core.protocols import Variable
from uturn.measures.estimates import ESTIMATE
from uturn.measures.readings import own_dims
from uturn.measures.replicates import Replicates
from uturn.studies.axes import Axes
from uturn.studies.checked_run import LEVEL, Run, dims_except, stacked
from uturn.studies.keys import ReadingKey, keys_of
from uturn.studies.moves import Moves
from uturn.studies.places import SHARES, Places, band, band_of_shares, curve
from uturn.studies.reading_checks import (
    bounds_of,
    missing_readings,
    outside_bounds,
    shares_on_few,
)
from uturn.studies.references import Rule, reference
from uturn.studies.remarks import Kind, Remark, about_guess, joined
from uturn.studies.runs import starts_at_one


@dataclass(frozen=True, eq=False)
class Reading:
    """One level of a variable, with its curve against noise and the places on it."""

    key: ReadingKey
    instructions: Variable
    """Reading instructions of the variable; without bounds if its readings leave them."""
    long_name: str
    """The quantity in words."""
    centre: str
    """What the curve is over items: "mean" or "median"."""
    replicates: Replicates
    """The curve with the spread of repetitions of the run, at all noise levels of the axes."""
    curve: np.ndarray
    """(noise, estimate): the curve with its intervals."""
    start: float
    """Value at noise 0; NaN if it is not known."""
    guess: float
    """The start if it is guessed from the readings, otherwise NaN."""
    chance: float
    """Value for independent data; NaN if it is not known."""
    is_flat: bool
    """Whether the curve is not seen to change, so that it has no places (`_is_flat`)."""
    places: Places
    originals: int
    """Number of items that have the reading."""
    remarks: tuple[Remark, ...] = ()

    @property
    def label(self) -> str:
        return self.key.label

    @property
    def remark(self) -> str:
        """The texts of all remarks."""
        return joined(self.remarks)

    def with_remark(self, remark: Remark) -> Reading:
        """The reading with another remark before its own."""
        return replace(self, remarks=(remark, *self.remarks))


def readings_of(
    run: Run, variable: str, centre: str = "mean", confidence: float = 0.95
) -> list[Reading]:
    """The readings of a variable, one for each combination of its own dims; `confidence` of the
    intervals of curves.
    """
    levels = _Levels.of(run, variable, centre)
    curves = _curves(levels, run.axes, confidence)
    missing = missing_readings(levels.values, run)
    few = shares_on_few(levels.values, run, levels.instructions)
    readings = []
    for k, mean_curve in enumerate(curves):
        reading = _reading(levels, k, mean_curve, run.axes)
        moves = Moves.of(reading.replicates, run.axes.noise, int(levels.instructions.guessed))
        remarks = [
            moves.turn,
            _about_places(reading, moves, run.axes, missing[k] is not None),
            _about_start(reading),
            levels.outside,
            missing[k],
            few[k],
        ]
        readings.append(replace(reading, remarks=tuple(filter(None, remarks))))
    return readings


@dataclass(frozen=True, eq=False)
class _Levels:
    """A variable with its own dims stacked into the dim `LEVEL`."""

    keys: list[ReadingKey]
    instructions: Variable
    long_name: str
    centre: str
    values: xr.DataArray
    """(noise, item, .., LEVEL)."""
    start: xr.DataArray | None
    """(LEVEL), or (item, LEVEL) if it differs among items; None if it is not known."""
    chance: xr.DataArray | None
    """As `start`."""
    outside: Remark | None
    """A remark on readings that leave the bounds of the variable."""

    @classmethod
    def of(cls, run: Run, variable: str, centre: str) -> _Levels:
        values = run.data[variable]
        dims = own_dims(values)

        def of_levels(rule: Rule) -> xr.DataArray | None:
            array = reference(run.data, variable, rule)
            if array is None:
                return None
            return stacked(array, dims)

        instructions = run.instructions[variable]
        outside = outside_bounds(values, instructions)
        if outside is not None:  # then intervals are not clipped
            instructions = replace(instructions, bounds=(None, None))
        return cls(
            keys=keys_of(run.data, variable),
            instructions=instructions,
            long_name=str(values.attrs.get("long_name", variable)),
            centre="mean" if instructions.is_share else centre,  # numbers in [0, 1] have no tails
            values=stacked(values, dims),
            start=of_levels(instructions.start),
            chance=of_levels(instructions.chance),
            outside=outside,
        )

    @property
    def has_own_starts(self) -> bool:
        """Whether the start differs among items."""
        return self.start is not None and "item" in self.start.dims

    @cached_property
    def originals(self) -> np.ndarray:
        """Number of items that have readings, (LEVEL,)."""
        return np.asarray(_items_with_values(self.values).sum(axis=1))


def _items_with_values(values: xr.DataArray) -> np.ndarray:
    """Which items have a value of a level, bool (LEVEL, item)."""
    has_value = values.notnull().any(dims_except(values, "item", LEVEL))
    return np.asarray(has_value.transpose(LEVEL, "item").values)


# --- curves ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _MeanCurve:
    """The mean (or median) curve of one level."""

    replicates: Replicates
    band: np.ndarray
    """(noise, estimate)."""


def _curves(levels: _Levels, axes: Axes, confidence: float) -> list[_MeanCurve]:
    """The curve of each level over the items that have it, with its start at noise 0."""
    instructions = levels.instructions
    values = levels.values
    starts = np.full(values.sizes[LEVEL], np.nan)
    if levels.start is not None and not levels.has_own_starts:
        starts = levels.start.values
    if levels.has_own_starts and len(axes.noise) > values.sizes["noise"]:
        values = _with_own_starts(levels)
    has_value = _items_with_values(values)
    numbers = np.arange(len(has_value))
    # Levels of the same items are computed together.
    groups = list(numbers[:, None])
    if (has_value == has_value[:1]).all():
        groups = [numbers]
    curves = []
    for group in groups:
        items = has_value[group[0]]
        if not items.any():
            items = np.ones_like(items)
        part = values.isel({LEVEL: group, "item": items}).transpose(..., LEVEL)
        joint = curve(part, axes.noise, starts[group], levels.centre)
        if instructions.is_share:
            bands = band_of_shares(part, axes.noise, starts[group], confidence)
        else:
            bands = band(joint, *bounds_of(instructions), confidence)
        for k in range(len(group)):
            mean = joint.mean[:, k]
            alone = joint._replace(mean=mean, deviations=joint.deviations[:, :, k])
            curves.append(_MeanCurve(alone, bands[:, k]))
    return curves


def _with_own_starts(levels: _Levels) -> xr.DataArray:
    """The readings of all levels, with the start of each item before them, at noise 0."""
    assert levels.start is not None
    draws = dims_except(levels.values, "item", LEVEL, "noise")
    first = levels.start.expand_dims({dim: levels.values.sizes[dim] for dim in draws})
    first = first.expand_dims(noise=[0.0])
    measured = levels.values.reset_coords(drop=True)
    return xr.concat([first, measured], "noise", coords="minimal", compat="override")


# --- places ---------------------------------------------------------------------------------------


def _reading(levels: _Levels, k: int, mean_curve: _MeanCurve, axes: Axes) -> Reading:
    """The reading of level k, with the places on its curve."""
    instructions = levels.instructions
    replicates = mean_curve.replicates
    intervals = mean_curve.band
    chance = np.nan
    if levels.chance is not None:
        chance = float(levels.chance.isel({LEVEL: k}).mean())
    is_flat = _is_flat(replicates, chance, instructions)
    start = np.nan
    if instructions.start is not None:
        start = float(replicates.mean[0])
    guess = np.nan
    if instructions.guessed and not starts_at_one(levels.keys[k].variable):
        if is_flat:  # nothing shows the start
            start = np.nan
            intervals = np.concatenate([np.full_like(intervals[:1], np.nan), intervals[1:]])
        elif np.isfinite(start):
            guess = float(instructions.start or 0)
    places = Places.none(axes)
    if np.isfinite(start) and not is_flat:
        places = Places.on(replicates, chance, axes)
    return Reading(
        key=levels.keys[k],
        instructions=instructions,
        long_name=levels.long_name,
        centre=levels.centre,
        replicates=replicates,
        curve=intervals,
        start=start,
        guess=guess,
        chance=chance,
        is_flat=is_flat,
        places=places,
        originals=int(levels.originals[k]),
    )


def _is_flat(curve: Replicates, chance: float, instructions: Variable) -> bool:
    """Whether a curve whose start or chance is not known does not change.

    It does not if the interval of its last minus its first level holds 0. A guessed start does not
    count as the first level. A difference without an interval counts as a change.
    """
    if not instructions.guessed and not np.isnan(chance):
        return False
    first = int(instructions.guessed)
    _, low, high = curve.interval(lambda mean: mean[-1] - mean[first])
    return bool(low <= 0 <= high)


# --- remarks --------------------------------------------------------------------------------------


def _about_start(reading: Reading) -> Remark | None:
    if np.isnan(reading.guess):
        return None
    return Remark(Kind.START, about_guess(reading.guess))


def _about_places(reading: Reading, moves: Moves, axes: Axes, is_missing: bool) -> Remark | None:
    """Why places do not exist or are uncertain. `is_missing`: whether another remark names missing
    readings.
    """
    text = _without_places(reading, moves)
    if not text and len(axes.finite_noise) >= 3:
        text = _doubts_of_places(reading, axes, is_missing)
    if not text:
        return None
    return Remark(Kind.PLACE, text)


def _without_places(reading: Reading, moves: Moves) -> str:
    """Why a reading has no places at all; "" if it may have some."""
    if reading.is_flat:
        if moves.changes:
            return "the last level does not differ from the first, though others do: no half-life"
        return (
            f"no change between {moves.noise[0]:.3g} and {moves.noise[-1]:.3g}: the 95 % interval"
            " of the difference holds 0"
        )
    if np.isnan(reading.start):
        if reading.instructions.start is None:
            return "no start is given: no half-life"
        return "its start is not known: no half-life"
    return ""


def _doubts_of_places(reading: Reading, axes: Axes, is_missing: bool) -> str:
    """Why a half-life or a width does not exist or is uncertain; "" if they are certain."""
    noise = axes.finite_noise
    words = axes.words["noise"]
    largest = f"{words} = {noise[-1]:.3g}"
    half_life, _, high = reading.places.half_life[0]
    if reading.chance == reading.start:
        return "chance equals the value without noise: no half-life"
    if np.isnan(half_life):
        missing = noise[np.isnan(reading.curve[: len(noise), 0])]
        if not len(missing):
            value = np.interp(noise[-1], axes.noise, reading.curve[:, 0])
            return f"less than half of the change occurs up to {largest}, where it is {value:.3g}"
        if is_missing:
            return ""
        levels = ", ".join(f"{level:.3g}" for level in missing[:4])
        return f"no readings at {words} = {levels}"
    if half_life < noise[1]:
        return (
            f"half of the change is done below the smallest measured noise, {noise[1]:.3g}: measure"
            " smaller ones"
        )
    if high >= noise[-1]:
        return f"the interval of the half-life reaches the largest measured noise, {noise[-1]:.3g}"
    if np.isnan(reading.places.at_shares[-1, 0, 0]):
        return f"less than three quarters of the change occur up to {largest}: no width"
    return ""


def with_remarks_on_originals(readings: Sequence[Reading], run: Run) -> list[Reading]:
    """Readings, with a remark on each that fewer originals have than another reading. An unfinished
    run has no such remarks.
    """
    most = max((reading.originals for reading in readings), default=0)
    remarked = []
    for reading in readings:
        if reading.originals < most and not run.missing_tasks:
            text = f"{reading.originals} of {run.data.sizes['item']} originals have this reading"
            reading = reading.with_remark(Remark(Kind.ORIGINALS, text))
        remarked.append(reading)
    return remarked


# --- dataset --------------------------------------------------------------------------------------


def dataset_of_readings(readings: Sequence[Reading], axes: Axes) -> xr.Dataset:
    """The variables of a study with the dim `reading`."""
    count = len(readings)
    on_axes = (len(axes.names), len(ESTIMATE))

    def numbers(values: Sequence[np.ndarray | float], *shape: int) -> np.ndarray:
        return np.array(values, float).reshape(count, *shape)

    curves = numbers([reading.curve for reading in readings], len(axes.noise), len(ESTIMATE))
    at_shares = [reading.places.at_shares for reading in readings]
    half_lives = [reading.places.half_life for reading in readings]
    widths = [reading.places.width for reading in readings]
    instructions = [reading.instructions for reading in readings]
    texts = {
        "reading": [reading.label for reading in readings],
        "variable": [reading.key.variable for reading in readings],
        "level": [reading.key.level for reading in readings],
        "level_dim": [reading.key.level_dim for reading in readings],
        "probe": [variable.probe for variable in instructions],
        "model": [variable.model for variable in instructions],
        "group": [variable.group or variable.probe for variable in instructions],
        "family": [variable.family or variable.probe for variable in instructions],
        "unit": [variable.unit for variable in instructions],
        "words": [reading.long_name for reading in readings],
        "order": [variable.order or "" for variable in instructions],
        "remark": [reading.remark for reading in readings],
    }
    coordinates = {name: ("reading", np.array(column, str)) for name, column in texts.items()}
    originals = np.array([reading.originals for reading in readings], int)
    return xr.Dataset(
        {
            "curve": (("reading", "noise", "estimate"), curves),
            "place": (
                ("reading", "share", "axis", "estimate"),
                numbers(at_shares, len(SHARES), *on_axes),
            ),
            "width": (("reading", "axis", "estimate"), numbers(widths, *on_axes)),
            "start": ("reading", numbers([reading.start for reading in readings])),
            "chance": ("reading", numbers([reading.chance for reading in readings])),
            "half_life": (("reading", "axis", "estimate"), numbers(half_lives, *on_axes)),
        },
        {
            **coordinates,
            "originals": ("reading", originals),
            "guess": ("reading", numbers([reading.guess for reading in readings])),
            "share": list(SHARES),
            "estimate": list(ESTIMATE),
        },
    )
