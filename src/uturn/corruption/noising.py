"""Noisy images of a scheduler of diffusers, and the share of image and noise in them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def add_noise(scheduler: Any, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """x_t of each image at its timestep, by the scheduler's own method `add_noise` or (flow matching) `scale_noise`."""
    timesteps = timesteps.to(images.device)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(images, noise, timesteps)
    return scheduler.scale_noise(images, timesteps, noise)


def amplitudes(scheduler: Any, timesteps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """a and s of x_t = a x_0 + s noise at timesteps, measured by noising an image of ones and one of zeros; float64 arrays."""
    import torch

    scheduler = copy.deepcopy(scheduler)
    one = torch.ones(len(timesteps), 1, 1, 1, dtype=torch.float64)
    signal = add_noise(scheduler, one, 0 * one, timesteps).flatten().numpy()
    noise = add_noise(scheduler, 0 * one, one, timesteps).flatten().numpy()
    return signal, noise
