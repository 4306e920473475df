"""The page: sections of plain data as one HTML file that opens without a network, at most 5 MB.

All words from results are escaped, here or by the script of the page, which writes them as text. The policy in the head of the
page lets a browser run only the scripts of this package, by their hashes, and load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import uturn
from uturn.core.checks import checked_path
from uturn.core.files import whole_file
from uturn.pages.collect import Collected, collect
from uturn.pages.running import RunningStudy
from uturn.pages.sections import contents, headlines, section, verdict_table
from uturn.store.objects import is_url
from uturn.store.outputs import OutputFolder, output_folder

MOST_BYTES = 5_000_000
"""Largest size of a page."""
_DETAILS = (1.0, 0.7, 0.5, 0.35, 0.2)  # tried in turn until the page is small enough


def write_page(folder: str | Path, running: RunningStudy | None = None) -> Path:
    """Write `index.html` for the results in a folder; ValueError if there are none, and no study is `running`."""
    path = Path(folder) / "index.html"
    _write([Path(folder)], path, running)
    return path


def report(places: Sequence[str | Path], out: str | Path | None = None) -> tuple[str, list[str]]:
    """Write a page for the results in folders, stores, or at URLs of object storage.

    Parameters
    ----------
    places
        Folders of `reproduce`, `images`, `text` or `atlas`, stores of `run`, or folders that hold such stores.
    out
        The file; by default `index.html` in the folder, or, for a store or several places, `report.html` in the working
        directory.

    Returns
    -------
    The path or URL of the page, and a line for each file that could not be read.

    Raises
    ------
    ValueError
        If there are no results, or the page cannot be written.
    """
    if not places:
        raise ValueError("no folder is given; expected one or more folders of results")
    if len(places) == 1 and is_url(places[0]):
        return _report_of_url(str(places[0]), out)
    folders = []
    for place in (checked_path("folder", place) for place in places):
        if is_url(place):
            raise ValueError(f"{place}: a URL cannot be joined with other folders; give it alone")
        if not Path(place).is_dir():
            found = "a file" if Path(place).exists() else "no such folder"
            raise ValueError(
                f"{place}: {found}; expected a folder that `uturn reproduce`, `images`, `text`, `atlas` or `run` has written"
            )
        folders.append(Path(place))
    alone = len(folders) == 1 and not (folders[0] / "zarr.json").exists()
    path = Path(out) if out is not None else folders[0] / "index.html" if alone else Path("report.html")
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out = {str(path)!r}: expected a file that ends in .html")
    return str(path), _write(folders, path)


def _report_of_url(url: str, out: str | Path | None) -> tuple[str, list[str]]:
    with output_folder("out", url) as folder:
        fetch(folder)
        path = folder.path / "index.html" if out is None else Path(out)
        problems = _write([folder.path], path)
        folder.push(*(["index.html"] if out is None else []))
        return folder.place("index.html") if out is None else str(path), problems


def fetch(folder: OutputFolder) -> None:
    """Bring what a page shows into the working copy of a URL: small files and data of figures, no runs."""
    if not folder.is_remote:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    for name in folder.names(""):
        figure = name.endswith(".zarr") and f"{name[:-5]}.json" in folder.names("")
        if name.endswith((".json", ".png")) or figure or name == "atlas.zarr" or name.startswith("study"):
            folder.fetch(name)


def _write(folders: list[Path], path: Path, running: RunningStudy | None = None) -> list[str]:
    for detail in _DETAILS:
        found = collect(folders, detail)
        if not found.sections and running is None:
            names = ", ".join(map(str, folders))
            if found.problems:
                words = "; ".join(f"{one['file']}{one['words']}" for one in found.problems)
                raise ValueError(f"no results in {names} can be read; {words}")
            raise ValueError(f"no results in {names}; run `uturn reproduce --out {folders[0]}` or another command first")
        page = _encoded(page_of(found, path.parent, running))
        if len(page) <= MOST_BYTES:
            break
    else:
        for one in found.sections:
            one["pictures"], one["grid"] = [], None
        found.problems.append({"file": str(path), "words": ": pictures are left out, as the page would be larger than 5 MB"})
        page = _encoded(page_of(found, path.parent, running))
    with whole_file(path) as file:
        file.write(page)
    return [f"{one['file']}{one['words']}" for one in found.problems]


def page_of(found: Collected, folder: Path, running: RunningStudy | None = None) -> str:
    """The page of some sections as text; links to files are relative to the folder in which it will be."""
    for one in found.sections:
        files = [path for path in one.pop("files", []) if not path.is_symlink()]
        one["links"] = [{"name": path.name, "href": _link(path, folder)} for path in files] or one.get("links", [])
    plotly, script = _plotly(), _asset("page.js")
    shown = ("id", "title", "short", "charts", "grid", "tree", "tokens", "rows", "headlines")
    data = {"sections": [{key: one.get(key) for key in shown} for one in found.sections]}
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (script, plotly.text) if text)
    return _filled(
        _asset("page.html"),
        style=_asset("page.css"),
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}",
        version=escape(uturn.__version__),
        live=running.attributes() if running else "",
        headlines=headlines(found, running),
        contents=contents(found.sections),
        verdicts=verdict_table(found.sections),
        sections="\n".join(section(one, _docs()) for one in found.sections),
        # "<" would let a name such as </script> end the element.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly.packed,
        script=script,
    )


def _filled(template: str, **parts: str) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _link(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return quote(f"{relative}/zarr.json" if path.is_dir() else relative, errors="surrogateescape")


def _encoded(page: str) -> bytes:
    return page.encode(errors="backslashreplace")  # names of files may hold bytes that are no UTF-8


def _asset(name: str) -> str:
    return (resources.files("uturn") / "assets" / "report" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Plotly:
    """The script plotly.js of the package plotly, and the same compressed as base64; empty if the package is missing."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("plotly")
        places = list(found.submodule_search_locations or []) if found else []
        path = Path(places[0]) / "package_data" / "plotly.min.js" if places else Path("missing")
        self.text = path.read_bytes().decode("utf-8") if path.exists() else ""
        self.packed = base64.b64encode(gzip.compress(self.text.encode(), 9, mtime=0)).decode() if self.text else ""


@lru_cache(1)
def _plotly() -> _Plotly:
    return _Plotly()


@lru_cache(1)
def _docs() -> str:
    """Address of the documentation in the metadata of the package; empty if it has none."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("uturn").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    return next((url.partition(", ")[2].rstrip("/") for url in urls if url.startswith("Documentation")), "")
