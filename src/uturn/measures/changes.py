"""Correlated changes: sites of a datum that change together in a U-turn (arXiv:2410.13770);
definitions are in docs/structure.md.

C_ij is the covariance of the changes of two sites over the U-turns of one original, C(r) its mean
over originals and the ordered pairs at distance r. `covariances_of` turns what has been measured
(arrays, accumulators, runs) into one dataset; all other functions read that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.special import stdtr

from uturn.core.checks import expect
from uturn.measures.calibration import holm
from uturn.measures.covariances import (
    Changes,
    Covariances,
    Distance,
    Grid,
    Matrix,
    Tree,
    checked_changes,
    distance_between,
)
from uturn.measures.estimates import Estimate
from uturn.measures.readings import FEW, check_dims
from uturn.measures.replicates import Replicates, replicates

__all__ = [
    "Covariances",
    "Grid",
    "Matrix",
    "Tree",
    "correlations",
    "covariances_of",
    "effective_number",
    "susceptibility",
]

_ROUNDING = 1e-9
"""Rounding of covariances by Fourier transform, relative to the variance."""
_FAR_BELOW = 10
"""Standard errors below 0 from which on a negative C(r) means that pairs are anticorrelated, not
that they are absent."""

Measured = ArrayLike | xr.DataArray | Covariances | xr.Dataset
"""Changes of sites as an array, or their covariances as an accumulator or a run."""


def susceptibility(
    changed: Measured, confidence: float = 0.95, name: str = ""
) -> Estimate | xr.Dataset:
    """Number of sites that change together, `chi = sum_ij C_ij / sum_i C_ii` (arXiv:2410.13770).

    C_ij is the covariance of the changes of sites i and j over the trajectories of one original,
    unbiased. The sums run over all ordered pairs, i = j included, and over the originals: chi is a
    ratio of averages, not an average of ratios.

    `changed`: real or bool array (items, trajectories, sites), the change of every site in every
    U-turn, at least two trajectories of each item; a DataArray may have the dim noise, too. NaN
    where a U-turn is missing; a site that is NaN in all U-turns of an item does not exist there. Or
    `Covariances`, or a Dataset, the results of an experiment with the probe `changes`; `name`: that
    of the probe, if it has one.

    The interval (Student's t, n_eff - 1 degrees of freedom, symmetric in log chi) is over items, or
    over grammars if there are several; with noise, a Dataset has `chi`, `low`, `high`, `n_eff`. NaN
    if no change varies between trajectories; the ends are NaN if n_eff < 5, or if a single original
    makes the spread (`number_in_spread`). Where few originals make the spread, three times their
    number gives the degrees of freedom.

    Examples
    --------
    >>> import uturn as ut
    >>> coins = ut.random.uniforms(ut.random.keys(0, range(200)), 10 * 8).reshape(200, 10, 8) < 0.3
    >>> chi = susceptibility(coins)
    >>> chi.low < 1 < chi.high, round(susceptibility(coins[..., :1].repeat(8, axis=2)).value, 6)
    (True, 8.0)
    """
    # Two distances are enough for an array: the same site, and any other.
    readings = _readings(changed, lambda sites: Tree(sites, max(sites, 2)), name)
    parts = _parts(readings)
    chi = chi_of(parts, confidence)
    if _has_no_noise(readings):
        return Estimate(*chi[0].tolist())
    variables = {
        "chi": ("noise", chi[:, 0]),
        "low": ("noise", chi[:, 1]),
        "high": ("noise", chi[:, 2]),
        "n_eff": ("noise", effective_number(parts.isel(part=1))),
    }
    axes = {name: axis for name, axis in parts.coords.items() if axis.dims == ("noise",)}
    return xr.Dataset(variables, axes)


def correlations(
    changed: Measured,
    distance: str | ArrayLike | Distance = "index",
    *,
    branching: int | None = None,
    shape: Sequence[int] | None = None,
    confidence: float = 0.95,
    name: str = "",
    present: xr.DataArray | None = None,
) -> xr.Dataset:
    """Correlation C(r)/C(0) of the changes of two sites against their distance r
    (arXiv:2410.13770).

    `changed`, `name`: as in `susceptibility`. `distance`, for arrays only. "index": difference of
    the numbers of two sites. "tree": branching**k for two leaves whose lowest common ancestor is at
    tree level k, with `branching` children of a node. "grid": Euclidean distance on a grid in C
    order with `shape`, rounded to a whole number. A matrix (sites, sites) is symmetric, 0 on the
    diagonal and positive elsewhere; pairs with equal values are averaged. `present`: DataArray
    (item, distance), share of the pairs that an item has, for runs on data of different lengths
    (`present_pairs`).

    The Dataset (noise, distance) has `correlation`, 1 at distance 0, with the ends `low` and `high`
    of its interval (Student's t, n_eff(r) - 1 degrees of freedom; NaN if n_eff(r) < 5);
    `covariance` C(r) in the squared unit of the changes; `n_eff`, the number of items, or grammars,
    that decide C(0), and `n_contributing`, the number that decide C(r), n_eff(r). Arrays also give
    `pairs`, the number of ordered pairs: `chi = sum of pairs * correlation / sites`.
    """
    readings = covariances_of(changed, distance, branching=branching, shape=shape, name=name)
    covariance = readings["change_covariance"]
    curve = _Curve.of(covariance, presence(readings, present))
    with np.errstate(invalid="ignore"):  # NaN where nothing changed
        bounds = curve.replicates.interval(curve.normalised, confidence, curve.contributing)
    dims = ("noise", "distance")
    variables = {
        "correlation": (dims, bounds[..., 0]),
        "low": (dims, bounds[..., 1]),
        "high": (dims, bounds[..., 2]),
        "covariance": (dims, curve.of_present(curve.replicates.mean)),
        "n_contributing": (dims, curve.contributing),
        "n_eff": ("noise", curve.number),
    }
    axes = {name: axis for name, axis in covariance.coords.items() if set(axis.dims) <= set(dims)}
    found = xr.Dataset(variables, axes)
    if "pairs" in readings:
        found = found.assign(pairs=readings.pairs)
    return found.isel(noise=0, drop=True) if _has_no_noise(readings) else found


@dataclass(frozen=True)
class _Curve:
    """C(r)/C(0) at all noise levels as a function of mean readings, with their replicates."""

    replicates: Replicates
    of_present: OfPresent
    number: np.ndarray
    """Number of originals that decide C(0), n_eff (noise,)."""
    contributing: np.ndarray
    """Number of originals that decide C(r), n_eff(r) (noise, distance)."""

    def normalised(self, mean: np.ndarray) -> np.ndarray:
        c = self.of_present(mean)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
            return np.asarray(c / c[..., :1])

    @classmethod
    def of(cls, covariance: xr.DataArray, present: xr.DataArray | None) -> _Curve:
        variance = covariance.isel(distance=0, drop=True)
        number = effective_number(variance)
        joint = covariance.where(np.abs(covariance) > _ROUNDING * variance, 0)
        means, of_present = replicated(covariance, present)
        curve = cls(means, of_present, number, 2 * effective_number(joint))
        with np.errstate(invalid="ignore"):  # NaN where nothing changed
            error = curve.replicates.error(curve.normalised)
            below = curve.normalised(curve.replicates.mean) < -_FAR_BELOW * error
        contributing = np.where(below, effective_number(-joint), curve.contributing)
        return replace(curve, contributing=np.minimum(contributing, number[:, None]))


def correlated(
    covariance: xr.DataArray, present: xr.DataArray | None = None, false_alarms: float = 0.05
) -> np.ndarray:
    """Whether the changes of sites at some distance are correlated, bool (noise,); True where this
    cannot be tested.

    C(r) > 0 is tested at each noise and each r > 0, one-sided by Student's t with n_eff(r) - 1
    degrees of freedom, as far as n_eff(r) is 5 or more. A noise has the smallest p-value of its
    distances, times their number, and the noise levels are tested by the method of Holm (1979):
    with probability 1 - `false_alarms` or more, none is named at which all sites change
    independently. A single original (or grammar) cannot be tested. `covariance`, `present`: as in
    `correlation_length`.
    """
    curve = _Curve.of(covariance, present)
    if curve.replicates.groups == 1:
        return np.ones(covariance.sizes["noise"], bool)
    error = curve.replicates.error(curve.normalised)
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing changed, or nothing varies
        t = (curve.normalised(curve.replicates.mean) / error)[:, 1:]
    decide = np.minimum(curve.contributing, curve.replicates.groups)[:, 1:]
    is_tested = np.isfinite(t) & (decide >= FEW)
    freedom = np.maximum(decide - 1, 1)
    p = np.where(is_tested, stdtr(freedom, -np.where(is_tested, t, 0)), 1.0)
    tests = np.maximum(is_tested.sum(axis=1), 1)
    smallest = np.minimum(p.min(axis=1, initial=1) * tests, 1)
    return np.asarray(holm(smallest) <= false_alarms)


def covariances_of(
    changed: Measured,
    distance: str | ArrayLike | Distance = "index",
    *,
    branching: int | None = None,
    shape: Sequence[int] | None = None,
    name: str = "",
) -> xr.Dataset:
    """What all measures of this module read, from an array, an accumulator, or a run; arguments as
    in `correlations`.

    A Dataset of `change` (noise, item), the mean change of a site; `change_covariance` (noise,
    item, distance); `change_covariance_sum` (noise, item), the sum over all pairs over the number
    of sites; without a coordinate noise if `changed` has none. Of arrays, NaN where an item has
    fewer than two U-turns, and `present_pairs` (item, distance), the share of the pairs of sites
    that an item has. `pairs` (distance): number of ordered pairs.
    """
    if isinstance(changed, Covariances | xr.Dataset):
        is_alone = (str(distance), branching, shape) == ("index", None, None)
        way = "none beside an accumulator or a run; leave out distance, branching and shape"
        expect(is_alone, "distance", distance, way)

    def between(sites: int) -> Distance:
        return distance_between(sites, distance, branching, shape)

    return _readings(changed, between, name)


def _readings(changed: Measured, distance: Callable[[int], Distance], name: str) -> xr.Dataset:
    """`covariances_of`, with the distance of an array as a function of its number of sites."""
    if isinstance(changed, xr.Dataset):
        return _of_run(changed, name)
    if isinstance(changed, Covariances):
        return _of_accumulator(changed)
    changes = checked_changes(changed, has_missing=True)
    return _of_changes(changes, distance(changes.values.shape[3]))


def _of_accumulator(changed: Covariances) -> xr.Dataset:
    variables = {
        "change_covariance": (("noise", "item", "distance"), changed.covariance[None]),
        "change_covariance_sum": (("noise", "item"), changed.total[None]),
        "change": (("noise", "item"), changed.mean.mean(axis=1)[None]),
        "pairs": ("distance", changed.distance.pairs),
    }
    return xr.Dataset(variables, {"distance": changed.distance.values})


def _has_no_noise(readings: xr.Dataset) -> bool:
    return "noise" not in readings.coords and readings.sizes["noise"] == 1


def _of_run(ds: xr.Dataset, name: str) -> xr.Dataset:
    """The readings of a probe under the names of `covariances_of`, else a ValueError."""
    plain_names = {}
    for plain in ("change", "change_covariance", "change_covariance_sum"):
        variable = f"{name}_{plain}" if name else plain
        if variable in ds or plain == "change_covariance":
            plain_names[variable] = plain
    way = "no missing readings; finish the run, or leave out what is missing"
    for variable in plain_names:
        check_dims(variable, ds[variable], ("noise", "item"))
        is_missing = ds[variable].isnull()
        expect(not is_missing.any(), variable, ds[variable].values, way)
    # Those of `covariances_of` for an array.
    others = ("present_pairs", "pairs") if "present_pairs" in ds else ()
    readings = ds[[*plain_names, *others]].rename(plain_names)
    distances = [dim for dim in readings.dims if str(dim).endswith("_distance")]
    return readings.rename(dict.fromkeys(distances, "distance"))


def _of_changes(changes: Changes, distance: Distance) -> xr.Dataset:
    """`covariances_of` for an array."""
    values = changes.values
    present = np.ones(values.shape, bool)
    if values.dtype.kind == "f":
        present = ~np.isnan(values)
    exists = np.asarray(present.any(axis=(0, 2)))  # (items, sites)
    # A U-turn of an item counts if it has all the sites that the item has.
    is_as_expected = present | ~exists[:, None]
    has_all = np.asarray(is_as_expected.all(axis=3))
    has_any = np.asarray(exists.any(axis=1))
    is_whole = has_all & has_any[:, None]
    if not present.all():
        values = np.where(present, values, 0)
    counts = is_whole.sum(axis=2)
    change = np.full(counts.shape, np.nan)
    total = np.full(counts.shape, np.nan)
    covariance = np.full((*counts.shape, len(distance.values)), np.nan)
    for count in np.unique(counts[counts > 1]):  # trajectories of an item at a noise level
        noise, item = np.nonzero(counts == count)
        whole = values[noise, item][is_whole[noise, item]]
        moments = Covariances(distance).add(whole.reshape(len(item), count, -1))
        change[noise, item] = moments.mean.sum(axis=1) / exists[item].sum(axis=1)
        covariance[noise, item] = moments.covariance
        total[noise, item] = moments.total
    pairs = np.rint(distance.products(exists[:, None].astype(float)))
    variables = {
        "change": (("noise", "item"), change),
        "change_covariance": (("noise", "item", "distance"), covariance),
        "change_covariance_sum": (("noise", "item"), total),
        "present_pairs": (("item", "distance"), pairs / distance.pairs),
        "pairs": ("distance", distance.pairs),
    }
    return xr.Dataset(variables, {**changes.coordinates, "distance": distance.values})


def present_pairs(covariance: xr.DataArray) -> xr.DataArray:
    """Share of the pairs of sites at each distance that an item has, (item, distance), for items of
    different lengths.

    An item i of n_i out of N sites has the share p_i(r) = max(n_i - r, 0)/(N - r), and C(r) =
    mean_i c_i(r) / mean_i p_i(r) for its readings c_i(r). `covariance`: c_i(r) of items on a line,
    (noise, item, distance), with a coordinate `length` along item, and all distances 0 .. N - 1.
    """
    r = covariance.distance
    lengths = covariance["length"]
    share: xr.DataArray = (lengths - r).clip(0) / (r.size - r)
    return share


def presence(readings: xr.Dataset, present: xr.DataArray | None) -> xr.DataArray | None:
    """Share of the pairs that an item has: `present` if it is given, otherwise the share that is
    known for arrays. None if all items have all pairs.
    """
    if present is None and "present_pairs" in readings and (readings.present_pairs != 1).any():
        return readings["present_pairs"]
    return present


OfPresent = Callable[[np.ndarray], np.ndarray]
"""C(r), (noise, distance), as a function of mean readings."""


def replicated(
    covariance: xr.DataArray, present: xr.DataArray | None = None
) -> tuple[Replicates, OfPresent]:
    """Replicates of the mean readings, and the function that gives C(r) of their means."""
    if present is None:
        return replicates(covariance), lambda mean: mean
    both = xr.concat(xr.broadcast(covariance, present.where(covariance.notnull())), dim="part")

    def of_present(mean: np.ndarray) -> np.ndarray:
        # Distances at which no item has a pair.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(mean[:, 0] / mean[:, 1])

    return replicates(both), of_present


def effective_number(variance: xr.DataArray) -> np.ndarray:
    """Number of originals that decide a ratio of their covariances, `n_eff = (sum_g V_g)^2 / sum_g
    V_g^2`: array (noise, ..).

    `variance` (noise, item, ..): V, `change_covariance` at distance 0. Grammars count instead of
    items if there are several. Negative numbers, of covariances at other distances, count as 0.
    """
    variance = _of_groups(variance)
    by_noise = variance.transpose("noise", "item", ...).values.astype(float)
    values = np.nan_to_num(by_noise).clip(0)
    square = values.sum(axis=1) ** 2
    squares = (values**2).sum(axis=1)
    number = np.zeros(squares.shape)
    np.divide(square, squares, out=number, where=squares > 0)
    return number


def _of_groups(values: xr.DataArray) -> xr.DataArray:
    """Sums over the items of each grammar, along item, if there are several grammars."""
    if "grammar" in values.coords and len(np.unique(values.grammar)) > 1:
        return values.groupby("grammar").sum("item").rename(grammar="item")
    return values


def number_in_spread(parts: xr.DataArray) -> np.ndarray:
    """Number of originals (or grammars) that make the spread of chi, 0 if there is none: array
    (noise,); `parts`: `chi_parts`.

    With the sums T and V of an original, of covariances and of variances, and its deviation e = T -
    chi V, it is `(sum e^2)^2 / sum e^4`. Where sites change rarely, nearly all originals have one
    event and the same ratio T / V; the error of chi rests on the few others, although many
    originals have a variance.
    """
    total = parts.isel(part=0, drop=True)
    variance = parts.isel(part=1, drop=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        chi = total.sum("item") / variance.sum("item")
    squares = _of_groups(total - chi * variance) ** 2
    rounding = (_ROUNDING * abs(total).sum("item")) ** 2
    return effective_number(squares.where(squares > rounding, 0).reset_coords(drop=True))


def chi_parts(ds: xr.Dataset, name: str = "") -> xr.DataArray:
    """Two readings (dim `part`) whose means over items have the ratio chi: sum of covariances
    per site, and mean variance.
    """
    return _parts(_of_run(ds, name))


def _parts(readings: xr.Dataset) -> xr.DataArray:
    variance = readings["change_covariance"].isel(distance=0, drop=True)
    return xr.concat([readings["change_covariance_sum"], variance], dim="part")


def chi_of(parts: xr.DataArray, confidence: float = 0.95) -> np.ndarray:
    """chi and the ends of its interval, (noise, 3), from the readings of `chi_parts`."""
    means = replicates(parts)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        chi = means.mean[:, 0] / means.mean[:, 1]
    number = effective_number(parts.isel(part=1))
    half = means.half_width(log_chi, confidence, number, number_in_spread(parts))
    return np.stack([chi, chi * np.exp(-half), chi * np.exp(half)], axis=-1)


def log_chi(means: np.ndarray) -> np.ndarray:
    """log chi (noise,) of the means of `chi_parts` (noise, 2); NaN where chi is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        chi = means[:, 0] / means[:, 1]
        return np.asarray(np.log(np.where(chi > 0, chi, np.nan)))
