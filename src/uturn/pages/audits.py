"""Audits of masked models (`uturn text --audit`): their table of decoders, and their section of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.pages.sections import new_section
from uturn.studies.curves import with_interval
from uturn.studies.tables import TextTable

if TYPE_CHECKING:
    from uturn.pages.sections import Reader


def decoder_table(numbers: dict[str, Any]) -> TextTable:
    """What each decoder costs on the model: a row for each."""
    first, last = numbers["compared"]
    heads = (
        *("decoder", f"calls at {first:g}", f"kept at {first:g} [95 % interval]", f"gap at {first:g}", "p by Holm"),
        *(f"entropy at {last:g}, nats", "repeated 4-grams", "order, nats a text"),
    )
    rows = []
    for row in numbers["decoders"]:
        name = row["decoder"].removeprefix("order ")
        order = numbers["order_nats"].get(name)
        cells = [_words(row[key]) for key in ("ngram_entropy", "repeated_ngrams")]
        p = row["gap_p"][0]
        rows.append(
            (
                row["decoder"] + ("" if row["is_exact"] else " *"),
                f"{row['calls'][0]:.3g}",
                *(_words(row[key][0]) for key in ("kept", "gap")),
                "" if p is None else f"{p:.2g}",
                *cells,
                "0" if name == "blocks of 1" else "" if order is None else _words(order[-1]),
            )
        )
    title = (
        f"what a decoder costs on this model; entropy and repeated 4-grams minus those of originals, at noise {last:g}; "
        f"order: log-likelihood of originals minus that from left to right, at noise {numbers['noise'][-1]:g}; * draws from "
        f"another law even if the model is consistent"
    )
    return TextTable(title, heads, rows)


def _words(estimate: list[Any]) -> str:
    bounds = np.array(estimate, float)
    return with_interval(bounds) if np.isfinite(bounds[0]) else ""


def audit_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of `audit.json`; ValueError if the file is no audit of this version."""
    numbers = json.loads(path.read_bytes())
    if not isinstance(numbers, dict) or (numbers.get("format"), numbers.get("version")) != ("uturn.audit", 1):
        raise ValueError("expected an audit that `uturn text --audit` has written, version 1")
    section = new_section("audit", "audit", "text", "Audit of the masked model")
    largest = max((row for row in numbers["order_discrepancy"] if row[0] is not None), key=lambda row: row[0], default=None)
    section["words"] = (
        "" if largest is None else f"Two tokens drawn in two orders differ by up to {_words(largest)} nats a pair. "
    ) + f"Two random orders of a whole text differ by {_words(numbers['random_orders_differ'][-1])} nats; 0 for one joint law."
    section["caption"] = str(numbers["description"])
    section["tables"] = [decoder_table(numbers)._asdict()]
    section["files"] = [path, path.with_suffix(".pdf")]
    read.add_picture(section, path.with_suffix(".png"), "audit")
    return section
