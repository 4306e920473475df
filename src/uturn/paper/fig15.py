"""Fig. 15: effective ε against diffusion time, and where it makes one curve of all channels and where it does not."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.corruption import CORRUPTIONS
from uturn.experiment import Experiment
from uturn.paper import Scale, Verdict, Work, fig5, fig7
from uturn.paper.channels import ChannelSpec, channel_spec
from uturn.plotting.style import ACCENT, CLASS, MUTED, THEORY, level_bar, level_colors, style
from uturn.statistics import crossing, estimate, grammar_means, inversion, shift
from uturn.theory import MeanField

TITLE = "Effective ε: what it maps, and what not"
CAPTION = (
    "Effective ε (Eq. 63): the ε whose leaf beliefs have the mean that the channel gives. Probability that a symbol is unchanged "
    "against it, by exact belief propagation (points: mean over grammars, bars: standard deviation between them), and mean field "
    "of the ε-process (lines). The class curves have the shape of the ε-process but are displaced: fluctuations between leaves "
    "make the class harder to recover than their mean belief tells. Leaves stay above the belief that each has by itself "
    "(dashed) and meet it, and each other, only where context is lost. Last panel: displacement of every level along ε (bars: "
    "95 % intervals)."
)
PARAMETERS = fig7.PARAMETERS


class Channel(NamedTuple):
    label: str
    color: str
    marker: str
    expected: tuple[float, float]
    """Effective ε where half of the class is lost, exact belief propagation at L = 9, 10 of (32, 8, 2)."""


CHANNELS = {
    "gaussian": Channel("Gaussian", CLASS, "o", (0.37, 0.49)),
    "masking": Channel("masking", ACCENT, "s", (0.25, 0.30)),
    "uniform": Channel("replacement", "#009e73", "^", (0.27, 0.36)),
}
REACH = 0.6  # of the displacements looked at


def experiments(scale: Scale) -> dict[str, Experiment]:
    """Masking and replacement, in the size of Fig. 5; the Gaussian process and the ε-process are the runs of Figs. 5 and 7."""
    spec = fig5.experiments(scale)[f"depth{PARAMETERS['depth']}"].to_dict()
    noise = {
        "masking": np.r_[np.linspace(0.02, 0.14, 4), np.linspace(0.17, 0.41, 13), np.linspace(0.45, 0.95, 8), 1.0],
        "uniform": np.r_[np.linspace(0.01, 0.07, 4), np.linspace(0.09, 0.27, 13), np.linspace(0.32, 0.92, 8), 1.0],
    }
    return {
        name: Experiment.from_dict({**spec, "corruption": {"type": name, "noise": levels.round(6).tolist()}})
        for name, levels in noise.items()
    }


def channels(scale: Scale) -> list[ChannelSpec]:
    return [channel_spec(one.label, {"type": "rhm", **PARAMETERS}, name, scale) for name, one in CHANNELS.items()]


def measure(work: Work) -> dict[str, xr.Dataset]:
    deep = f"depth{PARAMETERS['depth']}"
    return {
        "epsilon": work.run("fig7-epsilon", fig7.experiments(work.scale)["epsilon"]),
        "gaussian": work.run(f"fig5-{deep}", fig5.experiments(work.scale)[deep]),
        **{label: work.run(f"fig15-{label}", experiment) for label, experiment in experiments(work.scale).items()},
    }


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    L, v = PARAMETERS["depth"], PARAMETERS["vocab_size"]
    theory = MeanField(*(PARAMETERS[key] for key in ("vocab_size", "multiplicity", "branching")))
    critical = theory.critical_noise or np.nan
    fine = np.linspace(0, 1, 1001)
    lines = theory.curves(fine, L).marginals
    even = np.linspace(0.02, 0.98, 65)
    half = (1 + 1 / v) / 2
    loaded = {name: runs[name].load() for name in ("epsilon", *CHANNELS)}
    data = xr.Dataset(attrs={**PARAMETERS, "critical_noise": critical})
    for name, run in loaded.items():
        mean = grammar_means(run.belief).transpose("grammar", "noise", "tree_level")
        point = f"{name}_point"
        data[f"{name}_belief"] = (("grammar", point, "tree_level"), mean.values)
        data[f"{name}_epsilon"] = (point, run.effective_epsilon.values)
        data[f"{name}_noise"] = (point, run.noise.values)

    def on_even(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Every channel starts at (0, 1); an even grid, so that dense regions of the runs do not weigh more.
        return np.interp(even, np.r_[0, x], np.r_[1, y])

    shifts, before, after, halves, swaps, apart, surplus = [], [], [], [], [], [], []
    for name in CHANNELS:
        run = loaded[name]
        x = run.effective_epsilon.values
        rows = []
        for level in range(L + 1):

            def displaced(curves: np.ndarray, level: int = level, x: np.ndarray = x) -> float:
                return shift(even, on_even(x, curves[:, level]), fine, lines[:, level], REACH)

            rows.append(estimate(run.belief, displaced))
        shifts.append(rows)
        mean = run.belief.mean("item").transpose("noise", "tree_level").values
        curves = np.stack([on_even(x, mean[:, level]) for level in range(L + 1)])

        def residual(d: np.ndarray, curves: np.ndarray = curves) -> list[float]:
            return [
                float(np.sqrt(np.mean((c - np.interp(even - by, fine, line)) ** 2)))
                for c, by, line in zip(curves, d, lines.T, strict=True)
            ]

        before.append(residual(np.zeros(L + 1)))
        after.append(residual(np.array([row.value for row in rows])))
        halves.append(estimate(run.belief, lambda c, x=x: crossing(x, c[:, -1], half, first=True)))  # type: ignore[misc]
        swaps.append(estimate(run.belief, lambda c, x=x: inversion(x, c[:, -1], c[:, 0])))  # type: ignore[misc]
        apart.append(float(np.abs(curves[0] - np.interp(even, fine, lines[:, 0])).max()))
        # The mean belief in the truth given all leaves, minus that given the leaf alone, in standard errors over items.
        gain = run.belief.isel(tree_level=0) - (1 - run.effective_epsilon * (v - 1) / v)
        error = gain.std("item", ddof=1) / np.sqrt(run.sizes["item"])
        surplus.append(float((gain.mean("item") / error.clip(1e-12)).min()))
    dims = ("channel", "tree_level")
    data["shift"] = ((*dims, "bound"), np.array(shifts))
    data["residual_before"], data["residual_after"] = (dims, before), (dims, after)
    data["half_lost"] = (("channel", "bound"), np.array(halves))
    data = data.assign_coords(channel=list(CHANNELS), bound=["value", "low", "high"], tree_level=np.arange(L + 1))
    verdicts = [
        Verdict(
            f"effective ε where half of the class is lost, {channel.label}",
            str(found),
            f"{channel.expected[0]} to {channel.expected[1]} (ε* = {critical:.3f})",
            found.high >= channel.expected[0]
            and found.low <= channel.expected[1]
            and found.high - found.low < channel.expected[1] - channel.expected[0],
            "95 % interval meets the range, exact BP at L = 9, 10, and is narrower",
        )
        for channel, found in zip(CHANNELS.values(), halves, strict=True)
    ]
    names = ", ".join(channel.label for channel in CHANNELS.values())
    verdicts += [
        Verdict(
            f"displacement of the class curve from the ε-process: {names}",
            ", ".join(str(rows[L]) for rows in shifts),
            "negative: the threshold is not mapped",
            all(rows[L].high < 0 for rows in shifts),
            "95 % intervals below 0",
        ),
        Verdict(
            f"class curve, root mean square distance from the ε-process before and after the displacement: {names}",
            ", ".join(f"{b[L]:.3f} to {a[L]:.3f}" for b, a in zip(before, after, strict=True)),
            "the shape is mapped",
            all(a[L] < b[L] / 3 for b, a in zip(before, after, strict=True)),
            "less than a third is left",
        ),
        Verdict(
            f"leaves: smallest gain over the belief of a leaf by itself, in standard errors: {names}",
            ", ".join(f"{z:+.1f}" for z in surplus)
            + "; largest distance from the ε-process "
            + ", ".join(f"{x:.2f}" for x in apart),
            "not negative: in a Bayesian channel context cannot lower the mean belief in the truth",
            all(z > -3.5 for z in surplus),
            "above -3.5 at every noise level",
        ),
        Verdict(
            f"effective ε at which class and leaves swap order: {names}",
            ", ".join(map(str, swaps)),
            f"below ε* = {critical:.3f}",
            all(swap.high < critical for swap in swaps),
            "in every channel, 95 % intervals below ε*",
        ),
    ]
    return data, verdicts


def draw(data: xr.Dataset) -> Any:
    L = PARAMETERS["depth"]
    colors = level_colors(L + 1)
    theory = MeanField(*(data.attrs[key] for key in ("vocab_size", "multiplicity", "branching")))
    fine = np.linspace(0, 1, 500)
    lines = theory.curves(fine, L).marginals
    with style() as plt:
        figure, ((first, second), (third, fourth)) = plt.subplots(2, 2, figsize=(11.5, 8.4), layout="constrained")
        share = np.linspace(0, 1, 101)[:-1]
        for name, channel in CHANNELS.items():
            noise = -np.log1p(-share) / 2 if name == "gaussian" else share
            first.plot(share, CORRUPTIONS[name]().effective_epsilon(noise, PARAMETERS["vocab_size"]), color=channel.color)
            at = float(data.half_lost.sel(channel=name, bound="value"))
            x = float(np.interp(at, data[f"{name}_epsilon"], data[f"{name}_noise"]))
            first.plot(
                -np.expm1(-2 * x) if name == "gaussian" else x, at, channel.marker, ms=8, color=channel.color, label=channel.label
            )
        first.plot([], [], " ", label="markers: half of\nthe class is lost")
        first.set(
            xlabel=r"masked, replaced fraction; Gaussian: $1-\bar\alpha$", ylabel="effective ε (Eq. 63)", xlim=(0, 1), ylim=(0, 1)
        )
        first.legend(loc="lower right")
        above = first.secondary_xaxis("top", functions=(lambda x: x, lambda x: x))
        times = np.array([0.05, 0.1, 0.2, 0.5, 1])
        above.set_xticks(-np.expm1(-2 * times), [f"{t:g}" for t in times])
        above.set_xlabel("Gaussian time $t$", color=CLASS)
        first.set_title("effective ε of the channels")

        mean = data.gaussian_belief.mean("grammar")
        for level in range(L + 1):
            second.plot(
                data.gaussian_epsilon,
                mean.isel(tree_level=level),
                "-o",
                ms=3,
                color=colors[level],
                lw=2 if level in (0, L) else 0.9,
            )
        level_bar(plt, second, L + 1, "tree level (0 = leaves)")
        second.set(title="Gaussian, all levels")

        for name, channel in CHANNELS.items():
            curves = data[f"{name}_belief"]
            for level, fill in ((0, "white"), (L, channel.color)):
                third.errorbar(
                    data[f"{name}_epsilon"],
                    curves.isel(tree_level=level).mean("grammar"),
                    curves.isel(tree_level=level).std("grammar", ddof=1),
                    fmt=channel.marker, ms=4.5, mfc=fill, color=channel.color, lw=0.9, zorder=3 + level,
                )  # fmt: skip
        third.plot(fine, lines[:, L], color=THEORY)
        third.plot(fine, lines[:, 0], color=THEORY)
        third.plot(fine, 1 - fine * (1 - 1 / PARAMETERS["vocab_size"]), color=MUTED, lw=1.2, ls="--")
        third.text(0.76, 0.9, "ε-process,\nmean field", color=THEORY, va="center")
        third.text(0.545, 0.3, "a leaf\nby itself", color=MUTED, va="center")
        third.set(title="class (filled) and leaves (open)")
        for axes in (second, third):
            axes.axvline(data.attrs["critical_noise"], color=MUTED, lw=1, ls=":")
            axes.set(xlabel="effective ε", ylabel="P(symbol unchanged)", xlim=(0, 1), ylim=(0, 1.03))

        for offset, (name, channel) in zip((-0.15, 0, 0.15), CHANNELS.items(), strict=True):
            rows = data["shift"].sel(channel=name)
            value = rows.sel(bound="value")
            bars = np.abs(np.stack([value - rows.sel(bound="low"), rows.sel(bound="high") - value]))
            fourth.errorbar(
                data.tree_level + offset,
                value,
                bars,
                fmt=channel.marker,
                ms=6,
                color=channel.color,
                capsize=2,
                label=channel.label,
            )
        fourth.axhline(0, color=THEORY, lw=1.4)
        fourth.text(L + 0.3, 0.008, "ε-process", ha="right")
        fourth.set(
            xlabel="tree level (0 = leaves, L = class)",
            ylabel="displacement along effective ε",
            title="displacement of every level",
        )
        fourth.set_xticks(range(L + 1))
        fourth.legend(loc="lower left")
    return figure
