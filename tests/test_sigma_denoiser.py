"""A diffusion model as a denoiser of noise of a given standard deviation: it is the model's own
prediction.
"""

import diffusers
import numpy as np
import pytest
import torch

from tiny_denoiser import unet
from uturn.networks import DenoiserModel
from uturn.networks.images.noise_schedule import SigmaDenoiser
from uturn.networks.images.own_denoisers import Conversion
from uturn.networks.images.pretrained import DenoisingNetwork

CPU = torch.device("cpu")


def vp(prediction):
    return diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)


def loaded(scheduler, network=None):
    model = DenoisingNetwork(unet(1) if network is None else network, torch.float32)
    return model, SigmaDenoiser(model, scheduler, CPU)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_it_is_the_prediction_of_diffusers_at_all_levels_of_the_table(prediction):
    """Against `pred_original_sample` of the scheduler, an independent computation."""
    scheduler = vp(prediction)
    model, denoiser = loaded(scheduler)
    timesteps = torch.arange(1000)
    noisy = torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(1000)
    with torch.inference_mode():
        output = model(noisy, timesteps)
        clean = torch.cat(
            [
                scheduler.step(output[t][None], t, noisy[t][None]).pred_original_sample
                for t in timesteps
            ]
        )
        abar = scheduler.alphas_cumprod.double().view(-1, 1, 1, 1)
        sigma = ((1 - abar) / abar).sqrt() / 2
        ours = denoiser((noisy / abar.sqrt() + 1) / 2, sigma)
    scale = clean.abs().flatten(1).amax(1).clamp(min=1).view(-1, 1, 1, 1)
    assert float(((2 * ours - 1 - clean) / scale).abs().max()) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_it_is_the_prediction_of_a_flow_at_all_levels_of_the_table(shift):
    """x_0 = x_t - s (n - x_0), with the levels and timesteps of diffusers."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    model, denoiser = loaded(scheduler)
    # The first is pure noise.
    s, timesteps = scheduler.sigmas.double().view(-1, 1, 1, 1)[1:], scheduler.timesteps[1:]
    noisy = torch.randn(len(s), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clean = noisy - s * model(noisy, timesteps)
        ours = denoiser((noisy / (1 - s) + 1) / 2, s / (1 - s) / 2)
    assert float((2 * ours - 1 - clean).abs().max()) < 1e-5


@pytest.mark.parametrize("predicts", ["noise", "x0", "v", "score", "edm"])
def test_it_recovers_the_image_from_the_right_prediction_of_any_type(predicts):
    """A network of one's own that knows the image, at levels of the schedule and between them."""
    image = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)

    def network(noisy, level):
        if predicts == "edm":
            return image.expand_as(noisy)
        a, s = conversion.schedule.at(level.reshape(-1, 1, 1, 1))
        noise = (noisy - a * image) / s
        return {
            "noise": noise,
            "x0": image.expand_as(noisy),
            "v": a * noise - s * image,
            "score": -noise / s,
        }[predicts]

    model = DenoiserModel(network, vp("epsilon"), predicts=predicts, image_shape=(1, 8, 8))
    conversion = Conversion(model)
    denoiser = SigmaDenoiser(
        DenoisingNetwork(network, torch.float32, conversion=conversion), conversion.scheduler, CPU
    )
    sigma = torch.linspace(0.0051, 20, 50)
    noise = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    restored = denoiser((image + 1) / 2 + sigma.view(-1, 1, 1, 1) * noise, sigma)
    assert float((restored - (image + 1) / 2).abs().max()) < 3e-5 * 20


def test_between_two_levels_the_timestep_is_a_fraction():
    seen = []

    def network(noisy, timestep):
        seen.append(timestep.clone())
        return noisy

    denoiser = SigmaDenoiser(DenoisingNetwork(network, torch.float32), vp("epsilon"), CPU)
    low, high = denoiser.schedule.levels[[10, 11]] / 2
    x = torch.zeros(3, 1, 2, 2)
    denoiser(x, torch.stack([low, (low + high) / 2, high]))
    denoiser(x, float(low))
    assert seen[0].tolist() == pytest.approx([10, 10.5, 11], abs=1e-4)
    assert seen[1].tolist() == pytest.approx([10, 10, 10], abs=1e-4)


@pytest.mark.parametrize("scheduler", [vp("epsilon"), diffusers.FlowMatchEulerDiscreteScheduler()])
def test_noise_outside_of_the_table_is_refused(scheduler):
    denoiser = SigmaDenoiser(
        DenoisingNetwork(lambda noisy, timestep: noisy, torch.float32), scheduler, CPU
    )
    low, high = denoiser.range
    x = torch.zeros(2, 1, 2, 2)
    assert torch.isfinite(denoiser(x, torch.tensor([low, high]))).all()
    for sigma in (0.0, 0.99 * low, 1.01 * high, np.inf, np.nan):
        with pytest.raises(
            ValueError,
            match=rf"sigma = .*: expected noise levels of the model, {low:.4g} \.\. {high:.4g} for",
        ):
            denoiser(x, sigma)


def test_it_is_differentiable():
    """With v = c x_t the derivative is a (a - c s) in VP units, where x_t = a (2 x - 1)."""
    denoiser = SigmaDenoiser(
        DenoisingNetwork(lambda noisy, timestep: 0.3 * noisy, torch.float32),
        vp("v_prediction"),
        CPU,
    )
    x = torch.full((1, 1, 2, 2), 0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(denoiser(x, 0.7).sum(), x)
    a = (1 + 4 * 0.7**2) ** -0.5
    assert gradient.flatten().tolist() == pytest.approx([a * (a - 0.3 * 2 * 0.7 * a)] * 4, rel=1e-5)


def test_a_learned_variance_is_left_out_and_labels_are_passed():
    seen = []

    def network(noisy, timestep, labels):
        seen.append(labels)
        return torch.cat([0 * noisy, 1e9 + noisy], dim=1)

    denoiser = SigmaDenoiser(
        DenoisingNetwork(network, torch.float32), vp("epsilon"), CPU, torch.tensor([3])
    )
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(denoiser(x, 0.5), x, atol=1e-6)  # no noise predicted
    assert seen[0].tolist() == [3]


def test_other_schedules_are_refused():
    scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(
        ValueError, match="scheduler = 'EDMEulerScheduler': expected one with alphas_cumprod"
    ):
        SigmaDenoiser(None, scheduler, CPU)
