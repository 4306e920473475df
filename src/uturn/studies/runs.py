"""Information on a stored run: description, distinguishing name, missing tasks, and originals of its stored images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_LONGEST = 60  # most characters of a value in a name


def stored_spec(run: xr.Dataset) -> dict[str, Any]:
    """The stored spec of a run, completed by defaults; its tables are empty if none is stored. ValueError if it is damaged."""
    from uturn.core.spec import filled

    empty: dict[str, Any] = {"source": {}, "backward": {}, "probes": []}
    try:
        spec = empty | json.loads(run.attrs.get("spec", "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the run's attribute 'spec' is no JSON table ({error}); copy the store again") from None
    tables = spec["probes"] if isinstance(spec["probes"], list) else [None]
    if not all(isinstance(table, dict) for table in (spec["source"], spec["backward"], *tables)):
        raise ValueError("the run's attribute 'spec' is not the description of an experiment; copy the store again")
    return filled(spec)


def named_runs(runs: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Runs named by the spec fields that differ, such as "multiplicity = 4"; if some are equal, the stores complete all names.

    Parameters
    ----------
    runs : {place of the store: Dataset of `uturn.run`}
    """
    specs = differing_fields(list(runs.values()))
    names = [", ".join(f"{field} = {value[:_LONGEST]}" for field, value in spec.items()) for spec in specs]
    if len(set(names)) < len(names) or not all(names):
        names = [f"{name} ({place})" if name else place for name, place in zip(names, runs, strict=True)]
    return dict(zip(names, runs.values(), strict=True))


def differing_fields(runs: Sequence[xr.Dataset]) -> list[dict[str, str]]:
    """The spec fields in which some of the runs (or their studies) differ, for each run: {shortest clear name: value as text}."""
    specs = [dict(_fields(stored_spec(run))) for run in runs]
    differing = [
        key for key in dict.fromkeys(key for spec in specs for key in spec) if len({spec.get(key) for spec in specs}) > 1
    ]
    ends = Counter(key.rpartition(".")[2] for key in differing)
    short_names = {key: key if ends[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in differing}
    return [{short_names[key]: spec[key] for key in differing if key in spec} for spec in specs]


def _fields(value: Any, key: str = "") -> Sequence[tuple[str, str]]:
    """The leaves of nested tables and lists, {dotted name: value as text}; noise levels are one value."""
    if isinstance(value, Mapping):
        return [leaf for name, inner in value.items() for leaf in _fields(inner, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [leaf for k, inner in enumerate(value) for leaf in _fields(inner, f"{key}[{k}]")]
    return [(key, value if isinstance(value, str) else json.dumps(value))]


def missing_tasks(run: xr.Dataset) -> int:
    """Number of tasks missing in the run's store; 0 for a run without a store."""
    return int(run.attrs.get("missing_tasks", 0))


def missing_data(run: xr.Dataset) -> list[str]:
    """Names of reconstructions that could not be read, in the attribute `missing_data` of a run; empty if it is damaged."""
    try:
        names = json.loads(str(run.attrs.get("missing_data", "{}")))
    except (ValueError, RecursionError):
        return []
    return list(names) if isinstance(names, dict) else []


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
    count, trajectories, clones = run.sizes["item"], run.sizes.get("trajectory", 1), run.sizes.get("clone", 1)
    noun = "original" if count == 1 else "originals"
    if source.get("type") == "tokens":
        noun = "window" if source.get("windows") else "text"
        texts = "the embedded passages" if source.get("path") == "embedded" else _file_name(source.get("path", "?"))
        phrases.append(f"{count} {noun}{'' if count == 1 else 's'} of {texts}")
    elif source.get("type") == "generated":
        seed = spec.get("seed", "?") if source.get("seed") is None else source["seed"]
        phrases.append(f"{count} {noun} generated by the model (seed {seed})")
    elif source.get("type") == "readings" and "path" not in source:
        phrases.append(f"{count} {noun}")
    else:
        phrases.append(f"{count} {noun} of {_file_name(source.get('path', source.get('type', '?')))}")
    if trajectories > 1:
        phrases.append(f"{trajectories} noisy versions of each")
    if clones > 1:
        phrases.append(f"{clones} clones of each noisy version")
    return " · ".join(phrases)


def _file_name(path: str) -> str:
    """The last part of a path, in valid Unicode."""
    return os.fsencode(Path(str(path)).name or str(path)).decode(errors="replace")


def kept_images(run: xr.Dataset) -> int:
    """Number of items whose reconstructions are stored as images; they are the first items."""
    return _kept(run, "images", "image")


def kept_texts(run: xr.Dataset) -> int:
    """Number of items whose tokens are stored; they are the first items."""
    return _kept(run, "tokens", "token")


def _kept(run: xr.Dataset, probe: str, variable: str) -> int:
    for table in stored_spec(run)["probes"]:
        if table.get("type") == probe and variable in run:
            first = table.get("first")
            return run.sizes["item"] if first is None else min(int(first), run.sizes["item"])
    return 0


def originals(run: xr.Dataset, items: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Originals of the stored images of a run, and their names; NaN if the source is missing or has changed."""
    labels = run.label.values[items] if "label" in run.coords else np.full(len(items), -1)
    names = [f"class {label}" if label >= 0 else f"item {item}" for item, label in zip(items, labels, strict=True)]
    identity = np.flatnonzero(np.isclose(run.noise.values, 0))
    # Other programs may change an image at noise 0, as an autoencoder does.
    if len(identity) and stored_spec(run)["backward"].get("type") != "recorded":
        return run.image.isel(noise=identity[0], trajectory=0, clone=0, item=items, missing_dims="ignore").values, names
    of_source = _images_of_source(run, items)
    if of_source is None:  # the folder of originals may have been removed
        return np.full((len(items), *run.image.shape[-3:]), np.nan, np.float32), names
    images, class_names = of_source
    if class_names:
        names = [class_names[label] if 0 <= label < len(class_names) else name for name, label in zip(names, labels, strict=True)]
    return images, names


def _images_of_source(run: xr.Dataset, items: np.ndarray) -> tuple[np.ndarray, list[str] | None] | None:
    """Images from the source of a run, and the names of its classes; None if they cannot be read or have changed."""
    from uturn.core.spec import build

    try:
        spec = stored_spec(run)
        # Code named in a store is not imported, so only built-in sources are built.
        source = build("source", spec["source"], trusted=False)
        if spec["source"]["type"] == "generated":  # read the stored originals without loading the model
            images_of_items = source.kept(json.loads(run.attrs["models"])["source"], spec["seed"], items)
            return None if images_of_items is None else (images_of_items, None)
        if source.fingerprint() != json.loads(run.attrs["models"])["source"]:
            return None
        images = np.concatenate([block.data for block in source.blocks(items, spec["seed"], run.sizes["item"])])
        return images, source.class_names()
    except (ValueError, OSError, KeyError, TypeError):
        return None
