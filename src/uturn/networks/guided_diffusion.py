"""Checkpoints of OpenAI's guided-diffusion (ADM, arXiv:2105.05233) as networks that diffusers' schedulers can drive.

The weights are given to diffusers' `UNet2DModel`, which computes the same function once its settings are right. Names and shapes
of the weights tell its architecture. They do not tell the noise schedule, the number of attention heads, their order and the
image size: these come from a preset, or from the options the original code was called with.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn

from uturn.checks import one_line
from uturn.files import whole_folder

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def _published(image_size: int, channel_mult: tuple[float, ...], **options: Any) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "channel_mult": channel_mult,
        "num_channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": (32, 16, 8),
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "learn_sigma": True,
        "noise_schedule": "linear",
        **options,
    }


_UNCONDITIONAL_256 = _published(256, (1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=False)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "64x64_diffusion": _published(
        64,
        (1, 2, 3, 4),
        num_channels=192,
        num_res_blocks=3,
        num_head_channels=64,
        use_new_attention_order=True,
        noise_schedule="cosine",
        class_cond=True,
    ),
    "128x128_diffusion": _published(128, (1, 1, 2, 3, 4), num_heads=4, class_cond=True),
    "256x256_diffusion": _published(256, (1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=True),
    "256x256_diffusion_uncond": _UNCONDITIONAL_256,
    "512x512_diffusion": _published(512, (0.5, 1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=True),
    "lsun_bedroom": _UNCONDITIONAL_256,
    "lsun_cat": _UNCONDITIONAL_256,
    "lsun_horse": _UNCONDITIONAL_256,
    "lsun_horse_nodropout": _UNCONDITIONAL_256,
}
"""Options of the published models, named as their files (the README of openai/guided-diffusion)."""


class GuidedDiffusionUNet(nn.Module):
    """A guided-diffusion network, called as the original: `model(noisy, timestep)`, or `model(noisy, timestep, class_labels)`.

    The network inside is diffusers' `UNet2DModel`. Two settings of the original are out of reach of that class's options:
    attention heads fixed in number rather than in width, and a timestep embedding that is not as wide as the first level. They
    are set on its parts here, and `not_in_diffusers` says so.

    Attributes
    ----------
    unet : UNet2DModel
    options : dict
        The options of the original that describe this network, given or read from the weights, as plain data.
        `load_guided_diffusion(path, **options)` makes it again, `guided_diffusion_scheduler(**options)` makes its scheduler.
    num_classes : int or None
        Classes it must be told, 0 .. num_classes - 1; None if it is unconditional.
    not_in_diffusers : str or None
        Why a folder in diffusers' layout cannot hold this network; None if it can.
    """

    def __init__(self, unet: Any, options: Mapping[str, Any], not_in_diffusers: str | None) -> None:
        super().__init__()
        self.unet = unet
        self.options = dict(options)
        self.num_classes: int | None = unet.config.num_class_embeds
        self.not_in_diffusers = not_in_diffusers

    @property
    def config(self) -> Any:
        """Configuration of the `UNet2DModel`: `sample_size`, `in_channels`, `out_channels`, .."""
        return self.unet.config

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """The predicted noise, followed by the interpolation between the smallest and the largest variance if that is learned.

        Parameters
        ----------
        noisy
            (batch, channels, height, width), floating point; computed in the precision of the weights.
        timestep
            (batch,), of the training schedule: 0 .. diffusion_steps - 1.
        class_labels
            int64 (batch,); exactly if the network is conditioned on the class.

        Returns
        -------
        output
            (batch, channels or 2 x channels, height, width), in the dtype of `noisy`.
        """
        if (class_labels is None) != (self.num_classes is None):
            takes = "no class labels" if self.num_classes is None else f"class labels in 0 .. {self.num_classes - 1}"
            raise ValueError(f"class_labels is {'missing' if class_labels is None else 'given'}: this network takes {takes}")
        if class_labels is not None and class_labels.device.type == "cpu" and len(class_labels):
            low, high = class_labels.min().item(), class_labels.max().item()
            if low < 0 or high >= self.num_classes:  # type: ignore[operator]
                raise ValueError(f"class_labels in {low} .. {high}: expected 0 .. {self.num_classes - 1}")  # type: ignore[operator]
        # Timesteps keep their dtype: in bfloat16, 999 would be 1000.
        return self.unet(noisy.to(self.unet.dtype), timestep, class_labels).sample.to(noisy.dtype)


def load_guided_diffusion(path: str | Path, preset: str | None = None, **options: Any) -> GuidedDiffusionUNet:
    """Network of a guided-diffusion checkpoint, in evaluation mode, float32, on the CPU.

    Nothing in the file is executed: `torch.load(weights_only=True)`, or safetensors.

    Parameters
    ----------
    path
        State dict of the original's `UNetModel`, `.pt` or `.safetensors`.
    preset
        A key of `PRESETS`, or flags as the original's scripts take them, such as
        "--image_size 64 --num_heads 4 --noise_schedule cosine". If neither this nor options are given, the preset the file is
        named after.
    **options
        As the original's, in place of the preset's: image_size, num_heads or num_head_channels (these two are needed),
        num_heads_upsample, use_new_attention_order, noise_schedule, diffusion_steps, predict_xstart, sigma_small. What the
        weights tell (num_channels, num_res_blocks, channel_mult, attention_resolutions, use_scale_shift_norm, resblock_updown,
        learn_sigma, class_cond) may be left out, and is checked if given. use_fp16 gives the network in float16. Options of
        training (dropout, use_checkpoint, use_kl, rescale_learned_sigmas) change nothing here.

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds more than weights; if weights are missing, unexpected, of another shape or not
        finite; if the options are incomplete or contradict the weights.
    """
    path = Path(path)
    given = _read_options(path, preset, options)
    weights = _read_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found = _Architecture.read(path, shapes)
    resolved = found.check(path, given)
    unet, not_in_diffusers = _empty_unet(found, resolved)
    unet.load_state_dict(_renamed(path, weights, found, resolved, unet), assign=True)
    model = GuidedDiffusionUNet(unet, resolved, not_in_diffusers).eval().requires_grad_(False)
    return model.half() if given.use_fp16 else model


def guided_diffusion_scheduler(preset: str | None = None, **options: Any) -> DDPMScheduler:
    """The diffusion process of a guided-diffusion network as a scheduler of diffusers.

    Noise schedules, the learned range of variances and clipping are those of the original's `GaussianDiffusion`, and "linspace"
    spacing is its respacing: the same timesteps for every even number of steps. For some odd ones, a timestep that falls
    half way between two integers is rounded to the other one (docs/guided-diffusion.md).

    Parameters
    ----------
    preset, **options
        As in `load_guided_diffusion`; `learn_sigma` is needed. `GuidedDiffusionUNet.options` has all of them.

    Raises
    ------
    ValueError
        If the options are unknown, incomplete or not valid.

    Examples
    --------
    >>> config = guided_diffusion_scheduler("64x64_diffusion").config
    >>> config.beta_schedule, config.variance_type
    ('squaredcos_cap_v2', 'learned_range')
    """
    from diffusers import DDPMScheduler

    given = _read_options(None, preset, options)
    if given.learn_sigma is None:
        raise ValueError("learn_sigma is not given: expected True or False; or pass the `options` of the loaded network")
    steps = given.diffusion_steps
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=0.0001 * 1000 / steps,
        beta_end=0.02 * 1000 / steps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[given.noise_schedule],
        variance_type="learned_range" if given.learn_sigma else "fixed_small" if given.sigma_small else "fixed_large",
        clip_sample=True,
        prediction_type="sample" if given.predict_xstart else "epsilon",
        timestep_spacing="linspace",
    )


def convert_guided_diffusion(
    path: str | Path, folder: str | Path, preset: str | None = None, **options: Any
) -> GuidedDiffusionUNet:
    """Write a checkpoint as a folder in diffusers' layout (a `DDPMPipeline`); returns the network it wrote.

    The folder appears when it is complete.

    Raises
    ------
    ValueError
        As `load_guided_diffusion`; if a folder in diffusers' layout cannot hold the network; if the folder exists or cannot be
        written.
    """
    from diffusers import DDPMPipeline

    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder, or remove it first")
    model = load_guided_diffusion(path, preset, **options)
    if model.not_in_diffusers is not None:
        raise ValueError(
            f"{path}: diffusers' UNet2DModel cannot hold {model.not_in_diffusers}; use the checkpoint itself, with its preset"
        )
    with whole_folder(folder, replace=False) as unfinished:
        try:
            pipeline: Any = DDPMPipeline(model.unet, guided_diffusion_scheduler(**model.options))
            pipeline.save_pretrained(unfinished)
        except Exception as error:  # safetensors has errors of its own for a full disk
            raise OSError(one_line(error)) from None
    return model


# --- options -----------------------------------------------------------------------------------------------------------------


class _Options(BaseModel):
    """Options of the original's scripts; None: not given. Text as in its flags is understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int | None = Field(None, ge=1)
    num_channels: int | None = Field(None, ge=1)
    num_res_blocks: int | None = Field(None, ge=1)
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[int, ...] | None = None
    num_heads: int | None = Field(None, ge=1)
    num_head_channels: int | None = Field(None, ge=1)
    num_heads_upsample: int | None = Field(None, ge=1)
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    use_fp16: bool = False
    noise_schedule: Literal["linear", "cosine"] = "linear"
    diffusion_steps: int = Field(1000, gt=20)  # with 20, the last beta of the linear schedule would be 1
    predict_xstart: bool = False
    sigma_small: bool = False
    rescale_timesteps: bool = False
    timestep_respacing: str = ""
    # Of training alone:
    dropout: float = 0
    use_checkpoint: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False

    @field_validator("num_heads", "num_head_channels", "num_heads_upsample", mode="before")
    @classmethod
    def _minus_one_is_none(cls, value: Any) -> Any:
        return None if value in (-1, "-1") else value

    @field_validator("channel_mult", "attention_resolutions", mode="before")
    @classmethod
    def _list_in_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(value.split(",")) if value else None

    @field_validator("attention_resolutions")
    @classmethod
    def _positive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and min(value, default=1) < 1:
            raise ValueError(f"expected image sizes >= 1, found {value}")
        return value


def _read_options(path: Path | None, preset: str | None, options: Mapping[str, Any]) -> _Options:
    if preset is None and not options and path is not None:
        if path.stem not in PRESETS:
            raise ValueError(f"{path}: no preset given, and the file is not named after one; expected {_preset_words()}")
        preset = path.stem
    try:
        given = _Options(**{**_preset_options(preset), **options})
    except ValidationError as error:
        raise ValueError("; ".join(_words(entry) for entry in error.errors())) from None
    if given.timestep_respacing:
        raise ValueError(
            f"timestep_respacing = {given.timestep_respacing!r}: leave it out; the number of steps is an option of the reverse "
            f"process"
        )
    if given.rescale_timesteps and given.diffusion_steps != 1000:
        raise ValueError(f"rescale_timesteps with diffusion_steps = {given.diffusion_steps} is not supported; expected 1000")
    return given


def _preset_options(preset: str | None) -> dict[str, Any]:
    if preset is None:
        return {}
    if preset in PRESETS:
        return dict(PRESETS[preset])
    if not preset.lstrip().startswith("--"):
        raise ValueError(f"preset = {preset!r}: expected {_preset_words()}")
    try:
        tokens = [part for token in shlex.split(preset) for part in token.split("=", 1)]
    except ValueError as error:
        raise ValueError(f"preset = {preset!r}: {error}") from None
    names, values = tokens[::2], tokens[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"preset = {preset!r}: expected pairs `--name value`")
    flags: dict[str, Any] = dict(zip((name[2:] for name in names), values, strict=True))
    # Flags describe the checkpoint; in which precision it runs is decided where it is used.
    flags.pop("use_fp16", None)
    return flags


def _preset_words() -> str:
    return f"one of {', '.join(PRESETS)}, or the original's flags, such as '--image_size 256 --num_head_channels 64'"


def _words(entry: Any) -> str:
    name, value = ".".join(str(part) for part in entry["loc"]), f"{entry['input']!r}"[:60]
    if entry["type"] == "extra_forbidden":
        return f"{name} = {value}: no such option; expected one of {', '.join(_Options.model_fields)}"
    return f"{name} = {value}: {entry['msg'].removeprefix('Value error, ')}"


# --- what the weights tell ---------------------------------------------------------------------------------------------------


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, checked to be plain, floating point, finite, and no larger together than the file."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"no checkpoint {path}; expected a .pt or .safetensors file")
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            with open(path, "rb") as file:
                zipped = file.read(4) == b"PK\x03\x04"  # what torch.save wrote before version 1.6 cannot be mapped
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the kind of pickle: it is read or refused
                weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever a hostile file provokes in the readers
        # PyTorch's own words for pickled code advise to load it regardless.
        reason = "" if "weights_only" in str(error) else f" ({one_line(error)})"
        raise ValueError(
            f"{path} is damaged or holds more than weights{reason}; nothing in it was executed: get the file again, or save the "
            f"network's state_dict() alone"
        ) from None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path} holds a {type(weights).__name__}; expected a state dict, tensors by name")
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(tensor).__name__}; expected a state dict, tensors by name")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name!r} is a tensor of {tensor.dtype}, {tensor.layout}; expected plain floating point")
    # A view that repeats its elements makes a small file claim any size.
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > size:
        raise ValueError(f"{path} is damaged: its weights are larger than the file")
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: weights {name!r} are not finite; get the file again")
    return weights


@dataclass(frozen=True)
class _Architecture:
    """What names and shapes of the weights tell."""

    in_channels: int
    out_channels: int
    num_channels: int
    channels: tuple[int, ...]  # of each level, the finest first
    num_res_blocks: int
    attention: tuple[bool, ...]  # whether a level has any
    use_scale_shift_norm: bool
    resblock_updown: bool
    num_classes: int | None

    @classmethod
    def read(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> _Architecture:
        """Read it, or raise a ValueError if this is no such network. Names and shapes are compared one by one later."""

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            if name not in shapes:
                raise ValueError(
                    f"{path}: weights {name!r} are missing; expected a guided-diffusion U-Net (time_embed, input_blocks, "
                    f"middle_block, output_blocks, out), not its classifier and not another network"
                )
            if len(shapes[name]) != dimensions or 0 in shapes[name]:
                raise ValueError(f"{path}: weights {name!r} have shape {shapes[name]}; expected {dimensions} dimensions")
            return shapes[name]

        first = shape("input_blocks.0.0.weight", 4)
        num_channels = shape("time_embed.0.weight", 2)[1]
        shape("output_blocks.0.0.in_layers.0.weight", 1)
        parts = {match[0] for name in shapes if (match := re.match(r"(in|out)put_blocks\.\d{1,4}\.\d\.[a-z]+", name))}
        num_blocks = 1 + max(int(part.split(".")[1]) for part in parts if part.startswith("output"))
        # The last block of each level but the finest ends in upsampling, a convolution or a residual block of its own.
        by_convolution, by_block = (
            {int(part.split(".")[1]) for part in parts if re.fullmatch(rf"output_blocks\.\d+\.[12]\.{word}", part)}
            for word in ("conv", "in")
        )
        ups = sorted(by_convolution | by_block)
        per_level = ups[0] + 1 if ups else num_blocks
        if per_level < 2 or num_blocks % per_level or ups != list(range(per_level - 1, num_blocks - 1, per_level)):
            raise ValueError(
                f"{path}: {num_blocks} output blocks, with upsampling in {ups[:8]}; expected upsampling at the end of every "
                f"level but the last, and the same number of blocks in every level, at least 2"
            )
        firsts = range(1, num_blocks, per_level)  # input block that a level begins with
        embedding = shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
        channels = tuple(shape(f"input_blocks.{i}.0.out_layers.3.weight", 4)[0] for i in firsts)
        return cls(
            in_channels=first[1],
            out_channels=shape("out.2.weight", 4)[0],
            num_channels=num_channels,
            channels=channels,
            num_res_blocks=per_level - 1,
            attention=tuple(f"input_blocks.{i}.1.qkv" in parts for i in firsts),
            use_scale_shift_norm=embedding == 2 * channels[0],
            resblock_updown=bool(by_block),
            num_classes=shape("label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None,
        )

    def check(self, path: Path, given: _Options) -> dict[str, Any]:
        """The options in full, or a ValueError where they are incomplete, contradict the weights, or fit no network."""
        if self.in_channels == 6:
            raise ValueError(
                f"{path}: an upsampler (6 channels in, 3 of them a small image); only networks of images are supported"
            )
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"{path}: {self.in_channels} channels in, {self.out_channels} out; expected as many or twice as many"
            )
        bad = [count for count in (self.num_channels, *self.channels) if count % 32]
        if bad:
            raise ValueError(f"{path}: {bad[0]} channels; expected multiples of 32, the groups of the normalisation")
        size, levels = given.image_size, len(self.channels)
        if size is None:
            raise ValueError(f"{path}: image_size is not given, and the weights do not tell; expected it, or {_preset_words()}")
        if size % 2 ** (levels - 1):
            raise ValueError(f"image_size = {size}: expected a multiple of {2 ** (levels - 1)}, as {path} has {levels} levels")
        if given.num_heads is None and given.num_head_channels is None:
            raise ValueError(f"{path}: neither num_heads nor num_head_channels is given; expected one, or {_preset_words()}")
        found = {
            "num_channels": self.num_channels,
            "num_res_blocks": self.num_res_blocks,
            "channel_mult": [count / self.num_channels for count in self.channels],
            "attention_resolutions": [size >> level for level in range(levels) if self.attention[level]],
            "use_scale_shift_norm": self.use_scale_shift_norm,
            "learn_sigma": self.out_channels == 2 * self.in_channels,
            "class_cond": self.num_classes is not None,
            "resblock_updown": self.resblock_updown,
        }
        told = given.model_dump(include=set(found), exclude_none=True)
        if levels == 1:
            told.pop("resblock_updown", None)  # nothing to resample
        if "attention_resolutions" in told:  # those that no level has mean nothing; the original divides without remainder
            factors = {size // resolution for resolution in told["attention_resolutions"]}
            told["attention_resolutions"] = [size >> level for level in range(levels) if 2**level in factors]
        if "channel_mult" in told and tuple(int(mult * self.num_channels) for mult in told["channel_mult"]) == self.channels:
            del told["channel_mult"]
        for name, value in told.items():
            if value != found[name]:
                raise ValueError(
                    f"{path}: {name} is {found[name]} by its weights, {value} by the preset or the options; leave it out, "
                    f"or take the preset or the options of this checkpoint"
                )
        resolved = {**given.model_dump(exclude_none=True), **found}
        resolved = {name: value for name, value in resolved.items() if name not in _FORGOTTEN}
        if "num_head_channels" in resolved:  # as in the original, the number of heads means nothing then
            resolved = {name: value for name, value in resolved.items() if name not in ("num_heads", "num_heads_upsample")}
        for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
            odd = [channels for channels in self.attention_channels() if channels % resolved.get(name, 1)]
            if odd:
                raise ValueError(
                    f"{name} = {resolved[name]}: does not divide the {odd[0]} channels of an attention layer of {path}"
                )
        return resolved

    def attention_channels(self) -> list[int]:
        """Channels of the attention layers: of each level that has some, and of the middle block."""
        return [count for count, attends in zip(self.channels, self.attention, strict=True) if attends] + [self.channels[-1]]


_FORGOTTEN = {
    "use_fp16",
    "rescale_timesteps",
    "timestep_respacing",
    "dropout",
    "use_checkpoint",
    "use_kl",
    "rescale_learned_sigmas",
}
"""Options that say nothing about the network or its process."""


# --- the network of diffusers ------------------------------------------------------------------------------------------------


def _empty_unet(found: _Architecture, options: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The network without memory for its weights, and which of its settings UNet2DModel's configuration cannot express."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    widths = {
        channels // _num_heads(options, channels, upsampling)
        for channels in found.attention_channels()
        for upsampling in (False, True)
    }
    residual = found.resblock_updown
    down = [
        "AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" if residual else "DownBlock2D" for attends in found.attention
    ]
    up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" if residual else "UpBlock2D" for attends in found.attention]
    embedding_width = None if found.num_channels == found.channels[0] else 4 * found.num_channels
    reasons = []
    with torch.device("meta"):
        unet: Any = UNet2DModel(
            sample_size=options["image_size"],
            in_channels=found.in_channels,
            out_channels=found.out_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            block_out_channels=found.channels,
            layers_per_block=found.num_res_blocks,
            downsample_type="resnet" if residual else "conv",
            upsample_type="resnet" if residual else "conv",
            attention_head_dim=min(widths) if len(widths) == 1 else 1,
            norm_num_groups=32,
            attn_norm_num_groups=32,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift" if found.use_scale_shift_norm else "default",
            num_class_embeds=found.num_classes,
            time_embedding_dim=embedding_width,
            freq_shift=0,
            flip_sin_to_cos=True,  # cosines first
        )
        if len(widths) > 1:
            reasons.append(f"{options['num_heads']} attention heads for any number of channels")
            for name, module in unet.named_modules():
                if isinstance(module, Attention):
                    heads = _num_heads(options, module.inner_dim, name.startswith("up_blocks"))
                    module.heads = module.sliceable_head_dim = heads
                    module.scale = (module.inner_dim // heads) ** -0.5
        if embedding_width is not None:
            reasons.append(f"timesteps as {found.num_channels} sines and cosines before {found.channels[0]} channels")
            unet.time_proj = Timesteps(found.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(found.num_channels, embedding_width)
    return unet, " and ".join(reasons) or None


def _num_heads(options: Mapping[str, Any], channels: int, upsampling: bool) -> int:
    if "num_head_channels" in options:
        return channels // int(options["num_head_channels"])
    return int(options["num_heads_upsample" if upsampling and "num_heads_upsample" in options else "num_heads"])


def _modules(found: _Architecture) -> Iterator[tuple[str, str, str]]:
    """(original's name, diffusers' name, kind) of the parts of the network; kind is "layer", "residual" or "attention"."""
    yield "time_embed.0", "time_embedding.linear_1", "layer"
    yield "time_embed.2", "time_embedding.linear_2", "layer"
    if found.num_classes is not None:
        yield "label_emb", "class_embedding", "layer"
    yield "input_blocks.0.0", "conv_in", "layer"
    levels, per_level = len(found.channels), found.num_res_blocks + 1
    resampling = "residual" if found.resblock_updown else "layer"
    for level in range(levels):
        for i in range(found.num_res_blocks):
            theirs = f"input_blocks.{1 + level * per_level + i}"
            yield f"{theirs}.0", f"down_blocks.{level}.resnets.{i}", "residual"
            if found.attention[level]:
                yield f"{theirs}.1", f"down_blocks.{level}.attentions.{i}", "attention"
        if level < levels - 1:
            theirs, ours = f"input_blocks.{(level + 1) * per_level}.0", f"down_blocks.{level}.downsamplers.0"
            yield (theirs, ours, resampling) if found.resblock_updown else (f"{theirs}.op", f"{ours}.conv", resampling)
    for i in (0, 2):
        yield f"middle_block.{i}", f"mid_block.resnets.{i // 2}", "residual"
    yield "middle_block.1", "mid_block.attentions.0", "attention"
    for block in range(levels):  # from the coarsest level up
        attends = found.attention[levels - 1 - block]
        for i in range(per_level):
            theirs = f"output_blocks.{block * per_level + i}"
            yield f"{theirs}.0", f"up_blocks.{block}.resnets.{i}", "residual"
            if attends:
                yield f"{theirs}.1", f"up_blocks.{block}.attentions.{i}", "attention"
        if block < levels - 1:
            theirs, ours = f"{theirs}.{1 + attends}", f"up_blocks.{block}.upsamplers.0"
            yield (theirs, ours, resampling) if found.resblock_updown else (f"{theirs}.conv", f"{ours}.conv", resampling)
    yield "out.0", "conv_norm_out", "layer"
    yield "out.2", "conv_out", "layer"


_LAYERS = {
    "layer": {"": ""},
    "residual": {
        ".in_layers.0": ".norm1",
        ".in_layers.2": ".conv1",
        ".emb_layers.1": ".time_emb_proj",
        ".out_layers.0": ".norm2",
        ".out_layers.3": ".conv2",
        ".skip_connection": ".conv_shortcut",
    },
    "attention": {".norm": ".group_norm", ".qkv": ".to_q", ".proj_out": ".to_out.0"},
}
"""Layers of the parts of the network, the original's names to diffusers'; `qkv` is to_q, to_k and to_v in one."""


def _renamed(
    path: Path, weights: Mapping[str, torch.Tensor], found: _Architecture, options: Mapping[str, Any], unet: Any
) -> dict[str, torch.Tensor]:
    """float32 copies of the weights by diffusers' names; a ValueError names what is missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    missing, odd, used = [], [], set()
    renamed: dict[str, torch.Tensor] = {}
    for module, our_module, kind in _modules(found):
        for layer, our_layer in _LAYERS[kind].items():
            for ending in (".weight", ".bias"):
                name, ours = module + layer + ending, our_module + our_layer + ending
                if ours not in expected:  # blocks that keep their channels have no shortcut, the table of classes has no bias
                    continue
                fused = layer == ".qkv"
                shape = expected[ours]
                if fused:
                    shape = (3 * shape[0], *shape[1:])
                if kind == "attention" and len(shape) == 2:
                    shape = (*shape, 1)  # a convolution over the flattened image
                used.add(name)
                if name not in weights:
                    missing.append(name)
                elif tuple(weights[name].shape) != shape:
                    odd.append(f"{name} has shape {tuple(weights[name].shape)}, expected {shape}")
                elif fused:
                    heads = _num_heads(options, shape[0] // 3, name.startswith("output_blocks"))
                    parts = _split_heads(weights[name], heads, options["use_new_attention_order"])
                    renamed.update(
                        (ours.replace("to_q", part), tensor) for part, tensor in zip(("to_q", "to_k", "to_v"), parts, strict=True)
                    )
                else:
                    renamed[ours] = weights[name].to(torch.float32, copy=True).reshape(expected[ours])
    unexpected = sorted(set(weights) - used)
    problems = [
        f"{words}: {_some(names)}" for words, names in (("missing", missing), ("unexpected", unexpected), ("odd", odd)) if names
    ]
    if problems:
        raise ValueError(f"{path}: not all weights of one guided-diffusion U-Net and nothing else; {'; '.join(problems)}")
    return renamed


def _split_heads(fused: torch.Tensor, heads: int, new_order: bool) -> list[torch.Tensor]:
    """Weights (or biases) of queries, keys and values, each (heads x channels of a head, ..), out of the fused ones.

    Rows go by (head, which of the three, channel) in the old order, by (which of the three, head, channel) in the new one.
    """
    rows = fused.to(torch.float32).reshape(3 * heads, -1, *fused.shape[1:2])
    parts = rows.chunk(3) if new_order else [rows[i::3] for i in range(3)]
    return [part.flatten(0, 1).clone(memory_format=torch.contiguous_format) for part in parts]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
