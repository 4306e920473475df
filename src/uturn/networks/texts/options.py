"""The options of language models, declared once for specs and the command line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from uturn.networks.images.options import Device, Precision

if TYPE_CHECKING:
    from uturn.corruption.unmasking import Decoder


class DecoderOptions(BaseModel):
    """Options of the decoder of masked symbols (`uturn.corruption.unmasking.Decoder`)."""

    order: Literal[
        "random",
        "blocks",
        "entropy",
        "probability",
        "confidence",
        "first_hitting",
        "analytic",
        "euler",
    ] = Field(
        "random",
        description=(
            "Order in which tokens are drawn: random, blocks, entropy, probability or confidence."
            " With one token a call, all but confidence sample the posterior of a consistent model."
            " first_hitting: random, with the noise level of continuous time. analytic, euler:"
            " --steps steps of the noise level, in which tokens change by chance (MDLM, SEDD)."
        ),
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description=(
            "Calls of the model for each text, which draw equal numbers of tokens; by default one"
            " token a call."
        ),
    )
    block: int = Field(8, ge=1, le=2**20, description="Tokens in a block, for --order blocks.")
    causal: bool = Field(
        False,
        description=(
            "With --order blocks: the model sees only the current block and what lies left of it"
            " (block diffusion). --steps are then for each block."
        ),
    )
    remask: Literal["none", "cap", "rescale", "conf"] = Field(
        "none",
        description=(
            "Mask drawn tokens again (ReMDM), by this schedule; with --order analytic, or random"
            " for one token a call."
        ),
    )
    eta: float = Field(0.1, ge=0, le=1, description="Strength of --remask, 0 to 1.")
    remask_given: bool = Field(
        False,
        description=(
            "Also mask tokens again that the noise has left; this does not sample the posterior."
        ),
    )
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description=(
            "Temperature of the draws. Values other than 1 do not sample the posterior; results"
            " say so."
        ),
    )
    top_k: int | None = Field(
        None, ge=1, le=2**20, description="Draw only from the K most probable tokens."
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "Draw only from the most probable tokens whose total probability reaches this value."
        ),
    )

    @property
    def decoder(self) -> Decoder:
        """The decoder of masked symbols. One in time has 64 steps by default."""
        from uturn.corruption.unmasking import Decoder

        names = [option.name for option in dataclasses.fields(Decoder)]
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.order in ("analytic", "euler") or self.remask != "none":
            options["steps"] = self.steps or 64
        return Decoder(**options)


class LanguageOptions(DecoderOptions):
    """Options for loading a language model and drawing its tokens."""

    model: str = Field(
        "embedded",
        description=(
            "The embedded model of characters; a folder or hub id of a masked model of"
            " transformers, or of a discrete diffusion model with its own code; a .safetensors file"
            " of uturn.networks; or module:function."
        ),
        examples=["embedded"],
    )
    tokenizer: str | None = Field(
        None, description="Folder or hub id of a tokenizer; by default the tokenizer of the model."
    )
    split: str | None = Field(
        None,
        description=(
            "Split texts by this rule (smiles, characters or a regular expression) into the tokens"
            " of the model's vocab.txt, instead of using a tokenizer."
        ),
        examples=["smiles", "characters"],
    )
    model_type: str | None = Field(
        None,
        description="Kind of a model of transformers whose config.json lacks the line model_type.",
        examples=["bert", "albert"],
    )
    trust_remote_code: bool = Field(False, description="Run the model's or tokenizer's own code.")
    mask_id: int | None = Field(
        None, ge=0, le=2**31, description="Id of the mask token, if the tokenizer has none."
    )
    shift: bool | None = Field(
        None,
        description=(
            "The logits at a position predict the next position, as in Dream; by default read from"
            " the model."
        ),
    )
    time: Literal["none", "sigma"] | None = Field(
        None, description="Second input of the model: none, or sigma = -log(1 - noise)."
    )
    output: Literal["logits", "ratios"] | None = Field(
        None, description="Output of the model: logits, or ratios of probabilities (SEDD)."
    )
    corruption: Literal["masking", "uniform"] | None = Field(
        None,
        description=(
            "Corruption of the tokens: masking or uniform (replacement); by default the one that the"
            " model reverses."
        ),
    )
    dtype: Precision = Field(
        "float32", description="Precision of the models: float32, bfloat16 or float16."
    )
    device: Device = None
    batch_size: int | None = Field(
        None,
        ge=1,
        le=2**16,
        description="Texts in a call of the model; by default chosen for efficiency.",
    )
