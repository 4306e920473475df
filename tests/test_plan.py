"""Plans: tasks, calls of networks and bytes as in the run that follows; nothing is written; mistakes are one line."""

import itertools
import re

import numpy as np
import pytest

import uturn as ut
from command_line import SPEC, uturn
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.corruption.denoising import ExactDenoiser
from uturn.engine import timing
from uturn.engine.counts import queue_calls
from uturn.engine.measuring import measure
from uturn.engine.plan import Plan, plan
from uturn.probes.hidden_layers import HiddenLayers
from uturn.store.record import Store

STRINGS = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 4, "grammars": 3}
IMAGES = {
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.0, 0.5, 1.0]},
    "backward": {"type": "diffusion", "steps": 4, "device": "cpu", "batch_size": 8},
    "probes": [{"type": "network_layers", "reference": 16, "batch_size": 10}, {"type": "images", "first": 4}],
}
DIFFUSION = {"type": "diffusion", "noise": [0.25, 0.5, 1.0]}
LAYER = {"type": "changes", "layer": "block2", "classifier": "fashion_mnist", "batch_size": 3}
EXPERIMENTS = {
    "exact": {"corruption": {"type": "gaussian", "noise": [0.0, 0.5, 1.0]}, "backward": {"type": "exact"}},
    "clones": {"clones": 3, "corruption": {"type": "masking", "noise": [0.3, 1.0]}, "backward": {"type": "exact"}},
    "epsilon": {"corruption": {"type": "epsilon", "noise": [0.3, 1.0]}, "backward": {"type": "exact"}},
    "gaussian": {"corruption": {"type": "gaussian", "noise": [0.0, 0.5, 1.0]}, "backward": {"type": "denoiser", "steps": 7}},
    "uniform": {"corruption": {"type": "uniform", "noise": [0.2, 1.0]}, "backward": {"type": "denoiser", "steps": 7}},
    "masking": {"corruption": {"type": "masking", "noise": [0.9, 1.0]}, "backward": {"type": "denoiser", "steps": 7}},
    "score": {"corruption": DIFFUSION, "backward": {"type": "score", "steps": 8}},
    "images": IMAGES,
    "heun": {**IMAGES, "backward": {**IMAGES["backward"], "scheduler": "heun"}},
    "changes": {**IMAGES, "clones": 2, "probes": [LAYER]},
}
NETWORKS = [name for name in EXPERIMENTS if name not in ("exact", "clones", "epsilon")]


def experiment(name, **changes):
    parts = {"source": STRINGS, "probes": [{"type": "tree_levels"}], **EXPERIMENTS[name]}
    return ut.Experiment.from_dict({"items": 11, "trajectories": 2, "chunk": 4, **parts, **changes})


def planned(*arguments, **options):
    return plan(*arguments, **{"workers": 1, "budget": 0.1, **options})


@pytest.fixture(autouse=True)
def unchecked_models(monkeypatch):
    """The check of a model before its run is no part of a plan, and takes longer than these runs."""
    monkeypatch.setattr(ut.Experiment, "model_check", lambda self: [])


@pytest.fixture
def calls(monkeypatch):
    """Names of the networks and denoisers that were called, in order."""
    called = []
    for owner, name in ((ReverseDiffusion, "network"), (HiddenLayers, "_forward"), (ExactDenoiser, "posterior")):
        method = getattr(owner, name)

        def call(*arguments, method=method, name=name, **options):
            called.append(name)
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, call)
    return called


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("workers", [1, 2])
def test_calls_are_those_of_the_run(name, workers, calls, monkeypatch):
    monkeypatch.setattr("uturn.engine.plan.cores", lambda: 2)
    one = experiment(name)
    found = planned(one, workers=workers)
    calls.clear()
    if workers == 1:
        ut.run(one)
    else:  # each task by itself, as the processes do
        for level in range(len(one.noise)):
            for start in range(0, 11, 4):
                measure(one, level, np.arange(start, min(start + 4, 11)))
    of_backward = "network" if "network" in calls else "posterior"
    assert found.calls["backward"] == calls.count(of_backward)
    assert sum(found.calls.values()) == calls.count(of_backward) + calls.count("_forward")


@pytest.mark.parametrize("seed", range(20))
def test_calls_of_the_queue_are_those_of_its_simulation(seed):
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 9))
    jobs = [(int(random.integers(0, 40)), int(random.integers(0, 7))) for _ in range(5)]
    waiting = [calls for count, calls in jobs for _ in range(count) if calls]
    busy, made = [], 0
    while busy or waiting:
        while waiting and len(busy) < size:
            busy.append(waiting.pop(0))
        busy, made = [left - 1 for left in busy if left > 1], made + 1
    assert queue_calls(jobs, size) == made


@pytest.mark.parametrize("name", ["exact", "clones", "masking", "images"])
def test_files_and_bytes_are_those_of_the_store(name, tmp_path, monkeypatch):
    looks = itertools.count()  # a clock by which trials are always affordable
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.01 * next(looks))
    monkeypatch.setattr(timing, "_REPEATS", 1)
    one = experiment(name, items=22, chunk=8)
    found = planned(one, tmp_path / "x", budget=5)
    assert not list(tmp_path.iterdir())
    ut.run(one, tmp_path / "x")
    files = [path for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert found.files == len(files)
    # The sizes of readings at other noise levels, and of other items, vary by the entropy of the readings.
    assert found.disk == pytest.approx(sum(path.stat().st_size for path in files), rel=0.06)
    assert found.tasks == len(list(Store.open(tmp_path / "x").tasks()))


def test_only_what_the_store_lacks_is_counted(tmp_path):
    store, one = tmp_path / "x", experiment("images")
    ut.run(one, store, shard=(1, 2))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    found = planned(one, store)
    done = 4 + 3 + 4 + 4 + 3  # originals of the tasks done: every second one, with much noise first
    assert (found.tasks, found.done, found.u_turns) == (9, 5, 2 * (33 - done))
    more = planned(experiment("images", trajectories=5), store)
    assert (more.done, more.u_turns) == (0, 3 * done + 5 * (33 - done))
    larger = planned(experiment("images", items=16), store)
    assert (larger.tasks, larger.done) == (12, 3)  # the last block of items, if it was not full, is measured again
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    ut.run(one, store)
    complete = planned(one, store)
    assert (complete.done, complete.u_turns, complete.calls) == (9, 0, {})
    assert len(complete.lines()) == 1


def test_a_plan_ends_soon_and_says_none_below_a_limit():
    assert planned(experiment("exact"), least=1e4) is None
    assert planned(experiment("exact", items=5_000_000, chunk=100), least=10).seconds[1] > 10


def test_costs_of_calls_and_of_the_rest_are_told_apart(monkeypatch):
    """With a clock that counts calls of the network as 1 s, images in them as 0.1 s, and readings as 10 s."""
    clock = [0.0]
    network, read = ReverseDiffusion.network, HiddenLayers.read

    def slow(self, noisy, *arguments):
        clock[0] += 1 + 0.1 * len(noisy)
        return network(self, noisy, *arguments)

    def slow_read(self, before, after, clones, **options):
        clock[0] += 10 * after.shape[0] * after.shape[1]
        return read(self, before, after, clones, **options)

    monkeypatch.setattr(ReverseDiffusion, "network", slow)
    monkeypatch.setattr(HiddenLayers, "read", slow_read)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "_REPEATS", 1)
    one = experiment("images", corruption={"type": "diffusion", "noise": [0.5, 1.0]}, items=12)  # batches are full
    monkeypatch.setattr("uturn.engine.plan.cores", lambda: 1)
    found = planned(one, workers=None, budget=1e4)
    clock[0] = 0.0
    ut.run(one)
    assert found.seconds[1] == pytest.approx(clock[0], rel=0.02)
    alone = found.seconds
    assert alone[8] < alone[4] < alone[2] < alone[1]


def test_lines():
    found = Plan(10, 4, 600, {"backward": 1200, "probes[0]": 6}, 6.4e8, 1.25e7, 31, 3.0, 2, {2: 400.0, 4: 200.0, 8: 130.0})
    assert found.lines() == [
        "tasks: 10, 4 done, 6 left with 600 U-turns",
        "calls of networks: 1,200 (backward), 6 (probes[0])",
        "memory: 640 MB a process",
        "disk: 12.5 MB in 31 files",
        "time: 6.7 min in 2 processes on this machine, and 3 s to start",
        "time in more such processes, on cores of their own: 4: 3.3 min, 8: 2.2 min",
    ]


def test_the_command_writes_nothing_and_mistakes_are_one_line(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    done = uturn("plan", "spec.toml", "--store", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tasks: 2, 0 done, 2 left with 8 U-turns\n")
    assert re.search(r"^time: .* in 1 process on this machine", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]
    (tmp_path / "broken.toml").write_text(SPEC.replace("multiplicity = 2", "multiplicity = 20"))
    assert uturn("run", "spec.toml", "--store", "x", cwd=tmp_path).stderr == ""
    (tmp_path / "other.toml").write_text(SPEC.replace("depth = 3", "depth = 4"))
    for arguments, message in (
        (["absent.toml"], "cannot read the spec absent.toml"),
        (["broken.toml"], "multiplicity"),
        (["other.toml", "--store", "x"], "x holds another experiment"),
        (["spec.toml", "--store", "spec.toml"], "spec.toml"),
        (["spec.toml", "--workers", "0"], "workers"),
    ):
        done = uturn("plan", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_long_runs_say_what_they_will_take(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from uturn import cli

    (tmp_path / "spec.toml").write_text(SPEC)
    given = {}

    def found(experiment, store, **options):
        given.update(options)
        return Plan(2, 0, 8, {}, 1e8, 1e4, 9, 1.0, 1, {1: 90.0})

    monkeypatch.setattr("uturn.engine.plan.plan", found)
    done = CliRunner().invoke(cli.app, ["run", str(tmp_path / "spec.toml"), "--store", str(tmp_path / "x")])
    assert done.exit_code == 0, done.output
    assert "uturn: time: 90 s in 1 process on this machine" in done.stderr
    assert given["least"] == 60
