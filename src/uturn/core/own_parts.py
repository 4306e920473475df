"""User-defined parts: what they must have, and a digest of their code."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import suppress
from pathlib import Path

from uturn.core.checks import expect
from uturn.core.errors import own_label
from uturn.core.imports import import_object
from uturn.core.protocols import Corruption, Part, Source

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
        raise ValueError(f"{label}: the class lacks {lacks}; see help(ut.{base.__name__})")


def check_own(part: Part) -> None:
    """ValueError unless a user-defined part has the values and members that others ask for."""
    if isinstance(part, Corruption):
        _check_corruption(part)
    if isinstance(part, Source):
        _check_family(part)
    for member in ("kinds", "undoes", "asks", "execution"):
        names = getattr(part, member, ())
        # Parts of a text are "in" it.
        is_text = isinstance(names, str)
        expect(not is_text, f"{part.own_label}.{member}", names, "a tuple of strings")


def _check_corruption(part: Corruption) -> None:
    """ValueError without the values of a corruption, or if `corrupt` takes other arguments."""
    for member in ("unit", "max_noise"):
        if not hasattr(part, member):
            raise ValueError(f"{part.own_label}: the class lacks {member}; see help(ut.Corruption)")
    signature = inspect.signature(part.corrupt)
    options = {"vocab_size": 2} if part.needs_vocab_size else {}
    called = ", ".join(["data, noise, keys", *(f"{name}=.." for name in options)])
    try:
        signature.bind(None, None, None, **options)
    except TypeError:
        method = f"{part.own_label}: the method is corrupt{signature}"
        way_out = f"it is called as corrupt({called}); see help(ut.Corruption)"
        raise ValueError(f"{method}, but {way_out}") from None


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
