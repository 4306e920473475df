"""U-turns of the embedded image model, as the page of the laboratory shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from uturn.backward import DiffusionModel
from uturn.core.random import Streams
from uturn.core.u_turns import u_turn
from uturn.corruption import Diffusion
from uturn.sources import FashionMNISTSource
from uturn.sources.fashion_mnist import CLASS_NAMES, load_classifier

STEPS = (10, 20, 50, 100)
"""Numbers of reverse steps of the whole chain that can be chosen."""
MOST_IMAGES, MOST_CLONES = 4, 16
_SOURCE = FashionMNISTSource()


def pictures(first: int, count: int) -> list[dict[str, Any]]:
    """Images of the test set: their numbers, classes by label, and pictures."""
    images, labels = _SOURCE.images_at(np.arange(first, min(first + count, _SOURCE.count())))
    return [
        {"item": first + k, "label": CLASS_NAMES[label], "picture": _picture(image)}
        for k, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def image_u_turns(items: Sequence[int], back: int, steps: int, clones: int, seed: int) -> dict[str, Any]:
    """U-turns of images of the test set by `back` of `steps` reverse steps, and the classes that the classifier reads.

    The images are those of `uturn.u_turn` with this seed. With `clones` = 0 there are only the noisy images, which take no call
    of the model.
    """
    backward, corruption = _model(steps)
    originals = next(_SOURCE.blocks(np.asarray(items), seed, _SOURCE.count()))
    if clones:
        turned = u_turn(originals, corruption, backward, back / steps, seed, clones=clones)
        noisy, reconstructions = turned.noisy.values, turned.reconstructions
    else:
        noisy = corruption.observe(originals, back / steps, Streams(seed, originals.items, back / steps)).values
        reconstructions = np.empty((len(items), 0, *originals.images.shape[1:]), np.float32)
    return {
        "images": [
            {
                **_read(original, label=CLASS_NAMES[label]),
                "item": int(item),
                "noisy": _picture(noise),
                "reconstructions": [_read(image) for image in drawn],
            }
            for item, label, original, noise, drawn in zip(
                originals.items, originals.labels, originals.images, noisy, reconstructions, strict=True
            )
        ]
    }


def _read(image: np.ndarray, **more: Any) -> dict[str, Any]:
    """A picture of an image, with the class that the classifier reads and the probability that it gives to it."""
    import torch

    with torch.inference_mode():
        shares = torch.softmax(_classifier()(torch.tensor(image[None])), dim=1)[0]
    best = int(shares.argmax())
    return {"picture": _picture(image), "class": CLASS_NAMES[best], "probability": round(float(shares[best]), 4), **more}


def _picture(image: np.ndarray) -> str:
    """An image (1, height, width) in [-1, 1] as the address of a PNG; what is beyond, as in noisy images, is clipped."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.round((np.clip(image[0], -1, 1) + 1) * 127.5).astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@lru_cache
def _classifier() -> Any:
    return load_classifier()


@lru_cache
def _model(steps: int) -> tuple[DiffusionModel, Any]:
    backward = DiffusionModel(steps=steps)
    return backward, backward.undone(Diffusion(), _SOURCE)
