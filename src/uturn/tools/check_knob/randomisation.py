"""Randomisation tests: how often random relabellings of the data reach what was observed.

The smallest p-value is 1 / (draws + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9
_AT_ONCE = 500
"""Permutations of the knob that are in memory together."""


@dataclass(frozen=True)
class Largest:
    """The largest of several statistics, each in units of its relabellings."""

    p: float
    index: int
    """Which statistic it is."""


@dataclass(frozen=True)
class Relabellings:
    """Random relabellings of one test."""

    draws: int
    generator: np.random.Generator

    def sign_flips(self, values: np.ndarray) -> np.ndarray:
        """p-values that the mean of each column of `values` (original, column) is at most 0,
        adjusted for the number of columns by the largest statistic (Westfall and Young 1993).

        The sign of all numbers of an original is drawn again. This is exact where they are
        symmetric about 0, or below. Columns are scaled to mean square 1, which flips keep, so that
        means order as Student's t does.
        """
        size = np.sqrt((values**2).mean(0))
        scaled = values / np.where(size > 0, size, 1)
        signs = self.generator.choice([-1.0, 1.0], (self.draws, len(values)))
        largest = np.sort((signs @ scaled / len(values)).max(1))
        reached = self.draws - np.searchsorted(largest, scaled.mean(0) - _ROUNDING)
        return np.asarray((1 + reached) / (self.draws + 1))

    def matchings(self, distances: np.ndarray, labels: np.ndarray) -> Largest:
        """p-value that outputs are no closer to their own original than to others with its label,
        from permutations of originals. It is exact.

        `distances` (kind, output, original); `labels` (original,).
        """
        total = np.zeros((len(distances), self.draws))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            order = np.argsort(self.generator.random((self.draws, len(members))), axis=1)
            total += distances[:, members, members[order]].sum(2)
        own = np.trace(distances, axis1=1, axis2=2)
        return self._largest(-own, -total)

    def swaps(self, gains: np.ndarray) -> Largest:
        """p-value that outputs of two originals are no closer with one seed than with two, from
        swaps of the two seeds of each original. It is exact.

        `gains` (kind, original, original): distances with two seeds less those with one.
        """
        signs = self.generator.choice([-1.0, 1.0], (self.draws, gains.shape[1]))
        drawn = np.stack([((signs @ gain) * signs).sum(1) for gain in gains])
        return self._largest(gains.sum((1, 2)), drawn)

    def permuted_knob(self, changes: np.ndarray) -> float:
        """p-value that changes (knob, draw) do not depend on the knob, from permutations of its
        values in each column. It is exact. The statistic is the variance of the mean change.
        """
        observed = changes.mean(1).var() - _ROUNDING**2
        reached = 0
        for begin in range(0, self.draws, _AT_ONCE):
            count = min(_AT_ONCE, self.draws - begin)
            copies = np.broadcast_to(changes, (count, *changes.shape))
            drawn = self.generator.permuted(copies, axis=1)
            reached += int((drawn.mean(2).var(1) >= observed).sum())
        return (1 + reached) / (self.draws + 1)

    def _largest(self, observed: np.ndarray, drawn: np.ndarray) -> Largest:
        """p-value of the largest of several statistics, (statistic,) and (statistic, draw)."""
        centre = drawn.mean(1)
        size = drawn.std(1) + 1e-12
        z = (observed - centre) / size
        highest = ((drawn.T - centre) / size).max(1)
        reached = int((highest >= z.max() - _ROUNDING).sum())
        return Largest((1 + reached) / (self.draws + 1), int(np.argmax(z)))
