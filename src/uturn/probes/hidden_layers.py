"""Hidden layers of a network as a probe: how alike an image and its reconstruction look, depth by depth.

The similarity at a layer is the cosine of the two standardised post-activations (section 2 of arXiv:2402.16991), each
channel centred by its mean and divided by its standard deviation over a reference set.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class Predictions(NamedTuple):
    """What a classifier says: `classes` int64 (batch,) and `probabilities` float64 (batch, num_classes)."""

    classes: np.ndarray
    probabilities: np.ndarray


class HiddenLayers:
    """Probe of the outputs of named modules of a network, by forward hooks.

    Parameters
    ----------
    model
        Any `torch.nn.Module` in evaluation mode that takes a batch of images.
    layers
        Names of modules as in `model.named_modules()`, or glob patterns of them; `*` does not cross a dot, so that
        "features.*" are the direct children of `features`. By default the direct children of the model. The output
        of each must be a tensor (or a tuple that starts with one), produced once a forward pass. Name the module whose
        output is the post-activation.
    preprocess
        Applied to each batch of images, a float32 tensor, before the model: resizing, ImageNet's normalisation, ...
    batch_size
        Images in a forward pass; never more than one batch of activations is held.
    channel_axis
        Axis of the channels in an activation of three or more dimensions; vectors are standardised per unit.

    Attributes
    ----------
    layers : tuple of str
        The probed modules, in the order the model registers them.
    mean, variance : {layer: float64 (channels,)}
        Statistics of the reference set, after `fit` or `load_statistics`.
    reference_count : int
        Number of reference images.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: str | Sequence[str] | None = None,
        preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        batch_size: int = 100,
        channel_axis: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1 image")
        self.model = model
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.channel_axis = channel_axis
        self.layers = _select_layers(model, layers)
        self.mean: dict[str, np.ndarray] = {}
        self.variance: dict[str, np.ndarray] = {}
        self.reference_count = 0
        self._check_evaluation_mode()

    def fit(self, images: Any) -> HiddenLayers:
        """Take the mean and variance of every channel over a reference set; returns the probe itself.

        Variance is the mean of (a - mean)^2 over images and positions (divided by their number), accumulated in float64
        batch by batch (Chan, Golub and LeVeque 1979): one pass, no cancellation. It replaces earlier statistics.

        Parameters
        ----------
        images
            As in `readings`, or an iterable of batches for sets that do not fit in memory.
        """
        moments = {layer: _Moments() for layer in self.layers}
        count = 0
        for batch in [images] if hasattr(images, "shape") else images:
            for activations in self.readings(batch):
                for layer, values in activations.items():
                    moments[layer].add(self._by_channel(values.double()))
            count += len(batch)
        if count < 2:
            raise ValueError(f"images: {count} reference images; a variance needs at least 2, and many to be any good")
        self.mean = {layer: m.mean for layer, m in moments.items()}
        self.variance = {layer: m.sum_of_squares / m.count for layer, m in moments.items()}
        self.reference_count = count
        return self

    def readings(self, images: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Raw activations {layer: float32 (batch, ...)}, one batch of at most `batch_size` images after the other.

        Parameters
        ----------
        images
            float32 (count, channels, height, width), numpy array or tensor.
        """
        for _, activations, _ in self._forward(images):
            yield activations

    def similarity(self, original: Any, reconstructed: Any) -> np.ndarray:
        """Cosine similarity of standardised activations, float64 (count, num_layers), in [-1, 1].

        For image n at layer l, cos(z, z') = z . z' / (|z| |z'|), where z is the activation of the whole layer (all
        positions and channels) after (a - mean) / sqrt(variance) per channel. A channel that is constant over the
        reference set has no scale and is left out. Two activations that both are exactly at the mean count as 1 (they
        are equal), one of them as 0.

        Parameters
        ----------
        original, reconstructed
            Images as in `readings`, paired: row n with row n.
        """
        if not self.mean:
            raise ValueError("no reference statistics; call fit(images) or load_statistics(path) first")
        if len(original) != len(reconstructed):
            raise ValueError(f"original holds {len(original)} images and reconstructed {len(reconstructed)}; expected pairs")
        result = np.empty((len(original), len(self.layers)))
        pairs = zip(self._forward(original), self._forward(reconstructed), strict=True)
        for (start, first, _), (_, second, _) in pairs:
            for column, layer in enumerate(self.layers):
                a, b = self._standardised(layer, first[layer]), self._standardised(layer, second[layer])
                result[start : start + len(a), column] = _cosine(a, b)
        return result

    def predict(self, images: Any) -> Predictions:
        """Predicted classes and probabilities: the model's own output (batch, num_classes) taken as logits."""
        classes, probabilities = [], []
        for _, _, output in self._forward(images, layers=()):
            logits = _as_tensor(output, "the model").double()
            if logits.ndim != 2:
                raise ValueError(f"the model's output has shape {tuple(logits.shape)}; expected logits (batch, classes)")
            probability = logits.softmax(dim=1)
            classes.append(probability.argmax(dim=1).numpy())
            probabilities.append(probability.numpy())
        if not classes:
            raise ValueError("images: got none")
        return Predictions(np.concatenate(classes), np.concatenate(probabilities))

    def save_statistics(self, path: str | os.PathLike[str]) -> None:
        """Write mean, variance and names of the layers to a safetensors file."""
        from safetensors.numpy import save_file

        if not self.mean:
            raise ValueError("no reference statistics to save; call fit(images) first")
        arrays = {f"{layer}/mean": self.mean[layer] for layer in self.layers}
        arrays |= {f"{layer}/variance": self.variance[layer] for layer in self.layers}
        metadata = {"layers": json.dumps(self.layers), "reference_count": str(self.reference_count)}
        save_file(arrays, path, metadata=metadata)

    def load_statistics(self, path: str | os.PathLike[str]) -> HiddenLayers:
        """Read what `save_statistics` wrote, for the same layers; returns the probe itself."""
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            stored = tuple(json.loads(metadata.get("layers", "[]")))
            if stored != self.layers:
                raise ValueError(f"{path}: statistics of layers {list(stored)}; this probe reads {list(self.layers)}")
            self.mean = {layer: file.get_tensor(f"{layer}/mean") for layer in self.layers}
            self.variance = {layer: file.get_tensor(f"{layer}/variance") for layer in self.layers}
        self.reference_count = int(metadata["reference_count"])
        return self

    # -----------------------------------------------------------------------------------------------------------------

    def _forward(self, images: Any, layers: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, torch.Tensor], Any]]:
        """Forward passes, batch by batch: index of the first image, activations by layer, output of the model."""
        import torch

        layers = self.layers if layers is None else layers
        self._check_evaluation_mode()
        tensor = _checked_images(images)
        parameter = next(self.model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        modules = dict(self.model.named_modules())
        for start in range(0, len(tensor), self.batch_size):
            batch = tensor[start : start + self.batch_size].to(device)
            captured: dict[str, torch.Tensor] = {}
            handles = [modules[layer].register_forward_hook(_capture(layer, captured)) for layer in layers]
            try:
                with torch.inference_mode():
                    output = self.model(batch if self.preprocess is None else self.preprocess(batch))
            finally:
                for handle in handles:
                    handle.remove()
            for layer in layers:
                if layer not in captured:
                    raise ValueError(f"layer {layer!r} did not run in the forward pass, so it has no activations")
                _check_finite(captured[layer], layer, start)
            yield start, captured, output

    def _by_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Activations as (samples and positions, channels)."""
        axis = self.channel_axis if values.ndim > 2 else 1
        return values.movedim(axis, -1).flatten(0, -2)

    def _standardised(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Standardised activations (batch, positions x channels), float64; constant channels are 0."""
        import torch

        mean, variance = self.mean[layer], self.variance[layer]
        count = len(values)
        columns = self._by_channel(values.double())
        if columns.shape[1] != len(mean):
            raise ValueError(f"layer {layer!r}: {columns.shape[1]} channels, but the reference statistics have {len(mean)}")
        # Activations are float32: a spread below their rounding is no spread.
        constant = variance <= (4 * np.finfo(np.float32).eps * np.abs(mean)) ** 2
        scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance)))
        standardised = (columns - torch.from_numpy(mean)) * torch.from_numpy(scale)
        return standardised.reshape(count, -1)

    def _check_evaluation_mode(self) -> None:
        training = [name or "the model itself" for name, module in self.model.named_modules() if module.training]
        if training:
            raise ValueError(
                f"model is in training mode ({training[0]}), so activations would depend on the batch; call model.eval()"
            )


class _Moments:
    """Count, mean and sum of squared deviations of the rows seen so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.sum_of_squares = np.zeros(0)

    def add(self, rows: torch.Tensor) -> None:
        """Merge a batch of rows (count, channels)."""
        count, mean = len(rows), rows.mean(0)
        squares = (rows - mean).square().sum(0).numpy()
        if self.count == 0:
            self.count, self.mean, self.sum_of_squares = count, mean.numpy(), squares
            return
        total = self.count + count
        shift = mean.numpy() - self.mean
        self.sum_of_squares = self.sum_of_squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def _cosine(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Row by row; two zero rows are equal (1), one zero row is like nothing (0)."""
    a, b = first.numpy(), second.numpy()
    product = np.einsum("ij,ij->i", a, b)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    norms = norm_a * norm_b
    cosine = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    cosine[(norm_a == 0) & (norm_b == 0)] = 1
    return cosine.clip(-1, 1)


def _capture(layer: str, captured: dict[str, torch.Tensor]) -> Callable[..., None]:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        if layer in captured:
            raise ValueError(
                f"layer {layer!r} runs more than once in a forward pass (a shared module?); name a module that runs once, "
                f"such as the block around it"
            )
        # A copy, because the next module may work in place.
        captured[layer] = _as_tensor(output, f"layer {layer!r}").float().cpu().clone()

    return hook


def _as_tensor(output: Any, where: str) -> torch.Tensor:
    import torch

    first = output[0] if isinstance(output, tuple | list) and len(output) > 0 else output
    first = getattr(first, "logits", first)
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        raise ValueError(f"{where} gives {type(output).__name__}; expected a tensor (batch, channels, ...)")
    return first.detach().cpu()


def _select_layers(model: torch.nn.Module, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    names = [name for name, _ in model.named_modules() if name]
    if layers is None:
        children = tuple(name for name, _ in model.named_children())
        if not children:
            raise ValueError(f"{type(model).__name__} has no child modules to probe; name the layers")
        return children
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise ValueError("layers=[]: expected at least one name or pattern")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if _matches(name, pattern)]
        if not matches:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise ValueError(
                f"layers: {pattern!r} matches no module of {type(model).__name__}; close names: {', '.join(close)} "
                f"(all {len(names)}: [name for name, _ in model.named_modules()])"
            )
        chosen.update(matches)
    return tuple(name for name in names if name in chosen)


def _matches(name: str, pattern: str) -> bool:
    parts, pattern_parts = name.split("."), pattern.split(".")
    return len(parts) == len(pattern_parts) and all(map(fnmatch.fnmatchcase, parts, pattern_parts))


def _checked_images(images: Iterable[Any]) -> torch.Tensor:
    import torch

    tensor = images.detach() if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    if tensor.ndim != 4 or tensor.dtype != torch.float32:
        raise ValueError(
            f"images: dtype {tensor.dtype}, shape {tuple(tensor.shape)}; expected float32 (count, channels, height, width)"
        )
    return tensor


def _check_finite(values: torch.Tensor, layer: str, start: int) -> None:
    import torch

    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        bad = (start + torch.nonzero(~finite)[:, 0]).tolist()
        raise ValueError(f"layer {layer!r}: activations of images {bad[:10]} are not finite; check these images")
