"""User-defined denoisers: a function "module:function" returns a network of any prediction type
with its noise schedule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast, get_args

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.imports import import_function
from uturn.corruption.predictions import Prediction, predicted, solved
from uturn.corruption.schedulers import Scheduler, is_flow_match
from uturn.networks.images.noise_schedule import NoiseSchedule

ADVICE = (
    "for another network, write a function that returns it with its noise schedule: module:function"
    " (docs/models.md)"
)
"""Advice in errors about models that cannot be read from files."""
PREDICTIONS: tuple[str, ...] = (*get_args(Prediction), "edm")
"""Values of `DenoiserModel.predicts`."""
_FORMS = (
    "'module:function', a function without arguments that returns (module, scheduler) or a"
    " uturn.networks.DenoiserModel"
)


@dataclass(frozen=True)
class DenoiserModel:
    """A user-defined denoising network with its noise schedule."""

    network: Callable[..., Any]  # gives a tensor, or an object with `.sample`
    """A `torch.nn.Module` or function, called as `network(noisy, timestep)` or, with `takes =
    "sigma"`, `network(noisy, sigma)`, and with labels int64 (batch,) as a third argument if
    `num_classes` is given. noisy: float32 (batch, channels, height, width); timestep and sigma:
    (batch,). Returns a tensor of the shape of `noisy`, or an object with `.sample`.
    """
    scheduler: Any = None  # of diffusers, checked when it is loaded
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
    def prediction(self) -> Prediction:
        """The kind of prediction of the network; ValueError for an unknown one."""
        kinds: dict[str, Prediction] = {kind: kind for kind in get_args(Prediction)}
        kinds["edm"] = "x0"
        expected = f"one of {', '.join(map(repr, PREDICTIONS))}"
        expect(self.predicts in kinds, "DenoiserModel.predicts", self.predicts, expected)
        return kinds[self.predicts]

    @property
    def takes_sigma(self) -> bool:
        return self.takes == "sigma" or (self.takes is None and self.predicts == "edm")


def edm_schedule(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, levels: int = 1000
) -> Scheduler:
    """The noise levels of arXiv:2206.00364, Eq. 5, as a DDPMScheduler that does not clip: abar =
    1 / (1 + sigma^2).
    """
    from diffusers import DDPMScheduler

    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    first = sigma_min ** (1 / rho)
    last = sigma_max ** (1 / rho)
    sigma = (first + ramp * (last - first)) ** rho
    abar = 1 / (1 + sigma**2)
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    schedule = DDPMScheduler(levels, trained_betas=betas.tolist(), clip_sample=False)
    return cast(Scheduler, schedule)


def denoiser_function(path: str) -> Callable[[], Any]:  # what a user's function returns
    """The user's function "module:function"."""
    return import_function(path, f"model = {path!r}", _FORMS)


def denoiser_from_function(path: str) -> DenoiserModel:
    """The checked result of "module:function".

    If it is a pair (module, scheduler), then `predicts` is empty, as the scheduler declares the
    prediction type.
    """
    label = f"model = {path!r}"
    function = denoiser_function(path)
    with noted(label):
        returned = function()
    if isinstance(returned, DenoiserModel):
        _check(label, returned)
        return returned
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    is_model = is_pair and isinstance(returned[0], nn.Module) and is_scheduler(returned[1])
    forms = "(torch.nn.Module, scheduler of diffusers), or a DenoiserModel"
    expect(is_model, f"{label}: what it gives", returned, forms)
    network, scheduler = returned
    return DenoiserModel(network, scheduler, predicts="")


def is_scheduler(value: object) -> bool:
    """Whether a value is a scheduler of diffusers, or its class, that adds noise and takes steps."""
    adds_noise = hasattr(value, "add_noise") or hasattr(value, "scale_noise")
    return adds_noise and hasattr(value, "config") and hasattr(value, "step")


def _check(label: str, model: DenoiserModel) -> None:
    """ValueError for the first field of the model with a wrong value."""

    def require(fine: object, name: str, expected: str) -> None:
        expect(fine, f"{label}: DenoiserModel.{name}", getattr(model, name), expected)

    kinds = ", ".join(map(repr, PREDICTIONS))
    require(model.predicts in PREDICTIONS, "predicts", f"one of {kinds}")
    require(callable(model.network), "network", "a torch.nn.Module or a function")
    is_shape = _is_shape(model.image_shape)
    require(is_shape, "image_shape", "(channels, height, width), whole numbers")
    takes = ("sigma",) if model.predicts == "edm" else ("timestep", "sigma")
    require(model.takes in (None, *takes), "takes", " or ".join(map(repr, takes)))
    classes = model.num_classes
    is_count = classes is None or (isinstance(classes, int) and classes > 0)
    require(is_count, "num_classes", "the number of classes, or None")
    null_classes = "with num_classes a label that is none of the classes, such as num_classes"
    require(_is_null_class(model), "null_class", f"None, or {null_classes}")
    if model.scheduler is not None or not model.takes_sigma:
        _check_schedule(model, require)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        return False
    return all(isinstance(size, int) and size > 0 for size in shape)


def _is_null_class(model: DenoiserModel) -> bool:
    if model.null_class is None:
        return True
    if model.num_classes is None or not isinstance(model.null_class, int):
        return False
    return not 0 <= model.null_class < model.num_classes


def _check_schedule(model: DenoiserModel, require: Callable[[object, str, str], None]) -> None:
    scheduler = model.scheduler
    example = "a scheduler of diffusers with the noise schedule, such as DDPMScheduler()"
    is_object = is_scheduler(scheduler) and not isinstance(scheduler, type)
    require(is_object, "scheduler", example)
    flow = is_flow_match(scheduler)
    options = scheduler.config.items()
    has_own_sigmas = any(value for key, value in options if re.fullmatch("use_.*_sigmas", key))
    has_table = hasattr(scheduler, "alphas_cumprod") and "prediction_type" in scheduler.config
    schedules = (
        "one with alphas_cumprod, such as DDPMScheduler, or FlowMatchEulerDiscreteScheduler,"
        " without use_.._sigmas; `scheduler` of the run chooses the sampler"
    )
    require((flow or has_table) and not has_own_sigmas, "scheduler", schedules)
    infinite = (
        "as flow matching ends in pure noise, where sigma is infinite and the noise determines"
        " no x_0"
    )
    require(not flow or not model.takes_sigma, "takes", f"'timestep', {infinite}")
    determines_clean = model.predicts not in ("noise", "score")
    require(not flow or determines_clean, "predicts", f"'x0', 'v' or 'flow', {infinite}")


class Conversion(nn.Module):
    """Converts the input and the output of the network of a `DenoiserModel` for its `scheduler`,
    which is configured for the converted output.

    That output is the flow for flow matching, the noise if the network predicts it, and otherwise
    v, from which x_0 and the noise follow without cancellation.
    """

    def __init__(self, model: DenoiserModel) -> None:
        super().__init__()
        self.prediction = model.prediction
        self.takes_sigma = model.takes_sigma
        self.scheduler: Scheduler = edm_schedule() if model.scheduler is None else model.scheduler
        self.schedule = NoiseSchedule(self.scheduler)
        self.converted: Prediction = "v"
        if is_flow_match(self.scheduler):
            self.converted = "flow"
            return
        if self.prediction == "noise":
            self.converted = "noise"
        option = {"noise": "epsilon", "v": "v_prediction"}[self.converted]
        kind: Any = type(self.scheduler)
        self.scheduler = kind.from_config(self.scheduler.config, prediction_type=option)

    def inputs(
        self, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network takes in place of x_t and its timestep."""
        if not self.takes_sigma:
            return noisy, timestep
        a, s = self.schedule.at(timestep.reshape(-1, 1, 1, 1))
        return noisy / a, (s / a).flatten()

    def output(
        self, output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The input of the scheduler, from the output of the network, for x_t in the units of
        the scheduler.
        """
        if self.prediction == self.converted:
            return output
        a, s = self.schedule.at(timestep.reshape(-1, 1, 1, 1))
        if self.takes_sigma:
            clean, noise = solved(self.prediction, output, noisy / a, 1.0, s / a)
        else:
            clean, noise = solved(self.prediction, output, noisy, a, s)
        return predicted(self.converted, clean, noise, a, s)


class OwnNetwork(nn.Module):
    """A user's network or function, run under `torch.autocast` in half precision; ValueError if
    its output is wrong.
    """

    def __init__(
        self,
        network: Callable[..., Any],  # gives a tensor, or an object with `.sample`
        label: str,
        dtype: torch.dtype,
        learned_variance: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.label = label
        self.learned_variance = learned_variance
        self.precision = None if dtype == torch.float32 else dtype

    def forward(self, noisy: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        with (
            noted(self.label),
            torch.autocast(noisy.device.type, self.precision, enabled=self.precision is not None),
        ):
            # It may modify its inputs.
            output = self.network(noisy.clone(), *(tensor.clone() for tensor in arguments))
        tensor: torch.Tensor = getattr(output, "sample", output)
        self._check(tensor, noisy)
        return tensor

    def _check(self, output: object, noisy: torch.Tensor) -> None:
        """ValueError for an output that does not fit the noisy images."""
        count, channels, *size = noisy.shape
        shapes = [(count, channels, *size)]
        if self.learned_variance:
            shapes.append((count, 2 * channels, *size))
        expected = f"floating point numbers {' or '.join(map(str, shapes))}"
        where = f"{self.label}: output for noisy images {tuple(noisy.shape)}"
        expect(isinstance(output, torch.Tensor), where, output, expected)
        assert isinstance(output, torch.Tensor)
        shape = tuple(output.shape)
        fits = shape in shapes and output.is_floating_point()
        expect(fits, where, (output.dtype, shape), expected)

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile the user's module; functions are not compiled."""
        if isinstance(self.network, nn.Module):
            self.network.compile(*args, **kwargs)
