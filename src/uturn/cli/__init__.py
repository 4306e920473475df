"""The command line: `app` registers the commands, those of tools last, and `main` runs them."""

import sys

try:
    # Registered in the order of the help.
    from uturn.cli import figures, studies, experiments, models, pages  # noqa: I001
    from uturn.cli.app import app, register_tools
    from uturn.cli.entry import main, program

    register_tools()
except KeyboardInterrupt:  # Ctrl-C while modules load, before `main` begins
    sys.exit(130)

__all__ = ["app", "experiments", "figures", "main", "models", "pages", "program", "studies"]
