"""Reconstructions that another program has written to image files, as a backward that reads them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import string
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from uturn.core.checks import LARGEST, checked_path, one_line, shown
from uturn.core.files import cached_while_unchanged, digest_of_file
from uturn.core.protocols import Axes, Backward, Corruption, Noisy, Spec
from uturn.core.random import Streams
from uturn.corruption.recorded import Recorded
from uturn.measures.pairing import coarse, pairing
from uturn.sources.images import (
    FORMATS,
    ImageFolderSource,
    as_unicode,
    decode,
    in_threads,
    listed,
    scaled,
    some_of,
    unread,
)

_FIELDS = {"noise": r"\d*\.?\d+(?:[eE][-+]?\d+)?", "item": r".+", "trajectory": r"\d+", "clone": r"\d+"}
_ANY = {"noise": "[^/]+?", "item": ".+", "trajectory": "[^/]+?", "clone": "[^/]+?"}
_WORDS = _FIELDS | {name: _ANY[name] for name in ("trajectory", "clone")}
_DIGITS = 9  # of a noise level; 0.1, .10 and 1e-1 are one level
_MOST_PAIRED = 1000  # originals among which swapped files are sought
_COMPARED = 32  # originals among which copies are sought
_SWAPPED, _CLEAR = 0.7, 1.2  # ratio below which a pair is named, and least median of the ratios of all others
_COLOURS = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow


class RecordedImages(Spec, Backward):
    """Reads the reconstructions of U-turns made elsewhere from image files; no model is run.

    The source is the folder of originals (type "images"). Its options `channels` and `size` apply to the files as well.

    Options. `pattern`: path of the files with {noise} and {item}, perhaps {trajectory} and {clone}, such as
    "strength_{noise}/{item}_{trajectory}.png". {item} is the name of the original's file without its suffix, or its path below
    the folder of originals, as in "cat/001", if several sub-folders have files of one name. {noise} is a number of 0 or more in
    any notation. {trajectory} and {clone} are whole numbers, or words if no file has numbers; those found in all names, in
    increasing or alphabetical order, are trajectories (clones) 0, 1, .. Only files below the folder in front of the first field
    are read; files and folders whose names begin with a dot are ignored, and links are followed.

    Reconstructions: float32 (items, draws, channels, height, width) in [-1, 1]; NaN where a file is missing or unreadable.

    Raises
    ------
    ValueError
        For a pattern without {noise} or {item} or with other fields, if no file matches it, or if two files have the same place.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    undoes: ClassVar[tuple[str, ...]] = ("recorded",)
    adds_trajectories: ClassVar[bool] = True
    has_gaps: ClassVar[bool] = True
    type: Literal["recorded"] = "recorded"
    pattern: str

    @cached_property
    def files(self) -> _Files:  # type: ignore[override]
        """The files that match the pattern, listed once."""
        return _Files(self.pattern)

    def undone(self, corruption: Any, source: Any) -> RecordedNoise:
        if not isinstance(source, ImageFolderSource):
            raise ValueError(
                "source: recorded files belong to originals by the names of their files; expected a folder, type 'images'"
            )
        return RecordedNoise(corruption, Recordings(self.files, source))

    def reconstruct(self, noisy: _Unknown, streams: Streams, clones: int = 1) -> np.ndarray:
        return noisy.recordings.images(streams, clones)

    def missing(self, experiment: Any) -> dict[str, str]:
        return experiment.parts.corruption.recordings.missing(experiment)

    def doubts(self, experiment: Any) -> list[str]:
        """Missing files, files that nearly match, copies, and originals whose files seem to be swapped, as sentences."""
        recordings, sentences = experiment.parts.corruption.recordings, self.files.left_out()
        if missing := recordings.missing(experiment):
            files = len(experiment.noise) * experiment.items * experiment.trajectories * experiment.clones
            names = some_of([f"{name} ({reason})" for name, reason in missing.items()])
            sentences.append(f"{len(missing):,} of {files:,} recorded files are missing or unreadable: {names}")
        return sentences + recordings.copies(experiment) + recordings.swapped(experiment)

    def fingerprint(self) -> str:
        """Digests of the names and contents of the files of each noise level, trajectory and clone, "0.5 0 0 7f3c..; .."."""
        files = self.files
        names = sorted(files.places.items(), key=lambda entry: entry[1])
        contents = in_threads(lambda entry: _content(files.path(entry[1])), names)
        draws = product(files.levels, enumerate(files.trajectories), enumerate(files.clones))
        digests = {(level, t, c): (f"{level} {j} {k}", hashlib.sha256()) for level, (j, t), (k, c) in draws}
        for (place, name), content in zip(names, contents, strict=True):
            digests[place.noise, place.trajectory, place.clone][1].update(os.fsencode(name) + b"\0" + content.encode())
        return "; ".join(f"{draw} {digest.hexdigest()[:32]}" for draw, digest in digests.values())

    def stale(self, fingerprint: str, noise: Sequence[float]) -> Collection[float] | None:
        """The levels at which files have changed, come or gone, except for further trajectories and clones."""
        if " " not in fingerprint:  # of an earlier version of uturn
            return None
        changed = {text.partition(" ")[0] for text in set(fingerprint.split("; ")).difference(self.fingerprint().split("; "))}
        return {level for level in noise if f"{rounded(level)}" in changed}

    def describe(self) -> str:
        return f"recorded U-turns, {as_unicode(self.pattern)}"


class RecordedNoise(Corruption):
    """The corruption `recorded` with the files of a backward."""

    kinds, process, max_noise = Recorded.kinds, Recorded.process, Recorded.max_noise

    def __init__(self, corruption: Recorded, recordings: Recordings) -> None:
        self.corruption, self.recordings = corruption, recordings
        self.unit = corruption.unit

    def corrupt(self, images: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        return self.corruption.corrupt(images, noise, keys)

    def observe(self, originals: Any, noise: float, streams: Streams) -> _Unknown:
        count = len(originals.items) * streams.count
        return _Unknown(np.empty((count, 0), np.float32), np.full(count, noise), recordings=self.recordings)

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        model = self.corruption.schedule
        scheduled = {} if model is None else _axes_of(model, noise)
        return {**scheduled, **self.corruption.axes(noise, source)}


@dataclass(frozen=True, eq=False, repr=False)
class _Unknown(Noisy):
    """Noisy data that are not known, and the files of their reconstructions."""

    recordings: Any = None


# --- files -------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Place of a file in an experiment: noise level, {item}, {trajectory} and {clone} (0 without such a field)."""

    noise: float
    item: str
    trajectory: int | str
    clone: int | str


class _Files:
    """The files that match a pattern; ValueError if it is malformed, if none match it, or if two have the same place.

    `places`: {place: name below the folder `root`}. `levels`, `trajectories`, `clones`: what is found in all names.
    """

    def __init__(self, pattern: str) -> None:
        expected = "expected a path with {noise} and {item}, perhaps {trajectory} and {clone}, 'strength_{noise}/{item}.png'"
        try:
            parsed = list(string.Formatter().parse(os.path.normpath(checked_path("pattern", pattern))))
        except ValueError as error:
            raise ValueError(f"pattern = {pattern!r}: {one_line(error)}; {expected}") from None
        known = [field for _, field, _, _ in parsed if field is not None]
        wrong = [field for field in known if field not in _FIELDS]
        if wrong or not {"noise", "item"} <= set(known):
            what = f"the field {{{wrong[0]}}}" if wrong else "no {noise}" if "noise" not in known else "no {item}"
            raise ValueError(f"pattern = {pattern!r}: {what}; {expected}")
        folder, slash, begin = parsed[0][0].rpartition("/")
        self.root = folder or slash or "."
        if not os.path.isdir(self.root):
            raise ValueError(f"pattern = {pattern!r}: {self.root} is not a folder; {expected}")
        self._parts = [(begin, parsed[0][1]), *((literal, field) for literal, field, _, _ in parsed[1:])]
        self.places: dict[_Place, str] = {}
        self._texts: dict[tuple[str, Any], str] = {}  # (field, value): how the value is first written
        self._names = sorted(name for name, _ in listed(self.root))
        self._forms = _FIELDS if self._found(_FIELDS) else _WORDS
        for name, fields in self._found(self._forms).items():
            draw = [int(text) if text.isdecimal() else text for text in (fields.get(of, "0") for of in ("trajectory", "clone"))]
            place = _Place(rounded(float(fields["noise"])), fields["item"], *draw)
            if place.noise >= LARGEST:
                raise ValueError(
                    f"pattern = {pattern!r}: {as_unicode(name)} has the noise {fields['noise']}; expected less than {LARGEST:g}"
                )
            if place in self.places:
                raise ValueError(f"pattern = {pattern!r}: {self.places[place]} and {name} are the same U-turn; move one away")
            self.places[place] = name
            for field, text in fields.items():
                self._texts.setdefault((field, getattr(place, field)), text)
        if not self.places:
            near = self._found(_ANY)
            some = [*near, *self._names][:1]
            holds = [f"holds {as_unicode(name)}, .. ({self._misfit(name, near.get(name))})" for name in some]
            raise ValueError(
                f"pattern = {pattern!r}: no file matches it, {self.root} {(holds or ['holds no files'])[0]}; {expected}"
            )
        levels, _, *draws = map(set, zip(*self.places, strict=True))
        self.levels = sorted(levels)
        self.trajectories, self.clones = (sorted(of, key=lambda value: (isinstance(value, str), value)) for of in draws)

    def _found(self, forms: Mapping[str, str], count: int | None = None) -> dict[str, dict[str, str]]:
        """{name: text of each field} of the names that match the first `count` parts of the pattern, by default all of them.

        `forms`: regular expressions of the fields; a field that is repeated has the same text.
        """
        expression, seen = "", set[str]()
        for literal, field in self._parts[:count]:
            group = "" if field is None else f"(?P={field})" if field in seen else f"(?P<{field}>{forms[field]})"
            expression += re.escape(literal) + group
            seen |= {field} if field else set()
        pattern = re.compile(expression, re.DOTALL | (re.IGNORECASE if forms is _ANY else 0))
        matching = pattern.fullmatch if count is None else pattern.match
        return {name: match.groupdict() for name in self._names if (match := matching(name)) is not None}

    def _misfit(self, name: str, fields: Mapping[str, str] | None) -> str:
        """Why a name does not match the pattern; `fields`: texts of its fields, None if its other parts do not match either."""
        if fields is not None:
            wrong = [of for of, text in fields.items() if not re.fullmatch(self._forms[of], text, re.DOTALL)]
            return f"{{{wrong[0]}}} = {shown(fields[wrong[0]])} is no number" if wrong else "differs in upper and lower case"
        count = next((k for k in range(len(self._parts)) if name not in self._found(_ANY, k + 1)), len(self._parts) - 1)
        before = self._parts[count - 1][1] if count else None
        where = "does not begin with" if before is None else f"does not go on behind {{{before}}} with"
        return f"{where} {self._parts[count][0]!r}"

    def left_out(self) -> list[str]:
        """A sentence on the files that match the pattern except for a field or the case of letters, if the level has digits."""
        near, known = self._found(_ANY), set(self.places.values())
        names = [name for name, of in near.items() if name not in known and re.search(r"\d", of["noise"])]
        if not names:
            return []
        some = some_of([f"{as_unicode(name)} ({self._misfit(name, near[name])})" for name in names])
        return [f"{_files(names, 'file')} of {as_unicode(self.root)} left out, which the pattern does not match: {some}"]

    def name(self, place: _Place) -> str:
        """The name that a file of this place has, or would have."""
        texts = {field: self._texts.get((field, value), str(value)) for field, value in place._asdict().items()}
        return "".join(literal + (texts[field] if field else "") for literal, field in self._parts)

    def path(self, name: str) -> str:
        """Path of a file."""
        return os.path.join(self.root, name)


def rounded(noise: float) -> float:
    """A noise level with nine digits: levels from texts and from arithmetic are then equal."""
    return float(f"{noise:.{_DIGITS}g}")


@cached_while_unchanged(files=lambda path, channels, size: [path], maxsize=2**18)
def _seen(path: str, channels: int, size: int | None) -> tuple[tuple[int, ...], str] | str:
    """Height and width after resizing and the mode of an image file, or why it is unreadable; read again when it has changed."""
    if reason := unread(os.path.getsize(path)):
        return reason
    data = Path(path).read_bytes()
    pixels = decode(data, channels, size)
    return pixels if isinstance(pixels, str) else (pixels.shape[:2], _mode(data))


def _content(path: str) -> str:
    """The digest of a file, or why it is not read."""
    return unread(os.path.getsize(path)) or digest_of_file(path)


def _mode(data: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.mode


# --- files and originals -----------------------------------------------------------------------------------------------


class Recordings:
    """Recorded files, assigned to the originals of a folder by their names."""

    def __init__(self, files: _Files, source: ImageFolderSource) -> None:
        self.files, self.source = files, source

    @cached_property
    def _texts(self) -> dict[str, str]:
        """The text of {item} in the files of each original that has some, {name of the original: text}.

        ValueError if a text belongs to no original, or to several.
        """
        owners: dict[str, list[str]] = defaultdict(list)
        paths: dict[str, list[str]] = defaultdict(list)
        originals = self.source.names()
        for name in originals:
            path = os.path.splitext(name)[0]
            paths[path].append(name)
            owners[os.path.basename(path)].append(name)
        texts: dict[str, str] = {}
        orphans: list[str] = []
        for place in self.files.places:
            of = paths.get(place.item) or owners.get(place.item, [])
            if len(of) > 1:
                raise ValueError(
                    f"{self._of(place)} has {len(of)} originals in {self.source.path!r}, {some_of(of)}; write {{item}} with the "
                    f"sub-folder, or rename the originals"
                )
            if not of:
                orphans.append(self._of(place))
            elif texts.setdefault(of[0], place.item) != place.item:
                raise ValueError(
                    f"{self._of(place)} belongs to {of[0]}, as does {{item}} = {texts[of[0]]!r}; write {{item}} in one way"
                )
        if orphans:
            without = [name for name in originals if name not in texts]
            also = f"; {_files(without, 'original')} without any: {some_of(without)}" if without else ""
            raise ValueError(
                f"{_files(orphans, 'recorded file')} without an original in {self.source.path!r}: {some_of(orphans)}{also}; "
                f"{{item}} must be the name of the original's file without its suffix"
            )
        return texts

    def _of(self, place: _Place) -> str:
        return os.path.normpath(os.path.join(self.files.root, self.files.places.get(place) or self.files.name(place)))

    def _places(self, noise: float, names: Sequence[str], trajectories: range, clones: int) -> list[_Place]:
        """Places of the files at a noise level, in C order of original, trajectory and clone."""
        draws = list(product(self.files.trajectories[slice(trajectories.start, trajectories.stop)], self.files.clones[:clones]))
        return [_Place(rounded(noise), self._texts.get(name, name), *draw) for name in names for draw in draws]

    def images(self, streams: Streams, clones: int) -> np.ndarray:
        """Reconstructions, float32 (items, draws, channels, height, width) in [-1, 1]; NaN for missing files."""
        shape = self.source.image_shape()
        places = self._places(streams.noise, self.source.names(streams.items), streams.trajectories, clones)
        images = np.full((len(places), *shape), np.nan, np.float32)
        for image, place, pixels in zip(images, places, in_threads(self._pixels, places), strict=True):
            if pixels is not None:
                if pixels.shape[:2] != shape[1:]:
                    raise ValueError(f"{self._of(place)} has changed during the run; start again in a new store")
                image[...] = scaled(pixels.transpose(2, 0, 1), self.files.root)
        return images.reshape(len(streams.items), -1, *shape)

    def _pixels(self, place: _Place) -> np.ndarray | None:
        """Pixels of a file, uint8 (height, width, channels); None if it is missing or unreadable."""
        if place not in self.files.places:
            return None
        path = Path(self.files.path(self.files.places[place]))
        if unread(path.stat().st_size):
            return None
        pixels = decode(path.read_bytes(), self.source.channels, self.source.size)
        return None if isinstance(pixels, str) else pixels

    def missing(self, experiment: Any) -> dict[str, str]:
        """Missing and unreadable files of an experiment, {name: reason}, after a check of all files.

        Raises
        ------
        ValueError
            If levels, trajectories, clones or all files of an original are missing; for a file without an original, and for
            sizes or modes that differ from those of the original.
        """
        for option in ("trajectories", "clones"):
            wanted, numbers = getattr(experiment, option), getattr(self.files, option)
            if wanted > len(numbers):
                known = some_of([str(number) for number in numbers])
                raise ValueError(f"{option} = {wanted}, but the recorded files have {len(numbers)} ({known})")
        absent = [level for level in experiment.noise if rounded(level) not in self.files.levels]
        if absent:
            levels = ", ".join(f"{level:g}" for level in self.files.levels)
            raise ValueError(f"noise = {absent[0]:g}: no recorded file has this level; expected some of {levels}")
        names = self.source.names(np.arange(experiment.items))
        without = [name for name in names if name not in self._texts]
        if without:
            example = self._of(next(iter(self.files.places)))
            raise ValueError(
                f"{_files(without, 'original')} without any recorded file: {some_of(without)} (files are named as {example}); "
                f"write {{item}} as the name of the original's file without its suffix, or move the originals away"
            )
        draws = range(experiment.trajectories), experiment.clones
        places = [place for level in experiment.noise for place in self._places(level, names, *draws)]
        seen = dict(zip(places, in_threads(self._look, places), strict=True))
        self._check_pixels({place: of for place, of in seen.items() if not isinstance(of, str)}, names)
        missing = {as_unicode(self._of(place)): of for place, of in seen.items() if isinstance(of, str)}
        if len(missing) == len(seen):
            reasons = some_of([f"{name} ({reason})" for name, reason in missing.items()])
            raise ValueError(
                f"none of the {len(seen)} recorded files can be read: {reasons}; expected images such as PNG or JPEG"
            )
        return missing

    def _look(self, place: _Place) -> tuple[tuple[int, ...], str] | str:
        if place not in self.files.places:
            return "no such file"
        return _seen(self.files.path(self.files.places[place]), self.source.channels, self.source.size)

    def _check_pixels(self, seen: Mapping[_Place, tuple[tuple[int, ...], str]], names: Sequence[str]) -> None:
        """ValueError for a file whose size or mode differs from that of its original, one of `names`."""
        original_of = {self._texts[name]: name for name in names}
        mode_of = cache(lambda name: _mode((Path(self.source.path) / name).read_bytes()))
        expected = self.source.image_shape()[1:]
        for place, (shape, mode) in seen.items():
            name = original_of[place.item]
            if shape != expected:
                sizes = [f"{width} x {height}" for height, width in (shape, expected)]
                raise ValueError(
                    f"{self._of(place)} has {sizes[0]} pixels, but its original {name} has {sizes[1]}; give `size` to crop and "
                    f"resize both"
                )
            is_grey = self.source.channels == 3 and mode not in (*_COLOURS, "P")
            if is_grey and mode_of(name) in _COLOURS:
                raise ValueError(
                    f"{self._of(place)} is grey (mode {mode}), but its original {name} has colours (mode {mode_of(name)}); write "
                    f"the file in colour, or give channels = 1 to compare both in grey"
                )

    def copies(self, experiment: Any) -> list[str]:
        """Sentences if at the largest noise all reconstructions equal their originals, or all trajectories or clones each other.

        The first 32 originals are compared.
        """
        noise, items, clones = max(experiment.noise), np.arange(min(experiment.items, _COMPARED)), experiment.clones
        images = self.images(Streams(0, items, noise, range(experiment.trajectories)), clones)
        images = images.reshape(len(items), experiment.trajectories, clones, -1)
        originals = self.source.images_at(items)[0].reshape(len(items), 1, 1, -1)

        def are_equal(others: np.ndarray) -> bool:
            both = ~np.isnan(images + others).any(axis=3)
            return bool(both.any()) and bool((images == others).all(axis=3)[both].all())

        if noise > 0 and are_equal(originals):
            return [f"at {noise:g}, the largest noise, all reconstructions equal their originals; are they copies of them?"]
        return [
            f"at {noise:g}, the largest noise, all {option} of an original are equal; were they made with one seed, or copied?"
            for option, first in (("trajectories", images[:, :1]), ("clones", images[:, :, :1]))
            if getattr(experiment, option) > 1 and are_equal(first)
        ]

    def swapped(self, experiment: Any) -> list[str]:
        """Sentences on pairs of originals whose files seem to be swapped.

        With c_ij the mean distance of the reconstructions of i to original j, a pair is named if j has the smallest
        (c_ij + c_ji) / (c_ii + c_jj) of i, and this is below .7. Levels are judged in increasing order as long as the median of
        the smallest ratios of all other originals, among each other, is 1.2 or more, because strong noise leaves no trace of the
        original. Images are averaged to at most 32 pixels a side; the first 1,000 originals are compared.
        """
        items, noise = np.arange(min(experiment.items, _MOST_PAIRED)), sorted(experiment.noise)
        blocks = np.array_split(items, -(-len(items) // 32))
        originals = np.concatenate([coarse(self.source.images_at(block)[0][:, None])[:, 0] for block in blocks])
        names, known, sentences = [as_unicode(name) for name in self.source.names(items)], set[tuple[int, int]](), []
        for level in noise:
            streams = [Streams(0, block, level, range(experiment.trajectories)) for block in blocks]
            images = np.concatenate([coarse(self.images(of, experiment.clones)) for of in streams])
            ratio, partner = pairing(originals, images)
            rest = ratio >= _SWAPPED
            clear = np.inf if level == noise[0] else 0.0
            if rest.sum() > 1:
                clear = np.median(pairing(originals[rest], images[rest])[0])
            if clear < _CLEAR:
                break
            pairs = {(min(i, partner[i]), max(i, partner[i])): ratio[i] for i in np.flatnonzero(ratio < _SWAPPED)}
            named = [f"{names[i]} and {names[j]}" for i, j in sorted(pairs.keys() - known, key=lambda pair: pairs[pair])]
            known |= pairs.keys()
            if named:
                sentences.append(
                    f"at {level:g}{', the smallest noise' if level == noise[0] else ''}, reconstructions lie closer to another "
                    f"original than to their own; are the files of these originals swapped: {', '.join(named[:5])}"
                    f"{', ..' if len(named) > 5 else ''}? (distances to the other over distances to their own: "
                    f"{min(pairs.values()):.2f}; below {_SWAPPED:g} is suspicious)"
                )
        return sentences


def _files(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


# --- axes --------------------------------------------------------------------------------------------------------------


def _axes_of(model: str, noise: np.ndarray) -> Axes:
    """abar, log-SNR and sigma of levels t/T in the chain of a model's scheduler with all training timesteps."""
    from uturn.corruption.diffusion import LONG_NAMES
    from uturn.networks.images.schedules import read_scheduler, schedule

    if (noise > 1).any():
        raise ValueError(
            f"schedule = {shown(model)}: reads a level as t/T or strength, but noise = {noise.max():g}; expected levels up to 1"
        )
    steps = int(read_scheduler(model).scheduler.config.get("num_train_timesteps", 1000))
    levels = schedule(model, steps, timestep_spacing="linspace").isel(step=np.rint(noise * steps).astype(int))
    return {name: (levels[name].values, {"long_name": text}) for name, text in LONG_NAMES.items()}
