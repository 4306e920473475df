"""Schedulers of diffusers: their names, their timesteps, and whether they can begin in the middle of a chain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from uturn.corruption.ancestral import AncestralScheduler

SCHEDULERS: Mapping[str, str] = {
    "ancestral": "AncestralScheduler",  # uturn.corruption.ancestral, for all noise schedules; the others are classes of diffusers
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
FLOW_SCHEDULERS: Mapping[str, str] = {
    "flow_match": "FlowMatchEulerDiscreteScheduler",
    "flow_match_stochastic": "FlowMatchEulerDiscreteScheduler",  # draws new noise at every step, not from the posterior
}
"""Short names of schedulers of flow matching."""
_CONSISTENCY = ("LCMScheduler", "TCDScheduler")
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "sde_dpm_solver": {"algorithm_type": "sde-dpmsolver++"},
    "flow_match_stochastic": {"stochastic_sampling": True},
}
EVEN_SIGMAS = ("Flux", "QwenImage", "Chroma", "ZImage")
"""How names of pipelines begin that give the scheduler the noise levels 1, (N - 1)/N, .., 1/N, which it then shifts."""


class PipelineTimesteps(NamedTuple):
    """The timesteps of a pipeline of diffusers: what it passes to `set_timesteps`.

    `pipeline`: its class, "" for any that passes the number of steps only. `tokens`: patches of two by two pixels of the latents,
    by whose number some schedules are shifted.
    """

    pipeline: str = ""
    tokens: int = 4096

    def set(self, scheduler: Any, steps: int) -> float:
        """Set the timesteps of N steps; returns the shift of the levels, sigma -> shift sigma / (1 + (shift - 1) sigma)."""
        config = scheduler.config
        options: dict[str, Any] = {}
        if is_flow_match(scheduler) and self.pipeline.startswith(EVEN_SIGMAS):
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        if config.get("use_dynamic_shifting"):
            low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
            options["mu"] = config.get("base_shift", 0.5) + slope * (self.tokens - low)
            shift = options["mu"] if config.get("time_shift_type") == "linear" else float(np.exp(options["mu"]))
        scheduler.set_timesteps(steps, **options)
        return shift


def is_flow_match(scheduler: Any) -> bool:
    """Whether a scheduler is one of diffusers for flow matching."""
    return type(getattr(scheduler, "base", scheduler)).__name__.startswith("FlowMatch")


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler has the noise levels of flow matching, x = (1 - sigma) x_0 + sigma n."""
    return is_flow_match(scheduler) or bool(scheduler.config.get("use_flow_sigmas"))


def named_scheduler(name: str) -> tuple[Any, dict[str, Any]]:
    """Class of diffusers for a short name or a class name, and the options it needs."""
    import diffusers

    known = {**SCHEDULERS, **FLOW_SCHEDULERS}
    made = getattr(diffusers, known.get(name, name), None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise ValueError(f"scheduler = {name!r}: expected one of {sorted(known)}, or the name of a scheduler class of diffusers")
    return made, dict(_OPTIONS.get(name, {}))


def scheduler_like(stored: Any, name: str | None) -> Any:
    """A scheduler by name, with the noise schedule and prediction type of the stored one; ValueError if they do not fit.

    For flow matching "ddpm" is the ancestral step, which has the law of DDPM.
    """
    if name is None or name == "stored":
        return stored
    if name == "ancestral" or (name == "ddpm" and is_flow(stored)):
        return AncestralScheduler(stored)
    if type(stored).__name__ in _CONSISTENCY:
        stored = named_scheduler("ddim")[0].from_config(stored.config)  # the same noise schedule
    made, options = named_scheduler(name)
    scales = [scheduler.__name__.startswith("EDM") for scheduler in (made, type(stored))]  # EDM has other noise levels
    if made is not type(stored) and (made not in stored.compatibles or scales[0] != scales[1]):
        raise ValueError(
            f"scheduler = {name!r} does not go with the model, whose noise schedule is that of {type(stored).__name__}; take "
            f"'ancestral', 'stored', or one of {sorted(scheduler.__name__ for scheduler in stored.compatibles)}"
        )
    return made.from_config(stored.config, **options)


def with_spacing(scheduler: Any, timestep_spacing: str | None) -> Any:
    """Copy of a scheduler with a timestep spacing: by default "trailing" for DDIM and "linspace" for the others."""
    if isinstance(scheduler, AncestralScheduler):
        return AncestralScheduler(with_spacing(scheduler.base, timestep_spacing))
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
        changes["variance_type"] = None  # the queue passes no learned variance to these solvers, which would split it off again
    return made.from_config(scheduler.config, **changes) if changes else copy.deepcopy(scheduler)


def check_schedule(scheduler: Any) -> None:
    """ValueError for variances outside [0, 1] and for noise levels that are negative or not finite."""
    import torch

    scheduler = getattr(scheduler, "base", scheduler)
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
    """ValueError for schedulers whose steps do not lead from each listed timestep to the next one."""
    from diffusers import LMSDiscreteScheduler

    name, order = type(scheduler).__name__, scheduler.order
    if isinstance(scheduler, LMSDiscreteScheduler):  # its order follows the position in the chain, not the steps already done
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
        # The last step must lead to a negative timestep, which the scheduler reads as the clean image.
        if not (np.diff(timesteps) == -stride).all() or timesteps[-1] - stride >= 0:
            raise ValueError(
                f"{name} jumps by num_train_timesteps // num_steps = {stride} timesteps, which does not lead along its list "
                f"{timesteps[:3].tolist()} .. {timesteps[-2:].tolist()}; take a num_steps that divides "
                f"{scheduler.config.num_train_timesteps} and timestep_spacing='trailing' (the default) or 'leading'"
            )


def _has_fixed_stride(scheduler: Any) -> bool:
    """Whether `step` goes from t to t - T // N, not to the next timestep of the list."""
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def uses_learned_variance(scheduler: Any) -> bool:
    """Whether `step` takes the variance from the second half of the channels of the model's output."""
    # The class decides, because configurations pass the entry `variance_type` on to schedulers that do not use it.
    from diffusers import DDPMParallelScheduler, DDPMScheduler

    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    return learned and isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
