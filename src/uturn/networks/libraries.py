"""Other libraries: the errors of reading with them, and their progress bars, which would be drawn into those of a run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uturn.core.checks import one_line


@contextmanager
def reading(what: str, instead: str, extra: str = "text-to-image") -> Iterator[None]:
    """Context of a whole read: any error becomes a ValueError of one line that names the file or option and the way out.

    Parameters
    ----------
    what
        The file or option.
    instead
        The way out.
    extra
        The extra of this package that installs the library.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{what} needs a package that is missing ({one_line(error)}); pip install 'uturn[{extra}]'") from error
    except Exception as error:  # libraries raise many kinds for damaged files, none of them documented
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} cannot be read ({kind}{one_line(error)}); {instead}") from error


def library(name: str, what: str, extra: str = "text-to-image") -> Any:
    """A module of a library that not everyone has installed; a ValueError names `what` needs it, and how to install it."""
    with reading(what, "install it again", extra):
        return importlib.import_module(name)


@contextmanager
def without_bars(*libraries: Any) -> Iterator[None]:
    """Context in which libraries draw no bars while they load: modules such as `transformers.utils.logging`."""
    drawing = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in drawing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawing:
            library.enable_progress_bar()


@contextmanager
def without_lists(library: Any) -> Iterator[None]:
    """Context in which `library`, a module such as `transformers.utils.logging`, lists no weights that a model does not have."""
    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
