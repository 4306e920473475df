"""Tests of the curve of change against the knob: identity, responds, monotone, range, plateaus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pydantic import JsonValue

from uturn.measures.estimates import with_interval
from uturn.tools.check_knob.evidence import EQUAL, Evidence
from uturn.tools.check_knob.findings import Chance, Finding, Found, Untested, mean_of
from uturn.tools.check_knob.randomisation import Relabellings
from uturn.tools.check_knob.useful_range import risen_by, useful_range


@dataclass(frozen=True)
class Limits:
    """What is tolerated, in units of the distance of two originals."""

    start: float = 0.1
    """Change at the start, where codec and autoencoder may have changed the original."""
    floor: float = 0.01
    """Distance at the start from a measured floor."""
    fall: float = 0.02
    """Fall of the change between two values."""
    inert: float = 0.05
    """Range of the change below which a knob does nothing."""
    cliff: float = 2 / 3
    """Share of the change that one narrow step of the knob may hold."""
    narrow: float = 0.2
    """Share of the travel of the knob up to which a step is narrow."""


LIMITS = Limits()


def identity(evidence: Evidence, relabellings: Relabellings, has_floor: bool) -> Finding:
    """Whether the start changes nothing."""
    if evidence.from_floor is None or evidence.start is None:
        return Untested("no outputs at the start, knob 0")
    distance = evidence.from_floor.mean(1)
    tolerated = (LIMITS.floor if has_floor else LIMITS.start) * evidence.apart_of_each
    p = float(relabellings.sign_flips((distance - tolerated)[:, None])[0])
    whose = "the floor" if has_floor else "their originals"
    estimate = mean_of(distance)
    result = f"at {evidence.knobs[evidence.start]:.3g} outputs differ from {whose} by"
    remark = ""
    if evidence.from_floor.max() > EQUAL and not has_floor and estimate.value <= LIMITS.start:
        remark = "codec or autoencoder? floor=.. takes them out"
    return Chance(p, f"{result} {with_interval(estimate)}", estimate, remark=remark)


def responds(evidence: Evidence, relabellings: Relabellings, rate: float) -> Finding:
    """Whether the change depends on the knob at all."""
    inner = evidence.inner
    changes = evidence.change[inner].reshape(len(inner), -1)
    p = relabellings.permuted_knob(changes)
    low = float(evidence.means[inner].min())
    high = float(evidence.means[inner].max())
    fails = p > rate or high - low < LIMITS.inert
    result = f"change goes from {low:.3g} to {high:.3g}"
    if fails and low > 0.8:
        result += ": always as far as another original"
    elif fails and high < LIMITS.inert:
        result += ": nothing ever changes"
    elif fails:
        result += ": the knob does nothing"
    return Found(fails, result, p, numbers={"low": low, "high": high})


def monotone(evidence: Evidence, relabellings: Relabellings) -> Finding:
    """Whether the change falls between two values."""
    pairs = list(combinations(range(len(evidence.knobs)), 2))
    curve = evidence.curve
    falls = np.stack([curve[first] - curve[last] for first, last in pairs], axis=1)
    p = float(relabellings.sign_flips(falls - LIMITS.fall).min())
    worst = int(np.argmax(falls.mean(0)))
    first, last = pairs[worst]
    estimate = mean_of(falls[:, worst])
    if estimate.value <= LIMITS.fall:
        return Chance(p, f"the largest fall is {max(0, estimate.value):.2g}", estimate)
    means = evidence.means
    shape = "inverted" if means[-1] < means[0] - LIMITS.fall else "turns"
    places = [float(evidence.knobs[first]), float(evidence.knobs[last])]
    result = (
        f"{shape}: change falls by {with_interval(estimate)} from {places[0]:.3g} to"
        f" {places[1]:.3g}"
    )
    return Chance(p, result, estimate, numbers={"from": places[0], "to": places[1]})


def knob_range(
    evidence: Evidence, relabellings: Relabellings, generator: np.random.Generator
) -> Finding:
    """Over which values the change rises, and whether one narrow step holds nearly all of it."""
    risen = risen_by(evidence.curve)
    if risen[-1].mean() <= LIMITS.inert:
        return Untested("no change between the first and the last value")
    knobs = evidence.knobs
    found = useful_range(knobs, risen, generator)
    steps = np.diff(risen, axis=0)
    widths = np.abs(np.diff(knobs))
    is_narrow = widths <= LIMITS.narrow * abs(knobs[-1] - knobs[0]) + 1e-9
    p = 1.0
    if is_narrow.any():
        excess = (steps - LIMITS.cliff * risen[-1])[is_narrow].T
        p = float(relabellings.sign_flips(excess).min())
    steep = int(np.argmax(steps.mean(1)))
    share = float(steps[steep].mean() / risen[-1].mean())
    result = (
        f"5 to 95 % of the change from {with_interval(found.low)} to {with_interval(found.high)};"
        f" {share:.0%} of it between {knobs[steep]:.3g} and {knobs[steep + 1]:.3g}"
    )
    ends: dict[str, JsonValue] = {
        "low": [*found.low],
        "high": [*found.high],
        "steepest": share,
    }
    remark = "a true transition is steep too" if share > LIMITS.cliff else ""
    return Chance(p, result, numbers=ends, remark=remark)


def plateaus(evidence: Evidence) -> Finding:
    """Whether neighbouring values give identical outputs."""
    knobs = evidence.knobs
    if evidence.neighbours is None:
        distances = np.abs(np.diff(evidence.change, axis=0))
    else:
        distances = evidence.neighbours
    equal = (distances <= EQUAL).all((1, 2))
    places = [f"{knobs[k]:.3g} = {knobs[k + 1]:.3g}" for k in np.flatnonzero(equal)]
    result = f"{len(knobs) - equal.sum()} of {len(knobs)} values are distinct"
    if places:
        result += f": {', '.join(places)}"
    pairs: list[JsonValue] = [[float(knobs[k]), float(knobs[k + 1])] for k in np.flatnonzero(equal)]
    return Found(bool(equal.any()), result, numbers={"equal": pairs})
