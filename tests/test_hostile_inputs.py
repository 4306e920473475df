"""Inputs that nobody should give: each is refused at once, in one line that names it and says what to do."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import uturn as ut
from uturn import paper
from uturn.backward import DiffusionModel
from uturn.cli.solvable import theory
from uturn.fashion_mnist import generator_folder
from uturn.sources.images import ArraySource, ImageFolderSource
from uturn.theory import MeanField, phase_diagram
from uturn.workflows import image_experiment

RHM = ut.RandomHierarchyModel(4, 2, 2, 3, seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanField(32, 8, 2).class_crossing(10**8), "depth = 100000000: expected at most 10000 levels; .*critical_noise"),
        (lambda: MeanField(32, 8, 2).curves(0.5, 10**7), "expected at most 10000 levels"),
        (lambda: MeanField(32, 8, 2).curves(np.zeros(10**6), 10**4), "would take 596 GB, but this machine"),
        (lambda: MeanField(32, 8, 2).susceptibility(0.5, 2000), "lower depth"),
        (lambda: MeanField(32, 8, 10**9), "branching = 1000000000.*300 digits"),
        (lambda: MeanField(10**400, 8, 2), "vocab_size = 1000.*300 digits"),
        (lambda: MeanField(32, 10**5000, 2), "lower multiplicity"),
        (lambda: MeanField(32, 8, 2).curves(10**400, 3), r"noise = 1000.*expected numbers in \[0, 1\]"),
        (lambda: phase_diagram(10**6, 3), "give those to compute"),
        (lambda: ut.RandomHierarchyModel(32, 8, 2, 60).sample(1), r"2\*\*60 leaves would take 2\*\*64 bytes"),
        (lambda: ut.RandomHierarchyModel(8, 2, 2, 3).sample(10**12), "draw fewer"),
        (lambda: ut.RandomHierarchyModel(32, 8, 2, 10**9), "depth = 1000000000"),
        (lambda: ut.RandomHierarchyModel(10**6, 10**5, 2, 10), "the rules would take"),
        (lambda: ut.RandomHierarchyModel(32, 8, 10**9, 2), "300 digits"),
        (lambda: ut.infer(None, np.zeros((1, 8, 4))), "rhm = None: expected a RandomHierarchyModel"),
        (lambda: ut.sample_posterior("rhm", np.zeros((1, 8, 4))), "rhm = 'rhm'"),
        (lambda: ut.prior_entropy(None), "rhm = None"),
        (lambda: ut.mutual_information(3, np.zeros((1, 8, 4))), "rhm = 3"),
        (lambda: ut.infer(RHM, np.zeros((1, 8, 4)), outputs=None), "outputs = None: expected one or more"),
        (lambda: ut.sample_posterior(RHM, np.zeros((1, 8, 4)), 0, 10**12), "num_draws = 1000000000000 would take .* draw fewer"),
        (lambda: ut.Gaussian().log_evidence(None), r"noisy = None: expected what corrupt\(\) gives"),
        (lambda: ut.Masking().bits_per_leaf(-1, 8), r"noise = -1\.0: expected a level in \[0, 1\]"),
        (lambda: ut.Masking().effective_epsilon("0.5", 8), r"noise = '0\.5': expected numbers"),
        (lambda: ut.UniformReplacement().corrupt([[1, 2], [3]], 0.1, 8), "leaves = .*expected an array"),
        (lambda: ut.infer(RHM, [[1.0], [1.0, 2.0]]), "log_evidence = .*expected an array"),
        (lambda: RHM.parse([[1, 2], [3]]), "leaves = .*expected an array"),
        (lambda: RHM.save("/no/such/folder/file"), "cannot write '/no/such/folder/file'"),
        (lambda: ut.RandomHierarchyModel.load("a\0b"), r"path = 'a\\x00b': expected the path"),
        (lambda: ut.hierarchy_index(np.zeros((3, 4)), np.zeros((3, 4))), "high_level is a ndarray; expected a DataArray"),
        (lambda: ut.study(None), "ds = None: expected the dataset"),
        (lambda: image_experiment(classifiers=5), "classifiers = 5: expected a list"),
        (lambda: image_experiment(weights=[5]), r"weights = \[5\]: expected a list"),
        (lambda: image_experiment(levels=[None]), r"noise = .*None.*: expected numbers"),
        (lambda: image_experiment(levels=[10**400]), r"noise = \[1000.*: expected numbers"),
    ],
)
def test_refused_at_once(call, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 5


def test_deep_trees_and_grammars_below_the_bounds():
    mf = MeanField(32, 8, 2)
    assert mf.class_crossing(1000) == pytest.approx(mf.critical_noise, abs=1e-9)
    assert np.isfinite(mf.susceptibility([0.1, mf.critical_noise, 0.9], 900)).all()
    assert ut.RandomHierarchyModel(4, 2, 2, 300).depth == 300  # what population dynamics asks for


# --- experiments and their runs --------------------------------------------------------------------------------------

SPEC = {
    "items": 4,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3},
    "corruption": {"type": "epsilon", "noise": [0.0, 1.0]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


def spec(part=None, **options):
    return {**SPEC, part: {**SPEC[part], **options}} if part else {**SPEC, **options}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (spec(trajectories=10**9), r"chunk \* trajectories = 4000000000: expected at most .* lower one"),
        (spec(items=10**12), r"items \* noise levels / chunk = 125000000000: expected at most .* lower one"),
        (spec(items=10**12, chunk=10**7), "U-turns; lower one of them"),
        (spec(items=True), "items = True"),
        (spec(items="4"), "items = '4'"),
        (spec(trajectories=np.bool_(True)), "trajectories = True"),
        (spec(chunk=1.5), r"chunk = 1\.5"),
        (spec(seed=False), "seed = False"),
        (spec("corruption", noise=[10**400]), r"noise = \[1000.*\.\.\.: expected a list of different numbers"),
        (spec("corruption", noise=[True]), r"noise = \[True\]"),
        (spec("corruption", noise=np.zeros((1, 2))), r"noise = \[\[0\.0, 0\.0\]\]"),
        (spec("source", depth=60), "lower depth"),
    ],
)
def test_specs_that_cannot_be(table, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        ut.Experiment.from_dict(table)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 3


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists():
    table = {**spec("corruption", noise=np.linspace(0, 1, 3)), "items": np.int64(4), "chunk": np.uint8(2)}
    table["source"] = {**table["source"], "depth": np.int32(3)}
    mine = ut.Experiment.from_dict(table)
    assert mine.hash == ut.Experiment.from_dict({**spec("corruption", noise=[0.0, 0.5, 1.0]), "chunk": 2}).hash
    assert json.loads(json.dumps(mine.to_dict())) == json.loads(mine.model_dump_json())
    assert [type(x) for x in (mine.items, mine.chunk, mine.noise[0])] == [int, int, float]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "a"}, "workers = 'a': expected an integer >= 1"),
        ({"workers": 1.5}, r"workers = 1\.5"),
        ({"workers": True}, "workers = True"),
        ({"store": 5}, "store = 5: expected the path of a file or folder"),
        ({"store": ""}, "store = ''"),
        ({"store": "a\0b"}, r"store = 'a\\x00b'"),
        ({"shard": "1/2"}, r"shard = '1/2': expected \(i, n\)"),
        ({"shard": (1.5, 2)}, "shard"),
    ],
)
def test_arguments_of_a_run(options, message):
    with pytest.raises(ValueError, match=message):
        ut.run(ut.Experiment.from_dict(SPEC), **options)


SCRIPT = f"""
import uturn as ut
ut.run(ut.Experiment.from_dict({SPEC!r}), "store", workers=2)
"""


@pytest.mark.parametrize("place", ["stdin", "file", "module"])
def test_a_script_that_processes_cannot_import(place, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "file": ["script.py"], "module": ["-m", "script"]}[place]
    done = subprocess.run(
        [sys.executable, *arguments], input=SCRIPT, capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False
    )
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert "<stdin> is no file" in last if place == "stdin" else "would run again in each of them" in last
    assert 'if __name__ == "__main__":' in last
    assert "workers=1" in last
    assert "spawn" not in done.stderr  # nothing had been started


# --- models and images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "/", ".", "~", "no/such/model", "a\0b", "x" * 5000])
def test_no_tree_is_walked_for_a_model(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathlib.Path.rglob", lambda *_: pytest.fail("a tree was walked"))
    with pytest.raises(ValueError, match=r"model = |holds no model_index\.json|no such folder") as caught:
        DiffusionModel(model=place).fingerprint()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_betas": [0.001] * 998 + [float("nan")] * 2}, r"betas\[998\] = nan"),
        ({"beta_start": float("nan")}, r"betas\[0\] = nan"),
        ({"beta_end": float("inf")}, "betas"),
        ({"beta_end": 5.0}, r"betas\[200\] = 1\.001"),
        ({"beta_start": -0.5}, r"betas\[0\] = -0\.5"),
    ],
)
@pytest.mark.parametrize("scheduler", ["ddpm", "euler", "stored"])
def test_a_noise_schedule_that_is_none_is_named(change, message, scheduler, tmp_path):
    folder = shutil.copytree(generator_folder(), tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"the noise schedule has {message}.*expected finite numbers in .*correct"):
        DiffusionModel(model=str(folder), scheduler=scheduler, steps=10).fingerprint()


@pytest.mark.parametrize(
    "options", [{"path": ""}, {"path": "a\0b"}, {"path": ".", "classes": "/dev/zero"}, {"path": ".", "classes": "a\0"}]
)
def test_places_of_images_that_are_none(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.png").write_bytes(b"")
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"{name} = '{re.escape(repr(value)[1:-1])}'"):
        ImageFolderSource(**options).count()


def test_float_images_without_a_negative_number_are_warned_of(tmp_path):
    images = np.random.default_rng(0).random((3, 6, 6), np.float32)
    np.save(tmp_path / "unit.npy", images)
    with pytest.warns(UserWarning, match=r"unit\.npy holds floats in \[0\.0.*nothing lies below 0.*2 \* x - 1"):
        loaded, _ = ArraySource(path=str(tmp_path / "unit.npy")).load()
    np.testing.assert_array_equal(loaded[:, 0], images)  # taken as they are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.save(tmp_path / "signed.npy", 2 * images - 1)
        ArraySource(path=str(tmp_path / "signed.npy")).load()
        np.save(tmp_path / "bytes.npy", (255 * images).astype(np.uint8))
        ArraySource(path=str(tmp_path / "bytes.npy")).load()


# --- pictures, pages and disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "written"), [("h", "h.png"), ("h.PDF", "h.PDF"), ("a.b.svg", "a.b.svg")])
def test_the_picture_of_the_theory_is_the_file_that_is_named(name, written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theory(32, 8, 2, 10, Path(name))
    assert f"next: open {written}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [written]
    assert (tmp_path / written).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["h.xyz", "h.pgf", ".", "h.png/"])
def test_pictures_that_cannot_be_drawn(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.png").mkdir()
    with pytest.raises(ValueError, match=r"plot = .*expected a file that ends in \.png, \.pdf"):
        theory(32, 8, 2, 10, Path(name))


def test_a_full_disk_names_the_path(tmp_path, monkeypatch):
    figure = SimpleNamespace(
        __name__="uturn.paper.fig6",
        TITLE="title",
        CLAIM="claim",
        CAPTION="caption",
        measure=lambda workshop: {},
        channels=lambda scale: [],
        analyse=lambda runs: (xr.Dataset({"y": ("x", np.arange(3.0))}), []),
        draw=lambda data: plt.figure(),
    )
    monkeypatch.setitem(sys.modules, "uturn.paper.fig6", figure)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_at(ending):
        return lambda source, target: full() if str(target).endswith(ending) else replace(source, target)

    replace = os.replace
    places = {"fig6.zarr": (xr.Dataset, "to_zarr", full)}
    places |= {ending: (os, "replace", full_at(ending)) for ending in ("fig6.png", "fig6.pdf", "fig6.json", "index.html")}
    for ending, place in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(*place)
            with pytest.raises(ValueError, match=r"cannot write '.*(No space left on device).*make room") as caught:
                paper.reproduce(["fig6"], tmp_path)
        assert f"'{tmp_path / ending}'" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.unfinished"))
