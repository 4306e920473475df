"""Folders of results as sections of plain data. Damaged files are named; the rest is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uturn.core.files import check_plain
from uturn.core.imports import import_object
from uturn.core.tools import named
from uturn.pages import figures, studies
from uturn.pages.located import LOCATED, located_section
from uturn.pages.sections import Collected, Reader

_Section = Callable[[Path, Reader], dict[str, Any]]


def collect(folders: Sequence[str | Path]) -> Collected:
    """Sections for all results in folders of commands, stores of `run`, or folders that hold such stores."""
    collected, homes = Collected(), list[Path]()
    sections = collected.sections
    for folder in map(Path, folders):
        _collect(folder, Reader(collected, len(folders) == 1))
        homes += [folder] * (len(sections) - len(homes))
    names = Counter(section["short"] for section in sections)
    ids = Counter[str]()
    for section, home in zip(sections, homes, strict=True):
        if names[section["short"]] > 1:  # add the folder to figures with the same name
            section["short"], section["title"] = f"{section['short']} ({home})", f"{section['title']} ({home})"
        ids[section["id"]] += 1
        if ids[section["id"]] > 1:  # ids must be unique in a page
            section["id"] += f"-{ids[section['id']]}"
    return collected


def _collect(folder: Path, read: Reader) -> None:
    def add(path: Path, make: _Section) -> dict[str, Any]:
        """The section made from a file, which is added to the page; empty if it cannot be made."""
        section: dict[str, Any] = {}
        with read.noting(path):
            check_plain(path)
            section = make(path, read)
            read.collected.sections.append(section)
        return section

    if (folder / "zarr.json").exists():
        add(folder.resolve() if folder.is_symlink() else folder, studies.store_section)
        return
    of_files = {LOCATED: located_section, **_of_tools(), "study.zarr": studies.study_section}
    others = {*of_files, "difference.json"}
    of_figures = [path for path in folder.glob("*.json") if path.name not in others and figures.is_figure(path, read)]
    for path in sorted(of_figures, key=figures.order):
        add(path, figures.figure_section)
    several = studies.numbered(folder)
    shown = {path.with_suffix(".zarr") for path in of_figures} | {folder / "study.zarr", *several}
    for name, make in of_files.items():
        if (folder / name).exists() and (covers := add(folder / name, make).get("covers")):
            shown |= set(folder.glob(covers))
    if len(several) > 1 and not (folder / "study.zarr").exists():
        add(folder, studies.overlay_section)
        for path in several:
            add(path, studies.study_section)
    for path in sorted(path for path in folder.glob("*.zarr") if path not in shown and _has_spec(path, read)):
        add(path, studies.store_section)


def _of_tools() -> dict[str, _Section]:
    """The sections of tools by the name of the file that they show."""

    def imported(path: str) -> _Section:
        return lambda file, read: import_object(path, f"section {path}", "'module:function'")(file, read)

    return {name: imported(path) for name, path in named("sections").items()}


def _has_spec(path: Path, read: Reader) -> bool:
    try:
        return "spec" in json.loads(read.content(path / "zarr.json"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
