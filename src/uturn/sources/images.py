"""Sources of images: the images of the package, a folder of files, an array."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from uturn.core.caches import cached_while_unchanged, digest_of_file
from uturn.core.checks import checked_integer, expect
from uturn.core.data import NoisingProcess, StoredItems
from uturn.core.files import checked_path, read_array, read_text
from uturn.core.inputs import Content, File
from uturn.core.messages import one_line, shown
from uturn.core.own_parts import name_of
from uturn.core.processes import cores
from uturn.core.protocols import Noisy, Originals, Source, Spec
from uturn.core.random import Streams
from uturn.sources.fashion_mnist import CLASS_NAMES, load_test_set, test_set_file

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

# Not all formats of Pillow, because some start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "JPEG2000")


_LARGEST_FILE = 2**28
"""Bytes of a file of images that a store names, which is read as a whole."""


@dataclass(frozen=True, repr=False)
class Images(Originals):
    """Original images, float32 (batch, channels, height, width) in [-1, 1]; labels are -1 where
    unknown.
    """

    items: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @property
    def data(self) -> np.ndarray:
        return self.images

    def continued(self, reconstructions: np.ndarray, taken: np.ndarray) -> Images:
        return replace(
            self, images=np.where(taken[:, None, None, None], reconstructions[:, 0], self.images)
        )

    def observed_by(
        self, corruption: NoisingProcess, noise: float, streams: Streams
    ) -> NoisyImages:
        """Noisy images, one for each trajectory of each original, with the labels of the
        originals.
        """
        noisy = super().observed_by(corruption, noise, streams)
        return NoisyImages(noisy.values, noisy.noise, labels=np.repeat(self.labels, streams.count))


@dataclass(frozen=True, eq=False, repr=False)
class NoisyImages(Noisy):
    """Noisy images or latents, float32 (batch, channels, height, width), and the labels of the
    originals, -1 where unknown.
    """

    labels: Any = None


class ImageSource(Source[Images]):
    """Images in a fixed order: item i is image i. More items than images are an error.

    A source of one's own defines `count` and `images_at`.
    """

    kind: ClassVar[str] = "images"
    block_class: ClassVar[type[Originals]] = Images

    @abstractmethod
    def count(self) -> int:
        """Number of images."""

    @abstractmethod
    def images_at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images at the indices, float32 (count, channels, height, width) in [-1, 1], and labels
        (count,), -1 where unknown.
        """

    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, by default those of the first image."""
        images, _ = self._checked_images(np.arange(1))
        channels, height, width = images.shape[1:]
        return channels, height, width

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Images]:
        label = name_of(self, "source")
        count = checked_integer(f"{label}.count", self.count(), 1)
        where = f"{label}: items"
        expect(num_items <= count, where, num_items, f"at most {count}, its number of images")
        yield Images(items, *self._checked_images(items))

    def _checked_images(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `images_at` gives; ValueError unless it has the form that is declared there."""
        given: object = self.images_at(indices)
        where = f"{name_of(self, 'source')}.images_at"
        if not isinstance(given, tuple) or len(given) != 2:
            raise ValueError(f"{where} = {shown(given)}: expected (images, labels)")
        images, labels = given
        count = len(indices)
        form = (getattr(images, "dtype", type(images)), np.shape(images))
        is_array = isinstance(images, np.ndarray) and images.dtype.kind == "f"
        fits = is_array and images.ndim == 4 and len(images) == count
        expected = f"float32 ({count}, channels, height, width) in [-1, 1]"
        expect(fits, f"{where}: dtype, shape of images", form, expected)
        form = (getattr(labels, "dtype", type(labels)), np.shape(labels))
        is_array = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"
        fits = is_array and labels.shape == (count,)
        expected = f"integers ({count},), -1 where unknown"
        expect(fits, f"{where}: dtype, shape of labels", form, expected)
        return images, labels

    def stored(self, originals: StoredItems) -> np.ndarray | None:
        sizes = map(os.path.getsize, self.files())
        # A file with holes may promise terabytes, and a reader of one without size may wait for
        # ever.
        if not all(0 < size <= _LARGEST_FILE for size in sizes):
            return None
        if self.fingerprint() != originals.fingerprint:
            return None
        blocks = self.blocks(originals.items, originals.seed, originals.num_items)
        return np.concatenate([block.data for block in blocks])


class _ImagesInMemory(Spec, ImageSource):
    """Images held in memory, and read again when their files change."""

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, float32 (count, channels, height, width) in [-1, 1], and labels (count,),
        -1 where unknown.
        """
        raise NotImplementedError

    @cached_while_unchanged(maxsize=2)
    def all_images(self) -> tuple[np.ndarray, np.ndarray]:
        return self.load()

    def count(self) -> int:
        return len(self.all_images()[0])

    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.all_images()[0].shape[1:]
        return channels, height, width

    def images_at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.all_images()
        indices = _checked_indices(indices, len(images))
        return images[indices], labels[indices]

    def num_labels(self) -> int | None:
        largest = int(self.all_images()[1].max(initial=-1))
        return largest + 1 if largest >= 0 else None

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        images, labels = self.all_images()
        expect(
            num_items <= len(images),
            "items",
            num_items,
            f"at most {len(images)}, the images of the source",
        )
        return {"label": labels[:num_items]}


class FashionMNISTSource(_ImagesInMemory):
    """The 1,000 Fashion-MNIST test images of the package; image i has the label i % 10."""

    type: Literal["fashion_mnist"] = "fashion_mnist"
    shows_negative: ClassVar[bool] = True  # garments on white

    def reads(self) -> list[Any]:
        return [Content(test_set_file())]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        return load_test_set()

    def class_names(self) -> list[str] | None:
        return list(CLASS_NAMES)


class ArraySource(_ImagesInMemory):
    """Images in a .npy file, uint8 in 0..255 or floats in [-1, 1].

    Shape (count, height, width), (count, channels, height, width) or (count, height, width,
    channels) with 1 or 3 channels. `labels`: another .npy file, integers (count,), -1 where
    unknown; the number of classes is the largest label + 1.
    """

    type: Literal["array"] = "array"
    path: File
    labels: File | None = None

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        array = read_array(checked_path("path", self.path))
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        are_images = array.ndim == 4 and array.shape[1] in (1, 3)
        expected = "(count, height, width), with 1 or 3 channels before or after"
        expect(are_images, f"shape of {self.path}", array.shape, expected)
        return scaled(array, self.path), self._labels(len(array))

    def _labels(self, count: int) -> np.ndarray:
        """The labels of the images, int64 (count,), or a ValueError."""
        if self.labels is None:
            return np.full(count, -1)
        labels = read_array(checked_path("labels", self.labels))
        form = (labels.shape, labels.dtype)
        are_integers = labels.shape == (count,) and labels.dtype.kind in "iu"
        expect(are_integers, f"shape, dtype of {self.labels}", form, f"integers ({count},)")
        least = labels.min(initial=0)
        expect(least >= -1, f"{self.labels}: label", least, "0, 1, .., or -1 where unknown")
        return labels.astype(np.int64)


class ImageFolderSource(Spec, ImageSource):
    """Image files of a folder, which are read when they are needed; sub-folders are classes.

    Items are ordered so that the first n are balanced: the first file of every class, the second of
    every class, and so on, with classes and the files of a class sorted by name. Files and folders
    whose names begin with a dot are ignored. Files beside sub-folders form a further group, which
    comes first and has label -1. A file that cannot be decoded completely, holds several images, or
    is black because its 16 bits hold values below 256 is an error that names it. Pixels have 8 bits
    per channel: 16-bit grey is rounded, transparency is blended with white, the EXIF orientation is
    applied, and colour profiles are ignored.

    `path`: the folder; links are followed. `channels`: 1 (grey) or 3 (RGB). `size`: resize the
    short side to `size` (bicubic, antialiased; small images are enlarged) and crop the centre to
    size x size; by default all images must have the same size. `classes`: text file with one class
    a line, in the classifier's order. The label of a sub-folder is the line number of its name,
    from 0, so that a folder with a few of the classes keeps their labels; by default it is the rank
    of the sub-folder.
    """

    type: Literal["images"] = "images"
    names_items: ClassVar[bool] = True
    path: str
    channels: Literal[1, 3] = 3
    size: int | None = Field(default=None, ge=1, le=4096)
    classes: str | None = None

    # A source lists its folder once, so that its items do not change. Another source of the same
    # folder may find other images, so two sources are never equal.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @cached_property
    def _groups(self) -> dict[str, list[tuple[str, int]]]:
        """Names and sizes of the files in each folder with files."""
        groups = defaultdict(list)
        is_folder = os.path.isdir(checked_path("path", self.path))
        expect(is_folder, "path", self.path, "a folder of images; this is not a folder")
        for name, size in sorted(listed(self.path)):
            groups[name.rpartition("/")[0]].append((name, size))
        expected = "a folder of image files, or one sub-folder a class; it holds no files"
        expect(groups, "path", self.path, expected)
        return groups

    @cached_property
    def _classes(self) -> list[str] | None:
        folders = sorted(group for group in self._groups if group)
        if self.classes is not None:
            return _class_list(self.classes, folders, self.path)
        return folders or None

    @cached_property
    def _files(self) -> list[_File]:
        """The files in the order of the items."""
        labels = {"": -1}
        for label, name in enumerate(self._classes or []):
            labels[name] = label
        ranked = []
        for group, files in self._groups.items():
            for rank, (name, size) in enumerate(files):
                ranked.append((rank, group, _File(name, size, labels[group])))
        return [file for _, _, file in sorted(ranked)]

    def count(self) -> int:
        return len(self._files)

    def image_shape(self) -> tuple[int, int, int]:
        if self.size is not None:
            return self.channels, self.size, self.size
        first = self._path(self._files[0])
        height, width, _ = readable(first, seen(first, self.channels, None))
        return self.channels, height, width

    def images_at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        files = [self._files[index] for index in _checked_indices(indices, self.count())]
        images = np.empty((len(files), *self.image_shape()), np.float32)
        for image, pixels in zip(images, in_threads(self._decoded, files), strict=True):
            image[...] = scaled(pixels.transpose(2, 0, 1), self.path)
        return images, np.array([file.label for file in files], np.int64)

    def num_labels(self) -> int | None:
        return None if self._classes is None else len(self._classes)

    def class_names(self) -> list[str] | None:
        if self._classes is None:
            return None
        return [as_unicode(name) for name in self._classes]

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and labels of all files, equal for a copy.

        The contents are in the coordinate `file_digest`.
        """
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.label} {file.size} ".encode() + os.fsencode(file.name) + b"\0")
        return digest.hexdigest()

    def coordinates(self, seed: int, num_items: int) -> dict[str, np.ndarray]:
        expected = f"at most {self.count()}, the files of {self.path!r}"
        expect(num_items <= self.count(), "items", num_items, expected)
        files = self._files[:num_items]
        return {
            "label": np.array([file.label for file in files], np.int64),
            "file": np.array([as_unicode(file.name) for file in files], object),
            "file_digest": np.array(in_threads(self._digest, files), object),
        }

    def stored(self, originals: StoredItems) -> np.ndarray | None:
        # A store may name any folder, so that only the files of these items are read.
        names = originals.coordinates["file"].tolist()
        digests = originals.coordinates["file_digest"].tolist()
        return self.kept(names, digests, originals.shape)

    def kept(
        self, names: Sequence[str], digests: Sequence[str], shape: Sequence[int]
    ) -> np.ndarray | None:
        """Images of some files of the folder, from the names and digests of a store.

        As `images_at`. None unless all of them are there with these digests and this shape. Nothing
        outside of the folder is read.
        """
        images = []
        for name, digest in zip(names, digests, strict=True):
            pixels = self._kept_pixels(name, digest)
            if pixels is None or pixels.shape != tuple(shape):
                # Before the next file is decoded, since a few kilobytes may become gigabytes.
                return None
            images.append(scaled(pixels, self.path))
        return np.stack(images)

    def _kept_pixels(self, name: str, digest: str) -> np.ndarray | None:
        """Pixels of a file inside the folder, (channels, height, width), if it has this digest."""
        root = os.path.realpath(self.path)
        path = os.path.join(root, name)
        is_inside = os.path.realpath(path).startswith(os.path.join(root, ""))
        if not is_inside or not os.path.isfile(path) or unread(path):
            return None
        if digest_of_file(path) != digest:
            return None
        pixels = pixels_of(path, self.channels, self.size)
        return None if isinstance(pixels, str) else pixels.transpose(2, 0, 1)

    def names(self, indices: np.ndarray | None = None) -> list[str]:
        """Names of the files of items, relative to the folder; by default of all."""
        if indices is None:
            return [file.name for file in self._files]
        return [self._files[index].name for index in _checked_indices(indices, self.count())]

    def _path(self, file: _File) -> str:
        return os.path.join(self.path, file.name)

    def _digest(self, file: _File) -> str:
        """Digest of a file; ValueError if it is damaged, or has another size than the first."""
        path = self._path(file)
        self._check_shape(path, readable(path, seen(path, self.channels, self.size)))
        return digest_of_file(path)

    def _decoded(self, file: _File) -> np.ndarray:
        """Pixels, uint8 (height, width, channels)."""
        path = self._path(file)
        size = os.path.getsize(path)
        expected = f"{file.size}, as when the folder was listed; start again"
        expect(size == file.size, f"bytes of {path}", size, expected)
        pixels: np.ndarray = readable(path, pixels_of(path, self.channels, self.size))
        self._check_shape(path, pixels.shape)
        return pixels

    def _check_shape(self, path: str, shape: Sequence[Any]) -> None:
        """ValueError unless an image has the size of the first one; `shape` begins with it."""
        _, height, width = self.image_shape()
        first = f"{width} x {height} pixels"
        size = f"{shape[1]} x {shape[0]} pixels"
        way_out = "give `size` to crop and resize all images"
        expected = f"{first}, as {self._path(self._files[0])}; {way_out}"
        expect(size == first, f"size of {path}", size, expected)


class _File(NamedTuple):
    name: str  # relative to the folder
    size: int  # bytes
    label: int


def listed(path: str, inside: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Names, relative to the folder, and sizes of all files that are not hidden.

    Links to folders above are left out.
    """
    folder = os.path.join(path, inside)
    real = os.path.realpath(folder)
    above = above or tuple(map(str, Path(real).parents))
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            if entry.is_dir():
                yield from listed(path, f"{inside}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield inside + entry.name, entry.stat().st_size
    except OSError as error:
        reason = error.strerror or error
        way_out = "make it readable, or move it away"
        raise ValueError(f"{folder} cannot be listed ({reason}); {way_out}") from None


def _class_list(classes: str, folders: list[str], path: str) -> list[str]:
    """Names of the classes in a file with one class a line.

    The file must hold all sub-folders with files.
    """
    try:
        text = read_text(checked_path("classes", classes)).rstrip()
    except (OSError, ValueError) as error:
        reason = one_line(error)
        unreadable = f"classes = {classes!r} cannot be read ({reason})"
        raise ValueError(f"{unreadable}; expected a class on each line") from None
    names = [name.strip() for name in text.split("\n")]
    twice = [name for line, name in enumerate(names) if not name or name in names[:line]]
    missing = sorted(set(folders) - set(names))
    wrong = twice + missing
    expected = f"each sub-folder of {path!r} once on a line, in the classifier's order"
    expect(folders and not wrong, f"classes = {classes!r}: lines", wrong, expected)
    return names


def in_threads(function: Callable[[Any], Any], files: Iterable[Any]) -> list[Any]:
    """Results of function(file) in order, from threads: image decoders release the lock."""
    from PIL import Image

    Image.init()  # before the threads start, because it is not thread-safe
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(function, files))


@cached_while_unchanged(files=lambda path, channels, size: [path], maxsize=2**18)
def seen(path: str, channels: int, size: int | None) -> tuple[int, int, str] | str:
    """Height and width after resizing, and mode of an image file, or why it is unreadable.

    A file is read again when it has changed.
    """
    from PIL import Image

    pixels = pixels_of(path, channels, size)
    if isinstance(pixels, str):
        return pixels
    with Image.open(path, formats=FORMATS) as image:
        return pixels.shape[0], pixels.shape[1], image.mode


def readable(path: str, content: T | str) -> T:
    """What was read of an image file; ValueError if it is the reason why the file is unreadable."""
    if isinstance(content, str):
        raise ValueError(f"{path} cannot be read ({content}); mend it, or move it away")
    return content


def unread(path: str) -> str:
    """Why a file is not read: it is empty or too large; else ""."""
    size = os.path.getsize(path)
    if size == 0:
        return "empty"
    if size > 2**29:
        return "more than 512 MB"
    return ""


def pixels_of(path: str, channels: int, size: int | None) -> np.ndarray | str:
    """Pixels of an image file, uint8 (height, width, channels), or why it is unreadable."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if reason := unread(path):
        return reason
    data = io.BytesIO(Path(path).read_bytes())
    try:
        with Image.open(data, formats=FORMATS) as image:
            kind = image.format
            # Cameras add a small copy to a JPEG.
            is_one = kind == "MPO" or not getattr(image, "is_animated", False)
            way_out = "write each to a file of its own"
            expect(is_one, f"images in the {kind}", "several", f"one; {way_out}")
            image.load()
            with suppress(Exception):  # broken EXIF data are ignored, since the pixels are complete
                ImageOps.exif_transpose(image, in_place=True)
            plain = _eight_bits(image, kind).convert("L" if channels == 1 else "RGB")
            if size is not None:
                plain = ImageOps.fit(plain, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(plain).reshape(plain.height, plain.width, channels)
    except UnidentifiedImageError:
        return "not an image"
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of many types
        return one_line(error)


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """The image with 8 bits per channel and without transparency."""
    from PIL import Image, TiffImagePlugin

    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        # Pillow neither scales 12 bits nor turns white to black.
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            found = image.tag_v2.get(258), image.tag_v2.get(262)
            expect(
                found == ((16,), 1),
                "bits and photometric interpretation",
                found,
                "16 bits and 1, as black is 0",
            )
        values = np.asarray(image)
        most = int(values.max())
        expect(
            not 0 < most < 256,
            "largest of 16 bits",
            most,
            "more than 255 of 65535; write 8 bits, or values times 257",
        )
        pixels = np.empty(values.shape, np.uint8)
        for row, of in zip(pixels, values, strict=True):  # by rows, to limit memory
            row[...] = (of.astype(np.int64) * 255 + 32767) // 65535
        return Image.fromarray(pixels)
    expect(image.mode not in ("I", "F"), f"mode of {kind}", image.mode, "one whose range is known")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def as_unicode(name: str) -> str:
    """A file name in valid Unicode, which a store requires."""
    return os.fsencode(name).decode(errors="replace")


def some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", .." if len(names) > 3 else "")


def _checked_indices(indices: ArrayLike, count: int) -> np.ndarray:
    """Indices of images, int64, or a ValueError."""
    numbers = np.asarray(indices)
    are_known = numbers.ndim == 1
    if numbers.size:
        are_known &= numbers.dtype.kind in "iu" and 0 <= numbers.min() <= numbers.max() < count
    expect(are_known, "indices", numbers, f"a list of integers in 0 .. {count - 1}")
    return numbers.astype(np.int64)


def doubtful_range(images: np.ndarray) -> str:
    """A text on images that are probably not in [-1, 1], but in [0, 1] or rounded to 0 and 1; ""
    for other images.
    """
    low, high = (float(images.min()), float(images.max())) if images.size else (-1.0, 1.0)
    text = f"values in [{low:.3g}, {high:.3g}]: nothing lies "
    if low >= 0:
        return (
            f"{text}below 0, but images are taken to be in [-1, 1]; if yours are in [0, 1], store 2"
            " * x - 1, or uint8"
        )
    if -1 < high <= 1 / 127.5 - 1 + 1e-6:
        return (
            f"{text}above 1 of 255; if they were in [0, 1] before they became uint8, store 255 * x"
        )
    return ""


def scaled(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 127.5 - 1
    if array.dtype.kind == "f" and np.isfinite(array).all() and np.abs(array).max(initial=0) <= 1:
        if doubt := doubtful_range(array):
            warnings.warn(f"{where} holds {doubt}", stacklevel=2)
        return array.astype(np.float32)
    known = array.size and array.dtype.kind in "biuf"
    of = f"values in [{float(array.min()):.4g}, {float(array.max()):.4g}]" if known else "no range"
    raise ValueError(
        f"{where} holds {array.dtype} images, {of}; expected uint8 in 0..255, or finite floats in"
        " [-1, 1]"
    )
