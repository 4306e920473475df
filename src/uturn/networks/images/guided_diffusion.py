"""Checkpoints of OpenAI's guided-diffusion (ADM, arXiv:2105.05233) as networks that diffusers'
schedulers can drive.

The weights are loaded into diffusers' `UNet2DModel`, which computes the same function. Their names
and shapes determine the architecture, but not the noise schedule, the number and order of the
attention heads, and the image size: these come from a preset, or from the options of the original
code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from uturn.core.checks import expect
from uturn.corruption.schedulers import Scheduler
from uturn.networks.files import read_state_dict
from uturn.networks.images.options import EXPECTED, GuidedDiffusionOptions, read_options
from uturn.networks.images.options import PRESETS as PRESETS
from uturn.networks.images.own_denoisers import ADVICE
from uturn.networks.libraries import reading

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
"""Endings of the single files that this module reads."""


class GuidedDiffusionUNet(nn.Module):
    """A guided-diffusion network, called as the original: `model(noisy, timestep)`, or
    `model(noisy, timestep, class_labels)`.

    `unet`: a `UNet2DModel` of diffusers. `options`: those of the original code for this network,
    given or read from the weights; `load_guided_diffusion(path, **options)` loads it again,
    `guided_diffusion_scheduler(**options)` makes its scheduler. `num_classes`: None if it is
    unconditional.
    """

    def __init__(
        self,
        unet: Any,  # noqa: ANN401 - diffusers' models have no types for their configuration
        options: Mapping[str, Any],  # of several types, as in the original
    ) -> None:
        super().__init__()
        self.unet = unet
        self.options = dict(options)
        self.config = unet.config
        self.num_classes: int | None = unet.config.num_class_embeds

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The predicted noise (batch, channels, height, width); with twice the channels if the
        variance is learned.

        timestep: (batch,), 0 .. diffusion_steps - 1. class_labels: int64 (batch,), for a
        class-conditioned network.
        """
        # Timesteps keep their dtype: bfloat16 would round 999 to 1000.
        output = self.unet(noisy.to(self.unet.dtype), timestep, class_labels)
        prediction: torch.Tensor = output.sample.to(noisy.dtype)
        return prediction


def load_guided_diffusion(
    path: str | Path,
    preset: str | None = None,
    **options: Any,  # of several types, as in the original
) -> GuidedDiffusionUNet:
    """Network of a guided-diffusion checkpoint, in evaluation mode, float32, on the CPU. Nothing in
    the file is executed.

    `path`: state dict of the original's `UNetModel`, `.pt` or `.safetensors`. `preset`: a key of
    `PRESETS`, or flags of the original's scripts, such as "--image_size 64 --num_heads 4
    --noise_schedule cosine"; without preset and options, that with the name of the file. `options`:
    those of the original, which override the preset. Needed: image_size, and num_heads or
    num_head_channels. Optional: num_heads_upsample, use_new_attention_order, noise_schedule,
    diffusion_steps, predict_xstart, sigma_small. Options that the weights determine must agree with
    them; those of precision and training are ignored.
    """
    path = Path(path)
    expected = f"the state dict of a guided-diffusion U-Net; {ADVICE}"
    weights = read_state_dict(str(path), expected, "checkpoint", mapped=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    where = f"checkpoint = {str(path)!r}"
    with reading(where, f"expected {expected}"):
        architecture = _architecture(shapes)
    declared = read_options(path, preset, options)
    resolved = _resolved(path, architecture, declared)
    unet = _empty_unet(architecture, Heads.of(resolved), resolved["image_size"])
    is_new_order = resolved["use_new_attention_order"]
    with reading(where, f"expected {expected}"):
        renamed = _renamed(weights, unet, architecture, is_new_order)
        unet.load_state_dict(renamed, assign=True)
    return GuidedDiffusionUNet(unet, resolved).eval().requires_grad_(False)


def guided_diffusion_scheduler(
    preset: str | None = None,
    **options: Any,  # of several types, as in the original
) -> Scheduler:
    """The diffusion process of a guided-diffusion network as a `DDPMScheduler` of diffusers.

    Noise schedules, the learned range of variances and clipping are those of the original's
    `GaussianDiffusion`, and "linspace" spacing is its respacing (docs/models.md). `preset`,
    `options`: as in `load_guided_diffusion`; `learn_sigma` is needed. `GuidedDiffusionUNet.options`
    has all of them.
    """
    declared = read_options(None, preset, options)
    expected = "True or False, or the `options` of the loaded network"
    expect(declared.learn_sigma is not None, "learn_sigma", None, expected)
    variance_type = "fixed_large"
    if declared.sigma_small:
        variance_type = "fixed_small"
    if declared.learn_sigma:
        variance_type = "learned_range"
    scheduler = DDPMScheduler(
        num_train_timesteps=declared.diffusion_steps,
        beta_start=0.0001 * 1000 / declared.diffusion_steps,
        beta_end=0.02 * 1000 / declared.diffusion_steps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[declared.noise_schedule],
        variance_type=variance_type,
        clip_sample=True,
        prediction_type="sample" if declared.predict_xstart else "epsilon",
        timestep_spacing="linspace",
    )
    return cast(Scheduler, scheduler)


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of weights tell about a network.

    Levels are counted from the finest one; each halves the resolution.
    """

    in_channels: int
    out_channels: int
    num_classes: int | None
    """None if the network is unconditional."""
    width: int
    """The original's `num_channels`."""
    channels: tuple[int, ...]
    """Of the levels."""
    attends: tuple[bool, ...]
    """Whether each level has attention."""
    num_res_blocks: int
    """Residual blocks of a level on the way down; there is one more on the way up."""
    uses_scale_shift: bool
    resamples_by_blocks: bool
    """Whether residual blocks change the resolution; otherwise convolutions do."""

    @property
    def learns_variance(self) -> bool:
        return self.out_channels == 2 * self.in_channels

    @property
    def attention_channels(self) -> list[int]:
        """Channels of the attention layers: of the levels that have them, and of the middle."""
        channels = []
        for count, has_attention in zip(self.channels, self.attends, strict=True):
            if has_attention:
                channels.append(count)
        return [*channels, self.channels[-1]]

    def options(self, image_size: int) -> dict[str, Any]:  # of several types, as in the original
        """The options of the original that the weights of a network for this size determine."""
        resolutions = []
        for level, has_attention in enumerate(self.attends):
            if has_attention:
                resolutions.append(image_size >> level)
        return {
            "num_channels": self.width,
            "num_res_blocks": self.num_res_blocks,
            "channel_mult": [count / self.width for count in self.channels],
            "use_scale_shift_norm": self.uses_scale_shift,
            "learn_sigma": self.learns_variance,
            "class_cond": self.num_classes is not None,
            "resblock_updown": self.resamples_by_blocks,
            "attention_resolutions": resolutions,
        }


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The architecture by the names and shapes of weights; ValueError for other networks."""
    blocks = _output_blocks_with(r"0\.in_layers\.0", shapes)
    needed = {"input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"}
    if not blocks or not shapes.keys() >= needed:
        raise ValueError("it is a classifier or another network")
    # The last block of each level except the finest ends in upsampling: a convolution or a further
    # residual block.
    by_convolution = _output_blocks_with(r"[12]\.conv", shapes)
    by_block = _output_blocks_with(r"[12]\.in_layers\.0", shapes)
    per_level = min([*by_convolution, *by_block], default=len(blocks) - 1) + 1
    firsts = range(1, len(blocks), per_level)  # first input block of each level
    channels = tuple(shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in firsts)
    inputs = shapes["input_blocks.0.0.weight"][1]
    outputs = shapes["out.2.weight"][0]
    is_denoiser = inputs != 6 and outputs in (inputs, 2 * inputs)
    expected = "as many out or twice as many, and no upsampler (6 in)"
    expect(is_denoiser, "channels in, out", (inputs, outputs), expected)
    width = shapes["time_embed.0.weight"][1]
    labels = shapes.get("label_emb.weight")
    return Architecture(
        in_channels=inputs,
        out_channels=outputs,
        num_classes=None if labels is None else labels[0],
        width=width,
        channels=channels,
        attends=tuple(f"input_blocks.{k}.1.qkv.weight" in shapes for k in firsts),
        num_res_blocks=per_level - 1,
        uses_scale_shift=shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0],
        resamples_by_blocks=bool(by_block),
    )


def _output_blocks_with(layer: str, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Numbers of the output blocks with a layer, a regular expression."""
    pattern = re.compile(rf"output_blocks\.(\d{{1,3}})\.{layer}\.weight")
    matches = filter(None, map(pattern.fullmatch, shapes))
    return sorted({int(match[1]) for match in matches})


@dataclass(frozen=True)
class Heads:
    """How attention layers are divided into heads."""

    channels_of_a_head: int | None
    number: int | None = None
    """Number of heads; None if the channels of a head are given."""
    number_upsampling: int | None = None
    """Number of heads of the layers on the way up; None: `number`."""

    @classmethod
    def of(cls, options: Mapping[str, int]) -> Heads:
        """The heads by options of the original, in which the channels of a head come first."""
        if "num_head_channels" in options:
            return cls(options["num_head_channels"])
        return cls(None, options["num_heads"], options.get("num_heads_upsample"))

    def count(self, channels: int, upsampling: bool) -> int:
        """Heads of an attention layer."""
        if self.channels_of_a_head is not None:
            return channels // self.channels_of_a_head
        number = self.number
        if upsampling and self.number_upsampling is not None:
            number = self.number_upsampling
        assert number is not None
        return number


def _resolved(
    path: Path, architecture: Architecture, declared: GuidedDiffusionOptions
) -> dict[str, Any]:  # options of the original, of several types
    """All options of the network; ValueError if they are incomplete, contradict the weights, or
    fit no network.
    """
    size = declared.image_size
    has_heads = declared.num_heads is not None or declared.num_head_channels is not None
    if size is None or not has_heads:
        raise ValueError(
            f"{path}: expected image_size, and num_heads or num_head_channels, which weights do not"
            f" tell; or {EXPECTED}"
        )
    num_levels = len(architecture.channels)
    unit = 2 ** (num_levels - 1)
    expected = f"a multiple of {unit}, as {path} has {num_levels} levels"
    expect(size % unit == 0, "image_size", size, expected)
    by_weights = architecture.options(size)
    for name, value in _comparable(declared, architecture, size).items():
        expected = f"{by_weights[name]}, by its weights, or none"
        expect(value == by_weights[name], f"{path}: {name} of the options", value, expected)
    options = {**declared.model_dump(exclude_none=True), **by_weights}
    if "num_head_channels" in options:  # overrides the number of heads, as in the original
        options.pop("num_heads", None)
        options.pop("num_heads_upsample", None)
    for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
        divisor = options.get(name, 1)
        odd = [count for count in architecture.attention_channels if count % divisor]
        expected = f"a divisor of {odd[:1]}, the channels of an attention layer of {path}"
        expect(not odd, name, options.get(name), expected)
    return options


def _comparable(
    declared: GuidedDiffusionOptions, architecture: Architecture, size: int
) -> dict[str, Any]:  # options of the original, of several types
    """The declared options that the weights determine, as the original reads them."""
    names = set(architecture.options(size))
    stated = declared.model_dump(include=names, exclude_none=True)
    sizes = [size >> level for level in range(len(architecture.channels))]
    if len(sizes) == 1:
        stated.pop("resblock_updown", None)  # nothing is resampled
    if "attention_resolutions" in stated:  # resolutions of no level are ignored
        listed = stated["attention_resolutions"]
        stated["attention_resolutions"] = [size for size in sizes if size in listed]
    if "channel_mult" in stated:  # the original rounds down
        width = architecture.width
        stated["channel_mult"] = [int(factor * width) / width for factor in stated["channel_mult"]]
    return stated


def _empty_unet(architecture: Architecture, heads: Heads, image_size: int) -> Any:  # noqa: ANN401 - diffusers' models have no types for their configuration
    """The network as diffusers' `UNet2DModel`, without memory for its weights."""
    width = architecture.width
    channels = architecture.channels
    widths_of_heads = set()
    for count in architecture.attention_channels:
        for upsampling in (False, True):
            widths_of_heads.add(count // heads.count(count, upsampling))
    down = "DownBlock2D"
    up = "UpBlock2D"
    if architecture.resamples_by_blocks:
        down = "ResnetDownsampleBlock2D"
        up = "ResnetUpsampleBlock2D"
    attends = architecture.attends
    resampling = "conv"
    if architecture.resamples_by_blocks:
        resampling = "resnet"
    with torch.device("meta"):
        unet: Any = UNet2DModel(
            sample_size=image_size,
            in_channels=architecture.in_channels,
            out_channels=architecture.out_channels,
            down_block_types=tuple("AttnDownBlock2D" if attn else down for attn in attends),
            up_block_types=tuple("AttnUpBlock2D" if attn else up for attn in reversed(attends)),
            block_out_channels=channels,
            layers_per_block=architecture.num_res_blocks,
            downsample_type=resampling,
            upsample_type=resampling,
            attention_head_dim=min(widths_of_heads) if len(widths_of_heads) == 1 else 1,
            norm_num_groups=32,
            attn_norm_num_groups=32,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift" if architecture.uses_scale_shift else "default",
            num_class_embeds=architecture.num_classes,
            time_embedding_dim=None if width == channels[0] else 4 * width,
            freq_shift=0,
            flip_sin_to_cos=True,  # cosines before sines
        )
        # Its configuration cannot express a fixed number of heads, or a timestep embedding of
        # another width.
        if len(widths_of_heads) > 1:
            _set_heads(unet, heads)
        if width != channels[0]:
            unet.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(width, 4 * width)
    return unet


def _set_heads(unet: nn.Module, heads: Heads) -> None:
    """Divide the attention layers of a network into heads."""
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            number = heads.count(module.inner_dim, name.startswith("up_blocks"))
            module.heads = number
            module.sliceable_head_dim = number
            module.scale = (module.inner_dim // number) ** -0.5


_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
}
"""Layers {diffusers' name: original's name}: outside of the blocks, and in residual blocks and
attention; `qkv` joins three.
"""
_MODULE = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.(?:(?P<level>\d+)\.)?"
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\.(?P<layer>.+)"
)
"""Names of modules in the blocks of diffusers' network."""


def _original_name(module: str, architecture: Architecture) -> str:
    """The original's name of a module of diffusers' network."""
    if module in _NAMES:
        return _NAMES[module]
    match = _MODULE.fullmatch(module)
    assert match is not None, module
    level = int(match["level"] or 0)
    number = int(match["number"])
    kind = match["kind"]
    layer = _NAMES.get(match["layer"], match["layer"])
    column = int(kind == "attentions")
    per_level = architecture.num_res_blocks + 1
    if match["side"] == "mid":
        return f"middle_block.{1 if column else 2 * number}.{layer}"
    if kind == "downsamplers":
        if layer == "conv":
            layer = "op"
        return f"input_blocks.{(level + 1) * per_level}.0.{layer}"
    if kind == "upsamplers":
        column = 1 + architecture.attends[-1 - level]
        return f"output_blocks.{(level + 1) * per_level - 1}.{column}.{layer}"
    if match["side"] == "down":
        return f"input_blocks.{1 + level * per_level + number}.{column}.{layer}"
    return f"output_blocks.{level * per_level + number}.{column}.{layer}"


def _renamed(
    weights: Mapping[str, torch.Tensor],
    unet: nn.Module,
    architecture: Architecture,
    is_new_order: bool,
) -> dict[str, torch.Tensor]:
    """float32 copies of the weights by diffusers' names; ValueError for missing or unexpected
    weights and wrong shapes.
    """
    renamed = {}
    used = set()
    for name, empty in unet.state_dict().items():
        module, _, ending = name.rpartition(".")
        original = f"{_original_name(module, architecture)}.{ending}"
        used.add(original)
        weight = weights[original]
        is_joined = ".qkv." in original
        shape = (3 * empty.shape[0] if is_joined else empty.shape[0], *empty.shape[1:])
        # Attention is a convolution there.
        fits = tuple(weight.shape) in (shape, (*shape, 1)) and weight.is_floating_point()
        where = f"shape of the weights {original!r}"
        expect(fits, where, tuple(weight.shape), f"{shape}, floating point")
        if is_joined:
            attention = unet.get_submodule(module.rpartition(".")[0])
            assert isinstance(attention, Attention)
            weight = _separated(weight, "qkv".index(module[-1]), attention.heads, is_new_order)
        weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        renamed[name] = weight.reshape(empty.shape)
    extra = sorted(set(weights) - used)
    expect(not extra, "further weights", extra, "those of this network alone")
    return renamed


def _separated(weight: torch.Tensor, part: int, heads: int, is_new_order: bool) -> torch.Tensor:
    """The weights of queries (part 0), keys or values of attention, of all three joined.

    Rows are (head, q/k/v, channel) in the old order of attention, (q/k/v, head, channel) in the new
    one.
    """
    of_heads = weight.reshape(3 * heads, -1, *weight.shape[1:])
    if is_new_order:
        return of_heads.chunk(3)[part]
    return of_heads[part::3]
