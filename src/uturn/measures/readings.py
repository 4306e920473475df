"""Readings of a run as arrays: their checks, their independent groups, sums of each group.

A measure takes readings as a DataArray with the dims noise and item, perhaps trajectory and clone,
and others. Items count equally, and missing readings (NaN) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from uturn.core.checks import expect

FEW = 5
"""Number of originals below which, if they decide a ratio, rare ones may be missing in the
sample: the ratio has no interval.
"""

WITHIN = ("item", "trajectory", "clone")
"""Dims over which a curve is a mean."""


def check_dims(
    name: str, values: object, needed: Sequence[str], optional: Sequence[str] | None = None
) -> None:
    """ValueError unless `values` is a DataArray of numbers with the dims `needed`, and no others
    than `optional` (None: any).
    """
    if isinstance(values, xr.DataArray):
        kind = f"{values.dtype} with sizes {dict(values.sizes)}"
        are_numbers = values.size and values.dtype.kind in "biufO"
        dims = set(values.dims) if are_numbers else set()
    else:
        kind = type(values).__name__
        dims = set()
    has_needed = set(needed) <= dims
    has_others = optional is not None and not dims <= {*needed, *optional}
    expected = f"a DataArray of numbers with dims {', '.join(needed)}, such as ds.unchanged"
    expect(has_needed and not has_others, f"type of {name}", kind, expected)


def own_dims(values: xr.DataArray) -> list[str]:
    """The dims of a variable along which it has several readings, such as "tree_level"."""
    return [str(dim) for dim in values.dims if dim not in ("noise", *WITHIN)]


def draw_dims(values: xr.DataArray) -> list[str]:
    """The dims of a variable that number the U-turns of one item: trajectory, clone, or both."""
    return [dim for dim in WITHIN[1:] if dim in values.dims]


def complete_items(ds: xr.Dataset, names: Iterable[str]) -> np.ndarray:
    """Which items have finite readings of all the variables `names`, bool (items,)."""
    complete = []
    for name in names:
        finite = np.isfinite(ds[name].transpose("item", ...).values)
        complete.append(finite.all(axis=tuple(range(1, finite.ndim))))
    return np.asarray(np.logical_and.reduce(complete))


def grammar_means(values: xr.DataArray) -> xr.DataArray:
    """Mean over the items, trajectories and clones of every grammar; the dim `grammar` replaces
    theirs.
    """
    draws = draw_dims(values)
    if draws:
        values = values.mean(draws, dtype=float)
    return values.groupby("grammar").mean("item")


def independent_groups(values: xr.DataArray) -> np.ndarray:
    """Index of the independent group of every item, int64 (items,): of its grammar if there are
    several, else of the item.
    """
    grammar = values.coords.get("grammar")
    if grammar is not None and grammar.dims == ("item",) and len(np.unique(grammar)) > 1:
        return np.unique(grammar, return_inverse=True)[1]
    return np.arange(values.sizes["item"])


@dataclass(frozen=True)
class Readings:
    """Readings of one variable as an array."""

    values: np.ndarray
    """float64 (item, trajectory, clone, noise, ..), with the axes of trajectory and clone as far as
    they exist."""
    axes: tuple[int, ...]
    """The axes of items, trajectories and clones."""
    group: np.ndarray
    """Index of the independent group of every item, int64 (items,)."""

    @classmethod
    def of(cls, values: xr.DataArray) -> Readings:
        """The readings of a variable; ValueError unless it has the dims noise and item."""
        check_dims("values", values, ("noise", "item"))
        within = [dim for dim in WITHIN if dim in values.dims]
        others = dict.fromkeys(dim for dim in ("noise", *values.dims) if dim not in within)
        array = values.transpose(*within, *others).values.astype(float)
        return cls(array, tuple(range(len(within))), independent_groups(values))

    @property
    def draw_axes(self) -> tuple[int, ...]:
        """The axes of trajectories and clones."""
        return self.axes[1:]

    @property
    def draws(self) -> int:
        """Number of readings of one item at one noise level, with the missing ones."""
        return math.prod(self.values.shape[axis] for axis in self.draw_axes)

    @cached_property
    def present(self) -> np.ndarray:
        """Number of readings that are not missing, (items, noise, ..)."""
        return np.asarray((~np.isnan(self.values)).sum(axis=self.draw_axes))

    @cached_property
    def are_tosses(self) -> np.ndarray:
        """Whether all readings are 0, 1 or missing, bool (noise, ..)."""
        is_toss = (self.values == 0) | (self.values == 1) | np.isnan(self.values)
        return np.asarray(is_toss.all(axis=self.axes))

    @cached_property
    def are_equal(self) -> np.ndarray:
        """Whether all readings that are not missing are equal, bool (noise, ..)."""
        is_missing = np.isnan(self.values)
        smallest = np.where(is_missing, np.inf, self.values).min(self.axes)
        largest = np.where(is_missing, -np.inf, self.values).max(self.axes)
        return np.asarray(smallest == largest)

    def sums(self, group: np.ndarray | None = None) -> GroupSums:
        """Sums and numbers of readings in each group of items, by default the independent groups.

        An item that lacks some of its readings enters with its mean, as if it had all. An item
        without any is left out. `group`: index of the group of every item, int64 (items,).
        """
        group = self.group if group is None else group
        item_sums = np.nansum(self.values, axis=self.draw_axes)
        sums = item_sums * (self.draws / np.maximum(self.present, 1))
        counts = np.where(self.present > 0, self.draws, 0)
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], np.arange(group.max() + 1))
        return GroupSums(
            np.add.reduceat(sums[order], first, axis=0),
            np.add.reduceat(counts[order], first, axis=0),
        )


@dataclass(frozen=True)
class GroupSums:
    """Sums of readings, group by group."""

    sums: np.ndarray
    """float64 (groups, noise, ..)."""
    counts: np.ndarray
    """Number of readings in each sum, int64 (groups, noise, ..)."""

    @property
    def sum(self) -> np.ndarray:
        """Sum over all groups, (noise, ..)."""
        return np.asarray(self.sums.sum(axis=0))

    @property
    def count(self) -> np.ndarray:
        """Number of readings in all groups, (noise, ..)."""
        return np.asarray(self.counts.sum(axis=0))


def even_number(sizes: np.ndarray) -> np.ndarray:
    """Number of groups of equal size that give a mean the variance of groups of these sizes,
    `(sum w)^2 / sum w^2`. `sizes`: w, (groups, ..).
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(sizes.sum(axis=0) ** 2 / (sizes**2).sum(axis=0))
