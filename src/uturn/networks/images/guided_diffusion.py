"""Checkpoints of OpenAI's guided-diffusion (ADM, arXiv:2105.05233) as networks that diffusers' schedulers can drive.

The weights are given to diffusers' `UNet2DModel`, which computes the same function with the right settings. The names and shapes
of the weights determine the architecture. They do not determine the noise schedule, the number of attention heads, their order
and the image size: these come from a preset, or from the options with which the original code was called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from uturn.core.checks import one_line
from uturn.core.files import whole_folder
from uturn.networks.images.guided_diffusion_options import PRESETS as PRESETS
from uturn.networks.images.guided_diffusion_options import read_options
from uturn.networks.images.guided_diffusion_weights import Architecture, empty_unet, read_checkpoint, renamed_weights

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class GuidedDiffusionUNet(nn.Module):
    """A guided-diffusion network, called as the original: `model(noisy, timestep)`, or `model(noisy, timestep, class_labels)`.

    The network inside is diffusers' `UNet2DModel`. Its options cannot express two settings of the original: attention heads fixed
    in number rather than in width, and a timestep embedding that is not as wide as the first level. They are set on its parts,
    and `not_in_diffusers` names them.

    Attributes
    ----------
    unet : UNet2DModel
    options : dict
        The options of the original that describe this network, given or read from the weights, as plain data.
        `load_guided_diffusion(path, **options)` makes it again, `guided_diffusion_scheduler(**options)` makes its scheduler.
    num_classes : int or None
        Number of classes, 0 .. num_classes - 1, if it is conditioned on one; None if it is unconditional.
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
        "--image_size 64 --num_heads 4 --noise_schedule cosine". Without this and options, the preset that the file is named
        after.
    **options
        Those of the original; they override the preset. Needed: image_size, and num_heads or num_head_channels. Optional:
        num_heads_upsample, use_new_attention_order, noise_schedule, diffusion_steps, predict_xstart, sigma_small, use_fp16 (the
        network in float16). What the weights determine (num_channels, num_res_blocks, channel_mult, attention_resolutions,
        use_scale_shift_norm, resblock_updown, learn_sigma, class_cond) may be left out, and is checked if given. Options of
        training (dropout, use_checkpoint, use_kl, rescale_learned_sigmas) are ignored.

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds more than weights; if weights are missing, unexpected, of another shape or not
        finite; if the options are incomplete or contradict the weights.
    """
    path = Path(path)
    weights = read_checkpoint(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found = Architecture.read(path, shapes)
    given = read_options(path, preset, options)  # a file of another kind has no preset, so it is recognised first
    resolved = found.checked_options(path, given)
    unet, not_in_diffusers = empty_unet(found, resolved)
    unet.load_state_dict(renamed_weights(path, weights, found, resolved, unet), assign=True)
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

    given = read_options(None, preset, options)
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
