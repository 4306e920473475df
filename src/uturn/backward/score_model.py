"""Reverse diffusion of strings with the exact score: a denoiser with the interface of a network,
for diffusers' schedulers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.backward.reverse_diffusion import ReverseDiffusion, Sampler
from uturn.core.checks import expect
from uturn.core.protocols import Axes, Backward, Corruption, Denoiser, Source, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption import Gaussian, Noisy
from uturn.corruption.denoising import ExactDenoiser
from uturn.corruption.diffusion import Diffusion, ForwardDiffusion, check_diffusion
from uturn.corruption.predictions import predicted
from uturn.corruption.schedulers import (
    Scheduler,
    is_flow_match,
    named_scheduler,
    prediction_of,
)
from uturn.networks.images.model import ImageModel
from uturn.sources.strings import NoisyStrings, Strings

if TYPE_CHECKING:
    import torch

    from uturn.exact.rhm import RandomHierarchyModel


class ScoreModel:
    """The posterior mean of one-hot strings as a network, `model(noisy, timestep)`, in the
    prediction type of a scheduler.

    Strings are images (batch, vocab_size, rows, num_leaves), 1 at the symbol of each leaf and 0
    elsewhere. Each row of an image is an independent string, so that one random stream can serve
    many strings. The denoiser gives the marginals `D = E[onehot(x_0) | x_t]`. With `x_t = a x_0 + s
    n`, the mean of the noise is `(x_t - a D)/s`, which is `-s` times the score `(a D - x_t)/s**2`
    (section 2 of arXiv:2402.16991). The model returns the prediction that the scheduler expects
    (`uturn.corruption.predictions`).

    With `ExactDenoiser` this is the exact score. `denoiser`: of Gaussian diffusion. `scheduler`:
    the scheduler of diffusers that will call the model; its noise schedule gives a and s of a
    timestep, its configuration the prediction type. At fractional timesteps `s/a` is interpolated
    as the schedulers do it: linearly, or its logarithm if the scheduler spaces steps by noise level
    (Karras, exponential, beta). `rows`: strings in an image, for `ReverseDiffusion.generate`.
    """

    training = False

    def __init__(self, denoiser: Denoiser, scheduler: Scheduler, rows: int = 1) -> None:
        channel = denoiser.corruption
        expected = "the Gaussian process, Gaussian()"
        expect(isinstance(channel, Gaussian), "corruption of the denoiser", channel, expected)
        config = scheduler.config
        name = type(scheduler).__name__
        self._is_flow = is_flow_match(scheduler)
        table = getattr(scheduler, "alphas_cumprod", None)
        if config.get("use_flow_sigmas"):
            table = None
        expected = "one with a table `alphas_cumprod`, or FlowMatchEulerDiscreteScheduler"
        expect(self._is_flow or table is not None, "scheduler", name, expected)
        self.prediction = prediction_of(scheduler)
        kind = config.get("timestep_type", "discrete")
        expect(kind == "discrete", f"{name}: timestep_type", kind, "'discrete'")
        self.denoiser = denoiser
        self.config = SimpleNamespace(
            in_channels=denoiser.vocab_size, sample_size=(rows, denoiser.num_leaves)
        )
        self._num_train_timesteps = config.num_train_timesteps
        spacings = ("karras", "exponential", "beta")
        self._is_logarithmic = any(config.get(f"use_{kind}_sigmas", False) for kind in spacings)
        if table is not None:
            abar = table.double().numpy()
            with np.errstate(divide="ignore"):
                self._sigma = np.sqrt((1 - abar) / abar)

    def __call__(self, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction for noisy strings (batch, vocab_size, rows, num_leaves) at a timestep,
        scalar or (batch,).
        """
        import torch

        batch, v, rows, d = noisy.shape
        timesteps = np.asarray(torch.as_tensor(timestep).cpu(), float)
        a_of_images, s_of_images = self.amplitudes(np.broadcast_to(timesteps, batch))
        a = a_of_images.repeat(rows).reshape(-1, 1, 1)
        s = s_of_images.repeat(rows).reshape(-1, 1, 1)
        x = noisy.detach().cpu().float().numpy().transpose(0, 2, 3, 1)
        x = np.ascontiguousarray(x).reshape(-1, d, v)
        # Rescaled to the variance-preserving process, since schedulers have different units.
        scale = np.sqrt(a**2 + s**2)
        with np.errstate(divide="ignore"):
            t = np.log(scale / a).reshape(-1)
        mean = self.denoiser.posterior(Noisy(x / scale.astype(np.float32), t, v))
        output = self._predicted(mean, x, a.astype(np.float32), s.astype(np.float32))
        # Schedulers are slow on strides.
        output = np.ascontiguousarray(output.reshape(batch, rows, d, v).transpose(0, 3, 1, 2))
        return torch.from_numpy(output).to(noisy)

    def _predicted(
        self, mean: np.ndarray, noisy: np.ndarray, a: np.ndarray, s: np.ndarray
    ) -> np.ndarray:
        if self._is_flow:
            # n - x_0 with a = 1 - s, without its rounding.
            flow: np.ndarray = (noisy - mean) / s
            return flow
        return predicted(self.prediction, mean, (noisy - a * mean) / s, a, s)

    def amplitudes(self, timestep: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """a and s of the model's input `x_t = a x_0 + s noise` at timesteps, whole or
        fractional; float64 arrays.
        """
        times = np.asarray(timestep, float)
        if self._is_flow:
            sigma = times / self._num_train_timesteps
            return 1 - sigma, sigma
        sigma = self._interpolated(times)
        # These formulas also hold for sigma = inf, the pure noise at the end of some schedules.
        return 1 / np.sqrt(1 + sigma**2), 1 / np.sqrt(1 + sigma**-2.0)

    def _interpolated(self, times: np.ndarray) -> np.ndarray:
        """s / a at timesteps, between the neighbouring levels of the schedule."""
        floor = np.floor(times).astype(int)
        ceiling = np.minimum(floor + 1, len(self._sigma) - 1)
        share = times - floor
        low = self._sigma[floor]
        high = self._sigma[ceiling]
        between = low + share * np.where(share > 0, high - low, 0)  # high may be inf
        if self._is_logarithmic:
            between = low * (high / low) ** share
        ratios: np.ndarray = np.where(share > 0, between, low)
        return ratios


def images_of(strings: np.ndarray, vocab_size: int) -> np.ndarray:
    """One-hot images of strings (batch, rows, num_leaves): float32 (batch, vocab_size, rows,
    num_leaves).
    """
    images: np.ndarray = (strings[:, None] == np.arange(vocab_size)[:, None, None]).astype(
        np.float32
    )
    return images


def strings_of(images: np.ndarray) -> np.ndarray:
    """The symbol of largest value at every leaf of images: int64 (batch, rows, num_leaves)."""
    symbols: np.ndarray = images.argmax(axis=1)
    return symbols


def observation_of(noisy: np.ndarray, forward: ForwardDiffusion, step: int) -> Noisy:
    """Noisy images at a step of a chain as noisy strings of `Gaussian`, (batch * rows,
    num_leaves, vocab_size).
    """
    _, v, _, d = noisy.shape
    rows = np.ascontiguousarray(noisy.transpose(0, 2, 3, 1)).reshape(-1, d, v)
    values = rows / np.float32(_scale(forward, step))
    return Noisy(values, np.full(len(values), _time(forward, step)), v)


def noisy_images_of(
    observation: Noisy, forward: ForwardDiffusion, step: int, rows: int = 1
) -> np.ndarray:
    """Noisy strings of `Gaussian` at the level of a step as noisy images of a chain: the inverse
    of `observation_of`.
    """
    _, d, v = observation.values.shape
    scale = np.float32(_scale(forward, step))
    values = observation.values.reshape(-1, rows, d, v) * scale
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _scale(forward: ForwardDiffusion, step: int) -> float:
    """Scale of x_t at a step relative to the variance-preserving process."""
    a = float(forward.noise_levels["signal"][step])
    abar = float(forward.noise_levels["abar"][step])
    if a > 0:
        return float(a / np.sqrt(abar))
    return 1.0  # pure noise of flow matching, which has the standard deviation 1


def _time(forward: ForwardDiffusion, step: int) -> float:
    """Ornstein-Uhlenbeck time of a step."""
    abar = float(forward.noise_levels["abar"][step])
    with np.errstate(divide="ignore"):
        return float(0.5 * np.log(np.float64(1) / abar))


class StringDiffusion(Spec, Backward):
    """Reverse diffusion of strings with the exact score (`ScoreModel`) and one of diffusers'
    schedulers.

    Noise levels are fractions t/T of the chain. The noise schedule is the linear one of DDPM (T =
    1000, beta from 1e-4 to 0.02); flow matching uses straight paths (`flow_match`, or
    `flow_match_ancestral` with the ancestral step). `scheduler`, `steps`, `eta`, `timestep_spacing`
    are as in `DiffusionModel`. Probes of beliefs read the exact beliefs given x_t. Reconstructions:
    {tree_level: int64 (items, draws, nodes)}, -1 where ungrammatical.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    undoes: ClassVar[tuple[str, ...]] = ("diffusion",)
    type: Literal["score"] = "score"
    scheduler: str = "ddpm"
    steps: int = Field(default=100, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None

    def reconstruct(
        self, noisy: _NoisyScored, streams: Streams, clones: int = 1
    ) -> dict[int, np.ndarray]:
        reverse = _string_diffusion(self, noisy.rhm)
        step = reverse.forward.step_of(streams.noise)
        keys = streams.keys(Purpose.DENOISING, clones)
        images = reverse.denoise(np.repeat(noisy.images, clones, axis=0), step, keys)
        return noisy.parsed(strings_of(images)[:, 0], len(streams.items), keys)

    def check(self, source: Source, corruption: Corruption) -> None:
        check_diffusion(corruption)

    def forward_process(
        self,
        source: Any,  # noqa: ANN401 - a source of strings, checked by `kinds`
        corruption: Corruption | None = None,
    ) -> _DiffusedStrings:
        """The forward process of the scheduler. It is the same for all grammars, so grammar 0
        serves to build it.
        """
        return _DiffusedStrings(_string_diffusion(self, source.grammar(0, 0)).forward)


class _DiffusedStrings(Diffusion):
    """The forward process of a scheduler for strings, as one-hot images."""

    purpose: int = Purpose.DENOISING

    def __init__(self, forward: ForwardDiffusion) -> None:
        self.forward = forward

    def observe(self, originals: Strings, noise: float, streams: Streams) -> _NoisyScored:
        v = originals.rhm.vocab_size
        leaves = np.repeat(originals.data, streams.count, axis=0)
        step = self.forward.step_of(noise)
        keys = streams.keys(self.purpose)
        images = self.forward.noised(images_of(leaves[:, None], v), step, keys)
        noisy = observation_of(images, self.forward, step)
        return _NoisyScored(noisy.values, noisy.noise, v, originals.rhm, Gaussian(), images=images)

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        axes = dict(self.forward.axes(noise, source))
        with np.errstate(divide="ignore"):
            t = 0.5 * np.log(1 / axes["abar"][0])
        of_gaussian = Gaussian().axes(t, source)
        for name in ("effective_epsilon", "bits_per_leaf"):
            axes[name] = of_gaussian[name]
        return axes


@dataclass(frozen=True, eq=False, repr=False)
class _NoisyScored(NoisyStrings):
    """Noisy strings with their image form (batch, vocab_size, 1, num_leaves) in the units of the
    scheduler.
    """

    images: np.ndarray = field(kw_only=True)


_BASES: Mapping[str, str] = {"ancestral": "ddpm", "flow_match_ancestral": "flow_match"}
"""Schedulers with the noise schedules of the ancestral steps."""
_LINEAR: Mapping[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
"""The noise schedule of DDPM. The defaults of the schedulers' classes differ."""


@lru_cache(maxsize=4)
def _string_diffusion(spec: StringDiffusion, rhm: RandomHierarchyModel) -> ReverseDiffusion:
    named = named_scheduler(_BASES.get(spec.scheduler, spec.scheduler))
    options = dict(named.options)
    if "beta_schedule" in inspect.signature(named.kind).parameters:
        options |= _LINEAR
    scheduler: Scheduler = named.kind(**options)
    score = ScoreModel(ExactDenoiser(rhm, Gaussian()), scheduler)
    sampler = Sampler(
        scheduler="ancestral" if spec.scheduler in _BASES else "stored",
        steps=spec.steps,
        timestep_spacing=spec.timestep_spacing,
        eta=spec.eta,
    )
    return ReverseDiffusion(ImageModel(score, scheduler, batch_size=4096), sampler)
