"""`uturn report`."""

from __future__ import annotations

from typing import Annotated

import typer

from uturn.cli.app import PAGES, command
from uturn.cli.options import OUTPUT
from uturn.cli.printing import console, say_next


@command(PAGES)
def report(
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="Folders or stores of results; or one URL.")],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File to write.",
            show_default="DIR/index.html; report.html here for a store or several",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Write one page for results of `reproduce`, `images`, `text`, `atlas` and `run`. Measures nothing.

    The page is one HTML file that opens without a network: t\\* with its interval, verdicts with a filter, and curves, images and
    texts at the noise of one slider. Files that cannot be read are named, and the rest is shown.

    Example: `uturn report results/fashion`

    Example: `uturn report results results/fashion runs/epsilon --out all.html`
    """
    from uturn.pages import report as write_page

    path, problems = write_page(folders, out)
    for line in problems:
        console().print(f"not shown in full: {line}")
    say_next(open=path)
