"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import ctypes
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


@contextmanager
def locked_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that lock the same folder waiting; the lock ends with the process, however that ends."""
    folder = None
    if os.name == "posix":
        import fcntl

        with suppress(OSError):  # a folder that may not be read, a file system without locks
            folder = os.open(path, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def exchange_folders(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> None:
    """Let two folders of one file system change places: in one step on Linux, by renames elsewhere.

    Raises
    ------
    OSError
        If one of them is missing or may not be renamed.
    """
    paths = [os.fsencode(os.path.abspath(path)) for path in (first, second)]
    with suppress(AttributeError, OSError):  # another system, or a file system that cannot
        at_working_directory, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
        if ctypes.CDLL(None).renameat2(at_working_directory, paths[0], at_working_directory, paths[1], exchange) == 0:
            return
    between = paths[0] + b".exchanged"
    os.rename(paths[1], between)
    os.rename(paths[0], paths[1])
    os.rename(between, paths[0])
