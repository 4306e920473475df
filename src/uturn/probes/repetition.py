"""The probe of repetition: entropy of the n-grams of a text, and tokens that repeat what came
before.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.sources.tokens import PAD, NoisyTokens, TextSource, Tokens

_SHARE: dict[str, Any] = {"bounds": (0, 1), "group": "repetition"}


class Repetition(Spec, Probe[Tokens, NoisyTokens, TextSource]):
    """Entropy and repetition of the tokens of reconstructions, and of the originals; decoders that
    draw too sure tokens repeat.

    Variables. `ngram_entropy`: entropy in nats of the n-grams of a text, -sum p log p over its
    distinct runs of `ngram` = 1, 2, 4 neighbouring tokens, with the share p of each; at most log(n -
    ngram + 1) for n tokens. `repeated_ngrams`: share of the n-grams that have occurred before in
    the text. `repeated_tokens`: share of the tokens, from the second on, that equal the token
    before them. Each starts from its value for the original, `original_<name>`.

    `ngrams`: lengths of n-grams. A text with fewer tokens has NaN.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["repetition"] = "repetition"
    ngrams: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        nats: dict[str, Any] = {"bounds": (0, None), "group": "entropy", "unit": "nats"}
        entropy = "entropy of the n-grams of a text, nats"
        ngrams = "share of n-grams that have occurred before in the text"
        tokens = "share of tokens that equal the token before them"
        return {
            **_with_original("ngram_entropy", entropy, ("ngram",), **nats),
            **_with_original("repeated_ngrams", ngrams, ("ngram",), **_SHARE),
            **_with_original("repeated_tokens", tokens, (), **_SHARE),
        }

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        return {"ngram": np.array(self.ngrams)}

    def read(
        self, u_turns: UTurns[Tokens, NoisyTokens], source: TextSource
    ) -> dict[str, np.ndarray]:
        after = self._table(u_turns.reconstructions)
        before = self._table(u_turns.originals.data)
        return {**after, **{f"original_{name}": values for name, values in before.items()}}

    def _table(self, texts: np.ndarray) -> dict[str, np.ndarray]:
        """The readings (..) or (.., ngrams) of texts (.., length)."""
        rows = [self._of_text(text[text != PAD]) for text in texts.reshape(-1, texts.shape[-1])]
        shape = texts.shape[:-1]
        return {
            "ngram_entropy": np.array([row.entropies for row in rows]).reshape(*shape, -1),
            "repeated_ngrams": np.array([row.repeated for row in rows]).reshape(*shape, -1),
            "repeated_tokens": np.array([row.repeated_tokens for row in rows]).reshape(shape),
        }

    def _of_text(self, tokens: np.ndarray) -> _OfText:
        laws = [_ngram_law(tokens, n) for n in self.ngrams]
        repeated_tokens = np.nan
        if len(tokens) > 1:
            repeated_tokens = float((tokens[1:] == tokens[:-1]).mean())
        return _OfText([law[0] for law in laws], [law[1] for law in laws], repeated_tokens)


class _OfText(NamedTuple):
    """Readings of a text."""

    entropies: list[float]
    """Nats, for each length of n-grams; NaN if the text is shorter."""
    repeated: list[float]
    """Share of n-grams that have occurred before, likewise."""
    repeated_tokens: float


def _ngram_law(tokens: np.ndarray, n: int) -> tuple[float, float]:
    """Entropy in nats, and share of repetitions, of the n-grams of a text; NaN without n-grams."""
    number = len(tokens) - n + 1
    if number <= 0:
        return np.nan, np.nan
    windows = np.lib.stride_tricks.sliding_window_view(tokens, n)
    _, counts = np.unique(windows, axis=0, return_counts=True)
    share = counts / number
    return float(-(share * np.log(share)).sum()), 1 - len(share) / number


def _with_original(
    name: str,
    long_name: str,
    own_dims: tuple[str, ...],
    **how: Any,  # fields of Variable
) -> dict[str, Variable]:
    """A reading of reconstructions, which starts from that of the original."""
    start = f"original_{name}"
    dims = ("noise", "item", "trajectory", *own_dims)
    of_original = ("noise", "item", *own_dims)
    return {
        name: Variable(dims, long_name, start=start, **how),
        start: Variable(of_original, f"{long_name}, of the original", role="record", pooled=False),
    }
