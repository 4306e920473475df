"""Noisy images of a scheduler of diffusers, their amplitudes of image and noise, and image and noise from a prediction."""

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
    ones = torch.ones(len(timesteps), 1, 1, 1, dtype=torch.float64)
    signal = add_noise(scheduler, ones, 0 * ones, timesteps).flatten().numpy()
    noise = add_noise(scheduler, 0 * ones, ones, timesteps).flatten().numpy()
    return signal, noise


def strengths(a: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
    """The noise levels of x_t = a x_0 + s n: signal power `abar`, `log_snr` in nats, and `sigma` = s / a."""
    with np.errstate(divide="ignore"):
        return {"abar": a**2 / (a**2 + s**2), "log_snr": 2 * (np.log(a) - np.log(s)), "sigma": np.divide(s, a)}


def clean_and_noise(predicts: str, output: Any, x: Any, a: Any, s: Any) -> tuple[Any, Any]:
    """x_0 and n of x = a x_0 + s n, from a prediction of type "noise", "x0", "v", "flow", "score" or "edm"."""
    if predicts in ("x0", "edm"):
        return output, (x - a * output) / s
    if predicts == "flow":  # n - x_0
        clean = (x - s * output) / (a + s)
        return clean, output + clean
    if predicts == "v":  # (a n - s x_0) / r
        r = (a**2 + s**2) ** 0.5
        return (a * x - s * r * output) / r**2, (s * x + a * r * output) / r**2
    noise = -s * output if predicts == "score" else output
    return (x - s * noise) / a, noise
