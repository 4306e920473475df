"""Checks of arguments that several modules share: errors that name the value and say what was expected."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def checked_integer(name: str, value: Any, least: int) -> int:
    """`value` as an int >= least, or a ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} = {value!r}: expected an integer >= {least}")
    return number


def checked_noise(noise: Any, most: float, batch: int | None = None) -> np.ndarray:
    """Noise levels as float64, all in [0, most], or a ValueError."""
    try:
        levels = np.asarray(noise, float)
    except (TypeError, ValueError):
        raise ValueError(f"noise = {noise!r}: expected numbers in [0, {most}]") from None
    if batch is not None and levels.shape not in ((), (batch,)):
        raise ValueError(f"noise has shape {levels.shape}; expected a scalar or one level per sample, ({batch},)")
    bad = ~((levels >= 0) & (levels <= most))
    if bad.any():
        raise ValueError(f"noise = {levels[bad].flat[0]}: expected a level in [0, {most}]")
    return levels


def one_line(error: BaseException) -> str:
    """What an error says, short enough to be quoted in another one."""
    return " ".join(str(error).split())[:160] or type(error).__name__
