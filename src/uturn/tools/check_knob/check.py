"""The check of a noise knob: eleven tests of its outputs, and the range over which it works."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import expect
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
from uturn.tools.check_knob.outputs import Outputs, checked_knobs
from uturn.tools.check_knob.randomisation import Relabellings
from uturn.tools.check_knob.tests_of_outputs import Stated, Unit
from uturn.tools.check_knob.useful_range import value_for

KNOBS = (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.85, 1.0)
"""Values of the knob by default."""
_RANDOM_TESTS = 7
"""Tests that share the false-alarm rate."""


@dataclass(frozen=True)
class Test:
    """What a test sees, and what it does not."""

    sees: str
    misses: str = ""


TESTS: Mapping[str, Test] = {
    "memory": Test("a value that persists into the next call", "other modes or processes"),
    "seed": Test("a seed that is ignored, or a clock in its place"),
    "shared noise": Test("one noise for all originals", "recorded files with one seed"),
    "identity": Test("a step that is made at 0"),
    "responds": Test("a knob that does nothing, or is infinite"),
    "monotone": Test("an inverted knob, a turn", "falls below six standard errors"),
    "range": Test("all change in one step", "whether a cliff is a bug"),
    "plateaus": Test("values that are rounded to one", "values between those tried"),
    "scale": Test("outputs that are louder, darker or noisy", "other wrong changes"),
    "independence": Test("an original that leaks at the end"),
    "unit": Test("more noise than stated, one step too far", "too little noise"),
}
"""All tests, in the order of the report: the others rest on the first three."""


@dataclass(frozen=True)
class Rules:
    """How a knob is judged."""

    ends: Ends = field(default_factory=Ends)
    false_alarm_rate: float = 0.001
    """Probability that a right knob fails, for all random tests together."""
    is_deterministic: bool = False
    """Whether the pipeline draws no random numbers."""
    change: float | None = None
    """A wanted change, in units of the distance of two originals, whose value is reported."""
    seed: int = 0
    """Of the relabellings."""

    @property
    def least(self) -> int:
        """Smallest number of originals with which a test can fail."""
        return math.ceil(math.log2(_RANDOM_TESTS / self.false_alarm_rate))

    def generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng(int(keys(self.seed, Purpose.KNOB, 3, number)))

    def relabellings(self, test: str) -> Relabellings:
        """Relabellings of a test: 19,999 at a rate of .001."""
        draws = math.ceil(20 / self.false_alarm_rate) - 1
        return Relabellings(draws, self.generator([*TESTS].index(test)))


def check_knob(
    function_or_outputs: Turn | str | ArrayLike,
    originals: Sequence[np.ndarray] | np.ndarray,
    knobs: Sequence[float] = KNOBS,
    seeds: int = 2,
    *,
    kind: str | None = None,
    distance: Callable[[np.ndarray, np.ndarray], float] | None = None,
    start: float | None = 0.0,
    end: float | None = 1.0,
    floor: Sequence[np.ndarray] | np.ndarray | None = None,
    labels: ArrayLike | None = None,
    unit: str | None = None,
    stated: Sequence[float] | None = None,
    change: float | None = None,
    own_outputs: bool = False,
    deterministic: bool = False,
    false_alarm_rate: float = 0.001,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """Test whether the noise knob of a pipeline does what a noise knob should.

    Only outputs are needed, no model. The unit of all distances is the mean distance of two
    originals. The report has eleven tests, and the range of the knob over which 5 to 95 % of the
    change are made. Random tests are judged together by Holm. docs/knob.md describes each test.

    For draws from the posterior of a noising x_t = x_0 + sigma z, the original and the output are
    exchangeable given x_t, so the mean square change is twice the Bayes error: it never falls with
    noise, and is at most 2 sigma^2 (arXiv:2402.16991, section 2, describes the process).

    Parameters
    ----------
    function_or_outputs
        A function (original, knob, seed) that returns an output of the same shape, or its import
        path "module:function"; or recorded outputs, an array (knob, original, seed, ...).
    originals
        13 or more data of one kind, as arrays.
    knobs
        Values of the knob, three or more.
    seeds
        Outputs of each original at each value that the function makes.
    kind
        "images", "series", "tokens" or "structures"; by default guessed from type and axes.
    distance
        A distance of two data in place of the one of the kind.
    start, end
        Value that changes nothing, and value that forgets the original; None if there is none.
    floor
        The originals after codec or autoencoder alone.
    labels
        What the pipeline is told of each original, such as its class.
    unit, stated
        What the noise of a value is, "sigma" or "share", and how much of it at each value; by
        default the knob itself.
    change
        A wanted change, whose value of the knob is reported.
    own_outputs
        Take outputs at `end` as originals: is the knob itself right, whatever the data?
    deterministic
        The pipeline draws no random numbers.
    false_alarm_rate
        Probability that a right knob fails.
    seed
        Of the order of calls and of the tests.
    folder
        Where outputs are kept. A second call goes on.
    progress
        Whether progress and the number of calls are shown.

    Raises
    ------
    ValueError
        For fewer than three values, too few originals, and outputs of another shape or that are
        not finite.
    """
    rules = Rules(Ends(start, end), false_alarm_rate, deterministic, change, seed)
    data = tuple(np.asarray(original) for original in originals)
    check_size(len(data), rules)
    values = checked_knobs(knobs)
    name = "recorded outputs"
    if isinstance(function_or_outputs, str):
        function_or_outputs = function_of(function_or_outputs)
    if callable(function_or_outputs):
        name = getattr(function_or_outputs, "__qualname__", "function")
        if own_outputs:
            data = own_originals(function_or_outputs, data, rules)
        plan = Plan(values, data, names_of(data), seeds, seed)
        place = None if folder is None else Path(folder)
        descending = rules.ends.is_descending
        outputs = called(
            function_or_outputs,
            plan,
            name,
            folder=place,
            progress=progress,
            is_descending=descending,
        )
    else:
        expect(not own_outputs, "own_outputs", own_outputs, "a function, which makes the outputs")
        made = np.asarray(function_or_outputs)
        outputs = Outputs.of(knobs, data, made, is_descending=rules.ends.is_descending)
    comparison = comparison_for(data[0], kind, distance)
    tags = None if labels is None else np.asarray(labels)
    base = None if floor is None else [np.asarray(datum) for datum in floor]
    noise = stated_noise(unit, stated, values, outputs.knobs)
    evidence = evidence_of(outputs, comparison, rules.ends, base, tags)
    return report_on(evidence, rules, name, noise, has_floor=floor is not None)


def check_size(count: int, rules: Rules) -> None:
    """ValueError for so few originals that no test could fail."""
    rate = rules.false_alarm_rate
    expect(0 < rate < 1, "false_alarm_rate", rate, "a number between 0 and 1")
    few = f"at least {rules.least}; fewer could not fail a test at false_alarm_rate = {rate:g}"
    expect(count >= rules.least, "number of originals", count, few)


def own_originals(
    turn: Turn, originals: tuple[np.ndarray, ...], rules: Rules
) -> tuple[np.ndarray, ...]:
    """Outputs at the end of the knob, which are originals of the model's own law."""
    end = rules.ends.end
    expect(end is not None, "end", end, "a value that forgets the original, for own_outputs")
    assert end is not None
    seeds = keys(rules.seed, Purpose.KNOB, 4, np.arange(len(originals))) >> np.uint64(33)
    pairs = zip(originals, seeds, strict=True)
    return tuple(np.asarray(turn(original.copy(), end, int(s))) for original, s in pairs)


def comparison_for(
    original: np.ndarray,
    kind: str | None,
    distance: Callable[[np.ndarray, np.ndarray], float] | None,
) -> Comparison:
    """How data are compared; ValueError for an unknown kind."""
    known = [member.value for member in Kind]
    expect(kind is None or kind in known, "kind", kind, f"one of {', '.join(known)}")
    chosen = guessed_kind(original) if kind is None else Kind(kind)
    comparison = comparison_of(chosen, original.shape)
    if distance is None:
        return comparison
    return replace(comparison, measures=(Measure("distance", pair_by_pair(distance)),))


def stated_noise(
    unit: str | None,
    stated: Sequence[float] | None,
    given_knobs: np.ndarray,
    ordered: np.ndarray,
) -> Stated | None:
    """The noise that is stated for each value, in the order of the evidence."""
    if unit is None:
        expect(
            stated is None, "stated", stated, "none without unit; give unit = 'sigma' or 'share'"
        )
        return None
    known = [member.value for member in Unit]
    expect(unit in known, "unit", unit, f"one of {', '.join(known)}")
    noise = given_knobs if stated is None else np.asarray(stated, float)
    right = noise.shape == given_knobs.shape and bool((noise >= 0).all())
    expect(right, "stated", noise.tolist(), f"{len(given_knobs)} numbers of 0 or more")
    by_knob = dict(zip(given_knobs.tolist(), noise.tolist(), strict=True))
    return Stated(Unit(unit), np.array([by_knob[knob] for knob in ordered.tolist()]))


# --- the report -----------------------------------------------------------------------------------


def findings_of(
    evidence: Evidence, rules: Rules, stated: Stated | None, has_floor: bool
) -> dict[str, Finding]:
    """What each test finds."""
    draw = rules.relabellings
    curve = tests_of_curve
    outputs = tests_of_outputs
    generator = rules.generator(len(TESTS))
    return {
        "memory": tests_of_calls.memory(evidence),
        "seed": tests_of_calls.seed(evidence, rules.is_deterministic),
        "shared noise": tests_of_calls.shared_noise(evidence, draw("shared noise")),
        "identity": curve.identity(evidence, draw("identity"), has_floor),
        "responds": curve.responds(evidence, draw("responds"), rules.false_alarm_rate),
        "monotone": curve.monotone(evidence, draw("monotone")),
        "range": curve.knob_range(evidence, draw("range"), generator),
        "plateaus": curve.plateaus(evidence),
        "scale": outputs.scale(evidence, draw("scale")),
        "independence": outputs.independence(evidence, draw("independence")),
        "unit": outputs.unit(evidence, draw("unit"), stated),
    }


def report_on(
    evidence: Evidence,
    rules: Rules,
    name: str,
    stated: Stated | None = None,
    has_floor: bool = False,
) -> Report:
    """The report on outputs that are measured."""
    findings = findings_of(evidence, rules, stated, has_floor)
    random = [test for test, found in findings.items() if isinstance(found, Chance)]
    single = [found.p for found in findings.values() if isinstance(found, Chance)]
    adjusted = dict(zip(random, holm(single).tolist(), strict=True)) if random else {}
    lines = []
    for test, found in findings.items():
        p = adjusted.get(test)
        lines.append(_line(test, found, p, rules.false_alarm_rate))
    if rules.change is not None:
        lines.append(_value_line(evidence, rules))
    values = ", ".join(f"{knob:g}" for knob in evidence.knobs)
    _, count, seeds = evidence.change.shape
    title = f"{name}: {count} originals, {seeds} seeds, knob {values}"
    remarks = _remarks(findings)
    return Report("check-knob", title, tuple(lines), rules.false_alarm_rate, remarks, docs="knob")


def _line(test: str, found: Finding, p: float | None, rate: float) -> Line:
    about = TESTS[test]
    if isinstance(found, Untested):
        return Line(test, Verdict.UNTESTED, found.reason, about.sees, about.misses)
    if isinstance(found, Chance):
        assert p is not None
        verdict = verdict_of(p, rate)
    else:
        verdict = Verdict.FAILS if found.fails else Verdict.PASSES
        p = found.p
    return Line(
        test,
        verdict,
        found.result,
        about.sees,
        about.misses,
        measured=found.measured,
        p=p,
        remark=found.remark,
        numbers=found.numbers,
    )


def _value_line(evidence: Evidence, rules: Rules) -> Line:
    """The value of the knob for a wanted change."""
    assert rules.change is not None
    generator = rules.generator(len(TESTS) + 1)
    value: Estimate = value_for(evidence.knobs, evidence.curve, rules.change, generator)
    test = f"value for a change of {rules.change:g}"
    if not np.isfinite(value.value):
        largest = float(evidence.means.max())
        reason = f"the largest change is {largest:.3g}"
        return Line(test, Verdict.UNTESTED, reason)
    result = f"knob {with_interval(value)}"
    return Line(test, Verdict.REPORTED, result, measured=value, unit="knob")


def _remarks(findings: Mapping[str, Finding]) -> tuple[str, ...]:
    """What the reader should know of all lines together."""
    for test in ("memory", "seed", "shared noise"):
        found = findings[test]
        if isinstance(found, Found) and found.fails:
            return (f"mend {test} first: the other tests rest on it",)
    return ()
