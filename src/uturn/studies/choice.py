"""The largest noise that keeps a goal: a test of the measured levels one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

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
from uturn.studies.analysis import (
    Level,
    bounds_of,
    by_noise,
    finished_run,
    levels_of,
    named_reading,
)
from uturn.studies.axes import Axes
from uturn.studies.curves import place
from uturn.studies.runs import have_labels, is_kept_if_large, named_in

CHOSEN, ESTIMATED, NONE, OPEN = "chosen", "estimated", "no such level", "not decided"
"""The answers of `choose`."""
NOT_GUARANTEED = (
    "Bounds of Student's t guarantee nothing, because an original that is not in the run can have"
    " any value. In simulations with 10 to 300 originals, about .05 of these bounds were wrong for"
    " normal readings, up to .21 for lognormal ones (sigma 1), and up to .54 if 3 % of the"
    " originals were ten times as far as the others. If 1 % were ten times as far and the others"
    " varied little, .88 were wrong with 12 originals, .60 with 50, .14 with 200: nearly all runs"
    " that lack the far ones."
)
NOT_MEASURED = (
    "The answer concerns the mean over originals drawn like these, for this model and sampler, at"
    " the levels tested. It does not cover each single original, other data, and what no reading"
    " measures: a label that is kept, for example, is not accuracy gained."
)
# Of pipelines that make int(N strength) steps, and N - int(N - N strength).
_STRENGTHS = "strength", "strength (SD3, FLUX)"
_POWER = 0.8
_NUMBERS = np.unique(np.geomspace(1, 10_000_000, 10_000).round())  # of originals


@dataclass(frozen=True, eq=False)
class LevelTest:
    """The test of one goal. Levels are tested in order, and the first whose bound misses the goal
    ends the test.

    `words`: the goal, such as "same_class >= 0.95"; `direction`: why large or small values are
    kept, "" if the reading declares it. `range`: smallest and largest possible reading, infinite
    where there is no end; `guaranteed`: whether it ends on the side where the goal is missed, so
    that the bound holds for any law in this range (`uturn.statistics.mean_bounds`); otherwise the
    bound is of Student's t. `levels`: measured ones above 0, with the mean there, its one-sided
    `bound`, and the `originals` that have a reading. `noise`: the last level that passes, NaN if
    none does; `ended`: where the test ended, NaN if all have passed; `missed`: whether the goal is
    missed there with the same confidence, otherwise that level is not decided; `meets`: whether the
    mean there is on the side of the goal. `more`: number of further originals with which `ended` is
    decided with probability .8 if the mean measured there is the truth; 0 if there is nothing to
    decide, infinite if the mean is at the goal, NaN if originals do not show how much they vary.
    `crossing`: where the interpolated curve crosses the goal, not guaranteed.
    """

    words: str
    range: tuple[float, float]
    guaranteed: bool
    direction: str
    noise: float
    levels: np.ndarray
    mean: np.ndarray
    bound: np.ndarray
    originals: np.ndarray
    ended: float
    missed: bool
    meets: bool
    more: float
    crossing: dict[str, Estimate]


@dataclass(frozen=True, eq=False)
class Choice:
    """The answer of `choose`, which prints as text.

    `noise`: the largest measured noise that keeps the goal, and has lost the other one if there is
    one; NaN if there is none. `at`: it on every axis of the run; `strength` and `strength (SD3,
    FLUX)` in the rounding of the image-to-image pipelines of diffusers, if the run has steps; empty
    if there is no level. `answer`: "chosen", with a guarantee; "estimated", for a reading without a
    worst possible value; "no such level": each level misses a goal, or lies beyond one that does;
    "not decided", which needs `more` originals (0 for other answers). `window`: with `lose`,
    smallest noise that has lost and largest that keeps. `keep`, `lose`: the tests. `confidence`: of
    each test. `axis`: the noise in words. `by`: the choices for parts of the originals, by the
    values of the coordinate `part`.
    """

    noise: float
    at: dict[str, float]
    answer: str
    more: float
    window: tuple[float, float] | None
    keep: LevelTest
    lose: LevelTest | None
    confidence: float
    axis: str
    by: dict[Any, Choice] = field(default_factory=dict)
    part: str = ""

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


class _Goal(NamedTuple):
    """A reading of a run, as a variable and its indices along the dims of its own, and the goal
    for its mean.
    """

    name: str
    label: str
    where: dict[str, list[int]]
    how: Variable
    value: float
    rises: bool
    direction: str
    lose: bool
    sign: int  # 1 if the mean has to be at least the goal, -1 if at most


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
    an error needs that of the first level that misses (a fixed-sequence test, Maurer, Hothorn and
    Lehmacher 1995).

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
    expect(
        checked_share("confidence", confidence) > 0.5,
        "confidence",
        confidence,
        "a number between .5 and 1",
    )
    one = lose is None or (isinstance(lose, Mapping) and len(lose) == 1)
    expect(one, "lose", lose, "one reading and its goal, such as {'first_layer': 0.5}")
    run = by_noise(finished_run(ds))
    axes = Axes(run)
    goals = [
        _goal(run, axes, *goal)
        for goal in ((reading, keep, False), *((*pair, True) for pair in (lose or {}).items()))
    ]
    items_of = {} if by is None else _parts(run, by)
    used = {
        name for goal in goals for name in (goal.name, *named_in(goal.how.start, goal.how.chance))
    }
    # Parts copy what they select, such as images.
    run = run[[name for name in run.data_vars if name in used]]
    by_part = {
        value: _choice(run.isel(item=items), axes, goals, confidence)
        for value, items in items_of.items()
    }
    return replace(_choice(run, axes, goals, confidence), by=by_part, part=by or "")


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
    p, g = (truth, goal) if truth >= goal else (1 - truth, 1 - goal)
    n = _NUMBERS
    k = np.maximum(n * p - ndtri(power) * np.sqrt(n * p * (1 - p)), 1e-9)
    enough = betainc(k, n - k + 1, g) <= 1 - confidence
    return float(n[enough.argmax()]) if enough.any() else math.inf


# --- names ----------------------------------------------------------------------------------------


def _goal(run: xr.Dataset, axes: Axes, reading: str, value: float, lose: bool) -> _Goal:
    name, label, where, how = named_reading(run, reading)
    values = run[name].isel(where)
    tosses = bool(values.isin((0, 1)).where(values.notnull(), True).all())
    if tosses:  # declared or not
        how = replace(how, bounds=(0.0, 1.0))
    low, high = bounds_of(how)
    fits = (
        isinstance(value, int | float | np.number)
        and not isinstance(value, bool)
        and low < value < high
    )
    expect(
        fits,
        "lose" if lose else "keep",
        value,
        f"a number between {low:g} and {high:g} for {label}",
    )
    rises, direction = _direction(
        next(levels_of(run.isel(where), name, how, axes)), how, tosses, axes
    )
    return _Goal(
        name, label, where, how, float(value), rises, direction, lose, -1 if rises != lose else 1
    )


def _direction(level: Level, how: Variable, tosses: bool, axes: Axes) -> tuple[bool, str]:
    """Whether a reading rises with noise, and why it is taken to do so if its start and chance
    do not tell.
    """
    start, chance = (math.nan if how.guessed else level.start), level.chance
    if start in how.bounds or np.isfinite(chance - start):
        return (start == how.bounds[0] if start in how.bounds else chance > start), ""
    name = level.texts["variable"]
    if is_kept_if_large(name):
        # What is the same starts at 1.
        return False, "" if name.startswith("same_") else "large values are kept, by its name"
    x, measured = axes.noise, np.flatnonzero(np.isfinite(level.curve[:, 0]) & (axes.noise > 0))
    first, last = (
        (0 if np.isfinite(start) else measured[0], measured[-1]) if len(measured) else (0, 0)
    )
    change = Estimate(
        *level.replicates.interval(
            lambda c: (chance if np.isfinite(chance) else c[last]) - c[first]
        )
    )
    words = (
        f"the mean changes by {change!r} from {axes.words['noise']} = {x[first]:.3g} to"
        f" {x[last]:.3g}"
    )
    rises, falls = change.low > 0, change.high < 0
    if tosses and not rises:
        return False, "large values are kept, as of readings that are 0 or 1"
    if tosses or not (rises or falls):
        raise ValueError(
            f"reading = {level.texts['reading']!r}: it is not known whether large or small values"
            f" are kept: {'readings are 0 or 1, and ' if tosses else ''}{words}; give its start, as"
            f" --start {name}=VALUE for a table, start={{{name!r}: VALUE}} in ut.readings, or in"
            " the Variable of a probe, and its chance"
        )
    return rises, f"{'small' if rises else 'large'} values are kept, as {words}"


def _parts(run: xr.Dataset, by: str) -> dict[Any, np.ndarray]:
    dims = set(run[by].dims) if isinstance(by, str) and by in run.variables else set()
    names = [
        str(name)
        for name, values in run.variables.items()
        if values.dims == ("item",) and name != "item"
    ]
    of_items = f"a coordinate of the items: {', '.join(names) or 'the run has none'}"
    expect({"item"} <= dims <= {"noise", "item"}, "by", by, of_items)
    values = run[by].isel(noise=0, missing_dims="ignore").values
    return {
        value: np.flatnonzero(values == value)
        for value in np.unique(values[have_labels(values)]).tolist()
    }


# --- tests ----------------------------------------------------------------------------------------


def _choice(run: xr.Dataset, axes: Axes, goals: list[_Goal], confidence: float) -> Choice:
    tests = [_tested(run, axes, goal, confidence) for goal in goals]
    keep, lose = [*tests, None][:2]
    assert keep is not None
    low, high = (0.0 if lose is None else lose.noise), keep.noise
    passed = low <= high
    # A level without a guarantee may still get one, unless it is at or beyond one that misses a
    # goal.
    least = lose.ended if lose is not None and lose.missed else 0.0
    most = keep.ended if keep.missed else math.inf
    is_open = not passed and bool(((keep.levels > least) & (keep.levels < most)).any())
    noise, given = (
        high if passed else math.nan,
        (CHOSEN if all(test.guaranteed for test in tests) else ESTIMATED),
    )
    answer = given if passed else OPEN if is_open else NONE
    more = float(np.max([test.more for test in tests])) if is_open else 0.0
    window = (low, high) if lose is not None and passed else None
    return Choice(
        noise,
        _on_axes(run, axes, noise),
        answer,
        more,
        window,
        keep,
        lose,
        confidence,
        axes.words["noise"],
    )


def _tested(run: xr.Dataset, axes: Axes, goal: _Goal, confidence: float) -> LevelTest:
    """The fixed-sequence test of a goal."""
    values = run[goal.name].isel(goal.where)
    # The ends of these intervals of Student's t are one-sided bounds of the confidence.
    level = next(levels_of(run.isel(goal.where), goal.name, goal.how, axes, 2 * confidence - 1))
    x, (mean, *intervals), ends = axes.noise, level.curve.T, bounds_of(level.instructions)
    added = len(x) - values.sizes["noise"]  # noise 0
    proven = np.pad(mean_bounds(values, *ends, confidence).reshape(2, -1), ((0, 0), (added, 0)))
    bounds = np.where(np.isfinite(ends)[:, None], proven, intervals)
    bound, opposite = bounds[:: goal.sign]
    passes = goal.sign * bound >= goal.sign * goal.value
    order = np.flatnonzero(x > 0)[:: -1 if goal.lose else 1]
    # Of levels that pass before the first that does not.
    count = int(np.logical_and.accumulate(passes[order]).sum())
    end = int(order[count]) if count < len(order) else None
    missed = end is not None and bool(goal.sign * opposite[end] < goal.sign * goal.value)
    of_items = (
        values.mean([dim for dim in values.dims if dim not in ("noise", "item")])
        .transpose("noise", "item")
        .values
    )
    of_items = np.pad(of_items, ((added, 0), (0, 0)))
    read = ~np.isnan(of_items)
    more = 0.0
    if end is not None and not missed:
        more = _more(
            of_items[end][read[end]],
            independent_groups(values)[read[end]],
            goal.value,
            ends,
            confidence,
        )
    finite, sign = np.isfinite(x), -1.0 if goal.rises else 1.0
    crosses = place(
        level.replicates,
        lambda c: crossing(x[finite], sign * c[finite], sign * goal.value, first=True),
        x[finite],
    )
    positive = x > 0
    return LevelTest(
        words=f"{goal.label} {'>=' if goal.sign > 0 else '<='} {goal.value:g}",
        range=ends,
        guaranteed=math.isfinite(ends[0 if goal.sign > 0 else 1]),
        direction=goal.direction,
        noise=float(x[order[count - 1]]) if count else math.nan,
        levels=x[positive],
        mean=mean[positive],
        bound=bound[positive],
        originals=read[positive].sum(1),
        ended=math.nan if end is None else float(x[end]),
        missed=missed,
        meets=end is not None and bool(goal.sign * mean[end] > goal.sign * goal.value),
        more=more,
        crossing=dict(
            zip(axes.names, (Estimate(*row) for row in axes.at(crosses).tolist()), strict=True)
        ),
    )


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
    mean, (low, high) = float(readings.mean()) if len(readings) else math.nan, ends
    if mean == goal:
        return math.inf
    if np.isin(means, ends).all() and len(means):
        needed = originals_needed(
            (mean - low) / (high - low), (goal - low) / (high - low), confidence
        )
    elif len(means) < 2:
        return math.nan
    else:
        # The bound is about m/n + sqrt(z² s²/n + (ln(1/alpha) - 1)² m²/n²) from the mean; m is the
        # distance of the mean from the worst value, s the spread of the groups. It has to pass the
        # goal where the mean is at the quantile of the power.
        worst, s = low if mean > goal else high, means.std(ddof=1)
        n, m = _NUMBERS, abs(mean - worst) if math.isfinite(worst) else 0.0
        bound = m / n + np.hypot(
            ndtri(confidence) * s / np.sqrt(n), (math.log(1 / (1 - confidence)) - 1) * m / n
        )
        enough = bound + ndtri(_POWER) * s / np.sqrt(n) <= abs(mean - goal)
        needed = n[enough.argmax()] if enough.any() else math.inf
    return float(np.maximum(np.ceil(needed * len(readings) / len(means)) - len(readings), 1.0))


def _on_axes(run: xr.Dataset, axes: Axes, noise: float) -> dict[str, float]:
    """A measured noise on all axes, with the timestep and the strength of a diffusion chain;
    empty for NaN.
    """
    if math.isnan(noise):
        return {}
    at = {name: float(values[axes.noise == noise][0]) for name, values in axes.values.items()}
    level = run.sel(noise=noise)
    if "timestep" in level.coords:
        at["timestep"] = float(level.timestep)
    if {"step", "t_over_T"} <= set(
        level.coords
    ) and 0 < level.t_over_T <= 1 <= level.step < math.inf:
        steps = round(float(level.step / level.t_over_T))
        for name, counts_down in zip(_STRENGTHS, (False, True), strict=True):
            at[name] = strength_of(int(level.step), steps, counts_down)
    return at


# --- text -----------------------------------------------------------------------------------------


def _lines(choice: Choice) -> Iterator[str]:
    """The tests, the answer for all originals and for each part, and what it does not say."""
    x, tests = choice.axis, [test for test in (choice.keep, choice.lose) if test is not None]
    for test in tests:
        law = (
            "for readings in [{:g}, {:g}]".format(*test.range)
            if test.guaranteed
            else "by Student's t, not guaranteed"
        )
        yield f"{test.words}, one-sided bounds of confidence {choice.confidence:g} {law}"
        if test.direction:
            yield f"  {test.direction}; a guess: declare its start if that is wrong"
        rows = list(zip(test.levels, test.mean, test.bound, test.originals, strict=True))
        for level, mean, bound, originals in rows if test is choice.keep else rows[::-1]:
            end = f"; {_end(test)}" if level == test.ended else ""
            yield (
                f"  {x} = {level:.3g}: mean {mean:.3g}, bound {bound:.3g},"
                f" {_counted(originals)}{end}"
            )
            if end:
                break
        if np.isfinite(test.crossing["noise"].value):
            yield (
                f"  an estimate, not guaranteed: the curve crosses the goal at {x} ="
                f" {test.crossing['noise']}"
            )
    places = {axis: f"{value:.4g}" for axis, value in choice.at.items() if axis != "noise"}
    if places.get("strength") == places.get(_STRENGTHS[1]):  # both roundings are often the same
        places.pop(_STRENGTHS[1], None)
    yield _answer(choice) + (f" ({', '.join(map(' '.join, places.items()))})" if places else "")
    for value, part in choice.by.items():
        yield f"  {choice.part} = {value}, {_counted(part.keep.originals.max())}: {_answer(part)}"
    if not all(test.guaranteed for test in tests):
        yield NOT_GUARANTEED
    yield NOT_MEASURED


def _end(test: LevelTest) -> str:
    if test.missed:
        return "missed"
    if not np.isfinite(test.more):
        read = test.originals[test.levels == test.ended][0]
        alone = "one original does not show how others differ" if read else "no readings"
        return f"{OPEN}: {'the mean is at the goal' if test.more > 0 else alone}"
    # Two digits, since the true mean is not known.
    more = round(test.more, 2 - len(f"{test.more:.0f}")) if test.more >= 100 else test.more
    would = f"would show that the goal is {'met' if test.meets else 'missed'}"
    return f"{OPEN}: about {_counted(more, ' more')}, if this mean is the truth, {would}"


def _counted(number: float, kind: str = "") -> str:
    return f"{number:.0f}{kind} original{'' if number == 1 else 's'}"


def _answer(choice: Choice) -> str:
    keep, lose = choice.keep, choice.lose
    if choice.answer in (CHOSEN, ESTIMATED):
        window = (
            "" if choice.window is None else ", window from {:.4g} to {:.4g}".format(*choice.window)
        )
        return f"{choice.answer}: {choice.axis} = {choice.noise:.4g}{window}"
    if choice.answer == OPEN:
        tests = [test for test in (keep, lose) if test is not None and not test.missed]
        test = max(tests, key=lambda test: test.more)
        return f"{test.words} at {choice.axis} = {test.ended:.3g} is {_end(test)}"
    if lose is None:
        return f"{NONE}: missed already at {choice.axis} = {keep.ended:.3g}"
    kept, lost = (
        "nowhere" if np.isnan(test.noise) else f"{word} {test.noise:.3g}"
        for test, word in ((keep, "up to"), (lose, "from"))
    )
    return f"{NONE}: {keep.words} {kept} and {lose.words} {lost}"
