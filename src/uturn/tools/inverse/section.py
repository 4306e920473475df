"""The section of a page for posterior samplers of one inverse problem: their errors, and what
they draw at each strength.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from PIL import Image

from uturn.core.checks import expect
from uturn.core.files import check_plain
from uturn.pages.pictures import (
    WIDTH,
    as_url,
    check_count,
    is_smooth,
    noise_axis,
    preview,
    side_of,
    with_gaps,
)
from uturn.pages.sections import Reader, Section, checked_table
from uturn.pages.views import (
    Card,
    Gallery,
    GalleryGroup,
    GalleryImage,
    GalleryItem,
    Picture,
    SlideRow,
    Slides,
    Swatch,
)
from uturn.studies.axes import texts_of
from uturn.tools.inverse.kinds import KINDS, Kind

FORMAT = "uturn.inverse"
"""The format of `inverse.json`, beside which lie `samplers.zarr`, images of the page, and the
folder of pictures `ERRORS`.
"""
ERRORS = "errors"
_MOST_PREVIEWS = 24  # pictures of errors in full size


def samplers_section(path: Path, reader: Reader) -> Section:
    """The section of a folder of `uturn inverse`; `path`: its dataset `samplers.zarr`."""
    data = reader.dataset(path)
    folder = path.parent
    results = json.loads(reader.content(folder / "inverse.json"))
    if results.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'inverse.json'} is not that of `uturn inverse`, which belongs to"
            " samplers.zarr"
        )
    check_plain(folder / ERRORS)
    unit = str(data.noise.attrs.get("long_name", "strength"))
    return Section(
        "samplers",
        "samplers",
        "inverse-problems",
        "Do the samplers draw from the posterior?",
        slider="strength",
        covers="*",
        cards=[_verdict(run) for run in results["runs"]],
        words=str(results["words"]),
        caption=str(results["caption"]),
        notes=list(map(str, results["notes"])),
        overview=checked_table(results["table"]),
        slides=_errors(results["runs"], folder / ERRORS, unit),
        gallery=_samples(data, unit) if "image" in data else None,
        has_pictures_first=True,
        tables=list(map(checked_table, results["tables"])),
        files=[folder / name for name in ("inverse.json", "inverse.csv")],
    )


def _verdict(run: dict[str, Any]) -> Card:
    """The card of a sampler: its kind of error, also if none is seen."""
    kinds = dict.fromkeys(test["kind"] for test in run["tests"])
    claim = "; ".join(KINDS[kind] for kind in kinds if kind in KINDS)
    if not claim:
        without = "no test rejects" if run["kinds"] == Kind.NONE_SEEN else "a test rejects"
        claim = f"{without}; each is blind to some errors"
    unit = f"the tests judge the {run['judges']}"
    return Card(run["name"], unit, claim, verdict=str(run["kinds"]))


def error_names(store: str, strengths: Sequence[float]) -> list[str]:
    """Names of the pictures of the errors of a sampler at its strengths, without suffix, from
    the name of its store.
    """
    return [f"{store}-{strength}" for strength in texts_of(strengths, "g")]


def _errors(runs: list[dict[str, Any]], folder: Path, unit: str) -> Slides:
    """The pictures of the kind of error of each sampler at each strength."""
    count = sum(len(run["tests"]) for run in runs)
    width = WIDTH * min(1.0, (_MOST_PREVIEWS / count) ** 0.5)
    previews: dict[Path, Picture] = {}
    rows = []
    for run in runs:
        pictures = []
        names = error_names(run["store"], [test["strength"] for test in run["tests"]])
        for test, name in zip(run["tests"], names, strict=True):
            path = folder / f"{name}.png"
            # Of a stranger, who may name any picture.
            expect(path.parent == folder, "store", run["store"], "the name of a store")
            if path not in previews:
                previews[path] = preview(path, "", width)
            caption = f"{run['name']} at {unit} {test['strength']:g}: {test['kind']}"
            pictures.append(replace(previews[path], caption=caption))
        rows.append(SlideRow(run["name"], pictures))
    strengths = [test["strength"] for test in runs[0]["tests"]]
    return Slides("Kind of error", noise_axis(strengths, unit), rows)


def _samples(data: xr.Dataset, unit: str) -> Gallery:
    """Originals, measurements, clones, their spread and the error of their mean, for each kind
    of originals and each sampler.
    """
    check_count(math.prod(data.image.shape[:-3]), 3)
    spread = data.image.std("clone", ddof=1) / 2  # of images in [0, 1], as samplers draw them
    error = abs(data.image.mean("clone") - data.original) / 2
    most = float(max(spread.quantile(0.995), error.quantile(0.995), 1e-6))
    kinds = list(dict.fromkeys(data.data.values.tolist()))
    groups = []
    for kind in kinds:
        indices = np.flatnonzero(data.data.values == kind)
        chosen = data.isel(run=indices)
        chosen = chosen.assign(spread=spread[indices], error=error[indices])
        runs, levels, count, clones = chosen.image.shape[:4]
        images = count * (1 + levels + runs * levels * (clones + 2))
        side = side_of(chosen.image.values, images, len(kinds) ** -0.5)
        items = [_samples_of(chosen.isel(item=k), side, most) for k in range(count)]
        groups.append(GalleryGroup(str(kind), chosen.sampler.values.tolist(), items))
    clone_heads = [f"clone {1 + k}" for k in range(data.sizes["clone"])]
    words = (
        "Spread: standard deviation of the clones, pixel by pixel. Error: distance of their mean"
        " from the truth. For draws from the posterior both are of one size, on average. "
    )
    return Gallery(
        title="Truth, measurement and what the samplers draw, at the strength of the slider",
        label="images of the samplers",
        heads=[
            "truth",
            "measurement",
            "sampler",
            *clone_heads,
            "spread of the clones",
            "error of their mean",
        ],
        key=[
            words,
            Swatch("heat"),
            f" 0 to {most:.3g}, for pixels in [0, 1]. ",
            Swatch("unseen"),
            " hidden.",
        ],
        levels=noise_axis(data.noise.values, unit),
        groups=groups,
        total=int(data.attrs["items"]),
        stored=data.sizes["item"],
        is_smooth=is_smooth(data.image.values),
    )


def _samples_of(data: xr.Dataset, side: int, most: float) -> GalleryItem:
    """The images of one original, with a row for each sampler."""
    original = [_image(data.original.values[0], side)]
    measurements = [_image(image, side) for image in data.observation.values[0]]
    rows = []
    for k in range(data.sizes["run"]):
        of_run = data.isel(run=k)
        columns = []
        for clone in range(of_run.sizes["clone"]):
            images = of_run.image.isel(clone=clone).values
            columns.append([_image(image, side) for image in images])
        for heat in (of_run.spread, of_run.error):
            columns.append([_heat(values, most, side) for values in heat.values])
        rows.append(columns)
    return GalleryItem(str(data.item_name.values[0]), [original, measurements], rows)


def _image(values: np.ndarray, side: int) -> GalleryImage:
    return GalleryImage(as_url(with_gaps(values), side, 75))


def _heat(values: np.ndarray, most: float, side: int) -> GalleryImage:
    """Root mean squares over the channels of (channel, row, column), from black (0) to yellow
    (`most`), and over all values.
    """
    shares = np.sqrt((values**2).mean(axis=0)) / most
    colors = colormaps["inferno"](np.clip(shares, 0, 1), bytes=True)[..., :3]
    size = float(f"{np.sqrt((values**2).mean()):.2g}")
    return GalleryImage(as_url(Image.fromarray(colors), side, 75), size)
