"""Decoders of masked strings: the order in which tokens are revealed, and the law of each token.

If the conditionals p(x_i | kept tokens) of a denoiser are those of one joint law, then revealing one token at a time draws
exactly from the posterior, for every order that is chosen before the token is drawn. Orders that depend on the drawn token,
temperatures other than 1, truncated laws and several tokens a step draw from other laws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from uturn.core import progress
from uturn.core.checks import checked_integer, shown
from uturn.core.protocols import Noisy
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import ORDER, Denoiser, checked_observation, checked_posterior
from uturn.corruption.strings import draw

ORDERS = ("random", "blocks", "entropy", "probability", "confidence")
MASKED = -1  # value of a masked position
_MOST = 2**20  # partial strings that a step may reach
_TOGETHER = 2**22  # probabilities of the symbols that are drawn together


@dataclass(frozen=True)
class Decoder:
    """The rule by which masked tokens are revealed.

    Parameters
    ----------
    order
        "random": uniformly random. "blocks": blocks of `block` neighbours from left to right, random in each. "entropy" and
        "probability": the token with the lowest entropy, or the largest probability, of p(x_i | kept tokens). "confidence":
        tokens are drawn for all masked positions, and that whose own probability is largest is kept (MaskGIT, LLaDA).
    steps
        Evaluations of the denoiser, in which equal numbers of tokens are revealed, independently of each other; by default one
        token an evaluation.
    block
        Length of a block; with 1, "blocks" is the order from left to right.
    temperature
        Tokens are drawn with weights p^(1 / temperature).
    top_k, top_p
        Only the `top_k` most probable symbols, or the fewest whose probabilities add up to `top_p`, are drawn.

    Raises
    ------
    ValueError
        For values out of range.
    """

    order: str = "random"
    steps: int | None = None
    block: int = 8
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order = {shown(self.order)}: expected one of {', '.join(map(repr, ORDERS))}")
        for name in ("steps", "top_k"):
            if getattr(self, name) is not None:
                checked_integer(name, getattr(self, name), 1)
        checked_integer("block", self.block, 1)
        for name, value, most in (("temperature", self.temperature, math.inf), ("top_p", self.top_p, 1.0)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value <= most and math.isfinite(value)):
                raise ValueError(f"{name} = {shown(value)}: expected a number above 0{', at most 1' if most == 1 else ''}")

    @property
    def is_exact(self) -> bool:
        """Whether the decoder draws from the posterior, given a denoiser whose conditionals belong to one joint law."""
        truncated = self.top_k is not None or (self.top_p is not None and self.top_p < 1)
        return self.order != "confidence" and self.steps is None and self.temperature == 1 and not truncated

    @property
    def description(self) -> str:
        """The decoder as text."""
        phrases = [f"order {self.order}" + (f" of {self.block}" if self.order == "blocks" else "")]
        phrases += [] if self.steps is None else [f"{self.steps} steps"]
        phrases += [] if self.temperature == 1 else [f"temperature {self.temperature:g}"]
        phrases += [f"{name} {value:g}" for name, value in (("top-k", self.top_k), ("top-p", self.top_p)) if value is not None]
        return ", ".join(phrases)

    def weights(self, belief: np.ndarray) -> np.ndarray:
        """Weights with which symbols are drawn, float64, not normalised, of beliefs (.., v)."""
        weights = belief.astype(np.float64)
        if self.top_k is not None or self.top_p is not None:
            order = np.argsort(-weights, axis=-1, kind="stable")
            ordered = np.take_along_axis(weights, order, -1)
            allowed = np.ones(ordered.shape, bool)
            if self.top_k is not None:
                allowed[..., self.top_k :] = False
            if self.top_p is not None:
                allowed &= np.cumsum(ordered, axis=-1) - ordered < self.top_p * ordered.sum(-1, keepdims=True)
            np.put_along_axis(weights, order, np.where(allowed, ordered, 0), -1)
        if self.temperature == 1:
            return weights
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        with np.errstate(over="ignore"):
            return np.exp((logs - logs.max(-1, keepdims=True)) / self.temperature)

    def ranks(self, belief: np.ndarray) -> np.ndarray:
        """Numbers (.., positions) by which positions are revealed, the smallest first, given beliefs (.., positions, v)."""
        if self.order == "entropy":
            logs = np.log(np.maximum(belief, np.finfo(np.float32).tiny))
            return -(belief * logs).sum(-1, dtype=np.float64)
        if self.order == "probability":
            return -belief.max(-1).astype(np.float64)
        return self.fixed_ranks(belief.shape[:-1])

    def fixed_ranks(self, shape: tuple[int, ...]) -> np.ndarray:
        """Ranks for an order that does not depend on beliefs: the number of the block, or 0."""
        blocks = np.arange(shape[-1]) // (self.block if self.order == "blocks" else shape[-1])
        return np.broadcast_to(blocks, shape).astype(float)

    def numbers(self, masked: np.ndarray) -> tuple[np.ndarray, Any]:
        """Number of evaluations for `masked` tokens, and a function that gives the number revealed before evaluation k."""
        groups = masked if self.steps is None else np.minimum(masked, self.steps)
        return groups, lambda rows, k: masked[rows] * k // groups[rows]


class NetworkBeliefs(Protocol):
    """A network's beliefs about the masked positions of some sequences."""

    vocab_size: int

    def ranks(self, decoder: Decoder) -> np.ndarray:
        """Numbers (rows, positions) by which a belief-dependent decoder reveals masked positions, the smallest first."""
        ...

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Probability of each symbol at some masked positions (n,) of rows (n,): (n, v)."""
        ...


class _Array:
    """Beliefs as an array (rows, positions, v)."""

    def __init__(self, belief: np.ndarray) -> None:
        self.belief, self.vocab_size = belief, belief.shape[-1]

    def ranks(self, decoder: Decoder) -> np.ndarray:
        return decoder.ranks(self.belief)

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.belief[rows, positions]


def unmask(denoiser: Denoiser, noisy: Noisy, keys: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Strings int64 (batch, length) drawn given masked ones (value -1), with the conditionals of a denoiser of masked strings.

    The denoiser is evaluated on strings whose noise is the share of masked tokens. `keys`, uint64 (batch,): one random stream for
    each string, whose draws depend on no other stream.
    """
    leaves = noisy.values.copy()
    batch, d = leaves.shape
    chance = uniforms(streams(keys, batch, ORDER), d)
    masked = (leaves < 0).sum(axis=1)
    groups, revealed = decoder.numbers(masked)
    for step in progress.steps(range(int(groups.max(initial=0)))):
        active = np.flatnonzero(groups > step)
        first, end = revealed(active, step), revealed(active, step + 1)
        share = (masked[active] - first) / d
        now = Noisy(leaves[active], share if step else noisy.noise[active], noisy.vocab_size)
        heights = uniforms(streams(keys[active], len(active), step), d)
        beliefs = _Array(checked_posterior(denoiser, now))
        leaves[active] = reveal(decoder, beliefs, now.values, end - first, chance[active], heights)
    return leaves


def reveal(
    decoder: Decoder, beliefs: NetworkBeliefs, values: np.ndarray, count: np.ndarray, chance: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Sequences, int64 (rows, positions): `values`, -1 where masked, with `count` (rows,) more positions revealed by a decoder.

    Uniform numbers (rows, positions): `chance`, the same in all steps, orders positions of equal rank; `heights`, of this step,
    draws a symbol by inverting the cumulative sum of its law in float64.
    """
    masked = values == MASKED
    if decoder.order == "confidence":
        chosen = masked
    elif decoder.order in ("random", "blocks"):
        chosen = smallest(decoder.fixed_ranks(masked.shape), chance, masked, count)
    else:
        chosen = smallest(beliefs.ranks(decoder), None, masked, count)
    rows, positions = np.nonzero(chosen)
    drawn = np.empty(len(rows), np.int64)
    sure = np.zeros(values.shape)
    size = max(1, _TOGETHER // beliefs.vocab_size)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        law = beliefs.at(rows[part], positions[part])
        drawn[part] = draw(decoder.weights(law), heights[rows[part], positions[part]])
        sure[rows[part], positions[part]] = -np.take_along_axis(law, drawn[part, None], 1)[:, 0]
    out = values.copy()
    out[rows, positions] = drawn
    return np.where(smallest(sure, None, masked, count), out, values) if decoder.order == "confidence" else out


def smallest(ranks: np.ndarray, chance: np.ndarray | None, among: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mask of the positions with the `count` smallest ranks; equal ranks in random order, or from left to right."""
    second = np.zeros(ranks.shape) if chance is None else chance
    order = np.lexsort((second, np.where(among, ranks, np.inf), ~among), axis=-1)
    place = order.argsort(axis=-1)
    return among & (place < count[:, None])


# --- the law of a decoder --------------------------------------------------------------------------------------------


def law_of(denoiser: Denoiser, values: np.ndarray, decoder: Decoder) -> dict[tuple[int, ...], float]:
    """Probability of every string that a decoder draws from one masked string, by enumeration.

    Parameters
    ----------
    denoiser, decoder
        As for `unmask`.
    values : int (length,)
        Symbols, -1 where masked. At most 2**20 partial strings are reached in a step.

    Returns
    -------
    {string: probability}
        They add up to 1.

    Raises
    ------
    ValueError
        If a step reaches more partial strings.
    """
    values = np.asarray(values)
    noisy = checked_observation(denoiser, Noisy(values[None], np.array([(values < 0).mean()]), denoiser.vocab_size))
    states, chances, row = noisy.values, np.ones(1), np.array([0])
    groups, revealed = decoder.numbers((states < 0).sum(axis=1))
    for step in range(int(groups[0])):
        count = int(revealed(row, step + 1)[0] - revealed(row, step)[0])
        belief = checked_posterior(denoiser, Noisy(states, (states < 0).mean(axis=1), denoiser.vocab_size))
        states, chances = _next(decoder, states, chances, belief, count)
    return dict(zip(map(tuple, states.tolist()), chances.tolist(), strict=True))


def _next(
    decoder: Decoder, states: np.ndarray, chances: np.ndarray, belief: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Partial strings (.., length) after a step that reveals `count` positions, and their probabilities."""
    masked = np.nonzero(states < 0)[1].reshape(len(states), -1)  # as many in all states
    n, v = masked.shape[1], belief.shape[-1]
    size = len(states) * math.comb(n, count) * v**count
    if size > _MOST:
        raise ValueError(f"{size} partial strings in a step; expected at most {_MOST}: take shorter strings")
    ranks = np.take_along_axis(decoder.ranks(belief), masked, axis=1)
    belief = np.take_along_axis(belief, masked[..., None], axis=1)
    weights = decoder.weights(belief)
    weights /= weights.sum(-1, keepdims=True)
    symbols = np.indices((v,) * count).reshape(count, -1).T
    reached, shares = [], []
    for chosen in map(list, combinations(range(n), count)):
        if decoder.order == "confidence":
            are_first = _confident(belief, weights, chosen, symbols)
        else:
            are_first = _are_first(ranks, chosen, decoder.order in ("random", "blocks"))[:, None]
        share = chances[:, None] * are_first * weights[:, chosen, symbols].prod(axis=-1)
        rows, which = np.nonzero(share)
        after = states[rows]
        np.put_along_axis(after, masked[rows][:, chosen], symbols[which], axis=1)
        reached.append(after)
        shares.append(share[rows, which])
    # Add the probabilities of equal strings reached in several ways.
    states = np.concatenate(reached)
    order = np.lexsort(states.T)
    states = states[order]
    first = np.flatnonzero(np.r_[True, (states[1:] != states[:-1]).any(axis=1)])
    return states[first], np.add.reduceat(np.concatenate(shares)[order], first)


def _are_first(ranks: np.ndarray, chosen: list[int], random: bool) -> np.ndarray:
    """Probability (states,) that the chosen positions have the smallest ranks; equal ones by chance, or from left to right."""
    count, inside = len(chosen), np.isin(np.arange(ranks.shape[1]), chosen)
    if not random:
        first = np.argsort(ranks, axis=1, kind="stable")[:, :count]
        return (np.sort(first, axis=1) == chosen).all(axis=1)
    last = np.sort(ranks, axis=1)[:, count - 1, None]
    sure, equal = ranks < last, ranks == last
    possible = (inside >= sure).all(axis=1) & (inside <= sure | equal).all(axis=1)
    from scipy.special import comb

    return possible / comb(equal.sum(axis=1), count - sure.sum(axis=1))


def _confident(belief: np.ndarray, weights: np.ndarray, chosen: list[int], symbols: np.ndarray) -> np.ndarray:
    """Probability (states, draws) that the tokens drawn at all other positions have a smaller probability than the chosen ones.

    `symbols` (draws, count): what is drawn at the chosen positions. Equal ones are ordered from left to right.
    """
    others = np.setdiff1d(np.arange(belief.shape[1]), chosen)
    own = belief[:, chosen, symbols]
    least = own.min(axis=-1)
    place = np.where(own == least[..., None], chosen, -1).max(axis=-1)[..., None, None]
    least, theirs = least[..., None, None], belief[:, None, others]
    later = (theirs < least) | ((theirs == least) & (others[:, None] > place))
    return (weights[:, None, others] * later).sum(axis=-1).prod(axis=-1)
