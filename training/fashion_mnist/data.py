"""Fashion-MNIST as tensors, from the original idx.gz files.

Two sources, tried in this order when no folder is named: the Debian package `dataset-fashion-mnist`
(`/usr/share/datasets/fashion-mnist`), then a download by torchvision.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILE_STEM = {"train": "train", "test": "t10k"}
COUNT = {"train": 60_000, "test": 10_000}


def read_idx(path: Path) -> np.ndarray:
    """Unsigned-byte array stored in one gzipped idx file (big-endian header: type, rank, one
    size a dimension).
    """
    with gzip.open(path, "rb") as file:
        content = file.read()
    zero, dtype_code, rank = struct.unpack(">HBB", content[:4])
    if zero != 0 or dtype_code != 0x08:
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes, found header {content[:4].hex()}"
        )
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def find_folder(folder: str | Path | None = None) -> Path:
    """Folder with the four idx.gz files; downloads them with torchvision where none is found."""
    if folder is not None:
        return Path(folder)
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    from torchvision.datasets import FashionMNIST

    cache = Path.home() / ".cache" / "uturn"
    FashionMNIST(str(cache), download=True)
    return cache / "FashionMNIST" / "raw"


def load(split: str, folder: str | Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 28, 28) uint8 and labels (count,) int64 of the split "train" or "test"."""
    if split not in FILE_STEM:
        raise ValueError(f"split={split!r}: expected one of {sorted(FILE_STEM)}")
    root = find_folder(folder)
    images = read_idx(root / f"{FILE_STEM[split]}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{FILE_STEM[split]}-labels-idx1-ubyte.gz")
    if images.shape != (COUNT[split], 28, 28) or labels.shape != (COUNT[split],):
        raise ValueError(
            f"{root}: expected {COUNT[split]} images of 28x28, found {images.shape} and"
            f" {labels.shape}"
        )
    return torch.tensor(images), torch.tensor(labels, dtype=torch.int64)


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (count, 28, 28) as float32 (count, 1, 28, 28) in [-1, 1]."""
    return images.unsqueeze(1).float() / 127.5 - 1
