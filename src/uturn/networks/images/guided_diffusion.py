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
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from uturn.core.checks import expect
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

    def __init__(self, unet: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet, self.options, self.config, self.num_classes = (
            unet,
            dict(options),
            unet.config,
            unet.config.num_class_embeds,
        )

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The predicted noise (batch, channels, height, width); with twice the channels if the
        variance is learned.

        timestep: (batch,), 0 .. diffusion_steps - 1. class_labels: int64 (batch,), for a
        class-conditioned network.
        """
        # Timesteps keep their dtype: bfloat16 would round 999 to 1000.
        return self.unet(noisy.to(self.unet.dtype), timestep, class_labels).sample.to(noisy.dtype)


def load_guided_diffusion(
    path: str | Path, preset: str | None = None, **options: Any
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
    with reading(f"checkpoint = {str(path)!r}", f"expected {expected}"):
        by_weights, attends = _architecture(
            {name: tuple(tensor.shape) for name, tensor in weights.items()}
        )
    resolved = _resolved(path, by_weights, attends, read_options(path, preset, options))
    num_classes = len(weights["label_emb.weight"]) if resolved["class_cond"] else None
    unet = empty_unet(resolved, attends, weights["input_blocks.0.0.weight"].shape[1], num_classes)
    with reading(f"checkpoint = {str(path)!r}", f"expected {expected}"):
        unet.load_state_dict(_renamed(weights, unet, resolved, attends), assign=True)
    return GuidedDiffusionUNet(unet, resolved).eval().requires_grad_(False)


def guided_diffusion_scheduler(preset: str | None = None, **options: Any) -> Any:
    """The diffusion process of a guided-diffusion network as a `DDPMScheduler` of diffusers.

    Noise schedules, the learned range of variances and clipping are those of the original's
    `GaussianDiffusion`, and "linspace" spacing is its respacing (docs/models.md). `preset`,
    `options`: as in `load_guided_diffusion`; `learn_sigma` is needed. `GuidedDiffusionUNet.options`
    has all of them.
    """
    declared = read_options(None, preset, options)
    expect(
        declared.learn_sigma is not None,
        "learn_sigma",
        None,
        "True or False, or the `options` of the loaded network",
    )
    return DDPMScheduler(
        num_train_timesteps=declared.diffusion_steps,
        beta_start=0.0001 * 1000 / declared.diffusion_steps,
        beta_end=0.02 * 1000 / declared.diffusion_steps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[declared.noise_schedule],
        variance_type=(
            "learned_range"
            if declared.learn_sigma
            else "fixed_small"
            if declared.sigma_small
            else "fixed_large"
        ),
        clip_sample=True,
        prediction_type="sample" if declared.predict_xstart else "epsilon",
        timestep_spacing="linspace",
    )


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[bool]]:
    """The original's options that names and shapes of weights determine, and whether each level
    has attention.
    """

    def blocks_with(layer: str) -> list[int]:
        matches = (
            re.fullmatch(rf"output_blocks\.(\d{{1,3}})\.{layer}\.weight", name) for name in shapes
        )
        return sorted({int(match[1]) for match in matches if match})

    blocks = blocks_with(r"0\.in_layers\.0")
    if not blocks or not shapes.keys() >= {
        "input_blocks.0.0.weight",
        "time_embed.0.weight",
        "out.2.weight",
    }:
        raise ValueError("it is a classifier or another network")
    # The last block of each level except the finest ends in upsampling: a convolution or a further
    # residual block.
    by_convolution, by_block = blocks_with(r"[12]\.conv"), blocks_with(r"[12]\.in_layers\.0")
    per_level = min([*by_convolution, *by_block], default=len(blocks) - 1) + 1
    firsts = range(1, len(blocks), per_level)  # first input block of each level
    channels = [shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in firsts]
    inputs, outputs = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    is_denoiser = inputs != 6 and outputs in (inputs, 2 * inputs)
    expect(
        is_denoiser,
        "channels in, out",
        (inputs, outputs),
        "as many out or twice as many, and no upsampler (6 in)",
    )
    width = shapes["time_embed.0.weight"][1]
    options = {
        "num_channels": width,
        "num_res_blocks": per_level - 1,
        "channel_mult": [count / width for count in channels],
        "use_scale_shift_norm": (
            shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0]
        ),
        "learn_sigma": outputs == 2 * inputs,
        "class_cond": "label_emb.weight" in shapes,
        "resblock_updown": bool(by_block),
    }
    return options, [f"input_blocks.{k}.1.qkv.weight" in shapes for k in firsts]


def _resolved(
    path: Path, by_weights: dict[str, Any], attends: list[bool], declared: GuidedDiffusionOptions
) -> dict[str, Any]:
    """All options of the network; ValueError if they are incomplete, contradict the weights, or
    fit no network.
    """
    size, levels, width = declared.image_size, range(len(attends)), by_weights["num_channels"]
    if size is None or (declared.num_heads is None and declared.num_head_channels is None):
        raise ValueError(
            f"{path}: expected image_size, and num_heads or num_head_channels, which weights do not"
            f" tell; or {EXPECTED}"
        )
    unit = 2 ** levels[-1]
    expect(
        size % unit == 0,
        "image_size",
        size,
        f"a multiple of {unit}, as {path} has {len(levels)} levels",
    )
    by_weights = by_weights | {
        "attention_resolutions": [size >> level for level in levels if attends[level]]
    }
    stated = declared.model_dump(include=set(by_weights), exclude_none=True)
    if len(levels) == 1:
        stated.pop("resblock_updown", None)  # nothing is resampled
    if "attention_resolutions" in stated:  # resolutions of no level are ignored
        stated["attention_resolutions"] = [
            size >> k for k in levels if size >> k in stated["attention_resolutions"]
        ]
    if "channel_mult" in stated:  # the original rounds down
        stated["channel_mult"] = [int(factor * width) / width for factor in stated["channel_mult"]]
    for name, value in stated.items():
        expect(
            value == by_weights[name],
            f"{path}: {name} of the options",
            value,
            f"{by_weights[name]}, by its weights, or none",
        )
    options = {**declared.model_dump(exclude_none=True), **by_weights}
    if "num_head_channels" in options:  # overrides the number of heads, as in the original
        options = {
            name: value
            for name, value in options.items()
            if name not in ("num_heads", "num_heads_upsample")
        }
    for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
        odd = [
            count for count in _attention_channels(options, attends) if count % options.get(name, 1)
        ]
        expect(
            not odd,
            name,
            options.get(name),
            f"a divisor of {odd[:1]}, the channels of an attention layer of {path}",
        )
    return options


def _attention_channels(options: Mapping[str, Any], attends: list[bool]) -> list[int]:
    channels = [round(factor * options["num_channels"]) for factor in options["channel_mult"]]
    return [count for count, attention in zip(channels, attends, strict=True) if attention] + [
        channels[-1]
    ]


def empty_unet(
    options: Mapping[str, Any], attends: list[bool], in_channels: int, num_classes: int | None
) -> Any:
    """The network as diffusers' `UNet2DModel`, without memory for its weights."""

    def num_heads(channels: int, upsampling: bool) -> int:
        if "num_head_channels" in options:
            return channels // int(options["num_head_channels"])
        return int(
            options[
                (
                    "num_heads_upsample"
                    if upsampling and "num_heads_upsample" in options
                    else "num_heads"
                )
            ]
        )

    width, residual = options["num_channels"], options["resblock_updown"]
    channels = [round(factor * width) for factor in options["channel_mult"]]
    attended = _attention_channels(options, attends)
    widths = {
        count // num_heads(count, upsampling) for count in attended for upsampling in (False, True)
    }
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if residual
        else ("DownBlock2D", "UpBlock2D")
    )
    with torch.device("meta"):
        unet: Any = UNet2DModel(
            sample_size=options["image_size"],
            in_channels=in_channels,
            out_channels=2 * in_channels if options["learn_sigma"] else in_channels,
            down_block_types=tuple(
                "AttnDownBlock2D" if attention else down for attention in attends
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if attention else up for attention in reversed(attends)
            ),
            block_out_channels=tuple(channels),
            layers_per_block=options["num_res_blocks"],
            downsample_type="resnet" if residual else "conv",
            upsample_type="resnet" if residual else "conv",
            attention_head_dim=min(widths) if len(widths) == 1 else 1,
            norm_num_groups=32,
            attn_norm_num_groups=32,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift" if options["use_scale_shift_norm"] else "default",
            num_class_embeds=num_classes,
            time_embedding_dim=None if width == channels[0] else 4 * width,
            freq_shift=0,
            flip_sin_to_cos=True,  # cosines before sines
        )
        # Its configuration cannot express a fixed number of heads, or a timestep embedding of
        # another width.
        if len(widths) > 1:
            for name, module in unet.named_modules():
                if isinstance(module, Attention):
                    heads = num_heads(module.inner_dim, name.startswith("up_blocks"))
                    module.heads = module.sliceable_head_dim = heads
                    module.scale = (module.inner_dim // heads) ** -0.5
        if width != channels[0]:
            unet.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(width, 4 * width)
    return unet


_NAMES = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection", "group_norm": "norm", "to_out.0": "proj_out",
    "to_q": "qkv", "to_k": "qkv", "to_v": "qkv",
}  # fmt: skip
"""Layers {diffusers' name: original's name}: outside of the blocks, and in residual blocks and
attention; `qkv` joins three.
"""


def _original_name(module: str, per_level: int, attends: list[bool]) -> str:
    """The original's name of a module of diffusers' network; `per_level`: output blocks of a
    level.
    """
    if module in _NAMES:
        return _NAMES[module]
    match = re.fullmatch(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        module,
    )
    assert match is not None, module
    side, level, kind, number, layer = (
        match[1],
        int(match[2] or 0),
        match[3],
        int(match[4]),
        match[5],
    )
    if side == "mid":
        place = f"middle_block.{1 if kind == 'attentions' else 2 * number}"
    elif kind == "downsamplers":
        place, layer = (
            f"input_blocks.{(level + 1) * per_level}.0",
            ("op" if layer == "conv" else layer),
        )
    elif kind == "upsamplers":
        place = f"output_blocks.{(level + 1) * per_level - 1}.{1 + attends[-1 - level]}"
    else:
        blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
        place = f"{blocks}.{first + level * per_level + number}.{int(kind == 'attentions')}"
    return f"{place}.{_NAMES.get(layer, layer)}"


def _renamed(
    weights: Mapping[str, torch.Tensor], unet: Any, options: Mapping[str, Any], attends: list[bool]
) -> dict[str, torch.Tensor]:
    """float32 copies of the weights by diffusers' names; ValueError for missing or unexpected
    weights and wrong shapes.
    """
    renamed, used = {}, set()
    for ours, empty in unet.state_dict().items():
        module, _, ending = ours.rpartition(".")
        used.add(
            name := f"{_original_name(module, options['num_res_blocks'] + 1, attends)}.{ending}"
        )
        weight, parts = weights[name], 3 if ".qkv." in name else 1
        shape = (parts * empty.shape[0], *empty.shape[1:])
        # Attention is a convolution there.
        fits = tuple(weight.shape) in (shape, (*shape, 1)) and weight.is_floating_point()
        expect(
            fits, f"shape of the weights {name!r}", tuple(weight.shape), f"{shape}, floating point"
        )
        # Rows (head, q/k/v, channel) in the old order of attention, (q/k/v, head, channel) in the
        # new one.
        if parts == 3:
            of_heads = weight.reshape(
                3 * unet.get_submodule(module.rpartition(".")[0]).heads, -1, *weight.shape[1:]
            )
            which = "qkv".index(module[-1])
            weight = (
                of_heads.chunk(3)[which]
                if options["use_new_attention_order"]
                else of_heads[which::3]
            )
        renamed[ours] = weight.to(
            torch.float32, copy=True, memory_format=torch.contiguous_format
        ).reshape(empty.shape)
    extra = sorted(set(weights) - used)
    expect(not extra, "further weights", extra, "those of this network alone")
    return renamed
