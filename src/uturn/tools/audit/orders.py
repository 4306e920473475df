"""Order consistency of a masked model: does the probability of two tokens depend on which of
them is drawn first?
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import expect
from uturn.core.random import choices, streams, uniforms

MASKED = -1  # value of a masked site
Conditionals = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Laws of masked sites, float64 (n, V), of texts (batch, length) at rows (n,) and positions
(n,).
"""


def order_discrepancy(
    conditionals: Conditionals,
    texts: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    seed: int | np.ndarray = 0,
) -> np.ndarray:
    """Log-ratio of the probabilities of two tokens drawn in one order and in the other, float64
    (pairs,), in nats.

    For a text z with masked sites i and j, tokens are drawn in the order i, j: a ~ p_i(. | z), b ~
    p_j(. | z, x_i = a). Then

        D = log p_i(a | z) + log p_j(b | z, x_i = a) - log p_j(b | z) - log p_i(a | z, x_j = b).

    For conditionals of one joint law D is 0 in every draw. Its mean over draws is KL(P_ij ‖ P_ji)
    >= 0, where P_ij is the law of both tokens drawn in the order i, j. Single draws can be
    negative. D is infinite where the other order cannot draw the tokens.

    `conditionals(texts, rows, positions)`: laws p of masked sites, float64 (n, V), of the texts
    int64 (batch, length) the sites `positions` (n,) of the texts `rows` (n,). `texts`: int64
    (pairs, length), symbols 0 .. V - 1, -1 where masked; other negative values are passed on.
    `first`, `second`: int64 (pairs,), the sites i and j, masked and different. `seed`: int, or
    uint64 keys (pairs,). Here what is drawn second from right to left is independent:

    >>> def left_to_right(texts, rows, positions):
    ...     left = np.where(positions > 0, texts[rows, positions - 1], -1)
    ...     return np.where(left[:, None] < 0, 0.5, np.where(left[:, None] == [0, 1], 0.9, 0.1))
    >>> pairs = np.full((2000, 2), -1)
    >>> zeros = np.zeros(2000, int)
    >>> float(order_discrepancy(left_to_right, pairs, zeros, zeros + 1).mean().round(1))  # log 2 - H(.9) = .37
    0.4
    """
    texts = np.asarray(texts, np.int64)
    first = np.asarray(first, np.int64)
    second = np.asarray(second, np.int64)
    rows = np.arange(len(texts))
    bad = (texts[rows, first] != MASKED) | (texts[rows, second] != MASKED) | (first == second)
    expect(
        not bad.any(), "pairs", np.flatnonzero(bad), "two different masked sites (value -1) in each"
    )
    heights = uniforms(streams(seed, len(texts)), 2)

    def revealed(sites: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        after: np.ndarray = texts.copy()
        after[rows, sites] = tokens
        return after

    p_i, p_j = np.split(conditionals(texts, np.r_[rows, rows], np.r_[first, second]), 2)
    a = choices(p_i, heights[:, 0])
    p_j_after = conditionals(revealed(first, a), rows, second)
    b = choices(p_j_after, heights[:, 1])
    p_i_after = conditionals(revealed(second, b), rows, first)
    with np.errstate(divide="ignore"):
        ratio: np.ndarray = (
            np.log(p_i[rows, a])
            + np.log(p_j_after[rows, b])
            - np.log(p_j[rows, b])
            - np.log(p_i_after[rows, a])
        )
    return ratio


def distance_ranges(length: int) -> np.ndarray:
    """Largest distances of the ranges 1, 2, 3 to 4, 5 to 8, .. of two sites of a text."""
    return 2 ** np.arange(max(1, int(np.ceil(np.log2(max(length - 1, 1)))) + 1))


def drawn_pairs(
    masked: np.ndarray, ends: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A random pair of masked sites in each range of distances, with the share of the pairs of the
    text in this range.

    `masked`: bool (texts, length). `ends`: int (ranges,), of `distance_ranges`. `keys`: uint64
    (texts,). Returns `pairs`, int64 (texts, ranges, 2), in random order, -1 where there are none,
    and `shares` of all pairs, float64 (texts, ranges).
    """
    heights = uniforms(keys, len(ends))
    pairs = np.full((len(masked), len(ends), 2), -1)
    shares = np.zeros((len(masked), len(ends)))
    for text, sites in enumerate(map(np.flatnonzero, masked)):
        distances = np.abs(sites[:, None] - sites)
        for k, end in enumerate(ends):
            both = np.argwhere((distances > (end // 2 if k else 0)) & (distances <= end))
            if len(both):
                pairs[text, k] = sites[both[int(heights[text, k] * len(both))]]
                shares[text, k] = len(both) / (distances > 0).sum()
    return pairs, shares
