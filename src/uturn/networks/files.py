"""Files of the small networks of this package: safetensors with the kind of network and its options in the header."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uturn.core.checks import one_line, shown
from uturn.core.files import whole_file
from uturn.networks.libraries import reading

if TYPE_CHECKING:
    import torch

FORMAT = "uturn-network-1"

KINDS = {
    "tree_classifier": "uturn.networks.classifiers:TreeClassifier",
    "vector_classifier": "uturn.networks.classifiers:VectorClassifier",
    "image_classifier": "uturn.networks.classifiers:ImageClassifier",
    "tree_denoiser": "uturn.networks.strings.denoisers:TreeDenoiser",
    "masked_transformer": "uturn.networks.texts.masked_transformer:MaskedTransformer",
}
"""Kinds of networks. Each is a torch module with an attribute `options`, the arguments that made it, as plain data."""


_COUNTS = ("depth", "num_layers", "layers", "reach")  # options that count blocks or tables


def save_network(model: torch.nn.Module, path: str | Path, **facts: Any) -> None:
    """Write a network to a safetensors file, with `facts` about it (plain data, such as its accuracy) in the header.

    Raises
    ------
    ValueError
        If the network is not of this package, its weights are not finite, or the file cannot be written.
    """
    from safetensors.torch import save

    name = f"{type(model).__module__}:{type(model).__qualname__}"
    kind = next((kind for kind, where in KINDS.items() if where == name), None)
    if kind is None:
        raise ValueError(f"{name} is not a network of this package; expected one of {', '.join(KINDS)}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _check_finite(weights)
    try:
        header = {"format": FORMAT, "kind": kind, "options": json.dumps(model.options), "facts": json.dumps(facts)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts = {shown(facts)}: expected plain data, as in JSON ({one_line(error)})") from None
    with whole_file(path) as file:
        file.write(save(weights, header))


def load_network(path: str | Path, kind: str | None = None) -> torch.nn.Module:
    """Read a network, in evaluation mode; the `facts` in the file become its attribute `facts`.

    A header whose sizes exceed the weights in the file is refused before memory is allocated.

    Raises
    ------
    ValueError
        If the file is missing, damaged or of another format, if its weights do not match its header, or if they are not finite.
    """
    import torch
    from safetensors import safe_open

    expected = f"expected a network of kind {kind or ', '.join(KINDS)}, written by uturn.networks.save_network"
    with reading(str(path), expected):
        if not Path(path).is_file():
            raise ValueError("no such file")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {shown(header.get('format'))}, not {FORMAT!r}")
        if header.get("kind") not in (KINDS if kind is None else [kind]):
            raise ValueError(f"it is of kind {shown(header.get('kind'))}")
        options, facts = (json.loads(header[name]) for name in ("options", "facts"))
        if not isinstance(options, dict) or not isinstance(facts, dict):
            raise ValueError("options and facts in its header are not tables")
        if not all(tensor.is_floating_point() for tensor in weights.values()):
            raise ValueError("its weights are not floating point")
        weights = {name: tensor.float() for name, tensor in weights.items()}
        _check_finite(weights)
        total = sum(tensor.numel() for tensor in weights.values())
        for name, value in options.items():
            most = len(weights) if name in _COUNTS else total
            if isinstance(value, int) and value > most:
                raise ValueError(f"its header says {name} = {shown(value)}, but it has {len(weights)} arrays, {total} weights")
        module, _, attribute = KINDS[header["kind"]].partition(":")
        with torch.device("meta"):  # compute sizes without allocating memory
            model = getattr(importlib.import_module(module), attribute)(**options)
        model.load_state_dict(weights, assign=True)
    model.facts = facts
    return model.eval()


def _check_finite(weights: dict[str, torch.Tensor]) -> None:
    bad = next((name for name, tensor in weights.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"weights {bad!r} are not finite; train it again with a lower learning rate")
