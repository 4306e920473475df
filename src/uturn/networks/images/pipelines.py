"""Parts of a pipeline's folder in diffusers' layout: its index, networks, autoencoder and scheduler."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from uturn.core.checks import one_line, shown
from uturn.core.files import read_table

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
_DENOISERS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")  # the last: DiT by its former name
_MOST_TIMESTEPS = 100_000  # of a noise schedule; a thousand is usual
_CODECS = ("AutoencoderKL", "VQModel")
_CONDITIONED = ("text_encoder", "tokenizer", "image_encoder", "bert", "prior", "controlnet")  # how names of such parts begin
_UNUSED = ("safety_checker", "feature_extractor")


class Folder(NamedTuple):
    """The folder of a pipeline, its class if it is text-conditioned (else ""), and the class of each of its parts.

    `left_out`: parts that a U-turn does not need, and those that the pipeline is without.
    """

    path: Path
    pipeline: str
    parts: dict[str, str]
    left_out: tuple[str, ...] = ()


class Codec(nn.Module):
    """Maps images (batch, 3, height, width) in [-1, 1] to latents in the units of the denoiser, and back; deterministic.

    `latents = scale * (z - centre)`, with z the mode of the encoder's posterior (AutoencoderKL), or what the encoder gives before
    it is quantised (VQModel, which quantises when it decodes). Float32 on both sides.
    """

    scale: torch.Tensor
    centre: torch.Tensor

    def __init__(self, network: Any, dtype: torch.dtype, scale: torch.Tensor, centre: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))
        self.register_buffer("centre", centre.reshape(1, -1, 1, 1))

    @property
    def image_channels(self) -> int:
        return int(self.network.config.in_channels)

    @property
    def factor(self) -> int:
        """Pixels of the image for one of the latents, in each direction."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))  # every block but the last halves the image

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        encoded = self.network.encode(images.to(self.dtype))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (z.float() - self.centre) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.decode((latents / self.scale + self.centre).to(self.dtype)).sample.float()


# --- the folder ------------------------------------------------------------------------------------------------------


def read_folder(path: Path) -> Folder:
    """The folder of a pipeline, fetched from a hub if need be, with its parts checked."""
    name = path.as_posix()
    is_hub_name = not path.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.parent.is_dir()
    if not path.is_dir() and not is_hub_name:
        raise ValueError(
            f"{name}: no such folder or file; expected a folder in diffusers' layout, a checkpoint, or module:function"
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        alone = (path / "config.json").is_file()
        raise ValueError(
            f"{name} holds no model_index.json"
            + ("; it is a network without its scheduler: " if alone else ", so it is not a diffusion pipeline of diffusers; ")
            + f"write both with DDPMPipeline(unet, scheduler).save_pretrained(folder){'' if alone else ' and give that folder'}"
        )
    if is_hub_name:
        check_hub(name)
    from diffusers import DiffusionPipeline

    if not is_hub_name:
        try:
            index = DiffusionPipeline.load_config(name)
        except Exception as error:
            raise ValueError(
                f"{name}/model_index.json cannot be read ({one_line(error)}); fetch or write the folder again"
            ) from None
        return pipeline_folder(name, index)
    try:
        index = DiffusionPipeline.load_config(name)
    except Exception as error:
        raise not_fetched(name, error) from None
    found = pipeline_folder(name, index)  # before gigabytes are fetched
    try:
        return found._replace(path=Path(DiffusionPipeline.download(name, **dict.fromkeys(found.left_out))))
    except Exception as error:
        raise not_fetched(name, error) from None


def check_hub(name: str, file: str = "model_index.json") -> None:
    """ValueError if there is no such model in the cache, and none on the hub, which is asked once: libraries ask for 25 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            get_hf_file_metadata(hf_hub_url(name, file))  # waits for 10 s, or HF_HUB_ETAG_TIMEOUT
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (408, 429) or status >= 500:
            return  # a hub that is busy is worth asking again
        raise not_fetched(name, error) from None


def not_fetched(name: str, error: Exception) -> ValueError:
    """The error for a model that no hub gives."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    asked = "accept its licence on the page of the model, and log in (`hf auth login`); " if status in (401, 403) else ""
    return ValueError(
        f"{name}: no such folder, and no model of this name could be fetched from the hub ({one_line(error)}); {asked}where "
        f"there is a network, `hf download {name} --local-dir FOLDER` fetches it: give that folder"
    )


def pipeline_folder(name: str, index: Any) -> Folder:
    """The folder of a pipeline's index; ValueError if the pipeline makes no U-turns."""
    if not isinstance(index, dict):
        raise ValueError(f"{name}/model_index.json holds {index!r:.60}; expected the parts of a pipeline of diffusers")
    parts, left_out = {}, []
    for part, entry in index.items():
        if part.startswith("_") or not (isinstance(entry, list) and len(entry) == 2):
            continue  # options of the pipeline
        if part in _UNUSED or (entry[1] is None and part.startswith(_CONDITIONED)):
            left_out.append(part)
        elif entry[1] is None:
            continue
        elif part.startswith(_CONDITIONED) and entry[0] != "transformers":
            raise ValueError(f"{name}: the {part} is of {entry[0]!r}; expected a part of transformers")
        else:
            parts[part] = str(entry[1])
    pipeline = str(index.get("_class_name"))
    asked = [part for part in parts if part.startswith(_CONDITIONED)]
    kinds = TEXT_DENOISERS.get(pipeline)
    denoiser = parts.get("unet") or parts.get("transformer")
    if asked and kinds is None:
        raise ValueError(
            f"{name} is a {pipeline}, conditioned on a text or an image ({', '.join(asked)}); expected an unconditional or "
            f"class-conditional model (DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline), or one of "
            f"{', '.join(TEXT_DENOISERS)}"
        )
    unknown = [part for part in asked if parts[part] not in TEXT_PARTS]
    if unknown:
        raise ValueError(f"{name}: the {unknown[0]} is a {parts[unknown[0]]}; expected one of {', '.join(TEXT_PARTS)}")
    expected = _DENOISERS if kinds is None else (kinds,)
    if denoiser is not None and denoiser not in expected:
        wanted = "UNet2DModel or DiTTransformer2DModel" if kinds is None else kinds
        raise ValueError(f"{name}: the denoiser is a {denoiser}; expected {wanted}")
    codec = parts.get("vae") or parts.get("vqvae")
    if codec is not None and codec not in _CODECS:
        raise ValueError(f"{name}: the autoencoder is a {codec}; expected {' or '.join(_CODECS)}")
    return Folder(Path(name), pipeline if kinds is not None else "", parts, tuple(left_out))


# --- its parts -------------------------------------------------------------------------------------------------------


def load_codec(folder: Path, part: str, class_name: str, dtype: torch.dtype, channels: int) -> Codec:
    """The codec of a denoiser of so many channels."""
    network = load_part(folder, part, class_name)
    config = network.config
    made = config.get("vq_embed_dim") or config.latent_channels
    if made != channels:
        raise ValueError(f"{folder}: the {part} makes latents of {made} channels, but the denoiser takes {channels}")
    # A VQModel without the option is older than it: its latents were not scaled, and the default of the class is wrong.
    unscaled = class_name == "VQModel" and "scaling_factor" in config.get("_use_default_values", ())
    scale = torch.tensor(1.0 if unscaled else config.scaling_factor)
    centre = torch.tensor(config.get("shift_factor") or 0.0)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        centre, scale = torch.tensor(config.latents_mean), scale / torch.tensor(config.latents_std)
    # The nearest code is another one after rounding; and activations of many autoencoders overflow in half precision.
    if class_name == "VQModel" or (dtype == torch.float16 and config.get("force_upcast")):
        dtype = torch.float32
    return Codec(in_dtype(network, dtype), dtype, scale.float(), centre.float())


def load_part(folder: Path, part: str, class_name: str, dtype: torch.dtype | None = None) -> Any:
    """A network of a pipeline, whole and finite, in float32; or in a dtype from the start, for large ones."""
    library, options = "diffusers", {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    if class_name in TEXT_PARTS:
        library, options = "transformers", {"dtype": dtype}
    elif dtype is not None:
        options = {"torch_dtype": dtype}  # by the libraries' default, without a second copy in memory
    # Old pipelines keep their only network beside the index.
    where = folder / part if (folder / part).is_dir() else folder
    try:
        network, report = getattr(importlib.import_module(library), class_name).from_pretrained(
            str(where),
            use_safetensors=any(where.glob("*.safetensors*")),  # else .bin, which is read as weights only
            **options,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:
        raise ValueError(f"{where}: the {part} cannot be loaded ({one_line(error)}); fetch or write the folder again") from None
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    extra = [key for key in extra if not key.endswith("position_ids")]  # numbers 0, 1, .., which old files of text encoders hold
    if missing:  # the library fills them with random numbers
        raise ValueError(
            f"{where}: {len(missing)} weights of the {part} are missing, such as {missing[0]}; fetch or write the folder again"
        )
    if extra:  # older versions of diffusers stored more
        warnings.warn(
            f"{where}: {len(extra)} weights in the file are not of the {part} and are left out, such as {extra[0]}", stacklevel=2
        )
    if not all(torch.isfinite(weights).all() for weights in network.state_dict().values() if weights.is_floating_point()):
        raise ValueError(f"{where}: some weights of the {part} are not finite; fetch or write the folder again")
    return network


def load_scheduler(folder: Path, class_name: str) -> Any:
    """The scheduler of a pipeline."""
    import diffusers

    where = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    made = getattr(diffusers, class_name, None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise ValueError(f"{folder}: the scheduler is a {class_name}; expected a scheduler of diffusers")
    try:
        timesteps = read_table(where / "scheduler_config.json").get("num_train_timesteps", 1000)
        if not (isinstance(timesteps, int) and 1 <= timesteps <= _MOST_TIMESTEPS):
            raise ValueError(f"num_train_timesteps = {shown(timesteps)}: expected an integer in 1 .. {_MOST_TIMESTEPS}")
        scheduler = made.from_pretrained(str(where), local_files_only=True)
    except Exception as error:
        raise ValueError(f"{where}: the scheduler cannot be loaded ({one_line(error)}); fetch or write it again") from None
    if not hasattr(scheduler, "step") or not (hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")):
        raise ValueError(
            f"{folder}: {class_name} has no step() or add_noise(), so it makes no U-turns; expected one like DDPMScheduler"
        )
    return scheduler


def in_dtype(network: Any, dtype: torch.dtype) -> Any:
    """The network in `dtype`, except the parts that embed numbers, which `dtype` would round."""
    config = getattr(network, "config", {})
    kept = set()
    if config.get("time_embedding_type") == "fourier":
        kept.add("time_proj")  # multiplies timesteps by weights
    if config.get("class_embed_type") == "timestep":
        kept.add("class_embedding")
    for name, part in network.named_children():
        if name not in kept:
            part.to(dtype)
    return network


def for_inference(module: Any, device: torch.device, offload: bool = False) -> Any:
    """A module on a device, without gradients; with `offload`, each layer comes to the device when it is needed."""
    module = module.eval().requires_grad_(False)
    if offload:
        return _offloaded(module, device)
    module = module.to(device)
    if device.type == "cuda" and any(isinstance(part, nn.Conv2d) for part in module.modules()):
        module = module.to(memory_format=torch.channels_last)  # the layout of the fast convolutions there
    return module


def _offloaded(module: Any, device: torch.device) -> Any:
    try:
        import accelerate  # noqa: F401, which diffusers misses only when the module is called
    except ImportError:
        raise ValueError("offload = True needs accelerate, which is not installed; pip install 'uturn[text-to-image]'") from None
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",
    )
    return module


def shape_of(channels: int, size: Any) -> tuple[int, int, int] | None:
    """(channels, height, width), where a configuration names a size."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)
