"""The difference of two runs on the same originals: paired, for curves and half-lives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import expect
from uturn.measures.curves import crossing, levels_around
from uturn.measures.estimates import ESTIMATE, with_interval
from uturn.measures.readings import WITHIN, draw_dims
from uturn.measures.replicates import Replicates
from uturn.studies.axes import Axes, axis_words, check_unit
from uturn.studies.charts import Panel, lines_of
from uturn.studies.checked_run import Run
from uturn.studies.figure import drawn
from uturn.studies.places import reaching
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.reading_curves import Reading, readings_of
from uturn.studies.runs import named_in
from uturn.studies.tables import TextTable, evenly_chosen, names_in_panel, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = WITHIN[1:]
_TEXTS = ("reading", "variable", "level", "words", "unit")
"""Coordinates of readings that the files of a difference hold."""
_ABRUPT = 0.8
"""Share of the way to independent data between two neighbouring levels."""
_MOST_LEVELS = 8
"""Levels of a variable in the table and in a panel."""
_MOST_NOISES = 4
"""Noise levels in the table."""


def difference(runs: Mapping[str, xr.Dataset], centre: str = "mean") -> xr.Dataset:
    """The second of two runs on the same originals minus the first: curves and half-lives, paired
    over originals.

    Both curves of a reading are means over the same originals, at the noise levels that both runs
    have. `runs`: two by name, whose originals are matched by their names (`item_name`), or else by
    their numbers. `centre`: as in `uturn.study`; with "median" the difference of two medians, not
    the median of differences.

    The Dataset has `curve` (reading, noise, estimate) and `half_life` (reading, axis, estimate),
    second minus first, with 95 % intervals over originals, or grammars if there are several. What
    is common to both runs does not widen them; if a curve falls within one step of noise, the
    interval of the half-life holds the levels around. `half_lives` (reading, run, axis, estimate)
    of both runs; `originals`, `remark` (reading). NaN if a number does not exist.

    Examples
    --------
    >>> import uturn as ut
    >>> noise, items = np.array([0.2, 0.4, 0.6, 0.8]), np.linspace(0.5, 1.5, 9)
    >>> runs = {name: ut.readings({"rmsd": noise[:, None] * items * factor}, noise, start=0)
    ...         for name, factor in (("slow", 1), ("fast", 2))}
    >>> difference(runs).curve.sel(reading="rmsd", estimate="value").values.round(2)
    array([0.2, 0.4, 0.6, 0.8])
    """
    expect(len(runs) == 2, "runs", list(runs), "two, for the second minus the first")
    first, second = _aligned([Run.finished(run) for run in runs.values()])
    shared = [name for name in first.axes.names if name in second.axes.names]
    differences = [
        _Difference(readings, (first.axes, second.axes), shared)
        for readings in _readings_of_both(first, second, centre)
    ]
    expect(differences, "runs", list(runs), "readings that both have")
    added = len(first.axes.noise) - first.data.sizes["noise"]  # noise 0
    readings = [entry.readings[0] for entry in differences]
    texts = {
        "reading": [reading.label for reading in readings],
        "variable": [reading.key.variable for reading in readings],
        "level": [reading.key.level for reading in readings],
        "level_dim": [reading.key.level_dim for reading in readings],
        "words": [reading.long_name for reading in readings],
        "unit": [reading.instructions.unit for reading in readings],
        "originals": [reading.originals for reading in readings],
        "remark": [entry.remark for entry in differences],
    }
    curves = np.stack([entry.curve for entry in differences])
    half_lives = np.stack([entry.half_life for entry in differences])
    of_runs = np.stack([entry.half_lives for entry in differences])
    return xr.Dataset(
        {
            "curve": (("reading", "noise", "estimate"), curves[:, added:]),
            "half_life": (("reading", "axis", "estimate"), half_lives),
            "half_lives": (("reading", "run", "axis", "estimate"), of_runs),
        },
        {
            **{name: ("reading", column) for name, column in texts.items()},
            "noise": first.data.noise.variable,
            "run": list(runs),
            "axis": shared,
            "estimate": list(ESTIMATE),
        },
        {"description": "{1} minus {0}".format(*runs)},
    )


def _aligned(runs: Sequence[Run]) -> list[Run]:
    """Both runs with the same originals and noise levels in one order, and only what their
    readings need; or a ValueError.
    """
    units = list(dict.fromkeys(axis_words(run.data) for run in runs))
    expect(len(units) == 1, "noise of the runs", units, "one axis in common")
    have_names = ["item_name" in run.data.coords for run in runs]
    expected = "both or none, to match their originals"
    named = have_names.count(True)
    expect(len(set(have_names)) == 1, "runs with names of originals", named, expected)
    sources = []
    for run in runs:
        models = json.loads(run.data.attrs.get("models", "{}"))
        sources.append((models.get("source"), run.data.attrs.get("seed")))
    are_same = all(have_names) or sources[0] == sources[1]
    expect(are_same, "sources and seeds", sources, "the same originals in both runs")
    key = "item_name" if all(have_names) else "item"
    needed = [_needed(run, key) for run in runs]
    data = list(xr.align(*needed, join="inner", exclude=_DRAWS))
    for dim, words in (("item", "originals"), ("noise", "noise levels")):
        expect(data[0].sizes[dim], f"{words} that both runs have", data[0].sizes[dim], "some")
    for name, coordinate in data[0].coords.items():
        if coordinate.dims != ("item",) or name not in data[1].coords:
            continue
        other = data[1][name].values
        are_equal = np.array_equal(coordinate.values, other)
        expect(are_equal, f"{name} of the originals", other, "that of the first run")
    ordered = [dataset.sortby("noise") for dataset in data]
    return [
        Run(dataset, run.instructions, Axes.of(dataset))
        for run, dataset in zip(runs, ordered, strict=True)
    ]


def _needed(run: Run, key: str) -> xr.Dataset:
    """The readings of a run with their starts and chances, its items labelled by a coordinate, and
    noise levels of nine digits.
    """
    needed = set(run.readings)
    for instructions in run.readings.values():
        needed.update(named_in(instructions.start, instructions.chance))
    data = run.data
    levels = [float(f"{level:.9g}") for level in data.noise.values]
    labels = data[key].values.tolist()
    data = data[[name for name in data.data_vars if name in needed]]
    return data.assign_coords(item=labels, noise=("noise", levels, data.noise.attrs))


Pair = tuple[Reading, Reading]
"""A reading of the first and of the second run."""


def _readings_of_both(first: Run, second: Run, centre: str) -> list[Pair]:
    """The readings that both runs have, over the originals that have them in both."""
    pairs = []
    for name in first.readings:
        if name not in second.readings:
            continue
        values = first.data[name]
        others = second.data[name]
        if (set(values.dims) ^ set(others.dims)) - set(_DRAWS):
            continue
        # At each noise and level.
        in_both = _has_reading(values) & _has_reading(others)
        of_second = {
            reading.label: reading
            for reading in readings_of(_only(second, name, in_both), name, centre)
        }
        for reading in readings_of(_only(first, name, in_both), name, centre):
            if reading.label in of_second:
                pairs.append((reading, of_second[reading.label]))
    return pairs


def _has_reading(values: xr.DataArray) -> xr.DataArray:
    """Which originals have a reading at each noise and level."""
    return values.notnull().any(draw_dims(values))


def _only(run: Run, name: str, is_kept: xr.DataArray) -> Run:
    """A run with some readings of a variable."""
    readings = run.data[name].where(is_kept)
    return run.with_data(run.data.assign({name: readings}))


@dataclass(frozen=True, eq=False)
class _Difference:
    """The difference of a reading between two runs, second minus first."""

    readings: Pair
    axes: tuple[Axes, Axes]
    shared: Sequence[str]
    """Names of the axes that both runs have."""

    def __post_init__(self) -> None:
        first, second = self.readings
        check_unit(first.label, second.instructions.unit, first.instructions.unit)

    @property
    def remark(self) -> str:
        """The remarks on the reading in both runs."""
        pairs = zip(("first", "second"), self.readings, strict=True)
        return "; ".join(f"{run}: {reading.remark}" for run, reading in pairs if reading.remark)

    @cached_property
    def curves(self) -> Replicates:
        """Both curves (noise, run), replicated together."""
        first, second = (reading.replicates for reading in self.readings)
        return first._replace(
            mean=np.stack([first.mean, second.mean], -1),
            deviations=np.stack([first.deviations, second.deviations], -1),
        )

    @property
    def curve(self) -> np.ndarray:
        """The difference of the curves (noise, estimate)."""
        if all(reading.instructions.is_share for reading in self.readings):
            return _of_shares(self.readings)
        return self.curves.interval(lambda curves: curves[..., 1] - curves[..., 0])

    @property
    def half_lives(self) -> np.ndarray:
        """Half-lives of both runs (run, shared axis, estimate)."""
        chosen = []
        for reading, axes in zip(self.readings, self.axes, strict=True):
            rows = [axes.names.index(name) for name in self.shared]
            chosen.append(reading.places.half_life[rows])
        return np.stack(chosen)

    @property
    def half_life(self) -> np.ndarray:
        """The difference of the half-lives, with its interval (shared axis, estimate).

        Both curves are replicated together, so what they have in common cancels. Between the levels
        the curves are not known: the interval holds those for straight and for logistic falls. If a
        fall takes place between two neighbouring levels, the readings do not tell where, and the
        interval holds all differences of places between the levels around them.
        """
        if not np.isfinite(self.half_lives[:, 0, 0]).all():
            return np.full((len(self.shared), 3), np.nan)
        first, second = map(_Fall.of, self.readings, self.axes)

        def straight(curves: np.ndarray) -> np.ndarray:
            places = first.straight(curves[:, 0]), second.straight(curves[:, 1])
            return self._between(*places)[:, 0]

        def curved(curves: np.ndarray) -> np.ndarray:
            places = first.curved(curves[:, 0]), second.curved(curves[:, 1])
            return self._between(*places)[:, 0]

        value, low, high = self.curves.interval(straight).T
        _, low_if_curved, high_if_curved = self.curves.interval(curved).T
        low = np.fmin(low, low_if_curved)
        high = np.fmax(high, high_if_curved)
        if (first.is_abrupt or second.is_abrupt) and not self._are_equal(first):
            farthest = np.sort(self._between(first.bracket[::-1], second.bracket), axis=1)
            low = np.fmin(low, farthest[:, 0])
            high = np.fmax(high, farthest[:, 1])
        return np.stack([value, low, high], -1)

    def _between(self, first: ArrayLike, second: ArrayLike) -> np.ndarray:
        """Second minus first of noises (n,), (shared axis, n)."""
        places = []
        for axes, noise in zip(self.axes, (first, second), strict=True):
            rows = [axes.names.index(name) for name in self.shared]
            places.append(axes.convert(np.ravel(noise))[rows])
        with np.errstate(invalid="ignore"):  # log-SNR is infinite without noise
            return np.asarray(places[1] - places[0])

    def _are_equal(self, fall: _Fall) -> bool:
        """Whether both runs have the same readings, which differ between originals at both levels
        around the half-life.
        """
        mean = self.curves.mean
        deviations = self.curves.deviations
        is_around = np.isin(fall.noise, fall.bracket)
        spread = np.abs(deviations[:, : len(fall.noise), 0]).max(axis=0, initial=0)[is_around]
        are_same = np.array_equal(mean[:, 0], mean[:, 1])
        are_same = are_same and np.array_equal(deviations[..., 0], deviations[..., 1])
        return are_same and bool((spread > 0).all())


@dataclass(frozen=True, eq=False)
class _Fall:
    """How a reading of one run goes from its start to independent data; curves (noise,) are those
    on `axes`.
    """

    axes: Axes
    mean: np.ndarray
    chance: float
    originals: int

    @classmethod
    def of(cls, reading: Reading, axes: Axes) -> _Fall:
        return cls(axes, reading.replicates.mean, reading.chance, reading.originals)

    @property
    def noise(self) -> np.ndarray:
        """The finite noise levels."""
        return self.axes.finite_noise

    def straight(self, curve: np.ndarray) -> float:
        """The half-life of a curve that is straight between the levels."""
        return reaching(self.mean, self.chance, self.axes, 0.5)(curve)

    def curved(self, curve: np.ndarray) -> float:
        """The half-life of a curve that falls like a logistic one: the log-odds of what is left
        are straight between levels.
        """
        left = self.left(curve)
        return crossing(self.noise, np.log(left / (1 - left)), 0.0, first=True)

    def end(self, curve: np.ndarray) -> float:
        """The value for independent data."""
        return float(curve[-1]) if np.isnan(self.chance) else self.chance

    def left(self, curve: np.ndarray) -> np.ndarray:
        """The share of the way to independent data that is left at each level, at least half an
        original away from 0 and 1.
        """
        end = self.end(curve)
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN if nothing changes
            left = (curve[: len(self.noise)] - end) / (curve[0] - end)
        least = 0.5 / self.originals
        return np.asarray(np.clip(left, least, 1 - least))

    @cached_property
    def bracket(self) -> tuple[float, float]:
        """The two levels around the half-life."""
        return levels_around(self.noise, self.straight(self.mean))

    @property
    def is_abrupt(self) -> bool:
        """Whether nearly the whole way is gone between two levels, so that the readings say no
        more than these.
        """
        above, below = np.interp(self.bracket, self.noise, self.mean[: len(self.noise)])
        way = self.mean[0] - self.end(self.mean)
        return bool((above - below) / way > _ABRUPT)


def _of_shares(readings: Pair) -> np.ndarray:
    """Differences of paired shares (noise, estimate) from the intervals of both, which have a width
    where all originals agree.

    The tenth method of Newcombe (1998, Statistics in Medicine 17, 2635).
    """
    p, low_p, high_p = readings[0].curve.T
    q, low_q, high_q = readings[1].curve.T
    a, b = (reading.replicates.deviations for reading in readings)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 without differences
        correlation = np.nan_to_num((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))

    def distance(of_second: np.ndarray, of_first: np.ndarray) -> np.ndarray:
        squares = of_second**2 - 2 * correlation * of_second * of_first + of_first**2
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    low = q - p - distance(q - low_q, high_p - p)
    high = q - p + distance(high_q - q, p - low_p)
    return np.stack([q - p, low, high], -1)


# --- table, files, figure -------------------------------------------------------------------------


def table_of(data: xr.Dataset) -> TextTable:
    """A difference as a table: half-lives of both runs, their difference, and the difference of the
    curves at some noise levels.
    """
    noises = evenly_spaced(data.sizes["noise"], _MOST_NOISES)
    rows = []
    for k in evenly_chosen(data.variable.values, _MOST_LEVELS):
        part = data.isel(reading=k)
        half_lives = [""] * 3
        if np.isfinite(part.half_lives.values).any():
            places = [*part.half_lives.values[:, 0], part.half_life.values[0]]
            half_lives = [with_interval(place) for place in places]
        differences = [with_interval(part.curve.values[k]) for k in noises]
        rows.append((str(part.reading.item()), *half_lives, *differences))
    words = axis_words(data)
    heads = ["reading", "half-life, first", "second", "difference [95 % interval]"]
    heads += [f"at {words} = {float(data.noise[k]):.3g}" for k in noises]
    return TextTable(_title(data), tuple(heads), rows)


def _title(data: xr.Dataset) -> str:
    count = int(data.originals.max())
    return f"{data.attrs['description']}, paired over {count} originals"


def remarks_of(data: xr.Dataset) -> list[str]:
    pairs = zip(data.reading.values, data.remark.values, strict=True)
    return [f"{name}: {text}" for name, text in pairs if text]


def frame_of(data: xr.Dataset) -> pandas.DataFrame:
    """A difference as a pandas frame: a row for each reading and noise level, then a row for each
    difference of half-lives and for each half-life of the runs.
    """
    name = data.attrs["description"]
    frames = [
        rows_of(data.curve).assign(quantity="curve", run=name),
        rows_of(data.half_life).assign(quantity="half_life", run=name),
    ]
    for k, run in enumerate(data.run.values):
        rows = rows_of(data.half_lives.isel(run=k))
        frames.append(rows.assign(quantity="half_life", run=run))
    columns = ["reading", "quantity", "run", "noise", "axis", *ESTIMATE]
    return pandas.concat(frames, ignore_index=True)[columns]


def data_of(data: xr.Dataset) -> dict[str, Any]:
    """The content of `difference.json`."""
    readings = []
    for k in range(data.sizes["reading"]):
        part = data.isel(reading=k)
        texts = {key: part[key].item() for key in (*_TEXTS, "originals", "remark")}
        numbers = {key: _numbers(part[key]) for key in ("curve", "half_life", "half_lives")}
        readings.append(texts | numbers)
    return {
        "format": "uturn.difference",
        "version": 1,
        "difference": data.attrs["description"],
        "intervals": "95 %, paired over originals, or grammars if there are several",
        "noise": data.noise.values,
        "readings": readings,
        "table": table_of(data)._asdict(),
    }


def _numbers(values: xr.DataArray) -> object:
    """The numbers of all intervals by the labels of their dims; noise levels are a list."""
    if not values.dims:
        return values.item()
    dim = values.dims[0]
    inner = [_numbers(values[k]) for k in range(len(values))]
    return inner if dim == "noise" else dict(zip(values[dim].values.tolist(), inner, strict=True))


def draw_difference(data: xr.Dataset) -> Figure | None:
    """The differences of all curves: a panel for each variable, with some of its levels."""
    chosen = np.array(evenly_chosen(data.variable.values, _MOST_LEVELS))
    variables = data.variable.values[chosen]
    charts = []
    for name in dict.fromkeys(data.variable.values.tolist()):
        levels = chosen[variables == name]
        part = data.isel(reading=levels)
        chart = Panel(
            name="",
            title=str(part.words.values[0]),
            words="",
            unit=str(part.unit.values[0]) or "difference",
            curves=lines_of(part.curve, names_in_panel(data, levels)),
            joined=True,
            level=(0.0, ""),
        )
        charts.append(chart)
    return drawn(charts, [f"{_title(data)}; bands: 95 % intervals"])
