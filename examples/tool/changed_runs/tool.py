"""The probe, the command and the section of the tool. What is slow to import is imported where
it is used.
"""

import json

import numpy as np

from uturn import Probe, Variable
from uturn.cli.app import EXPERIMENTS, command
from uturn.cli.options import Out, Running, Spec
from uturn.cli.running import Printed, Procedure, results_into
from uturn.core.files import write_json

FILE = "changed-runs.json"


class ChangedRuns(Probe):
    """Probe: mean length of the runs of changed leaves, in leaves; 0 where no leaf has changed."""

    kinds = ("strings",)

    def variables(self, source):
        dims = ("noise", "item", "trajectory")
        return {
            "run_length": Variable(
                dims, "mean length of runs of changed leaves", start=0, bounds=(0, None)
            )
        }

    def read(self, u_turns, source):
        leaves = u_turns.reconstructions[0]  # of tree level 0, (items, trajectories, leaves)
        changed = leaves != u_turns.originals.draw.leaves[:, None]
        begins = changed & ~np.pad(changed, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        return {"run_length": changed.sum(-1) / np.maximum(begins.sum(-1), 1)}


@command(EXPERIMENTS)
def changed_runs(spec: Spec, out: Out, *, running: Running) -> None:
    """Measure how long the runs of changed leaves are, in an experiment on strings from a file.

    Example:

    ```
    uturn changed-runs examples/epsilon.toml --out results/runs
    ```
    """
    results_into(out, MeanLengths(spec), running)


class MeanLengths(Procedure):
    """The run of a spec with the probe, and the mean length of runs at each noise level."""

    def __init__(self, spec):
        self.spec = spec

    def experiments(self, out):
        """The experiments by the names of their stores in the folder of results."""
        from uturn.core.experiment import Experiment

        table = Experiment.from_file(self.spec).to_dict()
        probes = [*table["probes"], {"type": "changed_runs"}]
        return {"run": Experiment.from_dict({**table, "probes": probes})}

    def write(self, finished):
        """Write the results of the runs that have finished, and give what is printed."""
        from uturn.pages.results import write_study
        from uturn.store.outputs import output_folder

        run = finished.runs["run"]
        lengths = run.run_length
        means = lengths.mean([dim for dim in lengths.dims if dim != "noise"])
        numbers = {"noise": means.noise.values.tolist(), "length": means.values.tolist()}
        with output_folder("out", finished.out) as folder:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(folder.path / FILE, numbers)
            folder.push(FILE)
        write_study(run, finished.out, title="Runs of changed leaves", page=False)
        return Printed(files=[FILE])


def section(path, read):
    """The section of the page, from the file that the command writes."""
    from uturn.pages.sections import Section
    from uturn.pages.views import Card

    numbers = json.loads(read.content(path))
    longest, noise = max(zip(numbers["length"], numbers["noise"], strict=True))
    claim = f"The longest runs of changed leaves, in the mean, are at noise {noise:g}."
    return Section(
        "changed-runs",
        "runs",
        "own-parts",
        "Runs of changed leaves",
        cards=[Card("longest runs", "leaves", claim, [longest, None, None])],
        files=[path],
    )
