"""Denoising networks of text-conditioned pipelines, called with the number of a prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


class PromptedNetwork(nn.Module):
    """The network of a text-conditioned pipeline, called as `network(noisy, timestep)` or
    `network(noisy, timestep, prompts)`.

    `tables`: prompts encoded by `pipelines.encoded`, one row for each, in main memory. `size`:
    height and width of the images in pixels, an input of Stable Diffusion XL. `guidance`: its
    scale, an input of guidance-distilled networks (`pipelines.takes_guidance`).
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - a model of diffusers
        tables: Mapping[str, torch.Tensor],
        size: int,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.guidance = guidance
        self.text = tables["text"]
        self.pooled = tables.get("pooled")

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Prediction (batch, channels, height, width) for noisy latents; `prompts`: rows of the
        tables, int64 (batch,), or 0.
        """
        rows = torch.zeros(len(noisy), dtype=torch.int64)
        if prompts is not None:
            rows = prompts.cpu()
        text = self.text[rows].to(noisy.device)
        pooled = None
        if self.pooled is not None:
            pooled = self.pooled[rows].to(noisy.device)
        return self.predicted(noisy, timestep, text, pooled)

    @abstractmethod
    def predicted(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """The prediction for noisy latents with an encoded text each."""


class PromptedUNet(PromptedNetwork):
    """The U-Net of Stable Diffusion, of its XL version, or of a latent consistency model."""

    def predicted(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        options: dict[str, object] = {}
        if pooled is not None:
            size = self.size
            sizes = torch.tensor([size, size, 0, 0, size, size], device=noisy.device)
            time_ids = sizes.expand(len(noisy), -1)
            options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        if self.network.config.time_cond_proj_dim is not None:
            options["timestep_cond"] = self._guidance_embedding(noisy)
        prediction: torch.Tensor = self.network(noisy, timestep, text, **options).sample
        return prediction

    def _guidance_embedding(self, noisy: torch.Tensor) -> torch.Tensor:
        """Embedding of the guidance scale g for latent consistency models (arXiv:2310.04378):
        sines, cosines of 1000 (g - 1).
        """
        half = self.network.config.time_cond_proj_dim // 2
        numbers = torch.arange(half, device=noisy.device)
        rates = torch.exp(-numbers * np.log(10000.0) / (half - 1))
        angles = 1000.0 * (self.guidance - 1) * rates
        embedding = torch.cat([angles.sin(), angles.cos()]).to(noisy.dtype)
        return embedding.expand(len(noisy), -1)


class PromptedStableDiffusion3(PromptedNetwork):
    """The transformer of Stable Diffusion 3."""

    def predicted(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        prediction: torch.Tensor = self.network(
            noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep
        ).sample
        return prediction


class PromptedFlux(PromptedNetwork):
    """The transformer of FLUX, which takes latents as a sequence of blocks of two by two."""

    def predicted(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, channels, height, width = noisy.shape
        rows = height // 2
        columns = width // 2
        blocks = noisy.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(rows, columns, 3, device=noisy.device, dtype=noisy.dtype)
        places[..., 1] = torch.arange(rows, device=noisy.device)[:, None]
        places[..., 2] = torch.arange(columns, device=noisy.device)
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full((batch,), self.guidance, device=noisy.device)
        predicted = self.network(
            hidden_states=blocks.reshape(batch, -1, 4 * channels),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep / 1000,
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            guidance=guidance,
        ).sample
        blocks = predicted.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        unpacked: torch.Tensor = blocks.reshape(batch, channels, height, width)
        return unpacked
