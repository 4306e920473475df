"""Activations of a network in batches of originals and reconstructions: received from hooks, their
moments over a reference set, and standardised by these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from uturn.core.checks import checked_integer, expect
from uturn.networks.layers import as_tensor

Samples = np.ndarray | torch.Tensor
"""float32 or integers (count, ...)."""
Consumer = Callable[[str, torch.Tensor], None]
"""Called with the name and the activations of a layer, as soon as it has run."""


class Batch(NamedTuple):
    """The originals and reconstructions that pass through a network together."""

    items: slice
    draws: slice

    @property
    def num_items(self) -> int:
        return int(self.items.stop - self.items.start)


def batches(num_items: int, num_draws: int, clones: int, batch_size: int) -> list[Batch]:
    """Batches of at most `batch_size` originals and reconstructions: whole items if they fit,
    otherwise one item with as many groups of clones as fit.
    """
    items_at_once = max(1, batch_size // (1 + num_draws))
    groups_at_once = max(1, min(num_draws // clones, (batch_size - 1) // clones))
    all_items = _slices(num_items, items_at_once)
    all_draws = _slices(num_draws, clones * groups_at_once)
    return [Batch(items, draws) for items in all_items for draws in all_draws]


def _slices(number: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, number)) for start in range(0, number, width)]


def as_samples(samples: Samples, name: str = "samples") -> torch.Tensor:
    """Samples as a tensor (count, ...) of float32 or integers; ValueError for others."""
    if isinstance(samples, torch.Tensor):
        tensor = samples.detach()
    else:
        tensor = torch.from_numpy(np.require(samples, None, ["C", "W"]))
    is_number = tensor.dtype == torch.float32 or not tensor.is_floating_point()
    expect(
        tensor.ndim > 1 and is_number and not tensor.is_complex(),
        f"{name}: {tensor.dtype} of shape",
        tuple(tensor.shape),
        "float32 or integers (count, ...)",
    )
    return tensor


def checked_draws(
    original: Samples, reconstructed: Samples, clones: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (items, ...) and reconstructions of each (items, draws, ...) as tensors; draws is
    a multiple of `clones`.
    """
    first = as_samples(original, "original")
    second = as_samples(reconstructed, "reconstructed")
    is_of_items = second.shape[:1] + second.shape[2:] == first.shape
    expect(
        is_of_items and second.numel(),
        "shapes of original, reconstructed",
        (tuple(first.shape), tuple(second.shape)),
        "(items, ...), (items, draws, ...), not empty",
    )
    draws = second.shape[1]
    clones = checked_integer("clones", clones, 1)
    expect(draws % clones == 0, "draws of each item", draws, f"a multiple of clones = {clones}")
    return first, second


class Receiver:
    """Checks the outputs of layers in a forward pass and passes them on to `consume`."""

    def __init__(self, batch_size: int, consume: Consumer | None) -> None:
        self.batch_size = batch_size
        self.consume = consume
        self.ran: set[str] = set()

    def __call__(self, layer: str, output: object) -> None:
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
        check_finite(values, f"layer {layer!r}: activations")
        self.ran.add(layer)
        if self.consume is not None:
            self.consume(layer, values)

    def check(self, layers: Sequence[str]) -> None:
        """ValueError if a layer did not run."""
        missing = [layer for layer in layers if layer not in self.ran]
        expect(
            not missing,
            "layers that did not run in the forward pass",
            missing,
            "none; name the layers without them",
        )


def check_finite(values: torch.Tensor, name: str) -> None:
    """ValueError if a row of a batch has values that are not finite."""
    is_finite = torch.isfinite(values).flatten(1).all(1)
    if not is_finite.all():
        row = int((~is_finite).nonzero()[0])
        raise ValueError(f"{name} of row {row} of a batch are not finite; check these samples")


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer over a reference set, float64 (channels,)."""

    mean: np.ndarray
    """Over samples and positions."""
    variance: np.ndarray
    """Over samples and positions."""
    spread: np.ndarray
    """The variance over samples at a fixed position (normalised by count - 1), summed over
    positions."""
    shape: tuple[int, ...]
    """Shape of the activations of one reference sample."""

    def factors(self, *, legacy: bool = False) -> np.ndarray:
        """Factors 1 / sqrt(variance) of centred channels; 0 for channels that are constant up to
        the rounding of float32. `legacy`: the second moment in place of the variance.
        """
        is_constant = self.variance <= (4 * np.finfo(np.float32).eps * np.abs(self.mean)) ** 2
        square = self.variance
        if legacy:
            square = self.variance + self.mean**2
        return np.where(is_constant, 0, 1 / np.sqrt(np.where(is_constant, 1, square)))

    def standardised(
        self, values: torch.Tensor, factors: np.ndarray, axis: int = -1
    ) -> torch.Tensor:
        """(Activations - mean) * `factors` as float64; the channels lie along an axis."""
        z = float64_copy(values)
        shape = [1] * z.ndim
        shape[axis] = -1
        centre = torch.from_numpy(self.mean).to(z.device).view(shape)
        scale = torch.from_numpy(factors).to(z.device).view(shape)
        return z.sub_(centre).mul_(scale)


class Moments:
    """Running count, mean and sum of squared deviations of the activations of one layer, per
    unit.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.count = 0
        self.mean = np.zeros(())
        self.squares = np.zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Add a batch (count, ...) by the update of Chan, Golub and LeVeque (1979); the batch is
        overwritten.
        """
        count = len(values)
        mean = values.mean(0)
        expect(
            self.count == 0 or mean.shape == self.mean.shape,
            f"shape of layer {self.layer!r}",
            tuple(mean.shape),
            f"{self.mean.shape}, as before: samples of one size",
        )
        squares = values.sub_(mean).square_().sum(0).cpu().numpy()
        shift = mean.cpu().numpy() - self.mean
        total = self.count + count
        self.squares = self.squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def statistics(self, axis: int) -> LayerStatistics:
        """The statistics of the channels, which lie along an axis of the activations (count, ..)."""
        positions = tuple(k for k in range(self.mean.ndim) if k != axis - 1)
        variance = (self.squares / self.count).mean(positions) + self.mean.var(positions)
        spread = self.squares.sum(positions) / max(self.count - 1, 1)
        return LayerStatistics(self.mean.mean(positions), variance, spread, self.mean.shape)


def checked_count(count: int, name: str) -> int:
    """The number of reference data; ValueError if there are fewer than two."""
    expect(count > 1, name, count, "at least 2 for a variance, and many to be any good")
    return count


def float64_copy(values: torch.Tensor) -> torch.Tensor:
    """A float64 copy on the same device, or on the CPU if the device has no float64 (MPS)."""
    if values.device.type == "mps":
        values = values.cpu()
    return values.to(torch.float64, copy=True)
