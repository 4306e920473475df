"""Where the originals come from: strings of a grammar, images, or vectors of a solvable law."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from uturn.random import keys
from uturn.rhm import Draw, RandomHierarchyModel, zipf

if TYPE_CHECKING:
    from uturn.laws import GaussianMixture

# Purposes that keep random streams apart: keys(seed, PURPOSE, item, ..). Others are 4 the bootstrap, 5 pairs of images (fig2),
# 6 training of classifiers (fig8), 7 population dynamics, 8 training of denoisers, 9 their reverse processes, 11 pictures.
GRAMMAR, ORIGINAL, CORRUPTION, RECONSTRUCTION = range(4)
FRESH = 10
_MOST_BYTES = 8 * 2**30  # of what a source keeps or makes in one piece
_MOST_COMPONENTS = 2**20


@dataclass(frozen=True)
class Strings:
    """Originals drawn from one grammar."""

    items: np.ndarray
    rhm: RandomHierarchyModel
    draw: Draw

    @property
    def data(self) -> np.ndarray:
        """The strings themselves, int64 (batch, num_leaves): what a network reads."""
        return self.draw.leaves

    @staticmethod
    def data_of(reconstructions: Any) -> np.ndarray:
        """Likewise of their U-turns, (batch, trajectories, num_leaves)."""
        return reconstructions[0]


@dataclass(frozen=True)
class Images:
    """Original images, float32 (batch, channels, height, width) in [-1, 1]; labels are -1 where unknown."""

    items: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """What a network reads: the images."""
        return self.images

    @staticmethod
    def data_of(reconstructions: Any) -> np.ndarray:
        """Likewise of their U-turns, (batch, trajectories, channels, height, width)."""
        return reconstructions


@dataclass(frozen=True)
class Vectors:
    """Originals drawn from a continuous law, float32 (batch, dimension), and their classes, int64 (batch,)."""

    items: np.ndarray
    law: GaussianMixture
    values: np.ndarray
    labels: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """What a network reads: the vectors."""
        return self.values

    @staticmethod
    def data_of(reconstructions: Any) -> np.ndarray:
        """Likewise of their U-turns, (batch, trajectories, dimension)."""
        return reconstructions


class Source(Protocol):
    """What an experiment asks of a source; any object with these methods will do."""

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Any]:
        """Originals of the items, in order, as one or more batches (each of one grammar, say)."""
        ...

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        """Further coordinates of `item`: {name: values (num_items,)}."""
        ...


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RHMSource(_Spec):
    """Strings of the Random Hierarchy Model; the items are spread over `grammars` independent grammars."""

    type: Literal["rhm"] = "rhm"
    vocab_size: int = Field(ge=2)
    multiplicity: int = Field(ge=1)
    branching: int = Field(ge=2)
    depth: int = Field(ge=1)
    num_classes: int | None = Field(default=None, ge=1)
    grammars: int = Field(default=1, ge=1)
    zipf_exponent: float | None = Field(default=None, ge=-20, le=20)

    @model_validator(mode="after")
    def _fits(self) -> RHMSource:
        v, n, s, L = self.vocab_size, self.num_classes or self.vocab_size, self.branching, self.depth
        # Before anything is computed from them: s**L and v**s can have any number of digits.
        evidence = 2 + math.log2(v) + L * math.log2(s)
        if evidence > math.log2(_MOST_BYTES):
            raise ValueError(
                f"depth = {L}, branching = {s}: one string needs 2**{evidence:.0f} bytes of evidence; lower depth or branching"
            )
        if s * math.log2(v) > 1000:
            raise ValueError(f"branching = {s}: vocab_size**branching has more than 300 digits; lower branching or vocab_size")
        symbols, tuples = n if L == 1 else max(v, n), v**s
        if symbols * self.multiplicity > tuples:
            raise ValueError(
                f"{symbols * self.multiplicity} rules a level, but only vocab_size**branching = {tuples} distinct tuples exist; "
                f"lower multiplicity to at most {tuples // symbols}"
            )
        gigabytes = 8 * symbols * self.multiplicity * s * L / 2**30
        if gigabytes > _MOST_BYTES / 2**30:
            raise ValueError(f"multiplicity = {self.multiplicity}: the rules would take {gigabytes:.0f} GB; lower multiplicity")
        return self

    def grammar(self, number: int, seed: int) -> RandomHierarchyModel:
        """The `number`-th grammar of an experiment."""
        return _grammar(self, number, seed)

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Strings]:
        numbers = self._numbers(num_items)[items]
        for number in np.unique(numbers):
            part = items[numbers == number]
            rhm = self.grammar(int(number), seed)
            yield Strings(part, rhm, rhm.sample(len(part), keys(seed, ORIGINAL, part)))

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        if self.grammars > num_items:
            raise ValueError(f"grammars = {self.grammars}, but items = {num_items}; expected at least one item a grammar")
        return {"grammar": self._numbers(num_items)}

    def _numbers(self, num_items: int) -> np.ndarray:
        # Neighbouring items share a grammar, so that a block of items is inferred in few large batches.
        return np.arange(num_items) * self.grammars // num_items


@lru_cache(maxsize=32)
def _grammar(source: RHMSource, number: int, seed: int) -> RandomHierarchyModel:
    return RandomHierarchyModel(
        source.vocab_size,
        source.multiplicity,
        source.branching,
        source.depth,
        source.num_classes,
        seed=int(keys(seed, GRAMMAR, number)),
        rule_probabilities=None if source.zipf_exponent is None else zipf(source.multiplicity, source.zipf_exponent),
    )


class _VectorSource(_Spec):
    """Vectors of a law whose posterior under Gaussian diffusion is exact."""

    def law(self, seed: int) -> GaussianMixture:
        """The law of an experiment."""
        raise NotImplementedError

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        """Class of vectors (batch, dimension) of the law, int64 (batch,): a function of the vectors alone."""
        raise NotImplementedError

    def scales(self) -> dict[float, np.ndarray]:
        """Groups of components of the law's basis, from coarse to fine: {name of the scale: bool (dimension,)}."""
        raise NotImplementedError

    def fresh(self, items: np.ndarray, seed: int) -> Vectors:
        """Draws from the law of an experiment that are none of its originals: for training classifiers."""
        return self._vectors(items, seed, keys(seed, FRESH, items))

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Vectors]:
        yield self._vectors(items, seed, keys(seed, ORIGINAL, items))

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        block = 2**24 // len(next(iter(self.scales().values())))  # not all vectors at once
        parts = np.split(np.arange(num_items), np.arange(block, num_items, block))
        return {"label": np.concatenate([next(self.blocks(part, seed, num_items)).labels for part in parts])}

    def _vectors(self, items: np.ndarray, seed: int, streams: np.ndarray) -> Vectors:
        law = self.law(seed)
        values = law.sample(len(items), streams).values.astype(np.float32)
        return Vectors(items, law, values, self.classify(values, law))


class GaussianMixtureSource(_VectorSource):
    """A flat mixture: `num_modes` isotropic Gaussians of variance 1 per component, all at the same distance from each other.

    `separation`: that distance over sqrt(dimension). At 1, differences between modes are as large as those within a mode. The
    class is the most probable mode.
    """

    type: Literal["gaussian_mixture"] = "gaussian_mixture"
    dimension: int = Field(default=1024, ge=1, le=_MOST_COMPONENTS)
    num_modes: int = Field(default=2, ge=1)
    separation: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits(self) -> GaussianMixtureSource:
        if self.num_modes > self.dimension:
            raise ValueError(f"num_modes = {self.num_modes}, but dimension = {self.dimension}; lower num_modes")
        if self.num_modes * self.dimension > 16 * _MOST_COMPONENTS:
            raise ValueError(
                f"num_modes = {self.num_modes}: num_modes * dimension = {self.num_modes * self.dimension}; expected at most "
                f"{16 * _MOST_COMPONENTS}"
            )
        return self

    def law(self, seed: int) -> GaussianMixture:
        return _mixture(self, seed)

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        return law.classify(values)

    def scales(self) -> dict[float, np.ndarray]:
        return {0: np.ones(self.dimension, bool)}


@lru_cache(maxsize=8)
def _mixture(source: GaussianMixtureSource, seed: int) -> GaussianMixture:
    from uturn.laws import GaussianMixture, simplex

    K, d = source.num_modes, source.dimension
    return GaussianMixture(simplex(K, d, source.separation * np.sqrt(d), keys(seed, GRAMMAR, np.arange(K))))


class GaussianFieldSource(_VectorSource):
    """A Gaussian random field on a periodic size x size grid, power spectrum `|k|^-exponent`, variance 1 per point.

    It has scales, but no hierarchy: they are independent. The class is the sign of the spatial mean (0: negative, 1: positive),
    and the scales are octaves of |k|, named by their lower ends.
    """

    type: Literal["gaussian_field"] = "gaussian_field"
    size: int = Field(default=32, ge=2, le=1024)
    exponent: float = Field(default=2.0, ge=0, le=20)

    @property
    def grid(self) -> tuple[int, int]:
        return self.size, self.size

    def law(self, seed: int) -> GaussianMixture:
        return _field(self)

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        return (np.asarray(values, float).mean(axis=1) > 0).astype(np.int64)

    def scales(self) -> dict[float, np.ndarray]:
        from uturn.laws import wave_numbers

        k = wave_numbers(self.grid)
        octave = np.floor(np.log2(np.maximum(k, 1)))
        return {0 if j == 0 else float(2**j): octave == j for j in np.unique(octave)}


@lru_cache(maxsize=8)
def _field(source: GaussianFieldSource) -> GaussianMixture:
    from uturn.laws import GaussianMixture, power_law

    return GaussianMixture(np.zeros((1, source.size**2)), variance=power_law(source.grid, source.exponent), grid=source.grid)


class _ImageSource(_Spec):
    """Items are the images in the order of the source; asking for more items than images is an error."""

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, float32 (count, channels, height, width) in [-1, 1], and labels (count,), -1 where unknown."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The files read, if any: when one changes, the images are read again."""
        return []

    def all_images(self) -> tuple[np.ndarray, np.ndarray]:
        stamp = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in self.files() if f.is_file())
        return _loaded(self, stamp)

    def fingerprint(self) -> str:
        """SHA-256 of images and labels (hexadecimal): a store does not go on with other data."""
        images, labels = self.all_images()
        return hashlib.sha256(f"{images.shape}".encode() + images.tobytes() + labels.tobytes()).hexdigest()

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Images]:
        images, labels = self.all_images()
        yield Images(items, images[items], labels[items])

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        images, labels = self.all_images()
        if num_items > len(images):
            raise ValueError(f"items = {num_items}, but the source has {len(images)} images; lower items")
        return {"label": labels[:num_items]}


class FashionMNISTSource(_ImageSource):
    """The 1,000 Fashion-MNIST test images that come with the package, classes in turn."""

    type: Literal["fashion_mnist"] = "fashion_mnist"

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        from uturn.fashion_mnist import load_test_set

        images, labels = load_test_set()
        return np.asarray(images, np.float32), np.asarray(labels, np.int64)


class ImageFolderSource(_ImageSource):
    """PNG, JPEG, .. files of a folder, in the order of their names; sub-folders, if any, are the classes.

    `size`: resize the short side and crop the centre to size x size; by default all images must have one size already.
    `channels`: 1 (grey) or 3 (RGB).
    """

    type: Literal["images"] = "images"
    path: str
    channels: Literal[1, 3] = 3
    size: int | None = Field(default=None, ge=1, le=4096)

    def files(self) -> list[Path]:
        return sorted(f for f in Path(self.path).rglob("*") if f.is_file() and not f.name.startswith("."))

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image, ImageOps, UnidentifiedImageError

        root, files = Path(self.path), self.files()
        if not root.is_dir():
            raise ValueError(f"path = {self.path!r} is not a folder; expected a folder of image files")
        if not files:
            raise ValueError(f"path = {self.path!r} holds no files; expected image files, or one sub-folder a class")
        classes = sorted({f.parent.relative_to(root).as_posix() for f in files if f.parent != root})
        images, labels, first = [], [], None
        for file in files:
            try:
                with Image.open(file) as opened:
                    image = opened.convert("L" if self.channels == 1 else "RGB")
            except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
                raise ValueError(
                    f"{file} cannot be read as an image ({error}); expected PNG, JPEG, .. only; mend it or move it away"
                ) from None
            if self.size is not None:
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
            first = first or (file, image.size)
            if image.size != first[1]:
                raise ValueError(
                    f"{file} has size {image.size}, but {first[0]} has {first[1]}; give `size` to resize and crop all images"
                )
            _check_size(len(files) * image.width * image.height * self.channels, self.path)
            images.append(np.asarray(image).reshape(image.height, image.width, self.channels).transpose(2, 0, 1))
            labels.append(classes.index(file.parent.relative_to(root).as_posix()) if file.parent != root else -1)
        return _scaled(np.stack(images), self.path), np.array(labels, np.int64)


class ArraySource(_ImageSource):
    """Images in a .npy file: (count, height, width), (.., channels) or (count, channels, height, width).

    uint8 in 0..255, or floats in [-1, 1]. `labels`: another .npy file, integers (count,).
    """

    type: Literal["array"] = "array"
    path: str
    labels: str | None = None

    def files(self) -> list[Path]:
        return [Path(p) for p in (self.path, self.labels) if p is not None]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        array = _read_npy(self.path)
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or array.shape[1] not in (1, 3):
            raise ValueError(
                f"{self.path} has shape {array.shape}; expected (count, height, width), with 1 or 3 channels before or after"
            )
        _check_size(array.size, self.path)
        labels = np.full(len(array), -1) if self.labels is None else _read_npy(self.labels)
        if labels.shape != (len(array),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.labels} has shape {labels.shape} and dtype {labels.dtype}; expected integers ({len(array)},)"
            )
        return _scaled(array, self.path), labels.astype(np.int64)


@lru_cache(maxsize=2)
def _loaded(source: _ImageSource, stamp: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    return source.load()


def _read_npy(path: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({error}); write one with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive; expected a .npy file with one array")
    return array


def _check_size(numbers: int, where: str) -> None:
    if 4 * numbers > _MOST_BYTES:
        gigabytes = 4 * numbers / 2**30
        raise ValueError(f"the images of {where} would take {gigabytes:.0f} GB of memory; take fewer, or smaller ones")


def _scaled(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 127.5 - 1
    if array.dtype.kind == "f" and np.isfinite(array).all() and np.abs(array).max(initial=0) <= 1:
        return array.astype(np.float32)
    raise ValueError(f"{where} holds {array.dtype} images; expected uint8 in 0..255, or finite floats in [-1, 1]")


SOURCES: dict[str, type] = {
    "rhm": RHMSource,
    "fashion_mnist": FashionMNISTSource,
    "images": ImageFolderSource,
    "array": ArraySource,
    "gaussian_mixture": GaussianMixtureSource,
    "gaussian_field": GaussianFieldSource,
}
