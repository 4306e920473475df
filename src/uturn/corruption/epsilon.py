"""The ε-process, a simplified diffusion with a mean-field theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from uturn.core.checks import checked_noise
from uturn.core.protocols import Noisy
from uturn.corruption.strings import TwoValued, checked_strings


@dataclass(frozen=True)
class EpsilonBelief(TwoValued):
    """The ε-process (Eqs. 9, 10, 20, 21 of arXiv:2402.16991): a fixed belief in the true symbol of each leaf, nothing random.

    The belief is `1 - ε + ε/v` in the true symbol and `ε/v` in each other one; `noise` = ε in [0, 1].
    """

    unit: ClassVar[str] = "epsilon"
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    is_bayesian: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """The true leaves, int64 (batch, num_leaves): the noise enters the evidence only. `seed` is not used."""
        leaves, epsilon = checked_strings(leaves, noise, vocab_size, 1)
        return Noisy(leaves, epsilon, vocab_size)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """ε itself."""
        return checked_noise(noise, 1)
