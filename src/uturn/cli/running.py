"""Runs of experiments from the command line: their cost, folders of results, advice on resuming,
and the last lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

import uturn
from uturn import pages
from uturn.cli.options import Place, Running
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.stops import stops
from uturn.core.messages import visible


def run_into(store: str | Path, experiment: uturn.Experiment, running: Running) -> Any:
    """The dataset of an experiment, run into a store."""
    with resumable(store):
        return uturn.run(experiment, store, **running.arguments())


def check_out(out: str, save_images: bool = False, kept: int = 0) -> None:
    """ValueError before anything is loaded if results cannot be written to a folder or URL."""
    from uturn.pages.results import check_folder
    from uturn.store.outputs import output_folder

    with output_folder("out", out) as folder:
        check_folder(folder, save_images, kept)


def begin(out: str, save_images: bool = False, kept: int = 0) -> None:
    """Print the folder of the results; ValueError before anything is loaded if they cannot be
    written.
    """
    check_out(out, save_images, kept)
    console().print(f"results: {out}")


def runs_into(
    out: str, experiments: Mapping[str, uturn.Experiment], running: Running
) -> dict[str, Any] | None:
    """The datasets of experiments, {name of the store: experiment}, run into a folder of
    results; None while shares are left.
    """
    from uturn.store.outputs import output_folder
    from uturn.studies.runs import missing_tasks

    datasets: dict[str, Any] = {}
    with output_folder("out", out) as folder:
        for name, experiment in experiments.items():
            datasets[name] = run_into(folder.place(name), experiment, running)
            missing = sum(map(missing_tasks, datasets.values()))
            # After the last run, its study writes the page.
            if not folder.is_remote and (missing or len(datasets) < len(experiments)):
                with suppress(ValueError):  # nothing to show yet
                    pages.write_page(out)
    if not missing:
        return datasets
    left = f"{missing} {'task' if missing == 1 else 'tasks'} of other shares left"
    console().print(
        f"{out}: share {running.shard} done, {left}; the share that ends last draws the figures"
    )
    return None


def locate_into(
    folder: str, experiment: uturn.Experiment, running: Running, place: Place, out: str | None
) -> None:
    """Locate a place with the stores in a folder, and study all runs into `out`; exit code 1 if
    the width is not reached.
    """
    if running.shard != "1/1" or not running.resume:
        raise ValueError(
            "until: each batch depends on those before it; leave out --shard and --no-resume"
        )
    options = {
        name: value
        for name, value in running.arguments().items()
        if name not in ("shard", "resume")
    }
    with resumable(folder):
        location = uturn.locate(
            experiment,
            store=folder,
            tell=lambda text: typer.echo(visible(f"uturn: {text}"), err=True),
            **place.sought(),
            **options,
        )
    for line in location.lines():
        console().print(line)
    if out is None:
        say_next(run=("study", *(inside(folder, name) for name in location.runs)))
    else:
        pages.write_study(location.runs, out, located=location.numbers())
        end(out)
    if not location.reached:
        raise typer.Exit(1)


def originals_in(out: str) -> str | None:
    """The folder of generated originals in a folder of results; None at a URL."""
    from uturn.store.folders import is_url

    return None if is_url(out) else os.path.abspath(os.path.join(out, "originals"))


def end(
    out: str,
    parts: Iterable[Any] = (),
    *lines: str,
    files: Iterable[str] = (),
    save_images: bool = False,
) -> None:
    """The last lines of a command: tables and lines, names of the files in a folder of results,
    and the page to open.
    """
    from uturn.pages.results import written

    for part in parts:
        show(part)
    for line in (*lines, f"written to {out}: {', '.join([*files, *written(out, save_images)])}"):
        console().print(line)
    say_next(open=inside(out, "index.html"))


def opened(place: str, **of_table: Any) -> Any:
    """The run in a store, in the folder `run` of a folder of results, or in a table of readings
    with the options `of_table`.
    """
    from uturn.core.files import check_plain
    from uturn.store.run_folder import open_run
    from uturn.studies.long_form import is_table
    from uturn.studies.readings import read_readings

    if is_table(place):
        return read_readings(place, **of_table)
    inner = Path(place) / "run"
    if not (inner / "run.json").is_file():
        return open_run(place)
    check_plain(inner)  # the folder, perhaps of others, may not lead to a store elsewhere
    return open_run(inner)


@contextmanager
def resumable(place: str | Path) -> Iterator[None]:
    """On a stop by a signal, print how to resume the runs at a place, and exit."""
    try:
        yield
    except BaseException as error:
        if not stops.ended_by(error):
            raise
        typer.echo(
            f"\nstopped; what is done is in {place}; run the same command again to resume", err=True
        )
        raise typer.Exit(stops.exit_code) from None
