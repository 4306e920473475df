"""Training of the small networks of this package: one loop, resumable, with progress, that stops when a target is reached."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uturn.checks import checked_integer, one_line
from uturn.files import whole_file
from uturn.progress import progress_bar

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
        File to keep the state of the training in, every `every` steps; an existing one is taken up, a missing folder made.
    learning_rate, weight_decay, warmup, decay, clip
        AdamW; the learning rate rises linearly over `warmup` steps, multiplied by a cosine from 1 to 0 over all steps if `decay`;
        largest norm of the gradient.
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
        If the loss or its gradient is not finite, or the checkpoint belongs to another recipe, cannot be read or be written.
    """
    import torch

    checked_integer("steps", steps, 1)
    checked_integer("every", every, 1)
    checked_integer("warmup", warmup, 0)
    if not 0 < clip < math.inf:
        raise ValueError(f"clip = {clip}: expected a number > 0")
    if average is not None and not 0 <= average < 1:
        raise ValueError(f"average = {average}: expected a decay in [0, 1), or None")
    if target is not None and evaluate is None:
        raise ValueError(f"target = {target!r} needs `evaluate`, which gives {target[0]!r}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    smooth = None if average is None else torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(average)
    )  # fmt: skip
    settings = {
        "steps": steps,
        "every": every,
        "average": average,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "decay": decay,
        "clip": clip,
        "target": target,
    }
    try:
        identity = json.dumps({"recipe": dict(recipe), **settings}, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"recipe = {str(recipe)[:80]}: expected plain data, as in JSON ({one_line(error)})") from None
    step, finished = 0, False
    records: dict[str, list[tuple[int, float]]] = {}
    if checkpoint is not None:
        folder = Path(checkpoint).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoint = {str(checkpoint)!r}: cannot make its folder ({error.strerror})") from None
        if Path(checkpoint).exists():
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
            if smooth is not None:
                state["average"] = smooth.state_dict()
            with whole_file(checkpoint) as file:
                torch.save(state, file)

    def record(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            records.setdefault(name, []).append((step, float(value)))

    title = Path(checkpoint).name if checkpoint is not None else "training"
    with progress_bar(progress, title, steps, step) as advance:
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
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
            if not math.isfinite(norm):
                raise ValueError(f"the norm of the gradient is {norm} at step {step}; lower the learning rate ({learning_rate})")
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
                    if "loss" in values:
                        raise ValueError(
                            "evaluate gives 'loss', which names the training loss in the records; choose another name"
                        )
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
    """Share of the learning rate: the warm-up multiplies the cosine."""
    rising = min(1.0, (step + 1) / max(warmup, 1))
    return rising * (0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0)


def _resume(path: Path, identity: str, model: Any, optimizer: Any, smooth: Any) -> tuple[int, bool, Any]:
    import torch

    mine = json.loads(identity)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, step, finished = json.loads(state["recipe"]), state["step"], state["finished"]
        records = {
            name: [(checked_integer("step", at, 1), float(value)) for at, value in pairs]
            for name, pairs in json.loads(state["records"]).items()
        }
        flat = [{**table, **{f"recipe.{key}": value for key, value in table["recipe"].items()}} for table in (stored, mine)]
        if not isinstance(finished, bool):
            raise TypeError("finished")
        if checked_integer("step", step, 1) > stored["steps"]:
            raise ValueError("step")
    except Exception as error:  # torch.load raises many kinds, none of them documented
        raise ValueError(
            f"{path} is not a checkpoint of a training ({type(error).__name__}); move it away to begin anew"
        ) from None
    if stored != mine:
        there, here = flat
        different = [key for key in sorted({*there, *here} - {"recipe"}) if there.get(key) != here.get(key)]
        words = "; ".join(f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in different[:4])
        raise ValueError(f"{path} is the checkpoint of another training: {words}; move it away, or choose another folder")
    try:
        model.load_state_dict(state["model"])
        # Moments only: the settings of the optimizer are those of the recipe.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["optimizer"]["state"]})
        for weights, moments in optimizer.state.items():
            shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
            if shapes != {"step": (), "exp_avg": (*weights.shape,), "exp_avg_sq": (*weights.shape,)}:
                raise ValueError(f"moments {shapes} of weights {tuple(weights.shape)}")
        if smooth is not None:
            smooth.load_state_dict(state["average"])
    except Exception as error:  # a hostile file can hold anything in place of these
        raise ValueError(f"{path} is the checkpoint of another architecture ({one_line(error)}); move it away") from None
    return step, finished, records


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of the weights (hexadecimal)."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
