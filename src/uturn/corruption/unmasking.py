"""Decoders of masked strings: the order in which tokens are revealed, and how each is drawn.

If the conditionals p(x_i | kept tokens) of a denoiser are those of one joint law, then revealing one token at a time draws
exactly from the posterior, for every order that is chosen before the token is drawn. Orders that look at the drawn token,
temperatures other than 1, truncated laws and several tokens a step draw from other laws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Protocol

import numpy as np

from uturn import progress
from uturn.checks import checked_integer, shown
from uturn.corruption.denoising import ORDER, Denoiser, checked_observation, checked_posterior
from uturn.protocols import Noisy
from uturn.random import streams, uniforms

ORDERS = ("random", "blocks", "entropy", "probability", "confidence")
MASKED = -1  # value of a masked position
_MOST = 2**20  # strings, or joint draws, that are enumerated
_TOGETHER = 2**22  # probabilities of the symbols that are drawn together


@dataclass(frozen=True)
class Decoder:
    """How masked tokens are revealed.

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
        """Whether it draws from the posterior if the denoiser's conditionals are those of one joint law."""
        truncated = self.top_k is not None or (self.top_p is not None and self.top_p < 1)
        return self.order != "confidence" and self.steps is None and self.temperature == 1 and not truncated

    @property
    def description(self) -> str:
        """The decoder in words."""
        words = [f"order {self.order}" + (f" of {self.block}" if self.order == "blocks" else "")]
        words += [] if self.steps is None else [f"{self.steps} steps"]
        words += [] if self.temperature == 1 else [f"temperature {self.temperature:g}"]
        words += [f"{name} {value:g}" for name, value in (("top-k", self.top_k), ("top-p", self.top_p)) if value is not None]
        return ", ".join(words)

    def weights(self, belief: np.ndarray) -> np.ndarray:
        """Weights with which symbols are drawn, float64, not normalised, of beliefs (.., v)."""
        weights = belief.astype(np.float64)
        if self.top_k is not None or self.top_p is not None:
            order = np.argsort(-weights, axis=-1, kind="stable")
            ordered = np.take_along_axis(weights, order, -1)
            kept = np.ones(ordered.shape, bool)
            if self.top_k is not None:
                kept[..., self.top_k :] = False
            if self.top_p is not None:
                kept &= np.cumsum(ordered, axis=-1) - ordered < self.top_p * ordered.sum(-1, keepdims=True)
            np.put_along_axis(weights, order, np.where(kept, ordered, 0), -1)
        if self.temperature == 1:
            return weights
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        with np.errstate(over="ignore"):
            return np.exp((logs - logs.max(-1, keepdims=True)) / self.temperature)

    def ranks(self, belief: np.ndarray, drawn: np.ndarray | None = None) -> np.ndarray:
        """Numbers (.., positions) by which positions are revealed, the smallest first; `drawn`: for the order "confidence"."""
        if self.order == "blocks":
            return np.broadcast_to(np.arange(belief.shape[-2]) // self.block, belief.shape[:-1]).astype(float)
        if self.order == "entropy":
            logs = np.log(np.maximum(belief, np.finfo(np.float32).tiny))
            return -(belief * logs).sum(-1, dtype=np.float64)
        if self.order == "probability":
            return -belief.max(-1).astype(np.float64)
        if drawn is not None:
            return -np.take_along_axis(belief, drawn[..., None], -1)[..., 0].astype(np.float64)
        return np.zeros(belief.shape[:-1])

    def numbers(self, masked: np.ndarray) -> tuple[np.ndarray, Any]:
        """Evaluations for so many masked tokens, and the function that gives how many are revealed before evaluation k."""
        groups = masked if self.steps is None else np.minimum(masked, self.steps)
        return groups, lambda rows, k: masked[rows] * k // groups[rows]


class Beliefs(Protocol):
    """What a network believes about the masked positions of some sequences."""

    vocab_size: int

    def ranks(self, decoder: Decoder) -> np.ndarray:
        """Numbers (rows, positions) by which a decoder that looks at beliefs reveals masked positions, the smallest first."""
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
    """Draw strings given masked ones (value -1), with the conditionals of a denoiser.

    Parameters
    ----------
    denoiser : Denoiser
        Of masked strings. It is evaluated on strings whose noise is the share of masked tokens.
    noisy : Noisy
        Masked strings, values (batch, length).
    keys : uint64 (batch,)
        One random stream for each string. Its draws depend on no other stream.
    decoder : Decoder

    Returns
    -------
    int64 (batch, length)
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
    decoder: Decoder, beliefs: Beliefs, values: np.ndarray, count: np.ndarray, chance: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Sequences in which a decoder has revealed so many masked positions more.

    Parameters
    ----------
    values : int64 (rows, positions)
        -1 where masked.
    count : int (rows,)
        How many positions are revealed.
    chance : float64 (rows, positions)
        Uniform numbers by which positions of equal rank are ordered, the same in all steps.
    heights : float64 (rows, positions)
        Uniform numbers of this step: a symbol is drawn by inverting the cumulative sum of its law in float64.

    Returns
    -------
    int64 (rows, positions)
    """
    masked = values == MASKED
    chosen = masked if decoder.order == "confidence" else _first(decoder, beliefs, masked, count, chance)
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


def _first(decoder: Decoder, beliefs: Beliefs, masked: np.ndarray, count: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The positions that a decoder chooses before it draws."""
    if decoder.order in ("random", "blocks"):
        ranks = np.arange(masked.shape[1]) // decoder.block if decoder.order == "blocks" else np.zeros(masked.shape[1])
        return smallest(np.broadcast_to(ranks, masked.shape), chance, masked, count)
    return smallest(beliefs.ranks(decoder), None, masked, count)


def smallest(ranks: np.ndarray, chance: np.ndarray | None, among: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which positions have the `count` smallest ranks; equal ranks by chance, or from left to right."""
    second = np.zeros(ranks.shape) if chance is None else chance
    order = np.lexsort((second, np.where(among, ranks, np.inf), ~among), axis=-1)
    place = order.argsort(axis=-1)
    return among & (place < count[:, None])


def draw(weights: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Draws of a symbol, int64 (n,), from weights (n, v) and uniform numbers (n,)."""
    below = np.cumsum(weights, axis=-1, dtype=np.float64)
    return np.minimum((below <= (heights * below[:, -1])[:, None]).sum(-1), weights.shape[-1] - 1)


# --- the law of a decoder --------------------------------------------------------------------------------------------


def law_of(denoiser: Denoiser, values: np.ndarray, decoder: Decoder) -> dict[tuple[int, ...], float]:
    """Probability of every string that a decoder draws from one masked string, by enumeration.

    Parameters
    ----------
    denoiser, decoder
        As for `unmask`.
    values : int (length,)
        Symbols, -1 where masked. At most 2**20 partial strings are visited in a step, and as many joint draws.

    Returns
    -------
    {string: probability}
        They add up to 1.

    Raises
    ------
    ValueError
        If there are more to enumerate.
    """
    values = np.asarray(values)
    noisy = checked_observation(denoiser, Noisy(values[None], np.array([(values < 0).mean()]), denoiser.vocab_size))
    states = {tuple(noisy.values[0].tolist()): 1.0}
    masked = (noisy.values < 0).sum(axis=1)
    groups, revealed = decoder.numbers(masked)
    for step in range(int(groups[0])):
        row = np.array([0])
        count = int(revealed(row, step + 1)[0] - revealed(row, step)[0])
        partial = np.array(list(states), np.int64)
        beliefs = checked_posterior(denoiser, Noisy(partial, (partial < 0).mean(axis=1), denoiser.vocab_size))
        following: dict[tuple[int, ...], float] = {}
        for state, chance, belief in zip(partial, states.values(), beliefs, strict=True):
            for positions, symbols, share in _reveals(decoder, state, belief, count):
                then = state.copy()
                then[list(positions)] = symbols
                name = tuple(then.tolist())
                following[name] = following.get(name, 0.0) + chance * share
        if len(following) > _MOST:
            raise ValueError(f"{len(following)} partial strings; expected at most {_MOST}: take shorter strings")
        states = following
    return states


def _reveals(
    decoder: Decoder, state: np.ndarray, belief: np.ndarray, count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """What a step can reveal: positions, their symbols, and the probability of both."""
    hidden = np.flatnonzero(state < 0)
    weights = decoder.weights(belief[hidden])
    weights /= weights.sum(-1, keepdims=True)
    options = [np.flatnonzero(one).tolist() for one in weights]
    if decoder.order == "confidence":
        if math.prod(map(len, options)) > _MOST:
            raise ValueError(f"{len(hidden)} masked tokens have more than {_MOST} joint draws; take fewer")
        for drawn in product(*options):
            ranks = decoder.ranks(belief[hidden], np.array(drawn))
            kept = np.argsort(ranks, kind="stable")[:count].tolist()
            share = math.prod(float(weights[k, a]) for k, a in enumerate(drawn))
            yield tuple(hidden[kept].tolist()), tuple(drawn[k] for k in kept), share
        return
    ranks = decoder.ranks(belief)[hidden]
    subsets = list(_subsets(ranks, count, decoder.order in ("random", "blocks")))
    for chosen in subsets:
        for symbols in product(*(options[k] for k in chosen)):
            share = math.prod(float(weights[k, a]) for k, a in zip(chosen, symbols, strict=True))
            yield tuple(hidden[list(chosen)].tolist()), symbols, share / len(subsets)


def _subsets(ranks: np.ndarray, count: int, random: bool) -> Iterator[tuple[int, ...]]:
    """Sets of so many positions with the smallest ranks; all equally probable ones where equal ranks are ordered by chance."""
    order = np.argsort(ranks, kind="stable")
    if not random:
        yield tuple(order[:count].tolist())
        return
    last = ranks[order[count - 1]]
    sure = [int(k) for k in order if ranks[k] < last]
    open_ = [int(k) for k in order if ranks[k] == last]
    for more in combinations(open_, count - len(sure)):
        yield (*sure, *more)
