"""Similarity of data in the hidden layers of a network.

The post-activations of a layer are standardised: the mean of each channel over a reference set is subtracted, and the difference
is divided by the standard deviation (section 2 of arXiv:2402.16991). Two data are then compared by the cosine of their
activations, and by their squared distance divided by that of independent data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from uturn.core import progress
from uturn.core.checks import checked_integer, one_line
from uturn.networks.layers import as_tensor, checked_model, hooks, matches, select_layers
from uturn.probes.layer_statistics import LayerStatistics, Moments, channel_position, read_statistics, write_statistics

_Name = Callable[[int], str]  # name of a row of a batch, for messages


class Predictions(NamedTuple):
    """Output of a classifier: `classes` int64 (batch,) and `probabilities` float64 (batch, num_classes)."""

    classes: np.ndarray
    probabilities: np.ndarray


class Comparison(NamedTuple):
    """Comparison of pairs, float64 (count, num_layers): `similarity` in [-1, 1] and `distance` >= 0."""

    similarity: np.ndarray
    distance: np.ndarray


class Readings(NamedTuple):
    """Comparison of originals with their reconstructions, and the logits of both.

    `similarity`, `distance`: float64 (items, draws, num_layers), as in `Comparison`, of a reconstruction and its original.
    `original_logits`: float64 (items, num_classes) and `logits`: float64 (items, draws, num_classes), the output of the model;
    num_classes is 0 if no logits were read.
    `clone_similarity`, `clone_distance`: float64 (items, draws, num_layers), comparison of a clone with the
    other clones of its noisy datum, averaged over these; None for a single clone.
    """

    similarity: np.ndarray
    distance: np.ndarray
    original_logits: np.ndarray
    logits: np.ndarray
    clone_similarity: np.ndarray | None = None
    clone_distance: np.ndarray | None = None


class HiddenLayers:
    """Outputs of modules of a network, read by forward hooks.

    Activations are processed inside the hook and dropped. In addition to the forward pass, `compare` and `read` hold at most two
    float64 copies of the activations of *one* layer for *one* batch. `fit` also holds a mean and a sum of squares for every
    layer, each of the size of one sample. `activations` yields all layers of one batch at a time.

    Parameters
    ----------
    model
        Any `torch.nn.Module` in evaluation mode that takes a batch of samples.
    layers
        Names of modules, glob patterns of them, or "every block", see `uturn.networks.layers.select_layers`. By default the
        direct children of the model. The output of each module must be a tensor (or a tuple that starts with one), produced once
        in a forward pass. Choose modules whose outputs are post-activations. (): none, to read the logits alone.
    preprocess
        Function applied to each batch (a tensor) before the model: resizing, ImageNet's normalisation, ... Statistics refer to
        the preprocessed data. Statistics files do not record the preprocessing; pass the same function when they are loaded.
    batch_size
        Samples in a forward pass, at least one pair when pairs are compared. The model runs on the device of its parameters.
    channel_axis
        Axis of the channels in activations with three or more axes: a number, or {name or pattern: number} with 1 for all other
        layers. Convolutions have axis 1, transformers -1. Activations (batch, units) are standardised per unit.
    legacy
        Divide by the square root of the second moment E[a^2] instead of the standard deviation, as in the code published with
        the paper. This reduces the weight of channels with a large mean; use it only to compare with published curves.

    Attributes
    ----------
    layers : tuple of str
        The probed modules, in the order in which the model registers them.
    mean, variance : {layer: float64 (channels,)}
        Mean and variance over samples and positions of the reference set; empty before `fit` or `load_statistics`.
    spread : {layer: float64 (channels,)}
        Variance over samples at a fixed position (normalised by count - 1), summed over positions.
    shapes : {layer: tuple}
        Shape of the activations of one reference sample.
    reference_count : int
        Number of reference samples.
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
        self.model = checked_model(model)
        self.preprocess = preprocess
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.layers = () if layers == () else select_layers(model, layers)
        self.legacy = legacy
        self._axes = _channel_axes(self.layers, channel_axis)
        self._take(LayerStatistics({}, {}, {}, {}, 0))
        self._check_evaluation_mode()

    # -- reference statistics ------------------------------------------------------------------------------------------
    def fit(self, samples: Any) -> HiddenLayers:
        """Compute the mean and variance of every channel over a reference set, replacing earlier statistics; returns the probe.

        The variance is the mean of (a - mean)^2 over samples and positions, accumulated in float64 batch by batch in one pass
        without cancellation.

        Parameters
        ----------
        samples
            As in `activations`, or an iterable of such batches for sets that do not fit in memory.

        Raises
        ------
        ValueError
            For fewer than two samples, samples of different sizes, or activations that are not finite.
        """
        moments = {layer: Moments(layer) for layer in self.layers}
        count = 0
        for some in [samples] if hasattr(samples, "shape") else samples:
            tensor = _checked_samples(some)
            for batch, name in self._batches(tensor, count):
                self._forward(batch, lambda layer, values: moments[layer].add(float64_copy(values)), name)
            count += len(tensor)
        if count < 2:
            raise ValueError(f"samples: {count} reference samples; a variance needs at least 2, and many to be any good")
        reduced = {layer: moments[layer].by_channel(self.axis(layer, moments[layer].mean.ndim + 1)) for layer in self.layers}
        mean, variance, spread = ({layer: table[k] for layer, table in reduced.items()} for k in range(3))
        shapes = {layer: moments[layer].mean.shape for layer in self.layers}
        self._take(LayerStatistics(mean, variance, spread, shapes, count))
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write mean, variance and spread of the layers to a safetensors file, with the fingerprint of the network."""
        if not self.mean:
            raise ValueError("no reference statistics to save; call fit(samples) first")
        statistics = LayerStatistics(self.mean, self.variance, self.spread, self.shapes, self.reference_count)
        write_statistics(path, statistics, self.model, self.layers, self._axes)

    def load_statistics(self, path: str | os.PathLike[str]) -> HiddenLayers:
        """Read a file of `save_statistics` for the same network and layers; returns the probe.

        Raises
        ------
        ValueError
            If the file is missing or damaged, or belongs to another network or to other layers.
        """
        self._take(read_statistics(path, self.model, self.layers, self._axes))
        return self

    def _take(self, statistics: LayerStatistics) -> None:
        self.mean, self.variance, self.spread, self.shapes, self.reference_count = statistics

    # -- measurement ---------------------------------------------------------------------------------------------------
    def activations(self, samples: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Raw activations {layer: float32 (batch, ...)}, one batch of at most `batch_size` samples after the other.

        Parameters
        ----------
        samples
            Numpy array or tensor with samples along the first axis, as the model takes them: float32 images (count, channels,
            height, width), int64 strings (count, num_leaves), float32 vectors (count, d), ...
        """
        for batch, name in self._batches(_checked_samples(samples)):
            captured: dict[str, torch.Tensor] = {}

            def keep(layer: str, values: torch.Tensor, captured: dict[str, torch.Tensor] = captured) -> None:
                captured[layer] = values.float().cpu().clone()  # a copy, because the next module may work in place

            self._forward(batch, keep, name)
            yield {layer: captured[layer] for layer in self.layers}

    def predict(self, samples: Any) -> Predictions:
        """Predicted classes and probabilities, with the model's output (batch, num_classes) as logits."""
        batches = self._batches(_checked_samples(samples))
        of_batches = [_logits(self._forward(batch, None, name), name).softmax(dim=1) for batch, name in batches]
        if not of_batches:
            raise ValueError("samples: got none")
        probabilities = torch.cat(of_batches)
        return Predictions(probabilities.argmax(dim=1).numpy(), probabilities.numpy())

    def compare(self, original: Any, reconstructed: Any) -> Comparison:
        """Cosine similarity and normalised squared distance of standardised activations, for every pair and layer.

        Let z be the activation of a whole layer (all positions and channels) after (a - mean) / sqrt(variance) per channel.

        similarity = z . z' / (|z| |z'|), in [-1, 1]; 1 if both z are zero, 0 if one is.

        distance = |z - z'|^2 / (2 sum_i Var z_i), with the sum over positions and channels i, and the variance over the reference
        samples (divided by their number minus 1). It is 0 for equal activations. Its mean over all pairs of different reference
        samples is 1, as is its expectation for independent data.

        Channels that are constant over the reference set are left out. The distance needs samples of the size of the reference
        samples; `similarity` accepts every size that the model accepts.

        Parameters
        ----------
        original, reconstructed
            Samples as in `activations`; row n is compared with row n. Both samples of a pair are in one batch.

        Raises
        ------
        ValueError
            Without reference statistics, for samples of different numbers or sizes, or for activations that are not finite.
        """
        first, second = _checked_pairs(original, reconstructed)
        readings = self._compare(first, second[:, None], distances=True, outputs=False)
        return Comparison(readings.similarity[:, 0], readings.distance[:, 0])

    def similarity(self, original: Any, reconstructed: Any) -> np.ndarray:
        """Cosine similarity, float64 (count, num_layers), in [-1, 1]; see `compare`."""
        first, second = _checked_pairs(original, reconstructed)
        return self._compare(first, second[:, None], distances=False, outputs=False).similarity[:, 0]

    def read(self, original: Any, reconstructed: Any, clones: int = 1, *, logits: bool = True) -> Readings:
        """Comparison of originals with several reconstructions each, and the logits of all of them.

        An original is in one batch with its reconstructions; if there are more than `batch_size - 1` of them, it is repeated in
        each further batch.

        Parameters
        ----------
        original, reconstructed
            Samples (items, ...) and (items, draws, ...), of types as in `activations`.
        clones
            Number of reconstructions of one noisy datum; draws = trajectories * clones, with clones adjacent. With several
            clones, each is also compared with the other clones of its noisy datum. The clones of a noisy datum are always in one
            batch, even if this exceeds `batch_size`.
        logits
            False for encoders, whose output is not logits.

        Raises
        ------
        ValueError
            As in `compare`; also if the model's output is not finite logits (batch, num_classes), if there are no samples, or
            if the number of draws is not a multiple of `clones`.
        """
        first, second = checked_draws(original, reconstructed, clones)
        return self._compare(first, second, clones, distances=True, outputs=logits)

    # -- forward passes ------------------------------------------------------------------------------------------------
    def visit(
        self, first: torch.Tensor, second: torch.Tensor, clones: int, consume: Callable[..., None]
    ) -> Iterator[tuple[slice, slice, Any, _Name]]:
        """Pass originals (items, ...) with their reconstructions (items, draws, ...) through the model, in batches as in `read`.

        `consume(layer, activations, rows, columns)` is called as soon as a layer has run. rows are the items and columns the
        draws of the batch; the activations of all its originals come first, then those of the reconstructions. Yields after each
        batch: rows, columns, the output of the model, and the names of its rows.
        """
        items, draws = second.shape[:2]
        for rows, columns in progress.steps(list(batch_slices(items, draws, clones, self.batch_size))):
            name = _name_of(rows, columns, draws, clones)
            batch = torch.cat([first[rows], second[rows, columns].flatten(0, 1)])
            yield rows, columns, self._forward(batch, partial(consume, rows=rows, columns=columns), name), name

    def _compare(self, first: torch.Tensor, second: torch.Tensor, clones: int = 1, *, distances: bool, outputs: bool) -> Readings:
        """Compare (items, ...) with (items, draws, ...); logits are computed only if `outputs`."""
        if self.layers and not self.mean:
            raise ValueError("no reference statistics; call fit(samples) or load_statistics(path) first")
        items, draws = second.shape[:2]
        tables = [np.empty((items, draws, len(self.layers))) for _ in range(2 if clones == 1 else 4)]
        similarity, distance, *among_clones = tables
        original_logits, logits = np.empty((items, 0)), np.empty((items, draws, 0))

        def compare(layer: str, values: torch.Tensor, rows: slice, columns: slice) -> None:
            if distances and values.shape[1:] != self.shapes[layer]:
                raise ValueError(
                    f"layer {layer!r}: activations of shape {tuple(values.shape[1:])}, but {self.shapes[layer]} in the "
                    f"reference set; distances need samples of its size, similarity(..) does not"
                )
            of_layer = self._compare_layer(layer, values, rows.stop - rows.start, clones)
            for table, readings in zip(tables, of_layer, strict=True):
                table[rows, columns, self.layers.index(layer)] = readings

        for rows, columns, output, name in self.visit(first, second, clones, compare):
            if outputs:
                of_batch, count = _logits(output, name).numpy(), rows.stop - rows.start
                if not logits.shape[2]:
                    original_logits, logits = np.empty((items, of_batch.shape[1])), np.empty((items, draws, of_batch.shape[1]))
                original_logits[rows] = of_batch[:count]
                logits[rows, columns] = of_batch[count:].reshape(count, -1, of_batch.shape[1])
                del of_batch
            del output  # free the memory before the next batch
        return Readings(similarity, distance, original_logits, logits, *among_clones)

    def _compare_layer(self, layer: str, values: torch.Tensor, items: int, clones: int) -> list[np.ndarray]:
        """Similarity and distance (items, draws) from the activations of a batch: all originals, then their reconstructions.

        With several clones, also the mean similarity and mean distance to the other clones.
        """
        scale = self._scale(layer)
        flat = self._centred(layer, values, scale).flatten(1)
        a, b = flat[:items], flat[items:].view(items, -1, flat.shape[1])
        products = (b @ a[:, :, None])[..., 0].cpu().numpy()
        squares = (flat[:, None, :] @ flat[:, :, None])[:, 0, 0].cpu().numpy()
        own, norms = squares[:items, None], squares[items:].reshape(products.shape)
        expected = 2 * float(np.sum(self.spread[layer] * scale**2))
        among = _among_clones(b, norms, expected, clones) if clones > 1 else []
        distance = b.sub_(a[:, None]).square_().sum(2).cpu().numpy()  # overwrites b
        return [_cosine(products, own, norms), _relative(distance, expected), *among]

    def _centred(self, layer: str, values: torch.Tensor, scale: np.ndarray) -> torch.Tensor:
        """Standardised activations, float64."""
        mean, axis = self.mean[layer], self.axis(layer, values.ndim)
        if values.shape[axis] != len(mean):
            raise ValueError(f"layer {layer!r}: {values.shape[axis]} channels, but the reference statistics have {len(mean)}")
        return standardised(values, mean, scale, axis)

    def _scale(self, layer: str) -> np.ndarray:
        """Factor of the centred activations of each channel; 0 for constant channels."""
        mean, variance = self.mean[layer], self.variance[layer]
        square = variance + mean**2 if self.legacy else variance
        return channel_factors(mean, variance, square)

    def axis(self, layer: str, ndim: int) -> int:
        """Axis of the channels of a layer in activations with `ndim` axes, the batch first."""
        return channel_position(self._axes[layer], layer, ndim)

    def _batches(self, samples: torch.Tensor, first: int = 0) -> Iterator[tuple[torch.Tensor, _Name]]:
        """Batches of samples, and the names of their rows, numbered from `first`."""
        for start in range(0, len(samples), self.batch_size):

            def name(row: int, start: int = first + start) -> str:
                return f"sample {start + row}"

            yield samples[start : start + self.batch_size], name

    def _forward(self, batch: torch.Tensor, consume: Callable[[str, torch.Tensor], None] | None, name: _Name) -> Any:
        """The model's output for one batch; `consume(layer, activations)` is called as soon as a layer has run."""
        self._check_evaluation_mode()
        parameter = next(self.model.parameters(), None)
        # A copy, because the model may work in place.
        batch = batch.clone() if parameter is None else batch.to(parameter.device, copy=True)
        layers = () if consume is None else self.layers
        receive = Receiver(len(batch), consume, name)
        with hooks(self.model, layers, receive), torch.inference_mode():
            where = "preprocess"
            try:
                prepared = batch.clone() if self.preprocess is None else self.preprocess(batch.clone())  # it may be modified
                where = type(self.model).__name__
                output = self.model(prepared)
            except Exception as error:  # a user's model can raise any exception
                raise ValueError(
                    f"{where} does not take samples of dtype {batch.dtype}, shape {tuple(batch.shape)}: {one_line(error)}"
                ) from error
        receive.check(layers)
        return output

    def _check_evaluation_mode(self) -> None:
        training = [name or "the model itself" for name, module in self.model.named_modules() if module.training]
        if training:
            raise ValueError(
                f"model is in training mode ({training[0]}), so activations would depend on the batch; call model.eval()"
            )


class Receiver:
    """Checks the outputs of layers in one forward pass and passes them on to `consume`, up to the first error."""

    def __init__(self, batch_size: int, consume: Callable[[str, torch.Tensor], None] | None, name: _Name) -> None:
        self.batch_size, self.consume, self.name = batch_size, consume, name
        self.ran: set[str] = set()
        self.refusal: ValueError | None = None

    def __call__(self, layer: str, output: Any) -> None:
        if self.refusal is None:
            try:
                self._receive(layer, output)
            except ValueError as error:  # raised later by `check`; raised here, it would look like an error of the model
                self.refusal = error

    def check(self, layers: Iterable[str]) -> None:
        """Raise the error of a layer, or a ValueError if some layers did not run."""
        if self.refusal is not None:
            raise self.refusal
        missing = [layer for layer in layers if layer not in self.ran]
        if missing:
            raise ValueError(
                f"layers {', '.join(map(repr, missing))} did not run in the forward pass, so they have no activations; "
                f"name the layers without them"
            )

    def _receive(self, layer: str, output: Any) -> None:
        if layer in self.ran:
            raise ValueError(
                f"layer {layer!r} runs more than once in a forward pass (a shared module?); name a module that runs once, "
                f"such as the block around it"
            )
        self.ran.add(layer)
        values = as_tensor(output, f"layer {layer!r}")
        if len(values) != self.batch_size:
            raise ValueError(
                f"layer {layer!r} gives shape {tuple(values.shape)} for {self.batch_size} samples; expected (batch, ...)"
            )
        _check_finite(values, f"layer {layer!r}: activations", self.name)
        assert self.consume is not None
        self.consume(layer, values)


def channel_factors(mean: np.ndarray, variance: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Factors 1 / sqrt(square) of the centred activations of channels (channels,); 0 for constant channels.

    A channel is constant if its standard deviation is below the rounding of float32 activations.
    """
    constant = variance <= (4 * np.finfo(np.float32).eps * np.abs(mean)) ** 2
    return np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, square)))


def standardised(values: torch.Tensor, mean: np.ndarray, factor: np.ndarray, axis: int = -1) -> torch.Tensor:
    """(Activations - `mean`) * `factor` as float64, with one mean and factor for each channel along an axis."""
    z = float64_copy(values)
    shape = [1] * z.ndim
    shape[axis] = -1
    centre, scale = (torch.from_numpy(table).to(z.device).view(shape) for table in (mean, factor))
    return z.sub_(centre).mul_(scale)


def batch_slices(items: int, draws: int, clones: int, batch_size: int) -> Iterator[tuple[slice, slice]]:
    """Items and draws of each batch: whole items if they fit, otherwise one item with as many groups of clones as fit."""
    at_once = max(1, batch_size // (1 + draws))
    width = clones * max(1, min(draws // clones, (batch_size - 1) // clones))
    for start in range(0, items, at_once):
        for begin in range(0, draws, width):
            yield slice(start, min(start + at_once, items)), slice(begin, min(begin + width, draws))


def _name_of(rows: slice, columns: slice, draws: int, clones: int) -> _Name:
    """Names of the rows of a batch of originals and their reconstructions."""
    count, copies = rows.stop - rows.start, columns.stop - columns.start

    def name(row: int) -> str:
        if row < count:
            return f"original {rows.start + row}"
        item, draw = divmod(row - count, copies)
        trajectory, clone = divmod(columns.start + draw, clones)
        where = [f"trajectory {trajectory}"] * (draws > clones) + [f"clone {clone}"] * (clones > 1)
        return f"reconstructed {rows.start + item}" + (f" ({', '.join(where)})" if where else "")

    return name


def _among_clones(z: torch.Tensor, norms: np.ndarray, expected: float, clones: int) -> list[np.ndarray]:
    """Mean similarity and distance (items, draws) of each clone to the other clones of its noisy datum.

    `z`: standardised activations (items, draws, units); `norms`: their squared norms (items, draws).
    """
    groups = z.view(len(z), -1, clones, z.shape[2])
    norms = norms.reshape(groups.shape[:3])
    products, distances = (np.zeros((*norms.shape, clones)) for _ in range(2))
    for k in range(clones - 1):
        clone, others = groups[:, :, k], groups[:, :, k + 1 :]
        product = (others @ clone[..., None])[..., 0].cpu().numpy()
        distance = (others - clone[:, :, None]).square_().sum(3).cpu().numpy()
        for table, values in ((products, product), (distances, distance)):
            table[..., k, k + 1 :] = table[..., k + 1 :, k] = values
    others_only = 1 - np.eye(clones)
    return [
        ((values * others_only).sum(3) / (clones - 1)).reshape(len(z), -1)
        for values in (_cosine(products, norms[..., :, None], norms[..., None, :]), _relative(distances, expected))
    ]


def _cosine(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of vectors from their products and squared norms; 1 if both are zero, 0 if one is."""
    norms = np.sqrt(first) * np.sqrt(second)
    cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    cosine[(first == 0) & (second == 0)] = 1
    return cosine.clip(-1, 1)


def _relative(distance: np.ndarray, expected: float) -> np.ndarray:
    """Squared distances divided by `expected`, that of independent data (0 if no channel varies in the reference set)."""
    return distance / expected if expected else np.where(distance > 0, np.inf, 0.0)


def float64_copy(values: torch.Tensor) -> torch.Tensor:
    """A float64 copy on the same device, or on the CPU if the device has no float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64, copy=True)


def _channel_axes(layers: Sequence[str], channel_axis: int | Mapping[str, int]) -> dict[str, int]:
    for axis in channel_axis.values() if isinstance(channel_axis, Mapping) else [channel_axis]:
        if not isinstance(axis, int):
            raise ValueError(f"channel_axis = {channel_axis!r}: expected an integer, or {{layer or pattern: integer}}")
    if not isinstance(channel_axis, Mapping):
        return dict.fromkeys(layers, channel_axis)
    idle = [pattern for pattern in channel_axis if not any(matches(layer, pattern) for layer in layers)]
    if idle:
        raise ValueError(f"channel_axis: {idle[0]!r} matches none of the probed layers {', '.join(layers)}")
    return {layer: next((axis for pattern, axis in channel_axis.items() if matches(layer, pattern)), 1) for layer in layers}


def _checked_samples(samples: Any, name: str = "samples") -> torch.Tensor:
    try:
        if isinstance(samples, torch.Tensor):
            tensor = samples.detach()
        else:
            array = np.ascontiguousarray(samples)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers, samples first ({error})") from None
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    if tensor.ndim < 2 or not (whole or tensor.dtype == torch.float32):
        raise ValueError(
            f"{name}: dtype {tensor.dtype}, shape {tuple(tensor.shape)}; expected float32 or integers (count, ...), for example "
            f"images (count, channels, height, width), strings (count, num_leaves)"
        )
    return tensor


def checked_draws(original: Any, reconstructed: Any, clones: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (items, ...) and reconstructions of each (items, draws, ...) as tensors; draws is a multiple of `clones`."""
    first, second = _checked_samples(original, "original"), _checked_samples(reconstructed, "reconstructed")
    if second.ndim != first.ndim + 1 or (len(first), *first.shape[1:]) != (len(second), *second.shape[2:]):
        raise ValueError(
            f"original has shape {tuple(first.shape)} and reconstructed {tuple(second.shape)}; expected (items, ...) and "
            f"(items, draws, ...)"
        )
    if 0 in second.shape[:2]:
        raise ValueError(f"reconstructed has shape {tuple(second.shape)}: no samples")
    if second.shape[1] % checked_integer("clones", clones, 1):
        raise ValueError(f"reconstructed has {second.shape[1]} draws of each item; expected a multiple of clones = {clones}")
    return first, second


def _checked_pairs(original: Any, reconstructed: Any) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = _checked_samples(original, "original"), _checked_samples(reconstructed, "reconstructed")
    if first.shape != second.shape:
        raise ValueError(
            f"original has shape {tuple(first.shape)} and reconstructed {tuple(second.shape)}; expected pairs of samples"
        )
    return first, second


def _logits(output: Any, name: _Name) -> torch.Tensor:
    """The output of a classifier, float64 (batch, num_classes) on the CPU, finite."""
    logits = as_tensor(output, "the model").cpu().double()
    if logits.ndim != 2:
        raise ValueError(f"the model's output has shape {tuple(logits.shape)}; expected logits (batch, classes)")
    _check_finite(logits, "class probabilities", name)
    return logits


def _check_finite(values: torch.Tensor, what: str, name: _Name) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        names = [name(row) for row in torch.nonzero(~finite)[:10, 0].tolist()]
        raise ValueError(f"{what} of {', '.join(names)} are not finite; check these samples")
