"""Reference statistics of the layers of a network: accumulation batch by batch, and files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from uturn.core.checks import checked_integer, one_line
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
        """Add a batch (count, ...), which is overwritten, by the update of Chan, Golub and LeVeque (1979)."""
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
        """Per channel: mean and variance over samples and positions; variance over samples (count - 1), summed over positions."""
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
    """Read the statistics that `write_statistics` wrote for the same network, layers and channel axes.

    Raises
    ------
    ValueError
        If the file is missing or damaged, or has the statistics of another network, other layers or other axes.
    """
    header, arrays = _content(path)
    _check_network(path, header, model)
    try:
        stored, stored_axes, shapes = (json.loads(header[name]) for name in ("layers", "channel_axes", "shapes"))
        count = checked_integer("reference_count", json.loads(header["reference_count"]), 2)
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read ({one_line(error)})") from None
    if stored != list(layers):
        raise ValueError(f"{path}: statistics of layers {str(stored)[:200]}; this probe reads {list(layers)}")
    if stored_axes != axes:
        raise ValueError(f"{path}: statistics along channel axes {str(stored_axes)[:200]}; this probe has {axes}")
    for layer in layers:
        try:
            shape = [checked_integer("shape", size, 0) for size in shapes[layer]]
            channels = shape[channel_position(axes[layer], layer, len(shape) + 1) - 1]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: no shape of layer {layer!r} ({one_line(error)})") from None
        for name in _TABLES:
            _check_table(path, arrays.get(f"{layer}/{name}", np.zeros(0)), name, layer, channels)
    mean, variance, spread = ({layer: arrays[f"{layer}/{name}"] for layer in layers} for name in _TABLES)
    return LayerStatistics(mean, variance, spread, {layer: tuple(shapes[layer]) for layer in layers}, count)


def _content(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"no file {path}; expected statistics written by HiddenLayers.save_statistics")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
        raise ValueError(f"{path} is damaged, or not a file of layer statistics ({one_line(error)})") from None


def _check_network(path: str | os.PathLike[str], header: Mapping[str, str], model: nn.Module) -> None:
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {header.get('format')!r}; expected {_FORMAT!r}: fit and save the probe again")
    expected = fingerprint(model)
    if header.get("model") != expected:
        raise ValueError(
            f"{path} holds the statistics of another network (fingerprint {str(header.get('model'))[:12]}.., here "
            f"{expected[:12]}..); fit the probe on this one"
        )


def _check_table(path: Any, table: np.ndarray, name: str, layer: str, channels: int) -> None:
    good = table.dtype == np.float64 and table.shape == (channels,) and np.isfinite(table).all()
    if not good or (name != "mean" and (table < 0).any()):
        raise ValueError(
            f"{path} is damaged: {name} of layer {layer!r} has dtype {table.dtype}, shape {table.shape}; expected "
            f"{channels} finite float64 numbers{'' if name == 'mean' else ' >= 0'}"
        )
