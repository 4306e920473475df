"""Parts of figures of curves against noise: transitions, gaps, legends, and literal texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.messages import visible
from uturn.studies.axes import is_geometric
from uturn.studies.plotting.style import fonts_for, ticks

_BETWEEN = 8  # parts of a line between two geometric levels
_NEAR = 0.03  # curves closer than this share of the height of all curves count as coincident


def estimated(values: np.ndarray) -> np.ndarray:
    """Noise levels at which a number (noise, estimate) has an interval; if there are none, those
    at which it has a value.
    """
    there = ~np.isnan(values)
    return there[:, 1] if there[:, 1].any() else there[:, 0]


def lying_on(curves: Any) -> list[int]:
    """For each curve, the number of earlier curves that coincide with it: within 3 % of the height
    of all, at each common x.

    >>> lying_on([[1, 0.5, 0], [float("nan"), 0.51, 0], [1, 0.8, 0]])
    [0, 1, 0]
    """
    if not len(curves):
        return []
    table = np.array(curves, float)
    near = _NEAR * (np.nanmax(table, initial=-np.inf) - np.nanmin(table, initial=np.inf))
    apart = np.abs(table[:, None] - table)
    on = ((apart <= near) | np.isnan(apart)).all(-1) & ~np.isnan(apart).all(-1)
    return [int(count) for count in np.tril(on, -1).sum(1)]


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 .. count - 1, evenly spaced, with the first and the last.

    >>> evenly_spaced(36, 4)
    [0, 12, 23, 35]
    """
    return sorted({round(float(k)) for k in np.linspace(0, count - 1, min(count, most))})


def draw_curve(
    axis: Any, x: np.ndarray, band: np.ndarray, color: Any, alpha: float, **look: Any
) -> None:
    """A curve with its intervals, `band` (points, 3): value, low, high."""
    value, low, high = band.T
    axis.fill_between(x, low, high, color=color, alpha=alpha, lw=0)
    axis.plot(x, value, color=color, **look)


def draw_legend(axis: Any, place: str, **options: Any) -> None:
    """A legend above lines and bands, at a place such as "upper right"."""
    legend = axis.legend(
        loc=place,
        fontsize=8.5,
        labelspacing=0.3,
        frameon=True,
        edgecolor="none",
        framealpha=0.7,
        **options,
    )
    legend.set_zorder(6)


def draw_transition(
    axis: Any, star: np.ndarray, color: str, band: bool, label: str | None = None
) -> None:
    """A line at t* and a band over its interval, if t* exists; `label` in the legend."""
    if band and np.isfinite(star).all():
        axis.axvspan(*star[1:], color=color, alpha=0.1, lw=0)
    if np.isfinite(star[0]):
        axis.axvline(star[0], color=color, lw=1.2, ls=":", label=label)


def draw_gap(
    axes: Any,
    x: Any,
    gap: Any,
    detected: Any,
    color: Any,
    label: str | None = None,
    marker: str = "o",
    line: str = "-",
) -> None:
    """A gap with its 95 % interval, arrays gap (points, 3) and detected (points,); hollow marks
    where the test detects none.
    """
    x, gap, seen = np.asarray(x, float), np.asarray(gap, float), np.asarray(detected, bool)
    value, low, high = gap.T
    axes.plot(x, value, color=color, lw=1.2, ls=line, zorder=2)
    axes.vlines(x, low, high, color=color, lw=1.1, zorder=2)
    axes.plot(x[seen], value[seen], ls="", marker=marker, ms=5.5, color=color, zorder=3)
    axes.plot([], [], color=color, lw=1.2, ls=line, marker=marker, ms=5.5, label=label)
    axes.plot(
        x[~seen], value[~seen], ls="", marker=marker, ms=5.5, mfc="white", mec=color, zorder=3
    )


def markers(noise: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "ms": 4} if len(noise) < 40 else {}


def along(noise: np.ndarray, bands: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Points, curves (.., noise, estimate) at them, and markers: curves are linear between
    levels, on a logarithmic axis too.
    """
    if not is_geometric(noise):
        return noise, bands, markers(noise)
    left, share = (
        np.repeat(np.arange(len(noise) - 1), _BETWEEN),
        np.tile(np.arange(_BETWEEN) / _BETWEEN, len(noise) - 1),
    )

    def filled(values: np.ndarray) -> np.ndarray:
        step = np.where(share > 0, share * (values[..., left + 1] - values[..., left]), 0)
        return np.concatenate([values[..., left] + step, values[..., -1:]], axis=-1)

    return (
        filled(noise),
        np.moveaxis(filled(np.moveaxis(bands, -2, -1)), -1, -2),
        markers(noise) | {"markevery": _BETWEEN},
    )


def draw_noise_axis(axis: Any, noise: np.ndarray) -> None:
    """The axis of noise from 0 on, logarithmic for geometric levels: then noise 0 is half a
    decade left of the smallest one.
    """
    if not is_geometric(noise):
        axis.set_xlim(0, end_of(noise))
        return
    low, high = float(np.min(noise[noise > 0])), float(noise[-1])
    axis.set_xscale("symlog", linthresh=low, linscale=0.45)
    axis.set_xlim(0, 1.12 * high)
    decades = [
        float(f"1e{k}")
        for k in range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ]
    marks = [
        m * at for at in decades for m in ((1,) if math.log10(high / low) > 2.5 else (1, 2, 5))
    ]
    ticks(axis, [0.0, *(at for at in marks if low <= at <= high)])


def end_of(noise: np.ndarray) -> float:
    return 1.03 * float(noise[-1]) if noise[-1] > 0 else 1.0


def brief(name: str, most: int = 22) -> str:
    """A name of at most `most` characters; a longer name is cut at its beginning."""
    return no_mathematics(name if len(name) <= most else f"..{name[-most + 2 :]}")


def no_mathematics(text: str) -> str:
    """Text whose dollar signs, which matplotlib would read as mathematics, and control
    characters are escaped.
    """
    return visible(text).replace("$", r"\$")


def drawable(data: xr.Dataset, coordinates: Sequence[str]) -> tuple[xr.Dataset, list[str]]:
    """A copy of a study whose texts can be drawn, and the fonts they need; characters missing in
    all fonts become escapes.
    """
    names, attributes = (
        [name for name in coordinates if name in data.coords],
        (
            "description",
            "remark",
        ),
    )
    text = "".join(
        [
            *(str(data.attrs[name]) for name in attributes),
            *(str(x) for name in names for x in data[name].values.flat),
        ]
    )
    families, missing = fonts_for(text)
    escapes = str.maketrans({c: c.encode("unicode_escape").decode() for c in missing})
    drawn = {
        name: (
            data[name].dims,
            np.array([str(x).translate(escapes) for x in data[name].values.flat]).reshape(
                data[name].shape
            ),
        )
        for name in names
    }
    plain = {name: str(data.attrs[name]).translate(escapes) for name in attributes}
    return data.assign_coords(drawn).assign_attrs(plain), families
