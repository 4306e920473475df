"""Random relabellings of the exact test of calibration: how often a mean gap is as large as the
observed one.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from uturn.core.random import fold, philox

MARGIN = 1e-6  # mean gaps that are equal up to the rounding of float32 readings count as ties
_BLOCK = 1000  # relabellings in one piece of work of a thread
# Relabellings before the first look, and their growth from look to look.
_FIRST, _GROWTH = 10_000, 10
_ENOUGH = 100  # hits after which a test ends: they determine its p-value within 10 %
_ROWS = 256  # sums of the gaps of some items that are formed beforehand
_IMPROBABLE = 0.01  # expected number of hits below which none are counted


def p_values(gaps: np.ndarray, relabellings: int, key: int) -> np.ndarray:
    """`(1 + number of |G*| >= |G|) / (number of relabellings + 1)` for every test, float64
    (tests,).

    Two shortcuts avoid most of the work, and P(p <= a) <= a still holds for exact draws:

    - The relabellings of a test end early once 100 of them have reached |G| (looks after 10,000,
      100,000, ..), as proposed by Besag and Clifford (Biometrika 78, 301, 1991).
    - Where none has reached |G| at the first look, and Chernoff's bound on the probability of |G*|
      >= |G| proves that fewer than 0.01 hits are expected among all relabellings, no more are
      drawn: p = 1 / (relabellings + 1), which is above the bound.

    `gaps` (items, K + 1, tests): `uturn.measures.calibration.exchanged_gaps`. `relabellings`:
    largest number B for a test. `key`: random stream of the relabellings, which are the same for
    all tests.
    """
    items = len(gaps)
    least = (np.abs(gaps[:, 0].mean(axis=0)) - MARGIN) * items
    active = np.arange(gaps.shape[2])
    p, hits, done = np.empty(len(active)), np.zeros(len(active), np.int64), 0
    while len(active):
        number = min(relabellings, max(_FIRST, _GROWTH * done))
        counted = np.zeros((-(-(number - done) // _BLOCK), len(active)), np.int64)
        _relabel(
            combined(gaps[:, :, active]),
            np.uint64(key),
            done,
            number,
            least[active].astype(np.float32),
            counted,
        )
        hits, done = hits + counted.sum(axis=0), number
        p[active] = (1 + hits) / (done + 1)
        going_on = (hits < _ENOUGH) & (done < relabellings)
        if done == _FIRST and going_on.any():
            hopeless = log_bound(gaps[:, :, active], least[active]) + np.log(relabellings) < np.log(
                _IMPROBABLE
            )
            hopeless &= going_on & (hits == 0)
            p[active[hopeless]] = 1 / (relabellings + 1)
            going_on &= ~hopeless
        active, hits = active[going_on], hits[going_on]
    return p


def combined(gaps: np.ndarray) -> np.ndarray:
    """Sums of gaps over groups of items, for every choice of their labels: float32 (groups,
    choices, tests).

    Drawing one of the choices for every group is drawing a label for every item. Items without gaps
    fill the last group.
    """
    items, size, tests = gaps.shape
    together = int(np.log(_ROWS) / np.log(size)) or 1
    filled = np.concatenate([gaps, np.zeros((-items % together, size, tests))])
    sums = filled[::together]
    for k in range(1, together):
        sums = (sums[:, :, None] + filled[k::together][:, None]).reshape(len(sums), -1, tests)
    return np.ascontiguousarray(sums, np.float32)


def log_bound(gaps: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Logarithm of an upper bound on P(|sum over items of g*| >= least), (tests,).

    By Chernoff, `P(S >= a) <= exp(-u a) prod_i mean_j exp(u g_ij)` for every u >= 0; the bounds of
    both signs are added, each the smallest of 40 values of u.
    """
    spread = np.sqrt((gaps**2).mean(axis=1).sum(axis=0)) + 1e-300
    bounds = np.full((2, len(least)), np.inf)
    for strength in np.geomspace(1, 100, 40):
        u = strength / spread
        for row, sign in enumerate((1, -1)):
            exponents = sign * u * gaps
            top = exponents.max(axis=1)
            moments = top + np.log(np.exp(exponents - top[:, None]).mean(axis=1))
            bounds[row] = np.minimum(bounds[row], moments.sum(axis=0) - u * least)
    return np.where(least > 0, np.minimum(np.logaddexp(*bounds), 0), 0)


@njit(parallel=True, cache=True)
def _relabel(sums, key, first, last, least, hits):
    """Counts hits of relabellings number first .. last - 1, block by block."""
    groups, choices, tests = sums.shape
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for block in prange(len(hits)):
        total = np.empty(tests, np.float32)
        words = np.empty(4, np.uint64)
        start = first + block * _BLOCK
        for number in range(start, min(start + _BLOCK, last)):
            stream = fold(key, np.uint64(number))
            total[:] = 0
            for i in range(groups):
                if i % 4 == 0:  # one Philox call gives four uniform words of 32 bits
                    a, b = philox(stream, np.uint64(i // 4))
                    words[0], words[1], words[2], words[3] = (
                        a & low,
                        a >> shift,
                        b & low,
                        b >> shift,
                    )
                j = (words[i % 4] * np.uint64(choices)) >> shift
                for k in range(tests):
                    total[k] += sums[i, j, k]
            for k in range(tests):
                if abs(total[k]) >= least[k]:
                    hits[block, k] += 1
