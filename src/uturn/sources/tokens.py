"""Texts as originals: sequences of the tokens of a language model."""

from __future__ import annotations

import csv
import io
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from uturn.core.checks import checked_array, checked_path, expect
from uturn.core.files import cached_while_unchanged, read_array, read_text
from uturn.core.inputs import Content
from uturn.core.messages import one_line
from uturn.core.own_parts import name_of
from uturn.core.protocols import Noisy, Originals, Source, Spec
from uturn.core.random import Streams
from uturn.sources.embedded_text import passages_file

PAD = -2
"""Value beyond the end of a text that is shorter than the longest one."""
_MOST_UNKNOWN = 0.5  # share of unknown tokens beyond which a tokenizer cannot be the right one


@dataclass(frozen=True, repr=False)
class Tokens(Originals):
    """Texts as ids, int64 (batch, length), `PAD` beyond the end of a shorter text; V: number of
    tokens of the model.

    `free`, bool (batch, length): the tokens that noise can change; by default all up to the end of
    each text. `labels`: classes int64 (batch,), -1 where unknown; None without labels.
    """

    items: np.ndarray
    data: np.ndarray
    vocab_size: int
    free: Any = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.free is None:
            object.__setattr__(self, "free", self.data != PAD)

    def continued(self, reconstructions: Any, taken: np.ndarray) -> Tokens:
        return replace(self, data=np.where(taken[:, None], reconstructions[:, 0], self.data))

    def observed_by(self, corruption: Any, noise: float, streams: Streams) -> NoisyTokens:
        """Noisy tokens, one sequence for each trajectory of each original."""
        data, is_free = (np.repeat(of, streams.count, axis=0) for of in (self.data, self.free))
        symbols = np.where(data == PAD, 0, data)
        noisy = corruption.corrupt_symbols(
            symbols, noise, streams.keys(corruption.purpose), self.vocab_size
        )
        return NoisyTokens(
            np.where(is_free, noisy.values, data), noisy.noise, noisy.vocab_size, corruption
        )


@dataclass(frozen=True, eq=False, repr=False)
class NoisyTokens(Noisy):
    """Noisy texts, ids int64 (batch, length): -1 where masked, `PAD` beyond the end. `channel`
    made them.
    """

    channel: Any = None


class TextSource(Source[Tokens]):
    """Texts, as tokens of the model of the backward.

    A source of one's own defines `texts`, and perhaps `labels`; all else follows from the tokens.
    Coordinates of `item`: `length`, the number of tokens that are not fixed; `label`, if there are
    labels.
    """

    kind: ClassVar[str] = "tokens"
    site_name: ClassVar[str] = "tokens"
    batch_invariant: ClassVar[bool] = True
    if TYPE_CHECKING:  # may be fields of a spec
        segments: tuple[str, ...]
        """Texts of the tokens that separate segments of a text."""
        length: int | None
        """Longer texts are left out, None: the model refuses those that are too long for it."""
        keep_first: int
        """Number of tokens at the beginning of each text that noise does not change."""
    else:
        segments, length, keep_first = (), None, 0
    _backward: Any = None

    @property
    def where(self) -> str:
        """The name of the source in errors."""
        return name_of(self, type(self).__name__)

    @abstractmethod
    def texts(self) -> Sequence[str | Sequence[int]]:
        """All texts, or their ids."""

    def labels(self) -> Sequence[int] | None:
        """The class of each text, -1 where unknown; None without classes."""
        return None

    def rows(self, most_tokens: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The name of each text, and what is known of it: `text`, and perhaps `label`, `regions`,
        `fixed`.

        `most_tokens`: of a text, for the model.
        """
        labels = self.labels()
        for k, text in enumerate(self.texts()):
            yield (
                f"text {k}",
                ({"text": text} if labels is None else {"text": text, "label": labels[k]}),
            )

    def made_by(self, backward: Any, seed: int) -> TextSource:
        bound = copy(self)
        object.__setattr__(bound, "_backward", backward)  # works for frozen dataclasses, too
        return bound

    @property
    def backward(self) -> Any:  # of any class: `language` asks it for its model
        """The backward whose model reads the texts; None outside of an experiment."""
        return self._backward

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model; None if it has none."""
        return getattr(self.language(), "tokenizer", None)

    @property
    def vocab_size(self) -> int:
        """Number V of tokens of the model."""
        return self.language().vocab_size

    def language(self) -> Any:
        """The language model of the backward, with `vocab_size`, `tokenizer` and `most_tokens`."""
        has_language = hasattr(self._backward, "language")
        expect(
            has_language,
            "backward of the source 'tokens'",
            self._backward,
            "one with a method `language`, as 'language' has",
        )
        return self._backward.language()

    @property
    def item_bytes(self) -> int:
        return 8 * self.max_length

    @property
    def max_length(self) -> int:
        """Length of the longest text in tokens: the size of the arrays."""
        return self._texts().ids.shape[1]

    def count(self) -> int:
        return len(self._texts().ids)

    def ids(self, items: Any) -> np.ndarray:
        """Ids of some texts, int64 (items, length)."""
        return self._texts().ids[np.asarray(items)]

    @property
    def has_fixed(self) -> bool:
        texts = self._texts()
        return bool((texts.free != (texts.ids != PAD)).any())

    def free(self, items: Any) -> np.ndarray:
        """Which tokens can become noisy, bool (items, length); False for fixed tokens and beyond
        the end of a text.
        """
        return self._texts().free[np.asarray(items)]

    @property
    def regions(self) -> tuple[str, ...]:
        """The characters that name regions, in alphabetical order; empty without regions."""
        return self._texts().names

    def regions_of(self, items: Any) -> np.ndarray:
        """Numbers of the regions of all tokens, int64 (items, length), -1 for fixed tokens and
        beyond the end of a text.
        """
        return self._texts().regions[np.asarray(items)]

    def num_labels(self) -> int | None:
        """The largest label + 1; None without labels."""
        labels = self._texts().labels
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    def labels_of(self, items: Any) -> np.ndarray | None:
        """Classes of some texts, int64 (items,), -1 where unknown; None without labels."""
        labels = self._texts().labels
        return None if labels is None else labels[np.asarray(items)]

    def segments_of(self, items: Any) -> np.ndarray:
        """Numbers of the segments of all tokens, int64 (items, length); -1 for separators, fixed
        tokens, and beyond the end.
        """
        is_separator = np.isin(self.ids(items), self._separators())
        return np.where(is_separator | ~self.free(items), -1, np.cumsum(is_separator, axis=1))

    def _separators(self) -> list[int]:
        separators = []
        for text in self.segments:
            ids: list[int] = []
            with suppress(ValueError):  # a character without a token
                ids = [] if self.tokenizer is None else self.tokenizer.encode(text)
            is_token = len(ids) == 1 and ids[0] != self.tokenizer.unknown_id
            expect(is_token, "segments", text, "the texts of single tokens of the model")
            separators += ids
        return separators

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Tokens]:
        self._check_count(num_items)
        yield Tokens(
            np.asarray(items),
            self.ids(items),
            self.vocab_size,
            self.free(items),
            self.labels_of(items),
        )

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        self._check_count(num_items)
        labels = self.labels_of(np.arange(num_items))
        return {
            "length": self.free(np.arange(num_items)).sum(1),
            **({} if labels is None else {"label": labels}),
        }

    def skipped(self, num_items: int) -> Mapping[str, str]:
        return dict(list(self._texts().left_out.items())[:1000])

    def _check_count(self, num_items: int) -> None:
        expect(
            num_items <= self.count(),
            "items",
            num_items,
            f"at most {self.count()}, the texts or windows of {self.where}",
        )

    def _texts(self) -> _Texts:
        return _read(self, self._backward)


class TokenSource(Spec, TextSource):
    """Texts from a file or folder, as tokens of the model of the backward.

    `path`: "embedded", the passages of the package; a text file; a folder of .txt files, read in
    the order of their names; a .npy file of ids, integers (items, length); or a table of texts, a
    .csv file or JSON lines (.jsonl). `windows`: if False, each line of a text file is an item, and
    empty lines are left out; if True, the text of each file is cut into windows of `length` tokens.
    `length`: tokens of a window; for lines and tables, the largest number of tokens (longer texts
    are left out). `segments`: texts of the tokens that separate segments of a text, such as "." and
    ">>", for the probe `kept_tokens`.

    Columns of a table. `text`: the text, or, in JSON lines, a list of ids. `label`: the number of
    its class, -1 where unknown. `regions`: a character for each token, which names its region.
    `fixed`: a character for each token, 1 if it is fixed and 0 if not. Fixed tokens, such as a
    prompt, never become noisy, and readings of tokens leave them out. `keep_first`: the number of
    fixed tokens at the beginning of each text, for texts of any kind.

    Coordinates of `item`: `length`, the number of its tokens that are not fixed; `label`, if the
    table has labels.
    """

    type: Literal["tokens"] = "tokens"
    path: str = "embedded"
    windows: bool = False
    length: int | None = Field(default=None, ge=1, le=2**20)
    segments: tuple[str, ...] = ()
    keep_first: int = Field(default=0, ge=0, le=2**20)

    @model_validator(mode="after")
    def _fits(self) -> TokenSource:
        expect(
            not self.windows or Path(self.path).suffix not in (".npy", *_TABLES),
            "windows",
            True,
            "False for ids and tables",
        )
        return self

    def reads(self) -> list[Any]:
        return [*map(Content, _text_files(self.path)), *super().reads()]

    def texts(self) -> Sequence[str | Sequence[int]]:
        return [row["text"] for _, row in self.rows(None)]

    @property
    def where(self) -> str:
        return f"path = {self.path!r}"

    def rows(self, most_tokens: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return _rows(self, self.where, most_tokens)


class _Texts(NamedTuple):
    """All texts of a source."""

    ids: np.ndarray  # (texts, longest)
    free: np.ndarray  # bool (texts, longest)
    labels: np.ndarray | None
    names: tuple[str, ...]  # of regions
    regions: np.ndarray  # numbers of the regions (texts, longest)
    left_out: dict[str, str]  # omitted texts with reasons


def _text_files(path: str) -> list[Path]:
    """The files that a path names; ValueError if there are none."""
    if path == "embedded":
        return [passages_file()]
    place = Path(checked_path("path", path))
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    known = (
        "a text file, a folder of .txt files, a table (.csv, .jsonl), or a .npy file of ids; no"
        " such file or folder"
    )
    expect(files and files[0].is_file(), "path", path, known)
    return files


@cached_while_unchanged(files=lambda source, backward: source.files())
def _read(source: TextSource, backward: Any) -> _Texts:
    """The texts of a source as ids of the model of a backward."""
    path, tokenizer, v = source.where, source.tokenizer, source.vocab_size
    most = getattr(source.language(), "most_tokens", None)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name, row in source.rows(most):
        where, text = f"{path}: {name}", row.get("text")
        if isinstance(text, str) and not text.strip():
            left_out[name] = "empty"
            continue
        ids = checked_array(
            where, _encoded(tokenizer, text, where) if isinstance(text, str) else text
        )
        expect(
            ids.size,
            where,
            text,
            "at least one token of the model; remove it, or choose another tokenizer",
        )
        are_ids = ids.ndim == 1 and ids.dtype.kind in "iu" and 0 <= ids.min() <= ids.max() < v
        expect(are_ids, where, text, f"a text, or ids 0 .. {v - 1}, as the model has")
        if source.length is not None and len(ids) > source.length:
            left_out[name] = f"{len(ids)} tokens, more than length = {source.length}"
            continue
        way_out = (
            "leave longer texts out (length, --length), or cut a text file into windows (windows ="
            " true, --windows)"
        )
        expect(
            most is None or len(ids) <= most,
            f"{where}: tokens",
            len(ids),
            f"at most {most} by the model; {way_out}",
        )
        rows.append({**row, "ids": ids, "where": where, "is_text": isinstance(text, str)})
    least = (
        "at least one line of at most `length` tokens, or for windows a text of at least `length`"
        " tokens"
    )
    expect(rows, f"{path}: texts in it", 0, least)
    if tokenizer is not None and any(row["is_text"] for row in rows):
        check_known(path, [row["ids"] for row in rows], tokenizer)
    padded = np.full((len(rows), max(len(row["ids"]) for row in rows)), PAD, np.int64)
    for tokens, row in zip(padded, rows, strict=True):
        tokens[: len(row["ids"])] = row["ids"]
    free = (padded != PAD) & (np.arange(padded.shape[1]) >= source.keep_first)
    for is_free, marks in zip(free, _marks(rows, "fixed", "[01]*"), strict=False):
        is_free[: len(marks)] &= np.array(list(marks)) == "0"
    where = f"{rows[free.any(1).argmin()]['where']}: tokens that noise can change"
    expect(free.any(1).all(), where, 0, "at least one; fix fewer (keep_first, fixed)")
    labels = None
    if any("label" in row for row in rows):
        for row in rows:
            is_class = re.fullmatch(r"-1|\d{1,9}", str(row.get("label")).strip())
            expect(
                is_class,
                f"{row['where']}: label",
                row.get("label"),
                "the number of a class, or -1 where it is unknown",
            )
        labels = np.array([int(row["label"]) for row in rows], np.int64)
    named, regions = _marks(rows, "regions", ".*"), np.full(padded.shape, -1)
    names = tuple(sorted(set().union(*named)))
    for numbers, of_row in zip(regions, named, strict=False):
        numbers[: len(of_row)] = [names.index(name) for name in of_row]
    return _Texts(padded, free, labels, names, np.where(free, regions, -1), left_out)


def _marks(rows: Sequence[Mapping[str, Any]], column: str, pattern: str) -> list[str]:
    """A column with a character for each token of each text; empty if there is none."""
    if not any(column in row for row in rows):
        return []
    marks = ["" if row.get(column) is None else str(row[column]) for row in rows]
    for row, of_row in zip(rows, marks, strict=True):
        fits = re.fullmatch(pattern, of_row) and len(of_row) == len(row["ids"])
        expected = f"a character for each of its {len(row['ids'])} tokens, of {pattern}"
        expect(fits, f"{row['where']}: {column}", row.get(column), expected)
    return marks


def _rows(
    source: TokenSource, where: str, most: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the texts of a source, and what the source says of each: its text or ids, and the
    other columns of a table.
    """
    files = _text_files(source.path)
    suffix = files[0].suffix
    if suffix == ".npy":
        ids = read_array(files[0])
        expect(ids.ndim == 2 and ids.size, f"{where}: shape", ids.shape, "(items, length), of ids")
        yield from ((f"row {k}", {"text": row}) for k, row in enumerate(ids))
        return
    try:
        texts = [read_text(file) for file in files]
        table = _TABLES[suffix](texts[0]) if suffix in _TABLES else []
        columns = dict.fromkeys(column for row in table for column in row)
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        raise ValueError(
            f"{where} cannot be read ({one_line(error)}); expected text in UTF-8"
        ) from None
    if suffix in _TABLES:
        known = ("text", "label", "regions", "fixed")
        fits = "text" in columns and columns.keys() <= {*known}
        expect(fits, f"{where}: columns", [*columns], f"text, and perhaps {', '.join(known[1:])}")
        yield from ((f"text {k}", row) for k, row in enumerate(table, 1))
    elif source.windows:
        size = source.length or most or 0
        expect(
            size,
            "length",
            None,
            "one for windows, since the model does not say how many tokens it takes",
        )
        whole = [_encoded(source.tokenizer, text, where) for text in texts]
        windows = (
            ids[start : start + size]
            for ids in whole
            for start in range(0, len(ids) - size + 1, size)
        )
        yield from ((f"window {k}", {"text": window}) for k, window in enumerate(windows, 1))
    else:
        lines = (line for text in texts for line in text.splitlines())
        yield from ((f"line {k}", {"text": line}) for k, line in enumerate(lines, 1))


_TABLES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text), strict=True)),
    ".jsonl": lambda text: [dict(json.loads(line)) for line in text.split("\n") if line.strip()],
}


def _encoded(tokenizer: Any, text: str, where: str) -> list[int]:
    """Ids of a text; ValueError if it has a character that is no token."""
    expect(
        tokenizer is not None,
        f"{where}: tokenizer",
        None,
        "ids (.npy, or lists in .jsonl), as the model has no tokenizer",
    )
    try:
        text.encode()  # an error for lone surrogates
        return list(tokenizer.encode(text))
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}; replace it, or take a model with other tokens (--model)"
        ) from None


def check_known(where: str, rows: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """ValueError if most tokens of the texts are the unknown token."""
    total, unknown = (
        sum(map(len, rows)),
        sum(token == tokenizer.unknown_id for row in rows for token in row),
    )
    way_out = (
        "name the right one (tokenizer), or split texts into the tokens of its vocab.txt (split:"
        " smiles, characters, ..)"
    )
    is_known = unknown <= _MOST_UNKNOWN * total
    expect(
        is_known,
        f"{where}: unknown tokens",
        f"{unknown} of {total}",
        f"fewer with the tokenizer of the model; {way_out}",
    )
