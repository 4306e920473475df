"""A queue that keeps the batches of a network full: one call serves images at different timesteps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from uturn.core import progress
from uturn.core.pieces import half_precision_words
from uturn.corruption.schedulers import uses_learned_variance

if TYPE_CHECKING:
    import torch

    from uturn.core.pieces import Pieces
    from uturn.corruption import Diffusion


class Work(NamedTuple):
    """A reconstruction to compute.

    `image`: float32 (channels, height, width), x_t in the units of `ReverseDiffusion.corrupt`. `step`: number k of reverse steps,
    0 .. num_steps. `key`: uint64, its random stream. `label`: true class, for class-conditional models. `name`: any value, which
    is returned with the result and named in errors.
    """

    image: Any
    step: int
    key: Any
    label: int | None = None
    name: Any = None


class Chain(Protocol):
    """What the queue needs of a reverse diffusion; see the attributes of `ReverseDiffusion`."""

    codec: Any
    device: torch.device
    forward: Diffusion
    model: Any
    num_classes: int | None
    pieces: Pieces
    step_arguments: dict[str, float]
    takes_generator: bool

    @property
    def batch_size(self) -> int: ...

    def network(self, noisy: torch.Tensor, timesteps: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor: ...


@dataclass
class _Cohort:
    """Images that entered the queue together at the same step. They share a scheduler and its history."""

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


def run_queue(chain: Chain, work: Iterable[Work]) -> Iterator[tuple[Any, np.ndarray]]:
    """Reconstructions `(name, image)` in the order of completion; see `ReverseDiffusion.queue`."""
    import torch

    queue = iter(work)
    cohorts: list[_Cohort] = []
    while True:
        free = max(0, chain.batch_size - sum(len(cohort.names) for cohort in cohorts))
        # The iterable and the code of the caller between two yields run outside inference mode.
        entering = list(islice(queue, free))
        while any(w.step == 0 for w in entering):
            for w in entering:
                if w.step == 0:
                    progress.add()
                    yield w.name, np.array(w.image, np.float32)
            entering = [w for w in entering if w.step > 0]
            entering += islice(queue, free - len(entering))
        with torch.inference_mode():
            for step, group in groupby(sorted(entering, key=lambda w: -w.step), key=lambda w: w.step):
                cohorts.append(_admitted(chain, list(group), step))
            if not cohorts:
                return
            _advance(chain, cohorts)
            progress.add(sum(len(cohort.names) / len(cohort.timesteps) for cohort in cohorts))
            ended = [cohort for cohort in cohorts if cohort.position == len(cohort.timesteps)]
            cohorts = [cohort for cohort in cohorts if cohort.position < len(cohort.timesteps)]
            results = [(cohort.names, _finished(chain, cohort)) for cohort in ended]
        for names, images in results:
            yield from zip(names, images, strict=True)


def _admitted(chain: Chain, work: list[Work], step: int) -> _Cohort:
    import torch

    state = torch.from_numpy(np.stack([np.asarray(w.image) for w in work])).to(chain.device)
    labels = None if chain.num_classes is None else torch.tensor([w.label for w in work], device=chain.device)
    scheduler, timesteps = chain.forward.placed(step)
    arguments: dict[str, Any] = dict(chain.step_arguments)
    if chain.takes_generator:
        # CPU generators on every device, so that a GPU draws the same noise.
        arguments["generator"] = [torch.Generator().manual_seed(int(w.key)) for w in work]
    return _Cohort([w.name for w in work], step, scheduler, timesteps, state, labels, arguments)


def _advance(chain: Chain, cohorts: list[_Cohort]) -> None:
    """One step of all cohorts, with one call of the network."""
    import torch

    states, timesteps = [], []
    for cohort in cohorts:
        scaled = cohort.state
        if hasattr(cohort.scheduler, "scale_model_input"):
            scaled = cohort.scheduler.scale_model_input(cohort.state, cohort.timestep)
        states.append(scaled)
        timesteps.append(cohort.timestep.to(chain.device).expand(len(cohort.names)))
    labels = [torch.cat([c.labels for c in cohorts if c.labels is not None])] if chain.num_classes is not None else []
    outputs = chain.pieces(chain.network, torch.cat(states), torch.cat(timesteps), *labels)
    for cohort, output in zip(cohorts, outputs.split([len(cohort.names) for cohort in cohorts]), strict=True):
        channels = cohort.state.shape[1]
        if output.shape[1] == 2 * channels and not uses_learned_variance(cohort.scheduler):
            output = output[:, :channels]
        cohort.state = cohort.scheduler.step(output, cohort.timestep, cohort.state, **cohort.arguments).prev_sample
        cohort.position += 1


def _finished(chain: Chain, cohort: _Cohort) -> np.ndarray:
    _check_finite(cohort, cohort.state, "the model or the scheduler diverged", chain.model)
    images = cohort.state
    if chain.codec is not None:
        images = chain.pieces(chain.codec.decode, cohort.state)
        _check_finite(cohort, images, "the autoencoder gives NaN or infinity", chain.codec)
    return images.clamp(-1, 1).cpu().numpy()


def _check_finite(cohort: _Cohort, values: torch.Tensor, reason: str, network: Any) -> None:
    import torch

    finite = torch.isfinite(values).flatten(1).all(1).tolist()
    if not all(finite):
        bad = [name for name, good in zip(cohort.names, finite, strict=True) if not good]
        raise ValueError(
            f"reconstructions of images {', '.join(map(str, bad[:10]))} are not finite after {cohort.step} steps: "
            f"{reason}{half_precision_words(getattr(network, 'dtype', None))}"
        )
