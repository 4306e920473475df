"""Parts of a pipeline's folder in diffusers' layout: its index, networks, autoencoder and scheduler."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.networks.files import check_finite
from uturn.networks.images.own_denoisers import is_scheduler
from uturn.networks.libraries import library, reading

TEXT_DENOISERS = {
    "StableDiffusionPipeline": "UNet2DConditionModel",
    "StableDiffusionXLPipeline": "UNet2DConditionModel",
    "LatentConsistencyModelPipeline": "UNet2DConditionModel",
    "StableDiffusion3Pipeline": "SD3Transformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
}
"""Pipelines of text-conditioned models, and the class of their denoiser."""
TEXT_PARTS = (
    *("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
    *("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
)
"""Classes of text encoders and tokenizers."""
_DENOISERS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")  # the last is DiT's former class name
_CODECS = ("AutoencoderKL", "VQModel")
_CONDITIONED = ("text_encoder", "tokenizer", "image_encoder", "bert", "prior", "controlnet")  # prefixes of such parts
_UNUSED = ("safety_checker", "feature_extractor")
_PIPELINES = f"expected one of DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline, {', '.join(TEXT_DENOISERS)}"


class Folder(NamedTuple):
    """The folder of a pipeline."""

    path: Path
    pipeline: str  # its class if it is text-conditioned, else ""
    parts: dict[str, str]  # {part: its class}
    denoiser: str  # the name of the denoising part
    left_out: tuple[str, ...] = ()  # parts that a U-turn does not need, and parts listed as absent


class Codec(nn.Module):
    """Maps images (batch, 3, height, width) in [-1, 1] to latents in the units of the denoiser, and back; deterministic, float32.

    `latents = scale * (z - centre)`, with z the mode of the encoder's posterior (AutoencoderKL), or the encoder's output before
    quantisation (VQModel).
    """

    scale: torch.Tensor
    centre: torch.Tensor

    def __init__(self, network: Any, dtype: torch.dtype, scale: torch.Tensor, centre: torch.Tensor) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.image_channels = int(network.config.in_channels)
        # Pixels of the image for each latent, along each axis: every block except the last halves the image.
        self.factor = int(2 ** (len(network.config.block_out_channels) - 1))
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))
        self.register_buffer("centre", centre.reshape(1, -1, 1, 1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        encoded = self.network.encode(images.to(self.dtype))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (z.float() - self.centre) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.decode((latents / self.scale + self.centre).to(self.dtype)).sample.float()


def read_folder(path: Path) -> Folder:
    """The folder of a pipeline, fetched from a hub if necessary, with its parts checked."""
    from diffusers import DiffusionPipeline

    name = path.as_posix()
    if path.is_dir():
        return _pipeline_folder(path, DiffusionPipeline.load_config)
    if path.parent.is_dir() or not is_hub_name(name):
        raise ValueError(f"{name}: no such folder or file; expected a pipeline's folder, a checkpoint, or module:function")
    check_hub(name)
    with fetching(name):
        index = DiffusionPipeline.load_config(name)
    folder = _pipeline_folder(path, lambda _: index)  # check before gigabytes are fetched
    with fetching(name):
        return folder._replace(path=Path(DiffusionPipeline.download(name, **dict.fromkeys(folder.left_out))))


def is_hub_name(name: str) -> bool:
    """Whether a text can be the name of a model on a hub, "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_hub(name: str, file: str = "model_index.json") -> None:
    """ValueError if there is no such model in the cache or on the hub. The hub is asked once; libraries would retry for 25 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    with fetching(name):
        try:
            if not isinstance(try_to_load_from_cache(name, file), str):
                get_hf_file_metadata(hf_hub_url(name, file))  # times out after 10 s, or HF_HUB_ETAG_TIMEOUT
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status not in (408, 429) and status < 500:  # a busy hub may answer a retry
                raise


def fetching(name: str) -> AbstractContextManager[None]:
    """Context for fetching a model from a hub: any error becomes a ValueError of one line with advice."""
    advice = f"log in if it has a licence; `hf download {name} --local-dir FOLDER` fetches it where there is a network"
    return reading(f"{name}: no such folder, and on the hub it", advice)


def _pipeline_folder(path: Path, load_index: Callable[[str], Any]) -> Folder:
    """The folder of a pipeline's index; ValueError if the pipeline cannot make U-turns."""
    with reading(f"{path.as_posix()}/model_index.json", _PIPELINES):
        index = load_index(path.as_posix())
        parts: dict[str, str] = {}
        left_out = []
        for part, entry in index.items():
            if not isinstance(entry, list) or len(entry) != 2 or part.startswith("_"):
                continue
            library, kind = entry
            if kind is not None and part not in _UNUSED:
                # A part of another library is of no known kind.
                parts[part] = str(kind) if library in ("diffusers", "transformers") else f"{library}.{kind}"
            elif part.startswith((*_UNUSED, *_CONDITIONED)):
                left_out.append(part)
        pipeline = str(index.get("_class_name"))
        takes_text = pipeline in TEXT_DENOISERS
        denoiser = next((part for part in ("unet", "transformer") if part in parts), "unet or transformer")
        kinds: dict[str, tuple[str, ...]] = {
            denoiser: (TEXT_DENOISERS[pipeline],) if takes_text else _DENOISERS,
            "vae": _CODECS,
            "vqvae": _CODECS,
        }
        kinds |= {part: TEXT_PARTS if takes_text else () for part in parts if part.startswith(_CONDITIONED)}
        for part, allowed in kinds.items():
            expected = " or ".join(allowed) or "a pipeline that is not conditioned on a text or an image"
            expect(parts.get(part) in (None, *allowed), f"the {part} of its {pipeline}", parts.get(part), expected)
        needed = [denoiser, "scheduler", *(["vae"] if takes_text else [])]
        expect(parts.keys() >= {*needed}, "its parts", ", ".join(parts), ", ".join(needed))
    return Folder(path, pipeline if takes_text else "", parts, denoiser, tuple(left_out))


def load_codec(folder: Path, part: str, class_name: str, dtype: torch.dtype, channels: int) -> Codec:
    """The codec of a denoiser with `channels` channels."""
    network = load_part(folder, part, class_name)
    config = network.config
    latent_channels = config.get("vq_embed_dim") or config.latent_channels
    fits = latent_channels == channels
    expect(fits, f"{folder}: channels of the {part}", latent_channels, f"{channels}, as the denoiser takes")
    # A VQModel without this option predates it: its latents are not scaled, and the default of the class is wrong.
    unscaled = class_name == "VQModel" and "scaling_factor" in config.get("_use_default_values", ())
    scale = torch.tensor(1.0 if unscaled else config.scaling_factor)
    centre = torch.tensor(config.get("shift_factor") or 0.0)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        centre, scale = torch.tensor(config.latents_mean), scale / torch.tensor(config.latents_std)
    # Float32, since rounding changes the nearest code, and activations of many autoencoders overflow in half precision.
    if class_name == "VQModel" or (dtype == torch.float16 and config.get("force_upcast")):
        dtype = torch.float32
    return Codec(in_dtype(network, dtype), dtype, scale.float(), centre.float())


def load_part(folder: Path, part: str, class_name: str, dtype: torch.dtype | None = None) -> Any:
    """A network of a pipeline in float32, checked for missing and non-finite weights; `dtype` loads it in that precision."""
    source = "transformers" if class_name in TEXT_PARTS else "diffusers"
    options: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    if source == "transformers":
        options = {"dtype": dtype}
    elif dtype is not None:
        options = {"torch_dtype": dtype}  # loaded directly in this dtype, without a second copy in memory
    where = folder / part if (folder / part).is_dir() else folder  # old pipelines store their only network beside the index
    with reading(f"{where}: the {part}", "fetch or write the folder again"):
        network, report = getattr(importlib.import_module(source), class_name).from_pretrained(
            str(where),
            use_safetensors=any(where.glob("*.safetensors*")),  # otherwise .bin, read as weights only
            **options,
            output_loading_info=True,
            local_files_only=True,
        )
        missing = sorted(report["missing_keys"])
        expect(not missing, "missing weights", missing[:2], "none, as the library fills them with random numbers")
        check_finite(network.state_dict())
    # Old files may contain position indices 0, 1, .., or further buffers of older versions of diffusers.
    if extra := sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids")):
        said = f"{len(extra)} weights in the file are not of the {part} and are left out, such as {extra[0]}"
        warnings.warn(f"{where}: {said}", stacklevel=2)
    return network


def load_scheduler(folder: Path, class_name: str) -> Any:
    """The scheduler of a pipeline."""
    import diffusers

    where = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    with reading(f"{where}: the scheduler", "expected a scheduler of diffusers such as DDPMScheduler; fetch or write it again"):
        kind: Any = getattr(diffusers, class_name, None)
        expect(isinstance(kind, type) and is_scheduler(kind), "its class", class_name, "one with step() and add_noise()")
        return kind.from_pretrained(str(where), local_files_only=True)


def in_dtype(network: Any, dtype: torch.dtype) -> Any:
    """The network in `dtype`, except modules that embed numbers such as timesteps, which `dtype` would round."""
    config = getattr(network, "config", {})
    of_timesteps = {"time_proj": ("time_embedding_type", "fourier"), "class_embedding": ("class_embed_type", "timestep")}
    for name, part in network.named_children():
        option, kind = of_timesteps.get(name, ("", ""))
        if not option or config.get(option) != kind:
            part.to(dtype)
    return network


def for_inference(module: Any, device: torch.device, offload: bool = False) -> Any:
    """A module on a device, without gradients; with `offload`, each layer is moved to the device when needed."""
    module = module.eval().requires_grad_(False)
    if offload:
        library("accelerate", "offload = True")  # otherwise diffusers would fail only at the first call
        from diffusers.hooks import apply_group_offloading

        kinds: dict[str, Any] = {"onload_device": device, "offload_device": torch.device("cpu"), "offload_type": "leaf_level"}
        apply_group_offloading(module, **kinds, use_stream=device.type == "cuda")
        return module
    module = module.to(device)
    if device.type == "cuda" and any(isinstance(part, nn.Conv2d) for part in module.modules()):
        module = module.to(memory_format=torch.channels_last)  # the faster layout for convolutions on GPUs
    return module
