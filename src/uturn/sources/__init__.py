"""Where the originals come from: strings of a grammar, images, or vectors of a solvable law."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from uturn.checks import check_tuples
from uturn.random import keys
from uturn.rhm import Draw, RandomHierarchyModel, zipf
from uturn.sources.images import ArraySource, FashionMNISTSource, ImageFolderSource
from uturn.sources.images import Images as Images

if TYPE_CHECKING:
    from uturn.laws import GaussianMixture

# Purposes that keep random streams apart: keys(seed, PURPOSE, item, ..). Others are 5 pairs of images (fig2), 6 training of
# classifiers (fig8), 7 population dynamics, 8 training of denoisers, 9 their reverse processes, 11 pictures, 12 calibration.
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
        check_tuples(v, s)
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
        items = np.asarray(items)
        numbers = self._numbers(num_items)[items]
        for part in np.split(items, np.flatnonzero(np.diff(numbers)) + 1):
            rhm = self.grammar(int(self._numbers(num_items)[part[0]]), seed)
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


SOURCES: dict[str, type] = {
    "rhm": RHMSource,
    "fashion_mnist": FashionMNISTSource,
    "images": ImageFolderSource,
    "array": ArraySource,
    "gaussian_mixture": GaussianMixtureSource,
    "gaussian_field": GaussianFieldSource,
}
