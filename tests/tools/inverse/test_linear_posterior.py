"""The exact posterior of a linear measurement, and the law's own denoiser, against integration,
autograd and their own laws.

False alarms: the seeds are fixed; the thresholds (p < 1e-3, 4 standard errors) would fail about one
choice of seeds in a hundred.
"""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import uturn as ut
from test_laws_gaussian import OWN
from uturn.core.experiment import Experiment
from uturn.engine.run import run
from uturn.exact.laws import CorrelatedMixture, GaussianMixture, power_law, simplex
from uturn.tools.inverse.linear import LinearPosterior
from uturn.tools.inverse.posteriors import posterior_tests

MEANS = np.array([[-1.0, 0.5], [0.8, -0.2]])
COVARIANCES = np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]])
WEIGHTS = np.array([0.3, 0.7])
SIGMA = 0.4


def field(exponent=2.0, modes=3):
    means = 0.5 + simplex(modes, 16, 1.0, seed=1)
    return GaussianMixture(means, variance=0.1 * power_law((4, 4), exponent), grid=(4, 4))


def posterior_of(law, H, sigma):
    return LinearPosterior(law.means, law.covariance, law.weights, H, sigma**2)


@pytest.mark.parametrize("H", [[[1.0, 0.5]], [[1.0, 0.0], [0.3, 2.0]], np.zeros((0, 2))])
def test_weights_moments_and_density_are_those_of_integration(H):
    H = np.asarray(H, float)
    posterior = LinearPosterior(MEANS, COVARIANCES, WEIGHTS, H, SIGMA**2)
    y = np.array([0.4, -0.3])[: len(H)]
    axis = np.linspace(-6, 6, 601)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    of_modes = [
        w
        * stats.multivariate_normal(m, C).pdf(x)
        * np.exp(-0.5 * ((x @ H.T - y) ** 2).sum(-1) / SIGMA**2)
        for w, m, C in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    ]

    def integral(values):
        return integrate.simpson(integrate.simpson(values, x=axis, axis=0), x=axis, axis=0)

    joint = sum(of_modes)
    total = integral(joint)
    mean = np.array([integral(joint * x[..., i]) for i in range(2)]) / total
    variance = np.array([integral(joint * x[..., i] ** 2) for i in range(2)]) / total - mean**2
    np.testing.assert_allclose(
        posterior.weights(y)[0], [integral(part) / total for part in of_modes], atol=1e-7
    )
    np.testing.assert_allclose(posterior.mean(y)[0], mean, atol=1e-7)
    np.testing.assert_allclose(posterior.variance(y)[0], variance, atol=1e-7)
    at = x[240:361:20, 240:361:20].reshape(-1, 2)
    np.testing.assert_allclose(
        posterior.log_density(at, y),
        np.log(joint[240:361:20, 240:361:20].reshape(-1) / total),
        atol=1e-6,
    )


def test_draws_have_the_moments_and_do_not_depend_on_their_batch():
    posterior = LinearPosterior(MEANS, COVARIANCES, WEIGHTS, [[1.0, 0.5]], SIGMA**2)
    observed = np.full((20_000, 1), 0.4)
    keys = ut.random.keys(3, range(20_000))
    draws = posterior.sample(observed, keys)
    mean, variance = posterior.mean(observed[:1])[0], posterior.variance(observed[:1])[0]
    assert (np.abs(draws.mean(0) - mean) < 4 * np.sqrt(variance / len(draws))).all()
    assert (np.abs(draws.var(0) / variance - 1) < 4 * np.sqrt(2.5 / len(draws))).all()
    np.testing.assert_array_equal(posterior.sample(observed[7:9], keys[7:9]), draws[7:9])


@pytest.mark.parametrize(
    "law",
    [field(), GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], weights=[0.2, 0.8], variance=[0.5, 0.1])],
)
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_denoiser_is_the_posterior_mean_and_tweedies_formula(law, sigma):
    """x + sigma^2 d log p_sigma / dx, by automatic differentiation."""
    d = law.dimension
    noisy = law.sample(5, seed=2).values + sigma
    denoised = law.denoise(torch.from_numpy(noisy), sigma).numpy()
    np.testing.assert_allclose(
        denoised, posterior_of(law, np.eye(d), sigma).mean(noisy), atol=1e-10
    )
    x = torch.from_numpy(noisy).requires_grad_()
    covariance = torch.from_numpy(law.covariance + sigma**2 * np.eye(d))
    parts = [
        np.log(w)
        + torch.distributions.MultivariateNormal(torch.from_numpy(m), covariance).log_prob(x)
        for w, m in zip(law.weights, law.means, strict=True)
    ]
    torch.logsumexp(torch.stack(parts), 0).sum().backward()
    np.testing.assert_allclose(denoised, noisy + sigma**2 * x.grad.numpy(), atol=1e-10)


def test_the_denoiser_keeps_shape_and_type_and_can_be_differentiated():
    law = field()
    images = (
        torch.from_numpy(law.sample(3, seed=0).values).float().reshape(3, 1, 4, 4).requires_grad_()
    )
    levels = torch.tensor([0.1, 0.2, 0.5])
    denoised = law.denoise(images, levels)
    assert denoised.shape == images.shape
    assert denoised.dtype == torch.float32
    alone = law.denoise(images[1:2], 0.2)
    torch.testing.assert_close(denoised[1:2], alone)
    (gradient,) = torch.autograd.grad(denoised.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    torch.testing.assert_close(law.denoise(images, 0.0), images)


def test_the_denoiser_of_a_mixture_of_ones_own_is_the_posterior_mean():
    law = CorrelatedMixture(**OWN)
    x = law.sample(30, seed=1).values
    for sigma in (0.2, 3.0):
        exact = LinearPosterior(
            OWN["means"], OWN["covariances"], OWN["weights"], np.eye(3), sigma**2
        ).mean(x)
        clean = law.denoise(
            torch.from_numpy(x).reshape(30, 1, 1, 3), torch.full((30,), sigma, dtype=torch.float64)
        )
        np.testing.assert_allclose(clean.reshape(30, 3), exact, rtol=1e-9)


@pytest.mark.parametrize("in_files", [True, False])
def test_a_source_of_ones_own_mixture(tmp_path, in_files):
    """Exact draws are calibrated under a linear measurement, in a range far from [0, 1]."""
    table = dict(OWN)
    if in_files:
        for name, values in OWN.items():
            np.save(tmp_path / f"{name}.npy", values)
            table[name] = str(tmp_path / f"{name}.npy")
    spec = {
        "items": 200,
        "clones": 3,
        "source": {"type": "gaussian_mixture", "scale": 2.0, **table},
        "corruption": {"type": "operator", "operator": "boxes", "sigma": 0.5, "noise": [0.4]},
        "backward": {"type": "exact"},
        "probes": [{"type": "posterior"}],
    }
    pytest.importorskip("deepinv")
    ds = run(Experiment.from_dict(spec))
    assert posterior_tests(ds).attrs["passed"]
    source = Experiment.from_dict(spec).parts.source
    values = next(source.blocks(np.arange(200), 0, 200)).values
    assert abs(values[:, 0].mean() + 2 * 67.6) < 1.5
    assert np.bincount(ds.label.values, minlength=3) / 200 == pytest.approx(
        OWN["weights"], abs=0.15
    )
    if in_files:
        first = source.fingerprint()
        np.save(tmp_path / "covariances.npy", 2 * np.array(OWN["covariances"]))
        assert source.fingerprint() != first


def readings_of(law, posterior, H, sigma, items, clones, seed, narrower=1.0):
    """Originals and clones (items, 1 + clones, d), and their log p(y|x) and log p(x), given one
    measurement each.
    """
    x0 = law.sample(items, ut.random.keys(seed, 1, range(items))).values
    noise = ut.random.normals(ut.random.keys(seed, 2, range(items)), len(H), np.float64)
    y = x0 @ H.T + sigma * noise
    many = np.repeat(y, clones, axis=0)
    drawn = posterior.sample(many, ut.random.keys(seed, 3, range(items * clones)))
    drawn = posterior.mean(many) + narrower * (drawn - posterior.mean(many))
    data = np.concatenate([x0[:, None], drawn.reshape(items, clones, -1)], axis=1)
    likelihood = -0.5 * ((data @ H.T - y[:, None]) ** 2).sum(-1) / sigma**2
    prior = law.log_density(data.reshape(-1, law.dimension)).reshape(likelihood.shape)
    return data, likelihood, prior


def p_values(data, *of_one, level=0.01):
    """p of `ut.calibrate` for the distance and for readings of one datum, h(a) + h(b)."""
    distances = np.sqrt(((data[:, :, None] - data[:, None]) ** 2).mean(-1))
    pairs = np.stack([distances, *(h[:, :, None] + h[:, None] for h in of_one)], -1)
    between = pairs[:, 1:, 1:].sum(2) - np.stack(
        [pairs[:, k, k] for k in range(1, pairs.shape[1])], 1
    )
    return ut.calibrate(pairs[:, 0, 1:], between / (pairs.shape[1] - 2), level=level).p_value


def test_p_values_of_exact_draws_are_uniform():
    law, sigma = field(), 0.2
    H = np.random.default_rng(0).normal(size=(5, 16))
    posterior = posterior_of(law, H, sigma)
    p = np.array(
        [
            p_values(*readings_of(law, posterior, H, sigma, 20, 3, seed), level=0.3)
            for seed in range(200)
        ]
    )
    for values in p.T:
        assert stats.kstest(values, "uniform").pvalue > 1e-3
    narrow = [
        p_values(*readings_of(law, posterior, H, sigma, 20, 3, seed, 0.6), level=0.3)
        for seed in range(200)
    ]
    assert stats.kstest(np.array(narrow)[:, 0], "uniform").pvalue < 1e-6


def test_measurements_without_noise():
    law = field()
    H = np.eye(16)[::2]
    y = law.sample(3, seed=4).values[:, ::2]
    draws = posterior_of(law, H, 0.0).sample(y, seed=0)
    np.testing.assert_allclose(draws[:, ::2], y, atol=1e-4)
    assert draws[:, 1::2].std() > 0.05
    with pytest.raises(
        ValueError,
        match=r"the covariance of the 9 measurements is singular; expected noise above 0",
    ):
        posterior_of(law, np.r_[H, H[:1]], 0.0)


def test_a_measurement_of_nothing_leaves_the_prior():
    law = field()
    posterior = posterior_of(law, np.zeros((0, 16)), 0.1)
    x = law.sample(3, seed=0).values
    np.testing.assert_allclose(
        posterior.log_density(x, np.zeros((3, 0))), law.log_density(x), atol=1e-6
    )
    assert posterior.weights(np.zeros((1, 0))) == pytest.approx(law.weights[None])
    with pytest.raises(
        ValueError, match=r"the measurements have shape \(1, 3\); expected \(batch, 0\)"
    ):
        posterior.mean([[1.0, 2.0, 3.0]])
