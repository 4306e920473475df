"""Correlated changes: sites of a datum that change together in a U-turn (arXiv:2410.13770);
definitions are in docs/structure.md.

C_ij is the covariance of the changes of two sites over the U-turns of one original, C(r) its mean
over originals and the ordered pairs at distance r. `covariances_of` turns what has been measured
(arrays, accumulators, runs) into one dataset; all other functions read that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtr

from uturn.core.checks import expect
from uturn.core.messages import shown
from uturn.measures.calibration import holm
from uturn.measures.covariances import Covariances, Distance, Grid, Matrix, Tree, checked_changes
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

_ROUNDING = 1e-9  # of covariances by Fourier transform, relative to the variance
# Standard errors below 0 from which on a negative C(r) is that of pairs, not of their absence.
_FAR_BELOW = 10


def susceptibility(changed: Any, confidence: float = 0.95, name: str = "") -> Estimate | xr.Dataset:
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
    curves = dict(zip(("chi", "low", "high"), chi.T, strict=True)) | {
        "n_eff": effective_number(parts.isel(part=1))
    }
    axes = {
        key: coordinate for key, coordinate in parts.coords.items() if coordinate.dims == ("noise",)
    }
    return xr.Dataset({key: ("noise", values) for key, values in curves.items()}, coords=axes)


def correlations(
    changed: Any,
    distance: Any = "index",
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
    that decide, and `n_contributing` that of each distance, n_eff(r). Of arrays also `pairs`, the
    number of ordered pairs: `chi = sum of pairs * correlation / sites`.
    """
    readings = covariances_of(changed, distance, branching=branching, shape=shape, name=name)
    covariance = readings["change_covariance"]
    curve = _Curve.of(covariance, presence(readings, present))
    with np.errstate(invalid="ignore"):  # NaN where nothing changed
        bounds = curve.replicates.interval(curve.normalised, confidence, curve.contributing)
    dims = ("noise", "distance")
    axes = {
        key: coordinate
        for key, coordinate in covariance.coords.items()
        if set(coordinate.dims) <= set(dims)
    }
    curves = dict(zip(("correlation", "low", "high"), np.moveaxis(bounds, -1, 0), strict=True))
    curves |= {
        "covariance": curve.of_present(curve.replicates.mean),
        "n_contributing": curve.contributing,
    }
    found = xr.Dataset(
        {
            **{key: (dims, values) for key, values in curves.items()},
            "n_eff": ("noise", curve.number),
        },
        coords=axes,
    )
    found = found.assign({"pairs": readings.pairs} if "pairs" in readings else {})
    return found.isel(noise=0, drop=True) if _has_no_noise(readings) else found


@dataclass(frozen=True)
class _Curve:
    """C(r)/C(0) at all noise levels as a function of mean readings, with their replicates."""

    replicates: Replicates
    of_present: Callable[[np.ndarray], np.ndarray]
    number: np.ndarray
    """Number of originals that decide C(0), n_eff (noise,)."""
    contributing: np.ndarray
    """Number of originals that decide C(r), n_eff(r) (noise, distance)."""

    def normalised(self, mean: np.ndarray) -> np.ndarray:
        c = self.of_present(mean)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
            return c / c[..., :1]

    @classmethod
    def of(cls, covariance: xr.DataArray, present: xr.DataArray | None) -> _Curve:
        variance = covariance.isel(distance=0, drop=True)
        number = effective_number(variance)
        joint = covariance.where(np.abs(covariance) > _ROUNDING * variance, 0)
        curve = cls(*replicated(covariance, present), number, 2 * effective_number(joint))
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
    # 0/0 where nothing changed, or nothing varies.
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (curve.normalised(curve.replicates.mean) / curve.replicates.error(curve.normalised))[
            :, 1:
        ]
    decide = np.minimum(curve.contributing, curve.replicates.groups)[:, 1:]
    tested = np.isfinite(t) & (decide >= FEW)
    p = np.where(tested, stdtr(np.maximum(decide - 1, 1), -np.where(tested, t, 0)), 1.0)
    smallest = np.minimum(p.min(axis=1, initial=1) * np.maximum(tested.sum(axis=1), 1), 1)
    return holm(smallest) <= false_alarms


def covariances_of(
    changed: Any,
    distance: Any = "index",
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
        expect(
            is_alone,
            "distance",
            distance,
            "none beside an accumulator or a run; leave out distance, branching and shape",
        )
    return _readings(
        changed, lambda sites: _distance_between(sites, distance, branching, shape), name
    )


def _readings(changed: Any, distance: Callable[[int], Distance], name: str) -> xr.Dataset:
    """`covariances_of`, with the distance of an array as a function of its number of sites."""
    if isinstance(changed, xr.Dataset):
        return _of_run(changed, name)
    if isinstance(changed, Covariances):
        variables: dict[str, Any] = {
            "change_covariance": (("noise", "item", "distance"), changed.covariance[None]),
            "change_covariance_sum": (("noise", "item"), changed.total[None]),
            "change": (("noise", "item"), changed.mean.mean(axis=1)[None]),
            "pairs": ("distance", changed.distance.pairs),
        }
        return xr.Dataset(variables, {"distance": changed.distance.values})
    values, noise = checked_changes(changed, has_missing=True)
    return _covariances(values, noise, distance(values.shape[3]), changed)


def _has_no_noise(readings: xr.Dataset) -> bool:
    return "noise" not in readings.coords and readings.sizes["noise"] == 1


def _of_run(ds: xr.Dataset, name: str) -> xr.Dataset:
    """The readings of a probe under the names of `covariances_of`, else a ValueError."""
    keys = {
        f"{name}_{key}" if name else key: key
        for key in ("change", "change_covariance", "change_covariance_sum")
    }
    keys = {key: plain for key, plain in keys.items() if key in ds or plain == "change_covariance"}
    whole = "no missing readings; finish the run, or leave out what is missing"
    for key in keys:
        check_dims(key, ds[key], ("noise", "item"))
        expect(not ds[key].isnull().any(), key, ds[key].values, whole)
    # Of `covariances_of` of an array.
    own = ("present_pairs", "pairs") if "present_pairs" in ds else ()
    readings = ds[[*keys, *own]].rename(keys)
    return readings.rename(
        {dim: "distance" for dim in readings.dims if str(dim).endswith("_distance")}
    )


def _covariances(values: np.ndarray, noise: Any, distance: Distance, changed: Any) -> xr.Dataset:
    """`covariances_of` for checked changes; `changed` has the coordinates of the items."""
    present: np.ndarray = (
        ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    )
    exists: Any = present.any(axis=(0, 2))  # (items, sites)
    whole = (present | ~exists[:, None]).all(axis=3) & exists.any(axis=1)[:, None]
    values, counts = (
        np.where(present, values, 0) if not present.all() else values,
        whole.sum(axis=2),
    )
    change, total = np.full((2, *counts.shape), np.nan)
    covariance = np.full((*counts.shape, len(distance.values)), np.nan)
    for count in np.unique(counts[counts > 1]):  # trajectories of an item at a noise level
        at = np.nonzero(counts == count)
        of = Covariances(distance).add(values[at][whole[at]].reshape(len(at[0]), count, -1))
        change[at] = of.mean.sum(axis=1) / exists[at[1]].sum(axis=1)
        covariance[at], total[at] = of.covariance, of.total
    pairs = np.rint(distance.products(exists[:, None].astype(float))) / distance.pairs
    along = {
        name: of.variable
        for name, of in getattr(changed, "coords", {}).items()
        if of.dims in (("noise",), ("item",))
    }
    return xr.Dataset(
        {
            "change": (("noise", "item"), change),
            "change_covariance": (("noise", "item", "distance"), covariance),
            "change_covariance_sum": (("noise", "item"), total),
            "present_pairs": (("item", "distance"), pairs),
            "pairs": ("distance", distance.pairs),
        },
        coords=along | {"distance": distance.values} | ({} if noise is None else {"noise": noise}),
    )


def _distance_between(sites: int, distance: Any, branching: Any, shape: Any) -> Distance:
    """The distances between sites, from a word or a matrix; arguments as in `correlations`."""
    word = distance if isinstance(distance, str) else None
    for option, value, needed_by in (("branching", branching, "tree"), ("shape", shape, "grid")):
        fits, rule = (
            (value is not None) == (word == needed_by),
            f"distance = {needed_by!r} needs it, no other has it",
        )
        expect(fits, f"distance = {shown(distance)}, {option}", value, rule)
    expect(
        word in (None, "index", "tree", "grid"),
        "distance",
        distance,
        "'index', 'tree', 'grid', or a matrix (sites, sites)",
    )
    between: Distance
    if word is None:
        between = (
            distance
            if hasattr(distance, "products") and not isinstance(distance, type)
            else Matrix(distance)
        )
    else:
        between = (
            Tree(sites, branching) if word == "tree" else Grid((sites,) if shape is None else shape)
        )
    expect(
        between.num_sites == sites,
        "sites of the distance",
        between.num_sites,
        f"{sites}, those of changed",
    )
    return between


def present_pairs(covariance: xr.DataArray) -> xr.DataArray:
    """Share of the pairs of sites at each distance that an item has, (item, distance), for items of
    different lengths.

    An item i of n_i out of N sites has the share p_i(r) = max(n_i - r, 0)/(N - r), and C(r) =
    mean_i c_i(r) / mean_i p_i(r) for its readings c_i(r). `covariance`: c_i(r) of items on a line,
    (noise, item, distance), with a coordinate `length` along item, and all distances 0 .. N - 1.
    """
    r, n = covariance.distance, covariance["length"]
    return (n - r).clip(0) / (r.size - r)


def presence(readings: xr.Dataset, present: xr.DataArray | None) -> xr.DataArray | None:
    """Share of the pairs that an item has: as given, else that of readings of arrays; None if
    all items have all pairs.
    """
    if present is None and "present_pairs" in readings and (readings.present_pairs != 1).any():
        return readings.present_pairs
    return present


def replicated(
    covariance: xr.DataArray, present: xr.DataArray | None = None
) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """Replicates of the mean readings, and the function that gives C(r), (noise, distance), from
    their means.
    """
    if present is None:
        return replicates(covariance), lambda mean: mean
    both = xr.concat(xr.broadcast(covariance, present.where(covariance.notnull())), dim="part")

    def of_present(mean: np.ndarray) -> np.ndarray:
        # Distances at which no item has a pair.
        with np.errstate(invalid="ignore", divide="ignore"):
            return mean[:, 0] / mean[:, 1]

    return replicates(both), of_present


def effective_number(variance: xr.DataArray) -> np.ndarray:
    """Number of originals that decide a ratio of their covariances, `n_eff = (sum_g V_g)^2 / sum_g
    V_g^2`: array (noise, ..).

    `variance` (noise, item, ..): V, `change_covariance` at distance 0. Grammars count instead of
    items if there are several. Negative numbers, of covariances at other distances, count as 0.
    """
    if "grammar" in variance.coords and len(np.unique(variance.grammar)) > 1:
        variance = variance.groupby("grammar").sum("item").rename(grammar="item")
    values = np.nan_to_num(variance.transpose("noise", "item", ...).values.astype(float)).clip(0)
    squares = (values**2).sum(axis=1)
    return np.divide(
        values.sum(axis=1) ** 2, squares, out=np.zeros(squares.shape), where=squares > 0
    )


def number_in_spread(parts: xr.DataArray) -> np.ndarray:
    """Number of originals (or grammars) that make the spread of chi, 0 if there is none: array
    (noise,); `parts`: `chi_parts`.

    With the sums T and V of an original, of covariances and of variances, and its deviation e = T -
    chi V, it is `(sum e^2)^2 / sum e^4`. Where sites change rarely, nearly all originals have one
    event and the same ratio T / V; the error of chi rests on the few others, although many
    originals have a variance.
    """
    total, variance = parts.isel(part=0, drop=True), parts.isel(part=1, drop=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        deviation = total - total.sum("item") / variance.sum("item") * variance
    if "grammar" in parts.coords and len(np.unique(parts.grammar)) > 1:
        deviation = deviation.groupby("grammar").sum("item").rename(grammar="item")
    rounding = (_ROUNDING * abs(total).sum("item")) ** 2
    squares = deviation**2
    return effective_number(squares.where(squares > rounding, 0).reset_coords(drop=True))


def chi_parts(ds: xr.Dataset, name: str = "") -> xr.DataArray:
    """Two readings (dim `part`) whose means over items have the ratio chi: sum of covariances
    per site, and mean variance.
    """
    return _parts(_of_run(ds, name))


def _parts(readings: xr.Dataset) -> xr.DataArray:
    return xr.concat(
        [
            readings["change_covariance_sum"],
            readings["change_covariance"].isel(distance=0, drop=True),
        ],
        dim="part",
    )


def chi_of(parts: xr.DataArray, confidence: float = 0.95) -> np.ndarray:
    """chi and the ends of its interval, (noise, 3), from the readings of `chi_parts`."""
    of = replicates(parts)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        chi = of.mean[:, 0] / of.mean[:, 1]
    half = of.half_width(
        log_chi, confidence, effective_number(parts.isel(part=1)), number_in_spread(parts)
    )
    return np.stack([chi, chi * np.exp(-half), chi * np.exp(half)], axis=-1)


def log_chi(means: np.ndarray) -> np.ndarray:
    """log chi (noise,) of the means of `chi_parts` (noise, 2); NaN where chi is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        chi = means[:, 0] / means[:, 1]
        return np.log(np.where(chi > 0, chi, np.nan))
