"""A network of one's own as the model of U-turns; `python denoiser.py` trains it, in a few
seconds, and writes 200 images.
"""

import math

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

from uturn.networks import DenoiserModel

WEIGHTS = "denoiser.pt"


class Denoiser(nn.Module):
    """Predicts the noise of images (batch, 1, 8, 8) at timesteps 0 .. 999."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 8, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, noisy, timestep):
        angle = (
            timestep.reshape(-1, 1)
            / 1000
            * math.pi
            * torch.tensor([0.5, 1, 2, 4], device=noisy.device)
        )
        inputs = torch.cat([noisy.flatten(1), angle.sin(), angle.cos()], dim=1)
        return self.layers(inputs).reshape(noisy.shape)


def denoiser():
    """The trained network with its noise schedule: `--model denoiser:denoiser`."""
    network = Denoiser()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return DenoiserModel(network, DDPMScheduler(), predicts="noise", image_shape=(1, 8, 8))


def classifier():
    """Logits for horizontal and vertical stripes, from filters of four phases: `--classifier
    denoiser:classifier`.
    """
    filters, sums = nn.Conv2d(1, 8, 8, bias=False), nn.Linear(8, 2, bias=False)
    vertical = torch.arange(8) >= 4
    filters.weight.data = stripes(vertical, math.pi / 2 * torch.arange(8)) / 32
    sums.weight.data = 10 * torch.stack([~vertical, vertical]).float()
    return nn.Sequential(filters, nn.Flatten(), nn.ReLU(), sums)


def stripes(is_vertical, phase):
    """Images (..., 1, 8, 8) of a wave with two periods, horizontal or vertical."""
    wave = torch.sin(torch.arange(8) * math.pi / 2 + phase[..., None, None])
    return (
        torch.where(is_vertical[..., None, None], wave, wave.mT)
        .expand(*is_vertical.shape, 8, 8)
        .unsqueeze(-3)
    )


def draw(count):
    """Images of stripes of random direction and phase."""
    return 0.7 * stripes(torch.rand(count) < 0.5, 2 * math.pi * torch.rand(count))


def train(steps=600):
    """Least squares of the noise."""
    torch.manual_seed(0)
    network, schedule = Denoiser(), DDPMScheduler()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(steps):
        images = draw(128)
        noise, timestep = torch.randn_like(images), torch.randint(1000, (128,))
        loss = (
            (network(schedule.add_noise(images, noise, timestep), timestep) - noise).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(network.state_dict(), WEIGHTS)
    np.save("stripes.npy", draw(200))
    print(f"loss {loss.item():.3f}, written: {WEIGHTS}, stripes.npy")


if __name__ == "__main__":
    train()
