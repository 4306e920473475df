"""Whether and where a curve rises and falls: paired tests of all pairs of noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from uturn.measures.calibration import holm
from uturn.measures.replicates import Replicates
from uturn.studies.remarks import Kind, Remark

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
    def turn(self) -> Remark | None:
        """A remark on a curve that falls and rises again, or rises and falls again, with where."""
        rises = self.mean[None] > self.mean[:, None]
        is_sure = self.p <= _FALSE_TURNS
        lowest = self._turn(is_sure & ~rises, is_sure & rises, 1)
        if lowest:
            return Remark(
                Kind.SHAPE, "the curve falls from {} to {} and rises again to {}".format(*lowest)
            )
        highest = self._turn(is_sure & rises, is_sure & ~rises, -1)
        if highest:
            return Remark(
                Kind.SHAPE, "the curve rises from {} to {} and falls again to {}".format(*highest)
            )
        return None

    def _turn(self, first: np.ndarray, second: np.ndarray, sign: int) -> list[str]:
        """Three levels in words: before, at and after a turn; empty if there is none.

        `first`, `second`: bool (noise, noise), the pairs of levels between which the curve goes one
        way, and back. `sign`: 1 for a smallest value, -1 for a largest.
        """
        turning = np.flatnonzero(first.any(axis=0) & second.any(axis=1))
        if not len(turning):
            return []
        heights = sign * self.mean
        turn = turning[np.argmin(heights[turning])]
        before = np.flatnonzero(first[:, turn])
        after = np.flatnonzero(second[turn])
        start = before[np.argmax(heights[before])]
        end = after[np.argmax(heights[after])]
        return [f"{self.mean[k]:.3g} at noise {self.noise[k]:.3g}" for k in (start, turn, end)]
