"""A study as tables: on a terminal and in notebooks, as pandas frames, and as plain data for a file of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core import display
from uturn.core.checks import shown
from uturn.store.record import warnings_of
from uturn.studies.axes import axis_words
from uturn.studies.curves import estimate_data, with_interval
from uturn.studies.headline import headline_of
from uturn.studies.plotting.curves import evenly_spaced

if TYPE_CHECKING:
    import pandas

FORMAT, VERSION = "uturn.study", 1
_TEXTS = ("variable", "level", "probe", "model", "group", "family", "unit", "words")  # coordinates of readings


class Study(xr.Dataset):
    """The dataset of `uturn.study`. It prints as its table; a part of it that is none of a study prints as a dataset."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not _is_whole(self):
            return super().__repr__()
        from rich.console import Console

        console = Console(width=120, color_system=None, force_jupyter=False, highlight=False, markup=False)
        with console.capture() as text:
            for part in summary(self):
                console.print(part)
        return text.get().rstrip()

    def _repr_html_(self) -> str:
        if not _is_whole(self):
            return super()._repr_html_()
        parts = [display.table(part.heads, part.rows) for part in parts_of(self)]
        return display.page(self.attrs.get("description", "study"), *parts, note=" ".join(f"{line}." for line in remarks(self)))


def _is_whole(data: xr.Dataset) -> bool:
    return {"curve", "half_life", "width"} <= set(data.data_vars) and {"reading", "axis", "estimate"} <= set(data.dims)


def _check_study(study: Any) -> None:
    if not isinstance(study, xr.Dataset) or not _is_whole(study):
        found = f"a dataset with dims {tuple(study.dims)}" if isinstance(study, xr.Dataset) else shown(study)
        raise ValueError(f"study = {found}: expected the dataset that uturn.study gives")


class TextTable(NamedTuple):
    """A table as plain text: title, headings, rows of cells."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def summary(study: xr.Dataset, most: int = 8) -> Iterator[Any]:
    """A study for a terminal: tables (rich) of half-lives, inversions, changes and calibration, then remarks as lines of text.

    Of a variable with more than `most` levels, so many are shown, evenly spaced.
    """
    from rich.table import Table

    _check_study(study)
    for part in parts_of(study, most):
        table = Table(title=part.title, title_justify="left")
        for head in part.heads:
            table.add_column(head, overflow="fold")
        for row in part.rows:
            table.add_row(*row)
        yield table
    yield from remarks(study)


def parts_of(study: xr.Dataset, most: int = 8) -> Iterator[TextTable]:
    """The tables of a study as plain text."""
    axes = [str(axis) for axis in study.axis.values]
    x = axis_words(study)
    shown = shown_readings(study, most)
    rows: list[tuple[str, ...]] = []
    for k in shown:
        one = study.isel(reading=k)
        if np.isfinite(one.start):
            cells = _place(one.half_life.values, axes)
            rows.append((str(one.reading.item()), *cells, with_interval(one.width.values[0]), _at_end(one)))
        else:
            rows.append((str(one.reading.item()), *[""] * len(axes), "", _at_end(one)))
    if rows:
        end = f"at {x} = {float(study.noise[-1]):.3g}"
        headline = headline_of(study)
        star = f"; t* is that of {headline.reading}" if headline and headline.label == "t*" and headline.reading else ""
        heads = ("reading", f"{x} [95 % interval]", *axes[1:], "width", end)
        yield TextTable(f"half of the way from start to chance{star}", heads, rows)
    rows = []
    for k in range(study.sizes.get("series", 0)):
        one = study.isel(series=k)
        rows.append(
            (f"{one.series.item()}: {one['last'].item()} falls below {one['first'].item()}", *_place(one.inversion.values, axes))
        )
    if rows:
        yield TextTable("order of levels", ("series", f"{x} [95 % interval]", *axes[1:]), rows)
    rows = []
    for k in range(study.sizes.get("changes", 0)):
        one = study.isel(changes=k)
        rows.append(
            (f"{one.changes.item()}: chi is largest", *_place(one.peak_at.values, axes), f"chi {with_interval(one.peak.values)}")
        )
        near = nearest(study, one.peak_at.values[0, 0])
        if near is not None:
            words = f"xi {_length(one.xi.values[near])} {one.unit_of_distance.item()}"
            rows.append(("correlation length there", f"{float(study.noise[near]):.3g}", *[""] * (len(axes) - 1), words))
    if rows:
        yield TextTable("changes of sites", ("", f"{x} [95 % interval]", *axes[1:], "value [95 % interval]"), rows)
    if "gap" in study:
        yield from _calibration(study, shown, x)


def shown_readings(study: xr.Dataset, most: int) -> list[int]:
    """Numbers of the readings that are shown, group by group: at most so many of each variable, evenly spaced."""
    shown = []
    for group in _groups(study):
        for name in dict.fromkeys(study.variable.values[study.group.values == group].tolist()):
            of_variable = np.flatnonzero(study.variable.values == name)
            shown += [int(of_variable[k]) for k in evenly_spaced(len(of_variable), most)]
    return shown


def _groups(study: xr.Dataset, first: Sequence[str] = ()) -> list[str]:
    """Names of the groups of readings: `first`, then that of the headline, then the others in the order of the probes."""
    headline, known = headline_of(study), study.group.values.tolist()
    found = [] if headline is None else study.group.values[study.reading.values == headline.reading].tolist()
    return [name for name in dict.fromkeys([*first, *found, *known]) if name in known]


def panels_of(study: xr.Dataset, first: Sequence[str] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Title and readings of each panel of a figure or chart of a page, group by group; `first`, then that of the headline.

    The readings of a group share a panel, except those with several levels, each of which has one of its own.
    """
    for group in _groups(study, first):
        members = np.flatnonzero(study.group.values == group)
        variables = study.variable.values[members]
        by_variable = {name: members[variables == name] for name in dict.fromkeys(variables.tolist())}
        single = [int(some[0]) for some in by_variable.values() if len(some) == 1]
        for name, some in by_variable.items():
            if len(some) > 1:
                yield (group if len(by_variable) == 1 else f"{group}: {name}"), some
        if single:
            yield group, np.array(single)


def nearest(study: xr.Dataset, place: float) -> int | None:
    """Number of the noise level that is closest to a place; None if there is no place."""
    return None if np.isnan(place) else int(np.abs(study.noise.values - place).argmin())


def _place(places: np.ndarray, axes: Sequence[str]) -> list[str]:
    """A noise (axis, estimate) as cells: with its interval on the first axis, without on the others."""
    others = [
        "" if np.isnan(value) else f"{value:.1f}" if axis == "step" else f"{value:.3g}"
        for axis, value in zip(axes[1:], places[1:, 0], strict=True)
    ]
    return [with_interval(places[0]), *others]


def _at_end(one: xr.Dataset) -> str:
    unit = str(one.unit.item())
    return with_interval(one.curve.values[-1]) + (f" {unit}" if unit else "")


def _length(values: np.ndarray) -> str:
    """A length with its interval; only the lower end of an interval without an upper one."""
    return f"above {values[1]:.3g}" if np.isinf(values[2]) else with_interval(values)


def _calibration(study: xr.Dataset, shown: Sequence[int], x: str) -> Iterator[TextTable]:
    """Gaps of the clones, a table for each family of tests: where the p-value of a reading is smallest."""
    level = float(study.gap_level)
    for family, whole in tested_families(study).items():
        verdict = calibration_words(whole, level)
        rows: list[tuple[str, ...]] = []
        for k in shown:
            one = study.isel(reading=k)
            if one.family.item() != family or not np.isfinite(one.gap_p).any():
                continue
            worst = one.isel(noise=int(one.gap_p.argmin("noise", skipna=True)))
            visible = float(worst.gap_visible)
            gap, p = with_interval(worst.gap.values), f"{float(worst.gap_p):.2g}"
            rows.append(
                (
                    str(one.reading.item()),
                    f"{float(worst.noise):.3g}",
                    gap,
                    p,
                    f"{visible:.2g}" if np.isfinite(visible) else "none",
                )
            )
        heads = ("f", f"{x} of smallest p", "gap there [95 % interval]", "p by Holm", "gap that would be seen")
        yield TextTable(f"calibration of {family}, gap E f(x0, x̂) - E f(x̂, x̂') of the clones; {verdict}", heads, rows)


def tested_families(study: xr.Dataset) -> dict[str, xr.Dataset]:
    """The readings of a study whose calibration was tested, by family; none of a study without clones."""
    if "gap" not in study:
        return {}
    tested = study.isel(reading=study.gap_p.notnull().any("noise").values)
    families = dict.fromkeys(tested.family.values.tolist())
    return {str(family): tested.isel(reading=tested.family.values == family) for family in families}


def names_in_panel(study: xr.Dataset, chosen: Sequence[int] | np.ndarray) -> list[str]:
    """Short names of readings that share a panel: levels of one variable, or variables, with their levels if they have some."""
    several = len(set(study.variable.values[chosen].tolist())) > 1
    names = []
    for label, variable, level in zip(
        *(study[key].values[chosen].tolist() for key in ("reading", "variable", "level")), strict=True
    ):
        dims = [part.partition(" = ")[0].replace("_", " ") for part in label.removeprefix(variable).split(", ") if part]
        part = f"{dims[0]} {level}" if len(dims) == 1 and level.replace(".", "", 1).isdigit() else level
        names.append(", ".join(some for some in (variable.replace("_", " ") if several or not part else "", part) if some))
    return names


def title_of(study: xr.Dataset, label: str) -> str:
    """The quantity of a reading in words, with its level."""
    k = study.reading.values.tolist().index(label)
    words = str(study.words.values[k]) or label
    return f"{words}, {names_in_panel(study, [k])[0]}" if study.level.values[k] else words


def calibration_words(tested: xr.Dataset, level: float) -> str:
    """What the tests of a family say together."""
    if bool((tested.gap_p <= level).any()):
        return "no draws from the posterior"
    return "no gap is detected" if bool(np.isfinite(tested.gap_visible).any()) else "too few originals to detect a gap"


def remarks(study: xr.Dataset) -> list[str]:
    """The remarks of a study as lines: warnings, those on the run, and those on its readings."""
    return [*warnings_of(study.attrs), *remarks_on_run(study), *remarks_on_readings(study)]


def remarks_on_run(study: xr.Dataset) -> list[str]:
    """The remarks on the run as a whole."""
    return [line for line in str(study.attrs.get("remark", "")).split("; ") if line]


def remarks_on_readings(study: xr.Dataset) -> list[str]:
    """The remarks on readings, series and changes, those with the same remark together."""
    lines = []
    about = {"reading": "remark", "series": "series_remark", "changes": "changes_remark"}
    for dim, name in about.items():
        if name not in study.coords:
            continue
        for remark in dict.fromkeys(str(text) for text in study[name].values if str(text)):
            names = [str(label) for label in study[dim].values[study[name].values == remark]]
            lines.append(f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {remark}")
    return lines


# --- frames and plain data ---------------------------------------------------------------------------------------------


class Tidy(NamedTuple):
    """A study as pandas frames.

    Attributes
    ----------
    curves : DataFrame
        One row a reading and noise level: value, low, high, with clones also gap and p.
    numbers : DataFrame
        One row a number on an axis: places, half-lives, widths, inversions, peaks.
    """

    curves: pandas.DataFrame
    numbers: pandas.DataFrame


def tidy(study: xr.Dataset | Mapping[str, xr.Dataset]) -> Tidy:
    """A study, or several of them by name, as pandas frames (`Tidy`); of several, the column `run` has the name."""
    import pandas

    if isinstance(study, Mapping) and not isinstance(study, xr.Dataset) and study:
        parts = [tuple(frame.assign(run=name) for frame in tidy(one)) for name, one in study.items()]
        frames = [pandas.concat(some, ignore_index=True) for some in zip(*parts, strict=True)]
        return Tidy(*(frame[["run", *frame.columns.drop("run")]] for frame in frames))
    _check_study(study)
    assert isinstance(study, xr.Dataset)
    curves, numbers = [], []
    axes = [str(name) for name, values in study.coords.items() if values.dims == ("noise",)]
    for k in range(study.sizes["reading"]):
        one = study.isel(reading=k)
        texts = {"reading": str(one.reading.item()), **{key: str(one[key].item()) for key in _TEXTS}}
        for j in range(study.sizes["noise"]):
            point = one.isel(noise=j)
            row = {**texts, **{axis: float(point[axis]) for axis in axes}, **_ends(point.curve)}
            if "gap" in study:
                row |= {"gap": float(point.gap[0]), "gap_low": float(point.gap[1]), "gap_high": float(point.gap[2])}
                row |= {"gap_p": float(point.gap_p)}
            curves.append(row)
        for j, axis in enumerate(map(str, study.axis.values)):
            places = {f"place {float(share):g}": one.place.sel(share=share).isel(axis=j) for share in study.share.values}
            for quantity, values in {**places, "half_life": one.half_life.isel(axis=j), "width": one.width.isel(axis=j)}.items():
                numbers.append({"of": texts["reading"], "quantity": quantity, "axis": axis, **_ends(values)})
    for dim, quantity in (("series", "inversion"), ("changes", "peak_at")):
        for k, j in np.ndindex(study.sizes.get(dim, 0), study.sizes["axis"]):
            values = study[quantity].isel({dim: k, "axis": j})
            numbers.append(
                {"of": str(study[dim].values[k]), "quantity": quantity, "axis": str(study.axis.values[j]), **_ends(values)}
            )
    for k in range(study.sizes.get("changes", 0)):
        numbers.append({"of": str(study.changes.values[k]), "quantity": "peak", "axis": "", **_ends(study.peak.isel(changes=k))})
    return Tidy(pandas.DataFrame(curves), pandas.DataFrame(numbers))


def _ends(values: Any) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(float, values), strict=True))


def as_data(study: xr.Dataset) -> dict[str, Any]:
    """The content of `study.json`: all numbers of a study with their intervals; None if one does not exist."""
    _check_study(study)
    axes = [str(axis) for axis in study.axis.values]

    def on_axes(values: xr.DataArray) -> dict[str, Any]:
        return {axis: estimate_data(values.values[k]) for k, axis in enumerate(axes)}

    readings = []
    for k in range(study.sizes["reading"]):
        one = study.isel(reading=k)
        entry: dict[str, Any] = {
            "reading": str(one.reading.item()),
            **{key: str(one[key].item()) for key in _TEXTS},
            "start": _number(one.start),
            "chance": _number(one.chance),
            "remark": str(one.remark.item()),
            "curve": [estimate_data(values) for values in one.curve.values],
            "places": {f"{float(share):g}": on_axes(one.place.sel(share=share)) for share in study.share.values},
            "half_life": on_axes(one.half_life),
            "width": on_axes(one.width),
        }
        if "gap" in study and np.isfinite(one.gap_p).any():
            entry["gap"] = [
                {**estimate_data(gap), "p_holm": _number(p)} for gap, p in zip(one.gap.values, one.gap_p.values, strict=True)
            ]
        readings.append(entry)
    series = [
        {
            "series": str(one.series.item()),
            "first": str(one["first"].item()),
            "last": str(one["last"].item()),
            "remark": str(one.series_remark.item()),
            "inversion": on_axes(one.inversion),
        }
        for one in (study.isel(series=k) for k in range(study.sizes.get("series", 0)))
    ]
    changes = [
        {
            "changes": str(one.changes.item()),
            "unit": str(one.unit_of_distance.item()),
            "remark": str(one.changes_remark.item()),
            "peak": estimate_data(one.peak.values),
            "peak_at": on_axes(one.peak_at),
            "peak_cross_fitted": _number(one.peak_cross_fitted),
            "plateau": bool(one.plateau),
            "levels_of_peak": [float(x) for x in study.noise.values[one.of_peak.values == 1]],
            "n_eff": [_number(value) for value in one.n_eff.values],
            "chi": [estimate_data(values) for values in one.chi.values],
            "xi": [_plain_length(values) for values in one.xi.values],
            "distance": [float(r) for r in one.distance.values],
            "correlation": [[estimate_data(values) for values in row] for row in one.correlation.values],
        }
        for one in (study.isel(changes=k) for k in range(study.sizes.get("changes", 0)))
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": study.attrs["description"],
        **{
            name: study.attrs[name]
            for name in ("spec_hash", "items", "trajectories", "clones", "seed", "remark")
            if name in study.attrs
        },
        "warnings": warnings_of(study.attrs),
        "intervals": "95 %, from the differences between originals, or grammars if there are several",
        "noise": {axis: [_number(x) for x in (study[axis] if axis in study.coords else study.noise).values] for axis in axes},
        "readings": readings,
        "series": series,
        "changes": changes,
        **({"calibration": _passed(study)} if "gap" in study else {}),
    }


def _passed(study: xr.Dataset) -> dict[str, Any]:
    """Of each family of tests, whether no gap is detected."""
    level, passed = float(study.gap_level), {}
    for family in dict.fromkeys(study.family.values.tolist()):
        p = study.gap_p.isel(reading=study.family.values == family)
        if p.notnull().any():
            passed[family] = bool((p.where(p.notnull(), 1) > level).all())
    return {"level": level, "passed": passed}


def _number(value: Any) -> float | None:
    value = float(value)
    return value if np.isfinite(value) else None


def _plain_length(values: np.ndarray) -> dict[str, Any]:
    """A length with its interval; "infinite" where 1/length is not above 0."""
    return {
        name: "infinite" if np.isinf(v) else one for (name, one), v in zip(estimate_data(values).items(), values, strict=True)
    }
