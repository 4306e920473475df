"""A study as tables: on a terminal and in notebooks, and as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
import xarray as xr
from rich.console import Console
from rich.table import Column, Table

from uturn.core import display
from uturn.core.checks import expect
from uturn.measures.estimates import ESTIMATE, with_interval
from uturn.store.run_folder import warnings_of
from uturn.studies.axes import axis_words
from uturn.studies.headline import headline_of
from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.remarks import lines_in
from uturn.studies.runs import differing_fields
from uturn.studies.schema import TEXTS

_OF_FORMULAS = tuple("=+-@\t\r")  # how formulas of spreadsheets begin
_VISIBLE = "smallest detectable gap"


class Study(xr.Dataset):
    """The dataset of `uturn.study`, which prints as its table; a selection that is no longer a
    study prints as a dataset.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if not _is_whole(self):
            return super().__repr__()
        console = Console(
            width=120, color_system=None, force_jupyter=False, highlight=False, markup=False
        )
        with console.capture() as text:
            for part in summary(self):
                console.print(part)
        return text.get().rstrip()

    def _repr_html_(self) -> str:
        if not _is_whole(self):
            return super()._repr_html_()
        parts = [display.table(part.heads, part.rows) for part in parts_of(self)]
        return display.page(
            self.attrs.get("description", "study"),
            *parts,
            note=" ".join(f"{line}." for line in remarks(self)),
        )


def _is_whole(data: xr.Dataset) -> bool:
    return {"curve", "half_life", "width"} <= set(data.data_vars) and {
        "reading",
        "axis",
        "estimate",
    } <= set(data.dims)


def _check_study(study: Any) -> None:
    found = dict(study.sizes) if isinstance(study, xr.Dataset) else study
    expect(
        isinstance(study, xr.Dataset) and _is_whole(study),
        "study",
        found,
        "the dataset that uturn.study gives",
    )


class TextTable(NamedTuple):
    """A table as plain text: title, headings, rows of cells."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def for_terminal(part: TextTable) -> Any:
    """The table as rich draws it on a terminal."""
    table = Table(
        *(Column(head, overflow="fold") for head in part.heads),
        title=part.title,
        title_justify="left",
    )
    for row in part.rows:
        table.add_row(*row)
    return table


def summary(study: xr.Dataset, most: int = 8, width: int | None = None) -> Iterator[Any]:
    """A study for a terminal: tables (rich) with at most `most` levels of a variable, then remarks
    as lines of text.

    A table wider than `width` columns leaves out further noise axes, and then other columns.
    """
    _check_study(study)
    axes = tuple(map(str, study.axis.values[1:]))
    for part in parts_of(study, most):
        columns = list(zip(part.heads, *part.rows, strict=True))
        for hidden in ((), axes, (*axes, "width", _VISIBLE)):
            chosen = [column for column in columns if column[0] not in hidden]
            if width is None or sum(2 + max(map(len, column)) for column in chosen) - 2 <= width:
                break
        heads, *rows = zip(*chosen, strict=True)
        yield for_terminal(TextTable(part.title, heads, rows))
    yield from remarks(study)


def parts_of(study: xr.Dataset, most: int = 8) -> Iterator[TextTable]:
    axes, x = [str(axis) for axis in study.axis.values], axis_words(study)
    on_axes, rows = (f"{x} [95 % interval]", *axes[1:]), []
    of_groups = [np.flatnonzero(study.group.values == group) for group in _groups(study)]
    readings = [
        study.isel(reading=of[k])
        for of in of_groups
        for k in evenly_chosen(study.variable.values[of], most)
    ]
    for reading in readings:
        cells = [*_place(reading.half_life.values, axes), with_interval(reading.width.values[0])]
        at_end = f"{with_interval(reading.curve.values[-1])} {reading.unit.item()}".rstrip()
        rows.append(
            (
                str(reading.reading.item()),
                *(cells if np.isfinite(reading.start) else [""] * len(cells)),
                at_end,
            )
        )
    if rows:
        headline = headline_of(study)
        star = f"; t* is that of {headline.reading}" if headline and headline.label == "t*" else ""
        heads = ("reading", *on_axes, "width", f"at {x} = {float(study.noise[-1]):.3g}")
        yield TextTable(f"half of the way from start to chance{star}", heads, rows)
    if "inversion" in study:
        series = [study.isel(series=k) for k in range(study.sizes["series"])]
        names = [
            f"{entry.series.item()}: {entry['last'].item()} falls below {entry['first'].item()}"
            for entry in series
        ]
        rows = [
            (name, *_place(entry.inversion.values, axes))
            for name, entry in zip(names, series, strict=True)
        ]
        yield TextTable("order of levels", ("series", *on_axes), rows)
    if "chi" in study:
        rows = []
        for changes in (study.isel(changes=k) for k in range(study.sizes["changes"])):
            place = _place(changes.peak_at.values, axes)
            height = f"chi {with_interval(changes.peak.values)}"
            height += (
                ", largest of the measured levels" if np.isfinite(changes.peak.values[0]) else ""
            )
            rows.append((f"{changes.changes.item()}: chi is largest", *place, height))
            if np.isfinite(peak := changes.peak_at.values[0, 0]):
                near = int(np.abs(study.noise.values - peak).argmin())
                _, low, high = bounds = changes.xi.values[near]
                length = f"above {low:.3g}" if np.isinf(high) else with_interval(bounds)
                place = [f"{float(study.noise[near]):.3g}", *[""] * (len(axes) - 1)]
                rows.append(
                    (
                        "correlation length there",
                        *place,
                        f"xi {length} {changes.unit_of_distance.item()}",
                    )
                )
        yield TextTable("changes of sites", ("", *on_axes, "value [95 % interval]"), rows)
    if "theory" in study:
        rows = []
        for reading in readings:
            apart = abs(reading.curve.isel(estimate=0) - reading.theory)
            if apart.notnull().any():
                worst = reading.isel(noise=int(apart.argmax("noise")))
                values = with_interval(worst.curve.values), f"{float(worst.theory):.3g}"
                rows.append((str(reading.reading.item()), f"{float(worst.noise):.3g}", *values))
        critical = (
            f", ε* = {study.attrs['critical_noise']:.3g}" if "critical_noise" in study.attrs else ""
        )
        title = f"mean field{critical}: where it differs most from the curve"
        yield TextTable(title, ("reading", f"at {x}", "curve [95 % interval]", "mean field"), rows)
    for family, tested in tested_families(study).items():
        rows = []
        for reading in readings:
            if reading.reading.item() in tested.reading:
                worst = reading.isel(noise=int(reading.gap_p.argmin("noise", skipna=True)))
                visible = (
                    f"{float(worst.gap_visible):.2g}" if np.isfinite(worst.gap_visible) else "none"
                )
                at, p = f"{float(worst.noise):.3g}", f"{float(worst.gap_p):.2g}"
                rows.append(
                    (str(reading.reading.item()), at, with_interval(worst.gap.values), p, visible)
                )
        verdict = calibration_words(tested, float(study.gap_level))
        heads = ("f", f"at {x}", "gap [95 % interval]", "p by Holm", _VISIBLE)
        title = (
            f"calibration of {family}, gap E f(x0, x̂) - E f(x̂, x̂') of the clones where p is"
            f" smallest; {verdict}"
        )
        yield TextTable(title, heads, rows)


def evenly_chosen(variables: np.ndarray, most: int) -> list[int]:
    """Indices of readings: at most `most` of each variable, evenly spaced."""
    rows = [np.flatnonzero(variables == name) for name in dict.fromkeys(variables.tolist())]
    return [int(some[k]) for some in rows for k in evenly_spaced(len(some), most)]


def _groups(study: xr.Dataset, first: Sequence[str] = ()) -> list[str]:
    """Names of the groups of readings: `first`, then the headline's group, then the others in
    the order of the probes.
    """
    headline, known = headline_of(study), study.group.values.tolist()
    of_headline = (
        []
        if headline is None
        else study.group.values[study.reading.values == headline.reading].tolist()
    )
    return [name for name in dict.fromkeys([*first, *of_headline, *known]) if name in known]


def panels_of(study: xr.Dataset, first: Sequence[str] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Title and readings of each panel: those of a group share one, except variables with
    several levels.
    """
    for group in _groups(study, first):
        members = np.flatnonzero(study.group.values == group)
        variables = study.variable.values[members]
        by_variable = {
            name: members[variables == name] for name in dict.fromkeys(variables.tolist())
        }
        single = [int(some[0]) for some in by_variable.values() if len(some) == 1]
        for name, some in by_variable.items():
            if len(some) > 1:
                yield (group if len(by_variable) == 1 else f"{group}: {name}"), some
        if single:
            yield group, np.array(single)


def _place(places: np.ndarray, axes: Sequence[str]) -> list[str]:
    """A noise (axis, estimate) as table cells, with its interval on the first axis only."""
    others = [
        "" if np.isnan(value) else f"{value:.1f}" if axis == "step" else f"{value:.3g}"
        for axis, value in zip(axes[1:], places[1:, 0], strict=True)
    ]
    return [with_interval(places[0]), *others]


def tested_families(study: xr.Dataset) -> dict[str, xr.Dataset]:
    """The readings whose calibration was tested, by family; empty for a study without clones."""
    if "gap" not in study:
        return {}
    tested = study.isel(reading=study.gap_p.notnull().any("noise").values)
    families = dict.fromkeys(tested.family.values.tolist())
    return {str(family): tested.isel(reading=tested.family.values == family) for family in families}


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
        words = variable.replace("_", " ") if has_several or not level else ""
        names.append(", ".join(filter(None, (words, level))))
    return names


def title_of(study: xr.Dataset, label: str) -> str:
    """The quantity of a reading in words, with its level."""
    k = study.reading.values.tolist().index(label)
    long_name = str(study.words.values[k]) or label
    return f"{long_name}, {names_in_panel(study, [k])[0]}" if study.level.values[k] else long_name


def calibration_words(tested: xr.Dataset, level: float) -> str:
    if bool((tested.gap_p <= level).any()):
        return "not draws from the posterior"
    return (
        "no gap is detected"
        if bool(np.isfinite(tested.gap_visible).any())
        else "too few originals to detect a gap"
    )


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
    about = {"reading": "remark", "series": "series_remark", "changes": "changes_remark"}
    for dim, name in about.items():
        texts = study[name].values if name in study.coords else np.array([], str)
        for remark in filter(None, dict.fromkeys(texts.tolist())):
            names = study[dim].values[texts == remark].tolist()
            lines.append(
                f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}:"
                f" {remark}"
            )
    return lines


def number_in(text: str) -> float | str:
    """A number that is given as text; other text is unchanged."""
    try:
        return float(text)
    except ValueError:
        return text


def csv_of(*frames: pandas.DataFrame) -> str:
    """Frames as CSV, one below the other; texts that a spreadsheet would run as formulas begin
    with an apostrophe.
    """

    def text_of(cell: Any) -> Any:
        return (
            f"'{cell}"
            if isinstance(cell, str)
            and cell[:1] in _OF_FORMULAS
            and isinstance(number_in(cell), str)
            else cell
        )

    frame = pandas.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    texts = frame.select_dtypes(exclude="number").columns
    return (
        frame.assign(**{name: frame[name].map(text_of) for name in texts})
        .rename(columns=text_of)
        .to_csv(index=False)
    )


class Tidy(NamedTuple):
    """A study as pandas frames."""

    # A row for each reading and noise level: value, low, high, and, with clones, gap and p.
    curves: pandas.DataFrame
    # A row for each number on each axis: places, half-lives, widths, inversions, peaks.
    numbers: pandas.DataFrame


def tidy(study: xr.Dataset | Mapping[str, xr.Dataset]) -> Tidy:
    """One study, or several by name, as pandas frames (`Tidy`).

    For several, the column `run` holds the name, and that of each spec field that differs, such as
    `multiplicity`, its value (`spec.NAME` if there is a column NAME); fields that are lists are
    left out.
    """
    if isinstance(study, Mapping) and not isinstance(study, xr.Dataset) and study:
        parts = []
        for (name, member), fields in zip(
            study.items(), differing_fields(list(study.values())), strict=True
        ):
            columns = {"run": name} | {
                key: number_in(text) for key, text in fields.items() if not text.startswith("[")
            }
            parts.append(tidy(member))
            for frame in parts[-1]:
                for k, (key, value) in enumerate(columns.items()):
                    frame.insert(k, f"spec.{key}" if key in frame else key, value)
        return Tidy(
            *(pandas.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
        )
    _check_study(study)
    assert isinstance(study, xr.Dataset)
    readings = pandas.DataFrame({key: study[key].values for key in ("reading", *TEXTS)})
    axes = {
        str(name): values.values
        for name, values in study.coords.items()
        if values.dims == ("noise",)
    }
    curves = readings.merge(pandas.DataFrame(axes), how="cross")
    curves[list(ESTIMATE)] = study.curve.values.reshape(-1, 3)
    if "theory" in study:
        curves["theory"] = study.theory.values.ravel()
    if "gap" in study:
        curves[["gap", "gap_low", "gap_high"]] = study.gap.values.reshape(-1, 3)
        curves["gap_p"] = study.gap_p.values.ravel()

    def numbers_of(dim: str, **quantities: xr.DataArray) -> pandas.DataFrame:
        """A row for every name, axis and quantity."""
        values = (
            xr.Dataset(quantities)
            .to_dataarray("quantity")
            .transpose(dim, "axis", "quantity", "estimate")
        )
        return rows_of(values).rename(columns={dim: "of"})[["of", "quantity", "axis", *ESTIMATE]]

    places = {
        f"place {float(share):g}": study.place.sel(share=share, drop=True) for share in study.share
    }
    numbers = [numbers_of("reading", **places, half_life=study.half_life, width=study.width)]
    if "inversion" in study:
        numbers.append(numbers_of("series", inversion=study.inversion))
    if "chi" in study:
        numbers += [
            numbers_of("changes", peak_at=study.peak_at),
            numbers_of("changes", peak=study.peak.expand_dims({"axis": [""]})),
        ]
    return Tidy(
        curves,
        pandas.concat([frame for frame in numbers if len(frame)] or numbers, ignore_index=True),
    )


def rows_of(values: xr.DataArray) -> pandas.DataFrame:
    """An array (.., estimate) as a frame: a column for each dim, then value, low and high."""
    table = values.reset_coords(drop=True).to_dataset("estimate")
    return table.to_dataframe(dim_order=list(values.dims[:-1])).reset_index()
