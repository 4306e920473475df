"""A study as tables: on a terminal and in notebooks, and as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas
import xarray as xr
from rich.table import Column, Table

from uturn.core import display
from uturn.core.checks import expect
from uturn.core.csv_text import number_in
from uturn.measures.estimates import ESTIMATE, with_interval
from uturn.store.run_folder import warnings_of
from uturn.studies.axes import axis_words
from uturn.studies.headline import STAR, headline_of
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.remarks import first_names, lines_in
from uturn.studies.runs import differing_fields
from uturn.studies.schema import TEXTS

_VISIBLE = "smallest detectable gap"


class Study(xr.Dataset):
    """The dataset of `uturn.study`, which prints as its table; a selection that is no longer a
    study prints as a dataset.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if not _is_whole(self):
            return super().__repr__()
        return display.text(*summary(self))

    def _repr_html_(self) -> str:
        if not _is_whole(self):
            return super()._repr_html_()
        parts = [display.table(part.heads, part.rows) for part in parts_of(self)]
        note = " ".join(f"{line}." for line in remarks(self))
        return display.page(self.attrs.get("description", "study"), *parts, note=note)


def _is_whole(data: xr.Dataset) -> bool:
    has_variables = {"curve", "half_life", "width"} <= set(data.data_vars)
    return has_variables and {"reading", "axis", "estimate"} <= set(data.dims)


def _check_study(study: object) -> None:
    is_study = isinstance(study, xr.Dataset) and _is_whole(study)
    found = dict(study.sizes) if isinstance(study, xr.Dataset) else study
    expect(is_study, "study", found, "the dataset that uturn.study gives")


class TextTable(NamedTuple):
    """A table as plain text: title, headings, rows of cells."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def without(self, hidden: Sequence[str]) -> TextTable:
        """The table without the columns of some headings."""
        shown = [k for k, head in enumerate(self.heads) if head not in hidden]
        rows = [tuple(row[k] for k in shown) for row in self.rows]
        return TextTable(self.title, tuple(self.heads[k] for k in shown), rows)

    @property
    def width(self) -> int:
        """Characters of a line, with two spaces between columns."""
        columns = zip(self.heads, *self.rows, strict=True)
        return sum(2 + max(map(len, column)) for column in columns) - 2


def for_terminal(part: TextTable) -> Table:
    """The table as rich draws it on a terminal."""
    columns = [Column(head, overflow="fold") for head in part.heads]
    table = Table(*columns, title=part.title, title_justify="left")
    for row in part.rows:
        table.add_row(*row)
    return table


def summary(study: xr.Dataset, most: int = 8, width: int | None = None) -> Iterator[Table | str]:
    """A study for a terminal: tables (rich) with at most `most` levels of a variable, then remarks
    as lines of text.

    A table wider than `width` columns leaves out further noise axes, and then other columns.
    """
    _check_study(study)
    axes = _axes(study)[1:]
    for table in parts_of(study, most):
        shown = table
        for hidden in (axes, [*axes, "width", _VISIBLE]):
            if width is not None and shown.width > width:
                shown = table.without(hidden)
        yield for_terminal(shown)
    yield from remarks(study)


# --- tables ---------------------------------------------------------------------------------------


def parts_of(study: xr.Dataset, most: int = 8) -> Iterator[TextTable]:
    """The tables of a study, with at most `most` levels of a variable."""
    readings = []
    for group in _groups(study):
        members = np.flatnonzero(study.group.values == group)
        for k in evenly_chosen(study.variable.values[members], most):
            readings.append(study.isel(reading=members[k]))
    if readings:
        yield _table_of_readings(study, readings)
    if "inversion" in study:
        yield _table_of_series(study)
    if "chi" in study:
        yield _table_of_changes(study)
    if "theory" in study:
        yield _table_of_theory(study, readings)
    for family, tested in tested_families(study).items():
        yield _table_of_calibration(study, readings, family, tested)


def _table_of_readings(study: xr.Dataset, readings: Sequence[xr.Dataset]) -> TextTable:
    axes = _axes(study)
    rows = []
    for reading in readings:
        cells = [""] * (len(axes) + 1)
        if np.isfinite(reading.start):
            width = with_interval(reading.width.values[0])
            cells = [*_place_cells(reading.half_life.values, axes), width]
        last = f"{with_interval(reading.curve.values[-1])} {reading.unit.item()}".rstrip()
        rows.append((str(reading.reading.item()), *cells, last))
    title = "half of the way from start to chance"
    headline = headline_of(study)
    if headline and headline.label == STAR:
        title += f"; {STAR} is that of {headline.reading}"
    at_end = f"at {axis_words(study)} = {float(study.noise[-1]):.3g}"
    return TextTable(title, ("reading", *_place_heads(study), "width", at_end), rows)


def _table_of_series(study: xr.Dataset) -> TextTable:
    axes = _axes(study)
    rows = []
    for k in range(study.sizes["series"]):
        series = study.isel(series=k)
        last = series["last"].item()
        name = f"{series.series.item()}: {last} falls below {series['first'].item()}"
        rows.append((name, *_place_cells(series.inversion.values, axes)))
    return TextTable("order of levels", ("series", *_place_heads(study)), rows)


def _table_of_changes(study: xr.Dataset) -> TextTable:
    axes = _axes(study)
    rows = []
    for k in range(study.sizes["changes"]):
        changes = study.isel(changes=k)
        name = f"{changes.changes.item()}: chi is largest"
        height = f"chi {with_interval(changes.peak.values)}"
        if np.isfinite(changes.peak.values[0]):
            height += ", largest of the measured levels"
        rows.append((name, *_place_cells(changes.peak_at.values, axes), height))
        peak = changes.peak_at.values[0, 0]
        if np.isfinite(peak):
            rows.append(_row_of_length(changes, peak))
    return TextTable("changes of sites", ("", *_place_heads(study), "value [95 % interval]"), rows)


def _row_of_length(changes: xr.Dataset, peak: float) -> tuple[str, ...]:
    """The correlation length at the noise level nearest to the peak."""
    distances = np.abs(changes.noise.values - peak)
    nearest = int(distances.argmin())
    interval = changes.xi.values[nearest]
    low, high = interval[1:]
    length = with_interval(interval)
    if np.isinf(high):
        length = f"above {low:.3g}"
    place = f"{float(changes.noise[nearest]):.3g}"
    others = [""] * (changes.sizes["axis"] - 1)
    value = f"xi {length} {changes.unit_of_distance.item()}"
    return ("correlation length there", place, *others, value)


def _table_of_theory(study: xr.Dataset, readings: Sequence[xr.Dataset]) -> TextTable:
    rows: list[tuple[str, ...]] = []
    for reading in readings:
        difference = abs(reading.curve.isel(estimate=0) - reading.theory)
        if not difference.notnull().any():
            continue
        worst = reading.isel(noise=int(difference.argmax("noise")))
        noise = f"{float(worst.noise):.3g}"
        value = with_interval(worst.curve.values)
        rows.append((str(reading.reading.item()), noise, value, f"{float(worst.theory):.3g}"))
    title = "mean field"
    if "critical_noise" in study.attrs:
        title += f", ε* = {study.attrs['critical_noise']:.3g}"
    heads = ("reading", f"at {axis_words(study)}", "curve [95 % interval]", "mean field")
    return TextTable(f"{title}: where it differs most from the curve", heads, rows)


def _table_of_calibration(
    study: xr.Dataset, readings: Sequence[xr.Dataset], family: str, tested: xr.Dataset
) -> TextTable:
    rows: list[tuple[str, ...]] = []
    for reading in readings:
        name = str(reading.reading.item())
        if name not in tested.reading:
            continue
        worst = reading.isel(noise=int(reading.gap_p.argmin("noise", skipna=True)))
        noise = f"{float(worst.noise):.3g}"
        p = f"{float(worst.gap_p):.2g}"
        visible = "none"
        if np.isfinite(worst.gap_visible):
            visible = f"{float(worst.gap_visible):.2g}"
        rows.append((name, noise, with_interval(worst.gap.values), p, visible))
    verdict = calibration_words(tested, float(study.gap_level))
    title = (
        f"calibration of {family}, gap E f(x0, x̂) - E f(x̂, x̂') of the clones where p is"
        f" smallest; {verdict}"
    )
    heads = ("f", f"at {axis_words(study)}", "gap [95 % interval]", "p by Holm", _VISIBLE)
    return TextTable(title, heads, rows)


def _axes(study: xr.Dataset) -> list[str]:
    return [str(axis) for axis in study.axis.values]


def _place_heads(study: xr.Dataset) -> list[str]:
    return [f"{axis_words(study)} [95 % interval]", *_axes(study)[1:]]


def _place_cells(places: np.ndarray, axes: Sequence[str]) -> list[str]:
    """A noise (axis, estimate) as table cells, with its interval on the first axis only."""
    cells = [with_interval(places[0])]
    for axis, value in zip(axes[1:], places[1:, 0], strict=True):
        if np.isnan(value):
            cells.append("")
        elif axis == "step":
            cells.append(f"{value:.1f}")
        else:
            cells.append(f"{value:.3g}")
    return cells


# --- groups and names of readings -----------------------------------------------------------------


def evenly_chosen(variables: np.ndarray, most: int) -> list[int]:
    """Indices of readings: at most `most` of each variable, evenly spaced."""
    chosen: list[int] = []
    for name in dict.fromkeys(variables.tolist()):
        levels = np.flatnonzero(variables == name)
        chosen += levels[evenly_spaced(len(levels), most)].tolist()
    return chosen


def _groups(study: xr.Dataset, first: Sequence[str] = ()) -> list[str]:
    """Names of the groups of readings: `first`, then the headline's group, then the others in
    the order of the probes.
    """
    groups = study.group.values.tolist()
    order = list(first)
    headline = headline_of(study)
    if headline is not None:
        order += study.group.values[study.reading.values == headline.reading].tolist()
    return [name for name in dict.fromkeys(order + groups) if name in groups]


def panels_of(study: xr.Dataset, first: Sequence[str] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Title and readings of each panel: a group has one panel for its variables with a single
    level, and one for each other variable.
    """
    for group in _groups(study, first):
        members = np.flatnonzero(study.group.values == group)
        variables = study.variable.values[members]
        names = list(dict.fromkeys(variables.tolist()))
        single = []
        for name in names:
            levels = members[variables == name]
            if len(levels) == 1:
                single.append(int(levels[0]))
            elif len(names) == 1:
                yield group, levels
            else:
                yield f"{group}: {name}", levels
        if single:
            yield group, np.array(single)


def tested_families(study: xr.Dataset) -> dict[str, xr.Dataset]:
    """The readings whose calibration was tested, by family; empty for a study without clones."""
    if "gap" not in study:
        return {}
    is_tested = study.gap_p.notnull().any("noise")
    tested = study.isel(reading=is_tested.values)
    names = dict.fromkeys(tested.family.values.tolist())
    return {str(name): tested.isel(reading=tested.family.values == name) for name in names}


def names_in_panel(study: xr.Dataset, chosen: Sequence[int] | np.ndarray) -> list[str]:
    """Short names of readings in one panel: the levels of a single variable, or names of
    variables with their levels if any.
    """
    part = study.isel(reading=np.asarray(chosen, int))
    variables = part.variable.values.tolist()
    dims = part.level_dim.values.tolist()
    has_several = len(set(variables)) > 1
    names = []
    for variable, dim, level in zip(variables, dims, part.level.values.tolist(), strict=True):
        if dim and level.replace(".", "", 1).isdigit():  # a number alone says nothing
            level = f"{dim.replace('_', ' ')} {level}"
        parts = [level]
        if has_several or not level:
            parts = [variable.replace("_", " "), level]
        names.append(", ".join(filter(None, parts)))
    return names


def title_of(study: xr.Dataset, label: str) -> str:
    """The quantity of a reading in words, with its level."""
    k = study.reading.values.tolist().index(label)
    long_name = str(study.words.values[k]) or label
    if not study.level.values[k]:
        return long_name
    return f"{long_name}, {names_in_panel(study, [k])[0]}"


def calibration_words(tested: xr.Dataset, level: float) -> str:
    """The verdict of the tests of a family at a false-alarm level."""
    if bool((tested.gap_p <= level).any()):
        return "not draws from the posterior"
    if bool(np.isfinite(tested.gap_visible).any()):
        return "no gap is detected"
    return "too few originals to detect a gap"


# --- remarks --------------------------------------------------------------------------------------


def remarks(study: xr.Dataset) -> list[str]:
    """The remarks of a study as lines: warnings, remarks on the run, and remarks on its
    readings.
    """
    return [*warnings_of(study.attrs), *remarks_on_run(study), *remarks_on_readings(study)]


def remarks_on_run(study: xr.Dataset) -> list[str]:
    return lines_in(str(study.attrs.get("remark", "")))


def remarks_on_readings(study: xr.Dataset) -> list[str]:
    """The remarks on readings, series and changes; equal remarks share a line."""
    lines = []
    for dim, coordinate in (
        ("reading", "remark"),
        ("series", "series_remark"),
        ("changes", "changes_remark"),
    ):
        if coordinate not in study.coords:
            continue
        texts = study[coordinate].values
        for remark in filter(None, dict.fromkeys(texts.tolist())):
            names = study[dim].values[texts == remark].tolist()
            lines.append(f"{first_names(names)}: {remark}")
    return lines


# --- frames ---------------------------------------------------------------------------------------


class Tidy(NamedTuple):
    """A study as pandas frames."""

    curves: pandas.DataFrame
    """A row for each reading and noise level: value, low, high, and, with clones, gap and p."""
    numbers: pandas.DataFrame
    """A row for each number on each axis: places, half-lives, widths, inversions, peaks."""


def tidy(study: xr.Dataset | Mapping[str, xr.Dataset]) -> Tidy:
    """One study, or several by name, as pandas frames (`Tidy`).

    For several, the column `run` holds the name, and each spec field that differs, such as
    `multiplicity`, has a column with its values (`spec.NAME` if there is a column NAME). Fields
    that are lists are left out.
    """
    if isinstance(study, Mapping) and not isinstance(study, xr.Dataset) and study:
        return _tidy_of_several(study)
    _check_study(study)
    assert isinstance(study, xr.Dataset)
    return Tidy(_frame_of_curves(study), _frame_of_numbers(study))


def _tidy_of_several(studies: Mapping[str, xr.Dataset]) -> Tidy:
    """The frames of several studies, one below the other, with columns that say which."""
    fields = differing_fields(list(studies.values()))
    parts = []
    for (name, study), own_fields in zip(studies.items(), fields, strict=True):
        columns: dict[str, float | str] = {"run": name}
        columns |= {
            key: number_in(text) for key, text in own_fields.items() if not text.startswith("[")
        }
        part = tidy(study)
        for frame in part:
            for k, (key, value) in enumerate(columns.items()):
                frame.insert(k, f"spec.{key}" if key in frame else key, value)
        parts.append(part)
    return Tidy(
        pandas.concat([part.curves for part in parts], ignore_index=True),
        pandas.concat([part.numbers for part in parts], ignore_index=True),
    )


def _frame_of_curves(study: xr.Dataset) -> pandas.DataFrame:
    readings = pandas.DataFrame({key: study[key].values for key in ("reading", *TEXTS)})
    axes = {
        str(name): axis.values for name, axis in study.coords.items() if axis.dims == ("noise",)
    }
    curves = readings.merge(pandas.DataFrame(axes), how="cross")
    curves[list(ESTIMATE)] = study.curve.values.reshape(-1, 3)
    if "theory" in study:
        curves["theory"] = study.theory.values.ravel()
    if "gap" in study:
        curves[["gap", "gap_low", "gap_high"]] = study.gap.values.reshape(-1, 3)
        curves["gap_p"] = study.gap_p.values.ravel()
    return curves


def _frame_of_numbers(study: xr.Dataset) -> pandas.DataFrame:
    quantities = {}
    for share in study.share:
        quantities[f"place {float(share):g}"] = study.place.sel(share=share, drop=True)
    quantities["half_life"] = study.half_life
    quantities["width"] = study.width
    frames = [_frame_of(quantities, "reading")]
    if "inversion" in study:
        frames.append(_frame_of({"inversion": study.inversion}, "series"))
    if "chi" in study:
        frames.append(_frame_of({"peak_at": study.peak_at}, "changes"))
        frames.append(_frame_of({"peak": study.peak.expand_dims({"axis": [""]})}, "changes"))
    filled = [frame for frame in frames if len(frame)]
    return pandas.concat(filled or frames, ignore_index=True)


def _frame_of(quantities: Mapping[str, xr.DataArray], dim: str) -> pandas.DataFrame:
    """A row for every name along a dim, axis and quantity."""
    values = xr.Dataset(quantities).to_dataarray("quantity")
    frame = rows_of(values.transpose(dim, "axis", "quantity", "estimate"))
    return frame.rename(columns={dim: "of"})[["of", "quantity", "axis", *ESTIMATE]]


def rows_of(values: xr.DataArray) -> pandas.DataFrame:
    """An array (.., estimate) as a frame: a column for each dim, then value, low and high."""
    table = values.reset_coords(drop=True).to_dataset("estimate")
    return table.to_dataframe(dim_order=list(values.dims[:-1])).reset_index()
