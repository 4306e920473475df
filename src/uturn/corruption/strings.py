"""The ε-process, and shared functions of channels of strings: checks, two-valued beliefs, draws
of symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.evidence import SYMBOLS, Evidence
from uturn.core.protocols import Channel, Noisy
from uturn.core.random import Seed, choices, streams, uniforms
from uturn.exact.rhm import checked_leaves

_ANY = 2**62  # more symbols than any string has


def checked_strings(
    leaves: ArrayLike, noise: ArrayLike, vocab_size: int, max_noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Strings as int64 (batch, num_leaves) and noise levels as float64 (batch,), or a ValueError.

    `vocab_size` 0: the number of symbols is not known, and any are allowed.
    """
    checked_integer("vocab_size", vocab_size, 0)
    strings = checked_leaves(leaves, vocab_size or _ANY)
    batch = len(strings)
    levels = checked_noise(noise, max_noise, batch)
    return strings, np.array(np.broadcast_to(levels, batch), float)


def alphabet_of(noisy: Noisy) -> np.ndarray:
    """The symbols 0 .. v - 1 of noisy data; ValueError if their number is not known."""
    v = noisy.vocab_size
    expected = "the number of symbols; give it as corrupt(.., vocab_size=V)"
    expect(v > 0, "noisy.vocab_size", v, expected)
    return np.arange(v)


def checked_symbols(
    values: np.ndarray, noise: np.ndarray, smallest: int, vocab_size: int, channel: Channel
) -> np.ndarray:
    """Noisy symbols as int64; ValueError unless they are integers from `smallest` to v - 1, and at
    least 0 where noise = 0.
    """
    where = f"noisy.values of {channel!r}"
    are_in_range = ((values >= smallest) & (values < vocab_size)).all()
    are_symbols = values.dtype.kind in "iu" and are_in_range
    expect(are_symbols, where, values, f"integers {smallest}..{vocab_size - 1}")
    are_shown = (values[noise == 0] >= 0).all()
    expect(are_shown, where, -1, "no masked leaf where noise = 0")
    return values.astype(np.int64, copy=False)


def log_evidence_of(channel: Channel, noisy: Noisy) -> Callable[[np.ndarray], np.ndarray]:
    """The function that gives the log-evidence of some samples, float32."""
    # It refers to the arrays, not to `noisy`, which refers to the function: a reference cycle would
    # delay freeing memory.
    values = noisy.values
    noise = noisy.noise
    v = noisy.vocab_size

    def log_evidence(samples: np.ndarray) -> np.ndarray:
        return channel.log_evidence(Noisy(values[samples], noise[samples], v), np.float32)

    return log_evidence


class LogLikelihoods(NamedTuple):
    """Log-likelihoods in nats of the observed symbol of a leaf."""

    if_equal: np.ndarray
    """If the leaf has the observed symbol."""
    if_different: np.ndarray
    """If the leaf has any other symbol."""


class SymbolChannel(Channel):
    """A channel that shows a symbol of each leaf, or nothing (-1).

    Two log-likelihoods hold all of its evidence. By default the belief in the shown symbol is
    1 - noise + noise/v, and that in each other symbol noise/v.
    """

    batch_invariant: ClassVar[bool] = True
    max_noise: ClassVar[float] = 1.0
    shows_symbols: ClassVar[bool] = True

    def log_likelihoods(self, noise: np.ndarray, vocab_size: int) -> LogLikelihoods:
        """The log-likelihoods of a shown symbol, each of the shape of `noise`."""
        v = vocab_size
        with np.errstate(divide="ignore"):
            return LogLikelihoods(np.log1p(-noise * (v - 1) / v), np.log(noise / v))

    def log_evidence(self, noisy: Noisy, dtype: DTypeLike | None = None) -> np.ndarray:
        """Log-evidence in nats, (batch, num_leaves, vocab_size), float64 by default.

        It is 0 for all symbols of a leaf that is not shown, in masked strings.
        """
        logs = self.log_likelihoods(noisy.noise, noisy.vocab_size)
        shown = noisy.values[..., None]
        is_same = (shown == alphabet_of(noisy)) | (shown < 0)
        evidence = np.where(is_same, logs.if_equal[:, None, None], logs.if_different[:, None, None])
        return evidence.astype(dtype or np.float64, copy=False)

    def evidence(self, noisy: Noisy) -> Evidence:
        """The shown symbols, and the log-evidence of all other symbols relative to them."""
        values = checked_symbols(noisy.values, noisy.noise, -1, noisy.vocab_size, self)
        logs = self.log_likelihoods(noisy.noise, noisy.vocab_size)
        relative = logs.if_different.astype(np.float32) - logs.if_equal.astype(np.float32)
        return Evidence(SYMBOLS, values, relative, log_evidence_of(self, noisy))

    def bits_per_leaf(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """Information about a uniformly distributed leaf, in bits.

        It is `log2 v` minus the entropy of the belief.
        """
        from scipy.special import xlogy

        # Belief in each of the symbols that are not shown, and in the shown one.
        q = checked_noise(noise, 1) / vocab_size
        p = 1 - (vocab_size - 1) * q
        entropy = -xlogy(p, p) - (vocab_size - 1) * xlogy(q, q)
        bits: np.ndarray = np.log2(vocab_size) - entropy / np.log(2)
        return bits


@dataclass(frozen=True)
class EpsilonBelief(SymbolChannel):
    """The ε-process (Eqs. 9, 10, 20, 21 of arXiv:2402.16991): a fixed belief in the true symbol of
    each leaf, nothing random.

    The belief is `1 - ε + ε/v` in the true symbol and `ε/v` in each other one; `noise` = ε in [0,
    1].
    """

    unit: ClassVar[str] = "epsilon"
    has_mean_field: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    is_bayesian: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def corrupt(
        self, leaves: ArrayLike, noise: ArrayLike, seed: Seed = 0, *, vocab_size: int = 0
    ) -> Noisy:
        """The true leaves, int64 (batch, num_leaves): the noise enters the evidence only. `seed`
        is not used.
        """
        leaves, epsilon = checked_strings(leaves, noise, vocab_size, 1)
        return Noisy(leaves, epsilon, vocab_size)

    def effective_epsilon(self, noise: ArrayLike, vocab_size: int) -> np.ndarray:
        """ε itself."""
        return checked_noise(noise, 1)


def draw_symbols(law: np.ndarray, keys: np.ndarray, stream: int) -> np.ndarray:
    """Independent draws of a symbol for every leaf, int64 (batch, leaves), from weights (batch,
    leaves, v).
    """
    return choices(law, uniforms(streams(keys, len(law), stream), law.shape[1]))
