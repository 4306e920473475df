"""Samplers of discrete diffusion that follow time: in each step of the noise level, every site
changes by chance.

**Masks.** From noise level t to s, with alpha = 1 - noise, a masked token is revealed with
probability (alpha_s - alpha_t) / (1 - alpha_t), and drawn from p(x_i | kept tokens): the ancestral
sampler of arXiv:2406.07524, and the analytic (Tweedie) step of SEDD (arXiv:2310.16834, section
4.1). The Euler step of SEDD has the rate -alpha'_t / alpha_t times the ratio p_t(x with a at i) /
p_t(x) = p(x_i = a | kept tokens) alpha_t / (1 - alpha_t); for alpha = 1 - t and a step t - s the
probability is (t - s) / t, that of the analytic step. Remasking (ReMDM, arXiv:2503.00307) also
masks revealed tokens again, see `Remasking`.

**Replaced symbols.** `uturn.corruption.uniform` has the laws of the analytic and of the Euler step
of a site.

All sites change independently in a step. With order "random", remasking reveals the tokens of a
step one after the other instead, which keeps the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import expect
from uturn.core.protocols import Denoiser, Noisy
from uturn.core.random import streams, uniforms
from uturn.corruption.denoising import checked_posterior
from uturn.corruption.orders import share_of_masked
from uturn.corruption.sampling import (
    MASKED,
    Sampler,
    State,
    SymbolBeliefs,
    SymbolLaw,
    lengths,
)
from uturn.corruption.uniform import Replacing

SCHEDULES = ("none", "cap", "rescale", "conf")
_TINY = 1e-300  # instead of 0 in a denominator


def levels(noise: ArrayLike, steps: int) -> np.ndarray:
    """Noise levels (steps + 1, ..) from `noise` to 0 in equal steps."""
    outer: np.ndarray = np.multiply.outer(np.arange(steps, -1, -1) / steps, noise)
    return outer


class Chances(NamedTuple):
    """Probabilities of a change of a token in a step; scalars or arrays."""

    reveal: np.ndarray
    """That a masked token is revealed."""
    mask: np.ndarray
    """That a revealed token is masked again."""


@dataclass(frozen=True)
class Remasking:
    """The schedule by which revealed tokens are masked again, ReMDM (arXiv:2503.00307).

    With alpha = 1 - noise / first, section 3 there has

        p(revealed | masked) = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),    p(masked | revealed) = sigma <= sigma_max,
        sigma_max = min(1, (1 - alpha_s) / alpha_t),

    which keeps the share of masked tokens at each noise level. Section 4.1: "cap" sigma = min(eta,
    sigma_max), "rescale" sigma = eta sigma_max, "conf" sigma_i = eta sigma_max softmax(-psi)_i over
    revealed tokens, psi_i the probability of the token when it was drawn, 1 for given tokens (there
    eta = 1); then tokens are revealed as without remasking.
    """

    schedule: str = "none"
    """"none", "cap", "rescale" or "conf"."""
    eta: float = 0.1
    """Strength, 0 to 1."""
    masks_given: bool = False
    """Whether tokens that the noise has left are masked, too."""

    def __post_init__(self) -> None:
        is_schedule = self.schedule in SCHEDULES and 0 <= self.eta <= 1
        options = (self.schedule, self.eta)
        expect(is_schedule, "remask, eta", options, f"one of {SCHEDULES}, and 0 to 1")
        if self.masks_given and not self.is_on:
            raise ValueError("remask_given is only used with remask = 'cap', 'rescale' or 'conf'")

    @property
    def is_on(self) -> bool:
        return self.schedule != "none"

    @property
    def is_by_confidence(self) -> bool:
        """Whether the chance of a token depends on its probability when it was drawn."""
        return self.schedule == "conf"

    @property
    def description(self) -> list[str]:
        """What is masked again, in words; empty if nothing is."""
        if not self.is_on:
            return []
        tokens = "given and drawn tokens" if self.masks_given else "drawn tokens"
        return [f"{tokens} masked again ({self.schedule}, eta {self.eta:g})"]

    def first(self, noise: np.ndarray) -> np.ndarray:
        """Noise level at which all sites that take part are masked: that of the data, `noise`,
        or 1 if given tokens take part.
        """
        return np.ones_like(noise) if self.masks_given else noise

    def chances(self, now: np.ndarray, later: np.ndarray, first: np.ndarray) -> Chances:
        """Chances of a step between two noise levels, t = `now` and s = `later`. With "conf", that
        of masking is eta sigma_max, to be shared among the revealed tokens (`shared`).
        """
        before = 1 - now / first
        after = 1 - later / first
        sigma_max = np.minimum(1, (1 - after) / np.maximum(before, _TINY))
        sigma = self._sigma(sigma_max)
        reveal = (after - (1 - sigma) * before) / (1 - before)
        return Chances(reveal, self.eta * sigma_max if self.is_by_confidence else sigma)

    def _sigma(self, sigma_max: np.ndarray) -> np.ndarray:
        """Chance of masking by which the chance of revealing is raised."""
        if self.schedule == "cap":
            sigma: np.ndarray = np.minimum(self.eta, sigma_max)
            return sigma
        if self.schedule == "rescale":
            return self.eta * sigma_max
        return 0 * sigma_max

    def shared(self, mask: np.ndarray, drawn: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """Chance (rows, sites) with which each token is masked again.

        `mask` (rows, 1): `Chances.mask`. `drawn`: the revealed tokens that take part, bool (rows,
        sites). `sure` (rows, sites): psi.
        """
        if not self.is_by_confidence:
            return mask
        weights = np.where(drawn, np.exp(-sure), 0)
        total = np.maximum(weights.sum(axis=1, keepdims=True), _TINY)
        chance: np.ndarray = mask * weights / total
        return chance


@dataclass(frozen=True)
class TimeState(State):
    """Strings whose tokens change by chance in each step of the noise level."""

    free: np.ndarray
    """bool (rows, positions), the tokens that may change."""
    turn: np.ndarray
    """bool (rows, positions), the masked tokens that this step has yet to reveal."""
    lost: np.ndarray
    """bool (rows, positions), the revealed tokens that are masked at the end of this step."""
    sure: np.ndarray
    """Probability of each token when it was drawn, float64 (rows, positions); 1 for given ones."""


@dataclass(frozen=True)
class InTime(Sampler[TimeState]):
    """Masked tokens are revealed, and revealed ones masked again, by chance in equal steps of the
    noise level. In a step without a token to reveal, the denoiser is not evaluated.
    """

    steps: int
    law: SymbolLaw = field(default_factory=SymbolLaw)
    remasking: Remasking = field(default_factory=Remasking)
    is_single: bool = False
    """Whether the tokens of a step are revealed one after the other, in random order, after others
    were masked again. Otherwise all are drawn at once, before others are masked again."""

    @property
    def keeps_posterior(self) -> bool:
        """Whether draws from beliefs, one an evaluation, are draws from the posterior."""
        is_blind = not (self.remasking.is_by_confidence or self.remasking.masks_given)
        return self.is_single and is_blind

    def start(self, noisy: Noisy, keys: np.ndarray) -> TimeState:
        values = noisy.values
        none = np.zeros(values.shape, bool)
        can_change = values >= MASKED if self.remasking.masks_given else values == MASKED
        state = TimeState(
            values=values,
            noise=noisy.noise,
            keys=keys,
            step=np.where(noisy.noise > 0, 0, self.steps),
            free=can_change,
            turn=none,
            lost=none,
            sure=np.ones(values.shape),
        )
        return self._at_next_question(state)

    def calls(self, noisy: Noisy) -> np.ndarray:
        """Expected number of evaluations for each string, int64 (rows,), given its length and noise
        level alone.
        """
        strings = np.stack([noisy.noise, lengths(noisy.values)], axis=1)
        different, which = np.unique(strings, axis=0, return_inverse=True)
        calls = [self.evaluations(noise, int(length)) for noise, length in different.tolist()]
        return np.array(calls, np.int64)[which.reshape(-1)]

    def evaluations(self, noise: float, length: int) -> int:
        """Expected number of evaluations for a string, rounded up: of revealed tokens if they come
        one after the other, of steps otherwise.
        """
        if noise <= 0:
            return 0
        level = levels(noise, self.steps)
        first = self.remasking.first(np.array(noise))
        chances = self.remasking.chances(level[:-1], level[1:], first)
        share = level[:-1] * chances.reveal  # of the tokens, revealed in each step
        is_by_confidence = self.remasking.is_by_confidence
        if self.is_single:
            returning = self.steps if is_by_confidence else 0  # at most one token a step
            return int(np.ceil(length * share.sum() + returning))
        if is_by_confidence:
            return self.steps
        return int(np.ceil((1 - (1 - share) ** length).sum() - 1e-9))

    def is_waiting(self, state: TimeState) -> np.ndarray:
        return np.asarray(state.turn.any(axis=1))

    def question(self, state: TimeState) -> Noisy:
        if self.is_single:
            return Noisy(state.values, share_of_masked(state.values))
        return Noisy(state.values, self._level(state.noise, state.step - 1))

    def answered(self, state: TimeState, beliefs: SymbolBeliefs) -> TimeState:
        step = state.step - 1
        places = state.turn
        if self.is_single:
            places = np.zeros(state.turn.shape, bool)
            chance = _chance(state, step)
            first = np.where(state.turn, chance, 2).argmin(axis=1)
            np.put_along_axis(places, first[:, None], True, axis=1)
        # As a `Denoiser` gives them; the beliefs of a language model are more precise.
        draws = self.law.draws(beliefs, places, _heights(state, step), np.float32)
        state = replace(
            state,
            values=draws.written(state.values, draws.symbols),
            sure=draws.written(state.sure, draws.probabilities),
            turn=state.turn & ~places,
        )
        return self._at_next_question(state)

    def _level(self, noise: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Noise level (rows,) at the beginning of a step."""
        level: np.ndarray = (self.steps - step) / self.steps * noise
        return level

    def _at_next_question(self, state: TimeState) -> TimeState:
        """The state in which each string has a token to reveal, or has made all steps."""
        while True:
            is_idle = ~state.turn.any(axis=1) & (state.step < self.steps)
            if not is_idle.any():
                return state
            state = state.with_rows(is_idle, self._next_step(state.rows(is_idle)))

    def _next_step(self, state: TimeState) -> TimeState:
        """The state after the beginning of the next step, in which tokens change by chance."""
        values = np.where(state.lost, MASKED, state.values)
        chance = _chance(state, state.step)
        masked = values == MASKED
        drawn = state.free & (values >= 0)
        noise = state.noise[:, None]
        step = state.step[:, None]
        now = self._level(noise, step)
        later = self._level(noise, step + 1)
        chances = self.remasking.chances(now, later, self.remasking.first(noise))
        turn = masked & (chance < chances.reveal)
        lost = drawn & (chance < self.remasking.shared(chances.mask, drawn, state.sure))
        if self.is_single:
            values = np.where(lost, MASKED, values)
            lost = np.zeros(values.shape, bool)
        return replace(state, values=values, step=state.step + 1, turn=turn, lost=lost)


def _heights(state: State, step: np.ndarray) -> np.ndarray:
    """Uniform numbers (rows, positions) that draw the symbols of a step (rows,)."""
    rows, width = state.values.shape
    return uniforms(streams(state.keys, rows, step), width)


def _chance(state: State, step: np.ndarray) -> np.ndarray:
    """Uniform numbers (rows, positions) that decide which tokens change in a step (rows,), and in
    which order. In a stream they follow the heights of a string of some length.
    """
    rows, width = state.values.shape
    numbers = uniforms(streams(state.keys, rows, step), 2 * width)
    places = np.minimum(state.lengths[:, None] + np.arange(width), 2 * width - 1)
    return np.take_along_axis(numbers, places, axis=1)


def law_in_time(
    denoiser: Denoiser, noisy: Noisy, sampler: InTime | Replacing, max_states: int
) -> dict[tuple[int, ...], float]:
    """The law of strings drawn from one noisy string, see `uturn.corruption.unmasking.law_of`.

    `max_states`: largest number of partial strings.
    """
    values = noisy.values[0]
    noise = float(noisy.noise[0])
    can_change = np.ones(values.shape, bool)
    num_masks = 0
    if isinstance(sampler, InTime):
        _check_enumerable(sampler.remasking)
        can_change = (values < 0) | sampler.remasking.masks_given
        num_masks = 1 + sampler.is_single
    free = np.flatnonzero(can_change)
    is_clean = noise <= denoiser.corruption.clean_noise
    if is_clean or not free.size:  # nothing changes, as in `denoise`
        return {tuple(values.tolist()): 1.0}
    sites = _Sites(denoiser, values, free, num_masks, max_states)
    p = sites.start
    for now, later in pairwise(levels(noise, sampler.steps).tolist()):
        if isinstance(sampler, Replacing):
            p = sites.replaced(p, sampler, now, later)
        else:
            first = sampler.remasking.first(np.array(noise))
            p = sites.unmasked(p, sampler, sampler.remasking.chances(now, later, first), now)
    return sites.strings(p)


def _check_enumerable(remasking: Remasking) -> None:
    expected = (
        "another one to enumerate its law, which does not depend on the probabilities of earlier"
        " draws"
    )
    expect(not remasking.is_by_confidence, "remask", remasking.schedule, expected)


class _Sites:
    """The joint law of the m sites of a string that may change, by enumeration.

    p'(z') = sum over z of p(z) prod_i k_i(z'_i | z), with the sites in two halves: a product of two
    matrices. A site that takes part has v symbols, and for masks the values v, masked, and, if
    tokens are revealed one after the other, v + 1, masked and to be revealed in this step.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        values: np.ndarray,
        free: np.ndarray,
        num_masks: int,
        max_states: int,
    ) -> None:
        self.denoiser = denoiser
        self.values = values
        self.free = free
        self.v = denoiser.vocab_size
        self.num_values = self.v + num_masks
        """Number of values of a site."""
        m = len(free)
        size = self.num_values**m
        expected = f"at most {max_states}; take shorter strings"
        expect(size <= max_states, "partial strings in a step", size, expected)
        self.states = np.indices((self.num_values,) * m).reshape(m, -1).T
        """All values of the sites, int64 (num_values**m, m)."""

    @property
    def start(self) -> np.ndarray:
        """The law of the string itself, float64 (num_values**m,)."""
        values = self.values[self.free]
        p: np.ndarray = (self.states == np.where(values < 0, self.v, values)).all(axis=1)
        return p.astype(float)

    def strings(self, p: np.ndarray) -> dict[tuple[int, ...], float]:
        """The law in the form {string: probability}, without impossible strings."""
        rows = np.flatnonzero(p)
        strings = np.tile(self.values, (len(rows), 1))
        strings[:, self.free] = self.states[rows]
        return dict(zip(map(tuple, strings.tolist()), p[rows].tolist(), strict=True))

    def belief(self, rows: np.ndarray, level: float | None) -> np.ndarray:
        """Beliefs about the sites in some states, float64 (rows, m, v).

        `level`: noise level that the denoiser is told; None: the share of masked tokens.
        """
        states = self.states[rows]
        strings = np.tile(self.values, (len(rows), 1))
        strings[:, self.free] = np.where(states < self.v, states, MASKED)
        noise = share_of_masked(strings) if level is None else np.full(len(rows), level)
        belief = checked_posterior(self.denoiser, Noisy(strings, noise, self.v))
        return belief[:, self.free].astype(float)

    def replaced(self, p: np.ndarray, sampler: Replacing, now: float, later: float) -> np.ndarray:
        """Probabilities after a step of uniform replacement."""
        rows = np.flatnonzero(p)
        belief = self.belief(rows, now)
        step_law = sampler.channel.step_law
        weights = step_law(belief, self.states[rows], 1 - now, 1 - later, sampler.is_euler)
        return _moved(p[rows], weights / weights.sum(-1, keepdims=True), self.num_values)

    def unmasked(self, p: np.ndarray, sampler: InTime, chances: Chances, now: float) -> np.ndarray:
        """Probabilities after a step that reveals tokens, and masks others again."""
        rows = np.flatnonzero(p)
        states = self.states[rows]
        v = self.v
        stays = np.eye(self.num_values)[states]
        is_revealed = states[..., None] < v
        laws = np.where(is_revealed, (1 - chances.mask) * stays, (1 - chances.reveal) * stays)
        laws[..., v] += chances.mask * (states < v)
        masked = states == v
        if sampler.is_single:
            laws[..., v + 1] += chances.reveal * masked
            p = _moved(p[rows], laws, self.num_values)
            for _ in self.free:
                p = self._one_revealed(p, sampler)
            return p
        weights = sampler.law.weights(self.belief(rows, now))
        turn = chances.reveal * masked[..., None]
        laws[..., :v] += turn * weights / weights.sum(-1, keepdims=True)
        return _moved(p[rows], laws, self.num_values)

    def _one_revealed(self, p: np.ndarray, sampler: InTime) -> np.ndarray:
        """Probabilities after one of the sites to be revealed, uniformly chosen, is revealed in
        each state that has any.
        """
        to_reveal = self.v + 1
        rows = np.flatnonzero(p * (self.states == to_reveal).any(axis=1))
        if not rows.size:
            return p
        turn = self.states[rows] == to_reveal
        weights = sampler.law.weights(self.belief(rows, None))
        share = (p[rows] / turn.sum(axis=1))[:, None, None]
        weights *= share * turn[..., None] / weights.sum(-1, keepdims=True)
        after = p.copy()
        after[rows] = 0
        m = len(self.free)
        for site in range(m):
            power = self.num_values ** (m - 1 - site)
            for symbol in range(self.v):
                changed = rows - (to_reveal - symbol) * power * turn[:, site]
                np.add.at(after, changed, weights[:, site, symbol])
        return after


def _moved(p: np.ndarray, laws: np.ndarray, num_values: int) -> np.ndarray:
    """Probabilities (num_values**m,) after independent changes of m sites, from those of some
    states (n,) and laws (n, m, num_values).
    """
    sites = laws.shape[1]
    halves = [p[:, None], np.ones((len(p), 1))]
    for site in range(sites):
        half = site >= sites // 2
        outer = halves[half][:, :, None] * laws[:, site, None]
        halves[half] = outer.reshape(len(p), -1)
    joint: np.ndarray = halves[0].T @ halves[1]
    return joint.ravel()
