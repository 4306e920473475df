"""The study of a masked model with its order consistency, and a run of each decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

import xarray as xr

from uturn.cli.printing import console
from uturn.cli.running import Experiments, Finished, Printed, Procedure
from uturn.core.files import write_json
from uturn.measures.report import Report
from uturn.pages.results import write_figures, write_study
from uturn.presets.texts import TextOptions
from uturn.store.outputs import output_folder
from uturn.studies.analysis import study as study_of_run
from uturn.studies.tables import for_terminal, summary
from uturn.tools.audit.figure import draw_audit
from uturn.tools.audit.numbers import AuditNumbers, audit_numbers
from uturn.tools.audit.options import AuditOptions
from uturn.tools.audit.report import audit_report
from uturn.tools.audit.section import decoder_table
from uturn.tools.audit.words import meaning

_FILES = ("audit.json", "audit.png", "audit.pdf", "audit-report.json", "audit-report.csv")


class Audit(Procedure):
    """A run with the readings of an audit, OUT/run, and a run of each decoder, OUT/audit/NAME."""

    def __init__(self, options: AuditOptions) -> None:
        self.options = options
        self.exit_code = 0
        """Of the command, after the results are written: 1 if the audit fails."""

    @cached_property
    def decoders(self) -> dict[str, TextOptions]:
        """The options of the run of each decoder, by its description."""
        return self.options.audited()

    def experiments(self, out: str) -> Experiments:
        made = {"run": self.options.experiment()}
        for name, options in self.decoders.items():
            made[_store_of(name)] = options.experiment()
        return made

    def numbers(self, runs: Mapping[str, xr.Dataset]) -> AuditNumbers:
        """What finished runs say, by the names of their stores."""
        run = runs["run"]
        of_decoders = {name: runs[_store_of(name)] for name in self.decoders}
        return audit_numbers(study_of_run(run), run, of_decoders, self.decoders)

    def report(self, numbers: AuditNumbers, runs: Mapping[str, xr.Dataset]) -> Report:
        """The report, judged as the options say."""
        return audit_report(
            numbers,
            runs["run"],
            tolerance=self.options.tolerance,
            false_alarm_rate=self.options.false_alarm_rate,
        )

    def write(self, finished: Finished) -> Printed:
        study = write_study(
            finished.runs["run"],
            finished.out,
            source=finished.experiments["run"].parts.source,
            title="U-turns of texts",
            groups=("tokens",),
            page=False,
        )
        numbers = self.numbers(finished.runs)
        report = self.report(numbers, finished.runs)
        with output_folder("out", finished.out) as folder:
            write_json(folder.path / "audit.json", numbers.model_dump(mode="json"))
            report.to_json(folder.path / "audit-report.json")
            report.to_csv(folder.path / "audit-report.csv")
            write_figures(folder.path, {"audit": lambda: draw_audit(numbers)})
            folder.push(*_FILES)
        parts = [*summary(study, width=console().width), for_terminal(decoder_table(numbers))]
        parts += [meaning(numbers), study.attrs["description"]]
        if self.options.tolerance is not None:
            parts.append(report.conclusion)
        self.exit_code = report.exit_code
        return Printed(parts, _FILES)


def _store_of(decoder: str) -> str:
    """Name of the store of the run of a decoder, in a folder of results."""
    return f"audit/{re.sub('[^a-z0-9.]+', '-', decoder)}"
