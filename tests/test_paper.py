"""What figures share: kept computations, whole or absent; measurement in the two ways a module can ask for it."""

import shutil
import types

import numpy as np
import pytest
import xarray as xr

from uturn.experiment import Experiment
from uturn.paper import Work, measure, write_dataset

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
