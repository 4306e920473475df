"""Single reverse steps: repeated from the same noisy data, their variance, and those of a user's
function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import expect
from uturn.core.data import Noisy
from uturn.core.errors import noted
from uturn.core.protocols import Backward
from uturn.core.random import Purpose, Streams
from uturn.corruption.schedulers import uses_learned_variance

_WITH_FORMULA = ("Ancestral", "EulerAncestral", "DDPM", "DDIM")
"""How the names of schedulers begin whose steps have a variance with a formula."""


class OwnSteps(Backward):
    """Reverse steps by a user's function (noisy, noise, seed) of N steps; `name`: how errors name
    it.

    It makes x_t' at t'/T = noise - 1/N from x_t at t/T = noise, float32 (batch, channels, height,
    width), in units of the model.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    undoes: ClassVar[tuple[str, ...]] = ("diffusion",)

    def __init__(self, function: Callable[..., Any], model: DiffusionModel, name: str) -> None:
        self.function = function
        self.model = model
        self.name = name

    def reconstruct(self, noisy: Noisy, streams: Streams, clones: int = 1) -> np.ndarray:
        reverse = self.model.reverse()
        values = np.repeat(noisy.values, clones, axis=0)
        seeds = seeds_of(streams.keys(Purpose.RECONSTRUCTION, clones))
        for number, step in enumerate(range(reverse.forward.step_of(streams.noise), 0, -1)):
            values = self.step(values, step / reverse.sampler.steps, seeds[0] + number)
        values = reverse.decoded(values)
        return values.reshape(len(streams.items), -1, *values.shape[1:])

    def step(self, values: np.ndarray, noise: float, seed: int) -> np.ndarray:
        """One step of noisy data (batch, ...) at t/T = noise."""
        return called(self.function, f"step = {self.name!r}", values, noise, seed)


def seeds_of(keys: np.ndarray) -> list[int]:
    """Seeds of 31 bits, which every generator takes, from keys of random streams."""
    return [int(key) for key in keys >> np.uint64(33)]


def called(
    function: Callable[..., Any], label: str, values: np.ndarray, noise: float, seed: int
) -> np.ndarray:
    """The result of a user's function of images or noisy data, of the same shape, or a
    ValueError that begins with the label.
    """
    with noted(label):
        result = function(torch.tensor(values), noise, seed)
    expect(
        isinstance(result, torch.Tensor | np.ndarray),
        f"{label}: result",
        result,
        f"a tensor {values.shape}",
    )
    made = torch.as_tensor(result).detach().float().cpu().numpy()
    expect(
        made.shape == values.shape,
        f"{label}: shape at noise {noise:g}",
        made.shape,
        f"{values.shape}",
    )
    expect(np.isfinite(made).all(), f"{label}: result at noise {noise:g}", made, "finite numbers")
    return made


def repeated_step(
    backward: OwnSteps | DiffusionModel, noisy: Noisy, streams: Streams, repeats: int
) -> np.ndarray:
    """x_t' after the first reverse step from each noisy datum, in variance-preserving units:
    (items, repeats, ..).

    `backward`: `OwnSteps`, or a `DiffusionModel` whose scheduler makes one call of the model in a
    step.
    """
    if isinstance(backward, OwnSteps):
        reverse = backward.model.reverse()
        seed, *_ = seeds_of(streams.keys(Purpose.RECONSTRUCTION))
        states = backward.step(np.repeat(noisy.values, repeats, axis=0), streams.noise, seed)
    else:
        reverse = backward.reverse()
        cohort = reverse.cohort(list(backward.works(noisy, streams, repeats)))
        reverse.step_back([cohort])
        states = cohort.state.cpu().numpy()
    levels = reverse.forward.noise_levels
    step = reverse.forward.step_of(streams.noise) - 1
    scale = levels["signal"][step] / np.sqrt(levels["abar"][step])
    return np.asarray(states.reshape(-1, repeats, *states.shape[1:]) / scale)


def step_variance(
    model: DiffusionModel, noisy: Noisy, streams: Streams
) -> float | np.ndarray | None:
    """Variance of one reverse step from x_t to the next timestep t', as the sampler declares it;
    None if it has no formula here.

    With abar at t, abar' at t' and q = abar / abar', in variance-preserving units
    (arXiv:2006.11239, section 3.2),

        small = (1 - q) (1 - abar') / (1 - abar),    large = 1 - q.

    DDPM has the one that its configuration names, or a learned one between both, exp(w log large +
    (1 - w) log small) with the model's w of every pixel (arXiv:2102.09672); ancestral samplers have
    the small one, DDIM eta^2 times the small one, and deterministic samplers 0. A number, or
    float64 (items, channels, height, width), in variance-preserving units.
    """
    reverse = model.reverse()
    scheduler = reverse.forward.scheduler
    step = reverse.forward.step_of(streams.noise)
    levels = reverse.forward.noise_levels
    kind = type(scheduler).__name__
    if not reverse.is_stochastic:
        return 0.0
    if not kind.startswith(_WITH_FORMULA):
        return None
    abar = float(levels["abar"][step])
    next_abar = float(levels["abar"][step - 1])
    large = 1 - abar / next_abar
    small = large * (1 - next_abar) / (1 - abar)
    if kind.startswith("DDIM"):
        return small * (reverse.sampler.eta or 0.0) ** 2
    if not kind.startswith("DDPM"):
        return small
    rule = str(scheduler.config.variance_type)
    if not uses_learned_variance(scheduler):
        return large if rule.startswith("fixed_large") else small
    cohort = reverse.cohort(list(model.works(noisy, streams, 1)))
    with torch.inference_mode():
        output = reverse.prediction(*cohort.inputs())
    # The second half of the channels.
    learned: np.ndarray = output[:, cohort.state.shape[1] :].double().cpu().numpy()
    if rule == "learned":
        return learned
    share = (learned + 1) / 2
    return np.asarray(np.exp(share * np.log(large) + (1 - share) * np.log(small)))
