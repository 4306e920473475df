"""U-turns through diffusers' schedulers: index conventions, randomness by image, and the law of
the reconstructions.
"""

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

from tiny_denoiser import chain_of, unet
from uturn.core.random import keys, normals
from uturn.corruption.schedulers import SCHEDULERS, scheduler_like

STOCHASTIC = {"ancestral", "ddpm", "euler_ancestral", "sde_dpm_solver"}
MEAN, DEVIATION = 0.1, 0.15  # of the Gaussian data: six standard deviations fit into [-1, 1]


class GaussianDenoiser(torch.nn.Module):
    """Exact E[noise | x_t] for independent pixels N(MEAN, DEVIATION^2); remembers the timesteps
    it was called with.
    """

    def __init__(self, scheduler) -> None:
        super().__init__()
        abar = getattr(scheduler, "base", scheduler).alphas_cumprod.double().numpy()
        self.sigmas = np.sqrt((1 - abar) / abar)
        self.called = []
        self.eval()

    def forward(self, noisy, timestep):
        assert timestep.shape == (len(noisy),)
        self.called.append(timestep[0].item())
        sigma = np.interp(timestep[0].item(), np.arange(len(self.sigmas)), self.sigmas)
        abar = 1 / (1 + sigma**2)
        return np.sqrt(1 - abar) * (noisy - np.sqrt(abar) * MEAN) / (abar * DEVIATION**2 + 1 - abar)


def make_scheduler(name, **options):
    return scheduler_like(diffusers.DDPMScheduler(clip_sample=False, **options), name)


def make_gaussian(name="ddpm", num_steps=50, **options):
    scheduler = make_scheduler(name)
    return chain_of(GaussianDenoiser(scheduler), scheduler, num_steps, **options)


def make_fine_gaussian(name, num_steps, **options):
    """The same noise levels in ten times as many timesteps: at 1,000, the error of a step shows
    in the variance.
    """
    scheduler = make_scheduler(name, num_train_timesteps=10_000, beta_start=1e-5, beta_end=2e-3)
    return chain_of(GaussianDenoiser(scheduler), scheduler, num_steps, **options)


def gaussian_images(count, size, seed=0):
    pixels = np.random.default_rng(seed).normal(MEAN, DEVIATION, (count, 1, size, size))
    return pixels.astype(np.float32)


@pytest.fixture(scope="module")
def tiny_unet():
    return unet()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (8, 1, 8, 8)).astype(np.float32)


# --- index conventions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_step_zero_is_the_identity(name):
    images = gaussian_images(3, 4)
    backward = make_gaussian(name)
    result = backward.u_turn(images, 0, keys(0, range(3)))
    assert result.tobytes() == images.tobytes()
    assert result is not images
    assert backward.model.network.called == []


@pytest.mark.parametrize(
    "name", [*sorted(SCHEDULERS), "DEISMultistepScheduler", "DPMSolverSinglestepScheduler"]
)
@pytest.mark.parametrize("step", [1, 2, 17, 50])
def test_noised_to_and_denoised_from_the_same_timestep(name, step):
    backward = make_gaussian(name)
    images, streams = gaussian_images(3, 4), keys(0, range(3))
    inputs = []
    hook = backward.model.network.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0].numpy().copy())
    )
    backward.u_turn(np.zeros_like(images), step, streams)
    first_of_zero = inputs[0]
    inputs.clear()
    backward.model.network.called.clear()
    backward.u_turn(images, step, streams)
    hook.remove()
    # The model is called once at each of the last k levels, descending; by Heun's method, twice at
    # all but the first.
    expected = backward.forward.noise_levels["timestep"][step:0:-1]
    if name == "heun":
        expected = np.concatenate([expected[:1], np.repeat(expected[1:], 2)])
    np.testing.assert_array_equal(backward.model.network.called, expected)
    # Its first input has the noise-to-signal ratio which that timestep stands for.
    noise = normals(streams, 16).reshape(images.shape)
    sigma = (first_of_zero / noise).mean() / ((inputs[0] - first_of_zero) / images).mean()
    np.testing.assert_allclose(
        sigma, np.interp(expected[0], np.arange(1000), backward.model.network.sigmas), rtol=1e-3
    )
    np.testing.assert_allclose(sigma, backward.forward.noise_levels["sigma"][step], rtol=1e-3)


def test_levels_follow_the_schedule():
    backward = make_gaussian("ddpm", num_steps=100)
    levels = backward.forward.noise_levels
    abar = backward.model.network.sigmas
    timesteps = levels["timestep"][1:].astype(int)
    assert all(len(values) == 101 for values in levels.values())
    assert levels["timestep"][0] == -1
    assert timesteps[0] == 0
    assert timesteps[-1] == 999
    np.testing.assert_array_equal(levels["t_over_T"], np.arange(101) / 100)
    np.testing.assert_allclose(levels["sigma"][1:], abar[timesteps], rtol=1e-5)
    np.testing.assert_allclose(levels["abar"], 1 / (1 + levels["sigma"] ** 2), rtol=1e-12)
    np.testing.assert_allclose(levels["log_snr"][1:], -2 * np.log(levels["sigma"][1:]), rtol=1e-12)
    assert levels["abar"][0] == 1
    assert levels["sigma"][0] == 0
    assert levels["log_snr"][0] == np.inf


def test_forward_noise_has_the_marginal_law():
    """x_t - a x_0 has standard deviation s: chi-square, false alarm 1e-4."""
    backward = make_gaussian("ddpm")
    images = gaussian_images(4, 64)
    abar = backward.forward.noise_levels["abar"][20]
    noise = (backward.corrupt(images, 20, keys(3, range(4))) - np.sqrt(abar) * images) / np.sqrt(
        1 - abar
    )
    assert_standard_normal(noise, false_alarm=1e-4)


# --- randomness -----------------------------------------------------------------------------------


def test_is_stochastic():
    assert {name for name in SCHEDULERS if make_gaussian(name).is_stochastic} == STOCHASTIC
    assert make_gaussian("ddim", eta=1.0).is_stochastic
    assert not make_gaussian("ddim", eta=0.0).is_stochastic


def test_equal_images_with_different_keys_part():
    backward = make_gaussian("ddpm", num_steps=20)
    twins = np.repeat(gaussian_images(1, 8), 2, axis=0)
    first, second = backward.u_turn(twins, 20, keys(0, range(2)))
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5
    again = backward.u_turn(twins, 20, keys(0, [0, 0]))
    np.testing.assert_array_equal(again[0], again[1])


def test_keys_are_told_apart_by_all_64_bits():
    """torch.Generator keeps 32 bits of a seed; the noisy images still differ."""
    backward = make_gaussian("ddpm", num_steps=20)
    twins = np.repeat(gaussian_images(1, 8), 2, axis=0)
    noisy = backward.corrupt(twins, 20, np.array([5, 5 + 2**32], np.uint64))
    assert np.abs(noisy[0] - noisy[1]).mean() > 0.5


def test_global_random_state_is_left_alone(tiny_unet, images):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    backward = chain_of(tiny_unet, make_scheduler("ddpm"), 5)
    first = backward.u_turn(images, 5, keys(0, range(8)))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, backward.u_turn(images, 5, keys(0, range(8))))


# --- the law of the reconstructions ---------------------------------------------------------------


def assert_standard_normal(values, false_alarm):
    """Mean and variance of independent N(0, 1) numbers; each of the two tests takes half of the
    false-alarm budget.
    """
    n = values.size
    assert abs(values.mean()) * np.sqrt(n) < stats.norm.isf(false_alarm / 4)
    low, high = stats.chi2.ppf([false_alarm / 4, 1 - false_alarm / 4], n - 1)
    assert low < (n - 1) * values.var(ddof=1) < high


def posterior_residual(backward, step, seed=0):
    """(x0_hat - E[x0 | x_t]) / sd[x0 | x_t]: standard normal for a posterior draw."""
    images, streams = gaussian_images(2, 56, seed), keys(seed, range(2))
    abar = backward.forward.noise_levels["abar"][step]
    noisy = backward.corrupt(images, step, streams)
    denominator = abar * DEVIATION**2 + 1 - abar
    mean = MEAN + np.sqrt(abar) * DEVIATION**2 / denominator * (noisy - np.sqrt(abar) * MEAN)
    deviation = DEVIATION * np.sqrt((1 - abar) / denominator)
    return images, noisy, (backward.u_turn(images, step, streams) - mean) / deviation


@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim", 1.0)])
def test_stochastic_reverse_steps_draw_from_the_posterior(name, eta):
    """6,272 pixels, false alarm 1e-3; steps so fine that discretisation stays below the
    statistical error.
    """
    _, noisy, residual = posterior_residual(
        make_fine_gaussian(name, num_steps=10_000, eta=eta), step=2500
    )
    assert_standard_normal(residual, false_alarm=1e-3)
    # A posterior draw is independent of x_t once its mean is taken off.
    assert abs(np.corrcoef(residual.ravel(), noisy.ravel())[0, 1]) * np.sqrt(
        residual.size
    ) < stats.norm.isf(1e-3 / 2)


def test_deterministic_steps_do_not_draw_from_the_posterior():
    """The negative control: DDIM with eta = 0 keeps the law of the data (false alarm 1e-3) but
    not the posterior.
    """
    backward = make_fine_gaussian("ddim", num_steps=10_000)
    images, noisy, residual = posterior_residual(backward, step=2500)
    with pytest.raises(AssertionError):
        assert_standard_normal(residual, false_alarm=1e-3)
    assert abs(np.corrcoef(residual.ravel(), noisy.ravel())[0, 1]) > 0.99  # a function of x_t
    assert_standard_normal(
        (backward.u_turn(images, 2500, keys(0, range(2))) - MEAN) / DEVIATION, false_alarm=1e-3
    )


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_keeps_the_law_of_the_data(name):
    """Within 10 % of the variance with 2,000 steps, a quarter of the way and all of it
    (statistical error 1.8 %).
    """
    backward = make_fine_gaussian(name, num_steps=2000)
    for step in (500, 2000):
        rebuilt = backward.u_turn(gaussian_images(2, 56), step, keys(0, range(2)))
        assert rebuilt.mean() == pytest.approx(MEAN, abs=0.02)
        assert rebuilt.var() == pytest.approx(DEVIATION**2, rel=0.1)


# --- models ---------------------------------------------------------------------------------------


def test_learned_variance_is_used_or_dropped():
    """A model with twice the channels: DDPM with a learned range takes them all, DDIM the first
    half.
    """

    class WithVariance(GaussianDenoiser):
        def forward(self, noisy, timestep):
            return torch.cat(
                [super().forward(noisy, timestep), torch.full_like(noisy, -1.0)], dim=1
            )

    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range")
    images, streams = gaussian_images(2, 8), keys(0, range(2))
    model = WithVariance(scheduler)
    learned = chain_of(model, scheduler, 50).u_turn(images, 30, streams)
    # -1 is the lower end of the range, the variance that DDPM uses by default.
    np.testing.assert_allclose(
        learned, make_gaussian("ddpm").u_turn(images, 30, streams), atol=1e-5
    )
    dropped = chain_of(model, make_scheduler("ddim"), 50).u_turn(images, 30, streams)
    np.testing.assert_allclose(
        dropped, make_gaussian("ddim").u_turn(images, 30, streams), atol=1e-5
    )


def test_fingerprint_tells_models_and_samplers_apart(tiny_unet):
    def fingerprint(name="ddpm", steps=10):
        return chain_of(tiny_unet, make_scheduler(name), steps).fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint("ddim"), fingerprint(steps=20)}) == 3
    with torch.no_grad():
        before = fingerprint()
        tiny_unet.conv_in.bias += 1
        assert fingerprint() != before
        tiny_unet.conv_in.bias -= 1


# --- errors ---------------------------------------------------------------------------------------


def test_ddim_with_uneven_steps_is_refused():
    """DDIM steps by T // N, also if its list of timesteps has other steps."""
    for options in ({"num_steps": 30}, {"num_steps": 10, "timestep_spacing": "linspace"}):
        with pytest.raises(ValueError, match="num_steps that divides 1000"):
            make_gaussian("ddim", **options)
    make_gaussian("ddim", num_steps=10, timestep_spacing="leading")


def test_schedulers_that_cannot_make_u_turns_are_refused():
    with pytest.raises(
        ValueError, match=r"timesteps of PNDMScheduler = .*: expected .* strictly descending"
    ):
        make_gaussian("PNDMScheduler")


def test_a_diverging_model_is_reported(images):
    class Broken(torch.nn.Module):
        def forward(self, noisy, timestep):
            output = torch.zeros_like(noisy)
            output[-1] = torch.nan
            return output

    backward = chain_of(Broken().eval(), make_scheduler("ddpm"), 10, batch_size=4)
    with pytest.raises(ValueError, match=r"images 3 are not finite"):
        backward.u_turn(images, 5, keys(0, range(8)))
