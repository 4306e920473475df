"""Other libraries: errors while reading with them, and their progress bars, which would interfere with a run's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uturn.core.checks import one_line


@contextmanager
def reading(what: str, instead: str, extra: str = "text-to-image") -> Iterator[None]:
    """Context for reading a file: any error becomes a ValueError of one line, WHAT cannot be read (..); INSTEAD.

    `extra`: the extra of this package that installs the library.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{what} needs a package that is missing ({one_line(error)}); pip install 'uturn[{extra}]'") from error
    except Exception as error:  # for damaged files, libraries raise many undocumented kinds of exceptions
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} cannot be read ({kind}{one_line(error)}); {instead}") from error


def library(name: str, what: str, extra: str = "text-to-image") -> Any:
    """Import a module of an optional library; ValueError names the option `what` that needs it, and the way to install it."""
    with reading(what, "install it again", extra):
        return importlib.import_module(name)


@contextmanager
def without_bars(*libraries: Any) -> Iterator[None]:
    """Context in which libraries (logging modules such as `transformers.utils.logging`) draw no progress bars."""
    drawing = [logging for logging in libraries if logging.is_progress_bar_enabled()]
    for logging in drawing:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in drawing:
            logging.enable_progress_bar()


@contextmanager
def without_lists(logging: Any) -> Iterator[None]:
    """Context in which a library, by its `logging` (`transformers.utils.logging`), does not list missing or unused weights."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
