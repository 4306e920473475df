"""The section of a page for an atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uturn.measures.statistics import with_interval
from uturn.pages.charts import number, numbers
from uturn.pages.sections import Reader, card, existing, new_section


def atlas_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of the file `atlas.zarr` of `uturn atlas`."""
    data, folder = read.dataset(path), path.parent
    name = "atlas" if read.alone else folder.resolve().name or "atlas"
    section = new_section("atlas", name, "atlas", "Atlas of models")
    section["words"] = "Where models of images lose the class, on one axis of noise: log-SNR."
    section["covers"] = "*.zarr"  # the runs of the rows
    section["files"] = existing(folder, ("atlas.csv", "atlas.pdf"))
    read.add_picture(section, folder / "atlas.png", "atlas")
    entries = [data.isel(entry=k) for k in range(data.sizes["entry"])]
    several = len(set(data.title.values.tolist())) < len(entries)
    names = [f"{of.title.item()}, {of.classifier.item()}" if several else str(of.title.item()) for of in entries]
    remarks = [f"failed: {of.failure.item()}" if of.failure.item() else str(of.remark.item()) for of in entries]
    cells = [[with_interval(numbers(values)) for values in (of.transition.values, of.width.values)] for of in entries]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "bar": numbers(of.fall.sel(estimate="value").values),
            "points": [
                numbers(of.transition.values),
                *([number(x), None, None] for x in (of.inversion.values[0], of.speciation)),
            ],
        }
        for name, of in zip(names, entries, strict=True)
    ]
    placed = [row for row in rows if row["points"][0][0] is not None]
    section["rows"] = {
        "title": "t* of every model",
        "label": "t* of every model on the axis log-SNR; the table below has the numbers",
        "axis": {
            **{"name": "log_snr", "short": "log-SNR", "unit": "nats", "words": "log-SNR (nats), more noise to the right"},
            "reversed": True,
        },
        "words": (
            "models have lost half of the class. Dots: t*; bars: from a quarter to three quarters of the fall; open circles: "
            "last layer below first; stars: speciation."
        ),
        "bar": "quarter to three quarters lost",
        "points": ["t*", "last layer below first", "speciation"],
        "rows": placed,
        "table": {
            "heads": ["model", "t*, log-SNR (nats)", "width (nats)", "remark"],
            "labels": ["model", "t*", "width", "remark"],
            "rows": [[name, *of, remark] for name, of, remark in zip(names, cells, remarks, strict=True)],
        },
    }
    places = [row["points"][0][0] for row in placed]
    if places:
        middle = [np.median(places), min(places), max(places)]
        claim = f"The median and the range over {len(places)} models of the noise at which half of the class is lost."
        section["headlines"].append(card("t*", "log-SNR (nats)", middle, claim, is_range=True))
    return section
