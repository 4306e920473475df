"""The page of results: folders of results as one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uturn.core.checks import checked_path, expect
from uturn.core.files import whole_file
from uturn.core.tools import named, tools
from uturn.pages.collecting import collect
from uturn.pages.html import results_page
from uturn.store.outputs import OutputFolder, output_folder
from uturn.store.places import is_url


def write_page(folder: str | Path) -> Path:
    """Write `index.html` for the results in a folder; ValueError if there are none."""
    path = Path(folder) / "index.html"
    _write([Path(folder)], path)
    return path


def report(places: Sequence[str | Path], out: str | Path | None = None) -> tuple[str, list[str]]:
    """Write a page for results in folders of commands, stores, folders that hold stores, or at one URL of object storage.

    The file `out` is by default `index.html` in the folder, or, for a store or several places, `report.html` in the working
    directory. Gives the path or URL of the page, and a message for each unreadable file; a ValueError if there are no results.
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
        what = "a folder that a command has written" + ("" if Path(place).exists() else "; no such folder")
        expect(Path(place).is_dir(), "folder", place, what)
        folders.append(Path(place))
    alone = len(folders) == 1 and not (folders[0] / "zarr.json").exists()
    path = Path(out) if out is not None else folders[0] / "index.html" if alone else Path("report.html")
    expect(path.suffix.lower() in (".html", ".htm") and not path.is_dir(), "out", str(path), "a file that ends in .html")
    return str(path), _write(folders, path)


def fetch(folder: OutputFolder) -> None:
    """Copy the files that a page shows into the working copy of a URL: small files and data of figures, not runs."""
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
        raise ValueError(f"no results in {names}; run `uturn reproduce --out {folders[0]}` or another command first")
    with whole_file(path) as file:
        page = results_page(collected, path.parent)
        file.write(page.encode(errors="backslashreplace"))  # file names may contain bytes that are not UTF-8
    return problems
