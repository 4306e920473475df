"""Tests of calls and seeds: memory, seed, shared noise. The other tests rest on them."""

from __future__ import annotations

from uturn.tools.check_knob.evidence import EQUAL, Evidence
from uturn.tools.check_knob.findings import Chance, Finding, Found, Untested
from uturn.tools.check_knob.randomisation import Relabellings

_INERT = 0.02
"""Largest change below which seeds have nothing to differ in."""


def memory(evidence: Evidence) -> Finding:
    """Whether a call gives the same after a call with another value."""
    repeated = evidence.repeated
    if repeated is None:
        return Untested("it needs a function: recorded outputs have no order")
    if not (repeated.of_seed <= repeated.allowed).all():
        return Untested("a seed does not repeat its output")
    moved = (repeated.of_memory > repeated.allowed) | (repeated.of_passes > repeated.allowed)
    kept = int((~moved).sum())
    result = f"{kept} of {len(moved)} calls give the same after a call with another value"
    return Found(bool(moved.any()), result, numbers={"kept": kept, "calls": len(moved)})


def seed(evidence: Evidence, is_deterministic: bool) -> Finding:
    """Whether two seeds differ, and one seed repeats its output."""
    k = evidence.top
    largest = float(evidence.means[k])
    if largest < _INERT:
        return Untested("the outputs do not change")
    repeated = evidence.repeated
    words = []
    fails = False
    if evidence.twins is not None:
        differ = evidence.twins[k]
        words.append(
            f"at {evidence.knobs[k]:.3g} two seeds differ by {differ.mean():.3g}, outputs and"
            f" originals by {largest:.3g}"
        )
        fails = not is_deterministic and bool((differ <= EQUAL).all())
    if repeated is not None:
        repeats = repeated.of_seed <= repeated.allowed
        words.append(f"{repeats.sum()} of {len(repeats)} calls repeat")
        fails = fails or not bool(repeats.all())
    if not words:
        return Untested("one seed, and no call was repeated")
    return Found(fails, "; ".join(words))


def shared_noise(evidence: Evidence, relabellings: Relabellings) -> Finding:
    """Whether outputs of two originals are closer with one seed than with two."""
    if evidence.twins is None:
        return Untested("it needs two seeds of each original")
    if evidence.gains is None or evidence.with_two is None:
        return Untested("it compares originals with each other, and theirs differ in size")
    if (evidence.twins[evidence.top] <= EQUAL).all():
        return Untested("two seeds agree")
    largest = relabellings.swaps(evidence.gains)
    two = float(evidence.with_two[largest.index].sum())
    ratio = 1 - float(evidence.gains[largest.index].sum()) / max(two, 1e-300)
    result = f"with one seed, two outputs are {ratio:.3f} times as far apart as with two"
    return Chance(largest.p, result, numbers={"ratio": ratio})
