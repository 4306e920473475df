"""Layers of a network: chosen by name, by pattern or as "every block", and read by forward
hooks.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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
        children = tuple(_children(wrapped(model).network))
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
    prefix = wrapped(model).prefix
    for pattern in patterns:
        pattern = pattern.removeprefix(prefix)
        if pattern == EVERY_BLOCK:
            chosen.update(every_block(model))
            continue
        matching = [name for name in names if matches(name, pattern)]
        if not matching:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            way_out = (
                f"close names: {', '.join(close)} (all {len(names)}:"
                " list(uturn.networks.layers.named_modules(model)))"
            )
            raise ValueError(
                f"layers = {pattern!r}: expected a module of {type(model).__name__}; {way_out}"
            )
        chosen.update(matching)
    return tuple(name for name in names if name in chosen)


def matches(name: str, pattern: str) -> bool:
    """Whether the name of a module fits a pattern; see `select_layers`."""
    return _matches(name.split("."), pattern.split("."))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    first, *others = patterns
    if first == "**":
        return any(_matches(names[k:], others) for k in range(len(names) + 1))
    if not names or not fnmatch.fnmatchcase(names[0], first):
        return False
    return _matches(names[1:], others)


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
    if not stacks:
        return _activation_functions(modules)
    return tuple(_blocks(modules[""], stacks))


@dataclass(frozen=True)
class _Inside:
    """The children of a module that have children themselves."""

    chains: list[type]
    """Classes of the children that are `Sequential`."""
    blocks: list[tuple[type, int]]
    """(class, number of layers) of the children that are not containers."""

    @classmethod
    def of(cls, module: nn.Module) -> _Inside:
        children = [child for child in _children(module).values() if _children(child)]
        chains = [type(child) for child in children if isinstance(child, nn.Sequential)]
        blocks = [child for child in children if not isinstance(child, _CONTAINERS)]
        return cls(chains, [(type(block), _num_layers(block)) for block in blocks])

    def classes(self, least: int) -> list[type]:
        """Classes of the blocks with at least `least` layers."""
        return [kind for kind, num_layers in self.blocks if num_layers >= least]

    def has_stack(self, least: int) -> bool:
        """Whether two blocks with at least `least` layers have one class."""
        return bool(_repeated(self.classes(least)))


def _repeated(kinds: list[type]) -> set[type]:
    return {kind for kind in kinds if kinds.count(kind) >= 2}


def _stacks(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules that hold blocks, by the first matching rule of `every_block`."""
    inside = {name: _Inside.of(module) for name, module in modules.items()}
    containers = [name for name, module in modules.items() if isinstance(module, _CONTAINERS)]
    deep = [name for name in containers if inside[name].has_stack(2)]
    if deep:
        parents = {_parent(name) for name in deep}
        neighbours = [name for name in containers if _parent(name) in parents]
        return deep + [name for name in neighbours if inside[name].has_stack(1)]
    loose = [name for name in modules if inside[name].has_stack(2)]
    of_neighbours: dict[str, list[type]] = {}  # classes in the containers with the same parent
    for name in containers:
        classes = set(inside[name].classes(2))
        of_neighbours.setdefault(_parent(name), []).extend(classes)
    for name in containers:
        if _repeated(of_neighbours[_parent(name)]).intersection(inside[name].classes(2)):
            loose.append(name)
    if loose:
        return loose
    simple = [name for name in containers if inside[name].has_stack(0)]
    if simple:
        return simple
    return [name for name in containers if _repeated(inside[name].chains)]


def _blocks(module: nn.Module, stacks: Sequence[str], prefix: str = "") -> list[str]:
    """Names of the blocks in a module that holds stacks, in the order of its children."""
    blocks: list[str] = []
    row: dict[str, nn.Module] = {}  # adjacent simple modules
    for child_name, child in _children(module).items():
        name = f"{prefix}{child_name}"
        is_opened = _holds_stack(name, stacks) or not _runs(child)
        if not is_opened and _is_simple(child) and _runs(module):
            row[name] = child
            continue
        blocks += _last_of_row(row)
        row = {}
        if is_opened:
            blocks += _blocks(child, stacks, f"{name}.")
        elif _has_parameters(child):
            blocks.append(name)
    return blocks + _last_of_row(row)


def _holds_stack(name: str, stacks: Sequence[str]) -> bool:
    return any(stack == name or stack.startswith(f"{name}.") for stack in stacks)


def _last_of_row(row: Mapping[str, nn.Module]) -> list[str]:
    """The last of adjacent simple modules, which form one block if any of them has parameters."""
    return [*row][-1:] if any(map(_has_parameters, row.values())) else []


def _activation_functions(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Activation functions, and the last module with parameters, of a network without stacks."""
    leaves = {name: module for name, module in modules.items() if name and not _children(module)}
    library = nn.ReLU.__module__
    names = [name for name, module in leaves.items() if type(module).__module__ == library]
    hidden = [name for name in names if _is_in_block(name, modules)]
    last = next((name for name in reversed(leaves) if _has_parameters(leaves[name])), None)
    if last is not None and last not in names:
        names.append(last)
    if hidden or len(names) < 2:
        finding = f"only {names}"
        if hidden:
            finding = f"activation functions inside of a block, {hidden}"
        way_out = f"name the layers (--layers), some of {[*modules][1 : _MOST_QUOTED + 1]}"
        raise ValueError(
            f"layers: {EVERY_BLOCK!r} finds {finding} in {type(modules['']).__name__}; {way_out}"
        )
    return tuple(names)


def _is_in_block(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the parent of a module is not a container."""
    return "." in name and not isinstance(modules[_parent(name)], _CONTAINERS)


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
    if not children:
        return True
    return bool(module._parameters) and not any(map(_has_parameters, children))


def _num_layers(module: nn.Module) -> int:
    return sum(map(_is_layer, module.modules()))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module itself has weights of two or more axes."""
    return any(weights.ndim > 1 for weights in module.parameters(recurse=False))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module._modules.items() if child is not None}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name; the model without its wrapper is "", and a shared module is listed
    under each of its names.
    """
    return dict(wrapped(model).network.named_modules(remove_duplicate=False))


class Wrapped(NamedTuple):
    """The network inside wrappers."""

    prefix: str
    """Prefix of the names of its modules, such as "module."; empty without a wrapper."""
    network: nn.Module


def wrapped(model: nn.Module) -> Wrapped:
    """The network inside wrappers.

    A wrapper has one child, called `_orig_mod`, `module` or `model`, and no parameters. Models of
    transformers are no wrappers.
    """
    prefix = ""
    while _is_wrapper(model):
        ((name, child),) = _children(model).items()
        prefix = f"{prefix}{name}."
        model = child
    return Wrapped(prefix, model)


def _is_wrapper(model: nn.Module) -> bool:
    children = list(_children(model))
    has_one_child = len(children) == 1 and children[0] in _WRAPPED
    return has_one_child and not model._parameters and not hasattr(model, "base_model_prefix")


@contextmanager
def hooks(
    model: nn.Module, layers: Iterable[str], receive: Callable[[str, object], None]
) -> Iterator[None]:
    """Context in which `receive(layer, output)` is called as soon as a layer has run, in every
    forward pass.
    """
    modules = named_modules(model)

    def received(layer: str, module: nn.Module, inputs: object, output: object) -> None:
        receive(layer, output)

    handles = [modules[layer].register_forward_hook(partial(received, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_tensor(output: object, where: str) -> torch.Tensor:
    """The tensor (batch, channels, ...) in a module's output: the output, its `logits`, or its
    first entry; else ValueError.
    """
    first = output
    if isinstance(output, tuple | list) and output and not hasattr(output, "logits"):
        first = output[0]
    tensor = getattr(first, "logits", first)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim < 2:
        raise ValueError(
            f"{where} gives {type(output).__name__}; expected a tensor (batch, channels, ...)"
        )
    return tensor.detach()
