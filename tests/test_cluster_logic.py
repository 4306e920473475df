"""The driver of a cluster without Ray: sizes of bundles, blame, and workers that fail; what a
run gives to a cluster.
"""

import threading
import time
from concurrent import futures
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import uturn as ut
from cluster_tasks import FileTasks, tries
from uturn.core.errors import StoreError
from uturn.engine import cluster as engine_cluster
from uturn.engine import executors
from uturn.engine.cluster import Outcome, Worker, bundle_size, on_cluster, whole_batches
from uturn.engine.schedule import Left
from uturn.engine.tasks import Tasks
from uturn.store.run_folder import RunFolder

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


# -- bundles ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 16, 256])
@pytest.mark.parametrize("u_turns", [1, 3, 50, 100, 150, 255, 257, 4096])
def test_a_bundle_of_a_network_fills_four_batches(batch, u_turns):
    size = whole_batches(u_turns, batch)
    assert size * u_turns >= 4 * batch
    places = -(-size * u_turns // batch) * batch
    assert size * u_turns / places > 0.85


def test_bundles_take_ten_seconds_and_the_last_ones_less():
    assert bundle_size(10_000, 10, 1, None) == 1, "before the time of a task is known"
    assert bundle_size(10_000, 10, 1, 0.1) == 100
    assert bundle_size(1_000, 10, 1, 0.1) == 25
    assert bundle_size(7, 10, 1, 0.1) == 1
    assert bundle_size(10_000, 10, 1024, 5.0) == 1000, "each worker has some"
    assert bundle_size(10_000, 2, 1024, 5.0) == 1024


def test_bundles_that_fail_are_handed_out_in_halves():
    work = engine_cluster._Tasks(range(5), str, 5)
    bundle = work.next(1)
    work.blame(bundle, "odd")
    assert sorted(task for part in work.returned for task in part) == bundle == list(range(5))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("bad", [(), (13,), (3, 38)])
def test_a_task_that_raises_is_named_and_the_others_are_done(tmp_path, bad, together):
    """Bundles of a worker in this process, until none is left; finished tasks of a bundle that
    failed are not measured again.
    """
    work, worker = engine_cluster._Tasks(range(40), str, 8), Worker(1)
    worker._work = FileTasks(tmp_path, raises=bad, together=together)
    while work.left:
        bundle = work.next(1)
        outcome = worker.measure(bundle)
        if outcome.error is None:
            work.finished(bundle, outcome.measured, outcome.seconds)
        else:
            work.blame(bundle, outcome.error)
    assert {
        task: f"task {task} is odd" in error for task, error in work.failed.items()
    } == dict.fromkeys(bad, True)
    assert {int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()} == set(
        range(40)
    ) - set(bad)
    assert all(3 <= tries(tmp_path)[task] <= 3 + 6 for task in bad), (
        "in its bundle, in halves of it, and three times alone"
    )
    assert not work.waiting
    assert not work.returned


@pytest.mark.parametrize(
    ("raised", "error", "of_node"),
    [
        (StoreError("the disk is full"), "the disk is full", True),
        (KeyError("x"), "KeyError: 'x'", False),
    ],
)
def test_a_worker_says_whether_the_store_is_to_blame(monkeypatch, raised, error, of_node):
    class Fails(FileTasks):
        def measure(self, tasks, *, check=False):
            yield from ()
            raise raised

    monkeypatch.setattr(engine_cluster, "_STORE_WAIT", 0.0)
    worker = Worker(1)
    worker._work = Fails("nowhere")
    outcome = worker.measure([1])
    assert error in outcome.error
    assert outcome.is_fault_of_node == of_node


def test_a_worker_of_another_version_says_so():
    outcome = Worker(1).start(b"", ".", {}, "9.9")
    assert outcome.error.startswith(f"it has uturn {ut.__version__}, and the driver 9.9")
    assert outcome.is_fault_of_node


# -- workers that fail in one way ------------------------------------------------------------------
class FakeActor:
    """An actor: its methods are called in a thread, and answers are futures. A method that is
    None never answers.
    """

    def __init__(self, behind):
        self.behind, self.pool = behind, futures.ThreadPoolExecutor(1)

    def __getattr__(self, name):
        method = getattr(self.behind, name)
        return SimpleNamespace(
            remote=lambda *args: self.pool.submit(method, *args) if method else futures.Future()
        )


class FakeRay:
    """Ray with two nodes of one core, and a head without cores; `make(number)` makes the
    workers.
    """

    exceptions, cloudpickle = ray.exceptions, ray.cloudpickle

    def __init__(self, make):
        self.make, self.made, self.killed, self.connected = make, 0, [], True

    def nodes(self):
        return [{"Alive": True, "Resources": cores} for cores in ({}, {"CPU": 1.0}, {"CPU": 1.0})]

    def remote(self, kind):
        def made(_):
            self.made += 1
            return FakeActor(self.make(self.made - 1))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made))

    def wait(self, answers, timeout=None):
        return list(futures.wait(answers, timeout, futures.FIRST_COMPLETED).done), []

    def get(self, answer):
        return answer.result()

    def kill(self, actor):
        self.killed.append(actor)

    def is_initialized(self):
        return self.connected


class FakeWorker:
    """A worker; `measured` gives the error of a bundle, and whether it is one of the node."""

    def __init__(self, measured=lambda tasks: (None, False), host="one"):
        self.measured, self.host = measured, host

    def start(self, *_):
        return Outcome(self.host)

    def measure(self, tasks):
        error, of_node = self.measured(tasks)
        return Outcome(self.host, error, of_node, len(tasks), 0.01)


@pytest.fixture
def cluster(monkeypatch):
    """`run(make, tasks)`: runs tasks on a cluster whose workers are made by `make(number)`;
    returns the last state.
    """

    def run(make, tasks, **options):
        made = run.ray = FakeRay(make)
        monkeypatch.setattr(engine_cluster, "connected", lambda _: nullcontext(made))
        *_, last = on_cluster("local", int, tasks, silent_after=0.3, **options)
        return last

    return run


def test_a_node_that_cannot_store_is_not_used_any_more(cluster, caplog):
    bad = []

    def good(tasks):
        time.sleep(0.05)
        return None, False

    full = FakeWorker(lambda tasks: (bad.append(tasks) or "no such disk", True))
    assert cluster(lambda number: FakeWorker(good, "two") if number else full, range(200))[0] == 0
    assert len(bad) == 3
    assert caplog.messages[-1] == "the node one is not used for ten minutes: no such disk"


def test_a_node_that_recovers_gets_another_worker(cluster, monkeypatch):
    monkeypatch.setattr(engine_cluster, "_REST", 0.2)
    made = set()

    def slow(tasks):
        time.sleep(0.1)
        return None, False

    def worker(number):
        made.add(number)
        return (
            FakeWorker(slow, "two") if number else FakeWorker(lambda tasks: ("no such disk", True))
        )

    assert cluster(worker, range(200))[0] == 0
    assert made == {0, 1, 2}


def test_a_disk_that_stays_full_ends_the_run(cluster):
    with pytest.raises(ValueError, match=r"no node can measure: the node .* the disk is full"):
        cluster(lambda _: FakeWorker(lambda tasks: ("the disk is full", True)), [1, 2, 3])


def test_a_run_whose_every_task_fails_stops_early(cluster):
    with pytest.raises(ValueError, match="the first 3 tasks failed, and none is done: odd"):
        cluster(lambda _: FakeWorker(lambda tasks: ("odd", False)), range(40))


def test_a_bundle_that_takes_many_times_the_median_is_handed_out_again(cluster, caplog):
    released = threading.Event()

    def hangs(tasks):
        released.wait(60)
        return None, False

    begin = time.monotonic()
    assert cluster(lambda number: FakeWorker() if number else FakeWorker(hangs), range(4))[0] == 0
    assert time.monotonic() - begin < 50
    released.set()
    assert any("the worker died (it did not answer for" in text for text in caplog.messages)


def test_workers_that_do_not_start_are_replaced_three_times(cluster):
    def killed(*_):
        raise RuntimeError("killed")

    def worker(_):
        made = FakeWorker()
        made.start = killed
        return made

    with pytest.raises(
        ValueError, match="no node can measure: a worker did not start: RuntimeError: killed"
    ):
        cluster(worker, [1, 2, 3])
    assert 3 < cluster.ray.made <= 2 + 3


def measured_by(made):
    work = engine_cluster._Tasks(range(1000), str, 1)
    fleet = engine_cluster._Fleet(made, work, {"CPU": 1.0, "GPU": 0.0}, 9, (), 120.0)
    return fleet.states()


def test_workers_end_with_an_interrupted_driver():
    made = FakeRay(lambda _: FakeWorker())
    states = measured_by(made)
    next(states)
    with pytest.raises(KeyboardInterrupt):
        states.throw(KeyboardInterrupt)
    assert len(made.killed) == 2


# -- what a run gives to a cluster, and does after it ----------------------------------------------
@pytest.fixture
def given(monkeypatch):
    """The options that a run gives to a cluster, which measures the tasks here; `given["late"]`:
    their records come later.
    """
    found = {}

    def measured(address, make, tasks, **options):
        found.update(options, tasks=tasks)
        work = make()
        all_of = threading.Timer(
            found.get("late", 0),
            lambda: list(work.measure(work.recorded_left(found["tasks"]), check=True)),
        )
        all_of.start()
        if not found.get("late"):
            all_of.join()
        yield from ()

    monkeypatch.setattr("uturn.engine.cluster.on_cluster", measured)
    return found


@pytest.mark.parametrize(
    ("workers", "most"),
    [({}, None), ({"workers": None}, None), ({"workers": 1}, 1), ({"workers": 3}, 3)],
)
def test_a_run_uses_all_room_of_a_cluster_unless_told_otherwise(given, tmp_path, workers, most):
    ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "x", cluster="there", **workers)
    assert given["most_workers"] == most
    assert not given["own_code"]


def test_records_that_this_host_sees_later(given, tmp_path):
    """A network file system shows what another host has written after a while."""
    given["late"] = 1.0
    assert ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "x", cluster="there").attrs[
        "complete"
    ]


def test_only_damaged_readings_are_forgotten(tmp_path):
    """Not those of a store with fewer trajectories. Workers, who read only the records, then
    measure what is left.
    """
    # These readings stay when trajectories are added.
    spec = {**STRINGS, "probes": [{"type": "parsed_levels"}]}
    path, more = tmp_path / "x", ut.Experiment.from_dict({**spec, "trajectories": 2})
    ut.run(ut.Experiment.from_dict(spec), path)
    ut.run(more, path, shard=(1, 1000))
    work = Tasks(more, RunFolder.open(path))
    tasks = list(work.store.tasks())
    (path / work.store.file_of(tasks[-1], 1)).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        left = work.left(tasks)
    assert left[-2:] == [Left(tasks[-2], 1), Left(tasks[-1], 0)]
    assert work.recorded_left(tasks) == left


@pytest.mark.parametrize(
    ("there", "error"),
    [(False, "no store at"), (True, "8 measured tasks do not appear on this host")],
)
def test_workers_that_see_another_store_or_none(given, tmp_path, monkeypatch, there, error):
    experiment, tasks_of = ut.Experiment.from_dict(STRINGS), executors._tasks_of
    if there:
        ut.run(experiment, tmp_path / "other", shard=(1, 1000))
    monkeypatch.setattr(executors, "_SEEN_SECONDS", 0.0)
    monkeypatch.setattr(
        executors, "_tasks_of", lambda spec, store: tasks_of(spec, str(tmp_path / "other"))
    )
    with pytest.raises(ValueError, match=error):
        ut.run(experiment, tmp_path / "x", cluster="there")


def test_a_damaged_file_is_measured_again(given, tmp_path):
    experiment, path = ut.Experiment.from_dict(STRINGS), tmp_path / "x"
    ut.run(experiment, path)
    store = RunFolder.open(path)
    task = list(store.tasks())[3]
    (path / store.file_of(task)).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        found = ut.run(experiment, path, cluster="there")
    assert found.attrs["complete"]
    assert given["tasks"] == [task]
