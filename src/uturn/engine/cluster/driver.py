"""The driver of a run on a cluster: joins the coordinator of the run, or makes it, and follows its work."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import site
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from uturn.core.checks import TasksFailed, one_line, shown
from uturn.engine.cluster.connection import NAMESPACE, checked_address, connected, uninterrupted
from uturn.engine.cluster.coordinator import Coordinator, Job, room_for

_log = logging.getLogger("uturn")
_POLL = 0.5  # seconds
_LOST = 120.0  # seconds without an answer of the coordinator


class State(NamedTuple):
    """Progress of a run on a cluster."""

    left: int
    alive: int
    unfinished: float  # of tasks that are left, as far as workers have told


def checked_share(name: str, value: Any) -> float | None:
    """A number of cores or GPUs of a worker, above 0; None for the default."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value < 1e6:
        raise ValueError(f"{name} = {shown(value)}: expected a number above 0 (at least 0.001)")
    return float(value)


def on_cluster(
    address: str,
    name: str,
    make: Callable[[], Any],
    groups: Sequence[tuple[float, Sequence[Any]]],
    *,
    label: Callable[[Any], str] = str,
    cpus: float | None = None,
    gpus: float | None = None,
    wants_gpu: bool = False,
    slots: int = 1,
    slots_on_gpu: int | None = None,
    most_workers: int | None = None,
    own_code: bool = True,
    **options: Any,
) -> Generator[State]:
    """Measure tasks on a Ray cluster; yields the state of the work twice a second.

    Parameters
    ----------
    address
        "local", "auto", "ray://host:port" or "host:port".
    name
        Name of the run. Drivers of runs of the same name on a cluster work together.
    make
        Function without arguments that returns, in a worker, what measures the tasks (see `worker.Measures`).
    groups
        Pairs (cost, tasks). Costly tasks come first. Tasks of a group are neighbours, which are measured well together.
    label
        Words for a task in messages.
    cpus, gpus
        Cores and GPUs of a worker: by default one GPU if `wants_gpu` and the cluster has some, and one core.
    slots, slots_on_gpu
        Bundles of tasks that a worker has at the same time, without a GPU and with one (by default the same).
    most_workers
        By default as many as the cluster has room for.
    own_code
        Whether workers need modules of the user, which are then sent to them.
    options
        Further fields of `Job`.

    Raises
    ------
    ValueError
        If the cluster cannot be reached, or no node can measure the tasks.
    TasksFailed
        After all other tasks are done, if some raised three times, or were alone on three workers that died.
    """
    checked_address(address)
    cpus, gpus = checked_share("cpus_per_worker", cpus), checked_share("gpus_per_worker", gpus)
    with connected(address) as ray:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = 1.0 if wants_gpu and any(one.get("GPU", 0) >= 1 for one in resources) else 0.0
        cpus = 1.0 if cpus is None else cpus
        _check_room(resources, cpus, gpus)
        job = Job(
            start=_start_arguments(ray, make, own_code), cpus=cpus, gpus=gpus, threads=max(1, int(cpus)),
            slots=slots_on_gpu if gpus and slots_on_gpu else slots, most_workers=most_workers, **options,
        )  # fmt: skip
        yield from _followed(ray, name, job, groups, label)


def _followed(ray: Any, name: str, job: Job, groups: Sequence[tuple[float, Sequence[Any]]], label: Any) -> Generator[State]:
    driver, unique = secrets.token_hex(8), f"uturn-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    told: Counter[str] = Counter()  # messages of each coordinator; if one dies, another takes its place
    state, coordinator = None, None
    last_answer = time.monotonic()
    try:
        while True:
            if coordinator is None:
                coordinator, which = _joined(ray, unique, job, driver, groups)
            try:
                state = ray.get(coordinator.poll.remote(driver, told[which]), timeout=_LOST)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as lost:
                if time.monotonic() - last_answer > _LOST:
                    raise ValueError(f"the cluster does not answer ({one_line(lost)}); run it again to resume") from None
                state = None
                time.sleep(_POLL)
            if state is None:
                coordinator = None
                continue
            last_answer = time.monotonic()
            for text, task in state["messages"]:
                _log.warning(text if task is None else f"{label(task)} {text}")
            told[which] += len(state["messages"])
            yield State(state["left"], state["alive"], state["unfinished"])
            if state["ended"]:
                break
            time.sleep(_POLL)
    finally:
        with uninterrupted(), suppress(Exception):
            if ray.is_initialized():  # else a call would connect to any Ray that it finds
                if coordinator is None:  # interrupted while it joined
                    coordinator = ray.get_actor(unique, namespace=NAMESPACE)
                if ray.get(coordinator.leave.remote(driver), timeout=40):
                    ray.kill(coordinator)
    if state["error"] is not None:
        raise ValueError(state["error"])
    if state["counts"].get("twice"):
        _log.info(f"{state['counts']['twice']} tasks were measured twice, here and by another process")
    if state["failed"]:
        task, error = state["failed"][0]
        more = f", and {len(state['failed']) - 1} more" if len(state["failed"]) > 1 else ""
        raise TasksFailed(f"{label(task)} failed ({error}){more}; all other tasks are done; run it again to try those again")


def _joined(ray: Any, unique: str, job: Job, driver: str, groups: Any) -> tuple[Any, str]:
    """The coordinator of this name, which is made if there is none and knows this driver and its tasks, and its own name."""
    # Drivers notice if it dies, and make another one; one that Ray made anew would not know whether any driver is left.
    options = {"name": unique, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    until = time.monotonic() + _LOST
    while True:
        try:
            made = ray.remote(Coordinator).options(**options, num_cpus=0, max_restarts=0, max_task_retries=0).remote(job)
            return made, ray.get(made.join.remote(driver, groups, job), timeout=_LOST)
        except (ray.exceptions.RayError, ValueError) as error:
            # The coordinator of a driver that is just leaving may still be there, or one on a node that has died.
            lost = isinstance(error, ray.exceptions.RayActorError) and "creation task" not in str(error)
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, ValueError):
                raise ValueError(str(error.cause)) from None
            if time.monotonic() > until or not (lost or isinstance(error, ValueError)):
                words = " ".join(str(error).split())[:300]
                lacks = "No module named" in str(error)
                way_out = "install uturn there" if lacks else "Ray's logs say more (/tmp/ray/session_latest/logs); run it again"
                raise ValueError(f"the cluster cannot run the coordinator: {words}; {way_out}") from None
            time.sleep(1)


def _check_room(resources: Sequence[dict[str, float]], cpus: float, gpus: float) -> None:
    """ValueError if no node of the cluster has room for a worker."""
    most = {name: max((one.get(name, 0.0) for one in resources), default=0.0) for name in ("CPU", "GPU")}
    for option, wanted, name in (("cpus_per_worker", cpus, "CPU"), ("gpus_per_worker", gpus, "GPU")):
        if wanted > most[name]:
            unit = "cores" if name == "CPU" else "GPUs"
            raise ValueError(f"{option} = {wanted:g}: no node of the cluster has more than {most[name]:g} {unit}")
    if not any(room_for(one, cpus, gpus) for one in resources):
        raise ValueError(f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs at once; lower one of them")


def _start_arguments(ray: Any, make: Callable[[], Any], own_code: bool) -> dict[str, Any]:
    import uturn

    return {
        "make": ray.cloudpickle.dumps(make),
        "folder": os.getcwd(),
        "modules": _own_modules() if own_code else {},
        "version": uturn.__version__,
    }


def _own_modules() -> dict[str, str]:
    """The modules that this process has imported and that are not installed, {relative path: source text}.

    Workers on hosts without these files import them too.
    """
    paths = sysconfig.get_paths()
    places = {*site.getsitepackages(), site.getusersitepackages(), *(paths[name] for name in ("stdlib", "purelib", "platlib"))}
    installed = [Path(place).resolve() for place in (*places, str(Path(__file__).parents[2]))]
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("__main") or not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not any(path.is_relative_to(place) for place in installed):
            place = "/".join([*name.split("."), *(["__init__"] if path.name == "__init__.py" else [])])
            with suppress(OSError, UnicodeDecodeError):
                found[f"{place}.py"] = path.read_text(encoding="utf-8")
    return found
