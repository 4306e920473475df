"""A Ray that was started by hand: its address, `auto`, and its client server."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

SPEC = """
items = 16
chunk = 4
[source]
type = "rhm"
vocab_size = 8
multiplicity = 2
branching = 2
depth = 4
[corruption]
type = "gaussian"
noise = [0.05, 0.2]
[backward]
type = "exact"
[[probes]]
type = "tree_levels"
"""

pytest.importorskip("ray")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def started():
    """(port of Ray, port of its client server, environment) of a `ray start --head`, with a token."""
    folder = tempfile.mkdtemp(prefix="uturn-ray-", dir="/tmp")  # short: paths of sockets have at most 107 characters
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # The client server forks while gRPC has threads; with gRPC's own handlers of forks its child may never answer.
    env["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    ports = free_port(), free_port()
    words = ["start", "--head", "--block", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--num-cpus=2"]
    words += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", "--min-worker-port=0"]
    words += ["--max-worker-port=0", "--object-store-memory=100000000"]
    with (Path(folder) / "log").open("w") as log:
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        for port in ports:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                with suppress(OSError), socket.create_connection((socket.gethostbyname(socket.gethostname()), port), 1):
                    break
                assert head.poll() is None, (Path(folder) / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield *ports, env
    finally:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        head.kill()
        shutil.rmtree(folder, ignore_errors=True)


def run(folder, cluster, env):
    (folder / "spec.toml").write_text(SPEC)
    words = [sys.executable, "-m", "uturn.cli", "run", "spec.toml", "--store", "x", "--cluster", cluster]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", ["client", "auto"])  # tests/test_cluster.py gives addresses
def test_the_command_joins_it(started, tmp_path, kind):
    port, client, env = started
    here = socket.gethostbyname(socket.gethostname())
    cluster = f"ray://{here}:{client}" if kind == "client" else "auto"
    done = run(tmp_path, cluster, {**env, "RAY_ADDRESS": f"{here}:{port}"} if kind == "auto" else env)
    assert done.returncode == 0, done.stderr
    assert "x: complete" in done.stdout


def test_a_ray_that_is_gone(tmp_path):
    """Ray itself would look for it for minutes."""
    done = run(tmp_path, "auto", {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert done.returncode == 2
    assert "nothing answers at" in done.stderr
    assert done.stderr.count("\n") == 1
