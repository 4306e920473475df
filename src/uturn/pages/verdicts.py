"""Verdicts of a figure: each compares a number with the expectation of theory or of a paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uturn.core.messages import counted


@dataclass(frozen=True)
class Verdict:
    """One number of a figure and the expectation of theory or of the paper, as texts with units and
    intervals.

    `rule` says which comparison was made, `passed` its outcome: None for a number that is shown and
    not judged.
    """

    quantity: str
    measured: str
    expected: str
    passed: bool | None
    rule: str = ""

    def __post_init__(self) -> None:
        if self.passed is not None:
            object.__setattr__(self, "passed", bool(self.passed))  # numpy's own bool is not JSON


@dataclass
class Result:
    """A reproduced figure, the content of `figN.json`: its verdicts and the names of its files
    in the output folder.
    """

    figure: str
    title: str
    caption: str
    scale: str
    verdicts: list[Verdict]
    files: dict[str, str]
    seconds: float = 0.0
    claim: str = ""
    is_of_paper: bool = False
    """Whether it is a figure of arXiv:2402.16991."""

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)


@dataclass(frozen=True)
class Tally:
    """Counts of verdicts."""

    judged: int
    failed: int
    """Judged verdicts that have not passed."""
    shown: int
    """Numbers that are shown and not judged."""

    @property
    def words(self) -> str:
        if not self.shown:
            return self.outcome
        return f"{self.outcome}; shown and not judged: {self.shown}"

    @property
    def outcome(self) -> str:
        """How many of the verdicts that are judged have passed."""
        if not self.judged:
            return "no verdicts"
        return f"{self.judged - self.failed} of {self.judged} verdicts passed"

    @property
    def summary(self) -> str:
        """The counts for the caption of a figure."""
        verdicts = counted(self.judged, "verdict")
        if self.judged == 0:
            words = "No verdicts"
        elif self.failed:
            words = f"{verdicts}, {self.failed} failed"
        else:
            words = f"{verdicts}, all passed"
        if self.shown:
            words += f"; {self.shown} more shown"
        return words


def tally(verdicts: Iterable[Verdict]) -> Tally:
    outcomes = [verdict.passed for verdict in verdicts]
    shown = outcomes.count(None)
    return Tally(judged=len(outcomes) - shown, failed=outcomes.count(False), shown=shown)
