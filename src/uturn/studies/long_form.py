"""Tables of readings in long form, a row for each U-turn, as arrays."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import xarray as xr

from uturn.core.checks import checked_path, expect
from uturn.core.files import check_plain
from uturn.core.messages import shown

# Of readings, in this order; a further axis is one of levels.
AXES = ("noise", "item", "trajectory", "clone")
COLUMNS = "columns noise, item, perhaps trajectory and clone, and readings"
NEAR = 1e-9  # relative difference of two noise levels up to which they are one
_BEGINNING = 2**20  # bytes of a file that are looked at first
_MOST_PLACES = 2**26  # of U-turns, for all readings, if few of them have a row; half a gigabyte
_COMMA = re.compile(r"\s*-?\d*,\d+\s*")
_POINT = re.compile(r"[-+]?\d*(\.\d+)+([eE].*)?")
_CUT = re.compile(r"[-+]?(\d+[.,]|\d*[.,]?\d+[eE][-+]?)")  # no number ends so
_NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # 01 is a name


def is_table(place: Any) -> bool:
    """Whether a place is that of a table of readings, by the ending of its name."""
    return str(place).lower().endswith((".csv", ".tsv", ".parquet"))


def read_long_form(
    path: str | Path, labels: Collection[str] = (), columns: Mapping[str, str] = {}
) -> pandas.DataFrame:
    """The table in a CSV or Parquet file. `labels`: further columns of text; `columns`: {name in
    `AXES`: name in the file}.
    """
    path = checked_path("path", path)
    try:
        # Pandas would take the folders "~" and "http:" of a relative path for something else.
        place = os.path.realpath(path)
        check_plain(place)
        names = {*labels, *(name for axis, name in columns.items() if axis != "noise")}
        table = (
            _read_parquet(place) if path.lower().endswith(".parquet") else _read_csv(place, names)
        )
    except ImportError:
        raise ValueError(
            f"cannot read the table {path}: needs pyarrow; `pip install pyarrow`, or write it as a"
            " CSV file"
        ) from None
    except (OSError, ValueError, csv.Error) as error:  # pandas' errors of parsing are ValueErrors
        is_missing = isinstance(error, FileNotFoundError)
        reason = (
            "No such file"
            if is_missing
            else getattr(error, "strerror", None) or " ".join(str(error).split())
        )
        raise ValueError(
            f"cannot read the table {path}: {reason}; expected a CSV or Parquet file with {COLUMNS}"
        ) from None
    table = table.rename(columns=str.strip)
    found = {}
    # Upper and lower case count only where names differ by nothing else.
    for axis, name in columns.items():
        alike = [column for column in table.columns if column.lower() == str(name).lower()]
        found[axis] = name if name in alike or len(alike) != 1 else alike[0]
        known = (
            f"one of {', '.join(AXES)}, and a column of the table:"
            f" {', '.join(map(str, table.columns))}"
        )
        expect(axis in AXES and found[axis] in alike, f"columns: {axis}", name, known)
    return table.rename(columns={name: axis for axis, name in found.items()})


def _read_csv(path: str, labels: Collection[str]) -> pandas.DataFrame:
    """The table in a CSV file; columns without a name, such as the row numbers that pandas
    writes, are left out.
    """
    if not os.path.getsize(path):  # also of a file that the system makes up while it is read
        raise ValueError("it is empty")
    header = next(filter(str.strip, _lines(path)), "")
    separator = max(",;\t", key=header.count)
    of_text = {str(name).lower() for name in (*labels, *AXES[1:])}
    decimal, warnings = _check_rows(path, separator, of_text)
    form: dict[str, Any] = {"encoding": "utf-8-sig", "sep": separator, "decimal": decimal}
    table = pandas.read_csv(path, **form)
    # Pandas would take the first cells as names of the rows.
    if not isinstance(table.index, pandas.RangeIndex):
        raise ValueError("the rows have more cells than the header")
    # pandas renames columns of one name, and those without any.
    table.columns = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
    columns = [k for k, name in enumerate(table.columns) if name.lower() in of_text]
    if decimal == ",":
        for k, name in enumerate(table.columns):
            texts = (
                table.iloc[:, k] if k not in columns and not _is_number(table.iloc[:, k]) else []
            )
            if wrong := next(
                (
                    cell
                    for cell in texts
                    if isinstance(cell, str) and _POINT.fullmatch(cell.strip())
                ),
                None,
            ):
                raise ValueError(
                    f"column {name} has {wrong!r} beside decimal commas; write one sign, and none"
                    " of thousands"
                )
    text = pandas.read_csv(path, **form, usecols=columns, dtype=str, keep_default_na=False)
    for k, (_, cells) in zip(columns, text.items(), strict=True):
        table.isetitem(k, cells.str.strip())
    table.attrs["warnings"] = warnings
    return table.loc[:, table.columns != ""]


def _read_parquet(path: str) -> pandas.DataFrame:
    """The columns of a Parquet file; what pandas has written about them is not followed, since
    it may be of another table.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
        nested = next((field for field in schema if pyarrow.types.is_nested(field.type)), None)
        if nested is not None:  # a row may promise any number of values
            raise ValueError(
                f"column {nested.name} has the type {str(nested.type)[:60]!r}; expected numbers or"
                " texts"
            )
        kinds = "is_string", "is_large_string", "is_binary", "is_large_binary"
        texts = [
            field.name
            for field in schema
            if any(getattr(pyarrow.types, kind)(field.type) for kind in kinds)
        ]
        # A text that is repeated is read once.
        with ParquetFile(path, read_dictionary=texts) as file:
            read = file.read()
            table = read.to_pandas(ignore_metadata=True)
            # Row numbers that pandas writes.
            return table.loc[:, ~table.columns.str.startswith("__index_level_")]
    except pyarrow.ArrowException as error:  # some kinds are neither ValueError nor OSError
        raise ValueError(str(error)) from None


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file; ValueError for NUL characters.

    The beginning is looked at first: a file that was never written has NUL characters from there
    on, and no end of a line.
    """
    with open(path, "rb") as file:
        if b"\0" in file.read(_BEGINNING):
            raise ValueError("it is no text in UTF-8: it holds NUL characters")
    with open(path, encoding="utf-8-sig", newline="") as file:
        for line in file:
            if "\0" in line:
                raise ValueError("it is no text in UTF-8: it holds NUL characters")
            yield line


def _check_rows(path: str, separator: str, of_text: Collection[str]) -> tuple[str, list[str]]:
    """The decimal sign of a CSV file outside the columns `of_text`, and a warning if it may have
    been cut short.

    ValueError for a row that is cut short, which pandas would complete, and for a cell over several
    lines: a quote without its other half makes one cell of all rows up to the next quote.
    """
    columns, decimal, last, longest, texts = 0, ".", "", 0, set[int]()
    rows = csv.reader(_lines(path), delimiter=separator)
    for number, cells in enumerate(rows, 1):
        if rows.line_num > number:
            raise ValueError(
                f"a quote in line {number} opens a cell that ends in line {rows.line_num}"
            )
        if len(cells) <= 1 and not "".join(cells).strip():
            continue
        if columns:
            longest = max(longest, len(last))
            last = cells[-1].strip()
        texts = (
            texts
            if columns
            else {k for k, name in enumerate(cells) if name.strip().lower() in of_text}
        )
        columns = columns or len(cells)
        if len(cells) < columns:
            raise ValueError(
                f"line {number} has {len(cells)} cells, the header {columns}; is the file cut"
                " short?"
            )
        if (
            separator == ";"
            and decimal == "."
            and any(_COMMA.fullmatch(cell) for k, cell in enumerate(cells) if k not in texts)
        ):
            decimal = ","
    with open(path, "rb") as end:
        end.seek(-min(1, os.path.getsize(path)), os.SEEK_END)
        if not columns or end.read() in (b"\n", b"\r"):
            return decimal, []
    if not last or _CUT.fullmatch(last):
        raise ValueError(
            f"the last line ends in {last!r} without a line break; if the file is whole, add one"
        )
    words = (
        f"the last line of the table, which ends in {shown(last)}, has no line break; add one if"
        " the file is not cut short"
    )
    # A cell that was cut is shorter than it was.
    return decimal, [words] if len(last) < longest or "e" in last.lower() else []


def arrays_of(
    table: pandas.DataFrame, coords: Any
) -> tuple[dict[str, xr.DataArray], np.ndarray, dict[str, Any]]:
    """A table in long form as arrays, its noise levels, and its coordinates by name."""
    if None not in table.index.names:  # columns that are names of the rows
        table = table.reset_index()
    lower = {name: str(name).lower() for name in table.columns}
    table = table.rename(
        columns={
            name: axis for name, axis in lower.items() if axis in AXES and axis not in table.columns
        }
    )
    columns, labels = list(table.columns), [] if coords is None else coords
    are_columns = not isinstance(labels, str | Mapping) and set(labels) <= set(columns)
    expect(
        are_columns,
        "coords",
        labels,
        f"a list of columns of the table: {', '.join(map(str, columns))}",
    )
    keys = [name for name in AXES if name in columns]
    labels = [name for name in labels if name not in keys]  # an axis labels itself
    names = [name for name in columns if name not in (*keys, *labels)]
    twice = sorted({str(name) for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"the table has several columns {', '.join(twice)}; give them other names")
    if keys[:2] != ["noise", "item"] or not names:
        raise ValueError(
            f"the table has the columns {', '.join(map(str, columns))}; expected {COLUMNS}, or"
            " their names in columns = {'noise': NAME, 'item': NAME} (--columns"
            " noise=NAME,item=NAME)"
        )
    expect(len(table), "rows of the table", 0, "one for each U-turn")
    table = table.assign(**{str(name): _numbers(table[name], name) for name in ("noise", *names)})
    for name in keys:
        missing = table[name].isnull() | (table[name] == "")
        expect(not missing.any(), f"column {name}: row {_row(missing)}", "", "a value in every row")
    table = table.assign(
        noise=_levels(table["noise"]),
        **{str(name): _labels(table[name]) for name in (*keys[1:], *labels)},
    )
    if (repeated := table.duplicated(keys)).any():
        where = ", ".join(f"{name} = {table[name][repeated].iloc[0]}" for name in keys)
        advice = (
            ""
            if "trajectory" in keys
            else "; number several U-turns of an original by a column trajectory"
        )
        raise ValueError(f"row {_row(repeated)} of the table repeats {where}{advice}")
    codes, uniques = zip(
        *(
            pandas.factorize(table[name], sort=name != "item" or _is_number(table[name]))
            for name in keys
        ),
        strict=True,
    )
    shape = tuple(map(len, uniques))
    sizes = " x ".join(f"{size:,} {name}" for name, size in zip(keys, shape, strict=True))
    is_filled = len(names) * math.prod(shape) <= max(_MOST_PLACES, 16 * len(names) * len(table))
    advice = (
        "most items at most noise levels, and trajectories and clones that are numbered from 0 for"
        " each of them"
    )
    expect(is_filled, f"places for the {len(table):,} rows of the table", sizes, advice)
    arrays = {}
    for name in names:
        values = np.full(shape, np.nan)
        values[codes] = table[name]
        arrays[str(name)] = xr.DataArray(values, dims=keys)
    alike = [str(name) for name in names if len(names) > 1 and _is_label(table, name)]
    labels, arrays = (
        [*labels, *alike],
        {name: array for name, array in arrays.items() if name not in alike},
    )
    coordinates: dict[str, Any] = {"item": ("item", np.asarray(uniques[1]))}
    for name in labels:
        by = next(
            (
                dim
                for dim in ("item", "noise")
                if (table.groupby(dim)[name].nunique(dropna=False) == 1).all()
            ),
            None,
        )
        expect(
            by,
            "coords",
            name,
            "a column that is the same within an item or within a noise level; leave it out",
        )
        first = (
            table.drop_duplicates(by)
            .set_index(by)[name]
            .reindex(uniques[("noise", "item").index(by)])
        )
        coordinates[str(name)] = (by, np.asarray(first, str if not _is_number(first) else None))
    return arrays, np.asarray(uniques[0]), coordinates


def _is_label(table: pandas.DataFrame, name: Any) -> bool:
    """Whether a column of numbers labels the items: it differs between items, and not between
    the noise levels of an item.
    """
    # Columns of 0 and 1 are readings, since a few originals may keep or lose something at all
    # levels.
    if (
        str(name).startswith(("clone_", "original_"))
        or table[name].isin((0, 1)).all()
        or table[name].nunique() < 2
    ):
        return False
    by_item = table.groupby("item")
    return bool(
        (by_item[name].nunique(dropna=False) == 1).all() and (by_item["noise"].nunique() > 1).all()
    )


def _levels(noise: Any) -> np.ndarray:
    """Noise levels of rows; those that differ by rounding are one, the shortest to write."""
    levels, at = np.unique(noise, return_inverse=True)
    groups = np.split(levels, np.flatnonzero(~(np.diff(levels) <= NEAR * levels[:-1])) + 1)
    return np.concatenate(
        [[min(group, key=lambda level: len(repr(level)))] * len(group) for group in groups]
    )[at]


def _labels(column: Any) -> Any:
    """A column of labels; texts become numbers if all are written as numbers, and different
    texts are different numbers.
    """
    if _is_number(column):
        return column
    texts = column.astype(object).where(column.notnull(), "").astype(str)
    known = [text for text in texts.unique() if text]
    numbers = {text: float(text) for text in known if _NUMBER.fullmatch(text)}
    if len(known) > len(set(numbers.values())) or any(
        abs(number) >= 2**53 for number in numbers.values()
    ):
        return texts
    values = texts.map(lambda text: numbers.get(text, np.nan))
    return values.astype(np.int64) if (values % 1 == 0).all() else values


def _is_number(column: Any) -> bool:
    return np.asarray(column).dtype.kind in "biuf"


def _row(which: Any) -> int:
    """Number of the first marked row, counted from 1; 0 if there is none."""
    return int(np.argmax(which)) + 1 if np.any(which) else 0


def _numbers(column: Any, name: Any) -> Any:
    """A column as float64, or a ValueError that names its first text."""
    is_real = getattr(column.dtype, "kind", "O") not in "cmM"  # which pandas would make real
    expect(is_real, f"column {name}: type", str(column.dtype), "real numbers")
    try:
        numbers = pandas.to_numeric(column, errors="coerce").astype(float)
    except OverflowError:
        raise ValueError(f"column {name} has an integer beyond the largest float") from None
    if (text := numbers.isnull() & column.notnull()).any():
        label = (
            f", or a label of items or noise levels: coords = [{str(name)!r}] (--coordinate {name})"
            * (name != "noise")
        )
        raise ValueError(
            f"column {name}: row {_row(text)} has {shown(column[text].iloc[0])}; expected"
            f" numbers{label}"
        )
    return numbers
