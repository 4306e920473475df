"""Texts for people: values, errors and characters in one line."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from typing import Any


def shown(value: Any) -> str:
    """`repr` of a value for an error message: one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = (
            f"an integer of {value.bit_length()} bits"
            if isinstance(value, int)
            else type(value).__name__
        )
    return text if len(text) <= 60 else f"{text[:57]}..."


def visible(text: str) -> str:
    r"""Text for a terminal: control characters, direction marks and lone surrogates, except new
     lines and tabs, are escaped.

    >>> visible("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    if text.isprintable():
        return text
    hidden = {
        char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    } - {"\n", "\t"}
    return text.translate({ord(char): char.encode("unicode_escape").decode() for char in hidden})


def one_line(error: BaseException, most: int = 160) -> str:
    """The text of an error in one line of at most `most` characters; the name of its type if it
    has no text.
    """
    text = ""
    with suppress(Exception):  # the text of a user-defined error may itself fail
        # Recognised without an import.
        is_pydantic = type(error).__module__.startswith("pydantic_core")
        text = validation_words(error) if is_pydantic else " ".join(str(error).split())[:most]
    return text or type(error).__name__


def validation_words(error: Any) -> str:
    """A validation error of pydantic in one line."""

    def words(entry: Any) -> str:
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        value = "" if entry["type"] in ("missing", "value_error") else f" = {shown(entry['input'])}"
        return f"{where}{value}: {message}" if where else message

    return "; ".join(words(entry) for entry in error.errors())
