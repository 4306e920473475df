"""Runs of experiments from the command line: their cost, folders of results, advice on resuming, and the last lines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from uturn.cli.options import Running
from uturn.cli.printing import console, inside, say_next, show
from uturn.core.checks import visible
from uturn.core.lazy import later

with later():
    from uturn.engine import plan as engine_plan
    from uturn.engine import run as engine_run
    from uturn.pages import page, results
    from uturn.store import outputs, places, record
    from uturn.studies import long_form, readings, runs

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


def run_into(store: str | Path, experiment: Experiment, running: Running) -> Any:
    """The dataset of an experiment, run into a store; a run that is stopped tells how to resume it.

    A run of more than a minute on this machine first prints its estimated cost on stderr.
    """
    options = running.arguments()
    with resumable(store):
        if options["shard"] == (1, 1) and running.cluster is None:
            with suppress(ValueError):  # the run reports the same error
                cost = engine_plan.plan(experiment, store, workers=running.workers, budget=3.0, least=60.0)
                for line in cost.lines() if cost is not None else []:
                    typer.echo(visible(f"uturn: {line}"), err=True)
        return engine_run.run(experiment, store, **options)


def check_out(out: str, save_images: bool = False, kept: int = 0) -> None:
    """ValueError before anything is loaded if results cannot be written to a folder or URL."""
    with outputs.output_folder("out", out) as folder:
        results.check_folder(folder, save_images, kept)


def runs_into(out: str, experiments: Mapping[str, Experiment], running: Running) -> dict[str, Any] | None:
    """The datasets of experiments, {name of the store: experiment}, run into a folder of results; None while shares are left.

    The page is written after each run but the last one, of which a study follows.
    """
    datasets: dict[str, Any] = {}
    with outputs.output_folder("out", out) as folder:
        for name, experiment in experiments.items():
            datasets[name] = run_into(folder.place(name), experiment, running)
            missing = sum(map(runs.missing_tasks, datasets.values()))
            if not folder.is_remote and (missing or len(datasets) < len(experiments)):
                with suppress(ValueError):  # nothing to show yet
                    page.write_page(out)
    if not missing:
        return datasets
    left = f"{missing} {'task' if missing == 1 else 'tasks'} of other shares left"
    console().print(f"{out}: share {running.shard} done, {left}; the share that ends last draws the figures")
    return None


def originals_in(out: str) -> str | None:
    """The folder of generated originals in a folder of results; None at a URL."""
    return None if places.is_url(out) else os.path.abspath(os.path.join(out, "originals"))


def end(out: str, parts: Iterable[Any], *lines: str, files: Iterable[str] = (), save_images: bool = False) -> None:
    """The last lines of a command: tables and lines, names of the files in a folder of results, and the page to open."""
    for part in parts:
        show(part)
    for line in (*lines, f"written to {out}: {', '.join([*files, *results.written(out, save_images)])}"):
        console().print(line)
    say_next(open=inside(out, "index.html"))


def opened(place: str, **of_table: Any) -> Any:
    """The run in a store, in the `run.zarr` of a folder of results, or in a table of readings with the options `of_table`."""
    if long_form.is_table(place):
        return readings.read_readings(place, **of_table)
    inner = Path(place) / "run.zarr"
    return record.open_run(inner if not (Path(place) / "zarr.json").exists() and inner.is_dir() else place)


@contextmanager
def resumable(place: str | Path) -> Iterator[None]:
    """On a stop by a signal, print how to resume the runs at a place, and exit."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped; what is done is in {place}; run the same command again to resume", err=True)
        raise typer.Exit(exit_code(stop)) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def on_sigterm(*_: Any) -> None:
    # Slurm may send it twice: to the job's script, which forwards it, and to the processes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def exit_code(stop: BaseException | None) -> int:
    """128 plus the number of the signal that stopped a command, as in shells."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
