"""Tools: the folders of `uturn.tools`, and those that installed packages bring by entry points
of the group `uturn.tools`.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from uturn.core.messages import one_line

GROUP = "uturn.tools"
STUB = Path(__file__).parents[1] / "_tool_names.pyi"
"""Names that the tools of this package add to `uturn`, as type checkers read them."""


@dataclass(frozen=True)
class ToolFigure:
    """A figure of `uturn reproduce`: its module, with the members of `uturn.paper.registry.FigureModule`,
    and its place.

    `after`: the figure beyond the paper behind which it is listed, by default the last. `seconds`:
    approximately, at smoke scale on two cores, where `uturn/paper/seconds.json` has no entry; short
    figures are made first. `needs`: a library, and the extra of this package that installs it.
    """

    module: str
    after: str = ""
    seconds: int = 120
    needs: tuple[str, str] | None = None


@dataclass(frozen=True)
class Tool:
    """What a tool adds to the package. All values are import paths, so that nothing of a tool is
    imported before it is used.

    `parts`: {"source", "corruption", "backward" or "probes": {type in specs: "module:Class"}}.
    `commands`: modules that register commands when they are imported (`uturn.cli.app.command`), as
    `uturn --help` does. `sections`: {name of a file or store in a folder of results:
    "module:function"}; the function (path, reader) returns the section of the page
    (`uturn.pages.sections.Section`). Stores beside the file that fit its pattern `covers` have no
    section of their own.
    `folders`: of pictures in a folder of results, which its sections show. `figures`, {name:
    ToolFigure, or its module alone}: further figures of `uturn reproduce`. `names`, {name:
    "module:name"}: further names of `uturn`, or of a package in it: "seven" is `uturn.seven`, and
    "probes.Seven" is `uturn.probes.Seven`.
    """

    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    commands: Sequence[str] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ()
    figures: Mapping[str, ToolFigure | str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@cache
def own_tools() -> dict[str, Tool]:
    folders = pkgutil.iter_modules(importlib.import_module(GROUP).__path__)
    return {
        folder.name: importlib.import_module(f"{GROUP}.{folder.name}").TOOL for folder in folders
    }


@cache
def installed_tools() -> dict[str, Tool]:
    """The tools of installed packages by the name of their entry point; broken ones are left out
    with a warning.
    """
    found: dict[str, Tool] = {}
    for entry in entry_points(group=GROUP):
        try:
            tool = entry.load()
            if not isinstance(tool, Tool):
                raise TypeError(
                    f"{entry.value} is a {type(tool).__name__}, not a uturn.core.tools.Tool"
                )
        except Exception as error:  # the code of a package can raise any exception
            left_out(entry.name, error)
        else:
            found[entry.name] = tool
    return found


def tools() -> dict[str, Tool]:
    """All tools by name, those of this package last, so that no other can replace them."""
    return {**installed_tools(), **own_tools()}


def named(what: str) -> dict[str, Any]:
    """The `sections`, `figures` or `names` of all tools."""
    return {name: value for tool in tools().values() for name, value in getattr(tool, what).items()}


def left_out(name: str, error: Exception) -> None:
    warnings.warn(
        f"the tool {name!r} is left out: {type(error).__name__}: {one_line(error)}", stacklevel=2
    )


def stub() -> str:
    """The text of `STUB`: `python -m uturn.core.tools` writes it after a tool has come or gone."""
    lines = [
        '"""Names that tools add to `uturn`; `python -m uturn.core.tools` writes this file."""'
    ]
    lines.append("")
    for tool in own_tools().values():
        for name, path in tool.names.items():
            module, _, original = path.partition(":")
            if "." not in name:
                lines.append(f"from {module} import {original} as {name}")
    lines[2:] = sorted(lines[2:])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
