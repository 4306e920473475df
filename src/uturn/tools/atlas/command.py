"""`uturn atlas`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import OUTPUT, AcceptChanges, Machines, OptionalOut, option
from uturn.cli.printing import console, say_next, show
from uturn.cli.running import end, resumable


@command(STUDIES)
def atlas(
    file: Annotated[Path, typer.Argument(metavar="ATLAS", help="TOML file with one table [[models]] for each row.")],
    out: OptionalOut = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Run only this row. Can be given several times.")] = None,
    listing: Annotated[bool, option(OUTPUT, "Print the rows and the facts about them; run nothing.", "--list")] = False,
    accept_changes: AcceptChanges = False,
    *,
    machines: Machines,
) -> None:
    """Measure where many models of images lose their class, on one axis: log-SNR.

    Each row of the file is a run of `uturn images`, with the same options, in a store of its own, NAME.zarr. The atlas gives for
    each row: t\\* and its width in each classifier; the half-life of each layer, and the log-SNR at which the logits fall below
    the first layer; with 2 or more trajectories, how many patches of pixels change together (chi) and over which distance (xi);
    with 2 or more clones, the calibration gap; and the speciation, abar = 1/Lambda, from the covariance of the data.

    Writes `atlas.csv`, `atlas.zarr`, `atlas.png` and the page `index.html`. The command can be stopped at any time; running it
    again resumes without repeating measurements. A row that fails is reported, the others go on, and the exit code is 1.

    Example:

    ```
    uturn atlas examples/atlas/here.toml --out results/atlas
    uturn atlas examples/atlas/public.toml --list
    ```
    """
    from uturn.studies.tables import for_terminal
    from uturn.tools.atlas.numbers import summary
    from uturn.tools.atlas.rows import RESULTS, chosen, listed, measure_atlas, read_atlas

    rows = chosen(read_atlas(file), only or [])
    if listing:
        show(for_terminal(listed(rows)))
        return say_next(run=("atlas", str(file), "--out", "FOLDER"))
    if out is None:
        raise ValueError("out: missing; expected --out FOLDER, or --list to run nothing")
    with resumable(out):
        table = measure_atlas(
            rows,
            out,
            announce=lambda text: console().print(text, style="bold"),
            workers=machines.workers,
            progress=True,
            accept_changes=accept_changes,
            **machines.on_cluster(),
        )
    failed = [row.name for row in rows if table.failure.values[table.name.values == row.name].any()]
    lines = [f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}"] if failed else []
    end(out, summary(table), *lines, files=[name for name in RESULTS if name.startswith("atlas")])
    if failed:
        raise typer.Exit(1)
