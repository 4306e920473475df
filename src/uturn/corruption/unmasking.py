"""Decoders of masked strings: the order in which tokens are revealed, and the law of each token.

If the conditionals p(x_i | kept tokens) of a denoiser are those of one joint law, then revealing
one token at a time draws exactly from the posterior, for every order that is chosen before the
token is drawn. Orders that depend on the drawn token, temperatures other than 1, truncated laws and
several tokens a step draw from other laws. `uturn.corruption.in_time` has the samplers that follow
the time of the diffusion and may mask tokens again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from uturn.core import progress
from uturn.core.checks import checked_integer, expect
from uturn.core.protocols import Noisy
from uturn.core.random import choices, streams, uniforms
from uturn.corruption import in_time
from uturn.corruption.denoising import ORDER, Denoiser, checked_observation, checked_posterior
from uturn.corruption.uniform import UniformReplacement

ORDERS = (
    "random",
    "blocks",
    "entropy",
    "probability",
    "confidence",
    "first_hitting",
    "analytic",
    "euler",
)
REMASKING = ("none", "cap", "rescale", "conf")
MASKED = -1  # value of a masked position
_MOST = 2**20  # partial strings that a step may reach
_TOGETHER = 2**22  # probabilities of the symbols that are drawn together


@dataclass(frozen=True)
class Decoder:
    """The rule by which masked tokens are revealed; ValueError for options that do not go together.

    `order`. "random": uniformly random. "blocks": blocks of `block` neighbours from left to right,
    random in each. "entropy", "probability": the token with the lowest entropy, or the largest
    probability, of p(x_i | kept tokens). "confidence": tokens are drawn for all masked positions,
    and that whose own probability is largest is kept (MaskGIT, LLaDA). "first_hitting": random, and
    the denoiser is told the noise level at which the next token is revealed in continuous time
    (arXiv:2409.02908, section 4). "analytic", "euler": `steps` equal steps of the noise level
    (`uturn.corruption.in_time`).

    `steps`: evaluations of the denoiser, in which equal numbers of tokens are revealed,
    independently of each other; by default one token an evaluation. With `causal`, for each block.
    "analytic", "euler" and `remask` need it: the number of steps in time. Tokens are drawn with
    weights p^(1 / `temperature`), of the `top_k` most probable symbols, or the fewest whose
    probabilities add up to `top_p`. `remask`, `eta`, `remask_given`: schedule by which each step
    masks revealed tokens again, and its strength in [0, 1]: "cap", "rescale", "conf" (ReMDM,
    arXiv:2503.00307, section 4.1; `uturn.corruption.in_time.chances`); whether tokens that the
    noise has left are masked too. With order "analytic" the tokens of a step are revealed
    independently, with "random" one an evaluation. `causal`, with order "blocks": the denoiser sees
    only the current block and what lies left of it (arXiv:2503.09573).
    """

    order: str = "random"
    steps: int | None = None
    block: int = 8
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    remask: str = "none"
    eta: float = 0.1
    remask_given: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        expect(self.order in ORDERS, "order", self.order, f"one of {', '.join(map(repr, ORDERS))}")
        for name in ("steps", "top_k", "block"):
            if getattr(self, name) is not None:
                checked_integer(name, getattr(self, name), 1)
        expect(0 < self.temperature < math.inf, "temperature", self.temperature, "a number above 0")
        expect(
            self.top_p is None or 0 < self.top_p <= 1,
            "top_p",
            self.top_p,
            "a number above 0, at most 1",
        )
        fits = self.remask in REMASKING and 0 <= self.eta <= 1
        expect(fits, "remask, eta", (self.remask, self.eta), f"one of {REMASKING}, and 0 to 1")
        fits = self.remask == "none" or self.order in ("random", "analytic")
        expect(fits, f"order with remask {self.remask!r}", self.order, "'random' or 'analytic'")
        expect(
            self.remask != "none" or not self.remask_given,
            "remask with remask_given",
            "none",
            "'cap', 'rescale' or 'conf'",
        )
        expect(
            self.order == "blocks" or not self.causal, "order with causal", self.order, "'blocks'"
        )
        expect(
            not self.in_time or self.steps,
            f"steps of {self.description}",
            self.steps,
            "the number of steps in time",
        )

    def on_texts_of(self, length: int) -> Decoder:
        """The simplest decoder that gives the same texts of at most `length` tokens: a token a
        step, blocks as long as a text.
        """
        # Blocks of one are left to right.
        one_block = self.order == "blocks" and self.block >= max(length, 2)
        order, block, causal = (
            ("random", Decoder.block, False) if one_block else (self.order, self.block, self.causal)
        )
        is_singly = (
            self.steps is not None
            and not self.in_time
            and self.steps >= (block if causal else length)
        )
        return replace(
            self, order=order, block=block, causal=causal, steps=None if is_singly else self.steps
        )

    @property
    def in_time(self) -> bool:
        """Whether tokens change by chance in each step of the noise level
        (`uturn.corruption.in_time`).
        """
        return self.order in ("analytic", "euler") or self.remask != "none"

    @property
    def by_chance(self) -> bool:
        """Whether the order depends on no belief."""
        return self.order in ("random", "blocks", "first_hitting")

    @property
    def is_exact(self) -> bool:
        """Whether the decoder draws from the posterior, given a denoiser whose conditionals
        belong to one joint law.
        """
        return self.is_exact_singly and (self.steps is None or self.in_time)

    @property
    def is_exact_singly(self) -> bool:
        """`is_exact` if `steps` is at least the number of masked tokens."""
        if (
            self.order in ("confidence", "analytic", "euler")
            or self.remask == "conf"
            or self.remask_given
            or self.causal
        ):
            return False
        return self.temperature == 1 and self.top_k is None and self.top_p in (None, 1)

    @property
    def warning(self) -> str:
        """What the decoder draws from, if that is not the posterior with one token a step; "" if
        it is.
        """
        if self.is_exact_singly:
            return ""
        if self.causal and replace(self, causal=False).is_exact_singly:
            return (
                ": a draw from the posterior only where no kept token lies in a later block than a"
                " masked one"
            )
        return ": not a draw from the posterior"

    @property
    def description(self) -> str:
        which = "given and drawn tokens" if self.remask_given else "drawn tokens"
        phrases = [
            f"order {self.order}" + (f" of {self.block}" if self.order == "blocks" else ""),
            self.steps and f"{self.steps} steps",
            self.temperature != 1 and f"temperature {self.temperature:g}",
            self.top_k and f"top-k {self.top_k}",
            self.top_p and f"top-p {self.top_p:g}",
            self.remask != "none" and f"{which} masked again ({self.remask}, eta {self.eta:g})",
            self.causal and "sees its block and what lies left of it",
        ]
        return ", ".join(phrase for phrase in phrases if phrase)

    def shown(self, values: np.ndarray) -> np.ndarray:
        """What the denoiser sees of `values` (rows, positions): all, or nothing right of the
        current block.
        """
        if not self.causal:
            return values
        current = (values == MASKED).argmax(axis=1)[:, None] // self.block
        right = np.arange(values.shape[1]) // self.block > current
        return np.where(right & (values >= 0), MASKED, values)

    def told(
        self, noise: np.ndarray, step: np.ndarray | int, seen: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """Noise level (rows,) that the denoiser is told: first that of the data, then the share of
        masked tokens.

        "first_hitting": each token that is masked at noise level t is revealed at a level uniform
        in (0, t), here t (1 - chance); the largest of these levels among the masked tokens.
        """
        masked = seen == MASKED
        if self.order == "first_hitting":
            return noise * (1 - np.where(masked, chance, 1.0).min(axis=1))
        share = masked.sum(axis=1) / (seen >= MASKED).sum(axis=1)  # padding lies below
        return share if self.causal else np.where(step == 0, noise, share)

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
                allowed &= np.cumsum(ordered, axis=-1) - ordered < self.top_p * ordered.sum(
                    -1, keepdims=True
                )
            np.put_along_axis(weights, order, np.where(allowed, ordered, 0), -1)
        if self.temperature == 1:
            return weights
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        with np.errstate(over="ignore"):
            return np.exp((logs - logs.max(-1, keepdims=True)) / self.temperature)

    def ranks(self, belief: np.ndarray) -> np.ndarray:
        """Numbers (.., positions) by which positions are revealed, the smallest first, given
        beliefs (.., positions, v).
        """
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
        """Number of evaluations (rows,) for masks (rows, positions), and a function: number
        revealed before evaluation k.
        """
        # A step does not reveal tokens of two blocks.
        size = self.block if self.causal else masked.shape[1]
        tokens = np.add.reduceat(
            masked, np.arange(0, masked.shape[1], size), axis=1, dtype=np.int64
        )
        calls = tokens if self.steps is None else np.minimum(tokens, self.steps)
        start = np.cumsum(calls, axis=1) - calls

        def revealed(rows: np.ndarray, k: Any) -> np.ndarray:
            done = np.clip(np.asarray(k)[..., None] - start[rows], 0, calls[rows])
            return (tokens[rows] * done // np.maximum(calls[rows], 1)).sum(axis=1)

        return calls.sum(axis=1), revealed


class NetworkBeliefs(Protocol):
    """A network's beliefs about the masked positions of some sequences."""

    vocab_size: int

    def ranks(self, decoder: Decoder) -> np.ndarray:
        """Numbers (rows, positions) by which a belief-dependent decoder reveals masked
        positions, the smallest first.
        """

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Probability of each symbol at some masked positions (n,) of rows (n,): (n, v)."""


class _Array:
    """Beliefs as an array (rows, positions, v)."""

    def __init__(self, belief: np.ndarray) -> None:
        self.belief, self.vocab_size = belief, belief.shape[-1]

    def ranks(self, decoder: Decoder) -> np.ndarray:
        return decoder.ranks(self.belief)

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.belief[rows, positions]


def unmask(denoiser: Denoiser, noisy: Noisy, keys: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Strings int64 (batch, length) drawn given masked ones (value -1), with the conditionals of a
    denoiser of masked strings.

    The denoiser is evaluated on strings whose noise is the share of masked tokens. `keys`, uint64
    (batch,): one random stream for each string, whose draws depend on no other stream.
    """
    if decoder.in_time:
        return in_time.unmask(denoiser, noisy, keys, decoder)
    leaves = noisy.values.copy()
    batch, d = leaves.shape
    chance = uniforms(streams(keys, batch, ORDER), d)
    groups, revealed = decoder.numbers(leaves < 0)
    for step in progress.steps(range(int(groups.max(initial=0)))):
        active = np.flatnonzero(groups > step)
        count = revealed(active, step + 1) - revealed(active, step)
        seen = decoder.shown(leaves[active])
        now = Noisy(
            seen, decoder.told(noisy.noise[active], step, seen, chance[active]), noisy.vocab_size
        )
        heights = uniforms(streams(keys[active], len(active), step), d)
        beliefs = _Array(checked_posterior(denoiser, now))
        leaves[active] = reveal(decoder, beliefs, leaves[active], count, chance[active], heights)
    return leaves


def reveal(
    decoder: Decoder,
    beliefs: NetworkBeliefs,
    values: np.ndarray,
    count: np.ndarray,
    chance: np.ndarray,
    heights: np.ndarray,
) -> np.ndarray:
    """Sequences, int64 (rows, positions): `values`, -1 where masked, with `count` (rows,) more
    positions revealed by a decoder.

    Uniform numbers (rows, positions): `chance`, the same in all steps, orders positions of equal
    rank; `heights`, of this step, draws a symbol by inverting the cumulative sum of its law in
    float64.
    """
    masked = values == MASKED
    if decoder.order == "confidence":
        chosen = masked
    elif decoder.by_chance:
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
        drawn[part] = choices(decoder.weights(law), heights[rows[part], positions[part]])
        sure[rows[part], positions[part]] = -np.take_along_axis(law, drawn[part, None], 1)[:, 0]
    out = values.copy()
    out[rows, positions] = drawn
    return (
        np.where(smallest(sure, None, masked, count), out, values)
        if decoder.order == "confidence"
        else out
    )


def smallest(
    ranks: np.ndarray, chance: np.ndarray | None, among: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Mask of the positions with the `count` smallest ranks; equal ranks in random order, or
    from left to right.
    """
    second = np.zeros(ranks.shape) if chance is None else chance
    order = np.lexsort((second, np.where(among, ranks, np.inf), ~among), axis=-1)
    place = order.argsort(axis=-1)
    return among & (place < count[:, None])


# --- the law of a decoder -------------------------------------------------------------------------


def law_of(
    denoiser: Denoiser, values: np.ndarray, decoder: Decoder, noise: float | None = None
) -> dict[tuple[int, ...], float]:
    """Probability of every string that a decoder draws from one noisy string, by enumeration:
    {string: probability}.

    The law of the string after each step follows from that before it. For "first_hitting" it is
    that of denoisers that ignore the noise level; for `remask` "conf" it is not enumerated, because
    it depends on the probabilities of all earlier draws.

    `values`: symbols (length,), -1 where masked; ValueError if a step reaches more than 2**20
    partial strings. `noise`: noise level of `values`, by default the share of masked symbols;
    needed for a denoiser of replaced symbols.
    """
    is_replaced = isinstance(denoiser.corruption, UniformReplacement)
    is_known = (
        noise is not None and decoder.in_time and decoder == Decoder(decoder.order, decoder.steps)
    )
    expected = "order 'analytic' or 'euler' alone, and a noise level, for replaced symbols"
    expect(is_known or not is_replaced, f"{decoder.description}, noise", noise, expected)
    values = np.asarray(values)
    level = np.array([(values < 0).mean() if noise is None else noise])
    noisy = checked_observation(denoiser, Noisy(values[None], level, denoiser.vocab_size))
    if decoder.in_time:
        return in_time.law(denoiser, noisy, decoder, _MOST)
    states, chances, row = noisy.values, np.ones(1), np.array([0])
    groups, revealed = decoder.numbers(states < 0)
    for step in range(int(groups[0])):
        count = int(revealed(row, step + 1)[0] - revealed(row, step)[0])
        seen = decoder.shown(states)
        belief = checked_posterior(
            denoiser, Noisy(seen, (seen < 0).mean(axis=1), denoiser.vocab_size)
        )
        states, chances = _next(decoder, states, chances, belief, count)
    return dict(zip(map(tuple, states.tolist()), chances.tolist(), strict=True))


def _next(
    decoder: Decoder, states: np.ndarray, chances: np.ndarray, belief: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Partial strings (.., length) after a step that reveals `count` positions, and their
    probabilities.
    """
    masked = np.nonzero(states < 0)[1].reshape(len(states), -1)  # as many in all states
    n, v = masked.shape[1], belief.shape[-1]
    size = len(states) * math.comb(n, count) * v**count
    expect(
        size <= _MOST, "partial strings in a step", size, f"at most {_MOST}; take shorter strings"
    )
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
            are_first = _are_first(ranks, chosen, decoder.by_chance)[:, None]
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
    """Probability (states,) that the chosen positions have the smallest ranks; equal ones by
    chance, or from left to right.
    """
    count, inside = len(chosen), np.isin(np.arange(ranks.shape[1]), chosen)
    if not random:
        first = np.argsort(ranks, axis=1, kind="stable")[:, :count]
        return (np.sort(first, axis=1) == chosen).all(axis=1)
    last = np.sort(ranks, axis=1)[:, count - 1, None]
    sure, equal = ranks < last, ranks == last
    possible = (inside >= sure).all(axis=1) & (inside <= sure | equal).all(axis=1)
    from scipy.special import comb

    return possible / comb(equal.sum(axis=1), count - sure.sum(axis=1))


def _confident(
    belief: np.ndarray, weights: np.ndarray, chosen: list[int], symbols: np.ndarray
) -> np.ndarray:
    """Probability (states, draws) that the tokens drawn at all other positions have a smaller
    probability than the chosen ones.

    `symbols` (draws, count): what is drawn at the chosen positions. Equal ones are ordered from
    left to right.
    """
    others = np.setdiff1d(np.arange(belief.shape[1]), chosen)
    own = belief[:, chosen, symbols]
    least = own.min(axis=-1)
    place = np.where(own == least[..., None], chosen, -1).max(axis=-1)[..., None, None]
    least, theirs = least[..., None, None], belief[:, None, others]
    later = (theirs < least) | ((theirs == least) & (others[:, None] > place))
    return (weights[:, None, others] * later).sum(axis=-1).prod(axis=-1)
