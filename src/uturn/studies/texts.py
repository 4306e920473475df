"""The texts of a run that are shown: originals, noisy texts and reconstructions of the first items, token by token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.spec import build
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.runs import kept_texts, stored_spec

if TYPE_CHECKING:
    import xarray as xr

_MOST_LEVELS = 10


def shown_texts(run: xr.Dataset, source: Any = None) -> xr.Dataset:
    """The first items of a run as texts, trajectory 0 and clone 0.

    Parameters
    ----------
    run : Dataset of `uturn.run`, with increasing noise
    source : source of the run, optional
        By default it is built from the spec of the run, if that needs no code of others, and if its files are still the same.

    Returns
    -------
    Dataset
        Coordinates `original_piece` (shown_item, position), the text of each token of the originals, "" beyond their end; `piece`
        and `noisy_piece` (shown_noise, shown_item, position) of reconstructions and noisy texts, "" where masked. `changed`,
        whether a token is another than in the original, and `noised`, whether the corruption removed or replaced it (same dims).
        `shown_region`, number of the region of a token, and `shown_segment`, whether it separates segments, if the source has
        them. Empty if no tokens were kept, or if the originals cannot be read.
    """
    import xarray as xr

    count = kept_texts(run)
    source = (source or _source_of(run)) if count else None
    if source is None:
        return xr.Dataset()
    originals = source.ids(np.arange(count))
    noisy_levels = np.flatnonzero(run.noise.values > 0)
    levels = noisy_levels[evenly_spaced(len(noisy_levels), _MOST_LEVELS)] if len(noisy_levels) else noisy_levels
    some = run.isel(noise=levels, item=slice(count), trajectory=0, clone=0, missing_dims="ignore")
    tokens, noisy = (some[name].transpose("noise", "item", "position").values.astype(int) for name in ("token", "noisy_token"))
    dims = ("shown_noise", "shown_item", "position")
    found = xr.Dataset(
        {
            "changed": (dims, tokens != originals),
            "noised": (dims, noisy != originals),
        },
        coords={
            "shown_noise": run.noise.values[levels],
            "shown_item": np.arange(count),
            "original_piece": (dims[1:], _pieces(originals, source.tokenizer)),
            "piece": (dims, _pieces(tokens, source.tokenizer)),
            "noisy_piece": (dims, _pieces(noisy, source.tokenizer)),
        },
    )
    if source.regions is not None:
        found["shown_region"] = dims[1:], source.regions_of(np.arange(count))
        found = found.assign_coords(region_name=source.region_names())
    if source.segments:
        found["shown_separator"] = dims[1:], (source.segments_of(np.arange(count)) < 0) & (originals >= 0)
    return found


def _pieces(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Text of every token, "" for masked ones and beyond the end of a text; ids with a space if there is no tokenizer."""
    there = sorted({int(one) for one in np.unique(ids) if one >= 0})
    names = [f" {one}" for one in there] if tokenizer is None else tokenizer.pieces(there)
    table = dict(zip(there, names, strict=True))
    return np.array([table.get(int(one), "") for one in ids.flat], str).reshape(ids.shape)


def _source_of(run: xr.Dataset) -> Any:
    """The source of a run with its tokenizer; None if it needs code of others, cannot be read, or has changed."""
    from uturn.core.imports import is_import_path

    spec = stored_spec(run)
    try:
        if is_import_path(str(spec["backward"].get("model"))) or spec["backward"].get("trust_remote_code"):
            return None
        backward = build("backward", spec["backward"], trusted=False)
        source = build("source", spec["source"], trusted=False).made_by(backward, spec["seed"])
        return source if source.fingerprint() == json.loads(run.attrs["models"])["source"] else None
    except (ValueError, OSError, KeyError, TypeError):
        return None
