"""Estimates: numbers with confidence intervals, and how they are written.

A number with its interval is (value, low, high), along the last axis of arrays, the dim `estimate`
of datasets. `Estimate` holds one such number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import expect

ESTIMATE = ["value", "low", "high"]
"""Labels of the dim `estimate`: a number and the ends of its interval."""


class Estimate(NamedTuple):
    """A number with a confidence interval; NaN if the number or the interval does not exist."""

    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        """The number and its interval, with two digits of half the width.

        >>> Estimate(0.73121, 0.71834, 0.74408), Estimate(8.0, 8.0, 8.0)
        (0.731 [0.718, 0.744], 8 [8, 8])
        """
        half = (self.high - self.low) / 2
        if not 0 < half < math.inf:
            return format(self, ".4g")
        places = max(0, 1 - math.floor(math.log10(half)))
        is_long = places > 6 or max(map(abs, self)) > 1e6
        return format(self, ".4g" if is_long else f".{places}f")

    def __format__(self, form: str) -> str:
        """The number and the ends of its interval, each with the given format.

        >>> f"{Estimate(0.73121, 0.71834, 0.74408):+.2f}"
        '+0.73 [+0.72, +0.74]'
        """
        if not form:
            return repr(self)
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def _repr_html_(self) -> str:
        value, _, ends = repr(self).partition(" ")
        return f'<b>{value}</b> <span style="opacity: 0.7">{ends}</span>'


def with_interval(
    values: ArrayLike | Sequence[float | None], form: str = ".3g", none: str = "none"
) -> str:
    """A number with its interval as text; `none` if there is no number.

    >>> with_interval((0.7312, 0.7184, 0.7441)), with_interval((0.7312, np.nan, np.nan), ".2f")
    ('0.731 [0.718, 0.744]', '0.73')
    >>> with_interval((-1e-9, -0.2, 0.2))  # a mean of 0, and the rounding of its terms
    '0 [-0.2, 0.2]'
    """
    number = Estimate(*np.asarray(values, float).tolist())
    if abs(number.value) < 1e-6 * (number.high - number.low):
        number = number._replace(value=0.0)
    if not np.isfinite(number.value):
        return none
    has_interval = np.isfinite(number).all()
    return format(number, form) if has_interval else format(number.value, form)


def with_ends(ds: xr.Dataset, name: str) -> np.ndarray:
    """A variable and the ends `low` and `high` of its intervals, as results of measures have
    them, along a new last axis.
    """
    return np.stack([ds[key] for key in (name, "low", "high")], -1)


def checked_share(name: str, value: object) -> float:
    """A number between 0 and 1, such as the confidence of an interval or the false-alarm rate of
    a test, or a ValueError.
    """
    share = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        share = value
    expect(0 < share < 1, name, value, "a number between 0 and 1")
    return float(share)
