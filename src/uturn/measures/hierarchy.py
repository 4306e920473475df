"""Two indices of a hierarchy in U-turns; docs/structure.md says how they are interpreted.

The *hierarchy index* compares the curves of two levels: is the class lost abruptly, and better
preserved at small noise? The *nesting index* says at how many levels sites change together.

The nesting index assumes that the noise of different sites is independent given the original. Where
noisy data are known, the same functions check this on the changes from originals to noisy data,
which then have the index 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import checked_integer, checked_numbers, expect
from uturn.core.data import Originals, UTurns
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.random import Streams
from uturn.core.u_turns import u_turns
from uturn.measures.changes import covariances_of
from uturn.measures.covariances import Tree
from uturn.measures.curves import crossing, nonincreasing, rescaled
from uturn.measures.estimates import ESTIMATE, Estimate
from uturn.measures.readings import WITHIN, check_dims
from uturn.measures.replicates import estimate, replicates

_DIMS = ("noise", "item", "trajectory", "site")
_TIE = 1e-12
"""Difference up to which areas are equal: each is a sum of some hundred products in [0, 1]."""


def hierarchy_index(
    high_level: xr.DataArray,
    low_level: xr.DataArray,
    floors: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Hierarchy index in [0, 1]: strength of two signs of a hierarchy, an abrupt loss of the class
    and an inversion of levels.

    Both curves are rescaled, r = (c - floor)/(1 - floor), and the high level r_H is plotted against
    the low level r_L. As noise grows, the curve runs from (1, 1) to (0, 0). Let G be the signed
    area between curve and diagonal, from (1, 1) on: `G = int (r_H - r_L) (-dr_L)`. With

        A = largest value of G, at the inversion        (class better preserved, small noise)
        B = A - G at the end                            (low level better preserved, large noise)
        W = fall of r_L while r_H falls from 3/4 to 1/4 (width of the class transition)

    the index is `8 sqrt(A B) max(0, 1 - 2 W)`, and 0 if A or B is not positive: 1 for a class lost
    in one step at r_L = 1/2. For interpretation and limits, see docs/structure.md.

    Two steps prevent fluctuations of the curves from counting as an inversion. First, both curves
    are replaced by the closest non-increasing ones, since more noise never preserves more. Second,
    the items are split into two halves (alternating within a grammar): the largest G is located on
    one half, and A and B are measured there on the other half, averaged over both ways.

    `high_level`, `low_level` (noise, item, perhaps trajectory and clone): readings of the same
    items at the same increasing noise levels, 1 for unchanged data, such as `belief` of the root
    and of the leaves, or `same_class` and the similarity of the first layer. The low level may also
    be a known curve (noise,). Zero noise (both 1) and infinite noise (both at their floors) are
    added. `floors`: (high, low), values for independent data, below 1; by default those at the last
    noise level, which must then be nearly infinite. The interval is as in `estimate`, clipped to
    [0, 1]. NaN if the high level is not lost: r_H > 1/4 at the last noise.
    """
    _check_levels(high_level, low_level, floors)
    both = xr.concat(xr.broadcast(_bare(high_level), _bare(low_level)), dim="curve")
    high_floor, low_floor = (None, None) if floors is None else floors

    def index(means: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            high = rescaled(means[..., 0], high_floor)
            low = rescaled(means[..., 1], low_floor)
        r = np.stack([high, low], axis=-1)
        if not np.isfinite(r).all():  # a level that stays at 1 has the floor 1
            return float("nan")
        r = nonincreasing(r).clip(0, 1)
        return _index(np.concatenate([np.ones_like(r[:1]), r, np.zeros_like(r[:1])]))

    bounds = estimate(_halves(both), index, confidence)
    return Estimate(*np.clip(bounds, 0, 1).tolist())


def _bare(values: xr.DataArray) -> xr.DataArray:
    """Readings without the coordinates that the index does not use."""
    used = ("noise", "grammar", *WITHIN)
    return values.drop_vars([name for name in values.coords if name not in used])


def _check_levels(
    high_level: xr.DataArray, low_level: xr.DataArray, floors: tuple[float, float] | None
) -> None:
    """ValueError unless a hierarchy index can be computed from the levels and floors."""
    check_dims("high_level", high_level, ("noise", "item"), WITHIN)
    _check_complete("high_level", high_level)
    check_dims("low_level", low_level, ("noise",), WITHIN)
    _check_complete("low_level", low_level)
    noise = high_level.noise.values
    rises = len(noise) > 1 and (np.diff(noise) > 0).all()
    expect(rises, "noise of high_level", noise, "at least two increasing levels")
    for dim in map(str, low_level.dims):
        own = low_level[dim].values
        same = dim in high_level.dims and np.array_equal(high_level[dim].values, own)
        expected = "those of high_level, of the same U-turns"
        expect(same, f"low_level: values of {dim!r}", own, expected)
    if floors is not None:
        are_two = checked_numbers("floors", floors).shape == (2,)
        are_below_one = np.asarray(floors) < 1
        expected = "two numbers below 1, of the high and of the low level"
        expect(are_two and are_below_one.all(), "floors", floors, expected)


def _check_complete(name: str, values: xr.DataArray) -> None:
    """ValueError if readings are missing or infinite."""
    is_complete = np.isfinite(values.values.astype(float)).all()
    way = "no missing or infinite readings; finish the run, or drop what is missing"
    expect(is_complete, name, values.values, way)


def _index(r: np.ndarray) -> float:
    """Hierarchy index of rescaled curves (noise, half, 2), high level first on the last axis."""
    high = r[..., 0]
    low = r[..., 1]
    excess = high - low
    steps = 0.5 * (excess[1:] + excess[:-1]) * (low[:-1] - low[1:])
    area = np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)])
    # The first of equal maxima: curves that coincide, as on the diagonal, have sums that differ by
    # rounding alone.
    first, second = (area > area.max(axis=0) - _TIE).argmax(axis=0)
    before = 0.5 * (area[first, 1] + area[second, 0])
    after = before - 0.5 * (area[-1, 0] + area[-1, 1])
    high = high.mean(axis=1)
    low = low.mean(axis=1)
    if high[-2] > 0.25:  # the last measured level
        return float("nan")
    level = np.arange(len(high))
    ends = [crossing(level, high, height, first=True) for height in (0.75, 0.25)]
    start, end = np.interp(ends, level, low)
    narrow = max(0.0, 1 - 2 * abs(start - end))
    product = max(before, 0.0) * max(after, 0.0)
    return float(8 * float(np.sqrt(product)) * narrow)


def _halves(values: xr.DataArray) -> xr.DataArray:
    """Items grouped in pairs of neighbours of the same grammar; the dim `half` numbers the items
    of a pair.
    """
    grammar = np.zeros(values.sizes["item"], int)
    if "grammar" in values.coords:
        grammar = np.asarray(values.coords["grammar"].values)
    pairs = []
    for number in np.unique(grammar):
        group = np.flatnonzero(grammar == number)
        number_of_pairs = len(group) // 2
        pairs.append(group[: 2 * number_of_pairs].reshape(-1, 2))
    index = np.concatenate(pairs)
    expected = "at least two (of one grammar), to be split in halves"
    expect(len(index), "items", values.sizes["item"], expected)
    halves = [values.isel(item=index[:, k]).drop_vars("item", errors="ignore") for k in (0, 1)]
    joined = xr.concat(halves, dim="half", coords="minimal", compat="override")
    return joined.transpose("noise", "item", ..., "half", "curve")


class Nesting(NamedTuple):
    """The nesting index, not clipped, and its parts: D_k of every site, and X_k over the mean
    variance of a site, (sites, K).
    """

    value: float
    nested: np.ndarray
    correlation: np.ndarray


def nesting_index(
    changed: xr.DataArray | xr.Dataset,
    branching: int | None = None,
    confidence: float = 0.95,
    name: str = "",
) -> Estimate:
    """Nesting index: the sum of the nested correlations of all levels without the strongest,
    averaged over sites.

    `H = mean_i [sum_k D_k(i) - max_k D_k(i)]`, clipped at 0, where D_k says how much more two
    sibling blocks of `s**(k-1)` sites change together than two blocks that meet one level higher.
    It is 0 if changes are independent, or are shared at one level only. For definition,
    interpretation and limits, see docs/structure.md.

    `changed`: DataArray (noise, item, trajectory, site), the change of every site in every U-turn,
    such as `site_changes` returns: 1 or 0 for symbols, or a squared difference; at least two
    trajectories of each item. The noise levels increase, and at the last one reconstructions are
    independent of the originals. Block b of level k holds the sites `b s**k .. (b + 1) s**k - 1`,
    with s = `branching`. Or a Dataset: the results of the probe `changes` on strings (`name`: that
    of the probe, if it has one), or `change` (noise, item) and `change_covariance` (noise, item,
    distance) at the distances `0, s, s**2, ..`. Returns an Estimate in 0 .. K - 1, with the
    interval of `uturn.statistics.estimate`.
    """
    moments = _Moments.of(changed, branching, name)

    def index(means: np.ndarray) -> float:
        return moments.nesting(means).value

    bounds = replicates(moments.values).interval(index, confidence)
    return Estimate(*np.maximum(bounds, 0).tolist())


def nested_correlations(
    changed: xr.DataArray | xr.Dataset,
    branching: int | None = None,
    confidence: float = 0.95,
    name: str = "",
) -> xr.Dataset:
    """Nested correlations of every level, averaged over sites; arguments as in `nesting_index`.

    A Dataset (distance, estimate) at the distances s**k for k = 1 .. K, with `nested`, D_k, and
    `correlation`, X_k over the variance of a site: the excess correlation of two sites whose
    smallest common block is of level k.
    """
    moments = _Moments.of(changed, branching, name)

    def levels(means: np.ndarray) -> np.ndarray:
        nesting = moments.nesting(means)
        return np.asarray(np.stack([nesting.nested, nesting.correlation]).mean(axis=1))

    nested, correlation = replicates(moments.values).interval(levels, confidence)
    dims = ("distance", "estimate")
    axes = {"distance": moments.values.moment.values[2:], "estimate": ESTIMATE}
    return xr.Dataset({"nested": (dims, nested), "correlation": (dims, correlation)}, axes)


def site_changes(experiment: Experiment) -> xr.DataArray:
    """Changes of all sites in the U-turns of an experiment on strings or vectors, in memory, with
    the random streams of the run.

    DataArray float64 (noise, item, trajectory, site), with the coordinates of the source along
    `item`: for strings 1 where a leaf has another symbol, else 0; for vectors the squared
    difference of a component.
    """
    parts = checked_experiment(experiment).parts
    expect(experiment.clones == 1, "clones", experiment.clones, "one clone")

    items = np.arange(experiment.items)
    trajectories = range(experiment.trajectories)

    def blocks() -> Iterator[tuple[tuple[int, int], Originals, float, Streams]]:
        for k, noise in enumerate(experiment.noise):
            originals = parts.source.blocks(items, experiment.seed, experiment.items)
            for b, block in enumerate(originals):
                streams = Streams(experiment.seed, block.items, noise, trajectories)
                yield (k, b), block, noise, streams

    turns = u_turns(blocks(), parts.corruption, parts.backward)
    pieces = {key: _changes_of(turned) for key, turned in turns}
    levels = []
    for k in range(len(experiment.noise)):
        of_level = [pieces[key] for key in sorted(pieces) if key[0] == k]
        levels.append(np.concatenate(of_level))
    coords: dict[Hashable, object] = {"noise": experiment.noise}
    for name, values in parts.source.coordinates(experiment.seed, experiment.items).items():
        coords[name] = ("item", values)
    return xr.DataArray(np.array(levels, float), dims=_DIMS, coords=coords)


def _changes_of(turned: UTurns) -> np.ndarray:
    """Change of every site in the U-turns of a block, (items, trajectories, sites)."""
    shape = turned.originals.data.shape
    expect(
        len(shape) == 2,
        "shape of the originals",
        shape,
        "(items, sites), as of strings or vectors; compute other changes from `uturn.u_turn`",
    )
    before = turned.originals.data[:, None]
    after = turned.originals.data_of(turned.reconstructions)
    is_of_symbols = before.dtype.kind in "biu"
    return np.asarray(after != before) if is_of_symbols else np.square(after - before)


@dataclass(frozen=True)
class _Moments:
    """Moments of the changes of sites, from which mean curves give the nesting index."""

    values: xr.DataArray
    """Mean change, and C_0 .. C_K, of every site of every item, (noise, item, site, moment). A
    dataset of distances has one site that stands for all."""
    branching: int
    """s, the number of blocks of one level in a block of the next."""

    @classmethod
    def of(cls, changed: xr.DataArray | xr.Dataset, branching: int | None, name: str) -> _Moments:
        """The moments of changes; ValueError unless they have a nesting index."""
        if isinstance(changed, xr.Dataset):
            moments = cls._of_distances(changed, branching, name)
        else:
            moments = cls(_of_sites(changed, branching), int(branching or 0))
        values = moments.values
        _check_complete("changed", values)
        noise = values.noise.values
        rises = noise.dtype.kind in "iuf" and len(noise) > 1 and (np.diff(noise) > 0).all()
        expected = "at least two increasing levels, the last one without signal"
        expect(rises, "noise", noise.tolist(), expected)
        has_variance = (values.sel(moment=0) > 0).any()
        means = values.sel(moment=-1)
        has_change = means.isel(noise=-1).mean() > 0
        expected = "changes that vary between trajectories, and are not 0 at the last noise level"
        expect(has_variance and has_change, "changed", changed, expected)
        return moments

    @classmethod
    def _of_distances(cls, ds: xr.Dataset, branching: int | None, name: str) -> _Moments:
        readings = covariances_of(ds, name=name)
        covariance = readings["change_covariance"]
        distances = covariance.distance.values
        s = round(distances[1]) if len(distances) > 1 else 0
        sizes = [0, *(s**k for k in range(1, len(distances)))]
        is_nested = s > 1 and np.array_equal(distances, sizes)
        expected = "0, s, s**2, .., the sizes of nested blocks"
        expect(is_nested, "distance", distances.tolist(), expected)
        fits = branching in (None, s)
        expect(fits, "branching", branching, f"{s}, as the distances have, or none")
        change = readings["change"].expand_dims(distance=[-1])
        moments = xr.concat([change, covariance], dim="distance").rename(distance="moment")
        moments = moments.expand_dims("site").transpose("noise", "item", "site", "moment")
        return cls(moments, s)

    def nesting(self, means: np.ndarray) -> Nesting:
        """The nesting of means over items, (noise, sites, moments)."""
        return nesting(means[..., 0].mean(axis=1), means[..., 1:], self.branching)


def _of_sites(changed: xr.DataArray, branching: int | None) -> xr.DataArray:
    """Mean change, and C_0 .. C_K, of every site: (noise, item, site, moment)."""
    check_dims("changed", changed, _DIMS, ())
    s = checked_integer("branching", branching, 2)
    K = Tree(changed.sizes["site"], s).depth
    expect(
        changed.sizes["trajectory"] > 1 and K > 0,
        "changed: sizes",
        dict(changed.sizes),
        f"at least 2 trajectories, and at least {s} sites",
    )
    x = changed.transpose(*_DIMS).values.astype(float)
    mean = x.mean(axis=2)
    x = x - mean[:, :, None]
    # Sums of the covariances of a site with the sites of its block of every level.
    shared = [np.zeros_like(mean)]
    sums = x
    for k in range(K + 1):
        blocks = x.reshape(*sums.shape, s**k)
        products = np.einsum("nitbj,nitb->nibj", blocks, sums)
        shared.append(products.reshape(mean.shape) / (x.shape[2] - 1))
        if k < K:
            sums = sums.reshape(*sums.shape[:3], -1, s).sum(axis=-1)
    # Sites whose smallest common block with a site is of level k.
    others = np.diff(s ** np.arange(K + 1), prepend=0)
    covariance = np.diff(shared, axis=0).transpose(1, 2, 3, 0) / others
    moments = np.concatenate([mean[..., None], covariance], axis=-1)
    coords: dict[Hashable, object] = {}
    for name, values in changed.coords.items():
        if set(values.dims) <= {"noise", "item"}:
            coords[name] = values
    coords["moment"] = [-1, 0, *(s**k for k in range(1, K + 1))]
    return xr.DataArray(moments, dims=("noise", "item", "site", "moment"), coords=coords)


def nesting(change: ArrayLike, covariance: ArrayLike, branching: int) -> Nesting:
    """Nested correlations and the nesting index of mean curves, measured or from a theory.

    `change` (noise,): mean change, whose last value is that of independent data. `covariance`
    (noise, sites, K + 1): C_0 .. C_K of every site, or of one site that stands for all, at the same
    noise levels.

    >>> import uturn as ut
    >>> epsilon, theory = np.linspace(0, 1, 101)[1:], ut.theory.MeanField(vocab_size=16, multiplicity=4, branching=2)
    >>> changed = 1 - theory.curves(epsilon, depth=4).marginals[:, 0]
    >>> covariance = theory.pair_correlations(epsilon, depth=4)[:, None] / 4  # of 0 and 1 instead of -1 and 1
    >>> round(nesting(changed, covariance, branching=2).value, 3)
    0.343
    """
    mean = np.asarray(change, float)
    C = np.asarray(covariance, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        remaining = nonincreasing(1 - mean / mean[-1])
        lost = 1 - remaining.clip(0, 1)
        steps = np.r_[0, lost, 1]
        weight = (steps[2:] - steps[:-2]) / 2  # int .. da by trapezoids, from 0 without noise
        excess = np.tensordot(weight, C - (lost**2)[:, None, None] * C[-1], 1)[:, 1:]
        total = weight @ C.mean(axis=1)
        size = branching ** np.arange(C.shape[2])
        variance = np.cumsum(np.diff(size, prepend=0) * total)  # B_k
        nested = -np.diff(excess, axis=1, append=0) * size[:-1] / variance[:-1]
    value = float((nested.sum(axis=1) - nested.max(axis=1)).mean())
    return Nesting(value, nested, excess / total[0])
