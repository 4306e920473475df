"""Information read from a stored run of images: its spec, classifiers, originals and kept images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


class LayerProbe(NamedTuple):
    """A probe of network layers in a run: prefix of its variables, dim of its layers, and the classifier of its spec."""

    prefix: str
    layers: str
    classifier: str

    @property
    def name(self) -> str:
        """Name of the probe in the spec, or the classifier if it has none."""
        return self.prefix.removesuffix("_") or self.classifier


def layer_probes(run: xr.Dataset) -> list[LayerProbe]:
    """The probes of network layers of a run, in the order of the spec; ValueError if there are none."""
    tables = [table for table in stored_spec(run)["probes"] if table.get("type") == "network_layers"]
    by_prefix = {f"{table['name']}_" if table.get("name") else "": table for table in tables}
    found = []
    for name in map(str, run.data_vars):
        prefix = name.removesuffix("similarity")
        layers = f"{prefix}network_layer"
        if name.endswith("similarity") and layers in run[name].dims and f"{prefix}same_class" in run:
            found.append(LayerProbe(prefix, layers, by_prefix.get(prefix, {}).get("classifier", "classifier")))
    if not found:
        raise ValueError(
            "the run has no similarity of network layers and no same_class; expected one with a probe of type 'network_layers'"
        )
    order = list(by_prefix)
    return sorted(found, key=lambda probe: order.index(probe.prefix) if probe.prefix in order else len(order))


def stored_spec(run: xr.Dataset) -> dict[str, Any]:
    """The spec stored with a run, with empty tables if there is none; ValueError if it is damaged."""
    empty: dict[str, Any] = {"source": {}, "backward": {}, "probes": []}
    try:
        spec = empty | json.loads(run.attrs.get("spec", "{}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the run's attribute 'spec' is no JSON table ({error}); copy the store again") from None
    tables = spec["probes"] if isinstance(spec["probes"], list) else [None]
    if not all(isinstance(table, dict) for table in (spec["source"], spec["backward"], *tables)):
        raise ValueError("the run's attribute 'spec' is not the description of an experiment; copy the store again")
    return spec


def missing_tasks(run: xr.Dataset) -> int:
    """Number of tasks missing in the run's store; 0 for a run without a store."""
    return int(run.attrs.get("missing_tasks", 0))


def describe(run: xr.Dataset) -> str:
    """One line of text about a run: model, scheduler, steps, data."""
    spec = stored_spec(run)
    backward, source = spec["backward"], spec["source"]
    words = [_file_name(backward["model"])] if "model" in backward else []
    if "description" in run.attrs:
        words.append(run.attrs["description"])
    elif "scheduler" in backward:
        words.append(f"{backward['scheduler']}, {backward.get('steps', '?')} steps")
    count, trajectories, clones = run.sizes["item"], run.sizes.get("trajectory", 1), run.sizes.get("clone", 1)
    words.append(
        f"{count} {'original' if count == 1 else 'originals'} of {_file_name(source.get('path', source.get('type', '?')))}"
    )
    if trajectories > 1:
        words.append(f"{trajectories} noisy versions of each")
    if clones > 1:
        words.append(f"{clones} clones of each noisy version")
    return " · ".join(words)


def _file_name(path: str) -> str:
    """The last part of a path, in valid Unicode."""
    return os.fsencode(Path(str(path)).name or str(path)).decode(errors="replace")


def kept_images(run: xr.Dataset) -> int:
    """Number of items whose reconstructions a run kept; they are the first items."""
    for table in stored_spec(run)["probes"]:
        if table.get("type") == "images" and "image" in run:
            first = table.get("first")
            return run.sizes["item"] if first is None else min(int(first), run.sizes["item"])
    return 0


def originals(run: xr.Dataset, count: int) -> tuple[np.ndarray, list[str]]:
    """The first originals of a run that kept images, and their names; NaN if the source is missing or has changed."""
    items = np.arange(count)
    labels = run.label.values[:count] if "label" in run.coords else np.full(count, -1)
    names = [f"class {label}" if label >= 0 else f"item {item}" for item, label in zip(items, labels, strict=True)]
    identity = np.flatnonzero(np.isclose(run.noise.values, 0))
    if len(identity):
        return run.image.isel(noise=identity[0], trajectory=0, clone=0, item=items, missing_dims="ignore").values, names
    found = _images_of_source(run, items)
    if found is None:  # the folder of originals may have been removed
        return np.full((count, *run.image.shape[3:]), np.nan, np.float32), names
    images, class_names = found
    if class_names:
        names = [class_names[label] if 0 <= label < len(class_names) else name for name, label in zip(names, labels, strict=True)]
    return images, names


def _images_of_source(run: xr.Dataset, items: np.ndarray) -> tuple[np.ndarray, list[str] | None] | None:
    """Images from the source of a run, and the names of its classes; None if they cannot be read or have changed."""
    from uturn.spec import build

    try:
        spec = stored_spec(run)
        # Code named in a store is not imported, so only built-in sources are built.
        source = build("source", spec["source"], trusted=False)
        if source.fingerprint() != json.loads(run.attrs["models"])["source"]:
            return None
        images = np.concatenate([block.data for block in source.blocks(items, spec["seed"], run.sizes["item"])])
        return images, source.class_names()
    except (ValueError, OSError, KeyError, TypeError):
        return None
