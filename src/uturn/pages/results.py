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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pandas
import xarray as xr

from uturn.core.checks import expect
from uturn.core.csv_text import csv_of
from uturn.core.files import named_errors, whole_file, whole_folder, write_json
from uturn.pages.html import token_page
from uturn.pages.page import write_page
from uturn.pages.pictures import as_picture
from uturn.pages.studies import LOCATED, STUDY, Search
from uturn.sources.tokens import TextSource
from uturn.store.folders import check_no_file, existing_part, folder_at
from uturn.store.outputs import ROOT, OutputFolder, output_folder, write_dataset
from uturn.store.run_file import NAME
from uturn.studies import paired, records_of, study, tidy, with_theory
from uturn.studies.axes import common_axis, texts_of
from uturn.studies.figure import draw_grid, draw_studies, draw_study
from uturn.studies.plotting.style import save_figure, style
from uturn.studies.records import HALF_LIFE, MOST_ITEMS, items_of
from uturn.studies.runs import kept_images, kept_texts, originals
from uturn.studies.tables import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from uturn.core.protocols import Source

PICTURES = "reconstructions"
"""Folder of the PNG files of `save_images`."""
_FIGURES = ("study", "grid", "difference")
_STUDIES = r"study(-\d+)?\.zarr"
"""Names of the datasets of studies."""
_OPTIONAL = ("items.csv", "tokens.html", "difference.json", "difference.csv", LOCATED)
"""Files that only some studies have."""
RESULTS = (
    *("index.html", "curves.csv", "numbers.csv", *_OPTIONAL),
    *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)


@overload
def write_study(
    runs: xr.Dataset,
    out: str | Path,
    *,
    source: Source | None = ...,
    title: str = ...,
    groups: Sequence[str] = ...,
    save_images: bool = ...,
    page: bool = ...,
    centre: str = ...,
    difference: bool = ...,
    theory: bool = ...,
    located: Mapping[str, object] | None = ...,
) -> Study: ...
@overload
def write_study(
    runs: Mapping[str, xr.Dataset],
    out: str | Path,
    *,
    source: Source | None = ...,
    title: str = ...,
    groups: Sequence[str] = ...,
    save_images: bool = ...,
    page: bool = ...,
    centre: str = ...,
    difference: bool = ...,
    theory: bool = ...,
    located: Mapping[str, object] | None = ...,
) -> dict[str, Study]: ...
def write_study(
    runs: xr.Dataset | Mapping[str, xr.Dataset],
    out: str | Path,
    *,
    source: Source | None = None,
    title: str = "",
    groups: Sequence[str] = (),
    save_images: bool = False,
    page: bool = True,
    centre: str = "mean",
    difference: bool = False,
    theory: bool = False,
    located: Mapping[str, object] | None = None,
) -> Study | dict[str, Study]:
    """Study a finished run, or several, and write the results into a folder or to a URL, replacing
    the results of an earlier call.

    Writes `study.zarr` (the dataset of `uturn.study`), `curves.csv` and `numbers.csv` (`tidy`),
    `items.csv` (a row for each original, if there are at most 10,000), `study.png`, `.pdf`, and the
    page `index.html`. If the run has stored images, also `grid.png`, `.pdf`; if it has stored
    tokens, `tokens.html`. Several runs are drawn in one chart for each reading, and their studies
    are `study-1.zarr`, `study-2.zarr`, .. Returns the study of a dataset, or the studies of runs by
    name.

    `runs`: dataset of `uturn.run`, or several by name (`uturn.studies.named_runs`). `source`: the
    source of the run, for the originals of texts; by default it is built from the spec. `title`: of
    the page, by default the description of the run. `groups`: of readings that are drawn first.
    `save_images`: write the stored reconstructions as PNG files into the folder `reconstructions`.
    `page`: without it, a caller that adds to the folder writes the page afterwards
    (`uturn.pages.report`). `centre`: as in `uturn.study`. `theory`: add the mean field to the
    curves. `difference`: write the difference of two runs on the same originals
    (`uturn.studies.difference`): `difference.json`, `.csv`, `.png`, `.pdf`. `located`: the numbers
    of a search (`uturn.studies.locate.Location.numbers`), of which these are the runs: written to
    `located.json`, its place is drawn.
    """
    expected = "the dataset that uturn.run gives, or several by name"
    expect(isinstance(runs, Mapping) and runs, "runs", runs, expected)
    # A dataset is also a mapping.
    named = {"": runs} if isinstance(runs, xr.Dataset) else dict(runs)
    first = next(iter(named.values()))
    is_alone = len(named) == 1
    with output_folder("out", out) as folder:
        check_folder(folder, save_images, kept_images(first) if is_alone else 0)
        studies: dict[str, Study] = {}
        for name, run in named.items():
            studies[name] = study(run, centre)
            if theory:
                studies[name] = with_theory(studies[name], run)
        items = _items(named, studies)
        if is_alone:
            results = _of_one(named, studies, items, source, title, groups)
        else:
            results = _of_several(studies, located)
            if difference:
                _add_difference(results, paired.difference(named, centre))
        results.files += _tables(results.studies, items)
        if located is not None:
            results.files.append(_json_file(LOCATED, located))
        if save_images:
            results.files.append(ResultFile(PICTURES, partial(_write_images, first)))
        results.write(folder)
        if page:
            write_page(folder.path)
            folder.push("index.html")
    if isinstance(runs, xr.Dataset):
        return results.studies[""]
    return results.studies


@dataclass(frozen=True)
class ResultFile:
    """A file or folder of results, and the function that writes it at a path."""

    name: str
    write: Callable[[Path], object]


Figures = Mapping[str, Callable[[], "Figure | None"]]
"""Functions that draw figures, by the names of their files; None if there is nothing to draw."""


@dataclass
class _Results:
    """What is written for one study or several. All numbers are known before the first file is
    written.
    """

    studies: dict[str, Study]
    """By the names of their runs."""
    files: list[ResultFile]
    figures: dict[str, Callable[[], Figure | None]]

    def write(self, out: OutputFolder) -> None:
        """Write all files in place of the files of an earlier call."""
        with named_errors(out.path):
            out.path.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in self.files}
        # The page would show studies of an earlier call with another number of runs too.
        earlier = [name for name in out.names("") if re.fullmatch(_STUDIES, name)]
        earlier = [name for name in earlier if name not in names]
        for name in set(_OPTIONAL) - names:
            (out.path / name).unlink(missing_ok=True)
        for file in self.files:
            file.write(out.path / file.name)
        write_figures(out.path, {name: _nothing for name in _FIGURES} | self.figures)
        for name in earlier:
            shutil.rmtree(out.path / name, ignore_errors=out.is_remote)
        out.push(*(name for name in RESULTS if name != "index.html"))
        out.push(*sorted(names.difference(RESULTS)), *earlier)


def _nothing() -> None:
    """Draws a figure that the results do not have."""


def _of_one(
    runs: Mapping[str, xr.Dataset],
    studies: Mapping[str, Study],
    items: pandas.DataFrame | None,
    source: Source | None,
    title: str,
    groups: Sequence[str],
) -> _Results:
    """The study of the only run, with its stored images and texts."""
    (name,) = runs
    run = runs[name]
    data = studies[name]
    records = records_of(run, source if isinstance(source, TextSource) else None)
    if kept_texts(run) and "original_piece" not in records.coords:
        remarks = [data.attrs["remark"], _HIDDEN_TEXTS]
        data = data.assign_attrs(remark="; ".join(filter(None, remarks)))
    whole: xr.Dataset = data.merge(records, combine_attrs="override").assign_attrs(title=title)
    if items is not None and "item" in whole.dims:
        whole = _with_half_lives(whole, items)
    files = [_dataset_file(STUDY, whole)]
    if "original_piece" in whole.coords:
        files.append(_text_file("tokens.html", token_page(whole)))
    return _Results(
        {name: data},
        files,
        {"study": lambda: draw_study(data, groups), "grid": lambda: draw_grid(whole)},
    )


_HIDDEN_TEXTS = (
    "the texts are not shown: the source has changed, cannot be read, or needs code that the store"
    " names"
)


def _with_half_lives(whole: xr.Dataset, items: pandas.DataFrame) -> xr.Dataset:
    """A study with the half-life of each original, by which the page sorts pictures."""
    for name in items:
        if name.startswith(HALF_LIFE):
            half_lives = items[name].values[whole.item.values]
            coordinate = xr.Variable("item", half_lives, {"long_name": name})
            whole = whole.assign_coords(item_half_life=coordinate)
    return whole


def _of_several(studies: dict[str, Study], located: Mapping[str, object] | None) -> _Results:
    """The studies of several runs, perhaps of a search; ValueError if they share no axis."""
    common_axis(list(studies.values()))
    files = []
    for k, (name, data) in enumerate(studies.items(), 1):
        files.append(_dataset_file(f"study-{k}.zarr", data.assign_attrs(title=name)))
    places = []
    if located is not None:
        places = Search.of(located).places
    return _Results(studies, files, {"study": lambda: draw_studies(studies, places)})


def _add_difference(results: _Results, data: xr.Dataset) -> None:
    """Add the difference of two runs."""
    results.files += [
        _json_file("difference.json", paired.data_of(data)),
        _text_file("difference.csv", csv_of(paired.frame_of(data))),
    ]
    results.figures["difference"] = lambda: paired.draw_difference(data)


def _items(runs: Mapping[str, xr.Dataset], studies: Mapping[str, Study]) -> pandas.DataFrame | None:
    """A row for each original; None if there are too many."""
    if sum(run.sizes["item"] for run in runs.values()) > MOST_ITEMS:
        return None
    frames = {name: items_of(run, studies[name]) for name, run in runs.items()}
    if len(frames) == 1:
        return next(iter(frames.values()))
    return pandas.concat(frames, names=["run"]).reset_index(level="run")


def _tables(studies: Mapping[str, Study], items: pandas.DataFrame | None) -> list[ResultFile]:
    """Curves and numbers of the readings, and the originals, as CSV files."""
    if len(studies) == 1:
        frames = tidy(next(iter(studies.values())))
    else:
        frames = tidy(studies)
    files = [
        _text_file("curves.csv", csv_of(frames.curves)),
        _text_file("numbers.csv", csv_of(frames.numbers)),
    ]
    if items is not None:
        files.append(_text_file("items.csv", csv_of(items)))
    return files


def _dataset_file(name: str, data: xr.Dataset) -> ResultFile:
    return ResultFile(name, partial(write_dataset, data))


def _json_file(name: str, content: Mapping[str, object]) -> ResultFile:
    return ResultFile(name, lambda path: write_json(path, content))


def _text_file(name: str, text: str) -> ResultFile:
    return ResultFile(name, partial(_write_text, text))


def _write_text(text: str, path: Path) -> None:
    with whole_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_figures(folder: Path, figures: Figures) -> None:
    """Draw figures to PNG and PDF files of the given names; for a figure that is None, existing
    files are removed.
    """
    # Suppresses warnings about the dates of fonts.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    with style():
        for name, draw in figures.items():
            figure = draw()
            paths = folder / f"{name}.png", folder / f"{name}.pdf"
            if figure is not None:
                save_figure(figure, *paths)
                continue
            for path in paths:
                path.unlink(missing_ok=True)  # left by an earlier run


def written(out: str | Path, save_images: bool = False) -> list[str]:
    """Names of the results in a folder."""
    with output_folder("out", out) as folder:
        existing = folder.names("")
    names = [*RESULTS, PICTURES] if save_images else RESULTS
    return [name for name in names if name in existing]


def check_results(out: OutputFolder) -> None:
    """ValueError if results cannot be written to a folder."""
    if not out.is_remote:
        check_no_file("out", out.location)
    existing = existing_part(out.path)
    is_writable = os.access(existing, os.W_OK)
    expect(is_writable, "out", out.location, f"a folder; {existing} cannot be written to")
    expect(NAME not in out.names(""), "out", out.location, "another folder; it is a store itself")


def check_folder(out: OutputFolder, save_images: bool = False, kept: int = 0) -> None:
    """ValueError if results cannot be written to a folder; also called before a long run, to
    fail early.
    """
    check_results(out)
    for name in filter(re.compile(_STUDIES).fullmatch, out.names("")):
        expect(
            _is_study(out, name),
            f"{name!r} in out",
            out.location,
            "another folder; it is none of the studies written there",
        )
    if save_images:
        expect(kept, "kept images", kept, "at least one for save_images; set keep to 1 or more")
        check_pictures(out, PICTURES, r"item\d+-.*\.png")


def check_pictures(out: OutputFolder, name: str, written: str) -> None:
    """ValueError if a subfolder, which new pictures replace, holds other files: files that the
    pattern `written` does not fit.
    """
    foreign = [file for file in out.names(name) if not re.fullmatch(written, file)]
    expect(
        not foreign,
        f"files in {out.location_of(name)}",
        foreign,
        "only pictures that were written there; choose another folder",
    )


def _is_study(out: OutputFolder, name: str) -> bool:
    """Whether a folder was written by `write_study`; stores of runs and targets of links are
    never replaced.
    """
    if (out.path / name).is_symlink():
        return False
    content = folder_at(out.location).read(f"{name}/{ROOT}")
    try:
        attributes = json.loads(content or b"")["attributes"]
        return {"description", "remark", "trajectories"} <= set(attributes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _write_images(run: xr.Dataset, folder: Path) -> None:
    """Write originals and stored reconstructions as PNG; names give item, noise, trajectory and,
    if there are several, clone.
    """
    count = kept_images(run)
    width = len(str(count - 1))
    with whole_folder(folder) as pictures:
        for item, image in enumerate(originals(run, np.arange(count))[0]):
            _write_image(image, pictures / f"item{item:0{width}d}-original.png")
        for level, noise in enumerate(texts_of(run.noise.values, ".4f")):
            images = run.image.isel(noise=level, item=slice(count)).values
            for draw in np.ndindex(images.shape[:-3]):
                item, trajectory, *clones = draw
                name = f"item{item:0{width}d}-noise{noise}-trajectory{trajectory}"
                for clone in clones:
                    name += f"-clone{clone}"
                _write_image(images[draw], pictures / f"{name}.png")


def _write_image(image: np.ndarray, path: Path) -> None:
    """Write an image, unless it is not known."""
    if np.isfinite(image).all():
        as_picture(image).save(path)
