"""U-turns of images with any denoiser and any scheduler of diffusers, with a random stream for
each image.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from uturn.backward.queue import run_queue
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.messages import one_line
from uturn.core.pieces import Pieces, half_precision_words
from uturn.core.progress import units
from uturn.corruption.diffusion import ForwardDiffusion, checked_images
from uturn.corruption.schedulers import (
    SCHEDULERS,
    PipelineTimesteps,
    Scheduler,
    scaled_input,
    scheduler_like,
    uses_learned_variance,
)

if TYPE_CHECKING:
    import torch

    from uturn.networks.images.options import Prompts
    from uturn.networks.images.pipelines import Codec

    Images = TypeVar("Images", np.ndarray, torch.Tensor)
    Labels = np.ndarray | Sequence[int]


class ReverseDiffusion:
    """U-turns of images through the noise levels of a diffusion model.

    With N = `num_steps` reverse steps in the whole chain, a U-turn at step k draws x_t from the
    marginal q(x_t | x_0) at the k-th timestep counted from the clean end, and makes the last k
    reverse steps, the first of them at that same timestep (section 2 of arXiv:2402.16991). k = 0 is
    the identity, and k = N starts from the scheduler's first, noisiest level. Attributes:
    `is_stochastic`, whether reverse steps draw noise, and `forward`, the forward process
    (`ForwardDiffusion`).

    `model`: the denoiser, in evaluation mode, called as `model(noisy, timestep)` with noisy (batch,
    channels, height, width) and timestep (batch,), which may differ in a batch; returns a tensor or
    an object with `.sample`, in the prediction type the scheduler is configured for. If the output
    has twice the input channels, the second half is a learned variance, passed only to schedulers
    that use it. With `num_classes`, it is called as `model(noisy, timestep, labels)`, labels int64
    (batch,). `scheduler`: any of diffusers with one denoising pass over a descending list of
    timesteps; it is copied, never changed. `timestep_spacing`: of the N timesteps, by default
    "linspace" (both ends included), and "trailing" for the DDIM schedulers, whose step has the
    fixed length T // N. `eta`: noise of the reverse steps relative to the full noise, for
    schedulers that take it (DDIM: 0 deterministic, 1 as DDPM). `batch_size`: images denoised at a
    time, or "auto": 64 on the CPU, 256 elsewhere; it is halved while the device runs out of memory,
    and changes results by float rounding only. Models with guidance have two rows for every image.
    `image_shape`, `latent_shape`: (channels, height, width) of the images, read from `model.config`
    where there is one; of the latents, for `generate`. `device`: by default that of the model.
    `pure_noise`, `codec`, `timesteps`: as in `ForwardDiffusion`; `codec` has also
    `decode(latents)`.
    """

    description = ""
    """One line about the model, if it was loaded by `from_pretrained`."""
    prompts: Prompts | None = None
    """The prompts of a text-conditioned model; labels are then numbers of prompts."""
    clips = True
    """Whether reconstructions are clipped to [-1, 1]."""

    def __init__(
        self,
        model: Callable[..., Any],
        scheduler: Scheduler,
        num_steps: int,
        *,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        batch_size: int | str = 64,
        image_shape: tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
        pure_noise: bool = False,
        num_classes: int | None = None,
        codec: Codec | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        timesteps: PipelineTimesteps | None = None,
    ) -> None:
        import torch

        from uturn.networks.images.pretrained import shape_of

        is_training = getattr(model, "training", False)
        remedy = "model.eval(), since dropout would corrupt the U-turn"
        expect(not is_training, "training mode of the model", True, remedy)
        most = scheduler.config.num_train_timesteps
        known = f"1 .. {most}, the timesteps of the training schedule"
        expect(1 <= num_steps <= most, "num_steps", num_steps, known)
        fits = batch_size == "auto" if isinstance(batch_size, str) else 1 <= batch_size <= 2**20
        expect(fits, "batch_size", batch_size, "at least 1 image, or 'auto'")
        self.model = model
        self.codec = codec
        self.num_steps = num_steps
        self.num_classes = num_classes
        self.device = torch.device(device) if device is not None else _device_of(model)
        if isinstance(batch_size, str):
            batch_size = 64 if self.device.type == "cpu" else 256
        self.pieces = Pieces(self.device, batch_size)
        rows_of_an_image = getattr(model, "rows_of_an_image", 1)
        if rows_of_an_image > 1:
            self.pieces.restrict(self.network, max(1, batch_size // rows_of_an_image))
        if image_shape is None and codec is None:
            image_shape = shape_of(getattr(model, "config", None))
        self.image_shape = image_shape
        self.latent_shape = latent_shape if codec is not None else image_shape
        try:
            self.forward = ForwardDiffusion(
                scheduler,
                num_steps,
                timestep_spacing=timestep_spacing,
                pure_noise=pure_noise,
                codec=codec,
                timesteps=timesteps,
                pieces=self.pieces,
            )
            self.step_arguments = _step_arguments(self.forward.scheduler, eta)
            parameters = inspect.signature(self.forward.scheduler.step).parameters
            self.takes_generator = "generator" in parameters
            self.is_stochastic = self._draws_noise()
        except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{type(scheduler).__name__} cannot begin in the middle of its chain as others do"
                f" ({type(error).__name__}: {one_line(error)}); use another scheduler"
                f" ({', '.join(map(repr, sorted(SCHEDULERS)))})"
            ) from None

    @property
    def batch_size(self) -> int:
        """Images in the largest batch of the network: the given size, half of it with guidance,
        less after memory ran out.
        """
        return self.pieces.limit(self.network)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        scheduler: str | None = "ddpm",
        num_steps: int = 100,
        **options: Any,
    ) -> ReverseDiffusion:
        """Diffusion model from files; see `uturn.networks.images.pretrained.load_pretrained` for
        what can be read.

        `scheduler`: a key of `SCHEDULERS`, the name of a diffusers class, or "stored" (or None) for
        the scheduler stored with the model; the noise schedule and the prediction type always come
        from the stored one. `options`: those of the class, and the fields of
        `uturn.networks.images.options.DenoiserOptions`: `dtype`, `device`, `condition`, ..
        """
        from uturn.networks.images.options import DenoiserOptions
        from uturn.networks.images.pretrained import load_pretrained

        of_model = DenoiserOptions.model_fields.keys() & options.keys()
        loaded = load_pretrained(path, **{name: options.pop(name) for name in of_model})
        stated = ("image_shape", "num_classes", "codec", "latent_shape", "device", "timesteps")
        options = {name: getattr(loaded, name) for name in stated} | options
        reverse = cls(
            loaded.model, scheduler_like(loaded.scheduler, scheduler), num_steps, **options
        )
        reverse.description = loaded.description
        reverse.prompts = loaded.prompts
        return reverse

    def u_turn(
        self, images: Images, step: int, keys: np.ndarray, labels: Labels | None = None
    ) -> Images:
        """Reconstructions of images: noise up to `step` k, 0 .. num_steps, and k steps back.

        images and reconstructions: float32 (batch, channels, height, width) in [-1, 1], numpy
        arrays or tensors; for step 0 a copy, bit for bit. keys: uint64 (batch,), one random stream
        for each image (`uturn.random.keys`); the noise of an image depends on its key alone.
        labels: int64 (batch,), true classes, for class-conditional models.
        """
        noisy = self.corrupt(images, step, keys)
        return self.denoise(noisy, step, keys, labels)

    def corrupt(self, images: Images, step: int, keys: np.ndarray) -> Images:
        """Noisy images x_t (latents, if there is a codec), not clipped: those of `u_turn` with
        the same arguments.
        """
        clean = checked_images(images, self.image_shape, True)
        return _like(images, self.forward.noised(clean, step, _checked_keys(keys, len(clean))))

    def denoise(
        self, noisy: Images, step: int, keys: np.ndarray, labels: Labels | None = None
    ) -> Images:
        """Reconstructions, clipped to [-1, 1], of noisy images x_t at `step`, in the units of
        `corrupt`.
        """
        shape = self.image_shape if step == 0 else self.latent_shape
        values = checked_images(noisy, shape, step == 0)
        keys = _checked_keys(keys, len(values))
        classes = self._checked_labels(labels, len(values))
        rows = range(len(values))
        with units(len(values)):
            work = (Work(values[row], step, keys[row], classes[row], row) for row in rows)
            done = dict(self.queue(work))
        return _like(noisy, np.stack([done[row] for row in rows]) if done else values)

    def queue(self, work: Iterable[Work]) -> Iterator[tuple[Any, np.ndarray]]:
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

        if self.latent_shape is None:
            raise ValueError(
                "image_shape is not known from the model; give it to"
                " ReverseDiffusion(image_shape=...)"
            )
        blank = torch.zeros(len(keys), *self.latent_shape)
        noise = self.forward.noise_like(blank, _checked_keys(keys, len(keys)))
        noise = noise * self.forward.pure_sigma
        return self.denoise(noise.numpy(), self.num_steps, keys, labels)

    def decoded(self, states: np.ndarray) -> np.ndarray:
        """Images, clipped to [-1, 1], of states without noise: of latents, if there is a codec;
        float32 (batch, ...).
        """
        import torch

        if self.codec is not None:
            with torch.inference_mode():
                latents = torch.from_numpy(states).to(self.device)
                states = self.pieces(self.codec.decode, latents).cpu().numpy()
        return states.clip(-1, 1)

    def network(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *labels: torch.Tensor
    ) -> torch.Tensor:
        """The model's output for one batch, in the dtype of `noisy`."""
        with noted(f"the model, of noisy images {tuple(noisy.shape)}"):
            output = self.model(noisy, timesteps, *labels)
        return getattr(output, "sample", output).to(noisy.dtype)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of weights, scheduler configuration and number of steps,
        recorded with results.
        """
        import torch

        from uturn.networks.files import fingerprint

        scheduler = self.forward.scheduler
        facts = [
            fingerprint(module)
            for module in (self.model, self.codec)
            if isinstance(module, torch.nn.Module)
        ]
        facts += [type(scheduler).__name__, scheduler.to_json_string()]
        facts += map(repr, (self.num_steps, self.step_arguments, self.forward.pure_noise))
        if self.prompts is not None:
            facts.append(repr(self.prompts[:3]))
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def _draws_noise(self) -> bool:
        """Whether reverse steps draw noise: compares one step (not the last, which draws none)
        with two random streams.
        """
        import torch

        def one_step(seed: int, global_seed: int) -> torch.Tensor:
            scheduler, timesteps = self.forward.placed(min(2, self.num_steps))
            arguments: dict[str, Any] = dict(self.step_arguments)
            if self.takes_generator:
                arguments["generator"] = [torch.Generator().manual_seed(seed)]
            state = torch.full((1, 1, 2, 2), 0.5)
            output = torch.zeros(1, 2 if uses_learned_variance(scheduler) else 1, 2, 2)
            torch.manual_seed(global_seed)
            for timestep in timesteps[: scheduler.order]:
                scaled_input(scheduler, state, timestep)  # some schedulers require it before step()
                state = scheduler.step(output, timestep, state, **arguments).prev_sample
            return state

        with torch.random.fork_rng(devices=[]):
            reference = one_step(seed=0, global_seed=0)
            is_own = torch.equal(reference, one_step(seed=0, global_seed=1))
            name = type(self.forward.scheduler).__name__
            known = "one whose step() draws no noise from torch's global generator, such as 'ddpm'"
            expect(is_own, "scheduler", name, known)
            return not torch.equal(reference, one_step(seed=1, global_seed=0))

    def _checked_labels(self, labels: Labels | None, count: int) -> Sequence[int | None]:
        if self.num_classes is None:
            return [None] * count  # an unconditional model
        if labels is None and self.prompts is not None and self.prompts.rows is None:
            return [0] * count  # one prompt for all
        array = np.asarray(labels)
        is_whole = array.dtype.kind in "iu" and array.shape == (count,)
        fits = is_whole and np.isin(array, range(self.num_classes)).all()
        known = f"{count} integers, the classes 0 .. {self.num_classes - 1} of the model"
        expect(fits, "labels", labels, known)
        classes: list[int | None] = array.tolist()
        return classes


def _like(images: Images, result: np.ndarray) -> Images:
    """The result as a tensor if the images are one."""
    import torch

    return torch.from_numpy(result) if isinstance(images, torch.Tensor) else result


def _step_arguments(scheduler: Scheduler, eta: float | None) -> dict[str, float]:
    """Arguments of the scheduler's `step` that are the same for the whole chain."""
    if eta is None:
        return {}
    takes_eta = "eta" in inspect.signature(scheduler.step).parameters
    where = f"{type(scheduler).__name__} takes no eta: eta"
    expect(takes_eta, where, eta, "none; leave it out, or use scheduler='ddim'")
    expect(0 <= eta <= 1, "eta", eta, "a number in [0, 1]")
    return {"eta": eta}


def _device_of(model: object) -> torch.device:
    import torch

    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return torch.device("cpu") if first is None else first.device


def _checked_keys(keys: np.ndarray, count: int) -> np.ndarray:
    array = np.asarray(keys)
    fits = array.dtype == np.uint64 and array.shape == (count,)
    expect(fits, "keys", keys, f"uint64 ({count},), as uturn.random.keys gives")
    return array


class Work(NamedTuple):
    """A reconstruction to compute."""

    image: np.ndarray
    """x_t, float32 (channels, height, width), in the units of `ReverseDiffusion.corrupt`."""
    step: int
    """Number k of reverse steps, 0 .. num_steps."""
    key: np.uint64
    """The random stream of the image."""
    label: int | None = None
    """True class, for class-conditional models."""
    name: object = None
    """Any value, which is returned with the result and named in errors."""


@dataclass
class Cohort:
    """Images that entered the queue together at the same timestep, on their way back: each step is
    one call of the network and one `step` of the scheduler, which keeps their history.
    """

    names: list[object]
    reverse_steps: int
    scheduler: Scheduler
    timesteps: torch.Tensor
    """The timesteps of all calls of the network, the noisiest first."""
    state: torch.Tensor
    """x_t, (batch, channels, height, width)."""
    labels: torch.Tensor | None
    arguments: dict[str, Any]
    """Further arguments of the scheduler's `step`."""
    step: int = 0
    """Calls of the network made so far."""

    @property
    def calls(self) -> int:
        return len(self.timesteps)

    @property
    def is_done(self) -> bool:
        return self.step == self.calls

    @property
    def timestep(self) -> torch.Tensor:
        return self.timesteps[self.step]

    def inputs(self) -> list[torch.Tensor]:
        """The next inputs of the network: noisy images, timesteps and, if it takes them, labels."""
        device = self.state.device
        noisy = scaled_input(self.scheduler, self.state, self.timestep)
        inputs = [noisy, self.timestep.to(device).expand(len(self.names))]
        return inputs if self.labels is None else [*inputs, self.labels]

    def step_back(self, output: torch.Tensor) -> None:
        """Go to the next timestep with the network's output at this one."""
        channels = self.state.shape[1]
        if output.shape[1] == 2 * channels and not uses_learned_variance(self.scheduler):
            output = output[:, :channels]
        moved = self.scheduler.step(output, self.timestep, self.state, **self.arguments)
        self.state = moved.prev_sample
        self.step += 1


class ImageQueue:
    """A reverse diffusion as a process of `run_queue`. Works are read outside of torch's
    inference mode.
    """

    def __init__(self, reverse: ReverseDiffusion) -> None:
        self.reverse = reverse

    @property
    def places(self) -> int:
        return self.reverse.batch_size

    def calls(self, work: Work) -> int:
        return work.step

    def unchanged(self, work: Work) -> np.ndarray:
        return np.array(work.image, np.float32)

    def admitted(self, work: list[Work]) -> list[Cohort]:
        by_step = attrgetter("step")
        noisiest_first = sorted(work, key=by_step, reverse=True)
        return [self._cohort(list(group), step) for step, group in groupby(noisiest_first, by_step)]

    def _cohort(self, work: list[Work], step: int) -> Cohort:
        import torch

        reverse = self.reverse
        images = np.stack([np.asarray(w.image) for w in work])
        labels = None
        if reverse.num_classes is not None:
            labels = torch.tensor([w.label for w in work], device=reverse.device)
        scheduler, timesteps = reverse.forward.placed(step)
        arguments: dict[str, Any] = dict(reverse.step_arguments)
        if reverse.takes_generator:
            # CPU generators on every device, so that a GPU draws the same noise.
            arguments["generator"] = [torch.Generator().manual_seed(int(w.key)) for w in work]
        return Cohort(
            names=[w.name for w in work],
            reverse_steps=step,
            scheduler=scheduler,
            timesteps=timesteps,
            state=torch.from_numpy(images).to(reverse.device),
            labels=labels,
            arguments=arguments,
        )

    def advance(self, cohorts: list[Cohort]) -> None:
        """One step of all cohorts, with one call of the network."""
        import torch

        with torch.inference_mode():
            inputs = zip(*(cohort.inputs() for cohort in cohorts), strict=True)
            outputs = self.reverse.pieces(self.reverse.network, *map(torch.cat, inputs))
            sizes = [len(cohort.names) for cohort in cohorts]
            for cohort, output in zip(cohorts, outputs.split(sizes), strict=True):
                cohort.step_back(output)

    def results(self, cohort: Cohort) -> np.ndarray:
        import torch

        reverse = self.reverse
        with torch.inference_mode():
            images = cohort.state
            _check_finite(cohort, images, "the model or the scheduler diverged", reverse.model)
            if reverse.codec is not None:
                images = reverse.pieces(reverse.codec.decode, images)
                reason = "the autoencoder gives NaN or infinity"
                _check_finite(cohort, images, reason, reverse.codec)
            if reverse.clips:
                images = images.clamp(-1, 1)
            return images.cpu().numpy()


def _check_finite(cohort: Cohort, values: torch.Tensor, reason: str, network: object) -> None:
    import torch

    finite = torch.isfinite(values).flatten(1).all(1).tolist()
    bad = [str(name) for name, good in zip(cohort.names, finite, strict=True) if not good]
    if bad:
        advice = half_precision_words(getattr(network, "dtype", None))
        raise ValueError(
            f"reconstructions of images {', '.join(bad[:10])} are not finite after"
            f" {cohort.reverse_steps} steps: {reason}{advice}"
        )
