"""`uturn choose`."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from uturn.cli.app import PAGES, command
from uturn.cli.options import OfTable
from uturn.cli.printing import show
from uturn.cli.running import opened
from uturn.core.checks import expect

_GOAL = "READING=GOAL"


@command(PAGES)
def choose(
    results: Annotated[
        str,
        typer.Argument(
            metavar="RESULTS",
            help=(
                "A finished store, a folder with a `run`, or a table of readings (.csv, .tsv,"
                " .parquet)."
            ),
        ),
    ],
    keep: Annotated[
        list[str],
        typer.Option(metavar=_GOAL, help="The reading to keep, and the goal for its mean."),
    ],
    lose: Annotated[
        list[str] | None,
        typer.Option(metavar=_GOAL, help="A reading to lose, and the goal for its mean."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COORDINATE",
            help="Also choose for each value of this coordinate, such as label.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of each choice.")] = 0.95,
    *,
    table: OfTable,
) -> None:
    """Choose the largest measured noise that keeps a reading, guaranteed if the reading has a worst
    value. Measures nothing.

    The levels are tested from small noise upwards by a one-sided bound of the mean reading, and the
    first level that misses the goal ends the test. No correction for the number of levels is
    needed: for shares and other readings in a range, the choice is false with a probability of at
    most 5 % (1 - confidence). 59 originals that are all kept guarantee a share of 0.95; for goals by
    class, each class needs 59. For readings without a worst value, such as a distance, the answer
    is "estimated".

    The noise is printed on all axes of the run, and as the strength of image-to-image pipelines. A
    similarity is kept if its mean is at least the goal, a distance if its mean is at most the
    goal. --start says which of them a reading is, if a table does not show it. With --lose, the
    answer is a window, from the smallest noise that has lost the one reading to the largest that
    keeps the other. The other answers are "no such level", and "not decided" with the number of
    further originals needed. The interpolated crossing is an estimate.

    Readings are named as by `uturn study`; a variable with one level by its name, and the ends of a
    series of layers as `first_layer`, `last_layer`.

    Exit code: 0 if a level is chosen or estimated for all originals, 1 if there is none or it is
    not decided, 2 for mistakes.

    Example:

    ```
    uturn choose results/fashion --keep same_class=0.95 --by label
    uturn choose results/fashion --keep same_class=0.95 --lose first_layer=0.9
    uturn choose rmsd.csv --keep rmsd=2 --start rmsd=0 --noise-unit "added noise (Å)"
    ```
    """
    from uturn.store.run_folder import warnings_of
    from uturn.studies import choose as chosen

    reading, goal = _goal("keep", keep)
    lost = dict([_goal("lose", lose)]) if lose else None
    settings = table.settings([results])
    if by is not None:  # the column of a table
        settings["coords"] = sorted({*settings.get("coords", []), by})
    run = opened(results, **settings)
    choice = chosen(run, reading, goal, lose=lost, by=by, confidence=confidence)
    show("\n".join([repr(choice), *warnings_of(run.attrs)]))
    if math.isnan(choice.noise):
        raise typer.Exit(1)


def _goal(name: str, texts: list[str]) -> tuple[str, float]:
    """A reading, whose name may have "=", and a number."""
    from uturn.core.csv_text import number_in

    then = (
        "; the smallest noise chosen keeps all goals, with the same confidence"
        if name == "keep"
        else ""
    )
    expect(len(texts) == 1, name, texts, f"one goal; run the command for each{then}")
    reading, _, goal = texts[0].rpartition("=")
    value = number_in(goal)
    if not isinstance(value, float):
        raise ValueError(f"{name} = {texts[0]!r}: expected {_GOAL}, such as same_class=0.95")
    return reading.strip(), value
