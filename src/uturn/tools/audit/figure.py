"""The picture of an audit: order consistency against noise and distance, likelihood in several
orders, decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from uturn.studies.plotting.curves import draw_curve, draw_legend, evenly_spaced
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, row_interval
from uturn.tools.audit.numbers import AuditNumbers, Bounds
from uturn.tools.audit.words import decoder_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MOST = 3
"""Noise levels of the panel of distances."""
_WIDTH = 44
"""Characters in a line of a name."""


def draw_audit(numbers: AuditNumbers) -> Figure:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8.6), layout="constrained")
    # The names of decoders narrow the lower panels alone.
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[1, 1.2])).tolist()
    pairs, distances = above.subplots(1, 2)
    orders, decoders = below.subplots(1, 2)
    noise = np.array(numbers.noise)
    for axes, title in (
        (pairs, "(a) Two tokens in two orders"),
        (orders, "(c) A text in several orders"),
    ):
        axes.set_title(title)
        axes.set_xlabel("masked fraction")
        axes.axhline(0, color=THEORY, lw=0.8, ls=":")
        axes.set_xlim(0, 1.02)
    draw_curve(pairs, noise, _table(numbers.order_discrepancy), ACCENT, 0.2, marker="o", ms=4)
    pairs.set_ylabel("inconsistency, nats a pair")
    _draw_distances(distances, noise, numbers)
    _draw_orders(orders, noise, numbers)
    below.legend(
        *orders.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5
    )
    _draw_decoders(decoders, below, numbers)
    return figure


def _draw_distances(axes: Axes, noise: np.ndarray, numbers: AuditNumbers) -> None:
    """The inconsistency against the distance of the two tokens, at a few noise levels."""
    table = {int(end): _table(rows) for end, rows in numbers.order_discrepancy_at.items()}
    ends = sorted(end for end, rows in table.items() if np.isfinite(rows[:, 0]).any())
    for color, k in zip(DISTINCT, evenly_spaced(len(noise), _MOST), strict=False):
        rows = np.array([table[end][k] for end in ends]).reshape(-1, 3)
        label = f"{noise[k]:g} masked"
        draw_curve(axes, np.array(ends), rows, color, 0.15, marker="o", ms=4, label=label)
    if ends:  # none in texts of one token
        axes.set_xscale("log", base=2)
        labels = [f"{end // 2 + 1}-{end}" if end > 2 else str(end) for end in ends]
        axes.set_xticks(ends, labels, fontsize=8.5)
    axes.axhline(0, color=THEORY, lw=0.8, ls=":")
    axes.set(
        title="(b) Against their distance",
        xlabel="distance of the two tokens",
        ylabel="inconsistency, nats a pair",
    )
    draw_legend(axes, "best")


def _draw_orders(axes: Axes, noise: np.ndarray, numbers: AuditNumbers) -> None:
    """The likelihood of a text in several orders, minus left to right."""
    for color, (name, rows) in zip(DISTINCT, numbers.order_nats.items(), strict=False):
        label = decoder_words(name)
        draw_curve(axes, noise, _table(rows), color, 0.1, marker="o", ms=4, label=label)
    differ = _table(numbers.random_orders_differ)
    draw_curve(axes, noise, differ, MUTED, 0.15, ls="--", label="two random orders differ by")
    axes.set_ylabel("log-likelihood minus left to right, nats")


def _draw_decoders(axes: Axes, figure: SubFigure, numbers: AuditNumbers) -> None:
    """The entropy of decoded texts, a row for each decoder."""
    rows = numbers.decoders
    heights = np.arange(len(rows))[::-1]
    for height, row in zip(heights, rows, strict=True):
        color = ACCENT if row.is_exact else CLASS
        row_interval(axes, height, _table([row.ngram_entropy])[0], color, ms=5)
    axes.axvline(0, color=THEORY, lw=0.8, ls=":")
    names = [fill(decoder_words(row.decoder), _WIDTH) for row in rows]
    axes.set_yticks(heights, names, fontsize=8.5)
    axes.set_title("(d) Entropy of texts decoded from masks alone")
    axes.set_xlabel("entropy of tokens minus that of originals, nats")
    for color, words in (
        (ACCENT, "exact for a consistent model"),
        (CLASS, "draws from another law"),
    ):
        axes.plot([], [], "o-", color=color, ms=5, lw=2, label=words)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", fontsize=8.5)


def _table(rows: Sequence[Bounds]) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 3)
