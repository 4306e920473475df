"""What is compared between original and reconstruction: one reading per level of the hierarchy."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

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

    `classifier`: "fashion_mnist", or a file written by `uturn.networks.save_network`. `layers`: names or patterns, by default
    "every block" (see `uturn.probes.hidden_layers`). `statistics`: a file written by `HiddenLayers.save_statistics` for this
    network; without one, means and variances are taken from the first `reference` images of the source. `legacy`: standardise
    with the second moment, as the code published with the paper does.

    `similarity`: cosine. `distance`: squared distance, 1 for independent data. `same_class`, `predicted_class`: the verdict.
    """

    type: Literal["network_layers"] = "network_layers"
    classifier: str = "fashion_mnist"
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=1000, ge=2)
    statistics: str | None = None
    legacy: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ()

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        return {
            "similarity": Variable((*dims, "network_layer"), "cosine similarity of standardised activations"),
            "distance": Variable((*dims, "network_layer"), "squared distance of standardised activations, 1 if independent"),
            "same_class": Variable(dims, "same predicted class as the original"),
            "predicted_class": Variable(dims, "class predicted for the reconstruction"),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"network_layer": np.array(fitted(self, source).layers)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        probe = fitted(self, source)
        original, rebuilt = u_turns.originals.data, u_turns.originals.data_of(u_turns.reconstructions)
        items, trajectories = rebuilt.shape[:2]
        rebuilt = rebuilt.reshape(-1, *rebuilt.shape[2:])
        before, after = probe.predict(original).classes, probe.predict(rebuilt).classes.reshape(items, trajectories)
        compared = probe.compare(np.repeat(original, trajectories, axis=0), rebuilt)
        return {
            "similarity": compared.similarity.reshape(items, trajectories, -1),
            "distance": compared.distance.reshape(items, trajectories, -1),
            "same_class": after == before[:, None],
            "predicted_class": after,
        }

    def fingerprint(self) -> str:
        from uturn.training import fingerprint

        if self.classifier == "fashion_mnist" and self.statistics is None:
            from uturn.fashion_mnist import fingerprints

            return fingerprints()["classifier.safetensors"]
        network = fingerprint(_classifier(self.classifier))
        if self.statistics is None:
            return network
        return f"{network} {hashlib.sha256(_existing(self.statistics, 'statistics').read_bytes()).hexdigest()}"


class KeepImages(_Spec):
    """The reconstructions themselves, lossless, float32 in [-1, 1]."""

    type: Literal["images"] = "images"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ()

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "channel", "row", "column")
        return {"image": Variable(dims, "reconstructed image, in [-1, 1]")}

    def coordinates(self, source: Any) -> dict[str, Any]:
        shape = source.all_images()[0].shape[1:]
        return {dim: np.arange(size) for dim, size in zip(("channel", "row", "column"), shape, strict=True)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        return {"image": u_turns.reconstructions}

    def fingerprint(self) -> str:
        return ""


def fitted(spec: NetworkLayers, source: Any) -> HiddenLayers:
    """The hidden-layer probe of a spec, standardised by its statistics or on images of the source.

    Raises
    ------
    ValueError
        If a file is missing or belongs to another network, or if there are neither statistics nor images.
    """
    # A file that was written again is read again.
    files = [name for name in (spec.classifier, spec.statistics) if name is not None and name != "fashion_mnist"]
    return _fitted(spec, source, tuple(_existing(name, "classifier, statistics").stat().st_mtime_ns for name in files))


@lru_cache(maxsize=4)
def _fitted(spec: NetworkLayers, source: Any, stamps: tuple[int, ...]) -> HiddenLayers:
    from uturn.probes.hidden_layers import EVERY_BLOCK, HiddenLayers

    probe = HiddenLayers(_classifier(spec.classifier), spec.layers or EVERY_BLOCK, legacy=spec.legacy)
    if spec.statistics is not None:
        return probe.load_statistics(spec.statistics)
    if not hasattr(source, "all_images"):
        raise ValueError(
            "statistics: missing; strings and vectors need the path of a file written by HiddenLayers(network, 'every block')"
            ".fit(samples).save_statistics(path)"
        )
    return probe.fit(source.all_images()[0][: spec.reference])


def _classifier(name: str) -> Any:
    from uturn.fashion_mnist import load_classifier
    from uturn.networks import load_network

    return load_classifier() if name == "fashion_mnist" else load_network(_existing(name, "classifier"))


def _existing(path: str, what: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(
            f"{what} = {path!r}: no such file; expected a file of uturn.networks or HiddenLayers, or 'fashion_mnist'"
        )
    return Path(path)


PROBES: dict[str, type] = {
    "tree_levels": TreeLevels,
    "messages": Messages,
    "network_layers": NetworkLayers,
    "images": KeepImages,
    "scales": Scales,
}
