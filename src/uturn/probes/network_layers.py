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

from uturn.core.checks import expect
from uturn.core.files import cached_while_unchanged
from uturn.core.findings import Finding
from uturn.core.inputs import File
from uturn.core.protocols import Probe, Source, UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.named import Named

if TYPE_CHECKING:
    from uturn.networks.modules import Classifier
    from uturn.probes.hidden_layers import HiddenLayers


class NetworkLayers(Named, Probe):
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
        bound = self.model_copy()
        bound._measured = _measured(self, source)
        bound._hidden_layers = _hidden_layers(self, source)
        return bound

    def variables(self, source: Source) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        layered = (*dims, f"{self.prefix}network_layer")
        share: dict[str, Any] = {"bounds": (0, 1), "group": "class"}
        similar: dict[str, Any] = {
            "start": 1,
            "bounds": (-1, 1),
            "group": "layers",
            "order": layered[-1],
        }
        distant: dict[str, Any] = {
            "start": 0,
            "chance": 1,
            "bounds": (0, None),
            "family": f"{self.prefix}distance",
        }
        squared = "squared distance of standardised activations, 1 if independent"
        chance, right = (
            f"same:{self.prefix}original_class",
            f"same:{self.prefix}original_class=label",
        )
        every = {
            "similarity": Variable(
                layered, "cosine similarity of standardised activations", symmetric=True, **similar
            ),
            "distance": Variable(
                layered, squared, symmetric=True, group="distance of layers", **distant
            ),
            "same_class": Variable(
                dims,
                "same predicted class as the original",
                start=1,
                chance=chance,
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
                dims, "label of the original is the predicted class", start=right, **share
            ),
            "label_top5": Variable(
                dims, "label of the original among the five first classes", **share
            ),
        }
        return self.prefixed({name: every[name] for name in self._measured})

    def coordinates(self, source: Any) -> dict[str, Any]:
        layers = self._hidden_layers.layers
        return {f"{self.prefix}network_layer": np.array(layers)} if layers else {}

    def taken_from(self, source: Any) -> str:
        texts = self.texts(source)
        return "" if texts is None else hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals = u_turns.originals
        clones = u_turns.clones
        measured = self._measured
        reconstructions = _readable(originals.data_of(u_turns.reconstructions))
        has_classes = "same_class" in measured
        layers = self._hidden_layers.read(
            _readable(originals.data), reconstructions, clones, logits=has_classes
        )
        readings: dict[str, Any] = {"similarity": layers.similarity, "distance": layers.distance}
        twins = (
            {"similarity": layers.clone_similarity, "distance": layers.clone_distance}
            if clones > 1
            else {}
        )
        twins = {name: twin for name, twin in twins.items() if name in measured}
        if has_classes:
            readings |= _verdicts(
                layers.original_logits, layers.logits, getattr(originals, "labels", None), measured
            )
            if clones > 1:
                twins["same_class"] = between_clones(
                    readings["predicted_class"], clones, lambda a, b: a == b
                )
        return self.prefixed({name: readings[name] for name in measured}, twins)

    def model_check(self, source: Any, originals: Sequence[Any]) -> list[Finding]:
        """Faults of a classifier of images, found on some originals
        (`uturn.networks.model_check`).
        """
        import torch

        from uturn.networks.layers import as_tensor
        from uturn.networks.model_check import WRITES, check_calls, writes_into

        shape = source.image_shape()
        if shape is None:
            return []
        classifier = _classifier(self, source, shape)
        module, preprocess = classifier.module, classifier.preprocess
        parameter = next(module.parameters(), None)
        images = torch.from_numpy(
            np.concatenate([block.data for block in originals]).astype(np.float32)
        )
        images = torch.cat([images, torch.zeros_like(images[:1])]).to(
            None if parameter is None else parameter.device
        )

        def logits(images: torch.Tensor) -> torch.Tensor:
            return as_tensor(
                module(images if preprocess is None else preprocess(images)), "the output"
            )

        with torch.inference_mode():
            mistakes = [
                *check_calls(logits, images),
                *([WRITES] if writes_into(logits, images[-2:]) else []),
            ]
        if classifier.without_layers:
            mistakes.append(f"is compared by its classes alone: {classifier.without_layers}")
        return [Finding(f"the classifier {self.classifier!r} {mistake}") for mistake in mistakes]

    def reads(self) -> list[Any]:
        from uturn.networks.modules import Network

        return [Network(self.classifier, self.weights), *super().reads()]

    def texts(self, source: Any) -> tuple[str, ...] | None:
        """A text for each class of a "clip:" model; None for other classifiers, or without texts
        and class names.
        """
        if not self.classifier.startswith("clip:"):
            return None
        from uturn.networks.images.clip import class_texts

        return class_texts(self.class_prompts, source.class_names())


def _hidden_layers(spec: NetworkLayers, source: Source) -> HiddenLayers:
    """The hidden layers of a spec, with statistics from its file or from images of the source."""
    from uturn.networks.layers import EVERY_BLOCK
    from uturn.networks.modules import Network
    from uturn.probes.hidden_layers import HiddenLayers

    shape = source.image_shape()
    options: dict[str, Any] = {"batch_size": spec.batch_size, "legacy": spec.legacy}
    if shape is None:
        network = Network(spec.classifier, spec.weights).load()
        probe = HiddenLayers(
            network.module, spec.layers or EVERY_BLOCK, network.preprocess, **options
        )
    else:
        classifier = _classifier(spec, source, shape)
        options["channel_axis"] = classifier.channel_axes
        probe = HiddenLayers(classifier.module, classifier.layers, classifier.preprocess, **options)
    if not probe.layers:
        return probe
    if spec.statistics is not None:
        return probe.load_statistics(spec.statistics)
    needed = (
        "a file of HiddenLayers(network, 'every block').fit(samples).save_statistics(path), for"
        " data that are no images"
    )
    expect(shape is not None, "statistics", None, needed)
    return probe.fit(_first_images(source, spec.reference, spec.batch_size))


def _measured(spec: NetworkLayers, source: Source) -> tuple[str, ...]:
    """Names of the variables without the prefix; ValueError if labels and classes do not match."""
    names = ["similarity", "distance", "same_class", "predicted_class"]
    shape = source.image_shape()
    if shape is None:
        return tuple(names)
    classifier = _classifier(spec, source, shape)
    num_classes = classifier.num_classes
    if num_classes == 0:
        return ("similarity", "distance")
    if not classifier.layers:
        names = names[2:]
    names.append("original_class")
    if num_classes > 5:
        names.append("same_class_top5")
    num_labels = source.num_labels() if spec.labels else None
    if num_labels is not None:
        way_out = (
            "give the source `classes` (--classes), a file of them in its order, or labels = false"
            " (--no-compare-labels)"
        )
        expected = f"{num_classes}, as classifier = {spec.classifier!r} knows; {way_out}"
        expect(num_labels == num_classes, "number of labels of the images", num_labels, expected)
        names += ["label_top1", "label_top5"] if num_classes > 5 else ["label_top1"]
    return tuple(names)


def _classifier(spec: NetworkLayers, source: Any, shape: tuple[int, int, int]) -> Classifier:
    from uturn.networks.modules import load_classifier

    return load_classifier(
        spec.classifier,
        spec.weights,
        layers=spec.layers,
        image_shape=shape,
        texts=spec.texts(source),
    )


def _verdicts(
    before: np.ndarray, after: np.ndarray, labels: Any, measured: Sequence[str]
) -> dict[str, Any]:
    """Classes predicted from the logits of originals (items, classes) and of reconstructions
    (items, draws, classes).
    """
    from uturn.networks.modules import in_top

    original, predicted = before.argmax(axis=-1), after.argmax(axis=-1)
    same = predicted == original[:, None]
    verdicts: dict[str, Any] = {
        "same_class": same,
        "predicted_class": predicted,
        "original_class": original,
    }
    if "same_class_top5" in measured:
        verdicts["same_class_top5"] = in_top(
            after, np.broadcast_to(original[:, None], predicted.shape), 5
        )
    for name, count in (("label_top1", 1), ("label_top5", 5)):
        if name in measured:
            label = np.broadcast_to(labels[:, None], predicted.shape)
            verdicts[name] = np.where(
                label >= 0, in_top(after, np.maximum(label, 0), count), np.nan
            )
    return verdicts


def _first_images(source: Any, number: int, batch_size: int) -> Iterator[np.ndarray]:
    """The first `number` images of a source, or all if there are fewer, batch by batch."""
    number = min(number, source.count())
    for start in range(0, number, batch_size):
        yield source.images_at(np.arange(start, min(start + batch_size, number)))[0]


def _readable(data: Any) -> Any:
    """Data in a form for networks, with float64 converted to float32."""
    return (
        data.astype(np.float32)
        if isinstance(data, np.ndarray) and data.dtype == np.float64
        else data
    )
