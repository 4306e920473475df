"""Image-to-image written by hand, right and with a bug: `uturn check-sampler --sampler
sampler:image_to_image`.
"""

import functools

import torch
from diffusers import DDPMScheduler, UNet2DModel

import uturn as ut

STEPS = 40


@functools.cache
def model():
    folder = ut.fashion_mnist.generator_folder()
    return UNet2DModel.from_pretrained(
        folder, subfolder="unet"
    ).eval(), DDPMScheduler.from_pretrained(folder / "scheduler")


@torch.inference_mode()
def image_to_image(images, noise, seed, above=0):
    """Images in [-1, 1], float32 (items, channels, height, width), noised to k = noise STEPS and
    denoised by k steps of DDPM.
    """
    network, scheduler = model()
    scheduler.set_timesteps(STEPS)
    generator, start = torch.Generator().manual_seed(seed), STEPS - round(noise * STEPS)
    noised_to = scheduler.timesteps[max(start - above, 0)].expand(len(images))
    x = scheduler.add_noise(images, torch.randn(images.shape, generator=generator), noised_to)
    for timestep in scheduler.timesteps[start:]:
        x = scheduler.step(
            network(x, timestep).sample, timestep, x, generator=generator
        ).prev_sample
    return x


def one_step_off(images, noise, seed):
    """The same, but the noise that is added is that of one step more: a bug of many programs."""
    return image_to_image(images, noise, seed, above=1)
