"""Drawing of texts and their reconstructions, token by token, with changes marked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.studies.plotting.curves import evenly_spaced
from uturn.studies.plotting.style import CLASS, DISTINCT, MUTED, THEORY, fonts_for, style

if TYPE_CHECKING:
    import xarray as xr

NOISED, CHANGED = "#e8e8e8", "#f7cfcb"  # backgrounds of noised tokens and of changed tokens
_COLUMNS, _MOST_LINES = 96, 60
EDGES = (("solid", "-"), ("dashed", "--"), ("dotted", ":"), ("double", (0, (6, 1))))
"""Lines below the tokens of regions, in CSS and in figures."""
_SIZE = 9.5  # of the font, in points
_CELL, _LINE = _SIZE * 0.602 / 72, 0.21  # width of a character of DejaVu Sans Mono and height of a line, in inches
_LEFT, _ABOVE, _BETWEEN = 10, 0.9, 0.15  # columns before the texts; lines above all, before a text, before a row


class Token(NamedTuple):
    """A token of a row: its text, whether the corruption removed or replaced it, and whether it differs from the original.

    In originals also the number of its region (-1 for none) and whether it separates segments.
    """

    text: str
    noised: bool = False
    changed: bool = False
    region: int = -1
    separates: bool = False


class ShownText(NamedTuple):
    """A text of a block: the noise level (None for the original), its tokens, and the noisy text from which it was made."""

    noise: float | None
    tokens: list[Token]
    noisy: list[Token]


def blocks(
    data: xr.Dataset, most_items: int | None = None, most_levels: int | None = None
) -> Iterator[tuple[int, list[ShownText]]]:
    """Number of each item that is shown, and its rows: the original, then a reconstruction for each noise level."""
    count, levels = data.sizes["shown_item"], data.sizes["shown_noise"]
    shown_levels = evenly_spaced(levels, levels if most_levels is None else most_levels)
    for item in range(min(count, most_items or count)):
        text = data.isel(shown_item=item)
        text = text.isel(position=np.flatnonzero(text.original_piece.values != ""))
        originals, length = text.original_piece.values.tolist(), text.sizes["position"]
        regions = text.shown_region.values.tolist() if "shown_region" in data else [-1] * length
        separates = text.shown_separator.values.tolist() if "shown_separator" in data else [False] * length
        tokens = [Token(readable(p), region=r, separates=s) for p, r, s in zip(originals, regions, separates, strict=True)]
        rows = [ShownText(None, tokens, [])]
        for level in shown_levels:
            at = text.isel(shown_noise=level)
            noised, changed = at.noised.values.tolist(), at.changed.values.tolist()
            tokens = [Token(readable(p), n, c) for p, n, c in zip(at.piece.values.tolist(), noised, changed, strict=True)]
            pieces = map(_noisy_text, at.noisy_piece.values.tolist(), originals)
            noisy = [Token(piece, n) for piece, n in zip(pieces, noised, strict=True)]
            rows.append(ShownText(float(at.shown_noise), tokens, noisy))
        yield int(text.shown_item), rows


def _noisy_text(piece: str, original: str) -> str:
    """The text of a noisy token; for a masked token, one dot for each character of the original."""
    blank = " " if len(original) > 1 and original.startswith(" ") else ""
    return readable(piece) if piece else blank + "·" * len(readable(original)[len(blank) :])


def readable(text: Any) -> str:
    """A text with escapes for characters that are invisible or change the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def cells(text: str) -> int:
    """Number of columns of a text in a font of fixed width."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def lines(tokens: Iterable[Token], columns: int) -> list[list[tuple[int, Token]]]:
    """Tokens with their columns, wrapped into lines of limited width; a blank at the beginning of a line of words is left out."""
    wrapped: list[list[tuple[int, Token]]] = [[]]
    at = 0
    for token in tokens:
        if at and at + cells(token.text) > columns:
            wrapped.append([])
            at = 0
        if at == 0 and len(token.text) > 1:
            token = token._replace(text=token.text.lstrip(" "))
        wrapped[-1].append((at, token))
        at += cells(token.text)
    return wrapped


def draw_tokens(data: xr.Dataset, most_items: int = 3, most_levels: int = 5) -> Any | None:
    """Some originals and their reconstructions at increasing noise. None if no tokens were stored."""
    if "original_piece" not in data.coords:
        return None
    laid = _laid(data, most_items, most_levels, _COLUMNS)
    columns = max(60, *(at + cells(token.text) for _, _, parts in laid for part in parts for at, token in part))
    width, height = _CELL * (_LEFT + columns + 1), _LINE * (_height(laid) + _top(data))
    with style() as plt:
        figure = plt.figure(figsize=(width, height))
        _draw_blocks(figure.add_axes((0, 0, 1, 1)), data, laid, width, height)
    return figure


def draw_texts(axis: Any, data: xr.Dataset, width: float, height: float) -> None:
    """Draw the texts of an analysis in an axis of the given size in inches, with as many noise levels as fit."""
    columns = int(width / _CELL) - _LEFT - 1
    for levels in range(data.sizes["shown_noise"], 0, -1):
        laid = _laid(data, data.sizes["shown_item"], levels, columns)
        if _LINE * (_height(laid) + _top(data)) <= height:
            break
    _draw_blocks(axis, data, laid, width, height)


_Laid = list[tuple[int, ShownText, list[list[tuple[int, Token]]]]]  # item, row, lines of tokens with their columns


def _laid(data: xr.Dataset, most_items: int, most_levels: int, columns: int) -> _Laid:
    """Rows wrapped into lines; items that would exceed the maximum number of lines are left out."""
    laid: _Laid = []
    for item, rows in blocks(data, most_items, most_levels):
        block = [(item, row, lines(row.tokens, columns)) for row in rows]
        if laid and sum(len(parts) for _, _, parts in [*laid, *block]) > _MOST_LINES:
            break
        laid += block
    return laid


def _top(data: xr.Dataset) -> float:
    """Lines above the texts, for the key."""
    return 3.2 if "region_name" in data.coords or "shown_separator" in data else 2.2


def _height(laid: _Laid) -> float:
    """Height in lines."""
    return sum(len(parts) + (_ABOVE if row.noise is None else _BETWEEN) for _, row, parts in laid)


def _draw_blocks(axis: Any, data: xr.Dataset, laid: _Laid, width: float, height: float) -> None:
    """Draw wrapped rows in an axis of the given size in inches."""
    families, missing = fonts_for("".join(token.text for _, _, parts in laid for part in parts for _, token in part))
    boxes = str.maketrans(dict.fromkeys(missing, "□"))
    axis.set(xlim=(-_LEFT, width / _CELL - _LEFT), ylim=(height / _LINE - _top(data) + 0.3, -_top(data)))
    axis.set_axis_off()
    _draw_key(axis, data)
    y = 0.0
    for item, row, parts in laid:
        y += _ABOVE if row.noise is None and y else _BETWEEN
        label, color = (f"text {item}", THEORY) if row.noise is None else (f"{row.noise:.2g}", MUTED)
        axis.text(-1, y + 0.55, label, ha="right", va="center_baseline", fontsize=_SIZE, color=color)
        for part in parts:
            _draw_line(axis, y, [(at, token._replace(text=token.text.translate(boxes))) for at, token in part], families)
            y += 1


def _draw_line(axis: Any, y: float, line: list[tuple[int, Token]], families: list[str]) -> None:
    """One line of tokens: a background for those that were noised, and their text."""
    for at, token in line:
        if token.noised or token.changed:
            _draw_background(axis, at, y, cells(token.text), CHANGED if token.changed else NOISED)
    for region, run in groupby(line, key=lambda pair: pair[1].region):
        parts = list(run)
        if region >= 0:
            end = parts[-1][0] + cells(parts[-1][1].text)
            axis.plot([parts[0][0] + 0.1, end - 0.1], [y + 1, y + 1], lw=1.6, **_region_look(region))
    for at, token in line:
        left, right = at, at + cells(token.text)
        if token.separates:
            axis.plot([left, right, right, left, left], [y + 0.1, y + 0.1, y + 0.9, y + 0.9, y + 0.1], color=MUTED, lw=0.8)
    for changed, run in groupby(line, key=lambda pair: pair[1].changed):
        parts = list(run)
        look: dict[str, Any] = {"color": CLASS, "fontweight": "bold"} if changed else {"color": THEORY}
        look |= {"fontsize": _SIZE, "family": ["DejaVu Sans Mono", *families], "va": "center_baseline", "parse_math": False}
        text = "".join(token.text for _, token in parts)
        at = parts[0][0]
        if text.isascii():  # of fixed width: eight characters at once are faster, and too few for rounding to add up
            for k in range(0, len(text), 8):
                axis.text(at + k, y + 0.55, text[k : k + 8], **look)
            continue
        for character in _characters(text):
            axis.text(at + cells(character) / 2, y + 0.55, character, ha="center", **look)
            at += cells(character)


def _draw_background(axis: Any, x: float, y: float, width: float, color: str) -> None:
    axis.fill([x, x + width, x + width, x], [y + 0.04, y + 0.04, y + 0.96, y + 0.96], color=color, lw=0)


def _region_look(region: int) -> dict[str, Any]:
    """Appearance of the line below the tokens of a region."""
    return {"color": DISTINCT[region % len(DISTINCT)], "ls": EDGES[region % len(EDGES)][1], "solid_capstyle": "butt"}


def _characters(text: str) -> list[str]:
    """Characters of a text; combining marks stay with their letter."""
    characters: list[str] = []
    for c in text:
        if unicodedata.combining(c) and characters:
            characters[-1] += c
        else:
            characters.append(c)
    return characters


def _draw_key(axis: Any, data: xr.Dataset) -> None:
    """Draw the legend of the marks above the texts."""
    y, look = 1.15 - _top(data), {"va": "center_baseline", "fontsize": _SIZE}
    axis.text(-1, y, "noise", ha="right", color=MUTED, **look)
    _draw_background(axis, 0, y - 0.55, 2, NOISED)
    axis.text(2.8, y, "noised, then restored", color=THEORY, **look)
    _draw_background(axis, 34, y - 0.55, 2, CHANGED)
    axis.text(36.8, y, "another token", color=CLASS, fontweight="bold", **look)
    x, y = 0.0, y + 1.3
    for k, name in enumerate(data.region_name.values if "region_name" in data.coords else ()):
        axis.plot([x, x + 2.5], [y + 0.1, y + 0.1], lw=1.6, **_region_look(k))
        axis.text(x + 3.2, y, f"region {readable(name)}", color=MUTED, parse_math=False, **look)
        x += 5 + len(f"region {name}")
    if "shown_separator" in data:
        axis.plot([x, x + 1, x + 1, x, x], [y - 0.4, y - 0.4, y + 0.4, y + 0.4, y - 0.4], color=MUTED, lw=0.8)
        axis.text(x + 1.8, y, "separates segments", color=MUTED, **look)
