"""Audits of masked models (`uturn audit`): their table of decoders, and their section of a page."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from uturn.measures.estimates import with_interval
from uturn.pages.sections import Reader, Section
from uturn.pages.views import Card
from uturn.studies.runs import label
from uturn.studies.tables import TextTable
from uturn.tools.audit.numbers import AuditNumbers, Bounds, DecoderNumbers
from uturn.tools.audit.words import decoder_words, meaning

_TITLE = (
    "what each decoder costs on this model, once for decoders that are equal on texts of this"
    " length; * draws from another law even if the model is consistent"
)


def decoder_table(numbers: AuditNumbers) -> TextTable:
    """What each decoder costs on the model: a row for each."""
    first, last = numbers.compared
    columns = (
        "decoder",
        f"calls at {first:g}, at {last:g}",
        f"kept at {first:g} [95 % interval]",
        f"gap at {first:g}",
        "p by Holm",
        f"entropy at {last:g} minus originals, nats",
        f"repeated 4-grams at {last:g} minus originals",
        f"log-likelihood at {numbers.noise[-1]:g} minus left to right, nats",
    )
    rows: list[tuple[str, ...]] = []
    for decoder in numbers.decoders:
        p = decoder.gap_p[0]
        rows.append(
            (
                decoder_words(decoder.decoder) + ("" if decoder.is_exact else " *"),
                ", ".join(f"{calls:.3g}" for calls in decoder.calls),
                _cell(decoder.kept[0]),
                _cell(decoder.gap[0]),
                "" if p is None else f"{p:.2g}",
                _cell(decoder.ngram_entropy),
                _cell(decoder.repeated_ngrams),
                _cell(_nats_of_order(numbers, decoder)),
            )
        )
    return TextTable(_TITLE, columns, rows)


def _cell(bounds: Bounds) -> str:
    return with_interval(bounds, ".2g", "")


def _nats_of_order(numbers: AuditNumbers, decoder: DecoderNumbers) -> Bounds:
    """Log-likelihood at the largest noise minus left to right, where it is known."""
    name = decoder.decoder.removeprefix("order ")
    if name == "blocks of 1":
        return 0.0, None, None
    if name not in numbers.order_nats:
        return None, None, None
    return numbers.order_nats[name][-1]


def audit_section(path: Path, reader: Reader) -> Section:
    """The section of `audit.json`; ValueError if the file is not an audit of this version."""
    try:
        numbers = AuditNumbers.model_validate(json.loads(reader.content(path)))
    except ValidationError:
        raise ValueError("expected an audit that `uturn audit` has written, version 1") from None
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
        caption=label(numbers.description, 500),
        overview=decoder_table(numbers),
        files=[path, path.with_suffix(".pdf")],
        has_pictures_first=True,
    )
    reader.add_picture(section, path.with_suffix(".png"), "audit")
    return section


def _cards(numbers: AuditNumbers) -> list[Card]:
    """How much the order of two tokens matters, and the order of all tokens of a text."""
    cards = []
    largest = numbers.largest_discrepancy
    if largest is not None:
        claim = (
            "Dependence of the log-probability of two tokens on their order, at masked fraction"
            f" {largest.noise:g}; 0 for one joint law."
        )
        cards.append(Card("two tokens in two orders", "nats a pair", claim, list(largest.nats)))
    claim = (
        "Difference of the log-likelihoods of a text in two random orders, at masked fraction"
        f" {numbers.noise[-1]:g}; 0 for one joint law."
    )
    differ = list(numbers.random_orders_differ[-1])
    cards.append(Card("a text in two orders", "nats a text", claim, differ))
    return cards
