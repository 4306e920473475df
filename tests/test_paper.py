"""What figures share: kept computations, whole or absent; measurement in the two ways a module can ask for it."""

import json
import shutil
import types

import numpy as np
import pytest
import xarray as xr

from uturn.experiment import Experiment
from uturn.paper import FIGURES, ORDER, Work, load_results, measure, write_dataset
from uturn.paper.page import write_report

SPEC = {
    "items": 2,
    "source": {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2},
    "corruption": {"type": "epsilon", "noise": [0.0, 0.5]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


@pytest.fixture
def work(tmp_path):
    return Work("smoke", tmp_path)


def counted(values):
    def compute():
        compute.calls += 1
        return xr.Dataset({"x": ("name", np.array(values))}, coords={"name": [f"n{i}" for i in range(len(values))]})

    compute.calls = 0
    return compute


def test_kept_once_for_its_settings(work):
    compute = counted([1.0, 2.0])
    first = work.keep("a", {"n": 2}, compute)
    again = work.keep("a", {"n": 2}, compute)
    assert compute.calls == 1
    xr.testing.assert_identical(first.x, again.x.astype(float))
    assert [str(name) for name in again.name.values] == ["n0", "n1"]
    assert work.keep("a", {"n": 3}, counted([5.0])).x.values.tolist() == [5.0]
    assert work.keep("a", {"n": 3}, compute).x.values.tolist() == [5.0]


def test_kept_data_survive_a_killed_write(work, monkeypatch):
    compute = counted([1.0])
    real = xr.Dataset.to_zarr

    def killed(self, path, **options):
        real(self.drop_vars("x"), path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_zarr", killed)
    with pytest.raises(KeyboardInterrupt):
        work.keep("a", {}, compute)
    monkeypatch.undo()
    assert work.keep("a", {}, compute).x.values.tolist() == [1.0]
    assert compute.calls == 2
    shutil.rmtree(work.folder / "a.zarr" / "x")
    (work.folder / "a.zarr" / "zarr.json").write_text("{")
    assert work.keep("a", {}, compute).x.values.tolist() == [1.0]
    assert compute.calls == 3
    for chunk in (work.folder / "a.zarr" / "x" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()  # zarr fills in NaN
    assert work.keep("a", {}, compute).x.values.tolist() == [1.0]
    assert compute.calls == 4


def test_writing_replaces(tmp_path):
    write_dataset(xr.Dataset({"x": ("a", [1.0, 2.0])}), tmp_path / "d.zarr")
    write_dataset(xr.Dataset({"y": ("a", [3.0])}), tmp_path / "d.zarr")
    assert list(xr.open_zarr(tmp_path / "d.zarr")) == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


def test_modules_ask_for_experiments_or_measure(work):
    experiment = Experiment.from_dict(SPEC)
    one = types.SimpleNamespace(__name__="uturn.paper.one", experiments=lambda scale: {"run": experiment})
    assert measure(one, work)["run"].unchanged.sizes["item"] == 2
    shared = types.SimpleNamespace(__name__="uturn.paper.two", RUNS="one", experiments=lambda scale: {"run": experiment})
    measure(shared, work)
    assert sorted(p.name for p in work.folder.iterdir()) == ["one-run.zarr"]
    own = types.SimpleNamespace(__name__="uturn.paper.own", measure=lambda w: {"scale": w.scale})
    assert measure(own, work) == {"scale": "smoke"}


RESULT = {
    "figure": "fig7",
    "title": "A title",
    "caption": "",
    "scale": "smoke",
    "verdicts": [{"quantity": "q", "measured": "1", "expected": "1", "passed": True, "rule": ""}],
    "files": {"png": "fig7.png", "pdf": "fig7.pdf", "data": "fig7.zarr"},
    "seconds": 1.0,
    "notes": [],
}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {**RESULT["files"], "pdf": "javascript:alert(1)"}},
        {"files": {**RESULT["files"], "data": "../../secret"}},
        {"files": {**RESULT["files"], "png": "/etc/passwd"}},
        {"files": {**RESULT["files"], "png": "http://elsewhere/x.png"}},
        {"files": {**RESULT["files"], "png": 'x.png" onerror="alert(1)'}},
        {"files": {"png": "fig7.png"}},
        {"files": ["fig7.png"]},
        {"figure": "fig8"},
        {"title": 3},
        {"seconds": "a minute"},
        {"verdicts": [{"quantity": "q"}]},
        {"verdicts": None},
        {"unknown": 1} | {"title": None},
    ],
)
def test_result_files_are_checked(tmp_path, change):
    path = tmp_path / "fig7.json"
    path.write_text(json.dumps(RESULT))
    assert load_results(tmp_path)[0].passed
    path.write_text(json.dumps(RESULT | change))
    with pytest.raises(ValueError, match=r"is damaged .*run `uturn reproduce fig7` again") as error:
        load_results(tmp_path)
    assert "\n" not in str(error.value)


def test_pages_escape_what_results_say(tmp_path):
    (tmp_path / "fig7.json").write_text(json.dumps(RESULT | {"title": "<script>alert(1)</script>"}))
    page = write_report(tmp_path).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_all_figures_are_made_once():
    assert sorted(ORDER) == sorted(FIGURES)
