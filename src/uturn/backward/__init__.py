"""The way back: from a noisy observation to a reconstruction of the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from uturn.checks import checked_noise
from uturn.corruption import Corruption
from uturn.random import keys
from uturn.sources import CORRUPTION, RECONSTRUCTION, Images, Strings

if TYPE_CHECKING:
    from uturn.backward.reverse_diffusion import ReverseDiffusion
    from uturn.inference import Beliefs


@dataclass(frozen=True)
class UTurns:
    """U-turns of a batch of originals at one noise level: what probes read.

    Attributes
    ----------
    originals : Strings or Images
    reconstructions : {tree_level: int64 (items, trajectories, nodes)}, or float32 (items, trajectories, channels, height, width)
    beliefs : Beliefs or None
        Exact messages given each noisy observation, batch = items x trajectories, item-major (or just the items if the
        corruption draws nothing).
    """

    originals: Any
    reconstructions: Any
    beliefs: Beliefs | None = None


class Backward(Protocol):
    """What an experiment asks of a way back; any object with these methods will do."""

    def u_turn(
        self, originals: Any, corruption: Any, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        """U-turns of a batch; random numbers depend on (seed, item, trajectory, noise) only."""
        ...

    def noise_coordinates(self, corruption: Any, noise: Sequence[float], source: Any) -> dict[str, tuple[Any, dict[str, str]]]:
        """Coordinates of the noise axis, checked: {name: (values, attributes)}."""
        ...

    def fingerprint(self) -> str:
        """Identity of the weights, if any, recorded with the results."""
        ...


def stream(seed: int, purpose: int, items: np.ndarray, trajectories: int, noise: float) -> np.ndarray:
    """One key per U-turn, uint64 (items * trajectories,), item-major.

    The noise level enters by its value, not by its place in the grid, so that a finer grid repeats the old numbers.
    """
    level = np.float64(noise).view(np.uint64)
    return keys(seed, purpose, items[:, None], np.arange(trajectories), level).reshape(-1)


class ExactPosterior(BaseModel):
    """Draws from the exact posterior of the Random Hierarchy Model, by belief propagation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["exact"] = "exact"

    def u_turn(
        self, originals: Strings, corruption: Corruption, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        from uturn.inference import infer, sample_posterior

        rhm, leaves, items = originals.rhm, originals.draw.leaves, originals.items
        copies = trajectories if corruption.is_random else 1
        noisy = corruption.corrupt(
            np.repeat(leaves, copies, axis=0), noise, rhm.vocab_size, stream(seed, CORRUPTION, items, copies, noise)
        )
        evidence = corruption.log_evidence(noisy, np.float32)
        wanted = tuple(outputs)
        beliefs = infer(rhm, evidence, outputs=wanted) if wanted else None
        posterior = stream(seed, RECONSTRUCTION, items, copies, noise)
        if corruption.is_random:
            drawn = sample_posterior(rhm, evidence, posterior)
        else:  # one upward pass serves all trajectories
            drawn = sample_posterior(rhm, evidence, posterior, num_draws=trajectories)
            drawn = {level: nodes.swapaxes(0, 1) for level, nodes in drawn.items()}
        shape = (len(items), trajectories, -1)
        return UTurns(originals, {level: nodes.reshape(shape) for level, nodes in drawn.items()}, beliefs)

    def noise_coordinates(
        self, corruption: Corruption, noise: Sequence[float], source: Any
    ) -> dict[str, tuple[Any, dict[str, str]]]:
        levels = checked_noise(list(noise), corruption.max_noise)
        v = source.vocab_size
        coordinates: dict[str, tuple[Any, dict[str, str]]] = {
            "noise": (levels, {"long_name": corruption.unit}),
            "effective_epsilon": (corruption.effective_epsilon(levels, v), {"long_name": "effective epsilon (Eq. 63)"}),
            "bits_per_leaf": (corruption.bits_per_leaf(levels, v), {"long_name": "information per leaf", "units": "bit"}),
        }
        for name, words in (("abar", "signal power abar"), ("log_snr", "log signal-to-noise ratio")):
            if hasattr(corruption, name):
                coordinates[name] = (getattr(corruption, name)(levels), {"long_name": words})
        return coordinates

    def fingerprint(self) -> str:
        return ""


class DiffusionModel(BaseModel):
    """A diffusion model run backwards with one of diffusers' schedulers.

    `model`: "fashion_mnist", or a folder in diffusers' layout. `steps`: reverse steps of the whole chain; the noise levels of the
    experiment are fractions t/T of it. `scheduler`: "ddpm", "ddim", ...; `eta` for schedulers that take it;
    `timestep_spacing` as in diffusers ("linspace" by default, "trailing" for DDIM).
    """

    # Several processes are faster than one with several threads on the CPU, where the model is loaded: the threads of
    # convolutions of small images wait for each other.
    wants_processes: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["diffusion"] = "diffusion"
    model: str = "fashion_mnist"
    scheduler: str = "ddpm"
    steps: int = Field(default=100, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    batch_size: int = Field(default=64, ge=1)

    def u_turn(
        self, originals: Images, corruption: Any, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        images = np.repeat(originals.images, trajectories, axis=0)
        noises = stream(seed, RECONSTRUCTION, originals.items, trajectories, noise)
        rebuilt = _reverse_diffusion(self).u_turn(images, self.step_of(noise), noises)
        shape = (len(originals.items), trajectories, *originals.images.shape[1:])
        return UTurns(originals, np.asarray(rebuilt, np.float32).reshape(shape))

    def step_of(self, noise: float) -> int:
        """Number of reverse steps k of a U-turn at t/T = noise."""
        return round(noise * self.steps)

    def noise_coordinates(self, corruption: Any, noise: Sequence[float], source: Any) -> dict[str, tuple[Any, dict[str, str]]]:
        levels = checked_noise(list(noise), 1)
        step = np.array([self.step_of(level) for level in levels])
        if len(set(step.tolist())) < len(step):
            raise ValueError(
                f"noise = {list(noise)}: two levels fall on the same of the {self.steps} steps; take levels at least "
                f"1/steps = {1 / self.steps} apart, or more steps"
            )
        reverse = _reverse_diffusion(self)
        expected, found = reverse.image_shape, source.all_images()[0].shape[1:]
        if expected is not None and tuple(expected) != tuple(found):
            raise ValueError(
                f"the images are {found} (channels, height, width), but the model {self.model!r} takes {tuple(expected)}; give "
                f"the source the model's `channels` and `size`"
            )
        table = reverse.levels()
        words = {
            "timestep": "timestep of the schedule",
            "abar": "signal power abar",
            "log_snr": "log signal-to-noise ratio",
            "sigma": "noise standard deviation over signal",
        }
        return {
            "noise": (levels, {"long_name": "inversion time t/T"}),
            "step": (step, {"long_name": "reverse steps"}),
            **{name: (np.asarray(table[name])[step], {"long_name": text}) for name, text in words.items()},
        }

    def fingerprint(self) -> str:
        return _reverse_diffusion(self).fingerprint()


@lru_cache(maxsize=4)
def _reverse_diffusion(spec: DiffusionModel) -> ReverseDiffusion:
    from uturn.backward.reverse_diffusion import ReverseDiffusion
    from uturn.fashion_mnist import generator_folder

    path = generator_folder() if spec.model == "fashion_mnist" else spec.model
    if not Path(path).is_dir():
        raise ValueError(f"model = {spec.model!r}: no such folder; expected 'fashion_mnist' or a folder in diffusers' layout")
    options = {k: getattr(spec, k) for k in ("eta", "timestep_spacing") if getattr(spec, k) is not None}
    try:
        return ReverseDiffusion.from_pretrained(
            path, scheduler=spec.scheduler, num_steps=spec.steps, batch_size=spec.batch_size, **options
        )
    except OSError as error:
        raise ValueError(
            f"model = {spec.model!r} cannot be loaded ({str(error).splitlines()[0]}); expected 'fashion_mnist' or a folder in "
            f"diffusers' layout, with a model_index.json"
        ) from None


BACKWARDS: dict[str, type] = {"exact": ExactPosterior, "diffusion": DiffusionModel}
