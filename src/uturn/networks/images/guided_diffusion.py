"""Checkpoints of OpenAI's guided-diffusion (ADM, arXiv:2105.05233) as networks that diffusers' schedulers can drive.

The weights are loaded into diffusers' `UNet2DModel`, which computes the same function with the right settings. The names and
shapes of the weights determine the architecture. They do not determine the noise schedule, the number and order of the
attention heads, and the image size: these come from a preset, or from the options of the original code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from uturn.networks.images.guided_diffusion_options import EXPECTED, GuidedDiffusionOptions, read_options
from uturn.networks.images.guided_diffusion_options import PRESETS as PRESETS
from uturn.networks.images.own_denoisers import ADVICE
from uturn.networks.libraries import reading
from uturn.networks.state_dicts import read_state_dict

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class GuidedDiffusionUNet(nn.Module):
    """A guided-diffusion network, called as the original: `model(noisy, timestep)`, or `model(noisy, timestep, class_labels)`.

    The network inside is diffusers' `UNet2DModel`. Its options cannot express two settings of the original: a fixed number of
    attention heads, and a timestep embedding that is not as wide as the first level. These settings are made on its modules, and
    `not_in_diffusers` names them.

    Attributes
    ----------
    unet : UNet2DModel
    options : dict
        The options of the original code for this network, given or read from the weights, as plain data.
        `load_guided_diffusion(path, **options)` loads it again, `guided_diffusion_scheduler(**options)` makes its scheduler.
    num_classes : int or None
        Number of classes, 0 .. num_classes - 1, of a class-conditioned network; None if it is unconditional.
    not_in_diffusers : str or None
        The reason for which a folder in diffusers' layout cannot hold this network; None if it can.
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
        """The predicted noise, followed, if the variance is learned, by its interpolation between smallest and largest variance.

        Parameters
        ----------
        noisy
            (batch, channels, height, width), floating point; computed in the precision of the weights.
        timestep
            (batch,), of the training schedule: 0 .. diffusion_steps - 1.
        class_labels
            int64 (batch,); required if the network is conditioned on the class, otherwise None.

        Returns
        -------
        output
            (batch, channels or 2 x channels, height, width), in the dtype of `noisy`.
        """
        # Timesteps keep their dtype: bfloat16 would round 999 to 1000.
        return self.unet(noisy.to(self.unet.dtype), timestep, class_labels).sample.to(noisy.dtype)


def load_guided_diffusion(path: str | Path, preset: str | None = None, **options: Any) -> GuidedDiffusionUNet:
    """Network of a guided-diffusion checkpoint, in evaluation mode, float32, on the CPU.

    Nothing in the file is executed: `torch.load(weights_only=True)`, or safetensors.

    Parameters
    ----------
    path
        State dict of the original's `UNetModel`, `.pt` or `.safetensors`.
    preset
        A key of `PRESETS`, or flags of the original's scripts, such as
        "--image_size 64 --num_heads 4 --noise_schedule cosine". Without preset and options, the preset with the name of the
        file.
    **options
        Options of the original, which override the preset. Needed: image_size, and num_heads or num_head_channels. Optional:
        num_heads_upsample, use_new_attention_order, noise_schedule, diffusion_steps, predict_xstart, sigma_small, use_fp16 (the
        network in float16). Options determined by the weights (num_channels, num_res_blocks, channel_mult,
        attention_resolutions, use_scale_shift_norm, resblock_updown, learn_sigma, class_cond) may be left out, and are checked
        if given. Training options (dropout, use_checkpoint, use_kl, rescale_learned_sigmas) are ignored.

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds more than weights; if weights are missing, unexpected, of another shape or not
        finite; if the options are incomplete or contradict the weights.
    """
    path = Path(path)
    expected = f"the state dict of a guided-diffusion U-Net; {ADVICE}"
    weights = read_state_dict(str(path), expected, "checkpoint", mapped=True)
    with reading(f"checkpoint = {str(path)!r}", f"expected {expected}"):
        architecture = Architecture.read({name: tuple(tensor.shape) for name, tensor in weights.items()})
    declared = read_options(path, preset, options)  # check that the file is such a network before looking for a preset
    resolved = _resolved_options(path, architecture, declared)
    unet, not_in_diffusers = empty_unet(resolved, architecture.in_channels, architecture.num_classes)
    with reading(f"checkpoint = {str(path)!r}", f"expected {expected}"):
        unet.load_state_dict(_renamed(weights, unet, resolved), assign=True)
    model = GuidedDiffusionUNet(unet, resolved, not_in_diffusers).eval().requires_grad_(False)
    return model.half() if declared.use_fp16 else model


def guided_diffusion_scheduler(preset: str | None = None, **options: Any) -> DDPMScheduler:
    """The diffusion process of a guided-diffusion network as a scheduler of diffusers.

    Noise schedules, the learned range of variances and clipping are those of the original's `GaussianDiffusion`, and "linspace"
    spacing is its respacing: the same timesteps for every even number of steps. For some odd numbers of steps, a timestep half
    way between two integers is rounded the other way (docs/guided-diffusion.md).

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

    declared = read_options(None, preset, options)
    if declared.learn_sigma is None:
        raise ValueError("learn_sigma is not given: expected True or False; or pass the `options` of the loaded network")
    steps = declared.diffusion_steps
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=0.0001 * 1000 / steps,
        beta_end=0.02 * 1000 / steps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[declared.noise_schedule],
        variance_type="learned_range" if declared.learn_sigma else "fixed_small" if declared.sigma_small else "fixed_large",
        clip_sample=True,
        prediction_type="sample" if declared.predict_xstart else "epsilon",
        timestep_spacing="linspace",
    )


# --- architecture from weights ---------------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """The architecture read from the names and shapes of the weights; `options` are those of the original code."""

    in_channels: int
    num_classes: int | None
    channels: tuple[int, ...]  # of each level, the finest first
    attends: tuple[bool, ...]  # whether a level has attention
    options: dict[str, Any]

    @classmethod
    def read(cls, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """Read the architecture; ValueError if this is no such network. Single names and shapes are compared later."""

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            if name not in shapes:
                raise ValueError(f"it has no weights {name!r}, as a classifier or another network")
            if len(shapes[name]) != dimensions or 0 in shapes[name]:
                raise ValueError(f"the weights {name!r} have shape {shapes[name]}, not {dimensions} dimensions")
            return shapes[name]

        in_channels = shape("input_blocks.0.0.weight", 4)[1]
        num_channels = shape("time_embed.0.weight", 2)[1]
        shape("output_blocks.0.0.in_layers.0.weight", 1)
        parts = {match[0] for name in shapes if (match := re.match(r"(in|out)put_blocks\.\d{1,4}\.\d\.[a-z]+", name))}
        num_blocks = 1 + max(int(part.split(".")[1]) for part in parts if part.startswith("output"))
        # The last block of each level except the finest ends in upsampling: a convolution or a further residual block.
        by_convolution, by_block = (
            {int(part.split(".")[1]) for part in parts if re.fullmatch(rf"output_blocks\.\d+\.[12]\.{word}", part)}
            for word in ("conv", "in")
        )
        ups = sorted(by_convolution | by_block)
        per_level = ups[0] + 1 if ups else num_blocks
        if per_level < 2 or num_blocks % per_level or ups != list(range(per_level - 1, num_blocks - 1, per_level)):
            raise ValueError(f"{num_blocks} output blocks, with upsampling in {ups[:8]}, are not levels of equal size")
        firsts = range(1, num_blocks, per_level)  # first input block of each level
        channels = tuple(shape(f"input_blocks.{i}.0.out_layers.3.weight", 4)[0] for i in firsts)
        out_channels = shape("out.2.weight", 4)[0]
        if in_channels == 6:
            raise ValueError("it is an upsampler: 6 channels in, 3 of them a small image")
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"{in_channels} channels in, {out_channels} out: not as many or twice as many")
        bad = [count for count in (num_channels, *channels) if count % 32]
        if bad:
            raise ValueError(f"{bad[0]} channels are no multiple of 32, the groups of the normalisation")
        num_classes = shape("label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None
        options = {
            "num_channels": num_channels,
            "num_res_blocks": per_level - 1,
            "channel_mult": [count / num_channels for count in channels],
            "use_scale_shift_norm": shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * channels[0],
            "learn_sigma": out_channels == 2 * in_channels,
            "class_cond": num_classes is not None,
            "resblock_updown": bool(by_block),
        }
        return cls(in_channels, num_classes, channels, tuple(f"input_blocks.{i}.1.qkv" in parts for i in firsts), options)


def _resolved_options(path: Path, architecture: Architecture, declared: GuidedDiffusionOptions) -> dict[str, Any]:
    """All options of the network; ValueError if they are incomplete, contradict the weights, or fit no network."""
    channels, size, levels = architecture.channels, declared.image_size, len(architecture.channels)
    if size is None:
        raise ValueError(f"{path}: image_size is not given, and the weights do not tell; expected it, or {EXPECTED}")
    if size % 2 ** (levels - 1):
        raise ValueError(f"image_size = {size}: expected a multiple of {2 ** (levels - 1)}, as {path} has {levels} levels")
    if declared.num_heads is None and declared.num_head_channels is None:
        raise ValueError(f"{path}: neither num_heads nor num_head_channels is given; expected one, or {EXPECTED}")
    resolutions = [size >> level for level in range(levels) if architecture.attends[level]]
    by_weights = {**architecture.options, "attention_resolutions": resolutions}
    stated = declared.model_dump(include=set(by_weights), exclude_none=True)
    if levels == 1:
        stated.pop("resblock_updown", None)  # with one level, nothing is resampled
    if "attention_resolutions" in stated:  # resolutions of no level are ignored; the original uses integer division
        factors = {size // resolution for resolution in stated["attention_resolutions"]}
        stated["attention_resolutions"] = [size >> level for level in range(levels) if 2**level in factors]
    if tuple(int(factor * by_weights["num_channels"]) for factor in stated.get("channel_mult", ())) == channels:
        del stated["channel_mult"]
    for name, value in stated.items():
        if value != by_weights[name]:
            raise ValueError(
                f"{path}: {name} is {by_weights[name]} by its weights, {value} by the preset or the options; leave it out, "
                f"or take the preset or the options of this checkpoint"
            )
    options = {**declared.model_dump(exclude_none=True), **by_weights}
    if "num_head_channels" in options:  # overrides the number of heads, as in the original
        options = {name: value for name, value in options.items() if name not in ("num_heads", "num_heads_upsample")}
    for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
        odd = [count for count in _attention_channels(options) if count % options.get(name, 1)]
        if odd:
            raise ValueError(f"{name} = {options[name]}: does not divide the {odd[0]} channels of an attention layer of {path}")
    return options


# --- the network of diffusers ----------------------------------------------------------------------------------------


def _channels(options: Mapping[str, Any]) -> list[int]:
    """Channels of each level, the finest first."""
    return [round(factor * options["num_channels"]) for factor in options["channel_mult"]]


def _attends(options: Mapping[str, Any]) -> list[bool]:
    """Whether each level has attention."""
    levels = range(len(options["channel_mult"]))
    return [options["image_size"] >> level in options["attention_resolutions"] for level in levels]


def _attention_channels(options: Mapping[str, Any]) -> list[int]:
    """Channels of the attention layers in the levels with attention and in the middle block."""
    channels = _channels(options)
    return [count for count, attends in zip(channels, _attends(options), strict=True) if attends] + [channels[-1]]


def empty_unet(options: Mapping[str, Any], in_channels: int = 3, num_classes: int | None = None) -> tuple[Any, str | None]:
    """The network without memory for its weights, and the settings that UNet2DModel's configuration cannot express."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    def num_heads(channels: int, upsampling: bool) -> int:
        if "num_head_channels" in options:
            return channels // int(options["num_head_channels"])
        return int(options["num_heads_upsample" if upsampling and "num_heads_upsample" in options else "num_heads"])

    channels, width, residual = _channels(options), options["num_channels"], options["resblock_updown"]
    widths = {count // num_heads(count, upsampling) for count in _attention_channels(options) for upsampling in (False, True)}
    down, up = (
        ["AttnDownBlock2D", "ResnetDownsampleBlock2D" if residual else "DownBlock2D"],
        ["AttnUpBlock2D", "ResnetUpsampleBlock2D" if residual else "UpBlock2D"],
    )
    attends = _attends(options)
    reasons = []
    with torch.device("meta"):
        unet: Any = UNet2DModel(
            sample_size=options["image_size"],
            in_channels=in_channels,
            out_channels=2 * in_channels if options["learn_sigma"] else in_channels,
            down_block_types=tuple(down[not attention] for attention in attends),
            up_block_types=tuple(up[not attention] for attention in reversed(attends)),
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
        if len(widths) > 1:
            reasons.append(f"{options['num_heads']} attention heads for any number of channels")
            for name, module in unet.named_modules():
                if isinstance(module, Attention):
                    heads = num_heads(module.inner_dim, name.startswith("up_blocks"))
                    module.heads = module.sliceable_head_dim = heads
                    module.scale = (module.inner_dim // heads) ** -0.5
        if width != channels[0]:
            reasons.append(f"timesteps as {width} sines and cosines before {channels[0]} channels")
            unet.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(width, 4 * width)
    return unet, " and ".join(reasons) or None


_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""Layers outside of the blocks: {diffusers' name: original's name}."""

_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
"""Layers of residual blocks and of attention: {diffusers' name: original's name}; `qkv` joins three layers."""


def _original_name(name: str, num_res_blocks: int, attends: Sequence[bool]) -> str:
    """The original's name of a weight of diffusers' network."""
    module, _, ending = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{ending}"
    match = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module)
    assert match is not None, name
    side, level, kind, number, layer = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    per_level = num_res_blocks + 1
    if side == "mid":
        place = f"middle_block.{1 if kind == 'attentions' else 2 * number}"
    elif kind == "downsamplers":
        place, layer = f"input_blocks.{(level + 1) * per_level}.0", "op" if layer == "conv" else layer
    elif kind == "upsamplers":
        place = f"output_blocks.{(level + 1) * per_level - 1}.{1 + attends[-1 - level]}"
    else:
        blocks = (
            f"input_blocks.{level * per_level + number + 1}" if side == "down" else f"output_blocks.{level * per_level + number}"
        )
        place = f"{blocks}.{int(kind == 'attentions')}"
    return f"{place}.{_LAYERS.get(layer, layer)}.{ending}"


def _renamed(weights: Mapping[str, torch.Tensor], unet: Any, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """float32 copies of the weights by diffusers' names; ValueError for missing or unexpected weights and wrong shapes."""
    attends, new_order = _attends(options), options["use_new_attention_order"]
    renamed: dict[str, torch.Tensor] = {}
    missing, odd, used = {}, {}, set()
    for ours, empty in unet.state_dict().items():
        name = _original_name(ours, options["num_res_blocks"], attends)
        used.add(name)
        shape = tuple(empty.shape)
        module = ours.rpartition(".to_")[0] if ".qkv." in name else None
        if module is not None:
            shape = (3 * shape[0], *shape[1:])
        if ".attentions." in ours and len(shape) == 2:
            shape = (*shape, 1)  # the original uses a convolution over the flattened image
        if name not in weights:
            missing[name] = name
            continue
        weight = weights[name]
        if tuple(weight.shape) != shape or not weight.is_floating_point():
            odd[name] = f"{name} has shape {tuple(weight.shape)}, expected {shape}, in floating point"
            continue
        if module is not None:
            # The old attention order has rows (head, q/k/v, channel), the new one (q/k/v, head, channel).
            rows = weight.reshape(3 * unet.get_submodule(module).heads, -1, *shape[1:])
            which = "qkv".index(ours[len(module) + len(".to_")])
            weight = rows.chunk(3)[which] if new_order else rows[which::3]
        renamed[ours] = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format).reshape(empty.shape)
    problems = {"missing": list(missing), "unexpected": sorted(set(weights) - used), "odd": list(odd.values())}
    if any(problems.values()):
        raise ValueError("; ".join(f"{len(names)} {kind}: {', '.join(names[:2])}" for kind, names in problems.items() if names))
    return renamed
