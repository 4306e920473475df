"""Texts as originals: sequences of the tokens of a language model."""

from __future__ import annotations

import csv
import io
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import checked_array, expect
from uturn.core.data import NoisingProcess
from uturn.core.files import checked_path, read_array, read_text
from uturn.core.inputs import Content
from uturn.core.messages import counted, file_name, one_line
from uturn.core.own_parts import name_of
from uturn.core.protocols import Backward, Noisy, Originals, Source, Spec
from uturn.core.random import Streams
from uturn.sources.embedded_text import passages_file

PAD = -2
"""Value beyond the end of a text that is shorter than the longest one."""
_MOST_UNKNOWN = 0.5  # share of unknown tokens beyond which a tokenizer cannot be the right one


class Tokenizer(Protocol):
    """The members of a tokenizer that texts and their results need."""

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown token; None if every text has its tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without tokens that a model puts before and after it."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as text."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens."""

    def fingerprint(self) -> str:
        """A value that is equal for tokenizers that convert every text in the same way."""


class TokenModel(Protocol):
    """What a source of texts asks of the language model of a backward."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if texts are given as ids."""

    @property
    def most_tokens(self) -> int | None:
        """Number of tokens of the longest text; None without a limit."""


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

    def continued(self, reconstructions: np.ndarray, taken: np.ndarray) -> Tokens:
        return replace(self, data=np.where(taken[:, None], reconstructions[:, 0], self.data))

    def observed_by(
        self, corruption: NoisingProcess, noise: float, streams: Streams
    ) -> NoisyTokens:
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
    block_class: ClassVar[type[Originals]] = Tokens
    site_name: ClassVar[str] = "tokens"
    batch_invariant: ClassVar[bool] = True

    def separators(self) -> Sequence[str]:
        """Texts of the tokens that separate segments of a text, such as "."; by default none."""
        return ()

    def longest(self) -> int | None:
        """Longer texts are left out. None: the model refuses those that are too long for it."""
        return None

    def has_ids(self) -> bool:
        """Whether `texts` are ids, which may hold any number of unknown tokens."""
        return any(not isinstance(text, str) for text in self._checked_texts())

    def num_fixed(self) -> int:
        """Number of tokens at the beginning of each text that noise does not change."""
        return 0

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
        texts = self._checked_texts()
        labels = self.labels()
        if labels is not None:
            expected = f"{len(texts)}, a class for each text"
            expect(len(labels) == len(texts), f"{self.where}.labels: length", len(labels), expected)
        for k, text in enumerate(texts):
            row = {"text": text} if labels is None else {"text": text, "label": labels[k]}
            yield f"text {k}", row

    def _checked_texts(self) -> Sequence[str | Sequence[int]]:
        """What `texts` gives, as a list; ValueError unless these are several texts."""
        texts = self.texts()
        are_several = isinstance(texts, Iterable) and not isinstance(texts, str)
        expect(are_several, f"{self.where}.texts", texts, "a list of texts, or of their ids")
        return list(texts)

    def made_by(self, backward: Backward, seed: int) -> TextSource:
        bound = copy(self)
        object.__setattr__(bound, "_backward", backward)  # works for frozen dataclasses, too
        return bound

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the model; None if it has none."""
        return getattr(self.language(), "tokenizer", None)

    @property
    def vocab_size(self) -> int:
        """Number V of tokens of the model."""
        return int(self.language().vocab_size)

    @property
    def backward(self) -> Backward | None:
        """The backward of the experiment, which has the model; None before there is one."""
        return getattr(self, "_backward", None)

    def language(self) -> TokenModel:
        """The language model of the backward, whose members `vocab_size`, `tokenizer` and
        `most_tokens` the source reads; one of the user may lack the last two.
        """
        backward: Any = self.backward  # any that has the method `language`
        expected = "one with a method `language`, as 'language' has"
        has_language = hasattr(backward, "language")
        expect(has_language, "backward of the source 'tokens'", backward, expected)
        model: TokenModel = backward.language()
        where = f"{name_of(backward, 'backward')}.language"
        expected = "a uturn.networks.LanguageModel, or an object with its `vocab_size`"
        expect(hasattr(model, "vocab_size"), where, model, expected)
        return model

    @property
    def item_bytes(self) -> int:
        return 8 * self.max_length

    @property
    def max_length(self) -> int:
        """Length of the longest text in tokens: the size of the arrays."""
        return int(self._texts().ids.shape[1])

    def count(self) -> int:
        return len(self._texts().ids)

    def ids(self, items: ArrayLike) -> np.ndarray:
        """Ids of some texts, int64 (items, length)."""
        ids: np.ndarray = self._texts().ids[np.asarray(items)]
        return ids

    @property
    def has_fixed(self) -> bool:
        texts = self._texts()
        return bool((texts.free != (texts.ids != PAD)).any())

    def free(self, items: ArrayLike) -> np.ndarray:
        """Which tokens can become noisy, bool (items, length); False for fixed tokens and beyond
        the end of a text.
        """
        rows: np.ndarray = self._texts().free[np.asarray(items)]
        return rows

    @property
    def regions(self) -> tuple[str, ...]:
        """The characters that name regions, in alphabetical order; empty without regions."""
        return self._texts().names

    def regions_of(self, items: ArrayLike) -> np.ndarray:
        """Numbers of the regions of all tokens, int64 (items, length), -1 for fixed tokens and
        beyond the end of a text.
        """
        rows: np.ndarray = self._texts().regions[np.asarray(items)]
        return rows

    def num_labels(self) -> int | None:
        """The largest label + 1; None without labels."""
        labels = self._texts().labels
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    def labels_of(self, items: ArrayLike) -> np.ndarray | None:
        """Classes of some texts, int64 (items,), -1 where unknown; None without labels."""
        labels = self._texts().labels
        return None if labels is None else labels[np.asarray(items)]

    def segments_of(self, items: ArrayLike) -> np.ndarray:
        """Numbers of the segments of all tokens, int64 (items, length); -1 for separators, fixed
        tokens, and beyond the end.
        """
        is_separator = np.isin(self.ids(items), self._separators())
        return np.where(is_separator | ~self.free(items), -1, np.cumsum(is_separator, axis=1))

    def _separators(self) -> list[int]:
        separators: list[int] = []
        tokenizer = self.tokenizer
        for text in self.separators():
            ids: Sequence[int] = []
            if tokenizer is not None:
                with suppress(ValueError):  # a character without a token
                    ids = tokenizer.encode(text)
            is_token = tokenizer is not None and len(ids) == 1 and ids[0] != tokenizer.unknown_id
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
        return _read(self, self.backward)


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
    _backward: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits(self) -> TokenSource:
        expect(
            not self.windows or Path(self.path).suffix not in (".npy", *_TABLES),
            "windows",
            True,
            "False for ids and tables",
        )
        return self

    @classmethod
    def describe(cls, options: Mapping[str, Any], count: int, seed: int) -> str:
        texts = counted(count, "window" if options.get("windows") else "text")
        path = options.get("path", "?")
        name = "the embedded passages" if path == "embedded" else file_name(path)
        return f"{texts} of {name}"

    def reads(self) -> list[Any]:
        return [*map(Content, _text_files(self.path)), *super().reads()]

    def made_by(self, backward: Backward, seed: int) -> TokenSource:
        bound = self.model_copy()
        bound._backward = backward
        return bound

    def separators(self) -> Sequence[str]:
        return self.segments

    def longest(self) -> int | None:
        return self.length

    def num_fixed(self) -> int:
        return self.keep_first

    def texts(self) -> Sequence[str | Sequence[int]]:
        return [row["text"] for _, row in self.rows(None)]

    @property
    def where(self) -> str:
        return f"path = {self.path!r}"

    def rows(self, most_tokens: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return _rows(self, self.where, most_tokens)

    def has_ids(self) -> bool:
        return self.path.endswith(".npy")


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


class _Row(NamedTuple):
    """A text of a source, as tokens of the model."""

    where: str
    """How errors name it."""
    ids: np.ndarray
    """int64 (tokens,)"""
    columns: Mapping[str, Any]
    """What else the source says of it: perhaps `label`, `regions`, `fixed`."""


@cached_while_unchanged(files=lambda source, backward: source.files())
def _read(source: TextSource, backward: Backward | None) -> _Texts:  # a key of the cache
    """The texts of a source as ids of the model of a backward."""
    rows: list[_Row] = []
    left_out: dict[str, str] = {}
    for name, columns in source.rows(getattr(source.language(), "most_tokens", None)):
        row = _row_of(source, f"{source.where}: {name}", columns)
        if isinstance(row, str):
            left_out[name] = row
        else:
            rows.append(row)
    windows = "or for windows a text of at least `length` tokens"
    least = f"at least one line of at most `length` tokens, {windows}"
    expect(rows, f"{source.where}: texts in it", 0, least)
    if not source.has_ids():
        check_known(source.where, [row.ids.tolist() for row in rows], source.tokenizer)
    ids = np.full((len(rows), max(len(row.ids) for row in rows)), PAD, np.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row.ids)] = row.ids
    free = _free(rows, ids, source.num_fixed())
    names, regions = _regions(rows, ids.shape)
    return _Texts(ids, free, _labels(rows), names, np.where(free, regions, -1), left_out)


def _row_of(source: TextSource, where: str, columns: Mapping[str, Any]) -> _Row | str:
    """A text as tokens, or the reason why it is left out; ValueError if it is not a text."""
    text = columns.get("text")
    v = source.vocab_size
    if isinstance(text, str):
        if not text.strip():
            return "empty"
        ids = checked_array(where, _encoded(source.tokenizer, text, where))
    else:
        ids = checked_array(where, text)
    way_out = "remove it, or choose another tokenizer"
    expect(ids.size, where, text, f"at least one token of the model; {way_out}")
    are_ids = ids.ndim == 1 and ids.dtype.kind in "iu" and 0 <= ids.min() <= ids.max() < v
    expect(are_ids, where, text, f"a text, or ids 0 .. {v - 1}, as the model has")
    longest = source.longest()
    if longest is not None and len(ids) > longest:
        return f"{len(ids)} tokens, more than length = {longest}"
    most = getattr(source.language(), "most_tokens", None)
    in_windows = "cut a text file into windows (windows = true, --windows)"
    way_out = f"leave longer texts out (length, --length), or {in_windows}"
    expected = f"at most {most} by the model; {way_out}"
    expect(most is None or len(ids) <= most, f"{where}: tokens", len(ids), expected)
    return _Row(where, ids, columns)


def _free(rows: Sequence[_Row], ids: np.ndarray, num_fixed: int) -> np.ndarray:
    """Which tokens noise can change, bool (texts, longest), or a ValueError."""
    free: np.ndarray = (ids != PAD) & (np.arange(ids.shape[1]) >= num_fixed)
    for is_free, marks in zip(free, _marks(rows, "fixed", "[01]*"), strict=False):
        is_free[: len(marks)] &= np.array(list(marks)) == "0"
    has_free = free.any(1)
    where = f"{rows[int(has_free.argmin())].where}: tokens that noise can change"
    expect(has_free.all(), where, 0, "at least one; fix fewer (keep_first, fixed)")
    return free


def _labels(rows: Sequence[_Row]) -> np.ndarray | None:
    """The classes, int64 (texts,); None without any."""
    if not any("label" in row.columns for row in rows):
        return None
    labels = []
    for row in rows:
        label = row.columns.get("label")
        expected = "the number of a class, or -1 where it is unknown"
        is_class = re.fullmatch(r"-1|\d{1,9}", str(label).strip())
        expect(is_class, f"{row.where}: label", label, expected)
        labels.append(int(str(label)))
    return np.array(labels, np.int64)


def _regions(rows: Sequence[_Row], shape: tuple[int, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of regions, and the numbers of the regions of all tokens, -1 without one."""
    marks = _marks(rows, "regions", ".*")
    names = tuple(sorted(set().union(*marks)))
    regions = np.full(shape, -1)
    for numbers, of_text in zip(regions, marks, strict=False):
        numbers[: len(of_text)] = [names.index(name) for name in of_text]
    return names, regions


def _marks(rows: Sequence[_Row], column: str, pattern: str) -> list[str]:
    """A column with a character for each token of each text; empty if there is none."""
    if not any(column in row.columns for row in rows):
        return []
    marks = []
    for row in rows:
        value = row.columns.get(column)
        text = "" if value is None else str(value)
        is_of_tokens = re.fullmatch(pattern, text) and len(text) == len(row.ids)
        expected = f"a character for each of its {len(row.ids)} tokens, of {pattern}"
        expect(is_of_tokens, f"{row.where}: {column}", value, expected)
        marks.append(text)
    return marks


def _rows(
    source: TokenSource, where: str, most: int | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names of the texts of a source, and what its files say of each."""
    files = _text_files(source.path)
    suffix = files[0].suffix
    if suffix == ".npy":
        ids = read_array(files[0])
        expect(ids.ndim == 2 and ids.size, f"{where}: shape", ids.shape, "(items, length), of ids")
        for k, row in enumerate(ids):
            yield f"row {k}", {"text": row}
        return
    try:
        texts = [read_text(file) for file in files]
        table = _TABLES[suffix](texts[0]) if suffix in _TABLES else []
        columns = dict.fromkeys(column for row in table for column in row)
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        reason = one_line(error)
        raise ValueError(f"{where} cannot be read ({reason}); expected text in UTF-8") from None
    if suffix in _TABLES:
        known = ("text", "label", "regions", "fixed")
        are_known = "text" in columns and columns.keys() <= {*known}
        expected = f"text, and perhaps {', '.join(known[1:])}"
        expect(are_known, f"{where}: columns", [*columns], expected)
        for k, row in enumerate(table, 1):
            yield f"text {k}", row
    elif source.windows:
        size = source.length or most or 0
        expected = "one for windows, since the model does not say how many tokens it takes"
        expect(size, "length", None, expected)
        for k, window in enumerate(_windows(source, texts, size), 1):
            yield f"window {k}", {"text": window}
    else:
        lines = (line for text in texts for line in text.splitlines())
        for k, line in enumerate(lines, 1):
            yield f"line {k}", {"text": line}


def _windows(source: TokenSource, texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The ids of each text, cut into windows; what is left at its end is not used."""
    for ids in [_encoded(source.tokenizer, text, source.where) for text in texts]:
        for start in range(0, len(ids) - size + 1, size):
            yield ids[start : start + size]


_TABLES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text), strict=True)),
    ".jsonl": lambda text: [dict(json.loads(line)) for line in text.split("\n") if line.strip()],
}


def _encoded(tokenizer: Tokenizer | None, text: str, where: str) -> list[int]:
    """Ids of a text; ValueError if it has a character that is no token."""
    if tokenizer is None:
        raise ValueError(
            f"{where}: tokenizer = None: expected ids (.npy, or lists in .jsonl), as the model has"
            " no tokenizer"
        )
    try:
        text.encode()  # an error for lone surrogates
        return tokenizer.encode(text)
    except ValueError as error:
        way_out = "replace it, or take a model with other tokens (--model)"
        raise ValueError(f"{where}: {error}; {way_out}") from None


def check_known(where: str, texts: Sequence[Sequence[int]], tokenizer: Tokenizer | None) -> None:
    """ValueError if most tokens of the texts are the unknown token of their tokenizer."""
    if tokenizer is None or tokenizer.unknown_id is None:
        return
    total = sum(map(len, texts))
    unknown = 0
    for ids in texts:
        unknown += list(ids).count(tokenizer.unknown_id)
    splits = "split texts into the tokens of its vocab.txt (split: smiles, characters, ..)"
    expected = f"fewer with the tokenizer of the model; name the right one (tokenizer), or {splits}"
    share = f"{unknown} of {total}"
    expect(unknown <= _MOST_UNKNOWN * total, f"{where}: unknown tokens", share, expected)
