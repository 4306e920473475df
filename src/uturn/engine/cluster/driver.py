"""The driver of a run on a cluster: checks the requested resources, and prepares the arguments of workers."""

from __future__ import annotations

import logging
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from uturn.core.checks import TasksFailed, shown
from uturn.engine.cluster.bundles import Bundles
from uturn.engine.cluster.connection import connected
from uturn.engine.cluster.workers import Resources, State, Workers

_log = logging.getLogger("uturn")


def _checked_share(name: str, value: Any) -> float | None:
    """A number of cores or GPUs of a worker, above 0; None for the default."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value < 1e6:
        raise ValueError(f"{name} = {shown(value)}: expected a number above 0 (at least 0.001)")
    return float(value)


def on_cluster(
    address: str,
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
    bundle_seconds: float = 10.0,
    silent_after: float = 120.0,
) -> Generator[State]:
    """Measure tasks on a Ray cluster; yields the state of the work twice a second.

    Parameters
    ----------
    address
        "local", "auto", "ray://host:port" or "host:port".
    make
        Function without arguments that returns, in a worker, an object that measures the tasks (see `worker.Measures`).
    groups
        Pairs (cost, tasks). Costly tasks come first. Tasks of a group are neighbours, which are efficiently measured together.
    label
        Function that describes a task in messages.
    cpus, gpus
        Cores and GPUs of a worker: by default one GPU if `wants_gpu` and the cluster has some, and one core.
    slots, slots_on_gpu
        Bundles of tasks that a worker has at the same time, without a GPU and with one (by default the same).
    most_workers
        By default as many as the cluster has room for.
    own_code
        Whether workers need the user's modules, which are then sent to them.
    bundle_seconds
        Desired duration of a bundle of small tasks.
    silent_after
        Seconds after which a worker that does not answer counts as dead.

    Raises
    ------
    ValueError
        If the cluster cannot be reached, or no node can measure the tasks.
    TasksFailed
        After all other tasks are done, if a task raised three times, or was alone on three workers that died.
    """
    cpus, gpus = _checked_share("cpus_per_worker", cpus), _checked_share("gpus_per_worker", gpus)
    with connected(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = 1.0 if wants_gpu and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        slots = slots_on_gpu if gpus and slots_on_gpu else slots
        wanted = Resources(1.0 if cpus is None else cpus, gpus, slots, most_workers)
        _check_room(nodes, wanted)
        tasks = Bundles(groups, bundle_seconds, label)
        workers = Workers(ray, tasks, wanted, _start_arguments(ray, make, own_code), silent_after)
        yield from workers.measured()
    if workers.twice:
        _log.info(f"{workers.twice} tasks were measured twice, here and by another process")
    if tasks.failed:
        task, error = next(iter(tasks.failed.items()))
        more = f", and {len(tasks.failed) - 1} more" if len(tasks.failed) > 1 else ""
        raise TasksFailed(f"{label(task)} failed ({error}){more}; all other tasks are done; run it again to try those again")


def _check_room(nodes: Sequence[dict[str, float]], wanted: Resources) -> None:
    """ValueError if no node of the cluster has room for a worker."""
    for option, share, name, unit in (
        ("cpus_per_worker", wanted.cpus, "CPU", "cores"),
        ("gpus_per_worker", wanted.gpus, "GPU", "GPUs"),
    ):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if share > most:
            raise ValueError(f"{option} = {share:g}: no node of the cluster has more than {most:g} {unit}")
    if not any(wanted.room(node) for node in nodes):
        raise ValueError(f"no node of the cluster has {wanted.cpus:g} cores and {wanted.gpus:g} GPUs at once; lower one of them")


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
    sources: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("__main") or not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not any(path.is_relative_to(place) for place in installed):
            place = "/".join([*name.split("."), *(["__init__"] if path.name == "__init__.py" else [])])
            with suppress(OSError, UnicodeDecodeError):
                sources[f"{place}.py"] = path.read_text(encoding="utf-8")
    return sources
