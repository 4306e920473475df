"""Text-conditioned pipelines of diffusers: encoded prompts, and denoisers that take the number of a prompt.

Texts are encoded once, before the denoiser is loaded; then a prompt is a row of a table, as a class is. Therefore a batch may mix
images with different prompts, and guidance works as for class-conditioned models.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from uturn.core.checks import expect
from uturn.core.pieces import half_precision_words
from uturn.networks.files import fingerprint
from uturn.networks.images.pipelines import TEXT_PARTS, Folder, for_inference, load_part
from uturn.networks.libraries import library, reading, without_bars

_ZEROS = "force_zeros_for_empty_prompt"
_AT_ONCE = 16  # prompts encoded in one batch
_DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper-sd")  # parts of the names of step-distilled models


def encoded(
    folder: Folder, texts: Sequence[str], device: torch.device, dtype: torch.dtype, offload: bool = False
) -> tuple[dict[str, torch.Tensor], str]:
    """Texts as the pipeline encodes them, on the CPU, and a digest of encoders and tokens (hexadecimal).

    {"text": (texts, tokens, width), "pooled": (texts, width) if the pipeline has one}. The empty text is encoded like a missing
    prompt in the pipeline. The encoders are loaded here and freed at the end.
    """
    different = list(dict.fromkeys(text for text in texts if text))
    batches = [different[k : k + _AT_ONCE] for k in range(0, len(different), _AT_ONCE)] + [[""]] * ("" in texts)
    rows = {text: row for row, text in enumerate([*different, ""])}
    of_transformers = library("transformers.utils.logging", f"{folder.path} is a {folder.pipeline}, which")
    of_diffusers = importlib.import_module("diffusers.utils.logging")
    with without_bars(of_diffusers, of_transformers), torch.inference_mode():
        encoders = {
            part: for_inference(load_part(folder.path, part, class_name, dtype), device, offload)
            for part, class_name in folder.parts.items()
            if class_name in TEXT_PARTS and "Tokenizer" not in class_name
        }
        with reading(f"{folder.path}: the text encoders and tokenizers", "fetch or write them again"):
            pipeline = _text_pipeline(folder, encoders, dtype)
            parts = [_encoded(pipeline, batch, device) for batch in batches]
            tokens = [part(list(rows))["input_ids"] for name, part in pipeline.components.items() if "tokenizer" in name and part]
        facts = [sorted(encoders), *map(fingerprint, encoders.values()), tokens, dict(pipeline.config).get(_ZEROS)]
    order = [rows[text] for text in texts]
    tables = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
    if not all(bool(table.isfinite().all()) for table in tables.values()):
        raise ValueError(f"{folder.path}: the text encoders give NaN or infinity{half_precision_words(dtype)}")
    del pipeline, encoders
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return tables, hashlib.sha256(repr(facts).encode()).hexdigest()


def _text_pipeline(folder: Folder, encoders: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline with only its tokenizers and text encoders."""
    import diffusers

    used = {part for part, class_name in folder.parts.items() if class_name in TEXT_PARTS}
    others = {part for part in (*folder.parts, *folder.left_out, "image_encoder") if part not in used}
    pipeline = getattr(diffusers, folder.pipeline).from_pretrained(
        str(folder.path), local_files_only=True, **dict.fromkeys(others), **encoders
    )
    denoiser = getattr(diffusers, folder.parts[folder.denoiser])
    config = denoiser.load_config(str(folder.path / folder.denoiser), local_files_only=True)
    setattr(pipeline, folder.denoiser, SimpleNamespace(config=SimpleNamespace(**config), dtype=dtype))  # read for its sizes
    return pipeline


def _encoded(pipeline: Any, texts: list[str], device: torch.device) -> dict[str, torch.Tensor]:
    """{"text", "pooled"} of texts, or of the null prompt if the only text is empty."""
    kind = type(pipeline).__name__
    options: dict[str, Any] = {"prompt": texts, "device": device, "num_images_per_prompt": 1}
    if kind == "FluxPipeline":
        text, pooled, _ = pipeline.encode_prompt(prompt_2=None, **options)
        return {"text": text.cpu(), "pooled": pooled.cpu()}
    if kind == "StableDiffusion3Pipeline":
        options |= {"prompt_2": None, "prompt_3": None}
    is_null = texts == [""]
    prompts = pipeline.encode_prompt(do_classifier_free_guidance=is_null, negative_prompt=None, **options)
    tables = prompts[1::2] if is_null else prompts[::2]  # the pipeline returns prompt and null prompt in turn
    return {name: table.cpu() for name, table in zip(("text", "pooled"), tables, strict=False)}


class TextDenoiser(nn.Module):
    """The denoiser of a text-conditioned pipeline, called as `network(noisy, timestep)` or `network(noisy, timestep, prompts)`.

    `tables`: prompts encoded by `encoded`, one row for each, in main memory. `size`: height and width of the images in pixels, an
    input of Stable Diffusion XL. `guidance`: its scale, an input of guidance-distilled networks (`takes_guidance`).
    """

    def __init__(self, network: Any, tables: dict[str, torch.Tensor], size: int, guidance: float = 1.0) -> None:
        super().__init__()
        self.network, self.size, self.guidance = network, size, guidance
        self.text, self.pooled = tables["text"], tables.get("pooled")

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """Prediction (batch, channels, height, width) for noisy latents; `prompts`: rows of the tables, int64 (batch,), or 0."""
        rows = torch.zeros(len(noisy), dtype=torch.int64) if prompts is None else prompts.cpu()
        text = self.text[rows].to(noisy.device)
        pooled = None if self.pooled is None else self.pooled[rows].to(noisy.device)
        kind = type(self.network).__name__
        if kind == "FluxTransformer2DModel":
            return self._flux(noisy, timestep, text, pooled)
        if kind == "SD3Transformer2DModel":
            return self.network(noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep).sample
        options: dict[str, Any] = {}
        if pooled is not None:
            sizes = torch.tensor([self.size, self.size, 0, 0, self.size, self.size], device=noisy.device)
            options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy), -1)}
        if self.network.config.time_cond_proj_dim is not None:
            options["timestep_cond"] = self._guidance_embedding(noisy)
        return self.network(noisy, timestep, text, **options).sample

    def _flux(self, noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, pooled: Any) -> torch.Tensor:
        """Call FLUX, which takes latents as a sequence of blocks of two by two; returns its output as an image of latents."""
        batch, channels, height, width = noisy.shape
        blocks = noisy.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(height // 2, width // 2, 3, device=noisy.device, dtype=noisy.dtype)
        places[..., 1] = torch.arange(height // 2, device=noisy.device)[:, None]
        places[..., 2] = torch.arange(width // 2, device=noisy.device)
        guidance = torch.full((batch,), self.guidance, device=noisy.device) if self.network.config.guidance_embeds else None
        predicted = self.network(
            hidden_states=blocks.reshape(batch, -1, 4 * channels),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep / 1000,
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            guidance=guidance,
        ).sample
        blocks = predicted.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return blocks.reshape(batch, channels, height, width)

    def _guidance_embedding(self, noisy: torch.Tensor) -> torch.Tensor:
        """Embedding of the guidance scale g for latent consistency models (arXiv:2310.04378): sines, cosines of 1000 (g - 1)."""
        half = self.network.config.time_cond_proj_dim // 2
        rates = torch.exp(-torch.arange(half, device=noisy.device) * np.log(10000.0) / (half - 1))
        angles = 1000.0 * (self.guidance - 1) * rates
        return torch.cat([angles.sin(), angles.cos()]).to(noisy.dtype).expand(len(noisy), -1)


def takes_guidance(network: Any) -> bool:
    """Whether the network was distilled from guided predictions and takes the scale as an input."""
    return bool(network.config.get("guidance_embeds")) or network.config.get("time_cond_proj_dim") is not None


def distillation(network: Any, scheduler: Any, path: Path) -> str:
    """The kind of distillation of a model, "guidance" or "step"; "" if its files show none.

    Guidance-distilled networks take a scale. Step-distilled models are recognised by the scheduler of consistency models, by a
    FLUX schedule that is not shifted by resolution (schnell), or by the name of the folder.
    """
    is_fixed_flux = type(network).__name__ == "FluxTransformer2DModel" and not scheduler.config.get("use_dynamic_shifting")
    name = path.resolve().name.lower()
    if type(scheduler).__name__ in ("LCMScheduler", "TCDScheduler") or any(word in name for word in _DISTILLED):
        return "step"
    if takes_guidance(network):
        return "guidance"
    return "step" if is_fixed_flux else ""


def latent_channels(network: Any) -> int:
    """Channels of a denoiser's latents; FLUX stacks four positions into its channels."""
    return network.config.in_channels // (4 if type(network).__name__ == "FluxTransformer2DModel" else 1)


def latents_of(network: Any, scale: int, size: int | None) -> tuple[int, int, int]:
    """(channels, height, width) of the latents for images of `size` pixels, by default the model's training size.

    `scale`: pixels of the image for each latent.
    """
    kind, config = type(network).__name__, network.config
    patch = {"FluxTransformer2DModel": 2, "SD3Transformer2DModel": config.get("patch_size", 1)}.get(kind, 1)
    default = config.get("sample_size") or 128  # FLUX networks do not state it; their pipelines use 128
    height, width = (default, default) if isinstance(default, int) else default
    expect(height == width, "the latents of the denoiser", default, "squares")
    size, unit = height * scale if size is None else size, scale * patch
    expect(size >= unit and size % unit == 0, "image_size", size, f"a multiple of {unit} pixels, as its networks take")
    most = config.get("pos_embed_max_size") or size
    expect(size <= most * unit, "image_size", size, f"at most {most * unit} pixels, as the denoiser takes")
    return latent_channels(network), size // scale, size // scale
