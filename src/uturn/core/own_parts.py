"""User-defined parts: defaults of their protocol, errors that name them, and a digest of their code.

A spec names the class of a user-defined part by its import path, "module:Class", or by the name registered by an installed
package. The part is an instance of a subclass of this class, made by `own_class`.
"""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any

from uturn.core.checks import OwnCodeError, described, errors_named, place

DOCS = "docs/own-parts.md"
SLIPS = (AttributeError, TypeError, LookupError, ArithmeticError)
"""Errors that Python raises for a mistake in code; parts raise ValueError for wrong arguments."""


@cache
def own_class(cls: type, protocol: type, label: str = "") -> type:
    """A subclass of a user's class with a protocol's defaults for missing members.

    With a label, such as "source ('module:Class')", it is the class of a part: errors in members of the protocol name the part
    and the member, `repr` is the label, and a part is equal only to itself, so it can be a key in caches.
    """
    space: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if label:
        space |= {"__own_label__": label, "__repr__": lambda part: label}
        space |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
        space |= {"__reduce_ex__": lambda part, version: _reduced(part, version, cls, protocol, label)}
    made = types.new_class(cls.__name__, (cls,), exec_body=lambda namespace: namespace.update(space))
    of_user = [base for base in cls.__mro__ if base not in protocol.__mro__]
    for name, default in inspect.getmembers_static(protocol):
        if name.startswith("_"):
            continue
        member = default
        if any(name in vars(base) for base in of_user):
            member = _named(f"{label}.{name}", inspect.getattr_static(cls, name)) if label else None
        elif isinstance(default, property):
            member = cached_property(default.fget)  # type: ignore[arg-type]  # an attribute of the part may replace it
        if member is not None:
            # Set after the class is made: a pydantic model would treat members of the namespace as fields.
            setattr(made, name, member)
            if isinstance(member, cached_property):
                member.__set_name__(made, name)
    return made


def _reduced(part: Any, version: int, cls: type, protocol: type, label: str) -> Any:
    """Pickle a part by the user's class, since a subclass made at run time has no import path."""
    made, arguments, *state = super(type(part), part).__reduce_ex__(version)
    if made is copyreg.__newobj__:  # type: ignore[attr-defined]
        return _new, (cls, protocol, label, *arguments[1:]), *state
    return made, arguments, *state


def _new(cls: type, protocol: type, label: str, *arguments: Any) -> Any:
    return cls.__new__(own_class(cls, protocol, label), *arguments)


def _named(label: str, member: Any) -> Any:
    """A member of a class with named errors; None for a value, which raises no errors."""
    if isinstance(member, staticmethod | classmethod):
        return type(member)(_with_named_errors(label, member.__func__))
    if isinstance(member, property):
        return property(_with_named_errors(label, member.fget), member.fset, member.fdel)
    if isinstance(member, cached_property):
        return cached_property(_with_named_errors(label, member.func))
    return _with_named_errors(label, member) if inspect.isfunction(member) else None


def _with_named_errors(label: str, function: Any) -> Callable[..., Any]:
    """A function whose errors, including those of a returned generator, begin with a label."""

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        with errors_named(label, function):
            result = function(*args, **kwargs)
        return iterated(result) if isinstance(result, Iterator) else result

    def iterated(generator: Iterator[Any]) -> Iterator[Any]:
        with errors_named(label, function):
            yield from generator

    return named


def is_own(part: Any) -> bool:
    """Whether a part is user-defined."""
    return hasattr(type(part), "__own_label__")


def name_of(part: Any, otherwise: str) -> str:
    """The name of a part in messages: the label of a user-defined part, else the given name."""
    return repr(part) if is_own(part) else otherwise


def completed(value: Any, protocol: type) -> Any:
    """A user-defined object other than a part, such as a block of originals, with the defaults of a protocol.

    Returns `value` itself if its class inherits from the protocol, else a copy.
    """
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


@contextmanager
def misfits_named(
    label: str, part: Any, others: Iterable[Any], errors: tuple[type[Exception], ...] = (*SLIPS, ValueError, RuntimeError)
) -> Iterator[None]:
    """Turn an error of a built-in part on data of user-defined parts into a ValueError that names these parts.

    `label` says what fails. Errors in user code are already named by `own_class`.
    """
    try:
        yield
    except errors as error:
        users = [other for other in others if is_own(other)]
        if not users or isinstance(error, OwnCodeError) or (is_own(part) and not isinstance(error, SLIPS)):
            raise
        if isinstance(error, AttributeError) and any(error.obj is other for other in users):
            raise ValueError(f"{error.obj!r} has no {error.name!r}; {label} needs it (see {DOCS})") from error
        where = next(filter(None, (place(error, type(other)) for other in users)), "")
        givers = f"{' and '.join(map(repr, users))} {'give' if len(users) > 1 else 'gives'}"
        raise ValueError(f"{label} fails on what {givers}: {described(error)}{where}") from error


def code_digest(code: Any) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function; empty if there is no source text.

    The digest covers the file of the module. Without a file, as in a notebook, it covers the source text of the function, or of
    the methods and plain class attributes of the class and its bases in the notebook. Imported modules are not covered.
    """
    if not inspect.isfunction(code):
        code = type(code).__bases__[0] if is_own(code) else type(code)
    try:
        text = Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):
        members = {"": code} if inspect.isfunction(code) else _members(code)
        try:
            text = "".join(f"{name} = {_text(member)}\n" for name, member in members.items()).encode()
        except OSError:
            return ""
    return hashlib.sha256(text).hexdigest() if text else ""


def _members(cls: type) -> dict[str, Any]:
    """Members of a class and of its bases in the same module."""
    bases = [base for base in cls.__mro__ if base.__module__ == cls.__module__]
    members = {f"{base.__name__}.{name}": member for base in bases for name, member in vars(base).items()}
    return {
        name: member
        for name, member in members.items()
        if not name.rpartition(".")[2].startswith("__") or inspect.isfunction(member)
    }


def _text(member: Any) -> str:
    """Source text of a function, method or property; `repr` of a plain value; empty for other objects."""
    for name in ("fget", "func", "__func__", "__wrapped__"):
        member = getattr(member, name, member)
    if inspect.isfunction(member):
        return inspect.getsource(member)
    return repr(member) if isinstance(member, bool | int | float | complex | str | bytes | tuple | None) else ""
