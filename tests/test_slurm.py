"""The job scripts of examples/slurm: with stand-ins for the commands that they call, and on a
Slurm of this machine.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import xarray as xr

import uturn as ut

ROOT = Path(__file__).parents[1]
ARRAY, RAY = (ROOT / "examples" / "slurm" / name for name in ("array.sbatch", "ray.sbatch"))
ONE_NODE = ROOT / "tests" / "slurm" / "one_node.sh"
SPEC = """
items = 24
chunk = 4
source = { type = "rhm", vocab_size = 8, multiplicity = 2, branching = 2, depth = 4 }
corruption = { type = "masking", noise = [0.2, 0.5, 0.8] }
backward = { type = "exact" }
probes = [{ type = "tree_levels" }]
"""
# Each stand-in writes its name and arguments to the file `calls`.
STAND_INS = {
    "uturn": (
        """
        trap 'echo "uturn got SIGTERM" >> "$calls"; exit 143' TERM
        for _ in $(seq "${uturn_tenths:-0}"); do sleep 0.1; done
        exit "${uturn_code:-0}"
    """
    ),
    "scontrol": (
        """
        case $1 in
          show) echo n1; echo n2 ;;
          getaddrs) echo "$2: 10.0.0.${2#n}:6818" ;;
        esac
    """
    ),
    "srun": (
        """
        node=n1
        while [[ $1 == --* ]]; do
          [[ $1 == --exclude=n1 ]] && node=n2
          shift
        done
        trap 'kill $!; wait; exit 143' TERM
        SLURMD_NODENAME=$node "$@" &
        wait $!
    """
    ),
    "ray": (
        """
        if [[ $1 == start ]]; then
          [[ -z ${ray_fails:-} ]] || exit 1
          echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >> "$calls"
          [[ $* == *--head* ]] && touch "$calls.up"
          exec sleep 30
        fi
        [[ -e $calls.up ]]
    """
    ),
}


class Job:
    """A job script that runs with stand-ins for `uturn`, `scontrol`, `srun` and `ray`."""

    def __init__(self, folder, script, **variables):
        (folder / "bin").mkdir()
        for name, body in STAND_INS.items():
            (folder / "bin" / name).write_text(
                f'#!/usr/bin/env bash\necho "{name} $*" >> "$calls"\n{body}'
            )
            (folder / "bin" / name).chmod(0o755)
        self.calls_file = folder / "calls"
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "calls": str(self.calls_file),
        }
        slurm = {
            "SLURM_CPUS_PER_TASK": "3",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_ARRAY_TASK_COUNT": "5",
            "SLURM_JOB_ID": "71",
        }
        slurm |= {
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NAME": "uturn",
        }
        command = ["bash", str(script), "run", "a spec.toml", "--store", "s"]
        self.process = subprocess.Popen(
            command, env=environment | slurm | variables, cwd=folder, start_new_session=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def calls(self, name=""):
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.startswith(name)]

    def code_after(self, sent=None):
        """Exit code; the signal is sent when `uturn` runs."""
        if sent is not None:
            wait_until(lambda: self.calls("uturn run"))
            time.sleep(0.2)  # the stand-in handles the signal from its first line on
            self.process.send_signal(sent)
        return self.process.wait(timeout=30)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_array_task_runs_its_share(tmp_path, code):
    with Job(tmp_path, ARRAY, uturn_code=str(code)) as job:
        assert job.code_after() == code
        assert job.calls() == ["uturn run a spec.toml --store s --shard 2/5"]


@pytest.mark.parametrize("script", [ARRAY, RAY])
@pytest.mark.parametrize(
    ("sent", "requeued"), [(signal.SIGTERM, []), (signal.SIGUSR1, ["scontrol requeue 71"])]
)
def test_signal_ends_uturn_and_only_the_time_limit_requeues(tmp_path, script, sent, requeued):
    with Job(tmp_path, script, uturn_tenths="200") as job:
        assert job.code_after(sent) == 143
        assert "uturn got SIGTERM" in job.calls()
        assert job.calls("scontrol requeue") == requeued


def test_ray_starts_on_all_nodes_and_ends_with_the_job(tmp_path):
    with Job(tmp_path, RAY, uturn_code="1", uturn_tenths="20") as job:
        assert job.code_after() == 1  # as when a task failed for good
        (head,), (worker,) = (
            [c for c in job.calls("ray start") if text in c] for text in ("--head", "--address")
        )
        assert "--port=20071" in head
        assert "--node-ip-address=10.0.0.1 " in head
        assert "--address=10.0.0.1:20071" in worker
        assert "--node-ip-address=10.0.0.2 " in worker
        for start in (head, worker):
            assert {
                "--block",
                "--num-cpus=3",
                "--disable-usage-stats",
                "--temp-dir=/tmp/ray-71",
            } <= set(start.split())
        assert job.calls("token") == ["token 64 token"] * 2
        assert job.calls("uturn") == ["uturn run a spec.toml --store s --cluster 10.0.0.1:20071"]
        with pytest.raises(ProcessLookupError):
            os.killpg(job.process.pid, 0)


def test_ray_that_does_not_start_ends_the_job(tmp_path):
    with Job(tmp_path, RAY, ray_fails="yes") as job:
        assert job.code_after() == 1
        assert job.calls("uturn") == []


@pytest.mark.slow
def test_second_sigterm_is_ignored(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC.replace("items = 24", "items = 8000"))
    command = [sys.executable, "-m", "uturn.cli", "run", "spec.toml", "--store", "store"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (tmp_path / "store" / "tasks").exists())
        for _ in range(20):  # one in whatever the first interrupts
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert said.count("run the same command again to resume") == 1
    assert "Traceback" not in said
    assert "was destroyed" not in said


# -- a Slurm of this machine -----------------------------------------------------------------------
# Not by default, since Slurm without cgroups may take the processes of the test for those of a job,
# and kill them.
needs_slurm = pytest.mark.skipif(
    "UTURN_SLURM" not in os.environ, reason="UTURN_SLURM=1 starts a Slurm (slurm-wlm, munge)"
)


@contextmanager
def slurm(folder):
    """Environment of the commands of a Slurm that runs in a folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    packages = os.pathsep.join(
        [str(Path(ut.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    try:
        subprocess.run([ONE_NODE, "start", folder], check=True, timeout=60)
        yield os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": path,
            "PYTHONPATH": packages,
        }
    finally:
        subprocess.run([ONE_NODE, "stop", folder], check=True, timeout=60)


@needs_slurm
def test_array_job_gives_the_numbers_of_a_local_run(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "long.toml").write_text(SPEC.replace("items = 24", "items = 12000"))

    with slurm(tmp_path / "slurm") as environment:

        def said(*command):
            return subprocess.run(
                command,
                env=environment,
                cwd=tmp_path,
                check=True,
                timeout=30,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout

        def submitted(*command):
            return said("sbatch", "--parsable", "--time=5", "--cpus-per-task=1", *command).strip()

        def task(job, name):
            return dict(
                pair.split("=", 1)
                for pair in said("scontrol", "show", "job", job).split()
                if "=" in pair
            )[name]

        submitted("--array=1-3", str(ARRAY), "run", "spec.toml", "--store", "store")
        wait_until(lambda: not said("squeue", "--noheader").strip())

        # What is cancelled ends with its store in order; what is requeued ends and waits.
        job = submitted("--array=1-2", str(ARRAY), "run", "long.toml", "--store", "long")
        wait_until(lambda: (tmp_path / "long" / "tasks").exists())
        said("scancel", f"{job}_1")
        said("scontrol", "requeue", f"{job}_2")
        wait_until(
            lambda: (
                task(f"{job}_1", "JobState") == "CANCELLED"
                and task(f"{job}_2", "JobState") == "PENDING"
            )
        )
        assert task(f"{job}_1", "ExitCode") == "143:0"
        assert task(f"{job}_2", "Restarts") == "1"

    wanted = ut.run(ut.Experiment.from_file(tmp_path / "spec.toml"))
    found = xr.open_dataset(tmp_path / "store", engine="uturn").load()
    assert found.attrs["complete"]
    for name in wanted.data_vars:
        assert found[name].values.tobytes() == wanted[name].values.tobytes()
