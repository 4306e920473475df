"""What is checked: a function, recorded files, a scheduler, or single steps; and the setting in
which it makes U-turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from uturn.backward.diffusion import DiffusionModel
from uturn.backward.recorded import RecordedImages
from uturn.core.checks import expect
from uturn.core.data import Originals
from uturn.core.experiment import Experiment
from uturn.core.imports import import_function, is_import_path
from uturn.core.progress import begun
from uturn.core.protocols import Backward, Corruption
from uturn.core.random import Purpose, Streams, keys
from uturn.core.u_turns import u_turns
from uturn.tools.check_sampler.options import SamplerOptions
from uturn.tools.check_sampler.steps import OwnSteps, called, seeds_of

Function = Callable[..., Any]

_SAMPLER = (
    "'module:function', a function (images, noise, seed) -> reconstructions, or the name of a"
    " scheduler"
)
_STEP = (
    "'module:function', a function (noisy, noise, seed) -> noisy images one step closer to the"
    " clean end"
)
_OURS = range(2)
"""Trajectories of uturn's own U-turns."""
_THEIRS = range(2, 4)
"""Trajectories of the U-turns of a scheduler or of single steps, with other random numbers."""


@dataclass(frozen=True)
class Setting:
    """The originals and noise levels of a check, and uturn's own sampler with the same model."""

    options: SamplerOptions
    own: Experiment
    originals: Originals

    @classmethod
    def of(cls, options: SamplerOptions) -> Setting:
        """The setting of options; ValueError if the source has too few originals."""
        own = options.experiment()
        own.parts.source.coordinates(options.seed, options.items)
        items = np.arange(options.items)
        (originals,) = own.parts.source.blocks(items, options.seed, options.items)
        return cls(options, own, originals)

    @property
    def model(self) -> DiffusionModel:
        model = self.own.parts.backward
        assert isinstance(model, DiffusionModel)  # as the preset of images makes it
        return model

    @property
    def corruption(self) -> Corruption[Any, Any]:
        return self.own.parts.corruption

    def own_u_turns(self) -> np.ndarray:
        """Two U-turns of each original by uturn's own sampler, (noise, items, 2, ...)."""
        return self.u_turns(self.corruption, self.model, _OURS, self.options.noise())

    def u_turns(
        self,
        corruption: Corruption[Any, Any],
        backward: Backward[Any],
        trajectories: range,
        noise_levels: Sequence[float],
        clones: int = 1,
    ) -> np.ndarray:
        """Reconstructions (noise, items, trajectories * clones, ...)."""
        items = self.originals.items
        seed = self.options.seed
        # Long U-turns first, which keeps the batches of the network full.
        blocks = (
            (level, self.originals, level, Streams(seed, items, level, trajectories))
            for level in noise_levels[::-1]
        )
        total = len(noise_levels) * len(items) * len(trajectories) * clones
        with begun(1, unit=1 / total):
            stream = u_turns(blocks, corruption, backward, clones=clones)
            made = {level: turned.reconstructions for level, turned in stream}
        return np.stack([made[level] for level in noise_levels])


@dataclass(frozen=True)
class Steps:
    """Reverse steps of a sampler, and the noise that they undo."""

    backward: OwnSteps | DiffusionModel
    forward: Corruption[Any, Any]

    @property
    def calls_in_a_step(self) -> int:
        """Calls of the model in one step of the scheduler."""
        model = self.backward.model if isinstance(self.backward, OwnSteps) else self.backward
        return int(model.reverse().forward.scheduler.order)


class Sampler(ABC):
    """What is checked."""

    name: str
    steps: Steps | None = None
    """None if only its U-turns are known."""

    @abstractmethod
    def u_turns(self, setting: Setting) -> np.ndarray:
        """Two U-turns of each original, (noise, items, 2, ...)."""


class FunctionSampler(Sampler):
    """A user's function (images, noise, seed) -> reconstructions."""

    def __init__(self, name: str, function: Function, steps: Steps | None = None) -> None:
        self.name = name
        self.function = function
        self.steps = steps

    def u_turns(self, setting: Setting) -> np.ndarray:
        noise_levels = setting.options.noise()
        images = setting.originals.data
        numbers = np.arange(2 * len(noise_levels))
        seeds = seeds_of(keys(setting.options.seed, Purpose.RECONSTRUCTION, numbers))
        made = []
        for k, level in enumerate(noise_levels):
            pair = [
                called(self.function, f"sampler = {self.name!r}", images, level, seed)
                for seed in seeds[2 * k : 2 * k + 2]
            ]
            made.append(np.stack(pair, axis=1))
        return np.stack(made).clip(-1, 1)


class SteppingSampler(Sampler):
    """U-turns by single reverse steps: those of a user's function, or of a scheduler."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.name = name
        self.steps: Steps = steps

    def u_turns(self, setting: Setting) -> np.ndarray:
        noise_levels = setting.options.noise()
        return setting.u_turns(self.steps.forward, self.steps.backward, _THEIRS, noise_levels)


class RecordedSampler(Sampler):
    """U-turns in image files."""

    def __init__(self, pattern: str) -> None:
        self.name = pattern

    def u_turns(self, setting: Setting) -> np.ndarray:
        """The first two recorded U-turns of each original."""
        backward = RecordedImages(pattern=self.name)
        trajectories = backward.files.trajectories
        where = f"recorded = {self.name!r}: trajectories"
        expect(len(trajectories) > 1, where, trajectories, "two or more, which the tests compare")
        corruption = backward.forward_process(setting.own.parts.source)
        noise_levels = setting.options.noise()
        made = setting.u_turns(corruption, backward, range(2), noise_levels)
        files = (
            f"two trajectories of each of the first {setting.options.items} originals at noise"
            f" {noise_levels}"
        )
        expect(np.isfinite(made).all(), "recorded", self.name, files)
        return made


def sampler_of(
    setting: Setting, function: Function | None = None, step: Function | None = None
) -> Sampler:
    """The sampler that options name, or the functions that are given in place of names."""
    options = setting.options
    if options.recorded is not None:
        is_alone = function is None and step is None
        expect(is_alone, "recorded", options.recorded, "no sampler and no step beside it")
        return RecordedSampler(options.recorded)
    name = options.sampler
    if function is not None:
        name = _name_of(function)
    elif is_import_path(name):
        function = import_function(name, f"sampler = {name!r}", _SAMPLER, _SAMPLER)
    steps = _own_steps(setting, step)
    if function is not None:
        return FunctionSampler(name, function, steps)
    if steps is not None:
        assert isinstance(steps.backward, OwnSteps)
        return SteppingSampler(steps.backward.name, steps)
    other = options.model_copy(update={"scheduler": name}).experiment()
    model = other.parts.backward
    assert isinstance(model, DiffusionModel)
    return SteppingSampler(name, Steps(model, other.parts.corruption))


def _own_steps(setting: Setting, step: Function | None) -> Steps | None:
    name = setting.options.step
    if step is not None:
        name = _name_of(step)
    elif name is not None:
        step = import_function(name, f"step = {name!r}", _STEP, _STEP)
    if step is None or name is None:
        return None
    return Steps(OwnSteps(step, setting.model, name), setting.corruption)


def _name_of(function: Function) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    module = getattr(function, "__module__", "")
    return f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"
