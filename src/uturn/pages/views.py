"""What a page shows, as dataclasses of plain data: charts, images, texts, trees, cards.

`plain` makes JSON of them, with the names of the fields, which `assets/report/page.js` reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.messages import visible

Number = float | None
"""A number of a page. None stands for NaN and infinity, which JSON does not have."""
Plain = str | float | bool | None | list["Plain"] | dict[str, "Plain"]
"""What JSON holds."""


def number(value: float | str | None) -> Number:
    """A number in full, since the page rounds it as its tables do; None if it is not finite."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def numbers(values: ArrayLike | Sequence[Number]) -> list[Number]:
    return [number(value) for value in np.asarray(values, float).ravel()]


@dataclass(frozen=True)
class Axis:
    """The values along an axis of a chart, or the noise levels of a view."""

    name: str
    label: str
    """Quantity and unit; "" if the view does not say them."""
    values: list[Number]
    is_logarithmic: bool = False


@dataclass(frozen=True)
class Line:
    """A curve with its 95 % intervals: a number for each value of the axis."""

    name: str
    value: list[Number]
    low: list[Number]
    high: list[Number]
    covered: int = 0
    """Number of earlier lines with which the line coincides."""
    theory_of: int | None = None
    """Index of the line that the mean field predicts, if the line is such a prediction."""


@dataclass(frozen=True)
class Mark:
    """A place that a chart marks."""

    label: str
    places: dict[str, list[Number]]
    """(value, low, high) on each axis, by the name of the axis."""


@dataclass(frozen=True)
class Chart:
    """Curves on one axis, which the reader of the page can exchange for another."""

    name: str
    """Of the files that the page saves."""
    title: str
    axes: list[Axis]
    lines: list[Line]
    marks: list[Mark] = field(default_factory=list)
    unit: str = ""
    """Quantity of the vertical axis."""
    group: str = ""
    """Distinguishes charts with one title."""
    left_out: int = 0
    """Number of curves that are not drawn, since there are too many."""
    is_joined: bool = False
    """Whether lines go on over values of the axis without a number."""
    is_shown: bool = False
    """Whether the chart is unfolded when the page opens."""
    has_slider: bool = False
    """Whether the axis is the noise, on which the slider marks a place."""


@dataclass(frozen=True)
class Card:
    """An entry of the summary at the top of the page: a number with its interval, or a verdict."""

    label: str
    unit: str
    claim: str
    """What the number means, as a sentence."""
    place: list[Number] = field(default_factory=list)
    """Value and ends of the interval."""
    verdict: str = ""
    """In place of a number."""
    supports: str = ""
    """A claim of a paper, and whether the number supports it."""
    is_range: bool = False
    """Whether `place` has the ends of a range instead of a confidence interval."""


@dataclass(frozen=True)
class Picture:
    """A stored picture."""

    url: str
    """Its content, as a data URL."""
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class OriginalImages:
    """An original and its reconstructions, as data URLs; None where an image is not known."""

    name: str
    original: str | None
    images: list[str | None]
    """A reconstruction at each noise level."""
    kept: list[bool] | None
    """Whether it keeps the class; None without classes."""
    half_life: Number


@dataclass(frozen=True)
class Grid:
    """Images of originals and of their reconstructions at the noise of the slider."""

    levels: Axis
    items: list[OriginalImages]
    total: int
    """Number of originals of the run."""
    stored: int
    """Number of originals whose images the run stored."""
    half_life: str = ""
    """Name of the half-life by which originals can be sorted; "" if they have none."""
    is_smooth: bool = False
    """Whether enlarged pixels are smoothed."""


@dataclass(frozen=True)
class SlideRow:
    """The pictures of one row."""

    name: str
    pictures: list[Picture]
    """A picture at each noise level."""


@dataclass(frozen=True)
class Slides:
    """Pictures of which the slider chooses one in each row."""

    title: str
    levels: Axis
    rows: list[SlideRow]


@dataclass(frozen=True)
class GalleryImage:
    """An image, as a data URL."""

    url: str
    size: Number = None
    """Root mean square of the values that a heat map shows."""


@dataclass(frozen=True)
class GalleryItem:
    """The images of an original, in columns: at each level, or one image for all levels."""

    name: str
    shared: list[list[GalleryImage]]
    """Columns that all rows share."""
    rows: list[list[list[GalleryImage]]]


@dataclass(frozen=True)
class GalleryGroup:
    """A table of a gallery."""

    name: str
    rows: list[str]
    """Names of the rows of each original."""
    items: list[GalleryItem]


@dataclass(frozen=True)
class Swatch:
    """A colour in a legend."""

    swatch: str
    """CSS class."""


@dataclass(frozen=True)
class Gallery:
    """Tables of images whose level the slider chooses."""

    title: str
    label: str
    """Of the tables, for screen readers."""
    heads: list[str]
    key: list[str | Swatch]
    """The legend."""
    levels: Axis
    groups: list[GalleryGroup]
    total: int
    stored: int
    is_smooth: bool = False


@dataclass(frozen=True)
class TreeMeans:
    """Means of a tree level over originals, with intervals, at each noise level."""

    value: list[Number]
    low: list[Number]
    high: list[Number]


@dataclass(frozen=True)
class TreeNodes:
    """The nodes of one original, from the root down, in per cent, at each noise level."""

    name: str
    nodes: list[list[int]]


@dataclass(frozen=True)
class TreeReading:
    """What the colours of a tree can show."""

    name: str
    label: str
    means: list[TreeMeans]
    """Of each tree level, from the leaves up."""
    originals: list[TreeNodes]


@dataclass(frozen=True)
class Tree:
    """A tree whose nodes have the colour of what is kept of them at the noise of the slider."""

    branching: int
    depth: int
    levels: Axis
    """The noise levels."""
    readings: list[TreeReading]
    run: str = ""
    """Name of the run, if a section has several."""


@dataclass(frozen=True)
class MarkedTokens:
    """A reconstruction: its tokens, and a mark for each of them.

    Marks: c, the token has changed; n, it was masked or replaced and is the same again; a dot
    otherwise.
    """

    tokens: list[str]
    marks: str


@dataclass(frozen=True)
class OriginalTokens:
    """An original text and its reconstructions."""

    name: str
    original: list[str]
    reconstructions: list[MarkedTokens]
    """One at each noise level."""


@dataclass(frozen=True)
class Tokens:
    """Texts, token by token, and their reconstructions at the noise of the slider."""

    levels: Axis
    items: list[OriginalTokens]
    total: int
    """Number of texts of the run."""


@dataclass(frozen=True)
class RunDetails:
    """Spec, versions and fingerprints of a run."""

    name: str
    facts: dict[str, str]
    spec: str


def plain(value: object) -> Plain:
    """Dataclasses, sequences and mappings as plain data for JSON.

    Control characters and direction marks in texts are replaced by escapes.
    """
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(content) for content in value]
    if isinstance(value, str):
        return visible(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__}: a page shows plain data")
