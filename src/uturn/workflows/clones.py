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
    `gap_class_p`, `gap_layer_p`; NaN at noise levels that were added to the measured ones. Empty for fewer than two clones or
    items.
    """
    if run.sizes.get("clone", 1) < 2 or run.sizes["item"] < 2:
        return {}
    found = calibration(run, [f"{prefix}same_class", f"{prefix}similarity"]).reindex(noise=noise)
    values = np.stack([found.gap, found.low, found.high], axis=-1)
    return {
        "gap_class": (("noise", "estimate"), values[:, 0]),
        "gap_layer": (("noise", "network_layer", "estimate"), values[:, 1:]),
        "gap_class_p": ("noise", found.p_holm.values[:, 0]),
        "gap_layer_p": (("noise", "network_layer"), found.p_holm.values[:, 1:]),
        "gap_class_visible": ("noise", found.visible.values[:, 0]),
        "gap_layer_visible": (("noise", "network_layer"), found.visible.values[:, 1:]),
        "calibration_level": found.attrs["level"],
    }


def gap_rows(one: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Same class, then the layers of one classifier: name, and its gap (noise, estimate), p (noise), visible (noise)."""
    names = {"gap_class": "gap", "gap_class_p": "p", "gap_class_visible": "visible"}
    yield "same class", one[list(names)].rename(names)
    names = {"gap_layer": "gap", "gap_layer_p": "p", "gap_layer_visible": "visible"}
    for k, layer in enumerate(one.layer.values):
        if str(layer):
            yield str(layer), one[list(names)].isel(network_layer=k).rename(names)
