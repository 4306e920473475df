"""User-defined parts: their class, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
import types
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from uturn.core.checks import own_label
from uturn.core.protocols import Spec

DOCS = "docs/own-parts.md"


@cache
def own_class(cls: type, protocol: type, label: str = "") -> type:
    """A subclass of a user's class that inherits from its protocol, too.

    With a label, such as "source ('module:Class')", it is the class of a part: its `repr` is the label, and it is equal only to
    itself, so it can be a key in caches.
    """
    space: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    for name, default in inspect.getmembers_static(protocol):
        if isinstance(default, property) and inspect.getattr_static(cls, name, default) is default:
            space[name] = cached_property(default.fget)  # type: ignore[arg-type]  # an attribute of the part may replace it
    if label:
        space |= {"__own_label__": label, "__repr__": lambda part: label}
        space |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
        # A subclass made at run time has no import path, so parts are pickled by the class of the user.
        space["__reduce_ex__"] = lambda part, _: (_unpickled, (cls, protocol, label), part.__getstate__())
    bases = (cls,) if protocol in cls.__mro__ else (cls, protocol)
    metaclass = {"metaclass": type(Spec)} if issubclass(cls, BaseModel) else {}
    return types.new_class(cls.__name__, bases, metaclass, lambda namespace: namespace.update(space))


def _unpickled(cls: type, protocol: type, label: str) -> Any:
    made: Any = own_class(cls, protocol, label)
    return made.__new__(made)


def is_own(part: Any) -> bool:
    return bool(own_label(part))


def name_of(part: Any, otherwise: str) -> str:
    """The name of a part in messages: the label of a user-defined part, else the given name."""
    return own_label(part) or otherwise


def completed(value: Any, protocol: type) -> Any:
    """A block of originals with the defaults of its protocol: itself if its class inherits from that, else a copy."""
    cls: Any = type(value)
    if protocol in cls.__mro__:
        return value
    copied = cls.__new__(own_class(cls, protocol), *getattr(value, "__getnewargs__", tuple)())
    for name, attribute in attributes(value).items():
        object.__setattr__(copied, name, attribute)
    return copied


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object: those of its `__dict__` and of its slots."""
    state = object.__getstate__(value)
    tables = state if isinstance(state, tuple) else (state,)  # (attributes, slots), or attributes alone
    return {name: attribute for table in tables for name, attribute in (table or {}).items()}


def code_digest(code: Any) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function: the file of its module, or else its own text.

    Imported modules are not covered. Empty if there is no source text.
    """
    if not inspect.isfunction(code):
        code = type(code).__bases__[0] if is_own(code) else type(code)
    try:
        text = Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):  # a notebook
        try:
            text = _text(code).encode()
        except OSError:
            return ""
    return hashlib.sha256(text).hexdigest() if text else ""


def _text(code: Any) -> str:
    """Source text of a function or property; of the members of a class and of its bases in the same module; a plain value."""
    if inspect.isclass(code):
        members = [(base, *entry) for base in code.__mro__ if base.__module__ == code.__module__ for entry in vars(base).items()]
        own = [entry for entry in members if not entry[1].startswith("__") or inspect.isfunction(entry[2])]
        texts = [(f"{base.__name__}.{name}", "" if inspect.isclass(member) else _text(member)) for base, name, member in own]
        return "".join(f"{name} = {text}\n" for name, text in texts)
    for name in ("fget", "func", "__func__", "__wrapped__"):
        code = getattr(code, name, code)
    if inspect.isfunction(code):
        return inspect.getsource(code)
    return repr(code) if isinstance(code, bool | int | float | complex | str | bytes | tuple | None) else ""
