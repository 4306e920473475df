"""The workers of a run on a cluster: actors that are started on free nodes, fed, checked for a pulse, and replaced."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from uturn.core.checks import one_line
from uturn.engine.cluster.bundles import MOST_TRIES, Bundle, Bundles
from uturn.engine.cluster.connection import uninterrupted
from uturn.engine.cluster.worker import Worker

_log = logging.getLogger("uturn")
_POLL = 0.5  # seconds to wait for answers
_LOOK = 2.0  # seconds between checks of the nodes
_PULSE = 2.0  # seconds between two pulses of a worker; more with more than 200 workers
_STORE_WAIT = 5.0  # delay before a worker retries after a failed write
_NO_WORKER = 30.0  # seconds without a worker before a message to the user


class State(NamedTuple):
    """Progress of a run on a cluster."""

    left: int
    alive: int
    unfinished: float  # work done on unfinished tasks, as reported by workers


@dataclass(frozen=True)
class Resources:
    """Cores, GPUs and bundles at the same time of each worker, and the largest number of workers."""

    cpus: float
    gpus: float
    slots: int
    most_workers: int | None

    def room(self, node: Mapping[str, float]) -> int:
        """Number of workers that a node with these resources has room for."""
        rooms = [node.get(name, 0.0) / wanted for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)) if wanted]
        return int(min(rooms) + 1e-9)


@dataclass
class _Node:
    host: str
    room: int
    failed_starts: int = 0
    refused: str | None = None  # reason for which the node cannot measure


@dataclass(eq=False)
class _Worker:
    actor: Any
    node_id: str
    node: _Node
    rank: int
    pulse: Any  # the pending pulse, or None
    pulse_at: float  # time of its request, or of the last answer
    has_room: bool = False
    started: Any = None
    pid: int | None = None  # process id of a started worker
    bundles: dict[Any, Bundle] = field(default_factory=dict)
    unfinished: float = 0.0
    failed_writes: int = 0
    rests_until: float = 0.0
    twice: int = 0

    def answers(self) -> list[Any]:
        return [answer for answer in (self.pulse, self.started, *self.bundles) if answer is not None]


class Workers:
    """Measures tasks with actors; `start` are the arguments of `Worker.start`.

    A worker that does not answer for `silent_after` seconds counts as dead.
    """

    def __init__(self, ray: Any, tasks: Bundles, resources: Resources, start: Mapping[str, Any], silent_after: float) -> None:
        self.ray, self.tasks, self.resources, self.start, self.silent_after = ray, tasks, resources, start, silent_after
        self.nodes: dict[str, _Node] = {}
        self.workers: list[_Worker] = []
        self.kills: list[Any] = []
        self.twice = 0  # tasks measured both here and by another process
        self.look_at, self.without_since = 0.0, time.monotonic()

    def measured(self) -> Generator[State]:
        """Measure the tasks; yields the state of the work, at least twice a second. ValueError if no node can measure them."""
        ray = self.ray
        try:
            while self.tasks.left:
                self._place()
                self._read_answers()
                alive = self._alive()
                for worker in list(self.workers):
                    self._tend(worker, alive)
                yield State(len(self.tasks.left), self._alive(), sum(worker.unfinished for worker in self.workers))
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise ValueError(f"the cluster does not answer ({one_line(error)}); run it again to resume") from None
        finally:
            with uninterrupted(), suppress(Exception):
                if ray.is_initialized():  # otherwise the next call would connect to any Ray instance
                    for worker in self.workers:
                        ray.kill(worker.actor)
                    if self.kills:
                        ray.wait(self.kills, num_returns=len(self.kills), timeout=30)

    def _alive(self) -> int:
        return sum(worker.pid is not None for worker in self.workers)

    def _place(self) -> None:
        """Start workers on nodes with room, including nodes that have just joined."""
        now = time.monotonic()
        self.without_since = now if self._alive() else self.without_since
        if now < self.look_at:
            return
        self.look_at = now + _LOOK
        self.nodes = {
            node["NodeID"]: self.nodes.get(node["NodeID"])
            or _Node(node.get("NodeManagerHostname", ""), self.resources.room(node["Resources"]))
            for node in self.ray.nodes()
            if node["Alive"]
        }
        refused = [node.refused for node in self.nodes.values() if node.room]
        if refused and all(refused) and not self.workers:
            raise ValueError(f"no node can measure: {refused[0]}")
        taken = {(worker.rank, worker.node_id) for worker in self.workers}
        places = {(rank, name) for name, node in self.nodes.items() if not node.refused for rank in range(node.room)}
        most = min(self.resources.most_workers or len(self.tasks.left), len(self.tasks.left))
        for rank, name in sorted(places - taken)[: max(0, most - len(self.workers))]:
            actor = self._new_actor(name)
            self.workers.append(_Worker(actor, name, self.nodes[name], rank, actor.pulse.remote(), now))
        if now - self.without_since > _NO_WORKER:
            self.without_since = math.inf  # report this only once
            cpus, gpus = self.resources.cpus, self.resources.gpus
            wanted = f"{cpus:g} cores" + (f" and {gpus:g} GPUs" if gpus else "")
            held = f"no worker has started yet: no node has {wanted} free, which a worker takes; it starts when they are"
            starting = any(worker.has_room for worker in self.workers)
            _log.warning("the workers are still starting: they import what they need, and load models" if starting else held)

    def _new_actor(self, node_id: str) -> Any:
        cpus = self.resources.cpus
        options = {"num_cpus": cpus, "num_gpus": self.resources.gpus, "max_concurrency": self.resources.slots + 2}
        return self.ray.remote(Worker).options(**options, scheduling_strategy=_on(node_id)).remote(max(1, int(cpus)))

    def _tend(self, worker: _Worker, alive: int) -> None:
        """Check the pulse of a worker, and give it bundles; `alive`: number of started workers."""
        now = time.monotonic()
        if worker.pulse is None and now - worker.pulse_at > max(_PULSE, alive / 100):
            worker.pulse, worker.pulse_at = worker.actor.pulse.remote(), now
        elif worker.pulse is not None and worker.has_room and now - worker.pulse_at > self.silent_after:
            if worker.pid is not None:
                # Ray 2.40 only asks a process to end; a stopped process would keep its resources.
                kill = self.ray.remote(_kill).options(num_cpus=0, scheduling_strategy=_on(worker.node_id))
                self.kills.append(kill.remote(worker.pid))
            self._lost(worker, f"it did not answer for {self.silent_after:.0f} s")
            return
        if worker.pid is None or now < worker.rests_until:
            return
        slots = self.resources.slots
        while len(worker.bundles) < slots and (bundle := self.tasks.next_for(worker.bundles.values(), alive * slots)):
            worker.bundles[worker.actor.measure.remote(bundle.tasks)] = bundle
        for bundle in worker.bundles.values():
            bundle.alone = bundle.alone and len(worker.bundles) == 1

    def _read_answers(self) -> None:
        """Wait for answers of workers, and read those that have arrived."""
        owners = {answer: worker for worker in self.workers for answer in worker.answers()}
        if not owners:
            time.sleep(_POLL)
        elif self.ray.wait(list(owners), timeout=_POLL)[0]:
            for answer in self.ray.wait(list(owners), num_returns=len(owners), timeout=0)[0]:
                if owners[answer] in self.workers:
                    self._read(owners[answer], answer)

    def _read(self, worker: _Worker, answer: Any) -> None:
        try:
            value = self.ray.get(answer)
        except Exception as error:  # it died, or its class cannot be loaded there
            self._lost(worker, _reason(error))
            return
        if answer == worker.pulse:
            worker.pulse, worker.pulse_at, worker.unfinished = None, time.monotonic(), value
            if not worker.has_room:
                worker.has_room, worker.started = True, worker.actor.start.remote(**self.start)
        elif answer == worker.started:
            worker.started, worker.pid = None, value["pid"]
            if value["error"] is not None:
                self._retire(worker, f"the node {worker.node.host} is not used: {value['error']}")
            worker.node.failed_starts = 0
        else:
            self._read_outcome(worker, worker.bundles.pop(answer), value)

    def _read_outcome(self, worker: _Worker, bundle: Bundle, outcome: Mapping[str, Any]) -> None:
        host, error = worker.node.host, outcome["error"]
        self.twice += outcome["twice"] - worker.twice
        worker.unfinished, worker.twice = 0.0, outcome["twice"]
        if error is None:
            self.tasks.finished(bundle, outcome["measured"], outcome["seconds"])
            worker.failed_writes = 0 if outcome["measured"] else worker.failed_writes
        elif not outcome["store"]:
            self.tasks.blame(bundle, error, f"raised on {host}")
        else:  # no task is to blame for a full disk
            self.tasks.returned.append(Bundle(bundle.tasks))
            if time.monotonic() > worker.rests_until:  # report this for the first of its bundles
                worker.failed_writes += 1
                worker.rests_until = time.monotonic() + _STORE_WAIT
                if worker.failed_writes == MOST_TRIES:
                    self._retire(worker, f"the node {host} is not used any more: {error}")
                else:
                    _log.warning(f"on {host}: {error}")

    def _lost(self, worker: _Worker, reason: str) -> None:
        """Handle a worker that died or does not answer."""
        if worker.pid is not None:
            self._retire(worker)
            self.tasks.died(list(worker.bundles.values()), worker.node.host, reason)
            return
        worker.node.failed_starts += 1
        refused = worker.node.failed_starts >= MOST_TRIES
        self._retire(worker, f"a worker on {worker.node.host} did not start: {reason}" if refused else None)

    def _retire(self, worker: _Worker, reason: str | None = None) -> None:
        """End a worker; if a reason is given, its node gets no further worker."""
        self.workers.remove(worker)
        self.look_at = min(self.look_at, time.monotonic() + _LOOK / 2)
        with suppress(Exception):
            self.ray.kill(worker.actor)
        if reason is not None:
            self.tasks.returned.extend(Bundle(bundle.tasks) for bundle in worker.bundles.values())
            if worker.node.refused is None:
                _log.warning(reason)
            worker.node.refused = reason


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _reason(error: BaseException) -> str:
    """The reason for an actor's death, shortened for known messages of Ray."""
    text = " ".join(str(error).split())
    if lacks := re.search(r"No module named '[\w.]+'", text):
        return f"{lacks[0]}; install it there"
    for part, reason in (
        ("low on memory", "its node ran out of memory"),
        ("node it was running on", "its node died"),
        ("node was terminated", "its node died"),
        ("worker process has died", "its process was killed, or crashed"),
    ):
        if part in text:
            return reason
    return f"{type(error).__name__}: {text[:160]}"
