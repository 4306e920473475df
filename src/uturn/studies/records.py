"""What a run kept to be looked at: images and texts of its first items, beside their originals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from uturn.studies.analysis import by_noise
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.reading import instructions_of
from uturn.studies.runs import kept_images, kept_texts, originals
from uturn.studies.texts import shown_texts

MOST_SHOWN = 200  # originals in a page
_LEAST_SHOWN, _MOST_SHOWN_BYTES = 8, 2**27  # originals in the records, and their images in memory


def records_of(run: xr.Dataset, source: Any = None) -> xr.Dataset:
    """The pictures and the texts that a run kept, for the page and the figures; empty if it kept none.

    Parameters
    ----------
    run : Dataset of `uturn.run`
    source : source of the run, optional
        For originals of texts; by default it is built from the spec of the run, if that needs no code of others.

    Returns
    -------
    Dataset
        Of images `original` (item, channel, row, column), `image` (shown_noise, item, channel, row, column) and
        `image_same_class` (shown_noise, item), whether the class was kept. Of texts see `uturn.studies.texts.shown_texts`.
    """
    run = by_noise(run)
    return _pictures(run).merge(shown_texts(run, source) if kept_texts(run) else xr.Dataset())


def _pictures(run: xr.Dataset) -> xr.Dataset:
    """Originals and reconstructions of some items: all whose images were kept, or a sample of them.

    The class is that of the first reading that compares classes; without one, no class is lost.
    """
    kept = kept_images(run)
    if not kept:
        return xr.Dataset()
    judges = [name for name, one in instructions_of(run).items() if one.group == "class" and one.symmetric]
    noisy = np.flatnonzero(~np.isclose(run.noise.values, 0))
    columns = [int(noisy[k]) for k in evenly_spaced(len(noisy), 10)] if len(noisy) else []
    of_each = run.image.dtype.itemsize * math.prod(run.image.shape[-3:]) * (len(columns) + 1)
    items = sample(kept, min(MOST_SHOWN, max(_LEAST_SHOWN, _MOST_SHOWN_BYTES // of_each)))
    some = run.isel(item=items, trajectory=0, clone=0, missing_dims="ignore")
    images = some.image.isel(noise=columns).load()
    before, names = originals(run, items)
    same = some[judges[0]].isel(noise=columns).values if judges else np.ones(images.shape[:2])
    return xr.Dataset(
        {
            "original": (("item", "channel", "row", "column"), before),
            "image": (("shown_noise", "item", "channel", "row", "column"), images.values),
            "image_same_class": (("shown_noise", "item"), same, {"judge": judges[0] if judges else ""}),
        },
        coords={
            "shown_noise": images.noise.values,
            "item": items,
            "item_name": ("item", np.array(names, str)),
        },
        attrs={"kept": kept},
    )


def sample(count: int, most: int = MOST_SHOWN) -> np.ndarray:
    """Numbers of the originals that are shown: all, or `most` of them, drawn without replacement with seed 0."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
