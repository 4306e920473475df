"""Covariances of changes over the trajectories of one original, summed over the pairs of sites at
every distance.

Let x_ti be the change of site i in trajectory t of T, and A_r(x) the sum of x_i x_j over the
ordered pairs (i, j) at distance r. With the mean m over trajectories, the covariances at distance r
add up to

    sum over pairs of C_ij = sum_t A_r(x_t - m) / (T - 1).

A distance knows how to compute A_r without a matrix of all pairs. `Covariances` adds trajectories
batch by batch: it keeps the mean and the sum of A_r, and joins two batches by `A_r(m - m') n n'/(n +
n')`, which follows from bilinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import LARGEST, checked_array, checked_integer, expect
from uturn.core.messages import shown

if TYPE_CHECKING:
    import xarray as xr

_BLOCK = 2**22
"""float64 numbers in memory at once: 32 MB."""


class Distance(Protocol):
    """Distances between sites: 0 from a site to itself, and above 0 between different sites."""

    @property
    def num_sites(self) -> int:
        """Number of sites."""

    @property
    def values(self) -> np.ndarray:
        """The different distances, increasing from 0: float64 (distances,)."""

    @property
    def pairs(self) -> np.ndarray:
        """Number of ordered pairs at each distance: int64 (distances,); the first one is the
        number of sites.
        """

    def products(self, x: np.ndarray) -> np.ndarray:
        """`sum_t A_r(x_t)`: float64 (items, rows, sites) -> (items, distances)."""


@dataclass(frozen=True)
class Tree:
    """Leaves of a tree: `s**k` for two leaves whose lowest common ancestor is at tree level k >=
    1; `num_sites` is `s**depth`.
    """

    num_sites: int
    branching: int

    def __post_init__(self) -> None:
        n = checked_integer("num_sites", self.num_sites, 1)
        s = checked_integer("branching", self.branching, 2)
        expected = f"branching**depth, branching = {s}; give the branching of the tree"
        expect(s**self.depth == n, "sites", n, expected)

    @cached_property
    def depth(self) -> int:
        depth = 0
        while self.branching**depth < self.num_sites:
            depth += 1
        return depth

    @property
    def values(self) -> np.ndarray:
        sizes = [float(self.branching) ** k for k in range(1, self.depth + 1)]
        return np.array([0.0, *sizes])

    @property
    def pairs(self) -> np.ndarray:
        # Pairs in the same subtree of level k.
        within = self.num_sites * self.branching ** np.arange(self.depth + 1)
        return np.diff(within, prepend=0)

    def products(self, x: np.ndarray) -> np.ndarray:
        s = self.branching
        sums = x  # over the subtrees of a level
        within = [np.einsum("abi,abi->a", sums, sums)]
        for _ in range(self.depth):
            sums = np.add.reduce([sums[..., i::s] for i in range(s)])
            within.append(np.einsum("abi,abi->a", sums, sums))
        return np.diff(within, axis=0, prepend=0).T


@dataclass(frozen=True)
class Grid:
    """Sites of a grid in C order: Euclidean distance, rounded to a whole number; `periodic`:
    opposite ends are neighbours.
    """

    shape: tuple[int, ...]
    periodic: bool = False

    def __post_init__(self) -> None:
        shape = tuple(checked_integer("shape", n, 1) for n in np.atleast_1d(self.shape).tolist())
        object.__setattr__(self, "shape", shape)

    @property
    def num_sites(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def _displacements(self) -> _Displacements:
        steps = []
        counts = []
        for n, size in zip(self.shape, self._sizes, strict=True):
            step = np.minimum(np.arange(size), size - np.arange(size))
            steps.append(step)
            counts.append(np.full(size, n) if self.periodic else np.maximum(n - step, 0))
        squares = np.add.reduce(np.meshgrid(*(step**2 for step in steps), indexing="ij"))
        pairs = np.multiply.reduce(np.meshgrid(*counts, indexing="ij"))
        return _Displacements(np.rint(np.sqrt(squares)).ravel(), pairs.ravel())

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Shape of the transforms; zeros keep the ends of an open grid apart."""
        if self.periodic:
            return self.shape
        return tuple(2 * n - 1 for n in self.shape)

    @cached_property
    def values(self) -> np.ndarray:
        displacements = self._displacements
        return np.unique(displacements.distance[displacements.exists])

    @cached_property
    def pairs(self) -> np.ndarray:
        return self._by_distance(self._displacements.pairs).astype(np.int64)

    def products(self, x: np.ndarray) -> np.ndarray:
        from scipy.fft import irfftn, rfftn

        axes = tuple(range(2, 2 + len(self.shape)))
        on_grid = x.reshape(*x.shape[:2], *self.shape)
        power = np.square(np.abs(rfftn(on_grid, self._sizes, axes))).sum(axis=1)
        # Sums of x_i x_j for every displacement, (items, *displacements).
        sums = irfftn(power, self._sizes, tuple(axis - 1 for axis in axes))
        return np.array([self._by_distance(by_displacement.ravel()) for by_displacement in sums])

    def _by_distance(self, values: np.ndarray) -> np.ndarray:
        """Sums over the displacements of every distance; `values` (displacements,)."""
        exists = self._displacements.exists
        group = np.searchsorted(self.values, self._displacements.distance[exists])
        return np.bincount(group, values[exists])


class _Displacements(NamedTuple):
    """The displacements of a transformed grid, arrays (size,)."""

    distance: np.ndarray
    pairs: np.ndarray
    """Number of ordered pairs of sites."""

    @property
    def exists(self) -> np.ndarray:
        """Whether two sites of the grid are apart by the displacement."""
        return np.asarray(self.pairs > 0)


@dataclass(frozen=True, eq=False)
class Matrix:
    """User-defined distances: symmetric (sites, sites), 0 on the diagonal and positive
    elsewhere. Equal values form a group.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        d = checked_array("distance", self.matrix)
        is_square = d.ndim == 2 and d.shape[0] == d.shape[1] and d.dtype.kind in "iuf" and d.size
        expect(is_square, f"distance: {d.dtype} of shape", d.shape, "numbers (sites, sites)")
        is_symmetric = np.isfinite(d).all() and np.array_equal(d, d.T)
        apart = ~np.eye(len(d), dtype=bool)
        are_distances = not d[~apart].any() and (d[apart] > 0).all()
        expected = "a symmetric finite matrix with 0 on the diagonal and positive numbers elsewhere"
        expect(is_symmetric and are_distances, "distance", d, expected)
        object.__setattr__(self, "matrix", d.astype(float))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Matrix) and np.array_equal(self.matrix, other.matrix)

    @property
    def num_sites(self) -> int:
        return len(self.matrix)

    @cached_property
    def values(self) -> np.ndarray:
        return np.unique(self.matrix)

    @cached_property
    def _group(self) -> np.ndarray:
        return np.searchsorted(self.values, self.matrix.ravel())

    @property
    def pairs(self) -> np.ndarray:
        return np.bincount(self._group)

    def products(self, x: np.ndarray) -> np.ndarray:
        products = [rows.T @ rows for rows in x]
        return np.array([np.bincount(self._group, product.ravel()) for product in products])


def distance_between(
    sites: int,
    distance: str | ArrayLike | Distance,
    branching: int | None = None,
    shape: Sequence[int] | None = None,
) -> Distance:
    """The distances between `sites` sites, from a word, a matrix, or a `Distance`; arguments as in
    `uturn.correlations`.
    """
    word = distance if isinstance(distance, str) else None
    for option, value, owner in (("branching", branching, "tree"), ("shape", shape, "grid")):
        fits = (value is not None) == (word == owner)
        where = f"distance = {shown(distance)}, {option}"
        expect(fits, where, value, f"distance = {owner!r} needs it, no other has it")
    expected = "'index', 'tree', 'grid', or a matrix (sites, sites)"
    expect(word in (None, "index", "tree", "grid"), "distance", distance, expected)
    between: Distance
    if branching is not None:
        between = Tree(sites, branching)
    elif shape is not None:
        between = Grid(cast(tuple[int, ...], shape))
    elif word == "index":
        between = Grid((sites,))
    elif hasattr(distance, "products") and not isinstance(distance, type):
        between = cast(Distance, distance)
    else:
        between = Matrix(cast(np.ndarray, distance))
    num_sites = between.num_sites
    expect(num_sites == sites, "sites of the distance", num_sites, f"{sites}, those of changed")
    return between


class Covariances:
    """Covariances of the changes of sites over trajectories, for each of several originals, added
    up batch by batch.

    Memory does not depend on the number of trajectories: a mean for each site, and a sum for each
    distance.
    """

    def __init__(self, distance: Distance) -> None:
        self.distance = distance
        self.count = 0
        """Number of trajectories of each original."""
        self._mean = np.zeros((1, 1))
        self._products = np.zeros((1, 1))

    def add(self, changed: ArrayLike) -> Covariances:
        """Add trajectories: `changed` (items, trajectories, sites), real or bool. Returns the
        accumulator itself.
        """
        values = checked_changes(changed).values
        expected = "one; an accumulator counts as one noise level"
        expect(len(values) == 1, "changed: noise levels", len(values), expected)
        x = values[0]
        items = len(self._mean) if self.count else len(x)
        sites = self.distance.num_sites
        fits = (len(x), x.shape[2]) == (items, sites)
        expect(fits, "shape of changed", x.shape, f"{items} items and {sites} sites, as before")
        batch = Covariances(self.distance)
        batch.count = x.shape[1]
        batch._mean, batch._products = self._moments(x)
        return self.merge(batch)

    def merge(self, other: Covariances) -> Covariances:
        """Add the trajectories of another accumulator of the same originals. Returns the
        accumulator itself.
        """
        same = other.distance is self.distance or other.distance == self.distance
        expect(same, "distances of other", other.distance, f"those of {shown(self.distance)}")
        if self.count and other.count:
            items = len(self._mean)
            fits = items == len(other._mean)
            expect(fits, "items of other", len(other._mean), f"the same {items} items")
        total = self.count + other.count
        if not other.count:
            return self
        apart = other._mean - self._mean
        between = self.distance.products(apart[:, None]) * (self.count * other.count / total)
        self._products = self._products + other._products + between
        self._mean = self._mean + apart * (other.count / total)
        self.count = total
        return self

    def _moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean change of every site, and sum of A_r(x - m), of trajectories x (items, trajectories,
        sites).
        """
        means = []
        products = []
        block = max(1, _BLOCK // max(x[0].size, 1))
        for first in range(0, len(x), block):
            changes = np.asarray(x[first : first + block], float)
            mean = changes.mean(axis=1)
            means.append(mean)
            products.append(self.distance.products(changes - mean[:, None]))
        return np.concatenate(means), np.concatenate(products)

    @property
    def mean(self) -> np.ndarray:
        """Mean change of every site: float64 (items, sites)."""
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """Mean covariance of the pairs at every distance, unbiased: float64 (items, distances);
        entry 0: variance of a site.
        """
        return np.asarray(self._products / (self._freedom * self.distance.pairs))

    @property
    def total(self) -> np.ndarray:
        """Sum of the covariances of all ordered pairs over the number of sites, float64
        (items,).
        """
        return np.asarray(self._products.sum(axis=1) / (self._freedom * self.distance.num_sites))

    @property
    def _freedom(self) -> int:
        expected = "at least 2 of each item, for a covariance"
        expect(self.count > 1, "changed: trajectories", self.count, expected)
        return self.count - 1


class Changes(NamedTuple):
    """Changes of sites in U-turns."""

    values: np.ndarray
    """(noise, items, trajectories, sites)."""
    coordinates: dict[str, xr.Variable]
    """Coordinates of noise and item of a DataArray."""


def checked_changes(changed: ArrayLike | xr.DataArray, has_missing: bool = False) -> Changes:
    """Changes with an axis of noise, of length one if `changed` has none; else a ValueError.

    Dims that have the names noise, item and trajectory may have any order. `has_missing`: whether
    U-turns and sites may be NaN.
    """
    import xarray as xr

    coordinates: dict[str, xr.Variable] = {}
    has_noise = False
    if isinstance(changed, xr.DataArray):
        has_noise = {"noise", "item", "trajectory"} <= set(changed.dims)
        for name, coordinate in changed.coords.items():
            if coordinate.dims in (("noise",), ("item",)):
                coordinates[str(name)] = coordinate.variable
        if has_noise:
            coordinates["noise"] = changed.noise.variable
        if {"item", "trajectory"} <= set(changed.dims):
            changed = changed.transpose("noise", "item", "trajectory", ..., missing_dims="ignore")
    values = checked_array("changed", changed)
    are_changes = values.ndim == 3 + has_noise and values.size and values.dtype.kind in "biuf"
    where = f"changed: {values.dtype} of shape"
    expected = "real numbers (items, trajectories, sites), or a DataArray with noise too"
    expect(are_changes, where, values.shape, expected)
    if values.dtype.kind == "f":
        is_missing = np.isnan(values)
        too_many = is_missing.all() if has_missing else is_missing.any()
        is_too_large = np.abs(values) >= LARGEST
        fits = not too_many and not is_too_large.any()
        expected = f"numbers below {LARGEST:g}; NaN only for a missing U-turn of an array"
        expect(fits, "changed", changed, expected)
    if has_missing:
        trajectories = values.shape[-2]
        enough = trajectories > 1
        expect(enough, "changed: trajectories", trajectories, "at least 2 of each item")
    return Changes(values if has_noise else values[None], coordinates)
