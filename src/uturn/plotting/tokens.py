"""Drawing of texts and their reconstructions, token by token, with changes marked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from uturn.plotting.curves import evenly_spaced
from uturn.plotting.style import CLASS, MUTED, THEORY, fonts_for, style

if TYPE_CHECKING:
    import xarray as xr

NOISED, CHANGED = "#e8e8e8", "#f7cfcb"  # backgrounds of tokens that were noised, and of those that are others now
_COLUMNS, _MOST_LINES = 84, 60
_CELL, _LINE = 0.098, 0.21  # width of a character and height of a line in inches


class Token(NamedTuple):
    """A token of a row: its text, its position, whether the corruption removed or replaced it, and whether it is another one."""

    text: str
    position: int
    noised: bool = False
    changed: bool = False


class Row(NamedTuple):
    """A text of a block: the noise level (None for the original), its tokens, and the noisy text it comes from."""

    noise: float | None
    tokens: list[Token]
    noisy: list[Token]


def blocks(data: xr.Dataset, most_items: int | None = None, most_levels: int | None = None) -> Iterator[tuple[int, list[Row]]]:
    """Number of each item that is shown, and its rows: the original, then a reconstruction for each noise level."""
    count, levels = data.sizes["shown_item"], data.sizes["shown_noise"]
    wanted = evenly_spaced(levels, levels if most_levels is None else most_levels)
    for item in range(min(count, most_items or count)):
        one = data.isel(shown_item=item)
        there = [k for k, piece in enumerate(one.original_piece.values) if piece]
        rows = [Row(None, [Token(readable(one.original_piece.values[k]), k) for k in there], [])]
        for level in wanted:
            at = one.isel(shown_noise=level)
            marks = at.noised.values, at.changed.values
            tokens = [Token(readable(at.piece.values[k]), k, bool(marks[0][k]), bool(marks[1][k])) for k in there]
            hidden = [len(readable(one.original_piece.values[k]).strip()) or 1 for k in there]
            noisy = [
                Token(_noisy_text(str(at.noisy_piece.values[k]), size, str(one.original_piece.values[k])), k, bool(marks[0][k]))
                for k, size in zip(there, hidden, strict=True)
            ]
            rows.append(Row(float(at.shown_noise), tokens, noisy))
        yield int(one.shown_item), rows


def _noisy_text(piece: str, size: int, original: str) -> str:
    """The text of a noisy token; a masked one as so many dots as the original has characters."""
    if piece:
        return readable(piece)
    return ("" if original[:1] != " " or not original.strip() else " ") + "·" * size


def readable(text: Any) -> str:
    """A text in which characters that cannot be seen, or that change the direction of others, are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def cells(text: str) -> int:
    """Number of columns of a text in a font of fixed width."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def lines(tokens: Iterable[Token], columns: int) -> list[list[tuple[int, Token]]]:
    """Tokens with their columns, in lines of at most so many columns; a blank that begins a line of words is left out."""
    found: list[list[tuple[int, Token]]] = [[]]
    at = 0
    for token in tokens:
        if at and at + cells(token.text) > columns:
            found.append([])
            at = 0
        if at == 0 and len(token.text) > 1:
            token = token._replace(text=token.text.lstrip(" "))
        found[-1].append((at, token))
        at += cells(token.text)
    return found


def draw_tokens(data: xr.Dataset, most_items: int = 3, most_levels: int = 5) -> Any | None:
    """Some originals and their reconstructions at increasing noise. None if no tokens were kept."""
    if "original_piece" not in data.coords:
        return None
    laid = []  # (heading or noise, lines)
    for item, rows in blocks(data, most_items, most_levels):
        block = [(item, row, lines(row.tokens, _COLUMNS)) for row in rows]
        if laid and sum(len(one[2]) for one in [*laid, *block]) > _MOST_LINES:
            break
        laid += block
    text = "".join(token.text for _, _, parts in laid for part in parts for _, token in part)
    families, _ = fonts_for(text)
    height = sum(len(parts) + (0.9 if row.noise is None else 0.15) for _, row, parts in laid)
    left, top = 9, 2.2
    with style() as plt:
        from matplotlib.patches import Rectangle

        columns = min(
            _COLUMNS, max((at + cells(token.text) for _, _, parts in laid for part in parts for at, token in part), default=1)
        )
        columns = max(columns, 60)
        figure = plt.figure(figsize=(_CELL * (left + columns + 1), _LINE * (height + top)))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(-left, columns + 1), ylim=(height + 0.3, -top))
        axis.set_axis_off()
        fonts = ["DejaVu Sans Mono", *families]
        y = 0.0
        for item, row, parts in laid:
            y += 0.9 if row.noise is None and y else 0.15
            label = f"text {item}" if row.noise is None else f"{row.noise:.2g}"
            axis.text(-1, y + 0.5, label, ha="right", va="center", fontsize=8.5, color=THEORY if row.noise is None else MUTED)
            for part in parts:
                for at, token in part:
                    size = cells(token.text)
                    if token.noised or token.changed:
                        color = CHANGED if token.changed else NOISED
                        axis.add_patch(Rectangle((at, y + 0.04), size, 0.92, fc=color, lw=0))
                    look = {"color": CLASS, "fontweight": "bold"} if token.changed else {"color": THEORY}
                    for k, character in enumerate(_characters(token.text)):
                        axis.text(
                            at + k + 0.5,
                            y + 0.52,
                            character,
                            ha="center",
                            va="center_baseline",
                            fontsize=8.5,
                            family=fonts,
                            parse_math=False,
                            **look,
                        )
                y += 1
        _draw_key(axis, Rectangle, columns)
    return figure


def _characters(text: str) -> list[str]:
    """Characters of a text by column; combining marks stay with their letter, and wide characters take two columns."""
    found: list[str] = []
    for c in text:
        if unicodedata.combining(c) and found:
            found[-1] += c
        else:
            found += [c, ""] if unicodedata.east_asian_width(c) in "WF" else [c]
    return found


def _draw_key(axis: Any, rectangle: Any, columns: int) -> None:
    """What the marks mean, above the texts."""
    x = 0.0
    for color, words, look in (
        (NOISED, "noised, and the same token again", {"color": THEORY}),
        (CHANGED, "another token", {"color": CLASS, "fontweight": "bold"}),
    ):
        axis.add_patch(rectangle((x, -1.55), 2, 0.92, fc=color, lw=0))
        axis.text(x + 2.6, -1.05, words, va="center", fontsize=8.5, **look)
        x += 0.86 * len(words) + 6
    axis.text(-1, -1.05, "noise", ha="right", va="center", fontsize=8.5, color=MUTED)
