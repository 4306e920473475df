"""The options of an image experiment, described once for Python, TOML files and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SkipValidation

from uturn.cli.presets.options import PresetOptions, probe_names
from uturn.core.checks import checked_integer, checked_noise, shown
from uturn.networks.images.options import DenoiserOptions, DiffusionOptions

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment

_SPEED = ("dtype", "device", "batch_size", "compile", "offload")


class ImageOptions(DiffusionOptions, PresetOptions):
    """U-turns of images by a diffusion model, compared in the layers of classifiers.

    Every option has a default. `uturn images --help` and `ImageOptions.model_fields[name].description` explain the options. The
    method `experiment` returns the experiment that they describe.

    Examples
    --------
    >>> experiment = ImageOptions(steps=50, levels=5, items=20).experiment()
    >>> experiment.noise
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """

    lists: ClassVar[frozenset[str]] = frozenset({"classifiers", "weights"})
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", *(name for name in DenoiserOptions.model_fields if name not in _SPEED)),
        "Reverse process": ("scheduler", "steps", "eta", "timestep_spacing", "pure_noise"),
        "Data": ("data", "size", "channels", "classes", "labels"),
        "Measures": ("classifiers", "weights", "class_prompts", "compare_labels", "perceptual", "perceptual_linear"),
        "Size and seed": ("levels", "items", "trajectories", "clones", "keep", "chunk", "seed"),
        "Speed and memory": _SPEED,
    }
    flags: ClassVar[Mapping[str, str]] = {"classifiers": "--classifier"}

    data: str = Field(
        "fashion_mnist", description="Folder of images, whose sub-folders are classes; a .npy file; or generated, by the model."
    )
    classifiers: list[str] = Field(
        [],
        description="torchvision:NAME, timm:NAME, clip:FOLDER, module:function, or a file of uturn.networks; several are "
        "compared. By default the embedded classifier of Fashion-MNIST, for that data only.",
    )
    weights: list[str] = Field(
        [],
        description="Weights of the classifiers, in the same order, and last of the perceptual network, if any: a name, a file, "
        "or '' for the library's own choice.",
    )
    class_prompts: str | None = Field(
        None,
        description="Classes of clip: models as texts: a template with {} for the name of a class, or a file, one text a line.",
    )
    perceptual: str | None = Field(
        None, description="Network of a perceptual distance (LPIPS), such as torchvision:vgg16; named as the classifiers are."
    )
    perceptual_linear: str | None = Field(None, description="Learned weights of its channels: a file of the package lpips.")
    # Levels can have two types, so `noise_levels` checks them.
    levels: SkipValidation[int | list[float]] = Field(
        10, description="Number of noise levels, evenly spaced up to the whole chain; or the levels t/T, such as 0.2,0.5,1.0."
    )
    items: int = Field(40, ge=1, description="Number of originals.")
    trajectories: int = Field(1, ge=1, description="Noisy versions of each original at each level.")
    clones: int = Field(1, ge=1, description="Reconstructions of each noisy version; the run also compares them with each other.")
    size: int | None = Field(None, description="Resize and crop the images of a folder to this size.")
    channels: int | None = Field(None, description="Channels of the images of a folder: 1 (grey) or 3 (RGB), by default 3.")
    classes: str | None = Field(None, description="Text file with the sub-folders of data in the classifier's order, one a line.")
    labels: str | None = Field(None, description="Labels for a .npy file: another .npy file, of integers.")
    compare_labels: bool = Field(
        True, description="Compare with the labels of the images too, which must be the classifier's classes."
    )
    keep: int = Field(16, ge=0, description="Store the reconstructions of this many originals, the first ones.")
    chunk: int | None = Field(
        None, ge=1, description="Originals in a task, which is stored as a whole; by default 20, or 50 for more than 1000 items."
    )
    seed: int = Field(0, ge=0, description="Seed of all random numbers.")

    def experiment(self, originals: str | None = None) -> Experiment:
        """The experiment that these options describe. `originals`: folder in which generated originals are kept.

        Raises
        ------
        ValueError
            For options that do not fit together, and for the reasons of `Experiment.from_dict`.
        """
        from uturn.core.experiment import Experiment
        from uturn.networks.images.conditions import read_prompts

        prompts = read_prompts(self.prompt or "").rows
        if prompts is not None and len(prompts) != self.items:
            raise ValueError(
                f"prompt = {shown(self.prompt)}: the file has {len(prompts)} prompts for items = {self.items}; expected one line "
                f"for each item"
            )
        return Experiment.from_dict(
            {
                "seed": self.seed,
                "items": self.items,
                "trajectories": self.trajectories,
                "clones": self.clones,
                # A killed run loses its unfinished tasks, and each task is a file for every variable: small runs get small tasks,
                # large runs fewer files.
                "chunk": self.chunk or (20 if self.items <= 1000 else 50),
                "source": self._source(originals),
                "corruption": {"type": "diffusion", "noise": noise_levels(self.levels, self.steps)},
                "backward": {"type": "diffusion", **self._given(*DiffusionOptions.model_fields)},
                "probes": self._probes(),
            }
        )

    def _source(self, originals: str | None) -> dict[str, Any]:
        """Table of the source: the embedded images, images of the model, a .npy file or a folder."""
        table: dict[str, Any] = {"type": "images", "path": self.data}
        own: tuple[str, ...] = ("size", "channels", "classes")
        if self.data == "fashion_mnist":
            table, own = {"type": "fashion_mnist"}, ()
        elif self.data == "generated":
            table, own = {"type": "generated", **({} if originals is None else {"folder": originals})}, ()
        elif self.data.endswith(".npy"):
            table, own = {"type": "array", "path": self.data}, ("labels",)
        given = self._given("size", "channels", "classes", "labels")
        for name, value in given.items():
            if name not in own:
                kind = "a .npy file" if name == "labels" else "a folder of images"
                raise ValueError(f"{name} = {value!r}: goes with {kind}, but data = {self.data!r}; leave it out")
        return table | given

    def _probes(self) -> list[dict[str, Any]]:
        """Tables of the probes: the layers of each classifier, the perceptual distance, and the images that are kept."""
        generating = self.model if self.data == "generated" else None
        classifiers = self.classifiers or (["fashion_mnist"] if "fashion_mnist" in (self.data, generating) else [])
        if not classifiers:
            raise ValueError(
                f"classifiers: none given for data = {self.data!r}; expected at least one, e.g. 'torchvision:convnext_base'"
            )
        networks = len(classifiers) + (self.perceptual is not None)
        weights = self.weights or [""] * networks
        if len(weights) != networks:
            words = "classifiers" if self.perceptual is None else "networks (the perceptual one is the last)"
            raise ValueError(f"weights: {len(weights)} for {networks} {words}; expected one for each, or none at all")
        probes: list[dict[str, Any]] = [
            {
                "type": "network_layers",
                "classifier": classifier,
                **({"weights": chosen} if chosen else {}),
                **({"name": name} if name else {}),
                **({} if self.compare_labels else {"labels": False}),
                **(self._given("class_prompts") if classifier.startswith("clip:") else {}),
            }
            for name, classifier, chosen in zip(probe_names(classifiers), classifiers, weights, strict=False)
        ]
        if self.class_prompts is not None and not any(classifier.startswith("clip:") for classifier in classifiers):
            raise ValueError(f"class_prompts = {self.class_prompts!r}: goes with a classifier 'clip:FOLDER'; leave it out")
        probes += self._perceptual(weights[-1])
        if self.keep:
            probes.append({"type": "images", "first": self.keep})
        return probes

    def _perceptual(self, weights: str) -> list[dict[str, Any]]:
        """Table of the perceptual distance, if it is wanted."""
        linear = {} if self.perceptual_linear is None else {"linear": self.perceptual_linear}
        if self.perceptual is None:
            if linear:
                raise ValueError(
                    f"perceptual_linear = {self.perceptual_linear!r}: goes with a network `perceptual`; leave it out"
                )
            return []
        return [{"type": "perceptual", "classifier": self.perceptual, **({"weights": weights} if weights else {}), **linear}]


def image_experiment(
    model: str = "fashion_mnist", data: str = "fashion_mnist", classifiers: Sequence[str] = (), **options: Any
) -> Experiment:
    """The experiment of image options: U-turns of images by a diffusion model, compared in the layers of classifiers.

    Parameters
    ----------
    model, data, classifiers, **options
        The fields of `ImageOptions`.

    Raises
    ------
    ValueError
        For unknown options, values out of range, and options that do not fit together.
    """
    return ImageOptions.from_dict({"model": model, "data": data, "classifiers": classifiers, **options}).experiment()


def noise_levels(levels: int | list[float], steps: int) -> list[float]:
    """Noise levels t/T of a chain of `steps` reverse steps: that many evenly spaced levels k/steps, or the given list.

    >>> noise_levels(4, 50)
    [0.26, 0.5, 0.76, 1.0]
    """
    if isinstance(levels, list):
        return checked_noise(levels, 1).tolist()
    count = checked_integer("levels", levels, 1)
    if count > steps:
        raise ValueError(f"levels = {count}, but the chain has {steps} steps; take at most as many levels, or more steps")
    return [(2 * i * steps + count) // (2 * count) / steps for i in range(1, count + 1)]
