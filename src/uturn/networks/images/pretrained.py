"""Diffusion models: folders in diffusers' layout, checkpoints of guided-diffusion, and networks
from a user's function.

Only weights and plain JSON are read from files, nothing is unpickled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.core.files import checked_path
from uturn.core.imports import is_import_path
from uturn.corruption.schedulers import PipelineTimesteps, Scheduler, is_flow_match
from uturn.networks.images import pipelines
from uturn.networks.images.guided_diffusion import (
    CHECKPOINTS,
    guided_diffusion_scheduler,
    load_guided_diffusion,
)
from uturn.networks.images.model import ImageModel, Shape, shape_of
from uturn.networks.images.options import (
    UNCONDITIONAL,
    Conditioned,
    DenoiserOptions,
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


class _Options(DenoiserOptions):
    """The options of `load_pretrained` in the form that the readers use."""

    @cached_property
    def where(self) -> torch.device:
        return checked_device(self.device)

    @property
    def precision(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def placed(self, network: DenoisingNetwork) -> DenoisingNetwork:
        """The network on the device, without gradients."""
        placed: DenoisingNetwork = pipelines.for_inference(network, self.where, self.offload)
        return placed


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
        if self.condition.guidance == 1:
            return 1
        return 2

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


def load_pretrained(
    path: str | os.PathLike[str],
    **options: Any,  # the fields of DenoiserOptions, which are checked there
) -> ImageModel:
    """Read a diffusion model, in evaluation mode and without gradients.

    `path`: a folder written by `DiffusionPipeline.save_pretrained`, a hub id `owner/name`, a
    checkpoint of guided-diffusion (a file), or "module:function": a function without arguments that
    returns (module, scheduler) or a `uturn.networks.DenoiserModel`. ValueError if it is damaged,
    incomplete, or of a kind that cannot make U-turns. `options`: the fields of
    `uturn.networks.images.options.DenoiserOptions`, `dtype`, `device`, `condition`, `guidance`, ..
    """
    asked = _Options.model_validate(options)
    path = Path(checked_path("path", path))
    is_function = is_import_path(str(path))
    is_checkpoint = not is_function and path.is_file()
    expected = f"None: it is only for checkpoints of guided-diffusion, and {path} is none"
    expect(asked.preset is None or is_checkpoint, "preset", asked.preset, expected)
    if is_function:
        model = _read_own(path, asked)
    elif is_checkpoint:
        model = _read_checkpoint(path, asked)
    else:
        model = _read_folder(path, asked)
    if asked.compile:
        network = model.network.network  # type: ignore[attr-defined]  # a `DenoisingNetwork`
        if model.prompts is not None:
            network = network.network
        network.compile()  # in place, to keep the names of the weights
    return model


def _read_checkpoint(path: Path, options: _Options) -> ImageModel:
    kinds = f"a checkpoint ({', '.join(CHECKPOINTS)}), or a folder in diffusers' layout; {ADVICE}"
    expect(path.suffix in CHECKPOINTS, "the file", str(path), kinds)
    network = load_guided_diffusion(path, options.preset)
    pipelines.in_dtype(network.unet, options.precision)
    conditioned = conditioned_by(options, path, network.num_classes)
    return ImageModel(
        options.placed(DenoisingNetwork(network, options.precision, conditioned)),
        guided_diffusion_scheduler(**network.options),
        image_shape=shape_of(network.config),
        num_classes=conditioned.num_classes,
        device=options.where,
        description=f"guided-diffusion UNet, {conditioned.words}",
    )


def _read_own(path: Path, options: _Options) -> ImageModel:
    name = str(path)
    denoiser = denoiser_from_function(name)
    is_pair = denoiser.predicts == ""
    scheduler: Scheduler = denoiser.scheduler
    conversion = None
    shape = denoiser.image_shape
    if is_pair:
        shape = shape_of(getattr(denoiser.network, "config", None))
    else:
        conversion = Conversion(denoiser)
        scheduler = conversion.scheduler
    conditioned = conditioned_by(options, name, denoiser.num_classes, denoiser.null_class)
    network = OwnNetwork(
        denoiser.network, f"model = {name!r}", options.precision, learned_variance=is_pair
    )
    kind = getattr(denoiser.network, "__name__", type(denoiser.network).__name__)
    predicts = ""
    if denoiser.predicts:
        predicts = f"predicts {denoiser.predicts}, "
    model = ImageModel(
        options.placed(DenoisingNetwork(network, torch.float32, conditioned, conversion)),
        scheduler,
        image_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        num_classes=conditioned.num_classes,
        device=options.where,
        description=f"{kind}, {predicts}{conditioned.words}",
    )
    if model.image_shape is not None:
        _try(model, model.image_shape, options.where, name)
    return model


def _try(model: ImageModel, shape: Shape, device: torch.device, name: str) -> None:
    """ValueError if a call with two images of noise fails or gives numbers that are not finite."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *shape, generator=generator).to(device)
    middle = model.scheduler.config.num_train_timesteps // 2
    inputs = [noisy, torch.full((2,), middle, device=device)]
    if model.num_classes is not None:
        inputs.append(torch.tensor([0, model.num_classes - 1], device=device))
    with torch.inference_mode():
        output = model.network(*inputs)
    bad = int((~output.isfinite()).sum())
    where = f"model = {name!r}: output for two images of noise at timestep {middle}"
    remedy = "none; check its weights, and dtype"
    expect(not bad, f"{where}: numbers that are not finite", bad, remedy)


def _read_folder(path: Path, options: _Options) -> ImageModel:
    folder = pipelines.read_folder(path)
    if folder.pipeline:
        return _read_text_folder(path, folder, options)
    loaded = _pipeline_network(folder)
    conditioned = conditioned_by(options, path, loaded.num_classes, loaded.null_class)
    scheduler = pipelines.load_scheduler(folder.path, folder.parts["scheduler"])
    network = loaded.network
    channels = _checked_channels(path, network.config)
    shape = shape_of(network.config)
    image_shape = shape
    codec = None
    description = f"{type(network).__name__}, {conditioned.words}"
    autoencoder = next((part for part in ("vae", "vqvae") if part in folder.parts), None)
    if autoencoder is not None:
        codec = pipelines.load_codec(
            folder.path, autoencoder, folder.parts[autoencoder], options.precision, channels
        )
        image_shape = None if shape is None else codec.image_shape(shape)
        description += f", in the latents of {type(codec.network).__name__}"
        _unclip(scheduler)
        codec = pipelines.for_inference(codec, options.where)
    network = pipelines.in_dtype(network, options.precision)
    return ImageModel(
        options.placed(DenoisingNetwork(network, options.precision, conditioned)),
        scheduler,
        image_shape=image_shape,
        codec=codec,
        latent_shape=None if codec is None else shape,
        num_classes=conditioned.num_classes,
        device=options.where,
        description=description,
    )


def _unclip(scheduler: Any) -> None:  # noqa: ANN401 - diffusers' registration of options has no types
    """Turn off clipping to [-1, 1], which is wrong for latents, in this scheduler and in those
    made from its configuration.
    """
    if is_flow_match(scheduler):
        return
    # Options listed there would be reset to the default of the class.
    defaults = list(scheduler.config.get("_use_default_values", []))
    if "clip_sample" in defaults:
        defaults.remove("clip_sample")
    scheduler.register_to_config(clip_sample=False, _use_default_values=defaults)


def _checked_channels(path: Path, config: Any) -> int:  # noqa: ANN401 - a configuration of diffusers
    """The channels that a denoiser takes; ValueError if it reads more than the noisy image."""
    inputs = config.in_channels
    outputs = config.out_channels or inputs
    is_denoiser = outputs in (inputs, 2 * inputs)
    where = f"{path}: channels that the denoiser gives"
    known = f"as many as the {inputs} that it takes, or twice as many"
    expect(is_denoiser, where, outputs, f"{known}; others read more than the noisy image")
    return int(inputs)


def _read_text_folder(path: Path, folder: pipelines.Folder, options: _Options) -> ImageModel:
    """A text-conditioned model; texts are encoded before the denoiser is loaded, to save memory."""
    prompts = read_prompts(options.prompt or "")
    texts = list(prompts.texts)
    if options.guidance != 1:
        texts.append("")  # the null prompt comes last
    encoded = pipelines.encoded(folder, texts, options.where, options.precision, options.offload)
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
    latent_shape = pipelines.latents_of(network, folder.family, codec.factor, options.image_size)
    image_shape = codec.image_shape(latent_shape)
    _unclip(scheduler)
    scale = 1.0
    if takes_scale:
        scale = options.guidance
    network = pipelines.in_dtype(network, options.precision)
    denoiser = folder.family.network(network, encoded.tables, image_shape[1], scale)
    kind = folder.pipeline.removesuffix("Pipeline")
    autoencoder = type(codec.network).__name__
    _, height, width = latent_shape
    return ImageModel(
        options.placed(DenoisingNetwork(denoiser, options.precision, conditioned)),
        scheduler,
        image_shape=image_shape,
        codec=pipelines.for_inference(codec, options.where),
        latent_shape=latent_shape,
        num_classes=conditioned.num_classes,
        prompts=replace(prompts, encoders=encoded.digest),
        timesteps=PipelineTimesteps(folder.family.even_sigmas, (height // 2) * (width // 2)),
        device=options.where,
        description=f"{kind}, {conditioned.words}, in the latents of {autoencoder}",
    )


@dataclass(frozen=True)
class _PipelineNetwork:
    """The denoising network of a pipeline that is not conditioned on texts."""

    network: Any  # a model of diffusers
    num_classes: int | None = None
    """None without classes."""
    null_class: int | None = None
    """None if the files do not declare one."""


def _pipeline_network(folder: pipelines.Folder) -> _PipelineNetwork:
    network = pipelines.load_part(folder.path, folder.denoiser, folder.parts[folder.denoiser])
    config = network.config
    kind = type(network).__name__  # the former class name of DiT is shared with other models
    if kind == "DiTTransformer2DModel":
        # The null class is the last embedding.
        return _PipelineNetwork(network, config.num_embeds_ada_norm, config.num_embeds_ada_norm)
    known = "UNet2DModel or DiTTransformer2DModel"
    expect(kind == "UNet2DModel", f"{folder.path}: the denoiser", kind, known)
    if network.class_embedding is None:
        return _PipelineNetwork(network)
    embedding = config.class_embed_type
    by_number = embedding != "identity" and config.num_class_embeds is not None
    known = "classes by number, with num_class_embeds"
    expect(by_number, f"{folder.path}: class_embed_type", embedding, known)
    return _PipelineNetwork(network, int(config.num_class_embeds))
