"""Texts and their reconstructions as rows of tokens, with marks for those that were noised and
those that changed.
"""

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
        originals, length = text.original_piece.values.tolist(), text.sizes["position"]
        regions = text.shown_region.values.tolist() if "shown_region" in data else [-1] * length
        separates = (
            text.shown_separator.values.tolist() if "shown_separator" in data else [False] * length
        )
        tokens = [
            Token(readable(p), region=r, separates=s)
            for p, r, s in zip(originals, regions, separates, strict=True)
        ]
        rows = [ShownText(None, tokens, [])]
        for level in range(data.sizes["shown_noise"]):
            at = text.isel(shown_noise=level)
            noised, changed = at.noised.values.tolist(), at.changed.values.tolist()
            tokens = [
                Token(readable(p), n, c)
                for p, n, c in zip(at.piece.values.tolist(), noised, changed, strict=True)
            ]
            pieces = map(_noisy_text, at.noisy_piece.values.tolist(), originals)
            noisy = [Token(piece, n) for piece, n in zip(pieces, noised, strict=True)]
            rows.append(ShownText(float(at.shown_noise), tokens, noisy))
        yield int(text.shown_item), rows


def _noisy_text(piece: str, original: str) -> str:
    """The text of a noisy token; for a masked token, one dot for each character of the original."""
    blank = " " if len(original) > 1 and original.startswith(" ") else ""
    return readable(piece) if piece else blank + "·" * len(readable(original)[len(blank) :])


def readable(text: object) -> str:
    """A text with escapes for characters that are invisible or change the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
