"""Correlations of changes at each noise level: susceptibility with its peak, correlation
function, correlation length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.measures.changes import chi_of, chi_parts, correlations, effective_number, present_pairs
from uturn.measures.estimates import Estimate, with_ends
from uturn.measures.peaks import Peak, about_few, about_independent, about_peak, peak_of
from uturn.measures.readings import complete_items
from uturn.measures.scaling import correlation_length
from uturn.studies.axes import Axes
from uturn.studies.checked_run import Run
from uturn.studies.remarks import Kind, Remark, joined

_COVARIANCE = "change_covariance"
_LEAST_DISTANCES = 4
"""Distances that a correlation length needs."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The changes of sites that one probe has measured."""

    name: str
    """The prefix of the variable `<name>_change_covariance`; "changes" if it has none."""
    unit: str
    """Unit of a distance between two sites."""
    noise: np.ndarray
    """The measured levels (noise,)."""
    distance: np.ndarray
    """(distance,): distances between two sites, increasing."""
    chi: np.ndarray
    """(noise, estimate): susceptibility, the number of sites that change together."""
    effective_number: np.ndarray
    """(noise,): number of originals that decide chi."""
    correlation_length: np.ndarray
    """(noise, estimate), in the unit of distance."""
    correlation: np.ndarray
    """(noise, distance, estimate): C(r)/C(0)."""
    peak: Peak
    """The peak of chi, on the axis on which it is located (`_peak_axis`)."""
    peak_at: np.ndarray
    """(axis, estimate): noise of the peak; NaN if it lies at an end of the measured levels."""
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, eq=False)
class _Covariance:
    """A variable with covariances of changes by distance."""

    name: str
    distance_dim: str
    reason: str
    """Why it is not studied; "" if it is."""

    @property
    def total(self) -> str:
        """The variable with the sum of the covariances over all pairs."""
        return f"{self.name}_sum"


def changes_of(run: Run) -> tuple[list[Changes], dict[str, str]]:
    """The numbers of all covariances of changes, and why others are not studied, by variable."""
    studied = []
    reasons = {}
    for covariance in _covariances(run):
        if covariance.reason:
            reasons[covariance.name] = covariance.reason
        else:
            studied.append(_changes(run, covariance))
    return studied, reasons


def _covariances(run: Run) -> Iterator[_Covariance]:
    """The covariances by distance; sums over all pairs have no distance."""
    for name, instructions in run.instructions.items():
        dims = [str(dim) for dim in run.data[name].dims if dim not in ("noise", "item")]
        if instructions.role == "changes" and len(dims) == 1:
            yield _Covariance(name, dims[0], _why_not_studied(run, name, dims[0]))


def _why_not_studied(run: Run, name: str, distance_dim: str) -> str:
    """Why covariances of changes are not studied; "" if they are."""
    total = f"{name}_sum"
    if total not in run.data:
        return f"{total} is not in the run"
    is_complete = complete_items(run.data, [name, total])
    if not is_complete.all() and (run.missing_tasks or not is_complete.any()):
        return f"some of {total} are missing"
    values = run.data[distance_dim].values  # 0, 1, .. if the dim has no coordinate
    are_numbers = values.dtype.kind in "biuf" and len(values) > 0
    are_numbers = are_numbers and values[0] >= 0 and np.isfinite(values).all()
    if not are_numbers or (np.diff(values) < 0).any():
        return "its distances are not increasing numbers"
    return ""


def _changes(run: Run, variable: _Covariance) -> Changes:
    """The numbers of one probe, from the items that have readings at all noise levels: ratios are
    averages over the same items everywhere.
    """
    covariance = run.data[variable.name].rename({variable.distance_dim: "distance"})
    total = run.data[variable.total]
    readings = xr.Dataset({_COVARIANCE: covariance, f"{_COVARIANCE}_sum": total})
    is_complete = complete_items(readings, map(str, readings))
    readings = readings.isel(item=is_complete)
    noise = readings.noise.values

    parts = chi_parts(readings)
    chi = chi_of(parts)
    number = effective_number(parts.isel(part=1))
    peak_axis = _peak_axis(run.axes, len(noise))
    peak = peak_of(parts.assign_coords(noise=peak_axis))
    place = _inside(peak, peak.place)

    covariance, present = _near(readings)
    curves = correlations(covariance.to_dataset(name=_COVARIANCE), present=present)
    lengths = np.full((len(noise), 3), np.nan)
    has_lengths = covariance.sizes["distance"] >= _LEAST_DISTANCES
    if has_lengths:
        with np.errstate(invalid="ignore"):
            lengths = with_ends(correlation_length(covariance, present=present), "length")

    remarks = []
    incomplete = int((~is_complete).sum())
    if incomplete:
        counted = f"{incomplete} of {len(is_complete)} originals"
        remarks.append(Remark(Kind.MISSING, f"{counted} are left out: U-turns are missing"))
    remarks += [Remark(Kind.PLACE, text) for text in about_peak(peak, noise, run.axes.most)]
    contributing = curves.n_contributing.values
    on_few = about_few(number, chi, contributing, noise)
    remarks += [Remark(Kind.INTERVAL, text) for text in on_few]
    if has_lengths:
        independent = about_independent(np.isnan(lengths[:, 0]) & (number > 0), noise)
        remarks += [Remark(Kind.STUDY, text) for text in independent]
    else:
        remarks.append(Remark(Kind.STUDY, "too few distances for a correlation length"))
    return Changes(
        name=variable.name.removesuffix(_COVARIANCE).removesuffix("_") or "changes",
        unit=run.instructions[variable.name].unit or "sites",
        noise=noise,
        distance=covariance.distance.values,
        chi=chi,
        effective_number=number,
        correlation_length=lengths,
        correlation=with_ends(curves, "correlation"),
        peak=peak,
        peak_at=run.axes.convert_interval(np.interp(place, peak_axis, noise)),
        remarks=tuple(remarks),
    )


def _inside(peak: Peak, estimate: Estimate) -> np.ndarray:
    """A number of a peak, (estimate,); NaN if the peak lies at an end of the measured levels."""
    if not peak.inside:
        return np.full(3, np.nan)
    return np.array(estimate)


def _peak_axis(axes: Axes, count: int) -> np.ndarray:
    """The axis of the `count` measured levels on which the peak is located: the angle if the run
    has one, since log-SNR is infinite at its ends.
    """
    positions = axes.noise
    if axes.angle is not None:
        positions = axes.angle
    return positions[len(positions) - count :]


def _near(readings: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray | None]:
    """The covariances at the distances that are used, and the share of pairs of sites there; None
    if all items have all sites.

    Texts of different lengths have fewer pairs at larger distances, whose mean fluctuates more.
    Distances with less than half as many pairs as distance 1 are left out.
    """
    covariance = readings[_COVARIANCE]
    if "length" not in readings.coords or readings["length"].dims != ("item",):
        return covariance, None
    pairs = present_pairs(covariance)
    number = pairs.mean("item") * (pairs.sizes["distance"] - pairs.distance)
    chosen_distances = np.zeros(1, int)
    if number.size > 1:
        has_pairs = number >= number[1:2].max() / 2
        chosen_distances = np.flatnonzero((pairs.distance == 0) | has_pairs)
    return covariance.isel(distance=chosen_distances), pairs.isel(distance=chosen_distances)


def dataset_of_changes(changes: Sequence[Changes], axes: Axes) -> xr.Dataset:
    """The variables of a study with the dim `changes`; empty if there are none."""
    if not changes:
        return xr.Dataset()
    parts = [_dataset(entry, axes) for entry in changes]
    data = xr.concat(
        parts, "changes", data_vars="all", coords="all", compat="override", join="outer"
    )
    data = data.assign_coords(changes=[entry.name for entry in changes])
    dims = ("changes", "noise", "distance", "axis", "estimate")
    return data.transpose(*dims, missing_dims="ignore")


def _dataset(changes: Changes, axes: Axes) -> xr.Dataset:
    """The numbers of one probe at all noise levels of the axes, NaN where none is measured."""
    peak = changes.peak
    added = len(axes.noise) - len(changes.noise)
    levels = xr.Dataset(
        {
            "chi": (("noise", "estimate"), changes.chi),
            "n_eff": ("noise", changes.effective_number),
            "xi": (("noise", "estimate"), changes.correlation_length),
            "correlation": (("noise", "distance", "estimate"), changes.correlation),
            "of_peak": ("noise", peak.levels.astype(float)),
        },
        {"distance": changes.distance, "noise": changes.noise},
    ).reindex(noise=axes.noise)
    numbers = {
        "peak": ("estimate", _inside(peak, peak.height)),
        "peak_at": (("axis", "estimate"), changes.peak_at),
        "peak_cross_fitted": peak.cross_fitted if peak.inside else np.nan,
        "plateau": float(peak.plateau),
        "largest": float(peak.largest + added) if peak.largest >= 0 else np.nan,
    }
    return levels.assign(numbers).assign_coords(
        changes_remark=joined(changes.remarks), unit_of_distance=changes.unit
    )
