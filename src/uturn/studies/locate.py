"""Measures until a place on a curve, such as t*, is known to a width (`search` has the rule)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.messages import shown
from uturn.core.progress import duration
from uturn.measures.estimates import Estimate, checked_share
from uturn.store.folders import checked_location, is_empty, is_run
from uturn.store.reading import dataset_of
from uturn.store.run_folder import RunFolder
from uturn.studies.axes import Axes, axis_words
from uturn.studies.search import (
    RULE,
    Fit,
    Outcome,
    Planned,
    Reached,
    Readings,
    Search,
    Tested,
    rounded,
)
from uturn.studies.search_runs import (
    Levels,
    SearchRuns,
    checked_levels,
    joined_levels,
    readings_in,
    sized,
    store_of,
)

MOST_ORIGINALS = 10_000
"""Largest number of originals of a search at one level."""

_WASTE = 2.0
"""Originals of a search over those with which two ends pass if the curve is known."""


@dataclass(frozen=True)
class Location:
    """A place on the curve of a reading: what `locate` gives."""

    reading: str

    share: float
    """Share of the way from the start of the reading to its chance that is gone at the place."""

    place: Estimate
    """The noise there, between two measured levels. NaN if there is no place."""

    wanted: float
    """Wanted full width of the interval."""

    items: int
    """Originals at the level that has most."""

    levels: list[float]
    """The two ends of the interval. Empty if there is no place."""

    calls: float
    """Sum of the noise of all U-turns over the largest noise: calls of a model of one step."""

    outcome: Outcome
    """Why the search has ended."""

    axes: dict[str, Estimate] = field(default_factory=dict)
    """The place on all axes of the run."""

    runs: dict[str, xr.Dataset] = field(default_factory=dict, repr=False)
    """The runs of the levels by name, `noise-0.4`, in the order in which they were first measured.

    The store of a run is `name` in the folder.
    """

    @property
    def width(self) -> float:
        """Full width of the interval."""
        return self.place.high - self.place.low

    @property
    def reached(self) -> bool:
        """Whether the readings at the two ends of an interval of the wanted width hold the
        place.
        """
        return isinstance(self.outcome, Reached)

    @property
    def remark(self) -> str:
        """Why the width is not reached, or there is no place. Empty if it is reached."""
        return self.outcome.remark

    def numbers(self) -> dict[str, Any]:
        """The location as plain data, the content of `located.json`."""
        run = next(iter(self.runs.values()))
        return {
            "reading": self.reading,
            "share": self.share,
            "width": self.width,
            "wanted": self.wanted,
            "reached": self.reached,
            "items": self.items,
            "levels": self.levels,
            "calls": self.calls,
            "remark": self.remark,
            "axes": self.axes,
            "unit": axis_words(run),
        }

    def lines(self) -> list[str]:
        """The location in words."""
        lines = []
        if math.isfinite(self.place.value):
            where = "half of the way" if self.share == 0.5 else f"{self.share:g} of the way"
            place = f"{self.reading}, {where} from its start to chance: noise {self.place!r}"
            others = [f"{name} {at.value:.4g}" for name, at in self.axes.items() if name != "noise"]
            if others:
                place += f" ({', '.join(others)})"
            ends = " and ".join(f"{level:.4g}" for level in self.levels)
            width = f"width {self.width:.3g}, wanted {self.wanted:g}"
            lines = [place, f"{width}; up to {self.items:,} originals, ends at noise {ends}"]
        if self.remark:
            lines.append(self.remark)
        return lines


def locate(
    experiment: Experiment,
    reading: str,
    width: float,
    store: str | Path | None = None,
    *,
    share: float = 0.5,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Location:
    """Measure until the interval of a place, such as t*, is as narrow as a width.

    16 originals at four noise levels of the experiment begin. Then a fit proposes two levels as far
    apart as the width, with the place between them. Originals are measured there until each
    reading is clearly on its side of the height of the place, or until the fit proposes other
    levels. The interval therefore holds for every curve that falls. docs/precision.md says what
    it costs, and how often the interval misses the place.

    Parameters
    ----------
    experiment
        Its `noise` are the levels to begin with. Its `items` and `chunk` are not used; at most
        10,000 originals are measured at a level.
    reading
        A reading with a start, as `uturn.study` names it: "same_class" or "unchanged, tree_level =
        3".
    width
        Full width of the interval, in the unit of the noise.
    store
        Folder or URL for the stores of the runs, by default a temporary folder. The same call
        resumes an interrupted one, with the same numbers. Another width, reading or share uses the
        levels that are stored.
    share
        Share of the way from start to chance; .5 is the half-life of the reading, for a class t*.
    tell
        Called with a line when levels are chosen, with the time left, and after each test.
    options
        Options of `uturn.run`: workers, progress, cluster, accept_changes, ..

    Raises
    ------
    ValueError
        If the width is not a positive number, if runs have no such reading, or if it has no start.

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
    >>> found.reached, found.place.low < found.place.value < found.place.high, round(found.width, 9)
    (True, True, 0.1)
    """
    levels = checked_levels(checked_experiment(experiment), reading, width)
    share = checked_share("share", share)
    with _folder(store) as folder:
        if is_run(checked_location("store", folder)):
            raise ValueError(
                f"store = {shown(str(store))}: it is a store; expected a folder for the stores of"
                " the search"
            )
        runs = SearchRuns(experiment, reading, folder, options)

        def say(step: Planned | Tested) -> None:
            words = step.words
            if isinstance(step, Planned):
                seconds = runs.seconds_for(step.calls_left * levels.largest)
                if math.isfinite(seconds):
                    words += f"; about {duration(seconds)} left"
            tell(words)

        most = _most_originals(experiment)
        search = Search(runs.measure, width, levels.step, levels.largest, share, most, say)
        found = search.run(levels.starting)
    axes = {}
    ends = []
    if math.isfinite(found.place.value):
        of_runs = Axes.of(joined_levels(runs.datasets.values()))
        rows = of_runs.convert_interval(np.array(found.place)).tolist()
        axes = {name: Estimate(*row) for name, row in zip(of_runs.names, rows, strict=True)}
        ends = [found.place.low, found.place.high]
    return Location(
        reading=reading,
        share=share,
        place=found.place,
        wanted=width,
        items=found.originals,
        levels=ends,
        calls=found.calls,
        outcome=found.outcome,
        axes=axes,
        runs=runs.datasets,
    )


def _folder(store: str | Path | None) -> AbstractContextManager[str | Path]:
    """A context that gives the folder or URL, by default a temporary folder."""
    if store is None:
        return tempfile.TemporaryDirectory(prefix="uturn-")
    return nullcontext(store)


def _most_originals(experiment: Experiment) -> int:
    count = experiment.parts.source.count()
    return MOST_ORIGINALS if count is None else min(count, MOST_ORIGINALS)


@dataclass(frozen=True)
class Forecast:
    """What a search will measure."""

    assumptions: str
    """In words: a curve that was assumed, or the levels of the store."""

    parts: dict[str, Experiment]
    """The beginning, if it is not stored, and the two ends."""


def forecast(
    experiment: Experiment,
    reading: str,
    width: float,
    store: str | Path | None = None,
    *,
    share: float = 0.5,
) -> Forecast:
    """What `locate` will measure.

    Without stored levels, the reading is assumed to be 0 or 1, and to fall as a logistic at .55 of
    the largest noise with w = .08 of it. A search needs about twice the originals with which the
    two ends would pass if the curve were known.

    ValueError for what `locate` refuses, and if the stored levels show no place.
    """
    levels = checked_levels(checked_experiment(experiment), reading, width)
    share = checked_share("share", share)
    stored = {} if store is None else _stored_readings(store, levels, reading)
    search = Search(lambda level, _: stored[level], width, levels.step, levels.largest, share)
    search.readings = {round(level / levels.step): of for level, of in stored.items()}
    parts = {}
    if stored.keys() >= {*levels.starting}:
        fit = _fit_of_stored(search, store, reading)
        words = (
            f"from the levels in {store}: noise {fit.place:.3g}, width w of the logistic"
            f" {fit.scale:.3g}"
        )
    else:
        fit = Fit(0.55 * levels.largest, 0.08 * levels.largest, 0.5, 0)
        parts["at the beginning"] = sized(experiment, levels.starting, RULE.first_originals)
        quarter = math.log(3) * fit.scale
        words = (
            f"assumed: {reading} is 0 or 1, and falls from three quarters to one quarter of the way"
            f" between noise {fit.place - quarter:.3g} and {fit.place + quarter:.3g}; the first"
            " levels in --store replace this"
        )
    ends = np.array(search.proposed(fit, 0))
    originals = math.ceil(_WASTE * float(np.mean(search.needed(ends, fit, 0))))
    most = _most_originals(experiment)
    if originals > most:
        words += (
            f"; the width needs about {rounded(originals):,} originals, and at most {most:,} can be"
            " measured"
        )
        originals = most
    noise = [search.noise_of(int(end)) for end in ends]
    parts["at both ends"] = sized(experiment, noise, originals)
    return Forecast(words, parts)


def _stored_readings(store: str | Path, levels: Levels, reading: str) -> dict[float, Readings]:
    """Readings of the levels that a search begins with, and of the largest, as far as they are
    stored.
    """
    stored = {}
    for level in {*levels.starting, levels.largest}:
        place = checked_location("store", store_of(store, level))
        if not is_empty(place):
            dataset = dataset_of(RunFolder.open(place)).load()
            stored[level] = readings_in(dataset, reading, dataset.sizes["item"])
    return stored


def _fit_of_stored(search: Search, store: str | Path | None, reading: str) -> Fit:
    above, below = search.enclosing(RULE.clear)
    if below is None and search.at(max(search.readings)).left > search.height:
        raise ValueError(
            f"until = {search.width:g}: at the first levels in {store}, {reading} has no place"
        )
    return search.fit(above, search.top if below is None else below)
