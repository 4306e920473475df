"""Tasks for tests and benchmarks of the cluster: files that say who measured what, and tasks
that raise, die or wait.
"""

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from uturn.engine.schedule import Left


class FileTasks:
    """Tasks are integers; a task that is done is a file of its name. `raises`, `dies`: tasks that
    do so, each time.

    Tasks that have begun do not go on while there is a file "held".
    """

    def __init__(self, folder, seconds=0.0, raises=(), dies=(), once=(), together=False):
        self.folder, self.seconds = Path(folder), seconds
        self.raises, self.dies, self.once, self.together = raises, dies, once, together

    def recorded_left(self, tasks):
        return [Left(task) for task in tasks if not (self.folder / f"{task}").exists()]

    def measure(self, left, *, check=False):
        # With `together`, all tasks are taken before the first is measured, as in the batches of a
        # network.
        for entry in list(left) if self.together else left:
            task = entry.task
            (self.folder / f"try-{task}-{time.time_ns()}-{os.getpid()}").touch()
            time.sleep(self.seconds)
            while (self.folder / "held").exists():
                time.sleep(0.02)
            if task in self.raises:
                raise ValueError(f"task {task} is odd")
            first = not (self.folder / f"died-{task}").exists()
            if task in self.dies or (task in self.once and first):
                (self.folder / f"died-{task}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (self.folder / f"{task}").touch()
            yield task


def tries(folder):
    """{task: how often it was begun}."""
    return Counter(int(path.name.split("-")[1]) for path in Path(folder).glob("try-*"))


def workers_of(folder):
    """Pids of the workers that have begun a task."""
    return {path.name.split("-")[-1] for path in Path(folder).glob("try-*")}


def processes(title):
    """Pids of processes with this title that this one has started; others may run Ray on this
    machine too.
    """
    parents, pids = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(place.name)] = int(
                (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if (place / "cmdline").read_bytes().startswith(title.encode()):
                pids.append(int(place.name))

    def is_ours(pid):
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in pids if is_ours(pid)]
