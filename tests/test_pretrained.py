"""Diffusion models read from files, against the same parts held in memory and against diffusers'
own pipelines.
"""

import json
import pickle
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import adm_checkpoints as adm
from forging import Trap
from small import one_line_error
from tiny_denoiser import PLAIN, chain_of, unet
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.core.random import keys
from uturn.networks.images import guided_diffusion
from uturn.networks.images.pretrained import load_pretrained

NUM_CLASSES = 5


# --- one tiny random model of each kind -----------------------------------------------------------


def make_dit(**options):
    torch.manual_seed(1)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": NUM_CLASSES,
    }
    return diffusers.DiTTransformer2DModel(**{**settings, **options}).eval()


def make_autoencoder(made, **options):
    torch.manual_seed(2)
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    }
    return made(**{**settings, **options}).eval()


def make_vae(**options):
    return make_autoencoder(
        diffusers.AutoencoderKL, **{"latent_channels": 4, "scaling_factor": 0.7, **options}
    )


def make_vqvae():
    return make_autoencoder(
        diffusers.VQModel, latent_channels=3, num_vq_embeddings=32, scaling_factor=0.6
    )


@dataclass
class Kind:
    """A model in memory: what the files must give back."""

    network: Any
    scheduler: Any
    description: str
    class_name: str = "DDPMPipeline"
    codec: Any = None
    shift: float = 0.0
    scale: float = 1.0
    labels: bool = False
    null: bool = False

    @property
    def parts(self):
        parts = {
            "transformer" if "DiT" in self.class_name else "unet": self.network,
            "scheduler": self.scheduler,
        }
        if self.codec is not None:
            parts["vqvae" if isinstance(self.codec, diffusers.VQModel) else "vae"] = self.codec
        return parts

    def predict(self, noisy, timestep, labels=None):
        if self.null:
            labels = torch.tensor([NUM_CLASSES] * len(noisy))
        return (
            self.network(noisy, timestep, class_labels=labels).sample
            if self.labels or self.null
            else self.network(noisy, timestep).sample
        )

    def encode(self, images):
        z = self.codec.encode(images)
        return (
            (z.latents if isinstance(self.codec, diffusers.VQModel) else z.latent_dist.mean)
            - self.shift
        ) * self.scale

    def decode(self, latents):
        return self.codec.decode(latents / self.scale + self.shift).sample


def ddim(**options):
    return diffusers.DDIMScheduler(clip_sample=False, **options)


def make_kinds():
    told = f"UNet2DModel, conditioned on the true label ({NUM_CLASSES} classes)"
    null = f"DiTTransformer2DModel, null class {NUM_CLASSES}, in the latents of AutoencoderKL"
    plain = "UNet2DModel, unconditional"
    return {
        "ddpm": Kind(unet(1), diffusers.DDPMScheduler(), plain),
        "ddim": Kind(unet(3, sample_size=(8, 16)), ddim(), plain, "DDIMPipeline"),
        "learned variance": Kind(
            unet(1, out_channels=2), diffusers.DDPMScheduler(variance_type="learned_range"), plain
        ),
        "v": Kind(unet(1), diffusers.DDPMScheduler(prediction_type="v_prediction"), plain),
        "sample": Kind(unet(1), diffusers.DDPMScheduler(prediction_type="sample"), plain),
        "flow": Kind(unet(1), diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0), plain),
        "classes": Kind(
            unet(1, num_class_embeds=NUM_CLASSES), diffusers.DDPMScheduler(), told, labels=True
        ),
        "class numbers": Kind(
            unet(1, num_class_embeds=NUM_CLASSES, class_embed_type="timestep"),
            diffusers.DDPMScheduler(),
            told,
            labels=True,
        ),
        "vq": Kind(
            unet(3),
            ddim(),
            f"{plain}, in the latents of VQModel",
            "LDMPipeline",
            make_vqvae(),
            scale=0.6,
        ),
        "kl": Kind(
            unet(4),
            diffusers.EulerDiscreteScheduler(),
            f"{plain}, in the latents of AutoencoderKL",
            codec=make_vae(shift_factor=0.3),
            shift=0.3,
            scale=0.7,
        ),
        "dit": Kind(make_dit(), ddim(), null, "DiTPipeline", make_vae(), scale=0.7, null=True),
        "dit flow": Kind(
            make_dit(out_channels=4),
            diffusers.FlowMatchEulerDiscreteScheduler(),
            null,
            "DiTPipeline",
            make_vae(),
            scale=0.7,
            null=True,
        ),
    }


KINDS = make_kinds()
PIXELS = [name for name, kind in KINDS.items() if kind.codec is None]
LATENTS = [name for name in KINDS if name not in PIXELS]


def write(kind, folder):
    """As a pipeline of diffusers writes it, without one."""
    index = {"_class_name": kind.class_name, "_diffusers_version": diffusers.__version__}
    for name, part in kind.parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    found = {name: write(kind, root / name.replace(" ", "-")) for name, kind in KINDS.items()}
    for name, made in (
        ("ddpm", diffusers.DDPMPipeline),
        ("ddim", diffusers.DDIMPipeline),
        ("vq", diffusers.LDMPipeline),
    ):
        found[name] = root / f"pipeline-{name}"
        made(**KINDS[name].parts).save_pretrained(found[name])
    found["dit"] = root / "pipeline-dit"
    diffusers.DiTPipeline(**KINDS["dit"].parts).save_pretrained(found["dit"])
    return found


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of a folder, to be damaged."""
    return lambda name: shutil.copytree(folders[name], tmp_path / "copy")


def inputs_of(kind, count=3, seed=0):
    config = kind.network.config
    size = (
        config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    )
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(count, config.in_channels, *size, generator=generator)
    return noisy, torch.tensor([999, 3, 500])[:count], torch.tensor([4, 0, 2])[:count]


def images_of(shape, count=3, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def edit(file, **changes):
    """Change entries of a JSON file; None removes them."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )


# --- what is read is what was written -------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_the_model_is_the_one_that_was_written(folders, name):
    kind, loaded = KINDS[name], load_pretrained(folders[name])
    noisy, timestep, labels = inputs_of(kind)
    told = (labels,) if kind.labels else ()
    assert torch.equal(loaded.network(noisy, timestep, *told), kind.predict(noisy, timestep, *told))
    assert loaded.num_classes == (NUM_CLASSES if kind.labels else None)
    assert loaded.description == kind.description
    assert type(loaded.scheduler) is type(kind.scheduler)
    # Where the option is left as it is.
    clips = kind.codec is None or type(kind.scheduler).__name__.startswith("FlowMatch")
    saved = dict(kind.scheduler.config) | ({} if clips else {"clip_sample": False})
    public = {
        entry: value
        for entry, value in loaded.scheduler.config.items()
        if not entry.startswith("_")
    }
    assert public == {entry: value for entry, value in saved.items() if not entry.startswith("_")}
    assert not loaded.network.training
    assert not any(weights.requires_grad for weights in loaded.network.parameters())
    for entry, weights in kind.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[f"network.{entry}"], weights)


@pytest.mark.parametrize("name", LATENTS)
@torch.inference_mode()
def test_the_codec_is_the_autoencoder_in_the_units_of_the_denoiser(folders, name):
    kind, codec = KINDS[name], load_pretrained(folders[name]).codec
    images = torch.from_numpy(images_of((3, 16, 16)))
    latents = codec.encode(images)
    torch.testing.assert_close(latents, kind.encode(images), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(codec.decode(latents), kind.decode(latents), rtol=1e-5, atol=1e-6)
    assert torch.equal(latents, codec.encode(images))  # nothing is drawn
    assert not codec.training
    assert not any(weights.requires_grad for weights in codec.parameters())


@torch.inference_mode()
def test_latents_may_be_standardised_channel_by_channel(tmp_path):
    mean, deviation = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    vae = make_vae(latents_mean=mean, latents_std=deviation, scaling_factor=0.5)
    folder = write(Kind(unet(4), ddim(), "", codec=vae), tmp_path)
    images = torch.from_numpy(images_of((3, 16, 16)))
    z = vae.encode(images).latent_dist.mean
    expected = (
        (z - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(deviation).view(1, 4, 1, 1) * 0.5
    )
    codec = load_pretrained(folder).codec
    torch.testing.assert_close(codec.encode(images), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(codec.decode(expected), vae.decode(z).sample, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_quantising_autoencoders_that_state_no_scale_have_none(copied):
    """Those of before the option: the default of diffusers, 0.18215, is not theirs (issue 6725
    of huggingface/diffusers).
    """
    folder = copied("vq")
    edit(folder / "vqvae" / "config.json", scaling_factor=None)
    images = torch.from_numpy(images_of((3, 16, 16)))
    assert torch.equal(
        load_pretrained(folder).codec.encode(images), KINDS["vq"].codec.encode(images).latents
    )


@torch.inference_mode()
def test_older_layouts(folders, copied):
    """A pipeline of one network kept its files beside the index; DiT was a kind of
    Transformer2DModel; weights were pickled.
    """
    folder = copied("ddpm")
    for file in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        shutil.move(file, folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(KINDS["ddpm"].network.state_dict(), folder / "diffusion_pytorch_model.bin")
    noisy, timestep, _ = inputs_of(KINDS["ddpm"])
    assert torch.equal(
        load_pretrained(folder).network(noisy, timestep), KINDS["ddpm"].predict(noisy, timestep)
    )
    shutil.rmtree(folder)
    folder = copied("dit")
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(
        folder / "transformer" / "config.json",
        _class_name="Transformer2DModel",
        num_vector_embeds=None,
        double_self_attention=False,
    )
    noisy, timestep, _ = inputs_of(KINDS["dit"])
    loaded = load_pretrained(folder)
    assert loaded.description == KINDS["dit"].description
    assert torch.equal(loaded.network(noisy, timestep), KINDS["dit"].predict(noisy, timestep))


# --- precision, device, compilation ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["class numbers", "kl"])
@torch.inference_mode()
def test_bfloat16_is_inside_only(folders, name):
    kind, loaded = KINDS[name], load_pretrained(folders[name], dtype="bfloat16")
    noisy, timestep, labels = inputs_of(kind)
    told = (labels,) if kind.labels else ()
    output, exact = loaded.network(noisy, timestep, *told), kind.predict(noisy, timestep, *told)
    assert output.dtype == torch.float32
    assert loaded.network.network.dtype == torch.bfloat16
    error = (output - exact).std() / exact.std()
    assert 1e-5 < error < 0.03  # 8 bits, a few layers
    # 999 and 1000 are equal in bfloat16, but the network must give different outputs for them.
    assert not torch.equal(
        loaded.network(noisy, torch.full((3,), 999), *told),
        loaded.network(noisy, torch.full((3,), 1000), *told),
    )
    if kind.codec is not None:
        images = torch.from_numpy(images_of((3, 16, 16)))
        latents = loaded.codec.encode(images)
        assert latents.dtype == loaded.codec.decode(latents).dtype == torch.float32
        assert 1e-5 < (latents - kind.encode(images)).std() / kind.encode(images).std() < 0.03


@torch.inference_mode()
def test_weights_that_multiply_timesteps_are_not_rounded(tmp_path):
    network = unet(1, time_embedding_type="fourier")
    folder = write(Kind(network, diffusers.DDPMScheduler(), ""), tmp_path)
    noisy, timestep, _ = inputs_of(KINDS["ddpm"])
    # The network divides by it.
    exact = network(noisy, timestep).sample * timestep.view(-1, 1, 1, 1)
    found = load_pretrained(folder, dtype="bfloat16").network(noisy, timestep) * timestep.view(
        -1, 1, 1, 1
    )
    assert (found - exact).std() / exact.std() < 0.03


@pytest.mark.slow
@torch.inference_mode()
def test_compilation_changes_neither_results_nor_names(tmp_path):
    network = unet(1, block_out_channels=(4,), mid_block_type=None, **PLAIN)
    folder = write(Kind(network, diffusers.DDPMScheduler(), ""), tmp_path)
    plain, compiled = load_pretrained(folder).network, load_pretrained(folder, compile=True).network
    assert list(plain.state_dict()) == list(compiled.state_dict())
    compiled.network.compile(backend="eager")  # traced all the same, but needs no C++ compiler
    noisy, timestep, _ = inputs_of(KINDS["ddpm"])
    torch.testing.assert_close(compiled(noisy, timestep), plain(noisy, timestep))
    assert list(plain.state_dict()) == list(compiled.state_dict())


# --- U-turns --------------------------------------------------------------------------------------


def direct(kind, num_steps, **options):
    """The reverse process of a kind held in memory, with the parts called directly."""

    class Model(torch.nn.Module):
        def forward(self, noisy, timestep, labels=None):
            return kind.predict(noisy, timestep, labels)

    codec = None if kind.codec is None else kind
    classes = NUM_CLASSES if kind.labels else None
    return chain_of(
        Model().eval(), kind.scheduler, num_steps, codec=codec, num_classes=classes, **options
    )


@pytest.mark.parametrize("name", KINDS)
def test_u_turns_of_every_kind(folders, name):
    kind = KINDS[name]
    backward = ReverseDiffusion.from_pretrained(folders[name], scheduler=None, num_steps=10)
    images, streams = images_of(backward.model.image_shape), keys(0, range(3))
    labels = np.array([4, 0, 2]) if kind.labels else None
    assert backward.model.description == kind.description
    np.testing.assert_array_equal(backward.u_turn(images, 0, streams, labels), images)
    for step in (4, 10):
        rebuilt = backward.u_turn(images, step, streams, labels)
        assert rebuilt.shape == images.shape
        np.testing.assert_allclose(
            rebuilt, direct(kind, 10).u_turn(images, step, streams, labels), atol=1e-5
        )
    if kind.labels:
        assert not np.allclose(
            rebuilt, backward.u_turn(images, 10, streams, np.array([3, 1, 4])), atol=1e-3
        )


@pytest.mark.parametrize("name", ["ddim", "vq"])
def test_deterministic_generation_is_that_of_the_pipeline(folders, name):
    """From the same pure noise, with the pipeline's own loop, and decoding."""
    kind = KINDS[name]
    start = inputs_of(kind, count=2, seed=7)[0]
    arguments = {
        "num_inference_steps": 10,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(7),
    }
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(batch_size=2, **arguments).images
    backward = ReverseDiffusion.from_pretrained(
        folders[name], scheduler=None, num_steps=10, timestep_spacing="leading"
    )
    images = backward.denoise(start, 10, keys(0, range(2))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images / 2 + 0.5, found, atol=1e-5)
    assert found.std() > 1e-3


@pytest.mark.parametrize(("condition", "guidance"), [("label", 2.5), ("null", 1.0)])
def test_dit_without_a_condition_told_and_guided_is_that_of_the_pipeline(
    tmp_path, condition, guidance
):
    """With 1,000 classes, since the pipeline takes 1000 for the null class of every model."""
    kind = replace(KINDS["dit"], network=make_dit(num_embeds_ada_norm=1000))
    folder = write(kind, tmp_path / "dit")
    start = inputs_of(kind, count=2, seed=7)[0]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    labels = [1, 3] if condition == "label" else [1000] * 2
    arguments = {
        "num_inference_steps": 10,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(7),
    }
    found = pipeline(labels, guidance_scale=guidance, **arguments).images
    options = {"scheduler": None, "num_steps": 10, "timestep_spacing": "leading"}
    backward = ReverseDiffusion.from_pretrained(
        folder, condition=condition, guidance=guidance, **options
    )
    images = (
        backward.denoise(start, 10, keys(0, range(2)), np.array(labels)).permute(0, 2, 3, 1).numpy()
    )
    np.testing.assert_allclose(images / 2 + 0.5, found, atol=1e-5)
    assert ("guided with 2.5" in backward.model.description) == (guidance != 1)


def test_a_null_class_can_be_declared(folders):
    model, scheduler = KINDS["classes"].network, KINDS["classes"].scheduler
    noisy, timestep, _ = inputs_of(KINDS["classes"])
    labels = torch.tensor([0, 1, 3])
    blind = model(noisy, timestep, class_labels=torch.full((3,), NUM_CLASSES - 1)).sample
    told = model(noisy, timestep, class_labels=labels).sample
    declared = {"null_class": NUM_CLASSES - 1, "device": "cpu"}
    unconditional = load_pretrained(folders["classes"], **declared)
    guided = load_pretrained(folders["classes"], condition="label", guidance=3.0, **declared)
    assert type(scheduler) is type(guided.scheduler)
    assert (unconditional.num_classes, guided.num_classes) == (None, NUM_CLASSES - 1)
    with torch.inference_mode():
        torch.testing.assert_close(unconditional.network(noisy, timestep), blind)
        torch.testing.assert_close(
            guided.network(noisy, timestep, labels),
            blind + 3 * (told - blind),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddpm", {"condition": "null"}, "condition = 'null': expected None, as it has no classes"),
        (
            "classes",
            {"condition": "null"},
            "condition = 'null': expected .* declares no null class",
        ),
        ("classes", {"null_class": 2}, "null_class = 2: expected the last of its 5 classes"),
        ("dit", {"guidance": 4.0}, "guidance = 4.0: expected 1, or condition = 'label'"),
    ],
)
def test_conditions_that_a_model_does_not_have(folders, name, options, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(folders[name], **options)


# --- checkpoints of guided-diffusion, and names on a hub ------------------------------------------


@pytest.mark.parametrize("classes", [None, NUM_CLASSES])
def test_files_go_to_guided_diffusion(tmp_path, classes):
    file = adm.save_checkpoint(tmp_path / "model.pt", num_classes=classes)
    preset = "--image_size 16 --num_head_channels 32 --noise_schedule cosine"
    network = guided_diffusion.load_guided_diffusion(file, preset)
    loaded = load_pretrained(file, preset=preset)
    noisy, timestep, labels = (
        torch.randn(3, 3, 16, 16),
        torch.tensor([999, 3, 500]),
        torch.tensor([4, 0, 2]),
    )
    told = () if classes is None else (labels,)
    with torch.inference_mode():
        assert torch.equal(loaded.network(noisy, timestep, *told), network(noisy, timestep, *told))
        rounded = load_pretrained(file, preset=preset, dtype="bfloat16").network
        output = rounded(noisy, timestep, *told)
        assert output.dtype == torch.float32
        assert rounded.network.unet.dtype == torch.bfloat16
        assert 1e-5 < (output - network(noisy, timestep, *told)).std() / output.std() < 0.03
    words = (
        "unconditional" if classes is None else f"conditioned on the true label ({classes} classes)"
    )
    assert loaded.description == f"guided-diffusion UNet, {words}"
    assert (loaded.image_shape, loaded.latent_shape, loaded.num_classes, loaded.codec) == (
        (3, 16, 16),
        None,
        classes,
        None,
    )
    assert loaded.scheduler.config.variance_type == "learned_range"
    assert loaded.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    with pytest.raises(ValueError, match="preset = None"):
        load_pretrained(file)


def test_text_models_are_refused_before_they_are_fetched(monkeypatch):
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    index = {"_class_name": "StableUnCLIPPipeline", **parts}
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", lambda name: index)
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "download", lambda name: pytest.fail("fetched")
    )
    with pytest.raises(ValueError, match=r"of its StableUnCLIPPipeline = "):
        load_pretrained("owner/name")


@pytest.mark.parametrize("status", [404, None])
def test_a_name_that_does_not_exist_is_known_at_once(monkeypatch, status):
    """The hub is asked once; without a network there is no answer (None)."""
    asked = []

    def answer(url):
        asked.append(url)
        error = OSError("no such model" if status else "Name or service not known")
        error.response = None if status is None else SimpleNamespace(status_code=status)
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "load_config", lambda name: pytest.fail("asked again")
    )
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(
        ValueError, match=r"owner/name: no such folder.*`hf download owner/name --local-dir FOLDER`"
    ):
        load_pretrained("owner/name")
    assert len(asked) == 1


# --- bad input ------------------------------------------------------------------------------------


def refuse(path, message, **options):
    with one_line_error(message, characters=500):
        load_pretrained(path, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"unet": ["diffusers", "UNet2DConditionModel"]},
            "the unet of its DDPMPipeline = 'UNet2DConditionModel'",
        ),
        ({"unet": ["os", "system"]}, "the unet of its DDPMPipeline = 'os.system'"),
        ({"scheduler": None}, "its parts = 'unet'"),
        (
            {"scheduler": ["diffusers", "ScoreSdeVeScheduler"]},
            r"'ScoreSdeVeScheduler': expected one with step\(\)",
        ),
        (
            {"vae": ["diffusers", "AutoencoderDC"]},
            "'AutoencoderDC': expected AutoencoderKL or VQModel",
        ),
        (
            {"text_encoder": ["transformers", "CLIPTextModel"]},
            r"the text_encoder of its DDPMPipeline",
        ),
    ],
)
def test_wrong_parts(copied, changes, message):
    folder = copied("ddpm")
    edit(folder / "model_index.json", **changes)
    refuse(folder, message)


def test_damaged_weights(copied, tmp_path):
    folder = copied("ddpm")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        refuse(folder, "the unet cannot be read")
    file.unlink()
    refuse(folder, "the unet cannot be read")


def test_incomplete_or_foreign_weights(copied):
    """The library itself fills what is missing with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = copied("ddpm")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    bias = weights.pop("conv_in.bias")
    save_file(weights, file)
    refuse(folder, r"the unet cannot be read \(missing weights = .'conv_in\.bias")
    save_file({**weights, "conv_in.bias": bias, "extra": bias.clone()}, file)
    with pytest.warns(
        UserWarning,
        match="1 weights in the file are not of the unet and are left out, such as extra",
    ):
        load_pretrained(folder)
    save_file({**weights, "conv_in.bias": bias[:3].clone()}, file)
    refuse(folder, "the unet cannot be read")
    save_file({**weights, "conv_in.bias": bias * torch.nan}, file)
    refuse(folder, "not finite")


def test_nothing_is_unpickled(copied, tmp_path):
    folder, mark = copied("ddpm"), tmp_path / "mark"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for dump in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        dump({"conv_in.bias": Trap(mark)}, folder / "unet" / "diffusion_pytorch_model.bin")
        refuse(folder, "the unet cannot be read")
        assert not mark.exists()


def test_models_that_read_more_than_the_noisy_image(tmp_path):
    wide = Kind(unet(6, out_channels=3), ddim(), "", codec=make_vqvae())
    refuse(
        write(wide, tmp_path / "wide"),
        "channels that the denoiser gives = 3: expected as many as the 6",
    )
    other = Kind(unet(1), ddim(), "", codec=make_vae())
    refuse(write(other, tmp_path / "other"), "channels of the vae = 4: expected 1")
    unnumbered = Kind(unet(1, class_embed_type="timestep"), ddim(), "")
    refuse(write(unnumbered, tmp_path / "unnumbered"), "expected classes by number")
