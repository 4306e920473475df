"""Which posterior samplers of inverse problems draw from the posterior, which test sees their
errors, and their cost.
"""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from uturn.measures.calibration import holm
from uturn.measures.intervals import mean_interval
from uturn.paper.verdicts import (
    ESTIMATE,
    Verdict,
    above,
    below,
    equal,
    holds,
    listed,
    shows,
    verdict,
)
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, name_rows, style
from uturn.tools.inverse.exam_runs import CLONES, ERRORS, EXACT, LABELS, NOISE, OTHERS, REPAIRED
from uturn.tools.inverse.exam_runs import measure as measure  # of the figure
from uturn.tools.inverse.kinds import KINDS, Kind
from uturn.tools.inverse.posteriors import posterior_tests

TITLE = "Does a posterior sampler tell the truth? Eight samplers of inverse problems"
CLAIM = (
    "Clones of one measurement show which samplers do not draw from the posterior; no single"
    " reading sees all errors."
)
CAPTION = (
    "Samplers of inverse problems on trial, with the exact denoiser of a law whose posterior is"
    " known: a mixture of three Gaussian fields and one field, 4 x 4 pixels in [0, 1]; inpainting,"
    " blur and downsampling, each with two strengths of noise. Black: samplers of the posterior;"
    " blue: those of deepinv with its defaults, and the posterior mean; red: the exact conditional"
    " score with errors put in on purpose. A cell is a law, an operator and a strength of noise."
    " (a) Energy distance to exact draws, which tests of real samplers do not know, with 95 %"
    " intervals over measurements; values below .001 stand there, and grey is what other exact"
    " draws reach (upper ends of intervals). Full marks: the four tests of means together see an"
    " error. (b) Number of cells in which a test of clones sees one at level .01: the four tests of"
    " means, each with Holm's correction for four; the four together; and the ranks of log p(y|x),"
    " log p(x) and the mean value, and TARP. (c) The kind of error that `ut.posterior_tests` names."
    " (d) Calls of the network for a draw. (e, f) Sizes of two gaps against the true distance, of"
    " samplers without errors put in on purpose: gaps of one size belong to very different"
    " distances."
)
LEVEL = 0.01
FAR = 0.02
"""Energy distance above which a sampler has to be caught."""
PRECISE = 0.01
"""Largest width of the interval of a distance that holds 0."""
MEANS = ["distance", "same class", "log p(y|x)", "log p(x)"]
BESIDE = ["ranks", "TARP"]
DDRM = OTHERS["ddrm"]
FULL = REPAIRED["ddrm_full"]
MEAN = OTHERS["mean"]
DPS = OTHERS["dps"]
REAL = [*OTHERS.values(), *REPAIRED.values()]
WRONG = [*REAL, *ERRORS.values()]
_TESTS = {
    "distance": "distance",
    "same_component": "same class",
    "log_likelihood": "log p(y|x)",
    "log_prior": "log p(x)",
}
_RANKED = ["log_likelihood", "log_prior", "mean_value"]


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    pairs = list(dict.fromkeys(label.rpartition("-")[0] for label in runs if label != "calls"))
    cells = [f"{pair.replace('-', ', ')}, σ = {noise:g}" for pair in pairs for noise in NOISE]
    rows = [[_of_run(runs[f"{pair}-{name}"]) for pair in pairs] for name in LABELS]
    together = {
        name: np.array([np.concatenate([row[name] for row in of_pairs]) for of_pairs in rows])
        for name in rows[0][0]
    }
    # (sampler, cell, item)
    energy = together.pop("energy")
    null = together.pop("null_energy")
    dims: dict[str, tuple[str, ...]] = {
        "p": ("test",),
        "effect": ("reading", "estimate"),
        "kind": (),
    }
    by_label = dict(zip(LABELS.values(), energy, strict=True))
    data = xr.Dataset(
        {name: (("sampler", "cell", *dims[name]), values) for name, values in together.items()},
        {
            "sampler": list(LABELS.values()),
            "cell": cells,
            "test": [*MEANS, *BESIDE],
            "reading": MEANS,
            "estimate": ESTIMATE,
        },
        {"items": energy.shape[2], "clones": CLONES},
    )
    data["energy"] = ("sampler", "cell", "estimate"), mean_interval(np.moveaxis(energy, 2, 0))
    data["mean_energy"] = ("sampler", "estimate"), mean_interval(energy.mean(axis=1).T)
    data["null_energy"] = ("cell", "estimate"), mean_interval(null[0].T)
    data["less_energy"] = "estimate", mean_interval((by_label[DDRM] - by_label[FULL]).mean(axis=0))
    data["calls"] = "sampler", runs["calls"].calls.sel(sampler=list(LABELS)).values
    return data, verdicts(data)


def _of_run(run: xr.Dataset) -> dict[str, np.ndarray]:
    """p-values, gaps and kinds of errors of a run by noise level, and energy distances, (noise,
    item).
    """
    tests = posterior_tests(run, LEVEL)
    ranks = tests.rank_p.sel(reading=_RANKED)
    p = [
        tests.p.sel(reading=list(_TESTS)).values,
        (ranks.min("reading") * len(_RANKED)).clip(max=1).values[:, None],
    ]
    p.append(tests.rank_p.sel(reading=["reference_distance"]).values)
    by_item = (
        run[["energy", "null_energy"]].mean(("trajectory", "clone")).transpose("noise", "item")
    )
    effect = tests.effect.sel(reading=list(_TESTS)).transpose("noise", "reading", "estimate").values
    return {"p": np.concatenate(p, axis=1), "effect": effect, "kind": tests.kind.values} | {
        str(name): distances.values for name, distances in by_item.items()
    }


# -- verdicts --------------------------------------------------------------------------------------


def verdicts(data: xr.Dataset) -> list[Verdict]:
    exact = [_exact(data.sel(sampler=label), label) for label in EXACT.values()]
    errors = [_caught_everywhere(data.sel(sampler=label), label) for label in ERRORS.values()]
    return [
        *exact,
        _far(data),
        *errors,
        _ddrm(data),
        _deterministic(data.sel(sampler=MEAN)),
        *_shown(data),
    ]


def _seen(data: xr.Dataset) -> xr.DataArray:
    """Whether each single test of means, at its share of the level, sees an error, (.., test)."""
    return data.p.sel(test=MEANS) * len(MEANS) <= LEVEL


def _is_far(data: xr.Dataset) -> xr.DataArray:
    return data.energy.sel(estimate="low") > FAR


def p_of_means(data: xr.Dataset) -> xr.DataArray:
    """p-value of the four tests of means by Holm, (.., cell): the smallest times their number,
    at most 1.
    """
    return (data.p.sel(test=MEANS).min("test") * len(MEANS)).clip(max=1)


def rank_correlation(data: xr.Dataset, reading: str) -> float:
    """Spearman's rank correlation of the energy distance with the size of a gap, over samplers
    (`REAL`) and cells.
    """
    energy, gap = (data[name].sel(sampler=REAL, estimate="value") for name in ("energy", "effect"))
    gap = gap.sel(reading=reading)
    return float(spearmanr(energy.values.ravel(), abs(gap).values.ravel()).statistic)


def _exact(data: xr.Dataset, label: str) -> Verdict:
    means, beside = (holm(data.p.sel(test=tests).values) for tests in (MEANS, BESIDE))
    (distance,) = listed(data.mean_energy)
    return verdict(
        f"{label}: tests by original and clones, all cells; energy distance to the exact posterior,"
        " mean over cells",
        f"{means.size} tests of means, smallest p by Holm {means.min():.2g}; {beside.size} tests of"
        f" ranks and TARP, {beside.min():.2g}; {distance:.4f}",
        "no error, distance 0",
        above(means, LEVEL, f"no p by Holm <= {LEVEL:g}"),
        above(beside, LEVEL, ""),
        holds(distance, 0, PRECISE, f"interval holds 0, narrower than {PRECISE:g}"),
    )


def _far(data: xr.Dataset) -> Verdict:
    wrong = data.sel(sampler=WRONG)
    is_far = _is_far(wrong)
    p = p_of_means(wrong)
    missed = (is_far & (p > LEVEL)).stack(at=("sampler", "cell"))
    names = (
        "; ".join(f"{sampler}, {cell}" for sampler, cell in missed.at.values[missed.values])
        or "none"
    )
    return verdict(
        f"samplers whose energy distance is above {FAR:g} (interval), cell by cell: p of the four"
        " means by Holm",
        f"{int(is_far.sum())} of {is_far.size} cells, {int(is_far.any('cell').sum())} samplers,"
        f" largest p {float(p.where(is_far).max()):.2g}; missed: {names}; of the"
        f" {int((~is_far).sum())} other cells {int((~is_far & (p <= LEVEL)).sum())} are caught",
        "caught",
        below(p.values[is_far.values], LEVEL, f"p < {LEVEL:g} each"),
    )


def _caught_everywhere(of: xr.Dataset, label: str) -> Verdict:
    p = p_of_means(of)
    energy = of.energy.sel(estimate="value")
    everywhere = _seen(of).all("cell")
    seen = everywhere.test.values[everywhere.values]
    return verdict(
        f"an error put in on purpose: {label}; p of the four means by Holm, each cell",
        f"largest {float(p.max()):.2g}; energy distance {float(energy.min()):.3f} to"
        f" {float(energy.max()):.3f}; seen everywhere by {', '.join(seen) or 'no single test'}",
        "caught",
        below(p.values, LEVEL, f"p < {LEVEL:g} in each cell"),
    )


def _ddrm(data: xr.Dataset) -> Verdict:
    (own,), (full,) = (listed(data.mean_energy.sel(sampler=label)) for label in (DDRM, FULL))
    (less,) = listed(data.less_energy)
    p = p_of_means(data.sel(sampler=DDRM))
    return verdict(
        "DDRM of deepinv divides the noise of all its steps by √2; energy distance with and without"
        " this error of normalisation",
        f"{own.value:.4f} and {full.value:.4f}, difference over the same measurements {less:.4f};"
        f" DDRM: largest p of the four means {float(p.max()):.2g}; without the error it is caught"
        f" in {int((p_of_means(data.sel(sampler=FULL)) < LEVEL).sum())} of {p.size} cells",
        "smaller without; DDRM is caught",
        above(less.low, 0, "interval of the difference above 0"),
        below(p.values, LEVEL, f"p < {LEVEL:g} in each cell"),
    )


def _deterministic(of: xr.Dataset) -> Verdict:
    gap = of.effect.sel(reading="distance", estimate="value")
    return verdict(
        "posterior mean, the same in every draw: gap of the distance over its mean; kind of error",
        f"{float(gap.min()):.4f} to {float(gap.max()):.4f};"
        f" {', '.join(sorted(set(map(str, of.kind.values))))}",
        "1 in each cell; too sure",
        equal(np.round(gap, 6), 1, "1"),
        equal(of.kind.values, "too sure", "too sure in each cell"),
    )


def _shown(data: xr.Dataset) -> list[Verdict]:
    wrong = data.sel(sampler=WRONG)
    dps = data.sel(sampler=DPS)
    is_far = _is_far(wrong)
    energy = dps.energy.sel(estimate="value")
    of_tests = {test: int((_seen(wrong).sel(test=test) & is_far).sum()) for test in MEANS}
    of_dps = {test: int(_seen(dps).sel(test=test).sum()) for test in (MEANS[0], MEANS[2])}
    return [
        shows(
            f"single tests: cells with a distance above {FAR:g} that they see, of"
            f" {int(is_far.sum())}",
            "; ".join(f"{test} {count}" for test, count in of_tests.items()),
            "none sees all",
        ),
        shows(
            "DPS is nearly the prior: energy distance, cells seen by the distance and by log"
            " p(y|x)",
            f"{float(energy.min()):.3f} to {float(energy.max()):.3f}; "
            + "; ".join(f"{test} {count}" for test, count in of_dps.items())
            + f" of {dps.sizes['cell']}",
            "seen by log p(y|x)",
        ),
        shows(
            "rank correlation of the energy distance with the size of a gap, over samplers of"
            " deepinv, posterior mean, and cells",
            "; ".join(
                f"{reading} {rank_correlation(data, reading):.2f}"
                for reading in (MEANS[0], MEANS[2])
            ),
            "below 1: calibration says whether a sampler is wrong, and not how far",
        ),
    ]


# -- drawing ---------------------------------------------------------------------------------------

_GROUPS = ((EXACT, THEORY), (OTHERS, ACCENT), (REPAIRED, ACCENT), (ERRORS, CLASS))
_ROWS = [(label, color) for labels, color in _GROUPS for label in labels.values()]
_EDGES = np.cumsum([len(labels) for labels, _ in _GROUPS])[:-1]
_COLORS = dict(zip(REAL, (*DISTINCT, "#8a4fb0"), strict=True))
_MARKS = {"inpainting": "o", "blur": "s", "downsampling": "^"}
_PAD = 46  # of titles without labels of columns below them
_FLOOR = 1e-3  # energy distances below it are drawn on it
_LEAST = {"distance": 1e-3, "log p(y|x)": 1e-2}  # effects below it are drawn on it
_SIZES = {
    "distance": "size of the gap of the distance, relative",
    "log p(y|x)": "size of the gap of log p(y|x), nats",
}


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure = plt.figure(figsize=(15, 11.5), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.35, 1])
        distances, tests, kinds, calls = top.subplots(
            1, 4, sharey=True, width_ratios=[1.35, 1.2, 1.6, 0.72]
        )
        _draw_distances(distances, data)
        _draw_tests(tests, data)
        _draw_kinds(kinds, data)
        _draw_calls(calls, data)
        for letter, axes, reading in zip(
            "ef", bottom.subplots(1, 2, sharex=True), _LEAST, strict=True
        ):
            _draw_sizes(axes, data, reading, letter)
        _legend(bottom)
    return figure


def _draw_distances(axes: Any, data: xr.Dataset) -> None:
    """(a) Energy distance in each cell; full marks: the four means see an error."""
    seen = p_of_means(data) <= LEVEL
    width = 0.64 / data.sizes["cell"]
    for row, (label, color) in enumerate(_ROWS):
        for k, cell in enumerate(data.cell.values):
            at = {"sampler": label, "cell": cell}
            value, low, high = np.maximum(data.energy.sel(at).values, _FLOOR)
            y = row - 0.32 + width * (k + 0.5)
            axes.plot([low, high], [y, y], color=color, lw=0.9, alpha=0.6, zorder=2)
            face = color if bool(seen.sel(at)) else "white"
            axes.plot(
                [value], [y], _mark(cell), color=color, mfc=face, ms=4.5, zorder=3, clip_on=False
            )
    axes.axvspan(
        _FLOOR / 1.2,
        float(data.null_energy.sel(estimate="high").max()),
        color="#eeeeee",
        lw=0,
        zorder=0,
    )
    axes.axvline(FAR, color=MUTED, lw=1, ls=":", zorder=1)
    axes.text(FAR, -0.75, f"{FAR:g}", color=MUTED, ha="center", va="bottom", fontsize=9.5)
    axes.set(
        xscale="log", xlim=(_FLOOR / 1.2, None), xlabel="energy distance to the exact posterior"
    )
    axes.set_title("(a) true distance", pad=_PAD)
    name_rows(axes, *zip(*_ROWS, strict=True))
    for edge in _EDGES:
        axes.axhline(edge - 0.5, color=MUTED, lw=0.8, ls=":")


def _mark(cell: str) -> str:
    return next(mark for operator, mark in _MARKS.items() if operator in cell)


def _draw_counts(axes: Any, counts: np.ndarray, columns: list[str], most: int) -> None:
    """Numbers of cells, (rows, columns), as a table whose colour is the share."""
    x, y = (np.arange(size + 1) - 0.5 for size in counts.shape[::-1])
    axes.pcolormesh(x, y, counts / most, cmap="Oranges", vmax=1.4)
    for row, column in np.ndindex(counts.shape):
        color = "#bbbbbb" if counts[row, column] == 0 else THEORY
        axes.text(
            column,
            row,
            f"{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=10.5,
            color=color,
        )
    axes.set_xticks(range(len(columns)), columns, fontsize=9.5)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, left=False, length=0)
    axes.spines[:].set_visible(False)
    for edge in _EDGES:
        axes.axhline(edge - 0.5, color="white", lw=4)


def _draw_tests(axes: Any, data: xr.Dataset) -> None:
    """(b) Number of cells in which each test by itself, and the four of means together, sees an
    error.
    """
    ordered = data.sel(sampler=[label for label, _ in _ROWS])
    columns = [_seen(ordered).sel(test=test) for test in MEANS] + [p_of_means(ordered) <= LEVEL]
    columns += [ordered.p.sel(test=test) <= LEVEL for test in BESIDE]
    names = ["distance", "same\nclass", "log\np(y|x)", "log\np(x)", "the\nfour", "ranks", "TARP"]
    _draw_counts(
        axes,
        np.stack([column.sum("cell").values for column in columns], axis=1),
        names,
        data.sizes["cell"],
    )
    for edge in (len(MEANS) - 0.5, len(MEANS) + 0.5):
        axes.axvline(edge, color="white", lw=4)
    axes.set_title(f"(b) which test sees it, of {data.sizes['cell']} cells")


def _draw_kinds(axes: Any, data: xr.Dataset) -> None:
    """(c) Number of cells with each kind of error."""
    names = [kind for kind in (Kind.NONE_SEEN, *KINDS, Kind.OTHER) if (data.kind == kind).any()]
    counts = np.array(
        [
            [int((data.kind.sel(sampler=label) == kind).sum()) for kind in names]
            for label, _ in _ROWS
        ]
    )
    _draw_counts(axes, counts, ["\n".join(wrap(kind, 7)) for kind in names], data.sizes["cell"])
    axes.set_title("(c) kind of error that the tests name")


def _draw_calls(axes: Any, data: xr.Dataset) -> None:
    """(d) Calls of the network for a draw."""
    for row, (label, color) in enumerate(_ROWS):
        number = int(data.calls.sel(sampler=label))
        axes.barh(row, number, 0.5, color=color, alpha=0.75)
        axes.text(number, row, f" {number}", va="center", fontsize=10, color=color)
    axes.set(xlabel="calls of the network", xlim=(0, 1.35 * float(data.calls.max())))
    axes.set_title("(d) cost of a draw", pad=_PAD)
    axes.tick_params(left=False)


def _draw_sizes(axes: Any, data: xr.Dataset, reading: str, letter: str) -> None:
    """(e, f) Size of a gap against the true distance."""
    seen = p_of_means(data) <= LEVEL
    for name, color in _COLORS.items():
        for cell in data.cell.values:
            at = {"sampler": name, "cell": cell}
            x = max(float(data.energy.sel(at).sel(estimate="value")), _FLOOR)
            y = max(
                abs(float(data.effect.sel(at).sel(reading=reading, estimate="value"))),
                _LEAST[reading],
            )
            face = color if bool(seen.sel(at)) else "white"
            axes.plot(
                [x], [y], _mark(str(cell)), color=color, mfc=face, ms=6, zorder=3, clip_on=False
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="energy distance to the exact posterior",
        ylabel=_SIZES[reading],
    )
    axes.set_title(
        f"({letter}) {reading}: rank correlation with the true distance"
        f" {rank_correlation(data, reading):.2f}"
    )
    axes.axvline(FAR, color=MUTED, lw=1, ls=":", zorder=1)


def _legend(figure: Any) -> None:
    lines = [
        Line2D([], [], ls="", marker="o", color=color, label=label)
        for label, color in _COLORS.items()
    ]
    marks = [
        Line2D([], [], ls="", marker=mark, color=MUTED, mfc="white", label=operator)
        for operator, mark in _MARKS.items()
    ]
    marks.append(
        Line2D(
            [], [], ls="", marker="o", color=MUTED, label="full: seen by the four tests of means"
        )
    )
    figure.legend(
        handles=[*lines, *marks],
        loc="outside lower center",
        ncols=11,
        columnspacing=1.1,
        handletextpad=0.1,
    )
