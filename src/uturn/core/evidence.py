"""Evidence about the symbols of strings: what a channel gives to exact inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The forms of evidence. Kernels read messages from below as the form 0.
LOG = 1
SCALED = 2
SYMBOLS = 3

_NO_FACTOR = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Evidence:
    """Evidence about the leaves of a batch of strings, in one of three forms."""

    kind: int
    """LOG, SCALED or SYMBOLS."""
    values: np.ndarray
    """LOG: log-evidence in nats, (batch, leaves, v). SCALED: log-evidence divided by `factor`,
    float32. SYMBOLS: observed symbols, int64 (batch, leaves), or -1 for a leaf about which nothing
    is known."""
    factor: np.ndarray
    """(batch,). SYMBOLS: the log-evidence of any other symbol minus that of the observed one."""
    log: Callable[[np.ndarray], np.ndarray]
    """Log-evidence of some samples, computed only for those that need a larger range of numbers."""

    @classmethod
    def of(
        cls, log_evidence: np.ndarray, log: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Evidence:
        """Evidence from log-evidence, floating point numbers (batch, leaves, v)."""

        def of_samples(samples: np.ndarray) -> np.ndarray:
            return np.asarray(log_evidence[samples])

        return cls(LOG, log_evidence, _NO_FACTOR, log or of_samples)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> np.dtype:
        """Precision of the messages: float64 for log-evidence in float64, otherwise float32."""
        is_double = self.kind == LOG and self.values.dtype == np.float64
        return np.dtype(np.float64 if is_double else np.float32)

    def rows(self, first: int, last: int) -> Evidence:
        """The samples first .. last - 1, in memory order and in the precision of the messages."""
        dtype = None if self.kind == SYMBOLS else self.dtype
        values = np.ascontiguousarray(self.values[first:last], dtype)
        return Evidence(self.kind, values, np.ascontiguousarray(self.factor[first:last]), self.log)
