"""The coordinator of a run on a cluster: a detached Ray actor that hands tasks to workers and takes back those of the dead."""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from uturn.core.checks import one_line

MOST_TRIES = 3  # of a task that raises, or whose actor dies
_GROWTH = 8  # largest ratio of the sizes of two bundles
_SPREAD = 0.25  # share of the cost by which the order of tasks is random
_LOOK = 2.0  # seconds between two looks at the nodes
_PULSE = 2.0  # seconds between two pulses of a worker that is measuring; more with more than 200 workers
_STORE_WAIT = 5.0  # seconds before a worker measures again after readings could not be stored
_GONE = 10.0  # seconds without a poll after which a driver does not count any more when another one comes
_NO_WORKER = 30.0  # seconds without a worker after which that is told


@dataclass(frozen=True)
class Job:
    """What is to be done, and how; plain data, and pickled functions that only workers load.

    Attributes
    ----------
    start : dict
        Arguments of `Worker.start`.
    cpus, gpus : float
        Of a worker.
    slots : int
        Bundles that a worker has at the same time.
    threads : int
        Of a worker.
    most_workers : int or None
        By default as many as the nodes have room for.
    bundle_seconds : float
        Time that a bundle of small tasks should take.
    silent_after : float
        Seconds after which a worker that does not answer counts as dead.
    alone_after : float
        Seconds after which a coordinator that hears of no driver ends.
    worker : bytes or None
        Pickled class of the workers, by default `Worker`.
    """

    start: Mapping[str, Any]
    cpus: float
    gpus: float
    slots: int
    threads: int
    most_workers: int | None = None
    bundle_seconds: float = 10.0
    silent_after: float = 120.0
    alone_after: float = 60.0
    worker: bytes | None = None


@dataclass
class _Group:
    """Tasks that are alike, and are measured well together."""

    cost: float
    tasks: list[Any]


@dataclass
class _Bundle:
    tasks: list[Any]
    suspect: bool = False  # an actor died with these tasks, or one of them raised: they are measured with no others
    alone: bool = True  # the worker had no other bundle


@dataclass
class _Node:
    """A node of the cluster, as far as this run uses it."""

    workers: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    failed_starts: int = 0
    refused: str | None = None  # why it cannot measure


class Coordinator:
    """Hands tasks to workers until all are done or failed. Its methods are called by drivers."""

    def __init__(self, job: Job) -> None:
        self.job, self.name = job, secrets.token_hex(8)
        self.groups: list[_Group] = []
        self.returned: deque[_Bundle] = deque()
        self.left: set[Hashable] = set()
        self.tries: Counter[Hashable] = Counter()
        self.failed: dict[Hashable, str] = {}
        self.nodes: dict[str, _Node] = {}
        self.messages: list[tuple[str, Any]] = []  # (text, task or None)
        self.drivers: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.unfinished: dict[Any, float] = {}  # how much of its bundles each worker has done, in tasks
        self.alive = self.loading = 0  # workers that measure, and that start
        self.without: float | None = None  # since when there is no worker, though there is work
        self.size = 1
        self.error: str | None = None
        self.changed = asyncio.Event()
        self.life: asyncio.Task[None] | None = None
        self.kills: list[asyncio.Task[None]] = []
        # The driver may die before it has joined.
        timer = threading.Timer(job.alone_after, self._end_unless_joined)
        timer.daemon = True
        timer.start()

    # -- what drivers call ---------------------------------------------------------------------------------------------
    async def join(self, driver: str, groups: Sequence[tuple[float, Sequence[Any]]], job: Job) -> str:
        """Add tasks, as pairs (cost, tasks that are alike), without those that are known; returns the name of this coordinator.

        The options of the first driver hold as long as it lives. ValueError if another version of uturn comes in that time.
        """
        if job != self.job:
            await self._change_job(driver, job)
        self.drivers[driver] = time.monotonic()
        for cost, tasks in groups:
            new = [task for task in tasks if task not in self.left and task not in self.failed]
            if new:
                self.groups.append(_Group(cost, new))
                self.left.update(new)
        for node in self.nodes.values():
            node.refused, node.failed_starts = None, 0
        if self._ended():
            self.error = None  # another attempt
        if self.life is None:
            self.life = asyncio.create_task(self._live())
        self.changed.set()
        return self.name

    async def _change_job(self, driver: str, job: Job) -> None:
        old, now = self.job, time.monotonic()
        if not any(now - seen < _GONE for name, seen in self.drivers.items() if name != driver):
            self.job = job
            await self._stop_workers()
        elif old.start["version"] != job.start["version"]:
            raise ValueError(
                f"another command measures this run, with uturn {old.start['version']}; this one has {job.start['version']}: "
                f"install the same version, or wait until it has ended"
            )
        elif (old.cpus, old.gpus, old.most_workers) != (job.cpus, job.gpus, job.most_workers):
            most = "" if old.most_workers is None else f", and at most {old.most_workers} workers"
            self._say(
                f"another command began this run; its options hold: {old.cpus:g} cores and {old.gpus:g} GPUs a worker{most}"
            )

    async def poll(self, driver: str, since: int = 0) -> dict[str, Any] | None:
        """State of the run, with the messages from number `since` on; None if the driver is not known (it joins again)."""
        if driver not in self.drivers:
            return None  # it was forgotten
        self.drivers[driver] = time.monotonic()
        return {
            "left": len(self.left),
            "unfinished": sum(self.unfinished.values()),
            "alive": self.alive,
            "messages": self.messages[since:],
            "failed": list(self.failed.items()),
            "counts": dict(self.counts),
            "error": self.error,
            "ended": self._ended(),
        }

    async def leave(self, driver: str) -> bool:
        """Forget a driver; returns whether it was the last one, after which nothing is measured any more."""
        self.drivers.pop(driver, None)
        if self._ended():  # those that are alive have polled a moment ago
            self.drivers = {name: seen for name, seen in self.drivers.items() if time.monotonic() - seen < _LOOK}
        if not self.drivers:
            await self._stop_workers()
        return not self.drivers

    # -- the work ------------------------------------------------------------------------------------------------------
    def _end_unless_joined(self) -> None:
        if self.life is None:
            with suppress(Exception):  # in no actor there is nothing to end
                _end_actor()

    async def _live(self) -> None:
        """Measure what is left, as long as a driver is there; then end."""
        while self._watched():
            try:
                if self.left and self.error is None:
                    await self._place_workers()
                    self._tell_absence()
                else:
                    await self._stop_workers()
            except Exception as error:
                self.error = f"the coordinator failed ({type(error).__name__}: {one_line(error)})"
            self.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), _LOOK)
        await self._stop_workers()
        _end_actor()

    def _ended(self) -> bool:
        return (not self.left or self.error is not None) and not any(node.workers for node in self.nodes.values())

    def _watched(self) -> bool:
        return any(time.monotonic() - seen < self.job.alone_after for seen in self.drivers.values())

    async def _place_workers(self) -> None:
        """Start workers where nodes have room, also on nodes that have just joined."""
        import ray

        present = {}
        for node in await asyncio.to_thread(ray.nodes):
            if node["Alive"]:
                room = room_for(node["Resources"], self.job.cpus, self.job.gpus)
                present[node["NodeID"]] = room, node.get("NodeManagerHostname", "")
        for node_id in present.keys() - self.nodes.keys():
            self.nodes[node_id] = _Node()
        for node_id in self.nodes.keys() - present.keys():
            del self.nodes[node_id]  # its workers have ended, or will when Ray says so
        total = sum(len(node.workers) for node in self.nodes.values())
        most = min(self.job.most_workers or len(self.left), len(self.left))
        for rank in range(min(most, max((room for room, _ in present.values()), default=0))):
            for node_id, (room, host) in present.items():
                node = self.nodes[node_id]
                if rank < room and rank not in node.workers and node.refused is None and total < most:
                    total += 1
                    node.workers[rank] = asyncio.create_task(self._tend(node_id, node, rank, host))
        refused = [node.refused for node in self.nodes.values()]
        if self.nodes and all(refused) and not total:
            self.error = f"no node can measure: {refused[0]}"

    def _tell_absence(self) -> None:
        """Say why there is no worker, once, if that lasts."""
        if self.alive:
            self.without = None
        elif self.without is None:
            self.without = time.monotonic()
        elif time.monotonic() - self.without > _NO_WORKER:
            self.without = math.inf
            wanted = f"{self.job.cpus:g} cores" + (f" and {self.job.gpus:g} GPUs" if self.job.gpus else "")
            held = f"no worker has started yet: no node has {wanted} free, which a worker takes; it starts when they are"
            self._say("the workers are still starting: they import what they need, and load models" if self.loading else held)

    async def _stop_workers(self) -> None:
        tending = [task for node in self.nodes.values() for task in node.workers.values()]
        for task in tending:
            task.cancel()
        if tending or self.kills:
            await asyncio.wait([*tending, *self.kills], timeout=30)
        self.kills.clear()

    async def _tend(self, node_id: str, node: _Node, rank: int, host: str) -> None:
        """Start a worker on a node, give it tasks, and take them back if it dies."""
        import ray

        actor = None
        try:
            actor = self._new_worker(node_id)
            pid = await self._started(actor, node, host)
            if pid is not None:
                self.alive += 1
                try:
                    await self._feed(actor, node, host, node_id, pid)
                finally:
                    self.alive -= 1
        except Exception as error:
            self._refuse(node, f"the worker on {host} failed ({type(error).__name__}: {one_line(error)})")
        finally:
            if actor is not None:
                with suppress(Exception):
                    ray.kill(actor)
            node.workers.pop(rank, None)
            self.changed.set()

    def _refuse(self, node: _Node, text: str) -> None:
        if node.refused is None:
            self._say(text)
        node.refused = text

    def _new_worker(self, node_id: str) -> Any:
        import ray
        import ray.cloudpickle
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from uturn.engine.cluster.worker import Worker

        job = self.job
        kind = ray.cloudpickle.loads(job.worker) if job.worker else Worker
        options: dict[str, Any] = {"num_cpus": job.cpus, "num_gpus": job.gpus, "max_concurrency": job.slots + 2}
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ray.remote(kind).options(**options, scheduling_strategy=place).remote(job.threads)

    async def _started(self, actor: Any, node: _Node, host: str) -> int | None:
        """Process id of a worker that can measure, else None."""
        started = None
        try:
            await actor.pulse.remote()  # it answers when its node had room for it
            self.loading += 1
            started = asyncio.create_task(_answer(actor.start.remote(**self.job.start)))
            while not (await asyncio.wait({started}, timeout=max(_PULSE, self.alive / 100)))[0]:
                await asyncio.wait_for(_answer(actor.pulse.remote()), self.job.silent_after)
            facts = started.result()
        except Exception as error:  # it died, does not answer, or its class cannot be loaded there
            node.failed_starts += 1
            if node.failed_starts == MOST_TRIES:
                self._refuse(node, f"a worker on {host} did not start: {self._why(error)}")
            await asyncio.sleep(_LOOK / 2)
            return None
        finally:
            if started is not None:
                self.loading -= 1
                started.cancel()
        if facts["error"] is not None:
            self._refuse(node, f"the node {host} is not used: {facts['error']}")
            return None
        node.failed_starts = 0
        return int(facts["pid"])

    async def _feed(self, actor: Any, node: _Node, host: str, node_id: str, pid: int) -> None:
        """Give bundles to a worker until nothing is left; returns if the worker died."""
        flying: dict[asyncio.Task[Any], _Bundle] = {}
        twice = failures = 0
        try:
            while self.left and self.error is None:
                for bundle in self._bundles(flying):
                    flying[asyncio.create_task(_answer(actor.measure.remote(bundle.tasks)))] = bundle
                for bundle in flying.values():
                    bundle.alone = bundle.alone and len(flying) == 1
                if not flying:
                    await asyncio.sleep(0.2)  # others may give tasks back
                    continue
                done, _ = await asyncio.wait(flying, timeout=max(_PULSE, self.alive / 100), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    try:
                        pulse = _answer(actor.pulse.remote())
                        self.unfinished[actor] = await asyncio.wait_for(pulse, self.job.silent_after)
                    except Exception as error:
                        self._died(list(flying.values()), host, self._why(error))
                        flying.clear()
                        self.kills.append(asyncio.create_task(_killed(node_id, pid)))
                        return
                unstored = None
                for answer in done:
                    bundle = flying.pop(answer)
                    self.unfinished.pop(actor, None)
                    if answer.exception() is not None:
                        self._died([bundle, *flying.values()], host, _reason(answer.exception()))
                        flying.clear()
                        return
                    outcome = answer.result()
                    self.counts["measured"] += outcome["measured"]
                    self.counts["twice"] += outcome["twice"] - twice
                    twice = outcome["twice"]
                    if outcome["error"] is None:
                        self._finished(bundle, outcome)
                        failures = 0 if outcome["measured"] else failures
                    elif outcome["store"]:  # no task is to blame for a full disk
                        unstored = outcome["error"]
                        self.returned.append(_Bundle(bundle.tasks))
                    else:
                        self._blame(bundle, outcome["error"], f"raised on {host}")
                if unstored is not None:
                    failures += 1
                    if failures == MOST_TRIES:
                        self._refuse(node, f"the node {host} is not used any more: {unstored}")
                        return
                    self._say(f"on {host}: {unstored}")
                    await asyncio.sleep(_STORE_WAIT)
        finally:
            self.unfinished.pop(actor, None)
            for answer, bundle in flying.items():
                answer.cancel()
                self.returned.append(_Bundle(bundle.tasks))

    # -- which tasks ---------------------------------------------------------------------------------------------------
    def _bundles(self, flying: Mapping[Any, _Bundle]) -> Iterator[_Bundle]:
        """Bundles for the free slots of a worker. Suspect tasks are given to a worker that has no others."""
        count = len(flying)
        if any(bundle.suspect for bundle in flying.values()):
            return
        while count < self.job.slots:
            if self.returned and (count == 0 or not self.returned[0].suspect):
                yield (bundle := self.returned.popleft())
                if bundle.suspect:
                    return
            elif (some := self._next()) is not None:
                yield _Bundle(some)
            else:
                return
            count += 1

    def _next(self) -> list[Any] | None:
        """Some neighbours of one group: costly groups first, with some chance, so that runs on other clusters take others."""
        self.groups = [group for group in self.groups if group.tasks]
        if not self.groups:
            return None
        group = max(self.groups, key=lambda one: (1 - _SPREAD * random.random()) * one.cost)
        if self.tries and not self.counts["done"]:
            group = random.choice(self.groups)  # perhaps only the costly tasks fail
        # The last bundles are smaller, so that all workers end at about the same time.
        waiting, slots = sum(len(one.tasks) for one in self.groups), max(1, self.alive) * self.job.slots
        size = max(1, min(self.size, waiting // (2 * slots)))
        first = random.randrange(len(group.tasks))
        first = max(0, min(first, len(group.tasks) - size))
        some = group.tasks[first : first + size]
        del group.tasks[first : first + size]
        return some

    def _finished(self, bundle: _Bundle, outcome: Mapping[str, Any]) -> None:
        self.left.difference_update(bundle.tasks)
        self.counts["done"] += len(bundle.tasks)
        if outcome["measured"]:
            seconds = max(outcome["seconds"] / outcome["measured"], 1e-4)
            fitting = int(self.job.bundle_seconds / seconds)  # with all slots busy
            self.size = max(1, min(fitting, _GROWTH * len(bundle.tasks), max(_GROWTH * self.size, 1)))
        if not self.left:
            self.changed.set()

    def _died(self, bundles: Sequence[_Bundle], host: str, reason: str) -> None:
        self.counts["deaths"] += 1
        count = sum(len(bundle.tasks) for bundle in bundles)
        if count != 1:
            self._say(f"a worker on {host} died ({reason}); its {count} tasks are handed out again")
        for bundle in bundles:
            self._blame(bundle, f"the worker died ({reason})", f"was alone on {host}")

    def _blame(self, bundle: _Bundle, error: str, told: str) -> None:
        """Try tasks again after an error or a death: alone if they were with others, else in halves, else again by itself."""
        if bundle.alone and len(bundle.tasks) == 1:
            task = bundle.tasks[0]
            self.tries[task] += 1
            self._say(f"{told}, time {self.tries[task]} of {MOST_TRIES}: {error}", task)
            if self.tries[task] >= MOST_TRIES:
                self.failed[task] = error
                self.left.discard(task)
                self.changed.set()
                if len(self.failed) == MOST_TRIES and not self.counts["done"]:
                    self.error = f"the first {MOST_TRIES} tasks failed, and none is done: {error}"
                return
        middle = -(-len(bundle.tasks) // 2) if bundle.alone else len(bundle.tasks)
        for part in (bundle.tasks[:middle], bundle.tasks[middle:]):
            if part:
                self.returned.append(_Bundle(part, suspect=True))

    def _why(self, error: BaseException) -> str:
        silent = f"it did not answer for {self.job.silent_after:.0f} s"
        return silent if isinstance(error, TimeoutError) else _reason(error)

    def _say(self, text: str, task: Any = None) -> None:
        self.messages.append((text, task))


def _end_actor() -> None:
    """End the actor that calls this, for good; nothing where there is none."""
    import ray

    # Without a connection, calls of Ray would start one.
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        ray.kill(ray.get_runtime_context().current_actor)


async def _answer(reference: Any) -> Any:
    return await reference


async def _killed(node_id: str, pid: int) -> None:
    """Kill a process on a node that does not answer, so that its resources are free; Ray only asks it to end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    with suppress(Exception):
        kill = ray.remote(_kill_here).options(num_cpus=0, scheduling_strategy=place)
        await asyncio.wait_for(_answer(kill.remote(pid)), 30)


def _kill_here(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _reason(error: BaseException | None) -> str:
    """Why an actor died, in a few words where Ray's text is known."""
    words = " ".join(str(error).split())
    for part, reason in (
        ("low on memory", "its node ran out of memory"),
        ("node it was running on", "its node died"),
        ("node was terminated", "its node died"),
        ("worker process has died", "its process was killed, or crashed"),
    ):
        if part in words:
            return reason
    return f"{type(error).__name__}: {words[:160]}"


def room_for(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Number of workers that a node has room for."""
    rooms = [resources.get(name, 0.0) / wanted for name, wanted in (("CPU", cpus), ("GPU", gpus)) if wanted]
    return int(min(rooms) + 1e-9) if rooms else 0
