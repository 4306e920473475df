"""Masking, the absorbing diffusion of strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_noise
from uturn.core.protocols import Denoiser, Noisy
from uturn.core.random import NOISE, Seed, streams, uniforms
from uturn.corruption.denoising import drawn
from uturn.corruption.strings import (
    LogLikelihoods,
    SymbolChannel,
    checked_strings,
    checked_symbols,
)
from uturn.corruption.unmasking import InOrder


@dataclass(frozen=True)
class Masking(SymbolChannel):
    """Masking, or absorbing diffusion: every leaf is kept with probability alpha, else masked
    (value -1).

    `noise = 1 - alpha` in [0, 1]. Log-evidence: 0 for all symbols at a masked leaf; at a kept leaf
    0 for its symbol and -inf for the others.
    """

    unit: ClassVar[str] = "masked fraction 1 - alpha"
    batch_invariant: ClassVar[bool] = True
    max_noise: ClassVar[float] = 1.0
    kinds: ClassVar[tuple[str, ...]] = ("strings", "tokens")
    is_reversible: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    misread: ClassVar[float] = -25.0

    def corrupt(
        self, leaves: ArrayLike, noise: ArrayLike, seed: Seed = 0, *, vocab_size: int = 0
    ) -> Noisy:
        """Mask leaves of strings (batch, num_leaves) with probability `noise` (scalar or
        (batch,)).
        """
        leaves, share = checked_strings(leaves, noise, vocab_size, 1)
        hidden = uniforms(streams(seed, len(leaves), NOISE), leaves.shape[1]) < share[:, None]
        return Noisy(np.where(hidden, -1, leaves), share, vocab_size)

    def log_likelihoods(self, noise: np.ndarray, vocab_size: int) -> LogLikelihoods:
        """A shown symbol is certain."""
        return LogLikelihoods(np.zeros(noise.shape), np.full(noise.shape, -np.inf))

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        """`log p(x_t) - Beliefs.log_evidence`, (batch,) in nats: the log-probability of the
        positions of the masks.
        """
        from scipy.special import xlogy

        num_shown = (noisy.values >= 0).sum(axis=1)
        num_masked = noisy.values.shape[1] - num_shown
        factor: np.ndarray = xlogy(num_shown, 1 - noisy.noise) + xlogy(num_masked, noisy.noise)
        return factor

    def effective_epsilon(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Effective ε (Eq. 63): the masked fraction."""
        return checked_noise(noise, 1)

    def bits_per_leaf(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Mutual information of a uniformly distributed leaf and its observation: alpha log2 v
        bits.
        """
        bits: np.ndarray = (1 - checked_noise(noise, 1)) * np.log2(vocab_size)
        return bits

    def reverse(self, denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        return drawn(InOrder(steps=steps), denoiser, noisy, keys)

    def checked_values(self, values: np.ndarray, noise: np.ndarray, vocab_size: int) -> np.ndarray:
        return checked_symbols(values, noise, -1, vocab_size, self)
