"""The search of a place on a falling curve: a fit proposes two noise levels, their readings decide.

The curve is the share of the way from the start of a reading to its chance that is left: 1 without
noise, 0 where nothing of the original is known. Wanted are two noise levels, a width apart, between
which it falls below a height. The search repeats four steps:

1. A logistic is fitted to the readings from the nearest level that is clearly above the height to
   the nearest level that is clearly below it.
2. Of all pairs of levels a width apart with the fitted place between them, the search takes the
   pair that needs the fewest further calls by the fit. Levels that have been measured serve again.
3. Both ends get the originals that the fit predicts, but at once not more than half of those that
   the fit rests on.
4. When they have them, both are tested: each mean must be on its side of the height by a number of
   its standard errors that rises with the number of tests (`threshold`). An end that fails gets
   more originals.

Two ends that are on their sides hold the place of every falling curve. A wrong fit costs originals,
and the fit never decides. An end on its wrong side passes the k-th test with probability .025 / k.
The ends may move between the tests, so that either of them can be the wrong one: a union bound over
both sides and over the tests, with the originals of a test taken as fixed, is .05 for one test and
.046 a side for three. It is no theorem for the adaptive search; `benchmarks/locate.py` simulates
how often the interval misses the place.

Levels are counted in steps, so that they are compared as integers. The levels to begin with, at
most four, are chosen by `uturn.studies.search_runs.checked_levels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit, stdtrit

from uturn.measures.estimates import Estimate

CHUNK = 8
"""Originals of a task."""


@dataclass(frozen=True)
class Rule:
    """Settings of the search. `false_alarms` is the trade of truth against calls.

    The others move the calls by less than a tenth.
    """

    first_originals: int = 16
    """Originals at a level that is measured for the first time."""

    last_originals: int = 48
    """Originals at the largest noise before the search may answer that there is no place."""

    clear: float = 2.0
    """Standard errors from the height at which a level bounds the fit."""

    unsettled: float = 3.0
    """Standard errors from the height of the two levels that are reported without a width."""

    false_alarms: float = 0.025
    """Probability that an end on its wrong side passes the first test."""

    margin: float = 0.3
    """Standard errors beyond the threshold for which originals are planned."""

    growth: float = 0.5
    """Share of the readings of the fit that a level gets at once, at most."""

    again: float = 1.5
    """Originals of an end that has failed, over those it had."""

    most_tests: int = 40
    """Tests until the search gives up."""

    steepest: float = 8.0
    """Largest fall of the fitted logit between the two levels that bound the fit."""


RULE = Rule()


@dataclass(frozen=True)
class Readings:
    """Readings of the first originals at one noise level."""

    values: np.ndarray
    """One number per original, NaN where it is missing."""

    groups: np.ndarray
    """Number of the independent group of each original."""

    start: float
    """The reading without noise."""

    chance: float
    """The reading without knowledge. NaN if it is unknown: the largest noise then stands for it."""

    @property
    def measured(self) -> np.ndarray:
        """Whether each original has a value."""
        return np.asarray(np.isfinite(self.values))

    @property
    def independent(self) -> int:
        """Number of independent groups with a value."""
        return len(np.unique(self.groups[self.measured]))

    def mean(self) -> Mean:
        """The mean over originals, and its variance over independent groups."""
        values = self.values[self.measured]
        sums = np.bincount(self.groups[self.measured], values - values.mean())
        groups = max(self.independent, 2)
        variance = sums @ sums * groups / (groups - 1) / len(values) ** 2
        return Mean(float(values.mean()), float(variance))


@dataclass(frozen=True)
class Mean:
    """A mean and the variance of this mean."""

    value: float
    variance: float


@dataclass(frozen=True)
class Height:
    """The share of the way that is left at a level."""

    left: float
    error: float
    """Standard error of `left`."""

    groups: int
    """Independent groups behind it."""

    spread: float
    """Standard deviation of one original."""

    def interval(self) -> Estimate:
        """The share with its 95 % interval, inside [0, 1]."""
        half = self.error * float(stdtrit(max(self.groups - 1, 1), 0.975))
        low, high = np.clip([self.left - half, self.left + half], 0, 1).tolist()
        return Estimate(self.left, low, high)


@dataclass(frozen=True)
class Fit:
    """The curve as a logistic 1 / (1 + exp((noise - place) / scale)) through the height."""

    place: float
    """Noise at which the curve has the height."""

    scale: float
    """Width w of the logistic, in the unit of the noise."""

    spread: float
    """Standard deviation of one original."""

    originals: int
    """Readings that the fit rests on."""


@dataclass(frozen=True)
class Reached:
    """Both ends are on their sides of the height, and not farther apart than the width."""

    remark = ""


@dataclass(frozen=True)
class StepTooLarge:
    """Both ends are on their sides, but neighbouring levels are farther apart than the width."""

    step: float

    @property
    def remark(self) -> str:
        return f"the levels are steps of {self.step:.3g}: take more steps for a smaller width"


@dataclass(frozen=True)
class NotReached:
    """The tests or the originals came to an end before both ends had passed."""

    width: float
    tests: int
    originals: int
    needed: float
    """Originals at an end with which the fit predicts that it passes."""

    above: float
    below: float

    @property
    def remark(self) -> str:
        tests = "one test" if self.tests == 1 else f"{self.tests} tests"
        words = (
            f"the width {self.width:g} is not reached after {tests} with up to {self.originals:,} "
            "originals; the reading is clearly above the height of the place at noise "
            f"{self.above:.4g} and clearly below it at {self.below:.4g}"
        )
        if self.needed > self.originals:
            words += f". By the fit the width needs about {rounded(self.needed):,} originals"
        return words


@dataclass(frozen=True)
class NotFallen:
    """The reading is not clearly below the height, up to the largest noise."""

    noise: float
    gone: Estimate
    """Share of the way that is gone there, with its 95 % interval."""

    originals: int
    share: float

    @property
    def remark(self) -> str:
        gone = self.gone
        words = (
            f"no place: at the largest noise, {self.noise:g}, the reading has gone "
            f"{gone.value:.2f} [{gone.low:.2f}, {gone.high:.2f}] of the way from its start to "
            f"chance ({self.originals:,} originals)"
        )
        if gone.high >= self.share:
            words += f"; whether it reaches {self.share:g} of the way is not settled"
        return words


@dataclass(frozen=True)
class NotChanged:
    """Every reading equals its start, also at the largest noise."""

    noise: float
    originals: int

    @property
    def remark(self) -> str:
        return (
            f"no place: at the largest noise, {self.noise:g}, the reading has not changed"
            f" ({self.originals:,} originals)"
        )


Outcome = Reached | StepTooLarge | NotReached | NotFallen | NotChanged


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    place: Estimate
    """Noise of the place between two measured levels, NaN if there is no place."""

    originals: int
    """Originals at the level that has most."""

    calls: float
    """Sum of the noise of all U-turns over the largest noise."""

    outcome: Outcome

    @property
    def reached(self) -> bool:
        return isinstance(self.outcome, Reached)


@dataclass(frozen=True)
class Planned:
    """Two ends that are measured next."""

    place: float
    """The place by the fit."""

    ends: tuple[float, float]
    originals: tuple[int, int]
    """Originals that the ends have."""

    needed: tuple[int, int]
    """Originals that the ends need by the fit."""

    calls_left: float
    """Calls until they have them, in U-turns from the largest noise."""

    @property
    def words(self) -> str:
        low, high = self.ends
        return (
            f"noise about {self.place:.4g}; of the {self.needed[0]:,} and {self.needed[1]:,} "
            f"originals needed at noise {low:.4g} and {high:.4g}, {self.originals[0]:,} and "
            f"{self.originals[1]:,} are measured"
        )


@dataclass(frozen=True)
class Tested:
    """A test of two ends."""

    ends: tuple[float, float]
    originals: tuple[int, int]
    sigmas: tuple[float, float]
    """Standard errors from the height."""

    wanted: tuple[float, float]
    """Standard errors that are wanted at least, with the sign of the side."""

    @property
    def words(self) -> str:
        low, high = self.ends
        return (
            f"the reading lies {abs(self.sigmas[0]):.1f} standard errors {_side(self.sigmas[0])} the "
            f"sought value at noise {low:.4g} ({self.originals[0]:,} originals), and "
            f"{abs(self.sigmas[1]):.1f} {_side(self.sigmas[1])} it at noise {high:.4g} "
            f"({self.originals[1]:,} originals); {abs(self.wanted[0]):.1f} before and "
            f"{abs(self.wanted[1]):.1f} past it are needed"
        )


def _side(errors: float) -> str:
    """The side of the sought value, on the way of a reading from its start to chance."""
    return "before" if errors >= 0 else "past"


def threshold(tests: int, groups: int, rule: Rule = RULE) -> float:
    """Standard errors by which an end must be on its side, after so many tests.

    By Student's t with `groups` - 1 degrees of freedom: an end on its wrong side passes the k-th
    test with probability .025 / k.
    """
    return float(stdtrit(max(groups - 1, 1), 1 - rule.false_alarms / (tests + 1)))


def rounded(originals: float) -> int:
    """A number of originals to two digits."""
    return int(float(f"{originals:.2g}"))


@dataclass
class Search:
    """A search. Its state is the readings of each level, by number of step."""

    measure: Callable[[float, int], Readings]
    """Readings of the first originals at a noise level."""

    width: float
    """Full width of the wanted interval."""

    step: float
    """Distance of neighbouring levels."""

    largest: float
    """Largest noise."""

    share: float = 0.5
    """Share of the way that is gone at the place."""

    most: int = 10_000
    """Largest number of originals at a level."""

    tell: Callable[[Planned | Tested], None] = lambda _: None
    """Called with each plan and each test."""

    rule: Rule = RULE
    readings: dict[int, Readings] = field(default_factory=dict)

    @property
    def height(self) -> float:
        """Share of the way that is left at the place."""
        return 1 - self.share

    @property
    def top(self) -> int:
        """The largest noise, in steps."""
        return round(self.largest / self.step)

    @property
    def span(self) -> int:
        """Steps between two ends that are not farther apart than the width, at least one."""
        steps = math.floor(self.width / self.step + 1e-9)
        return min(max(steps, 1), self.top)

    def run(self, levels: Sequence[float]) -> Found:
        """Search, beginning with a few originals at some noise levels."""
        for level in levels:
            self.more(max(round(level / self.step), 1), self.rule.first_originals)
        if self.has_not_changed():
            return self.nowhere(NotChanged(self.largest, self.count(self.top)))
        tests = 0
        looks_at_largest = 0
        while True:
            above, below = self.enclosing(self.rule.clear)
            if below is None:
                wanted = self.wanted_at_largest(looks_at_largest)
                if wanted > self.count(self.top):
                    self.more(self.top, wanted)
                    looks_at_largest += 1
                    continue
                if self.sigmas(self.top) >= 0:
                    return self.nowhere(self.not_fallen())
                below = self.top
            fit = self.fit(above, below)
            low, high = self.proposed(fit, tests)
            if not self.measure_ends(low, high, fit, tests):
                continue
            failing = self.failing(low, high, tests)
            tests += 1
            if not failing:
                return self.passed(fit, low, high)
            has_all = all(self.count(end) >= self.most for end in failing)
            if has_all or tests == self.rule.most_tests:
                return self.unsettled(fit, low, high, tests)
            for end in failing:
                self.more(end, self.rule.again * self.count(end))

    # --- readings ---------------------------------------------------------------------------------

    @property
    def is_chance_known(self) -> bool:
        return not any(math.isnan(readings.chance) for readings in self.readings.values())

    def is_given(self, level: int) -> bool:
        """Whether the curve is known there: its start, and its end if chance is measured there."""
        return level == 0 or (level == self.top and not self.is_chance_known)

    def count(self, level: int) -> int:
        """Originals at a level."""
        if level not in self.readings:
            return 0
        return len(self.readings[level].values)

    def independent(self, level: int) -> int:
        """Independent groups at a level."""
        if level not in self.readings:
            return 0
        return self.readings[level].independent

    def noise_of(self, level: int) -> float:
        return min(level * self.step, self.largest)

    def more(self, level: int, originals: float) -> None:
        """Measure so many originals; half as many at the largest noise if chance is unknown."""
        wanted = min(CHUNK * math.ceil(originals / CHUNK), self.most)
        if self.count(level) < wanted and level > 0:
            self.readings[level] = self.measure(self.noise_of(level), wanted)
        if level != self.top and not self.is_chance_known:
            self.more(self.top, max(wanted / 2, self.rule.first_originals))

    def at(self, level: int) -> Height:
        """The share of the way that is left at a level.

        Half a kept and half a lost group are added, so that equal readings have an error.
        """
        readings = self.readings[level]
        chance = Mean(readings.chance, 0.0)
        if math.isnan(readings.chance):
            chance = self.readings[self.top].mean()
        mean = readings.mean()
        way = readings.start - chance.value
        count = readings.measured.sum()
        added = count / readings.independent
        left = ((mean.value - chance.value) / way * count + 0.5 * added) / (count + added)
        of_added = 0.5 * added**2 * ((1 - left) ** 2 + left**2)
        squares = mean.variance * (count / way) ** 2 + of_added
        of_chance = chance.variance * (self.share / way) ** 2
        error = math.sqrt(squares / (count + added) ** 2 + of_chance)
        spread = math.sqrt(squares / (count + added))
        return Height(float(left), error, readings.independent, spread)

    def sigmas(self, level: int) -> float:
        """Standard errors by which the reading of a level is above the height."""
        if level == 0:
            return math.inf
        if self.is_given(level):
            return -math.inf
        height = self.at(level)
        return (height.left - self.height) / height.error

    def has_not_changed(self) -> bool:
        """Whether the chance that is measured is the start itself."""
        if self.is_chance_known:
            return False
        ends = self.readings[self.top]
        return ends.mean() == Mean(ends.start, 0.0)

    # --- decisions --------------------------------------------------------------------------------

    def wanted_at_largest(self, looks: int) -> int:
        """Originals at the largest noise until it is clear whether the curve falls so far.

        The look at them is a test like that of an end. While its interval holds the height, the
        originals double.
        """
        count = self.count(self.top)
        if count == 0:
            return min(self.rule.first_originals, self.most)
        if count < self.rule.last_originals:
            return min(self.rule.last_originals, self.most)
        is_undecided = 0 <= self.sigmas(self.top) < self.threshold(looks, self.top)
        if is_undecided:
            return min(2 * count, self.most)
        return count

    def threshold(self, tests: int, level: int) -> float:
        return threshold(tests, self.independent(level), self.rule)

    def enclosing(self, sigmas: float) -> tuple[int, int | None]:
        """The largest level above the height and the smallest below it, by so many errors.

        0 and None without such levels. Readings of neighbouring levels that rise are pooled.
        """
        levels = np.array(sorted(level for level in self.readings if not self.is_given(level)))
        heights = [self.at(level) for level in levels.tolist()]
        pooled = isotonic_regression(
            [height.left for height in heights],
            weights=[height.error**-2 for height in heights],
            increasing=False,
        )
        errors = np.repeat(pooled.weights, np.diff(pooled.blocks)) ** -0.5
        is_above = pooled.x - self.height >= sigmas * errors
        is_below = pooled.x - self.height <= -sigmas * errors
        end = None if self.is_chance_known else self.top
        above = max(levels[is_above].tolist(), default=0)
        below = min(levels[is_below].tolist(), default=end)
        return above, below

    def fit(self, above: int, below: int) -> Fit:
        """A line through the logits of the means between two levels, weighted by information."""
        between = [level for level in sorted(self.readings) if above <= level <= below]
        levels = np.array([level for level in between if not self.is_given(level)])
        heights = [self.at(level) for level in levels.tolist()]
        counts = np.array([self.count(level) for level in levels.tolist()])
        smallest = 0.5 / (counts + 1)
        left = np.clip([height.left for height in heights], smallest, 1 - smallest)
        logits = logit(left)
        weights = counts * left * (1 - left)
        centre = np.average(levels, weights=weights)
        middle = np.average(logits, weights=weights)
        slope = self.rule.steepest / (below - above)
        if len(levels) > 1:
            products = np.average((levels - centre) * (logits - middle), weights=weights)
            squares = np.average((levels - centre) ** 2, weights=weights)
            slope = float(np.clip(-products / squares, 1 / self.top, slope))
        inside = 0.05 * (below - above)
        place = centre + (middle - logit(self.height)) / slope
        place = float(np.clip(place, above + inside, below - inside))
        variance = np.average([height.spread**2 for height in heights], weights=counts)
        return Fit(place * self.step, self.step / slope, math.sqrt(variance), int(counts.sum()))

    def needed(self, levels: np.ndarray, fit: Fit, tests: int) -> np.ndarray:
        """Originals with which the fit predicts that each level passes the next test."""
        logits = logit(self.height) + (fit.place - levels * self.step) / fit.scale
        distances = np.maximum(np.abs(expit(logits) - self.height), 1e-6)
        groups = max(map(self.independent, self.readings), default=100)
        sigmas = threshold(tests, groups, self.rule) + self.rule.margin
        originals = (sigmas * fit.spread / distances) ** 2
        is_given = [self.is_given(level) for level in levels.tolist()]
        return np.where(is_given, 0, np.maximum(originals, self.rule.first_originals))

    def proposed(self, fit: Fit, tests: int) -> tuple[int, int]:
        """The two ends around the place that need the fewest further calls, or are centred best."""
        place = fit.place / self.step
        first = max(math.floor(place) - self.span + 1, 0)
        last = min(math.floor(place), self.top - self.span)
        lows = np.arange(first, last + 1)
        calls = np.zeros(len(lows))
        for levels in (lows, lows + self.span):
            counts = [self.count(level) for level in levels.tolist()]
            calls += levels * np.maximum(self.needed(levels, fit, tests) - counts, 0)
        distances = np.abs(lows + self.span / 2 - place)
        best = np.lexsort((distances, calls))[0]
        low = int(lows[best])
        return low, low + self.span

    def measure_ends(self, low: int, high: int, fit: Fit, tests: int) -> bool:
        """Measure at both ends; whether they then have the originals that they need by the fit."""
        ends = np.array([low, high])
        needed = np.minimum(self.needed(ends, fit, tests), self.most)
        counts = np.array([self.count(low), self.count(high)])
        missing = np.maximum(needed - counts, 0)
        if not missing.any():
            return True
        self.tell(
            Planned(
                fit.place,
                (self.noise_of(low), self.noise_of(high)),
                (self.count(low), self.count(high)),
                (math.ceil(needed[0]), math.ceil(needed[1])),
                float(missing @ ends) / self.top,
            )
        )
        at_once = max(self.rule.first_originals, self.rule.growth * fit.originals)
        for end, originals in zip([low, high], needed.tolist(), strict=True):
            self.more(end, min(originals, max(at_once, 2 * self.count(end))))
        return bool(self.count(low) >= needed[0] and self.count(high) >= needed[1])

    def failing(self, low: int, high: int, tests: int) -> list[int]:
        """The ends that are not on their sides of the height."""
        above = self.sigmas(low)
        below = self.sigmas(high)
        least = self.threshold(tests, low)
        most = -self.threshold(tests, high)
        self.tell(
            Tested(
                (self.noise_of(low), self.noise_of(high)),
                (self.count(low), self.count(high)),
                (above, below),
                (least, most),
            )
        )
        failing = []
        if above < least:
            failing.append(low)
        if below > most:
            failing.append(high)
        return failing

    # --- outcomes ---------------------------------------------------------------------------------

    def passed(self, fit: Fit, low: int, high: int) -> Found:
        if self.span * self.step > self.width * (1 + 1e-9):
            return self.found(fit.place, low, high, StepTooLarge(self.step))
        return self.found(fit.place, low, high, Reached())

    def unsettled(self, fit: Fit, low: int, high: int, tests: int) -> Found:
        """The interval between the levels that are clearly above and below the height.

        Without a level that is clearly below, the curve may not fall so far: there is no place.
        """
        above, below = self.enclosing(self.rule.unsettled)
        if below is None:
            return self.nowhere(self.not_fallen())
        needed = self.needed(np.array([low, high]), fit, tests).max()
        outcome = NotReached(
            self.width,
            tests,
            max(map(self.count, self.readings)),
            float(needed),
            self.noise_of(above),
            self.noise_of(below),
        )
        return self.found(fit.place, above, below, outcome)

    def not_fallen(self) -> NotFallen:
        left = self.at(self.top).interval()
        gone = Estimate(1 - left.value, 1 - left.high, 1 - left.low)
        return NotFallen(self.largest, gone, self.count(self.top), self.share)

    def nowhere(self, outcome: Outcome) -> Found:
        return self._found(Estimate(math.nan, math.nan, math.nan), outcome)

    def found(self, place: float, low: int, high: int, outcome: Outcome) -> Found:
        ends = (self.noise_of(low), self.noise_of(high))
        inside = min(max(place, ends[0]), ends[1])
        return self._found(Estimate(inside, *ends), outcome)

    def _found(self, place: Estimate, outcome: Outcome) -> Found:
        calls = sum(self.count(level) * level for level in self.readings) / self.top
        originals = max(map(self.count, self.readings))
        return Found(place, originals, calls, outcome)
