"""The classifier of strings of figure 8: its grammar, its training, and its layers on random pairs of strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys, uniforms
from uturn.networks.classifiers import TreeClassifier
from uturn.networks.files import fingerprint, load_network
from uturn.paper.workshop import Scale, Workshop, accuracy
from uturn.probes.hidden_layers import HiddenLayers
from uturn.sources import RHMSource

# First coordinates of the random streams with the purpose CLASSIFIER.
_TRAIN, _HELD_OUT, _TEST, _REFERENCE, _BATCH = range(5)
SEED = 0


class Setup(NamedTuple):
    """Grammar, network and sizes of one scale."""

    vocab_size: int
    multiplicity: int
    branching: int
    depth: int
    width: int
    training_strings: int
    steps: int
    items: int
    noise: tuple[float, ...]

    @property
    def source(self) -> RHMSource:
        return RHMSource(vocab_size=self.vocab_size, multiplicity=self.multiplicity, branching=self.branching, depth=self.depth)


def setup(scale: Scale) -> Setup:
    if scale == "smoke":
        noise = np.unique(np.r_[np.arange(0, 1.01, 0.1), np.arange(0.72, 0.97, 0.03)].round(4))
        return Setup(16, 3, 2, 6, 128, 60_000, 3000, 600, tuple(noise.tolist()))
    noise = np.unique(np.r_[np.arange(0, 1.01, 0.05), np.arange(0.6, 0.85, 0.02)].round(4))
    return Setup(16, 4, 2, 7, 256, 300_000, 8000, 1000, tuple(noise.tolist()))


def strings(source: RHMSource, part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings and classes of a part of the data (training, held out, ..): (uint8 (count, num_leaves), int64 (count,))."""
    rhm = source.grammar(0, SEED)
    leaves, classes = [], []
    for start in range(0, count, 20_000):  # latents of all strings at once would take much memory
        numbers = np.arange(start, min(start + 20_000, count))
        drawn = rhm.sample(len(numbers), keys(SEED, Purpose.CLASSIFIER, part, numbers))
        leaves.append(drawn.leaves.astype(np.uint8))
        classes.append(drawn.latents[rhm.depth][:, 0])
    return np.concatenate(leaves), np.concatenate(classes)


def trained_classifier(workshop: Workshop) -> Path:
    """File of the trained network."""
    chosen = setup(workshop.scale)
    network = {name: value for name, value in chosen._asdict().items() if name not in ("items", "noise")}
    recipe = {**network, "seed": SEED, "batch": 256, "learning_rate": 1e-3, "weight_decay": 0.01, "target": 0.995}

    def prepared() -> tuple[Any, Any, Any]:
        leaves, classes = strings(chosen.source, _TRAIN, chosen.training_strings)

        def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
            rows = (uniforms(keys(SEED, Purpose.CLASSIFIER, _BATCH, [step]), recipe["batch"])[0] * len(leaves)).astype(int)
            return leaves[rows].astype(np.int64), classes[rows]

        network = TreeClassifier(chosen.vocab_size, chosen.branching, chosen.depth, width=chosen.width, seed=SEED)
        held_out, right = strings(chosen.source, _HELD_OUT, 4000)
        return network, batch, (held_out.astype(np.int64), right)

    return workshop.classifier("fig8-classifier", recipe, prepared, weight_decay=recipe["weight_decay"], decay=False, every=200)


def reference(source: RHMSource) -> np.ndarray:
    """Strings from which mean and variance of every unit are measured."""
    return strings(source, _REFERENCE, 4000)[0]


def examined(workshop: Workshop, classifier: Path, statistics: Path) -> xr.Dataset:
    """Test accuracy of the network, and random pairs of strings, per layer: mean similarity of pairs of one class and of
    independent pairs."""
    network: Any = load_network(classifier)
    chosen = setup(workshop.scale)

    def compute() -> xr.Dataset:
        leaves, classes = strings(chosen.source, _TEST, 10_000)
        probe = HiddenLayers(network, "every block").load_statistics(statistics)
        order = np.argsort(classes, kind="stable")
        order = order[: len(order) // 2 * 2].reshape(-1, 2)
        order = order[classes[order[:, 0]] == classes[order[:, 1]]]
        pairs = {"same class": order, "independent": np.arange(len(leaves)).reshape(-1, 2)}
        compared = [probe.compare(leaves[pair[:, 0]], leaves[pair[:, 1]]) for pair in pairs.values()]
        return xr.Dataset(
            {
                "accuracy": accuracy(network, leaves.astype(np.int64), classes),
                "random_pairs": (("pair", "network_layer"), np.stack([c.similarity.mean(axis=0) for c in compared])),
            },
            coords={"pair": list(pairs), "network_layer": list(probe.layers)},
            attrs={"test_strings": len(leaves), "training_steps": network.facts["steps"]},
        )

    settings = {"network": fingerprint(network), **chosen._asdict()}
    return workshop.keep("fig8-network", settings, compute)
