"""Files and folders: written as a whole or not at all, and read with checks."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uturn.core.checks import expect
from uturn.core.inputs import plain

LARGEST_TABLE = 2**26
"""Most bytes of a table in a file: a file with holes may promise terabytes."""
_UNFINISHED = ".unfinished"


def checked_path(name: str, value: object) -> str:
    """`value` as the path of a file or folder, or a ValueError."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    is_short = len(path) <= 4000 and max(map(len, map(os.fsencode, path.split(os.sep)))) <= 255
    expect(path and is_short and "\0" not in path, name, value, "the path of a file or folder")
    return path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that replaces `path` at the end, or is removed after an error; a ValueError
    says why it cannot be written.
    """
    unfinished = f"{os.fspath(path)}{_UNFINISHED}"
    try:
        with named_errors(path):
            with suppress(FileNotFoundError):
                # Left by a killed process, or a link, which would be written through.
                os.remove(unfinished)
            with open(unfinished, "xb") as file:
                yield file
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            os.remove(unfinished)


@contextmanager
def whole_folder(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """An empty folder beside `path` that replaces it, or the target of a link, at the end, or is
    removed after an error.

    A ValueError gives the reason if the folder cannot be written, or if it has content and
    `replace` is False. A link to a folder with content is itself replaced, since that content may
    belong to others.
    """
    # `resolve` raises for links in a circle.
    place = Path(os.path.realpath(path))
    link = Path(path)
    if replace and link.is_symlink() and place.is_dir() and any(place.iterdir()):
        place = link.parent.resolve() / link.name
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    try:
        with named_errors(path):
            unfinished.mkdir(parents=True)
            yield unfinished
            if place.is_symlink():
                place.unlink()
            with suppress(OSError):
                place.rmdir()  # an existing empty folder is always replaced
            try:
                unfinished.rename(place)
            except OSError:
                if not (replace and place.is_dir()):
                    raise
                place.rename(old)
                unfinished.rename(place)
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write plain data, with numpy arrays and numbers, as a JSON file; null for numbers that are
    not finite.
    """
    table = finite(plain(content))
    text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as file:
        # Texts of files may hold lone surrogates.
        file.write(text.encode(errors="backslashreplace"))


def finite(value: object) -> Any:  # noqa: ANN401 - plain data as they came
    """Plain data with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_table(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401 - what a file holds
    """The content of a TOML or (by the suffix .json) JSON file in UTF-8, with or without a byte
    order mark.
    """
    size = os.path.getsize(path)
    expect(size <= LARGEST_TABLE, "its bytes", size, f"at most {LARGEST_TABLE}")
    text = read_text(path)
    return json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark."""
    check_regular(path)
    return Path(path).read_text(encoding="utf-8-sig")


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in a .npy file, read without unpickling; ValueError if there is none, or one of
    more than 2**31 numbers.
    """
    try:
        check_regular(path)
        # The size in a damaged header may overflow, or go beyond the end of the file.
        with np.errstate(over="ignore"):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        # A file may have holes.
        expect(mapped.size <= 2**31, "its size", mapped.size, "at most 2**31 numbers")
        return np.array(mapped)
    except Exception as error:  # numpy raises many kinds for damaged headers
        raise ValueError(
            f"{os.fspath(path)} is not a readable .npy file ({error}); write one array with"
            " numpy.save"
        ) from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """OSError for a pipe, a socket or a device: a reader of one may wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def check_plain(path: str | os.PathLike[str]) -> None:
    """ValueError if a path is, or contains, a link, a pipe or a device, which could lead
    elsewhere.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):  # known from the listing of the folder
                    with suppress(FileNotFoundError):  # another process has removed it
                        check_plain(entry.path)
    elif not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)} is a link, a pipe or a device, which is not read")


@contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a write error, such as a full disk, into a ValueError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {str(path)!r} ({error.strerror or error}); make room, or choose another"
            " place"
        ) from None


@contextmanager
def locked_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder: other processes that lock it wait."""
    folder = None
    if os.name == "posix":
        import fcntl

        with suppress(OSError):  # no permission to read the folder, or a file system without locks
            folder = os.open(path, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)
