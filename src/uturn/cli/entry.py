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
    # Of Pillow; such images are refused by name.
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
    # Of user-defined code, which shall not look like an end without errors.
    if isinstance(error, SystemExit):
        if origin(error) is None:  # completion of the shell ends so
            raise error
        _say_error(described(error))
        return error.code if isinstance(error.code, int) and error.code else 1
    if isinstance(error, TasksFailed):
        _say_error(str(error))
        return 1
    name = type(error).__name__
    if name == "Abort":  # typer's name for Ctrl-C
        return stops.exit_code
    if name == "NoArgsIsHelpError":
        return 2
    usage = getattr(error, "format_message", None)  # typer's exceptions for wrong options have it
    is_own = origin(error) is not None
    told = ValueError | OSError | MemoryError | RecursionError | BrokenExecutor
    if usage is None and not is_own and not isinstance(error, told):
        raise error
    text = described(error) if is_own else str(error)
    if isinstance(error, PermissionError) and error.filename and not is_own:
        text = (
            f"{error.filename}: permission denied; give yourself the right, or choose another place"
        )
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = (
            "" if context is None else f" (`{context.command_path} --help` lists what is expected)"
        )
        text = usage().replace("Value error, ", "") + hint
    _say_error(" ".join((text or name).split()))
    return 2


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


def _warning(message: Any, *_: Any, **__: Any) -> str:
    """A warning as a line for stderr; those of the checks before a run keep their own prefix."""
    return visible(f"{'' if str(message).startswith(CHECKS) else 'uturn: warning: '}{message}\n")


def _say_error(text: str) -> None:
    with suppress(OSError):  # stderr is not writable
        typer.echo(visible(f"uturn: error: {text}"), err=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))
