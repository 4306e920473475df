"""Verdicts of the figure `exam`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import norm

from uturn.corruption.unmasking import Decoder
from uturn.measures.calibration import holm
from uturn.measures.estimates import Estimate
from uturn.paper.verdicts import Verdict, above, below, decreasing, equal, listed, verdict, within
from uturn.tools.audit.exam_runs import DENOISERS, EXACT, ORDERS, OTHERS, decoders, in_steps

LEVEL = 1e-3
# Steps: the error of the decoder exceeds that of the network; clones detect the decoder.
FEW = 2
SOME = 16
PLAIN = "left to right"
_SHARPENED = ["temperature 0.7", "top-p 0.9"]
# Largest standard error of a divergence from draws, relative to it, in the comparison with
# enumeration.
PRECISION = 0.1


def verdicts(data: xr.Dataset, small: Mapping[str, xr.Dataset]) -> list[Verdict]:
    """All verdicts on the data of the figure; `small`: the measurements by enumeration."""
    of_decoders = [
        *_by_enumeration(data),
        _draws_against_enumeration(small),
        *_by_draws(data),
        *_clones(data),
    ]
    return [*of_decoders, _impossible(data), *_network(data)]


def is_bound(decoder: Decoder) -> bool:
    """Whether the mean of `log_ratios` is an upper bound of the divergence, and not the
    divergence itself.
    """
    by_chance = decoder.order in ("random", "confidence") or (
        decoder.order == "blocks" and decoder.block > 1
    )
    return by_chance and decoder.steps != 1


def curve(data: xr.Dataset | xr.DataArray, label: str, dim: str = "decoder") -> list[str]:
    """Labels of a decoder with more and more calls: in 1, 2, .. steps, and with one token a
    step.
    """
    return [*(str(name) for name in data[dim].values if str(name).startswith(f"{label}, ")), label]


def detected(p: ArrayLike) -> np.ndarray:
    """Smallest p-value by Holm of the tests of a decoder, (..) of p-values (.., tests): the
    smallest times their number.
    """
    p = np.asarray(p, float)
    smallest: np.ndarray = np.minimum(p.min(axis=-1) * p.shape[-1], 1)
    return smallest


def _by_enumeration(data: xr.Dataset) -> list[Verdict]:
    exact = data.small_kl.sel(denoiser="exact")
    rounding = data.small_rounding
    right = exact.sel(small_decoder=list(EXACT))
    other = exact.sel(small_decoder=~exact.small_decoder.isin(list(EXACT)))
    falls = {
        label: exact.sel(small_decoder=curve(data, label, "small_decoder")).values
        for label in list(ORDERS)[:2]
    }
    where = (
        f"KL(decoder ‖ posterior) by enumeration, exact denoiser, {data.small_leaves} leaves, nats"
    )
    return [
        verdict(
            f"{where}: orders chosen before the token is drawn, one token a step",
            _list(right),
            "0: they draw from the posterior",
            below(right, rounding, f"below {rounding:.1g}, what rounding can explain"),
        ),
        verdict(
            f"{where}: all other decoders",
            _list(other),
            "not 0: they draw from other laws",
            above(other, rounding, f"above {rounding:.1g}, what rounding can explain"),
        ),
        verdict(
            f"{where}: several tokens a step, with more and more calls",
            "; ".join(
                f"{label} {', '.join(f'{x:.3g}' for x in values)}"
                for label, values in falls.items()
            ),
            "falls to 0",
            below([np.diff(values) for values in falls.values()], 0, "decreasing"),
            below(
                [values[-1] for values in falls.values()], rounding, f"at last below {rounding:.1g}"
            ),
        ),
    ]


def _list(values: xr.DataArray) -> str:
    return "; ".join(
        f"{name} {float(x):.3g}"
        for name, x in zip(values[values.dims[0]].values, values, strict=True)
    )


def _draws_against_enumeration(small: Mapping[str, xr.Dataset]) -> Verdict:
    """The estimator for long strings, applied to short ones whose laws are known."""
    tried = decoders(json.loads(small["exact"].attrs["plan"])["steps"])
    p = []
    z = []
    precision = []
    slack = []
    for kind in DENOISERS:
        for label, decoder in tried.items():
            if kind == "exact" and label in EXACT:
                continue  # both are rounding
            draws = small[kind].sel(decoder=label)
            error = float(np.sqrt((draws.error**2).mean() / draws.sizes["observation"]))
            truth = float(draws.divergence.mean())
            drawn = float(draws.estimate.mean())
            if is_bound(decoder):
                p.append(norm.cdf((drawn - truth) / error))
                slack.append(drawn / truth)
            else:
                z.append((drawn - truth) / error)
                p.append(2 * norm.sf(abs(z[-1])))
                precision.append(error / truth)
    return verdict(
        "mean log ratio over draws against the enumerated KL, other decoders and both denoisers",
        f"{len(z)} divergences: largest |z| {np.abs(z).max():.1f}, standard errors"
        f" {100 * min(precision):.1g} to {100 * max(precision):.1g} %; {len(slack)} upper bounds:"
        f" {min(slack):.2f} to {max(slack):.2f} times the divergence; smallest p by Holm"
        f" {holm(p).min():.2g}",
        "equal; random orders and drawn-token confidence: not below",
        above(holm(p), LEVEL, f"no p by Holm <= {LEVEL:g}"),
        below(precision, PRECISION, f"standard errors below {100 * PRECISION:g} %"),
    )


def _estimates(values: xr.DataArray, labels: list[str]) -> list[Estimate]:
    return listed(values.sel(decoder=labels).transpose("decoder", "estimate"))


def _intervals(values: xr.DataArray, labels: list[str]) -> str:
    return "; ".join(
        f"{label} {interval}"
        for label, interval in zip(labels, _estimates(values, labels), strict=True)
    )


def _by_draws(data: xr.Dataset) -> list[Verdict]:
    kl = data.kl.sel(denoiser="exact")
    rounding = data.large_rounding
    tried = decoders(_steps(data))
    sure = [
        label for label, decoder in tried.items() if label not in EXACT and not is_bound(decoder)
    ]
    where = f"KL(decoder ‖ posterior) from draws, exact denoiser, {data.large_leaves} leaves, nats"
    ends = kl.sel(decoder=list(EXACT), estimate=["low", "high"])
    return [
        verdict(
            f"{where}: orders chosen before the token is drawn, one token a step",
            _intervals(kl, list(EXACT)),
            "0: they draw from the posterior",
            within(ends, rounding, f"intervals within {rounding:.1g}, what rounding can explain"),
        ),
        verdict(
            f"{where}: other decoders whose order follows from the string",
            _intervals(kl, sure),
            "not 0",
            above(
                kl.sel(decoder=sure, estimate="low"), rounding, f"intervals above {rounding:.1g}"
            ),
        ),
        verdict(
            f"{where}: several tokens a step, with more and more calls",
            "; ".join(_intervals(kl, curve(data, label)) for label in list(ORDERS)[:2]),
            "falls to 0 (random order: an upper bound)",
            *(
                decreasing(_estimates(kl, curve(data, label)), f"{label}: decreasing")
                for label in list(ORDERS)[:2]
            ),
        ),
    ]


def _steps(data: xr.Dataset) -> list[int]:
    return [int(label.rpartition(", ")[2].split()[0]) for label in curve(data, "random order")[:-1]]


def _clones(data: xr.Dataset) -> list[Verdict]:
    p = data.p.sel(denoiser="exact")
    adjusted = holm(p.sel(decoder=list(EXACT)).values)
    smallest = dict(zip(p.decoder.values, detected(p), strict=True))
    steps = {
        label: decoder.steps for label, decoder in decoders(_steps(data)).items() if decoder.steps
    }
    wrong = [*OTHERS, *(label for label, number in steps.items() if number <= SOME)]
    rest = [label for label, number in steps.items() if number > SOME]
    where = (
        "calibration E f(x0, x̂) - E f(x̂, x̂'), f: share of equal parsed nodes per tree level, two"
        " grammars, exact denoiser"
    )
    return [
        verdict(
            f"{where}: orders chosen before the token is drawn, one token a step",
            f"{adjusted.size} tests, smallest p by Holm {adjusted.min():.2g}",
            "0",
            above(adjusted, LEVEL, f"exact randomisation test: no p by Holm <= {LEVEL:g}"),
        ),
        verdict(
            f"{where}: all other decoders, p by Holm",
            "; ".join(f"{label} {smallest[label]:.2g}" for label in wrong)
            + "; not judged: "
            + ("; ".join(f"{label} {smallest[label]:.2g}" for label in rest) or "none"),
            f"not 0 (several tokens a step: up to {SOME} steps)",
            below([smallest[label] for label in wrong], LEVEL, f"p by Holm < {LEVEL:g} each"),
        ),
    ]


def _impossible(data: xr.Dataset) -> Verdict:
    broken = data.broken.sel(denoiser="exact")
    single = [*EXACT, *OTHERS]
    most = max(_steps(data))
    judged = {label: [in_steps(label, 1), in_steps(label, most), label] for label in ORDERS}
    return verdict(
        "share of drawn strings that the sparse grammar cannot produce, exact denoiser (their KL is"
        " infinite)",
        f"one token a step: at most {float(broken.sel(decoder=single, estimate='value').max()):.3g}"
        f" for {len(single)} decoders; "
        + "; ".join(_intervals(broken, curve(data, label)[:-1]) for label in ORDERS),
        "0 with one token a step; with several, falls with the number of steps",
        equal(broken.sel(decoder=single, estimate="value"), 0, "0"),
        *(
            decreasing(_estimates(broken, labels), f"{label}: 1, {most} steps: decreasing")
            for label, labels in judged.items()
        ),
    )


def _network(data: xr.Dataset) -> list[Verdict]:
    exact, trained = (data.kl.sel(denoiser=kind) for kind in DENOISERS)
    random = "random order"
    most = max(_steps(data))
    few, many = (in_steps(random, number) for number in (FEW, most))
    (own,) = _estimates(trained, [random])
    shown = [*(in_steps(random, number) for number in (1, 4)), random]
    (first,) = _estimates(exact, [few])
    (last,) = _estimates(exact, [many])
    broken, less = (data[name].sel(denoiser="trained") for name in ("broken", "more_broken"))
    return [
        verdict(
            "trained network: KL with the exact orders, one token a step, is its own error; random"
            " order in 1 and 4 steps, and with one token a step",
            f"{_intervals(trained, list(EXACT))}; {_intervals(trained, shown)}",
            "not 0; several tokens a step add to it",
            above(
                trained.sel(decoder=list(EXACT), estimate="low"),
                data.large_rounding,
                f"above {data.large_rounding:.1g}",
            ),
            decreasing(_estimates(trained, shown)),
        ),
        verdict(
            f"errors of the decoder and of the network: KL of the exact denoiser in {FEW} and"
            f" {most} steps; of the network",
            f"{first} and {last}; {own}",
            "few steps cost more than the errors of the network, many cost less",
            above(first.low, own.high, "intervals apart"),
            below(last.high, own.low, ""),
        ),
        verdict(
            f"trained network: share of impossible strings, minus that of {PLAIN} at temperature 1,"
            f" which is {float(broken.sel(decoder=PLAIN, estimate='value')):.3f}",
            _intervals(less, _SHARPENED),
            "below 0: draws from a sharpened law, which is not the posterior, have fewer mistakes",
            below(less.sel(decoder=_SHARPENED, estimate="high"), 0, "intervals below 0"),
        ),
    ]
