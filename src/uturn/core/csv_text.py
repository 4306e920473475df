"""Tables as CSV, and numbers that are given as text."""

from __future__ import annotations

import pandas

_FORMULA_STARTS = tuple("=+-@\t\r")
"""How formulas of spreadsheets begin."""


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
    frame = frames[0]
    if len(frames) > 1:
        frame = pandas.concat(frames, ignore_index=True)
    texts = frame.select_dtypes(exclude="number").columns
    frame = frame.assign(**{name: frame[name].map(_without_formula) for name in texts})
    return str(frame.rename(columns=_without_formula).to_csv(index=False))


def _without_formula(cell: object) -> object:
    """A cell, after an apostrophe if it is the text of a formula and no number."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA_STARTS):
        return cell
    if isinstance(number_in(cell), float):
        return cell
    return f"'{cell}"
