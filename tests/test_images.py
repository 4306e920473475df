"""Analysis of image runs against curves whose answers are known; figures and command line on the embedded model."""

import json
import runpy
import shutil
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
from uturn.cli import app
from uturn.cli.presets import ImageOptions, image_experiment
from uturn.cli.presets.images import noise_levels
from uturn.cli.presets.options import parsed_levels, probe_names
from uturn.cli.printing import show
from uturn.engine import measuring
from uturn.pages import write_study
from uturn.pages.results import PICTURES
from uturn.sources import fashion_mnist
from uturn.studies import as_data, draw_study, records_of, summary
from uturn.studies.grid import draw_grid
from uturn.studies.plotting.style import fonts_for
from uturn.studies.runs import describe, missing_tasks
from uturn.studies.tables import panels_of
from uturn.studies.tables import remarks as remarks_of

SIMULATED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "intervals.py"))
NOISE = np.arange(1, 21) / 20
NUMBERS = {"index.html", "study.zarr", "study.json", "curves.csv", "numbers.csv", "items.csv", "study.png", "study.pdf"}
WITH_IMAGES = NUMBERS | {"grid.png", "grid.pdf"}
FIRST, LAST = 0.30, 0.04  # floors of the similarity of the first layer and of the logits


def falling(noise, location, width, bottom):
    """A straight fall from 1 to `bottom`, around its half at `location`; quarter to three quarters take `width`."""
    return bottom + (1 - bottom) * np.clip(0.5 - (noise - location) / (2 * width), 0, 1)


def forged(star=0.53, width=0.1, num_items=400, num_layers=4, noise=NOISE, prefix="", classes=10, seed=0):
    """A run whose class is lost around t/T = `star`, first layer smoothly around 0.5, logits steeply around 0.6."""
    noise = np.asarray(noise)
    rng = np.random.default_rng(seed)
    original = np.arange(num_items) % classes
    bottom = 1 / classes
    # Each item loses its class once: shares of the items are the curve, in steps of 1/items.
    share = falling(noise, star, width, bottom)
    same = (rng.permutation(num_items)[None] < np.round(share * num_items)[:, None]).astype(float)
    depth = np.linspace(0, 1, num_layers)
    curves = [falling(noise, 0.5 + 0.1 * d, 0.24 - 0.16 * d, FIRST + (LAST - FIRST) * d) for d in depth]
    scatter = 0.05 * rng.standard_normal(num_items)
    similarity = np.stack(curves, axis=-1)[:, None] + ((noise > 0)[:, None] * (scatter - scatter.mean()))[..., None]
    dims = ("noise", "item", "trajectory")
    sigma = np.tan(np.pi / 2 * noise)
    with np.errstate(divide="ignore"):
        log_snr = -2 * np.log(sigma)
    run = xr.Dataset(
        {
            f"{prefix}same_class": (dims, same[..., None]),
            f"{prefix}similarity": ((*dims, f"{prefix}network_layer"), similarity.clip(-1, 1)[:, :, None]),
            f"{prefix}predicted_class": (dims, np.where(same > 0, original, (original + 1) % classes)[..., None].astype(float)),
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
    tables = [{"type": "network_layers", "classifier": f"timm:{name}", "name": name or None} for name in names]
    return {"spec": json.dumps({"probes": tables})}


def merged(**runs):
    """One run with the probes of several; the names are those of the probes."""
    first, *others = runs.values()
    for other in others:
        first = first.assign(other.data_vars).assign_coords({dim: other[dim] for dim in other.dims if "layer" in str(dim)})
    return first.assign_attrs(probes(*runs))


def value(estimates, **labels):
    return float(estimates.sel(estimate="value", **labels))


def of(study, level=None, prefix=""):
    """The reading of the class, or of a layer, in a study."""
    name = f"{prefix}same_class" if level is None else f"{prefix}similarity, {prefix}network_layer = {level}"
    return study.sel(reading=name)


@pytest.fixture(scope="module")
def known():
    return ut.study(forged())


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_transition_width_inversion_and_half_lives_are_recovered(known):
    # Exact but for steps of 1/items in the share and for the corners of the curves between levels.
    assert value(of(known).half_life, axis="noise") == pytest.approx(0.53, abs=0.003)
    assert value(of(known).width, axis="noise") == pytest.approx(0.1, abs=0.006)
    assert float(of(known).chance) == pytest.approx(0.1)
    for k, d in enumerate(np.linspace(0, 1, 4)):
        layer = known.level.values[1 + k]
        assert value(of(known, layer).half_life, axis="noise") == pytest.approx(0.5 + 0.1 * d, abs=1e-6)
    fine = np.linspace(0.5, 0.75, 100_001)
    gap = falling(fine, 0.6, 0.08, LAST) - falling(fine, 0.5, 0.24, FIRST)
    swap = known.inversion.sel(series="similarity")
    assert value(swap, axis="noise") == pytest.approx(fine[np.argmax(gap < 0)], abs=0.005)
    assert known.level.values.tolist() == ["", "block0", "block1", "block2", "logits"]
    assert set(known.remark.values.tolist()) == {""} == {known.attrs["remark"], known.series_remark.item()}


def test_chance_is_that_of_two_originals():
    """Half of the originals have one predicted class, and a quarter each of two others."""
    run = forged(num_items=400, classes=4)
    run["original_class"] = run.original_class.where(run.original_class != 3, 0)
    assert float(of(ut.study(run)).chance) == pytest.approx(1 / 4 + 1 / 16 + 1 / 16)


def test_curves_start_at_the_identity(known):
    assert known.noise[0] == 0
    assert (known.curve.isel(noise=0) == 1).all()
    assert known.step[0] == 0
    assert known.abar[0] == 1
    run = forged()
    curves = known.curve.sel(estimate="value")[:, 1:]
    np.testing.assert_allclose(curves[1:].T, run.similarity.mean(("item", "trajectory")))
    np.testing.assert_allclose(curves[0], run.same_class.mean(("item", "trajectory")))


def test_the_other_axes_follow(known):
    for places in (of(known).half_life, known.inversion.sel(series="similarity"), of(known, "block2").half_life):
        t = places.sel(axis="noise")
        np.testing.assert_allclose(places.sel(axis="step"), 100 * t, rtol=1e-12)
        np.testing.assert_allclose(places.sel(axis="sigma"), np.tan(np.pi / 2 * t), rtol=1e-9)
        np.testing.assert_allclose(value(places, axis="abar"), np.cos(np.pi / 2 * t[0]) ** 2, rtol=1e-9)
        np.testing.assert_allclose(value(places, axis="log_snr"), -2 * np.log(np.tan(np.pi / 2 * t[0])), rtol=1e-9)
        ends = places.sel(estimate=["low", "high"])
        assert (ends[:, 0] <= ends[:, 1]).all()  # abar falls with noise, its interval still begins below


def test_between_the_identity_and_the_first_level_axes_are_finite():
    found = of(ut.study(forged(star=0.02, width=0.01)))
    assert "half of the change is done below the smallest measured noise, 0.05" in str(found.remark.item())
    assert np.isfinite(found.half_life.sel(estimate="value")).all()
    assert 0 < value(found.half_life, axis="sigma") < np.tan(np.pi / 2 * 0.05)
    assert found.half_life.sel(axis="log_snr", estimate="high") == np.inf  # t* can be anywhere from the identity on


def test_intervals_hold_the_truth_and_shrink_with_the_root_of_the_items():
    widths, places = [], []
    for items in (100, 1600):
        found = of(ut.study(forged(num_items=items))).sel(estimate=["low", "high"])
        low, high = found.half_life.sel(axis="noise")
        assert low < 0.53 < high
        places.append(float(high - low))
        widths.append(float(found.curve.sel(noise=0.5).diff("estimate").item()))
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)
    assert places[0] >= places[1] == pytest.approx(0.05)  # t* not below the distance of the noise levels


def test_order_of_levels_and_a_measured_identity_do_not_matter(known):
    run = forged(noise=np.r_[0, NOISE]).isel(noise=np.random.default_rng(0).permutation(21))
    found = ut.study(run)
    for name in ("half_life", "width", "curve", "inversion"):
        np.testing.assert_allclose(found[name], known[name], atol=1e-12)


def test_classifiers_keep_apart():
    found = ut.study(merged(b=forged(0.6, num_layers=2, prefix="b_"), a=forged(0.4, prefix="a_")))
    assert found.probe.values.tolist() == 3 * ["b"] + 5 * ["a"]  # as in the spec
    assert list(dict.fromkeys(found.model.values.tolist())) == ["timm:b", "timm:a"]
    assert found.level.values.tolist() == ["", "block0", "logits", "", "block0", "block1", "block2", "logits"]
    assert found.family.values.tolist() == found.probe.values.tolist()  # p-values by Holm in each classifier
    stars = [value(of(found, prefix=f"{name}_").half_life, axis="noise") for name in "ba"]
    np.testing.assert_allclose(stars, [0.6, 0.4], atol=0.003)
    assert found.series.values.tolist() == ["b_similarity", "a_similarity"]
    json.dumps(as_data(found), allow_nan=False)


def test_distances_of_each_classifier_are_a_family_of_their_own():
    run = merged(b=forged(prefix="b_", num_items=20), a=forged(prefix="a_", num_items=20))
    found = ut.study(instructed(run.assign({f"{name}_distance": 1 - run[f"{name}_similarity"] for name in "ab"})))
    assert set(found.family.values.tolist()) == {"a", "b", "a_distance", "b_distance"}


def test_the_class_stands_first():
    run = forged(num_items=20)
    found = ut.study(run[["similarity", "same_class", "original_class"]].assign_attrs(run.attrs))
    table = next(summary(found))
    assert next(iter(table.columns[0].cells)) == "same_class"
    assert table.title.endswith("t* is that of same_class")
    assert [title for title, _ in panels_of(found)] == ["class", "layers"]


def test_agreement_with_labels_leaves_out_items_without_one():
    run = forged(num_items=40)
    right = run.same_class.where(run.label < 5)  # half of the items have a label
    run = run.assign(label_top1=right).assign_coords(label=run.label.where(run.label < 5, -1))
    found = ut.study(run).curve.sel(reading="label_top1")
    np.testing.assert_allclose(found.sel(estimate="value")[1:], right.mean(("item", "trajectory")))
    assert value(found.isel(noise=0)) == 1  # predicted classes of the originals are their labels here
    assert np.isfinite(found).all()


# --- what cannot be located -----------------------------------------------------------------------------------------------


def remarks(run):
    return " | ".join(remarks_of(ut.study(run)))


def test_remarks_name_missing_numbers():
    kept = of(ut.study(forged(noise=NOISE[:6])))
    assert np.isnan(kept.half_life).all()
    assert "less than half of the change occurs up to noise = 0.3, where it is 1" in kept.remark.item()
    single = ut.study(forged(noise=[0.5]))
    assert np.isnan(single.half_life).all()
    assert "fewer than two finite noise levels" in single.attrs["remark"]
    alone = ut.study(forged(num_items=1))
    assert np.isnan(alone.half_life.sel(estimate=["low", "high"])).all()
    assert np.isfinite(alone.half_life.sel(estimate="value", reading=alone.variable == "similarity")).all()
    assert "single original: no intervals" in alone.attrs["remark"]
    assert "chance equals the value without noise: no half-life" in of(ut.study(forged(classes=1))).remark.item()
    assert "series" not in ut.study(forged().isel(network_layer=[0])).dims
    assert "swap order" in remarks(forged().isel(network_layer=[-1, 0]))
    unknown = ut.study(forged().drop_vars("original_class"))
    assert np.isnan(of(unknown).chance)
    assert value(of(unknown).half_life, axis="noise") == pytest.approx(0.53, abs=0.003)  # the last value is the floor
    assert "the value at noise 0.9 is used as the chance level" in remarks(forged(noise=NOISE[:18]))


def test_remarks_name_uncertain_numbers(known):
    run = forged(num_items=40)
    gap = 0.1 * np.random.default_rng(0).standard_normal((20, 40))
    gap += np.where(NOISE < 0.6, 0.002, -0.002)[:, None] - gap.mean(1, keepdims=True)  # swaps, far below its errors of .016
    run.similarity[..., -1] = run.similarity[..., 0] + gap[..., None]
    found = ut.study(run)
    assert np.isfinite(found.inversion.sel(axis="noise")).all()
    assert "not sure" in found.series_remark.item()
    run.similarity[..., -1] += np.where(NOISE < 0.6, 0.0, -0.1)[:, None, None]
    assert "not sure" not in remarks(run)
    few = of(ut.study(forged(num_items=10, noise=NOISE[:11])))
    assert "interval of the half-life reaches the largest measured noise, 0.55" in few.remark.item()
    assert "reaches" not in of(known).remark.item()


@pytest.mark.parametrize("run", [forged(noise=[0.5]), forged(num_items=1), forged(noise=NOISE[:6]), forged(num_layers=1)])
def test_figures_are_drawn_without_missing_numbers(run, tmp_path):
    write_study(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NUMBERS


def test_unfinished_runs_are_counted_and_refused(tmp_path):
    run = forged(num_items=50)
    assert missing_tasks(run) == 0
    run = run.assign_attrs(missing_tasks=2)  # as stores do, see tests/test_store.py
    with pytest.raises(ValueError, match="not finished: 2 tasks are missing"):
        write_study(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- intervals -------------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth():
    design, runs = SIMULATED["IMAGES"]["40 originals, 4 U-turns, items differ"], 100
    found = [SIMULATED["image_run"](design, 5000 + seed) for seed in range(runs)]
    for name in found[0]:
        truth, value, low, high = np.array([one[name] for one in found]).T
        assert np.isfinite(low[np.isfinite(value)]).all()
        # Coverage of .92 or more: one false alarm in 5,000.
        assert ((low <= truth) & (truth <= high)).sum() >= binom.ppf(2e-4, runs, 0.92), name


def test_intervals_end_where_the_numbers_do(known):
    few = ut.study(forged(num_items=5))
    for found in (known, few):
        for name in ("half_life", "inversion", "width"):
            noise = found[name].sel(axis="noise")
            assert ((noise >= 0) & (noise <= 1)).all(), name
        assert (found.width >= 0).all()
        assert ((of(found).curve >= 0) & (of(found).curve <= 1)).all()
        assert (abs(found.curve) <= 1).all()


# --- the experiment --------------------------------------------------------------------------------------------------------


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


def test_names_of_probes_are_different_identifiers():
    names = probe_names(
        ["torchvision:resnet50", "a/résnet 50.safetensors", "timm:resnet50", "own.nets:1x1", "own.nets:1x1", "::"]
    )
    assert names == ["resnet50", "r_snet_50", "resnet50_2", "classifier_1x1", "classifier_1x1_2", "classifier"]
    assert probe_names(["anything"]) == [""]


def test_spec_of_an_image_experiment():
    experiment = image_experiment(steps=50, levels=5, items=7, keep=3, classifiers=["fashion_mnist", "fashion_mnist"])
    spec = experiment.to_dict()
    assert spec["corruption"]["noise"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [probe.get("name") for probe in spec["probes"]] == ["fashion_mnist", "fashion_mnist_2", None]
    assert spec["probes"][-1]["first"] == 3
    assert spec["source"] == {"type": "fashion_mnist"}
    # A run with fewer items than are kept can be extended.
    assert image_experiment(items=2).to_dict()["probes"] == image_experiment(items=200).to_dict()["probes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "photos"}, "classifiers: none given"),
        ({"classifiers": ["fashion_mnist"], "weights": ["A", "B"]}, "2 for 1 classifiers"),
        ({"size": 64}, "size = 64: goes with a folder"),
        ({"labels": "labels.npy"}, r"labels = 'labels\.npy': goes with a \.npy"),
        ({"levels": 101}, "levels = 101, but the chain has 100 steps"),
        ({"levels": 0}, "levels = 0"),
        ({"levels": [0.5, 0.5]}, "different numbers"),
        ({"items": 0}, "items = 0"),
        ({"keep": -1}, "keep = -1"),
        ({"steps": 0}, "steps = 0"),
        ({"dtype": "int8"}, "dtype"),
        ({"seed": -1}, "seed = -1"),
        ({"eta": 2.0}, "eta = 2"),
        ({"items": True}, "items = True"),
        ({"lvels": 3}, "lvels = 3"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        image_experiment(**options)
    assert "\n" not in str(error.value)


def test_options_mean_the_same_in_python_toml_and_on_the_command_line(tmp_path, monkeypatch):
    python = image_experiment(
        classifiers=("fashion_mnist", "fashion_mnist"), weights=[None, None], steps=5, levels=[0.4, 1], compare_labels=False
    )
    lines = ['classifiers = ["fashion_mnist", "fashion_mnist"]', 'weights = ["", ""]', "steps = 7", "levels = [0.4, 1.0]"]
    (tmp_path / "options.toml").write_text("\n".join([*lines, "compare_labels = false"]))
    asked = []

    def run(store, experiment, running):
        asked.append(experiment)
        return xr.Dataset(attrs={"missing_tasks": 1})

    monkeypatch.setattr("uturn.cli.studies.run_into", run)
    both = ("--classifier", "fashion_mnist", "--classifier", "fashion_mnist", "--weights", "", "--weights", "")
    for arguments in (
        (*both, "--steps", 5, "--levels", "0.4,1", "--no-compare-labels"),
        ("--options", tmp_path / "options.toml", "--steps", 5),  # the command line takes precedence
    ):
        assert command("--out", tmp_path, *arguments).exit_code == 0
        assert asked[-1].to_dict() == python.to_dict()
    assert command("--out", tmp_path).exit_code == 0
    assert asked[-1].to_dict() == image_experiment().to_dict()  # the same defaults


def test_the_options_of_the_docs_make_an_experiment(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "images.md").read_text()
    (tmp_path / "photos.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    options = ImageOptions.from_file(tmp_path / "photos.toml")
    assert options.experiment().to_dict()["probes"][1]["weights"] == "IMAGENET1K_V1"
    for name in ImageOptions.model_fields:
        assert f"--{name.replace('_', '-').removesuffix('iers')}" in text.replace("--no-", "--")


def test_mistakes_in_a_file_of_options_are_named(tmp_path):
    path = tmp_path / "options.toml"
    for text, message in (
        (b"steps = 5.5", "steps = 5.5"),
        (b"lvels = 3", "lvels = 3"),
        (b"steps =", "Invalid"),
        (b"\xff", "utf-8"),
    ):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=rf"options\.toml: .*{message}") as error:
            ImageOptions.from_file(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"cannot read the options .*absent"):
        ImageOptions.from_file(tmp_path / "absent.toml")


# --- figures ------------------------------------------------------------------------------------------------------------------


def test_layers_of_several_deep_classifiers():
    import matplotlib.pyplot as plt

    run = merged(**{f"net{k}": forged(0.4 + 0.1 * k, num_layers=24, num_items=50, prefix=f"net{k}_") for k in range(3)})
    found = ut.study(run)
    figure = draw_study(found, groups=("class", "layers"))
    assert len(figure.axes) == 4
    of_classes, *of_layers = figure.axes
    assert [len(axis.lines[0].get_xdata()) for axis in figure.axes] == 4 * [len(NOISE) + 1]
    for k, axis in enumerate(of_layers):
        assert len(axis.get_legend().get_texts()) <= 8  # not one entry a layer
        assert f"net{k}_" in axis.get_title(loc="left")
        assert len([line for line in axis.lines if len(line.get_xdata()) == len(NOISE) + 1]) == 24
        assert any(np.allclose(line.get_xdata(), 0.4 + 0.1 * k, atol=0.01) for line in of_classes.lines)  # t*
    plt.close(figure)
    assert draw_grid(found) is None


NAMES = [
    "猫 cat",
    "قطة",
    "🐈 cat",
    "$x_1$ cost $5",
    "a\nb\tc",
    "under_score",
    r"\frac{1}{2}",
    "[red]a[/]",
    "%#&~^{}",
    "हिन्दी",
    "\u202eab",
]


def test_trajectories_and_clones_of_a_run_are_described_apart():
    attrs = forged(num_items=2).attrs
    for sizes, words in (((4, 1), "4 noisy versions of each"), ((1, 2), "2 clones of each noisy version")):
        ranges = map(range, (3, *sizes))
        run = xr.Dataset(coords=dict(zip(("item", "trajectory", "clone"), ranges, strict=True)), attrs=attrs)
        assert describe(run).split(" · ")[-1] == words


def test_names_in_any_script_are_drawn_or_escaped(tmp_path):
    import matplotlib.pyplot as plt

    run = forged(num_items=50).assign_coords(network_layer=["".join(NAMES), "b", "c", "logits"])
    data = ut.study(run)
    rng = np.random.default_rng(0)
    data = data.assign(
        original=(("item", "channel", "row", "column"), rng.random((len(NAMES), 1, 4, 4))),
        image=(("shown_noise", "item", "channel", "row", "column"), rng.random((2, len(NAMES), 1, 4, 4))),
        image_same_class=(("shown_noise", "item"), np.zeros((2, len(NAMES))), {"judge": "same_class"}),
    ).assign_coords(shown_noise=[0.5, 1.0], item_name=("item", NAMES))
    data.attrs["description"] = " ".join(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs that are missing
        warnings.simplefilter("ignore", DeprecationWarning)  # that it calls pyparsing by old names is no matter of glyphs
        rows = [data.isel(item=some) for some in (slice(8), slice(8, None))]  # a grid has eight rows
        figures, labels = [draw_study(data), *map(draw_grid, rows)], []
        for figure in figures:
            for ending in ("png", "pdf"):
                figure.savefig(tmp_path / f"figure.{ending}")
            labels += [label.get_text() for axis in figure.axes for label in axis.get_yticklabels() if figure is not figures[0]]
            plt.close(figure)
    assert len(labels) == len(NAMES)
    assert labels[0] in ("猫 cat", r"\u732b cat")
    assert labels[1] == "قطة"
    assert labels[2] in ("🐈 cat", r"\U0001f408 cat")
    assert labels[3:6] == [r"\$x_1\$ cost \$5", r"a\nb\tc", "under_score"]
    assert labels[-1] == r"\u202eab"


def test_characters_that_the_usual_font_lacks_are_looked_for_in_others():
    import matplotlib

    with matplotlib.rc_context({"font.family": "STIXGeneral"}):
        families, missing = fonts_for("aق")
    assert len(families) == 1
    assert not missing
    assert fonts_for("abc ق") == ([], set())
    assert fonts_for("\x00")[1] == {"\x00"}


def test_markup_in_names_is_text(capsys):
    data = ut.study(forged(num_items=50).assign_coords(network_layer=["[red]a[/]", "b", "c", "logits"]))
    for table in summary(data):
        show(table)
    assert "[red]a[/]" in capsys.readouterr().out


def test_studies_print_as_plain_text_in_notebooks_too(known, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # rich would display a part of its own, with colours
    assert "same_class" in repr(known)
    assert "\x1b" not in repr(known)
    assert "<table" in known._repr_html_()


# --- the embedded model, by the command line ----------------------------------------------------------------------------------

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
    assert {path.name for path in out.iterdir()} == {*WITH_IMAGES, PICTURES, "run.zarr"}
    for name in ("study", "grid"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    assert "half of the way from start to chance" in output
    assert "logits falls below" in " ".join(output.split())
    assert "UNet2DModel, unconditional" in output
    stored = json.loads((out / "study.json").read_text())
    run = xr.open_zarr(out / "run.zarr").load()
    assert stored == json.loads(json.dumps(as_data(ut.study(run))))
    kept = xr.open_zarr(out / "study.zarr").load()
    np.testing.assert_array_equal(kept.half_life, ut.study(run).half_life)
    np.testing.assert_array_equal(kept.original, fashion_mnist.load_test_set()[0][:2])
    assert kept.item_name.values.tolist() == ["item 0, T-shirt/top", "item 1, Trouser"]


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_clones_need_a_folder_of_their_own_and_are_judged(results, tmp_path):
    out, output = results
    assert "calibration" not in output
    shutil.copytree(out, tmp_path / "other")
    before = xr.open_zarr(out / "run.zarr").load()
    refused = command("--out", tmp_path / "other", *SMALL, "--clones", "2")
    assert "choose another folder" in str(refused.exception)
    done = command("--out", tmp_path / "out", *SMALL, "--clones", "2", "--save-images")
    assert done.exit_code == 0, done.output
    assert "gap E f(x0, x̂) - E f(x̂, x̂')" in " ".join(done.output.split())
    assert "too few originals to detect a gap" in " ".join(done.output.split())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*WITH_IMAGES, PICTURES, "run.zarr"}
    run = xr.open_zarr(tmp_path / "out" / "run.zarr").load()
    np.testing.assert_array_equal(run.same_class.isel(clone=0), before.same_class)
    for name in ("similarity", "image"):  # up to rounding, since batches hold other images
        np.testing.assert_allclose(run[name].isel(clone=0), before[name], atol=1e-5)
    found, study = ut.calibration(run, ["same_class", "similarity"]), ut.study(run)
    assert np.isnan(of(study).gap[0]).all()  # noise 0 was not measured
    np.testing.assert_allclose(of(study).gap[1:, 0], found.gap.sel(reading="same_class"))
    np.testing.assert_allclose(of(study, "logits").gap[1:, 1], found.low.sel(reading="similarity, network_layer = logits"))
    tested = study.sel(reading=found.reading.values)
    assert set(tested.reading.values) == set(
        study.reading.values[(study.family == "network_layers") & np.isfinite(study.gap_p[:, 1])]
    )
    np.testing.assert_allclose(tested.gap_p[:, 1:], found.p_holm.transpose("reading", "noise"))
    stored = json.loads((tmp_path / "out" / "study.json").read_text())
    distances = ut.calibration(run, ["distance"])  # a family of its own
    passed = {"network_layers": bool(found.attrs["passed"]), "distance": bool(distances.attrs["passed"])}
    assert stored["calibration"] == {"level": found.attrs["level"], "passed": passed}
    gaps = {one["reading"]: one["gap"] for one in stored["readings"] if "gap" in one}
    assert set(gaps) == {*found.reading.values, *distances.reading.values}
    assert gaps["similarity, network_layer = logits"][3]["p_holm"] == pytest.approx(float(found.p_holm[2, -1]))
    # Results of a run without clones say nothing of gaps.
    write_study(before, tmp_path / "out")
    assert "calibration" not in (tmp_path / "out" / "study.json").read_text()


def test_png_files_are_the_images(results):
    out, _ = results
    run = xr.open_zarr(out / "run.zarr").load()
    assert len(list((out / "reconstructions").iterdir())) == 2 * (3 + 1)
    pixels = np.asarray(Image.open(out / "reconstructions" / "item1-noise0.6000-trajectory0.png"))
    np.testing.assert_array_equal(pixels, np.round((run.image.sel(noise=0.6, item=1, trajectory=0, channel=0) + 1) * 127.5))
    original = np.asarray(Image.open(out / "reconstructions" / "item1-original.png"))
    np.testing.assert_allclose(original / 127.5 - 1, fashion_mnist.load_test_set()[0][1, 0], atol=1e-6)


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_shares_make_the_same_run(results, tmp_path):
    out, _ = results
    first = command("--out", tmp_path, *SMALL, "--shard", "1/2")
    assert first.exit_code == 0
    assert "1 task of other shares left" in first.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "run.zarr"]
    last = command("--out", tmp_path, *SMALL, "--shard", "2/2")
    assert last.exit_code == 0
    assert "same_class" in last.output
    stored = [json.loads((folder / "study.json").read_text())["readings"][0]["curve"] for folder in (out, tmp_path)]
    # The share of six items does not hang on float rounding.
    np.testing.assert_allclose(*[[point["value"] for point in curve] for curve in stored])
    assert not (tmp_path / "reconstructions").exists()


@pytest.mark.usefixtures("unsaved_figures")
def test_results_of_a_finished_store(results, tmp_path):
    out, _ = results
    done = command("--run", out / "run.zarr", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "study.json").read_bytes() == (out / "study.json").read_bytes()
    assert not (tmp_path / "run.zarr").exists()


def test_missing_originals_leave_empty_places(results, tmp_path):
    out, _ = results
    run = xr.open_zarr(out / "run.zarr").load()
    spec = json.loads(run.attrs["spec"])
    for source in ({"type": "array", "path": str(tmp_path / "gone.npy")}, {"type": "array", "path": str(tmp_path / "other.npy")}):
        np.save(tmp_path / "other.npy", np.zeros((6, 28, 28), np.float32))  # other images than those of the run
        run.attrs["spec"] = json.dumps({**spec, "source": source})
        for some in (run, run.assign(image=run.image.expand_dims(clone=2, axis=3))):
            found = records_of(some)
            assert np.isnan(found.original).all()
            assert np.isfinite(found.image).all()


@pytest.mark.usefixtures("unsaved_figures")
def test_results_are_replaced_or_left_alone(results, tmp_path):
    out, _ = results
    run = xr.open_zarr(out / "run.zarr").load()
    write_study(run, tmp_path, save_images=True)
    write_study(run.drop_vars("image"), tmp_path)
    kept = NUMBERS | {PICTURES}  # no old figure is left over, pictures stay
    assert {path.name for path in tmp_path.iterdir()} == kept
    (tmp_path / PICTURES / "holiday.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds 'holiday.png'"):
        write_study(run, tmp_path, save_images=True)
    assert (tmp_path / PICTURES / "holiday.png").read_bytes() == b"mine"
    (tmp_path / PICTURES / "holiday.png").unlink()
    with pytest.raises(ValueError, match="is a store itself"):
        write_study(run, out / "run.zarr")
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(ValueError, match="save_images: no images are kept"):
        write_study(run.drop_vars("image"), tmp_path, save_images=True)
    assert (tmp_path / "study.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        write_study(run, tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "shard = 3/2"),
        (["--levels", "x"], "levels = 'x'"),
        (["--levels", "0.6,0.61"], "expected levels on different steps"),
        (["--batch-size", "many"], "batch_size"),
        (["--data", "absent", "--classifier", "fashion_mnist"], "not a folder"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("--out", tmp_path / "out", *SMALL, *arguments)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("study", ["images", "text"])
def test_options_without_effect_on_a_finished_run_are_named(study, tmp_path):
    arguments = [study, "--run", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--items", "30", "--workers", "1"])  # also those that repeat the default
    assert str(done.exception).startswith("--items, --workers: no effect with --run")
    assert str(CliRunner().invoke(app, arguments).exception).startswith("no store at ")


def test_a_folder_of_another_experiment_is_refused(results):
    out, _ = results
    done = command("--out", out, *SMALL, "--seed", "1")
    assert "seed is 0 in the store, 1 here" in str(done.exception)
    assert "exists already" in str(command("--out", out, *SMALL, "--no-resume").exception)


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_interrupted_runs_resume(tmp_path, monkeypatch):
    measure = measuring.measurements

    def killed(self, tasks, first):
        for number, done in enumerate(measure(self, tasks, first)):
            if number == 2:
                raise KeyboardInterrupt
            yield done

    short = ["--out", tmp_path, "--steps", "3", "--levels", "3", "--items", "2", "--keep", "0", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("uturn.engine.tasks.measurements", killed)
        stopped = command(*short)
    assert stopped.exit_code == 130
    assert missing_tasks(xr.open_zarr(tmp_path / "run.zarr")) == 1
    assert command(*short).exit_code == 0
    assert (tmp_path / "study.png").exists()


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
    """A guided-diffusion checkpoint, colour images from files with labels, classifiers of one's own."""
    import sys

    from adm_checkpoints import preset, save_checkpoint

    options = {"num_classes": 3}
    save_checkpoint(tmp_path / "model.pt", **options)
    (tmp_path / "own_classifiers.py").write_text(SMALL_CLASSIFIER)
    monkeypatch.syspath_prepend(tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    done = command(
        *("--model", tmp_path / "model.pt", "--preset", preset(**options), "--steps", 3, "--levels", "0.4,1.0", "--items", 6),
        *("--data", tmp_path / "images.npy", "--labels", tmp_path / "labels.npy", "--out", tmp_path / "out", "--workers", 1),
        *("--classifier", "own_classifiers:colours", "--classifier", "own_classifiers:colours", "--device", "cpu"),
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
