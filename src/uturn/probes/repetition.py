"""The probe of repetition: entropy of the n-grams of a text, and tokens that repeat what came
before.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.sources.tokens import PAD

_READINGS: dict[str, tuple[str, str, int | None]] = {  # what they are, unit, and largest value
    "ngram_entropy": ("entropy of the n-grams of a text, nats", "nats", None),
    "repeated_ngrams": ("share of n-grams that have occurred before in the text", "", 1),
    "repeated_tokens": ("share of tokens that equal the token before them", "", 1),
}


class Repetition(Spec, Probe):
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

    def variables(self, source: Any) -> dict[str, Variable]:
        every: dict[str, Variable] = {}
        for name, (text, unit, most) in _READINGS.items():
            further = () if name == "repeated_tokens" else ("ngram",)
            of: dict[str, Any] = {
                "unit": unit,
                "bounds": (0, most),
                "group": "entropy" if unit else "repetition",
            }
            start = f"original_{name}"
            every[name] = Variable(
                ("noise", "item", "trajectory", *further), text, start=start, **of
            )
            every[start] = Variable(
                ("noise", "item", *further), f"{text}, of the original", role="record", pooled=False
            )
        return every

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"ngram": np.array(self.ngrams)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        before, after = u_turns.originals.data, u_turns.reconstructions
        readings = {}
        for prefix, texts in (("", after), ("original_", before)):
            read = [self._of_text(text[text != PAD]) for text in texts.reshape(-1, texts.shape[-1])]
            for name, values in zip(_READINGS, map(np.array, zip(*read, strict=True)), strict=True):
                readings[prefix + name] = values.reshape(*texts.shape[:-1], *values.shape[1:])
        return readings

    def _of_text(self, tokens: np.ndarray) -> tuple[list[float], list[float], float]:
        entropies, repeats = np.full((2, len(self.ngrams)), np.nan).tolist()
        for k, n in enumerate(self.ngrams):
            if (number := len(tokens) - n + 1) > 0:
                windows = np.lib.stride_tricks.sliding_window_view(tokens, n)
                share = np.unique(windows, axis=0, return_counts=True)[1] / number
                entropies[k], repeats[k] = (
                    float(-(share * np.log(share)).sum()),
                    1 - len(share) / number,
                )
        return (
            entropies,
            repeats,
            float((tokens[1:] == tokens[:-1]).mean()) if len(tokens) > 1 else np.nan,
        )
