"""The application, in which every command is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from uturn.cli.help import HelpCommand, HelpGroup
from uturn.cli.options import expanded

_Function = TypeVar("_Function", bound=Callable[..., None])

FIGURES, STUDIES, EXPERIMENTS = "Figures of the paper", "Your own models of images and texts", "Experiments from a file"
SOLVABLE, MODELS, PAGES = "The solvable world", "Files of models", "Pages of results"  # panels of the help

app = typer.Typer(
    name="uturn",
    cls=HelpGroup,
    help="""Forward-backward experiments on diffusion models: corrupt a datum, denoise it back, measure what changed.

    `uturn COMMAND --help` says what a command measures.

    Example: `uturn reproduce fig7`

    Example: `uturn images --out results/fashion`

    Example: `uturn explore --open`
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def command(panel: str) -> Callable[[_Function], _Function]:
    """Register a function as a command, in a panel of the help."""

    def register(function: _Function) -> _Function:
        decorated: Any = app.command(cls=HelpCommand, rich_help_panel=panel)
        decorated(expanded(function))
        return function

    return register


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        import uturn

        typer.echo(f"uturn {uturn.__version__}")
        raise typer.Exit
