"""The way back: from a noisy observation to a reconstruction of the original."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from uturn.checks import checked_noise, checked_path
from uturn.corruption import Corruption, Gaussian
from uturn.random import keys, streams
from uturn.sources import CORRUPTION, RECONSTRUCTION, Images, Strings, Vectors

if TYPE_CHECKING:
    from uturn.backward.denoising import Denoiser
    from uturn.backward.reverse_diffusion import ReverseDiffusion, Work
    from uturn.inference import Beliefs
    from uturn.networks.guided_diffusion import load_guided_diffusion as load_guided_diffusion
    from uturn.networks.pretrained import load_pretrained as load_pretrained
    from uturn.rhm import RandomHierarchyModel

_DENOISING = 9  # purpose of a random stream, see uturn.sources


@dataclass(frozen=True)
class UTurns:
    """U-turns of a batch of originals at one noise level: what probes read.

    Attributes
    ----------
    originals : Strings, Images or Vectors
    reconstructions : {tree_level: int64 (items, trajectories, nodes)}, or float32 (items, trajectories, channels, height, width),
        or float32 (items, trajectories, dimension)
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

    # Optional. `u_turns(batches, seed, trajectories)`: many batches in one stream, see `DiffusionModel.u_turns`. `describe()`: a
    # line recorded with the results. `execution`: names of options that do not change the results. `wants_processes`: whether
    # several processes are faster than one.


def stream(seed: int, purpose: int, items: np.ndarray, trajectories: int | range, noise: float) -> np.ndarray:
    """One key per U-turn, uint64 (items * trajectories,), item-major; `trajectories`: how many of each item, or which.

    The noise level enters by its value, not by its place in the grid, so that a finer grid repeats the old numbers.
    """
    level = np.float64(noise).view(np.uint64)
    chosen = np.arange(trajectories) if isinstance(trajectories, int) else np.asarray(trajectories)
    return keys(seed, purpose, items[:, None], chosen, level).reshape(-1)


class ExactPosterior(BaseModel):
    """Draws from the exact posterior: by belief propagation for strings, by formula for vectors of a Gaussian mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["exact"] = "exact"

    def u_turn(
        self,
        originals: Strings | Vectors,
        corruption: Corruption,
        noise: float,
        seed: int,
        trajectories: int,
        outputs: Iterable[str],
    ) -> UTurns:
        if isinstance(originals, Vectors):
            return _exact_vectors(originals, corruption, noise, seed, trajectories)
        from uturn.inference import infer, sample_posterior

        rhm, items = originals.rhm, originals.items
        copies = trajectories if corruption.is_random else 1
        noisy = self.observe(originals, corruption, noise, seed, copies)
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

    def observe(
        self, originals: Strings | Vectors, corruption: Corruption, noise: float, seed: int, trajectories: int = 1
    ) -> Any:
        """What `u_turn` sees of the originals, batch = items x trajectories, item-major: Noisy, or float64 (batch, dimension)."""
        noises = stream(seed, CORRUPTION, originals.items, trajectories, noise)
        data = np.repeat(originals.data, trajectories, axis=0)
        if isinstance(originals, Vectors):
            return originals.law.diffuse(data, noise, noises)
        return corruption.corrupt(data, noise, originals.rhm.vocab_size, noises)

    def clones(self, originals: Strings | Vectors, corruption: Corruption, noise: float, seed: int, number: int) -> Any:
        """Several draws from the posterior of one observation of each original, that of trajectory 0 of `u_turn`.

        Returns
        -------
        {tree_level: int64 (items, number, nodes)}, or float32 (items, number, dimension)
            In a channel that draws noise, clone 0 is the reconstruction of trajectory 0.
        """
        observed = self.observe(originals, corruption, noise, seed)
        posterior = stream(seed, RECONSTRUCTION, originals.items, 1, noise)
        if isinstance(originals, Vectors):
            keys_of = (streams(posterior, len(posterior), k or None) for k in range(number))
            draws = [originals.law.sample_posterior(observed, noise, k).values.astype(np.float32) for k in keys_of]
            return np.stack(draws, axis=1)
        from uturn.inference import sample_posterior

        drawn = sample_posterior(originals.rhm, corruption.log_evidence(observed, np.float32), posterior, num_draws=number)
        return {level: nodes.swapaxes(0, 1) for level, nodes in drawn.items()}

    def noise_coordinates(
        self, corruption: Corruption, noise: Sequence[float], source: Any
    ) -> dict[str, tuple[Any, dict[str, str]]]:
        levels = checked_noise(list(noise), corruption.max_noise)
        coordinates: dict[str, tuple[Any, dict[str, str]]] = {"noise": (levels, {"long_name": corruption.unit})}
        if hasattr(source, "vocab_size"):
            coordinates |= _shared_axes(corruption, levels, source.vocab_size)
        for name, words in (("abar", "signal power abar"), ("log_snr", "log signal-to-noise ratio")):
            if hasattr(corruption, name):
                coordinates[name] = (getattr(corruption, name)(levels), {"long_name": words})
        return coordinates

    def fingerprint(self) -> str:
        return ""


def _exact_vectors(originals: Vectors, corruption: Corruption, noise: float, seed: int, trajectories: int) -> UTurns:
    if not isinstance(corruption, Gaussian):
        raise ValueError(f"corruption = {corruption!r}: the exact posterior of vectors is known for Gaussian() only")
    law, items = originals.law, originals.items
    shape = (len(items), trajectories, law.dimension)
    if noise == 0:  # the identity, in a single bit too
        return UTurns(originals, np.broadcast_to(originals.values[:, None], shape))
    observed = ExactPosterior().observe(originals, corruption, noise, seed, trajectories)
    rebuilt = law.sample_posterior(observed, noise, stream(seed, RECONSTRUCTION, items, trajectories, noise)).values
    return UTurns(originals, rebuilt.astype(np.float32).reshape(shape))


class StringDenoiser(BaseModel):
    """The reverse process of a Bayesian channel of strings, step by step, with a denoiser that knows single leaves.

    `model`: "exact" for belief propagation, or the file of a trained denoiser (`uturn.networks`) of the same channel. `steps`:
    evaluations of the denoiser a U-turn. Beliefs are exact, whatever the denoiser. See `uturn.backward.denoising.denoise`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["denoiser"] = "denoiser"
    model: str = "exact"
    steps: int = Field(default=64, ge=1)

    def u_turn(
        self, originals: Strings, corruption: Corruption, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        from uturn.backward.denoising import ExactDenoiser, denoise

        rhm, leaves, items = originals.rhm, originals.draw.leaves, originals.items
        denoiser = ExactDenoiser(rhm, corruption) if self.model == "exact" else self._learned(corruption)
        noisy = corruption.corrupt(
            np.repeat(leaves, trajectories, axis=0), noise, rhm.vocab_size, stream(seed, CORRUPTION, items, trajectories, noise)
        )
        rebuilt = denoise(denoiser, noisy, self.steps, stream(seed, _DENOISING, items, trajectories, noise))
        return _string_u_turns(originals, rebuilt, corruption.log_evidence(noisy, np.float32), trajectories, outputs)

    def noise_coordinates(
        self, corruption: Corruption, noise: Sequence[float], source: Any
    ) -> dict[str, tuple[Any, dict[str, str]]]:
        from uturn.backward.denoising import check_channel

        check_channel(corruption)
        if self.model != "exact":
            denoiser = self._learned(corruption)
            v, d = source.vocab_size, source.branching**source.depth
            if (denoiser.vocab_size, denoiser.num_leaves) != (v, d):
                raise ValueError(
                    f"model = {self.model!r} denoises {denoiser.num_leaves} leaves over {denoiser.vocab_size} symbols, but the "
                    f"strings have {d} over {v}"
                )
        return ExactPosterior().noise_coordinates(corruption, noise, source)

    def fingerprint(self) -> str:
        return "" if self.model == "exact" else _learned_denoiser(self.model).fingerprint()

    def _learned(self, corruption: Corruption) -> Denoiser:
        denoiser = _learned_denoiser(self.model)
        if denoiser.corruption != corruption:
            raise ValueError(f"model = {self.model!r} undoes {denoiser.corruption!r}, but the corruption is {corruption!r}")
        return denoiser


class StringDiffusion(BaseModel):
    """The exact score of strings run backwards with one of diffusers' schedulers; noise levels are fractions t/T of its chain.

    The schedule is the linear one of DDPM (T = 1000, beta from 1e-4 to 0.02), or the straight paths of flow matching.
    `scheduler`, `steps`, `eta`, `timestep_spacing` as in `DiffusionModel`. Beliefs are the exact ones given x_t.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["score"] = "score"
    scheduler: str = "ddpm"
    steps: int = Field(default=100, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None

    def u_turn(
        self, originals: Strings, corruption: Any, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        from uturn.backward.score_model import images_of, observation_of, strings_of

        rhm, step = originals.rhm, round(noise * self.steps)
        reverse = _string_diffusion(self, rhm)
        images = images_of(np.repeat(originals.draw.leaves, trajectories, axis=0)[:, None], rhm.vocab_size)
        noises = stream(seed, _DENOISING, originals.items, trajectories, noise)
        noisy = reverse.corrupt(images, step, noises)
        rebuilt = strings_of(reverse.denoise(noisy, step, noises))[:, 0]
        evidence = Gaussian().log_evidence(observation_of(noisy, reverse, step))
        return _string_u_turns(originals, rebuilt, evidence, trajectories, outputs)

    def noise_coordinates(self, corruption: Any, noise: Sequence[float], source: Any) -> dict[str, tuple[Any, dict[str, str]]]:
        reverse = _string_diffusion(self, source.grammar(0, 0))
        coordinates = _step_coordinates(noise, self.steps, reverse)
        with np.errstate(divide="ignore"):
            t = 0.5 * np.log(1 / coordinates["abar"][0])
        return coordinates | _shared_axes(Gaussian(), t, source.vocab_size)

    def fingerprint(self) -> str:
        return ""


def _shared_axes(corruption: Corruption, levels: np.ndarray, v: int) -> dict[str, tuple[Any, dict[str, str]]]:
    """What places noise levels on the axes that all corruptions share."""
    axes = {
        "effective_epsilon": (corruption.effective_epsilon(levels, v), {"long_name": "effective epsilon (Eq. 63)"}),
        "bits_per_leaf": (corruption.bits_per_leaf(levels, v), {"long_name": "information per leaf", "units": "bit"}),
    }
    for name, (values, _) in axes.items():
        if np.shape(values) != levels.shape:
            raise ValueError(
                f"{corruption!r}.{name} gave the shape {np.shape(values)}; expected {levels.shape}, one a noise level"
            )
    return axes


def _string_u_turns(
    originals: Strings, rebuilt: np.ndarray, evidence: np.ndarray, trajectories: int, outputs: Iterable[str]
) -> UTurns:
    """U-turns from reconstructed strings: their latents by parsing (-1 where ungrammatical), beliefs by exact inference."""
    from uturn.inference import infer

    wanted = tuple(outputs)
    latents = originals.rhm.parse(rebuilt).latents
    shape = (len(originals.items), trajectories, -1)
    return UTurns(
        originals,
        {level: nodes.reshape(shape) for level, nodes in latents.items()},
        infer(originals.rhm, evidence, outputs=wanted) if wanted else None,
    )


def _learned_denoiser(path: str) -> Denoiser:
    # A file that was written again is read again.
    return _loaded_denoiser(path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)


@lru_cache(maxsize=4)
def _loaded_denoiser(path: str, stamp: int) -> Denoiser:
    from uturn.networks.denoisers import LearnedDenoiser
    from uturn.networks.files import load_network

    return LearnedDenoiser(load_network(path, "tree_denoiser"))


@lru_cache(maxsize=4)
def _string_diffusion(spec: StringDiffusion, rhm: RandomHierarchyModel) -> ReverseDiffusion:
    from uturn.backward.denoising import ExactDenoiser
    from uturn.backward.reverse_diffusion import ReverseDiffusion, named_scheduler
    from uturn.backward.score_model import ScoreModel

    made, extra = named_scheduler(spec.scheduler)
    # Not the defaults of the class, which differ: all schedulers go through the same noise levels.
    linear = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    taken = inspect.signature(made.__init__).parameters
    scheduler = made(**(linear if "beta_schedule" in taken else {}), **extra)
    options = {k: getattr(spec, k) for k in ("eta", "timestep_spacing") if getattr(spec, k) is not None}
    return ReverseDiffusion(
        ScoreModel(ExactDenoiser(rhm, Gaussian()), scheduler), scheduler, spec.steps, **options, batch_size=4096
    )


class DiffusionModel(BaseModel):
    """A diffusion model run backwards with one of diffusers' schedulers.

    `model`: "fashion_mnist", a folder in diffusers' layout or the name of one on a hub, or a guided-diffusion checkpoint with
    its `preset` (`uturn.networks.guided_diffusion`). `steps`: reverse steps of the whole chain; the noise levels of the
    experiment are fractions t/T of it. `scheduler`: "ddpm", "ddim", .., or "stored"; `eta` for schedulers that take it;
    `timestep_spacing` as in diffusers ("linspace" by default, "trailing" for DDIM). `pure_noise`: start the whole chain from pure
    noise, not from the scheduler's first level. `dtype`: "float32", "bfloat16" or "float16", what the network computes in.

    How it is computed, which does not change what is computed: `device` ("cuda" where there is one), `batch_size` (a number,
    or "auto"; see `ReverseDiffusion`), `compile` (by torch.compile).
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "compile"})
    adds_trajectories: ClassVar[bool] = True  # `u_turns` takes a range of them
    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["diffusion"] = "diffusion"
    model: str = "fashion_mnist"
    preset: str | None = None
    scheduler: str = "ddpm"
    steps: int = Field(default=100, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    pure_noise: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    batch_size: int | str = "auto"
    compile: bool = False

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20):
            raise ValueError(f"batch_size = {value!r}: expected 'auto', or an integer in 1 .. {2**20}")
        return value

    @property
    def wants_processes(self) -> bool:
        """Several processes are faster than one with several threads on the CPU: the threads of convolutions of small images
        wait for each other."""
        return _reverse_diffusion(self).device.type == "cpu"

    def u_turn(
        self, originals: Images, corruption: Any, noise: float, seed: int, trajectories: int, outputs: Iterable[str]
    ) -> UTurns:
        return next(self.u_turns([(None, originals, noise)], seed, trajectories))[1]

    def u_turns(
        self, batches: Iterable[tuple[Any, Images, float]], seed: int, trajectories: int | range
    ) -> Iterator[tuple[Any, UTurns]]:
        """U-turns of batches `(name, originals, noise)`, which share the calls of the network: `(name, u_turns)` as they end.

        `trajectories`: how many of each original, or which.
        """
        reverse = _reverse_diffusion(self)
        chosen = range(trajectories) if isinstance(trajectories, int) else trajectories
        pending: dict[int, _Pending] = {}

        def work() -> Iterator[Work]:
            from uturn.backward.reverse_diffusion import Work

            for number, (name, originals, noise) in enumerate(batches):
                rows = len(originals.items) * len(chosen)
                rebuilt = np.empty((rows, *originals.images.shape[1:]), np.float32)
                pending[number] = _Pending(name, originals, rebuilt, rows)
                noises = stream(seed, RECONSTRUCTION, originals.items, chosen, noise)
                labels = self._told(originals, reverse)
                for row in range(rows):
                    item, trajectory = divmod(row, len(chosen))
                    place = _Place(number, row, int(originals.items[item]), chosen[trajectory], noise)
                    label = None if labels is None else labels[item]
                    yield Work(originals.images[item], self.step_of(noise), noises[row], label, place)

        for place, image in reverse.u_turns(work()):
            batch = pending[place.batch]
            batch.rebuilt[place.row] = image
            batch.left -= 1
            if batch.left == 0:
                del pending[place.batch]
                shape = (len(batch.originals.items), len(chosen), *batch.rebuilt.shape[1:])
                yield batch.name, UTurns(batch.originals, batch.rebuilt.reshape(shape))

    def _told(self, originals: Images, reverse: ReverseDiffusion) -> list[int] | None:
        """The true labels, for models that are told them."""
        if reverse.num_classes is None:
            return None
        wrong = np.flatnonzero((originals.labels < 0) | (originals.labels >= reverse.num_classes))
        if len(wrong):
            raise ValueError(
                f"item {originals.items[wrong[0]]} has the label {originals.labels[wrong[0]]}, but the model {self.model!r} is "
                f"told the true class, 0 .. {reverse.num_classes - 1}; give the source labels in the model's order"
            )
        return originals.labels.tolist()

    def step_of(self, noise: float) -> int:
        """Number of reverse steps k of a U-turn at t/T = noise."""
        return round(noise * self.steps)

    def noise_coordinates(self, corruption: Any, noise: Sequence[float], source: Any) -> dict[str, tuple[Any, dict[str, str]]]:
        reverse = _reverse_diffusion(self)
        expected, found = reverse.image_shape, source.image_shape()
        if expected is not None and tuple(expected) != tuple(found):
            raise ValueError(
                f"the images are {tuple(found)} (channels, height, width), but the model {self.model!r} takes {tuple(expected)}; "
                f"give the source the model's `channels` and `size`"
            )
        labels = source.num_labels()
        if reverse.num_classes is not None and labels != reverse.num_classes:
            raise ValueError(
                f"the model {self.model!r} is told the true class, one of {reverse.num_classes}, but the images have "
                f"{'no labels' if labels is None else f'{labels} classes'}; give the source labels in the model's order "
                f"(a folder: sub-folders, and `classes`)"
            )
        return _step_coordinates(noise, self.steps, reverse)

    def fingerprint(self) -> str:
        return _reverse_diffusion(self).fingerprint()

    def describe(self) -> str:
        """The model and its reverse process in words."""
        reverse = _reverse_diffusion(self)
        draws = "draws noise" if reverse.is_stochastic else "deterministic"
        return f"{reverse.description}; {self.scheduler}, {self.steps} steps, {draws}"


class _Place(NamedTuple):
    """A U-turn in the queue: found again by batch and row, named in errors by the rest."""

    batch: int
    row: int
    item: int
    trajectory: int
    noise: float

    def __str__(self) -> str:
        return f"(item {self.item}, trajectory {self.trajectory}, noise {self.noise:g})"


@dataclass
class _Pending:
    """A batch whose U-turns are on their way."""

    name: Any
    originals: Images
    rebuilt: np.ndarray
    left: int


def _step_coordinates(noise: Sequence[float], steps: int, reverse: ReverseDiffusion) -> dict[str, tuple[Any, dict[str, str]]]:
    """Coordinates of fractions t/T of a chain of so many reverse steps."""
    levels = checked_noise(list(noise), 1)
    step = np.array([round(level * steps) for level in levels])
    if ((step == 0) & (levels > 0)).any():
        raise ValueError(
            f"noise = {float(levels[(step == 0) & (levels > 0)][0])}: less than half a step of {steps}; take 0 or at least "
            f"1/steps = {1 / steps}, or more steps"
        )
    if len(set(step.tolist())) < len(step):
        raise ValueError(
            f"noise = {list(noise)}: two levels fall on the same of the {steps} steps; take levels at least "
            f"1/steps = {1 / steps} apart, or more steps"
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
        "t_over_T": (step / steps, {"long_name": "inversion time t/T of the whole number of steps"}),
        "step": (step, {"long_name": "reverse steps"}),
        **{name: (np.asarray(table[name])[step], {"long_name": text}) for name, text in words.items()},
    }


def _reverse_diffusion(spec: DiffusionModel) -> ReverseDiffusion:
    # Files that were written again are read again: the index of a model, and the files of its parts, one folder down.
    path = Path(checked_path("model", spec.model))
    index = (path / "model_index.json").is_file()
    files = sorted([*path.glob("*"), *path.glob("*/*")]) if index else [path] if path.is_file() else []
    return _loaded_diffusion(spec, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=2)
def _loaded_diffusion(spec: DiffusionModel, stamps: tuple[Any, ...]) -> ReverseDiffusion:
    from uturn.backward.reverse_diffusion import ReverseDiffusion
    from uturn.networks.fashion_mnist import generator_folder

    options = {k: getattr(spec, k) for k in ("eta", "timestep_spacing") if getattr(spec, k) is not None}
    return ReverseDiffusion.from_pretrained(
        generator_folder() if spec.model == "fashion_mnist" else spec.model,
        spec.scheduler,
        spec.steps,
        preset=spec.preset,
        dtype=spec.dtype,
        device=spec.device,
        compile=spec.compile,
        batch_size=spec.batch_size,
        pure_noise=spec.pure_noise,
        **options,
    )


BACKWARDS: dict[str, type] = {
    "exact": ExactPosterior,
    "denoiser": StringDenoiser,
    "score": StringDiffusion,
    "diffusion": DiffusionModel,
}


def __getattr__(name: str) -> Any:
    if name in ("load_guided_diffusion", "load_pretrained"):  # torch is imported when they are used
        module = name.removeprefix("load_")
        return getattr(importlib.import_module(f"uturn.networks.{module}"), name)
    raise AttributeError(f"module 'uturn.backward' has no attribute {name!r}")
