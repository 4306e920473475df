"""Noise an image up to a timestep and denoise it back, with any denoiser and any diffusers scheduler.

The sampler is never written here: `set_timesteps`, `add_noise`, `scale_model_input` and `step` of the scheduler do all
the work. What this module adds is bookkeeping that is easy to get wrong (which timestep is noised to, which one is
denoised first, whose noise is whose), one queue that keeps the network's batches full, and checks.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.checks import one_line

if TYPE_CHECKING:
    import torch

SCHEDULERS: Mapping[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "sde_dpm_solver": "DPMSolverMultistepScheduler",  # with noise: SDE-DPM-Solver++
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of schedulers; any other class of diffusers can be given by its own name."""


class Work(NamedTuple):
    """One U-turn to do: an image, how far to go, and whose noise to use.

    `image`: float32 (channels, height, width) in [-1, 1]. `step`: k, 0 .. num_steps. `key`: uint64, its stream of random numbers.
    `label`: true class, for models that must be told it. `name`: anything; comes back with the result, and is named in errors.
    """

    image: Any
    step: int
    key: Any
    label: int | None = None
    name: Any = None


@dataclass
class _Cohort:
    """Images that entered the network together at the same step: they share a scheduler, and so its history."""

    names: list[Any]
    step: int
    scheduler: Any
    timesteps: torch.Tensor
    state: torch.Tensor
    labels: torch.Tensor | None
    arguments: dict[str, Any]
    position: int = 0

    @property
    def timestep(self) -> torch.Tensor:
        return self.timesteps[self.position]


class ReverseDiffusion:
    """U-turns of images through the noise levels of a diffusion model.

    With N = `num_steps` reverse steps in all, a U-turn at step k draws x_t from the marginal q(x_t | x_0) at the k-th
    timestep counted from the clean end and runs exactly those k reverse steps, the first of them at that same timestep
    (section 2 of arXiv:2402.16991). k = 0 is the identity and k = N starts from the scheduler's first, noisiest level.

    If the scheduler draws the full noise of the reverse process (DDPM, Euler ancestral, DDIM with eta = 1), the reconstruction is
    a draw from the model's posterior given x_t, up to discretisation, and original and reconstruction are exchangeable. One
    that draws less (DDIM with eta < 1) or none (ODE solvers) keeps the law of the data but not the posterior.

    Parameters
    ----------
    model
        The denoiser, called as `model(noisy, timestep)` with noisy (batch, channels, height, width) and timestep
        (batch,); returns a tensor or an object with `.sample`, in the prediction type the scheduler is configured for.
        With twice the input channels, the second half is a learned variance; schedulers that cannot use it do not get it.
        The timesteps of a batch differ in `u_turns`. Must be in evaluation mode.
    scheduler
        Any scheduler of diffusers with one denoising pass over a descending list of timesteps. It is copied, never
        changed. Pseudo-numerical schedulers (PNDM) visit timesteps twice and are refused.
    num_steps
        Number of reverse steps N of the whole chain, 1 .. timesteps of the training schedule.
    timestep_spacing
        How the N timesteps are spread. By default "linspace" (both ends included; solvers of diffusers that step down to the
        clean image, such as DPM-Solver++ and UniPC, leave out the last one), and "trailing" for the DDIM schedulers, whose
        step has the fixed length T // N and would not land on linspace's timesteps.
    eta
        Share of the posterior's noise for schedulers that take one (DDIM: 0 deterministic, 1 as DDPM).
    batch_size
        Images denoised at a time, or "auto": 64 on the CPU, 256 elsewhere. If the device runs out of memory, it is halved until
        the batch fits. Results depend on it through float rounding only.
    image_shape
        (channels, height, width) of the images; read from `model.config` where there is one.
    device
        Where to compute; by default where the model is.
    pure_noise
        Start k = N from pure noise instead of the scheduler's first level, which keeps a trace of the image.
    num_classes
        If given, the model is told the true class: it is called as `model(noisy, timestep, labels)`, labels (batch,) below it.
    codec
        For latent models: an object with `encode(images)` and `decode(latents)`. Noise is added to latents.
    latent_shape
        (channels, height, width) of the latents; needed by `generate` only.

    Attributes
    ----------
    num_steps : int
    is_stochastic : bool
        Whether reverse steps draw noise, the full one or less.
    noise_levels : dict
        As `levels()`.
    description : str
        The model in words, if it was loaded by `from_pretrained`.
    """

    description = ""

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        num_steps: int,
        *,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        batch_size: int | str = 64,
        image_shape: tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
        pure_noise: bool = False,
        num_classes: int | None = None,
        codec: Any = None,
        latent_shape: tuple[int, int, int] | None = None,
    ) -> None:
        import torch

        if getattr(model, "training", False):
            raise ValueError("model is in training mode, so dropout would corrupt the U-turn; call model.eval() first")
        num_train_timesteps = scheduler.config.num_train_timesteps
        if not 1 <= num_steps <= num_train_timesteps:
            raise ValueError(
                f"num_steps={num_steps}: expected 1 .. {num_train_timesteps}, the timesteps of the training schedule"
            )
        if batch_size != "auto" and (isinstance(batch_size, str) or not 1 <= batch_size <= 2**20):
            raise ValueError(f"batch_size={batch_size!r}: expected at least 1 image, or 'auto'")
        self.model = model
        self.num_steps = num_steps
        self.device = torch.device(device) if device is not None else _device_of(model)
        if isinstance(batch_size, str):
            batch_size = 64 if self.device.type == "cpu" else 256
        self.batch_size: int = batch_size
        self._limits: dict[str, int] = {}  # rows that fit, where fewer than a batch do
        self.codec = codec
        self.image_shape = image_shape or (_image_shape_of(model) if codec is None else None)
        self.latent_shape = latent_shape if codec is not None else self.image_shape
        self.num_classes = num_classes
        self.pure_noise = pure_noise
        _check_schedule(scheduler)
        self._scheduler = _with_spacing(scheduler, timestep_spacing)
        self._scheduler.set_timesteps(num_steps)
        _check_timesteps(self._scheduler, num_steps)
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._step_arguments: dict[str, float] = {}
        if eta is not None:
            if "eta" not in inspect.signature(self._scheduler.step).parameters:
                raise ValueError(f"eta={eta}: {type(scheduler).__name__} takes no eta; leave it out, or use scheduler='ddim'")
            if not 0 <= eta <= 1:
                raise ValueError(f"eta={eta}: expected a number in [0, 1]")
            self._step_arguments["eta"] = eta
        try:
            self.is_stochastic = self._draws_noise()
            self.noise_levels = self._measure_levels()
        except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{type(scheduler).__name__} cannot begin in the middle of its chain as others do ({type(error).__name__}: "
                f"{one_line(error)}); use another scheduler ({', '.join(map(repr, sorted(SCHEDULERS)))})"
            ) from None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        scheduler: str | None = "ddpm",
        num_steps: int = 100,
        *,
        preset: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        compile: bool = False,
        **options: Any,
    ) -> ReverseDiffusion:
        """Diffusion model from files; see `uturn.networks.pretrained.load_pretrained` for what can be read.

        Parameters
        ----------
        path
            Folder that `DiffusionPipeline.save_pretrained` wrote, the name of one on a hub, or a guided-diffusion checkpoint.
        scheduler
            A key of `SCHEDULERS`, the name of a diffusers class, or "stored" (or None) for the one stored with the model. The
            noise schedule and the prediction type always come from the stored one.
        preset, dtype, device, compile
            As in `load_pretrained`.
        num_steps, **options
            As in the class.
        """
        from uturn.networks.pretrained import load_pretrained

        loaded = load_pretrained(path, preset=preset, dtype=dtype, device=device, compile=compile)
        made = cls(
            loaded.model,
            _scheduler_like(loaded.scheduler, scheduler),
            num_steps,
            image_shape=loaded.image_shape,
            num_classes=loaded.num_classes,
            codec=loaded.codec,
            latent_shape=loaded.latent_shape,
            **options,
        )
        made.description = loaded.description
        return made

    def levels(self) -> dict[str, np.ndarray]:
        """The noise levels a U-turn can reach, indexed by the step k = 0 .. num_steps; float64 arrays (num_steps + 1,).

        `timestep`: argument of the model (-1 at k = 0); `t_over_T`: k / N; `abar`: share of the signal in the variance,
        a^2 / (a^2 + s^2) for x_t = a x_0 + s noise; `log_snr`: log(a^2 / s^2), natural; `sigma`: noise over signal, s / a;
        `signal`: a itself, which depends on the units of the scheduler.
        """
        return {name: values.copy() for name, values in self.noise_levels.items()}

    def u_turn(self, images: Any, step: int, keys: Any, labels: Any = None) -> Any:
        """Reconstructions of images after noising to `step` and denoising back.

        Parameters
        ----------
        images
            float32 (batch, channels, height, width) in [-1, 1], numpy array or tensor.
        step
            k, 0 .. num_steps: number of reverse steps.
        keys
            uint64 (batch,), one independent stream of random numbers for each image: `uturn.random.keys`. The noise of
            an image depends on its key alone, not on the batch it comes in.
        labels
            int64 (batch,), true classes, for models that are told them.

        Returns
        -------
        reconstructions
            As `images` (same kind and shape), clipped to [-1, 1]. For step 0 a copy of the input, bit for bit.
        """
        return self._whole_batch(images, step, keys, labels, self._noisy)

    def u_turns(self, work: Iterable[Work]) -> Iterator[tuple[Any, np.ndarray]]:
        """U-turns of any images to any steps, in batches that stay full: `(name, reconstruction)` in the order in which they end.

        Whenever an image is back, the next one of `work` takes its place, whatever its step: one call of the network serves
        images at different timesteps. The iterable is read as places become free, so it may be lazy. Give the longest U-turns
        first: then the last batches, which cannot be filled, are few.

        Yields
        ------
        name, reconstruction
            float32 (channels, height, width) in [-1, 1].
        """
        return self._run((self._checked_work(one) for one in work), self._noisy)

    def corrupt(self, images: Any, step: int, keys: Any) -> Any:
        """Noisy images x_t (latents, if there is a codec), not clipped, from which `u_turn` with the same arguments denoises."""
        import torch

        checked, keys, step, _ = self._checked(images, step, keys, None, told=False)
        if step == 0:
            result = checked.clone()
        else:
            with torch.inference_mode():
                parts = [slice(k, k + self.batch_size) for k in range(0, len(checked), self.batch_size)]
                noisy = [self._noisy(checked[part].to(self.device), step, keys[part]).cpu() for part in parts]
                result = torch.cat(noisy) if noisy else checked.clone()
        return result if isinstance(images, torch.Tensor) else result.numpy()

    def denoise(self, noisy: Any, step: int, keys: Any, labels: Any = None) -> Any:
        """Reconstructions, clipped to [-1, 1], of noisy images x_t at `step`, in the units of `corrupt`."""
        return self._whole_batch(noisy, step, keys, labels, _as_given, clean=False)

    def generate(self, keys: Any, labels: Any = None) -> Any:
        """Samples (batch, channels, height, width) in [-1, 1] from pure noise; float32 numpy array.

        One sample for each key; `labels` as in `u_turn`.
        """
        if self.latent_shape is None:
            raise ValueError("image_shape is not known from the model; give it to ReverseDiffusion(image_shape=...)")
        shape = self.latent_shape
        keys = _checked_keys(keys, None)
        classes = self._checked_labels(labels, len(keys))
        blank = np.broadcast_to(np.float32(0), shape)
        work = (Work(blank, self.num_steps, key, None if classes is None else classes[k], k) for k, key in enumerate(keys))
        samples = dict(self._run(work, self._pure_noise))
        return (
            np.stack([samples[k] for k in range(len(keys))])
            if samples
            else np.empty((0, *(self.image_shape or shape)), np.float32)
        )

    def fingerprint(self) -> str:
        """SHA-256 of the weights, the scheduler's configuration and the choice of steps: recorded with results."""
        digest = hashlib.sha256()
        modules = [self.model, *([self.codec] if hasattr(self.codec, "state_dict") else [])]
        for module in modules:
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(_bytes_of(tensor))
        digest.update(type(self._scheduler).__name__.encode())
        digest.update(self._scheduler.to_json_string().encode())
        digest.update(f"{self.num_steps} {self._step_arguments} {self.pure_noise}".encode())
        return digest.hexdigest()

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _run(self, work: Iterable[Work], start: _Start) -> Iterator[tuple[Any, np.ndarray]]:
        """Denoise from `start(images, step, keys)`; see `u_turns`."""
        import torch

        queue = iter(work)
        cohorts: list[_Cohort] = []
        while True:
            free = max(0, self.batch_size - sum(len(cohort.names) for cohort in cohorts))
            # The queue's own code runs outside inference mode, and so does the caller's, between two yields.
            entering = list(islice(queue, free))
            while any(w.step == 0 for w in entering):
                yield from ((w.name, np.array(w.image, np.float32)) for w in entering if w.step == 0)
                entering = [w for w in entering if w.step > 0]
                entering += islice(queue, free - len(entering))
            with torch.inference_mode():
                for step, group in groupby(sorted(entering, key=lambda w: -w.step), key=lambda w: w.step):
                    cohorts.append(self._admitted(list(group), step, start))
                if not cohorts:
                    return
                self._advance(cohorts)
                ended = [cohort for cohort in cohorts if cohort.position == len(cohort.timesteps)]
                cohorts = [cohort for cohort in cohorts if cohort.position < len(cohort.timesteps)]
                results = [(cohort.names, self._finished(cohort)) for cohort in ended]
            for names, images in results:
                yield from zip(names, images, strict=True)

    def _admitted(self, work: list[Work], step: int, start: _Start) -> _Cohort:
        import torch

        keys = np.array([w.key for w in work], np.uint64)
        images = torch.from_numpy(np.stack([np.asarray(w.image) for w in work])).to(self.device)
        labels = None if self.num_classes is None else torch.tensor([w.label for w in work], device=self.device)
        scheduler, timesteps = self._from_step(step)
        arguments: dict[str, Any] = dict(self._step_arguments)
        if self._takes_generator:
            # On the CPU whatever the device, so that a GPU draws the same noise.
            arguments["generator"] = [torch.Generator().manual_seed(int(key)) for key in keys]
        return _Cohort([w.name for w in work], step, scheduler, timesteps, start(images, step, keys), labels, arguments)

    def _advance(self, cohorts: list[_Cohort]) -> None:
        """One step of all cohorts, with one call of the network."""
        import torch

        states, timesteps = [], []
        for cohort in cohorts:
            scaled = cohort.state
            if hasattr(cohort.scheduler, "scale_model_input"):
                scaled = cohort.scheduler.scale_model_input(cohort.state, cohort.timestep)
            states.append(scaled)
            timesteps.append(cohort.timestep.to(self.device).expand(len(cohort.names)))
        told = [] if self.num_classes is None else [torch.cat([c.labels for c in cohorts if c.labels is not None])]
        outputs = self._in_pieces(self._network, torch.cat(states), torch.cat(timesteps), *told)
        for cohort, output in zip(cohorts, outputs.split([len(cohort.names) for cohort in cohorts]), strict=True):
            channels = cohort.state.shape[1]
            if output.shape[1] == 2 * channels and not _uses_learned_variance(cohort.scheduler):
                output = output[:, :channels]
            cohort.state = cohort.scheduler.step(output, cohort.timestep, cohort.state, **cohort.arguments).prev_sample
            cohort.position += 1

    def _network(self, noisy: torch.Tensor, timesteps: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        try:
            output = self.model(noisy, timesteps, *labels)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            raise ValueError(f"the model fails on noisy images of shape {tuple(noisy.shape)} ({one_line(error)})") from error
        return getattr(output, "sample", output).to(noisy.dtype)  # schedulers need the precision, whatever the model computes in

    def _finished(self, cohort: _Cohort) -> np.ndarray:
        import torch

        finite = torch.isfinite(cohort.state).flatten(1).all(1).tolist()
        if not all(finite):
            bad = [name for name, good in zip(cohort.names, finite, strict=True) if not good]
            raise ValueError(
                f"reconstructions of images {', '.join(map(str, bad[:10]))} are not finite after {cohort.step} steps: the model "
                f"or the scheduler diverged"
            )
        images = cohort.state if self.codec is None else self._in_pieces(self.codec.decode, cohort.state)
        return images.clamp(-1, 1).cpu().numpy()

    def _in_pieces(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """`function(*tensors)` in pieces that fit into the memory of the device: half as many rows whenever they do not.

        Network, encoder and decoder have a limit each, which holds for the rest of the run.
        """
        import torch

        def called(rows: int) -> torch.Tensor:
            if rows == len(tensors[0]):
                return function(*tensors)
            return torch.cat([function(*piece) for piece in zip(*(t.split(rows) for t in tensors), strict=True)])

        name = getattr(function, "__name__", "")
        while True:
            rows = max(1, min(self._limits.get(name, self.batch_size), len(tensors[0])))
            try:
                return called(rows)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                message = (str(error) or type(error).__name__).splitlines()[0][:200]
            # Outside the handler: the error holds on to the tensors that were too many.
            gc.collect()
            if self.device.type in ("cuda", "mps"):
                getattr(torch, self.device.type).empty_cache()
            if rows == 1:
                try:  # what another process took, or what was just freed, may be there again
                    return called(1)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                raise MemoryError(f"not enough memory on {self.device} for a single image: {message}")
            self._limits[name] = rows // 2
            if name == "_network":
                self.batch_size = rows // 2

    # --- where the way back starts ---------------------------------------------------------------------------------------

    def _noisy(self, images: torch.Tensor, step: int, keys: np.ndarray) -> torch.Tensor:
        """x_t at step k of clean images."""
        latents = images if self.codec is None else self._in_pieces(self.codec.encode, images)
        if self.pure_noise and step == self.num_steps:
            return self._pure_noise(latents, step, keys)
        scheduler, timesteps = self._from_step(step)
        return _add_noise(scheduler, latents, self._noise(keys, latents), timesteps[:1].expand(len(latents)))

    def _pure_noise(self, latents: torch.Tensor, step: int, keys: np.ndarray) -> torch.Tensor:
        return self._noise(keys, latents) * float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def _from_step(self, step: int) -> tuple[Any, torch.Tensor]:
        """Fresh scheduler placed at step k, and the timesteps of its k steps.

        Fresh because multistep schedulers keep a history. Two-stage schedulers (order 2) list two timesteps a step.
        """
        scheduler = copy.deepcopy(self._scheduler)
        start = (self.num_steps - step) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        return scheduler, scheduler.timesteps[start:]

    def _noise(self, keys: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise of the forward process, of the shape of `like`.

        Not from torch.Generator: that one keeps only 32 bits of a seed. So even two keys that agree in those bits, and
        share the noise of the reverse steps, start from different noisy images.
        """
        import torch

        from uturn.random import normals

        noise = normals(keys, int(np.prod(like.shape[1:])), np.float32).reshape(like.shape)
        return torch.from_numpy(noise).to(self.device)

    # --- facts about the scheduler, measured on itself ---------------------------------------------------------------

    def _measure_levels(self) -> dict[str, np.ndarray]:
        """Signal and noise amplitudes of every step, as the scheduler itself applies them to a 1 and to a 0."""
        import torch

        scheduler = copy.deepcopy(self._scheduler)
        timesteps = scheduler.timesteps[:: scheduler.order].flip(0)
        one = torch.ones(self.num_steps, 1, 1, 1, dtype=torch.float64)
        signal = _add_noise(scheduler, one, 0 * one, timesteps).flatten().numpy()
        noise = _add_noise(scheduler, 0 * one, one, timesteps).flatten().numpy()
        a, s = np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])
        if self.pure_noise:
            a[-1], s[-1] = 0.0, float(getattr(scheduler, "init_noise_sigma", 1.0))
        with np.errstate(divide="ignore"):
            log_snr = 2 * (np.log(a) - np.log(s))
            sigma = np.divide(s, a)
        return {
            "timestep": np.concatenate([[-1.0], timesteps.double().numpy()]),
            "t_over_T": np.arange(self.num_steps + 1) / self.num_steps,
            "abar": a**2 / (a**2 + s**2),
            "log_snr": log_snr,
            "sigma": sigma,
            "signal": a,
        }

    def _draws_noise(self) -> bool:
        """Whether reverse steps draw noise: take one (not the last, which never does) twice, with two noise streams."""
        import torch

        def one_step(seed: int, global_seed: int) -> torch.Tensor:
            scheduler, timesteps = self._from_step(min(2, self.num_steps))
            arguments: dict[str, Any] = dict(self._step_arguments)
            if self._takes_generator:
                arguments["generator"] = [torch.Generator().manual_seed(seed)]
            state = torch.full((1, 1, 2, 2), 0.5)
            output = torch.zeros(1, 2 if _uses_learned_variance(scheduler) else 1, 2, 2)
            torch.manual_seed(global_seed)
            for timestep in timesteps[: scheduler.order]:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(state, timestep)  # some schedulers insist on it before step()
                state = scheduler.step(output, timestep, state, **arguments).prev_sample
            return state

        with torch.random.fork_rng(devices=[]):
            reference = one_step(seed=0, global_seed=0)
            if not torch.equal(reference, one_step(seed=0, global_seed=1)):
                raise ValueError(
                    f"{type(self._scheduler).__name__} draws noise from torch's global generator, so results could not be "
                    f"reproduced image by image; use one whose step() takes `generator`, such as 'ddpm'"
                )
            return not torch.equal(reference, one_step(seed=1, global_seed=0))

    # --- checks ------------------------------------------------------------------------------------------------------

    def _whole_batch(self, images: Any, step: int, keys: Any, labels: Any, start: _Start, clean: bool = True) -> Any:
        import torch

        checked, keys, step, classes = self._checked(images, step, keys, labels, clean)
        work = (Work(image, step, keys[k], None if classes is None else classes[k], k) for k, image in enumerate(checked))
        result = checked.numpy().copy()
        if step > 0:
            done = dict(self._run(work, start))
            result = np.stack([done[k] for k in range(len(checked))]) if done else result
        return torch.from_numpy(result) if isinstance(images, torch.Tensor) else result

    def _checked(
        self, images: Any, step: Any, keys: Any, labels: Any, clean: bool = True, told: bool = True
    ) -> tuple[torch.Tensor, np.ndarray, int, list[int] | None]:
        checked = self._checked_images(images, clean)
        classes = self._checked_labels(labels, len(checked)) if told else None
        return checked, _checked_keys(keys, len(checked)), self._checked_step(step), classes

    def _checked_work(self, work: Work) -> Work:
        images, keys, step, labels = self._checked(
            np.asarray(work.image)[None], work.step, np.asarray([work.key]), None if work.label is None else [work.label]
        )
        return Work(images[0].numpy(), step, keys[0], None if labels is None else labels[0], work.name)

    def _checked_labels(self, labels: Any, count: int) -> list[int] | None:
        if self.num_classes is None:
            return None  # the model cannot be told
        array = np.asarray(labels)
        if labels is None or array.dtype.kind not in "iu" or array.shape != (count,):
            raise ValueError(f"labels = {labels!r:.60}: the model is told the true class; expected integers ({count},)")
        if count and not (array.min() >= 0 and array.max() < self.num_classes):
            raise ValueError(
                f"labels: {array.min()} .. {array.max()}; expected 0 .. {self.num_classes - 1}, the classes of the model"
            )
        return array.tolist()

    def _checked_step(self, step: Any) -> int:
        try:
            number = operator.index(step)
        except TypeError:
            number = -1
        if not 0 <= number <= self.num_steps:
            raise ValueError(f"step={step!r}: expected a whole number of reverse steps in 0 .. {self.num_steps}")
        return number

    def _checked_images(self, images: Any, clean: bool) -> torch.Tensor:
        import torch

        tensor = images.detach().cpu() if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        if tensor.dtype != torch.float32:
            raise ValueError(f"images: dtype {tensor.dtype}; expected float32 in [-1, 1] (uint8: x / 127.5 - 1)")
        expected = self.image_shape if clean else self.latent_shape
        if tensor.ndim != 4 or (expected is not None and tuple(tensor.shape[1:]) != tuple(expected)):
            wanted = ("batch", *(expected or ("channels", "height", "width")))
            raise ValueError(f"images: shape {tuple(tensor.shape)}; expected ({', '.join(map(str, wanted))})")
        if tensor.numel():
            low, high = tensor.min().item(), tensor.max().item()
            most = 1.0 if clean else float(np.finfo(np.float32).max)
            if not (low >= -most and high <= most):  # also catches NaN
                raise ValueError(f"images: values in [{low}, {high}]; expected finite values{' in [-1, 1]' if clean else ''}")
        return tensor


if TYPE_CHECKING:
    _Start = Callable[[torch.Tensor, int, np.ndarray], torch.Tensor]
    """(images, step, keys) -> the state from which the way back starts."""


def _as_given(noisy: torch.Tensor, step: int, keys: np.ndarray) -> torch.Tensor:
    return noisy


def named_scheduler(name: str) -> tuple[Any, dict[str, Any]]:
    """Class of diffusers that a short name or the name of the class stands for, and the options that go with it."""
    import diffusers

    made = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise ValueError(
            f"scheduler = {name!r}: expected one of {sorted(SCHEDULERS)}, or the name of a scheduler class of diffusers"
        )
    return made, {"algorithm_type": "sde-dpmsolver++"} if name == "sde_dpm_solver" else {}


def _scheduler_like(stored: Any, name: str | None) -> Any:
    """A scheduler by name, with the noise schedule and prediction type of the stored one."""
    if name is None or name == "stored":
        return stored
    made, options = named_scheduler(name)
    scales = [scheduler.__name__.startswith("EDM") for scheduler in (made, type(stored))]  # those have noise levels of their own
    if made is not type(stored) and (made not in stored.compatibles or scales[0] != scales[1]):
        raise ValueError(
            f"scheduler = {name!r} does not go with the model, whose noise schedule is that of {type(stored).__name__}; take "
            f"'stored', or one of {sorted(scheduler.__name__ for scheduler in stored.compatibles)}"
        )
    return made.from_config(stored.config, **options)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text
        for words in (
            "out of memory",
            "allocate memory",
            "not enough memory",
            "alloc_failed",
            "unable to find a valid cudnn algorithm",
        )
    )


def _add_noise(scheduler: Any, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Draw from the marginal at each image's timestep, by the scheduler's own method (flow-matching ones call it scale_noise)."""
    timesteps = timesteps.to(images.device)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(images, noise, timesteps)
    return scheduler.scale_noise(images, timesteps, noise)


def _with_spacing(scheduler: Any, timestep_spacing: str | None) -> Any:
    """Copy of a scheduler with the timestep spacing asked for, or the one that suits it."""
    made = type(scheduler)
    changes: dict[str, Any] = {}
    if "timestep_spacing" in scheduler.config:
        if timestep_spacing is None:
            timestep_spacing = "trailing" if _has_fixed_stride(scheduler) else "linspace"
        if timestep_spacing not in ("linspace", "leading", "trailing"):
            raise ValueError(f"timestep_spacing={timestep_spacing!r}: expected 'linspace', 'leading' or 'trailing'")
        changes["timestep_spacing"] = timestep_spacing
    elif timestep_spacing is not None:
        raise ValueError(f"timestep_spacing={timestep_spacing!r}: {made.__name__} has no such option; leave it out")
    if str(scheduler.config.get("variance_type", "")).startswith("learned") and not _uses_learned_variance(scheduler):
        changes["variance_type"] = None  # solvers that would keep three channels of what they get: they get no variance at all
    return made.from_config(scheduler.config, **changes) if changes else copy.deepcopy(scheduler)


def _check_schedule(scheduler: Any) -> None:
    """Refuse what is no noise schedule: variances outside [0, 1], noise levels that are negative or not finite."""
    import torch

    for name, most in (("betas", 1.0), ("alphas_cumprod", 1.0), ("sigmas", float(np.finfo(np.float32).max))):
        values = torch.as_tensor(getattr(scheduler, name, 0.0)).flatten()
        bad = torch.nonzero(~((values >= 0) & (values <= most)))
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                f"{type(scheduler).__name__}: the noise schedule has {name}[{place}] = {float(values[place])}; expected finite "
                f"numbers in [0, {most:.3g}]: correct its configuration (scheduler_config.json)"
            )


def _check_timesteps(scheduler: Any, num_steps: int) -> None:
    """Refuse schedulers whose steps do not lead from each listed timestep to the next one."""
    from diffusers import LMSDiscreteScheduler

    name, order = type(scheduler).__name__, scheduler.order
    if isinstance(scheduler, LMSDiscreteScheduler):  # takes the order from the place in the chain, not from the steps it did
        raise ValueError(f"{name} integrates wrongly unless it begins at the first timestep; use 'dpm_solver' or 'unipc'")
    timesteps = scheduler.timesteps.double().numpy()
    firsts = timesteps[::order]
    if len(firsts) != num_steps or not (np.diff(firsts) < 0).all():
        raise ValueError(
            f"{name} with num_steps={num_steps}: its {len(timesteps)} timesteps are not one strictly descending step each; "
            f"use another scheduler ({', '.join(map(repr, sorted(SCHEDULERS)))}) or fewer steps"
        )
    if _has_fixed_stride(scheduler):
        stride = scheduler.config.num_train_timesteps // num_steps
        # Below the last timestep must be the clean image: a negative index, which the scheduler reads as "clean".
        if not (np.diff(timesteps) == -stride).all() or timesteps[-1] - stride >= 0:
            raise ValueError(
                f"{name} jumps by num_train_timesteps // num_steps = {stride} timesteps, which does not lead along its list "
                f"{timesteps[:3].tolist()} .. {timesteps[-2:].tolist()}; take a num_steps that divides "
                f"{scheduler.config.num_train_timesteps} and timestep_spacing='trailing' (the default) or 'leading'"
            )


def _has_fixed_stride(scheduler: Any) -> bool:
    """Whether `step` goes from t to t - T // N, whatever timestep is next in the list."""
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    return isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler)


def _uses_learned_variance(scheduler: Any) -> bool:
    """Whether `step` takes the variance from the second half of the channels of the model's output."""
    # By class: configurations carry the entry along to schedulers that know nothing of it.
    from diffusers import DDPMParallelScheduler, DDPMScheduler

    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    return learned and isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)


def _device_of(model: Any) -> torch.device:
    import torch

    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return torch.device("cpu") if first is None else first.device


def _image_shape_of(model: Any) -> tuple[int, int, int] | None:
    config = getattr(model, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _checked_keys(keys: Any, count: int | None) -> np.ndarray:
    array = np.asarray(keys)
    if array.dtype != np.uint64 or array.ndim != 1 or (count is not None and len(array) != count):
        wanted = "batch" if count is None else count
        raise ValueError(
            f"keys: dtype {array.dtype}, shape {array.shape}; expected uint64 ({wanted},), one stream for each image, "
            f"as uturn.random.keys gives"
        )
    return array
