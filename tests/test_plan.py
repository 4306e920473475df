"""Plans: tasks, U-turns and bytes as in the run that follows, time by a clock that counts calls;
nothing is written.
"""

import re

import numpy as np
import pytest

import uturn as ut
from command_line import SPEC, uturn
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.engine import plan as planning
from uturn.engine.measuring import measure
from uturn.engine.plan import plan
from uturn.probes.hidden_layers import HiddenLayers
from uturn.store.run_folder import RunFolder

# A check is no part of a plan, and takes longer than these runs.
pytestmark = pytest.mark.usefixtures("unchecked_models")

STRINGS = {
    "type": "rhm",
    "vocab_size": 4,
    "multiplicity": 2,
    "branching": 2,
    "depth": 4,
    "grammars": 3,
}
IMAGES = {
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.0, 0.5, 1.0]},
    "backward": {
        "type": "diffusion",
        "model": "tiny_denoiser:network",
        "steps": 4,
        "device": "cpu",
        "batch_size": 8,
    },
    "probes": [
        {
            "type": "network_layers",
            "classifier": "tiny_classifier:network",
            "labels": False,
            "reference": 16,
            "batch_size": 10,
        },
        {"type": "images", "first": 4},
    ],
}
EXPERIMENTS = {
    "exact": {
        "corruption": {"type": "gaussian", "noise": [0.0, 0.5, 1.0]},
        "backward": {"type": "exact"},
    },
    "clones": {
        "clones": 3,
        "corruption": {"type": "masking", "noise": [0.3, 1.0]},
        "backward": {"type": "exact"},
    },
    "images": IMAGES,
}


def experiment(name, **changes):
    parts = {"source": STRINGS, "probes": [{"type": "tree_levels"}], **EXPERIMENTS[name]}
    return ut.Experiment.from_dict({"items": 11, "trajectories": 2, "chunk": 4, **parts, **changes})


def planned(*arguments, **options):
    return plan(*arguments, **{"workers": 1, "budget": 0.1, **options})


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a call of the network takes 1 s and 0.1 s for each image, the reading of
    a reconstruction 0.5 s.
    """
    now = [0.0]
    network, read = ReverseDiffusion.prediction, HiddenLayers.read

    def slow(self, noisy, *arguments):
        now[0] += 1 + 0.1 * len(noisy)
        return network(self, noisy, *arguments)

    def slow_read(self, before, after, clones, **options):
        now[0] += 0.5 * after.shape[0] * after.shape[1]
        return read(self, before, after, clones, **options)

    monkeypatch.setattr(ReverseDiffusion, "prediction", slow)
    monkeypatch.setattr(HiddenLayers, "read", slow_read)
    monkeypatch.setattr(planning.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(planning, "_WRITING", 0.0)
    monkeypatch.setattr(planning, "cores", lambda: 1)
    return now


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_tasks_and_bytes_are_those_of_the_store(name, tmp_path):
    one = experiment(name, items=22, chunk=8)
    found = planned(one, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    run = ut.run(one, tmp_path / "x")
    assert found.disk == sum(
        run[variable].astype(np.float32).nbytes for variable in run.attrs["variables"]
    )
    assert found.tasks == len(list(RunFolder.open(tmp_path / "x").tasks()))


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
    # The last block of items, if it was not full, is measured again.
    assert (larger.tasks, larger.done) == (12, 3)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    ut.run(one, store)
    complete = planned(one, store)
    assert (complete.done, complete.u_turns, complete.seconds[1]) == (9, 0, 0)
    assert len(complete.lines()) == 1


def test_a_plan_of_a_long_run_ends_soon():
    assert planned(experiment("exact", items=5_000_000, chunk=100), budget=1.0).seconds[1] > 10


def test_the_time_is_that_of_the_run(clock):
    """With budget enough, batches become as full as those of the run."""
    one = experiment(
        "images", corruption={"type": "diffusion", "noise": [0.25, 0.5, 0.75, 1.0]}, items=12
    )
    found = planned(one, workers=None, budget=1e4)
    clock[0] = 0.0
    ut.run(one)
    assert found.seconds[1] == pytest.approx(clock[0], rel=0.02)
    assert found.seconds[8] < found.seconds[4] < found.seconds[2] < found.seconds[1]


def test_levels_that_are_too_slow_are_on_the_line_of_the_others(clock, monkeypatch):
    """Two levels are timed whatever they take; four originals only at the smallest one, whose
    gain holds for the others.
    """
    timed = []

    def noted(experiment, tasks):
        timed.append((experiment.noise[tasks[0][1]], sum(len(items) for _, _, items in tasks)))
        return [measure(experiment, level, items) for _, level, items in tasks]

    monkeypatch.setattr(planning, "measurements", noted)
    one = experiment(
        "images",
        corruption={"type": "diffusion", "noise": [0.25, 0.5, 0.75, 1.0]},
        chunk=12,
        items=12,
    )
    few, more = planned(one, budget=1), planned(one, budget=20)
    started = [(0.25, 1), (0.5, 1)]
    assert timed == [
        *started,
        (0.25, 1),
        (0.5, 1),
        *started,
        (0.25, 1),
        (0.5, 1),
        (0.75, 1),
        (0.25, 4),
    ]
    # One original at a time: two trajectories in 1.2 s a call and 0.5 s a reading of each. Four of
    # them: 1.8 s a call.
    alone = sum(12 * (1.2 * calls + 1) for calls in (1, 2, 3, 4))
    assert few.seconds[1] == pytest.approx(alone)
    assert more.seconds[1] == pytest.approx(alone * (1.8 + 4) / (4 * 2.2))


def test_the_command_writes_nothing_and_mistakes_are_one_line(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    done = uturn("plan", "spec.toml", "--store", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 of 2 tasks done, 2 left with 8 U-turns\n")
    assert re.search(r"^time: .* in 1 process on this machine", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]
    (tmp_path / "broken.toml").write_text(SPEC.replace("multiplicity = 2", "multiplicity = 20"))
    assert uturn("run", "spec.toml", "--store", "x", cwd=tmp_path).stderr == ""
    (tmp_path / "other.toml").write_text(SPEC.replace("depth = 3", "depth = 4"))
    for arguments, message in (
        (["absent.toml"], "cannot read the experiment absent.toml: no such file"),
        (["broken.toml"], "multiplicity"),
        (["other.toml", "--store", "x"], "x holds another experiment"),
        (["spec.toml", "--store", "spec.toml"], "spec.toml"),
        (["spec.toml", "--workers", "0"], "workers"),
    ):
        done = uturn("plan", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
