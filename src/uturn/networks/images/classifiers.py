"""Classifiers and encoders of images for probes: their layers, channel axes and predictions.

Images are float32 (batch, channels, height, width) in [-1, 1], as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from uturn.core.checks import expect, one_line
from uturn.core.files import cached_while_unchanged
from uturn.networks.layers import EVERY_BLOCK, as_tensor, hooks, named_modules, select_layers
from uturn.networks.modules import Network


@dataclass(frozen=True)
class Classifier:
    """A classifier or an encoder of images, ready to be probed."""

    module: nn.Module  # in evaluation mode, on the GPU if there is one; gives logits (batch, num_classes), or an embedding
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None  # from images in [-1, 1] to the input of the module
    layers: tuple[str, ...]  # the probed modules, in the order in which the module registers them
    channel_axes: dict[str, int]  # {layer: axis of the channels in its output}, see `channel_axes`
    num_classes: int  # 0 for an encoder
    class_names: tuple[str, ...] | None = None  # None where they are not known
    without_layers: str = ""  # why it has no layers, if it has none: then only its classes can be compared


def load_classifier(
    spec: str,
    weights: str | None = None,
    *,
    layers: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    texts: Sequence[str] | None = None,
) -> Classifier:
    """A classifier or encoder by name; it is run once on two blank images to find its classes and the shapes of its layers.

    Encoders have no classes: models of timm without a classification head (DINOv2, SigLIP, MAE, ..), the image towers of CLIP
    models, whose output is the embedding, and user-defined modules whose attribute `num_classes` is 0.

    Parameters
    ----------
    spec
        - "torchvision:NAME": any classification model of torchvision, with the transforms of its weights.
        - "timm:NAME": any model of timm, with the transforms of its data configuration. "timm:NAME@SIZE": with images of SIZE
          pixels instead of the configured size; a transformer's position embeddings are interpolated.
        - "clip:FOLDER" or "clip:OWNER/NAME": a `transformers.CLIPModel`, in a folder or on a hub.
        - "module:function": the function, called without arguments, returns a `torch.nn.Module`, or (module, preprocess). The
          module is put into evaluation mode; `preprocess` takes batches of images in [-1, 1].
        - "fashion_mnist", or a file written by `uturn.networks.save_network`.
    weights
        None: the library's default weights, downloaded (for "module:function", the weights of the module). A name of
        torchvision's enum of weights, such as "IMAGENET1K_V1". Or a file with a state dict, written by safetensors or
        `torch.save` (nothing in it is executed), possibly under the key "state_dict" or "model"; for a model of a library, its
        number of classes may differ from the library's.
    layers
        Names or patterns of modules as in `HiddenLayers`; by default "every block", without blocks that do not run exactly once
        when the network is evaluated (auxiliary heads, shared modules). A classifier without such blocks, such as a logistic
        regression or a network whose activation functions are no modules, has no layers by default.
    image_shape
        Channels, height and width of the images.
    texts
        A text for each class, which makes a "clip:" model a classifier ("zero-shot", arXiv:2103.00020): the logit of a class is
        the cosine of the embeddings of image and text, times the learned scale.
    """
    names, classes = (None if chosen is None else tuple(chosen) for chosen in (layers, texts))
    channels, height, width = image_shape
    return _classifier(Network(spec, weights), names, (channels, height, width), classes)


@cached_while_unchanged()
def _classifier(
    network: Network, layers: tuple[str, ...] | None, image_shape: tuple[int, int, int], texts: tuple[str, ...] | None
) -> Classifier:
    spec, loaded = network.classifier, network.load()
    if texts is not None:
        clip: Any = loaded.module
        encoder: Any = loaded.texts
        expect(encoder is not None, "texts", texts, f"None, as classifier = {spec!r} has no encoder of texts ('clip:..' has one)")
        loaded = loaded._replace(module=clip.with_classes(encoder.encode(texts)), class_names=texts, has_classes=True)
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
        return Classifier(module, preprocess, chosen, dict.fromkeys(chosen, 1), len(class_names or ()), class_names)
    shapes, output = _dry_run(module, preprocess, chosen, image_shape, f"classifier = {spec!r}")
    num_classes = 0
    if loaded.has_classes:
        shape = tuple(as_tensor(output, f"classifier = {spec!r}").shape)
        fits = len(shape) == 2 and shape[0] == _BLANKS
        expect(fits, f"classifier = {spec!r}: shape for {_BLANKS} images", shape, "(batch, classes)")
        num_classes = shape[1]
    once = {layer: runs[0] for layer, runs in shapes.items() if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == _BLANKS}
    if layers is None:
        chosen = tuple(layer for layer in chosen if layer in once)
        if len(chosen) < 2 and not without_layers:
            blocks = ", ".join(map(repr, shapes))
            without_layers = f"fewer than two of its blocks ({blocks}) run once with a tensor; name the layers (--layers)"
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
    """Output shapes of modules, one for each call (() if the output is no tensor), and the output of the network."""
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
        except Exception as error:  # networks raise errors of many types
            raise ValueError(f"{where} does not take images {tuple(image_shape)}: {one_line(error)}") from error
    return shapes, output


def channel_axes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Axis of the channels in the outputs of layers, from their `shapes`, in the order of the network: {layer: 1 or -1}.

    Up to two axes (batch, units): 1. Three axes are tokens (batch, tokens, channels): -1, unless the layer has one-dimensional
    convolutions and no linear maps. Four axes, (batch, channels, height, width) or, as in Swin transformers, (batch, height,
    width, channels): the choice with equal height and width. If that is ambiguous (images that are not square, as many channels
    as rows), the axis of the nearest unambiguous layer before is used, else of the nearest one after; 1 if no layer is
    unambiguous.
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
    """Whether classes, int (...), are among the `count` largest logits (..., num_classes).

    Among equal logits, the first counts as larger, as in `argmax`.
    """
    at = np.asarray(classes)[..., None]
    logit = np.take_along_axis(logits, at, axis=-1)
    above = (logits > logit) | ((logits == logit) & (np.arange(logits.shape[-1]) < at))
    return above.sum(axis=-1) < count
