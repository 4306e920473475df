"""`uturn reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from uturn.cli.app import FIGURES, command
from uturn.cli.completion import NAMES, completing
from uturn.cli.options import OUTPUT, Machines
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import resumable

if TYPE_CHECKING:
    from rich.table import Table

    from uturn.paper import Result


class Scale(StrEnum):
    """Sizes of the experiments."""

    smoke = "smoke"
    paper = "paper"


@command(FIGURES)
def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIGURE", help=f"{', '.join(NAMES['figures'])} (default).", autocompletion=completing("figures")),
    ] = None,
    *,
    scale: Annotated[
        Scale,
        typer.Option(
            metavar="smoke|paper",
            help="smoke: small sizes, minutes on two cores; paper: the sizes of the paper.",
            rich_help_panel="Size",
        ),
    ] = Scale.smoke,
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Folder, or URL of object storage, for figures, data and the page.", rich_help_panel=OUTPUT
        ),
    ] = "results",
    machines: Machines,
) -> None:
    """Reproduce the figures of arXiv:2402.16991 and further ones, with a verdict for each of their claims.

    Measures at which noise the class of a datum is lost when diffusion is reversed: in the exactly solvable hierarchical model,
    in images (fig2), in networks trained on the model (fig8, learning), and in data without a hierarchy (s9, controls). Writes
    PNG, PDF, data (zarr) and the page `index.html`. The exit code is 1 if a verdict fails. The command can be stopped at any
    time; the same command continues.

    Example: `uturn reproduce fig6 fig7 --out results`
    """
    from uturn.pages.figures import tally
    from uturn.paper import ORDER
    from uturn.paper import reproduce as reproduce_figures

    names = list(figures or ["all"])
    names = [figure for name in names for figure in (ORDER if name == "all" else (name,))]
    with resumable(f"run the same command again to resume (raw runs are in {inside(out, scale.value)})"):
        results = reproduce_figures(
            names,
            out,
            scale.value,
            machines.workers,
            progress=True,
            announce=lambda text: console().print(text, style="bold"),
            cluster=machines.on_cluster(),
        )
    show(_verdict_table(results, scale.value))
    console().print(tally([asdict(verdict) for result in results for verdict in result.verdicts]).words)
    say_next(open=inside(out, "index.html"))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _verdict_table(results: list[Result], scale: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    marks = {True: Text("pass", "green"), False: Text("FAIL", "bold red"), None: Text("shown", "dim")}
    table = Table(title=f"Verdicts, scale {scale}", title_justify="left")
    for heading in ("figure", "quantity", "measured", "expected", ""):
        table.add_column(heading, overflow="fold")
    for result in results:
        for verdict in result.verdicts:
            expected = f"{verdict.expected}" + (f" ({verdict.rule})" if verdict.rule else "")
            table.add_row(result.figure, verdict.quantity, verdict.measured, expected, marks[verdict.passed])
    return table
