"""Drawing of gaps E f(x0, x̂) - E f(x̂, x̂') against noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.studies.plotting.style import THEORY


def draw_gap(axes: Any, x: Any, gap: Any, detected: Any, color: Any, label: str | None = None, marker: str = "o") -> None:
    """A gap with its 95 % interval, arrays gap (points, 3) and detected (points,); hollow marks where the test detects none."""
    x, gap, seen = np.asarray(x, float), np.asarray(gap, float), np.asarray(detected, bool)
    value, low, high = gap.T
    axes.plot(x, value, color=color, lw=1.2, zorder=2)
    axes.vlines(x, low, high, color=color, lw=1.1, zorder=2)
    axes.plot(x[seen], value[seen], ls="", marker=marker, ms=5.5, color=color, zorder=3)
    axes.plot([], [], color=color, lw=1.2, marker=marker, ms=5.5, label=label)
    axes.plot(x[~seen], value[~seen], ls="", marker=marker, ms=5.5, mfc="white", mec=color, zorder=3)


def draw_zero(axes: Any) -> None:
    """The line of a calibrated sampler."""
    axes.axhline(0, color=THEORY, lw=1, zorder=1)
