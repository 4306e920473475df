"""The Fashion-MNIST assets of the package: a diffusion model, a classifier and 1,000 test images
(docs/figures.md).

Images are float32 arrays (batch, 1, 28, 28) in [-1, 1]: -1 is the black background, 1 is white.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""Names of the ten classes, in the order of the labels."""

COARSE_CLASS = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])
"""Labels one level up the hierarchy, `COARSE_CLASS[labels]`: 0 tops, 1 trousers, 2 dresses, 3
shoes, 4 bags.
"""

_FOLDER = Path(__file__).parents[1] / "assets" / "fashion_mnist"


def generator_folder() -> Path:
    """Folder of the diffusion model in diffusers' own layout (`DDPMPipeline.from_pretrained`
    reads it).
    """
    return _FOLDER / "generator"


def load_scheduler() -> Any:  # noqa: ANN401 - `DDPMScheduler` of diffusers has no types
    """`DDPMScheduler` the generator was trained with: linear noise schedule, 1,000 timesteps, v
    prediction.
    """
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(generator_folder() / "scheduler")


def build_classifier(
    channels: Sequence[int], strides: Sequence[int], num_classes: int = 10
) -> torch.nn.Sequential:
    """Untrained convolutional classifier of images with one channel, whose direct children are the
    layers to probe.

    `block1`, `block2`, ...: 3x3 convolution, batch norm, ReLU, with the output channels and strides
    of the arguments. `logits`: mean over positions, then a linear map to `num_classes` logits.
    """
    from torch import nn

    model = nn.Sequential()
    before = 1
    for number, (width, stride) in enumerate(zip(channels, strides, strict=True), 1):
        convolution = nn.Conv2d(before, width, kernel_size=3, stride=stride, padding=1, bias=False)
        # ReLU is not in place, so that a hook sees the output of this block before later modules
        # change it.
        block = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        model.add_module(f"block{number}", block)
        before = width
    linear = nn.Linear(before, num_classes)
    model.add_module("logits", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear))
    return model


def load_classifier(path: str | Path | None = None) -> torch.nn.Sequential:
    """Trained Fashion-MNIST classifier (`build_classifier`), float32, in evaluation mode: images to
    logits (batch, 10).

    `path`: a file written by `training/fashion_mnist/train_classifier.py`; by default the embedded
    one.
    """
    from safetensors import safe_open

    with safe_open(path or _FOLDER / "classifier.safetensors", framework="pt") as file:
        architecture = json.loads(file.metadata()["architecture"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    model = build_classifier(**architecture)
    model.load_state_dict(weights)
    return model.float().eval()


def test_set_file() -> Path:
    """File of the test images and their labels."""
    return _FOLDER / "test_set.safetensors"


def load_test_set() -> tuple[np.ndarray, np.ndarray]:
    """1,000 images of the Fashion-MNIST test split, which was not used in training, and their
    labels.

    Images: float32 (1000, 1, 28, 28) in [-1, 1]. Labels: int64 (1000,), 0..9, in turn (`labels[i]
    == i % 10`), so that the first 10 k images hold k of each class.
    """
    from safetensors.numpy import load_file

    content = load_file(test_set_file())
    images = content["images"].astype(np.float32)[:, None] / np.float32(127.5) - np.float32(1)
    return images, content["labels"].astype(np.int64)


def fingerprints() -> dict[str, str]:
    """SHA-256 of every embedded data file, {path inside the asset folder: hexadecimal digest}.

    They are recorded with results.
    """
    digests = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in (".safetensors", ".json") and path.name != "manifest.json":
            name = path.relative_to(_FOLDER).as_posix()
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests
