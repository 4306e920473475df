"""Diffusion models of images as backwards, batch by batch or through a queue that keeps the
network's batches full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from uturn.backward.queue import Queued
from uturn.backward.reverse_diffusion import ReverseDiffusion, Work
from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import checked_path, expect
from uturn.core.findings import Finding
from uturn.core.imports import is_import_path
from uturn.core.pieces import Pieces
from uturn.core.protocols import Corruption, Noisy, Source, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption.diffusion import ForwardDiffusion, check_diffusion
from uturn.networks.images.options import DiffusionOptions
from uturn.sources.fashion_mnist import generator_folder
from uturn.sources.images import ArraySource, NoisyImages, doubtful_range

if TYPE_CHECKING:
    from uturn.networks.images.pretrained import DenoisingNetwork


class DiffusionModel(DiffusionOptions, Spec, Queued):
    """A diffusion model, sampled with one of diffusers' schedulers (`ReverseDiffusion`).

    Options: those of `uturn.networks.images.options.DiffusionOptions`. `model`: "fashion_mnist", a
    folder in diffusers' layout or the name of one on a hub, a guided-diffusion checkpoint with its
    `preset` (`networks/images/guided_diffusion.py`), or "module:function"
    (`uturn.networks.DenoiserModel`). `steps`: reverse steps of the whole chain; the noise levels of
    the experiment are fractions t/T of it. `scheduler`: "ddpm", "ancestral", .., or "stored".
    `timestep_spacing` as in diffusers ("linspace" by default, "trailing" for DDIM).

    Reconstructions: float32 (items, draws, channels, height, width) in [-1, 1].
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    undoes: ClassVar[tuple[str, ...]] = ("diffusion",)
    adds_trajectories: ClassVar[bool] = True
    type: Literal["diffusion"] = "diffusion"

    @property
    def wants_processes(self) -> bool:
        """True on the CPU, where small convolutions scale poorly across threads."""
        return _reverse_diffusion(self).device.type == "cpu"

    def reverse(self) -> ReverseDiffusion:
        """The model with its sampler, loaded on first use."""
        return _reverse_diffusion(self)

    def works(self, noisy: Noisy, streams: Streams, clones: int) -> Iterator[Work]:
        reverse = _reverse_diffusion(self)
        step = reverse.forward.step_of(streams.noise)
        labels = self.labels_of(noisy, streams, clones)
        for row, key in enumerate(streams.keys(Purpose.RECONSTRUCTION, clones)):
            label = None if labels is None else int(labels[row])
            yield Work(noisy.values[row // clones], step, key, label)

    def queue(self, works: Iterator[Work]) -> Iterator[tuple[Any, np.ndarray]]:
        return _reverse_diffusion(self).queue(works)

    def check(self, source: Source, corruption: Corruption) -> None:
        check_diffusion(corruption)

    def forward_process(
        self, source: Source, corruption: Corruption | None = None
    ) -> ForwardDiffusion:
        """The forward process of the model; ValueError if the images or labels of the source do
        not fit the model.
        """
        self.check_source(source)
        return _reverse_diffusion(self).forward

    def check_source(self, source: Source) -> None:
        reverse = _reverse_diffusion(self)
        shape = tuple(source.image_shape() or ())
        expected = reverse.image_shape
        fits = expected is None or tuple(expected) == shape
        remedy = "give the source its `channels` and `size`, or the model `image_size`"
        takes = f"what the model {self.model!r} takes, {expected}; {remedy}"
        expect(fits, "images: (channels, height, width)", shape, takes)
        expects = None if reverse.prompts is not None else reverse.num_classes
        labels = None if expects is None else source.num_labels()
        where = f"classes of the images, on which the model {self.model!r} is conditioned,"
        remedy = "give the source labels in the model's order, by `classes`"
        expect(labels == expects, where, labels, f"{expects}; {remedy}")

    def labels_of(self, noisy: Any, streams: Streams, clones: int = 1) -> np.ndarray | None:
        """The true class of each reconstruction, or the number of its prompt; None for models
        that take neither.
        """
        reverse = _reverse_diffusion(self)
        if reverse.num_classes is None:
            return None
        if reverse.prompts is not None:
            return np.repeat(reverse.prompts.rows_of(streams.items), streams.count * clones)
        labels = getattr(noisy, "labels", None)
        labels = np.full(len(noisy.values), -1) if labels is None else labels
        wrong = (labels < 0) | (labels >= reverse.num_classes)
        where = f"labels of the images, on which the model {self.model!r} is conditioned,"
        known = f"0 .. {reverse.num_classes - 1}, in the model's order"
        expect(not wrong.any(), where, labels[wrong], known)
        return np.repeat(labels, clones)

    def model_check(self, source: Any, originals: Sequence[Any]) -> list[Finding]:
        from uturn.networks.model_check import is_checked

        reverse = _reverse_diffusion(self)
        images = np.concatenate([block.data for block in originals])
        findings = []
        if is_checked(reverse.model, reverse.device):
            for finding in self._findings(reverse, images, originals):
                words = f"the model {self.model!r} {finding.words}"
                findings.append(finding._replace(words=words))
        # The range of an array was checked when it was read.
        doubt = "" if isinstance(source, ArraySource) else doubtful_range(images)
        if doubt:
            findings.append(Finding(f"the source {source!r} gives {doubt}"))
        return findings

    def _findings(
        self, reverse: ReverseDiffusion, images: np.ndarray, originals: Sequence[Any]
    ) -> list[Finding]:
        """What the check of the network on the images of originals has found."""
        import torch

        from uturn.networks.model_check import check_denoiser

        unlabelled = [np.full(len(block.items), -1) for block in originals]
        labels = [
            getattr(block, "labels", none)
            for block, none in zip(originals, unlabelled, strict=True)
        ]
        noisy = NoisyImages(images, np.zeros(len(images)), labels=np.concatenate(labels))
        items = np.concatenate([block.items for block in originals])
        rows = self.labels_of(noisy, Streams(0, items, 0.0))
        pieces = Pieces(reverse.device, reverse.batch_size)
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            clean = torch.from_numpy(reverse.forward.clean(images)).to(reverse.device)
            classes = None if rows is None else torch.from_numpy(rows).to(reverse.device)
            network = cast("DenoisingNetwork", reverse.model)
            scheduler = reverse.forward.scheduler
            half = self.dtype != "float32"
            return list(check_denoiser(network, scheduler, clean, classes, pieces, half))

    def chain(self, steps: int) -> DiffusionModel:
        """The model with another number of reverse steps."""
        return self.model_copy(update={"steps": steps})

    def generate(self, keys: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Images of the model, float32 (batch, channels, height, width), from pure noise, one
        for each random stream.
        """
        return _reverse_diffusion(self).generate(keys, labels)

    def generated_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images of the model."""
        reverse = _reverse_diffusion(self)
        shape = reverse.image_shape
        is_known = shape and reverse.latent_shape
        expect(is_known, "model", self.model, "one that says how large its images are")
        return shape  # type: ignore[return-value]

    def num_labels(self) -> int | None:
        """Number of classes of the model's label input; None for models without labels."""
        reverse = _reverse_diffusion(self)
        return None if reverse.prompts is not None else reverse.num_classes

    def generated_labels(self, items: np.ndarray) -> np.ndarray | None:
        """The conditions of drawn originals: classes, or numbers of prompts, in turn."""
        reverse = _reverse_diffusion(self)
        if reverse.num_classes is None:
            return None
        if reverse.prompts is None:
            return items % reverse.num_classes
        return reverse.prompts.rows_of(items % len(reverse.prompts.rows or (0,)))

    def images_together(self) -> int:
        return _reverse_diffusion(self).batch_size

    def files(self) -> list[Path]:
        """The checkpoint, or the files of the model's folder and of the folders in it; and the
        file of prompts.
        """
        path = Path(checked_path("model", self.model))
        prompts = [Path(self.prompt)] if self.prompt and self.prompt.endswith(".txt") else []
        is_folder = (path / "model_index.json").is_file()
        parts = sorted([*path.glob("*"), *path.glob("*/*")]) if is_folder else [path]
        return parts + prompts

    def fingerprint(self) -> str:
        return _reverse_diffusion(self).fingerprint()

    def own_code(self) -> Any:
        from uturn.networks.images.own_denoisers import denoiser_function

        return denoiser_function(self.model) if is_import_path(self.model) else None

    def describe(self) -> str:
        reverse = _reverse_diffusion(self)
        is_ancestral = type(reverse.forward.scheduler).__name__ == "AncestralScheduler"
        # For flow matching, ddpm is the ancestral step.
        scheduler = "ancestral" if is_ancestral else self.scheduler
        draws = "draws noise" if reverse.is_stochastic else "deterministic"
        guided = ""
        if self.guidance != 1:
            guided = f"; guidance {self.guidance:g}: not a draw from the posterior"
        return f"{reverse.description}; {scheduler}, {self.steps} steps, {draws}{guided}"


@cached_while_unchanged(maxsize=2)
def _reverse_diffusion(spec: DiffusionModel) -> ReverseDiffusion:
    path = generator_folder() if spec.model == "fashion_mnist" else spec.model
    options = spec.model_dump(exclude={"type", "model", "scheduler", "steps"})
    return ReverseDiffusion.from_pretrained(path, spec.scheduler, spec.steps, **options)
