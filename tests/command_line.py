"""The program `uturn`: in the process of the tests, which saves the seconds of importing
libraries, or in a new one.
"""

import contextlib
import io
import logging
import signal
import subprocess
import sys
import warnings

import pytest

from uturn.cli.entry import main

SPEC = """
items = 4
[source]
type = "rhm"
vocab_size = 8
multiplicity = 2
branching = 2
depth = 3
[corruption]
type = "epsilon"
noise = [0.0, 0.5]
[backward]
type = "exact"
[[probes]]
type = "tree_levels"
"""
"""A small experiment, as a file."""


def uturn(*arguments, cwd="."):
    """What a shell gets from the program in a folder: its exit code, and the text of both of its
    streams.
    """
    out, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        handlers_kept(),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["uturn", *map(str, arguments)])
        # What `main` sets for its process.
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        patch.setattr(logging.getLogger("uturn"), "handlers", [])
        patch.setattr(logging.getLogger("uturn"), "level", logging.NOTSET)
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        patch.setattr(warnings, "showwarning", _on_stderr)  # pytest keeps warnings to itself
        for library in ("DIFFUSERS", "HF_HUB"):
            patch.setenv(f"{library}_VERBOSITY", "error")
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(
                arguments, end.code, out.getvalue(), error.getvalue()
            )


@contextlib.contextmanager
def handlers_kept():
    """The handlers of Ctrl-C and SIGTERM are afterwards those of before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def process(*arguments, **options):
    """The same from a new process; `options` of `subprocess.run`."""
    command = [sys.executable, "-m", "uturn.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )


def _on_stderr(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
