"""Parts of figures of curves against noise: transitions, gaps, legends, and literal texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.messages import visible
from uturn.studies.axes import is_geometric
from uturn.studies.plotting.style import fonts_for, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

_PARTS = 8
"""Parts of a line between two geometric levels."""
_COINCIDENT = 0.03
"""Share of the height of all curves up to which two curves coincide."""


def estimated(values: np.ndarray) -> np.ndarray:
    """Noise levels at which a number (noise, estimate) has an interval; if there are none, those
    at which it has a value.
    """
    exists = ~np.isnan(values)
    has_interval = exists[:, 1]
    if has_interval.any():
        return np.asarray(has_interval)
    return np.asarray(exists[:, 0])


def lying_on(curves: Sequence[Sequence[float | None]] | np.ndarray) -> list[int]:
    """For each curve, the number of earlier curves that coincide with it: within 3 % of the height
    of all, at each common x; NaN or None where a curve has no value.

    >>> lying_on([[1, 0.5, 0], [float("nan"), 0.51, 0], [1, 0.8, 0]])
    [0, 1, 0]
    """
    if not len(curves):
        return []
    table = np.array(curves, float)
    height = np.nanmax(table, initial=-np.inf) - np.nanmin(table, initial=np.inf)
    distance = np.abs(table[:, None] - table)
    is_common = ~np.isnan(distance)
    coincide = ((distance <= _COINCIDENT * height) | ~is_common).all(-1) & is_common.any(-1)
    return [int(count) for count in np.tril(coincide, -1).sum(1)]


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 .. count - 1, evenly spaced, with the first and the last.

    >>> evenly_spaced(36, 4)
    [0, 12, 23, 35]
    """
    return sorted({round(float(k)) for k in np.linspace(0, count - 1, min(count, most))})


def draw_curve(
    axis: Axes, x: np.ndarray, band: np.ndarray, color: ColorType, alpha: float, **look: Any
) -> None:
    """A curve with its intervals, `band` (points, 3): value, low, high."""
    value, low, high = band.T
    axis.fill_between(x, low, high, color=color, alpha=alpha, lw=0)
    axis.plot(x, value, color=color, **look)


def draw_legend(axis: Axes, place: str, **options: Any) -> None:
    """A legend above lines and bands, at a place such as "upper right"."""
    look: dict[str, Any] = {"fontsize": 8.5, "labelspacing": 0.3, "frameon": True}
    look |= {"edgecolor": "none", "framealpha": 0.7, "loc": place, **options}
    axis.legend(**look).set_zorder(6)


def draw_transition(
    axis: Axes, star: np.ndarray, color: str, band: bool, label: str | None = None
) -> None:
    """A line at t* and a band over its interval, if t* exists; `label` in the legend."""
    if band and np.isfinite(star).all():
        axis.axvspan(*star[1:], color=color, alpha=0.1, lw=0)
    if np.isfinite(star[0]):
        axis.axvline(star[0], color=color, lw=1.2, ls=":", label=label)


def draw_gap(
    axes: Axes,
    x: ArrayLike,
    gap: ArrayLike,
    detected: ArrayLike,
    color: ColorType,
    label: str | None = None,
    marker: str = "o",
    line: str = "-",
) -> None:
    """A gap with its 95 % interval, arrays gap (points, 3) and detected (points,); hollow marks
    where the test detects none.
    """
    places = np.asarray(x, float)
    value, low, high = np.asarray(gap, float).T
    is_seen = np.asarray(detected, bool)
    mark: dict[str, Any] = {"marker": marker, "ms": 5.5}
    axes.plot(places, value, color=color, lw=1.2, ls=line, zorder=2)
    axes.vlines(places, low, high, color=color, lw=1.1, zorder=2)
    axes.plot(places[is_seen], value[is_seen], ls="", color=color, zorder=3, **mark)
    axes.plot([], [], color=color, lw=1.2, ls=line, label=label, **mark)
    hollow: dict[str, Any] = {"ls": "", "mfc": "white", "mec": color, "zorder": 3, **mark}
    axes.plot(places[~is_seen], value[~is_seen], **hollow)


def markers(noise: np.ndarray) -> dict[str, Any]:
    if len(noise) >= 40:
        return {}
    return {"marker": "o", "ms": 4}


def along(noise: np.ndarray, bands: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Points, curves (.., noise, estimate) at them, and markers: curves are linear between
    levels, on a logarithmic axis too.
    """
    if not is_geometric(noise):
        return noise, bands, markers(noise)
    left = np.repeat(np.arange(len(noise) - 1), _PARTS)
    share = np.tile(np.arange(_PARTS) / _PARTS, len(noise) - 1)

    def filled(values: np.ndarray) -> np.ndarray:
        step = np.where(share > 0, share * (values[..., left + 1] - values[..., left]), 0)
        return np.concatenate([values[..., left] + step, values[..., -1:]], axis=-1)

    curves = np.moveaxis(filled(np.moveaxis(bands, -2, -1)), -1, -2)
    return filled(noise), curves, markers(noise) | {"markevery": _PARTS}


def draw_noise_axis(axis: Axes, noise: np.ndarray) -> None:
    """The axis of noise from 0 on, logarithmic for geometric levels: then noise 0 is half a
    decade left of the smallest one.
    """
    if not is_geometric(noise):
        axis.set_xlim(0, end_of(noise))
        return
    low = float(np.min(noise[noise > 0]))
    high = float(noise[-1])
    axis.set_xscale("symlog", linthresh=low, linscale=0.45)
    axis.set_xlim(0, 1.12 * high)
    multiples = [1, 2, 5]
    if math.log10(high / low) > 2.5:
        multiples = [1]
    marks = [0.0]
    for exponent in range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1):
        for multiple in multiples:
            mark = multiple * float(f"1e{exponent}")
            if low <= mark <= high:
                marks.append(mark)
    ticks(axis, marks)


def end_of(noise: np.ndarray) -> float:
    if noise[-1] > 0:
        return 1.03 * float(noise[-1])
    return 1.0


def brief(name: str, most: int = 22) -> str:
    """A name of at most `most` characters; a longer name is cut at its beginning."""
    if len(name) > most:
        name = f"..{name[-most + 2 :]}"
    return no_mathematics(name)


def no_mathematics(text: str) -> str:
    """Text whose dollar signs, which matplotlib would read as mathematics, and control
    characters are escaped.
    """
    return visible(text).replace("$", r"\$")


def drawable(data: xr.Dataset, coordinates: Sequence[str]) -> tuple[xr.Dataset, list[str]]:
    """A copy of a study whose texts can be drawn, and the fonts they need; characters missing in
    all fonts become escapes.
    """
    names = [name for name in coordinates if name in data.coords]
    attributes = {name: str(data.attrs[name]) for name in ("description", "remark")}
    parts = list(attributes.values())
    for name in names:
        parts += map(str, data[name].values.flat)
    families, missing = fonts_for("".join(parts))
    escapes = str.maketrans({c: c.encode("unicode_escape").decode() for c in missing})
    texts = {}
    for name in names:
        escaped = [str(text).translate(escapes) for text in data[name].values.flat]
        texts[name] = (data[name].dims, np.array(escaped).reshape(data[name].shape))
    plain = {name: text.translate(escapes) for name, text in attributes.items()}
    return data.assign_coords(texts).assign_attrs(plain), families
