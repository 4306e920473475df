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

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from uturn.core.checks import LARGEST, checked_array, checked_integer, expect
from uturn.core.messages import shown

_BLOCK = 2**22  # float64 numbers in memory at once: 32 MB


class Distance(Protocol):
    """Distances between sites; the distance of a site from itself is 0, and no other distance
    is.
    """

    @property
    def num_sites(self) -> int: ...

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
        n, s = (
            checked_integer("num_sites", self.num_sites, 1),
            checked_integer("branching", self.branching, 2),
        )
        expect(
            s**self.depth == n,
            "sites",
            n,
            f"branching**depth, branching = {s}; give the branching of the tree",
        )

    @cached_property
    def depth(self) -> int:
        depth = 0
        while self.branching**depth < self.num_sites:
            depth += 1
        return depth

    @property
    def values(self) -> np.ndarray:
        return np.array([0.0, *(float(self.branching) ** k for k in range(1, self.depth + 1))])

    @property
    def pairs(self) -> np.ndarray:
        # Pairs in the same subtree of level k.
        within = self.num_sites * self.branching ** np.arange(self.depth + 1)
        return np.diff(within, prepend=0)

    def products(self, x: np.ndarray) -> np.ndarray:
        s, within = self.branching, [np.einsum("abi,abi->a", x, x)]
        for _ in range(self.depth):
            # Sums over the subtrees of the next level.
            x = np.add.reduce([x[..., i::s] for i in range(s)])
            within.append(np.einsum("abi,abi->a", x, x))
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
    def _displacements(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance, and number of ordered pairs, of every displacement of the transformed grid:
        arrays (size,).
        """
        steps, counts = [], []
        for n, size in zip(self.shape, self._sizes, strict=True):
            step = np.minimum(np.arange(size), size - np.arange(size))
            steps.append(step)
            counts.append(np.full(size, n) if self.periodic else np.maximum(n - step, 0))
        squares = np.add.reduce(np.meshgrid(*(step**2 for step in steps), indexing="ij"))
        return (
            np.rint(np.sqrt(squares)).ravel(),
            np.multiply.reduce(np.meshgrid(*counts, indexing="ij")).ravel(),
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Shape of the transforms; zeros keep the ends of an open grid apart."""
        return self.shape if self.periodic else tuple(2 * n - 1 for n in self.shape)

    @cached_property
    def values(self) -> np.ndarray:
        distance, count = self._displacements
        return np.unique(distance[count > 0])

    @cached_property
    def pairs(self) -> np.ndarray:
        return self._by_distance(self._displacements[1]).astype(np.int64)

    def products(self, x: np.ndarray) -> np.ndarray:
        from scipy.fft import irfftn, rfftn

        axes = tuple(range(2, 2 + len(self.shape)))
        power = np.square(
            np.abs(rfftn(x.reshape(*x.shape[:2], *self.shape), self._sizes, axes))
        ).sum(axis=1)
        # Of x_i x_j, for every displacement.
        sums = irfftn(power, self._sizes, tuple(axis - 1 for axis in axes))
        return np.array([self._by_distance(of_item.ravel()) for of_item in sums])

    def _by_distance(self, of_displacement: np.ndarray) -> np.ndarray:
        distance, count = self._displacements
        return np.bincount(
            np.searchsorted(self.values, distance[count > 0]), of_displacement[count > 0]
        )


@dataclass(frozen=True, eq=False)
class Matrix:
    """User-defined distances: symmetric (sites, sites), 0 on the diagonal and positive
    elsewhere. Equal values form a group.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        d = checked_array("distance", self.matrix)
        fits = d.ndim == 2 and d.shape[0] == d.shape[1] and d.dtype.kind in "iuf" and d.size
        expect(fits, f"distance: {d.dtype} of shape", d.shape, "numbers (sites, sites)")
        apart = ~np.eye(len(d), dtype=bool)
        fits = (
            np.isfinite(d).all()
            and np.array_equal(d, d.T)
            and not d[~apart].any()
            and (d[apart] > 0).all()
        )
        expect(
            fits,
            "distance",
            d,
            "a symmetric finite matrix with 0 on the diagonal and positive numbers elsewhere",
        )
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
        return np.array([np.bincount(self._group, (rows.T @ rows).ravel()) for rows in x])


class Covariances:
    """Covariances of the changes of sites over trajectories, for each of several originals, added
    up batch by batch.

    Memory does not depend on the number of trajectories: a mean for each site, and a sum for each
    distance.
    """

    def __init__(self, distance: Distance) -> None:
        self.distance = distance
        self.count = 0
        self._mean: Any = 0.0
        self._products: Any = 0.0

    def add(self, changed: Any) -> Covariances:
        """Add trajectories: `changed` (items, trajectories, sites), real or bool. Returns the
        accumulator itself.
        """
        levels, _ = checked_changes(changed)
        expect(
            len(levels) == 1,
            "changed: noise levels",
            len(levels),
            "one; an accumulator counts as one noise level",
        )
        changed = levels[0]
        batch = Covariances(self.distance)
        expected = (len(self._mean) if self.count else len(changed), self.distance.num_sites)
        fits = (len(changed), changed.shape[2]) == expected
        expect(
            fits,
            "shape of changed",
            changed.shape,
            f"{expected[0]} items and {expected[1]} sites, as before",
        )
        batch.count = changed.shape[1]
        items = max(1, _BLOCK // max(changed[0].size, 1))
        moments = [
            self._moments(np.asarray(changed[k : k + items], float))
            for k in range(0, len(changed), items)
        ]
        batch._mean, batch._products = (
            np.concatenate(pieces) for pieces in zip(*moments, strict=True)
        )
        return self.merge(batch)

    def merge(self, other: Covariances) -> Covariances:
        """Add the trajectories of another accumulator of the same originals. Returns the
        accumulator itself.
        """
        same = other.distance is self.distance or other.distance == self.distance
        expect(same, "distances of other", other.distance, f"those of {shown(self.distance)}")
        if self.count and other.count:
            expect(
                len(self._mean) == len(other._mean),
                "items of other",
                len(other._mean),
                f"the same {len(self._mean)} items",
            )
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
        mean = x.mean(axis=1)
        return mean, self.distance.products(x - mean[:, None])

    @property
    def mean(self) -> np.ndarray:
        """Mean change of every site: float64 (items, sites)."""
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """Mean covariance of the pairs at every distance, unbiased: float64 (items, distances);
        entry 0: variance of a site.
        """
        return self._products / (self._freedom * self.distance.pairs)

    @property
    def total(self) -> np.ndarray:
        """Sum of the covariances of all ordered pairs over the number of sites, float64
        (items,).
        """
        return self._products.sum(axis=1) / (self._freedom * self.distance.num_sites)

    @property
    def _freedom(self) -> int:
        expect(
            self.count > 1,
            "changed: trajectories",
            self.count,
            "at least 2 of each item, for a covariance",
        )
        return self.count - 1


def checked_changes(changed: Any, has_missing: bool = False) -> tuple[np.ndarray, Any]:
    """Changes (noise, items, trajectories, sites), and the noise levels, None if there is no axis
    of noise; else a ValueError.

    Dims that have these names may have any order. `has_missing`: whether U-turns and sites may be
    NaN.
    """
    dims = set(getattr(changed, "dims", ()))
    if {"item", "trajectory"} <= dims:
        changed = changed.transpose("noise", "item", "trajectory", ..., missing_dims="ignore")
    values, has_noise = checked_array("changed", changed), {"noise", "item", "trajectory"} <= dims
    fits = values.ndim == 3 + has_noise and values.size and values.dtype.kind in "biuf"
    where, dims_of = (
        f"changed: {values.dtype} of shape",
        "(items, trajectories, sites), or a DataArray with noise too",
    )
    expect(fits, where, values.shape, f"real numbers {dims_of}")
    if values.dtype.kind == "f":
        is_missing = np.isnan(values)
        fits = not (
            (np.abs(values) >= LARGEST).any()
            or (is_missing.all() if has_missing else is_missing.any())
        )
    expect(
        fits,
        "changed",
        changed,
        f"numbers below {LARGEST:g}; NaN only for a missing U-turn of an array",
    )
    expect(
        not has_missing or values.shape[-2] > 1,
        "changed: trajectories",
        values.shape[-2],
        "at least 2 of each item",
    )
    return (values, changed.noise.values) if has_noise else (values[None], None)
