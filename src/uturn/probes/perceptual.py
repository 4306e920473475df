"""The perceptual distance of images: differences of a network's outputs, each divided by its
norm over the channels.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr

from uturn.core.checks import expect
from uturn.core.inputs import File, Input
from uturn.core.messages import one_line
from uturn.core.protocols import Probe, UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.named import Named
from uturn.sources.images import Images, ImageSource, NoisyImages

if TYPE_CHECKING:
    import torch

    from uturn.probes.hidden_layers import HiddenLayers

_LEAST_NORM = 1e-10  # as in the package lpips; outputs of norm 0 stay 0

# The layers of LPIPS: the activation functions that end the stages of its three networks.
LPIPS_LAYERS = {
    "torchvision:alexnet": tuple(f"features.{k}" for k in (1, 4, 7, 9, 11)),
    "torchvision:vgg16": tuple(f"features.{k}" for k in (3, 8, 15, 22, 29)),
    "torchvision:squeezenet1_1": tuple(f"features.{k}" for k in (1, 4, 7, 9, 10, 11, 12)),
}


class Perceptual(Named, Probe[Images, NoisyImages, ImageSource]):
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

    def bind(self, source: ImageSource) -> Self:
        bound = self.model_copy()
        bound._distance = distance_of(self, source)
        return bound

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
        distances = self._distance.read(
            originals.data, originals.data_of(u_turns.reconstructions), u_turns.clones
        )
        return self.prefixed(*({"perceptual_distance": values} for values in distances))

    def reads(self) -> list[Input]:
        from uturn.networks.modules import Network

        return [Network(self.classifier, self.weights), *super().reads()]


def distance_of(spec: Perceptual, source: ImageSource) -> PerceptualDistance:
    """The perceptual distance of a spec, tested on blank images of the source's size."""
    from uturn.networks.modules import Network, Preprocessing, load_classifier
    from uturn.probes.hidden_layers import HiddenLayers

    shape = source.image_shape()
    if spec.classifier in LPIPS_LAYERS:
        network = Network(spec.classifier, spec.weights).load()
        from torchvision.transforms import Normalize

        assert isinstance(network.preprocess, Preprocessing)
        own: Any = network.preprocess.transforms
        names = LPIPS_LAYERS[spec.classifier]
        module = network.module if spec.layers else stages(network.module, names[-1])
        normalise = Preprocessing(Normalize(own.mean, own.std))
        layers = HiddenLayers(module, spec.layers or names, normalise, batch_size=spec.batch_size)
    else:
        classifier = load_classifier(
            spec.classifier, spec.weights, layers=spec.layers, image_shape=shape
        )
        expect(
            not classifier.without_layers,
            "classifier",
            spec.classifier,
            f"one with layers: {classifier.without_layers}",
        )
        options: Any = {"batch_size": spec.batch_size, "channel_axis": classifier.channel_axes}
        layers = HiddenLayers(
            classifier.module, classifier.layers, classifier.preprocess, **options
        )
    distance = PerceptualDistance(
        layers, None if spec.linear is None else read_linear(spec.linear, layers.layers)
    )
    blank = np.zeros((1, *shape), np.float32)
    try:
        distance.read(blank, blank[:, None])
    except (ValueError, RuntimeError) as error:  # torch's, for images that are too small
        raise ValueError(
            f"classifier = {spec.classifier!r}, images {shape}: {one_line(error)}"
        ) from None
    return distance


def stages(network: Any, last: str) -> Any:
    """The `features` of a network of torchvision up to a layer, such as "features.29": smaller
    images are accepted.
    """
    from torch import nn

    return nn.Sequential(
        OrderedDict(features=network.features[: int(last.rpartition(".")[2]) + 1])
    ).eval()


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
        self._weights = (
            {} if weights is None else {layer: values.double() for layer, values in weights.items()}
        )

    def read(self, original: Any, reconstructed: Any, clones: int = 1) -> list[np.ndarray]:
        """Distances of originals (items, ...) to their reconstructions (items, draws, ...), float64
        (items, draws).

        With several clones also the mean distance of each clone to the other clones of its noisy
        image.
        """
        from uturn.probes.hidden_layers import checked_draws

        first, second = checked_draws(original, reconstructed, clones)
        distances = np.zeros((1 if clones == 1 else 2, *second.shape[:2]))

        def add(layer: str, values: torch.Tensor, rows: slice, columns: slice) -> None:
            count = rows.stop - rows.start
            rebuilt = values[count:].reshape(count, -1, *values.shape[1:])
            difference = partial(self._difference, layer)
            # One original at a time, since the output of a layer can be much larger than the image.
            for k in range(count):
                before, after = self._unit(layer, values[k : k + 1]), self._unit(layer, rebuilt[k])
                distances[0, rows.start + k, columns] += difference(before, after)
                if clones > 1:
                    distances[1, rows.start + k, columns] += between_clones(
                        after[None], clones, difference
                    )[0]

        for _ in self.layers.visit(first, second, clones, add):
            pass
        return list(distances)

    def _unit(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Outputs of a layer as float64 (batch, positions, channels), divided by their norm over
        the channels.
        """
        from uturn.probes.hidden_layers import float64_copy

        axis = self.layers.axis(layer, values.ndim)
        outputs = float64_copy(
            values.movedim(axis, -1).flatten(1, -2) if values.ndim > 2 else values[:, None]
        )
        return outputs / (outputs.norm(dim=-1, keepdim=True) + _LEAST_NORM)

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
    named = {
        re.fullmatch(r"lin(\d+)\.model\.\d+\.weight", str(name)): weights
        for name, weights in state.items()
    }
    by_number = {int(match[1]): weights.flatten() for match, weights in named.items() if match}
    fits = sorted(by_number) == list(range(len(layers)))
    expect(
        fits,
        f"linear = {path!r}: layers",
        sorted(by_number),
        f"{len(layers)} layers, of {expected}",
    )
    least = min(float(weights.min()) for weights in by_number.values())
    expect(least >= 0, f"linear = {path!r}: smallest weight", least, f"0 or more, as in {expected}")
    return {layer: by_number[number] for number, layer in enumerate(layers)}
