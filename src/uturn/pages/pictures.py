"""Pictures in a page: previews of figures and images of a run, small enough for the page, as data URLs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.files import check_plain
from uturn.studies.records import sample

if TYPE_CHECKING:
    import xarray as xr
    from PIL.Image import Image

_WIDTH, _SIDE, _PIXELS = 1600, 128, 4_000_000  # pixels: width of a preview, side of an image, all images of a run


def preview(path: Path, detail: float, words: str) -> dict[str, Any]:
    """A stored picture as the data URL of a WebP image of at most 1600 pixels a side; `detail` < 1 makes it smaller."""
    from PIL import Image

    check_plain(path)
    with Image.open(path) as opened:
        opened.load()
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    small = _at_most(ground.convert("RGB"), int(_WIDTH * detail))
    return {"url": _as_url(small, 80), "words": words, "width": small.width, "height": small.height}


def grid(levels: Any, names: list[str], originals: np.ndarray, images: np.ndarray, kept: np.ndarray | None, detail: float) -> Any:
    """Originals and their reconstructions at every shown noise level, for the page.

    Parameters
    ----------
    levels : noise (levels,)
    names : names of the originals
    originals : array (items, channel, row, column), in [-1, 1]; NaN if they are unknown
    images : array (levels, items, channel, row, column)
    kept : array (levels, items), 1 where the class is unchanged; None if there are no classes
    """
    total = images.shape[-1] * images.shape[-2] * (len(images) + 1) * len(originals)
    side = int(min(_SIDE, max(images.shape[-2:]) * min(1.0, (_PIXELS / total) ** 0.5)) * detail)

    def url(image: np.ndarray) -> str | None:
        return _as_url(_at_most(as_picture(image), max(side, 16)), 75) if np.isfinite(image).all() else None

    return {
        "noise": [float(f"{noise:.6g}") for noise in levels],
        "smooth": max(images.shape[-2:]) > 64,
        "items": [
            {
                "name": name,
                "original": url(originals[k]),
                "images": [url(image) for image in images[:, k]],
                "kept": None if kept is None else [bool(value == 1) for value in kept[:, k]],
            }
            for k, name in enumerate(names)
        ],
    }


def images_of_figure(data: xr.Dataset, detail: float) -> Any:
    """The images in the data of a figure: `original` and `image` (noise, item, row, column); None if there are none."""
    if not {"original", "image"} <= set(data.data_vars) or not {"noise", "item", "row", "column"} <= set(data.image.dims):
        return None
    chosen, dims, count = sample(data.sizes["item"]), ("item", "row", "column"), data.sizes["item"]
    some = data[["original", "image"]].isel(item=chosen).sortby("noise")
    originals, images = some.original.transpose(*dims).values[:, None], some.image.transpose("noise", *dims).values[:, :, None]
    names = [f"item {k}" for k in chosen]
    return grid(some.noise.values, names, originals, images, None, detail) | {"of": count, "kept": count}


def as_picture(image: np.ndarray) -> Image:
    """An image (channel, row, column) in [-1, 1] as a picture, grey or RGB; values beyond are clipped."""
    from PIL import Image

    pixels = np.round((np.clip(image, -1, 1).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])


def _at_most(picture: Image, side: int) -> Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(length * scale), 1) for length in picture.size)
    return picture.resize((width, height), 1)  # Lanczos


def _as_url(picture: Image, quality: int) -> str:
    file = io.BytesIO()
    small = max(picture.size) <= 64
    picture.save(file, "WEBP", lossless=small, quality=quality if not small else 100, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
