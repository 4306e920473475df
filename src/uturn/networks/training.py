"""Training of the small networks of this package: a resumable loop with a progress bar and an
optional target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uturn.core.checks import checked_integer, expect
from uturn.core.files import named_errors, whole_file
from uturn.core.progress import add, progress_bar, units
from uturn.core.threads import torch_threads
from uturn.networks.files import read_plain
from uturn.networks.libraries import reading


class History(NamedTuple):
    """Number of optimisation steps, and recorded values {quantity: [(step, value), ..]}."""

    steps: int
    records: dict[str, list[tuple[int, float]]]


def train(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, int], torch.Tensor],
    steps: int,
    *,
    recipe: Mapping[str, object],
    checkpoint: str | Path | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 200,
    decay: bool = True,
    clip: float = 1.0,
    evaluate: Callable[[torch.nn.Module], Mapping[str, float]] | None = None,
    every: int = 500,
    target: tuple[str, float] | None = None,
    average: float | None = None,
    threads: int = 1,
    progress: bool = False,
) -> History:
    """Minimise a loss with AdamW; the model is trained in place and left in evaluation mode.
    ValueError if it diverges.

    `loss(model, step)` is a scalar. It must draw its batch from `step` alone (see `uturn.random`),
    so that a resumed training equals an uninterrupted one. `recipe`: plain data that identify the
    training: architecture, data, seed. `checkpoint`: file for the state of the training, written
    every `every` steps, from which it resumes; one of another recipe is refused. The learning rate
    rises linearly over `warmup` steps and, if `decay`, is multiplied by a cosine that falls from 1
    to 0 over all `steps`. `clip`: largest norm of the gradient. `evaluate(model)` gives {quantity:
    value}, recorded every `every` steps and at the end. `target`, (quantity, value): stop as soon
    as an evaluation reaches the value. `average`: decay of an exponential moving average of the
    weights, such as 0.999, which is evaluated, and left in the model. `threads`: number of threads
    of torch. Two threads wait for each other several times in a step of a small network, which
    then takes longer, and many times longer if other processes use the cores.
    """
    checked_integer("steps", steps, 1)
    checked_integer("every", every, 1)
    expect(0 < clip < math.inf, "clip", clip, "a number > 0")
    expect(average is None or 0 <= average < 1, "average", average, "a decay in [0, 1), or None")
    settings = {
        "steps": steps,
        "every": every,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "decay": decay,
        "clip": clip,
        "target": target,
        "average": average,
    }
    recipe_entries = {f"recipe.{name}": value for name, value in recipe.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    averaged = None
    if average is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))
    state = _State(
        json.dumps({**settings, **recipe_entries}, sort_keys=True), model, optimizer, averaged
    )
    if checkpoint is not None:
        with named_errors(checkpoint):
            Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
        if Path(checkpoint).exists():
            state.load(checkpoint)
    evaluated = model if averaged is None else averaged.module
    title = Path(checkpoint).name if checkpoint is not None else "training"
    bar = progress_bar(progress, title, steps, state.step, unit="steps")
    with bar as advance, units(steps), torch_threads(threads):
        add(state.step)
        losses: list[float] = []
        while state.step < steps and not state.is_finished:
            rising = min(1.0, (state.step + 1) / max(warmup, 1))
            falling = 1.0
            if decay:
                falling = 0.5 * (1 + math.cos(math.pi * state.step / steps))
            state.set_learning_rate(learning_rate * (rising * falling))
            losses.append(_descend(state, loss, clip, learning_rate))
            state.step += 1
            advance()
            add()
            if state.step % every and state.step < steps:
                continue
            values = {"loss": sum(losses) / len(losses)}
            losses = []
            if evaluate is not None:
                values |= evaluate(evaluated.eval())
            state.record(values)
            if target is not None:
                quantity, least = target
                state.is_finished = values[quantity] >= least
            if checkpoint is not None:
                state.save(checkpoint)
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return History(state.step, state.records)


def _descend(
    state: _State,
    loss: Callable[[torch.nn.Module, int], torch.Tensor],
    clip: float,
    learning_rate: float,
) -> float:
    """One step of the optimiser; the loss before it. ValueError if the training diverges."""
    model = state.model
    model.train()
    state.optimizer.zero_grad(set_to_none=True)
    value = loss(model, state.step)
    number = value.item()
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    _check_finite("the loss", number, state.step, learning_rate)
    _check_finite("the norm of the gradient", norm, state.step, learning_rate)
    state.optimizer.step()
    if state.averaged is not None:
        state.averaged.update_parameters(model)
    return number


def _check_finite(name: str, number: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(number):
        raise ValueError(
            f"{name} is {number} at step {step}; lower the learning rate ({learning_rate})"
        )


@dataclass
class _State:
    """The state of a training, which its checkpoint holds."""

    identity: str
    """The options and the recipe, as JSON."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """The moving average of the weights."""
    step: int = 0
    is_finished: bool = False
    records: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def record(self, values: Mapping[str, float]) -> None:
        for name, number in values.items():
            self.records.setdefault(name, []).append((self.step, float(number)))

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        parts: dict[str, torch.nn.Module | torch.optim.Optimizer] = {
            "model": self.model,
            "optimizer": self.optimizer,
        }
        if self.averaged is not None:
            parts["average"] = self.averaged
        return parts

    def save(self, checkpoint: str | Path) -> None:
        table = {
            "recipe": self.identity,
            "step": self.step,
            "finished": self.is_finished,
            "records": json.dumps(self.records),
        }
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with whole_file(checkpoint) as file:
            torch.save({**table, **parts}, file)

    def load(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint; ValueError if it is damaged, or of another training."""
        with reading(f"checkpoint = {str(checkpoint)!r}", "move it away to begin anew"):
            table = read_plain(str(checkpoint))
            _check_same_training(json.loads(table["recipe"]), json.loads(self.identity))
            self.step = int(table["step"])
            self.is_finished = bool(table["finished"])
            for name, pairs in json.loads(table["records"]).items():
                self.records[name] = [(step, number) for step, number in pairs]
            for name, part in self._parts().items():
                part.load_state_dict(table[name])


def _check_same_training(stored: Mapping[str, object], mine: Mapping[str, object]) -> None:
    """ValueError if a checkpoint has other options or another recipe."""
    names = [name for name in {**stored, **mine} if stored.get(name) != mine.get(name)]
    if not names:
        return
    differences = [
        f"{name} is {stored.get(name)!r} there, {mine.get(name)!r} here" for name in names[:4]
    ]
    raise ValueError(f"it is the checkpoint of another training: {'; '.join(differences)}")
