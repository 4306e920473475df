"""The difference of two runs on the same originals: paired, for curves and half-lives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import xarray as xr

from uturn.core.checks import expect
from uturn.measures.curves import crossing, levels_around
from uturn.measures.estimates import ESTIMATE, with_interval
from uturn.measures.readings import WITHIN
from uturn.measures.replicates import Replicates
from uturn.studies.analysis import Level, by_noise, finished_run, levels_of, reaching
from uturn.studies.axes import Axes, axis_words, check_unit
from uturn.studies.charts import Chart, lines_of
from uturn.studies.figure import drawn
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.runs import instructions_of, named_in
from uturn.studies.tables import TextTable, evenly_chosen, names_in_panel, rows_of

_WITHIN = WITHIN[1:]
_TEXTS = ("reading", "variable", "level", "words", "unit")  # coordinates of readings
_ABRUPT = 0.8  # share of the way to independent data between two neighbouring levels
# Levels of a variable in the table and in a panel; noise levels in the table.
_MOST_LEVELS, _MOST_NOISES = 8, 4


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
    first, second = _paired(*(by_noise(finished_run(run)) for run in runs.values()))
    both, names = (Axes(first), Axes(second)), [instructions_of(run) for run in (first, second)]
    axes = [name for name in both[0].names if name in both[1].names]
    rows = []
    for name, how in names[0].items():
        if name not in names[1] or (set(first[name].dims) ^ set(second[name].dims)) - set(_WITHIN):
            continue
        # At each noise and level, only originals with readings in both runs count.
        has = [
            run[name].notnull().any([dim for dim in _WITHIN if dim in run[name].dims])
            for run in (first, second)
        ]
        parts = [run.assign({name: run[name].where(has[0] & has[1])}) for run in (first, second)]
        of_runs = [
            {
                level.texts["reading"]: level
                for level in levels_of(part, name, of, axis, centre=centre)
            }
            for part, of, axis in zip(parts, (how, names[1][name]), both, strict=True)
        ]
        rows += [
            _difference([of[label] for of in of_runs], both, axes)
            for label in of_runs[0]
            if label in of_runs[1]
        ]
    expect(rows, "runs", list(runs), "readings that both have")
    skipped = len(both[0].noise) - first.sizes["noise"]
    dims = {"curve": ("noise",), "half_life": ("axis",), "half_lives": ("run", "axis")}
    data = {
        key: (("reading", *of, "estimate"), np.stack([row[key] for row in rows]))
        for key, of in dims.items()
    }
    data["curve"] = (data["curve"][0], data["curve"][1][:, skipped:])
    texts = {
        key: ("reading", [row[key] for row in rows]) for key in (*_TEXTS, "originals", "remark")
    }
    coords = {
        **texts,
        "noise": first.noise.variable,
        "run": list(runs),
        "axis": axes,
        "estimate": list(ESTIMATE),
    }
    return xr.Dataset(data, coords, {"description": "{1} minus {0}".format(*runs)})


def _paired(*runs: xr.Dataset) -> list[xr.Dataset]:
    """Both runs with the same originals and noise levels in one order, and only what their
    readings need; or a ValueError.
    """
    units = list(dict.fromkeys(map(axis_words, runs)))
    expect(len(units) == 1, "noise of the runs", units, "one axis in common")
    have = ["item_name" in run.coords for run in runs]
    expect(
        len(set(have)) == 1,
        "runs with names of originals",
        have.count(True),
        "both or none, to match their originals",
    )
    named = all(have)
    sources = [
        (json.loads(run.attrs.get("models", "{}")).get("source"), run.attrs.get("seed"))
        for run in runs
    ]
    expect(
        named or sources[0] == sources[1],
        "sources and seeds",
        sources,
        "the same originals in both runs",
    )
    aligned = []
    for run in runs:
        used = {name: how for name, how in instructions_of(run).items() if how.role == "reading"}
        names = named_in(*(rule for how in used.values() for rule in (how.start, how.chance)))
        labels = run["item_name" if named else "item"].values.tolist()
        levels = [float(f"{level:.9g}") for level in run.noise.values]
        run = run[[name for name in run.data_vars if name in {*used, *names}]]
        aligned.append(run.assign_coords(item=labels, noise=("noise", levels, run.noise.attrs)))
    aligned = list(xr.align(*aligned, join="inner", exclude=_WITHIN))
    for dim, words in (("item", "originals"), ("noise", "noise levels")):
        expect(aligned[0].sizes[dim], f"{words} that both runs have", aligned[0].sizes[dim], "some")
    for name in {str(name) for name, of in aligned[0].coords.items() if of.dims == ("item",)} & set(
        aligned[1].coords
    ):
        of_runs = [run[name].values for run in aligned]
        expect(
            np.array_equal(of_runs[0], of_runs[1]),
            f"{name} of the originals",
            of_runs[1],
            "that of the first run",
        )
    return [run.sortby("noise") for run in aligned]


def _difference(levels: list[Level], both: tuple[Axes, Axes], names: list[str]) -> dict[str, Any]:
    """The numbers of one reading; `levels`: it in the first and the second run, `names`: common
    axes.
    """
    check_unit(levels[0].texts["reading"], *(level.texts["unit"] for level in levels[::-1]))
    parts = [level.replicates for level in levels]
    of = parts[0]._replace(
        mean=np.stack([part.mean for part in parts], -1),
        deviations=np.stack([part.deviations for part in parts], -1),
    )
    index = [[axes.names.index(name) for name in names] for axes in both]
    half_lives = np.stack([level.place[1, k] for level, k in zip(levels, index, strict=True)])
    half_life = np.full((len(names), 3), np.nan)
    if np.isfinite(half_lives[:, 0, 0]).all():
        half_life = _of_half_lives(
            of, [_Fall.of(level, axes) for level, axes in zip(levels, both, strict=True)], index
        )
    is_share = all(level.instructions.is_share for level in levels)
    remarks = [
        (name, level.texts["remark"])
        for name, level in zip(("first", "second"), levels, strict=True)
    ]
    return {
        "curve": _of_shares(levels) if is_share else of.interval(lambda c: c[..., 1] - c[..., 0]),
        "half_life": half_life,
        "half_lives": half_lives,
        "originals": levels[0].originals,
        "remark": "; ".join(f"{name}: {remark}" for name, remark in remarks if remark),
        **{key: levels[0].texts[key] for key in _TEXTS},
    }


@dataclass(frozen=True)
class _Fall:
    """How a reading of one run goes from its start to independent data; all functions are of
    curves (noise,) on `axes`.
    """

    axes: Axes
    mean: np.ndarray
    chance: float
    originals: int

    @classmethod
    def of(cls, level: Level, axes: Axes) -> _Fall:
        return cls(axes, level.replicates.mean, level.chance, level.originals)

    @property
    def x(self) -> np.ndarray:
        """The finite noise levels."""
        return self.axes.noise[np.isfinite(self.axes.noise)]

    def straight(self, curve: np.ndarray) -> float:
        """The half-life of a curve that is straight between the levels."""
        return reaching(self.mean, self.chance, self.axes, 0.5)(curve)

    def curved(self, curve: np.ndarray) -> float:
        """The half-life of a curve that falls like a logistic one: the log-odds of what is left
        are straight between levels.
        """
        left = self.left(curve)
        return crossing(self.x, np.log(left / (1 - left)), 0.0, first=True)

    def left(self, curve: np.ndarray) -> np.ndarray:
        """The share of the way to independent data that is left at each level, at least half an
        original away from 0 and 1.
        """
        end = curve[-1] if np.isnan(self.chance) else self.chance
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN if nothing changes
            left = (curve[: len(self.x)] - end) / (curve[0] - end)
        least = 0.5 / self.originals
        return np.clip(left, least, 1 - least)

    def bracket(self) -> tuple[float, float]:
        """The two levels around the half-life."""
        return levels_around(self.x, self.straight(self.mean))

    @property
    def is_abrupt(self) -> bool:
        """Whether nearly the whole way is gone between two levels, so that the readings say no
        more than these.
        """
        above, below = np.interp(self.bracket(), self.x, self.mean[: len(self.x)])
        way = self.mean[0] - (self.mean[-1] if np.isnan(self.chance) else self.chance)
        return bool((above - below) / way > _ABRUPT)


def _of_half_lives(of: Replicates, falls: list[_Fall], index: list[list[int]]) -> np.ndarray:
    """The half-life of the second run minus that of the first, with its interval (axis, estimate).

    Both curves are replicated together, so what they have in common cancels. Between the levels the
    curves are not known: the interval holds those for straight and for logistic falls. If a fall
    takes place between two neighbouring levels, the readings do not tell where, and the interval
    holds all differences of places between the levels around them.

    `of`: both curves (noise, run). `index`: of the axes in common among those of each run.
    """

    def apart(first: Any, second: Any) -> np.ndarray:
        """Second minus first of noises (n,) on the axes in common, (axis, n)."""
        places = [
            fall.axes.convert(np.ravel(noise))[k]
            for fall, noise, k in zip(falls, (first, second), index, strict=True)
        ]
        with np.errstate(invalid="ignore"):  # log-SNR is infinite without noise
            return places[1] - places[0]

    def straight(curves: np.ndarray) -> np.ndarray:
        return apart(falls[0].straight(curves[:, 0]), falls[1].straight(curves[:, 1]))[:, 0]

    def curved(curves: np.ndarray) -> np.ndarray:
        return apart(falls[0].curved(curves[:, 0]), falls[1].curved(curves[:, 1]))[:, 0]

    value, low, high = of.interval(straight).T
    _, low_if_curved, high_if_curved = of.interval(curved).T
    low, high = np.fmin(low, low_if_curved), np.fmax(high, high_if_curved)
    if any(fall.is_abrupt for fall in falls) and not _are_equal(of, falls[0]):
        (first_low, first_high), (second_low, second_high) = (fall.bracket() for fall in falls)
        farthest = np.sort(apart([first_high, first_low], [second_low, second_high]), axis=1)
        low, high = np.fmin(low, farthest[:, 0]), np.fmax(high, farthest[:, 1])
    return np.stack([value, low, high], -1)


def _are_equal(of: Replicates, fall: _Fall) -> bool:
    """Whether both runs have the same readings, which differ between originals at both levels
    around the half-life.
    """
    around = np.isin(fall.x, fall.bracket())
    spread = np.abs(of.deviations[:, : len(fall.x), 0]).max(axis=0, initial=0)[around]
    same = np.array_equal(of.mean[:, 0], of.mean[:, 1]) and np.array_equal(
        of.deviations[..., 0], of.deviations[..., 1]
    )
    return same and bool((spread > 0).all())


def _of_shares(levels: list[Level]) -> np.ndarray:
    """Differences of paired shares (noise, estimate) from the intervals of both, which have a width
    where all originals agree.

    The tenth method of Newcombe (1998, Statistics in Medicine 17, 2635).
    """
    (p, low_p, high_p), (q, low_q, high_q) = (level.curve.T for level in levels)
    a, b = (level.replicates.deviations for level in levels)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 without differences
        correlation = np.nan_to_num((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))

    def end(of_second: np.ndarray, of_first: np.ndarray) -> np.ndarray:
        return np.sqrt(
            np.maximum(of_second**2 - 2 * correlation * of_second * of_first + of_first**2, 0)
        )

    return np.stack(
        [q - p, q - p - end(q - low_q, high_p - p), q - p + end(high_q - q, p - low_p)], -1
    )


# --- table, files, figure -------------------------------------------------------------------------


def table_of(data: xr.Dataset) -> TextTable:
    """A difference as a table: half-lives of both runs, their difference, and that of the curves
    at some noise levels.
    """
    x, rows = axis_words(data), []
    noises = evenly_spaced(data.sizes["noise"], _MOST_NOISES)
    for part in (data.isel(reading=k) for k in evenly_chosen(data.variable.values, _MOST_LEVELS)):
        places = [*part.half_lives.values[:, 0], part.half_life.values[0]]
        cells = (
            [with_interval(place) for place in places]
            if np.isfinite(part.half_lives.values).any()
            else [""] * 3
        )
        rows.append(
            (
                str(part.reading.item()),
                *cells,
                *(with_interval(part.curve.values[k]) for k in noises),
            )
        )
    heads = ["half-life, first", "second", "difference [95 % interval]"]
    heads += [f"at {x} = {float(data.noise[k]):.3g}" for k in noises]
    count = int(data.originals.max())
    return TextTable(
        f"{data.attrs['description']}, paired over {count} originals", ("reading", *heads), rows
    )


def remarks_of(data: xr.Dataset) -> list[str]:
    return [
        f"{name}: {text}"
        for name, text in zip(data.reading.values, data.remark.values, strict=True)
        if text
    ]


def frame_of(data: xr.Dataset) -> pandas.DataFrame:
    """A difference as a pandas frame: a row for each reading and noise level, then for each
    half-life, those of the runs too.
    """
    name = data.attrs["description"]
    of_runs = [
        ("half_life", run, data.half_lives.isel(run=k)) for k, run in enumerate(data.run.values)
    ]
    parts = [("curve", name, data.curve), ("half_life", name, data.half_life), *of_runs]
    frames = [rows_of(values).assign(quantity=quantity, run=run) for quantity, run, values in parts]
    return pandas.concat(frames, ignore_index=True)[
        ["reading", "quantity", "run", "noise", "axis", *ESTIMATE]
    ]


def data_of(data: xr.Dataset) -> dict[str, Any]:
    """The content of `difference.json`."""

    def numbers(values: xr.DataArray) -> Any:
        """The numbers of all intervals by the labels of their dims; noise levels are a list."""
        if not values.dims:
            return values.item()
        inner = [numbers(values[k]) for k in range(len(values))]
        return (
            inner
            if values.dims[0] == "noise"
            else dict(zip(values[values.dims[0]].values.tolist(), inner, strict=True))
        )

    readings = [
        {key: part[key].item() for key in (*_TEXTS, "originals", "remark")}
        | {key: numbers(part[key]) for key in ("curve", "half_life", "half_lives")}
        for part in (data.isel(reading=k) for k in range(data.sizes["reading"]))
    ]
    return {
        "format": "uturn.difference",
        "version": 1,
        "difference": data.attrs["description"],
        "intervals": "95 %, paired over originals, or grammars if there are several",
        "noise": data.noise.values,
        "readings": readings,
        "table": table_of(data)._asdict(),
    }


def draw_difference(data: xr.Dataset) -> Any:
    """The differences of all curves: a panel for each variable, with some of its levels."""
    charts, shown = [], np.array(evenly_chosen(data.variable.values, _MOST_LEVELS))
    for name in dict.fromkeys(data.variable.values.tolist()):
        chosen = shown[data.variable.values[shown] == name]
        part = data.isel(reading=chosen)
        curves, unit = (
            lines_of(part.curve, names_in_panel(data, chosen)),
            str(part.unit.values[0]) or "difference",
        )
        charts.append(
            Chart("", str(part.words.values[0]), "", unit, curves, joined=True, level=(0.0, ""))
        )
    line = (
        f"{data.attrs['description']}, paired over {int(data.originals.max())} originals; bands: 95"
        " % intervals"
    )
    return drawn(charts, [line])
