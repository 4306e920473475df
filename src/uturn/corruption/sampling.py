"""Samplers of strings: what a denoiser is asked next about each string, and what follows from its
answer.

A sampler is a reverse process of discrete diffusion, cut where it evaluates the denoiser. The rows
of its state are independent strings, each at a step of its own, so one evaluation serves strings at
different steps. `uturn.corruption.denoising.drawn` asks a denoiser until all strings of a batch are
done. The queue of `uturn.backward.language` asks a network about strings of many blocks at once.

To add a decoder, write the part that is new. Another order of revealing is an `Order`
(`uturn.corruption.orders`), another law of each symbol a `SymbolLaw` with `weights`; both are
options of the sampler `uturn.corruption.unmasking.InOrder`. Any other rule is a `Sampler` with a
`State`, as those in `uturn.corruption.in_time` are. `denoise(denoiser, noisy, steps, keys,
sampler)` draws with it. `Decoder` in `uturn.corruption.unmasking` gives samplers their names in
specs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike
from typing_extensions import TypeVar

from uturn.core.checks import checked_integer, expect
from uturn.core.data import Noisy
from uturn.core.random import choices

MASKED = -1  # value of a masked position; values below it lie beyond the end of a shorter text
# Largest numbers of positions, and of probabilities, of the symbols that are drawn together. Small
# arrays are faster.
_POSITIONS = 2**12
_PROBABILITIES = 2**22


class SymbolBeliefs(Protocol):
    """What a denoiser believes about the symbols of some strings."""

    vocab_size: int
    """Number of symbols v."""

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Probability of each symbol at n positions, (n, v); `rows` and `positions` (n,)."""

    def entropies(self) -> np.ndarray:
        """Entropy of the symbol at each position in nats, float64 (rows, positions)."""

    def largest(self) -> np.ndarray:
        """Largest probability of a symbol at each position, float64 (rows, positions)."""


class ArrayBeliefs:
    """Beliefs in the form of an array of probabilities (rows, positions, v)."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities
        self.vocab_size: int = probabilities.shape[-1]

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        width = self.probabilities.shape[1]
        laws = self.probabilities.reshape(-1, self.vocab_size)
        laws_of_positions: np.ndarray = laws.take(rows * width + positions, axis=0)
        return laws_of_positions

    def entropies(self) -> np.ndarray:
        logs = np.log(np.maximum(self.probabilities, np.finfo(np.float32).tiny))
        entropies: np.ndarray = -(self.probabilities * logs).sum(-1, dtype=np.float64)
        return entropies

    def largest(self) -> np.ndarray:
        largest: np.ndarray = self.probabilities.max(-1).astype(np.float64)
        return largest


@dataclass(frozen=True)
class Draws:
    """Symbols drawn at n positions of some strings."""

    rows: np.ndarray
    """int64 (n,)."""
    positions: np.ndarray
    """int64 (n,)."""
    symbols: np.ndarray
    """int64 (n,)."""
    probabilities: np.ndarray
    """Probability of each drawn symbol in the beliefs, float64 (n,)."""

    def written(self, array: np.ndarray, values: np.ndarray) -> np.ndarray:
        """A copy of an array (rows, positions) with values (n,) at the positions of the draws."""
        copied = array.copy()
        copied[self.rows, self.positions] = values
        return copied


@dataclass(frozen=True)
class SymbolLaw:
    """The law from which a symbol is drawn, given the belief p about it.

    Weights p^(1 / `temperature`) of the `top_k` most probable symbols, or of the fewest symbols
    whose probabilities add up to `top_p`. The default is p itself.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            checked_integer("top_k", self.top_k, 1)
        is_positive = 0 < self.temperature < math.inf
        expect(is_positive, "temperature", self.temperature, "a number above 0")
        is_share = self.top_p is None or 0 < self.top_p <= 1
        expect(is_share, "top_p", self.top_p, "a number above 0, at most 1")

    @property
    def is_belief(self) -> bool:
        """Whether symbols are drawn from the belief itself."""
        return self.temperature == 1 and self.top_k is None and self.top_p in (None, 1)

    @property
    def description(self) -> list[str]:
        """The options that are not their defaults, in words."""
        phrases: list[str] = []
        if self.temperature != 1:
            phrases.append(f"temperature {self.temperature:g}")
        if self.top_k:
            phrases.append(f"top-k {self.top_k}")
        if self.top_p:
            phrases.append(f"top-p {self.top_p:g}")
        return phrases

    def weights(self, belief: np.ndarray) -> np.ndarray:
        """Weights of the symbols, float64 (.., v), not normalised, for beliefs (.., v)."""
        weights = belief.astype(np.float64)
        if self.top_k is not None or self.top_p is not None:
            weights = self._truncated(weights)
        if self.temperature == 1:
            return weights
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        with np.errstate(over="ignore"):
            sharpened: np.ndarray = np.exp((logs - logs.max(-1, keepdims=True)) / self.temperature)
        return sharpened

    def _checked_weights(self, belief: np.ndarray) -> np.ndarray:
        """The weights; ValueError if a user's law gives anything but a weight for each symbol."""
        weights = self.weights(belief)
        if type(self).weights is SymbolLaw.weights:
            return weights
        where = f"{type(self).__name__}.weights"
        shape = np.shape(weights)
        expect(shape == belief.shape, f"{where}: shape", shape, f"{belief.shape}, that of beliefs")
        totals = weights.sum(-1)
        are_weights = (weights >= 0).all() and (totals > 0).all() and np.isfinite(totals).all()
        expect(are_weights, f"{where}: sums", totals, "finite and above 0, of numbers >= 0")
        return weights

    def _truncated(self, weights: np.ndarray) -> np.ndarray:
        """Weights without the symbols that `top_k` or `top_p` excludes; among equally probable
        symbols the first ones are kept.
        """
        order = np.argsort(-weights, axis=-1, kind="stable")
        ordered = np.take_along_axis(weights, order, -1)
        is_allowed = np.ones(ordered.shape, bool)
        if self.top_k is not None:
            is_allowed[..., self.top_k :] = False
        if self.top_p is not None:
            more_probable = np.cumsum(ordered, axis=-1) - ordered
            is_allowed &= more_probable < self.top_p * ordered.sum(-1, keepdims=True)
        truncated = np.zeros(weights.shape)
        np.put_along_axis(truncated, order, np.where(is_allowed, ordered, 0), -1)
        return truncated

    def draws(
        self,
        beliefs: SymbolBeliefs,
        chosen: np.ndarray,
        heights: np.ndarray,
        dtype: DTypeLike | None = None,
    ) -> Draws:
        """Symbols at the positions `chosen`, bool (rows, positions), drawn independently.

        Uniform numbers `heights` (rows, positions) invert the cumulative sums of the weights.
        `dtype`: precision to which beliefs are rounded first; None: they are not rounded.
        """
        rows, positions = np.nonzero(chosen)
        symbols = np.empty(len(rows), np.int64)
        probabilities = np.empty(len(rows))
        for part in parts(len(rows), beliefs.vocab_size):
            belief = beliefs.at(rows[part], positions[part])
            if dtype is not None:
                belief = belief.astype(dtype, copy=False)
            drawn = choices(self._checked_weights(belief), heights[rows[part], positions[part]])
            symbols[part] = drawn
            probabilities[part] = np.take_along_axis(belief, drawn[:, None], 1)[:, 0]
        return Draws(rows, positions, symbols, probabilities)


def parts(count: int, vocab_size: int) -> list[slice]:
    """Slices of `count` positions whose symbols are drawn together."""
    size = max(1, min(_POSITIONS, _PROBABILITIES // vocab_size))
    return [slice(start, start + size) for start in range(0, count, size)]


@dataclass(frozen=True)
class State:
    """Strings under way, one in each row."""

    values: np.ndarray
    """int64 (rows, positions): symbols, `MASKED`, or less beyond the end of a shorter text."""
    noise: np.ndarray
    """float64 (rows,), noise level from which each string started."""
    keys: np.ndarray
    """uint64 (rows,), a random stream for each string."""
    step: np.ndarray
    """int64 (rows,), number of the step of each string that comes next."""

    @property
    def lengths(self) -> np.ndarray:
        """Number of positions of each string, int64 (rows,)."""
        return lengths(self.values)

    def rows(self, index: np.ndarray | slice) -> Self:
        """The state of some rows."""
        arrays = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        return type(self)(**arrays)

    def with_rows(self, index: np.ndarray, part: Self) -> Self:
        """The state in which some rows are those of another state."""
        arrays: dict[str, np.ndarray] = {}
        for field in fields(self):
            array = getattr(self, field.name).copy()
            array[index] = getattr(part, field.name)
            arrays[field.name] = array
        return type(self)(**arrays)

    @classmethod
    def joined(cls, states: Sequence[Self]) -> Self:
        """One state with the rows of several."""
        arrays: dict[str, np.ndarray] = {}
        for field in fields(cls):
            arrays[field.name] = np.concatenate([getattr(state, field.name) for state in states])
        return cls(**arrays)


def lengths(values: np.ndarray) -> np.ndarray:
    """Number of positions of each string, int64 (rows,), without those beyond its end."""
    counts: np.ndarray = (values >= MASKED).sum(axis=1)
    return counts


S = TypeVar("S", bound=State, default=Any)
"""State of a sampler, which only the sampler itself reads further than its `values`."""


class Sampler(ABC, Generic[S]):
    """A reverse process of strings: it asks a denoiser, one evaluation after the other."""

    @abstractmethod
    def start(self, noisy: Noisy, keys: np.ndarray) -> S:
        """The state of noisy strings (rows, positions) before the first evaluation, with one
        random stream for each, uint64 (rows,).
        """

    @abstractmethod
    def calls(self, noisy: Noisy) -> np.ndarray:
        """Expected number of evaluations for each string, int64 (rows,), rounded up; 0 if a
        string is left as it is.
        """

    @abstractmethod
    def is_waiting(self, state: S) -> np.ndarray:
        """Which strings need an evaluation, bool (rows,); the others are done."""

    @abstractmethod
    def question(self, state: S) -> Noisy:
        """Strings and noise levels that the denoiser is told. All rows are waiting."""

    @abstractmethod
    def answered(self, state: S, beliefs: SymbolBeliefs) -> S:
        """The state after the evaluation of all rows."""
