"""User-defined denoisers: a function "module:function" returns a network of any prediction type
with its noise schedule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.imports import import_function
from uturn.corruption.schedulers import clean_and_noise, is_flow_match
from uturn.networks.images.levels import Levels

ADVICE = (
    "for another network, write a function that returns it with its noise schedule: module:function"
    " (docs/models.md)"
)
"""Advice in errors about models that cannot be read from files."""
PREDICTIONS = ("noise", "x0", "v", "flow", "score", "edm")
_FORMS = (
    "'module:function', a function without arguments that returns (module, scheduler) or a"
    " uturn.networks.DenoiserModel"
)


@dataclass(frozen=True)
class DenoiserModel:
    """A user-defined denoising network with its noise schedule."""

    network: Any
    """A `torch.nn.Module` or function, called as `network(noisy, timestep)` or, with `takes =
    "sigma"`, `network(noisy, sigma)`, and with labels int64 (batch,) as a third argument if
    `num_classes` is given. noisy: float32 (batch, channels, height, width); timestep and sigma:
    (batch,). Returns a tensor of the shape of `noisy`, or an object with `.sample`.
    """
    scheduler: Any = None
    """A scheduler of diffusers with the noise schedule: one with `alphas_cumprod` such as
    DDPMScheduler, or FlowMatchEulerDiscreteScheduler. Its prediction type is not read. By
    default, for `takes = "sigma"` only, `edm_schedule()`.
    """
    _: KW_ONLY
    predicts: str
    """With x_t = a x_0 + s n, n ~ N(0, 1): "noise" n; "x0", its mean given x_t; "v" = (a n - s
    x_0) / sqrt(a^2 + s^2); "flow" n - x_0; "score" of x_t, -n / s; "edm", the preconditioned
    D(x; sigma) of arXiv:2206.00364: x0 with `takes = "sigma"`.
    """
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width)."""
    takes: str | None = None
    """"timestep": noisy is x_t in the units of the scheduler, and timestep is the scheduler's, 0
    .. num_train_timesteps, not always an integer. "sigma": noisy is x_0 + sigma n. By default
    "sigma" for "edm", else "timestep".
    """
    num_classes: int | None = None
    null_class: int | None = None
    """The label for no class, outside of 0 .. num_classes - 1."""

    @property
    def takes_sigma(self) -> bool:
        return self.takes == "sigma" or (self.takes is None and self.predicts == "edm")


def edm_schedule(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, levels: int = 1000
) -> Any:
    """The noise levels of arXiv:2206.00364, Eq. 5, as a DDPMScheduler that does not clip: abar =
    1 / (1 + sigma^2).
    """
    from diffusers import DDPMScheduler

    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    sigma = (
        sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))
    ) ** rho
    abar = 1 / (1 + sigma**2)
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return DDPMScheduler(levels, trained_betas=betas.tolist(), clip_sample=False)


def denoiser_function(path: str) -> Callable[[], Any]:
    return import_function(path, f"model = {path!r}", _FORMS)


def denoiser_from_function(path: str) -> tuple[DenoiserModel, bool]:
    """The checked result of "module:function", and whether it is a pair (module, scheduler).

    The scheduler of a pair declares the prediction type.
    """
    label, function = f"model = {path!r}", denoiser_function(path)
    with noted(label):
        returned = function()
    if isinstance(returned, DenoiserModel):
        _check(label, returned)
        return returned, False
    pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], nn.Module)
    is_model = pair and is_scheduler(returned[1])
    expect(
        is_model,
        f"{label}: what it gives",
        returned,
        "(torch.nn.Module, scheduler of diffusers), or a DenoiserModel",
    )
    return DenoiserModel(*returned, predicts=""), True


def is_scheduler(value: Any) -> bool:
    """Whether a value is a scheduler of diffusers that adds noise and takes steps."""
    return (
        hasattr(value, "config")
        and hasattr(value, "step")
        and (hasattr(value, "add_noise") or hasattr(value, "scale_noise"))
    )


def _check(label: str, model: DenoiserModel) -> None:
    def require(fine: Any, name: str, expected: str) -> None:
        expect(fine, f"{label}: DenoiserModel.{name}", getattr(model, name), expected)

    shape, classes, null, scheduler = (
        model.image_shape,
        model.num_classes,
        model.null_class,
        model.scheduler,
    )
    require(
        model.predicts in PREDICTIONS, "predicts", f"one of {', '.join(map(repr, PREDICTIONS))}"
    )
    is_shape = (
        isinstance(shape, tuple | list)
        and len(shape) == 3
        and all(isinstance(size, int) and size > 0 for size in shape)
    )
    require(callable(model.network), "network", "a torch.nn.Module or a function")
    require(is_shape, "image_shape", "(channels, height, width), whole numbers")
    takes = ("sigma",) if model.predicts == "edm" else ("timestep", "sigma")
    require(model.takes in (None, *takes), "takes", " or ".join(map(repr, takes)))
    require(
        classes is None or (isinstance(classes, int) and classes > 0),
        "num_classes",
        "the number of classes, or None",
    )
    fits = null is None or (
        classes is not None and isinstance(null, int) and not 0 <= null < classes
    )
    require(
        fits,
        "null_class",
        "None, or with num_classes a label that is none of the classes, such as num_classes",
    )
    if scheduler is None and model.takes_sigma:
        return
    require(
        is_scheduler(scheduler),
        "scheduler",
        "a scheduler of diffusers with the noise schedule, such as DDPMScheduler()",
    )
    flow, config = is_flow_match(scheduler), scheduler.config
    odd = any(value for key, value in config.items() if re.fullmatch("use_.*_sigmas", key))
    known = flow or (hasattr(scheduler, "alphas_cumprod") and "prediction_type" in config)
    schedules = (
        "one with alphas_cumprod, such as DDPMScheduler, or FlowMatchEulerDiscreteScheduler,"
        " without use_.._sigmas"
    )
    require(
        known and not odd, "scheduler", f"{schedules}; `scheduler` of the run chooses the sampler"
    )
    infinite = (
        "as flow matching ends in pure noise, where sigma is infinite and the noise determines"
        " no x_0"
    )
    require(not flow or not model.takes_sigma, "takes", f"'timestep', {infinite}")
    require(
        not flow or model.predicts not in ("noise", "score"),
        "predicts",
        f"'x0', 'v' or 'flow', {infinite}",
    )


class Prediction(nn.Module):
    """Converts between a `DenoiserModel` and its `scheduler`, which is configured for the output of
    this class.

    That output is the flow for flow matching, the noise if the network predicts it, and otherwise
    v, from which x_0 and the noise follow without cancellation.
    """

    def __init__(self, model: DenoiserModel) -> None:
        super().__init__()
        self.predicts, self.takes_sigma = model.predicts, model.takes_sigma
        scheduler = edm_schedule() if model.scheduler is None else model.scheduler
        self.wanted = (
            "flow" if is_flow_match(scheduler) else "noise" if self.predicts == "noise" else "v"
        )
        self.levels, self.scheduler = Levels(scheduler), scheduler
        if self.wanted != "flow":
            kind = {"noise": "epsilon", "v": "v_prediction"}[self.wanted]
            self.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)

    def inputs(
        self, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.takes_sigma:
            return noisy, timestep
        a, s = self.levels.at(timestep.reshape(-1, 1, 1, 1))
        return noisy / a, (s / a).flatten()

    def expected(
        self, output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The input of the scheduler, from the output of the network, for x_t in the units of
        the scheduler.
        """
        if self.predicts == self.wanted:
            return output
        a, s = self.levels.at(timestep.reshape(-1, 1, 1, 1))
        x, scale, sigma = (noisy / a, 1.0, s / a) if self.takes_sigma else (noisy, a, s)
        clean, noise = clean_and_noise(self.predicts, output, x, scale, sigma)
        if self.wanted == "flow":
            return noise - clean
        return noise if self.wanted == "noise" else a * noise - s * clean


class OwnNetwork(nn.Module):
    """A user's network or function, run under `torch.autocast` in half precision; ValueError if
    its output is wrong.
    """

    def __init__(
        self, network: Any, label: str, dtype: torch.dtype, learned_variance: bool
    ) -> None:
        super().__init__()
        self.network, self.label, self.learned_variance = network, label, learned_variance
        self.precision = None if dtype == torch.float32 else dtype

    def forward(self, noisy: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        with (
            noted(self.label),
            torch.autocast(noisy.device.type, self.precision, enabled=self.precision is not None),
        ):
            # It may modify its inputs.
            output = self.network(noisy.clone(), *(tensor.clone() for tensor in arguments))
        output = getattr(output, "sample", output)
        count, channels, *size = noisy.shape
        widths = (channels, 2 * channels) if self.learned_variance else (channels,)
        shapes = [(count, width, *size) for width in widths]
        is_tensor = isinstance(output, torch.Tensor)
        fits = is_tensor and tuple(output.shape) in shapes and output.is_floating_point()
        found = (output.dtype, tuple(output.shape)) if is_tensor else output
        expected = f"floating point numbers {' or '.join(map(str, shapes))}"
        expect(fits, f"{self.label}: output for noisy images {tuple(noisy.shape)}", found, expected)
        return output

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the user's module; functions are not compiled."""
        if isinstance(self.network, nn.Module):
            self.network.compile(*args, **kwargs)
