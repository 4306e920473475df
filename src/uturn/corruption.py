"""The four corruptions of symbols: how a string is observed, and what an observation says about every leaf.

A corruption has two sides. `corrupt` draws an observation of a string; `log_evidence` is the log-likelihood of what was
observed as a function of the symbol at each leaf, up to a factor per leaf. `Gaussian`, `Masking` and `UniformReplacement`
are Bayesian channels: evidence is the likelihood of what was drawn. `EpsilonBelief`, the solvable stand-in of
arXiv:2402.16991, is not: it pins a belief on the true symbol.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np

from uturn.checks import checked_array, checked_integer, checked_noise, shown
from uturn.random import NOISE, normals, streams, uniforms


@dataclass(frozen=True)
class Noisy:
    """An observation of a batch of strings.

    Attributes
    ----------
    values : array (batch, num_leaves), or (batch, num_leaves, vocab_size) for the Gaussian process
        Masked leaves are -1; the ε-process keeps the true leaves.
    noise : float64 array (batch,)
        Noise level of each sample, in the unit of the corruption.
    vocab_size : int
    """

    values: np.ndarray
    noise: np.ndarray
    vocab_size: int


class Corruption(Protocol):
    """What an experiment asks of a corruption; any object with these members will do.

    `unit` says what `noise` measures and `max_noise` is its largest value. `is_bayesian`: evidence is the likelihood of what
    was drawn, so that original and reconstruction are exchangeable. `is_random`: anything is drawn at all; if not, all
    trajectories of an item share one upward pass. `effective_epsilon` and `bits_per_leaf` place a noise level on the axes that
    all corruptions share.
    """

    unit: ClassVar[str]
    max_noise: ClassVar[float]
    is_bayesian: ClassVar[bool]
    is_random: ClassVar[bool]

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy: ...
    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray: ...
    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray: ...
    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Gaussian:
    """Gaussian diffusion of the one-hot leaves (Eqs. 2, 4, 12, 13 of arXiv:2402.16991), Ornstein-Uhlenbeck time.

    `x_t = sqrt(abar) onehot(x_0) + sqrt(1 - abar) xi`, `abar = exp(-2 t)`; log-evidence `x_t[a] sqrt(abar)/(1 - abar)`.
    `noise` is the time t in [0, inf]: t = 0 shows the string itself, t = inf nothing.

    Examples
    --------
    >>> import numpy as np
    >>> noisy = Gaussian().corrupt(np.zeros((1, 4), int), noise=0.1, vocab_size=3, seed=0)
    >>> noisy.values.shape, noisy.values.dtype
    ((1, 4, 3), dtype('float32'))
    """

    unit: ClassVar[str] = "diffusion time t, abar = exp(-2t)"
    max_noise: ClassVar[float] = np.inf
    is_bayesian: ClassVar[bool] = True
    is_random: ClassVar[bool] = True

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Diffuse strings (batch, num_leaves) for a time `noise` (scalar or (batch,)); `values` are float32.

        `seed`: an integer, or one uint64 key per sample (see `uturn.random.keys`).
        """
        leaves, t = _checked(leaves, noise, vocab_size, np.inf)
        batch, d = leaves.shape
        abar = self.abar(t).reshape(-1, 1, 1)
        values = normals(streams(seed, batch, NOISE), d * vocab_size).reshape(batch, d, vocab_size)
        values *= np.sqrt(1 - abar).astype(np.float32)
        at = leaves[..., None]
        signal = np.take_along_axis(values, at, 2) + np.sqrt(abar).astype(np.float32)
        np.put_along_axis(values, at, signal, 2)
        return Noisy(values, t, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-evidence in nats, (batch, num_leaves, vocab_size); dtype that of the values by default.

        At t = 0 it is 0 for the observed symbol and -inf else.
        """
        t = _checked_noisy(noisy).noise
        abar = self.abar(t)
        with np.errstate(divide="ignore", over="ignore"):
            gain = np.sqrt(abar) / -np.expm1(-2 * t)
        # A time below 1e-30 tells the symbol for certain; the cap keeps the product finite in float32.
        gain = np.minimum(gain, 1e30).astype(dtype or noisy.values.dtype).reshape(-1, 1, 1)
        out = noisy.values * gain
        clean = t == 0
        if clean.any():
            out[clean] = np.where(noisy.values[clean] == 1, 0, -np.inf)
        return out

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """What `Beliefs.log_evidence` lacks to be the log-density of the observation, (batch,) nats; t > 0."""
        abar = self.abar(noisy.noise)
        variance = -np.expm1(-2 * noisy.noise)
        d, v = noisy.values.shape[1:]
        square = np.square(noisy.values, dtype=np.float64).sum(axis=(1, 2))
        return -0.5 * (d * v * np.log(2 * np.pi * variance) + d * abar / variance + square / variance)

    def abar(self, noise: Any) -> np.ndarray:
        """Signal power exp(-2t)."""
        return np.exp(-2 * np.asarray(noise, float))

    def log_snr(self, noise: Any) -> np.ndarray:
        """log(abar / (1 - abar)), nats."""
        t = np.asarray(noise, float)
        with np.errstate(divide="ignore"):
            return -np.log(np.expm1(2 * t))

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Effective ε of a time (Eq. 63): v/(v-1) times the mean belief lost by the true symbol.

        Deterministic quadrature: the mean of a softmax is the probability that its logit plus Gumbel noise is the largest.
        """
        t = checked_noise(noise, np.inf)
        return np.vectorize(lambda x: _gaussian_leaf(float(x), vocab_size)[0], otypes=[float])(t)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Mutual information of a uniformly distributed leaf and its noisy version, in bits."""
        t = checked_noise(noise, np.inf)
        return np.vectorize(lambda x: _gaussian_leaf(float(x), vocab_size)[1], otypes=[float])(t)


@dataclass(frozen=True)
class Masking:
    """Masking, or absorbing diffusion: every leaf is kept with probability alpha, else hidden (value -1).

    `noise = 1 - alpha` in [0, 1]. Log-evidence: 0 everywhere where masked; where kept 0 for the symbol, -inf else.
    """

    unit: ClassVar[str] = "masked fraction 1 - alpha"
    max_noise: ClassVar[float] = 1.0
    is_bayesian: ClassVar[bool] = True
    is_random: ClassVar[bool] = True

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Mask leaves of strings (batch, num_leaves) with probability `noise` (scalar or (batch,))."""
        leaves, share = _checked(leaves, noise, vocab_size, 1)
        hidden = uniforms(streams(seed, len(leaves), NOISE), leaves.shape[1]) < share[:, None]
        return Noisy(np.where(hidden, -1, leaves), share, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-evidence in nats, (batch, num_leaves, vocab_size), float64 by default."""
        _checked_noisy(noisy)
        possible = (noisy.values[..., None] == np.arange(noisy.vocab_size)) | (noisy.values[..., None] < 0)
        return np.where(possible, 0, -np.inf).astype(dtype or np.float64, copy=False)

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """What `Beliefs.log_evidence` lacks to be the log-probability of the observation, (batch,) nats."""
        from scipy.special import xlogy

        kept, d = (noisy.values >= 0).sum(axis=1), noisy.values.shape[1]
        return xlogy(kept, 1 - noisy.noise) + xlogy(d - kept, noisy.noise)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Effective ε (Eq. 63): the masked fraction itself."""
        return checked_noise(noise, 1)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Mutual information of a uniformly distributed leaf and its observation, in bits."""
        return (1 - checked_noise(noise, 1)) * np.log2(vocab_size)


@dataclass(frozen=True)
class UniformReplacement:
    """Uniform replacement: every leaf is kept with probability alpha, else redrawn uniformly (maybe the same symbol).

    `noise = 1 - alpha` in [0, 1]. Log-evidence `log(alpha 1[a = observed] + (1 - alpha)/v)`.
    """

    unit: ClassVar[str] = "replaced fraction 1 - alpha"
    max_noise: ClassVar[float] = 1.0
    is_bayesian: ClassVar[bool] = True
    is_random: ClassVar[bool] = True

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Redraw leaves of strings (batch, num_leaves) with probability `noise` (scalar or (batch,))."""
        leaves, share = _checked(leaves, noise, vocab_size, 1)
        d = leaves.shape[1]
        u = uniforms(streams(seed, len(leaves), NOISE), 2 * d)
        redrawn = (u[:, d:] * vocab_size).astype(np.int64)
        return Noisy(np.where(u[:, :d] < share[:, None], redrawn, leaves), share, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-evidence in nats, (batch, num_leaves, vocab_size), float64 by default."""
        same = _checked_noisy(noisy).values[..., None] == np.arange(noisy.vocab_size)
        return _two_valued(same, noisy.noise, noisy.vocab_size, dtype)

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """Zero: `Beliefs.log_evidence` is the log-probability of the observation already."""
        return np.zeros(len(noisy.values))

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Effective ε (Eq. 63) of the belief `alpha + (1-alpha)/v` in what is seen."""
        other = checked_noise(noise, 1) / vocab_size
        seen = 1 - (vocab_size - 1) * other
        return (1 - seen * seen - (vocab_size - 1) * other * other) * vocab_size / (vocab_size - 1)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Mutual information of a uniformly distributed leaf and its observation, in bits."""
        return _two_valued_bits(noise, vocab_size)


@dataclass(frozen=True)
class EpsilonBelief:
    """The ε-process (Eqs. 9, 10, 20, 21 of arXiv:2402.16991): nothing is drawn, the belief is pinned on the true leaves.

    Belief `1 - ε + ε/v` in the true symbol, `ε/v` in each other one; `noise = ε` in [0, 1].
    """

    unit: ClassVar[str] = "epsilon"
    max_noise: ClassVar[float] = 1.0
    is_bayesian: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Keep the true leaves; the noise acts on the beliefs alone (`seed` is not used)."""
        leaves, epsilon = _checked(leaves, noise, vocab_size, 1)
        return Noisy(leaves, epsilon, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-belief in nats, (batch, num_leaves, vocab_size), float64 by default."""
        same = _checked_noisy(noisy).values[..., None] == np.arange(noisy.vocab_size)
        return _two_valued(same, noisy.noise, noisy.vocab_size, dtype)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """ε itself."""
        return checked_noise(noise, 1)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """`log2 v` minus the entropy of the pinned belief."""
        return _two_valued_bits(noise, vocab_size)


@dataclass(frozen=True)
class Diffusion:
    """Marker: the forward process of the diffusion model or scheduler that also runs backwards; `noise` is t/T in [0, 1]."""

    unit: ClassVar[str] = "inversion time t/T"
    max_noise: ClassVar[float] = 1.0


CORRUPTIONS: dict[str, type] = {
    "diffusion": Diffusion,
    "gaussian": Gaussian,
    "masking": Masking,
    "uniform": UniformReplacement,
    "epsilon": EpsilonBelief,
}


def _checked(leaves: Any, noise: Any, vocab_size: int, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Strings as int64 (batch, num_leaves) and noise levels as float64 (batch,), or a ValueError."""
    checked_integer("vocab_size", vocab_size, 1)
    leaves = checked_array("leaves", leaves)
    if leaves.dtype.kind not in "iu" or leaves.ndim != 2:
        raise ValueError(
            f"leaves has shape {leaves.shape} and dtype {leaves.dtype}; expected integers of shape (batch, num_leaves)"
        )
    if leaves.size and (leaves.min() < 0 or leaves.max() >= vocab_size):
        bad = leaves[(leaves < 0) | (leaves >= vocab_size)][0]
        raise ValueError(f"leaves contains the symbol {bad}; expected 0..{vocab_size - 1} (vocab_size = {vocab_size})")
    return leaves.astype(np.int64, copy=False), np.array(
        np.broadcast_to(checked_noise(noise, most, len(leaves)), len(leaves)), float
    )


def _checked_noisy(noisy: Any) -> Noisy:
    if not isinstance(noisy, Noisy):
        raise ValueError(f"noisy = {shown(noisy)}: expected what corrupt() gives")
    return noisy


def _two_valued(same: np.ndarray, noise: np.ndarray, v: int, dtype: Any) -> np.ndarray:
    with np.errstate(divide="ignore"):
        this, other = np.log1p(-noise * (v - 1) / v), np.log(noise / v)
    return np.where(same, this[:, None, None], other[:, None, None]).astype(dtype or np.float64, copy=False)


def _two_valued_bits(noise: Any, v: int) -> np.ndarray:
    from scipy.special import xlogy

    other = checked_noise(noise, 1) / v
    this = 1 - (v - 1) * other
    return np.log2(v) + (xlogy(this, this) + (v - 1) * xlogy(other, other)) / np.log(2)


@lru_cache(maxsize=4096)
def _gaussian_leaf(t: float, v: int) -> tuple[float, float]:
    """(effective ε, bits) of one Gaussian leaf, both to 1e-9.

    The logits are r + c xi for the true symbol and c xi for the others, r = abar/(1-abar) = c**2. With independent Gumbel noise
    on top, P(the true one is the largest) = E softmax, and E max = E logsumexp + Euler's constant. Both are integrals over y of

        g(y) = P(c xi + Gumbel < y) = E exp(-exp(c xi - y)),

    the law of another symbol's logit; that of the true one is g(y - r). The integrands are analytic and decay at both ends, so
    the trapezoidal rule errs by exp(-2 pi a/h) with steps h and a the distance of their singularities from the real line: pi/2 in
    y and pi/2c in xi.
    """
    if t == 0:
        return 0.0, float(np.log2(v))
    if t > 300:
        return 1.0, 0.0
    r = 1 / np.expm1(2 * t)
    if r > 150:  # the error probability is below v exp(-r/4)
        return 0.0, float(np.log2(v))
    c, h = np.sqrt(r), 0.35
    step = min(0.7, h / c)
    xi = step * np.arange(-np.ceil(7 / step), np.ceil(7 / step) + 1)
    weight = np.exp(-(xi**2) / 2)
    weight /= weight.sum()
    y = np.arange(-7 * c - 5, r + 7 * c + 30 + np.log(v), h)

    def law(shift: float) -> tuple[np.ndarray, np.ndarray]:
        """P(shift + c xi + Gumbel < y) and its derivative."""
        rate = np.exp(np.minimum(c * xi[:, None] + shift - y, 700))
        below = np.exp(-rate)
        return weight @ below, weight @ (rate * below)

    true, density = law(r)
    others = law(0.0)[0] ** (v - 1)
    recovered = h * float(density @ others)
    # E max, by its difference from a Gumbel variable around r, whose mean is r + Euler's constant.
    largest = r + h * float((np.exp(-np.exp(np.minimum(r - y, 700))) - true * others).sum())
    bits = (np.log(v) + r - largest) / np.log(2)
    return float(np.clip((1 - recovered) * v / (v - 1), 0, 1)), float(np.clip(bits, 0, np.log2(v)))
