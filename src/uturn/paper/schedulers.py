"""Reverse diffusion with the exact score: which schedulers draw from the posterior, which only
from the data law.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys, uniforms
from uturn.measures.calibration import holm
from uturn.measures.estimates import Estimate
from uturn.paper import sampler_laws as laws
from uturn.paper.sampler_laws import PARAMETERS, REFERENCE, SAMPLERS
from uturn.paper.verdicts import ESTIMATE, Verdict, above, below, numbers, verdict
from uturn.paper.workshop import Workshop, file_name
from uturn.studies.plotting.curves import draw_gap
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, style, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Reverse diffusion with the exact score: posterior or data law only"
CLAIM = (
    "Schedulers that add their full noise draw from the posterior; the others only preserve the law"
    " of the data."
)
CAPTION = (
    "Distance between the law q of reconstructed strings and the exact law p, (sum over strings of"
    " (q - p)^2)^(1/2), unbiased, against the number of reverse steps. Left: given a noisy"
    " observation (mean over observations), for schedulers of diffusers driven by the exact score."
    " Those with the full noise of the reverse process converge to the posterior; those with none,"
    " or half of it, do not, for any number of steps. Right: the law of U-turned strings, which all"
    " schedulers preserve. Bars: 95 % intervals; hollow: not significantly different from 0 (p >"
    " 0.01); grey: 99 % of the distances between equal laws."
)
_SIZES = {
    "smoke": laws.Size((2, 4, 8, 16, 32, 64), 4, 16, 512),
    "paper": laws.Size((2, 4, 8, 16, 32, 64, 128, 256), 8, 64, 1024),
}
LEAST_ORDER = 0.5  # strong order of Euler's method; the law converges with order 1
RARE = 1e-3  # false-alarm rate of one comparison with 0
_SIGNS = (Purpose.DENOISING, 1)  # of the keys of random streams
_FLIPS = 2000  # of signs, for p-values


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    size = _SIZES[workshop.scale]
    names = {label: f"schedulers-{file_name(label)}" for label in (REFERENCE, *SAMPLERS)}
    calls: dict[str, dict[str, Any]] = {
        names[label]: {"size": size, "scheduler": scheduler}
        for label, scheduler in SAMPLERS.items()
    }
    calls[names[REFERENCE]] = {"size": size._replace(steps=(0,)), "scheduler": None}
    runs = workshop.keep_all("samplers", measured_law, calls)
    return {label: runs[name] for label, name in names.items()}


def measured_law(size: laws.Size, scheduler: laws.Scheduler | None) -> xr.Dataset:
    """The law of a scheduler of `SAMPLERS`; None: of exact posterior draws."""
    if scheduler is None:
        return laws.measured(size, laws.exact_sampler)
    return laws.measured(size, partial(laws.scheduler_sampler, scheduler))


# -- distances between laws, from counts on independent sheets of strings --------------------------


def deviations(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """q - p of every sheet: given observations (steps, observations, sheets, S), and of the data
    law (steps, 1, sheets, S).
    """
    posterior = run.given_counts.values / run.attrs["strings"] - run.posterior.values[:, :, None]
    law = run.law_counts.values / run.attrs["strings"] - run.data_law.values
    return posterior, law[:, None]


def squared_distance(deviation: np.ndarray) -> np.ndarray:
    """Unbiased estimate of |E(q - p)|^2 from independent sheets (.., observations, sheets, S),
    mean over observations.
    """
    sheets = deviation.shape[-2]
    total = (deviation.sum(-2) ** 2).sum(-1) - (deviation**2).sum((-2, -1))
    return total.mean(-1) / (sheets * (sheets - 1))


def jackknife(deviation: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
    """A statistic of sheets (axis -2) and its standard error."""
    sheets = deviation.shape[-2]
    left_out = np.array([statistic(np.delete(deviation, k, axis=-2)) for k in range(sheets)])
    return statistic(deviation), np.sqrt((sheets - 1) * left_out.var(axis=0))


def by_chance(deviation: np.ndarray) -> np.ndarray:
    """Squared distances of equal laws for one number of steps: the signs of sheets are flipped
    at random, 2,000 times.
    """
    sheets = deviation.shape[-2]
    total = np.zeros(_FLIPS)
    for of_observation, signs in zip(deviation, _signs(deviation.shape[:-1]), strict=True):
        gram = of_observation @ of_observation.T
        total += ((signs @ gram) * signs).sum(-1) - np.trace(gram)
    return total / (len(deviation) * sheets * (sheets - 1))


@lru_cache(maxsize=8)
def _signs(shape: tuple[int, int]) -> np.ndarray:
    """Random signs (observations, 2,000, sheets)."""
    u = uniforms(keys(0, *_SIGNS, np.arange(shape[0] * _FLIPS)), shape[1])
    return np.where(u < 0.5, -1.0, 1.0).reshape(shape[0], _FLIPS, shape[1])


def p_value(deviation: np.ndarray) -> float:
    """Probability of such a distance, or a larger one, between equal laws."""
    chance = by_chance(deviation)
    return float(
        (1 + (chance >= squared_distance(deviation) * (1 - 1e-12)).sum()) / (1 + len(chance))
    )


def extrapolated(deviation: np.ndarray) -> np.ndarray:
    """Extrapolation from the last two numbers of steps, K and 2K: an error proportional to 1/K
    cancels.
    """
    return 2 * deviation[-1] - deviation[-2]


def order(deviation: np.ndarray, steps: np.ndarray) -> Estimate:
    """Order of convergence, -d log(distance)/d log(steps), with its 95 % interval; NaN if fewer
    than 2 points can be used.

    Weighted least squares over the numbers of steps >= 4 whose squared distance is more than 3
    times the 95 % quantile of equal laws.
    """
    chance = np.array([np.quantile(by_chance(d), 0.95) for d in deviation])
    value, error = jackknife(deviation, squared_distance)
    used = (steps >= 4) & (value > 3 * chance)
    if used.sum() < 2:
        return Estimate(np.nan, np.nan, np.nan)
    weights = (value / np.maximum(error, 1e-3 * value))[used]

    def fit(sheets: np.ndarray) -> float:
        squares = np.maximum(squared_distance(sheets[used]), 1e-12)
        return float(-0.5 * np.polyfit(np.log(steps[used]), np.log(squares), 1, w=weights)[0])

    slope, error = jackknife(deviation, fit)
    return Estimate(float(slope), float(slope - 1.96 * error), float(slope + 1.96 * error))


def distance(deviation: np.ndarray) -> np.ndarray:
    """Distance with its 95 % interval, along the last axis."""
    square, error = jackknife(deviation, squared_distance)
    return np.sqrt(
        np.maximum(np.stack([square, square - 1.96 * error, square + 1.96 * error], axis=-1), 0)
    )


def resolution(deviation: np.ndarray) -> float:
    """The 99 % quantile of the distance between equal laws."""
    return float(np.sqrt(max(np.quantile(by_chance(deviation), 0.99), 0)))


def distance_text(deviation: np.ndarray) -> str:
    return f"{Estimate(*distance(deviation).tolist()):.3f}"


Deviations = dict[str, np.ndarray]
"""q - p of every sheet, by sampler."""


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    labels = list(SAMPLERS)
    steps = runs[labels[0]].steps.values
    both = {label: deviations(runs[label]) for label in [*labels, REFERENCE]}
    posterior, law = ({label: pair[k] for label, pair in both.items()} for k in (0, 1))
    data = xr.Dataset(
        coords={"estimate": ESTIMATE, "sampler": labels, "steps": steps},
        attrs={
            **PARAMETERS,
            "posterior_resolution": resolution(posterior[REFERENCE][0]),
            "law_resolution": resolution(law[REFERENCE][0]),
        },
    )
    for name, values in (("posterior", posterior), ("law", law)):
        data[f"{name}_distance"] = (
            ("sampler", "steps", "estimate"),
            [distance(values[label]) for label in labels],
        )
        data[f"{name}_p"] = (
            ("sampler", "steps"),
            np.array([[p_value(d) for d in values[label]] for label in labels]),
        )
    # P-values of the distances to the posterior, extrapolated to infinitely many steps.
    limits = {label: p_value(extrapolated(posterior[label])) for label in labels}
    kept = [p_value(extrapolated(law[label])) for label in SAMPLERS]
    first = [distance(law[label][0])[0] for label in SAMPLERS]
    return data, [
        *_of_schedulers(posterior, limits, steps),
        verdict(
            "distance of the law of U-turned strings to the data law, all schedulers, extrapolated"
            " in the same way",
            f"p = {min(kept):.2g} .. {max(kept):.2g} (after 2 steps the distance is"
            f" {min(first):.3f} .. {max(first):.3f})",
            "0: all keep the data law",
            above(kept, RARE, f"not significantly different from 0 (p > {RARE:g} each)"),
        ),
        _start(runs),
    ]


def _of_kind(*kinds: str) -> list[str]:
    return [label for label, (*_, kind) in SAMPLERS.items() if kind in kinds]


def _of_schedulers(
    posterior: Deviations, limits: dict[str, float], steps: np.ndarray
) -> list[Verdict]:
    full = _of_kind("full")
    less = _of_kind("half", "none")
    worst = max(distance(posterior[label][-1])[2] for label in full)
    slopes = {label: order(posterior[label], steps) for label in full}
    differs = f"extrapolated distance significantly different from 0 (p < {RARE:g})"
    distances = (
        f"{label} {distance_text(extrapolated(posterior[label]))}, p = {limits[label]:.2g}"
        for label in full
    )
    return [
        verdict(
            "order at which schedulers with the full noise approach the posterior",
            "; ".join(f"{label} {slope:.2f}" for label, slope in slopes.items()),
            "distance falls as a power of the number of steps: 1 for single steps",
            above(
                [slope.low for slope in slopes.values()],
                LEAST_ORDER,
                f"all intervals above {LEAST_ORDER}",
            ),
        ),
        verdict(
            f"their distance to the posterior, extrapolated from {steps[-1] // 2} and {steps[-1]}"
            " steps to infinitely many",
            "; ".join(distances),
            "0: they draw from the posterior",
            above(
                [limits[label] for label in full],
                RARE,
                f"not significantly different from 0 (p > {RARE:g} each)",
            ),
        ),
        verdict(
            f"distance to the posterior after {steps[-1]} steps without noise, or with half of it",
            "; ".join(f"{label} {distance_text(posterior[label][-1])}" for label in less),
            f"stays away from 0 (schedulers with the full noise: at most {worst:.3f})",
            above(
                [distance(posterior[label][-1])[1] for label in less],
                5 * worst,
                "lower limits above 5 times that",
            ),
            below([limits[label] for label in less], RARE, differs),
        ),
    ]


def _start(runs: dict[str, xr.Dataset]) -> Verdict:
    """A chain starts from the noise of its first timestep."""
    p = np.stack(
        [laws.law_p_values(runs[label].rename(steps="noise")).ravel() for label in SAMPLERS]
    )
    adjusted = holm(p)
    worst = list(SAMPLERS)[int(adjusted.min(axis=1).argmin())]
    signal, variance = (numbers(column, ".3f") for column in runs[worst]["mean"].values.T)
    expected = (
        numbers(np.unique(column.round(3)), ".3f") for column in runs[worst]["expected"].values.T
    )
    return verdict(
        "what the model is asked first, against the noise of its timestep: signal and variance, all"
        " schedulers and steps",
        f"{p.size} tests, smallest p = {p.min():.2g}, by Holm {adjusted.min():.2g}; {worst}: signal"
        f" {signal}; variance {variance}",
        f"sqrt(abar) and 1 - abar of the first timestep: {' and '.join(expected)}",
        above(
            adjusted,
            RARE,
            f"mean, spread between strings, independence of the chains: no p by Holm <= {RARE:g}",
        ),
    )


def draw(data: xr.Dataset) -> Figure:
    attrs = data.attrs
    steps = data.steps.values
    bottom = 0.5 * min(attrs["posterior_resolution"], attrs["law_resolution"])
    shown = (
        ("posterior", "given an observation: the posterior"),
        ("law", "over all observations: the data law"),
    )
    with style() as plt:
        figure, panels = plt.subplots(1, 2, figsize=(11.5, 5.6), sharey=True, layout="constrained")
        for axes, (name, title) in zip(panels, shown, strict=True):
            axes.axhspan(bottom / 2, attrs[f"{name}_resolution"], color="#e4e4e4", lw=0, zorder=0)
            for label in SAMPLERS:
                curve = data[f"{name}_distance"].sel(sampler=label)
                p = data[f"{name}_p"].sel(sampler=label)
                color, mark, line = _LOOKS[label]
                draw_gap(axes, steps, np.maximum(curve, bottom), p < 0.01, color, label, mark, line)
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="reverse steps",
                ylim=(bottom * 0.85, 1.1),
                title=title,
            )
            ticks(axes, steps)
        left = panels[0]
        guide = steps[1:4].astype(float)
        left.plot(guide, 0.9 / guide, color=MUTED, lw=1, ls=":")
        left.text(
            guide[1],
            1.05 * 0.9 / guide[1],
            r"$\propto 1/\mathrm{steps}$",
            color=MUTED,
            fontsize=10,
            va="bottom",
        )
        left.text(
            0.02,
            0.03,
            "not significantly different from 0",
            color=MUTED,
            fontsize=9.5,
            transform=left.transAxes,
        )
        left.set_ylabel("distance to the exact law")
        for color, text, at in _KINDS.values():
            left.text(
                steps[-1],
                at,
                text,
                color=color,
                fontsize=10.5,
                ha="right",
                va="bottom",
                weight="bold",
            )
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, columnspacing=1.6)
    return figure


_KINDS = {
    "full": (ACCENT, "full noise", 0.055),
    "half": ("#e69f00", "half of it", 0.52),
    "none": (CLASS, "no noise", 0.9),
}
_LOOKS = {
    label: (color, mark, "-" if kind == "full" else "--")
    for kind, (color, *_) in _KINDS.items()
    for label, mark in zip(_of_kind(kind), "os^DvPX", strict=False)
}
"""Colour, mark and line of every sampler."""
