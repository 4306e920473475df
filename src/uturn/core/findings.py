"""What the checks before a run have found in networks and data."""

from __future__ import annotations

from typing import NamedTuple

CHECKS = MODEL_CHECK, DATA_CHECK = "model check:", "data check:"
"""How the lines begin that say what the checks before a run have found."""


class Finding(NamedTuple):
    """What seems wrong in a network or in data, as a sentence. `is_unclear`: that could not be
    judged.
    """

    words: str
    is_unclear: bool = False
    check: str = MODEL_CHECK

    def __str__(self) -> str:
        return f"{self.check} {self.words}"
