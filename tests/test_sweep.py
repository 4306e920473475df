"""Sweeps: grids and pairs of values, one store each, resumed and enlarged; mistakes are one line
before anything runs.
"""

import pytest
import xarray as xr

import uturn as ut
from command_line import SPEC, uturn
from uturn.engine.sweep import parsed_values, run_all

GRID = ("--set", "source.multiplicity=2,4", "--set", "corruption.type=masking,epsilon")
NAMES = [f"multiplicity={m},type={kind}" for m in (2, 4) for kind in ("masking", "epsilon")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC.replace("[0.0, 0.5]", "[0.25, 0.5, 1.0]"))
    return tmp_path


def files(store):
    return {
        path: path.stat().st_mtime_ns
        for path in store.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.usefixtures("unsaved_figures")
def test_a_grid_is_run_studied_and_enlarged(folder):
    done = uturn("run", "spec.toml", *GRID, "--store", "runs", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(NAMES)
    # Each store is that of its own spec.
    own = ut.Experiment.from_file(folder / "spec.toml").to_dict()
    own["source"]["multiplicity"], own["corruption"]["type"] = 4, "masking"
    one = ut.run(ut.Experiment.from_dict(own))
    stored = xr.open_dataset(folder / "runs" / "multiplicity=4,type=masking", engine="uturn").load()
    assert stored.attrs["spec_hash"] == one.attrs["spec_hash"]
    xr.testing.assert_identical(stored.unchanged.drop_attrs(), one.unchanged.drop_attrs())
    before = files(folder / "runs")
    done = uturn(
        "run",
        "spec.toml",
        "--set",
        "source.multiplicity=2,4,8",
        *GRID[2:],
        "--store",
        "runs",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    after = files(folder / "runs")
    assert before.items() <= after.items()  # nothing is measured again
    assert len({path.relative_to(folder / "runs").parts[0] for path in after}) == 6
    studied = uturn("study", *sorted((folder / "runs").iterdir()), "--out", "results", cwd=folder)
    assert studied.returncode == 0, studied.stderr
    assert "multiplicity = 8, type = epsilon" in studied.stdout
    assert (folder / "results" / "index.html").exists()


@pytest.mark.slow
def test_pairs_in_several_processes_give_the_numbers_of_one(folder):
    pairs = ("--set", "items=4,9", "--set", "seed=1,3", "--zip")
    done = uturn("run", "spec.toml", *pairs, "--store", "runs", "--workers", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [
        "items=4,seed=1",
        "items=9,seed=3",
    ]
    experiment = ut.Experiment.from_file(folder / "spec.toml")
    alone = run_all(
        ut.sweep(experiment, {"items": [4, 9], "seed": [1, 3]}, zip=True),
        folder / "alone",
        workers=1,
    )
    for name, ds in alone.items():
        stored = xr.open_dataset(folder / "runs" / name, engine="uturn").load()
        assert stored.attrs["missing_tasks"] == 0
        xr.testing.assert_identical(stored.drop_attrs(deep=False), ds.load().drop_attrs(deep=False))


def test_values_and_names():
    texts = [
        "a.b=4,6.5,1e-3",
        "c=masking,gaussian",
        "d=true,null",
        'e="x,y",z',
        "f=[1,2],[3]",
        'g={type="rhm", depth=3}',
    ]
    assert parsed_values(texts) == {
        "a.b": [4, 6.5, 0.001],
        "c": ["masking", "gaussian"],
        "d": [True, None],
        "e": ["x,y", "z"],
        "f": [[1, 2], [3]],
        "g": [{"type": "rhm", "depth": 3}],
    }
    source, corruption = (
        {"type": "gaussian_mixture", "dimension": 8},
        {
            "type": "gaussian",
            "noise": [0.1],
        },
    )
    spec = {
        "items": 2,
        "source": source,
        "corruption": corruption,
        "backward": {"type": "exact"},
        "probes": [{"type": "scales"}],
    }
    experiment = ut.Experiment.from_dict(spec)
    found = ut.sweep(
        experiment, {"source.type": ["gaussian_mixture"], "corruption.type": ["gaussian"]}
    )
    assert list(found) == ["source.type=gaussian_mixture,corruption.type=gaussian"]
    noise = [[k / 64 for k in range(1, n)] for n in (40, 41)]
    long = list(ut.sweep(experiment, {"corruption.noise": noise}))
    assert len(set(long)) == 2
    assert all(len(name) < 64 and "/" not in name for name in long)
    assert ut.sweep(experiment, {"items": range(2, 4)})["items=3"].items == 3
    # Dates are texts, and a name of many keys is short enough for a folder.
    assert parsed_values(["source.path=2020-01-01,2020-02-01"]) == {
        "source.path": ["2020-01-01", "2020-02-01"]
    }
    keys = {
        "seed": [10**18],
        "backward.type": ["exact"],
        "backward": [{"type": "exact"}],
        "probes": [[{"type": "scales"}]],
    }
    keys |= {
        "source": [experiment.to_dict()["source"]],
        "corruption": [{"type": "gaussian", "noise": noise[0]}],
    }
    many = list(ut.sweep(experiment, keys | {"corruption.noise": noise}))
    assert len(set(many)) == 2
    assert all(len(name.encode()) <= 200 for name in many)
    assert experiment.items == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sorce.depth=3"], "sorce.depth: the spec has no such place"),
        (
            ["--set", "source.multiplicity=2,900"],
            "multiplicity=900: source: a level: multiplicity = 900: expected at most 8",
        ),
        (
            ["--set", "corruption.noise=[0.5],[1.5]"],
            "noise=[1.5]: noise = 1.5: expected a level in [0, 1.0]",
        ),
        (["--set", "items=4,4"], "two have this name"),
        (
            ["--set", "items=4,5", "--set", "seed=1,2,3", "--zip"],
            "{'items': 2, 'seed': 3}: expected as many for each",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(arguments, message, folder):
    done = uturn("run", "spec.toml", *arguments, "--store", "runs", cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (folder / "runs").exists()


def test_a_sweep_needs_a_folder(folder):
    done = uturn("run", "spec.toml", "--set", "items=4,5", "--out", "results", cwd=folder)
    assert done.returncode == 2
    assert "expected --store STORE" in done.stderr
