"""Runs tasks in several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from uturn.core.checks import expect
from uturn.core.errors import described
from uturn.core.progress import listening, write_to

# New processes inherit these variables before they import the libraries that read them. This
# process has already read them.
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

R = TypeVar("R")


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_script(workers: int) -> None:
    """ValueError if new processes could not import the script that started this one, or would
    run it again.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    spec = getattr(main, "__spec__", None)
    is_of_a_package = spec is not None and spec.name.rpartition(".")[2] == "__main__"
    if path is None or is_of_a_package:
        # A notebook, python -c, or the __main__ of a package is not imported by new processes.
        return
    is_guarded = os.path.isfile(path) and b"__name__" in Path(path).read_bytes()
    guarded = 'the calls under `if __name__ == "__main__":` in a file'
    way_out = f"the processes import {path}, which would run again"
    expect(is_guarded, "workers", workers, f"workers=1, or {guarded}; {way_out}")


def in_processes(
    function: Callable[..., R], tasks: Sequence[tuple[object, ...]], workers: int, threads: int = 0
) -> Iterator[R]:
    """Yield the results of `function(*task)` from `workers` new processes, in the order of
    completion.

    The first error is raised here; after an error, and when the caller stops early or dies, the
    processes end. `threads` is the number of threads of a process, by default an equal share of the
    cores.
    """
    _check_script(workers)
    others = set(multiprocessing.active_children())
    # spawn: forking a process that runs threads (numba, torch) can hang.
    context = multiprocessing.get_context("spawn")
    unfinished = [context.RawValue("d") for _ in range(workers)]
    num_begun = context.Value("i", 0)
    initargs = (unfinished, num_begun)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=initargs)
    limit = str(threads or max(1, cores() // workers))
    before = {name: os.environ.pop(name) for name in THREADS if name in os.environ}
    is_done = False
    try:
        os.environ.update(dict.fromkeys(THREADS, limit))
        try:
            # All processes start here.
            futures = [pool.submit(_sendable, function, *task) for task in tasks]
        finally:
            for name in THREADS:
                del os.environ[name]
            os.environ.update(before)
        with listening(lambda: sum(cell.value for cell in unfinished)):
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool:
                raise RuntimeError(
                    "a process ended before its task: code in it has called os._exit, has crashed,"
                    " or was killed for lack of memory; run with workers=1 to see where"
                ) from None
        is_done = True
    finally:
        if not is_done:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _sendable(function: Callable[..., R], *task: object) -> R:
    """`function(*task)`, whose errors can be sent to another process.

    An error of a class that cannot be pickled becomes a RuntimeError with its text.
    """
    try:
        return function(*task)
    except Exception as error:
        if _can_be_sent(error):
            raise
        raise RuntimeError(described(error)) from None


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that is defined in a function, or whose __init__ takes more
        return False
    return True


def _begin(
    unfinished: Sequence[Any],
    num_begun: Any,  # noqa: ANN401 - a cell of ctypes, whose type is not public
) -> None:
    """Initialise a new process: it ignores Ctrl-C, ends with its parent, and writes its progress.

    `unfinished`: a cell for the work of each process. `num_begun`: processes so far.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with num_begun:
        place = num_begun.value
        num_begun.value += 1
    write_to(unfinished[place])
