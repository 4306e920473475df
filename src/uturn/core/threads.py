"""One pool of threads for all compiled kernels, and a message to the user while numba compiles
them.

Numba's own workqueue is not reentrant, OpenMP threads do not survive a fork, and two pools would
compete for the cores.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numba
from numba.core import event

num_threads: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # the variable of that name, or the cores
# Smallest number of values in a block, since waking a thread takes about 50 microseconds.
_SMALLEST = 2**15


def over_blocks(count: int, block: Callable[[int, int], None], numbers: int = _SMALLEST) -> None:
    """Call block(first, last) for ranges that cover 0 .. count - 1, on all threads including this
    one.

    `numbers`: values computed for each entry, at about 2 ns each; small ranges are not distributed.
    """
    # Cores are rarely equally free.
    blocks = min(count * numbers // _SMALLEST, count, 6 * num_threads)
    if min(num_threads, blocks) <= 1:
        block(0, count)
        return
    cuts = [count * i // blocks for i in range(blocks + 1)]
    todo = deque(pairwise(cuts))

    def work() -> None:
        while True:
            try:
                first, last = todo.popleft()  # atomic, so no lock is needed
            except IndexError:
                return
            block(first, last)

    helpers: list[Future[None]] = []
    try:
        for _ in range(min(num_threads, blocks) - 1):
            helpers.append(_pool().submit(work))
        work()
    finally:
        todo.clear()
        _wait_for(helpers)


def _wait_for(helpers: list[Future[None]]) -> None:
    """Wait for the helpers' last blocks, even after an interrupt, since the memory they write to
    is freed afterwards.
    """
    interrupted = None
    for helper in helpers:
        while not helper.done():
            try:
                helper.exception()
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
    for helper in helpers:
        helper.result()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    key = (os.getpid(), num_threads)  # by process, since a fork does not inherit threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(max(num_threads - 1, 1), thread_name_prefix="uturn")
    return _pools[key]


class _Announcement(event.Listener):
    """Prints one line, on terminals and in notebooks, when numba's cache on disk lacks a kernel
    of this package.
    """

    printed = False

    def on_start(self, event: Any) -> None:  # noqa: ANN401 - of numba, which has no types
        ours = event.data["dispatcher"].py_func.__module__.startswith("uturn.")
        if (
            ours
            and not self.printed
            and ((sys.stderr and sys.stderr.isatty()) or "ipykernel" in sys.modules)
        ):
            self.printed = True
            print(
                "uturn: compiling kernels for this machine, once (10 to 30 s)",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, event: object) -> None:
        pass


def announce_compiling() -> None:
    """Tell the user, except in worker processes, while numba compiles kernels."""
    if multiprocessing.parent_process() is None:
        event.register("numba:compile", _Announcement())


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Context in which torch uses at most `number` threads; without torch it does nothing."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
