"""What a judge says: a line for each test, and whether all of them passed.

`uturn.check_sampler` gives a `Report`, which its command prints before it ends with the exit code of
the report. A dataset of tests, such as `uturn.calibration` gives, has a report too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Self

import numpy as np
import pandas
import xarray as xr
from pydantic import JsonValue, TypeAdapter
from rich.table import Column, Table

from uturn.core import display
from uturn.core.checks import expect
from uturn.core.csv_text import csv_of
from uturn.core.files import finite, whole_file, write_json
from uturn.measures.estimates import Estimate, with_interval

FORMAT = "uturn.report"
"""The `format` of the JSON of a report."""
VERSION = 1
_STORED = ("judge", "title", "false_alarm_rate", "remarks", "docs")
"""Fields of a report beside its lines that are stored."""


class Verdict(StrEnum):
    """The outcome of a test."""

    PASSES = "passes"
    FAILS = "FAILS"
    REPORTED = "reported"
    """A number that is shown and not judged."""
    UNTESTED = "not tested"
    """The test could not be made; the result says why."""


_STYLES = {Verdict.PASSES: "green", Verdict.FAILS: "bold red"}


def verdict_of(p: float, level: float) -> Verdict:
    """Fails if a p-value, adjusted for the number of tests, is at most the false-alarm rate."""
    return Verdict.FAILS if p <= level else Verdict.PASSES


@dataclass(frozen=True)
class Line:
    """One test of a report."""

    test: str
    verdict: Verdict
    result: str = ""
    """What was found, in words; by default the measured value and what is expected."""
    sees: str = ""
    """Errors that the test can see."""
    misses: str = ""
    """Errors that it cannot see."""
    measured: Estimate | None = None
    """The effect with its 95 % interval, if the test measures one number."""
    expected: float | None = None
    """What a right sampler, model or knob gives for `measured`."""
    unit: str = ""
    """Unit of `measured` and `expected`."""
    p: float | None = None
    """p-value, adjusted for the number of tests that share a false-alarm rate."""
    remark: str = ""
    numbers: Mapping[str, JsonValue] = field(default_factory=dict)
    """All numbers of the test, such as lists over noise levels."""

    @property
    def words(self) -> str:
        """The result, or the measured value with its interval, unit and expectation.

        >>> Line("gap", Verdict.PASSES, measured=Estimate(0.02, -0.01, 0.05), expected=0).words
        '0.02 [-0.01, 0.05], expected 0'
        """
        if self.result or self.measured is None:
            return self.result
        value = f"{with_interval(self.measured)} {self.unit}".rstrip()
        return value if self.expected is None else f"{value}, expected {self.expected:.3g}"


_COLUMNS: dict[str, Callable[[Line], str]] = {
    "test": lambda line: line.test,
    "verdict": lambda line: line.verdict.value,
    "result": lambda line: line.words,
    "p": lambda line: "" if line.p is None else f"{line.p:.2g}",
    "remark": lambda line: line.remark,
    "sees": lambda line: line.sees,
    "does not see": lambda line: line.misses,
}


@dataclass(frozen=True, repr=False)
class Report:
    """The tests of a judge. It prints as a table, on a terminal and in notebooks.

    Examples
    --------
    >>> lines = [Line("gap", Verdict.FAILS, measured=Estimate(0.2, 0.1, 0.3), expected=0, p=1e-4)]
    >>> report = Report("calibration", "clones of a sampler", tuple(lines), false_alarm_rate=0.001)
    >>> report.passed, report.exit_code, report.conclusion
    (False, 1, 'fails: gap')
    >>> report.table[["test", "measured", "p"]].values.tolist()
    [['gap', 0.2, 0.0001]]
    """

    judge: str
    """Name of the judge, as on the command line."""
    title: str
    """What was judged, and against what."""
    lines: tuple[Line, ...]
    false_alarm_rate: float | None = None
    """Probability that a right sampler, model or knob fails in at least one test."""
    remarks: tuple[str, ...] = ()
    """What the reader should know of all lines together."""
    docs: str = ""
    """Where it is described: the name of a page in docs/ without ".md", or a URL."""

    @property
    def failed(self) -> tuple[str, ...]:
        """The tests that fail."""
        return tuple(line.test for line in self.lines if line.verdict is Verdict.FAILS)

    @property
    def passed(self) -> bool:
        """Whether no test fails."""
        return not self.failed

    @property
    def exit_code(self) -> int:
        """Of the command: 0 if no test fails, otherwise 1. Wrong input ends with 2."""
        return 0 if self.passed else 1

    @property
    def conclusion(self) -> str:
        """Which tests fail, in a line."""
        if self.failed:
            return f"fails: {', '.join(self.failed)}"
        if any(line.verdict is Verdict.PASSES for line in self.lines):
            return "no test fails"
        return "nothing was judged"

    def __getitem__(self, test: str) -> Line:
        """The line of a test; KeyError with the names of all tests if there is none."""
        for line in self.lines:
            if line.test == test:
                return line
        raise KeyError(f"no test {test!r}; the report has {[line.test for line in self.lines]}")

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row for each test: test, verdict, result, measured, low, high (of its 95 % interval),
        expected, unit, p, remark, sees, misses.
        """
        rows = []
        for line in self.lines:
            measured = line.measured or Estimate(np.nan, np.nan, np.nan)
            rows.append(
                {
                    "test": line.test,
                    "verdict": line.verdict.value,
                    "result": line.words,
                    "measured": measured.value,
                    "low": measured.low,
                    "high": measured.high,
                    "expected": np.nan if line.expected is None else line.expected,
                    "unit": line.unit,
                    "p": np.nan if line.p is None else line.p,
                    "remark": line.remark,
                    "sees": line.sees,
                    "misses": line.misses,
                }
            )
        return pandas.DataFrame(rows)

    # --- text -------------------------------------------------------------------------------------

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and rows of the table as text, without columns that are empty in all lines."""
        columns = {head: [cell(line) for line in self.lines] for head, cell in _COLUMNS.items()}
        shown = {head: column for head, column in columns.items() if any(column)}
        return tuple(shown), list(zip(*shown.values(), strict=True))

    def __rich__(self) -> Table:
        heads, rows = self.cells()
        columns = [Column(head, overflow="fold") for head in heads]
        table = Table(*columns, title=self.title, title_justify="left")
        for line, row in zip(self.lines, rows, strict=True):
            table.add_row(*row, style=_STYLES.get(line.verdict, ""))
        return table

    def __repr__(self) -> str:
        return display.text(self, *self.remarks, self.conclusion)

    def _repr_html_(self) -> str:
        heads, rows = self.cells()
        note = " ".join(f"{line}." for line in (*self.remarks, self.conclusion))
        return display.page(self.title, display.table(heads, rows), note=note)

    # --- files ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, JsonValue]:
        """The report as plain data, with numbers that are not finite as None."""
        table: dict[str, JsonValue] = {
            "format": FORMAT,
            "version": VERSION,
            "judge": self.judge,
            "title": self.title,
            "passed": self.passed,
            "false_alarm_rate": self.false_alarm_rate,
            "remarks": list(self.remarks),
            "docs": self.docs,
            "tests": [_plain(line) for line in self.lines],
        }
        return {key: finite(value) for key, value in table.items()}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The report of `to_dict`; ValueError for other data."""
        stored = data if isinstance(data, dict) else {}
        expect(stored.get("format") == FORMAT, "format", stored.get("format"), FORMAT)
        expect(stored.get("version") == VERSION, "version", stored.get("version"), str(VERSION))
        fields = {key: stored[key] for key in _STORED if key in stored}
        tests = stored.get("tests")
        lines = [_with_nan(test) for test in tests] if isinstance(tests, list) else tests
        report: Self = TypeAdapter(cls).validate_python({**fields, "lines": lines})
        return report

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file."""
        write_json(path, self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `table` to a file."""
        with whole_file(path) as file:
            file.write(csv_of(self.table).encode())


def _plain(line: Line) -> dict[str, JsonValue]:
    """A line as plain data, without what it does not have."""
    measured: list[JsonValue] = [*line.measured] if line.measured else []
    fields: dict[str, JsonValue] = {
        "test": line.test,
        "verdict": line.verdict.value,
        "result": line.words,
        "sees": line.sees,
        "misses": line.misses,
        "measured": measured,
        "expected": line.expected,
        "unit": line.unit,
        "p": line.p,
        "remark": line.remark,
        "numbers": dict(line.numbers),
    }
    return {key: value for key, value in fields.items() if value not in (None, "", {}, [])}


def _with_nan(test: object) -> object:
    """A stored test with NaN in place of ends of an interval that does not exist."""
    measured = test.get("measured") if isinstance(test, dict) else None
    if not isinstance(test, dict) or not isinstance(measured, list):
        return test
    return {**test, "measured": [np.nan if number is None else number for number in measured]}


class Tests(xr.Dataset):
    """A dataset of tests along noise levels and readings, which prints as its report."""

    __slots__ = ()

    @property
    def report(self) -> Report:
        """The tests as a report: a line for each noise level and reading."""
        raise NotImplementedError

    def _is_whole(self) -> bool:
        """Whether the report can be made; a selection may have lost what it needs."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self.report) if self._is_whole() else super().__repr__()

    def _repr_html_(self) -> str:
        return self.report._repr_html_() if self._is_whole() else super()._repr_html_()
