"""Trees of a page: the share of U-turns that keep each node at the noise of the slider, or else
the mean over its level.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.estimates import ESTIMATE
from uturn.measures.intervals import proportion
from uturn.pages.charts import numbers
from uturn.studies.axes import is_geometric
from uturn.studies.runs import item_names

_MOST_ORIGINALS = 8
_READINGS = {
    "belief": "exact probability of the original's symbol",
    "unchanged": "share of U-turns that keep the original's symbol",
    "parsed": "share of U-turns that keep the original's symbol, found by parsing",
}


def tree_of_store(run: xr.Dataset) -> dict[str, Any] | None:
    """The tree of a run of strings; None if the run has no readings of tree levels, or its
    source has no grammar.
    """
    try:
        source = json.loads(run.attrs["spec"])["source"]
        branching, depth = int(source["branching"]), int(source["depth"])
    except (KeyError, ValueError, TypeError):
        return None
    names = [name for name in _READINGS if name in run and run[name].dims[:2] == ("noise", "item")]
    if not names or run.sizes.get("tree_level") != depth + 1:
        return None
    readings = [
        _reading(name, proportion(run[name].sortby("noise")).values, _nodes(run, f"node_{name}"))
        for name in names
    ]
    return _tree(branching, depth, run.noise, readings)


def tree_of_figure(data: xr.Dataset) -> dict[str, Any] | None:
    """The tree of a figure whose data are means of tree levels against noise; None for other
    figures.
    """
    if "branching" not in data.attrs or "tree_level" not in data.dims:
        return None
    readings = []
    for name in _READINGS:
        values = (
            data[name].mean("grammar")
            if name in data and "grammar" in data[name].dims
            else data.get(name)
        )
        if values is not None and set(values.dims) == {"noise", "tree_level"}:
            mean = values.sortby("noise").transpose("noise", "tree_level").values
            readings.append(
                _reading(name, np.stack([mean, *[np.full_like(mean, np.nan)] * 2], -1), [])
            )
    return _tree(
        int(data.attrs["branching"]), data.sizes["tree_level"] - 1, data.get("noise"), readings
    )


def _tree(branching: int, depth: int, noise: Any, readings: list[Any]) -> dict[str, Any] | None:
    if not readings or branching < 2 or depth < 1 or len(noise) < 2:
        return None
    label = str(noise.attrs.get("long_name", "noise")).replace("epsilon", "ε")
    scale = {
        "words": label,
        "noise": numbers(np.sort(noise.values)),
        "log": is_geometric(np.sort(noise.values)),
    }
    return {"branching": branching, "depth": depth, **scale, "readings": readings}


def _reading(name: str, means: np.ndarray, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of the tree levels (noise, tree_level, estimate), from the leaves up, and readings
    of single nodes.
    """
    levels = [
        dict(zip(ESTIMATE, map(numbers, of_level), strict=True))
        for of_level in means.transpose(1, 2, 0)
    ]
    return {"name": name, "words": _READINGS[name], "levels": levels, "items": items}


def _nodes(run: xr.Dataset, name: str) -> list[dict[str, Any]]:
    """Readings of single nodes, original by original: at each noise level, the nodes from the
    root down, in per cent.
    """
    if name not in run or set(run[name].dims) - {"noise", "item", "trajectory", "clone", "node"}:
        return []
    few = run[name].isel(item=slice(_MOST_ORIGINALS)).sortby("noise").load()
    mean = few.mean([dim for dim in few.dims if dim in ("trajectory", "clone")]).transpose(
        "item", "noise", "node"
    )
    known = mean[mean.notnull().all(("noise", "node")).values]
    return [
        {"name": name, "nodes": np.round(100 * values).astype(int).tolist()}
        for name, values in zip(item_names(known, np.arange(len(known))), known.values, strict=True)
    ]
