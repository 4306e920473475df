"""Wrong networks are named when they are loaded, and right ones are not."""

import html
import json
import re
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import uturn as ut
from uturn.backward import DiffusionModel
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.cli import app
from uturn.core.caches import clear_caches
from uturn.corruption.diffusion import ForwardDiffusion
from uturn.corruption.pieces import Pieces
from uturn.corruption.schedulers import scheduler_like
from uturn.engine.trial import check
from uturn.networks import DenoiserModel
from uturn.networks.images.pretrained import DenoisingNetwork, load_pretrained
from uturn.networks.model_check import Probed, check_denoiser
from uturn.networks.texts.language_files import load_language_model
from uturn.sources.fashion_mnist import generator_folder
from uturn.store.run_folder import RunFolder, warnings_of

ATLAS = Path(__file__).parents[1] / "examples" / "atlas"
made = None
"""What `function` gives."""


def function():
    return made


def given(value):
    global made
    clear_caches()
    made = value


@pytest.fixture(scope="module")
def embedded():
    """The embedded model of Fashion-MNIST, which predicts v."""
    loaded = load_pretrained(generator_folder(), device="cpu")
    return loaded.network.network, loaded.scheduler


def experiment(model=f"{__name__}:function", items=4, **options):
    return ut.Experiment.from_dict(
        {
            "items": items,
            "source": {"type": "fashion_mnist"},
            "corruption": {"type": "diffusion", "noise": [0.5]},
            "backward": {
                "type": "diffusion",
                "model": model,
                "steps": 2,
                "device": "cpu",
                **options,
            },
            "probes": [{"type": "images"}],
        }
    )


class Wrapped(nn.Module):
    """A network whose input and output are changed."""

    def __init__(self, network, inputs=lambda x, t: (x, t), output=lambda y: y):
        super().__init__()
        self.network, self.inputs, self.output = network, inputs, output

    def forward(self, x, t):
        return self.output(self.network(*self.inputs(x, t)).sample)


def said_of(network, scheduler, predicts="v", items=4, **options):
    given(DenoiserModel(network, scheduler, predicts=predicts, image_shape=(1, 28, 28), **options))
    return list(map(str, experiment(items=items).model_check()))


WRONG = {
    "made for t in [0, 1]": (
        {"inputs": lambda x, t: (x, 1000 * t)},
        "v",
        "if the timestep is divided by 1000",
    ),
    "reversed t": ({"inputs": lambda x, t: (x, 999 - t)}, "v", "if time runs backwards, T - t"),
    "constant t": (
        {"inputs": lambda x, t: (x, 0 * t + 500)},
        "v",
        "does not depend on its time input",
    ),
    "flipped sign": ({"output": lambda y: -y}, "v", "if the sign of its output is changed"),
    "declared noise": ({}, "noise", r"that it predicts the noise: .* if its output is read as v"),
    "declared x0": ({}, "x0", r"that it predicts x_0: .* if its output is read as v"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_convention_is_named(name, embedded):
    network, scheduler = embedded
    changes, predicts, words = WRONG[name]
    (line,) = said_of(Wrapped(network, **changes), scheduler, predicts, items=2)
    assert line.startswith(f"model check: the model '{__name__}:function' ")
    assert re.search(words, line), line


def scaled(network, scheduler):
    """The same network as one of sigma, which is told x_0 + sigma n."""
    abar = scheduler.alphas_cumprod.double()
    table = ((1 - abar) / abar).sqrt()

    def called(x, sigma):
        t = (table - sigma.double()[:, None]).abs().argmin(1)
        return network(x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1), t).sample

    return called


def flowing(network, scheduler):
    """The same network as one of flow matching, which is told (1 - s) x_0 + s n at the timestep
    1000 s and gives n - x_0.
    """
    abar = scheduler.alphas_cumprod.double()
    table = ((1 - abar) / abar).sqrt()

    def called(x, timestep):
        s = (timestep / 1000).clamp(max=0.999)
        t = (table - (s / (1 - s)).double()[:, None]).abs().argmin(1)
        s = s.view(-1, 1, 1, 1)
        size = ((1 - s) ** 2 + s**2).sqrt()
        scaled = x / size
        v = network(scaled, t).sample
        clean = ((1 - s) * scaled - s * v) / size
        noise = (s * scaled + (1 - s) * v) / size
        return noise - clean

    return called


@pytest.mark.slow
def test_networks_of_flow_matching_are_judged(embedded):
    schedule = diffusers.FlowMatchEulerDiscreteScheduler()
    called = flowing(*embedded)
    assert said_of(called, schedule, predicts="flow") == []
    (line,) = said_of(lambda x, t: called(x, 1000 - t), schedule, predicts="flow")
    assert "if time runs backwards" in line


def test_right_networks_are_not_named(embedded):
    network, scheduler = embedded
    assert said_of(Wrapped(network), scheduler) == []
    assert said_of(scaled(network, scheduler), scheduler, takes="sigma") == []
    assert experiment("fashion_mnist").model_check() == []
    assert experiment("fashion_mnist", dtype="bfloat16", items=1).model_check() == []


@pytest.mark.slow
def test_sigma_in_the_place_of_its_logarithm_or_of_another_unit_is_named(embedded):
    network, scheduler = embedded
    called = scaled(network, scheduler)
    (line,) = said_of(lambda x, sigma: called(x, 1000 * sigma), scheduler, takes="sigma")
    assert "if sigma is divided by 1000" in line
    (line,) = said_of(
        lambda x, sigma: called(x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1), sigma),
        scheduler,
        takes="sigma",
    )
    assert "does not fit what is declared" in line


def test_no_change_fits_a_right_network_better():
    data = np.load(ATLAS / "mnist.npy")[:10]
    images = data.reshape(10, 1, *data.shape[1:3]).astype(np.float32) / 127.5 - 1
    chain = ReverseDiffusion.from_pretrained(ATLAS / "mnist", "ddpm", 4, device="cpu")
    with torch.inference_mode():
        clean = torch.from_numpy(chain.forward.clean(images))
        errors = Probed(
            chain.model.network, chain.forward.scheduler, clean, None, Pieces(chain.device, 64)
        ).errors()
    assert errors.is_judged
    assert errors.depends_on_time
    assert errors.best.ratio > 0.95


def test_a_network_without_training_cannot_be_judged(embedded):
    torch.manual_seed(0)
    network = type(embedded[0]).from_config(embedded[0].config).eval()
    given(DenoiserModel(Wrapped(network), embedded[1], predicts="v", image_shape=(1, 28, 28)))
    (finding,) = experiment().model_check()
    assert finding.is_unclear
    assert "cannot be judged" in finding.words


# -- calls -----------------------------------------------------------------------------------------


def begins(lines, words):
    """What is before `words` in each line."""
    return [line.partition(words or "?")[0] for line in lines]


class Indexed(nn.Module):
    """Tells a network its time by a table, so that other times are errors."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("table", torch.arange(1000))

    def forward(self, x, t):
        return self.network(x, self.table[t]).sample


def written(x, t):
    x.mul_(1.5)
    return x / 1.5, t


CALLS = {
    "noise": ({"inputs": lambda x, t: (x + 0.01 * torch.randn_like(x), t)}, "is random"),
    "batch": ({"output": lambda y: y - 0.1 * y.mean(0, keepdim=True)}, "mixes the data of a batch"),
    "size": ({"output": lambda y: y * (1 + 0.1 / len(y))}, "depends on the batch size"),
    "writes": ({"inputs": written}, "modifies its input"),
}


@pytest.mark.parametrize("name", CALLS)
def test_how_a_denoiser_computes_is_tried(name, embedded):
    changes, words = CALLS[name]
    line = said_of(Wrapped(embedded[0], **changes), embedded[1], items=2)[0]
    assert line.startswith(f"model check: the model '{__name__}:function' {words}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheduler"), [("right", "ancestral"), ("noise", "stored")])
def test_how_a_network_of_edm_computes_is_tried(name, scheduler, embedded):
    changes, words = CALLS.get(name, ({}, None))
    model = DenoisingNetwork(Wrapped(embedded[0], **changes), torch.float32)
    forward = ForwardDiffusion(scheduler_like(diffusers.EDMEulerScheduler(), scheduler), 4)
    clean = torch.from_numpy(ut.fashion_mnist.load_test_set()[0][:4])
    with torch.inference_mode():
        findings = list(
            check_denoiser(model, forward.scheduler, clean, None, Pieces(torch.device("cpu"), 64))
        )
    assert begins([finding.words for finding in findings], words) == [""] * (words is not None)


def test_a_network_of_a_table_of_times_is_right(embedded):
    assert said_of(Indexed(embedded[0]), embedded[1]) == []


def test_a_network_that_writes_into_its_input_gives_the_same_reconstructions(embedded):
    network, scheduler = embedded
    images = []
    for inputs in (lambda x, t: (x * 1.5 / 1.5, t), written):
        given(
            DenoiserModel(
                Wrapped(network, inputs), scheduler, predicts="v", image_shape=(1, 28, 28)
            )
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images.append(ut.run(experiment(items=2)).image.values)
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


class Tokens:
    """The embedded language model in the wrong way that `mistake` says."""

    def __init__(self, mistake):
        self.model, self.mistake = load_language_model("embedded", device="cpu"), mistake
        self.mask_id, self.length, self.tokenizer = (
            self.model.mask_id,
            self.model.length,
            self.model.tokenizer,
        )

    def logits(self, ids, noise):
        logits = self.model.network(ids)
        if self.mistake == "random":
            return nn.functional.dropout(logits, 0.1)
        if self.mistake == "batch":
            return logits + logits.mean(0, keepdim=True)
        if self.mistake == "size":
            return logits / len(logits)
        if self.mistake == "writes":
            ids.zero_()
        return logits


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("", None),
        ("random", "is random"),
        ("batch", "mixes the data of a batch"),
        ("size", "depends on the batch size"),
        ("writes", "modifies its input"),
    ],
)
def test_how_a_language_model_computes_is_tried(mistake, words):
    given(Tokens(mistake))
    spec = {
        "items": 3,
        "source": {"type": "tokens", "windows": True, "length": 32},
        "corruption": {"type": "masking", "noise": [0.5]},
        "backward": {"type": "language", "model": f"{__name__}:function", "device": "cpu"},
        "probes": [{"type": "tokens"}],
    }
    lines = list(map(str, ut.Experiment.from_dict(spec).model_check()))
    assert begins(lines, words) == [f"model check: the model '{__name__}:function' "] * bool(words)


class Judge(nn.Module):
    """A classifier in the wrong way that `mistake` says."""

    def __init__(self, mistake):
        super().__init__()
        self.first, self.second, self.mistake = nn.Linear(784, 8), nn.Linear(8, 10), mistake

    def forward(self, images):
        if self.mistake == "writes":
            images.mul_(2)
        hidden = self.first(images.flatten(1))
        hidden = nn.functional.dropout(hidden) if self.mistake == "random" else hidden
        return self.second(hidden - hidden.mean(0) if self.mistake == "batch" else hidden)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("", None),
        ("random", "is random"),
        ("batch", "mixes the data of a batch"),
        ("writes", "modifies its input"),
    ],
)
def test_how_a_classifier_computes_is_tried(mistake, words, monkeypatch):
    # Of the embedded denoiser: other tests' matter.
    monkeypatch.setattr(DiffusionModel, "model_check", lambda *_: [])
    torch.manual_seed(0)
    given(Judge(mistake))
    spec = experiment("fashion_mnist", items=3).to_dict()
    probe = {
        "type": "network_layers",
        "classifier": f"{__name__}:function",
        "layers": ["first", "second"],
        "labels": False,
    }
    lines = list(map(str, ut.Experiment.from_dict({**spec, "probes": [probe]}).model_check()))
    assert begins(lines, words) == [f"model check: the classifier '{__name__}:function' "] * bool(
        words
    )


# -- where the lines are ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong(embedded, tmp_path_factory):
    """A folder of diffusers that declares another prediction than its network has."""
    network, scheduler = embedded
    folder = tmp_path_factory.mktemp("wrong") / "model"
    other = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
    diffusers.DDPMPipeline(network, other).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("unsaved_figures")
def test_the_line_is_printed_and_kept(wrong, tmp_path):
    options = ["--model", wrong, "--items", "3", "--levels", "2", "--steps", "2", "--device", "cpu"]
    options += ["--no-compare-labels", "--workers", "1"]
    found = CliRunner().invoke(app, ["images", *options, "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    (line,) = warnings_of(RunFolder.open(tmp_path / "out" / "run").file.texts())
    assert line.startswith(
        f"model check: the model '{wrong}' does not fit what is declared, that it predicts the"
        " noise"
    )
    assert warnings_of(xr.open_zarr(tmp_path / "out" / "study.zarr").attrs) == [line]
    assert line in html.unescape((tmp_path / "out" / "index.html").read_text())
    # A complete store says it again, without a new check.
    (tmp_path / "spec.json").write_text(
        json.dumps(RunFolder.open(tmp_path / "out" / "run").attributes["spec"])
    )
    with pytest.warns(UserWarning, match="^model check: ") as said:
        again = CliRunner().invoke(
            app, ["run", str(tmp_path / "spec.json"), "--store", str(tmp_path / "out" / "run")]
        )
    assert again.exit_code == 0, again.output
    assert line in [str(one.message) for one in said]
    spec = experiment(wrong, items=3)
    assert line in map(str, check(spec))


def test_the_check_changes_no_numbers(tmp_path, monkeypatch):
    spec = experiment("fashion_mnist", items=3)
    checked = ut.run(spec, tmp_path / "checked").load()
    monkeypatch.setattr(ut.Experiment, "model_check", lambda self: [])
    assert ut.run(spec, tmp_path / "unchecked").load().equals(checked)
    assert "warnings" not in checked.attrs


# -- images in [0, 1] ------------------------------------------------------------------------------


class Bright(ut.sources.ImageSource):
    """Images in [0, 1]."""

    def count(self):
        return 10

    def images_at(self, indices):
        images = np.random.default_rng(0).random((len(indices), 1, 28, 28), np.float32)
        return images, np.full(len(indices), -1)


def test_images_in_the_wrong_range_are_named(tmp_path):
    from PIL import Image

    spec = experiment("fashion_mnist", items=3).to_dict()
    lines = list(
        map(
            str,
            ut.Experiment.from_dict(
                {**spec, "source": {"type": f"{__name__}:Bright"}}
            ).model_check(),
        )
    )
    assert any("gives values in [0" in line and "nothing lies below 0" in line for line in lines), (
        lines
    )
    for k in range(3):
        image = ut.fashion_mnist.load_test_set()[0][k, 0] / 2 + 0.5
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{k}.png")
    source = {"type": "images", "path": str(tmp_path), "channels": 1}
    lines = list(map(str, ut.Experiment.from_dict({**spec, "source": source}).model_check()))
    assert any("nothing lies above 1 of 255" in line for line in lines), lines
