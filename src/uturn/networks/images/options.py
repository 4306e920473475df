"""The options of image models, declared once for specs, `load_pretrained`, `ReverseDiffusion.from_pretrained` and commands."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class DenoiserOptions(BaseModel):
    """How a denoiser is read, and what it is told. An option added here becomes one of specs, loaders and commands.

    `dtype` is what the networks compute in. Timesteps and schedulers keep their own precision, and what is returned is float32;
    autoencoders that quantise stay in float32, and for "float16" those that ask for it (`force_upcast`). `compile`: calls after
    the first one are faster. `guidance`: scale of classifier-free guidance (arXiv:2207.12598), with `condition = "label"` and a
    null class, or with a prompt: prediction without + guidance (prediction with - prediction without). Every number but 1 changes
    the law of the model, so reconstructions are no draws from a posterior; guidance-distilled models (FLUX-dev) are told the
    number. `null_class`: those of DiT and of a `DenoiserModel` are known. `execution`: options that do not change results.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    execution: ClassVar[frozenset[str]] = frozenset({"device", "compile", "offload"})

    preset: str | None = Field(default=None, description="Name or flags of the guided-diffusion model in the checkpoint.")
    condition: Literal["null", "label"] | None = Field(
        default=None,
        description="For models with classes: null, the null class; or label, the true label of every image. By default null for "
        "models that have a null class.",
    )
    guidance: float = Field(
        default=1.0,
        strict=True,
        gt=-1e9,
        lt=1e9,
        allow_inf_nan=False,
        description="Classifier-free guidance towards label or prompt. Values other than 1 do not sample the posterior; results "
        "say so.",
    )
    null_class: int | None = Field(default=None, description="Declares that the last class of the model is its null class.")
    prompt: str | None = Field(
        default=None,
        description="For text-conditioned models: a text, or a .txt file with one prompt a line, for each item; by default the "
        "empty prompt.",
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        le=2**14,
        description="Height and width of the images of a text-conditioned model; by default its own.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the model: float32, bfloat16 or float16."
    )
    device: str | None = Field(default=None, description="cpu, cuda, cuda:1, mps, ..; by default the fastest that is available.")
    compile: bool = Field(default=False, description="Compile the model with torch.compile first.")
    offload: bool = Field(
        default=False,
        description="Keep the weights in main memory, each layer on the device when needed: slower, for large models.",
    )


class DiffusionOptions(DenoiserOptions):
    """A denoiser, and how it is sampled."""

    execution: ClassVar[frozenset[str]] = DenoiserOptions.execution | {"batch_size"}

    model: str = Field(
        default="fashion_mnist",
        description="Folder or hub id of a diffusers model, guided-diffusion checkpoint, or module:function.",
    )
    scheduler: str = Field(
        default="ddpm",
        description="Reverse process: ddpm, ancestral (also for flow matching), ddim, euler_ancestral, .., a class of diffusers, "
        "or 'stored', the model's own.",
    )
    steps: int = Field(default=100, ge=1, description="Reverse steps of the whole chain.")
    eta: float | None = Field(default=None, ge=0, le=1, description="Noise of ddim, 0 .. 1.")
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = Field(
        default=None, description="linspace, leading or trailing."
    )
    pure_noise: bool = Field(default=False, description="Start the whole chain from pure noise, not from its first level.")
    batch_size: int | str = Field(default="auto", description="Images in a call of the model: auto, or a number.")

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20):
            raise ValueError(f"batch_size = {value!r}: expected 'auto', or an integer in 1 .. {2**20}")
        return value
