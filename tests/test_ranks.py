"""`uturn.ranks`: ranks against a plain loop, p-values of exact draws, bands for all tests at
once.
"""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, kstest

import uturn as ut
from uturn.measures.ranks import band

CLONES = 4


def test_p_values_of_exact_draws_are_uniform():
    """200 experiments of 50 items along the noise axis. Kolmogorov-Smirnov with a false-alarm
    rate of .001 each, seven tests.
    """
    h = np.random.default_rng(0).standard_normal((200, 50, 1, 1 + CLONES, 3))
    arrays = {f"h{k}": h[..., 1:, k] for k in range(3)} | {
        f"original_h{k}": h[..., 0, k] for k in range(3)
    }
    run = ut.readings(arrays, np.arange(1.0, 201))
    means = ut.calibration(run, "h0", level=0.5).p.values
    assert kstest(means, "uniform").pvalue > 1e-3
    for k in range(3):  # the statistic of ranks is discrete: P(p <= a) <= a
        p = ut.ranks(run, f"h{k}", level=0.5).p.values.astype(float)
        assert kstest(p, "uniform", alternative="greater").pvalue > 1e-3
    wrong = ut.readings({"h": 0.7 * h[..., 1:, 0], "original_h": h[..., 0, 0]}, np.arange(1.0, 201))
    assert kstest(ut.ranks(wrong, "h").p.values, "uniform", alternative="greater").pvalue < 1e-6


def test_ranks_are_their_definition():
    """Counts and differences by loops, the p-value by enumeration of all ranks of four items
    among two clones.
    """
    rng = np.random.default_rng(3)
    h = rng.integers(0, 6, (1, 40, 1, 1 + CLONES)).astype(float)  # with ties
    run = ut.readings({"h": h[..., 1:], "original_h": h[..., 0]}, [1.0])
    found = ut.ranks(run, "h")
    least = (h[..., 1:] < h[..., :1]).sum(-1).ravel()
    most = least + (h[..., 1:] == h[..., :1]).sum(-1).ravel()
    again = ut.ranks(run, "h", seed=1)
    for some in (found, again):
        counts = some["count"].values[0]
        cumulated = np.cumsum(counts)[:-1]
        assert counts.sum() == 40
        assert (np.array([(most <= r).sum() for r in range(CLONES)]) <= cumulated).all()
        assert (cumulated <= np.array([(least <= r).sum() for r in range(CLONES)])).all()
        np.testing.assert_allclose(some.difference.values[0], cumulated / 40 - np.arange(1, 5) / 5)
    assert not np.array_equal(found["count"], again["count"])

    equal = ut.ranks(
        ut.readings({"h": np.zeros((1, 400, 1, 4)), "original_h": np.zeros((1, 400, 1))}, [1.0]),
        "h",
    )
    # Random ranks of ties are uniform: 5 standard deviations.
    assert equal["count"].values.min() > 400 / 5 - 5 * 8
    assert equal["count"].values.max() < 400 / 5 + 5 * 8

    def gamma(ranks):
        counts = [sum(rank <= r for rank in ranks) for r in range(2)]
        tails = zip(counts, (1 / 3, 2 / 3), strict=True)
        return min(2 * min(binom.cdf(n, 4, share), binom.sf(n - 1, 4, share)) for n, share in tails)

    everything = np.array([gamma(ranks) for ranks in itertools.product(range(3), repeat=4)])
    x = rng.standard_normal((1, 4, 1, 3))
    ranks = (x[..., 1:] < x[..., :1]).sum(-1).ravel()
    p = ut.ranks(ut.readings({"h": x[..., 1:], "original_h": x[..., 0]}, [1.0]), "h").p.item()
    assert p == pytest.approx((everything <= gamma(ranks) * (1 + 1e-9)).mean())


def test_the_band_holds_all_ranks_at_once():
    """20,000 draws of uniform ranks: a standard error of .0015."""
    low, high = band(60, 9, 0.05)
    counts = (
        np.random.default_rng(0).multinomial(60, np.full(10, 0.1), size=20_000)[:, :-1].cumsum(1)
        / 60
    )
    differences = counts - np.arange(1, 10) / 10
    outside = ((differences < low - 1e-9) | (differences > high + 1e-9)).any(1).mean()
    assert 0.03 < outside < 0.05 + 3 * 0.0016


def test_the_band_counts_all_tests_of_a_call():
    """A call tests two readings at six noise levels. Of 4,000 draws of uniform ranks, .2 leave a
    band of level .2 at most.
    """
    h = np.random.default_rng(1).standard_normal((6, 50, 1, 1 + CLONES, 2))
    arrays = {f"h{k}": h[..., 1:, k] for k in range(2)} | {
        f"original_h{k}": h[..., 0, k] for k in range(2)
    }
    found = ut.ranks(ut.readings(arrays, np.arange(1.0, 7)), ["h0", "h1"], level=0.2)
    counts = np.random.default_rng(2).multinomial(
        50, np.full(CLONES + 1, 1 / (CLONES + 1)), size=(4000, 12)
    )
    differences = counts[..., :-1].cumsum(-1) / 50 - np.arange(1, CLONES + 1) / (CLONES + 1)
    outside = (differences < found.low.values - 1e-9) | (differences > found.high.values + 1e-9)
    assert 0.02 < outside.any((1, 2)).mean() < 0.2 + 3 * 0.0064
