"""Runs of experiments from the command line: the sequence of a command, advice on resuming, and
the last lines.

A command turns options into experiments, runs them into stores, writes results, and prints them.
`results_into` is this sequence for `uturn images`, `text`, `audit`, `chains`, `inverse` and commands
of one's own. `uturn run` fills the store that is asked for, with `run_into`, or with `locate_into`
for `--until`.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import uturn
from uturn import pages
from uturn.cli.options import Place, Running
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.stops import stops
from uturn.core.messages import visible
from uturn.core.progress import in_words

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from uturn.measures.report import Report

Experiments = Mapping[str, "uturn.Experiment"]
"""Experiments by the names of their stores."""


@dataclass(frozen=True)
class Finished:
    """The experiments of a command that have all run, and their datasets."""

    out: str
    """Folder of the results, or URL."""
    experiments: Experiments
    runs: Mapping[str, xr.Dataset]
    """By the names of the stores, as the experiments."""


@dataclass(frozen=True)
class Printed:
    """What a command says about its results."""

    parts: Sequence[Table | Report | str] = ()
    """Tables, reports and lines that it prints."""
    files: Sequence[str] = ()
    """Names of the files that it has written in addition to the files of a study."""


class Procedure(ABC):
    """What a command of one's own does: its experiments, and the results that it writes."""

    @abstractmethod
    def experiments(self, out: str) -> Experiments:
        """The experiments, by the names of their stores in a folder of results; may load models."""

    @abstractmethod
    def write(self, finished: Finished) -> Printed:
        """Write files into the folder, without the page, and give what is printed."""


def results_into(
    out: str,
    procedure: Procedure,
    running: Running,
    *,
    save_images: bool = False,
    kept: int = 0,
) -> None:
    """Check a folder of results, run the experiments of a command into stores in it, write what
    they give and the page, and print the last lines.

    Nothing is written while other shares of the runs have unfinished tasks. `save_images`, `kept`:
    whether stored images are written as PNG files, and how many originals have some.
    """
    begin(out, save_images, kept)
    experiments = procedure.experiments(out)
    runs = runs_into(out, experiments, running)
    if runs is None:
        return
    printed = procedure.write(Finished(out, experiments, runs))
    pages.report([out])
    end(out, printed, save_images=save_images)


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


def run_into(store: str | Path, experiment: uturn.Experiment, running: Running) -> xr.Dataset:
    """The dataset of an experiment, run into a store."""
    with resumable(store):
        return uturn.run(experiment, store, **running.arguments())


def runs_into(out: str, experiments: Experiments, running: Running) -> dict[str, xr.Dataset] | None:
    """The datasets of experiments, run into a folder of results, by the names of their stores;
    None while tasks of other shares are left.
    """
    from uturn.store.outputs import output_folder
    from uturn.studies.runs import missing_tasks

    runs: dict[str, xr.Dataset] = {}
    is_whole = True
    with output_folder("out", out) as folder:
        for name, experiment in experiments.items():
            runs[name] = run_into(folder.location_of(name), experiment, running)
            is_whole = is_whole and not missing_tasks(runs[name])
            is_last = len(runs) == len(experiments)
            # The page of finished runs is written with the results. Stores in subfolders are not
            # on the page.
            is_on_page = "/" not in name and not (is_last and is_whole)
            if is_on_page and not folder.is_remote:
                with suppress(ValueError):  # nothing to show yet
                    pages.write_page(out)
    if is_whole:
        return runs
    console().print(f"{out}: {tasks_of(experiments, runs)}; share {running.shard} is done")
    console().print("the share that ends last writes the results")
    return None


def tasks_of(experiments: Experiments, runs: Mapping[str, xr.Dataset]) -> str:
    """How many tasks of some runs are done and left."""
    total = 0
    left = 0
    for name, experiment in experiments.items():
        total += len(experiment.noise) * math.ceil(experiment.items / experiment.chunk)
        left += int(runs[name].attrs["missing_tasks"])
    return in_words(total - left, total)


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
    options = running.arguments()
    del options["shard"], options["resume"]
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


def end(out: str, printed: Printed | None = None, *, save_images: bool = False) -> None:
    """The last lines of a command: tables and lines, names of the files in a folder of results,
    and the page to open.
    """
    from uturn.pages.results import written

    printed = printed or Printed()
    for part in printed.parts:
        show(part)
    names = [*printed.files, *written(out, save_images)]
    console().print(f"written to {out}: {', '.join(names)}")
    say_next(open=inside(out, "index.html"))


def opened(location: str, **of_table: Any) -> xr.Dataset:
    """The run in a store, in the folder `run` of a folder of results, or in a table of readings
    with the options `of_table`.
    """
    from uturn.core.files import check_plain
    from uturn.store.reading import open_run
    from uturn.studies.long_form import is_table
    from uturn.studies.readings import read_readings

    if is_table(location):
        return read_readings(location, **of_table)
    inner = Path(location) / "run"
    if not (inner / "run.json").is_file():
        return open_run(location)
    check_plain(inner)  # the folder, perhaps of others, may not lead to a store elsewhere
    return open_run(inner)


@contextmanager
def resumable(location: str | Path) -> Iterator[None]:
    """On a stop by a signal, print how to resume the runs at a location, and exit."""
    try:
        yield
    except BaseException as error:
        if not stops.ended_by(error):
            raise
        typer.echo(
            f"\nstopped; what is done is in {location}; run the same command again to resume",
            err=True,
        )
        raise typer.Exit(stops.exit_code) from None
