"""The section of a page for the report of a judge, from its JSON file."""

from __future__ import annotations

import json
from pathlib import Path

from uturn.measures.report import Report
from uturn.pages.sections import Reader, Section
from uturn.studies.tables import TextTable


def report_section(path: Path, reader: Reader) -> Section:
    """The section of a file that `Report.to_json` has written, with the picture beside it, if
    there is one; ValueError for another file.
    """
    report = Report.from_dict(json.loads(reader.content(path)))
    section = section_of(report, path.stem)
    section.files = [path]
    for picture in (path.with_suffix(".png"), path.with_suffix(".pdf")):
        if picture.exists():
            section.files.append(picture)
    if path.with_suffix(".png").exists():
        reader.add_picture(section, path.with_suffix(".png"), path.stem)
    return section


def section_of(report: Report, name: str) -> Section:
    """A section with the table of a report and its conclusion."""
    rate = ""
    if report.false_alarm_rate is not None:
        rate = f" Something right fails with a probability of {report.false_alarm_rate:g}."
    return Section(
        report.judge,
        name,
        report.judge,
        report.title,
        words=f"{report.conclusion[0].upper()}{report.conclusion[1:]}.{rate}",
        notes=[f"{remark}." for remark in report.remarks],
        overview=TextTable("", *report.cells()),
        has_pictures_first=True,
    )
