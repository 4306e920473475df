"""The picture of the tests of a posterior sampler: which kind of error it has."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.ranks import band
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, style
from uturn.tools.inverse.posteriors import NONE_SEEN, decision_of, meaning_of, plain_name, untested

NAMES = {
    "distance": "distance",
    "same_component": "same class",
    "log_likelihood": "log p(y | x)",
    "log_prior": "log p(x)",
    "reference_distance": "distance to r(y) (TARP)",
    "mean_value": "mean of values",
    "coverage": "coverage",
    "z_squared": "squared error",
}
"""Readings as they are called in the picture, by `plain_name`."""
_DIRECTIONS = {
    "distance": ("clones too far apart", "clones too close together"),
    "same_component": ("clones agree too often", "clones agree too seldom"),
    "log_likelihood": ("clones fit y too well", "clones fit y too badly"),
    "log_prior": ("clones too probable", "clones too improbable"),
    "reference_distance": ("clones too far from r(y)", "clones too near to r(y)"),
    "mean_value": ("clones too high", "clones too low"),
}


def draw_posterior_tests(tests: xr.Dataset, noise: int = 0) -> Any:
    """The tests of `uturn.posterior_tests` at a noise level, by its index.

    Left: differences of the ECDF of ranks from the uniform one, with their bands. Right: effects
    with intervals, and words.
    """
    at = tests.isel(noise=noise)
    kind = str(at.kind.item())
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 4.8), width_ratios=[1, 1.3], layout="constrained"
        )
        words = meaning_of(at) or (
            "no test rejects"
            if kind == NONE_SEEN
            else "a test rejects, and no rule names the error"
        )
        decided = str(at.decided.item()).removeprefix("ranks of ")
        decision = (
            decision_of(at).replace(decided, NAMES.get(plain_name(decided), decided))
            if decided
            else ""
        )
        title = "\n".join(filter(None, [fill(f"{kind}: {words}", 105), decision]))
        color = ACCENT if kind == NONE_SEEN else CLASS
        figure.suptitle(title, fontsize=13, fontweight="bold", color=color, x=0.01, ha="left")
        _draw_ranks(left, at, tests.sizes["noise"])
        _draw_effects(right, at)
    return figure


def _draw_ranks(axes: Any, at: xr.Dataset, levels: int) -> None:
    """ECDF differences of the ranked readings; the bands at 95 % for a curve, and at the level
    for all curves together.
    """
    axes.set(
        xlabel="fractional rank of the original among its clones",
        ylabel="ECDF - uniform",
        xlim=(0, 1),
    )
    axes.set_title("ranks")
    ranked = [
        str(name)
        for name, p in zip(at.reading.values, at.rank_p.values, strict=True)
        if np.isfinite(p)
    ]
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
    items, K, level = (at.attrs[key] for key in ("items", "clones", "level"))
    x = np.arange(K + 2) / (K + 1)
    counts = at.p.notnull().astype(int) + at.rank_p.notnull().astype(int)
    tests = int(counts.groupby("family").sum().max())  # of the larger family

    def whole(difference: Any) -> np.ndarray:
        return np.concatenate([[0], difference, [0]])

    of_all = level / (tests * levels), 0.10, f"all curves, {100 * (1 - level):g} %"
    for of, alpha, name in (of_all, (0.05, 0.16, "a curve, 95 %")):
        low, high = band(items, K, of)
        axes.fill_between(x, whole(low), whole(high), color=MUTED, alpha=alpha, lw=0, label=name)
    for color, name in zip(DISTINCT, ranked, strict=False):
        difference = whole(at.rank_difference.sel(reading=name).values)
        axes.plot(
            x,
            difference,
            color=color,
            marker="o" if K <= 20 else "",
            ms=3.5,
            label=NAMES.get(name, name),
        )
    axes.axhline(0, color=MUTED, lw=0.8)
    most = 1.08 * max(abs(end) for end in axes.get_ylim())
    axes.set_ylim(-most, 1.7 * most)
    axes.legend(loc="upper center", ncols=2, fontsize=8.5)


def _draw_effects(axes: Any, at: xr.Dataset) -> None:
    """A row for each reading, in units of its own: the effect with its interval, and the
    smallest effect that would be seen.
    """
    rows = []
    for name in map(str, at.reading.values):
        of = at.sel(reading=name)
        rejected = bool(of.p_holm <= at.attrs["level"])
        unit = {"share": "", "difference of shares": ""}.get(
            of.effect_unit.item(), f" {of.effect_unit.item()}".rstrip()
        )
        rows.append(
            (
                name,
                of.effect.values,
                float(of.visible),
                rejected,
                f"{of.effect.values[0]:+.2g}{unit}",
            )
        )
    for name, (value, expected) in untested(at).items():
        rows.append(
            (name, value - expected, np.nan, False, f"{value[0]:.2f}, {expected:.2g} expected")
        )
    for y, (name, effect, visible, marked, number) in enumerate(rows[::-1]):
        ends = np.abs([*effect, visible])
        scale = max(float(np.nanmax(ends[np.isfinite(ends)], initial=0)), 1e-12)
        value, low, high = effect / scale
        color = CLASS if marked else MUTED
        if np.isfinite(visible):
            axes.barh(
                y,
                2 * visible / scale,
                left=-visible / scale,
                height=0.78,
                color=ACCENT,
                alpha=0.10,
                lw=0,
            )
        axes.barh(y, value, height=0.42, color=color, alpha=0.85)
        if np.isfinite(low):
            axes.plot([low, high], [y, y], color="black", lw=1.1)
        direction = _DIRECTIONS.get(plain_name(name), ("", ""))[int(value > 0)] if marked else ""
        text = ": ".join(filter(None, [number, direction]))
        axes.text(
            1.12, y, fill(text, 32), va="center", fontsize=9, color=color if marked else "black"
        )
    axes.set_yticks(
        range(len(rows)), [NAMES.get(plain_name(name), name) for name, *_ in rows[::-1]]
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlim=(-1.08, 2.75), xticks=[])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("effects (pale: smaller ones are not detected)")
