"""User-defined parts: defaults of their protocol, errors that name them, and a digest of their code.

A user-defined part is named in a spec by its import path, "module:Class". `OwnPart` wraps it.
"""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from uturn.core.checks import errors_named, one_line

DOCS = "docs/own-parts.md"


class OwnPart:
    """A user-defined part with the defaults of its protocol for the members that it lacks.

    An error in one of its members becomes a ValueError of one line that names the part and the member.
    """

    def __init__(self, part: Any, label: str, protocol: type) -> None:
        self._part, self._label, self._protocol = part, label, protocol

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._part)

    def __eq__(self, other: object) -> bool:
        return self._part is getattr(other, "_part", other)

    def __hash__(self) -> int:
        return id(self._part)

    def __repr__(self) -> str:
        return self._label

    def __getattr__(self, name: str) -> Any:
        if _is_default(self._part, self._protocol, name):
            return default_of(self._protocol, name, self)
        try:
            value = getattr(self._part, name)
        except AttributeError:
            raise
        except Exception as error:  # of a property
            with errors_named(f"{self._label}.{name}", type(self._part)):
                raise error
        if not inspect.isroutine(value):
            return value

        def member(*args: Any, **kwargs: Any) -> Any:
            with errors_named(f"{self._label}.{name}", value):
                # User-defined parts get each other without the wrapper.
                result = value(*map(unwrapped, args), **{key: unwrapped(arg) for key, arg in kwargs.items()})
            return self._iterated(name, result, value) if inspect.isgenerator(result) else result

        return member

    def _iterated(self, name: str, generator: Iterator[Any], code: Any) -> Iterator[Any]:
        with errors_named(f"{self._label}.{name}", code):
            yield from generator


def unwrapped(part: Any) -> Any:
    """A part without its `OwnPart` wrapper, if it has one."""
    return part._part if type(part) is OwnPart else part


def is_own(part: Any) -> bool:
    """Whether a part is user-defined."""
    return type(part) is OwnPart


class Completed:
    """A user-defined object other than a part, such as a block of originals, with the defaults of its protocol."""

    def __init__(self, value: Any, protocol: type) -> None:
        self._value, self._protocol = value, protocol

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        default = _is_default(self._value, self._protocol, name)
        return default_of(self._protocol, name, self) if default else getattr(self._value, name)


def completed(value: Any, protocol: type) -> Any:
    """An object with all members of a protocol: `value` if its class inherits from the protocol, else `Completed`."""
    return value if protocol in type(value).__mro__ else Completed(value, protocol)


def _is_default(part: Any, protocol: type, name: str) -> bool:
    """Whether a public member is the protocol's default: the part lacks it, or its class inherits it."""
    member = inspect.getattr_static(protocol, name, None)
    if name.startswith("_") or member is None or getattr(member, "__isabstractmethod__", False):
        return False
    return inspect.getattr_static(part, name, member) is member


def default_of(protocol: type, name: str, part: Any) -> Any:
    """The default of an optional member of a protocol, bound to a part."""
    member = inspect.getattr_static(protocol, name)
    return member.__get__(part, type(part)) if hasattr(member, "__get__") else member


@contextmanager
def missing_members_named(parts: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Turn the AttributeError of a user-defined part, or of an object made by one, into a ValueError.

    It names the part, the missing member, and the part that needs it.
    """
    try:
        yield
    except AttributeError as error:
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        asking = [f"{name} ({type(part).__name__})" for name, part in parts if not is_own(part) and part in frames]
        needs = f"{asking[-1] if asking else 'an experiment'} needs it (see {DOCS})"
        # Most objects that parts exchange are blocks of originals, so the source is tried first.
        for _, part in sorted(parts, key=lambda entry: entry[0] != "source"):
            owner = unwrapped(part)
            if is_own(part) and error.obj is owner:
                raise ValueError(f"{part!r} has no {error.name!r}; {needs}") from error
        for _, part in sorted(parts, key=lambda entry: entry[0] != "source"):
            if is_own(part) and type(error.obj).__module__ == type(unwrapped(part)).__module__:
                kind = type(error.obj).__name__
                raise ValueError(f"the {kind} that {part!r} gives has no {error.name!r}; {needs}") from error
        raise


@contextmanager
def misfits_named(label: str, part: Any, others: Iterable[Any]) -> Iterator[None]:
    """Turn an error of a built-in part, given the output of user-defined parts, into a ValueError that names all of them."""
    own = [repr(other) for other in others if is_own(other)]
    try:
        yield
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        of_package = type(getattr(error, "obj", None)).__module__.startswith("uturn.")
        if is_own(part) or not own or (isinstance(error, AttributeError) and not of_package):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{label} fails on what {' and '.join(own)} give: {kind}{one_line(error)}") from error


# -- the code of a part -----------------------------------------------------------------------------------------------


def code_digest(part: Any) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function.

    It covers the file of the module; if there is no file, the source text of the class; if there is no source text, the code
    objects. Modules that this code imports are not covered.
    """
    code = unwrapped(part)
    code = code if inspect.isfunction(code) else type(code)
    for read in (lambda: Path(inspect.getfile(code)).read_bytes(), lambda: inspect.getsource(code).encode()):
        try:
            return hashlib.sha256(read()).hexdigest()
        except (TypeError, OSError):
            continue
    digest = hashlib.sha256()
    for function in _functions(code):
        defaults = _plain_bytes((function.__defaults__, function.__kwdefaults__))
        digest.update(function.__qualname__.encode() + _code_bytes(function.__code__) + defaults)
    if inspect.isclass(code):
        digest.update(b"".join(name.encode() + _plain_bytes(value) for name, value in sorted(vars(code).items())))
    return digest.hexdigest()


def _plain_bytes(value: Any) -> bytes:
    """Bytes of a plain value that are the same in every process; empty for other objects, whose text may hold their address."""
    if isinstance(value, frozenset | set):
        return b"".join(sorted(map(_plain_bytes, value)))
    if isinstance(value, tuple | list):
        return b"(" + b",".join(map(_plain_bytes, value)) + b")"
    if isinstance(value, dict):
        return _plain_bytes(sorted(value.items()))
    return repr(value).encode() if value is None or isinstance(value, bool | int | float | complex | str | bytes) else b""


def _functions(code: Any) -> Iterator[FunctionType]:
    """A function itself, or all functions of a class."""
    if inspect.isfunction(code):
        yield code
        return
    for base in code.__mro__[:-1]:
        for _, member in sorted(vars(base).items()):
            for function in (member, getattr(member, "fget", None), getattr(member, "__func__", None)):
                if inspect.isfunction(function):
                    yield function


def _code_bytes(code: CodeType) -> bytes:
    constants = [_code_bytes(c) if isinstance(c, CodeType) else _plain_bytes(c) for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])
