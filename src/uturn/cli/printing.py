"""Output of commands: text, tables, and a last line with the file to open or the command to run
next.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    RenderableType,
    RenderHook,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from uturn.core.checks import expect
from uturn.core.messages import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from uturn.measures.report import Report

_UNFOLDED = 10_000  # width of a file or a pipe, so that each row of a table stays on one line


def console() -> Console:
    """Standard output, as wide as the terminal. Control characters are escaped, because printed
    text may come from files.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNFOLDED
    # Names may contain brackets, rich's markup.
    out = Console(width=width, highlight=False, markup=False)
    out.push_render_hook(_Visible())
    return out


class _Visible(RenderHook):
    """Hook of a console, and the object printed in place of another: its text with control
    characters escaped.
    """

    def __init__(self, renderable: RenderableType = "") -> None:
        self.renderable = renderable

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(renderable) for renderable in renderables]

    def __rich_console__(self, out: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in out.render(self.renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def show(part: Table | Report | str, widest: int = _UNFOLDED) -> None:
    """Print a line of text, or a table without a frame. If it is wider than the terminal or
    `widest`, its cells fold. A report is its table, remarks and conclusion.
    """
    out = console()
    out.width = min(out.width, widest)
    if isinstance(part, str):
        out.print(part)
        return
    if isinstance(part, Table):
        _show_table(out, part)
        return
    _show_table(out, part.__rich__())
    for line in (*part.remarks, part.conclusion):
        out.print(line)


def _show_table(out: Console, table: Table) -> None:
    if table.title:  # rich would fold a title to the width of the table
        out.print(table.title, style="bold")
    table.title = None
    table.box = None
    table.padding = (0, 2, 0, 0)
    table.pad_edge = False
    for column in table.columns:
        column.overflow = "fold"
    if out.measure(table, options=out.options.update(width=_UNFOLDED)).maximum > out.width:
        table.box = box.SIMPLE
        table.show_edge = False
        table.padding = 0
        table.leading = 1  # a blank line between rows
    out.print(table)


def inside(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def picture(path: Path) -> Path:
    """The file of a picture, checked before anything is drawn: PNG unless its ending says
    otherwise.
    """
    endings = ("png", "pdf", "svg", "eps", "jpg", "jpeg", "tif", "tiff", "webp")
    if path.name and not path.suffix:
        path = path.with_name(f"{path.name}.png")
    is_file = path.suffix[1:].lower() in endings and not path.is_dir()
    expect(is_file, "plot", str(path), f"a file that ends in .{', .'.join(endings)}")
    return path


def draw_to(path: Path, draw: Callable[[], Figure]) -> None:
    """Write the figure that `draw()` returns, and say that it can be opened."""
    from uturn.studies.plotting.style import save_figure, style

    with style():
        save_figure(draw(), path)
    say_next(open=path)


def say_next(*, open: str | Path | None = None, run: tuple[str, ...] = ()) -> None:
    """The last line of a command: the file to open, or the command to run, next."""
    from uturn.store.folders import is_url

    if open is None:
        advice = Text(shlex.join(("uturn", *run)), "bold")
    else:
        # Terminals open the link on a click.
        place = "" if is_url(open) else f" link {Path(open).resolve().as_uri()}"
        advice = Text.assemble("open ", (str(open), f"bold{place}"))
    console().print(Text.assemble("next: ", advice), soft_wrap=True)
