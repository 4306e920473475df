"""Runs on a cluster whose nodes, actors and answers are plain objects, without Ray: who gets which tasks, and who is to blame."""

import signal
import sys
import threading
import time
from concurrent import futures
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest

import uturn as ut
from cluster_tasks import FileTasks, tries
from uturn.core.checks import StoreError, TasksFailed
from uturn.engine.cluster import connection, driver, on_cluster, workers
from uturn.engine.cluster.bundles import Bundles
from uturn.engine.cluster.worker import Worker
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


class FakeActor:
    """An actor: the methods of an object are called in threads, and answers are futures. A method that is None never answers."""

    def __init__(self, behind, threads):
        self.behind, self.pool = behind, futures.ThreadPoolExecutor(threads)

    def __getattr__(self, name):
        method = getattr(self.behind, name)
        return SimpleNamespace(
            remote=lambda *args, **named: self.pool.submit(method, *args, **named) if method else futures.Future()
        )


class FakeRay:
    """Ray with two nodes of one core, and a head without cores.

    `make(node)` makes the workers, by default those that are asked for.
    """

    exceptions, cloudpickle = ray.exceptions, ray.cloudpickle

    def __init__(self, make=None):
        self.make, self.killed, self.connected = make, [], True

    def nodes(self):
        cores = {"head": {}, "one": {"CPU": 1.0}, "two": {"CPU": 1.0}}
        return [{"Alive": True, "NodeID": name, "NodeManagerHostname": name, "Resources": cores[name]} for name in cores]

    def remote(self, kind):
        def options(scheduling_strategy, max_concurrency=1, **_):
            make = partial(self.make, scheduling_strategy.node_id) if self.make else partial(kind, 1)
            if kind is workers._kill:
                return SimpleNamespace(remote=self.killed.append)
            return SimpleNamespace(remote=lambda _: FakeActor(make(), max_concurrency))

        return SimpleNamespace(options=options)

    def wait(self, answers, num_returns=1, timeout=None):
        when = futures.FIRST_COMPLETED if num_returns == 1 else futures.ALL_COMPLETED
        return list(futures.wait(answers, timeout, when).done), []

    def get(self, answer):
        return answer.result()

    def kill(self, actor):
        self.killed.append(actor)

    def is_initialized(self):
        return self.connected


class FakeWorker:
    """A worker; `measured` gives what a bundle comes to."""

    def __init__(self, measured=lambda tasks: (None, False)):
        self.measured = measured

    def start(self, **_):
        return {"error": None, "pid": 0}

    def pulse(self):
        return 0.0

    def measure(self, tasks):
        error, store = self.measured(tasks)
        return {"error": error, "store": store, "measured": 0 if error else len(tasks), "seconds": 0.01, "twice": 0}


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(workers, "_on", lambda node: SimpleNamespace(node_id=node))
    for name in ("_LOOK", "_PULSE", "_STORE_WAIT", "_POLL"):
        monkeypatch.setattr(workers, name, 0.05)


@pytest.fixture
def cluster(monkeypatch):
    """`run(make, groups)`: runs tasks on a cluster whose workers are made by `make(node)`; returns the last state."""

    def run(make, groups, work=int, **options):
        made = run.ray = FakeRay(make)
        monkeypatch.setattr(driver, "connected", lambda _: nullcontext(made))
        *_, last = on_cluster("local", work, groups, silent_after=0.2, **options)
        return last

    # Real workers change these.
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return run


def done(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}


# -- real workers in threads -----------------------------------------------------------------------------------------------
def test_every_task_is_measured_once(cluster, tmp_path):
    state = cluster(None, [(1.0, range(40))], partial(FileTasks, tmp_path, seconds=0.01))
    assert done(tmp_path) == set(range(40))
    assert set(tries(tmp_path).values()) == {1}
    assert (state.left, state.alive) == (0, 2)


def test_a_task_that_raises_is_named_and_the_others_are_done(cluster, tmp_path, caplog):
    with pytest.raises(TasksFailed, match=r"13 failed \(task 13 is odd\); all other"):
        cluster(None, [(1.0, range(40))], partial(FileTasks, tmp_path, seconds=0.01, raises=(13,)))
    assert done(tmp_path) == set(range(40)) - {13}
    assert 3 <= tries(tmp_path)[13] <= 3 + 6, "once in a bundle, halves of it, and three times alone"
    assert [line for line in caplog.messages if line.startswith("13 raised on")][-1].count("time 3 of 3") == 1


@pytest.mark.parametrize("together", [False, True])
def test_tasks_that_share_a_worker_with_a_bad_one_are_not_blamed(cluster, tmp_path, together):
    with pytest.raises(TasksFailed, match="3 failed"):
        cluster(None, [(1.0, range(12))], partial(FileTasks, tmp_path, raises=(3,), together=together), slots=3)
    assert done(tmp_path) == set(range(12)) - {3}


def test_a_run_whose_every_task_fails_stops_early(cluster, tmp_path):
    with pytest.raises(ValueError, match="the first 3 tasks failed, and none is done: task"):
        cluster(None, [(1.0, range(40))], partial(FileTasks, tmp_path, raises=range(40)))
    assert len(tries(tmp_path)) < 40


def test_costly_tasks_come_first(cluster, tmp_path):
    groups = [(0.1, range(20)), (1.0, range(20, 40))]
    cluster(None, groups, partial(FileTasks, tmp_path, seconds=0.001), most_workers=1)
    order = [int(path.name.split("-")[1]) for path in sorted(tmp_path.glob("try-*"), key=lambda path: path.name.split("-")[2])]
    assert min(order[:20]) >= 20


@pytest.mark.parametrize(
    ("raised", "error", "store"),
    [(StoreError("the disk is full"), "the disk is full", True), (KeyError("x"), "KeyError: 'x'", False)],
)
def test_a_worker_says_whether_the_store_is_to_blame(cluster, raised, error, store):
    class Fails(FileTasks):
        def measure(self, tasks, *, check=False):
            yield from ()
            raise raised

    worker = Worker(1)
    worker.start(ray.cloudpickle.dumps(lambda: Fails("nowhere")), ".", {}, ut.__version__)
    outcome = worker.measure([1])
    assert (outcome["error"], outcome["store"], outcome["measured"]) == (error, store, 0)


# -- workers that fail in one way ------------------------------------------------------------------------------------------
def test_one_failure_of_the_store_is_no_reason_to_stop(cluster):
    """It fails all bundles that a worker has, once; then it works."""
    failed = []

    def measured(tasks):
        if len(failed) < 8:
            failed.append(tasks)
            return "the disk is full", True
        return None, False

    assert cluster(lambda _: FakeWorker(measured), [(1.0, range(20))], slots=8, most_workers=1).left == 0


def test_a_node_that_cannot_store_is_not_used_any_more(cluster, caplog):
    bad = []

    def measured(node, tasks):
        time.sleep(0.05)
        return (None, False) if node == "two" else (bad.append(tasks) or "no such disk", True)

    state = cluster(lambda node: FakeWorker(partial(measured, node)), [(1.0, range(20))], bundle_seconds=0.0)
    assert state.left == 0
    assert len(bad) == 3
    assert caplog.messages[-1] == "the node one is not used any more: no such disk"


def test_a_disk_that_stays_full_ends_the_run(cluster):
    with pytest.raises(ValueError, match=r"no node can measure: the node .* the disk is full"):
        cluster(lambda _: FakeWorker(lambda tasks: ("the disk is full", True)), [(1.0, [1, 2, 3])])


def test_tasks_that_shared_a_worker_are_not_blamed_for_its_death(cluster, caplog):
    """Either could have killed it, so none of the three tries of either is used up."""
    made = []

    def killed(tasks):
        time.sleep(0.05)
        raise RuntimeError("killed")

    def worker(node):
        made.append(FakeWorker() if made else FakeWorker(killed))
        return made[-1]

    assert cluster(worker, [(1.0, [1, 2])], slots=2, most_workers=1, bundle_seconds=0.0).left == 0
    assert any("its 2 tasks are handed out again" in text for text in caplog.messages)
    assert not any("was alone" in text for text in caplog.messages)


def test_a_worker_without_a_pulse_is_replaced(cluster, caplog):
    """It answers until it has tasks, and never again."""
    made = []

    def worker(node):
        made.append(FakeWorker())
        if len(made) == 1:
            made[0].measured = lambda tasks: made[0].__dict__.update(pulse=None) or time.sleep(1)
        return made[-1]

    assert cluster(worker, [(1.0, range(4))], most_workers=1).left == 0
    assert len(made) == 2
    assert 0 in cluster.ray.killed, "its process, which may not hear Ray"
    assert "the worker died (it did not answer for 0 s)" in caplog.messages[0]


@pytest.mark.parametrize(("hanging", "words"), [("pulse", "no node has 1 cores free"), ("start", "still starting")])
def test_workers_that_do_not_come_are_explained(monkeypatch, caplog, hanging, words):
    monkeypatch.setattr(workers, "_NO_WORKER", 0.2)

    def worker(_):
        made = FakeWorker()
        setattr(made, hanging, None)
        return made

    made = measured_by(FakeRay(worker), [(1.0, [1])])
    while not caplog.messages:
        next(made)
    for _ in range(20):
        next(made)
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]


def test_a_worker_that_hangs_while_it_starts_is_given_up(cluster):
    def worker(_):
        made = FakeWorker()
        made.start, answers = None, iter([0.0])

        def pulse():
            made.pulse = None
            return next(answers)

        made.pulse = pulse
        return made

    with pytest.raises(ValueError, match="did not start: it did not answer for 0 s"):
        cluster(worker, [(1.0, [1])])


def measured_by(cluster, groups):
    resources = workers.Resources(1.0, 0.0, 1, None)
    return workers.Workers(cluster, Bundles(groups, 10.0, str), resources, {}, 0.2).measured()


def test_workers_end_with_an_interrupted_driver():
    cluster = FakeRay(lambda _: FakeWorker(lambda tasks: (None, False)))
    made = measured_by(cluster, [(1.0, range(1000))])
    next(made)
    with pytest.raises(KeyboardInterrupt):
        made.throw(KeyboardInterrupt)
    assert len(cluster.killed) == 2


def test_a_connection_that_breaks_is_told_and_not_replaced_by_another_one():
    cluster = FakeRay(lambda _: FakeWorker())

    def broken(*_, **__):
        cluster.connected = False
        raise ConnectionError("the head died")

    cluster.wait = broken
    with pytest.raises(ValueError, match=r"the cluster does not answer .*the head died.*; run it again to resume"):
        list(measured_by(cluster, [(1.0, [1])]))
    assert cluster.killed == []


# -- which tasks -----------------------------------------------------------------------------------------------------------
def test_other_tasks_are_tried_when_the_first_fail():
    """The costly group comes first, but not if its tasks fail before any task is done."""
    tasks = Bundles([(1.0, range(100)), (0.1, range(100, 200))], 10.0, str)
    assert all(tasks._neighbours(1)[0] < 100 for _ in range(20))
    tasks.tries[0] = 1
    assert any(tasks._neighbours(1)[0] >= 100 for _ in range(20))


def test_every_task_is_handed_out_once():
    tasks = Bundles([(1.0, range(100)), (0.1, range(100, 150))], 10.0, str)
    tasks.size = 16
    bundles = iter(lambda: tasks.next_for((), 1), None)
    handed = [task for bundle, _ in zip(bundles, range(150), strict=False) for task in bundle.tasks]
    assert sorted(handed) == list(range(150))


# -- signals and errors of Ray ---------------------------------------------------------------------------------------------
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

    def measured(address, make, groups, **options):
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
    spec = {**STRINGS, "probes": [{"type": "parsed_levels"}]}  # these readings stay when trajectories are added
    path = tmp_path / "x"
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
        (ray.exceptions.RuntimeEnvSetupError("The runtime env agent has died"), "The runtime env agent has died"),
        (
            ray.exceptions.RaySystemError("died in its creation task .. No module named 'uturn'"),
            "No module named 'uturn'; install",
        ),
        (ray.exceptions.RaySystemError("The node it was running on is gone"), "its node died"),
    ],
)
def test_what_ray_says_is_told(error, words):
    assert words in workers._reason(error)
