"""User-defined parts: their class, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from uturn.core.errors import own_label

DOCS = "docs/own-parts.md"


def is_own(part: Any) -> bool:
    """Whether a part is user-defined: its code is not of this package."""
    return bool(own_label(part))


def name_of(part: Any, otherwise: str) -> str:
    """The name of a part in messages: the label of a user-defined part, else the given name."""
    return own_label(part) or otherwise


def code_digest(code: Any) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function: the file of its module,
    or else its own text.

    Imported modules are not covered. Empty if there is no source text.
    """
    if not inspect.isfunction(code):
        code = type(code)
    try:
        text = Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):  # a notebook
        try:
            text = _text(code).encode()
        except OSError:
            return ""
    return hashlib.sha256(text).hexdigest() if text else ""


def _text(code: Any) -> str:
    """Source text of a function or property; of the members of a class and of its bases in the
    same module; a plain value.
    """
    if inspect.isclass(code):
        members = [
            (base, *entry)
            for base in code.__mro__
            if base.__module__ == code.__module__
            for entry in vars(base).items()
        ]
        own = [
            entry
            for entry in members
            if not entry[1].startswith("__") or inspect.isfunction(entry[2])
        ]
        texts = [
            (f"{base.__name__}.{name}", "" if inspect.isclass(member) else _text(member))
            for base, name, member in own
        ]
        return "".join(f"{name} = {text}\n" for name, text in texts)
    for name in ("fget", "func", "__func__", "__wrapped__"):
        code = getattr(code, name, code)
    if inspect.isfunction(code):
        return inspect.getsource(code)
    return (
        repr(code)
        if isinstance(code, bool | int | float | complex | str | bytes | tuple | None)
        else ""
    )
