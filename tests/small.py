"""Small experiments with strings of a grammar, as tables; images in memory; files of weights;
defaults of parts.
"""

import json
import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from uturn.core.protocols import Source
from uturn.core.registry import filled


def strings(channel, noise, probes=("tree_levels",), *, source=None, backward="exact", **options):
    """Eight symbols with two rules each, at a depth of three; `source`: its other options,
    `options`: of the experiment.
    """
    return {
        **options,
        "source": {
            "type": "rhm",
            "vocab_size": 8,
            "multiplicity": 2,
            "branching": 2,
            "depth": 3,
            **(source or {}),
        },
        "corruption": {"type": channel, "noise": noise},
        "backward": {"type": backward},
        "probes": [{"type": probe} for probe in probes],
    }


@contextmanager
def one_line_error(message, *, characters=None, seconds=None, megabytes=None):
    """The block raises a ValueError of one line that matches `message`, gives it, and is no longer
    than `characters`. Before that it takes less than `seconds` of the processor, and asks for less
    than `megabytes` of memory, whether it writes into this memory or not.
    """
    if megabytes is not None:
        tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            yield caught
        taken = time.process_time() - begun
        if megabytes is not None:
            assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    if characters is not None:
        assert len(str(caught.value)) < characters
    if seconds is not None:
        assert taken < seconds


class StoredImages(Source):
    """Images in memory, with the methods of an image source; it counts the images that are
    `asked` for.
    """

    kind = "images"

    def __init__(self, images, labels=None, num_labels=None, names=None):
        self.images, self.labels, self.labelled, self.names, self.asked = (
            images,
            labels,
            num_labels,
            names,
            [],
        )

    def blocks(self, items, seed, num_items):
        yield from ()

    def count(self):
        return len(self.images)

    def image_shape(self):
        return tuple(self.images.shape[1:])

    def images_at(self, indices):
        self.asked.append(len(indices))
        return self.images[indices], None if self.labels is None else self.labels[indices]

    def num_labels(self):
        return self.labelled

    def class_names(self):
        return self.names


def images_of_noise(count, *shape, seed=0):
    """Float32 (count, channels, height, width), uniform in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def with_file(model, folder):
    """A network with random weights from the seed 0, made by `model()`, and the name of the file
    of its weights.
    """
    import torch

    torch.manual_seed(0)
    made, path = model().eval(), str(folder / "weights.pth")
    torch.save(made.state_dict(), path)
    return made, path


def defaults_of(parts):
    """The options of parts {idea: types} by "idea type", as a spec with the type alone fills
    them in.
    """
    found = {}
    for idea, kinds in parts.items():
        for kind in kinds:
            table = filled({idea: [{"type": kind}] if idea == "probes" else {"type": kind}})[idea]
            found[f"{idea} {kind}"] = table[0] if idea == "probes" else table
    return json.loads(json.dumps(found))
