"""The tests of a posterior sampler at one noise level, in words and as lines of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.measures.estimates import Estimate, with_interval
from uturn.measures.report import Line, Verdict
from uturn.studies.tables import TextTable
from uturn.tools.inverse.kinds import KINDS, Kind
from uturn.tools.inverse.readings import (
    POSTERIOR,
    RANKS_OF,
    READINGS,
    UNTESTED,
    TestedReading,
    UntestedReading,
)

_HEADS = ("reading", "effect [95 % interval]", "p by Holm", "p of ranks", "cannot see")


@dataclass(frozen=True)
class LevelTests:
    """The tests of a posterior sampler at one noise level."""

    noise: float
    kind: Kind
    decided: str
    """The test that rejects most clearly, "NAME" or "ranks of NAME"; "" if none does."""
    residual: float
    """Root mean square residual of the clones from the measurement, in units of the residual of the
    originals; NaN where it is not known.
    """
    readings: tuple[TestedReading, ...]
    untested: tuple[UntestedReading, ...]

    @property
    def meaning(self) -> str:
        """What the kind of error means, and how far clones that do not fit the measurement are from
        it; "" if no rule names the error.
        """
        if self.kind not in KINDS:
            return ""
        meaning = KINDS[self.kind]
        if self.kind is Kind.DEAF and np.isfinite(self.residual):
            return f"{meaning}, with residuals about {self.residual:.2g} times as large"
        return meaning

    @property
    def decision(self) -> str:
        """The test that decided, with its p-value by Holm; "" if none rejects."""
        if not self.decided:
            return ""
        variable = self.decided.removeprefix(RANKS_OF)
        tested = next(tested for tested in self.readings if tested.variable == variable)
        p = tested.p_holm if variable == self.decided else tested.rank_p_holm
        return f"decided by {self.decided}, p = {p:.2g}"

    @property
    def words(self) -> str:
        """The kind of error, what it means, and the test that decided."""
        words = str(self.kind)
        if self.meaning:
            words += f" ({self.meaning})"
        if self.decision:
            words += f"; {self.decision}"
        return words

    # --- table ------------------------------------------------------------------------------------

    def table(self, name: str = "") -> TextTable:
        """A row for each reading; `name` of the sampler, for the title."""
        title = f"noise {self.noise:.3g}: {self.words}"
        rows = [_row(tested) for tested in self.readings]
        for untested in self.untested:
            value = f"{with_interval(untested.value)}, expected {untested.expected:.3g}"
            rows.append((untested.variable, value, "", "", untested.reading.blind))
        return TextTable(f"{name}, {title}" if name else title, _HEADS, rows)

    # --- lines of a report ------------------------------------------------------------------------

    def lines(self, level: float) -> Iterator[Line]:
        """The kind of error, and a line for each test and each reading without one.

        `level`: the false-alarm rate of each family.
        """
        yield Line(self._label("kind of error"), Verdict.REPORTED, self.words)
        for tested in self.readings:
            yield self._line_of_means(tested, level)
            if np.isfinite(tested.rank_p_holm):
                yield self._line_of_ranks(tested, level)
        for untested in self.untested:
            yield Line(
                self._label(untested.variable),
                Verdict.REPORTED,
                sees=untested.reading.sees,
                misses=untested.reading.blind,
                measured=untested.value,
                expected=untested.expected,
            )

    def _line_of_means(self, tested: TestedReading, level: float) -> Line:
        verdict = _verdict(tested.p_holm, level)
        remark = f"detects an effect from about {tested.visible:.2g}"
        if not np.isfinite(tested.visible):
            remark = "too few originals to detect an effect"
            if verdict is Verdict.PASSES:
                verdict = Verdict.UNTESTED
        return Line(
            self._label(tested.variable),
            verdict,
            sees=tested.reading.sees,
            misses=tested.reading.blind,
            measured=tested.effect,
            expected=0.0,
            unit=tested.unit,
            p=tested.p_holm,
            remark=_beside(tested, remark),
        )

    def _line_of_ranks(self, tested: TestedReading, level: float) -> Line:
        return Line(
            self._label(f"{RANKS_OF}{tested.variable}"),
            _verdict(tested.rank_p_holm, level),
            result="uniform for draws from the posterior",
            sees="errors that keep the mean",
            misses=tested.reading.blind,
            p=tested.rank_p_holm,
            remark=_beside(tested, ""),
        )

    def _label(self, test: str) -> str:
        return f"{test}, noise = {self.noise:.3g}"


def _verdict(p: float, level: float) -> Verdict:
    return Verdict.FAILS if p <= level else Verdict.PASSES


def _beside(tested: TestedReading, remark: str) -> str:
    if tested.reading.family == POSTERIOR:
        return remark
    return "; ".join(filter(None, ["beside the family", remark]))


def _row(tested: TestedReading) -> tuple[str, ...]:
    name = tested.variable
    if tested.reading.family != POSTERIOR:
        name += " (beside)"
    return (
        name,
        f"{with_interval(tested.effect)} {tested.unit}".rstrip(),
        _p_text(tested.p_holm),
        _p_text(tested.rank_p_holm),
        tested.reading.blind,
    )


def _p_text(p: float) -> str:
    return f"{p:.2g}" if np.isfinite(p) else ""


# --- from the dataset of `uturn.posterior_tests` --------------------------------------------------


def levels_of(tests: xr.Dataset) -> list[LevelTests]:
    """The tests of each noise level."""
    return [_at_level(tests.isel(noise=k)) for k in range(tests.sizes["noise"])]


def _at_level(tests: xr.Dataset) -> LevelTests:
    untested = []
    for reading in READINGS.values():
        if reading.family == UNTESTED and reading.name in tests:
            value = Estimate(*tests[reading.name].values.tolist())
            expected = float(tests.coverage_expected) if reading.name == "coverage" else 1.0
            untested.append(UntestedReading(reading.name, value, expected))
    return LevelTests(
        noise=float(tests.noise),
        kind=Kind(str(tests.kind.item())),
        decided=str(tests.decided.item()),
        residual=float(tests.residual),
        readings=readings_at(tests),
        untested=tuple(untested),
    )


def readings_at(tests: xr.Dataset) -> tuple[TestedReading, ...]:
    """The tested readings of one noise level."""
    readings = []
    for k, variable in enumerate(tests.reading.values.tolist()):
        tested = TestedReading(
            variable=variable,
            effect=Estimate(*tests.effect.values[k].tolist()),
            unit=str(tests.effect_unit.values[k]),
            visible=float(tests.visible.values[k]),
            p=float(tests.p.values[k]),
            p_holm=float(tests.p_holm.values[k]),
            rank_p=float(tests.rank_p.values[k]),
            rank_p_holm=float(tests.rank_p_holm.values[k]),
            variance=float(tests.variance.values[k]),
        )
        readings.append(tested)
    return tuple(readings)
