"""A Ray that was started by hand: its address, `auto`, and its client server."""

import os
import re
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

from command_line import SPEC, uturn

pytest.importorskip("ray")
SPEC = (
    SPEC.replace("items = 4", "items = 16\nchunk = 4")
    .replace('"epsilon"', '"gaussian"')
    .replace("[0.0, 0.5]", "[0.05, 0.2]")
)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def started():
    """(port of Ray, port of its client server, environment) of a `ray start --head`, with a
    token.
    """
    # Short: paths of sockets have at most 107 characters.
    folder = tempfile.mkdtemp(prefix="uturn-ray-", dir="/tmp")
    env = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    # The client server forks while gRPC has threads; with gRPC's own handlers of forks its child
    # may never answer.
    env["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    ports = free_port(), free_port()
    words = [
        "start",
        "--head",
        "--block",
        f"--port={ports[0]}",
        f"--ray-client-server-port={ports[1]}",
        "--num-cpus=2",
    ]
    words += [
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
        "--min-worker-port=0",
    ]
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
                with (
                    suppress(OSError),
                    socket.create_connection((socket.gethostbyname(socket.gethostname()), port), 1),
                ):
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


def begun(folder, store, cluster, env):
    (folder / "spec.toml").write_text(SPEC)
    words = [
        sys.executable,
        "-m",
        "uturn.cli",
        "run",
        "spec.toml",
        "--store",
        store,
        "--cluster",
        cluster,
    ]
    return subprocess.Popen(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_commands_join_it(started, tmp_path):
    """By `auto` and by its client server, at the same time; tests/test_cluster.py gives
    addresses.
    """
    port, client, env = started
    here = socket.gethostbyname(socket.gethostname())
    both = {
        "auto": begun(tmp_path, "auto", "auto", {**env, "RAY_ADDRESS": f"{here}:{port}"}),
        "client": begun(tmp_path, "client", f"ray://{here}:{client}", env),
    }
    told = {name: run.communicate(timeout=240) for name, run in both.items()}
    for name, run in both.items():
        assert run.returncode == 0, told[name]
        assert re.search(rf"{name}: (\d+) of \1 tasks done; spec", told[name][0])


def test_a_ray_that_is_gone(tmp_path, monkeypatch):
    """Ray itself would look for it for minutes."""
    (tmp_path / "spec.toml").write_text(SPEC)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    done = uturn("run", "spec.toml", "--store", "x", "--cluster", "auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing answers at" in done.stderr
    assert done.stderr.count("\n") == 1
