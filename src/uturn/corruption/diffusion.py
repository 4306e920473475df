"""The forward process of a diffusion model, made from its scheduler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from uturn.core.checks import checked_noise, expect
from uturn.core.protocols import Axes, Axis, Corruption, Noisy, Source
from uturn.core.random import Purpose, normals
from uturn.corruption import schedulers
from uturn.corruption.pieces import Pieces, half_precision_words
from uturn.corruption.schedulers import PipelineTimesteps, Scheduler

if TYPE_CHECKING:
    import torch

LONG_NAMES = {
    "abar": "signal power abar",
    "log_snr": "log signal-to-noise ratio",
    "sigma": "noise standard deviation over signal",
}
"""Axes of the noise levels of a scheduler, in words."""


class Codec(Protocol):
    """Maps images (batch, channels, height, width) in [-1, 1] to latents in the units of the
    denoiser, and back.
    """

    dtype: torch.dtype
    """Precision of its network."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of images, float32."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents, float32."""


class Diffusion(Corruption[Any, Noisy]):  # images, or strings as images
    """The forward process of a diffusion model, which the backward of the experiment has.

    A spec names it by the table `{"type": "diffusion"}`. It has no schedule, and adds no noise by
    itself: `backward.forward_process(source)` is the process with the scheduler and the steps of
    the backward (`ForwardDiffusion`).
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "strings")
    process: ClassVar[str] = "diffusion"
    unit: ClassVar[str] = "inversion time t/T"
    max_noise: ClassVar[float] = 1.0
    # The keys equal those of the reconstruction, but the numbers differ: Philox here, torch's
    # generator in the reverse steps.
    purpose: int = Purpose.RECONSTRUCTION

    def __repr__(self) -> str:
        return "Diffusion()"

    def corrupt(self, data: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        raise ValueError(
            "Diffusion() has no schedule; the backward has: take backward.forward_process(source)"
        )


def check_diffusion(corruption: Corruption) -> None:
    """ValueError if the corruption of an experiment, whose backward has its own schedule, is
    another than `Diffusion()`.
    """
    expected = "Diffusion(), type 'diffusion' in a spec, as the backward has its own schedule"
    expect(type(corruption) is Diffusion, "corruption", corruption, expected)


class ForwardDiffusion(Diffusion):
    """Draws of x_t = a x_0 + s xi, xi ~ N(0, 1), from q(x_t | x_0) at the timesteps of a
    scheduler. The unit of `noise` is t/T in [0, 1].

    With N = `num_steps`, t/T = k/N is the k-th timestep counted from the clean end, and k = 0 is
    the image itself.

    `scheduler`: of diffusers; it is copied, never changed. `num_steps`, `timestep_spacing`,
    `pure_noise`: as in `uturn.backward.reverse_diffusion.Sampler`. `codec`: for latent models;
    noise is added to the latents. `timesteps`: a pipeline's own rule for timesteps. `pieces`:
    device and batch size of the encoder, by default the CPU and all images at once.

    The attribute `noise_levels` has the noise level of each step k = 0 .. N, float64 arrays (N +
    1,). `timestep` is the argument of the model, -1 at k = 0. `t_over_T` is k / N. `abar` is the
    signal power a^2 / (a^2 + s^2), `log_snr` is log(a^2 / s^2) in nats, and `sigma` is s / a.
    `signal` is a, in the units of the scheduler.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        num_steps: int,
        *,
        timestep_spacing: str | None = None,
        pure_noise: bool = False,
        codec: Codec | None = None,
        timesteps: PipelineTimesteps | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.num_steps = num_steps
        self.pure_noise = pure_noise
        self.codec = codec
        self._pieces = pieces
        schedulers.check_schedule(scheduler)
        self.scheduler = schedulers.with_spacing(scheduler, timestep_spacing)
        (timesteps or PipelineTimesteps()).set(self.scheduler, num_steps)
        schedulers.check_timesteps(self.scheduler, num_steps)
        self.noise_levels = self._measured_levels()

    def __repr__(self) -> str:
        return f"ForwardDiffusion({type(self.scheduler).__name__}, {self.num_steps})"

    def corrupt(self, images: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        """x_t of images (or of their latents), float32 (batch, channels, height, width), not
        clipped.

        `images`: float32 in [-1, 1], else a ValueError. `keys`: uint64 (batch,), one random stream
        for each image.
        """
        self.checked_steps(np.atleast_1d(checked_noise(noise, 1)))
        values = self.noised(checked_images(images, None, True), self.step_of(noise), keys)
        return Noisy(values, np.full(len(values), float(noise)))

    def noised(self, images: np.ndarray, step: int, keys: np.ndarray) -> np.ndarray:
        """x_t of images at step k, 0 .. N; for k = 0 the images themselves, bit for bit."""
        import torch

        self._check_step(step)
        if step == 0 or not len(images):
            return np.array(images, np.float32)
        noisy = []
        with torch.inference_mode():
            for rows, clean in self._clean_batches(images):
                noisy.append(self._noisy(clean, step, keys[rows]).cpu())
        return torch.cat(noisy).numpy()

    def clean(self, images: np.ndarray) -> np.ndarray:
        """The data before noise is added, float32 (batch, channels, height, width): images in
        [-1, 1], or their latents.
        """
        import torch

        if not len(images):
            return np.array(images, np.float32)
        with torch.inference_mode():
            batches = [clean.cpu() for _, clean in self._clean_batches(images)]
        return torch.cat(batches).numpy()

    def _noisy(self, clean: torch.Tensor, step: int, keys: np.ndarray) -> torch.Tensor:
        """x_t of images or latents at step k >= 1."""
        noise = self.noise_like(clean, keys)
        if self.pure_noise and step == self.num_steps:
            return noise * self.pure_sigma
        _, timesteps = self.placed(step)
        first = timesteps[:1].expand(len(clean))
        return schedulers.add_noise(self.scheduler, clean, noise, first)

    def _clean_batches(self, images: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of a batch, and their images or latents on the device, for as many images at a time
        as the device takes.
        """
        import torch

        pieces = self._pieces or Pieces(torch.device("cpu"), len(images))
        for start in range(0, len(images), pieces.batch_size):
            rows = slice(start, start + pieces.batch_size)
            batch = torch.from_numpy(np.require(images[rows], np.float32, ["C", "W"]))
            yield rows, self._encoded(batch.to(pieces.device), pieces)

    def _encoded(self, images: torch.Tensor, pieces: Pieces) -> torch.Tensor:
        """The latents of images; the images themselves without an autoencoder."""
        if self.codec is None:
            expect(
                images.isfinite().all(), "images", "NaN or infinity", "finite numbers in [-1, 1]"
            )
            return images
        latents: torch.Tensor = pieces(self.codec.encode, images)
        if not latents.isfinite().all():
            advice = half_precision_words(self.codec.dtype)
            raise ValueError(f"the autoencoder gives NaN or infinity for the originals{advice}")
        return latents

    def noise_like(self, values: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
        """Standard normal noise with the shape and device of `values`; row i uses keys[i], by
        Philox.
        """
        import torch

        noise = normals(keys, int(np.prod(values.shape[1:])), np.float32).reshape(values.shape)
        return torch.from_numpy(noise).to(values.device)

    @property
    def pure_sigma(self) -> float:
        """Standard deviation of pure noise, in the units of the scheduler."""
        return schedulers.pure_noise_sigma(self.scheduler)

    def placed(self, step: int) -> tuple[Scheduler, torch.Tensor]:
        """A new copy of the scheduler (multistep ones keep a history) set to step k, and the
        timesteps of its k reverse steps.
        """
        self._check_step(step)
        scheduler = copy.deepcopy(self.scheduler)
        # Two-stage schedulers (order 2) list two timesteps for each step.
        start = (self.num_steps - step) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        return scheduler, scheduler.timesteps[start:]

    def step_of(self, noise: float) -> int:
        """Number of reverse steps k for t/T = noise: noise N, rounded."""
        return round(noise * self.num_steps)

    def _measured_levels(self) -> dict[str, np.ndarray]:
        """The table of noise levels, measured by applying the scheduler to signal 1 and to noise
        1.
        """
        timesteps = self.scheduler.timesteps[:: self.scheduler.order].flip(0)
        signal, noise = schedulers.amplitudes(self.scheduler, timesteps)
        # Step 0 is the image itself.
        a = np.concatenate([[1.0], signal])
        s = np.concatenate([[0.0], noise])
        if self.pure_noise:
            a[-1] = 0.0
            s[-1] = self.pure_sigma
        return {
            "timestep": np.concatenate([[-1.0], timesteps.double().numpy()]),
            "t_over_T": np.arange(self.num_steps + 1) / self.num_steps,
            **schedulers.strengths(a, s),
            "signal": a,
        }

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        steps = self.checked_steps(checked_noise(list(noise), 1))
        long_names = {"timestep": "timestep of the schedule", **LONG_NAMES}
        axes: dict[str, Axis] = {}
        for name, long_name in long_names.items():
            axes[name] = Axis(self.noise_levels[name][steps], {"long_name": long_name})
        long_name = "inversion time t/T of the whole number of steps"
        axes["t_over_T"] = Axis(steps / self.num_steps, {"long_name": long_name})
        axes["step"] = Axis(steps, {"long_name": "reverse steps", "clean": 0.0})
        return axes

    def checked_steps(self, noise: np.ndarray) -> np.ndarray:
        """The step of each noise level; ValueError if two levels have the same step, or if a
        positive one is rounded to 0.
        """
        steps = np.array([self.step_of(level) for level in noise])
        are_noisy = ((steps > 0) == (noise > 0)).all()
        are_different = len(set(steps.tolist())) == len(steps)
        expected = (
            f"levels on different steps of {self.num_steps}; take 0 and levels {1 / self.num_steps}"
            " apart, or more steps"
        )
        expect(are_noisy and are_different, "noise", noise.tolist(), expected)
        return steps

    def _check_step(self, step: int) -> None:
        is_step = step in range(self.num_steps + 1)
        expect(is_step, "step", step, f"a whole number of reverse steps in 0 .. {self.num_steps}")


def checked_images(
    images: np.ndarray | torch.Tensor, shape: tuple[int, ...] | None, clean: bool
) -> np.ndarray:
    """A batch of images (numpy array or tensor) as a float32 array, without a copy where possible.

    `shape`: (channels, height, width) of an image; None if it is not known. ValueError for other
    dtypes and shapes, and for values outside of [-1, 1]; if not `clean`, for values that are not
    finite.
    """
    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    expected = "float32 in [-1, 1] (uint8: x / 127.5 - 1)"
    expect(array.dtype == np.float32, "dtype of images", array.dtype, expected)
    fits = array.ndim == 4 and (shape is None or array.shape[1:] == tuple(shape))
    dims = ("channels", "height", "width") if shape is None else shape
    expect(fits, "shape of images", array.shape, str(("batch", *dims)))
    low = float(array.min(initial=0))
    high = float(array.max(initial=0))
    largest = float(np.finfo(np.float32).max)
    expected = "finite values"
    if clean:
        largest = 1.0
        expected += " in [-1, 1]"
    is_bounded = low >= -largest and high <= largest  # false for NaN
    expect(is_bounded, "range of images", [low, high], expected)
    return array
