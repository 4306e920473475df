"""Sections of a page for `uturn images`, `uturn text`, `uturn atlas`, and for stores of `uturn run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.pages.charts import AXES, chart, charts_of_store, mark, number, numbers
from uturn.pages.pictures import grid, preview, sample
from uturn.pages.trees import tree_of_store

if TYPE_CHECKING:
    import xarray as xr

    from uturn.pages.collect import Reader

_READINGS = {
    "same_class": "same predicted class as the original",
    "same_class_top5": "predicted class of the original among the five first classes",
    "label_top1": "label of the original is the predicted class",
    "label_top5": "label of the original among the five first classes",
}
_MOST_TOKENS = 200_000  # of all texts and noise levels


def images(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of a folder of `uturn images`."""
    data = read.dataset(folder / "analysis.zarr")
    one = _study(folder, "images", data, read)
    for name in map(str, data.classifier.values):
        of = data.sel(classifier=name)
        several = f", {name}" if data.sizes["classifier"] > 1 else ""
        star = {str(axis): of.transition.sel(axis=axis).values for axis in data.axis.values}
        place = numbers(star["noise"])
        if bool(of.has_classes) and place[0] is not None:
            marks = [mark("t*", star)]
            lost = _between(of.fall.sel(axis="noise", estimate="value").values)
            claim = f"Half of the class is lost there: below, U-turns mostly keep it, above, they mostly lose it{lost}."
            claim += _but(of.remark.item())
            one["headlines"].append({"label": f"t*{several}", "axis": _unit(data), "place": place, "claim": claim})
        else:
            marks = []
            one["notes"].append(f"{name}: {of.remark.item() or 'no t*'}")
        shares = [key for key in _READINGS if key in of and np.isfinite(of[key].values).any()]
        if shares:
            one["charts"].append(_together("class", f"Share of U-turns that keep the class{several}", of, shares, marks))
        layers = [k for k, layer in enumerate(of.layer.values) if str(layer)]
        named = of.similarity.isel(network_layer=layers).assign_coords(network_layer=[str(of.layer.values[k]) for k in layers])
        inversion = {str(axis): of.inversion.sel(axis=axis).values for axis in data.axis.values}
        swapped = [mark("last layer below first", inversion)] if np.isfinite(inversion["noise"][0]) else []
        one["charts"].append(
            chart("similarity", f"Similarity to the original, layer by layer{several}", named, "noise", [*marks, *swapped])
        )
        if "gap_class" in of and np.isfinite(of.gap_class.values).any():
            title = f"Calibration gap of the class{several}: 0 for draws from the posterior"
            one["charts"].append(chart("gap", title, of.gap_class, "noise"))
    if "perceptual" in data.dims:
        one["charts"].append(chart("distance", "Perceptual distance to the original", data.perceptual_distance, "noise"))
    if "image" in data and data.sizes.get("shown_noise"):
        some = data.isel(item=sample(data.sizes["item"]))
        names = [str(name) for name in some.item_name.values]
        one["grid"] = grid(
            some.shown_noise.values, names, some.original.values, some.image.values, some.image_same_class.values, read.detail
        ) | {"of": int(data.attrs.get("items", data.sizes["item"])), "kept": int(data.attrs.get("kept", data.sizes["item"]))}
    return one


def text(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of a folder of `uturn text`."""
    data = read.dataset(folder / "analysis.zarr")
    if (folder / "run.zarr").exists():  # which knows the axes of the noise levels
        with read.part(folder / "run.zarr"):
            run = read.dataset(folder / "run.zarr")
            axes = run[[name for name in AXES if name in run.coords and run[name].dims == ("noise",)]].reset_coords()
            data = data.assign_coords({k: ("noise", v.values) for k, v in axes.reindex(noise=data.noise).data_vars.items()})
    one = _study(folder, "text", data, read)
    marks = []
    if "transition" in data and np.isfinite(data.transition.values[0]):
        marks = [mark("t*", {"noise": data.transition.values})]
        claim = f"There most tokens change together: the susceptibility peaks.{_but(data.attrs.get('remark', ''))}"
        one["headlines"].append({"label": "t*", "axis": _unit(data), "place": numbers(data.transition.values), "claim": claim})
    elif data.attrs.get("remark"):
        one["notes"].append(str(data.attrs["remark"]))
    for group in dict.fromkeys(map(str, data.group.values)):
        some = data.similarity.isel(reading=np.flatnonzero(data.group.values == group))
        some = some.assign_coords(reading=[str(name) for name in some["name"].values])
        title = {"tokens": "Share of tokens, and of runs of tokens, that are kept"}.get(
            group, f"Similarity to the original: {group}"
        )
        one["charts"].append(chart(group, title, some, "noise", marks))
    curves = {
        "chi": "Susceptibility: number of tokens that change together",
        "correlation_length": "Correlation length of the changes (tokens)",
        "log_likelihood": "Log-likelihood of the reconstructions (nats per character)",
    }
    one["charts"] += [chart(key, title, data[key], "noise", marks) for key, title in curves.items() if key in data]
    if "gap" in data:
        one["charts"].append(chart("gap", "Calibration gap: 0 for draws from the posterior", data.gap, "noise"))
    one["charts"] = [of for of in one["charts"] if of["lines"]]
    if "original_piece" in data.coords:
        one["tokens"] = _tokens(data)
    return one


def atlas(folder: Path, read: Reader) -> dict[str, Any]:
    """The section of a folder of `uturn atlas`."""
    data = read.dataset(folder / "atlas.zarr")
    one = _study(folder, "atlas", data, read)
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


def store(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a store of `uturn run`."""
    from uturn.store import Store, warnings_of

    run = Store.open(path).dataset()
    missing = int(run.attrs.get("missing_tasks", 0))
    many = {"item": "items", "trajectory": "trajectories", "clone": "clones"}
    sizes = ", ".join(f"{run.sizes[dim]} {words}" for dim, words in many.items() if run.sizes.get(dim, 1) > 1)
    return {
        **_empty("store", path.name, "experiments"),
        "title": f"Run {path.name}",
        "words": f"{run.sizes['noise']} noise levels, {sizes or '1 item'}. Curves are means, with 95 % intervals.",
        "caption": str(run.attrs.get("description", "")),
        "charts": charts_of_store(run),
        "tree": tree_of_store(run),
        "details": [{"name": path.name, **read.about(run.attrs, path)}],
        "notes": [*warnings_of(run.attrs), *([f"the run is not finished: {missing} tasks are missing"] if missing else [])],
    }


# --- parts -----------------------------------------------------------------------------------------------------------


def _empty(kind: str, name: str, docs: str) -> dict[str, Any]:
    return {
        "id": "".join(c if c.isalnum() else "-" for c in name),
        "kind": kind,
        "short": name,
        "docs": docs,
        "headlines": [],
        "verdicts": [],
        "charts": [],
        "files": [],
        "pictures": [],
        "details": [],
        "notes": [],
    }


_WORDS = {
    "images": (
        "U-turns of images",
        "Images are noised to a fraction of the chain and denoised back; shown is what is kept.",
    ),
    "text": (
        "U-turns of texts",
        "Tokens are masked or replaced and drawn again; shown is what is kept, and what changes together.",
    ),
    "atlas": ("Atlas of models", "Where models of images lose the class, on one axis of noise: log-SNR."),
}
_FILES = {
    "images": ("transition.json", "layers.pdf", "grid.pdf", "calibration.pdf"),
    "text": ("text.json", "curves.pdf", "tokens.html", "tokens.pdf"),
    "atlas": ("atlas.csv", "atlas.pdf"),
}


def _study(folder: Path, kind: str, data: xr.Dataset, read: Reader) -> dict[str, Any]:
    """What the sections of all studies have: names, pictures, files, spec."""
    one = _empty(kind, kind if read.alone else folder.resolve().name or kind, kind)
    from uturn.store import warnings_of

    one["title"], one["words"] = _WORDS[kind]
    one["notes"] += warnings_of(data.attrs)
    one["caption"] = str(data.attrs.get("description", ""))
    one["files"] = [folder / name for name in _FILES[kind] if (folder / name).exists()]
    for pdf in [path for path in one["files"] if path.suffix == ".pdf"]:
        if (png := pdf.with_suffix(".png")).exists():
            with read.part(png):
                one["pictures"].append(preview(png, read.detail, png.stem))
    if "spec" in data.attrs:
        one["details"] = [{"name": kind, **read.about(data.attrs, folder)}]
    return one


def _but(remark: Any) -> str:
    """The remarks on a number, as sentences that follow its claim."""
    return "".join(f" {one[:1].upper()}{one[1:]}." for one in str(remark).split("; ") if one)


def _unit(data: xr.Dataset) -> str:
    return str(data.noise.attrs.get("long_name", "noise")).replace("epsilon", "ε")


def _between(fall: np.ndarray) -> str:
    """A quarter and three quarters of the fall of the class, in words."""
    return f"; a quarter is lost at {fall[0]:.2g}, three quarters at {fall[1]:.2g}" if np.isfinite(fall).all() else ""


def _together(name: str, title: str, data: xr.Dataset, variables: list[str], marks: list[dict[str, Any]]) -> dict[str, Any]:
    """A chart of several variables (noise, estimate)."""
    charts = [chart(name, title, data[key], "noise", marks) for key in variables]
    for key, one in zip(variables, charts, strict=True):
        for line in one["lines"]:
            line["name"] = _READINGS[key]
    return charts[0] | {"lines": [line for one in charts for line in one["lines"]]}


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
