"""The largest noise that keeps a goal, with a guarantee: a test of the measured levels one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import shown
from uturn.core.reading import Instructions
from uturn.measures.statistics import Estimate, checked_share, crossing, independent_groups
from uturn.measures.strengths import strength_of
from uturn.studies.analysis import Level, by_noise, finished_run, levels_of, named_reading
from uturn.studies.axes import Axes
from uturn.studies.curves import place

CHOSEN, NONE, OPEN = "chosen", "no such level", "not decided"
"""The three answers of `choose`."""
NOT_MEASURED = (
    "The mean over originals drawn like these is bounded, for this model and sampler at the levels tested. Each single original, "
    "other data, and what no reading measures are not: a label that is kept, for example, is not accuracy gained."
)
_STRENGTHS = "strength", "strength (SD3, FLUX)"  # of pipelines that make int(N strength) steps, and N - int(N - N strength)
_POWER = 0.8
_MOST_ORIGINALS = 10_000_000


@dataclass(frozen=True, eq=False)
class LevelTest:
    """The test of one goal. Levels are tested in order, and the first whose bound misses the goal ends the test.

    Attributes
    ----------
    words : str
        The goal, such as "same_class >= 0.95".
    noise : float
        The last level with a guarantee; NaN if the first one has none.
    levels, mean, bound : array (levels,)
        Measured levels above 0, the mean of the reading there, and its one-sided bound.
    originals : array (levels,)
        Originals with a reading there.
    ended : float
        Level at which the test ended; NaN if all levels have passed.
    missed : bool
        Whether the goal is missed there, with the same confidence; otherwise that level is not decided.
    more : float
        Number of further originals with which that level is decided with probability .8 if the mean measured there is the truth;
        0 if it is missed or there is none, infinite if the mean is at the goal, NaN without readings there.
    crossing : {axis: Estimate}
        An estimate without guarantee: where the curve, interpolated linearly, crosses the goal, and its 95 % interval.
    """

    words: str
    noise: float
    levels: np.ndarray
    mean: np.ndarray
    bound: np.ndarray
    originals: np.ndarray
    ended: float
    missed: bool
    more: float
    crossing: dict[str, Estimate]


@dataclass(frozen=True, eq=False)
class Choice:
    """The answer of `choose`, which prints as text.

    Attributes
    ----------
    noise : float
        The largest measured noise that is guaranteed to keep the goal, and to have lost the other one if there is one; NaN if
        there is none.
    at : {axis: float}
        This level on every axis of the run; `strength` and `strength (SD3, FLUX)` in the rounding of the image-to-image pipelines
        of diffusers, if the run has steps. Empty if there is no level.
    answer : str
        "chosen", "no such level" (each level is guaranteed to miss a goal, or lies beyond one that is), or "not decided".
    more : float
        Number of further originals that an answer "not decided" needs (`LevelTest.more`); 0 for other answers.
    window : (float, float) or None
        With `lose`: smallest noise that is guaranteed to have lost, largest that is guaranteed to keep.
    keep, lose : LevelTest
        The tests; `lose` may be None.
    confidence : float
    axis : str
        The noise in words.
    by : {value: Choice}
        The choices for the parts of the originals, by the values of the coordinate `part`.
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


@dataclass(frozen=True)
class _Goal:
    """A reading of a run, as a variable and its indices along the dims of its own, and the goal for its mean."""

    name: str
    label: str
    where: dict[str, list[int]]
    how: Instructions
    value: float
    rises: bool
    lose: bool

    @property
    def sign(self) -> float:
        """1 if the mean has to be at least the goal, -1 if at most."""
        return -1.0 if self.rises != self.lose else 1.0


def choose(
    ds: xr.Dataset,
    reading: str,
    keep: float,
    *,
    lose: Mapping[str, float] | None = None,
    by: str | None = None,
    confidence: float = 0.95,
) -> Choice:
    """The largest measured noise whose mean reading is guaranteed to keep a goal.

    Let c(x) be the mean of the reading at noise x over the law of the originals. The measured levels x_1 < x_2 < .. above 0 are
    tested in this order by a one-sided bound of c(x_k), and the first one whose bound misses the goal ends the test. The
    probability that any accepted level misses the goal is at most 1 - confidence, without a correction for the number of levels,
    since an error needs that of the first level that misses (a fixed-sequence test, Maurer, Hothorn and Lehmacher 1995). "The
    largest level that passes" has no such guarantee (`benchmarks/choice.py`).

    Bounds are ends of the intervals of the study: for readings in [0, 1] those of `uturn.statistics.proportion`, so that n
    originals kept in all their trajectories give (1 - confidence)^(1/n): 59 of 59 are guaranteed .95, 58 of 58 are not. For other
    readings they are of Student's t. Missing readings (NaN) are left out, and originals without any do not count.

    A reading that falls from its start to chance, such as a similarity, is kept if its mean is at least the goal; one that rises,
    such as a distance, if it is at most the goal.

    Parameters
    ----------
    ds : Dataset of `uturn.run`
    reading : str
        Its name in the study, such as "same_class" or "similarity, network_layer = block1". The name of a variable suffices if it
        has one level; "first_layer" and "last_layer" are the ends of an ordered series of layers.
    keep : float
        The goal, strictly inside the bounds of the reading. Readings that are all 0 or 1 are shares, declared as such or not.
    lose : {reading: goal}, optional
        A reading that has to be lost: tested from large noise downwards. The noise chosen is then the upper end of the window
        between both; each end has the confidence stated, so both together at least 1 - 2 (1 - confidence).
    by : str, optional
        A coordinate of the items, such as "label": a choice for each of its values, each with the confidence stated. Items
        without a label (-1) are left out.
    confidence : float in (.5, 1)

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        For a run that is not finished, a reading that is unknown or ambiguous, and a goal out of bounds.

    Examples
    --------
    >>> import uturn as ut
    >>> run = ut.run(ut.Experiment.from_dict({
    ...     "items": 100,
    ...     "source": {"type": "rhm", "vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4},
    ...     "corruption": {"type": "epsilon", "noise": [0.1, 0.2, 0.3, 0.4, 0.5]},
    ...     "backward": {"type": "exact"},
    ...     "probes": [{"type": "tree_levels"}],
    ... }))
    >>> root = choose(run, "belief, tree_level = 4", keep=0.95)
    >>> root.noise, root.answer
    (0.4, 'chosen')
    """
    if checked_share("confidence", confidence) <= 0.5:
        raise ValueError(f"confidence = {confidence!r}: expected a number between .5 and 1")
    if lose is not None and (not isinstance(lose, Mapping) or len(lose) != 1):
        raise ValueError(f"lose = {shown(lose)}: expected one reading and its goal, such as {{'first_layer': 0.5}}")
    run = by_noise(finished_run(ds))
    axes = Axes(run)
    goals = [_goal(run, axes, *goal) for goal in ((reading, keep, False), *((*pair, True) for pair in (lose or {}).items()))]
    items_of = {} if by is None else _parts(run, by)
    rules = [rule for goal in goals for rule in (goal.name, goal.how.start, goal.how.chance) if isinstance(rule, str)]
    used = {name for rule in rules for name in rule.removeprefix("same:").split("=", 1)}
    run = run[[name for name in run.data_vars if name in used]]  # parts copy what they select, such as images
    by_part = {value: _choice(run.isel(item=items), axes, goals, confidence) for value, items in items_of.items()}
    return replace(_choice(run, axes, goals, confidence), by=by_part, part=by or "")


def originals_needed(truth: float, goal: float, confidence: float = 0.95, power: float = _POWER) -> float:
    """Number of originals with which a share is decided to be above (or below) a goal with probability `power`.

    The smallest n for which the one-sided bound of Clopper and Pearson passes the goal at the `1 - power` quantile of the number
    kept (normal approximation). `truth`: the true share. Infinite if the truth equals the goal, or if n exceeds ten million.

    Examples
    --------
    >>> [originals_needed(share, 0.95) for share in (1, 0.99, 0.98, 0.97)]
    [59.0, 133.0, 267.0, 653.0]
    """
    from scipy.special import betainc, ndtri

    p, g = (truth, goal) if truth >= goal else (1 - truth, 1 - goal)
    n = np.unique(np.geomspace(1, _MOST_ORIGINALS, 10_000).round())
    k = np.maximum(n * p - ndtri(power) * np.sqrt(n * p * (1 - p)), 1e-9)
    enough = betainc(k, n - k + 1, g) <= 1 - confidence
    return float(n[enough.argmax()]) if enough.any() else math.inf


# --- names -------------------------------------------------------------------------------------------------------------


def _goal(run: xr.Dataset, axes: Axes, reading: str, value: float, lose: bool) -> _Goal:
    """A goal, checked, with the direction of its reading."""
    name, label, where, how = named_reading(run, reading)
    if run[name].isin((0, 1)).where(run[name].notnull(), True).all():  # the mean of tosses is a share, declared or not
        how = how.model_copy(update={"bounds": (0.0, 1.0)})
    low, high = (end if bound is None else bound for end, bound in zip((-math.inf, math.inf), how.bounds, strict=True))
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low < value < high:
        raise ValueError(
            f"{'lose' if lose else 'keep'} = {shown(value)}: expected a number between {low:g} and {high:g} for {label}"
        )
    level = next(levels_of(run.isel(where), name, how, axes))
    return _Goal(name, label, where, how, float(value), _rises(level, axes), lose)


def _rises(level: Level, axes: Axes) -> bool:
    """Whether a reading rises with noise: from its start to chance, or else to its value at the largest noise."""
    means = level.curve[axes.noise > 0, 0]
    means = means[np.isfinite(means)] if np.isfinite(means).any() else np.zeros(1)
    start, end = (a if np.isfinite(a) else b for a, b in ((level.start, means[0]), (level.chance, means[-1])))
    low, high = level.instructions.bounds
    return bool(start == low or (start != high and end > start))


def _parts(run: xr.Dataset, by: str) -> dict[Any, np.ndarray]:
    """Indices of the items of each value of a coordinate."""
    dims = set(run[by].dims) if isinstance(by, str) and by in run.variables else set()
    if not {"item"} <= dims <= {"noise", "item"}:
        names = [str(name) for name, values in run.variables.items() if values.dims == ("item",) and name != "item"]
        raise ValueError(f"by = {shown(by)}: expected a coordinate of the items: {', '.join(names) or 'the run has none'}")
    values = run[by].isel(noise=0, missing_dims="ignore").values
    known = values[values >= 0] if values.dtype.kind in "if" else values
    return {value.item() if hasattr(value, "item") else value: np.flatnonzero(values == value) for value in np.unique(known)}


# --- tests -------------------------------------------------------------------------------------------------------------


def _choice(run: xr.Dataset, axes: Axes, goals: list[_Goal], confidence: float) -> Choice:
    """The choice for the originals of a run."""
    keep, *others = (_tested(run, axes, goal, confidence) for goal in goals)
    lose = others[0] if others else None
    low, high = (0.0 if lose is None else lose.noise), keep.noise
    passed = low <= high
    # A level without a guarantee may still get one, unless it is at or beyond one that misses a goal.
    least = lose.ended if lose is not None and lose.missed else 0.0
    most = keep.ended if keep.missed else math.inf
    is_open = not passed and bool(((keep.levels > least) & (keep.levels < most)).any())
    noise = high if passed else math.nan
    return Choice(
        noise,
        _on_axes(run, axes, noise),
        CHOSEN if passed else OPEN if is_open else NONE,
        float(np.max([test.more for test in (keep, *others)])) if is_open else 0.0,
        (low, high) if lose is not None and passed else None,
        keep,
        lose,
        confidence,
        axes.words["noise"],
    )


def _tested(run: xr.Dataset, axes: Axes, goal: _Goal, confidence: float) -> LevelTest:
    """The fixed-sequence test of a goal."""
    # The ends of these intervals are one-sided bounds of the confidence.
    level = next(levels_of(run.isel(goal.where), goal.name, goal.how, axes, 2 * confidence - 1))
    x, (mean, low, high) = axes.noise, level.curve.T
    bound, opposite = (low, high) if goal.sign > 0 else (high, low)
    passes = goal.sign * bound >= goal.sign * goal.value
    order = np.flatnonzero(x > 0)[:: -1 if goal.lose else 1]
    count = int(np.logical_and.accumulate(passes[order]).sum())  # of levels that pass before the first that does not
    end = int(order[count]) if count < len(order) else None
    missed = end is not None and bool(goal.sign * opposite[end] < goal.sign * goal.value)
    values = run[goal.name].isel(goal.where)
    read = values.notnull().any([dim for dim in values.dims if dim not in ("noise", "item")]).transpose("noise", "item").values
    read = np.pad(read, ((len(x) - len(read), 0), (0, 0)))  # noise 0 may have been added
    more = 0.0
    if end is not None and not missed:
        more = _more(level, goal, end, independent_groups(values)[read[end]], confidence)
    finite, sign = np.isfinite(x), -1.0 if goal.rises else 1.0
    crosses = place(level.replicates, lambda c: crossing(x[finite], sign * c[finite], sign * goal.value, first=True), x[finite])
    positive = x > 0
    return LevelTest(
        words=f"{goal.label} {'>=' if goal.sign > 0 else '<='} {goal.value:g}",
        noise=float(x[order[count - 1]]) if count else math.nan,
        levels=x[positive],
        mean=mean[positive],
        bound=bound[positive],
        originals=read[positive].sum(1),
        ended=math.nan if end is None else float(x[end]),
        missed=missed,
        more=more,
        crossing=dict(zip(axes.names, (Estimate(*row) for row in axes.at(crosses).tolist()), strict=True)),
    )


def _more(level: Level, goal: _Goal, k: int, group: np.ndarray, confidence: float) -> float:
    """Number of further originals that decide level k if its mean is the truth; `group`: that of each original read there."""
    from scipy.special import ndtri

    (mean, low, high), originals = level.curve[k], len(group)
    if not originals or mean == goal.value:
        return math.inf if originals else math.nan
    if level.instructions.is_share:
        # The effective number of tosses: U-turns of one original count as several as far as they are independent.
        variance, tosses = float(level.replicates.error(lambda curve: curve[k])) ** 2, float(len(np.unique(group)))
        tosses = max(tosses, mean * (1 - mean) / variance) if variance > 0 else tosses
        needed = originals_needed(mean, goal.value, confidence) * originals / tosses
    else:  # the bound is z errors from the mean, and has to be so at the quantile of the power
        z, half = ndtri(confidence), max(mean - low, high - mean)
        needed = originals * (half * (1 + ndtri(_POWER) / z) / (mean - goal.value)) ** 2
    return float(np.maximum(np.ceil(needed) - originals, 1.0))


def _on_axes(run: xr.Dataset, axes: Axes, noise: float) -> dict[str, float]:
    """A measured noise on all axes, with the timestep and the strength of a diffusion chain; empty for NaN."""
    if math.isnan(noise):
        return {}
    at = {name: float(values[axes.noise == noise][0]) for name, values in axes.values.items()}
    level = run.isel(noise=int(np.flatnonzero(run.noise.values == noise)[0]))
    if "timestep" in level.coords:
        at["timestep"] = float(level.timestep)
    if {"step", "t_over_T"} <= set(level.coords) and 0 < level.t_over_T <= 1 <= level.step < math.inf:
        steps = round(float(level.step / level.t_over_T))
        for name, counts_down in zip(_STRENGTHS, (False, True), strict=True):
            at[name] = strength_of(int(level.step), steps, counts_down)
    return at


# --- text --------------------------------------------------------------------------------------------------------------


def _lines(choice: Choice) -> Iterator[str]:
    """The tests, the answer for all originals and for each part, and what it does not say."""
    x = choice.axis
    for test, step in ((choice.keep, 1), (choice.lose, -1)):
        if test is None:
            continue
        yield f"{test.words}, one-sided bounds of confidence {choice.confidence:g}"
        rows = list(zip(test.levels, test.mean, test.bound, test.originals, strict=True))
        for level, mean, bound, originals in rows[::step]:
            end = f"; {_end(test)}" if level == test.ended else ""
            yield f"  {x} = {level:.3g}: mean {mean:.3g}, bound {bound:.3g}, {_counted(originals)}{end}"
            if end:
                break
        if np.isfinite(test.crossing["noise"].value):
            yield f"  an estimate, not guaranteed: the curve crosses the goal at {x} = {test.crossing['noise']}"
    yield f"{_answer(choice)}{_places(choice.at)}"
    for value, part in choice.by.items():
        yield f"  {choice.part} = {value}, {_counted(part.keep.originals.max())}: {_answer(part)}"
    yield NOT_MEASURED


def _end(test: LevelTest) -> str:
    """Why a test ended."""
    if test.missed:
        return "missed"
    if not np.isfinite(test.more):
        return f"{OPEN}: {'no readings' if np.isnan(test.more) else 'the mean is at the goal'}"
    # Two digits, since the true mean is not known.
    more = round(test.more, 2 - len(f"{test.more:.0f}")) if test.more >= 100 else test.more
    return f"{OPEN}: about {_counted(more, ' more')}, if this mean is the truth"


def _counted(number: float, kind: str = "") -> str:
    return f"{number:.0f}{kind} original{'' if number == 1 else 's'}"


def _answer(choice: Choice) -> str:
    """The answer in one line."""
    keep, lose = choice.keep, choice.lose
    if choice.answer == CHOSEN:
        window = "" if choice.window is None else ", window from {:.4g} to {:.4g}".format(*choice.window)
        return f"{CHOSEN}: {choice.axis} = {choice.noise:.4g}{window}"
    if choice.answer == OPEN:
        tests = [test for test in (keep, lose) if test is not None and not test.missed]
        test = max(tests, key=lambda test: test.more)
        return f"{test.words} at {choice.axis} = {test.ended:.3g} is {_end(test)}"
    if lose is None:
        return f"{NONE}: missed already at {choice.axis} = {keep.ended:.3g}"
    kept, lost = (
        "nowhere" if np.isnan(test.noise) else f"{word} {test.noise:.3g}" for test, word in ((keep, "up to"), (lose, "from"))
    )
    return f"{NONE}: {keep.words} {kept} and {lose.words} {lost}"


def _places(at: dict[str, float]) -> str:
    """A level on all further axes, in parentheses."""
    # Both roundings of the strength are often the same.
    places = {axis: f"{value:.4g}" for axis, value in at.items() if axis != "noise"}
    if places.get("strength") == places.get(_STRENGTHS[1]):
        places.pop(_STRENGTHS[1], None)
    return f" ({', '.join(map(' '.join, places.items()))})" if places else ""
