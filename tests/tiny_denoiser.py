"""A denoiser of grey images of 28 x 28 pixels that takes no time: `--model tiny_denoiser:network`."""

import diffusers

from uturn.networks import DenoiserModel


def network():
    """The mean of x_0 given x_0 + sigma n for independent pixels N(-0.5, 0.2^2), the best denoiser of such images."""

    def clean(noisy, sigma):
        return -0.5 + 0.04 / (0.04 + sigma.reshape(-1, 1, 1, 1) ** 2) * (noisy + 0.5)

    return DenoiserModel(clean, diffusers.DDPMScheduler(clip_sample=False), predicts="x0", takes="sigma", image_shape=(1, 28, 28))
