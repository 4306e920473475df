"""What commands print: text, tables that fold, and, in the last line, what to open or to run next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uturn.core.checks import visible

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.measure import Measurement
    from rich.table import Table

_UNFOLDED = 10_000  # columns of output into a file or a program, where every row of a table stays on one line
_FOLDS = 1.5  # how much wider than the terminal a table can be, to be read well with folded cells


def console() -> Console:
    """Standard output, as wide as the terminal. What is printed may come from files: its control characters are escaped."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNFOLDED
    out = Console(width=width, highlight=False, markup=False)  # names may hold brackets
    out.push_render_hook(_Visible())  # type: ignore[arg-type] # of the class that rich imports slowly
    return out


class _Visible:
    """Hook of a console, and what it prints in place of an object: the same with control characters escaped."""

    def __init__(self, renderable: RenderableType = "") -> None:
        self.renderable = renderable

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Visible(one) for one in renderables]

    def __rich_console__(self, out: Console, options: Any) -> Iterator[Any]:
        for segment in out.render(self.renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def show(table: Table | str) -> None:
    """Print a line of text, or a table: without its frame if nobody looks at it or there is no room, or as a list."""
    out = console()
    if isinstance(table, str):
        return out.print(table)
    if table.title:
        out.print(table.title, style="bold")
        table.title = None
    is_read = out.width < _UNFOLDED
    if not is_read or _wanted(table, out).maximum > out.width:
        table.box, table.padding, table.pad_edge = None, (0, 1 if is_read else 2, 0, 0), False
    wanted = _wanted(table, out)
    folds = wanted.maximum <= _FOLDS * out.width and wanted.minimum <= out.width
    return out.print(table if folds else _as_list(table))


def _wanted(table: Table, out: Console) -> Measurement:
    """The columns that a table takes: at least, to leave words whole, and without folding."""
    return out.measure(table, options=out.options.update(width=_UNFOLDED))


def _as_list(table: Table) -> Group:
    """Each row as a heading, its first cell, and a line for every other cell that is not empty."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    def lines() -> Iterator[RenderableType]:
        headings = [str(column.header) for column in table.columns]
        for first, *others in zip(*(column.cells for column in table.columns), strict=True):
            yield Text(str(first), "bold")
            for heading, cell in zip(headings[1:], others, strict=True):
                if str(cell):
                    words = Text.assemble(f"{heading}: " if heading else "", cell if isinstance(cell, Text) else str(cell))
                    yield Padding(words, (0, 0, 0, 2))

    return Group(*lines())


def inside(folder: str, name: str) -> str:
    """A path or URL in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def picture(path: Path) -> Path:
    """The file of a picture, checked before anything is drawn: PNG unless its ending says otherwise."""
    endings = ("png", "pdf", "svg", "eps", "jpg", "jpeg", "tif", "tiff", "webp")
    path = path if path.suffix or not path.name else path.with_name(f"{path.name}.png")
    if path.is_dir() or path.suffix[1:].lower() not in endings:
        raise ValueError(f"plot = {str(path)!r}: expected a file that ends in .{', .'.join(endings)}")
    return path


def draw_to(path: Path, draw: Callable[[], Any]) -> None:
    """Write the figure that `draw()` returns, and say that it can be opened."""
    from uturn.studies.plotting.style import save_figure, style

    with style():
        save_figure(draw(), path)
    say_next(open=path)


def say_next(*, open: str | Path | None = None, run: tuple[str, ...] = ()) -> None:
    """The last line of a command: the file to open, or the command to run, next."""
    from rich.text import Text

    from uturn.store.objects import is_url

    if open is None:
        words = Text(shlex.join(("uturn", *run)), "bold")
    else:
        place = "" if is_url(open) else f" link {Path(open).resolve().as_uri()}"  # which terminals open on a click
        words = Text.assemble("open ", (str(open), f"bold{place}"))
    console().print(Text.assemble("next: ", words), soft_wrap=True)
