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


def save_network(model: torch.nn.Module, path: str | Path, **facts: Any) -> None:
    """Write a network of this package to a safetensors file, with `facts` about it (plain data,
    such as its accuracy).
    """
    kinds = {where: kind for kind, where in KINDS.items()}
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    if name not in kinds:
        raise ValueError(
            f"{name} is not a network of this package; expected one of {', '.join(KINDS)}"
        )
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    check_finite(weights)
    header = {
        "format": FORMAT,
        "kind": kinds[name],
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
    with reading(
        str(path),
        f"expected a network of kind {kind or ', '.join(KINDS)}, written by"
        " uturn.networks.save_network",
    ):
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()  # not a dict: it cannot be iterated
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in names}
        if header.get("format") != FORMAT or header.get("kind") not in (
            KINDS if kind is None else [kind]
        ):
            raise ValueError(
                f"its format is {header.get('format')!r}, of kind {header.get('kind')!r}"
            )
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


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and values of the weights (hexadecimal)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # Numpy has no bfloat16.
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """ValueError for weights with NaN or infinity."""
    bad = next(
        (name for name, tensor in weights.items() if not bool(tensor.isfinite().all())), None
    )
    if bad is not None:
        raise ValueError(f"the weights {bad!r} are not finite")


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
            state: Any = load_file(path)
        else:
            state = read_plain(path, mmap=mapped and zipfile.is_zipfile(path))
        for key in ("state_dict", "model"):
            if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
                state = state[key]
        if (
            not state
            or not isinstance(state, dict)
            or not all(isinstance(part, torch.Tensor) for part in state.values())
        ):
            raise ValueError("it does not hold tensors by their names")
        check_finite(state)
    if all(name.startswith("module.") for name in state):  # saved by DataParallel
        rename_weights(state, lambda name: name.removeprefix("module."))
    return state


def read_plain(path: str, mmap: bool = False) -> Any:
    """Tensors and plain data that `torch.save` wrote; nothing in the file is executed."""
    try:
        # Warnings about the kind of pickle, which is read or refused below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (
        pickle.UnpicklingError
    ):  # replace PyTorch's message, which advises loading the file regardless
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
    other = [
        (initial[name], state[name])
        for name in initial
        if name in state and initial[name].shape != state[name].shape
    ]
    # Only the last layer may have another size, and only in its number of classes.
    sizes = {b.shape[:1] for a, b in other if a.shape[1:] == b.shape[1:]}
    if len(sizes) == 1 and all(b.ndim and a.shape[1:] == b.shape[1:] for a, b in other):
        module = build(num_classes=sizes.pop()[0])
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
