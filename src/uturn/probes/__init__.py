"""What is compared between original and reconstruction: one reading per level of the hierarchy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from uturn.backward import UTurns
from uturn.probes.scales import Scales
from uturn.store import Variable

if TYPE_CHECKING:
    from uturn.probes.hidden_layers import HiddenLayers


class Probe(Protocol):
    """What an experiment asks of a probe; any object with these members will do."""

    outputs: tuple[str, ...]
    """Exact messages it needs: any of "marginals", "upward", "downward"."""

    def variables(self, source: Any) -> dict[str, Variable]:
        """What it measures: {name: Variable}; dims start with ("noise", "item")."""
        ...

    def coordinates(self, source: Any) -> dict[str, Any]:
        """Values along its own dims: {dim: values}."""
        ...

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        """Readings of a batch at one noise level: {name: array (items, ...)}."""
        ...

    def fingerprint(self) -> str:
        """Identity of the weights, if any, recorded with the results."""
        ...


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TreeLevels(_Spec):
    """Latents of the tree: how many nodes of each level are what they were.

    `unchanged`: share of the nodes of a level that equal the original's. `belief`: mean exact marginal of the original's
    symbols; its expectation is that of `unchanged`, without the noise of drawing.
    """

    type: Literal["tree_levels"] = "tree_levels"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("marginals",)

    def variables(self, source: Any) -> dict[str, Variable]:
        return {
            "unchanged": Variable(("noise", "item", "trajectory", "tree_level"), "share of unchanged nodes"),
            "belief": Variable(("noise", "item", "tree_level"), "mean marginal of the true symbol"),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"tree_level": np.arange(source.depth + 1)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        latents = u_turns.originals.draw.latents
        unchanged = [
            (u_turns.reconstructions[level] == latents[level][:, None]).mean(axis=2, dtype=np.float64)
            for level in sorted(latents)
        ]
        return {"unchanged": np.stack(unchanged, axis=-1), "belief": true_beliefs(u_turns, "marginals")}

    def fingerprint(self) -> str:
        return ""


class Messages(_Spec):
    """Exact messages at the true symbols, averaged over the nodes of each level (Figs. 12 and 13 of arXiv:2402.16991)."""

    type: Literal["messages"] = "messages"
    directions: tuple[Literal["upward", "downward"], ...] = ("upward", "downward")

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.directions

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "tree_level")
        return {f"{name}_belief": Variable(dims, f"mean {name} message at the true symbol") for name in self.outputs}

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"tree_level": np.arange(source.depth + 1)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        return {f"{name}_belief": true_beliefs(u_turns, name) for name in self.outputs}

    def fingerprint(self) -> str:
        return ""


def true_beliefs(u_turns: UTurns, output: str) -> np.ndarray:
    """Mean of a message at the true symbols over the nodes of a level (and over trajectories): (items, levels)."""
    latents = u_turns.originals.draw.latents
    messages = getattr(u_turns.beliefs, output)
    columns = []
    for level in sorted(latents):
        true = latents[level]
        copies = len(messages[level]) // len(true)
        at = np.repeat(true, copies, axis=0)[..., None]
        right = np.take_along_axis(messages[level], at, axis=2)
        columns.append(right.reshape(len(true), -1).mean(axis=1, dtype=np.float64))
    return np.stack(columns, axis=-1)


class NetworkLayers(_Spec):
    """Hidden layers of a classifier: likeness of standardised post-activations, layer by layer, and its verdict.

    `classifier`, `weights`: as in `uturn.networks.image_classifiers.load_classifier`: "torchvision:NAME", "timm:NAME",
    "module:function", "fashion_mnist", or a file written by `uturn.networks.save_network`. `name`: goes in front of the variables
    and of the dim `network_layer`, as in "resnet_similarity", so that several classifiers can be probed at once. `layers`: names
    or patterns, by default "every block" (see `uturn.probes.hidden_layers`). `statistics`: a file written by
    `HiddenLayers.save_statistics` for this network; without one, means and variances are taken from the first `reference` images
    of the source. `legacy`: standardise with the second moment, as the code published with the paper does. `labels`: compare with
    the true labels, if the source has them. `batch_size`: samples in a forward pass.

    `similarity`: cosine. `distance`: squared distance, 1 for independent data. `same_class`, `predicted_class`: the verdict. For
    images also `original_class`, the class predicted for the original, and with labels `label_top1`: the verdict on the
    reconstruction is the true label (NaN if that is unknown). With more than five classes, `same_class_top5` and `label_top5`:
    the class of the original, the label, is among the five most probable ones of the reconstruction.
    """

    # How it is computed, which does not change what is computed.
    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    type: Literal["network_layers"] = "network_layers"
    classifier: str = "fashion_mnist"
    weights: str | None = None
    name: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=1000, ge=2)
    statistics: str | None = None
    legacy: bool = False
    labels: bool = True
    batch_size: int = Field(default=100, ge=1)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ()

    @property
    def prefix(self) -> str:
        """What stands in front of the variables and of the dim `network_layer`."""
        return "" if self.name is None else f"{self.name}_"

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        layered = (*dims, f"{self.prefix}network_layer")
        every = {
            "similarity": Variable(layered, "cosine similarity of standardised activations"),
            "distance": Variable(layered, "squared distance of standardised activations, 1 if independent"),
            "same_class": Variable(dims, "same predicted class as the original"),
            "predicted_class": Variable(dims, "class predicted for the reconstruction"),
            "original_class": Variable(dims[:2], "class predicted for the original", pooled=False),
            "same_class_top5": Variable(dims, "class predicted for the original among the five first classes"),
            "label_top1": Variable(dims, "label of the original is the predicted class"),
            "label_top5": Variable(dims, "label of the original among the five first classes"),
        }
        return {f"{self.prefix}{name}": every[name] for name in _measured(self, source, (*self._stamps(), *_stamps_of(source)))}

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {f"{self.prefix}network_layer": np.array(fitted(self, source).layers)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        from uturn.networks.image_classifiers import in_top

        originals = u_turns.originals
        data_of = getattr(originals, "data_of", lambda reconstructions: reconstructions)
        found = fitted(self, source).read(_readable(originals.data), _readable(data_of(u_turns.reconstructions)))
        before, after = found.original_logits.argmax(axis=-1), found.logits.argmax(axis=-1)
        readings: dict[str, Any] = {
            "similarity": found.similarity,
            "distance": found.distance,
            "same_class": after == before[:, None],
            "predicted_class": after,
        }
        measured = _measured(self, source, (*self._stamps(), *_stamps_of(source)))
        if "original_class" in measured:
            readings["original_class"] = before
        if "same_class_top5" in measured:
            readings["same_class_top5"] = in_top(found.logits, np.broadcast_to(before[:, None], after.shape), 5)
        for name, count in (("label_top1", 1), ("label_top5", 5)):
            if name in measured:
                label = np.broadcast_to(originals.labels[:, None], after.shape)
                right = in_top(found.logits, np.maximum(label, 0), count)
                readings[name] = np.where(label >= 0, right, np.nan)
        return {f"{self.prefix}{name}": readings[name] for name in measured}

    def fingerprint(self) -> str:
        from uturn.networks.modules import describe, load_module
        from uturn.networks.training import fingerprint

        if self.classifier == "fashion_mnist" and self.weights is None and self.statistics is None:
            from uturn.networks.fashion_mnist import fingerprints

            return fingerprints()["classifier.safetensors"]
        network = load_module(self.classifier, self.weights)
        parts = [fingerprint(network.module), describe(network.preprocess)]
        if self.statistics is not None:
            parts.append(hashlib.sha256(_existing(self.statistics, "statistics").read_bytes()).hexdigest())
        return " ".join(part for part in parts if part)

    def own_code(self) -> Any:
        """The user's function that makes the classifier, if it is named by its import path."""
        from uturn.networks.modules import own_function

        return own_function(self.classifier)

    def _stamps(self) -> tuple[int, ...]:
        """Times of the files: one that was written again is read again."""
        if self.statistics is not None:
            _existing(self.statistics, "statistics")
        names = (self.classifier, self.weights, self.statistics)
        return tuple(Path(name).stat().st_mtime_ns if name is not None and Path(name).is_file() else 0 for name in names)


class KeepImages(_Spec):
    """The reconstructions themselves, lossless, float32 in [-1, 1]; with `first`, NaN for all but the first so many items."""

    type: Literal["images"] = "images"
    first: int | None = Field(default=None, ge=1)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ()

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "channel", "row", "column")
        return {"image": Variable(dims, "reconstructed image, in [-1, 1]")}

    def coordinates(self, source: Any) -> dict[str, Any]:
        shape = _image_shape(source)
        if shape is None:
            raise ValueError("probes: 'images' needs a source of images")
        return {dim: np.arange(size) for dim, size in zip(("channel", "row", "column"), shape, strict=True)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        images = u_turns.reconstructions
        if self.first is not None and (u_turns.originals.items >= self.first).any():
            images = np.array(images, np.float32)
            images[u_turns.originals.items >= self.first] = np.nan
        return {"image": images}

    def fingerprint(self) -> str:
        return ""


def fitted(spec: NetworkLayers, source: Any) -> HiddenLayers:
    """The hidden-layer probe of a spec, standardised by its statistics or on images of the source.

    Raises
    ------
    ValueError
        If a file is missing or belongs to another network, or if there are neither statistics nor images.
    """
    return _fitted(spec, source, (*spec._stamps(), *_stamps_of(source)))


def _stamps_of(source: Any) -> tuple[int, ...]:
    """What changes when the files of a source do: their dates, or the object itself, which looks at a folder once."""
    files = source.files() if hasattr(source, "files") else []
    return tuple(file.stat().st_mtime_ns for file in files if file.is_file()) + (
        (id(source),) if hasattr(source, "skipped") else ()
    )


@lru_cache(maxsize=8)
def _fitted(spec: NetworkLayers, source: Any, stamps: tuple[int, ...]) -> HiddenLayers:
    from uturn.networks.image_classifiers import load_classifier
    from uturn.networks.layers import EVERY_BLOCK
    from uturn.networks.modules import load_module
    from uturn.probes.hidden_layers import HiddenLayers

    shape = _image_shape(source)
    options: dict[str, Any] = {"batch_size": spec.batch_size, "legacy": spec.legacy}
    if shape is None:
        network = load_module(spec.classifier, spec.weights)
        probe = HiddenLayers(network.module, spec.layers or EVERY_BLOCK, network.preprocess, **options)
    else:
        found = load_classifier(spec.classifier, spec.weights, layers=spec.layers, image_shape=shape)
        probe = HiddenLayers(found.module, found.layers, found.preprocess, channel_axis=found.channel_axes, **options)
    if spec.statistics is not None:
        return probe.load_statistics(spec.statistics)
    if shape is None:
        raise ValueError(
            "statistics: missing; strings and vectors need the path of a file written by HiddenLayers(network, 'every block')"
            ".fit(samples).save_statistics(path), and so do all data that are no images"
        )
    return probe.fit(_first_images(source, spec.reference, spec.batch_size))


@lru_cache(maxsize=8)
def _measured(spec: NetworkLayers, source: Any, stamps: tuple[int, ...]) -> tuple[str, ...]:
    """Names of what is measured, without the prefix; ValueError if labels and classes do not match."""
    from uturn.networks.image_classifiers import load_classifier

    names = ["similarity", "distance", "same_class", "predicted_class"]
    shape = _image_shape(source)
    if shape is None:
        return tuple(names)
    num_classes = load_classifier(spec.classifier, spec.weights, layers=spec.layers, image_shape=shape).num_classes
    names.append("original_class")
    if num_classes > 5:
        names.append("same_class_top5")
    num_labels = source.num_labels() if spec.labels and hasattr(source, "num_labels") else None
    if num_labels is not None:
        if num_labels != num_classes:
            raise ValueError(
                f"classifier = {spec.classifier!r} knows {num_classes} classes, but the images have {num_labels} labels; give "
                f"the source `classes` (--classes), a file with the classes in the classifier's order, or set labels = false for "
                f"this probe (--no-compare-labels)"
            )
        names += ["label_top1", "label_top5"] if num_classes > 5 else ["label_top1"]
    return tuple(names)


def _image_shape(source: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of the images of a source; None if it is of something else."""
    if not hasattr(source, "image_shape"):
        return None
    channels, height, width = source.image_shape()
    return channels, height, width


def _first_images(source: Any, number: int, batch_size: int) -> Iterator[np.ndarray]:
    """The first so many images of a source, or all if there are fewer, batch by batch."""
    skipped = len(source.skipped(number)) if hasattr(source, "skipped") else 0  # files that turned out to be no images
    number = min(number, source.count() - skipped)
    for start in range(0, number, batch_size):
        yield source.images_at(np.arange(start, min(start + batch_size, number)))[0]


def _readable(data: Any) -> Any:
    """Data as a network reads them: real numbers in float32."""
    return data.astype(np.float32) if isinstance(data, np.ndarray) and data.dtype == np.float64 else data


def _existing(path: str, what: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{what} = {path!r}: no such file; expected one written by HiddenLayers.save_statistics")
    return Path(path)


PROBES: dict[str, type] = {
    "tree_levels": TreeLevels,
    "messages": Messages,
    "network_layers": NetworkLayers,
    "images": KeepImages,
    "scales": Scales,
}
