"""Calibration of a run of images with clones: are reconstructions draws from the posterior of the images they come from?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.measures.calibration import calibration

if TYPE_CHECKING:
    import xarray as xr


def gaps_of(run: xr.Dataset, prefix: str, noise: np.ndarray) -> dict[str, Any]:
    """Gaps E f(x0, x̂) - E f(x̂, x̂') of a classifier: predicted class and similarity of the layers, in one family of tests.

    `gap_class` (noise, estimate), `gap_layer` (noise, network_layer, estimate) with 95 % intervals, and the p-values by Holm
    `gap_class_p`, `gap_layer_p`; NaN at noise levels that were added to the measured ones, and `gap_class` of an encoder. Empty
    for fewer than two clones or items.
    """
    if run.sizes.get("clone", 1) < 2 or run.sizes["item"] < 2:
        return {}
    if f"{prefix}same_class" in run:
        found = calibration(run, [f"{prefix}same_class", f"{prefix}similarity"]).reindex(noise=noise)
        columns = {name: found[name].values for name in ("gap", "low", "high", "p_holm", "visible")}
    else:
        found = calibration(run, f"{prefix}similarity").reindex(noise=noise)
        blank = np.full((len(noise), 1), np.nan)
        columns = {name: np.hstack([blank, found[name]]) for name in ("gap", "low", "high", "p_holm", "visible")}
    values = np.stack([columns["gap"], columns["low"], columns["high"]], axis=-1)
    return {
        "gap_class": (("noise", "estimate"), values[:, 0]),
        "gap_layer": (("noise", "network_layer", "estimate"), values[:, 1:]),
        "gap_class_p": ("noise", columns["p_holm"][:, 0]),
        "gap_layer_p": (("noise", "network_layer"), columns["p_holm"][:, 1:]),
        "gap_class_visible": ("noise", columns["visible"][:, 0]),
        "gap_layer_visible": (("noise", "network_layer"), columns["visible"][:, 1:]),
        "calibration_level": found.attrs["level"],
    }


def gap_rows(one: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Same class, if there are classes, then the layers: name, and its gap (noise, estimate), p (noise), visible (noise)."""
    if one.has_classes:
        names = {"gap_class": "gap", "gap_class_p": "p", "gap_class_visible": "visible"}
        yield "same class", one[list(names)].rename(names)
    names = {"gap_layer": "gap", "gap_layer_p": "p", "gap_layer_visible": "visible"}
    for k, layer in enumerate(one.layer.values):
        if str(layer):
            yield str(layer), one[list(names)].isel(network_layer=k).rename(names)
