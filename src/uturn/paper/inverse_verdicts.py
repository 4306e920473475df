"""Verdicts of the figure `inverse`."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from uturn.measures.calibration import holm
from uturn.paper.inverse_runs import ERRORS, EXACT, OTHERS, REPAIRED
from uturn.paper.verdicts import Verdict, above, below, equal, holds, listed, shows, verdict

LEVEL = 0.01
FAR = 0.02
"""Energy distance above which a sampler has to be caught."""
PRECISE = 0.01
"""Largest width of the interval of a distance that holds 0."""
MEANS = ["distance", "same class", "log p(y|x)", "log p(x)"]
BESIDE = ["ranks", "TARP"]
DDRM, FULL, MEAN, DPS = OTHERS["ddrm"], REPAIRED["ddrm_full"], OTHERS["mean"], OTHERS["dps"]
REAL = [*OTHERS.values(), *REPAIRED.values()]
WRONG = [*REAL, *ERRORS.values()]


def verdicts(data: xr.Dataset) -> list[Verdict]:
    """All verdicts on the data of the figure."""
    exact = [_exact(data.sel(sampler=label), label) for label in EXACT.values()]
    errors = [_caught_everywhere(data, label) for label in ERRORS.values()]
    return [*exact, _far(data), *errors, _ddrm(data), _deterministic(data), *_shown(data)]


def p_of_means(data: xr.Dataset) -> xr.DataArray:
    """p-value of the four tests of means by Holm, (.., cell): the smallest times their number, at most 1."""
    return (data.p.sel(test=MEANS).min("test") * len(MEANS)).clip(max=1)


def rank_correlation(data: xr.Dataset, reading: str) -> float:
    """Spearman's rank correlation of the energy distance with the size of a gap, over samplers (`REAL`) and cells."""
    energy, gap = (data[name].sel(sampler=REAL, estimate="value") for name in ("energy", "effect"))
    gap = gap.sel(reading=reading)
    return float(spearmanr(energy.values.ravel(), abs(gap).values.ravel()).statistic)


def _exact(data: xr.Dataset, label: str) -> Verdict:
    means, beside = (holm(data.p.sel(test=tests).values) for tests in (MEANS, BESIDE))
    (distance,) = listed(data.mean_energy)
    return verdict(
        f"{label}: tests by original and clones, all cells; energy distance to the exact posterior, mean over cells",
        f"{means.size} tests of means, smallest p by Holm {means.min():.2g}; {beside.size} tests of ranks and TARP, "
        f"{beside.min():.2g}; {distance:.4f}",
        "no error, distance 0",
        above(means, LEVEL, f"no p by Holm <= {LEVEL:g}"),
        above(beside, LEVEL, ""),
        holds(distance, 0, PRECISE, f"interval holds 0, narrower than {PRECISE:g}"),
    )


def _far(data: xr.Dataset) -> Verdict:
    wrong = data.sel(sampler=WRONG)
    is_far = wrong.energy.sel(estimate="low") > FAR
    p = p_of_means(wrong).where(is_far)
    missed = p > LEVEL
    near = ~is_far & (p_of_means(wrong) <= LEVEL)
    return verdict(
        f"samplers whose energy distance is above {FAR:g} (interval), cell by cell: p of the four means by Holm",
        f"{int(is_far.sum())} of {is_far.size} cells, {int(is_far.any('cell').sum())} samplers, largest p {float(p.max()):.2g}; "
        f"missed: {_cells(missed)}; of the {int((~is_far).sum())} other cells {int(near.sum())} are caught",
        "caught",
        below(p.values[is_far.values], LEVEL, f"p < {LEVEL:g} each"),
    )


def _cells(chosen: xr.DataArray) -> str:
    return "; ".join(f"{row.sampler.item()}, {cell}" for row in chosen for cell in row.cell.values[row.values]) or "none"


def _caught_everywhere(data: xr.Dataset, label: str) -> Verdict:
    of = data.sel(sampler=label)
    p, energy = p_of_means(of), of.energy.sel(estimate="value")
    seen = [test for test in MEANS if bool((of.p.sel(test=test) * len(MEANS) < LEVEL).all())]
    return verdict(
        f"an error put in on purpose: {label}; p of the four means by Holm, each cell",
        f"largest {float(p.max()):.2g}; energy distance {float(energy.min()):.3f} to {float(energy.max()):.3f}; seen everywhere "
        f"by {', '.join(seen) or 'no single test'}",
        "caught",
        below(p.values, LEVEL, f"p < {LEVEL:g} in each cell"),
    )


def _ddrm(data: xr.Dataset) -> Verdict:
    (own,), (full,) = (listed(data.mean_energy.sel(sampler=label)) for label in (DDRM, FULL))
    (less,) = listed(data.less_energy)
    p = p_of_means(data.sel(sampler=DDRM))
    return verdict(
        "DDRM of deepinv divides the noise of all its steps by √2; energy distance with and without this error of normalisation",
        f"{own.value:.4f} and {full.value:.4f}, difference over the same measurements {less:.4f}; DDRM: "
        f"largest p of the four means {float(p.max()):.2g}; without the error it is caught in "
        f"{int((p_of_means(data.sel(sampler=FULL)) < LEVEL).sum())} of {p.size} cells",
        "smaller without; DDRM is caught",
        above(less.low, 0, "interval of the difference above 0"),
        below(p.values, LEVEL, f"p < {LEVEL:g} in each cell"),
    )


def _deterministic(data: xr.Dataset) -> Verdict:
    of = data.sel(sampler=MEAN)
    gap = of.effect.sel(reading="distance", estimate="value")
    return verdict(
        "posterior mean, the same in every draw: gap of the distance over its mean; kind of error",
        f"{float(gap.min()):.4f} to {float(gap.max()):.4f}; {', '.join(sorted(set(map(str, of.kind.values))))}",
        "1 in each cell; too sure",
        equal(np.round(gap, 6), 1, "1"),
        equal(of.kind.values, "too sure", "too sure in each cell"),
    )


def _shown(data: xr.Dataset) -> list[Verdict]:
    wrong = data.sel(sampler=WRONG)
    is_far = wrong.energy.sel(estimate="low") > FAR
    seen = {test: int((((wrong.p.sel(test=test) * len(MEANS)) <= LEVEL) & is_far).sum()) for test in MEANS}
    dps = data.sel(sampler=DPS)
    return [
        shows(
            f"single tests: cells with a distance above {FAR:g} that they see, of {int(is_far.sum())}",
            "; ".join(f"{test} {count}" for test, count in seen.items()),
            "none sees all",
        ),
        shows(
            "DPS is nearly the prior: energy distance, cells seen by the distance and by log p(y|x)",
            f"{float(dps.energy.sel(estimate='value').min()):.3f} to {float(dps.energy.sel(estimate='value').max()):.3f}; "
            + "; ".join(f"{test} {int((dps.p.sel(test=test) * len(MEANS) <= LEVEL).sum())}" for test in (MEANS[0], MEANS[2]))
            + f" of {dps.sizes['cell']}",
            "seen by log p(y|x)",
        ),
        shows(
            "rank correlation of the energy distance with the size of a gap, over samplers of deepinv, posterior mean, and cells",
            "; ".join(f"{reading} {rank_correlation(data, reading):.2f}" for reading in (MEANS[0], MEANS[2])),
            "below 1: calibration says whether a sampler is wrong, and not how far",
        ),
    ]
