"""The entry point of the program."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import Any

import typer

from uturn.cli.app import app
from uturn.cli.stops import stops
from uturn.core.errors import TasksFailed, described, origin
from uturn.core.findings import CHECKS
from uturn.core.messages import visible


def main() -> None:
    """Entry point: user mistakes end in one line on stderr and exit code 2, never in a
    traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does; a pipe or terminal may not encode ε.
        sys.stdout.reconfigure(errors="backslashreplace")
    stops.watch()
    log = logging.StreamHandler()
    log.setFormatter(_Formatter("uturn: %(message)s"))
    logging.getLogger("uturn").addHandler(log)
    logging.getLogger("uturn").setLevel(logging.INFO)
    # It tells of requests that zarr drops after a damaged chunk.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # User-defined parts are imported from the working directory; last, so that no file shadows a
    # library.
    sys.path.append("")
    for library in ("DIFFUSERS", "HF_HUB"):  # silence their logs; errors are raised as exceptions
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.formatwarning = _warning
    # Of zarr, where a signal stops it.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    # Pillow warns of large images, which are refused with their names.
    warnings.filterwarnings("ignore", message=".*decompression bomb")
    try:
        code = app(standalone_mode=False, prog_name="uturn")
    except BaseException as error:
        if stops.ended_by(error):
            sys.exit(stops.exit_code)
        sys.exit(_code_of(error))
    finally:
        stops.end()
    sys.exit(code if isinstance(code, int) else 0)


def _code_of(error: BaseException) -> int:
    """The exit code of a command that an error has ended, after one line about it; a bug of this
    package is raised again.
    """
    if isinstance(error, typer.Abort):  # Ctrl-C at a question
        return stops.exit_code
    is_own = origin(error) is not None  # of user-defined code
    if isinstance(error, SystemExit):
        if not is_own:  # completion of the shell ends so
            raise error
        # Code of the user that calls `sys.exit(0)` must not look like success.
        _say_error(described(error))
        return error.code if isinstance(error.code, int) and error.code else _FAILED
    if isinstance(error, TasksFailed):
        _say_error(str(error))
        return _FAILED
    if is_own:
        _say_error(described(error))
    elif isinstance(error, _USAGE_ERROR):
        _say_error(_usage(error))
    elif isinstance(error, PermissionError) and error.filename:
        advice = "give yourself the right, or choose another place"
        _say_error(f"{error.filename}: permission denied; {advice}")
    elif isinstance(error, _TOLD):
        _say_error(str(error) or type(error).__name__)
    else:
        raise error
    return _MISTAKE


_FAILED = 1
_MISTAKE = 2
"""Exit codes: a command has failed, or was used wrongly."""
_TOLD = ValueError, OSError, MemoryError, RecursionError, BrokenExecutor
"""Errors whose texts tell users enough."""
(_USAGE_ERROR,) = typer.BadParameter.__bases__
"""The class of errors for wrong options, which typer does not name."""


def _usage(error: Any) -> str:  # noqa: ANN401 - of a class without a name
    """What is wrong with the arguments of a command, and where they are explained."""
    message = str(error.format_message())
    if error.ctx is None:
        return message
    return f"{message} (`{error.ctx.command_path} --help` lists what is expected)"


def program() -> None:
    """Run `main`; if the client of object storage was used, exit at once: its threads could
    abort the process at shutdown.
    """
    try:
        main()
    except SystemExit as end:
        if "obstore" in sys.modules and isinstance(end.code, int):
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # the stream is closed or not writable
                    stream.flush()
            os._exit(end.code)
        raise


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as a line for stderr; warnings of the checks before a run have a prefix already."""
    prefix = "" if str(message).startswith(CHECKS) else "uturn: warning: "
    return visible(f"{prefix}{message}\n")


def _say_error(text: str) -> None:
    with suppress(OSError):  # stderr is not writable
        line = " ".join(text.split())
        typer.echo(visible(f"uturn: error: {line}"), err=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))
