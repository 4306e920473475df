"""The picture of a knob: change and contrast against its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uturn.studies.plotting.style import ACCENT, CLASS, MUTED
from uturn.tools.check_knob.evidence import Evidence, in_words
from uturn.tools.check_knob.findings import mean_of
from uturn.tools.check_knob.judge import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(judged: Judged) -> Figure:
    """Change against the knob with its 95 % band and all outputs; below, the readings."""
    import matplotlib.pyplot as plt

    evidence = judged.evidence
    rows = 2 if evidence.shifts else 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(7, 3.2 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    _draw_change(axes[0, 0], judged)
    if evidence.shifts:
        _draw_readings(axes[1, 0], evidence)
    axes[-1, 0].set_xlabel("knob")
    return figure


def _draw_change(axes: Axes, judged: Judged) -> None:
    evidence = judged.evidence
    knobs = evidence.knobs
    bounds = np.array([mean_of(row) for row in evidence.curve])
    outputs = evidence.change.reshape(len(knobs), -1)
    axes.plot(knobs, outputs, ".", color=MUTED, ms=2, alpha=0.4)
    axes.fill_between(knobs, bounds[:, 1], bounds[:, 2], color=ACCENT, alpha=0.3)
    axes.plot(knobs, bounds[:, 0], "o-", color=ACCENT)
    _mark(axes, judged)
    axes.set_ylabel("change / distance of\ntwo originals")
    axes.set_title(judged.report.conclusion)


def _mark(axes: Axes, judged: Judged) -> None:
    """Shade the useful range, and mark plateaus and turns."""
    numbers = {line.test: line.numbers for line in judged.report.lines}
    low = numbers["range"].get("low")
    high = numbers["range"].get("high")
    if isinstance(low, list) and isinstance(high, list):
        axes.axvspan(low[0], high[0], color=ACCENT, alpha=0.08)
    means = dict(zip(judged.evidence.knobs.tolist(), judged.evidence.means.tolist(), strict=True))
    for first, last in numbers["plateaus"].get("equal", []):  # type: ignore[union-attr,misc]
        axes.plot([first, last], [means[first], means[last]], color=CLASS, lw=6, alpha=0.5)
    turn = numbers["monotone"]
    if "from" in turn and "monotone" in judged.report.failed:
        places = [turn["from"], turn["to"]]
        axes.plot(places, [means[place] for place in places], "v", color=CLASS, ms=10)


def _draw_readings(axes: Axes, evidence: Evidence) -> None:
    axes.axhline(1, color=MUTED, lw=1)
    for shift in evidence.shifts:
        if shift.reading.form.value != "times":
            continue
        bounds = np.array([mean_of(row) for row in shift.values])
        printed = np.vectorize(lambda value: in_words(shift.reading, value))(bounds)
        axes.fill_between(evidence.knobs, printed[:, 1], printed[:, 2], alpha=0.2)
        axes.plot(evidence.knobs, printed[:, 0], "o-", label=shift.reading.name)
    axes.set_ylabel("output / original")
    axes.legend()
