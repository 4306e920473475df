"""Training of the small networks of this package: one loop, resumable, with progress, that stops when a target is reached."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class History(NamedTuple):
    """How a training went: number of optimisation steps, and what was seen on the way, {quantity: [(step, value), ..]}."""

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
        Its initial weights are the caller's business (and seed).
    loss
        `loss(model, step)` is a scalar. It must draw its batch from `step` alone (see `uturn.random`), so that a resumed
        training is the uninterrupted one.
    steps
        Largest number of optimisation steps.
    recipe
        Plain data that says what is being trained: architecture, data, seed. A checkpoint of another recipe is refused.
    checkpoint
        File to keep the state of the training in, every `every` steps; an existing one is taken up.
    learning_rate, weight_decay, warmup, decay, clip
        AdamW; linear warm-up over `warmup` steps, then cosine decay to zero (`decay`) or constant; largest norm of the gradient.
    evaluate
        `evaluate(model)` gives {quantity: value}, recorded every `every` steps and at the end, model in evaluation mode.
    target
        (quantity, value): stop as soon as an evaluation reaches the value.
    average
        Decay of an exponential moving average of the weights, which then is evaluated and left in the model; e.g. 0.999.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If the loss is not finite, or the checkpoint belongs to another recipe or cannot be read.
    """
    import torch

    if target is not None and evaluate is None:
        raise ValueError(f"target = {target!r} needs `evaluate`, which gives {target[0]!r}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    smooth = None if average is None else torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(average)
    )  # fmt: skip
    settings = {
        "steps": steps,
        "average": average,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "decay": decay,
        "clip": clip,
        "target": target,
    }
    identity = json.dumps({**recipe, **settings}, sort_keys=True)
    step, finished = 0, False
    records: dict[str, list[tuple[int, float]]] = {}
    if checkpoint is not None and Path(checkpoint).exists():
        step, finished, records = _resume(Path(checkpoint), identity, model, optimizer, smooth)

    def save() -> None:
        if checkpoint is not None:
            state = {
                "recipe": identity,
                "step": step,
                "finished": finished,
                "records": json.dumps(records),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
            if smooth is not None:
                state["average"] = smooth.state_dict()
            unfinished = Path(checkpoint).with_name(Path(checkpoint).name + ".unfinished")
            torch.save(state, unfinished)
            os.replace(unfinished, checkpoint)

    def record(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            records.setdefault(name, []).append((step, float(value)))

    from uturn.experiment import _progress_bar

    title = Path(checkpoint).name if checkpoint is not None else "training"
    with _progress_bar(progress, title, steps, step) as advance:
        recent: list[float] = []
        while step < steps and not finished:
            model.train()
            rate = learning_rate * _schedule(step, steps, warmup, decay)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, step)
            recent.append(value.item())
            if not math.isfinite(recent[-1]):
                raise ValueError(f"the loss is {recent[-1]} at step {step}; lower the learning rate ({learning_rate})")
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if smooth is not None:
                smooth.update_parameters(model)
            step += 1
            advance()
            if step % every == 0 or step == steps:
                record({"loss": sum(recent) / len(recent)})
                recent = []
                if evaluate is not None:
                    tested = model if smooth is None else smooth.module
                    values = evaluate(tested.eval())
                    record(values)
                    if target is not None:
                        if target[0] not in values:
                            raise ValueError(f"target = {target!r}: evaluate gives {sorted(values)}, not {target[0]!r}")
                        finished = values[target[0]] >= target[1]
                save()
    if smooth is not None:
        model.load_state_dict(smooth.module.state_dict())
    model.eval()
    return History(step, records)


def _schedule(step: int, steps: int, warmup: int, decay: bool) -> float:
    rising = min(1.0, (step + 1) / max(warmup, 1))
    return rising * (0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0)


def _resume(path: Path, identity: str, model: Any, optimizer: Any, smooth: Any) -> tuple[int, bool, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, records = json.loads(state["recipe"]), json.loads(state["records"])
        step, finished = int(state["step"]), bool(state["finished"])
    except Exception as error:  # torch.load raises many kinds, none of them documented
        raise ValueError(
            f"{path} is not a checkpoint of a training ({type(error).__name__}); move it away to begin anew"
        ) from None
    mine = json.loads(identity)
    if stored != mine:
        different = [key for key in sorted({*stored, *mine}) if stored.get(key) != mine.get(key)]
        words = "; ".join(f"{key} is {stored.get(key)!r} there, {mine.get(key)!r} here" for key in different[:4])
        raise ValueError(f"{path} is the checkpoint of another training: {words}; move it away, or choose another folder")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if smooth is not None:
            smooth.load_state_dict(state["average"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is the checkpoint of another architecture ({str(error).splitlines()[0]})") from None
    return step, finished, {name: [tuple(pair) for pair in pairs] for name, pairs in records.items()}


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of the weights (hexadecimal)."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
