"""Tests of the outputs themselves: scale, independence, unit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydantic import JsonValue

from uturn.measures.estimates import Estimate, with_interval
from uturn.tools.check_knob.evidence import Evidence, Shift
from uturn.tools.check_knob.findings import Chance, Finding, Untested, mean_of
from uturn.tools.check_knob.kinds import Form
from uturn.tools.check_knob.randomisation import Relabellings

_LEAK = 0.01
"""The own original may be closer than others by this share."""
_ABOVE = 0.1
"""The change may be above its largest expectation by this share."""


class Unit(StrEnum):
    """What the stated noise of a value is."""

    SIGMA = "sigma"
    """Standard deviation of the added noise, in units of the data."""
    SHARE = "share"
    """Share of positions that are replaced or masked."""


@dataclass(frozen=True)
class Stated:
    """The noise that a knob is said to add."""

    unit: Unit
    noise: np.ndarray
    """At each value, (knob,)."""


@dataclass(frozen=True)
class _Column:
    """One reading at one value, in one direction, less what is tolerated."""

    shift: Shift
    knob: int
    excess: np.ndarray


def scale(evidence: Evidence, relabellings: Relabellings) -> Finding:
    """Whether contrast, mean and roughness of the outputs are those of the originals."""
    if not evidence.shifts:
        return Untested("such data have no contrast, mean or roughness")
    columns = _columns(evidence)
    p = relabellings.sign_flips(np.stack([column.excess for column in columns], axis=1))
    sizes = np.array([column.excess.mean() for column in columns])
    clear = p <= max(0.01, float(p.min()))
    worst = int(np.argmax(np.where(clear, sizes, -np.inf)))
    shift = columns[worst].shift
    k = columns[worst].knob
    estimate = _printed(shift, mean_of(shift.values[k]))
    reading = shift.reading
    result = (
        f"{reading.name} {with_interval(estimate)} {reading.form.value} that of originals at"
        f" {evidence.knobs[k]:.3g}"
    )
    numbers: dict[str, JsonValue] = {"reading": reading.name, "knob": float(evidence.knobs[k])}
    for each in evidence.shifts:
        moved: list[JsonValue] = [_printed(each, mean_of(row)).value for row in each.values]
        numbers[each.reading.name] = moved
    return Chance(float(p.min()), result, estimate, numbers, _of_few_steps(evidence))


def _columns(evidence: Evidence) -> list[_Column]:
    means = evidence.means
    columns = []
    for shift in evidence.shifts:
        reading = shift.reading
        for k in evidence.inner:
            is_far = means[k] > means.max() / 2
            fall = reading.far_fall if is_far and reading.far_fall is not None else reading.fall
            columns.append(_Column(shift, k, shift.values[k] - _tolerated(shift, reading.rise)))
            if fall is not None:
                columns.append(_Column(shift, k, -shift.values[k] - _tolerated(shift, -fall)))
    return columns


def _tolerated(shift: Shift, change: float) -> float:
    """Size of a tolerated change in the unit of a shift."""
    if shift.reading.form is Form.RATIO:
        return abs(float(np.log1p(change)))
    return abs(change)


def _printed(shift: Shift, moved: Estimate) -> Estimate:
    if shift.reading.form is Form.SHIFT:
        return moved
    return Estimate(*np.exp(moved).tolist())


def _of_few_steps(evidence: Evidence) -> str:
    """A remark on contrast that is lost at large noise, which is not judged."""
    for shift in evidence.shifts:
        if shift.reading.far_fall is None or shift.reading.fall is None:
            continue
        k = int(np.argmin(shift.values.mean(1)))
        moved = mean_of(shift.values[k])
        if moved.high < np.log1p(-shift.reading.fall):
            lost = 1 - np.exp(moved.value)
            return (
                f"{shift.reading.name} falls by {lost:.0%} at {evidence.knobs[k]:.3g}: few steps do"
                " this; own_outputs=True tells"
            )
    return ""


def independence(evidence: Evidence, relabellings: Relabellings) -> Finding:
    """Whether outputs at the end have forgotten their original."""
    if evidence.end is None:
        return Untested("no outputs at the end, knob 1")
    if evidence.to_originals is None:
        return Untested("it compares originals with each other, and theirs differ in size")
    distances = evidence.to_originals
    count = distances.shape[1]
    labels = np.zeros(count) if evidence.labels is None else evidence.labels
    largest = relabellings.matchings(distances, labels)
    is_other = (labels[:, None] == labels) & ~np.eye(count, dtype=bool)
    if not is_other.any():
        return Untested("every original has a label of its own")
    d = distances[largest.index]
    ratio = float(np.diag(d).mean() / d[is_other].mean())
    kind = evidence.kinds[largest.index]
    result = (
        f"at {evidence.knobs[evidence.end]:.3g} the own original is at {ratio:.3f} of the distance"
        f" of others ({kind})"
    )
    p = largest.p if ratio < 1 - _LEAK else 1.0
    return Chance(p, result, numbers={"ratio": ratio, "distance": kind})


def unit(evidence: Evidence, relabellings: Relabellings, stated: Stated | None) -> Finding:
    """Whether the change is at most what the stated noise allows: for draws from the posterior,
    the mean square change is at most 2 sigma^2, and at most the noised share of tokens changes.
    """
    if stated is None:
        return Untested("the noise of each value is not stated: unit=.., stated=..")
    inner = evidence.inner
    own = evidence.change[inner] * evidence.apart
    if stated.unit is Unit.SIGMA:
        limit = 2 * stated.noise[inner] ** 2
        values = (own**2).mean(2)
        what = "2 sigma^2"
    else:
        limit = stated.noise[inner]
        values = own.mean(2)
        what = "the noised share"
    p = float(relabellings.sign_flips((values - (1 + _ABOVE) * limit[:, None]).T).min())
    over = values.mean(1) / np.maximum(limit, 1e-12)
    worst = int(np.argmax(over))
    result = f"change is at most {over[worst]:.2g} times {what}"
    result += f" (at {evidence.knobs[inner[worst]]:.3g})"
    return Chance(p, result, numbers={"times": over.tolist()})
