"""U-turns of images with a diffusion model: noise up to a step of its chain, and as many steps back.

`ReverseDiffusion` joins a model (`ImageModel`) and a sampler (`Sampler`). `ReverseDiffusion.u_turn`
is the method: `corrupt` to step k, then k times `step_back`. `ReverseDiffusion.queue` makes the same
steps back for images at different steps, so that every call of the network is full. Each image has
a random stream of its own, so its reconstruction does not depend on the other images of a batch.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from uturn.backward.queue import run_queue
from uturn.core import progress
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.messages import one_line
from uturn.corruption.diffusion import ForwardDiffusion, checked_images
from uturn.corruption.pieces import Pieces, half_precision_words
from uturn.corruption.schedulers import (
    SCHEDULERS,
    Scheduler,
    scaled_input,
    scheduler_like,
    uses_learned_variance,
)
from uturn.networks.images.model import ImageModel

if TYPE_CHECKING:
    import torch

    Images = TypeVar("Images", np.ndarray, torch.Tensor)
    Labels = np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Sampler:
    """How images go back through the noise levels of a model."""

    scheduler: str = "ddpm"
    """A key of `SCHEDULERS`, or the name of a class of diffusers that makes one denoising pass over
    a descending list of timesteps: a scheduler with the noise schedule and the prediction type of
    the model. "stored" is the scheduler of the model itself.
    """
    steps: int = 100
    """Number N of reverse steps of the whole chain."""
    timestep_spacing: str | None = None
    """Spacing of the N timesteps. By default "linspace", which includes both ends, and "trailing"
    for the DDIM schedulers, whose step has the fixed length T // N.
    """
    eta: float | None = None
    """Noise of the reverse steps relative to the full noise, for schedulers that take it. For DDIM,
    0 is deterministic, and 1 is DDPM.
    """
    pure_noise: bool = False
    """Whether step N is pure noise; otherwise the first level of the scheduler, which keeps a small
    signal of the image.
    """


class ReverseDiffusion:
    """U-turns of images through the noise levels of a diffusion model.

    The chain has N = `sampler.steps` reverse steps. A U-turn at step k draws x_t from the marginal
    q(x_t | x_0) at the k-th timestep counted from the clean end, and makes the last k reverse
    steps, the first of them at that same timestep (section 2 of arXiv:2402.16991). k = 0 is the
    identity, and k = N starts from the first, noisiest level of the scheduler.

    Attributes: `model`, `sampler`, `device`; `forward`, the forward process (`ForwardDiffusion`);
    `is_stochastic`, whether reverse steps draw noise.
    """

    def __init__(self, model: ImageModel, sampler: Sampler) -> None:
        import torch

        scheduler = scheduler_like(model.scheduler, sampler.scheduler)
        num_timesteps = scheduler.config.num_train_timesteps
        expected = f"1 .. {num_timesteps}, the timesteps of the training schedule"
        expect(1 <= sampler.steps <= num_timesteps, "num_steps", sampler.steps, expected)
        self.model = model
        self.sampler = sampler
        self.clips = True
        """Whether reconstructions are clipped to [-1, 1]."""
        self.device = _device_of(model.network)
        if model.device is not None:
            self.device = torch.device(model.device)
        self.pieces = _pieces(model, self.device, self.prediction)
        try:
            self.forward = ForwardDiffusion(
                scheduler,
                sampler.steps,
                timestep_spacing=sampler.timestep_spacing,
                pure_noise=sampler.pure_noise,
                codec=model.codec,
                timesteps=model.timesteps,
                pieces=self.pieces,
            )
            _check_eta(self.forward.scheduler, sampler.eta)
            parameters = inspect.signature(self.forward.scheduler.step).parameters
            self._takes_generator = "generator" in parameters
            self.is_stochastic = self._draws_noise()
        except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{type(scheduler).__name__} cannot begin in the middle of its chain as others do"
                f" ({type(error).__name__}: {one_line(error)}); use another scheduler"
                f" ({', '.join(map(repr, sorted(SCHEDULERS)))})"
            ) from None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        scheduler: str | None = "ddpm",
        num_steps: int = 100,
        *,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        pure_noise: bool = False,
        batch_size: int | str = 64,
        **options: Any,  # the fields of DenoiserOptions, which are checked there
    ) -> ReverseDiffusion:
        """Diffusion model from files; see `uturn.networks.images.pretrained.load_pretrained` for
        what can be read.

        `scheduler`, `num_steps`, `timestep_spacing`, `eta`, `pure_noise`: the fields of `Sampler`;
        None is "stored". `batch_size`: as in `ImageModel`. `options`: the fields of
        `uturn.networks.images.options.DenoiserOptions`: `dtype`, `device`, `condition`, ..
        """
        from uturn.networks.images.pretrained import load_pretrained

        model = replace(load_pretrained(path, **options), batch_size=batch_size)
        sampler = Sampler(scheduler or "stored", num_steps, timestep_spacing, eta, pure_noise)
        return cls(model, sampler)

    def u_turn(
        self, images: Images, step: int, keys: np.ndarray, labels: Labels | None = None
    ) -> Images:
        """Reconstructions of images: noise up to `step` k, 0 .. N, and k steps back.

        images and reconstructions: float32 (batch, channels, height, width) in [-1, 1], numpy
        arrays or tensors; for step 0 a copy, bit for bit. keys: uint64 (batch,), one random stream
        for each image (`uturn.random.keys`); the noise of an image depends on its key alone.
        labels: int64 (batch,), true classes, for class-conditional models.
        """
        noisy = self.corrupt(images, step, keys)  # noise up to step k
        return self.denoise(noisy, step, keys, labels)  # k steps back

    def corrupt(self, images: Images, step: int, keys: np.ndarray) -> Images:
        """Noisy images x_t (latents, if there is a codec), not clipped, that `u_turn` makes with
        the same arguments.
        """
        clean = checked_images(images, self.model.image_shape, True)
        return _like(images, self.forward.noised(clean, step, _checked_keys(keys, len(clean))))

    def denoise(
        self, noisy: Images, step: int, keys: np.ndarray, labels: Labels | None = None
    ) -> Images:
        """Reconstructions, clipped to [-1, 1], of noisy images x_t at `step`, in the units of
        `corrupt`.
        """
        shape = self.model.image_shape if step == 0 else self.model.state_shape
        values = checked_images(noisy, shape, clean=step == 0)
        works = self._works(values, step, _checked_keys(keys, len(values)), labels)
        if step == 0 or not works:
            return _like(noisy, values.copy())
        reconstructions = []
        with progress.units(len(works)):
            while works:
                cohort = self.cohort(works[: self.batch_size])
                works = works[len(cohort.names) :]
                for _ in cohort.timesteps:  # the noisiest first
                    self.step_back([cohort])
                    progress.add(len(cohort.names) / cohort.calls)
                reconstructions.append(self.images_of(cohort))
        return _like(noisy, np.concatenate(reconstructions))

    def step_back(self, cohorts: Sequence[ImageCohort]) -> None:
        """One reverse step of images at any timesteps, by one call of the network."""
        import torch

        with torch.inference_mode():
            inputs = zip(*(cohort.inputs() for cohort in cohorts), strict=True)
            outputs = self.pieces(self.prediction, *map(torch.cat, inputs))
            sizes = [len(cohort.names) for cohort in cohorts]
            for cohort, output in zip(cohorts, outputs.split(sizes), strict=True):
                cohort.to_next_timestep(output)

    def queue(self, work: Iterable[ImageWork]) -> Iterator[tuple[object, np.ndarray]]:
        """Reconstructions of noisy images at different steps, in full batches: `(name, image)` in
        the order of completion.

        The iterable is read when places become free, so it may be lazy. Images with many steps
        should come first, so that few batches at the end are not full. The results equal those of
        `denoise` up to float rounding.
        """
        return run_queue(ImageQueue(self), work)

    def generate(self, keys: np.ndarray, labels: Labels | None = None) -> np.ndarray:
        """Samples from pure noise, one for each key, float32 (batch, channels, height, width);
        `labels` as in `u_turn`.
        """
        import torch

        shape = self.model.state_shape
        if shape is None:
            raise ValueError(
                "image_shape is not known from the model; give it to ImageModel(image_shape=...)"
            )
        blank = torch.zeros(len(keys), *shape)
        noise = self.forward.noise_like(blank, _checked_keys(keys, len(keys)))
        noise = noise * self.forward.pure_sigma
        return self.denoise(noise.numpy(), self.sampler.steps, keys, labels)

    def decoded(self, states: np.ndarray) -> np.ndarray:
        """Images, clipped to [-1, 1], of states without noise: of latents, if there is a codec;
        float32 (batch, ...).
        """
        import torch

        codec = self.model.codec
        if codec is not None:
            with torch.inference_mode():
                latents = torch.from_numpy(states).to(self.device)
                states = self.pieces(codec.decode, latents).cpu().numpy()
        return states.clip(-1, 1)

    def without_decoder(self) -> ReverseDiffusion:
        """The same chain, whose reconstructions are its last states: of a latent model, latents."""
        chain = copy(self)
        chain.model = replace(self.model, codec=None)
        chain.clips = False
        return chain

    @property
    def batch_size(self) -> int:
        """Images in the largest batch of the network: the given size, half of it with guidance,
        less after memory ran out.
        """
        return self.pieces.limit(self.prediction)

    def prediction(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *labels: torch.Tensor
    ) -> torch.Tensor:
        """The network's output for one batch, in the dtype of `noisy`."""
        with noted(f"the model, of noisy images {tuple(noisy.shape)}"):
            output = self.model.network(noisy, timesteps, *labels)
        prediction: torch.Tensor = getattr(output, "sample", output).to(noisy.dtype)
        return prediction

    def cohort(self, works: Sequence[ImageWork]) -> ImageCohort:
        """Noisy images at the same step, before their first step back."""
        import torch

        step = works[0].step
        labels = None
        if self.model.num_classes is not None:
            labels = torch.tensor([work.label for work in works], device=self.device)
        scheduler, timesteps = self.forward.placed(step)
        images = np.stack([np.asarray(work.image) for work in works])
        return ImageCohort(
            names=[work.name for work in works],
            reverse_steps=step,
            scheduler=scheduler,
            timesteps=timesteps,
            state=torch.from_numpy(images).to(self.device),
            labels=labels,
            options=self._step_options([int(work.key) for work in works]),
        )

    def images_of(self, cohort: ImageCohort) -> np.ndarray:
        """The reconstructions of a cohort after its last step, float32 (batch, channels, height,
        width).
        """
        import torch

        codec = self.model.codec
        with torch.inference_mode():
            images = cohort.state
            reason = "the model or the scheduler diverged"
            _check_finite(cohort, images, reason, self.model.network)
            if codec is not None:
                images = self.pieces(codec.decode, images)
                _check_finite(cohort, images, "the autoencoder gives NaN or infinity", codec)
            if self.clips:
                images = images.clamp(-1, 1)
            return images.cpu().numpy()

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of weights, scheduler configuration and number of steps,
        recorded with results.
        """
        import torch

        from uturn.networks.files import fingerprint

        scheduler = self.forward.scheduler
        prompts = self.model.prompts
        facts = []
        for module in (self.model.network, self.model.codec):
            if isinstance(module, torch.nn.Module):
                facts.append(fingerprint(module))
        facts += [type(scheduler).__name__, scheduler.to_json_string()]
        facts += [repr(self.sampler.steps), repr(self._eta()), repr(self.sampler.pure_noise)]
        if prompts is not None:
            facts.append(repr((prompts.texts, prompts.rows, prompts.encoders)))
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def _eta(self) -> dict[str, float]:
        """The option `eta` of the scheduler's `step`, if it is given."""
        eta = self.sampler.eta
        return {} if eta is None else {"eta": eta}

    def _step_options(self, seeds: Sequence[int]) -> dict[str, object]:
        """Further arguments of the scheduler's `step`, with a random stream for each image."""
        import torch

        options: dict[str, object] = {**self._eta()}
        if self._takes_generator:
            # CPU generators on every device, so that a GPU draws the same noise.
            options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return options

    def _draws_noise(self) -> bool:
        """Whether reverse steps draw noise: compares one step with two random streams."""
        import torch

        with torch.random.fork_rng(devices=[]):
            reference = self._trial_step(seed=0, global_seed=0)
            is_own = torch.equal(reference, self._trial_step(seed=0, global_seed=1))
            name = type(self.forward.scheduler).__name__
            expected = (
                "one whose step() draws no noise from torch's global generator, such as 'ddpm'"
            )
            expect(is_own, "scheduler", name, expected)
            return not torch.equal(reference, self._trial_step(seed=1, global_seed=0))

    def _trial_step(self, seed: int, global_seed: int) -> torch.Tensor:
        """x_t' after one reverse step of a made-up image. It is not the last step, which draws no
        noise.
        """
        import torch

        scheduler, timesteps = self.forward.placed(min(2, self.sampler.steps))
        options = self._step_options([seed])
        state = torch.full((1, 1, 2, 2), 0.5)
        output = torch.zeros(1, 2 if uses_learned_variance(scheduler) else 1, 2, 2)
        torch.manual_seed(global_seed)
        for timestep in timesteps[: scheduler.order]:
            scaled_input(scheduler, state, timestep)  # some schedulers require it before step()
            state = scheduler.step(output, timestep, state, **options).prev_sample
        return state

    def _works(
        self, noisy: np.ndarray, step: int, keys: np.ndarray, labels: Labels | None
    ) -> list[ImageWork]:
        """A work for each noisy image, whose name is its row; ValueError for wrong labels."""
        works = []
        for row, label in enumerate(self._checked_labels(labels, len(noisy))):
            works.append(ImageWork(noisy[row], step, keys[row], label, name=row))
        return works

    def _checked_labels(self, labels: Labels | None, count: int) -> Sequence[int | None]:
        num_classes = self.model.num_classes
        prompts = self.model.prompts
        if num_classes is None:
            return [None] * count  # an unconditional model
        if labels is None and prompts is not None and prompts.rows is None:
            return [0] * count  # one prompt for all
        array = np.asarray(labels)
        is_whole = array.dtype.kind in "iu" and array.shape == (count,)
        fits = is_whole and np.isin(array, range(num_classes)).all()
        expected = f"{count} integers, the classes 0 .. {num_classes - 1} of the model"
        expect(fits, "labels", labels, expected)
        classes: list[int | None] = array.tolist()
        return classes


class ImageWork(NamedTuple):
    """A reconstruction to compute."""

    image: np.ndarray
    """x_t, float32 (channels, height, width), in the units of `ReverseDiffusion.corrupt`."""
    step: int
    """Number k of reverse steps, 0 .. N."""
    key: np.uint64
    """The random stream of the image."""
    label: int | None = None
    """True class, for class-conditional models."""
    name: object = None
    """Any value, which is returned with the result and named in errors."""


@dataclass
class ImageCohort:
    """Images on their way back that began together at the same timestep.

    Each step is one call of the network and one `step` of the scheduler, which keeps the history of
    these images.
    """

    names: list[object]
    reverse_steps: int
    """Number k of reverse steps from the first timestep."""
    scheduler: Scheduler
    timesteps: torch.Tensor
    """The timesteps of all calls of the network, the noisiest first."""
    state: torch.Tensor
    """x_t, (batch, channels, height, width)."""
    labels: torch.Tensor | None
    options: dict[str, object]
    """Further arguments of the scheduler's `step`."""
    calls_made: int = 0
    """Calls of the network made so far."""

    @property
    def calls(self) -> int:
        """Calls of the network on the whole way."""
        return len(self.timesteps)

    @property
    def is_done(self) -> bool:
        return self.calls_made == self.calls

    @property
    def timestep(self) -> torch.Tensor:
        return self.timesteps[self.calls_made]

    def inputs(self) -> list[torch.Tensor]:
        """The next inputs of the network: noisy images, timesteps and, if it takes them, labels."""
        noisy = scaled_input(self.scheduler, self.state, self.timestep)
        inputs = [noisy, self.timestep.to(self.state.device).expand(len(self.names))]
        if self.labels is not None:
            inputs.append(self.labels)
        return inputs

    def to_next_timestep(self, output: torch.Tensor) -> None:
        """Go to the next timestep with the network's output at this one."""
        channels = self.state.shape[1]
        if output.shape[1] == 2 * channels and not uses_learned_variance(self.scheduler):
            output = output[:, :channels]
        moved = self.scheduler.step(output, self.timestep, self.state, **self.options)
        self.state = moved.prev_sample
        self.calls_made += 1


class ImageQueue:
    """A reverse diffusion as a process of `run_queue`. Works are read outside of torch's
    inference mode.
    """

    def __init__(self, reverse: ReverseDiffusion) -> None:
        self.reverse = reverse

    @property
    def places(self) -> int:
        return self.reverse.batch_size

    def calls(self, work: ImageWork) -> int:
        return work.step

    def unchanged(self, work: ImageWork) -> np.ndarray:
        return np.array(work.image, np.float32)

    def admitted(self, works: list[ImageWork]) -> list[ImageCohort]:
        by_step = attrgetter("step")
        noisiest_first = sorted(works, key=by_step, reverse=True)
        return [self.reverse.cohort(list(group)) for _, group in groupby(noisiest_first, by_step)]

    def advance(self, cohorts: list[ImageCohort]) -> None:
        self.reverse.step_back(cohorts)

    def results(self, cohort: ImageCohort) -> np.ndarray:
        return self.reverse.images_of(cohort)


def _like(images: Images, result: np.ndarray) -> Images:
    """The result as a tensor if the images are one."""
    import torch

    return torch.from_numpy(result) if isinstance(images, torch.Tensor) else result


def _pieces(
    model: ImageModel, device: torch.device, prediction: Callable[..., torch.Tensor]
) -> Pieces:
    """Calls of the model on a device, with at most as many images as `model.batch_size` says."""
    batch_size = model.batch_size
    if isinstance(batch_size, str):
        batch_size = 64 if device.type == "cpu" else 256
    pieces = Pieces(device, batch_size)
    rows_of_an_image = getattr(model.network, "rows_of_an_image", 1)
    if rows_of_an_image > 1:
        pieces.restrict(prediction, max(1, batch_size // rows_of_an_image))
    return pieces


def _check_eta(scheduler: Scheduler, eta: float | None) -> None:
    """ValueError for an `eta` that is not in [0, 1], or that the scheduler does not take."""
    if eta is None:
        return
    if "eta" not in inspect.signature(scheduler.step).parameters:
        raise ValueError(
            f"eta is only used with schedulers that take it; {type(scheduler).__name__} takes no"
            " eta: leave it out, or use scheduler='ddim'"
        )
    expect(0 <= eta <= 1, "eta", eta, "a number in [0, 1]")


def _device_of(network: object) -> torch.device:
    """The device of the first parameter of a network, else the CPU."""
    import torch

    parameters = getattr(network, "parameters", None)
    first = None if parameters is None else next(iter(parameters()), None)
    return torch.device("cpu") if first is None else first.device


def _checked_keys(keys: np.ndarray, count: int) -> np.ndarray:
    array = np.asarray(keys)
    fits = array.dtype == np.uint64 and array.shape == (count,)
    expect(fits, "keys", keys, f"uint64 ({count},), as uturn.random.keys gives")
    return array


def _check_finite(cohort: ImageCohort, values: torch.Tensor, reason: str, network: object) -> None:
    import torch

    finite = torch.isfinite(values).flatten(1).all(1).tolist()
    bad = [str(name) for name, good in zip(cohort.names, finite, strict=True) if not good]
    if bad:
        advice = half_precision_words(getattr(network, "dtype", None))
        raise ValueError(
            f"reconstructions of images {', '.join(bad[:10])} are not finite after"
            f" {cohort.reverse_steps} steps: {reason}{advice}"
        )
