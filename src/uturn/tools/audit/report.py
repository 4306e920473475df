"""The report of an audit: what was measured, and what of it is judged."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import ttest_1samp

from uturn.measures.calibration import holm
from uturn.measures.estimates import Estimate
from uturn.measures.report import Line, Report, Verdict, verdict_of
from uturn.tools.audit.numbers import AuditNumbers, Bounds, DecoderNumbers
from uturn.tools.audit.words import decoder_words, meaning

_PAIRS = "two tokens in two orders"


def audit_report(
    numbers: AuditNumbers,
    run: xr.Dataset | None = None,
    *,
    tolerance: float | None = None,
    false_alarm_rate: float = 0.001,
) -> Report:
    """The numbers of an audit as a report.

    The consistency of two tokens is judged if `tolerance`, in nats a pair, is given with the `run`
    that has the reading `order_discrepancy`. The test fails if the mean over texts is significantly
    larger than the tolerance at some noise level. All other numbers are reported.
    """
    judged = tolerance if run is not None else None
    lines = [_pairs(numbers, run, judged, false_alarm_rate), _texts(numbers)]
    for decoder, nats in numbers.order_nats.items():
        lines.append(_likelihood(decoder, nats[-1], numbers.noise[-1]))
    lines += [_decoder(decoder, numbers) for decoder in numbers.decoders]
    words = meaning(numbers)
    return Report(
        "audit",
        f"the masked model on {numbers.texts} texts",
        tuple(lines),
        false_alarm_rate=None if judged is None else false_alarm_rate,
        remarks=(words,) if words else (),
        docs="decoders",
    )


def _pairs(
    numbers: AuditNumbers, run: xr.Dataset | None, tolerance: float | None, false_alarm_rate: float
) -> Line:
    """Whether the law of two tokens depends on their order, at the noise where it does most."""
    largest = numbers.largest_discrepancy
    if largest is None:
        return Line(_PAIRS, Verdict.UNTESTED, "no text has two masked tokens")
    verdict = Verdict.REPORTED
    p = None
    remark = f"at masked fraction {largest.noise:g}"
    if run is not None and tolerance is not None:
        p = _p_value(run, tolerance)
        verdict = verdict_of(p, false_alarm_rate)
        remark += f", tolerated: {tolerance:g}"
    return Line(
        _PAIRS,
        verdict,
        sees="conditionals that belong to no joint law",
        misses="a joint law that is not the law of the data",
        measured=_estimate(largest.nats),
        expected=0.0,
        unit="nats a pair",
        p=p,
        remark=remark,
        numbers={
            "noise": list(numbers.noise),
            "nats": [list(bounds) for bounds in numbers.order_discrepancy],
        },
    )


def _p_value(run: xr.Dataset, tolerance: float) -> float:
    """p-value that the mean over texts is at most the tolerance at all noise levels, by Holm."""
    values = run["order_discrepancy"].transpose("noise", "item").values
    p_values = []
    for of_texts in values:
        exist = of_texts[np.isfinite(of_texts)]
        if len(exist) > 1 and np.ptp(exist) > 0:
            p_values.append(ttest_1samp(exist, tolerance, alternative="greater").pvalue)
    return float(holm(np.array(p_values)).min()) if p_values else 1.0


def _texts(numbers: AuditNumbers) -> Line:
    return Line(
        "a text in two random orders",
        Verdict.REPORTED,
        sees="how much two log-likelihoods of one text differ",
        measured=_estimate(numbers.random_orders_differ[-1]),
        expected=0.0,
        unit="nats a text",
        remark=f"at masked fraction {numbers.noise[-1]:g}",
    )


def _likelihood(decoder: str, nats: Bounds, noise: float) -> Line:
    return Line(
        f"likelihood, {decoder_words(decoder)}",
        Verdict.REPORTED,
        sees="how much the law of texts depends on the decoder",
        measured=_estimate(nats),
        expected=0.0,
        unit="nats a text",
        remark=f"minus left to right, at masked fraction {noise:g}",
    )


def _decoder(decoder: DecoderNumbers, numbers: AuditNumbers) -> Line:
    """The calibration gap of a decoder at the first of the compared noise levels."""
    remark = f"at masked fraction {numbers.compared[0]:g}"
    if not decoder.is_exact:
        remark += "; draws from another law even if the model is consistent"
    return Line(
        f"gap, {decoder_words(decoder.decoder)}",
        Verdict.REPORTED,
        sees="clones that agree more or less with each other than with the original",
        measured=_estimate(decoder.gap[0]),
        expected=0.0,
        unit="share of the masked tokens",
        p=decoder.gap_p[0],
        remark=remark,
        numbers=decoder.model_dump(mode="json"),
    )


def _estimate(bounds: Bounds) -> Estimate:
    value, low, high = (np.nan if number is None else number for number in bounds)
    return Estimate(value, low, high)
