"""Decoders of masked strings: the order in which symbols are revealed, and the law of each symbol.

If the conditionals p(x_i | kept symbols) of a denoiser belong to one joint law, then revealing one
symbol at a time draws exactly from the posterior, for every order that is chosen before the symbol
is drawn. Orders that depend on the drawn symbol, temperatures other than 1, truncated laws and
several symbols a step draw from other laws. `uturn.corruption.in_time` has the samplers that follow
the time of the diffusion and may mask symbols again.

To add an order, write a class in `uturn.corruption.orders`, list it in `_ORDERS`, and add its name
to the option `order` of `uturn.networks.texts.options.DecoderOptions`. An order with a setting, as
`Blocks` has one, is built with it in `Decoder._order`, and the setting is a field of `Decoder`, of
`DecoderOptions`, and of the panel "Decoding" of `uturn.presets.texts`.

`SymbolLaw` is in `uturn.corruption.sampling`. To add a law, inherit from it, define `weights`, give
the options of the law to `Decoder` and `DecoderOptions`, and build it in `Decoder.law`. A law that
differs from the belief sets `is_belief` to False.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.protocols import Corruption, Denoiser, Noisy
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import (
    ORDER,
    checked_observation,
    checked_posterior,
    drawn,
)
from uturn.corruption.in_time import InTime, Remasking, law_in_time
from uturn.corruption.orders import (
    Blocks,
    Confidence,
    FirstHitting,
    LargestProbability,
    LowestEntropy,
    Order,
    RandomOrder,
    share_of_masked,
)
from uturn.corruption.sampling import (
    MASKED,
    ArrayBeliefs,
    Sampler,
    State,
    SymbolBeliefs,
    SymbolLaw,
)
from uturn.corruption.uniform import Replacing, UniformReplacement

_ORDERS: dict[str, type[Order]] = {
    order.name: order
    for order in (
        RandomOrder,
        Blocks,
        LowestEntropy,
        LargestProbability,
        Confidence,
        FirstHitting,
    )
}
"""The orders in which masked symbols are revealed, by their names in specs."""
ORDERS = (*_ORDERS, "analytic", "euler")
"""Values of the option `order`; the last two follow time."""
_MOST = 2**20  # partial strings that a step may reach


@dataclass(frozen=True)
class Portions:
    """How many masked symbols each evaluation reveals.

    A step does not reveal symbols of two causal blocks; without causal blocks there is one block.
    """

    tokens: np.ndarray
    """Masked symbols of each block, int64 (rows, blocks)."""
    evaluations: np.ndarray
    """Evaluations of the denoiser for each block, int64 (rows, blocks)."""

    def before(self, step: np.ndarray) -> np.ndarray:
        """Symbols revealed before an evaluation, int64 (rows,); `step` (rows,): its number."""
        first = np.cumsum(self.evaluations, axis=1) - self.evaluations
        num_made = np.clip(step[:, None] - first, 0, self.evaluations)
        shares = self.tokens * num_made // np.maximum(self.evaluations, 1)
        revealed: np.ndarray = shares.sum(axis=1)
        return revealed


@dataclass(frozen=True)
class OrderState(State):
    """Strings whose masked symbols are revealed in an order."""

    chance: np.ndarray
    """Uniform numbers (rows, positions), the same in all steps, that order positions of equal
    rank."""
    tokens: np.ndarray
    """int64 (rows, blocks), `Portions.tokens`."""
    evaluations: np.ndarray
    """int64 (rows, blocks), `Portions.evaluations`."""

    @property
    def portions(self) -> Portions:
        return Portions(self.tokens, self.evaluations)


@dataclass(frozen=True)
class InOrder(Sampler[OrderState]):
    """Masked symbols are revealed in an order, equal numbers in each of `steps` evaluations,
    independently of each other.

    By default one symbol is revealed an evaluation. With causal blocks, `steps` are for each block.
    """

    order: Order = field(default_factory=RandomOrder)
    law: SymbolLaw = field(default_factory=SymbolLaw)
    steps: int | None = None

    def __post_init__(self) -> None:
        expect(isinstance(self.order, Order), "order", self.order, "an object of an Order")
        expect(isinstance(self.law, SymbolLaw), "law", self.law, "a SymbolLaw")
        if self.steps is not None:
            checked_integer("steps", self.steps, 1)

    @property
    def keeps_posterior(self) -> bool:
        """Whether draws from beliefs, one an evaluation, are draws from the posterior."""
        return self.order.precedes_draws and not self.order.is_causal

    def portions(self, values: np.ndarray) -> Portions:
        """The portions of strings (rows, positions)."""
        length = values.shape[1]
        starts = np.arange(0, length, self.order.block_length(length))
        tokens = np.add.reduceat(values == MASKED, starts, axis=1, dtype=np.int64)
        if self.steps is None:
            return Portions(tokens, tokens)
        return Portions(tokens, np.minimum(tokens, self.steps))

    def start(self, noisy: Noisy, keys: np.ndarray) -> OrderState:
        rows, length = noisy.values.shape
        portions = self.portions(noisy.values)
        return OrderState(
            values=noisy.values,
            noise=noisy.noise,
            keys=keys,
            step=np.zeros(rows, np.int64),
            chance=uniforms(streams(keys, rows, ORDER), length),
            tokens=portions.tokens,
            evaluations=portions.evaluations,
        )

    def calls(self, noisy: Noisy) -> np.ndarray:
        """Number of evaluations for each string, int64 (rows,); `noisy.noise` has no effect."""
        calls: np.ndarray = self.portions(noisy.values).evaluations.sum(axis=1)
        return calls

    def is_waiting(self, state: OrderState) -> np.ndarray:
        is_waiting: np.ndarray = state.step < state.evaluations.sum(axis=1)
        return is_waiting

    def question(self, state: OrderState) -> Noisy:
        visible = self.order.visible(state.values)
        return Noisy(visible, self.order.noise(state.noise, state.step, visible, state.chance))

    def answered(self, state: OrderState, beliefs: SymbolBeliefs) -> OrderState:
        masked = state.values == MASKED
        portions = state.portions
        count = portions.before(state.step + 1) - portions.before(state.step)
        keys = streams(state.keys, len(masked), state.step)
        heights = uniforms(keys, masked.shape[1])
        candidates = self.order.candidates(masked, beliefs, count, state.chance)
        draws = self.law.draws(beliefs, candidates, heights)
        probabilities = draws.written(np.zeros(masked.shape), draws.probabilities)
        revealed = self.order.revealed(candidates, probabilities, count) & masked
        num_revealed = revealed.sum(axis=1)
        is_wrong = num_revealed != count
        where = f"{type(self.order).__name__}: positions that it reveals"
        expected = f"{count[is_wrong].tolist()}, masked ones; see `candidates` and `revealed`"
        expect(not is_wrong.any(), where, num_revealed[is_wrong].tolist(), expected)
        symbols = draws.written(state.values, draws.symbols)
        values = np.where(revealed, symbols, state.values)
        return replace(state, values=values, step=state.step + 1)


@dataclass(frozen=True)
class Decoder:
    """A sampler of masked strings, by the options of a spec; ValueError for options that do not go
    together.

    `order`. "random": uniformly random. "blocks": blocks of `block` neighbours from left to right,
    random in each. "entropy", "probability": the token with the lowest entropy, or the largest
    probability, of p(x_i | kept tokens). "confidence": tokens are drawn for all masked positions,
    and the drawn token whose own probability is largest is kept (MaskGIT, LLaDA). "first_hitting":
    random, and the denoiser is told the noise level at which the next token is revealed in
    continuous time (arXiv:2409.02908, section 4). "analytic", "euler": `steps` equal steps of the
    noise level (`uturn.corruption.in_time`).

    `steps`: evaluations of the denoiser, in which equal numbers of tokens are revealed,
    independently of each other; by default one token an evaluation. With `causal`, for each block.
    "analytic", "euler" and `remask` need it: the number of steps in time. Tokens are drawn with
    weights p^(1 / `temperature`), of the `top_k` most probable symbols, or the fewest whose
    probabilities add up to `top_p`. `remask`, `eta`, `remask_given`: schedule by which each step
    masks revealed tokens again, and its strength in [0, 1]: "cap", "rescale", "conf" (ReMDM,
    arXiv:2503.00307, section 4.1; `uturn.corruption.in_time.Remasking`); whether tokens that the
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
        if self.steps is not None:
            checked_integer("steps", self.steps, 1)
        _ = self.law  # raises for a law that does not exist
        blocks = Blocks(self.block, self.causal)
        if self.remasking.is_on and self.order not in ("random", "analytic"):
            raise ValueError(
                f"remask = {self.remask!r} is only used with order = 'random' or 'analytic',"
                f" not {self.order!r}"
            )
        if self.causal and self.order != blocks.name:
            raise ValueError(f"causal is only used with order = 'blocks', not {self.order!r}")
        has_steps = not self.in_time or self.steps is not None
        expected = "the number of steps in time"
        expect(has_steps, f"steps of {self.description}", self.steps, expected)

    @cached_property
    def law(self) -> SymbolLaw:
        """The law from which each token is drawn."""
        return SymbolLaw(self.temperature, self.top_k, self.top_p)

    @cached_property
    def remasking(self) -> Remasking:
        """How revealed tokens are masked again."""
        return Remasking(self.remask, self.eta, self.remask_given)

    @property
    def in_time(self) -> bool:
        """Whether tokens change by chance in each step of the noise level
        (`uturn.corruption.in_time`).
        """
        return self.order in ("analytic", "euler") or self.remasking.is_on

    @cached_property
    def sampler(self) -> InOrder | InTime:
        """The sampler that these options name."""
        if not self.in_time:
            return InOrder(self._order(), self.law, self.steps)
        is_single = self.order == "random"
        return InTime(self.steps or 1, self.law, self.remasking, is_single)

    def sampler_for(self, corruption: Corruption) -> InOrder | InTime | Replacing:
        """The sampler that undoes a corruption; ValueError if the decoder is not for it.

        A corruption that masks is undone by every decoder, uniform replacement by the orders
        "analytic" and "euler" alone.
        """
        if getattr(corruption, "masks", False):
            return self.sampler
        steps = self.steps or 1
        is_euler = self.order == "euler"
        is_alone = self == Decoder("euler" if is_euler else "analytic", steps)
        if isinstance(corruption, UniformReplacement) and is_alone:
            return Replacing(corruption, steps, is_euler)
        raise ValueError(
            f"corruption = {corruption!r}: expected Masking(), or a corruption with masks = True,"
            f" for {self.description}; leave its options out"
        )

    def _order(self) -> Order:
        """The order in which tokens are revealed, of a decoder that does not follow time."""
        if self.order == Blocks.name:
            return Blocks(self.block, self.causal)
        return _ORDERS[self.order]()

    def on_texts_of(self, length: int) -> Decoder:
        """The simplest decoder that gives the same texts of at most `length` tokens: a token a
        step, blocks as long as a text.
        """
        simple = self
        # Blocks of one are left to right.
        if self.order == "blocks" and self.block >= max(length, 2):
            simple = replace(self, order="random", block=Decoder.block, causal=False)
        longest = simple.block if simple.causal else length
        if simple.steps is None or simple.in_time or simple.steps < longest:
            return simple
        return replace(simple, steps=None)

    @property
    def is_exact(self) -> bool:
        """Whether the decoder draws from the posterior, given a denoiser whose conditionals
        belong to one joint law.
        """
        return self.is_exact_singly and (self.steps is None or self.in_time)

    @property
    def is_exact_singly(self) -> bool:
        """`is_exact` if `steps` is at least the number of masked tokens."""
        return self.law.is_belief and self.sampler.keeps_posterior

    @property
    def warning(self) -> str:
        """Warning if the decoder does not sample the posterior even with one token a step;
        otherwise empty.
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
        order = f"order {self.order}"
        if self.order == "blocks":
            order += f" of {self.block}"
        phrases = [order]
        if self.steps:
            phrases.append(f"{self.steps} steps")
        phrases += [*self.law.description, *self.remasking.description]
        if self.causal:
            phrases.append("sees its block and what lies left of it")
        return ", ".join(phrases)


def unmask(denoiser: Denoiser, noisy: Noisy, keys: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Strings int64 (batch, length) drawn given masked ones (value -1), with the conditionals of a
    denoiser of masked strings.

    The denoiser is evaluated on strings whose noise is the share of masked tokens. `keys`, uint64
    (batch,): one random stream for each string, whose draws depend on no other stream.
    """
    return drawn(decoder.sampler, denoiser, noisy, keys)


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
    is_alone = decoder.in_time and decoder == Decoder(decoder.order, decoder.steps)
    expected = "order 'analytic' or 'euler' alone, and a noise level, for replaced symbols"
    is_known = is_alone and noise is not None
    expect(is_known or not is_replaced, f"{decoder.description}, noise", noise, expected)
    values = np.asarray(values)
    level = (values < 0).mean() if noise is None else noise
    observed = Noisy(values[None], np.array([level]), denoiser.vocab_size)
    noisy = checked_observation(denoiser, observed)
    sampler = decoder.sampler_for(denoiser.corruption)
    if not isinstance(sampler, InOrder):
        return law_in_time(denoiser, noisy, sampler, _MOST)
    partial = PartialStrings(noisy.values, np.ones(1))
    portions = sampler.portions(noisy.values)
    for step in range(int(portions.evaluations.sum())):
        before = portions.before(np.array([step]))
        after = portions.before(np.array([step + 1]))
        visible = sampler.order.visible(partial.values)
        question = Noisy(visible, share_of_masked(visible), denoiser.vocab_size)
        belief = checked_posterior(denoiser, question)
        partial = _next(sampler, partial, belief, int((after - before)[0]))
    strings = map(tuple, partial.values.tolist())
    return dict(zip(strings, partial.probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class PartialStrings:
    """Partly revealed strings that a decoder reaches."""

    values: np.ndarray
    """int64 (strings, length), with as many masked positions in each string."""
    probabilities: np.ndarray
    """float64 (strings,)."""


def _next(
    sampler: InOrder, partial: PartialStrings, belief: np.ndarray, count: int
) -> PartialStrings:
    """Partial strings after a step that reveals `count` positions, given beliefs (strings, length,
    v).
    """
    states = partial.values
    masked = np.nonzero(states < 0)[1].reshape(len(states), -1)
    n = masked.shape[1]
    v = belief.shape[-1]
    size = len(states) * math.comb(n, count) * v**count
    expected = f"at most {_MOST}; take shorter strings"
    expect(size <= _MOST, "partial strings in a step", size, expected)
    ranks = sampler.order.checked_ranks(states < 0, ArrayBeliefs(belief))
    ranks = np.take_along_axis(ranks, masked, axis=1)
    belief = np.take_along_axis(belief, masked[..., None], axis=1)
    law = sampler.law.weights(belief)
    law /= law.sum(-1, keepdims=True)
    symbols = np.indices((v,) * count).reshape(count, -1).T
    reached: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    for places in map(list, combinations(range(n), count)):
        are_first = sampler.order.chance_of(places, ranks, belief, law, symbols)
        draws = law[:, places, symbols].prod(axis=-1)
        share = partial.probabilities[:, None] * are_first * draws
        rows, which = np.nonzero(share)
        after = states[rows]
        np.put_along_axis(after, masked[rows][:, places], symbols[which], axis=1)
        reached.append(after)
        shares.append(share[rows, which])
    return _merged(np.concatenate(reached), np.concatenate(shares))


def _merged(states: np.ndarray, shares: np.ndarray) -> PartialStrings:
    """Strings (n, length), each once, with the sums of their shares (n,)."""
    order = np.lexsort(states.T)
    states = states[order]
    is_new = np.r_[True, (states[1:] != states[:-1]).any(axis=1)]
    first = np.flatnonzero(is_new)
    return PartialStrings(states[first], np.add.reduceat(shares[order], first))
