"""Runs with `--until`: they end when a place on a curve is known to a width."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import typer

from uturn.cli.options import Running
from uturn.cli.printing import console, inside, say_next
from uturn.cli.running import resumable
from uturn.core.checks import visible

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment
    from uturn.studies.locate import Location


def checked_reading(reading: str | None) -> str:
    """The name of a reading, or a ValueError if none is given."""
    if reading is None:
        raise ValueError(
            "reading: missing; --until goes with a reading that falls from a start to chance: give --reading NAME, such as "
            "'unchanged, tree_level = 3' or 'kept, span = 1' (the peak of chi is not located in this way)"
        )
    return reading


def locate_into(
    folder: str,
    experiment: Experiment,
    running: Running,
    width: float,
    reading: str,
    share: float,
    any_shape: bool,
    out: str | None,
) -> None:
    """Locate a place with the stores in a folder, and study all runs into `out`; exit code 1 if the width is not reached."""
    from uturn.studies.locate import locate

    if running.shard != "1/1" or not running.resume:
        raise ValueError("until: each batch depends on those before it; leave out --shard and --no-resume")
    if out is not None:
        from uturn.pages.results import check_folder
        from uturn.store.outputs import output_folder

        with output_folder("out", out) as results:
            check_folder(results)
    with resumable(f"what is done is in {folder}; run the same command again to resume"):
        location = locate(
            experiment,
            reading,
            width,
            folder,
            share=share,
            any_shape=any_shape,
            tell=lambda text: typer.echo(visible(f"uturn: {text}"), err=True),
            workers=running.workers,
            progress=True,
            accept_changes=running.accept_changes,
            **running.on_cluster(),
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
    from uturn.pages.results import write_study, written
    from uturn.store.outputs import output_folder

    write_study(location.runs if len(location.runs) > 1 else location.runs["pilot"], out)
    keys = ("reading", "share", "width", "wanted", "reached", "items", "levels", "calls", "remark")
    numbers = {key: getattr(location, key) for key in keys}
    numbers |= {"axes": {name: list(estimate) for name, estimate in location.axes.items()}}
    with output_folder("out", out) as results:
        results.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_without_nan(numbers), indent=1, ensure_ascii=False, allow_nan=False)
        (results.path / "located.json").write_text(text, encoding="utf-8")
        results.push("located.json")
    console().print(f"written to {out}: located.json, {', '.join(written(out))}")
    say_next(open=inside(out, "index.html"))


def _without_nan(value: object) -> object:
    """Plain data with None in place of numbers that do not exist."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
