"""Verdicts: a number of a figure with its interval, the expectation of theory or of the paper, and
the rules that compare them.

A rule compares numbers and describes the comparison; `verdict` joins the rules that a quantity has
to pass. NaN and empty lists of numbers pass no rule. A number that no theory predicts precisely is
shown without judgement (`shows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.measures.estimates import ESTIMATE as ESTIMATE
from uturn.measures.estimates import Estimate
from uturn.measures.intervals import mean_interval
from uturn.measures.replicates import replicates
from uturn.pages.verdicts import Verdict as Verdict


def listed(bounds: ArrayLike) -> list[Estimate]:
    """The estimates in an array (.., 3) of numbers and ends of intervals."""
    return [Estimate(*row) for row in np.asarray(bounds, float).reshape(-1, 3).tolist()]


def estimates(
    values: xr.DataArray, statistic: Callable[[np.ndarray], ArrayLike], confidence: float = 0.95
) -> list[Estimate]:
    """As `uturn.statistics.estimate`, of a statistic that gives several numbers."""
    return listed(replicates(values).interval(statistic, confidence))


def mean_estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean of independent numbers with its interval of Student's t."""
    return Estimate(*mean_interval(values, confidence).tolist())


def numbers(values: Iterable[float | Estimate], form: str, *, between: str = ", ") -> str:
    """Numbers, or estimates with their intervals, in one format, joined.

    >>> numbers([0.25, 1], "+.1f")
    '+0.2, +1.0'
    """
    return between.join(format(value, form) for value in values)


class Rule(NamedTuple):
    """The outcome of a comparison, and its description."""

    passed: bool
    text: str


def verdict(quantity: str, measured: object, expected: str, *rules: Rule) -> Verdict:
    """A verdict that passes if all of its rules pass; `measured` is turned into text."""
    text = "; ".join(rule.text for rule in rules if rule.text)
    passed = bool(rules) and all(rule.passed for rule in rules)
    return Verdict(quantity, str(measured), expected, passed, text)


def shows(quantity: str, measured: object, expected: str) -> Verdict:
    """A number beside its expectation that is shown but not judged: it neither passes nor fails."""
    return Verdict(quantity, str(measured), expected, None, "shown, not judged")


def vanishes(
    quantity: str,
    differences: ArrayLike,
    expected: str = "0",
    single: bool = False,
    prefix: str = "",
) -> Verdict:
    """A verdict on differences that are 0 up to the rounding of double or single precision."""
    measured = prefix + numbers(np.atleast_1d(differences), ".1e", between="; ")
    if single:
        rule = below(differences, 1e-5, "below 1e-5 (single precision)")
    else:
        rule = below(differences, 1e-12, "below 1e-12 (double precision)")
    return verdict(quantity, measured, expected, rule)


def below(values: ArrayLike, limit: ArrayLike, text: str | None = None) -> Rule:
    """Every value is below the limit: one number, or one for each value, which then needs a
    text.
    """
    is_below = np.asarray(values, float) < limit
    return Rule(_all(is_below), _text_or("below", limit, text))


def above(values: ArrayLike, limit: ArrayLike, text: str | None = None) -> Rule:
    """Every value is above the limit: one number, or one for each value, which then needs a
    text.
    """
    is_above = np.asarray(values, float) > limit
    return Rule(_all(is_above), _text_or("above", limit, text))


def at_least(value: float, limit: float) -> Rule:
    return Rule(_all(value >= limit), f">= {limit:g}")


def within(deviations: ArrayLike, tolerance: ArrayLike, text: str | None = None) -> Rule:
    """Every deviation is smaller in size than the tolerance: one number, or one for each
    deviation, which then needs a text.
    """
    is_within = np.abs(np.asarray(deviations, float)) < tolerance
    return Rule(_all(is_within), _text_or("within", tolerance, text))


def _text_or(comparison: str, limit: ArrayLike, text: str | None) -> str:
    """The description of a rule, by default the comparison with its one limit."""
    return f"{comparison} {float(np.asarray(limit)):g}" if text is None else text


def equal(values: ArrayLike, wanted: ArrayLike, text: str = "equal") -> Rule:
    """Every value is the wanted one."""
    return Rule(_all(np.asarray(values) == wanted), text)


def holds(
    intervals: Estimate | Sequence[Estimate], values: ArrayLike, width: ArrayLike, text: str
) -> Rule:
    """Every interval contains its value and is narrower than `width`, since a wide interval would
    agree with anything.

    `width`: one number, or one for each interval.
    """
    _, low, high = np.array(intervals, float).reshape(-1, 3).T
    held = (low <= values) & (high >= values) & (high - low < width)
    return Rule(_all(held), text)


def meets(interval: Estimate, low: float, high: float, text: str) -> Rule:
    """An interval overlaps a range and is narrower than it; a wide interval would agree with
    anything.
    """
    return Rule(
        interval.high >= low and interval.low <= high and interval.high - interval.low < high - low,
        text,
    )


def apart(lower: Estimate, higher: Estimate, text: str) -> Rule:
    """Two intervals do not overlap, and their order is the expected one."""
    return Rule(lower.high < higher.low, text)


def increasing(
    estimates: Sequence[Estimate], text: str = "increasing; first and last intervals apart"
) -> Rule:
    """Each number is larger than the one before, and the first and the last interval do not
    overlap.
    """
    rises = all(a.value < b.value for a, b in pairwise(estimates))
    return Rule(rises and apart(estimates[0], estimates[-1], "").passed, text)


def decreasing(
    estimates: Sequence[Estimate], text: str = "decreasing; first and last intervals apart"
) -> Rule:
    """Each number is smaller than the one before, and the first and the last interval do not
    overlap.
    """
    return increasing(estimates[::-1], text)


def _all(comparison: ArrayLike | bool) -> bool:
    return bool(np.size(comparison) and np.all(comparison))
