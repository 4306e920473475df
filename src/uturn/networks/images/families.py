"""The families of diffusers' pipelines, and what differs between them, in one table.

To add a family, add a `Family` to `FAMILIES`: the beginning of the names of its pipelines, and the
fields in which it differs from others. If its network takes encoded prompts in a new form, write a
`PromptedNetwork` in `uturn.networks.images.prompted` for it. In `uturn.networks.images.pipelines`,
list the classes of new text encoders and tokenizers, from transformers, in `TEXT_PARTS`, and the
classes of new autoencoders, from diffusers, in `_CODECS`; `load_codec` reads how an autoencoder
scales its latents. `tests/tiny_pipelines.py` makes a small pipeline of each family, whose images
are compared with the images of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass

from uturn.networks.images.prompted import (
    PromptedFlux,
    PromptedNetwork,
    PromptedStableDiffusion3,
    PromptedUNet,
)


@dataclass(frozen=True)
class Family:
    """What differs between the pipelines of a family and other pipelines."""

    prefix: str
    """How the names of their classes begin."""
    even_sigmas: bool = False
    """Whether they give the scheduler even noise levels (`PipelineTimesteps.even_sigmas`)."""
    counts_down: bool = False
    """Whether their image-to-image makes k = N - int(N - N strength) steps; others make
    int(N strength).
    """
    text_pipelines: tuple[str, ...] = ()
    """Classes of the text-conditioned pipelines that can be loaded. The fields below are for
    them.
    """
    denoiser: str = ""
    """The class of their denoising network."""
    network: type[PromptedNetwork] = PromptedUNet
    """Calls the denoising network with encoded prompts."""
    further_prompts: tuple[str, ...] = ()
    """Arguments of their `encode_prompt` that must be given although they are None."""
    has_null_prompt: bool = True
    """Whether `encode_prompt` returns the prompt and the null prompt in turn, each as text and, if
    the network takes it, pooled. Otherwise it returns text, pooled and places of the tokens.
    """
    packing: int = 1
    """Positions of the latents along each axis that the channels of the network's input hold."""
    is_distilled_without_shift: bool = False
    """Whether models whose schedule does not depend on the size of the images were distilled to
    make images in a few steps.
    """


FAMILIES = (
    Family(
        "StableDiffusion",
        text_pipelines=("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        denoiser="UNet2DConditionModel",
        network=PromptedUNet,
    ),
    Family(
        "LatentConsistencyModel",
        text_pipelines=("LatentConsistencyModelPipeline",),
        denoiser="UNet2DConditionModel",
        network=PromptedUNet,
    ),
    Family(
        "StableDiffusion3",
        counts_down=True,
        text_pipelines=("StableDiffusion3Pipeline",),
        denoiser="SD3Transformer2DModel",
        network=PromptedStableDiffusion3,
        further_prompts=("prompt_2", "prompt_3"),
    ),
    Family(
        "Flux",
        even_sigmas=True,
        counts_down=True,
        text_pipelines=("FluxPipeline",),
        denoiser="FluxTransformer2DModel",
        network=PromptedFlux,
        further_prompts=("prompt_2",),
        has_null_prompt=False,
        packing=2,
        is_distilled_without_shift=True,
    ),
    Family("QwenImage", even_sigmas=True, counts_down=True),
    Family("Chroma", even_sigmas=True, counts_down=True),
    Family("ZImage", even_sigmas=True, counts_down=True),
    Family("Sana", counts_down=True),
)
"""All families that differ from `OTHERS`."""
OTHERS = Family("")
"""Pipelines that give the scheduler the number of steps alone, and are loaded only if they are not
conditioned on text.
"""
TEXT_PIPELINES = sum((family.text_pipelines for family in FAMILIES), ())
"""Classes of all text-conditioned pipelines that can be loaded."""


def family_of(pipeline: str) -> Family:
    """The family of a pipeline by the name of its class: the one with the longest prefix."""
    families = [family for family in FAMILIES if pipeline.startswith(family.prefix)]
    return max(families, key=lambda family: len(family.prefix), default=OTHERS)
