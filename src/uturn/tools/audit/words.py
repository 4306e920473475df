"""Words of an audit: decoders in few words, and what the discrepancies mean."""

from __future__ import annotations

import numpy as np

from uturn.measures.estimates import with_interval
from uturn.tools.audit.numbers import AuditNumbers

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
    shortened = description.removeprefix("order ").replace("drawn tokens masked again", "remasked")
    order, *more = shortened.split(", ")
    return ", ".join([_ORDERS.get(order, order), *more])


def meaning(numbers: AuditNumbers) -> str:
    """What the discrepancies of an audit mean, in two sentences; "" if no text has two masked
    tokens.
    """
    largest = numbers.largest_discrepancy
    if largest is None:
        return ""
    factor = with_interval(np.exp(np.array(largest.nats, float)), ".3g")
    differ = with_interval(numbers.random_orders_differ[-1], ".2g", "")
    if (largest.nats[1] or 0) > 0:
        order = "The order of two tokens matters most"
    else:
        order = "No influence of the order of two tokens is seen, the largest"
    return (
        f"{order} at masked fraction {largest.noise:g}: a drawn pair is on average {factor} times"
        " as probable in its own order as in the other (1 for one joint law). Two random orders of"
        f" a text differ by {differ} nats at masked fraction {numbers.noise[-1]:g}: smaller"
        " differences between the log-likelihoods of texts say nothing."
    )
