"""The entry point of the program."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from concurrent.futures import BrokenExecutor
from typing import Any

import typer

from uturn.checks import TasksFailed
from uturn.cli.app import app
from uturn.cli.running import exit_code, on_sigterm


def main() -> None:
    """Entry point: user mistakes end in one line on stderr and exit code 2, never in a traceback."""
    signal.signal(signal.SIGTERM, on_sigterm)
    log = logging.StreamHandler()
    log.setFormatter(logging.Formatter("uturn: %(message)s"))
    logging.getLogger("uturn").addHandler(log)
    logging.getLogger("uturn").setLevel(logging.INFO)
    sys.path.append("")  # user-defined parts are imported from the working directory, where no file can replace a library
    for library in ("DIFFUSERS", "HF_HUB"):  # their errors come back as exceptions
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.formatwarning = _warning
    try:
        code = app(standalone_mode=False, prog_name="uturn")
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
    except TasksFailed as error:
        typer.echo(f"uturn: error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        # Mistakes in options are exceptions of click, or of typer's own copy of it; both have `format_message`.
        usage = getattr(error, "format_message", None)
        if type(error).__name__ in ("Abort", "NoArgsIsHelpError"):
            sys.exit(exit_code(error.__cause__) if type(error).__name__ == "Abort" else 2)
        if usage is None and not isinstance(error, ValueError | OSError | MemoryError | BrokenExecutor):
            raise
        text = str(error) if usage is None else f"{usage()}{_help_for(error)}"
        typer.echo(f"uturn: error: {' '.join((text or type(error).__name__).split())}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _warning(message: Any, *_: Any, **__: Any) -> str:
    """A line on stderr; those of the check of a model begin with its name."""
    return f"{'' if str(message).startswith('model check:') else 'uturn: warning: '}{message}\n"


def _help_for(error: Any) -> str:
    """Where the options are listed that a mistake is about."""
    context = getattr(error, "ctx", None)
    return "" if context is None else f" (`{context.command_path} --help` lists what is expected)"
