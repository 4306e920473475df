"""Verdicts on the channels of a figure: the law of the noise, calibration of the posterior draws, marginals against draws.

Calibration (`uturn.measures.calibration`) detects a wrong posterior and needs no reference. It does not detect a channel that
draws the wrong noise while its evidence is right for what it drew; the law of the noise does. Draws that pass both are then
compared with the marginals, on which most curves rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import gamma, norm, ttest_1samp

from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.corruption import Gaussian, Masking, UniformReplacement
from uturn.engine.run import run
from uturn.measures.calibration import calibrate, holm
from uturn.measures.statistics import Estimate
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import Rule, Verdict, above, below, verdict
from uturn.paper.workshop import Scale, Workshop
from uturn.sources import Vectors

CLONES = 8
LEVEL = 0.01  # false-alarm rate of the calibration of a figure
LAW_LEVEL = 1e-3  # false-alarm rate of the laws of the channels of a figure
# Noise levels below, at and beyond the loss of the class in the grammar of the paper.
NOISE = {"gaussian": (0.07, 0.15, 0.3), "masking": (0.2, 0.3, 0.6), "uniform": (0.1, 0.2, 0.5), "epsilon": (0.3, 0.5, 0.7)}
WORDS = {"gaussian": "Gaussian", "masking": "masking", "uniform": "replacement"}


class ChannelSpec(NamedTuple):
    """A channel of a figure: its label, and an experiment with this channel and exact posterior draws."""

    label: str
    experiment: Experiment

    @property
    def is_bayesian(self) -> bool:
        return self.experiment.parts.corruption.is_bayesian

    @property
    def readings(self) -> list[str]:
        """The readings in which clones are compared; the lowest tree levels show errors in the weight of the evidence best."""
        source = self.experiment.parts.source
        if not hasattr(source, "depth"):
            return ["class", *(f"scale {scale:g}" for scale in source.scales())]
        return [f"level {k}" for k in sorted({0, 1, 2, source.depth}) if k <= source.depth]


def channel_spec(
    label: str, source: dict[str, Any], kind: str, scale: Scale, noise: Sequence[float] | None = None
) -> ChannelSpec:
    """A channel of a source of strings or vectors, by default at the noise levels `NOISE`."""
    strings = source["type"] == "rhm"
    items = 1000 if (strings and source["depth"] <= 4) or scale == "paper" else 200
    source, probes = ({"grammars": 8, **source}, ("tree_levels", "parsed_levels")) if strings else (source, ("scales",))
    levels = NOISE[kind] if noise is None else noise
    return ChannelSpec(label, experiment_of(source, kind, levels, *probes, items=items, clones=CLONES, chunk=250))


def verdicts(channels: Sequence[ChannelSpec], workshop: Workshop) -> list[Verdict]:
    """Verdicts on the laws of all Bayesian channels, on their calibration and marginals, and on each negative control.

    Channels that figures share are measured once; the measurements of a verdict have the same names in all of these figures.
    """
    measured = {}
    for channel in channels:
        settings = {"experiment": channel.experiment.identity()}
        measured[channel.label] = workshop.keep(f"channel-{channel.experiment.hash[:12]}", settings, partial(measure, channel))
    bayesian = [channel for channel in channels if channel.is_bayesian]
    strings = [channel for channel in bayesian if "belief" in measured[channel.label]]
    checks = [("law", bayesian, law_verdict), ("calibration", bayesian, calibration_verdict)]
    checks += [("marginals", strings, marginals_verdict)]
    checks += [("calibration", [channel], calibration_verdict) for channel in channels if not channel.is_bayesian]
    return [
        replace(
            judge(of, [measured[channel.label] for channel in of]),
            measurements=tuple(f"{check} {channel.experiment.hash[:12]}" for channel in of),
        )
        for check, of, judge in checks
        if of
    ]


def measure(channel: ChannelSpec) -> xr.Dataset:
    """The data of the verdicts: agreement of originals and clones, marginals at the originals, and the noise that was drawn.

    `with_original`, `with_clones` (noise, item, clone, reading): the arguments of `calibrate`. `belief` (noise, item, reading).
    """
    ds = run(channel.experiment).isel(trajectory=0)
    if hasattr(channel.experiment.parts.source, "depth"):
        readings = [f"level {k}" for k in ds.tree_level.values]
        names = {"parsed": "with_original", "clone_parsed": "with_clones", "tree_level": "reading"}
        read = ds[["parsed", "clone_parsed", "belief"]].rename(names).assign_coords(reading=readings)
    else:
        readings = ["class", *(f"scale {scale:g}" for scale in ds.scale.values)]
        pairs = (("same_label", "scale_similarity"), ("clone_same_label", "clone_scale_similarity"))
        columns = [xr.concat([ds[a], ds[b].drop_vars("scale").rename(scale="reading")], "reading") for a, b in pairs]
        read = xr.Dataset(dict(zip(("with_original", "with_clones"), columns, strict=True))).assign_coords(reading=readings)
    read = read.astype(float).reset_coords(drop=True).drop_attrs()
    return xr.merge([read, drawn_noise(channel.experiment)]) if channel.is_bayesian else read


# -- the law of the noise ------------------------------------------------------------------------------------------------


def drawn_noise(experiment: Experiment) -> xr.Dataset:
    """Statistics of known law of the noise that the channel of an experiment drew for each original.

    Returns
    -------
    Dataset with dims noise, item, quantity
        `standardised`: mean 0 and variance 1, independent between items and noise levels. Masking: number of masked leaves;
        replacement: number of changed leaves, each changed with probability (1 - alpha)(v - 1)/v. Gaussian, with the residual
        r = (x_t - sqrt(abar) x_0)/sqrt(1 - abar): r projected on x_0, and the square of r. `excess`: its excess kurtosis.
        `mean`, `expected`: over items, in natural units (shares of leaves; amplitude of the signal; variance of the noise).
    """
    source, corruption, _, _ = experiment.parts
    items, laws = np.arange(experiment.items), []
    for level in experiment.noise:
        pieces = []
        for originals in source.blocks(items, experiment.seed, experiment.items):
            observed = corruption.observe(originals, level, Streams(experiment.seed, originals.items, level))
            if isinstance(corruption, Gaussian):
                vectors = isinstance(originals, Vectors)
                x0 = originals.values if vectors else np.eye(originals.rhm.vocab_size)[originals.data]
                pieces.append(gaussian_law(x0, observed.values, float(corruption.abar(level))))
            else:
                pieces.append(_counted(originals, observed, corruption, level))
        rows, natural, (expected, *_), (excess, *_) = zip(*pieces, strict=True)
        laws.append((np.concatenate(rows), np.concatenate(natural).mean(axis=0), expected, excess))
    names = {Masking: ["masked leaves"], UniformReplacement: ["changed leaves"], Gaussian: ["signal", "variance"]}
    standardised, *numbers = (np.array(values) for values in zip(*laws, strict=True))
    return xr.Dataset(
        {
            "standardised": (("noise", "item", "quantity"), standardised),
            **{
                name: (("noise", "quantity"), values)
                for name, values in zip(("mean", "expected", "excess"), numbers, strict=True)
            },
        },
        coords={"noise": experiment.noise, "item": items, "quantity": names[type(corruption)]},
    )


_Law = tuple[np.ndarray, np.ndarray, list[float], list[float]]  # standardised, natural, expected, excess


def _counted(originals: Any, observed: Any, corruption: Any, level: float) -> _Law:
    """Binomial numbers of leaves. A kept leaf that differs from the original's counts as masked or changed too."""
    changed = (observed.values != originals.data).sum(axis=1, keepdims=True)
    d, v = originals.data.shape[1], originals.rhm.vocab_size
    p = level if isinstance(corruption, Masking) else level * (v - 1) / v
    variance = d * p * (1 - p)
    return (changed - d * p) / np.sqrt(variance), changed / d, [p], [(1 - 6 * p * (1 - p)) / variance]


def gaussian_law(x0: np.ndarray, xt: np.ndarray, abar: float) -> _Law:
    """Signal and variance of `x_t = sqrt(abar) x_0 + sqrt(1 - abar) xi`, arrays (items, ...), as `drawn_noise` describes them."""
    x0, xt = (np.asarray(x, float).reshape(len(x), -1) for x in (x0, xt))
    norm, n = np.sqrt((x0**2).sum(axis=1)), x0.shape[1]
    noise = xt - np.sqrt(abar) * x0
    along, square = (noise * x0).sum(axis=1) / norm, (noise**2).sum(axis=1)
    standardised = np.stack([along / np.sqrt(1 - abar), (square / (1 - abar) - n) / np.sqrt(2 * n)], axis=1)
    natural = np.stack([np.sqrt(abar) + along / norm, square / n], axis=1)
    return standardised, natural, [np.sqrt(abar), 1 - abar], [0.0, 12 / n]


def law_p_values(data: xr.Dataset) -> np.ndarray:
    """P-values of the mean and of the spread over items at each noise level, and of the spread of the sum over the levels.

    The sum over L independent levels has variance L; noise that is the same at all levels has L**2.
    """
    z = data.standardised.transpose("noise", "item", "quantity").values
    levels, items = z.shape[:2]
    excess = data.excess.transpose("noise", "quantity").values

    def spread(values: np.ndarray, excess: np.ndarray) -> np.ndarray:
        # A sum of squares has mean 1 and variance 2 + excess per item: the gamma law with these moments.
        law = gamma(items / (2 + excess), scale=2 + excess)
        square = (values**2).sum(axis=-2)
        return (2 * np.minimum(law.cdf(square), law.sf(square))).clip(max=1)

    p_values = [2 * norm.sf(np.abs(z.sum(axis=1)) / np.sqrt(items)), spread(z, excess)]
    if levels > 1:
        p_values.append(spread(z.sum(axis=0) / np.sqrt(levels), excess.mean(axis=0) / levels)[None])
    return np.concatenate(p_values)


def law_verdict(channels: Sequence[ChannelSpec], measured: Sequence[xr.Dataset]) -> Verdict:
    """The noise that the channels drew, against its law."""
    p_values = [law_p_values(data) for data in measured]
    p = np.concatenate([values.ravel() for values in p_values])
    adjusted = holm(p).min()
    farthest = []
    for channel, data, values in zip(channels, measured, p_values, strict=True):
        k, quantity = np.unravel_index(values[: data.sizes["noise"]].argmin(), data["mean"].shape)
        worst = data[["mean", "expected"]].isel(noise=k, quantity=quantity)
        numbers = f"{float(worst['mean']):.4f} for {float(worst.expected):.4f}"
        farthest.append(f"{channel.label} {float(worst.noise):g}: {worst.quantity.item()} {numbers}")
    rule = f"mean, spread between originals, independence of the noise levels: no p by Holm <= {LAW_LEVEL:g}"
    return verdict(
        f"law of the noise that was drawn: {_listed(channels)}",
        f"{len(p)} tests, smallest p = {p.min():.2g}, by Holm {adjusted:.2g}; means farthest from their laws: "
        + "; ".join(farthest),
        "masked and changed leaves: binomial; Gaussian: signal sqrt(abar) x_0, noise of variance 1 - abar",
        above(adjusted, LAW_LEVEL, rule),
    )


# -- calibration --------------------------------------------------------------------------------------------------------


def calibration_verdict(channels: Sequence[ChannelSpec], measured: Sequence[xr.Dataset]) -> Verdict:
    """Originals against clones, in one test for all channels of a figure."""
    tests = [len(channel.readings) * len(channel.experiment.noise) for channel in channels]
    relabellings = math.ceil(100 * sum(tests) / LEVEL)
    rows = []
    for channel, data, count in zip(channels, measured, tests, strict=True):
        joint = data[["with_original", "with_clones"]].sel(reading=channel.readings)
        joint = joint.transpose("item", "clone", "noise", "reading")
        share = LEVEL * count / sum(tests)
        rows.append(calibrate(joint.with_original.values, joint.with_clones.values, share, relabellings))
    p, gap, low, high, visible = (
        np.concatenate([np.ravel(getattr(row, name)) for row in rows]) for name in ("p_value", "gap", "low", "high", "visible")
    )
    seen = np.isfinite(visible)  # elsewhere readings differ in too few items
    names = [
        f"{channel.label} {noise:g}, {reading}"
        for channel in channels
        for noise in channel.experiment.noise
        for reading in channel.readings
    ]
    adjusted = holm(p)
    least = int(p.argmin())
    strings = [channel for channel in channels if hasattr(channel.experiment.parts.source, "depth")]
    what = "share of equal parsed nodes per tree level" if strings else "same class, cosine per scale"
    if 0 < len(strings) < len(channels):
        what += "; vectors: same class, cosine per scale"
    worst = f"{names[least]}: gap {Estimate(gap[least], low[least], high[least])}"
    if channels[0].is_bayesian:
        expected, word = "0: originals and draws are exchangeable given the observation", "no"
        rules = [above(adjusted, LEVEL, "")]
    else:
        expected, word = "above 0: a negative control, whose beliefs are pinned on the originals", "some"
        rules = [below(adjusted.min(), np.nextafter(LEVEL, 1), ""), above(gap[least], 0, "")]
    return verdict(
        f"calibration of posterior draws, E f(x0, x̂) - E f(x̂, x̂'), {CLONES} clones of {channels[0].experiment.items} originals; "
        f"f: {what}; {_listed(channels)}",
        f"{len(p)} tests, smallest p = {p[least]:.2g} ({worst}), by Holm {adjusted.min():.2g}; gaps of "
        f"{visible.min():.2g} to {visible.max(where=seen, initial=0):.2g} would be seen in {seen.sum()} of them",
        expected,
        *rules,
        Rule(True, f"exact randomisation test, {relabellings:,} relabellings: {word} p by Holm <= {LEVEL:g}"),
    )


def marginals_verdict(channels: Sequence[ChannelSpec], measured: Sequence[xr.Dataset]) -> Verdict:
    """A draw keeps a symbol with its marginal probability: two measurements of one number. For strings only."""
    tests = []
    for channel, data in zip(channels, measured, strict=True):
        # Originals are independent, so the sum over noise levels has a t distribution.
        gap = (data.with_original.mean("clone") - data.belief).sum("noise").sel(reading=channel.readings)
        tests.append(ttest_1samp(gap.transpose("item", "reading").values, 0))
    adjusted = holm([test.pvalue for test in tests]).min()
    statistics = [", ".join(f"{t:+.1f}" for t in test.statistic) for test in tests]
    return verdict(
        f"marginals at the originals against {CLONES} draws each, summed over noise levels: t statistics of the tree levels",
        "; ".join(f"{channel.label} {text}" for channel, text in zip(channels, statistics, strict=True))
        + f"; smallest p by Holm {adjusted:.2g}",
        "0, standard deviation 1: a draw keeps a symbol with its marginal probability",
        above(adjusted, LAW_LEVEL, f"no p by Holm <= {LAW_LEVEL:g}"),
    )


def _listed(channels: Sequence[ChannelSpec]) -> str:
    """The channels and their noise levels as text."""
    return "; ".join(f"{channel.label} {', '.join(f'{x:g}' for x in channel.experiment.noise)}" for channel in channels)
