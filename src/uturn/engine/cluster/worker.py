"""A worker of a cluster: a Ray actor that measures bundles of tasks, one after the other or together."""

from __future__ import annotations

import os
import platform
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from uturn.core.checks import StoreError, one_line
from uturn.core.progress import in_progress


class Measures(Protocol):
    """What a worker needs of the tasks it measures; `uturn.engine.tasks.Tasks` has it."""

    twice: int

    def recorded_left(self, tasks: Sequence[Any]) -> Mapping[Any, Any]: ...
    def measure(self, tasks: Iterator[tuple[Any, Any]], *, check: bool = False) -> Iterator[Any]: ...


@dataclass
class _Bundle:
    tasks: Sequence[Hashable]
    ended: Future[str | None] = field(default_factory=Future)  # the error, or None
    left: dict[Any, Any] = field(default_factory=dict)  # its tasks that are not done, with what `recorded_left` says of them


class Worker:
    """Measures bundles of tasks. A bundle that comes while another is measured joins it, so that a network's batches stay full.

    The methods are called by Ray in threads of the actor. One more thread measures.
    """

    def __init__(self, threads: int) -> None:
        # Libraries read these when they are imported, which happens in `start`.
        os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
        self._inbox: queue.SimpleQueue[_Bundle] = queue.SimpleQueue()
        self._owners: dict[Hashable, _Bundle] = {}  # of the tasks that are being measured

    def start(self, make: bytes, folder: str, modules: Mapping[str, str], version: str) -> dict[str, Any]:
        """Build what measures the tasks; returns facts about this process, with `error` if it cannot measure them.

        Parameters
        ----------
        make
            Pickled function without arguments that returns an object with the members of `Measures`.
        folder
            Working directory of the driver, which is taken here too if it exists.
        modules
            User-defined modules of the driver, {relative path: source text}.
        version
            Version of uturn of the driver.
        """
        import uturn

        facts = {"host": platform.node(), "pid": os.getpid(), "error": None}
        if uturn.__version__ != version:
            return {**facts, "error": f"it has uturn {uturn.__version__}, and the driver {version}; install the same version"}
        try:
            if os.path.isdir(folder):
                os.chdir(folder)
            self._add_modules(modules)
            self._work: Measures = _loaded(make)()
        except (Exception, SystemExit) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return {**facts, "error": kind + " ".join(str(error).split())[:400] or type(error).__name__}
        threading.Thread(target=self._measure_forever, daemon=True).start()
        return facts

    def _add_modules(self, modules: Mapping[str, str]) -> None:
        sys.path.append(os.getcwd())
        if modules:
            # Kept for the life of the process; Ray ends actors without clean-up.
            place = Path(tempfile.mkdtemp(prefix="uturn-modules-"))
            for name, text in modules.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, encoding="utf-8")
            sys.path.append(str(place))

    def measure(self, tasks: Sequence[Hashable]) -> dict[str, Any]:
        """Measure a bundle of tasks, those that are not done already.

        Returns `error` (None, or one line), `store` (whether the store is to blame for it), `measured`, `seconds`, and `twice`,
        the number of tasks that this worker ever measured although another process was faster.
        """
        start, bundle = time.monotonic(), _Bundle(tasks)
        try:
            bundle.left = dict(self._work.recorded_left(tasks))
            count, error = len(bundle.left), None
            if bundle.left:
                self._inbox.put(bundle)
                error = bundle.ended.result()
        except Exception as raised:  # the records could not be read
            count, error = 0, _STORE + one_line(raised)
        return {
            "error": error and error.removeprefix(_STORE),
            "store": bool(error and error.startswith(_STORE)),
            "measured": count - len(bundle.left),
            "seconds": time.monotonic() - start,
            "twice": self._work.twice,
        }

    def pulse(self) -> float:
        """How many tasks' worth of work is done on bundles that have not ended; that it answers shows that it is alive."""
        bundles = {id(bundle): bundle for bundle in list(self._owners.values())}.values()
        return in_progress() + sum(len(bundle.tasks) - len(bundle.left) for bundle in bundles)

    # -- the thread that measures --------------------------------------------------------------------------------------
    def _measure_forever(self) -> None:
        while True:
            first = self._inbox.get()
            error = None
            try:
                for task in self._work.measure(self._stream(first), check=True):
                    bundle = self._owners.pop(task)
                    del bundle.left[task]
                    if not bundle.left:
                        bundle.ended.set_result(None)
            except BaseException as raised:
                kind = "" if isinstance(raised, ValueError) else f"{type(raised).__name__}: "
                error = (_STORE if isinstance(raised, StoreError) else "") + kind + one_line(raised)
            for bundle in {id(bundle): bundle for bundle in (first, *self._owners.values())}.values():
                if not bundle.ended.done():
                    bundle.ended.set_result(error or "its readings did not come")
            self._owners.clear()

    def _stream(self, bundle: _Bundle) -> Iterator[tuple[Any, Any]]:
        """Tasks of a bundle, then of those that are there when it ends; so a network's batches stay full."""
        while True:
            self._owners.update(dict.fromkeys(bundle.left, bundle))
            yield from sorted(bundle.left.items(), key=lambda pair: pair[1])
            try:
                bundle = self._inbox.get_nowait()
            except queue.Empty:
                return


_STORE = "store: "


def _loaded(make: bytes) -> Callable[[], Measures]:
    import ray.cloudpickle

    return ray.cloudpickle.loads(make)
