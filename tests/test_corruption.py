"""Laws of the corruptions: zero noise, full noise, evidence = likelihood of what was drawn."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.special import log_softmax

import uturn as ut
import uturn.core.random

ALL = [ut.Gaussian(), ut.Masking(), ut.UniformReplacement(), ut.EpsilonBelief()]
CHANNELS = ALL[:3]
V = 5
LEAVES = np.random.default_rng(0).integers(0, V, (6, 9))


def full(corruption):
    return np.inf if isinstance(corruption, ut.Gaussian) else 1.0


@pytest.mark.parametrize("corruption", ALL)
def test_zero_noise_shows_the_string(corruption):
    evidence = corruption.log_evidence(corruption.corrupt(LEAVES, 0, vocab_size=V))
    assert evidence.shape == (6, 9, V)
    assert np.array_equal(np.exp(evidence), np.eye(V)[LEAVES])


@pytest.mark.parametrize("corruption", ALL)
def test_full_noise_shows_nothing(corruption):
    evidence = log_softmax(
        corruption.log_evidence(corruption.corrupt(LEAVES, full(corruption), vocab_size=V)), -1
    )
    assert np.allclose(evidence, -np.log(V), atol=1e-6)


@pytest.mark.parametrize("corruption", ALL)
@pytest.mark.parametrize("noise", [1e-300, 1e-30, 1e-9, 1e-3, 0.5, 1.0])
def test_evidence_is_finite_or_minus_infinity(corruption, noise):
    evidence = corruption.log_evidence(corruption.corrupt(LEAVES, noise, vocab_size=V), np.float32)
    assert evidence.dtype == np.float32
    assert not np.isnan(evidence).any()
    assert (evidence.max(-1) > -np.inf).all()
    assert (evidence < np.inf).all()


def test_formulas():
    t = 0.3
    noisy = ut.Gaussian().corrupt(LEAVES, t, vocab_size=V, seed=1)
    abar = np.exp(-2 * t)
    assert noisy.values.dtype == np.float32
    assert np.allclose(
        ut.Gaussian().log_evidence(noisy), noisy.values * np.sqrt(abar) / (1 - abar), rtol=1e-6
    )
    residual = (noisy.values - np.sqrt(abar) * np.eye(V)[LEAVES]) / np.sqrt(1 - abar)
    assert stats.kstest(residual.ravel(), "norm").pvalue > 1e-3
    masked = ut.Masking().corrupt(LEAVES, 0.4, vocab_size=V, seed=1)
    evidence = ut.Masking().log_evidence(masked)
    hidden = masked.values == -1
    assert np.array_equal(masked.values[~hidden], LEAVES[~hidden])
    assert (evidence[hidden] == 0).all()
    assert np.array_equal(np.exp(evidence[~hidden]), np.eye(V)[LEAVES[~hidden]])
    replaced = ut.UniformReplacement().corrupt(LEAVES, 0.4, vocab_size=V, seed=1)
    expected = np.log(0.6 * np.eye(V)[replaced.values] + 0.4 / V)
    assert np.allclose(ut.UniformReplacement().log_evidence(replaced), expected, rtol=1e-13)
    pinned = ut.EpsilonBelief().corrupt(LEAVES, 0.4, vocab_size=V)
    assert np.array_equal(pinned.values, LEAVES)
    assert np.allclose(
        ut.EpsilonBelief().log_evidence(pinned),
        np.log(0.6 * np.eye(V)[LEAVES] + 0.4 / V),
        rtol=1e-13,
    )


@pytest.mark.parametrize("corruption", ALL)
def test_noise_may_differ_between_samples_and_streams_belong_to_samples(corruption):
    noise = np.linspace(0, 0.9, 6)
    together = corruption.corrupt(LEAVES, noise, vocab_size=V, seed=ut.random.keys(3, np.arange(6)))
    assert np.array_equal(together.noise, noise)
    for k in range(6):
        alone = corruption.corrupt(
            LEAVES[k : k + 1], noise[k], vocab_size=V, seed=ut.random.keys(3, [k])
        )
        assert np.array_equal(together.values[k], alone.values[0])
        assert np.array_equal(
            corruption.log_evidence(together)[k], corruption.log_evidence(alone)[0]
        )


@pytest.mark.parametrize("corruption", CHANNELS)
@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_shared_axes_against_monte_carlo(corruption, noise):
    # Uniform leaves, 2e5 of them: beliefs are posteriors of a single leaf; 4 standard errors (false
    # alarm 1e-4).
    leaves = np.random.default_rng(1).integers(0, V, (50, 4000))
    belief = log_softmax(
        corruption.log_evidence(
            corruption.corrupt(leaves, noise, vocab_size=V, seed=2), np.float64
        ),
        -1,
    )
    true = np.take_along_axis(belief, leaves[..., None], -1)
    lost = (1 - np.exp(true)) * V / (V - 1)
    assert abs(lost.mean() - corruption.effective_epsilon(noise, V)) < 4 * lost.std() / np.sqrt(
        lost.size
    )
    bits = (np.log(V) + true) / np.log(2)
    assert abs(bits.mean() - corruption.bits_per_leaf(noise, V)) < 4 * bits.std() / np.sqrt(
        bits.size
    )


@pytest.mark.parametrize("corruption", CHANNELS)
def test_evidence_is_the_likelihood_of_the_observation(corruption):
    """log p(observation | string) = evidence at its symbols + the factor left out."""
    noisy = corruption.corrupt(LEAVES, 0.35, vocab_size=V, seed=5)
    at_truth = np.take_along_axis(corruption.log_evidence(noisy), LEAVES[..., None], -1)[
        ..., 0
    ].sum(1)
    total = at_truth + corruption.log_observation_factor(noisy)
    if isinstance(corruption, ut.Gaussian):
        abar = np.exp(-0.7)
        law = stats.norm(np.sqrt(abar) * np.eye(V)[LEAVES], np.sqrt(1 - abar))
        expected = law.logpdf(noisy.values).sum((1, 2))
    elif isinstance(corruption, ut.Masking):
        expected = np.where(noisy.values < 0, np.log(0.35), np.log(0.65)).sum(1)
    else:
        expected = np.where(noisy.values == LEAVES, np.log(0.65 + 0.35 / V), np.log(0.35 / V)).sum(
            1
        )
    assert np.allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("corruption", ALL)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": np.nan}, "noise = nan"),
        ({"noise": [0.1, 0.2]}, "shape of noise"),
        ({"noise": "much"}, "noise = 'much'"),
        ({"leaves": LEAVES + 1}, r"symbol = \[5\]"),
        ({"leaves": LEAVES.astype(float)}, "float64 of shape"),
    ],
)
def test_bad_input_is_named(corruption, arguments, message):
    with pytest.raises(ValueError, match=message):
        corruption.corrupt(**{"leaves": LEAVES, "noise": 0.5, "vocab_size": V, **arguments})


@pytest.mark.parametrize("t", [0.004, 0.02, 0.07, 0.2, 1.0, 5.0])
def test_gaussian_axes_of_two_symbols(t):
    """With two symbols, belief and information are functions of the difference of the logits,
    which is normal.
    """
    r = 1 / np.expm1(2 * t)

    def mean(f):
        return quad(
            lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * f(r + np.sqrt(2 * r) * x),
            -12,
            12,
            epsabs=1e-13,
            limit=500,
        )[0]

    lost, nats = mean(lambda d: np.exp(-np.logaddexp(0, d))), mean(lambda d: np.logaddexp(0, -d))
    assert ut.Gaussian().effective_epsilon(t, 2) == pytest.approx(2 * lost, abs=1e-8)
    assert ut.Gaussian().bits_per_leaf(t, 2) == pytest.approx(1 - nats / np.log(2), abs=1e-8)


@pytest.mark.parametrize("v", [3, 32, 256])
def test_gaussian_axes_belong_together(v):
    """Information grows with abar/(1 - abar) at half the mean squared error (I-MMSE, Guo, Shamai
    and Verdu 2005).

    Independently of the quadrature of the beliefs: E|x0 - E x0|^2 = 1 - E sum p^2 = 1 - E p(true),
    which effective epsilon has.
    """
    snr = np.linspace(2.0, 14.0, 2001)
    t = 0.5 * np.log1p(1 / snr)
    nats = ut.Gaussian().bits_per_leaf(t, v) * np.log(2)
    error = ut.Gaussian().effective_epsilon(t, v) * (v - 1) / v
    gained = np.trapezoid(error, snr) / 2
    assert nats[-1] - nats[0] == pytest.approx(gained, abs=1e-6)


class Softer(ut.Masking):
    """Masked strings with an evidence of its own; what inference reads must agree with it."""

    def log_evidence(self, noisy, dtype=None):
        return 0.5 * np.maximum(super().log_evidence(noisy, dtype), -4.0)


def test_a_channel_with_its_own_evidence_has_no_other_form_of_it():
    rhm = ut.RandomHierarchyModel(vocab_size=V, multiplicity=2, branching=2, depth=2, seed=0)
    noisy = Softer().corrupt(rhm.sample(6, seed=1).leaves, 0.4, seed=2, vocab_size=V)
    assert np.array_equal(Softer().evidence(noisy), Softer().log_evidence(noisy, np.float32))
    # A class that inherits both has the fast form.
    beliefs = ut.infer(rhm, ut.Masking().evidence(noisy)).marginals
    other = ut.infer(rhm, ut.Masking().log_evidence(noisy, np.float32)).marginals
    for level in beliefs:
        np.testing.assert_allclose(beliefs[level], other[level], atol=1e-6)
