"""Plot of the noise levels of schedulers against the share of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (ACCENT, CLASS, "#009e73", "#e69f00", "#7b3294", THEORY, "#56b4e9", "#8c510a")
_REACH = 9  # limit of the log-SNR axis


def draw_schedules(schedules: Sequence[xr.Dataset], names: Sequence[str]) -> Figure:
    """Left: amplitude of the image in x_t. Right: log-SNR. Both against strength = k/N, with the
    values at 1/2 as text.
    """
    figure: Figure
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
        middles = [
            float(np.interp(0.5, ds.t_over_T.values[1:], ds.log_snr.values[1:])) for ds in schedules
        ]
        # From the top curve (most image) to the bottom curve (most noise).
        order = np.argsort(middles)[::-1]
        for rank, place in enumerate(order):
            ds = schedules[place]
            middle = middles[place]
            color = _COLORS[rank % len(_COLORS)]
            share = ds.t_over_T.values
            marker = ""
            if len(share) <= 61:
                marker = "o"
            look: dict[str, Any] = {"color": color, "marker": marker, "ms": 2.6, "lw": 1.8}
            left.plot(share, np.sqrt(ds.abar), **look)
            number = f"{middle:+.1f}".replace("-", "−")
            label = f"{number}   {names[place]}"
            right.plot(share[1:], ds.log_snr[1:], label=label, **look)
            right.plot(0.5, middle, "o", ms=8, mfc="white", mec=color, mew=2, zorder=4)
        for axes in (left, right):
            axes.axvline(0.5, color=MUTED, lw=1, ls=":", zorder=1)
            axes.set(xlim=(-0.02, 1.02), xlabel="strength, the share of the steps $k/N$")
        right.axhline(0, color=MUTED, lw=1, zorder=1)
        right.text(
            1.02, 0.12, "as much image as noise", color=MUTED, fontsize=9.5, ha="right", va="bottom"
        )
        left.set(ylim=(-0.02, 1.05), ylabel=r"amplitude of the image in $x_t$, $\sqrt{\bar\alpha}$")
        right.set(ylim=(-_REACH, _REACH), ylabel=r"log-SNR (nats)")
        left.set_title("the same strength is not the same noise")
        right.set_title("where strength ½ begins")
        right.legend(
            loc="upper right",
            title="log-SNR at strength ½",
            alignment="left",
            borderpad=0,
            labelspacing=0.35,
        )
    return figure
