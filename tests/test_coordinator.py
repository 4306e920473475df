"""The coordinator and the driver of a cluster alone: workers and Ray are replaced by plain objects."""

import asyncio
import signal
import threading
from types import SimpleNamespace

import pytest

import uturn as ut
from uturn.engine.cluster import connection, coordinator, driver
from uturn.engine.cluster.coordinator import Coordinator, Job
from uturn.engine.tasks import Tasks
from uturn.store.record import Store

ray = pytest.importorskip("ray")

STRINGS = {
    "items": 16,
    "trajectories": 1,
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3},
    "corruption": {"type": "gaussian", "noise": [0.1, 0.4]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


def job(**options):
    given = {
        "start": {"version": "1.0"},
        "cpus": 1.0,
        "gpus": 0.0,
        "slots": 1,
        "threads": 1,
        "silent_after": 0.2,
        "alone_after": 1e6,
        **options,
    }
    return Job(**given)


class FakeWorker:
    """A worker whose methods are those of this class, called as those of an actor; `measured` gives what a bundle comes to."""

    def __init__(self, measured):
        self.measured = measured

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        return SimpleNamespace(remote=found) if name in ("start", "pulse", "measure") else found

    async def start(self, **_):
        return {"error": None, "pid": 0}

    async def pulse(self):
        return 0.0

    async def measure(self, tasks):
        error, store = self.measured(tasks)
        return {"error": error, "store": store, "measured": 0 if error else len(tasks), "seconds": 0.01, "twice": 0}


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes with a core each, and short times."""
    found = [{"Alive": True, "NodeID": name, "NodeManagerHostname": name, "Resources": {"CPU": 1.0}} for name in ("one", "two")]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(coordinator, "_killed", lambda *_: asyncio.sleep(0))
    for name in ("_LOOK", "_PULSE", "_STORE_WAIT"):
        monkeypatch.setattr(coordinator, name, 0.05)
    return found


def end(monkeypatch, make_worker, groups, until=lambda state: state["ended"], **options):
    """State of a run at its end; `make_worker(node)` makes the workers."""
    monkeypatch.setattr(Coordinator, "_new_worker", lambda self, node_id: make_worker(node_id))

    async def followed():
        made = Coordinator(job(**options))
        await made.join("driver", groups, made.job)
        try:
            for _ in range(400):
                state = await made.poll("driver")
                if until(state):
                    return state
                await asyncio.sleep(0.02)
            raise AssertionError("it does not end")
        finally:
            made.life.cancel()
            await made.leave("driver")

    return asyncio.run(followed())


def test_one_failure_of_the_store_is_no_reason_to_stop(nodes, monkeypatch):
    """It fails all bundles that a worker has, once; then it works."""
    failed = []

    def measured(tasks):
        if len(failed) < 8:
            failed.append(tasks)
            return "the disk is full", True
        return None, False

    state = end(monkeypatch, lambda _: FakeWorker(measured), [(1.0, list(range(20)))], slots=8, most_workers=1)
    assert (state["left"], state["error"]) == (0, None)


def test_a_node_that_cannot_store_is_not_used_any_more(nodes, monkeypatch):
    bad = []

    def worker(node):
        return FakeWorker(lambda tasks: (None, False) if node == "two" else (bad.append(tasks) or "no such disk", True))

    def slow(node):
        made = worker(node)

        async def measure(tasks):
            await asyncio.sleep(0.05)
            return await FakeWorker.measure(made, tasks)

        made.measure = measure
        return made

    state = end(monkeypatch, slow, [(1.0, list(range(20)))], bundle_seconds=0.0)
    assert (state["left"], state["error"]) == (0, None)
    assert len(bad) == 3
    assert [text for text, _ in state["messages"]][-1] == "the node one is not used any more: no such disk"


def test_tasks_that_shared_a_worker_are_not_blamed_for_its_death(nodes, monkeypatch):
    """Either could have killed it, so none of the three tries of either is used up."""
    died = []

    def worker(node):
        made = FakeWorker(lambda tasks: (None, False))

        async def measure(tasks):
            await asyncio.sleep(0.05)
            raise RuntimeError("killed")

        if not died:
            died.append(node)
            made.measure = measure
        return made

    state = end(monkeypatch, worker, [(1.0, [1, 2])], slots=2, most_workers=1, bundle_seconds=0.0)
    assert (state["left"], state["error"]) == (0, None)
    told = [text for text, _ in state["messages"]]
    assert any("its 2 tasks are handed out again" in text for text in told)
    assert not any("was alone" in text for text in told)


def test_a_disk_that_stays_full_ends_the_run(nodes, monkeypatch):
    state = end(monkeypatch, lambda _: FakeWorker(lambda tasks: ("the disk is full", True)), [(1.0, [1, 2, 3])])
    assert state["left"] == 3
    assert "no node can measure: the node" in state["error"]
    assert "the disk is full" in state["error"]


@pytest.mark.parametrize(("hanging", "words"), [("pulse", "no node has 1 cores free"), ("start", "still starting")])
def test_workers_that_do_not_come_are_explained(nodes, monkeypatch, hanging, words):
    monkeypatch.setattr(coordinator, "_NO_WORKER", 0.2)

    def worker(_):
        made = FakeWorker(None)
        setattr(made, hanging, lambda **_: asyncio.sleep(100))
        return made

    state = end(monkeypatch, worker, [(1.0, [1])], until=lambda state: state["messages"])
    assert len(state["messages"]) == 1
    assert words in state["messages"][0][0]


def test_a_worker_that_hangs_while_it_starts_is_given_up(nodes, monkeypatch):
    def worker(_):
        made, answers = FakeWorker(None), []

        async def pulse():
            answers.append(1)
            await asyncio.sleep(0 if len(answers) == 1 else 100)

        made.pulse, made.start = pulse, lambda **_: asyncio.sleep(100)
        return made

    state = end(monkeypatch, worker, [(1.0, [1])], silent_after=0.05)
    assert "did not start: it did not answer for 0 s" in state["error"]


def test_other_tasks_are_tried_when_the_first_fail(nodes):
    """The costly group comes first, but not if its tasks fail before any task is done."""
    made = Coordinator(job())
    made.groups = [coordinator._Group(1.0, list(range(100))), coordinator._Group(0.1, list(range(100, 200)))]
    assert all(made._next()[0] < 100 for _ in range(20))
    made.tries[0] = 1
    assert any(made._next()[0] >= 100 for _ in range(20))


def test_every_task_is_handed_out_once():
    made = Coordinator(job())
    made.groups, made.size = [coordinator._Group(1.0, list(range(100))), coordinator._Group(0.1, list(range(100, 150)))], 16
    bundles = iter(made._next, None)
    handed = [task for bundle, _ in zip(bundles, range(150), strict=False) for task in bundle]
    assert sorted(handed) == list(range(150))


def test_a_driver_with_another_version_or_other_options(nodes):
    async def joined(other, gone):
        made = Coordinator(job())
        made._live = lambda: asyncio.sleep(0)
        await made.join("first", [(1.0, [1])], made.job)
        if gone:
            made.drivers["first"] -= 11
        await made.join("second", [], other)
        return made

    with pytest.raises(ValueError, match=r"another command measures this run, with uturn 1.0; this one has 2.0"):
        asyncio.run(joined(job(start={"version": "2.0"}), False))
    made = asyncio.run(joined(job(cpus=4.0), False))
    assert made.job.cpus == 1.0
    assert made.messages[0][0].endswith("its options hold: 1 cores and 0 GPUs a worker")
    assert asyncio.run(joined(job(), False)).messages == []
    made = asyncio.run(joined(job(start={"version": "2.0"}, cpus=4.0), True))
    assert (made.job.cpus, made.messages) == (4.0, [])


@pytest.mark.parametrize("joined", [False, True])
def test_a_coordinator_without_a_driver_ends(monkeypatch, joined):
    ended = threading.Event()
    monkeypatch.setattr(coordinator, "_end_actor", ended.set)
    made = Coordinator(job(alone_after=0.1))
    made.life = joined or None
    assert ended.wait(0.5) is not joined


class FakeRay:
    """Coordinators that answer from lists of states; a state may be an error."""

    def __init__(self, *lives):
        self.lives, self.calls = list(lives), []
        self.exceptions, self.connected = ray.exceptions, True

    def remote(self, _):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: self.made()))

    def made(self):
        states = self.lives.pop(0)
        names = ("join", "poll", "leave")
        return SimpleNamespace(**{name: SimpleNamespace(remote=lambda *given, n=name: (n, given, states)) for name in names})

    def get_actor(self, *_, **__):
        return self.made()

    def get(self, call, timeout):
        name, given, states = call
        self.calls.append(name)
        found = f"life {len(self.lives)}" if name == "join" else True if name == "leave" else states.pop(0)
        if name == "join" and states == ["interrupted"]:
            raise KeyboardInterrupt
        if isinstance(found, Exception):
            raise found
        return found if name != "poll" else {**found, "messages": found["messages"][given[1] :]}

    def kill(self, _):
        self.calls.append("kill")

    def is_initialized(self):
        return self.connected


def state(messages, left=1, ended=False):
    told = [(text, None) for text in messages]
    return {
        "messages": told, "left": left, "ended": ended, "alive": 1, "unfinished": 0, "error": None, "counts": {}, "failed": []
    }  # fmt: skip


def test_messages_are_told_once_also_by_another_coordinator(monkeypatch, caplog):
    monkeypatch.setattr(driver, "_POLL", 0)
    died = ray.exceptions.RayActorError()
    first = [state(["a", "b"]), state(["a", "b", "c"]), died]
    cluster = FakeRay(first, [state(["d"]), state(["d", "e"], 0, True)])
    list(driver._followed(cluster, "x", job(), [], str))
    assert caplog.messages == ["a", "b", "c", "d", "e"]


def test_the_cluster_is_freed_after_an_interruption_while_the_driver_joins():
    cluster = FakeRay(["interrupted"], [])
    with pytest.raises(KeyboardInterrupt):
        list(driver._followed(cluster, "x", job(), [], str))
    assert cluster.calls == ["join", "leave", "kill"]


def test_a_connection_that_breaks_is_not_replaced_by_another_one():
    cluster = FakeRay([ConnectionError("the head died")])
    cluster.connected = False
    with pytest.raises(ConnectionError):
        list(driver._followed(cluster, "x", job(), [], str))
    assert cluster.calls == ["join", "poll"]


def test_sigterm_while_ray_starts_is_handled_as_before(monkeypatch):
    """Ray's own handler makes it a SystemExit."""

    class Terminated(KeyboardInterrupt):
        pass

    def own(*_):
        raise Terminated

    def init(*_, **__):
        signal.signal(signal.SIGTERM, lambda number, _: exit(number))
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(Terminated):
            connection._init(SimpleNamespace(init=init), "local", {})
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


# -- what a run gives to a cluster, and does after it ----------------------------------------------------------------------
@pytest.fixture
def given(monkeypatch):
    """The options that a run gives to a cluster, which measures the tasks here; `given["late"]`: their records come later."""
    found = {}

    def measured(address, name, make, groups, **options):
        found.update(options, tasks=[task for _, tasks in groups for task in tasks])
        work = make()
        all_of = threading.Timer(
            found.get("late", 0), lambda: list(work.measure(work.recorded_left(found["tasks"]).items(), check=True))
        )
        all_of.start()
        if not found.get("late"):
            all_of.join()
        yield from ()

    monkeypatch.setattr("uturn.engine.cluster.on_cluster", measured)
    return found


@pytest.mark.parametrize(("workers", "most"), [({}, None), ({"workers": None}, None), ({"workers": 1}, 1), ({"workers": 3}, 3)])
def test_a_run_uses_all_room_of_a_cluster_unless_told_otherwise(given, tmp_path, workers, most):
    ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "x", cluster="there", **workers)
    assert given["most_workers"] == most
    assert not given["own_code"]


def test_records_that_this_host_sees_later(given, tmp_path):
    """A network file system shows what another host has written after a while."""
    given["late"] = 1.0
    assert ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "x", cluster="there").attrs["complete"]


def test_parts_that_stand_in_the_script_are_named(given, tmp_path, monkeypatch):
    import __main__

    class Probe:
        kinds = frozenset({"strings"})

        def variables(self, source):
            return {"one": ut.protocols.Variable(("noise", "item"), "one")}

        def read(self, u_turns, source):
            return {"one": [1.0] * len(u_turns.originals.items)}

    Probe.__module__ = "__main__"
    monkeypatch.setattr(__main__, "ProbeOfScript", Probe, raising=False)
    experiment = ut.Experiment.from_dict({**STRINGS, "probes": [{"type": "__main__:ProbeOfScript"}]})
    with pytest.raises(ValueError, match=r"probes\[0\] stands in the script, which workers cannot import; move it"):
        ut.run(experiment, tmp_path / "x", cluster="there")


def chunk_of(store, variable, task):
    folder = store / variable / "c" / str(task.noise_index) / str(task.item_block)
    return next(path for path in (folder, *folder.rglob("*")) if path.is_file())


def test_only_damaged_readings_are_forgotten(tmp_path):
    """Not those that another process stores while this one looks; also not those of a store with fewer trajectories."""
    spec, path = (
        {**STRINGS, "probes": [{"type": "parsed_levels"}]},
        tmp_path / "x",
    )  # these readings stay when trajectories are added
    experiment, more = ut.Experiment.from_dict(spec), ut.Experiment.from_dict({**spec, "trajectories": 2})
    ut.run(experiment, path, shard=(1, 2))
    work = Tasks(experiment, Store.open(path))
    left = work.left(work.store.tasks())
    assert len(left) == 4
    ut.run(experiment, path)
    assert work.wrongly_recorded(left) == []

    ut.run(more, path, shard=(1, 1000))
    work = Tasks(more, Store.open(path))
    tasks = list(work.store.tasks())
    chunk_of(path, work.store.variables[0], tasks[-1]).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        left = work.left(tasks)
    assert (left[tasks[-2]], left[tasks[-1]]) == (1, 0)
    assert work.wrongly_recorded(left) == [tasks[-1]]


def test_damaged_records_count_as_missing(given, tmp_path):
    experiment, path = ut.Experiment.from_dict(STRINGS), tmp_path / "x"
    ut.run(experiment, path)
    store = Store.open(path)
    task = list(store.tasks())[3]
    chunk_of(path, "tasks/records", task).write_bytes(b"damaged")
    assert [one for one, count in store.recorded(list(store.tasks())).items() if not count] == [task]
    with pytest.warns(UserWarning, match="is damaged"):
        found = ut.run(experiment, path, cluster="there")
    assert found.attrs["complete"]
    assert given["tasks"] == [task]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("The runtime env agent has died", "The runtime env agent has died; Ray's logs"),
        ("No module named 'uturn'", "'uturn'; install uturn there"),
    ],
)
def test_what_ray_says_is_told(error, words):
    exceptions = pytest.importorskip("ray.exceptions")

    def fails(*_, **__):
        raise exceptions.RuntimeEnvSetupError(error)

    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=fails))
    ray = SimpleNamespace(remote=lambda _: made, exceptions=exceptions)
    with pytest.raises(ValueError, match=words):
        driver._joined(ray, "name", None, "driver", [])
