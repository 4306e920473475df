"""Perceptual distance of images: differences of the outputs of a network's layers, each divided by its norm over the channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from uturn.core.checks import expect
from uturn.measures.clones import between_clones
from uturn.networks.files import read_state_dict
from uturn.probes.hidden_layers import HiddenLayers, checked_draws, float64_copy

_LEAST_NORM = 1e-10  # as in the package lpips; outputs of norm 0 stay 0


class Stages(nn.Module):
    """The `features` of a network of torchvision up to a layer, such as "features.29": smaller images are accepted."""

    def __init__(self, network: Any, last: str) -> None:
        super().__init__()
        self.features = network.features[: int(last.rpartition(".")[2]) + 1]
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)


class PerceptualDistance:
    """The distance of Zhang et al., LPIPS (arXiv:1801.03924, Eq. 1), on any layers of a network.

    d(x, x') = sum_l 1/P_l sum_p sum_c w_lc (u_lpc - u'_lpc)^2

    u_lp: output of layer l at position p, of P_l, divided by its norm over the channels c. w_lc: weight of a channel, 1
    (`weights` None) or learned by LPIPS from human judgements (the square of w in Eq. 1). A layer without positions has P_l = 1.
    """

    def __init__(self, layers: HiddenLayers, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        self.layers = layers
        self._weights = {} if weights is None else {layer: values.double() for layer, values in weights.items()}

    def read(self, original: Any, reconstructed: Any, clones: int = 1) -> list[np.ndarray]:
        """Distances of originals (items, ...) to their reconstructions (items, draws, ...), float64 (items, draws).

        With several clones also the mean distance of each clone to the other clones of its noisy image.
        """
        first, second = checked_draws(original, reconstructed, clones)
        distances = np.zeros((1 if clones == 1 else 2, *second.shape[:2]))

        def add(layer: str, values: torch.Tensor, rows: slice, columns: slice) -> None:
            count = rows.stop - rows.start
            rebuilt = values[count:].reshape(count, -1, *values.shape[1:])
            difference = partial(self._difference, layer)
            for k in range(count):  # one original at a time, since the output of a layer can be much larger than the image
                before, after = self._unit(layer, values[k : k + 1]), self._unit(layer, rebuilt[k])
                distances[0, rows.start + k, columns] += difference(before, after)
                if clones > 1:
                    distances[1, rows.start + k, columns] += between_clones(after[None], clones, difference)[0]

        for _ in self.layers.visit(first, second, clones, add):
            pass
        return list(distances)

    def _unit(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Outputs of a layer as float64 (batch, positions, channels), divided by their norm over the channels."""
        axis = self.layers.axis(layer, values.ndim)
        outputs = float64_copy(values.movedim(axis, -1).flatten(1, -2) if values.ndim > 2 else values[:, None])
        return outputs / (outputs.norm(dim=-1, keepdim=True) + _LEAST_NORM)

    def _difference(self, layer: str, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
        """The term of a layer in the distance, (batch,)."""
        square = (first - second).square()
        if layer not in self._weights:
            return square.sum(-1).mean(-1).cpu().numpy()
        weights = self._weights[layer].to(square.device)
        expect(len(weights) == square.shape[-1], f"linear: weights of layer {layer!r}", len(weights), f"{square.shape[-1]}")
        return (square @ weights).mean(-1).cpu().numpy()


def read_linear(path: str, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Learned weights of the channels of layers {layer: (channels,)}, from a file of the package lpips.

    The package numbers its layers: `lin0.model.1.weight` (1, channels, 1, 1) holds the weights of the first layer.
    """
    expected = "a file of learned weights of the package lpips, such as lpips/weights/v0.1/vgg.pth"
    state = read_state_dict(path, expected, "linear")
    named = {re.fullmatch(r"lin(\d+)\.model\.\d+\.weight", str(name)): weights for name, weights in state.items()}
    by_number = {int(match[1]): weights.flatten() for match, weights in named.items() if match}
    fits = sorted(by_number) == list(range(len(layers)))
    expect(fits, f"linear = {path!r}: layers", sorted(by_number), f"{len(layers)} layers, of {expected}")
    least = min(float(weights.min()) for weights in by_number.values())
    expect(least >= 0, f"linear = {path!r}: smallest weight", least, f"0 or more, as in {expected}")
    return {layer: by_number[number] for number, layer in enumerate(layers)}
