"""What the commands of judges share: they print a report, write it, and end with its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uturn.cli.options import OUTPUT, option
from uturn.cli.printing import console, show
from uturn.core.checks import expect

if TYPE_CHECKING:
    from uturn.measures.report import Report

JsonFile = Annotated[
    Path | None,
    option(OUTPUT, "Write the tests with all numbers to this file.", "--json", metavar="FILE"),
]
CsvFile = Annotated[
    Path | None,
    option(OUTPUT, "Write the table of tests to this file.", "--csv", metavar="FILE"),
]


def check_files(json_file: Path | None, csv_file: Path | None) -> None:
    """ValueError before anything is computed if a file is a folder."""
    for name, file in (("json", json_file), ("csv", csv_file)):
        expect(file is None or not file.is_dir(), name, str(file), "a file")


def end_with(report: Report, json_file: Path | None = None, csv_file: Path | None = None) -> None:
    """Print a report, write its files, and end the command with its exit code."""
    show(report)
    if json_file is not None:
        report.to_json(json_file)
        console().print(f"written: {json_file}")
    if csv_file is not None:
        report.to_csv(csv_file)
        console().print(f"written: {csv_file}")
    if not report.passed:
        raise typer.Exit(report.exit_code)
