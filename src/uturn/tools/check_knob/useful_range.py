"""The range over which a knob changes its outputs, and the value for a wanted change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from uturn.measures.estimates import Estimate

_RESAMPLES = 999


@dataclass(frozen=True)
class UsefulRange:
    """Values of the knob at which 5 % and 95 % of the change are made."""

    low: Estimate
    high: Estimate


def risen_by(curve: np.ndarray) -> np.ndarray:
    """Change beyond that at the first value, (knob, original); of a curve that falls, its fall."""
    risen = curve - curve[0]
    return np.asarray(risen if risen[-1].mean() >= 0 else -risen)


def reached(knobs: np.ndarray, means: np.ndarray, height: float) -> float:
    """The value at which a curve first reaches a height, by linear interpolation; NaN if it does
    not.
    """
    rising = np.maximum.accumulate(means)
    if rising[-1] < height:
        return float("nan")
    k = int(np.argmax(rising >= height))
    if k == 0:
        return float(knobs[0])
    part = (height - rising[k - 1]) / (rising[k] - rising[k - 1])
    return float(knobs[k - 1] + part * (knobs[k] - knobs[k - 1]))


def useful_range(
    knobs: np.ndarray, risen: np.ndarray, generator: np.random.Generator
) -> UsefulRange:
    """The values at which 5 and 95 % of the change `risen` (knob, original) are made."""
    drawn = _resampled(risen, generator)
    estimates = []
    for share in (0.05, 0.95):
        value = reached(knobs, risen.mean(1), share * float(risen[-1].mean()))
        values = [reached(knobs, means, share * means[-1]) for means in drawn if means[-1] > 0]
        estimates.append(_interval(value, np.array(values), risen.shape[1]))
    return UsefulRange(*estimates)


def value_for(
    knobs: np.ndarray, curve: np.ndarray, change: float, generator: np.random.Generator
) -> Estimate:
    """The value with a mean change, in units of the distance of two originals; NaN if no value
    has it.
    """
    value = reached(knobs, curve.mean(1), change)
    values = [reached(knobs, means, change) for means in _resampled(curve, generator)]
    return _interval(value, np.array(values), curve.shape[1])


def _resampled(curves: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means over originals that are drawn again, (resample, knob)."""
    count = curves.shape[1]
    return np.asarray(curves[:, generator.integers(count, size=(_RESAMPLES, count))].mean(2).T)


def _interval(value: float, drawn: np.ndarray, originals: int) -> Estimate:
    """A 95 % interval from quantiles of resampled values, which are moved outwards as Student's t
    and the factor sqrt(n / (n - 1)) of small samples ask (Hesterberg, arXiv:1411.5279, section
    4.1).
    """
    finite = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or len(finite) < 0.9 * len(drawn):
        return Estimate(value, np.nan, np.nan)
    deviations = np.sqrt(originals / (originals - 1)) * stdtrit(originals - 1, 0.975)
    tail = float(ndtr(-deviations))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
