"""Reconstructions that another program has written to image files, as a backward that reads
them.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import PrivateAttr

from uturn.core.caches import digest_of_file
from uturn.core.checks import LARGEST, expect
from uturn.core.data import Noisy, Originals
from uturn.core.files import checked_path
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Corruption, Design, FromFiles, Source, Spec
from uturn.core.random import Streams
from uturn.core.variables import Axes, Axis
from uturn.corruption.recorded import Recorded
from uturn.sources.images import (
    ImageFolderSource,
    as_unicode,
    in_threads,
    listed,
    pixels_of,
    readable,
    scaled,
    seen,
    some_of,
    unread,
)

_FIELDS = {
    "noise": r"(?:\d*\.)?\d+(?:[eE][-+]?\d+)?",
    "item": r".+",
    "trajectory": r"\d+",
    "clone": r"\d+",
}
"""The fields of a pattern, and what they match."""
_WORDS = _FIELDS | {"trajectory": "[^/]+?", "clone": "[^/]+?"}
"""What they match if no file has numbers of trajectories and clones."""
_ANY = _WORDS | {"noise": "[^/]+?"}
"""What they match in files that nearly match."""
_PLACE = ["noise", "original", "trajectory", "clone"]
_MOST_SPARSE = 2**17
"""Largest number of U-turns of which nearly all may be missing: n files may name n**2."""
_DIGITS = 9
"""Digits of a noise level; 0.1, .10 and 1e-1 are one level."""
_MOST_PAIRED = 1000
"""Number of originals among which swapped files are sought."""
_COMPARED = 32
"""Number of originals among which copies are sought."""
_AT_ONCE = 32
"""Number of originals whose images are read together in the search for swapped files."""
_SIDE = 32
"""Pixels of a side of the images whose pairs are compared."""
_SWAPPED = 0.7
"""Ratio of distances below which the files of a pair of originals are suspicious."""
_CLEAR = 1.2
"""Pairs are named only where the median ratio of all other originals is at least this."""
_COLOURS = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of Pillow with colours."""
_EXPECTED = (
    "expected a path with {noise} and {item}, perhaps {trajectory} and {clone},"
    " 'strength_{noise}/{item}.png'"
)
_RENAME = "{item} must be the name of the original's file without its suffix"


class RecordedImages(Spec, FromFiles):
    """Reads the reconstructions of U-turns made elsewhere from image files; no model is run.

    The source is the folder of originals (type "images"). Its options `channels` and `size` apply
    to the files as well.

    Options. `pattern`: path of the files with {noise} and {item}, perhaps {trajectory} and {clone},
    such as "strength_{noise}/{item}_{trajectory}.png". {item} is the name of the original's file
    without its suffix, or its path below the folder of originals, as in "cat/001", if several
    sub-folders have files of one name. {noise} is a number of 0 or more in any notation.
    {trajectory} and {clone} are whole numbers, or words if no file has numbers; those found in all
    names, in increasing or alphabetical order, are trajectories (clones) 0, 1, .. Only files below
    the folder in front of the first field are read; files and folders whose names begin with a dot
    are ignored, and links are followed.

    Reconstructions: float32 (items, draws, channels, height, width) in [-1, 1]; NaN where a file is
    missing or unreadable.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    undoes: ClassVar[tuple[str, ...]] = ("recorded",)
    adds_trajectories: ClassVar[bool] = True
    keeps_identity: ClassVar[bool] = (
        False  # other programs may change an image, as an autoencoder does
    )
    type: Literal["recorded"] = "recorded"
    pattern: str

    @cached_property
    def files(self) -> _Files:  # type: ignore[override]
        """The files that match the pattern, listed once."""
        return _Files(self.pattern)

    def check(self, source: Source, corruption: Corruption) -> None:
        # Files belong to originals by their names.
        is_folder = isinstance(source, ImageFolderSource)
        expect(is_folder, "source", source, "a folder, type 'images'")

    def forward_process(
        self,
        source: Any,  # noqa: ANN401 - an ImageFolderSource, after `check`
        corruption: Corruption | None = None,
    ) -> RecordedNoise:
        """The recorded noise, which knows the files of the originals."""
        noise = Recorded() if corruption is None else corruption
        assert isinstance(noise, Recorded)
        return RecordedNoise.of_files(noise, Recordings(self.files, source))

    def reconstruct(self, noisy: NoisyRecorded, streams: Streams, clones: int = 1) -> np.ndarray:
        return noisy.recordings.images(streams, clones)

    def missing(self, experiment: Design) -> dict[str, str]:
        return _recordings_of(experiment).missing(experiment)

    def doubts(self, experiment: Design) -> list[str]:
        """Missing files, files that nearly match, copies, and originals whose files seem to be
        swapped, as sentences.
        """
        recordings = _recordings_of(experiment)
        sentences = self.files.left_out()
        missing = recordings.missing(experiment)
        if missing:
            num_draws = experiment.items * experiment.trajectories * experiment.clones
            num_files = len(experiment.noise) * num_draws
            sentences.append(
                f"{len(missing):,} of {num_files:,} recorded files are missing or unreadable:"
                f" {_with_reasons(missing)}"
            )
        return sentences + recordings.copies(experiment) + recordings.swapped(experiment)

    def fingerprint(self) -> str:
        """Digests of the names and contents of the files of each noise level, trajectory and
        clone, "0.5 0 0 7f3c..; ..".
        """
        files = self.files
        table = files.table.sort_index()

        def content(name: str) -> str:
            path = files.path(name)
            return unread(path) or digest_of_file(path)

        draws = product(files.levels, range(len(files.trajectories)), range(len(files.clones)))
        digests = {draw: hashlib.sha256() for draw in draws}
        places = table[["noise", "trajectory", "clone"]].itertuples(index=False, name=None)
        contents = in_threads(content, table.index)
        for draw, name, text in zip(places, table.index, contents, strict=True):
            digests[draw].update(os.fsencode(name) + b"\0" + text.encode())
        parts = []
        for (level, trajectory, clone), digest in digests.items():
            parts.append(f"{level} {trajectory} {clone} {digest.hexdigest()[:32]}")
        return "; ".join(parts)

    def stale(self, fingerprint: str, noise: Sequence[float]) -> Collection[float] | None:
        """The levels at which files have changed, come or gone, except for further trajectories
        and clones.
        """
        before = set(fingerprint.split("; "))
        now = self.fingerprint().split("; ")
        changed = {text.partition(" ")[0] for text in before.difference(now)}
        return {level for level in noise if f"{rounded(level)}" in changed}

    def describe(self) -> str:
        return f"recorded U-turns, {as_unicode(self.pattern)}"


class RecordedNoise(Recorded):
    """The corruption `recorded` with the files of the reconstructions, which its noisy data
    carry to the backward.
    """

    _recordings: Recordings = PrivateAttr()

    @classmethod
    def of_files(cls, noise: Recorded, recordings: Recordings) -> RecordedNoise:
        """The noise of U-turns with their files."""
        recorded = cls(**noise.model_dump())
        recorded._recordings = recordings
        return recorded

    @property
    def recordings(self) -> Recordings:
        """The files."""
        return self._recordings

    def observe(self, originals: Originals, noise: float, streams: Streams) -> NoisyRecorded:
        count = len(originals.items) * streams.count
        unseen = np.empty((count, 0), np.float32)
        return NoisyRecorded(unseen, np.full(count, noise), recordings=self.recordings)

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        scheduled = {} if self.schedule is None else _axes_of(self.schedule, noise)
        return {**scheduled, **super().axes(noise, source)}


@dataclass(frozen=True, eq=False, repr=False)
class NoisyRecorded(Noisy):
    """Noisy data that are not known, and the files of their reconstructions."""

    recordings: Recordings = field(kw_only=True)


def _recordings_of(experiment: Design) -> Recordings:
    """The files of an experiment with `RecordedImages`, whose forward process has them."""
    noise = experiment.parts.corruption
    assert isinstance(noise, RecordedNoise)
    return noise.recordings


def _axes_of(model: str, noise: np.ndarray) -> dict[str, Axis]:
    """abar, log-SNR and sigma of levels t/T in the chain of a model's scheduler with all
    training timesteps.
    """
    from uturn.corruption.diffusion import LONG_NAMES
    from uturn.networks.images.schedules import read_scheduler, schedule

    largest = float(noise.max(initial=0))
    where = f"schedule = {shown(model)}: noise"
    expect(largest <= 1, where, largest, "levels up to 1, which are read as t/T or strength")
    steps = int(read_scheduler(model).scheduler.config.get("num_train_timesteps", 1000))
    chain = schedule(model, steps, timestep_spacing="linspace")
    levels = chain.isel(step=np.rint(noise * steps).astype(int))
    axes = {}
    for name, text in LONG_NAMES.items():
        axes[name] = Axis(levels[name].values, {"long_name": text})
    return axes


@dataclass(frozen=True)
class _Part:
    """A text of a pattern, and the field after it."""

    literal: str
    field: str | None
    """None after the last field."""


@dataclass(frozen=True)
class _Pattern:
    """The names of files: texts and fields in turn."""

    root: str
    """The folder in front of the first field."""
    parts: tuple[_Part, ...]
    """The names below that folder."""

    @classmethod
    def parsed(cls, text: str) -> _Pattern:
        """The pattern of a path; ValueError if it is malformed."""
        try:
            path = os.path.normpath(checked_path("pattern", text))
            parsed = list(string.Formatter().parse(path))
        except ValueError as error:
            raise ValueError(f"pattern = {text!r}: {one_line(error)}; {_EXPECTED}") from None
        parts = [_Part(literal, field) for literal, field, _, _ in parsed]
        folder, slash, start = parts[0].literal.rpartition("/")
        root = folder or slash or "."
        wrong = cls._faults(parts)
        if not os.path.isdir(root):
            wrong.append(f"{root} is not a folder")
        if wrong:
            raise ValueError(f"pattern = {text!r}: {wrong[0]}; {_EXPECTED}")
        return cls(root, (_Part(start, parts[0].field), *parts[1:]))

    @staticmethod
    def _faults(parts: Sequence[_Part]) -> list[str]:
        """What is wrong with the fields."""
        fields = [part.field for part in parts if part.field is not None]
        faults = [f"the field {{{field}}}" for field in fields if field not in _FIELDS]
        faults += [f"no {{{field}}}" for field in ("noise", "item") if field not in fields]
        for part in parts[1:]:
            if part.field and not part.literal:
                faults.append(f"nothing before {{{part.field}}}")
        return faults

    def matches(self, names: pd.Series, forms: Mapping[str, str]) -> pd.DataFrame:
        """Texts of the fields, with these regular expressions, in the names that match the
        pattern, indexed by name.
        """
        expression = ""
        fields = set()
        for part in self.parts:
            expression += re.escape(part.literal)
            if part.field in fields:
                expression += f"(?P={part.field})"
            elif part.field is not None:
                expression += f"(?P<{part.field}>{forms[part.field]})"
                fields.add(part.field)
        flags = re.DOTALL
        if forms is _ANY:
            flags |= re.IGNORECASE
        texts = names.str.extract(rf"\A{expression}\Z", flags)
        return texts.set_axis(names).dropna()

    def filled(self, texts: Mapping[str, str]) -> str:
        """The name with these texts of the fields."""
        name = ""
        for part in self.parts:
            name += part.literal
            if part.field:
                name += texts[part.field]
        return name


class _Files:
    """The files that match a pattern; ValueError if it is malformed or if none match it.

    `table`: noise level, text of {item}, and numbers from 0 of trajectory and clone, indexed by the
    names below `root`. `levels`, `trajectories`, `clones`: the values in all names.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._parsed = _Pattern.parsed(pattern)
        self._names = pd.Series(sorted(name for name, _ in listed(self.root)), dtype=object)
        texts = self._texts_of_fields()
        noise = texts["noise"].map(lambda text: rounded(float(text))).astype(float)
        where = f"pattern = {pattern!r}: noise of {as_unicode(noise.idxmax())}"
        expect(noise.max() < LARGEST, where, noise.max(), f"less than {LARGEST:g}")
        trajectories = _Numbered.of(texts["trajectory"])
        clones = _Numbered.of(texts["clone"])
        self.levels = sorted(set(noise))
        self.trajectories = trajectories.values
        self.clones = clones.values
        num_items = len(set(texts["item"]))
        num_draws = len(self.trajectories) * len(self.clones)
        num_places = len(self.levels) * num_items * num_draws
        where = f"all levels, items, trajectories and clones of {len(texts)} files"
        expected = f"at most {_MOST_SPARSE}, or 16 a file; move some away"
        is_full = num_places <= max(_MOST_SPARSE, 16 * len(texts))
        expect(is_full, f"pattern = {pattern!r}: {where}", num_places, expected)
        columns = {
            "noise": noise,
            "item": texts["item"],
            "trajectory": trajectories.numbers,
            "clone": clones.numbers,
        }
        self.table = pd.DataFrame(columns, dtype=object)
        self._texts: dict[str, dict[object, str]] = {}
        for name in _FIELDS:  # of equal values, the text of the first name
            values = self.table[name][::-1]
            self._texts[name] = dict(zip(values, texts[name][::-1], strict=True))

    @property
    def root(self) -> str:
        """The folder in front of the first field."""
        return self._parsed.root

    def _texts_of_fields(self) -> pd.DataFrame:
        """The texts of all fields, indexed by name; "0" for fields that the pattern has not."""
        texts = self._parsed.matches(self._names, _FIELDS)
        if texts.empty:
            texts = self._parsed.matches(self._names, _WORDS)
        if texts.empty:
            nearly = self._parsed.matches(self._names, _ANY).index
            names = [as_unicode(name) for name in (*nearly, *self._names)]
            where = f"pattern = {self.pattern!r}: no file matches it"
            raise ValueError(f"{where}, {self.root} holds {some_of(names)}; {_EXPECTED}")
        for name in ("trajectory", "clone"):
            if name not in texts:
                texts = texts.assign(**{name: "0"})
        return texts

    def left_out(self) -> list[str]:
        """A sentence on the files that match the pattern except for a field or the case of
        letters, with a number as level.
        """
        nearly = self._parsed.matches(self._names, _ANY).drop(self.table.index, errors="ignore")
        has_level = nearly["noise"].str.contains(r"(?i:\d|\A[-+]?(?:nan|inf))")
        names = [as_unicode(name) for name in nearly.index[has_level]]
        if not names:
            return []
        return [
            f"{_files(names, 'file')} of {as_unicode(self.root)} left out, which the pattern does"
            f" not match: {some_of(names)}"
        ]

    def name(self, noise: float, item: str, trajectory: int, clone: int) -> str:
        """The name that a file of this place would have; `trajectory` and `clone` are numbers from
        0.
        """
        place = {"noise": noise, "item": item, "trajectory": trajectory, "clone": clone}
        texts = {}
        for field_name, value in place.items():
            texts[field_name] = self._texts[field_name].get(value, str(value))
        return self._parsed.filled(texts)

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.root, name))


@dataclass(frozen=True)
class _Numbered:
    """The values of a field, and which of them each file has."""

    values: list[int | str]
    """In increasing or alphabetical order."""
    numbers: pd.Series
    """Place in `values` of each file."""

    @classmethod
    def of(cls, texts: pd.Series) -> _Numbered:
        values = texts.map(lambda text: int(text) if text.isdecimal() else text)
        ordered = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        numbers = {value: number for number, value in enumerate(ordered)}
        return cls(ordered, values.map(numbers))


def rounded(noise: float) -> float:
    """A noise level with nine digits: levels from texts and from arithmetic are then equal."""
    return float(f"{noise:.{_DIGITS}g}")


class _Place(NamedTuple):
    """Which U-turn a file has."""

    noise: float
    original: str
    """Name of the original's file."""
    trajectory: int
    clone: int


Pair = tuple[int, int]
"""Numbers of two originals, the smaller one first."""


class Recordings:
    """Recorded files, assigned to the originals of a folder by their names."""

    def __init__(self, files: _Files, source: ImageFolderSource) -> None:
        self.files = files
        self.source = source

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The file and the text of {item} of every U-turn, indexed by noise level, name of the
        original, trajectory and clone.
        """
        table = self.files.table.rename_axis("file").reset_index()
        table["file"] = pd.Series([self.files.path(name) for name in table["file"]], dtype=object)
        owners = self._owners(table["item"])
        expected = "one; write {item} with the sub-folder, or rename the originals"
        for file, originals in zip(table["file"], owners, strict=True):
            where = f"originals of {file} in {self.source.path!r}"
            expect(len(originals) < 2, where, originals, expected)
        table["original"] = owners.str[0]
        self._check_orphans(table)
        is_twin = table.duplicated(_PLACE, keep=False)
        if is_twin.any():
            twins = table[is_twin].sort_values(_PLACE)["file"].iloc[:2]
            raise ValueError(
                f"pattern = {self.files.pattern!r}: {' and '.join(twins)} are the same U-turn; move"
                " one away"
            )
        return table.set_index(_PLACE)[["file", "item"]]

    def _owners(self, items: pd.Series) -> pd.Series:
        """The names of the originals that a text of {item} may mean."""
        by_path = defaultdict[str, list[str]](list)
        by_name = defaultdict[str, list[str]](list)
        for original in self.source.names():
            path = os.path.splitext(original)[0]
            by_path[path].append(original)
            by_name[os.path.basename(path)].append(original)
        return items.map(lambda item: by_path.get(item) or by_name.get(item, []))

    def _check_orphans(self, table: pd.DataFrame) -> None:
        """ValueError for files without an original."""
        orphans = table["file"][table["original"].isna()].tolist()
        if not orphans:
            return
        with_files = set(table["original"])
        idle = [name for name in self.source.names() if name not in with_files]
        count = _files(orphans, "recorded file")
        text = f"{count} without an original in {self.source.path!r}: {some_of(orphans)}"
        if idle:
            text += f"; {_files(idle, 'original')} without any: {some_of(idle)}"
        raise ValueError(f"{text}; {_RENAME}")

    def _listed(
        self, levels: Sequence[float], names: Sequence[str], trajectories: range, clones: int
    ) -> dict[_Place, str | None]:
        """The files of U-turns by place, None where there is none, in C order of level,
        original, trajectory and clone.
        """
        axes = [[rounded(level) for level in levels], names, trajectories, range(clones)]
        index = pd.MultiIndex.from_product(axes, names=_PLACE)
        files: dict[_Place, str | None] = {}
        for place, file in self._table["file"].reindex(index).items():
            files[_Place(*place)] = None if pd.isna(file) else file
        return files

    def images(self, streams: Streams, clones: int) -> np.ndarray:
        """Reconstructions, float32 (items, draws, channels, height, width) in [-1, 1]; NaN for
        missing files.
        """
        source = self.source
        shape = source.image_shape()
        names = source.names(streams.items)
        files = list(self._listed([streams.noise], names, streams.trajectories, clones).values())
        images = np.full((len(files), *shape), np.nan, np.float32)

        def decoded(file: str | None) -> np.ndarray | str | None:
            return None if file is None else pixels_of(file, source.channels, source.size)

        for image, file, pixels in zip(images, files, in_threads(decoded, files), strict=True):
            if isinstance(pixels, np.ndarray):
                is_same = pixels.shape[:2] == shape[1:]
                expected = f"{shape[1:]}; start again in a new store"
                where = f"{file} has changed during the run: size"
                expect(is_same, where, pixels.shape, expected)
                image[...] = scaled(pixels.transpose(2, 0, 1), self.files.root)
        return images.reshape(len(streams.items), -1, *shape)

    def missing(self, experiment: Design) -> dict[str, str]:
        """Missing and unreadable files of an experiment, {name: reason}, after a check of all
        files.
        """
        self._check_draws("trajectories", experiment.trajectories, self.files.trajectories)
        self._check_draws("clones", experiment.clones, self.files.clones)
        absent = [level for level in experiment.noise if rounded(level) not in self.files.levels]
        levels = ", ".join(f"{level:g}" for level in self.files.levels)
        expect(not absent, "noise: levels without a recorded file", absent, f"some of {levels}")
        names = self.source.names(np.arange(experiment.items))
        items = self._items(names)
        files = self._listed(
            experiment.noise, names, range(experiment.trajectories), experiment.clones
        )
        looks = in_threads(self._look, files.values())
        missing = {}
        for (place, file), look in zip(files.items(), looks, strict=True):
            path = file
            if path is None:
                item = items[place.original]
                name = self.files.name(place.noise, item, place.trajectory, place.clone)
                path = self.files.path(name)
            if not isinstance(look, str):
                self._check_pixels(path, look, place.original)
            elif file is None and os.path.lexists(path):
                missing[as_unicode(path)] = "no regular file"
            else:
                missing[as_unicode(path)] = look
        if len(missing) == len(files):
            raise ValueError(
                f"none of the {len(files)} recorded files can be read: {_with_reasons(missing)};"
                " expected PNG, JPEG or the like"
            )
        return missing

    def _check_draws(self, option: str, count: int, values: Sequence[int | str]) -> None:
        """ValueError for more trajectories or clones than the files have."""
        listing = some_of([str(value) for value in values])
        expected = f"at most the {len(values)} of the recorded files ({listing})"
        expect(count <= len(values), option, count, expected)

    def _items(self, names: Sequence[str]) -> dict[str, str]:
        """The text of {item} by the names of originals; ValueError for originals without files."""
        originals = self._table.index.get_level_values("original")
        items: dict[str, str] = dict(zip(originals, self._table["item"], strict=True))
        idle = [name for name in names if name not in items]
        if idle:
            count = f"{_files(idle, 'original')} without any recorded file: {some_of(idle)}"
            example = f"(files are named as {self._table['file'].iloc[0]})"
            raise ValueError(
                f"{count} {example}; write {{item}} as the name of the original's file without its"
                " suffix, or move the originals away"
            )
        return items

    def _look(self, file: str | None) -> tuple[int, int, str] | str:
        """Height, width and mode of a file, or why it cannot be read."""
        if file is None:
            return "no such file"
        return seen(file, self.source.channels, self.source.size)

    def _check_pixels(self, file: str, look: tuple[int, int, str], name: str) -> None:
        """ValueError for a file of another size than its original, and for a grey file of an
        original with colours.
        """
        original = os.path.join(self.source.path, name)
        height, width, mode = look
        right_height, right_width, right_mode = readable(original, self._look(original))
        size = (height, width)
        right_size = (right_height, right_width)
        remedy = "give `size` to crop and resize both"
        expected = f"{right_size} of its original {name}; {remedy}"
        expect(size == right_size, f"{file}: height, width", size, expected)
        has_colours = mode in (*_COLOURS, "P")
        needs_colours = self.source.channels == 3 and right_mode in _COLOURS
        expected = f"colours, as its original {name} has; or channels = 1 for both in grey"
        expect(has_colours or not needs_colours, f"{file}: mode", mode, expected)

    def copies(self, experiment: Design) -> list[str]:
        """Sentences if at the largest noise all reconstructions equal the originals, or all
        trajectories or clones each other.
        """
        noise = max(experiment.noise)
        items = np.arange(min(experiment.items, _COMPARED))
        trajectories = experiment.trajectories
        streams = Streams(0, items, noise, range(trajectories))
        images = self.images(streams, experiment.clones)
        images = images.reshape(len(items), trajectories, experiment.clones, -1)
        originals = self.source.images_at(items)[0].reshape(len(items), 1, 1, -1)
        where = f"at {noise:g}, the largest noise, all"
        if noise > 0 and _are_equal(images, originals):
            return [f"{where} reconstructions equal their originals; are they copies of them?"]
        doubt = "of an original are equal; were they made with one seed, or copied?"
        sentences = []
        if trajectories > 1 and _are_equal(images, images[:, :1]):
            sentences.append(f"{where} trajectories {doubt}")
        if experiment.clones > 1 and _are_equal(images, images[:, :, :1]):
            sentences.append(f"{where} clones {doubt}")
        return sentences

    def swapped(self, experiment: Design) -> list[str]:
        """Sentences on pairs of originals whose files seem to be swapped.

        With c_ij the mean distance of the reconstructions of i to original j, a pair is named if j
        has the smallest (c_ij + c_ji) / (c_ii + c_jj) of i, and this is below .7. Levels are judged
        in increasing order as long as the median of the smallest ratios of all other originals,
        among each other, is 1.2 or more, because strong noise leaves no trace of the original.
        Images are averaged to at most 32 pixels a side; the first 1,000 originals are compared.
        """
        items = np.arange(min(experiment.items, _MOST_PAIRED))
        levels = sorted(experiment.noise)
        blocks = np.array_split(items, -(-len(items) // _AT_ONCE))
        batches = [coarse(self.source.images_at(block)[0][:, None])[:, 0] for block in blocks]
        originals = np.concatenate(batches)
        names = [as_unicode(name) for name in self.source.names(items)]
        sentences = []
        named: set[Pair] = set()
        for level in levels:
            batches = []
            for block in blocks:
                streams = Streams(0, block, level, range(experiment.trajectories))
                batches.append(coarse(self.images(streams, experiment.clones)))
            is_smallest = level == levels[0]
            ratios = _swapped_pairs(originals, np.concatenate(batches), is_smallest)
            if ratios is None:
                break
            new = sorted(ratios.keys() - named, key=lambda pair: ratios[pair])
            named |= ratios.keys()
            if new:
                pairs = [f"{names[i]} and {names[j]}" for i, j in new]
                sentences.append(_on_swapped(level, is_smallest, pairs, min(ratios.values())))
        return sentences


def _are_equal(images: np.ndarray, others: np.ndarray) -> bool:
    """Whether all images that are not missing equal the others, and there are such images."""
    are_both_there = ~np.isnan(images + others).any(axis=3)
    are_equal = (images == others).all(axis=3)
    return bool(are_both_there.any()) and bool(are_equal[are_both_there].all())


def _swapped_pairs(
    originals: np.ndarray, images: np.ndarray, is_smallest: bool
) -> dict[Pair, float] | None:
    """The ratio of distances of each pair of originals that seems to be swapped; None if the noise
    leaves no trace of the originals. Two others are needed to see that, except at the smallest
    noise.
    """
    ratio, partner = pairing(originals, images)
    is_other = ratio >= _SWAPPED
    clear = np.inf if is_smallest else 0.0
    if is_other.sum() > 1:
        clear = np.median(pairing(originals[is_other], images[is_other])[0])
    if clear < _CLEAR:
        return None
    ratios = {}
    for i in np.flatnonzero(~is_other):
        ratios[min(i, partner[i]), max(i, partner[i])] = ratio[i]
    return ratios


def _on_swapped(level: float, is_smallest: bool, pairs: Sequence[str], ratio: float) -> str:
    """A sentence on pairs of originals, of which one has this smallest ratio."""
    where = f"at {level:g}"
    if is_smallest:
        where += ", the smallest noise"
    listing = ", ".join(pairs[:5])
    if len(pairs) > 5:
        listing += ", .."
    return (
        f"{where}, reconstructions lie closer to another original than to their own; are the files"
        f" of these originals swapped: {listing}? (distances to the other over distances to their"
        f" own: {ratio:.2f}; below {_SWAPPED:g} is suspicious)"
    )


def pairing(originals: np.ndarray, reconstructions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each original i the smallest (c_ij + c_ji) / (c_ii + c_jj) over other originals j, and
    that j.

    c_ij: mean Euclidean distance of the reconstructions of i to original j. If the files of i and j
    are swapped, c_ij and c_ji are small at weak noise, and the ratio is far below 1. `originals`
    (items, d), `reconstructions` (items, draws, d) with NaN where they are missing. Ratios are
    infinite without other originals.

    >>> x = np.eye(3)
    >>> ratio, partner = pairing(x, 0.9 * x[[1, 0, 2], None])
    >>> ratio.round(2), partner
    (array([0.07, 0.07, 1.86]), array([1, 0, 0]))
    """
    x = np.asarray(originals, float)
    squares = (x**2).sum(axis=1)
    sums = np.zeros((len(x), len(x)))
    counts = np.zeros((len(x), 1))
    for y in np.moveaxis(np.asarray(reconstructions, float), 1, 0):
        squared = squares - 2 * y @ x.T + (y**2).sum(axis=1, keepdims=True)
        distances = np.sqrt(np.maximum(squared, 0))
        sums += np.nan_to_num(distances)
        counts += ~np.isnan(distances[:, :1])
    with np.errstate(invalid="ignore", divide="ignore"):
        c = sums / counts  # NaN for items without reconstructions
        ratios = (c + c.T) / (c.diagonal()[:, None] + c.diagonal())
    ratios[np.isnan(ratios) | np.eye(len(x), dtype=bool)] = np.inf
    partner = ratios.argmin(axis=1)
    return ratios[np.arange(len(x)), partner], partner


def coarse(images: np.ndarray) -> np.ndarray:
    """Images (items, draws, channels, height, width) averaged to at most 32 pixels a side,
    (items, draws, numbers).
    """
    items, draws, channels, height, width = images.shape
    factor = -(-max(height, width) // _SIDE)
    rows = max(1, height // factor)
    columns = max(1, width // factor)
    cut = images[..., : rows * factor, : columns * factor]
    height, width = cut.shape[-2:]
    cells = cut.reshape(items, draws, channels, rows, height // rows, columns, width // columns)
    means: np.ndarray = cells.mean(axis=(4, 6)).reshape(items, draws, -1)
    return means


def _files(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _with_reasons(missing: Mapping[str, str]) -> str:
    """The first missing files, as text."""
    return some_of([f"{name} ({reason})" for name, reason in missing.items()])
