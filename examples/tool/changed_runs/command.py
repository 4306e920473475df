"""`uturn changed-runs`. What is slow to import is imported inside its functions."""

from uturn.cli.app import EXPERIMENTS, command
from uturn.cli.options import Out, Running, Spec
from uturn.cli.running import Printed, Procedure, results_into


@command(EXPERIMENTS)
def changed_runs(spec: Spec, out: Out, *, running: Running) -> None:
    """Measure how long the runs of changed leaves are, in an experiment on strings from a file.

    Example:

    ```
    uturn changed-runs examples/epsilon.toml --out results/runs
    ```
    """
    results_into(out, ChangedRunsOf(spec), running)


class ChangedRunsOf(Procedure):
    """The run of a spec with one probe more, and its report."""

    def __init__(self, spec):
        self.spec = spec

    def experiments(self, out):
        from uturn.core.experiment import Experiment

        table = Experiment.from_file(self.spec).to_dict()
        probes = [*table["probes"], {"type": "changed_runs"}]
        return {"run": Experiment.from_dict({**table, "probes": probes})}

    def write(self, finished):
        from changed_runs.tool import changed_runs
        from uturn.pages.reports import write_report
        from uturn.pages.results import write_study

        run = finished.runs["run"]
        write_study(run, finished.out, title="Runs of changed leaves", page=False)
        report = changed_runs(run)
        return Printed([report], write_report(report, finished.out, "changed-runs"))
