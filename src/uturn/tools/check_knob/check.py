"""`ut.check_knob`: the calls of a pipeline, eleven tests of its outputs, and their report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from pydantic import JsonValue

from uturn.core.checks import checked_integer, expect
from uturn.core.random import Purpose, keys
from uturn.measures.calibration import holm
from uturn.measures.estimates import Estimate, with_interval
from uturn.measures.report import Line, Report, Verdict, verdict_of
from uturn.tools.check_knob import tests_of_calls, tests_of_curve, tests_of_outputs
from uturn.tools.check_knob.calls import Plan, Turn, called, function_of, names_of
from uturn.tools.check_knob.evidence import Ends, Evidence, evidence_of
from uturn.tools.check_knob.findings import Chance, Finding, Found, Untested
from uturn.tools.check_knob.kinds import (
    Comparison,
    Kind,
    Measure,
    comparison_of,
    guessed_kind,
    pair_by_pair,
)
from uturn.tools.check_knob.outputs import Outputs
from uturn.tools.check_knob.randomisation import Relabellings
from uturn.tools.check_knob.tests_of_outputs import Stated, Unit
from uturn.tools.check_knob.useful_range import value_for

KNOBS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9, 1.0)
"""Values that are tried by default."""
RANDOM_TESTS = 7
"""Random tests that share the false-alarm rate."""
_DRAWS = 19_999
"""Relabellings of a random test."""


@dataclass(frozen=True)
class Described:
    """A test by name, and what it sees and misses."""

    name: str
    sees: str
    misses: str = ""


MEMORY = Described("memory", "a value that persists into the next call")
SEED = Described("seed", "a seed that is ignored, a clock in its place")
SHARED = Described("shared noise", "one stream of random numbers for all originals")
IDENTITY = Described("identity", "a step that is made at the start")
RESPONDS = Described("responds", "a knob that does nothing, or is infinite")
MONOTONE = Described("monotone", "an inverted knob, a turn", "turns between the values tried")
RANGE = Described("range", "a cliff: nearly all of the change within a narrow step")
PLATEAUS = Described("plateaus", "values that are rounded to the same one")
SCALE = Described("scale", "outputs that are louder, darker, noisier than their originals")
INDEPENDENCE = Described("independence", "a part of the original that is left at the end")
UNIT = Described("unit", "noise of another size than stated", "noise that is too small")


@dataclass(frozen=True)
class Choices:
    """How outputs are judged."""

    comparison: Comparison
    ends: Ends = field(default_factory=Ends)
    floor: Sequence[np.ndarray] | None = None
    labels: np.ndarray | None = None
    stated: Stated | None = None
    is_deterministic: bool = False
    wanted_change: float | None = None
    """Change whose value of the knob is asked for, in units of the distance of two originals."""
    false_alarm_rate: float = 0.001
    seed: int = 0


def check_knob(
    function: str | Turn | None = None,
    originals: ArrayLike | Sequence[np.ndarray] = (),
    *,
    outputs: ArrayLike | None = None,
    knobs: Sequence[float] = KNOBS,
    seeds: int = 2,
    kind: str | None = None,
    distance: Callable[[np.ndarray, np.ndarray], float] | None = None,
    start: float | None = 0.0,
    end: float | None = 1.0,
    floor: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    unit: str | None = None,
    schedule: Sequence[float] | None = None,
    deterministic: bool = False,
    change: float | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    false_alarm_rate: float = 0.001,
    progress: bool = False,
) -> Report:
    """Check whether the outputs of a pipeline change with its noise knob as they should.

    Every original is given to the pipeline at every value of the knob with every seed, in random
    order. Changes are distances of outputs from their originals, in units of the mean distance of
    two originals. Eleven tests judge them; the random ones together by Holm's method.

    Parameters
    ----------
    function : function (original, knob, seed) -> output, or "module:function"
        The pipeline. The output has the shape of the original.
    originals : array (originals, ...), or a list of arrays
    outputs : array (knob, original, seed, ...), optional
        Recorded outputs in place of a function. Tests of the order of calls are left out.
    knobs : values of the knob
    seeds : seeds of each original, the same at all values
    kind : "images", "series", "tokens" or "structures"
        By default it is guessed from the type and the axes of an original.
    distance : function (datum, datum) -> number
        In place of the distance of the kind. Readings of the outputs are then not tested.
    start, end : values that should change nothing, and forget the original; None without one
    floor : the originals after codec or autoencoder alone
    labels : what the pipeline is told of each original, such as its class, (originals,)
    unit, schedule : "sigma" or "share", and the noise at each value of the knob
    deterministic : whether two seeds may agree
    change : change whose value of the knob is asked for
    folder : where outputs are kept; a check that was stopped goes on from them
    false_alarm_rate : probability that a right knob fails in any of the random tests

    Raises
    ------
    ValueError
        For originals that are too few to fail, outputs of another shape, and wrong values.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> def blend(original, knob, seed):
    ...     noise = np.random.default_rng(seed).normal(size=original.shape)
    ...     return np.sqrt(1 - knob) * original + np.sqrt(knob) * noise
    >>> report = check_knob(blend, rng.normal(size=(16, 64)), knobs=(0, 0.25, 0.5, 0.75, 1))
    >>> report.passed, report["plateaus"].result
    (True, '5 of 5 values are distinct')
    >>> check_knob(lambda x, knob, seed: blend(x, 1 - knob, seed), rng.normal(size=(16, 64))).failed
    ('identity', 'monotone', 'independence')
    """
    expect((function is None) != (outputs is None), "function and outputs", "both or none", "one")
    data = [np.asarray(original) for original in originals]  # type: ignore[union-attr]
    check_rate(len(data), false_alarm_rate)
    checked_integer("seeds", seeds, 1)
    expect(kind is None or kind in list(Kind), "kind", kind, f"one of {', '.join(Kind)}")
    ends = Ends(start, end)
    if outputs is not None:
        made = Outputs.of(knobs, data, np.asarray(outputs), is_descending=ends.is_descending)
        name = "recorded outputs"
    else:
        assert function is not None
        name = function if isinstance(function, str) else getattr(function, "__name__", "function")
        turn = function_of(function) if isinstance(function, str) else function
        plan = Plan(np.asarray(knobs, float), tuple(data), names_of(data), seeds, seed)
        place = None if folder is None else Path(folder)
        made = called(
            turn, plan, name, folder=place, progress=progress, is_descending=ends.is_descending
        )
    comparison = comparison_of(Kind(kind or guessed_kind(data[0])), data[0].shape)
    if distance is not None:
        comparison = Comparison((Measure("distance", pair_by_pair(distance)),))
    choices = Choices(
        comparison,
        ends,
        floor=None if floor is None else [np.asarray(datum) for datum in np.asarray(floor)],
        labels=None if labels is None else np.asarray(labels),
        stated=_stated(unit, schedule, knobs, ends),
        is_deterministic=deterministic,
        wanted_change=change,
        false_alarm_rate=false_alarm_rate,
        seed=seed,
    )
    return judged(made, choices, name)


def check_rate(originals: int, false_alarm_rate: float) -> None:
    """ValueError for so few originals that no sign flip could fail: 2^-n is above the rate that
    each of the random tests has.
    """
    rate = false_alarm_rate
    expect(0 < rate < 1, "false_alarm_rate", rate, "a probability between 0 and 1")
    least = int(np.ceil(np.log2(RANDOM_TESTS / rate)))
    words = f"at least {least}; fewer cannot fail at a false-alarm rate of {rate:g}"
    expect(originals >= least, "number of originals", originals, words)
    expect(rate >= RANDOM_TESTS / _DRAWS, "false_alarm_rate", rate, f"{RANDOM_TESTS / _DRAWS:.2g}")


def _stated(
    unit: str | None, schedule: Sequence[float] | None, knobs: Sequence[float], ends: Ends
) -> Stated | None:
    if unit is None and schedule is None:
        return None
    expect(unit in list(Unit), "unit", unit, f"one of {', '.join(Unit)}, beside a schedule")
    noise = np.asarray(knobs if schedule is None else schedule, float)
    is_list = noise.shape == (len(knobs),) and bool(np.isfinite(noise).all())
    expect(is_list and noise.min() >= 0, "schedule", schedule, "the noise at each value of knobs")
    order = np.asarray(knobs, float)
    return Stated(Unit(unit), noise[np.argsort(-order if ends.is_descending else order)])


def judged(outputs: Outputs, choices: Choices, name: str) -> Report:
    """The report of outputs."""
    evidence = evidence_of(outputs, choices.comparison, choices.ends, choices.floor, choices.labels)
    findings = _findings(evidence, choices)
    random = [finding.p for finding in findings.values() if isinstance(finding, Chance)]
    adjusted = iter(holm(random))
    lines = []
    for described, finding in findings.items():
        p = float(next(adjusted)) if isinstance(finding, Chance) else None
        lines.append(_line(described, finding, p, choices.false_alarm_rate))
    if choices.wanted_change is not None:
        lines.append(_wanted(evidence, choices.wanted_change, choices.seed))
    return Report(
        "check-knob",
        f"{name}: {len(outputs.originals)} originals, {len(outputs.knobs)} values of the knob,"
        f" {outputs.seeds} seeds",
        tuple(lines),
        choices.false_alarm_rate,
        remarks=_remarks(evidence),
        docs="knob",
    )


def _findings(evidence: Evidence, choices: Choices) -> dict[Described, Finding]:
    """What each test found, in the order of the report. Every test has random numbers of its own."""

    def draws(number: int) -> Relabellings:
        return Relabellings(_DRAWS, _generator(choices.seed, number))

    has_floor = choices.floor is not None
    return {
        MEMORY: tests_of_calls.memory(evidence),
        SEED: tests_of_calls.seed(evidence, choices.is_deterministic),
        SHARED: tests_of_calls.shared_noise(evidence, draws(0)),
        IDENTITY: tests_of_curve.identity(evidence, draws(1), has_floor),
        RESPONDS: tests_of_curve.responds(evidence, draws(2), choices.false_alarm_rate),
        MONOTONE: tests_of_curve.monotone(evidence, draws(3)),
        RANGE: tests_of_curve.knob_range(evidence, draws(4), _generator(choices.seed, 5)),
        PLATEAUS: tests_of_curve.plateaus(evidence),
        SCALE: tests_of_outputs.scale(evidence, draws(6)),
        INDEPENDENCE: tests_of_outputs.independence(evidence, draws(7)),
        UNIT: tests_of_outputs.unit(evidence, draws(8), choices.stated),
    }


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng(int(keys(seed, Purpose.KNOB, 3, number)))


def _line(described: Described, finding: Finding, p: float | None, rate: float) -> Line:
    about = {"sees": described.sees, "misses": described.misses}
    if isinstance(finding, Untested):
        return Line(described.name, Verdict.UNTESTED, finding.reason, **about)
    if isinstance(finding, Found):
        verdict = Verdict.FAILS if finding.fails else Verdict.PASSES
        p = finding.p
    else:
        assert p is not None
        verdict = verdict_of(p, rate)
    return Line(
        described.name,
        verdict,
        finding.result,
        measured=finding.measured,
        p=p,
        remark=finding.remark,
        numbers=finding.numbers,
        **about,
    )


def _wanted(evidence: Evidence, change: float, seed: int) -> Line:
    """The value of the knob for a wanted change."""
    value = value_for(evidence.knobs, evidence.curve, change, _generator(seed, 9))
    result = f"{with_interval(value)} changes outputs by {change:g}"
    if not np.isfinite(value.value):
        result = f"no value changes outputs by {change:g}"
    numbers: dict[str, JsonValue] = {"change": change}
    measured = value if np.isfinite(value.value) else Estimate(np.nan, np.nan, np.nan)
    return Line("value for a change", Verdict.REPORTED, result, measured=measured, numbers=numbers)


def _remarks(evidence: Evidence) -> tuple[str, ...]:
    curve = ", ".join(
        f"{knob:.3g}: {mean:.3g}" for knob, mean in zip(evidence.knobs, evidence.means, strict=True)
    )
    return (f"Change at each value, in units of the distance of two originals: {curve}.",)
