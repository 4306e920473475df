"""Parts of a pipeline's folder in diffusers' layout: its index, networks, autoencoder and
scheduler; encoded prompts.

Texts are encoded once, before the denoiser is loaded; then a prompt is a row of a table, as a class
is. Therefore a batch may mix images with different prompts, and guidance works as for
class-conditioned models.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import diffusers
import torch
from torch import nn

from uturn.core.checks import expect
from uturn.corruption.pieces import half_precision_words
from uturn.corruption.schedulers import CONSISTENCY, Scheduler
from uturn.networks.files import check_finite, fingerprint
from uturn.networks.images.families import TEXT_PIPELINES, Family, family_of
from uturn.networks.images.model import Shape
from uturn.networks.images.own_denoisers import is_scheduler
from uturn.networks.libraries import check_hub, fetching, library, reading, without_bars

N = TypeVar("N", bound=nn.Module)

TEXT_PARTS = (
    *("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
    *("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
)
"""Classes of text encoders and tokenizers."""
# The last is DiT's former class name.
_DENOISERS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")
_CODECS = ("AutoencoderKL", "VQModel")
# Prefixes of such parts.
_CONDITIONED = ("text_encoder", "tokenizer", "image_encoder", "bert", "prior", "controlnet")
_UNUSED = ("safety_checker", "feature_extractor")
_PIPELINES = (
    "expected one of DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline,"
    f" {', '.join(TEXT_PIPELINES)}"
)
_ALONE = "; DDPMPipeline(unet, scheduler).save_pretrained(folder) writes one around a UNet2DModel"
_ZEROS = "force_zeros_for_empty_prompt"
_AT_ONCE = 16  # prompts encoded in one batch
# Parts of the names of step-distilled models.
_DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper-sd")


@dataclass(frozen=True)
class Folder:
    """The folder of a pipeline."""

    path: Path
    pipeline: str
    """The class of the pipeline if it is text-conditioned, else empty."""
    parts: dict[str, str]
    """{part: its class}."""
    denoiser: str
    """The name of the denoising part."""
    left_out: tuple[str, ...] = ()
    """Parts that a U-turn does not need, and parts that are listed as absent."""

    @property
    def family(self) -> Family:
        return family_of(self.pipeline)


class Autoencoder(nn.Module):
    """An autoencoder, as a `uturn.corruption.diffusion.Codec`: maps images (batch, 3, height,
    width) in [-1, 1] to latents in the units of the denoiser, and back; deterministic, float32.

    `latents = scale * (z - centre)`, with z the mode of the encoder's posterior (AutoencoderKL), or
    the encoder's output before quantisation (VQModel).
    """

    scale: torch.Tensor
    centre: torch.Tensor

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - an autoencoder of diffusers
        dtype: torch.dtype,
        scale: torch.Tensor,
        centre: torch.Tensor,
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.image_channels = int(network.config.in_channels)
        # Pixels of the image for each latent, along each axis: every block except the last halves
        # the image.
        self.factor = int(2 ** (len(network.config.block_out_channels) - 1))
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))
        self.register_buffer("centre", centre.reshape(1, -1, 1, 1))

    def image_shape(self, latent_shape: Shape) -> Shape:
        """Shape of the images of latents."""
        _, height, width = latent_shape
        return self.image_channels, height * self.factor, width * self.factor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        encoded = self.network.encode(images.to(self.dtype))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        latents: torch.Tensor = (z.float() - self.centre) * self.scale
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        z = (latents / self.scale + self.centre).to(self.dtype)
        images: torch.Tensor = self.network.decode(z).sample.float()
        return images


def read_folder(path: Path) -> Folder:
    """The folder of a pipeline, fetched from a hub if necessary, with its parts checked."""
    name = path.as_posix()
    if path.is_dir():
        with _reading_index(path):
            index = diffusers.DiffusionPipeline.load_config(name)
        return _checked_folder(path, index)
    if path.parent.is_dir() or not is_hub_name(name):
        raise ValueError(
            f"{name}: no such folder or file; expected a pipeline's folder, a checkpoint, or"
            " module:function"
        )
    check_hub(name)
    with fetching(name):
        index = diffusers.DiffusionPipeline.load_config(name)
    folder = _checked_folder(path, index)  # before gigabytes are fetched
    unused = dict.fromkeys(folder.left_out)
    with fetching(name):
        fetched = Path(diffusers.DiffusionPipeline.download(name, **unused))
    return replace(folder, path=fetched)


def is_hub_name(name: str) -> bool:
    """Whether a text can be the name of a model on a hub, "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _reading_index(path: Path) -> AbstractContextManager[None]:
    """Context in which errors are about the index of a pipeline, and say what is expected."""
    index_file = path / "model_index.json"
    expected = _PIPELINES + _ALONE
    if index_file.exists():
        expected = _PIPELINES
    return reading(index_file.as_posix(), expected)


def _checked_folder(
    path: Path,
    index: Mapping[str, Any],  # JSON
) -> Folder:
    """The folder of a pipeline's index; ValueError if the pipeline cannot make U-turns."""
    with _reading_index(path):
        parts: dict[str, str] = {}
        left_out = []
        for part, entry in index.items():
            if not isinstance(entry, list) or len(entry) != 2 or part.startswith("_"):
                continue
            library_name, kind = entry
            if kind is not None and part not in _UNUSED:
                is_ours = library_name in ("diffusers", "transformers")
                # A part of another library is of no known kind.
                parts[part] = f"{library_name}.{kind}"
                if is_ours:
                    parts[part] = str(kind)
            elif part.startswith((*_UNUSED, *_CONDITIONED)):
                left_out.append(part)
        pipeline = str(index.get("_class_name"))
        takes_text = pipeline in TEXT_PIPELINES
        denoisers = [part for part in ("unet", "transformer") if part in parts]
        denoiser = denoisers[0] if denoisers else "unet or transformer"
        family = family_of(pipeline) if takes_text else None
        for part in (denoiser, "vae", "vqvae", *parts):
            kind = parts.get(part)
            allowed = _allowed_kinds(part, denoiser, family)
            not_conditioned = "a pipeline that is not conditioned on a text or an image"
            expected = " or ".join(allowed or ()) or not_conditioned
            is_allowed = kind is None or allowed is None or kind in allowed
            expect(is_allowed, f"the {part} of its {pipeline}", kind, expected)
        needed = [denoiser, "scheduler"]
        if takes_text:
            needed.append("vae")
        expect(parts.keys() >= {*needed}, "its parts", ", ".join(parts), ", ".join(needed))
    return Folder(path, pipeline if takes_text else "", parts, denoiser, tuple(left_out))


def _allowed_kinds(part: str, denoiser: str, text_family: Family | None) -> tuple[str, ...] | None:
    """The classes that a part of a pipeline may have, None for any; `text_family`: that of a
    text-conditioned pipeline.
    """
    if part == denoiser:
        if text_family is None:
            return _DENOISERS
        return (text_family.denoiser,)
    if part in ("vae", "vqvae"):
        return _CODECS
    if part.startswith(_CONDITIONED):
        if text_family is None:
            return ()
        return TEXT_PARTS
    return None


def load_codec(
    folder: Path, part: str, class_name: str, dtype: torch.dtype, channels: int
) -> Autoencoder:
    """The autoencoder of a pipeline; ValueError if its latents do not have the `channels` that the
    denoiser takes.
    """
    network = load_part(folder, part, class_name)
    config = network.config
    latent_channels = config.get("vq_embed_dim") or config.latent_channels
    where = f"{folder}: channels of the {part}"
    fits = latent_channels == channels
    expect(fits, where, latent_channels, f"{channels}, as the denoiser takes")
    is_quantised = class_name == "VQModel"
    defaults = config.get("_use_default_values", ())
    scale = torch.tensor(config.scaling_factor)
    if is_quantised and "scaling_factor" in defaults:
        # The model predates this option: its latents are not scaled, and the default of the class
        # is wrong.
        scale = torch.tensor(1.0)
    centre = torch.tensor(config.get("shift_factor") or 0.0)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        centre = torch.tensor(config.latents_mean)
        scale = scale / torch.tensor(config.latents_std)
    # Float32, since rounding changes the nearest code, and activations of many autoencoders
    # overflow in half precision.
    overflows = dtype == torch.float16 and config.get("force_upcast")
    if is_quantised or overflows:
        dtype = torch.float32
    return Autoencoder(in_dtype(network, dtype), dtype, scale.float(), centre.float())


def load_part(folder: Path, part: str, class_name: str, dtype: torch.dtype | None = None) -> Any:  # noqa: ANN401 - a model of diffusers or transformers
    """A network of a pipeline in float32, checked for missing and non-finite weights; `dtype`
    loads it in that precision.
    """
    source = "diffusers"
    options: dict[str, object] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    if class_name in TEXT_PARTS:
        source = "transformers"
        options = {"dtype": dtype}
    elif dtype is not None:
        # Loaded directly in this dtype, without a second copy in memory.
        options = {"torch_dtype": dtype}
    # Old pipelines store their only network beside the index.
    where = folder
    if (folder / part).is_dir():
        where = folder / part
    with reading(f"{where}: the {part}", "fetch or write the folder again"):
        kind = getattr(importlib.import_module(source), class_name)
        network, report = kind.from_pretrained(
            str(where),
            # Otherwise .bin, read as weights only.
            use_safetensors=any(where.glob("*.safetensors*")),
            **options,
            output_loading_info=True,
            local_files_only=True,
        )
        missing = sorted(report["missing_keys"])
        expected = "none, as the library fills them with random numbers"
        expect(not missing, "missing weights", missing[:2], expected)
        check_finite(network.state_dict())
    # Old files may contain position indices 0, 1, .., or further buffers of older versions of
    # diffusers.
    extra = sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids"))
    if extra:
        count = f"{len(extra)} weights in the file are not of the {part}"
        text = f"{where}: {count} and are left out, such as {extra[0]}"
        warnings.warn(text, stacklevel=2)
    return network


def load_scheduler(folder: Path, class_name: str) -> Any:  # noqa: ANN401 - a scheduler of diffusers, which has further options to register
    where = folder
    if (folder / "scheduler").is_dir():
        where = folder / "scheduler"
    with reading(
        f"{where}: the scheduler",
        "expected a scheduler of diffusers such as DDPMScheduler; fetch or write it again",
    ):
        kind: Any = getattr(diffusers, class_name, None)
        is_class = isinstance(kind, type) and is_scheduler(kind)
        expect(is_class, "its class", class_name, "one with step() and add_noise()")
        return kind.from_pretrained(str(where), local_files_only=True)


_TIMESTEP_EMBEDDINGS = {
    "time_proj": ("time_embedding_type", "fourier"),
    "class_embedding": ("class_embed_type", "timestep"),
}
"""Modules that embed numbers: {module: (option, its value if they do)}."""


def in_dtype(network: N, dtype: torch.dtype) -> N:
    """The network in `dtype`, except modules that embed numbers such as timesteps, which `dtype`
    would round.
    """
    config = getattr(network, "config", {})
    for name, part in network.named_children():
        embeds_numbers = False
        if name in _TIMESTEP_EMBEDDINGS:
            option, value = _TIMESTEP_EMBEDDINGS[name]
            embeds_numbers = config.get(option) == value
        if not embeds_numbers:
            part.to(dtype)
    return network


def for_inference(module: N, device: torch.device, offload: bool = False) -> N:
    """A module on a device, without gradients; with `offload`, each layer is moved to the device
    when needed.
    """
    module = module.eval().requires_grad_(False)
    if offload:
        # Otherwise diffusers would fail only at the first call.
        library("accelerate", "offload = True")
        hooks: Any = diffusers.hooks  # which has no types
        hooks.apply_group_offloading(
            module,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
        )
        return module
    module = module.to(device)
    if device.type == "cuda" and any(isinstance(part, nn.Conv2d) for part in module.modules()):
        # The faster layout for convolutions on GPUs.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as a pipeline encodes them, on the CPU."""

    tables: Mapping[str, torch.Tensor]
    """"text" (texts, tokens, width) and, if the pipeline has it, "pooled" (texts, width)."""
    digest: str
    """Digest of encoders and tokens (hexadecimal)."""


def encoded(
    folder: Folder,
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    offload: bool = False,
) -> EncodedTexts:
    """Texts as the pipeline encodes them.

    The empty text is encoded like a missing prompt in the pipeline. The encoders are loaded here
    and freed at the end.
    """
    different = list(dict.fromkeys(text for text in texts if text))
    batches = [different[first : first + _AT_ONCE] for first in range(0, len(different), _AT_ONCE)]
    if "" in texts:
        batches.append([""])
    rows = {text: row for row, text in enumerate([*different, ""])}
    needs = f"{folder.path} is a {folder.pipeline}, which"
    of_transformers = library("transformers.utils.logging", needs)
    of_diffusers = importlib.import_module("diffusers.utils.logging")
    with without_bars(of_diffusers, of_transformers), torch.inference_mode():
        encoders = {}
        for part, class_name in folder.parts.items():
            if class_name in TEXT_PARTS and "Tokenizer" not in class_name:
                encoders[part] = for_inference(
                    load_part(folder.path, part, class_name, dtype), device, offload
                )
        where = f"{folder.path}: the text encoders and tokenizers"
        with reading(where, "fetch or write them again"):
            pipeline = _text_pipeline(folder, encoders, dtype)
            encoded_batches = [_encoded(pipeline, batch, device) for batch in batches]
            tokens = []
            for name, part in pipeline.components.items():
                if "tokenizer" in name and part:
                    tokens.append(part(list(rows))["input_ids"])
        facts: list[object] = [sorted(encoders)]
        facts += map(fingerprint, encoders.values())
        facts += [tokens, dict(pipeline.config).get(_ZEROS)]
    order = [rows[text] for text in texts]
    tables = {}
    for name in encoded_batches[0]:
        table = torch.cat([batch[name] for batch in encoded_batches])[order]
        if not table.isfinite().all():
            advice = half_precision_words(dtype)
            raise ValueError(f"{folder.path}: the text encoders give NaN or infinity{advice}")
        tables[name] = table
    del pipeline, encoders
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return EncodedTexts(tables, hashlib.sha256(repr(facts).encode()).hexdigest())


def _text_pipeline(folder: Folder, encoders: Mapping[str, nn.Module], dtype: torch.dtype) -> Any:  # noqa: ANN401 - a pipeline of diffusers
    """The pipeline of a folder with its text encoders alone."""
    others = {"image_encoder"}
    for part in (*folder.parts, *folder.left_out):
        if folder.parts.get(part) not in TEXT_PARTS:
            others.add(part)
    kind = getattr(diffusers, folder.pipeline)
    pipeline = kind.from_pretrained(
        str(folder.path), local_files_only=True, **dict.fromkeys(others), **encoders
    )
    denoiser = getattr(diffusers, folder.parts[folder.denoiser])
    config = denoiser.load_config(str(folder.path / folder.denoiser), local_files_only=True)
    # Read for its sizes.
    sizes = SimpleNamespace(config=SimpleNamespace(**config), dtype=dtype)
    setattr(pipeline, folder.denoiser, sizes)
    return pipeline


def _encoded(
    pipeline: Any,  # noqa: ANN401 - of diffusers
    texts: list[str],
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """{"text", "pooled"} of texts, or of the null prompt if the only text is empty."""
    family = family_of(type(pipeline).__name__)
    options: dict[str, object] = {"device": device, "num_images_per_prompt": 1}
    options |= dict.fromkeys(family.further_prompts)
    if not family.has_null_prompt:
        text, pooled, _ = pipeline.encode_prompt(prompt=texts, **options)
        return {"text": text.cpu(), "pooled": pooled.cpu()}
    is_null = texts == [""]
    options |= {"do_classifier_free_guidance": is_null, "negative_prompt": None}
    prompts = pipeline.encode_prompt(prompt=texts, **options)
    # The pipeline returns prompt and null prompt in turn.
    tables = prompts[1::2] if is_null else prompts[::2]
    return {name: table.cpu() for name, table in zip(("text", "pooled"), tables, strict=False)}


def takes_guidance(network: Any) -> bool:  # noqa: ANN401 - a model of diffusers
    """Whether the network was distilled from guided predictions and takes the scale as an input."""
    embeds_guidance = bool(network.config.get("guidance_embeds"))
    return embeds_guidance or network.config.get("time_cond_proj_dim") is not None


def distillation(
    network: Any,  # noqa: ANN401 - a model of diffusers
    scheduler: Scheduler,
    path: Path,
    family: Family,
) -> str:
    """The kind of distillation of a model, "guidance" or "step", by its inputs, its scheduler
    and its name; "" if none shows.
    """
    name = path.resolve().name.lower()
    is_consistency = type(scheduler).__name__ in CONSISTENCY
    if is_consistency or any(word in name for word in _DISTILLED):
        return "step"
    if takes_guidance(network):
        return "guidance"
    is_fixed = not scheduler.config.get("use_dynamic_shifting")
    if family.is_distilled_without_shift and is_fixed:
        return "step"
    return ""


def latent_channels(network: Any, family: Family) -> int:  # noqa: ANN401 - a model of diffusers
    """Channels of a denoiser's latents."""
    return int(network.config.in_channels) // family.packing**2


def latents_of(
    network: Any,  # noqa: ANN401 - a model of diffusers
    family: Family,
    scale: int,
    size: int | None,
) -> Shape:
    """Shape of the latents, `scale` pixels each, of images of `size` pixels, by default the size of
    training.
    """
    config = network.config
    # FLUX networks do not state it; their pipelines use 128.
    default = config.get("sample_size") or 128
    height, width = (default, default) if isinstance(default, int) else default
    expect(height == width, "the latents of the denoiser", default, "squares")
    unit = scale * family.packing * config.get("patch_size", 1)
    if size is None:
        size = height * scale
    fits = size >= unit and size % unit == 0
    expect(fits, "image_size", size, f"a multiple of {unit} pixels, as its networks take")
    limit = config.get("pos_embed_max_size") or size
    expected = f"at most {limit * unit} pixels, as the denoiser takes"
    expect(size <= limit * unit, "image_size", size, expected)
    return latent_channels(network, family), size // scale, size // scale
