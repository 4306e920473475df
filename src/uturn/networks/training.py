"""Training of the small networks of this package: a resumable loop with a progress bar and an optional target."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uturn.core.checks import checked_integer, one_line, shown
from uturn.core.files import named_errors, whole_file
from uturn.core.progress import add, progress_bar, units
from uturn.networks.libraries import reading
from uturn.networks.state_dicts import read_plain


class History(NamedTuple):
    """Number of optimisation steps, and recorded values {quantity: [(step, value), ..]}."""

    steps: int
    records: dict[str, list[tuple[int, float]]]


def train(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, int], torch.Tensor],
    steps: int,
    *,
    recipe: Mapping[str, Any],
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
    progress: bool = False,
) -> History:
    """Minimise a loss with AdamW; the model is trained in place and left in evaluation mode.

    Parameters
    ----------
    model
        The network, with its initial weights.
    loss
        `loss(model, step)` is a scalar. It must draw its batch from `step` alone (see `uturn.random`), so that a resumed
        training equals an uninterrupted one.
    steps
        Largest number of optimisation steps.
    recipe
        Plain data that identify the training: architecture, data, seed. A checkpoint of another recipe is refused.
    checkpoint
        File for the state of the training, written every `every` steps. If it exists, training resumes from it; missing folders
        are created.
    learning_rate, weight_decay, warmup, decay, clip
        Settings of AdamW. The learning rate rises linearly over `warmup` steps and, if `decay`, is multiplied by a cosine that
        falls from 1 to 0 over all steps. `clip`: largest norm of the gradient.
    evaluate
        `evaluate(model)` returns {quantity: value}, recorded every `every` steps and at the end, with the model in evaluation
        mode.
    target
        (quantity, value): stop as soon as an evaluation reaches the value.
    average
        Decay of an exponential moving average of the weights, such as 0.999; the average is evaluated, and left in the model.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If the loss or its gradient is not finite, or the checkpoint belongs to another recipe or cannot be read or written.
    """
    for name, value, least in (("steps", steps, 1), ("every", every, 1), ("warmup", warmup, 0)):
        checked_integer(name, value, least)
    if not 0 < clip < math.inf:
        raise ValueError(f"clip = {clip}: expected a number > 0")
    if average is not None and not 0 <= average < 1:
        raise ValueError(f"average = {average}: expected a decay in [0, 1), or None")
    if target is not None and evaluate is None:
        raise ValueError(f"target = {target!r} needs `evaluate`, which gives {target[0]!r}")
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
    training = _Training(model, settings, recipe, checkpoint)
    title = Path(checkpoint).name if checkpoint is not None else "training"
    with progress_bar(progress, title, steps, training.step) as advance, units(steps):
        add(training.step)
        losses: list[float] = []
        while training.step < steps and not training.finished:
            losses.append(training.descend(loss))
            advance()
            add()
            if training.step % every == 0 or training.step == steps:
                training.record({"loss": sum(losses) / len(losses)})
                losses = []
                if evaluate is not None:
                    training.judge(evaluate)
                training.save()
    return training.ended()


class _Training:
    """State of a training, stored in a checkpoint: network, optimizer, averaged weights and records."""

    def __init__(
        self, model: torch.nn.Module, settings: Mapping[str, Any], recipe: Mapping[str, Any], checkpoint: str | Path | None
    ) -> None:
        self.model, self.settings, self.checkpoint = model, settings, checkpoint
        learning_rate, weight_decay, average = (settings[name] for name in ("learning_rate", "weight_decay", "average"))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
        self.averaged = None if average is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))
        self.step, self.finished = 0, False
        self.records: dict[str, list[tuple[int, float]]] = {}
        try:
            self.identity = json.dumps({"recipe": dict(recipe), **settings}, sort_keys=True)
        except TypeError as error:
            raise ValueError(f"recipe = {shown(recipe)}: expected plain data, as in JSON ({one_line(error)})") from None
        if checkpoint is not None:
            with named_errors(checkpoint):
                Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
            if Path(checkpoint).exists():
                self._resume(str(checkpoint))

    def learning_rate(self) -> float:
        """Linear warm-up times cosine decay."""
        rising = min(1.0, (self.step + 1) / max(self.settings["warmup"], 1))
        falling = 0.5 * (1 + math.cos(math.pi * self.step / self.settings["steps"])) if self.settings["decay"] else 1.0
        return self.settings["learning_rate"] * (rising * falling)

    def descend(self, loss: Callable[[torch.nn.Module, int], torch.Tensor]) -> float:
        """Take one step of the optimizer; returns the loss before it."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(self.model, self.step)
        number = value.item()
        self._check_finite("the loss", number)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"]).item()
        self._check_finite("the norm of the gradient", norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        return number

    def judge(self, evaluate: Callable[[torch.nn.Module], Mapping[str, float]]) -> None:
        """Evaluate the network and record the values; finished if the target is reached."""
        judged = self.model if self.averaged is None else self.averaged.module
        values, target = evaluate(judged.eval()), self.settings["target"]
        if "loss" in values:
            raise ValueError("evaluate gives 'loss', which names the training loss in the records; choose another name")
        self.record(values)
        if target is not None:
            if target[0] not in values:
                raise ValueError(f"target = {target!r}: evaluate gives {sorted(values)}, not {target[0]!r}")
            self.finished = values[target[0]] >= target[1]

    def record(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.records.setdefault(name, []).append((self.step, float(value)))

    def save(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "recipe": self.identity,
            "step": self.step,
            "finished": self.finished,
            "records": json.dumps(self.records),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.averaged is not None:
            state["average"] = self.averaged.state_dict()
        with whole_file(self.checkpoint) as file:
            torch.save(state, file)

    def ended(self) -> History:
        """The history; the model gets the averaged weights, if any, and is in evaluation mode."""
        if self.averaged is not None:
            self.model.load_state_dict(self.averaged.module.state_dict())
        self.model.eval()
        return History(self.step, self.records)

    def _resume(self, path: str) -> None:
        """Continue from a checkpoint after checking all its content."""
        where, instead, mine = f"checkpoint = {path!r}", "move it away to begin anew", json.loads(self.identity)
        with reading(where, instead):
            state = read_plain(path)
            differences = _differences(json.loads(state["recipe"]), mine)
        if differences:
            raise ValueError(f"{where} is the checkpoint of another training: {'; '.join(differences[:4])}; {instead}")
        with reading(where, instead):
            self.step, self.finished = checked_integer("step", state["step"], 1), state["finished"]
            if self.step > mine["steps"] or not isinstance(self.finished, bool):
                raise ValueError(f"step = {self.step}, finished = {shown(self.finished)}")
            self.records = {
                name: [(checked_integer("step", at, 1), float(value)) for at, value in pairs]
                for name, pairs in json.loads(state["records"]).items()
            }
            self.model.load_state_dict(state["model"])
            # Only the moments are restored; the settings of the optimizer come from the recipe.
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]["state"]})
            for weights, moments in self.optimizer.state.items():
                shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
                if shapes != {"step": (), "exp_avg": (*weights.shape,), "exp_avg_sq": (*weights.shape,)}:
                    raise ValueError(f"moments {shapes} of weights {tuple(weights.shape)}")
            if self.averaged is not None:
                self.averaged.load_state_dict(state["average"])

    def _check_finite(self, what: str, number: float) -> None:
        if not math.isfinite(number):
            rate = self.settings["learning_rate"]
            raise ValueError(f"{what} is {number} at step {self.step}; lower the learning rate ({rate})")


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The differences between two recipes as text."""
    there, here = ({**table, **{f"recipe.{key}": value for key, value in table["recipe"].items()}} for table in (there, here))
    keys = [key for key in sorted({*there, *here} - {"recipe"}) if there.get(key) != here.get(key)]
    return [f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]
