"""Information on a stored run: reading instructions, description, distinguishing name, missing
tasks, originals of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.data import StoredItems
from uturn.core.messages import counted, file_name, one_line, shown
from uturn.core.protocols import Source, Variable
from uturn.core.registry import READINGS, build, filled, stored_class

NAMES = ("item_name", "file")
"""Coordinates with the names of originals, the first that a run has."""
UNREADABLE = ValueError, OSError, KeyError, TypeError
"""Errors of a source that cannot be built from a stored spec."""
_LONGEST = 60
"""Most characters of a value in a name."""
_READING = "reading"
"""Attribute of a variable with its reading instructions."""
_LARGE_IF_KEPT = ("kept", "same", "accuracy", "unchanged")
"""Words in names of readings whose large values are those without changes."""


def stored_spec(run: xr.Dataset) -> dict[str, Any]:
    """The stored spec of a run, completed by defaults; its tables are empty if none is stored.
    ValueError if it is damaged.
    """
    empty: dict[str, Any] = {"source": {}, "backward": {}, "probes": []}
    try:
        spec = empty | json.loads(run.attrs.get("spec", "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"the run's attribute 'spec' is not a JSON table ({error}); copy the store again"
        ) from None
    tables = [spec["source"], spec["backward"]]
    is_list = isinstance(spec["probes"], list)
    if is_list:
        tables += spec["probes"]
    if not is_list or not all(isinstance(table, dict) for table in tables):
        raise ValueError(
            "the run's attribute 'spec' is not the description of an experiment; copy the store"
            " again"
        )
    return filled(spec)


def instructions_of(run: xr.Dataset) -> dict[str, Variable]:
    """The instructions of all variables of a run, in the order in which its probes declare them,
    followed by added variables.
    """
    declared = [str(name) for name in run.attrs.get("variables", ()) if name in run.data_vars]
    added = [
        str(name)
        for name in run.data_vars
        if name not in declared and (not declared or _READING in run[name].attrs)
    ]
    names = [name for name in declared + added if "noise" in run[name].dims]
    return {name: _instructions(run[name], name) for name in names}


def _instructions(values: xr.DataArray, name: str) -> Variable:
    """The instructions that are stored with a variable, or a ValueError."""
    dims = tuple(map(str, values.dims))
    long_name = str(values.attrs.get("long_name", ""))
    try:
        table = json.loads(values.attrs.get(_READING, "{}"))
        instructions = Variable(dims, long_name, **table)
        instructions.check()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{name}: the attribute {_READING!r} is damaged ({one_line(error)}); copy the store"
            " again"
        ) from None
    return instructions


def named_in(*rules: float | str | None) -> list[str]:
    """The names of readings and coordinates in rules for a start or chance: NAME, "same:NAME",
    "same:NAME=OTHER".
    """
    names = []
    for rule in rules:
        if isinstance(rule, str):
            names += rule.removeprefix("same:").split("=", 1)
    return names


def have_labels(values: np.ndarray) -> np.ndarray:
    """Which originals have a label: not -1, NaN or an empty text."""
    if values.dtype.kind in "UTO":
        return np.asarray(values != "")
    return np.asarray((values != -1) & (values == values))


def is_kept_if_large(name: str) -> bool:
    """Whether the name of a reading says that large values are those without changes."""
    return any(word in name.lower() for word in _LARGE_IF_KEPT)


def starts_at_one(name: str) -> bool:
    """Whether the name of a reading says that it is 1 without changes, such as "same_class"."""
    return name.startswith("same_")


# --- names and descriptions -----------------------------------------------------------------------


def named_runs(runs: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Runs, {place of the store: Dataset}, by the spec fields that differ, such as "multiplicity
    = 4"; else also by place.
    """
    names = []
    for fields in differing_fields(list(runs.values())):
        words = {field: f"{field} = {value[:_LONGEST]}" for field, value in fields.items()}
        if "path" in fields:
            words["path"] = file_name(fields["path"])
        names.append(", ".join(words.values()))
    if len(set(names)) < len(names) or not all(names):
        places = zip(names, runs, strict=True)
        names = [f"{name} ({place})" if name else place for name, place in places]
    return dict(zip(names, runs.values(), strict=True))


def differing_fields(runs: Sequence[xr.Dataset]) -> list[dict[str, str]]:
    """The spec fields in which some of the runs (or their studies) differ, for each run:
    {shortest clear name: value as text}.
    """
    specs = [dict(_fields(stored_spec(run))) for run in runs]
    keys: dict[str, str] = {}
    for spec in specs:
        keys |= spec
    first = specs[0]
    different = [key for key in keys if any(spec.get(key) != first.get(key) for spec in specs)]
    ends = [key.rpartition(".")[2] for key in different]
    names = dict(zip(different, ends, strict=True))
    for key, end in names.items():
        if ends.count(end) > 1:
            names[key] = key
    fields = []
    for spec in specs:
        fields.append({name: spec[key] for key, name in names.items() if key in spec})
    return fields


def _fields(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables and lists, (dotted name, value as text); noise levels are one
    value.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            inner_key = str(name)
            if key:
                inner_key = f"{key}.{name}"
            yield from _fields(inner, inner_key)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for k, inner in enumerate(value):
            yield from _fields(inner, f"{key}[{k}]")
    elif isinstance(value, str):
        yield key, value
    else:
        yield key, json.dumps(value)


def missing_tasks(run: xr.Dataset) -> int:
    return int(run.attrs.get("missing_tasks", 0))


def describe(run: xr.Dataset) -> str:
    """One line of text about a run: model, scheduler, steps, data."""
    spec = stored_spec(run)
    backward = spec["backward"]
    model = ""
    if "model" in backward:
        model = file_name(backward["model"])
    phrases = [model]
    if "description" in run.attrs:
        description = str(run.attrs["description"])
        says_model = bool(model) and description.startswith(model)
        phrases = [model, description]
        if says_model:
            phrases = [description]
    elif "scheduler" in backward:
        phrases.append(f"{backward['scheduler']}, {backward.get('steps', '?')} steps")
    phrases.append(_originals_in_words(run, spec))
    if run.sizes.get("trajectory", 1) > 1:
        phrases.append(f"{run.sizes['trajectory']} noisy versions of each")
    if run.sizes.get("clone", 1) > 1:
        phrases.append(f"{run.sizes['clone']} clones of each noisy version")
    return label(" · ".join(filter(None, phrases)), 500)


def _originals_in_words(run: xr.Dataset, spec: Mapping[str, Any]) -> str:
    """Number and origin of the originals."""
    count = run.sizes["item"]
    table = spec["source"]
    if table.get("type") == READINGS and "path" not in table:
        return counted(count, "original")
    source = stored_class("source", table) or Source
    return str(source.describe(table, count, spec.get("seed", "?")))


def label(text: object, most: int = 120) -> str:
    """A text from a store as one line of limited length: a figure with a longer one would take
    minutes and gigabytes.
    """
    line = " ".join(str(text).split())
    if len(line) <= most:
        return line
    return f"{line[:most]} .."


# --- originals ------------------------------------------------------------------------------------


def _source_of_images(table: Mapping[str, Any]) -> Source | None:
    """A built-in source of images with stored options; None if it cannot be built. Code that a
    store names is not imported.
    """
    if getattr(stored_class("source", table), "kind", "") != "images":
        return None
    with suppress(*UNREADABLE):
        source: Source = build("source", table, trusted=False)
        return source
    return None


def kept_images(run: xr.Dataset, variable: str = "image") -> int:
    """Number of items whose reconstructions are stored as images (or tokens); they are the first
    items.
    """
    for table in stored_spec(run)["probes"]:
        probe = stored_class("probes", table)
        if getattr(probe, "keeps", "") != variable or variable not in run:
            continue
        first = table.get("first")
        if first is None:
            first = run.sizes["item"]
        if not isinstance(first, int) or first < 0:
            raise ValueError(
                f"the run's spec keeps the {variable}s of {shown(first)} items; copy the store"
                " again"
            )
        return min(first, run.sizes["item"])
    return 0


def kept_texts(run: xr.Dataset) -> int:
    return kept_images(run, "token")


def item_names(
    run: xr.Dataset | xr.DataArray, items: np.ndarray, class_names: Mapping[int, str] | None = None
) -> list[str]:
    """Names of originals. Without names, they are called by their files, or else by their numbers
    and classes.
    """
    for name in NAMES:
        if name in run.coords:
            return [str(name) for name in run[name].values[items]]
    numbers = run["item"].values[items]
    if "label" not in run.coords or run["label"].dtype.kind not in "iu":
        return [f"item {item}" for item in numbers]
    known = class_names or {}
    names = []
    for item, label in zip(numbers, run["label"].values[items].tolist(), strict=True):
        name = f"item {item}"
        if label >= 0:
            name += f", {known.get(label, f'class {label}')}"
        names.append(name)
    return names


def originals(run: xr.Dataset, items: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Originals of the stored images of a run, and their names; NaN if the source is missing or
    has changed.
    """
    names = item_names(run, items, class_names_of(run))
    backward = stored_class("backward", stored_spec(run)["backward"])
    identity = np.flatnonzero(run.noise.values == 0)
    if len(identity) and getattr(backward, "keeps_identity", True):
        first = {"noise": identity[0], "trajectory": 0, "clone": 0, "item": items}
        return run.image.isel(first, missing_dims="ignore").values, names
    # The folder of originals may have been removed, and a store may name a source of other data.
    shape = (len(items), *run.image.shape[-3:])
    images = _stored_images(run, items)
    if images is None or images.shape != shape:
        images = np.full(shape, np.nan, np.float32)
    return images, names


def class_names_of(run: xr.Dataset) -> dict[int, str]:
    """Names of the classes by label, from the source of a run; empty if it names none, cannot be
    read, or has changed.
    """
    # Originals with names are not named by class.
    if "label" not in run.coords or any(name in run.coords for name in NAMES):
        return {}
    source = _source_of_images(stored_spec(run)["source"])
    # A run without names of originals has no source that gives some.
    if source is None or source.names_items:
        return {}
    with suppress(*UNREADABLE):
        names = source.class_names()
        if names and source.fingerprint() == json.loads(run.attrs["models"])["source"]:
            return dict(enumerate(names))
    return {}


def _stored_images(run: xr.Dataset, items: np.ndarray) -> np.ndarray | None:
    """Images from the source of a run; None if they cannot be read or have changed."""
    spec = stored_spec(run)
    source = _source_of_images(spec["source"])
    if source is None:
        return None
    coordinates = {
        str(name): values.values[items]
        for name, values in run.coords.items()
        if values.dims == ("item",)
    }
    with suppress(*UNREADABLE):
        fingerprint = json.loads(run.attrs["models"])["source"]
        shape = run.image.shape[-3:]
        num_items = run.sizes["item"]
        seed = spec["seed"]
        return source.stored(StoredItems(items, num_items, seed, fingerprint, shape, coordinates))
    return None
