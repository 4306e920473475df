"""Sections of a page for studies, stores of `uturn run`, and atlases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.pages.charts import chart, mark, number, numbers
from uturn.pages.pictures import grid, preview
from uturn.pages.trees import tree_of_store
from uturn.studies import study_of
from uturn.studies.headline import headline_of
from uturn.studies.records import sample
from uturn.studies.tables import panels_of, parts_of, remarks

if TYPE_CHECKING:
    import xarray as xr

    from uturn.pages.collect import Reader

_MOST_TOKENS = 200_000  # of all texts and noise levels
_FILES = ("study.json", "curves.csv", "numbers.csv", "study.pdf", "grid.pdf", "tokens.html", "tokens.pdf")


def study(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a file `study.zarr`, or of one of several studies in a folder."""
    data, folder = read.dataset(path), path.parent
    alone = path.name == "study.zarr"
    label = str(data.attrs.get("title", ""))
    name = (folder.resolve().name if alone and not read.alone else "") or (label if not alone else "study")
    one = _section(data, "study", name, read) | {"title": label or "Study"}
    if alone:
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


def overlay(paths: list[Path], read: Reader) -> dict[str, Any]:
    """The section of several studies in one chart for each reading."""
    import xarray as xr

    folder, studies = paths[0].parent, {}
    for path in paths:
        data = read.dataset(path)
        studies[str(data.attrs.get("title", path.stem))] = data
    one = _empty("study", folder.resolve().name, "experiments")
    one["title"] = f"{len(studies)} runs"
    one["files"] = [folder / file for file in _FILES if (folder / file).exists()]
    if (folder / "study.png").exists():
        with read.part(folder / "study.png"):
            one["pictures"].append(preview(folder / "study.png", read.detail, "study"))
    for k, label in enumerate(dict.fromkeys(label for data in studies.values() for label in data.reading.values.tolist())):
        curves = {name: data.curve.sel(reading=label) for name, data in studies.items() if label in data.reading.values}
        both = xr.concat([curve.reset_coords(drop=True) for curve in curves.values()], "run", join="outer")
        both.noise.attrs = next(iter(curves.values())).noise.attrs
        one["charts"].append(chart(f"overlay-{k}", label, both.assign_coords(run=list(curves)), "noise"))
    return one


def store(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a store of `uturn run`, which may be unfinished."""
    run = _opened(path)
    one = _section(study_of(run), "store", path.name, read) | {"title": f"Run {path.name}", "tree": tree_of_store(run)}
    return one | {"details": [{"name": path.name, **read.about(run.attrs, path)}]}


def _opened(path: Path) -> xr.Dataset:
    from uturn.store import Store

    return Store.open(path).dataset()


def _section(data: xr.Dataset, kind: str, name: str, read: Reader) -> dict[str, Any]:
    """What a page shows of any study: its number, tables, charts and remarks."""
    one = _empty(kind, name, "experiments")
    one["caption"] = str(data.attrs.get("description", ""))
    one["notes"] = remarks(data)
    one["tables"] = [{"title": part.title, "heads": part.heads, "rows": part.rows} for part in parts_of(data)]
    marks, headline = [], headline_of(data)
    if headline is not None and np.isfinite(headline.place[0, 0]):
        place = {str(axis): headline.place[k] for k, axis in enumerate(data.axis.values)}
        marks = [mark(headline.label, place)]
        number = {"label": headline.label, "axis": _unit(data), "place": numbers(place["noise"]), "claim": headline.claim}
        one["headlines"].append(number)
    for k, (title, chosen) in enumerate(panels_of(data)):
        some = data.curve.isel(reading=chosen)
        levels = [str(level) for level in some.level.values]
        names = levels if all(levels) and len(set(levels)) == len(levels) else [str(label) for label in some.reading.values]
        plain = some.drop_vars([key for key, c in some.coords.items() if "reading" in c.dims]).assign_coords(reading=names)
        one["charts"].append(chart(f"readings-{k}", title, plain, "noise", marks))
    for k in range(data.sizes.get("changes", 0)):
        of = data.isel(changes=k)
        unit = of.unit_of_distance.item()
        one["charts"].append(chart(f"chi-{k}", f"Susceptibility: number of {unit} that change together", of.chi, "noise", marks))
        one["charts"].append(chart(f"xi-{k}", f"Correlation length of the changes ({unit})", of.xi, "noise", marks))
    if "gap" in data:
        some = data.gap.isel(reading=data.gap_p.notnull().any("noise").values)
        plain = some.drop_vars([key for key, c in some.coords.items() if "reading" in c.dims and key != "reading"])
        one["charts"].append(chart("gap", "Calibration gap: 0 for draws from the posterior", plain, "noise"))
    one["charts"] = [of for of in one["charts"] if of["lines"]]
    return one


def atlas(folder: Path, read: Reader) -> dict[str, Any]:
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
    }


def _unit(data: xr.Dataset) -> str:
    return str(data.noise.attrs.get("long_name", "noise")).replace("epsilon", "ε")


def _tokens(data: xr.Dataset) -> dict[str, Any]:
    """Texts token by token: the original, and for every noise level the tokens, which were noised, and which changed."""
    from uturn.plotting.tokens import blocks

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
