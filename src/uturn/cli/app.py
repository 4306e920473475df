"""The application, in which every command is registered."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

import uturn
from uturn.cli.options import expanded
from uturn.core.tools import left_out, own_tools, tools

_Function = TypeVar("_Function", bound=Callable[..., None])

# Panels of the help.
FIGURES = "Figures of the paper"
STUDIES = "Your own models of images and texts"
EXPERIMENTS = "Experiments from a file"
SOLVABLE = "The solvable world"
MODELS = "Files of models"
PAGES = "Pages of results"


class _Command(TyperCommand):
    """A command whose help omits the form `--no-FLAG` of flags, to leave room for descriptions."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - of typer's own click
        _shorten_flags(self.get_params(ctx))
        super().format_help(ctx, formatter)


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - of typer's own click
        _shorten_flags(self.get_params(ctx))
        super().format_help(ctx, formatter)


def _shorten_flags(parameters: list[Any]) -> None:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
            parameter.secondary_opts = []


app = typer.Typer(
    name="uturn",
    cls=_Group,
    help="""Forward-backward experiments on diffusion models: corrupt a datum, denoise it back, measure what changed.

    `uturn COMMAND --help` says what a command measures. For a first look:

    ```
    uturn reproduce fig7
    uturn images --out results/fashion
    uturn explore --open
    ```
    """,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def command(panel: str) -> Callable[[_Function], _Function]:
    """Register a function as a command, in a panel of the help."""

    def register(function: _Function) -> _Function:
        app.command(cls=_Command, rich_help_panel=panel)(expanded(function))
        return function

    return register


def register_tools() -> None:
    """Import the modules that register the commands of tools; installed tools that cannot be
    imported are left out.
    """
    for name, tool in tools().items():
        for module in tool.commands:
            try:
                importlib.import_module(module)
            except Exception as error:  # the code of a package can raise any exception
                if name in own_tools():
                    raise
                left_out(name, error)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"uturn {uturn.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # rich prints it
        raise typer.Exit(2)
