"""Schedulers of diffusers: names, timesteps and noise, whether they can begin in the middle of a
chain; the ancestral step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from uturn.core.checks import expect
from uturn.corruption.predictions import OF_DIFFUSERS, Prediction, solved

if TYPE_CHECKING:
    import torch

SCHEDULERS: Mapping[str, str] = {
    # The class below, for all noise schedules; the others are classes of diffusers.
    "ancestral": "AncestralScheduler",
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "sde_dpm_solver": "DPMSolverMultistepScheduler",  # SDE-DPM-Solver++, which adds noise
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of schedulers; any other class of diffusers can be given by its own name."""
FLOW_SCHEDULERS: Mapping[str, str] = {
    "flow_match": "FlowMatchEulerDiscreteScheduler",
    # Draws new noise at every step, not from the posterior.
    "flow_match_stochastic": "FlowMatchEulerDiscreteScheduler",
}
"""Short names of schedulers of flow matching."""


class Scheduler(Protocol):
    """What this package uses of a scheduler of diffusers, and of `AncestralScheduler`.

    Noisy data are made by `add_noise` or, for flow matching, by `scale_noise`.
    """

    @property
    def order(self) -> int:
        """Timesteps that are listed for each step, 2 for two-stage methods."""

    @property
    def timesteps(self) -> torch.Tensor: ...

    @property
    def config(self) -> Any:  # noqa: ANN401 - a dictionary of diffusers, whose keys are attributes too
        """The options."""

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """Called with the number of steps of the chain and the scheduler's own options."""

    @property
    def step(self) -> Callable[..., Any]:  # each scheduler has an output class of its own
        """Called with the network's output, a timestep and x_t; gives the next x_t, among others,
        as `prev_sample`.
        """

    def to_json_string(self) -> str: ...


CONSISTENCY = ("LCMScheduler", "TCDScheduler")
_OPTIONS: Mapping[str, dict[str, object]] = {
    "sde_dpm_solver": {"algorithm_type": "sde-dpmsolver++"},
    "flow_match_stochastic": {"stochastic_sampling": True},
}


@dataclass(frozen=True)
class PipelineTimesteps:
    """The timesteps of a pipeline of diffusers: its arguments of `set_timesteps`."""

    even_sigmas: bool = False
    """Whether the pipeline gives a scheduler of flow matching the noise levels 1, (N - 1)/N, ..,
    1/N, which the scheduler then shifts. Other pipelines give the number of steps alone.
    """
    tokens: int = 4096
    """Patches of two by two latent pixels, whose number determines the shift of some schedules."""

    def set(self, scheduler: Scheduler, steps: int) -> float:
        """Set the timesteps of N steps. Returns the shift of the noise levels, sigma -> shift sigma
        / (1 + (shift - 1) sigma).
        """
        config = scheduler.config
        options: dict[str, object] = {}
        if self.even_sigmas and is_flow_match(scheduler):
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        if config.get("use_dynamic_shifting"):
            low = config.get("base_image_seq_len", 256)
            high = config.get("max_image_seq_len", 4096)
            base_shift = config.get("base_shift", 0.5)
            slope = (config.get("max_shift", 1.15) - base_shift) / (high - low)
            mu = base_shift + slope * (self.tokens - low)
            options["mu"] = mu
            is_linear = config.get("time_shift_type") == "linear"
            shift = mu if is_linear else float(np.exp(mu))
        scheduler.set_timesteps(steps, **options)
        return shift


def base_of(scheduler: Scheduler) -> Scheduler:
    """The scheduler of diffusers in an `AncestralScheduler`; others as they are."""
    return scheduler.base if isinstance(scheduler, AncestralScheduler) else scheduler


def is_flow_match(scheduler: Scheduler) -> bool:
    return type(base_of(scheduler)).__name__.startswith("FlowMatch")


def is_flow(scheduler: Scheduler) -> bool:
    """Whether a scheduler has the noise levels of flow matching, x = (1 - sigma) x_0 + sigma n."""
    return is_flow_match(scheduler) or bool(scheduler.config.get("use_flow_sigmas"))


def prediction_of(scheduler: Scheduler) -> Prediction:
    """What the network of a scheduler predicts; ValueError for kinds that only the scheduler
    itself knows.
    """
    # Flow matching has no such option.
    declared = scheduler.config.get("prediction_type") or "flow_prediction"
    expected = f"one of {', '.join(OF_DIFFUSERS)}; only the scheduler 'stored' knows others"
    where = f"prediction_type of {type(scheduler).__name__}"
    expect(declared in OF_DIFFUSERS, where, declared, expected)
    return OF_DIFFUSERS[declared]


@dataclass(frozen=True)
class NamedScheduler:
    """A class of schedulers, and the options that its short name stands for."""

    kind: Callable[..., Scheduler]
    options: Mapping[str, object]

    def like(self, scheduler: Scheduler) -> Scheduler:
        """Such a scheduler with the options of another one."""
        return _configured(self.kind, scheduler, **self.options)


def named_scheduler(name: str) -> NamedScheduler:
    """The scheduler of diffusers with a short name, or with the name of its class."""
    import diffusers

    classes = {**SCHEDULERS, **FLOW_SCHEDULERS}
    kind: Any = getattr(diffusers, classes.get(name, name), None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    expected = f"one of {sorted(classes)}, or the name of a scheduler class of diffusers"
    expect(is_scheduler, "scheduler", name, expected)
    return NamedScheduler(kind, _OPTIONS.get(name, {}))


def scheduler_like(stored: Scheduler, name: str | None) -> Scheduler:
    """A scheduler by name, with the noise schedule and prediction type of the stored one;
    ValueError if they do not fit.

    None or "stored" is the stored scheduler itself. For flow matching "ddpm" is the ancestral step,
    which has the law of DDPM.
    """
    if name is None or name == "stored":
        return stored
    if name == "ancestral" or (name == "ddpm" and is_flow(stored)):
        return AncestralScheduler(stored)
    if type(stored).__name__ in CONSISTENCY:
        stored = named_scheduler("ddim").like(stored)  # the same noise schedule
    named = named_scheduler(name)
    stored_name = type(stored).__name__
    compatibles: list[type] = stored.compatibles  # type: ignore[attr-defined]
    is_compatible = named.kind is type(stored)
    if named.kind in compatibles:
        # Schedulers of EDM have noise levels of their own, although they are listed as compatible.
        is_edm = named.kind.__name__.startswith("EDM")
        is_compatible = is_compatible or is_edm == stored_name.startswith("EDM")
    names = sorted(kind.__name__ for kind in compatibles)
    expected = f"one for the noise schedule of the model's {stored_name}: 'ancestral', 'stored'"
    expect(is_compatible, "scheduler", name, f"{expected}, or one of {names}")
    return named.like(stored)


def _configured(
    kind: Any,  # noqa: ANN401 - a class of diffusers, whose `from_config` has no types
    scheduler: Scheduler,
    **changes: object,
) -> Scheduler:
    """A new scheduler of diffusers with the options of another one."""
    configured: Scheduler = kind.from_config(scheduler.config, **changes)
    return configured


def with_spacing(scheduler: Scheduler, timestep_spacing: str | None) -> Scheduler:
    """Copy of a scheduler with a timestep spacing: by default "trailing" for DDIM and "linspace"
    for the others.
    """
    if isinstance(scheduler, AncestralScheduler):
        return AncestralScheduler(with_spacing(scheduler.base, timestep_spacing))
    kind = type(scheduler)
    changes: dict[str, str | None] = {}
    if "timestep_spacing" in scheduler.config:
        if timestep_spacing is None:
            timestep_spacing = "trailing" if _has_fixed_stride(scheduler) else "linspace"
        is_spacing = timestep_spacing in ("linspace", "leading", "trailing")
        expected = "'linspace', 'leading' or 'trailing'"
        expect(is_spacing, "timestep_spacing", timestep_spacing, expected)
        changes["timestep_spacing"] = timestep_spacing
    elif timestep_spacing is not None:
        raise ValueError(
            "timestep_spacing is only used with schedulers that have this option;"
            f" {kind.__name__} has none"
        )
    if _declares_learned_variance(scheduler) and not uses_learned_variance(scheduler):
        # The queue passes no learned variance to these solvers, which would split it off again.
        changes["variance_type"] = None
    return _configured(kind, scheduler, **changes) if changes else copy.deepcopy(scheduler)


def check_schedule(scheduler: Scheduler) -> None:
    """ValueError for variances outside [0, 1] and for noise levels that are negative or not
    finite.
    """
    import torch

    scheduler = base_of(scheduler)
    largest = float(np.finfo(np.float32).max)
    for name, limit in {"betas": 1.0, "alphas_cumprod": 1.0, "sigmas": largest}.items():
        values = torch.as_tensor(getattr(scheduler, name, 0.0)).flatten()
        bad = values[~((values >= 0) & (values <= limit))]
        where = f"{name} of the {type(scheduler).__name__}"
        remedy = "correct its configuration (scheduler_config.json)"
        expected = f"finite numbers in [0, {limit:.3g}]; {remedy}"
        expect(not len(bad), where, bad[:1].tolist(), expected)


def check_timesteps(scheduler: Scheduler, num_steps: int) -> None:
    """ValueError for schedulers whose steps do not lead from each listed timestep to the next
    one.
    """
    from diffusers import LMSDiscreteScheduler

    name = type(scheduler).__name__
    # The order of LMSDiscreteScheduler depends on the position in the chain, not on the steps done.
    is_lms = isinstance(scheduler, LMSDiscreteScheduler)
    expected = "one that may begin at any timestep, such as 'dpm_solver' or 'unipc'"
    expect(not is_lms, "scheduler", name, expected)
    timesteps = scheduler.timesteps.double().numpy()
    firsts = timesteps[:: scheduler.order]
    descends = len(firsts) == num_steps and (np.diff(firsts) < 0).all()
    listed = f"{len(firsts)} steps, {firsts[:3].tolist()} .."
    way_out = f"take fewer steps or another scheduler ({', '.join(sorted(SCHEDULERS))})"
    expected = f"{num_steps} of them, strictly descending; {way_out}"
    expect(descends, f"timesteps of {name}", listed, expected)
    if not _has_fixed_stride(scheduler):
        return
    num_timesteps = scheduler.config.num_train_timesteps
    stride = num_timesteps // num_steps
    # The last step must lead to a negative timestep, which the scheduler reads as the clean image.
    leads = (np.diff(timesteps) == -stride).all() and timesteps[-1] < stride
    way_out = f"take a num_steps that divides {num_timesteps}, and 'trailing' spacing"
    expected = f"jumps of {stride}; {way_out}"
    expect(leads, f"timesteps of {name}", timesteps.tolist(), expected)


def _has_fixed_stride(scheduler: Scheduler) -> bool:
    """Whether `step` goes from t to t - T // N, not to the next timestep of the list."""
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def uses_learned_variance(scheduler: Scheduler) -> bool:
    """Whether `step` takes the variance from the second half of the channels of the model's
    output.
    """
    # The class decides, because configurations pass the entry `variance_type` on to schedulers that
    # do not use it.
    from diffusers import DDPMParallelScheduler, DDPMScheduler

    is_ddpm = isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
    return is_ddpm and _declares_learned_variance(scheduler)


def _declares_learned_variance(scheduler: Scheduler) -> bool:
    return str(scheduler.config.get("variance_type", "")).startswith("learned")


def add_noise(
    scheduler: Scheduler, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x_t of each image at its timestep, by the scheduler's own method `add_noise` or (flow
    matching) `scale_noise`.
    """
    timesteps = timesteps.to(images.device)
    noisy: torch.Tensor
    if hasattr(scheduler, "add_noise"):
        noisy = scheduler.add_noise(images, noise, timesteps)
    else:
        noisy = scheduler.scale_noise(images, timesteps, noise)  # type: ignore[attr-defined]
    return noisy


def scaled_input(scheduler: Scheduler, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The input of the network for x_t, in the units that the scheduler gives it."""
    if not hasattr(scheduler, "scale_model_input"):
        return noisy
    scaled: torch.Tensor = scheduler.scale_model_input(noisy, timestep)
    return scaled


def pure_noise_sigma(scheduler: Scheduler) -> float:
    """Standard deviation of pure noise, in the units of the scheduler."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def amplitudes(scheduler: Scheduler, timesteps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """a and s of x_t = a x_0 + s noise at timesteps, measured by noising an image of ones and
    one of zeros; float64 arrays.
    """
    import torch

    scheduler = copy.deepcopy(scheduler)
    ones = torch.ones(len(timesteps), 1, 1, 1, dtype=torch.float64)
    signal = add_noise(scheduler, ones, 0 * ones, timesteps).flatten().numpy()
    noise = add_noise(scheduler, 0 * ones, ones, timesteps).flatten().numpy()
    return signal, noise


def strengths(a: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
    """The noise levels of x_t = a x_0 + s n: signal power `abar`, `log_snr` in nats, and `sigma`
    = s / a.
    """
    with np.errstate(divide="ignore"):
        return {
            "abar": a**2 / (a**2 + s**2),
            "log_snr": 2 * (np.log(a) - np.log(s)),
            "sigma": np.divide(s, a),
        }


class AncestralScheduler:
    """Reverse steps x_t -> x_t' drawn from q(x_t' | x_t, x_0), with the model's x̂_0 in the place
    of x_0.

    With x_t = a x_0 + s noise, r^2 = a^2 + s^2, z = x_t / r and abar = a^2 / r^2
    (variance-preserving units), and primes at the next timestep, a step draws, with q = abar /
    abar',

        z' = sqrt(abar') (1 - q) / (1 - abar) x̂_0 + sqrt(q) (1 - abar') / (1 - abar) z
             + sqrt((1 - q) (1 - abar') / (1 - abar)) xi,    xi ~ N(0, 1).

    In variance-preserving units this is DDPM with its smaller variance (eq. 7 of arXiv:2006.11239);
    here it also serves flow matching, a = 1 - sigma and s = sigma, and schedules with a = 1. The
    last step leads to x̂_0. Timesteps, noisy images and the scaling of the model's input are those
    of `base`, a scheduler of diffusers with the noise schedule of the given one. Options that clip
    x̂_0 are followed, learned variances are not used.
    """

    order = 1
    timesteps: torch.Tensor

    def __init__(self, scheduler: Scheduler) -> None:
        self.base = _plain(scheduler)
        self.config = self.base.config
        self._prediction = prediction_of(scheduler)

    def set_timesteps(self, num_inference_steps: int, **options: object) -> None:
        self.base.set_timesteps(num_inference_steps, **options)
        self.timesteps = self.base.timesteps
        signal, noise = amplitudes(self.base, self.timesteps)
        # After the last step: the image itself.
        self._signal = np.append(signal, 1.0)
        self._noise = np.append(noise, 0.0)

    def add_noise(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        return add_noise(self.base, images, noise, timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return pure_noise_sigma(self.base)

    def to_json_string(self) -> str:
        return self.base.to_json_string()

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        # A copy, since some schedulers count calls.
        return scaled_input(copy.copy(self.base), sample, timestep)

    def step(
        self,
        output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: list[torch.Generator] | torch.Generator | None = None,
    ) -> SimpleNamespace:
        """The draw x_t' as `prev_sample`, and x̂_0 as `pred_original_sample`."""
        from diffusers.utils.torch_utils import randn_tensor

        index = int((self.timesteps == timestep).nonzero()[0])
        a, a_next = self._signal[index : index + 2]
        s, s_next = self._noise[index : index + 2]
        r = np.hypot(a, s)
        r_next = np.hypot(a_next, s_next)
        q = (a / r) ** 2 / (a_next / r_next) ** 2  # abar / abar'
        less = (s_next / r_next) ** 2 / (s / r) ** 2  # (1 - abar') / (1 - abar)
        clean_weight = a_next / r_next * (1 - q) / (s / r) ** 2
        noisy_weight = np.sqrt(q) * less
        clean = self._clean(output, sample, float(a), float(s))
        moved = float(r_next * clean_weight) * clean + float(r_next * noisy_weight / r) * sample
        if index + 1 < len(self.timesteps):
            deviation = float(r_next * np.sqrt(max(0.0, (1 - q) * less)))
            noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            moved = moved + deviation * noise
        return SimpleNamespace(prev_sample=moved, pred_original_sample=clean)

    def _clean(
        self, output: torch.Tensor, sample: torch.Tensor, a: float, s: float
    ) -> torch.Tensor:
        """x̂_0 from the model's output at x_t = a x_0 + s noise."""
        clean: torch.Tensor
        if hasattr(self.base, "precondition_outputs"):  # EDM: D(x; sigma) from the network's output
            clean = self.base.precondition_outputs(sample, output, s / a)
        else:
            clean, _ = solved(self._prediction, output, sample, a, s)
        if self.config.get("thresholding"):
            clean = self.base._threshold_sample(clean)  # type: ignore[attr-defined]
        elif self.config.get("clip_sample"):
            largest = self.config.clip_sample_range
            clean = clean.clamp(-largest, largest)
        return clean


def _plain(scheduler: Scheduler) -> Scheduler:
    """A scheduler with the same noise schedule and one timestep for each step if it exists;
    otherwise a copy.
    """
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    if is_flow_match(scheduler):
        return _configured(FlowMatchEulerDiscreteScheduler, scheduler)
    is_flow_table = config.get("use_flow_sigmas") or (
        config.get("prediction_type") == "flow_prediction"
    )
    is_discrete = config.get("timestep_type", "discrete") == "discrete"
    is_compatible = DDPMScheduler in getattr(scheduler, "compatibles", ())
    if is_compatible and is_discrete and not is_flow_table:
        return _configured(DDPMScheduler, scheduler)
    return copy.deepcopy(scheduler)
