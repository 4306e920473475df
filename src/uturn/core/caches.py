"""Caches of results that are valid while their input files do not change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from uturn.core.errors import own_label

_P = ParamSpec("_P")
_R = TypeVar("_R")
_clear: list[Callable[[], None]] = []  # functions that empty the caches of `cached_while_unchanged`


def cached_while_unchanged(
    files: Callable[..., Iterable[str | os.PathLike[str] | None]] | None = None, maxsize: int = 8
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator: a `functools.lru_cache` that recomputes results when the modification time or size
    of an input file changes.

    `files`: function of the same arguments that returns the paths of the input files; None and
    missing files are ignored. By default, the files that the method `files` of each positional
    argument lists, if it has this method.
    """

    def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @lru_cache(maxsize)
        def kept(call: _Call) -> _R:
            return function(*call.args, **call.kwargs)

        @wraps(function)
        def current(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            paths: list[str | os.PathLike[str] | None] = []
            if files is not None:
                paths += files(*args, **kwargs)
            else:
                for argument in args:
                    paths += getattr(argument, "files", tuple)()
            options = [(name, _key(value)) for name, value in kwargs.items()]
            key = (*map(_stamp, paths), *map(_key, args), *options)
            return kept(_Call(key, args, kwargs))

        current.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        _clear.append(kept.cache_clear)
        return current

    return decorated


@dataclass(frozen=True)
class _Call:
    """Arguments of a cached function, which are compared by their keys."""

    key: tuple[object, ...]
    args: tuple[Any, ...] = field(compare=False)  # of any function
    kwargs: Mapping[str, Any] = field(compare=False)  # of any function


class _Same:
    """The key of a user-defined part: equal to itself alone, however its class compares parts."""

    def __init__(self, part: object) -> None:
        self.part = part

    def __hash__(self) -> int:
        return id(self.part)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.part is self.part


def _key(value: object) -> object:
    return _Same(value) if own_label(value) else value


@cached_while_unchanged(files=lambda path: [path], maxsize=2**18)
def digest_of_file(path: str) -> str:
    """SHA-256 of the content of a file (hexadecimal)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_caches() -> None:
    """Empty all caches of `cached_while_unchanged`, to free the memory of models and data."""
    for clear in _clear:
        clear()


def _stamp(path: str | os.PathLike[str] | None) -> tuple[str, int, int] | None:
    """Path, modification time and size of a file; None if there is no file."""
    if path is None or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return os.fspath(path), status.st_mtime_ns, status.st_size
