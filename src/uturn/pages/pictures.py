"""Pictures in a page: previews of figures and images of a run, small enough for the page, as data URLs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.files import check_plain
from uturn.pages.charts import number
from uturn.studies.axes import is_geometric
from uturn.studies.records import sample

if TYPE_CHECKING:
    import xarray as xr
    from PIL.Image import Image

WIDTH, _SIDE, _PIXELS = 1600, 128, 4_000_000  # pixels: width of a preview, side of an image, all images of a run


def preview(path: Path, words: str, width: float = WIDTH) -> dict[str, Any]:
    """A stored picture as the data URL of a WebP image of at most `width` pixels a side."""
    from PIL import Image

    check_plain(path)
    with Image.open(path, formats=("PNG",)) as opened:  # some formats start other programs, whatever the name of the file
        opened.load()
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    small = _at_most(ground.convert("RGB"), int(width))
    return {"url": _as_url(small, 80), "words": words, "width": small.width, "height": small.height}


def grid(
    levels: Any,
    names: list[str],
    originals: np.ndarray,
    images: np.ndarray,
    kept: np.ndarray | None,
    half_lives: xr.DataArray | None = None,
) -> Any:
    """Originals and their reconstructions at every shown noise level, for the page.

    Parameters
    ----------
    levels : noise (levels,)
    names : names of the originals
    originals : array (items, channel, row, column), in [-1, 1]; NaN if they are unknown
    images : array (levels, items, channel, row, column)
    kept : array (levels, items), 1 where the class is unchanged; None if there are no classes
    half_lives : array (items,), optional; noise at which half of the change of each original is done, with its name
    """
    total = images.shape[-1] * images.shape[-2] * (len(images) + 1) * len(originals)
    side = int(min(_SIDE, max(images.shape[-2:]) * min(1.0, (_PIXELS / total) ** 0.5)))

    def url(image: np.ndarray) -> str | None:
        return _as_url(_at_most(as_picture(image), max(side, 16)), 75) if np.isfinite(image).all() else None

    return {
        "noise": np.asarray(levels, float).tolist(),
        "log": is_geometric(levels),
        "smooth": max(images.shape[-2:]) > 64,
        "half_life": "" if half_lives is None else str(half_lives.attrs.get("long_name", "")).replace("_", "-", 1),
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


def draws(
    originals: np.ndarray,
    observations: np.ndarray,
    images: np.ndarray,
    spreads: np.ndarray,
    errors: np.ndarray,
    most: float,
    share: float,
) -> list[dict[str, Any]]:
    """Originals, measurements, clones, their spread and the error of their mean, for the page: a table for each item.

    Parameters
    ----------
    originals : array (items, channel, row, column), in [-1, 1]
    observations : array (levels, items, channel, row, column); NaN is transparent
    images : array (samplers, levels, items, clones, channel, row, column)
    spreads, errors : arrays (samplers, levels, items, channel, row, column), shown in colours from 0 to `most`
    share : of the full width of an image, below 1 for several tables
    """
    samplers, levels, _, clones = images.shape[:4]
    total = originals[..., 0, :, :].size * (1 + levels + samplers * levels * (clones + 2))
    side = max(int(min(_SIDE, max(images.shape[-2:]) * min(1.0, (_PIXELS / total) ** 0.5)) * share), 16)

    def heat(values: np.ndarray) -> dict[str, Any]:
        rms = float(np.sqrt((values**2).mean()))
        return {"url": _as_url(_at_most(_in_colours(values, most), side), 75), "rms": float(f"{rms:.2g}")}

    def url(image: np.ndarray) -> str:
        return _as_url(_at_most(_with_gaps(image), side), 75)

    return [
        {
            "original": url(original),
            "observations": [url(observation) for observation in observations[:, k]],
            "rows": [
                [
                    {
                        "clones": [url(image) for image in images[s, level, k]],
                        "spread": heat(spreads[s, level, k]),
                        "error": heat(errors[s, level, k]),
                    }
                    for level in range(levels)
                ]
                for s in range(samplers)
            ],
        }
        for k, original in enumerate(originals)
    ]


def _with_gaps(image: np.ndarray) -> Image:
    """An image as a picture; values that are NaN in some channel are transparent."""
    from PIL import Image

    hidden = np.isnan(image).any(axis=0)
    picture = as_picture(np.nan_to_num(image))
    if hidden.any():
        picture = picture.convert("RGBA")
        picture.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return picture


def _in_colours(values: np.ndarray, most: float) -> Image:
    """Root mean squares over the channels of (channel, row, column), from black (0) to yellow (`most`)."""
    from matplotlib import colormaps
    from PIL import Image

    shares = np.sqrt((values**2).mean(axis=0)) / most
    return Image.fromarray(colormaps["inferno"](np.clip(shares, 0, 1), bytes=True)[..., :3])


def images_of_figure(data: xr.Dataset) -> Any:
    """The images in the data of a figure: `original` and `image` (noise, item, row, column); None if there are none."""
    if not {"original", "image"} <= set(data.data_vars) or not {"noise", "item", "row", "column"} <= set(data.image.dims):
        return None
    chosen, dims, count = sample(data.sizes["item"]), ("item", "row", "column"), data.sizes["item"]
    some = data[["original", "image"]].isel(item=chosen).sortby("noise")
    originals, images = some.original.transpose(*dims).values[:, None], some.image.transpose("noise", *dims).values[:, :, None]
    names = [f"item {k}" for k in chosen]
    return grid(some.noise.values, names, originals, images, None) | {"of": count, "kept": count}


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
