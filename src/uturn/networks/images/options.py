"""The options of image models, declared once for specs, `load_pretrained`, `ReverseDiffusion.from_pretrained` and commands."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uturn.networks.images.guided_diffusion_options import PRESETS


class DenoiserOptions(BaseModel):
    """Options for loading and conditioning a denoiser, shared by specs, loaders and commands.

    `dtype`: timesteps and schedulers keep their own precision, and outputs are float32. Autoencoders stay in float32 if they
    quantise, or, for "float16", if their configuration has `force_upcast`. `guidance`: scale of classifier-free guidance
    (arXiv:2207.12598) towards the label or a prompt: null prediction + guidance (conditioned prediction - null prediction);
    guidance-distilled models (FLUX-dev) take it as an input. `null_class` is read from DiT and from a `DenoiserModel`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    execution: ClassVar[frozenset[str]] = frozenset({"device", "compile", "offload"})

    preset: str | None = Field(
        default=None,
        description="For a guided-diffusion checkpoint: the name of the published model, or flags of the original code, such as "
        "'--image_size 64 --num_heads 4'; by default the name of the file.",
        examples=list(PRESETS),
    )
    condition: Literal["null", "label"] | None = Field(
        default=None,
        description="Class label passed to a class-conditioned model: null (the null class) or label (the true label). "
        "By default null, if the model has a null class.",
    )
    guidance: float = Field(
        default=1.0,
        strict=True,
        gt=-1e9,
        lt=1e9,
        allow_inf_nan=False,
        description="Scale of classifier-free guidance towards the label or prompt. Values other than 1 do not sample the "
        "posterior; results say so.",
    )
    null_class: int | None = Field(
        default=None, description="Number of the null class, which must be the last class of the model."
    )
    prompt: str | None = Field(
        default=None,
        description="Prompt of a text-conditioned model: a text, or a .txt file with one line for each item; by default the "
        "empty prompt.",
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        le=2**14,
        description="Height and width of the images of a text-conditioned model, in pixels; by default the model's own size.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the model: float32, bfloat16 or float16."
    )
    device: str | None = Field(
        default=None,
        description="cpu, cuda, cuda:1, mps, ..; by default cuda if available.",
        examples=["cpu", "cuda", "mps"],
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile.")
    offload: bool = Field(
        default=False,
        description="Keep the weights in main memory and move each layer to the device when needed; slower, for models that "
        "do not fit on the device.",
    )


class DiffusionOptions(DenoiserOptions):
    """Options of a denoiser and its sampler."""

    execution: ClassVar[frozenset[str]] = DenoiserOptions.execution | {"batch_size"}

    model: str = Field(
        default="fashion_mnist",
        description="Folder or hub id of a diffusers model, a guided-diffusion checkpoint, or module:function.",
        examples=["fashion_mnist"],
    )
    scheduler: str = Field(
        default="ddpm",
        description="Sampler of the reverse process: ddpm, ancestral (also for flow matching), ddim, euler_ancestral, ..; stored "
        "(the model's own scheduler); or the name of a scheduler class of diffusers.",
        examples=[
            *("stored", "ancestral", "ddpm", "ddim", "euler", "euler_ancestral", "dpm_solver", "heun", "sde_dpm_solver", "unipc"),
            *("flow_match", "flow_match_stochastic"),  # not imported: the module that defines these names takes a second to load
        ],
    )
    steps: int = Field(default=100, ge=1, description="Number of reverse steps of the whole chain.")
    eta: float | None = Field(default=None, ge=0, le=1, description="Noise of the scheduler ddim, between 0 and 1.")
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        default=None,
        description="Spacing of the timesteps: linspace, leading or trailing; by default linspace, or trailing for ddim.",
    )
    pure_noise: bool = Field(default=False, description="At t/T = 1, start from pure noise that does not depend on the original.")
    batch_size: int | str = Field(default="auto", description="Images in a call of the model: a number, or auto.")

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20):
            raise ValueError(f"batch_size = {value!r}: expected 'auto', or an integer in 1 .. {2**20}")
        return value
