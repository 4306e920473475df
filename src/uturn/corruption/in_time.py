"""Samplers of discrete diffusion that follow time: in each step of the noise level, every site
changes by chance.

**Masks.** From noise level t to s, with alpha = 1 - noise, a masked token is revealed with
probability (alpha_s - alpha_t) / (1 - alpha_t), and drawn from p(x_i | kept tokens): the ancestral
sampler of arXiv:2406.07524, and the analytic (Tweedie) step of SEDD (arXiv:2310.16834, section
4.1). The Euler step of SEDD has the rate -alpha'_t / alpha_t times the ratio p_t(x with a at i) /
p_t(x) = p(x_i = a | kept tokens) alpha_t / (1 - alpha_t); for alpha = 1 - t and a step t - s the
probability is (t - s) / t, that of the analytic step. Remasking (ReMDM, arXiv:2503.00307) also
masks revealed tokens again, see `chances`.

**Replaced symbols.** `uturn.corruption.uniform` has the laws of the analytic and of the Euler step
of a site.

All sites change independently in a step. With order "random", remasking reveals the tokens of a
step one after the other instead, which keeps the posterior.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core import progress
from uturn.core.checks import expect
from uturn.core.protocols import Noisy
from uturn.core.random import choices, streams, uniforms
from uturn.corruption.denoising import Denoiser, checked_posterior
from uturn.corruption.uniform import UniformReplacement

if TYPE_CHECKING:
    from uturn.corruption.unmasking import Decoder


def levels(noise: Any, steps: int) -> np.ndarray:
    """Noise levels (steps + 1, ..) from `noise` to 0 in equal steps."""
    return np.multiply.outer(np.arange(steps, -1, -1) / steps, noise)


def chances(
    decoder: Decoder,
    now: Any,
    later: Any,
    first: Any,
    drawn: np.ndarray | None = None,
    sure: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Probabilities with which a step reveals a masked token, and with which it masks a revealed
    one again.

    With alpha = 1 - noise / first, section 3 of arXiv:2503.00307 has

        p(revealed | masked) = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),    p(masked | revealed) = sigma <= sigma_max,
        sigma_max = min(1, (1 - alpha_s) / alpha_t),

    which keeps the share of masked tokens at each noise level. Section 4.1: "cap" sigma = min(eta,
    sigma_max), "rescale" sigma = eta sigma_max, "conf" sigma_i = eta sigma_max softmax(-psi)_i over
    revealed tokens, psi_i the probability of the token when it was drawn, 1 for given tokens (there
    eta = 1); then tokens are revealed as without remasking.

    `now`, `later`: noise levels t and s of the step. `first`: that at which all sites that take
    part are masked: 1, or without given tokens the first of the levels. `drawn`, `sure`, for
    "conf": the revealed tokens that take part, bool (rows, sites), and psi.
    """
    before, after = 1 - now / first, 1 - later / first
    most = np.minimum(1, (1 - after) / np.maximum(before, 1e-300))
    sigma = {"cap": np.minimum(decoder.eta, most), "rescale": decoder.eta * most}.get(
        decoder.remask, 0 * most
    )
    reveal = (after - (1 - sigma) * before) / (1 - before)
    if decoder.remask == "conf" and drawn is not None and sure is not None:
        weights = np.where(drawn, np.exp(-sure), 0)
        return reveal, decoder.eta * most * weights / np.maximum(
            weights.sum(axis=1, keepdims=True), 1e-300
        )
    return reveal, sigma


def unmask(denoiser: Denoiser, noisy: Noisy, keys: np.ndarray, decoder: Decoder) -> np.ndarray:
    """Strings int64 (batch, length) drawn given masked ones, see
    `uturn.corruption.unmasking.unmask`.

    In a step without a token to reveal, the denoiser is not evaluated.
    """
    leaves, v = noisy.values.copy(), noisy.vocab_size
    batch, d = leaves.shape
    free = (leaves < 0) | decoder.remask_given
    first = np.ones(batch) if decoder.remask_given else noisy.noise
    sure = np.ones(leaves.shape)
    steps = list(pairwise(levels(noisy.noise, decoder.steps or 1)))
    for k, (now, later) in enumerate(progress.steps(steps)):
        u = uniforms(streams(keys, batch, k), 2 * d)
        heights, chance = u[:, :d], u[:, d:]
        masked = leaves < 0
        drawn = free & ~masked
        reveal, again = chances(decoder, now[:, None], later[:, None], first[:, None], drawn, sure)
        turn, lost = masked & (chance < reveal), drawn & (chance < again)
        if decoder.order == "random":
            leaves[lost] = -1
        while (rows := np.flatnonzero(turn.any(axis=1))).size:
            chosen, told = turn[rows], now[rows]
            if decoder.order == "random":
                chosen = np.arange(d) == np.where(chosen, chance[rows], 2).argmin(axis=1)[:, None]
                told = (leaves[rows] < 0).mean(axis=1)
            belief = checked_posterior(denoiser, Noisy(leaves[rows], told, v))
            law = belief[chosen]
            place = rows[np.nonzero(chosen)[0]], np.nonzero(chosen)[1]
            leaves[place] = choices(decoder.weights(law), heights[place])
            sure[place] = np.take_along_axis(law, leaves[place][:, None], 1)[:, 0]
            turn[place] = False
        if decoder.order != "random":
            leaves[lost] = -1
    return leaves


def evaluations(decoder: Decoder, noise: float, num_leaves: int) -> int:
    """Expected number of evaluations for a string, rounded up: of revealed tokens with order
    "random", of steps otherwise.
    """
    now = levels(noise, decoder.steps or 1)
    reveal, _ = chances(decoder, now[:-1], now[1:], 1 if decoder.remask_given else noise)
    share = now[:-1] * reveal  # of the tokens, revealed in each step
    if decoder.order != "random":
        return (
            decoder.steps or 1
            if decoder.remask == "conf"
            else int(np.ceil((1 - (1 - share) ** num_leaves).sum() - 1e-9))
        )
    returning = decoder.steps or 1 if decoder.remask == "conf" else 0  # at most one token a step
    return int(np.ceil(num_leaves * share.sum() + returning))


def law(
    denoiser: Denoiser, noisy: Noisy, decoder: Decoder, most: int
) -> dict[tuple[int, ...], float]:
    """The law of strings drawn from one noisy string, see `uturn.corruption.unmasking.law_of`.

    p'(z') = sum over z of p(z) prod_i k_i(z'_i | z), with the sites in two halves: a product of two
    matrices. A site that takes part has v symbols, and for masks the values v, masked, and v + 1,
    masked and to be revealed in this step.
    """
    values, v, noise = noisy.values[0], noisy.vocab_size, float(noisy.noise[0])
    replacement: Any = denoiser.corruption
    is_masking = not isinstance(replacement, UniformReplacement)
    expected = (
        "another one to enumerate its law, which does not depend on the probabilities of earlier"
        " draws"
    )
    expect(decoder.remask != "conf", "remask", decoder.remask, expected)
    free = np.flatnonzero((values < 0) | decoder.remask_given | (not is_masking))
    if not free.size or noise <= replacement.clean_noise:  # nothing changes, as in `denoise`
        return {tuple(values.tolist()): 1.0}
    singly, m = decoder.order == "random", len(free)
    A = v + is_masking + (is_masking and singly)
    expect(A**m <= most, "partial strings in a step", A**m, f"at most {most}; take shorter strings")
    states = np.indices((A,) * m).reshape(m, -1).T
    start = np.where(values[free] < 0, v, values[free])
    p: np.ndarray = (states == start).all(axis=1).astype(float)

    def belief(rows: np.ndarray, told: Any) -> np.ndarray:
        strings = np.tile(values, (len(rows), 1))
        strings[:, free] = np.where(states[rows] < v, states[rows], -1)
        told = (strings < 0).mean(axis=1) if told is None else np.full(len(rows), told)
        return checked_posterior(denoiser, Noisy(strings, told, v))[:, free].astype(float)

    for now, later in pairwise(levels(noise, decoder.steps or 1)):
        rows = np.flatnonzero(p)
        if not is_masking:
            weights = replacement.step_law(
                belief(rows, now), states[rows], 1 - now, 1 - later, decoder.order == "euler"
            )
            p = _moved(p[rows], weights / weights.sum(-1, keepdims=True), A)
            continue
        reveal, again = chances(decoder, now, later, 1 if decoder.remask_given else noise)
        kept = np.eye(A)[states[rows]]
        kept = np.where(states[rows][..., None] < v, (1 - again) * kept, (1 - reveal) * kept)
        kept[..., v] += again * (states[rows] < v)
        if singly:
            kept[..., v + 1] += reveal * (states[rows] == v)
            p = _moved(p[rows], kept, A)
            for _ in range(m):
                p = _one_revealed(decoder, p, states, belief)
        else:
            weights = decoder.weights(belief(rows, now))
            kept[..., :v] += (
                reveal * (states[rows] == v)[..., None] * weights / weights.sum(-1, keepdims=True)
            )
            p = _moved(p[rows], kept, A)
    rows = np.flatnonzero(p)
    strings = np.tile(values, (len(rows), 1))
    strings[:, free] = states[rows]
    return dict(zip(map(tuple, strings.tolist()), p[rows].tolist(), strict=True))


def _moved(p: np.ndarray, laws: np.ndarray, A: int) -> np.ndarray:
    """Probabilities (A**m,) after independent changes of m sites, from those of some states (n,)
    and laws (n, m, A).
    """
    halves = [p[:, None], np.ones((len(p), 1))]
    for site in range(laws.shape[1]):
        half = site >= laws.shape[1] // 2
        halves[half] = (halves[half][:, :, None] * laws[:, site, None]).reshape(len(p), -1)
    return (halves[0].T @ halves[1]).ravel()


def _one_revealed(decoder: Decoder, p: np.ndarray, states: np.ndarray, belief: Any) -> np.ndarray:
    """Probabilities after one of the sites to be revealed, uniformly chosen, is revealed in each
    state that has any.
    """
    A, m = states.max() + 1, states.shape[1]
    rows = np.flatnonzero(p * (states == A - 1).any(axis=1))
    if not rows.size:
        return p
    waiting = states[rows] == A - 1
    weights = decoder.weights(belief(rows, None))
    weights *= (
        (p[rows] / waiting.sum(axis=1))[:, None, None]
        * waiting[..., None]
        / weights.sum(-1, keepdims=True)
    )
    out = p.copy()
    out[rows] = 0
    for site in range(m):
        power = A ** (m - 1 - site)
        for a in range(A - 2):
            np.add.at(out, rows - (A - 1 - a) * power * waiting[:, site], weights[:, site, a])
    return out
