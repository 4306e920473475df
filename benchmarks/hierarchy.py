"""Which data look hierarchical to the nesting index: grammars against controls, the dial of
hierarchical filtering, and limits.

    python benchmarks/hierarchy.py [--part PART ...] [--draws 20] [--picture FILE.png]

`design` are the parameters on which the index was chosen. `held-out` are those written down before
it was computed on them. Each draw has 100 originals with 8 trajectories at 23 noise levels. A set
takes one to two minutes on one core. `inversion` shows data whose order of levels inverts, with and
without a hierarchy, beside their nesting index.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from uturn.core.experiment import Experiment
from uturn.engine.run import run
from uturn.measures.hierarchy import nested_correlations, nesting_index
from uturn.measures.statistics import Estimate, hierarchy_index, nonincreasing, rescaled
from uturn.paper.specs import experiment_of
from uturn.studies.plotting.curves import draw_curve
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, bars, level_colors, name_rows, style

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from flat_data import (
    ITEMS,
    NOISE,
    TRAJECTORIES,
    changes,
    grammar_changes,
    grammar_experiment,
    two_scales,
    two_scales_law,
    vector_changes,
)
from test_nesting_index import nested_bursts, noise_of

DESIGN: dict[str, list[Any]] = {  # the parameters on which the index was chosen
    # (v, m, s, L), as many classes as symbols
    "grammars": [
        *((32, 8, 2, 3), (32, 8, 2, 5), (32, 12, 2, 3), (32, 12, 2, 5), (16, 4, 2, 4)),
        *((16, 6, 2, 3), (8, 2, 2, 3), (8, 3, 2, 4), (32, 2, 2, 5), (8, 8, 3, 3)),
    ],
    # (v, m, s), strings side by side
    "one-level grammars": [
        *(((4, 512, 8), 1), ((4, 512, 8), 4), ((8, 512, 8), 1), ((4, 16, 8), 1), ((2, 4, 8), 1)),
        *(((4, 128, 8), 2), ((8, 64, 4), 1), ((8, 64, 4), 8), ((16, 8, 4), 2), ((32, 8, 2), 8)),
    ],
    "unrelated features": [
        [("grammar", 4, 512, 8), ("grammar", 4, 16, 8)],
        [("grammar", 8, 64, 4), ("grammar", 4, 4, 4)],
        [("mixture", 16, 16.0, 16), ("mixture", 4, 10.0, 16)],
        [("mixture", 16, 16.0, 16), ("mixture", 4, 10.0, 8), ("mixture", 8, 6.0, 8)],
        [("grammar", 4, 512, 8), ("grammar", 4, 16, 4), ("grammar", 8, 4, 4)],
        [("grammar", 4, 16, 8), ("mixture", 8, 16.0, 8)],
        [
            ("mixture", 64, 16.0, 32),
            ("grammar", 4, 16, 8),
            ("grammar", 4, 128, 8),
            ("mixture", 2, 12.0, 16),
        ],
        [("mixture", 2, 32.0, 32), ("mixture", 32, 16.0, 32)],
        [
            ("grammar", 4, 16, 8),
            ("grammar", 2, 4, 8),
            ("grammar", 8, 512, 8),
            ("mixture", 4, 10.0, 8),
        ],
        [("mixture", 8, 24.0, 64), ("mixture", 8, 8.0, 32), ("mixture", 8, 4.0, 32)],
    ],
    # (modes, distance between means in standard deviations, sites)
    "random codes": [
        (256, 9.0, 64),
        (1000, 10.0, 128),
        (500, 9.5, 256),
        (1000, 9.0, 64),
        (128, 8.0, 128),
    ],
    "flat mixtures": [
        (2, 32.0, 64),
        (4, 16.0, 64),
        (8, 24.0, 128),
        (32, 16.0, 64),
        (64, 24.0, 128),
    ],
    # and the exponent of the weights k**-exponent of the modes
    "unequal mixtures": [
        (5, 16.0, 64, 1.0),
        (3, 24.0, 64, 2.0),
        (16, 16.0, 128, 1.0),
        (32, 12.0, 64, 0.5),
        (8, 32.0, 32, 1.5),
    ],
    # (size, exponent of the power spectrum)
    "fields": [(8, 1.0), (16, 2.0), (16, 3.0), (8, 2.0), (16, 0.5)],
}

HELD_OUT: dict[str, list[Any]] = {
    "grammars": [
        *((24, 6, 2, 3), (24, 9, 2, 4), (12, 3, 2, 5), (12, 2, 2, 3), (20, 5, 2, 6)),
        *((20, 3, 2, 4), (48, 18, 2, 3), (6, 4, 3, 3), (5, 6, 3, 4), (4, 8, 4, 3)),
    ],
    "one-level grammars": [
        *(((3, 300, 9), 1), ((6, 200, 8), 1), ((5, 1000, 8), 1), ((16, 64, 4), 1), ((2, 8, 8), 1)),
        *(((4, 512, 8), 2), ((10, 30, 8), 2), ((3, 40, 8), 4), ((24, 4, 4), 4), ((12, 5, 2), 16)),
    ],
    "unrelated features": [
        [("grammar", 5, 100, 8), ("grammar", 3, 20, 8)],
        [("grammar", 12, 20, 4), ("grammar", 6, 3, 4)],
        [("mixture", 10, 12.0, 32), ("mixture", 3, 8.0, 32)],
        [
            ("mixture", 100, 14.0, 32),
            ("grammar", 5, 20, 8),
            ("grammar", 3, 10, 8),
            ("mixture", 6, 10.0, 16),
        ],
        [("grammar", 6, 200, 8), ("grammar", 10, 5, 4), ("grammar", 5, 3, 4)],
        [("grammar", 3, 8, 8), ("mixture", 20, 20.0, 8)],
        [("mixture", 3, 28.0, 64), ("mixture", 50, 12.0, 64)],
        [
            ("grammar", 10, 30, 8),
            ("grammar", 3, 9, 8),
            ("grammar", 5, 400, 8),
            ("mixture", 5, 9.0, 8),
        ],
        [("mixture", 300, 9.0, 64), ("mixture", 6, 5.0, 64)],
        [("mixture", 12, 20.0, 32), ("mixture", 12, 7.0, 16), ("mixture", 12, 3.0, 16)],
    ],
    "random codes": [
        (300, 8.5, 128),
        (800, 9.5, 64),
        (700, 10.5, 256),
        (400, 9.0, 64),
        (200, 8.0, 64),
    ],
    "flat mixtures": [
        (3, 20.0, 128),
        (6, 28.0, 64),
        (12, 14.0, 64),
        (20, 40.0, 128),
        (48, 18.0, 256),
    ],
    "unequal mixtures": [
        (4, 20.0, 128, 1.2),
        (10, 14.0, 64, 0.8),
        (6, 28.0, 64, 2.5),
        (24, 16.0, 128, 1.0),
        (12, 10.0, 32, 0.6),
    ],
    "fields": [(8, 0.8), (16, 1.5), (8, 3.5), (16, 2.5), (16, 1.2)],
}
CONTROLS = tuple(kind for kind in HELD_OUT if kind != "grammars")


def indices(
    chosen: dict[str, list[Any]],
    draws: int,
    items: int = ITEMS,
    channel: str = "gaussian",
    report: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Nesting index of `draws` draws of the data of every kind; draw k has parameters k modulo
    their number, and seed k.
    """
    index: dict[str, list[float]] = {}
    for kind, parameters in chosen.items():
        cases = [parameters[k % len(parameters)] for k in range(draws)]
        drawn = [changes(kind, case, seed, items, channel) for seed, case in enumerate(cases)]
        index[kind] = [nesting_index(changed, branching).value for changed, branching in drawn]
        for k, value in enumerate(index[kind] if report else ()):
            report(f"{kind}, {parameters[k % len(parameters)]}, seed {k}: {value:.3f}")
    return index


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive number is larger than a negative one; ties count one half."""
    pairs = np.subtract.outer(np.asarray(positive, float), np.asarray(negative, float))
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def separation(name: str, chosen: dict[str, list[Any]], draws: int, verbose: bool) -> Table:
    """Indices of every kind, and how well grammars are told from each control."""
    found = indices(chosen, draws, report=print if verbose else None)
    table = Table(
        "data",
        "smallest",
        "median",
        "largest",
        "AUC against grammars",
        title=f"nesting index, {name} parameters, {draws} draws",
    )
    for kind, values in found.items():
        score = f"{auc(found['grammars'], values):.3f}" if kind in CONTROLS else ""
        table.add_row(kind, *(f"{f(values):.3f}" for f in (np.min, np.median, np.max)), score)
    together = np.concatenate([found[kind] for kind in CONTROLS])
    table.add_row(
        "all controls",
        *(f"{f(together):.3f}" for f in (np.min, np.median, np.max)),
        f"{auc(found['grammars'], together):.3f}",
    )
    return table


def channels(draws: int) -> Table:
    """Grammars and one-level grammars of the held-out parameters, observed in another way."""
    table = Table(
        "channel",
        "data",
        "smallest",
        "median",
        "largest",
        "AUC",
        title="nesting index, held-out parameters",
    )
    kinds = ("grammars", "one-level grammars")
    for channel in ("gaussian", "masking", "uniform", "epsilon"):
        found = indices({kind: HELD_OUT[kind] for kind in kinds}, draws, channel=channel)
        for kind in kinds:
            score = f"{auc(*found.values()):.3f}" if kind == kinds[1] else ""
            table.add_row(
                channel,
                kind,
                *(f"{f(found[kind]):.3f}" for f in (np.min, np.median, np.max)),
                score,
            )
    return table


def dial(items: int) -> Table:
    """The index along the dial of hierarchical filtering, several grammars each."""
    grammars = [
        (32, 8, 2, 5),
        (16, 4, 2, 5),
        (8, 2, 2, 5),
        (32, 4, 2, 6),
        (24, 6, 2, 4),
        (8, 8, 3, 3),
    ]
    table = Table(
        "(v, m, s), L",
        *(f"k = {k}" for k in range(6, -1, -1)),
        title=f"tree above level k replaced by independent draws, {items} originals",
    )
    for v, m, s, L in grammars:
        row = []
        for k in range(6, -1, -1):
            source = {
                "type": "filtered_rhm",
                "vocab_size": v,
                "multiplicity": m,
                "branching": s,
                "depth": L,
                "filtered_above": k,
                "grammars": 10,
            }
            row.append(str(nesting_index(grammar_changes(source, 0, items), s)) if k <= L else "")
        table.add_row(f"({v}, {m}, {s}), {L}", *row)
    return table


def limits() -> Table:
    """Data of which a reader should know what the index says."""
    table = Table("data", "nesting index", title="limits")
    grammars = [
        ("two levels, (32, 8, 2)", (32, 8, 2, 2)),
        ("s f = 5/4, (32, 20, 2), L = 5", (32, 20, 2, 5)),
        ("f = 1, (16, 16, 2), L = 5", (16, 16, 2, 5)),
        ("one rule a symbol, (16, 1, 2), L = 4", (16, 1, 2, 4)),
    ]
    for words, parameters in grammars:
        table.add_row(words, str(nesting_index(*changes("grammars", parameters, 0))))
    tree, _ = changes("grammars", (16, 4, 2, 4), 0)
    table.add_row("(16, 4, 2), L = 4", str(nesting_index(tree, 2)))
    shuffled = tree.isel(site=np.random.default_rng(0).permutation(tree.sizes["site"]))
    table.add_row("the same, sites in random order", str(nesting_index(shuffled, 2)))
    table.add_row("the same, blocks displaced by 1 site", str(nesting_index(tree.roll(site=1), 2)))
    code, _ = changes("one-level grammars", ((4, 16, 8), 4), 0)
    table.add_row("one-level grammar (4, 16, 8), blocks aligned", str(nesting_index(code, 2)))
    table.add_row("the same, blocks displaced by 3 sites", str(nesting_index(code.roll(site=3), 2)))
    for stay in (0.6, 0.8, 0.95):
        chain = markov_changes(stay)
        table.add_row(
            f"Markov chain of 8 symbols that stays with probability {stay}",
            str(nesting_index(chain, 2)),
        )
        table.add_row(
            "the same, blocks displaced by 1 site", str(nesting_index(chain.roll(site=1), 2))
        )
    ramp = np.linspace(0.2, 0.9, 16)
    for words, shares in (
        ("in order", ramp),
        ("in random order", np.random.default_rng(2).permutation(ramp)),
    ):
        table.add_row(
            f"one class, sites that follow it with probability 0.2 .. 0.9, {words}",
            str(nesting_index(one_class(shares), 2)),
        )
    bursts = nested_bursts()
    table.add_row(
        "independent bits, noise in nested bursts", str(nesting_index(bursts["changes"], 2))
    )
    table.add_row("the same, from originals to noisy data", str(nesting_index(bursts["noise"], 2)))
    for channel in ("gaussian", "masking", "uniform"):
        made = grammar_experiment(
            {"vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4}, 0, channel=channel
        )
        table.add_row(
            f"(16, 4, 2), L = 4, {channel}, from originals to noisy data",
            str(nesting_index(noise_of(made), 2)),
        )
    return table


def one_class(shares: np.ndarray, items: int = 100, trajectories: int = 8) -> xr.DataArray:
    """Changes (noise, item, trajectory, site) of sites that change only with one class, site i
    with probability shares[i].
    """
    levels, rng = [0.1, 0.3, 0.5, 0.7, 1.0], np.random.default_rng(0)
    lost = rng.random((len(levels), items, trajectories, 1)) < np.reshape(levels, (-1, 1, 1, 1))
    changed = (lost & (rng.random((*lost.shape[:3], len(shares))) < shares)).astype(float)
    return xr.DataArray(
        changed, dims=("noise", "item", "trajectory", "site"), coords={"noise": levels}
    )


def size(draws: int = 12) -> Table:
    """The index from fewer U-turns: mean over draws, and spread between them."""
    sizes = ((100, 8), (50, 4), (20, 4), (20, 2))
    table = Table(
        "data",
        *(f"{items} originals, {count} trajectories" for items, count in sizes),
        title=f"nesting index, {draws} draws",
    )
    for kind, parameters in (
        ("grammars", (16, 4, 2, 4)),
        ("grammars", (24, 6, 2, 3)),
        ("one-level grammars", ((5, 1000, 8), 1)),
    ):
        row = []
        for items, count in sizes:
            drawn = [changes(kind, parameters, seed, items) for seed in range(draws)]
            found = [
                nesting_index(changed.isel(trajectory=slice(count)), s).value
                for changed, s in drawn
            ]
            row.append(f"{np.mean(found):.3f} +- {np.std(found):.3f}")
        table.add_row(f"{kind}, {parameters}", *row)
    return table


def intervals(repetitions: int = 200) -> Table:
    """How often 95 % intervals from 100 originals of one law contain the index of all originals
    together.
    """
    table = Table(
        "data",
        "index of all",
        "mean",
        "inside",
        "above it",
        "below it",
        title=f"{repetitions} intervals",
    )
    for kind, parameters in (
        ("grammars", (16, 4, 2, 4)),
        ("grammars", (24, 6, 2, 3)),
        ("one-level grammars", ((4, 512, 8), 1)),
    ):
        changed, s = changes(kind, parameters, 1, 100 * repetitions)
        truth = nesting_index(changed, s).value
        found = [
            nesting_index(changed.isel(item=slice(100 * k, 100 * k + 100)), s)
            for k in range(repetitions)
        ]
        above, below = (
            np.mean([one.low > truth for one in found]),
            np.mean([one.high < truth for one in found]),
        )
        mean = np.mean([one.value for one in found])
        row = (truth, mean, 1 - above - below, above, below)
        table.add_row(f"{kind}, {parameters}", *(f"{one:.3f}" for one in row))
    return table


def levels() -> Table:
    """Correlation of the shares of unchanged nodes of neighbouring levels: no sign of a
    hierarchy of the data.
    """
    table = Table(
        "(v, m, s), L",
        "levels 0 and 1, 1 and 2, ..",
        title="correlation between the readings of neighbouring tree levels",
    )
    for v, m, s, L in ((32, 8, 2, 5), (16, 16, 2, 5)):
        spec = {
            "items": 100,
            "trajectories": TRAJECTORIES,
            "source": {
                "type": "rhm",
                "vocab_size": v,
                "multiplicity": m,
                "branching": s,
                "depth": L,
            },
            "corruption": {"type": "gaussian", "noise": NOISE.tolist()},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}],
        }
        unchanged = run(Experiment.from_dict(spec)).unchanged
        x = (
            (unchanged - unchanged.mean("trajectory"))
            .transpose("noise", "item", "trajectory", "tree_level")
            .values
        )
        covariance = np.einsum("nitk,nitl->kl", x, x)
        scale = np.sqrt(np.diag(covariance))
        table.add_row(
            f"({v}, {m}, {s}), {L}",
            ", ".join(f"{one:.2f}" for one in np.diag(covariance / np.outer(scale, scale), 1)),
        )
    return table


FILTERED = {"vocab_size": 24, "multiplicity": 6, "branching": 2, "depth": 4, "grammars": 10}
"""The grammars of the picture; as many draws of other data have parameters of `HELD_OUT`."""


def inversion(items: int = 600) -> Table:
    """Hierarchy index, against the low level by itself and as it was reconstructed, and nesting
    index of the same data.
    """
    table = Table(
        "data",
        "isolated",
        "reconstructed",
        "nesting index",
        title="order of the levels, and nesting",
    )
    for case in inverted(items):
        isolated, reconstructed = (str(index) for index in case.hierarchy)
        table.add_row(case.words, isolated, reconstructed, str(case.nesting))
    return table


class Inverted(NamedTuple):
    """Curves of a high and a low level, (noise, item), and what the two indices say of them."""

    words: str
    high: xr.DataArray
    isolated: xr.DataArray
    hierarchy: tuple[Estimate, Estimate]
    nesting: Estimate


def inverted(items: int) -> list[Inverted]:
    """A sparse grammar, the same process where the class is lost before the leaves, and flat
    data with details of two scales.
    """
    noise = np.r_[np.geomspace(0.015, 0.4, 25), 0.6, 0.9, 1.5, 4, np.inf].round(4)
    cases = []
    for words, (v, m) in (
        ("grammar (32, 4, 2), s f = 1/4, L = 7", (32, 4)),
        ("grammar (32, 20, 2), s f = 5/4, L = 7", (32, 20)),
    ):
        source = {"type": "rhm", "vocab_size": v, "multiplicity": m, "branching": 2, "depth": 7}
        read = run(
            experiment_of(
                {**source, "grammars": 6}, "gaussian", noise, "tree_levels", items=120, chunk=120
            )
        )
        high, low = (read.belief.isel(tree_level=level, drop=True) for level in (-1, 0))
        isolated = (1 - read.effective_epsilon).reset_coords(drop=True)
        found = hierarchy_index(high, isolated), hierarchy_index(high, low)
        cases.append(
            Inverted(words, high, isolated, found, nesting_index(grammar_changes(source, 0), 2))
        )
    flat = two_scales(items)
    floors = 0.5, 0.0
    found = (
        hierarchy_index(flat.high, flat.isolated, floors),
        hierarchy_index(flat.high, flat.low, floors),
    )
    words = "flat: 2 modes beside details of 2 scales"
    cases.append(
        Inverted(
            words,
            flat.high,
            flat.isolated,
            found,
            nesting_index(vector_changes(two_scales_law(), 0), 2),
        )
    )
    return cases


def picture(path: Path) -> None:
    """The picture of docs/structure.md: order of the levels, nested correlations, the index of
    every draw, the dial.
    """
    with style() as plt:
        figure, (plane, levels, draws, dial) = plt.subplots(
            1, 4, figsize=(16.5, 3.7), width_ratios=[1, 1, 1.2, 1], layout="constrained"
        )
        _draw_planes(plane)
        filtered = {
            k: grammar_changes({"type": "filtered_rhm", **FILTERED, "filtered_above": k}, 0, 200)
            for k in range(FILTERED["depth"] + 1)
        }
        _draw_levels(levels, filtered)
        _draw_draws(draws)
        _draw_dial(dial, filtered)
        figure.savefig(path, dpi=100)


def _draw_planes(axes: Any) -> None:
    """The class against the isolated low level: above the diagonal the class is the better
    preserved.
    """
    for case, color in zip(inverted(600), (CLASS, MUTED, "#7b3294"), strict=True):
        high = nonincreasing(rescaled(case.high.mean("item").values))
        low = rescaled(case.isolated.values)
        label = f"{case.words.removesuffix(', L = 7')}: {case.nesting.value:.2f}"
        axes.plot(
            np.r_[1, low], np.r_[1, high], color=color, lw=2, label=label.replace("grammar ", "")
        )
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.set(
        xlabel="low level by itself: $r_L$", ylabel="class: $r_H$", title="order of the levels"
    )
    axes.set(ylim=(-0.05, 1.5), yticks=[0, 0.5, 1])
    axes.legend(title="data: nesting index", fontsize=8, title_fontsize=8.5, loc="upper left")


def _draw_levels(axes: Any, filtered: dict[int, xr.DataArray]) -> None:
    """Nested correlations with 95 % intervals."""
    shown = {
        "grammar (24, 6, 2), L = 4": (filtered[FILTERED["depth"]], 2),
        "the same, above k = 2 removed": (filtered[2], 2),
        "one-level grammar, s = 8": changes("one-level grammars", ((5, 1000, 8), 1), 0),
        "mixture, 6 modes": changes("flat mixtures", (6, 28.0, 64), 0),
        "field": changes("fields", (8, 0.8), 0),
    }
    colors = (CLASS, "#e69f00", ACCENT, "#56b4e9", "#009e73")
    for (label, (changed, branching)), color, marker in zip(
        shown.items(), colors, "osDv^", strict=True
    ):
        nested = nested_correlations(changed, branching).nested.values
        draw_curve(
            axes,
            np.arange(1, len(nested) + 1),
            nested,
            color,
            0.2,
            marker=marker,
            ms=5,
            label=label,
        )
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(
        xlabel="level $k$ of the block",
        ylabel="nested correlation $D_k$",
        title="nested correlations",
    )
    axes.legend(fontsize=8.5)


def _draw_draws(axes: Any, draws: int = 10) -> None:
    """The nesting index of every draw, with held-out parameters."""
    for row, values in enumerate(indices(HELD_OUT, draws).values()):
        color = ACCENT if row else CLASS
        spread = np.linspace(-0.25, 0.25, draws)
        axes.plot(
            values,
            row + spread,
            "o",
            ms=4.5,
            color=color,
            mfc="white" if row else color,
            clip_on=False,
        )
    name_rows(axes, ["grammars,\n$L \\geq 3$, $sf \\leq 3/4$", *CONTROLS], fontsize=9.5)
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set(xlabel="nesting index", title="every draw of all data", xlim=(-0.01, None))


def _draw_dial(axes: Any, filtered: dict[int, xr.DataArray]) -> None:
    """The nesting index of a grammar whose tree above level k is replaced by independent draws."""
    index = np.array(
        [nesting_index(changed, FILTERED["branching"]) for changed in filtered.values()]
    )
    k = np.array(list(filtered))
    for step, color in enumerate(level_colors(len(k))):
        bars(axes, k[[step]], index[[step]], fmt="o", color=color, capsize=3)
    axes.plot(k, index[:, 0], color=MUTED, lw=1, zorder=0)
    axes.set_xticks(k)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(
        xlabel="tree above level $k$ replaced",
        ylabel="nesting index",
        title="hierarchical filtering, (24, 6, 2)",
    )


def markov_changes(
    stay: float, symbols: int = 8, sites: int = 32, items: int = 100
) -> xr.DataArray:
    """Changes of the sites of a Markov chain, which has no hierarchy: Gaussian diffusion, exact
    posterior draws.
    """
    rng = np.random.default_rng(0)
    move = np.full((symbols, symbols), (1 - stay) / (symbols - 1))
    np.fill_diagonal(move, stay)

    def drawn(law: np.ndarray) -> np.ndarray:
        return (
            (np.cumsum(law, axis=1) < rng.random((len(law), 1))).sum(axis=1).clip(max=symbols - 1)
        )

    chain = [rng.integers(0, symbols, items)]
    for _ in range(sites - 1):
        chain.append(drawn(move[chain[-1]]))
    x0 = np.repeat(np.stack(chain, axis=1), TRAJECTORIES, axis=0)
    found = []
    for t in NOISE:
        a, spread = np.exp(-t), np.sqrt(-np.expm1(-2 * t))
        x = a * np.eye(symbols)[x0] + spread * rng.standard_normal((*x0.shape, symbols))
        evidence = np.exp(
            (a * x - a * a / 2) / spread**2
            - ((a * x - a * a / 2) / spread**2).max(axis=-1, keepdims=True)
        )
        forward = [evidence[:, 0]]
        for i in range(1, sites):
            step = forward[-1] @ move * evidence[:, i]
            forward.append(step / step.sum(axis=1, keepdims=True))
        last = drawn(forward[-1] / forward[-1].sum(axis=1, keepdims=True))
        rebuilt = [last]
        for i in range(sites - 2, -1, -1):
            law = forward[i] * move[:, rebuilt[-1]].T
            rebuilt.append(drawn(law / law.sum(axis=1, keepdims=True)))
        found.append((np.stack(rebuilt[::-1], axis=1) != x0).reshape(items, TRAJECTORIES, sites))
    return xr.DataArray(
        np.array(found, float),
        dims=("noise", "item", "trajectory", "site"),
        coords={"noise": NOISE},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = {
        "channels": lambda: channels(chosen.draws),
        "dial": lambda: dial(chosen.items),
        "limits": limits,
        "size": size,
        "intervals": intervals,
        "levels": levels,
        "inversion": inversion,
    }
    parts = ["design", "held-out", *tables]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--draws", type=int, default=20, help="draws of every kind of data")
    parser.add_argument("--items", type=int, default=400, help="originals of the dial")
    parser.add_argument("--verbose", action="store_true", help="print the index of every draw")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="draw the picture of the docs, and nothing else",
    )
    chosen = parser.parse_args()
    if chosen.picture:
        picture(chosen.picture)
        return
    for part in chosen.part:
        start = time.monotonic()
        if part in tables:
            table = tables[part]()
        else:
            table = separation(
                part, DESIGN if part == "design" else HELD_OUT, chosen.draws, chosen.verbose
            )
        Console(width=160).print(table)
        print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
