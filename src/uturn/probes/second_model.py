"""Shared parts of probes that read texts with a second model: its options, and texts as its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.checks import shown
from uturn.probes.named import Named
from uturn.sources.tokens import PAD, check_known

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel
    from uturn.networks.texts.language_files import Head, TextModel
    from uturn.networks.texts.tokenizers import Tokenizer


class SecondModel(Named):
    """A probe that reads texts with a second model.

    Options. `model`: a folder or hub id of a model of transformers. `tokenizer`, `split`: as in the backward `language`, if the
    model has no matching tokenizer. `model_type`: kind of the model, such as "bert", if its config.json does not state it.
    `name`: prefix of the variables, so that an experiment can have several models. `dtype`: precision of the network.
    Execution-only options: `trust_remote_code`, `device` ("cuda" if available), `batch_size` (texts in a call).
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "trust_remote_code"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    model: str
    tokenizer: str | None = None
    split: str | None = None
    model_type: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    batch_size: int = Field(default=32, ge=1, le=2**16)

    @model_validator(mode="after")
    def _same_has_its_own(self) -> SecondModel:
        name = next((name for name in ("tokenizer", "split", "model_type") if getattr(self, name) is not None), None)
        if self.model == "same" and name is not None:
            raise ValueError(f"{name}: model = 'same' is that of the backward, with its tokenizer; leave {name} out")
        return self

    def reads(self) -> list[Any]:
        return [] if self.model == "same" else [self.text_model]

    @property
    def text_model(self) -> TextModel:
        """The second model."""
        from uturn.networks.texts.language_files import TextModel

        return TextModel(head=self.head, **self._loading())

    @property
    def head(self) -> Head:
        """The head of the model, as in `TextModel`."""
        return "encoder"

    def _loading(self) -> dict[str, Any]:
        names = ("model", "tokenizer", "split", "model_type", "trust_remote_code", "dtype", "device")
        return {name: getattr(self, name) for name in names}


def distinct(original: np.ndarray, reconstructed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct texts among originals (items, length) and reconstructions (items, draws, length).

    Returns the ids of the distinct texts, and the row in them of each original (items,) and reconstruction (items, draws).
    """
    items, draws, length = reconstructed.shape
    texts, numbers = np.unique(np.concatenate([original, reconstructed.reshape(-1, length)]), axis=0, return_inverse=True)
    before, after = np.split(numbers.reshape(-1), [items])
    return texts, before, after.reshape(items, draws)


class TextsOf:
    """The texts of a source as tokens of another model.

    If both models share a tokenizer, or the second has none, tokens are unchanged. Otherwise they are decoded by the first
    tokenizer and encoded by the second.

    Parameters
    ----------
    source : source of tokens
    model : LanguageModel
    where : str
        Beginning of error messages.
    prompt : str
        Text added before each text.
    lower : bool
        Whether texts are converted to lower case.

    Attributes
    ----------
    shares_tokens : bool
        Whether the positions of both models correspond.

    Raises
    ------
    ValueError
        If there is no tokenizer that decodes ids, if a text of the source is too long for the model or has none of its tokens,
        or if most tokens are unknown.
    """

    def __init__(self, source: Any, model: LanguageModel, where: str, prompt: str = "", lower: bool = False) -> None:
        self._prompt, self._lower = prompt, lower
        self.first: Tokenizer | None = source.tokenizer
        self.second, self.most_tokens = model.tokenizer, model.most_tokens
        same = self.first is not None and self.second is not None and self.first.fingerprint() == self.second.fingerprint()
        self.shares_tokens = self.second is None or (same and not prompt and not lower)
        if not self.shares_tokens and self.first is None:
            raise ValueError(
                f"{where}: the model of the backward has no tokenizer, so that its ids are no texts for another model; expected "
                f"a model that reads these ids ('module:function', or 'same' where a probe has it)"
            )
        self._check(source, where)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of the second model, int64 (count, longest), for ids (count, length) of the first; `PAD` beyond the end.

        A text with characters that the tokenizer refuses gets no tokens.
        """
        if self.shares_tokens:
            return ids
        rows: list[list[int]] = []
        for text in self.texts(ids):
            try:
                rows.append(self._encode(text))
            except ValueError:
                rows.append([])
        out = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
        for row, tokens in zip(out, rows, strict=True):
            row[: len(tokens)] = tokens
        return out

    def _encode(self, text: str) -> list[int]:
        assert self.second is not None
        text = self._prompt + text
        return self.second.encode(text.lower() if self._lower else text)

    def texts(self, ids: np.ndarray) -> list[str]:
        """The decoded texts of ids (count, length)."""
        assert self.first is not None
        return [self.first.text(row[row != PAD].tolist()) for row in ids]

    def measured(self, ids: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Results (count, ..) of `function` for the texts that the second model can read; NaN for all others."""
        rows = self.rows(ids)
        readable = self.readable(rows)
        values = function(rows[readable])
        out = np.full((len(rows), *values.shape[1:]), np.nan)
        out[readable] = values
        return out

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """Whether the second model can read each text, bool (count,): the text has tokens, and not too many."""
        lengths = (rows != PAD).sum(1)
        return (lengths > 0) & (lengths <= (np.inf if self.most_tokens is None else self.most_tokens))

    def _check(self, source: Any, where: str) -> None:
        longest = int(source.max_length)
        if not self.shares_tokens:
            texts = self.texts(source.ids(np.arange(source.count())))
            rows = [self._encode(text) for text in texts]
            longest = max(map(len, rows))
            check_known(where, rows, self.second)
            if not all(rows):
                empty = texts[[len(row) for row in rows].index(0)]
                raise ValueError(f"{where}: the text {shown(empty)} has no token of this model; remove it, or name another model")
        if self.most_tokens is not None and longest > self.most_tokens:
            raise ValueError(
                f"{where} takes {self.most_tokens} tokens, but a text of the source has {longest} of its tokens; cut the texts "
                f"into shorter windows (windows = true, length = ..), or name a model for longer texts"
            )
