"""Reconstructions that another program has written to image files, as a backward that reads
them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import string
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import PrivateAttr

from uturn.core.caches import digest_of_file
from uturn.core.checks import LARGEST, checked_path, expect
from uturn.core.data import Noisy, Originals
from uturn.core.messages import one_line, shown
from uturn.core.protocols import Backward, Corruption, Source, Spec
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
_WORDS = _FIELDS | {"trajectory": "[^/]+?", "clone": "[^/]+?"}
_ANY = _WORDS | {"noise": "[^/]+?"}
_PLACE = ["noise", "original", "trajectory", "clone"]
_MOST_SPARSE = 2**17  # U-turns of which nearly all are missing: n files may name n**2
_DIGITS = 9  # of a noise level; 0.1, .10 and 1e-1 are one level
_MOST_PAIRED = 1000  # originals among which swapped files are sought
_COMPARED = 32  # originals among which copies are sought
_SIDE = 32  # pixels of a side of the images whose pairs are compared
# Ratio below which a pair is named, and least median of the ratios of all others.
_SWAPPED, _CLEAR = 0.7, 1.2
_COLOURS = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow


class RecordedImages(Spec, Backward):
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
    has_gaps: ClassVar[bool] = True
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

    def forward_process(self, source: Any, corruption: Any = None) -> RecordedNoise:
        """The recorded noise, which knows the files of the originals."""
        noise = Recorded() if corruption is None else corruption
        return RecordedNoise.of_files(noise, Recordings(self.files, source))

    def reconstruct(self, noisy: NoisyRecorded, streams: Streams, clones: int = 1) -> np.ndarray:
        return noisy.recordings.images(streams, clones)

    def missing(self, experiment: Any) -> dict[str, str]:
        return experiment.parts.corruption.recordings.missing(experiment)

    def doubts(self, experiment: Any) -> list[str]:
        """Missing files, files that nearly match, copies, and originals whose files seem to be
        swapped, as sentences.
        """
        recordings, sentences = experiment.parts.corruption.recordings, self.files.left_out()
        if missing := recordings.missing(experiment):
            files = (
                len(experiment.noise)
                * experiment.items
                * experiment.trajectories
                * experiment.clones
            )
            names = some_of([f"{name} ({reason})" for name, reason in missing.items()])
            sentences.append(
                f"{len(missing):,} of {files:,} recorded files are missing or unreadable: {names}"
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
        for draw, name, of in zip(
            places, table.index, in_threads(content, table.index), strict=True
        ):
            digests[draw].update(os.fsencode(name) + b"\0" + of.encode())
        return "; ".join(
            f"{level} {j} {k} {digest.hexdigest()[:32]}"
            for (level, j, k), digest in digests.items()
        )

    def stale(self, fingerprint: str, noise: Sequence[float]) -> Collection[float] | None:
        """The levels at which files have changed, come or gone, except for further trajectories
        and clones.
        """
        changed = {
            text.partition(" ")[0]
            for text in set(fingerprint.split("; ")).difference(self.fingerprint().split("; "))
        }
        return {level for level in noise if f"{rounded(level)}" in changed}

    def describe(self) -> str:
        return f"recorded U-turns, {as_unicode(self.pattern)}"


class RecordedNoise(Recorded):
    """The corruption `recorded` with the files of the reconstructions, which its noisy data
    carry to the backward.
    """

    _recordings: Any = PrivateAttr(None)

    @classmethod
    def of_files(cls, noise: Recorded, recordings: Recordings) -> RecordedNoise:
        """The noise of U-turns whose files are known."""
        made = cls(**noise.model_dump())
        made._recordings = recordings
        return made

    @property
    def recordings(self) -> Recordings:
        """The files."""
        recordings: Recordings = self._recordings
        return recordings

    def observe(self, originals: Originals, noise: float, streams: Streams) -> NoisyRecorded:
        count = len(originals.items) * streams.count
        return NoisyRecorded(
            np.empty((count, 0), np.float32), np.full(count, noise), recordings=self.recordings
        )

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        scheduled = {} if self.schedule is None else _axes_of(self.schedule, noise)
        return {**scheduled, **super().axes(noise, source)}


@dataclass(frozen=True, eq=False, repr=False)
class NoisyRecorded(Noisy):
    """Noisy data that are not known, and the files of their reconstructions."""

    recordings: Any = None  # Recordings


def _axes_of(model: str, noise: np.ndarray) -> dict[str, Axis]:
    """abar, log-SNR and sigma of levels t/T in the chain of a model's scheduler with all
    training timesteps.
    """
    from uturn.corruption.diffusion import LONG_NAMES
    from uturn.networks.images.schedules import read_scheduler, schedule

    most = float(noise.max(initial=0))
    expect(
        most <= 1,
        f"schedule = {shown(model)}: noise",
        most,
        "levels up to 1, which are read as t/T or strength",
    )
    steps = int(read_scheduler(model)[0].config.get("num_train_timesteps", 1000))
    levels = schedule(model, steps, timestep_spacing="linspace").isel(
        step=np.rint(noise * steps).astype(int)
    )
    return {
        name: Axis(levels[name].values, {"long_name": text}) for name, text in LONG_NAMES.items()
    }


class _Files:
    """The files that match a pattern; ValueError if it is malformed or if none match it.

    `table`: noise level, text of {item}, and numbers from 0 of trajectory and clone, indexed by the
    names below `root`. `levels`, `trajectories`, `clones`: what is found in all names.
    """

    def __init__(self, pattern: str) -> None:
        expected = (
            "expected a path with {noise} and {item}, perhaps {trajectory} and {clone},"
            " 'strength_{noise}/{item}.png'"
        )
        try:
            parsed = list(
                string.Formatter().parse(os.path.normpath(checked_path("pattern", pattern)))
            )
        except ValueError as error:
            raise ValueError(f"pattern = {pattern!r}: {one_line(error)}; {expected}") from None
        fields = [field for _, field, _, _ in parsed if field is not None]
        wrong = [f"the field {{{field}}}" for field in fields if field not in _FIELDS]
        wrong += [f"no {{{field}}}" for field in ("noise", "item") if field not in fields]
        wrong += [
            f"nothing before {{{field}}}"
            for literal, field, _, _ in parsed[1:]
            if field and not literal
        ]
        folder, slash, begin = parsed[0][0].rpartition("/")
        self.pattern, self.root = pattern, folder or slash or "."
        if wrong or not os.path.isdir(self.root):
            raise ValueError(
                f"pattern = {pattern!r}: {[*wrong, f'{self.root} is not a folder'][0]}; {expected}"
            )
        self._parts = [
            (begin, parsed[0][1]),
            *((literal, field) for literal, field, _, _ in parsed[1:]),
        ]
        self._names = pd.Series(sorted(name for name, _ in listed(self.root)), dtype=object)
        texts = self._found(_FIELDS)
        texts = self._found(_WORDS) if texts.empty else texts
        if texts.empty:
            some = [as_unicode(name) for name in (*self._found(_ANY).index, *self._names)]
            raise ValueError(
                f"pattern = {pattern!r}: no file matches it, {self.root} holds {some_of(some)};"
                f" {expected}"
            )
        texts = texts.assign(**{field: texts.get(field, "0") for field in ("trajectory", "clone")})
        noise = texts["noise"].map(lambda text: rounded(float(text))).astype(float)
        where = f"pattern = {pattern!r}: noise of {as_unicode(noise.idxmax())}"
        expect(noise.max() < LARGEST, where, noise.max(), f"less than {LARGEST:g}")
        self.levels = sorted(set(noise))
        self.trajectories, trajectory = _numbered(texts["trajectory"])
        self.clones, clone = _numbered(texts["clone"])
        files, places = (
            len(texts),
            math.prod(map(len, (self.levels, self.trajectories, self.clones, set(texts["item"])))),
        )
        where = (
            f"pattern = {pattern!r}: all levels, items, trajectories and clones of {files} files"
        )
        expect(
            places <= max(_MOST_SPARSE, 16 * files),
            where,
            places,
            f"at most {_MOST_SPARSE}, or 16 a file; move some away",
        )
        self.table = pd.DataFrame(
            {"noise": noise, "item": texts["item"], "trajectory": trajectory, "clone": clone},
            dtype=object,
        )
        self._texts = {
            field: dict(zip(self.table[field][::-1], texts[field][::-1], strict=True))
            for field in _FIELDS
        }

    def _found(self, forms: Mapping[str, str]) -> pd.DataFrame:
        """Texts of the fields, with these regular expressions, in the names that match the
        pattern, indexed by name.
        """
        expression, seen = "", set[str]()
        for literal, field in self._parts:
            group = (
                ""
                if field is None
                else f"(?P={field})"
                if field in seen
                else f"(?P<{field}>{forms[field]})"
            )
            expression += re.escape(literal) + group
            seen |= {field} if field else set()
        flags = re.DOTALL | (re.IGNORECASE if forms is _ANY else re.NOFLAG)
        return self._names.str.extract(rf"\A{expression}\Z", flags).set_axis(self._names).dropna()

    def left_out(self) -> list[str]:
        """A sentence on the files that match the pattern except for a field or the case of
        letters, with a number as level.
        """
        near = self._found(_ANY).drop(self.table.index, errors="ignore")
        names = [
            as_unicode(name)
            for name in near.index[near["noise"].str.contains(r"(?i:\d|\A[-+]?(?:nan|inf))")]
        ]
        said = (
            f"{_files(names, 'file')} of {as_unicode(self.root)} left out, which the pattern does"
            f" not match: {some_of(names)}"
        )
        return [said] if names else []

    def name(self, **place: Any) -> str:
        """The name that a file of this place would have: its noise, item, and numbers of
        trajectory and clone.
        """
        texts = {field: self._texts[field].get(value, str(value)) for field, value in place.items()}
        return "".join(literal + (texts[field] if field else "") for literal, field in self._parts)

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.root, name))


def _numbered(texts: pd.Series) -> tuple[list[int | str], pd.Series]:
    """The values of a field in increasing or alphabetical order, and the number of each text in
    them.
    """
    values = texts.map(lambda text: int(text) if text.isdecimal() else text)
    known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return known, values.map({value: number for number, value in enumerate(known)})


def rounded(noise: float) -> float:
    """A noise level with nine digits: levels from texts and from arithmetic are then equal."""
    return float(f"{noise:.{_DIGITS}g}")


class Recordings:
    """Recorded files, assigned to the originals of a folder by their names."""

    def __init__(self, files: _Files, source: ImageFolderSource) -> None:
        self.files, self.source = files, source

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The file and the text of {item} of every U-turn, indexed by noise level, name of the
        original, trajectory and clone.
        """
        originals, paths, names = (
            self.source.names(),
            defaultdict[str, list[str]](list),
            defaultdict[str, list[str]](list),
        )
        for original in originals:
            path = os.path.splitext(original)[0]
            paths[path].append(original)
            names[os.path.basename(path)].append(original)
        table = self.files.table.rename_axis("file").reset_index()
        table["file"] = pd.Series([self.files.path(name) for name in table["file"]], dtype=object)
        owners = table["item"].map(lambda item: paths.get(item) or names.get(item, []))
        for file, of in zip(table["file"], owners, strict=True):
            where = f"originals of {file} in {self.source.path!r}"
            expect(
                len(of) < 2,
                where,
                of,
                "one; write {item} with the sub-folder, or rename the originals",
            )
        table["original"] = owners.str[0]
        if orphans := table["file"][table["original"].isna()].tolist():
            known = {*table["original"]}
            without = [name for name in originals if name not in known]
            also = (
                f"; {_files(without, 'original')} without any: {some_of(without)}"
                if without
                else ""
            )
            where = (
                f"{_files(orphans, 'recorded file')} without an original in {self.source.path!r}:"
                f" {some_of(orphans)}{also}"
            )
            raise ValueError(
                f"{where}; {{item}} must be the name of the original's file without its suffix"
            )
        if (twice := table.duplicated(_PLACE, keep=False)).any():
            of = table[twice].sort_values(_PLACE)["file"].iloc[:2]
            raise ValueError(
                f"pattern = {self.files.pattern!r}: {' and '.join(of)} are the same U-turn; move"
                " one away"
            )
        return table.set_index(_PLACE)[["file", "item"]]

    def _wanted(
        self, levels: Sequence[float], names: Sequence[str], trajectories: range, clones: int
    ) -> dict[Any, str | None]:
        """The files of U-turns by place, None where there is none, in C order of level,
        original, trajectory and clone.
        """
        places = [[rounded(level) for level in levels], names, trajectories, range(clones)]
        files = self._table["file"].reindex(pd.MultiIndex.from_product(places, names=_PLACE))
        return {place: None if pd.isna(file) else file for place, file in files.items()}

    def images(self, streams: Streams, clones: int) -> np.ndarray:
        """Reconstructions, float32 (items, draws, channels, height, width) in [-1, 1]; NaN for
        missing files.
        """
        shape, source = self.source.image_shape(), self.source
        files = self._wanted(
            [streams.noise], source.names(streams.items), streams.trajectories, clones
        )
        images = np.full((len(files), *shape), np.nan, np.float32)
        decoded = in_threads(
            lambda file: file and pixels_of(file, source.channels, source.size), files.values()
        )
        for image, file, pixels in zip(images, files.values(), decoded, strict=True):
            if isinstance(pixels, np.ndarray):
                same = pixels.shape[:2] == shape[1:]
                expect(
                    same,
                    f"{file} has changed during the run: size",
                    pixels.shape,
                    f"{shape[1:]}; start again in a new store",
                )
                image[...] = scaled(pixels.transpose(2, 0, 1), self.files.root)
        return images.reshape(len(streams.items), -1, *shape)

    def missing(self, experiment: Any) -> dict[str, str]:
        """Missing and unreadable files of an experiment, {name: reason}, after a check of all
        files.
        """
        for option in ("trajectories", "clones"):
            wanted, numbers = getattr(experiment, option), getattr(self.files, option)
            known = some_of([str(number) for number in numbers])
            expect(
                wanted <= len(numbers),
                option,
                wanted,
                f"at most the {len(numbers)} of the recorded files ({known})",
            )
        absent = [level for level in experiment.noise if rounded(level) not in self.files.levels]
        levels = ", ".join(f"{level:g}" for level in self.files.levels)
        expect(not absent, "noise: levels without a recorded file", absent, f"some of {levels}")
        names = self.source.names(np.arange(experiment.items))
        item_of = dict(
            zip(self._table.index.get_level_values("original"), self._table["item"], strict=True)
        )
        if without := [name for name in names if name not in item_of]:
            where = f"{_files(without, 'original')} without any recorded file: {some_of(without)}"
            form = (
                f"(files are named as {self._table['file'].iloc[0]}); write {{item}} as the name of"
                " the original's file"
            )
            raise ValueError(f"{where} {form} without its suffix, or move the originals away")
        files = self._wanted(
            experiment.noise, names, range(experiment.trajectories), experiment.clones
        )
        channels, size = self.source.channels, self.source.size
        found = in_threads(
            lambda file: "no such file" if file is None else seen(file, channels, size),
            files.values(),
        )
        missing = {}
        for (noise, name, trajectory, clone), file, of in zip(
            files, files.values(), found, strict=True
        ):
            place = {
                "noise": noise,
                "item": item_of[name],
                "trajectory": trajectory,
                "clone": clone,
            }
            path = self.files.path(self.files.name(**place)) if file is None else file
            if isinstance(of, str):
                missing[as_unicode(path)] = (
                    "no regular file" if file is None and os.path.lexists(path) else of
                )
            else:
                self._check_pixels(path, of, name)
        if len(missing) == len(files):
            reasons = some_of([f"{name} ({reason})" for name, reason in missing.items()])
            raise ValueError(
                f"none of the {len(files)} recorded files can be read: {reasons}; expected PNG,"
                " JPEG or the like"
            )
        return missing

    def _check_pixels(self, file: str, of: tuple[int, int, str], name: str) -> None:
        """ValueError for a file of another size than its original, and for a grey file of an
        original with colours.
        """
        original = os.path.join(self.source.path, name)
        of_original = readable(original, seen(original, self.source.channels, self.source.size))
        size, expected, mode = of[:2], of_original[:2], of[2]
        found = f"{file}: height, width"
        expect(
            size == expected,
            found,
            size,
            f"{expected} of its original {name}; give `size` to crop and resize both",
        )
        is_grey = (
            self.source.channels == 3
            and mode not in (*_COLOURS, "P")
            and of_original[2] in _COLOURS
        )
        expect(
            not is_grey,
            f"{file}: mode",
            mode,
            f"colours, as its original {name} has; or channels = 1 for both in grey",
        )

    def copies(self, experiment: Any) -> list[str]:
        """Sentences if at the largest noise all reconstructions equal the originals, or all
        trajectories or clones each other.
        """
        noise, items, clones = (
            max(experiment.noise),
            np.arange(min(experiment.items, _COMPARED)),
            experiment.clones,
        )
        images = self.images(Streams(0, items, noise, range(experiment.trajectories)), clones)
        images = images.reshape(len(items), experiment.trajectories, clones, -1)
        originals = self.source.images_at(items)[0].reshape(len(items), 1, 1, -1)

        def are_equal(others: np.ndarray) -> bool:
            both = ~np.isnan(images + others).any(axis=3)
            return bool(both.any()) and bool((images == others).all(axis=3)[both].all())

        if noise > 0 and are_equal(originals):
            return [
                f"at {noise:g}, the largest noise, all reconstructions equal their originals; are"
                " they copies of them?"
            ]
        return [
            f"at {noise:g}, the largest noise, all {option} of an original are equal; were they"
            " made with one seed, or copied?"
            for option, first in (("trajectories", images[:, :1]), ("clones", images[:, :, :1]))
            if getattr(experiment, option) > 1 and are_equal(first)
        ]

    def swapped(self, experiment: Any) -> list[str]:
        """Sentences on pairs of originals whose files seem to be swapped.

        With c_ij the mean distance of the reconstructions of i to original j, a pair is named if j
        has the smallest (c_ij + c_ji) / (c_ii + c_jj) of i, and this is below .7. Levels are judged
        in increasing order as long as the median of the smallest ratios of all other originals,
        among each other, is 1.2 or more, because strong noise leaves no trace of the original.
        Images are averaged to at most 32 pixels a side; the first 1,000 originals are compared.
        """
        items, noise = np.arange(min(experiment.items, _MOST_PAIRED)), sorted(experiment.noise)
        blocks = np.array_split(items, -(-len(items) // 32))
        originals = np.concatenate(
            [coarse(self.source.images_at(block)[0][:, None])[:, 0] for block in blocks]
        )
        names, known, sentences = (
            [as_unicode(name) for name in self.source.names(items)],
            set[tuple[int, int]](),
            [],
        )
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
            pairs = {
                (min(i, partner[i]), max(i, partner[i])): ratio[i]
                for i in np.flatnonzero(ratio < _SWAPPED)
            }
            named = [
                f"{names[i]} and {names[j]}"
                for i, j in sorted(pairs.keys() - known, key=lambda pair: pairs[pair])
            ]
            known |= pairs.keys()
            if named:
                sentences.append(
                    f"at {level:g}{', the smallest noise' if level == noise[0] else ''},"
                    " reconstructions lie closer to another original than to their own; are the"
                    " files of these originals swapped:"
                    f" {', '.join(named[:5])}{', ..' if len(named) > 5 else ''}? (distances to the"
                    f" other over distances to their own: {min(pairs.values()):.2f}; below"
                    f" {_SWAPPED:g} is suspicious)"
                )
        return sentences


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
    sums, counts = np.zeros((len(x), len(x))), np.zeros((len(x), 1))
    for y in np.moveaxis(np.asarray(reconstructions, float), 1, 0):
        distances = np.sqrt(
            np.maximum(squares - 2 * y @ x.T + (y**2).sum(axis=1, keepdims=True), 0)
        )
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
    factor = -(-max(images.shape[-2:]) // _SIDE)
    height, width = (max(1, side // factor) for side in images.shape[-2:])
    cut = images[..., : height * factor, : width * factor]
    means = cut.reshape(*images.shape[:3], height, -1, width, cut.shape[-1] // width).mean(
        axis=(4, 6)
    )
    return means.reshape(*images.shape[:2], -1)


def _files(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
