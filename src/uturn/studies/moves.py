"""Whether and where a curve rises and falls: paired tests of all pairs of noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from uturn.measures.calibration import holm
from uturn.measures.replicates import Replicates

_FALSE_TURNS = 0.01  # of curves that only rise, only fall, or do neither
_FALSE_CHANGES = 0.05  # of curves that do not change
_ROUNDING = 1e-9  # of means, relative to the largest of the curve


@dataclass(frozen=True)
class Moves:
    """The differences of a curve between all pairs of noise levels, each tested over originals,
    with p-values of Holm.

    The tests are Student's, two-sided. Readings that differ between two levels by the same amount
    in all originals have no spread; as in a test of signs, G independent groups then have the
    p-value 2^(1-G), and none has a smaller one.
    """

    noise: np.ndarray
    mean: np.ndarray
    p: np.ndarray
    """Of mean[k] - mean[j] at [j, k], 1 unless j < k."""

    @classmethod
    def of(cls, replicates: Replicates, noise: np.ndarray, first: int) -> Moves:
        """`first`: index of the first level that was measured, or whose value is known."""
        mean = replicates.mean[first:]
        deviations = replicates.deviations[:, first:]
        p = np.ones((len(mean), len(mean)))
        j, k = np.triu_indices(len(mean), 1)
        if replicates.groups > 1 and len(j):
            difference = mean[k] - mean[j]
            error = np.sqrt(np.mean((deviations[:, k] - deviations[:, j]) ** 2, axis=0))
            rounding = _ROUNDING * np.nanmax(np.abs(mean), initial=0)
            moved = np.isfinite(difference) & np.isfinite(error) & (np.abs(difference) > rounding)
            t = np.zeros(len(j))
            t[moved] = np.abs(difference[moved]) / np.maximum(error[moved], rounding)
            of_pairs = np.maximum(2 * stdtr(replicates.freedom, -t), 2.0 ** (1 - replicates.groups))
            p[j, k] = holm(np.where(moved, of_pairs, 1.0))
        return cls(noise[first:], mean, p)

    @property
    def changes(self) -> bool:
        """Whether some two levels differ."""
        return bool((self.p <= _FALSE_CHANGES).any())

    @property
    def turn(self) -> str:
        """A remark on a curve that falls and rises again, or rises and falls again, with where;
        "" if it does neither.
        """
        rises = self.mean[None] > self.mean[:, None]
        is_sure = self.p <= _FALSE_TURNS
        for words, first, second, extreme in (
            (("falls", "rises"), is_sure & ~rises, is_sure & rises, 1),
            (("rises", "falls"), is_sure & rises, is_sure & ~rises, -1),
        ):
            turning = np.flatnonzero(first.any(axis=0) & second.any(axis=1))
            if len(turning):
                at = turning[np.argmin(extreme * self.mean[turning])]
                before = np.flatnonzero(first[:, at])
                after = np.flatnonzero(second[at])
                start = before[np.argmax(extreme * self.mean[before])]
                end = after[np.argmax(extreme * self.mean[after])]
                there = f"{words[0]} from {self._level(start)} to {self._level(at)}"
                return f"the curve {there} and {words[1]} again to {self._level(end)}"
        return ""

    def _level(self, k: int) -> str:
        return f"{self.mean[k]:.3g} at noise {self.noise[k]:.3g}"
