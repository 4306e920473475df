"""Sections of a page for studies, stores of `uturn run`, and searches of a place (`--until`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from pydantic import TypeAdapter

from uturn.core.checks import expect
from uturn.measures.estimates import Estimate, with_interval
from uturn.pages.charts import chart, mark, with_curves
from uturn.pages.figures import has_nodes
from uturn.pages.pictures import grid, noise_axis
from uturn.pages.sections import Reader, Section, checked_table, existing
from uturn.pages.tokens import ShownText, blocks
from uturn.pages.trees import tree_of_store
from uturn.pages.views import (
    Card,
    Chart,
    Grid,
    MarkedTokens,
    Number,
    OriginalTokens,
    Tokens,
    numbers,
)
from uturn.store.run_file import NAME
from uturn.store.run_folder import warnings_of
from uturn.studies import study_of
from uturn.studies.axes import axis_words, common_axis
from uturn.studies.charts import Panel, charts_of, numbers_of, overlaid
from uturn.studies.headline import PEAK, Headline, headline_of
from uturn.studies.records import sample
from uturn.studies.runs import label
from uturn.studies.tables import (
    TextTable,
    calibration_words,
    parts_of,
    remarks_on_readings,
    remarks_on_run,
    tested_families,
)

LOCATED = "located.json"
"""The numbers of a search."""
STUDY = "study.zarr"
_MOST_TOKENS = 200_000
"""Tokens of all texts and noise levels."""
_MOST_TEXTS = 200
_LONGEST_TEXT = 2**20
"""Tokens of a text at all noise levels; a few kilobytes may promise any number."""
_FILES = ("curves.csv", "numbers.csv", "items.csv", "study.pdf", "grid.pdf", "tokens.html")
_LONGEST_CAPTION = 500


def study_section(path: Path, reader: Reader) -> Section:
    """The section of a dataset `study.zarr`, or of one of several studies in a folder."""
    data = reader.dataset(path)
    if path.name == STUDY:
        return _single_study(data, path, reader)
    return _one_of_several(data, path, reader)


def _single_study(data: xr.Dataset, path: Path, reader: Reader) -> Section:
    folder = path.parent
    title = str(data.attrs.get("title", ""))
    name = "study"
    if not reader.is_alone and folder.resolve().name:
        name = folder.resolve().name
    section = _section(data, "study", name, title or "Study")
    section.covers = "run"
    section.files = existing(folder, _FILES)
    for file in section.files:
        if file.suffix == ".pdf":
            reader.add_picture(section, file.with_suffix(".png"), file.stem)
    _add_originals(section, data, path, reader)
    run = folder / "run"
    if (run / NAME).is_file():
        with reader.noting(run):
            if has_nodes(run, reader):
                section.tree = tree_of_store(reader.run(run))
    return section


def _one_of_several(data: xr.Dataset, path: Path, reader: Reader) -> Section:
    """The section of one of several studies. Its charts are folded, since the overlay shows them."""
    title = str(data.attrs.get("title", ""))
    section = _section(data, "study", title or "study", title or "Study")
    section.charts = [replace(chart, is_shown=False) for chart in section.charts]
    section.cards = section.cards[:1]
    if (path.parent / LOCATED).exists():
        section.cards = []
        section.words = (
            "A run of a search. The place is found from all runs of the search together."
        )
    _add_originals(section, data, path, reader)
    return section


def _add_originals(section: Section, data: xr.Dataset, path: Path, reader: Reader) -> None:
    """Add the spec of the run, and its stored images or texts."""
    if "spec" in data.attrs:
        section.details.append(reader.details(section.name, data.attrs, path.parent))
    if "image" in data and data.sizes.get("shown_noise"):
        section.grid = _grid(data)
    if "original_piece" in data.coords:
        with reader.noting(path):
            section.tokens = _tokens(data)


def _grid(data: xr.Dataset) -> Grid:
    """The stored images of a run."""
    count = data.sizes["item"]
    shown = data.isel(item=sample(count))
    return grid(
        shown.shown_noise.values,
        list(map(str, shown.item_name.values)),
        shown.original.values,
        shown.image.values,
        shown.image_same_class.values,
        shown.coords.get("item_half_life"),
        total=int(data.attrs.get("items", count)),
        stored=int(data.attrs.get("kept", count)),
    )


def numbered(folder: Path) -> list[Path]:
    """The datasets `study-1.zarr`, `study-2.zarr`, .. of several studies in a folder."""
    return sorted(folder.glob("study-*.zarr"), key=lambda path: (len(path.name), path.name))


def overlay_section(folder: Path, reader: Reader) -> Section:
    """The section of the studies `study-N.zarr` of a folder: a chart for each reading, a line
    for each study.
    """
    studies = {}
    for path in numbered(folder):
        data = reader.dataset(path)
        studies[str(data.attrs.get("title", path.stem))] = data
    section = Section(
        "overlay",
        folder.resolve().name,
        "experiments",
        f"{len(studies)} runs",
        caption="A chart for each reading, with a line for each run.",
        files=existing(folder, _FILES),
        has_pictures_first=True,
    )
    reader.add_picture(section, folder / "study.png", "study")
    axis = common_axis(list(studies.values()))
    marks: list[Headline] = []
    axes: list[str] | None = None
    with suppress(Exception):  # there is no search, or its own section names the damage
        search = Search.of(json.loads(reader.content(folder / LOCATED)))
        marks = search.places
        axes = list(search.axes)
    # The runs of a search give one place together.
    if axes is None:
        _add_places(section, studies, axis)
    if (folder / "difference.json").exists():
        _add_difference(section, folder, reader)
    section.charts = _charts(overlaid(studies, marks), axes or [])
    return section


@dataclass(frozen=True)
class _PlaceOfRun:
    name: str
    """Of the run."""
    headline: Headline
    place: np.ndarray
    """(value, low, high) on the axis that all runs share."""

    @property
    def words(self) -> str:
        return f"{self.place[0]:.3g} ({self.name})"


def _add_places(section: Section, studies: Mapping[str, xr.Dataset], axis: str) -> None:
    """Add the headline of each study as a table, and the range of their places in words."""
    places = []
    for name, data in studies.items():
        for headline in numbers_of(data)[:1]:
            place = headline.place[data.axis.values.tolist().index(axis)]
            places.append(_PlaceOfRun(name, headline, place))
    if not places:
        return
    first = min(places, key=lambda run: run.place[0])
    last = max(places, key=lambda run: run.place[0])
    unit = axis.replace("_", " ")
    if axis == "noise":
        unit = _unit(next(iter(studies.values())))
    names = {run.headline.name for run in places}
    quantity = names.pop() if len(names) == 1 else "half-life"
    if first is last:
        section.words = f"{quantity} is {first.words}."
    else:
        section.words = f"{quantity} goes from {first.words} to {last.words}."
    rows: list[tuple[str, ...]] = []
    for run in places:
        rows.append((run.name, run.headline.reading or PEAK, with_interval(run.place)))
    heads = ("run", "half-life of", f"{unit} [95 % interval]")
    section.tables = [TextTable(f"{quantity} of each run", heads, rows)]


def _add_difference(section: Section, folder: Path, reader: Reader) -> None:
    """Add the difference of two runs."""
    path = folder / "difference.json"
    with reader.noting(path):
        section.tables.append(checked_table(json.loads(reader.content(path))["table"]))
    section.files += existing(folder, ("difference.json", "difference.csv", "difference.pdf"))
    reader.add_picture(section, folder / "difference.png", "difference")


@dataclass(frozen=True)
class Search:
    """The content of `located.json`: what a search for a place on the curve of a reading found."""

    reading: str
    share: float
    """Of the way from the start of the reading to chance, at the place."""
    width: Number
    """Of the interval of the place."""
    wanted: float
    reached: bool
    """Whether the interval is as narrow as wanted."""
    items: int
    """Largest number of originals at a noise level."""
    levels: list[Number]
    """Noise levels on both sides of the place."""
    remark: str
    axes: dict[str, list[Number]]
    """The place on each noise axis; empty if none was found."""
    unit: str
    """Of the noise."""

    @classmethod
    def of(cls, numbers: Mapping[str, object]) -> Search:
        return TypeAdapter(cls).validate_python(numbers)

    @property
    def places(self) -> list[Headline]:
        """The place; empty if none was found."""
        if not self.axes:
            return []
        way = "half"
        label = "located half-life"
        if self.share != 0.5:
            way = f"{self.share:g}"
            label = f"located {way} of the way"
        claim = (
            f"By all runs of the search, {self.reading} has gone {way} of the way from its start"
            " to chance at this noise"
        )
        # An infinite end, such as log-SNR without noise, is null in JSON.
        places = np.array(list(self.axes.values()), float)
        return [Headline(label, self.reading, places, claim)]


def search_section(path: Path, reader: Reader) -> Section:
    """The section of a search, the first of its page."""
    search = Search.of(json.loads(reader.content(path)))
    section = Section(
        "located",
        "located",
        "precision",
        f"Search of a place of {search.reading}",
        covers="*",  # the stores of its runs, which have studies
        caption=f"The interval was to be at most {search.wanted:g} wide.",
        words=search.remark[:1].upper() + search.remark[1:],
        files=[path],
    )
    if not search.places or search.width is None:
        return section
    (headline,) = search.places
    name = f"{headline.label} of {search.reading}"
    place = Estimate(*headline.place[0])
    section.cards = [Card(name, search.unit, headline.claim, numbers(place))]
    found = f"The {name} is {place!r}, {search.unit}. {headline.claim}."
    section.words = f"{found} {section.words}".strip()
    comparison = "as narrow as wanted" if search.reached else "wider than wanted"
    levels = ", ".join(f"{level:.4g}" for level in search.levels)
    section.caption += (
        f" It is {search.width:.3g}, {comparison}, with up to {search.items} originals at each of"
        f" {levels}."
    )
    rows: list[tuple[str, ...]] = []
    for axis, values in zip(search.axes, headline.place, strict=True):
        rows.append((axis, repr(Estimate(*values))))
    section.overview = TextTable(name, ("axis", "place [95 % interval]"), rows)
    return section


def store_section(path: Path, reader: Reader) -> Section:
    """The section of a store of `uturn run`, which may be unfinished."""
    run = reader.run(path)
    section = _section(study_of(run), "store", path.name, f"Run {path.name}")
    section.tree = tree_of_store(run)
    section.details = [reader.details(path.name, run.attrs, path)]
    return section


def _section(data: xr.Dataset, kind: str, name: str, title: str) -> Section:
    """The section of any study: headline numbers, tables, charts and remarks. Only charts with
    these numbers start unfolded.
    """
    first = headline_of(data)
    first_group = []
    if first is not None and first.reading:
        first_group = [str(data.group.sel(reading=first.reading).item())]
    cards = []
    for headline in numbers_of(data):
        cards.append(Card(headline.name, _unit(data), headline.claim, numbers(headline.place[0])))
    return Section(
        kind,
        name,
        "experiments",
        title,
        cards=cards,
        words=_words(data, first),
        warnings=warnings_of(data.attrs),
        caption=label(data.attrs.get("description", ""), _LONGEST_CAPTION),
        notes=[*_calibration(data), *remarks_on_run(data)],
        charts=_charts(charts_of(data, first_group), data.axis.values.tolist()),
        tables=list(parts_of(data, max(data.sizes["reading"], 1))),
        remarks=[*remarks_on_readings(data), *_without_curve(data)],
    )


def _words(data: xr.Dataset, first: Headline | None) -> str:
    """The headline of a study in words, or the reason why it has none."""
    if first is None:
        return ""
    if np.isfinite(first.place[0, 0]):
        place = with_interval(first.place[0])
        return f"{first.label} = {place}, {_unit(data)}. {first.claim.rstrip('.')}."
    reasons = [first.reading, str(data.remark.sel(reading=first.reading).item())]
    return f"No {first.label}: {', '.join(filter(None, reasons))}."


def _calibration(data: xr.Dataset) -> list[str]:
    """The result of the test of calibration, for each family of readings."""
    notes = []
    for family, tested in tested_families(data).items():
        words = calibration_words(tested, float(tested.gap_level))
        notes.append(f"calibration of {family.replace('_', ' ')}: {words}")
    return notes


def _without_curve(data: xr.Dataset) -> list[str]:
    """A remark on the readings that no chart shows."""
    known_levels = np.isfinite(data.curve.sel(estimate="value").values).sum(axis=1)
    without = data.reading.values[known_levels < 2].tolist()
    if not without:
        return []
    return [f"{', '.join(without)}: no curve, since fewer than two noise levels have a value"]


def _charts(panels: Iterable[Panel], axes: Sequence[str] = ()) -> list[Chart]:
    """The panels of a study that have curves, as charts; at least one of them is shown."""
    charts = []
    for panel in panels:
        marks = []
        for headline in panel.marks:
            # A mark of the theory has a place on the first axis only.
            places = dict(zip(axes, headline.place, strict=False))
            marks.append(mark(headline.label, places))
        drawn = chart(
            panel.name,
            panel.words or panel.title,
            panel.curves,
            str(panel.curves.dims[1]),
            marks,
            panel.theory,
            unit=panel.unit,
            group=panel.title,
            is_joined=panel.joined,
            is_shown=panel.shown,
        )
        charts.append(drawn)
    charts = with_curves(charts)
    if charts and not any(drawn.is_shown for drawn in charts):
        charts[0] = replace(charts[0], is_shown=True)
    return charts


def _unit(data: xr.Dataset) -> str:
    return axis_words(data).replace("epsilon", "ε")


def _tokens(data: xr.Dataset) -> Tokens:
    """Texts token by token: the originals, and at every noise level the tokens with marks for
    noised and changed ones.
    """
    length = data.sizes["position"] * (data.sizes["shown_noise"] + 1)
    what = "tokens of a text at all noise levels"
    expect(length <= _LONGEST_TEXT, what, length, f"at most {_LONGEST_TEXT} for a page")
    most = min(max(_MOST_TOKENS // max(length, 1), 1), _MOST_TEXTS)
    items = []
    for item, (original, *reconstructions) in blocks(data, most_items=most):
        texts = [token.text for token in original.tokens]
        items.append(OriginalTokens(f"text {item}", texts, list(map(_marked, reconstructions))))
    total = int(data.attrs.get("items", data.sizes["shown_item"]))
    return Tokens(noise_axis(data.shown_noise.values), items, total)


def _marked(text: ShownText) -> MarkedTokens:
    marks = []
    for token in text.tokens:
        if token.changed:
            marks.append("c")
        elif token.noised:
            marks.append("n")
        else:
            marks.append(".")
    return MarkedTokens([token.text for token in text.tokens], "".join(marks))
