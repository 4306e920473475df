"""Similarity of data in the hidden layers of a network.

The post-activations of a layer are standardised by the mean and variance of each channel over a
reference set (section 2 of arXiv:2402.16991). Two data are compared by the cosine of their
activations, and by their squared distance divided by the distance of independent data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import nn

from uturn.core import progress
from uturn.core.checks import checked_integer, expect
from uturn.core.errors import noted
from uturn.core.files import whole_file
from uturn.measures.clones import between_clones
from uturn.networks.files import fingerprint
from uturn.networks.layers import as_tensor, hooks, matches, select_layers
from uturn.networks.libraries import reading
from uturn.probes.activations import (
    Batch,
    Consumer,
    LayerStatistics,
    Moments,
    Receiver,
    Samples,
    as_samples,
    batches,
    check_finite,
    checked_count,
    checked_draws,
    float64_copy,
)

_TABLES = ("mean", "variance", "spread")


class Predictions(NamedTuple):
    """Output of a classifier."""

    classes: np.ndarray
    """int64 (batch,)"""
    probabilities: np.ndarray
    """float64 (batch, num_classes)"""


class Readings(NamedTuple):
    """Comparison of originals with their reconstructions, and the logits of both."""

    similarity: np.ndarray
    """Cosine, float64 (items, draws, layers) in [-1, 1]."""
    distance: np.ndarray
    """Squared distance, float64 (items, draws, layers), 1 for independent data."""
    original_logits: np.ndarray | None = None
    """Output of the model, float64 (items, classes); None if it was not read."""
    logits: np.ndarray | None = None
    """Likewise of the reconstructions, (items, draws, classes)."""
    clone_similarity: np.ndarray | None = None
    """Mean similarity of a clone with the others of its noisy datum; None for a single clone."""
    clone_distance: np.ndarray | None = None
    """Likewise their mean distance."""


class HiddenLayers:
    """Outputs of modules of a network, read by forward hooks, in which they are processed and
    dropped.

    `model`: any `torch.nn.Module` in evaluation mode that takes a batch of samples, on the device
    of its parameters. `layers`: names of modules, glob patterns of them, or "every block"
    (`uturn.networks.layers.select_layers`); by default the direct children of the model. Each must
    run once in a forward pass. (): none, to read the logits alone. `preprocess`: function applied
    to each batch (a tensor) before the model; statistics refer to its results. `batch_size`:
    samples in a forward pass, at least one pair when pairs are compared. `channel_axis`: axis of
    the channels in activations with three or more axes, a number, or {name or pattern: number} with
    1 for all other layers; convolutions have axis 1, transformers -1. `legacy`: divide by the
    square root of the second moment E[a^2] instead of the standard deviation, as the code published
    with the paper does.

    `statistics`: {layer: `LayerStatistics`} over the reference set, empty before `fit`; `mean`,
    `variance`, `spread` and `shapes` are {layer: value} of each. `reference_count`: number of
    reference samples.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | None = None,
        preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        batch_size: int = 100,
        channel_axis: int | Mapping[str, int] = 1,
        legacy: bool = False,
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.legacy = legacy
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.layers: tuple[str, ...] = ()
        if layers != ():
            self.layers = select_layers(model, layers)
        self._axes = _channel_axes(self.layers, channel_axis)
        self.statistics: dict[str, LayerStatistics] = {}
        self.reference_count = 0
        self._check_evaluation_mode()

    @property
    def mean(self) -> dict[str, np.ndarray]:
        return {layer: entry.mean for layer, entry in self.statistics.items()}

    @property
    def variance(self) -> dict[str, np.ndarray]:
        return {layer: entry.variance for layer, entry in self.statistics.items()}

    @property
    def spread(self) -> dict[str, np.ndarray]:
        return {layer: entry.spread for layer, entry in self.statistics.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {layer: entry.shape for layer, entry in self.statistics.items()}

    # -- reference statistics ----------------------------------------------------------------------
    def fit(self, samples: Samples | Iterable[Samples]) -> HiddenLayers:
        """Compute the statistics of every channel over a reference set, replacing earlier ones;
        returns the probe.

        `samples`: as in `activations`, or an iterable of such batches. Moments are accumulated in
        float64 without cancellation.
        """
        moments = {layer: Moments(layer) for layer in self.layers}

        def add(layer: str, values: torch.Tensor) -> None:
            moments[layer].add(float64_copy(values))

        blocks = [samples] if isinstance(samples, np.ndarray | torch.Tensor) else samples
        for block in blocks:
            if len(block):
                for batch in as_samples(block).split(self.batch_size):
                    self._forward(batch, add)
        count = min((entry.count for entry in moments.values()), default=0)
        self.reference_count = checked_count(count, "number of reference samples")
        self.statistics = {
            layer: entry.statistics(self.axis(layer, entry.mean.ndim + 1))
            for layer, entry in moments.items()
        }
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics of the layers to a safetensors file, with the fingerprint of the
        network.
        """
        self._check_fitted()
        arrays = {}
        for name in _TABLES:
            for layer, entry in self.statistics.items():
                arrays[f"{layer}/{name}"] = np.ascontiguousarray(getattr(entry, name))
        header = {
            "shapes": json.dumps(self.shapes),
            "reference_count": str(self.reference_count),
            **self._identity(),
        }
        with whole_file(path) as file:
            file.write(save(arrays, header))

    def load_statistics(self, path: str | os.PathLike[str]) -> HiddenLayers:
        """Read a file of `save_statistics`; ValueError if it is damaged, or of another network,
        other layers or other axes.
        """
        expected = "a file written by HiddenLayers.save_statistics"
        expect(Path(path).is_file(), "statistics", path, expected)
        with reading(
            f"{path} is damaged, or not of this probe:", "fit the probe and save its statistics"
        ):
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                for name, mine in self._identity().items():
                    stored = header.get(name)
                    where = f"of another network: {name}"
                    expect(stored == mine, where, stored, mine[:100])
                tables = {
                    layer: [file.get_tensor(f"{layer}/{name}") for name in _TABLES]
                    for layer in self.layers
                }
            count = int(header["reference_count"])
            shapes = json.loads(header["shapes"])
            statistics: dict[str, LayerStatistics] = {}
            for layer in self.layers:
                mean, variance, spread = tables[layer]
                entry = LayerStatistics(mean, variance, spread, tuple(shapes[layer]))
                for name in _TABLES:
                    self._check_table(name, layer, entry, count)
                statistics[layer] = entry
        self.reference_count = count
        self.statistics = statistics
        return self

    def _check_table(self, name: str, layer: str, entry: LayerStatistics, count: int) -> None:
        """ValueError for a table of a file that cannot be a statistic of the layer."""
        channels = entry.shape[self.axis(layer, len(entry.shape) + 1) - 1]
        table: np.ndarray = getattr(entry, name)
        fits = table.dtype == np.float64 and table.shape == (channels,) and count > 1
        is_finite = fits and bool(np.isfinite(table).all())
        expect(
            is_finite and (name == "mean" or (table >= 0).all()),
            f"{name} of layer {layer!r}",
            table,
            f"{channels} finite numbers of 2 samples or more",
        )

    def _identity(self) -> dict[str, str]:
        return {
            "model": fingerprint(self.model),
            "layers": json.dumps(self.layers),
            "channel axes": json.dumps(self._axes),
        }

    # -- measurement -------------------------------------------------------------------------------
    def activations(self, samples: Samples) -> Iterator[dict[str, torch.Tensor]]:
        """Raw activations {layer: float32 (batch, ...)} of samples (count, ...), batch after
        batch of at most `batch_size`.
        """
        for batch in as_samples(samples).split(self.batch_size):
            captured: dict[str, torch.Tensor] = {}
            self._forward(batch, partial(_capture, captured))
            yield {layer: captured[layer] for layer in self.layers}

    def predict(self, samples: Samples) -> Predictions:
        """Predicted classes and probabilities, with the model's output (batch, num_classes) as
        logits.
        """
        parts = as_samples(samples).split(self.batch_size)
        logits = [_logits(self._forward(part, None)) for part in parts]
        probabilities = torch.cat([part.softmax(dim=1) for part in logits])
        return Predictions(probabilities.argmax(dim=1).numpy(), probabilities.numpy())

    def compare(self, original: Samples, reconstructed: Samples) -> Readings:
        """Cosine similarity and normalised squared distance of standardised activations, float64
        (count, layers), row by row.

        Let z be the activation of a whole layer after (a - mean) / sqrt(variance) per channel,
        without channels that are constant over the reference set. similarity = z . z' / (|z| |z'|),
        in [-1, 1]; 1 if both z are zero, 0 if one is. distance = |z - z'|^2 / (2 sum_i Var z_i),
        with the variance over the reference samples: 0 for equal activations, and 1 on average for
        different reference samples and for independent data; NaN for samples of another size than
        the reference samples.
        """
        first = as_samples(original)
        second = as_samples(reconstructed)
        expect(
            first.shape == second.shape,
            "shape of reconstructed",
            tuple(second.shape),
            f"{tuple(first.shape)}, of pairs",
        )
        readings = self.read(first, second[:, None], logits=False)
        return Readings(readings.similarity[:, 0], readings.distance[:, 0])

    def similarity(self, original: Samples, reconstructed: Samples) -> np.ndarray:
        """Cosine similarity, float64 (count, num_layers), in [-1, 1]; see `compare`."""
        return self.compare(original, reconstructed).similarity

    def read(
        self, original: Samples, reconstructed: Samples, clones: int = 1, *, logits: bool = True
    ) -> Readings:
        """Comparison of originals (items, ...) with several reconstructions each (items, draws,
        ...), and the logits of all.

        The `clones` of a noisy datum are adjacent, and always in one batch, even if this exceeds
        `batch_size`; each is also compared with the others. `logits`: False for encoders.
        """
        self._check_fitted()
        first, second = checked_draws(original, reconstructed, clones)
        items, draws = second.shape[:2]
        kinds = 2 if clones == 1 else 4  # similarity and distance, to the original and to clones
        tables = np.empty((kinds, items, draws, len(self.layers)))
        tables_of_logits: _Logits | None = None

        def compare(batch: Batch, layer: str, values: torch.Tensor) -> None:
            column = self.layers.index(layer)
            readings = self._compared(layer, values, batch.num_items, clones)
            tables[:, batch.items, batch.draws, column] = readings

        for batch, output in self.visit(first, second, clones, compare):
            if logits:
                batch_logits = _logits(output).numpy()
                if tables_of_logits is None:
                    tables_of_logits = _Logits.empty(items, draws, batch_logits.shape[1])
                tables_of_logits.fill(batch, batch_logits)
                del batch_logits
            del output  # free the memory before the next batch
        original_logits, draw_logits = tables_of_logits or (None, None)
        return Readings(tables[0], tables[1], original_logits, draw_logits, *tables[2:])

    def visit(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        clones: int,
        consume: Callable[[Batch, str, torch.Tensor], None],
    ) -> Iterator[tuple[Batch, Any]]:  # the output of any module
        """Pass originals (items, ...) with their reconstructions (items, draws, ...) through the
        model, in batches as in `read`: (batch, output of the model) of each.

        `consume(batch, layer, activations)` is called as soon as a layer has run; the activations
        of the originals of the batch come first.
        """
        items, draws = second.shape[:2]
        for batch in progress.steps(batches(items, draws, clones, self.batch_size)):
            samples = torch.cat(
                [first[batch.items], second[batch.items, batch.draws].flatten(0, 1)]
            )
            yield batch, self._forward(samples, partial(consume, batch))

    def _compared(
        self, layer: str, values: torch.Tensor, num_items: int, clones: int
    ) -> np.ndarray:
        """Similarity and distance (2, items, draws) from the activations of a batch; with several
        clones (4, items, draws), also to the other clones.
        """
        statistics = self.statistics[layer]
        axis = self.axis(layer, values.ndim)
        channels = len(statistics.mean)
        expect(
            channels == values.shape[axis],
            f"shape of layer {layer!r}",
            tuple(values.shape),
            f"{channels} channels, as the reference has",
        )
        factors = statistics.factors(legacy=self.legacy)
        z = statistics.standardised(values, factors, axis).flatten(1)
        independent = np.nan
        if values.shape[1:] == statistics.shape:
            independent = 2 * float(np.sum(statistics.spread * factors**2))
        compare = partial(_similarity_and_distance, independent=independent)
        originals = z[:num_items]
        rebuilt = z[num_items:].view(num_items, -1, z.shape[1])
        readings = [compare(originals[:, None], rebuilt)]
        if clones > 1:
            readings.append(between_clones(rebuilt, clones, compare))
        return np.moveaxis(np.concatenate(readings, -1), -1, 0)

    def axis(self, layer: str, ndim: int) -> int:
        """Axis of the channels of a layer, >= 1, in activations with `ndim` axes, the batch
        first; always 1 for two axes.
        """
        axis = self._axes[layer] if ndim > 2 else 1
        expect(
            1 <= axis < ndim or -ndim < axis < 0,
            f"channel_axis of layer {layer!r}",
            axis,
            f"one of its {ndim} axes but 0, the batch",
        )
        return axis % ndim

    def _forward(self, batch: torch.Tensor, consume: Consumer | None) -> Any:  # noqa: ANN401 - the output of any module
        """The model's output for one batch; `consume(layer, activations)` is called as soon as a
        layer has run.
        """
        self._check_evaluation_mode()
        parameter = next(self.model.parameters(), None)
        device = None if parameter is None else parameter.device
        samples = batch.to(device, copy=True)  # the model may work in place
        layers = () if consume is None else self.layers
        receive = Receiver(len(samples), consume)
        dtype_and_shape = f"samples of dtype {samples.dtype}, shape {tuple(samples.shape)}"
        label = f"{type(self.model).__name__}, of {dtype_and_shape}"
        with hooks(self.model, layers, receive), torch.inference_mode(), noted(label):
            if self.preprocess is not None:
                samples = self.preprocess(samples)
            output = self.model(samples)
        receive.check(layers)
        return output

    def _check_fitted(self) -> None:
        expect(
            self.statistics or not self.layers,
            "reference statistics",
            None,
            "those of fit(samples) or load_statistics(path)",
        )

    def _check_evaluation_mode(self) -> None:
        modules = self.model.named_modules()
        training = [name or "the model itself" for name, module in modules if module.training]
        expect(
            not training,
            "modules in training mode",
            training,
            "none, as activations depend on the batch; call model.eval()",
        )


def _capture(captured: dict[str, torch.Tensor], layer: str, values: torch.Tensor) -> None:
    # A copy, because the next module may work in place.
    captured[layer] = values.float().cpu().clone()


def _similarity_and_distance(
    first: torch.Tensor, second: torch.Tensor, *, independent: float
) -> np.ndarray:
    """Cosine, and squared distance divided by `independent`, (.., 2), of vectors (.., units).
    Vectors of length 0 are equal.
    """
    products = (first * second).sum(-1)
    first_norm = first.norm(dim=-1)
    second_norm = second.norm(dim=-1)
    norms = first_norm * second_norm
    are_zero = (first_norm == 0) & (second_norm == 0)
    squares = (first - second).square_().sum(-1).cpu().numpy()
    similarity = torch.where(norms > 0, products / norms, are_zero.double()).clamp(-1, 1)
    if independent:
        distance = squares / independent
    else:
        distance = np.where(squares > 0, np.inf, 0.0)
    return np.stack([similarity.cpu().numpy(), distance], -1)


def _channel_axes(layers: Sequence[str], channel_axis: int | Mapping[str, int]) -> dict[str, int]:
    """The axis of the channels of each layer, by the first pattern that matches its name."""
    by_pattern = channel_axis if isinstance(channel_axis, Mapping) else {"**": channel_axis}
    axes: dict[str, int] = {}
    for pattern, axis in by_pattern.items():
        matching = [layer for layer in layers if matches(layer, pattern)]
        expected = f"a pattern of the probed layers {', '.join(layers)}"
        expect(matching or not layers, "channel_axis", pattern, expected)
        for layer in matching:
            axes.setdefault(layer, axis)
    return {layer: axes.get(layer, 1) for layer in layers}


def _logits(output: object) -> torch.Tensor:
    """The output of a classifier, float64 (batch, num_classes) on the CPU, finite."""
    logits = as_tensor(output, "the model").cpu().double()
    expect(
        logits.ndim == 2,
        "shape of the model's output",
        tuple(logits.shape),
        "(batch, classes), as logits have",
    )
    check_finite(logits, "class probabilities")
    return logits


class _Logits(NamedTuple):
    """Logits of all data, float64."""

    originals: np.ndarray
    """(items, classes)"""
    reconstructions: np.ndarray
    """(items, draws, classes)"""

    @classmethod
    def empty(cls, items: int, draws: int, num_classes: int) -> _Logits:
        return cls(np.empty((items, num_classes)), np.empty((items, draws, num_classes)))

    def fill(self, batch: Batch, logits: np.ndarray) -> None:
        """Enter the logits of a batch, (originals and reconstructions, classes)."""
        count = batch.num_items
        draw_logits = logits[count:].reshape(count, -1, logits.shape[1])
        self.originals[batch.items] = logits[:count]
        self.reconstructions[batch.items, batch.draws] = draw_logits
