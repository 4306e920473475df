"""A diffusion model of images as one value: the network, and what a sampler must know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from uturn.core.checks import expect
from uturn.corruption.schedulers import PipelineTimesteps, Scheduler

if TYPE_CHECKING:
    import torch

    from uturn.corruption.diffusion import Codec
    from uturn.networks.images.options import Prompts

Shape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class ImageModel:
    """A diffusion model of images.

    `load_pretrained` reads one. Your own network needs its scheduler beside it, and its
    `image_shape` if it has no configuration that states it.
    """

    network: Callable[..., Any]  # gives a tensor, or an object of diffusers with `.sample`
    """The denoising network, in evaluation mode.

    It is called as `network(noisy, timestep)` with noisy (batch, channels, height, width) and
    timestep (batch,), which may differ in a batch. If there are `num_classes`, a third argument
    are labels, int64 (batch,). It returns a tensor, or an object with `.sample`, of the prediction
    type that `scheduler` declares. If the output has twice the channels of the input, the second
    half is a learned variance; only schedulers that use it get it.
    """
    scheduler: Scheduler
    """A scheduler of diffusers with the noise schedule and the prediction type of the network."""
    _: KW_ONLY
    image_shape: Shape | None = None
    """Shape of the images. By default the shape that `network.config` states; None if it is not
    known.
    """
    codec: Codec | None = None
    """Maps images to latents and back, for models that denoise latents."""
    latent_shape: Shape | None = None
    """Shape of the latents; None without a codec, or if it is not known."""
    num_classes: int | None = None
    """Number of classes if the network takes labels, or number of prompts; None if it takes
    neither.
    """
    prompts: Prompts | None = None
    """The prompts of a text-conditioned model. A label is then the number of a prompt."""
    timesteps: PipelineTimesteps | None = None
    """Timesteps of the pipeline that the model is from; None if they follow from the number of
    steps.
    """
    device: torch.device | str | None = None
    """By default the device of the network."""
    batch_size: int | str = 64
    """Images in a call of the network, or "auto": 64 on the CPU, 256 elsewhere.

    It is halved while the device runs out of memory, and changes results by float rounding only.
    Guided networks have two rows for every image.
    """
    description: str = ""
    """The model in one line."""

    def __post_init__(self) -> None:
        is_training = getattr(self.network, "training", False)
        remedy = "model.eval(), since dropout would corrupt the U-turn"
        expect(not is_training, "training mode of the model", True, remedy)
        is_automatic = self.batch_size == "auto"
        is_size = not isinstance(self.batch_size, str) and 1 <= self.batch_size <= 2**20
        expected = "at least 1 image, or 'auto'"
        expect(is_automatic or is_size, "batch_size", self.batch_size, expected)
        if self.image_shape is None and self.codec is None:
            config = getattr(self.network, "config", None)
            object.__setattr__(self, "image_shape", shape_of(config))

    @property
    def state_shape(self) -> Shape | None:
        """Shape of the noisy data x_t: images, or latents if there is a codec; None if it is not
        known.
        """
        if self.codec is None:
            return self.image_shape
        return self.latent_shape


def shape_of(config: object) -> Shape | None:
    """Shape of the images that a configuration of a network states, if it does."""
    size = getattr(config, "sample_size", None)
    channels = getattr(config, "in_channels", None)
    if size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)
