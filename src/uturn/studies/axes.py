"""The noise axes of a run: its noise levels on all their coordinates, and conversion between
axes by interpolation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import expect
from uturn.studies.runs import label
from uturn.studies.schema import NAMES

_CLEAN = {"step": 0.0, "effective_epsilon": 0.0}
"""Values without noise of coordinates that lack the attribute `clean`."""
_OF_ANGLE = {"abar": "signal power abar", "log_snr": "log-SNR (nats)", "sigma": "sigma"}
"""Axes that follow from the angle, in words."""
_SAID_BY = {"timestep": "step", **dict.fromkeys(_OF_ANGLE, "log_snr")}
"""Coordinates that are not axes if the run has another one, by name: {coordinate: the other}."""


@dataclass(frozen=True, eq=False)
class Axes:
    """Noise levels of a run with noise 0, on all its axes.

    Between levels, all axes are interpolated linearly in the noise. If the run has log-SNR, then
    abar, log-SNR and sigma are interpolated in the angle with tan(angle) = sigma, since log-SNR and
    sigma are infinite at the ends.
    """

    values: dict[str, np.ndarray]
    """Noise levels (noise,) on each axis, "noise" first. A coordinate whose name is taken by a part
    of a study is the axis `<name>_of_noise`.
    """
    words: dict[str, str]
    """Long names of the axes, with units."""
    angle: np.ndarray | None
    """Angle (noise,) from 0 without noise to pi/2 without signal; None without log-SNR."""
    most: float
    """Largest possible noise, perhaps infinite."""

    @classmethod
    def of(cls, run: xr.Dataset) -> Axes:
        """The axes of a run with increasing noise. The value of a coordinate without noise is its
        attribute `clean`.
        """
        measured = run.noise.values.astype(float)
        added = int(measured[0] != 0)  # not `isclose`: 1e-9 m is a level
        values = {"noise": np.r_[np.zeros(added), measured]}
        words = {"noise": axis_words(run)}
        for name, coordinate in _further_axes(run).items():
            axis = name
            if name in NAMES:
                axis = f"{name}_of_noise"
            clean = _number_of(coordinate, "clean", _CLEAN.get(name, np.nan))
            values[axis] = np.r_[np.full(added, clean), coordinate.values]
            words[axis] = str(coordinate.attrs.get("long_name", name))
            if coordinate.attrs.get("units"):
                words[axis] += f" ({coordinate.attrs['units']})"
        angle = None
        if "log_snr" in run.coords:
            log_snr = np.r_[np.full(added, np.inf), run.log_snr.values]
            with np.errstate(over="ignore"):
                angle = np.arctan(np.exp(-log_snr / 2))
            values |= cls._of_angle(angle)
            words |= _OF_ANGLE
        words = {axis: label(text) for axis, text in words.items()}
        usual_most = np.inf
        if measured[-1] <= 1:
            usual_most = 1.0
        most = _number_of(run.noise, "max", usual_most)
        return cls(values, words, angle, most)

    @cached_property
    def noise(self) -> np.ndarray:
        """Noise levels (noise,), increasing from 0; the last one may be infinite."""
        return self.values["noise"]

    @cached_property
    def is_finite(self) -> np.ndarray:
        """Which noise levels are finite, bool (noise,). Places lie between these."""
        return np.asarray(np.isfinite(self.noise))

    @cached_property
    def finite_noise(self) -> np.ndarray:
        """The finite noise levels, increasing from 0."""
        return np.asarray(self.noise[self.is_finite])

    @cached_property
    def names(self) -> list[str]:
        return list(self.values)

    def coordinates(self, run: xr.Dataset) -> xr.Dataset:
        """The noise levels on all axes, as coordinates of a study."""
        coords = {"noise": xr.Variable("noise", self.noise, run.noise.attrs)}
        for name in self.names[1:]:
            coords[name] = xr.Variable("noise", self.values[name], {"long_name": self.words[name]})
        return xr.Dataset(coords={**coords, "axis": self.names})

    @staticmethod
    def _of_angle(angle: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.where(angle >= np.pi / 2, np.inf, np.tan(angle))
        with np.errstate(divide="ignore"):
            return {"abar": np.cos(angle) ** 2, "log_snr": -2 * np.log(sigma), "sigma": sigma}

    def convert(self, noise: np.ndarray) -> np.ndarray:
        """Noises (n,) on all axes, (axis, n); NaN stays NaN."""
        rows = {name: np.interp(noise, self.noise, values) for name, values in self.values.items()}
        rows["noise"] = noise
        if self.angle is not None:
            rows |= self._of_angle(np.interp(noise, self.noise, self.angle))
        return np.stack([np.where(np.isnan(noise), np.nan, rows[name]) for name in self.names])

    def convert_interval(self, estimate: np.ndarray) -> np.ndarray:
        """A noise and the ends of its interval (estimate,) on all axes, (axis, estimate)."""
        rows = self.convert(estimate)
        rows[:, 1:].sort(axis=1)  # abar and log-SNR decrease with noise
        return rows


def _further_axes(run: xr.Dataset) -> dict[str, xr.DataArray]:
    """The coordinates of the noise levels that are axes beside the noise, by name."""
    coordinates = {}
    # Stores list coordinates in arbitrary order.
    for name in sorted(map(str, run.coords)):
        is_noise = name in ("noise", "t_over_T") or _SAID_BY.get(name) in run.coords
        coordinate = run.coords[name]
        is_number = coordinate.dims == ("noise",) and coordinate.dtype.kind in "fiu"
        if is_number and not is_noise:
            coordinates[name] = coordinate
    return coordinates


def _number_of(coordinate: xr.DataArray, key: str, default: float) -> float:
    """An attribute of a coordinate that is a number, or a ValueError."""
    value = coordinate.attrs.get(key, default)
    is_number = isinstance(value, int | float | np.number)
    where = f"the attribute {key} of the coordinate {coordinate.name}"
    expect(is_number, where, value, "a number; copy the store again")
    return float(value)


def is_geometric(levels: ArrayLike) -> bool:
    """Whether levels are drawn on a logarithmic axis: a factor of ten or more apart, in steps more
    even as ratios.

    >>> is_geometric([0, 0.01, 0.1, 1]), is_geometric([0.1, 0.2, 0.4, 0.8]), is_geometric([0.01, 0.1, 0.2, 0.3, 0.4, 0.5])
    (True, False, False)
    """
    values = np.asarray(levels, float)
    values = values[(values > 0) & np.isfinite(values)]
    if len(values) < 3 or values[-1] < 10 * values[0]:
        return False
    steps = np.diff(values)
    ratios = np.diff(np.log(values))
    return bool(ratios.max() / ratios.min() < steps.max() / steps.min())


def texts_of(levels: Iterable[float], form: str) -> list[str]:
    """Noise levels as texts, in full if two different ones were alike in this format.

    >>> texts_of([0.5, 1e-5], ".4f"), texts_of([2e-5, 1e-5], ".4f")
    (['0.5000', '0.0000'], ['2e-05', '1e-05'])
    """
    numbers = [float(level) for level in levels]
    texts = [format(number, form) for number in numbers]
    if len(set(texts)) != len(set(numbers)):
        return list(map(repr, numbers))
    return texts


def axis_words(data: xr.Dataset) -> str:
    """The long name of the noise axis of a run or a study."""
    return label(data.noise.attrs.get("long_name", "noise"))


def check_unit(name: str, unit: str, first: str) -> None:
    """ValueError for a reading of another unit than in the first run; "" is an unknown one."""
    fits = not unit or not first or unit == first
    expect(fits, f"unit of {name}", unit, f"{first!r}, as in the first run; convert one of them")


def common_axis(studies: Sequence[xr.Dataset]) -> str:
    """`noise` if all studies have the same unit of noise, otherwise a shared axis; ValueError if
    there is none.

    ValueError also for readings and distances of one name in several units, whose curves would
    stand in one chart.
    """
    _check_units(studies, "reading", "unit")
    _check_units(studies, "changes", "unit_of_distance")
    words = list(dict.fromkeys(map(axis_words, studies)))
    if len(words) == 1:
        return "noise"
    axes = [str(axis) for axis in studies[0].axis.values[1:]]
    shared = [axis for axis in axes if all(axis in study.axis.values for study in studies)]
    expect(shared, "noise of the runs", words, "an axis in common; draw them one by one")

    def number_without_start(axis: str) -> int:
        return sum(np.isnan(study[axis].values[0]) for study in studies)

    # An axis that has a value without noise is preferred.
    return min(shared, key=number_without_start)


def _check_units(studies: Sequence[xr.Dataset], dim: str, key: str) -> None:
    """ValueError if labels along a dim have several units; the first known unit counts."""
    units: dict[str, str] = {}
    for study in studies:
        if key not in study.coords:
            continue
        pairs = zip(study[dim].values.tolist(), study[key].values.tolist(), strict=True)
        for name, unit in pairs:
            check_unit(name, unit, units.get(name, ""))
            units[name] = units.get(name) or unit
