"""`uturn reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from uturn import paper
from uturn.cli.app import FIGURES as PANEL
from uturn.cli.app import command
from uturn.cli.options import Machines, Out
from uturn.cli.printing import console, inside, say_next, show
from uturn.cli.running import resumable
from uturn.paper.registry import FIGURES, ORDER, lacking


class Scale(StrEnum):
    smoke = "smoke"
    paper = "paper"


@command(PANEL)
def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIGURE", help=f"{', '.join(FIGURES)} or all (default).", autocompletion=lambda: [*FIGURES, "all"]
        ),
    ] = None,
    *,
    scale: Annotated[
        Scale, typer.Option(help="smoke: small sizes, minutes on two cores; paper: the sizes of the paper.")
    ] = Scale.smoke,
    out: Out = "results",
    machines: Machines,
) -> None:
    """Reproduce the figures of arXiv:2402.16991 and further figures, with a verdict for each claim.

    Measures the noise at which the class of a datum is lost when diffusion is reversed: in the exactly solvable hierarchical
    model, in images (fig2), in networks trained on the model (fig8, learning), and in data without a hierarchy (s9, controls).
    Writes each figure as PNG, PDF and data (zarr), and the page `index.html`. The exit code is 1 if a verdict fails. The command
    can be stopped at any time; running it again resumes.

    Example:

    ```
    uturn reproduce fig6 fig7 --out results
    ```
    """
    from uturn.pages.figures import tally

    names = []
    for name in figures or ["all"]:
        names += [name] if name != "all" else [figure for figure in ORDER if not lacking(figure)]
    for reason in filter(None, map(lacking, ORDER if "all" in (figures or ["all"]) else ())):
        console().print(f"left out: {reason}")
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
    show(_verdict_table(results, scale.value), widest=160)  # verdicts are sentences: also a file has rows that can be read
    console().print(tally([asdict(verdict) for result in results for verdict in result.verdicts]).words)
    say_next(open=inside(out, "index.html"))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _verdict_table(results: list[Any], scale: str) -> Table:
    marks = {True: Text("pass", "green"), False: Text("FAIL", "bold red"), None: Text("shown", "dim")}
    table = Table("figure", "quantity", "measured", "expected", "", title=f"Verdicts, scale {scale}")
    for result in results:
        for verdict in result.verdicts:
            expected = f"{verdict.expected}" + (f" ({verdict.rule})" if verdict.rule else "")
            table.add_row(result.figure, verdict.quantity, verdict.measured, expected, marks[verdict.passed])
    return table
