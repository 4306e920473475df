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
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import xarray as xr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import uturn
from uturn.core.messages import visible
from uturn.pages.figures import tally
from uturn.pages.sections import Collected
from uturn.pages.tokens import Token, blocks
from uturn.store.folders import ROOTS

_ASSETS = Path(__file__).parents[1] / "assets"
_EDGES = ("solid", "dashed", "dotted", "double")  # lines below the tokens of regions
_OUTCOMES = (False, True, None)  # outcomes of verdicts in the order of the table


def asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def rendered(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values).lstrip()  # lines of macros


@lru_cache(1)
def _environment() -> Environment:
    spaces: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader: Any = {
        "loader": FileSystemLoader(_ASSETS),
        "autoescape": True,
        "undefined": StrictUndefined,
    }
    environment = Environment(
        finalize=lambda value: visible(value) if type(value) is str else value, **loader, **spaces
    )
    environment.filters["sentence"] = _sentence
    environment.filters["marked"] = _marked
    return environment


def _sentence(words: str) -> str:
    """A text with a full stop, and a capital letter unless it begins with the name of a reading
    (followed by "," or ":").
    """
    first = words[:1].upper() if re.match("[a-z]+ ", words) else words[:1]
    return first + words[1:] + ("" if words.endswith(".") else ".")


def results_page(collected: Collected, folder: Path) -> str:
    """The page of the given sections; links to files are relative to `folder`, the folder of the
    page.
    """
    sections = collected.sections
    for section in sections:
        files = [path for path in section["files"] if not path.is_symlink()]
        section["links"] = [{"name": path.name, "href": _link(path, folder)} for path in files]
    judged = [section for section in sections if section["verdicts"]]
    verdicts = [(verdict, section) for section in judged for verdict in section["verdicts"]]
    shown = (
        "id",
        "title",
        "short",
        "word",
        "charts",
        "grid",
        "slides",
        "gallery",
        "tree",
        "tokens",
        "headlines",
    )
    data = json.dumps(
        {"sections": [{key: _visible(section[key]) for key in shown} for section in sections]},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    plotly, packed = _plotly()
    script = asset("report/page.js")
    return rendered(
        "report/page.html",
        style=asset("report/page.css"),
        hashes=" ".join(
            f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"
            for text in (script, plotly)
        ),
        version=uturn.__version__,
        sections=sections,
        groups=_groups(sections),
        problems=collected.problems,
        judged=judged,
        verdicts=sorted(verdicts, key=lambda pair: _OUTCOMES.index(pair[0]["passed"])),
        count=tally([verdict for verdict, _ in verdicts]),
        data=data.replace("<", "\\u003c"),  # a text such as </script> would end the element
        plotly=packed,
        script=script,
    )


def _groups(sections: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The headings of groups, by the id of the first section of each. Results that are no
    figures follow those that are.
    """
    headings = {}
    group = ""
    for section in sections:
        if section["group"] != group:
            group = section["group"]
            headings[section["id"]] = group or "Other results"
    return headings


def _visible(data: Any) -> Any:
    """Plain data whose texts have no raw control characters and direction marks."""
    if isinstance(data, dict):
        return {key: _visible(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_visible(value) for value in data]
    return visible(data) if isinstance(data, str) else data


def _link(path: Path, folder: Path) -> str:
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


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def token_page(data: xr.Dataset) -> str:
    """The stored texts of a run, token by token, as a single file without scripts."""
    items = list(blocks(data))
    names = data.region_name.values if "region_name" in data.coords else []
    return rendered(
        "report/tokens.html",
        description=data.attrs.get("description", ""),
        of_characters=all(
            len(token.text) == 1 for _, rows in items for row in rows for token in row.tokens
        ),
        regions=[(name, _edge(k)) for k, name in enumerate(names)],
        separators="shown_separator" in data,
        items=items,
    )


def _edge(region: int) -> str:
    """Style of the line below the tokens of a region; "" for none."""
    return _EDGES[region % len(_EDGES)] if region >= 0 else ""


def _marked(tokens: Sequence[Token]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Runs of tokens of one region, with the line of the region; each token as (unmarked blank
    before it, tag, text).
    """
    first = True
    for region, run in groupby(tokens, key=lambda token: token.region):
        pieces = []
        for token in run:
            blank = " " if len(token.text) > 1 and token.text.startswith(" ") else ""
            tag = (
                "mark" if token.changed else "i" if token.noised else "b" if token.separates else ""
            )
            # So the line below a run has no gaps.
            pieces.append(("" if first else blank, tag, token.text[len(blank) :]))
            first = False
        yield _edge(region), pieces
