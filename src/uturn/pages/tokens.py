"""Texts and their reconstructions as rows of tokens, with marks for noised and changed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr


class Token(NamedTuple):
    """A token of a row."""

    text: str
    noised: bool = False  # removed or replaced by the corruption
    changed: bool = False
    region: int = -1  # number of the region in which it lies, in originals; -1 for none
    separates: bool = False  # whether it separates segments, in originals


class ShownText(NamedTuple):
    """A text of a block: the noise level (None for the original), its tokens, and the noisy text
    from which it was made.
    """

    noise: float | None
    tokens: list[Token]
    noisy: list[Token]


def blocks(
    data: xr.Dataset, most_items: int | None = None
) -> Iterator[tuple[int, list[ShownText]]]:
    """Number of each item that is shown, and its rows: the original, then a reconstruction for
    each noise level.
    """
    for item in range(data.sizes["shown_item"])[:most_items]:
        text = data.isel(shown_item=item)
        text = text.isel(position=np.flatnonzero(text.original_piece.values != ""))
        rows = [_original(text)]
        for level in range(data.sizes["shown_noise"]):
            rows.append(_reconstruction(text.isel(shown_noise=level)))
        yield int(text.shown_item), rows


def _original(text: xr.Dataset) -> ShownText:
    """An original, with its regions and the tokens that separate its segments."""
    pieces = text.original_piece.values.tolist()
    regions = [-1] * len(pieces)
    if "shown_region" in text:
        regions = text.shown_region.values.tolist()
    separates = [False] * len(pieces)
    if "shown_separator" in text:
        separates = text.shown_separator.values.tolist()
    tokens = []
    for piece, region, separator in zip(pieces, regions, separates, strict=True):
        tokens.append(Token(readable(piece), region=region, separates=separator))
    return ShownText(None, tokens, [])


def _reconstruction(text: xr.Dataset) -> ShownText:
    """A reconstruction, and the noisy text from which it was made."""
    noised = text.noised.values.tolist()
    changed = text.changed.values.tolist()
    tokens = []
    for piece, is_noised, is_changed in zip(text.piece.values, noised, changed, strict=True):
        tokens.append(Token(readable(piece), is_noised, is_changed))
    noisy = []
    pairs = zip(text.noisy_piece.values, text.original_piece.values, noised, strict=True)
    for piece, original, is_noised in pairs:
        noisy.append(Token(_noisy_text(str(piece), str(original)), is_noised))
    return ShownText(float(text.shown_noise), tokens, noisy)


def _noisy_text(piece: str, original: str) -> str:
    """The text of a noisy token; for a masked token, one dot for each character of the original."""
    if piece:
        return readable(piece)
    blank = blank_before(original)
    return blank + "·" * len(readable(original)[len(blank) :])


def blank_before(text: str) -> str:
    """The blank with which the text of a token begins; "" if it has none, or is one."""
    return " " if len(text) > 1 and text.startswith(" ") else ""


def readable(text: object) -> str:
    """A text with escapes for characters that are invisible or change the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
