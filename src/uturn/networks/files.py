"""Files of weights: those of the small networks of this package, and state dicts, read without
executing code in them.

A network of this package is safetensors with its kind and its options in the header.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from uturn.core.checks import expect
from uturn.core.files import check_regular, whole_file
from uturn.networks.libraries import reading

FORMAT = "uturn-network-1"

KINDS = {
    "tree_classifier": "uturn.networks.classifiers:TreeClassifier",
    "vector_classifier": "uturn.networks.classifiers:VectorClassifier",
    "image_classifier": "uturn.networks.classifiers:ImageClassifier",
    "tree_denoiser": "uturn.networks.strings.denoisers:TreeNetwork",
    "masked_transformer": "uturn.networks.texts.masked_transformer:MaskedTransformer",
}
"""Kinds of networks. Each is a torch module with an attribute `options`, the arguments that made
it, as plain data.
"""


def save_network(model: torch.nn.Module, path: str | Path, **facts: object) -> None:
    """Write a network of this package to a safetensors file, with `facts` about it (plain data,
    such as its accuracy).
    """
    place = f"{type(model).__module__}:{type(model).__qualname__}"
    kind = next((kind for kind, home in KINDS.items() if home == place), None)
    if kind is None:
        raise ValueError(
            f"{place} is not a network of this package; expected one of {', '.join(KINDS)}"
        )
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.detach().cpu().contiguous()
    check_finite(weights)
    header = {
        "format": FORMAT,
        "kind": kind,
        "options": json.dumps(model.options),
        "facts": json.dumps(facts),
    }
    with whole_file(path) as file:
        file.write(save(weights, header))


def load_network(path: str | Path, kind: str | None = None) -> torch.nn.Module:
    """Read a network, float32, in evaluation mode; the `facts` in the file become its attribute
    `facts`.

    ValueError if the file is missing, damaged or of another kind, or if its weights do not match
    its header.
    """
    kinds = list(KINDS) if kind is None else [kind]
    expected = f"a network of kind {', '.join(kinds)}, written by uturn.networks.save_network"
    with reading(str(path), f"expected {expected}"):
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()  # not a dict: it cannot be iterated
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in names}
        stored_format = header.get("format")
        stored_kind = header.get("kind")
        if stored_format != FORMAT or stored_kind not in kinds:
            raise ValueError(f"its format is {stored_format!r}, of kind {stored_kind!r}")
        check_finite(weights)
        options = json.loads(header["options"])
        sizes = [size for size in options.values() if isinstance(size, int)]
        largest = max(sizes, default=0)
        total = sum(map(torch.numel, weights.values()))
        expect(largest <= total, "a size of its header", largest, f"at most its {total} weights")
        module, _, attribute = KINDS[header["kind"]].partition(":")
        network = getattr(importlib.import_module(module), attribute)
        with torch.device("meta"):  # compute sizes without allocating memory
            model: torch.nn.Module = network(**options)
        model.load_state_dict(weights, assign=True)
        model.facts = json.loads(header["facts"])
    return model.eval()


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of the weights (hexadecimal)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """ValueError for weights with NaN or infinity."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the weights {name!r} are not finite")


def read_state_dict(
    path: str, expected: str, option: str = "weights", mapped: bool = False
) -> dict[str, torch.Tensor]:
    """A state dict from the file of an option; nothing in it is executed. `mapped`: tensors may
    be memory-mapped.
    """
    if not Path(path).is_file():
        raise ValueError(f"{option} = {path!r}: no such file; expected {expected}")
    with reading(f"{option} = {path!r}", f"nothing in it was executed; expected {expected}"):
        if Path(path).suffix == ".safetensors":
            state: Any = load_file(path)  # of a file, checked below
        else:
            state = read_plain(path, mmap=mapped and zipfile.is_zipfile(path))
        for key in ("state_dict", "model"):
            if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
                state = state[key]
        if not _are_weights(state):
            raise ValueError("it does not hold tensors by their names")
        check_finite(state)
    weights: dict[str, torch.Tensor] = state
    if all(name.startswith("module.") for name in weights):  # saved by DataParallel
        rename_weights(weights, lambda name: name.removeprefix("module."))
    return weights


def _are_weights(state: object) -> bool:
    if not isinstance(state, dict) or not state:
        return False
    return all(isinstance(part, torch.Tensor) for part in state.values())


def read_plain(path: str, mmap: bool = False) -> Any:  # noqa: ANN401 - plain data of any form
    """Tensors and plain data that `torch.save` wrote; nothing in the file is executed."""
    try:
        # Warnings about the kind of pickle, which is read or refused below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        # Instead of PyTorch's message, which advises loading the file regardless.
        raise ValueError("it is damaged or holds more than weights") from None


def rename_weights(state: dict[str, torch.Tensor], new_name: Callable[[str], str]) -> None:
    """Rename weights in place, since a copy would lose the attribute with the versions of the
    modules.
    """
    for name in list(state):
        state[new_name(name)] = state.pop(name)


def built_with(
    build: Callable[..., nn.Module], state: dict[str, torch.Tensor], where: str
) -> nn.Module:
    """A network with its weights loaded, built with the number of classes of the weights."""
    module = build()
    initial = module.state_dict()
    # Only the last layer may have another size, and only in its number of classes.
    num_classes: set[int | None] = set()
    for name in initial.keys() & state.keys():
        mine = initial[name].shape
        shape = state[name].shape
        if shape != mine:
            fits = len(shape) > 0 and shape[1:] == mine[1:]
            num_classes.add(shape[0] if fits else None)
    if len(num_classes) == 1 and None not in num_classes:
        module = build(num_classes=num_classes.pop())
    put_weights(module, state, where)
    return module


def put_weights(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights into a module; a ValueError names weights that are missing, unexpected or of
    another shape.
    """
    if not hasattr(state, "_metadata"):  # safetensors stores no versions; assume the current ones
        state = OrderedDict(state)
        state._metadata = {"": module.state_dict()._metadata.get("", {})}  # type: ignore[attr-defined]
    with reading(where, "expected weights of this network"):
        module.load_state_dict(state)
