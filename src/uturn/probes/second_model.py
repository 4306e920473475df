"""Shared parts of probes that read texts with a second model: its options, and texts as its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.checks import expect
from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import Backward, Probe, UTurns
from uturn.probes.named import Named
from uturn.sources.tokens import PAD, NoisyTokens, TextSource, Tokens, check_known

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel
    from uturn.networks.texts.language_files import TextModel


TextUTurns = UTurns[Tokens, NoisyTokens]


class SecondModel(Named, Probe[Tokens, NoisyTokens, TextSource]):
    """A probe that reads texts with a second model.

    Options. `model`: a folder or hub id of a model of transformers. `tokenizer`, `split`: as in the
    backward `language`, if the model has no matching tokenizer. `model_type`: kind of the model,
    such as "bert", if its config.json does not state it. `name`: prefix of the variables, so that
    an experiment can have several models. `dtype`: precision of the network. Execution-only
    options: `trust_remote_code`, `device` ("cuda" if available), `batch_size` (texts in a call).
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "trust_remote_code"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    head: ClassVar[Any] = "encoder"
    """The head of the model, as in `TextModel`."""
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
    _texts: TextsOf = PrivateAttr()

    @property
    def network_name(self) -> str:
        return self.model

    @model_validator(mode="after")
    def _same_has_its_own(self) -> SecondModel:
        given = [
            name for name in ("tokenizer", "split", "model_type") if getattr(self, name) is not None
        ]
        expect(
            self.model != "same" or not given,
            "options beside model 'same'",
            given,
            "none, as it has its own tokenizer",
        )
        return self

    def reads(self) -> list[Any]:
        return [] if self.model == "same" else [self.text_model]

    @property
    def text_model(self) -> TextModel:
        from uturn.networks.texts.language_files import TextModel

        return TextModel(head=self.head, **self._loading())

    @property
    def where(self) -> str:
        """How errors name the model."""
        return f"{self.role} = {self.model!r}"

    def _loading(self) -> dict[str, Any]:
        names = (
            "model",
            "tokenizer",
            "split",
            "model_type",
            "trust_remote_code",
            "dtype",
            "device",
        )
        return {name: getattr(self, name) for name in names}

    def bind(self, source: TextSource) -> Self:
        # Sources with the same texts are equal, also if the models of their backwards differ.
        return _bound(self, source, source.backward)

    def texts(self, source: TextSource) -> TextsOf:
        """The texts of a source as tokens of the second model."""
        return TextsOf(source, self.text_model.load(), self.where)

    def prepare(self, source: TextSource) -> None:
        """Compute what the probe needs to know of a source; ValueError if its texts and the model
        do not fit.
        """

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
    bound = probe.model_copy()
    bound._texts = probe.texts(source)
    bound.prepare(source)
    return bound


def distinct(
    original: np.ndarray, reconstructed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct texts among originals (items, length) and reconstructions (items, draws,
    length), and the rows of both.
    """
    items, draws, length = reconstructed.shape
    texts, numbers = np.unique(
        np.concatenate([original, reconstructed.reshape(-1, length)]), axis=0, return_inverse=True
    )
    before, after = np.split(numbers.reshape(-1), [items])
    return texts, before, after.reshape(items, draws)


class TextsOf:
    """The texts of a source as tokens of another model.

    If both models share a tokenizer, or the second has none, tokens are unchanged (`shares_tokens`:
    positions correspond). Otherwise texts are decoded by the first tokenizer and encoded by the
    second, after a `prompt` and in `lower` case.
    """

    def __init__(
        self,
        source: Any,
        model: LanguageModel,
        where: str,
        prompt: str = "",
        lower: bool = False,
    ) -> None:
        self.model = model
        self._prompt = prompt
        self._lower = lower
        self.first: Any = source.tokenizer
        self.second: Any = model.tokenizer
        self.most_tokens = model.most_tokens
        first, second = (
            None if of is None else of.fingerprint() for of in (self.first, model.tokenizer)
        )
        same = first is not None and first == second
        self.shares_tokens = self.second is None or (same and not prompt and not lower)
        longest = int(source.max_length)
        if not self.shares_tokens:
            needed = (
                "one, or a model that reads its ids ('module:function', or 'same' where a probe"
                " has it)"
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
        way_out = (
            "cut the texts into shorter windows (windows = true, length = ..), or name a model for"
            " longer texts"
        )
        fits = self.most_tokens is None or longest <= self.most_tokens
        expect(
            fits, f"{where}: tokens of a text", longest, f"at most {self.most_tokens}; {way_out}"
        )

    def texts(self, ids: np.ndarray) -> list[str]:
        """The decoded texts of ids (count, length)."""
        return [self.first.text(row[row != PAD].tolist()) for row in ids]

    def _encode(self, text: str) -> list[int]:
        text = self._prompt + text
        return self.second.encode(text.lower() if self._lower else text)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of the second model, int64 (count, longest), `PAD` beyond the end; none for
        text that its tokenizer refuses.
        """
        if self.shares_tokens:
            return ids
        rows: list[list[int]] = [[] for _ in ids]
        for tokens, text in zip(rows, self.texts(ids), strict=True):
            with suppress(ValueError):
                tokens += self._encode(text)
        out = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
        for row, tokens in zip(out, rows, strict=True):
            row[: len(tokens)] = tokens
        return out

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """Whether the second model can read each text, bool (count,): the text has tokens, and
        not too many.
        """
        lengths = (rows != PAD).sum(1)
        return (lengths > 0) & (
            lengths <= (np.inf if self.most_tokens is None else self.most_tokens)
        )

    def measured(self, ids: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Results (count, ..) of `function` for the texts that the second model can read; NaN
        for all others.
        """
        rows = self.rows(ids)
        readable = self.readable(rows)
        values = function(rows[readable])
        out = np.full((len(rows), *values.shape[1:]), np.nan)
        out[readable] = values
        return out
