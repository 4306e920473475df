"""Layers of a network: chosen by name, by pattern or as "every block", and read by forward
hooks.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect

EVERY_BLOCK = "every block"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_QUOTED = 12  # names of modules in a message
# Child names in wrappers: torch.compile, DataParallel, user-defined.
_WRAPPED = ("_orig_mod", "module", "model")


def select_layers(model: nn.Module, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of modules chosen by name, pattern or "every block", in the order in which the model
    registers them.

    `layers`: names as in `model.named_modules()`, glob patterns of them, or "every block" (see
    `every_block`); by default the direct children. `*` does not match dots; `**` between dots
    matches any number of names, including none. Names omit the prefix of a wrapper (see `wrapped`);
    patterns may include it. ValueError if a name or pattern matches nothing.
    """
    names = [name for name in named_modules(model) if name]
    if layers is None:
        children = tuple(_children(wrapped(model)[1]))
        expect(
            children,
            f"child modules of {type(model).__name__}",
            children,
            "modules to probe; name the layers (--layers)",
        )
        return children
    patterns = [layers] if isinstance(layers, str) else layers
    expect(patterns, "layers", layers, f"names or patterns, at least one, or {EVERY_BLOCK!r}")
    chosen: set[str] = set()
    wrapper = wrapped(model)[0]
    for pattern in (text.removeprefix(wrapper) for text in patterns):
        matching = (
            every_block(model)
            if pattern == EVERY_BLOCK
            else [name for name in names if matches(name, pattern)]
        )
        if not matching:
            close = ", ".join(
                difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            )
            way_out = (
                f"close names: {close} (all {len(names)}:"
                " list(uturn.networks.layers.named_modules(model)))"
            )
            raise ValueError(
                f"layers = {pattern!r}: expected a module of {type(model).__name__}; {way_out}"
            )
        chosen.update(matching)
    return tuple(name for name in names if name in chosen)


def matches(name: str, pattern: str) -> bool:
    """Whether the name of a module fits a pattern; see `select_layers`."""

    def match(parts: list[str], pattern_parts: list[str]) -> bool:
        if not pattern_parts:
            return not parts
        if pattern_parts[0] == "**":
            return any(match(parts[k:], pattern_parts[1:]) for k in range(len(parts) + 1))
        return (
            bool(parts)
            and fnmatch.fnmatchcase(parts[0], pattern_parts[0])
            and match(parts[1:], pattern_parts[1:])
        )

    return match(name.split("."), pattern.split("."))


def every_block(model: nn.Module) -> tuple[str, ...]:
    """The blocks from which a network is stacked, and the modules before, between and after them.

    A *stack* holds at least two modules of one class, its *blocks*, which have children themselves.
    A *layer* is a module with weights of two or more axes. The stacks of a network are given by the
    first of these rules that finds any:

    1. a container (`Sequential`, `ModuleList`, `ModuleDict`) of blocks with two layers or more, and
       containers of simpler blocks next to it: ResNet, ConvNeXt, EfficientNet, transformers;
    2. a module of any class, or containers next to each other, with such blocks: Inception, RegNet,
       stages of a single block;
    3. a container of blocks with one layer, such as a class that holds a convolution and its
       normalisation;
    4. a container of chains (`Sequential`).

    A module that contains a stack is searched for blocks; any other module with parameters is one
    block, read at its output. Adjacent simple modules, such as the convolution, normalisation,
    activation and pooling before the stacks, form one block, read at the last of them. A network
    without stacks (VGG) is read at every activation function and at its last module with
    parameters; it is refused if its activation functions are inside a block, or if it has fewer
    than two layers. The network is not run. Examples: `blocks.0` .. `logits` of this package's
    classifiers; `maxpool`, `layer1.0` .. `fc` of a ResNet.
    """
    modules = named_modules(model)
    stacks = _stacks(modules)
    return tuple(_blocks(modules[""], stacks)) if stacks else _activation_functions(modules)


def _stacks(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules that hold blocks, by the first matching rule of `every_block`."""
    containers = [name for name, module in modules.items() if isinstance(module, _CONTAINERS)]
    # For every module, its children with children: chains, and (class, number of layers) of those
    # that are not containers.
    parents = {
        name: [child for child in _children(module).values() if _children(child)]
        for name, module in modules.items()
    }
    chains = {
        name: [type(child) for child in inside if isinstance(child, nn.Sequential)]
        for name, inside in parents.items()
    }
    sized = {
        name: [
            (type(child), _num_layers(child))
            for child in inside
            if not isinstance(child, _CONTAINERS)
        ]
        for name, inside in parents.items()
    }

    def classes(name: str, least: int) -> list[type]:
        return [kind for kind, num_layers in sized[name] if num_layers >= least]

    def repeated(kinds: list[type]) -> set[type]:
        return {kind for kind in kinds if kinds.count(kind) >= 2}

    deep = [name for name in containers if repeated(classes(name, 2))]
    if deep:
        around = {_parent(name) for name in deep}
        return deep + [
            name for name in containers if _parent(name) in around and repeated(classes(name, 1))
        ]
    next_to: dict[str, list[type]] = {}  # classes in the containers with the same parent
    for name in containers:
        next_to.setdefault(_parent(name), []).extend(set(classes(name, 2)))
    loose = [name for name in modules if repeated(classes(name, 2))]
    loose += [
        name for name in containers if set(classes(name, 2)) & repeated(next_to[_parent(name)])
    ]
    simple = [name for name in containers if repeated(classes(name, 0))]
    return loose or simple or [name for name in containers if repeated(chains[name])]


def _blocks(module: nn.Module, stacks: Sequence[str], prefix: str = "") -> Iterator[str]:
    # Adjacent simple modules, which form one block if any of them has parameters.
    row: list[tuple[str, nn.Module]] = []

    def last_of_row() -> list[str]:
        return [row[-1][0]] if any(_has_parameters(module) for _, module in row) else []

    for child_name, child in _children(module).items():
        name = f"{prefix}{child_name}"
        opened = any(
            stack == name or stack.startswith(f"{name}.") for stack in stacks
        ) or not _runs(child)
        if not opened and _is_simple(child) and _runs(module):
            row.append((name, child))
            continue
        yield from last_of_row()
        row = []
        if opened:
            yield from _blocks(child, stacks, f"{name}.")
        elif _has_parameters(child):
            yield name
    yield from last_of_row()


def _activation_functions(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Activation functions, and the last module with parameters, of a network without stacks."""
    leaves = {name: module for name, module in modules.items() if name and not _children(module)}
    names = [
        name for name, module in leaves.items() if type(module).__module__ == nn.ReLU.__module__
    ]
    inside = [
        name
        for name in names
        if "." in name and not isinstance(modules[_parent(name)], _CONTAINERS)
    ]
    last = next((name for name in reversed(leaves) if _has_parameters(leaves[name])), None)
    if last is not None and last not in names:
        names.append(last)
    if inside or len(names) < 2:
        finding = f"activation functions inside of a block, {inside}" if inside else f"only {names}"
        way_out = f"name the layers (--layers), some of {[*modules][1 : _MOST_QUOTED + 1]}"
        raise ValueError(
            f"layers: {EVERY_BLOCK!r} finds {finding} in {type(modules['']).__name__}; {way_out}"
        )
    return tuple(names)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _runs(module: nn.Module) -> bool:
    """Whether a module has a forward pass, unlike lists and tables of modules."""
    return type(module).forward is not nn.ModuleList.forward


def _is_simple(module: nn.Module) -> bool:
    """Whether a module has no children, or holds all its parameters itself, as timm's
    normalisation with activation.
    """
    children = _children(module).values()
    return not children or (
        bool(module._parameters) and not any(_has_parameters(child) for child in children)
    )


def _num_layers(module: nn.Module) -> int:
    return sum(
        any(weights.ndim > 1 for weights in part.parameters(recurse=False))
        for part in module.modules()
    )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module._modules.items() if child is not None}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name; the model without its wrapper is "", and a shared module is listed
    under each of its names.
    """
    return dict(wrapped(model)[1].named_modules(remove_duplicate=False))


def wrapped(model: nn.Module) -> tuple[str, nn.Module]:
    """The network inside wrappers, and the prefix of the names of its modules, such as "module."
    ("" without a wrapper).

    A wrapper has one child, called `_orig_mod`, `module` or `model`, and no parameters. Models of
    transformers are no wrappers.
    """
    prefix = ""
    while (
        not model._parameters
        and len(children := _children(model)) == 1
        and not hasattr(model, "base_model_prefix")
    ):
        ((name, child),) = children.items()
        if name not in _WRAPPED:
            break
        prefix, model = f"{prefix}{name}.", child
    return prefix, model


@contextmanager
def hooks(
    model: nn.Module, layers: Iterable[str], receive: Callable[[str, Any], None]
) -> Iterator[None]:
    """Context in which `receive(layer, output)` is called as soon as a layer has run, in every
    forward pass.
    """
    modules = named_modules(model)

    def received(layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        receive(layer, output)

    handles = [modules[layer].register_forward_hook(partial(received, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_tensor(output: Any, where: str) -> torch.Tensor:
    """The tensor (batch, channels, ...) in a module's output: the output, its `logits`, or its
    first entry; else ValueError.
    """
    first = getattr(
        output,
        "logits",
        output[0] if isinstance(output, tuple | list) and len(output) > 0 else output,
    )
    first = getattr(first, "logits", first)
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        raise ValueError(
            f"{where} gives {type(output).__name__}; expected a tensor (batch, channels, ...)"
        )
    return first.detach()
