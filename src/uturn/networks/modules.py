"""Networks of other libraries and of users by name, with preprocessing and weights, and what probes
of images need of them.

Images are float32 (batch, channels, height, width) in [-1, 1], as everywhere in this package.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.imports import import_function
from uturn.core.inputs import Input
from uturn.core.messages import one_line, shown
from uturn.networks.files import (
    built_with,
    fingerprint,
    load_network,
    put_weights,
    read_state_dict,
    rename_weights,
)
from uturn.networks.images.clip import ClipTexts, load_clip
from uturn.networks.layers import EVERY_BLOCK, as_tensor, hooks, named_modules, select_layers
from uturn.networks.libraries import library, reading
from uturn.sources import fashion_mnist

Preprocess = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, ...]
_LIBRARIES = ("torchvision", "timm", "clip")
_FORMS = (
    "'fashion_mnist', a file of uturn.networks, 'torchvision:NAME', 'timm:NAME', 'clip:FOLDER' or"
    " 'module:function'"
)


@dataclass(frozen=True)
class LoadedModule:
    """A module that has not been run, its preprocessing, and its classes."""

    module: nn.Module
    preprocess: Preprocess | None = None
    """From images in [-1, 1] to the input of the module."""
    class_names: tuple[str, ...] | None = None
    """None where they are not known."""
    has_classes: bool = True
    """False for encoders, whose output is an embedding."""
    texts: ClipTexts | None = None
    """The text encoder that turns texts into classes (CLIP)."""


class Preprocessing:
    """Transforms of a library, applied to images in [-1, 1].

    Images are mapped to [0, 1] and clipped, and grey ones repeated for each channel of the network.
    Then the library's evaluation transforms resize (in floating point, with antialiasing), crop and
    normalise them.
    """

    def __init__(self, transforms: Preprocess, channels: int = 3) -> None:
        self.transforms = transforms
        self.channels = channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        fits = images.ndim == 4 and images.shape[1] in (1, self.channels)
        expect(
            fits,
            "shape of images",
            tuple(images.shape),
            f"(batch, channels, height, width), 1 or {self.channels} channels",
        )
        in_unit_range = (images / 2 + 0.5).clamp(0, 1)
        return self.transforms(in_unit_range.expand(-1, self.channels, -1, -1))

    def __repr__(self) -> str:
        return f"Preprocessing({' '.join(repr(self.transforms).split())}, channels={self.channels})"


@dataclass(frozen=True)
class Network(Input):
    """A classifier or an encoder by name (see `load_classifier`)."""

    classifier: str
    weights: str | None = None

    def files(self) -> list[Path]:
        kind, _, name = self.classifier.partition(":")
        paths: list[Path] = []
        if kind == "clip" and name and Path(name).is_dir():
            paths = sorted(path for path in Path(name).iterdir() if path.is_file())
        paths.append(Path(self.classifier))
        if self.weights is not None:
            paths.append(Path(self.weights))
        return paths

    def own_code(self) -> Callable[[], object] | None:
        kind, _, name = self.classifier.partition(":")
        if not name or kind in _LIBRARIES or Path(self.classifier).is_file():
            return None
        return import_function(self.classifier, f"classifier = {self.classifier!r}", _FORMS)

    def fingerprint(self) -> str:
        """Of the weights, the preprocessing, and the encoder of texts."""
        network = self.load()
        texts = ""
        if network.texts is not None:
            texts = fingerprint(network.texts)
        preprocessing = preprocessing_in_words(network.preprocess)
        identities = [fingerprint(network.module), preprocessing, texts]
        return " ".join(identity for identity in identities if identity)

    @cached_while_unchanged(maxsize=4)
    def load(self) -> LoadedModule:
        """The module, its preprocessing and the names of its classes; it is not run."""
        if Path(self.classifier).is_file():
            self._check_without_weights()
            # A network of strings or vectors is too small for a GPU.
            return LoadedModule(load_network(self.classifier))
        loaded = self._load()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        texts = loaded.texts
        if texts is not None:
            texts = texts.to(device).eval().requires_grad_(False)
        module = loaded.module.to(device).eval().requires_grad_(False)
        return replace(loaded, module=module, texts=texts)

    def _load(self) -> LoadedModule:
        """The network of a library or a user, on the CPU."""
        kind, _, name = self.classifier.partition(":")
        if self.classifier == "fashion_mnist":
            self._check_without_weights()
            return LoadedModule(fashion_mnist.load_classifier(), None, fashion_mnist.CLASS_NAMES)
        if kind == "clip":
            self._check_without_weights()
            clip = load_clip(name)
            preprocessing = Preprocessing(clip.transforms)
            return LoadedModule(clip.images, preprocessing, has_classes=False, texts=clip.texts)
        if kind == "torchvision":
            return _torchvision_module(name, self.weights)
        if kind == "timm":
            return _timm_module(name, self.weights)
        function = self.own_code()
        if function is None:
            raise ValueError(f"classifier = {self.classifier!r}: no such file; expected {_FORMS}")
        return _imported_module(self.classifier, function, self.weights)

    def _check_without_weights(self) -> None:
        expected = f"None, as classifier = {self.classifier!r} has its own"
        expect(self.weights is None, "weights", self.weights, expected)


def _torchvision_module(name: str, weights: str | None) -> LoadedModule:
    where = f"classifier = 'torchvision:{name}'"
    models = library("torchvision.models", where, "images")
    _check_known("torchvision", name, models.list_models(module=models))
    entries = models.get_model_weights(name)
    names = sorted({"DEFAULT", *entries.__members__})
    entry = entries[weights if weights in names else "DEFAULT"]
    if weights is None or weights in names:
        with reading(
            f"{where}: {entry.name}", f"give weights = FILE, a copy of {Path(entry.url).name}"
        ):
            state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    else:
        state = read_state_dict(weights, f"one of {', '.join(names)}, or a file with a state dict")
    options: dict[str, bool] = {}
    if name.startswith(("vgg", "googlenet", "inception")):
        options["init_weights"] = False  # slow, and replaced by the weights
    if name.startswith(("googlenet", "inception")):
        # As in torchvision for its own weights, whose input normalisation differs from the
        # transforms.
        options["transform_input"] = True
        options["aux_logits"] = any(key.lower().startswith("aux") for key in state)
    if name.startswith("densenet"):  # published files use names such as norm.1 instead of norm1
        in_layers = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
        rename_weights(state, lambda key: in_layers.sub(r"\1\2", key))
    build = functools.partial(models.get_model, name, weights=None, **options)
    module = built_with(build, state, f"{where}, weights = {weights or entry.name!r}")
    return LoadedModule(module, Preprocessing(entry.transforms()), tuple(entry.meta["categories"]))


def _timm_module(name: str, weights: str | None) -> LoadedModule:
    where = f"classifier = 'timm:{name}'"
    timm = library("timm", where, "images")
    name, _, size = name.partition("@")
    base, _, tag = name.partition(".")
    _check_known("timm", base, timm.list_models())
    published = timm.list_models(base, pretrained=True)
    expect(not tag or name in published, f"{where}: weights", tag, ", ".join(published) or base)
    expect(
        not size or size.isdecimal(),
        f"{where}: size of images",
        size,
        "pixels, such as timm:NAME@224",
    )
    build = functools.partial(timm.create_model, name)
    # Convolutional networks take every size.
    if size and timm.get_pretrained_cfg(name).fixed_input_size:
        # Interpolates the position embeddings.
        build = functools.partial(build, dynamic_img_size=True)
        with (
            reading(where, f"leave out @{size}, as the model takes images of its own size only"),
            torch.device("meta"),
        ):
            build()
    if weights is None:
        with reading(
            f"{where}: its published weights", "give weights = FILE, a file with a state dict"
        ):
            module = build(pretrained=True)
    else:
        state = read_state_dict(
            weights, "a file with a state dict, or none for the published weights"
        )
        module = built_with(build, state, f"{where}, weights = {weights!r}")
    image_size = {"img_size": int(size)} if size else None
    config = timm.data.resolve_model_data_config(module, image_size)
    preprocess = Preprocessing(timm.data.create_transform(**config), config["input_size"][0])
    return LoadedModule(module, preprocess, has_classes=_timm_has_classes(timm, module))


def _timm_has_classes(
    timm: Any,  # noqa: ANN401 - the library
    module: Any,  # noqa: ANN401 - one of its models
) -> bool:
    """Whether the outputs of a model of timm are classes.

    Encoders have `num_classes` 0. Of models trained with texts, such as CLIP, timm reports the
    dimension of a projection as the number of classes: a multiple of 128, which no published
    classifier has.
    """
    names = timm.list_models(module.pretrained_cfg["architecture"], pretrained=True)
    published = {timm.get_pretrained_cfg(name).num_classes for name in names}
    number = module.num_classes
    is_projection = number % 128 == 0 and number in published
    return number != 0 and not is_projection


def _imported_module(
    spec: str, function: Callable[[], object], weights: str | None
) -> LoadedModule:
    where = f"classifier = {spec!r}"
    with noted(where):
        returned = function()
    module = returned
    preprocess = None
    if isinstance(returned, tuple) and len(returned) == 2:
        module, preprocess = returned
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{where}: what it gives = {shown(returned)}: expected a torch.nn.Module, or (module,"
            " preprocess)"
        )
    if weights is not None:
        state = read_state_dict(
            weights, "a file with a state dict, or none for those the module has"
        )
        put_weights(module, state, f"{where}, weights = {weights!r}")
    return LoadedModule(module, preprocess, has_classes=getattr(module, "num_classes", None) != 0)


def preprocessing_in_words(preprocess: Preprocess | None) -> str:
    """A description of the preprocessing that is the same in every process; "" for none."""
    if preprocess is None:
        return ""
    if isinstance(preprocess, Preprocessing | nn.Module):
        return " ".join(repr(preprocess).split())
    named: Any = type(preprocess)  # a class or a function
    if hasattr(preprocess, "__qualname__"):
        named = preprocess
    return f"{named.__module__}:{named.__qualname__}"


def _check_known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or names[:4]
        expected = f"a model of {kind}; close names: {', '.join(close)} ({len(names)} in all)"
        raise ValueError(f"classifier = '{kind}:{name}': expected {expected}")


@dataclass(frozen=True)
class Classifier:
    """A classifier or an encoder of images, ready to be probed."""

    module: nn.Module
    """In evaluation mode, on the GPU if there is one; gives logits (batch, num_classes), or an
    embedding."""
    preprocess: Preprocess | None
    """From images in [-1, 1] to the input of the module."""
    layers: tuple[str, ...]
    """The probed modules, in the order in which the module registers them."""
    channel_axes: dict[str, int]
    """{layer: axis of the channels in its output}, see `channel_axes`."""
    num_classes: int
    """0 for an encoder."""
    class_names: tuple[str, ...] | None = None
    """None where they are not known."""
    without_layers: str = ""
    """Why it has no layers, if it has none: then only its classes can be compared."""


def load_classifier(
    spec: str,
    weights: str | None = None,
    *,
    layers: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    texts: Sequence[str] | None = None,
) -> Classifier:
    """A classifier or encoder by name; it is run once on two blank images to find its classes and
    the shapes of its layers.

    Encoders have no classes: models of timm without a classification head (DINOv2, SigLIP, MAE,
    ..), the image towers of CLIP models, whose output is the embedding, and user-defined modules
    whose attribute `num_classes` is 0. `spec` is one of

    - "torchvision:NAME", "timm:NAME": any such model, with the transforms of its weights.
      "timm:NAME@SIZE": with images of SIZE pixels instead of the configured size; a transformer's
      position embeddings are interpolated.
    - "clip:FOLDER" or "clip:OWNER/NAME": a `transformers.CLIPModel`, in a folder or on a hub; a
      classifier with `texts`, one for each class ("zero-shot", arXiv:2103.00020).
    - "module:function": the function, called without arguments, returns a `torch.nn.Module`, or
      (module, preprocess); `preprocess` takes batches of images in [-1, 1].
    - "fashion_mnist", or a file written by `uturn.networks.save_network`.

    `weights`: by default those of the library or module; a name of torchvision's enum, such as
    "IMAGENET1K_V1"; or a file with a state dict, of which nothing is executed and which may have
    another number of classes. `layers`: as in `HiddenLayers`; by default "every block", without
    blocks that do not run exactly once (auxiliary heads, shared modules), if there are any.
    """
    names = None if layers is None else tuple(layers)
    classes = None if texts is None else tuple(texts)
    channels, height, width = image_shape
    return _classifier(Network(spec, weights), names, (channels, height, width), classes)


@cached_while_unchanged()
def _classifier(
    network: Network,
    layers: tuple[str, ...] | None,
    image_shape: tuple[int, int, int],
    texts: tuple[str, ...] | None,
) -> Classifier:
    where = f"classifier = {network.classifier!r}"
    loaded = network.load()
    if texts is not None:
        loaded = _with_texts(loaded, texts, where)
    selection = _selected(loaded, layers, where)
    names = loaded.class_names
    if network.classifier == "fashion_mnist":  # known without a run, for any image shape
        axes = dict.fromkeys(selection.layers, 1)
        num_classes = len(names or ())
        return Classifier(
            loaded.module, loaded.preprocess, selection.layers, axes, num_classes, names
        )
    run = _dry_run(loaded, selection.layers, image_shape, where)
    num_classes = _num_classes(run, where) if loaded.has_classes else 0
    if layers is None:
        selection = _run_once(selection, run, loaded.has_classes, where)
    axes = dict.fromkeys(selection.layers, 1) | channel_axes(loaded.module, run.once)
    if names is not None and len(names) != num_classes:
        names = None  # the file has another number of classes than the library
    return Classifier(
        loaded.module,
        loaded.preprocess,
        selection.layers,
        axes,
        num_classes,
        names,
        selection.without_layers,
    )


def _with_texts(loaded: LoadedModule, texts: tuple[str, ...], where: str) -> LoadedModule:
    """A model of CLIP as a classifier, with a class for each text."""
    expect(
        loaded.texts is not None,
        "texts",
        texts,
        f"None, as {where} has no encoder of texts ('clip:..' has one)",
    )
    images: Any = loaded.module  # the tower of images, and of texts
    encoder: Any = loaded.texts
    module = images.with_classes(encoder.encode(texts))
    return replace(loaded, module=module, class_names=texts, has_classes=True)


@dataclass(frozen=True)
class _Selection:
    """The layers to be probed."""

    layers: tuple[str, ...]
    without_layers: str = ""
    """Why there are none; empty if there are."""


def _selected(loaded: LoadedModule, layers: tuple[str, ...] | None, where: str) -> _Selection:
    """The layers by name, or every block; a classifier may have none of these."""
    try:
        return _Selection(select_layers(loaded.module, layers or EVERY_BLOCK))
    except ValueError as error:
        if layers is not None or not loaded.has_classes:
            raise ValueError(f"{where}: {error}") from None
        return _Selection((), str(error))


def _run_once(selection: _Selection, run: _DryRun, has_classes: bool, where: str) -> _Selection:
    """The layers that run once; a classifier with fewer than two is read without layers."""
    layers = tuple(layer for layer in selection.layers if layer in run.once)
    if len(layers) >= 2 or selection.without_layers:
        return _Selection(layers, selection.without_layers)
    blocks = ", ".join(map(repr, run.shapes))
    without_layers = (
        f"fewer than two of its blocks ({blocks}) run once with a tensor; name the layers"
        " (--layers)"
    )
    if not has_classes:
        raise ValueError(f"{where}: {without_layers}")
    return _Selection((), without_layers)


_BLANKS = 2  # images of a dry run; two, so that the batch axis can be recognised


@dataclass(frozen=True)
class _DryRun:
    """A call of a network with blank images."""

    shapes: Mapping[str, list[Shape]]
    """{layer: shapes of its outputs, one for each call}; () if the output is no tensor."""
    output: object
    """The output of the network."""

    @property
    def once(self) -> dict[str, Shape]:
        """Shapes of the layers that run once and give a tensor of the batch."""
        shapes: dict[str, Shape] = {}
        for layer, calls in self.shapes.items():
            if len(calls) == 1 and len(calls[0]) > 1 and calls[0][0] == _BLANKS:
                shapes[layer] = calls[0]
        return shapes


def _dry_run(
    loaded: LoadedModule, layers: Sequence[str], image_shape: tuple[int, int, int], where: str
) -> _DryRun:
    shapes: dict[str, list[Shape]] = {layer: [] for layer in layers}

    def note(layer: str, output: object) -> None:
        try:
            shapes[layer].append(tuple(as_tensor(output, layer).shape))
        except ValueError:
            shapes[layer].append(())

    parameter = next(loaded.module.parameters(), None)
    device = None if parameter is None else parameter.device
    images = torch.zeros((_BLANKS, *image_shape), device=device)
    with hooks(loaded.module, layers, note), torch.inference_mode():
        try:
            if loaded.preprocess is not None:
                images = loaded.preprocess(images)
            output = loaded.module(images)
        except Exception as error:  # networks raise errors of many types
            raise ValueError(
                f"{where} does not take images {tuple(image_shape)}: {one_line(error)}"
            ) from error
    return _DryRun(shapes, output)


def _num_classes(run: _DryRun, where: str) -> int:
    shape = tuple(as_tensor(run.output, where).shape)
    fits = len(shape) == 2 and shape[0] == _BLANKS
    expect(fits, f"{where}: shape for {_BLANKS} images", shape, "(batch, classes)")
    return shape[1]


def channel_axes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Axis of the channels in the outputs of layers, from their `shapes`, in the order of the
    network: {layer: 1 or -1}.

    Two axes (batch, units): 1. Three axes are tokens (batch, tokens, channels): -1, unless the
    layer has one-dimensional convolutions and no linear maps. Four axes, (batch, channels, height,
    width) or, as in Swin transformers, (batch, height, width, channels): the choice with equal
    height and width; if that is ambiguous, the axis of the nearest unambiguous layer before, else
    of the nearest one after; 1 if no layer is unambiguous.
    """
    modules = named_modules(module)
    axes: dict[str, int] = {}
    unclear: list[str] = []
    axis_before: int | None = None
    for layer, shape in shapes.items():
        if len(shape) == 3:
            axes[layer] = 1 if _is_convolution(modules[layer]) else -1
        elif len(shape) != 4:
            axes[layer] = 1
        elif (shape[2] == shape[3]) != (shape[1] == shape[2]):
            axis_before = 1 if shape[2] == shape[3] else -1
            axes[layer] = axis_before
            axes |= dict.fromkeys(unclear, axis_before)
            unclear.clear()
        elif axis_before is None:
            unclear.append(layer)
            axes[layer] = 1
        else:
            axes[layer] = axis_before
    return axes


def _is_convolution(layer: nn.Module) -> bool:
    """Whether a layer has one-dimensional convolutions and no linear maps."""
    kinds = [type(part) for part in layer.modules()]
    has_linear = any(issubclass(kind, nn.Linear) for kind in kinds)
    return any(issubclass(kind, nn.Conv1d) for kind in kinds) and not has_linear


def in_top(logits: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Whether classes, int (...), are among the `count` largest logits (..., num_classes); of
    equal ones the first is larger.
    """
    place = np.asarray(classes)[..., None]
    logit = np.take_along_axis(logits, place, axis=-1)
    is_first = (logits == logit) & (np.arange(logits.shape[-1]) < place)
    is_above = (logits > logit) | is_first
    is_among: np.ndarray = is_above.sum(axis=-1) < count
    return is_among
