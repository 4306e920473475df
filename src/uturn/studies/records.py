"""Stored images and texts of the first items of a run, with their originals, for display."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.imports import is_import_path
from uturn.core.spec import build
from uturn.studies.analysis import by_noise
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.reading import instructions_of
from uturn.studies.runs import kept_images, kept_texts, originals, stored_spec

MOST_SHOWN = 200  # largest number of originals in a page
_LEAST_SHOWN, _MOST_SHOWN_BYTES = 8, 2**27  # least number of originals in the records, largest memory of their images
_MOST_LEVELS = 10  # largest number of noise levels in the records


def records_of(run: xr.Dataset, source: Any = None) -> xr.Dataset:
    """The stored pictures and texts of a run, for the page and the figures; empty if there are none.

    Parameters
    ----------
    run : Dataset of `uturn.run`
    source : source of the run, optional
        For originals of texts; by default it is built from the spec of the run, unless that needs user code.

    Returns
    -------
    Dataset
        Of images `original` (item, channel, row, column), `image` (shown_noise, item, channel, row, column) and
        `image_same_class` (shown_noise, item), whether the class was kept. Of texts see `shown_texts`.
    """
    run = by_noise(run)
    return _pictures(run).merge(shown_texts(run, source))


def _pictures(run: xr.Dataset) -> xr.Dataset:
    """Originals and reconstructions of the items with stored images, or of a sample of them.

    The class is read from the first reading that compares classes; without such a reading, all classes count as unchanged.
    """
    num_kept = kept_images(run)
    if not num_kept:
        return xr.Dataset()
    judges = [name for name, how in instructions_of(run).items() if how.group == "class" and how.symmetric]
    columns = _noisy_levels(run)
    of_each = run.image.dtype.itemsize * math.prod(run.image.shape[-3:]) * (len(columns) + 1)
    items = sample(num_kept, min(MOST_SHOWN, max(_LEAST_SHOWN, _MOST_SHOWN_BYTES // of_each)))
    some = run.isel(item=items, trajectory=0, clone=0, missing_dims="ignore")
    images = some.image.isel(noise=columns).load()
    before, item_names = originals(run, items)
    same = some[judges[0]].isel(noise=columns).values if judges else np.ones(images.shape[:2])
    return xr.Dataset(
        {
            "original": (("item", "channel", "row", "column"), before),
            "image": (("shown_noise", "item", "channel", "row", "column"), images.values),
            "image_same_class": (("shown_noise", "item"), same, {"judge": judges[0] if judges else ""}),
        },
        coords={"shown_noise": images.noise.values, "item": items, "item_name": ("item", np.array(item_names, str))},
        attrs={"kept": num_kept},
    )


def _noisy_levels(run: xr.Dataset) -> np.ndarray:
    """Indices of the levels shown, evenly spaced among the levels above noise 0."""
    noisy = np.flatnonzero(~np.isclose(run.noise.values, 0))
    return noisy[evenly_spaced(len(noisy), _MOST_LEVELS)] if len(noisy) else noisy


def sample(count: int, most: int = MOST_SHOWN) -> np.ndarray:
    """Indices of the originals shown: all, or `most` of them, drawn without replacement with seed 0."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def shown_texts(run: xr.Dataset, source: Any = None) -> xr.Dataset:
    """The first items of a run as texts, trajectory 0 and clone 0.

    Parameters
    ----------
    run : Dataset of `uturn.run`, with increasing noise
    source : source of the run, optional
        By default it is built from the spec of the run, unless that needs user code or its files have changed.

    Returns
    -------
    Dataset
        Coordinates `original_piece` (shown_item, position), the text of each token of the originals, "" beyond their end; `piece`
        and `noisy_piece` (shown_noise, shown_item, position) of reconstructions and noisy texts, "" where masked. `changed`,
        whether a token differs from the original, and `noised`, whether the corruption removed or replaced it (same dims).
        `shown_region`, number of the region of a token, and `shown_separator`, whether it separates segments, if the source has
        them. Empty if no tokens were stored, or if the originals cannot be read.
    """
    count = kept_texts(run)
    source = (source or _source_of(run)) if count else None
    if source is None:
        return xr.Dataset()
    before = source.ids(np.arange(count))
    levels = _noisy_levels(run)
    some = run.isel(noise=levels, item=slice(count), trajectory=0, clone=0, missing_dims="ignore")
    tokens, noisy = (some[name].transpose("noise", "item", "position").values.astype(int) for name in ("token", "noisy_token"))
    dims = ("shown_noise", "shown_item", "position")
    shown = xr.Dataset(
        {"changed": (dims, tokens != before), "noised": (dims, noisy != before)},
        coords={
            "shown_noise": run.noise.values[levels],
            "shown_item": np.arange(count),
            "original_piece": (dims[1:], _pieces(before, source.tokenizer)),
            "piece": (dims, _pieces(tokens, source.tokenizer)),
            "noisy_piece": (dims, _pieces(noisy, source.tokenizer)),
        },
    )
    if source.regions:
        shown["shown_region"] = dims[1:], source.regions_of(np.arange(count))
        shown = shown.assign_coords(region_name=list(source.regions))
    if source.segments:
        free = source.free(np.arange(count)) if hasattr(source, "free") else before >= 0  # fixed tokens have no segment either
        shown["shown_separator"] = dims[1:], (source.segments_of(np.arange(count)) < 0) & free
    return shown


def _pieces(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Text of every token, "" for masked ones and beyond the end of a text; ids with a space if there is no tokenizer."""
    known = [int(token) for token in np.unique(ids) if token >= 0]
    texts = [f" {token}" for token in known] if tokenizer is None else tokenizer.pieces(known)
    table = dict(zip(known, texts, strict=True))
    return np.array([table.get(token, "") for token in ids.ravel().tolist()], str).reshape(ids.shape)


@contextmanager
def _offline() -> Iterator[None]:
    """Context without requests to a hub: a store, perhaps of others, names the model. Models in the cache are read."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _source_of(run: xr.Dataset) -> Any:
    """The source of a run with its tokenizer; None if it needs user code or a hub, cannot be read, or has changed."""
    spec = stored_spec(run)
    try:
        # Other parts are not asked: they may import what the spec names, such as a sampler "module:function".
        if (spec["source"].get("type"), spec["backward"].get("type")) != ("tokens", "language"):
            return None
        if is_import_path(str(spec["backward"].get("model"))) or spec["backward"].get("trust_remote_code"):
            return None
        with _offline():
            backward = build("backward", spec["backward"], trusted=False)
            source = build("source", spec["source"], trusted=False).made_by(backward, spec["seed"])
            models = json.loads(run.attrs["models"])
            same = (source.fingerprint(), backward.fingerprint()) == (models["source"], models["backward"])  # with its tokenizer
            return source if same else None
    except (ValueError, OSError, KeyError, TypeError):
        return None
