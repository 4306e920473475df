"""Data in files: originals, and outputs that another program has recorded.

A recorded folder has a file KNOB/ORIGINAL/SEED for each output, and `originals/ORIGINAL` beside
them. Endings say how a file is read: images (.png, .jpg, ..), arrays (.npy), sounds (.wav), texts
(.txt), structures (.pdb, .cif: the alpha carbons, read by biotite).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uturn.core.checks import expect
from uturn.core.files import read_array, read_text
from uturn.core.imports import import_function, is_import_path
from uturn.tools.check_knob.evidence import Ends, Evidence, index_of
from uturn.tools.check_knob.outputs import Outputs, checked_knobs

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ORIGINALS = "originals"
_EXPECTED = "a folder of files, a .npy file, or module:function, a function without arguments"


@dataclass(frozen=True)
class Originals:
    """Originals with their names."""

    names: tuple[str, ...]
    data: tuple[np.ndarray, ...]

    def first(self, count: int) -> Originals:
        """The first originals; ValueError if there are fewer."""
        found = len(self.names)
        expect(count <= found, "items", count, f"at most {found}, the number of originals")
        return Originals(self.names[:count], self.data[:count])


def _picture(path: Path) -> np.ndarray:
    """An image as float32 (channels, height, width) in [-1, 1]."""
    from PIL import Image

    from uturn.sources.images import pixels_of, readable

    with Image.open(path) as image:
        channels = 1 if image.mode in ("1", "L", "I;16") else 3
    pixels = readable(str(path), pixels_of(str(path), channels, None))
    return np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 0)


def _sound(path: Path) -> np.ndarray:
    """A sound as float32 (samples,), or (channels, samples), in [-1, 1]."""
    from scipy.io import wavfile

    _, samples = wavfile.read(path)
    if samples.dtype.kind in "iu":
        samples = samples / float(np.iinfo(samples.dtype).max)
    return np.asarray(samples.T, np.float32)


def _words(path: Path) -> np.ndarray:
    return np.array(read_text(path).split())


def _structure(path: Path) -> np.ndarray:
    """Coordinates of the alpha carbons, float32 (residues, 3)."""
    from biotite.structure.io import load_structure

    atoms = load_structure(path)
    coordinates = np.asarray(atoms.coord[..., atoms.atom_name == "CA", :], np.float32)
    return np.asarray(coordinates[0] if coordinates.ndim == 3 else coordinates)


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys(_PICTURES, _picture),
    ".npy": read_array,
    ".wav": _sound,
    ".txt": _words,
    ".pdb": _structure,
    ".cif": _structure,
}
"""What reads a file, by its ending."""


def read_datum(path: Path) -> np.ndarray:
    """The datum in a file."""
    try:
        return _READERS[path.suffix.lower()](path)
    except ImportError:
        raise ValueError(
            f"cannot read {path}: it needs biotite; pip install 'uturn[structures]'"
        ) from None


def _files(folder: Path) -> list[Path]:
    """Files of data in a folder, in alphabetical order."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with files of data")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _READERS)


def originals_from(place: str) -> Originals:
    """Originals in a folder or an array, or those that a function gives."""
    if is_import_path(place):
        made = import_function(place, f"data = {place!r}", _EXPECTED)()
        return _numbered(list(made))
    path = Path(place)
    if path.suffix == ".npy":
        return _numbered(list(read_array(path)))
    files = _files(path)
    expect(files, f"data = {place!r}: files", 0, f"some that end in {', '.join(_READERS)}")
    return Originals(tuple(file.stem for file in files), tuple(map(read_datum, files)))


def _numbered(data: list[np.ndarray]) -> Originals:
    from uturn.tools.check_knob.calls import names_of

    return Originals(names_of(data), tuple(np.asarray(datum) for datum in data))


def recorded_outputs(folder: str, data: str | None, items: int | None, ends: Ends) -> Outputs:
    """The outputs in a recorded folder. ValueError names the first file that is missing."""
    root = Path(folder)
    levels = {}
    for path in root.iterdir() if root.is_dir() else ():
        knob = _number(path.name)
        if path.is_dir() and knob is not None:
            levels[knob] = path
    knobs = checked_knobs(sorted(levels))
    originals = originals_from(data or str(root / _ORIGINALS))
    originals = originals.first(items or len(originals.names))
    made = []
    seeds = 0
    for name in originals.names:
        files = [_files(levels[knob] / name) for knob in knobs.tolist()]
        counts = sorted({len(found) for found in files})
        seeds = seeds or counts[-1]
        words = f"{seeds} at every value, one for each seed; leave out the others"
        expect(counts == [seeds], f"{root}: original {name}: numbers of files", counts, words)
        outputs = [[read_datum(path) for path in found] for found in files]
        shapes = {output.shape for found in outputs for output in found}
        way_out = f"{originals.data[0].shape} for all"
        expect(len(shapes) == 1, f"{root}: original {name}: shapes", sorted(shapes), way_out)
        made.append(np.array(outputs))
    return Outputs.of(
        knobs, originals.data, made, names=originals.names, is_descending=ends.is_descending
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def evidence_of_table(path: str, reading: str | None, ends: Ends) -> Evidence:
    """Distances in a table with a row for each output: columns noise, item, perhaps trajectory
    (the seed), and a distance. Its unit is the largest mean distance.
    """
    from uturn.studies.long_form import LongForm, read_long_form

    readings = LongForm.of(read_long_form(path), None).readings
    name = next(iter(readings)) if reading is None and len(readings) == 1 else reading
    expect(name in readings, "reading", name, f"one of {', '.join(readings)}")
    assert name is not None
    distances = readings[name]
    knobs = checked_knobs(np.unique(read_long_form(path)["noise"]))
    values = distances.values.astype(float).reshape(len(knobs), distances.shape[1], -1)
    is_whole = bool(np.isfinite(values).all())
    expect(is_whole, f"{path}: {name}", "missing rows", "a number for each value, item and seed")
    order = np.argsort(-knobs if ends.is_descending else knobs)
    apart = float(values.mean((1, 2)).max())
    expect(apart > 0, f"{path}: largest mean {name}", apart, "a distance that changes")
    change = values[order] / apart
    start = index_of(knobs[order], ends.start)
    at_start = None if start is None else change[start]
    each = np.ones(values.shape[1])
    return Evidence(knobs[order], apart, change, start, None, each, from_floor=at_start)
