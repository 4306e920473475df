"""Cloning probabilities, speciation and collapse against direct computations."""

import numpy as np
import pytest

import uturn as ut
from uturn.measures import cloning


def test_cloning_probability_of_a_mixture_is_that_of_its_posterior():
    """Two draws of the mode from exact responsibilities, 40,000 noisy data: within 4.5 standard
    errors (1e-5 each).
    """
    law = ut.laws.GaussianMixture(ut.laws.simplex(2, 8, 5.0), variance=0.7)
    drawn = law.sample(40_000, seed=1).values
    for t in (0.3, 1.0, 1.8):
        r = law.responsibilities(law.diffuse(drawn, t, seed=2), t)
        same = (r**2).sum(axis=1)
        expected = cloning.mixture_cloning_probability(t, squared_distance=25.0, variance=0.7)
        assert abs(same.mean() - expected) < 4.5 * same.std() / 200
    assert cloning.mixture_cloning_probability([np.inf, 0.0], 1e4) == pytest.approx(
        [0.5, 1.0], abs=1e-12
    )


def test_a_run_measures_the_formula():
    one = ut.Experiment.from_dict(
        {
            "items": 2000,
            "clones": 2,
            "chunk": 500,
            "source": {
                "type": "gaussian_mixture",
                "dimension": 64,
                "num_modes": 2,
                "separation": 1.25,
            },
            "corruption": {"type": "gaussian", "noise": [1.0, 1.8, 2.6]},
            "backward": {"type": "exact"},
            "probes": [{"type": "scales"}],
        }
    )
    phi = cloning.cloning_probability(ut.run(one).clone_same_label)
    assert phi.dims == ("noise", "estimate")
    expected = cloning.mixture_cloning_probability([1.0, 1.8, 2.6], 100.0)
    error = np.sqrt(expected * (1 - expected) / 2000)
    assert (np.abs(phi.sel(estimate="value") - expected) < 4.5 * error).all()
    assert (phi.sel(estimate="low") < phi.sel(estimate="high"))[1:].all()


def test_eigenvalues_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 3, 4)) @ rng.normal(size=(4, 4))
    expected = np.linalg.eigvalsh(np.cov(data.reshape(50, 12).T))[::-1]
    assert np.allclose(cloning.covariance_eigenvalues(data), expected)
    assert cloning.largest_eigenvalue(data) == pytest.approx(expected[0])
    few = cloning.covariance_eigenvalues(data[:5])
    assert few.shape == (4,)
    assert few.sum() == pytest.approx(np.cov(data[:5].reshape(5, 12).T).trace())


def test_speciation_and_collapse_times():
    assert cloning.speciation_time(np.e**2) == pytest.approx(1)
    assert cloning.speciation_time(0.5) == 0
    for d, n, variance in ((10, 100, 1.0), (784, 60_000, 0.3), (3, 10**6, 5.0)):
        expected = 0.5 * np.log1p(variance / (n ** (2 / d) - 1))
        assert cloning.collapse_time(np.full(d, variance), n) == pytest.approx(expected, rel=1e-9)
    values = np.array([3.0, 1.0, 0.1, 0.0])
    t = cloning.collapse_time(values, 50)
    assert 0.5 * np.log1p(values / np.expm1(2 * t)).sum() == pytest.approx(np.log(50))


def test_recall_is_the_posterior_of_the_data():
    data = np.random.default_rng(0).normal(size=(20, 5))
    found = cloning.recall_probability(data, [1e-3, 0.5, 20.0], observations=40)
    assert found.shape == (3, 40)
    assert np.allclose(found[0], 1)
    assert np.allclose(found[2], 1 / 20)
    # As a mixture of narrow Gaussians: its responsibilities, at the same noisy data.
    law = ut.laws.GaussianMixture(data, variance=1e-9)
    keys = ut.random.keys(0, ut.random.Purpose.CALIBRATION, 1, np.arange(40))
    xi = ut.random.normals(keys, 5, np.float64)
    noisy = np.exp(-0.5) * data[np.arange(40) % 20] + np.sqrt(-np.expm1(-1.0)) * xi
    assert np.allclose(found[1], (law.responsibilities(noisy, 0.5) ** 2).sum(axis=1), rtol=1e-6)


def test_images_and_whole_numbers_are_data():
    images = np.random.default_rng(1).integers(0, 9, (12, 2, 3, 3))
    assert cloning.largest_eigenvalue(images) == pytest.approx(
        cloning.largest_eigenvalue(images.reshape(12, -1))
    )
    found, flat = (
        cloning.recall_probability(x, [0.5], observations=9)
        for x in (images, images.reshape(12, -1))
    )
    np.testing.assert_array_equal(found, flat)
    assert cloning.speciation_time(np.int64(4)) == pytest.approx(np.log(2))
    assert cloning.collapse_time([1.0], 10**400) < 1e-300
