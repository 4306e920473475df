"""A figure of the upward map F(p) and its fixed points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uturn.exact.theory import MeanField
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(mf: MeanField) -> Figure:
    """Left: the map, the diagonal and fixed points, filled if stable. Right: belief by tree
    level on both sides of ε*.
    """
    v = mf.vocab_size
    p = np.linspace(1 / v, 1, 800)
    figure: Figure
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.3), layout="constrained")
        left.plot(p, p, color=MUTED, lw=1, ls="--")
        left.plot(p, mf.upward_map(p), color=THEORY)
        left.set(
            xlabel=r"belief $p$",
            ylabel=r"belief one level up, $F(p)$",
            xlim=(0, 1),
            ylim=(0, 1.02),
            aspect="equal",
        )
        for place, slope in ((1.0, mf.slope_at_one), (1 / v, float(mf.slope_at(1 / v)))):
            face = "white"
            if slope < 1:
                face = ACCENT
            look = {"ms": 8, "color": ACCENT, "mfc": face, "zorder": 4, "clip_on": False}
            left.plot([place], [place], "o", **look)
        star = mf.fixed_point
        if star is not None:
            left.plot([star], [star], "o", ms=8, color=CLASS, mfc="white", mew=2, zorder=4)
            words = rf"$p^*={star:.3f}$, $\epsilon^*={mf.critical_noise:.3f}$"
            left.annotate(words, (star, star), xytext=(10, -14), textcoords="offset points")
        left.set_title(f"$v={v}$, $m={mf.multiplicity}$, $s={mf.branching}$: {mf.phase}")
        centre = 0.5
        if mf.critical_noise is not None:
            centre = mf.critical_noise
        reach = min(0.08, centre, 1 - centre)
        for offset in np.linspace(-1, 1, 9):
            noise = centre + reach * offset
            orbit = mf.curves(noise, 20).upward
            right.plot(
                orbit,
                color=plt.get_cmap("coolwarm")(0.5 + 0.5 * offset),
                lw=1.4,
                label=rf"$\epsilon={noise:.3f}$",
            )
        right.set(xlabel="tree level (0 = leaves)", ylabel="upward belief in the true symbol")
        right.set(ylim=(0, 1.02), xlim=(0, 20), xticks=range(0, 21, 5))
        right.set_title("up a deep tree")
        right.legend(fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
