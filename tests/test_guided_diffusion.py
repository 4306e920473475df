"""Checkpoints of guided-diffusion: outputs and U-turns of the original code, options from
weights, hostile files.
"""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import adm_checkpoints as adm
from forging import Trap
from small import one_line_error
from uturn.networks.images import guided_diffusion
from uturn.networks.images.guided_diffusion import (
    PRESETS,
    guided_diffusion_scheduler,
    load_guided_diffusion,
)

# Outputs of the original code.
GOLDEN = np.load(Path(__file__).parent / "golden" / "guided_diffusion.npz")
SEEDS = {case: seed for seed, case in enumerate(adm.CASES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All checkpoints of adm_checkpoints.CASES, named after their place."""
    made = tmp_path_factory.mktemp("checkpoints")
    for case, seed in SEEDS.items():
        dtype = torch.float16 if case == adm.HALF else torch.float32
        adm.save_checkpoint(made / f"{seed}.pt", seed, dtype, **adm.CASES[case])
    return made


def load(folder, case, **options):
    return load_guided_diffusion(
        folder / f"{SEEDS[case]}.pt", **{**adm.flags(**adm.CASES[case]), **options}
    )


def run(model, case):
    o = {**adm.DEFAULTS, **adm.CASES[case]}
    noisy, timestep, labels = adm.inputs(
        SEEDS[case], o["image_size"], o["in_channels"], o["num_classes"]
    )
    with torch.inference_mode():
        return model(noisy, timestep) if labels is None else model(noisy, timestep, labels)


def distance(output, case):
    return np.abs(output.float().numpy() - GOLDEN[f"output/{case}"]).max()


# --- the original's numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("case", adm.CASES)
def test_outputs_are_the_originals(folder, case):
    model = load(folder, case)
    assert distance(run(model, case), case) < 1e-5
    o = {**adm.DEFAULTS, **adm.CASES[case]}
    assert (model.config.sample_size, model.config.in_channels) == (
        o["image_size"],
        o["in_channels"],
    )
    assert model.num_classes == o["num_classes"]
    assert not model.training


@pytest.mark.parametrize("case", adm.CASES)
def test_golden_outputs_tell_attention_orders_and_heads_apart(folder, case):
    """Negative control: a wrong choice of options that the weights do not determine changes the
    outputs.
    """
    o = {**adm.DEFAULTS, **adm.CASES[case]}
    wrong = load(folder, case, use_new_attention_order=not o["use_new_attention_order"])
    assert distance(run(wrong, case), case) > 1e-3
    wrong = load(folder, case, num_heads=1, num_head_channels=None)
    assert distance(run(wrong, case), case) > 1e-3


@pytest.mark.parametrize("case", adm.CASES)
def test_weights_tell_the_architecture(folder, case):
    o = {**adm.DEFAULTS, **adm.CASES[case]}
    model = load(folder, case)
    reached = {o["image_size"] >> level for level in range(len(o["channel_mult"]))}
    assert model.options["num_channels"] == o["num_channels"]
    assert model.options["num_res_blocks"] == o["num_res_blocks"]
    assert tuple(model.options["channel_mult"]) == o["channel_mult"]
    assert set(model.options["attention_resolutions"]) == reached & set(o["attention_resolutions"])
    assert model.options["use_scale_shift_norm"] == o["use_scale_shift_norm"]
    assert model.options["learn_sigma"] == o["learn_sigma"]
    assert model.options["class_cond"] == (o["num_classes"] is not None)
    if len(o["channel_mult"]) > 1:
        assert model.options["resblock_updown"] == o["resblock_updown"]
    again = load_guided_diffusion(folder / f"{SEEDS[case]}.pt", **model.options)
    assert torch.equal(run(again, case), run(model, case))
    assert again.options == model.options


def steps_of(turn, seed, folder, double=False):
    """States of a U-turn through diffusers' DDPMScheduler, with the noises of the golden one."""
    options = turn["options"]
    path = adm.save_checkpoint(folder / "u_turn.pt", seed, **options)
    model = load_guided_diffusion(path, **adm.flags(turn["noise_schedule"], **options))
    scheduler = guided_diffusion_scheduler(**model.options)
    if double:
        exact = (
            np.linspace(1e-4, 0.02, 1000)
            if turn["noise_schedule"] == "linear"
            else scheduler.betas.double().numpy()
        )
        scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - exact))
    scheduler.set_timesteps(turn["steps"])
    timesteps = scheduler.timesteps[-turn["step"] :]
    images, noise, noises = adm.u_turn_inputs(
        seed, {**adm.DEFAULTS, **options}["image_size"], turn["step"]
    )
    labels = () if model.num_classes is None else (torch.tensor([0, model.num_classes - 1]),)
    drawn = iter(noises)
    states = [scheduler.add_noise(images, noise, timesteps[:1].expand(2))]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *args, **options: next(drawn),
        )
        for timestep in timesteps:
            output = model(states[-1].float(), timestep.expand(2), *labels)
            states.append(scheduler.step(output, timestep, states[-1]).prev_sample)
    return np.stack([state.float().numpy() for state in states])


@pytest.mark.parametrize("case", adm.U_TURNS)
def test_u_turn_is_the_originals_step_by_step(tmp_path, case):
    turn, seed = adm.U_TURNS[case], list(adm.U_TURNS).index(case)
    golden = GOLDEN[f"u_turn/{case}"]
    assert len(golden) == turn["step"] + 1
    assert np.abs(steps_of(turn, seed, tmp_path, double=True) - golden).max() < 1e-5
    # diffusers keeps abar in float32, so that 1 - abar = 1e-4 at the cleanest timestep is known to
    # 3e-4 of itself only.
    assert np.abs(steps_of(turn, seed, tmp_path) - golden).max() < 5e-5


def test_a_step_off_is_seen(tmp_path):
    """Negative control: noised to one timestep lower, the U-turn is another one."""
    turn, golden = adm.U_TURNS["fixed variance"], GOLDEN["u_turn/fixed variance"]
    off = steps_of(
        {**turn, "step": turn["step"] - 1}, list(adm.U_TURNS).index("fixed variance"), tmp_path
    )
    assert np.abs(off[0] - golden[0]).max() > 1e-2


def test_linspace_is_the_originals_respacing():
    scheduler = guided_diffusion_scheduler("256x256_diffusion")
    for steps in (1, 2, 10, 21, 25, 50, 100, 250, 1000):
        scheduler.set_timesteps(steps)
        off = scheduler.timesteps.numpy()[::-1] - GOLDEN[f"timesteps/{steps}"]
        # Only ties are rounded otherwise: with 21 steps, one timestep by one.
        assert np.abs(off).sum() == (1 if steps == 21 else 0)


def test_noise_schedules():
    times = np.arange(1, 1001) / 1000
    linear = guided_diffusion_scheduler("256x256_diffusion").alphas_cumprod
    log_abar = [
        sum(math.log1p(-(0.0001 + 0.0199 * i / 999)) for i in range(steps + 1))
        for steps in (0, 499, 999)
    ]
    np.testing.assert_allclose(linear.numpy()[[0, 499, 999]], np.exp(log_abar), rtol=1e-5)
    cosine = guided_diffusion_scheduler("64x64_diffusion").alphas_cumprod
    # ArXiv:2102.09672, eq. 17.
    expected = (
        np.cos((times + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    ) ** 2
    # The last beta is capped at .999.
    np.testing.assert_allclose(cosine[:-1].numpy(), expected[:-1], rtol=2e-4, atol=1e-7)


def test_scheduler_options():
    assert guided_diffusion_scheduler("64x64_diffusion").config.variance_type == "learned_range"
    fixed = guided_diffusion_scheduler(learn_sigma=False, predict_xstart=True, diffusion_steps=4000)
    assert (fixed.config.variance_type, fixed.config.prediction_type) == ("fixed_large", "sample")
    np.testing.assert_allclose(fixed.betas[[0, -1]], [0.0001 / 4, 0.02 / 4], rtol=1e-6)
    assert (
        guided_diffusion_scheduler(learn_sigma=False, sigma_small=True).config.variance_type
        == "fixed_small"
    )
    assert fixed.config.clip_sample
    assert fixed.config.timestep_spacing == "linspace"


# --- files and precisions -------------------------------------------------------------------------


def test_kinds_of_files(folder, tmp_path):
    weights = adm.state_dict()
    save_file(weights, tmp_path / "new.safetensors")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({name: tensor.double() for name, tensor in weights.items()}, tmp_path / "double.pt")
    for name in ("new.safetensors", "old.pt", "double.pt"):
        model = load_guided_diffusion(tmp_path / name, **adm.flags())
        assert torch.equal(run(model, "plain"), run(load(folder, "plain"), "plain"))
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_network_does_not_hang_on_its_file(tmp_path):
    path = adm.save_checkpoint(tmp_path / "a.pt")
    model = load_guided_diffusion(path, **adm.flags())
    before = run(model, "plain")
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(run(model, "plain"), before)


# --- presets and options --------------------------------------------------------------------------

# ArXiv:2105.05233, tables 11 and 12.
MILLIONS = {"64": 296, "128": 422, "256": 554, "512": 559, "256_uncond": 553}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_the_published_networks(preset, monkeypatch, tmp_path):
    published = dict(PRESETS[preset])
    options = {name: value for name, value in published.items() if name in adm.DEFAULTS}
    options["num_head_channels"] = published.get("num_head_channels")
    options["num_classes"] = 1000 if published["class_cond"] else None
    weights = {
        name: torch.empty(shape, device="meta") for name, shape in adm.shapes(**options).items()
    }
    monkeypatch.setattr(guided_diffusion, "read_state_dict", lambda *_, **__: weights)
    model = load_guided_diffusion(tmp_path / f"{preset}.pt")  # by the name of the file
    size = sum(tensor.numel() for tensor in model.parameters())
    kind = str(published["image_size"]) + ("" if published["class_cond"] else "_uncond")
    assert round(size / 1e6) == MILLIONS[kind]
    assert model.config.sample_size == published["image_size"]
    assert model.num_classes == options["num_classes"]
    if preset == "64x64_diffusion":
        with pytest.raises(
            ValueError,
            match=(
                r"256x256_diffusion.pt: num_channels of the options = 256: expected 192, by its"
                r" weights"
            ),
        ):
            load_guided_diffusion(tmp_path / "256x256_diffusion.pt")


def test_flags_of_the_original_are_a_preset(tmp_path):
    path = adm.save_checkpoint(tmp_path / "a.pt", num_classes=7, use_new_attention_order=True)
    model = load_guided_diffusion(
        path,
        "--attention_resolutions 32,8 --class_cond True --diffusion_steps 1000 --dropout 0.1"
        " --image_size 16 --learn_sigma=True --noise_schedule cosine --num_channels 32"
        " --num_head_channels 32 --num_heads_upsample -1 --num_res_blocks 1 --resblock_updown True"
        " --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
        " --channel_mult 1,2",
    )
    keywords = load_guided_diffusion(
        path, **adm.flags("cosine", num_classes=7, use_new_attention_order=True)
    )
    noisy, timestep, labels = adm.inputs(0, 16, 3, 7)
    assert torch.equal(model(noisy, timestep, labels), keywords(noisy, timestep, labels))
    # In which precision it runs is not for the preset to say.
    assert model.unet.dtype == torch.float32
    assert guided_diffusion_scheduler(**model.options).config.beta_schedule == "squaredcos_cap_v2"


# --- hostile and broken files ---------------------------------------------------------------------


def refused(path, message):
    with one_line_error(message) as caught:
        load_guided_diffusion(path, **adm.flags())
    return str(caught.value)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    path, mark = tmp_path / "a.pt", tmp_path / "executed"
    torch.save({**adm.state_dict(), "code": Trap(mark)}, path)
    assert "weights_only" not in refused(path, "nothing in it was executed")
    path.write_bytes(pickle.dumps(Trap(mark)))
    refused(path, "nothing in it was executed")
    torch.save({**adm.state_dict(), "code": Trap(mark)}, path, _use_new_zipfile_serialization=False)
    refused(path, "nothing in it was executed")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    weights = adm.state_dict()
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "nothing in it was executed")
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    refused(path, "cannot be read")
    refused(tmp_path / "nowhere.pt", "no such file")
    refused(tmp_path, "no such file")


def test_every_weight_is_needed(tmp_path):
    """A file is refused whichever name is left out; the error names it, or says that it is
    another network.
    """
    weights, path = adm.state_dict(num_classes=2), tmp_path / "a.pt"
    for name in list(weights)[::7]:
        torch.save({key: value for key, value in weights.items() if key != name}, path)
        refused(path, f"{re.escape(name)}|a classifier or another network")
