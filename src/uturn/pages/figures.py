"""Sections of a page for figures of `uturn reproduce`: verdicts, curves, pictures, and their
runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from pydantic import TypeAdapter

from uturn.core.checks import expect
from uturn.pages.charts import charts_of, mark
from uturn.pages.pictures import images_of_figure
from uturn.pages.sections import Reader, Section
from uturn.pages.trees import tree_of_figure, tree_of_store
from uturn.pages.verdicts import Result, tally
from uturn.pages.views import Card, Tree, numbers
from uturn.store.run_file import NAME, RunFile
from uturn.store.run_folder import runs_in

OF_PAPER = "The paper"
BEYOND = "Beyond the paper"
"""Groups of figures on a page, in this order."""


def is_figure(path: Path, reader: Reader) -> bool:
    """Whether a JSON file is the result of a figure.

    Its name or content decides. A damaged file counts if a picture or data of its name lie beside
    it.
    """
    is_named = re.fullmatch(r"fig\d+", path.stem) is not None
    try:
        content = json.loads(reader.content(path))
    except (OSError, ValueError, RecursionError):
        return is_named or path.with_suffix(".png").exists() or path.with_suffix(".zarr").exists()
    return is_named or (isinstance(content, dict) and "verdicts" in content)


def order(path: Path) -> tuple[bool, int, str]:
    """fig2, fig3, .., fig15, then the others by name."""
    number = re.fullmatch(r"fig(\d+)", path.stem)
    if number is None:
        return True, 0, path.stem
    return False, int(number[1]), path.stem


def is_beyond(section: Section) -> bool:
    """Whether the section of a figure is shown below those of the paper."""
    return section.group != OF_PAPER


def figure_section(path: Path, reader: Reader) -> Section:
    """The section of a figure; ValueError if its JSON file is damaged."""
    # Entries of another version are left out.
    result = TypeAdapter(Result).validate_json(reader.content(path), strict=True)
    _check_names(result, path)
    count = tally(result.verdicts)
    section = Section(
        "figure",
        result.figure,
        "figures",
        _title(result),
        group=OF_PAPER if result.is_of_paper else BEYOND,
        words=result.claim,
        caption=result.caption,
        facts=f"{count.summary}; scale {result.scale}, {result.seconds:.0f} s.",
        verdicts=result.verdicts,
        has_pictures_first=True,
    )
    files = {kind: path.parent / name for kind, name in result.files.items()}
    section.files = [files[kind] for kind in ("pdf", "data") if kind in files]
    section.files = [file for file in section.files if file.exists()]
    if "png" in files:
        reader.add_picture(section, files["png"], "figure")
    stores = _stores(path.parent / result.scale, result.figure)
    for store in stores:
        with reader.noting(store):
            attributes = RunFile.parsed(reader.content(store / NAME)).texts()
            section.details.append(reader.details(store.name, attributes, store))
    if "data" in files and files["data"].exists():
        with reader.noting(files["data"]):
            data = reader.dataset(files["data"])
            section.charts = charts_of(data)
            _add_transition(section, data)
            section.grid = images_of_figure(data)
            section.tree = _tree(stores, reader) or tree_of_figure(data)
    return section


def _check_names(result: Result, path: Path) -> None:
    """ValueError unless the names are plain names of files in the folder of the figure, since the
    page reads and links these files.
    """
    names = [result.scale, *result.files.values()]
    expect(result.figure == path.stem, "figure", result.figure, repr(path.stem))
    is_plain = all(re.fullmatch(r"\w[\w.-]*", name) for name in names)
    expect(is_plain, "scale, files", names, "names in the folder of the figure")


def _title(result: Result) -> str:
    number = re.fullmatch(r"(?:fig)?(S?\d+)", result.figure, re.IGNORECASE)
    if number is None:
        return result.title
    return f"Figure {number[1].upper()}. {result.title}"


def _stores(folder: Path, figure: str) -> list[Path]:
    """The raw runs of a figure."""
    if folder.is_symlink():
        return []
    return runs_in(folder, f"{figure}-*")


def _add_transition(section: Section, data: xr.Dataset) -> None:
    """Add t*, if the data have it, as a card and a mark in the charts; mark ε* of mean-field
    theory.
    """
    against_noise = [chart for chart in section.charts if chart.has_slider]
    marks = []
    if "transition" in data and np.isfinite(data["transition"].values[0]):
        star = data["transition"].values
        unit = "noise"
        if against_noise:
            unit = against_noise[0].axes[0].label
        claim = "half of the class is lost at this noise"
        supports = ""
        if section.words:
            supports = f"{section.words} {tally(section.verdicts).outcome}"
        section.cards.append(Card("t*", unit, claim, numbers(star), supports=supports))
        marks.append(mark("t*", {"noise": star}))
    if "critical_noise" in data.attrs:
        critical = [data.attrs["critical_noise"], np.nan, np.nan]
        marks.append(mark("ε* (mean field)", {"noise": critical}))
    charts = []
    for chart in section.charts:
        if chart.has_slider:
            chart = replace(chart, marks=[*chart.marks, *marks])
        charts.append(chart)
    section.charts = charts


def _tree(stores: Sequence[Path], reader: Reader) -> Tree | None:
    """The tree of the first raw run of a figure that has readings of single nodes; None if there
    is none.
    """
    for store in stores:
        with reader.noting(store):
            if has_nodes(store, reader):
                return tree_of_store(reader.run(store), store.name)
    return None


def has_nodes(store: Path, reader: Reader) -> bool:
    """Whether a run has readings of single nodes of a tree."""
    return "node_belief" in RunFile.parsed(reader.content(store / NAME)).variables
