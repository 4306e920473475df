"""Signal and noise of a scheduler as functions of its timestep, and of their ratio."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.corruption.schedulers import is_flow, is_flow_match


class Levels(nn.Module):
    """a and s of x_t = a x_0 + s n of a scheduler, in its units; ValueError if it has none that a timestep determines (EDM).

    Between whole timesteps s / a is interpolated linearly, as diffusers does. For flow matching a + s = 1, and s is proportional
    to the timestep.

    Attributes
    ----------
    ratios : tensor (levels,)
        s / a of the timesteps of training, ascending and finite.
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
            known = "one with alphas_cumprod, such as DDPMScheduler, or flow matching, so that its noise has a standard deviation"
            expect(hasattr(scheduler, "alphas_cumprod"), "scheduler", type(scheduler).__name__, known)
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
