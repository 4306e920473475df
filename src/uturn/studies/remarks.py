"""Remarks of a study: why a number does not exist, or how far it can be trusted.

A remark is an object from the place that finds it to the dataset, where one text holds all remarks
on a reading. Remarks are made in `analysis` (on the whole run), `reading_checks` and `reading_curves`
(on a reading), `moves` (on a curve that rises and falls), `series`, `gaps` and `changes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

_SEPARATOR = "; "


class Kind(Enum):
    """What a remark is about."""

    ORIGINALS = "the originals that have a reading"
    MISSING = "readings that are missing"
    START = "a start that is guessed, or not in the run"
    BOUNDS = "readings that leave their bounds"
    SHAPE = "a curve that rises and falls"
    PLACE = "a place that does not exist or is uncertain"
    INTERVAL = "an interval that may be too narrow, or does not exist"
    STUDY = "what the study does not compute, or how"


@dataclass(frozen=True)
class Remark:
    """One remark on a reading, a series, changes of sites, or the whole run."""

    kind: Kind
    text: str
    """A phrase without a full stop; one on the whole run has no "; ", since `lines_in` splits there."""


def joined(remarks: Iterable[Remark]) -> str:
    """The texts of remarks as the dataset of a study holds them; "" if there are none."""
    return _SEPARATOR.join(remark.text for remark in remarks)


def lines_in(text: str) -> list[str]:
    """The remarks in the text of a dataset, to print them: the inverse of `joined`."""
    return [line for line in text.split(_SEPARATOR) if line]


def first_names(names: Sequence[str], most: int = 4, noun: str = "") -> str:
    """The first `most` names, and the number of the others.

    >>> first_names(["a", "b", "c"], 2), first_names(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    listed = ", ".join(names[:most])
    number = len(names) - most
    if number <= 0:
        return listed
    return f"{listed} and {number} more {noun}".rstrip()


def about_guess(start: float) -> str:
    """A remark on a start that is a guess.

    >>> about_guess(1.0)
    'its start is taken as 1, which is a guess: give start'
    """
    return f"its start is taken as {start:g}, which is a guess: give start"
