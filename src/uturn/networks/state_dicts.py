"""State dicts: fingerprints, files of foreign networks read without executing anything in them, and modules filled from them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uturn.core.checks import one_line


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of the weights (hexadecimal)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def read_state_dict(path: str, expected: str, option: str = "weights") -> dict[str, torch.Tensor]:
    """A state dict from a file, the value of an option; nothing in it is executed."""
    if not Path(path).is_file():
        raise ValueError(f"{option} = {path!r}: no such file; expected {expected}")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, none of them documented
        raise ValueError(
            f"{option} = {path!r} is damaged, or no file of weights ({one_line(error)}); expected {expected}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(w, torch.Tensor) for w in state.values()):
        raise ValueError(f"{option} = {path!r} holds {_short_kind(state)}; expected a table of tensors by their names")
    bad = next((name for name, w in state.items() if w.is_floating_point() and not bool(w.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"{option} = {path!r}: {str(bad)[:80]!r} is not finite; the file is of no use")
    if all(str(name).startswith("module.") for name in state):  # of a model trained on several GPUs
        rename_weights(state, lambda name: name.removeprefix("module."))
    return state


def _short_kind(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    odd = next((f"{str(name)[:40]!r} is a {type(value).__name__}" for name, value in state.items()), "nothing")
    return f"a table in which {odd}" if state else "an empty table"


def rename_weights(state: dict[str, torch.Tensor], new_name: Callable[[str], str]) -> None:
    """In place: a state dict carries the versions of its modules as an attribute, which a copy would lose."""
    for name in list(state):
        state[new_name(name)] = state.pop(name)


def built_with(build: Callable[..., nn.Module], state: dict[str, torch.Tensor], where: str) -> nn.Module:
    """A network with its weights, and with as many classes as they have."""
    module = build()
    own = module.state_dict()
    other = [(own[name], state[name]) for name in own if name in state and own[name].shape != state[name].shape]
    # The last layer alone may be of another size, and only in its number of classes.
    sizes = {(len(a), len(b)) if a.ndim and b.ndim and a.shape[1:] == b.shape[1:] else None for a, b in other}
    if len(sizes) == 1 and None not in sizes:
        ((_, num_classes),) = sizes  # type: ignore[misc]
        module = build(num_classes=num_classes)
    put_weights(module, state, where)
    return module


def put_weights(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights into a module; ValueError in one line if they are of another one."""
    own = module.state_dict()
    wrong = next((name for name in own if name in state and own[name].shape != state[name].shape), None)
    if wrong is not None:
        raise ValueError(
            f"{where} are of another network: {wrong} has shape {tuple(state[wrong].shape)} there, {tuple(own[wrong].shape)} here"
        )
    if not hasattr(state, "_metadata"):  # safetensors: the version of the network itself is the present one
        state = OrderedDict(state)
        state._metadata = {"": own._metadata.get("", {})}  # type: ignore[attr-defined]
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # modules may have their own ways to load
        raise ValueError(f"{where} are of another network ({one_line(error)})") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # of no use in evaluation
    for names, words in ((missing, "are missing"), (unexpected, "are not in it")):
        if names:
            raise ValueError(
                f"{where} are of another network: {len(names)} weights {words}, {', '.join(str(name)[:60] for name in names[:3])}"
            )
