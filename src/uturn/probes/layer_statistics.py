"""Reference statistics of the layers of a network: accumulation batch by batch, and files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from uturn.core.checks import checked_integer
from uturn.core.files import whole_file
from uturn.networks.state_dicts import fingerprint

_FORMAT = "uturn-layer-statistics-2"
_TABLES = ("mean", "variance", "spread")


class LayerStatistics(NamedTuple):
    """Statistics of channels over a reference set, {layer: float64 (channels,)}; see the attributes of `HiddenLayers`."""

    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    spread: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    reference_count: int


class Moments:
    """Running count, mean and sum of squared deviations of the activations of one layer, per unit."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.count = 0
        self.mean: np.ndarray = np.zeros(())
        self.sum_of_squares: np.ndarray = np.zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Add a batch (count, ...) by the update of Chan, Golub and LeVeque (1979); the batch is overwritten."""
        count, mean = len(values), values.mean(0)
        if self.count and mean.shape != self.mean.shape:
            raise ValueError(
                f"layer {self.layer!r}: activations {tuple(mean.shape)} after {self.mean.shape}; samples must have one size"
            )
        squares = values.sub_(mean).square_().sum(0).cpu().numpy()
        total = self.count + count
        shift = mean.cpu().numpy() - self.mean
        self.sum_of_squares = self.sum_of_squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def by_channel(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By channel: mean and variance over samples and positions; variance over samples (count - 1), summed over positions."""
        over = tuple(k for k in range(self.mean.ndim) if k != axis - 1)
        mean, squares = self.mean.mean(over), self.sum_of_squares.sum(over)
        variance = (self.sum_of_squares / self.count).mean(over) + self.mean.var(over)
        return mean, variance, squares / (self.count - 1)


def channel_position(axis: int, layer: str, ndim: int) -> int:
    """Axis of the channels, >= 1, in activations with `ndim` axes, the batch first; always 1 for two axes."""
    axis = axis if ndim > 2 else 1
    if not (1 <= axis < ndim or -ndim < axis < 0):
        raise ValueError(f"channel_axis = {axis} of layer {layer!r}: its activations have {ndim} axes, and axis 0 is the batch")
    return axis % ndim


# -- files ------------------------------------------------------------------------------------------------------------


def write_statistics(
    path: str | os.PathLike[str], statistics: LayerStatistics, model: nn.Module, layers: Sequence[str], axes: Mapping[str, int]
) -> None:
    """Write statistics to a safetensors file, with the fingerprint of the network, its layers and their channel axes."""
    from safetensors.numpy import save

    arrays = {f"{layer}/{name}": np.ascontiguousarray(getattr(statistics, name)[layer]) for name in _TABLES for layer in layers}
    metadata = {
        "format": _FORMAT,
        "layers": json.dumps(layers),
        "shapes": json.dumps(statistics.shapes),
        "channel_axes": json.dumps(axes),
        "reference_count": str(statistics.reference_count),
        "model": fingerprint(model),
    }
    with whole_file(path) as file:
        file.write(save(arrays, metadata))


def read_statistics(
    path: str | os.PathLike[str], model: nn.Module, layers: Sequence[str], axes: Mapping[str, int]
) -> LayerStatistics:
    """Read a file of `write_statistics` for the same network, layers and channel axes.

    Raises
    ------
    ValueError
        If the file is missing or damaged, or has the statistics of another network, other layers or other axes.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"no file {path}; expected statistics written by HiddenLayers.save_statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return _checked(header, arrays, fingerprint(model), list(layers), axes)
    # AttributeError and TypeError: types that numpy lacks; RecursionError: JSON that is nested too deeply.
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is damaged, or not of this probe ({reason}); fit the probe and save its statistics") from None


def _checked(
    header: Mapping[str, str], arrays: Mapping[str, np.ndarray], model: str, layers: list[str], axes: Mapping[str, int]
) -> LayerStatistics:
    if header.get("format") != _FORMAT:
        raise ValueError(f"format {header.get('format')!r}; expected {_FORMAT!r}")
    if header["model"] != model:
        raise ValueError(f"the statistics of another network, with fingerprint {header['model'][:12]}.., here {model[:12]}..")
    stored = {name: json.loads(header[name]) for name in ("layers", "channel_axes", "shapes", "reference_count")}
    if stored["layers"] != layers:
        raise ValueError(f"statistics of layers {str(stored['layers'])[:100]}; this probe reads {layers}")
    if stored["channel_axes"] != axes:
        raise ValueError(f"statistics along channel axes {str(stored['channel_axes'])[:100]}; this probe has {axes}")
    count = checked_integer("reference_count", stored["reference_count"], 2)
    shapes = {layer: tuple(checked_integer("shape", size, 0) for size in stored["shapes"][layer]) for layer in layers}
    tables: dict[str, dict[str, np.ndarray]] = {name: {} for name in _TABLES}
    for layer, shape in shapes.items():
        channels = shape[channel_position(axes[layer], layer, len(shape) + 1) - 1]
        for name in _TABLES:
            table = arrays[f"{layer}/{name}"]
            is_good = table.dtype == np.float64 and table.shape == (channels,) and np.isfinite(table).all()
            if not is_good or (name != "mean" and (table < 0).any()):
                least = "" if name == "mean" else " >= 0"
                raise ValueError(f"{name} of layer {layer!r}: expected {channels} finite float64 numbers{least}")
            tables[name][layer] = table
    mean, variance, spread = tables.values()
    return LayerStatistics(mean, variance, spread, shapes, count)
