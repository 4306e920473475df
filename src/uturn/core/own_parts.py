"""User-defined parts: what they must have, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.errors import own_label
from uturn.core.imports import import_object
from uturn.core.protocols import BASES, Corruption, Part, Probe, Source

DOCS = "docs/own-parts.md"

_TEXTS = ("kind", "process", "unit", "site_name")
_TUPLES = ("kinds", "undoes", "asks", "execution")
_FLAGS = (
    "adds_trajectories",
    "batch_invariant",
    "by_items",
    "is_bayesian",
    "is_random",
    "is_reversible",
    "masks",
    "needs_vocab_size",
    "reads_in_parts",
    "shares_batches",
)
"""Values of parts that are texts, tuples of strings, and True or False."""

FAMILIES = {
    "strings": "uturn.sources.strings:StringSource",
    "tokens": "uturn.sources.tokens:TextSource",
    "images": "uturn.sources.images:ImageSource",
}
"""What a source of a kind of data inherits from: the built-in parts for it ask for its members."""


def is_own(part: object) -> bool:
    """Whether a part is user-defined: its code is not of this package."""
    return bool(own_label(part))


def name_of(part: object, otherwise: str) -> str:
    """The name of a part in messages: the label of a user-defined part, else the given name."""
    return own_label(part) or otherwise


def check_class(label: str, cls: object, base: type[Part]) -> None:
    """ValueError unless a class is a part: it inherits from a base class, and lacks no method."""
    name = f"uturn.{base.__name__}"
    if not isinstance(cls, type):
        kind = type(cls).__name__
        raise ValueError(
            f"{label} is a {kind}; expected a class that inherits from {name} ({DOCS})"
        )
    if not issubclass(cls, base):
        way_out = f"write `class {cls.__name__}(ut.{base.__name__})` ({DOCS})"
        raise ValueError(f"{label}: the class does not inherit from {name}; {way_out}")
    lacks = ", ".join(sorted(cls.__abstractmethods__))
    if lacks:
        raise ValueError(f"{label}: the class lacks {lacks}; see {_help(_owner(cls, base))}")


def check_own(part: Part) -> None:
    """ValueError unless a user-defined part has the values and members that others ask for."""
    if isinstance(part, Source):
        _check_family(part)
    for member in part.required:
        if not hasattr(part, member):
            owner = _owner(type(part), Part)
            raise ValueError(f"{part.own_label}: the class lacks {member}; see {_help(owner)}")
    _check_values(part)
    _check_methods(part)


def _owner(cls: type, otherwise: type) -> type:
    """The class of this package that a user's class inherits from."""
    return next((base for base in cls.__mro__ if _is_of_package(base)), otherwise)


def _is_of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "uturn"


def _help(cls: type) -> str:
    """What shows the members of a base class."""
    if cls in BASES.values():
        return f"help(ut.{cls.__name__})"
    return f"help({cls.__module__}.{cls.__qualname__})"


def _check_values(part: Part) -> None:
    """ValueError for values of another type than the base classes declare."""

    def check(member: str, is_right: Callable[[object], bool], expected: str) -> None:
        if hasattr(type(part), member):
            value = getattr(part, member)
            expect(is_right(value), f"{part.own_label}.{member}", value, expected)

    for member in _TEXTS:
        check(member, lambda value: isinstance(value, str), "a text")
    for member in _TUPLES:
        check(member, _are_names, "a tuple of strings")
    for member in _FLAGS:
        check(member, lambda value: isinstance(value, bool | np.bool_), "True or False")
    if isinstance(part, Corruption):
        check("max_noise", _is_largest, "the largest noise level, a number above 0")
        checked_integer(f"{part.own_label}.purpose", part.purpose, 0)
    if isinstance(part, Probe):
        checked_integer(f"{part.own_label}.least_trajectories", part.least_trajectories, 1)


def _are_names(value: object) -> bool:
    if not isinstance(value, tuple | list | set | frozenset):
        return False
    return all(isinstance(name, str) for name in value)


def _is_largest(value: object) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(value > 0)  # type: ignore[operator]  # false for NaN


def _check_methods(part: Part) -> None:
    """ValueError for a method that does not take the arguments with which it is called."""
    for name in dir(type(part)):
        homes = [cls for cls in type(part).__mro__ if name in vars(cls)]
        if name.startswith("_") or not homes or _is_of_package(homes[0]):
            continue
        declared = [vars(cls)[name] for cls in homes if _is_of_package(cls)]
        if declared and inspect.isfunction(declared[-1]):
            _check_arguments(part, name, declared[-1], homes[-1])


def _check_arguments(part: Part, name: str, declared: Callable[..., object], owner: type) -> None:
    """ValueError unless a method takes the arguments of the `declared` one of the class `owner`."""
    parameters = list(inspect.signature(declared).parameters.values())[1:]
    named = inspect.Parameter.KEYWORD_ONLY
    places = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is named]
    if name == "corrupt" and isinstance(part, Corruption) and part.needs_vocab_size:
        keywords.append("vocab_size")
    called = ", ".join([*places, *(f"{keyword}=.." for keyword in keywords)])
    method = getattr(part, name)
    expected = f"a method {name}({called})"
    expect(callable(method), f"{part.own_label}.{name}", method, expected)
    signature = inspect.signature(method)
    try:
        signature.bind(*places, **dict.fromkeys(keywords))
    except TypeError:
        mine = f"{part.own_label}: the method is {name}{signature}"
        way_out = f"it is called as {name}({called}); see {_help(owner)}"
        raise ValueError(f"{mine}, but {way_out}") from None


def _check_family(part: Source) -> None:
    """ValueError unless a source of strings, texts or images has the members of its kind."""
    if part.kind not in FAMILIES:
        return
    family = import_object(FAMILIES[part.kind], f"kind {part.kind!r}", "'module:Class'")
    if not isinstance(part, family):
        needed = f"a source of kind {part.kind!r} inherits from uturn.sources.{family.__name__}"
        reason = f"the built-in parts for {part.kind} ask for its members"
        raise ValueError(f"{part.own_label}: {needed}, since {reason}")


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


def _text(code: object) -> str:
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
