"""Schedulers of diffusers: their names, their timesteps, and which of them can begin in the middle of a chain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SCHEDULERS: Mapping[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "sde_dpm_solver": "DPMSolverMultistepScheduler",  # with noise: SDE-DPM-Solver++
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of schedulers; any other class of diffusers can be given by its own name."""


def named_scheduler(name: str) -> tuple[Any, dict[str, Any]]:
    """Class of diffusers that a short name or the name of the class stands for, and the options that go with it."""
    import diffusers

    made = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise ValueError(
            f"scheduler = {name!r}: expected one of {sorted(SCHEDULERS)}, or the name of a scheduler class of diffusers"
        )
    return made, {"algorithm_type": "sde-dpmsolver++"} if name == "sde_dpm_solver" else {}


def scheduler_like(stored: Any, name: str | None) -> Any:
    """A scheduler by name, with the noise schedule and prediction type of the stored one."""
    if name is None or name == "stored":
        return stored
    made, options = named_scheduler(name)
    scales = [scheduler.__name__.startswith("EDM") for scheduler in (made, type(stored))]  # those have noise levels of their own
    if made is not type(stored) and (made not in stored.compatibles or scales[0] != scales[1]):
        raise ValueError(
            f"scheduler = {name!r} does not go with the model, whose noise schedule is that of {type(stored).__name__}; take "
            f"'stored', or one of {sorted(scheduler.__name__ for scheduler in stored.compatibles)}"
        )
    return made.from_config(stored.config, **options)


def add_noise(scheduler: Any, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Draw from the marginal at each image's timestep, by the scheduler's own method (flow-matching ones call it scale_noise)."""
    timesteps = timesteps.to(images.device)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(images, noise, timesteps)
    return scheduler.scale_noise(images, timesteps, noise)


def with_spacing(scheduler: Any, timestep_spacing: str | None) -> Any:
    """Copy of a scheduler with the timestep spacing asked for, or the one that suits it."""
    made = type(scheduler)
    changes: dict[str, Any] = {}
    if "timestep_spacing" in scheduler.config:
        if timestep_spacing is None:
            timestep_spacing = "trailing" if _has_fixed_stride(scheduler) else "linspace"
        if timestep_spacing not in ("linspace", "leading", "trailing"):
            raise ValueError(f"timestep_spacing={timestep_spacing!r}: expected 'linspace', 'leading' or 'trailing'")
        changes["timestep_spacing"] = timestep_spacing
    elif timestep_spacing is not None:
        raise ValueError(f"timestep_spacing={timestep_spacing!r}: {made.__name__} has no such option; leave it out")
    if str(scheduler.config.get("variance_type", "")).startswith("learned") and not uses_learned_variance(scheduler):
        changes["variance_type"] = None  # solvers that would keep three channels of what they get: they get no variance at all
    return made.from_config(scheduler.config, **changes) if changes else copy.deepcopy(scheduler)


def check_schedule(scheduler: Any) -> None:
    """Refuse what is no noise schedule: variances outside [0, 1], noise levels that are negative or not finite."""
    import torch

    for name, most in (("betas", 1.0), ("alphas_cumprod", 1.0), ("sigmas", float(np.finfo(np.float32).max))):
        values = torch.as_tensor(getattr(scheduler, name, 0.0)).flatten()
        bad = torch.nonzero(~((values >= 0) & (values <= most)))
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                f"{type(scheduler).__name__}: the noise schedule has {name}[{place}] = {float(values[place])}; expected finite "
                f"numbers in [0, {most:.3g}]: correct its configuration (scheduler_config.json)"
            )


def check_timesteps(scheduler: Any, num_steps: int) -> None:
    """Refuse schedulers whose steps do not lead from each listed timestep to the next one."""
    from diffusers import LMSDiscreteScheduler

    name, order = type(scheduler).__name__, scheduler.order
    if isinstance(scheduler, LMSDiscreteScheduler):  # takes the order from the place in the chain, not from the steps it did
        raise ValueError(f"{name} integrates wrongly unless it begins at the first timestep; use 'dpm_solver' or 'unipc'")
    timesteps = scheduler.timesteps.double().numpy()
    firsts = timesteps[::order]
    if len(firsts) != num_steps or not (np.diff(firsts) < 0).all():
        raise ValueError(
            f"{name} with num_steps={num_steps}: its {len(timesteps)} timesteps are not one strictly descending step each; "
            f"use another scheduler ({', '.join(map(repr, sorted(SCHEDULERS)))}) or fewer steps"
        )
    if _has_fixed_stride(scheduler):
        stride = scheduler.config.num_train_timesteps // num_steps
        # Below the last timestep must be the clean image: a negative index, which the scheduler reads as "clean".
        if not (np.diff(timesteps) == -stride).all() or timesteps[-1] - stride >= 0:
            raise ValueError(
                f"{name} jumps by num_train_timesteps // num_steps = {stride} timesteps, which does not lead along its list "
                f"{timesteps[:3].tolist()} .. {timesteps[-2:].tolist()}; take a num_steps that divides "
                f"{scheduler.config.num_train_timesteps} and timestep_spacing='trailing' (the default) or 'leading'"
            )


def _has_fixed_stride(scheduler: Any) -> bool:
    """Whether `step` goes from t to t - T // N, whatever timestep is next in the list."""
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def uses_learned_variance(scheduler: Any) -> bool:
    """Whether `step` takes the variance from the second half of the channels of the model's output."""
    # By class: configurations carry the entry along to schedulers that know nothing of it.
    from diffusers import DDPMParallelScheduler, DDPMScheduler

    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    return learned and isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
