"""A worker of a cluster: a Ray actor that measures bundles of tasks, one after the other or together."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from uturn.core.checks import StoreError, described, one_line
from uturn.core.progress import in_progress


class Measures(Protocol):
    """Members used by a worker to measure tasks; implemented by `uturn.engine.tasks.Tasks`."""

    twice: int

    def recorded_left(self, tasks: Sequence[Any]) -> Mapping[Any, Any]: ...
    def measure(self, tasks: Iterator[tuple[Any, Any]], *, check: bool = False) -> Iterator[Any]: ...


@dataclass(eq=False)
class _Bundle:
    tasks: Sequence[Hashable]
    ended: Future[tuple[str | None, bool]] = field(default_factory=Future)  # the error, and whether it is an error of the store
    left: dict[Any, Any] = field(default_factory=dict)  # its unfinished tasks, with their values from `recorded_left`


class Worker:
    """Measures bundles of tasks. A bundle that arrives during a measurement joins it, so that a network's batches stay full.

    Ray calls the methods in threads of the actor. A further thread measures.
    """

    def __init__(self, threads: int) -> None:
        # Libraries read these when they are imported, which happens in `start`.
        os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
        self._inbox: queue.SimpleQueue[_Bundle] = queue.SimpleQueue()
        self._owners: dict[Hashable, _Bundle] = {}  # bundles of the tasks being measured

    def start(self, make: bytes, folder: str, modules: Mapping[str, str], version: str) -> dict[str, Any]:
        """Build what measures the tasks; returns its `pid`, and an `error` if it cannot measure them.

        Parameters
        ----------
        make
            Pickled function without arguments that returns an object with the members of `Measures`.
        folder
            Working directory of the driver, also used here if it exists.
        modules
            User-defined modules of the driver, {relative path: source text}.
        version
            Version of uturn of the driver.
        """
        import ray.cloudpickle

        import uturn

        pid = os.getpid()
        if uturn.__version__ != version:
            error = f"it has uturn {uturn.__version__}, and the driver {version}; install the same version"
            return {"pid": pid, "error": error}
        try:
            if os.path.isdir(folder):
                os.chdir(folder)
            self._add_modules(modules)
            self._work: Measures = ray.cloudpickle.loads(make)()
        except (Exception, SystemExit) as raised:
            return {"pid": pid, "error": described(raised, 400)}
        threading.Thread(target=self._measure_forever, daemon=True).start()
        return {"pid": pid, "error": None}

    def _add_modules(self, modules: Mapping[str, str]) -> None:
        sys.path.append(os.getcwd())
        if modules:
            import ray

            # Ray ends actors without clean-up, so the files lie beside its logs, in the folder of the session.
            node = ray._private.worker._global_node
            session = None if node is None else node.get_session_dir_path()
            place = Path(tempfile.mkdtemp(prefix="uturn-modules-", dir=session))
            for name, text in modules.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, encoding="utf-8")
            sys.path.append(str(place))

    def measure(self, tasks: Sequence[Hashable]) -> dict[str, Any]:
        """Measure the unfinished tasks of a bundle.

        Returns `error` (None, or one line), `store` (whether it is an error of the store), `measured`, `seconds`, and `twice`,
        the total number of this worker's tasks that another process had stored first.
        """
        begin, bundle = time.monotonic(), _Bundle(tasks)
        error, store, count = None, False, 0
        try:
            bundle.left = dict(self._work.recorded_left(tasks))
            count = len(bundle.left)
        except Exception as raised:
            error, store = one_line(raised), True
        if bundle.left:
            self._inbox.put(bundle)
            error, store = bundle.ended.result()
        measured, seconds = count - len(bundle.left), time.monotonic() - begin
        return {"error": error, "store": store, "measured": measured, "seconds": seconds, "twice": self._work.twice}

    def pulse(self) -> float:
        """Work done on unfinished bundles, in tasks; any answer shows that the worker is alive."""
        bundles = set(list(self._owners.values()))
        return in_progress() + sum(len(bundle.tasks) - len(bundle.left) for bundle in bundles)

    # -- the thread that measures --------------------------------------------------------------------------------------
    def _measure_forever(self) -> None:
        while True:
            first = self._inbox.get()
            failure = "its readings did not come", False
            try:
                for task in self._work.measure(self._stream(first), check=True):
                    bundle = self._owners.pop(task)
                    del bundle.left[task]
                    if not bundle.left:
                        bundle.ended.set_result((None, False))
            except BaseException as raised:
                failure = described(raised), isinstance(raised, StoreError)
            for bundle in {first, *self._owners.values()}:
                if not bundle.ended.done():
                    bundle.ended.set_result(failure)
            self._owners.clear()

    def _stream(self, bundle: _Bundle) -> Iterator[tuple[Any, Any]]:
        """Tasks of a bundle, then of bundles that arrived meanwhile, so that a network's batches stay full."""
        while True:
            self._owners.update(dict.fromkeys(bundle.left, bundle))
            yield from sorted(bundle.left.items(), key=lambda pair: pair[1])
            try:
                bundle = self._inbox.get_nowait()
            except queue.Empty:
                return
