"""Networks of other libraries and of users by name, with preprocessing and weights, and what probes
of images need of them.

Images are float32 (batch, channels, height, width) in [-1, 1], as everywhere in this package.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.imports import import_function
from uturn.core.inputs import Input
from uturn.core.messages import one_line
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

_LIBRARIES = ("torchvision", "timm", "clip")
_FORMS = (
    "'fashion_mnist', a file of uturn.networks, 'torchvision:NAME', 'timm:NAME', 'clip:FOLDER' or"
    " 'module:function'"
)


class LoadedModule(NamedTuple):
    """A module that has not been run, its preprocessing, and its classes."""

    module: nn.Module
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None
    class_names: tuple[str, ...] | None = None  # None where they are not known
    has_classes: bool = True  # False for encoders, whose output is an embedding
    texts: ClipTexts | None = None  # the text encoder that turns texts into classes (CLIP)


class Preprocessing:
    """Transforms of a library, applied to images in [-1, 1].

    Images are mapped to [0, 1] and clipped, and grey ones repeated for each channel of the network.
    Then the library's evaluation transforms resize (in floating point, with antialiasing), crop and
    normalise them.
    """

    def __init__(
        self, transforms: Callable[[torch.Tensor], torch.Tensor], channels: int = 3
    ) -> None:
        self.transforms, self.channels = transforms, channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        fits = images.ndim == 4 and images.shape[1] in (1, self.channels)
        expect(
            fits,
            "shape of images",
            tuple(images.shape),
            f"(batch, channels, height, width), 1 or {self.channels} channels",
        )
        return self.transforms((images / 2 + 0.5).clamp(0, 1).expand(-1, self.channels, -1, -1))

    def __repr__(self) -> str:
        return f"Preprocessing({' '.join(repr(self.transforms).split())}, channels={self.channels})"


@dataclass(frozen=True)
class Network(Input):
    """A classifier or an encoder by name (see `load_classifier`)."""

    classifier: str
    weights: str | None = None

    def files(self) -> list[Path]:
        kind, _, name = self.classifier.partition(":")
        is_folder = kind == "clip" and name and Path(name).is_dir()
        folder = (
            sorted(path for path in Path(name).iterdir() if path.is_file()) if is_folder else []
        )
        return [
            *folder,
            *(Path(name) for name in (self.classifier, self.weights) if name is not None),
        ]

    def own_code(self) -> Callable[[], Any] | None:
        kind, _, name = self.classifier.partition(":")
        if not name or kind in _LIBRARIES or Path(self.classifier).is_file():
            return None
        return import_function(self.classifier, f"classifier = {self.classifier!r}", _FORMS)

    def fingerprint(self) -> str:
        """Of the weights, the preprocessing, and the encoder of texts."""
        network = self.load()
        texts = "" if network.texts is None else fingerprint(network.texts)
        words = fingerprint(network.module), preprocessing_in_words(network.preprocess), texts
        return " ".join(word for word in words if word)

    @cached_while_unchanged(maxsize=4)
    def load(self) -> LoadedModule:
        """The module, its preprocessing and the names of its classes; it is not run."""
        spec, weights = self.classifier, self.weights
        kind, _, name = spec.partition(":")
        has_own = spec == "fashion_mnist" or Path(spec).is_file() or kind == "clip"
        expect(
            not has_own or weights is None,
            "weights",
            weights,
            f"None, as classifier = {spec!r} has its own",
        )
        if Path(spec).is_file():
            # A network of strings or vectors is too small for a GPU.
            return LoadedModule(load_network(spec))
        if spec == "fashion_mnist":
            loaded = LoadedModule(fashion_mnist.load_classifier(), None, fashion_mnist.CLASS_NAMES)
        elif kind == "torchvision":
            loaded = _torchvision_module(name, weights)
        elif kind == "timm":
            loaded = _timm_module(name, weights)
        elif kind == "clip":
            images, encoder, transforms = load_clip(name)
            loaded = LoadedModule(
                images, Preprocessing(transforms), has_classes=False, texts=encoder
            )
        elif (function := self.own_code()) is not None:
            loaded = _imported_module(spec, function, weights)
        else:
            raise ValueError(f"classifier = {spec!r}: no such file; expected {_FORMS}")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        texts = (
            None if loaded.texts is None else loaded.texts.to(device).eval().requires_grad_(False)
        )
        return loaded._replace(
            module=loaded.module.to(device).eval().requires_grad_(False), texts=texts
        )


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
    options: dict[str, Any] = {}
    if name.startswith(("vgg", "googlenet", "inception")):
        options["init_weights"] = False  # slow, and replaced by the weights
    if name.startswith(("googlenet", "inception")):
        # As in torchvision for its own weights, whose input normalisation differs from the
        # transforms.
        options |= {
            "transform_input": True,
            "aux_logits": any(key.lower().startswith("aux") for key in state),
        }
    if name.startswith("densenet"):  # published files use names such as norm.1 instead of norm1
        rename_weights(
            state, lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key)
        )
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
    config = timm.data.resolve_model_data_config(module, {"img_size": int(size)} if size else None)
    preprocess = Preprocessing(timm.data.create_transform(**config), config["input_size"][0])
    return LoadedModule(module, preprocess, has_classes=_timm_has_classes(timm, module))


def _timm_has_classes(timm: Any, module: Any) -> bool:
    """Whether the outputs of a model of timm are classes.

    Encoders have `num_classes` 0. Of models trained with texts, such as CLIP, timm reports the
    dimension of a projection as the number of classes: a multiple of 128, which no published
    classifier has.
    """
    names = timm.list_models(module.pretrained_cfg["architecture"], pretrained=True)
    published = {timm.get_pretrained_cfg(name).num_classes for name in names}
    return module.num_classes != 0 and not (
        module.num_classes % 128 == 0 and module.num_classes in published
    )


def _imported_module(spec: str, function: Callable[[], Any], weights: str | None) -> LoadedModule:
    where = f"classifier = {spec!r}"
    with noted(where):
        returned = function()
    module, preprocess = (
        returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    )
    expect(
        isinstance(module, nn.Module),
        f"{where}: what it gives",
        returned,
        "a torch.nn.Module, or (module, preprocess)",
    )
    if weights is not None:
        state = read_state_dict(
            weights, "a file with a state dict, or none for those the module has"
        )
        put_weights(module, state, f"{where}, weights = {weights!r}")
    return LoadedModule(module, preprocess, has_classes=getattr(module, "num_classes", None) != 0)


def preprocessing_in_words(preprocess: Callable[..., Any] | None) -> str:
    """A description of the preprocessing that is the same in every process; "" for none."""
    if preprocess is None:
        return ""
    if isinstance(preprocess, Preprocessing | nn.Module):
        return " ".join(repr(preprocess).split())
    named = preprocess if hasattr(preprocess, "__qualname__") else type(preprocess)
    return f"{named.__module__}:{named.__qualname__}"


def _check_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:4]
        expected = f"a model of {kind}; close names: {', '.join(close)} ({len(known)} in all)"
        raise ValueError(f"classifier = '{kind}:{name}': expected {expected}")


@dataclass(frozen=True)
class Classifier:
    """A classifier or an encoder of images, ready to be probed."""

    # In evaluation mode, on the GPU if there is one; gives logits (batch, num_classes), or an
    # embedding.
    module: nn.Module
    # From images in [-1, 1] to the input of the module.
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None
    layers: tuple[str, ...]  # the probed modules, in the order in which the module registers them
    channel_axes: dict[str, int]  # {layer: axis of the channels in its output}, see `channel_axes`
    num_classes: int  # 0 for an encoder
    class_names: tuple[str, ...] | None = None  # None where they are not known
    # Why it has no layers, if it has none: then only its classes can be compared.
    without_layers: str = ""


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
    names, classes = (None if chosen is None else tuple(chosen) for chosen in (layers, texts))
    channels, height, width = image_shape
    return _classifier(Network(spec, weights), names, (channels, height, width), classes)


@cached_while_unchanged()
def _classifier(
    network: Network,
    layers: tuple[str, ...] | None,
    image_shape: tuple[int, int, int],
    texts: tuple[str, ...] | None,
) -> Classifier:
    spec, loaded = network.classifier, network.load()
    if texts is not None:
        clip: Any = loaded.module
        encoder: Any = loaded.texts
        expect(
            encoder is not None,
            "texts",
            texts,
            f"None, as classifier = {spec!r} has no encoder of texts ('clip:..' has one)",
        )
        loaded = loaded._replace(
            module=clip.with_classes(encoder.encode(texts)), class_names=texts, has_classes=True
        )
    module, preprocess, class_names = loaded.module, loaded.preprocess, loaded.class_names
    chosen: tuple[str, ...] = ()
    without_layers = ""
    try:
        chosen = select_layers(module, layers or EVERY_BLOCK)
    except ValueError as error:
        if layers is not None or not loaded.has_classes:
            raise ValueError(f"classifier = {spec!r}: {error}") from None
        without_layers = str(error)
    if spec == "fashion_mnist":  # known without a run, for any image shape
        return Classifier(
            module,
            preprocess,
            chosen,
            dict.fromkeys(chosen, 1),
            len(class_names or ()),
            class_names,
        )
    shapes, output = _dry_run(module, preprocess, chosen, image_shape, f"classifier = {spec!r}")
    num_classes = 0
    if loaded.has_classes:
        shape = tuple(as_tensor(output, f"classifier = {spec!r}").shape)
        fits = len(shape) == 2 and shape[0] == _BLANKS
        expect(
            fits, f"classifier = {spec!r}: shape for {_BLANKS} images", shape, "(batch, classes)"
        )
        num_classes = shape[1]
    once = {
        layer: runs[0]
        for layer, runs in shapes.items()
        if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == _BLANKS
    }
    if layers is None:
        chosen = tuple(layer for layer in chosen if layer in once)
        if len(chosen) < 2 and not without_layers:
            blocks = ", ".join(map(repr, shapes))
            without_layers = (
                f"fewer than two of its blocks ({blocks}) run once with a tensor; name the layers"
                " (--layers)"
            )
            if not loaded.has_classes:
                raise ValueError(f"classifier = {spec!r}: {without_layers}")
            chosen = ()
    axes = dict.fromkeys(chosen, 1) | channel_axes(module, once)
    if class_names is not None and len(class_names) != num_classes:
        class_names = None  # the file has another number of classes than the library
    return Classifier(module, preprocess, chosen, axes, num_classes, class_names, without_layers)


_BLANKS = 2  # images of a dry run; two, so that the batch axis can be recognised


def _dry_run(
    module: nn.Module,
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None,
    layers: Iterable[str],
    image_shape: tuple[int, int, int],
    where: str,
) -> tuple[dict[str, list[tuple[int, ...]]], Any]:
    """Output shapes of modules, one for each call (() if the output is no tensor), and the
    output of the network.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {layer: [] for layer in layers}

    def note(layer: str, output: Any) -> None:
        try:
            shapes[layer].append(tuple(as_tensor(output, layer).shape))
        except ValueError:
            shapes[layer].append(())

    parameter = next(module.parameters(), None)
    blank = torch.zeros(
        (_BLANKS, *image_shape), device=None if parameter is None else parameter.device
    )
    with hooks(module, list(shapes), note), torch.inference_mode():
        try:
            output = module(blank if preprocess is None else preprocess(blank))
        except Exception as error:  # networks raise errors of many types
            raise ValueError(
                f"{where} does not take images {tuple(image_shape)}: {one_line(error)}"
            ) from error
    return shapes, output


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


def in_top(logits: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Whether classes, int (...), are among the `count` largest logits (..., num_classes); of
    equal ones the first is larger.
    """
    at = np.asarray(classes)[..., None]
    logit = np.take_along_axis(logits, at, axis=-1)
    above = (logits > logit) | ((logits == logit) & (np.arange(logits.shape[-1]) < at))
    return above.sum(axis=-1) < count
