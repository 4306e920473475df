"""Progress bars of other libraries, which would be drawn into those of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
