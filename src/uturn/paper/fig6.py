"""Fig. 6: phase diagram, class recoverable or not in the plane of rule density and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField, phase_diagram
from uturn.measures.curves import crossing, shift
from uturn.measures.readings import grammar_means
from uturn.measures.replicates import estimate
from uturn.paper.specs import experiment_of, rhm
from uturn.paper.verdicts import ESTIMATE, Verdict, below, equal, numbers, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Phase diagram of class recovery"
CLAIM = (
    "The number of rules of a grammar decides up to which noise the class can be recovered, and"
    " whether it can be at all."
)
CAPTION = (
    "Each marker: exact belief propagation at L = 10 on several grammars; the class counts as"
    " recoverable if the mean belief in it exceeds the belief at the leaves, p_L > p_0. Line: the"
    " mean-field threshold ε*. Bars: the crossing p_L = p_0 measured by belief propagation, with"
    " the standard deviation between grammars. Beyond s f = 1 (nearly) the class is lost at any"
    " noise."
)
PARAMETERS = {"vocab_size": 32, "branching": 2, "depth": 10}
TOLERANCE = 0.02
# Noise levels around ε*.
NEAR = np.array([-0.06, -0.04, -0.025, -0.015, -0.0075, 0, 0.0075, 0.015, 0.025, 0.04, 0.06])
MAP_TOLERANCE = 0.005  # of one step of the map, in ε


def experiments(scale: Scale) -> dict[str, Experiment]:
    grammars, items = (6, 12) if scale == "smoke" else (16, 64)
    ms = (3, 4, 6, 8, 10, 12, 14, 18, 22) if scale == "smoke" else (*range(3, 17), 18, 20, 24, 28)
    runs = {}
    probe = {"type": "messages", "directions": ["upward"]}
    for m in ms:
        critical = MeanField(PARAMETERS["vocab_size"], m, PARAMETERS["branching"]).critical_noise
        noise = np.r_[np.linspace(0.05, 0.95, 10), [] if critical is None else critical + NEAR]
        noise = np.unique(noise[(noise > 0) & (noise < 1)].round(6))
        source = rhm(**PARAMETERS, multiplicity=m, grammars=grammars)
        runs[f"m{m}"] = experiment_of(source, "epsilon", noise, probe, items=items, chunk=16)
    return runs


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return workshop.runs("fig6", experiments(workshop.scale))


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    v = PARAMETERS["vocab_size"]
    s = PARAMETERS["branching"]
    ms = np.array([m for m in range(1, v ** (s - 1) + 1) if f"m{m}" in runs])
    theory = phase_diagram(v, s, ms)
    gains = [_gain(runs[f"m{m}"].load()) for m in ms]
    transition = theory.phase == "transition"
    crossings = np.full((len(ms), 3), np.nan)
    spreads = np.full(len(ms), np.nan)
    for k in np.flatnonzero(transition):
        crossings[k], spreads[k] = _crossing(gains[k])
    data = xr.Dataset(
        {
            "gain": xr.concat(
                [gain.mean("item").reset_coords(drop=True) for gain in gains],
                "multiplicity",
                join="outer",
            ),
            "crossing": (("multiplicity", "estimate"), crossings),
            "spread": ("multiplicity", spreads),
            "critical_noise": ("multiplicity", theory.critical_noise),
        },
        coords={
            "multiplicity": ms,
            "estimate": ESTIMATE,
            "rule_density": ("multiplicity", theory.rule_density),
        },
        attrs=PARAMETERS,
    )
    grammars = len(np.unique(gains[0].grammar))
    lost = []
    for k in np.flatnonzero(~transition):
        m = ms[k]
        most = float(gains[k].mean("item").max())
        quantity = f"m = {m} (s f = {s * m / v ** (s - 1):.2f}): largest p_L - p_0 on the grid"
        lost.append(verdict(quantity, f"{most:.3f}", "below 0: always lost", below(most, 0)))
    return data, [
        *_thresholds(data.isel(multiplicity=transition), grammars),
        *lost,
        _one_step(runs, ms),
    ]


def _gain(run: xr.Dataset) -> xr.DataArray:
    """p_L - p_0: positive where the class is recoverable."""
    return run.upward_belief.isel(tree_level=-1, drop=True) - run.upward_belief.isel(
        tree_level=0, drop=True
    )


def _crossing(gain: xr.DataArray) -> tuple[tuple[float, ...], float]:
    """ε at which p_L = p_0 with its interval, and its standard deviation between grammars."""
    noise = gain.noise.values
    each = [
        crossing(noise, grammar.values, 0.0)
        for grammar in grammar_means(gain).transpose("grammar", "noise")
    ]
    spread = float(np.nanstd(each, ddof=1)) if np.isfinite(each).sum() > 1 else np.nan
    return estimate(gain, lambda c: crossing(noise, c, 0.0)), spread


def _thresholds(data: xr.Dataset, grammars: int) -> list[Verdict]:
    there = data.crossing.sel(estimate="value").notnull()
    crossed = int(there.sum())
    size = there.size
    data = data.isel(multiplicity=there.values)
    error = data.crossing.sel(estimate="value") - data.critical_noise
    root_mean_square = float(np.sqrt((error**2).mean()))
    k = int(np.argmax(abs(error.values)))
    worst = data.isel(multiplicity=k)
    off = float(error[k])
    m = int(error.multiplicity[k])
    allowed = max(TOLERANCE, 3 * float(worst.spread) / np.sqrt(grammars))
    return [
        verdict(
            f"crossing p_L = p_0 against ε*, worst of {error.size} multiplicities (m = {m})",
            f"{float(worst.crossing.sel(estimate='value')):.4f} (off by {off:+.4f})",
            f"{float(worst.critical_noise):.4f}",
            within(
                off,
                allowed,
                f"within {allowed:.3f}: the larger of {TOLERANCE} and 3 standard errors over"
                " grammars",
            ),
        ),
        verdict(
            "root mean square of crossing - ε*",
            f"{root_mean_square:.4f}",
            "0",
            below(root_mean_square, TOLERANCE / 2),
        ),
        verdict(
            "multiplicities with a transition where p_L = p_0 is crossed",
            f"{crossed} of {size}",
            "all",
            equal(crossed, size, "all"),
        ),
    ]


def _one_step(runs: dict[str, xr.Dataset], ms: np.ndarray) -> Verdict:
    """The map F, whose fixed point gives ε*: beliefs one level above the leaves, and F(p*) - p*."""
    v = PARAMETERS["vocab_size"]
    s = PARAMETERS["branching"]
    fine = np.linspace(0, 1, 2001)
    shifts = []
    residuals = [0.0]
    for m in ms:
        theory = MeanField(v, int(m), s)
        up = runs[f"m{m}"].upward_belief.isel(tree_level=1).mean("item")
        shifts.append(
            shift(up.noise.values, up.values, fine, theory.upward_map(1 - fine * (v - 1) / v))
        )
        if theory.fixed_point is not None:
            residuals.append(abs(float(theory.upward_map(theory.fixed_point)) - theory.fixed_point))
    return verdict(
        "belief one level above the leaves against F(p_0), as a shift in ε, m ="
        f" {', '.join(map(str, ms))}; largest F(p*) - p*",
        numbers(shifts, "+.4f") + f"; {max(residuals):.1e}",
        "0; 0",
        within(shifts, MAP_TOLERANCE, f"all within {MAP_TOLERANCE}"),
        below(residuals, 1e-9, "below 1e-9"),
    )


def draw(data: xr.Dataset) -> Figure:
    v = data.attrs["vocab_size"]
    s = data.attrs["branching"]
    line = phase_diagram(v, s, range(1, v ** (s - 1)))
    with style() as plt:
        figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
        x = s * line.rule_density
        axes.fill_between(x, 0, line.critical_noise, color=ACCENT, alpha=0.10, lw=0)
        axes.plot(x, line.critical_noise, color=THEORY, label=r"mean field $\epsilon^*$", zorder=3)
        for m in data.multiplicity.values:
            row = data.gain.sel(multiplicity=m).dropna("noise")
            at = np.full(row.size, s * m / v ** (s - 1))
            yes = row.values > 0
            axes.plot(at[yes], row.noise[yes], "o", ms=4.5, color=ACCENT, zorder=4)
            axes.plot(at[~yes], row.noise[~yes], "x", ms=4.5, mew=1.2, color=CLASS, zorder=4)
        measured = data.dropna("multiplicity", subset=["spread"])
        look = {
            "fmt": "_",
            "ms": 13,
            "mew": 2,
            "color": "#e69f00",
            "zorder": 5,
            "label": "BP: $p_L=p_0$",
        }
        axes.errorbar(
            s * measured.rule_density,
            measured.crossing.sel(estimate="value"),
            measured.spread,
            **look,
        )
        axes.plot([], [], "o", color=ACCENT, label="recoverable (BP)")
        axes.plot([], [], "x", color=CLASS, label="lost (BP)")
        axes.axvline(1, color=MUTED, lw=0.8, ls="--")
        axes.set(
            xlabel=r"$s f = s\, m / v^{s-1}$",
            ylabel=r"noise $\epsilon$",
            xlim=(0, 1.5),
            ylim=(0, 1),
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for place, name, color in (
            ((0.22, 0.12), "recoverable", ACCENT),
            ((1.12, 0.62), "lost", CLASS),
        ):
            axes.text(
                *place,
                name,
                color=color,
                fontsize=13,
                bbox={"fc": "white", "ec": "none", "pad": 2},
                zorder=6,
            )
        axes.set_title(
            f"can the class be recovered?  ($v={v}$, $s={s}$, $L={data.attrs['depth']}$)"
        )
    return figure
