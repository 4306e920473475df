"""Signal and noise of a scheduler by its timestep, or by their ratio, as samplers of deepinv
call a diffusion model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.corruption.schedulers import clean_and_noise, is_flow, is_flow_match, predicts

_ROUNDING = 1e-3  # relative; a sampler computes the ends of the range in its own precision


class Levels(nn.Module):
    """a and s of x_t = a x_0 + s n of a scheduler, in its units; ValueError if it has none that a
    timestep determines (EDM).

    Between whole timesteps s / a is interpolated linearly, as diffusers does. For flow matching a +
    s = 1, and s is proportional to the timestep. `ratios`: finite s / a of the timesteps of
    training, (levels,), ascending; pure noise at the end is left out.
    """

    ratios: torch.Tensor

    def __init__(self, scheduler: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        scheduler = getattr(scheduler, "base", scheduler)
        self.is_flow, self.timesteps = is_flow(scheduler), scheduler.config.num_train_timesteps
        if self.is_flow:
            s = (torch.arange(1, self.timesteps) / self.timesteps).double()
            if is_flow_match(scheduler):  # the levels of training are those of a new scheduler
                s = type(scheduler).from_config(scheduler.config).sigmas.flip(0).double()
            ratios = s[(s > 0) & (s < 1)] / (1 - s[(s > 0) & (s < 1)])  # s = 1 is pure noise
        else:
            known = (
                "one with alphas_cumprod, such as DDPMScheduler, or flow matching, so that its"
                " noise has a standard deviation"
            )
            expect(
                hasattr(scheduler, "alphas_cumprod"), "scheduler", type(scheduler).__name__, known
            )
            abar = scheduler.alphas_cumprod.double().cpu()
            ratios = ((1 - abar) / abar).sqrt()
        self.register_buffer("ratios", ratios[ratios.isfinite()].to(dtype), persistent=False)

    def at(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s at timesteps of any shape, whole or not."""
        time = time.to(self.ratios.dtype)
        if self.is_flow:
            return 1 - time / self.timesteps, time / self.timesteps
        low = time.floor().clamp(0, len(self.ratios) - 1).long()
        high = (low + 1).clamp(max=len(self.ratios) - 1)
        ratio = torch.lerp(self.ratios[low], self.ratios[high], time - low)
        a = 1 / (1 + ratio**2).sqrt()
        return a, ratio * a

    def of(self, ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """a, s and the timestep for ratios s / a within those of training, (levels,)."""
        if self.is_flow:
            s = ratio / (1 + ratio)
            return 1 - s, s, self.timesteps * s
        table, a = self.ratios.to(ratio), 1 / (1 + ratio**2).sqrt()
        index = (torch.searchsorted(table, ratio, right=True) - 1).clamp(0, len(table) - 2)
        return a, ratio * a, index + (ratio - table[index]) / (table[index + 1] - table[index])


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
        self, model: Any, scheduler: Any, device: torch.device, labels: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.model, self.device, self.labels = model, device, labels
        self.predicts, self.levels = (
            predicts(getattr(scheduler, "base", scheduler)),
            Levels(scheduler, torch.float64),
        )
        self.range = float(self.levels.ratios[0]) / 2, float(self.levels.ratios[-1]) / 2

    def forward(self, x: torch.Tensor, sigma: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """D(x, sigma) for x (batch, channels, height, width) and sigma, a number or (batch,)."""
        levels, (low, high) = (
            torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1),
            self.range,
        )
        is_inside = ((levels >= low * (1 - _ROUNDING)) & (levels <= high * (1 + _ROUNDING))).all()
        expect(
            is_inside,
            "sigma",
            levels.tolist(),
            f"noise levels of the model, {low:.4g} .. {high:.4g} for images in [0, 1]",
        )
        a, s, timestep = (
            level.expand(len(x)) for level in self.levels.of((2 * levels).clamp(2 * low, 2 * high))
        )
        a, s = (level.view(-1, 1, 1, 1).to(x.device) for level in (a, s))
        noisy = a * (2 * x.double() - 1)
        labels = () if self.labels is None else (self.labels.to(self.device).expand(len(x)),)
        output = self.model(
            noisy.float().to(self.device), timestep.float().to(self.device), *labels
        )
        # Without a learned variance.
        output = getattr(output, "sample", output)[:, : x.shape[1]].to(x.device, torch.float64)
        clean, _ = clean_and_noise(self.predicts, output, noisy, a, s)
        return ((clean + 1) / 2).to(x.dtype)
