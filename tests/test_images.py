"""Analysis of image runs against curves whose answers are known; figures and command line on the
embedded model.
"""

import json
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from scipy.stats import binom
from typer.testing import CliRunner

import uturn as ut
from forging import instructed
from small import one_line_error
from uturn.cli import app
from uturn.pages import write_study
from uturn.pages.results import PICTURES
from uturn.presets import ImageOptions, image_experiment
from uturn.presets.images import noise_levels
from uturn.presets.options import parsed_levels
from uturn.sources import fashion_mnist
from uturn.studies import draw_study, records_of
from uturn.studies.figure import draw_grid
from uturn.studies.tables import remarks as remarks_of

SIMULATED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "intervals.py"))
NOISE = np.arange(1, 21) / 20
NUMBERS = {
    "index.html",
    "study.zarr",
    "curves.csv",
    "numbers.csv",
    "items.csv",
    "study.png",
    "study.pdf",
}
WITH_IMAGES = NUMBERS | {"grid.png", "grid.pdf"}
FIRST, LAST = 0.30, 0.04  # floors of the similarity of the first layer and of the logits


def falling(noise, location, width, bottom):
    """A straight fall from 1 to `bottom`, around its half at `location`; quarter to three
    quarters take `width`.
    """
    return bottom + (1 - bottom) * np.clip(0.5 - (noise - location) / (2 * width), 0, 1)


def forged(
    star=0.53, width=0.1, num_items=400, num_layers=4, noise=NOISE, prefix="", classes=10, seed=0
):
    """A run whose class is lost around t/T = `star`, first layer smoothly around 0.5, logits
    steeply around 0.6.
    """
    noise = np.asarray(noise)
    rng = np.random.default_rng(seed)
    original = np.arange(num_items) % classes
    bottom = 1 / classes
    # Each item loses its class once: shares of the items are the curve, in steps of 1/items.
    share = falling(noise, star, width, bottom)
    same = (rng.permutation(num_items)[None] < np.round(share * num_items)[:, None]).astype(float)
    depth = np.linspace(0, 1, num_layers)
    curves = [
        falling(noise, 0.5 + 0.1 * d, 0.24 - 0.16 * d, FIRST + (LAST - FIRST) * d) for d in depth
    ]
    scatter = 0.05 * rng.standard_normal(num_items)
    similarity = (
        np.stack(curves, axis=-1)[:, None]
        + ((noise > 0)[:, None] * (scatter - scatter.mean()))[..., None]
    )
    dims = ("noise", "item", "trajectory")
    sigma = np.tan(np.pi / 2 * noise)
    with np.errstate(divide="ignore"):
        log_snr = -2 * np.log(sigma)
    run = xr.Dataset(
        {
            f"{prefix}same_class": (dims, same[..., None]),
            f"{prefix}similarity": (
                (*dims, f"{prefix}network_layer"),
                similarity.clip(-1, 1)[:, :, None],
            ),
            f"{prefix}predicted_class": (
                dims,
                np.where(same > 0, original, (original + 1) % classes)[..., None].astype(float),
            ),
            f"{prefix}original_class": (dims[:2], np.tile(original, (len(noise), 1)).astype(float)),
        },
        coords={
            "noise": noise,
            "step": ("noise", 100 * noise),
            "t_over_T": ("noise", noise),
            "abar": ("noise", np.cos(np.pi / 2 * noise) ** 2),
            "log_snr": ("noise", log_snr),
            "sigma": ("noise", sigma),
            "label": ("item", original),
            f"{prefix}network_layer": [f"block{k}" for k in range(num_layers - 1)] + ["logits"],
        },
        attrs=probes(prefix.removesuffix("_")),
    )
    return instructed(run)


def probes(*names):
    """The attribute of a run with classifiers of these names, which says how readings are read."""
    tables = [
        {"type": "network_layers", "classifier": f"timm:{name}", "name": name or None}
        for name in names
    ]
    return {"spec": json.dumps({"probes": tables})}


def merged(**runs):
    """One run with the probes of several; the names are those of the probes."""
    first, *others = runs.values()
    for other in others:
        first = first.assign(other.data_vars).assign_coords(
            {dim: other[dim] for dim in other.dims if "layer" in str(dim)}
        )
    return first.assign_attrs(probes(*runs))


def value(estimates, **labels):
    return float(estimates.sel(estimate="value", **labels))


def of(study, level=None, prefix=""):
    """The reading of the class, or of a layer, in a study."""
    name = (
        f"{prefix}same_class"
        if level is None
        else f"{prefix}similarity, {prefix}network_layer = {level}"
    )
    return study.sel(reading=name)


@pytest.fixture(scope="module")
def known():
    return ut.study(forged())


# --- numbers --------------------------------------------------------------------------------------


def test_transition_width_inversion_and_half_lives_are_recovered(known):
    # Exact but for steps of 1/items in the share and for the corners of the curves between levels.
    assert value(of(known).half_life, axis="noise") == pytest.approx(0.53, abs=0.003)
    assert value(of(known).width, axis="noise") == pytest.approx(0.1, abs=0.006)
    assert float(of(known).chance) == pytest.approx(0.1)
    for k, d in enumerate(np.linspace(0, 1, 4)):
        layer = known.level.values[1 + k]
        assert value(of(known, layer).half_life, axis="noise") == pytest.approx(
            0.5 + 0.1 * d, abs=1e-6
        )
    fine = np.linspace(0.5, 0.75, 100_001)
    gap = falling(fine, 0.6, 0.08, LAST) - falling(fine, 0.5, 0.24, FIRST)
    swap = known.inversion.sel(series="similarity")
    assert value(swap, axis="noise") == pytest.approx(fine[np.argmax(gap < 0)], abs=0.005)
    assert known.level.values.tolist() == ["", "block0", "block1", "block2", "logits"]
    assert (
        set(known.remark.values.tolist())
        == {""}
        == {known.attrs["remark"], known.series_remark.item()}
    )


def test_chance_is_that_of_two_originals():
    """Half of the originals have one predicted class, and a quarter each of two others."""
    run = forged(num_items=400, classes=4)
    run["original_class"] = run.original_class.where(run.original_class != 3, 0)
    assert float(of(ut.study(run)).chance) == pytest.approx(1 / 4 + 1 / 16 + 1 / 16)


def test_the_other_axes_follow(known):
    for places in (
        of(known).half_life,
        known.inversion.sel(series="similarity"),
        of(known, "block2").half_life,
    ):
        t = places.sel(axis="noise")
        np.testing.assert_allclose(places.sel(axis="step"), 100 * t, rtol=1e-12)
        np.testing.assert_allclose(places.sel(axis="sigma"), np.tan(np.pi / 2 * t), rtol=1e-9)
        np.testing.assert_allclose(
            value(places, axis="abar"), np.cos(np.pi / 2 * t[0]) ** 2, rtol=1e-9
        )
        np.testing.assert_allclose(
            value(places, axis="log_snr"), -2 * np.log(np.tan(np.pi / 2 * t[0])), rtol=1e-9
        )
        ends = places.sel(estimate=["low", "high"])
        # Abar falls with noise, its interval still begins below.
        assert (ends[:, 0] <= ends[:, 1]).all()


def test_classifiers_keep_apart():
    found = ut.study(merged(b=forged(0.6, num_layers=2, prefix="b_"), a=forged(0.4, prefix="a_")))
    assert found.probe.values.tolist() == 3 * ["b"] + 5 * ["a"]  # as in the spec
    assert list(dict.fromkeys(found.model.values.tolist())) == ["timm:b", "timm:a"]
    assert found.level.values.tolist() == [
        "",
        "block0",
        "logits",
        "",
        "block0",
        "block1",
        "block2",
        "logits",
    ]
    # P-values by Holm in each classifier.
    assert found.family.values.tolist() == found.probe.values.tolist()
    stars = [value(of(found, prefix=f"{name}_").half_life, axis="noise") for name in "ba"]
    np.testing.assert_allclose(stars, [0.6, 0.4], atol=0.003)
    assert found.series.values.tolist() == ["b_similarity", "a_similarity"]


# --- what cannot be located -----------------------------------------------------------------------


def remarks(run):
    return " | ".join(remarks_of(ut.study(run)))


def test_remarks_name_missing_numbers():
    kept = of(ut.study(forged(noise=NOISE[:6])))
    assert np.isnan(kept.half_life).all()
    assert (
        "less than half of the change occurs up to noise = 0.3, where it is 1" in kept.remark.item()
    )
    single = ut.study(forged(noise=[0.5]))
    assert np.isnan(single.half_life).all()
    assert "fewer than two finite noise levels" in single.attrs["remark"]
    pair = ut.study(forged(noise=[0.3, 0.6]))
    assert "finite noise levels" not in pair.attrs["remark"]
    alone = ut.study(forged(num_items=1))
    assert np.isnan(alone.half_life.sel(estimate=["low", "high"])).all()
    assert np.isfinite(
        alone.half_life.sel(estimate="value", reading=alone.variable == "similarity")
    ).all()
    assert "single original: no intervals" in alone.attrs["remark"]
    assert (
        "chance equals the value without noise: no half-life"
        in of(ut.study(forged(classes=1))).remark.item()
    )
    assert "series" not in ut.study(forged().isel(network_layer=[0])).dims
    assert "swap order" in remarks(forged().isel(network_layer=[-1, 0]))
    unknown = ut.study(forged().drop_vars("original_class"))
    assert np.isnan(of(unknown).chance)
    # The last value is the floor.
    assert value(of(unknown).half_life, axis="noise") == pytest.approx(0.53, abs=0.003)
    assert "the value at noise 0.9 is used as the chance level" in remarks(forged(noise=NOISE[:18]))


@pytest.mark.parametrize("run", [forged(noise=[0.5]), forged(num_items=1)])
def test_figures_are_drawn_without_missing_numbers(run, tmp_path):
    write_study(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NUMBERS


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_intervals_hold_the_truth():
    design, runs = SIMULATED["IMAGES"]["40 originals, 4 U-turns, items differ"], 60
    found = [SIMULATED["image_run"](design, 5000 + seed) for seed in range(runs)]
    for name in found[0]:
        truth, value, low, high = np.array([one[name] for one in found]).T
        assert np.isfinite(low[np.isfinite(value)]).all()
        # Coverage of .92 or more: one false alarm in 5,000.
        assert ((low <= truth) & (truth <= high)).sum() >= binom.ppf(2e-4, runs, 0.92), name


# --- the experiment -------------------------------------------------------------------------------


def test_levels_are_steps_of_the_chain():
    assert noise_levels(10, 250) == [k / 250 for k in range(25, 251, 25)]
    for steps in (7, 50, 250):
        for count in range(1, steps + 1):
            k = np.array(noise_levels(count, steps)) * steps
            np.testing.assert_allclose(k, np.round(k), atol=1e-9)
            assert len(set(np.round(k))) == count
            assert round(k[-1]) == steps
    assert noise_levels([0.5, 1], 50) == [0.5, 1.0]
    assert parsed_levels("1") == 1
    assert parsed_levels("1.0") == [1.0]


def test_spec_of_an_image_experiment():
    experiment = image_experiment(
        steps=50, levels=5, items=7, keep=3, classifiers=["fashion_mnist", "fashion_mnist"]
    )
    spec = experiment.to_dict()
    assert spec["corruption"]["noise"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [probe.get("name") for probe in spec["probes"]] == [
        "fashion_mnist",
        "fashion_mnist_2",
        None,
    ]
    assert spec["probes"][-1]["first"] == 3
    assert spec["source"] == {"type": "fashion_mnist"}
    # A run with fewer items than are kept can be extended.
    assert (
        image_experiment(items=2).to_dict()["probes"]
        == image_experiment(items=200).to_dict()["probes"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "photos"}, "classifiers = "),
        (
            {"classifiers": ["fashion_mnist"], "weights": ["A", "B"]},
            "number of weights = 2: expected 1",
        ),
        ({"levels": 101}, "levels = 101: expected at most"),
        ({"levels": [0.5, 0.5]}, "different numbers"),
        ({"lvels": 3}, "lvels = 3"),
    ],
)
def test_mistakes_are_named(options, message):
    with one_line_error(message):
        image_experiment(**options)


def test_options_mean_the_same_in_python_toml_and_on_the_command_line(tmp_path, monkeypatch):
    python = image_experiment(
        classifiers=("fashion_mnist", "fashion_mnist"),
        weights=[None, None],
        steps=5,
        levels=[0.4, 1],
        compare_labels=False,
    )
    asked = []

    def run(store, experiment, running):
        asked.append(experiment)
        return xr.Dataset(attrs={"missing_tasks": 1})

    monkeypatch.setattr("uturn.cli.running.run_into", run)
    both = (
        "--classifier",
        "fashion_mnist",
        "--classifier",
        "fashion_mnist",
        "--weights",
        "",
        "--weights",
        "",
    )
    typed = (*both, "--steps", 5, "--levels", "0.4,1", "--no-compare-labels")
    assert command("--out", tmp_path, *typed).exit_code == 0
    assert asked[-1].to_dict() == python.to_dict()
    assert command("--out", tmp_path).exit_code == 0
    assert asked[-1].to_dict() == image_experiment().to_dict()  # the same defaults


def test_the_options_of_the_docs_make_an_experiment():
    text = (Path(__file__).parents[1] / "docs" / "images.md").read_text()
    options = eval(
        re.search(r"ImageOptions\(.*?\n\)", text, re.S)[0], {"ImageOptions": ImageOptions}
    )
    assert options.experiment().to_dict()["probes"][1]["weights"] == "IMAGENET1K_V1"


# --- figures --------------------------------------------------------------------------------------


NAMES = [
    *("猫 cat", "قطة", "🐈 cat", "$x_1$ cost $5", "a\nb\tc", "under_score"),
    *(r"\frac{1}{2}", "[red]a[/]", "%#&~^{}", "हिन्दी", "\u202eab"),
]


def test_names_in_any_script_are_drawn_or_escaped(tmp_path):
    import matplotlib.pyplot as plt

    run = forged(num_items=50).assign_coords(network_layer=["".join(NAMES), "b", "c", "logits"])
    data = ut.study(run)
    rng = np.random.default_rng(0)
    data = data.assign(
        original=(("item", "channel", "row", "column"), rng.random((len(NAMES), 1, 4, 4))),
        image=(
            ("shown_noise", "item", "channel", "row", "column"),
            rng.random((2, len(NAMES), 1, 4, 4)),
        ),
        image_same_class=(
            ("shown_noise", "item"),
            np.zeros((2, len(NAMES))),
            {"judge": "same_class"},
        ),
    ).assign_coords(shown_noise=[0.5, 1.0], item_name=("item", NAMES))
    data.attrs["description"] = " ".join(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs that are missing
        # That it calls pyparsing by old names is no matter of glyphs.
        warnings.simplefilter("ignore", DeprecationWarning)
        # A grid has eight rows.
        rows = [data.isel(item=some) for some in (slice(8), slice(8, None))]
        figures, labels = [draw_study(data), *map(draw_grid, rows)], []
        for figure in figures:
            for ending in ("png", "pdf"):
                figure.savefig(tmp_path / f"figure.{ending}")
            labels += [
                label.get_text()
                for axis in figure.axes
                for label in axis.get_yticklabels()
                if figure is not figures[0]
            ]
            plt.close(figure)
    assert len(labels) == len(NAMES)
    assert labels[0] in ("猫 cat", r"\u732b cat")
    assert labels[1] == "قطة"
    assert labels[2] in ("🐈 cat", r"\U0001f408 cat")
    assert labels[3:6] == [r"\$x_1\$ cost \$5", r"a\nb\tc", "under_score"]
    assert labels[-1] == r"\u202eab"


# --- the embedded model, by the command line ------------------------------------------------------

SMALL = ["--steps", "5", "--levels", "3", "--items", "6", "--keep", "2", "--workers", "1"]


def command(*arguments):
    return CliRunner().invoke(app, ["images", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("images") / "out"
    done = command("--out", out, *SMALL, "--save-images")
    assert done.exit_code == 0, done.output
    return out, done.output


def test_command_writes_everything(results):
    out, output = results
    assert {path.name for path in out.iterdir()} == {*WITH_IMAGES, PICTURES, "run"}
    for name in ("study", "grid"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    assert "half of the way from start to chance" in output
    assert "logits falls below" in " ".join(output.split())
    assert "UNet2DModel, unconditional" in output
    run = xr.open_dataset(out / "run", engine="uturn").load()
    kept = xr.open_zarr(out / "study.zarr").load()
    np.testing.assert_array_equal(kept.half_life, ut.study(run).half_life)
    np.testing.assert_array_equal(kept.original, fashion_mnist.load_test_set()[0][:2])
    assert kept.item_name.values.tolist() == ["item 0, T-shirt/top", "item 1, Trouser"]


def test_png_files_are_the_images(results):
    out, _ = results
    run = xr.open_dataset(out / "run", engine="uturn").load()
    assert len(list((out / "reconstructions").iterdir())) == 2 * (3 + 1)
    pixels = np.asarray(Image.open(out / "reconstructions" / "item1-noise0.6000-trajectory0.png"))
    np.testing.assert_array_equal(
        pixels, np.round((run.image.sel(noise=0.6, item=1, trajectory=0, channel=0) + 1) * 127.5)
    )
    original = np.asarray(Image.open(out / "reconstructions" / "item1-original.png"))
    np.testing.assert_allclose(
        original / 127.5 - 1, fashion_mnist.load_test_set()[0][1, 0], atol=1e-6
    )


def test_missing_originals_leave_empty_places(results, tmp_path):
    out, _ = results
    run = xr.open_dataset(out / "run", engine="uturn").load()
    spec = json.loads(run.attrs["spec"])
    for source in (
        {"type": "array", "path": str(tmp_path / "gone.npy")},
        {"type": "array", "path": str(tmp_path / "other.npy")},
    ):
        # Other images than those of the run.
        np.save(tmp_path / "other.npy", np.zeros((6, 28, 28), np.float32))
        run.attrs["spec"] = json.dumps({**spec, "source": source})
        for some in (run, run.assign(image=run.image.expand_dims(clone=2, axis=3))):
            found = records_of(some)
            assert np.isnan(found.original).all()
            assert np.isfinite(found.image).all()


@pytest.mark.usefixtures("unsaved_figures")
def test_results_are_replaced_or_left_alone(results, tmp_path):
    out, _ = results
    run = xr.open_dataset(out / "run", engine="uturn").load()
    write_study(run, tmp_path, save_images=True)
    write_study(run.drop_vars("image"), tmp_path)
    kept = NUMBERS | {PICTURES}  # no old figure is left over, pictures stay
    assert {path.name for path in tmp_path.iterdir()} == kept
    (tmp_path / PICTURES / "holiday.png").write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=r"\['holiday.png'\]: expected only pictures that were written there"
    ):
        write_study(run, tmp_path, save_images=True)
    assert (tmp_path / PICTURES / "holiday.png").read_bytes() == b"mine"
    (tmp_path / PICTURES / "holiday.png").unlink()
    with pytest.raises(ValueError, match="is a store itself"):
        write_study(run, out / "run")
    before = (tmp_path / "curves.csv").read_bytes()
    with pytest.raises(ValueError, match="kept images = 0: expected at least one for save_images"):
        write_study(run.drop_vars("image"), tmp_path, save_images=True)
    assert (tmp_path / "curves.csv").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a folder; it is a file"):
        write_study(run, tmp_path / "file")


@pytest.mark.usefixtures("unsaved_figures")
def test_pictures_of_near_levels_have_files_of_their_own(results, tmp_path):
    run = xr.open_dataset(results[0] / "run", engine="uturn").load().drop_vars("t_over_T")
    write_study(run, tmp_path / "far", save_images=True)
    near = run.assign_coords(noise=("noise", np.arange(run.sizes["noise"]) * 1e-6, run.noise.attrs))
    write_study(near, tmp_path / "near", save_images=True)
    assert len(list((tmp_path / "near" / PICTURES).iterdir())) == len(
        list((tmp_path / "far" / PICTURES).iterdir())
    )


SMALL_CLASSIFIER = """
import torch
from torch import nn


def colours():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 6 * 6, 3)), lambda images: images / 2
"""


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_a_class_conditional_checkpoint_with_two_classifiers(tmp_path, monkeypatch):
    """A guided-diffusion checkpoint, colour images from files with labels, classifiers of one's
    own.
    """
    import sys

    from adm_checkpoints import preset, save_checkpoint

    options = {"num_classes": 3}
    save_checkpoint(tmp_path / "model.pt", **options)
    (tmp_path / "own_classifiers.py").write_text(SMALL_CLASSIFIER)
    monkeypatch.syspath_prepend(tmp_path)
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    )
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    done = command(
        *(
            "--model",
            tmp_path / "model.pt",
            "--preset",
            preset(**options),
            "--steps",
            3,
            "--levels",
            "0.4,1.0",
            "--items",
            6,
        ),
        *(
            "--data",
            tmp_path / "images.npy",
            "--labels",
            tmp_path / "labels.npy",
            "--out",
            tmp_path / "out",
            "--workers",
            1,
        ),
        *(
            "--classifier",
            "own_classifiers:colours",
            "--classifier",
            "own_classifiers:colours",
            "--device",
            "cpu",
        ),
    )
    sys.modules.pop("own_classifiers", None)
    assert done.exit_code == 0, done.exception
    assert "conditioned on the true label (3 classes)" in done.output
    found = xr.open_zarr(tmp_path / "out" / "study.zarr").load()
    assert list(dict.fromkeys(found.probe.values.tolist())) == ["colours", "colours_2"]
    assert found.sizes["channel"] == 3
    both = [found.curve.sel(reading=f"{name}_same_class") for name in ("colours", "colours_2")]
    np.testing.assert_array_equal(*both)  # it is one classifier
    assert np.isfinite(found.curve.sel(reading="colours_label_top1")).all()
