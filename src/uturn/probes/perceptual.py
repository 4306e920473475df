"""The perceptual distance of images: differences of a network's outputs, each divided by its
norm over the channels.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from uturn.core.checks import expect
from uturn.core.inputs import File, Input
from uturn.core.messages import one_line
from uturn.core.protocols import Probe, UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.named import Named
from uturn.probes.prepared import Prepared
from uturn.sources.images import Images, ImageSource, NoisyImages

if TYPE_CHECKING:
    import torch
    from torch import nn

    from uturn.probes.activations import Batch, Samples
    from uturn.probes.hidden_layers import HiddenLayers

_LEAST_NORM = 1e-10  # as in the package lpips; outputs of norm 0 stay 0

# The layers of LPIPS: the activation functions that end the stages of its three networks.
LPIPS_LAYERS = {
    "torchvision:alexnet": tuple(f"features.{k}" for k in (1, 4, 7, 9, 11)),
    "torchvision:vgg16": tuple(f"features.{k}" for k in (3, 8, 15, 22, 29)),
    "torchvision:squeezenet1_1": tuple(f"features.{k}" for k in (1, 4, 7, 9, 10, 11, 12)),
}


class Perceptual(Named, Prepared, Probe[Images, NoisyImages, ImageSource]):
    """Perceptual distance of images to their reconstructions, LPIPS (arXiv:1801.03924, Eq. 1;
    `PerceptualDistance`).

    Options. `classifier`, `weights`: any network of the probe `network_layers`. `layers`: names or
    patterns of its modules. `linear`: a file of learned channel weights of the package lpips;
    without it all channels have the weight 1, the paper's baseline. `name`: prefix of the
    variables. `batch_size`: images in a forward pass (execution-only).

    The networks of LPIPS are "torchvision:vgg16", "torchvision:alexnet" and
    "torchvision:squeezenet1_1". For these, the layers are those of LPIPS, and images are normalised
    but not resized, as in the package lpips. All other networks use the preprocessing and the
    layers of the probe `network_layers`.

    Variables. `perceptual_distance`: 0 for equal images, without unit.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    type: Literal["perceptual"] = "perceptual"
    classifier: str
    weights: str | None = None
    layers: tuple[str, ...] | None = None
    linear: File | None = None
    batch_size: int = Field(default=50, ge=1)
    _distance: PerceptualDistance = PrivateAttr()

    @property
    def network_name(self) -> str:
        return self.classifier

    def prepare(self, source: ImageSource) -> None:
        self._distance = distance_of(self, source)

    def variables(self, source: ImageSource) -> dict[str, Variable]:
        weights = "without" if self.linear is None else "with"
        distance = Variable(
            ("noise", "item", "trajectory"),
            f"perceptual distance, {self.classifier}, {weights} learned weights",
            start=0,
            bounds=(0, None),
            group="perceptual distance",
            symmetric=True,
        )
        return self.prefixed({"perceptual_distance": distance})

    def read(
        self, u_turns: UTurns[Images, NoisyImages], source: ImageSource
    ) -> dict[str, np.ndarray]:
        originals = u_turns.originals
        rebuilt = originals.data_of(u_turns.reconstructions)
        distances = self._distance.read(originals.data, rebuilt, u_turns.clones)
        twins: dict[str, np.ndarray] = {}
        if distances.with_clones is not None:
            twins = {"perceptual_distance": distances.with_clones}
        return self.prefixed({"perceptual_distance": distances.with_original}, twins)

    def reads(self) -> list[Input]:
        from uturn.networks.modules import Network

        return [Network(self.classifier, self.weights), *super().reads()]


def distance_of(spec: Perceptual, source: ImageSource) -> PerceptualDistance:
    """The perceptual distance of a spec, tested on blank images of the source's size."""
    shape = source.image_shape()
    layers = _layers_of_lpips(spec) if spec.classifier in LPIPS_LAYERS else _layers(spec, shape)
    weights = None
    if spec.linear is not None:
        weights = read_linear(spec.linear, layers.layers)
    distance = PerceptualDistance(layers, weights)
    blank = np.zeros((1, *shape), np.float32)
    try:
        distance.read(blank, blank[:, None])
    except (ValueError, RuntimeError) as error:  # torch's, for images that are too small
        raise ValueError(
            f"classifier = {spec.classifier!r}, images {shape}: {one_line(error)}"
        ) from None
    return distance


def _layers_of_lpips(spec: Perceptual) -> HiddenLayers:
    """The layers of a network of LPIPS; images are normalised but not resized."""
    from uturn.networks.modules import Network, Preprocessing
    from uturn.probes.hidden_layers import HiddenLayers

    network = Network(spec.classifier, spec.weights).load()  # says how to install torchvision
    from torchvision.transforms import Normalize

    assert isinstance(network.preprocess, Preprocessing)
    transforms: Any = network.preprocess.transforms  # of torchvision
    normalise = Preprocessing(Normalize(transforms.mean, transforms.std))
    names = LPIPS_LAYERS[spec.classifier]
    module = network.module if spec.layers else stages(network.module, names[-1])
    return HiddenLayers(module, spec.layers or names, normalise, batch_size=spec.batch_size)


def _layers(spec: Perceptual, shape: tuple[int, int, int]) -> HiddenLayers:
    """The layers of any other network, as the probe `network_layers` reads them."""
    from uturn.networks.modules import load_classifier
    from uturn.probes.hidden_layers import HiddenLayers

    classifier = load_classifier(
        spec.classifier, spec.weights, layers=spec.layers, image_shape=shape
    )
    expect(
        not classifier.without_layers,
        "classifier",
        spec.classifier,
        f"one with layers: {classifier.without_layers}",
    )
    return HiddenLayers(
        classifier.module,
        classifier.layers,
        classifier.preprocess,
        batch_size=spec.batch_size,
        channel_axis=classifier.channel_axes,
    )


def stages(network: nn.Module, last: str) -> nn.Module:
    """The `features` of a network of torchvision up to a layer, such as "features.29": smaller
    images are accepted.
    """
    from torch import nn

    features = network.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    end = int(last.rpartition(".")[2]) + 1
    return nn.Sequential(OrderedDict(features=features[:end])).eval()


@dataclass(frozen=True)
class Distances:
    """Distances of reconstructions, float64 (items, draws)."""

    with_original: np.ndarray
    with_clones: np.ndarray | None = None
    """Mean distance of a clone to the other clones of its noisy image; None for a single clone."""


class PerceptualDistance:
    """The distance of Zhang et al., LPIPS (arXiv:1801.03924, Eq. 1), on any layers of a network.

    d(x, x') = sum_l 1/P_l sum_p sum_c w_lc (u_lpc - u'_lpc)^2

    u_lp: output of layer l at position p, of P_l, divided by its norm over the channels c. w_lc:
    weight of a channel, 1 (`weights` None) or learned by LPIPS from human judgements (the square of
    w in Eq. 1). A layer without positions has P_l = 1.
    """

    def __init__(
        self, layers: HiddenLayers, weights: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self.layers = layers
        self._weights: dict[str, torch.Tensor] = {}
        if weights is not None:
            self._weights = {layer: values.double() for layer, values in weights.items()}

    def read(self, original: Samples, reconstructed: Samples, clones: int = 1) -> Distances:
        """Distances of originals (items, ...) to their reconstructions (items, draws, ...), and
        with several clones of each clone to the others.
        """
        from uturn.probes.activations import checked_draws

        first, second = checked_draws(original, reconstructed, clones)
        shape = second.shape[:2]
        distances = Distances(np.zeros(shape), np.zeros(shape) if clones > 1 else None)

        def add(batch: Batch, layer: str, values: torch.Tensor) -> None:
            count = batch.num_items
            rebuilt = values[count:].reshape(count, -1, *values.shape[1:])
            difference = partial(self._difference, layer)
            # One original at a time, since the output of a layer can be much larger than the image.
            for k in range(count):
                before = self._unit(layer, values[k : k + 1])
                after = self._unit(layer, rebuilt[k])
                place = (batch.items.start + k, batch.draws)
                distances.with_original[place] += difference(before, after)
                if distances.with_clones is not None:
                    twins = between_clones(after[None], clones, difference)
                    distances.with_clones[place] += twins[0]

        for _ in self.layers.visit(first, second, clones, add):
            pass
        return distances

    def _unit(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Outputs of a layer as float64 (batch, positions, channels), divided by their norm over
        the channels.
        """
        from uturn.probes.activations import float64_copy

        axis = self.layers.axis(layer, values.ndim)
        if values.ndim > 2:
            rows = values.movedim(axis, -1).flatten(1, -2)
        else:
            rows = values[:, None]
        outputs = float64_copy(rows)
        normalised: torch.Tensor = outputs / (outputs.norm(dim=-1, keepdim=True) + _LEAST_NORM)
        return normalised

    def _difference(self, layer: str, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
        """The term of a layer in the distance, (batch,)."""
        square = (first - second).square()
        if layer not in self._weights:
            return square.sum(-1).mean(-1).cpu().numpy()
        weights = self._weights[layer].to(square.device)
        expect(
            len(weights) == square.shape[-1],
            f"linear: weights of layer {layer!r}",
            len(weights),
            f"{square.shape[-1]}",
        )
        return (square @ weights).mean(-1).cpu().numpy()


def read_linear(path: str, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Learned weights of the channels of layers {layer: (channels,)}, from a file of the package
    lpips.

    The package numbers its layers: `lin0.model.1.weight` (1, channels, 1, 1) holds the weights of
    the first layer.
    """
    from uturn.networks.files import read_state_dict

    expected = "a file of learned weights of the package lpips, such as lpips/weights/v0.1/vgg.pth"
    state = read_state_dict(path, expected, "linear")
    by_number: dict[int, torch.Tensor] = {}
    for name, weights in state.items():
        match = re.fullmatch(r"lin(\d+)\.model\.\d+\.weight", str(name))
        if match is not None:
            by_number[int(match[1])] = weights.flatten()
    expect(
        sorted(by_number) == list(range(len(layers))),
        f"linear = {path!r}: layers",
        sorted(by_number),
        f"{len(layers)} layers, of {expected}",
    )
    least = min(float(weights.min()) for weights in by_number.values())
    expect(least >= 0, f"linear = {path!r}: smallest weight", least, f"0 or more, as in {expected}")
    return {layer: by_number[number] for number, layer in enumerate(layers)}
