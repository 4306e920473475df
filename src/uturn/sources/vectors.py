"""Sources of vectors of a solvable law: a Gaussian mixture, a Gaussian random field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import checked_numbers, expect
from uturn.core.data import NoisingProcess
from uturn.core.files import checked_path, read_array
from uturn.core.inputs import File
from uturn.core.protocols import Noisy, Originals, Source, Spec
from uturn.core.random import Purpose, Streams, keys
from uturn.corruption import Gaussian
from uturn.measures.covariances import Grid

if TYPE_CHECKING:
    from uturn.exact.laws import GaussianMixture

_MOST_COMPONENTS = 2**20


@dataclass(frozen=True, repr=False)
class Vectors(Originals):
    """Originals of a continuous law."""

    items: np.ndarray
    law: GaussianMixture
    values: np.ndarray
    """float32 (batch, dimension)"""
    labels: np.ndarray
    """Their classes, int64 (batch,)."""

    @property
    def data(self) -> np.ndarray:
        return self.values

    @property
    def distance(self) -> Grid | None:
        """Distances on the grid of a field."""
        return None if self.law.grid is None else Grid(self.law.grid, periodic=True)

    def continued(self, reconstructions: np.ndarray, taken: np.ndarray) -> Vectors:
        return replace(self, values=np.where(taken[:, None], reconstructions[:, 0], self.values))

    def observed_by(
        self, corruption: NoisingProcess, noise: float, streams: Streams
    ) -> NoisyVectors:
        """Diffused vectors, one for each trajectory of each original.

        ValueError for a corruption other than `Gaussian`.
        """
        expected = "Gaussian(), for which the exact posterior of vectors is known"
        expect(isinstance(corruption, Gaussian), "corruption", corruption, expected)
        copies = np.repeat(self.values, streams.count, axis=0)
        diffused = self.law.diffuse(copies, noise, streams.keys(corruption.purpose))
        return NoisyVectors(diffused, np.full(len(copies), float(noise)), law=self.law)


@dataclass(frozen=True, eq=False, repr=False)
class NoisyVectors(Noisy):
    """Noisy vectors, float64 (batch, dimension), and the law of the originals."""

    law: Any = None  # GaussianMixture; the field of `Noisy` before it has a default

    def posterior_draws(self, streams: Streams, clones: int) -> np.ndarray:
        """Draws from the exact posterior, float32 (items, draws, dimension).

        At noise 0 they are the vectors themselves.
        """
        observed: np.ndarray = np.repeat(self.values, clones, axis=0)
        if streams.noise > 0:
            row_keys = streams.keys(Purpose.RECONSTRUCTION, clones)
            observed = self.law.sample_posterior(observed, streams.noise, row_keys).values
        return observed.astype(np.float32).reshape(len(streams.items), -1, self.law.dimension)


class VectorSource(Spec, Source[Vectors]):
    """Vectors of a law whose posterior under Gaussian diffusion is exact.

    They are `centre` + `scale` times the vectors of the standard law.
    """

    kind: ClassVar[str] = "vectors"
    block_class: ClassVar[type[Originals]] = Vectors
    centre: float = Field(default=0.0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def law(self, seed: int) -> GaussianMixture:
        """The law of an experiment with this seed."""
        raise NotImplementedError

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        """Class of vectors (batch, dimension), int64 (batch,), a function of the vector."""
        raise NotImplementedError

    def scales(self) -> dict[float, np.ndarray]:
        """Scales from coarse to fine, {name: bool (dimension,)}.

        They say which components of the law's basis belong to the scale.
        """
        raise NotImplementedError

    def fresh(self, items: np.ndarray, seed: int) -> Vectors:
        """Draws that are independent of the originals of an experiment, to train classifiers."""
        return self._vectors(items, seed, keys(seed, Purpose.FRESH, items))

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Vectors]:
        yield self._vectors(items, seed, keys(seed, Purpose.ORIGINAL, items))

    def coordinates(self, seed: int, num_items: int) -> dict[str, np.ndarray]:
        dimension = len(next(iter(self.scales().values())))
        block = 2**24 // dimension  # in parts, to limit memory
        labels = []
        for part in np.split(np.arange(num_items), np.arange(block, num_items, block)):
            labels.append(next(self.blocks(part, seed, num_items)).labels)
        return {"label": np.concatenate(labels)}

    def _vectors(self, items: np.ndarray, seed: int, streams: np.ndarray) -> Vectors:
        law = self.law(seed)
        values = law.sample(len(items), streams).values.astype(np.float32)
        return Vectors(items, law, values, self.classify(values, law))


class GaussianMixtureSource(VectorSource):
    """Mixture of `num_modes` Gaussians of variance 1 per component, with means at equal distances
    from each other.

    `separation`: distance between means over sqrt(dimension), > 0. `exponent`: the modes are
    Gaussian fields of power spectrum `|k|^-exponent` around their means, on a periodic square grid;
    0 for independent components and no grid. The class is the most probable mode. All components
    form one scale. The law has classes, but no hierarchy.

    A mixture of one's own: `means` (modes, dimension), in place of `dimension`, `num_modes`,
    `separation` and `exponent`; `covariances`, (dimension, dimension) or (modes, dimension,
    dimension), by default the identity; `weights` (modes,), by default equal. Each is a list, or
    the path of a .npy file.
    """

    type: Literal["gaussian_mixture"] = "gaussian_mixture"
    dimension: int = Field(default=1024, ge=1, le=_MOST_COMPONENTS)
    num_modes: int = Field(default=2, ge=1)
    separation: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    exponent: float = Field(default=0.0, ge=0, le=20)
    means: File | list[Any] | None = None
    covariances: File | list[Any] | None = None
    weights: File | list[float] | None = None

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # lists have no hash

    @model_validator(mode="after")
    def _fits(self) -> GaussianMixtureSource:
        if self.means is not None:
            of_means = {"dimension", "num_modes", "separation", "exponent"} & self.model_fields_set
            expect(not of_means, "options beside means", of_means, "none of them")
            self.law(0)  # raises ValueError if shapes do not fit together
            return self
        expect(self.covariances is None, "covariances without means", self.covariances, "means too")
        most = min(self.dimension, 16 * _MOST_COMPONENTS // self.dimension)
        expected = f"at most {most} with dimension = {self.dimension}"
        expect(self.num_modes <= most, "num_modes", self.num_modes, expected)
        is_field = self.exponent == 0 or math.isqrt(self.dimension) ** 2 == self.dimension
        expected = "a square, such as 256, as with an exponent the vectors are fields"
        expect(is_field, "dimension", self.dimension, expected)
        return self

    def law(self, seed: int) -> GaussianMixture:
        return _mixture(self, seed)

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        return law.classify(values)

    def scales(self) -> dict[float, np.ndarray]:
        means = self.array("means")
        return {0: np.ones(self.dimension if means is None else means.shape[1], bool)}

    def array(self, name: str) -> np.ndarray | None:
        """The numbers of the option `name`: a list, or the content of a file."""
        value = getattr(self, name)
        if value is None:
            return None
        if isinstance(value, str):
            value = read_array(checked_path(name, value))
        array = checked_numbers(name, value)
        expect(array.size > 0, f"shape of {name}", array.shape, "at least one number")
        if name == "means":
            expect(array.ndim == 2, "shape of means", array.shape, "(modes, dimension)")
        return array


@cached_while_unchanged()
def _mixture(source: GaussianMixtureSource, seed: int) -> GaussianMixture:
    from uturn.exact.laws import CorrelatedMixture, GaussianMixture, power_law, simplex

    weights = source.array("weights")
    square = source.scale**2
    own_means = source.array("means")
    if own_means is not None:
        means = source.centre + source.scale * own_means
        covariances = source.array("covariances")
        if covariances is None:
            return GaussianMixture(means, weights, square)
        return CorrelatedMixture(means, square * covariances, weights)
    K = source.num_modes
    d = source.dimension
    row_keys = keys(seed, Purpose.GRAMMAR, np.arange(K))
    corners = simplex(K, d, source.separation * np.sqrt(d), row_keys)
    means = source.centre + source.scale * corners
    if source.exponent == 0:
        return GaussianMixture(means, weights, square)
    grid = (math.isqrt(d), math.isqrt(d))
    return GaussianMixture(means, weights, square * power_law(grid, source.exponent), grid)


class GaussianFieldSource(VectorSource):
    """Gaussian random field on a periodic size x size grid with power spectrum `|k|^-exponent` and
    variance 1 per point.

    The class is the sign of the spatial mean minus `centre` (0: negative, 1: positive). The scales
    are octaves of |k|, named by their lower ends; the lowest one, 0, holds |k| < 2. The scales are
    independent, so the law has no hierarchy.
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
        is_above: np.ndarray = np.asarray(values, float).mean(axis=1) > self.centre
        return is_above.astype(np.int64)

    def scales(self) -> dict[float, np.ndarray]:
        from uturn.exact.laws import wave_numbers

        k = wave_numbers(self.grid)
        octave = np.floor(np.log2(np.maximum(k, 1)))
        scales = {}
        for j in np.unique(octave):
            name = 0.0 if j == 0 else float(2**j)
            scales[name] = octave == j
        return scales


@lru_cache(maxsize=8)
def _field(source: GaussianFieldSource) -> GaussianMixture:
    from uturn.exact.laws import GaussianMixture, power_law

    means = np.full((1, source.size**2), source.centre)
    variance = source.scale**2 * power_law(source.grid, source.exponent)
    return GaussianMixture(means, variance=variance, grid=source.grid)
