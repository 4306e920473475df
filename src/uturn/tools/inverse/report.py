"""The report of `uturn inverse`: a line for each sampler on each kind of originals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from uturn.measures.report import Line, Report, Verdict
from uturn.tools.inverse.judged import Judged, caption, notes

TITLE = "Do the samplers draw from the posterior?"


def samplers_report(runs: Sequence[Judged]) -> Report:
    """The verdict on each sampler: it fails if a test of the family or beside it rejects.

    A right sampler fails with the false-alarm rate of the report.
    """
    families = max(len(set(judged.tests.family.values.tolist())) for judged in runs)
    return Report(
        "inverse",
        TITLE,
        tuple(_line(judged) for judged in runs),
        families * float(runs[0].tests.attrs["level"]),
        remarks=(caption(runs).removesuffix("."), *notes(runs)),
        docs="inverse-problems",
    )


def _line(judged: Judged) -> Line:
    distance = judged.distance
    remark = f"calls of the network: {judged.calls}"
    if judged.decided:
        remark = f"decided by {judged.decided}; {remark}"
    return Line(
        judged.run.name,
        _verdict(judged),
        result=judged.kinds,
        sees=f"errors of the {judged.run.judges}",
        measured=None if distance is None else distance[1].effect,
        expected=None if distance is None else 0.0,
        unit="" if distance is None else "relative gap of the distance",
        p=judged.least_p,
        remark=remark,
        numbers=_numbers(judged),
    )


def _verdict(judged: Judged) -> Verdict:
    if judged.least_p <= judged.tests.attrs["level"]:
        return Verdict.FAILS
    for level in judged.levels:
        if any(np.isfinite(tested.visible) for tested in level.readings):
            return Verdict.PASSES
    # Too few originals for any gap to be detected.
    return Verdict.UNTESTED


def _numbers(judged: Judged) -> dict[str, JsonValue]:
    levels = judged.levels
    return {
        "noise": [level.noise for level in levels],
        "kind": [str(level.kind) for level in levels],
        "decided": [level.decided for level in levels],
        "p": [min(tested.least_p for tested in level.readings) for level in levels],
        "items": judged.tests.attrs["items"],
        "clones": judged.tests.attrs["clones"],
        "calls": judged.calls,
    }
