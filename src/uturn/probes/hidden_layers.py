"""Similarity of data in the hidden layers of a network.

The post-activations of a layer are standardised by the mean and variance of each channel over a
reference set (section 2 of arXiv:2402.16991). Two data are compared by the cosine of their
activations, and by their squared distance divided by that of independent data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
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

_TABLES = ("mean", "variance", "spread")


class Predictions(NamedTuple):
    """Output of a classifier: `classes` int64 (batch,) and `probabilities` float64 (batch,
    num_classes).
    """

    classes: np.ndarray
    probabilities: np.ndarray


class Readings(NamedTuple):
    """Comparison of originals with their reconstructions, and the logits of both.

    `similarity` in [-1, 1], `distance` >= 0: float64 (items, draws, layers). `original_logits`
    (items, classes), `logits` (items, draws, classes): float64 output of the model, None if it was
    not read. `clone_..`: of a clone and the others of its noisy datum, mean; None for a single
    clone.
    """

    similarity: np.ndarray
    distance: np.ndarray
    original_logits: Any = None
    logits: Any = None
    clone_similarity: np.ndarray | None = None
    clone_distance: np.ndarray | None = None


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

    Statistics of the reference set, {layer: float64 (channels,)}: `mean`, `variance` over samples
    and positions; `spread`, the variance over samples at a fixed position (normalised by count -
    1), summed over positions. `shapes`, `reference_count`: {layer: shape of the activations of one
    reference sample}, and the number of reference samples.
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
        self.model, self.preprocess, self.legacy = model, preprocess, legacy
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.layers = () if layers == () else select_layers(model, layers)
        self._axes = _channel_axes(self.layers, channel_axis)
        self.mean: dict[str, np.ndarray] = {}
        self.variance: dict[str, np.ndarray] = {}
        self.spread: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.reference_count = 0
        self._check_evaluation_mode()

    # -- reference statistics ----------------------------------------------------------------------
    def fit(self, samples: Any) -> HiddenLayers:
        """Compute the statistics of every channel over a reference set, replacing earlier ones;
        returns the probe.

        `samples`: as in `activations`, or an iterable of such batches. Moments are accumulated in
        float64 without cancellation.
        """
        moments = {layer: Moments(layer) for layer in self.layers}
        for some in [samples] if hasattr(samples, "shape") else samples:
            for batch in _tensor(some).split(self.batch_size) if len(some) else ():
                self._forward(batch, lambda layer, values: moments[layer].add(float64_copy(values)))
        count = min((of.count for of in moments.values()), default=0)
        expect(
            count > 1,
            "number of reference samples",
            count,
            "at least 2 for a variance, and many to be any good",
        )
        reduced = {
            layer: of.by_channel(self.axis(layer, of.mean.ndim + 1))
            for layer, of in moments.items()
        }
        self.mean, self.variance, self.spread = (
            {layer: table[k] for layer, table in reduced.items()} for k in range(3)
        )
        self.shapes, self.reference_count = (
            {layer: of.mean.shape for layer, of in moments.items()},
            count,
        )
        return self

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics of the layers to a safetensors file, with the fingerprint of the
        network.
        """
        self._check_fitted()
        arrays = {
            f"{layer}/{name}": np.ascontiguousarray(getattr(self, name)[layer])
            for name in _TABLES
            for layer in self.layers
        }
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
        expect(
            Path(path).is_file(),
            "statistics",
            path,
            "a file written by HiddenLayers.save_statistics",
        )
        with reading(
            f"{path} is damaged, or not of this probe:", "fit the probe and save its statistics"
        ):
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                for what, mine in self._identity().items():
                    expect(
                        header.get(what) == mine,
                        f"of another network: {what}",
                        header.get(what),
                        mine[:100],
                    )
                tables = {
                    name: {of: file.get_tensor(f"{of}/{name}") for of in self.layers}
                    for name in _TABLES
                }
            count, stored = int(header["reference_count"]), json.loads(header["shapes"])
            shapes = {of: tuple(stored[of]) for of in self.layers}
            for name, of in product(_TABLES, self.layers):
                table, channels = (
                    tables[name][of],
                    shapes[of][self.axis(of, len(shapes[of]) + 1) - 1],
                )
                is_finite = (
                    table.dtype == np.float64
                    and table.shape == (channels,)
                    and np.isfinite(table).all()
                )
                fits = count > 1 and is_finite and (name == "mean" or (table >= 0).all())
                expect(
                    fits,
                    f"{name} of layer {of!r}",
                    table,
                    f"{channels} finite numbers of 2 samples or more",
                )
            self.reference_count, self.shapes = count, shapes
            self.mean, self.variance, self.spread = tables.values()
        return self

    def _identity(self) -> dict[str, str]:
        return {
            "model": fingerprint(self.model),
            "layers": json.dumps(self.layers),
            "channel axes": json.dumps(self._axes),
        }

    # -- measurement -------------------------------------------------------------------------------
    def activations(self, samples: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Raw activations {layer: float32 (batch, ...)} of samples (count, ...), batch after
        batch of at most `batch_size`.
        """
        for batch in _tensor(samples).split(self.batch_size):
            captured: dict[str, torch.Tensor] = {}

            def keep(
                layer: str, values: torch.Tensor, captured: dict[str, torch.Tensor] = captured
            ) -> None:
                # A copy, because the next module may work in place.
                captured[layer] = values.float().cpu().clone()

            self._forward(batch, keep)
            yield {layer: captured[layer] for layer in self.layers}

    def predict(self, samples: Any) -> Predictions:
        """Predicted classes and probabilities, with the model's output (batch, num_classes) as
        logits.
        """
        batches = _tensor(samples).split(self.batch_size)
        probabilities = torch.cat(
            [_logits(self._forward(batch, None)).softmax(dim=1) for batch in batches]
        )
        return Predictions(probabilities.argmax(dim=1).numpy(), probabilities.numpy())

    def compare(self, original: Any, reconstructed: Any) -> Readings:
        """Cosine similarity and normalised squared distance of standardised activations, float64
        (count, layers), row by row.

        Let z be the activation of a whole layer after (a - mean) / sqrt(variance) per channel,
        without channels that are constant over the reference set. similarity = z . z' / (|z| |z'|),
        in [-1, 1]; 1 if both z are zero, 0 if one is. distance = |z - z'|^2 / (2 sum_i Var z_i),
        with the variance over the reference samples: 0 for equal activations, and 1 on average for
        different reference samples and for independent data; NaN for samples of another size than
        the reference samples.
        """
        first, second = _tensor(original), _tensor(reconstructed)
        expect(
            first.shape == second.shape,
            "shape of reconstructed",
            tuple(second.shape),
            f"{tuple(first.shape)}, of pairs",
        )
        readings = self.read(first, second[:, None], logits=False)
        return Readings(readings.similarity[:, 0], readings.distance[:, 0])

    def similarity(self, original: Any, reconstructed: Any) -> np.ndarray:
        """Cosine similarity, float64 (count, num_layers), in [-1, 1]; see `compare`."""
        return self.compare(original, reconstructed).similarity

    def read(
        self, original: Any, reconstructed: Any, clones: int = 1, *, logits: bool = True
    ) -> Readings:
        """Comparison of originals (items, ...) with several reconstructions each (items, draws,
        ...), and the logits of all.

        The `clones` of a noisy datum are adjacent, and always in one batch, even if this exceeds
        `batch_size`; each is also compared with the others. `logits`: False for encoders.
        """
        self._check_fitted()
        first, second = checked_draws(original, reconstructed, clones)
        items, draws = second.shape[:2]
        tables = np.empty((2 if clones == 1 else 4, items, draws, len(self.layers)))
        outputs: list[Any] = [None, None]

        def compare(layer: str, values: torch.Tensor, rows: slice, columns: slice) -> None:
            tables[:, rows, columns, self.layers.index(layer)] = self._compared(
                layer, values, rows.stop - rows.start, clones
            )

        for rows, columns, output in self.visit(first, second, clones, compare):
            if logits:
                of_batch, count = _logits(output).numpy(), rows.stop - rows.start
                if outputs[0] is None:
                    outputs = [
                        np.empty((*shape, of_batch.shape[1]))
                        for shape in ((items,), (items, draws))
                    ]
                outputs[0][rows] = of_batch[:count]
                outputs[1][rows, columns] = of_batch[count:].reshape(count, -1, of_batch.shape[1])
                del of_batch
            del output  # free the memory before the next batch
        return Readings(tables[0], tables[1], *outputs, *tables[2:])

    def visit(
        self, first: torch.Tensor, second: torch.Tensor, clones: int, consume: Callable[..., None]
    ) -> Iterator[tuple[slice, slice, Any]]:
        """Pass originals (items, ...) with their reconstructions (items, draws, ...) through the
        model, in batches as in `read`.

        `consume(layer, activations, rows, columns)` is called as soon as a layer has run; the
        activations of the originals of the batch come first. Yields after each batch: rows (items),
        columns (draws), and the output of the model.
        """
        for rows, columns in progress.steps(
            list(batch_slices(len(second), second.shape[1], clones, self.batch_size))
        ):
            batch = torch.cat([first[rows], second[rows, columns].flatten(0, 1)])
            yield rows, columns, self._forward(batch, partial(consume, rows=rows, columns=columns))

    def _compared(self, layer: str, values: torch.Tensor, items: int, clones: int) -> np.ndarray:
        """Similarity, distance (items, draws) from the activations of a batch; with several
        clones, also to the other clones.
        """
        mean, variance = self.mean[layer], self.variance[layer]
        scale = channel_factors(mean, variance, variance + mean**2 if self.legacy else variance)
        fits = len(mean) == values.shape[self.axis(layer, values.ndim)]
        expect(
            fits,
            f"shape of layer {layer!r}",
            tuple(values.shape),
            f"{len(mean)} channels, as the reference has",
        )
        z = standardised(values, mean, scale, self.axis(layer, values.ndim)).flatten(1)
        expected = (
            2 * float(np.sum(self.spread[layer] * scale**2))
            if values.shape[1:] == self.shapes[layer]
            else np.nan
        )

        def compare(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
            """(.., 2) of vectors (.., units); of vectors without length, both are equal."""
            products, first, second = (a * b).sum(-1), a.norm(dim=-1), b.norm(dim=-1)
            norms, both_zero = first * second, (first == 0) & (second == 0)
            distance = (a - b).square_().sum(-1).cpu().numpy()
            similarity = (
                torch.where(norms > 0, products / norms, both_zero.double())
                .clamp(-1, 1)
                .cpu()
                .numpy()
            )
            return np.stack(
                [
                    similarity,
                    distance / expected if expected else np.where(distance > 0, np.inf, 0.0),
                ],
                -1,
            )

        own, others = z[:items], z[items:].view(items, -1, z.shape[1])
        readings = [
            compare(own[:, None], others),
            *([between_clones(others, clones, compare)] if clones > 1 else []),
        ]
        return np.moveaxis(np.concatenate(readings, -1), -1, 0)

    def axis(self, layer: str, ndim: int) -> int:
        """Axis of the channels of a layer, >= 1, in activations with `ndim` axes, the batch
        first; always 1 for two axes.
        """
        axis = self._axes[layer] if ndim > 2 else 1
        is_axis = 1 <= axis < ndim or -ndim < axis < 0
        expect(
            is_axis,
            f"channel_axis of layer {layer!r}",
            axis,
            f"one of its {ndim} axes but 0, the batch",
        )
        return axis % ndim

    def _forward(
        self, batch: torch.Tensor, consume: Callable[[str, torch.Tensor], None] | None
    ) -> Any:
        """The model's output for one batch; `consume(layer, activations)` is called as soon as a
        layer has run.
        """
        self._check_evaluation_mode()
        parameter = next(self.model.parameters(), None)
        # A copy, since the model may work in place.
        batch = batch.to(None if parameter is None else parameter.device, copy=True)
        layers = () if consume is None else self.layers
        receive = Receiver(len(batch), consume)
        label = (
            f"{type(self.model).__name__}, of samples of dtype {batch.dtype}, shape"
            f" {tuple(batch.shape)}"
        )
        with hooks(self.model, layers, receive), torch.inference_mode(), noted(label):
            output = self.model(batch if self.preprocess is None else self.preprocess(batch))
        receive.check(layers)
        return output

    def _check_fitted(self) -> None:
        expect(
            self.mean or not self.layers,
            "reference statistics",
            None,
            "those of fit(samples) or load_statistics(path)",
        )

    def _check_evaluation_mode(self) -> None:
        training = [
            name or "the model itself"
            for name, module in self.model.named_modules()
            if module.training
        ]
        expect(
            not training,
            "modules in training mode",
            training,
            "none, as activations depend on the batch; call model.eval()",
        )


class Receiver:
    """Checks the outputs of layers in a forward pass and passes them on to `consume`."""

    def __init__(
        self, batch_size: int, consume: Callable[[str, torch.Tensor], None] | None
    ) -> None:
        self.batch_size, self.consume, self.ran = batch_size, consume, set[str]()

    def __call__(self, layer: str, output: Any) -> None:
        values = as_tensor(output, f"layer {layer!r}")
        expect(
            layer not in self.ran,
            "layer that runs more than once in a forward pass",
            layer,
            "one that runs once",
        )
        expect(
            len(values) == self.batch_size,
            f"shape of layer {layer!r}",
            tuple(values.shape),
            f"({self.batch_size}, ..)",
        )
        _check_finite(values, f"layer {layer!r}: activations")
        self.ran.add(layer)
        if self.consume is not None:
            self.consume(layer, values)

    def check(self, layers: Sequence[str]) -> None:
        """ValueError if some layers did not run."""
        missing = [layer for layer in layers if layer not in self.ran]
        expect(
            not missing,
            "layers that did not run in the forward pass",
            missing,
            "none; name the layers without them",
        )


class Moments:
    """Running count, mean and sum of squared deviations of the activations of one layer, per
    unit.
    """

    def __init__(self, layer: str) -> None:
        self.layer, self.count = layer, 0
        self.mean, self.squares = np.zeros(()), np.zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Add a batch (count, ...) by the update of Chan, Golub and LeVeque (1979); the batch is
        overwritten.
        """
        count, mean = len(values), values.mean(0)
        same = not self.count or mean.shape == self.mean.shape
        expect(
            same,
            f"shape of layer {self.layer!r}",
            tuple(mean.shape),
            f"{self.mean.shape}, as before: samples of one size",
        )
        squares, shift = (
            values.sub_(mean).square_().sum(0).cpu().numpy(),
            mean.cpu().numpy() - self.mean,
        )
        total = self.count + count
        self.squares = self.squares + squares + shift**2 * (self.count * count / total)
        self.mean, self.count = self.mean + shift * (count / total), total

    def by_channel(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By channel: mean and variance over samples and positions; variance over samples (count -
        1), summed over positions.
        """
        over = tuple(k for k in range(self.mean.ndim) if k != axis - 1)
        variance = (self.squares / self.count).mean(over) + self.mean.var(over)
        return self.mean.mean(over), variance, self.squares.sum(over) / max(self.count - 1, 1)


def channel_factors(mean: np.ndarray, variance: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Factors 1 / sqrt(square) of centred channels (channels,); 0 for those that are constant up
    to the rounding of float32.
    """
    constant = variance <= (4 * np.finfo(np.float32).eps * np.abs(mean)) ** 2
    return np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, square)))


def standardised(
    values: torch.Tensor, mean: np.ndarray, factor: np.ndarray, axis: int = -1
) -> torch.Tensor:
    """(Activations - `mean`) * `factor` as float64, with one mean and factor for each channel
    along an axis.
    """
    z = float64_copy(values)
    shape = [1] * z.ndim
    shape[axis] = -1
    centre, scale = (torch.from_numpy(table).to(z.device).view(shape) for table in (mean, factor))
    return z.sub_(centre).mul_(scale)


def batch_slices(
    items: int, draws: int, clones: int, batch_size: int
) -> Iterator[tuple[slice, slice]]:
    """Items and draws of each batch: whole items if they fit, otherwise one item with as many
    groups of clones as fit.
    """
    at_once = max(1, batch_size // (1 + draws))
    width = clones * max(1, min(draws // clones, (batch_size - 1) // clones))
    for start in range(0, items, at_once):
        for begin in range(0, draws, width):
            yield slice(start, min(start + at_once, items)), slice(begin, min(begin + width, draws))


def float64_copy(values: torch.Tensor) -> torch.Tensor:
    """A float64 copy on the same device, or on the CPU if the device has no float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64, copy=True)


def _channel_axes(layers: Sequence[str], channel_axis: int | Mapping[str, int]) -> dict[str, int]:
    by_pattern = channel_axis if isinstance(channel_axis, Mapping) else {"**": channel_axis}
    for pattern in by_pattern:
        is_matched = any(matches(layer, pattern) for layer in layers)
        expect(
            is_matched,
            "channel_axis",
            pattern,
            f"a pattern of the probed layers {', '.join(layers)}",
        )
    return {
        layer: next((axis for pattern, axis in by_pattern.items() if matches(layer, pattern)), 1)
        for layer in layers
    }


def _tensor(samples: Any, name: str = "samples") -> torch.Tensor:
    """Samples as a tensor (count, ...) of float32 or integers."""
    tensor = (
        samples.detach()
        if isinstance(samples, torch.Tensor)
        else torch.from_numpy(np.require(samples, None, ["C", "W"]))
    )
    fits = (
        tensor.ndim > 1
        and not tensor.is_complex()
        and (tensor.dtype == torch.float32 or not tensor.is_floating_point())
    )
    expect(
        fits,
        f"{name}: {tensor.dtype} of shape",
        tuple(tensor.shape),
        "float32 or integers (count, ...)",
    )
    return tensor


def checked_draws(
    original: Any, reconstructed: Any, clones: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (items, ...) and reconstructions of each (items, draws, ...) as tensors; draws is
    a multiple of `clones`.
    """
    first, second = _tensor(original, "original"), _tensor(reconstructed, "reconstructed")
    fits = second.shape[:1] + second.shape[2:] == first.shape and second.numel()
    shapes = tuple(first.shape), tuple(second.shape)
    expect(
        fits,
        "shapes of original, reconstructed",
        shapes,
        "(items, ...), (items, draws, ...), not empty",
    )
    draws, clones = second.shape[1], checked_integer("clones", clones, 1)
    expect(draws % clones == 0, "draws of each item", draws, f"a multiple of clones = {clones}")
    return first, second


def _logits(output: Any) -> torch.Tensor:
    """The output of a classifier, float64 (batch, num_classes) on the CPU, finite."""
    logits = as_tensor(output, "the model").cpu().double()
    expect(
        logits.ndim == 2,
        "shape of the model's output",
        tuple(logits.shape),
        "(batch, classes), as logits have",
    )
    _check_finite(logits, "class probabilities")
    return logits


def _check_finite(values: torch.Tensor, what: str) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"{what} of row {int((~finite).nonzero()[0])} of a batch are not finite; check these"
            " samples"
        )
