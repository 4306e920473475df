"""The options of an image experiment, described once for Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

import uturn
from uturn.core.checks import expect
from uturn.networks.images.options import DenoiserOptions, DiffusionOptions, read_prompts
from uturn.presets.options import (
    SIZES,
    PresetOptions,
    Table,
    given,
    noise_levels,
    probe_names,
)

_OPTIONS_OF_FOLDER = ("size", "channels", "classes")
"""Options of a folder of images."""
_SPEED = ("dtype", "device", "batch_size", "compile", "offload")


class ImageOptions(DiffusionOptions, PresetOptions):
    """U-turns of images by a diffusion model, or made elsewhere, compared in the layers of
    classifiers.

    `uturn images --help` explains the options; the method `experiment` returns the experiment that
    they describe.

    Examples
    --------
    >>> experiment = ImageOptions(steps=50, levels=5, items=20).experiment()
    >>> experiment.noise
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", *(name for name in DenoiserOptions.model_fields if name not in _SPEED)),
        "Reverse process": ("scheduler", "steps", "eta", "timestep_spacing", "pure_noise"),
        "Data": ("data", "size", "channels", "classes", "labels"),
        "U-turns made elsewhere": ("recorded", "unit", "schedule"),
        "Measures": (
            "classifiers",
            "weights",
            "layers",
            "class_prompts",
            "compare_labels",
            "perceptual",
            "perceptual_linear",
        ),
        "Size and seed": SIZES,
        "Speed and memory": _SPEED,
    }
    flags: ClassVar[Mapping[str, str]] = {"classifiers": "--classifier"}
    needs_classifier: ClassVar[bool] = True

    data: str = Field(
        "fashion_mnist",
        description=(
            "Folder of images, whose sub-folders are classes; a .npy file; or generated (images"
            " that the model draws)."
        ),
        examples=["fashion_mnist", "generated"],
    )
    classifiers: list[str] = Field(
        [],
        description=(
            "Network whose layers are compared: torchvision:NAME, timm:NAME, clip:FOLDER,"
            " module:function, or a file of uturn.networks. Images of Fashion-MNIST have a default,"
            " the embedded classifier."
        ),
        examples=["fashion_mnist"],
    )
    weights: list[str] = Field(
        [],
        description=(
            "Weights of each classifier, in the same order, then of the perceptual network: a name,"
            " a file, or '' for the default of its library."
        ),
    )
    layers: list[str] = Field(
        [],
        description=(
            "Layers of the classifiers that are compared, names or patterns of modules, such as"
            " layer1.*; by default every block."
        ),
    )
    class_prompts: str | None = Field(
        None,
        description=(
            "Prompts for the classes of clip: models: a template with {} for the name of the class,"
            " or a file with one prompt on each line."
        ),
    )
    perceptual: str | None = Field(
        None,
        description=(
            "Network of a perceptual distance (LPIPS), such as torchvision:vgg16; named like"
            " classifiers."
        ),
    )
    perceptual_linear: str | None = Field(
        None,
        description=(
            "Learned weights of the channels of the perceptual network: a file of the package"
            " lpips."
        ),
    )
    size: int | None = Field(
        None, description="Resize and crop the images of a folder to this many pixels."
    )
    channels: int | None = Field(
        None, description="Channels of the images of a folder: 1 (grey) or 3 (RGB); by default 3."
    )
    classes: str | None = Field(
        None,
        description=(
            "Text file with the sub-folders of the data in the order of the classifier's classes,"
            " one on each line."
        ),
    )
    labels: str | None = Field(
        None, description="Labels of the images of a .npy file: another .npy file, of integers."
    )
    recorded: str | None = Field(
        None,
        description=(
            "Run no model: read reconstructions from image files,"
            " 'strength_{noise}/{item}_{trajectory}.png', also {clone}. {item} is the name of the"
            " original's file in the folder --data, without suffix; by default all originals,"
            " levels, trajectories and clones of the files."
        ),
    )
    unit: str | None = Field(
        None,
        description="Name of the noise of recorded files, such as strength.",
        examples=["strength"],
    )
    schedule: str | None = Field(
        None,
        description=(
            "Model, as in uturn schedule, whose scheduler gives the log-SNR of recorded levels (as"
            " t/T or strength)."
        ),
        examples=["fashion_mnist"],
    )
    compare_labels: bool = Field(
        True,
        description=(
            "Also compare predictions with the labels of the images, which must be the classifier's"
            " classes."
        ),
    )

    def experiment(self, originals: str | None = None) -> uturn.Experiment:
        """The experiment that these options describe. `originals`: folder in which generated
        originals are stored.
        """
        if self.recorded is not None:
            return self._recorded_experiment(self.recorded)
        self._absent("recorded", "unit", "schedule")
        prompts = read_prompts(self.prompt or "").rows
        if prompts is not None:
            number = len(prompts)
            expect(number == self.items, "lines of prompt", number, f"{self.items}, as items")
        return self._experiment(
            _chunk(self.items),
            source=self._source(originals),
            corruption={"type": "diffusion", "noise": noise_levels(self.levels, self.steps)},
            backward={"type": "diffusion", **self._set(*DiffusionOptions.model_fields)},
            probes=self._probes(),
        )

    def _recorded_experiment(self, pattern: str) -> uturn.Experiment:
        """The experiment of recorded files. Sizes and levels that are not given are taken from the
        files.
        """
        from uturn.core.registry import build

        for name in DiffusionOptions.model_fields:
            value = getattr(self, name)
            is_default = value == type(self).model_fields[name].default
            expect(is_default, name, value, "none; recorded files need no model")
        is_folder = not self._is_named and not self._is_array
        expected = f"the folder of the originals of recorded = {pattern!r}"
        expect(is_folder, "data", self.data, expected)
        source = self._source(None)
        backward = {"type": "recorded", "pattern": pattern}
        files = build("backward", backward).files
        chosen = self.model_fields_set
        levels = self.levels if "levels" in chosen else files.levels
        expected = "levels of the recorded files, such as 0.2,0.5, or none"
        expect(isinstance(levels, list), "levels", levels, expected)
        sizes = {}
        if "trajectories" not in chosen:
            sizes["trajectories"] = len(files.trajectories)
        if "clones" not in chosen:
            sizes["clones"] = len(files.clones)
        if "items" not in chosen:
            sizes["items"] = build("source", source).count()
        options = self.model_copy(update=sizes)
        return options._experiment(
            _chunk(options.items),
            source=source,
            corruption={"type": "recorded", "noise": levels, **self._set("unit", "schedule")},
            backward=backward,
            probes=self._probes(),
        )

    @property
    def _is_named(self) -> bool:
        """Whether the data come with the package, or are drawn by the model."""
        return self.data in ("fashion_mnist", "generated")

    @property
    def _is_array(self) -> bool:
        return not self._is_named and self.data.endswith(".npy")

    def _source(self, originals: str | None) -> Table:
        """Table of the source: the embedded images, images of the model, a .npy file or a
        folder.
        """
        if self._is_named or self._is_array:
            self._absent("a folder of images", *_OPTIONS_OF_FOLDER)
        if not self._is_array:
            self._absent("a .npy file", "labels")
        options = self._set(*_OPTIONS_OF_FOLDER, "labels")
        if self._is_array:
            return {"type": "array", "path": self.data, **options}
        if not self._is_named:
            return {"type": "images", "path": self.data, **options}
        source: Table = {"type": self.data}
        if self.data == "generated" and originals is not None:
            source["folder"] = originals
        return {**source, **options}

    def _probes(self) -> list[Table]:
        """Tables of the probes: the layers of each classifier, the perceptual distance, and the
        stored images.
        """
        classifiers = self._classifiers()
        example = f"at least one for data = {self.data!r}, such as 'torchvision:convnext_base'"
        expect(classifiers or not self.needs_classifier, "classifiers", classifiers, example)
        networks = len(classifiers) + (self.perceptual is not None)
        weights = self.weights or [""] * networks
        each = f"{networks}, one for each network (the perceptual one is the last), or none at all"
        expect(len(weights) == networks, "number of weights", len(weights), each)
        probes: list[Table] = []
        names = probe_names(classifiers)
        for name, classifier, own_weights in zip(names, classifiers, weights, strict=False):
            probes.append(self._network_layers(name, classifier, own_weights))
        if not any(map(_is_clip, classifiers)):
            self._absent("a classifier 'clip:FOLDER'", "class_prompts")
        if self.perceptual is None:
            self._absent("a network `perceptual`", "perceptual_linear")
        else:
            options = {"weights": weights[-1], "linear": self.perceptual_linear}
            probes.append({"type": "perceptual", "classifier": self.perceptual, **given(options)})
        if self.keep:
            probes.append({"type": "images", "first": self.keep})
        return probes

    def _classifiers(self) -> list[str]:
        """The classifiers; by default the embedded one for images like Fashion-MNIST."""
        if self.classifiers:
            return self.classifiers
        images = self.model if self.data == "generated" else self.data
        return ["fashion_mnist"] if images == "fashion_mnist" else []

    def _network_layers(self, name: str, classifier: str, weights: str) -> Table:
        """The table of the probe of a classifier."""
        options = given({"weights": weights, "layers": self.layers, "name": name})
        if not self.compare_labels:
            options["labels"] = False
        if _is_clip(classifier):
            options |= self._set("class_prompts")
        return {"type": "network_layers", "classifier": classifier, **options}


def _is_clip(classifier: str) -> bool:
    return classifier.startswith("clip:")


def _chunk(items: int) -> int:
    """Originals in a task."""
    return 20 if items <= 1000 else 50


def image_experiment(
    model: str = "fashion_mnist",
    data: str = "fashion_mnist",
    classifiers: Sequence[str] = (),
    **options: Any,
) -> uturn.Experiment:
    """The experiment of image options, the fields of `ImageOptions`. ValueError if they do not fit
    together.
    """
    return ImageOptions.from_dict(
        {"model": model, "data": data, "classifiers": classifiers, **options}
    ).experiment()
