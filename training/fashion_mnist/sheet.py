"""Sheets of images in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_sheet(images: np.ndarray, path: Path, zoom: int = 2, gap: int = 1) -> None:
    """Write images (rows, columns, 28, 28) in [-1, 1] as one grey PNG, `gap` white pixels apart."""
    rows, columns, height, width = images.shape
    canvas = np.full((rows, columns, height + gap, width + gap), 255, np.uint8)
    canvas[:, :, gap:, gap:] = np.round((images + 1) * 127.5)
    flat = canvas.transpose(0, 2, 1, 3).reshape(rows * (height + gap), columns * (width + gap))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(flat).resize(
        (flat.shape[1] * zoom, flat.shape[0] * zoom), Image.Resampling.NEAREST
    ).save(path, optimize=True)
