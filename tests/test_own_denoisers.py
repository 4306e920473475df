"""Networks of one's own: every prediction type against closed forms, and what users do wrong."""

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import uturn as ut
from command_line import uturn
from tiny_denoiser import PLAIN, unet
from uturn.backward import diffusion
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.core.errors import described
from uturn.core.random import keys, normals
from uturn.networks import DenoiserModel, edm_schedule
from uturn.networks.images.own_denoisers import PREDICTIONS

ROOT = Path(__file__).parents[1]
SHAPE = (2, 3, 4)
MEAN = torch.linspace(-0.6, 0.6, 24).reshape(SHAPE)
STEPS = 8
made = None
"""What `function` returns."""


def function():
    return made() if callable(made) else made


def given(value):
    global made
    made = value


def loaded(value, scheduler="ddpm", **options):
    given(value)
    return ReverseDiffusion.from_pretrained(
        f"{__name__}:function", scheduler, STEPS, device="cpu", **options
    )


def images(count=3):
    return (0.3 * normals(keys(1, range(count)), 24)).reshape(-1, *SHAPE).clip(-1, 1)


# -- every prediction type -------------------------------------------------------------------------


def vp():
    return diffusers.DDPMScheduler(clip_sample=False)


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def optimal(predicts, takes, scheduler, deviation):
    """The network that is optimal for pixels N(MEAN, deviation^2), in closed form, computed in
    float64.

    Written from the definitions, independently of the package: with y = x_0 + sigma n, E[x_0 | y]
    and E[n | y] = (y - E[x_0 | y]) / sigma are those of two Gaussians.
    """

    def network(noisy, level):
        level = level.double().reshape(-1, 1, 1, 1)
        if takes == "sigma":
            signal, sigma = torch.ones_like(level), level
        elif isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            signal, sigma = 1 - level / 1000, level / 1000
        else:
            abar = scheduler.alphas_cumprod.double().numpy()
            ratio = torch.from_numpy(np.interp(level, np.arange(1000), np.sqrt((1 - abar) / abar)))
            signal, sigma = 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()
        x, variance = noisy.double(), deviation**2
        total = signal**2 * variance + sigma**2
        clean = MEAN + variance * signal / total * (x - signal * MEAN)
        noise = sigma / total * (x - signal * MEAN)
        found = {
            "noise": noise,
            "x0": clean,
            "edm": clean,
            "score": -noise / sigma,
            "flow": noise - clean,
            "v": (signal * noise - sigma * clean) / (signal**2 + sigma**2).sqrt(),
        }
        return found[predicts].float()

    return network


def all_of(schedule):
    """All prediction types that go with a schedule, called with timesteps and with sigma."""
    if schedule is flow:
        return [(predicts, "timestep") for predicts in ("x0", "v", "flow")]
    kinds = [(predicts, takes) for predicts in PREDICTIONS for takes in ("timestep", "sigma")]
    return [kind for kind in kinds if kind != ("edm", "timestep")]


def chains(schedule, deviation, sampler):
    for predicts, takes in all_of(schedule):
        scheduler = schedule()
        network = optimal(predicts, takes, scheduler, deviation)
        model = DenoiserModel(network, scheduler, predicts=predicts, image_shape=SHAPE, takes=takes)
        yield predicts, takes, loaded(model, sampler)


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (vp, "ddpm"),
        (edm_schedule, "heun"),
        (flow, "ancestral"),
        *(
            pytest.param(schedule, sampler, marks=pytest.mark.slow)
            for schedule, sampler in (
                (vp, "ddim"),
                (vp, "euler"),
                (vp, "unipc"),
                (edm_schedule, "ddpm"),
                (flow, "stored"),
                (edm_schedule, "ancestral"),
            )
        ),
    ],
)
def test_optimal_networks_of_all_types_agree(schedule, sampler):
    originals, streams = images(), keys(2, range(3))
    for deviation in (0.0, 0.4):
        known: dict[int, np.ndarray] = {}
        for predicts, takes, chain in chains(schedule, deviation, sampler):
            assert not chain.forward.scheduler.config.get("clip_sample", False)
            for step in range(STEPS + 1):
                rebuilt = chain.u_turn(originals, step, streams)
                expected = known.setdefault(step, rebuilt)
                # 1 / sqrt(abar), up to 160 here, multiplies the rounding of networks that predict
                # the noise.
                np.testing.assert_allclose(
                    rebuilt, expected, atol=3e-4, err_msg=f"{predicts}, {takes}, step {step}"
                )


@pytest.mark.parametrize("schedule", [vp, edm_schedule, flow])
def test_from_every_step_a_delta_is_rebuilt_exactly(schedule):
    for predicts, takes, chain in chains(schedule, 0.0, "stored"):
        for step in range(1, STEPS + 1):
            rebuilt = chain.u_turn(images(), step, keys(3, range(3)))
            np.testing.assert_allclose(
                rebuilt,
                np.broadcast_to(MEAN, rebuilt.shape),
                atol=3e-4,
                err_msg=f"{predicts}, {takes}",
            )


@pytest.mark.parametrize("schedule", [vp, edm_schedule, flow])
def test_a_single_step_gives_the_posterior_mean_in_closed_form(schedule):
    deviation = 0.4
    for predicts, takes, chain in chains(schedule, deviation, "stored"):
        noisy = chain.corrupt(images(), 1, keys(4, range(3)))
        levels = chain.forward.noise_levels
        a, s = levels["signal"][1], levels["signal"][1] * levels["sigma"][1]
        total = a**2 * deviation**2 + s**2
        expected = MEAN.numpy() + deviation**2 * a / total * (noisy - a * MEAN.numpy())
        rebuilt = chain.denoise(noisy, 1, keys(4, range(3)))
        np.testing.assert_allclose(
            rebuilt, expected.clip(-1, 1), atol=1e-4, err_msg=f"{predicts}, {takes}"
        )


def test_edm_schedule_has_the_levels_of_the_paper():
    abar = edm_schedule().alphas_cumprod.double()
    sigma = ((1 - abar) / abar).sqrt().numpy()
    i = np.arange(18) * 999 / 17  # Eq. 5 with N = 1000, counted from the clean end
    paper = (80 ** (1 / 7) + (999 - i) / 999 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(
        np.interp(i, np.arange(1000), sigma), paper[np.argsort(paper)], rtol=0.02
    )


def test_sigma_is_that_of_the_schedule_and_the_image_is_not_scaled():
    seen = []

    def network(noisy, sigma):
        seen.append((noisy.clone(), sigma.clone()))
        return torch.zeros_like(noisy)

    chain = loaded(DenoiserModel(network, predicts="edm", image_shape=SHAPE))
    seen.clear()
    noisy = chain.corrupt(images(), 5, keys(5, range(3)))
    chain.denoise(noisy, 5, keys(5, range(3)))
    levels = chain.forward.noise_levels
    np.testing.assert_allclose(seen[0][0], noisy / levels["signal"][5], rtol=1e-5)
    np.testing.assert_allclose(
        np.array([sigma[0] for _, sigma in seen]), levels["sigma"][5:0:-1], rtol=1e-5
    )


def test_a_pair_is_the_same_as_its_folder(tmp_path):
    network = unet(block_out_channels=(8,), **PLAIN)
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    pipeline: Any = diffusers.DDPMPipeline(network, scheduler)
    pipeline.save_pretrained(tmp_path / "folder")
    pair = loaded((network, scheduler))
    folder = ReverseDiffusion.from_pretrained(tmp_path / "folder", "ddpm", STEPS, device="cpu")
    assert pair.model.image_shape == folder.model.image_shape == (1, 8, 8)
    data = (0.3 * normals(keys(1, range(4)), 64)).reshape(4, 1, 8, 8).clip(-1, 1)
    for step in (0, 3, STEPS):
        rebuilt = [chain.u_turn(data, step, keys(0, range(4))) for chain in (pair, folder)]
        np.testing.assert_array_equal(*rebuilt)


def test_half_precision_is_inside_only():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.time = nn.Conv2d(2, 2, 1), nn.Linear(1, 2)

        def forward(self, noisy, timestep):
            assert timestep.dtype in (torch.float32, torch.int64)
            assert noisy.dtype == torch.float32
            hidden = (
                self.inner(noisy) + self.time(timestep.float()[:, None])[:, :, None, None] / 1000
            )
            found.append(hidden.dtype)
            return hidden

    found: list[torch.dtype] = []
    network = Network()
    model = DenoiserModel(network, vp(), predicts="v", image_shape=SHAPE)
    exact = loaded(model).u_turn(images(), 4, keys(0, range(3)))
    assert set(found) == {torch.float32}
    rounded = loaded(model, dtype="bfloat16").u_turn(images(), 4, keys(0, range(3)))
    assert (found[-1], rounded.dtype) == (torch.bfloat16, np.float32)
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.array_equal(rounded, exact)


# -- mistakes --------------------------------------------------------------------------------------


def fine(noisy, timestep):
    return 0 * noisy


def of(network=fine, scheduler=None, **options):
    scheduler = scheduler or vp()
    return lambda: DenoiserModel(
        network, scheduler, **{"predicts": "noise", "image_shape": SHAPE, **options}
    )


def raises():
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            lambda: None,
            (
                "what it gives = None: expected (torch.nn.Module, scheduler of diffusers), or a"
                " DenoiserModel"
            ),
        ),
        (raises, r"KeyError: 'weights' (test_own_denoisers.py, line"),
        (
            of(predicts="epsilon"),
            (
                "DenoiserModel.predicts = 'epsilon': expected one of 'noise', 'x0', 'v', 'flow',"
                " 'score'"
            ),
        ),
        (
            of(scheduler=diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)),
            "DenoiserModel.scheduler = EulerDiscrete",
        ),
        (of(scheduler=flow()), "DenoiserModel.predicts = 'noise': expected 'x0', 'v' or 'flow'"),
        (
            of(lambda noisy, timestep: noisy / 0),
            "images of noise at timestep 500: numbers that are not finite = 48: expected",
        ),
    ],
)
def test_mistakes_are_one_line(value, words):
    with pytest.raises((ValueError, KeyError, TypeError, RuntimeError)) as error:
        loaded(value)
    line = described(error.value)
    assert line.startswith(f"model = '{__name__}:function'")
    assert words in line
    assert "\n" not in line


# -- in an experiment ------------------------------------------------------------------------------

NETWORK = """
import torch
from diffusers import DDPMScheduler
from uturn.networks import DenoiserModel

def network():
    torch.manual_seed(WEIGHTS)
    inner = torch.nn.Conv2d(1, 1, 3, padding=1)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, noisy, timestep):
            return self.inner(noisy)

    return DenoiserModel(Network(), DDPMScheduler(), predicts="x0", image_shape=(1, 28, 28))
"""


def spec(**backward):
    return {
        "items": 2,
        "source": {"type": "fashion_mnist"},
        "corruption": {"type": "diffusion", "noise": [0.5]},
        "backward": {
            "type": "diffusion",
            "model": "mine:network",
            "steps": 2,
            "device": "cpu",
            **backward,
        },
        "probes": [{"type": "images"}],
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the spec into one store, with a network that has these weights and this comment in
    its file.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(weights, comment="", **options):
        (tmp_path / "mine.py").write_text(NETWORK.replace("WEIGHTS", str(weights)) + comment)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        diffusion._reverse_diffusion.cache_clear()
        return ut.run(ut.Experiment.from_dict(spec()), tmp_path / "store", **options)

    yield run
    sys.modules.pop("mine", None)
    diffusion._reverse_diffusion.cache_clear()


def test_code_and_weights_are_recorded_and_compared(run):
    first = run(0)
    models = json.loads(first.attrs["models"])
    assert len(models["backward"]) == len(models["backward.code"]) == 64
    assert first.attrs["description"].startswith(
        "Network, predicts x0, unconditional; ddpm, 2 steps"
    )
    with pytest.raises(ValueError, match="the code of backward has changed"):
        run(0, "# the same")
    run(0, "# the same", accept_changes=True)
    with pytest.raises(
        ValueError, match=r"holds another experiment: the weights or data of backward have changed"
    ):
        run(1, "# the same", accept_changes=True)


# -- the example -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A copy of the example, with its trained network."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "denoiser.py").write_text((ROOT / "examples/own/denoiser.py").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("denoiser.py", run_name="__main__")
    yield folder
    sys.modules.pop("denoiser", None)  # imported by the program in this process


def test_the_documents_quote_the_example():
    page, code = (
        (ROOT / "docs/models.md").read_text(),
        (ROOT / "examples/own/denoiser.py").read_text(),
    )
    quoted = [block for block in page.split("```python\n")[1:] if "def denoiser" in block]
    assert len(quoted) == 1
    assert quoted[0].split("```")[0] in code


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved_figures")
@pytest.mark.parametrize("data", ["stripes.npy", "generated"])
def test_the_example_trains_and_runs(example, data):
    out = f"results-{data}"
    done = uturn(
        *(
            "images",
            "--model",
            "denoiser:denoiser",
            "--data",
            data,
            "--classifier",
            "denoiser:classifier",
        ),
        *(
            "--no-compare-labels",
            "--steps",
            "10",
            "--levels",
            "2",
            "--items",
            "6",
            "--workers",
            "1",
            "--out",
            out,
        ),
        cwd=example,
    )
    assert done.returncode == 0, done.stderr
    said = xr.open_zarr(example / out / "study.zarr").attrs["description"]
    assert "Denoiser, predicts noise, unconditional" in said
    assert ("6 originals generated by the model (seed 0)" in said) == (data == "generated")
    assert len(list((example / out).glob("originals/*/item*.npy"))) == (
        256 if data == "generated" else 0
    )
