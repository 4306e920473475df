"""Tokenizers: conversion of texts to the ids of a language model, and back.

Tokenizers of transformers are read from a folder or a hub. For models whose tokenizer transformers cannot read (SMILES, sequences
of residues, characters), a vocabulary with a regular expression replaces it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from uturn.core.checks import one_line, shown

SPLITS = {
    # Atoms in brackets, atoms of two letters, the arrow, ring closures of two digits, and single characters.
    "smiles": r"\[[^\]]*\]|Br|Cl|>>|%\d\d|.",
    "characters": r".",
}
"""Named regular expressions: a text is split into their matches."""
_NAMES = {  # names of special tokens in vocabularies
    "mask": ("[MASK]", "<mask>"),
    "unknown": ("[UNK]", "<unk>"),
    "begin": ("[CLS]", "<cls>", "<s>"),
    "end": ("[SEP]", "<eos>", "</s>"),
    "pad": ("[PAD]", "<pad>"),
}
MISSING = "pip install 'uturn[text]'"


class Tokenizer(Protocol):
    """The members of a tokenizer that experiments use."""

    @property
    def size(self) -> int:
        """Number of tokens; ids are 0 .. size - 1."""
        ...

    @property
    def mask_id(self) -> int | None: ...

    @property
    def unknown_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    @property
    def special(self) -> frozenset[int]:
        """Ids that represent no text; the unknown token is not one of them."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids before a text, as in the model's training."""
        ...

    @property
    def suffix(self) -> tuple[int, ...]:
        """Ids after a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without prefix and suffix."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they form the whole text."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of the tokens in a form for another tokenizer."""
        ...

    def fingerprint(self) -> str:
        """Identity of the vocabulary and of the splitting of texts."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """A list of tokens, and a regular expression whose matches in a text are looked up in it.

    Attributes
    ----------
    tokens : sequence of str
        The id of a token is its index.
    split : str
        "smiles", "characters", or a regular expression.
    framed : bool
        Whether texts are enclosed in the begin and end tokens ([CLS], [SEP], ..) of the list, if any.

    Examples
    --------
    >>> atoms = Vocabulary(["[UNK]", "[MASK]", "C", "Cl", "O"], "smiles")
    >>> atoms.encode("CClON"), atoms.pieces([2, 3])
    ([2, 3, 4, 0], ['C', 'Cl'])
    """

    tokens: Sequence[str]
    split: str = "characters"
    framed: bool = True
    _places: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._places.update({token: place for place, token in enumerate(self.tokens)})
        if len(self._places) < len(self.tokens):
            twice = next(token for place, token in enumerate(self.tokens) if self._places[token] != place)
            raise ValueError(f"vocabulary: the token {shown(twice)} occurs twice")
        _ = self._pattern

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(SPLITS.get(self.split, self.split), re.DOTALL)
        except re.error as error:
            names = " or ".join(map(repr, SPLITS))
            raise ValueError(f"split = {shown(self.split)}: {error}; expected {names}, or a regular expression") from None

    @property
    def size(self) -> int:
        return len(self.tokens)

    def _named(self, name: str) -> int | None:
        return next((self._places[token] for token in _NAMES[name] if token in self._places), None)

    @property
    def mask_id(self) -> int | None:
        return self._named("mask")

    @property
    def unknown_id(self) -> int | None:
        return self._named("unknown")

    @property
    def pad_id(self) -> int | None:
        return self._named("pad")

    @property
    def special(self) -> frozenset[int]:
        places = (self._named(name) for name in _NAMES if name != "unknown")
        return frozenset(place for place in places if place is not None)

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._frame("begin")

    @property
    def suffix(self) -> tuple[int, ...]:
        return self._frame("end")

    def _frame(self, name: str) -> tuple[int, ...]:
        place = self._named(name) if self.framed else None
        return () if place is None else (place,)

    def encode(self, text: str) -> list[int]:
        """Ids of the matches, without blanks; ValueError for a match outside a vocabulary without an unknown token."""
        matched, unknown = self._matched(text), self.unknown_id
        strange = next((word for word in matched if word not in self._places), None)
        if unknown is None and strange is not None:
            raise ValueError(f"the text {shown(text)} has {strange!r}, which is none of the {self.size} tokens of the model")
        return [self._places.get(word, unknown or 0) for word in matched]

    def _matched(self, text: str) -> list[str]:
        """The matches in a text, without blanks unless a blank is a token."""
        matches = [match.group() for match in self._pattern.finditer(text)]
        return [word for word in matches if word.strip() or (word == " " and " " in self._places)]

    @cached_property
    def _blank(self) -> str:
        """What stands before each token in a text: a blank before words."""
        return " " if are_words(self._matched, self.tokens) else ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._blank + self.tokens[place] for place in ids]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids)).removeprefix(self._blank)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([list(self.tokens), self.split, self.framed]).encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path, split: str) -> Vocabulary:
        """The vocabulary of a file `vocab.txt`, one token on each line."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the vocabulary {path} ({one_line(error)}); expected one token a line") from None
        return cls(tuple(text.removesuffix("\n").split("\n")), split)


def are_words(read: Callable[[str], list[Any]], tokens: Iterable[str]) -> bool:
    """Whether tokens are words between blanks: `read` finds a word twice in "word word", but not in "wordword".

    The first twenty tokens of letters that `read` leaves whole are tried; all have to be words.
    """
    words = list(islice((token for token in tokens if token.isalpha() and len(read(token)) == 1), 20))
    return bool(words) and all(read(word + word) != 2 * read(word) == read(f"{word} {word}") for word in words)


class PretrainedTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self.size = len(tokenizer)
        self.mask_id, self.unknown_id, self.pad_id = tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id
        self.special = frozenset(tokenizer.all_special_ids) - {self.unknown_id}
        self.prefix, self.suffix = self._frame()

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        special = self._tokenizer.all_special_tokens
        words = ("a", *(token for token in self._vocabulary if token not in special))  # "a" may have no token, as in DNA
        word = next((word for word in words if self.encode(word)), "a")
        bare, framed = self.encode(word), list(self._tokenizer(word)["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return tuple(framed[:start]), tuple(framed[start + len(bare) :])
        return (), ()

    def encode(self, text: str) -> list[int]:
        # verbose=False prints no warning for texts longer than the model's maximum, which are cut or refused elsewhere.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        tokens = self._tokenizer.convert_ids_to_tokens(list(map(int, ids)))
        return [self._shown(token or "") for token in tokens]

    def text(self, ids: Sequence[int]) -> str:
        if not self._has_blanks:
            return "".join(self.pieces(ids)).strip()
        return self._tokenizer.convert_tokens_to_string(self._tokenizer.convert_ids_to_tokens(list(map(int, ids)))).strip()

    def _shown(self, token: str) -> str:
        if self._has_word_pieces or self._are_words:  # words are separated by blanks, and their continuations begin with ##
            return token[2:] if token.startswith("##") else f" {token}"
        if token.startswith("▁"):
            return f" {token[1:]}"
        return self._tokenizer.convert_tokens_to_string([token]) if token[:1] in ("Ġ", "Ċ") or not token.isascii() else token

    @cached_property
    def _has_word_pieces(self) -> bool:
        return any(token.startswith("##") for token in self._vocabulary)

    @cached_property
    def _has_blanks(self) -> bool:
        """Whether tokens contain the blanks; such tokens may also be parts of a character."""
        return not self._has_word_pieces and any(token[:1] in ("Ġ", "▁") for token in self._vocabulary)

    @cached_property
    def _are_words(self) -> bool:
        return not self._has_blanks and are_words(self.encode, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def fingerprint(self) -> str:
        identity = [sorted(self._vocabulary.items(), key=lambda entry: entry[1]), self.encode("The 2 cats, naïve.")]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def load_tokenizer(name: str, split: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model.

    Parameters
    ----------
    name : str
        Folder or hub id of a model. With `split`, a folder with a file `vocab.txt`, or such a file.
    split : str, optional
        "smiles", "characters" or a regular expression that splits texts into tokens of `vocab.txt`.
    trust_remote_code : bool
        Whether a tokenizer's own code may run.

    Raises
    ------
    ValueError
        If transformers is not installed, or there is no such tokenizer.
    """
    if split is not None:
        path = Path(name)
        path = path / "vocab.txt" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"tokenizer = {name!r}: no file {path.name} there; `split` needs a vocabulary, one token a line")
        return Vocabulary.from_file(path, split)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(f"tokenizer = {name!r} needs transformers, which is not installed; {MISSING}") from None
    try:
        return PretrainedTokenizer(AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code), name)
    except Exception as error:  # the tokenizer's own code can raise any exception
        raise ValueError(
            f"tokenizer = {name!r} cannot be read ({one_line(error)}); name another one (--tokenizer), or give a regular "
            f"expression that splits texts into the tokens of vocab.txt (--split)"
        ) from None
