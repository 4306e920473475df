"""U-turns made elsewhere: arrays, frames and tables as runs, with the studies of the same
readings in a run of our own.
"""

import json
import os
import re
import runpy
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import uturn as ut
from command_line import uturn
from forging import forge
from small import one_line_error, strings
from uturn.core.tools import own_tools
from uturn.measures.changes import covariances_of
from uturn.measures.scaling import correlation_length
from uturn.pages import write_study
from uturn.store.reading import open_run
from uturn.store.run_folder import Progress, RunFolder, State, warnings_of
from uturn.studies.headline import headline_of
from uturn.studies.readings import read_readings
from uturn.studies.tables import remarks

EXAMPLES = Path(__file__).parents[1] / "examples"
NOISE = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def labels(items=60, versions=3, seed=0):
    """Labels of originals (item,) and of reconstructions (noise, item, trajectory), of which a
    share `noise` is drawn again.
    """
    rng = np.random.default_rng(seed)
    before = rng.integers(10, size=items)
    after = np.broadcast_to(before[None, :, None], (len(NOISE), items, versions))
    redrawn = rng.random(after.shape) < NOISE[:, None, None]
    return before, np.where(redrawn, rng.integers(10, size=after.shape), after)


def rmsd(items=20, seed=0):
    """Distances (noise, item, trajectory) that rise from 0."""
    rng = np.random.default_rng(seed)
    return 10 * NOISE[:, None, None] ** rng.uniform(1, 2, (1, items, 1)) + 0.1 * rng.random(
        (len(NOISE), items, 3)
    )


def half_life(curve, start, end):
    """The first noise at which a curve (noise,) is halfway from start to end, by linear
    interpolation from (0, start).
    """
    x, y = np.r_[0, NOISE], (np.r_[start, curve] - start) / (end - start)
    k = np.flatnonzero((y[:-1] < 0.5) & (y[1:] >= 0.5))[0]
    return x[k] + (x[k + 1] - x[k]) * (0.5 - y[k]) / (y[k + 1] - y[k])


def long_form(variables, items=None):
    """Arrays (noise, item[, trajectory[, clone]]) as a frame with a row for each U-turn, without
    the rows that have only NaN.
    """
    dims = ("noise", "item", "trajectory", "clone")
    data = {name: (dims[: np.ndim(values)], values) for name, values in variables.items()}
    frame = (
        xr.Dataset(data, {"noise": NOISE} | ({} if items is None else {"item": items}))
        .to_dataframe()
        .reset_index()
    )
    return frame.dropna(how="all", subset=list(variables)).sample(frac=1, random_state=0)


# --- stories --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unsaved_figures")
def test_an_array_of_labels_becomes_a_page(tmp_path):
    before, after = labels()
    same = after == before[None, :, None]
    run = ut.readings({"same_class": same}, NOISE, unit="strength", chance=0.1, max_noise=1)
    found = write_study(run, tmp_path / "out")
    star = found.half_life.sel(reading="same_class", axis="noise", estimate="value")
    assert star == pytest.approx(half_life(same.mean((1, 2)), 1, 0.1))
    assert "t* is that of same_class" in repr(found)
    assert "strength" in (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert remarks(found) == []


@pytest.mark.usefixtures("unsaved_figures")
def test_a_table_becomes_t_star_and_a_page(tmp_path):
    values = rmsd()
    values[2, 4, 1] = np.nan
    long_form({"rmsd": values}, [f"1abc_{k}" for k in range(20)]).to_csv(
        tmp_path / "rmsd.csv", index=False
    )
    done = uturn(
        "study",
        "rmsd.csv",
        "--noise-unit",
        "noise (Å)",
        "--start",
        "rmsd=0",
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "20 originals of rmsd.csv · 3 noisy versions of each" in done.stdout
    assert "rmsd: 1 of 300 readings are missing: 1abc_4 at noise 0.5" in done.stdout
    curve = np.nanmean(values, 2).mean(1)
    place = float(xr.open_zarr(tmp_path / "out/study.zarr").half_life[0, 0, 0])
    assert place == pytest.approx(half_life(curve, 0, curve[-1]), rel=1e-5)
    assert {"index.html", "study.png", "curves.csv", "numbers.csv"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_parquet_is_read_as_csv_is(tmp_path):
    pytest.importorskip("pyarrow")
    values = rmsd()
    values[2, 4, 1] = np.nan
    table = long_form({"rmsd": values}, [f"1abc_{k}" for k in range(20)]).assign(kind="a")
    table.to_csv(tmp_path / "a.csv", index=False)
    expected = read_readings(tmp_path / "a.csv", coords=["kind"])
    for name, other in {
        "a.parquet": table,
        "A.PARQUET": table.astype({"rmsd": "Float64", "item": "category", "kind": "category"}),
        "rows.parquet": table.set_index(["noise", "item", "trajectory"]),
    }.items():
        other.to_parquet(tmp_path / name)
        xr.testing.assert_equal(read_readings(tmp_path / name, coords=["kind"]), expected)
    options = ("--start", "rmsd=0", "--coordinate", "kind")
    for command in (
        ("study",),
        *([("choose", "--keep", "rmsd=5")] if "choose" in own_tools() else []),
    ):
        outputs = [
            uturn(*command, name, *options, cwd=tmp_path).stdout.replace(name, "")
            for name in ("a.csv", "a.parquet")
        ]
        assert outputs[0] == outputs[1] != ""


def test_parquet_without_its_library_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = uturn("study", "a.parquet", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == "uturn: error: cannot read the table a.parquet: needs pyarrow; `pip install pyarrow`, or"
        " write it as a CSV file\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table, None),
        (
            lambda table: {**table, "rmsd": [[x] for x in table["rmsd"]]},
            "column rmsd has the type 'list<.*; expected numbers",
        ),
        (
            lambda table: {**table, "item": [None, *table["item"][1:]]},
            "column item: row 1 = '': expected a value",
        ),
    ],
)
def test_a_strangers_parquet_is_right_or_one_line(change, message, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    # Metadata of pandas that belong to another table.
    metadata = {
        b"pandas": (
            json.dumps({"index_columns": ["item"], "column_indexes": [], "columns": []}).encode()
        )
    }
    values = {
        name: column.to_numpy()
        for name, column in long_form({"rmsd": rmsd()[..., :1]}).drop(columns="trajectory").items()
    }
    parquet.write_table(
        pyarrow.table(change(values)).replace_schema_metadata(metadata), tmp_path / "a.parquet"
    )
    if message is None:
        np.testing.assert_allclose(
            read_readings(tmp_path / "a.parquet").rmsd, rmsd()[..., 0], rtol=1e-6
        )
        content = (tmp_path / "a.parquet").read_bytes()
        (tmp_path / "a.parquet").write_bytes(content[:-100])
        message = "cannot read the table"
    with one_line_error(message):
        read_readings(tmp_path / "a.parquet")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store of two readings, one with levels, and changes of sites; its run in memory."""
    rng, place = np.random.default_rng(3), tmp_path_factory.mktemp("stored") / "mine"
    run = ut.readings(
        {"energy": rng.random((3, 1100, 2)), "kept": rng.random((3, 1100, 2, 4))},
        [0.2, 0.4, 8.0],
        start={"energy": 0, "kept": 1},
        coords={
            "layer": list("wxyz"),
            "fold class": ("item", np.arange(1100) % 7),
            "log_snr": ("noise", [3.0, 1.0, -2.0]),
        },
        dims={"kept": ("noise", "item", "trajectory", "layer")},
        changes={"atom": rng.normal(size=(3, 1100, 2, 5))},
        store=place,
    )
    return place, run


def test_a_store_of_readings_is_one_of_run(stored, tmp_path):
    place, run = stored
    found = open_run(place).load()
    xr.testing.assert_equal(found, run)
    assert found.attrs == run.attrs
    assert ut.study(found.isel(item=slice(20))).equals(ut.study(run.isel(item=slice(20))))
    opened = RunFolder.open(place)
    assert set(opened.states().values()) == {Progress(State.done, 2)}
    assert len(list((place / "tasks").glob("*-items_0_*"))) == len(run.noise)  # two blocks of items
    assert len(list((place / "tasks").iterdir())) == 2 * len(run.noise)
    other = {"energy": np.full((1, 4), 0.5)}
    # Replaced as a whole.
    ut.readings(other, [0.3], store=shutil.copytree(place, tmp_path / "copy"))
    assert dict(open_run(tmp_path / "copy").sizes) == {"noise": 1, "item": 4, "trajectory": 1}


def test_readings_replace_nothing_else(own_run, tmp_path):
    ut.run(ut.Experiment.from_dict(json.loads(own_run.attrs["spec"])), tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.txt").touch()
    with pytest.raises(ValueError, match=r"run' holds a run of U-turns; choose another folder"):
        ut.readings({"a": GOOD}, NOISE, store=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"folder is not a readable store: .*choose another folder"
    ):
        ut.readings({"a": GOOD}, NOISE, store=tmp_path / "folder")
    assert open_run(tmp_path / "run").attrs["complete"]
    assert (tmp_path / "folder/mine.txt").exists()


def test_readings_that_were_cut_short_are_no_store(tmp_path, monkeypatch):
    writes, write = [], RunFolder.write

    def killed(self, *args):
        if writes:
            raise KeyboardInterrupt
        writes.append(args)
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            ut.readings(
                {"a": np.random.default_rng(0).random((6, 3))},
                np.arange(6),
                store=tmp_path / "mine",
            )
    assert not list(tmp_path.iterdir())


def first_file(folder):
    """The file of the first task."""
    return min((folder / "tasks").iterdir())


def lost(pattern):
    """Files of tasks that were not copied."""

    def change(folder):
        for path in (folder / "tasks").glob(pattern):
            path.unlink()

    return change


def flipped(place):
    """A change of one bit in the file of a task."""

    def change(folder):
        content = bytearray(first_file(folder).read_bytes())
        content[place] ^= 1
        first_file(folder).write_bytes(content)

    return change


def bomb(folder):
    """A header that promises two gigabytes."""
    header = json.dumps({"energy": {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31]}})
    first_file(folder).write_bytes(struct.pack("<Q", len(header)) + header.encode())


def attributes(**values):
    return lambda folder: forge(folder, lambda run: run["attributes"].update(values))


def without(name):
    return lambda folder: forge(folder, lambda run: run["attributes"].pop(name))


def in_run(*path, value):
    """A change of `run.json` by somebody who knows how the digest is made."""

    def change(run):
        *keys, last = path
        for key in keys:
            run = run[key]
        run[last] = value

    return lambda folder: forge(folder, change)


def sparse(name=None):
    """Eight gigabytes that the disk does not hold, behind the content of the file."""
    return lambda folder: os.truncate(folder / name if name else first_file(folder), 2**33)


def piped(folder):
    path = first_file(folder)
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lost("*-items_0_*"), "files of readings are missing or damaged; copy the store again"),
        (lost("*"), "files of readings are missing or damaged"),
        (flipped(20), "1 files of readings are missing or damaged"),
        (flipped(-20), "1 files of readings are missing or damaged"),
        (bomb, "1 files of readings are missing or damaged"),
        (sparse(), "1 files of readings are missing or damaged"),
        (piped, "safetensors is a link, a pipe or a device"),
        (in_run("version", value=1000), r"version 1000 of the format; a newer uturn wrote it"),
        (sparse("run.json"), r"run.json: bytes = 8589934592: expected at most \d+"),
        (without("models"), "is not a readable store: it has no 'models'"),
        (attributes(models=[]), "its attribute models = "),
        (in_run("coordinates", "noise", "values", value=[1.0]), "noise: size = "),
        (in_run("coordinates", "noise", "type", value="O"), "type of labels = 'O'"),
        (in_run("coordinates", "noise", "type", value="V99999999"), "type of labels = "),
        (in_run("attributes", "identity", "items", value=2**60), "tasks = "),
        (in_run("attributes", "identity", "chunk", value=0), "its sizes = "),
        (
            in_run("variables", "energy", "dims", value=["noise", "item", *["layer"] * 9]),
            "energy: dims = ",
        ),
        (in_run("variables", "energy", "dims", value=["noise", "item", "x"]), "it has no 'x'"),
    ],
)
def test_a_damaged_store_of_readings_is_one_line_at_once(change, message, stored, tmp_path):
    folder = shutil.copytree(stored[0], tmp_path / "mine")
    change(folder)
    with one_line_error(message, seconds=5, megabytes=256):
        open_run(folder)


def test_a_copy_over_another_store_that_stopped_halfway_is_noticed(tmp_path):
    """The readings have equal shapes."""
    for name, seed in (("a", 0), ("b", 1), ("again", 0)):
        ut.readings(
            {"energy": np.random.default_rng(seed).random((3, 5))}, [1, 2, 3], store=tmp_path / name
        )
    (name,) = [path.name for path in (tmp_path / "a" / "tasks").glob("noise_2.0*")]
    for source, target in (("a", "again"), ("b", "a")):
        shutil.copyfile(tmp_path / source / "tasks" / name, tmp_path / target / "tasks" / name)
    with pytest.raises(
        ValueError, match="1 files of readings are missing or damaged; copy the store again"
    ):
        open_run(tmp_path / "a")
    assert open_run(tmp_path / "again").attrs["complete"]  # equal calls make equal stores


# --- the same run ---------------------------------------------------------------------------------


def test_all_forms_give_the_same_run(tmp_path):
    values, kept = rmsd(), rmsd(seed=1)[..., 0] > 3
    values[1, 2, 0] = np.nan
    settings = {"start": {"rmsd": 0}, "chance": {"kept": 0.2}}
    expected = ut.readings({"rmsd": values, "kept": kept}, NOISE, **settings)
    assert expected.rmsd.dtype == expected.kept.dtype == np.float32
    assert expected.rmsd.dims == ("noise", "item", "trajectory")
    xr.testing.assert_identical(
        ut.readings({"rmsd": values.tolist(), "kept": kept.tolist()}, NOISE.tolist(), **settings),
        expected,
    )
    arrays = {
        "rmsd": (
            xr.DataArray(
                values, dims=("noise", "item", "trajectory"), coords={"noise": NOISE}
            ).transpose("trajectory", ...)
        ),
        "kept": xr.DataArray(kept.T, dims=("item", "noise")),
    }
    xr.testing.assert_identical(ut.readings(arrays, **settings), expected)
    xr.testing.assert_identical(ut.readings(xr.Dataset(arrays), NOISE, **settings), expected)
    masked = np.ma.masked_invalid(values)
    xr.testing.assert_identical(
        ut.readings({"rmsd": masked, "kept": kept}, NOISE, **settings), expected
    )
    both = {"rmsd": values, "kept": np.repeat(kept[..., None], 3, -1)}  # a table has one shape
    expected = ut.readings(both, NOISE, **settings)
    frame = long_form(both)
    xr.testing.assert_identical(ut.readings(frame, **settings), expected)
    frame.to_csv(tmp_path / "a.csv", index=False)
    xr.testing.assert_allclose(read_readings(tmp_path / "a.csv", **settings), expected)


def test_columns_that_are_labels():
    frame = long_form({"rmsd": rmsd()}, [f"p{k}" for k in range(20)])
    frame["fold"] = "fold " + frame["item"].str[-1]
    frame["log_snr"] = -np.log(frame["noise"])
    run = ut.readings(frame, coords=["fold", "log_snr"], start=0)
    assert run.fold.values.tolist() == [
        f"fold {name[-1]}" for name in run.item_name.values.tolist()
    ]
    np.testing.assert_allclose(run.log_snr, -np.log(NOISE))
    assert set(run.item_name.values.tolist()) == set(frame["item"])
    assert {"sigma", "abar"} <= set(ut.study(run).axis.values.tolist())


@pytest.fixture(scope="module")
def own_run():
    return ut.run(
        ut.Experiment.from_dict(
            strings(
                "masking",
                [0.2, 0.5, 0.8, 1.0],
                ["parsed_levels"],
                items=30,
                trajectories=2,
                clones=2,
            )
        )
    )


def test_the_study_equals_that_of_a_run_of_our_own(own_run):
    arrays = {name: own_run[name] for name in ("parsed", "clone_parsed")}
    run = ut.readings(
        arrays,
        start=1,
        order={"parsed": "tree_level"},
        group="tree levels",
        unit="masked",
        max_noise=1,
    )
    assert dict(run.sizes) == dict(own_run.sizes)
    found, expected = ut.study(run), ut.study(own_run)
    found, expected = (of.sel(axis=["noise"]) for of in (found, expected))
    for name in (
        "curve",
        "place",
        "half_life",
        "width",
        "start",
        "gap",
        "gap_p",
        "gap_visible",
        "inversion",
    ):
        np.testing.assert_array_equal(found[name], expected[name])
    plain = ut.readings(
        {
            "parsed": (
                own_run.parsed.transpose(
                    "noise", "item", "trajectory", "clone", "tree_level"
                ).values
            )
        },
        own_run.noise.values,
        start=1,
        coords={"tree_level": own_run.tree_level.values},
        dims={"parsed": ("noise", "item", "trajectory", "clone", "tree_level")},
    )
    np.testing.assert_array_equal(ut.study(plain).curve, expected.curve)


# --- where a coordinate lies ----------------------------------------------------------------------


def test_the_length_of_an_axis_says_nothing():
    """Three levels of a reading beside three trajectories, items and noise levels."""
    rng, dims = np.random.default_rng(0), {"kept": ("noise", "item", "layer")}
    values, layers = {"kept": rng.random((3, 3, 3))}, {"layer": list("abc")}
    run = ut.readings(values, [1, 2, 3], coords=layers, dims=dims)
    assert run.kept.dims == ("noise", "item", "layer")
    assert run.layer.values.tolist() == list("abc")
    assert ut.readings(values, [1, 2, 3]).kept.dims == ("noise", "item", "trajectory")
    for coords in (layers, {"fold": [1, 2, 3]}):
        with pytest.raises(
            ValueError,
            match=r"which is not a dim of a reading; give \('noise', values\) or \('item', values\)",
        ):
            ut.readings(values, [1, 2, 3], coords=coords)
    with pytest.raises(ValueError, match="layer has 3 values along item"):
        ut.readings(values, [1, 2, 3], coords={"layer": ("item", [1, 2, 3])}, dims=dims)
    labelled = {
        "kept": xr.DataArray(
            values["kept"], {"fold": ("item", [4, 5, 6])}, ("noise", "item", "layer")
        )
    }
    xr.testing.assert_equal(
        ut.readings(labelled, [1, 2, 3], coords=layers),
        ut.readings(values, [1, 2, 3], coords=layers | {"fold": ("item", [4, 5, 6])}, dims=dims),
    )


def test_trajectories_and_clones_in_another_order_are_refused():
    rng = np.random.default_rng(0)
    h, dims = rng.normal(size=(1, 300, 2, 6)), ("noise", "item", "trajectory", "clone")
    start = rng.normal(size=(1, 300, 2))
    h[:, :, 1] += 3  # the two noisy data of an original are unlike
    start[:, :, 1] += 3
    labels = {"noise": [0.5], "trajectory": [11, 12], "clone": list("uvwxyz")}
    clones, originals = (
        xr.DataArray(h, labels, dims),
        xr.DataArray(start, {"trajectory": [11, 12]}, dims[:3]),
    )
    assert ut.ranks(ut.readings({"h": clones, "original_h": originals}), "h").attrs["passed"]
    with pytest.raises(ValueError, match=r"cannot align .* 'trajectory'"):
        ut.readings({"h": clones, "original_h": originals.isel(trajectory=[1, 0])})
    one, two = (
        xr.DataArray(np.ones((2, 2)), {"item": names}, ("noise", "item"))
        for names in (["x", "y"], ["y", "x"])
    )
    with pytest.raises(ValueError, match=r"cannot align .* 'item'"):
        ut.readings({"a": one, "b": two}, [1, 2], coords={"item": ["x", "y"]})
    with pytest.raises(ValueError, match=r"cannot align .* 'clone'"):
        ut.readings({"a": clones, "b": clones.isel(clone=[5, 4, 3, 2, 1, 0])})
    moved = rng.normal(size=(1, 300, 2, 4))
    with pytest.raises(ValueError, match=r"cannot align .* 'trajectory'"):
        ut.readings(
            {"a": clones},
            changes={
                "residue": xr.DataArray(
                    moved, {"trajectory": [12, 11]}, ("noise", "item", "trajectory", "residue_site")
                )
            },
        )


def test_noise_levels_that_differ_by_rounding_are_one():
    rows = [(0.7, 1), (0.1 * 7, 2), (1.1 + 2.2, 1), (3.3, 2), (np.inf, 1), (np.inf, 2)]
    frame = pd.DataFrame(
        [(noise, item, 5.0) for noise, item in rows], columns=["noise", "item", "energy"]
    )
    run = ut.readings(frame)
    assert run.noise.values.tolist() == [0.7, 3.3, np.inf]
    assert run.energy.notnull().all()
    with pytest.raises(ValueError, match=r"row 7 of the table repeats noise = 0.7\d*, item = 1"):
        ut.readings(pd.concat([frame, frame.iloc[[0]].assign(noise=0.1 * 7)]))
    with pytest.raises(ValueError, match="expected increasing numbers"):
        ut.readings({"a": GOOD[:2]}, [0.7, 0.1 * 7])
    one, two = (
        xr.DataArray(GOOD[:2], {"noise": [level, 3.3]}, ("noise", "item"))
        for level in (0.7, 0.1 * 7)
    )
    assert ut.readings({"a": one, "b": two}).noise.values.tolist() == [0.7, 3.3]


# --- tables of others -----------------------------------------------------------------------------


def test_labels_are_text(tmp_path):
    names = ["07", "007", "7", "NA", "None", "null", "n/a", "nan", "1e3", "1000"]
    rows = [
        f"{noise},{name},{name},{noise * k}" for noise in (0.5, 2) for k, name in enumerate(names)
    ]
    (tmp_path / "a.csv").write_text(
        "\n".join(["noise,item,kind,energy", *rows, "0.5,12,,NA", "2,12,,\n"])
    )
    run = read_readings(tmp_path / "a.csv", coords=["kind"])
    assert run.item_name.values.tolist() == [*names, "12"]
    assert run.kind.values.tolist() == [*names, ""]
    np.testing.assert_array_equal(run.energy[1], [*(2.0 * np.arange(10)), np.nan])
    (tmp_path / "b.csv").write_text("noise,item,axis,energy\n0.5,10,-1.5,1\n0.5,9,-1.5,2\n2,9,,3\n")
    numbers = read_readings(tmp_path / "b.csv", coords=["axis"])
    assert numbers.item.values.tolist() == [9, 10]
    np.testing.assert_array_equal(numbers.axis, [-1.5, np.nan])
    large = pd.DataFrame(
        {"noise": 1.0, "item": ["9007199254740993", "9007199254740992"], "energy": [1.0, 2.0]}
    )
    assert ut.readings(large).item_name.values.tolist() == large["item"].tolist()


@pytest.mark.parametrize(
    ("separator", "decimal", "suffix"), [(";", ",", "csv"), ("\t", ".", "tsv")]
)
def test_columns_of_other_names_and_separators(separator, decimal, suffix, tmp_path):
    table = long_form({"rmsd": rmsd()}, [f"a {k}" for k in range(20)])
    table.to_csv(tmp_path / "plain.csv", index=False)
    expected = read_readings(tmp_path / "plain.csv")
    named = table.rename(
        columns={"noise": "Sigma", "item": "Molecule ID", "trajectory": "TRAJECTORY"}
    )
    named.to_csv(tmp_path / f"other.{suffix}", index=False, sep=separator, decimal=decimal)
    columns = {"noise": "Sigma", "item": "Molecule ID"}
    xr.testing.assert_allclose(
        read_readings(tmp_path / f"other.{suffix}", columns=columns), expected
    )
    arguments = (
        f"other.{suffix}",
        "--columns",
        "noise=sigma,item=MOLECULE id",
        "--start",
        "rmsd=0",
    )
    done, plain = (
        uturn("study", *words, cwd=tmp_path)
        for words in (arguments, ("plain.csv", "--start", "rmsd=0"))
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.replace(f"other.{suffix}", "plain.csv").splitlines()[:4]
        == plain.stdout.splitlines()[:4]
    )


def test_a_decimal_comma_in_any_row(tmp_path):
    """The first row, without noise, often has whole numbers only."""
    (tmp_path / "a.csv").write_text("noise;item;shift\n0;x,1;4\n0,75;x,1;-,5\n0;y;1\n0,75;y;3\n")
    run = read_readings(tmp_path / "a.csv")
    assert run.noise.values.tolist() == [0, 0.75]
    assert run["shift"].values.ravel().tolist() == [4, 1, -0.5, 3]
    assert run.item_name.values.tolist() == ["x,1", "y"]
    for cells, name, found in (
        ("0;x;1.234\n0,75;x;-2.500", "shift", "1.234"),
        ("0;x;4\n0.75;x;1,234", "noise", "0.75"),
    ):
        # Thousands with a point, or with a comma.
        (tmp_path / "c.csv").write_text(f"noise;item;shift\n{cells}\n")
        with pytest.raises(
            ValueError, match=rf"column {name} has '{re.escape(found)}' beside decimal commas"
        ):
            read_readings(tmp_path / "c.csv")
    (tmp_path / "b.csv").write_text("noise;item;shift\n0;3,4;4\n0.75;3,4;0.5\n")
    assert read_readings(tmp_path / "b.csv")["shift"].values.ravel().tolist() == [4, 0.5]


@pytest.mark.parametrize("text", ["", "noise,item,a\n0.5,x,1\n"])
def test_a_table_of_zeros_is_not_read(text, tmp_path):
    """A terabyte that the disk does not hold."""
    (tmp_path / "a.csv").write_text(text)
    os.truncate(tmp_path / "a.csv", 2**40)
    with pytest.raises(
        ValueError,
        match=(
            r"cannot read the table .*a.csv: it is not UTF-8 text.*; expected a CSV or Parquet"
            r" file"
        ),
    ):
        read_readings(tmp_path / "a.csv")


# --- calibration ----------------------------------------------------------------------------------


def distance(a, b):
    return ((a - b) ** 2).mean(-1)


def clones(shrink=1.0, seed=0):
    """Originals of N(0, 1), and three draws from the posterior of each noisy datum, or draws
    that are too close to its mean.
    """
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(80, 4)), np.array([0.5, 2.0])[:, None, None, None, None]
    noisy = x[None, :, None, None] + noise * rng.normal(size=(2, 80, 2, 1, 4))
    mean, scale = noisy / (1 + noise**2), noise / np.sqrt(1 + noise**2)
    return x, mean + shrink * scale * rng.normal(size=(2, 80, 2, 3, 4))


@pytest.mark.parametrize(("shrink", "passes"), [(1.0, True), (0.3, False)])
def test_calibration_equals_that_of_arrays(shrink, passes):
    x, turned = clones(shrink)
    of = ut.readings_of(x, turned, distance)
    first = np.stack([((x[None, :, None] - turned[:, :, 0]) ** 2).mean(-1)])[0]
    others = [
        [((turned[:, :, 0, k] - turned[:, :, 0, j]) ** 2).mean(-1) for j in range(3) if j != k]
        for k in range(3)
    ]
    twins = np.mean(others, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(of["distance"][:, :, 0], first)
    np.testing.assert_allclose(of["clone_distance"][:, :, 0], twins)
    run = ut.readings(of, [0.5, 2.0], start=0)
    tests = ut.calibration(run, "distance")
    expected = ut.calibrate(first.transpose(1, 2, 0), twins.transpose(1, 2, 0))
    np.testing.assert_allclose(tests.p, expected.p_value)
    assert tests.attrs["passed"] == expected.passed == passes


def test_the_shape_says_what_there_is():
    x, turned = clones()
    assert ut.readings_of(x, turned[:, :, 0, 0], distance)["distance"].dims == ("noise", "item")
    assert ut.readings_of(x, turned[:, :, :, 0], distance)["distance"].dims == (
        "noise",
        "item",
        "trajectory",
    )
    levels = ut.readings_of(x, turned, lambda a, b: (a - b) ** 2, "square")
    assert levels["clone_square"].dims == ("noise", "item", "trajectory", "clone", "square_level")
    with pytest.raises(ValueError, match=r"f = 'skew': expected a symmetric one"):
        ut.readings_of(x, turned, lambda a, b: (a - 2 * b).sum(-1), "skew")
    with pytest.raises(ValueError, match="with the same items"):
        ut.readings_of(x[1:], turned, distance)


# --- missing readings -----------------------------------------------------------------------------


def test_missing_readings_are_named():
    values = rmsd()[..., 0]
    values[1, 3] = values[:, 7] = np.nan
    said = remarks(ut.study(ut.readings({"rmsd": values}, NOISE, start=0)))
    assert {
        "no readings of item 7",
        "rmsd: 1 of 95 readings are missing: item 3 at noise 0.3",
    } <= set(said)


# --- changes of sites -----------------------------------------------------------------------------


def moved(seed=0):
    """Changes (noise, item, trajectory, site): a common part of all sites, strongest at the
    third level, and single parts.
    """
    rng = np.random.default_rng(seed)
    common = np.array([0.1, 0.3, 1.0, 0.3, 0.1])[:, None, None, None] * rng.normal(
        size=(5, 25, 6, 1)
    )
    return xr.DataArray(
        common + rng.normal(size=(5, 25, 6, 8)),
        {"noise": NOISE},
        ("noise", "item", "trajectory", "site"),
    )


def test_susceptibility_without_missing_u_turns():
    changed = moved()
    changed[2, 3, 1] = np.nan  # a U-turn
    changed[1, 4, :5] = np.nan  # all but one U-turn of an original: it has no covariance
    chi = ut.susceptibility(changed)
    one_site = changed.copy()
    one_site[2, 3, 1] = 0
    one_site[2, 3, 1, 4] = np.nan  # such a U-turn is missing as a whole
    xr.testing.assert_equal(ut.susceptibility(one_site), chi)
    five = np.delete(changed.values[2], 3, axis=0), np.delete(changed.values[2, 3], 1, axis=0)[None]
    parts = [covariances_of(part) for part in five]
    total, variance = (
        np.concatenate([np.ravel(of) for of in some])
        for some in zip(
            *((part.change_covariance_sum, part.change_covariance[..., 0]) for part in parts),
            strict=True,
        )
    )
    assert float(chi.chi[2]) == pytest.approx(total.mean() / variance.mean())
    assert float(chi.chi[1]) == pytest.approx(
        ut.susceptibility(np.delete(changed.values[1], 4, axis=0)).value
    )


def test_shorter_items():
    """Sites beyond the end of an item count neither in chi nor in C(r)."""
    changed = moved().values[2]
    short = changed.copy()
    short[:, :, 5:] = np.nan
    assert ut.susceptibility(short).value == pytest.approx(
        ut.susceptibility(changed[..., :5]).value
    )
    np.testing.assert_allclose(
        ut.correlations(short).correlation[:5], ut.correlations(changed[..., :5]).correlation
    )
    mixed = moved()
    mixed[:, :12, :, 5:] = np.nan
    readings = covariances_of(mixed)
    xr.testing.assert_allclose(ut.correlations(readings), ut.correlations(mixed))
    xr.testing.assert_equal(
        correlation_length(mixed), correlation_length(mixed, present=readings.present_pairs)
    )


def test_changes_in_a_study():
    changed = moved()
    run = ut.readings({"rmsd": abs(changed).mean("site")}, start=0, changes={"residue": changed})
    found, chi = ut.study(run), ut.susceptibility(changed)
    np.testing.assert_allclose(found.chi[0, 1:, 0], chi.chi, rtol=1e-5)
    assert found.unit_of_distance.values.tolist() == ["residues"]
    assert found.peak_at.sel(axis="noise")[0, 0] == pytest.approx(0.5, abs=0.1)
    changed[2, 3, 1] = np.nan
    changed[1, 4, 1:] = np.nan
    found = ut.study(
        ut.readings({"rmsd": abs(changed).mean("site")}, start=0, changes={"residue": changed})
    )
    np.testing.assert_allclose(found.chi[0, 2, 0], chi.chi[1], rtol=0.2)
    assert any(
        "residue: 1 of 25 originals are left out: U-turns are missing" in line
        for line in remarks(found)
    )


# --- what is wrong --------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).random((5, 6))


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"a": GOOD[0]}, {}, r"a: dims = \('noise',\)"),
        ({"a": GOOD, "b": GOOD[:, :5]}, {}, "dimension 'item' because of conflicting dimension sizes: {5, 6}"),
        ({"a": GOOD * np.inf}, {}, "a has infinite readings"),
        ({"a": GOOD}, {"noise": NOISE[::-1]}, "expected increasing numbers, 0 or more"),
        ({"a": GOOD}, {"start": {"b": 0}}, "start: 'b' is not a reading; expected one of a"),
        ({"a": GOOD}, {"bounds": (0, 1), "start": 2}, "a: start = 2.0: expected a number in its bounds"),
        ({"a": GOOD[:, :5]}, {"coords": {"label": [1, 2, 3, 4, 5]}}, "give \\('noise', values\\) or \\('item', values\\)"),
        ({"a": GOOD}, {"coords": {"item": list("abcaba")}}, "different names in item = 3: expected 6, one for each original"),
        ({"a": xr.DataArray(GOOD, {"noise": NOISE / 2}, ("noise", "item"))}, {}, r"a: noise = \[.*expected \["),
        ({"a": GOOD}, {"changes": {"site": np.zeros((5, 6, 1, 4))}}, "trajectories = 1"),
        ({"a": np.ma.masked_array(GOOD.astype("M8[s]"))}, {}, "a: dtype = dtype\\('<M8"),
        ({"a": GOOD}, {"coords": {"item": np.ma.masked_equal(range(6), 3)}}, "coords item = masked_array.*: expected no masked"),
        ({"a": GOOD}, {"noise": np.ma.masked_array(NOISE, NOISE == NOISE[1])}, "noise = masked_array.*: expected no masked"),
        ({"site": GOOD[:, :5]}, {"changes": {"site": np.zeros((5, 6, 2, 4))}}, "dimension 'item'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(values, settings, message):
    with one_line_error(message):
        ut.readings(values, **{"noise": NOISE, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns="noise"),
            "the columns item, trajectory, rmsd; expected columns noise, item",
        ),
        (lambda table: pd.concat([table, table.tail(1)]), "row 301 of the table repeats noise = "),
        (
            lambda table: table.drop(columns="trajectory"),
            "number several U-turns of an original by a column trajectory",
        ),
        (
            lambda table: table.assign(rmsd=["?", *table.rmsd[1:]]),
            "a.csv: column rmsd: row 1 has '\\?'; expected numbers",
        ),
        (
            lambda table: table.assign(rmsd=["1" * 400, *range(1, len(table))]),
            "a.csv: column rmsd has an integer beyond",
        ),
        (
            lambda table: pd.concat([table, table.rmsd], axis=1),
            "the table has several columns rmsd; give them other names",
        ),
    ],
)
def test_mistakes_in_tables_are_one_line(tmp_path, change, message):
    change(long_form({"rmsd": rmsd()})).to_csv(tmp_path / "a.csv", index=False)
    with one_line_error(message):
        read_readings(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text[: text.rindex(",")],
            "line 301 has 3 cells, the header 4; is the file cut short?",
        ),
        (
            lambda text: text[: text.rindex(",") + 1],
            "the last line ends in '' without a line break",
        ),
        (
            lambda text: text[: text.rindex(",") + 1] + "1e",
            "the last line ends in '1e' without a line break",
        ),
        (
            lambda text: text.replace("0.5,3,", '0.5,"3,').replace("0.5,4,", '0.5,4",', 1),
            "a quote in line .* opens a cell that",
        ),
        (
            lambda text: text.replace("0.5,3,", '0.5,"3,', 1),
            "a quote in line .* opens a cell that ends in line 301",
        ),
        (
            lambda text: text[: text.rindex(",") + 1] + "-0.",
            "the last line ends in '-0.' without a line break",
        ),
    ],
)
def test_tables_that_are_cut_short_or_swallow_rows_are_one_line(tmp_path, change, message):
    (tmp_path / "a.csv").write_text(change(long_form({"rmsd": rmsd()}).to_csv(index=False)))
    with one_line_error(message):
        read_readings(tmp_path / "a.csv")


def test_sigma_and_abar_are_axes_where_no_log_snr_says_them():
    given = {"sigma": ("noise", [1.0, 2.0, 4.0]), "abar": ("noise", [0.9, 0.5, 0.1])}
    study = ut.study(
        ut.readings(
            {"kept": [[1.0] * 4, [0.6] * 4, [0.2] * 4]},
            [0.1, 0.2, 0.4],
            coords=given,
            chance={"kept": 0.0},
        )
    )
    np.testing.assert_allclose(
        study.half_life.sel(reading="kept", axis=["noise", "sigma", "abar"])[:, 0], [0.25, 2.5, 0.4]
    )


@pytest.mark.parametrize("name", ["log_snr", "t_over_T", "step", "timestep"])
def test_a_label_of_originals_is_no_axis_of_noise(name):
    run = ut.readings({"a": GOOD[:, :5]}, NOISE, start=0, coords={name: ("item", NOISE)})
    with pytest.raises(
        ValueError, match=rf"{name} = \[.*: expected numbers, one for each noise level"
    ):
        ut.study(run)


def test_labels_of_noise_levels_are_no_groups_of_originals():
    studies = [
        ut.study(ut.readings({"a": GOOD}, NOISE, start=0, coords={name: ("noise", range(5))}))
        for name in ("grammar", "x")
    ]
    np.testing.assert_array_equal(studies[0].curve, studies[1].curve)


def test_the_time_of_a_chain_is_not_taken_for_another_noise():
    """The study of a diffusion model has it in place of the noise."""
    coords = {"t_over_T": ("noise", NOISE / 2 / NOISE[-1])}
    with pytest.raises(
        ValueError,
        match=r"t_over_T = \[.*: expected the noise \[.* in whole steps, or another name",
    ):
        ut.study(ut.readings({"a": GOOD}, NOISE, start=0, coords=coords))


@pytest.mark.parametrize("name", ["items.csv", "difference.csv"])
def test_results_replace_no_table_that_is_studied(name, tmp_path):
    text = long_form({"rmsd": rmsd()}).to_csv(index=False)
    (tmp_path / name).write_text(text)
    done = uturn("study", name, "--out", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        f"out = '.': expected another folder; ['{tmp_path / name}'] would be replaced"
        in done.stderr
    )
    assert (tmp_path / name).read_text() == text


def test_tables_without_a_last_line_break_and_with_blank_lines_are_whole(tmp_path):
    text = long_form({"rmsd": rmsd()}).to_csv(index=False)
    for k, other in enumerate(
        (text, text.rstrip(), text + "\n  \n", text.replace("\n", "\r\n"), text.replace("\n", "\r"))
    ):
        (tmp_path / f"{k}.csv").write_bytes(other.encode())
        assert read_readings(tmp_path / f"{k}.csv").rmsd.equals(
            read_readings(tmp_path / "0.csv").rmsd
        )


@pytest.mark.parametrize(
    ("values", "end", "doubtful"),
    [
        (["0.125", "0.250", "0.75"], "", True),
        (["0.125", "0.250", "0.75"], "\r\n", False),
        (["0.125", "0.250", "0.750"], "", False),  # as long as the others
        (["0.25", "0.5", "1.25e-0"], "", True),  # of 1.25e-07
        (["1", "0", "1"], "", False),
    ],
)
def test_a_last_number_that_may_be_cut_is_doubted(values, end, doubtful, tmp_path):
    """A file without a last line break may be whole, so that its numbers are used."""
    rows = [f"{noise},x,{value}" for noise, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("\n".join(["noise,item,a", *rows]) + end)
    run = read_readings(tmp_path / "a.csv")
    assert run.a.values.ravel().tolist() == pytest.approx([float(value) for value in values])
    said = [
        text
        for text in warnings_of(run.attrs)
        if f"ends in {values[-1]!r}, has no line break" in text
    ]
    assert len(said) == doubtful


def test_what_is_guessed_is_said():
    rng = np.random.default_rng(0)
    unknown = ut.study(
        ut.readings(
            {
                "energy": rng.normal(size=(5, 6)) - 5,
                "tm": 0.9 - 0.8 * NOISE[:, None] * rng.random((5, 6)),
            },
            NOISE,
        )
    )
    assert "energy: no start is given: no half-life" in remarks(unknown)
    assert "tm: its start is taken as 1, which is a guess: give start" in remarks(unknown)
    # Of cards and pages.
    assert headline_of(unknown).claim.endswith(
        "; its start is taken as 1, which is a guess: give start."
    )
    # 59 of 60 at the first level, 60 of 60 beyond.
    kept = (np.arange(60) > 0)[None] | (np.arange(5) > 0)[:, None]
    run = ut.readings({"same_fold": kept, "sound": kept}, NOISE)
    assert ut.choose(run, "same_fold", 0.9).keep.words == "same_fold >= 0.9"
    rising = ut.readings({"sound": kept & (np.arange(60) < [[9], [29], [39], [49], [60]])}, NOISE)
    assert "sound: its start is taken as 0, which is a guess: give start" in remarks(
        ut.study(rising)
    )
    given = ut.study(
        ut.readings(
            {"energy": rng.normal(size=(5, 6)), "tm": rng.random((5, 6))},
            NOISE,
            start={"energy": 0, "tm": 1},
        )
    )
    assert not [line for line in remarks(given) if "start" in line]


# --- the example ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unsaved_figures")
def test_structures(tmp_path, monkeypatch, capsys):
    """Files of structures to readings: RMSD as computed by hand, a missing version, and a page."""
    load_structure = pytest.importorskip("biotite.structure.io").load_structure
    save_structure = pytest.importorskip("biotite.structure.io").save_structure
    for name, arguments in (
        ("structures_data", (tmp_path, "--originals", "3", "--trajectories", "3")),
        ("structures", (tmp_path, "--out", tmp_path / "out")),
    ):
        if name == "structures":
            (tmp_path / "noise_4/bundle01_2.pdb").unlink()
            version = tmp_path / "noise_2/bundle00_1.pdb"
            save_structure(version.with_suffix(".cif"), load_structure(version))
            version.unlink()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    study = xr.open_zarr(tmp_path / "out/study.zarr", consolidated=False)
    assert "1 of 90 readings are missing: bundle01 at noise 4" in said
    distances = []
    for item in range(3):
        files = [
            tmp_path / f"original/bundle{item:02d}.pdb",
            *tmp_path.glob(f"noise_2/bundle{item:02d}_*"),
        ]
        x, *versions = (load_structure(file).coord.astype(float) for file in files)
        for y in versions:  # Kabsch: the rotation from the singular vectors of the covariance
            a, b = x - x.mean(0), y - y.mean(0)
            u, s, v = np.linalg.svd(a.T @ b)
            s[-1] *= np.sign(np.linalg.det(u @ v))
            distances.append(np.sqrt(((a**2).sum() + (b**2).sum() - 2 * s.sum()) / len(x)))
    curve = study.curve.sel(noise=2, estimate="value")
    assert float(curve.sel(reading="rmsd")) == pytest.approx(np.mean(distances), rel=1e-3)
    assert (study.chi.sel(noise=2, estimate="value") > 1).all()


def test_a_column_of_labels_is_a_coordinate():
    """A number that is the same in all rows of an item labels it, unless it is 0 or 1, or an
    item has one level.
    """
    table = long_form(
        {"rmsd": rmsd(), "mass": np.broadcast_to(np.arange(20)[:, None] + 7.5, (5, 20, 3))}
    )
    run = ut.readings(table.assign(charged=(table["item"] > 8).astype(int)), start={"rmsd": 0})
    assert run["mass"].dims == ("item",)
    assert set(run.data_vars) == {"rmsd", "charged"}
    assert (
        "mass is the same in all rows of an item, so it is a coordinate, not a reading"
        in remarks(ut.study(run))
    )
    one_level = ut.readings(table[table["noise"] == table["noise"].max()])
    assert set(one_level.data_vars) == {"rmsd", "mass"}
    chosen = ut.readings(table, start={"rmsd": 0}, coords=["mass"])
    assert not [line for line in remarks(ut.study(chosen)) if "mass" in line]


def test_a_table_of_few_u_turns_in_many_places_is_refused_before_memory_is_taken():
    """Trajectories that are numbered over all originals."""
    count = np.arange(700)
    table = pd.DataFrame({"noise": count, "item": count, "trajectory": count, "kept": 1.0})
    words = "places for the {0} rows of the table = '{0} noise x {0} item x {0} trajectory'"
    some = table[:200].assign(**{f"r{k}": 1.0 for k in range(9)})
    with pytest.raises(ValueError, match=words.format(200)):
        ut.readings(some)
    with pytest.raises(ValueError, match=words.format(700)):
        ut.readings(table)


def test_levels_in_a_small_unit_are_not_noise_0():
    noise, kept = (
        np.array([1.0, 2, 4, 8]),
        np.array([[1.0] * 20, [1] * 15 + [0] * 5, [1] * 8 + [0] * 12, [0] * 20]),
    )
    of, of_small = (
        ut.study(ut.readings({"kept": kept}, noise * unit, start=1, chance=0))
        for unit in (1, 1e-10)
    )
    assert np.allclose(of_small.half_life * 1e10, of.half_life, equal_nan=True)
    assert np.allclose(of_small.curve, of.curve)


def test_levels_alike_to_six_digits_have_columns_of_their_own(tmp_path):
    noise = np.array([20000.51, 20000.52, 20001])
    write_study(ut.readings({"d": np.arange(12.0).reshape(3, 4) ** 2}, noise), tmp_path)
    of_items = pd.read_csv(tmp_path / "items.csv")
    assert (
        of_items[[f"d at {level}" for level in noise]].to_numpy().tolist()
        == (np.arange(12).reshape(3, 4) ** 2).T.tolist()
    )


def test_labels_with_names_of_columns_replace_none(tmp_path):
    coords = {
        "item": [*"abcd"],
        "name": ("item", [*"wxyz"]),
        "d at 1": ("item", [5] * 4),
        "value": ("noise", [7, 8, 9]),
    }
    write_study(
        ut.readings({"d": np.arange(12).reshape(3, 4) ** 2}, [1.0, 2, 4], coords=coords), tmp_path
    )
    of_items, curves = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("items", "curves"))
    assert of_items[["name", "name_of_item"]].agg("".join).tolist() == ["abcd", "wxyz"]
    assert of_items[["d at 1", "d at 1_of_item"]].to_numpy().tolist() == [
        [0, 5],
        [1, 5],
        [4, 5],
        [9, 5],
    ]
    assert curves["value_of_noise"].tolist()[1:] == [7, 8, 9]
    assert curves["value"].tolist()[1:] == [3.5, 31.5, 91.5]


def test_readings_that_single_precision_rounds_are_said_to_be():
    noise, of = [1.0, 2.0, 4.0], np.arange(12.0).reshape(3, 4)
    coarse, fine, equal = (
        ut.readings({"energy": 1e8 + scale * of}, noise) for scale in (1, 1e6, 1e-7)
    )
    said = (
        "energy varies by few of the steps of single precision, in which readings are stored:"
        " subtract an offset"
    )
    assert [said in warnings_of(run.attrs) for run in (coarse, fine, equal)] == [True, False, False]
