"""The command line: `app` registers the commands, and `main` runs them."""

import sys

try:
    from uturn.cli import figures, studies, experiments, solvable, models, samplers, pages, choices  # noqa: I001 - registered in the order of the help
    from uturn.cli.app import app
    from uturn.cli.entry import main, program
except KeyboardInterrupt:  # Ctrl-C while modules load, before `main` begins
    sys.exit(130)

__all__ = ["app", "choices", "experiments", "figures", "main", "models", "pages", "program", "samplers", "solvable", "studies"]
