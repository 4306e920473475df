"""Results of studies in a folder or at a URL: numbers, tables, figures, stored images and texts,
and the page.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import xarray as xr

from uturn.core.checks import expect
from uturn.core.files import named_errors, whole_file, whole_folder, write_json
from uturn.pages.html import token_page
from uturn.pages.page import write_page
from uturn.pages.pictures import as_picture
from uturn.pages.studies import LOCATED, located_place
from uturn.store.folders import folder_at
from uturn.store.outputs import ROOT, OutputFolder, output_folder, write_dataset
from uturn.store.run_file import NAME
from uturn.studies import paired, records_of, study, tidy, with_theory
from uturn.studies.axes import common_axis, texts_of
from uturn.studies.figure import draw_grid, draw_studies, draw_study
from uturn.studies.plotting.style import save_figure, style
from uturn.studies.records import HALF_LIFE, MOST_ITEMS, items_of
from uturn.studies.runs import kept_images, kept_texts, originals
from uturn.studies.tables import csv_of

PICTURES = "reconstructions"  # folder of the PNG files of `save_images`
_FIGURES = ("study", "grid", "difference")
_STUDIES = r"study(-\d+)?\.zarr"  # names of the datasets of studies
# Which not all studies have.
_OF_SOME = ("items.csv", "tokens.html", "difference.json", "difference.csv", LOCATED)
RESULTS = (
    *("index.html", "curves.csv", "numbers.csv", *_OF_SOME),
    *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)


def write_study(
    runs: xr.Dataset | Mapping[str, xr.Dataset],
    out: str | Path,
    *,
    source: Any = None,
    title: str = "",
    groups: Sequence[str] = (),
    save_images: bool = False,
    page: bool = True,
    centre: str = "mean",
    difference: bool = False,
    theory: bool = False,
    located: Mapping[str, Any] | None = None,
) -> Any:
    """Study a finished run, or several, and write the results into a folder or to a URL, replacing
    those of an earlier call.

    Writes `study.zarr` (the dataset of `uturn.study`), `curves.csv` and `numbers.csv` (`tidy`),
    `items.csv` (a row for each original, if there are at most 10,000), `study.png`, `.pdf`, and the
    page `index.html`. If the run has stored images, also `grid.png`, `.pdf`; if it has stored
    tokens, `tokens.html`. Several runs are drawn in one chart for each reading, and their studies
    are `study-1.zarr`, `study-2.zarr`, .. Returns the study, or a dict of several by name.

    `runs`: dataset of `uturn.run`, or several by name (`uturn.studies.named_runs`). `source`: that
    of the run, for the originals of texts; by default it is built from its spec. `title`: of the
    page, by default the description of the run. `groups`: of readings that are drawn first.
    `save_images`: write the stored reconstructions as PNG files into the folder `reconstructions`.
    `page`: without it, a caller that adds to the folder writes the page afterwards
    (`uturn.pages.report`). `centre`: as in `uturn.study`. `theory`: add the mean field to the
    curves. `difference`: write the difference of two runs on the same originals
    (`uturn.studies.difference`): `difference.json`, `.csv`, `.png`, `.pdf`. `located`: the numbers
    of a search (`uturn.studies.locate.Location.numbers`), of which these are the runs: written to
    `located.json`, its place is drawn.
    """
    expect(
        isinstance(runs, Mapping) and runs,
        "runs",
        runs,
        "the dataset that uturn.run gives, or several by name",
    )
    # A dataset is also a mapping.
    named: Mapping[str, Any] = runs if not hasattr(runs, "data_vars") else {"": runs}
    run = next(iter(named.values()))
    with output_folder("out", out) as results:
        check_folder(results, save_images, kept_images(run) if len(named) == 1 else 0)
        studies = {name: study(dataset, centre) for name, dataset in named.items()}
        studies = (
            {name: with_theory(of, named[name]) for name, of in studies.items()}
            if theory
            else studies
        )
        figures: dict[str, Callable[[], Any]] = dict.fromkeys(_FIGURES, lambda: None)
        texts: dict[str, str] = {}
        numbers: dict[str, Any] = {} if located is None else {LOCATED: located}
        items = None  # of runs with more than 10,000
        if sum(dataset.sizes["item"] for dataset in named.values()) <= MOST_ITEMS:
            of_runs = {name: items_of(dataset, studies[name]) for name, dataset in named.items()}
            several = len(named) > 1
            items = (
                pandas.concat(of_runs, names=["run"]).reset_index(level="run")
                if several
                else of_runs[next(iter(named))]
            )
        result: Any
        if len(studies) > 1:
            common_axis(list(studies.values()))  # raise before writing if the studies share no axis
            result = studies
            datasets = {
                f"study-{k}.zarr": data.assign_attrs(title=label)
                for k, (label, data) in enumerate(studies.items(), 1)
            }
            figures["study"] = lambda: draw_studies(studies, located_place(located))
            if difference:
                apart = paired.difference(named, centre)
                figures["difference"] = lambda: paired.draw_difference(apart)
                numbers["difference.json"], texts["difference.csv"] = (
                    paired.data_of(apart),
                    csv_of(paired.frame_of(apart)),
                )
        else:
            (result,), records = studies.values(), records_of(run, source)
            if kept_texts(run) and "original_piece" not in records.coords:
                hidden = (
                    "the texts are not shown: the source has changed, cannot be read, or needs code"
                    " that the store names"
                )
                result = result.assign_attrs(
                    remark="; ".join(filter(None, [result.attrs["remark"], hidden]))
                )
            whole = result.merge(records, combine_attrs="override").assign_attrs(title=title)
            if items is not None and "item" in whole.dims:
                # By which the page sorts pictures.
                for name in [name for name in items if name.startswith(HALF_LIFE)]:
                    half_lives = items[name].values[whole.item.values]
                    whole = whole.assign_coords(
                        item_half_life=("item", half_lives, {"long_name": name})
                    )
            datasets = {"study.zarr": whole}
            figures |= {
                "study": lambda: draw_study(result, groups),
                "grid": lambda: draw_grid(whole),
            }
            if "original_piece" in whole.coords:
                texts["tokens.html"] = token_page(whole)
        frames = tidy(result)._asdict() | {"items": items}
        texts |= {
            f"{name}.csv": csv_of(frame) for name, frame in frames.items() if frame is not None
        }
        with named_errors(results.path):
            results.path.mkdir(parents=True, exist_ok=True)
        # Studies of an earlier call with another number of runs are removed below: the page would
        # show them too.
        earlier = [
            name
            for name in results.names("")
            if re.fullmatch(_STUDIES, name) and name not in datasets
        ]
        for name, data in datasets.items():
            write_dataset(data, results.path / name)
        for name in {*_OF_SOME}.difference(texts, numbers):
            (results.path / name).unlink(missing_ok=True)  # left by an earlier call
        for name, content in numbers.items():
            write_json(results.path / name, content)
        for name, text in texts.items():
            with whole_file(results.path / name) as file:
                file.write(text.encode(errors="backslashreplace"))
        write_figures(results.path, figures)
        if save_images:
            with whole_folder(results.path / PICTURES) as pictures:
                _save_images(run, pictures)
        for name in earlier:
            shutil.rmtree(results.path / name, ignore_errors=results.is_remote)
        if page:
            write_page(results.path)
        results.push(*RESULTS, *datasets, *earlier, *([PICTURES] if save_images else []))
    return result


def write_figures(folder: Path, figures: Mapping[str, Callable[[], Any]]) -> None:
    """Draw figures to PNG and PDF files of the given names; for a figure that is None, existing
    files are removed.
    """
    # Suppresses warnings about the dates of fonts.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    with style():
        for name, draw in figures.items():
            figure, paths = draw(), (folder / f"{name}.png", folder / f"{name}.pdf")
            if figure is not None:
                save_figure(figure, *paths)
                continue
            for path in paths:
                path.unlink(missing_ok=True)  # left by an earlier run


def written(out: str | Path, save_images: bool = False) -> list[str]:
    with output_folder("out", out) as folder:
        there = folder.names("")
    return [name for name in (*RESULTS, *([PICTURES] if save_images else [])) if name in there]


def check_results(out: OutputFolder) -> None:
    """ValueError if results cannot be written to a folder."""
    there = next(
        path for path in (out.path.absolute(), *out.path.absolute().parents) if path.exists()
    )
    is_file = "it is a file" if there == out.path.absolute() else f"{there} is a file"
    expect(there.is_dir(), "out", out.where, f"a folder; {is_file}")
    expect(os.access(there, os.W_OK), "out", out.where, f"a folder; {there} cannot be written to")
    expect(NAME not in out.names(""), "out", out.where, "another folder; it is a store itself")


def check_folder(out: OutputFolder, save_images: bool = False, kept: int = 0) -> None:
    """ValueError if results cannot be written to a folder; also called before a long run, to
    fail early.
    """
    check_results(out)
    for name in filter(re.compile(_STUDIES).fullmatch, out.names("")):
        expect(
            _is_study(out, name),
            f"{name!r} in out",
            out.where,
            "another folder; it is none of the studies written there",
        )
    if save_images:
        expect(kept, "kept images", kept, "at least one for save_images; set keep to 1 or more")
        check_pictures(out, PICTURES, r"item\d+-.*\.png")


def check_pictures(out: OutputFolder, name: str, written: str) -> None:
    """ValueError if a subfolder, which new pictures replace, holds files of others: none that
    the pattern `written` fits.
    """
    foreign = [file for file in out.names(name) if not re.fullmatch(written, file)]
    expect(
        not foreign,
        f"files in {out.place(name)}",
        foreign,
        "only pictures that were written there; choose another folder",
    )


def _is_study(out: OutputFolder, name: str) -> bool:
    """Whether a folder was written by `write_study`; stores of runs and targets of links are
    never replaced.
    """
    if (out.path / name).is_symlink():
        return False
    content = folder_at(out.where).read(f"{name}/{ROOT}")
    try:
        attributes = json.loads(content or b"")["attributes"]
        return {"description", "remark", "trajectories"} <= set(attributes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _save_images(run: xr.Dataset, folder: Path) -> None:
    """Write originals and stored reconstructions as PNG; names give item, noise, trajectory and,
    if there are several, clone.
    """
    count = kept_images(run)
    width = len(str(count - 1))

    def save(name: str, image: np.ndarray) -> None:
        if np.isfinite(image).all():
            as_picture(image).save(folder / name)

    for item, image in enumerate(originals(run, np.arange(count))[0]):
        save(f"item{item:0{width}d}-original.png", image)
    for level, noise in enumerate(texts_of(run.noise.values, ".4f")):
        images = run.image.isel(noise=level, item=slice(count)).values
        for item, trajectory, *clone in np.ndindex(images.shape[:-3]):
            draw = f"trajectory{trajectory}" + "".join(f"-clone{k}" for k in clone)
            save(
                f"item{item:0{width}d}-noise{noise}-{draw}.png", images[(item, trajectory, *clone)]
            )
