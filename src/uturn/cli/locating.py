"""Runs with `--until`: they end when a place on a curve is known to a width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from uturn.cli.options import Place, Running
from uturn.cli.printing import console, inside, say_next
from uturn.cli.running import end, resumable
from uturn.core.checks import visible
from uturn.core.lazy import later

with later():
    from uturn.core import files
    from uturn.pages import located, page, results
    from uturn.store import outputs
    from uturn.studies import axes, locate

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment
    from uturn.studies.locate import Location


def locate_into(folder: str, experiment: Experiment, running: Running, place: Place, out: str | None) -> None:
    """Locate a place with the stores in a folder, and study all runs into `out`; exit code 1 if the width is not reached."""
    if running.shard != "1/1" or not running.resume:
        raise ValueError("until: each batch depends on those before it; leave out --shard and --no-resume")
    options = {name: value for name, value in running.arguments().items() if name not in ("shard", "resume")}
    with resumable(folder):
        location = locate.locate(
            experiment,
            store=folder,
            tell=lambda text: typer.echo(visible(f"uturn: {text}"), err=True),
            **place.sought(),
            **options,
        )
    for line in location.lines():
        console().print(line)
    if out is None:
        say_next(run=("study", *(inside(folder, f"{name}.zarr") for name in location.runs)))
    else:
        _write(location, out)
    if not location.reached:
        raise typer.Exit(1)


def _write(location: Location, out: str) -> None:
    """Study the runs into a folder, with the place in `located.json`."""
    keys = ("reading", "share", "width", "wanted", "reached", "items", "levels", "calls", "remark", "axes")
    numbers = {key: getattr(location, key) for key in keys} | {"unit": axes.axis_words(location.runs["pilot"])}
    runs = location.runs if len(location.runs) > 1 else location.runs["pilot"]
    results.write_study(runs, out, marks=located.located(numbers), page=False)
    with outputs.output_folder("out", out) as into:
        into.path.mkdir(parents=True, exist_ok=True)
        files.write_json(into.path / located.LOCATED, numbers)
        into.push(located.LOCATED)
    page.report([out])
    end(out, ())
