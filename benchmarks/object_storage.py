"""Requests and times of a store on object storage, against those of a folder.

    python benchmarks/object_storage.py

An S3 server (moto) runs as a process on this machine, behind a proxy that delays every request.
Prints, for 200 short tasks of two variables: requests and seconds to make and fill the store, to
look at it again (`resume`, `status`), to extend it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import uturn as ut
from uturn.store.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from faulty_proxy import FaultyProxy

SPEC = {
    "items": 160,
    "chunk": 4,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3},
    "corruption": {"type": "masking", "noise": [0.0, 0.2, 0.4, 0.6, 1.0]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


def measure(where, proxy=None):
    """Print one line for each thing that is done to the store at a place."""
    experiment, larger = (ut.Experiment.from_dict({**SPEC, "items": items}) for items in (160, 200))
    for name, action in (
        ("run", lambda: ut.run(experiment, where)),
        ("resume", lambda: ut.run(experiment, where)),
        ("status", lambda: RunFolder.open(where).states()),
        ("extend", lambda: ut.run(larger, where)),
    ):
        if proxy:
            proxy.requests.clear()
        start = time.monotonic()
        action()
        seconds = time.monotonic() - start
        methods = (
            dict(sorted(Counter(method for method, _, _ in proxy.requests).items()))
            if proxy
            else {}
        )
        print(f"  {name:8}{seconds:8.2f} s  {sum(methods.values()):6d} requests  {methods}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--latency",
        type=float,
        nargs="*",
        default=[0.0, 0.03],
        help="seconds that every request waits",
    )
    given = parser.parse_args()
    ut.run(ut.Experiment.from_dict(SPEC))  # compiles the kernels
    with tempfile.TemporaryDirectory() as folder:
        print("folder")
        measure(f"{folder}/run")
        words = [
            sys.executable,
            "-c",
            "import sys; from moto.server import main; main(sys.argv[1:])",
            "-p",
            "0",
        ]
        log = Path(folder, "log")
        with log.open("w") as file:
            server = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        try:
            while "Running on" not in log.read_text():
                time.sleep(0.1)
            address = next(
                line for line in log.read_text().splitlines() if "Running on" in line
            ).split()[-1]
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/bucket", method="PUT")
            ).close()
            with FaultyProxy(address) as proxy:
                os.environ |= {
                    "AWS_ACCESS_KEY_ID": "name",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_REGION": "us-east-1",
                }
                os.environ |= {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": proxy.url}
                for proxy.latency in given.latency:
                    print(f"object storage, {1000 * proxy.latency:.0f} ms a request")
                    measure(f"s3://bucket/{proxy.latency}", proxy)
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
