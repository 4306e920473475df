"""The section of a page for an atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uturn.pages.charts import number, numbers
from uturn.pages.sections import Reader, card, existing, new_section


def atlas_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of the file `atlas.zarr` of `uturn atlas`."""
    data, folder = read.dataset(path), path.parent
    name = "atlas" if read.alone else folder.resolve().name or "atlas"
    section = new_section("atlas", name, "images", "Atlas of models")
    section["words"] = "Where models of images lose the class, on one axis of noise: log-SNR."
    section["covers"] = "*.zarr"  # the runs of the rows
    section["files"] = existing(folder, ("atlas.csv", "atlas.pdf"))
    read.add_picture(section, folder / "atlas.png", "atlas")
    entries = [data.isel(entry=k) for k in range(data.sizes["entry"])]
    several = len(set(data.title.values.tolist())) < len(entries)
    section["rows"] = [
        {
            "name": f"{of.title.item()}, {of.classifier.item()}" if several else str(of.title.item()),
            "group": str(of.group.item()),
            "place": numbers(of.transition.values),
            "width": numbers(of.width.values),
            "fall": numbers(of.fall.sel(estimate="value").values),
            "inversion": number(of.inversion.values[0]),
            "speciation": number(of.speciation),
            "remark": f"failed: {of.failure.item()}" if of.failure.item() else str(of.remark.item()),
        }
        for of in entries
    ]
    places = [row["place"][0] for row in section["rows"] if row["place"][0] is not None]
    if places:
        middle = [np.median(places), min(places), max(places)]
        claim = f"The median and the range over {len(places)} models of the noise at which half of the class is lost."
        section["headlines"].append(card("half-life of the class", "log-SNR (nats)", middle, claim, is_range=True))
    return section
