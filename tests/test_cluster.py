"""Runs on a Ray cluster of two nodes on this machine: what is measured does not depend on who
dies.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import uturn as ut
from cluster_tasks import FileTasks, processes, tries, workers_of
from uturn.core.errors import TasksFailed
from uturn.engine import cluster as engine_cluster
from uturn.engine.cluster import connected, on_cluster

ray = pytest.importorskip("ray")

STRINGS = {
    "items": 48,
    "trajectories": 2,
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 5},
    "corruption": {"type": "gaussian", "noise": [0.05, 0.2, 0.5]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes of one core, to which this process is connected."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27}
    )
    made.add_node(num_cpus=1, object_store_memory=2**27)
    made.wait_for_nodes()
    with connected(made.address):
        yield made
    assert not ray.is_initialized()
    made.shutdown()


def measure(address, folder, tasks=range(40), options=None, **settings):
    for _ in on_cluster(
        address, partial(FileTasks, str(folder), **settings), list(tasks), **(options or {})
    ):
        pass


def done(folder):
    return {int(path.name) for path in Path(folder).iterdir() if path.name.isdecimal()}


IMAGES = {
    "items": 3,
    "chunk": 1,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.5]},
    "backward": {"type": "diffusion", "steps": 4},
    "probes": [{"type": "network_layers"}],
}
OWN_PROBE = """
import numpy as np
from helper_of_own_probe import FACTOR
from uturn import Probe, Variable

class Twice(Probe):
    kinds = frozenset({"strings"})

    def variables(self, source):
        return {"twice": Variable(("noise", "item"), "a factor")}

    def read(self, u_turns, source):
        return {"twice": np.full(len(u_turns.originals.items), FACTOR)}
"""

LISTENING = """
import os
from contextlib import suppress
from pathlib import Path
from uturn.engine.cluster import connected

def parent(pid):
    return (pid / "stat").read_text().rpartition(")")[2].split()[1]

with connected("local") as ray:
    print(*{node["NodeManagerAddress"] for node in ray.nodes()})
    family, sockets = {str(os.getpid())}, set()
    for _ in range(3):  # children of children
        for pid in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                family |= {pid.name} if parent(pid) in family else set()
    for pid in family:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(link))
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                print(words[1].split(":")[0])
"""


DRIVER = """
import os, signal, sys
from functools import partial
from cluster_tasks import FileTasks
from uturn.engine.cluster import on_cluster

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
address, folder = sys.argv[1:]
count = int(os.environ.get("COUNT", 60))
list(on_cluster(address, partial(FileTasks, folder, seconds=0.1), range(count)))
print("ended")
"""
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
}


def in_background(folder, act, after=1):
    """Call act(pid of a worker) when some tasks have begun; returns a function that waits for it
    and gives the pid.
    """
    found = []

    def watch():
        until = time.monotonic() + 120  # a loaded machine
        while len(begun := list(folder.glob("try-*"))) < after and time.monotonic() < until:
            time.sleep(0.02)
        found.append(int(begun[0].name.split("-")[-1]))
        act(found[0])

    thread = threading.Thread(target=watch)
    thread.start()
    return lambda: (thread.join(130), found[0])[1]


def all_end(seconds):
    """Whether workers end in this time; Ray's own end a moment after the driver."""
    until = time.monotonic() + seconds
    while processes("ray::Worker"):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def state_of(pid, field=0):
    """State of a process, as "T" for stopped; None if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    return None


def parent_of(pid):
    return int(state_of(pid, 1) or 0)


@pytest.mark.slow
def test_a_task_that_kills_its_worker_is_named_and_the_others_are_done(cluster, tmp_path, caplog):
    """A worker that dies once costs only its bundle."""
    with pytest.raises(TasksFailed, match=r"7 failed \(the worker died"):
        measure(cluster.address, tmp_path, tasks=range(12), seconds=0.01, dies=(7,), once=(3,))
    assert done(tmp_path) == set(range(12)) - {7}
    assert any(line.startswith("7, try 3 of 3: the worker died") for line in caplog.messages)


@pytest.mark.slow
def test_a_stopped_worker_counts_as_dead(cluster, tmp_path):
    """Its tasks take many times the median of the others."""
    begun = in_background(tmp_path, lambda pid: os.kill(pid, signal.SIGSTOP))
    measure(cluster.address, tmp_path, tasks=range(20), seconds=0.2, options={"silent_after": 5.0})
    assert done(tmp_path) == set(range(20))
    until = time.monotonic() + 60
    # Ray kills what does not end by itself.
    while state_of(begun()) == "T" and time.monotonic() < until:
        time.sleep(0.1)
    assert state_of(begun()) != "T", "it does not keep its resources"


@pytest.mark.slow
def test_a_node_that_dies_and_one_that_joins(cluster, tmp_path):
    extra = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    command, env = (
        [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)],
        {
            **ENV,
            "COUNT": "200",
        },
    )
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    in_background(tmp_path, lambda _: None, after=40)()
    (tmp_path / "held").touch()  # the other nodes do not finish before the new one has a worker
    cluster.remove_node(extra, allow_graceful=False)
    another = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    raylet, until, joined = (
        another.all_processes["raylet"][0].process.pid,
        time.monotonic() + 120,
        False,
    )
    while not joined and time.monotonic() < until:
        if run.poll():  # the driver was on the node that died
            run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        joined = raylet in map(parent_of, workers_of(tmp_path))
        time.sleep(0.1)
    (tmp_path / "held").unlink()
    assert run.wait(100) == 0
    cluster.remove_node(another)
    assert done(tmp_path) == set(range(200))
    assert joined, "the node that joined had a worker"
    assert sum(tries(tmp_path).values()) < 240


@pytest.mark.slow
def test_a_driver_that_dies_frees_the_cluster_and_another_resumes(cluster, tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)],
        env=ENV,
        stdout=subprocess.DEVNULL,
    )
    in_background(tmp_path, lambda _: first.kill(), after=10)()
    first.wait(timeout=100)
    assert all_end(60)
    assert len(done(tmp_path)) < 60
    measure(cluster.address, tmp_path, tasks=range(60), seconds=0.1)
    assert done(tmp_path) == set(range(60))
    assert sum(tries(tmp_path).values()) < 100  # what was in work is lost, not more


@pytest.mark.slow
def test_two_drivers_share_a_store(cluster, tmp_path):
    """The second one finds no room before the first has ended."""
    command = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)]
    other = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)
    in_background(tmp_path, lambda _: None, after=3)()
    measure(cluster.address, tmp_path, tasks=range(60), seconds=0.1)
    assert other.communicate(timeout=100)[0].endswith("ended\n")
    assert done(tmp_path) == set(range(60))
    assert sum(tries(tmp_path).values()) < 120, "each looks at the store before it measures"


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_models")
def test_images_equal_the_local_run(cluster, tmp_path):
    experiment = ut.Experiment.from_dict(IMAGES)
    found = ut.run(experiment, tmp_path / "x", workers=1, cluster=cluster.address).load()
    local = ut.run(experiment, workers=1).drop_attrs()
    for name, values in local.data_vars.items():  # floats depend on which images share a batch
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0)


def test_strings_equal_the_local_run_and_own_parts_come_along(cluster, tmp_path, monkeypatch):
    """Workers import modules of the driver from files that they cannot see. They leave copies to
    Ray alone, which ends them.
    """
    module = tmp_path / "elsewhere" / f"own_probe_of_{os.getpid()}.py"
    module.parent.mkdir()
    module.write_text(OWN_PROBE)
    (module.parent / "helper_of_own_probe.py").write_text("FACTOR = 2.0\n")
    monkeypatch.syspath_prepend(str(module.parent))
    spec = {**STRINGS, "probes": [{"type": "tree_levels"}, {"type": f"{module.stem}:Twice"}]}
    experiment = ut.Experiment.from_dict(spec)
    local, modules = ut.run(experiment), engine_cluster._own_modules

    def hidden_afterwards():
        found = modules()
        module.parent.rename(tmp_path / "hidden")
        return found

    monkeypatch.setattr(engine_cluster, "_own_modules", hidden_afterwards)
    found = ut.run(experiment, tmp_path / "x", cluster=cluster.address).load()
    assert found.drop_attrs().identical(local.drop_attrs())
    assert found.attrs["complete"]
    assert (found.twice == 2.0).all()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert [*session.glob(f"uturn-modules-*/{module.name}")]
    assert not [*Path(tempfile.gettempdir()).glob(f"uturn-modules-*/{module.name}")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster": "localhost:99999"}, "nothing answers at"),
        ({"cluster": "there", "store": None}, "cluster = .*expected a store with it"),
        ({"cpus_per_worker": 64}, "cpus_per_worker = 64, .*no node has as many"),
    ],
)
def test_bad_options_are_named(cluster, tmp_path, monkeypatch, options, words):
    if "cluster" in options:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
    given = {"store": tmp_path / "x", "cluster": cluster.address, **options}
    with pytest.raises(ValueError, match=words):
        ut.run(ut.Experiment.from_dict(STRINGS), **given)


def test_ray_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'uturn\[cluster\]'"):
        ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "x", cluster="local")


@pytest.mark.slow
def test_local_listens_to_this_machine_alone():
    """No other host can reach the processes of --cluster local."""
    found = subprocess.run(
        [sys.executable, "-c", LISTENING], env=ENV, capture_output=True, text=True, timeout=120
    )
    lines = found.stdout.splitlines()
    assert lines[0] == "127.0.0.1", found.stderr
    # Addresses as in /proc/net: 127.0.0.1, and the same for IPv6.
    assert set(lines[1:]) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(lines) > 4
