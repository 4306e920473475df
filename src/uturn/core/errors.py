"""Errors of a run, and the user-defined code that an error comes from."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from uturn.core.messages import one_line

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_RECORDED = "_uturn_origin"  # attribute of an error
_LIBRARIES = re.compile(
    "|".join([*map(re.escape, (_PACKAGE, sysconfig.get_path("stdlib"))), "<", ".*-packages"])
)


@dataclass(frozen=True)
class Origin:
    """The user-defined code that raised an error."""

    code: str
    """The part and its member, such as "probes[0] ('mine:Own').read", or a function."""
    file: str = ""
    """Name of the file; empty if it is not known."""
    line: int = 0

    @property
    def place(self) -> str:
        """File and line in brackets, " (mine.py, line 12)"; empty if the file is not known."""
        return f" ({self.file}, line {self.line})" if self.file else ""

    @property
    def note(self) -> str:
        """What Python prints below the traceback."""
        return f"in {self.code}{self.place}"


def described(error: BaseException, most: int = 160) -> str:
    """An error in one line.

    An error of user-defined code reads "probes[0] ('mine:Own').read: KeyError: 'x' (mine.py, line
    12)".
    """
    text = one_line(error, most)
    kind = type(error).__name__
    if not isinstance(error, ValueError) and text != kind:  # the text of a ValueError is for users
        text = f"{kind}: {text}"
    raised_by = origin(error)
    return text if raised_by is None else f"{raised_by.code}: {text}{raised_by.place}"


def origin(error: BaseException) -> Origin | None:
    """The user-defined code that raised an error; None for code of this package and of libraries.

    `noted` has recorded it with the error, or it is found in the traceback: the innermost frame of
    a user-defined part, or of a file of no installed package, below the first frame of this
    package.
    """
    recorded = getattr(error, _RECORDED, None)
    if isinstance(recorded, Origin):
        return recorded
    frames = _user_frames(error)
    if not frames and isinstance(error.__cause__, StopIteration):
        frames = _user_frames(error.__cause__)  # a generator of this package has replaced it
    if frames:
        innermost = frames[-1]
        part = next((frame for frame in reversed(frames) if frame.label), None)
        code = innermost.code.co_qualname if part is None else f"{part.label}.{part.code.co_name}"
        return Origin(code, Path(innermost.code.co_filename).name, innermost.line)
    # A part lacks what a built-in part asks of it.
    if isinstance(error, AttributeError) and own_label(error.obj):
        return Origin(own_label(error.obj))
    return None


class _Frame(NamedTuple):
    """A frame of a traceback. `label`: of the user-defined part whose method it is; "" for
    others.
    """

    label: str
    code: CodeType
    line: int


def _user_frames(error: BaseException) -> list[_Frame]:
    """The frames of user-defined code below the first frame of this package."""
    frames = [
        _Frame(own_label(frame.f_locals.get("self")), frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    is_package = [frame.code.co_filename.startswith(_PACKAGE) for frame in frames]
    first = is_package.index(True) if True in is_package else len(frames)
    found = []
    for frame, is_ours in zip(frames[first:], is_package[first:], strict=True):
        if not is_ours and (frame.label or not _LIBRARIES.match(frame.code.co_filename)):
            found.append(frame)
    return found


@contextmanager
def noted(label: str = "") -> Iterator[None]:
    """Record the origin of an error of user-defined code with the error, and add the note "in LABEL
    (mine.py, line 12)".

    Both pass to the main process with an error of another process, whose traceback does not.
    `label`: the name of the code, by default that of `origin`.
    """
    try:
        yield
    except Exception as error:
        found = origin(error)
        if label:
            found = Origin(label) if found is None else replace(found, code=label)
        if found is not None and not hasattr(error, _RECORDED):
            setattr(error, _RECORDED, found)
            error.add_note(found.note)
        raise


def own_label(part: object) -> str:
    """The label of a user-defined part, such as "source ('mine:Own')"; empty for other objects."""
    return str(getattr(part, "own_label", "")) if hasattr(type(part), "own_label") else ""


class TasksFailed(RuntimeError):
    """Some tasks of a run failed repeatedly; all others are done."""


class StoreError(ValueError):
    """A store cannot be read or written at the moment; its readings are not damaged."""
