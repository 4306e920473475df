"""The originals of a run one by one: their readings as a table, and stored images and texts for
display.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas
import xarray as xr

from uturn.core.protocols import Source
from uturn.core.registry import build, stored_class
from uturn.measures.curves import crossing
from uturn.measures.readings import draw_dims
from uturn.studies import runs
from uturn.studies.axes import texts_of
from uturn.studies.checked_run import by_noise
from uturn.studies.headline import headline_of
from uturn.studies.keys import keys_of
from uturn.studies.plotting.curves import evenly_spaced

if TYPE_CHECKING:
    from uturn.sources.tokens import TextSource, Tokenizer

MOST_SHOWN = 200
"""Largest number of originals in a page."""
MOST_ITEMS = 10_000
"""Largest number of originals of a run that are listed."""
HALF_LIFE = "half_life of "
_LEAST_SHOWN = 8
"""Least number of originals in the records."""
_MOST_SHOWN_BYTES = 2**27
"""Largest memory of images in the records."""
_MOST_LEVELS = 10
"""Largest number of noise levels in the records."""
_MOST_LISTED = 24
"""Levels of a variable that is listed."""
_MOST_TEXT = 2**26
"""Bytes of the texts that a store names."""
_MOST_LINES = 2**16
"""Lines of these."""
_LINE_ENDS = [end.encode() for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
_MOST_TOKENS = 2**21
"""Tokens of all texts that are shown."""
_LONGEST_PIECE = 100
"""Characters of a token."""


def items_of(run: xr.Dataset, study: xr.Dataset) -> pandas.DataFrame:
    """A row for each original of a run: the content of `items.csv`.

    Columns: `item`, its number; `name`; `half_life of R`, the smallest noise at which its own curve
    of R, the reading of the headline, is halfway from start to chance; coordinates of originals,
    such as `label`; `R at X`, the mean of each reading R at each noise X. Variables with more than
    24 levels are left out.
    """
    run = by_noise(run)
    headline = headline_of(study)
    columns = {
        "item": run.item.values,
        "name": runs.item_names(run, np.arange(run.sizes["item"]), runs.class_names_of(run)),
    }
    variables = study.variable.values
    if headline is not None:  # its variable comes first
        variables = np.r_[variables[study.reading.values == headline.reading], variables]
    noises = texts_of(run.noise.values, ".6g")
    readings: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(variables.tolist()):
        keys = keys_of(run, name)
        if len(keys) > _MOST_LISTED:
            continue
        means = run[name].mean(draw_dims(run[name]))
        for key in keys:
            curves = means.isel(key.indices).transpose("noise", "item").values
            if headline is not None and headline.reading == key.label:
                half_lives = _half_lives(curves, study.sel(reading=key.label))
                columns[f"{HALF_LIFE}{key.label}"] = half_lives
            for noise, row in zip(noises, curves, strict=True):
                readings[f"{key.label} at {noise}"] = row
    labels = {}
    for name, values in run.coords.items():
        if values.dims == ("item",) and name not in ("item", *runs.NAMES):
            is_taken = name in columns or name in readings
            labels[f"{name}_of_item" if is_taken else str(name)] = values.values
    return pandas.DataFrame(columns | labels | readings)


def _half_lives(curves: np.ndarray, reading: xr.Dataset) -> np.ndarray:
    """Smallest noise at which each of the curves (noise, item) is halfway from start to chance;
    NaN if it never is.
    """
    noise = reading.noise.values
    start = float(reading.start)
    chance = float(reading.chance)
    if np.isnan(chance):
        chance = float(reading.curve[-1, 0])
    sign = -1.0 if chance > start else 1.0
    height = (start + chance) / 2
    added = len(noise) - len(curves)
    curves = np.concatenate([np.full((added, curves.shape[1]), start), curves])
    half_lives = []
    for curve in curves.T:
        is_known = np.isfinite(curve) & np.isfinite(noise)
        place = crossing(noise[is_known], sign * curve[is_known], sign * height, first=True)
        half_lives.append(place)
    return np.array(half_lives)


def records_of(run: xr.Dataset, source: Source | None = None) -> xr.Dataset:
    """The stored pictures and texts of a run, for the page and the figures; empty if there are
    none.

    `source`: the source of the run, for originals of texts; by default it is built from the spec of
    the run, unless that needs user code or its files have changed.

    Of images: `original` (item, channel, row, column), `image` (shown_noise, item, channel, row,
    column) and `image_same_class` (shown_noise, item). Of the first texts, trajectory 0 and clone
    0: `original_piece` (shown_item, position), the text of each token, "" beyond the end; `piece`
    and `noisy_piece` (shown_noise, shown_item, position), "" where masked; `changed`, whether a
    token differs from the original, and `noised`, whether the corruption removed or replaced it; if
    the source has regions and segments, `shown_region` and `shown_separator`.
    """
    run = by_noise(run)
    return _pictures(run).merge(_texts(run, source))


def _pictures(run: xr.Dataset) -> xr.Dataset:
    """Originals and reconstructions of a sample of stored images; without a reading of classes,
    all count as unchanged.
    """
    num_kept = runs.kept_images(run)
    if not num_kept:
        return xr.Dataset()
    levels = _noisy_levels(run)
    item_bytes = run.image.dtype.itemsize * math.prod(run.image.shape[-3:]) * (len(levels) + 1)
    most = max(_LEAST_SHOWN, _MOST_SHOWN_BYTES // item_bytes)
    items = sample(num_kept, min(MOST_SHOWN, most))
    chosen = run.isel(item=items, noise=levels, trajectory=0, clone=0, missing_dims="ignore")
    images = chosen.image.load()
    originals, names = runs.originals(run, items)
    judge = ""
    same_class = np.ones(images.shape[:2])
    for name, instructions in runs.instructions_of(run).items():
        if instructions.group == "class" and instructions.symmetric:
            judge = name
            same_class = chosen[name].values
            break
    return xr.Dataset(
        {
            "original": (("item", "channel", "row", "column"), originals),
            "image": (("shown_noise", "item", "channel", "row", "column"), images.values),
            "image_same_class": (("shown_noise", "item"), same_class, {"judge": judge}),
        },
        coords={
            "shown_noise": images.noise.values,
            "item": items,
            "item_name": ("item", np.array(names, str)),
        },
        attrs={"kept": num_kept},
    )


def _noisy_levels(run: xr.Dataset) -> np.ndarray:
    """Indices of the levels shown, evenly spaced among the levels above noise 0."""
    noisy = np.flatnonzero(run.noise.values)
    return noisy[evenly_spaced(len(noisy), _MOST_LEVELS)] if len(noisy) else noisy


def sample(count: int, most: int = MOST_SHOWN) -> np.ndarray:
    """Indices of the originals shown: all, or `most` of them, drawn without replacement with
    seed 0.
    """
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _texts(run: xr.Dataset, given: Source | None = None) -> xr.Dataset:
    """The first items of a run as texts; empty if no tokens were stored or originals cannot be
    read.
    """
    num_kept = runs.kept_texts(run)
    if not num_kept:
        return xr.Dataset()
    source = cast("TextSource | None", given) or _source_of(run)
    if source is None:
        return xr.Dataset()
    levels = _noisy_levels(run)
    item_tokens = run.sizes["position"] * (len(levels) + 1)
    count = min(num_kept, max(_LEAST_SHOWN, _MOST_TOKENS // item_tokens))
    items = np.arange(count)
    originals = source.ids(items)
    chosen = run.isel(noise=levels, item=slice(count), trajectory=0, clone=0, missing_dims="ignore")
    tokens = chosen["token"].transpose("noise", "item", "position").values.astype(int)
    noisy = chosen["noisy_token"].transpose("noise", "item", "position").values.astype(int)
    item_dims = ("shown_item", "position")
    dims = ("shown_noise", *item_dims)
    shown = xr.Dataset(
        {"changed": (dims, tokens != originals), "noised": (dims, noisy != originals)},
        coords={
            "shown_noise": run.noise.values[levels],
            "shown_item": items,
            "original_piece": (item_dims, _pieces(originals, source.tokenizer)),
            "piece": (dims, _pieces(tokens, source.tokenizer)),
            "noisy_piece": (dims, _pieces(noisy, source.tokenizer)),
        },
    )
    if source.regions:
        shown["shown_region"] = item_dims, source.regions_of(items)
        shown = shown.assign_coords(region_name=list(source.regions))
    if source.separators():
        is_separator = source.segments_of(items) < 0
        # Fixed tokens have no segment either.
        shown["shown_separator"] = item_dims, is_separator & source.free(items)
    return shown


def _pieces(ids: np.ndarray, tokenizer: Tokenizer | None) -> np.ndarray:
    """Text of every token, "" for masked ones and beyond the end of a text; ids with a space if
    there is no tokenizer.
    """
    known = [int(token) for token in np.unique(ids) if token >= 0]
    texts = [f" {token}" for token in known] if tokenizer is None else tokenizer.pieces(known)
    pieces = {token: text[:_LONGEST_PIECE] for token, text in zip(known, texts, strict=True)}
    flat = [pieces.get(token, "") for token in ids.ravel().tolist()]
    return np.array(flat, str).reshape(ids.shape)


# --- texts that a store names ---------------------------------------------------------------------


@contextmanager
def _offline() -> Iterator[None]:
    """Context without requests to a hub: a store, perhaps of others, names the model. Models in
    the cache are read.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _lines(path: str | Path) -> int:
    """Number of the lines of a file of texts, as `str.splitlines` finds them."""
    if Path(path).suffix == ".npy":
        return 0
    content = Path(path).read_bytes()
    return sum(map(content.count, _LINE_ENDS))


def _source_of(run: xr.Dataset) -> TextSource | None:
    """The source of a run with its tokenizer; None if it needs user code or a hub, cannot be
    read, or has changed.
    """
    spec = runs.stored_spec(run)
    if not _is_safe(spec):
        return None
    with suppress(*runs.UNREADABLE), _offline():
        backward = build("backward", spec["backward"], trusted=False)
        source: TextSource = build("source", spec["source"], trusted=False)
        files = source.files()
        is_large = sum(map(os.path.getsize, files)) > _MOST_TEXT
        if is_large or sum(map(_lines, files)) > _MOST_LINES:
            return None
        with_tokenizer = source.made_by(backward.single_u_turn, spec["seed"])
        models = json.loads(run.attrs["models"])
        fingerprints = with_tokenizer.fingerprint(), backward.fingerprint()
        is_same = fingerprints == (models["source"], models["backward"])
        has_all = is_same and run.sizes["item"] <= with_tokenizer.count()
        return with_tokenizer if has_all else None
    return None


def _is_safe(spec: Mapping[str, Any]) -> bool:
    """Whether source and backward of a stored spec are those of texts, which can be built without
    code that the spec names.
    """
    source = stored_class("source", spec["source"])
    backward = stored_class("backward", spec["backward"])
    if source is None or backward is None or source.kind != "tokens":
        return False
    return bool(backward.is_safe(spec["backward"]))
