"""Stores: readings bound to their places, layouts that are checked, completeness, runs that grow, processes that end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from uturn.cli import app
from uturn.core import files
from uturn.core.spec import filled
from uturn.engine import measuring
from uturn.engine.tasks import Tasks
from uturn.store.record import Store, Variable

SPEC = {
    "seed": 3,
    "items": 10,
    "trajectories": 2,
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3, "grammars": 2},
    "corruption": {"type": "masking", "noise": [0.0, 0.4, 1.0]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


def experiment(noise=None, grammars=None, **changes):
    spec = {**SPEC, **changes}
    if noise is not None:
        spec["corruption"] = {**spec["corruption"], "noise": noise}
    if grammars is not None:
        spec["source"] = {**spec["source"], "grammars": grammars}
    return ut.Experiment.from_dict(spec)


def files_of(folder):
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    ut.run(experiment(), folder)
    return folder


@pytest.fixture
def store(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def measured(monkeypatch):
    """The tasks that are measured: (noise level, items)."""
    found, measurements = [], measuring.measurements

    def recorded(self, tasks, first=0):
        def seen():
            for task in tasks:
                found.append((self.noise[task[1]], task[2].tolist()))
                yield task

        return measurements(self, seen(), first)

    monkeypatch.setattr("uturn.engine.tasks.measurements", recorded)
    return found


# -- readings in their places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["unchanged", "belief"], ["unchanged"], ["unchanged", "belief", "tasks/records"]])
@pytest.mark.parametrize(("taken", "put"), [("1/0", "2/0"), ("1/0", "1/1")])
def test_a_valid_chunk_in_the_place_of_another_is_noticed(store, names, taken, put):
    before = files_of(store)
    for name in names:
        chunks = store / name / "c"
        rest = next((chunks / taken).rglob("*0")) if (chunks / taken).is_dir() else chunks / taken
        ends = [path.relative_to(chunks / taken) for path in (chunks / taken).rglob("*") if path.is_file()]
        shutil.copyfile(chunks / taken / ends[0], chunks / put / ends[0])
        assert rest.exists()
    states = [state for state, _ in Store.open(store).states().values()]
    assert states.count("damaged") == 1
    assert Store.open(store).dataset().attrs["missing_tasks"] == 1
    with pytest.warns(UserWarning, match="holds the values of another noise level or other items"):
        ut.run(experiment(), store)
    assert files_of(store) == before


def test_a_flipped_bit_of_a_record_is_noticed(store):
    before = files_of(store)
    record = next(path for path in (store / "tasks" / "records" / "c").rglob("*") if path.is_file())
    record.write_bytes(record.read_bytes()[:-1] + b"\0")
    with pytest.warns(UserWarning, match="damaged"):
        ut.run(experiment(), store)
    assert files_of(store) == before


def edited(folder, name, change):
    """Change the metadata of an array, or of the store for ""."""
    path = folder / name / "zarr.json"
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))


LAYOUTS_THAT_DO_NOT_AGREE = [
    ("", lambda t: t["attributes"].pop("identity")),
    ("", lambda t: t["attributes"].pop("spec")),
    ("", lambda t: t["attributes"].update(identity="{")),
    ("", lambda t: t["attributes"].update(models=3)),
    ("", lambda t: t["attributes"].update(identity=t["attributes"]["identity"].replace('"items": 10', '"items": 9'))),
    ("", lambda t: t["attributes"].update(identity=t["attributes"]["identity"].replace('"items": 10', '"items": "10"'))),
    ("", lambda t: t["attributes"].update(identity=t["attributes"]["identity"].replace("[0.0, 0.4, 1.0]", "[0.0, 0.4]"))),
    ("", lambda t: t["attributes"].update(coordinates="unchanged")),
    ("unchanged", lambda t: t["attributes"].update(scale_factor=3.0)),
    ("unchanged", lambda t: t["attributes"].update(_FillValue=1.0)),
    ("", lambda t: t["consolidated_metadata"]["metadata"]["belief"]["attributes"].update(scale_factor=2)),
    ("", lambda t: t["attributes"].update(chunk=5)),
    ("", lambda t: t["attributes"].update(chunk=0)),
    ("", lambda t: t["attributes"].update(chunk=True)),
    ("", lambda t: t["attributes"].update(variables=[])),
    ("", lambda t: t["attributes"].update(variables=["unchanged", "grammar"])),
    ("", lambda t: t["attributes"].update(variables=["../run/belief"])),
    ("unchanged", lambda t: t.update(fill_value=0.5)),
    ("unchanged", lambda t: t.update(shape=[3, 11, 2, 4])),
    ("unchanged", lambda t: t["chunk_grid"]["configuration"].update(chunk_shape=[1, 5, 2, 4])),
    ("unchanged", lambda t: t.update(data_type="int32", fill_value=0)),
    ("tasks/records", lambda t: t.update(fill_value=2)),
    ("tasks/records", lambda t: t.update(shape=[3, 2, 3])),
    ("item", lambda t: t.update(shape=[9])),
]


def test_layouts_that_do_not_agree_are_refused(store):
    for name, change in LAYOUTS_THAT_DO_NOT_AGREE:
        before = (store / name / "zarr.json").read_bytes()
        edited(store, name, change)
        with pytest.raises(ValueError, match="is not a readable store") as error:
            ut.run(experiment(), store)
        assert "\n" not in str(error.value)
        assert isinstance(CliRunner().invoke(app, ["status", str(store)]).exception, ValueError)
        (store / name / "zarr.json").write_bytes(before)
    assert ut.run(experiment(), store).attrs["complete"]


@pytest.mark.parametrize("shape", [None, "x", [2**40], [2]])
def test_a_coordinate_of_another_shape_is_not_written_over(store, shape):
    edited(store, "effective_epsilon", lambda t: t.update(shape=shape))
    with pytest.raises(ValueError, match="'effective_epsilon' is not as here; choose another folder"):
        ut.run(experiment(), store)
    if shape != [2]:
        with pytest.raises(ValueError, match="the coordinate effective_epsilon is damaged"):
            Store.open(store).dataset()


@pytest.mark.parametrize("change", [{"attributes": [1]}, {"attributes": 0}, {"dimension_names": None}])
def test_damaged_metadata_of_a_coordinate_are_named(store, change):
    edited(store, "tree_level", lambda t: t.update(change))
    with pytest.raises(ValueError, match="the coordinate tree_level is not of this store"):
        Store.open(store).dataset()


@pytest.mark.parametrize("place", ["s3:/bucket/run", "https://host/run", "s3://", "a\0b", 5, 1.5])
def test_places_that_are_none(place):
    with pytest.raises(ValueError, match="store = "):
        ut.run(experiment(), place)
    with pytest.raises(ValueError, match="store = "):
        Store.open(place)


@pytest.mark.parametrize(
    ("name", "change", "sound"),
    [
        ("effective_epsilon", 5e-8, True),  # another quadrature
        ("effective_epsilon", 1e-6, False),
        ("noise", 1e-9, False),  # the digests of the readings depend on it
        ("tree_level", 1, False),
    ],
)
def test_coordinates_agree_up_to_rounding(store, recwarn, name, change, sound):
    before = Store.open(store).coordinate(name)
    Store.open(store)._array(name)[1] = before[1] + change
    ut.run(experiment(), store)
    assert [str(w.message) for w in recwarn if "is damaged" in str(w.message)] == (
        [] if sound else [f"{store}: the coordinate {name} is damaged; it is written again"]
    )
    after = Store.open(store).coordinate(name)
    assert (after[1] == before[1]) == (not sound)
    assert Store.open(store).dataset().attrs["complete"]


# -- completeness -----------------------------------------------------------------------------------------------------


def test_datasets_know_whether_they_are_complete(store, tmp_path):
    assert ut.run(experiment()).attrs["complete"] is True
    for ds in (ut.run(experiment(), store), xr.open_zarr(store), Store.open(store).dataset()):
        assert ds.attrs["complete"] is True
        assert ds.attrs["missing_tasks"] == 0
    share = ut.run(experiment(), tmp_path / "shares", shard=(1, 2))
    for ds in (share, xr.open_zarr(tmp_path / "shares"), Store.open(tmp_path / "shares").dataset()):
        assert ds.attrs["complete"] is False
        assert ds.attrs["missing_tasks"] == 4
    assert ut.run(experiment(), tmp_path / "shares", shard=(2, 2)).attrs["complete"] is True
    assert files_of(tmp_path / "shares") == files_of(store)
    shutil.rmtree(store / "belief" / "c" / "1" / "1")
    assert Store.open(store).dataset().attrs["missing_tasks"] == 1


def test_a_lost_chunk_of_nothing_but_nan_is_missing(tmp_path):
    """Absent chunks are read as NaN, so the values alone would not show it."""
    (tmp_path / "run").mkdir()
    opened = Store.create(
        tmp_path / "run",
        {"change": Variable(("noise", "item"), "a variable")},
        {dim: ((dim,), [0], {}) for dim in ("noise", "item", "trajectory")},
        1,
        {
            "spec": "{}",
            "identity": '{"items": 1, "trajectories": 1, "chunk": 1, "corruption": {"noise": [0]}}',
            "models": "{}",
            "spec_hash": "",
        },
    )
    (task,) = opened.tasks()
    opened.write(task, {"change": np.full(1, np.nan, np.float32)})
    assert opened.states() == opened.states(look=False) == {task: ("done", 1)}
    (tmp_path / "run" / "change" / "c" / "0" / "0").unlink()
    assert opened.states() == opened.states(look=False) == {task: ("missing", 0)}
    assert opened.done([task]) == {task: 0}


def test_interrupted_runs_record_what_is_missing(tmp_path, monkeypatch):
    write, calls = Store.write, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ut.run(experiment(), tmp_path / "run")
    assert xr.open_zarr(tmp_path / "run").attrs["missing_tasks"] == 9 - 3


def test_status(store):
    shutil.rmtree(store / "belief" / "c" / "1" / "1")
    shutil.copyfile(store / "belief" / "c" / "1" / "0" / "0", store / "belief" / "c" / "2" / "0" / "0")
    before = files_of(store)
    done = CliRunner().invoke(app, ["status", str(store)])
    assert done.exit_code == 0
    assert "7 of 9 tasks done, 1 missing, 1 damaged" in done.output
    assert "damaged: noise 1, items 0 to 3" in done.output
    assert '"multiplicity": 2' in done.output
    assert files_of(store) == before


# -- larger runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("larger", "new"),
    [
        # 10 items in blocks of 4: the third block is cut short, and is measured again with its new items.
        (experiment(items=20, grammars=4), [(x, list(range(a, a + 4))) for x in (0.0, 0.4, 1.0) for a in (8, 12, 16)]),
        (experiment(noise=[0.0, 0.2, 0.4, 0.7, 1.0]), [(x, b) for x in (0.2, 0.7) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
        (experiment(noise=[1.0, 0.4, 0.0, 0.3]), [(0.3, b) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
        # Beliefs are means over trajectories: all are measured again.
        (experiment(trajectories=3), [(x, b) for x in (0.0, 0.4, 1.0) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
        (experiment(items=20, grammars=4, noise=[0.0, 0.4, 0.5, 1.0], chunk=10), None),
    ],
)  # fmt: skip
def test_an_extended_store_is_a_fresh_one(store, measured, tmp_path, larger, new):
    extended = ut.run(larger, store)
    found = sorted(measured)
    fresh = ut.run(larger, tmp_path / "fresh")
    assert files_of(store) == files_of(tmp_path / "fresh")
    assert extended.identical(fresh)
    if new is not None:
        assert found == sorted(new)
    else:  # other blocks: those of the first ten items at old levels are kept
        assert found == sorted((x, list(range(a, a + 10))) for x in larger.noise for a in (0, 10) if a or x == 0.5)
    assert [path.name for path in store.parent.iterdir() if path.name.startswith(".")] == []


def test_readings_stay_with_their_items_in_smaller_blocks(tmp_path):
    """Blocks of two items are cut out of the middle of stored blocks of four."""
    larger = experiment(noise=[0.0, 0.4, 0.7, 1.0], chunk=2)
    ut.run(experiment(), tmp_path / "run")
    ut.run(larger, tmp_path / "run")
    ut.run(larger, tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


def test_a_block_has_the_trajectories_that_all_of_its_items_have(tmp_path, monkeypatch):
    """A run with more trajectories is stopped after the first four items; then it goes on in blocks of ten items."""
    ut.run(experiment(), tmp_path / "run")
    write = Store.write

    def interrupted(self, task, arrays, *counts):
        if not counts and task.item_block:
            raise KeyboardInterrupt
        write(self, task, arrays, *counts)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ut.run(experiment(trajectories=3), tmp_path / "run")
    larger = experiment(trajectories=3, noise=[0.0, 0.4, 0.7, 1.0], chunk=10)
    ut.run(larger, tmp_path / "run")
    ut.run(larger, tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


def test_one_grammar_serves_any_number_of_items(tmp_path):
    ut.run(experiment(grammars=1), tmp_path / "run")
    ut.run(experiment(grammars=1, items=11), tmp_path / "run")
    ut.run(experiment(grammars=1, items=11), tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


def test_extension_is_logged(store, caplog):
    with caplog.at_level("INFO", logger="uturn"):
        ut.run(experiment(items=20, grammars=4, noise=[0.0, 0.4, 0.55, 1.0]), store)
    assert caplog.messages == [f"{store} is extended by items 10 -> 20, noise 0.55"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (experiment(items=20), "the first 10 items would be of other grammars; expected grammars = 4"),
        (experiment(items=15, grammars=2), "expected grammars = 3"),
        (experiment(items=13, grammars=2), "expected items in a multiple"),
        (experiment(items=20, grammars=4, seed=4), r"spec\.seed is 3 in the store, 4 here"),
        (experiment(items=8), r"spec\.items is 10 in the store, 8 here"),
        (experiment(items=20, grammars=4, trajectories=1), r"spec\.items is 10 in the store, 20 here"),
        (experiment(noise=[0.0, 0.4]), r"spec\.corruption\.noise"),
        (experiment(noise=[0.0, 0.5, 1.0, 0.9]), r"spec\.corruption\.noise"),
        (experiment(chunk=5), r"spec\.chunk"),
        (experiment(clones=2, items=8), r"spec\.clones is 1 in the store, 2 here"),
    ],
)
def test_only_a_larger_run_extends_a_store(store, other, message):
    before = files_of(store)
    with pytest.raises(ValueError, match=message) as error:
        ut.run(other, store)
    assert "\n" not in str(error.value)
    assert files_of(store) == before


class Drifting(ut.sources.RHMSource):
    """Originals that depend on the number of items."""

    type: str = "drifting"

    def blocks(self, items, seed, num_items):
        return super().blocks(items, seed + num_items, num_items)


def test_originals_that_change_with_the_number_of_items_are_noticed(tmp_path):
    own = {**SPEC["source"], "type": f"{__name__}:Drifting", "grammars": 1}
    ut.run(experiment(source=own), tmp_path / "run")
    with pytest.raises(ValueError, match="gives item 0 another original than before"):
        ut.run(experiment(source=own, items=12), tmp_path / "run")


class OneChanges(ut.sources.RHMSource):
    """The original of item 7 depends on the number of items, or only a coordinate does."""

    type: str = "one changes"
    changes: str = "item"

    def blocks(self, items, seed, num_items):
        for item in items.tolist():
            changed = num_items if item == 7 and self.changes == "item" else 0
            yield from super().blocks(np.array([item]), seed + changed, 100)

    def coordinates(self, seed, num_items):
        return {"place": np.arange(num_items) / (num_items if self.changes == "place" else 1)}


@pytest.mark.parametrize(
    ("changes", "message"), [("item", "gives item 7 another original"), ("place", "place of the first 10 items would change")]
)
def test_every_old_item_of_an_own_source_is_compared(tmp_path, changes, message):
    own = {**SPEC["source"], "type": f"{__name__}:OneChanges", "grammars": 1, "changes": changes}
    ut.run(experiment(source=own), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        ut.run(experiment(source=own, items=12), tmp_path / "run")


class Bare:
    """A source, a backward process and a probe of blocks that have no data."""

    outputs = ()

    def blocks(self, items, seed, num_items):
        yield SimpleNamespace(items=items, observed_by=lambda corruption, noise, streams: None)

    def reconstruct(self, noisy, streams, clones):
        return np.zeros((len(streams.items), streams.count * clones))

    def variables(self, source):
        return {"change": Variable(("noise", "item", "trajectory"), "nothing")}

    def coordinates(self, *_):
        return {}

    def read(self, u_turns, source):
        return {"change": u_turns.reconstructions}

    def fingerprint(self):
        return ""


def test_blocks_without_data_cannot_show_that_originals_stay(tmp_path):
    own = {"type": f"{__name__}:Bare"}
    parts = {"source": own, "backward": own, "probes": [own]}
    ut.run(experiment(**parts), tmp_path / "run")
    ut.run(experiment(**parts, noise=[0.0, 0.3, 0.4, 1.0]), tmp_path / "run")  # the same items
    with pytest.raises(ValueError, match=r"blocks of source .* have no `data`"):
        ut.run(experiment(**parts, items=12, noise=[0.0, 0.3, 0.4, 1.0]), tmp_path / "run")


def test_a_store_behind_a_link_stays_where_it_is(tmp_path):
    (tmp_path / "disk").mkdir()
    ut.run(experiment(grammars=1), tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    ut.run(experiment(grammars=1, items=12), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Store.open(tmp_path / "disk" / "real").num_items == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("when", ["layout", "first copy", "exchange", "after"])
def test_killed_while_it_extends(store, tmp_path, monkeypatch, when):
    larger, old, exchange = experiment(items=20, grammars=4), files_of(store), files.exchange_folders

    class Killed(BaseException):
        """SIGKILL: nothing is caught, nothing is tidied up."""

    def killed(*_, **__):
        raise Killed

    import uturn.store.record as module

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        if when == "layout":
            patch.setattr(module, "_consolidate", killed)
        elif when == "first copy":
            patch.setattr(Store, "write", killed)
        elif when == "exchange":
            patch.setattr(files, "exchange_folders", killed)
        else:
            patch.setattr(files, "exchange_folders", lambda *paths: (exchange(*paths), killed()))
        with pytest.raises(Killed):
            ut.run(larger, store)
    if when == "after":
        assert Store.open(store).attributes["spec_hash"] == larger.hash
    else:
        assert files_of(store) == old
        assert ut.run(experiment(), store).attrs["complete"]
    ut.run(larger, store)
    ut.run(larger, tmp_path / "fresh")
    assert files_of(store) == files_of(tmp_path / "fresh")


def test_damage_does_not_spread_into_an_extended_store(store, tmp_path):
    chunk = store / "unchanged" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"\0\0")
    with pytest.warns(UserWarning, match="damaged"):
        ut.run(experiment(items=20, grammars=4), store)
    ut.run(experiment(items=20, grammars=4), tmp_path / "fresh")
    assert files_of(store) == files_of(tmp_path / "fresh")


def test_a_writer_of_the_old_layout_stops(store):
    old = Store.open(store)
    task = next(old.tasks())
    readings = old.read(task, 2)
    ut.run(experiment(noise=[0.0, 0.2, 0.4, 1.0]), store)
    with pytest.raises(ValueError, match="another process has extended the store"):
        old.write(task, readings)


def test_two_processes_extend_one_store(store, tmp_path):
    larger = experiment(items=40, grammars=8, noise=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    (tmp_path / "spec.json").write_text(json.dumps(larger.to_dict()))
    (tmp_path / ".run.0123abcd.unfinished").mkdir()  # left behind by a process that was killed
    (tmp_path / "run.mine.partial").mkdir()
    words = [sys.executable, "-m", "uturn.cli", "run", "spec.json", "--store", "run"]
    both = [subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted(told)[0] == ""
    assert sorted(told)[1].startswith("uturn: run is extended by items 10 -> 40, noise 0.2, 0.6, 0.8")
    ut.run(larger, tmp_path / "fresh")
    assert files_of(store) == files_of(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "run", "run.mine.partial", "spec.json"]


IMAGES = {
    "items": 3,
    "chunk": 2,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.5, 1.0]},
    "backward": {"type": "diffusion", "steps": 4},
    "probes": [{"type": "network_layers", "reference": 20}, {"type": "images", "first": 2}],
}


@pytest.mark.usefixtures("unchecked_models")
def test_image_runs_grow(tmp_path, monkeypatch):
    """Only the new trajectories are measured: no variable of a network is a mean over them."""
    from uturn.backward.reverse_diffusion import ReverseDiffusion

    counts, queue = [], ReverseDiffusion.queue

    def counted(self, work):
        def seen():
            for one in work:
                counts.append(one)
                yield one

        return queue(self, seen())

    monkeypatch.setattr(ReverseDiffusion, "queue", counted)
    small = ut.Experiment.from_dict(IMAGES)
    larger = ut.Experiment.from_dict({**IMAGES, "items": 5, "trajectories": 3})
    ut.run(small, tmp_path / "run")
    assert len(counts) == 6
    counts.clear()
    # Two levels. Items 0 and 1: two more trajectories; items 2 and 3 share a block that was cut short; item 4 is new.
    extended = ut.run(larger, tmp_path / "run").load()
    assert len(counts) == 2 * (2 * 2 + 2 * 3 + 3)
    fresh = ut.run(larger, tmp_path / "fresh").load()
    for name in fresh.data_vars:
        difference = np.abs(extended[name] - fresh[name])
        assert float(difference.max()) < 2e-5, name
        assert (extended[name].isnull() == fresh[name].isnull()).all()
    assert Store.open(tmp_path / "run").dataset().attrs["complete"]


# -- more clones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 5)])
@pytest.mark.parametrize("more", [{}, {"trajectories": 3}, {"noise": [0.0, 0.2, 0.4, 1.0], "items": 20, "grammars": 4}])
def test_more_clones_extend_a_finished_store(tmp_path, before, after, more):
    ut.run(experiment(clones=before), tmp_path / "run")
    old = Store.open(tmp_path / "run").dataset().load()
    extended = ut.run(experiment(clones=after, **more), tmp_path / "run").load()
    ut.run(experiment(clones=after, **more), tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")
    kept = extended.unchanged.sel(noise=old.noise, item=old.item).isel(trajectory=slice(2), clone=slice(before))
    assert np.array_equal(kept, old.unchanged if before > 1 else old.unchanged.expand_dims("clone", 3))


@pytest.mark.parametrize("before", [1, 2])
def test_clones_that_are_stored_stay_while_others_are_added(tmp_path, monkeypatch, before):
    """A run with more clones that is stopped after its first task keeps all old readings, and shows no twin of them."""
    ut.run(experiment(clones=before), tmp_path / "run")
    old = Store.open(tmp_path / "run").dataset().load()
    write, written = Store.write, []

    def interrupted(self, task, arrays, *counts):
        if not counts:
            if written:
                raise KeyboardInterrupt
            written.append(task)
        write(self, task, arrays, *counts)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ut.run(experiment(clones=3), tmp_path / "run")
    half = Store.open(tmp_path / "run").dataset().load()
    assert half.attrs["missing_tasks"] == 8
    assert np.array_equal(half.unchanged.isel(clone=slice(before)), old.unchanged.values.reshape(3, 10, 2, before, 4))
    assert np.array_equal(half.belief, old.belief)
    assert half.unchanged.isel(noise=0, item=slice(4)).notnull().all()
    assert half.unchanged.isel(noise=1, clone=slice(before, None)).isnull().all()
    assert half.clone_unchanged.isel(noise=1).isnull().all()
    states = [state for state, _ in Store.open(tmp_path / "run").states().values()]
    assert states == ["done", *["part"] * 8]
    told = " ".join(CliRunner().invoke(app, ["status", str(tmp_path / "run")]).output.split())
    assert "1 of 9 tasks done, 8 with fewer trajectories or clones than the spec asks for, 0 missing" in told
    with pytest.raises(ValueError, match="not finished: 8 tasks"):
        ut.calibration(half, "unchanged")
    # Fewer clones than are stored are another experiment; still more extend the half of it.
    with pytest.raises(ValueError, match=r"spec\.clones is 3 in the store, 1 here; choose another folder$"):
        ut.run(experiment(clones=1), tmp_path / "run")
    ut.run(experiment(clones=4), tmp_path / "run")
    ut.run(experiment(clones=4), tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


def twins_of_fewer_clones_are_not_shown():
    """An extended store that no task has been measured in holds no comparison of clones."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        ut.run(experiment(clones=2), f"{folder}/run")

        def stopped(self, tasks, first=0):
            raise KeyboardInterrupt

        patch.setattr("uturn.engine.tasks.measurements", stopped)
        with pytest.raises(KeyboardInterrupt):
            ut.run(experiment(clones=3), f"{folder}/run")
        found = Store.open(f"{folder}/run").dataset().load()
        assert found.clone_unchanged.isnull().all()
        assert found.unchanged.isel(clone=slice(2)).notnull().all()


def test_records_and_readings_leave_the_same_tasks(tmp_path, monkeypatch):
    """A worker of a cluster looks at the records alone: tasks with fewer clones are not done by them either."""
    ut.run(experiment(clones=2), tmp_path / "run")

    def stopped(self, tasks, first=0):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uturn.engine.tasks.measurements", stopped)
        with pytest.raises(KeyboardInterrupt):
            ut.run(experiment(clones=3), tmp_path / "run")
    opened = Store.open(tmp_path / "run")
    work, tasks = Tasks(experiment(clones=3), opened), list(opened.tasks())
    assert work.recorded_left(tasks) == work.left(tasks) == dict.fromkeys(tasks, 0)


def test_readings_of_old_clones_are_not_replaced(tmp_path, monkeypatch):
    """Networks compute the same clone up to rounding: the stored readings stay. Damaged ones are measured."""
    ut.run(experiment(clones=2, grammars=1), tmp_path / "run")
    old = Store.open(tmp_path / "run").dataset().load()
    chunk = tmp_path / "run" / "unchanged" / "c" / "1" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"\0\0")
    read = ut.probes.TreeLevels.read

    def rounded(self, u_turns, source):
        return {name: values + 2**-20 for name, values in read(self, u_turns, source).items()}

    monkeypatch.setattr(ut.probes.TreeLevels, "read", rounded)
    with pytest.warns(UserWarning, match="damaged"):
        new = ut.run(experiment(clones=3, grammars=1), tmp_path / "run").load()
    kept = new.unchanged.isel(clone=slice(2)) == old.unchanged
    assert not kept.isel(noise=1, item=slice(4, 8)).any()
    assert kept.isel(noise=[0, 2]).all()
    assert kept.isel(noise=1, item=slice(4)).all()
    assert (new.unchanged.isel(clone=2, noise=0) > 1).all()


def test_processes_share_the_work_of_more_clones(tmp_path):
    ut.run(experiment(clones=2), tmp_path / "run")
    ut.run(experiment(clones=3), tmp_path / "run", workers=2)
    ut.run(experiment(clones=3), tmp_path / "fresh")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


# -- processes --------------------------------------------------------------------------------------------------------

LONG = {**SPEC, "items": 4000, "chunk": 2, "grammars": 1, "source": {**SPEC["source"], "depth": 8, "grammars": 1}}


def processes_of(group):
    """Processes of a process group that are not yet gone."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[2]) == group and stat[0] != "Z":
            found.append(int(pid))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at /proc")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_leaves_no_processes_behind(tmp_path, stop):
    spec = {key: value for key, value in LONG.items() if key != "grammars"}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    words = [sys.executable, "-m", "uturn.cli", "run", "spec.json", "--store", "run", "--workers", "2"]
    run = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    records = tmp_path / "run" / "tasks" / "records" / "c"
    deadline = time.monotonic() + 120
    while not (records.exists() and any(records.rglob("*"))):  # workers are at work
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(processes_of(run.pid)) >= 3
    run.send_signal(stop)
    _, told = run.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while processes_of(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(run.pid) == []
    if stop == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 128 + stop
        assert told.strip().splitlines() == ["stopped; what is done is in run; run the same command again to resume"]
        assert not Store.open(tmp_path / "run").dataset().attrs["complete"]


@pytest.mark.parametrize("name", ["s", "c", "d"])
def test_a_store_may_have_any_name(tmp_path, monkeypatch, name):
    """Relative paths that end like `tasks`, like `unchanged`, or like the folder of chunks."""
    monkeypatch.chdir(tmp_path)
    assert ut.run(experiment(), name).attrs["complete"]


# --- stores of older versions ------------------------------------------------------------------------------------------------

MASKED = {
    "source": {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2},
    "corruption": {"type": "masking", "noise": [0.0, 0.5]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}, {"type": f"{__name__}:Constant", "value": 2.0, "twice": False}],
}
GARMENTS = {
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.5]},
    "backward": {"type": "diffusion", "steps": 4},
    "probes": [{"type": "network_layers"}, {"type": "images"}],
}
DEFAULTS = {  # what version 4 wrote beside the options of these specs
    "rhm": {"num_classes": None, "grammars": 1, "zipf_exponent": None},
    "diffusion": {
        **{"model": "fashion_mnist", "preset": None, "scheduler": "ddpm", "eta": None, "timestep_spacing": None},
        **{"pure_noise": False, "dtype": "float32"},
    },
    "network_layers": {
        **{"classifier": "fashion_mnist", "weights": None, "name": None, "layers": None, "reference": 1000},
        **{"statistics": None, "legacy": False, "labels": True},
    },
    "images": {"first": None},
}


class Constant:
    """A probe of one's own, whose options have defaults too."""

    def __init__(self, value=1.0, twice=False):
        self.value = value * (1 + twice)

    def variables(self, source):
        return {"constant": Variable(("noise", "item"), "a constant")}

    def read(self, u_turns, source):
        return {"constant": np.full(len(u_turns.originals.items), self.value)}


def as_version_4(path):
    """Turn a store into one of version 4: with defaults in its spec and identity, but without `clones = 1` in the identity."""

    def full(table):
        return {**DEFAULTS.get(table["type"], {}), **table} if "noise" not in table else table

    layout = json.loads((path / "zarr.json").read_text())
    attributes = layout["attributes"]
    spec = {key: full(value) if isinstance(value, dict) else value for key, value in json.loads(attributes["spec"]).items()}
    spec["probes"] = [full(table) for table in spec["probes"]]
    identity = {key: value for key, value in spec.items() if (key, value) != ("clones", 1)}
    attributes.update(version=4, spec=json.dumps(spec), identity=json.dumps(identity), spec_hash="of version 4")
    (path / "zarr.json").write_text(json.dumps(layout))


def assert_close(measured, expected):
    """Networks compute up to rounding, which depends on the batch. Text is the same; xarray compares none with a tolerance."""
    text = [name for name, variable in expected.variables.items() if variable.dtype.kind not in "biuf"]
    xr.testing.assert_equal(measured[text], expected[text])
    xr.testing.assert_allclose(measured.drop_vars(text), expected.drop_vars(text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("parts", [MASKED, GARMENTS], ids=["strings", "images"])
def test_stores_of_version_4_resume_and_grow(tmp_path, parts):
    store, small = tmp_path / "run", ut.Experiment.from_dict({"items": 2, "chunk": 1, **parts})
    fresh = ut.run(small, store).load()
    as_version_4(store)
    name = fresh.attrs["variables"][0]
    shutil.rmtree(store / name / "c" / "0" / "1")  # a task is missing
    resumed = ut.run(small, store).load()
    assert resumed.attrs["version"] == 4
    assert_close(resumed, fresh)
    larger = ut.Experiment.from_dict({"items": 3, "chunk": 1, **parts})
    grown = ut.run(larger, store).load()
    assert grown.attrs["version"] == 5
    assert json.loads(grown.attrs["identity"]) == larger.identity()
    assert_close(grown, ut.run(larger).load())


@pytest.mark.parametrize(
    ("parts", "change", "message"),
    [
        (GARMENTS, {"backward": {**GARMENTS["backward"], "scheduler": "ddim"}}, r"scheduler is 'ddpm' in the store, 'ddim' here"),
        (GARMENTS, {"probes": [GARMENTS["probes"][0], {"type": "images", "first": 1}]}, "first is None in the store, 1 here"),
        (MASKED, {"source": {**MASKED["source"], "zipf_exponent": 1.0}}, r"zipf_exponent is None in the store, 1\.0 here"),
        # Defaults of a user-defined part are not known.
        (MASKED, {"probes": [MASKED["probes"][0], {**MASKED["probes"][1], "twice": True}]}, "twice is False in the store, True"),
    ],
)
@pytest.mark.parametrize("version", [4, 5])
def test_options_that_differ_from_a_default_are_noticed(tmp_path, version, parts, change, message):
    store = tmp_path / "run"
    ut.run(ut.Experiment.from_dict({"items": 1, **parts}), store)
    if version == 4:
        as_version_4(store)
    with pytest.raises(ValueError, match=message):
        ut.run(ut.Experiment.from_dict({"items": 1, **parts, **change}), store)


def test_specs_hold_what_differs_from_the_defaults():
    explicit = {**GARMENTS, "backward": {"type": "diffusion", "steps": 4, "scheduler": "ddpm", "guidance": 1, "eta": None}}
    brief, long = (ut.Experiment.from_dict({"items": 2, **parts}) for parts in (GARMENTS, explicit))
    assert long.to_dict() == brief.to_dict() == {"seed": 0, "items": 2, "trajectories": 1, "clones": 1, "chunk": 16, **GARMENTS}
    assert long.hash == brief.hash
    assert filled(brief.to_dict())["backward"]["scheduler"] == "ddpm"
    own = ut.Experiment.from_dict({"items": 2, **MASKED})
    assert own.to_dict()["probes"] == MASKED["probes"]
    assert filled(own.to_dict())["probes"] == MASKED["probes"]
