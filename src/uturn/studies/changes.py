"""Correlations of changes at each noise level: susceptibility with its peak, correlation
function, correlation length.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from uturn.core.protocols import Variable
from uturn.measures.changes import chi_of, chi_parts, correlations, effective_number, present_pairs
from uturn.measures.estimates import with_ends
from uturn.measures.peaks import about_few, about_independent, about_peak, peak_of
from uturn.measures.readings import complete_items
from uturn.measures.scaling import correlation_length
from uturn.studies.axes import Axes
from uturn.studies.runs import missing_tasks


def changes_of(run: xr.Dataset, instructions: dict[str, Variable], axes: Axes) -> xr.Dataset:
    """chi, xi, correlation, peak, peak_at of all measured changes, along the dim `changes`;
    empty if there are none.
    """
    studied = {}
    for name, instruction in instructions.items():
        if (
            instruction.role == "changes"
            and (distance_dims := _distances(run, name))
            and not why_no_changes(run, name)
        ):
            covariance, total = run[name].rename({distance_dims[0]: "distance"}), run[f"{name}_sum"]
            readings = xr.Dataset({"change_covariance": covariance, "change_covariance_sum": total})
            # The ratios are averages over the same items at all noise levels.
            readings = readings.isel(item=complete_items(readings, map(str, readings)))
            prefix = name.removesuffix("change_covariance").removesuffix("_")
            left = run.sizes["item"] - readings.sizes["item"]
            studied[prefix or "changes"] = _of_probe(readings, axes, left).assign_coords(
                unit_of_distance=instruction.unit or "sites"
            )
    if not studied:
        return xr.Dataset()
    data = xr.concat(
        list(studied.values()),
        "changes",
        data_vars="all",
        coords="all",
        compat="override",
        join="outer",
    )
    dims = ("changes", "noise", "distance", "axis", "estimate")
    return data.assign_coords(changes=list(studied)).transpose(*dims, missing_dims="ignore")


def why_no_changes(run: xr.Dataset, name: str) -> str:
    """Why covariances of changes are not studied; "" if they are studied or have no distance
    dim.
    """
    distances, total = _distances(run, name), f"{name}_sum"
    if not distances:
        return ""
    if total not in run:
        return f"{total} is not in the run"
    complete = complete_items(run, [name, total])
    if not complete.all() and (missing_tasks(run) or not complete.any()):
        return f"some of {total} are missing"
    values = run[distances[0]].values  # 0, 1, .. if the dim has no coordinate
    sound = (
        values.dtype.kind in "biuf" and len(values) and values[0] >= 0 and np.isfinite(values).all()
    )
    return (
        "" if sound and (np.diff(values) >= 0).all() else "its distances are no increasing numbers"
    )


def _distances(run: xr.Dataset, name: str) -> list[str]:
    """The distance dim of covariances, in a list; empty for sums over all pairs."""
    dims = [str(dim) for dim in run[name].dims if dim not in ("noise", "item")]
    return dims if len(dims) == 1 else []


def _of_probe(run: xr.Dataset, axes: Axes, left: int) -> xr.Dataset:
    """The numbers of one probe; `left` items of the run are left out."""
    # Log-SNR is infinite at its ends, so the peak is located on the angle by which it is
    # interpolated.
    x = axes.noise if axes.angle is None else axes.angle
    x = x[len(x) - run.sizes["noise"] :]
    parts = chi_parts(run)
    chi = chi_of(parts)
    number = effective_number(parts.isel(part=1))
    located = peak_of(parts.assign_coords(noise=x))
    remarks = (
        [f"{left} of {run.sizes['item'] + left} originals are left out: U-turns are missing"]
        if left
        else []
    )
    remarks += about_peak(located, run.noise.values, axes.most)
    covariance, present = run["change_covariance"], None
    # Texts of different lengths, sites on a line.
    if "length" in run.coords and run["length"].dims == ("item",):
        pairs = present_pairs(covariance)
        # Larger distances have fewer pairs of sites, so their mean fluctuates more.
        mean = pairs.mean("item") * (pairs.sizes["distance"] - pairs.distance)
        near = (
            np.flatnonzero((pairs.distance == 0) | (mean >= mean[1:2].max() / 2))
            if mean.size > 1
            else [0]
        )
        covariance, present = covariance.isel(distance=near), pairs.isel(distance=near)
    curves = correlations(covariance.to_dataset(name="change_covariance"), present=present)
    remarks += about_few(number, chi, curves.n_contributing.values, run.noise.values)
    lengths = np.full((run.sizes["noise"], 3), np.nan)
    if covariance.sizes["distance"] > 3:
        with np.errstate(invalid="ignore"):
            lengths = with_ends(correlation_length(covariance, present=present), "length")
        remarks += about_independent(np.isnan(lengths[:, 0]) & (number > 0), run.noise.values)
    else:
        remarks.append("too few distances for a correlation length")
    place, height = (located.place, located.height) if located.inside else np.full((2, 3), np.nan)
    data = {
        "chi": (("noise", "estimate"), chi),
        "n_eff": ("noise", number),
        "xi": (("noise", "estimate"), lengths),
        "correlation": (("noise", "distance", "estimate"), with_ends(curves, "correlation")),
        "of_peak": ("noise", located.levels.astype(float)),
    }
    levels = xr.Dataset(
        data, {"distance": covariance.distance.values, "noise": run.noise.values}
    ).reindex(noise=axes.noise)
    return levels.assign(
        peak=("estimate", np.array(height)),
        peak_at=(("axis", "estimate"), axes.at(np.interp(place, x, run.noise.values))),
        peak_cross_fitted=located.cross_fitted if located.inside else np.nan,
        plateau=float(located.plateau),
        largest=(
            float(located.largest + len(axes.noise) - run.sizes["noise"])
            if located.largest >= 0
            else np.nan
        ),
    ).assign_coords(changes_remark="; ".join(remarks))
