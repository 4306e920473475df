"""The ε-process, a simplified diffusion with a mean-field theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from uturn.core.checks import checked_noise
from uturn.core.protocols import Channel, Noisy
from uturn.corruption.strings import checked_noisy, checked_strings, symbol_evidence, two_valued, two_valued_bits, two_values
from uturn.exact.inference.evidence import Evidence


@dataclass(frozen=True)
class EpsilonBelief(Channel):
    """The ε-process (Eqs. 9, 10, 20, 21 of arXiv:2402.16991): a fixed belief in the true symbol of each leaf, nothing random.

    The belief is `1 - ε + ε/v` in the true symbol and `ε/v` in each other one; `noise` = ε in [0, 1].
    """

    unit: ClassVar[str] = "epsilon"
    batch_invariant: ClassVar[bool] = True
    max_noise: ClassVar[float] = 1.0
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    is_bayesian: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """The true leaves, int64 (batch, num_leaves): the noise enters the evidence only. `seed` is not used."""
        leaves, epsilon = checked_strings(leaves, noise, vocab_size, 1)
        return Noisy(leaves, epsilon, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-belief in nats, (batch, num_leaves, vocab_size), float64 by default."""
        same = checked_noisy(noisy).values[..., None] == np.arange(noisy.vocab_size)
        return two_valued(same, noisy.noise, noisy.vocab_size, dtype)

    def evidence(self, noisy: Noisy) -> Evidence:
        """The log-evidence as observed symbols, with one value for them and one for all others."""
        return symbol_evidence(self, noisy, *two_values(noisy.noise, noisy.vocab_size))

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """ε itself."""
        return checked_noise(noise, 1)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """`log2 v` minus the entropy of the belief, in bits."""
        return two_valued_bits(noise, vocab_size)
