"""From options to the report on a knob."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uturn.core.imports import import_function, is_import_path
from uturn.measures.report import Report
from uturn.studies.long_form import is_table
from uturn.tools.check_knob.calls import Plan, called, function_of
from uturn.tools.check_knob.check import (
    Rules,
    check_size,
    comparison_for,
    own_originals,
    report_on,
    stated_noise,
)
from uturn.tools.check_knob.evidence import Ends, Evidence, evidence_of
from uturn.tools.check_knob.files import evidence_of_table, originals_from, recorded_outputs
from uturn.tools.check_knob.options import KnobOptions
from uturn.tools.check_knob.outputs import Outputs
from uturn.tools.check_knob.tests_of_outputs import Stated

_QUICK = "quick: weak leaks, contrast within 20 % and small turns are not seen"


@dataclass(frozen=True, eq=False)
class Judged:
    """A report with the distances on which it rests."""

    report: Report
    evidence: Evidence


def judged(options: KnobOptions, folder: Path | None = None, *, progress: bool = False) -> Judged:
    """The report of options; `folder`: where outputs are kept."""
    options.check_one()
    ends = Ends(options.start, options.end)
    rules = Rules(ends, options.rate, options.deterministic, options.change, options.seed)
    name = options.function or options.recorded or ""
    if options.recorded is not None and is_table(options.recorded):
        evidence = evidence_of_table(options.recorded, options.reading, ends)
        check_size(evidence.change.shape[1], rules)
        stated = _stated(options, evidence.knobs)
        return Judged(report_on(evidence, rules, name, stated), evidence)
    outputs = _outputs(options, rules, folder, progress)
    check_size(len(outputs.originals), rules)
    distance = _function(options.distance, "distance", "(datum, datum) -> number")
    comparison = comparison_for(outputs.originals[0], options.kind, distance)
    floor = _floor(options, outputs.originals)
    stated = _stated(options, outputs.knobs)
    evidence = evidence_of(outputs, comparison, ends, floor)
    report = report_on(evidence, rules, name, stated, has_floor=floor is not None)
    if options.quick:
        report = replace(report, remarks=(*report.remarks, _QUICK))
    return Judged(report, evidence)


def _outputs(options: KnobOptions, rules: Rules, folder: Path | None, progress: bool) -> Outputs:
    """Outputs in a folder, or those that a function makes."""
    if options.recorded is not None:
        return recorded_outputs(options.recorded, options.data, options.items, rules.ends)
    assert options.function is not None and options.data is not None
    check_size(options.count, rules)
    turn = function_of(options.function)
    originals = originals_from(options.data).first(options.count)
    data = originals.data
    if options.own_outputs:
        data = own_originals(turn, data, rules)
    values = np.array(options.values)
    plan = Plan(values, data, originals.names, options.seeds, options.seed)
    descending = rules.ends.is_descending
    return called(
        turn, plan, options.function, folder=folder, progress=progress, is_descending=descending
    )


def _floor(options: KnobOptions, originals: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    codec = _function(options.floor, "floor", "(original) -> original")
    return None if codec is None else [np.asarray(codec(original)) for original in originals]


def _stated(options: KnobOptions, knobs: np.ndarray) -> Stated | None:
    """The stated noise at values of the knob, which are in the order of the evidence."""
    text = options.stated
    noise: list[float] | None = None
    if text is not None and is_import_path(text):
        sigma = _function(text, "stated", "(knob) -> number")
        assert sigma is not None
        noise = [float(sigma(knob)) for knob in knobs.tolist()]
    elif text is not None:
        try:
            noise = [float(number) for number in text.split(",")]
        except ValueError:
            words = "numbers such as 0,.1,.5, or module:function"
            raise ValueError(f"stated = {text!r}: expected {words}") from None
    return stated_noise(options.unit, noise, knobs, knobs)


def _function(path: str | None, option: str, form: str) -> Callable[..., object] | None:
    """A user's function; None without a path."""
    if path is None:
        return None
    expected = f"module:function, a function {form}"
    return import_function(path, f"{option} = {path!r}", expected, expected)
