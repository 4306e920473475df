"""The picture of an audit: order consistency against noise and distance, likelihood in several
orders, decoders.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np

from uturn.studies.plotting.curves import draw_curve, draw_legend, evenly_spaced
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, row_interval

_MOST = 3  # noise levels of the panel of distances
_WIDTH = 44  # characters in a line of a name
_ORDERS = {
    "random": "random order",
    "blocks of 1": "left to right",
    "entropy": "lowest entropy",
    "probability": "largest probability",
}


def decoder_words(description: str) -> str:
    """A decoder in few words.

    >>> decoder_words("order blocks of 1, 16 steps")
    'left to right, 16 steps'
    >>> decoder_words("order analytic, 16 steps, drawn tokens masked again (cap, eta 0.1)")
    'analytic, 16 steps, remasked (cap, eta 0.1)'
    """
    order, *more = (
        description.removeprefix("order ")
        .replace("drawn tokens masked again", "remasked")
        .split(", ")
    )
    return ", ".join([_ORDERS.get(order, order), *more])


def draw_audit(numbers: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    figure: Any = plt.figure(figsize=(11, 8.6), layout="constrained")
    # The names of decoders narrow the lower panels alone.
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.2])
    (pairs, distances), (orders, decoders) = above.subplots(1, 2), below.subplots(1, 2)
    noise = np.array(numbers["noise"], float)
    for axis, title in (
        (pairs, "(a) Two tokens in two orders"),
        (orders, "(c) A text in several orders"),
    ):
        axis.set_title(title)
        axis.set_xlabel("masked fraction")
        axis.axhline(0, color=THEORY, lw=0.8, ls=":")
        axis.set_xlim(0, 1.02)
    draw_curve(pairs, noise, _table(numbers["order_discrepancy"]), ACCENT, 0.2, marker="o", ms=4)
    pairs.set_ylabel("inconsistency, nats a pair")

    table = {int(end): _table(rows) for end, rows in numbers["order_discrepancy_at"].items()}
    ends = sorted(end for end, rows in table.items() if np.isfinite(rows[:, 0]).any())
    for color, k in zip(DISTINCT, evenly_spaced(len(noise), _MOST), strict=False):
        rows = np.array([table[end][k] for end in ends]).reshape(-1, 3)
        draw_curve(
            distances,
            np.array(ends),
            rows,
            color,
            0.15,
            marker="o",
            ms=4,
            label=f"{noise[k]:g} masked",
        )
    if ends:  # none in texts of one token
        distances.set_xscale("log", base=2)
        distances.set_xticks(
            ends, [f"{end // 2 + 1}-{end}" if end > 2 else str(end) for end in ends], fontsize=8.5
        )
    distances.axhline(0, color=THEORY, lw=0.8, ls=":")
    distances.set(
        title="(b) Against their distance",
        xlabel="distance of the two tokens",
        ylabel="inconsistency, nats a pair",
    )
    draw_legend(distances, "best")

    for color, (name, rows) in zip(DISTINCT, numbers["order_nats"].items(), strict=False):
        draw_curve(
            orders, noise, _table(rows), color, 0.1, marker="o", ms=4, label=decoder_words(name)
        )
    differ = _table(numbers["random_orders_differ"])
    draw_curve(orders, noise, differ, MUTED, 0.15, ls="--", label="two random orders differ by")
    orders.set_ylabel("log-likelihood minus left to right, nats")
    below.legend(
        *orders.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5
    )

    rows, y = numbers["decoders"], np.arange(len(numbers["decoders"]))[::-1]
    for at, row in zip(y, rows, strict=True):
        row_interval(
            decoders,
            at,
            _table(row["ngram_entropy"])[0],
            ACCENT if row["is_exact"] else CLASS,
            ms=5,
        )
    decoders.axvline(0, color=THEORY, lw=0.8, ls=":")
    decoders.set_yticks(
        y, [fill(decoder_words(row["decoder"]), _WIDTH) for row in rows], fontsize=8.5
    )
    decoders.set_title("(d) Entropy of texts decoded from masks alone")
    decoders.set_xlabel("entropy of tokens minus that of originals, nats")
    for color, words in (
        (ACCENT, "exact for a consistent model"),
        (CLASS, "draws from another law"),
    ):
        decoders.plot([], [], "o-", color=color, ms=5, lw=2, label=words)
    below.legend(*decoders.get_legend_handles_labels(), loc="outside lower right", fontsize=8.5)
    return figure


def _table(rows: Any) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 3)
