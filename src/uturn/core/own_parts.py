"""User-defined parts: what they must have, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.errors import own_label
from uturn.core.imports import import_object
from uturn.core.protocols import BASES, Corruption, Part, Probe, Source

DOCS = "docs/own-parts.md"

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
    """The call that shows the members of a base class."""
    if cls in BASES.values():
        return f"help(ut.{cls.__name__})"
    return f"help({cls.__module__}.{cls.__qualname__})"


class _Form(NamedTuple):
    """What a value of a declared type must be."""

    is_right: Callable[[object], bool]
    expected: str


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


def _are_names(value: object) -> bool:
    if not isinstance(value, tuple | list | set | frozenset):
        return False
    return all(isinstance(name, str) for name in value)


_FORMS = {
    "ClassVar[str]": _Form(_is_text, "a text"),
    "ClassVar[bool]": _Form(_is_flag, "True or False"),
    "ClassVar[tuple[str, ...]]": _Form(_are_names, "a tuple of strings"),
    "ClassVar[frozenset[str]]": _Form(_are_names, "a tuple of strings"),
}
"""Forms of values by the types that classes of this package declare for them."""


def _check_values(part: Part) -> None:
    """ValueError for values of another type than the base classes declare."""
    forms: dict[str, _Form] = {}
    for base in filter(_is_of_package, type(part).__mro__):
        for member, declared in inspect.get_annotations(base).items():
            if declared in _FORMS:
                forms[member] = _FORMS[declared]
    for member, form in forms.items():
        if hasattr(type(part), member):
            value = getattr(part, member)
            expect(form.is_right(value), f"{part.own_label}.{member}", value, form.expected)
    if isinstance(part, Corruption):
        most = part.max_noise
        expected = "the largest noise level, a number above 0"
        expect(_is_largest(most), f"{part.own_label}.max_noise", most, expected)
        checked_integer(f"{part.own_label}.purpose", part.purpose, 0)
    if isinstance(part, Probe):
        checked_integer(f"{part.own_label}.least_trajectories", part.least_trajectories, 1)


def _is_largest(value: object) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(value > 0)  # type: ignore[operator]  # false for NaN


def _check_methods(part: Part) -> None:
    """ValueError for a method that does not take the arguments with which it is called."""
    bases: list[type] = []
    names: set[str] = set()
    for cls in type(part).__mro__:
        if _is_of_package(cls):
            bases.append(cls)
        else:
            names.update(name for name in vars(cls) if not name.startswith("_"))
    for name in sorted(names):
        owner = next((base for base in reversed(bases) if name in vars(base)), None)
        if owner is not None and inspect.isfunction(vars(owner)[name]):
            _check_arguments(part, name, owner)


def _check_arguments(part: Part, name: str, owner: type) -> None:
    """ValueError unless a method takes the arguments that the class `owner` declares for it."""
    declared: Callable[..., object] = vars(owner)[name]
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
