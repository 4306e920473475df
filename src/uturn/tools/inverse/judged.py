"""A sampler on one kind of originals, and what its tests say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from uturn.measures.estimates import Estimate
from uturn.studies.headline import headline_of
from uturn.tools.inverse.at_level import LevelTests, levels_of
from uturn.tools.inverse.kinds import KINDS, Kind
from uturn.tools.inverse.options import Run
from uturn.tools.inverse.posteriors import PosteriorTests, posterior_tests
from uturn.tools.inverse.readings import TestedReading, label_of
from uturn.tools.inverse.sampler import PosteriorSampler


@dataclass(frozen=True, eq=False)
class Judged:
    """A finished run of a sampler, its tests and its study."""

    run: Run
    readings: xr.Dataset
    """The dataset of `uturn.run`."""
    tests: PosteriorTests
    study: xr.Dataset
    calls: int
    """Largest number of calls of the network for a reconstruction."""

    @cached_property
    def levels(self) -> list[LevelTests]:
        return levels_of(self.tests)

    @property
    def kinds(self) -> str:
        """The kinds of error, with the strengths at which they are seen unless it is one kind at
        all of them.
        """
        strengths: dict[Kind, list[str]] = {}
        for level in self.levels:
            strengths.setdefault(level.kind, []).append(f"{level.noise:.3g}")
        if len(strengths) == 1:
            return ", ".join(strengths)
        return ", ".join(f"{kind} at {', '.join(where)}" for kind, where in strengths.items())

    @property
    def decided(self) -> str:
        """The tests that decided, each once; "" if none rejects."""
        labels = [label_of(level.decided) for level in self.levels if level.decided]
        return ", ".join(dict.fromkeys(labels))

    @property
    def least_p(self) -> float:
        """The smallest adjusted p-value of all tests."""
        return min(tested.least_p for level in self.levels for tested in level.readings)

    def least_p_of(self, variable: str) -> float:
        """The smallest adjusted p-value of a variable, over strengths, means and ranks; NaN if it
        is not tested.
        """
        smallest = np.nan
        for level in self.levels:
            for tested in level.readings:
                if tested.variable == variable:
                    smallest = np.fmin(smallest, tested.least_p)
        return float(smallest)

    @property
    def distance(self) -> tuple[float, TestedReading] | None:
        """The strength with the clearest gap of the distance, and the gap; None if it is not
        tested.
        """
        gaps = []
        for level in self.levels:
            for tested in level.readings:
                if tested.variable == "distance":
                    gaps.append((level.noise, tested))
        if not gaps:
            return None
        return min(gaps, key=lambda gap: (gap[1].p_holm, -abs(gap[1].effect.value)))

    # --- what is kept -----------------------------------------------------------------------------

    @cached_property
    def kept_reading(self) -> str:
        """The reading that says how much of the original is kept, with the headline of the study;
        by default the first one.
        """
        headline = headline_of(self.study)
        if headline is None or not headline.reading:
            return str(self.study.reading.values[0])
        return headline.reading

    @property
    def kept(self) -> list[Estimate]:
        """Values of the reading that is kept, at the noise levels of the study."""
        curve = self.study.curve.sel(reading=self.kept_reading).values
        return [Estimate(*values) for values in curve.tolist()]

    @property
    def half_life(self) -> Estimate:
        """Strength at which half of it is lost."""
        axis = self.study.axis.values[0]
        values = self.study.half_life.sel(reading=self.kept_reading, axis=axis).values
        return Estimate(*values.tolist())


def judged(
    runs: Sequence[Run],
    readings: Mapping[str, xr.Dataset],
    studies: Mapping[str, xr.Dataset],
    calls: Mapping[str, int],
) -> list[Judged]:
    """Test all runs; datasets, studies and calls by the names of the runs."""
    table = []
    for run in runs:
        dataset = readings[run.name]
        tests = posterior_tests(dataset)
        table.append(Judged(run, dataset, tests, studies[run.name], calls[run.name]))
    return table


def calls_of(runs: Sequence[Run]) -> dict[str, int]:
    """Largest number of calls of the network for a reconstruction, by run.

    A reconstruction is drawn at the first and the last level, with a denoiser that only counts, so
    that samplers that do not fit the operator, or whose calls with one seed differ, end before
    anything is measured.
    """
    calls = {}
    for run in runs:
        backward = run.experiment.parts.backward
        # Before any run, since runs of many samplers take long.
        backward.missing(run.experiment)
        calls[run.name] = 0
        if isinstance(backward, PosteriorSampler):
            levels = {run.experiment.noise[0], run.experiment.noise[-1]}
            calls[run.name] = max(backward.calls(run.experiment, level) for level in levels)
    return calls


# --- in words -------------------------------------------------------------------------------------


def caption(runs: Sequence[Judged]) -> str:
    """What was measured and judged."""
    first = runs[0]
    unit = first.run.experiment.parts.corruption.unit
    judges = {judged.run.data: judged.run.judges for judged in runs}
    words = "; ".join(f"{data}: the tests judge {what}" for data, what in judges.items())
    clones = first.tests.attrs["clones"]
    items = first.tests.attrs["items"]
    return f"{clones} draws for each measurement of {items} originals, by {unit}. {words}."


def notes(runs: Sequence[Judged]) -> list[str]:
    """How to read the results: what the kinds that are seen mean, and what the tests cannot say."""
    seen = {level.kind for judged in runs for level in judged.levels}
    lines = [f"{kind} means: {meaning}" for kind, meaning in KINDS.items() if kind in seen]
    level = runs[0].tests.attrs["level"]
    lines.append(
        "a kind of error is named where a test rejects; exact draws are rejected with a"
        f" probability of {level:g} for each family of tests. None seen is no proof: each"
        " test is blind to some errors (in the numbers with intervals)"
    )
    remarks = [judged.tests.attrs["remark"] for judged in runs]
    return [*lines, *dict.fromkeys(filter(None, remarks))]
