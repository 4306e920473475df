"""Tables of readings in long form, a row for each U-turn, as arrays."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import expect
from uturn.core.files import check_plain, checked_path
from uturn.core.messages import shown
from uturn.studies.csv_tables import is_number, read_csv, read_parquet

AXES = ("noise", "item", "trajectory", "clone")
"""Dims of readings, in this order; a further axis is one of levels."""
COLUMNS = "columns noise, item, perhaps trajectory and clone, and readings"
NEAR = 1e-9
"""Relative difference of two noise levels up to which they are one."""
_MOST_PLACES = 2**26
"""U-turns, for all readings, of which few have a row; half a gigabyte."""
_NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # 01 is a name

Labels = tuple[str, ArrayLike]
"""Labels along a dim: its name, and the values."""


def is_table(place: object) -> bool:
    """Whether a place is a table of readings, by the ending of its name."""
    return str(place).lower().endswith((".csv", ".tsv", ".parquet"))


def read_long_form(
    path: str | Path, labels: Collection[str] = (), columns: Mapping[str, str] = {}
) -> pandas.DataFrame:
    """The table in a CSV or Parquet file. `labels`: further columns of text; `columns`: {name in
    `AXES`: name in the file}.
    """
    path = checked_path("path", path)
    names = [*labels, *AXES[1:]]
    names += [name for axis, name in columns.items() if axis != "noise"]
    try:
        # Pandas would take the folders "~" and "http:" of a relative path for something else.
        place = os.path.realpath(path)
        check_plain(place)
        if path.lower().endswith(".parquet"):
            table = read_parquet(place)
        else:
            table = read_csv(place, {str(name).lower() for name in names})
    except ImportError:
        raise ValueError(
            f"cannot read the table {path}: needs pyarrow; `pip install pyarrow`, or write it as a"
            " CSV file"
        ) from None
    except (OSError, ValueError, csv.Error) as error:  # pandas' errors of parsing are ValueErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            reason = "No such file"
        raise ValueError(
            f"cannot read the table {path}: {reason}; expected a CSV or Parquet file with {COLUMNS}"
        ) from None
    table = table.rename(columns=str.strip)
    axes = {}
    known = (
        f"one of {', '.join(AXES)}, and a column of the table: {', '.join(map(str, table.columns))}"
    )
    for axis, name in columns.items():
        # Upper and lower case count only where names differ by nothing else.
        alike = [column for column in table.columns if column.lower() == str(name).lower()]
        column = alike[0] if len(alike) == 1 else name
        expect(axis in AXES and column in alike, f"columns: {axis}", name, known)
        axes[column] = axis
    return table.rename(columns=axes)


@dataclass(frozen=True, eq=False)
class LongForm:
    """A table in long form as arrays."""

    readings: dict[str, xr.DataArray]
    """Arrays with the dims of `AXES` that the table has, NaN where it has no row."""
    noise: np.ndarray
    """The noise levels, increasing."""
    coordinates: dict[str, Labels]
    """Labels of the items, and other coordinates of items or noise levels."""

    @classmethod
    def of(cls, table: pandas.DataFrame, labels: Collection[str] | None) -> LongForm:
        """The arrays of a table, of which the columns `labels` are labels; otherwise ValueError."""
        columns = _Columns.of(_with_axes(table), labels)
        table = _converted(columns)
        _check_no_repetition(table, columns.keys)
        codes = []
        uniques = []
        for name in columns.keys:
            # Items keep their order, unless they are numbers.
            is_sorted = name != "item" or is_number(table[name])
            code, unique = pandas.factorize(table[name], sort=is_sorted)
            codes.append(code)
            uniques.append(unique)
        shape = tuple(map(len, uniques))
        _check_filled(columns, shape)
        readings = {}
        label_columns = list(columns.labels)
        for column in columns.readings:
            if len(columns.readings) > 1 and _is_label(table, column):
                label_columns.append(str(column))
                continue
            values = np.full(shape, np.nan)
            values[tuple(codes)] = table[column]
            readings[str(column)] = xr.DataArray(values, dims=columns.keys)
        noise, items = uniques[:2]
        coordinates: dict[str, Labels] = {"item": ("item", np.asarray(items))}
        for name in label_columns:
            coordinates[str(name)] = _labels_along(table, name, {"item": items, "noise": noise})
        return cls(readings, np.asarray(noise), coordinates)


@dataclass(frozen=True, eq=False)
class _Columns:
    """The columns of a table by what they hold."""

    table: pandas.DataFrame
    keys: list[str]
    """Axes, in the order of `AXES`."""
    labels: list[str]
    readings: list[Hashable]

    @classmethod
    def of(cls, table: pandas.DataFrame, labels: Collection[str] | None) -> _Columns:
        columns = list(table.columns)
        chosen = [] if labels is None else labels
        are_columns = not isinstance(chosen, str | Mapping) and set(chosen) <= set(columns)
        listed = ", ".join(map(str, columns))
        expect(are_columns, "coords", chosen, f"a list of columns of the table: {listed}")
        keys = [name for name in AXES if name in columns]
        others = [name for name in chosen if name not in keys]  # an axis labels itself
        readings = [name for name in columns if name not in (*keys, *others)]
        twice = sorted({str(name) for name in columns if columns.count(name) > 1})
        if twice:
            raise ValueError(
                f"the table has several columns {', '.join(twice)}; give them other names"
            )
        if keys[:2] != ["noise", "item"] or not readings:
            raise ValueError(
                f"the table has the columns {listed}; expected {COLUMNS}, or their names in columns"
                " = {'noise': NAME, 'item': NAME} (--columns noise=NAME,item=NAME)"
            )
        expect(len(table), "rows of the table", 0, "one for each U-turn")
        return cls(table, keys, others, readings)


def _with_axes(table: pandas.DataFrame) -> pandas.DataFrame:
    """A table whose axes are columns with their names in lower case."""
    if None not in table.index.names:  # columns that are names of the rows
        table = table.reset_index()
    names = {}
    for name in table.columns:
        axis = str(name).lower()
        if axis in AXES and axis not in table.columns:
            names[name] = axis
    return table.rename(columns=names)


def _converted(columns: _Columns) -> pandas.DataFrame:
    """The table with numbers as numbers, and noise levels that differ by rounding as one."""
    table = columns.table
    numbers = {str(name): _numbers(table[name], name) for name in ("noise", *columns.readings)}
    table = table.assign(**numbers)
    for name in columns.keys:
        missing = table[name].isnull() | (table[name] == "")
        where = f"column {name}: row {_row(missing)}"
        expect(not missing.any(), where, "", "a value in every row")
    labels = {str(name): _labels(table[name]) for name in (*columns.keys[1:], *columns.labels)}
    return table.assign(noise=_levels(table["noise"]), **labels)


def _check_no_repetition(table: pandas.DataFrame, keys: Sequence[str]) -> None:
    """ValueError if two rows are of one U-turn."""
    repeated = table.duplicated(keys)
    if not repeated.any():
        return
    where = ", ".join(f"{name} = {table[name][repeated].iloc[0]}" for name in keys)
    advice = ""
    if "trajectory" not in keys:
        advice = "; number several U-turns of an original by a column trajectory"
    raise ValueError(f"row {_row(repeated)} of the table repeats {where}{advice}")


def _check_filled(columns: _Columns, shape: Sequence[int]) -> None:
    """ValueError for arrays that are large and nearly empty."""
    count = len(columns.readings)
    rows = len(columns.table)
    pairs = zip(columns.keys, shape, strict=True)
    sizes = " x ".join(f"{size:,} {name}" for name, size in pairs)
    is_filled = count * math.prod(shape) <= max(_MOST_PLACES, 16 * count * rows)
    advice = (
        "most items at most noise levels, and trajectories and clones that are numbered from 0 for"
        " each of them"
    )
    expect(is_filled, f"places for the {rows:,} rows of the table", sizes, advice)


def _labels_along(table: pandas.DataFrame, name: str, labels: Mapping[str, np.ndarray]) -> Labels:
    """A column as labels of items or noise levels; `labels`: of both dims."""
    for dim, values in labels.items():
        if (table.groupby(dim)[name].nunique(dropna=False) == 1).all():
            first = table.drop_duplicates(dim).set_index(dim)[name].reindex(values)
            return dim, np.asarray(first, None if is_number(first) else str)
    raise ValueError(
        f"coords = {shown(name)}: expected a column that is the same within an item or within a noise"
        " level; leave it out"
    )


def _is_label(table: pandas.DataFrame, name: Hashable) -> bool:
    """Whether a column of numbers labels the items: it differs between items, and not between
    the noise levels of an item.
    """
    column = table[name]
    is_twin = str(name).startswith(("clone_", "original_"))
    # Columns of 0 and 1 are readings, since a few originals may keep or lose something at all
    # levels.
    if is_twin or column.isin((0, 1)).all() or column.nunique() < 2:
        return False
    by_item = table.groupby("item")
    is_constant = (by_item[name].nunique(dropna=False) == 1).all()
    return bool(is_constant and (by_item["noise"].nunique() > 1).all())


def _levels(noise: pandas.Series) -> np.ndarray:
    """Noise levels of rows; those that differ by rounding are one, the shortest to write."""
    levels, index = np.unique(noise, return_inverse=True)
    is_far = ~(np.diff(levels) <= NEAR * levels[:-1])
    groups = np.split(levels, np.flatnonzero(is_far) + 1)
    shortest = [min(group, key=lambda level: len(repr(level))) for group in groups]
    return np.repeat(shortest, list(map(len, groups)))[index]


def _labels(column: pandas.Series) -> pandas.Series:
    """A column of labels; texts become numbers if all are written as numbers, and different
    texts are different numbers.
    """
    if is_number(column):
        return column
    texts = column.astype(object).where(column.notnull(), "").astype(str)
    known = [text for text in texts.unique() if text]
    numbers = {text: float(text) for text in known if _NUMBER.fullmatch(text)}
    are_different = len(set(numbers.values())) == len(known)
    if not are_different or any(abs(number) >= 2**53 for number in numbers.values()):
        return texts
    values = texts.map(lambda text: numbers.get(text, np.nan))
    return values.astype(np.int64) if (values % 1 == 0).all() else values


def _row(is_marked: pandas.Series) -> int:
    """Number of the first marked row, counted from 1; 0 if there is none."""
    return int(np.argmax(is_marked)) + 1 if np.any(is_marked) else 0


def _numbers(column: pandas.Series, name: Hashable) -> pandas.Series:
    """A column as float64, or a ValueError that names its first text."""
    is_real = getattr(column.dtype, "kind", "O") not in "cmM"  # which pandas would make real
    expect(is_real, f"column {name}: type", str(column.dtype), "real numbers")
    try:
        numbers = pandas.to_numeric(column, errors="coerce").astype(float)
    except OverflowError:
        raise ValueError(f"column {name} has an integer beyond the largest float") from None
    is_text = numbers.isnull() & column.notnull()
    if is_text.any():
        way_out = ""
        if name != "noise":
            way_out = (
                f", or a label of items or noise levels: coords = [{str(name)!r}]"
                f" (--coordinate {name})"
            )
        raise ValueError(
            f"column {name}: row {_row(is_text)} has {shown(column[is_text].iloc[0])}; expected"
            f" numbers{way_out}"
        )
    return numbers
