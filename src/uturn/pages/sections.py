"""Sections of a page as plain data, and a reader for files that may be damaged or written by
another version.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import TypeAdapter

import uturn
from uturn.core.checks import expect
from uturn.core.files import LARGEST_TABLE, check_plain
from uturn.core.messages import one_line
from uturn.pages.charts import numbers
from uturn.pages.pictures import preview
from uturn.store.outputs import bounded_chunks, digest_of_dataset
from uturn.store.run_folder import open_run
from uturn.studies.tables import TextTable

_MOST_SPEC = 20_000  # characters of a spec
# Of datasets.
_CODECS = {"NoneType", "BytesCodec", "VLenUTF8Codec", "ZstdCodec", "_Bounded", "Crc32cCodec"}
_MOST_BYTES = 2**30  # of a dataset, which is in memory


@dataclass
class Collected:
    """Sections of a page, and problems {"file", "words"}, whose two texts are printed one after
    the other.
    """

    sections: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)


def new_section(kind: str, name: str, docs: str, title: str) -> dict[str, Any]:
    """A section without content; `docs`: the page of the documentation that describes it.

    `covers`: a pattern of the stores beside the file that the section shows, which have no sections
    of their own. `pictures` come behind the views, or before them (`pictures_first`). `word`: what
    the slider sets, "noise" by default. `group`: the heading that the page shows above the first of
    consecutive sections with this group.

    Views, in the order of the page; `noise`, `log` and `words` of one are its levels, whether they
    are geometric, and their axis:

    - `overview`: a `TextTable` as a table.
    - `grid`: images of originals and reconstructions (`uturn.pages.pictures.grid`).
    - `slides`: pictures that follow the slider. `title`, `rows` {"name", "levels": previews with
      "words"}.
    - `gallery`: images that follow the slider, in tables. `title`, `label`, `heads`, `key` (texts
      and {"swatch": CSS class}), `smooth`, `kept` of `of` originals, and `groups` {"name", "rows":
      their names, "items": {"name", "shared", "rows"}}: an image {"url", "size"} at each level for
      each column.
    - `tree`, `tokens`, `charts` (`uturn.pages.trees`, `tokens`, `charts`).
    """
    lists = (
        "headlines",
        "tables",
        "verdicts",
        "charts",
        "files",
        "pictures",
        "details",
        "notes",
        "warnings",
        "remarks",
    )
    return {
        **{
            "id": "".join(c if c.isalnum() else "-" for c in name),
            "kind": kind,
            "short": name,
            "docs": docs,
            "title": title,
        },
        **dict.fromkeys(("words", "facts", "caption", "covers", "word", "group"), ""),
        **{key: [] for key in lists},
        **dict.fromkeys(("overview", "grid", "slides", "gallery", "tree", "tokens")),
        "pictures_first": False,
    }


def existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def card(
    label: str, axis: str, place: Any, claim: str, supports: str = "", is_range: bool = False
) -> dict[str, Any]:
    """An entry of the summary: label, axis, value with interval (or range), or a verdict in
    words, and claim.
    """
    place = place if isinstance(place, str) else numbers(place)
    return {
        "label": label,
        "axis": axis,
        "place": place,
        "claim": claim,
        "supports": supports,
        "is_range": is_range,
    }


@dataclass
class Reader:
    """Reads files into `collected`; `alone`: whether only one folder is read."""

    collected: Collected
    alone: bool = True

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """Context that suppresses an error and notes it with the name of the file."""
        try:
            yield
        except Exception as error:  # a damaged file can raise any exception
            message = one_line(error)
            self.note(
                path,
                (
                    f"not valid JSON: {message}"
                    if isinstance(error, json.JSONDecodeError)
                    else message
                ),
            )

    def note(self, path: Path, message: str) -> None:
        """Note a problem with a file; a message that begins with the file's name is not given
        the name again.
        """
        message = " ".join(message.split())
        shortened = re.sub(f"^{re.escape(str(path))}(?=:? )", "", message)
        self.collected.problems.append(
            {"file": str(path), "words": f": {message}" if shortened == message else shortened}
        )

    def content(self, path: Path) -> bytes:
        """The content of a JSON file; ValueError for a link, a pipe, or one that is too large."""
        check_plain(path)
        size = path.stat().st_size
        expect(size <= LARGEST_TABLE, f"{path}: bytes", size, f"at most {LARGEST_TABLE}")
        return path.read_bytes()

    def dataset(self, path: Path) -> xr.Dataset:
        """A zarr folder as a dataset in memory; ValueError if it promises more than a gigabyte."""
        check_plain(path)
        with warnings.catch_warnings(), bounded_chunks():
            warnings.simplefilter("ignore")
            data = xr.open_zarr(path, zarr_format=3, chunks=None)
            # Other codecs, such as gzip, decode a few bytes to gigabytes.
            for name, of in data.variables.items():
                used = (
                    *of.encoding.get("filters", ()),
                    of.encoding.get("serializer"),
                    *of.encoding.get("compressors", ()),
                )
                names = {type(codec).__name__ for codec in used}
                expect(
                    names <= _CODECS,
                    f"{path}: codecs of {name}",
                    sorted(names),
                    "those that this package writes",
                )
            expect(
                data.nbytes <= _MOST_BYTES, f"{path}: bytes", data.nbytes, f"at most {_MOST_BYTES}"
            )
            data.load()
        size, digest = (
            sum(file.stat().st_size for file in path.rglob("*")),
            data.attrs.pop("digest", ""),
        )
        expect(size <= _MOST_BYTES, f"{path}: bytes of its files", size, f"at most {_MOST_BYTES}")
        # Without a digest, another version wrote it.
        is_whole = not digest or digest == digest_of_dataset(path)
        expect(
            is_whole,
            f"{path}: files",
            "damaged or missing ones",
            "those that were written; make it again, or copy it again",
        )
        return data

    def run(self, path: Path) -> xr.Dataset:
        """The dataset of a store of `uturn run`, or of stored readings."""
        check_plain(path)
        return open_run(path)

    def add_picture(self, section: dict[str, Any], path: Path, words: str) -> None:
        """Add a preview of a picture to a section, if the file exists."""
        if path.exists():
            with self.noting(path):
                section["pictures"].append(dict(preview(path, words)))

    def details(self, name: str, attributes: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Spec, its hash, versions and fingerprints from the attributes of a run; notes if
        another version wrote the run.
        """
        versions = table_in(attributes.get("versions"))
        if versions.get("uturn", uturn.__version__) != uturn.__version__:
            made = (
                f"made with uturn {versions['uturn']}; this page was written by"
                f" {uturn.__version__}, which may not show all"
            )
            self.note(path, made)
        facts = {"spec hash": attributes.get("spec_hash", ""), **versions}
        facts |= {
            f"fingerprint of {part}": value
            for part, value in table_in(attributes.get("models")).items()
        }
        spec = json.dumps(table_in(attributes.get("spec")), indent=1, ensure_ascii=False)
        return {
            "name": name,
            "facts": facts,
            "spec": spec if len(spec) <= _MOST_SPEC else f"{spec[:_MOST_SPEC]} ..",
        }


def checked_table(content: Any) -> dict[str, Any]:
    """A `TextTable` from a file, as plain data; ValueError if it is damaged."""
    table = TypeAdapter(TextTable).validate_python(content)
    cells, heads = max(map(len, table.rows), default=0), len(table.heads)
    expect(
        cells <= heads,
        f"table {table.title}: cells of a row",
        cells,
        f"at most {heads}, one for each head",
    )
    return table._asdict()


def table_in(text: Any) -> dict[str, Any]:
    """A table, decoded if it is stored as JSON; empty if it is damaged."""
    try:
        table = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
