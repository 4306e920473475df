"""The noise axes of a run: its noise levels on all their coordinates, and conversion between
axes by interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.studies.runs import label

_ANGLES = ("abar", "log_snr", "sigma")
# Values without noise, for stores that lack the attribute `clean`.
_CLEAN = {"step": 0.0, "effective_epsilon": 0.0}
# Coordinates that are no axes of their own beside another.
_SAID_BY = {"timestep": "step", **dict.fromkeys(_ANGLES, "log_snr")}
_OF_STUDIES = {  # names in a study that are not axes
    "reading", "share", "axis", "estimate", "series", "changes", "distance", "curve", "place", "half_life", "width",
    "start", "chance", "inversion", "chi", "xi", "peak", "peak_at", "correlation", "gap", "gap_p", "gap_visible",
    "gap_level", "variable", "level", "probe", "model", "group", "family", "unit", "words", "order", "remark", "first",
    "last", "series_remark", "changes_remark", "unit_of_distance", "n_eff", "of_peak", "peak_cross_fitted", "plateau",
    "largest", "originals", "theory", "chi_theory", "line", "value", "low", "high", "gap_low", "gap_high",
}  # fmt: skip


class Axes:
    """Noise levels of a run with noise 0, on all its axes.

    `noise` (noise,), increasing from 0, the last one perhaps infinite, is the first axis.
    Coordinates of the noise levels follow; between levels they are interpolated linearly. Their
    value without noise is the attribute `clean` of the coordinate. A coordinate whose name is taken
    by a part of a study is renamed to `<name>_of_noise`. If the run has log-SNR, then abar, log-SNR
    and sigma are interpolated in the angle with tan(angle) = sigma, since log-SNR and sigma are
    infinite at the ends. `values`, `words`: arrays (noise,) and long names by axis. `most`: largest
    possible noise.
    """

    def __init__(self, run: xr.Dataset) -> None:
        measured = run.noise.values.astype(float)
        added = 0 if measured[0] == 0 else 1  # not `isclose`: 1e-9 m is a level
        self.noise = np.r_[np.zeros(added), measured]
        self.most = _number_of(run.noise, "max", 1.0 if measured[-1] <= 1 else np.inf)
        self.values = {"noise": self.noise}
        self.words = {"noise": axis_words(run)}
        self.angle = None
        # Stores list coordinates in arbitrary order.
        for name, coordinate in sorted(run.coords.items(), key=lambda entry: str(entry[0])):
            is_said = name in ("noise", "t_over_T") or _SAID_BY.get(str(name)) in run.coords
            if is_said or coordinate.dims != ("noise",) or coordinate.dtype.kind not in "fiu":
                continue
            clean = _number_of(coordinate, "clean", _CLEAN.get(str(name), np.nan))
            axis = f"{name}_of_noise" if name in _OF_STUDIES else str(name)
            self.values[axis] = np.r_[np.full(added, clean), coordinate.values]
            units = f" ({coordinate.attrs['units']})" if coordinate.attrs.get("units") else ""
            self.words[axis] = f"{coordinate.attrs.get('long_name', name)}{units}"
        if "log_snr" in run.coords:
            with np.errstate(over="ignore"):
                sigma = np.exp(-np.r_[np.full(added, np.inf), run.log_snr.values] / 2)
            self.angle = np.arctan(sigma)
            self.values |= self._of_angle(self.angle)
            self.words |= {
                "abar": "signal power abar",
                "log_snr": "log-SNR (nats)",
                "sigma": "sigma",
            }
        self.words = {axis: label(words) for axis, words in self.words.items()}
        self.names = list(self.values)

    def coordinates(self, run: xr.Dataset) -> xr.Dataset:
        """The noise levels on all axes, as coordinates of a study."""
        others = {
            name: ("noise", values, {"long_name": self.words[name]})
            for name, values in self.values.items()
            if name != "noise"
        }
        return xr.Dataset(
            coords={"noise": ("noise", self.noise, run.noise.attrs), **others, "axis": self.names}
        )

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

    def at(self, estimate: np.ndarray) -> np.ndarray:
        """A noise and the ends of its interval (estimate,) on all axes: array (axis, estimate)."""
        rows = self.convert(estimate)
        rows[:, 1:].sort(axis=1)  # abar and log-SNR decrease with noise
        return rows


def _number_of(coordinate: xr.DataArray, key: str, default: float) -> float:
    """An attribute of a coordinate that is a number, or a ValueError."""
    value = coordinate.attrs.get(key, default)
    is_number = isinstance(value, int | float | np.number)
    expect(
        is_number,
        f"the attribute {key} of the coordinate {coordinate.name}",
        value,
        "a number; copy the store again",
    )
    return float(value)


def is_geometric(levels: Any) -> bool:
    """Whether levels are drawn on a logarithmic axis: a factor of ten or more apart, in steps more
    even as ratios.

    >>> is_geometric([0, 0.01, 0.1, 1]), is_geometric([0.1, 0.2, 0.4, 0.8]), is_geometric([0.01, 0.1, 0.2, 0.3, 0.4, 0.5])
    (True, False, False)
    """
    levels = np.asarray(levels, float)
    levels = levels[(levels > 0) & np.isfinite(levels)]
    if len(levels) < 3 or levels[-1] < 10 * levels[0]:
        return False
    steps, ratios = np.diff(levels), np.diff(np.log(levels))
    return bool(ratios.max() / ratios.min() < steps.max() / steps.min())


def texts_of(levels: Any, form: str) -> list[str]:
    """Noise levels as texts, in full if two different ones were alike in this format.

    >>> texts_of([0.5, 1e-5], ".4f"), texts_of([2e-5, 1e-5], ".4f")
    (['0.5000', '0.0000'], ['2e-05', '1e-05'])
    """
    levels = [float(level) for level in levels]
    texts = [format(level, form) for level in levels]
    return texts if len(set(texts)) == len(set(levels)) else list(map(repr, levels))


def axis_words(data: xr.Dataset) -> str:
    """The long name of the noise axis of a run or a study."""
    return label(data.noise.attrs.get("long_name", "noise"))


def check_unit(name: str, unit: str, first: str) -> None:
    """ValueError for a reading of another unit than in the first run; "" is an unknown one."""
    known = not unit or not first or unit == first
    expect(known, f"unit of {name}", unit, f"{first!r}, as in the first run; convert one of them")


def common_axis(studies: Sequence[xr.Dataset]) -> str:
    """`noise` if all studies have the same unit of noise, otherwise a shared axis; ValueError if
    there is none.

    ValueError also for readings and distances of one name in several units, whose curves would
    stand in one chart.
    """
    for dim, key in (("reading", "unit"), ("changes", "unit_of_distance")):
        units: dict[str, str] = {}
        for study in (study for study in studies if key in study.coords):
            for name, unit in zip(
                study[dim].values.tolist(), study[key].values.tolist(), strict=True
            ):
                check_unit(name, unit, units.setdefault(name, "") or unit)
                units[name] = units[name] or unit
    words = list(dict.fromkeys(map(axis_words, studies)))
    if len(words) == 1:
        return "noise"
    shared = [
        str(axis)
        for axis in studies[0].axis.values[1:]
        if all(axis in study.axis.values for study in studies)
    ]
    expect(shared, "noise of the runs", words, "an axis in common; draw them one by one")
    # An axis that has a value without noise is preferred.
    return min(shared, key=lambda axis: sum(np.isnan(study[axis].values[0]) for study in studies))
