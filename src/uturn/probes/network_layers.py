"""The probe of the hidden layers of a network, and of its predicted class for networks with
classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.findings import Finding
from uturn.core.inputs import File, Input
from uturn.core.protocols import Originals, Probe, Source, UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.named import Named
from uturn.probes.prepared import Prepared

if TYPE_CHECKING:
    from uturn.networks.modules import Classifier
    from uturn.probes.activations import Samples
    from uturn.probes.hidden_layers import HiddenLayers


class NetworkLayers(Named, Prepared, Probe):
    """Similarity of standardised post-activations of a network, layer by layer, and agreement of
    its predicted classes.

    Options. `classifier`, `weights`: as in `uturn.networks.modules.load_classifier`:
    "torchvision:NAME", "timm:NAME", "clip:FOLDER", "module:function", "fashion_mnist", or a file
    written by `uturn.networks.save_network`. `class_prompts`: the classes of a "clip:" model as
    texts: a file with one text on each line, or a template with {} for the source's class names, by
    default "a photo of a {}"; without a file and without class names, the model is an encoder.
    `name`: prefix of the variables and of the dim `network_layer`, as in "resnet_similarity", so
    that an experiment can have several networks. `layers`: names or patterns, by default "every
    block" (see `HiddenLayers`). `statistics`: a file written by `HiddenLayers.save_statistics` for
    this network; without it, means and variances are taken over the first `reference` images of the
    source. `legacy`: standardise with the second moment, as in the code published with the paper.
    `labels`: also compare with the true labels, if the source has them. `batch_size`: samples in a
    forward pass (execution-only).

    Variables. `similarity`: cosine, -1 .. 1. `distance`: squared distance, 1 for independent data
    (`HiddenLayers.compare`). `predicted_class`: class predicted for the reconstruction.
    `same_class`: whether it equals the class predicted for the original. For images also
    `original_class`: class predicted for the original; and with labels `label_top1`: whether the
    predicted class of the reconstruction is the label (NaN if unknown). With more than five classes
    also `same_class_top5`, `label_top5`: whether the predicted class of the original, or the label,
    is among the five most probable classes of the reconstruction. An encoder has no classes; a
    classifier of images without blocks has no layers unless `layers` names some.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    type: Literal["network_layers"] = "network_layers"
    classifier: str = "fashion_mnist"
    weights: str | None = None
    class_prompts: File | None = None
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=1000, ge=2)
    statistics: File | None = None
    legacy: bool = False
    labels: bool = True
    batch_size: int = Field(default=100, ge=1)
    _hidden_layers: HiddenLayers = PrivateAttr()
    _measured: tuple[str, ...] = PrivateAttr()

    @property
    def hidden_layers(self) -> HiddenLayers:
        """The layers that it reads, of a probe that is bound to a source."""
        return self._hidden_layers

    @property
    def network_name(self) -> str:
        return self.classifier

    @model_validator(mode="after")
    def _prompts_need_texts(self) -> NetworkLayers:
        fits = self.class_prompts is None or self.classifier.startswith("clip:")
        expected = f"None, as classifier = {self.classifier!r} reads no texts; 'clip:FOLDER' does"
        expect(fits, "class_prompts", self.class_prompts, expected)
        return self

    @cached_while_unchanged()  # the statistics of reference images are slow
    def bind(self, source: Source) -> Self:
        return super().bind(source)

    def prepare(self, source: Source) -> None:
        self._measured = _measured(self, source)
        self._hidden_layers = _hidden_layers(self, source)

    def variables(self, source: Source) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        layered = (*dims, f"{self.prefix}network_layer")
        share: dict[str, Any] = {"bounds": (0, 1), "group": "class"}
        original_class = f"{self.prefix}original_class"
        every = {
            "similarity": Variable(
                layered,
                "cosine similarity of standardised activations",
                start=1,
                bounds=(-1, 1),
                group="layers",
                order=layered[-1],
                symmetric=True,
            ),
            "distance": Variable(
                layered,
                "squared distance of standardised activations, 1 if independent",
                start=0,
                chance=1,
                bounds=(0, None),
                group="distance of layers",
                family=f"{self.prefix}distance",
                symmetric=True,
            ),
            "same_class": Variable(
                dims,
                "same predicted class as the original",
                start=1,
                chance=f"same:{original_class}",
                symmetric=True,
                **share,
            ),
            "predicted_class": Variable(
                dims, "class predicted for the reconstruction", role="record"
            ),
            "original_class": Variable(
                dims[:2], "class predicted for the original", role="record", pooled=False
            ),
            "same_class_top5": Variable(
                dims,
                "class predicted for the original among the five first classes",
                start=1,
                **share,
            ),
            "label_top1": Variable(
                dims,
                "label of the original is the predicted class",
                start=f"same:{original_class}=label",
                **share,
            ),
            "label_top5": Variable(
                dims, "label of the original among the five first classes", **share
            ),
        }
        return self.prefixed({name: every[name] for name in self._measured})

    def coordinates(self, source: Source) -> dict[str, np.ndarray]:
        layers = self._hidden_layers.layers
        return {f"{self.prefix}network_layer": np.array(layers)} if layers else {}

    def taken_from(self, source: Source) -> str:
        texts = self.texts(source)
        return "" if texts is None else hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def read(self, u_turns: UTurns, source: Source) -> dict[str, np.ndarray]:
        originals = u_turns.originals
        layers = self._hidden_layers.read(
            _readable(originals.data),
            _readable(originals.data_of(u_turns.reconstructions)),
            u_turns.clones,
            logits="same_class" in self._measured,
        )
        readings = {"similarity": layers.similarity, "distance": layers.distance}
        twins: dict[str, np.ndarray] = {}
        if layers.clone_similarity is not None and "similarity" in self._measured:
            twins["similarity"] = layers.clone_similarity
        if layers.clone_distance is not None and "distance" in self._measured:
            twins["distance"] = layers.clone_distance
        if layers.original_logits is not None and layers.logits is not None:
            labels: np.ndarray | None = getattr(originals, "labels", None)
            readings |= _verdicts(layers.original_logits, layers.logits, labels, self._measured)
            if u_turns.clones > 1:
                twins["same_class"] = between_clones(
                    readings["predicted_class"], u_turns.clones, np.equal
                )
        return self.prefixed({name: readings[name] for name in self._measured}, twins)

    def model_check(self, source: Source, originals: Sequence[Originals]) -> list[Finding]:
        """Faults of a classifier of images, found on the first originals
        (`uturn.networks.model_check`).
        """
        import torch

        from uturn.networks.layers import as_tensor
        from uturn.networks.model_check import WRITES, check_calls, writes_into

        shape = source.image_shape()
        if shape is None:
            return []
        classifier = _classifier(self, source, shape)
        parameter = next(classifier.module.parameters(), None)
        device = None if parameter is None else parameter.device
        data = np.concatenate([block.data for block in originals]).astype(np.float32)
        images = torch.from_numpy(data)
        images = torch.cat([images, torch.zeros_like(images[:1])]).to(device)

        def logits(images: torch.Tensor) -> torch.Tensor:
            if classifier.preprocess is not None:
                images = classifier.preprocess(images)
            return as_tensor(classifier.module(images), "the output")

        with torch.inference_mode():
            faults = list(check_calls(logits, images))
            if writes_into(logits, images[-2:]):
                faults.append(WRITES)
        if classifier.without_layers:
            faults.append(f"is compared by its classes alone: {classifier.without_layers}")
        return [Finding(f"the classifier {self.classifier!r} {fault}") for fault in faults]

    def reads(self) -> list[Input]:
        from uturn.networks.modules import Network

        return [Network(self.classifier, self.weights), *super().reads()]

    def texts(self, source: Source) -> tuple[str, ...] | None:
        """A text for each class of a "clip:" model; None for other classifiers, or without texts
        and class names.
        """
        if not self.classifier.startswith("clip:"):
            return None
        from uturn.networks.images.clip import class_texts

        return class_texts(self.class_prompts, source.class_names())


def _hidden_layers(spec: NetworkLayers, source: Source) -> HiddenLayers:
    """The hidden layers of a spec, with statistics from its file or from images of the source."""
    shape = source.image_shape()
    layers = _layers_of_any(spec) if shape is None else _layers_of_images(spec, source, shape)
    if not layers.layers:
        return layers
    if spec.statistics is not None:
        return layers.load_statistics(spec.statistics)
    needed = (
        "a file of HiddenLayers(network, 'every block').fit(samples).save_statistics(path), for"
        " data that are no images"
    )
    expect(shape is not None, "statistics", None, needed)
    return layers.fit(_first_images(source, spec.reference, spec.batch_size))


def _layers_of_any(spec: NetworkLayers) -> HiddenLayers:
    """The layers of a network that reads data other than images."""
    from uturn.networks.layers import EVERY_BLOCK
    from uturn.networks.modules import Network
    from uturn.probes.hidden_layers import HiddenLayers

    network = Network(spec.classifier, spec.weights).load()
    return HiddenLayers(
        network.module,
        spec.layers or EVERY_BLOCK,
        network.preprocess,
        batch_size=spec.batch_size,
        legacy=spec.legacy,
    )


def _layers_of_images(
    spec: NetworkLayers, source: Source, shape: tuple[int, int, int]
) -> HiddenLayers:
    from uturn.probes.hidden_layers import HiddenLayers

    classifier = _classifier(spec, source, shape)
    return HiddenLayers(
        classifier.module,
        classifier.layers,
        classifier.preprocess,
        batch_size=spec.batch_size,
        channel_axis=classifier.channel_axes,
        legacy=spec.legacy,
    )


def _measured(spec: NetworkLayers, source: Source) -> tuple[str, ...]:
    """Names of the variables without the prefix; ValueError if labels and classes do not match."""
    layer_readings = ("similarity", "distance")
    class_readings = ("same_class", "predicted_class")
    shape = source.image_shape()
    if shape is None:
        return layer_readings + class_readings
    classifier = _classifier(spec, source, shape)
    num_classes = classifier.num_classes
    if num_classes == 0:
        return layer_readings
    names = [*layer_readings, *class_readings] if classifier.layers else [*class_readings]
    names.append("original_class")
    has_top5 = num_classes > 5
    if has_top5:
        names.append("same_class_top5")
    num_labels = source.num_labels() if spec.labels else None
    if num_labels is not None:
        way_out = (
            "give the source `classes` (--classes), a file of them in its order, or labels = false"
            " (--no-compare-labels)"
        )
        expected = f"{num_classes}, as classifier = {spec.classifier!r} knows; {way_out}"
        expect(num_labels == num_classes, "number of labels of the images", num_labels, expected)
        names.append("label_top1")
        if has_top5:
            names.append("label_top5")
    return tuple(names)


def _classifier(spec: NetworkLayers, source: Source, shape: tuple[int, int, int]) -> Classifier:
    from uturn.networks.modules import load_classifier

    return load_classifier(
        spec.classifier,
        spec.weights,
        layers=spec.layers,
        image_shape=shape,
        texts=spec.texts(source),
    )


def _verdicts(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray | None, measured: Sequence[str]
) -> dict[str, np.ndarray]:
    """Classes predicted from the logits of originals (items, classes) and of reconstructions
    (items, draws, classes).
    """
    from uturn.networks.modules import in_top

    original = before.argmax(axis=-1)
    predicted = after.argmax(axis=-1)
    verdicts = {
        "same_class": predicted == original[:, None],
        "predicted_class": predicted,
        "original_class": original,
    }
    if "same_class_top5" in measured:
        originals = np.broadcast_to(original[:, None], predicted.shape)
        verdicts["same_class_top5"] = in_top(after, originals, 5)
    if labels is None:
        return verdicts
    label = np.broadcast_to(labels[:, None], predicted.shape)
    for name, count in (("label_top1", 1), ("label_top5", 5)):
        if name in measured:
            is_right = in_top(after, np.maximum(label, 0), count)
            verdicts[name] = np.where(label >= 0, is_right, np.nan)
    return verdicts


def _first_images(
    source: Any,  # noqa: ANN401 - of images, also of one's own
    number: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The first `number` images of a source, or all if there are fewer, batch by batch."""
    number = min(number, source.count())
    for start in range(0, number, batch_size):
        yield source.images_at(np.arange(start, min(start + batch_size, number)))[0]


def _readable(data: Samples) -> Samples:
    """Data in a form for networks, with float64 converted to float32."""
    if isinstance(data, np.ndarray) and data.dtype == np.float64:
        return data.astype(np.float32)
    return data
