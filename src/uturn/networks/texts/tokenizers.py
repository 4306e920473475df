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
        self.tokens = tuple(tokens)
        self.split = split
        self.framed = framed
        self.size = len(self.tokens)
        self._places = {token: place for place, token in enumerate(self.tokens)}
        for place, token in enumerate(self.tokens):
            is_last = self._places[token] == place
            expect(is_last, "vocabulary", token, "different tokens, but it occurs twice")
        with reading(
            f"split = {shown(split)}", f"expected {' or '.join(SPLITS)}, or a regular expression"
        ):
            self._pattern = re.compile(SPLITS.get(split, split), re.DOTALL)
        self.mask_id = self._first_of("mask")
        self.unknown_id = self._first_of("unknown")
        self.pad_id = self._first_of("pad")
        begin = self._first_of("begin")
        end = self._first_of("end")
        special = {self.mask_id, self.pad_id, begin, end}
        self.special = frozenset(place for place in special if place is not None)
        self.prefix = (begin,) if framed and begin is not None else ()
        self.suffix = (end,) if framed and end is not None else ()

    def _first_of(self, purpose: str) -> int | None:
        """The id of the first name of a special token that the vocabulary has."""
        return next((self._places[name] for name in _NAMES[purpose] if name in self._places), None)

    def encode(self, text: str) -> list[int]:
        """Ids of the matches, without prefix and suffix; ValueError for a match outside a
        vocabulary without an unknown token.
        """
        words = self._matched(text)
        unknown = self.unknown_id
        if unknown is not None:
            return [self._places.get(word, unknown) for word in words]
        strange = next((word for word in words if word not in self._places), None)
        expect(
            strange is None,
            f"characters of the text {shown(text)}",
            strange,
            f"the {self.size} tokens of the model",
        )
        return [self._places[word] for word in words]

    def _matched(self, text: str) -> list[str]:
        matches = [match.group() for match in self._pattern.finditer(text)]
        return [word for word in matches if word.strip() or (word == " " and " " in self._places)]

    @cached_property
    def _blank(self) -> str:
        """What stands before each token in a text: a blank before words."""
        if are_words(self._matched, self.tokens):
            return " "
        return ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they form the whole text."""
        return [self._blank + self.tokens[place] for place in ids]

    def text(self, ids: Sequence[int]) -> str:
        """The text of the tokens in a form for another tokenizer."""
        return "".join(self.pieces(ids)).removeprefix(self._blank)

    def fingerprint(self) -> str:
        identity = json.dumps([list(self.tokens), self.split, self.framed])
        return hashlib.sha256(identity.encode()).hexdigest()


def are_words(read: Callable[[str], list[int] | list[str]], tokens: Iterable[str]) -> bool:
    """Whether tokens are words between blanks: `read` finds each of the first twenty twice in
    "word word", not in "wordword".
    """
    single = (token for token in tokens if token.isalpha() and len(read(token)) == 1)
    words = list(islice(single, 20))
    for word in words:
        twice = 2 * read(word)
        if read(word + word) == twice or read(f"{word} {word}") != twice:
            return False
    return bool(words)


class PretrainedTokenizer:
    """A tokenizer of transformers, with the members of a `Vocabulary`."""

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - of any class of transformers
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.size = len(tokenizer)
        self.mask_id: int | None = tokenizer.mask_token_id
        self.unknown_id: int | None = tokenizer.unk_token_id
        self.pad_id: int | None = tokenizer.pad_token_id
        self.special: frozenset[int] = frozenset(tokenizer.all_special_ids) - {self.unknown_id}
        self.longest: int | None = getattr(tokenizer, "model_max_length", None)
        self.prefix, self.suffix = self._frame()
        # Words are separated by blanks, and their continuations begin with ##; or tokens contain
        # the blanks.
        has_pieces = any(token.startswith("##") for token in self._vocabulary)
        has_blanks = any(token[:1] in ("Ġ", "▁") for token in self._vocabulary)
        self._has_blanks = has_blanks and not has_pieces
        self._are_words = has_pieces
        if not has_pieces and not has_blanks:
            self._are_words = are_words(self.encode, self._vocabulary)

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after each text."""
        special = self._tokenizer.all_special_tokens
        # "a" may have no token, as in DNA.
        words = ("a", *(token for token in self._vocabulary if token not in special))
        word = next((word for word in words if self.encode(word)), "a")
        bare = self.encode(word)
        framed = list(self._tokenizer(word)["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            end = start + len(bare)
            if framed[start:end] == bare:
                return tuple(framed[:start]), tuple(framed[end:])
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
        tokens = self._tokenizer.convert_ids_to_tokens(list(map(int, ids)))
        text: str = self._tokenizer.convert_tokens_to_string(tokens)
        return text.strip()

    def _shown(self, token: str) -> str:
        if self._are_words:
            if token.startswith("##"):
                return token[2:]
            return f" {token}"
        if token.startswith("▁"):
            return f" {token[1:]}"
        is_encoded = token[:1] in ("Ġ", "Ċ") or not token.isascii()
        if not is_encoded:
            return token
        text: str = self._tokenizer.convert_tokens_to_string([token])
        return text

    def fingerprint(self) -> str:
        vocabulary = sorted(self._vocabulary.items(), key=lambda entry: entry[1])
        identity = json.dumps([vocabulary, self.encode("The 2 cats, naïve.")])
        return hashlib.sha256(identity.encode()).hexdigest()


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
            tokens = read_text(path).removesuffix("\n").split("\n")
            return Vocabulary(tokens, split)
    with reading(f"tokenizer = {name!r}", _OTHERS, "text"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        return PretrainedTokenizer(tokenizer)
