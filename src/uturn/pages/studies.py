"""Sections of a page for studies, stores of `uturn run`, and atlases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.pages.charts import chart, mark, number, numbers
from uturn.pages.pictures import grid, preview
from uturn.pages.trees import tree_of_store
from uturn.store.record import warnings_of
from uturn.studies import study_of
from uturn.studies.axes import axis_words, common_axis
from uturn.studies.curves import with_interval
from uturn.studies.headline import Headline, headline_of
from uturn.studies.records import sample
from uturn.studies.tables import (
    calibration_words,
    names_in_panel,
    panels_of,
    parts_of,
    remarks_on_readings,
    remarks_on_run,
    tested_families,
    title_of,
)

if TYPE_CHECKING:
    import xarray as xr

    from uturn.pages.collect import Reader

_MOST_TOKENS = 200_000  # of all texts and noise levels
_CHANGES = (  # variable, title and axis of charts of changes; {} is the unit of distance
    ("chi", "Susceptibility: number of {} that change together", "χ"),
    ("xi", "Correlation length of the changes", "ξ ({})"),
)
_FILES = ("study.json", "curves.csv", "numbers.csv", "study.pdf", "grid.pdf", "tokens.html", "tokens.pdf")


def study_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a file `study.zarr`, or of one of several studies in a folder."""
    data, folder = read.dataset(path), path.parent
    alone = path.name == "study.zarr"
    label = str(data.attrs.get("title", ""))
    name = (folder.resolve().name if alone and not read.alone else "") or (label if not alone else "study")
    one = _section(data, "study", name, read) | {"title": label or "Study"}
    if not alone:  # the charts of all studies together are shown
        one["charts"] = [of | {"shown": False} for of in one["charts"]]
        one["headlines"] = one["headlines"][:1]
    else:
        one["files"] = [folder / file for file in _FILES if (folder / file).exists()]
        for pdf in [file for file in one["files"] if file.suffix == ".pdf"]:
            if (png := pdf.with_suffix(".png")).exists():
                with read.part(png):
                    one["pictures"].append(preview(png, read.detail, png.stem))
    one["details"] = [{"name": name, **read.about(data.attrs, folder)}] if "spec" in data.attrs else []
    if "image" in data and data.sizes.get("shown_noise"):
        some = data.isel(item=sample(data.sizes["item"]))
        names = [str(item) for item in some.item_name.values]
        one["grid"] = grid(
            some.shown_noise.values, names, some.original.values, some.image.values, some.image_same_class.values, read.detail
        ) | {"of": int(data.attrs.get("items", data.sizes["item"])), "kept": int(data.attrs.get("kept", data.sizes["item"]))}
    if "original_piece" in data.coords:
        one["tokens"] = _tokens(data)
    run = folder / "run.zarr"
    if alone and (run / "node_belief").is_dir():
        with read.part(run):
            one["tree"] = tree_of_store(_opened(run))
    return one


def overlay_section(paths: list[Path], read: Reader) -> dict[str, Any]:
    """The section of several studies: a chart for each reading, a line for each study."""
    folder = paths[0].parent
    studies = {str(data.attrs.get("title", path.stem)): data for path in paths for data in [read.dataset(path)]}
    one = _empty("overlay", folder.resolve().name, "experiments") | {"title": f"{len(studies)} runs"}
    one["caption"] = "A chart for each reading, with a line for each run."
    one["files"] = [folder / file for file in _FILES if (folder / file).exists()]
    if (folder / "study.png").exists():
        with read.part(folder / "study.png"):
            one["pictures"].append(preview(folder / "study.png", read.detail, "study"))
    axis = common_axis(list(studies.values()))
    headlines = {
        name: of for name, data in studies.items() if (of := headline_of(data)) is not None and np.isfinite(of.place[0, 0])
    }
    places = {name: of.place[studies[name].axis.values.tolist().index(axis)] for name, of in headlines.items()}
    first = {headline.reading for headline in headlines.values()}
    rows = [(name, of.reading or "χ is largest", with_interval(places[name])) for name, of in headlines.items()]
    if rows:
        ends = [choose(places, key=lambda name: places[name][0]) for choose in (min, max)]
        one["words"] = f"t* goes from {' to '.join(f'{places[name][0]:.3g} ({name})' for name in ends)}."
        words = _unit(next(iter(studies.values()))) if axis == "noise" else axis.replace("_", " ")
        heads = ("run", "half-life of", f"{words} [95 % interval]")
        one["tables"] = [{"title": "t* of each run", "heads": heads, "rows": rows}]

    def add(title: str, values: xr.DataArray, y: str, shown: bool) -> None:
        name = f"overlay-{len(one['charts'])}"
        one["charts"].append(chart(name, title[:1].upper() + title[1:], values, axis, y=y, joined=True) | {"shown": shown})

    for label, part in _union(studies, "reading").items():
        values = _overlaid(studies, "curve", "reading", label, axis)
        add(title_of(part, label), values, str(part.unit.item()), label in first)
    for label, part in _union(studies, "changes").items():
        unit = str(part.unit_of_distance.item())
        for kind, title, y in _CHANGES:
            values = _overlaid(studies, kind, "changes", label, axis)
            add(title.format(unit), values, y.format(unit), kind == "chi" and "" in first)
    return _with_curves(one)


def _overlaid(studies: dict[str, xr.Dataset], kind: str, dim: str, label: str, axis: str) -> xr.DataArray:
    """One curve of each study that has it, (run, axis, estimate); NaN at levels of other studies."""
    import xarray as xr

    curves = {
        name: data[kind].sel({dim: label}) for name, data in studies.items() if label in data.get(dim, xr.DataArray([])).values
    }
    words = next(iter(curves.values()))[axis].attrs
    plain = []
    for curve in curves.values():
        by_axis = curve if axis == "noise" else curve.swap_dims(noise=axis)
        plain.append(by_axis.drop_vars([key for key in by_axis.coords if key not in (axis, "estimate")]).sortby(axis))
    both = xr.concat(plain, "run", join="outer", combine_attrs="drop").assign_coords(run=list(curves))
    both[axis].attrs = words
    return both


def _union(studies: dict[str, xr.Dataset], dim: str) -> dict[str, xr.Dataset]:
    """The labels that some studies have along a dim, each with the part, of size 1, of the first study that has it."""
    found: dict[str, xr.Dataset] = {}
    for data in studies.values():
        for k in range(data.sizes.get(dim, 0)):
            found.setdefault(str(data[dim].values[k]), data.isel({dim: [k]}))
    return found


def store_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a store of `uturn run`, which may be unfinished."""
    run = _opened(path)
    one = _section(study_of(run), "store", path.name, read) | {"title": f"Run {path.name}", "tree": tree_of_store(run)}
    return one | {"details": [{"name": path.name, **read.about(run.attrs, path)}]}


def _opened(path: Path) -> xr.Dataset:
    from uturn.store.record import Store

    return Store.open(path).dataset()


def _section(data: xr.Dataset, kind: str, name: str, read: Reader) -> dict[str, Any]:
    """What a page shows of any study: its numbers, tables, charts and remarks. The charts of the numbers are shown."""
    one = _empty(kind, name, "experiments")
    one["caption"] = str(data.attrs.get("description", ""))
    one["warnings"] = warnings_of(data.attrs)
    one["notes"] = [_calibration(family, tested) for family, tested in tested_families(data).items()] + remarks_on_run(data)
    one["remarks"] = remarks_on_readings(data)
    without = data.reading.values[np.isfinite(data.curve.sel(estimate="value").values).sum(1) < 2].tolist()
    if without:
        one["remarks"].append(f"{', '.join(without)}: no curve, since fewer than two noise levels have a value")
    most = max(data.sizes["reading"], 1)
    one["tables"] = [{"title": part.title, "heads": part.heads, "rows": part.rows} for part in parts_of(data, most)]
    headline = headline_of(data)
    found = [of for of in (headline, *_other_numbers(data, headline)) if of is not None and np.isfinite(of.place[0, 0])]
    marks = [_mark(of.label, of.place, data) for of in found if of is headline]
    if marks and headline is not None:
        one["words"] = f"{headline.label} = {with_interval(headline.place[0])}, {_unit(data)}. {headline.claim.rstrip('.')}."
    elif headline is not None:
        one["words"] = f"No {headline.label}: {headline.reading}, {data.remark.sel(reading=headline.reading).item()}."
    one["headlines"] = [
        {"label": of.label, "axis": _unit(data), "place": numbers(of.place[0]), "claim": of.claim} for of in found
    ]
    first = {of.reading for of in (headline, *found) if of is not None}  # "" for the peak of chi
    group = [str(data.group.sel(reading=headline.reading).item())] if headline is not None and headline.reading else []
    for k, (title, chosen) in enumerate(panels_of(data, group)):
        labels = data.reading.values[chosen].tolist()
        swaps = [_mark("order inverts", of.place, data) for of in found if of.reading in labels and of is not headline]
        one["charts"].append(_panel(data, k, title, chosen, marks + swaps) | {"shown": not first.isdisjoint(labels)})
    for k in range(data.sizes.get("changes", 0)):
        of, unit = data.isel(changes=k), str(data.unit_of_distance.values[k])
        peak = [_mark("χ is largest", of.peak_at.values, data)] if np.isfinite(of.peak_at.values[0, 0]) else marks
        for kind, words, y in _CHANGES:
            shown = kind == "chi" and "" in first
            one["charts"].append(
                chart(f"{kind}-{k}", words.format(unit), of[kind], "noise", peak, y=y.format(unit)) | {"shown": shown}
            )
    for k, (family, tested) in enumerate(tested_families(data).items()):
        names = names_in_panel(tested, np.arange(tested.sizes["reading"]))
        title = f"Calibration of {family.replace('_', ' ')}: 0 for draws from the posterior"
        one["charts"].append(chart(f"gap-{k}", title, _plain(tested.gap, names), "noise", y="gap E f(x0, x̂) - E f(x̂, x̂')"))
    return _with_curves(one)


def _with_curves(one: dict[str, Any]) -> dict[str, Any]:
    """The section without charts that have no curve; their titles differ, and at least one is shown."""
    one["charts"] = [of for of in one["charts"] if of["lines"]]
    titles = [of["title"] for of in one["charts"]]
    for of in one["charts"]:
        of["title"] += f" ({of['group']})" if titles.count(of["title"]) > 1 and of.get("group") else ""
    if one["charts"] and not any(of.get("shown") for of in one["charts"]):
        one["charts"][0]["shown"] = True
    return one


def _panel(data: xr.Dataset, k: int, group: str, chosen: np.ndarray, marks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart of the readings of a panel. That of one variable has its words as title."""
    words, units = (list(dict.fromkeys(data[key].values[chosen].tolist())) for key in ("words", "unit"))
    title = words[0] if len(words) == 1 and words[0] else group
    y = ", ".join(filter(None, units)) or ("share of U-turns" if group == "class" else "")
    values = _plain(data.curve.isel(reading=chosen), names_in_panel(data, chosen))
    return chart(f"readings-{k}", title[:1].upper() + title[1:], values, "noise", marks, y=y) | {"group": group}


def _plain(values: xr.DataArray, names: list[str]) -> xr.DataArray:
    """Curves of readings that have short names instead of all their coordinates."""
    return values.drop_vars([key for key, of in values.coords.items() if "reading" in of.dims]).assign_coords(reading=names)


def _other_numbers(data: xr.Dataset, headline: Headline | None) -> Iterator[Headline]:
    """Numbers of a study besides the first: where ordered levels swap, and where most sites change together."""
    for k in range(data.sizes.get("series", 0)):
        of = data.isel(series=k)
        name = str(of.series.item())
        levels = np.flatnonzero(data.variable.values == name.partition(",")[0])
        if not len(levels):  # too many to be studied one by one
            continue
        names = dict(zip(data.level.values[levels].tolist(), names_in_panel(data, levels), strict=True))
        last, first = (names.get(level, level) for level in (of["last"].item(), of["first"].item()))
        claim = "; ".join(filter(None, [f"There the curve of {last} falls below that of {first}", of.series_remark.item()]))
        label, reading = f"{name.replace('_', ' ')}: order inverts", str(data.reading.values[levels[0]])
        yield Headline(label, reading, of.inversion.values, claim)
    for k in range(data.sizes.get("changes", 0)):
        of = data.isel(changes=k)
        if headline is None or headline.reading:
            claim = f"There most {of.unit_of_distance.item()} change together: χ = {with_interval(of.peak.values)}"
            yield Headline("χ is largest", "", of.peak_at.values, claim)


def _calibration(family: str, tested: xr.Dataset) -> str:
    return f"calibration of {family.replace('_', ' ')}: {calibration_words(tested, float(tested.gap_level))}"


def _mark(label: str, place: np.ndarray, data: xr.Dataset) -> dict[str, Any]:
    return mark(label, {str(axis): place[k] for k, axis in enumerate(data.axis.values)})


def atlas_section(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of a folder of `uturn atlas`."""
    data = read.dataset(folder / "atlas.zarr")
    one = _empty("atlas", "atlas" if read.alone else folder.resolve().name or "atlas", "atlas")
    one |= {"title": "Atlas of models", "words": "Where models of images lose the class, on one axis of noise: log-SNR."}
    one["files"] = [folder / name for name in ("atlas.csv", "atlas.pdf") if (folder / name).exists()]
    if (folder / "atlas.png").exists():
        with read.part(folder / "atlas.png"):
            one["pictures"].append(preview(folder / "atlas.png", read.detail, "atlas"))
    names = [str(title) for title in data.title.values]
    several = len(set(names)) < len(names)
    titles = [f"{name}, {data.classifier.values[k]}" if several else name for k, name in enumerate(names)]
    rows: list[dict[str, Any]] = []
    for k, title in enumerate(titles):
        of = data.isel(entry=k)
        failure = str(of.failure.item())
        rows.append(
            {
                "name": title,
                "group": str(of.group.item()),
                "place": numbers(of.transition.values),
                "width": numbers(of.width.values),
                "fall": numbers(of.fall.sel(estimate="value").values),
                "inversion": number(of.inversion.values[0]),
                "speciation": number(of.speciation),
                "remark": f"failed: {failure}" if failure else str(of.remark.item()),
            }
        )
    one["rows"] = rows
    places = [row["place"][0] for row in rows if row["place"][0] is not None]
    if places:
        middle, ends = number(np.median(places)), [number(min(places)), number(max(places))]
        claim = f"The median and the range over {len(places)} models of where half of the class is lost."
        one["headlines"].append(
            {"label": "t*", "axis": "log-SNR (nats)", "place": [middle, *ends], "claim": claim, "range": True}
        )
    return one


# --- parts -----------------------------------------------------------------------------------------------------------


def _empty(kind: str, name: str, docs: str) -> dict[str, Any]:
    return {
        "id": "".join(c if c.isalnum() else "-" for c in name),
        "kind": kind,
        "short": name,
        "docs": docs,
        "words": "",
        "caption": "",
        "headlines": [],
        "tables": [],
        "verdicts": [],
        "charts": [],
        "files": [],
        "pictures": [],
        "details": [],
        "notes": [],
        "warnings": [],
        "remarks": [],
    }


def _unit(data: xr.Dataset) -> str:
    return axis_words(data).replace("epsilon", "ε")


def _tokens(data: xr.Dataset) -> dict[str, Any]:
    """Texts token by token: the original, and for every noise level the tokens, which were noised, and which changed."""
    from uturn.studies.plotting.tokens import blocks

    most = max(_MOST_TOKENS // max(data.sizes["position"] * (data.sizes["shown_noise"] + 1), 1), 1)
    shown = list(blocks(data, most_items=min(most, 200)))
    return {
        "noise": numbers(data.shown_noise.values),
        "of": int(data.attrs.get("items", data.sizes["shown_item"])),
        "items": [
            {
                "name": f"text {item}",
                "original": [token.text for token in rows[0].tokens],
                "levels": [
                    {
                        "tokens": [token.text for token in row.tokens],
                        "marks": "".join("c" if token.changed else "n" if token.noised else "." for token in row.tokens),
                    }
                    for row in rows[1:]
                ],
            }
            for item, rows in shown
        ],
    }
