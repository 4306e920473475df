"""A diffusion model of images as a denoiser of Gaussian noise of a given standard deviation, as samplers of deepinv call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uturn.corruption.noising import clean_and_noise
from uturn.corruption.schedulers import is_flow, is_flow_match, predicts

_ROUNDING = 1e-3  # relative; a sampler computes the ends of the range in its own precision


class SigmaDenoiser(nn.Module):
    """The mean D(x, sigma) of images in [0, 1] given x = image + sigma n, n ~ N(0, 1), by a diffusion model of images in [-1, 1].

    With x_t = a x_0 + s n of the model, D(x, sigma) = (x̂_0(a (2 x - 1), t) + 1) / 2 at the time t where s / a = 2 sigma. For
    variance-preserving schedules a = 1 / sqrt(1 + 4 sigma^2), for flow matching a = 1 / (1 + 2 sigma). x̂_0 follows from the
    prediction of noise, x_0, v or flow, and is not clipped.

    Between the levels of the schedule the timestep is a fraction, by linear interpolation of s / a: networks take fractional
    timesteps (`DenoiserModel`), and it needs one call, not one for each neighbour. For flow matching t is proportional to s.
    Noise outside of `range` is refused. Images may be on another device than the model. The result can be differentiated.

    Parameters
    ----------
    model : DenoisingNetwork
        Called as `model(noisy, timestep)`, or `model(noisy, timestep, labels)`.
    scheduler
        The noise schedule and the prediction type of the model, a scheduler of diffusers.
    device : torch.device
        Device of the model.
    labels : int64 (batch,), optional
        The classes of the images of a call, for models conditioned on the class.

    Attributes
    ----------
    range : (low, high)
        Smallest and largest sigma.

    Raises
    ------
    ValueError
        For schedules other than those of DDPM and of flow matching; in calls, for sigma outside of the range.

    Examples
    --------
    >>> from diffusers import DDPMScheduler
    >>> def network(noisy, timestep):  # it predicts no noise
    ...     return 0 * noisy
    >>> denoiser = SigmaDenoiser(network, DDPMScheduler(), torch.device("cpu"))
    >>> [round(sigma, 3) for sigma in denoiser.range]
    [0.005, 78.704]
    >>> denoiser(torch.full((1, 1, 1, 2), 0.7), 0.1)
    tensor([[[[0.7000, 0.7000]]]])
    """

    def __init__(self, model: Any, scheduler: Any, device: torch.device, labels: torch.Tensor | None = None) -> None:
        super().__init__()
        scheduler = getattr(scheduler, "base", scheduler)
        self.model, self.device, self.labels = model, device, labels
        self.predicts, self.flow = predicts(scheduler), is_flow(scheduler)
        self.timesteps = scheduler.config.num_train_timesteps
        if self.flow:
            levels = torch.arange(1, self.timesteps) / self.timesteps
            if is_flow_match(scheduler):  # the levels of training are those of a new scheduler
                levels = type(scheduler).from_config(scheduler.config).sigmas.flip(0)
            levels = levels[(levels > 0) & (levels < 1)].double()  # s = 1 is pure noise
            sigmas = levels / (1 - levels)
        elif hasattr(scheduler, "alphas_cumprod"):
            abar = scheduler.alphas_cumprod.double().cpu()
            sigmas = ((1 - abar) / abar).sqrt()
        else:
            raise ValueError(
                f"the noise schedule of {type(scheduler).__name__} cannot be read as noise of a standard deviation; expected one "
                f"with alphas_cumprod, such as DDPMScheduler, or flow matching"
            )
        self.table = sigmas[sigmas.isfinite()].double()
        self.range = float(self.table[0]) / 2, float(self.table[-1]) / 2

    def forward(self, x: torch.Tensor, sigma: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """D(x, sigma) for x (batch, channels, height, width) and sigma, a number or (batch,)."""
        levels = torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1)
        a, s, timestep = (level.expand(len(x)) for level in self._place(levels))
        a, s = (level.view(-1, 1, 1, 1).to(x.device) for level in (a, s))
        noisy = a * (2 * x.double() - 1)
        labels = () if self.labels is None else (self.labels.to(self.device).expand(len(x)),)
        output = self.model(noisy.float().to(self.device), timestep.float().to(self.device), *labels)
        output = getattr(output, "sample", output)[:, : x.shape[1]].to(x.device, torch.float64)  # without a learned variance
        clean, _ = clean_and_noise(self.predicts, output, noisy, a, s)
        return ((clean + 1) / 2).to(x.dtype)

    def _place(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """a, s and the timestep of the model for levels sigma of images in [0, 1], (levels,)."""
        low, high = self.range
        outside = ~((sigma >= low * (1 - _ROUNDING)) & (sigma <= high * (1 + _ROUNDING)))
        if outside.any():
            raise ValueError(
                f"sigma = {float(sigma[outside][0]):.4g}: outside of the noise levels of the model, {low:.4g} .. {high:.4g} for "
                f"images in [0, 1]; choose the sampler's levels in this range"
            )
        ratio = (2 * sigma).clamp(self.table[0], self.table[-1])
        if self.flow:
            s = ratio / (1 + ratio)
            return 1 - s, s, self.timesteps * s
        a = 1 / (1 + ratio**2).sqrt()
        index = (torch.searchsorted(self.table, ratio, right=True) - 1).clamp(0, len(self.table) - 2)
        below, above = self.table[index], self.table[index + 1]
        return a, ratio * a, index + (ratio - below) / (above - below)
