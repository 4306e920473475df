"""Reverse diffusion of strings with the exact score and a scheduler of diffusers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.backward.score_model import ScoreModel, images_of, observation_of, strings_of
from uturn.core.protocols import Axes, Backward, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption import Gaussian
from uturn.corruption.denoising import ExactDenoiser
from uturn.corruption.diffusion import Diffusion, ForwardOf
from uturn.corruption.schedulers import AncestralScheduler, named_scheduler
from uturn.sources.strings import NoisyStrings

if TYPE_CHECKING:
    from uturn.exact.rhm import RandomHierarchyModel


class StringDiffusion(Spec, Backward):
    """Reverse diffusion of strings with the exact score (`ScoreModel`) and one of diffusers' schedulers.

    Noise levels are fractions t/T of the chain. The noise schedule is the linear one of DDPM (T = 1000, beta from 1e-4 to 0.02);
    flow matching uses straight paths (`flow_match`, or `flow_match_ancestral` with the ancestral step). `scheduler`, `steps`,
    `eta`, `timestep_spacing` are as in `DiffusionModel`. Probes of beliefs read the exact beliefs given x_t. Reconstructions:
    {tree_level: int64 (items, draws, nodes)}, -1 where ungrammatical.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    undoes: ClassVar[tuple[str, ...]] = ("diffusion",)
    type: Literal["score"] = "score"
    scheduler: str = "ddpm"
    steps: int = Field(default=100, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None

    def reconstruct(self, noisy: _NoisyScored, streams: Streams, clones: int = 1) -> dict[int, np.ndarray]:
        reverse = _string_diffusion(self, noisy.rhm)
        step, keys = reverse.forward.step_of(streams.noise), streams.keys(Purpose.DENOISING, clones)
        images = reverse.denoise(np.repeat(noisy.images, clones, axis=0), step, keys)
        return noisy.parsed(strings_of(images)[:, 0], len(streams.items), keys)

    def undone(self, corruption: Any, source: Any) -> _DiffusedStrings:
        return _DiffusedStrings(corruption, self, source)

    def forward_of(self, source: Any) -> Diffusion:
        """The forward process of the scheduler. It is the same for all grammars, so grammar 0 serves to build it."""
        return _string_diffusion(self, source.grammar(0, 0)).forward


class _DiffusedStrings(ForwardOf):
    """The forward process of a scheduler for the strings of a source, as one-hot images."""

    purpose: int = Purpose.DENOISING

    def corrupt(self, leaves: np.ndarray, noise: float, vocab_size: int, keys: np.ndarray) -> Any:  # type: ignore[override]
        """Noisy one-hot images (batch, vocab_size, 1, num_leaves)."""
        return self.forward.noised(images_of(leaves[:, None], vocab_size), self.forward.step_of(noise), keys)

    def observe(self, originals: Any, noise: float, streams: Streams) -> _NoisyScored:
        leaves = np.repeat(originals.data, streams.count, axis=0)
        images = self.corrupt(leaves, noise, originals.rhm.vocab_size, streams.keys(self.purpose))
        seen = observation_of(images, self.forward, self.forward.step_of(noise))
        return _NoisyScored(seen.values, seen.noise, seen.vocab_size, originals.rhm, Gaussian(), images=images)

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        axes = super().axes(noise, source)
        with np.errstate(divide="ignore"):
            t = 0.5 * np.log(1 / axes["abar"][0])
        shared = Gaussian().axes(t, source)
        return {**axes, **{name: shared[name] for name in ("effective_epsilon", "bits_per_leaf")}}


@dataclass(frozen=True, eq=False, repr=False)
class _NoisyScored(NoisyStrings):
    """Noisy strings with their image form (batch, vocab_size, 1, num_leaves) in the units of the scheduler."""

    images: Any = None


@lru_cache(maxsize=4)
def _string_diffusion(spec: StringDiffusion, rhm: RandomHierarchyModel) -> ReverseDiffusion:
    ancestral = {"ancestral": "ddpm", "flow_match_ancestral": "flow_match"}
    made, extra = named_scheduler(ancestral.get(spec.scheduler, spec.scheduler))
    # The defaults of the classes differ; with these values all schedulers have the same noise levels.
    linear = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    taken = inspect.signature(made.__init__).parameters
    scheduler = made(**(linear if "beta_schedule" in taken else {}), **extra)
    options = {k: getattr(spec, k) for k in ("eta", "timestep_spacing") if getattr(spec, k) is not None}
    model = ScoreModel(ExactDenoiser(rhm, Gaussian()), scheduler)
    if spec.scheduler in ancestral:
        scheduler = AncestralScheduler(scheduler)
    return ReverseDiffusion(model, scheduler, spec.steps, **options, batch_size=4096)
