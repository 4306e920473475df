"""The probe, the command and the section of the tool. What is slow to import is imported where
it is used.
"""

import json

import numpy as np

from uturn import Probe, Variable
from uturn.cli.app import EXPERIMENTS, command
from uturn.cli.options import Out, Running, Spec
from uturn.cli.running import end, runs_into
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
    from uturn.core.experiment import Experiment
    from uturn.pages.results import write_study
    from uturn.store.outputs import output_folder

    table = Experiment.from_file(spec).to_dict()
    experiment = Experiment.from_dict(
        {**table, "probes": [*table["probes"], {"type": "changed_runs"}]}
    )
    datasets = runs_into(out, {"run": experiment}, running)
    if datasets is None:
        return
    lengths = datasets["run"].run_length
    means = lengths.mean([dim for dim in lengths.dims if dim != "noise"])
    with output_folder("out", out) as folder:
        write_json(
            folder.path / FILE,
            {"noise": means.noise.values.tolist(), "length": means.values.tolist()},
        )
        folder.push(FILE)
    write_study(datasets["run"], out, title="Runs of changed leaves")
    end(out, [], files=[FILE])


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
