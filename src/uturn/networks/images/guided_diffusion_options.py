"""Options of guided-diffusion: those of the published models, and the user's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from uturn.core.checks import expect
from uturn.networks.libraries import reading

_SHARED: dict[str, Any] = {
    "num_channels": 256, "num_res_blocks": 2, "attention_resolutions": (32, 16, 8), "use_scale_shift_norm": True,
    "resblock_updown": True, "learn_sigma": True, "noise_schedule": "linear",
}  # fmt: skip
_256 = {**_SHARED, "image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_head_channels": 64}
_64 = {"num_channels": 192, "num_res_blocks": 3, "use_new_attention_order": True, "noise_schedule": "cosine"}
_UNCONDITIONAL = ("256x256_diffusion_uncond", "lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_horse_nodropout")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "64x64_diffusion": _256 | _64 | {"image_size": 64, "channel_mult": (1, 2, 3, 4), "class_cond": True},
    "128x128_diffusion": _SHARED | {"image_size": 128, "channel_mult": (1, 1, 2, 3, 4), "num_heads": 4, "class_cond": True},
    "256x256_diffusion": _256 | {"class_cond": True},
    "512x512_diffusion": _256 | {"image_size": 512, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "class_cond": True},
    **dict.fromkeys(_UNCONDITIONAL, _256 | {"class_cond": False}),
}
"""Options of the published models by the names of their files (README of openai/guided-diffusion)."""
EXPECTED = f"one of {', '.join(PRESETS)}, or the original's flags, such as '--image_size 256 --num_head_channels 64'"
_IGNORED = ("use_fp16", "dropout", "use_checkpoint", "use_kl", "rescale_learned_sigmas")  # options of precision and training


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

    @field_validator("*", mode="before")
    @classmethod
    def _flag(cls, value: Any, info: Any) -> Any:
        if value in (-1, "-1", ""):
            return None
        is_list = isinstance(value, str) and info.field_name in ("channel_mult", "attention_resolutions")
        return tuple(value.split(",")) if is_list else value


def read_options(path: Path | None, preset: str | None, options: Mapping[str, Any]) -> GuidedDiffusionOptions:
    """Options of a preset (by default the preset with the name of the file), overridden by the given options.

    `preset`: a key of `PRESETS`, or flags in the form "--name value". ValueError for unknown or invalid options.
    """
    if preset is None and not options and path is not None:
        expect(path.stem in PRESETS, f"{path}: preset", None, f"{EXPECTED}; or a file with the name of a preset")
        preset = path.stem
    if preset is None or preset in PRESETS:
        named = dict(PRESETS.get(preset or "", {}))
    else:
        with reading(f"preset = {preset!r}", f"expected {EXPECTED}"):
            tokens = [part for token in shlex.split(preset) for part in token.split("=", 1)]
        expect(len(tokens) % 2 == 0, "preset", preset, EXPECTED)
        named = {name.removeprefix("--"): value for name, value in zip(tokens[::2], tokens[1::2], strict=True)}
    given = {**named, **options}
    refused = {
        "timestep_respacing": "`steps` of the reverse process chooses the timesteps",
        "rescale_timesteps": "leave it out with 1000 training steps, where it changes nothing; others are not supported",
    }
    for name, reason in refused.items():
        value = given.pop(name, "")
        expect(value in ("", "False", False), name, value, f"none; {reason}")
    return GuidedDiffusionOptions(**{name: value for name, value in given.items() if name not in _IGNORED})
