"""Pages that are made from the package itself: the options of all commands, and the members of all
parts.

The texts are the help of the commands and the docstrings of the base classes, so the pages cannot
differ from the program.
"""

from __future__ import annotations

import inspect
import re
from enum import Enum
from functools import cache
from typing import Any

import typer

import uturn.cli
from uturn.core import protocols
from uturn.core.inputs import Input

MEMBERS = {  # the parts in the order of a U-turn, and the data that pass between them
    "source": protocols.Source,
    "corruption": protocols.Corruption,
    "channel": protocols.Channel,
    "backward": protocols.Backward,
    "probe": protocols.Probe,
    "part": protocols.Part,
    "input": Input,
    "originals": protocols.Originals,
    "noisy": protocols.Noisy,
    "uturns": protocols.UTurns,
    "variable": protocols.Variable,
}
RENDERED = (
    "    options:",
    "      show_root_heading: false",
    "      show_root_toc_entry: false",
    "      heading_level: 3",
)
OPTIONS_HEAD = """\
# Options of all commands

Which option does what? Every command with all of its options, as `uturn COMMAND --help` prints them."""
MEMBERS_HEAD = """\
# Members of all parts

What can a part of your own define? A part defines the members that are required; all others have defaults.
[Your own parts](own-parts.md) shows how."""


# -- options ---------------------------------------------------------------------------------------


@cache
def commands() -> dict[str, Any]:
    """The commands of `uturn` by name, in the order of its help."""
    program: Any = typer.main.get_command(uturn.cli.app)
    return dict(program.commands)


def options() -> str:
    """The page of all options: a table of commands, then a section for each."""
    lines = [OPTIONS_HEAD, "", "| command | what it does |", "|---|---|"]
    for name, command in commands().items():
        lines.append(f"| [`uturn {name}`](#{anchor(name)}) | {cell(first_line(command.help))} |")
    for name, command in commands().items():
        lines += ["", f"## uturn {name} {{ #{anchor(name)} }}", "", described(command.help)]
        for panel, parameters in panels(command).items():
            lines += ["", f"**{panel}**", "", "| option | default | meaning |", "|---|---|---|"]
            lines += [
                f"| {named(option)} | {default(option)} | {cell(option.help or '')} |"
                for option in parameters
            ]
    return "\n".join(lines)


def anchor(command: str) -> str:
    """The anchor of a command on the page of options."""
    return f"uturn-{command}"


def panels(command: Any) -> dict[str, list[Any]]:
    """The arguments and options of a command by panel, those of no panel first."""
    found: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not parameter.hidden:
            plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
            found.setdefault(parameter.rich_help_panel or plain, []).append(parameter)
    return found


def named(parameter: Any) -> str:
    """The names of an option with what follows it, as code."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}".replace("<str>", "TEXT")
    return " ".join(f"`{name}{value}`" for name in parameter.opts)


def default(parameter: Any) -> str:
    """The default of an option: "required", a value as code, or nothing."""
    value = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    if parameter.required:
        return "required"
    if parameter.param_type_name == "option" and parameter.is_flag:
        return "on" if value else ""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return "" if value in (None, "") else f"`{value}`"


def first_line(text: str) -> str:
    """The first sentence of a help text."""
    return " ".join(text.split("\n\n")[0].split())


def described(text: str) -> str:
    """A help text as Markdown, with its examples as shell code."""
    return re.sub(
        r"^```$(.*?)^```$", r"```bash\1```", inspect.cleandoc(text), flags=re.MULTILINE | re.DOTALL
    )


def cell(text: str) -> str:
    """A text of the help as a cell of a table: outside of code, characters that mean something
    in Markdown are escaped.
    """
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = [
        re.sub(r"(?<!\\)([*_{}])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces[::2]
    ]
    pieces[::2] = escaped
    return "".join(pieces).replace("|", "\\|")


# -- members ---------------------------------------------------------------------------------------


def members() -> str:
    """The page of all members: a table of what is required, then the docstrings of each class."""
    lines = [MEMBERS_HEAD, "", "| class | what it is | required |", "|---|---|---|"]
    for name, kind in MEMBERS.items():
        lines.append(
            f"| [`{kind.__name__}`](#{name}) | {cell(first_line(inspect.getdoc(kind) or ''))} |"
            f" {required(name)} |"
        )
    for name, kind in MEMBERS.items():
        whole = f"{kind.__module__}.{kind.__qualname__}"
        lines += ["", f"## {kind.__name__} {{ #{name} }}", "", f"::: {whole}", *RENDERED]
    return "\n".join(lines)


def required(name: str) -> str:
    """The members that a part must define, as code."""
    kind = MEMBERS[name]
    if protocols.Part not in kind.__mro__[1:]:
        return ""
    values = [
        value
        for base in kind.__mro__
        for value in inspect.get_annotations(base)
        if not hasattr(kind, value)
    ]
    return ", ".join(f"`{member}`" for member in [*values, *sorted(kind.__abstractmethods__)])
