"""The judge of posterior samplers: runs of all samplers on all kinds of originals, and the report
on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr

import uturn
from uturn.cli.running import Experiments, Finished, Printed, Procedure, originals_in
from uturn.engine.run import Workers
from uturn.measures.report import Report
from uturn.pages.results import write_study
from uturn.store.outputs import output_folder
from uturn.studies.analysis import study as study_of_run
from uturn.studies.tables import for_terminal
from uturn.tools.inverse.judged import calls_of, judged, notes
from uturn.tools.inverse.options import InverseOptions
from uturn.tools.inverse.report import samplers_report
from uturn.tools.inverse.results import RESULTS, check_folder, write_results
from uturn.tools.inverse.tables import samplers_table


def inverse(
    samplers: str | Sequence[str] | None = None,
    store: str | Path | None = None,
    *,
    workers: Workers | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Test whether posterior samplers of an inverse problem draw from the posterior, without ground
    truth about it.

    Given a measurement, the original and exact draws from the posterior are exchangeable, so any
    reading that tells them apart shows an error. docs/inverse-problems.md describes the tests.

    Parameters
    ----------
    samplers
        One sampler or several, as in `uturn inverse --sampler`: "deepinv:NAME", "module:function"
        or "exact", with options behind the name. By default two samplers of deepinv.
    store
        Folder of the stores of all runs, which a second call resumes. In memory if not given.
    workers
        Processes of each run, as in `uturn.run`.
    progress
        Whether progress bars are shown.
    **options
        Options of `uturn inverse` by their names, such as operator, levels, sigma, data, model,
        items, clones, seed.

    Returns
    -------
    Report
        A line for each sampler on each kind of originals: its kinds of error with the strengths of
        the operator at which they are seen, and whether a test rejects. `uturn.posterior_tests` of
        a store in the folder has all tests of one sampler.

    Raises
    ------
    ValueError
        For wrong options, and for samplers that do not fit the operator or that give two results
        for one seed.
    """
    if samplers is not None:
        options["samplers"] = [samplers] if isinstance(samplers, str) else list(samplers)
    chosen = InverseOptions.from_dict(options)
    runs = chosen.runs(None if store is None else originals_in(str(store)))
    calls = calls_of(runs)
    readings: dict[str, xr.Dataset] = {}
    studies: dict[str, xr.Dataset] = {}
    for run in runs:
        place = None if store is None else Path(store, run.store)
        dataset = uturn.run(run.experiment, place, workers=workers, progress=progress)
        readings[run.name] = dataset
        studies[run.name] = study_of_run(dataset)
    return samplers_report(judged(runs, readings, studies, calls))


class SamplerJudge(Procedure):
    """A run of each sampler on each kind of originals, and their tests."""

    def __init__(self, options: InverseOptions) -> None:
        self.options = options
        self.exit_code = 0
        """Of the command, after the results are written: 1 if a sampler fails a test."""

    def experiments(self, out: str) -> Experiments:
        check_folder(out)
        self.runs = self.options.runs(originals_in(out))
        self.calls = calls_of(self.runs)
        return {run.store: run.experiment for run in self.runs}

    def write(self, finished: Finished) -> Printed:
        readings = {run.name: finished.runs[run.store] for run in self.runs}
        studies = self._write_studies(readings, finished.out)
        runs = judged(self.runs, readings, studies, self.calls)
        report = samplers_report(runs)
        with output_folder("out", finished.out) as folder:
            write_results(runs, report, folder)
        self.exit_code = report.exit_code
        table = for_terminal(samplers_table(runs))
        return Printed([table, *notes(runs), report.conclusion], RESULTS)

    def _write_studies(
        self, readings: Mapping[str, xr.Dataset], out: str
    ) -> Mapping[str, xr.Dataset]:
        title = "Posterior samplers"
        if len(self.runs) == 1:
            title = f"Posterior sampler {self.runs[0].name}"
        groups = ("class", "distance")
        studies = write_study(readings, out, title=title, groups=groups, page=False)
        assert isinstance(studies, dict)
        return studies
