"""Files of the small networks of this package: safetensors with the kind of network and its options in the header."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uturn.core.checks import expect
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


def save_network(model: torch.nn.Module, path: str | Path, **facts: Any) -> None:
    """Write a network of this package to a safetensors file, with `facts` about it (plain data, such as its accuracy)."""
    from safetensors.torch import save

    from uturn.networks.state_dicts import check_finite

    kinds = {where: kind for kind, where in KINDS.items()}
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    if name not in kinds:
        raise ValueError(f"{name} is not a network of this package; expected one of {', '.join(KINDS)}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    check_finite(weights)
    header = {"format": FORMAT, "kind": kinds[name], "options": json.dumps(model.options), "facts": json.dumps(facts)}
    with whole_file(path) as file:
        file.write(save(weights, header))


def load_network(path: str | Path, kind: str | None = None) -> torch.nn.Module:
    """Read a network, float32, in evaluation mode; the `facts` in the file become its attribute `facts`.

    ValueError if the file is missing, damaged or of another kind, or if its weights do not match its header.
    """
    import torch
    from safetensors import safe_open

    from uturn.networks.state_dicts import check_finite

    with reading(str(path), f"expected a network of kind {kind or ', '.join(KINDS)}, written by uturn.networks.save_network"):
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118, not a dict
        if header.get("format") != FORMAT or header.get("kind") not in (KINDS if kind is None else [kind]):
            raise ValueError(f"its format is {header.get('format')!r}, of kind {header.get('kind')!r}")
        check_finite(weights)
        options = json.loads(header["options"])
        largest = max((size for size in options.values() if isinstance(size, int)), default=0)
        total = sum(map(torch.numel, weights.values()))
        expect(largest <= total, "a size of its header", largest, f"at most its {total} weights")
        module, _, attribute = KINDS[header["kind"]].partition(":")
        with torch.device("meta"):  # compute sizes without allocating memory
            model = getattr(importlib.import_module(module), attribute)(**options)
        model.load_state_dict(weights, assign=True)
        model.facts = json.loads(header["facts"])
    return model.eval()
