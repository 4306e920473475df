"""Likelihood of given texts under decoders of masked strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from uturn.core import progress
from uturn.core.checks import expect
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import ORDER
from uturn.corruption.orders import Order
from uturn.corruption.sampling import MASKED, SymbolBeliefs
from uturn.corruption.unmasking import Decoder, InOrder

DETERMINED = ("random", "blocks", "entropy", "probability")
"""Orders whose positions are a function of the tokens already revealed and, for "random" and
"blocks", of the key.
"""


def is_determined(decoder: Decoder) -> bool:
    """Whether `log_likelihoods` gives the likelihood of a decoder."""
    return decoder.order in DETERMINED and decoder.remask == "none" and not decoder.causal


def check_determined(decoder: Decoder) -> None:
    """ValueError for a decoder whose likelihood `log_likelihoods` does not give."""
    known = f"an order of {', '.join(map(repr, DETERMINED))}, without remask and causal"
    where = f"likelihood of a decoder with {decoder.description}: order, remask, causal"
    expect(is_determined(decoder), where, (decoder.order, decoder.remask, decoder.causal), known)


def log_likelihoods(
    beliefs: Callable[[np.ndarray, np.ndarray], SymbolBeliefs],
    texts: ArrayLike,
    values: ArrayLike,
    keys: np.ndarray,
    decoders: Sequence[Decoder],
) -> np.ndarray:
    """Log-probability that a decoder fills masked texts with given tokens, float64 (batch,), in
    nats.

    Let the positions S_k of step k be a function of the tokens revealed before it. Then the order
    follows from the text, and

        log q(x) = sum_k sum_{i in S_k} log p_i(x_i | x at the positions of the steps before k)

    is exact, also for several positions a step and for conditionals p_i that belong to no joint law
    (arXiv:2603.01367): the probabilities of all texts add up to 1. "random" and "blocks" are orders
    that the key has drawn beforehand; a mean over keys is at most the log-probability under a
    random order. For conditionals of one joint law, q is the law of the masked tokens in all
    orders, if one token is revealed a step.

    `beliefs(values, noise)`: those of a network about texts int64 (rows, length) whose share
    `noise` (rows,) of tokens is masked. `texts`, `values`, int64 (batch, length): the given tokens,
    and the same with masked tokens (-1); below -1 beyond the end of a text. `keys`, uint64
    (batch,): random streams, as those of `unmask`. `decoders` (batch,): that of each row; all rows
    share the calls of `beliefs`. `temperature`, `top_k` and `top_p` change the law.
    """
    for decoder in decoders:
        check_determined(decoder)
    texts = np.asarray(texts)
    values = np.array(values)
    chance = uniforms(streams(keys, len(values), ORDER), values.shape[1])
    masked = (values == MASKED).sum(1)
    lengths = (values >= MASKED).sum(1)
    steps = np.array(
        [
            m if of.steps is None else min(m, of.steps)
            for m, of in zip(masked, decoders, strict=True)
        ]
    )
    total = np.zeros(len(values))
    kinds = list(dict.fromkeys(decoders))
    which = np.array([kinds.index(of) for of in decoders])
    for step in progress.steps(range(int(steps.max(initial=0)))):
        active = np.flatnonzero(steps > step)
        before, after = (masked[active] * k // steps[active] for k in (step, step + 1))
        now = beliefs(values[active], (masked[active] - before) / lengths[active])
        for number, decoder in enumerate(kinds):
            mine = np.flatnonzero(which[active] == number)
            among = values[active[mine]] == MASKED
            count = (after - before)[mine]
            order = _order_of(decoder)
            ranks = order.ranks(values[active] == MASKED, now)[mine]
            chosen = order.first(ranks, among, count, chance[active[mine]])
            rows, positions = np.nonzero(chosen)
            weights = decoder.law.weights(now.at(mine[rows], positions))
            tokens = texts[active[mine[rows]], positions]
            with np.errstate(divide="ignore"):
                logs = np.log(weights[np.arange(len(rows)), tokens] / weights.sum(-1))
            np.add.at(total, active[mine[rows]], logs)
            values[active[mine[rows]], positions] = tokens
    return total


def _order_of(decoder: Decoder) -> Order:
    """The order of a decoder that has a likelihood."""
    sampler = decoder.sampler
    assert isinstance(sampler, InOrder)  # `check_determined`
    return sampler.order
