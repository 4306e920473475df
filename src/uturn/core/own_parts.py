"""User-defined parts: their class, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

from uturn.core.errors import own_label

DOCS = "docs/own-parts.md"


def is_own(part: object) -> bool:
    """Whether a part is user-defined: its code is not of this package."""
    return bool(own_label(part))


def name_of(part: object, otherwise: str) -> str:
    """The name of a part in messages: the label of a user-defined part, else the given name."""
    return own_label(part) or otherwise


def code_digest(code: object) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function.

    The code is the file of its module or, in a notebook, its own text. Imported modules are not
    covered. Empty if there is no source text.
    """
    owner = code if inspect.isfunction(code) else type(code)
    text = b""
    try:
        text = Path(inspect.getfile(owner)).read_bytes()
    except (TypeError, OSError):  # a notebook
        with suppress(OSError):
            text = _text(owner).encode()
    return hashlib.sha256(text).hexdigest() if text else ""


def _text(code: Any) -> str:  # any member of a class
    """Source text of a function or property, of a class with its bases, or of a plain value."""
    if inspect.isclass(code):
        bases = [base for base in code.__mro__ if base.__module__ == code.__module__]
        return "".join(_text_of_members(base) for base in bases)
    for name in ("fget", "func", "__func__", "__wrapped__"):
        code = getattr(code, name, code)
    if inspect.isfunction(code):
        return inspect.getsource(code)
    if isinstance(code, bool | int | float | complex | str | bytes | tuple | None):
        return repr(code)
    return ""


def _text_of_members(cls: type) -> str:
    """The members that a class defines, as "Class.name = text" in lines."""
    lines = []
    for name, member in vars(cls).items():
        if name.startswith("__") and not inspect.isfunction(member):
            continue
        text = "" if inspect.isclass(member) else _text(member)
        lines.append(f"{cls.__name__}.{name} = {text}\n")
    return "".join(lines)
