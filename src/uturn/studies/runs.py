"""Information on a stored run: reading instructions, description, distinguishing name, missing
tasks, originals of images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.messages import one_line, shown
from uturn.core.protocols import Variable
from uturn.core.registry import build, filled

NAMES = ("item_name", "file")
"""Coordinates with the names of originals, the first that a run has."""
UNREADABLE = ValueError, OSError, KeyError, TypeError
"""Errors of a source that cannot be built from a stored spec."""
_LONGEST = 60  # most characters of a value in a name
_LARGEST_FILE = 2**28  # bytes of a file of images that a store names, which is read as a whole
_READING = "reading"  # attribute of a variable with its reading instructions


def stored_spec(run: xr.Dataset) -> dict[str, Any]:
    """The stored spec of a run, completed by defaults; its tables are empty if none is stored.
    ValueError if it is damaged.
    """
    empty: dict[str, Any] = {"source": {}, "backward": {}, "probes": []}
    try:
        spec = empty | json.loads(run.attrs.get("spec", "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"the run's attribute 'spec' is no JSON table ({error}); copy the store again"
        ) from None
    tables = spec["probes"] if isinstance(spec["probes"], list) else [None]
    if not all(isinstance(table, dict) for table in (spec["source"], spec["backward"], *tables)):
        raise ValueError(
            "the run's attribute 'spec' is not the description of an experiment; copy the store"
            " again"
        )
    return filled(spec)


def instructions_of(run: xr.Dataset) -> dict[str, Variable]:
    """The instructions of all variables of a run, in the order in which its probes declare them,
    followed by added variables.
    """
    order = [str(name) for name in run.attrs.get("variables", ()) if name in run.data_vars]
    added = [
        str(name)
        for name in run.data_vars
        if name not in order and (not order or _READING in run[name].attrs)
    ]
    instructions = {}
    for name in order + added:
        values = run[name]
        if "noise" not in values.dims:
            continue
        try:
            table = json.loads(values.attrs.get(_READING, "{}"))
            instructions[name] = Variable(
                tuple(map(str, values.dims)), str(values.attrs.get("long_name", "")), **table
            )
            instructions[name].check()
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{name}: the attribute {_READING!r} is damaged ({one_line(error)}); copy the store"
                " again"
            ) from None
    return instructions


def named_in(*rules: Any) -> list[str]:
    """The names of readings and coordinates in rules for a start or chance: NAME, "same:NAME",
    "same:NAME=OTHER".
    """
    return [
        name
        for rule in rules
        if isinstance(rule, str)
        for name in rule.removeprefix("same:").split("=", 1)
    ]


def have_labels(values: np.ndarray) -> np.ndarray:
    """Which originals have a label: not -1, NaN or an empty text."""
    return values != "" if values.dtype.kind in "UTO" else (values != -1) & (values == values)


def is_kept_if_large(name: str) -> bool:
    """Whether the name of a reading says that large values are those without changes."""
    return any(word in name.lower() for word in ("kept", "same", "accuracy", "unchanged"))


def named_runs(runs: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Runs, {place of the store: Dataset}, by the spec fields that differ, such as "multiplicity
    = 4"; else also by place.
    """

    def name_of(field: str, value: str) -> str:
        return _file_name(value) if field == "path" else f"{field} = {value[:_LONGEST]}"

    names = [
        ", ".join(name_of(*field) for field in spec.items())
        for spec in differing_fields(list(runs.values()))
    ]
    if len(set(names)) < len(names) or not all(names):
        names = [
            f"{name} ({place})" if name else place for name, place in zip(names, runs, strict=True)
        ]
    return dict(zip(names, runs.values(), strict=True))


def differing_fields(runs: Sequence[xr.Dataset]) -> list[dict[str, str]]:
    """The spec fields in which some of the runs (or their studies) differ, for each run:
    {shortest clear name: value as text}.
    """
    specs = [dict(_fields(stored_spec(run))) for run in runs]
    keys = dict.fromkeys(key for spec in specs for key in spec)
    ends = {
        key: key.rpartition(".")[2] for key in keys if len({spec.get(key) for spec in specs}) > 1
    }
    short_names = {
        key: key if list(ends.values()).count(end) > 1 else end for key, end in ends.items()
    }
    return [{name: spec[key] for key, name in short_names.items() if key in spec} for spec in specs]


def _fields(value: Any, key: str = "") -> Sequence[tuple[str, str]]:
    """The leaves of nested tables and lists, {dotted name: value as text}; noise levels are one
    value.
    """
    if isinstance(value, Mapping):
        return [
            leaf
            for name, inner in value.items()
            for leaf in _fields(inner, f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [leaf for k, inner in enumerate(value) for leaf in _fields(inner, f"{key}[{k}]")]
    return [(key, value if isinstance(value, str) else json.dumps(value))]


def missing_tasks(run: xr.Dataset) -> int:
    return int(run.attrs.get("missing_tasks", 0))


def describe(run: xr.Dataset) -> str:
    """One line of text about a run: model, scheduler, steps, data."""
    spec = stored_spec(run)
    backward, source = spec["backward"], spec["source"]
    phrases = [_file_name(backward["model"])] if "model" in backward else []
    if "description" in run.attrs:
        description = str(run.attrs["description"])
        phrases = [] if phrases and description.startswith(phrases[0]) else phrases
        phrases.append(description)
    elif "scheduler" in backward:
        phrases.append(f"{backward['scheduler']}, {backward.get('steps', '?')} steps")
    noun, kind, of = "original", source.get("type"), ""
    if kind == "tokens":
        noun = "window" if source.get("windows") else "text"
        of = (
            " of the embedded passages"
            if source.get("path") == "embedded"
            else f" of {_file_name(source.get('path', '?'))}"
        )
    elif kind == "generated":
        of = (
            " generated by the model (seed"
            f" {spec.get('seed', '?') if source.get('seed') is None else source['seed']})"
        )
    elif kind != "readings" or "path" in source:
        of = f" of {_file_name(source.get('path', source.get('type', '?')))}"
    phrases.append(f"{run.sizes['item']} {noun}{'' if run.sizes['item'] == 1 else 's'}{of}")
    several = {"trajectory": "noisy versions of each", "clone": "clones of each noisy version"}
    phrases += [
        f"{run.sizes[dim]} {words}" for dim, words in several.items() if run.sizes.get(dim, 1) > 1
    ]
    return label(" · ".join(phrases), 500)


def label(text: Any, most: int = 120) -> str:
    """A text from a store as one line of limited length: a figure with a longer one would take
    minutes and gigabytes.
    """
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]} .."


def _file_name(path: str) -> str:
    """The last part of a path, in valid Unicode."""
    return os.fsencode(Path(str(path)).name or str(path)).decode(errors="replace")


def kept_images(run: xr.Dataset, variable: str = "image") -> int:
    """Number of items whose reconstructions are stored as images (or tokens); they are the first
    items.
    """
    for table in stored_spec(run)["probes"]:
        if table.get("type") == f"{variable}s" and variable in run:
            first = run.sizes["item"] if table.get("first") is None else table["first"]
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
    """Names of originals, those of their files if they have no others, or else their numbers and
    classes.
    """
    if named := next((name for name in NAMES if name in run.coords), None):
        return [str(name) for name in run[named].values[items]]
    known = class_names or {}
    has_labels = "label" in run.coords and run["label"].dtype.kind in "iu"
    labels = run["label"].values[items].tolist() if has_labels else [-1] * len(items)
    classes = [f", {known.get(label, f'class {label}')}" if label >= 0 else "" for label in labels]
    return [
        f"item {item}{of_class}"
        for item, of_class in zip(run["item"].values[items], classes, strict=True)
    ]


def originals(run: xr.Dataset, items: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Originals of the stored images of a run, and their names; NaN if the source is missing or
    has changed.
    """
    identity = np.flatnonzero(run.noise.values == 0)
    # Other programs may change an image at noise 0, as an autoencoder does.
    if len(identity) and stored_spec(run)["backward"].get("type") != "recorded":
        images = run.image.isel(
            noise=identity[0], trajectory=0, clone=0, item=items, missing_dims="ignore"
        ).values
    else:
        # The folder of originals may have been removed, and a store may name a source of other
        # data.
        blank = np.full((len(items), *run.image.shape[-3:]), np.nan, np.float32)
        images = _images_of_source(run, items)
        images = blank if images is None or images.shape != blank.shape else images
    return images, item_names(run, items, class_names_of(run))


def class_names_of(run: xr.Dataset) -> dict[int, str]:
    """Names of the classes by label, from the source of a run; empty if it names none, cannot be
    read, or has changed.
    """
    # Originals with names are not named by class.
    if "label" not in run.coords or any(name in run.coords for name in NAMES):
        return {}
    with suppress(*UNREADABLE):
        table = stored_spec(run)["source"]
        # Folders of images name their originals, so that a run without names of files has another
        # source.
        if table.get("type") in ("generated", "images"):
            return {}
        source = build("source", table, trusted=False)
        names = source.class_names() if source.kind == "images" else None
        if names and source.fingerprint() == json.loads(run.attrs["models"])["source"]:
            return dict(enumerate(names))
    return {}


def _images_of_source(run: xr.Dataset, items: np.ndarray) -> np.ndarray | None:
    """Images from the source of a run; None if they cannot be read or have changed."""
    with suppress(*UNREADABLE):
        spec, digest = stored_spec(run), json.loads(run.attrs["models"])["source"]
        # Code named in a store is not imported, so only built-in sources are built.
        source = build("source", spec["source"], trusted=False)
        if source.kind != "images":
            return None
        # Read the stored originals without loading the model.
        if spec["source"]["type"] == "generated":
            return source.kept(digest, spec["seed"], items)
        # A store may name any folder, so that only the files of these items are read.
        if spec["source"]["type"] == "images":
            of_files = (run[name].values[items].tolist() for name in ("file", "file_digest"))
            return source.kept(*of_files, run.image.shape[-3:])
        if not all(0 < os.path.getsize(path) <= _LARGEST_FILE for path in source.files()):
            # A file with holes may promise terabytes, and a reader of one without size may wait for
            # ever.
            return None
        if source.fingerprint() == digest:
            return np.concatenate(
                [block.data for block in source.blocks(items, spec["seed"], run.sizes["item"])]
            )
    return None
