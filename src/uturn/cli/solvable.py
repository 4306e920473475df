"""`uturn theory` and `explore`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from uturn.cli.app import SOLVABLE, command
from uturn.cli.options import OUTPUT, Plot, option
from uturn.cli.printing import draw_to, picture, say_next, show
from uturn.core.lazy import later

with later():
    from uturn.exact import theory as mean_field
    from uturn.pages import laboratory
    from uturn.studies import tables
    from uturn.studies.plotting import theory as drawing


@command(SOLVABLE)
def theory(
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-v", help="Symbols at each level.")] = 32,
    multiplicity: Annotated[int, typer.Option("--multiplicity", "-m", help="Rules for each symbol.")] = 8,
    branching: Annotated[int, typer.Option("--branching", "-s", help="Children of each node.")] = 2,
    depth: Annotated[
        int,
        typer.Option(
            "--depth",
            "-L",
            metavar="N",
            min=1,
            help="Levels of the tree; only the ε at which class and leaves cross depends on it.",
        ),
    ] = 10,
    plot: Plot = None,
) -> None:
    """Print the mean-field theory of a grammar, and draw its map.

    Computes the phase, the threshold ε\\*, the exponent ν, and the fixed points of the map from level to level with their slopes.

    Example:

    ```
    uturn theory -v 32 -m 8 -s 2 --plot map.png
    ```
    """
    plot = None if plot is None else picture(plot)
    mf = mean_field.MeanField(vocab_size, multiplicity, branching)
    rows: list[tuple[str, ...]] = [("phase", mf.phase)]
    for quantity, value in [
        ("critical noise ε*", mf.critical_noise),
        ("repulsive fixed point p*", mf.fixed_point),
        ("slope F'(p*)", mf.slope),
        ("slope F'(1)", mf.slope_at_one),
        ("slope F'(1/v)", float(mf.slope_at(1 / vocab_size))),
        ("correlation exponent ν", mf.correlation_exponent),
        (f"ε at which class and leaves cross, L = {depth}", mf.class_crossing(depth)),
    ]:
        rows.append((quantity, "none" if value is None else f"{value:.6g}"))
    title = f"Mean field, v = {vocab_size}, m = {multiplicity}, s = {branching}"
    show(tables.for_terminal(tables.TextTable(title, ("quantity", "value"), rows)))
    if plot is None:
        grammar = ("-v", str(vocab_size), "-m", str(multiplicity), "-s", str(branching))
        say_next(run=("theory", *grammar, "--plot", "map.png"))
    else:
        draw_to(plot, lambda: drawing.draw(mf))


@command(SOLVABLE)
def explore(
    out: Annotated[Path, option(OUTPUT, "File of the page.", metavar="FILE")] = Path("uturn-laboratory.html"),
    open_page: Annotated[bool, option(OUTPUT, "Open the page in the browser.", "--open")] = False,
) -> None:
    """Write the laboratory: a page that shows U-turns of the exactly solvable model in a browser, without server or network.

    For the grammar and the noise chosen on the page, it computes the exact belief in every symbol of the tree and the changes
    made by U-turns at each tree level, beside mean-field theory. It also shows precomputed U-turns of images.

    Example:

    ```
    uturn explore --open
    ```
    """
    path = laboratory.write_laboratory(out)
    say_next(open=path)
    if open_page and not webbrowser.open(path.resolve().as_uri()):
        typer.echo("uturn: no browser was found", err=True)
