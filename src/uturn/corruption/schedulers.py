"""Schedulers of diffusers: names, timesteps and noise, whether they can begin in the middle of a
chain; the ancestral step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.core.checks import expect

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
_CONSISTENCY = ("LCMScheduler", "TCDScheduler")
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "sde_dpm_solver": {"algorithm_type": "sde-dpmsolver++"},
    "flow_match_stochastic": {"stochastic_sampling": True},
}
EVEN_SIGMAS = ("Flux", "QwenImage", "Chroma", "ZImage")
"""Prefixes of pipelines that give the scheduler the noise levels 1, (N - 1)/N, .., 1/N, which it
then shifts.
"""


class PipelineTimesteps(NamedTuple):
    """The timesteps of a pipeline of diffusers: its arguments of `set_timesteps`."""

    pipeline: str = ""  # its class, "" for pipelines that pass only the number of steps
    # Patches of two by two latent pixels, whose number determines the shift of some schedules.
    tokens: int = 4096

    def set(self, scheduler: Any, steps: int) -> float:
        """Set the timesteps of N steps; returns the shift of the levels, sigma -> shift sigma /
        (1 + (shift - 1) sigma).
        """
        config = scheduler.config
        options: dict[str, Any] = {}
        if is_flow_match(scheduler) and self.pipeline.startswith(EVEN_SIGMAS):
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        if config.get("use_dynamic_shifting"):
            low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
            options["mu"] = config.get("base_shift", 0.5) + slope * (self.tokens - low)
            shift = (
                options["mu"]
                if config.get("time_shift_type") == "linear"
                else float(np.exp(options["mu"]))
            )
        scheduler.set_timesteps(steps, **options)
        return shift


def is_flow_match(scheduler: Any) -> bool:
    return type(getattr(scheduler, "base", scheduler)).__name__.startswith("FlowMatch")


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler has the noise levels of flow matching, x = (1 - sigma) x_0 + sigma n."""
    return is_flow_match(scheduler) or bool(scheduler.config.get("use_flow_sigmas"))


_PREDICTIONS = {
    "epsilon": "noise", "sample": "x0", "original_sample": "x0", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip


def predicts(scheduler: Any) -> str:
    """What the model of a scheduler predicts, a type of `clean_and_noise`; ValueError for other
    prediction types.
    """
    # Flow matching has no such option.
    prediction = scheduler.config.get("prediction_type") or "flow_prediction"
    known = f"one of {', '.join(_PREDICTIONS)}; only the scheduler 'stored' knows others"
    expect(
        prediction in _PREDICTIONS,
        f"prediction_type of {type(scheduler).__name__}",
        prediction,
        known,
    )
    return _PREDICTIONS[prediction]


def named_scheduler(name: str) -> tuple[Any, dict[str, Any]]:
    """Class of diffusers for a short name or a class name, and the options it needs."""
    import diffusers

    known = {**SCHEDULERS, **FLOW_SCHEDULERS}
    made = getattr(diffusers, known.get(name, name), None)
    is_scheduler = isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)
    expect(
        is_scheduler,
        "scheduler",
        name,
        f"one of {sorted(known)}, or the name of a scheduler class of diffusers",
    )
    return made, dict(_OPTIONS.get(name, {}))


def scheduler_like(stored: Any, name: str | None) -> Any:
    """A scheduler by name, with the noise schedule and prediction type of the stored one;
    ValueError if they do not fit.

    For flow matching "ddpm" is the ancestral step, which has the law of DDPM.
    """
    if name is None or name == "stored":
        return stored
    if name == "ancestral" or (name == "ddpm" and is_flow(stored)):
        return AncestralScheduler(stored)
    if type(stored).__name__ in _CONSISTENCY:
        stored = named_scheduler("ddim")[0].from_config(stored.config)  # the same noise schedule
    made, options = named_scheduler(name)
    # With other noise levels.
    is_edm, was_edm = (scheduler.__name__.startswith("EDM") for scheduler in (made, type(stored)))
    fits = made is type(stored) or (made in stored.compatibles and is_edm == was_edm)
    others = sorted(scheduler.__name__ for scheduler in stored.compatibles)
    known = (
        f"one for the noise schedule of the model's {type(stored).__name__}: 'ancestral', 'stored',"
        f" or one of {others}"
    )
    expect(fits, "scheduler", name, known)
    return made.from_config(stored.config, **options)


def with_spacing(scheduler: Any, timestep_spacing: str | None) -> Any:
    """Copy of a scheduler with a timestep spacing: by default "trailing" for DDIM and "linspace"
    for the others.
    """
    if isinstance(scheduler, AncestralScheduler):
        return AncestralScheduler(with_spacing(scheduler.base, timestep_spacing))
    made = type(scheduler)
    changes: dict[str, Any] = {}
    if "timestep_spacing" in scheduler.config:
        if timestep_spacing is None:
            timestep_spacing = "trailing" if _has_fixed_stride(scheduler) else "linspace"
        is_known = timestep_spacing in ("linspace", "leading", "trailing")
        expect(
            is_known, "timestep_spacing", timestep_spacing, "'linspace', 'leading' or 'trailing'"
        )
        changes["timestep_spacing"] = timestep_spacing
    else:
        expect(
            timestep_spacing is None,
            "timestep_spacing",
            timestep_spacing,
            f"None, as {made.__name__} has no such option",
        )
    if str(scheduler.config.get("variance_type", "")).startswith(
        "learned"
    ) and not uses_learned_variance(scheduler):
        # The queue passes no learned variance to these solvers, which would split it off again.
        changes["variance_type"] = None
    return made.from_config(scheduler.config, **changes) if changes else copy.deepcopy(scheduler)


def check_schedule(scheduler: Any) -> None:
    """ValueError for variances outside [0, 1] and for noise levels that are negative or not
    finite.
    """
    import torch

    scheduler = getattr(scheduler, "base", scheduler)
    for name, most in (
        ("betas", 1.0),
        ("alphas_cumprod", 1.0),
        ("sigmas", float(np.finfo(np.float32).max)),
    ):
        values = torch.as_tensor(getattr(scheduler, name, 0.0)).flatten()
        bad = values[~((values >= 0) & (values <= most))]
        expected = (
            f"finite numbers in [0, {most:.3g}]; correct its configuration (scheduler_config.json)"
        )
        expect(
            not len(bad), f"{name} of the {type(scheduler).__name__}", bad[:1].tolist(), expected
        )


def check_timesteps(scheduler: Any, num_steps: int) -> None:
    """ValueError for schedulers whose steps do not lead from each listed timestep to the next
    one.
    """
    from diffusers import LMSDiscreteScheduler

    name, order = type(scheduler).__name__, scheduler.order
    # The order of LMSDiscreteScheduler depends on the position in the chain, not on the steps done.
    is_lms = isinstance(scheduler, LMSDiscreteScheduler)
    expect(
        not is_lms,
        "scheduler",
        name,
        "one that may begin at any timestep, such as 'dpm_solver' or 'unipc'",
    )
    timesteps = scheduler.timesteps.double().numpy()
    firsts = timesteps[::order]
    descends = len(firsts) == num_steps and (np.diff(firsts) < 0).all()
    way_out = f"take fewer steps or another scheduler ({', '.join(sorted(SCHEDULERS))})"
    expected = f"{num_steps} of them, strictly descending; {way_out}"
    expect(
        descends, f"timesteps of {name}", f"{len(firsts)} steps, {firsts[:3].tolist()} ..", expected
    )
    if _has_fixed_stride(scheduler):
        most = scheduler.config.num_train_timesteps
        stride = most // num_steps
        # The last step must lead to a negative timestep, which the scheduler reads as the clean
        # image.
        leads = (np.diff(timesteps) == -stride).all() and timesteps[-1] < stride
        expected = (
            f"jumps of {stride}; take a num_steps that divides {most}, and 'trailing' spacing"
        )
        expect(leads, f"timesteps of {name}", timesteps.tolist(), expected)


def _has_fixed_stride(scheduler: Any) -> bool:
    """Whether `step` goes from t to t - T // N, not to the next timestep of the list."""
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def uses_learned_variance(scheduler: Any) -> bool:
    """Whether `step` takes the variance from the second half of the channels of the model's
    output.
    """
    # The class decides, because configurations pass the entry `variance_type` on to schedulers that
    # do not use it.
    from diffusers import DDPMParallelScheduler, DDPMScheduler

    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    return learned and isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)


def add_noise(
    scheduler: Any, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x_t of each image at its timestep, by the scheduler's own method `add_noise` or (flow
    matching) `scale_noise`.
    """
    timesteps = timesteps.to(images.device)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(images, noise, timesteps)
    return scheduler.scale_noise(images, timesteps, noise)


def amplitudes(scheduler: Any, timesteps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
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


def clean_and_noise(predicts: str, output: Any, x: Any, a: Any, s: Any) -> tuple[Any, Any]:
    """x_0 and n of x = a x_0 + s n, from a prediction of type "noise", "x0", "v", "flow",
    "score" or "edm".
    """
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

    def __init__(self, scheduler: Any) -> None:
        self.base = _plain(scheduler)
        self.config = self.base.config
        self._predicts = predicts(scheduler)

    def set_timesteps(self, num_inference_steps: int, **options: Any) -> None:
        self.base.set_timesteps(num_inference_steps, **options)
        self.timesteps = self.base.timesteps
        signal, noise = amplitudes(self.base, self.timesteps)
        # After the last step: the image itself.
        self._amplitudes = np.append(signal, 1.0), np.append(noise, 0.0)

    def add_noise(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        return add_noise(self.base, images, noise, timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return float(getattr(self.base, "init_noise_sigma", 1.0))

    def to_json_string(self) -> str:
        return self.base.to_json_string()

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.base, "scale_model_input"):
            return sample
        # A copy, since some schedulers count calls.
        return copy.copy(self.base).scale_model_input(sample, timestep)

    def step(
        self,
        output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: Any = None,
    ) -> SimpleNamespace:
        """The draw x_t' as `prev_sample`, and x̂_0 as `pred_original_sample`."""
        from diffusers.utils.torch_utils import randn_tensor

        index = int((self.timesteps == timestep).nonzero()[0])
        (a, a_next), (s, s_next) = (values[index : index + 2] for values in self._amplitudes)
        r, r_next = np.hypot(a, s), np.hypot(a_next, s_next)
        q = (a / r) ** 2 / (a_next / r_next) ** 2  # abar / abar'
        less = (s_next / r_next) ** 2 / (s / r) ** 2  # (1 - abar') / (1 - abar)
        of_clean, of_noisy = a_next / r_next * (1 - q) / (s / r) ** 2, np.sqrt(q) * less
        clean = self._clean(output, sample, float(a), float(s))
        moved = float(r_next * of_clean) * clean + float(r_next * of_noisy / r) * sample
        if index + 1 < len(self.timesteps):
            deviation = float(r_next * np.sqrt(max(0.0, (1 - q) * less)))
            moved = moved + deviation * randn_tensor(
                sample.shape, generator, sample.device, sample.dtype
            )
        return SimpleNamespace(prev_sample=moved, pred_original_sample=clean)

    def _clean(
        self, output: torch.Tensor, sample: torch.Tensor, a: float, s: float
    ) -> torch.Tensor:
        """x̂_0 from the model's output at x_t = a x_0 + s noise."""
        if hasattr(self.base, "precondition_outputs"):  # EDM: D(x; sigma) from the network's output
            clean = self.base.precondition_outputs(sample, output, s / a)
        else:
            clean = clean_and_noise(self._predicts, output, sample, a, s)[0]
        if self.config.get("thresholding"):
            return self.base._threshold_sample(clean)
        if self.config.get("clip_sample"):
            return clean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return clean


def _plain(scheduler: Any) -> Any:
    """A scheduler with the same noise schedule and one timestep for each step if it exists;
    otherwise a copy.
    """
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    if is_flow_match(scheduler):
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    continuous = config.get("timestep_type", "discrete") != "discrete"
    if DDPMScheduler in getattr(scheduler, "compatibles", ()) and not flow and not continuous:
        return DDPMScheduler.from_config(config)
    return copy.deepcopy(scheduler)
