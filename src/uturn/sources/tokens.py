"""Texts as originals: sequences of the tokens of a language model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.checks import checked_path, one_line, shown
from uturn.core.files import cached_while_unchanged, read_array
from uturn.core.inputs import Content, File
from uturn.core.protocols import Noisy, Originals, Source, Spec
from uturn.core.random import Streams
from uturn.sources.embedded_text import passages_file

PAD = -2
"""Value beyond the end of a text that is shorter than the longest one."""
_MOST_UNKNOWN = 0.5  # share of unknown tokens beyond which a tokenizer cannot be the right one


@dataclass(frozen=True, repr=False)
class Tokens(Originals):
    """Texts as ids, int64 (batch, length), `PAD` beyond the end of a shorter text; V: number of tokens of the model.

    `free`, bool (batch, length): the tokens that noise can change; by default all up to the end of each text.
    `labels`: classes int64 (batch,), -1 where unknown; None without labels.
    """

    items: np.ndarray
    data: np.ndarray
    vocab_size: int
    free: Any = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.free is None:
            object.__setattr__(self, "free", self.data != PAD)

    def observed_by(self, corruption: Any, noise: float, streams: Streams) -> NoisyTokens:
        """Noisy tokens, one sequence for each trajectory of each original."""
        data, is_free = (np.repeat(of, streams.count, axis=0) for of in (self.data, self.free))
        noisy = corruption.corrupt(np.where(data == PAD, 0, data), noise, self.vocab_size, streams.keys(corruption.purpose))
        return NoisyTokens(np.where(is_free, noisy.values, data), noisy.noise, noisy.vocab_size, corruption)


@dataclass(frozen=True, eq=False, repr=False)
class NoisyTokens(Noisy):
    """Noisy texts, ids int64 (batch, length): -1 where masked, `PAD` beyond the end. `channel` made them."""

    channel: Any = None


def free_tokens(source: Any, items: Any) -> np.ndarray:
    """Which tokens of a source can become noisy, bool (items, length); all, for sources without a method `free`."""
    free: np.ndarray = source.free(items) if hasattr(source, "free") else source.ids(items) != PAD
    return free


class TokenSource(Spec, Source):
    """Texts from a file or folder, as tokens of the model of the backward.

    `path`: "embedded", the passages of the package; a text file; a folder of .txt files, read in the order of their names; or a
    .npy file of ids, integers (items, length). `windows`: if False, every line is an item, and empty lines are left out; if True,
    the text of each file is cut into windows of `length` tokens. `length`: tokens of a window; for lines, the largest number of
    tokens (longer lines are left out). `segments`: texts of the tokens that separate segments of a text, such as "." and ">>",
    for the probe `kept_tokens`. `regions`: a text file with a line for each line of `path`; each character names the region of a
    token. `labels`: a text file with a line for each line (or row) of `path`: the number of its class, -1 where unknown.

    Fixed tokens, such as a prompt, never become noisy, and readings of tokens leave them out. `keep_first`: the number of fixed
    tokens at the beginning of each text. `fixed`: a mask file, with a line for each line of `path` and a character for each
    token, 1 if it is fixed and 0 if not; or a .npy file of booleans, of the shape of the ids.

    Coordinates of `item`: `length`, the number of its tokens that are not fixed; `label`, with `labels`.
    """

    kind: ClassVar[str] = "tokens"
    site_name: ClassVar[str] = "tokens"
    batch_invariant: ClassVar[bool] = True
    type: Literal["tokens"] = "tokens"
    path: str = "embedded"
    windows: bool = False
    length: int | None = Field(default=None, ge=1, le=2**20)
    segments: tuple[str, ...] = ()
    regions: File | None = None
    keep_first: int = Field(default=0, ge=0, le=2**20)
    fixed: File | None = None
    labels: File | None = None
    _backward: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits(self) -> TokenSource:
        if self.regions is not None and (self.windows or self.path.endswith(".npy")):
            raise ValueError("regions: a line for each line of a text; leave it out for windows and .npy files")
        is_text = self.fixed is not None and not self.fixed.endswith(".npy")
        if is_text and (self.windows or self.path.endswith(".npy")):
            raise ValueError("fixed: a text file has a line for each line of a text; take a .npy file for windows and ids")
        if self.labels is not None and self.windows:
            raise ValueError("labels: a line for each line of a text; leave it out for windows")
        return self

    def made_by(self, backward: Any, seed: int) -> TokenSource:
        bound = self.model_copy()
        bound._backward = backward
        return bound

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
        language = getattr(self._backward, "language", None)
        if language is None:
            raise ValueError("source 'tokens' needs a backward with a method `language`, as 'language' has")
        return language()

    @property
    def item_bytes(self) -> int:
        return 8 * self.max_length

    @property
    def max_length(self) -> int:
        """Length of the longest text in tokens: the size of the arrays."""
        return self._texts().ids.shape[1]

    def count(self) -> int:
        """Number of texts."""
        return len(self._texts().ids)

    def ids(self, items: Any) -> np.ndarray:
        """Ids of some texts, int64 (items, length)."""
        return self._texts().ids[np.asarray(items)]

    @property
    def has_fixed(self) -> bool:
        """Whether some tokens are fixed."""
        return self.keep_first > 0 or self.fixed is not None

    def free(self, items: Any) -> np.ndarray:
        """Which tokens can become noisy, bool (items, length); False for fixed tokens and beyond the end of a text."""
        return self._texts().free[np.asarray(items)]

    def region_names(self) -> list[str]:
        """The characters that name regions, in alphabetical order; empty without `regions`."""
        return sorted({name for row in self._texts().regions for name in row})

    def regions_of(self, items: Any) -> np.ndarray:
        """Numbers of the regions of all tokens, int64 (items, length), -1 for fixed tokens and beyond the end of a text."""
        texts, names = self._texts(), self.region_names()
        out = np.full((len(items), self.max_length), -1)
        for row, item in enumerate(np.asarray(items)):
            out[row, : len(texts.regions[item])] = [names.index(name) for name in texts.regions[item]]
        return np.where(self.free(items), out, -1)

    def num_labels(self) -> int | None:
        """The largest label + 1; None without labels."""
        labels = self._texts().labels
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    def labels_of(self, items: Any) -> np.ndarray | None:
        """Classes of some texts, int64 (items,), -1 where unknown; None without labels."""
        labels = self._texts().labels
        return None if labels is None else labels[np.asarray(items)]

    def segments_of(self, items: Any) -> np.ndarray:
        """Number of the segment of all tokens, int64 (items, length).

        -1 for separators, fixed tokens, and beyond the end of a text.
        """
        is_separator = np.isin(self.ids(items), self._separators())
        return np.where(is_separator | ~self.free(items), -1, np.cumsum(is_separator, axis=1))

    def _separators(self) -> list[int]:
        separators = []
        for text in self.segments:
            try:
                ids = [] if self.tokenizer is None else self.tokenizer.encode(text)
            except ValueError:  # a character without a token
                ids = []
            if len(ids) != 1 or ids[0] == self.tokenizer.unknown_id:
                raise ValueError(f"segments: {text!r} is not one token of the model; expected the texts of single tokens")
            separators.append(ids[0])
        return separators

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Tokens]:
        self._check_count(num_items)
        yield Tokens(np.asarray(items), self.ids(items), self.vocab_size, self.free(items), self.labels_of(items))

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        self._check_count(num_items)
        labels = self.labels_of(np.arange(num_items))
        return {"length": self.free(np.arange(num_items)).sum(1), **({} if labels is None else {"label": labels})}

    def skipped(self, num_items: int) -> Mapping[str, str]:
        return dict(list(self._texts().left_out.items())[:1000])

    def reads(self) -> list[Any]:
        return [*map(Content, _text_files(self.path)), *super().reads()]

    def _check_count(self, num_items: int) -> None:
        if num_items > self.count():
            what = "windows" if self.windows else "texts"
            raise ValueError(f"items = {num_items}, but {self.path!r} has {self.count()} {what}; take at most as many")

    def _texts(self) -> _Texts:
        return _read(self, self._backward)


@dataclass(frozen=True)
class _Texts:
    """All texts of a source: ids and free tokens (texts, longest), names of regions, omitted lines with reasons, labels."""

    ids: np.ndarray
    free: np.ndarray
    regions: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    labels: np.ndarray | None = None


def _text_files(path: str) -> list[Path]:
    """The files that a path names; ValueError if there are none."""
    if path == "embedded":
        return [passages_file()]
    place = Path(checked_path("path", path))
    if place.is_file():
        return [place]
    files = sorted(place.glob("*.txt")) if place.is_dir() else []
    if not files:
        raise ValueError(
            f"path = {path!r}: {'a folder without .txt files' if place.is_dir() else 'no such file or folder'}; expected a text "
            f"file, a folder of .txt files, or a .npy file of ids"
        )
    return files


@cached_while_unchanged(files=lambda source, backward: source.files())
def _read(source: TokenSource, backward: Any) -> _Texts:
    """The texts of a source as ids of the model of a backward."""
    most = getattr(source.language(), "most_tokens", None)
    is_array = source.path.endswith(".npy")
    texts = _texts_of_ids(source) if is_array else _read_texts(source, most)
    longest = texts.ids.shape[1]
    if most is not None and longest > most:
        raise ValueError(f"path = {source.path!r}: texts of {longest} tokens, but the model takes {most}; take shorter ones")
    return texts


def _texts_of_ids(source: TokenSource) -> _Texts:
    ids = _read_ids(source.path, source.vocab_size)
    numbers = range(1, len(ids) + 1)
    return _Texts(ids, _free(source, ids, {}, len(ids)), labels=_read_labels(source.labels, numbers, len(ids)))


def _read_ids(path: str, vocab_size: int) -> np.ndarray:
    where, ids = f"path = {path!r}", read_array(path)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise ValueError(f"{where} has shape {ids.shape} and dtype {ids.dtype}; expected integers of shape (items, length)")
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{where}: the id {ids[row, column]} at ({row}, {column}); expected 0 .. {vocab_size - 1}, as the model has"
        )
    return ids.astype(np.int64)


def _read_texts(source: TokenSource, most: int | None) -> _Texts:
    tokenizer, where = source.tokenizer, f"path = {source.path!r}"
    if tokenizer is None:
        raise ValueError(f"{where}: the model has no tokenizer, so that only a .npy file of ids can be read")
    texts = [_content(path, str(path)) for path in _text_files(source.path)]
    left_out: dict[str, str] = {}
    lines = [line for text in texts for line in text.splitlines()]
    if source.windows:
        size = source.length or most
        if size is None:
            raise ValueError("length: missing; windows need it, since the model does not say how many tokens it takes")
        ids = [_encoded(tokenizer, text, where) for text in texts]
        windows = [of[start : start + size] for of in ids for start in range(0, len(of) - size + 1, size)]
        rows = dict(enumerate(windows, 1))
        if not rows:
            raise ValueError(f"{where}: no text has {size} tokens; take shorter windows (length), or lines")
    else:
        rows, left_out = _lines(where, lines, tokenizer, source.length, most)
    check_known(where, list(rows.values()), tokenizer)
    padded = np.full((len(rows), max(map(len, rows.values()))), PAD, np.int64)
    for row, tokens in enumerate(rows.values()):
        padded[row, : len(tokens)] = tokens
    count = len(lines)
    regions = [] if source.regions is None else _read_line_by_line("regions", source.regions, rows, count)
    return _Texts(padded, _free(source, padded, rows, count), regions, left_out, _read_labels(source.labels, rows, count))


def _free(source: TokenSource, ids: np.ndarray, rows: dict[int, list[int]], count: int) -> np.ndarray:
    """Which tokens can become noisy, bool (texts, longest); `rows`: tokens by the number of their line, out of `count`."""
    free = (ids != PAD) & (np.arange(ids.shape[1]) >= source.keep_first)
    if source.fixed is not None:
        where, free = f"fixed = {source.fixed!r}", np.array(free)
        if source.fixed.endswith(".npy"):
            mask = read_array(source.fixed)
            if mask.shape != ids.shape or mask.dtype != bool:
                raise ValueError(f"{where} has shape {mask.shape} and dtype {mask.dtype}; expected booleans of shape {ids.shape}")
            free &= ~mask
        else:
            for row, line in enumerate(_read_line_by_line("fixed", source.fixed, rows, count)):
                if not set(line) <= set("01"):
                    raise ValueError(f"{where}: a line has {shown(line)}; expected 1 for a fixed token and 0 for the others")
                free[row, : len(line)] &= np.array([character == "0" for character in line])
    if not (shortest := free.any(1)).all():
        text = int(np.flatnonzero(~shortest)[0])
        which = f"text {text}" if source.windows or not rows else f"line {list(rows)[text]} of the texts"
        name = "keep_first" if source.fixed is None else "fixed"
        raise ValueError(f"{name} = {getattr(source, name)!r}: {which} has no token left that noise can change; fix fewer")
    return free


def _content(path: Path, name: str) -> str:
    """The content of a text file, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {name} ({one_line(error)}); expected text in UTF-8") from None


def _encoded(tokenizer: Any, text: str, where: str) -> list[int]:
    """Ids of a text; ValueError if it has a character that is no token."""
    try:
        return list(tokenizer.encode(text))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; replace it, or take a model with other tokens (--model)") from None


def _lines(
    where: str, lines: list[str], tokenizer: Any, length: int | None, most: int | None
) -> tuple[dict[int, list[int]], dict[str, str]]:
    """The tokens of lines by their numbers, and the lines that are left out."""
    rows: dict[int, list[int]] = {}
    left_out: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            left_out[f"line {number}"] = "empty"
            continue
        tokens = _encoded(tokenizer, line, f"{where}: line {number}")
        if not tokens:
            raise ValueError(f"{where}: line {number} has no token of the model; remove it, or choose another tokenizer")
        if length is not None and len(tokens) > length:
            left_out[f"line {number}"] = f"{len(tokens)} tokens, more than length = {length}"
        elif most is not None and len(tokens) > most:
            raise ValueError(
                f"{where}: line {number} has {len(tokens)} tokens, but the model takes {most}; leave longer lines out (length, "
                f"--length), or cut the text into windows (windows = true, --windows)"
            )
        else:
            rows[number] = tokens
    if not rows:
        limit = "" if length is None else f" of at most {length} tokens"
        raise ValueError(f"{where}: no text in it{limit}; expected one a line")
    return rows, left_out


def check_known(where: str, rows: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """ValueError if most tokens of the texts are the unknown token."""
    total, unknown = sum(map(len, rows)), sum(token == tokenizer.unknown_id for row in rows for token in row)
    if unknown > _MOST_UNKNOWN * total:
        raise ValueError(
            f"{where}: {unknown} of {total} tokens are unknown to the model's tokenizer; name the right one (tokenizer), or "
            f"split texts into the tokens of its vocab.txt by a regular expression (split: smiles, characters, ..)"
        )


def _lines_of(name: str, path: str, count: int) -> list[str]:
    """The lines of a file that has one for each of `count` lines or rows of texts; ValueError if it has more."""
    lines = _content(Path(path), f"{name} = {path!r}").splitlines()
    if any(line.strip() for line in lines[count:]):
        raise ValueError(f"{name} = {path!r} has {len(lines)} lines, but the texts have {count}; expected a line for each")
    return lines


def _read_labels(path: str | None, numbers: Iterable[int], count: int) -> np.ndarray | None:
    """The classes on the lines with these numbers, int64; None without a file."""
    if path is None:
        return None
    lines, labels = _lines_of("labels", path, count), []
    for number in numbers:
        line = lines[number - 1].strip() if number <= len(lines) else ""
        if not re.fullmatch(r"-1|\d{1,9}", line):
            raise ValueError(
                f"labels = {path!r}: line {number} is {shown(line)}; expected the number of a class, or -1 where it is unknown"
            )
        labels.append(int(line))
    return np.array(labels, np.int64)


def _read_line_by_line(name: str, path: str, rows: dict[int, list[int]], count: int) -> list[str]:
    """A character for each token of the lines with these numbers."""
    lines, read = _lines_of(name, path, count), []
    for number, tokens in rows.items():
        line = lines[number - 1] if number <= len(lines) else ""
        if len(line) != len(tokens):
            raise ValueError(
                f"{name} = {path!r}: line {number} has {len(line)} characters, but the text {len(tokens)} tokens; expected "
                f"one for each ({shown(line)})"
            )
        read.append(line)
    return read
