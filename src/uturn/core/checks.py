"""Shared checks of arguments. Errors name the argument, its value, and the expected values."""

from __future__ import annotations

import math
import operator
import os
import re
import sysconfig
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGEST = np.float64(1e100)
"""Largest number whose squares and their sums are far from the largest float64."""
MOST_DEPTH = 10_000
"""Largest number of tree levels. Float64 does not resolve differences between levels at this depth."""

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = re.compile("|".join([*map(re.escape, (_PACKAGE, sysconfig.get_path("stdlib"))), "<", ".*-packages"]))

CHECKS = MODEL_CHECK, DATA_CHECK = "model check:", "data check:"
"""How the lines begin that say what the checks before a run have found."""


class Finding(NamedTuple):
    """What seems wrong in a network or in data, as a sentence. `is_unclear`: that could not be judged."""

    words: str
    is_unclear: bool = False
    check: str = MODEL_CHECK

    def __str__(self) -> str:
        return f"{self.check} {self.words}"


def expect(ok: Any, where: str, found: Any, expected: str) -> None:
    """ValueError "WHERE = FOUND: expected EXPECTED" unless `ok` is true: the one form of errors about a wrong value.

    `found` is the value, or the property of it that is wrong, such as its shape. `expected` says what is allowed, then, after a
    semicolon, the way out. All arguments are computed before the call, and type checkers learn nothing from it.

    >>> shape = (3, 8)
    >>> expect(shape == (4, 8), "source ('mine:Strings').blocks: data", shape, "(4, 8): items, leaves")
    Traceback (most recent call last):
    ValueError: source ('mine:Strings').blocks: data = (3, 8): expected (4, 8): items, leaves
    """
    if not ok:
        raise ValueError(f"{where} = {shown(found)}: expected {expected}")


def checked_integer(name: str, value: Any, least: int) -> int:
    """`value` as an int >= least, or a ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    expect(number >= least and not isinstance(value, bool), name, value, f"an integer >= {least}")
    return number


def checked_depth(value: Any, instead: str = "lower it") -> int:
    """`value` as a number of tree levels, 1 .. MOST_DEPTH, or a ValueError."""
    depth = checked_integer("depth", value, 1)
    expect(depth <= MOST_DEPTH, "depth", depth, f"at most {MOST_DEPTH} levels; {instead}")
    return depth


def check_tuples(vocab_size: int, branching: int, symbols: int = 0, multiplicity: int = 0, where: str = "a level") -> None:
    """ValueError if vocab_size**branching, the number of tuples, exceeds float64 or is below the number of rules."""
    sizes = f"vocab_size = {shown(vocab_size)}, branching"
    expect(branching * math.log2(vocab_size) <= 1000, sizes, branching, "vocab_size**branching of at most 300 digits")
    most = vocab_size**branching // max(symbols, 1)  # the tuples of a level are distinct
    expect(multiplicity <= most, f"{where}: multiplicity", multiplicity, f"at most {most}; lower multiplicity")


def check_memory(what: str, size: int, instead: str) -> None:
    """ValueError if `size` bytes exceed the memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**36
    if size > memory:
        needed = f"{size / 2**30:.0f} GB" if size < 2**60 else f"2**{size.bit_length() - 1} bytes"
        raise ValueError(f"{what} would take {needed}, but this machine has {memory / 2**30:.0f} GB of memory; {instead}")


def checked_path(name: str, value: Any) -> str:
    """`value` as the path of a file or folder, or a ValueError."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    fits = len(path) <= 4000 and "\0" not in path and all(len(os.fsencode(part)) <= 255 for part in path.split(os.sep))
    expect(path and fits, name, value, "the path of a file or folder")
    return path


def checked_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of any type, or a ValueError."""
    expect(not np.ma.is_masked(value), name, value, "no masked values; leave out what is missing")
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        raise ValueError(f"{name} = {shown(value)}: expected an array") from None


def checked_numbers(name: str, value: Any) -> np.ndarray:
    """`value` as float64 numbers whose squares and sums do not overflow, or a ValueError."""
    numbers = checked_array(name, value)
    expect(numbers.dtype.kind in "biuf", name, value, f"real numbers, got dtype {numbers.dtype}")
    numbers = numbers.astype(float)
    is_complete = (np.abs(numbers) < LARGEST).all()
    expect(is_complete, name, value, f"numbers below {LARGEST:g}, none NaN; leave out what is missing")
    return numbers


def checked_noise(noise: Any, most: float, batch: int | None = None) -> np.ndarray:
    """Noise levels as float64, all in [0, most], or a ValueError."""
    try:
        levels = checked_array("noise", noise).astype(float, casting="same_kind")
    except TypeError:
        raise ValueError(f"noise = {shown(noise)}: expected numbers in [0, {most}]") from None
    fits = batch is None or levels.shape in ((), (batch,))
    expect(fits, "shape of noise", levels.shape, f"a scalar or one level per sample, ({batch},)")
    bad = ~((levels >= 0) & (levels <= most))
    if bad.any():
        raise ValueError(f"noise = {levels[bad].flat[0]}: expected a level in [0, {most}]")
    return levels


def plain(value: Any) -> Any:
    """Tables and lists with numpy arrays and numbers replaced by Python types, for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def shown(value: Any) -> str:
    """`repr` of a value for an error message: one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def visible(text: str) -> str:
    r"""Text for a terminal: control characters, direction marks and lone surrogates, except new lines and tabs, are escaped.

    >>> visible("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    if text.isprintable():
        return text
    hidden = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}
    return text.translate({ord(char): char.encode("unicode_escape").decode() for char in hidden})


def one_line(error: BaseException, most: int = 160) -> str:
    """The text of an error in one line of at most `most` characters; the name of its type if it has no text."""
    text = ""
    with suppress(Exception):  # the text of a user-defined error may itself fail
        is_pydantic = type(error).__module__.startswith("pydantic_core")  # recognised without an import
        text = validation_words(error) if is_pydantic else " ".join(str(error).split())[:most]
    return text or type(error).__name__


def described(error: BaseException, most: int = 160) -> str:
    """An error in one line; that of user-defined code as "probes[0] ('mine:Own').read: KeyError: 'x' (mine.py, line 12)"."""
    text, kind = one_line(error, most), type(error).__name__
    text = text if isinstance(error, ValueError) or text == kind else f"{kind}: {text}"  # that of a ValueError is for users
    label, place = origin(error) or ("", "")
    return f"{label}: {text}{place}" if label else text


def origin(error: BaseException) -> tuple[str, str] | None:
    """The user-defined code that raised an error, and its place: ("probes[0] ('mine:Own').read", " (mine.py, line 12)").

    From the note of `noted`, or from the traceback: the innermost frame of a user-defined part, or of a file of no installed
    package, below the first frame of this package.
    """
    for note in getattr(error, "__notes__", ()):
        if read := re.fullmatch(r"in (.+?)( \([^()]+, line \d+\))?", note):
            return read[1], read[2] or ""
    frames = [(frame.f_locals.get("self"), frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    first = next((k for k, (_, code, _) in enumerate(frames) if code.co_filename.startswith(_PACKAGE)), len(frames))
    users = [
        (own_label(part), code, line)
        for part, code, line in frames[first:]
        if not code.co_filename.startswith(_PACKAGE) and (own_label(part) or not _LIBRARIES.match(code.co_filename))
    ]
    if not users:  # a part that lacks what a built-in part asks of it
        return (own_label(error.obj), "") if isinstance(error, AttributeError) and own_label(error.obj) else None
    label, member, _ = next((user for user in reversed(users) if user[0]), users[-1])
    name = f"{label}.{member.co_name}" if label else member.co_qualname
    return name, f" ({Path(users[-1][1].co_filename).name}, line {users[-1][2]})"


@contextmanager
def noted(label: str = "") -> Iterator[None]:
    """Add the note "in LABEL (mine.py, line 12)" to an error of user-defined code; by default the label is that of `origin`.

    The note passes to the main process with an error of another process, whose traceback does not.
    """
    try:
        yield
    except Exception as error:
        name, place = origin(error) or ("", "")
        if (label or name) and not any(note.startswith("in ") for note in getattr(error, "__notes__", ())):
            error.add_note(f"in {label or name}{place}")
        raise


def own_label(part: Any) -> str:
    """The label of a user-defined part, such as "source ('mine:Own')"; empty for other objects."""
    return str(getattr(part, "own_label", "")) if hasattr(type(part), "own_label") else ""


class TasksFailed(RuntimeError):
    """Some tasks of a run failed repeatedly; all others are done."""


class StoreError(ValueError):
    """A store cannot be read or written at the moment; its readings are not damaged."""


def validation_words(error: Any) -> str:
    """A validation error of pydantic in one line."""

    def words(entry: Any) -> str:
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        value = "" if entry["type"] in ("missing", "value_error") else f" = {shown(entry['input'])}"
        return f"{where}{value}: {message}" if where else message

    return "; ".join(words(entry) for entry in error.errors())
