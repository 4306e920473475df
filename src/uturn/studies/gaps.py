"""Calibration of a run with clones: gaps are 0 if reconstructions are draws from the posterior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.measures.calibration import calibration, items_tested, twin_of
from uturn.measures.estimates import with_ends
from uturn.studies.checked_run import Run
from uturn.studies.reading_curves import Reading
from uturn.studies.remarks import Kind, Remark


@dataclass(frozen=True, eq=False)
class Family:
    """Symmetric and ranked variables whose readings are tested together by Holm."""

    variables: list[str]
    is_tested: np.ndarray
    """bool (item,): the items that have all readings of the variables and of their twins."""


@dataclass(frozen=True, eq=False)
class Families:
    """The families of a run that are tested, and the variables that are not."""

    tested: list[Family]
    incomplete: list[str]
    """Variables that lack readings for a test."""

    @classmethod
    def of(cls, run: Run) -> Families:
        """The families of which at least two items have all readings; none without clones."""
        if run.data.sizes.get("clone", 1) < 2:
            return cls([], [])
        families: dict[str, Family] = {}
        incomplete = []
        for name, instructions in run.instructions.items():
            is_tested = instructions.symmetric or instructions.ranked
            if not (is_tested and twin_of(run.data, name)):
                continue
            key = instructions.family or instructions.probe
            variables = [name]
            if key in families:
                variables = [*families[key].variables, name]
            is_complete = items_tested(run.data, variables)
            if not run.missing_tasks and is_complete.sum() >= 2:
                families[key] = Family(variables, is_complete)
            elif not is_complete.all():
                incomplete.append(name)
        return cls(list(families.values()), incomplete)

    def remarks(self) -> Iterator[Remark]:
        """Remarks on readings that are missing."""
        for name in self.incomplete:
            text = f"the calibration of {name} is not tested: some of its readings are missing"
            yield Remark(Kind.MISSING, text)
        for family in self.tested:
            number = int((~family.is_tested).sum())
            if number:
                text = (
                    f"the calibration of {', '.join(family.variables)} leaves out {number} of"
                    f" {len(family.is_tested)} originals: readings are missing"
                )
                yield Remark(Kind.MISSING, text)

    def dataset(self, run: Run, readings: Sequence[Reading]) -> xr.Dataset:
        """The gaps of a study, tested by families; empty if none is tested."""
        if not self.tested:
            return xr.Dataset()
        tests = [calibration(run.data, family.variables) for family in self.tested]
        bare = [test.drop_vars(set(test.coords).difference(test.dims)) for test in tests]
        gaps = xr.concat(bare, "reading")
        gaps = gaps.reindex(
            reading=[reading.label for reading in readings], noise=run.axes.noise
        ).transpose("reading", "noise")
        return xr.Dataset(
            {
                "gap": (("reading", "noise", "estimate"), with_ends(gaps, "gap")),
                "gap_p": (("reading", "noise"), gaps.p_holm.values),
                "gap_visible": (("reading", "noise"), gaps.visible.values),
                "gap_level": tests[0].attrs["level"],
            },
            {"reading": gaps.reading.values},
        )
