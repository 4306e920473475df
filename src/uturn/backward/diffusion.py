"""Diffusion models of images as backwards.

The noise schedule belongs to the model. In a spec the corruption is `Diffusion` without a schedule;
`DiffusionModel.forward_process` replaces it by the `ForwardDiffusion` of the scheduler with which the
model is sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np

from uturn.backward.queue import Queued
from uturn.backward.reverse_diffusion import ImageWork, ReverseDiffusion
from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.files import checked_path
from uturn.core.findings import Finding
from uturn.core.imports import is_import_path
from uturn.core.prior import Prior
from uturn.core.protocols import Corruption, Noisy, Originals, Source, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption.diffusion import ForwardDiffusion, check_diffusion
from uturn.corruption.pieces import Pieces
from uturn.corruption.schedulers import AncestralScheduler
from uturn.networks.images.options import DiffusionOptions
from uturn.sources.fashion_mnist import generator_folder
from uturn.sources.images import ArraySource, NoisyImages, doubtful_range

if TYPE_CHECKING:
    from uturn.networks.images.pretrained import DenoisingNetwork


class DiffusionModel(DiffusionOptions, Spec, Queued[Noisy, ImageWork]):
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
        return self.reverse().device.type == "cpu"

    @property
    def data_in_call(self) -> int | None:
        return self.batch_size if isinstance(self.batch_size, int) else None

    def reverse(self) -> ReverseDiffusion:
        """The model with its sampler, loaded on first use."""
        return _reverse_diffusion(self)

    def works(self, noisy: Noisy, streams: Streams, clones: int) -> Iterator[ImageWork]:
        step = self.reverse().forward.step_of(streams.noise)
        labels = self.labels_of(noisy, streams, clones)
        for row, key in enumerate(streams.keys(Purpose.RECONSTRUCTION, clones)):
            label = None if labels is None else int(labels[row])
            yield ImageWork(noisy.values[row // clones], step, key, label)

    def queue(self, works: Iterator[ImageWork]) -> Iterator[tuple[object, np.ndarray]]:
        return self.reverse().queue(works)

    def check(self, source: Source, corruption: Corruption) -> None:
        check_diffusion(corruption)

    def forward_process(
        self, source: Source, corruption: Corruption | None = None
    ) -> ForwardDiffusion:
        """The forward process of the model; ValueError if the images or labels of the source do
        not fit the model.
        """
        self.check_source(source)
        return self.reverse().forward

    def check_source(self, source: Source) -> None:
        """ValueError if the images or labels of the source do not fit the model."""
        shape = tuple(source.image_shape() or ())
        expected = self.reverse().model.image_shape
        fits = expected is None or expected == shape
        remedy = "give the source its `channels` and `size`, or the model `image_size`"
        takes = f"what the model {self.model!r} takes, {expected}; {remedy}"
        expect(fits, "images: (channels, height, width)", shape, takes)
        classes = self.num_labels()
        labels = None if classes is None else source.num_labels()
        where = f"classes of the images, on which the model {self.model!r} is conditioned,"
        remedy = "give the source labels in the model's order, by `classes`"
        expect(labels == classes, where, labels, f"{classes}; {remedy}")

    def labels_of(self, noisy: Noisy, streams: Streams, clones: int = 1) -> np.ndarray | None:
        """The true class of each reconstruction, or the number of its prompt; None for models
        that take neither.
        """
        model = self.reverse().model
        if model.num_classes is None:
            return None
        if model.prompts is not None:
            rows = model.prompts.rows_of(streams.items)
            return np.repeat(rows, streams.count * clones)
        labels = getattr(noisy, "labels", None)
        if labels is None:
            labels = _no_labels(len(noisy.values))
        wrong = (labels < 0) | (labels >= model.num_classes)
        where = f"labels of the images, on which the model {self.model!r} is conditioned,"
        known = f"0 .. {model.num_classes - 1}, in the model's order"
        expect(not wrong.any(), where, labels[wrong], known)
        return np.repeat(labels, clones)

    def model_check(self, source: Source, originals: Sequence[Originals]) -> list[Finding]:
        """What seems wrong in the network, from its predictions of originals, and in these."""
        from uturn.networks.model_check import is_checked

        reverse = self.reverse()
        images = np.concatenate([block.data for block in originals])
        findings = []
        if is_checked(reverse.model.network, reverse.device):
            for finding in self._findings(reverse, images, originals):
                words = f"the model {self.model!r} {finding.words}"
                findings.append(finding._replace(words=words))
        # The range of an array was checked when it was read.
        doubt = "" if isinstance(source, ArraySource) else doubtful_range(images)
        if doubt:
            findings.append(Finding(f"the source {source!r} gives {doubt}"))
        return findings

    def _findings(
        self, reverse: ReverseDiffusion, images: np.ndarray, originals: Sequence[Originals]
    ) -> list[Finding]:
        """What the check of the network on the images of originals has found."""
        import torch

        from uturn.networks.model_check import check_denoiser

        labels = [getattr(block, "labels", _no_labels(len(block.items))) for block in originals]
        noisy = NoisyImages(images, np.zeros(len(images)), labels=np.concatenate(labels))
        items = np.concatenate([block.items for block in originals])
        rows = self.labels_of(noisy, Streams(0, items, 0.0))
        network = cast("DenoisingNetwork", reverse.model.network)
        scheduler = reverse.forward.scheduler
        pieces = Pieces(reverse.device, reverse.batch_size)
        is_half = self.dtype != "float32"
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            clean = torch.from_numpy(reverse.forward.clean(images)).to(reverse.device)
            classes = None if rows is None else torch.from_numpy(rows).to(reverse.device)
            return list(check_denoiser(network, scheduler, clean, classes, pieces, is_half))

    def num_labels(self) -> int | None:
        """Number of classes of the model's label input; None for models without labels."""
        model = self.reverse().model
        return model.num_classes if model.prompts is None else None

    def prior(self, steps: int | None = None) -> DiffusionPrior:
        """The images that the model draws, by all its reverse steps or by another number of them."""
        if steps is None:
            return DiffusionPrior(self)
        return DiffusionPrior(self.model_copy(update={"steps": steps}))

    def files(self) -> list[Path]:
        """The checkpoint, or the files of the model's folder and of the folders in it; and the
        file of prompts.
        """
        path = Path(checked_path("model", self.model))
        files = [path]
        if (path / "model_index.json").is_file():
            files = sorted([*path.glob("*"), *path.glob("*/*")])
        if self.prompt and self.prompt.endswith(".txt"):
            files.append(Path(self.prompt))
        return files

    def fingerprint(self) -> str:
        return self.reverse().fingerprint()

    def own_code(self) -> object:
        from uturn.networks.images.own_denoisers import denoiser_function

        return denoiser_function(self.model) if is_import_path(self.model) else None

    def describe(self) -> str:
        """The model and its sampler in one line."""
        reverse = self.reverse()
        scheduler = self.scheduler
        if isinstance(reverse.forward.scheduler, AncestralScheduler):
            scheduler = "ancestral"  # for flow matching also if it is called "ddpm"
        draws = "draws noise" if reverse.is_stochastic else "deterministic"
        text = f"{reverse.model.description}; {scheduler}, {self.steps} steps, {draws}"
        if self.guidance != 1:
            text += f"; guidance {self.guidance:g}: not a draw from the posterior"
        return text


def _no_labels(count: int) -> np.ndarray:
    """Labels of images without labels: -1."""
    return np.full(count, -1)


@dataclass(frozen=True)
class DiffusionPrior(Prior):
    """The images that a diffusion model draws from pure noise, by all its reverse steps."""

    model: DiffusionModel

    @property
    def fingerprint(self) -> str:
        only_execution = set(self.model.execution)
        options = self.model.model_dump(mode="json", exclude_defaults=True, exclude=only_execution)
        identity = f"{self.model.fingerprint()} {json.dumps(options, sort_keys=True)}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int, int]:
        model = self.model.reverse().model
        expected = "one that says how large its images are"
        expect(model.image_shape and model.state_shape, "model", self.model.model, expected)
        return model.image_shape  # type: ignore[return-value]  # checked in the line before

    @property
    def num_labels(self) -> int | None:
        return self.model.num_labels()

    @property
    def batch_size(self) -> int:
        return 1 if self.model.wants_processes else self.model.reverse().batch_size

    def draw(self, keys: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.model.reverse().generate(keys, self.conditions(items))

    def conditions(self, items: np.ndarray) -> np.ndarray | None:
        """What each image is conditioned on, in turn: its class, or the number of its prompt. None
        for a model without conditions.
        """
        model = self.model.reverse().model
        if model.num_classes is None:
            return None
        if model.prompts is None:
            return items % model.num_classes
        num_rows = len(model.prompts.rows or (0,))
        return model.prompts.rows_of(items % num_rows)


@cached_while_unchanged(maxsize=2)
def _reverse_diffusion(spec: DiffusionModel) -> ReverseDiffusion:
    path = generator_folder() if spec.model == "fashion_mnist" else spec.model
    options = spec.model_dump(exclude={"type", "model", "scheduler", "steps"})
    return ReverseDiffusion.from_pretrained(path, spec.scheduler, spec.steps, **options)
