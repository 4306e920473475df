"""The ancestral step: reverse steps that draw from the posterior, for any noise schedule and any prediction type."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.corruption.noising import add_noise, amplitudes, clean_and_noise

if TYPE_CHECKING:
    import torch

_PREDICTIONS = {
    "epsilon": "noise",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


class AncestralScheduler:
    """Reverse steps x_t -> x_t' drawn from q(x_t' | x_t, x_0), with the model's x̂_0 in the place of x_0.

    With x_t = a x_0 + s noise, r^2 = a^2 + s^2, z = x_t / r and abar = a^2 / r^2 (variance-preserving units), and primes at the
    next timestep, a step draws, with q = abar / abar',

        z' = sqrt(abar') (1 - q) / (1 - abar) x̂_0 + sqrt(q) (1 - abar') / (1 - abar) z
             + sqrt((1 - q) (1 - abar') / (1 - abar)) xi,    xi ~ N(0, 1).

    In variance-preserving units this is DDPM with its smaller variance (eq. 7 of arXiv:2006.11239); here it also serves flow
    matching, a = 1 - sigma and s = sigma, and schedules with a = 1. The last step leads to x̂_0.

    It has the methods of a scheduler of diffusers. Timesteps, noisy images and the scaling of the model's input are those of
    `base`; the prediction type is that of its configuration. Options that clip x̂_0 are followed, learned variances are not used.

    Parameters
    ----------
    scheduler
        The scheduler of diffusers stored with the model. Only its noise schedule counts: `base` is the DDPM scheduler with this
        schedule, or FlowMatchEulerDiscreteScheduler for flow matching, or a copy of another scheduler.

    Raises
    ------
    ValueError
        For a prediction type other than noise, x_0, velocity and flow.
    """

    order = 1

    def __init__(self, scheduler: Any) -> None:
        self.base = _plain(scheduler)
        self.config = self.base.config
        self._prediction = self.config.get("prediction_type") or "flow_prediction"  # flow matching has no such option
        if self._prediction not in _PREDICTIONS:
            raise ValueError(
                f"prediction_type = {self._prediction!r} of {type(scheduler).__name__}: the scheduler 'ancestral' expects one of "
                f"{', '.join(_PREDICTIONS)}; take 'stored'"
            )

    def set_timesteps(self, num_inference_steps: int, **options: Any) -> None:
        self.base.set_timesteps(num_inference_steps, **options)
        self.timesteps = self.base.timesteps
        signal, noise = amplitudes(self.base, self.timesteps)
        self._amplitudes = np.append(signal, 1.0), np.append(noise, 0.0)  # after the last step: the image itself

    def add_noise(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return add_noise(self.base, images, noise, timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return float(getattr(self.base, "init_noise_sigma", 1.0))

    def to_json_string(self) -> str:
        return self.base.to_json_string()

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.base, "scale_model_input"):
            return sample
        return copy.copy(self.base).scale_model_input(sample, timestep)  # a copy, since some schedulers count the calls

    def step(self, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, generator: Any = None) -> SimpleNamespace:
        """The draw x_t' as `prev_sample`, and x̂_0 as `pred_original_sample`."""
        from diffusers.utils.torch_utils import randn_tensor

        index = int((self.timesteps == timestep).nonzero()[0])
        (a, a_next), (s, s_next) = (values[index : index + 2] for values in self._amplitudes)
        r, r_next = np.hypot(a, s), np.hypot(a_next, s_next)
        q = (a / r) ** 2 / (a_next / r_next) ** 2  # abar / abar'
        less = (s_next / r_next) ** 2 / (s / r) ** 2  # (1 - abar') / (1 - abar)
        of_clean, of_noisy = a_next / r_next * (1 - q) / (s / r) ** 2, np.sqrt(q) * less
        clean = self._clipped(self._clean(output, sample, float(a), float(s)))
        moved = float(r_next * of_clean) * clean + float(r_next * of_noisy / r) * sample
        if index + 1 < len(self.timesteps):
            deviation = float(r_next * np.sqrt(max(0.0, (1 - q) * less)))
            moved = moved + deviation * randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        return SimpleNamespace(prev_sample=moved, pred_original_sample=clean)

    def _clean(self, output: torch.Tensor, sample: torch.Tensor, a: float, s: float) -> torch.Tensor:
        """x̂_0 from the model's output at x_t = a x_0 + s noise."""
        if hasattr(self.base, "precondition_outputs"):  # EDM: D(x; sigma) from the network's output
            return self.base.precondition_outputs(sample, output, s / a)
        return clean_and_noise(_PREDICTIONS[self._prediction], output, sample, a, s)[0]

    def _clipped(self, clean: torch.Tensor) -> torch.Tensor:
        if self.config.get("thresholding"):
            return self.base._threshold_sample(clean)
        if self.config.get("clip_sample"):
            return clean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return clean


def _plain(scheduler: Any) -> Any:
    """The scheduler with one timestep for each step and the same noise schedule, where there is one; else a copy."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    continuous = config.get("timestep_type", "discrete") != "discrete"
    if DDPMScheduler in getattr(scheduler, "compatibles", ()) and not flow and not continuous:
        return DDPMScheduler.from_config(config)
    return copy.deepcopy(scheduler)
