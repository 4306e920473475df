"""Functions that the channels of strings share: checks, two-valued beliefs, draws of symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from uturn.core.checks import checked_array, checked_integer, checked_noise, shown
from uturn.core.protocols import Noisy
from uturn.core.random import streams, uniforms
from uturn.exact.inference.evidence import Evidence


def checked_strings(leaves: Any, noise: Any, vocab_size: int, most: float) -> tuple[np.ndarray, np.ndarray]:
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


def checked_noisy(noisy: Any) -> Noisy:
    """`noisy`, or a ValueError if it is not a `Noisy`."""
    if not isinstance(noisy, Noisy):
        raise ValueError(f"noisy = {shown(noisy)}: expected what corrupt() gives")
    return noisy


def checked_symbols(values: np.ndarray, noise: np.ndarray, least: int, vocab_size: int, channel: Any) -> np.ndarray:
    """Noisy symbols as int64; ValueError unless they are integers least..v-1, and >= 0 where noise = 0."""
    if values.dtype.kind not in "iu" or not bool(((values >= least) & (values < vocab_size)).all()):
        raise ValueError(f"noisy.values are not what {channel!r} makes; expected integers {least}..{vocab_size - 1}")
    if (values[noise == 0] < 0).any():
        raise ValueError(f"noisy.values are not what {channel!r} makes; expected no masked leaf where noise = 0")
    return values.astype(np.int64, copy=False)


def symbol_evidence(channel: Any, noisy: Noisy, this: np.ndarray, other: np.ndarray) -> Evidence:
    """Evidence with the log-evidence `this` (batch,) for an observed symbol, and `other` for the rest."""
    values = checked_symbols(noisy.values, noisy.noise, -1, noisy.vocab_size, channel)
    return Evidence.symbols(values, other.astype(np.float32) - this.astype(np.float32), log_evidence_of(channel, noisy))


def log_evidence_of(channel: Any, noisy: Noisy) -> Callable[[np.ndarray], np.ndarray]:
    """The function that gives the log-evidence of some samples, float32."""
    # It keeps the arrays, not `noisy`, which keeps the function: memory of such a circle is not freed at once.
    values, noise, v = noisy.values, noisy.noise, noisy.vocab_size
    return lambda samples: channel.log_evidence(Noisy(values[samples], noise[samples], v), np.float32)


def two_values(noise: np.ndarray, v: int) -> tuple[np.ndarray, np.ndarray]:
    """Logs of 1 - noise + noise/v and of noise/v."""
    with np.errstate(divide="ignore"):
        return np.log1p(-noise * (v - 1) / v), np.log(noise / v)


def two_valued(same: np.ndarray, noise: np.ndarray, v: int, dtype: Any) -> np.ndarray:
    """Log of the belief 1 - noise + noise/v in the symbol where `same` is True, and noise/v in each other one."""
    this, other = two_values(noise, v)
    return np.where(same, this[:, None, None], other[:, None, None]).astype(dtype or np.float64, copy=False)


def two_valued_bits(noise: Any, v: int) -> np.ndarray:
    """Information of the belief of `two_valued` about a uniformly distributed leaf, in bits."""
    from scipy.special import xlogy

    other = checked_noise(noise, 1) / v
    this = 1 - (v - 1) * other
    return np.log2(v) + (xlogy(this, this) + (v - 1) * xlogy(other, other)) / np.log(2)


def draw_symbols(law: np.ndarray, keys: np.ndarray, stream: int) -> np.ndarray:
    """Independent draws of a symbol for every leaf, int64 (batch, leaves), from weights (batch, leaves, v)."""
    batch, d, v = law.shape
    below = np.cumsum(law, axis=-1, dtype=np.float64)
    height = uniforms(streams(keys, batch, stream), d) * below[..., -1]
    return np.minimum((below <= height[..., None]).sum(-1), v - 1)
