"""A gallery of samplers for image-to-image, right and wrong, on a mixture of Gaussians whose
denoiser is exact.

Each is a function (images, noise, seed) -> reconstructions, as `uturn check-sampler --sampler
sampler_gallery:NAME` takes it. The wrong ones have one known bug each. All of them noise the images
to k = noise STEPS and make k reverse steps.
"""

from __future__ import annotations

import functools

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from uturn.networks import DenoiserModel

STEPS = 40
SPREAD = 0.15  # standard deviation of a pixel around the centre of its mode
SCHEDULE = {"beta_schedule": "linear", "clip_sample": False}
ABAR = DDPMScheduler(**SCHEDULE).alphas_cumprod.double()


@functools.cache
def centres():
    """(10, 1, 8, 8): the centres of ten equally frequent modes, waves with pixels in [-0.4,
    0.4].
    """
    generator = torch.Generator().manual_seed(0)
    grid = torch.arange(8.0) * torch.pi / 4
    angles = [torch.rand(10, 1, 1, 1, generator=generator) * 2 * torch.pi for _ in range(2)]
    waves = 1 + torch.arange(10).reshape(-1, 1, 1, 1) % 3
    return 0.4 * torch.sin(waves * grid[:, None] + angles[0]) * torch.cos(waves * grid + angles[1])


def originals(count, seed=0):
    """Draws of the mixture, float32 (count, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(10, (count,), generator=generator)
    return (centres()[mode] + SPREAD * torch.randn(count, 1, 8, 8, generator=generator)).clamp(
        -1, 1
    )


def posterior_mean(x, a, s):
    """E(x_0 | x_t = x) for x_t = a x_0 + s n, n ~ N(0, 1); a and s broadcast against x (batch,
    1, 8, 8).
    """
    variance, modes = a**2 * SPREAD**2 + s**2, centres().flatten(1).to(x.dtype)
    # -|x - a centre|^2 / (2 variance), without the term that all modes share
    logits = (
        a.flatten(1) * (x.flatten(1) @ modes.T) - a.flatten(1) ** 2 * modes.square().sum(1) / 2
    ) / variance.flatten(1)
    centre = (logits.softmax(1) @ modes).reshape(x.shape)
    return centre + a * SPREAD**2 / variance * (x - a * centre)


def amplitudes(timestep):
    """a and s at timesteps (batch,), as (batch, 1, 1, 1); between whole timesteps the lower one
    counts.
    """
    abar = ABAR[timestep.long().clamp(0, len(ABAR) - 1)].reshape(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def predicted_noise(x, timestep):
    """The exact denoiser as a network that predicts the noise."""
    a, s = amplitudes(timestep)
    return ((x - a * posterior_mean(x.double(), a, s)) / s).float()


def predicted_flow(x, timestep):
    """The exact denoiser as a network of flow matching, n - x_0 at sigma = timestep / 1000."""
    s = timestep.double().reshape(-1, 1, 1, 1) / 1000
    clean = posterior_mean(x.double(), 1 - s, s)
    return ((x - clean) / s).float()


# -- models, right and wrong -----------------------------------------------------------------------


def model(predicts="noise"):
    return DenoiserModel(
        predicted_noise, DDPMScheduler(**SCHEDULE), predicts=predicts, image_shape=(1, 8, 8)
    )


def declared_as_v():
    return model("v")


def flow_model():
    schedule = FlowMatchEulerDiscreteScheduler()
    return DenoiserModel(predicted_flow, schedule, predicts="flow", image_shape=(1, 8, 8))


class _Learned(torch.nn.Module):
    """The exact denoiser with a learned variance a quarter of the way from the small to the
    large one.
    """

    def __init__(self):
        super().__init__()
        self.config = {"in_channels": 1, "sample_size": 8}

    def forward(self, x, timestep):
        return torch.cat([predicted_noise(x, timestep), torch.full_like(x, -0.5)], dim=1)


def learned_model():
    return _Learned(), DDPMScheduler(variance_type="learned_range", **SCHEDULE)


# -- samplers --------------------------------------------------------------------------------------

# The timesteps of a chain, from the clean end, as `linspace` and `trailing` of diffusers space
# them.
LINSPACE = torch.linspace(0, 999, STEPS).round().long()
TRAILING = torch.arange(1, STEPS + 1) * (1000 // STEPS) - 1


def chain(
    images,
    noise,
    seed,
    *,
    timesteps=LINSPACE,
    above=0,
    begin=None,
    amount=1.0,
    power=0.5,
    eta=1.0,
    network=predicted_noise,
):
    """U-turns with DDPM (eta = 1) or DDIM (eta = 0); the other arguments are bugs, by default
    absent.

    `above`: steps between the noise that is added and the first reverse step. `begin`: the step at
    which the reverse steps begin, whatever the noise. `amount`: amplitude of the noise that is
    added. `power`: of the variance, for the deviation of a step.
    """
    generator, k = torch.Generator().manual_seed(seed), round(noise * STEPS)
    start = levels(timesteps)[min(k + above, STEPS)]
    x = start.sqrt() * images.double() + amount * (1 - start).sqrt() * normals(images, generator)
    for step in range(begin or k, 0, -1):
        x = reverse_step(x, step, generator, timesteps, power, eta, network)
    return x.float()


def levels(timesteps):
    """abar by the number of the step from the clean end; that of step 0, the image, is 1."""
    return torch.cat([torch.ones(1, dtype=torch.float64), ABAR[timesteps]])


def normals(like, generator):
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def reverse_step(
    x, step, generator, timesteps=LINSPACE, power=0.5, eta=1.0, network=predicted_noise
):
    now, following = levels(timesteps)[step], levels(timesteps)[step - 1]
    n = network(x.float(), timesteps[step - 1].expand(len(x))).double()
    clean = (x - (1 - now).sqrt() * n) / now.sqrt()
    variance = eta**2 * (1 - following) / (1 - now) * (1 - now / following)
    moved = following.sqrt() * clean + (1 - following - variance).sqrt() * n
    return moved + variance**power * normals(x, generator)


def ddpm_step(noisy, noise, seed, **bugs):
    """One reverse step, as `uturn check-sampler --step` takes it."""
    return reverse_step(
        noisy.double(), round(noise * STEPS), torch.Generator().manual_seed(seed), **bugs
    ).float()


variance_step = functools.partial(ddpm_step, power=1.0)
ddim_step = functools.partial(ddpm_step, timesteps=TRAILING, eta=0.0)
ddpm = chain
ddim = functools.partial(chain, timesteps=TRAILING, eta=0.0)
compvis = functools.partial(chain, above=1)
begin_index = functools.partial(chain, begin=STEPS)
variance = functools.partial(chain, power=1.0)
noise_ignored = functools.partial(chain, amount=0.0)
partial_noise = functools.partial(chain, amount=0.9)


def predicted_v(x, timestep):
    """The exact denoiser as a network that predicts v = a n - s x_0."""
    a, s = amplitudes(timestep)
    return (a * predicted_noise(x, timestep) - s * posterior_mean(x.double(), a, s)).float()


prediction_type = functools.partial(chain, network=predicted_v)
time_scale = functools.partial(chain, network=lambda x, t: predicted_noise(x, t / 1000))


def noise_replaced(images, noise, seed):
    """One noise level, whatever is asked for."""
    return chain(images, 0.5, seed)


def flow(images, noise, seed):
    """Flow matching with the ancestral step: x_r is drawn from q(x_r | x_s, x_0) with the
    model's x_0.
    """
    generator, k = torch.Generator().manual_seed(seed), round(noise * STEPS)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    sigma = scheduler.sigmas.double().flip(0)
    x = (1 - sigma[k]) * images.double() + sigma[k] * normals(images, generator)
    for step in range(k, 0, -1):
        s, r = sigma[step], sigma[step - 1]
        clean = posterior_mean(x, (1 - s).expand(len(x), 1, 1, 1), s.expand(len(x), 1, 1, 1))
        # x_s = g x_r + noise of variance h2, so q(x_r | x_s, x_0) is the product of two Gaussians.
        g = (1 - s) / (1 - r)
        h2 = s**2 - g**2 * r**2
        x = (r**2 * g * x + h2 * (1 - r) * clean) / s**2 + (h2 * r**2 / s**2).sqrt() * normals(
            x, generator
        )
    return x.float()


def _check(sampler, **options):
    """Options of a check of a sampler of the gallery, or of a scheduler."""
    sampler = f"sampler_gallery:{sampler}" if sampler in globals() else sampler
    return {"model": "sampler_gallery:model", "sampler": sampler, **options}


RIGHT = {
    "DDPM": _check("ddpm", step="sampler_gallery:ddpm_step"),
    "DDIM": _check("ddim", step="sampler_gallery:ddim_step", scheduler="ddim"),
    "flow matching": _check("flow", model="sampler_gallery:flow_model"),
    "learned variance": _check("stored", model="sampler_gallery:learned_model"),
}
"""Options of the checks of right samplers."""
WRONG = {
    "t + 1 for t": _check("compvis"),
    "forgotten begin index": _check("begin_index"),
    "variance for deviation": _check("variance", step="sampler_gallery:variance_step"),
    "learned variance ignored": _check("ancestral", model="sampler_gallery:learned_model"),
    "wrong prediction type": _check("prediction_type"),
    "wrong type declared": _check("stored", model="sampler_gallery:declared_as_v"),
    "timesteps in 0..1": _check("time_scale"),
    "no noise added": _check("noise_ignored"),
    "one noise for all": _check("noise_replaced"),
    "noise times 0.9": _check("partial_noise"),
}
"""Options of the checks of wrong ones."""
