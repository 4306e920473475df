"""`uturn atlas`: its file, its runs against those of `uturn images`, its numbers against a model
whose law is known.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from small import one_line_error
from uturn.cli import app
from uturn.measures.cloning import covariance_eigenvalues, largest_eigenvalue
from uturn.measures.statistics import with_interval
from uturn.pages.sections import Collected, Reader
from uturn.presets import ImageOptions
from uturn.studies.plotting.style import style
from uturn.tools.atlas.figure import draw_atlas
from uturn.tools.atlas.file import AtlasRow, read_atlas
from uturn.tools.atlas.numbers import atlas_section, entries_of, frame_of
from uturn.tools.atlas.rows import RESULTS, measure_atlas

ROOT = Path(__file__).parents[3]
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
keep = 0

[[models]]
name = "two"
title = "two images"

[[models]]
name = "absent"
model = "/no/such/folder"

[[models]]
name = "plain"
trajectories = 1
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the atlas file, its rows, the lines that were announced, and the table."""
    folder = tmp_path_factory.mktemp("atlas")
    (folder / "two_images.py").write_text(MODULE)
    (folder / "atlas.toml").write_text(FILE)
    pattern = np.where(np.arange(8) % 2, 1, -1)[:, None] * np.ones((40, 1, 8, 8))
    sign = np.where(np.arange(40) % 2, 1, -1)
    np.save(
        folder / "images.npy", (HEIGHT * sign[:, None, None, None] * pattern).astype(np.float32)
    )
    np.save(folder / "labels.npy", np.arange(40) % 2)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        rows = read_atlas(folder / "atlas.toml")
        yield folder, rows, told, measure_atlas(rows, folder / "out", announce=told.append)


def of(found, name):
    [one] = np.flatnonzero(found.name == name)
    return found.isel(entry=one)


# --- the file -------------------------------------------------------------------------------------


def test_defaults_hold_for_all_rows_and_rows_override_them(finished):
    _, rows, _, _ = finished
    assert [row.name for row in rows] == ["two", "absent", "plain"]
    assert [row.model for row in rows] == [
        "two_images:denoiser",
        "/no/such/folder",
        "two_images:denoiser",
    ]
    assert [(row.steps, row.trajectories) for row in rows] == [(20, 2), (20, 2), (20, 1)]
    assert [row.title for row in rows] == ["two images", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[models]]\nname = 'a'\nstepz = 3", r"row 1 \(name = 'a'\).*stepz"),
        (
            "[[models]]\nname = 'a'\n[[models]]\nname = 'A'",
            r"name = 'A': expected another name; it is taken",
        ),
        ("[[models]]\nname = '../a'", r"name = '\.\./a'"),
        ("[[models]]\nname = 'a'\nlike = 'b'", r"row 1 \(name = 'a'\).*like"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    (tmp_path / "atlas.toml").write_text(text)
    with one_line_error(message) as caught:
        read_atlas(tmp_path / "atlas.toml")
    assert "atlas.toml" in str(caught.value)


# --- the runs -------------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_uturn_images(finished):
    _, rows, _, found = finished
    study = ut.study(ut.run(ImageOptions.experiment(rows[0]))).sel(axis="log_snr")
    two, of_class = of(found, "two"), study.sel(reading="same_class")
    layers = study.half_life[study.variable == "similarity"]
    assert np.isfinite(two.transition).all()
    for name, numbers in (
        ("transition", of_class.half_life),
        ("width", of_class.width),
        ("quarter", of_class.place.sel(share=0.25)),
        ("three_quarters", of_class.place.sel(share=0.75)),
        ("first_layer", layers[0]),
        ("last_layer", layers[-1]),
        ("inversion", study.inversion[0]),
    ):
        np.testing.assert_array_equal(two[name], numbers)


@pytest.mark.slow
def test_the_last_layer_is_the_last():
    row = AtlasRow(name="fashion", steps=5, levels=[0.2, 0.4, 0.6, 0.8, 1.0], items=8, keep=0)
    run = ut.run(ImageOptions.experiment(row))
    (entry,) = entries_of(row, run)
    study = ut.study(run).sel(axis="log_snr")
    half_lives = study.half_life[study.variable == "similarity"].values
    assert half_lives[0, 0] != half_lives[-1, 0]
    np.testing.assert_array_equal(entry.places["first_layer"], half_lives[0])
    np.testing.assert_array_equal(entry.places["last_layer"], half_lives[-1])


def test_the_place_of_two_images(finished):
    """Two points at distance 2d, d^2 = 64 HEIGHT^2, are half lost where they overlap: d^2 SNR is
    about 1.
    """
    _, _, _, found = finished
    assert abs(float(of(found, "two").transition[0]) + np.log(64 * HEIGHT**2)) < 1.5


def test_a_row_that_fails_does_not_stop_the_others(finished):
    _, _, told, found = finished
    assert found.name.values[found.is_failed.values].tolist() == ["absent"]
    assert of(found, "absent").remark.item().startswith("failed: ")
    failures = [line for line in told if line.startswith("absent: failed: ")]
    assert len(failures) == 1
    assert "\n" not in failures[0]
    assert told[-1] == "plain (3 of 3)"


def test_files(finished):
    folder, _, _, found = finished
    out = folder / "out"
    assert {path.name for path in out.glob("atlas.*")} | {"index.html"} == set(RESULTS)
    assert (out / "index.html").exists()
    assert {path.parent.name for path in out.glob("*/run.json")} == {"two", "plain"}
    xr.testing.assert_identical(
        xr.open_zarr(out / "atlas.zarr").load().drop_attrs(), found.drop_attrs()
    )
    lines = pandas.read_csv(out / "atlas.csv", keep_default_na=True).set_index("name")
    assert lines.transition_low["two"] == pytest.approx(float(of(found, "two").transition[1]))
    assert np.isnan(lines.transition["absent"])
    assert lines.remark["absent"].startswith("failed: ")
    assert list(frame_of(found).name) == ["two", "absent", "plain"]


def test_the_section_of_the_page_has_a_row_for_each_model(finished):
    folder, _, _, found = finished
    section = atlas_section(folder / "out" / "atlas.zarr", Reader(Collected()))
    rows = {row[0]: row[1:] for row in section.overview.rows}
    assert list(rows) == ["two images", "absent", "plain"]
    assert rows["absent"] == ("",) * 5
    assert rows["plain"][0] == with_interval(of(found, "plain").transition.values)
    assert any(line.startswith("absent: failed: ") for line in section.remarks)
    (card,) = section.cards
    assert card.place[0] == pytest.approx(float(found.transition.sel(estimate="value").median()))


def test_finished_rows_are_not_computed_again(finished, monkeypatch):
    """The command, twice more: the network is called only when it is loaded; a larger row adds
    what it lacks.
    """
    folder, _, _, found = finished
    monkeypatch.chdir(folder)
    calls = sys.modules["two_images"].CALLS

    def called(*arguments):
        calls.clear()
        done = CliRunner().invoke(
            app, ["atlas", "atlas.toml", "--out", "out", "--workers", "1", *arguments]
        )
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
    # Calls before a run.
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])
    _, more = called("--only", "plain")
    # The items of the last task, 20 .. 31, are measured again with the four new ones.
    assert 0 < sum(more) <= 16 * 110


def test_figure(finished):
    _, _, _, found = finished
    title = found.title.values.astype(object)
    title[-1] = r"price $\foo$"  # a dollar begins no formula
    figure = draw_atlas(found.assign_coords(title=("entry", title)))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "two images",
        "absent",
        r"price \$\foo\$",
    ]
    left, right = axes.get_xlim()
    assert left > right  # more noise to the right
    drawn = [
        float(line.get_xdata()[0])
        for line in axes.lines
        if line.get_markersize() == 10 and len(line.get_xdata()) == 1
    ]
    places = {place for place in drawn if np.isfinite(place)}
    assert places == {float(of(found, name).transition[0]) for name in ("two", "plain")}
    assert [text.get_text() for text in axes.texts].count("failed") == 1
    with style() as plt:
        plt.close(figure)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_largest_eigenvalue_is_the_first_of_all(shape):
    data = np.random.default_rng(0).normal(size=shape)
    assert largest_eigenvalue(data) == pytest.approx(covariance_eigenvalues(data)[0])
    assert largest_eigenvalue(np.ones((3, 4))) == 0


# --- the file in examples/atlas -------------------------------------------------------------------


def test_the_example_names_models_that_are_here():
    rows = read_atlas(ROOT / "examples" / "atlas" / "here.toml")
    assert {row.model for row in rows} == {"examples/atlas/mnist", "fashion_mnist"}
    for row in rows:
        assert row.model == "fashion_mnist" or all(
            (ROOT / path).exists() for path in (row.model, row.data, *row.classifiers)
        )
