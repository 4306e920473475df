"""The kinds of errors of a posterior sampler, and the rules that name one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from uturn.tools.inverse.readings import RANKS_OF, TestedReading


class Kind(StrEnum):
    """The kind of error that the tests of a noise level name."""

    DEAF = "deaf to the data"
    SHIFTED = "shifted"
    TOO_SURE = "too sure"
    NOT_SURE = "not sure enough"
    WRONG_MODES = "wrong modes"
    UNLIKE = "unlike the data"
    OTHER = "some other error"
    """A test rejects, and no rule names the error."""
    NONE_SEEN = "none seen"
    """No test rejects."""


KINDS = {
    Kind.DEAF: "clones fit the measurement far worse than the original does",
    Kind.SHIFTED: "clones have another mean than the originals",
    Kind.TOO_SURE: "clones are closer to each other, or to the measurement, than to the original",
    Kind.NOT_SURE: "clones are farther from each other than from the original",
    Kind.WRONG_MODES: "clones share a class more or less often than the original does with them",
    Kind.UNLIKE: ("clones have another probability than the originals, but their spread is right"),
}
"""What each kind of error means, in the order of tables."""


# --- what the rules ask ---------------------------------------------------------------------------

_CLEAR = 0.05
"""p-value up to which an effect counts in the choice of the kind."""
_MATTERS = 0.03
"""Relative gap of the distance, or difference of shares, from which on it counts."""
_SMALL = 0.1
"""Relative gap of the distance below which clones can be deaf."""
_HALF_WIDTHS = 1.5
"""A mean is shifted if it differs from 0 by more than this many half-widths of its interval."""


@dataclass(frozen=True)
class Evidence:
    """The effects at one noise level. Except for `distance`, an effect that is not clear is 0.

    A log-density that is lower by its variance among originals, about half the number of values
    that count, has a relative size of 1. Clones whose errors have c^2 times the right variance have
    about c^2 - 1.
    """

    distance: float = 0.0
    """Relative gap of the distance, above 0 if clones are closer to each other than to the
    original.
    """
    spread: float = 0.0
    """The relative gap of the distance if it is clear and large enough to matter."""
    improbable: float = 0.0
    """How much less probable clones are than originals, log p(x) over its variance."""
    misfit: float = 0.0
    """How much worse clones fit the measurement, log p(y | x) over its variance."""
    modes: float = 0.0
    """Size of the difference of the shares of one class."""
    is_shifted: bool = False
    """Whether the test of the mean value rejects, with an effect far from 0."""

    @classmethod
    def of(cls, readings: Sequence[TestedReading], level: float) -> Evidence:
        by_name = {tested.reading.name: tested for tested in readings}
        distance = by_name.get("distance")
        spread = _clear_effect(distance)
        return cls(
            distance=0.0 if distance is None else distance.effect.value,
            spread=spread if abs(spread) >= _MATTERS else 0.0,
            improbable=_relative_effect(by_name.get("log_prior")),
            misfit=_relative_effect(by_name.get("log_likelihood")),
            modes=abs(_clear_effect(by_name.get("same_component"))),
            is_shifted=_is_far_from_0(by_name.get("mean_value"), level),
        )


def _clear_effect(tested: TestedReading | None) -> float:
    """The effect of a reading if its p-value is small, otherwise 0."""
    if tested is None or not tested.p <= _CLEAR:
        return 0.0
    return tested.effect.value


def _relative_effect(tested: TestedReading | None) -> float:
    """The clear effect of a log-density over its variance; infinite if originals have only one
    value.
    """
    if tested is None or not tested.p <= _CLEAR:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(tested.effect.value, tested.variance))


def _is_far_from_0(tested: TestedReading | None, level: float) -> bool:
    if tested is None or not tested.p_holm <= level:
        return False
    value, low, high = tested.effect
    return abs(value) > _HALF_WIDTHS * (high - low) / 2


# --- the rules ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A kind of error, and the evidence that names it."""

    kind: Kind
    holds: Callable[[Evidence], bool]


RULES = (
    Rule(Kind.DEAF, lambda seen: seen.misfit > 1 and abs(seen.distance) < _SMALL),
    Rule(Kind.SHIFTED, lambda seen: seen.is_shifted),
    Rule(Kind.UNLIKE, lambda seen: seen.improbable > 3 and abs(seen.distance) < 2 * _SMALL),
    Rule(Kind.WRONG_MODES, lambda seen: seen.modes >= _MATTERS and seen.modes > abs(seen.spread)),
    Rule(Kind.NOT_SURE, lambda seen: seen.spread < 0),
    Rule(Kind.TOO_SURE, lambda seen: seen.spread > 0 or seen.improbable < 0),
    Rule(Kind.NOT_SURE, lambda seen: seen.improbable > 0 and seen.misfit > 0),
    Rule(Kind.UNLIKE, lambda seen: seen.improbable > 0),
    Rule(Kind.DEAF, lambda seen: seen.misfit > 0),
    Rule(Kind.TOO_SURE, lambda seen: seen.misfit < 0),
)
"""The first rule that holds names the kind, where a test rejects. They were chosen on trial
samplers; benchmarks/README.md has their error rates.
"""


def kind_of(readings: Sequence[TestedReading], level: float) -> Kind:
    """The kind of error at one noise level; `level`: the false-alarm rate of the tests."""
    if not any(tested.least_p <= level for tested in readings):
        return Kind.NONE_SEEN
    evidence = Evidence.of(readings, level)
    for rule in RULES:
        if rule.holds(evidence):
            return rule.kind
    return Kind.OTHER


def decisive_test(readings: Sequence[TestedReading], level: float) -> str:
    """The test that rejects most clearly: of means, or "ranks of NAME" if no test of means rejects;
    "" if none does.

    Relabellings bound p-values of means from below, so of equal ones the larger effect decides.
    """
    by_means = [tested for tested in readings if tested.p_holm <= level]
    if by_means:
        return min(by_means, key=lambda tested: (tested.p_holm, -tested.relative_size)).variable
    by_ranks = [tested for tested in readings if tested.rank_p_holm <= level]
    if by_ranks:
        clearest = min(by_ranks, key=lambda tested: (tested.rank_p_holm, -tested.relative_size))
        return f"{RANKS_OF}{clearest.variable}"
    return ""
