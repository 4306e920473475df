"""The numbers of the rows of an atlas, on the axis log-SNR (nats), and the tables and the section of a page made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.measures.cloning import largest_eigenvalue
from uturn.measures.statistics import ESTIMATE, Estimate, with_interval
from uturn.pages.charts import number, numbers
from uturn.pages.sections import Reader, card, existing, new_section
from uturn.store.record import warnings_of
from uturn.studies import study
from uturn.studies.tables import TextTable, csv_of, for_terminal

if TYPE_CHECKING:
    from uturn.tools.atlas.rows import AtlasRow

PATCHES = "patches"
"""Name of the probe `changes` in the run of a row."""
ESTIMATES = {
    "transition": "log-SNR at which half of the class is lost, t* (nats)",
    "width": "log-SNR between a quarter and three quarters of its fall (nats)",
    "inversion": "log-SNR below which the last layer is less similar than the first (nats)",
    "chi": "largest susceptibility of the measured levels, as found: number of patches that change together",
    "chi_at": "log-SNR of the peak of chi (nats)",
    "xi": "correlation length of the changes at the noise of the largest susceptibility (pixels)",
    "gap": "calibration gap of the predicted class where its p-value is smallest",
}
"""Numbers with intervals: {name: long name}."""
NUMBERS = {
    "chance": "probability that two originals have the same predicted class",
    "chi_cross_fitted": "largest susceptibility, its level chosen on one half of the images and read on the other half",
    "chi_n_eff": "number of images that decide it",
    "gap_at": "log-SNR of the calibration gap (nats)",
    "gap_p": "its p-value, by Holm over all readings and noise levels of the classifier",
    "eigenvalue": "largest eigenvalue of the covariance of the data, in the units of the model",
    "speciation": "log-SNR of abar = 1/eigenvalue (nats)",
}
"""Numbers without intervals: {name: long name}."""
_ARRAYS = {
    "fall": (("share", "estimate"), "log-SNR at shares of the fall of the class (nats)"),
    "half_life": (("network_layer", "estimate"), "log-SNR at which half of the similarity of a layer is lost (nats)"),
}
_MOST_IMAGES, _MOST_NUMBERS = 1000, 2**27  # limits of the covariance: images, numbers in all of them
SHARES = (0.25, 0.75)  # shares of the fall of the class


def largest_eigenvalue_of(experiment: Experiment) -> float:
    """Largest eigenvalue of the covariance of at most 1,000 images of the source, in the units of its model (of its latents)."""
    source, forward = experiment.parts.source, experiment.parts.corruption.forward
    most = max(2, min(_MOST_IMAGES, _MOST_NUMBERS // int(np.prod(source.image_shape()))))
    number = min(most, source.count())
    return largest_eigenvalue(forward.clean(source.images_at(np.arange(number))[0])) if number > 1 else float("nan")


def entry_of(row: AtlasRow, numbers: Mapping[str, Any] | None = None, layers: Sequence[str] = ("",), **texts: str) -> xr.Dataset:
    """The numbers of a row according to one classifier, or its failure; those that are not given are NaN (`table_of`)."""
    along: dict[str, Any] = {"share": list(SHARES), "estimate": list(ESTIMATE), "network_layer": range(len(layers))}
    declared: dict[str, Any] = {name: (("estimate",), words) for name, words in ESTIMATES.items()}
    declared |= {name: ((), words) for name, words in NUMBERS.items()} | _ARRAYS
    variables = {}
    for name, (dims, long_name) in declared.items():
        values = (numbers or {}).get(name, np.full([len(along[dim]) for dim in dims], np.nan))
        variables[name] = dims, np.asarray(values, float), {"long_name": long_name}
    about = dict.fromkeys(("classifier", "description", "remark", "failure"), "")
    about |= {"name": row.name, "title": row.title or row.name, "group": row.group}
    about |= {"facts": json.dumps(row.facts, ensure_ascii=False), "data": str(row.facts.get("data", row.data))}
    about["kind"] = str(row.facts.get("kind", ""))
    return xr.Dataset(variables, {**along, "layer": ("network_layer", list(layers)), **about, **texts})


def numbers_of(row: AtlasRow, run: xr.Dataset, eigenvalue: float) -> list[xr.Dataset]:
    """The numbers of a finished run, an entry for each of its classifiers: the series of its network layers."""
    found = study(run)
    on_axis, variables = found.sel(axis="log_snr"), found.variable.values
    changes, about_changes = _of_changes(row, found)
    shared = {**changes, "eigenvalue": eigenvalue}
    about_eigenvalue = "no speciation: the largest eigenvalue is not above 1, or not known"
    if eigenvalue > 1:
        shared["speciation"], about_eigenvalue = -np.log(eigenvalue - 1), ""
    entries = []
    for name in dict.fromkeys(map(str, variables)):
        if not name.endswith("similarity"):
            continue
        layers, of_class = on_axis.isel(reading=variables == name), f"{name.removesuffix('similarity')}same_class"
        numbers, remarks = {"half_life": layers.half_life, **shared}, ["an encoder without classes: no t*, no calibration gap"]
        if of_class in found.reading:
            judge = on_axis.sel(reading=of_class)
            gap, about_gap = _of_clones(judge)
            numbers |= {"transition": judge.half_life, "width": judge.width, "chance": judge.chance, **gap}
            numbers["fall"] = judge.place.sel(share=list(SHARES))
            remarks = [str(judge.remark.item()), about_gap]
        if name in found.get("series", ()):
            series = on_axis.sel(series=name)
            numbers["inversion"] = series.inversion
            remarks.append(str(series.series_remark.item()))
        about = [*warnings_of(found.attrs), found.attrs["remark"], *remarks, about_changes, about_eigenvalue]
        probe, model = str(layers.probe.values[0]), str(layers.model.values[0])
        texts = {"remark": "; ".join(filter(None, about)), "description": found.attrs["description"]}
        classifier = model if probe == "network_layers" else probe
        entries.append(entry_of(row, numbers, layers.level.values.tolist(), classifier=classifier, **texts))
    if not entries:
        raise ValueError("the run has no similarity of network layers; expected one with a probe of type 'network_layers'")
    return entries


def _of_changes(row: AtlasRow, found: xr.Dataset) -> tuple[dict[str, Any], str]:
    """Largest chi, its log-SNR (of its level, if it is no peak), and xi there in pixels; why they are missing or uncertain."""
    if PATCHES not in found.get("changes", ()):
        return {}, "a single trajectory: no chi, no xi"
    changes = found.sel(changes=PATCHES, axis="log_snr")
    values: dict[str, Any] = {}
    if np.isfinite(changes.largest):
        at = changes.isel(noise=int(changes.largest))
        place = at.peak_at.values if np.isfinite(at.peak_at[0]) else [float(at.log_snr), np.nan, np.nan]
        values = {"chi": at.chi.values, "chi_at": place, "xi": row.patch * at.xi.values}
        values |= {"chi_cross_fitted": float(at.peak_cross_fitted), "chi_n_eff": float(at.n_eff)}
    return values, str(changes.changes_remark.item())


def _of_clones(of_class: xr.Dataset) -> tuple[dict[str, Any], str]:
    """The calibration gap of the predicted class where its p-value is smallest; among equal p-values, the largest gap."""
    if "gap" not in of_class or not np.isfinite(of_class.gap_p).any():
        return {}, "a single clone: no calibration gap"
    k = np.lexsort((-np.abs(of_class.gap.values[:, 0]), of_class.gap_p.values))[0]  # NaN sort last
    return {"gap": of_class.gap.values[k], "gap_at": float(of_class.log_snr[k]), "gap_p": float(of_class.gap_p[k])}, ""


def table_of(entries: Sequence[xr.Dataset]) -> xr.Dataset:
    """Entries as one dataset with the dim entry, one for each classifier of each row.

    The numbers of `ESTIMATES` (entry, estimate), of `NUMBERS` (entry), `fall` (entry, share, estimate) and `half_life` (entry,
    network_layer, estimate), NaN where a number does not exist, for the reason in the coordinate `remark`; `layer` is "" beyond
    the last one, `facts` are JSON.
    """
    whole: Any = {"data_vars": "all", "coords": "all", "compat": "override", "join": "outer", "combine_attrs": "override"}
    table = xr.concat(list(entries), "entry", fill_value={"layer": ""}, **whole).drop_vars("network_layer")
    return table.assign_coords({name: of.astype(str) for name, of in table.coords.items() if of.dtype.kind in "UTO"})


def to_csv(table: xr.Dataset) -> str:
    """The numbers as CSV, a line for each entry: numbers with `_low` and `_high`, half-lives of first and last layer, facts."""
    first, last = (table.half_life.isel(network_layer=k) for k in (0, _last_layer(table)))
    columns = {name: table[name].values for name in ("name", "classifier")}
    for name, values in {**{name: table[name] for name in ESTIMATES}, "half_life_first": first, "half_life_last": last}.items():
        columns |= dict(zip((name, f"{name}_low", f"{name}_high"), values.values.T, strict=True))
    columns |= {name: table[name].values for name in (*NUMBERS, "description", "remark", "failure")}
    facts = pandas.DataFrame([json.loads(text) for text in table.facts.values]).add_prefix("fact_")
    return csv_of(pandas.DataFrame(columns).join(facts))


def summary(table: xr.Dataset) -> Iterator[Any]:
    """The numbers as a table for a terminal (rich), and the remarks as lines of text."""
    several = len(set(table.name.values.tolist())) < table.sizes["entry"]
    heads = (
        *("model", "class half lost, t*", "width", "half-life, first layer", "last layer", "last below first layer"),
        *("speciation", "chi, at", "xi (pixels)", "calibration gap (p)"),
    )
    rows, remarks = [], []
    for k, last in enumerate(_last_layer(table).values):
        entry = table.isel(entry=k)
        title = f"{entry.title.item()}{f', {entry.classifier.item()}' if several else ''}"
        cells = entry.transition, entry.width, entry.half_life[0], entry.half_life[last], entry.inversion, entry.speciation
        p = f" ({float(entry.gap_p):.2g})" if np.isfinite(entry.gap_p) else ""
        chi = ", ".join(filter(None, map(_cell, (entry.chi, entry.chi_at))))
        rows.append((title, *map(_cell, cells), chi, _cell(entry.xi), f"{_cell(entry.gap)}{p}"))
        if remark := f"failed: {entry.failure.item()}" if entry.failure.item() else entry.remark.item():
            remarks.append(f"{entry.title.item()}: {remark}")
    yield for_terminal(TextTable("log-SNR (nats) with 95 % intervals; more noise is further below", heads, rows))
    yield from remarks


def _last_layer(table: xr.Dataset) -> xr.DataArray:
    return ((table.layer != "").sum("network_layer") - 1).clip(0)


def _cell(values: xr.DataArray) -> str:
    """A number, with its interval if it has one; "" if it does not exist."""
    value, *ends = np.ravel(values).tolist()
    text = f"{Estimate(value, *ends):.3g}" if ends and not np.isnan(ends).any() else f"{value:.3g}"
    return "" if np.isnan(value) else text.replace("inf", "∞")


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
