"""A queue that keeps the batches of a language model full: one call serves texts of different lengths at different steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.backward.queue import run_queue
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import ORDER
from uturn.corruption.unmasking import MASKED, Decoder, reveal
from uturn.sources.tokens import PAD

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel

_CALLS = 4  # network calls in one step of the whole queue


class TokenWork(NamedTuple):
    """A text to reveal: ids int64 (length,) with -1 where masked, its noise level, uint64 key, and a name that is returned."""

    values: np.ndarray
    noise: float
    key: Any
    name: Any = None


@dataclass
class _Text:
    """A text in the queue, with the numbers of tokens `revealed` before each of its calls, and after the last one."""

    work: TokenWork
    values: np.ndarray
    chance: np.ndarray
    revealed: np.ndarray
    step: int = 0

    @property
    def names(self) -> tuple[Any]:
        return (self.work.name,)

    @property
    def length(self) -> int:
        """Number of tokens of the text."""
        return int((self.values != PAD).sum())

    @property
    def calls(self) -> int:
        """Number of calls that reveal its tokens."""
        return len(self.revealed) - 1


class _TokenQueue:
    """A language model as a process of `run_queue`: each step makes a few calls and reveals some tokens of every text."""

    def __init__(self, model: LanguageModel, decoder: Decoder, pieces: Any) -> None:
        self.model, self.decoder, self.pieces = model, decoder, pieces

    @property
    def places(self) -> int:
        return _CALLS * self.pieces.batch_size

    def calls(self, work: TokenWork) -> int:
        return int(self.decoder.numbers(work.values[None] == MASKED)[0][0])

    def unchanged(self, work: TokenWork) -> np.ndarray:
        return np.array(work.values)

    def admitted(self, work: list[TokenWork]) -> list[_Text]:
        chance = uniforms(streams(np.array([new.key for new in work], np.uint64), len(work), ORDER), len(work[0].values))
        calls, revealed = self.decoder.numbers(np.stack([new.values for new in work]) == MASKED)
        numbers = [revealed(np.full(count + 1, row), np.arange(count + 1)) for row, count in enumerate(calls)]
        return [_Text(new, np.array(new.values), chance[row], numbers[row]) for row, new in enumerate(work)]

    def advance(self, cohorts: list[_Text]) -> None:
        cohorts.sort(key=lambda text: -text.length)  # to reduce padding
        size = self.pieces.batch_size
        for start in range(0, len(cohorts), size):
            self._call(cohorts[start : start + size])

    def _call(self, texts: list[_Text]) -> None:
        """One call of the network for some texts."""
        values = np.stack([text.values for text in texts])
        steps = np.array([text.step for text in texts], np.uint64)
        heights = uniforms(streams(np.array([text.work.key for text in texts], np.uint64), len(texts), steps), values.shape[1])
        count = np.array([text.revealed[text.step + 1] - text.revealed[text.step] for text in texts])
        seen, chance = self.decoder.shown(values), np.stack([text.chance for text in texts])
        noise = self.decoder.told(np.array([text.work.noise for text in texts]), steps, seen, chance)
        values = reveal(self.decoder, self.model.beliefs(seen, noise, self.pieces), values, count, chance, heights)
        for text, revealed in zip(texts, values, strict=True):
            text.values, text.step = revealed, text.step + 1

    def results(self, cohort: _Text) -> tuple[np.ndarray]:
        return (cohort.values,)


def run_token_queue(
    model: LanguageModel, decoder: Decoder, work: Iterable[TokenWork], batch_size: int | None = None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Texts `(name, ids)` in the order of completion, each drawn as `uturn.corruption.unmasking.unmask` draws it.

    All texts have arrays of one length, with `PAD` beyond the end of shorter ones.
    """
    queue = iter(work)
    if (first := next(queue, None)) is not None:
        process = _TokenQueue(model, decoder, model.pieces(batch_size, len(first.values)))
        yield from run_queue(process, chain([first], queue))
