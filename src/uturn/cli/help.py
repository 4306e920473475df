"""How `--help` is drawn: options in panels, in two columns, or one below the other where the terminal is narrow."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.console import RenderableType

_LEAST = 44  # columns of a description beside its option
_MOST = 110  # columns of running text
_MARGINS = 6  # columns of a panel: its border, the space inside, and the space between its columns
_EXAMPLE = "Example: `"


class HelpRow(NamedTuple):
    """An option, argument or command: its name, what stands for its value, its description, and what holds without it."""

    name: str
    metavar: str
    words: str
    default: str = ""


class HelpCommand(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_drawn(self, ctx, _panels(one for one in self.get_params(ctx) if one.name != "help")))


class HelpGroup(TyperGroup):
    """The group of all commands with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        found: dict[str, list[HelpRow]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            summary = inspect.cleandoc(command.help or "").partition("\n\n")[0]
            found.setdefault(command.rich_help_panel, []).append(HelpRow(name, "", " ".join(summary.split()).replace("`", "")))
        formatter.write(_drawn(self, ctx, found | _panels(self.get_params(ctx))))


def _panels(parameters: Iterable[Any]) -> dict[str, list[HelpRow]]:
    """The rows of each panel."""
    found: dict[str, list[HelpRow]] = {}
    for parameter in parameters:
        is_option = parameter.param_type_name == "option"
        panel = getattr(parameter, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
        metavar = parameter.metavar or str(parameter.name).upper()
        if is_option:
            name, metavar = ", ".join(parameter.opts), "" if parameter.is_flag else metavar
        else:
            name, metavar = f"{metavar}{'' if parameter.nargs == 1 else '...'}", ""
        words = " ".join((parameter.help or "").split())
        found.setdefault(panel, []).append(HelpRow(name, metavar, words, _default(parameter)))
    return found


def _default(parameter: Any) -> str:
    value, off = parameter.default, ", ".join(parameter.secondary_opts)
    if parameter.required:
        return "[required]"
    if isinstance(parameter.show_default, str):
        return f"[default: {parameter.show_default}]"
    if off and value is not None:
        return f"[default; {off} turns it off]" if value else f"[default: {off}]"
    if value is None or value is False or value in ((), []):
        return ""
    return f"[default: {value.value if isinstance(value, Enum) else value}]"


def _drawn(command: Any, ctx: Any, panels: dict[str, list[HelpRow]]) -> str:
    """The help of a command as text, with colours if the output is a terminal."""
    from rich.console import Console
    from rich.theme import Theme

    console = Console(theme=Theme({"markdown.code": "bold cyan"}), highlight=False, markup=False)
    with console.capture() as captured:
        console.print(f"\n{command.get_usage(ctx)}\n", style="bold")
        for part in _text(command.help, min(console.width, _MOST)):
            console.print(part, width=min(console.width, _MOST))
            console.print()
        left = max(len(f"{row.name} {row.metavar}".rstrip()) for rows in panels.values() for row in rows)
        for title, rows in panels.items():
            console.print(_panel(title, rows, left, console.width))
    return "\n".join(line.rstrip() for line in captured.get().split("\n"))


def _text(words: str, width: int) -> list[RenderableType]:
    """The text of a docstring, then its examples, each as lines that can be copied."""
    from rich.markdown import Markdown
    from rich.text import Text

    paragraphs = inspect.cleandoc(words).split("\n\n")
    examples = [" ".join(one[len(_EXAMPLE) : -1].split()) for one in paragraphs if one.startswith(_EXAMPLE)]
    found: list[RenderableType] = [Markdown("\n\n".join(one for one in paragraphs if not one.startswith(_EXAMPLE)))]
    if examples:
        lines = [line for example in examples for line in _command_lines(example, width)]
        found.append(Text.assemble("Examples\n" if len(examples) > 1 else "Example\n", ("\n".join(lines), "bold cyan")))
    return found


def _command_lines(command: str, width: int) -> list[str]:
    """A command on lines that a shell reads as one."""
    lines = textwrap.wrap(
        command, width - 2, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _panel(title: str, rows: list[HelpRow], left: int, width: int) -> RenderableType:
    """Names and descriptions in two columns, if there is room for them, or one below the other."""
    from rich.console import Group as Lines
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    named = [
        (
            Text.assemble((row.name, "bold cyan"), " " if row.metavar else "", (row.metavar, "yellow")),
            Text.assemble(row.words, " " if row.words and row.default else "", (row.default, "dim")),
        )
        for row in rows
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=left, no_wrap=True)
    table.add_column()
    for name, words in named:
        table.add_row(name, words)
    beside = width - left - _MARGINS >= _LEAST
    below = Lines(*(part for name, words in named for part in (name, Padding(words, (0, 0, 0, 4)))))
    return Panel(table if beside else below, title=title, title_align="left", border_style="dim", width=width)
