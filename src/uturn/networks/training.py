"""Training of the small networks of this package: a resumable loop with a progress bar and an
optional target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uturn.core.checks import checked_integer, expect
from uturn.core.files import named_errors, whole_file
from uturn.core.progress import add, progress_bar, units
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
    ValueError if it diverges.

    `loss(model, step)` is a scalar. It must draw its batch from `step` alone (see `uturn.random`),
    so that a resumed training equals an uninterrupted one. `recipe`: plain data that identify the
    training: architecture, data, seed. `checkpoint`: file for the state of the training, written
    every `every` steps, from which it resumes; one of another recipe is refused. The learning rate
    rises linearly over `warmup` steps and, if `decay`, is multiplied by a cosine that falls from 1
    to 0 over all `steps`. `clip`: largest norm of the gradient. `evaluate(model)` gives {quantity:
    value}, recorded every `every` steps and at the end. `target`, (quantity, value): stop as soon
    as an evaluation reaches the value. `average`: decay of an exponential moving average of the
    weights, such as 0.999, which is evaluated, and left in the model.
    """
    for name, given in (("steps", steps), ("every", every)):
        checked_integer(name, given, 1)
    expect(0 < clip < math.inf, "clip", clip, "a number > 0")
    expect(average is None or 0 <= average < 1, "average", average, "a decay in [0, 1), or None")
    settings = {
        "steps": steps, "every": every, "learning_rate": learning_rate, "weight_decay": weight_decay, "warmup": warmup,
        "decay": decay, "clip": clip, "target": target, "average": average,
    }  # fmt: skip
    identity = json.dumps(
        {**settings, **{f"recipe.{name}": value for name, value in recipe.items()}}, sort_keys=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    averaged = (
        None
        if average is None
        else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer} | (
        {} if averaged is None else {"average": averaged}
    )
    step, finished = 0, False
    records: dict[str, list[tuple[int, float]]] = {}
    if checkpoint is not None:
        with named_errors(checkpoint):
            Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
        if Path(checkpoint).exists():
            with reading(f"checkpoint = {str(checkpoint)!r}", "move it away to begin anew"):
                state = read_plain(str(checkpoint))
                there, here = json.loads(state["recipe"]), json.loads(identity)
                if other := [
                    name for name in {**there, **here} if there.get(name) != here.get(name)
                ]:
                    differences = [
                        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
                        for name in other[:4]
                    ]
                    raise ValueError(
                        f"it is the checkpoint of another training: {'; '.join(differences)}"
                    )
                step, finished = int(state["step"]), bool(state["finished"])
                records = {
                    name: list(map(tuple, pairs))
                    for name, pairs in json.loads(state["records"]).items()
                }
                for name, part in parts.items():
                    part.load_state_dict(state[name])

    title = Path(checkpoint).name if checkpoint is not None else "training"
    with progress_bar(progress, title, steps, step) as advance, units(steps):
        add(step)
        losses: list[float] = []
        while step < steps and not finished:
            model.train()
            rising = min(1.0, (step + 1) / max(warmup, 1))
            falling = 0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (rising * falling)
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, step)
            losses.append(value.item())
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
            for what, number in (("the loss", losses[-1]), ("the norm of the gradient", norm)):
                if not math.isfinite(number):
                    raise ValueError(
                        f"{what} is {number} at step {step}; lower the learning rate"
                        f" ({learning_rate})"
                    )
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(model)
            step += 1
            advance()
            add()
            if step % every and step < steps:
                continue
            values = {"loss": sum(losses) / len(losses)}
            losses = []
            if evaluate is not None:
                values |= evaluate((model if averaged is None else averaged.module).eval())
            for name, number in values.items():
                records.setdefault(name, []).append((step, float(number)))
            if target is not None:
                finished = values[target[0]] >= target[1]
            if checkpoint is not None:
                state = {
                    "recipe": identity,
                    "step": step,
                    "finished": finished,
                    "records": json.dumps(records),
                }
                with whole_file(checkpoint) as file:
                    torch.save(
                        {**state, **{name: part.state_dict() for name, part in parts.items()}}, file
                    )
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return History(step, records)
