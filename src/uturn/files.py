"""Files and folders that are written as a whole or not at all, and results that are kept while the files they come from stay."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_UNFINISHED = ".unfinished"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end; after an error it is removed. Its folder must exist.

    Raises
    ------
    ValueError
        If it cannot be written, with the reason.
    """
    unfinished = f"{os.fspath(path)}{_UNFINISHED}"
    try:
        with named_errors(path):
            with open(unfinished, "wb") as file:
                yield file
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            os.remove(unfinished)


@contextmanager
def whole_folder(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """An empty folder beside `path` to write to, which takes the place of `path` in one step at the end.

    Whoever looks sees the old folder or the new one, never a part. After an error the new folder is removed. Where `path` is a
    link to a folder, the folder that it points to is replaced.

    Parameters
    ----------
    path
        Folders above it are made if they do not exist.
    replace
        Whether it may take the place of a folder that holds something; if False, this is an error.

    Raises
    ------
    ValueError
        If it cannot be written, with the reason.
    """
    place = Path(path).resolve()
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        with named_errors(path):
            unfinished.mkdir(parents=True)
            yield unfinished
            with suppress(OSError):
                place.rmdir()  # an empty folder that was made in advance
            try:
                unfinished.rename(place)
            except OSError:
                if not (replace and place.is_dir()):
                    raise
                exchange_folders(unfinished, place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished_folders(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed within `whole_folder(path)` have left; no process may be within it."""
    place = Path(path).resolve()
    unfinished = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}{re.escape(_UNFINISHED)}")
    with suppress(OSError):  # a folder that may not be read
        for left in place.parent.iterdir():
            if unfinished.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)


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


@contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of writing, such as a full disk, into a ValueError that names the file or folder."""
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


def cached_while_unchanged(
    files: Callable[_P, Iterable[str | os.PathLike[str] | None]], maxsize: int = 8
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator: `functools.lru_cache`, whose results are computed again when the files that they come from have changed.

    Parameters
    ----------
    files
        Function of the same arguments that gives the paths of the files. A path of no file, and None, are allowed: arguments
        that may name a file can be passed on as they are.
    maxsize
        Number of results that are kept.

    Examples
    --------
    >>> @cached_while_unchanged(files=lambda path: [path])
    ... def size(path):
    ...     return len(open(path, "rb").read())
    """

    def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @lru_cache(maxsize)
        def kept(_: tuple[Any, ...], *args: _P.args, **kwargs: _P.kwargs) -> _R:
            return function(*args, **kwargs)

        @wraps(function)
        def current(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return kept(tuple(map(_stamp, files(*args, **kwargs))), *args, **kwargs)  # type: ignore[arg-type]

        current.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return current

    return decorated


def _stamp(path: str | os.PathLike[str] | None) -> tuple[str, int, int] | None:
    """What changes when a file is written again; None for what is no file."""
    if path is None or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return os.fspath(path), status.st_mtime_ns, status.st_size
