"""The largest noise that keeps a goal: a test of the measured levels one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from scipy.special import betainc, ndtri

from uturn.core.checks import expect
from uturn.core.protocols import Variable
from uturn.measures.curves import crossing
from uturn.measures.estimates import Estimate, checked_share
from uturn.measures.intervals import mean_bounds
from uturn.measures.readings import independent_groups
from uturn.measures.strengths import strength_of
from uturn.studies.checked_run import Run, dims_except
from uturn.studies.keys import ReadingKey, find_reading
from uturn.studies.places import located_on
from uturn.studies.reading_checks import bounds_of
from uturn.studies.reading_curves import Reading, readings_of
from uturn.studies.runs import have_labels, is_kept_if_large, named_in, starts_at_one

CHOSEN = "chosen"
ESTIMATED = "estimated"
NONE = "no such level"
OPEN = "not decided"
"""The answers of `choose`."""
NOT_GUARANTEED = (
    "Bounds of Student's t guarantee nothing, because an original that is not in the run can have"
    " any value. In simulations with 10 to 300 originals, about .05 of these bounds were wrong for"
    " normal readings, up to .21 for lognormal ones (sigma 1), and up to .54 if 3 % of the"
    " originals were ten times as far as the others. If 1 % were ten times as far and the others"
    " varied little, .88 were wrong with 12 originals, .60 with 50, .14 with 200. These are nearly all"
    " runs without a far original."
)
NOT_MEASURED = (
    "The answer concerns the mean over originals drawn like these, for this model and sampler, at"
    " the levels tested. It does not cover each single original, other data, and what no reading"
    " measures: a label that is kept, for example, is not accuracy gained."
)
_STRENGTH = "strength"
_STRENGTH_FROM_END = "strength (SD3, FLUX)"
"""Axes of pipelines that make int(N strength) steps, and N - int(N - N strength)."""
_POWER = 0.8
_NUMBERS = np.unique(np.geomspace(1, 10_000_000, 10_000).round())
"""Numbers of originals that are tried."""


@dataclass(frozen=True, eq=False)
class LevelTest:
    """The test of one goal. Levels are tested in order, and the first whose bound misses the goal
    ends the test.
    """

    words: str
    """The goal, such as "same_class >= 0.95"."""
    range: tuple[float, float]
    """Smallest and largest possible reading, infinite where there is no end."""
    guaranteed: bool
    """Whether the range ends on the side where the goal is missed. The bound then holds for any law
    in this range (`uturn.statistics.mean_bounds`); otherwise it is of Student's t.
    """
    direction: str
    """Why large or small values are kept; "" if the reading declares it."""
    noise: float
    """The last level that passes; NaN if none does."""
    levels: np.ndarray
    """The measured levels above 0."""
    mean: np.ndarray
    bound: np.ndarray
    """One-sided bound of the mean, by level."""
    originals: np.ndarray
    """Number of originals with a reading, by level."""
    ended: float
    """Level where the test ended; NaN if all have passed."""
    missed: bool
    """Whether the goal is missed at `ended` with the same confidence; otherwise that level is not
    decided.
    """
    meets: bool
    """Whether the mean at `ended` is on the side of the goal."""
    more: float
    """Number of further originals with which `ended` is decided with probability .8 if the mean
    measured there is the truth. 0 if there is nothing to decide, infinite if the mean is at the
    goal, NaN if originals do not show how much they vary.
    """
    crossing: dict[str, Estimate]
    """Where the interpolated curve crosses the goal on each axis; not guaranteed."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The answer of `choose`, which prints as text."""

    noise: float
    """The largest measured noise that keeps the goal, and has lost the other one if there is one;
    NaN if there is none.
    """
    at: dict[str, float]
    """The noise on every axis of the run, with `strength` and `strength (SD3, FLUX)` in the rounding
    of the image-to-image pipelines of diffusers if the run has steps; empty if there is no level.
    """
    answer: str
    """"chosen", with a guarantee; "estimated", for a reading without a worst possible value; "no
    such level": each level misses a goal, or lies beyond one that does; "not decided".
    """
    more: float
    """Number of further originals that an answer "not decided" needs; 0 for others."""
    window: tuple[float, float] | None
    """With `lose`: smallest noise that has lost, and largest that keeps."""
    keep: LevelTest
    lose: LevelTest | None
    confidence: float
    """Confidence of each test."""
    axis: str
    """The noise in words."""
    by: dict[object, Choice] = field(default_factory=dict)
    """The choices for parts of the originals, by the values of the coordinate `part`."""
    part: str = ""

    @property
    def tests(self) -> list[LevelTest]:
        if self.lose is None:
            return [self.keep]
        return [self.keep, self.lose]

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


@dataclass(frozen=True, eq=False)
class _Goal:
    """A reading of a run, and the goal for its mean."""

    key: ReadingKey
    instructions: Variable
    value: float
    direction: _Direction
    lose: bool
    """Whether the reading has to be lost."""

    @property
    def sign(self) -> int:
        """1 if the mean has to be at least the goal, -1 if at most."""
        return -1 if self.direction.rises != self.lose else 1


@dataclass(frozen=True)
class _Direction:
    """Whether a reading rises with noise."""

    rises: bool
    reason: str = ""
    """Why it is taken to do so; "" if its start and chance tell."""


def _reading_in(
    run: Run, key: ReadingKey, instructions: Variable, confidence: float = 0.95
) -> Reading:
    """A reading of a run by other instructions."""
    changed = {**run.instructions, key.variable: instructions}
    alone = replace(run, data=run.data.isel(key.slices), instructions=changed)
    (reading,) = readings_of(alone, key.variable, confidence=confidence)
    return reading


def choose(
    ds: xr.Dataset,
    reading: str,
    keep: float,
    *,
    lose: Mapping[str, float] | None = None,
    by: str | None = None,
    confidence: float = 0.95,
) -> Choice:
    """The largest measured noise whose mean reading keeps a goal, with a guarantee if the reading
    has a worst possible value.

    Let c(x) be the mean of the reading at noise x over the law of the originals. The measured
    levels x_1 < x_2 < .. above 0 are tested in this order by a one-sided bound of c(x_k), and the
    first one whose bound misses the goal ends the test. The probability that any accepted level
    misses the goal is at most 1 - confidence, without a correction for the number of levels, since
    any error requires an error at the first level that misses (a fixed-sequence test, Maurer,
    Hothorn and Lehmacher 1995).

    Bounds hold for any law of the readings if these have a worst possible value
    (`uturn.statistics.mean_bounds`), otherwise they are of Student's t, and the answer is
    "estimated". The U-turns of an original count as one reading, their mean; missing readings (NaN)
    are left out. A reading that falls from its start to chance is kept if its mean is at least the
    goal; one that rises, if it is at most the goal; docs/noise.md has the rules for others, and the
    text of the choice reports the guess.

    `ds`: dataset of `uturn.run`. `reading`: its name in the study, such as "same_class" or
    "similarity, network_layer = block1". The name of a variable suffices if it has one level;
    "first_layer" and "last_layer" are the ends of an ordered series of layers. `keep`: the goal,
    strictly inside the bounds of the reading. Readings that are all 0 or 1 have these bounds,
    declared or not. `lose`, {reading: goal}: a reading that has to be lost, tested from large noise
    downwards. The noise chosen is then the upper end of the window between both; each end has the
    confidence stated, so both together at least 1 - 2 (1 - confidence). `by`: a coordinate of the
    items, such as "label": a choice for each of its values, each with the confidence stated. Items
    without a label (-1, NaN, an empty text) are left out. `confidence`: above .5.

    Examples
    --------
    >>> import uturn as ut
    >>> run = ut.readings({"kept": [[1] * 100, [1] * 100, [1, 0] * 50]}, noise=[0.2, 0.4, 0.6], start=1, chance=0)
    >>> choice = choose(run, "kept", keep=0.95)
    >>> choice.noise, choice.answer
    (0.4, 'chosen')
    """
    is_sure = checked_share("confidence", confidence) > 0.5
    expect(is_sure, "confidence", confidence, "a number between .5 and 1")
    is_one = lose is None or (isinstance(lose, Mapping) and len(lose) == 1)
    expect(is_one, "lose", lose, "one reading and its goal, such as {'first_layer': 0.5}")
    run = Run.finished(ds)
    goals = [_goal(run, reading, keep, lose=False)]
    goals += [_goal(run, name, value, lose=True) for name, value in (lose or {}).items()]
    parts: dict[object, np.ndarray] = {}
    if by is not None:
        parts = _parts(run.data, by)
    needed: set[str] = set()
    for goal in goals:
        needed |= {goal.key.variable, *named_in(goal.instructions.start, goal.instructions.chance)}
    # Parts copy what they select, such as images.
    run = run.with_data(run.data[[name for name in run.data.data_vars if name in needed]])
    of_parts = {}
    for value, items in parts.items():
        of_parts[value] = _choice(run.with_data(run.data.isel(item=items)), goals, confidence)
    return replace(_choice(run, goals, confidence), by=of_parts, part=by or "")


def originals_needed(
    truth: float, goal: float, confidence: float = 0.95, power: float = _POWER
) -> float:
    """Number of originals with which a true share is decided to be above (or below) a goal with
    probability `power`.

    The smallest n for which the one-sided bound of Clopper and Pearson passes the goal at the `1 -
    power` quantile of the number kept (normal approximation). Infinite if the truth equals the
    goal, or if n exceeds ten million.

    Examples
    --------
    >>> [originals_needed(share, 0.95) for share in (1, 0.99, 0.98, 0.97)]
    [59.0, 133.0, 267.0, 653.0]
    """
    p = truth
    g = goal
    if truth < goal:
        p = 1 - truth
        g = 1 - goal
    n = _NUMBERS
    k = np.maximum(n * p - ndtri(power) * np.sqrt(n * p * (1 - p)), 1e-9)
    return _first_number(betainc(k, n - k + 1, g) <= 1 - confidence)


def _first_number(is_enough: np.ndarray) -> float:
    """The smallest number of originals, of those tried, that is enough; infinite if none is."""
    if not is_enough.any():
        return math.inf
    return float(_NUMBERS[is_enough.argmax()])


# --- goals ----------------------------------------------------------------------------------------


def _goal(run: Run, name: str, value: float, lose: bool) -> _Goal:
    key = find_reading(run, name)
    instructions = run.instructions[key.variable]
    values = run.data[key.variable].isel(key.slices)
    is_toss = values.isin((0, 1)) | values.isnull()
    are_tosses = bool(is_toss.all())
    if are_tosses:  # declared or not
        instructions = replace(instructions, bounds=(0.0, 1.0))
    low, high = bounds_of(instructions)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    expected = f"a number between {low:g} and {high:g} for {key.label}"
    expect(is_number and low < value < high, "lose" if lose else "keep", value, expected)
    direction = _direction(_reading_in(run, key, instructions), instructions, are_tosses, run)
    return _Goal(key, instructions, float(value), direction, lose)


def _direction(reading: Reading, instructions: Variable, are_tosses: bool, run: Run) -> _Direction:
    """Whether a reading rises with noise; ValueError if it cannot be told."""
    start = reading.start
    if instructions.guessed:
        start = math.nan
    chance = reading.chance
    if start in instructions.bounds:
        return _Direction(start == instructions.bounds[0])
    if np.isfinite(chance - start):
        return _Direction(chance > start)
    name = reading.key.variable
    if is_kept_if_large(name):
        if starts_at_one(name):
            return _Direction(False)
        return _Direction(False, "large values are kept, by its name")
    noise = run.axes.noise
    is_measured = np.isfinite(reading.curve[:, 0]) & (noise > 0)
    measured = np.flatnonzero(is_measured).tolist() or [0]
    last = measured[-1]
    first = measured[0]
    if np.isfinite(start):
        first = 0

    def difference(curve: np.ndarray) -> np.ndarray:
        if np.isfinite(chance):
            return np.asarray(chance - curve[first])
        return np.asarray(curve[last] - curve[first])

    change = Estimate(*reading.replicates.interval(difference))
    words = (
        f"the mean changes by {change!r} from {run.axes.words['noise']} = {noise[first]:.3g} to"
        f" {noise[last]:.3g}"
    )
    rises = change.low > 0
    if are_tosses and not rises:
        return _Direction(False, "large values are kept, as of readings that are 0 or 1")
    if rises and not are_tosses:
        return _Direction(True, f"small values are kept, as {words}")
    if change.high < 0 and not are_tosses:
        return _Direction(False, f"large values are kept, as {words}")
    if are_tosses:
        words = f"readings are 0 or 1, and {words}"
    raise ValueError(
        f"reading = {reading.label!r}: it is not known whether large or small values are kept:"
        f" {words}; give its start, as --start {name}=VALUE for a table,"
        f" start={{{name!r}: VALUE}} in ut.readings, or in the Variable of a probe, and its chance"
    )


def _parts(data: xr.Dataset, by: str) -> dict[object, np.ndarray]:
    """The items with each value of a coordinate."""
    dims = set()
    if isinstance(by, str) and by in data.variables:
        dims = set(data[by].dims)
    names = [
        str(name)
        for name, values in data.variables.items()
        if values.dims == ("item",) and name != "item"
    ]
    expected = f"a coordinate of the items: {', '.join(names) or 'the run has none'}"
    expect({"item"} <= dims <= {"noise", "item"}, "by", by, expected)
    values = data[by].isel(noise=0, missing_dims="ignore").values
    labels = np.unique(values[have_labels(values)]).tolist()
    return {label: np.flatnonzero(values == label) for label in labels}


# --- tests ----------------------------------------------------------------------------------------


def _choice(run: Run, goals: list[_Goal], confidence: float) -> Choice:
    tests = [_tested(run, goal, confidence) for goal in goals]
    keep = tests[0]
    lose = tests[1] if len(tests) > 1 else None
    low = 0.0
    smallest = 0.0
    largest = math.inf
    # A level without a guarantee may still get one, unless it is at or beyond one that misses a
    # goal.
    if keep.missed:
        largest = keep.ended
    if lose is not None:
        low = lose.noise
        if lose.missed:
            smallest = lose.ended
    choice = Choice(
        noise=math.nan,
        at={},
        answer=NONE,
        more=0.0,
        window=None,
        keep=keep,
        lose=lose,
        confidence=confidence,
        axis=run.axes.words["noise"],
    )
    noise = keep.noise
    if low <= noise:
        is_sure = all(test.guaranteed for test in tests)
        choice = replace(choice, noise=noise, at=_on_axes(run, noise), answer=ESTIMATED)
        if is_sure:
            choice = replace(choice, answer=CHOSEN)
        if lose is not None:
            choice = replace(choice, window=(low, noise))
        return choice
    if ((keep.levels > smallest) & (keep.levels < largest)).any():
        more = float(np.max([test.more for test in tests]))
        return replace(choice, answer=OPEN, more=more)
    return choice


def _tested(run: Run, goal: _Goal, confidence: float) -> LevelTest:
    """The fixed-sequence test of a goal."""
    axes = run.axes
    sign = goal.sign
    values = run.data[goal.key.variable].isel(goal.key.slices)
    # The ends of these intervals of Student's t are one-sided bounds of the confidence.
    reading = _reading_in(run, goal.key, goal.instructions, 2 * confidence - 1)
    noise = axes.noise
    added = len(noise) - values.sizes["noise"]  # noise 0
    ends = bounds_of(reading.instructions)
    mean, *intervals = reading.curve.T
    proven = mean_bounds(values, *ends, confidence).reshape(2, -1)
    proven = np.pad(proven, ((0, 0), (added, 0)))
    bounds = np.where(np.isfinite(ends)[:, None], proven, intervals)
    bound, opposite = bounds[::sign]
    passes = sign * bound >= sign * goal.value
    order = np.flatnonzero(noise > 0)
    if goal.lose:
        order = order[::-1]
    # Number of levels that pass before the first one that does not.
    count = int(np.logical_and.accumulate(passes[order]).sum())
    item_means = values.mean(dims_except(values, "noise", "item")).transpose("noise", "item").values
    item_means = np.pad(item_means, ((added, 0), (0, 0)))
    is_read = ~np.isnan(item_means)
    last = math.nan
    if count:
        last = float(noise[order[count - 1]])
    ended = math.nan
    missed = False
    meets = False
    more = 0.0
    if count < len(order):
        end = order[count]
        ended = float(noise[end])
        missed = bool(sign * opposite[end] < sign * goal.value)
        meets = bool(sign * mean[end] > sign * goal.value)
        if not missed:
            groups = independent_groups(values)[is_read[end]]
            more = _more(item_means[end][is_read[end]], groups, goal.value, ends, confidence)
    positive = noise > 0
    relation = ">="
    worst = ends[0]
    if sign < 0:
        relation = "<="
        worst = ends[1]
    return LevelTest(
        words=f"{goal.key.label} {relation} {goal.value:g}",
        range=ends,
        guaranteed=math.isfinite(worst),
        direction=goal.direction.reason,
        noise=last,
        levels=noise[positive],
        mean=mean[positive],
        bound=bound[positive],
        originals=is_read[positive].sum(1),
        ended=ended,
        missed=missed,
        meets=meets,
        more=more,
        crossing=_crossing(run, goal, reading),
    )


def _crossing(run: Run, goal: _Goal, reading: Reading) -> dict[str, Estimate]:
    """Where the interpolated curve crosses the goal, on each axis."""
    axes = run.axes
    is_finite = axes.is_finite
    sign = -1.0 if goal.direction.rises else 1.0

    def place(curve: np.ndarray) -> float:
        return crossing(axes.finite_noise, sign * curve[is_finite], sign * goal.value, first=True)

    rows = axes.convert_interval(located_on(reading.replicates, place, axes.finite_noise))
    return {name: Estimate(*row) for name, row in zip(axes.names, rows.tolist(), strict=True)}


def _more(
    readings: np.ndarray,
    group: np.ndarray,
    goal: float,
    ends: tuple[float, float],
    confidence: float,
) -> float:
    """Number of further originals that decide a level if its mean is the truth, from those read
    there and their groups.
    """
    count = np.bincount(group)
    means = np.bincount(group, readings)[count > 0] / count[count > 0]
    if not len(readings):
        return math.nan
    mean = float(readings.mean())
    low, high = ends
    if mean == goal:
        return math.inf
    if np.isin(means, ends).all():
        truth = (mean - low) / (high - low)
        needed = originals_needed(truth, (goal - low) / (high - low), confidence)
    elif len(means) < 2:
        return math.nan
    else:
        # The bound is about m/n + sqrt(z² s²/n + (ln(1/alpha) - 1)² m²/n²) from the mean; m is the
        # distance of the mean from the worst value, s the spread of the groups. It has to pass the
        # goal where the mean is at the quantile of the power.
        n = _NUMBERS
        s = means.std(ddof=1)
        worst = high
        if mean > goal:
            worst = low
        m = 0.0
        if math.isfinite(worst):
            m = abs(mean - worst)
        of_range = (math.log(1 / (1 - confidence)) - 1) * m / n
        bound = m / n + np.hypot(ndtri(confidence) * s / np.sqrt(n), of_range)
        needed = _first_number(bound + ndtri(_POWER) * s / np.sqrt(n) <= abs(mean - goal))
    further = np.ceil(needed * len(readings) / len(means)) - len(readings)
    return float(np.maximum(further, 1.0))


def _on_axes(run: Run, noise: float) -> dict[str, float]:
    """A measured noise on all axes, with the timestep and the strength of a diffusion chain;
    empty for NaN.
    """
    if math.isnan(noise):
        return {}
    is_level = run.axes.noise == noise
    places = {name: float(values[is_level][0]) for name, values in run.axes.values.items()}
    level = run.data.sel(noise=noise)
    if "timestep" in level.coords:
        places["timestep"] = float(level.timestep)
    if not {"step", "t_over_T"} <= set(level.coords):
        return places
    step = level.step
    if 0 < level.t_over_T <= 1 <= step < math.inf:
        steps = round(float(step / level.t_over_T))
        places[_STRENGTH] = strength_of(int(step), steps, False)
        places[_STRENGTH_FROM_END] = strength_of(int(step), steps, True)
    return places


# --- text -----------------------------------------------------------------------------------------


def _lines(choice: Choice) -> Iterator[str]:
    """The tests, the answer for all originals and for each part, and what it does not say."""
    for test in choice.tests:
        yield from _lines_of_test(choice, test)
    places = {axis: f"{value:.4g}" for axis, value in choice.at.items() if axis != "noise"}
    # Both roundings are often the same.
    if places.get(_STRENGTH) == places.get(_STRENGTH_FROM_END):
        places.pop(_STRENGTH_FROM_END, None)
    answer = _answer(choice)
    if places:
        answer += f" ({', '.join(map(' '.join, places.items()))})"
    yield answer
    for value, part in choice.by.items():
        count = part.keep.originals.max()
        yield f"  {choice.part} = {value}, {_counted(count)}: {_answer(part)}"
    if not all(test.guaranteed for test in choice.tests):
        yield NOT_GUARANTEED
    yield NOT_MEASURED


def _lines_of_test(choice: Choice, test: LevelTest) -> Iterator[str]:
    """The levels of a test, in their order."""
    law = "by Student's t, not guaranteed"
    if test.guaranteed:
        law = "for readings in [{:g}, {:g}]".format(*test.range)
    yield f"{test.words}, one-sided bounds of confidence {choice.confidence:g} {law}"
    if test.direction:
        yield f"  {test.direction}; a guess: declare its start if that is wrong"
    rows = list(zip(test.levels, test.mean, test.bound, test.originals, strict=True))
    if test is choice.lose:
        rows.reverse()
    for level, mean, bound, originals in rows:
        line = (
            f"  {choice.axis} = {level:.3g}: mean {mean:.3g}, bound {bound:.3g},"
            f" {_counted(originals)}"
        )
        if level == test.ended:
            yield f"{line}; {_end(test)}"
            break
        yield line
    if np.isfinite(test.crossing["noise"].value):
        yield (
            f"  an estimate, not guaranteed: the curve crosses the goal at {choice.axis} ="
            f" {test.crossing['noise']}"
        )


def _end(test: LevelTest) -> str:
    """What is known of the level at which a test has ended."""
    if test.missed:
        return "missed"
    if test.more == math.inf:
        return f"{OPEN}: the mean is at the goal"
    if math.isnan(test.more):
        if test.originals[test.levels == test.ended][0] == 0:
            return f"{OPEN}: no readings"
        return f"{OPEN}: one original does not show how others differ"
    # Two digits, since the true mean is not known.
    number = test.more
    if number >= 100:
        number = round(number, 2 - len(f"{number:.0f}"))
    result = "met" if test.meets else "missed"
    return (
        f"{OPEN}: about {_counted(number, ' more')}, if this mean is the truth, would show that the"
        f" goal is {result}"
    )


def _counted(number: float, kind: str = "") -> str:
    words = f"{number:.0f}{kind} original"
    if number != 1:
        words += "s"
    return words


def _answer(choice: Choice) -> str:
    """The answer in a line."""
    keep = choice.keep
    lose = choice.lose
    if choice.answer in (CHOSEN, ESTIMATED):
        line = f"{choice.answer}: {choice.axis} = {choice.noise:.4g}"
        if choice.window is not None:
            line += ", window from {:.4g} to {:.4g}".format(*choice.window)
        return line
    if choice.answer == OPEN:
        tests = [test for test in choice.tests if not test.missed]
        test = max(tests, key=lambda test: test.more)
        return f"{test.words} at {choice.axis} = {test.ended:.3g} is {_end(test)}"
    if lose is None:
        return f"{NONE}: missed already at {choice.axis} = {keep.ended:.3g}"
    return f"{NONE}: {_passed(keep, 'up to')} and {_passed(lose, 'from')}"


def _passed(test: LevelTest, preposition: str) -> str:
    """Where a goal is met."""
    if np.isnan(test.noise):
        return f"{test.words} nowhere"
    return f"{test.words} {preposition} {test.noise:.3g}"
