"""The divergence of a decoder of masked strings from the posterior: exactly by enumeration, and
by draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from uturn.core.protocols import Denoiser
from uturn.corruption import Masking, Noisy
from uturn.corruption.unmasking import Decoder, unmask
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel

_AT_ONCE = 512  # strings whose beliefs are in memory together


def divergence(
    rhm: RandomHierarchyModel, values: np.ndarray, law: Mapping[tuple[int, ...], float]
) -> float:
    """KL(law ‖ posterior given masked values) in nats: sum over strings of q (log q - log p);
    infinite if q > 0 where p = 0.
    """
    masked = np.flatnonzero(values < 0)
    strings = np.tile(values, (rhm.vocab_size ** len(masked), 1))
    strings[:, masked] = np.indices((rhm.vocab_size,) * len(masked)).reshape(len(masked), -1).T
    log_p = rhm.log_likelihood(strings)
    log_p -= np.logaddexp.reduce(log_p)
    q = np.array([law.get(tuple(string), 0.0) for string in strings.tolist()])
    return float((q[q > 0] * (np.log(q[q > 0]) - log_p[q > 0])).sum())


class Recorder:
    """A denoiser that keeps its inputs and outputs."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.vocab_size = denoiser.vocab_size
        self.num_leaves = denoiser.num_leaves
        self.corruption = denoiser.corruption
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def posterior(self, noisy: Noisy) -> np.ndarray:
        belief = self.denoiser.posterior(noisy)
        self.calls.append((noisy.values.copy(), belief))
        return belief


def log_ratios(
    rhm: RandomHierarchyModel,
    denoiser: Denoiser,
    noisy: Noisy,
    streams: np.ndarray,
    decoder: Decoder,
) -> tuple[np.ndarray, np.ndarray]:
    """Strings drawn by a decoder, int64 (batch, num_leaves), and log ratios, float64 (batch,),
    whose mean is KL(decoder ‖ posterior) in nats, or an upper bound of it.

    Let p(x) be the posterior of a string, and o the order: which positions were revealed in which
    step. The decoder draws both with probability q(x, o), a product over steps. For any law r(o |
    x) of orders, by the chain rule of the divergence,

        E_q[log q(x, o) - log p(x) - log r(o | x)] = KL(q(x) ‖ p(x)) + E_q(x) KL(q(o | x) ‖ r(o |
        x)) >= KL(q(x) ‖ p(x)).

    benchmarks/README.md says which r is taken for which order, and when the mean is the divergence
    itself. A ratio is infinite for a string that the grammar cannot produce.
    """
    strings = np.empty_like(noisy.values)
    log_q = np.zeros(len(streams))
    for start in range(0, len(streams), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        recorder = Recorder(denoiser)
        masked = Noisy(noisy.values[rows], noisy.noise[rows], noisy.vocab_size)
        strings[rows] = unmask(recorder, masked, streams[rows], decoder)
        log_q[rows] = _log_draws(masked.values, recorder.calls, strings[rows], decoder)
    log_evidence = infer(rhm, Masking().log_evidence(noisy), outputs=("log_evidence",)).log_evidence
    return strings, log_q - (rhm.log_likelihood(strings) - log_evidence)


def _log_draws(
    start: np.ndarray,
    calls: list[tuple[np.ndarray, np.ndarray]],
    strings: np.ndarray,
    decoder: Decoder,
) -> np.ndarray:
    """log q(x, o) - log r(o | x), (batch,), of strings drawn with these calls (values, beliefs)
    of a denoiser.
    """
    total = np.zeros(len(strings))
    unmasked = Noisy(start, np.ones(len(start)))
    groups = decoder.sampler.calls(unmasked)
    for step, (values, belief) in enumerate(calls):
        active = np.flatnonzero(groups > step)
        after = strings[active].copy()
        if step + 1 < len(calls):
            after[groups[active] > step + 1] = calls[step + 1][0]
        masked = values < 0
        revealed = (values < 0) & (after >= 0)
        weights = decoder.law.weights(belief)
        weights /= weights.sum(-1, keepdims=True)
        if decoder.order == "confidence":
            total[active] += _confident(
                weights, belief, strings[active], masked, revealed.sum(axis=1)
            )
        else:
            own = np.take_along_axis(weights, strings[active][..., None], -1)[..., 0]
            total[active] += np.log(own, where=revealed, out=np.zeros(own.shape)).sum(axis=1)
    return total


def _confident(
    w: np.ndarray, belief: np.ndarray, x: np.ndarray, masked: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Logarithm of the sum of q(S, x_S) over all sets S of `count` masked positions: a step by the
    confidence of drawn tokens.

    A token is drawn for every masked position, x_i with weight w_i(x_i), and those with the largest
    p_i(x_i) are kept; equal ones from left to right. If l is the last of S in this order, and
    F_j(l) the probability that the draw at j comes after l,

        q(S, x_S) = prod_{i in S} w_i(x_i) prod_{j not in S} F_j(l).

    The sum over all S with the last member l is w_l(x_l) times the coefficient of z^(count - 1) in
    the product over the other masked positions i of F_i(l) + z w_i(x_i) if x_i comes before l, and
    of F_i(l) if not. w, belief: (batch, n, v); x, masked: (batch, n); count: (batch,).
    """
    # Masked positions come first, in their order; the others take no part.
    place = np.argsort(~masked, axis=1, kind="stable")[:, : masked.sum(axis=1).max(initial=1)]
    w, belief = (np.take_along_axis(values, place[..., None], axis=1) for values in (w, belief))
    x, masked = (np.take_along_axis(values, place, axis=1) for values in (x, masked))
    batch, n, v = w.shape
    order = np.argsort(
        -np.where(masked[..., None], belief, -1).reshape(batch, n * v), axis=1, kind="stable"
    )
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(n * v)[None], axis=1)
    place = place.reshape(batch, n, v)
    own = np.take_along_axis(place, x[..., None], -1)[..., 0]
    weight = np.take_along_axis(w, x[..., None], -1)[..., 0]
    # F: (batch, i, l).
    after = sum(w[:, :, a, None] * (place[:, :, a, None] > own[:, None, :]) for a in range(v))
    before = own[:, :, None] < own[:, None, :]
    factor = np.where(masked[:, :, None], after, 1)
    factor[:, range(n), range(n)] = 1  # l itself
    chosen = np.where(before & masked[:, :, None], weight[:, :, None], 0)
    # Of the products so far: (batch, l, power of z).
    sums = np.zeros((batch, n, int(count.max(initial=1))))
    sums[..., 0] = 1
    for i in range(n):
        shifted = sums[..., :-1] * chosen[:, i, :, None]
        sums *= factor[:, i, :, None]
        sums[..., 1:] += shifted
    last = np.take_along_axis(sums, (count - 1)[:, None, None].repeat(n, 1), -1)[..., 0]
    with np.errstate(divide="ignore"):
        log_law: np.ndarray = np.log((np.where(masked, weight, 0) * last).sum(axis=1))
    return log_law
