"""Shared parts of probes that read texts with a second model: its options, and texts as its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.inputs import Input
from uturn.core.protocols import Backward, Probe, UTurns
from uturn.probes.named import Named
from uturn.probes.prepared import Prepared
from uturn.sources.tokens import PAD, NoisyTokens, TextSource, Tokenizer, Tokens, check_known

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel
    from uturn.networks.texts.language_files import Head, TextModel


TextUTurns = UTurns[Tokens, NoisyTokens]


class SecondModel(Named, Prepared, Probe[Tokens, NoisyTokens, TextSource]):
    """A probe that reads texts with a second model.

    Options. `model`: a folder or hub id of a model of transformers. `tokenizer`, `split`: as in the
    backward `language`, if the model has no matching tokenizer. `model_type`: kind of the model,
    such as "bert", if its config.json does not state it. `name`: prefix of the variables, so that
    an experiment can have several models. `dtype`: precision of the network. Execution-only
    options: `trust_remote_code`, `device` ("cuda" if available), `batch_size` (texts in a call).
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "trust_remote_code"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    role: ClassVar[str] = "model"
    """What errors call the model."""
    model: str
    tokenizer: str | None = None
    split: str | None = None
    model_type: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    batch_size: int = Field(default=32, ge=1, le=2**16)
    _texts: TranslatedTexts = PrivateAttr()

    @property
    def network_name(self) -> str:
        return self.model

    @model_validator(mode="after")
    def _same_has_its_own(self) -> SecondModel:
        options = ("tokenizer", "split", "model_type")
        stated = [name for name in options if getattr(self, name) is not None]
        expect(
            self.model != "same" or not stated,
            "options beside model 'same'",
            stated,
            "none, as it has its own tokenizer",
        )
        return self

    def reads(self) -> list[Input]:
        return [] if self.model == "same" else [self.text_model]

    @property
    def head(self) -> Head:
        """What the model gives."""
        return "encoder"

    @property
    def text_model(self) -> TextModel:
        """The model by name, with the options that load it."""
        from uturn.networks.texts.language_files import TextModel

        return TextModel(
            self.model,
            self.head,
            tokenizer=self.tokenizer,
            split=self.split,
            model_type=self.model_type,
            trust_remote_code=self.trust_remote_code,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def where(self) -> str:
        """How errors name the model."""
        return f"{self.role} = {self.model!r}"

    def bind(self, source: TextSource) -> Self:
        # Sources with the same texts are equal, also if the models of their backwards differ.
        return _bound(self, source, source.backward)

    def prepare(self, source: TextSource) -> None:
        self._texts = self.texts(source)

    def texts(self, source: TextSource) -> TranslatedTexts:
        """The texts of a source as tokens of the second model."""
        return TranslatedTexts(source, self.text_model.load(), self.where)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """What the probe reads of each text, float64 (count, ..), given as tokens of the model
        (count, longest).
        """
        raise NotImplementedError

    def of_texts(self, ids: np.ndarray) -> np.ndarray:
        """What the probe reads of ids (count, length) of the first model, NaN for texts that the
        second cannot read.
        """
        return self._texts.measured(ids, self.of_rows)


P = TypeVar("P", bound=SecondModel)


@cached_while_unchanged()  # a model reads many texts of the source
def _bound(probe: P, source: TextSource, backward: Backward | None) -> P:
    """A probe with the texts of a source, which the model of the backward reads, too."""
    return Prepared.bind(probe, source)


@dataclass(frozen=True)
class DistinctTexts:
    """The distinct texts among originals and their reconstructions."""

    ids: np.ndarray
    """int64 (texts, length)"""
    originals: np.ndarray
    """Row of each original in `ids`, (items,)."""
    reconstructions: np.ndarray
    """Row of each reconstruction in `ids`, (items, draws)."""


def distinct(original: np.ndarray, reconstructed: np.ndarray) -> DistinctTexts:
    """The distinct texts among originals (items, length) and reconstructions (items, draws,
    length).
    """
    items, draws, length = reconstructed.shape
    texts = np.concatenate([original, reconstructed.reshape(-1, length)])
    ids, rows = np.unique(texts, axis=0, return_inverse=True)
    before, after = np.split(rows.reshape(-1), [items])
    return DistinctTexts(ids, before, after.reshape(items, draws))


class TranslatedTexts:
    """The texts of a source as tokens of another model.

    If both models share a tokenizer, or the second has none, tokens are unchanged (`shares_tokens`:
    positions correspond). Otherwise texts are decoded by the first tokenizer and encoded by the
    second, after a `prompt` and in `lower` case.
    """

    def __init__(
        self,
        source: TextSource,
        model: LanguageModel,
        where: str,
        prompt: str = "",
        lower: bool = False,
    ) -> None:
        self.model = model
        self._prompt = prompt
        self._lower = lower
        self.first: Tokenizer | None = source.tokenizer
        self.second: Tokenizer | None = model.tokenizer
        self.most_tokens = model.most_tokens
        self.shares_tokens = self.second is None or self._has_same_tokens(self.second)
        longest = source.max_length
        if not self.shares_tokens:
            longest = self._checked_longest(source, where)
        way_out = (
            "cut the texts into shorter windows (windows = true, length = ..), or name a model for"
            " longer texts"
        )
        expect(
            self.most_tokens is None or longest <= self.most_tokens,
            f"{where}: tokens of a text",
            longest,
            f"at most {self.most_tokens}; {way_out}",
        )

    def _has_same_tokens(self, second: Tokenizer) -> bool:
        """Whether both tokenizers are equal, and texts are read as they are."""
        if self.first is None or self._prompt or self._lower:
            return False
        return self.first.fingerprint() == second.fingerprint()

    def _checked_longest(self, source: TextSource, where: str) -> int:
        """Tokens of the longest text of a source; ValueError for texts that the second tokenizer
        cannot read.
        """
        needed = (
            "one, or a model that reads its ids ('module:function', or 'same' where a probe has it)"
        )
        expect(self.first is not None, f"{where}: tokenizer of the backward", None, needed)
        texts = self.texts(source.ids(np.arange(source.count())))
        rows = [self._encode(text) for text in texts]
        longest = max(map(len, rows))
        check_known(where, rows, self.second)
        empty = [text for text, row in zip(texts, rows, strict=True) if not row]
        expect(
            not empty,
            f"{where}: texts without a token",
            empty[:1],
            "none; remove them, or name another model",
        )
        return longest

    def texts(self, ids: np.ndarray) -> list[str]:
        """The decoded texts of ids (count, length)."""
        assert self.first is not None  # else `__init__` has raised an error
        return [self.first.text(row[row != PAD].tolist()) for row in ids]

    def _encode(self, text: str) -> list[int]:
        assert self.second is not None  # else tokens are shared
        text = self._prompt + text
        return self.second.encode(text.lower() if self._lower else text)

    def _readable_tokens(self, text: str) -> list[int]:
        """The tokens of a text; none if the tokenizer refuses it."""
        with suppress(ValueError):
            return self._encode(text)
        return []

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of the second model, int64 (count, longest), `PAD` beyond the end; none for
        text that its tokenizer refuses.
        """
        if self.shares_tokens:
            return ids
        rows = [self._readable_tokens(text) for text in self.texts(ids)]
        table = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
        for row, tokens in zip(table, rows, strict=True):
            row[: len(tokens)] = tokens
        return table

    def is_readable(self, rows: np.ndarray) -> np.ndarray:
        """Whether the second model can read each text, bool (count,): the text has tokens, and
        not too many.
        """
        lengths = (rows != PAD).sum(1)
        longest = np.inf if self.most_tokens is None else self.most_tokens
        fits: np.ndarray = (lengths > 0) & (lengths <= longest)
        return fits

    def measured(self, ids: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Results (count, ..) of `function` for the texts that the second model can read; NaN
        for all others.
        """
        rows = self.rows(ids)
        is_readable = self.is_readable(rows)
        values = function(rows[is_readable])
        table = np.full((len(rows), *values.shape[1:]), np.nan)
        table[is_readable] = values
        return table
