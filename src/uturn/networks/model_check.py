"""A check of networks on a few originals: reproducible calls, and the declared conventions of a
denoiser.

A denoiser with a wrong convention (of its time, its input or its output) gives plausible
reconstructions, but the error of its predictions, from x_t = a x_0 + s n at three noise levels, is
clearly smaller with the right convention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from uturn.core.findings import Finding
from uturn.corruption.pieces import Pieces, is_out_of_memory
from uturn.corruption.predictions import Prediction, solved
from uturn.corruption.schedulers import Scheduler, add_noise, is_flow, prediction_of, scaled_input
from uturn.networks.images.noise_schedule import NoiseSchedule
from uturn.networks.images.own_denoisers import OwnNetwork

if TYPE_CHECKING:
    from uturn.networks.images.pretrained import DenoisingNetwork

ABAR = (0.95, 0.7, 0.3)
"""Signal power a^2 / (a^2 + s^2) of the noise levels."""
FITS = 0.8
"""An alternative is reported if, at any level, its error is below this fraction of the declared
error.
"""
_JUDGED = 0.8  # trained denoisers have errors below this fraction of the linear prediction's
WRITES = "modifies its input; it is given a copy, so results do not change"
# Parameters; a cluster driver without a GPU would need minutes for larger networks.
_MOST_ON_CPU = 3e8
_ROWS = 8  # rows in the compared calls
_OUTPUTS: dict[Prediction, str] = {
    "noise": "the noise",
    "x0": "x_0",
    "v": "v",
    "flow": "the flow n - x_0",
    "score": "the score",
}


def is_checked(network: object, device: torch.device) -> bool:
    """Whether a network is small enough to be checked on its device."""
    if device.type != "cpu" or not isinstance(network, torch.nn.Module):
        return True
    return sum(tensor.numel() for tensor in network.parameters()) <= _MOST_ON_CPU


def writes_into(network: Callable[..., object], *inputs: torch.Tensor) -> bool:
    """Whether a network changes its inputs."""
    copies = [tensor.clone() for tensor in inputs]
    network(*copies)
    return not all(map(torch.equal, copies, inputs))


def check_calls(
    call: Callable[..., torch.Tensor], *inputs: torch.Tensor, half: bool = False
) -> Iterator[str]:
    """Faults in the computation of a network, from a few calls on the same data, as predicates ("is
    random: ..").

    `call(*inputs)`: the network as in the run, of tensors (batch, ..). `half`: it computes in half
    precision, in which rounding depends on the number of rows.
    """
    count = len(inputs[0])
    whole = torch.arange(0, count, -(-count // _ROWS))
    half_of_rows = whole[: (len(whole) + 1) // 2]
    # In reverse order, with copies in place of the other data.
    mixed = half_of_rows.repeat(2)[: len(whole)].flip(0)

    def called(rows: torch.Tensor) -> torch.Tensor:
        return call(*(tensor[rows.to(tensor.device)] for tensor in inputs)).float()

    first = called(whole)

    def differs(rows: torch.Tensor, tolerance: float) -> bool:
        expected = first[torch.searchsorted(whole, rows).to(first.device)]
        return _differ(called(rows), expected, tolerance)

    # Tolerances relative to the largest output, for equal and for different numbers of rows.
    for_equal = 1e-4
    if half:
        for_equal = 2e-2
    for_different = 1e-2
    if half:
        for_different = 0.1
    if differs(whole, for_equal):
        yield (
            "is random: a second call on the same data gives other values (dropout, randn_like), so"
            " results cannot be repeated"
        )
    elif differs(mixed, for_equal):
        yield "mixes the data of a batch: its output for one datum depends on the others"
    elif differs(half_of_rows, for_different):
        yield "depends on the batch size: it gives other values for fewer data"


def _differ(output: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether outputs differ by more than a share of the largest one; NaN differs."""
    return not bool((output - expected).abs().max() <= tolerance * expected.abs().max())


@dataclass(frozen=True)
class Change:
    """A change of a convention."""

    description: str
    ratio: float
    """Of its error to the declared error."""
    abar: float
    """The signal power at which the ratio is smallest."""


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of a denoiser's prediction of x_0 at the levels `ABAR`, each
    (levels,).
    """

    declared: torch.Tensor
    """With the declared conventions."""
    changed: dict[str, torch.Tensor]
    """With one change each, by its description."""
    linear: torch.Tensor
    """Of the linear prediction m + k (x_t / a - m), m the mean of the other originals."""
    depends_on_time: bool
    """Whether the output depends on the time input."""

    @property
    def is_judged(self) -> bool:
        """Whether any prediction is better than the linear one."""
        errors = torch.stack([self.declared, *self.changed.values()])
        return bool((errors < _JUDGED * self.linear).any())

    @property
    def best(self) -> Change:
        """The change with the smallest ratio of its error to the declared error."""
        errors = torch.stack([*self.changed.values()])
        ratios = torch.where(errors < _JUDGED * self.linear, errors / self.declared, torch.inf)
        change, level = divmod(int(ratios.argmin()), len(ABAR))
        return Change([*self.changed][change], float(ratios[change, level]), ABAR[level])


class Probed:
    """A denoiser with noisy originals and the inputs of its calls, without guidance.

    `clean`: float32 images or latents (originals, channels, height, width), on the device of the
    model; `labels`: int64 (originals,). `is_tried`: the scheduler has the levels `ABAR`; otherwise
    (EDM) x and time are as in sampling.
    """

    def __init__(
        self,
        model: DenoisingNetwork,
        scheduler: Scheduler,
        clean: torch.Tensor,
        labels: torch.Tensor | None,
        pieces: Pieces,
    ) -> None:
        self.scheduler = scheduler
        self.clean = clean
        self.model = model
        self.pieces = pieces
        self.own = model.network if isinstance(model.network, OwnNetwork) else None
        count = len(clean)
        if labels is None and model.condition.null_class is not None:
            labels = torch.full((count,), model.condition.null_class, device=clean.device)
        self.label_inputs = () if labels is None else (labels.repeat(len(ABAR)),)
        self.x_0 = clean.repeat(len(ABAR), 1, 1, 1)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.x_0.shape, generator=generator).to(clean.device)
        levels = _levels(scheduler)
        self.is_tried = levels is not None
        if levels is None:
            self.x, self.time = _as_sampled(scheduler, self.x_0, noise)
            return
        conversion = model.conversion
        self.prediction = prediction_of(scheduler) if conversion is None else conversion.prediction
        self.takes_sigma = conversion is not None and conversion.takes_sigma
        a, s, time = (level.to(clean.device).repeat_interleave(count) for level in levels)
        self.a = a.view(-1, 1, 1, 1)
        self.signal = self.a
        self.sigma = s.view(-1, 1, 1, 1)
        self.time = time
        if self.takes_sigma:
            self.signal = torch.ones_like(self.a)
            self.sigma = self.sigma / self.a
            self.time = self.sigma.flatten()
        self.x = self.signal * self.x_0 + self.sigma * noise

    def output(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Output of the network for noisy data, times and, if it is class-conditioned, labels;
        without a learned variance.
        """
        output: torch.Tensor = self.pieces(self.model.called, *inputs)
        return output[:, : self.clean.shape[1]]

    def errors(self) -> Errors:
        """The errors with the declared conventions and with each change."""
        output = self.output(self.x, self.time, *self.label_inputs)
        changed = {
            f"its output is read as {words}": self._error(output, kind)
            for kind, words in _OUTPUTS.items()
            if kind != self.prediction
        }
        changed["the sign of its output is changed"] = self._error(-output)
        depends_on_time = False
        for words, x, time in self._changes():
            try:
                other = self.output(x, time, *self.label_inputs)
            except Exception as failure:  # some networks reject other times, such as non-integers
                if is_out_of_memory(failure):
                    raise
                continue
            changed[words] = self._error(other)
            if x is self.x:
                depends_on_time |= _differ(other, output, 1e-6)
        return Errors(self._error(output), changed, self._linear_error(), depends_on_time)

    def _error(self, output: torch.Tensor, read_as: Prediction | None = None) -> torch.Tensor:
        kind = read_as or self.prediction
        clean, _ = solved(kind, output, self.x, self.signal, self.sigma)
        return self._mean_square(clean).nan_to_num(torch.inf)

    def _linear_error(self) -> torch.Tensor:
        clean = self.clean
        sigma = self.sigma / self.signal
        mean = (clean.sum(0, keepdim=True) - clean) / max(len(clean) - 1, 1)
        variance = (clean - mean).square().mean()
        mean = mean.repeat(len(ABAR), 1, 1, 1)
        gain = variance / (variance + sigma**2)
        return self._mean_square(mean + gain * (self.x / self.signal - mean))

    def _mean_square(self, predicted: torch.Tensor) -> torch.Tensor:
        return (predicted - self.x_0).square().reshape(len(ABAR), -1).mean(1)

    def _changes(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Changed inputs of the network, with one change each: its description, noisy data,
        times.
        """
        x = self.x
        time = self.time
        name = "the timestep"
        if self.takes_sigma:
            name = "sigma"
        yield f"{name} is divided by 1000", x, time / 1000
        # On a GPU, an index out of range ends the process; networks read from files take any
        # number.
        if self.takes_sigma or self.own is None or x.device.type == "cpu":
            yield f"{name} is multiplied by 1000", x, time * 1000
        if not self.takes_sigma:
            count = self.scheduler.config.num_train_timesteps
            last = count - 1
            if is_flow(self.scheduler):
                last = count
            yield "time runs backwards, T - t", x, last - time
        yield "its input is halved", x / 2, time
        yield "its input is doubled", 2 * x, time
        if self.takes_sigma:
            yield "its input is multiplied by sqrt(abar)", self.a * x, time
        else:
            yield "its input is divided by sqrt(abar)", 1 / self.a * x, time


def check_denoiser(
    model: DenoisingNetwork,
    scheduler: Scheduler,
    clean: torch.Tensor,
    labels: torch.Tensor | None,
    pieces: Pieces,
    half: bool = False,
) -> Iterator[Finding]:
    """Faults of a denoiser of images or latents, in predicates ("does not fit .."); arguments as in
    `Probed` and `check_calls`.

    The originals are noised to `ABAR`, and x_0 is predicted as declared and with one change each,
    of time, input or output. A change is reported if its mean squared error is below `FITS` times
    the declared one at any level. If no variant predicts better than a linear function of the noisy
    data, the network cannot be judged. Shifts of a few timesteps are not detected.
    """
    probed = Probed(model, scheduler, clean, labels, pieces)
    inputs = (probed.x, probed.time, *probed.label_inputs)
    yield from map(Finding, check_calls(probed.output, *inputs, half=half))
    if probed.own is not None:
        first_rows = [tensor[:2] for tensor in inputs]
        if writes_into(probed.own.network, *first_rows):
            yield Finding(WRITES)
    if not probed.is_tried:
        return
    errors = probed.errors()
    best = errors.best
    if not errors.depends_on_time:
        yield Finding(
            "does not depend on its time input; expected a network that uses the noise level"
        )
    elif not errors.is_judged:
        yield Finding(
            "cannot be judged: neither as declared nor with one change does it predict originals"
            " better than a linear function of the noisy image, as networks that are untrained, or"
            " trained on other data",
            is_unclear=True,
        )
    elif best.ratio < FITS:
        yield Finding(
            "does not fit what is declared, that it predicts"
            f" {_OUTPUTS[probed.prediction]}: the error of its prediction of"
            f" originals at abar = {best.abar} is {best.ratio:.2g} of that if {best.description}"
        )


def _as_sampled(
    scheduler: Scheduler, clean: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy data and times in the form used in sampling, at as many timesteps as `ABAR` has
    levels.
    """
    places = torch.linspace(0, len(scheduler.timesteps) - 1, len(ABAR)).long()
    times = scheduler.timesteps[places.to(scheduler.timesteps.device)]
    noisy = []
    for time, x_0, n in zip(times, clean.chunk(len(ABAR)), noise.chunk(len(ABAR)), strict=True):
        other = copy.deepcopy(scheduler)  # a copy, since schedulers store their current step
        x = add_noise(other, x_0, n, time.expand(len(x_0)))
        noisy.append(scaled_input(other, x, time))
    return torch.cat(noisy), times.to(clean.device).repeat_interleave(len(clean) // len(ABAR))


def _levels(scheduler: Scheduler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """a, s and the timesteps of `ABAR`, (levels,); None for a scheduler without such levels
    (EDM).
    """
    if not NoiseSchedule.exists_for(scheduler):
        return None
    abar = torch.tensor(ABAR)
    schedule = NoiseSchedule(scheduler)
    if schedule.is_flow:
        ratio = ((1 - abar) / abar).sqrt()
        return (*schedule.at_ratio(ratio), schedule.timestep_of(ratio))
    # The nearest whole timesteps, as in training.
    timesteps = (1 / (1 + schedule.levels**2) - abar[:, None]).abs().argmin(1)
    return (*schedule.at(timesteps), timesteps)
