"""Pipelines of text-conditioned models as diffusers writes them: tiny, with random weights and
tokenizers of letters.
"""

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZE = 32  # pixels of the images that the models were "trained" for
KINDS = ("sd", "sdxl", "sd3", "flux")


def write(kind: str, folder: Path, **options) -> Path:
    """Write the pipeline of a kind, one of KINDS, to a folder; options go to its denoiser."""
    torch.manual_seed(KINDS.index(kind))
    made = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[kind](folder / "parts", **options)
    made.save_pretrained(folder)
    return folder


def _clip_tokenizer(folder):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    tokens = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16}))
    return CLIPTokenizer.from_pretrained(folder)


def _clip(width, projection=None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    names = {
        "vocab_size": 54,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
        "max_position_embeddings": 16,
    }
    config = CLIPTextConfig(**sizes, **names, projection_dim=projection or width)
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()


def _t5(width):
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    tokens = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -5.0),
        ("\u2581", -2.0),
        *((letter, -3.0) for letter in LETTERS),
    ]
    tokenizer = T5TokenizerFast(vocab=tokens, extra_ids=0)
    return (
        tokenizer,
        T5EncoderModel(
            T5Config(vocab_size=30, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ).eval(),
    )


def _autoencoder(channels, **options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIZE,
        **options,
    ).eval()


def _unet(**options):
    from diffusers import UNet2DConditionModel

    given = {
        "sample_size": SIZE // 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 8,
    }
    return UNet2DConditionModel(**{**given, **options}).eval()


def _noise_schedule():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _sd(folder, **options):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_autoencoder(4),
        text_encoder=_clip(8),
        tokenizer=_clip_tokenizer(folder),
        unet=_unet(**options),
        scheduler=_noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder, **options):
    from diffusers import StableDiffusionXLPipeline

    unet = _unet(
        **{
            "cross_attention_dim": 20,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 12 + 6 * 4,
            **options,
        }
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(4, force_upcast=True),
        text_encoder=_clip(8),
        text_encoder_2=_clip(12, projection=12),
        tokenizer=_clip_tokenizer(folder / "1"),
        tokenizer_2=_clip_tokenizer(folder / "2"),
        unet=unet,
        scheduler=_noise_schedule(),
    )


def _sd3(folder, **options):
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer, encoder = _t5(24)
    transformer = SD3Transformer2DModel(
        **{
            "sample_size": SIZE // 2,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8 + 12,
            "pos_embed_max_size": 32,
            **options,
        }
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(8, projection=8),
        text_encoder_2=_clip(12, projection=12),
        text_encoder_3=encoder,
        tokenizer=_clip_tokenizer(folder / "1"),
        tokenizer_2=_clip_tokenizer(folder / "2"),
        tokenizer_3=tokenizer,
    )


def _flux(folder, **options):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, encoder = _t5(24)
    transformer = FluxTransformer2DModel(
        **{
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 8,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
            **options,
        }
    )
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_autoencoder(4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=_clip(8),
        text_encoder_2=encoder,
        tokenizer=_clip_tokenizer(folder),
        tokenizer_2=tokenizer,
    )
