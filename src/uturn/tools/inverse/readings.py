"""The readings of the probe `posterior`: what each shows, and the tests of one at a noise level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uturn.measures.estimates import Estimate

POSTERIOR = "posterior"
"""The family of the readings that judge a sampler."""
BESIDE = "beside"
"""The readings that are tested beside the family, with a false-alarm rate of their own."""
UNTESTED = "untested"
"""Readings whose value is compared with what exact draws give, without a test."""
RANKS_OF = "ranks of "
"""How the name of a test begins that compares the ranks of a reading, not its means."""


@dataclass(frozen=True)
class Reading:
    """A reading of the probe `posterior`."""

    name: str
    label: str
    """What it is called in tables and pictures."""
    family: str
    """`POSTERIOR`, `BESIDE` or `UNTESTED`."""
    sees: str
    blind: str
    """What its tests cannot see."""
    above: str = ""
    """What an effect above 0 means: original minus clones, or a gap of the distance."""
    below: str = ""
    """What an effect below 0 means."""


_IGNORES = "a sampler that ignores y"
_BY_VALUE = f"{_IGNORES}; values drawn one by one"
_ALL = (
    Reading(
        "distance",
        "distance",
        POSTERIOR,
        sees="too narrow, too wide, wrong modes",
        blind=_BY_VALUE,
        above="clones too close together",
        below="clones too far apart",
    ),
    Reading(
        "same_component",
        "same class",
        POSTERIOR,
        sees="wrong weights of modes",
        blind=f"errors within a class; {_IGNORES}",
        above="clones agree too seldom",
        below="clones agree too often",
    ),
    Reading(
        "log_likelihood",
        "log p(y | x)",
        POSTERIOR,
        sees=f"{_IGNORES}, or fits its noise",
        blind="errors in what y does not determine",
        above="clones fit y too badly",
        below="clones fit y too well",
    ),
    Reading(
        "log_prior",
        "log p(x)",
        POSTERIOR,
        sees="too narrow, too wide, shifted, values drawn one by one",
        blind=f"{_IGNORES}; wrong weights of the modes",
        above="clones too improbable",
        below="clones too probable",
    ),
    Reading(
        "reference_distance",
        "distance to r(y) (TARP)",
        BESIDE,
        sees="shifts",
        blind="errors that keep the distances to the reference",
        above="clones too near to r(y)",
        below="clones too far from r(y)",
    ),
    Reading(
        "mean_value",
        "mean of values",
        BESIDE,
        sees="shifts of the mean",
        blind="errors that keep the mean of the values",
        above="clones too low",
        below="clones too high",
    ),
    Reading("coverage", "coverage", UNTESTED, sees="too narrow, too wide", blind=_BY_VALUE),
    Reading("z_squared", "squared error", UNTESTED, sees="too narrow, too wide", blind=_BY_VALUE),
)
READINGS = {reading.name: reading for reading in _ALL}
"""All readings by name, in the order of tables."""


def plain_name(variable: str) -> str:
    """The name in `READINGS` of a variable of a run: "same_component" also for the class by a
    classifier, `<probe>_same_class`.
    """
    return "same_component" if variable.endswith("same_class") else variable


def label_of(test: str) -> str:
    """What a variable of a run, or the test of its ranks, is called in tables and pictures.

    >>> label_of("ranks of log_prior"), label_of("classifier_same_class"), label_of("mean_color")
    ('ranks of log p(x)', 'same class', 'mean color')
    """
    variable = test.removeprefix(RANKS_OF)
    start = RANKS_OF if variable != test else ""
    reading = READINGS.get(plain_name(variable))
    return f"{start}{reading.label if reading else variable.replace('_', ' ')}"


@dataclass(frozen=True)
class TestedReading:
    """The tests of one reading at one noise level: of means, and of ranks."""

    variable: str
    """Its name in the run."""
    effect: Estimate
    """Original minus clones, in `unit`; of the distance, the relative gap."""
    unit: str
    visible: float
    """Size of an effect that the test of means detects with a probability of about one half."""
    p: float
    """p-value of the means, not adjusted."""
    p_holm: float
    rank_p: float
    """p-value of the ranks, not adjusted; NaN if the reading has no ranks."""
    rank_p_holm: float
    variance: float
    """Variance of the reading among originals; NaN if it compares two data."""

    @property
    def reading(self) -> Reading:
        return READINGS[plain_name(self.variable)]

    @property
    def least_p(self) -> float:
        """The smaller of both adjusted p-values."""
        return float(np.nanmin([self.p_holm, self.rank_p_holm]))

    @property
    def relative_size(self) -> float:
        """Size of the effect over the size that is detected; -1 if there is no such ratio."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = float(np.abs(np.divide(self.effect.value, self.visible)))
        return -1.0 if np.isnan(ratio) else ratio


@dataclass(frozen=True)
class UntestedReading:
    """The value of a reading without a test at one noise level, and what exact draws give."""

    variable: str
    value: Estimate
    expected: float

    @property
    def reading(self) -> Reading:
        return READINGS[self.variable]
