"""Signal and noise of a scheduler by its timestep or by their ratio, and a diffusion model called
by their ratio, as samplers of deepinv do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.corruption.predictions import solved
from uturn.corruption.schedulers import (
    Scheduler,
    base_of,
    is_flow,
    is_flow_match,
    prediction_of,
)

_ROUNDING = 1e-3
"""Relative tolerance at the ends of the range of sigma, which a sampler computes in its own
precision.
"""


class NoiseSchedule(nn.Module):
    """a and s of x_t = a x_0 + s n at the timesteps of a scheduler, in its units; ValueError if a
    timestep does not determine them (EDM).

    Between whole timesteps s / a is interpolated linearly, as diffusers does. For flow matching a +
    s = 1, and s is proportional to the timestep. `levels`: finite ratios s / a of the timesteps of
    training, (levels,), ascending; pure noise at the end is left out.
    """

    levels: torch.Tensor

    def __init__(self, scheduler: Scheduler, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        scheduler = base_of(scheduler)
        self.is_flow = is_flow(scheduler)
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        ratios = self._flow_ratios(scheduler) if self.is_flow else _tabulated_ratios(scheduler)
        self.register_buffer("levels", ratios[ratios.isfinite()].to(dtype), persistent=False)

    @staticmethod
    def exists_for(scheduler: Scheduler) -> bool:
        """Whether a timestep of the scheduler determines a and s."""
        return is_flow(scheduler) or hasattr(base_of(scheduler), "alphas_cumprod")

    def at(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s at timesteps of any shape, whole or not."""
        time = time.to(self.levels.dtype)
        if self.is_flow:
            return 1 - time / self.num_timesteps, time / self.num_timesteps
        low = time.floor().clamp(0, len(self.levels) - 1).long()
        high = (low + 1).clamp(max=len(self.levels) - 1)
        return _amplitudes(torch.lerp(self.levels[low], self.levels[high], time - low))

    def at_ratio(self, ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s of ratios s / a within `levels`."""
        if not self.is_flow:
            return _amplitudes(ratio)
        s = ratio / (1 + ratio)
        return 1 - s, s

    def timestep_of(self, ratio: torch.Tensor) -> torch.Tensor:
        """The timesteps of ratios s / a within `levels`, not always whole."""
        if self.is_flow:
            return self.num_timesteps * (ratio / (1 + ratio))
        levels = self.levels.to(ratio)
        low = (torch.searchsorted(levels, ratio, right=True) - 1).clamp(0, len(levels) - 2)
        return low + (ratio - levels[low]) / (levels[low + 1] - levels[low])

    def _flow_ratios(self, scheduler: Scheduler) -> torch.Tensor:
        s: torch.Tensor
        if is_flow_match(scheduler):  # a new scheduler has the noise levels of training
            kind: Any = type(scheduler)
            s = kind.from_config(scheduler.config).sigmas.flip(0).double()
        else:
            s = (torch.arange(1, self.num_timesteps) / self.num_timesteps).double()
        s = s[(s > 0) & (s < 1)]  # s = 1 is pure noise
        return s / (1 - s)


def _amplitudes(ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """a and s with a^2 + s^2 = 1, from s / a."""
    a = 1 / (1 + ratio**2).sqrt()
    return a, ratio * a


def _tabulated_ratios(scheduler: Scheduler) -> torch.Tensor:
    expected = (
        "one with alphas_cumprod, such as DDPMScheduler, or flow matching, so that its noise has a"
        " standard deviation"
    )
    has_table = hasattr(scheduler, "alphas_cumprod")
    expect(has_table, "scheduler", type(scheduler).__name__, expected)
    abar: torch.Tensor = scheduler.alphas_cumprod.double().cpu()  # type: ignore[attr-defined]
    return ((1 - abar) / abar).sqrt()


class SigmaDenoiser(nn.Module):
    """The mean D(x, sigma) of images in [0, 1] given x = image + sigma n, n ~ N(0, 1), by a
    diffusion model of images in [-1, 1].

    With x_t = a x_0 + s n of the model, D(x, sigma) = (x̂_0(a (2 x - 1), t) + 1) / 2 at the time t
    where s / a = 2 sigma, a fraction between the levels of the schedule. x̂_0 follows from the
    prediction of noise, x_0, v or flow, and is not clipped. The result can be differentiated;
    images may be on another device than the model.

    `model`: called as `model(noisy, timestep)`, or with `labels`, int64 (batch,), as a third
    argument. `range`: smallest and largest sigma; noise outside is refused.
    """

    def __init__(
        self,
        model: Callable[..., Any],  # gives a tensor, or an object of diffusers with `.sample`
        scheduler: Scheduler,
        device: torch.device,
        labels: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.labels = labels
        self.prediction = prediction_of(base_of(scheduler))
        self.schedule = NoiseSchedule(scheduler, torch.float64)
        levels = self.schedule.levels
        self.range = (float(levels[0]) / 2, float(levels[-1]) / 2)

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor | float, *args: object, **kwargs: object
    ) -> torch.Tensor:
        """D(x, sigma) for x (batch, channels, height, width) and sigma, a number or (batch,)."""
        low, high = self.range
        sigmas = torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1)
        is_inside = (sigmas >= low * (1 - _ROUNDING)) & (sigmas <= high * (1 + _ROUNDING))
        expected = f"noise levels of the model, {low:.4g} .. {high:.4g} for images in [0, 1]"
        expect(is_inside.all(), "sigma", sigmas.tolist(), expected)
        ratio = (2 * sigmas).clamp(2 * low, 2 * high).expand(len(x))
        timestep = self.schedule.timestep_of(ratio)
        a, s = self.schedule.at_ratio(ratio)
        a = a.view(-1, 1, 1, 1).to(x.device)
        s = s.view(-1, 1, 1, 1).to(x.device)
        noisy = a * (2 * x.double() - 1)
        prediction = self._prediction(noisy.float(), timestep.float()).to(x.device, torch.float64)
        clean, _ = solved(self.prediction, prediction, noisy, a, s)
        return ((clean + 1) / 2).to(x.dtype)

    def _prediction(self, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The output of the model without a learned variance."""
        inputs = [noisy, timestep]
        if self.labels is not None:
            inputs.append(self.labels.expand(len(noisy)))
        output = self.model(*(tensor.to(self.device) for tensor in inputs))
        prediction: torch.Tensor = getattr(output, "sample", output)[:, : noisy.shape[1]]
        return prediction
