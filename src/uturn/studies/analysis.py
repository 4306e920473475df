"""The study of a run, computed from the stored readings alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.messages import shown
from uturn.studies.changes import Changes, changes_of, dataset_of_changes
from uturn.studies.checked_run import Run
from uturn.studies.gaps import Families
from uturn.studies.reading_checks import items_without_readings
from uturn.studies.reading_curves import (
    Reading,
    dataset_of_readings,
    readings_of,
    with_remarks_on_originals,
)
from uturn.studies.remarks import Kind, Remark, first_names, joined
from uturn.studies.runs import describe, named_in
from uturn.studies.series import Series, dataset_of_series, series_of
from uturn.studies.tables import Study

CENTRES = ("mean", "median")
_ATTRIBUTES = ("spec", "spec_hash", "seed", "models", "versions", "warnings", "accepted_changes")
"""Attributes of a run that its study keeps."""


def study(ds: xr.Dataset, centre: str = "mean") -> Study:
    """Curves of all readings of a run against noise, the noise levels at which they change, and the
    correlation of changes.

    A reading is a variable of the run, or one of its levels. Let c(x) be its mean over items at
    noise x, each with its mean over trajectories and clones, and c(0) its start
    (`uturn.protocols.Variable`). Between measured levels, c is interpolated linearly.

    - `curve` (reading, noise, estimate): c.
    - `place` (reading, share, axis, estimate): smallest noise at which c has gone a share .25, .5
      or .75 of the way from start to chance, on all axes of the run. If chance is not known, the
      value at the largest noise is used as the chance level; there is then no place unless the
      curve changes: the 95 % interval of its last minus its first level, paired over items, does
      not hold 0. A guessed start is used only if the curve changes. `half_life` is the place at share
      .5; t* is the half-life of a class. `width`: distance between the places at .25 and .75.
      `start`, `chance` (reading).
    - `inversion` (series, axis, estimate) of ordered levels, such as layers: noise beyond which the
      last stays below the first.
    - `chi`, `xi` (changes, noise, estimate), `correlation` (changes, noise, distance, estimate):
      susceptibility, correlation length, C(r)/C(0); `peak`, `peak_at`: largest chi of the measured
      levels; noise of the peak.
    - `gap` (reading, noise, estimate), `gap_p` by Holm, `gap_visible`, the smallest detectable gap
      (runs with clones): 0 if reconstructions are draws from the posterior (`uturn.calibration`,
      level .001 in each family of tests).

    `estimate`: value, low and high end of its 95 % interval over items, or over grammars if there
    are several; NaN if the number does not exist (`remark` gives the reason). Coordinates of a
    reading: `variable`, `level`, `level_dim`, `probe`, `model`, `group`, `family`, `unit`, `words`,
    `guess`, its start if that is guessed, and `originals`, the number of items that have it.

    `ds`: dataset of `uturn.run`. With `centre` = "median", c is the median over items, for heavy
    tails. Readings in [0, 1], correlations and gaps stay means.

    Examples
    --------
    >>> import uturn as ut
    >>> run = ut.readings({"kept": [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]}, noise=[0.2, 0.4, 0.6, 0.8], start=1, chance=0)
    >>> study(run).half_life.sel(reading="kept", axis="noise", estimate="value").item()
    0.5
    """
    expect(centre in CENTRES, "centre", centre, f"one of {', '.join(CENTRES)}")
    return Analysis.of(Run.finished(ds), centre).study()


def study_of(ds: xr.Dataset, centre: str = "mean") -> Study:
    """`study` for a run that may be unfinished: means leave out missing readings, and a remark
    reports them.
    """
    return Analysis.of(Run.of(ds), centre).study()


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that is computed from a run; the dataset of a study is a view of it."""

    run: Run
    readings: list[Reading]
    series: list[Series]
    changes: list[Changes]
    families: Families
    """The readings whose calibration is tested."""
    not_studied: dict[str, str]
    """Why variables are left out, by variable."""

    @classmethod
    def of(cls, run: Run, centre: str) -> Analysis:
        readings: list[Reading] = []
        for variable in run.readings:
            readings += readings_of(run, variable, centre)
        changes, without_changes = changes_of(run)
        return cls(
            run=run,
            readings=with_remarks_on_originals(readings, run),
            series=series_of(run, centre),
            changes=changes,
            families=Families.of(run),
            not_studied=run.without_curve | without_changes,
        )

    def study(self) -> Study:
        """The dataset of the study."""
        data = self.run.data
        axes = self.run.axes
        parts = [
            axes.coordinates(data),
            dataset_of_readings(self.readings, axes),
            dataset_of_series(self.series),
            dataset_of_changes(self.changes, axes),
            self.families.dataset(self.run, self.readings),
        ]
        whole = xr.merge(parts)
        attributes = {key: data.attrs[key] for key in _ATTRIBUTES if key in data.attrs}
        attributes |= {
            "description": describe(data),
            "items": data.sizes["item"],
            "trajectories": data.sizes.get("trajectory", 1),
            "clones": data.sizes.get("clone", 1),
            "remark": joined(self.remarks()),
        }
        return Study(whole.data_vars, whole.coords, attributes)

    def remarks(self) -> Iterator[Remark]:
        """Remarks on the run; readings, series and changes have their own."""
        medians = [reading.key.variable for reading in self.readings if reading.centre == "median"]
        if medians:
            names = ", ".join(dict.fromkeys(medians))
            yield Remark(Kind.STUDY, f"the curves of {names} are medians over originals")
        for name, reason in self.not_studied.items():
            yield Remark(Kind.STUDY, f"{name} is not studied: {reason}")
        yield from self._on_references()
        yield from self.families.remarks()
        if not self.readings and not self.changes:
            yield Remark(Kind.STUDY, "nothing in the run has a curve")
        yield from self._on_missing_readings()
        yield from self._on_noise()

    def _on_references(self) -> Iterator[Remark]:
        """Starts and chances that are not in the run."""
        instructions = {reading.key.variable: reading.instructions for reading in self.readings}
        for name, variable in instructions.items():
            for key, rule in (("start", variable.start), ("chance", variable.chance)):
                if not set(named_in(rule)) <= set(self.run.data.variables):
                    yield Remark(Kind.START, f"{name}: its {key} {shown(rule)} is not in the run")

    def _on_missing_readings(self) -> Iterator[Remark]:
        missing = self.run.missing_tasks
        if missing:
            yield Remark(Kind.MISSING, f"the run is not finished: {missing} tasks are missing")
            return
        variables = dict.fromkeys(reading.key.variable for reading in self.readings)
        items = items_without_readings(self.run, list(variables))
        if items:
            yield Remark(Kind.MISSING, f"no readings of {first_names(items)}")

    def _on_noise(self) -> Iterator[Remark]:
        """What the noise levels and the number of originals do not allow."""
        data = self.run.data
        axes = self.run.axes
        if len(axes.finite_noise) < 3:  # noise 0 is counted
            text = "fewer than two finite noise levels above 0: no places on the curves"
            yield Remark(Kind.PLACE, text)
        if data.sizes["item"] == 1:
            yield Remark(Kind.INTERVAL, "a single original: no intervals")
        largest = float(data.noise[-1])
        has_largest = "max" in data.noise.attrs or "t_over_T" in data.coords
        reaches_end = has_largest and axes.most == largest
        without_chance = any(
            np.isnan(reading.chance) and np.isfinite(reading.start) for reading in self.readings
        )
        if without_chance and not reaches_end:
            value = f"the value at noise {largest:.3g}"
            text = f"where chance is not known, {value} is used as the chance level"
            yield Remark(Kind.PLACE, text)
