"""The page of results: folders of results as sections of plain data, and as one HTML file that
opens without a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uturn.core.checks import checked_path, expect
from uturn.core.files import check_plain, whole_file
from uturn.core.imports import import_object
from uturn.core.tools import named, tools
from uturn.pages import figures, studies
from uturn.pages.html import results_page
from uturn.pages.sections import Collected, Reader
from uturn.store.folders import is_url
from uturn.store.outputs import OutputFolder, output_folder
from uturn.store.run_file import NAME
from uturn.store.run_folder import runs_in

_Section = Callable[[Path, Reader], dict[str, Any]]


def write_page(folder: str | Path) -> Path:
    """Write `index.html` for the results in a folder; ValueError if there are none."""
    path = Path(folder) / "index.html"
    _write([Path(folder)], path)
    return path


def report(places: Sequence[str | Path], out: str | Path | None = None) -> tuple[str, list[str]]:
    """Write a page for results in folders of commands, stores, folders that hold stores, or at one
    URL of object storage.

    The file `out` is by default `index.html` in the folder, or, for a store or several places,
    `report.html` in the working directory. Gives the path or URL of the page, and a message for
    each unreadable file; a ValueError if there are no results.
    """
    expect(places, "folders", places, "one or more folders of results")
    if len(places) == 1 and is_url(places[0]):
        with output_folder("out", places[0]) as folder:
            fetch(folder)
            path = folder.path / "index.html" if out is None else Path(out)
            problems = _write([folder.path], path)
            folder.push(*(["index.html"] if out is None else []))
        return folder.place("index.html") if out is None else str(path), problems
    folders = []
    for place in (checked_path("folder", place) for place in places):
        expect(not is_url(place), "folder", place, "a URL alone, without other folders")
        what = "a folder that a command has written" + (
            "" if Path(place).exists() else "; no such folder"
        )
        expect(Path(place).is_dir(), "folder", place, what)
        folders.append(Path(place))
    alone = len(folders) == 1 and not (folders[0] / NAME).exists()
    path = (
        Path(out)
        if out is not None
        else folders[0] / "index.html"
        if alone
        else Path("report.html")
    )
    expect(
        path.suffix.lower() in (".html", ".htm") and not path.is_dir(),
        "out",
        str(path),
        "a file that ends in .html",
    )
    return str(path), _write(folders, path)


def fetch(folder: OutputFolder) -> None:
    """Copy the files that a page shows into the working copy of a URL: small files and data of
    figures, not runs.
    """
    if not folder.is_remote:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    names = folder.names("")
    of_tools = {*named("sections"), *(name for tool in tools().values() for name in tool.folders)}
    for name in names:
        is_figure = name.endswith(".zarr") and f"{name[:-5]}.json" in names
        whole = name in of_tools or name.startswith("study")
        if is_figure or whole or name.endswith((".json", ".png")):
            folder.fetch(name)


def _write(folders: list[Path], path: Path) -> list[str]:
    collected = collect(folders)
    problems = [f"{problem['file']}{problem['words']}" for problem in collected.problems]
    if not collected.sections:
        names = ", ".join(map(str, folders))
        if problems:
            raise ValueError(f"no results in {names} can be read; {'; '.join(problems)}")
        raise ValueError(
            f"no results in {names}; run `uturn reproduce --out {folders[0]}` or another command"
            " first"
        )
    with whole_file(path) as file:
        page = results_page(collected, path.parent)
        # File names may contain bytes that are not UTF-8.
        file.write(page.encode(errors="backslashreplace"))
    return problems


def collect(folders: Sequence[str | Path]) -> Collected:
    """Sections for all results in folders of commands, stores of `run`, or folders that hold
    such stores.
    """
    collected, homes = Collected(), list[Path]()
    sections = collected.sections
    for folder in map(Path, folders):
        _collect(folder, Reader(collected, len(folders) == 1))
        homes += [folder] * (len(sections) - len(homes))
    names = Counter(section["short"] for section in sections)
    ids = Counter[str]()
    for section, home in zip(sections, homes, strict=True):
        if names[section["short"]] > 1:  # add the folder to figures with the same name
            section["short"], section["title"] = (
                f"{section['short']} ({home})",
                f"{section['title']} ({home})",
            )
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

    if (folder / NAME).exists():
        add(folder.resolve() if folder.is_symlink() else folder, studies.store_section)
        return
    of_tools = {name: partial(_section_of_tool, path) for name, path in named("sections").items()}
    of_files: dict[str, _Section] = {
        studies.LOCATED: studies.located_section,
        **of_tools,
        "study.zarr": studies.study_section,
    }
    others = {*of_files, "difference.json"}
    of_figures = [
        path
        for path in folder.glob("*.json")
        if path.name not in others and figures.is_figure(path, read)
    ]
    begin = len(read.collected.sections)
    for path in sorted(of_figures, key=figures.order):
        add(path, figures.figure_section)
    read.collected.sections[begin:] = sorted(read.collected.sections[begin:], key=figures.is_beyond)
    several = studies.numbered(folder)
    shown = {path.with_suffix(".zarr") for path in of_figures} | {folder / "study.zarr", *several}
    for name, make in of_files.items():
        if (folder / name).exists() and (covers := add(folder / name, make).get("covers")):
            shown |= set(folder.glob(covers))
    if len(several) > 1 and not (folder / "study.zarr").exists():
        add(folder, studies.overlay_section)
        for path in several:
            add(path, studies.study_section)
    for path in runs_in(folder):
        if path not in shown:
            add(path, studies.store_section)


def _section_of_tool(function: str, path: Path, read: Reader) -> dict[str, Any]:
    section: dict[str, Any] = import_object(function, f"section {function}", "'module:function'")(
        path, read
    )
    return section
