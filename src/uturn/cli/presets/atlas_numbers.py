"""The numbers of the rows of an atlas, on the axis log-SNR (nats), and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.cli.presets.atlas_rows import PATCHES, AtlasRow
from uturn.measures.cloning import largest_eigenvalue
from uturn.measures.statistics import Estimate
from uturn.store.record import warnings_of
from uturn.studies import study
from uturn.studies.curves import ESTIMATE

if TYPE_CHECKING:
    import xarray as xr

    from uturn.core.experiment import Experiment

ESTIMATES = {
    "transition": "log-SNR at which half of the class is lost, t* (nats)",
    "width": "log-SNR between a quarter and three quarters of its fall (nats)",
    "inversion": "log-SNR below which the last layer is less similar than the first (nats)",
    "chi": "largest susceptibility as found: number of patches that change together",
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
_MOST_IMAGES, _MOST_NUMBERS = 1000, 2**27  # of which a covariance is computed


SHARES = (0.25, 0.75)  # of the fall of the class


@dataclass
class Entry:
    """What one classifier says about a row, or the failure of the row."""

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
    wanted = max(2, min(_MOST_IMAGES, _MOST_NUMBERS // int(np.prod(source.image_shape()))))
    number = min(wanted, source.count() - len(source.skipped(wanted)))
    return largest_eigenvalue(forward.clean(source.images_at(np.arange(number))[0])) if number > 1 else float("nan")


def numbers_of(row: AtlasRow, run: xr.Dataset, eigenvalue: float) -> list[Entry]:
    """The numbers of a finished run, an entry for each of its classifiers: the series of its network layers."""
    found = study(run)
    changes, about_changes = _of_changes(row, found)
    values: dict[str, Any] = {**changes, "eigenvalue": eigenvalue}
    if eigenvalue > 1:
        values["speciation"] = -np.log(eigenvalue - 1)
    about_eigenvalue = "" if eigenvalue > 1 else "the largest eigenvalue is not above 1: no speciation"
    shared = [about_changes, "a single image: no eigenvalue, no speciation" if np.isnan(eigenvalue) else about_eigenvalue]
    on_axis = found.sel(axis="log_snr")
    entries: list[Entry] = []
    for name in dict.fromkeys(map(str, found.variable.values)):
        if not name.endswith("similarity"):
            continue
        prefix, layers = name.removesuffix("similarity"), on_axis.isel(reading=found.variable.values == name)
        numbers: dict[str, Any] = {"half_life": layers.half_life.values}
        remarks = ["an encoder without classes: no t*, no calibration gap of the class"]
        if f"{prefix}same_class" in found.reading.values:
            one = on_axis.sel(reading=f"{prefix}same_class")
            gap, about_gap = _of_clones(one)
            numbers |= {"transition": one.half_life.values, "width": one.width.values, "chance": float(one.chance), **gap}
            numbers["fall"] = one.place.sel(share=list(SHARES)).values
            remarks = [str(one.remark.item()), about_gap]
        if name in found.get("series", ()):
            series = on_axis.sel(series=name)
            numbers["inversion"] = series.inversion.values
            remarks.append(str(series.series_remark.item()))
        probe, model = str(layers.probe.values[0]), str(layers.model.values[0])
        remark = "; ".join(filter(None, [*warnings_of(found.attrs), found.attrs["remark"], *remarks, *shared]))
        entries.append(
            Entry(
                row,
                model if probe == "network_layers" else probe,
                {**numbers, **values},
                [str(level) for level in layers.level.values],
                remark,
                description=found.attrs["description"],
            )
        )
    if not entries:
        raise ValueError("the run has no similarity of network layers; expected one with a probe of type 'network_layers'")
    return entries


def _of_changes(row: AtlasRow, found: xr.Dataset) -> tuple[dict[str, Any], str]:
    """Largest chi, its log-SNR, and xi there in pixels; and why they are missing, no peak, or not sure.

    Without a peak inside the measured range, the log-SNR is that of the level, without an interval.
    """
    if PATCHES not in found.get("changes", ()):
        return {}, "a single trajectory: no chi, no xi"
    one = found.sel(changes=PATCHES, axis="log_snr")
    values: dict[str, Any] = {}
    if np.isfinite(one.largest):
        k = int(one.largest)
        at = one.peak_at.values if np.isfinite(one.peak_at[0]) else [float(one.log_snr[k]), np.nan, np.nan]
        values |= {"chi": one.chi.values[k], "chi_at": at, "xi": row.patch * one.xi.values[k]}
        values |= {"chi_cross_fitted": float(one.peak_cross_fitted), "chi_n_eff": float(one.n_eff[k])}
    return values, str(one.changes_remark.item())


def _of_clones(one: xr.Dataset) -> tuple[dict[str, Any], str]:
    """The calibration gap of the predicted class, where its p-value is smallest; of equal ones, where the gap is largest."""
    if "gap" not in one or not np.isfinite(one.gap_p).any():
        return {}, "a single clone: no calibration gap"
    k = np.lexsort((-np.abs(one.gap.values[:, 0]), one.gap_p.values))[0]  # NaN come last
    return {"gap": one.gap.values[k], "gap_at": float(one.log_snr[k]), "gap_p": float(one.gap_p[k])}, ""


# --- tables ----------------------------------------------------------------------------------------------------------


def table_of(entries: Sequence[Entry]) -> xr.Dataset:
    """Entries as one dataset.

    Returns
    -------
    Dataset with the dim entry, one for each classifier of each row
        The numbers of `ESTIMATES` (entry, estimate), `estimate`: value, low, high; of `NUMBERS` (entry); `fall` (entry, share,
        estimate), log-SNR at a quarter and three quarters of the fall of the class; `half_life` (entry, network_layer, estimate),
        log-SNR at which the similarity of a layer has done half of its fall. NaN where a number does not exist, for the reason in
        `remark`. Coordinates: `name`, `title`, `group`, `data`, `kind`, `classifier`, `description`, `remark`, `failure`, and
        `facts` as JSON; `layer` (entry, network_layer), "" beyond the last one.
    """
    import xarray as xr

    count, most = len(entries), max([1, *(len(entry.layers) for entry in entries)])
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray, str]] = {
        **{name: (("entry", "estimate"), np.full((count, 3), np.nan), words) for name, words in ESTIMATES.items()},
        **{name: (("entry",), np.full(count, np.nan), words) for name, words in NUMBERS.items()},
        "fall": (
            ("entry", "share", "estimate"),
            np.full((count, len(SHARES), 3), np.nan),
            "log-SNR at shares of the fall of the class (nats)",
        ),
        "half_life": (
            ("entry", "network_layer", "estimate"),
            np.full((count, most, 3), np.nan),
            "log-SNR at which half of the similarity of a layer is lost (nats)",
        ),
    }
    layers = np.full((count, most), "", object)
    for k, entry in enumerate(entries):
        layers[k, : len(entry.layers)] = entry.layers
        for name, value in entry.values.items():
            target = arrays[name][1]
            if name == "half_life":
                target[k, : len(entry.layers)] = value[: len(entry.layers)]
            else:
                target[k] = value
    texts = {
        "name": [entry.row.name for entry in entries],
        "title": [entry.row.words for entry in entries],
        "group": [entry.row.group for entry in entries],
        "data": [str(entry.row.facts.get("data", entry.row.options.data)) for entry in entries],
        "kind": [str(entry.row.facts.get("kind", "")) for entry in entries],
        "classifier": [entry.classifier for entry in entries],
        "description": [entry.description for entry in entries],
        "remark": [entry.remark for entry in entries],
        "failure": [entry.failure for entry in entries],
        "facts": [json.dumps(entry.row.facts, ensure_ascii=False) for entry in entries],
    }
    return xr.Dataset(
        {name: (dims, values, {"long_name": words}) for name, (dims, values, words) in arrays.items()},
        coords={
            "share": list(SHARES),
            "estimate": list(ESTIMATE),
            "layer": (("entry", "network_layer"), layers.astype(str)),
            **{name: ("entry", np.array(values, str)) for name, values in texts.items()},
        },
    )


def to_csv(found: xr.Dataset) -> str:
    """The numbers as CSV, a line for each entry: numbers with `_low` and `_high`, half-lives of first and last layer, facts."""
    import pandas

    lines = []
    for k in range(found.sizes["entry"]):
        one = found.isel(entry=k)
        line: dict[str, Any] = {name: str(one[name].item()) for name in ("name", "classifier")}
        layers = [str(layer) for layer in one.layer.values if str(layer)]
        ends = {"half_life_first": 0, "half_life_last": max(len(layers) - 1, 0)}
        estimates = {name: one[name].values for name in ESTIMATES}
        estimates |= {name: one.half_life.values[layer] for name, layer in ends.items()}
        for name, values in estimates.items():
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
        line |= {name: float(one[name]) for name in NUMBERS}
        line |= {name: str(one[name].item()) for name in ("description", "remark", "failure")}
        line |= {f"fact_{name}": value for name, value in json.loads(one.facts.item()).items()}
        lines.append(line)
    return pandas.DataFrame(lines).to_csv(index=False)


def summary(found: xr.Dataset) -> Iterator[Any]:
    """The numbers as a table for a terminal (rich), and the remarks as lines of text."""
    from rich.table import Table

    several = len(set(found.name.values.tolist())) < found.sizes["entry"]
    table = Table(title="log-SNR (nats) with 95 % intervals; more noise is further below", title_justify="left")
    for heading in (
        *("model", "class half lost, t*", "width", "half-life, first layer", "last layer", "last below first layer"),
        *("speciation", "chi, at", "xi (pixels)", "calibration gap (p)"),
    ):
        table.add_column(heading, overflow="fold")
    for k in range(found.sizes["entry"]):
        one = found.isel(entry=k)
        last = max(sum(bool(str(layer)) for layer in one.layer.values) - 1, 0)
        table.add_row(
            str(one.title.item()) + (f", {one.classifier.item()}" if several else ""),
            *map(_cell, (one.transition, one.width, one.half_life[0], one.half_life[last], one.inversion)),
            _number(one.speciation),
            f"{_cell(one.chi)}, {_cell(one.chi_at)}" if np.isfinite(one.chi[0]) else "",
            _cell(one.xi),
            f"{_cell(one.gap)} ({float(one.gap_p):.2g})" if np.isfinite(one.gap[0]) else "",
        )
    yield table
    for k in range(found.sizes["entry"]):
        one = found.isel(entry=k)
        words = f"failed: {one.failure.item()}" if one.failure.item() else one.remark.item()
        if words:
            yield f"{one.title.item()}: {words}"


def listed(rows: Sequence[AtlasRow]) -> Any:
    """The rows and the facts about them as a table for a terminal (rich)."""
    from rich.table import Table

    facts = list(dict.fromkeys(name for row in rows for name in row.facts))
    table = Table(title="rows of the atlas", title_justify="left")
    for heading in ("name", "model", "scheduler, steps", "U-turns", *(name.replace("_", " ") for name in facts)):
        table.add_column(heading, overflow="fold")
    for row in rows:
        options = row.options
        levels = options.levels if isinstance(options.levels, int) else len(options.levels)
        u_turns = options.items * options.trajectories * options.clones * levels
        cells = (row.name, Path(options.model).name, f"{options.scheduler}, {options.steps}", f"{u_turns:,}")
        table.add_row(*cells, *(str(row.facts.get(name, "")) for name in facts))
    return table


def _number(value: Any) -> str:
    value = float(value)
    return "" if np.isnan(value) else f"{value:.3g}".replace("inf", "∞")


def _cell(values: Any) -> str:
    """A number with its interval; "" if it does not exist."""
    number = Estimate(*np.asarray(values, float).tolist())
    return _number(number.value) if np.isnan(number).any() else f"{number:.3g}".replace("inf", "∞")
