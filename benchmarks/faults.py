"""What faults cost a run on a cluster: lost results, wrong results, wasted work.

    python benchmarks/faults.py                 # 100 kills in runs of strings, 25 in runs of images, and the other faults
    python benchmarks/faults.py --kills 10      # quicker

The others: a full disk, a stopped worker, a killed driver outside of the cluster (ray://), 5 % of
S3 requests failing.

A Ray cluster of a head and two nodes runs on this machine. At random times a worker, a node
(another takes its place) or the driver (it is started again) is killed, until there were as many
kills as wanted; run follows run. Every store is compared with the local run. Lost: tasks that are
not done at the end. Wrong: tasks whose readings differ (by any bit; for images by 1e-5). Wasted:
tasks measured more than once, or begun and not stored, over all tasks.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

STRINGS = {
    "items": 4096,
    "trajectories": 4,
    "chunk": 16,
    "source": {"type": "rhm", "vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 10},
    "corruption": {"type": "gaussian", "noise": [0.02, 0.05, 0.1, 0.3]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}
IMAGES = {
    "items": 48,
    "chunk": 1,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.2, 0.5, 0.8]},
    "backward": {"type": "diffusion", "steps": 30},
    "probes": [{"type": "network_layers"}],
}
COUNTS = "UTURN_FAULTS_COUNTS"  # folder in which workers count the tasks that they begin


def counted_tasks(spec, store):
    """The tasks of an experiment; what is begun is counted, one byte each in a file of the
    process.
    """
    from uturn.engine import executors, tasks

    measurements = tasks.measurements

    def counted(experiment, wanted, first):
        def begun():
            with open(Path(os.environ[COUNTS], str(os.getpid())), "ab", buffering=0) as file:
                for entry in wanted:
                    file.write(b".")
                    yield entry

        return measurements(experiment, begun(), first)

    tasks.measurements = counted
    return executors._tasks_of(spec, store)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def drive(spec_file, store, address):
    """A driver: `uturn run` with tasks that are counted."""
    import faults
    from uturn import cli
    from uturn.engine import cluster, executors

    executors._tasks_of = faults.counted_tasks
    on_cluster = cluster.on_cluster
    cluster.on_cluster = lambda *args, **options: on_cluster(
        *args, **{**options, "silent_after": 5.0, "own_code": True}
    )
    sys.argv = ["uturn", "run", spec_file, "--store", store, "--cluster", address]
    cli.main()


class Faults:
    """A cluster, a run on it, and what is done to it."""

    def __init__(self, seed):
        from ray.cluster_utils import Cluster

        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="uturn-faults-"))
        # Workers are children of the nodes, and count in this folder.
        self.counts = self.folder / "counts"
        self.counts.mkdir()
        os.environ[COUNTS] = str(self.counts)
        # Otherwise Ray's client server sometimes does not answer.
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        port = free_port()
        head = {"num_cpus": 0, "object_store_memory": 2**27, "ray_client_server_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [
            self.cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(2)
        ]
        self.cluster.wait_for_nodes()
        self.client_address = f"ray://{self.cluster.address.rpartition(':')[0]}:{port}"

    def start(self, spec_file, store, address=None):
        here = [str(Path(__file__).parent), str(TESTS), *filter(None, sys.path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(here)}
        words = [
            sys.executable,
            __file__,
            "--drive",
            str(spec_file),
            str(store),
            address or self.cluster.address,
        ]
        return subprocess.Popen(
            words, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

    def strike(self, driver):
        """Kill something; returns what, or None if there was nothing to kill."""
        from cluster_tasks import processes

        kind = self.random.choices(["worker", "node", "driver"], [5, 2, 3])[0]
        with suppress(ProcessLookupError):
            if kind == "node":
                node = self.nodes.pop(0)
                self.cluster.remove_node(node, allow_graceful=False)
                self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=2**27))
                return kind
            if kind == "driver":
                driver.kill()
                return kind
            if alive := processes("ray::Worker"):
                os.kill(self.random.choice(alive), signal.SIGKILL)
                return kind
        return None

    def begun(self):
        total = sum(path.stat().st_size for path in self.counts.iterdir())
        for path in self.counts.iterdir():
            path.unlink()
        return total


def compared(name, store, local, begun, events, tolerance=0.0):
    """Print a row of the table: what is lost, wrong and wasted in the store of a run."""
    from uturn.store.reading import dataset_of
    from uturn.store.run_folder import RunFolder

    opened = RunFolder.open(str(store))
    states = opened.states()
    lost = [task for task, progress in states.items() if progress.state != "done"]
    ds = dataset_of(opened).load()
    wrong = 0
    for task in states.keys() - set(lost):
        at = {"noise": task.noise_index, "item": opened.items(task)}
        pairs = [
            (ds[name].isel(at).values, local[name].isel(at).values)
            for name in opened.file.variables
        ]
        wrong += not all(
            np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True) for a, b in pairs
        )
    wasted = (begun - len(states)) / len(states)
    print(
        f"| {name} | {events} | {len(states)} | {len(lost)} | {wrong} | {100 * wasted:.1f} % |",
        flush=True,
    )
    return len(lost), wrong


def local_run(spec):
    import uturn as ut

    return ut.run(ut.Experiment.from_dict(spec)).load()


def written(spec, folder, name):
    import json

    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    return path


def kills(faults, name, spec, number, seconds):
    """Runs of an experiment, one after the other, until so many kills."""
    local, spec = local_run(spec), written(spec, faults.folder, name)
    total: Counter[str] = Counter()
    rounds = 0
    while sum(total.values()) < number:
        store, here, restarts = faults.folder / f"{name}-{rounds}", Counter(), 0
        driver = faults.start(spec, store)
        last = time.monotonic()
        while True:
            pause = faults.random.expovariate(1 / seconds)
            try:
                driver.communicate(timeout=pause)
                if driver.returncode == 0:
                    break
                restarts += 1
                if restarts > 50:
                    raise SystemExit("the run does not end")
                driver = faults.start(spec, store)
            except subprocess.TimeoutExpired:
                if sum(total.values()) < number and (kind := faults.strike(driver)):
                    here[kind] += 1
                    total[kind] += 1
                if time.monotonic() - last > 900:
                    raise SystemExit("the run does not end") from None
        rounds += 1
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(here.items())) or "none"
        compared(
            f"kills, {name}", store, local, faults.begun(), told, 1e-5 if name == "images" else 0.0
        )


def stopped_worker(faults):
    from cluster_tasks import processes

    local = local_run(STRINGS)
    store = faults.folder / "stopped"
    driver = faults.start(written(STRINGS, faults.folder, "strings"), store)
    while faults_begun(faults) < 50:
        time.sleep(0.2)
    os.kill(processes("ray::Worker")[0], signal.SIGSTOP)
    driver.communicate(timeout=500)
    compared("a stopped worker", store, local, faults.begun(), "1 SIGSTOP")


def killed_client(faults):
    """A driver outside of the cluster, with ray://, is killed; Ray ends its workers; the run is
    continued.
    """
    from cluster_tasks import processes

    local, spec, store = (
        local_run(STRINGS),
        written(STRINGS, faults.folder, "strings"),
        faults.folder / "client",
    )
    driver = faults.start(spec, store, faults.client_address)
    while faults_begun(faults) < 50:
        time.sleep(0.2)
    driver.kill()
    killed = time.monotonic()
    while processes("ray::Worker"):
        time.sleep(0.2)
    print(f"(ray://: the workers ended {time.monotonic() - killed:.0f} s after the driver)")
    driver = faults.start(spec, store, faults.client_address)
    driver.communicate(timeout=500)
    compared(
        "a driver with ray:// that is killed", store, local, faults.begun(), "1 kill, run again"
    )


def faults_begun(faults):
    return sum(path.stat().st_size for path in faults.counts.iterdir())


@contextmanager
def small_disk(folder):
    """A file system of 1.5 MB, too small for the run."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(faults):
    """The disk is full; the run stops and says so; there is room; the run is continued."""
    local = local_run(STRINGS)
    spec = written(STRINGS, faults.folder, "strings")
    try:
        with small_disk(faults.folder / "disk") as disk:
            driver = faults.start(spec, disk / "store")
            _, said = driver.communicate(timeout=500)
            print(f"(full disk: exit code {driver.returncode}: {said.splitlines()[-1][-200:]})")
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            driver = faults.start(spec, disk / "store")
            driver.communicate(timeout=500)
            compared("a full disk", disk / "store", local, faults.begun(), "1 full disk, run again")
    except (subprocess.CalledProcessError, FileNotFoundError):
        print("| a full disk | not tried: it needs the right to mount | | | | |")


def failing_requests(faults, rate, seed):
    """A store on S3, whose requests fail now and then."""
    from faulty_proxy import FaultyProxy

    log = faults.folder / "server.log"
    words = [
        sys.executable,
        "-c",
        "import sys; from moto.server import main; main(sys.argv[1:])",
        "-p",
        "0",
    ]
    with log.open("w") as file:
        server = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        while "Running on" not in log.read_text():
            time.sleep(0.1)
        upstream = (
            next(line for line in log.read_text().splitlines() if "Running on" in line)
            .split()[-1]
            .rstrip("/")
        )
        with FaultyProxy(upstream, seed=seed) as proxy:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": proxy.url, "AWS_ALLOW_HTTP": "true",
            }  # fmt: skip
            import urllib.request

            urllib.request.urlopen(
                urllib.request.Request(f"{upstream}/faults", method="PUT")
            ).read()
            spec = {**STRINGS, "items": 1024}
            local, path = local_run(spec), written(spec, faults.folder, "s3")
            proxy.rate = rate
            with own_nodes(faults):  # new ones, with these variables
                driver = faults.start(path, "s3://faults/run")
                _, said = driver.communicate(timeout=900)
                if driver.returncode:
                    print(said[-500:])
            proxy.rate = 0.0
            failed = sum(count for kind, count in proxy.counts().items() if kind)
            events = f"{failed} of {len(proxy.requests)} requests"
            compared("S3 requests that fail", "s3://faults/run", local, faults.begun(), events)
    finally:
        server.kill()


@contextmanager
def own_nodes(faults):
    for node in faults.nodes:
        faults.cluster.remove_node(node)
    faults.nodes = [
        faults.cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(2)
    ]
    yield


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0, help="mean time between two kills")
    parser.add_argument("--rate", type=float, default=0.05, help="share of S3 requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["kills", "images", "client", "disk", "stopped", "s3"])
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(*given.drive)
        return
    faults = Faults(given.seed)
    print(
        "| fault | events | tasks | lost | wrong | wasted work |\n|---|---|---|---|---|---|",
        flush=True,
    )
    chosen = {
        "disk": lambda: full_disk(faults),
        "stopped": lambda: stopped_worker(faults),
        "client": lambda: killed_client(faults),
        "s3": lambda: failing_requests(faults, given.rate, given.seed),
        "kills": lambda: kills(faults, "strings", STRINGS, given.kills, given.seconds),
        "images": lambda: kills(faults, "images", IMAGES, -(-given.kills // 4), given.seconds),
    }
    try:
        for name, measure in chosen.items():
            if given.only in (None, name):
                measure()
    finally:
        with suppress(Exception):
            faults.cluster.shutdown()


if __name__ == "__main__":
    main()
