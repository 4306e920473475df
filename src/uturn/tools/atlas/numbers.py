"""The numbers of the rows of an atlas on the axis log-SNR (nats): a dataset, a table, and a
section of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import xarray as xr

from uturn.measures.estimates import ESTIMATE, with_interval
from uturn.pages.sections import Reader, Section, existing
from uturn.pages.views import Card, numbers
from uturn.store.run_folder import warnings_of
from uturn.studies import study
from uturn.studies.tables import TextTable

if TYPE_CHECKING:
    from uturn.tools.atlas.file import AtlasRow

PLACES = {
    "transition": "log-SNR at which half of the class is lost, t* (nats)",
    "width": "log-SNR between a quarter and three quarters of its fall (nats)",
    "quarter": "log-SNR at which a quarter of the class is lost (nats)",
    "three_quarters": "log-SNR at which three quarters of the class are lost (nats)",
    "first_layer": "log-SNR at which half of the similarity of the first layer is lost (nats)",
    "last_layer": "log-SNR at which half of the similarity of the last layer is lost (nats)",
    "inversion": "log-SNR below which the last layer is less similar than the first (nats)",
}
"""Numbers with intervals: {name: long name}."""
_SHOWN = {
    "transition": "class half lost, t*",
    "width": "width",
    "first_layer": "half-life, first layer",
    "last_layer": "last layer",
    "inversion": "last below first layer",
}


@dataclass(frozen=True)
class Entry:
    """What one classifier says of a row. `places`: {name of `PLACES`: (value, low, high)},
    without those that do not exist.
    """

    row: AtlasRow
    places: Mapping[str, Any] = field(default_factory=dict)
    classifier: str = ""
    description: str = ""
    remark: str = ""
    is_failed: bool = False


def entries_of(row: AtlasRow, run: xr.Dataset) -> list[Entry]:
    """The numbers of a finished run, an entry for each of its classifiers, which are the series
    of its network layers.
    """
    found = study(run)
    on_axis = found.sel(axis="log_snr")
    entries = []
    for similarity in dict.fromkeys(found.variable.values.tolist()):
        if not similarity.endswith("similarity"):
            continue
        layers = on_axis.isel(reading=found.variable.values == similarity)
        places = {"first_layer": layers.half_life[0], "last_layer": layers.half_life[-1]}
        remarks = [*warnings_of(found.attrs), found.attrs["remark"]]
        same_class = f"{similarity.removesuffix('similarity')}same_class"
        if same_class in found.reading:
            of_class = on_axis.sel(reading=same_class)
            places |= {"transition": of_class.half_life, "width": of_class.width}
            places |= {
                "quarter": of_class.place.sel(share=0.25),
                "three_quarters": of_class.place.sel(share=0.75),
            }
            remarks.append(str(of_class.remark.item()))
        else:
            remarks.append("an encoder without classes: no t*")
        if similarity in found.get("series", ()):
            series = on_axis.sel(series=similarity)
            places["inversion"] = series.inversion
            remarks.append(str(series.series_remark.item()))
        probe = str(layers.probe.values[0])
        classifier = str(layers.model.values[0]) if probe == "network_layers" else probe
        entries.append(
            Entry(
                row,
                places,
                classifier,
                found.attrs["description"],
                "; ".join(filter(None, remarks)),
            )
        )
    if not entries:
        raise ValueError(
            "the run has no similarity of network layers; expected one with a probe of type"
            " 'network_layers'"
        )
    return entries


def table_of(entries: Sequence[Entry]) -> xr.Dataset:
    """Entries as one dataset: `PLACES` (entry, estimate), NaN where a place does not exist, for
    the reason in `remark`.
    """
    variables = {}
    for name, long_name in PLACES.items():
        values = [entry.places.get(name, np.full(3, np.nan)) for entry in entries]
        variables[name] = ("entry", "estimate"), np.array(values, float), {"long_name": long_name}
    several = len({entry.row.name for entry in entries}) < len(entries)
    titles = [entry.row.title or entry.row.name for entry in entries]
    texts = {
        "name": [entry.row.name for entry in entries],
        "title": [
            f"{title}, {entry.classifier}" if several else title
            for title, entry in zip(titles, entries, strict=True)
        ],
        "data": [entry.row.data for entry in entries],
        "classifier": [entry.classifier for entry in entries],
        "description": [entry.description for entry in entries],
        "remark": [entry.remark for entry in entries],
        "is_failed": [entry.is_failed for entry in entries],
    }
    return xr.Dataset(
        variables,
        {name: ("entry", values) for name, values in texts.items()} | {"estimate": ESTIMATE},
    )


def frame_of(table: xr.Dataset) -> pandas.DataFrame:
    """A line for each entry, with the ends of intervals in columns `_low` and `_high`."""
    columns = {name: table[name].values for name in ("name", "classifier")}
    for name in PLACES:
        columns |= dict(
            zip((name, f"{name}_low", f"{name}_high"), table[name].values.T, strict=True)
        )
    return pandas.DataFrame(
        columns | {name: table[name].values for name in ("description", "remark")}
    )


def text_table(table: xr.Dataset) -> TextTable:
    """The places with their intervals, a line for each entry."""
    lines = []
    for k, title in enumerate(table.title.values.tolist()):
        cells = [
            with_interval(table[name].values[k], none="").replace("inf", "∞") for name in _SHOWN
        ]
        lines.append((title, *cells))
    title = "log-SNR (nats) with 95 % intervals; more noise is further below"
    return TextTable(title, ("model", *_SHOWN.values()), lines)


def remarks_of(table: xr.Dataset) -> list[str]:
    """The remarks, each behind the title of its entry."""
    pairs = zip(table.title.values.tolist(), table.remark.values.tolist(), strict=True)
    return [f"{title}: {remark}" for title, remark in pairs if remark]


def atlas_section(path: Path, reader: Reader) -> Section:
    """The section of the file `atlas.zarr` of `uturn atlas`."""
    table = reader.dataset(path)
    folder = path.parent
    name = "atlas" if reader.is_alone else folder.resolve().name or "atlas"
    section = Section(
        "atlas",
        name,
        "images",
        "Atlas of models",
        words="Where models of images lose the class, on one axis of noise: log-SNR.",
        covers="*",  # the runs of the rows
        overview=text_table(table),
        remarks=remarks_of(table),
        files=existing(folder, ("atlas.csv", "atlas.pdf")),
    )
    reader.add_picture(section, folder / "atlas.png", "atlas")
    places = table.transition.sel(estimate="value").dropna("entry").values
    if len(places):
        middle = [np.median(places), places.min(), places.max()]
        claim = (
            f"The median and the range over {len(places)} models of the noise at which half of the"
            " class is lost."
        )
        section.cards = [Card("t*", "log-SNR (nats)", claim, numbers(middle), is_range=True)]
    return section
