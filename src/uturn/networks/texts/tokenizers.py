"""Tokenizers: conversion of texts to the ids of a language model, and back.

Tokenizers of transformers are read from a folder or a hub. For models whose tokenizer transformers
cannot read (SMILES, sequences of residues, characters), a vocabulary with a regular expression
replaces it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from uturn.core.checks import expect
from uturn.core.files import read_text
from uturn.core.messages import shown
from uturn.networks.libraries import reading

SPLITS = {
    # Atoms in brackets, atoms of two letters, the arrow, ring closures of two digits, and single
    # characters.
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
_OTHERS = (
    "name another one (--tokenizer), or give a regular expression that splits texts into the tokens"
    " of vocab.txt (--split)"
)


class Vocabulary:
    """A list of tokens, and a regular expression whose matches in a text are looked up in it.

    The id of a token is its index. `split`: "smiles", "characters", or a regular expression.
    `framed`: texts are enclosed in the begin and end tokens ([CLS], [SEP], ..) of the list, if any:
    `prefix`, `suffix`. `special`: ids that are no text, without the unknown token.

    Examples
    --------
    >>> atoms = Vocabulary(["[UNK]", "[MASK]", "C", "Cl", "O"], "smiles")
    >>> atoms.encode("CClON"), atoms.pieces([2, 3])
    ([2, 3, 4, 0], ['C', 'Cl'])
    """

    def __init__(
        self, tokens: Sequence[str], split: str = "characters", framed: bool = True
    ) -> None:
        self.tokens, self.split, self.framed = tuple(tokens), split, framed
        self.size = len(self.tokens)
        self._places = {token: place for place, token in enumerate(self.tokens)}
        twice = next(
            (token for place, token in enumerate(self.tokens) if self._places[token] != place), None
        )
        expect(twice is None, "vocabulary", twice, "different tokens, but it occurs twice")
        with reading(
            f"split = {shown(split)}", f"expected {' or '.join(SPLITS)}, or a regular expression"
        ):
            self._pattern = re.compile(SPLITS.get(split, split), re.DOTALL)
        named = {
            name: self._places[token]
            for name in _NAMES
            for token in reversed(_NAMES[name])
            if token in self._places
        }
        self.mask_id, self.unknown_id, self.pad_id = map(named.get, ("mask", "unknown", "pad"))
        self.special = frozenset(place for name, place in named.items() if name != "unknown")
        self.prefix, self.suffix = (
            (named[name],) if framed and name in named else () for name in ("begin", "end")
        )

    def encode(self, text: str) -> list[int]:
        """Ids of the matches, without prefix and suffix; ValueError for a match outside a
        vocabulary without an unknown token.
        """
        matched, unknown = self._matched(text), self.unknown_id
        strange = next((word for word in matched if word not in self._places), None)
        is_known = unknown is not None or strange is None
        expect(
            is_known,
            f"characters of the text {shown(text)}",
            strange,
            f"the {self.size} tokens of the model",
        )
        return [self._places.get(word, unknown or 0) for word in matched]

    def _matched(self, text: str) -> list[str]:
        matches = [match.group() for match in self._pattern.finditer(text)]
        return [word for word in matches if word.strip() or (word == " " and " " in self._places)]

    @cached_property
    def _blank(self) -> str:
        """What stands before each token in a text: a blank before words."""
        return " " if are_words(self._matched, self.tokens) else ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they form the whole text."""
        return [self._blank + self.tokens[place] for place in ids]

    def text(self, ids: Sequence[int]) -> str:
        """The text of the tokens in a form for another tokenizer."""
        return "".join(self.pieces(ids)).removeprefix(self._blank)

    def fingerprint(self) -> str:
        return hashlib.sha256(
            json.dumps([list(self.tokens), self.split, self.framed]).encode()
        ).hexdigest()


def are_words(read: Callable[[str], list[Any]], tokens: Iterable[str]) -> bool:
    """Whether tokens are words between blanks: `read` finds each of the first twenty twice in
    "word word", not in "wordword".
    """
    words = list(
        islice((token for token in tokens if token.isalpha() and len(read(token)) == 1), 20)
    )
    return bool(words) and all(
        read(word + word) != 2 * read(word) == read(f"{word} {word}") for word in words
    )


class PretrainedTokenizer:
    """A tokenizer of transformers, with the members of a `Vocabulary`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._vocabulary = tokenizer, tokenizer.get_vocab()
        self.size = len(tokenizer)
        self.mask_id, self.unknown_id, self.pad_id = (
            tokenizer.mask_token_id,
            tokenizer.unk_token_id,
            tokenizer.pad_token_id,
        )
        self.special = frozenset(tokenizer.all_special_ids) - {self.unknown_id}
        self.longest: int | None = getattr(tokenizer, "model_max_length", None)
        self.prefix, self.suffix = self._frame()
        # Words are separated by blanks, and their continuations begin with ##; or tokens contain
        # the blanks.
        has_word_pieces = any(token.startswith("##") for token in self._vocabulary)
        self._has_blanks = not has_word_pieces and any(
            token[:1] in ("Ġ", "▁") for token in self._vocabulary
        )
        self._are_words = has_word_pieces or (
            not self._has_blanks and are_words(self.encode, self._vocabulary)
        )

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        special = self._tokenizer.all_special_tokens
        # "a" may have no token, as in DNA.
        words = ("a", *(token for token in self._vocabulary if token not in special))
        word = next((word for word in words if self.encode(word)), "a")
        bare, framed = self.encode(word), list(self._tokenizer(word)["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return tuple(framed[:start]), tuple(framed[start + len(bare) :])
        return (), ()

    def encode(self, text: str) -> list[int]:
        # verbose=False prints no warning for texts longer than the model's maximum, which are cut
        # or refused elsewhere.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        tokens = self._tokenizer.convert_ids_to_tokens(list(map(int, ids)))
        return [self._shown(token or "") for token in tokens]

    def text(self, ids: Sequence[int]) -> str:
        if not self._has_blanks:
            return "".join(self.pieces(ids)).strip()
        return self._tokenizer.convert_tokens_to_string(
            self._tokenizer.convert_ids_to_tokens(list(map(int, ids)))
        ).strip()

    def _shown(self, token: str) -> str:
        if self._are_words:
            return token[2:] if token.startswith("##") else f" {token}"
        if token.startswith("▁"):
            return f" {token[1:]}"
        return (
            self._tokenizer.convert_tokens_to_string([token])
            if token[:1] in ("Ġ", "Ċ") or not token.isascii()
            else token
        )

    def fingerprint(self) -> str:
        identity = [
            sorted(self._vocabulary.items(), key=lambda entry: entry[1]),
            self.encode("The 2 cats, naïve."),
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


Tokenizer = Vocabulary | PretrainedTokenizer


def load_tokenizer(
    name: str, split: str | None = None, trust_remote_code: bool = False
) -> Tokenizer:
    """The tokenizer of a model, in a folder or on a hub.

    With `split`, "smiles", "characters" or a regular expression that splits texts into tokens: a
    folder with a file `vocab.txt`, or such a file, one token a line. `trust_remote_code`: whether a
    tokenizer's own code may run.
    """
    if split is not None:
        path = Path(name, "vocab.txt") if Path(name).is_dir() else Path(name)
        with reading(f"vocabulary = {str(path)!r}", "expected a text file, one token a line"):
            return Vocabulary(read_text(path).removesuffix("\n").split("\n"), split)
    with reading(f"tokenizer = {name!r}", _OTHERS, "text"):
        from transformers import AutoTokenizer

        return PretrainedTokenizer(
            AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        )
