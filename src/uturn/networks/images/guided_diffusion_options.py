"""Options of guided-diffusion: those of the published models, and validation of the user's options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from uturn.core.checks import validation_words


def _published(image_size: int, channel_mult: tuple[float, ...], **options: Any) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "channel_mult": channel_mult,
        "num_channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": (32, 16, 8),
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "learn_sigma": True,
        "noise_schedule": "linear",
        **options,
    }


_UNCONDITIONAL_256 = _published(256, (1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=False)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "64x64_diffusion": _published(
        64,
        (1, 2, 3, 4),
        num_channels=192,
        num_res_blocks=3,
        num_head_channels=64,
        use_new_attention_order=True,
        noise_schedule="cosine",
        class_cond=True,
    ),
    "128x128_diffusion": _published(128, (1, 1, 2, 3, 4), num_heads=4, class_cond=True),
    "256x256_diffusion": _published(256, (1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=True),
    "256x256_diffusion_uncond": _UNCONDITIONAL_256,
    "512x512_diffusion": _published(512, (0.5, 1, 1, 2, 2, 4, 4), num_head_channels=64, class_cond=True),
    "lsun_bedroom": _UNCONDITIONAL_256,
    "lsun_cat": _UNCONDITIONAL_256,
    "lsun_horse": _UNCONDITIONAL_256,
    "lsun_horse_nodropout": _UNCONDITIONAL_256,
}
"""Options of the published models by the names of their files (README of openai/guided-diffusion)."""


class GuidedDiffusionOptions(BaseModel):
    """Options of the original's scripts, None if not given; text is parsed like its flags."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int | None = Field(None, ge=1)
    num_channels: int | None = Field(None, ge=1)
    num_res_blocks: int | None = Field(None, ge=1)
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[PositiveInt, ...] | None = None
    num_heads: int | None = Field(None, ge=1)
    num_head_channels: int | None = Field(None, ge=1)
    num_heads_upsample: int | None = Field(None, ge=1)
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    noise_schedule: Literal["linear", "cosine"] = "linear"
    diffusion_steps: int = Field(1000, gt=20, le=100_000)  # 20 steps would make the last beta of the linear schedule 1
    predict_xstart: bool = False
    sigma_small: bool = False
    # Options of precision, sampling and training, which describe neither the network nor its diffusion process:
    use_fp16: bool = Field(False, exclude=True)
    rescale_timesteps: bool = Field(False, exclude=True)
    timestep_respacing: str = Field("", exclude=True)
    dropout: float = Field(0, exclude=True)
    use_checkpoint: bool = Field(False, exclude=True)
    use_kl: bool = Field(False, exclude=True)
    rescale_learned_sigmas: bool = Field(False, exclude=True)

    @field_validator("num_heads", "num_head_channels", "num_heads_upsample", mode="before")
    @classmethod
    def _minus_one_is_none(cls, value: Any) -> Any:
        return None if value in (-1, "-1") else value

    @field_validator("channel_mult", "attention_resolutions", mode="before")
    @classmethod
    def _list_in_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(value.split(",")) if value else None


EXPECTED = f"one of {', '.join(PRESETS)}, or the original's flags, such as '--image_size 256 --num_head_channels 64'"
"""What is expected as a preset, for errors."""


def read_options(path: Path | None, preset: str | None, options: Mapping[str, Any]) -> GuidedDiffusionOptions:
    """Options of a preset (by default the preset with the name of the file), overridden by the given options.

    Raises
    ------
    ValueError
        If an option is unknown or not valid, or if there is no such preset.
    """
    if preset is None and not options and path is not None:
        if path.stem not in PRESETS:
            raise ValueError(f"{path}: no preset given, and the file is not named after one; expected {EXPECTED}")
        preset = path.stem
    try:
        declared = GuidedDiffusionOptions(**{**_preset_options(preset), **options})
    except ValidationError as error:
        raise ValueError(validation_words(error)) from None
    if declared.timestep_respacing:
        respacing = declared.timestep_respacing
        raise ValueError(
            f"timestep_respacing = {respacing!r}: leave it out; `steps` of the reverse process chooses the timesteps"
        )
    if declared.rescale_timesteps and declared.diffusion_steps != 1000:
        raise ValueError(f"rescale_timesteps with diffusion_steps = {declared.diffusion_steps} is not supported; expected 1000")
    return declared


def _preset_options(preset: str | None) -> dict[str, Any]:
    """Options of a preset, or of flags in the form "--name value"."""
    if preset is None:
        return {}
    if preset in PRESETS:
        return dict(PRESETS[preset])
    if not preset.lstrip().startswith("--"):
        raise ValueError(f"preset = {preset!r}: expected {EXPECTED}")
    try:
        tokens = [part for token in shlex.split(preset) for part in token.split("=", 1)]
    except ValueError as error:
        raise ValueError(f"preset = {preset!r}: {error}") from None
    names, values = tokens[::2], tokens[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"preset = {preset!r}: expected pairs `--name value`")
    flags: dict[str, Any] = dict(zip((name[2:] for name in names), values, strict=True))
    # Flags describe the checkpoint, not the precision in which it is run.
    flags.pop("use_fp16", None)
    return flags
