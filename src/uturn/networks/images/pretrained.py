"""Diffusion models: folders in diffusers' layout, checkpoints of guided-diffusion, and networks
from a user's function.

Only weights and plain JSON are read from files, nothing is unpickled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uturn.core.checks import checked_path, expect
from uturn.core.imports import is_import_path
from uturn.corruption.schedulers import PipelineTimesteps, is_flow_match
from uturn.networks.images import pipelines
from uturn.networks.images.guided_diffusion import (
    CHECKPOINTS,
    guided_diffusion_scheduler,
    load_guided_diffusion,
)
from uturn.networks.images.options import (
    UNCONDITIONAL,
    Conditioned,
    DenoiserOptions,
    Prompts,
    conditioned_by,
    prompted,
    read_prompts,
)
from uturn.networks.images.own_denoisers import (
    ADVICE,
    Conversion,
    OwnNetwork,
    denoiser_from_function,
)
from uturn.networks.libraries import checked_device


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A diffusion model with its scheduler, its codec and its shapes."""

    model: Any
    """`DenoisingNetwork`, called as `model(noisy, timestep)`, or with labels if `num_classes` is
    not None.
    """
    scheduler: Any
    """The scheduler stored with the model: noise schedule and prediction type."""
    codec: Any | None = None
    """`Codec`, which maps between images and latents, for models that denoise latents."""
    image_shape: tuple[int, int, int] | None
    latent_shape: tuple[int, int, int] | None = None
    """(channels, height, width) of the images and, with a codec, of the latents; None if the
    files do not state them.
    """
    num_classes: int | None
    """Number of classes, if the model is run with the true label; number of prompts, if there
    are several or guidance is used.
    """
    description: str
    device: torch.device
    prompts: Prompts | None = None
    """The prompts of a text-conditioned model; a label is then the number of a prompt."""
    timesteps: PipelineTimesteps | None = None
    """The pipeline's own rule for timesteps, if it has one."""


class _Options(DenoiserOptions):
    """The options of `load_pretrained` in the form used by the readers."""

    @cached_property
    def where(self) -> torch.device:
        return checked_device(self.device)

    @property
    def precision(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def loaded(self, network: DenoisingNetwork, **about: Any) -> Pretrained:
        model = pipelines.for_inference(network, self.where, self.offload)
        return Pretrained(
            model=model, num_classes=network.condition.num_classes, device=self.where, **about
        )


class DenoisingNetwork(nn.Module):
    """A denoising network that computes in its own precision, with float32 inputs and outputs.

    `conversion` converts between the network and the scheduler if their prediction types differ. A
    guided prediction (arXiv:2207.12598) is null + guidance (conditioned - null); a learned variance
    is that of the conditioned one. All types of prediction are linear in x_0 given x_t, so guidance
    is the same for each.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        condition: Conditioned = UNCONDITIONAL,
        conversion: Conversion | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.condition = condition
        self.conversion = conversion

    @property
    def rows_of_an_image(self) -> int:
        """Rows in the batch of the network for every image."""
        return 1 if self.condition.guidance == 1 else 2

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prediction (batch, channels or twice as many, height, width) for noisy (batch, channels,
        height, width).

        timestep: (batch,), not rounded to the network's precision. labels: int64 (batch,), if it is
        conditioned on labels.
        """
        if self.conversion is None:
            return self._guided(noisy, timestep, labels)
        x, time = self.conversion.inputs(noisy, timestep)
        return self.conversion.output(self._guided(x, time, labels), noisy, timestep)

    def _guided(
        self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """The output of the network for its own kind of input, guided if there is a scale."""
        null_class = self.condition.null_class
        if null_class is None:
            return self.called(noisy, timestep, labels)
        null = torch.full((len(noisy),), null_class, device=noisy.device)
        if labels is None:
            return self.called(noisy, timestep, null)
        both = self.called(
            torch.cat([noisy, noisy]), torch.cat([timestep, timestep]), torch.cat([labels, null])
        )
        conditioned, blind = both.chunk(2)
        channels = noisy.shape[1]
        variance = conditioned[:, channels:]
        conditioned = conditioned[:, :channels]
        blind = blind[:, :channels]
        guided = blind + self.condition.guidance * (conditioned - blind)
        return torch.cat([guided, variance], dim=1)

    def called(
        self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The unconverted output of the network for its own kind of input, without guidance."""
        condition = () if labels is None else (labels,)
        output = self.network(noisy.to(self.dtype), timestep, *condition)
        prediction: torch.Tensor = getattr(output, "sample", output).float()
        return prediction


def load_pretrained(path: str | os.PathLike[str], **options: Any) -> Pretrained:
    """Read a diffusion model, in evaluation mode and without gradients.

    `path`: a folder written by `DiffusionPipeline.save_pretrained`, a hub id `owner/name`, a
    checkpoint of guided-diffusion (a file), or "module:function": a function without arguments that
    returns (module, scheduler) or a `uturn.networks.DenoiserModel`. ValueError if it is damaged,
    incomplete, or of a kind that cannot make U-turns. `options`: the fields of
    `uturn.networks.images.options.DenoiserOptions`, `dtype`, `device`, `condition`, `guidance`, ..
    """
    asked = _Options.model_validate(options)
    path = Path(checked_path("path", path))
    read = (
        _read_own
        if is_import_path(str(path))
        else _read_checkpoint
        if path.is_file()
        else _read_folder
    )
    is_used = asked.preset is None or read is _read_checkpoint
    expect(
        is_used,
        "preset",
        asked.preset,
        f"None: it is only for checkpoints of guided-diffusion, and {path} is none",
    )
    model = read(path, asked)
    if asked.compile:
        network = model.model.network if model.prompts is None else model.model.network.network
        network.compile()  # in place, to keep the names of the weights
    return model


def _read_checkpoint(path: Path, options: _Options) -> Pretrained:
    kinds = f"a checkpoint ({', '.join(CHECKPOINTS)}), or a folder in diffusers' layout; {ADVICE}"
    expect(path.suffix in CHECKPOINTS, "the file", str(path), kinds)
    network = load_guided_diffusion(path, options.preset)
    pipelines.in_dtype(network.unet, options.precision)
    conditioned = conditioned_by(options, path, network.num_classes)
    return options.loaded(
        DenoisingNetwork(network, options.precision, conditioned),
        scheduler=guided_diffusion_scheduler(**network.options),
        image_shape=shape_of(network.config),
        description=f"guided-diffusion UNet, {conditioned.words}",
    )


def _read_own(path: Path, options: _Options) -> Pretrained:
    name = str(path)
    denoiser, is_pair = denoiser_from_function(name)
    conversion = None if is_pair else Conversion(denoiser)
    shape = shape_of(getattr(denoiser.network, "config", None)) if is_pair else denoiser.image_shape
    kind = getattr(denoiser.network, "__name__", type(denoiser.network).__name__)
    conditioned = conditioned_by(options, name, denoiser.num_classes, denoiser.null_class)
    network = OwnNetwork(
        denoiser.network, f"model = {name!r}", options.precision, learned_variance=is_pair
    )
    predicts = f"predicts {denoiser.predicts}, " if denoiser.predicts else ""
    loaded = options.loaded(
        DenoisingNetwork(network, torch.float32, conditioned, conversion),
        scheduler=denoiser.scheduler if conversion is None else conversion.scheduler,
        image_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        description=f"{kind}, {predicts}{conditioned.words}",
    )
    if loaded.image_shape is not None:
        _try(loaded, name)
    return loaded


def _try(loaded: Pretrained, name: str) -> None:
    """ValueError if a call with two images of noise fails or returns numbers that are not
    finite.
    """
    generator, device = torch.Generator().manual_seed(0), loaded.device
    noisy = torch.randn(2, *(loaded.image_shape or ()), generator=generator).to(device)
    timestep = torch.full((2,), loaded.scheduler.config.num_train_timesteps // 2, device=device)
    labels = (
        ()
        if loaded.num_classes is None
        else (torch.tensor([0, loaded.num_classes - 1], device=device),)
    )
    with torch.inference_mode():
        output = loaded.model(noisy, timestep, *labels)
    bad, at = (
        int((~output.isfinite()).sum()),
        f"output for two images of noise at timestep {int(timestep[0])}",
    )
    expect(
        not bad,
        f"model = {name!r}: {at}: numbers that are not finite",
        bad,
        "none; check its weights, and dtype",
    )


def _read_folder(path: Path, options: _Options) -> Pretrained:
    folder = pipelines.read_folder(path)
    if folder.pipeline:
        return _read_text_folder(path, folder, options)
    network, classes, null_class = _denoiser(folder)
    conditioned = conditioned_by(options, path, classes, null_class)
    scheduler = pipelines.load_scheduler(folder.path, folder.parts["scheduler"])
    latent = next((name for name in ("vae", "vqvae") if name in folder.parts), None)
    inputs, shape = _checked_channels(path, network.config), shape_of(network.config)
    codec, image_shape, description = None, shape, f"{type(network).__name__}, {conditioned.words}"
    if latent is not None:
        codec = pipelines.load_codec(
            folder.path, latent, folder.parts[latent], options.precision, inputs
        )
        image_shape = (
            None
            if shape is None
            else (codec.image_channels, shape[1] * codec.factor, shape[2] * codec.factor)
        )
        description += f", in the latents of {type(codec.network).__name__}"
        _unclip(scheduler)
        codec = pipelines.for_inference(codec, options.where)
    return options.loaded(
        DenoisingNetwork(
            pipelines.in_dtype(network, options.precision), options.precision, conditioned
        ),
        scheduler=scheduler,
        codec=codec,
        image_shape=image_shape,
        latent_shape=None if codec is None else shape,
        description=description,
    )


def _unclip(scheduler: Any) -> None:
    """Turn off clipping to [-1, 1], which is wrong for latents, in this scheduler and in those
    made from its configuration.
    """
    if is_flow_match(scheduler):
        return
    # Options listed there would be reset to the default of the class.
    defaults = [
        name for name in scheduler.config.get("_use_default_values", []) if name != "clip_sample"
    ]
    scheduler.register_to_config(clip_sample=False, _use_default_values=defaults)


def _checked_channels(path: Path, config: Any) -> int:
    """The channels that a denoiser takes; ValueError if it reads more than the noisy image."""
    inputs, outputs = config.in_channels, config.out_channels or config.in_channels
    expected = (
        f"as many as the {inputs} that it takes, or twice as many; others read more than the noisy"
        " image"
    )
    expect(
        outputs in (inputs, 2 * inputs),
        f"{path}: channels that the denoiser gives",
        outputs,
        expected,
    )
    return int(inputs)


def _read_text_folder(path: Path, folder: pipelines.Folder, options: _Options) -> Pretrained:
    """A text-conditioned model; texts are encoded before the denoiser is loaded, to save memory."""
    prompts = read_prompts(options.prompt or "")
    # The null prompt comes last.
    wanted = [*prompts.texts, *([""] if options.guidance != 1 else [])]
    tables, encoders = pipelines.encoded(
        folder, wanted, options.where, options.precision, options.offload
    )
    network = pipelines.load_part(
        folder.path, folder.denoiser, folder.parts[folder.denoiser], options.precision
    )
    scheduler = pipelines.load_scheduler(folder.path, folder.parts["scheduler"])
    _checked_channels(path, network.config)
    distilled = pipelines.distillation(network, scheduler, path, folder.family)
    takes_scale = pipelines.takes_guidance(network)
    conditioned = prompted(options, path, len(prompts.texts), prompts.words, distilled, takes_scale)
    channels = pipelines.latent_channels(network, folder.family)
    codec = pipelines.load_codec(
        folder.path, "vae", folder.parts["vae"], options.precision, channels
    )
    shape = pipelines.latents_of(network, folder.family, codec.factor, options.image_size)
    _unclip(scheduler)
    size = shape[1] * codec.factor
    scale = options.guidance if takes_scale else 1.0
    network = pipelines.in_dtype(network, options.precision)
    denoiser = folder.family.network(network, tables, size, scale)
    kind = folder.pipeline.removesuffix("Pipeline")
    return options.loaded(
        DenoisingNetwork(denoiser, options.precision, conditioned),
        scheduler=scheduler,
        codec=pipelines.for_inference(codec, options.where),
        image_shape=(codec.image_channels, size, size),
        latent_shape=shape,
        description=(
            f"{kind}, {conditioned.words}, in the latents of {type(codec.network).__name__}"
        ),
        prompts=prompts._replace(encoders=encoders),
        timesteps=PipelineTimesteps(folder.family.even_sigmas, (shape[1] // 2) * (shape[2] // 2)),
    )


def _denoiser(folder: pipelines.Folder) -> tuple[Any, int | None, int | None]:
    """The network, its number of classes (None for no classes), and its null class if the files
    declare one.
    """
    network = pipelines.load_part(folder.path, folder.denoiser, folder.parts[folder.denoiser])
    config = network.config
    if type(network).__name__ == "DiTTransformer2DModel":
        # The null class is the last embedding.
        return network, config.num_embeds_ada_norm, config.num_embeds_ada_norm
    kind = type(network).__name__  # the former class name is shared with other models
    expect(
        kind == "UNet2DModel",
        f"{folder.path}: the denoiser",
        kind,
        "UNet2DModel or DiTTransformer2DModel",
    )
    if network.class_embedding is None:
        return network, None, None
    by_number = config.class_embed_type != "identity" and config.num_class_embeds is not None
    expect(
        by_number,
        f"{folder.path}: class_embed_type",
        config.class_embed_type,
        "classes by number, with num_class_embeds",
    )
    return network, int(config.num_class_embeds), None


def shape_of(config: Any) -> tuple[int, int, int] | None:
    """(channels, height, width) that a configuration of a network states, if it does."""
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)
