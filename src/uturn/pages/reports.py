"""Reports of judges in a folder of results: their files, and the section of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from uturn.measures.report import Report
from uturn.pages.results import write_figures
from uturn.pages.sections import Reader, Section
from uturn.store.outputs import output_folder
from uturn.studies.tables import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    report: Report, out: str, name: str, draw: Callable[[], Figure] | None = None
) -> list[str]:
    """Write NAME.json and NAME.csv into a folder of results or a URL, and NAME.png and NAME.pdf if
    `draw` gives a figure; the names of the files.

    A tool names NAME.json in its `sections`, with `report_section` or a function of its own.
    """
    files = [f"{name}.json", f"{name}.csv"]
    with output_folder("out", out) as folder:
        folder.path.mkdir(parents=True, exist_ok=True)
        report.to_json(folder.path / files[0])
        report.to_csv(folder.path / files[1])
        if draw is not None:
            write_figures(folder.path, {name: draw})
            files += [f"{name}.png", f"{name}.pdf"]
        folder.push(*files)
    return files


def report_section(path: Path, reader: Reader) -> Section:
    """The section of a file that `write_report` has written, with the files beside it; ValueError
    for another file.
    """
    report = Report.from_dict(json.loads(reader.content(path)))
    section = section_of(report, path.stem)
    beside = [path.with_suffix(ending) for ending in (".json", ".csv", ".png", ".pdf")]
    section.files = [file for file in beside if file.exists()]
    reader.add_picture(section, path.with_suffix(".png"), path.stem)
    return section


def section_of(report: Report, name: str) -> Section:
    """A section with the table of a report and its conclusion."""
    words = f"{report.conclusion[0].upper()}{report.conclusion[1:]}."
    if report.false_alarm_rate is not None:
        words += f" The false-alarm rate of all tests together is {report.false_alarm_rate:g}."
    return Section(
        report.judge,
        name,
        report.docs,
        report.title,
        words=words,
        notes=list(report.remarks),
        overview=TextTable("", *report.cells()),
        has_pictures_first=True,
    )
