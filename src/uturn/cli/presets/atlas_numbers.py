"""The numbers of the rows of an atlas, on the axis log-SNR (nats), and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.measures.cloning import largest_eigenvalue
from uturn.measures.statistics import ESTIMATE, Estimate
from uturn.store.record import warnings_of
from uturn.studies import study
from uturn.studies.tables import csv_of

if TYPE_CHECKING:
    import xarray as xr

    from uturn.cli.presets.atlas import AtlasRow
    from uturn.core.experiment import Experiment

PATCHES = "patches"
"""Name of the probe `changes` in the run of a row."""
ESTIMATES = {
    "transition": "log-SNR at which half of the class is lost, t* (nats)",
    "width": "log-SNR between a quarter and three quarters of its fall (nats)",
    "inversion": "log-SNR below which the last layer is less similar than the first (nats)",
    "chi": "largest susceptibility of the measured levels, as found: number of patches that change together",
    "chi_at": "log-SNR of the largest susceptibility (nats)",
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
_MOST_IMAGES, _MOST_NUMBERS = 1000, 2**27  # limits of the covariance: images, numbers in all of them
SHARES = (0.25, 0.75)  # shares of the fall of the class


@dataclass
class Entry:
    """The numbers of a row according to one classifier, or the failure of the row."""

    row: AtlasRow
    classifier: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    remark: str = ""
    failure: str = ""
    description: str = ""


def largest_eigenvalue_of(experiment: Experiment) -> float:
    """Largest eigenvalue of the covariance of at most 1,000 images of the source, in the units of its model (of its latents)."""
    source, forward = experiment.parts.source, experiment.parts.corruption.forward
    most = max(2, min(_MOST_IMAGES, _MOST_NUMBERS // int(np.prod(source.image_shape()))))
    number = min(most, source.count())
    return largest_eigenvalue(forward.clean(source.images_at(np.arange(number))[0])) if number > 1 else float("nan")


def numbers_of(row: AtlasRow, run: xr.Dataset, eigenvalue: float) -> list[Entry]:
    """The numbers of a finished run, an entry for each of its classifiers: the series of its network layers."""
    run_study = study(run)
    changes, about_changes = _of_changes(row, run_study)
    shared: dict[str, Any] = {**changes, "eigenvalue": eigenvalue}
    about_eigenvalue = ""
    if eigenvalue > 1:
        shared["speciation"] = -np.log(eigenvalue - 1)
    elif np.isnan(eigenvalue):
        about_eigenvalue = "a single image: no eigenvalue, no speciation"
    else:
        about_eigenvalue = "the largest eigenvalue is not above 1: no speciation"
    on_axis = run_study.sel(axis="log_snr")
    entries: list[Entry] = []
    for name in dict.fromkeys(map(str, run_study.variable.values)):
        if not name.endswith("similarity"):
            continue
        prefix, layers = name.removesuffix("similarity"), on_axis.isel(reading=run_study.variable.values == name)
        numbers: dict[str, Any] = {"half_life": layers.half_life.values}
        remarks = ["an encoder without classes: no t*, no calibration gap of the class"]
        if f"{prefix}same_class" in run_study.reading.values:
            of_class = on_axis.sel(reading=f"{prefix}same_class")
            gap, about_gap = _of_clones(of_class)
            numbers |= {"transition": of_class.half_life.values, "width": of_class.width.values, **gap}
            numbers |= {"chance": float(of_class.chance), "fall": of_class.place.sel(share=list(SHARES)).values}
            remarks = [str(of_class.remark.item()), about_gap]
        if name in run_study.get("series", ()):
            series = on_axis.sel(series=name)
            numbers["inversion"] = series.inversion.values
            remarks.append(str(series.series_remark.item()))
        probe, model = str(layers.probe.values[0]), str(layers.model.values[0])
        about = [*warnings_of(run_study.attrs), run_study.attrs["remark"], *remarks, about_changes, about_eigenvalue]
        entries.append(
            Entry(
                row,
                model if probe == "network_layers" else probe,
                {**numbers, **shared},
                [str(level) for level in layers.level.values],
                "; ".join(filter(None, about)),
                description=run_study.attrs["description"],
            )
        )
    if not entries:
        raise ValueError("the run has no similarity of network layers; expected one with a probe of type 'network_layers'")
    return entries


def _of_changes(row: AtlasRow, run_study: xr.Dataset) -> tuple[dict[str, Any], str]:
    """Largest chi, its log-SNR, and xi there in pixels; and the reason if they are missing or uncertain.

    Without a peak inside the measured range, the log-SNR is that of the level, without an interval.
    """
    if PATCHES not in run_study.get("changes", ()):
        return {}, "a single trajectory: no chi, no xi"
    changes = run_study.sel(changes=PATCHES, axis="log_snr")
    values: dict[str, Any] = {}
    if np.isfinite(changes.largest):
        k = int(changes.largest)
        at = changes.peak_at.values if np.isfinite(changes.peak_at[0]) else [float(changes.log_snr[k]), np.nan, np.nan]
        values |= {"chi": changes.chi.values[k], "chi_at": at, "xi": row.patch * changes.xi.values[k]}
        values |= {"chi_cross_fitted": float(changes.peak_cross_fitted), "chi_n_eff": float(changes.n_eff[k])}
    return values, str(changes.changes_remark.item())


def _of_clones(of_class: xr.Dataset) -> tuple[dict[str, Any], str]:
    """The calibration gap of the predicted class where its p-value is smallest; among equal p-values, the largest gap."""
    if "gap" not in of_class or not np.isfinite(of_class.gap_p).any():
        return {}, "a single clone: no calibration gap"
    k = np.lexsort((-np.abs(of_class.gap.values[:, 0]), of_class.gap_p.values))[0]  # NaN sort last
    return {"gap": of_class.gap.values[k], "gap_at": float(of_class.log_snr[k]), "gap_p": float(of_class.gap_p[k])}, ""


# --- tables ----------------------------------------------------------------------------------------------------------


def table_of(entries: Sequence[Entry]) -> xr.Dataset:
    """Entries as one dataset.

    Returns
    -------
    Dataset with the dim entry, one for each classifier of each row
        The numbers of `ESTIMATES` (entry, estimate), `estimate`: value, low, high; of `NUMBERS` (entry); `fall` (entry, share,
        estimate), log-SNR at a quarter and three quarters of the fall of the class; `half_life` (entry, network_layer, estimate),
        log-SNR at which the similarity of a layer has fallen by half. NaN if a number does not exist; `remark` gives the reason.
        Coordinates: `name`, `title`, `group`, `data`, `kind`, `classifier`, `description`, `remark`, `failure`, and `facts` as
        JSON; `layer` (entry, network_layer), "" beyond the last one.
    """
    import xarray as xr

    most = max([1, *(len(entry.layers) for entry in entries)])
    sizes = {"entry": len(entries), "estimate": 3, "share": len(SHARES), "network_layer": most}
    dims = {
        **{name: (("entry", "estimate"), long_name) for name, long_name in ESTIMATES.items()},
        **{name: (("entry",), long_name) for name, long_name in NUMBERS.items()},
        "fall": (("entry", "share", "estimate"), "log-SNR at shares of the fall of the class (nats)"),
        "half_life": (
            ("entry", "network_layer", "estimate"),
            "log-SNR at which half of the similarity of a layer is lost (nats)",
        ),
    }
    variables = {
        name: (of, np.full([sizes[dim] for dim in of], np.nan), {"long_name": long_name})
        for name, (of, long_name) in dims.items()
    }
    layers = np.full((len(entries), most), "", object)
    for k, entry in enumerate(entries):
        layers[k, : len(entry.layers)] = entry.layers
        for name, value in entry.values.items():
            target = variables[name][1]
            if name == "half_life":
                target[k, : len(entry.layers)] = value
            else:
                target[k] = value
    texts = {
        "name": [entry.row.name for entry in entries],
        "title": [entry.row.words for entry in entries],
        "group": [entry.row.group for entry in entries],
        "data": [str(entry.row.facts.get("data", entry.row.options.data)) for entry in entries],
        "kind": [str(entry.row.facts.get("kind", "")) for entry in entries],
        "facts": [json.dumps(entry.row.facts, ensure_ascii=False) for entry in entries],
        **{name: [getattr(entry, name) for entry in entries] for name in ("classifier", "description", "remark", "failure")},
    }
    return xr.Dataset(
        variables,
        coords={
            "share": list(SHARES),
            "estimate": list(ESTIMATE),
            "layer": (("entry", "network_layer"), layers.astype(str)),
            **{name: ("entry", np.array(values, str)) for name, values in texts.items()},
        },
    )


def to_csv(table: xr.Dataset) -> str:
    """The numbers as CSV, a line for each entry: numbers with `_low` and `_high`, half-lives of first and last layer, facts."""
    import pandas

    lines = []
    for entry, last in _entries(table):
        line: dict[str, Any] = {name: str(entry[name].item()) for name in ("name", "classifier")}
        estimates = {name: entry[name].values for name in ESTIMATES}
        estimates |= {"half_life_first": entry.half_life.values[0], "half_life_last": entry.half_life.values[last]}
        for name, values in estimates.items():
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
        line |= {name: float(entry[name]) for name in NUMBERS}
        line |= {name: str(entry[name].item()) for name in ("description", "remark", "failure")}
        line |= {f"fact_{name}": value for name, value in json.loads(entry.facts.item()).items()}
        lines.append(line)
    return csv_of(pandas.DataFrame(lines))


def summary(table: xr.Dataset) -> Iterator[Any]:
    """The numbers as a table for a terminal (rich), and the remarks as lines of text."""
    from rich.table import Table

    several = len(set(table.name.values.tolist())) < table.sizes["entry"]
    rows = Table(
        *("model", "class half lost, t*", "width", "half-life, first layer", "last layer", "last below first layer"),
        *("speciation", "chi, at", "xi (pixels)", "calibration gap (p)"),
        title="log-SNR (nats) with 95 % intervals; more noise is further below",
    )
    remarks = []
    for entry, last in _entries(table):
        title = str(entry.title.item())
        rows.add_row(
            title + (f", {entry.classifier.item()}" if several else ""),
            *map(_cell, (entry.transition, entry.width, entry.half_life[0], entry.half_life[last], entry.inversion)),
            _number(entry.speciation),
            f"{_cell(entry.chi)}, {_cell(entry.chi_at)}" if np.isfinite(entry.chi[0]) else "",
            _cell(entry.xi),
            f"{_cell(entry.gap)} ({float(entry.gap_p):.2g})" if np.isfinite(entry.gap[0]) else "",
        )
        if remark := f"failed: {entry.failure.item()}" if entry.failure.item() else entry.remark.item():
            remarks.append(f"{title}: {remark}")
    yield rows
    yield from remarks


def _entries(table: xr.Dataset) -> Iterator[tuple[xr.Dataset, int]]:
    """Each entry, and the number of its last layer."""
    for k in range(table.sizes["entry"]):
        entry = table.isel(entry=k)
        yield entry, max(sum(bool(str(layer)) for layer in entry.layer.values) - 1, 0)


def _number(value: Any) -> str:
    value = float(value)
    return "" if np.isnan(value) else f"{value:.3g}".replace("inf", "∞")


def _cell(values: Any) -> str:
    """A number with its interval; "" if it does not exist."""
    number = Estimate(*np.asarray(values, float).tolist())
    return _number(number.value) if np.isnan(number).any() else f"{number:.3g}".replace("inf", "∞")
