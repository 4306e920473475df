"""Measures until a place on a curve, such as t*, is known to a width.

The curve between start and chance is fitted by P(x) = chance + (start - chance) L(x), L(x) = 1 / (1 + exp((x - a) / w)), at the
levels around the place. The fit finds the place and does not decide, since a curve with a shoulder is no logistic. The interval
ends at two levels whose readings are, each by itself, above and below the height of the place (`benchmarks/locate.py`).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit, ndtri, stdtrit

from uturn.core.checks import TasksFailed, expect, shown
from uturn.core.experiment import Experiment
from uturn.core.progress import duration
from uturn.engine.run import run
from uturn.measures.statistics import WITHIN, Estimate, checked_share, independent_groups
from uturn.store.places import is_empty, is_store, place_of
from uturn.store.record import MemoryStore, Store
from uturn.store.resume import attributes_of, layout_of
from uturn.studies.analysis import by_noise, named_reading, reading_of
from uturn.studies.axes import Axes, axis_words

PILOT = "pilot"  # name of the first stage
_CHUNK = 8  # originals in a task; numbers of originals are multiples, so that no task is measured twice
_PILOT_ITEMS, _MOST_PILOT_ITEMS = 16, 48
_FIRST_ITEMS = 24  # at the levels around the place before the first look at the width
_MOST_MOVES = 10  # to other levels; most runs need one
_NARROWED = 1.75  # interval over the wanted width at which two levels have served; calls hardly depend on it from 1.4 to 2.2
_KNOWN = 0.4  # error of the place over the reach up to which one level can be at the place
_OFF_CENTRE, _ONE_OFF = 0.5, 0.45  # distance of the place from the middle of two levels, or from one, that moves them
_STEEP = 4.0  # widths w of the logistic between two levels from which the curve between them counts as unknown
_ENOUGH = 1.05  # interval of the fit over the wanted width at which the ends are measured, since they narrow it too
_CHECK, _FEW, _AGAIN = 0.9, 6.0, 0.07  # standard errors from the height: these + 6 / sqrt(originals) + .07 for each test
_MARGIN = 0.3  # standard errors beyond those wanted for which originals are measured, so that most tests succeed
_MOST_TESTS = 60  # of ends; then the shape of the curve is not settled
_MOST_ITEMS = 10_000
_UNIT = 1e-3  # distance of levels, in units of the largest
_ROUNDING = 1e-9


class Data(NamedTuple):
    """Readings of originals."""

    noise: np.ndarray  # (levels,)
    values: np.ndarray  # (items, levels), NaN where missing
    groups: np.ndarray  # (items,)
    start: float
    chance: float  # NaN if it is unknown; the last level is then the largest noise


class Fit(NamedTuple):
    """A fitted place, the width w of the logistic, the standard error of the place, and its degrees of freedom."""

    place: float
    scale: float
    error: float
    freedom: float

    @property
    def width(self) -> float:
        return 2 * float(stdtrit(self.freedom, 0.975)) * self.error

    def away(self, near: Sequence[float]) -> float:
        return abs(self.place - (near[0] + near[-1]) / 2)


@dataclass(frozen=True)
class Location:
    """A place on the curve of a reading.

    `place`: the noise at which `reading` has gone `share` of the way from its start to chance, with its interval; NaN if there is
    none (`remark` says why). `axes`: it on all axes of the run. `wanted`, `width`: the wanted and the reached width; `reached`:
    whether the readings at the ends of an interval so narrow agree with it. `levels`: the last ones, which are the ends if the
    width is reached; `items`: originals at the one that has most. `calls`: sum of the noise of all U-turns over the largest
    noise. `runs`: datasets in the order in which they were made, "pilot", then "around-0.4-0.6", ..; the store of a run is
    `name.zarr` in the folder.
    """

    share: float
    place: Estimate
    wanted: float
    reached: bool
    items: int
    levels: list[float]
    calls: float
    remark: str
    reading: str = ""
    axes: dict[str, Estimate] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> float:
        return self.place.high - self.place.low

    def numbers(self) -> dict[str, Any]:
        """The location as plain data, the content of `located.json`."""
        names = ("reading", "share", "width", "wanted", "reached", "items", "levels", "calls", "remark", "axes")
        return {name: getattr(self, name) for name in names} | {"unit": axis_words(self.runs[PILOT])}

    def lines(self) -> list[str]:
        where = "half of the way" if self.share == 0.5 else f"{self.share:g} of the way"
        lines = []
        if math.isfinite(self.place.value):
            axes = ", ".join(f"{name} {value.value:.4g}" for name, value in self.axes.items() if name != "noise")
            lines.append(f"{self.reading}, {where} from its start to chance: noise {self.place!r}{f' ({axes})' if axes else ''}")
            at = ", ".join(f"{level:.4g}" for level in self.levels)
            lines.append(f"width {self.width:.3g}, wanted {self.wanted:g}; up to {self.items} originals at noise {at}")
        return lines + ([self.remark] if self.remark else [])


Measure = Callable[[str, Sequence[float], int], Data]


def locate(
    experiment: Experiment,
    reading: str,
    width: float,
    store: str | Path | None = None,
    *,
    share: float = 0.5,
    any_shape: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Location:
    """Measure until the interval of a place, such as t*, is narrower than a width.

    A pilot of 16 originals at four levels of the experiment finds the place roughly. Then originals are measured around and at
    the place, until the interval of a logistic fit is about as narrow as the width, and at last at both ends of the interval that
    is to be reported (`search`). docs/precision.md has what it costs, and how often the interval contains the place.

    `experiment`: its `noise` are the levels for the pilot; `items` and `chunk` are not used, and originals are at most 10,000.
    `reading`: as `uturn.study` names it, such as "same_class" or "unchanged, tree_level = 3". It has a start. `width`: full width
    of the interval, in the unit of the noise. `store`: folder or URL for the stores of the runs, by default a temporary folder.
    The same call resumes an interrupted one, with the same numbers; another width, reading or share uses the same pilot, and
    other stores if it leads to the same levels. `share`: of the way; .5 is the half-life of the reading, for a class t*.
    `any_shape`: decide by the readings at the two ends alone, each tested with a false-alarm rate that falls with the number of
    tests and sums to .05: the interval then holds for every monotone curve. `tell`: called with a line after each batch, the
    width reached and the expected rest. `options`: those of `uturn.run`, workers, progress, cluster, accept_changes, ..

    Examples
    --------
    >>> experiment = Experiment.from_dict({
    ...     "items": 1,
    ...     "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 4, "branching": 2, "depth": 3},
    ...     "corruption": {"type": "epsilon", "noise": [0.2, 0.4, 0.6, 0.8, 1.0]},
    ...     "backward": {"type": "exact"},
    ...     "probes": [{"type": "tree_levels"}],
    ... })
    >>> found = locate(experiment, "belief, tree_level = 3", width=0.1)
    >>> found.reached, found.place.low < found.place.value < found.place.high, found.width < 0.1
    (True, True, True)
    """
    grid, share = _checked(experiment, reading, width), checked_share("share", share)
    source = experiment.parts.source
    most = min(source.count() if hasattr(source, "count") else _MOST_ITEMS, _MOST_ITEMS)
    with tempfile.TemporaryDirectory(prefix="uturn-") if store is None else nullcontext(store) as folder:
        if is_store(place_of("store", folder)):
            raise ValueError(f"store = {shown(str(store))}: it is a store; expected a folder for the stores of the search")
        runs = _Runs(experiment, reading, folder, options)
        location = search(runs.measure, grid, width, share=share, most=most, any_shape=any_shape, tell=tell, unit=runs.unit)
    datasets, axes = runs.datasets, {}
    if math.isfinite(location.place.value):
        of = Axes(_joined([by_noise(ds) for ds in datasets.values()]))
        axes = {name: Estimate(*row) for name, row in zip(of.names, of.at(np.array(location.place)).tolist(), strict=True)}
    return replace(location, reading=reading, axes=axes, runs=datasets)


def _checked(experiment: Experiment, reading: str, width: float) -> list[float]:
    """The levels for the pilot; ValueError unless the width is one and a run will have this reading, with a start."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise ValueError(f"width = {shown(width)}: expected the full width of the interval, a number above 0")
    first = sized(experiment, experiment.noise, 1)
    how = named_reading(MemoryStore(*layout_of(first), attributes_of(first, {})).dataset(), reading)[-1]
    if how.start is None:
        raise ValueError(f"reading = {reading!r}: it has no start from which it changes; choose another reading")
    grid = sorted(level for level in experiment.noise if 0 < level < math.inf)
    is_measured = not experiment.parts.backward.by_items
    expect(is_measured, "until: unit of the noise", experiment.parts.corruption.unit, "one in which levels are measured singly")
    expect(len(grid) > 1, "noise", experiment.noise, "at least two levels above 0 for the pilot")
    return grid


def _joined(runs: list[xr.Dataset]) -> xr.Dataset:
    """The coordinates of the noise levels of several runs, in increasing order."""
    coords = [ds.coords.to_dataset() for ds in runs]
    by_level = [ds.drop_vars([name for name in ds.coords if ds[name].dims != ("noise",)]) for ds in coords]
    joined = xr.concat(by_level, "noise", combine_attrs="override")
    joined.noise.attrs.update(runs[0].noise.attrs)
    return joined.isel(noise=np.unique(joined.noise.values, return_index=True)[1])


@dataclass
class _Runs:
    experiment: Experiment
    reading: str
    folder: str | Path
    options: dict[str, Any]
    datasets: dict[str, xr.Dataset] = field(default_factory=dict)

    def measure(self, name: str, levels: Sequence[float], items: int) -> Data:
        """Readings of the first originals at some levels. What is stored beyond them by an earlier run is left out."""
        ds = self.datasets.get(name)
        if ds is None or ds.sizes["item"] < items or not set(levels) <= set(ds.noise.values.tolist()):
            ds = self.datasets[name] = self._run(f"{str(self.folder).rstrip('/')}/{name}.zarr", levels, items)
        some = by_noise(ds.isel(noise=np.isin(ds.noise.values, levels), item=slice(0, items)))
        values, start, chance = reading_of(some, self.reading)
        if math.isnan(start):
            raise ValueError(f"reading = {self.reading!r}: its start is not known; choose another reading")
        if start == chance:
            raise ValueError(f"reading = {self.reading!r}: its chance equals its start, {start:g}; choose another reading")
        means = values.mean([dim for dim in values.dims if dim in WITHIN[1:]]).transpose("item", "noise").values.astype(float)
        return Data(some.noise.values.astype(float), means, independent_groups(values), start, chance)

    def _run(self, store: str, levels: Sequence[float], items: int) -> xr.Dataset:
        """A run of these levels and originals and those in the store; again if another process extends it in the meantime."""
        place = place_of("store", store)

        def wanted() -> Experiment:
            known = None if is_empty(place) else Store.open(place)
            kept, most = ([], 0) if known is None else (known.noise, known.num_items)
            return sized(self.experiment, {*levels, *kept}, max(items, most))

        while True:
            asked = wanted()
            try:
                ds = run(asked, store, **self.options).load()
            except (ValueError, TasksFailed):
                if wanted().to_dict() == asked.to_dict():
                    raise
            else:
                if wanted().to_dict() == asked.to_dict():  # else readings are perhaps of the unfinished larger store
                    return ds

    def unit(self) -> float:
        """Distance of neighbouring levels: a step of a diffusion model, otherwise a thousandth of the largest level."""
        ds = self.datasets[PILOT]
        if "step" in ds.coords and "t_over_T" in ds.coords:
            return float(ds.t_over_T.values.max() / ds.step.values.max())
        return _UNIT * max(level for level in self.experiment.noise if level < math.inf)


def sized(experiment: Experiment, levels: Any, items: int) -> Experiment:
    """The experiment with other levels and at least so many items; grammars grow in proportion to items."""
    spec = experiment.to_dict()
    source = dict(spec["source"])
    grammars = source.get("grammars", 1)
    each = math.lcm(_CHUNK, experiment.items // grammars) if isinstance(grammars, int) and grammars > 1 else 1
    items = -(-items // each) * each
    if each > 1:
        source["grammars"] = items // (experiment.items // grammars)
    noise = sorted(map(float, levels))
    return Experiment.from_dict(
        {**spec, "items": items, "chunk": _CHUNK, "source": source, "corruption": {**spec["corruption"], "noise": noise}}
    )


def forecast(
    experiment: Experiment,
    reading: str,
    width: float,
    store: str | Path | None = None,
    *,
    share: float = 0.5,
    any_shape: bool = False,
) -> tuple[str, list[Experiment]]:
    """What `locate` will measure: the assumptions in words, and the experiments of the pilot, of two levels, one level, two ends.

    Without a pilot in the store, readings 0 or 1 are assumed that fall by a logistic at .55 of the largest noise, with w = .08 of
    it. The number of originals is

        n = 1.4 (2 · 1.96 / width)² w² / sum of L (1 - L) over the levels,

    for two levels until the interval is 1.75 times the width, and a part of it for one until it is 1.05 times the width. 1.4
    allows for readings of an original that agree, for levels off the centre, and for a slope that is not known.
    """
    grid, share = _checked(experiment, reading, width), checked_share("share", share)
    largest = max(grid)
    place, scale, step, anchor = 0.55 * largest, 0.08 * largest, _UNIT * largest, 0.0
    pilot = sized(experiment, _pilot_levels(grid), _PILOT_ITEMS)
    known = None if store is None else place_of("store", f"{str(store).rstrip('/')}/pilot.zarr")
    if known is None or is_empty(known):
        words = f"assumed: {reading} is 0 or 1, and falls from three quarters to one quarter of the way between noise "
        words += f"{place - 1.1 * scale:.3g} and {place + 1.1 * scale:.3g}; a pilot in --store replaces this"
    else:
        runs = _Runs(experiment, reading, str(store), {})
        ds = runs.datasets[PILOT] = Store.open(known).dataset()
        data = runs.measure(PILOT, ds.noise.values.tolist(), ds.sizes["item"])
        pilot = sized(experiment, ds.noise.values, ds.sizes["item"])
        place, scale, *_ = _fitted(data, share, data.noise[data.noise > 0].tolist())
        if place >= largest:
            raise ValueError(f"until = {width:g}: in the pilot in {store}, {reading} has no place up to noise {largest:g}")
        words, step = f"from the pilot in {store}: noise {place:.3g}, width w of the logistic {scale:.3g}", runs.unit()
        anchor = largest if math.isnan(data.chance) else 0.0
    reach = max(2 * width, 0.5 * scale, step)
    experiments, source, levels = [pilot], experiment.parts.source, _Levels(step, largest)
    for near, wanted, left in (
        (levels.around(place, min(reach, 0.1 * largest)), _NARROWED * width, 1.0),
        ([levels.nearest(place)], _ENOUGH * width, 1 - (_ENOUGH / _NARROWED) ** 2),
        (levels.around(place, 0.49 * width), _ENOUGH * width, 6.0 if any_shape else 2.0),
    ):
        L = [1 / (1 + math.exp((level - place) / scale)) for level in near]
        count = 1.4 * left * (2 * 1.96 / wanted) ** 2 * scale**2 / sum(each * (1 - each) for each in L)
        items = max(_FIRST_ITEMS, _chunks(count))
        if hasattr(source, "count") and items > source.count():
            words += f"; about {items:,} originals would be needed, and the source has {source.count():,}"
            items = source.count()
        experiments.append(sized(experiment, {*near, *([anchor] if anchor else [])}, items))
    return words, experiments


def _pilot_levels(grid: Sequence[float]) -> list[float]:
    """Four evenly chosen levels below the largest one, if there are so many."""
    return sorted({grid[max(0, round(len(grid) * k / 5) - 1)] for k in range(1, 5)})


# --- the search -----------------------------------------------------------------------------------------------------------


class _Levels(NamedTuple):
    """The levels that can be measured: multiples of a step, from one step to the largest."""

    step: float
    largest: float

    def nearest(self, level: float) -> float:
        number = max(1, round(level / self.step))
        return self.largest if number * self.step > self.largest - self.step / 2 else float(f"{number * self.step:.12g}")

    def around(self, place: float, reach: float) -> list[float]:
        """The two levels at this distance from a place."""
        return sorted({self.nearest(place + sign * reach) for sign in (-1, 1)})


class Stage(NamedTuple):
    """The levels to measure, two around the place or one at it."""

    near: list[float]
    data: Data  # of the stages before
    reach: float  # distance of the two levels from the place
    beside: list[float]  # levels of the stages before that are not much farther from it, whose readings are used
    known: float  # 1 / interval², of the stages before, if these have enclosed the place


def search(measure: Measure, grid: Sequence[float], width: float, **options: Any) -> Location:
    """The search of `locate` with any function `measure(stage, levels, items)`; its decisions depend on the readings alone.

    1. The pilot encloses the place between two levels, and chooses two levels around it (`pilot`).
    2. Originals are measured at these two levels, then at one at the place, until the interval of the fit is about as narrow as
       wanted (`narrowed`).
    3. Originals are measured at the two ends of the interval that is to be reported (`tested`). If both readings are on their
       sides of the height, the search ends. Otherwise it goes on there, or at ends around the place that the levels near the
       ends show; if these do not show it, the search goes back to 2 with levels between which all readings put the place.

    `options`: further fields of `_Search`.
    """
    of = _Search(measure, grid, width, **options)
    share, most = of.share, of.most
    stage = of.pilot()
    if isinstance(stage, str):
        return of.location(math.nan, math.nan, math.nan, False, 0, [], stage)
    fit, items = None, 0
    for tests in range(_MOST_TESTS):
        if fit is None:
            stage, fit, items, narrow = of.narrowed(stage)
            if not narrow:
                break
        ends, passed, stage = of.tested(fit, stage, tests)
        low, high = ends
        items = max(_count(stage.data, end) for end in ends)
        near = [level for level in stage.data.noise.tolist() if low - width / 2 <= level <= high + width / 2]
        fit = _fitted(stage.data, share, near)._replace(scale=fit.scale)
        if passed:
            if high - low > width * (1 + _ROUNDING):  # levels are coarse
                low, high = max(fit.place - 0.49 * width, 0.0), fit.place + 0.49 * width
            remark = f"the width was reached with the first {items} originals; a smaller one costs little more"
            remark = remark if items == _FIRST_ITEMS else ""
            return of.location(float(np.clip(fit.place, low, high)), low, high, True, items, ends, remark)
        if items >= most:
            break
        if fit.error > width / 2 or abs(fit.place - (low + high) / 2) > width:
            stage, fit = of.enclosed(stage.data), None
    fit = fit or _fitted(stage.data, share, [*stage.near, *stage.beside])
    # The interval of the fit alone would be believed; the readings are clearly above and below only at these two levels.
    low, high = of.sides(stage.data, 3.0)
    known = fit.width < 2 * (high - low)
    at, half = (float(np.clip(fit.place, low, high)), fit.width / 2) if known else ((low + high) / 2, 0.0)
    remark = f"the width {width:g} is not reached" + (f" with {items} originals, which are all" if items >= most else "")
    if items < most or not known:
        remark += f": the shape of the curve between {low:g} and {high:g} is not settled"
    elif fit.width > width:
        remark += f"; it needs about {items * (fit.width / width) ** 2:,.0f}"
    low, high = max(0.0, min(at - half, low)), min(of.largest, max(at + half, high))
    return of.location(at, low, high, False, items, stage.near, remark)


@dataclass
class _Search:
    """The steps of a search, and what it has cost; `anchor` is the largest level, if chance is not known."""

    measure: Measure
    grid: Sequence[float]
    width: float
    share: float = 0.5
    most: int = _MOST_ITEMS
    any_shape: bool = False
    unit: Callable[[], float] = lambda: _UNIT
    tell: Callable[[str], None] = lambda text: None
    anchor: list[float] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        return max(self.grid)

    @cached_property
    def levels(self) -> _Levels:
        """The levels that can be measured, which the first run tells."""
        return _Levels(self.unit(), self.largest)

    def look(self, name: str, levels: Sequence[float], items: int) -> Data:
        """The readings of a stage, with a count of its calls."""
        levels = sorted({*levels, *self.anchor})
        self.items[name] = items = max(items, self.items.get(name, 0))  # a level may serve again
        data = self.measure(name, levels, items)
        if math.isnan(data.chance) and not self.anchor:
            self.anchor = [self.largest]
            return self.look(name, levels, items)
        self.costs[name] = len(data.values) * sum(levels) / self.largest
        return data

    def more(self, near: Sequence[float], items: int, data: Data) -> Data:
        """The data with readings of originals at these levels; the store is named after them."""
        return _together(self.look(f"around-{'-'.join(f'{level:g}' for level in near)}", near, items), data)

    def location(
        self, place: float, low: float, high: float, reached: bool, items: int, levels: list[float], remark: str
    ) -> Location:
        calls = sum(self.costs.values())
        return Location(self.share, Estimate(place, low, high), self.width, reached, items, levels, calls, remark)

    def stage(self, near: list[float], data: Data, reach: float, known: float = 0.0) -> Stage:
        middle = (near[0] + near[-1]) / 2
        beside = [level for level in data.noise.tolist() if abs(level - middle) <= 1.5 * reach + self.levels.step / 2]
        return Stage(near, data, reach, beside, known)

    def around(self, place: float, gap: float, scale: float, data: Data) -> Stage:
        # As far apart as the two that enclose the place, which is not known better. Nearer for a small width, since readings at
        # far levels bend the place if the curve is not logistic.
        reach = max(min(gap / 2, max(2 * self.width, scale / 2)), self.levels.step)
        return self.stage(self.levels.around(place, reach), data, reach)

    def sides(self, data: Data, least: float) -> tuple[float, float]:
        """The largest level above the height of the place, and the smallest below it, by at least so many standard errors."""
        heights = _heights(data, self.share)
        levels = np.array(sorted(heights))
        distance, error = np.array([heights[level] for level in levels.tolist()]).T
        # The curve falls, so readings of neighbouring levels that rise are pooled.
        pooled = isotonic_regression(distance * error, weights=error**-2, increasing=False)
        t = pooled.x * np.sqrt(np.repeat(pooled.weights, np.diff(pooled.blocks)))
        return float(max(levels[t >= least], default=0.0)), float(min(levels[t <= -least], default=self.largest))

    def pilot(self) -> Stage | str:
        """Levels until the place lies between two that are near enough to see the fall; then two around it, or why not."""
        levels, items, share = _pilot_levels(self.grid), min(_PILOT_ITEMS, self.most), self.share
        while True:
            data = self.look(PILOT, levels, items)
            fit = _fitted(data, share, levels)
            if fit.place >= levels[-1]:
                if levels[-1] < self.largest:
                    levels = [*levels, next(level for level in sorted(self.grid) if level > levels[-1])]
                elif items < min(_MOST_PILOT_ITEMS, self.most):
                    items = min(_MOST_PILOT_ITEMS, self.most)
                else:
                    at_end = data.values[:, -1]
                    gone = (data.start - np.nanmean(at_end)) / ((data.start - _chance(data)) or 1.0)
                    return (
                        f"no place: at the largest noise, {self.largest:g}, the reading has gone {gone:.2g} of the way from its "
                        f"start to chance ({len(at_end)} originals)"
                    )
                continue
            low = max([level for level in levels if level < fit.place], default=0.0)
            high = min(level for level in levels if level >= fit.place)
            gap = high - low
            if gap > max(_STEEP * fit.scale, self.width, 4 * self.levels.step):
                middle = self.levels.nearest(min(max(fit.place, low + 0.25 * gap), high - 0.25 * gap))
                if middle not in levels:
                    levels = sorted([*levels, middle])
                    continue
            nearby = _fitted(data, share, [low, high]) if low > 0 else fit
            if low < nearby.place < high:  # farther levels bend the place if the curve is not logistic
                fit = nearby
            break
        if fit.place <= 0:
            return f"no place: the reading has fallen so far below the smallest noise, {levels[0]:g}; add smaller levels"
        stage = self.around(fit.place, gap, fit.scale, data)
        if len(stage.near) < 2:
            return f"no levels around noise {fit.place:.3g}: the model has steps of {self.levels.step:.3g}; take more steps"
        self.tell(
            f"pilot: noise {fit.place:.3g} with {items} originals at {len(levels)} levels; "
            f"next are {_FIRST_ITEMS} originals at noise {stage.near[0]:g} and {stage.near[1]:g}"
        )
        return stage

    def enclosed(self, data: Data) -> Stage:
        """Two levels around the place where the readings of all levels put it."""
        low, high = self.sides(data, 1.0)
        fit = _fitted(data, self.share, [level for level in data.noise.tolist() if low <= level <= high])
        gap = high - low
        return self.around(float(np.clip(fit.place, low + 0.1 * gap, high - 0.1 * gap)), gap, fit.scale, data)

    def narrowed(self, stage: Stage) -> tuple[Stage, Fit, int, bool]:
        """Measure originals around the place until its interval is about as narrow as wanted; the last value: whether it is."""
        items, moves, began, width = min(_FIRST_ITEMS, self.most), 0, time.monotonic(), self.width
        while True:
            near = stage.near
            data = self.more(near, items, stage.data)
            levels = sorted({*near, *stage.beside})
            fit, narrowed = _fitted(data, self.share, levels), stage._replace(data=data)
            low, high = self.sides(data, 1.0)
            is_steep = high - low > _STEEP * fit.scale and not any(low < level < high for level in levels)
            if is_steep and {low, high} <= set(data.noise):  # only levels between them can tell more
                return narrowed, fit._replace(place=(low + high) / 2), items, True
            if fit.width < _ENOUGH * width and fit.away(near) <= 1.5 * stage.reach:
                return narrowed, fit, items, True
            if items >= self.most:
                return narrowed, fit, items, False
            better = self.better(fit, stage) if moves < _MOST_MOVES else near
            if better != near:
                moves += 1
                stage = self.stage(better, data, stage.reach, fit.width**-2 if len(better) == 1 else 0.0)
                continue
            aim = _NARROWED * width if len(near) > 1 and fit.width > _NARROWED * width else width
            gained = fit.width**-2 - stage.known  # information from the present levels: grows as the number of originals
            expected = items * (aim**-2 - stage.known) / gained if gained > 0 else math.inf
            more = min(expected, self.most) - items
            rest = max(0.0, more) * sum(near) / self.largest * (time.monotonic() - began) / sum(self.costs.values())
            at = ", ".join(f"{level:g}" for level in near)
            self.tell(
                f"noise {fit.place:.3g}, width {fit.width:.3g} with {items} originals at noise {at}; {aim:g} needs about "
                f"{max(more, _CHUNK):.0f} more, about {duration(rest)}"
            )
            items = min(_chunks(float(np.clip(expected, items + _CHUNK, 2 * items))), self.most)

    def better(self, fit: Fit, stage: Stage) -> list[float]:
        """The levels for the place as it is known now; the present ones if these are good enough."""
        # When two have given the slope, one level at the place costs least: two tell less than twice as much of an original.
        near, reach, away = stage.near, stage.reach, fit.away(stage.near)
        at = [self.levels.nearest(fit.place)]
        if len(near) == 1:
            return at if away > _ONE_OFF * reach else near
        if away > max(_OFF_CENTRE * reach, min(fit.error, reach)):  # not if the place is hardly known
            around = self.levels.around(float(np.clip(fit.place, near[0] - reach, near[-1] + reach)), reach)
            return around if len(around) == 2 else near
        return at if fit.width < _NARROWED * self.width and fit.error < _KNOWN * reach else near

    def tested(self, fit: Fit, stage: Stage, tests: int) -> tuple[list[float], bool, Stage]:
        """Choose the two ends around the place that cost least by the fit, measure where it is not yet certain, and test both.

        An end passes if the reading is on its side of the height by z standard errors. z is larger for few originals, which have
        chosen the ends, and rises with the number of tests. With `any_shape` the k-th test has the false-alarm rate
        .05 6/(pi k)², which sums to .05: of two ends around the truth of a monotone curve, only one can be on the wrong side.
        """
        data, share, z, few = stage.data, self.share, _CHECK + _AGAIN * tests, _FEW
        if self.any_shape:
            z, few = float(-ndtri(0.05 * 6 / (math.pi * (tests + 1)) ** 2)), 0.0
        column = data.values[:, np.abs(data.noise - fit.place).argmin()]
        column = column[np.isfinite(column)] / (data.start - _chance(data))
        # Of the readings at the level nearest to the place, as a share of the way; half originals are added.
        spread = math.sqrt((len(column) * np.var(column) + share * (1 - share)) / (len(column) + 1))

        def needed(end: float) -> float:
            """Originals n with predicted √n / spread = z + margin + few / √n."""
            predicted = abs(float(expit(logit(1 - share) - (end - fit.place) / fit.scale)) - (1 - share))
            rate, least = max(predicted, _ROUNDING) / spread, z + _MARGIN
            return max(((least + math.sqrt(least**2 + 4 * few * rate)) / (2 * rate)) ** 2, _FIRST_ITEMS)

        def cost(ends: list[float]) -> float:
            return sum(end * max(0.0, needed(end) - _count(data, end)) for end in ends)

        def reading(end: float, side: int) -> tuple[float, float]:
            """Standard errors by which the reading at an end is on its side, and those that are wanted."""
            return side * _heights(data, share, [end])[end][0], z + few / math.sqrt(_count(data, end))

        ends = min(self.choices(fit.place, data), key=cost)
        for end, side in zip(ends, (1, -1), strict=True):
            count = _count(data, end)
            if count < _FIRST_ITEMS or np.less(*reading(end, side)):
                items = needed(end) if not count else float(np.clip(needed(end), 1.25 * count, max(2 * count, 2 * _FIRST_ITEMS)))
                if (items := min(_chunks(items), self.most)) > count:
                    data = self.more([end], items, data)
        (low, above), (high, below) = (reading(end, side) for end, side in zip(ends, (1, -1), strict=True))
        counts = " and ".join(str(_count(data, end)) for end in ends)
        self.tell(
            f"noise {fit.place:.3g}; at noise {ends[0]:g} and {ends[1]:g} with {counts} originals the reading is "
            f"{low:+.1f} and {-high:+.1f} standard errors from the height of the place; {above:.1f} and {-below:.1f} are wanted"
        )
        return ends, low >= above and high >= below, stage._replace(data=data, near=ends)

    def choices(self, place: float, data: Data) -> list[list[float]]:
        """Pairs of ends, a little nearer than the width, that contain a place: centred on it, or one of them measured already."""
        step, nearest = self.levels.step, self.levels.nearest
        centred = self.levels.around(place, 0.49 * self.width)
        if len(centred) < 2:
            return [[nearest(step * end) for end in (math.floor(place / step), math.ceil(place / step))]]
        span, measured = centred[1] - centred[0], data.noise.tolist()
        pairs = [[level, level + span] for level in measured] + [[level - span, level] for level in measured]
        rounded = [[nearest(end) for end in pair] for pair in pairs]
        return [centred, *(pair for pair in rounded if pair[0] < place < pair[1] <= pair[0] + span + _ROUNDING)]


def _count(data: Data, level: float) -> int:
    """Originals with a reading at a level."""
    return int(np.isfinite(data.values[:, data.noise == level]).sum())


def _heights(data: Data, share: float, levels: Sequence[float] | None = None) -> dict[float, tuple[float, float]]:
    """How far the readings of each level are above the height of the place in standard errors, and the error of this share.

    Half a kept and half a lost original are added, so that equal readings do not count as known without error.
    """
    chance = data.values[:, -1:] if math.isnan(data.chance) else data.chance
    above = (data.values - (1 - share) * data.start - share * chance) / (data.start - _chance(data))
    counts, heights = np.isfinite(above).sum(axis=0), {}
    for level, column in zip(data.noise.tolist(), above.T, strict=True):
        there = np.isfinite(column)
        if not (n := there.sum()) or (levels is not None and level not in levels):
            continue
        mean, residual, added = column[there].mean(), column[there] - column[there].mean(), 0.0
        larger = [k for k in np.flatnonzero(counts > 1.3 * n) if np.isfinite(above[there, k]).all()]
        if larger:  # a control variate: regression removes what the same originals have in common
            other = above[:, min(larger, key=lambda k: abs(data.noise[k] - level))]
            same, whole = other[there], other[np.isfinite(other)]
            slope = np.mean(residual * (same - same.mean())) / max(np.var(same), 1e-12)
            mean -= slope * (same.mean() - whole.mean())
            residual = residual - slope * (same - same.mean())
            added = slope**2 * np.var(whole, ddof=1) / len(whole)
        mean = (mean * n + share - 0.5) / (n + 1)
        groups = np.unique(data.groups[: len(column)][there], return_inverse=True)[1]
        sums, G = np.bincount(groups, residual), groups.max() + 1
        variance = (sums**2).sum() * G / max(G - 1, 1) + 0.5 * ((share - mean) ** 2 + (1 - share + mean) ** 2)
        error = math.sqrt(variance / (n + 1) ** 2 + added)
        heights[level] = float(mean / error), error
    return heights


def _chunks(items: float) -> int:
    """The next number of originals that fills whole tasks."""
    return math.ceil(items / _CHUNK) * _CHUNK


def _together(refined: Data, pilot: Data) -> Data:
    only = ~np.isin(pilot.noise, refined.noise)
    noise = np.r_[refined.noise, pilot.noise[only]]
    values = np.full((max(len(refined.values), len(pilot.values)), len(noise)), np.nan)
    values[: len(refined.values), : len(refined.noise)] = refined.values
    values[: len(pilot.values), len(refined.noise) :] = pilot.values[:, only]
    groups = refined.groups if len(refined.values) >= len(pilot.values) else pilot.groups
    order = np.argsort(noise)
    return Data(noise[order], values[:, order], groups, refined.start, refined.chance)


def _chance(data: Data) -> float:
    return float(np.nanmean(data.values[:, -1])) if math.isnan(data.chance) else data.chance


def _fitted(data: Data, share: float, levels: Sequence[float]) -> Fit:
    """The logistic fitted at some levels (`_fit`), with the error of an estimated chance."""
    chosen = np.isin(np.round(data.noise, 9), np.round(levels, 9))
    noise, values, chance = data.noise[chosen], data.values[:, chosen], _chance(data)
    if chance == data.start:  # not known, and nothing has changed at the largest noise
        return Fit(math.inf, math.inf, math.inf, 1.0)

    def fit(chance: float, influence: np.ndarray | None = None) -> Fit:
        floor = min(max(chance / data.start, 0.0), 0.9) if data.start == 1 else 0.0
        return _fit(noise, (values - chance) / (data.start - chance), floor, data.groups, share, influence)

    if not math.isnan(data.chance):
        return fit(chance)
    ends = data.values[:, -1]
    change = 1e-3 * (data.start - chance)
    slope = (fit(chance + change).place - fit(chance - change).place) / (2 * change)
    there = np.isfinite(ends)
    return fit(chance, np.where(there, ends - chance, 0.0) * slope / there.sum())


def _fit(
    noise: np.ndarray, left: np.ndarray, floor: float, groups: np.ndarray, share: float, influence: np.ndarray | None = None
) -> Fit:
    """Fit the mean of `left` (items, levels), which falls from 1 to 0, by the logistic L(x) = 1 / (1 + exp(-(b0 - b1 x))).

    Scores are those of tosses with the probability floor + (1 - floor) L, so that levels near chance count less; the error is
    the sandwich over groups. Half a kept and half a lost original are added at each level. `influence` (items,): that of each
    original on the place through an estimated chance.
    """
    there = np.isfinite(left)
    counts = there.sum(axis=0) + 1.0
    mean = (np.where(there, left, 0.0).sum(axis=0) + 0.5) / counts
    span = float(noise.max())
    design = np.stack([np.ones_like(noise), -noise / span], axis=1)

    def at(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """L, the weight of a reading at each level, and the information on b."""
        L = expit(design @ b)
        weight = L * (1 - floor) / (floor + (1 - floor) * L)
        return L, weight, design.T @ ((counts * weight * L * (1 - L))[:, None] * design) + 1e-6 * np.eye(2)

    b = np.array([6.0 * np.average(noise, weights=np.clip(mean * (1 - mean), 0.01, None)) / span, 6.0])
    for _ in range(60):
        L, weight, information = at(b)
        change = np.linalg.solve(information, design.T @ (counts * weight * (mean - L)))
        change *= min(1.0, 5.0 / max(np.abs(change).max(), 1e-9))
        b = b + change
        b[1] = max(b[1], 0.25)  # a curve that does not fall has its place far beyond the levels
        if np.abs(change).max() < 1e-9:
            break
    L, weight, information = at(b)
    height = float(logit(1 - share))
    gradient = np.linalg.solve(information, np.array([1 / b[1], -(b[0] - height) / b[1] ** 2]))
    of_place = design @ gradient * weight  # change of the place with a reading at each level
    each = np.where(there, left - L, 0.0) @ of_place
    if influence is not None:
        each = each + influence[: len(each)] / span
    sums = np.bincount(groups[: len(each)], each)[np.unique(groups[: len(each)][there.any(axis=1)])]
    G = len(sums)
    added = 0.5 * (((1 - L) * of_place) ** 2 + (L * of_place) ** 2).sum()
    variance = (sums**2).sum() * G / max(G - 1, 1) + added
    return Fit(float(span * (b[0] - height) / b[1]), float(span / b[1]), span * math.sqrt(variance), max(G - 2.0, 1.0))
