"""Parameters, operations and GPU-hours of the models in examples/atlas/public.toml: estimates, nothing is run.

    python benchmarks/atlas_costs.py

The networks are built without memory for their weights, from the configurations that they are published with. The operations of
a call are counted by torch. GPU-hours are calls times operations, divided by 40 % of the peak of an H100 in bfloat16
(docs/images.md). Classifiers, autoencoders and text encoders are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from uturn.networks.images.guided_diffusion import PRESETS, empty_unet
from uturn.presets.images import noise_levels
from uturn.tools.atlas.rows import read_atlas

PEAK, SHARE = 989e12, 0.4
ATLAS = Path(__file__).parents[1] / "examples" / "atlas" / "public.toml"


def adm(preset: str) -> tuple[Any, tuple[Any, ...]]:
    options = PRESETS[preset]
    size, classes = options["image_size"], 1000 if options["class_cond"] else None
    labels = () if classes is None else (torch.zeros(1, dtype=torch.long),)
    attends = [size >> level in options["attention_resolutions"] for level in range(len(options["channel_mult"]))]
    return empty_unet(options, attends, 3, classes), (torch.zeros(1, 3, size, size), torch.zeros(1), *labels)


def unet(size: int, channels: int, widths: tuple[int, ...], attends: str, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """`attends`: one letter a level, A where it has attention."""
    down = tuple("AttnDownBlock2D" if letter == "A" else "DownBlock2D" for letter in attends)
    up = tuple("AttnUpBlock2D" if letter == "A" else "UpBlock2D" for letter in reversed(attends))
    network = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        **options,
    )
    return network, (torch.zeros(1, channels, size, size), torch.zeros(1))


def dit() -> tuple[Any, tuple[Any, ...]]:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32
    )
    return network, (torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def stable_diffusion() -> tuple[Any, tuple[Any, ...]]:
    network = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return network, (torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768))


def sdxl() -> tuple[Any, tuple[Any, ...]]:
    network = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    inputs = (torch.zeros(1, 4, 128, 128), torch.zeros(1), torch.zeros(1, 77, 2048))
    return network, (*inputs, {"added_cond_kwargs": added})


def sd3() -> tuple[Any, tuple[Any, ...]]:
    network = diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
    )
    return network, (torch.zeros(1, 16, 128, 128), torch.zeros(1, 333, 4096), torch.zeros(1, 2048), torch.zeros(1))


def flux() -> tuple[Any, tuple[Any, ...]]:
    network = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    places = {"img_ids": torch.zeros(4096, 3), "txt_ids": torch.zeros(512, 3), "guidance": torch.zeros(1)}
    inputs = (torch.zeros(1, 4096, 64), torch.zeros(1, 512, 4096), torch.zeros(1, 768), torch.zeros(1))
    return network, (*inputs, places)


NETWORKS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "adm-64": lambda: adm("64x64_diffusion"),
    "adm-128": lambda: adm("128x128_diffusion"),
    "adm-256": lambda: adm("256x256_diffusion_uncond"),
    "adm-512": lambda: adm("512x512_diffusion"),
    "ddpm-cifar": lambda: unet(32, 3, (128, 256, 256, 256), "-A--", attention_head_dim=None),
    "ddpm-celeba": lambda: unet(256, 3, (128, 128, 256, 256, 512, 512), "----A-", attention_head_dim=None),
    "ddpm-church": lambda: unet(256, 3, (128, 128, 256, 256, 512, 512), "----A-", attention_head_dim=None),
    "ldm-celeba": lambda: unet(64, 3, (224, 448, 672, 896), "-AAA", attention_head_dim=32),
    "dit": dit,
    "sd-1.5": stable_diffusion,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
}


def cost(made: Callable[[], tuple[Any, tuple[Any, ...]]]) -> tuple[int, float]:
    """Parameters, and operations of a call on one image."""
    with torch.device("meta"):
        network, inputs = made()
        named = inputs[-1] if isinstance(inputs[-1], dict) else {}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(*inputs[: len(inputs) - bool(named)], **named)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


def main() -> None:
    print("| row | parameters | GFLOP a call | calls | GPU-hours, H100 |\n|---|---|---|---|---|")
    for row in read_atlas(ATLAS):
        parameters, operations = cost(NETWORKS[row.name])
        steps = sum(round(noise * row.steps) for noise in noise_levels(row.levels, row.steps))
        calls = row.items * row.trajectories * row.clones * steps
        if row.data == "generated":
            calls += max(row.items, 256) * row.steps
        hours = calls * operations / (SHARE * PEAK) / 3600
        print(f"| {row.name} | {parameters / 1e6:,.0f} M | {operations / 1e9:,.0f} | {calls / 1e3:,.0f} k | {hours:.2g} |")


if __name__ == "__main__":
    main()
