"""Shared checks of arguments. Errors name the argument, its value, and the expected values."""

from __future__ import annotations

import math
import operator
import os
from typing import Any, SupportsIndex

import numpy as np

from uturn.core.messages import shown

LARGEST = np.float64(1e100)
"""Largest number whose squares and their sums are far from the largest float64."""
MOST_DEPTH = 10_000
"""Largest number of tree levels. Float64 does not resolve differences between levels at this
depth.
"""


def expect(ok: object, where: str, found: object, expected: str) -> None:
    """ValueError "WHERE = FOUND: expected EXPECTED" unless `ok` is true.

    This is the one form of errors about a wrong value.
    `found` is the value, or the property of it that is wrong, such as its shape. `expected` says
    what is allowed, then, after a semicolon, the way out. All arguments are computed before the
    call, and type checkers learn nothing from it.

    >>> shape = (3, 8)
    >>> expect(shape == (4, 8), "source ('mine:Strings').blocks: data", shape, "(4, 8): items, leaves")
    Traceback (most recent call last):
    ValueError: source ('mine:Strings').blocks: data = (3, 8): expected (4, 8): items, leaves
    """
    if not ok:
        raise ValueError(f"{where} = {shown(found)}: expected {expected}")


def checked_integer(name: str, value: SupportsIndex | object, least: int) -> int:
    """`value` as an int >= least, or a ValueError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    expect(number >= least and not isinstance(value, bool), name, value, f"an integer >= {least}")
    return number


def checked_depth(value: object, instead: str = "lower it") -> int:
    """`value` as a number of tree levels, 1 .. MOST_DEPTH, or a ValueError."""
    depth = checked_integer("depth", value, 1)
    expect(depth <= MOST_DEPTH, "depth", depth, f"at most {MOST_DEPTH} levels; {instead}")
    return depth


def check_tuples(
    vocab_size: int, branching: int, symbols: int = 0, multiplicity: int = 0, where: str = "a level"
) -> None:
    """ValueError if vocab_size**branching, the number of tuples, exceeds float64 or is below the
    number of rules.
    """
    sizes = f"vocab_size = {shown(vocab_size)}, branching"
    is_a_float = branching * math.log2(vocab_size) <= 1000
    expect(is_a_float, sizes, branching, "vocab_size**branching of at most 300 digits")
    most = vocab_size**branching // max(symbols, 1)  # the tuples of a level are distinct
    expected = f"at most {most}; lower multiplicity"
    expect(multiplicity <= most, f"{where}: multiplicity", multiplicity, expected)


def check_memory(what: str, size: int, instead: str) -> None:
    """ValueError if `size` bytes exceed the memory of this machine."""
    memory = 2**36
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        needed = f"{size / 2**30:.0f} GB"
        if size >= 2**60:
            needed = f"2**{size.bit_length() - 1} bytes"
        raise ValueError(
            f"{what} would take {needed}, but this machine has {memory / 2**30:.0f} GB of memory;"
            f" {instead}"
        )


def checked_path(name: str, value: object) -> str:
    """`value` as the path of a file or folder, or a ValueError."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    is_short = len(path) <= 4000 and max(map(len, map(os.fsencode, path.split(os.sep)))) <= 255
    expect(path and is_short and "\0" not in path, name, value, "the path of a file or folder")
    return path


def checked_array(name: str, value: object) -> np.ndarray:
    """`value` as an array of any type, or a ValueError."""
    expect(not np.ma.is_masked(value), name, value, "no masked values; leave out what is missing")
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        raise ValueError(f"{name} = {shown(value)}: expected an array") from None


def checked_numbers(name: str, value: object) -> np.ndarray:
    """`value` as float64 numbers whose squares and sums do not overflow, or a ValueError."""
    numbers = checked_array(name, value)
    expect(numbers.dtype.kind in "biuf", name, value, f"real numbers, got dtype {numbers.dtype}")
    numbers = numbers.astype(float)
    is_complete = (np.abs(numbers) < LARGEST).all()
    expected = f"numbers below {LARGEST:g}, none NaN; leave out what is missing"
    expect(is_complete, name, value, expected)
    return numbers


def checked_noise(noise: object, most: float, batch: int | None = None) -> np.ndarray:
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


def plain(value: Any) -> Any:  # noqa: ANN401 - a table of any shape
    """Tables and lists with numpy arrays and numbers replaced by Python types, for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value
