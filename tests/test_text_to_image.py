"""Text-conditioned pipelines: their U-turns are those of diffusers' image-to-image calls, for
every kind of pipeline.
"""

import gc
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tiny_pipelines
import uturn as ut
from uturn.backward.reverse_diffusion import ImageWork, ReverseDiffusion
from uturn.cli import app
from uturn.core.random import keys, normals
from uturn.corruption.schedulers import add_noise
from uturn.measures.strengths import strength_of
from uturn.networks.images.options import read_prompts
from uturn.networks.images.prompted import PromptedUNet
from uturn.presets import ImageOptions
from uturn.store.reading import dataset_of
from uturn.store.run_folder import RunFolder

pytest.importorskip("transformers")

KINDS = tiny_pipelines.KINDS
SIZE = tiny_pipelines.SIZE
FLOW = ("sd3", "flux")
STEPS = 10
PIPELINES = {
    "sd": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    written = {kind: tiny_pipelines.write(kind, root / kind) for kind in KINDS}
    # Every model collects garbage when it has encoded its prompts, and would look at all that the
    # tests hold.
    gc.freeze()
    yield written
    gc.unfreeze()


def loaded(folder, scheduler="stored", **options):
    given = {"image_size": SIZE, "device": "cpu", **options}
    if scheduler == "stored" and (folder.name.startswith("sd") and folder.name != "sd3"):
        given.setdefault("timestep_spacing", "leading")  # that of the pipelines
    return ReverseDiffusion.from_pretrained(folder, scheduler, STEPS, **given)


def some(count, seed=1):
    return (
        (0.4 * normals(keys(seed, range(count)), 3 * SIZE**2))
        .reshape(-1, 3, SIZE, SIZE)
        .clip(-1, 1)
    )


def image_to_image(folder, kind, latents, noise, step, **options):
    """Images by the pipeline of diffusers, which noises latents with the given noise, and makes
    `step` steps.
    """
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[kind]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
    drawn, module.randn_tensor = module.randn_tensor, lambda *args, **kwargs: noise
    try:
        found = pipeline(
            image=latents,
            strength=strength_of(step, STEPS, counts_down=kind in FLOW),
            num_inference_steps=STEPS,
            output_type="pt",
            **({"height": SIZE, "width": SIZE} if kind in FLOW else {}),
            **options,
        ).images
    finally:
        module.randn_tensor = drawn
    return found * 2 - 1


def compared(folder, kind, step=3, guidance=1.0):
    """Reconstructions of `step` of ten steps here, and those of the image-to-image call of
    diffusers.
    """
    chain = loaded(folder, prompt="a cat", guidance=guidance)
    with torch.no_grad():
        latents = chain.model.codec.encode(torch.from_numpy(some(1)))
    noise = torch.from_numpy(normals(keys(3, range(1)), latents[0].numel(), np.float32)).reshape(
        latents.shape
    )
    noisy = add_noise(chain.forward.scheduler, latents, noise, chain.forward.placed(step)[1][:1])
    ours = chain.denoise(noisy.numpy(), step, keys(0, range(1)))
    return (
        ours,
        image_to_image(
            folder, kind, latents, noise, step, prompt="a cat", guidance_scale=guidance
        ).numpy(),
    )


@pytest.mark.parametrize(("guidance", "step"), [(1.0, 10), (2.5, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_image_to_image_call(folders, kind, guidance, step):
    ours, theirs = compared(folders[kind], kind, step, guidance)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.abs(ours).std() > 1e-3


def test_models_that_predict_v(folders, tmp_path):
    """As Stable Diffusion 2.1 does."""
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    ours, theirs = compared(folder, "sd")
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.abs(ours - compared(folders["sd"], "sd")[0]).max() > 1e-3


def test_the_blocks_of_sd35(tmp_path):
    """It has a second attention in some blocks, and normalised queries and keys."""
    folder = tiny_pipelines.write(
        "sd3", tmp_path / "sd3", dual_attention_layers=(0,), qk_norm="rms_norm"
    )
    ours, theirs = compared(folder, "sd3")
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_prompt_is_the_null_prompt_of_the_pipeline(folders, kind):
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[kind])
    asked = {"prompt": "a cat", "device": "cpu", "num_images_per_prompt": 1}
    with torch.inference_mode():
        if kind == "flux":
            text, pooled, _ = pipeline.encode_prompt(**{**asked, "prompt": ""}, prompt_2=None)
        else:
            asked |= {"prompt_2": None, "prompt_3": None} if kind == "sd3" else {}
            found = pipeline.encode_prompt(do_classifier_free_guidance=True, **asked)
            text, pooled = found[1], found[3] if len(found) == 4 else None
    ours = loaded(folders[kind]).model.network.network
    torch.testing.assert_close(ours.text, text, rtol=0, atol=1e-6)
    assert (ours.pooled is None) == (pooled is None)
    if pooled is not None:
        torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    # It zeroes the prompt that is not given.
    assert bool((ours.text == 0).all()) == (kind == "sdxl")


# --- prompts of a run -----------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
        )
        self.logits = nn.Linear(4, 5)

    def forward(self, images):
        return self.logits(self.blocks(images).mean((2, 3)))


def classifier():
    return Classifier()


def options(folder, data, **more):
    given = {
        "data": str(data),
        "classifiers": [f"{__name__}:classifier"],
        "compare_labels": False,
        "image_size": SIZE,
    }
    return ImageOptions.from_dict(
        {
            "model": str(folder),
            "steps": 4,
            "levels": 2,
            "items": 3,
            "device": "cpu",
            **given,
            **more,
        }
    )


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "images.npy", some(6))
    return tmp_path / "images.npy"


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cat\n")
    return tmp_path / "prompts.txt"


def test_lines_of_a_file(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("b\n\na\r\nb\n", encoding="utf-8-sig", newline="")
    found = read_prompts(str(file))
    assert (found.texts, found.rows) == (("b", "", "a"), (0, 1, 2, 0))
    assert found.rows_of([3, 1]).tolist() == [0, 1]
    with pytest.raises(
        ValueError, match="expected a file with one line for each item, but it has 4"
    ):
        found.rows_of([4])


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_each_item_has_its_prompt_in_mixed_batches(folders, prompts, kind):
    mixed = loaded(folders[kind], "ddpm", prompt=str(prompts))
    alone = {text: loaded(folders[kind], "ddpm", prompt=text) for text in ("a cat", "a dog")}
    images, rows = some(3), mixed.model.prompts.rows_of(range(3))
    work = [
        ImageWork(
            mixed.corrupt(images[[k]], 5 + k, keys(0, [k]))[0], 5 + k, keys(0, [k])[0], rows[k], k
        )
        for k in range(3)
    ]
    found = dict(mixed.queue(work))
    for k, text in enumerate(("a cat", "a dog", "a cat")):
        expected = alone[text].u_turn(images[[k]], 5 + k, keys(0, [k]))[0]
        np.testing.assert_allclose(found[k], expected, atol=1e-5)


def test_texts_are_encoded_once(folders, data, prompts, monkeypatch):
    """Two items share a prompt, and every original has several noisy versions at several levels."""
    from transformers import CLIPTextModel

    texts, forward = [], CLIPTextModel.forward
    monkeypatch.setattr(
        CLIPTextModel,
        "forward",
        lambda self, ids=None, **more: texts.append(len(ids)) or forward(self, ids, **more),
    )
    ut.run(options(folders["sd"], data, prompt=str(prompts), trajectories=2, clones=2).experiment())
    assert texts == [2]
    ut.run(options(folders["sd"], data, prompt="a fox", trajectories=2).experiment())
    assert texts == [2, 1]


def test_prompts_are_part_of_the_identity_of_a_run(folders, data, prompts, tmp_path):
    store = str(tmp_path / "run")
    ut.run(options(folders["sd"], data, prompt=str(prompts)).experiment(), store)
    prompts.write_text("a cat\na dog\na dog\n")
    with pytest.raises(ValueError, match="weights or data of backward"):
        ut.run(options(folders["sd"], data, prompt=str(prompts)).experiment(), store)
    plain = options(folders["sd"], data).experiment()
    assert (
        not {"prompt", "image_size", "offload"}
        & ut.Experiment.from_dict({**plain.to_dict(), "backward": {"type": "diffusion"}})
        .identity()["backward"]
        .keys()
    )


def test_generated_originals_have_the_prompts_of_their_items(folders, prompts):
    backward = options(folders["sd"], "generated", prompt=str(prompts)).experiment().parts.backward
    assert backward.describe().count("3 prompts of prompts.txt") == 1
    assert backward.prior().conditions(np.arange(3)).tolist() == [0, 1, 0]
    assert backward.prior().num_labels is None


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "flux"])
@pytest.mark.usefixtures("unsaved_figures")
def test_from_the_command_line(folders, data, tmp_path, kind):
    out = tmp_path / "out"
    command = [
        "images",
        "--model",
        str(folders[kind]),
        "--data",
        str(data),
        "--classifier",
        f"{__name__}:classifier",
    ]
    sizes = [
        "--image-size",
        str(SIZE),
        "--steps",
        "4",
        "--levels",
        "2",
        "--items",
        "4",
        "--trajectories",
        "2",
    ]
    more = ["--prompt", "a cat", "--no-compare-labels", "--workers", "1", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, *sizes, *more])
    assert done.exit_code == 0, done.output
    ds = dataset_of(RunFolder.open(out / "run"))
    assert (out / "study.png").is_file()
    words = ds.attrs["description"]
    assert "with the prompt 'a cat'" in words
    assert (
        "; ancestral, 4 steps, draws noise" if kind in FLOW else "; ddpm, 4 steps, draws noise"
    ) in words
    assert ("guidance-distilled: it has no unconditional law, told the guidance 1" in words) == (
        kind == "flux"
    )


def test_offloaded_layers_give_the_same_images(folders):
    whole, offloaded = (
        loaded(folders["flux"], "ddpm", prompt="a cat", offload=offload)
        for offload in (False, True)
    )
    images, streams = some(2), keys(0, range(2))
    np.testing.assert_array_equal(
        whole.u_turn(images, 3, streams), offloaded.u_turn(images, 3, streams)
    )


@pytest.mark.parametrize(("kind", "dtype"), [("sd", "float16"), ("flux", "bfloat16")])
def test_half_precision(folders, kind, dtype):
    half, full = (loaded(folders[kind], prompt="a cat", dtype=d) for d in (dtype, "float32"))
    parts = {
        tensor.dtype
        for tensor in half.model.network.state_dict().values()
        if tensor.is_floating_point()
    }
    assert parts == {getattr(torch, dtype)}
    codec = next(iter(half.model.codec.network.state_dict().values())).dtype
    # They ask for it: force_upcast.
    assert codec == (torch.float32 if dtype == "float16" else torch.bfloat16)
    images, streams = some(2), keys(0, range(2))
    np.testing.assert_allclose(
        half.u_turn(images, 5, streams), full.u_turn(images, 5, streams), atol=0.05
    )


@pytest.mark.parametrize(("size", "scheduler"), [(SIZE, "stored"), (2 * SIZE, "ancestral")])
def test_the_timesteps_of_flux_are_those_of_its_pipeline(folders, size, scheduler):
    """It gives its scheduler even levels, which are shifted by the number of patches."""
    import diffusers

    pipeline = diffusers.FluxPipeline.from_pretrained(folders["flux"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        "a",
        height=size,
        width=size,
        num_inference_steps=STEPS,
        output_type="latent",
        guidance_scale=1.0,
    )
    ours = loaded(folders["flux"], scheduler, image_size=size).forward.noise_levels["timestep"][
        :0:-1
    ]
    np.testing.assert_allclose(ours, pipeline.scheduler.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "scheduler", "words"),
    [
        ("flux", {"guidance_embeds": False}, {}, ""),
        ("flux", {"guidance_embeds": False}, {"use_dynamic_shifting": False}, "step-distilled"),
        ("sd", {}, {"_class_name": "LCMScheduler"}, "step-distilled"),
        ("sd", {"time_cond_proj_dim": 8}, {}, "guidance-distilled"),
        ("sd", {}, {}, ""),
    ],
)
def test_distilled_models_are_named(tmp_path, kind, changes, scheduler, words):
    folder = tiny_pipelines.write(kind, tmp_path / kind, **changes)
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(file.read_text()), **scheduler}
    file.write_text(json.dumps(config))
    if "_class_name" in scheduler:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(
            json.dumps({**index, "scheduler": ["diffusers", config["_class_name"]]})
        )
    found = loaded(folder, "ddpm").model.description
    assert ("distilled" in found) == bool(words)
    assert words in found
    if words == "step-distilled":
        with pytest.raises(ValueError, match="distilled to make images in a few steps"):
            loaded(folder, "ddpm", prompt="a", guidance=2.0)


def test_the_scale_that_a_consistency_model_is_told(tmp_path):
    from diffusers import LatentConsistencyModelPipeline

    folder = tiny_pipelines.write("sd", tmp_path / "lcm-like", time_cond_proj_dim=8)
    network = loaded(folder, "ddpm", prompt="a", guidance=7.5).model.network.network
    assert isinstance(network, PromptedUNet)
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([6.5]), embedding_dim=8
    )
    torch.testing.assert_close(network._guidance_embedding(torch.zeros(1, 4, 8, 8)), expected)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (
            "sd",
            {"null_class": 3},
            "null_class = 3: expected None, as it has prompts, and no classes",
        ),
        (
            "sd",
            {"guidance": 2.0},
            "guidance = 2.0: expected 1, or a prompt, towards which it guides",
        ),
        ("sd", {"image_size": 33}, "image_size = 33: expected a multiple of 2 pixels"),
        ("sd3", {"image_size": 256}, "image_size = 256: expected at most 128 pixels"),
    ],
)
def test_what_does_not_fit(folders, kind, given, words):
    with pytest.raises(ValueError, match=words):
        loaded(folders[kind], **given)


def test_a_file_of_another_length(folders, data, prompts):
    with pytest.raises(ValueError, match="= 3: expected 2, as items"):
        options(folders["sd"], data, items=2, prompt=str(prompts)).experiment()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("decoder", "the autoencoder gives NaN or infinity in bfloat16; take dtype = 'float32'"),
        (
            "encoder",
            (
                "the autoencoder gives NaN or infinity for the originals in bfloat16; take dtype ="
                " 'float32'"
            ),
        ),
    ],
)
def test_nan_names_the_part_and_the_way_out(folders, part, words):
    chain = loaded(folders["sd"], dtype="bfloat16")
    getattr(chain.model.codec.network, part).register_forward_hook(
        lambda module, args, output: output * float("nan")
    )
    with pytest.raises(ValueError, match=words):
        chain.u_turn(some(1), 2, keys(0, range(1)))


def test_latents_are_never_clipped(folders, tmp_path):
    """Whatever the scheduler's file says: the image-to-image pipeline does not clip them either."""
    expected = loaded(folders["sd"], "ddpm").u_turn(some(1), 8, keys(0, range(1)))
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    for changed in (
        {**config, "clip_sample": True},
        {k: v for k, v in config.items() if k != "clip_sample"},
    ):
        file.write_text(json.dumps(changed))
        np.testing.assert_array_equal(
            loaded(folder, "ddpm").u_turn(some(1), 8, keys(0, range(1))), expected
        )


def test_the_fingerprint_knows_texts_and_encoders_but_no_encoded_texts(folders, tmp_path):
    """Encoded texts differ in their last bits from machine to machine."""
    from safetensors.torch import load_file, save_file

    chain = loaded(folders["sd"], prompt="a cat")
    assert not any("text" in name for name in chain.model.network.state_dict())
    before = chain.fingerprint()
    chain.model.network.network.text += 1e-3
    assert chain.fingerprint() == before
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    file = folder / "text_encoder" / "model.safetensors"
    save_file(
        {name: values + 1e-3 for name, values in load_file(file).items()}, file, {"format": "pt"}
    )
    found = {
        before,
        loaded(folders["sd"], prompt="a dog").fingerprint(),
        loaded(folder, prompt="a cat").fingerprint(),
    }
    assert len(found) == 3


def test_sd3_without_its_largest_text_encoder(folders, tmp_path):
    import diffusers

    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        folders["sd3"], text_encoder_3=None, tokenizer_3=None
    )
    pipeline.save_pretrained(tmp_path / "sd3")
    ours = loaded(tmp_path / "sd3", prompt="a cat").model.network.network
    with torch.inference_mode():
        text, _, pooled, _ = pipeline.encode_prompt("a cat", None, None)
    torch.testing.assert_close(ours.text, text, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)


def test_parts_of_another_library(folders, tmp_path):
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps({**index, "tokenizer": ["pwn", "CLIPTokenizer"]})
    )
    with pytest.raises(ValueError, match=r"the tokenizer of its .* = 'pwn.CLIPTokenizer'"):
        loaded(folder)
