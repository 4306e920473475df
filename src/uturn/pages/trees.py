"""Trees of a page: the share of U-turns that keep each node at the noise of the slider, or else
the mean over its level.
"""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from uturn.measures.intervals import proportion
from uturn.pages.charts import over_grammars
from uturn.pages.pictures import noise_axis
from uturn.pages.views import Tree, TreeMeans, TreeNodes, TreeReading, numbers
from uturn.studies.runs import item_names

_MOST_ORIGINALS = 8
_READINGS = {
    "belief": "exact probability of the original's symbol",
    "unchanged": "share of U-turns that keep the original's symbol",
    "parsed": "share of U-turns that keep the original's symbol, found by parsing",
}


def tree_of_store(run: xr.Dataset, name: str = "") -> Tree | None:
    """The tree of a run of strings; None if the run has no readings of tree levels, or its
    source has no grammar. `name`: of the run, if a section has several.
    """
    try:
        source = json.loads(run.attrs["spec"])["source"]
        branching = int(source["branching"])
        depth = int(source["depth"])
    except (KeyError, ValueError, TypeError):
        return None
    if run.sizes.get("tree_level") != depth + 1:
        return None
    readings = []
    for reading in _READINGS:
        if reading in run and run[reading].dims[:2] == ("noise", "item"):
            means = proportion(run[reading].sortby("noise")).values
            readings.append(_reading(reading, means, _nodes(run, f"node_{reading}")))
    return _tree(branching, depth, run.noise, readings, name)


def tree_of_figure(data: xr.Dataset) -> Tree | None:
    """The tree of a figure whose data are means of tree levels against noise; None for other
    figures.
    """
    if "branching" not in data.attrs or "tree_level" not in data.dims:
        return None
    readings = []
    for name in _READINGS:
        if name not in data:
            continue
        values = over_grammars(data[name])
        if set(values.dims) == {"noise", "tree_level"}:
            means = values.sortby("noise").transpose("noise", "tree_level").values
            unknown = np.full_like(means, np.nan)
            readings.append(_reading(name, np.stack([means, unknown, unknown], -1), []))
    depth = data.sizes["tree_level"] - 1
    return _tree(int(data.attrs["branching"]), depth, data.get("noise"), readings)


def _tree(
    branching: int,
    depth: int,
    noise: xr.DataArray | None,
    readings: list[TreeReading],
    run: str = "",
) -> Tree | None:
    if noise is None or not readings or branching < 2 or depth < 1 or len(noise) < 2:
        return None
    label = str(noise.attrs.get("long_name", "noise")).replace("epsilon", "ε")
    return Tree(branching, depth, noise_axis(np.sort(noise.values), label), readings, run)


def _reading(name: str, means: np.ndarray, originals: list[TreeNodes]) -> TreeReading:
    """Means of the tree levels (noise, tree_level, estimate), from the leaves up, and readings
    of single nodes.
    """
    levels = []
    for estimates in means.transpose(1, 2, 0):
        value, low, high = map(numbers, estimates)
        levels.append(TreeMeans(value, low, high))
    return TreeReading(name, _READINGS[name], levels, originals)


def _nodes(run: xr.Dataset, name: str) -> list[TreeNodes]:
    """Readings of single nodes, original by original: at each noise level, the nodes from the
    root down, in per cent.
    """
    if name not in run or set(run[name].dims) - {"noise", "item", "trajectory", "clone", "node"}:
        return []
    few = run[name].isel(item=slice(_MOST_ORIGINALS)).sortby("noise").load()
    draws = [dim for dim in few.dims if dim in ("trajectory", "clone")]
    mean = few.mean(draws).transpose("item", "noise", "node")
    measured = mean[mean.notnull().all(("noise", "node")).values]
    names = item_names(measured, np.arange(len(measured)))
    nodes = []
    for original, values in zip(names, measured.values, strict=True):
        nodes.append(TreeNodes(original, np.round(100 * values).astype(int).tolist()))
    return nodes
