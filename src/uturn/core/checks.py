"""Checks of numbers and arrays among arguments. Errors name the argument, its value, and the
expected values.
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np

from uturn.core.messages import shown

LARGEST = np.float64(1e100)
"""Largest number whose squares and their sums are far from the largest float64."""


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
