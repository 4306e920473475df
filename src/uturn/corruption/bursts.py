"""Symbols replaced in bursts: noise that does not factorise over the leaves."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.protocols import Channel, Noisy, Spec
from uturn.core.random import NOISE, Purpose, streams, uniforms
from uturn.corruption.strings import checked_noisy, checked_strings
from uturn.corruption.uniform import UniformReplacement
from uturn.exact.noise_chains import NoiseChain

_SINGLE = UniformReplacement()  # the law of a single leaf


class Bursts(Spec, Channel):
    """Leaves are redrawn uniformly from all v symbols while a hidden chain along the string is on.

    The chain is stationary: on with probability `noise` at each leaf, and `P(a_{i+1} | a_i) = rho 1[a_{i+1} = a_i] + (1 - rho)
    P(a_{i+1})` with rho = `persistence`. A burst has 1/((1 - rho)(1 - noise)) leaves on average. Each single leaf has the law of
    `UniformReplacement`, but neighbours are replaced together, so that the evidence is no product over leaves. Inference is exact
    by messages between the ends of subtrees (`uturn.exact.noise_chains`).

    Options. `persistence`: rho in [0, 1); 0 is `UniformReplacement`. `evidence`: "exact", or "factorised", the evidence of
    `UniformReplacement`, which ignores the bursts; reconstructions are then no draws from the posterior, as calibration shows.

    Examples
    --------
    >>> noisy = Bursts(persistence=0.9).corrupt(np.zeros((1, 1000), int), noise=0.5, vocab_size=1000, seed=0)
    >>> replaced = noisy.values[0] != 0
    >>> bool(np.diff(replaced).mean() < 0.1)  # of independent replacements, half
    True
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    unit: ClassVar[str] = "replaced fraction, in bursts"
    max_noise: ClassVar[float] = 1.0
    batch_invariant: ClassVar[bool] = True
    purpose: ClassVar[int] = Purpose.CORRUPTION  # type: ignore[misc]  # no option
    type: Literal["bursts"] = "bursts"
    persistence: float = Field(default=0.8, ge=0, lt=1)
    evidence: Literal["exact", "factorised"] = "exact"

    @property
    def is_bayesian(self) -> bool:  # type: ignore[override]
        return self.evidence == "exact" or self.persistence == 0

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Redraw leaves of strings (batch, num_leaves) in bursts; `noise`, scalar or (batch,), is the mean fraction."""
        leaves, share = checked_strings(leaves, noise, vocab_size, 1)
        d = leaves.shape[1]
        u = uniforms(streams(seed, len(leaves), NOISE), 3 * d)
        fresh = u[:, :d] < share[:, None]  # state of a leaf whose state does not follow from the one before
        begins = u[:, d : 2 * d] >= self.persistence
        last = np.maximum.accumulate(np.where(begins, np.arange(d), 0), axis=1)
        is_on = np.take_along_axis(fresh, last, axis=1)
        return Noisy(np.where(is_on, (u[:, 2 * d :] * vocab_size).astype(np.int64), leaves), share, vocab_size)

    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-evidence of single leaves in nats, (batch, num_leaves, vocab_size), that of `UniformReplacement`."""
        return _SINGLE.log_evidence(noisy, dtype)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Effective ε (Eq. 63) of a single leaf."""
        return _SINGLE.effective_epsilon(noise, vocab_size)

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> np.ndarray:
        """Information of a single leaf's observation about it, in bits."""
        return _SINGLE.bits_per_leaf(noise, vocab_size)

    def noise_chain(self, noise: float) -> NoiseChain | None:
        """The hidden chain with the states off, on; None for factorised evidence."""
        if self.evidence == "factorised":
            return None
        law = np.array([1 - noise, noise])
        return NoiseChain(law, self.persistence * np.eye(2) + (1 - self.persistence) * law)

    def state_evidence(self, noisy: Noisy) -> np.ndarray:
        """Log-likelihood of each leaf's observation given symbol and state, float64 (batch, num_leaves, 2, vocab_size)."""
        same = checked_noisy(noisy).values[..., None] == np.arange(noisy.vocab_size)
        return np.stack([np.where(same, 0.0, -np.inf), np.full(same.shape, -np.log(noisy.vocab_size))], axis=2)
