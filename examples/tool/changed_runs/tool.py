"""The probe, and the report of a run that it has read."""

import numpy as np

import uturn as ut
from uturn.measures.report import Line, Report, Verdict


class ChangedRuns(ut.Probe):
    """Probe: mean length of the runs of changed leaves, in leaves; 0 where no leaf has changed."""

    kinds = ("strings",)

    def variables(self, source):
        words = "mean length of runs of changed leaves"
        dims = ("noise", "item", "trajectory")
        return {"run_length": ut.Variable(dims, words, start=0, bounds=(0, None))}

    def read(self, u_turns, source):
        leaves = u_turns.reconstructions[0]  # of tree level 0, (items, trajectories, leaves)
        changed = leaves != u_turns.originals.draw.leaves[:, None]
        begins = changed & ~np.pad(changed, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        return {"run_length": changed.sum(-1) / np.maximum(begins.sum(-1), 1)}


def changed_runs(run):
    """The mean length of runs at each noise level of a dataset of `uturn.run`, as a report."""
    lines = []
    for noise in run.noise.values:
        lengths = run.run_length.sel(noise=noise)
        mean = ut.statistics.estimate(lengths.expand_dims("noise"), lambda means: means[0])
        test = f"runs at noise {noise:g}"
        lines.append(Line(test, Verdict.REPORTED, measured=mean, unit="leaves"))
    return Report("changed-runs", "Do leaves change together?", tuple(lines), docs="own-tools")
