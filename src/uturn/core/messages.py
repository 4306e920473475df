"""Texts for people: values, errors and characters in one line."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import ValidationError


def shown(value: object) -> str:
    """`repr` of a value for an error message: one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = type(value).__name__
        if isinstance(value, int):
            text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the singular or the plural.

    >>> counted(1, "text"), counted(3, "text")
    ('1 text', '3 texts')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def file_name(path: object) -> str:
    """The last part of a path, in valid Unicode.

    >>> file_name("data/originals"), file_name("/")
    ('originals', '/')
    """
    return os.fsencode(Path(str(path)).name or str(path)).decode(errors="replace")


def visible(text: str) -> str:
    r"""Text for a terminal, with control characters, direction marks and lone surrogates escaped.

    New lines and tabs stay.

    >>> visible("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    if text.isprintable():
        return text
    escapes = {}
    for char in set(text) - {"\n", "\t"}:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            escapes[ord(char)] = char.encode("unicode_escape").decode()
    return text.translate(escapes)


def one_line(error: BaseException, most: int = 160) -> str:
    """The text of an error in one line of at most `most` characters, or the name of its type."""
    text = ""
    with suppress(Exception):  # the text of a user-defined error may itself fail
        if type(error).__module__.startswith("pydantic_core"):  # recognised without an import
            text = validation_words(cast("ValidationError", error))
        else:
            text = " ".join(str(error).split())[:most]
    return text or type(error).__name__


def validation_words(error: ValidationError) -> str:
    """A validation error of pydantic in one line."""
    return "; ".join(_entry_words(entry) for entry in error.errors())


def _entry_words(entry: Mapping[str, Any]) -> str:
    """What is wrong with one field: "corruption.noise = 'a': expected a number"."""
    where = ".".join(str(part) for part in entry["loc"])
    message: str = entry["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if entry["type"] in ("missing", "value_error"):
        return f"{where}: {message}"
    return f"{where} = {shown(entry['input'])}: {message}"
