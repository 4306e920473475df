"""Results of a run of images: files of numbers, figures and images, and tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.files import whole_folder
from uturn.outputs import OutputFolder, output_folder
from uturn.pages import write_page
from uturn.plotting.curves import evenly_spaced
from uturn.store import warnings_of
from uturn.workflows.analysis import AGREEMENTS, analyse
from uturn.workflows.clones import gap_rows
from uturn.workflows.curves import ESTIMATE, plain, with_interval
from uturn.workflows.runs import kept_images, originals
from uturn.workflows.writing import check_results, named_in, write_figures, write_numbers

if TYPE_CHECKING:
    import xarray as xr

FIGURES = ("layers", "grid", "calibration")
RESULTS = ("index.html", "analysis.zarr", "transition.json", *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")))
PICTURES = "reconstructions"  # folder of the PNG files of `save_images`


def write_results(run: xr.Dataset, out: str | Path, *, save_images: bool = False) -> xr.Dataset:
    """Analyse a finished run, and write its numbers and figures into a folder or to a URL, replacing those of an earlier call.

    Writes `analysis.zarr` (the dataset of `analyse`), `transition.json` (its numbers) and `layers.png`, `.pdf` (like Figs. 2 and
    16 of arXiv:2402.16991). If the run kept images, also `grid.png`, `.pdf` (like Fig. 1), and with `save_images` the folder
    `reconstructions/` with an 8-bit PNG of every kept image. If the run has clones, also `calibration.png`, `.pdf`. The page
    `index.html` shows all of it. Returns the analysis.

    Raises
    ------
    ValueError
        If the run is not finished or measured no network layers, or if the folder cannot be written to.
    """
    from uturn.plotting.images import draw_calibration, draw_grid, draw_layers

    with output_folder("out", out) as results:
        check_folder(results, save_images, kept_images(run))
        analysis, folder = analyse(run), results.path
        write_numbers(folder, analysis, "transition.json", numbers(analysis))
        write_figures(folder, dict(zip(FIGURES, (draw_layers, draw_grid, draw_calibration), strict=True)), analysis)
        if save_images:
            with whole_folder(folder / PICTURES) as pictures:
                _save_images(run, pictures)
        write_page(folder)
        results.push(*RESULTS, *([PICTURES] if save_images else []))
    return analysis


def written(out: str | Path, save_images: bool) -> list[str]:
    """Names of the results in a folder or at a URL."""
    return named_in(out, [*RESULTS, *([PICTURES] if save_images else [])])


def check_folder(out: OutputFolder, save_images: bool, kept: int) -> None:
    """ValueError if results cannot be written to a folder; also called before a long run, so that it does not fail at its end."""
    check_results(out)
    if save_images:
        if not kept:
            raise ValueError("save_images: no images are kept; set keep to 1 or more")
        foreign = [name for name in out.names(PICTURES) if not re.fullmatch(r"item\d+-.*\.png", name)]
        if foreign:
            raise ValueError(
                f"{out.place(PICTURES)} holds {foreign[0]!r}, which is none of the pictures written there; choose another folder"
            )


def _save_images(run: xr.Dataset, folder: Path) -> None:
    """Originals and kept reconstructions as PNG; names give item, noise, trajectory and, if there are several, clone."""
    from PIL import Image

    count = kept_images(run)
    width = len(str(count - 1))

    def save(name: str, image: np.ndarray) -> None:
        if np.isfinite(image).all():
            pixels = np.round((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(folder / name)

    for item, image in enumerate(originals(run, np.arange(count))[0]):
        save(f"item{item:0{width}d}-original.png", image)
    for level, noise in enumerate(run.noise.values):
        images = run.image.isel(noise=level, item=slice(count)).values
        for item, trajectory, *clone in np.ndindex(images.shape[:-3]):
            draw = f"trajectory{trajectory}" + "".join(f"-clone{k}" for k in clone)
            save(f"item{item:0{width}d}-noise{noise:.4f}-{draw}.png", images[(item, trajectory, *clone)])


# --- numbers -----------------------------------------------------------------------------------------------------------


def numbers(analysis: xr.Dataset) -> dict[str, Any]:
    """The content of `transition.json`: the numbers of an analysis with intervals on all axes; None if one does not exist."""

    def on_axes(values: xr.DataArray) -> dict[str, dict[str, float | None]]:
        return {str(axis): plain(values.sel(axis=axis).values) for axis in values.axis.values}

    found = {}
    for name in analysis.classifier.values:
        one = analysis.sel(classifier=name)
        layers = [(k, str(layer)) for k, layer in enumerate(one.layer.values) if str(layer)]
        found[str(name)] = {
            "classifier": str(one.model.item()),
            "remark": str(one.remark.item()),
            "transition": on_axes(one.transition),
            "width": plain(one.width.values),
            "inversion": on_axes(one.inversion),
            "half_life": {layer: on_axes(one.half_life.isel(network_layer=k)) for k, layer in layers},
            "chance": float(one.chance) if np.isfinite(one.chance) else None,
            **{name: [plain(v) for v in one[name].values] for name in AGREEMENTS if name in one},
            **({"calibration": _calibration(one)} if "gap_class" in one else {}),
        }
    perceptual = {
        name: {
            "measures": str(one.measures.item()),
            "distance": [plain(v) for v in one.perceptual_distance.values],
            "half_rise": on_axes(one.half_rise),
        }
        for name, one in perceptual_distances(analysis)
    }
    return {
        "run": analysis.attrs["description"],
        "spec_hash": analysis.attrs.get("spec_hash"),
        "items": analysis.attrs["items"],
        "trajectories": analysis.attrs["trajectories"],
        "clones": analysis.attrs["clones"],
        "noise": [float(x) for x in analysis.noise.values],
        "intervals": "95 %, from the differences between originals, each with all its U-turns",
        "warnings": warnings_of(analysis.attrs),
        "classifiers": found,
        **({"perceptual": perceptual} if perceptual else {}),
    }


def perceptual_distances(analysis: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """Name and numbers of each perceptual distance."""
    names = analysis.perceptual.values if "perceptual" in analysis.dims else []
    return [(str(name), analysis.isel(perceptual=k)) for k, name in enumerate(names)]


def _calibration(one: xr.Dataset) -> dict[str, Any]:
    """Gaps of one classifier at the measured noise levels, and whether none of them is detected."""
    rows = {name: row.dropna("noise", subset=["p"]) for name, row in gap_rows(one)}
    level = float(one.calibration_level)
    return {
        "passed": all(bool((row.p > level).all()) for row in rows.values()),
        "level": level,
        "noise": [float(x) for x in next(iter(rows.values())).noise.values],
        "gaps": {
            name: [
                {**dict(zip(ESTIMATE, map(float, row.gap.values[k]), strict=True)), "p_holm": float(row.p[k])}
                for k in range(row.sizes["noise"])
            ]
            for name, row in rows.items()
        },
    }


def summary(analysis: xr.Dataset, most_layers: int = 8) -> Iterator[Any]:
    """Tables for a terminal (rich), one for each classifier: t*, width, inversion, half-lives of at most `most_layers` layers.

    A last table gives the perceptual distances of the run, if it has any.

    The first column of numbers gives values with intervals; the others give the values on the run's other axes. For a run with
    clones a second table gives the gap of each reading where its p-value is smallest.
    """
    from rich.table import Table

    axes = [str(axis) for axis in analysis.axis.values]
    titles = {"noise": "t/T" if "step" in axes else "noise", "log_snr": "log SNR"}
    headings = ("", f"{titles['noise']} [95 % interval]", *(titles.get(axis, axis) for axis in axes[1:]))

    def table_of(title: str) -> Any:
        table = Table(title=title, title_justify="left")
        for heading in headings:
            table.add_column(heading, overflow="fold")
        return table

    for name in analysis.classifier.values:
        one = analysis.sel(classifier=name)
        remark = str(one.remark.item())
        table = table_of(f"{name}: {remark}" if remark else f"{name}")
        if one.has_classes:
            table.add_row("class half lost, t*", *_cells(one.transition))
            table.add_row("width of its fall", with_interval(one.width.values))
        ends_with_logits = one.has_classes and not str(one.model.item()).startswith("clip:")
        table.add_row(f"{'logits fall' if ends_with_logits else 'last layer falls'} below first layer", *_cells(one.inversion))
        layers = [str(layer) for layer in one.layer.values if str(layer)]
        for k in evenly_spaced(len(layers), most_layers):
            table.add_row(f"half-life of {layers[k]}", *_cells(one.half_life.isel(network_layer=k)))
        yield table
        if "gap_class" in one:
            yield _calibration_table(str(name), one, titles["noise"], most_layers)
    if "perceptual" in analysis.dims:
        end = f"{titles['noise']} = {float(analysis.noise[-1]):.3g}"
        table = table_of("perceptual distance")
        for _, one in perceptual_distances(analysis):
            last = with_interval(one.perceptual_distance.values[-1])
            table.add_row(f"{one.measures.item()}: half of its rise to {last} at {end}", *_cells(one.half_rise))
        yield table


def _calibration_table(name: str, one: xr.Dataset, noise: str, most_layers: int) -> Any:
    from rich.table import Table

    level, rows = float(one.calibration_level), list(gap_rows(one))
    seen = min(float(row.p.min()) for _, row in rows) <= level
    possible = any(np.isfinite(row.visible).any() for _, row in rows)
    verdict = "no draws from the posterior" if seen else "no gap is detected" if possible else "too few images to detect a gap"
    table = Table(title=f"{name}: calibration, gap E f(x0, x̂) - E f(x̂, x̂') of the clones; {verdict}", title_justify="left")
    for heading in ("f", f"{noise} of smallest p", "gap there [95 % interval]", "p by Holm", "gap that would be seen"):
        table.add_column(heading, overflow="fold")
    first = 1 if one.has_classes else 0  # number of the first layer
    for k in [*range(first), *(first + k for k in evenly_spaced(len(rows) - first, most_layers))]:
        reading, row = rows[k]
        worst = row.isel(noise=int(row.p.argmin("noise", skipna=True)))
        cells = (
            f"{float(worst.noise):.3g}",
            with_interval(worst.gap.values),
            f"{float(worst.p):.2g}",
            f"{float(worst.visible):.2g}" if np.isfinite(worst.visible) else "none",
        )
        table.add_row(reading if k < first else f"similarity of {reading}", *cells)
    return table


def _cells(places: xr.DataArray) -> list[str]:
    """A noise (axis, estimate) as cells of a table: with interval on the first axis, without on the others."""
    others = [(str(axis), float(places.sel(axis=axis, estimate="value"))) for axis in places.axis.values[1:]]
    words = ["" if np.isnan(value) else f"{value:.1f}" if axis == "step" else f"{value:.3g}" for axis, value in others]
    return [with_interval(places.values[0]), *words]
