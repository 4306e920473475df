"""Random relabellings of the exact test of calibration: how often a mean gap is as large as the
observed one.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from uturn.core.random import fold, philox

MARGIN = 1e-6
"""Mean gaps that are equal up to the rounding of float32 readings count as ties."""
_BLOCK = 1000
"""Relabellings in one piece of work of a thread."""
_FIRST = 10_000
"""Relabellings before the first look at the hits."""
_GROWTH = 10
"""Growth of the number of relabellings from look to look."""
_ENOUGH = 100
"""Hits after which a test ends: they determine its p-value within 10 %."""
_ROWS = 256
"""Largest number of sums of the gaps of some items that are formed beforehand."""
_IMPROBABLE = 0.01
"""Expected number of hits below which none are counted."""


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
    mean = gaps[:, 0].mean(axis=0)
    least = (np.abs(mean) - MARGIN) * items
    active = np.arange(gaps.shape[2])
    p = np.empty(len(active))
    hits = np.zeros(len(active), np.int64)
    done = 0
    while len(active):
        number = min(relabellings, max(_FIRST, _GROWTH * done))
        hits = hits + _hits(gaps[:, :, active], least[active], key, done, number)
        done = number
        p[active] = (1 + hits) / (done + 1)
        goes_on = (hits < _ENOUGH) & (done < relabellings)
        if done == _FIRST and goes_on.any():
            log_expected = log_bound(gaps[:, :, active], least[active]) + np.log(relabellings)
            is_hopeless = goes_on & (hits == 0) & (log_expected < np.log(_IMPROBABLE))
            p[active[is_hopeless]] = 1 / (relabellings + 1)
            goes_on &= ~is_hopeless
        active = active[goes_on]
        hits = hits[goes_on]
    return p


def _hits(gaps: np.ndarray, least: np.ndarray, key: int, first: int, last: int) -> np.ndarray:
    """Number of the relabellings first .. last - 1 whose sum of gaps reaches `least`, int64
    (tests,).
    """
    blocks = -(-(last - first) // _BLOCK)
    hits = np.zeros((blocks, gaps.shape[2]), np.int64)
    _relabel(combined(gaps), np.uint64(key), first, last, least.astype(np.float32), hits)
    return np.asarray(hits.sum(axis=0))


def combined(gaps: np.ndarray) -> np.ndarray:
    """Sums of gaps over groups of items, for every choice of their labels: float32 (groups,
    choices, tests).

    Drawing one of the choices for every group is drawing a label for every item. Items without gaps
    fill the last group.
    """
    items, labels, tests = gaps.shape
    size = int(np.log(_ROWS) / np.log(labels)) or 1  # items of a group
    filled = np.concatenate([gaps, np.zeros((-items % size, labels, tests))])
    sums = filled[::size]
    for k in range(1, size):
        pairs = sums[:, :, None] + filled[k::size][:, None]
        sums = pairs.reshape(len(sums), -1, tests)
    return np.ascontiguousarray(sums, np.float32)


def log_bound(gaps: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Logarithm of an upper bound on P(|sum over items of g*| >= least), (tests,).

    By Chernoff, `P(S >= a) <= exp(-u a) prod_i mean_j exp(u g_ij)` for every u >= 0; the bounds of
    both signs are added, each the smallest of 40 values of u.
    """
    both = np.logaddexp(_log_bound_above(gaps, least), _log_bound_above(-gaps, least))
    return np.where(least > 0, np.minimum(both, 0), 0)


def _log_bound_above(gaps: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Logarithm of an upper bound on P(sum over items of g* >= least), (tests,)."""
    variances = (gaps**2).mean(axis=1)
    spread = np.sqrt(variances.sum(axis=0)) + 1e-300
    bound = np.full(len(least), np.inf)
    for strength in np.geomspace(1, 100, 40):
        u = strength / spread
        exponents = u * gaps
        largest = exponents.max(axis=1)
        scaled = np.exp(exponents - largest[:, None])
        moments = largest + np.log(scaled.mean(axis=1))
        bound = np.minimum(bound, moments.sum(axis=0) - u * least)
    return bound


@njit(parallel=True, cache=True)
def _relabel(sums, key, first, last, least, hits):
    """Counts hits of relabellings number first .. last - 1, block by block."""
    groups, choices, tests = sums.shape
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
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
                    words[0] = a & low
                    words[1] = a >> shift
                    words[2] = b & low
                    words[3] = b >> shift
                j = (words[i % 4] * np.uint64(choices)) >> shift
                for k in range(tests):
                    total[k] += sums[i, j, k]
            for k in range(tests):
                if abs(total[k]) >= least[k]:
                    hits[block, k] += 1
