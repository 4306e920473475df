"""`uturn atlas`: its file, its runs against those of `uturn images`, its numbers against a model whose law is known."""

import io
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from forging import instructed
from uturn.cli import app
from uturn.measures.cloning import covariance_eigenvalues, largest_eigenvalue
from uturn.networks import load_network
from uturn.networks.images.pretrained import load_pretrained
from uturn.presets import ImageOptions
from uturn.studies.plotting.style import style
from uturn.tools.atlas.figure import draw_atlas
from uturn.tools.atlas.numbers import _of_changes, _of_clones, to_csv
from uturn.tools.atlas.rows import RESULTS, measure_atlas, read_atlas

EXAMPLES = Path(__file__).parents[3] / "examples" / "atlas"
HEIGHT = 0.3  # images are +- HEIGHT times the pattern
MODULE = '''
import torch
from diffusers import DDPMScheduler
from torch import nn

from uturn.networks import DenoiserModel

HEIGHT = 0.3
CALLS = []
PATTERN = torch.ones(1, 8, 8)
PATTERN[:, ::2] = -1  # stripes


class Denoiser(nn.Module):
    """The posterior mean of images +- HEIGHT * PATTERN, both equally probable."""

    def forward(self, noisy, timestep):
        CALLS.append(len(noisy))
        abar = DDPMScheduler().alphas_cumprod[timestep.long()].view(-1, 1, 1, 1)
        overlap = (noisy * PATTERN).sum((1, 2, 3), keepdim=True)
        return HEIGHT * PATTERN * torch.tanh(HEIGHT * abar.sqrt() * overlap / (1 - abar))


def denoiser():
    return DenoiserModel(Denoiser(), DDPMScheduler(), predicts="x0", image_shape=(1, 8, 8))


def classifier():
    """Logits for the two signs, from the overlaps with the pattern and its negative."""
    overlaps, sums = nn.Conv2d(1, 2, 8, bias=False), nn.Linear(2, 2, bias=False)
    overlaps.weight.data = torch.stack([PATTERN, -PATTERN])
    sums.weight.data = torch.eye(2)
    return nn.Sequential(overlaps, nn.Flatten(), nn.ReLU(), sums)
'''
FILE = """
[defaults]
model = "two_images:denoiser"
data = "images.npy"
labels = "labels.npy"
classifiers = ["two_images:classifier"]
steps = 20
levels = 10
items = 32
trajectories = 2
clones = 2
keep = 0
patch = 2
facts = { data = "two images", licence = "none" }

[[models]]
name = "two"
title = "two images"
facts = { kind = "exact" }

[[models]]
name = "absent"
model = "/no/such/folder"

[[models]]
name = "plain"
like = "two"
trajectories = 1
clones = 1
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the atlas file, its rows, the lines that were announced, and the table."""
    folder = tmp_path_factory.mktemp("atlas")
    (folder / "two_images.py").write_text(MODULE)
    (folder / "atlas.toml").write_text(FILE)
    pattern = np.where(np.arange(8) % 2, 1, -1)[:, None] * np.ones((40, 1, 8, 8))
    sign = np.where(np.arange(40) % 2, 1, -1)
    np.save(folder / "images.npy", (HEIGHT * sign[:, None, None, None] * pattern).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(40) % 2)
    sys.path.insert(0, str(folder))
    told = []
    rows = read_atlas(folder / "atlas.toml")
    yield folder, rows, told, measure_atlas(rows, folder / "out", announce=told.append)
    sys.path.remove(str(folder))


def of(found, name):
    [one] = np.flatnonzero(found.name == name)
    return found.isel(entry=one)


# --- the file --------------------------------------------------------------------------------------------------------


def test_defaults_likeness_and_paths(finished):
    folder, rows, _, _ = finished
    assert [row.name for row in rows] == ["two", "absent", "plain"]
    two, absent, plain = rows
    assert two.data == str(folder / "images.npy")
    assert two.model == "two_images:denoiser"  # nothing of this name is in the folder
    assert (plain.steps, plain.trajectories, plain.patch) == (20, 1, 2)
    assert plain.facts == {"data": "two images", "licence": "none", "kind": "exact"}
    assert absent.facts == {"data": "two images", "licence": "none"}
    assert (two.title, plain.title) == ("two images", "")  # a title is not taken from another row


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[models]]\nname = 'a'\nstepz = 3", r"row 1 \(name = 'a'\).*stepz"),
        ("[[models]]\nname = 'a'\n[[models]]\nname = 'A'", r"name = 'A': expected another name; NAME.zarr is taken"),
        ("[[models]]\nname = '../a'", r"name = '\.\./a'"),
        ("[[models]]\nname = 'a'\nlike = 'b'", "like = 'b': expected the name of a row before it: none"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    (tmp_path / "atlas.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_atlas(tmp_path / "atlas.toml")
    assert "\n" not in str(caught.value)
    assert "atlas.toml" in str(caught.value)


def test_paths_are_those_beside_the_file(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "atlas.toml").write_text(
        "[[models]]\nname = 'a'\nmodel = 'net'\nprompt = 'prompts.txt'\nclassifiers = ['clip:net', 'timm:net', 'elsewhere']\n"
        "[[models]]\nname = 'b'\nlike = 'a'\nprompt = 'net'"
    )
    first, second = read_atlas(tmp_path / "atlas.toml")
    assert (first.model, first.prompt) == (str(tmp_path / "net"), str(tmp_path / "prompts.txt"))
    assert first.classifiers == [f"clip:{tmp_path / 'net'}", "timm:net", "elsewhere"]
    assert second.prompt == "net"  # a prompt, although there is such a folder


# --- the runs --------------------------------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_uturn_images(finished):
    _, rows, _, found = finished
    study = ut.study(ut.run(ImageOptions.experiment(rows[0]))).sel(axis="log_snr")
    two, of_class, layers = of(found, "two"), study.sel(reading="same_class"), study.variable.values == "similarity"
    assert np.isfinite(two.transition).all()
    for name, numbers in (("transition", of_class.half_life), ("width", of_class.width), ("inversion", study.inversion[0])):
        np.testing.assert_array_equal(two[name], numbers)
    np.testing.assert_array_equal(two.half_life, study.half_life[layers])
    assert list(two.layer.values) == list(study.level.values[layers])
    assert float(two.gap_p) == float(of_class.gap_p.min())
    smallest = of_class.gap[np.flatnonzero(of_class.gap_p == of_class.gap_p.min())]
    np.testing.assert_array_equal(two.gap, smallest[np.abs(smallest.values[:, 0]).argmax()])


def test_the_numbers_of_two_images(finished):
    """All patches change together; the covariance has one eigenvalue; the exact denoiser is calibrated."""
    _, _, _, found = finished
    two = of(found, "two")
    assert two.chi.values[0] == pytest.approx(16, abs=1e-3)  # 4 x 4 patches
    assert two.xi.values[0] == np.inf
    eigenvalue = 64 * HEIGHT**2 * 40 / 39
    assert float(two.eigenvalue) == pytest.approx(eigenvalue, rel=1e-5)
    assert float(two.speciation) == pytest.approx(-np.log(eigenvalue - 1), rel=1e-4)
    assert float(two.gap_p) > 0.001
    assert float(two.chance) == pytest.approx(0.5)
    # Two points at distance 2d, d^2 = 64 HEIGHT^2, are half lost where they overlap: d^2 SNR is about 1.
    assert abs(float(two.transition[0]) + np.log(64 * HEIGHT**2)) < 1.5


def test_chi_is_taken_at_its_peak_and_xi_in_pixels(finished):
    """A run whose changes decay as exp(-r/L), L = 1, 3, 2 patches of 2 pixels at three noise levels."""
    _, rows, _, _ = finished
    r, lengths = np.arange(8.0), np.array([1.0, 3.0, 2.0])
    decay = np.exp(-r / lengths[:, None])
    size = np.random.default_rng(0).uniform(0.5, 1.5, 20)  # of the changes of the originals
    forged = xr.Dataset(
        {
            "patches_change_covariance": (("noise", "item", "patches_distance"), decay[:, None] * size[:, None]),
            "patches_change_covariance_sum": (("noise", "item"), decay.sum(axis=1)[:, None] * size),
        },
        coords={"noise": [0.2, 0.5, 0.8], "log_snr": ("noise", [2.0, 0.5, -3.0]), "patches_distance": r},
        attrs={"spec": '{"probes": [{"type": "changes", "name": "patches"}]}'},
    )
    forged = instructed(forged)
    values, remark = _of_changes(rows[0], ut.study(forged.isel(noise=[2, 0, 1])))
    # The interval of the peak reaches half a step beyond its level, on the axis arctan(sigma).
    sigma = np.tan([np.arctan(np.exp([-1, -0.25])).mean(), np.arctan(np.exp([-0.25, 1.5])).mean()])
    assert values["chi_at"][1:] == pytest.approx((-2 * np.log(sigma))[::-1])
    assert values["chi_at"][1] < values["chi_at"][0] < values["chi_at"][2]
    assert values["chi"] == pytest.approx([decay[1].sum()] * 3)
    assert values["chi_cross_fitted"] == pytest.approx(decay[1].sum())
    assert values["chi_n_eff"] == pytest.approx(size.sum() ** 2 / (size**2).sum())
    assert values["xi"][0] == pytest.approx(2 * 3.0, rel=0.02)
    assert remark == ""
    assert "no peak" in _of_changes(rows[0], ut.study(forged.isel(noise=[0, 1])))[1]


def test_the_gap_is_that_of_the_smallest_p_value():
    """Of equal p-values, that of the largest gap, whatever its sign; levels that were not measured are NaN."""
    gaps = np.array([[0.9, 0.8, 1.0], [0.1, 0.0, 0.2], [-0.3, -0.4, -0.2], [np.nan] * 3])
    judged = xr.Dataset(
        {"gap": (("noise", "estimate"), gaps), "gap_p": ("noise", [0.5, 0.01, 0.01, np.nan])},
        coords={"noise": [0.1, 0.2, 0.3, 0.4], "log_snr": ("noise", [3.0, 2.0, 1.0, 0.0])},
    )
    values, remark = _of_clones(judged)
    assert (list(values["gap"]), values["gap_at"], values["gap_p"], remark) == ([-0.3, -0.4, -0.2], 1.0, 0.01, "")


def test_a_row_that_fails_does_not_stop_the_others(finished):
    _, _, told, found = finished
    assert [name for name, words in zip(found.name.values, found.failure.values, strict=True) if words] == ["absent"]
    failures = [line for line in told if line.startswith("absent: failed: ")]
    assert len(failures) == 1
    assert "\n" not in failures[0]
    assert told[-1].startswith("plain: done")


def test_files(finished):
    folder, _, _, found = finished
    out = folder / "out"
    assert {path.name for path in out.glob("atlas.*")} | {"index.html"} == set(RESULTS)
    assert (out / "index.html").exists()
    assert {path.name for path in out.glob("*.zarr")} == {"atlas.zarr", "two.zarr", "plain.zarr"}
    xr.testing.assert_identical(xr.open_zarr(out / "atlas.zarr").load().drop_attrs(), found.drop_attrs())
    lines = pandas.read_csv(out / "atlas.csv", keep_default_na=True).set_index("name")
    assert lines.transition_low["two"] == pytest.approx(float(of(found, "two").transition[1]))
    apart = to_csv(found.assign(half_life=found.half_life + np.arange(2)[:, None]))  # the two layers have equal half-lives
    half_lives = pandas.read_csv(io.StringIO(apart)).set_index("name")[["half_life_first", "half_life_last"]].loc["two"]
    assert half_lives.tolist() == pytest.approx([float(of(found, "two").half_life[k, 0]) + k for k in (0, 1)])
    assert lines.fact_licence["plain"] == "none"
    assert np.isnan(lines.transition["absent"])


def test_finished_rows_are_not_computed_again(finished, monkeypatch):
    """The command, twice more: the network is called only when it is loaded; a larger row adds what it lacks."""
    folder, _, _, found = finished
    monkeypatch.chdir(folder)
    calls = sys.modules["two_images"].CALLS

    def called(*arguments):
        calls.clear()
        done = CliRunner().invoke(app, ["atlas", "atlas.toml", "--out", "out", "--workers", "1", *arguments])
        return done, [count for count in calls if count != 2]  # two images of noise, at loading

    done, more = called()
    assert done.exit_code == 1
    assert "1 of 3 rows failed: absent" in done.stdout
    assert more == []
    xr.testing.assert_equal(xr.open_zarr("out/atlas.zarr").load(), found)
    done, more = called("--only", "plain")
    assert done.exit_code == 0, done.stdout
    assert more == []
    assert xr.open_zarr("out/atlas.zarr").name.values.tolist() == ["plain"]
    Path("atlas.toml").write_text(FILE.replace("items = 32", "items = 36"))
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])  # calls before a run
    _, more = called("--only", "plain")
    assert 0 < sum(more) <= 16 * 110  # the items of the last task, 20 .. 31, are measured again with the four new ones


def test_figure(finished):
    _, _, _, found = finished
    title = found.title.values.astype(object)
    title[-1] = r"price $\foo$"  # a dollar begins no formula
    figure = draw_atlas(found.assign_coords(title=("entry", title)))
    figure.savefig(io.BytesIO())
    _, axes = figure.axes  # the first one holds the legends
    assert [label.get_text() for label in axes.get_yticklabels()] == ["two images", "absent", r"price \$\foo\$"]
    left, right = axes.get_xlim()
    assert left > right  # more noise to the right
    places = {float(line.get_xdata()[0]) for line in axes.lines if line.get_markersize() == 10 and len(line.get_xdata()) == 1}
    assert places == {float(of(found, name).transition[0]) for name in ("two", "plain")}
    assert [text.get_text() for text in axes.texts].count("failed") == 1
    with style() as plt:
        plt.close(figure)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_largest_eigenvalue_is_the_first_of_all(shape):
    data = np.random.default_rng(0).normal(size=shape)
    assert largest_eigenvalue(data) == pytest.approx(covariance_eigenvalues(data)[0])
    assert largest_eigenvalue(np.ones((3, 4))) == 0


# --- the files in examples/atlas -------------------------------------------------------------------------------------


def test_example_files_are_valid():
    here, public = (read_atlas(EXAMPLES / f"{name}.toml") for name in ("here", "public"))
    assert {row.facts["data"] for row in here} == {"digits", "MNIST", "Fashion-MNIST"}
    assert len({row.model for row in here}) == 6
    for row in public:
        assert {"data", "kind", "licence", "parameters", "download", "gpu_hours"} <= row.facts.keys()
        assert isinstance(row, ImageOptions)
    assert len(public) >= 13


def test_networks_of_the_examples_are_small_and_load():
    sizes = {}
    for row in read_atlas(EXAMPLES / "here.toml"):
        folder = Path(row.model)
        if folder.is_dir() and folder.name not in sizes:
            sizes[folder.name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            found = load_pretrained(folder, null_class=row.null_class)
            assert (found.codec is not None) == (folder.name == "fashion-latent")
            assert type(found.scheduler).__name__.startswith("FlowMatch") == (folder.name == "mnist-flow")
    assert len(sizes) == 5
    assert max(sizes.values()) < 3e6


@pytest.mark.parametrize(("name", "least"), [("digits", 0.95), ("mnist", 0.95)])
def test_classifiers_of_the_examples_recognise_their_images(name, least):
    images = np.load(EXAMPLES / f"{name}.npy").transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    labels = np.load(EXAMPLES / f"{name}-labels.npy")
    assert np.array_equal(labels, np.arange(300) % 10)
    with torch.inference_mode():
        found = load_network(EXAMPLES / f"{name}-classifier.safetensors")(torch.from_numpy(images))
    assert (found.argmax(1).numpy() == labels).mean() >= least
