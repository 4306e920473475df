"""`uturn schedule`: noise levels and strength, against the image-to-image pipelines of diffusers
themselves.
"""

import __future__

import ast
import copy
import importlib.util
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pandas
import pytest
import torch

from command_line import uturn
from tiny_denoiser import chain_of
from uturn.corruption.schedulers import add_noise, scheduler_like
from uturn.measures.strengths import steps_of, strength_of
from uturn.networks.images.schedules import read_scheduler, schedule
from uturn.studies.plotting.schedules import draw_schedules

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SD, SDXL, SD3, FLUX = "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"
PIPELINES = {  # module: class of the text-to-image pipeline
    SD: "StableDiffusionPipeline",
    SDXL: "StableDiffusionXLPipeline",
    SD3: "StableDiffusion3Pipeline",
    FLUX: "FluxPipeline",
    "qwenimage": "QwenImagePipeline",
    "kandinsky2_2": "KandinskyV22Pipeline",
}


def source_of(module):
    """The file of an image-to-image pipeline of diffusers."""
    package = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0])
    path = package / "pipelines" / module / f"pipeline_{module}_img2img.py"
    if not path.is_file():
        pytest.skip(f"upstream: this version of diffusers has no image-to-image pipeline {module}")
    return path


def written_by_diffusers(path, name):
    """A function in a file of diffusers, from its source: importing the pipeline would take its
    text encoders too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [found] = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    found.decorator_list = []
    space = {"torch": torch}
    exec(
        compile(
            ast.Module([found], []), str(path), "exec", flags=__future__.annotations.compiler_flag
        ),
        space,
    )
    return space[name]


def folder_of(path, pipeline, config):
    (path / "scheduler").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return str(path)


def called(module, config, steps, size=1024):
    """The scheduler as the pipeline sets it for an image of this size."""
    made = getattr(diffusers, config["_class_name"]).from_config(config)
    if module in (FLUX, "qwenimage"):
        c = made.config
        shift = written_by_diffusers(source_of(FLUX), "calculate_shift")
        mu = shift(
            (size // 16) ** 2, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift
        )
        made.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        made.set_timesteps(steps)
    return made


CASES = [
    (SD, {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS}),
    (SD, {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", **BETAS}),
    (SD, {"_class_name": "HeunDiscreteScheduler", **BETAS}),
    (SDXL, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **BETAS}),
    (SDXL, {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, **BETAS}),
    ("kandinsky2_2", {"_class_name": "DDPMScheduler"}),
    (SD3, FLOW),
    (FLUX, {**FLOW, "use_dynamic_shifting": True}),
    ("qwenimage", {**FLOW, "use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02}),
]


@pytest.mark.parametrize(("module", "config"), CASES)
@pytest.mark.parametrize("steps", [10, 29])
def test_strength_gives_the_timesteps_of_the_pipeline(module, config, steps, tmp_path):
    """Timesteps, number of calls and noise of every strength in the table, and of strengths at
    random.
    """
    ds = schedule(folder_of(tmp_path, PIPELINES[module], config), steps, size=512)
    get_timesteps, scheduler = (
        written_by_diffusers(source_of(module), "get_timesteps"),
        called(module, config, steps, 512),
    )
    random = np.random.default_rng(0).uniform(1 / steps, 1, 20).round(3)
    for strength in [*ds.strength.values[1:], *random]:
        pipeline = SimpleNamespace(scheduler=copy.deepcopy(scheduler))
        timesteps, count = get_timesteps(pipeline, steps, float(strength), "cpu")
        k = steps_of(float(strength), steps, "int(N - " in ds.attrs["rule"])
        assert k == count
        one = ds.sel(step=k)
        assert int(one.calls) == len(timesteps)
        assert float(one.timestep) == pytest.approx(float(timesteps[0]), rel=1e-6)
        # As the pipelines noise the image; at its place in the list, set by get_timesteps, where a
        # timestep is listed twice.
        image, none = (
            torch.ones(1, 1, 1, 1, dtype=torch.float64),
            torch.zeros(1, 1, 1, 1, dtype=torch.float64),
        )
        a, s = (
            add_noise(pipeline.scheduler, *pair, timesteps[:1]).item()
            for pair in ((image, none), (none, image))
        )
        assert float(one.abar) == pytest.approx(a**2 / (a**2 + s**2), rel=1e-9)
        assert float(one.sigma) == pytest.approx(s / a if a else np.inf, rel=1e-9)
    np.testing.assert_array_equal(
        [steps_of(x, steps, "int(N - " in ds.attrs["rule"]) for x in ds.strength.values], ds.step
    )
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(ds.log_snr, -2 * np.log(ds.sigma), rtol=1e-9)


def rules_of_diffusers():
    """{class of a pipeline: number of steps of 10 at strength .25}, 2 or 3, for all
    image-to-image pipelines that cut a list.
    """
    package = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0])
    scheduler = SimpleNamespace(timesteps=torch.arange(10, 0, -1), order=1)
    found = {}
    for path in sorted(package.glob("pipelines/*/pipeline_*img2img*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not any(
            isinstance(node, ast.FunctionDef) and node.name == "get_timesteps"
            for node in ast.walk(tree)
        ):
            continue
        cut = written_by_diffusers(path, "get_timesteps")
        device = ["cpu"] if "device" in inspect.signature(cut).parameters else []
        name = next(
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline")
        )
        found[name] = cut(SimpleNamespace(scheduler=scheduler), 10, 0.25, *device)[1]
    return found


@pytest.mark.upstream("diffusers", "0.42")
def test_the_rule_of_every_image_to_image_pipeline(tmp_path):
    """The rule is chosen by the name of the pipeline: that of diffusers, and that of its
    text-to-image pipeline.
    """
    rules = rules_of_diffusers()
    assert len(rules) > 20
    for name, steps in rules.items():
        for stored in (name, name.replace("Img2Img", "")):
            ds = schedule(
                folder_of(tmp_path / stored, stored, {"_class_name": "DDPMScheduler"}), 10
            )
            assert steps_of(0.25, 10, "int(N - " in ds.attrs["rule"]) == steps, stored


def test_the_two_rules_differ():
    assert (steps_of(0.25, 10, False), steps_of(0.25, 10, True)) == (2, 3)
    for counts_down in (False, True):
        for steps in (1, 7, 50, 100, 1000):
            found = [strength_of(k, steps, counts_down) for k in range(steps + 1)]
            assert [steps_of(x, steps, counts_down) for x in found] == list(range(steps + 1))
            assert np.abs(np.array(found) - np.arange(steps + 1) / steps).max() <= 1.5e-4


def test_the_levels_are_those_of_u_turns(tmp_path):
    """With the spacing of `uturn images`, the table is that of its backward."""
    config = {"_class_name": "DDIMScheduler", **BETAS}
    folder = folder_of(tmp_path, "DDIMPipeline", config)
    for name, spacing in (
        ("ddpm", "linspace"),
        ("ddim", "trailing"),
        ("ancestral", "linspace"),
        ("euler", "linspace"),
    ):
        ds = schedule(folder, 20, name, timestep_spacing=spacing)
        stored = read_scheduler(folder).scheduler
        levels = chain_of(
            torch.nn.Identity().eval(), scheduler_like(stored, name), 20
        ).forward.noise_levels
        for column in ("abar", "log_snr", "sigma", "t_over_T"):
            np.testing.assert_allclose(ds[column], levels[column], rtol=1e-12)
        np.testing.assert_array_equal(ds.timestep[1:], levels["timestep"][1:])


def test_shift_of_a_flow_model():
    """sigma = shift u / (1 + (shift - 1) u): at u = 1/2 with shift 3, sigma = .75 and abar = .1
    (theory of flow matching).
    """
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[0.5])
    a, s = (1 - scheduler.sigmas[0].item(), scheduler.sigmas[0].item())
    assert (s, a**2 / (a**2 + s**2)) == pytest.approx((0.75, 0.1))


def test_command_line_and_plot(tmp_path):
    table, picture = tmp_path / "levels.csv", tmp_path / "levels.svg"
    done = uturn("schedule", "fashion_mnist", "--steps", 8, "--csv", table, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert "k = int(N strength)" in " ".join(done.stdout.split())
    rows = pandas.read_csv(table, index_col=["model", "step"])
    ds = schedule("fashion_mnist", 8)
    assert len(rows) == 9
    for name in ds:
        np.testing.assert_allclose(rows[name], ds[name], rtol=1e-12)
    assert picture.read_text().startswith("<?xml")
    [left, right] = draw_schedules([ds, ds], ["a", "b"]).axes
    np.testing.assert_allclose(left.lines[0].get_ydata() ** 2, ds.abar)
    np.testing.assert_allclose(right.lines[0].get_ydata(), ds.log_snr[1:])
