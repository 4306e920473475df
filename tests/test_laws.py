"""Laws of the U-turn on grammars small enough to enumerate, with negative controls.

Every statistical test has fixed seeds and a false-alarm rate of 1e-3; the controls must fail it by
orders of magnitude.
"""

import numpy as np
import pytest
from scipy import stats

import uturn as ut
import uturn.core.random
from enumeration import all_trees

CHANNELS = [(ut.Gaussian(), 0.25), (ut.Masking(), 0.5), (ut.UniformReplacement(), 0.4)]
RHM = ut.RandomHierarchyModel(3, 2, 2, 2, seed=4)
COUNT = 20_000


def strings():
    """Enumerated strings and their probabilities."""
    nodes, log_p = all_trees(RHM)
    return nodes[0], np.exp(log_p)


def index_of(leaves):
    codes = 3 ** np.arange(4)
    known = strings()[0] @ codes
    order = np.argsort(known)
    found = order[np.searchsorted(known[order], leaves @ codes)]
    assert np.array_equal(known[found], leaves @ codes)
    return found


def u_turn(corruption, noise, seed=0):
    draw = RHM.sample(COUNT, seed=seed)
    noisy = corruption.corrupt(draw.leaves, noise, vocab_size=3, seed=seed + 1)
    return draw, ut.sample_posterior(RHM, corruption.log_evidence(noisy), seed=seed + 2), noisy


def pair_counts(corruption, noise):
    draw, rebuilt, _ = u_turn(corruption, noise)
    size = len(strings()[0])
    pairs = index_of(draw.leaves) * size + index_of(rebuilt[0])
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def asymmetry(counts):
    """p-value of Bowker's test that (x0, x0_hat) and (x0_hat, x0) have the same law."""
    upper = np.triu_indices(len(counts), 1)
    a, b = counts[upper], counts.T[upper]
    seen = a + b >= 10
    return stats.chi2.sf(((a - b)[seen] ** 2 / (a + b)[seen]).sum(), seen.sum())


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS)
def test_bayesian_channels_keep_the_law_and_are_exchangeable(corruption, noise):
    counts = pair_counts(corruption, noise)
    assert stats.chisquare(counts.sum(0), COUNT * strings()[1]).pvalue > 1e-3
    assert asymmetry(counts) > 1e-3


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS)
def test_noise_is_independent_of_a_string_with_the_same_seed(corruption, noise):
    draw = RHM.sample(COUNT, seed=7)
    noisy = corruption.corrupt(draw.leaves, noise, vocab_size=3, seed=7)
    rebuilt = ut.sample_posterior(RHM, corruption.log_evidence(noisy), seed=7)
    size = len(strings()[0])
    pairs = np.bincount(
        index_of(draw.leaves) * size + index_of(rebuilt[0]), minlength=size**2
    ).reshape(size, size)
    assert stats.chisquare(pairs.sum(0), COUNT * strings()[1]).pvalue > 1e-3
    assert asymmetry(pairs) > 1e-3


def test_the_epsilon_process_does_not_keep_the_law():
    """Negative control: its evidence depends on the original, so the reconstructions follow
    another law.
    """
    assert not ut.EpsilonBelief().is_bayesian
    rhm, epsilon = ut.RandomHierarchyModel(4, 3, 2, 2, seed=1), 0.6
    draw = rhm.sample(200_000, seed=0)
    noisy = ut.EpsilonBelief().corrupt(draw.leaves, epsilon, vocab_size=4)
    rebuilt = ut.sample_posterior(rhm, ut.EpsilonBelief().log_evidence(noisy, np.float32), seed=2)[
        0
    ]
    nodes, log_p = all_trees(rhm)
    codes = 4 ** np.arange(4)
    counts = np.bincount(rebuilt @ codes, minlength=256)[nodes[0] @ codes]
    assert stats.chisquare(counts, counts.sum() * np.exp(log_p)).pvalue < 1e-6


def test_a_wrong_posterior_is_caught():
    """Negative control: using the evidence at twice the noise breaks stationarity or
    exchangeability.
    """
    corruption = ut.UniformReplacement()
    count = 5 * COUNT
    draw = RHM.sample(count, seed=0)
    noisy = corruption.corrupt(draw.leaves, 0.3, vocab_size=3, seed=1)
    wrong = ut.Noisy(noisy.values, 2 * noisy.noise, 3)
    rebuilt = ut.sample_posterior(RHM, corruption.log_evidence(wrong), seed=2)
    size = len(strings()[0])
    pairs = np.bincount(
        index_of(draw.leaves) * size + index_of(rebuilt[0]), minlength=size**2
    ).reshape(size, size)
    assert min(stats.chisquare(pairs.sum(0), count * strings()[1]).pvalue, asymmetry(pairs)) < 1e-6


@pytest.mark.parametrize("corruption", [*(c for c, _ in CHANNELS), ut.EpsilonBelief()])
def test_ends_of_the_noise_axis(corruption):
    draw, rebuilt, _ = u_turn(corruption, 0.0)
    for level, nodes in draw.latents.items():
        assert np.array_equal(rebuilt[level], nodes)  # zero noise: the identity
    end = np.inf if isinstance(corruption, ut.Gaussian) else 1.0
    counts = pair_counts(corruption, end)
    p = strings()[1]
    # Full noise: independence.
    assert stats.chisquare(counts.ravel(), COUNT * np.outer(p, p).ravel()).pvalue > 1e-3


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS)
def test_marginal_at_the_truth_is_the_sum_of_squares(corruption, noise):
    draw, rebuilt, noisy = u_turn(corruption, noise)
    beliefs = ut.infer(RHM, corruption.log_evidence(noisy))
    for level, marginals in beliefs.marginals.items():
        at_truth = np.take_along_axis(marginals, draw.latents[level][..., None], -1)[..., 0].mean(1)
        squares = (marginals**2).sum(-1).mean(1)
        agree = (rebuilt[level] == draw.latents[level]).mean(1)
        for first, second in ((at_truth, squares), (at_truth, agree)):
            gap = first - second
            assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(COUNT)


def test_full_density_gives_independent_leaves():
    """f = 1 and n = v: every string is as likely, so a leaf's posterior depends on its own
    evidence alone, and chi = 1.
    """
    rhm = ut.RandomHierarchyModel(4, 4, 2, 3, seed=0)
    gaussian = ut.Gaussian()
    noisy = gaussian.corrupt(rhm.sample(1, seed=0).leaves, 0.3, vocab_size=4, seed=1)
    evidence = gaussian.log_evidence(noisy, np.float64)
    alone = np.exp(evidence) / np.exp(evidence).sum(-1, keepdims=True)
    assert np.allclose(ut.infer(rhm, evidence).marginals[0], alone, atol=1e-12)
    draws = ut.sample_posterior(rhm, evidence, num_draws=20_000)[0][:, 0]
    sigma = np.where(draws == draws[0], -1.0, 1.0)
    covariance = np.cov(sigma.T)
    off = covariance[np.triu_indices(8, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(20_000)


def test_mean_field_is_belief_propagation_averaged_over_grammars():
    """Within the grammar-to-grammar spread: shifts in ε, not heights at the transition (theory:
    sd .0019 at (32, 8, 2)).
    """
    from uturn.measures.statistics import shift

    grid = np.linspace(0.5, 0.9, 21)
    theory, fine = ut.theory.MeanField(32, 8, 2), np.linspace(0, 1, 2001)
    curves = []
    for seed in range(4):
        rhm = ut.RandomHierarchyModel(32, 8, 2, 7, seed=seed)
        draw = rhm.sample(4, seed=seed)
        levels = []
        for epsilon in grid:
            evidence = ut.EpsilonBelief().log_evidence(
                ut.EpsilonBelief().corrupt(draw.leaves, epsilon, vocab_size=32), np.float32
            )
            marginals = ut.infer(rhm, evidence).marginals
            levels.append(
                [
                    np.take_along_axis(marginals[k], draw.latents[k][..., None], -1).mean()
                    for k in range(8)
                ]
            )
        curves.append(levels)
    mean = np.mean(curves, axis=0)
    lines = theory.curves(fine, 7).marginals
    for level in range(8):
        assert abs(shift(grid, mean[:, level], fine, lines[:, level])) < 0.01
    # Negative control: one more rule.
    wrong = ut.theory.MeanField(32, 9, 2).curves(fine, 7).marginals
    assert abs(shift(grid, mean[:, 7], fine, wrong[:, 7])) > 0.01
