"""`uturn run`, `check`, `plan`, `export` and `status`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import uturn
from uturn.cli.app import EXPERIMENTS, command
from uturn.cli.options import (
    OUTPUT,
    SWEEP,
    OfTable,
    OptionalOut,
    Place,
    Running,
    Spec,
    option,
    typed,
)
from uturn.cli.pages import study
from uturn.cli.printing import console, inside, say_next
from uturn.cli.running import check_out, locate_into, resumable, run_into, tasks_of
from uturn.core.messages import counted
from uturn.core.progress import in_words

if TYPE_CHECKING:
    from uturn.engine.plan import Plan

_MOST_NAMES = 4
"""Of experiments that a line lists."""


@command(EXPERIMENTS)
def run(
    spec: Spec,
    store: Annotated[
        str | None,
        option(
            OUTPUT,
            "Folder of the store to fill, or URL such as s3://bucket/run; by default run in --out.",
            metavar="STORE",
        ),
    ] = None,
    out: OptionalOut = None,
    changed: Annotated[
        list[str] | None,
        option(
            SWEEP,
            "Run the spec with these values of a key, such as source.multiplicity=4,6,8, one store"
            " each in the folder "
            "--store. Given several times, all combinations are run.",
            "--set",
            metavar="KEY=VALUES",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        option(SWEEP, "Combine the values of --set one by one instead of all with all.", "--zip"),
    ] = False,
    *,
    place: Place,
    running: Running,
) -> None:
    """Run an experiment from a file into a store. Stored readings are not measured again.

    Measures what U-turns change at each noise level: the share of unchanged latents at each tree
    level, the similarity in each layer of a network, and the readings of other probes.
    `xarray.open_dataset(STORE, engine="uturn")` opens the results. If the store holds the same experiment with fewer
    items, noise levels or trajectories, it is extended. With --out, the run is then studied, as
    `uturn study STORE --out FOLDER` does.

    With --set, a grid of experiments is run, each into the store STORE/NAME, where NAME holds the
    values, such as multiplicity=4,type=masking. With several --workers, the tasks of all
    experiments are distributed over them.

    With --until, originals are measured until the half-life of --reading is known to this width,
    into stores in the folder STORE.

    Example:

    ```
    uturn run examples/epsilon.toml --store runs/epsilon
    uturn run examples/epsilon.toml --out results/epsilon
    uturn run examples/epsilon.toml --set source.multiplicity=4,6,8 --store runs/sweep
    uturn run examples/images.toml --until 0.05 --reading same_class --store runs/located
    ```
    """
    if pairs and not changed:
        raise ValueError("--zip: only used with --set")
    if store is None and (out is None or changed):
        expected = "--store STORE" if changed else "--store STORE, or --out FOLDER"
        raise ValueError(f"store: missing; expected {expected}")
    if out is not None:
        check_out(out)
    experiment = uturn.Experiment.from_file(spec)
    if place.until is not None:
        if changed:
            raise ValueError("--until measures one experiment; leave out --set")
        return locate_into(store or str(out), experiment, running, place, out)
    store = store or inside(str(out), "run")
    if changed:
        return _run_sweep(experiment, changed, pairs, store, out, running)
    ds = run_into(store, experiment, running)
    tasks = tasks_of({store: experiment}, {store: ds})
    is_complete = ds.attrs["complete"]
    if not is_complete:
        tasks += f"; share {running.shard} is done"
    console().print(f"{store}: {tasks}; spec {experiment.hash[:12]}")
    for name in ds.attrs["variables"]:
        dims = ", ".join(f"{dim} {size}" for dim, size in ds[name].sizes.items())
        console().print(f"  {name} ({dims}): {ds[name].attrs.get('long_name', '')}")
    if not is_complete:
        say_next(run=("status", store))
    elif out is None:
        say_next(run=("study", store))
    else:
        study([store], out, table=OfTable())


def _run_sweep(
    experiment: uturn.Experiment,
    changed: list[str],
    pairs: bool,
    folder: str,
    out: str | None,
    running: Running,
) -> None:
    from uturn.engine.sweep import parsed_values, run_all

    grid = uturn.sweep(experiment, parsed_values(changed), zip=pairs)
    names = list(grid)[:_MOST_NAMES]
    if len(grid) > _MOST_NAMES:
        names.append("..")
    experiments = counted(len(grid), "experiment")
    console().print(f"{experiments} in {folder}: {', '.join(names)}")
    with resumable(folder):
        runs = run_all(grid, folder, **running.arguments())
    for name, ds in runs.items():
        tasks = tasks_of({name: grid[name]}, {name: ds})
        console().print(f"{inside(folder, name)}: {tasks}")
    if any(ds.attrs["missing_tasks"] for ds in runs.values()):
        return
    stores = [inside(folder, name) for name in runs]
    if out is None:
        say_next(run=("study", *stores))
    else:
        study(stores, out, table=OfTable())


@command(EXPERIMENTS)
def check(spec: Spec) -> None:
    """Try a spec before its run: build its parts, and run two items through all of them.

    Measures the two items at the first and the last noise level, together and one by one. Reports
    parts that lack a member or return values of a wrong type, and readings that depend on the batch
    or differ when repeated.

    Example:

    ```
    uturn check examples/epsilon.toml
    ```
    """
    from uturn.engine.trial import check

    has_doubts = False
    for checked in check(uturn.Experiment.from_file(spec)):
        has_doubts |= checked.is_doubt
        console().print(checked.line)
    result = "nothing wrong was found"
    if has_doubts:
        result = "no error was found; see the warnings above"
    console().print(f"{spec}: {result}")
    say_next(run=("plan", str(spec)))


@command(EXPERIMENTS)
def plan(
    spec: Spec,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Folder of the store to fill; tasks already in it are not counted.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Largest number of processes for which the time is estimated; by default 8.",
        ),
    ] = None,
    *,
    place: Place,
) -> None:
    """Estimate the cost of a run: tasks, U-turns, disk space, time. Writes nothing.

    Counts tasks and U-turns exactly, and times a few U-turns on this machine for some seconds.
    Loading models, compilation and the check of networks before a run are not included. Times for
    more processes than this machine has cores assume a cluster of such machines. With --until, it
    estimates the cost of a run that ends when the half-life of --reading is known to this width:
    from the first levels in --store if they are there, otherwise from an assumed curve.

    Example:

    ```
    uturn plan examples/epsilon.toml
    uturn plan examples/images.toml --until 0.05 --reading same_class
    ```
    """
    experiment = uturn.Experiment.from_file(spec)
    if place.until is None:
        cost = _print_plan(experiment, store, workers)
        if store is not None and cost.done == cost.tasks:
            return say_next(run=("study", store))
        return say_next(run=("run", str(spec), "--store", store or "STORE"))
    from uturn.studies.locate import forecast

    expected = forecast(experiment, store=store, **place.sought())
    console().print(expected.assumptions)
    for name, part in expected.parts.items():
        levels = ", ".join(f"{level:.3g}" for level in part.noise)
        console().print(f"{name}: about {part.items} originals at noise {levels}", style="bold")
        _print_plan(part, None, workers, "  ")
    options = asdict(place)
    if place.share == 0.5:
        del options["share"]
    chosen = typed(**options)
    say_next(run=("run", str(spec), *chosen, "--store", store or "STORE"))


def _print_plan(
    experiment: uturn.Experiment, store: str | None, workers: int | None, before: str = ""
) -> Plan:
    from uturn.engine.plan import plan

    cost = plan(experiment, store, workers=workers)
    for line in cost.lines():
        console().print(f"{before}{line}")
    return cost


@command(EXPERIMENTS)
def export(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a store.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A new file that ends in .zarr or .nc.")
    ],
) -> None:
    """Write the readings of a run as one dataset in zarr or NetCDF, for other programs.

    Readings of tasks that are not done are NaN. In Python, `xarray.open_dataset(STORE,
    engine="uturn")` opens a run without a copy.

    Example:

    ```
    uturn export runs/epsilon epsilon.nc
    ```
    """
    from uturn.store.outputs import export_run

    export_run(store, file)
    console().print(f"written to {file}")


@command(EXPERIMENTS)
def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a store.")],
) -> None:
    """Print how many tasks of a run are done and left, and its spec. Measures and changes nothing.

    Reads all stored readings to find damaged files, whose tasks are left.

    Example:

    ```
    uturn status runs/epsilon
    ```
    """
    from uturn.store.run_folder import RunFolder, State

    opened = RunFolder.open(store)
    states = {task: progress.state for task, progress in opened.states().items()}
    counts = Counter(states.values())
    summary = in_words(counts[State.done], len(states))
    reasons = []
    if counts[State.part]:
        reasons.append(f"{counts[State.part]} with fewer trajectories than the spec asks for")
    if counts[State.damaged]:
        reasons.append(f"{counts[State.damaged]} damaged")
    if reasons:
        summary += f" ({', '.join(reasons)})"
    out = console()
    out.print(f"{store}: {summary}")
    for task, state in states.items():
        if state == State.damaged:
            items = opened.items(task)
            place = f"noise {opened.noise[task.noise_index]:g}, items {items[0]} to {items[-1]}"
            out.print(f"  damaged: {place}; `uturn run` with the same spec measures it again")
    sizes = f"noise {len(opened.noise)}, item {opened.num_items}, trajectory {opened.trajectories}"
    out.print(f"  {', '.join(opened.file.variables)} ({sizes})")
    out.print(json.dumps(opened.attributes["spec"], indent=1, ensure_ascii=False))
    if counts[State.done] == len(states):
        say_next(run=("report", store))
    else:
        say_next(run=("run", "SPEC", "--store", store))
