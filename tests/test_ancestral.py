"""The ancestral step draws from the posterior: known laws, all prediction types and noise
schedules.
"""

from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

import uturn as ut
from test_reverse_diffusion import assert_standard_normal
from tiny_denoiser import PLAIN, chain_of, unet
from uturn.backward.reverse_diffusion import ImageWork, ReverseDiffusion
from uturn.core.random import keys
from uturn.corruption.schedulers import AncestralScheduler, amplitudes, scheduler_like

EULER = diffusers.EulerDiscreteScheduler
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
SCHEDULES = {
    **{
        f"variance-preserving, {kind}": diffusers.DDPMScheduler(
            clip_sample=False, prediction_type=kind
        )
        for kind in ("epsilon", "sample", "v_prediction")
    },
    "cosine": diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    ),
    "stored as PNDM": diffusers.PNDMScheduler(skip_prk_steps=True),
    "flow": FLOW(),
    "flow, shift 3": FLOW(shift=3.0),
    "flow, Heun": diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0),
    "flow by a table": diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
    "EDM": diffusers.EDMEulerScheduler(sigma_max=20.0),
    "EDM, v": diffusers.EDMEulerScheduler(sigma_max=20.0, prediction_type="v_prediction"),
    "continuous": EULER(
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.02,
        sigma_max=20.0,
        prediction_type="v_prediction",
    ),
}


class Exact(torch.nn.Module):
    """The exact prediction for independent pixels N(mean, deviation^2), in the prediction type of a
    scheduler; keeps its inputs.

    `levels`: {timestep: (a, s)}, set by `chain`.
    """

    levels: dict[float, tuple[float, float]]

    def __init__(self, scheduler, mean, deviation=0.0):
        super().__init__()
        self.config, self.mean, self.deviation, self.seen = scheduler.config, mean, deviation, []
        self.is_edm = type(scheduler).__name__.startswith("EDM")
        self.eval()

    def forward(self, given, timestep):
        a, s = self.levels[timestep[0].item()]
        kind, data = (
            self.config.get("prediction_type", "flow_prediction"),
            self.config.get("sigma_data"),
        )
        # Schedulers with a = 1 give the network x / sqrt(sigma^2 + constant).
        noisy = given * np.sqrt(s**2 + (data**2 if self.is_edm else 1)) if a == 1 else given
        self.seen.append((a, s, noisy))
        c = self.deviation**2
        clean = self.mean + a * c / (a**2 * c + s**2) * (noisy - a * self.mean)
        noise, r = (noisy - a * clean) / s, np.hypot(a, s)
        if self.is_edm:  # F of D = c_skip x + c_out F, table 1 of arXiv:2206.00364
            out = (-1 if kind == "v_prediction" else 1) * s * data / np.hypot(s, data)
            return (clean - data**2 / (s**2 + data**2) * noisy) / out
        return {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": (a * noise - s * clean) / r,
            "flow_prediction": noise - clean,
        }[kind]


def chain(stored, steps, mean, deviation=0.0, name="ancestral"):
    model: Any = Exact(stored, mean, deviation)
    reverse = chain_of(model, scheduler_like(stored, name), steps)
    times = reverse.forward.scheduler.timesteps
    a, s = amplitudes(reverse.forward.scheduler, times)
    model.levels = {t: (float(x), float(y)) for t, x, y in zip(times.tolist(), a, s, strict=True)}
    return reverse


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_image_is_found_from_every_step_along_the_forward_process(name):
    """Data with one image: at every step x_t has the law q(x_t | x_0), and two steps the
    correlation of the forward process.

    All steps k = 1 .. 8 of eight, two tests a level and one a pair: about 110 tests, false alarm
    1e-4 each.
    """
    image = np.linspace(-0.9, 0.9, 4096, dtype=np.float32).reshape(1, 1, 64, 64)
    reverse = chain(SCHEDULES[name], 8, torch.from_numpy(image))
    levels = reverse.forward.noise_levels
    for k in range(1, 9):
        reverse.model.network.seen.clear()
        found = reverse.u_turn(image, k, keys(k, [0]))
        np.testing.assert_allclose(found, image, atol=2e-5)
        noises = [((x.numpy() - a * image) / s).ravel() for a, s, x in reverse.model.network.seen]
        sigmas = [s / a if a else np.inf for a, s, _ in reverse.model.network.seen]
        np.testing.assert_allclose(sigmas, levels["sigma"][k:0:-1], rtol=1e-4)
        for noise in noises:
            assert_standard_normal(noise, false_alarm=1e-4)
        for (high, before), (low, after) in pairwise(zip(sigmas, noises, strict=True)):
            # x_t is x_t' with more noise: in units of the signal, the noises have the correlation
            # sigma' / sigma.
            z = (np.arctanh(np.corrcoef(before, after)[0, 1]) - np.arctanh(low / high)) * np.sqrt(
                before.size - 3
            )
            assert abs(z) < stats.norm.isf(1e-4 / 2)


MEAN, DEVIATION = 0.1, 0.15


FINE = {  # so many timesteps, and so low a last level of noise, that they do not matter
    "variance-preserving, v_prediction": diffusers.DDPMScheduler(
        num_train_timesteps=10_000,
        beta_start=1e-5,
        beta_end=2e-3,
        clip_sample=False,
        prediction_type="v_prediction",
    ),
    "flow": FLOW(num_train_timesteps=10_000),
    "flow, shift 3": FLOW(num_train_timesteps=10_000, shift=3.0),
    "EDM": diffusers.EDMEulerScheduler(sigma_min=5e-4, sigma_max=20.0),
    "continuous": EULER(
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=5e-4,
        sigma_max=20.0,
        prediction_type="v_prediction",
    ),
}


def errors(stored, steps):
    """Relative errors of mean and variance of x̂_0 given x_t, for Gaussian pixels and every k;
    computed, not drawn.

    A step is x' = c + g x + d xi. g and c follow from two states with the same noise, d from the
    noise itself.
    """
    reverse = chain(stored, steps, MEAN, DEVIATION)
    scheduler = reverse.forward.scheduler
    # Of the steps after this one: x̂_0 = mean + gain x' + noise.
    gain, mean, variance = 1.0, 0.0, 0.0
    found = []
    for k in range(1, steps + 1):
        time = scheduler.timesteps[steps - k]
        states = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1)
        inputs = scheduler.scale_model_input(states, time)
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        c, one = (
            scheduler.step(reverse.model.network(inputs, time.expand(2)), time, states, generators)
            .prev_sample.flatten()
            .tolist()
        )
        other = [torch.Generator().manual_seed(6) for _ in range(2)]
        moved, _ = (
            scheduler.step(reverse.model.network(inputs, time.expand(2)), time, states, other)
            .prev_sample.flatten()
            .tolist()
        )
        xi, xi_other = (
            torch.randn(1, generator=torch.Generator().manual_seed(n), dtype=torch.float64).item()
            for n in (5, 6)
        )
        d = (moved - c) / (xi_other - xi)
        c, g = c - d * xi, one - c
        gain, mean, variance = gain * g, mean + gain * c, variance + gain**2 * d**2
        a, s = reverse.model.network.levels[time.item()]
        total = a**2 * DEVIATION**2 + s**2
        x = a * MEAN + np.sqrt(total)  # one standard deviation above its mean
        exact, deviation = MEAN + a * DEVIATION**2 / np.sqrt(total), DEVIATION * s / np.sqrt(total)
        found.append([(mean + gain * x - exact) / deviation, variance / deviation**2 - 1])
    return np.abs(found)


@pytest.mark.parametrize("name", FINE)
def test_gaussian_pixels_are_drawn_from_the_posterior_to_first_order(name):
    """From steps all over the chain: the mean is exact; the error of the variance halves with
    twice the number of steps.
    """
    coarse, fine = errors(FINE[name], 400)[79::20], errors(FINE[name], 800)[159::40]
    assert fine[:, 0].max() < 1e-6
    assert fine[:, 1].max() < 0.08
    ratio = coarse[:, 1] / fine[:, 1]
    assert 1.7 < ratio.min() < ratio.max() < 2.1, ratio


@pytest.mark.parametrize(
    ("name", "expected"),
    [("flow", 0.14), ("flow, shift 3", 0.28), ("variance-preserving, v_prediction", 0.29)],
)
def test_the_errors_in_the_docs(name, expected):
    """docs/sampler.md: how much too small the variance is with 100 steps, from the whole chain."""
    assert round(float(errors(FINE[name], 100)[-1, 1]), 2) == expected


def residual(stored, steps, step, name="ancestral"):
    """(x̂_0 - E[x_0 | x_t]) / sd[x_0 | x_t], standard normal for draws from the posterior; and
    x_t. 6,272 pixels.
    """
    reverse = chain(stored, steps, MEAN, DEVIATION, name)
    images = np.random.default_rng(0).normal(MEAN, DEVIATION, (2, 1, 56, 56)).astype(np.float32)
    noisy = reverse.corrupt(images, step, keys(0, range(2)))
    sigma = reverse.forward.noise_levels["sigma"][step]
    x = noisy / reverse.forward.noise_levels["signal"][step]
    mean = MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - MEAN)
    deviation = DEVIATION * sigma / np.hypot(DEVIATION, sigma)
    return (reverse.denoise(noisy, step, keys(0, range(2))) - mean) / deviation, noisy


def test_draws_of_a_flow_model_are_from_the_posterior():
    """6,272 pixels, false alarm 1e-3."""
    values, noisy = residual(FINE["flow"], 4000, 1000)
    assert_standard_normal(values, false_alarm=1e-3)
    assert abs(np.corrcoef(values.ravel(), noisy.ravel())[0, 1]) * np.sqrt(
        values.size
    ) < stats.norm.isf(1e-3 / 2)


@pytest.mark.parametrize("steps", [20, 400])
def test_all_of_the_noise_anew_shrinks_the_data(steps):
    """docs/sampler.md: the step of flow matching with stochastic sampling keeps less than half
    of the variance.
    """
    reverse = chain(FLOW(stochastic_sampling=True), steps, MEAN, DEVIATION, "stored")
    images = np.random.default_rng(0).normal(MEAN, DEVIATION, (2, 1, 56, 56)).astype(np.float32)
    assert reverse.u_turn(images, steps * 3 // 5, keys(0, range(2))).var() < 0.5 * DEVIATION**2


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_stored_steps_of_flow_matching_do_not(stochastic):
    """The negative controls: no noise, and all of it anew."""
    values, _ = residual(FLOW(stochastic_sampling=stochastic), 1000, 500, "stored")
    with pytest.raises(AssertionError):
        assert_standard_normal(values, false_alarm=1e-3)


# --- networks -------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Depends on all pixels of an image and on its timestep."""

    def forward(self, noisy, timestep):
        return torch.tanh(noisy) * (
            0.2 + timestep.to(noisy).view(-1, 1, 1, 1) / 1000
        ) + 0.1 * noisy.mean((1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (6, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"clip_sample": True}, None),
        ({"thresholding": True, "clip_sample": False}, None),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "trailing"),
        ({"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, "leading"),
    ],
)
def test_it_is_ddpm_in_the_variance_preserving_process(images, options, spacing):
    """Same keys, same numbers, with the fixed small variance; whatever scheduler the same
    schedule is stored as.
    """
    stored = diffusers.DDPMScheduler(**options)
    streams = keys(0, range(6))
    ddpm = chain_of(Network().eval(), stored, 13, timestep_spacing=spacing)
    for like in (stored, scheduler_like(stored, "ddim")):
        one = chain_of(
            Network().eval(), scheduler_like(like, "ancestral"), 13, timestep_spacing=spacing
        )
        np.testing.assert_array_equal(
            one.forward.noise_levels["timestep"], ddpm.forward.noise_levels["timestep"]
        )
        for step in (1, 2, 7, 13):
            expected = ddpm.u_turn(images, step, streams)
            np.testing.assert_allclose(one.u_turn(images, step, streams), expected, atol=2e-4)
    other = chain_of(Network().eval(), scheduler_like(stored, "ddim"), 10)
    assert np.abs(other.u_turn(images, 7, streams) - ddpm.u_turn(images, 5, streams)).max() > 0.01


def test_a_flow_matching_folder(images, tmp_path):
    """From the files of diffusers: the levels of the stored scheduler, noise by key, and the
    queue equal to single calls.
    """
    network = unet(block_out_channels=(4,), norm_num_groups=2, add_attention=False, **PLAIN)
    pipeline: Any = diffusers.DDPMPipeline(network, FLOW(shift=3.0))
    pipeline.save_pretrained(tmp_path)
    reverse = ReverseDiffusion.from_pretrained(tmp_path, "ancestral", 10, batch_size=5)
    stored = ReverseDiffusion.from_pretrained(tmp_path, "stored", 10)
    assert reverse.is_stochastic
    assert not stored.is_stochastic
    assert reverse.fingerprint() != stored.fingerprint()
    for name, values in stored.forward.noise_levels.items():
        np.testing.assert_array_equal(reverse.forward.noise_levels[name], values)
    streams, steps = keys(0, range(6)), (10, 6, 1, 0)
    alone = {
        (k, i): reverse.u_turn(images[i : i + 1], k, streams[i : i + 1])[0]
        for k in steps
        for i in range(6)
    }
    work = [
        ImageWork(reverse.corrupt(images, k, streams)[i], k, streams[i], name=(k, i))
        for k in steps
        for i in range(6)
    ]
    queued = dict(reverse.queue(work))
    assert queued.keys() == alone.keys()
    for place, one in alone.items():
        np.testing.assert_allclose(queued[place], one, atol=2e-5)
    assert np.array_equal(queued[0, 3], images[3])
    assert (
        np.abs(
            alone[6, 0]
            - reverse.denoise(reverse.corrupt(images, 6, streams), 6, keys(1, range(6)))[0]
        ).max()
        > 0.01
    )


def test_learned_variances_are_left_out(images):
    class WithVariance(torch.nn.Module):
        def forward(self, noisy, timestep):
            return torch.cat([0.5 * noisy, torch.full_like(noisy, 7.0)], dim=1)

    class Half(torch.nn.Module):
        def forward(self, noisy, timestep):
            return 0.5 * noisy

    learned = scheduler_like(diffusers.DDPMScheduler(variance_type="learned_range"), "ancestral")
    fixed = scheduler_like(diffusers.DDPMScheduler(), "ancestral")
    found, expected = (
        chain_of(model.eval(), scheduler, 10).u_turn(images, 6, keys(0, range(6)))
        for model, scheduler in ((WithVariance(), learned), (Half(), fixed))
    )
    np.testing.assert_array_equal(found, expected)


# --- the exact score ------------------------------------------------------------------------------


def calibrated(scheduler):
    """Smallest p-value by Holm of E f(x0, x̂) = E f(x̂, x̂') over levels of noise and of the
    tree.
    """
    experiment = ut.Experiment.from_dict(
        {
            "items": 192,
            "clones": 2,
            "source": {
                "type": "rhm",
                "vocab_size": 4,
                "multiplicity": 2,
                "branching": 2,
                "depth": 2,
            },
            "corruption": {"type": "diffusion", "noise": [0.4, 0.6]},
            "backward": {"type": "score", "scheduler": scheduler, "steps": 60},
            "probes": [{"type": "parsed_levels"}],
        }
    )
    return float(ut.calibration(ut.run(experiment, workers=1), "parsed").p_holm.min())


def test_original_and_reconstruction_are_exchangeable():
    """Calibration with the exact score on flow-matching paths; false alarm 1e-3. Without noise
    it fails.
    """
    assert calibrated("flow_match_ancestral") > 1e-3
    assert calibrated("flow_match") < 1e-4


# --- errors ---------------------------------------------------------------------------------------


def test_ddpm_is_the_ancestral_step_for_flow_matching():
    assert isinstance(scheduler_like(FLOW(), "ddpm"), AncestralScheduler)
