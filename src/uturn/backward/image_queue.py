"""The queue of a diffusion model: one call of the network serves images at different timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.core.pieces import half_precision_words
from uturn.corruption.schedulers import uses_learned_variance

if TYPE_CHECKING:
    import torch

    from uturn.backward.reverse_diffusion import ReverseDiffusion


class Work(NamedTuple):
    """A reconstruction to compute."""

    image: Any  # float32 (channels, height, width), x_t in the units of `ReverseDiffusion.corrupt`
    step: int  # number k of reverse steps, 0 .. num_steps
    key: Any  # uint64, its random stream
    label: int | None = None  # true class, for class-conditional models
    name: Any = None  # any value, which is returned with the result and named in errors


@dataclass
class _Cohort:
    """Images that entered the queue together at the same timestep. They share a scheduler and its history."""

    names: list[Any]
    reverse_steps: int
    scheduler: Any
    timesteps: torch.Tensor
    state: torch.Tensor
    labels: torch.Tensor | None
    arguments: dict[str, Any]
    step: int = 0

    @property
    def calls(self) -> int:
        return len(self.timesteps)

    @property
    def timestep(self) -> torch.Tensor:
        return self.timesteps[self.step]


class ImageQueue:
    """A reverse diffusion as a process of `run_queue`. Works are read outside of torch's inference mode."""

    def __init__(self, reverse: ReverseDiffusion) -> None:
        self.reverse = reverse

    @property
    def places(self) -> int:
        return self.reverse.batch_size

    def calls(self, work: Work) -> int:
        return work.step

    def unchanged(self, work: Work) -> np.ndarray:
        return np.array(work.image, np.float32)

    def admitted(self, work: list[Work]) -> list[_Cohort]:
        by_step = attrgetter("step")
        return [self._cohort(list(group), step) for step, group in groupby(sorted(work, key=by_step, reverse=True), by_step)]

    def _cohort(self, work: list[Work], step: int) -> _Cohort:
        import torch

        reverse = self.reverse
        state = torch.from_numpy(np.stack([np.asarray(w.image) for w in work])).to(reverse.device)
        labels = None if reverse.num_classes is None else torch.tensor([w.label for w in work], device=reverse.device)
        scheduler, timesteps = reverse.forward.placed(step)
        arguments: dict[str, Any] = dict(reverse.step_arguments)
        if reverse.takes_generator:
            # CPU generators on every device, so that a GPU draws the same noise.
            arguments["generator"] = [torch.Generator().manual_seed(int(w.key)) for w in work]
        return _Cohort([w.name for w in work], step, scheduler, timesteps, state, labels, arguments)

    def advance(self, cohorts: list[_Cohort]) -> None:
        """One step of all cohorts, with one call of the network."""
        import torch

        reverse = self.reverse
        with torch.inference_mode():
            states, timesteps = [], []
            for cohort in cohorts:
                scaled = cohort.state
                if hasattr(cohort.scheduler, "scale_model_input"):
                    scaled = cohort.scheduler.scale_model_input(cohort.state, cohort.timestep)
                states.append(scaled)
                timesteps.append(cohort.timestep.to(reverse.device).expand(len(cohort.names)))
            labels = [torch.cat([c.labels for c in cohorts if c.labels is not None])] if reverse.num_classes is not None else []
            outputs = reverse.pieces(reverse.network, torch.cat(states), torch.cat(timesteps), *labels)
            for cohort, output in zip(cohorts, outputs.split([len(cohort.names) for cohort in cohorts]), strict=True):
                channels = cohort.state.shape[1]
                if output.shape[1] == 2 * channels and not uses_learned_variance(cohort.scheduler):
                    output = output[:, :channels]
                cohort.state = cohort.scheduler.step(output, cohort.timestep, cohort.state, **cohort.arguments).prev_sample
                cohort.step += 1

    def results(self, cohort: _Cohort) -> np.ndarray:
        import torch

        reverse = self.reverse
        with torch.inference_mode():
            _check_finite(cohort, cohort.state, "the model or the scheduler diverged", reverse.model)
            images = cohort.state
            if reverse.codec is not None:
                images = reverse.pieces(reverse.codec.decode, cohort.state)
                _check_finite(cohort, images, "the autoencoder gives NaN or infinity", reverse.codec)
            return images.clamp(-1, 1).cpu().numpy()


def _check_finite(cohort: _Cohort, values: torch.Tensor, reason: str, network: Any) -> None:
    import torch

    finite = torch.isfinite(values).flatten(1).all(1).tolist()
    if bad := [str(name) for name, good in zip(cohort.names, finite, strict=True) if not good]:
        where = f"reconstructions of images {', '.join(bad[:10])} are not finite after {cohort.reverse_steps} steps"
        raise ValueError(f"{where}: {reason}{half_precision_words(getattr(network, 'dtype', None))}")
