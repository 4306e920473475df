"""Hidden layers of a network as a probe: how alike a datum and its reconstruction look, depth by depth.

The post-activations of a layer are standardised, each channel centred by its mean and divided by its standard deviation over a
reference set (section 2 of arXiv:2402.16991). Two data are then compared by the cosine of their activations, and by the squared
distance in units of that of independent data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from uturn.checks import checked_integer, one_line
from uturn.files import whole_file
from uturn.networks.layers import as_tensor, checked_model, hooks, matches, select_layers
from uturn.networks.training import fingerprint

FORMAT = "uturn-layer-statistics-2"


class Predictions(NamedTuple):
    """What a classifier says: `classes` int64 (batch,) and `probabilities` float64 (batch, num_classes)."""

    classes: np.ndarray
    probabilities: np.ndarray


class Comparison(NamedTuple):
    """Pairs compared layer by layer, float64 (count, num_layers): `similarity` in [-1, 1] and `distance` >= 0."""

    similarity: np.ndarray
    distance: np.ndarray


class Readings(NamedTuple):
    """Originals and their reconstructions in one look.

    `similarity`, `distance`: float64 (items, trajectories, num_layers), as in `Comparison`. `original_logits`: float64 (items,
    num_classes) and `logits`: float64 (items, trajectories, num_classes), the output of the model.
    """

    similarity: np.ndarray
    distance: np.ndarray
    original_logits: np.ndarray
    logits: np.ndarray


class HiddenLayers:
    """Probe of the outputs of modules of a network, by forward hooks.

    Activations are worked off inside the hook and dropped: besides the forward pass itself, `compare` and `read` hold at most two
    float64 copies of the activations of *one* layer for *one* batch, whatever the number of layers and samples. `fit` holds
    besides these a mean and a sum of squares of one sample for every layer. `readings` hands out one batch of all layers.

    Parameters
    ----------
    model
        Any `torch.nn.Module` in evaluation mode that takes a batch of samples.
    layers
        Names of modules as in `model.named_modules()`, or glob patterns of them, or "every block". `*` stays between two dots, so
        that "features.*" are the direct children of `features`; a `**` between dots stands for any number of names, also none.
        By default the direct children of the model. The output of each must be a tensor (or a tuple that starts with one),
        produced once a forward pass. Name the module whose output is the post-activation. For "every block" see `every_block`.
    preprocess
        Applied to each batch, a tensor, before the model: resizing, ImageNet's normalisation, ... Statistics are those of the
        preprocessed data; a file of them does not know by which function, so give the same one when it is loaded.
    batch_size
        Samples in a forward pass (at least one pair where pairs are compared). The model runs on the device of its parameters.
    channel_axis
        Axis of the channels in an activation of three or more dimensions: one number, or {name or pattern: number}, 1 for layers
        that fit none: convolutions have axis 1, transformers -1. Activations (batch, units) are standardised per unit.
    legacy
        Divide by the square root of the second moment E[a^2] instead of the standard deviation, as the code published with
        the paper does. It shrinks channels far from zero; only for comparison with published curves.

    Attributes
    ----------
    layers : tuple of str
        The probed modules, in the order the model registers them.
    mean, variance : {layer: float64 (channels,)}
        Of the reference set, over samples and positions, after `fit` or `load_statistics`.
    spread : {layer: float64 (channels,)}
        Variance over the samples at a fixed position (divided by their number minus 1), added up over positions.
    shapes : {layer: tuple}
        Shape of the activations of one reference sample.
    reference_count : int
        Number of reference samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: str | Sequence[str] | None = None,
        preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        batch_size: int = 100,
        channel_axis: int | Mapping[str, int] = 1,
        legacy: bool = False,
    ) -> None:
        self.model = checked_model(model)
        if preprocess is not None and not callable(preprocess):
            raise ValueError(f"preprocess = {preprocess!r}: expected a function of a tensor, or None")
        self.preprocess = preprocess
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.layers = select_layers(model, layers)
        self.legacy = legacy
        self.mean: dict[str, np.ndarray] = {}
        self.variance: dict[str, np.ndarray] = {}
        self.spread: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.reference_count = 0
        self._axes = _channel_axes(self.layers, channel_axis)
        self._check_evaluation_mode()

    def fit(self, samples: Any) -> HiddenLayers:
        """Take the mean and variance of every channel over a reference set; returns the probe itself.

        Variance is the mean of (a - mean)^2 over samples and positions (divided by their number), accumulated in float64
        batch by batch (Chan, Golub and LeVeque 1979): one pass, no cancellation. It replaces earlier statistics.

        Parameters
        ----------
        samples
            As in `readings`, or an iterable of such batches for sets that do not fit in memory.

        Raises
        ------
        ValueError
            For fewer than two samples, samples of different sizes, or activations that are not finite (naming layer and sample).
        """
        moments = {layer: _Moments(layer) for layer in self.layers}
        count = 0
        if not hasattr(samples, "shape") and not isinstance(samples, Iterable):
            raise ValueError(f"samples is a {type(samples).__name__}; expected an array, or an iterable of arrays")
        for batch in [samples] if hasattr(samples, "shape") else samples:
            tensor = _checked_samples(batch)
            for start in range(0, len(tensor), self.batch_size):
                rows = slice(start, start + self.batch_size)
                self._forward(tensor[rows], lambda layer, values: moments[layer].add(_copy(values)), _numbered(count + start))
            count += len(tensor)
        if count < 2:
            raise ValueError(f"samples: {count} reference samples; a variance needs at least 2, and many to be any good")
        reduced = {layer: moments[layer].by_channel(self._axis(layer, moments[layer].mean.ndim + 1)) for layer in self.layers}
        self.mean, self.variance, self.spread = ({layer: r[i] for layer, r in reduced.items()} for i in range(3))
        self.shapes = {layer: moments[layer].mean.shape for layer in self.layers}
        self.reference_count = count
        return self

    def readings(self, samples: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Raw activations {layer: float32 (batch, ...)}, one batch of at most `batch_size` samples after the other.

        Parameters
        ----------
        samples
            Numpy array or tensor whose first axis counts the samples: float32 images (count, channels, height, width), int64
            strings (count, num_leaves), float32 vectors (count, d), ... as the model takes them.
        """
        tensor = _checked_samples(samples)
        for start in range(0, len(tensor), self.batch_size):
            captured: dict[str, torch.Tensor] = {}

            def keep(layer: str, values: torch.Tensor, captured: dict[str, torch.Tensor] = captured) -> None:
                captured[layer] = values.float().cpu().clone()  # a copy, because the next module may work in place

            self._forward(tensor[start : start + self.batch_size], keep, _numbered(start))
            yield {layer: captured[layer] for layer in self.layers}

    def compare(self, original: Any, reconstructed: Any) -> Comparison:
        """Cosine similarity and normalised squared distance of standardised activations, for every pair and layer.

        Let z be the activation of a whole layer (all positions and channels) after (a - mean) / sqrt(variance) per channel.

        similarity = z . z' / (|z| |z'|). Two activations that both are exactly at the mean count as 1 (they are equal), one of
        them as 0.

        distance = |z - z'|^2 / (2 sum_i Var z_i), the sum over positions and channels i and the variance over the reference
        samples (sample variance, divided by their number minus 1). 0 for equal activations; its mean over all pairs of
        different reference samples is 1, which is also its expectation for independent data.

        A channel that is constant over the reference set has no scale and is left out. The distance is for samples of the
        size of the reference samples; `similarity` alone takes others, if the model does.

        Parameters
        ----------
        original, reconstructed
            Samples as in `readings`, paired: row n with row n. Both of a pair pass the model in one batch.

        Raises
        ------
        ValueError
            Without reference statistics, for unequal numbers, for samples of another size than the reference, or for activations
            that are not finite (naming layer and sample).
        """
        first, second = _checked_pairs(original, reconstructed)
        found = self._compare(first, second[:, None], distances=True, outputs=False)
        return Comparison(found.similarity[:, 0], found.distance[:, 0])

    def similarity(self, original: Any, reconstructed: Any) -> np.ndarray:
        """Cosine similarity, float64 (count, num_layers), in [-1, 1]; see `compare`."""
        first, second = _checked_pairs(original, reconstructed)
        return self._compare(first, second[:, None], distances=False, outputs=False).similarity[:, 0]

    def read(self, original: Any, reconstructed: Any) -> Readings:
        """Comparison of originals with several reconstructions each, and the logits of all of them, in one forward pass.

        An original passes the model once, in one batch with its reconstructions, and again only for every `batch_size - 1`
        reconstructions.

        Parameters
        ----------
        original, reconstructed
            Samples (items, ...) and (items, trajectories, ...), of types as in `readings`.

        Raises
        ------
        ValueError
            As `compare`; also if the output of the model are not finite logits (batch, num_classes), or there are no samples.
        """
        first, second = _checked_samples(original, "original"), _checked_samples(reconstructed, "reconstructed")
        if second.ndim != first.ndim + 1 or (len(first), *first.shape[1:]) != (len(second), *second.shape[2:]):
            raise ValueError(
                f"original has shape {tuple(first.shape)} and reconstructed {tuple(second.shape)}; expected (items, ...) and "
                f"(items, trajectories, ...)"
            )
        if 0 in second.shape[:2]:
            raise ValueError(f"reconstructed has shape {tuple(second.shape)}: no samples")
        return self._compare(first, second, distances=True, outputs=True)

    def _compare(self, first: torch.Tensor, second: torch.Tensor, *, distances: bool, outputs: bool) -> Readings:
        """Compare (items, ...) with (items, trajectories, ...); logits are left empty unless `outputs`."""
        if not self.mean:
            raise ValueError("no reference statistics; call fit(samples) or load_statistics(path) first")
        items, trajectories = second.shape[:2]
        similarity, distance = (np.empty((items, trajectories, len(self.layers))) for _ in range(2))
        original_logits, logits = np.empty((items, 0)), np.empty((items, trajectories, 0))
        # Whole items if they fit in a batch, else one item with as many of its reconstructions as do.
        block = max(1, self.batch_size // (1 + trajectories))
        most = max(1, min(trajectories, self.batch_size - 1))
        for start, begin in product(range(0, items, block), range(0, trajectories, most)):
            rows, columns = slice(start, min(start + block, items)), slice(begin, min(begin + most, trajectories))
            count, copies = rows.stop - rows.start, columns.stop - columns.start

            def compare(layer: str, values: torch.Tensor, rows: slice = rows, columns: slice = columns, n: int = count) -> None:
                if distances and values.shape[1:] != self.shapes[layer]:
                    raise ValueError(
                        f"layer {layer!r}: activations of shape {tuple(values.shape[1:])}, but {self.shapes[layer]} in the "
                        f"reference set; distances need samples of its size, similarity(..) does not"
                    )
                k = self.layers.index(layer)
                similarity[rows, columns, k], distance[rows, columns, k] = self._compare_layer(layer, values, n)

            def name(row: int, start: int = start, begin: int = begin, n: int = count, copies: int = copies) -> str:
                if row < n:
                    return f"original {start + row}"
                item, trajectory = divmod(row - n, copies)
                where = f" (trajectory {begin + trajectory})" if trajectories > 1 else ""
                return f"reconstructed {start + item}{where}"

            batch = torch.cat([first[rows], second[rows, columns].flatten(0, 1)])
            output = self._forward(batch, compare, name)
            if outputs:
                found = _logits(output, name).numpy()
                if not logits.shape[2]:
                    original_logits, logits = (
                        np.empty((*table.shape[:-1], found.shape[1])) for table in (original_logits, logits)
                    )
                original_logits[rows] = found[:count]
                logits[rows, columns] = found[count:].reshape(count, copies, -1)
                del found
            del output  # not to be held beside the next batch
        return Readings(similarity, distance, original_logits, logits)

    def predict(self, samples: Any) -> Predictions:
        """Predicted classes and probabilities: the model's own output (batch, num_classes) taken as logits."""
        classes, probabilities = [], []
        tensor = _checked_samples(samples)
        for start in range(0, len(tensor), self.batch_size):
            name = _numbered(start)
            probability = _logits(self._forward(tensor[start : start + self.batch_size], None, name), name).softmax(dim=1)
            classes.append(probability.argmax(dim=1).numpy())
            probabilities.append(probability.numpy())
        if not classes:
            raise ValueError("samples: got none")
        return Predictions(np.concatenate(classes), np.concatenate(probabilities))

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write mean, variance and spread of the layers to a safetensors file, with the fingerprint of the network."""
        from safetensors.numpy import save

        if not self.mean:
            raise ValueError("no reference statistics to save; call fit(samples) first")
        tables = {"mean": self.mean, "variance": self.variance, "spread": self.spread}
        arrays = {
            f"{layer}/{name}": np.ascontiguousarray(table[layer]) for name, table in tables.items() for layer in self.layers
        }
        metadata = {
            "format": FORMAT,
            "layers": json.dumps(self.layers),
            "shapes": json.dumps(self.shapes),
            "channel_axes": json.dumps(self._axes),
            "reference_count": str(self.reference_count),
            "model": fingerprint(self.model),
        }
        with whole_file(path) as file:
            file.write(save(arrays, metadata))

    def load_statistics(self, path: str | os.PathLike[str]) -> HiddenLayers:
        """Read what `save_statistics` wrote, for the same network and layers; returns the probe itself.

        Raises
        ------
        ValueError
            If the file is missing or damaged, or belongs to another network or to other layers.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ValueError(f"no file {path}; expected statistics written by HiddenLayers.save_statistics")
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
            raise ValueError(f"{path} is damaged, or not a file of layer statistics ({one_line(error)})") from None
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} has format {header.get('format')!r}; expected {FORMAT!r}: fit and save the probe again")
        if header.get("model") != fingerprint(self.model):
            raise ValueError(
                f"{path} holds the statistics of another network (fingerprint {str(header.get('model'))[:12]}.., here "
                f"{fingerprint(self.model)[:12]}..); fit the probe on this one"
            )
        try:
            stored, axes, shapes = (json.loads(header[name]) for name in ("layers", "channel_axes", "shapes"))
            count = checked_integer("reference_count", json.loads(header["reference_count"]), 2)
        except (KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: its header cannot be read ({one_line(error)})") from None
        if stored != list(self.layers):
            raise ValueError(f"{path}: statistics of layers {str(stored)[:200]}; this probe reads {list(self.layers)}")
        if axes != self._axes:
            raise ValueError(f"{path}: statistics along channel axes {str(axes)[:200]}; this probe has {self._axes}")
        names = ("mean", "variance", "spread")
        for layer in self.layers:
            try:
                shape = [checked_integer("shape", size, 0) for size in shapes[layer]]
                channels = shape[self._axis(layer, len(shape) + 1) - 1]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged: no shape of layer {layer!r} ({one_line(error)})") from None
            for name in names:
                table = arrays.get(f"{layer}/{name}", np.zeros(0))
                good = table.dtype == np.float64 and table.shape == (channels,) and np.isfinite(table).all()
                if not good or (name != "mean" and (table < 0).any()):
                    raise ValueError(
                        f"{path} is damaged: {name} of layer {layer!r} has dtype {table.dtype}, shape {table.shape}; expected "
                        f"{channels} finite float64 numbers{'' if name == 'mean' else ' >= 0'}"
                    )
        self.mean, self.variance, self.spread = ({layer: arrays[f"{layer}/{name}"] for layer in self.layers} for name in names)
        self.shapes, self.reference_count = {layer: tuple(shapes[layer]) for layer in self.layers}, count
        return self

    # -----------------------------------------------------------------------------------------------------------------

    def _forward(
        self, batch: torch.Tensor, consume: Callable[[str, torch.Tensor], None] | None, name: Callable[[int], str]
    ) -> Any:
        """The model's output for one batch; `consume(layer, activations)` is called as soon as a layer has run.

        `name(row)` says in messages what a row of the batch is.
        """
        self._check_evaluation_mode()
        parameter = next(self.model.parameters(), None)
        # A copy, because the model may work in place.
        batch = batch.clone() if parameter is None else batch.to(parameter.device, copy=True)
        ran: set[str] = set()
        refusals: list[ValueError] = []

        def receive(layer: str, output: Any) -> None:
            try:
                take(layer, output)
            except ValueError as error:
                refusals.append(error)
                raise

        def take(layer: str, output: Any) -> None:
            if layer in ran:
                raise ValueError(
                    f"layer {layer!r} runs more than once in a forward pass (a shared module?); name a module that runs once, "
                    f"such as the block around it"
                )
            ran.add(layer)
            values = as_tensor(output, f"layer {layer!r}")
            if len(values) != len(batch):
                raise ValueError(
                    f"layer {layer!r} gives shape {tuple(values.shape)} for {len(batch)} samples; expected (batch, ...)"
                )
            _check_finite(values, f"layer {layer!r}: activations", name)
            assert consume is not None
            consume(layer, values)

        with hooks(self.model, self.layers if consume is not None else (), receive), torch.inference_mode():
            where = "preprocess"
            try:
                prepared = batch if self.preprocess is None else self.preprocess(batch)
                where = type(self.model).__name__
                output = self.model(prepared)
            except Exception as error:  # whatever a foreign model raises
                if error in refusals:
                    raise
                raise ValueError(
                    f"{where} does not take samples of dtype {batch.dtype}, shape {tuple(batch.shape)}: {one_line(error)}"
                ) from error
        missing = [layer for layer in self.layers if layer not in ran] if consume is not None else []
        if missing:
            raise ValueError(
                f"layers {', '.join(map(repr, missing))} did not run in the forward pass, so they have no activations; "
                f"name the layers without them"
            )
        return output

    def _compare_layer(self, layer: str, values: torch.Tensor, items: int) -> tuple[np.ndarray, np.ndarray]:
        """Similarity and distance (items, trajectories) in a batch: the originals, then the reconstructions of each in turn."""
        mean, spread = self.mean[layer], self.spread[layer]
        axis = self._axis(layer, values.ndim)
        if values.shape[axis] != len(mean):
            raise ValueError(f"layer {layer!r}: {values.shape[axis]} channels, but the reference statistics have {len(mean)}")
        shape = [1] * values.ndim
        shape[axis] = -1
        scale = self._scale(layer)
        z = _copy(values)
        centre, factor = (torch.from_numpy(table).to(z.device).view(shape) for table in (mean, scale))
        flat = z.sub_(centre).mul_(factor).flatten(1)
        a, b = flat[:items], flat[items:].view(items, -1, flat.shape[1])
        products = (b @ a[:, :, None])[..., 0].cpu().numpy()
        squares = (flat[:, None, :] @ flat[:, :, None])[:, 0, 0].cpu().numpy()
        norm_a, norm_b = squares[:items, None], squares[items:].reshape(products.shape)
        norms = np.sqrt(norm_a) * np.sqrt(norm_b)
        cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        cosine[(norm_a == 0) & (norm_b == 0)] = 1
        distance = b.sub_(a[:, None]).square_().sum(2).cpu().numpy()
        expected = 2 * float(np.sum(spread * scale**2))
        return cosine.clip(-1, 1), distance / expected if expected else np.where(distance > 0, np.inf, 0.0)

    def _scale(self, layer: str) -> np.ndarray:
        """What the centred activations of each channel are multiplied with; 0 for constant channels."""
        mean, variance = self.mean[layer], self.variance[layer]
        # Activations are float32: a spread below their rounding is no spread.
        constant = variance <= (4 * np.finfo(np.float32).eps * np.abs(mean)) ** 2
        square = variance + mean**2 if self.legacy else variance
        return np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, square)))

    def _axis(self, layer: str, ndim: int) -> int:
        axis = self._axes[layer] if ndim > 2 else 1
        if not (1 <= axis < ndim or -ndim < axis < 0):
            raise ValueError(
                f"channel_axis = {axis} of layer {layer!r}: its activations have {ndim} axes, and axis 0 is the batch"
            )
        return axis % ndim

    def _check_evaluation_mode(self) -> None:
        training = [name or "the model itself" for name, module in self.model.named_modules() if module.training]
        if training:
            raise ValueError(
                f"model is in training mode ({training[0]}), so activations would depend on the batch; call model.eval()"
            )


class _Moments:
    """Count, mean and sum of squared deviations, per unit, of the activations of one layer seen so far."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.count = 0
        self.mean = np.zeros(())
        self.sum_of_squares = np.zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Merge a batch (count, ...), which is overwritten."""
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
        """Mean and variance over samples and positions; variance over samples (count - 1), summed over positions."""
        over = tuple(k for k in range(self.mean.ndim) if k != axis - 1)
        mean, squares = self.mean.mean(over), self.sum_of_squares.sum(over)
        variance = (self.sum_of_squares / self.count).mean(over) + self.mean.var(over)
        return mean, variance, squares / (self.count - 1)


def _copy(values: torch.Tensor) -> torch.Tensor:
    """A float64 copy, which may be overwritten, where the activations are; on the CPU if their device has no float64 (MPS)."""
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


def _checked_pairs(original: Any, reconstructed: Any) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = _checked_samples(original, "original"), _checked_samples(reconstructed, "reconstructed")
    if first.shape != second.shape:
        raise ValueError(
            f"original has shape {tuple(first.shape)} and reconstructed {tuple(second.shape)}; expected pairs of samples"
        )
    return first, second


def _numbered(start: int) -> Callable[[int], str]:
    """Names of the rows of a batch that starts with sample `start`."""
    return lambda row: f"sample {start + row}"


def _logits(output: Any, name: Callable[[int], str]) -> torch.Tensor:
    """The output of a classifier, float64 (batch, num_classes) on the CPU, finite."""
    logits = as_tensor(output, "the model").cpu().double()
    if logits.ndim != 2:
        raise ValueError(f"the model's output has shape {tuple(logits.shape)}; expected logits (batch, classes)")
    _check_finite(logits, "class probabilities", name)
    return logits


def _check_finite(values: torch.Tensor, what: str, name: Callable[[int], str]) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        words = [name(row) for row in torch.nonzero(~finite)[:10, 0].tolist()]
        raise ValueError(f"{what} of {', '.join(words)} are not finite; check these samples")
