"""The figure of `uturn chains`: what is left after k U-turns, and the relaxation time of each
level against the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.studies import records_of, study
from uturn.studies.figure import draw_grid
from uturn.studies.plotting.curves import draw_curve, evenly_spaced
from uturn.studies.plotting.style import MUTED, bars, level_colors, style, ticks
from uturn.tools.chains.measures import known, series_of

_MOST = 6  # curves of a panel


def draw_chains(data: xr.Dataset) -> Any:
    """A panel for each noise level of a U-turn, then relaxation times against the noise, of at most
    six levels or readings.

    `data` as of `measured_of`; with an energy, its mean and the accepted share.
    """
    if "energy" in data:
        return _draw_energy(data)
    series = series_of(data).values()
    names = max(series, key=len, default=[]) + [
        name for name in known(data) if not any(name in of for of in series)
    ]
    names = [names[k] for k in evenly_spaced(len(names), _MOST)]
    colors = dict(zip(names, level_colors(len(names)), strict=True))
    levels = data.u_turn_noise.values
    k = data.noise.values
    # Evenly on the logarithmic axis.
    spaced = np.isin(k, np.unique((2 ** np.arange(0, 40, 0.5)).round())) | (k == k[-1])
    doublings = k[np.isin(k, 2.0 ** np.arange(40))]
    with style() as plt:
        figure, panels = plt.subplots(
            1, len(levels) + 1, figsize=(3.4 * (len(levels) + 1), 3.9), layout="constrained"
        )
        for axes, x in zip(panels, levels, strict=False):
            for name in names:
                band = (
                    data.left.sel(u_turn_noise=x, reading=name)
                    .transpose("noise", "estimate")
                    .values
                )
                draw_curve(axes, k[spaced], band[spaced], colors[name], 0.12, lw=1.8, label=name)
            axes.axhline(0.5, color=MUTED, lw=1, ls=":")
            axes.set(xscale="log", xlabel="U-turns $k$", title=f"noise {x:g}", ylim=(-0.1, 1.05))
            ticks(axes, doublings[:: max(1, len(doublings) // 5)])
            axes.label_outer()
        panels[0].set_ylabel("left of the original (1: all, 0: chance)")
        last = panels[-1]
        for place, name in enumerate(names):
            times = data.time.sel(reading=name).transpose("u_turn_noise", "estimate").values
            found = np.isfinite(times[:, 0])
            x = levels + 0.015 * (place - len(names) / 2) * (np.ptp(levels) or 1)
            bars(
                last,
                x[found],
                times[found].clip(max=2.5 * k[-1]),
                color=colors[name],
                marker="o",
                ms=4,
                lw=1.5,
            )
            words = data.remark.sel(reading=name).values.tolist()
            for start, marker, at in (("less", "v", 0.7 * k[0]), ("longer", "^", 1.4 * k[-1])):
                beyond = np.array([word.startswith(start) for word in words])
                last.plot(
                    x[beyond],
                    np.full(beyond.sum(), at),
                    marker,
                    color=colors[name],
                    ms=5,
                    mfc="white",
                )
        for height, word, side in ((k[-1], "longer", "bottom"), (k[0], "less", "top")):
            last.axhline(height, color=MUTED, lw=1, ls=":")
            last.text(levels.min(), height, word, color=MUTED, fontsize=8, ha="left", va=side)
        last.set(
            yscale="log",
            xlabel="noise of a U-turn",
            ylabel="relaxation time (U-turns)",
            title="relaxation",
        )
        last.set_yticks(doublings, [f"{at:g}" for at in doublings])
        last.set(xticks=levels, ylim=(0.4 * k[0], 2.5 * k[-1]))
        last.minorticks_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_energy(data: xr.Dataset) -> Any:
    levels = data.u_turn_noise.values
    k = data.noise.values
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for x, color in zip(levels, level_colors(len(levels)), strict=True):
            band = data.energy.sel(u_turn_noise=x).transpose("noise", "estimate").values
            draw_curve(left, k, band, color, 0.12, lw=1.8, label=f"noise {x:g}")
        left.set(xscale="log", xlabel="U-turns $k$", ylabel="mean energy")
        ticks(left, k[np.isin(k, 2.0 ** np.arange(40))])
        left.legend()
        right.plot(levels, data.accepted, "o-", color=MUTED)
        right.set(xlabel="noise of a U-turn", ylabel="accepted share", ylim=(0, 1.03))
    return figure


def draw_strip(run: xr.Dataset) -> Any:
    """A film strip of the chains of a run: a row for each original, a column for each number of
    U-turns.
    """
    whole = study(run).merge(records_of(run), combine_attrs="override").assign_attrs(remark="")
    # Which are about numbers.
    whole = whole.drop_vars(("remark", "series_remark", "changes_remark"), errors="ignore")
    return draw_grid(whole.assign(half_life=whole.half_life * np.nan))
