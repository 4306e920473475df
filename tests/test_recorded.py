"""U-turns that another program has written to image files: `uturn images --recorded`, the
corruption and backward `recorded`.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import uturn as ut
from command_line import uturn
from small import one_line_error
from tiny_classifier import network
from uturn.backward.recorded import RecordedImages, Recordings, pairing
from uturn.core.findings import CHECKS
from uturn.core.registry import build
from uturn.engine.measuring import measure
from uturn.engine.plan import plan
from uturn.measures.statistics import proportion
from uturn.networks.images.schedules import schedule
from uturn.presets import image_experiment
from uturn.sources import FashionMNISTSource
from uturn.studies.runs import originals
from uturn.studies.tables import remarks

CLASSIFIER = "tiny_classifier:network"
PATTERN = "strength_{noise}/{item}_{trajectory}_{clone}.png"
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def save(path, image):
    """An image in [-1, 1], (height, width) or (height, width, 3), as a file of 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint((np.asarray(image) + 1) * 127.5).astype(np.uint8)).save(path)


def mixed(image, other, level, rng):
    """A stand-in for a U-turn: the original fades into another image."""
    share = level**2
    return np.clip(
        (1 - share) * image + share * other + 0.05 * level * rng.standard_normal(image.shape), -1, 1
    )


def make(folder, names, levels, trajectories=1, clones=1, name_of=PATTERN.format, seed=0):
    """A folder of originals and their recorded U-turns, made of embedded images."""
    images, rng = FashionMNISTSource().all_images()[0][:, 0], np.random.default_rng(seed)
    for image, name in zip(images, names, strict=False):
        save(folder / "originals" / f"{name}.png", image)
        for level, trajectory in itertools.product(levels, range(trajectories)):
            other = images[rng.integers(len(images))]
            for clone in range(clones):
                path = name_of(noise=level, item=name, trajectory=trajectory, clone=clone)
                save(folder / path, mixed(image, other, level, rng))
    return folder


def options(folder, pattern=PATTERN, **changed):
    chosen = {
        "data": str(folder / "originals"),
        "classifiers": [CLASSIFIER],
        "channels": 1,
        "compare_labels": False,
    }
    return {**chosen, "recorded": str(folder / pattern), "keep": 2, **changed}


def run(folder, pattern=PATTERN, store=None, **changed):
    return ut.run(image_experiment(**options(folder, pattern, **changed)), store)


def swap(first, second):
    other = first.with_name("other")
    first.rename(other)
    second.rename(first)
    other.rename(second)


# --- the story ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """24 originals, 9 strengths, 3 versions, 2 clones."""
    return make(
        tmp_path_factory.mktemp("recorded"), [f"digit {k:02d}" for k in range(24)], LEVELS, 3, 2
    )


@pytest.fixture(scope="module")
def measured(recorded):
    words = [
        "--recorded",
        PATTERN,
        "--data",
        "originals",
        "--unit",
        "strength",
        "--channels",
        1,
        "--no-compare-labels",
    ]
    with pytest.MonkeyPatch.context() as patch:
        # No test looks at a figure.
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        done = uturn("images", *words, "--classifier", CLASSIFIER, "--out", "out", cwd=recorded)
    assert done.returncode == 0, done.stderr
    return (
        done,
        xr.open_dataset(recorded / "out" / "run", engine="uturn").load(),
        ut.study(xr.open_dataset(recorded / "out" / "run", engine="uturn")),
    )


def own_classes(folder):
    """Predicted classes of originals (items,) and reconstructions (levels, items, trajectories,
    clones), without uturn.
    """

    def classes(paths):
        pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths]) / 127.5 - 1
        with torch.no_grad():
            return network()(torch.from_numpy(pixels)[:, None]).argmax(1).numpy()

    names = [f"digit {k:02d}" for k in range(24)]
    rows = itertools.product(LEVELS, names, range(3), range(2))
    paths = [folder / f"strength_{level}" / f"{name}_{t}_{c}.png" for level, name, t, c in rows]
    return classes([folder / "originals" / f"{name}.png" for name in names]), classes(
        paths
    ).reshape(9, 24, 3, 2)


def test_a_folder_equals_an_own_computation(recorded, measured):
    done, ds, study = measured
    before, after = own_classes(recorded)
    same = after == before[:, None, None]
    np.testing.assert_array_equal(ds.same_class.values, same)
    np.testing.assert_array_equal(
        ds.clone_same_class.values[..., 0], after[..., 0] == after[..., 1]
    )
    curve = np.r_[1, same.mean(axis=(1, 2, 3))]
    of = study.sel(reading="same_class")
    np.testing.assert_allclose(of.curve.sel(estimate="value"), curve, atol=1e-6)
    # t*: half of the way from 1 to the probability that two originals agree, by a straight line
    # between levels.
    chance = sum(np.mean(before == k) ** 2 for k in range(5))
    half = (1 + chance) / 2
    k = int(np.argmax(curve <= half))
    x = np.r_[0, LEVELS]
    star = x[k - 1] + (curve[k - 1] - half) / (curve[k - 1] - curve[k]) * (x[k] - x[k - 1])
    assert float(of.half_life.sel(axis="noise", estimate="value")) == pytest.approx(star, abs=1e-6)
    # The largest strength with P(same class) >= .95, and the interval there.
    held = [level for level, share in zip(LEVELS, curve[1:], strict=True) if share >= 0.95]
    by_study = of.noise.values[1:][of.curve.sel(estimate="value").values[1:] >= 0.95]
    assert held
    assert held == by_study.tolist()
    bounds = proportion(
        xr.DataArray(same.astype(float), dims=ds.same_class.dims, coords={"noise": LEVELS})
    )
    np.testing.assert_allclose(of.curve.values[1:], bounds, atol=1e-6)
    assert study.noise.attrs["long_name"] == "strength"
    assert ds.noise.values.tolist() == LEVELS
    assert "strength" in done.stdout
    assert "24 originals of originals · 3 noisy versions" in done.stdout
    assert "swapped" not in done.stderr
    assert "missing" not in done.stdout


def test_everything_of_a_run_of_a_model_is_there(recorded, measured):
    """Layers, calibration with clones, stored images, the page."""
    _, ds, study = measured
    first = (
        np.asarray(Image.open(recorded / "strength_0.3" / "digit 01_2_1.png"), np.float32) / 127.5
        - 1
    )
    np.testing.assert_array_equal(ds.image.sel(noise=0.3, item=1, trajectory=2, clone=1)[0], first)
    assert ds.file.values[1] == "digit 01.png"
    assert float(study.gap_p.min()) <= 1e-3  # clones share the image they fade into
    assert ds.similarity.sizes["network_layer"] >= 2
    written = {path.name for path in (recorded / "out").iterdir()}
    assert {"index.html", "study.zarr", "grid.png", "run"} <= written
    assert "recorded U-turns" in (recorded / "out" / "index.html").read_text()


def test_files_of_a_model_give_the_readings_of_the_model(tmp_path):
    """Up to the 8 bits of a file: images and classes. Layers differ, since their reference is
    the folder.
    """
    model = measure(
        image_experiment(steps=2, levels=[0.5], items=4, trajectories=2, keep=4), 0, np.arange(4)
    )
    for item, image in enumerate(FashionMNISTSource().images_at(np.arange(4))[0]):
        save(tmp_path / "originals" / f"{item}.png", image[0])
        for trajectory in range(2):
            save(tmp_path / f"0.5_{item}_{trajectory}.png", model["image"][item, trajectory, 0])
    files = run(tmp_path, "{noise}_{item}_{trajectory}.png", classifiers=["fashion_mnist"], keep=4)
    np.testing.assert_allclose(files.image[0], model["image"], atol=1 / 127)
    np.testing.assert_array_equal(files.predicted_class[0], model["predicted_class"])


# --- missing files --------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make(tmp_path_factory.mktemp("small"), NAMES, [0.1, 0.5, 0.9], 2, 2)


@pytest.fixture
def copied(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")


def test_missing_files_are_missing_readings(small, copied):
    probes = [{"type": "network_layers"}, {"type": "images"}, {"type": "changes", "patch": 7}]
    (copied / "strength_0.5" / "c_1_0.png").unlink()
    os.mkfifo(copied / "strength_0.5" / "c_1_0.png")
    broken = copied / "strength_0.9" / "a_0_1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    runs = []
    for folder in (small, copied):
        spec = image_experiment(**options(folder)).to_dict() | {"probes": probes}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs.append(ut.run(ut.Experiment.from_dict(spec)))
    said = [str(warning.message) for warning in caught if "missing" in str(warning.message)]
    assert "2 of 72 recorded files are missing or unreadable: " in said[0]
    assert "c_1_0.png (no regular file)" in said[0]
    assert "a_0_1.png (" in said[0]
    whole, gaps = runs
    for name in whole.data_vars:
        before, after = (ds[name].transpose("noise", "item", ...).values for ds in runs)
        lost = np.isnan(after).reshape(*after.shape[:2], -1)
        assert not np.isnan(before).any()
        if name == "original_class":
            assert not lost.any()
        elif name.startswith("change"):
            assert np.argwhere(lost.any(-1)).tolist() == [[1, 2], [2, 0]], name
        else:  # (noise, item, trajectory, clone)
            where = np.isnan(after).reshape(*after.shape[:4], -1).all(-1)
            twins = [[1, 2, 1, 0], [1, 2, 1, 1], [2, 0, 0, 0], [2, 0, 0, 1]]
            assert np.argwhere(where).tolist() == (
                twins if name.startswith("clone_") else [twins[0], twins[3]]
            ), name
        kept = ~np.isnan(after)
        np.testing.assert_allclose(after[kept], before[kept], atol=1e-5, err_msg=name)
    study = ut.study(gaps)
    assert said == remarks(study)[:1]
    assert "2 of 72 readings are missing: c.png at noise 0.5, a.png at noise 0.9" in str(
        study.remark.sel(reading="same_class").item()
    )
    assert "leaves out 2 of 6 originals: readings are missing" in study.attrs["remark"]
    of = study.sel(reading="same_class").curve.values[1:]
    values = gaps.same_class
    np.testing.assert_allclose(of[:, 0], np.nanmean(values, axis=(2, 3)).mean(1), atol=1e-6)
    np.testing.assert_allclose(of, proportion(values), atol=1e-6)
    # Calibration and chi are those of the four other originals.
    left = ut.calibration(whole.isel(item=[1, 3, 4, 5]), "same_class")
    np.testing.assert_allclose(
        study.sel(reading="same_class").gap.sel(estimate="value")[1:], left.gap
    )
    others = whole.isel(item=[1, 3, 4, 5])
    np.testing.assert_allclose(study.chi, ut.study(others).chi)


@pytest.mark.slow
def test_further_files_extend_a_run(small, copied, monkeypatch):
    """Only what has come or changed is measured; the readings are those of a new run."""
    lost = {
        copied / "strength_0.5" / f"{name}_1_0.png": copied / f"kept_{name}.png" for name in "bc"
    }
    for place, elsewhere in lost.items():
        place.rename(elsewhere)
    asked, images = [], Recordings.images
    monkeypatch.setattr(
        Recordings,
        "images",
        lambda self, s, c: asked.append((s.noise, [*s.trajectories])) or images(self, s, c),
    )
    for check_of in ("swapped", "copies"):
        monkeypatch.setattr(Recordings, check_of, lambda *_: [])  # reads images, too

    def measured():
        """The levels and trajectories that are measured into the store."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = run(copied)
            asked.clear()
            run(copied, store=copied / "run")
        done, ds = (
            sorted(asked),
            xr.open_dataset(copied / "run", engine="uturn").load().sortby("noise"),
        )
        xr.testing.assert_allclose(ds.drop_attrs(), whole.load().drop_attrs(), atol=1e-5)
        return (
            done,
            json.loads(ds.attrs.get("missing_data", "{}")),
            json.loads(ds.attrs.get("warnings", "[]")),
        )

    levels, missing, said = measured()
    assert (levels, len(missing), len(said)) == (
        [(0.1, [0, 1]), (0.5, [0, 1]), (0.9, [0, 1])],
        2,
        1,
    )
    assert measured() == ([], missing, said)
    # The missing files come.
    for left, (place, elsewhere) in zip((1, 0), lost.items(), strict=True):
        elsewhere.rename(place)
        levels, missing, said = measured()
        assert (levels, len(missing), len(said)) == ([(0.5, [0, 1])], left, left)
    # A file changes.
    shutil.copy(small / "strength_0.9" / "a_0_0.png", copied / "strength_0.9" / "b_0_0.png")
    assert measured()[0] == [(0.9, [0, 1])]
    # Further levels and trajectories.
    shutil.copytree(small / "strength_0.5", copied / "strength_0.7")
    assert measured()[0] == [(0.7, [0, 1])]
    for levels, expected in (
        ((0.1, 0.5, 0.7), [(level, [2]) for level in (0.1, 0.5, 0.7, 0.9)]),
        ((0.9,), [(0.9, [0, 1, 2])]),
    ):
        for level, name, clone in itertools.product(levels, NAMES, range(2)):
            folder = copied / f"strength_{level}"
            shutil.copy(folder / f"{name}_1_{clone}.png", folder / f"{name}_4_{clone}.png")
        done, missing, _ = measured()
        assert (done, len(missing)) == (expected, 12 * (0.9 not in levels))
    # A number between two others shifts the trajectories.
    for path in [*(copied / "strength_0.5").glob("?_1_?.png")]:
        path.rename(path.with_name(path.name.replace("_1_", "_3_")))
    assert measured()[0] == [(level, [0, 1, 2, 3]) for level in (0.1, 0.5, 0.7, 0.9)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda f: (f / "originals" / "b.png").unlink(),
            "12 recorded files without an original .*b_0_0.png",
        ),
        (
            lambda f: save(f / "strength_0.1" / "a_0_0.png", np.zeros((20, 28))),
            r"a_0_0.png: .*\(20, 28\): expected \(28, 28\)",
        ),
        (
            lambda f: shutil.copytree(f / "strength_0.1", f / "strength_.10"),
            "strength_.10/a_0_0.png and .* are the same U-turn",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(copied, change, says):
    change(copied)
    with pytest.raises(ValueError, match=says):
        ut.run(image_experiment(**options(copied)), copied / "run")
    assert not (copied / "run").exists()


def test_few_files_do_not_name_millions_of_u_turns(tmp_path):
    """A level and a trajectory of its own for each of 400 files: 160,000 U-turns, of which 400
    are there.
    """
    for k in range(400):
        (tmp_path / f"0.{k:03d}").mkdir()
        (tmp_path / f"0.{k:03d}" / f"a_{k}.png").touch()
    with pytest.raises(ValueError, match="clones of 400 files = 160000: expected at most 131072"):
        _ = RecordedImages(pattern=str(tmp_path / "{noise}" / "{item}_{trajectory}.png")).files
    for k in range(200, 400):
        shutil.rmtree(tmp_path / f"0.{k:03d}")
    assert (
        len(
            RecordedImages(
                pattern=str(tmp_path / "{noise}" / "{item}_{trajectory}.png")
            ).files.table
        )
        == 200
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"recorded": "strength_{noise}.png"}, "no {item}"),
        ({"recorded": "{item}_{noise}{trajectory}.png"}, r"nothing before {trajectory}"),
        ({"recorded": "nowhere/{item}_{noise}.png"}, "nowhere is not a folder"),
        (
            {"levels": [0.1, 0.2]},
            r"noise: levels without a recorded file = \[0.2\]: expected some of 0.1, 0.5, 0.9",
        ),
        (
            {"trajectories": 3},
            r"trajectories = 3: expected at most the 2 of the recorded files \(0, 1\)",
        ),
    ],
)
def test_wrong_options_end_in_one_line(small, monkeypatch, changed, says):
    monkeypatch.chdir(small)
    with one_line_error(re.compile(says, re.DOTALL)):
        ut.run(image_experiment(**options(small) | {"recorded": PATTERN} | changed))


def test_colours_are_checked_and_grey_is_compared_on_demand(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        colour = rng.uniform(-1, 1, (28, 28, 3))
        save(tmp_path / "originals" / f"{name}.png", colour)
        save(tmp_path / f"0.5_{name}.png", colour[..., 0])
    spec = {
        "items": 2,
        "source": {"type": "images", "path": str(tmp_path / "originals")},
        "corruption": {"type": "recorded", "noise": [0.5]},
        "backward": {"type": "recorded", "pattern": str(tmp_path / "{noise}_{item}.png")},
        "probes": [{"type": "images"}],
    }
    with pytest.raises(
        ValueError, match=r"0.5_a.png: mode = 'L': expected colours, as its original a.png has"
    ):
        ut.run(ut.Experiment.from_dict(spec))
    grey = spec | {"source": spec["source"] | {"channels": 1}}
    assert ut.run(ut.Experiment.from_dict(grey)).image.shape == (1, 2, 1, 1, 28, 28)
    # Grey originals that a pipeline wrote in colour are compared.
    for name in "ab":
        shutil.copy(tmp_path / f"0.5_{name}.png", tmp_path / "originals" / f"{name}.png")
        save(tmp_path / f"0.5_{name}.png", np.zeros((28, 28, 3)))
    assert ut.run(ut.Experiment.from_dict(spec)).image.shape == (1, 2, 1, 3, 28, 28)


def test_the_resizing_of_the_originals_is_applied_to_the_files(tmp_path):
    """At no noise the files are copies of the originals, of several sizes."""
    rng = np.random.default_rng(0)
    for name, shape in {"a": (50, 80), "b": (40, 40), "c": (90, 33)}.items():
        save(tmp_path / "originals" / f"{name}.png", rng.uniform(-1, 1, shape))
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "originals" / f"{name}.png", tmp_path / "out" / f"{name}_0.png")
    spec = {
        "items": 3,
        "source": {
            "type": "images",
            "path": str(tmp_path / "originals"),
            "size": 32,
            "channels": 1,
        },
        "corruption": {"type": "recorded", "noise": [0.0]},
        "backward": {"type": "recorded", "pattern": str(tmp_path / "out" / "{item}_{noise}.png")},
        "probes": [{"type": "images"}],
    }
    experiment = ut.Experiment.from_dict(spec)
    images = experiment.parts.source.images_at(np.arange(3))[0]
    np.testing.assert_array_equal(ut.run(experiment).image[0, :, 0], images)
    shutil.copy(tmp_path / "originals" / "b.png", tmp_path / "out" / "a_0.png")
    changed = ut.run(ut.Experiment.from_dict(spec))
    np.testing.assert_array_equal(changed.image[0, 0, 0], images[1])
    # Not what was made of them at noise 0.
    np.testing.assert_array_equal(originals(changed, np.arange(3))[0], images)


# --- names ----------------------------------------------------------------------------------------


def test_odd_names(tmp_path):
    """Spaces, dots, brackets, fields with a format, and items with sub-folders in front of equal
    names.
    """
    names = ["cats/01 [a].b", "dogs/*?", "dogs/01 [a].b", "dogs/x_1_2"]
    folder = make(
        tmp_path,
        names,
        [0.5],
        2,
        name_of="out [v1.0] {{}} {noise}/{item}.{trajectory:03d}.png".format,
    )
    ds = run(folder, "out [v1.0] {{}} {noise}/{item}.{trajectory:03d}.png")
    assert ds.file.values.tolist() == [f"{name}.png" for name in names]
    assert ds.sizes["trajectory"] == 2
    assert not np.isnan(ds.same_class).any()
    for item, file in enumerate(ds.file.values.tolist()[:2]):
        path = folder / "out [v1.0] {} 0.5" / f"{file.removesuffix('.png')}.001.png"
        np.testing.assert_array_equal(
            ds.image[0, item, 1, 0], np.asarray(Image.open(path), np.float32) / 127.5 - 1
        )


def test_notations_of_noise(tmp_path):
    """Percent are the user's unit; .1, 0.10 and 1e-1 are one level; arithmetic may leave a last
    digit.
    """
    texts = {
        "a": {0.1: ".1", 0.3: "0.30", 10.0: "10"},
        "b": {0.1: "0.10", 0.3: "3e-1", 10.0: "10.0"},
    }
    folder = make(
        tmp_path,
        "ab",
        [0.1, 0.3, 10.0],
        name_of=lambda noise, item, **_: f"x/s{texts[item][noise]}_{item}.png",
    )
    pattern = "x/s{noise}_{item}.png"
    ds = run(folder, pattern, unit="percent")
    assert ds.noise.values.tolist() == [0.1, 0.3, 10.0]
    assert ds.noise.attrs["long_name"] == "percent"
    assert not np.isnan(ds.same_class).any()
    assert not np.isnan(run(folder, pattern, levels=[0.1 + 0.2, 10]).same_class).any()


# --- axes -----------------------------------------------------------------------------------------


def test_the_schedule_of_a_model(small):
    ds = run(small, schedule="fashion_mnist", clones=1)
    of_model = schedule("fashion_mnist", 1000, timestep_spacing="linspace").sel(
        step=[100, 500, 900]
    )
    for name in ("abar", "log_snr", "sigma"):
        np.testing.assert_allclose(ds[name], of_model[name])
    assert "log_snr" in ut.study(ds).axis.values


# --- pairing --------------------------------------------------------------------------------------


def made(rng, level, items=60, draws=3):
    images = FashionMNISTSource().all_images()[0][:, 0]
    chosen = images[rng.permutation(len(images))[:items]]
    others = images[rng.integers(len(images), size=(items, draws))]
    return chosen.reshape(items, -1), mixed(chosen[:, None], others, level, rng).reshape(
        items, draws, -1
    )


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_swapped_pairs_are_found_without_false_alarms(level):
    """30 folders of 60 originals: no false alarm, which would have a probability below .05 at a
    rate of .1; 28 swaps or more.
    """
    rng, found = np.random.default_rng(0), 0
    for _ in range(30):
        clean, reconstructions = made(rng, level)
        assert pairing(clean, reconstructions)[0].min() >= 0.7
        i, j = rng.permutation(60)[:2]
        reconstructions[[i, j]] = reconstructions[[j, i]]
        ratio, partner = pairing(clean, reconstructions)
        found += set(np.flatnonzero(ratio < 0.7)) == {i, j} and partner[i] == j
    assert found >= 28


def test_files_swapped_at_a_larger_noise_are_named(tmp_path):
    """Files come for a further level, and two originals are swapped there alone; a level without
    a trace is not judged.
    """
    folder = make(tmp_path, list("abcdefghij"), [0.1, 0.2, 0.5, 1.0], 2)
    pattern = "strength_{noise}/{item}_{trajectory}_0.png"
    experiment = image_experiment(**options(folder, pattern))
    assert not [line for line in map(str, experiment.model_check()) if line.startswith(CHECKS)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(folder, pattern, folder / "run", levels=[0.1, 1.0])
        assert not [warning for warning in said if "swapped" in str(warning.message)]
        for draw in ("0_0", "1_0"):
            swap(
                folder / "strength_0.2" / f"c_{draw}.png", folder / "strength_0.2" / f"h_{draw}.png"
            )
        ds = run(folder, pattern, folder / "run")
    (words,) = [words for words in json.loads(ds.attrs["warnings"]) if "swapped" in words]
    assert "at 0.2, reconstructions lie closer to another original" in words
    assert "swapped: c.png and h.png?" in words


@pytest.mark.parametrize(("share", "is_named"), [(0.36, True), (0.5, False)])
def test_pairs_are_named_below_the_ratio_that_is_said(share, is_named, tmp_path):
    """Files of c and h hold a share of their original and the rest of the other: at the ratio
    share / (1 - share), here .56.
    """
    folder = make(tmp_path, list("abcdefghij"), [0.1])
    c, h = (
        np.asarray(Image.open(folder / "originals" / f"{name}.png"), float) / 127.5 - 1
        for name in "ch"
    )
    for name, own, other in (("c", c, h), ("h", h, c)):
        save(folder / "strength_0.1" / f"{name}_0_0.png", share * own + (1 - share) * other)
    recordings = image_experiment(**options(folder)).parts.corruption.recordings
    sentences = recordings.swapped(image_experiment(**options(folder)))
    assert [("c.png and h.png" in words, "their own: 0.56;" in words) for words in sentences] == [
        (True, True)
    ] * is_named


def test_a_plan_holds_the_levels_whose_files_have_changed(tmp_path):
    folder = make(tmp_path, "abcd", [0.2, 0.5])
    store = folder / "run"
    run(folder, store=store)
    done = plan(image_experiment(**options(folder)), store, workers=1, budget=0.1)
    assert (done.tasks, done.done) == (2, 2)
    save(folder / "strength_0.5" / "b_0_0.png", np.zeros((28, 28)))
    changed = plan(image_experiment(**options(folder)), store, workers=1, budget=0.1)
    assert (changed.done, changed.u_turns) == (1, 4)


# --- what is found, and what is not ---------------------------------------------------------------


def test_trajectories_and_clones_may_be_words(tmp_path):
    """In alphabetical order; numbers beside them count alone."""
    seeds = ["cold", "hot", "warm"]
    folder = make(
        tmp_path,
        "ab",
        [0.3, 0.6],
        3,
        name_of=lambda noise, item, trajectory, **_: f"{noise}/{item}-{seeds[trajectory]}.png",
    )
    ds = run(folder, "{noise}/{item}-{trajectory}.png")
    for k, seed in enumerate(seeds):
        path = folder / "0.6" / f"b-{seed}.png"
        np.testing.assert_array_equal(
            ds.image.sel(noise=0.6)[1, k, 0], np.asarray(Image.open(path), np.float32) / 127.5 - 1
        )
    backward = RecordedImages(pattern=str(folder / "{noise}/{item}-{clone}.png"))
    assert (backward.files.clones, backward.files.trajectories) == (seeds, [0])
    for name in "ab":
        shutil.copy(folder / "0.6" / f"{name}-cold.png", folder / "0.6" / f"{name}-12.png")
    files = RecordedImages(pattern=str(folder / "{noise}/{item}-{trajectory}.png")).files
    assert files.trajectories == [12]
    assert "14 files" not in files.left_out()[0]
    assert "12 files of" in files.left_out()[0]
    assert "0.3/a-cold.png" in files.left_out()[0]


def test_files_that_nearly_match_are_counted_and_named(tmp_path):
    folder = make(tmp_path, "abc", [0.4, 0.8], 2)
    levels = folder / "strength_0.4", folder / "strength_0.8"
    for other in ("strength_0,6", "strength_nan"):
        shutil.copytree(levels[0], folder / other)
    (levels[1] / "b_1_0.png").rename(levels[1] / "b_1_0.PNG")
    for other in ("notes/of_2024_1_0.png", "strength_none/a_0_0.png", "strength_0.4/thumbs.db"):
        (folder / other).parent.mkdir(exist_ok=True)
        shutil.copy(levels[0] / "a_0_0.png", folder / other)
    with pytest.warns(UserWarning, match="left out") as said:
        ds = run(folder)
    words = [str(warning.message) for warning in said if "left out" in str(warning.message)]
    assert len(words) == 1
    assert re.fullmatch(
        r"data check: 13 files of .* left out, which the pattern does not match: "
        r"strength_0,6/a_0_0\.png, .*, \.\.",
        words[0],
    )
    assert words[0] in json.loads(ds.attrs["warnings"])
    assert ds.noise.values.tolist() == [0.4, 0.8]
    for other in ("strength_0,6", "strength_nan"):
        shutil.rmtree(folder / other)
    (sentence,) = RecordedImages(pattern=str(folder / PATTERN)).files.left_out()
    assert sentence.startswith("1 file of ")
    assert sentence.endswith("strength_0.8/b_1_0.PNG")


def test_copies_are_named(tmp_path):
    """Reconstructions that are the originals; equal trajectories; equal clones; at noise 0, and
    for one draw, they are not.
    """

    def said(levels, trajectories, clones, chosen):
        folder = make(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", "abc", levels, trajectories, clones
        )
        for path in folder.glob("strength_*/*.png"):
            item, trajectory, clone = path.stem.split("_")
            other = chosen(path, item, int(trajectory), int(clone))
            path.write_bytes((folder / other if isinstance(other, str) else other).read_bytes())
        return [
            line
            for line in map(str, image_experiment(**options(folder)).model_check())
            if "data check: at" in line
        ]

    originals = said([0.3, 0.9], 2, 1, lambda path, item, *_: f"originals/{item}.png")
    assert originals == [
        "data check: at 0.9, the largest noise, all reconstructions equal their originals; are they"
        " copies of them?"
    ]
    equal = said(
        [0.3, 0.9], 3, 2, lambda path, item, _, clone: path.with_name(f"{item}_0_{clone}.png")
    )
    assert [line.partition("all ")[2][:12] for line in equal] == ["trajectories"]
    equal = said(
        [0.3, 0.9],
        3,
        2,
        lambda path, item, trajectory, _: path.with_name(f"{item}_{trajectory}_0.png"),
    )
    assert [line.partition("all ")[2][:6] for line in equal] == ["clones"]
    assert not said([0.0], 2, 1, lambda path, item, *_: f"originals/{item}.png")[1:]
    assert not said([0.3, 0.9], 3, 2, lambda path, *_: path)


# --- originals that change ------------------------------------------------------------------------


def test_originals_that_change_and_keep_their_size_stop_a_run(tmp_path):
    """Of a run that is extended by a level, by trajectories, or resumed; brought back, it goes
    on.
    """
    folder = make(tmp_path, NAMES, [0.1, 0.5, 0.9], 2)
    for path in folder.glob("originals/*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    pattern, store = "strength_{noise}/{item}_{trajectory}_0.png", folder / "run"
    first = run(folder, pattern, store, levels=[0.1, 0.5], trajectories=1)
    changed = folder / "originals" / "d.bmp"
    before = changed.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    assert len(changed.read_bytes()) == len(before)
    says = (
        r"contents have changed since they were measured = \['d\.bmp'\]: expected none; bring them"
        r" back"
    )
    for sizes in (
        {"levels": [0.1, 0.5], "trajectories": 2},
        {},
        {"levels": [0.1, 0.5], "trajectories": 1},
    ):
        with pytest.raises(ValueError, match=says):
            run(folder, pattern, store, **sizes)
    xr.testing.assert_identical(
        xr.open_dataset(store, engine="uturn").load().drop_attrs(), first.load().drop_attrs()
    )
    images, _ = originals(first, np.arange(6))
    assert np.isnan(images[[3]]).all()
    changed.write_bytes(before)
    np.testing.assert_array_equal(
        originals(first, np.arange(6))[0][3, 0],
        np.asarray(Image.open(changed)) / np.float32(127.5) - 1,
    )
    assert run(folder, pattern, store).sizes["noise"] == 3


def test_a_store_names_no_file_outside_of_its_folder(tmp_path, monkeypatch):
    """Originals are read by their stored names; nothing is listed, and no pipe and no file
    outside of the folder is read.
    """
    folder = make(tmp_path, "ab", [0.5])
    ds = run(folder, "strength_{noise}/{item}_0_0.png")
    expected, _ = originals(ds, np.arange(2))
    assert np.isfinite(expected).all()
    monkeypatch.setattr("uturn.sources.images.listed", lambda *_: pytest.fail("listed"))
    np.testing.assert_array_equal(originals(ds, np.arange(2))[0], expected)
    os.mkfifo(folder / "originals" / "pipe.png")
    (folder / "originals" / "link.png").symlink_to(folder / "strength_0.5" / "a_0_0.png")
    for place, name in (
        ("/", "etc/hostname"),
        (str(folder / "originals" / "pipe.png"), "a.png"),
        (str(folder / "originals"), "pipe.png"),
        (str(folder / "originals"), "link.png"),
        (str(folder / "originals"), "../strength_0.5/a_0_0.png"),
    ):
        spec = json.loads(ds.attrs["spec"])
        spec["source"]["path"] = place
        digest = hashlib.sha256((folder / "strength_0.5" / "a_0_0.png").read_bytes()).hexdigest()
        forged = ds.assign_attrs(spec=json.dumps(spec)).assign_coords(
            file=("item", np.array([name, "b.png"], object)),
            file_digest=("item", np.array([digest, digest], object)),
        )
        assert np.isnan(originals(forged, np.arange(1))[0]).all()


@pytest.mark.parametrize(
    "source",
    [
        {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 9},
        {"type": "array", "path": "images.npy"},
    ],
)
def test_a_store_that_names_a_source_of_other_data_has_no_originals(tmp_path, monkeypatch, source):
    monkeypatch.chdir(make(tmp_path, "ab", [0.5]))
    ds = run(tmp_path, "strength_{noise}/{item}_0_0.png")
    np.save("images.npy", np.zeros((2, 3, 5), np.uint8))
    built = build("source", source)
    models = json.loads(ds.attrs["models"]) | {"source": built.fingerprint()}
    forged = ds.assign_attrs(
        spec=json.dumps(json.loads(ds.attrs["spec"]) | {"source": source}),
        models=json.dumps(models),
    )
    images, names = originals(forged, np.arange(2))
    assert images.shape == (2, *ds.image.shape[-3:])
    assert np.isnan(images).all()
    assert names == ["a.png", "b.png"]
