"""The table over the samplers of `uturn inverse`, and its numbers as a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas

from uturn.measures.estimates import with_interval
from uturn.studies.tables import TextTable
from uturn.tools.inverse.at_level import LevelTests
from uturn.tools.inverse.judged import Judged
from uturn.tools.inverse.readings import POSTERIOR, TestedReading, label_of

_TITLE = (
    "samplers, with 95 % intervals; p by Holm, the smallest over strengths, means and"
    " ranks; decided by means, or by ranks if no mean rejects"
)
_JUDGED = "judged (originals)"
"""Heading of the column that only tables of several kinds of originals have."""


def samplers_table(runs: Sequence[Judged]) -> TextTable:
    """A row for each sampler: its kind of error, p-values, gap, what it keeps, and its cost."""
    tested = _tested_variables(runs)
    strength = runs[-1].levels[-1].noise
    kept = f"{label_of(runs[0].kept_reading)} at {strength:.3g}"
    rows = [_row(judged, tested, kept) for judged in runs]
    table = TextTable(_TITLE, tuple(rows[0]), [tuple(row.values()) for row in rows])
    has_several = len({judged.run.data for judged in runs}) > 1
    return table if has_several else table.without([_JUDGED])


def _tested_variables(runs: Sequence[Judged]) -> list[str]:
    """The variables of the family, in the order of tests."""
    names: dict[str, None] = {}
    for judged in runs:
        for tested in judged.levels[0].readings:
            if tested.reading.family == POSTERIOR:
                names[tested.variable] = None
    return list(names)


def _row(judged: Judged, tested: Sequence[str], kept: str) -> dict[str, str]:
    """The cells of a sampler by their headings."""
    row = {
        "sampler": judged.run.sampler,
        _JUDGED: f"{judged.run.judges} ({judged.run.data})",
        "kind of error": judged.kinds,
        "decided by": judged.decided,
    }
    for variable in tested:
        p = judged.least_p_of(variable)
        row[f"p, {label_of(variable)}"] = "" if np.isnan(p) else f"{p:.2g}"
    row["gap of the distance, relative"] = _gap(judged)
    row[kept] = with_interval(judged.kept[-1])
    row["half-life"] = with_interval(judged.half_life)
    row["calls"] = f"{judged.calls}"
    return row


def _gap(judged: Judged) -> str:
    """The clearest gap of the distance, and its strength."""
    if judged.distance is None:
        return ""
    strength, tested = judged.distance
    return f"{with_interval(tested.effect, '+.2g')} at {strength:.3g}"


# --- frame ----------------------------------------------------------------------------------------


def samplers_frame(runs: Sequence[Judged]) -> pandas.DataFrame:
    """A row for each sampler, strength and reading."""
    rows: list[dict[str, object]] = []
    for judged in runs:
        for level in judged.levels:
            rows += _rows_of_level(judged, level)
    return pandas.DataFrame(rows)


def _rows_of_level(judged: Judged, level: LevelTests) -> list[dict[str, object]]:
    run = judged.run
    first: dict[str, object] = {
        "name": run.name,
        "sampler": run.sampler,
        "data": run.data,
        "judges": run.judges,
        "calls": judged.calls,
        "items": judged.tests.attrs["items"],
        "clones": judged.tests.attrs["clones"],
        "strength": level.noise,
        "kind": str(level.kind),
    }
    rows = [{**first, **_cells(tested)} for tested in level.readings]
    for untested in level.untested:
        value, low, high = untested.value
        ends = {"effect": value, "effect_low": low, "effect_high": high}
        rows.append({**first, "reading": untested.variable, **ends})
    return rows


def _cells(tested: TestedReading) -> dict[str, object]:
    value, low, high = tested.effect
    return {
        "reading": tested.variable,
        "family": tested.reading.family,
        "effect": value,
        "effect_unit": tested.unit,
        "p": tested.p,
        "p_holm": tested.p_holm,
        "rank_p": tested.rank_p,
        "rank_p_holm": tested.rank_p_holm,
        "effect_low": low,
        "effect_high": high,
    }
