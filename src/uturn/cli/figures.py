"""`uturn reproduce`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from uturn import paper
from uturn.cli.app import FIGURES as PANEL
from uturn.cli.app import command
from uturn.cli.options import Machines, Out
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import resumable
from uturn.core.checks import expect
from uturn.core.messages import counted
from uturn.paper.registry import FIGURES, ORDER, PAPER_FIGURES, load_figure

if TYPE_CHECKING:
    from uturn.pages.verdicts import Result


class Scale(StrEnum):
    """Size of the runs of a figure."""

    smoke = "smoke"
    paper = "paper"


@command(PANEL)
def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIGURE",
            help="Figures to make, by default those of the paper.",
            autocompletion=lambda: [*FIGURES],
        ),
    ] = None,
    make_all: Annotated[
        bool, typer.Option("--all", help="Make the figures of the paper and all others.")
    ] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="List all figures with times and claims; make none.")
    ] = False,
    *,
    scale: Annotated[
        Scale,
        typer.Option(
            help=(
                "smoke: few grammars, strings and images, minutes on two cores; paper: many of"
                " each."
            )
        ),
    ] = Scale.smoke,
    out: Out = "results",
    machines: Machines,
) -> None:
    """Reproduce the figures of arXiv:2402.16991, with a verdict for each claim; others by name or
    with --all.

    Measures the noise at which the class of a datum is lost when diffusion is reversed: in the
    exactly solvable hierarchical model, in images (fig2), in a network trained on the model (fig8),
    and in data without a hierarchy (s9). Writes each figure as PNG, PDF and data (zarr), and the
    page `index.html`. The exit code is 1 if a verdict fails. The command can be stopped at any
    time; running it again resumes.

    Example:

    ```
    uturn reproduce --out results
    uturn reproduce fig6 fig7 --out results
    uturn reproduce --list
    ```
    """
    from uturn.pages.verdicts import tally

    if list_only:
        show(_figure_table())
        return
    expect(not (figures and make_all), "figures", figures, "names of figures, or --all")
    names = list(figures or PAPER_FIGURES)
    if make_all:
        names = [name for name in ORDER if not FIGURES[name].lacks]
        for name in ORDER:
            if reason := FIGURES[name].lacks:
                console().print(f"left out: {reason}")
    if scale is Scale.smoke and set(names) <= set(FIGURES):
        console().print(_expected_time(names))
    with resumable(inside(out, scale.value)):
        results = paper.reproduce(
            names,
            out,
            scale.value,
            machines.workers,
            progress=True,
            announce=lambda text: console().print(text, style="bold"),
            cluster=machines.on_cluster(),
        )
    if any(result.verdicts for result in results):
        # Verdicts are sentences: also a file has rows that can be read.
        show(_verdict_table(results, scale.value), widest=160)
    verdicts = [verdict for result in results for verdict in result.verdicts]
    console().print(tally(verdicts).words)
    say_next(open=inside(out, "index.html"))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _expected_time(names: list[str]) -> str:
    seconds = max(1, round(sum(FIGURES[name].seconds for name in names)))
    return f"{counted(len(names), 'figure')}, about {seconds} s on two quiet cores after the first compilation"


def _figure_table() -> Table:
    """All figures in the order of the page."""
    columns = ("figure", "title", "group", "seconds", "needs", "claim")
    table = Table(
        *columns, title="Figures: seconds on two quiet cores, and the library that a figure needs"
    )
    for entry in FIGURES.values():
        figure = load_figure(entry.name)
        group = "paper" if entry.is_of_paper else "beyond"
        needs = entry.needs[0] if entry.needs else ""
        table.add_row(
            entry.name, figure.TITLE, group, f"{max(entry.seconds, 1):.0f}", needs, figure.CLAIM
        )
    return table


def _verdict_table(results: list[Result], scale: str) -> Table:
    marks = {
        True: Text("pass", "green"),
        False: Text("FAIL", "bold red"),
        None: Text("shown", "dim"),
    }
    table = Table(
        "figure", "quantity", "measured", "expected", "", title=f"Verdicts, scale {scale}"
    )
    for result in results:
        for verdict in result.verdicts:
            expected = str(verdict.expected)
            if verdict.rule:
                expected += f" ({verdict.rule})"
            table.add_row(
                result.figure, verdict.quantity, verdict.measured, expected, marks[verdict.passed]
            )
    return table
