"""The probe of the perceptual distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.files import cached_while_unchanged
from uturn.core.inputs import File
from uturn.core.protocols import UTurns, Variable
from uturn.probes.named import Named

if TYPE_CHECKING:
    from uturn.probes.perceptual_distance import PerceptualDistance

# The layers of LPIPS: the activation functions that end the stages of its three networks.
LPIPS_LAYERS = {
    "torchvision:alexnet": tuple(f"features.{k}" for k in (1, 4, 7, 9, 11)),
    "torchvision:vgg16": tuple(f"features.{k}" for k in (3, 8, 15, 22, 29)),
    "torchvision:squeezenet1_1": tuple(f"features.{k}" for k in (1, 4, 7, 9, 10, 11, 12)),
}


class Perceptual(Named):
    """Perceptual distance of images to their reconstructions, LPIPS (arXiv:1801.03924, Eq. 1; `PerceptualDistance`).

    Options. `classifier`, `weights`: any network of the probe `network_layers`. `layers`: names or patterns of its modules.
    `linear`: a file of learned channel weights of the package lpips; without it all channels have the weight 1, the paper's
    baseline. `name`: prefix of the variables. `batch_size`: images in a forward pass (execution-only).

    The networks of LPIPS are "torchvision:vgg16", "torchvision:alexnet" and "torchvision:squeezenet1_1". For these, the layers
    are those of LPIPS, and images are normalised but not resized, as in the package lpips. All other networks use the
    preprocessing and the layers of the probe `network_layers`.

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

    def variables(self, source: Any) -> dict[str, Variable]:
        distance_of(self, source)  # exposes errors before the run
        long_name = f"perceptual distance, {self.classifier}, {'without' if self.linear is None else 'with'} learned weights"
        read_as: dict[str, Any] = {"start": 0, "bounds": (0, None), "group": "perceptual distance", "symmetric": True}
        return self.prefixed({"perceptual_distance": Variable(("noise", "item", "trajectory"), long_name, **read_as)})

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals = u_turns.originals
        distances = distance_of(self, source).read(originals.data, originals.data_of(u_turns.reconstructions), u_turns.clones)
        return self.prefixed(*({"perceptual_distance": values} for values in distances))

    def reads(self) -> list[Any]:
        from uturn.networks.modules import Network

        return [Network(self.classifier, self.weights), *super().reads()]


@cached_while_unchanged()
def distance_of(spec: Perceptual, source: Any) -> PerceptualDistance:
    """The perceptual distance of a spec, tested on blank images of the source's size."""
    from uturn.networks.modules import Network, Preprocessing, load_classifier
    from uturn.probes.hidden_layers import HiddenLayers
    from uturn.probes.perceptual_distance import PerceptualDistance, Stages, read_linear

    shape = source.image_shape()
    if spec.classifier in LPIPS_LAYERS:
        network = Network(spec.classifier, spec.weights).load()
        from torchvision.transforms import Normalize

        assert isinstance(network.preprocess, Preprocessing)
        own: Any = network.preprocess.transforms
        names = LPIPS_LAYERS[spec.classifier]
        module = network.module if spec.layers else Stages(network.module, names[-1])
        normalise = Preprocessing(Normalize(own.mean, own.std))
        layers = HiddenLayers(module, spec.layers or names, normalise, batch_size=spec.batch_size)
    else:
        classifier = load_classifier(spec.classifier, spec.weights, layers=spec.layers, image_shape=shape)
        expect(not classifier.without_layers, "classifier", spec.classifier, f"one with layers: {classifier.without_layers}")
        options: Any = {"batch_size": spec.batch_size, "channel_axis": classifier.channel_axes}
        layers = HiddenLayers(classifier.module, classifier.layers, classifier.preprocess, **options)
    distance = PerceptualDistance(layers, None if spec.linear is None else read_linear(spec.linear, layers.layers))
    blank = np.zeros((1, *shape), np.float32)
    try:
        distance.read(blank, blank[:, None])
    except ValueError as error:
        raise ValueError(f"classifier = {spec.classifier!r}: {error}") from None
    return distance
