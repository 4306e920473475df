"""Weights of guided-diffusion: what their names and shapes say about the network, and the same network in diffusers' layout."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uturn.core.checks import one_line
from uturn.networks.images.guided_diffusion_options import GuidedDiffusionOptions, preset_words
from uturn.networks.images.own_denoisers import ADVICE

_FORGOTTEN = {
    "use_fp16",
    "rescale_timesteps",
    "timestep_respacing",
    "dropout",
    "use_checkpoint",
    "use_kl",
    "rescale_learned_sigmas",
}
"""Options that determine neither the network nor its diffusion process."""


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
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
            f"network's state_dict() alone; {ADVICE}"
        ) from None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path} holds a {type(weights).__name__}; expected a state dict, tensors by name; {ADVICE}")
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(tensor).__name__}; expected a state dict, tensors by name; {ADVICE}")
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
class Architecture:
    """What the names and shapes of the weights say about the network."""

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
    def read(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """Read it, or raise a ValueError if this is no such network. Names and shapes are compared one by one later."""

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            if name not in shapes:
                raise ValueError(
                    f"{path}: weights {name!r} are missing; expected a guided-diffusion U-Net (time_embed, input_blocks, "
                    f"middle_block, output_blocks, out), not its classifier and not another network; {ADVICE}"
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

    def checked_options(self, path: Path, given: GuidedDiffusionOptions) -> dict[str, Any]:
        """All options of the network, or a ValueError where they are incomplete, contradict the weights, or fit no network."""
        self._check_channels(path)
        size = self._checked_size(path, given)
        found = self._options(size)
        for name, value in self._comparable(given, size, found).items():
            if value != found[name]:
                raise ValueError(
                    f"{path}: {name} is {found[name]} by its weights, {value} by the preset or the options; leave it out, "
                    f"or take the preset or the options of this checkpoint"
                )
        options = {**given.model_dump(exclude_none=True), **found}
        options = {name: value for name, value in options.items() if name not in _FORGOTTEN}
        if "num_head_channels" in options:  # as in the original, it overrides the number of heads
            options = {name: value for name, value in options.items() if name not in ("num_heads", "num_heads_upsample")}
        for name in ("num_head_channels", "num_heads", "num_heads_upsample"):
            odd = [channels for channels in self.attention_channels() if channels % options.get(name, 1)]
            if odd:
                raise ValueError(
                    f"{name} = {options[name]}: does not divide the {odd[0]} channels of an attention layer of {path}"
                )
        return options

    def _check_channels(self, path: Path) -> None:
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

    def _checked_size(self, path: Path, given: GuidedDiffusionOptions) -> int:
        """The image size, if it fits the levels; the number of heads must be given too."""
        size, levels = given.image_size, len(self.channels)
        if size is None:
            raise ValueError(f"{path}: image_size is not given, and the weights do not tell; expected it, or {preset_words()}")
        if size % 2 ** (levels - 1):
            raise ValueError(f"image_size = {size}: expected a multiple of {2 ** (levels - 1)}, as {path} has {levels} levels")
        if given.num_heads is None and given.num_head_channels is None:
            raise ValueError(f"{path}: neither num_heads nor num_head_channels is given; expected one, or {preset_words()}")
        return size

    def _options(self, size: int) -> dict[str, Any]:
        """The options that the weights determine."""
        return {
            "num_channels": self.num_channels,
            "num_res_blocks": self.num_res_blocks,
            "channel_mult": [count / self.num_channels for count in self.channels],
            "attention_resolutions": [size >> level for level, attends in enumerate(self.attention) if attends],
            "use_scale_shift_norm": self.use_scale_shift_norm,
            "learn_sigma": self.out_channels == 2 * self.in_channels,
            "class_cond": self.num_classes is not None,
            "resblock_updown": self.resblock_updown,
        }

    def _comparable(self, given: GuidedDiffusionOptions, size: int, found: Mapping[str, Any]) -> dict[str, Any]:
        """The given options that the weights determine too, in the form in which `_options` has them."""
        levels = len(self.channels)
        comparable = given.model_dump(include=set(found), exclude_none=True)
        if levels == 1:
            comparable.pop("resblock_updown", None)  # nothing to resample
        if "attention_resolutions" in comparable:  # those that no level has are ignored; the original divides without remainder
            factors = {size // resolution for resolution in comparable["attention_resolutions"]}
            comparable["attention_resolutions"] = [size >> level for level in range(levels) if 2**level in factors]
        factors_of_channels = comparable.get("channel_mult", ())
        if tuple(int(factor * self.num_channels) for factor in factors_of_channels) == self.channels:
            del comparable["channel_mult"]
        return comparable

    def attention_channels(self) -> list[int]:
        """Channels of the attention layers: of each level that has some, and of the middle block."""
        return [count for count, attends in zip(self.channels, self.attention, strict=True) if attends] + [self.channels[-1]]


# --- the network of diffusers ------------------------------------------------------------------------------------------------


def empty_unet(found: Architecture, options: Mapping[str, Any]) -> tuple[Any, str | None]:
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


def _parts(found: Architecture) -> Iterator[tuple[str, str, str]]:
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


def renamed_weights(
    path: Path, weights: Mapping[str, torch.Tensor], found: Architecture, options: Mapping[str, Any], unet: Any
) -> dict[str, torch.Tensor]:
    """float32 copies of the weights by diffusers' names; a ValueError names what is missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    missing, odd, used = [], [], set()
    renamed: dict[str, torch.Tensor] = {}
    for module, our_module, kind in _parts(found):
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
        f"{words}: {_first_names(names)}"
        for words, names in (("missing", missing), ("unexpected", unexpected), ("odd", odd))
        if names
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


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
