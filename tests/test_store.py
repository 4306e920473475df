"""Stores: readings bound to their places, layouts that are checked, completeness, runs that
grow, processes that end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from forging import forge
from small import one_line_error, strings
from uturn.cli import app
from uturn.core import random
from uturn.core.protocols import Variable
from uturn.core.registry import filled
from uturn.engine import measuring
from uturn.store.reading import dataset_of, open_run
from uturn.store.resume import attributes_of, layout_of, versions_used
from uturn.store.run_file import VERSION, RunFile
from uturn.store.run_folder import RunFolder, State

SPEC = strings(
    "masking", [0.0, 0.4, 1.0], source={"grammars": 2}, seed=3, items=10, trajectories=2, chunk=4
)


def experiment(noise=None, grammars=None, **changes):
    spec = {**SPEC, **changes}
    if noise is not None:
        spec["corruption"] = {**spec["corruption"], "noise": noise}
    if grammars is not None:
        spec["source"] = {**spec["source"], "grammars": grammars}
    return ut.Experiment.from_dict(spec)


def files_of(folder):
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def same_run(store, other):
    """Whether two stores hold the same numbers, labels and instructions, in any order of their
    arrays.
    """
    mine, others = (dataset_of(RunFolder.open(path)).load() for path in (store, other))
    return (
        mine.drop_attrs(deep=False).identical(others.drop_attrs(deep=False))
        and mine.spec_hash == others.spec_hash
    )


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


# -- readings in their places ----------------------------------------------------------------------


def file_of(store, noise, items):
    """The file of a task."""
    return next((store / "tasks").glob(f"noise_{noise}-items_{items}-*"))


def states_of(store):
    return [progress.state for progress in RunFolder.open(store).states().values()]


@pytest.mark.parametrize(
    ("taken", "put"), [((0.4, "0_3"), (1.0, "0_3")), ((0.4, "0_3"), (0.4, "4_7"))]
)
def test_a_valid_file_in_the_place_of_another_is_noticed(store, taken, put):
    before = files_of(store)
    shutil.copyfile(file_of(store, *taken), file_of(store, *put))
    assert states_of(store).count(State.damaged) == 1
    assert dataset_of(RunFolder.open(store)).attrs["missing_tasks"] == 1
    with pytest.warns(UserWarning, match="holds the values of another noise level or other items"):
        ut.run(experiment(), store)
    assert files_of(store) == before


FORGED = [
    lambda run: run["attributes"]["identity"].update(items=9),
    lambda run: run["variables"]["belief"].update(dims=["noise", "item"]),
    lambda run: run["variables"]["belief"]["attributes"].update(reading="{}"),
    lambda run: run["coordinates"]["tree_level"].update(values=[0, 1, 2, 4]),
]


def test_metadata_that_are_not_as_they_were_written_are_refused(store):
    for change in FORGED:
        before = (store / "run.json").read_bytes()
        forge(store, change, signed=False)
        with one_line_error("is not a readable store"):
            ut.run(experiment(), store)
        with pytest.raises(ValueError, match="is not a readable store"):
            open_run(store)
        (store / "run.json").write_bytes(before)
    assert ut.run(experiment(), store).attrs["complete"]


def test_a_store_of_a_newer_version_asks_for_an_update(store):
    forge(store, lambda run: run.update(version=VERSION + 1), signed=False)
    with pytest.raises(ValueError, match="a newer uturn wrote it: update uturn"):
        open_run(store)


def test_a_store_of_an_older_version_is_to_be_made_again(tmp_path):
    """Runs up to version 0.4 are folders of zarr."""
    xr.Dataset({"unchanged": ("noise", [1.0])}).to_zarr(tmp_path / "run", zarr_format=3)
    for opened in (open_run, lambda store: ut.run(experiment(), store)):
        with pytest.raises(
            ValueError, match=r"as uturn 0\.4 and earlier wrote runs; measure again in"
        ):
            opened(tmp_path / "run")


@pytest.mark.parametrize(("seed", "version"), [(4, random.VERSION), (3, random.VERSION + 1)])
def test_a_file_of_another_run_is_noticed(seed, version, store, tmp_path, monkeypatch):
    """The same place in the store of another seed, or other random numbers."""
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(random, "VERSION", version)
        ut.run(experiment(seed=seed), other)
    shutil.copyfile(file_of(other, 0.4, "0_3"), file_of(store, 0.4, "0_3"))
    assert states_of(store).count(State.damaged) == 1


# -- completeness ----------------------------------------------------------------------------------


def test_datasets_know_whether_they_are_complete(store, tmp_path):
    assert ut.run(experiment()).attrs["complete"] is True
    for ds in (ut.run(experiment(), store), open_run(store)):
        assert ds.attrs["complete"] is True
        assert ds.attrs["missing_tasks"] == 0
    share = ut.run(experiment(), tmp_path / "shares", shard=(1, 2))
    for ds in (share, open_run(tmp_path / "shares")):
        assert ds.attrs["complete"] is False
        assert ds.attrs["missing_tasks"] == 4
    assert ut.run(experiment(), tmp_path / "shares", shard=(2, 2)).attrs["complete"] is True
    assert files_of(tmp_path / "shares") == files_of(store)
    file_of(store, 0.4, "4_7").unlink()
    assert dataset_of(RunFolder.open(store)).attrs["missing_tasks"] == 1


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place, words in (("file", "it is a file"), ("file/below", "file is a file")):
        for use in (lambda place: ut.run(experiment(), place), RunFolder.open, open_run):
            with pytest.raises(ValueError, match=rf"store = .*: expected a folder; .*{words}$"):
                use(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_options_that_could_do_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers = 2 needs a store"):
        ut.run(experiment(), workers=2)
    for name in ("cpus_per_worker", "gpus_per_worker"):
        with pytest.raises(ValueError, match=f"{name}: only used with cluster"):
            ut.run(experiment(), tmp_path / "run", **{name: 1})
    assert list(tmp_path.iterdir()) == []
    assert ut.run(experiment(), workers="auto").attrs["complete"]


def test_status(store):
    file_of(store, 0.4, "4_7").unlink()
    shutil.copyfile(file_of(store, 0.4, "0_3"), file_of(store, 1.0, "0_3"))
    before = files_of(store)
    done = CliRunner().invoke(app, ["status", str(store)])
    assert done.exit_code == 0
    assert "7 of 9 tasks done, 2 left (1 damaged)" in done.output
    assert "damaged: noise 1, items 0 to 3" in done.output
    assert '"multiplicity": 2' in done.output
    assert files_of(store) == before


# -- larger runs -----------------------------------------------------------------------------------


def test_a_backward_is_asked_for_missing_data_only_when_they_are_written(tmp_path, monkeypatch):
    """A sampler of inverse problems draws for the answer."""
    asked = []
    monkeypatch.setattr(
        "uturn.backward.denoiser.ExactPosterior.missing",
        lambda _, asking: asked.append(len(asking.noise)) or {},
    )
    for noise, expected in (([0.1], [1]), ([0.1], [1]), ([0.1, 0.2], [1, 2]), ([0.1, 0.2], [1, 2])):
        ut.run(experiment(noise), tmp_path / "run", workers=1)
        assert asked == expected


@pytest.mark.parametrize(
    ("larger", "new"),
    [
        # 10 items in blocks of 4: the third block is cut short, and is measured again with its new
        # items.
        (experiment(items=20, grammars=4), [(x, list(range(a, a + 4))) for x in (0.0, 0.4, 1.0) for a in (8, 12, 16)]),
        (experiment(noise=[0.0, 0.2, 0.4, 0.7, 1.0]), [(x, b) for x in (0.2, 0.7) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
        (experiment(noise=[1.0, 0.4, 0.0, 0.3]), [(0.3, b) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
        # Beliefs are means over trajectories: all are measured again.
        (experiment(trajectories=3), [(x, b) for x in (0.0, 0.4, 1.0) for b in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]),
    ],
)  # fmt: skip
def test_an_extended_store_holds_the_numbers_of_a_fresh_one(store, measured, tmp_path, larger, new):
    extended = ut.run(larger, store)
    assert sorted(measured) == sorted(new)
    fresh = ut.run(larger, tmp_path / "fresh")
    assert extended.identical(fresh)
    assert same_run(store, tmp_path / "fresh")
    assert [path.name for path in store.parent.iterdir() if path.name.startswith(".")] == []


def test_a_store_grows_step_by_step(tmp_path):
    """From fewer items than a task holds, by levels, items and trajectories, with missing tasks
    in between.
    """
    sizes = [
        (3, 1, [0.4], 1),
        (9, 3, [0.0, 0.4], 1),
        (9, 3, [0.0, 0.2, 0.4], 3),
        (30, 10, [0.0, 0.1, 0.2, 0.4, 1.0], 4),
    ]
    for items, grammars, noise, trajectories in sizes:
        larger = experiment(
            items=items, grammars=grammars, noise=noise, trajectories=trajectories, chunk=6
        )
        ut.run(larger, tmp_path / "run", shard=(1, 2))
    ut.run(larger, tmp_path / "run")
    ut.run(larger, tmp_path / "fresh")
    assert same_run(tmp_path / "run", tmp_path / "fresh")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (experiment(items=20), r"expected grammars in proportion to the items \(2 for 10\)"),
        (experiment(items=20, grammars=4, seed=4), r"spec\.seed is 3 in the store, 4 here"),
        (experiment(items=8), r"spec\.items is 10 in the store, 8 here"),
        (
            experiment(grammars=4, noise=[0.0, 0.4, 0.55, 1.0]),
            r"spec\.source\.grammars is 2 in the store, 4 here",
        ),
        (experiment(noise=[0.0, 0.5, 1.0, 0.9]), r"spec\.corruption\.noise"),
        (
            experiment(chunk=5),
            (
                r"spec\.chunk is 4 in the store, 5 here; choose another folder; a store grows .*"
                r" set chunk = 4"
            ),
        ),
        (
            experiment(clones=2),
            r"spec\.clones is 1 in the store, 2 here; choose another folder; .* so set clones = 1",
        ),
    ],
)
def test_only_a_larger_run_extends_a_store(store, other, message):
    before = files_of(store)
    with one_line_error(message):
        ut.run(other, store)
    assert files_of(store) == before


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
    ("changes", "message"),
    [
        ("item", "gives item 7 another original"),
        ("place", "place of the first 10 items would change"),
    ],
)
def test_every_old_item_of_an_own_source_is_compared(tmp_path, changes, message):
    own = {**SPEC["source"], "type": f"{__name__}:OneChanges", "grammars": 1, "changes": changes}
    ut.run(experiment(source=own), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        ut.run(experiment(source=own, items=12), tmp_path / "run")


def test_a_store_behind_a_link_stays_where_it_is(tmp_path):
    (tmp_path / "disk").mkdir()
    ut.run(experiment(grammars=1), tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    ut.run(experiment(grammars=1, items=12), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert RunFolder.open(tmp_path / "disk" / "real").num_items == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_damage_does_not_spread_into_an_extended_store(store, tmp_path):
    chunk = file_of(store, 0.4, "0_3")
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"\0\0")
    with pytest.warns(UserWarning, match="damaged"):
        ut.run(experiment(items=20, grammars=4), store)
    ut.run(experiment(items=20, grammars=4), tmp_path / "fresh")
    assert same_run(store, tmp_path / "fresh")


def test_a_process_of_the_smaller_run_does_not_undo_a_growth(store, tmp_path):
    """It may go on writing its tasks; only the attributes of the larger run are not its own."""
    old, larger = (
        RunFolder.open(store),
        experiment(items=20, grammars=4, noise=[0.0, 0.2, 0.4, 1.0], trajectories=3),
    )
    readings = {task: old.read(task, 2) for task in old.tasks()}
    ut.run(larger, store)
    for task, values in readings.items():
        old.write(task, values)
    other = experiment(items=40, grammars=8)
    for change in (
        lambda: old.update(complete=True),
        lambda: old.grow(
            RunFile.made(
                layout_of(other).variables,
                layout_of(other).coordinates,
                attributes_of(other, {}),
                old.file.key,
            )
        ),
    ):
        with pytest.raises(ValueError, match="another process has extended the store"):
            change()
    ut.run(larger, store)
    ut.run(larger, tmp_path / "fresh")
    assert same_run(store, tmp_path / "fresh")


@pytest.mark.slow
def test_two_processes_extend_one_store(store, tmp_path):
    larger = experiment(items=40, grammars=8, noise=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    (tmp_path / "spec.json").write_text(json.dumps(larger.to_dict()))
    (tmp_path / "run.mine.partial").mkdir()
    words = [sys.executable, "-m", "uturn.cli", "run", "spec.json", "--store", "run"]
    both = [
        subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted(told)[0] == ""
    assert sorted(told)[1].startswith(
        "uturn: run is extended by items 10 -> 40, noise 0.2, 0.6, 0.8"
    )
    ut.run(larger, tmp_path / "fresh")
    assert same_run(store, tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fresh",
        "run",
        "run.mine.partial",
        "spec.json",
    ]


IMAGES = {
    "items": 3,
    "chunk": 2,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.5, 1.0]},
    "backward": {"type": "diffusion", "model": "tiny_denoiser:network", "steps": 4},
    "probes": [
        {
            "type": "network_layers",
            "classifier": "tiny_classifier:network",
            "labels": False,
            "reference": 20,
        },
        {"type": "images", "first": 2},
    ],
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
    # Two levels. Items 0 and 1: two more trajectories; items 2 and 3 share a block that was cut
    # short; item 4 is new.
    extended = ut.run(larger, tmp_path / "run").load()
    assert len(counts) == 2 * (2 * 2 + 2 * 3 + 3)
    fresh = ut.run(larger, tmp_path / "fresh").load()
    for name in fresh.data_vars:
        difference = np.abs(extended[name] - fresh[name])
        assert float(difference.max()) < 2e-5, name
        assert (extended[name].isnull() == fresh[name].isnull()).all()
    assert dataset_of(RunFolder.open(tmp_path / "run")).attrs["complete"]


# -- processes -------------------------------------------------------------------------------------

LONG = {
    **SPEC,
    "items": 4000,
    "chunk": 2,
    "grammars": 1,
    "source": {**SPEC["source"], "depth": 8, "grammars": 1},
}


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
    words = [
        sys.executable,
        "-m",
        "uturn.cli",
        "run",
        "spec.json",
        "--store",
        "run",
        "--workers",
        "2",
    ]
    run = subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    records = tmp_path / "run" / "tasks"
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
        assert told.strip().splitlines() == [
            "stopped; what is done is in run; run the same command again to resume"
        ]
        assert not dataset_of(RunFolder.open(tmp_path / "run")).attrs["complete"]


INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from uturn.cli import"
    " program; program()"
)
"""The program, which Ctrl-C stops although the processes of a test may ignore it."""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    "stops",
    [
        (signal.SIGINT,) * 3,
        (signal.SIGTERM,) * 2,
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
    ids=lambda stops: "-".join(stop.name for stop in stops),
)
def test_further_signals_disturb_no_stop(tmp_path, stops, delay):
    """They arrive while the run ends, or while Python shuts down."""
    (tmp_path / "spec.json").write_text(
        json.dumps({key: value for key, value in LONG.items() if key != "grammars"})
    )
    words = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        "run",
        "spec.json",
        "--store",
        "run",
        "--workers",
        "1",
    ]
    run = subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    records = tmp_path / "run" / "tasks"
    deadline = time.monotonic() + 120
    while not (records.exists() and any(records.rglob("*"))):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for stop in stops:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, stop)
        time.sleep(delay)
    _, told = run.communicate(timeout=60)
    assert run.returncode in {128 + stop for stop in stops}
    assert told.strip().splitlines() == [
        "stopped; what is done is in run; run the same command again to resume"
    ]
    assert "damaged" not in set(RunFolder.open(tmp_path / "run").states().values())


# --- specs ----------------------------------------------------------------------------------------

MASKED = {
    "source": {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2},
    "corruption": {"type": "masking", "noise": [0.0, 0.5]},
    "backward": {"type": "exact"},
    "probes": [
        {"type": "tree_levels"},
        {"type": f"{__name__}:Constant", "value": 2.0, "twice": False},
    ],
}
GARMENTS = {
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.5]},
    "backward": {"type": "diffusion", "steps": 4},
    "probes": [{"type": "network_layers"}, {"type": "images"}],
}


class Constant(ut.Probe):
    """A probe of one's own, whose options have defaults too."""

    def __init__(self, value=1.0, twice=False):
        self.value = value * (1 + twice)

    def variables(self, source):
        return {"constant": Variable(("noise", "item"), "a constant")}

    def read(self, u_turns, source):
        return {"constant": np.full(len(u_turns.originals.items), self.value)}


def test_specs_hold_what_differs_from_the_defaults():
    explicit = {
        **GARMENTS,
        "backward": {
            "type": "diffusion",
            "steps": 4,
            "scheduler": "ddpm",
            "guidance": 1,
            "eta": None,
        },
    }
    brief, long = (ut.Experiment.from_dict({"items": 2, **parts}) for parts in (GARMENTS, explicit))
    assert (
        long.to_dict()
        == brief.to_dict()
        == {
            "seed": 0,
            "items": 2,
            "trajectories": 1,
            "clones": 1,
            "chunk": 16,
            **GARMENTS,
        }
    )
    assert long.hash == brief.hash
    assert filled(brief.to_dict())["backward"]["scheduler"] == "ddpm"
    own = ut.Experiment.from_dict({"items": 2, **MASKED})
    assert own.to_dict()["probes"] == MASKED["probes"]
    assert filled(own.to_dict())["probes"] == MASKED["probes"]


def test_a_store_says_which_version_wrote_it(tmp_path, monkeypatch):
    """That of the code that runs, also where the package was installed from another one."""
    monkeypatch.setattr("uturn.store.resume.version", lambda _: "0.1.0")
    versions_used.cache_clear()
    run = ut.run(experiment(), tmp_path / "run")
    versions_used.cache_clear()
    assert json.loads(run.attrs["versions"])["uturn"] == ut.__version__
