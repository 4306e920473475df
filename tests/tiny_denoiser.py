"""Tiny denoisers of images: one that takes no time, `--model tiny_denoiser:network`, and
networks with random weights.
"""

import diffusers
import torch

from uturn.backward.reverse_diffusion import ReverseDiffusion, Sampler
from uturn.networks import DenoiserModel
from uturn.networks.images.model import ImageModel


def network():
    """The mean of x_0 given x_0 + sigma n for independent pixels N(-0.5, 0.2^2), the best
    denoiser of such images.
    """

    def clean(noisy, sigma):
        return -0.5 + 0.04 / (0.04 + sigma.reshape(-1, 1, 1, 1) ** 2) * (noisy + 0.5)

    return DenoiserModel(
        clean,
        diffusers.DDPMScheduler(clip_sample=False),
        predicts="x0",
        takes="sigma",
        image_shape=(1, 28, 28),
    )


def unet(channels=1, seed=0, **options):
    """A UNet2DModel of images of 8 x 8 pixels, with random weights; `options` replace those of
    two small blocks.
    """
    torch.manual_seed(seed)
    settings = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**{**settings, **options}).eval()


def chain_of(
    network, scheduler, steps, *, timestep_spacing=None, eta=None, pure_noise=False, **options
):
    """The chain of a network with the scheduler itself; `options`: fields of `ImageModel`."""
    sampler = Sampler("stored", steps, timestep_spacing, eta, pure_noise)
    return ReverseDiffusion(ImageModel(network, scheduler, **options), sampler)


PLAIN = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
"""Options of a network of one block without attention, beside its `block_out_channels`."""
