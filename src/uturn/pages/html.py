"""Pages as HTML, by the templates in `assets/`. Templates escape all text from results, and page
scripts insert it as text.

Control characters and direction marks in it are written as escapes (`visible`), since they could
make it look like other text.

The content security policy of the page of results allows only the scripts of this package, by their
hashes, and no external resources.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import xarray as xr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import uturn
from uturn.core.checks import expect
from uturn.core.messages import visible
from uturn.pages.sections import Collected, Section
from uturn.pages.tokens import Token, blank_before, blocks
from uturn.pages.verdicts import tally
from uturn.pages.views import plain
from uturn.store.folders import ROOTS

_ASSETS = Path(__file__).parents[1] / "assets"
_EDGES = ("solid", "dashed", "dotted", "double")  # lines below the tokens of regions
_MODULES = ("state", "noise", "drawing", "charts", "images", "texts", "tree", "page")
"""Of the script of the page of results."""
_OUTCOMES = (False, True, None)  # outcomes of verdicts in the order of the table


def asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def script_of(folder: str, modules: Sequence[str]) -> str:
    """The JavaScript of several modules as one script, without their imports of each other; each
    module imports only from earlier ones.
    """
    texts = []
    for name in modules:
        module = asset(f"{folder}/{name}.js")
        texts.append(re.sub(r"^import [^;]*;\n|^export ", "", module, flags=re.M))
    return "\n".join(texts)


def rendered(template: str, **values: object) -> str:
    """A page by its template. Macros of a template leave blank lines before it."""
    return _environment().get_template(template).render(values).lstrip()


@lru_cache(1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sentence"] = _sentence
    environment.filters["marked"] = _marked
    return environment


def _shown(value: object) -> object:
    """A value of a template, with escapes for control characters. Marked-up text stays as it
    is.
    """
    return visible(value) if type(value) is str else value


def _sentence(words: str) -> str:
    """A text with a full stop, and a capital letter unless it begins with the name of a reading
    (followed by "," or ":").
    """
    if re.match("[a-z]+ ", words):
        words = words[:1].upper() + words[1:]
    return words if words.endswith(".") else f"{words}."


def page_file(out: str | Path) -> Path:
    """The file of a page; ValueError if it is a folder or does not end in .html."""
    path = Path(out)
    is_page = path.suffix.lower() in (".html", ".htm") and not path.is_dir()
    expect(is_page, "out", str(path), "a file that ends in .html")
    return path


def results_page(collected: Collected, folder: Path) -> str:
    """The page of the given sections; links to files are relative to `folder`, the folder of the
    page.
    """
    sections = collected.sections
    judged = [section for section in sections if section.verdicts]
    verdicts = [(verdict, section) for section in judged for verdict in section.verdicts]
    script = script_of("report", _MODULES)
    plotly, packed_plotly = _plotly()
    return rendered(
        "report/page.html",
        style=asset("report/page.css"),
        hashes=f"{_source_hash(script)} {_source_hash(plotly)}",
        version=uturn.__version__,
        sections=sections,
        links={section.id: _links(section, folder) for section in sections},
        groups=_groups(sections),
        problems=collected.problems,
        judged=judged,
        verdicts=sorted(verdicts, key=lambda pair: _OUTCOMES.index(pair[0].passed)),
        count=tally(verdict for verdict, _ in verdicts),
        data=_json(sections),
        plotly=packed_plotly,
        script=script,
    )


_FOR_THE_SCRIPT = (
    "id",
    "title",
    "name",
    "slider",
    "cards",
    "charts",
    "grid",
    "slides",
    "gallery",
    "tree",
    "tokens",
)
"""Fields of a section that the script of the page reads."""


def _json(sections: Sequence[Section]) -> str:
    """What the script of the page shows, as JSON."""
    shown = []
    for section in sections:
        shown.append({name: plain(getattr(section, name)) for name in _FOR_THE_SCRIPT})
    text = json.dumps({"sections": shown}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # a text such as </script> would end the element


@dataclass(frozen=True)
class _Link:
    name: str
    href: str


def _links(section: Section, folder: Path) -> list[_Link]:
    """Links to the files of a section."""
    files = [path for path in section.files if not path.is_symlink()]
    return [_Link(path.name, _href(path, folder)) for path in files]


def _groups(sections: Sequence[Section]) -> dict[str, str]:
    """The headings of groups, by the id of the first section of each.

    Figures come first, then other results.
    """
    headings = {}
    group = ""
    for section in sections:
        if section.group != group:
            group = section.group
            headings[section.id] = group or "Other results"
    return headings


def _href(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path.resolve(), folder.resolve())
    for root in ROOTS:
        if (path / root).is_file():
            relative = f"{relative}/{root}"
    return quote(relative, errors="surrogateescape")


@lru_cache(1)
def _plotly() -> tuple[str, str]:
    """The script plotly.js of the package plotly, and its compressed form in base64."""
    content = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return content.decode(), _base64(gzip.compress(content, 9, mtime=0))


def _source_hash(script: str) -> str:
    """The hash by which the content security policy allows a script."""
    return f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def token_page(data: xr.Dataset) -> str:
    """The stored texts of a run, token by token, as a single file without scripts."""
    items = list(blocks(data))
    tokens = [token for _, rows in items for row in rows for token in row.tokens]
    names = data.region_name.values if "region_name" in data.coords else []
    return rendered(
        "report/tokens.html",
        description=data.attrs.get("description", ""),
        of_characters=all(len(token.text) == 1 for token in tokens),
        regions=[(name, _edge(k)) for k, name in enumerate(names)],
        separators="shown_separator" in data,
        items=items,
    )


def _edge(region: int) -> str:
    """Style of the line below the tokens of a region; "" for none."""
    if region < 0:
        return ""
    return _EDGES[region % len(_EDGES)]


class _Piece(NamedTuple):
    """A token in a page: a blank before its mark, the HTML tag of its mark, and its text."""

    blank: str
    tag: str
    text: str


def _marked(tokens: Sequence[Token]) -> Iterator[tuple[str, list[_Piece]]]:
    """Runs of tokens of one region, with the line of the region."""
    is_first = True
    for region, run in groupby(tokens, key=lambda token: token.region):
        pieces = []
        for token in run:
            blank = blank_before(token.text)
            text = token.text[len(blank) :]
            # The line below a run begins with its first token.
            pieces.append(_Piece("" if is_first else blank, _tag(token), text))
            is_first = False
        yield _edge(region), pieces


def _tag(token: Token) -> str:
    if token.changed:
        return "mark"
    if token.noised:
        return "i"
    if token.separates:
        return "b"
    return ""
