"""Sections of a page for studies, stores of `uturn run`, and searches of a place (`--until`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.measures.estimates import Estimate, with_interval
from uturn.pages.charts import chart, mark, numbers, with_curves
from uturn.pages.pictures import grid
from uturn.pages.sections import Reader, card, checked_table, existing, new_section
from uturn.pages.tokens import blocks
from uturn.pages.trees import tree_of_store
from uturn.store.run_file import NAME, RunFile
from uturn.store.run_folder import warnings_of
from uturn.studies import study_of
from uturn.studies.axes import axis_words, common_axis, is_geometric
from uturn.studies.charts import Chart, charts_of, numbers_of, overlaid
from uturn.studies.headline import PEAK, Headline, headline_of
from uturn.studies.records import sample
from uturn.studies.runs import label
from uturn.studies.tables import (
    calibration_words,
    parts_of,
    remarks_on_readings,
    remarks_on_run,
    tested_families,
)

LOCATED = "located.json"  # the numbers of a search
_MOST_TOKENS = 200_000  # tokens of all texts and noise levels
# Tokens of a text at all noise levels; a few kilobytes may promise any number.
_LONGEST_TEXT = 2**20
_FILES = ("curves.csv", "numbers.csv", "items.csv", "study.pdf", "grid.pdf", "tokens.html")


def study_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a dataset `study.zarr`, or of one of several studies in a folder."""
    data, folder = read.dataset(path), path.parent
    alone = path.name == "study.zarr"
    label = str(data.attrs.get("title", ""))
    name = (folder.resolve().name if alone and not read.alone else "") or (
        label if not alone else "study"
    )
    section = _section(data, "study", name, label or "Study")
    if alone:
        section["covers"], section["files"] = "run", existing(folder, _FILES)
        for file in section["files"]:
            if file.suffix == ".pdf":
                read.add_picture(section, file.with_suffix(".png"), file.stem)
    else:  # the charts that overlay all studies are shown instead
        section["charts"] = [chart | {"shown": False} for chart in section["charts"]]
        section["headlines"] = section["headlines"][:1]
        if (folder / LOCATED).exists():
            section |= {
                "headlines": [],
                "words": "A run of a search, whose place is that of all its runs together.",
            }
    if "spec" in data.attrs:
        section["details"].append(read.details(name, data.attrs, folder))
    if "image" in data and data.sizes.get("shown_noise"):
        some = data.isel(item=sample(data.sizes["item"]))
        pictures = (some.original.values, some.image.values, some.image_same_class.values)
        names, half_lives = list(map(str, some.item_name.values)), some.coords.get("item_half_life")
        counts = {
            key: int(data.attrs.get(name, data.sizes["item"]))
            for key, name in (("of", "items"), ("kept", "kept"))
        }
        section["grid"] = grid(some.shown_noise.values, names, *pictures, half_lives) | counts
    if "original_piece" in data.coords:
        with read.noting(path):
            section["tokens"] = _tokens(data)
    run = folder / "run"
    if alone and (run / NAME).is_file():
        with read.noting(run):
            if "node_belief" in RunFile.parsed(read.content(run / NAME)).variables:
                section["tree"] = tree_of_store(read.run(run))
    return section


def numbered(folder: Path) -> list[Path]:
    """The datasets `study-1.zarr`, `study-2.zarr`, .. of several studies in a folder."""
    return sorted(folder.glob("study-*.zarr"), key=lambda path: (len(path.name), path.name))


def overlay_section(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of the studies `study-N.zarr` of a folder: a chart for each reading, a line
    for each study.
    """
    studies = {
        str(data.attrs.get("title", path.stem)): data
        for path in numbered(folder)
        for data in [read.dataset(path)]
    }
    section = new_section("overlay", folder.resolve().name, "experiments", f"{len(studies)} runs")
    section["pictures_first"] = True
    section["caption"] = "A chart for each reading, with a line for each run."
    section["files"] = existing(folder, _FILES)
    read.add_picture(section, folder / "study.png", "study")
    axis = common_axis(list(studies.values()))
    marks: list[Headline] = []
    axes = None
    with suppress(Exception):  # there is no search, or its own section names the damage
        search = json.loads(read.content(folder / LOCATED))
        marks, axes = located_place(search), list(search["axes"])
    places = {}
    # The runs of a search give one place together.
    for name, data in studies.items() if axes is None else ():
        for headline in numbers_of(data)[:1]:
            places[name] = headline, headline.place[data.axis.values.tolist().index(axis)]
    if places:
        ends = dict.fromkeys(
            choose(places, key=lambda name: places[name][1][0]) for choose in (min, max)
        )
        labels = {headline.label for headline, _ in places.values()}
        label, verb = (
            labels.pop() if len(labels) == 1 else "half-life",
            ("goes from" if len(ends) > 1 else "is"),
        )
        section["words"] = (
            f"{label} {verb} {' to '.join(f'{places[name][1][0]:.3g} ({name})' for name in ends)}."
        )
        words = _unit(next(iter(studies.values()))) if axis == "noise" else axis.replace("_", " ")
        heads = ("run", "half-life of", f"{words} [95 % interval]")
        rows = [
            (name, of.reading or PEAK, with_interval(place)) for name, (of, place) in places.items()
        ]
        section["tables"] = [{"title": f"{label} of each run", "heads": heads, "rows": rows}]
    if (folder / "difference.json").exists():
        with read.noting(folder / "difference.json"):
            table = json.loads(read.content(folder / "difference.json"))["table"]
            section["tables"].append(checked_table(table))
        section["files"] += existing(
            folder, ("difference.json", "difference.csv", "difference.pdf")
        )
        read.add_picture(section, folder / "difference.png", "difference")
    section["charts"] = _charts(overlaid(studies, marks), axes or [])
    return section


def located_place(numbers: Mapping[str, Any] | None) -> list[Headline]:
    """The place that a search has located; empty if there is none."""
    if not numbers or not numbers["axes"]:
        return []
    reading, way = (
        numbers["reading"],
        ("half" if numbers["share"] == 0.5 else f"{numbers['share']:g}"),
    )
    label = "located half-life" if way == "half" else f"located {way} of the way"
    claim = (
        f"By all runs of the search, {reading} has gone {way} of the way from its start to chance"
        " at this noise"
    )
    # An infinite end, such as log-SNR without noise, is null in JSON.
    places = np.array(list(numbers["axes"].values()), float)
    return [Headline(label, reading, places, claim)]


def located_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a search, the first of its page."""
    numbers = json.loads(read.content(path))
    section = new_section(
        "located", "located", "precision", f"Search of a place of {numbers['reading']}"
    )
    section["caption"] = f"The interval was to be at most {numbers['wanted']:g} wide."
    # The stores of its runs, which have studies.
    section["covers"], section["files"] = "*", [path]
    section["words"] = numbers["remark"][:1].upper() + numbers["remark"][1:]
    for name, reading, place, claim in located_place(numbers):
        levels = ", ".join(f"{level:.4g}" for level in numbers["levels"])
        width = (
            f"{numbers['width']:.3g},"
            f" {'as narrow as wanted' if numbers['reached'] else 'wider than wanted'}"
        )
        section["headlines"] = [card(f"{name} of {reading}", numbers["unit"], place[0], claim)]
        found = f"The {name} of {reading} is {Estimate(*place[0])!r}, {numbers['unit']}. {claim}."
        section["words"] = f"{found} {section['words']}".strip()
        section["caption"] += (
            f" It is {width}, with up to {numbers['items']} originals at each of {levels}."
        )
        rows = [
            (axis, repr(Estimate(*at))) for axis, at in zip(numbers["axes"], place, strict=True)
        ]
        section["overview"] = {
            "title": f"{name} of {reading}",
            "heads": ("axis", "place [95 % interval]"),
            "rows": rows,
        }
    return section


def store_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a store of `uturn run`, which may be unfinished."""
    run = read.run(path)
    section = _section(study_of(run), "store", path.name, f"Run {path.name}")
    return section | {
        "tree": tree_of_store(run),
        "details": [read.details(path.name, run.attrs, path)],
    }


def _section(data: xr.Dataset, kind: str, name: str, title: str) -> dict[str, Any]:
    """The section of any study: headline numbers, tables, charts and remarks. Only charts with
    these numbers start unfolded.
    """
    section = new_section(kind, name, "experiments", title)
    section["caption"] = label(data.attrs.get("description", ""), 500)
    section["warnings"] = warnings_of(data.attrs)
    for family, tested in tested_families(data).items():
        words = calibration_words(tested, float(tested.gap_level))
        section["notes"].append(f"calibration of {family.replace('_', ' ')}: {words}")
    section["notes"] += remarks_on_run(data)
    section["remarks"] = remarks_on_readings(data)
    without = data.reading.values[
        np.isfinite(data.curve.sel(estimate="value").values).sum(1) < 2
    ].tolist()
    if without:
        section["remarks"].append(
            f"{', '.join(without)}: no curve, since fewer than two noise levels have a value"
        )
    section["tables"] = [table._asdict() for table in parts_of(data, max(data.sizes["reading"], 1))]
    first = headline_of(data)
    if first is not None and np.isfinite(first.place[0, 0]):
        section["words"] = (
            f"{first.label} = {with_interval(first.place[0])}, {_unit(data)}."
            f" {first.claim.rstrip('.')}."
        )
    elif first is not None:
        remark = str(data.remark.sel(reading=first.reading).item())
        section["words"] = f"No {first.label}: {', '.join(filter(None, [first.reading, remark]))}."
    section["headlines"] = [
        card(number.label, _unit(data), number.place[0], number.claim)
        for number in numbers_of(data)
    ]
    group = (
        []
        if first is None or not first.reading
        else [str(data.group.sel(reading=first.reading).item())]
    )
    section["charts"] = _charts(charts_of(data, group), data.axis.values.tolist())
    return section


def _charts(charts: Iterable[Chart], axes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Charts that have curves, as plain data; at least one of them is shown."""
    made = []
    for one in charts:
        marks = [mark(each.label, dict(zip(axes, each.place, strict=False))) for each in one.marks]
        look = {"y": one.unit, "joined": one.joined, "shown": one.shown, "group": one.title}
        made.append(
            chart(
                one.name,
                one.words or one.title,
                one.curves,
                str(one.curves.dims[1]),
                marks,
                one.theory,
                **look,
            )
        )
    made = with_curves(made)
    if made and not any(one["shown"] for one in made):
        made[0]["shown"] = True
    return made


def _unit(data: xr.Dataset) -> str:
    return axis_words(data).replace("epsilon", "ε")


def _tokens(data: xr.Dataset) -> dict[str, Any]:
    """Texts token by token: the originals, and at every noise level the tokens with marks for
    noised and changed ones.
    """
    length = data.sizes["position"] * (data.sizes["shown_noise"] + 1)
    expect(
        length <= _LONGEST_TEXT,
        "tokens of a text at all noise levels",
        length,
        f"at most {_LONGEST_TEXT} for a page",
    )
    most = max(_MOST_TOKENS // max(length, 1), 1)
    items = []
    for item, (original, *reconstructions) in blocks(data, most_items=min(most, 200)):
        of_rows = [
            ("c" if token.changed else "n" if token.noised else "." for token in row.tokens)
            for row in reconstructions
        ]
        rows = zip(reconstructions, map("".join, of_rows), strict=True)
        levels = [
            {"tokens": [token.text for token in row.tokens], "marks": marks} for row, marks in rows
        ]
        items.append(
            {
                "name": f"text {item}",
                "original": [token.text for token in original.tokens],
                "levels": levels,
            }
        )
    noise, count = data.shown_noise.values, int(data.attrs.get("items", data.sizes["shown_item"]))
    return {"noise": numbers(noise), "log": is_geometric(noise), "of": count, "items": items}
