"""The page of results: folders of results as sections of plain data, and as one HTML file that
opens without a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from uturn.core.checks import expect
from uturn.core.files import check_plain, checked_path, whole_file
from uturn.core.imports import import_object
from uturn.core.tools import named, tools
from uturn.pages import figures, studies
from uturn.pages.html import page_file, results_page
from uturn.pages.sections import Collected, Reader, Section
from uturn.store.folders import is_url
from uturn.store.outputs import OutputFolder, output_folder
from uturn.store.run_file import NAME
from uturn.store.run_folder import runs_in

_MakeSection = Callable[[Path, Reader], Section]


def write_page(folder: str | Path) -> Path:
    """Write `index.html` for the results in a folder; ValueError if there are none."""
    path = Path(folder) / "index.html"
    _write([Path(folder)], path)
    return path


def report(places: Sequence[str | Path], out: str | Path | None = None) -> tuple[str, list[str]]:
    """Write a page for results in folders of commands, stores, folders that hold stores, or at one
    URL of object storage.

    The file `out` is by default `index.html` in the folder, or, for a store or several places,
    `report.html` in the working directory. Returns the path or URL of the page, and a message for
    each unreadable file. ValueError if there are no results.
    """
    expect(places, "folders", places, "one or more folders of results")
    if len(places) == 1 and is_url(places[0]):
        return _report_on_url(str(places[0]), out)
    folders = [_existing_folder(place) for place in places]
    path = page_file(_page_of(folders) if out is None else out)
    return str(path), _write(folders, path)


def _report_on_url(place: str, out: str | Path | None) -> tuple[str, list[str]]:
    with output_folder("out", place) as folder:
        fetch(folder)
        if out is not None:
            return str(out), _write([folder.path], Path(out))
        problems = _write([folder.path], folder.path / "index.html")
        folder.push("index.html")
        return folder.location_of("index.html"), problems


def _existing_folder(place: str | Path) -> Path:
    place = checked_path("folder", place)
    expect(not is_url(place), "folder", place, "a URL alone, without other folders")
    path = Path(place)
    expected = "a folder that a command has written"
    if not path.exists():
        expected += "; no such folder"
    expect(path.is_dir(), "folder", place, expected)
    return path


def _page_of(folders: Sequence[Path]) -> Path:
    """The page of a folder of results, or a file in the working directory."""
    if len(folders) > 1 or (folders[0] / NAME).exists():
        return Path("report.html")
    return folders[0] / "index.html"


def fetch(folder: OutputFolder) -> None:
    """Copy the files that a page shows into the working copy of a URL: small files and data of
    figures, not runs.
    """
    if not folder.is_remote:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    names = folder.names("")
    names_of_tools = set(named("sections"))
    for tool in tools().values():
        names_of_tools.update(tool.folders)
    for name in names:
        is_figure = name.endswith(".zarr") and f"{name[:-5]}.json" in names
        is_result = name in names_of_tools or name.startswith("study")
        if is_figure or is_result or name.endswith((".json", ".png")):
            folder.fetch(name)


def _write(folders: list[Path], path: Path) -> list[str]:
    """Write the page of folders to a file; gives a line for each file that is not shown."""
    collected = collect(folders)
    problems = list(map(str, collected.problems))
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
    collected = Collected()
    sections = collected.sections
    homes: list[Path] = []
    for folder in map(Path, folders):
        _Folder(folder, Reader(collected, len(folders) == 1)).collect()
        homes += [folder] * (len(sections) - len(homes))
    _distinguish(sections, homes)
    return collected


def _distinguish(sections: Sequence[Section], homes: Sequence[Path]) -> None:
    """Add the folder to the names of sections that have the same name, and numbers to their
    ids, which must be unique in a page.
    """
    names = Counter(section.name for section in sections)
    ids = Counter[str]()
    for section, home in zip(sections, homes, strict=True):
        if names[section.name] > 1:
            section.name = f"{section.name} ({home})"
            section.title = f"{section.title} ({home})"
        ids[section.id] += 1
        if ids[section.id] > 1:
            section.id += f"-{ids[section.id]}"


@dataclass(frozen=True)
class _Folder:
    """Adds the sections of one folder to the page."""

    path: Path
    reader: Reader

    def collect(self) -> None:
        if (self.path / NAME).exists():
            is_link = self.path.is_symlink()
            self.add(self.path.resolve() if is_link else self.path, studies.store_section)
            return
        shown = self.add_figures() | self.add_files()
        several = studies.numbered(self.path)
        shown.update(several)
        if len(several) > 1 and not (self.path / studies.STUDY).exists():
            self.add(self.path, studies.overlay_section)
            for path in several:
                self.add(path, studies.study_section)
        for path in runs_in(self.path):
            if path not in shown:
                self.add(path, studies.store_section)

    def add(self, path: Path, make: _MakeSection) -> Section | None:
        """The section made from a file, which is added to the page; None if it cannot be made."""
        with self.reader.noting(path):
            check_plain(path)
            section = make(path, self.reader)
            self.reader.collected.sections.append(section)
            return section
        return None

    def add_figures(self) -> set[Path]:
        """Add the figures, with the figures of the paper first. Returns their datasets."""
        others = {*self.sections_of_files(), "difference.json"}
        files = []
        for path in self.path.glob("*.json"):
            if path.name not in others and figures.is_figure(path, self.reader):
                files.append(path)
        sections = self.reader.collected.sections
        begin = len(sections)
        for path in sorted(files, key=figures.order):
            self.add(path, figures.figure_section)
        sections[begin:] = sorted(sections[begin:], key=figures.is_beyond)
        return {path.with_suffix(".zarr") for path in files}

    def add_files(self) -> set[Path]:
        """Add the search, the results of tools, and the study. Returns the datasets and the runs
        that their sections show.
        """
        shown = {self.path / studies.STUDY}
        for name, make in self.sections_of_files().items():
            if not (self.path / name).exists():
                continue
            section = self.add(self.path / name, make)
            if section is not None and section.covers:
                shown |= set(self.path.glob(section.covers))
        return shown

    def sections_of_files(self) -> dict[str, _MakeSection]:
        """How sections are made, by the names of files, in the order of the page."""
        made: dict[str, _MakeSection] = {studies.LOCATED: studies.search_section}
        for name, function in named("sections").items():
            made[name] = partial(_section_of_tool, function)
        made[studies.STUDY] = studies.study_section
        return made


def _section_of_tool(function: str, path: Path, reader: Reader) -> Section:
    make: _MakeSection = import_object(function, f"section {function}", "'module:function'")
    section = make(path, reader)
    if not isinstance(section, Section):
        raise TypeError(f"{function} must return a uturn.pages.sections.Section")
    return section
