"""The forms in which the compiled kernels read evidence about the leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MESSAGES, LOG, SCALED, SYMBOLS = 0, 1, 2, 3  # what a kernel reads: messages from below, or one of the forms of evidence
_NO_FACTOR = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Evidence:
    """Evidence about the leaves of a batch of strings.

    Attributes
    ----------
    kind : LOG, SCALED or SYMBOLS
    values : array (batch, ...)
        LOG: log-evidence in nats, (batch, leaves, v). SCALED: log-evidence divided by `factor`, float32 (batch, leaves, v).
        SYMBOLS: observed symbols, int64 (batch, leaves), or -1 for a leaf about which nothing is known.
    factor : float32 array (batch,)
        SCALED: see above. SYMBOLS: log-evidence of any other symbol minus that of the observed one, at most 0.
    log : function of an array of sample indices
        Their log-evidence, which is computed only for samples that need a larger range of numbers.
    """

    kind: int
    values: np.ndarray
    factor: np.ndarray
    log: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, log_evidence: np.ndarray, log: Callable[[np.ndarray], np.ndarray] | None = None) -> Evidence:
        """Evidence from log-evidence, floating point numbers (batch, leaves, v)."""
        return cls(LOG, log_evidence, _NO_FACTOR, log or (lambda samples: log_evidence[samples]))

    @classmethod
    def scaled(cls, values: np.ndarray, factor: np.ndarray, log: Callable[[np.ndarray], np.ndarray]) -> Evidence:
        """Evidence `values * factor`."""
        return cls(SCALED, values, factor, log)

    @classmethod
    def symbols(cls, values: np.ndarray, factor: np.ndarray, log: Callable[[np.ndarray], np.ndarray]) -> Evidence:
        """Evidence with one value for the observed symbol of a leaf, and another one for all other symbols."""
        return cls(SYMBOLS, values, factor, log)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> np.dtype:
        """Precision of the messages: float64 for log-evidence in float64, otherwise float32."""
        double = np.dtype(np.float64)
        return double if self.kind == LOG and self.values.dtype == double else np.dtype(np.float32)

    def rows(self, first: int, last: int) -> Evidence:
        """The samples first .. last - 1, in memory order and in the precision of the messages."""
        values = self.values[first:last]
        values = np.ascontiguousarray(values, None if self.kind == SYMBOLS else self.dtype)
        return Evidence(self.kind, values, np.ascontiguousarray(self.factor[first:last]), self.log)
