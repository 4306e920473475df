"""What is drawn: originals, measurements and clones of a few items, for the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.runs import NAMES as NAMES_OF_ITEMS
from uturn.studies.runs import item_names, kept_images
from uturn.tools.inverse.judged import Judged
from uturn.tools.inverse.section import FORMAT

_MOST_BYTES = 2**27
"""Memory of the pictures of a page."""
_MOST_LEVELS = 10
"""Strengths with pictures."""
_LEAST_ITEMS = 4


def pictures(runs: Sequence[Judged]) -> xr.Dataset:
    """Originals, measurements and clones of trajectory 0 of the items with stored images, by run.

    `original` (run, item, channel, row, column), `observation` (run, noise, item, ..), `image`
    (run, noise, item, clone, ..). Without stored images, only the names of the runs.
    """
    with_images = [judged for judged in runs if kept_images(judged.readings)]
    shown = with_images or list(runs)
    first = shown[0].readings
    named = xr.Dataset(
        coords={
            "run": range(len(shown)),
            "name": ("run", [judged.run.name for judged in shown]),
            "sampler": ("run", [judged.run.sampler for judged in shown]),
            "data": ("run", [judged.run.data for judged in shown]),
        },
        attrs={"format": FORMAT, "items": first.sizes["item"]},
    )
    if not with_images:
        return named.assign_coords(noise=first.noise)
    levels = evenly_spaced(first.sizes["noise"], _MOST_LEVELS)
    bytes_of_item = first.image.isel(item=0, noise=0).nbytes * len(levels) * len(shown)
    most_items = max(_LEAST_ITEMS, _MOST_BYTES // bytes_of_item)
    items = np.arange(min(kept_images(first), most_items))
    images = [_images(judged, levels, items) for judged in shown]
    whole = xr.concat(images, "run", combine_attrs="drop").set_coords("item_name")
    return named.merge(whole, combine_attrs="override")


def _images(judged: Judged, levels: Sequence[int], items: np.ndarray) -> xr.Dataset:
    """The images of a run, with the originals and the names of the items."""
    dims = ("item", "channel", "row", "column")
    stored = judged.readings[["image", "observation"]]
    stored = stored.isel(noise=levels, item=items, trajectory=0, drop=True)
    stored = stored.transpose("noise", "item", "clone", *dims[1:], missing_dims="ignore")
    stored = stored.drop_vars(["label", *NAMES_OF_ITEMS], errors="ignore")
    experiment = judged.run.experiment
    source = experiment.parts.source
    blocks = source.blocks(items, experiment.seed, experiment.items)
    originals = np.concatenate([block.data for block in blocks])
    classes = dict(enumerate(source.class_names() or []))
    names = item_names(judged.readings, items, classes)
    return stored.assign(original=(dims, originals), item_name=("item", np.array(names, str)))
