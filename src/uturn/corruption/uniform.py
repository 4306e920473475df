"""Uniform replacement of symbols."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_integer, checked_noise
from uturn.core.protocols import Denoiser, Noisy
from uturn.core.random import NOISE, Seed, choices, streams, uniforms
from uturn.corruption.denoising import LAST, drawn
from uturn.corruption.sampling import Sampler, State, SymbolBeliefs, parts
from uturn.corruption.strings import SymbolChannel, checked_strings, checked_symbols


@dataclass(frozen=True)
class UniformReplacement(SymbolChannel):
    """Uniform replacement: every leaf is kept with probability alpha, else redrawn uniformly from
    all v symbols.

    `noise = 1 - alpha` in [0, 1]. Log-evidence `log(alpha 1[a = observed] + (1 - alpha)/v)`.
    """

    unit: ClassVar[str] = "replaced fraction 1 - alpha"
    kinds: ClassVar[tuple[str, ...]] = ("strings", "tokens")
    is_reversible: ClassVar[bool] = True
    needs_vocab_size: ClassVar[bool] = True
    clean_noise: ClassVar[float] = 1e-15

    def corrupt(
        self, leaves: ArrayLike, noise: ArrayLike, seed: Seed = 0, *, vocab_size: int = 0
    ) -> Noisy:
        """Redraw leaves of strings (batch, num_leaves) with probability `noise` (scalar or
        (batch,)).
        """
        checked_integer("vocab_size", vocab_size, 1)
        leaves, share = checked_strings(leaves, noise, vocab_size, 1)
        d = leaves.shape[1]
        u = uniforms(streams(seed, len(leaves), NOISE), 2 * d)
        redrawn = (u[:, d:] * vocab_size).astype(np.int64)
        return Noisy(np.where(u[:, :d] < share[:, None], redrawn, leaves), share, vocab_size)

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """Zeros (batch,), because `Beliefs.log_evidence` is the log-probability of the
        observation.
        """
        return np.zeros(len(noisy.values))

    def effective_epsilon(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Effective ε (Eq. 63), v/(v-1) (1 - p^2 - (v-1) q^2) with p = alpha + (1-alpha)/v, q =
        (1-alpha)/v.
        """
        q = checked_noise(noise, 1) / vocab_size
        p = 1 - (vocab_size - 1) * q
        lost: np.ndarray = 1 - p * p - (vocab_size - 1) * q * q
        return lost * vocab_size / (vocab_size - 1)

    def reverse(self, denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        return drawn(Replacing(self, steps), denoiser, noisy, keys)

    def step_law(
        self, belief: np.ndarray, values: np.ndarray, now: float, later: float, euler: bool = False
    ) -> np.ndarray:
        """Weights (.., v) of the symbol where a share `later` is kept, given the strings `values`
        (..) where it is `now`.

        From p(x_0 = a | x_t), `belief` (.., v). The analytic step is the sum over a of p(x_0 = a |
        x_t) q(x_s | x_t, x_0 = a) (arXiv:2107.03006), which equals the Tweedie step of SEDD
        (arXiv:2310.16834, section 4.1): exact for a single site. The Euler step goes to b with
        probability (alpha_s - alpha_t) / (alpha_t v) times the ratio p_t(x with b) / p_t(x), and
        stays otherwise; where this adds up to more than 1, it does not stay. Its alpha_t is at
        least 1e-3, as in the code of SEDD. To alpha_s = 1 both steps are the belief, as SEDD ends.
        """
        v = belief.shape[-1]
        if later == 1:
            return belief
        here = np.arange(v) == values[..., None]
        # q(x_s = b | x_t, x_0 = a) = q(x_t | b) q(b | a) / q(x_t | a), summed over a with weights
        # p(a | x_t) / q(x_t | a).
        belief = belief.astype(np.float64) / _replaced(here, now, v)
        if not euler:
            mixed = later * belief + (1 - later) / v * belief.sum(-1, keepdims=True)
            exact: np.ndarray = _replaced(here, now / later, v) * mixed
            return exact
        ratio = now * belief + (1 - now) / v * belief.sum(-1, keepdims=True)
        law = np.where(here, 0, (later - now) / (max(now, 1e-3) * v) * ratio)
        return np.where(here, np.maximum(1 - law.sum(-1, keepdims=True), 0), law)

    def checked_values(self, values: np.ndarray, noise: np.ndarray, vocab_size: int) -> np.ndarray:
        return checked_symbols(values, noise, 0, vocab_size, self)


def _replaced(same: np.ndarray, alpha: float, v: int) -> np.ndarray:
    return np.where(same, alpha + (1 - alpha) / v, (1 - alpha) / v)


@dataclass(frozen=True)
class Replacing(Sampler[State]):
    """The replaced share goes to 0 in equal steps. The last evaluation draws each symbol from its
    own posterior.
    """

    channel: UniformReplacement
    steps: int
    is_euler: bool = False
    """Euler steps in place of analytic ones, see `UniformReplacement.step_law`."""

    def start(self, noisy: Noisy, keys: np.ndarray) -> State:
        is_noisy = noisy.noise > self.channel.clean_noise
        step = np.where(is_noisy, 0, self.steps)
        return State(noisy.values, noisy.noise, keys, step)

    def calls(self, noisy: Noisy) -> np.ndarray:
        """Number of evaluations for each string, int64 (rows,): that of the steps, or 0 without
        noise.
        """
        return np.where(noisy.noise > self.channel.clean_noise, self.steps, 0)

    def is_waiting(self, state: State) -> np.ndarray:
        is_waiting: np.ndarray = state.step < self.steps
        return is_waiting

    def question(self, state: State) -> Noisy:
        share = 1 - self._kept(state.noise, state.step)
        return Noisy(state.values, np.where(state.step == 0, state.noise, share))

    def answered(self, state: State, beliefs: SymbolBeliefs) -> State:
        values = state.values.copy()
        steps_under_way = set(zip(state.noise.tolist(), state.step.tolist(), strict=True))
        for noise, step in steps_under_way:
            rows = np.flatnonzero((state.noise == noise) & (state.step == step))
            values[rows] = self._drawn(state.rows(rows), rows, beliefs, noise, step)
        return replace(state, values=values, step=state.step + 1)

    def _drawn(
        self, state: State, rows: np.ndarray, beliefs: SymbolBeliefs, noise: float, step: int
    ) -> np.ndarray:
        """Strings after a step, of rows with equal noise levels; `rows` are those of `beliefs`."""
        values = state.values.copy()
        level = np.array(noise)
        now = float(self._kept(level, np.array(step)))
        later = float(self._kept(level, np.array(step + 1)))
        is_last = step == self.steps - 1
        keys = streams(state.keys, len(rows), LAST if is_last else step)
        heights = uniforms(keys, values.shape[1])
        row, position = np.nonzero(values >= 0)  # beyond the end of a text there is padding
        for part in parts(len(row), beliefs.vocab_size):
            place = row[part], position[part]
            # As a `Denoiser` gives it; the beliefs of a language model are more precise.
            belief = beliefs.at(rows[place[0]], place[1]).astype(np.float32, copy=False)
            law = self.channel.step_law(belief, values[place], now, later, self.is_euler)
            values[place] = choices(law, heights[place])
        return values

    def _kept(self, noise: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Share of kept symbols at the beginning of a step."""
        kept: np.ndarray = 1 - noise * (self.steps - step) / self.steps
        return kept
