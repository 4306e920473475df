"""Sections of a page for studies, stores of `uturn run`, and atlases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.files import check_plain
from uturn.pages.charts import chart, mark, number, numbers, with_curves
from uturn.pages.pictures import grid
from uturn.pages.sections import card, new_section
from uturn.pages.tokens import blocks
from uturn.pages.trees import tree_of_store
from uturn.store.record import warnings_of
from uturn.studies import study_of
from uturn.studies.axes import axis_words, common_axis, is_geometric
from uturn.studies.curves import ESTIMATE, with_interval
from uturn.studies.difference import MOST_LEVELS, MOST_NOISES
from uturn.studies.headline import PEAK, Headline, headline_of
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.records import sample
from uturn.studies.runs import label
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

    from uturn.pages.sections import Reader

_MOST_TOKENS = 200_000  # tokens of all texts and noise levels
_CHANGES = (  # variable, title and axis of charts of changes; {} is the unit of distance
    ("chi", "Susceptibility: number of {} that change together", "χ"),
    ("xi", "Correlation length of the changes", "ξ ({})"),
)
_FILES = ("curves.csv", "numbers.csv", "items.csv", "study.pdf", "grid.pdf", "tokens.html")


def study_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a dataset `study.zarr`, or of one of several studies in a folder."""
    data, folder = read.dataset(path), path.parent
    alone = path.name == "study.zarr"
    label = str(data.attrs.get("title", ""))
    name = (folder.resolve().name if alone and not read.alone else "") or (label if not alone else "study")
    section = _section(data, "study", name, label or "Study")
    if alone:
        section["files"] = _there(folder, _FILES)
        for file in section["files"]:
            if file.suffix == ".pdf":
                read.add_picture(section, file.with_suffix(".png"), file.stem)
    else:  # the charts that overlay all studies are shown instead
        section["charts"] = [chart | {"shown": False} for chart in section["charts"]]
        section["headlines"] = section["headlines"][:1]
    if "spec" in data.attrs:
        section["details"].append(read.details(name, data.attrs, folder))
    if "image" in data and data.sizes.get("shown_noise"):
        some = data.isel(item=sample(data.sizes["item"]))
        names = [str(item) for item in some.item_name.values]
        pictures = (some.original.values, some.image.values, some.image_same_class.values)
        half_lives = some.coords.get("item_half_life")
        counts = {"of": data.attrs.get("items", data.sizes["item"]), "kept": data.attrs.get("kept", data.sizes["item"])}
        section["grid"] = grid(some.shown_noise.values, names, *pictures, half_lives)
        section["grid"] |= {key: int(count) for key, count in counts.items()}
    if "original_piece" in data.coords:
        section["tokens"] = _tokens(data)
    run = folder / "run.zarr"
    if alone and (run / "node_belief").is_dir():
        with read.noting(run):
            section["tree"] = tree_of_store(read.run(run))
    return section


def _there(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def numbered(folder: Path) -> list[Path]:
    """The datasets `study-1.zarr`, `study-2.zarr`, .. of several studies in a folder."""
    return sorted(folder.glob("study-*.zarr"), key=lambda path: (len(path.name), path.name))


def overlay_section(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of the studies `study-N.zarr` of a folder: a chart for each reading, a line for each study."""
    studies = {str(data.attrs.get("title", path.stem)): data for path in numbered(folder) for data in [read.dataset(path)]}
    section = new_section("overlay", folder.resolve().name, "experiments", f"{len(studies)} runs")
    section["caption"] = "A chart for each reading, with a line for each run."
    section["files"] = _there(folder, _FILES)
    read.add_picture(section, folder / "study.png", "study")
    axis = common_axis(list(studies.values()))
    headlines = {
        name: headline
        for name, data in studies.items()
        if (headline := headline_of(data)) is not None and np.isfinite(headline.place[0, 0])
    }
    places = {name: headline.place[studies[name].axis.values.tolist().index(axis)] for name, headline in headlines.items()}
    first = {headline.reading for headline in headlines.values()}
    if headlines:
        ends = dict.fromkeys(choose(places, key=lambda name: places[name][0]) for choose in (min, max))
        labels = list(dict.fromkeys(headline.label for headline in headlines.values()))
        label, verb = labels[0] if len(labels) == 1 else "half-life", "goes from" if len(ends) > 1 else "is"
        section["words"] = f"{label} {verb} {' to '.join(f'{places[name][0]:.3g} ({name})' for name in ends)}."
        words = _unit(next(iter(studies.values()))) if axis == "noise" else axis.replace("_", " ")
        heads = ("run", "half-life of", f"{words} [95 % interval]")
        rows = [(name, headlines[name].reading or PEAK, with_interval(place)) for name, place in places.items()]
        section["tables"] = [{"title": f"{label} of each run", "heads": heads, "rows": rows}]
    if (folder / "difference.json").exists():
        with read.noting(folder / "difference.json"):
            check_plain(folder / "difference.json")
            section["tables"].append(_difference((folder / "difference.json").read_bytes(), next(iter(studies.values()))))
        section["files"] += _there(folder, ("difference.json", "difference.csv", "difference.pdf"))
        read.add_picture(section, folder / "difference.png", "difference")
    charts: list[dict[str, Any]] = []

    def add(title: str, kind: str, dim: str, label: str, y: str, shown: bool) -> None:
        values = _overlaid(studies, kind, dim, label, axis)
        charts.append(chart(f"overlay-{len(charts)}", title, values, axis, y=y, joined=True, shown=shown))

    for label, part in _union(studies, "reading").items():
        add(title_of(part, label), "curve", "reading", label, str(part.unit.item()), label in first)
    for label, part in _union(studies, "changes").items():
        unit = str(part.unit_of_distance.item())
        for kind, title, y in _CHANGES:
            add(title.format(unit), kind, "changes", label, y.format(unit), kind == "chi" and "" in first)
    section["charts"] = _one_shown(charts)
    return section


def _difference(content: bytes, study: xr.Dataset) -> dict[str, Any]:
    """The table of `difference.json`, with some levels of each variable and some noise levels."""
    numbers_of: dict[str, Any] = json.loads(content)
    noise, readings, rows = numbers_of["noise"], numbers_of["readings"], []
    at = evenly_spaced(len(noise), MOST_NOISES)
    by_variable = [[of for of in readings if of["variable"] == name] for name in dict.fromkeys(of["variable"] for of in readings)]

    def cell(estimate: dict[str, float | None]) -> str:
        return with_interval([np.nan if estimate[key] is None else estimate[key] for key in ESTIMATE])

    for of in (some[k] for some in by_variable for k in evenly_spaced(len(some), MOST_LEVELS)):
        places = (*of["half_lives"].values(), of["half_life"])
        curve = [cell(of["curve"][k]) for k in at]
        rows.append((of["reading"], of["originals"], *(cell(place["noise"]) for place in places), *curve))
    heads = ["reading", "originals", "half-life, first", "second", "difference [95 % interval]"]
    heads += [f"at {axis_words(study)} = {'infinite' if noise[k] is None else f'{noise[k]:.3g}'}" for k in at]
    return {"title": f"{numbers_of['difference']}, paired over originals", "heads": heads, "rows": rows}


def _overlaid(studies: dict[str, xr.Dataset], kind: str, dim: str, label: str, axis: str) -> xr.DataArray:
    """One curve from each study that has it, (run, axis, estimate); NaN at levels measured only in other studies."""
    import xarray as xr

    curves = {
        name: data[kind].sel({dim: label}) for name, data in studies.items() if label in data.get(dim, xr.DataArray([])).values
    }
    attributes = next(iter(curves.values()))[axis].attrs
    plain = []
    for curve in curves.values():
        by_axis = curve if axis == "noise" else curve.swap_dims(noise=axis)
        plain.append(by_axis.drop_vars([key for key in by_axis.coords if key not in (axis, "estimate")]).sortby(axis))
    both = xr.concat(plain, "run", join="outer", combine_attrs="drop").assign_coords(run=list(curves))
    both[axis].attrs = attributes
    return both


def _union(studies: dict[str, xr.Dataset], dim: str) -> dict[str, xr.Dataset]:
    """The labels along a dim of any of the studies, each with the selection (of size 1) from the first study that has it."""
    parts: dict[str, xr.Dataset] = {}
    for data in studies.values():
        for k in range(data.sizes.get(dim, 0)):
            parts.setdefault(str(data[dim].values[k]), data.isel({dim: [k]}))
    return parts


def store_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a store of `uturn run`, which may be unfinished."""
    run = read.run(path)
    section = _section(study_of(run), "store", path.name, f"Run {path.name}")
    return section | {"tree": tree_of_store(run), "details": [read.details(path.name, run.attrs, path)]}


def _section(data: xr.Dataset, kind: str, name: str, title: str) -> dict[str, Any]:
    """The section of any study: headline numbers, tables, charts and remarks. Only charts with these numbers start unfolded."""
    section = new_section(kind, name, "experiments", title)
    families = tested_families(data)
    section["caption"] = label(data.attrs.get("description", ""), 500)
    section["warnings"] = warnings_of(data.attrs)
    section["notes"] = [
        f"calibration of {family.replace('_', ' ')}: {calibration_words(tested, float(tested.gap_level))}"
        for family, tested in families.items()
    ] + remarks_on_run(data)
    section["remarks"] = remarks_on_readings(data)
    without = data.reading.values[np.isfinite(data.curve.sel(estimate="value").values).sum(1) < 2].tolist()
    if without:
        section["remarks"].append(f"{', '.join(without)}: no curve, since fewer than two noise levels have a value")
    section["tables"] = [table._asdict() for table in parts_of(data, max(data.sizes["reading"], 1))]
    first = headline_of(data)
    marks: list[dict[str, Any]] = []
    others = [headline for headline in _other_numbers(data, first) if np.isfinite(headline.place[0, 0])]
    if first is not None and np.isfinite(first.place[0, 0]):
        marks = [_mark(first.label, first.place, data)]
        section["words"] = f"{first.label} = {with_interval(first.place[0])}, {_unit(data)}. {first.claim.rstrip('.')}."
    elif first is not None:
        section["words"] = f"No {first.label}: {first.reading}, {data.remark.sel(reading=first.reading).item()}."
    located = [first, *others] if first is not None and marks else others
    if "critical_noise" in data.attrs:
        marks.append(mark("ε* (mean field)", {"noise": [data.attrs["critical_noise"], np.nan, np.nan]}))
    section["headlines"] = [card(headline.label, _unit(data), headline.place[0], headline.claim) for headline in located]
    section["charts"] = _one_shown(list(_charts(data, first, others, marks)))
    return section


def _charts(data: xr.Dataset, first: Headline | None, others: list[Headline], marks: list[Any]) -> Iterator[dict[str, Any]]:
    """Charts of the readings of a study, its changes and its calibration; `marks` contains the mark of the headline."""
    seen = {headline.reading for headline in (first, *others) if headline is not None}  # "" stands for the peak of chi
    group = [str(data.group.sel(reading=first.reading).item())] if first is not None and first.reading else []
    for k, (title, chosen) in enumerate(panels_of(data, group)):
        labels = data.reading.values[chosen].tolist()
        swaps = [_mark("order inverts", headline.place, data) for headline in others if headline.reading in labels]
        long_names, units = (list(dict.fromkeys(data[key].values[chosen].tolist())) for key in ("words", "unit"))
        yield chart(
            f"readings-{k}",
            long_names[0] if len(long_names) == 1 and long_names[0] else title,
            _plain(data.curve.isel(reading=chosen), names_in_panel(data, chosen)),
            "noise",
            marks + swaps,
            y=", ".join(filter(None, units)) or ("share of U-turns" if title == "class" else ""),
            shown=not seen.isdisjoint(labels),
            group=title,
            theory=_plain(data.theory.isel(reading=chosen), names_in_panel(data, chosen)) if "theory" in data else None,
        )
    for k in range(data.sizes.get("changes", 0)):
        changes, unit = data.isel(changes=k), str(data.unit_of_distance.values[k])
        peak_at = changes.peak_at.values
        peak = [_mark(PEAK, peak_at, data)] if np.isfinite(peak_at[0, 0]) else marks
        for kind, title, y in _CHANGES:
            shown = kind == "chi" and "" in seen
            theory = changes.chi_theory if kind == "chi" and "chi_theory" in data else None
            name, words = f"{kind}-{k}", title.format(unit)
            yield chart(name, words, changes[kind], "noise", peak, y=y.format(unit), shown=shown, theory=theory)
    for k, (family, tested) in enumerate(tested_families(data).items()):
        gaps = _plain(tested.gap, names_in_panel(tested, np.arange(tested.sizes["reading"])))
        title = f"Calibration of {family.replace('_', ' ')}: 0 for draws from the posterior"
        yield chart(f"gap-{k}", title, gaps, "noise", y="gap E f(x0, x̂) - E f(x̂, x̂')")


def _one_shown(charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charts that have curves; at least one of them is shown."""
    charts = with_curves(charts)
    if charts and not any(chart["shown"] for chart in charts):
        charts[0]["shown"] = True
    return charts


def _plain(values: xr.DataArray, names: list[str]) -> xr.DataArray:
    """Curves of readings, with short names instead of their coordinates."""
    return values.drop_vars([key for key, of in values.coords.items() if "reading" in of.dims]).assign_coords(reading=names)


def _other_numbers(data: xr.Dataset, first: Headline | None) -> Iterator[Headline]:
    """Further numbers of a study: the noise at which ordered levels swap, and the noise at which chi is largest."""
    for k in range(data.sizes.get("series", 0)):
        series = data.isel(series=k)
        name = str(series.series.item())
        levels = np.flatnonzero(data.variable.values == name.partition(",")[0])
        if not len(levels):  # the study has too many levels to list them
            continue
        names = dict(zip(data.level.values[levels].tolist(), names_in_panel(data, levels), strict=True))
        low, high = (names.get(level, level) for level in (series["last"].item(), series["first"].item()))
        claim = "; ".join(
            filter(None, [f"Beyond this noise, the curve of {low} lies below that of {high}", series.series_remark.item()])
        )
        label, reading = f"{name.replace('_', ' ')}: order inverts", str(data.reading.values[levels[0]])
        yield Headline(label, reading, series.inversion.values, claim)
    for k in range(data.sizes.get("changes", 0)):
        changes = data.isel(changes=k)
        if first is None or first.reading:
            unit, peak = changes.unit_of_distance.item(), with_interval(changes.peak.values)
            claim = f"The number of {unit} that change together is largest at this noise: χ = {peak} at the measured levels"
            yield Headline(PEAK, "", changes.peak_at.values, claim)


def _mark(label: str, place: np.ndarray, data: xr.Dataset) -> dict[str, Any]:
    return mark(label, {str(axis): place[k] for k, axis in enumerate(data.axis.values)})


def atlas_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of the file `atlas.zarr` of `uturn atlas`."""
    data, folder = read.dataset(path), path.parent
    name = "atlas" if read.alone else folder.resolve().name or "atlas"
    section = new_section("atlas", name, "atlas", "Atlas of models")
    section["words"] = "Where models of images lose the class, on one axis of noise: log-SNR."
    section["files"] = _there(folder, ("atlas.csv", "atlas.pdf"))
    read.add_picture(section, folder / "atlas.png", "atlas")
    titles = [str(title) for title in data.title.values]
    if len(set(titles)) < len(titles):
        titles = [f"{title}, {classifier}" for title, classifier in zip(titles, data.classifier.values, strict=True)]
    section["rows"] = [
        {
            "name": title,
            "group": str(of.group.item()),
            "place": numbers(of.transition.values),
            "width": numbers(of.width.values),
            "fall": numbers(of.fall.sel(estimate="value").values),
            "inversion": number(of.inversion.values[0]),
            "speciation": number(of.speciation),
            "remark": f"failed: {of.failure.item()}" if of.failure.item() else str(of.remark.item()),
        }
        for title, of in ((title, data.isel(entry=k)) for k, title in enumerate(titles))
    ]
    places = [row["place"][0] for row in section["rows"] if row["place"][0] is not None]
    if places:
        middle = [np.median(places), min(places), max(places)]
        claim = f"The median and the range over {len(places)} models of the noise at which half of the class is lost."
        section["headlines"].append(card("t*", "log-SNR (nats)", middle, claim, is_range=True))
    return section


def _unit(data: xr.Dataset) -> str:
    return axis_words(data).replace("epsilon", "ε")


def _tokens(data: xr.Dataset) -> dict[str, Any]:
    """Texts token by token: the originals, and at every noise level the tokens with marks for noised and changed ones."""
    most = max(_MOST_TOKENS // max(data.sizes["position"] * (data.sizes["shown_noise"] + 1), 1), 1)
    return {
        "noise": numbers(data.shown_noise.values),
        "log": is_geometric(data.shown_noise.values),
        "of": int(data.attrs.get("items", data.sizes["shown_item"])),
        "items": [
            {
                "name": f"text {item}",
                "original": [token.text for token in original.tokens],
                "levels": [
                    {
                        "tokens": [token.text for token in row.tokens],
                        "marks": "".join("c" if token.changed else "n" if token.noised else "." for token in row.tokens),
                    }
                    for row in reconstructions
                ],
            }
            for item, (original, *reconstructions) in blocks(data, most_items=min(most, 200))
        ],
    }
