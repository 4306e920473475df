"""Runs: labels, resuming, independence of chunks and workers, and errors for bad input."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from small import strings
from uturn.store.run_folder import RunFolder

SPEC = strings(
    "masking",
    [0.0, 0.4, 1.0],
    ["tree_levels", "messages"],
    source={"grammars": 3},
    seed=3,
    items=10,
    trajectories=2,
    chunk=4,
)


def experiment(**changes):
    return ut.Experiment.from_dict({**SPEC, **changes})


def with_part(name, **changes):
    return {**SPEC, name: {**SPEC[name], **changes}}


def files_of(folder):
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "store"
    return folder, ut.run(experiment(), folder).load()


def test_labels_and_values(finished):
    folder, ds = finished
    assert ds.unchanged.dims == ("noise", "item", "trajectory", "tree_level")
    assert ds.belief.dims == ("noise", "item", "tree_level")
    assert ds.unchanged.shape == (3, 10, 2, 4)
    assert ds.tree_level.values.tolist() == [0, 1, 2, 3]
    assert ds.grammar.dims == ("item",)
    assert len(np.unique(ds.grammar)) == 3
    assert {"effective_epsilon", "bits_per_leaf"} <= set(ds.coords)
    assert not any(ds[name].isnull().any() for name in ds.data_vars)
    assert (ds.unchanged.sel(noise=0) == 1).all()
    assert (ds.belief.sel(noise=0) == 1).all()
    assert json.loads(ds.attrs["spec"]) == json.loads(json.dumps(experiment().to_dict()))
    assert ds.attrs["spec_hash"] == experiment().hash
    assert xr.open_dataset(folder, engine="uturn").load().equals(ds)


def test_large_readings_are_read_when_they_are_indexed(tmp_path, monkeypatch):
    """Nine originals in tasks of two; a selection crosses tasks and reverses their order."""
    ds = ut.run(experiment(items=9, chunk=2), tmp_path / "run")
    monkeypatch.setattr("uturn.store.reading._MOST_AT_ONCE", 0)
    stored = xr.open_dataset(tmp_path / "run", engine="uturn")
    chosen = {"item": [7, 2, 3], "noise": [1, 0]}
    for name in ds.data_vars:
        xr.testing.assert_equal(stored[name].isel(chosen).load(), ds[name].isel(chosen))
        xr.testing.assert_equal(stored[name].isel(item=5).load(), ds[name].isel(item=5))


def test_gaussian_runs_know_their_axes():
    ds = ut.run(
        ut.Experiment.from_dict(
            with_part("corruption", type="gaussian", noise=[0.0, 0.1, float("inf")])
        )
    )
    assert np.allclose(ds.abar, [1, np.exp(-0.2), 0])
    assert ds.log_snr[1] == pytest.approx(np.log(np.exp(-0.2) / (1 - np.exp(-0.2))))


def test_results_depend_on_the_experiment_alone(finished, tmp_path):
    _, ds = finished
    names = list(ds.data_vars)
    assert ut.run(experiment(), None)[names].equals(ds[names])
    assert ut.run(experiment(chunk=10))[names].equals(ds[names])
    finer = ut.run(ut.Experiment.from_dict(with_part("corruption", noise=[0.2, 0.4])))
    assert finer.unchanged.sel(noise=0.4).equals(ds.unchanged.sel(noise=0.4))
    other = ut.run(experiment(seed=4))
    assert not other.unchanged.equals(ds.unchanged)


def test_neighbouring_noise_levels_have_streams_of_their_own():
    ds = ut.run(
        ut.Experiment.from_dict({**with_part("corruption", noise=[0.4, 0.4 + 1e-12]), "items": 40})
    )
    assert not np.array_equal(ds.unchanged[0], ds.unchanged[1])


@pytest.mark.parametrize("kind", ["masking", "epsilon"])
def test_trajectories_are_independent(kind):
    """At full noise the U-turns of one item are independent: the variance of their mean is 1/4
    of that of a single one.
    """
    spec = {
        **with_part("corruption", type=kind, noise=[1.0]),
        "items": 400,
        "trajectories": 4,
        "probes": SPEC["probes"][:1],
    }
    kept = ut.run(ut.Experiment.from_dict(spec)).unchanged.isel(noise=0)
    share = kept.mean("trajectory").var("item") / kept.var(("item", "trajectory"))
    # False alarm below 1e-3; identical trajectories have 1.
    assert (abs(share - 0.25) < 4 * 0.25 * np.sqrt(2 / 400)).all()


def test_every_grammar_has_rules_of_its_own():
    source = ut.Experiment.from_dict({**SPEC, "items": 30}).parts.source
    blocks = list(source.blocks(np.arange(30), 3, 30))
    assert len({block.rhm.fingerprint for block in blocks}) == len(blocks) == 3
    for block in blocks:
        for other in blocks:
            valid = other.rhm.parse(block.data).valid[3].mean()
            # Strings of one grammar are none of the others'.
            assert valid == 1 if other is block else valid < 0.1


def test_workers_write_the_same_bytes(finished, tmp_path):
    folder, _ = finished
    ut.run(experiment(), tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(folder)


def test_a_killed_run_resumes_bit_for_bit(finished, tmp_path, monkeypatch):
    folder, _ = finished
    copy = tmp_path / "store"
    calls = []
    write = RunFolder.write

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(RunFolder, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ut.run(experiment(), copy)
    assert len(calls) == 5
    assert xr.open_dataset(copy, engine="uturn").attrs["missing_tasks"] == 9 - 4
    ut.run(experiment(), copy)
    assert len(calls) == 5 + 9 - 4  # what had been written is not computed again
    assert files_of(copy) == files_of(folder)


def test_a_damaged_file_is_found_and_mended(finished, tmp_path):
    folder, ds = finished
    copy = tmp_path / "store"
    shutil.copytree(folder, copy)
    chunk = sorted((copy / "tasks").iterdir())[4]
    good = chunk.read_bytes()
    for bad in (good[:-3], good[:5] + bytes([good[5] ^ 1]) + good[6:], b""):
        chunk.write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged"):
            again = ut.run(experiment(), copy)
        assert again.load().equals(ds)
        assert chunk.read_bytes() == good


def test_a_store_is_never_mistaken_for_another(finished, tmp_path):
    folder, _ = finished
    before = files_of(folder)
    with pytest.raises(ValueError, match=r"spec\.seed is 3 in the store, 9 here"):
        ut.run(experiment(seed=9), folder)
    with pytest.raises(ValueError, match=r"spec\.corruption\.noise"):
        ut.run(ut.Experiment.from_dict(with_part("corruption", noise=[0.1])), folder)
    with pytest.raises(ValueError, match="exists already"):
        ut.run(experiment(), folder, resume=False)
    assert files_of(folder) == before
    (tmp_path / "something").mkdir()
    (tmp_path / "something" / "file").write_text("precious")
    with pytest.raises(
        ValueError, match=r"something is not a readable store: it has no run\.json; copy"
    ):
        ut.run(experiment(), tmp_path / "something")
    assert (tmp_path / "something" / "file").read_text() == "precious"
    with pytest.raises(ValueError, match="no store at"):
        RunFolder.open(tmp_path / "absent")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({**SPEC, "probes": [{"type": "tree_levels"}] * 2}, "variables of two of them"),
        ({**SPEC, "probes": [{"type": "images"}]}, "does not go with strings"),
        (with_part("source", depth=60), "depth, branching = .*expected lower ones"),
        (
            with_part("corruption", type="os:getcwd"),
            "expected a class that inherits from uturn.Corruption",
        ),
        (with_part("corruption", noise=[0.1, 0.1]), "different numbers"),
        (with_part("corruption", noise=[1.5]), r"noise = 1\.5"),
        ({**SPEC, "noise": [0.5]}, "levels in one place"),
    ],
)
def test_bad_specs_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        ut.run(ut.Experiment.from_dict(spec))


def test_spec_files(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    assert ut.Experiment.from_file(path).hash == experiment().hash
    for name, text, message in [
        ("a.toml", "seed = ", "not a valid TOML"),
        ("a.json", "{", "not a valid JSON"),
        ("b.toml", "items = 3", "b.toml: .*corruption: Field required"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            ut.Experiment.from_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"cannot read .*absent\.toml: no such file$"):
        ut.Experiment.from_file(tmp_path / "absent.toml")


def test_parts_and_tables_make_the_same_experiment():
    parts = {
        "source": ut.sources.RHMSource(**SPEC["source"]),
        "corruption": ut.Masking(),
        "backward": ut.backward.ExactPosterior(),
        "probes": [ut.probes.TreeLevels(), ut.probes.Messages()],
    }
    sizes, noise = (
        {key: SPEC[key] for key in ("seed", "items", "trajectories", "chunk")},
        SPEC["corruption"]["noise"],
    )
    made = ut.Experiment(**sizes, noise=np.array(noise), **parts)
    assert made.to_dict() == experiment().to_dict()
    assert ut.run(made).equals(ut.run(experiment()))
    assert ut.Experiment(**sizes, noise=noise, **{**parts, "source": made.source}).hash == made.hash
    for wrong in (3, ut.Masking):
        with pytest.raises(
            ValueError, match=r"corruption = .*: expected a table with a `type`, or a part"
        ):
            ut.Experiment(**sizes, noise=[0.4], **{**parts, "corruption": wrong})
