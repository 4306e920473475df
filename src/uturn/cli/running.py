"""Runs of experiments from the command line: the estimate of their cost, and advice on resuming after a stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from uturn.cli.options import Running
from uturn.core.checks import visible

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


def run_into(store: str | Path, experiment: Experiment, running: Running) -> Any:
    """The dataset of an experiment, run into a store; a run that is stopped tells how to resume it.

    A run of more than a minute on this machine first prints its estimated cost on stderr.
    """
    from uturn.engine.plan import plan
    from uturn.engine.run import run

    share, on_cluster = running.share(), running.on_cluster()
    with resumable(f"what is done is in {store}; run the same command again to resume"):
        if share == (1, 1) and running.cluster is None:
            with suppress(ValueError):  # the run reports the same error
                run_plan = plan(experiment, store, workers=running.workers, budget=3.0, least=60.0)
                for line in run_plan.lines() if run_plan is not None else []:
                    typer.echo(visible(f"uturn: {line}"), err=True)
        return run(
            experiment,
            store,
            running.resume,
            workers=running.workers,
            progress=True,
            shard=share,
            accept_changes=running.accept_changes,
            **on_cluster,
        )


def opened(place: str, **of_table: Any) -> Any:
    """The run in a store, in the `run.zarr` of a folder of results, or in a table of readings with the options `of_table`."""
    from uturn.store.record import open_run
    from uturn.studies.long_form import is_table
    from uturn.studies.readings import read_readings

    if is_table(place):
        return read_readings(place, **of_table)
    inner = Path(place) / "run.zarr"
    return open_run(inner if not (Path(place) / "zarr.json").exists() and inner.is_dir() else place)


@contextmanager
def resumable(advice: str) -> Iterator[None]:
    """On a stop by a signal, print how to resume and exit."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped; {advice}", err=True)
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
