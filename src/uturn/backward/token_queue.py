"""A queue that keeps the batches of a language model full: one call serves texts of different lengths at different steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.core import progress
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import ORDER
from uturn.corruption.unmasking import MASKED, Decoder, reveal
from uturn.sources.tokens import PAD

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel


_CALLS = 4  # of the network in which the texts of the queue go one step on


class TokenWork(NamedTuple):
    """A text to reveal: ids int64 (length,) with -1 where masked, its noise level, uint64 key, and a name that is returned."""

    values: np.ndarray
    noise: float
    key: Any
    name: Any


@dataclass
class _Row:
    """A text in the queue: its masked tokens at the start, and how many calls reveal them."""

    work: TokenWork
    values: np.ndarray
    chance: np.ndarray
    masked: int
    calls: int
    step: int = 0

    @property
    def length(self) -> int:
        """Number of tokens of the text."""
        return int((self.values != PAD).sum())

    def revealed(self, step: int) -> int:
        """Number of tokens that are revealed before a step."""
        return self.masked * step // self.calls

    @property
    def noise(self) -> float:
        """Share of masked tokens, at first the noise level."""
        return self.work.noise if self.step == 0 else (self.masked - self.revealed(self.step)) / self.length


def run_token_queue(
    model: LanguageModel, decoder: Decoder, work: Iterable[TokenWork], batch_size: int | None = None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Texts `(name, ids)` in the order of completion, each drawn as `uturn.corruption.unmasking.unmask` draws it.

    All texts have arrays of one length, with `PAD` beyond the end of shorter ones.
    """
    queue = iter(work)
    first = next(queue, None)
    if first is None:
        return
    queue, pieces = chain([first], queue), model.pieces(batch_size, len(first.values))
    rows: list[_Row] = []
    while True:
        while len(rows) < _CALLS * pieces.batch_size and (one := next(queue, None)) is not None:
            row = _admitted(one, decoder)
            if row.masked:
                rows.append(row)
            else:
                progress.add()
                yield one.name, row.values
        if not rows:
            return
        rows.sort(key=lambda row: -row.length)  # so that little of a call is padding
        for start in range(0, len(rows), pieces.batch_size):
            _advance(model, decoder, rows[start : start + pieces.batch_size], pieces)
        progress.add(sum(1 / row.calls for row in rows))
        ended = [row for row in rows if row.step == row.calls]
        rows = [row for row in rows if row.step < row.calls]
        for row in ended:
            yield row.work.name, row.values


def _admitted(work: TokenWork, decoder: Decoder) -> _Row:
    values = np.array(work.values)
    masked = int((values == MASKED).sum())
    chance = uniforms(streams(np.array([work.key], np.uint64), 1, ORDER), len(values))[0]
    return _Row(work, values, chance, masked, masked if decoder.steps is None else min(masked, decoder.steps))


def _advance(model: LanguageModel, decoder: Decoder, rows: list[_Row], pieces: Any) -> None:
    """One call of the network for all rows, after which each has some tokens more."""
    values = np.stack([row.values for row in rows])
    steps = np.array([row.step for row in rows], np.uint64)
    heights = uniforms(streams(np.array([row.work.key for row in rows], np.uint64), len(rows), steps), values.shape[1])
    count = np.array([row.revealed(row.step + 1) - row.revealed(row.step) for row in rows])
    beliefs = model.beliefs(values, np.array([row.noise for row in rows]), pieces)
    values = reveal(decoder, beliefs, values, count, np.stack([row.chance for row in rows]), heights)
    for row, revealed in zip(rows, values, strict=True):
        row.values, row.step = revealed, row.step + 1
