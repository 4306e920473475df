"""Sections of a page, and a reader for files that may be damaged or written by another version.

`uturn.pages.html` makes the JSON of a page from its sections. `uturn.core.tools` says how a tool adds
a section.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
from pydantic import JsonValue, TypeAdapter

import uturn
from uturn.core.checks import expect
from uturn.core.files import LARGEST_TABLE, check_plain
from uturn.core.messages import one_line
from uturn.pages.pictures import preview
from uturn.pages.verdicts import Verdict
from uturn.pages.views import Card, Chart, Gallery, Grid, Picture, RunDetails, Slides, Tokens, Tree
from uturn.store.outputs import bounded_chunks, digest_of_dataset
from uturn.store.reading import open_run
from uturn.studies.tables import TextTable

_MOST_SPEC = 20_000
"""Characters of a spec that a page shows."""
_CODECS = {"NoneType", "BytesCodec", "VLenUTF8Codec", "ZstdCodec", "_Bounded", "Crc32cCodec"}
"""Codecs of datasets that this package writes."""
_MOST_BYTES = 2**30
"""Of a dataset, which is in memory."""


@dataclass
class Section:
    """A part of a page, for one result. It fills general views; the page knows no tool."""

    kind: str
    """Which result it is: study, figure, store, or the name of a tool."""
    name: str
    """Short name, in links."""
    docs: str
    """Where the result is described: the name of a page in docs/ without ".md", or a URL."""
    title: str
    group: str = ""
    """Heading above the first of consecutive sections of a group."""
    slider: str = ""
    """What the slider sets, if that is not the noise."""
    covers: str = ""
    """Pattern of the stores beside the file that the section shows. They get no sections of their
    own.
    """

    cards: list[Card] = field(default_factory=list)
    """Shown at the top of the page."""
    words: str = ""
    """The result in a sentence or two."""
    warnings: list[str] = field(default_factory=list)
    caption: str = ""
    facts: str = ""
    notes: list[str] = field(default_factory=list)
    overview: TextTable | None = None

    grid: Grid | None = None
    slides: Slides | None = None
    gallery: Gallery | None = None
    tree: Tree | None = None
    tokens: Tokens | None = None
    charts: list[Chart] = field(default_factory=list)

    pictures: list[Picture] = field(default_factory=list)
    has_pictures_first: bool = False
    """Whether pictures stand before the views, not behind them."""
    tables: list[TextTable] = field(default_factory=list)
    """Folded, with the remarks."""
    remarks: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    details: list[RunDetails] = field(default_factory=list)
    id: str = ""
    """Of the element of the page; made from the name."""

    def __post_init__(self) -> None:
        if not self.id:
            self.id = "".join(c if c.isalnum() else "-" for c in self.name)


@dataclass(frozen=True)
class Problem:
    """A file that is not shown in full. The two texts are printed one after the other."""

    file: str
    words: str

    def __str__(self) -> str:
        return f"{self.file}{self.words}"


@dataclass
class Collected:
    """Sections of a page, and problems with the files that were read for them."""

    sections: list[Section] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


@dataclass
class Reader:
    """Reads files into `collected`."""

    collected: Collected
    is_alone: bool = True
    """Whether only one folder is read."""

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """Context that suppresses an error and notes it with the name of the file."""
        try:
            yield
        except json.JSONDecodeError as error:
            self.note(path, f"not valid JSON: {one_line(error)}")
        except Exception as error:  # a damaged file can raise any exception
            self.note(path, one_line(error))

    def note(self, path: Path, message: str) -> None:
        """Note a problem with a file; a message that begins with the file's name is not given
        the name again.
        """
        message = " ".join(message.split())
        words = re.sub(f"^{re.escape(str(path))}(?=:? )", "", message)
        if words == message:
            words = f": {message}"
        self.collected.problems.append(Problem(str(path), words))

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
            data: xr.Dataset = xr.open_zarr(path, zarr_format=3, chunks=None)
            for name, variable in data.variables.items():
                _check_codecs(path, str(name), variable)
            size = data.nbytes
            expect(size <= _MOST_BYTES, f"{path}: bytes", size, f"at most {_MOST_BYTES}")
            data.load()
        size = sum(file.stat().st_size for file in path.rglob("*"))
        expect(size <= _MOST_BYTES, f"{path}: bytes of its files", size, f"at most {_MOST_BYTES}")
        # Another version may have written no digest.
        digest = data.attrs.pop("digest", "")
        if digest and digest != digest_of_dataset(path):
            raise ValueError(f"{path} is damaged or incomplete; write it again, or copy it again")
        return data

    def run(self, path: Path) -> xr.Dataset:
        """The dataset of a store of `uturn run`, or of stored readings."""
        check_plain(path)
        return open_run(path)

    def add_picture(self, section: Section, path: Path, caption: str) -> None:
        """Add a preview of a picture to a section, if the file exists."""
        if path.exists():
            with self.noting(path):
                section.pictures.append(preview(path, caption))

    def details(self, name: str, attributes: Mapping[str, object], path: Path) -> RunDetails:
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
        for part, value in table_in(attributes.get("models")).items():
            facts[f"fingerprint of {part}"] = value
        spec = json.dumps(table_in(attributes.get("spec")), indent=1, ensure_ascii=False)
        if len(spec) > _MOST_SPEC:
            spec = f"{spec[:_MOST_SPEC]} .."
        return RunDetails(name, {key: str(value) for key, value in facts.items() if value}, spec)


def _check_codecs(path: Path, name: str, variable: xr.Variable) -> None:
    """ValueError for other codecs, such as gzip, which decode a few bytes to gigabytes."""
    encoding = variable.encoding
    used = [*encoding.get("filters", ()), encoding.get("serializer")]
    used += encoding.get("compressors", ())
    names = {type(codec).__name__ for codec in used}
    expected = "codecs that this package writes"
    expect(names <= _CODECS, f"{path}: codecs of {name}", sorted(names), expected)


def checked_table(content: JsonValue) -> TextTable:
    """A table from a file; ValueError if it is damaged."""
    table = TypeAdapter(TextTable).validate_python(content)
    cells = max(map(len, table.rows), default=0)
    heads = len(table.heads)
    expected = f"at most {heads}, one for each head"
    expect(cells <= heads, f"table {table.title}: cells of a row", cells, expected)
    return table


def table_in(text: object) -> dict[str, JsonValue]:
    """A table, decoded if it is stored as JSON; empty if it is damaged."""
    try:
        table = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
