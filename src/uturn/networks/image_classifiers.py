"""Classifiers of images for the hidden-layer probe: torchvision's, timm's, or any module, each with its own preprocessing.

Images are float32 (batch, channels, height, width) in [-1, 1], as everywhere in this package.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from uturn.checks import one_line
from uturn.files import cached_while_unchanged
from uturn.networks import fashion_mnist, files
from uturn.networks.layers import EVERY_BLOCK, as_tensor, hooks, select_layers

if TYPE_CHECKING:
    import xarray as xr

_FORMS = "'fashion_mnist', a file of uturn.networks, 'torchvision:NAME', 'timm:NAME' or 'module:function'"


@dataclass(frozen=True)
class Classifier:
    """A classifier of images, ready to be probed.

    Attributes
    ----------
    module : torch.nn.Module
        In evaluation mode, on the GPU if there is one; gives logits (batch, num_classes).
    preprocess : function or None
        From images in [-1, 1] to what the module takes; tensors in, tensors out.
    layers : tuple of str
        The probed modules, in the order the module registers them.
    channel_axes : {layer: int}
        Axis of the channels in the output of each; see `channel_axes`.
    num_classes : int
    class_names : tuple of str, or None where they are not known
    """

    module: nn.Module
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None
    layers: tuple[str, ...]
    channel_axes: dict[str, int]
    num_classes: int
    class_names: tuple[str, ...] | None = None


class Network(NamedTuple):
    """A module that has not run yet, its preprocessing, and the names of its classes where they are known."""

    module: nn.Module
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None
    class_names: tuple[str, ...] | None = None


class Preprocessing:
    """Transforms of a library, applied to images in [-1, 1].

    Images are brought to [0, 1] (and clipped to it, as when an image is saved), grey ones are repeated to the channels of the
    network, and then the library's own transforms for evaluation resize (with antialiasing), crop and normalise them. Resizing
    works on floating point numbers; a library that is given PIL images rounds to 8 bits in between.
    """

    def __init__(self, transforms: Callable[[torch.Tensor], torch.Tensor], channels: int = 3) -> None:
        self.transforms, self.channels = transforms, channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (batch, channels, height, width) with 1 or "
                f"{self.channels} channels"
            )
        return self.transforms((images / 2 + 0.5).clamp(0, 1).expand(-1, self.channels, -1, -1))

    def __repr__(self) -> str:
        return f"Preprocessing({' '.join(repr(self.transforms).split())}, channels={self.channels})"


def load_classifier(
    spec: str,
    weights: str | None = None,
    *,
    layers: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] = (3, 224, 224),
) -> Classifier:
    """A classifier by name, found out about by running it once on two blank images.

    Parameters
    ----------
    spec
        - "torchvision:NAME": any classification model of torchvision, with the transforms of its weights.
        - "timm:NAME": any model of timm, with the transforms of its data configuration.
        - "module:function": the function, called without arguments, gives a `torch.nn.Module`, or (module, preprocess). The
          module is put into evaluation mode; `preprocess` gets batches of images in [-1, 1].
        - "fashion_mnist", or a file written by `uturn.networks.save_network`.
    weights
        None: the weights that the library publishes as default, downloaded (for "module:function", those the module has). A name
        of torchvision's enum of weights, such as "IMAGENET1K_V1". Or a file with a state dict, .safetensors or what `torch.save`
        writes (nothing in it is executed), also inside of a table under "state_dict" or "model"; for a model of a library, it may
        be of another number of classes.
    layers
        Names or patterns of modules as in `HiddenLayers`; "every block" by default, without blocks that do not run, or run more
        than once, when the network is evaluated (auxiliary heads, shared modules).
    image_shape
        Channels, height and width of the images to come.

    Raises
    ------
    ValueError
        For unknown names (with close ones), weights that are missing, damaged, of another network or cannot be downloaded, and
        networks that do not take such images or do not give logits (batch, classes).
    """
    return _classifier(spec, weights, None if layers is None else tuple(layers), tuple(image_shape))


@cached_while_unchanged(files=lambda spec, weights, *_: (spec, weights))
def _classifier(spec: str, weights: str | None, layers: tuple[str, ...] | None, image_shape: tuple[int, int, int]) -> Classifier:
    module, preprocess, class_names = load_network(spec, weights)
    chosen = select_layers(module, layers or EVERY_BLOCK)
    if spec == "fashion_mnist":  # known beforehand, whatever the images to come
        return Classifier(module, preprocess, chosen, dict.fromkeys(chosen, 1), len(class_names or ()), class_names)
    shapes, num_classes = _dry_run(module, preprocess, chosen, image_shape, f"classifier = {spec!r}")
    once = {
        layer: found[0] for layer, found in shapes.items() if len(found) == 1 and len(found[0]) > 1 and found[0][0] == _BLANKS
    }
    if layers is None:
        if len(once) < 2:
            raise ValueError(f"classifier = {spec!r}: fewer than two of its blocks run once with a tensor; name the layers")
        chosen = tuple(layer for layer in chosen if layer in once)
    axes = dict.fromkeys(chosen, 1) | channel_axes(module, once)
    names = class_names if class_names is not None and len(class_names) == num_classes else None
    return Classifier(module, preprocess, chosen, axes, num_classes, names)


def load_network(spec: str, weights: str | None = None) -> Network:
    """The module of a classifier, its preprocessing and class names, without a run of it; arguments as in `load_classifier`."""
    return _network(spec, weights)


@cached_while_unchanged(files=lambda spec, weights: (spec, weights), maxsize=4)
def _network(spec: str, weights: str | None) -> Network:
    library, _, name = spec.partition(":")
    if spec == "fashion_mnist" or Path(spec).is_file():
        if weights is not None:
            raise ValueError(f"weights = {weights!r}: classifier = {spec!r} has its own; leave weights out")
        network = _own_network(spec)
        if spec != "fashion_mnist":
            return network  # of strings or vectors: too small for a GPU
    elif library == "torchvision":
        network = _torchvision_network(name, weights)
    elif library == "timm":
        network = _timm_network(name, weights)
    elif (function := own_function(spec)) is not None:
        network = _imported_network(spec, function, weights)
    else:
        raise ValueError(f"classifier = {spec!r}: no such file; expected {_FORMS}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network._replace(module=network.module.to(device).eval().requires_grad_(False))


def _own_network(spec: str) -> Network:
    if spec == "fashion_mnist":
        return Network(fashion_mnist.load_classifier(), None, fashion_mnist.CLASS_NAMES)
    return Network(files.load_network(spec))


# -- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision_network(name: str, weights: str | None) -> Network:
    try:
        from torchvision import models
    except ImportError:
        raise ValueError(
            f"classifier = 'torchvision:{name}' needs torchvision, which is not installed; pip install 'uturn[images]'"
        ) from None
    _check_known("torchvision", name, models.list_models(module=models))
    entries = models.get_model_weights(name)
    default = entries.DEFAULT
    names = sorted({"DEFAULT", *entries.__members__})
    if weights is None or weights in names:
        entry = entries[weights or "DEFAULT"]
        state = _downloaded(name, entry)
    else:
        entry = default
        state = _read_weights(weights, f"one of {', '.join(names)}, or a file with a state dict")
    options: dict[str, Any] = {}
    if name.startswith(("vgg", "googlenet", "inception")):
        options["init_weights"] = False  # a slow start that the weights replace
    if name.startswith(("googlenet", "inception")):
        # As torchvision builds them for its own weights, which are of another normalisation than the transforms.
        options |= {"transform_input": True, "aux_logits": any(key.lower().startswith("aux") for key in state)}
    if name.startswith("densenet"):  # the published files call the parts of a layer norm.1, here norm1
        _rename(state, lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key))
    where = f"classifier = 'torchvision:{name}', weights = {weights or entry.name!r}"
    module = _built(lambda **more: models.get_model(name, weights=None, **options, **more), state, where)
    return Network(module, Preprocessing(entry.transforms()), tuple(entry.meta["categories"]))


def _downloaded(name: str, entry: Any) -> dict[str, torch.Tensor]:
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no space, a file cut short, ..
        raise ValueError(
            f"classifier = 'torchvision:{name}': the weights {entry.name} cannot be downloaded ({one_line(error)}); give "
            f"weights = FILE, a copy of {Path(entry.url).name}"
        ) from None


# -- timm -------------------------------------------------------------------------------------------------------------


def _timm_network(name: str, weights: str | None) -> Network:
    try:
        import timm
    except ImportError:
        raise ValueError(f"classifier = 'timm:{name}' needs timm, which is not installed; pip install 'uturn[images]'") from None
    base, _, tag = name.partition(".")
    _check_known("timm", base, timm.list_models())
    published = timm.list_models(base, pretrained=True)
    if tag and name not in published:
        raise ValueError(f"classifier = 'timm:{name}': no such weights; expected {', '.join(published) or base}")
    where = f"classifier = 'timm:{name}'"
    if weights is None:
        if not published:
            raise ValueError(f"{where} has no published weights; give weights = FILE, a file with a state dict")
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # no network, no space, ..
            raise ValueError(
                f"{where}: its weights cannot be downloaded ({one_line(error)}); give weights = FILE, a copy of them"
            ) from None
    else:
        state = _read_weights(weights, "a file with a state dict, or none for the published weights")
        module = _built(lambda **more: timm.create_model(name, **more), state, f"{where}, weights = {weights!r}")
    config = timm.data.resolve_model_data_config(module)
    return Network(module, Preprocessing(timm.data.create_transform(**config), config["input_size"][0]))


# -- any module -------------------------------------------------------------------------------------------------------


def own_function(spec: str) -> Callable[[], Any] | None:
    """The user's function that a spec "module:function" names; None for classifiers of other kinds."""
    library, _, name = spec.partition(":")
    if not name or library in ("torchvision", "timm") or Path(spec).is_file():
        return None
    where = f"classifier = {spec!r}"
    try:
        function = getattr(importlib.import_module(library), name)
    except Exception as error:  # the code of the module can fail in any way
        raise ValueError(f"{where} cannot be imported ({one_line(error)}); expected {_FORMS}") from error
    if not callable(function):
        raise ValueError(f"{where} is a {type(function).__name__}; expected a function without arguments")
    return function


def _imported_network(spec: str, function: Callable[[], Any], weights: str | None) -> Network:
    where = f"classifier = {spec!r}"
    try:
        made = function()
    except Exception as error:
        raise ValueError(f"{where} fails ({one_line(error)}); expected a function without arguments") from error
    module, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not (preprocess is None or callable(preprocess)):
        kinds = " and ".join(type(part).__name__ for part in (made if isinstance(made, tuple) else [made]))
        raise ValueError(f"{where} gives {kinds or 'nothing'}; expected a torch.nn.Module, or (module, preprocess)")
    if weights is not None:
        state = _read_weights(weights, "a file with a state dict, or none for those the module has")
        _put(module, state, f"{where}, weights = {weights!r}")
    return Network(module, preprocess)


def describe(preprocess: Callable[..., Any] | None) -> str:
    """Preprocessing in words that are the same in every process; "" for none."""
    if preprocess is None:
        return ""
    if isinstance(preprocess, Preprocessing | nn.Module):
        return " ".join(repr(preprocess).split())
    named = preprocess if hasattr(preprocess, "__qualname__") else type(preprocess)
    return f"{named.__module__}:{named.__qualname__}"


# -- weights ----------------------------------------------------------------------------------------------------------


def _check_known(library: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:4]
        raise ValueError(
            f"classifier = '{library}:{name}': {library} has no such classifier; close names: {', '.join(close)} "
            f"({len(known)} in all)"
        )


def _read_weights(path: str, expected: str) -> dict[str, torch.Tensor]:
    """A state dict from a file; nothing in it is executed."""
    if not Path(path).is_file():
        raise ValueError(f"weights = {path!r}: no such file; expected {expected}")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, none of them documented
        raise ValueError(
            f"weights = {path!r} is damaged, or no file of weights ({one_line(error)}); expected {expected}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(w, torch.Tensor) for w in state.values()):
        raise ValueError(f"weights = {path!r} holds {_short_kind(state)}; expected a table of tensors by their names")
    bad = next((name for name, w in state.items() if w.is_floating_point() and not bool(w.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"weights = {path!r}: {str(bad)[:80]!r} is not finite; the file is of no use")
    if all(str(name).startswith("module.") for name in state):  # of a model trained on several GPUs
        _rename(state, lambda name: name.removeprefix("module."))
    return state


def _short_kind(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    odd = next((f"{str(name)[:40]!r} is a {type(value).__name__}" for name, value in state.items()), "nothing")
    return f"a table in which {odd}" if state else "an empty table"


def _rename(state: dict[str, torch.Tensor], new_name: Callable[[str], str]) -> None:
    """In place: a state dict carries the versions of its modules as an attribute, which a copy would lose."""
    for name in list(state):
        state[new_name(name)] = state.pop(name)


def _built(build: Callable[..., nn.Module], state: dict[str, torch.Tensor], where: str) -> nn.Module:
    """A network with its weights, and with as many classes as they have."""
    module = build()
    own = module.state_dict()
    other = [(own[name], state[name]) for name in own if name in state and own[name].shape != state[name].shape]
    # The last layer alone may be of another size, and only in its number of classes.
    sizes = {(len(a), len(b)) if a.ndim and b.ndim and a.shape[1:] == b.shape[1:] else None for a, b in other}
    if len(sizes) == 1 and None not in sizes:
        ((_, num_classes),) = sizes  # type: ignore[misc]
        module = build(num_classes=num_classes)
    _put(module, state, where)
    return module


def _put(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights into a module; ValueError in one line if they are of another one."""
    own = module.state_dict()
    wrong = next((name for name in own if name in state and own[name].shape != state[name].shape), None)
    if wrong is not None:
        raise ValueError(
            f"{where} are of another network: {wrong} has shape {tuple(state[wrong].shape)} there, {tuple(own[wrong].shape)} here"
        )
    if not hasattr(state, "_metadata"):  # safetensors: the version of the network itself is the present one
        from collections import OrderedDict

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


# -- what a run shows -------------------------------------------------------------------------------------------------

_BLANKS = 2  # images of a dry run: more than one, to tell the axis of the batch


def _dry_run(
    module: nn.Module,
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None,
    layers: Iterable[str],
    image_shape: tuple[int, int, int],
    where: str,
) -> tuple[dict[str, list[tuple[int, ...]]], int]:
    """Shapes of the outputs of modules, one for each time they ran (() for no tensor), and the number of classes."""
    shapes: dict[str, list[tuple[int, ...]]] = {layer: [] for layer in layers}

    def note(layer: str, output: Any) -> None:
        try:
            shapes[layer].append(tuple(as_tensor(output, layer).shape))
        except ValueError:
            shapes[layer].append(())

    parameter = next(module.parameters(), None)
    blank = torch.zeros((_BLANKS, *image_shape), device=None if parameter is None else parameter.device)
    with hooks(module, list(shapes), note), torch.inference_mode():
        try:
            output = module(blank if preprocess is None else preprocess(blank))
        except Exception as error:  # whatever a foreign model raises
            raise ValueError(
                f"{where} does not take images {tuple(image_shape)} (channels, height, width): {one_line(error)}"
            ) from error
    logits = as_tensor(output, where)
    if logits.ndim != 2 or len(logits) != _BLANKS:
        raise ValueError(f"{where} gives shape {tuple(logits.shape)} for {_BLANKS} images; expected logits (batch, classes)")
    return shapes, logits.shape[1]


def channel_axes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Axis of the channels in the outputs of layers, from their shapes: {layer: 1 or -1}.

    Up to two axes (batch, units): 1. Three axes are tokens (batch, tokens, channels): -1, unless the layer has one-dimensional
    convolutions and no linear maps. Four axes, (batch, channels, height, width) or, as in Swin transformers, (batch, height,
    width, channels): whichever leaves two equal axes as height and width. Where that does not tell (images that are not square,
    as many channels as rows), the layer is taken to be like the nearest one before it that does tell, else after it; 1 if none
    does.

    Parameters
    ----------
    module
        The network.
    shapes
        {layer: shape of its output, batch first}, in the order of the network.
    """
    modules = dict(module.named_modules(remove_duplicate=False))

    def has(layer: str, kinds: tuple[type, ...]) -> bool:
        return any(isinstance(part, kinds) for part in modules[layer].modules())

    axes: dict[str, int] = {}
    unclear: list[str] = []
    last: int | None = None
    for layer, shape in shapes.items():
        if len(shape) == 3:
            axes[layer] = 1 if has(layer, (nn.Conv1d,)) and not has(layer, (nn.Linear,)) else -1
        elif len(shape) == 4 and (shape[2] == shape[3]) != (shape[1] == shape[2]):
            axes[layer] = last = 1 if shape[2] == shape[3] else -1
            axes |= dict.fromkeys(unclear, last)
            unclear.clear()
        elif len(shape) == 4 and last is None:
            unclear.append(layer)
            axes[layer] = 1
        else:
            axes[layer] = last or 1 if len(shape) == 4 else 1
    return axes


# -- verdicts ---------------------------------------------------------------------------------------------------------


def in_top(logits: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Whether a class is among the `count` largest of some logits; of equal ones, the first counts as larger, as in `argmax`.

    Parameters
    ----------
    logits
        (..., num_classes).
    classes
        int (...), 0 .. num_classes - 1.
    """
    at = np.asarray(classes)[..., None]
    own = np.take_along_axis(logits, at, axis=-1)
    above = (logits > own) | ((logits == own) & (np.arange(logits.shape[-1]) < at))
    return above.sum(axis=-1) < count


def class_transitions(run: xr.Dataset, name: str = "", num_classes: int | None = None) -> xr.DataArray:
    """Class transition matrices of a run of images: how often an original of one class is rebuilt as another.

    Entry (noise, a, b) is the share of the reconstructions, over trajectories and the items whose original the classifier calls
    a, that it calls b. Rows add up to 1; rows without items are NaN. U-turns that are not finished do not count.

    Parameters
    ----------
    run
        Results with `original_class` and `predicted_class` (probe `network_layers` on images). They are read one noise level at a
        time; the matrices take 4 num_classes^2 bytes a level (4 MB for 1,000 classes), so select levels of a long run first.
    name
        Of the classifier, if the probe has one.
    num_classes
        By default the largest class that occurs, plus 1.

    Returns
    -------
    DataArray float32 (noise, original_class, predicted_class), with the coordinate `count` (noise, original_class): number of
    reconstructions in a row.

    Raises
    ------
    ValueError
        If the run has no such variables, or classes beyond `num_classes`.
    """
    import xarray as xr

    prefix = f"{name}_" if name else ""
    for variable in (f"{prefix}original_class", f"{prefix}predicted_class"):
        if variable not in run:
            found = sorted(v.removesuffix("original_class").rstrip("_") for v in map(str, run) if v.endswith("original_class"))
            raise ValueError(
                f"name = {name!r}: the run has no variable {variable!r}; expected results of the probe network_layers on images"
                f"{f', with one of the names {found}' if found else ''}"
            )
    before, after = run[f"{prefix}original_class"], run[f"{prefix}predicted_class"]
    after = after.transpose("noise", "item", "trajectory")
    before = before.transpose("noise", "item")
    if num_classes is None:
        tops = [float(values.max()) for values in (before, after)] if before.size and after.size else []
        num_classes = int(max((top for top in tops if np.isfinite(top)), default=-1)) + 1
    shares = np.full((run.sizes["noise"], num_classes, num_classes), np.nan, np.float32)
    counts = np.zeros((run.sizes["noise"], num_classes), np.int64)
    for k in range(run.sizes["noise"]):
        first, second = np.broadcast_arrays(before[k].values[:, None], after[k].values)
        done = np.isfinite(first) & np.isfinite(second)
        pairs = np.stack([first[done], second[done]]).astype(np.int64)
        if pairs.size and pairs.max() >= num_classes:
            raise ValueError(f"num_classes = {num_classes}, but the run has class {pairs.max()}; expected more, or None")
        table = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2).reshape(num_classes, num_classes)
        counts[k] = table.sum(axis=1)
        np.divide(table, counts[k][:, None], out=shares[k], where=counts[k][:, None] > 0, casting="unsafe")
    classes = np.arange(num_classes)
    return xr.DataArray(
        shares,
        dims=("noise", "original_class", "predicted_class"),
        coords={
            "noise": run.noise,
            "original_class": classes,
            "predicted_class": classes,
            "count": (("noise", "original_class"), counts),
        },
        name=f"{prefix}class_transitions",
        attrs={"long_name": "share of the reconstructions of a class"},
    )
