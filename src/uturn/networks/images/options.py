"""Options of image models, declared once for specs, loaders and commands, and the conditions
under which models are run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from uturn.core.checks import expect
from uturn.core.files import read_text
from uturn.core.messages import shown
from uturn.networks.libraries import reading

_SHARED: Mapping[str, object] = {
    "num_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": (32, 16, 8),
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
    "noise_schedule": "linear",
}
_256: Mapping[str, object] = {
    **_SHARED,
    "image_size": 256,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_head_channels": 64,
}
_UNCONDITIONAL: Mapping[str, object] = {**_256, "class_cond": False}
PRESETS: Mapping[str, Mapping[str, object]] = {
    "64x64_diffusion": {
        **_256,
        "num_channels": 192,
        "num_res_blocks": 3,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
        "image_size": 64,
        "channel_mult": (1, 2, 3, 4),
        "class_cond": True,
    },
    "128x128_diffusion": {
        **_SHARED,
        "image_size": 128,
        "channel_mult": (1, 1, 2, 3, 4),
        "num_heads": 4,
        "class_cond": True,
    },
    "256x256_diffusion": {**_256, "class_cond": True},
    "512x512_diffusion": {
        **_256,
        "image_size": 512,
        "channel_mult": (0.5, 1, 1, 2, 2, 4, 4),
        "class_cond": True,
    },
    "256x256_diffusion_uncond": _UNCONDITIONAL,
    "lsun_bedroom": _UNCONDITIONAL,
    "lsun_cat": _UNCONDITIONAL,
    "lsun_horse": _UNCONDITIONAL,
    "lsun_horse_nodropout": _UNCONDITIONAL,
}
"""Options of the published models by the names of their files (README of
openai/guided-diffusion).
"""
EXPECTED = (
    f"one of {', '.join(PRESETS)}, or the original's flags, such as '--image_size 256"
    " --num_head_channels 64'"
)
_IGNORED = ("use_fp16", "dropout", "use_checkpoint", "use_kl", "rescale_learned_sigmas")
"""Options of precision and training."""
_REFUSED: Mapping[str, str] = {
    "timestep_respacing": "`steps` of the reverse process chooses the timesteps",
    "rescale_timesteps": (
        "leave it out with 1000 training steps, where it changes nothing; others are not supported"
    ),
}
"""Options that change the chain, with the reason why they are refused."""

Device = Annotated[
    str | None,
    Field(
        description="cpu, cuda, cuda:1, mps, ..; by default cuda if available.",
        examples=["cpu", "cuda", "mps"],
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    Field(description="Precision of the model: float32, bfloat16 or float16."),
]


class DenoiserOptions(BaseModel):
    """Options for loading and conditioning a denoiser, shared by specs, loaders and commands.

    `dtype`: timesteps and schedulers keep their own precision, and outputs are float32.
    Autoencoders stay in float32 if they quantise, or, for "float16", if their configuration has
    `force_upcast`. `guidance`: scale of classifier-free guidance (arXiv:2207.12598) towards the
    label or a prompt: null prediction + guidance (conditioned prediction - null prediction);
    guidance-distilled models (FLUX-dev) take it as an input. `null_class` is read from DiT and from
    a `DenoiserModel`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    execution: ClassVar[frozenset[str]] = frozenset({"device", "compile", "offload"})

    preset: str | None = Field(
        None,
        description=(
            "For a guided-diffusion checkpoint: the name of the published model, or flags of the"
            " original code, such as '--image_size 64 --num_heads 4'; by default the name of the"
            " file."
        ),
        examples=list(PRESETS),
    )
    condition: Literal["null", "label"] | None = Field(
        None,
        description=(
            "Class label passed to a class-conditioned model: null (the null class) or label (the"
            " true label). By default null, if the model has a null class."
        ),
    )
    guidance: float = Field(
        1.0,
        strict=True,
        gt=-1e9,
        lt=1e9,
        allow_inf_nan=False,
        description=(
            "Scale of classifier-free guidance towards the label or prompt. Values other than 1 do"
            " not sample the posterior; results say so."
        ),
    )
    null_class: int | None = Field(
        None, description="Number of the null class, which must be the last class of the model."
    )
    prompt: str | None = Field(
        None,
        description=(
            "Prompt of a text-conditioned model: a text, or a .txt file, one line for each item; by"
            " default empty."
        ),
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2**14,
        description=(
            "Height and width of the images of a text-conditioned model, in pixels; by default the"
            " model's own size."
        ),
    )
    dtype: Precision = "float32"
    device: Device = None
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    offload: bool = Field(
        False,
        description=(
            "Keep the weights in main memory and move each layer to the device when needed; slower,"
            " for models that do not fit on the device."
        ),
    )


class DiffusionOptions(DenoiserOptions):
    """Options of a denoiser and its sampler."""

    execution: ClassVar[frozenset[str]] = DenoiserOptions.execution | {"batch_size"}

    model: str = Field(
        "fashion_mnist",
        description=(
            "Folder or hub id of a diffusers model, a guided-diffusion checkpoint, or"
            " module:function."
        ),
        examples=["fashion_mnist"],
    )
    scheduler: str = Field(
        "ddpm",
        description=(
            "Sampler of the reverse process: ddpm, ancestral (also for flow matching), ddim,"
            " euler_ancestral, ..; stored (the model's own scheduler); or the name of a scheduler"
            " class of diffusers."
        ),
        examples=[
            *(
                "stored",
                "ancestral",
                "ddpm",
                "ddim",
                "euler",
                "euler_ancestral",
                "dpm_solver",
                "heun",
                "sde_dpm_solver",
                "unipc",
            ),
            # Not imported: the module that defines these names takes a second to load.
            *("flow_match", "flow_match_stochastic"),
        ],
    )
    steps: int = Field(100, ge=1, description="Number of reverse steps of the whole chain.")
    eta: float | None = Field(
        None, ge=0, le=1, description="Noise of the scheduler ddim, between 0 and 1."
    )
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        None,
        description=(
            "Spacing of the timesteps: linspace, leading or trailing; by default linspace, or"
            " trailing for ddim."
        ),
    )
    pure_noise: bool = Field(
        False, description="At t/T = 1, start from pure noise that does not depend on the original."
    )
    batch_size: int | str = Field(
        "auto", description="Images in a call of the model: a number, or auto."
    )

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: object) -> object:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        is_size = value == "auto" or (is_integer and value in range(1, 2**20 + 1))
        if not is_size:
            raise ValueError(
                f"batch_size = {value!r}: expected 'auto', or an integer in 1 .. {2**20}"
            )
        return value


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
    # 20 steps would make the last beta of the linear schedule 1.
    diffusion_steps: int = Field(1000, gt=20, le=100_000)
    predict_xstart: bool = False
    sigma_small: bool = False

    @field_validator("*", mode="before")
    @classmethod
    def _flag(cls, value: object, info: ValidationInfo) -> object:
        if value in (-1, "-1", ""):
            return None
        is_list = info.field_name in ("channel_mult", "attention_resolutions")
        if isinstance(value, str) and is_list:
            return tuple(value.split(","))
        return value


def read_options(
    path: Path | None,
    preset: str | None,
    options: Mapping[str, Any],  # of the user, checked by `GuidedDiffusionOptions`
) -> GuidedDiffusionOptions:
    """Options of a preset (by default the preset with the name of the file), overridden by the
    given options.

    `preset`: a key of `PRESETS`, or flags in the form "--name value". ValueError for unknown or
    invalid options.
    """
    if preset is None and not options and path is not None:
        expected = f"{EXPECTED}; or a file with the name of a preset"
        expect(path.stem in PRESETS, f"{path}: preset", None, expected)
        preset = path.stem
    if preset is None:
        named: Mapping[str, object] = {}
    elif preset in PRESETS:
        named = PRESETS[preset]
    else:
        named = _parsed_flags(preset)
    declared: dict[str, Any] = {**named, **options}
    for name, reason in _REFUSED.items():
        value = declared.pop(name, "")
        expect(value in ("", "False", False), name, value, f"none; {reason}")
    for name in _IGNORED:
        declared.pop(name, None)
    return GuidedDiffusionOptions(**declared)


def _parsed_flags(text: str) -> dict[str, str]:
    """Flags of the original's scripts, "--name value" or "--name=value"."""
    tokens: list[str] = []
    with reading(f"preset = {text!r}", f"expected {EXPECTED}"):
        for token in shlex.split(text):
            tokens += token.split("=", 1)
    expect(len(tokens) % 2 == 0, "preset", text, EXPECTED)
    names = [name.removeprefix("--") for name in tokens[::2]]
    return dict(zip(names, tokens[1::2], strict=True))


@dataclass(frozen=True)
class Conditioned:
    """The condition with which a network is run."""

    null_class: int | None = None
    """The label for no class, or for the null prompt, if the network is called with it."""
    num_classes: int | None = None
    """Number of classes, or of prompts, if the network is called with labels."""
    guidance: float = 1.0
    words: str = ""
    """The condition as text, for the description of a model."""


UNCONDITIONAL = Conditioned()


def conditioned_by(
    options: DenoiserOptions,
    model: object,
    num_classes: int | None,
    null_class: int | None = None,
) -> Conditioned:
    """The condition of a network with `num_classes` classes (None for no classes) and, if it
    declares one, a null class; ValueError for options that do not fit. `model`: its name in errors.
    """

    def require(is_allowed: bool, option: str, expected: str) -> None:
        expect(is_allowed, f"the model {model}: {option}", getattr(options, option), expected)

    is_unguided = options.guidance == 1
    has_classes = num_classes is not None
    has_null_class = null_class is not None or options.null_class is not None
    require(options.prompt is None, "prompt", "None, as it takes no text")
    require(options.image_size is None, "image_size", "None, as it is not conditioned on texts")
    remedy = "1, or condition = 'label', towards which it guides"
    require(is_unguided or options.condition == "label", "guidance", remedy)
    if options.null_class is not None:
        last = num_classes - 1 if num_classes is not None and num_classes > 1 else None
        require(has_classes, "null_class", "None, as it has no classes")
        remedy = f"None, as it declares its null class itself, {null_class}"
        require(null_class is None, "null_class", remedy)
        remedy = f"the last of its {num_classes} classes, or a module:function"
        require(options.null_class == last, "null_class", remedy)
    require(options.condition is None or has_classes, "condition", "None, as it has no classes")
    remedy = "'label' or None, as it declares no null class, or its null_class"
    require(options.condition != "null" or has_null_class, "condition", remedy)
    remedy = "1, as it declares no null class, or its null_class"
    require(is_unguided or has_null_class, "guidance", remedy)
    if options.null_class is not None:
        null_class = options.null_class
        num_classes = null_class  # the null class is the last one
    if num_classes is None:
        return Conditioned(words="unconditional")
    if null_class is not None and options.condition != "label":
        return Conditioned(null_class, words=f"null class {null_class}")
    words = f"conditioned on the true label ({num_classes} classes)"
    if is_unguided:
        return Conditioned(num_classes=num_classes, words=words)
    words += f" and guided with {options.guidance:g}"
    return Conditioned(null_class, num_classes, float(options.guidance), words)


def prompted(
    options: DenoiserOptions,
    model: object,
    num_prompts: int,
    prompts: str,
    distilled: str,
    takes_scale: bool,
) -> Conditioned:
    """The condition of a text-conditioned model with `num_prompts` different prompts, described by
    `prompts`; ValueError for options that do not fit. `model`: its name in errors.

    `distilled`: "guidance", "step" or "". `takes_scale`: whether the network takes the scale of
    guidance as an input.
    """

    def require(is_allowed: bool, option: str, expected: str) -> None:
        expect(is_allowed, f"the model {model}: {option}", getattr(options, option), expected)

    guides = options.guidance != 1 and not takes_scale
    no_classes = "None, as it has prompts, and no classes"
    require(options.condition is None, "condition", no_classes)
    require(options.null_class is None, "null_class", no_classes)
    remedy = "1, as it was distilled to make images in a few steps"
    require(not guides or distilled != "step", "guidance", remedy)
    remedy = "1, or a prompt, towards which it guides"
    require(not guides or bool(options.prompt), "guidance", remedy)
    words = f"with {prompts}"
    if distilled:
        words += f", {distilled}-distilled: it has no unconditional law"
    if guides:
        words += f" and guided with {options.guidance:g}"
        return Conditioned(num_prompts, num_prompts, float(options.guidance), words)
    if takes_scale:
        words += f", told the guidance {options.guidance:g}"
    return Conditioned(num_classes=num_prompts if num_prompts > 1 else None, words=words)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run."""

    texts: tuple[str, ...]
    """The different prompts, in the order of their first items."""
    rows: tuple[int, ...] | None
    """For each item the number of its text; None if all items have the same."""
    encoders: str = ""
    """Digest of the text encoders."""
    option: str = ""
    """The user's option: a prompt, or a file of prompts."""

    def rows_of(self, items: ArrayLike) -> np.ndarray:
        """Numbers of the texts of items, int64; ValueError if the file has no line for an item."""
        items = np.asarray(items)
        if self.rows is None:
            return np.zeros(len(items), np.int64)
        expected = f"a file with one line for each item, but it has {len(self.rows)}"
        expect(items.max(initial=0) < len(self.rows), "prompt", self.option, expected)
        ids: np.ndarray = np.array(self.rows, np.int64)[items]
        return ids

    @property
    def words(self) -> str:
        """The prompts as text, for the description of a model."""
        if self.rows is not None:
            return f"{len(self.rows)} prompts of {Path(self.option).name}"
        return f"the prompt {shown(self.option)}" if self.option else "the empty prompt"


def read_prompts(prompt: str) -> Prompts:
    """The prompts of the option `prompt`: a text, or a file NAME.txt with one line for each
    item.
    """
    if not prompt.endswith(".txt"):
        return Prompts((prompt,), None, option=prompt)
    with reading(f"prompt = {shown(prompt)}", "expected a text file with one prompt a line"):
        lines = read_text(prompt).removesuffix("\n").split("\n")
    numbers = {text: row for row, text in enumerate(dict.fromkeys(lines))}
    rows = tuple(numbers[line] for line in lines)
    return Prompts(tuple(numbers), rows, option=prompt)
