"""Gaussian mixtures and fields: closed forms, exchangeability of U-turns, score, spectrum, bad
input.

False alarms: the seeds are fixed; thresholds are 4 standard errors (4.5 and 4.7 where the largest
of many is taken) or p < 1e-4, so that a correct law would fail about one choice of seeds in a
hundred.
"""

import numpy as np
import pytest
from scipy import stats

from uturn.backward import ExactPosterior, UTurns
from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.core.u_turns import u_turn
from uturn.corruption import Gaussian
from uturn.engine.run import run
from uturn.exact.laws import CorrelatedMixture, GaussianMixture, power_law, simplex, wave_numbers
from uturn.probes.scales import Scales
from uturn.sources import GaussianFieldSource, GaussianMixtureSource, RHMSource, Vectors


def lopsided() -> GaussianMixture:
    """Two modes of different weights in three dimensions, different variances."""
    return GaussianMixture(
        [[-1.0, 0.5, 0.0], [1.5, -0.5, 1.0]], weights=[0.3, 0.7], variance=[0.5, 1.0, 2.0]
    )


def small_field() -> GaussianMixture:
    return GaussianMixture(np.zeros((1, 16)), variance=power_law((4, 4), 2), grid=(4, 4))


def dense_log_density(law: GaussianMixture, x: np.ndarray, t: float) -> np.ndarray:
    """The same density by scipy, with full covariance matrices."""
    basis = law.to_basis(np.eye(law.dimension))
    covariance = np.exp(-2 * t) * basis @ np.diag(law.variance) @ basis.T + (
        1 - np.exp(-2 * t)
    ) * np.eye(law.dimension)
    parts = [
        w * stats.multivariate_normal(np.exp(-t) * m, covariance).pdf(x)
        for w, m in zip(law.weights, law.means, strict=True)
    ]
    return np.log(np.sum(parts, axis=0))


def score(law: GaussianMixture, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Gradient of log p(x_t), from the responsibilities."""
    t = np.reshape(t, (-1, 1))
    a, total = np.exp(-t), np.exp(-2 * t) * law.variance - np.expm1(-2 * t)
    mode_means = law.responsibilities(x, t.squeeze()) @ law.to_basis(law.means)
    return law.to_basis((a * mode_means - law.to_basis(x)) / total)


@pytest.mark.parametrize("law", [lopsided(), small_field()])
@pytest.mark.parametrize("t", [0.05, 0.4, 1.5])
def test_responsibilities_give_the_gradient_of_the_log_density(law, t):
    """The oracle has full covariance matrices."""
    h, x = 1e-5, law.diffuse(law.sample(4, seed=3).values, t, seed=4)
    gradient = np.stack(
        [
            (dense_log_density(law, x + h * e, t) - dense_log_density(law, x - h * e, t)) / (2 * h)
            for e in np.eye(law.dimension)
        ],
        axis=1,
    )
    np.testing.assert_allclose(score(law, x, t), gradient, atol=1e-6)


def test_one_mode_is_linear_filtering():
    law = GaussianMixture([[1.0, -2.0]], variance=[0.5, 3.0])
    x, t = np.array([[0.3, 0.7]]), 0.8
    a, c = np.exp(-2 * t), np.array([0.5, 3.0])
    gain = np.sqrt(a) * c / (a * c + 1 - a)
    mean = law.means[0] + gain * (x[0] - np.sqrt(a) * law.means[0])
    drawn = law.sample_posterior(np.repeat(x, 40_000, axis=0), t, seed=5).values
    expected = c * (1 - a) / (a * c + 1 - a)
    assert (np.abs(drawn.mean(0) - mean) < 4 * np.sqrt(expected / 40_000)).all()
    assert (np.abs(drawn.var(0) / expected - 1) < 4 * np.sqrt(2 / 40_000)).all()
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / 200


def exchange_statistics(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """t statistics, over pairs, of antisymmetric functions of (x, y): all vanish if x and y are
    exchangeable.
    """
    functions = [
        *(x - y).T,
        *(x**2 - y**2).T,
        *(x**2 * y - y**2 * x).T,
        *(np.tanh(2 * x) * y - np.tanh(2 * y) * x).T,
        x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1],
    ]
    return np.array([f.mean() / (f.std() / np.sqrt(len(f))) for f in functions])


@pytest.mark.parametrize(
    "law", [lopsided(), GaussianMixture(simplex(3, 4, 3.0), variance=[0.3, 1, 1, 1], grid=(2, 2))]
)
@pytest.mark.parametrize("t", [0.2, 1.0])
def test_original_and_posterior_draw_are_exchangeable(law, t):
    x0 = law.sample(60_000, seed=6).values
    drawn = law.sample_posterior(law.diffuse(x0, t, seed=7), t, seed=8).values
    assert np.abs(exchange_statistics(x0, drawn)).max() < 4.5
    for k in range(law.dimension):  # and the law is kept
        assert stats.ks_2samp(drawn[:, k], law.sample(60_000, seed=9).values[:, k]).pvalue > 1e-4


def test_a_wrong_posterior_is_noticed():
    law, t = lopsided(), 0.5
    x0 = law.sample(60_000, seed=6).values
    observed = law.diffuse(x0, t, seed=7)
    wrong = (
        GaussianMixture(law.means, [0.5, 0.5], law.variance)
        .sample_posterior(observed, t, seed=8)
        .values
    )
    assert np.abs(exchange_statistics(x0, wrong)).max() > 6
    # Tweedie: score = (sqrt(abar) E[x0 | xt] - xt) / (1 - abar). The posterior mean is no draw.
    mean = (observed - np.expm1(-2 * t) * score(law, observed, t)) / np.exp(-t)
    assert np.abs(exchange_statistics(x0, mean)).max() > 6


def test_modes_of_draws_follow_the_responsibilities():
    law = lopsided()
    x = np.repeat([[0.2, 0.1, 0.4]], 50_000, axis=0)
    modes = law.sample_posterior(x, 0.7, seed=10).modes
    p = law.responsibilities(x[:1], 0.7)[0, 1]
    assert 0.2 < p < 0.8
    assert abs(modes.mean() - p) < 4 * np.sqrt(p * (1 - p) / len(x))
    prior = law.sample(50_000, seed=11).modes.mean()
    assert abs(prior - 0.7) < 4 * np.sqrt(0.21 / 50_000)


@pytest.mark.parametrize("law", [lopsided(), small_field()])
def test_limits_of_the_noise(law):
    x0 = law.sample(20_000, seed=12).values
    clean = law.diffuse(x0, 0.0, seed=1)
    np.testing.assert_array_equal(clean, x0)
    np.testing.assert_array_equal(law.sample_posterior(clean, 0.0, seed=2).values, x0)
    lost = law.diffuse(x0, np.inf, seed=3)
    drawn = law.sample_posterior(lost, np.inf, seed=4).values
    correlation = np.corrcoef(x0.T, drawn.T)[: law.dimension, law.dimension :]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)
    np.testing.assert_allclose(
        law.responsibilities(lost, np.inf), np.broadcast_to(law.weights, (20_000, law.num_modes))
    )


def test_far_modes_and_tiny_noise_stay_finite():
    law = GaussianMixture(simplex(5, 50, 1e4), variance=1e-6)
    x0 = law.sample(10, seed=0)
    for t in (1e-12, 1e-3, 5.0):
        observed = law.diffuse(x0.values, t, seed=1)
        assert np.isfinite(law.responsibilities(observed, t)).all()
        np.testing.assert_array_equal(law.sample_posterior(observed, t, seed=2).modes, x0.modes)


def test_numbers_belong_to_keys_not_to_batches():
    law = lopsided()
    from uturn.core.random import keys

    stream = keys(3, np.arange(6))
    whole = law.sample(6, stream).values
    np.testing.assert_array_equal(law.sample(2, stream[2:4]).values, whole[2:4])
    # Noise must be independent of the vector even if sample and diffuse get the same seed.
    x = law.sample(20_000, seed=0).values
    noise = (law.diffuse(x, 1.0, seed=0) - np.exp(-1) * x) / np.sqrt(1 - np.exp(-2))
    assert np.abs(np.corrcoef(x.T, noise.T)[:3, 3:]).max() < 4.5 / np.sqrt(20_000)


@pytest.mark.parametrize("grid", [(8,), (4, 4), (3, 5), (2, 3, 4)])
def test_the_basis_is_orthonormal_and_its_own_inverse(grid):
    law = GaussianMixture(np.zeros((1, int(np.prod(grid)))), grid=grid)
    basis = law.to_basis(np.eye(law.dimension))
    np.testing.assert_allclose(basis @ basis.T, np.eye(law.dimension), atol=1e-12)
    np.testing.assert_allclose(law.to_basis(basis), np.eye(law.dimension), atol=1e-12)


def test_spectrum_of_a_field_is_its_power_law_and_the_field_is_stationary():
    source = GaussianFieldSource(size=16, exponent=3)
    fields = source.law(0).sample(4000, seed=13).values.reshape(-1, 16, 16)
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(0).ravel() / 256
    expected = power_law((16, 16), 3)
    # A mean of 4,000 squares of one or two Gaussians.
    assert np.abs(power / expected - 1).max() < 4.7 * np.sqrt(2 / 4000)
    ratio = expected[wave_numbers((16, 16)) == 4][0] / expected[wave_numbers((16, 16)) == 8][0]
    assert ratio == pytest.approx(8)
    variance = fields.var(0)
    assert variance.mean() == pytest.approx(1, abs=0.03)
    assert np.abs(variance / variance.mean() - 1).max() < 4.7 * np.sqrt(2 / 4000)


def test_simplex_has_equal_distances_around_the_origin():
    means = simplex(5, 30, 7.0, seed=2)
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(distances, 7.0)
    np.testing.assert_allclose(means.sum(0), 0, atol=1e-12)
    assert np.abs(simplex(5, 30, 7.0, seed=3) - means).max() > 0.1


def vectors(source: dict, noise: list[float], **options) -> Experiment:
    return Experiment.from_dict(
        {
            "items": 40,
            "trajectories": 2,
            "source": source,
            "corruption": {"type": "gaussian", "noise": noise},
            "backward": {"type": "exact"},
            "probes": [{"type": "scales"}],
            **options,
        }
    )


@pytest.mark.parametrize(
    "source", [{"type": "gaussian_mixture", "dimension": 64}, {"type": "gaussian_field", "size": 8}]
)
def test_u_turns_of_vectors_in_an_experiment(source, tmp_path):
    result = run(vectors(source, [0.0, 0.1, np.inf], items=200))
    np.testing.assert_allclose(result.scale_similarity.sel(noise=0), 1, rtol=1e-6)
    assert (result.same_label.sel(noise=0) == 1).all()
    far = result.sel(noise=np.inf)
    assert abs(far.same_label.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)
    assert (np.abs(far.scale_similarity.mean(("item", "trajectory"))) < 4 / np.sqrt(400)).all()
    assert 0.3 < float(result.scale_similarity.sel(noise=0.1).mean()) < 0.99
    assert set(np.unique(result.label)) == {0, 1}
    assert "effective_epsilon" not in result.coords
    np.testing.assert_allclose(result.abar, np.exp(-2 * result.noise))
    other = run(vectors(source, [0.1], items=200, chunk=7), tmp_path / "store")
    np.testing.assert_array_equal(
        other.scale_similarity.isel(noise=0), result.scale_similarity.sel(noise=0.1)
    )


def test_scales_of_a_field_are_kept_as_linear_filtering_says():
    source = GaussianFieldSource(size=16, exponent=2)
    result = run(vectors({"type": "gaussian_field", "size": 16}, [0.3], items=300))
    a, power = np.exp(-0.6), power_law((16, 16), 2)
    # Correlation of original and posterior draw, component by component.
    kept = a * power / (a * power + 1 - a)
    for scale, chosen in source.scales().items():
        values = result.scale_similarity.sel(scale=scale, noise=0.3)
        expected = (kept * power)[chosen].sum() / power[chosen].sum()
        error = float(values.mean("trajectory").std() / np.sqrt(300))
        # The mean of a ratio is not the ratio of means in scales of few components.
        assert abs(float(values.mean()) - expected) < 4 * error + 0.5 / chosen.sum()


def test_the_deterministic_identity_holds_bit_for_bit():
    source = GaussianFieldSource(size=8)
    originals = next(source.blocks(np.arange(5), 0, 5))
    turned = u_turn(
        originals, Gaussian(), ExactPosterior(), 0.0, Streams(0, originals.items, 0.0, range(3))
    )
    np.testing.assert_array_equal(
        turned.reconstructions, np.repeat(originals.values[:, None], 3, axis=1)
    )
    assert originals.data_of(turned.reconstructions).shape == (5, 3, 64)


def test_fresh_vectors_are_no_originals():
    source = GaussianMixtureSource(dimension=8)
    originals, fresh = next(source.blocks(np.arange(5), 0, 5)), source.fresh(np.arange(5), 0)
    assert originals.law is fresh.law
    assert not np.isclose(originals.values, fresh.values).any()


def test_similarity_of_scales_is_taken_around_the_mean():
    class Lopsided:
        def scales(self):
            return {0: np.ones(40, bool)}

        def classify(self, values, law):
            return law.classify(values)

    law = GaussianMixture(np.full((1, 40), 7.0))
    x, y = (law.sample(400, seed=seed).values for seed in (1, 2))
    turns = UTurns(Vectors(np.arange(400), law, x, np.zeros(400, int)), None, y[:, None])
    similarity = Scales().read(turns, Lopsided())["scale_similarity"]
    # Independent draws; around 0 it would be .98.
    assert abs(similarity.mean()) < 4.5 / np.sqrt(400 * 40)


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        (GaussianMixtureSource, {"dimension": 2**20, "num_modes": 100}, "num_modes"),
        (RHMSource, {"vocab_size": 2**20, "multiplicity": 2**9, "depth": 2}, "multiplicity = 512"),
    ],
)
def test_sources_that_do_not_fit_into_memory_are_refused_at_once(source, changes, words):
    sizes = (
        {"vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3}
        if source is RHMSource
        else {}
    )
    with pytest.raises(ValueError, match=words):
        source(**(sizes | changes))


# -- mixtures of one's own -------------------------------------------------------------------------

OWN = {
    "means": [[-70.0, 3.0, 12.0], [-64.0, 5.0, 9.0], [-66.0, -2.0, 15.0]],
    "covariances": [
        [[4.0, 1.5, 0.0], [1.5, 2.0, -0.6], [0.0, -0.6, 1.0]],
        [[0.5, 0.0, 0.3], [0.0, 3.0, 0.0], [0.3, 0.0, 6.0]],
        [[1.0, -0.9, 0.2], [-0.9, 1.2, 0.1], [0.2, 0.1, 0.4]],
    ],
    "weights": [0.5, 0.2, 0.3],
}


def test_log_density_and_share_outside():
    law = GaussianMixture(
        0.5 + simplex(3, 16, 1.0, seed=1), variance=0.1 * power_law((4, 4), 2), grid=(4, 4)
    )
    x = law.sample(4, seed=0).values
    dense = [
        w * stats.multivariate_normal(m, law.covariance).pdf(x)
        for w, m in zip(law.weights, law.means, strict=True)
    ]
    np.testing.assert_allclose(law.log_density(x), np.log(np.sum(dense, axis=0)), atol=1e-9)
    draws = law.sample(4000, seed=1).values
    outside = ((draws < 0) | (draws > 1)).mean(axis=1)
    assert abs(outside.mean() - law.share_outside()) < 4 * outside.std() / np.sqrt(len(draws))


def dense_joint(x: np.ndarray, t: float) -> np.ndarray:
    """w_k p(x_t | mode k) of the mixture above by scipy, (batch, modes)."""
    parts = zip(OWN["weights"], np.array(OWN["means"]), np.array(OWN["covariances"]), strict=True)
    rest = (1 - np.exp(-2 * t)) * np.eye(3)
    return np.stack(
        [
            w * stats.multivariate_normal(np.exp(-t) * m, np.exp(-2 * t) * C + rest).pdf(x)
            for w, m, C in parts
        ],
        axis=1,
    )


def test_covariances_of_ones_own_give_the_formulas_of_dense_matrices():
    law = CorrelatedMixture(**OWN)
    x = law.sample(30, seed=1).values
    for t in (0.0, 0.4):
        noisy = law.diffuse(x, t, seed=2)
        joint = dense_joint(noisy, t)
        np.testing.assert_allclose(
            law.responsibilities(noisy, t), joint / joint.sum(1, keepdims=True), atol=1e-9
        )
    np.testing.assert_allclose(law.log_density(x), np.log(dense_joint(x, 0.0).sum(1)), rtol=1e-9)
    below = [
        stats.norm.cdf((-66 - m[0]) / np.sqrt(C[0][0]))
        for m, C in zip(OWN["means"], OWN["covariances"], strict=True)
    ]
    assert law.share_outside(-66.0, np.inf) == pytest.approx(
        np.dot(OWN["weights"], below) / 3, abs=1e-9
    )


@pytest.mark.parametrize("t", [0.3, 2.0])
def test_original_and_draw_of_ones_own_mixture_are_exchangeable(t):
    """Means and second moments of originals and of draws given x_t, also with x_t; 4.5 standard
    errors.
    """
    law, count = CorrelatedMixture(**OWN), 40_000
    x = law.sample(count, seed=3).values
    noisy = law.diffuse(x, t, seed=4)
    draws = law.sample_posterior(noisy, t, seed=5).values
    for f in (
        lambda a: a,
        lambda a: (a[:, :, None] * a[:, None]).reshape(count, -1),
        lambda a: a * noisy,
        lambda a: law.classify(a)[:, None],
    ):
        differences = f(x) - f(draws)
        assert (np.abs(differences.mean(0)) < 4.5 * differences.std(0) / np.sqrt(count)).all()
    assert np.array_equal(law.sample_posterior(noisy[:9], 0.0).values, noisy[:9])


def test_a_covariance_that_is_diagonal_gives_the_mixture_without_it():
    means, v = np.array([[1.0, 5.0], [3.0, 2.0]]), np.array([0.7, 2.5])
    law, plain = (
        CorrelatedMixture(means, np.diag(v), [0.4, 0.6]),
        GaussianMixture(means, [0.4, 0.6], v),
    )
    x = plain.sample(20, seed=1).values
    np.testing.assert_allclose(law.log_density(x), plain.log_density(x), rtol=1e-12)
    np.testing.assert_allclose(law.power, plain.power, rtol=1e-12)
    np.testing.assert_allclose(law.covariance, plain.covariance)
