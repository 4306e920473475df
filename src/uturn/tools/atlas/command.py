"""`uturn atlas`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import AcceptChanges, Machines, Out
from uturn.cli.printing import console
from uturn.cli.running import Printed, begin, end, resumable
from uturn.core.checks import expect

if TYPE_CHECKING:
    from rich.table import Table


@command(STUDIES)
def atlas(
    file: Annotated[
        Path,
        typer.Argument(metavar="ATLAS", help="TOML file with one table [[models]] for each row."),
    ],
    out: Out = "results/atlas",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run only this row. Can be given several times."),
    ] = None,
    accept_changes: AcceptChanges = False,
    *,
    machines: Machines,
) -> None:
    """Measure where many models of images lose their class, on one axis: log-SNR.

    Each row of the file is a run of `uturn images`, with the same options, in a store of its own,
    NAME. The atlas gives for each row and classifier: t\\* and its width, the half-lives of
    the first and the last layer, and the log-SNR at which the last layer falls below the first.
    `uturn study NAME` gives everything else about a row.

    Writes `atlas.csv`, `atlas.zarr`, `atlas.png` and the page `index.html`. The command can be
    stopped at any time; running it again resumes without repeating measurements. A row that fails
    is reported, the others go on, and the exit code is 1.

    Example:

    ```
    uturn atlas examples/atlas/here.toml --out results/atlas
    ```
    """
    from uturn.studies.tables import for_terminal
    from uturn.tools.atlas.file import read_atlas
    from uturn.tools.atlas.numbers import remarks_of, text_table
    from uturn.tools.atlas.rows import RESULTS, measure_atlas

    rows = read_atlas(file)
    names = [row.name for row in rows]
    expect(set(only or names) <= set(names), "only", only, f"some of {', '.join(names)}")
    rows = [row for row in rows if row.name in (only or names)]
    begin(out)
    with resumable(out):
        table = measure_atlas(
            rows,
            out,
            announce=lambda text: console().print(text, style="bold"),
            workers=machines.processes,
            progress=True,
            accept_changes=accept_changes,
            **machines.on_cluster(),
        )
    failed = table.name.values[table.is_failed.values].tolist()
    parts: list[Table | str] = [for_terminal(text_table(table)), *remarks_of(table)]
    if failed:
        parts.append(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")
    end(out, Printed(parts, [name for name in RESULTS if name.startswith("atlas")]))
    if failed:
        raise typer.Exit(1)
