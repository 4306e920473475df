"""Audits of masked models (`uturn audit`): their table of decoders, and their section of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from uturn.measures.estimates import with_interval
from uturn.pages.sections import Reader, Section
from uturn.pages.views import Card
from uturn.pages.views import numbers as numbers_of_page
from uturn.studies.runs import label
from uturn.studies.tables import TextTable
from uturn.tools.audit.figure import decoder_words


def decoder_table(numbers: dict[str, Any]) -> TextTable:
    """What each decoder costs on the model: a row for each."""
    (first, last), rows = numbers["compared"], []
    for of in numbers["decoders"]:
        name = of["decoder"].removeprefix("order ")
        order = (
            [0.0, None, None]
            if name == "blocks of 1"
            else numbers["order_nats"].get(name, [[None] * 3])[-1]
        )
        row = {
            "decoder": decoder_words(of["decoder"]) + ("" if of["is_exact"] else " *"),
            f"calls at {first:g}, at {last:g}": ", ".join(f"{calls:.3g}" for calls in of["calls"]),
            f"kept at {first:g} [95 % interval]": with_interval(of["kept"][0], ".2g", ""),
            f"gap at {first:g}": with_interval(of["gap"][0], ".2g", ""),
            "p by Holm": "" if of["gap_p"][0] is None else f"{of['gap_p'][0]:.2g}",
            f"entropy at {last:g} minus originals, nats": with_interval(
                of["ngram_entropy"], ".2g", ""
            ),
            f"repeated 4-grams at {last:g} minus originals": with_interval(
                of["repeated_ngrams"], ".2g", ""
            ),
            f"log-likelihood at {numbers['noise'][-1]:g} minus left to right, nats": with_interval(
                order, ".2g", ""
            ),
        }
        rows.append(row)
    title = (
        "what each decoder costs on this model, once for decoders that are equal on texts of this"
        " length; * draws from another law even if the model is consistent"
    )
    return TextTable(title, tuple(rows[0]), [tuple(row.values()) for row in rows])


def meaning(numbers: dict[str, Any]) -> str:
    """What the discrepancies of an audit mean, in two sentences; "" if no text has two masked
    tokens.
    """
    if (found := _largest(numbers)) is None:
        return ""
    pair, at = found
    factor, is_seen = with_interval(np.exp(np.array(pair, float)), ".3g"), (pair[1] or 0) > 0
    differ = with_interval(numbers["random_orders_differ"][-1], ".2g", "")
    order = (
        "The order of two tokens matters most"
        if is_seen
        else "No influence of the order of two tokens is seen, the largest"
    )
    return (
        f"{order} at masked fraction {at:g}: a drawn pair is on average {factor} times as probable"
        " in its own order as in the other (1 for one joint law). Two random orders of a text"
        f" differ by {differ} nats at masked fraction {numbers['noise'][-1]:g}: smaller differences"
        " between the log-likelihoods of texts say nothing."
    )


def _largest(numbers: dict[str, Any]) -> tuple[list[Any], float] | None:
    """The largest discrepancy of pairs, with its interval, and its masked fraction; None without
    pairs.
    """
    levels = zip(numbers["order_discrepancy"], numbers["noise"], strict=True)
    return max(
        (level for level in levels if level[0][0] is not None),
        key=lambda level: level[0][0],
        default=None,
    )


def audit_section(path: Path, reader: Reader) -> Section:
    """The section of `audit.json`; ValueError if the file is not an audit of this version."""
    numbers = json.loads(reader.content(path))
    if not isinstance(numbers, dict) or (numbers.get("format"), numbers.get("version")) != (
        "uturn.audit",
        1,
    ):
        raise ValueError("expected an audit that `uturn audit` has written, version 1")
    words = (
        "A masked model is consistent if its conditionals belong to one joint law; the order in"
        " which tokens are drawn then has no influence. If it is not, results depend on the"
        f" decoder. {meaning(numbers)}"
    )
    section = Section(
        "audit",
        "audit",
        "decoders",
        "Audit of the masked model",
        cards=_cards(numbers),
        words=words.strip(),
        caption=label(numbers["description"], 500),
        overview=decoder_table(numbers),
        files=[path, path.with_suffix(".pdf")],
        has_pictures_first=True,
    )
    reader.add_picture(section, path.with_suffix(".png"), "audit")
    return section


def _cards(numbers: dict[str, Any]) -> list[Card]:
    """How much the order of two tokens matters, and the order of all tokens of a text."""
    cards = []
    if (found := _largest(numbers)) is not None:
        largest, at = found
        claim = (
            "Dependence of the log-probability of two tokens on their order, at masked fraction"
            f" {at:g}; 0 for one joint law."
        )
        cards.append(
            Card("two tokens in two orders", "nats a pair", claim, numbers_of_page(largest))
        )
    differ = numbers["random_orders_differ"][-1]
    claim = (
        "Difference of the log-likelihoods of a text in two random orders, at masked fraction"
        f" {numbers['noise'][-1]:g}; 0 for one joint law."
    )
    cards.append(Card("a text in two orders", "nats a text", claim, numbers_of_page(differ)))
    return cards
