"""The section of a page for posterior samplers of one inverse problem: their errors, and what
they draw at each strength.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from PIL import Image

from uturn.core.checks import expect
from uturn.core.files import check_plain
from uturn.pages.charts import numbers
from uturn.pages.pictures import WIDTH, as_url, check_count, preview, side_of, with_gaps
from uturn.pages.sections import Reader, card, checked_table, new_section
from uturn.studies.axes import is_geometric, texts_of
from uturn.tools.inverse.posteriors import KINDS, NONE_SEEN

FORMAT = "uturn.inverse"
"""The format of `inverse.json`, beside which lie `samplers.zarr`, images of the page, and the
folder of pictures `ERRORS`.
"""
ERRORS = "errors"
_MOST_PREVIEWS = 24  # pictures of errors in full size


def samplers_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a folder of `uturn inverse`; `path`: its dataset `samplers.zarr`."""
    data, folder = read.dataset(path), path.parent
    results = json.loads(read.content(folder / "inverse.json"))
    if results.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'inverse.json'} is not that of `uturn inverse`, which belongs to"
            " samplers.zarr"
        )
    section = new_section(
        "samplers", "samplers", "inverse-problems", "Do the samplers draw from the posterior?"
    )
    section |= {
        "words": str(results["words"]),
        "caption": str(results["caption"]),
        "covers": "*",
    }
    section["notes"], section["tables"] = (
        list(map(str, results["notes"])),
        list(map(checked_table, results["tables"])),
    )
    section["headlines"] = [_verdict(run) for run in results["runs"]]
    section["overview"] = checked_table(results["table"])
    section["files"] = [folder / name for name in ("inverse.json", "inverse.csv")]
    check_plain(folder / ERRORS)
    section["pictures_first"], section["word"] = True, "strength"
    section["slides"] = _errors(
        results["runs"], folder / ERRORS, str(data.noise.attrs.get("long_name", "strength"))
    )
    if "image" in data:
        section["gallery"] = _samples(data)
    return section


def _verdict(run: dict[str, Any]) -> dict[str, Any]:
    """The card of a sampler: its kind of error, also if none is seen."""
    seen = [
        KINDS[kind] for kind in dict.fromkeys(at["kind"] for at in run["tests"]) if kind in KINDS
    ]
    without = "no test rejects" if run["kinds"] == NONE_SEEN else "a test rejects"
    claim = "; ".join(seen) or f"{without}; each is blind to some errors"
    return card(run["name"], f"the tests judge the {run['judges']}", str(run["kinds"]), claim)


def error_names(store: str, strengths: Sequence[float]) -> list[str]:
    """Names of the pictures of the errors of a sampler at its strengths, without suffix, from
    the name of its store.
    """
    return [f"{store}-{strength}" for strength in texts_of(strengths, "g")]


def _errors(runs: list[dict[str, Any]], folder: Path, words: str) -> dict[str, Any]:
    """The pictures of the kind of error of each sampler at each strength."""
    width = WIDTH * min(1.0, (_MOST_PREVIEWS / sum(len(run["tests"]) for run in runs)) ** 0.5)
    rows, previews = [], dict[Path, Any]()
    for run in runs:
        levels = []
        names = error_names(run["store"], [at["strength"] for at in run["tests"]])
        for at, name in zip(run["tests"], names, strict=True):
            path = folder / f"{name}.png"
            # Of a stranger, who may name any picture.
            expect(path.parent == folder, "store", run["store"], "the name of a store")
            picture = previews[path] = previews.get(path) or preview(path, "", width)
            levels.append(
                picture | {"words": f"{run['name']} at {words} {at['strength']:g}: {at['kind']}"}
            )
        rows.append({"name": run["name"], "levels": levels})
    noise = [at["strength"] for at in runs[0]["tests"]]
    return {
        "title": "Kind of error",
        "noise": noise,
        "log": is_geometric(noise),
        "words": words,
        "rows": rows,
    }


def _samples(data: xr.Dataset) -> dict[str, Any]:
    """Originals, measurements, clones, their spread and the error of their mean, for each kind
    of originals and each sampler.
    """
    check_count(math.prod(data.image.shape[:-3]), 3)
    spread = data.image.std("clone", ddof=1) / 2  # of images in [0, 1], as samplers draw them
    error = abs(data.image.mean("clone") - data.original) / 2
    most = float(max(spread.quantile(0.995), error.quantile(0.995), 1e-6))
    kinds, groups = dict.fromkeys(data.data.values.tolist()), []
    for kind in kinds:
        of_kind = np.flatnonzero(data.data.values == kind)
        some = data.isel(run=of_kind)
        some = some.assign(spread=spread[of_kind], error=error[of_kind])
        runs, levels, count, clones = some.image.shape[:4]
        side = side_of(
            some.image.values,
            count * (1 + levels + runs * levels * (clones + 2)),
            len(kinds) ** -0.5,
        )
        items = [
            {
                "name": str(of_item.item_name.values[0]),
                "shared": [
                    [_image(of_item.original.values[0], side)],
                    [_image(image, side) for image in of_item.observation.values[0]],
                ],
                "rows": [
                    [
                        *(
                            [_image(image, side) for image in of.image.values[:, clone]]
                            for clone in range(clones)
                        ),
                        *(
                            [_heat(values, most, side) for values in what.values]
                            for what in (of.spread, of.error)
                        ),
                    ]
                    for of in (of_item.isel(run=run) for run in range(runs))
                ],
            }
            for of_item in (some.isel(item=k) for k in range(count))
        ]
        groups.append({"name": str(kind), "rows": some.sampler.values.tolist(), "items": items})
    columns = [f"clone {1 + k}" for k in range(data.sizes["clone"])]
    words = (
        "Spread: standard deviation of the clones, pixel by pixel. Error: distance of their mean"
        " from the truth. For draws from the posterior both are of one size, on average. "
    )
    return {
        "title": "Truth, measurement and what the samplers draw, at the strength of the slider",
        "label": "images of the samplers",
        "heads": [
            "truth",
            "measurement",
            "sampler",
            *columns,
            "spread of the clones",
            "error of their mean",
        ],
        "key": [
            words,
            {"swatch": "heat"},
            f" 0 to {most:.3g}, for pixels in [0, 1]. ",
            {"swatch": "unseen"},
            " hidden.",
        ],
        "noise": numbers(data.noise.values),
        "log": is_geometric(data.noise.values),
        "words": str(data.noise.attrs.get("long_name", "strength")),
        "smooth": max(data.image.shape[-2:]) > 64,
        "kept": data.sizes["item"],
        "of": int(data.attrs["items"]),
        "groups": groups,
    }


def _image(values: np.ndarray, side: int) -> dict[str, Any]:
    return {"url": as_url(with_gaps(values), side, 75)}


def _heat(values: np.ndarray, most: float, side: int) -> dict[str, Any]:
    """Root mean squares over the channels of (channel, row, column), from black (0) to yellow
    (`most`), and over all values.
    """
    shares = np.sqrt((values**2).mean(axis=0)) / most
    picture = Image.fromarray(colormaps["inferno"](np.clip(shares, 0, 1), bytes=True)[..., :3])
    return {"url": as_url(picture, side, 75), "size": float(f"{np.sqrt((values**2).mean()):.2g}")}
