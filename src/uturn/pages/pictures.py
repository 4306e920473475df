"""Pictures in a page: previews of figures and images of a run, small enough for the page, as
data URLs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.files import check_plain
from uturn.pages.views import Axis, Grid, OriginalImages, Picture, number, numbers
from uturn.studies.axes import is_geometric
from uturn.studies.records import sample

WIDTH = 1600
"""Pixels of the longer side of a preview."""
_MOST_IMAGES = 2**15
"""Images of a run."""
_SIDE = 128
"""Pixels of the longer side of an image."""
_PIXELS = 4_000_000
"""All images of a run."""
_PIXELATED = 64
"""Images of at most this side are stored without loss, and enlarged without smoothing."""


# The page is written again after each figure.
@cached_while_unchanged(files=lambda path, *_: [path], maxsize=64)
def preview(path: Path, caption: str, width: float = WIDTH) -> Picture:
    """A stored picture as the data URL of a WebP image of at most `width` pixels a side."""
    check_plain(path)
    # Some formats start other programs, whatever the name of the file.
    with Image.open(path, formats=("PNG",)) as opened:
        opened.load()
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    small = _at_most(ground.convert("RGB"), int(width))
    return Picture(as_url(small, WIDTH, 80), caption, small.width, small.height)


def check_count(images: int, share: int = 1) -> None:
    """ValueError for more images than a page shows: a few kilobytes may promise millions."""
    most = _MOST_IMAGES // share
    expect(images <= most, "images", images, f"at most {most} for a page")


def noise_axis(values: np.ndarray | Sequence[float], label: str = "") -> Axis:
    """The noise levels of a view that follows the slider."""
    return Axis("noise", label, numbers(values), is_geometric(values))


def is_smooth(images: np.ndarray) -> bool:
    """Whether enlarged pixels of images (.., row, column) are smoothed."""
    height, width = images.shape[-2:]
    return bool(max(height, width) > _PIXELATED)


def grid(
    levels: np.ndarray,
    names: Sequence[str],
    originals: np.ndarray,
    images: np.ndarray,
    kept: np.ndarray | None,
    half_lives: xr.DataArray | None = None,
    *,
    total: int,
    stored: int,
) -> Grid:
    """Originals (items, channel, row, column), NaN if unknown, and reconstructions (levels, items,
    ..), in [-1, 1], for the page.

    `kept` (levels, items) is 1 where the class is unchanged, None without classes; `half_lives`
    (items,): of each original. `total`, `stored`: number of originals of the run, and of those
    whose images it stored.
    """
    count = (len(images) + 1) * len(originals)
    check_count(count)
    side = side_of(images, count)
    items = []
    for k, name in enumerate(names):
        item = OriginalImages(
            name=name,
            original=_known_image(originals[k], side),
            images=[_known_image(image, side) for image in images[:, k]],
            kept=None if kept is None else [bool(value == 1) for value in kept[:, k]],
            half_life=None if half_lives is None else number(half_lives.values[k]),
        )
        items.append(item)
    name_of_half_life = ""
    if half_lives is not None:
        name_of_half_life = str(half_lives.attrs.get("long_name", "")).replace("_", "-", 1)
    return Grid(noise_axis(levels), items, total, stored, name_of_half_life, is_smooth(images))


def _known_image(image: np.ndarray, side: int) -> str | None:
    """An image as a data URL; None if it is not known."""
    if not np.isfinite(image).all():
        return None
    return as_url(as_picture(image), side, 75)


def with_gaps(image: np.ndarray) -> Image.Image:
    """An image as a picture; values that are NaN in some channel are transparent."""
    picture = as_picture(np.nan_to_num(image))
    is_hidden = np.isnan(image).any(axis=0)
    if is_hidden.any():
        picture = picture.convert("RGBA")
        picture.putalpha(Image.fromarray(np.where(is_hidden, 0, 255).astype(np.uint8)))
    return picture


def images_of_figure(data: xr.Dataset) -> Grid | None:
    """The images in the data of a figure: `original` and `image` (noise, item, row, column);
    None if there are none.
    """
    if "original" not in data.data_vars or "image" not in data.data_vars:
        return None
    if not {"noise", "item", "row", "column"} <= set(data.image.dims):
        return None
    count = data.sizes["item"]
    chosen = sample(count)
    shown = data[["original", "image"]].isel(item=chosen).sortby("noise")
    originals = shown.original.transpose("item", "row", "column")
    images = shown.image.transpose("noise", "item", "row", "column")
    return grid(
        shown.noise.values,
        [f"item {k}" for k in chosen],
        originals.values[:, None],
        images.values[:, :, None],
        None,
        total=count,
        stored=count,
    )


def as_picture(image: np.ndarray) -> Image.Image:
    """An image (channel, row, column) in [-1, 1] as a picture, grey or RGB; values beyond are
    clipped.
    """
    pixels = np.round((np.clip(image, -1, 1).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    is_grey = pixels.shape[-1] == 1
    return Image.fromarray(pixels[..., 0] if is_grey else pixels[..., :3])


def side_of(images: np.ndarray, count: int, share: float = 1.0) -> int:
    """Side in pixels of `count` images (.., row, column) of a page; `share`: of the full width,
    below 1 for several tables.
    """
    height, width = images.shape[-2:]
    scale = min(1.0, (_PIXELS / (height * width * count)) ** 0.5)
    side = min(_SIDE, max(height, width) * scale)
    return max(int(side * share), 16)


def _at_most(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(length * scale), 1) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def as_url(picture: Image.Image, side: int, quality: int) -> str:
    """A picture of at most `side` pixels a side as the data URL of a WebP image, without loss if
    it is small.
    """
    picture = _at_most(picture, side)
    is_small = max(picture.size) <= _PIXELATED
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=is_small, quality=100 if is_small else quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
