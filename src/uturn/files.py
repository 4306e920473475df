"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end, unless something went wrong; its folder must exist.

    Raises
    ------
    ValueError
        If it cannot be written, with the reason.
    """
    unfinished = f"{os.fspath(path)}.unfinished"
    try:
        with named_errors(path):
            with open(unfinished, "wb") as file:
                yield file
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            os.remove(unfinished)


@contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of writing, such as a full disk, as a ValueError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {str(path)!r} ({error.strerror or error}); make room there, or choose another place"
        ) from None
