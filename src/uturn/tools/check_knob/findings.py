"""What a test of a knob finds, before the random tests are judged together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import JsonValue
from scipy.special import stdtrit

from uturn.measures.estimates import Estimate


@dataclass(frozen=True)
class Found:
    """The result of a test without chance."""

    fails: bool
    result: str
    p: float | None = None
    """p-value, if it is judged by itself."""
    measured: Estimate | None = None
    numbers: Mapping[str, JsonValue] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Chance:
    """The result of a random test, which is judged with the others."""

    p: float
    """p-value of this test alone."""
    result: str
    measured: Estimate | None = None
    numbers: Mapping[str, JsonValue] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Untested:
    """A test that could not be made."""

    reason: str


Finding = Found | Chance | Untested


def mean_of(values: np.ndarray) -> Estimate:
    """Mean over originals with the 95 % interval of Student's t, of values (original,)."""
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    centre = float(values.mean())
    return Estimate(centre, float(centre - half), float(centre + half))
