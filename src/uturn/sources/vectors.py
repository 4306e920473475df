"""Sources of vectors of a solvable law: a Gaussian mixture, a Gaussian random field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.checks import checked_numbers, checked_path, expect
from uturn.core.files import cached_while_unchanged, read_array
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
    """Originals of a continuous law: `values` float32 (batch, dimension) and their classes
    `labels` int64 (batch,).
    """

    items: np.ndarray
    law: GaussianMixture
    values: np.ndarray
    labels: np.ndarray

    @property
    def data(self) -> np.ndarray:
        return self.values

    @property
    def distance(self) -> Grid | None:
        """Distances on the grid of a field."""
        return None if self.law.grid is None else Grid(self.law.grid, periodic=True)

    def continued(self, reconstructions: Any, taken: np.ndarray) -> Vectors:
        return replace(self, values=np.where(taken[:, None], reconstructions[:, 0], self.values))

    def observed_by(self, corruption: Any, noise: float, streams: Streams) -> NoisyVectors:
        """Diffused vectors, one for each trajectory of each original; ValueError for a
        corruption other than `Gaussian`.
        """
        is_known = isinstance(corruption, Gaussian)
        expect(
            is_known,
            "corruption",
            corruption,
            "Gaussian(), for which the exact posterior of vectors is known",
        )
        copies = np.repeat(self.values, streams.count, axis=0)
        diffused = self.law.diffuse(copies, noise, streams.keys(corruption.purpose))
        return NoisyVectors(diffused, np.full(len(copies), float(noise)), law=self.law)


@dataclass(frozen=True, eq=False, repr=False)
class NoisyVectors(Noisy):
    """Noisy vectors, float64 (batch, dimension), and the law of the originals."""

    law: Any = None

    def posterior_draws(self, streams: Streams, clones: int) -> np.ndarray:
        """Draws from the exact posterior, float32 (items, draws, dimension); at noise 0 the
        vectors themselves.
        """
        observed = np.repeat(self.values, clones, axis=0)
        if streams.noise > 0:
            observed = self.law.sample_posterior(
                observed, streams.noise, streams.keys(Purpose.RECONSTRUCTION, clones)
            ).values
        return observed.astype(np.float32).reshape(len(streams.items), -1, self.law.dimension)


class VectorSource(Spec, Source):
    """Vectors of a law whose posterior under Gaussian diffusion is exact: `centre` + `scale`
    times those of the standard law.
    """

    kind: ClassVar[str] = "vectors"
    centre: float = Field(default=0.0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def law(self, seed: int) -> GaussianMixture:
        """The law of an experiment with this seed."""
        raise NotImplementedError

    def classify(self, values: np.ndarray, law: GaussianMixture) -> np.ndarray:
        """Class of vectors (batch, dimension), int64 (batch,), as a deterministic function of
        the vector.
        """
        raise NotImplementedError

    def scales(self) -> dict[float, np.ndarray]:
        """Scales from coarse to fine: {name: bool (dimension,), the components of the law's
        basis that belong to the scale}.
        """
        raise NotImplementedError

    def fresh(self, items: np.ndarray, seed: int) -> Vectors:
        """Draws from the law of an experiment that are independent of its originals, for
        training classifiers.
        """
        return self._vectors(items, seed, keys(seed, Purpose.FRESH, items))

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Vectors]:
        yield self._vectors(items, seed, keys(seed, Purpose.ORIGINAL, items))

    def coordinates(self, seed: int, num_items: int) -> dict[str, Any]:
        block = 2**24 // len(next(iter(self.scales().values())))  # in parts, to limit memory
        parts = np.split(np.arange(num_items), np.arange(block, num_items, block))
        return {
            "label": np.concatenate(
                [next(self.blocks(part, seed, num_items)).labels for part in parts]
            )
        }

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
        expect(
            self.num_modes <= most,
            "num_modes",
            self.num_modes,
            f"at most {most} with dimension = {self.dimension}",
        )
        is_field = self.exponent == 0 or math.isqrt(self.dimension) ** 2 == self.dimension
        expect(
            is_field,
            "dimension",
            self.dimension,
            "a square, such as 256, as with an exponent the vectors are fields",
        )
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
        given = getattr(self, name)
        if given is None:
            return None
        array = checked_numbers(
            name, read_array(checked_path(name, given)) if isinstance(given, str) else given
        )
        fits = array.size and (array.ndim == 2 or name != "means")
        expect(
            fits,
            f"shape of {name}",
            array.shape,
            "(modes, dimension)" if name == "means" else "at least one number",
        )
        return array


@cached_while_unchanged()
def _mixture(source: GaussianMixtureSource, seed: int) -> GaussianMixture:
    from uturn.exact.laws import CorrelatedMixture, GaussianMixture, power_law, simplex

    own, weights = source.array("means"), source.array("weights")
    if own is not None:
        covariances = source.array("covariances")
        if covariances is None:
            return GaussianMixture(source.centre + source.scale * own, weights, source.scale**2)
        return CorrelatedMixture(
            source.centre + source.scale * own, source.scale**2 * covariances, weights
        )
    K, d = source.num_modes, source.dimension
    means = simplex(K, d, source.separation * np.sqrt(d), keys(seed, Purpose.GRAMMAR, np.arange(K)))
    grid = (math.isqrt(d),) * 2 if source.exponent > 0 else None
    variance = 1.0 if grid is None else power_law(grid, source.exponent)
    return GaussianMixture(
        source.centre + source.scale * means, weights, source.scale**2 * variance, grid
    )


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
        return (np.asarray(values, float).mean(axis=1) > self.centre).astype(np.int64)

    def scales(self) -> dict[float, np.ndarray]:
        from uturn.exact.laws import wave_numbers

        k = wave_numbers(self.grid)
        octave = np.floor(np.log2(np.maximum(k, 1)))
        return {0 if j == 0 else float(2**j): octave == j for j in np.unique(octave)}


@lru_cache(maxsize=8)
def _field(source: GaussianFieldSource) -> GaussianMixture:
    from uturn.exact.laws import GaussianMixture, power_law

    means, variance = (
        np.full((1, source.size**2), source.centre),
        source.scale**2 * power_law(source.grid, source.exponent),
    )
    return GaussianMixture(means, variance=variance, grid=source.grid)
