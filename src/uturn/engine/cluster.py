"""Tasks on a Ray cluster: workers are Ray actors, which load the model once, and the driver gives
them bundles of tasks.

The store is the only record of finished tasks. A bundle that fails, by an error or the death of its
worker, is handed out again in halves, until the task at fault is alone.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import site
import socket
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from uturn.core.checks import expect
from uturn.core.errors import StoreError, TasksFailed, described
from uturn.core.messages import one_line
from uturn.core.processes import THREADS

_log = logging.getLogger("uturn")
# Of a task that raises or whose worker dies, and of a worker that cannot store readings.
MOST_TRIES = 3
_SECONDS = 10.0  # desired duration of a bundle of small tasks
_STORE_WAIT = 5.0  # delay before a worker retries after a failed write
_NO_WORKER = 30.0  # seconds without a worker before a message to the user
# Seconds until another worker is tried in the place of one whose node or store has failed.
_REST = 600.0
# A worker whose bundle takes this many times the median of finished ones counts as dead.
_HANGS = 20.0


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Context in which this process is a driver of the cluster at an address; its value is the
    module ray.

    "local" starts Ray on the loopback interface, and stops it at the end. An existing connection is
    used and not closed.
    """
    fits = re.fullmatch(r"local|auto|(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", address)
    expect(fits, "cluster", address, '"local", "auto", "ray://host:port" or "host:port"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("cluster: Ray is not installed; pip install 'uturn[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address == "local":
            folder = tempfile.TemporaryDirectory(
                prefix="uturn-ray-", dir=_short_folder(), ignore_cleanup_errors=True
            )
            # One node on the loopback interface; nothing listens to other hosts. The object store
            # carries only small messages.
            options |= {
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "object_store_memory": 2**27,
                "_temp_dir": stack.enter_context(folder),
            }
        stack.callback(ray.shutdown)
        try:
            if address != "local":
                _check_answers(address)
            _init(ray, address, options)
        except (Exception, SystemExit) as error:  # Ray ends the process if the cluster rejects it
            raise ValueError(
                f"cluster = {address!r}: Ray does not connect ({one_line(error, 400)}); start it"
                " there (ray start --head), and give the port of its own (6379) or, with ray://,"
                " that of its client server (10001); a cluster that asks for a token needs"
                " RAY_AUTH_MODE=token here too"
            ) from None
        yield ray


def _short_folder() -> str | None:
    """A folder for temporary files with a short path, since the path of a socket has at most 107
    characters.
    """
    if len(tempfile.gettempdir()) < 30:
        return None
    return "/tmp"


def _check_answers(address: str) -> None:
    """Error if nothing answers at an address; Ray would try for minutes, and then end the
    process.
    """
    if address == "auto":
        from ray._private import services

        address = str(services.canonicalize_bootstrap_address_or_die("auto"))
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"nothing answers at {address}: {one_line(error)}") from None


def _init(ray: ModuleType, address: str, options: Mapping[str, Any]) -> None:
    """`ray.init`, after which this process has its own signal handlers again; they also handle a
    SIGTERM that came meanwhile.
    """
    from ray._private import ray_constants

    is_main = threading.current_thread() is threading.main_thread()
    handlers: dict[int, Any] = {}
    if is_main:
        handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        handlers[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    code: object = None
    try:
        # Otherwise Ray takes another address than 127.0.0.1 for this node.
        ray_constants.ENABLE_RAY_CLUSTER = enabled and address != "local"
        ray.init(address, **options)
    except SystemExit as stop:
        code = stop.code
        raise
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for number, handler in handlers.items():
            if handler is not None:  # only handlers set by Python can be restored
                signal.signal(number, handler)
        if code == signal.SIGTERM and is_main:
            signal.raise_signal(signal.SIGTERM)


class Outcome(NamedTuple):
    """What became of the start of a worker, or of its bundle."""

    host: str
    error: str | None = None
    is_fault_of_node: bool = False
    """Whether the node or the store is to blame for the error, not a task."""
    measured: int = 0
    """Tasks that were not done before."""
    seconds: float = 0.0


class Worker:
    """An actor that measures bundles of tasks."""

    def __init__(self, threads: int) -> None:
        # Libraries read these when they are imported, which happens in `start`.
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        self._host = socket.gethostname()

    def start(self, make: bytes, folder: str, modules: Mapping[str, str], version: str) -> Outcome:
        """Make what measures the tasks by the pickled `make`, in the driver's folder, with the
        user's `modules` {path: text}.
        """
        import ray

        import uturn

        try:
            if uturn.__version__ != version:
                raise ValueError(
                    f"it has uturn {uturn.__version__}, and the driver {version}; install the same"
                    " version"
                )
            with suppress(OSError):
                os.chdir(folder)
            # Ray ends actors without clean-up, so the files lie beside its logs, in the folder of
            # the session.
            node = ray._private.worker._global_node
            session = None
            if node is not None:
                session = node.get_session_dir_path()
            sys.path.append(os.getcwd())
            if modules:
                own = Path(tempfile.mkdtemp(prefix="uturn-modules-", dir=session))
                for name, text in modules.items():
                    (own / name).parent.mkdir(parents=True, exist_ok=True)
                    (own / name).write_text(text, encoding="utf-8")
                sys.path.append(str(own))
            self._work = ray.cloudpickle.loads(make)()
        except (Exception, SystemExit) as error:
            return Outcome(self._host, described(error, 400), True)
        return Outcome(self._host)

    def measure(self, tasks: Sequence[Any]) -> Outcome:
        """Measure the tasks of a bundle that are not done."""
        begin = time.monotonic()
        measured = 0
        is_opened = False
        try:
            left = self._work.recorded_left(tasks)
            is_opened = True
            for _ in self._work.measure(left, check=True):
                measured += 1
        except BaseException as error:
            is_fault_of_store = not is_opened or isinstance(error, StoreError)
            if is_fault_of_store:
                time.sleep(_STORE_WAIT)
            return Outcome(self._host, described(error), is_fault_of_store)
        return Outcome(self._host, None, False, measured, time.monotonic() - begin)


def whole_batches(u_turns: int, batch: int) -> int:
    """Number of tasks of `u_turns` U-turns in a bundle for a network: at least four batches, with
    the fewest places empty.

    >>> [whole_batches(u_turns, 256) for u_turns in (1, 100, 150, 5000)]
    [1024, 15, 10, 1]
    """
    least = -(-4 * batch // u_turns)
    return min(range(least, 2 * least + 1), key=lambda size: (-size * u_turns % batch) / size)


def bundle_size(waiting: int, workers: int, least: int, seconds: float | None) -> int:
    """Number of tasks of the next bundle, of those waiting: ten seconds' worth, at least
    `least`, and fewer at the end.
    """
    timely = 1
    if seconds is not None:
        timely = int(_SECONDS / max(seconds, 1e-4))
    fair = -(-waiting // workers)  # so that all workers end at about the same time
    size = max(least, min(timely, waiting // (4 * workers)))
    return max(1, min(size, fair))


class _Tasks:
    """The tasks of a run that are left, in bundles."""

    def __init__(
        self,
        tasks: Sequence[Any],
        label: Callable[[Any], str],
        least: int,
        together: Callable[[Any], Any] = id,
    ) -> None:
        self.label = label
        self.least = least
        self.together = together
        self.waiting = deque(tasks)
        self.left = set(tasks)
        self.returned: deque[list[Any]] = deque()
        """Bundles that failed."""
        self.tries: Counter[Any] = Counter()
        self.failed: dict[Any, str] = {}
        """Tasks that are given up, with the last error."""
        self.durations: list[float] = []
        """Seconds of finished bundles."""
        self.seconds: float | None = None
        """Seconds of a task of the last bundle."""

    def next(self, workers: int) -> list[Any]:
        if self.returned:
            return self.returned.popleft()
        size = bundle_size(len(self.waiting), workers, self.least, self.seconds)
        bundle = [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))]
        while self._belongs_to(bundle):
            bundle.append(self.waiting.popleft())
        return bundle

    def _belongs_to(self, bundle: list[Any]) -> bool:
        """Whether the next task is not to be parted from the last one of a bundle."""
        if not bundle or not self.waiting:
            return False
        return bool(self.together(self.waiting[0]) == self.together(bundle[-1]))

    def finished(self, bundle: list[Any], measured: int, seconds: float) -> None:
        self.left.difference_update(bundle)
        if measured:
            self.durations.append(seconds)
            self.seconds = seconds / measured

    def patience(self) -> float:
        """Seconds after which a bundle is given up."""
        if not self.durations:
            return math.inf
        return _HANGS * statistics.median(self.durations)

    def blame(self, bundle: list[Any], error: str) -> None:
        """Retry tasks after an error or a death, in halves, or a single task again; ValueError
        if the first ones all fail.
        """
        task = bundle[0]
        if len(bundle) > 1:
            _log.warning(
                f"{self.label(task)}, and {len(bundle) - 1} more tasks, are handed out again:"
                f" {error}"
            )
            half = len(bundle) // 2
            self.returned += bundle[:half], bundle[half:]
            return
        self.tries[task] += 1
        _log.warning(f"{self.label(task)}, try {self.tries[task]} of {MOST_TRIES}: {error}")
        if self.tries[task] < MOST_TRIES:
            self.returned.append(bundle)
            return
        self.failed[task] = error
        self.left.discard(task)
        if len(self.failed) == MOST_TRIES and not self.durations:
            raise ValueError(f"the first {MOST_TRIES} tasks failed, and none is done: {error}")


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it. It rests after three failures of its node or store, so
    that Ray starts no other there.
    """

    actor: Any
    answer: Any  # the pending one
    bundle: list[Any] = field(default_factory=list)
    since: float = 0.0  # when the bundle was given, or the answer came
    has_started: bool = False
    failures: int = 0
    error: str = ""

    @property
    def is_able(self) -> bool:
        return self.has_started and not self.rests

    @property
    def rests(self) -> bool:
        return self.failures >= MOST_TRIES

    def read(self, outcome: Outcome, work: _Tasks) -> None:
        """Take the answer to its start or to its bundle."""
        bundle = self.bundle
        self.bundle = []
        self.answer = None
        self.since = time.monotonic()
        if outcome.error is None:
            work.finished(bundle, outcome.measured, outcome.seconds)
            self.has_started = True
            self.failures = 0
        elif outcome.is_fault_of_node:  # no task is to blame for a full disk
            if bundle:
                work.returned.append(bundle)
            self.failures += 1
            if not self.has_started:
                self.failures = MOST_TRIES
            self.error = f"the node {outcome.host} is not used for ten minutes: {outcome.error}"
            _log.warning(f"on {outcome.host}: {outcome.error}" if self.is_able else self.error)
        else:
            work.blame(bundle, f"{outcome.error} (on {outcome.host})")

    def give(self, bundle: list[Any]) -> None:
        """Give it a bundle."""
        self.bundle = bundle
        self.since = time.monotonic()
        self.answer = self.actor.measure.remote(bundle)


def on_cluster(
    address: str,
    make: Callable[[], Any],
    tasks: Sequence[Any],
    *,
    label: Callable[[Any], str] = str,
    cpus: float | None = None,
    gpus: float | None = None,
    wants_gpu: bool = False,
    together: Callable[[Any], Any] | None = None,
    least_on_gpu: int = 1,
    most_workers: int | None = None,
    own_code: bool = True,
    silent_after: float = 120.0,
) -> Generator[tuple[int, int]]:
    """Measure tasks on a Ray cluster; yields the numbers of tasks left and of workers that measure,
    about twice a second.

    `make`: function without arguments that returns, in a worker, an object with the members of
    `uturn.engine.tasks.Tasks`. `cpus`, `gpus`: of a worker, by default one GPU if `wants_gpu` and
    the cluster has some, and one core. `least_on_gpu`: least number of tasks in a bundle for a
    worker with a GPU. `own_code`: whether the user's modules are sent to the workers. `together`:
    function of a task; neighbours of one value are never in different bundles. `silent_after`:
    least number of seconds after which a worker that does not answer counts as dead.

    ValueError if the cluster cannot be reached, no node can measure the tasks, or the first three
    tasks fail; `TasksFailed`, after all other tasks are done, if a task raised three times, or was
    alone on three workers that died.
    """
    for name, share in (("cpus_per_worker", cpus), ("gpus_per_worker", gpus)):
        expect(
            share is None or 0.001 <= share < 1e6, name, share, "a number above 0 (at least 0.001)"
        )
    with connected(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        if gpus is None:
            gpus = float(wants_gpu and has_gpus)
        if cpus is None:
            cpus = 1.0
        needs = {"CPU": cpus, "GPU": gpus}
        has_room = any(_room(node, needs) for node in nodes)
        expect(
            has_room,
            f"cpus_per_worker = {needs['CPU']:g}, gpus_per_worker",
            gpus,
            "what a node has; no node has as many",
        )
        import uturn

        modules: dict[str, str] = {}
        if own_code:
            modules = _own_modules()
        start = (ray.cloudpickle.dumps(make), os.getcwd(), modules, uturn.__version__)
        work = _Tasks(tasks, label, least_on_gpu if gpus else 1, together or id)
        try:
            most = most_workers or len(tasks)
            yield from _Fleet(ray, work, needs, most, start, silent_after).states()
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise ValueError(
                f"the cluster does not answer ({one_line(error)}); run it again to resume"
            ) from None
    if work.failed:
        task, reason = next(iter(work.failed.items()))
        words = f"{label(task)} failed ({reason})"
        if len(work.failed) > 1:
            words += f", and {len(work.failed) - 1} more"
        raise TasksFailed(f"{words}; all other tasks are done; run it again to try those again")


class _Fleet:
    """The workers on a cluster: one in each place with room, until no task is left."""

    def __init__(
        self,
        ray: ModuleType,
        work: _Tasks,
        needs: Mapping[str, float],
        most: int,
        start: tuple[Any, ...],
        silent_after: float,
    ) -> None:
        self.ray = ray
        self.work = work
        self.needs = needs
        """Cores and GPUs of a worker."""
        self.most = most
        self.start = start
        """Arguments of `Worker.start`."""
        self.silent_after = silent_after
        self.workers: list[_Worker] = []
        self.failed_starts = 0
        self.able_at = time.monotonic()
        """When a worker was last able to measure; infinite after that was reported."""
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"]}
        self.new_actor = ray.remote(Worker).options(**options).remote

    def states(self) -> Generator[tuple[int, int]]:
        """Numbers of tasks left and of workers that measure, about twice a second."""
        try:
            while self.work.left:
                wanted = self.add_workers()
                has_answers = self.read_answers()
                now = time.monotonic()
                self.end_rests(now)
                able = [worker for worker in self.workers if worker.is_able]
                self.hand_out(able, now)
                self.check_able(able, wanted, now)
                if not has_answers:
                    time.sleep(0.5)
                yield len(self.work.left), len(able)
        finally:
            if self.ray.is_initialized():  # otherwise the next call would connect to any cluster
                with suppress(Exception):
                    for worker in self.workers:
                        self.ray.kill(worker.actor)

    def add_workers(self) -> int:
        """Start a worker in each place with room; gives the number of workers that are wanted."""
        # Nodes may have joined or died.
        room = sum(
            _room(node["Resources"], self.needs) for node in self.ray.nodes() if node["Alive"]
        )
        wanted = min(room, self.most, len(self.work.left))
        for _ in range(wanted - len(self.workers)):
            actor = self.new_actor(max(1, int(self.needs["CPU"])))
            self.workers.append(_Worker(actor, actor.start.remote(*self.start)))
        return wanted

    def read_answers(self) -> bool:
        """Take the answers that have come; gives whether any is pending."""
        pending = {worker.answer: worker for worker in self.workers if worker.answer is not None}
        if not pending:
            return False
        for answer in self.ray.wait(list(pending), timeout=0.5)[0]:
            try:
                outcome = self.ray.get(answer)
            except Exception as error:
                self.end(pending[answer], _reason(error))
            else:
                pending[answer].read(outcome, self.work)
        return True

    def end_rests(self, now: float) -> None:
        """End workers that have rested, since their node may have recovered."""
        for worker in list(self.workers):
            if worker.rests and now - worker.since > _REST:
                with suppress(Exception):
                    self.ray.kill(worker.actor)
                self.workers.remove(worker)

    def hand_out(self, able: list[_Worker], now: float) -> None:
        """Give bundles to workers that have none, and end those that do not answer."""
        patience = max(self.silent_after, self.work.patience())
        for worker in able:
            if worker.bundle:
                if now - worker.since > patience:
                    self.end(worker, f"it did not answer for {now - worker.since:.0f} s")
                continue
            bundle = self.work.next(len(able))
            if bundle:
                worker.give(bundle)

    def end(self, worker: _Worker, reason: str) -> None:
        """End a worker that died or hangs, and hand out its tasks again."""
        with suppress(Exception):
            self.ray.kill(worker.actor)
        if not worker.has_started:
            self.failed_starts += 1
        if not worker.has_started and self.failed_starts > MOST_TRIES:
            worker.answer = None
            worker.failures = MOST_TRIES
            worker.since = time.monotonic()
            worker.error = f"a worker did not start: {reason}"
        else:
            self.workers.remove(worker)
        if worker.bundle:
            self.work.blame(worker.bundle, f"the worker died ({reason})")

    def check_able(self, able: list[_Worker], wanted: int, now: float) -> None:
        """ValueError if no node can measure; a warning if no worker has started for long."""
        if able:
            self.able_at = now
        waited = now - self.able_at
        errors = [worker.error for worker in self.workers if worker.rests]
        all_rest = len(errors) == len(self.workers) >= min(wanted, len(self.work.left))
        if errors and (all_rest or waited > _NO_WORKER):
            raise ValueError(f"no node can measure: {errors[0]}")
        if waited > _NO_WORKER:
            self.able_at = math.inf  # this is reported only once
            shares = [f"{share:g} {name}" for name, share in self.needs.items() if share]
            _log.warning(
                f"no worker has started yet: either no node has {' and '.join(shares)} free, or"
                " they still load their models"
            )


def _room(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return int(min(node.get(name, 0.0) / share for name, share in needs.items() if share) + 1e-9)


def _own_modules() -> dict[str, str]:
    """The modules that this process has imported and that are not installed, {relative path:
    source text}.
    """
    paths = sysconfig.get_paths()
    places = [
        *site.getsitepackages(),
        site.getusersitepackages(),
        *(paths[name] for name in ("stdlib", "purelib", "platlib")),
    ]
    package = str(Path(__file__).parents[2])
    installed = [Path(place).resolve() for place in (*places, package)]
    sources: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        path = Path(str(getattr(module, "__file__", None) or "")).resolve()
        if path.suffix != ".py" or name.startswith("__main"):
            continue
        if any(path.is_relative_to(place) for place in installed):
            continue
        end = "/__init__.py" if path.name == "__init__.py" else ".py"
        with suppress(OSError, UnicodeDecodeError):
            sources[name.replace(".", "/") + end] = path.read_text(encoding="utf-8")
    return sources


def _reason(error: BaseException) -> str:
    text = one_line(error, 4000)
    known = re.search(
        r"No module named '[\w.]+'|low on memory|node [\w ]*(?:died|terminated)|process has died",
        text,
    )
    return known[0] if known else f"{type(error).__name__}: {text[:160]}"
