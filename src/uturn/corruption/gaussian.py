"""Gaussian diffusion of one-hot strings and of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, DTypeLike

from uturn.core import progress
from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.evidence import SCALED, Evidence
from uturn.core.memory import recycled
from uturn.core.protocols import Axes, Axis, Channel, Denoiser, Noisy, Source
from uturn.core.random import NOISE, Seed, normal_row, normals, streams
from uturn.core.threads import over_blocks
from uturn.corruption.denoising import LAST, checked_posterior
from uturn.corruption.strings import checked_strings, draw_symbols, log_evidence_of

# Scale of the signal-to-noise ratio r over which the density of levels decays, as exp(-r/6). The
# error of an Euler step of length h is about h^2 |d mmse/dr|, and the uncertainty about a leaf
# (mmse) decays as exp(-r/4), somewhat faster given its neighbours.
_SCALE = 6.0


@dataclass(frozen=True)
class Gaussian(Channel):
    """Gaussian diffusion of the one-hot leaves (Eqs. 2, 4, 12, 13 of arXiv:2402.16991),
    Ornstein-Uhlenbeck time.

    `x_t = sqrt(abar) onehot(x_0) + sqrt(1 - abar) xi`, `abar = exp(-2 t)`; log-evidence `x_t[a]
    sqrt(abar)/(1 - abar)`. `noise` is the time t in [0, inf]: at t = 0 the string is known, at t =
    inf nothing is. For vectors see `uturn.laws`.
    """

    unit: ClassVar[str] = "diffusion time t, abar = exp(-2t)"
    batch_invariant: ClassVar[bool] = True
    max_noise: ClassVar[float] = np.inf
    kinds: ClassVar[tuple[str, ...]] = ("strings", "vectors")
    is_reversible: ClassVar[bool] = True
    needs_vocab_size: ClassVar[bool] = True
    clean_noise: ClassVar[float] = 5e-7  # one standard deviation is 1e-3 of a one-hot component

    def corrupt(
        self, leaves: ArrayLike, noise: ArrayLike, seed: Seed = 0, *, vocab_size: int = 0
    ) -> Noisy:
        """Diffuse strings (batch, num_leaves) for a time `noise` (scalar or (batch,)); `values` are
        float32.

        `seed`: an integer, or one uint64 key per sample (see `uturn.random.keys`).
        """
        checked_integer("vocab_size", vocab_size, 1)
        leaves, t = checked_strings(leaves, noise, vocab_size, np.inf)
        keys = streams(seed, len(leaves), NOISE)
        abar = self.abar(t)
        spread = np.sqrt(1 - abar).astype(np.float32)
        signal = np.sqrt(abar).astype(np.float32)
        values = recycled((*leaves.shape, vocab_size), np.dtype(np.float32))
        rows = values.reshape(len(leaves), -1)

        def diffuse(first: int, last: int) -> None:
            _diffuse(keys, leaves, spread, signal, first, last, rows)

        over_blocks(len(leaves), diffuse, rows.shape[1])
        return Noisy(values, t, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: DTypeLike | None = None) -> np.ndarray:
        """Log-evidence `x_t[a] sqrt(abar)/(1 - abar)` in nats, (batch, num_leaves, vocab_size), by
        default of the values' dtype.

        At t = 0 it is 0 for the true symbol and -inf for the others.
        """
        t = noisy.noise
        gain = self._gain(t).astype(dtype or noisy.values.dtype)
        log_evidence: np.ndarray = noisy.values * gain.reshape(-1, 1, 1)
        clean = t == 0
        if clean.any():
            log_evidence[clean] = np.where(noisy.values[clean] == 1, 0, -np.inf)
        return log_evidence

    def evidence(self, noisy: Noisy) -> Evidence:
        """The log-evidence as the noisy values and their factors."""
        factor = self._gain(noisy.noise).astype(np.float32)
        return Evidence(SCALED, noisy.values, factor, log_evidence_of(self, noisy))

    def _gain(self, t: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore"):
            gain = np.sqrt(self.abar(t)) / -np.expm1(-2 * t)
        # The symbol is certain at times below 1e-30; the product stays finite in float32.
        bounded: np.ndarray = np.minimum(gain, 1e30)
        return bounded

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """`log p(x_t) - Beliefs.log_evidence`, (batch,) in nats: the constant that
        `log_evidence` leaves out; t > 0.
        """
        abar = self.abar(noisy.noise)
        variance = -np.expm1(-2 * noisy.noise)
        d, v = noisy.values.shape[1:]
        square = np.square(noisy.values, dtype=np.float64).sum(axis=(1, 2))
        volume = d * v * np.log(2 * np.pi * variance)
        factor: np.ndarray = -0.5 * (volume + d * abar / variance + square / variance)
        return factor

    def abar(self, noise: ArrayLike) -> np.ndarray:
        """Signal power exp(-2t)."""
        abar: np.ndarray = np.exp(-2 * np.asarray(noise, float))
        return abar

    def log_snr(self, noise: ArrayLike) -> np.ndarray:
        """log(abar / (1 - abar)), nats."""
        t = np.asarray(noise, float)
        with np.errstate(divide="ignore"):
            log_snr: np.ndarray = -np.log(np.expm1(2 * t))
        return log_snr

    def effective_epsilon(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Effective ε of times (Eq. 63), in [0, 1]: v/(v-1) times the mean belief lost by the
        true symbol; error below 1e-9.
        """
        t = checked_noise(noise, np.inf)

        def of_time(time: float) -> float:
            return noisy_leaf(float(time), vocab_size).effective_epsilon

        lost: np.ndarray = np.vectorize(of_time, otypes=[float])(t)
        return lost

    def bits_per_leaf(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Mutual information of a uniformly distributed leaf and its observation, in bits; error
        below 1e-9.
        """
        t = checked_noise(noise, np.inf)

        def of_time(time: float) -> float:
            return noisy_leaf(float(time), vocab_size).bits

        bits: np.ndarray = np.vectorize(of_time, otypes=[float])(t)
        return bits

    def reverse(self, denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        if steps > 1:
            noisy = _denoised(denoiser, noisy, steps, keys)
        return draw_symbols(checked_posterior(denoiser, noisy), keys, LAST)

    def value_shape(self, num_leaves: int, vocab_size: int) -> tuple[int, ...]:
        return num_leaves, vocab_size

    def shown(self, noisy: Noisy) -> np.ndarray:
        """The symbol of largest value at every leaf."""
        symbols: np.ndarray = noisy.values.argmax(-1)
        return symbols

    def checked_values(self, values: np.ndarray, noise: np.ndarray, vocab_size: int) -> np.ndarray:
        is_finite = values.dtype.kind == "f" and np.isfinite(values).all()
        expect(is_finite, f"noisy.values of {self!r}", values, "finite floats")
        still = values[noise == 0]
        is_onehot = ((still == 0) | (still == 1)).all() and (still.sum(axis=-1) == 1).all()
        expect(is_onehot, f"noisy.values of {self!r}", still, "one-hot leaves where noise = 0")
        return values

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        return {
            **super().axes(noise, source),
            "abar": Axis(self.abar(noise), {"long_name": "signal power abar"}),
            "log_snr": Axis(self.log_snr(noise), {"long_name": "log signal-to-noise ratio"}),
        }


def _denoised(denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> Noisy:
    """Noisy strings at the last of `steps` levels, by steps of ancestral sampling."""
    import torch

    batch, d, v = noisy.values.shape
    # At larger times exp overflows; the signal is negligible.
    start = 1 / np.expm1(2 * min(noisy.noise[0], 300.0))
    scheduler = _ancestral_scheduler(start, steps)
    abar = scheduler.alphas_cumprod.numpy()
    state = torch.from_numpy(noisy.values.astype(np.float32))
    timesteps = range(steps - 1, 0, -1)  # timestep 0 is the level of the last draw
    for step, timestep in enumerate(progress.steps(timesteps)):
        mean = torch.from_numpy(checked_posterior(denoiser, noisy))
        noise = normals(streams(keys, batch, step), d * v).reshape(batch, d, v)
        moved = scheduler.step(
            mean, timestep, state, eta=1.0, variance_noise=torch.from_numpy(noise)
        )
        state = moved.prev_sample
        t = -0.5 * np.log(abar[timestep - 1], dtype=np.float64)
        noisy = Noisy(state.numpy(), np.full(batch, t), v)
    return noisy


def _ancestral_scheduler(start: float, steps: int) -> Any:  # noqa: ANN401 - schedulers of diffusers have no types
    """DDIM scheduler whose training timesteps are the grid itself, from steps - 1 (the
    observation) to 0 (the last draw).
    """
    import diffusers

    # Below 1e-4 the observation is nearly uninformative, and the scheduler would take square roots
    # of rounding errors.
    r = max(start, 1e-4) - _SCALE * np.log1p(-np.arange(steps)[::-1] / steps)
    abar = r / (1 + r)
    betas = 1 - abar / np.r_[1.0, abar[:-1]]
    scheduler: Any = diffusers.DDIMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@njit(nogil=True, cache=True)
def _diffuse(keys, leaves, spread, signal, first, last, out):
    """out[b, i, a] = spread[b] * normal number + signal[b] at the symbol a = leaves[b, i]."""
    v = out.shape[1] // leaves.shape[1]
    for b in range(first, last):
        normal_row(keys[b], out[b])
        for k in range(out.shape[1]):
            out[b, k] *= spread[b]
        for i in range(leaves.shape[1]):
            out[b, i * v + leaves[b, i]] += signal[b]


@dataclass(frozen=True)
class NoisyLeaf:
    """What the observation of one uniformly distributed leaf tells."""

    effective_epsilon: float
    """v/(v-1) times the mean belief lost by the true symbol (Eq. 63), in [0, 1]."""
    bits: float
    """Mutual information of the leaf and its observation, 0 .. log2 v."""


@lru_cache(maxsize=4096)
def noisy_leaf(t: float, v: int) -> NoisyLeaf:
    """A leaf with v symbols after a time t of diffusion, both numbers to 1e-9 for v <= 2000.

    The logits are r + c xi for the true symbol and c xi for the others, r = abar/(1-abar) = c**2.
    If independent Gumbel noise is added, P(the true one is the largest) = E softmax, and E max = E
    logsumexp + Euler's constant. Both are integrals over y of

        g(y) = P(c xi + Gumbel < y) = E exp(-exp(c xi - y)),

    the distribution function of another symbol's logit; the true symbol has g(y - r). The
    integrands are analytic and decay at both ends, so the error of the trapezoidal rule with step h
    is exp(-2 pi a/h), where a is the distance of the singularities from the real line: pi/2 in y,
    pi/2c in xi.
    """
    if t == 0:
        return NoisyLeaf(0.0, float(np.log2(v)))
    if t > 300:
        return NoisyLeaf(1.0, 0.0)
    r = 1 / np.expm1(2 * t)
    if r > 150:  # the error probability is below v exp(-r/4)
        return NoisyLeaf(0.0, float(np.log2(v)))
    logits = _Logits(float(np.sqrt(r)), _logit_grid(r, v))
    y = logits.y
    true = logits.law(r)
    others = logits.law(0.0).below ** (v - 1)
    recovered = _STEP * float(true.density @ others)
    # E max - Euler's constant, from the difference to a Gumbel variable at r, whose mean is r +
    # Euler's constant.
    gumbel = np.exp(-np.exp(np.minimum(r - y, 700)))
    largest = r + _STEP * float((gumbel - true.below * others).sum())
    bits = (np.log(v) + r - largest) / np.log(2)
    lost = (1 - recovered) * v / (v - 1)
    return NoisyLeaf(float(np.clip(lost, 0, 1)), float(np.clip(bits, 0, np.log2(v))))


_STEP = 0.35  # of the trapezoidal rule over the logit y


def _logit_grid(r: float, v: int) -> np.ndarray:
    """Logits y beyond which the integrands vanish: v times the probability of more is below 1e-15
    v.
    """
    c = np.sqrt(r)
    grid: np.ndarray = np.arange(-8 * c - 5, r + 8 * c + 30 + np.log(v), _STEP)
    return grid


@dataclass(frozen=True)
class _Law:
    """A distribution on the grid of logits."""

    below: np.ndarray
    """P(logit < y)."""
    density: np.ndarray


@dataclass(frozen=True)
class _Logits:
    """The laws of shift + c xi + Gumbel on a grid, with xi ~ N(0, 1)."""

    c: float
    y: np.ndarray

    def law(self, shift: float) -> _Law:
        step = min(2 * _STEP, _STEP / self.c)
        num_steps = np.ceil(8 / step)
        xi = step * np.arange(-num_steps, num_steps + 1)
        weight = np.exp(-(xi**2) / 2)
        weight /= weight.sum()
        if self.c * step < _STEP:
            rate = np.exp(np.minimum(self.c * xi[:, None] + shift - self.y, 700))
            below = np.exp(-rate)
            return _Law(weight @ below, weight @ (rate * below))
        # Steps of c xi are steps of y, so the mean over xi is a convolution.
        radius = len(xi) // 2
        shifts = _STEP * np.arange(-radius, len(self.y) + radius)
        rate = np.exp(np.minimum(shift - self.y[0] - shifts, 700))
        below = np.exp(-rate)
        return _Law(np.convolve(below, weight, "valid"), np.convolve(rate * below, weight, "valid"))
