"""The small networks of this package, and their files: safetensors with the kind of network and its options in the header."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FORMAT = "uturn-network-1"

KINDS = {
    "tree_classifier": "uturn.classifiers:TreeClassifier",
    "vector_classifier": "uturn.classifiers:VectorClassifier",
    "tree_denoiser": "uturn.denoisers:TreeDenoiser",
}
"""Kinds of networks. Each is a torch module with an attribute `options`, the arguments that made it, as plain data."""


def save_network(model: torch.nn.Module, path: str | Path, **facts: Any) -> None:
    """Write a network to a safetensors file; `facts` (plain data, such as its accuracy) go into the header."""
    import os

    from safetensors.torch import save

    kind = next((k for k, where in KINDS.items() if where.rpartition(":")[2] == type(model).__name__), None)
    if kind is None:
        raise ValueError(f"{type(model).__name__} is not a network of this package; expected one of {', '.join(KINDS)}")
    header = {"format": FORMAT, "kind": kind, "options": json.dumps(model.options), "facts": json.dumps(facts)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    unfinished = Path(path).with_name(Path(path).name + ".unfinished")
    unfinished.write_bytes(save(weights, header))
    os.replace(unfinished, path)


def load_network(path: str | Path, kind: str | None = None) -> torch.nn.Module:
    """Read a network, in evaluation mode; `facts` of the file become its attribute `facts`.

    Raises
    ------
    ValueError
        If the file is missing, damaged, of another format, or of another kind or architecture than its header says.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no network file {path}; expected a .safetensors file written by uturn.networks.save_network")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} has format {header.get('format')!r}; expected {FORMAT!r}")
        found, options, facts = header["kind"], json.loads(header["options"]), json.loads(header["facts"])
    except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged, or not a network file of uturn ({error})") from None
    if found not in KINDS or (kind is not None and found != kind):
        raise ValueError(f"{path} holds a network of kind {found!r}; expected {kind or ', '.join(KINDS)}")
    module, _, name = KINDS[found].partition(":")
    try:
        model = getattr(importlib.import_module(module), name)(**options)
        model.load_state_dict({key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in weights.items()})
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: the weights are of another architecture than its header says ({_short(error)})") from None
    model.facts = facts
    return model.eval()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
