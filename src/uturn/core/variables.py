"""Variables: what a probe measures, how its readings are read, and the coordinates of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, fields
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, StrictStr
from pydantic.dataclasses import dataclass as checked_dataclass

from uturn.core.checks import LARGEST, expect
from uturn.core.inputs import Table, plain

_NONE: Mapping[str, object] = MappingProxyType({})


class Coordinate(NamedTuple):
    """Labels along some dims of the results. One with the name of a dim determines its length."""

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: Mapping[str, object] = _NONE


Coordinates = Mapping[str, Coordinate]
"""Coordinates of results by name."""


class Axis(NamedTuple):
    """A further coordinate of the noise levels, such as the signal power.

    The attribute `clean` is the value without noise, from which `uturn.study` interpolates to the
    first level.
    """

    values: np.ndarray
    """(levels,)"""
    attributes: Mapping[str, object] = _NONE


Axes = Mapping[str, Axis]
"""Coordinates of the noise levels by name."""

_Level = Annotated[float, Field(strict=True, allow_inf_nan=False)] | StrictStr | None
# Strict, so that True is not a number.
_NOT_STORED = ("dims", "long_name", "pooled", "twin_of", "twin")
_SHARED_DIMS = ("noise", "item", "trajectory", "clone")  # all other dims are a variable's own


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Variable:
    """Dims, meaning and reading instructions of a variable that a probe measures; `uturn.study`
    needs these and the store.
    """

    dims: tuple[StrictStr, ...]
    """("noise", "item", ..). With the dim "trajectory" there is one reading for every
    reconstruction; in an experiment with several clones the dim "clone" follows it.
    """
    long_name: StrictStr
    """Description with unit, stored with the readings."""
    _: KW_ONLY
    start: _Level = None
    """Value without changes, at noise 0: a number; the name of a variable or coordinate without
    noise; "same:NAME", the probability that two originals agree in NAME; or "same:A=B", the
    share of originals whose A equals B. Without a start, no place is located on the curve.
    """
    chance: _Level = None
    """Value for independent data, as `start`; by default the value at the largest noise."""
    bounds: tuple[FiniteFloat | None, FiniteFloat | None] = (None, None)
    """Smallest and largest possible value, None for no bound. Intervals are clipped to the
    bounds; means of readings in [0, 1] have the interval of a proportion.
    """
    group: StrictStr = ""
    """Readings of one group are drawn in one panel; by default the name of the probe."""
    order: StrictStr | None = None
    """The dim whose first and last entries may swap their order, such as the layers of a
    network, from low to high level.
    """
    role: Literal["reading", "record", "changes"] = "reading"
    """A record is shown but not averaged (pictures, tokens, numbers of classes); "changes" are
    covariances of changes by distance along the last dim, or their sum over all pairs.
    """
    family: StrictStr | None = None
    """Symmetric readings of one family are tested together by Holm; by default those of the
    probe.
    """
    unit: StrictStr = ""
    """Unit of the values; of "changes", of a distance between two sites."""
    symmetric: bool = False
    """The reading is f(original, reconstruction) with f(x, y) = f(y, x). With several clones the
    probe then also reads `clone_<name>`: clone k compared by f with the other clones of the same
    noisy datum, averaged over them.
    """
    ranked: bool = False
    """The reading is a function h(x̂; y) of one reconstruction and the noisy datum. The probe
    then also reads `original_<name>`, h(x_0; y), for each trajectory, without clones
    (`uturn.ranks`).
    """
    pooled: bool = True
    """Whether a reading without the dim "trajectory" depends on all trajectories of its item, as
    a mean does. Such readings are measured again when trajectories are added.
    """
    twin_of: StrictStr = ""
    """Name of the variable that this one completes, as `clone_<name>` and `original_<name>` do;
    filled in by the experiment.
    """
    twin: Literal["", "clones", "original"] = ""
    """Which of both: compared with the other clones, or read of the original."""
    probe: StrictStr = ""
    model: StrictStr = ""  # names of the probe and of its network; filled in by the experiment
    guessed: bool = False
    """Whether the start is a guess from the readings. The study says so, and uses it only if
    they change with noise.
    """

    def instructions(self) -> Table:
        """The reading instructions that differ from the defaults, as plain data: the attribute
        `reading` of a stored array.
        """
        mine = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return {name: plain(value) for name, value in mine.items() if name not in _NOT_STORED}

    def check(self, where: str = "") -> None:
        """ValueError, after `where`, for instructions that contradict each other or name a dim
        that the variable lacks.
        """
        low, high = self.bounds
        expect(
            low is None or high is None or low < high,
            f"{where}bounds",
            self.bounds,
            "a smaller and a larger number, or None",
        )
        for name, level in (("start", self.start), ("chance", self.chance)):
            if isinstance(level, float):
                inside = (low is None or low <= level) and (high is None or level <= high)
                expect(inside, where + name, level, f"a number in its bounds {self.bounds}")
                expect(abs(level) < LARGEST, where + name, level, f"a number below {LARGEST:g}")
        own_dims = tuple(dim for dim in self.dims if dim not in _SHARED_DIMS)
        expect(
            self.order in (None, *own_dims),
            f"{where}order",
            self.order,
            f"one of its own dims {own_dims}",
        )

    @property
    def is_share(self) -> bool:
        """Whether readings lie in [0, 1], so that their mean is a proportion."""
        return self.bounds == (0.0, 1.0)
