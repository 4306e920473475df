"""Sections of a page for figures of `uturn reproduce`: verdicts, curves, pictures, and their
runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from pydantic import TypeAdapter

from uturn.core.checks import expect
from uturn.pages.charts import charts_of, mark
from uturn.pages.pictures import images_of_figure
from uturn.pages.sections import Reader, card, new_section
from uturn.pages.trees import tree_of_figure, tree_of_store
from uturn.store.run_file import NAME, RunFile
from uturn.store.run_folder import runs_in

OF_PAPER = "The paper"
BEYOND = "Beyond the paper"
"""Groups of figures on a page, in this order."""


@dataclass(frozen=True)
class Verdict:
    """One number of a figure and the expectation of theory or of the paper, as texts with units and
    intervals.

    `rule` says which comparison was made, `passed` its outcome: None for a number that is shown and
    not judged.
    """

    quantity: str
    measured: str
    expected: str
    passed: bool | None
    rule: str = ""

    def __post_init__(self) -> None:
        if self.passed is not None:
            object.__setattr__(self, "passed", bool(self.passed))  # numpy's own bool is not JSON


@dataclass
class Result:
    """A reproduced figure, the content of `figN.json`: its verdicts and the names of its files
    in the output folder.
    """

    figure: str
    title: str
    caption: str
    scale: str
    verdicts: list[Verdict]
    files: dict[str, str]
    seconds: float = 0.0
    claim: str = ""
    is_of_paper: bool = False
    """Whether it is a figure of arXiv:2402.16991."""

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)


class Tally(NamedTuple):
    """Counts of verdicts: judged, those of them that failed, and numbers that are shown."""

    judged: int
    failed: int
    shown: int

    @property
    def words(self) -> str:
        if not self.judged and not self.shown:
            return "no verdicts"
        text = f"{self.judged - self.failed} of {self.judged} verdicts passed"
        return text + (f"; shown and not judged: {self.shown}" if self.shown else "")


def tally(verdicts: Sequence[Mapping[str, Any]]) -> Tally:
    outcomes = [verdict["passed"] for verdict in verdicts]
    return Tally(len(outcomes) - outcomes.count(None), outcomes.count(False), outcomes.count(None))


def is_figure(path: Path, read: Reader) -> bool:
    """Whether a JSON file is the result of a figure, by its content, or a damaged one beside a
    picture or data of its name.
    """
    is_named = re.fullmatch(r"fig\d+", path.stem) is not None
    try:
        content = json.loads(read.content(path))
    except (OSError, ValueError, RecursionError):
        return is_named or path.with_suffix(".png").exists() or path.with_suffix(".zarr").exists()
    return is_named or (isinstance(content, dict) and "verdicts" in content)


def order(path: Path) -> tuple[bool, int, str]:
    """fig2, fig3, .., fig15, then the others by name."""
    number = re.fullmatch(r"fig(\d+)", path.stem)
    return (number is None, int(number[1]) if number else 0, path.stem)


def _outcome(count: Tally) -> str:
    """The counts of the verdicts of a figure in words."""
    verdicts = "1 verdict" if count.judged == 1 else f"{count.judged} verdicts"
    if count.judged == 0:
        words = "No verdicts"
    elif count.failed:
        words = f"{verdicts}, {count.failed} failed"
    else:
        words = f"{verdicts}, all passed"
    if count.shown:
        words += f"; {count.shown} more shown"
    return words


def is_beyond(section: Mapping[str, Any]) -> bool:
    """Whether the section of a figure is shown below those of the paper."""
    return section["group"] != OF_PAPER


def figure_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a figure; ValueError if its JSON file is damaged."""
    # Entries of another version are left out.
    result = TypeAdapter(Result).validate_json(read.content(path), strict=True)
    # The page reads and links these files, so only plain names in the same folder are allowed.
    names = [result.scale, *result.files.values()]
    expect(result.figure == path.stem, "figure", result.figure, repr(path.stem))
    expect(
        all(re.fullmatch(r"\w[\w.-]*", name) for name in names),
        "scale, files",
        names,
        "names in the folder of the figure",
    )
    files = {kind: path.parent / name for kind, name in result.files.items()}
    number = re.fullmatch(r"(?:fig)?(S?\d+)", result.figure, re.IGNORECASE)
    title = f"Figure {number[1].upper()}. {result.title}" if number else result.title
    section = new_section("figure", result.figure, "figures", title)
    section["group"] = OF_PAPER if result.is_of_paper else BEYOND
    section |= {"words": result.claim, "caption": result.caption, "pictures_first": True}
    section["verdicts"] = [asdict(verdict) for verdict in result.verdicts]
    count = tally(section["verdicts"])
    section["facts"] = f"{_outcome(count)}; scale {result.scale}, {result.seconds:.0f} s."
    section["files"] = [
        files[kind] for kind in ("pdf", "data") if kind in files and files[kind].exists()
    ]
    if "png" in files:
        read.add_picture(section, files["png"], "figure")
    folder = path.parent / result.scale
    stores = [] if folder.is_symlink() else runs_in(folder, f"{result.figure}-*")
    for store in stores:
        with read.noting(store):
            attributes = RunFile.parsed(read.content(store / NAME)).texts()
            section["details"].append(read.details(store.name, attributes, store))
    if "data" in files and files["data"].exists():
        with read.noting(files["data"]):
            data = read.dataset(files["data"])
            section["charts"] = charts_of(data)
            _add_transition(section, data)
            section["grid"] = images_of_figure(data)
            section["tree"] = _tree(stores, read) or tree_of_figure(data)
    return section


def _add_transition(section: dict[str, Any], data: xr.Dataset) -> None:
    """Add t*, if the data have it, as a headline and a mark in the charts; mark ε* of mean-field
    theory.
    """
    charts = [chart for chart in section["charts"] if chart["slides"]]
    star = data["transition"].values.tolist() if "transition" in data else [np.nan] * 3
    marks = []
    if np.isfinite(star[0]):
        axis = charts[0]["axes"][0]["words"] if charts else "noise"
        count = tally(section["verdicts"])
        supported = (
            f"{section['words']} {count._replace(shown=0).words}" if section["words"] else ""
        )
        section["headlines"].append(
            card("t*", axis, star, "half of the class is lost at this noise", supports=supported)
        )
        marks.append(mark("t*", {"noise": star}))
    if "critical_noise" in data.attrs:
        marks.append(
            mark("ε* (mean field)", {"noise": [data.attrs["critical_noise"], np.nan, np.nan]})
        )
    for chart in charts:
        chart["marks"] += marks


def _tree(stores: Sequence[Path], read: Reader) -> dict[str, Any] | None:
    """The tree of the first raw run of a figure that has readings of single nodes; None if there
    is none.
    """
    for store in stores:
        with read.noting(store):
            if "node_belief" in RunFile.parsed(read.content(store / NAME)).variables:
                tree = tree_of_store(read.run(store))
                return None if tree is None else tree | {"run": store.name}
    return None
