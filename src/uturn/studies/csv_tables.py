"""Tables in CSV and Parquet files, and signs that a file is damaged or was cut short."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pandas

from uturn.core.messages import shown

_BEGINNING = 2**20
"""Bytes of a file that are looked at first."""
_COMMA = re.compile(r"\s*-?\d*,\d+\s*")
_POINT = re.compile(r"[-+]?\d*(\.\d+)+([eE].*)?")
_CUT = re.compile(r"[-+]?(\d+[.,]|\d*[.,]?\d+[eE][-+]?)")
"""A number that was cut off, such as "12." or "1e-"."""


def read_csv(path: str, text_columns: Collection[str]) -> pandas.DataFrame:
    """The table in a CSV file; columns without a name, such as the row numbers that pandas
    writes, are left out.

    `text_columns`: names, in lower case, of columns that hold texts. The attribute `warnings` of
    the table has a line if the file may have been cut short.
    """
    if not os.path.getsize(path):  # 0 also for a file that the system makes up, as in /proc
        raise ValueError("it is empty")
    header = next(filter(str.strip, _lines(path)), "")
    separator = max(",;\t", key=header.count)
    form = _checked_form(path, separator, text_columns)
    table = pandas.read_csv(path, encoding="utf-8-sig", sep=separator, decimal=form.decimal)
    # Pandas would take the first cells as names of the rows.
    if not isinstance(table.index, pandas.RangeIndex):
        raise ValueError("the rows have more cells than the header")
    # pandas renames columns of one name, and those without any.
    table.columns = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
    columns = [k for k, name in enumerate(table.columns) if name.lower() in text_columns]
    if form.decimal == ",":
        _check_no_point(table, columns)
    texts = pandas.read_csv(
        path,
        encoding="utf-8-sig",
        sep=separator,
        decimal=form.decimal,
        usecols=columns,
        dtype=str,
        keep_default_na=False,
    )
    for k, (_, cells) in zip(columns, texts.items(), strict=True):
        table.isetitem(k, cells.str.strip())
    table.attrs["warnings"] = form.warnings
    return table.loc[:, table.columns != ""]


def read_parquet(path: str) -> pandas.DataFrame:
    """The columns of a Parquet file; what pandas has written about them is not followed, since
    it may be of another table.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
        for field in schema:
            if pyarrow.types.is_nested(field.type):  # a row may promise any number of values
                raise ValueError(
                    f"column {field.name} has the type {str(field.type)[:60]!r}; expected numbers"
                    " or texts"
                )
        texts = [field.name for field in schema if _is_text(field.type)]
        # A text that is repeated is read once.
        with ParquetFile(path, read_dictionary=texts) as file:
            table = file.read().to_pandas(ignore_metadata=True)
            # Row numbers that pandas writes.
            return table.loc[:, ~table.columns.str.startswith("__index_level_")]
    except pyarrow.ArrowException as error:  # some kinds are neither ValueError nor OSError
        raise ValueError(str(error)) from None


def _is_text(kind: object) -> bool:
    from pyarrow import types

    is_string = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_string or types.is_binary(kind) or types.is_large_binary(kind))


def is_number(column: object) -> bool:
    """Whether a column holds numbers."""
    return np.asarray(column).dtype.kind in "biuf"


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file; ValueError for NUL characters.

    The beginning is looked at first: a file that was never written has NUL characters from there
    on, and no end of a line.
    """
    with open(path, "rb") as file:
        if b"\0" in file.read(_BEGINNING):
            raise ValueError("it is not UTF-8 text: it contains NUL characters")
    with open(path, encoding="utf-8-sig", newline="") as file:
        for line in file:
            if "\0" in line:
                raise ValueError("it is not UTF-8 text: it contains NUL characters")
            yield line


@dataclass(frozen=True)
class _Form:
    """How a CSV file is written."""

    decimal: str
    """The decimal sign outside the columns of texts."""
    warnings: list[str]
    """A line if the file may have been cut short."""


def _checked_form(path: str, separator: str, text_columns: Collection[str]) -> _Form:
    """How a CSV file is written, from all its rows.

    ValueError for a row that is cut short, which pandas would complete, and for a cell over several
    lines: a quote without its other half makes one cell of all rows up to the next quote.
    """
    header: list[str] = []
    texts: set[int] = set()
    decimal = "."
    last_cell = ""
    longest = 0  # of the last cells of the rows before
    rows = csv.reader(_lines(path), delimiter=separator)
    for number, cells in enumerate(rows, 1):
        if rows.line_num > number:
            raise ValueError(
                f"a quote in line {number} opens a cell that ends in line {rows.line_num}"
            )
        if len(cells) <= 1 and not "".join(cells).strip():
            continue
        if header:
            longest = max(longest, len(last_cell))
            last_cell = cells[-1].strip()
        else:
            header = cells
            texts = {k for k, name in enumerate(cells) if name.strip().lower() in text_columns}
        if len(cells) < len(header):
            raise ValueError(
                f"line {number} has {len(cells)} cells, the header {len(header)}; is the file cut"
                " short?"
            )
        numbers = [cell for k, cell in enumerate(cells) if k not in texts]
        if separator == ";" and decimal == "." and any(map(_COMMA.fullmatch, numbers)):
            decimal = ","
    if not header or _ends_in_line_break(path):
        return _Form(decimal, [])
    if not last_cell or _CUT.fullmatch(last_cell):
        raise ValueError(
            f"the last line ends in {last_cell!r} without a line break; if the file is whole, add"
            " one"
        )
    # A cell that was cut is shorter than it was.
    may_be_cut = len(last_cell) < longest or "e" in last_cell.lower()
    words = (
        f"the last line of the table, which ends in {shown(last_cell)}, has no line break; add one if"
        " the file is not cut short"
    )
    return _Form(decimal, [words] if may_be_cut else [])


def _ends_in_line_break(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(1, os.path.getsize(path)), os.SEEK_END)
        return file.read() in (b"\n", b"\r")


def _check_no_point(table: pandas.DataFrame, text_columns: Collection[int]) -> None:
    """ValueError for a decimal point beside decimal commas."""
    for k, name in enumerate(table.columns):
        column = table.iloc[:, k]
        if k in text_columns or is_number(column):
            continue
        for cell in column:
            if isinstance(cell, str) and _POINT.fullmatch(cell.strip()):
                raise ValueError(
                    f"column {name} has {cell!r} beside decimal commas; write one sign, and none of"
                    " thousands"
                )
