"""The picture of the tests of a posterior sampler: which kind of error it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.measures.estimates import Estimate
from uturn.measures.ranks import band
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, style
from uturn.tools.inverse.at_level import LevelTests, levels_of
from uturn.tools.inverse.kinds import Kind
from uturn.tools.inverse.readings import TestedReading, UntestedReading, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WITHOUT_UNIT = ("share", "difference of shares")
"""Units of effects that are not written behind their number."""


def draw_posterior_tests(tests: xr.Dataset, noise: int = 0) -> Figure:
    """The tests of `uturn.posterior_tests` at a noise level, by its index.

    Left: differences of the ECDF of ranks from the uniform one, with their bands. Right: effects
    with intervals, and words.
    """
    level_tests = levels_of(tests)[noise]
    with style() as plt:
        figure: Figure
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 4.8), width_ratios=[1, 1.3], layout="constrained"
        )
        color = ACCENT if level_tests.kind is Kind.NONE_SEEN else CLASS
        title = _title(level_tests)
        figure.suptitle(title, fontsize=13, fontweight="bold", color=color, x=0.01, ha="left")
        _draw_ranks(left, tests.isel(noise=noise), tests.sizes["noise"])
        _draw_effects(right, level_tests, float(tests.attrs["level"]))
    return figure


def _title(tests: LevelTests) -> str:
    """The kind of error, what it means, and the test that decided, in two lines."""
    words = tests.meaning
    if tests.kind is Kind.NONE_SEEN:
        words = "no test rejects"
    elif tests.kind is Kind.OTHER:
        words = "a test rejects, and no rule names the error"
    lines = [fill(f"{tests.kind}: {words}", 105)]
    if tests.decided:
        lines.append(tests.decision.replace(tests.decided, label_of(tests.decided)))
    return "\n".join(lines)


def _draw_ranks(axes: Axes, tests: xr.Dataset, num_levels: int) -> None:
    """ECDF differences of the ranked readings; the bands at 95 % for a curve, and at the level
    for all curves together.
    """
    axes.set(
        xlabel="fractional rank of the original among its clones",
        ylabel="ECDF - uniform",
        xlim=(0, 1),
    )
    axes.set_title("ranks")
    has_ranks = np.isfinite(tests.rank_p.values)
    ranked = tests.reading.values[has_ranks].tolist()
    if not ranked:
        axes.text(
            0.5,
            0.5,
            "no ranked readings",
            ha="center",
            va="center",
            transform=axes.transAxes,
            color=MUTED,
        )
        return
    items = tests.attrs["items"]
    K = tests.attrs["clones"]
    level = tests.attrs["level"]
    x = np.arange(K + 2) / (K + 1)
    counts = tests.p.notnull().astype(int) + tests.rank_p.notnull().astype(int)
    num_tests = int(counts.groupby("family").sum().max())  # of the larger family
    of_all = f"all curves, {100 * (1 - level):g} %"
    for rate, alpha, name in (
        (level / (num_tests * num_levels), 0.10, of_all),
        (0.05, 0.16, "a curve, 95 %"),
    ):
        low, high = map(_with_ends, band(items, K, rate))
        axes.fill_between(x, low, high, color=MUTED, alpha=alpha, lw=0, label=name)
    for color, name in zip(DISTINCT, ranked, strict=False):
        difference = _with_ends(tests.rank_difference.sel(reading=name).values)
        marker = "o" if K <= 20 else ""
        axes.plot(x, difference, color=color, marker=marker, ms=3.5, label=label_of(name))
    axes.axhline(0, color=MUTED, lw=0.8)
    most = 1.08 * max(abs(end) for end in axes.get_ylim())
    axes.set_ylim(-most, 1.7 * most)
    axes.legend(loc="upper center", ncols=2, fontsize=8.5)


def _with_ends(difference: np.ndarray) -> np.ndarray:
    """A difference of ECDFs with its ends, where it is 0."""
    return np.concatenate([[0], difference, [0]])


@dataclass(frozen=True)
class _Bar:
    """A row of the panel of effects."""

    label: str
    effect: Estimate
    visible: float
    """Size of an effect that is detected; NaN without a test."""
    is_rejected: bool
    text: str


def _draw_effects(axes: Axes, tests: LevelTests, level: float) -> None:
    """A row for each reading, in units of its own: the effect with its interval, and the
    smallest effect that would be seen.
    """
    bars = [_tested_bar(tested, level) for tested in tests.readings]
    bars += [_untested_bar(untested) for untested in tests.untested]
    bars.reverse()
    for y, bar in enumerate(bars):
        ends = np.abs([*bar.effect, bar.visible])
        scale = max(float(np.nanmax(ends[np.isfinite(ends)], initial=0)), 1e-12)
        _draw_bar(axes, y, bar, scale)
    axes.set_yticks(range(len(bars)), _labels(bars))
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlim=(-1.08, 2.75), xticks=[])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("effects (pale: smaller ones are not detected)")


def _labels(bars: Sequence[_Bar]) -> list[str]:
    return [bar.label for bar in bars]


def _tested_bar(tested: TestedReading, level: float) -> _Bar:
    unit = "" if tested.unit in _WITHOUT_UNIT else f" {tested.unit}".rstrip()
    text = f"{tested.effect.value:+.2g}{unit}"
    is_rejected = tested.p_holm <= level
    if is_rejected:
        reading = tested.reading
        direction = reading.above if tested.effect.value > 0 else reading.below
        text = ": ".join(filter(None, [text, direction]))
    return _Bar(label_of(tested.variable), tested.effect, tested.visible, is_rejected, text)


def _untested_bar(untested: UntestedReading) -> _Bar:
    """The difference from what exact draws give."""
    difference = Estimate(*(number - untested.expected for number in untested.value))
    text = f"{untested.value.value:.2f}, {untested.expected:.2g} expected"
    return _Bar(label_of(untested.variable), difference, np.nan, False, text)


def _draw_bar(axes: Axes, y: int, bar: _Bar, scale: float) -> None:
    value, low, high = (number / scale for number in bar.effect)
    color = CLASS if bar.is_rejected else MUTED
    if np.isfinite(bar.visible):
        width = 2 * bar.visible / scale
        axes.barh(y, width, left=-width / 2, height=0.78, color=ACCENT, alpha=0.10, lw=0)
    axes.barh(y, value, height=0.42, color=color, alpha=0.85)
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color="black", lw=1.1)
    text_color = color if bar.is_rejected else "black"
    axes.text(1.12, y, fill(bar.text, 32), va="center", fontsize=9, color=text_color)
