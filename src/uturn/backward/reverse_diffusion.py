"""Noise an image up to a timestep and denoise it back, with any denoiser and any diffusers scheduler.

The sampler is never written here: `set_timesteps`, `add_noise`, `scale_model_input` and `step` of the scheduler do all
the work. What this module adds is bookkeeping that is easy to get wrong (which timestep is noised to, which one is
denoised first, whose noise is whose), and checks.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SCHEDULERS: Mapping[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of schedulers; any other class of diffusers can be given by its own name."""


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
        Must be in evaluation mode.
    scheduler
        Any scheduler of diffusers with one denoising pass over a descending list of timesteps. It is copied, never
        changed. Pseudo-numerical schedulers (PNDM) visit timesteps twice and are refused.
    num_steps
        Number of reverse steps N of the whole chain, 1 .. timesteps of the training schedule.
    timestep_spacing
        How the N timesteps are spread. By default "linspace" (both ends included), and "trailing" for the DDIM
        schedulers, whose step has the fixed length T // N and would not land on linspace's timesteps.
    eta
        Share of the posterior's noise for schedulers that take one (DDIM: 0 deterministic, 1 as DDPM).
    batch_size
        Images denoised at a time; results depend on it through float rounding only.
    image_shape
        (channels, height, width) the model expects; read from `model.config` where there is one.
    device
        Where to compute; by default where the model is.

    Attributes
    ----------
    num_steps : int
    is_stochastic : bool
        Whether reverse steps draw noise, the full one or less.
    noise_levels : dict
        As `levels()`.
    """

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        num_steps: int,
        *,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        batch_size: int = 64,
        image_shape: tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        import torch

        if getattr(model, "training", False):
            raise ValueError("model is in training mode, so dropout would corrupt the U-turn; call model.eval() first")
        num_train_timesteps = scheduler.config.num_train_timesteps
        if not 1 <= num_steps <= num_train_timesteps:
            raise ValueError(
                f"num_steps={num_steps}: expected 1 .. {num_train_timesteps}, the timesteps of the training schedule"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1 image")
        self.model = model
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.device = torch.device(device) if device is not None else _device_of(model)
        self.image_shape = image_shape or _image_shape_of(model)
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
        self.is_stochastic = self._draws_noise()
        self.noise_levels = self._measure_levels()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        scheduler: str | None = "ddpm",
        num_steps: int = 100,
        **options: Any,
    ) -> ReverseDiffusion:
        """Pixel-space diffusion model from a folder in diffusers' layout.

        Parameters
        ----------
        path
            Folder that `DiffusionPipeline.save_pretrained` wrote (or the name of one on a hub).
        scheduler
            A key of `SCHEDULERS`, the name of a diffusers class, or None for the one stored with the model. The noise
            schedule and the prediction type always come from the stored one.
        num_steps, **options
            As in the class.
        """
        import diffusers

        parts = diffusers.DiffusionPipeline.load_config(str(path))  # {part: [library, class]}
        if "vae" in parts or "vqvae" in parts:
            raise ValueError(f"{path}: a latent diffusion model; only models that denoise pixels are supported")
        denoiser = next((name for name in ("unet", "transformer") if name in parts), None)
        if denoiser is None or "scheduler" not in parts:
            raise ValueError(f"{path}: found {sorted(parts)}; expected a `unet` or a `transformer`, and a `scheduler`")
        model_class = getattr(diffusers, parts[denoiser][1])
        model = model_class.from_pretrained(str(path), subfolder=denoiser, low_cpu_mem_usage=False).float().eval()
        class_name = parts["scheduler"][1] if scheduler is None else SCHEDULERS.get(scheduler, scheduler)
        if not hasattr(diffusers, class_name):
            raise ValueError(f"scheduler={scheduler!r}: expected one of {sorted(SCHEDULERS)} or the name of a diffusers class")
        stored = getattr(diffusers, class_name).from_pretrained(str(path), subfolder="scheduler")
        return cls(model, stored, num_steps, **options)

    def levels(self) -> dict[str, np.ndarray]:
        """The noise levels a U-turn can reach, indexed by the step k = 0 .. num_steps; float64 arrays (num_steps + 1,).

        `timestep`: argument of the model (-1 at k = 0); `t_over_T`: k / N; `abar`: share of the signal in the variance,
        a^2 / (a^2 + s^2) for x_t = a x_0 + s noise; `log_snr`: log(a^2 / s^2), natural; `sigma`: noise over signal, s / a;
        `signal`: a itself, which depends on the units of the scheduler.
        """
        return {name: values.copy() for name, values in self.noise_levels.items()}

    def u_turn(self, images: Any, step: int, keys: Any) -> Any:
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

        Returns
        -------
        reconstructions
            As `images` (same kind and shape), clipped to [-1, 1]. For step 0 a copy of the input, bit for bit.
        """
        return self._in_batches(images, step, keys, self._u_turn_batch)

    def corrupt(self, images: Any, step: int, keys: Any) -> Any:
        """The noisy images x_t from which `u_turn` with the same arguments denoises (not clipped)."""
        return self._in_batches(images, step, keys, self._noisy_batch)

    def denoise(self, noisy: Any, step: int, keys: Any) -> Any:
        """Reconstructions, clipped to [-1, 1], of noisy images x_t at `step`, in the units of `corrupt`."""
        return self._in_batches(noisy, step, keys, self._denoised_batch, clean=False)

    def generate(self, keys: Any) -> Any:
        """Unconditional samples (batch, channels, height, width) in [-1, 1] from pure noise; float32 numpy array."""
        import torch

        if self.image_shape is None:
            raise ValueError("image_shape is not known from the model; give it to ReverseDiffusion(image_shape=...)")
        keys = _checked_keys(keys, None)
        shape = self.image_shape
        batches = []
        with torch.inference_mode():
            for start in range(0, len(keys), self.batch_size):
                batch = keys[start : start + self.batch_size]
                noise = self._noise(batch, shape) * float(getattr(self._scheduler, "init_noise_sigma", 1.0))
                batches.append(self._denoise(noise, self.num_steps, batch, start).clamp_(-1, 1).cpu().numpy())
        return np.concatenate(batches) if batches else np.empty((0, *shape), np.float32)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, the scheduler's configuration and the choice of steps: recorded with results."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(type(self._scheduler).__name__.encode())
        digest.update(self._scheduler.to_json_string().encode())
        digest.update(f"{self.num_steps} {self._step_arguments}".encode())
        return digest.hexdigest()

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _in_batches(self, images: Any, step: int, keys: Any, operation: Any, clean: bool = True) -> Any:
        import torch

        checked = self._checked_images(images, clean)
        keys = _checked_keys(keys, len(checked))
        step = self._checked_step(step)
        result = checked.clone()
        if step > 0:
            with torch.inference_mode():
                for start in range(0, len(checked), self.batch_size):
                    rows = slice(start, start + self.batch_size)
                    result[rows] = operation(checked[rows].to(self.device), step, keys[rows], start).cpu()
        return result if isinstance(images, torch.Tensor) else result.numpy()

    def _u_turn_batch(self, images: torch.Tensor, step: int, keys: np.ndarray, first: int) -> torch.Tensor:
        return self._denoised_batch(self._noisy_batch(images, step, keys, first), step, keys, first)

    def _denoised_batch(self, noisy: torch.Tensor, step: int, keys: np.ndarray, first: int) -> torch.Tensor:
        return self._denoise(noisy, step, keys, first).clamp_(-1, 1)

    def _noisy_batch(self, images: torch.Tensor, step: int, keys: np.ndarray, first: int) -> torch.Tensor:
        noise = self._noise(keys, tuple(images.shape[1:]))
        scheduler, timesteps = self._from_step(step)
        return _add_noise(scheduler, images, noise, timesteps[:1].expand(len(images)))

    def _denoise(self, noisy: torch.Tensor, step: int, keys: np.ndarray, first: int) -> torch.Tensor:
        """Run the last `step` reverse steps; `first` is the place of the first image in the caller's batch."""
        import torch

        scheduler, timesteps = self._from_step(step)
        arguments: dict[str, Any] = dict(self._step_arguments)
        if self._takes_generator:
            # On the CPU whatever the device, so that a GPU draws the same noise.
            arguments["generator"] = [torch.Generator().manual_seed(int(key)) for key in keys]
        count, channels = noisy.shape[:2]
        state = noisy
        for timestep in timesteps:
            scaled = state
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(state, timestep)
            output = self.model(scaled, timestep.to(state.device).expand(count))
            output = getattr(output, "sample", output)
            if output.shape[1] == 2 * channels and not _uses_learned_variance(scheduler):
                output = output[:, :channels]
            state = scheduler.step(output, timestep, state, **arguments).prev_sample
        finite = torch.isfinite(state).flatten(1).all(1)
        if not finite.all():
            bad = (first + torch.nonzero(~finite)[:, 0]).tolist()
            raise ValueError(f"reconstructions of images {bad[:10]} are not finite: the model or the scheduler diverged")
        return state

    def _from_step(self, step: int) -> tuple[Any, torch.Tensor]:
        """Fresh scheduler placed at step k, and the timesteps of its k steps.

        Fresh because multistep schedulers keep a history. Two-stage schedulers (order 2) list two timesteps a step.
        """
        scheduler = copy.deepcopy(self._scheduler)
        start = (self.num_steps - step) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        return scheduler, scheduler.timesteps[start:]

    def _noise(self, keys: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal noise (batch, *shape) of the forward process.

        Not from torch.Generator: that one keeps only 32 bits of a seed. So even two keys that agree in those bits, and
        share the noise of the reverse steps, start from different noisy images.
        """
        import torch

        from uturn.random import normals

        noise = normals(keys, int(np.prod(shape)), np.float32).reshape(len(keys), *shape)
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
        expected = self.image_shape
        if tensor.ndim != 4 or (expected is not None and tuple(tensor.shape[1:]) != tuple(expected)):
            wanted = ("batch", *(expected or ("channels", "height", "width")))
            raise ValueError(f"images: shape {tuple(tensor.shape)}; expected ({', '.join(map(str, wanted))})")
        if tensor.numel():
            low, high = tensor.min().item(), tensor.max().item()
            most = 1.0 if clean else float(np.finfo(np.float32).max)
            if not (low >= -most and high <= most):  # also catches NaN
                raise ValueError(f"images: values in [{low}, {high}]; expected finite values{' in [-1, 1]' if clean else ''}")
        return tensor


def _add_noise(scheduler: Any, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Draw from the marginal at each image's timestep, by the scheduler's own method (flow-matching ones call it scale_noise)."""
    timesteps = timesteps.to(images.device)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(images, noise, timesteps)
    return scheduler.scale_noise(images, timesteps, noise)


def _with_spacing(scheduler: Any, timestep_spacing: str | None) -> Any:
    """Copy of a scheduler with the timestep spacing asked for, or the one that suits it."""
    if "timestep_spacing" not in scheduler.config:
        if timestep_spacing is not None:
            raise ValueError(
                f"timestep_spacing={timestep_spacing!r}: {type(scheduler).__name__} has no such option; leave it out"
            )
        return copy.deepcopy(scheduler)
    if timestep_spacing is None:
        timestep_spacing = "trailing" if _has_fixed_stride(scheduler) else "linspace"
    if timestep_spacing not in ("linspace", "leading", "trailing"):
        raise ValueError(f"timestep_spacing={timestep_spacing!r}: expected 'linspace', 'leading' or 'trailing'")
    return type(scheduler).from_config(scheduler.config, timestep_spacing=timestep_spacing)


def _check_timesteps(scheduler: Any, num_steps: int) -> None:
    """Refuse schedulers whose steps do not lead from each listed timestep to the next one."""
    name, order = type(scheduler).__name__, scheduler.order
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
    return str(scheduler.config.get("variance_type", "")).startswith("learned")


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
