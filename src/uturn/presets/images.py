"""The options of an image experiment, described once for Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

import uturn
from uturn.core.checks import expect
from uturn.networks.images.options import DenoiserOptions, DiffusionOptions, read_prompts
from uturn.presets.options import SIZES, PresetOptions, given, noise_levels, probe_names

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
        expect(
            prompts is None or len(prompts) == self.items,
            "lines of prompt",
            prompts and len(prompts),
            f"{self.items}, as items",
        )
        return self._experiment(
            20 if self.items <= 1000 else 50,
            source=self._source(originals),
            corruption={"type": "diffusion", "noise": noise_levels(self.levels, self.steps)},
            backward={"type": "diffusion", **self._set(*DiffusionOptions.model_fields)},
            probes=self._probes(),
        )

    def _recorded_experiment(self, pattern: str) -> uturn.Experiment:
        """The experiment of recorded files; sizes and levels that are not given are those of the
        files.
        """
        from uturn.core.registry import build

        for name in DiffusionOptions.model_fields:
            value = getattr(self, name)
            expect(
                value == type(self).model_fields[name].default,
                name,
                value,
                "none; recorded files need no model",
            )
        is_folder = self.data not in ("fashion_mnist", "generated") and not self.data.endswith(
            ".npy"
        )
        expect(
            is_folder, "data", self.data, f"the folder of the originals of recorded = {pattern!r}"
        )
        table, backward = (
            self._source(None),
            build("backward", {"type": "recorded", "pattern": pattern}),
        )
        levels: Any = self.levels if "levels" in self.model_fields_set else backward.files.levels
        expect(
            isinstance(levels, list),
            "levels",
            levels,
            "levels of the recorded files, such as 0.2,0.5, or none",
        )
        found = {
            "trajectories": len(backward.files.trajectories),
            "clones": len(backward.files.clones),
        }
        if "items" not in self.model_fields_set:
            found["items"] = build("source", table).count()
        options = self.model_copy(
            update={name: size for name, size in found.items() if name not in self.model_fields_set}
        )
        return options._experiment(
            20 if options.items <= 1000 else 50,
            source=table,
            corruption={"type": "recorded", "noise": levels, **self._set("unit", "schedule")},
            backward={"type": "recorded", "pattern": pattern},
            probes=self._probes(),
        )

    def _source(self, originals: str | None) -> dict[str, Any]:
        """Table of the source: the embedded images, images of the model, a .npy file or a
        folder.
        """
        of_folder, of_array = ("size", "channels", "classes"), ("labels",)
        is_named, is_array = self.data in ("fashion_mnist", "generated"), self.data.endswith(".npy")
        if is_named or is_array:
            self._absent("a folder of images", *of_folder)
        if not is_array:
            self._absent("a .npy file", *of_array)
        table = (
            {"type": self.data}
            if is_named
            else {"type": "array" if is_array else "images", "path": self.data}
        )
        folder = {"folder": originals} if self.data == "generated" and originals is not None else {}
        return {**table, **folder, **self._set(*of_folder, *of_array)}

    def _probes(self) -> list[dict[str, Any]]:
        """Tables of the probes: the layers of each classifier, the perceptual distance, and the
        stored images.
        """
        generating = self.model if self.data == "generated" else None
        classifiers = self.classifiers or (
            ["fashion_mnist"] if "fashion_mnist" in (self.data, generating) else []
        )
        example = f"at least one for data = {self.data!r}, such as 'torchvision:convnext_base'"
        expect(classifiers or not self.needs_classifier, "classifiers", classifiers, example)
        networks = len(classifiers) + (self.perceptual is not None)
        weights = self.weights or [""] * networks
        each = f"{networks}, one for each network (the perceptual one is the last), or none at all"
        expect(len(weights) == networks, "number of weights", len(weights), each)
        probes: list[dict[str, Any]] = []
        for name, classifier, own_weights in zip(
            probe_names(classifiers), classifiers, weights, strict=False
        ):
            options: dict[str, Any] = {"weights": own_weights, "layers": self.layers, "name": name}
            labels = {} if self.compare_labels else {"labels": False}
            prompts = self._set("class_prompts") if classifier.startswith("clip:") else {}
            probes.append(
                {
                    "type": "network_layers",
                    "classifier": classifier,
                    **given(options),
                    **labels,
                    **prompts,
                }
            )
        if not any(classifier.startswith("clip:") for classifier in classifiers):
            self._absent("a classifier 'clip:FOLDER'", "class_prompts")
        if self.perceptual is not None:
            options = {"weights": weights[-1], "linear": self.perceptual_linear}
            probes.append({"type": "perceptual", "classifier": self.perceptual, **given(options)})
        else:
            self._absent("a network `perceptual`", "perceptual_linear")
        if self.keep:
            probes.append({"type": "images", "first": self.keep})
        return probes


def image_experiment(
    model: str = "fashion_mnist",
    data: str = "fashion_mnist",
    classifiers: Sequence[str] = (),
    **options: Any,
) -> uturn.Experiment:
    """The experiment of image options, the fields of `ImageOptions`; ValueError for those that
    do not fit together.
    """
    return ImageOptions.from_dict(
        {"model": model, "data": data, "classifiers": classifiers, **options}
    ).experiment()
