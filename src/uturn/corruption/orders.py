"""Orders in which masked symbols are revealed.

Write p_i for the belief about position i, given the symbols that the denoiser sees. If all p_i are
conditionals of one joint law, then an order that is chosen before a symbol is drawn keeps that law,
with one symbol an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.messages import shown
from uturn.corruption.sampling import MASKED, SymbolBeliefs, lengths


@dataclass(frozen=True)
class Order(ABC):
    """The order in which masked positions are revealed."""

    name: ClassVar[str]
    """Name of the order in specs."""
    is_by_chance: ClassVar[bool] = False
    """Whether the order depends on no belief, and positions of equal rank come in random order.
    Otherwise they come from left to right.
    """
    precedes_draws: ClassVar[bool] = True
    """Whether a position is chosen before its symbol is drawn."""

    @property
    def is_causal(self) -> bool:
        """Whether the denoiser does not see what lies right of the current block."""
        return False

    @property
    def description(self) -> str:
        return f"order {self.name}"

    @abstractmethod
    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        """Numbers, float64 (rows, positions), by which the positions `masked`, bool (rows,
        positions), are revealed, the smallest first.
        """

    def candidates(
        self, masked: np.ndarray, beliefs: SymbolBeliefs, count: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """Masked positions whose symbols are drawn, bool (rows, positions), to reveal `count`
        (rows,) of them. Uniform numbers `chance` (rows, positions) order positions of equal rank.
        """
        ranks = self.checked_ranks(masked, beliefs)
        return self.first(ranks, masked, count, chance)

    def checked_ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        """The ranks; ValueError unless there is a number for each position."""
        ranks: object = self.ranks(masked, beliefs)
        where = f"{type(self).__name__}.ranks"
        if not isinstance(ranks, np.ndarray):
            raise ValueError(f"{where} = {shown(ranks)}: expected an array {masked.shape}")
        expect(ranks.shape == masked.shape, f"{where}: shape", ranks.shape, f"{masked.shape}")
        expect(not np.isnan(ranks).any(), where, "NaN", "a number for each position")
        return ranks

    def first(
        self, ranks: np.ndarray, masked: np.ndarray, count: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """The `count` (rows,) masked positions with the smallest ranks, bool (rows, positions)."""
        return smallest(ranks, chance if self.is_by_chance else None, masked, count)

    def revealed(
        self, candidates: np.ndarray, probabilities: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        """Candidates that keep their drawn symbols, bool (rows, positions).

        `probabilities` (rows, positions): those of the drawn symbols.
        """
        return candidates

    def chance_of(
        self,
        places: list[int],
        ranks: np.ndarray,
        belief: np.ndarray,
        law: np.ndarray,
        symbols: np.ndarray,
    ) -> np.ndarray:
        """Probability, (strings, draws) or (strings, 1), that some of the n masked positions are
        the ones to be revealed, given the symbols drawn there. The laws of decoders are enumerated
        by it.

        `places`: their numbers among the masked positions. `ranks` (strings, n). `belief`, `law`
        (strings, n, v): beliefs, and the laws from which symbols are drawn. `symbols` (draws,
        places): those drawn at the places.
        """
        if not self.precedes_draws:
            raise ValueError(f"{self!r} chooses drawn symbols; define its method chance_of")
        return _are_first(ranks, places, self.is_by_chance)[:, None]

    def visible(self, values: np.ndarray) -> np.ndarray:
        """What the denoiser sees of strings, int64 (rows, positions)."""
        return values

    def noise(
        self, noise: np.ndarray, step: np.ndarray, visible: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """Noise level (rows,) that the denoiser is told: in the first step that of the data,
        `noise`, then the share of masked symbols in `visible`.
        """
        return np.where(step == 0, noise, share_of_masked(visible))

    def block_length(self, length: int) -> int:
        """Number of neighbouring positions that may be revealed in one step, in strings of some
        length.
        """
        return length


class RandomOrder(Order):
    """Uniformly random."""

    name = "random"
    is_by_chance = True

    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        return np.zeros(masked.shape)


class FirstHitting(RandomOrder):
    """Uniformly random, and the denoiser is told the noise level at which the next symbol is
    revealed in continuous time (arXiv:2409.02908, section 4).
    """

    name = "first_hitting"

    def noise(
        self, noise: np.ndarray, step: np.ndarray, visible: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """Noise level (rows,) that the denoiser is told.

        A symbol that is masked at noise level t is revealed at a level uniform in (0, t), here
        t (1 - chance). The denoiser is told the largest of these levels among masked symbols.
        """
        masked = visible == MASKED
        levels: np.ndarray = noise * (1 - np.where(masked, chance, 1.0).min(axis=1))
        return levels


@dataclass(frozen=True)
class Blocks(Order):
    """Blocks of `size` neighbours from left to right, in random order within each.

    If `causal`, the denoiser sees only the current block and what lies left of it
    (arXiv:2503.09573).
    """

    name: ClassVar[str] = "blocks"
    is_by_chance: ClassVar[bool] = True
    size: int
    causal: bool = False

    def __post_init__(self) -> None:
        checked_integer("block", self.size, 1)

    @property
    def is_causal(self) -> bool:
        return self.causal

    @property
    def description(self) -> str:
        return f"order blocks of {self.size}"

    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        blocks = np.arange(masked.shape[1]) // self.size
        return np.broadcast_to(blocks, masked.shape).astype(float)

    def visible(self, values: np.ndarray) -> np.ndarray:
        if not self.causal:
            return values
        current = (values == MASKED).argmax(axis=1)[:, None] // self.size
        is_right = np.arange(values.shape[1]) // self.size > current
        return np.where(is_right & (values >= 0), MASKED, values)

    def noise(
        self, noise: np.ndarray, step: np.ndarray, visible: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        if self.causal:  # a part of a string has no noise level of its own
            return share_of_masked(visible)
        return super().noise(noise, step, visible, chance)

    def block_length(self, length: int) -> int:
        return self.size if self.causal else length


class LowestEntropy(Order):
    """The position whose belief p_i has the lowest entropy."""

    name = "entropy"

    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        return beliefs.entropies()


class LargestProbability(Order):
    """The position whose belief p_i has the largest probability of a symbol."""

    name = "probability"

    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        return -beliefs.largest()


class Confidence(Order):
    """Symbols are drawn at all masked positions, and the drawn symbols with the largest
    probabilities p_i are kept (MaskGIT, LLaDA).
    """

    name = "confidence"
    precedes_draws = False

    def ranks(self, masked: np.ndarray, beliefs: SymbolBeliefs) -> np.ndarray:
        """Zeros: no position comes first before its symbol is drawn."""
        return np.zeros(masked.shape)

    def candidates(
        self, masked: np.ndarray, beliefs: SymbolBeliefs, count: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        return masked

    def revealed(
        self, candidates: np.ndarray, probabilities: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        return smallest(-probabilities, None, candidates, count)

    def chance_of(
        self,
        places: list[int],
        ranks: np.ndarray,
        belief: np.ndarray,
        law: np.ndarray,
        symbols: np.ndarray,
    ) -> np.ndarray:
        """Probability (strings, draws) that the symbols drawn at all other positions have smaller
        probabilities p_i than those drawn at the places. Equal probabilities are ordered from left
        to right.
        """
        rivals = np.setdiff1d(np.arange(belief.shape[1]), places)
        probabilities = belief[:, places, symbols]
        lowest = probabilities.min(axis=-1)[..., None]
        last = np.where(probabilities == lowest, places, -1).max(axis=-1)[..., None, None]
        lowest = lowest[..., None]
        rival_beliefs = belief[:, None, rivals]
        is_right = rivals[:, None] > last
        is_later = (rival_beliefs < lowest) | ((rival_beliefs == lowest) & is_right)
        chance: np.ndarray = (law[:, None, rivals] * is_later).sum(axis=-1).prod(axis=-1)
        return chance


def share_of_masked(values: np.ndarray) -> np.ndarray:
    """Share of masked positions of strings (rows, positions), float64 (rows,)."""
    share: np.ndarray = (values == MASKED).sum(axis=1) / lengths(values)
    return share


def smallest(
    ranks: np.ndarray, chance: np.ndarray | None, among: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Mask of the positions `among`, bool (rows, positions), with the `count` (rows,) smallest
    ranks.

    Equal ranks come in the order of `chance` (rows, positions), or from left to right.
    """
    second = np.zeros(ranks.shape) if chance is None else chance
    order = np.lexsort((second, np.where(among, ranks, np.inf), ~among), axis=-1)
    place = order.argsort(axis=-1)
    return among & (place < count[:, None])


def _are_first(ranks: np.ndarray, places: list[int], is_by_chance: bool) -> np.ndarray:
    """Probability (states,) that some places have the smallest ranks, (states, positions).

    Equal ranks come in random order, or from left to right.
    """
    count = len(places)
    if not is_by_chance:
        first = np.argsort(ranks, axis=1, kind="stable")[:, :count]
        are_first: np.ndarray = (np.sort(first, axis=1) == places).all(axis=1)
        return are_first
    from scipy.special import comb

    is_chosen = np.isin(np.arange(ranks.shape[1]), places)
    last = np.sort(ranks, axis=1)[:, count - 1, None]
    is_before = ranks < last
    is_equal = ranks == last
    has_all = (is_chosen >= is_before).all(axis=1)
    has_no_other = (is_chosen <= is_before | is_equal).all(axis=1)
    num_left = count - is_before.sum(axis=1)
    chance: np.ndarray = (has_all & has_no_other) / comb(is_equal.sum(axis=1), num_left)
    return chance
