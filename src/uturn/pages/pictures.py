"""Pictures in a page: previews of figures and images of a run, small enough for the page, as
data URLs.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.files import check_plain
from uturn.pages.charts import number
from uturn.studies.axes import is_geometric
from uturn.studies.records import sample

_MOST_IMAGES = 2**15  # of a run
# Pixels: width of a preview, side of an image, all images of a run.
WIDTH, _SIDE, _PIXELS = 1600, 128, 4_000_000


# The page is written again after each figure.
@cached_while_unchanged(files=lambda path, *_: [path], maxsize=64)
def preview(path: Path, words: str, width: float = WIDTH) -> dict[str, Any]:
    """A stored picture as the data URL of a WebP image of at most `width` pixels a side."""
    check_plain(path)
    # Some formats start other programs, whatever the name of the file.
    with Image.open(path, formats=("PNG",)) as opened:
        opened.load()
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    small = _at_most(ground.convert("RGB"), int(width))
    return {
        "url": as_url(small, WIDTH, 80),
        "words": words,
        "width": small.width,
        "height": small.height,
    }


def check_count(images: int, share: int = 1) -> None:
    """ValueError for more images than a page shows: a few kilobytes may promise millions."""
    expect(
        images <= _MOST_IMAGES // share,
        "images",
        images,
        f"at most {_MOST_IMAGES // share} for a page",
    )


def grid(
    levels: Any,
    names: list[str],
    originals: np.ndarray,
    images: np.ndarray,
    kept: np.ndarray | None,
    half_lives: xr.DataArray | None = None,
) -> Any:
    """Originals (items, channel, row, column), NaN if unknown, and reconstructions (levels, items,
    ..), in [-1, 1], for the page.

    `kept` (levels, items) is 1 where the class is unchanged, None without classes; `half_lives`
    (items,): of each original.
    """
    check_count((len(images) + 1) * len(originals))
    side = side_of(images, (len(images) + 1) * len(originals))

    def url(image: np.ndarray) -> str | None:
        return as_url(as_picture(image), side, 75) if np.isfinite(image).all() else None

    return {
        "noise": np.asarray(levels, float).tolist(),
        "log": is_geometric(levels),
        "smooth": max(images.shape[-2:]) > 64,
        "half_life": (
            ""
            if half_lives is None
            else str(half_lives.attrs.get("long_name", "")).replace("_", "-", 1)
        ),
        "items": [
            {
                "name": name,
                "half_life": None if half_lives is None else number(half_lives.values[k]),
                "original": url(originals[k]),
                "images": [url(image) for image in images[:, k]],
                "kept": None if kept is None else [bool(value == 1) for value in kept[:, k]],
            }
            for k, name in enumerate(names)
        ],
    }


def with_gaps(image: np.ndarray) -> Image.Image:
    """An image as a picture; values that are NaN in some channel are transparent."""
    picture, hidden = as_picture(np.nan_to_num(image)), np.isnan(image).any(axis=0)
    if hidden.any():
        picture = picture.convert("RGBA")
        picture.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return picture


def images_of_figure(data: xr.Dataset) -> Any:
    """The images in the data of a figure: `original` and `image` (noise, item, row, column);
    None if there are none.
    """
    if not {"original", "image"} <= set(data.data_vars) or not {
        "noise",
        "item",
        "row",
        "column",
    } <= set(data.image.dims):
        return None
    chosen, dims, count = sample(data.sizes["item"]), ("item", "row", "column"), data.sizes["item"]
    some = data[["original", "image"]].isel(item=chosen).sortby("noise")
    originals, images = (
        some.original.transpose(*dims).values[:, None],
        some.image.transpose("noise", *dims).values[:, :, None],
    )
    names = [f"item {k}" for k in chosen]
    return grid(some.noise.values, names, originals, images, None) | {"of": count, "kept": count}


def as_picture(image: np.ndarray) -> Image.Image:
    """An image (channel, row, column) in [-1, 1] as a picture, grey or RGB; values beyond are
    clipped.
    """
    pixels = np.round((np.clip(image, -1, 1).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])


def side_of(images: np.ndarray, count: int, share: float = 1.0) -> int:
    """Side in pixels of `count` images (.., row, column) of a page; `share`: of the full width,
    below 1 for several tables.
    """
    height, width = images.shape[-2:]
    return max(
        int(
            min(_SIDE, max(height, width) * min(1.0, (_PIXELS / (height * width * count)) ** 0.5))
            * share
        ),
        16,
    )


def _at_most(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(length * scale), 1) for length in picture.size)
    return picture.resize((width, height), 1)  # Lanczos


def as_url(picture: Image.Image, side: int, quality: int) -> str:
    """A picture of at most `side` pixels a side as the data URL of a WebP image, without loss if
    it is small.
    """
    picture, file = _at_most(picture, side), io.BytesIO()
    small = max(picture.size) <= 64
    picture.save(file, "WEBP", lossless=small, quality=quality if not small else 100, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
