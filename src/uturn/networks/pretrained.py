"""Diffusion models: folders in diffusers' layout, checkpoints of guided-diffusion, and networks that a user's function makes.

Of files, only weights and plain JSON are read, nothing is unpickled, and only the parts that a U-turn needs are loaded.
`docs/models.md` lists the models that can be read.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uturn.checks import checked_path, one_line
from uturn.networks.conditions import UNCONDITIONAL, Condition, Conditioned
from uturn.networks.own_denoisers import ADVICE, OwnNetwork, Prediction, is_import_path, made_by

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
"""Endings of single files that `uturn.networks.guided_diffusion` reads."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_DENOISERS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")  # the last: DiT by its former name
_CODECS = ("AutoencoderKL", "VQModel")
_CONDITIONED = ("text_encoder", "tokenizer", "image_encoder", "bert", "prior", "controlnet")  # how names of such parts begin


@dataclass(frozen=True)
class Pretrained:
    """A diffusion model with its scheduler, its codec and its shapes.

    Attributes
    ----------
    model : DenoisingNetwork
        Called as `model(noisy, timestep)` or, if `num_classes` is not None, `model(noisy, timestep, labels)`. With guidance the
        network has two rows for every image.
    scheduler
        The scheduler stored with the model: its noise schedule, and what the model predicts.
    codec : Codec or None
        Between images and latents, for models that denoise latents.
    image_shape, latent_shape : (channels, height, width) or None
        Of the images, and of what the model denoises if there is a codec. None if the files do not say.
    num_classes : int or None
        Number of classes, if the model is run with the true label.
    description : str
        The model in one line, recorded with results.
    """

    model: Any
    scheduler: Any
    codec: Any | None
    image_shape: tuple[int, int, int] | None
    latent_shape: tuple[int, int, int] | None
    num_classes: int | None
    description: str


class DenoisingNetwork(nn.Module):
    """A denoising network that computes in its own precision, with float32 inputs and outputs.

    Its parameters are those of `network`; `torch.compile` changes neither them nor their names. `prediction` converts between
    the network and the scheduler if they differ.

    Guidance (arXiv:2207.12598) is the prediction with the null class + guidance (prediction with the label - prediction with the
    null class); a learned variance is that with the label. All predictions of x_t = a x_0 + s n are linear in x_0 given x_t, so
    it does not matter which one is guided.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        condition: Conditioned = UNCONDITIONAL,
        prediction: Prediction | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.condition = condition
        self.prediction = prediction

    @property
    def rows_of_an_image(self) -> int:
        """Rows of the network for every image."""
        return 1 if self.condition.guidance == 1 else 2

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Prediction (batch, channels or twice as many, height, width) for noisy (batch, channels, height, width).

        timestep: (batch,), of any dtype, not rounded to that of the network. labels: int64 (batch,), if the model is
        conditioned on them.
        """
        x, time = (noisy, timestep) if self.prediction is None else self.prediction.inputs(noisy, timestep)
        null = None
        if self.condition.null_class is not None:
            null = torch.full((len(noisy),), self.condition.null_class, device=noisy.device)
        if labels is None or null is None:
            output = self._called(x, time, null if labels is None else labels)
        else:
            told, blind = self._called(torch.cat([x, x]), torch.cat([time, time]), torch.cat([labels, null])).chunk(2)
            channels = noisy.shape[1]
            told, blind, variance = told[:, :channels], blind[:, :channels], told[:, channels:]
            output = torch.cat([blind + self.condition.guidance * (told - blind), variance], dim=1)
        return output if self.prediction is None else self.prediction.expected(output, noisy, timestep)

    def _called(self, noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        output = self.network(noisy.to(self.dtype), timestep, *(() if labels is None else (labels,)))
        return getattr(output, "sample", output).float()


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

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        encoded = self.network.encode(images.to(self.dtype))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (z.float() - self.centre) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.decode((latents / self.scale + self.centre).to(self.dtype)).sample.float()


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    preset: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    condition: str | None = None,
    guidance: float = 1.0,
    null_class: int | None = None,
) -> Pretrained:
    """Read a diffusion model.

    Parameters
    ----------
    path
        A folder that `DiffusionPipeline.save_pretrained` wrote, the name `owner/name` of one on a hub, a checkpoint of
        guided-diffusion (a file), or "module:function": a function without arguments that returns (module, scheduler) or a
        `uturn.networks.DenoiserModel`.
    preset
        For checkpoints: the options that their weights do not determine, see `uturn.networks.guided_diffusion`.
    device
        "cpu", "cuda", "cuda:1", "mps", ...; by default "cuda" where there is one, else "cpu".
    dtype
        What the networks compute in: "float32", "bfloat16" or "float16". Timesteps and schedulers keep their own precision, and
        what is returned is float32. Autoencoders that quantise stay in float32, and for "float16" those that ask for it
        (`force_upcast`).
    compile
        Compile the denoiser when it is first called; later calls are faster.
    condition
        For models with classes: "null", run with the null class, hence unconditionally; or "label", with the true label of every
        image. By default "null" for models that have a null class, and "label" for the others.
    guidance
        Scale of classifier-free guidance, for `condition = "label"` and models with a null class. Every number but 1 changes the
        law of the model, so reconstructions are no draws from a posterior.
    null_class
        Declares that the last class of a network is its null class. Those of DiT and of a `DenoiserModel` are known.

    Returns
    -------
    Pretrained
        In evaluation mode, without gradients.

    Raises
    ------
    ValueError
        If there is nothing at `path`, the files are damaged or incomplete, or the model is of a kind that makes no U-turns:
        conditioned on a text or an image, or of an unknown class.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path={path!r}: expected the name of a folder or a file")
    path = Path(checked_path("path", path))
    where = _checked_device(device)
    read = _read_own if is_import_path(str(path)) else _read_checkpoint if path.is_file() else _read_folder
    found = read(path, preset, where, DTYPES[dtype], Condition(condition, guidance, null_class).checked())
    if compile:
        found.model.network.compile()  # in place: the names of the weights stay
    return found


# --- one file --------------------------------------------------------------------------------------------------------


def _read_checkpoint(
    path: Path, preset: str | None, device: torch.device, dtype: torch.dtype, condition: Condition
) -> Pretrained:
    if path.suffix not in CHECKPOINTS:
        raise ValueError(
            f"{path} is a file; expected a folder in diffusers' layout, or a checkpoint ({', '.join(CHECKPOINTS)}); {ADVICE}"
        )
    from uturn.networks.guided_diffusion import guided_diffusion_scheduler, load_guided_diffusion

    network = load_guided_diffusion(path, preset)
    _cast(network.unet, dtype)
    conditioned = condition.of(path, network.num_classes)
    return Pretrained(
        model=_ready(DenoisingNetwork(network, dtype, conditioned), device),
        scheduler=guided_diffusion_scheduler(**network.options),
        codec=None,
        image_shape=_shape(network.config.in_channels, network.config.sample_size),
        latent_shape=None,
        num_classes=conditioned.num_classes,
        description=f"guided-diffusion UNet, {conditioned.words}",
    )


# --- a function ------------------------------------------------------------------------------------------------------


def _read_own(path: Path, preset: str | None, device: torch.device, dtype: torch.dtype, condition: Condition) -> Pretrained:
    name = str(path)
    if preset is not None:
        raise ValueError(f"preset={preset!r}: only for checkpoints of guided-diffusion, but {name} is a function; leave it out")
    own, is_pair = made_by(name)
    prediction = None if is_pair else Prediction(own)
    config = getattr(own.network, "config", None)
    shape = _shape(getattr(config, "in_channels", 0), getattr(config, "sample_size", None)) if is_pair else own.image_shape
    kind = getattr(own.network, "__name__", type(own.network).__name__)
    conditioned = condition.of(name, own.num_classes, own.null_class)
    network = OwnNetwork(own.network, f"model = {name!r}", dtype, learned_variance=is_pair)
    found = Pretrained(
        model=_ready(DenoisingNetwork(network, torch.float32, conditioned, prediction), device),
        scheduler=own.scheduler if prediction is None else prediction.scheduler,
        codec=None,
        image_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        latent_shape=None,
        num_classes=conditioned.num_classes,
        description=", ".join(filter(None, [kind, f"predicts {own.predicts}" if own.predicts else "", conditioned.words])),
    )
    if found.image_shape is not None:
        _try(found, name, device)
    return found


def _try(found: Pretrained, name: str, device: torch.device) -> None:
    """ValueError if a network cannot be called on two images of noise, or does not give numbers for them."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *(found.image_shape or ()), generator=generator).to(device)
    timestep = torch.full((2,), found.scheduler.config.num_train_timesteps // 2, device=device)
    labels = () if found.num_classes is None else (torch.tensor([0, found.num_classes - 1], device=device),)
    with torch.inference_mode():
        output = found.model(noisy, timestep, *labels)
    if not bool(output.isfinite().all()):
        raise ValueError(
            f"model = {name!r}: the network gives NaN or infinity for two images of noise at timestep {int(timestep[0])}; "
            f"expected finite numbers (check its weights, and in half precision dtype)"
        )


# --- a folder --------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, preset: str | None, device: torch.device, dtype: torch.dtype, condition: Condition) -> Pretrained:
    if preset is not None:
        raise ValueError(f"preset={preset!r}: only for checkpoints of guided-diffusion, but {path} is not a file; leave it out")
    folder, parts = _folder_and_parts(path)
    part = next((name for name in ("unet", "transformer") if name in parts), None)
    if part is None or "scheduler" not in parts:
        raise ValueError(f"{path} holds {', '.join(parts) or 'nothing'}; expected a unet or a transformer, and a scheduler")
    network, classes, null_class = _denoiser(folder, part, parts[part])
    conditioned = condition.of(path, classes, null_class)
    scheduler = _scheduler(folder, parts["scheduler"])
    latent = next((name for name in ("vae", "vqvae") if name in parts), None)
    inputs, outputs = network.config.in_channels, network.config.out_channels or network.config.in_channels
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"{path}: the denoiser takes {inputs} channels and gives {outputs}, so it reads more than the noisy image "
            f"(super-resolution, inpainting); expected as many, or twice as many with a learned variance"
        )
    shape = _shape(inputs, network.config.sample_size)
    codec, image_shape, description = None, shape, f"{type(network).__name__}, {conditioned.words}"
    if latent is not None:
        codec = _codec(folder, latent, parts[latent], dtype, inputs)
        config = codec.network.config
        factor = 2 ** (len(config.block_out_channels) - 1)  # every block but the last halves the image
        image_shape = None if shape is None else (config.in_channels, shape[1] * factor, shape[2] * factor)
        description += f", in the latents of {type(codec.network).__name__}"
        if "clip_sample" not in scheduler.config:
            # Other schedulers that are made from this configuration would clip latents to [-1, 1] by default.
            scheduler.register_to_config(clip_sample=False)
        codec = _ready(codec, device)
    return Pretrained(
        model=_ready(DenoisingNetwork(_cast(network, dtype), dtype, conditioned), device),
        scheduler=scheduler,
        codec=codec,
        image_shape=image_shape,
        latent_shape=None if codec is None else shape,
        num_classes=conditioned.num_classes,
        description=description,
    )


def _folder_and_parts(path: Path) -> tuple[Path, dict[str, str]]:
    """The folder, fetched from a hub if need be, and the class of each of its parts, checked."""
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
        _check_hub(name)
    from diffusers import DiffusionPipeline

    if not is_hub_name:
        try:
            index = DiffusionPipeline.load_config(name)
        except Exception as error:
            raise ValueError(
                f"{name}/model_index.json cannot be read ({one_line(error)}); fetch or write the folder again"
            ) from None
        return path, _checked_parts(name, index)
    try:
        index = DiffusionPipeline.load_config(name)
    except Exception as error:
        raise _not_fetched(name, error) from None
    parts = _checked_parts(name, index)  # before gigabytes are fetched
    try:
        return Path(DiffusionPipeline.download(name)), parts
    except Exception as error:
        raise _not_fetched(name, error) from None


def _check_hub(name: str) -> None:
    """ValueError if there is no such model in the cache, and none on the hub, which is asked once: diffusers asks for 25 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, "model_index.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "model_index.json"))  # waits for 10 s, or HF_HUB_ETAG_TIMEOUT
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (408, 429) or status >= 500:
            return  # a hub that is busy is worth asking again
        raise _not_fetched(name, error) from None


def _not_fetched(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name}: no such folder, and no model of this name could be fetched from the hub ({one_line(error)}); where there is a "
        f"network, `hf download {name} --local-dir FOLDER` fetches it: give that folder"
    )


def _checked_parts(name: str, index: Any) -> dict[str, str]:
    """{part: class} of a pipeline's index, without the parts that are empty."""
    if not isinstance(index, dict):
        raise ValueError(f"{name}/model_index.json holds {index!r:.60}; expected the parts of a pipeline of diffusers")
    parts = {}
    for part, entry in index.items():
        if part.startswith("_") or not (isinstance(entry, list) and len(entry) == 2) or entry[1] is None:
            continue  # options of the pipeline, empty parts
        parts[part] = str(entry[1])
    denoiser = parts.get("unet") or parts.get("transformer")
    asked = [part for part in parts if part.startswith(_CONDITIONED)]
    if asked:
        raise ValueError(
            f"{name} is conditioned on a text or an image ({', '.join(asked)}); expected an unconditional or class-conditional "
            f"model (DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline)"
        )
    if denoiser is not None and denoiser not in _DENOISERS:
        raise ValueError(f"{name}: the denoiser is a {denoiser}; expected UNet2DModel or DiTTransformer2DModel")
    codec = parts.get("vae") or parts.get("vqvae")
    if codec is not None and codec not in _CODECS:
        raise ValueError(f"{name}: the autoencoder is a {codec}; expected {' or '.join(_CODECS)}")
    return parts


def _denoiser(folder: Path, part: str, class_name: str) -> tuple[Any, int | None, int | None]:
    """The network, the number of its classes if it has some, and its null class if the files declare one."""
    network = _load_part(folder, part, class_name)
    config = network.config
    if type(network).__name__ == "DiTTransformer2DModel":
        return network, config.num_embeds_ada_norm, config.num_embeds_ada_norm  # the null class comes after the others
    if type(network).__name__ != "UNet2DModel":  # the former class stands for others too
        raise ValueError(f"{folder}: the denoiser is a {type(network).__name__}; expected UNet2DModel or DiTTransformer2DModel")
    if network.class_embedding is None:
        return network, None, None
    if config.class_embed_type == "identity" or config.num_class_embeds is None:
        raise ValueError(
            f"{folder}: a UNet2DModel with class_embed_type={config.class_embed_type!r} and "
            f"num_class_embeds={config.num_class_embeds}; expected classes by number: num_class_embeds in {part}/config.json"
        )
    return network, int(config.num_class_embeds), None


def _codec(folder: Path, part: str, class_name: str, dtype: torch.dtype, channels: int) -> Codec:
    """The codec of a denoiser of so many channels."""
    network = _load_part(folder, part, class_name)
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
    return Codec(_cast(network, dtype), dtype, scale.float(), centre.float())


def _load_part(folder: Path, part: str, class_name: str) -> Any:
    """A network of a pipeline, whole and finite."""
    import diffusers

    # Old pipelines keep their only network beside the index.
    where = folder / part if (folder / part).is_dir() else folder
    try:
        network, report = getattr(diffusers, class_name).from_pretrained(
            str(where),
            use_safetensors=any(where.glob("*.safetensors*")),  # else .bin, which is read as weights only
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:
        raise ValueError(f"{where}: the {part} cannot be loaded ({one_line(error)}); fetch or write the folder again") from None
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
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


def _scheduler(folder: Path, class_name: str) -> Any:
    import diffusers

    where = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    made = getattr(diffusers, class_name, None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise ValueError(f"{folder}: the scheduler is a {class_name}; expected a scheduler of diffusers")
    try:
        scheduler = made.from_pretrained(str(where), local_files_only=True)
    except Exception as error:
        raise ValueError(f"{where}: the scheduler cannot be loaded ({one_line(error)}); fetch or write it again") from None
    if not hasattr(scheduler, "step") or not (hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")):
        raise ValueError(
            f"{folder}: {class_name} has no step() or add_noise(), so it makes no U-turns; expected one like DDPMScheduler"
        )
    return scheduler


# --- networks --------------------------------------------------------------------------------------------------------


def _cast(network: Any, dtype: torch.dtype) -> Any:
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


def _ready(module: Any, device: torch.device) -> Any:
    module = module.to(device).eval().requires_grad_(False)
    if device.type == "cuda" and any(isinstance(part, nn.Conv2d) for part in module.modules()):
        module = module.to(memory_format=torch.channels_last)  # the layout of the fast convolutions there
    return module


def _checked_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
        torch.ones(1, device=checked).cpu()  # devices without values ("meta") fail here
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({one_line(error)}); expected 'cpu', 'cuda', 'mps' or None"
        ) from None
    return checked


def _shape(channels: int, size: Any) -> tuple[int, int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)
