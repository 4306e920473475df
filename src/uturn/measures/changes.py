"""Correlated changes: sites of a datum that change together in a U-turn (arXiv:2410.13770).

Let x_i be the change of site i in a U-turn of one original, 1 or 0 for symbols, or any real number. Its covariance over the
U-turns of this original is C_ij = E x_i x_j - E x_i E x_j. It is averaged over originals. It is never computed from U-turns of
different originals together, which would add the differences between originals. The *correlation* at distance r is C(r)/C(0),
with C(r) the mean over the ordered pairs of sites at distance r. The *susceptibility* is the number of sites that change
together,

    chi = sum_ij C_ij / sum_i C_ii.

Both are ratios of averages over originals. Independent changes have chi = 1, and common changes of all sites have chi equal to
the number of sites. A factor of the changes drops out: sigma = ±1 gives the same values as 0 and 1, with covariances four times
as large.

Originals in which little changes count little in such a ratio. Let V_g = sum_i C_ii of original g (of grammar g if there are
several). The ratio is decided by about

    n_eff = (sum_g V_g)^2 / sum_g V_g^2

originals, the number of equal ones with the same relative variance of the sum. Intervals therefore have n_eff - 1 degrees of
freedom of Student's t. That of chi, which is positive, is symmetric in log chi; that of C(r)/C(0), which can be negative, is
symmetric in C(r)/C(0).

Few pairs of sites change together where changes are rare or distances are large. C(r) then rests on the originals in which some
did, and its own number is

    n_eff(r) = 2 (sum_g C_g(r)+)^2 / sum_g (C_g(r)+)^2,    at most n_eff,

with the positive parts C_g(r)+ of the covariances at distance r. The factor 2 stands for the other half of the originals where
C(r) is 0 and C_g(r) fluctuates about it. Negative parts do not count, because originals without a common change have small
negative covariances that are nearly equal; they count instead of the positive ones, without the factor, only where C(r) lies more
than ten standard errors below 0.

With a number below 5 (`FEW`) there is no interval: originals that change much may be missing in the sample, and no rule that sees
only the sample can help. `benchmarks/correlated_changes.py --part ratios` measures how often the intervals contain the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import LARGEST, checked_array, expect, shown
from uturn.measures.covariances import Covariances, Distance, Grid, Matrix, Tree
from uturn.measures.statistics import Estimate, check_dims, replicates

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Covariances",
    "Grid",
    "Matrix",
    "Tree",
    "correlations",
    "correlations_of",
    "covariances_of",
    "distance_between",
    "effective_number",
    "susceptibility",
    "susceptibility_of",
]

_ROUNDING = 1e-9  # of covariances by Fourier transform, relative to the variance
_FAR_BELOW = 10  # standard errors below 0 from which on a negative C(r) is that of pairs, not of their absence


def susceptibility(changed: Any, confidence: float = 0.95) -> Estimate | xr.Dataset:
    """Number of sites that change together, `chi = sum_ij C_ij / sum_i C_ii` (arXiv:2410.13770).

    C_ij is the covariance of the changes of sites i and j over the trajectories of one original, unbiased. The sums run over all
    ordered pairs, i = j included, and over the originals: chi is a ratio of averages, not an average of ratios.

    Parameters
    ----------
    changed : real or bool array (items, trajectories, sites), or `Covariances`
        Change of every site in every U-turn; at least two trajectories of each original (item). The dims item and trajectory of
        a DataArray are found by their names; if it has the dim noise, too, chi is computed at every level. NaN where a U-turn is
        missing. A site that is NaN in all U-turns of an item does not exist there, as beyond the end of a shorter chain.
        `Covariances` is an accumulator that has been given trajectories batch by batch.
    confidence : float in (0, 1)

    Returns
    -------
    Estimate, or Dataset (noise) with `chi`, `low`, `high`, `n_eff`
        With an interval (Student's t, n_eff - 1 degrees of freedom, symmetric in log chi) over items, or over grammars if a
        DataArray has several in a coordinate along its dim item. 1 for independent changes, `sites` if all sites change together.
        NaN if no change varies between trajectories. The ends are NaN if n_eff < 5 (see above; `correlations` gives n_eff).

    Raises
    ------
    ValueError
        For another shape or type, fewer than two trajectories, masked or huge values, or a confidence out of range.

    Examples
    --------
    >>> import uturn as ut
    >>> coins = ut.random.uniforms(ut.random.keys(0, range(200)), 10 * 8).reshape(200, 10, 8) < 0.3
    >>> chi = susceptibility(coins)
    >>> chi.low < 1 < chi.high, round(susceptibility(coins[..., :1].repeat(8, axis=2)).value, 6)
    (True, 8.0)
    """
    if isinstance(changed, Covariances):
        return Estimate(*chi_of(_parts(*labelled(changed)), confidence)[:, 0].tolist())
    values, noise = _checked_changes(changed)
    sites = values.shape[3]
    readings = _covariances(values, noise, Tree(sites, max(sites, 2)), changed)  # two distances: the same site, and any other
    curves = _susceptibilities(_parts(readings.change_covariance, readings.change_covariance_sum), confidence)
    return Estimate(*(float(curves[key][0]) for key in ("chi", "low", "high"))) if noise is None else curves


def correlations(
    changed: Any,
    distance: Any = "index",
    *,
    branching: int | None = None,
    shape: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Correlation of the changes of two sites against their distance, C(r)/C(0) (arXiv:2410.13770).

    C(r) is the mean over the ordered pairs at distance r, and over originals, of the covariance over the trajectories of an
    original.

    Parameters
    ----------
    changed : real or bool array (items, trajectories, sites), or `Covariances`
        As in `susceptibility`.
    distance, branching, shape
        As in `distance_between`: "index", "tree" with `branching`, "grid" with `shape`, or a matrix (sites, sites). Not allowed
        for an accumulator, which has its own distance.
    confidence : float in (0, 1)

    Returns
    -------
    Dataset with the dim distance, and noise if `changed` has it
        `correlation` C(r)/C(0), 1 at distance 0, with the ends `low` and `high` of its interval (Student's t, n_eff(r) - 1
        degrees of freedom; NaN if n_eff(r) < 5); `covariance` C(r) in the squared unit of the changes; `pairs`, the number of
        ordered pairs; `n_eff`, the number of items, or grammars, that decide, and `n_contributing` that of each distance,
        n_eff(r) (see above; n_eff has no dim distance). `chi = sum of pairs * correlation / sites`.

    Raises
    ------
    ValueError
        As `susceptibility`; also for distances of another number of sites.

    Examples
    --------
    >>> import uturn as ut
    >>> coins = ut.random.uniforms(ut.random.keys(0, range(200)), 10 * 4).reshape(200, 10, 4) < 0.3
    >>> found = correlations(coins.repeat(2, axis=2), "tree", branching=2)  # pairs of neighbours change together
    >>> found.distance.values.tolist(), found.pairs.values.tolist(), found.correlation.values[:2].round(3).tolist()
    ([0.0, 2.0, 4.0, 8.0], [8, 8, 16, 32], [1.0, 1.0])
    >>> bool((found.low < 0).values[2:].all() and (found.high > 0).values[2:].all())
    True
    """
    if isinstance(changed, Covariances):
        is_alone = (str(distance), branching, shape) == ("index", None, None)
        expect(is_alone, "distance", distance, "none beside an accumulator; leave out distance, branching and shape")
        curves = correlations_of(labelled(changed)[0], confidence=confidence).isel(noise=0, drop=True)
        return curves.assign(pairs=("distance", changed.distance.pairs))
    readings = covariances_of(changed, distance, branching=branching, shape=shape)
    pairs = readings.present_pairs
    curves = _correlations(readings.change_covariance, confidence, None if bool((pairs == 1).all()) else pairs)
    curves = curves if "noise" in readings.coords else curves.isel(noise=0, drop=True)
    return curves.assign(pairs=readings.pairs)


def covariances_of(
    changed: Any, distance: Any = "index", *, branching: int | None = None, shape: Sequence[int] | None = None
) -> xr.Dataset:
    """The readings of the probe `changes`, from an array of changes.

    Parameters
    ----------
    changed, distance, branching, shape
        As in `correlations`.

    Returns
    -------
    Dataset
        `change` (noise, item), the mean change of a site; `change_covariance` (noise, item, distance); `change_covariance_sum`
        (noise, item), the sum over all pairs over the number of sites. NaN where an item has fewer than two U-turns.
        `present_pairs` (item, distance): share of the pairs of sites that an item has, for items of different lengths. `pairs`
        (distance): number of ordered pairs.
    """
    values, noise = _checked_changes(changed)
    return _covariances(values, noise, distance_between(values.shape[3], distance, branching=branching, shape=shape), changed)


def _checked_changes(changed: Any) -> tuple[np.ndarray, Any]:
    """Changes (noise, items, trajectories, sites), and the noise levels, None if there is no axis of noise; else a ValueError."""
    dims = set(getattr(changed, "dims", ()))
    if {"item", "trajectory"} <= dims:
        changed = changed.transpose("noise", "item", "trajectory", ..., missing_dims="ignore")
    values, has_noise = checked_array("changed", changed), {"noise", "item", "trajectory"} <= dims
    fits, is_float = values.ndim == 3 + has_noise and values.size and values.dtype.kind in "biuf", values.dtype.kind == "f"
    where, dims_of = f"changed: {values.dtype} of shape", "(items, trajectories, sites), or a DataArray with noise too"
    expect(fits, where, values.shape, f"real numbers {dims_of}")
    has_large = np.ma.is_masked(changed) or (is_float and (np.abs(values) >= LARGEST).any())
    expect(not has_large, "changed", changed, f"numbers below {LARGEST:g}, none masked, NaN where a U-turn is missing")
    expect(values.shape[-2] > 1, "changed: trajectories", values.shape[-2], "at least 2 of each item, for a covariance")
    expect(not (is_float and np.isnan(values).all()), "changed", changed, "numbers, with NaN where a U-turn is missing")
    return (values, changed.noise.values) if has_noise else (values[None], None)


def _covariances(values: np.ndarray, noise: Any, distance: Distance, changed: Any) -> xr.Dataset:
    """`covariances_of` for checked changes; `changed` has the coordinates of the items."""
    import xarray as xr

    present: np.ndarray = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    exists: Any = present.any(axis=(0, 2))  # (items, sites)
    whole = (present | ~exists[:, None]).all(axis=3) & exists.any(axis=1)[:, None]
    values, counts = np.where(present, values, 0) if not present.all() else values, whole.sum(axis=2)
    change, total = np.full((2, *counts.shape), np.nan)
    covariance = np.full((*counts.shape, len(distance.values)), np.nan)
    for count in np.unique(counts[counts > 1]):  # trajectories of an item at a noise level
        at = np.nonzero(counts == count)
        of = Covariances(distance).add(values[at][whole[at]].reshape(len(at[0]), count, -1))
        change[at] = of.mean.sum(axis=1) / exists[at[1]].sum(axis=1)
        covariance[at], total[at] = of.covariance, of.total
    pairs = np.rint(distance.products(exists[:, None].astype(float))) / distance.pairs
    along = {name: of.variable for name, of in getattr(changed, "coords", {}).items() if of.dims in (("noise",), ("item",))}
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


def distance_between(
    sites: int, distance: Any = "index", *, branching: int | None = None, shape: Sequence[int] | None = None
) -> Distance:
    """The distances between sites, from a word or a matrix.

    Parameters
    ----------
    sites : int
    distance : "index", "tree", "grid", or array (sites, sites)
        "index": difference of the numbers of two sites. "tree": branching**k for two leaves whose lowest common ancestor is at
        tree level k. "grid": Euclidean distance on a grid in C order, rounded to a whole number. A matrix must be symmetric, with
        0 on the diagonal and positive numbers elsewhere; pairs with equal values are averaged.
    branching : int >= 2
        Children of a node, for "tree".
    shape : sequence of int
        Numbers of sites along the axes, for "grid".

    Raises
    ------
    ValueError
        For an unknown word, a `branching` or `shape` that is missing or not used, or another number of sites.
    """
    word: Any = distance if isinstance(distance, str) else None
    for option, value, needed_by in (("branching", branching, "tree"), ("shape", shape, "grid")):
        fits, rule = (value is not None) == (word == needed_by), f"distance = {needed_by!r} needs it, no other has it"
        expect(fits, f"distance = {shown(distance)}, {option}", value, rule)
    between: Distance
    if word == "tree":
        between = Tree(sites, branching)  # type: ignore[arg-type]
    elif word in ("index", "grid"):
        between = Grid((sites,) if shape is None else shape)  # type: ignore[arg-type]
    elif word is not None:
        raise ValueError(f"distance = {distance!r}: expected 'index', 'tree', 'grid', or a matrix (sites, sites)")
    else:
        between = distance if hasattr(distance, "products") and not isinstance(distance, type) else Matrix(distance)
    expect(between.num_sites == sites, "sites of the distance", between.num_sites, f"{sites}, those of changed")
    return between


# -- results of the probe `changes` --------------------------------------------------------------------------------------


def susceptibility_of(ds: xr.Dataset, name: str = "", confidence: float = 0.95) -> xr.Dataset:
    """Susceptibility at every noise level, from the readings of the probe `changes`.

    Parameters
    ----------
    ds : Dataset
        Results of an experiment with the probe `changes`.
    name : str
        The `name` of the probe, if it has one.
    confidence : float in (0, 1)

    Returns
    -------
    Dataset with the dim noise
        `chi`, `low`, `high`: as `susceptibility`; the interval is over grammars if there are several, otherwise over items.
        `n_eff`: number of items, or grammars, that decide (`effective_number`).

    Raises
    ------
    ValueError
        For results without the probe, of another noise than a list, or with missing readings.
    """
    return _susceptibilities(chi_parts(ds, name), confidence)


def _susceptibilities(parts: xr.DataArray, confidence: float) -> xr.Dataset:
    """chi with its interval and n_eff at every noise level, from the readings of `chi_parts`."""
    import xarray as xr

    chi, low, high = chi_of(parts, confidence)
    curves = {"chi": chi, "low": low, "high": high, "n_eff": effective_number(parts.isel(part=1))}
    axes = {key: coordinate for key, coordinate in parts.coords.items() if coordinate.dims == ("noise",)}
    return xr.Dataset({key: ("noise", values) for key, values in curves.items()}, coords=axes)


def correlations_of(ds: Any, name: str = "", confidence: float = 0.95, present: xr.DataArray | None = None) -> xr.Dataset:
    """Correlation against distance at every noise level, from the readings of the probe `changes`.

    Parameters and errors as in `susceptibility_of`; `ds` may also be the variable `change_covariance`. `present`: for data of
    different lengths, see `present_pairs`. Returns `correlation`, `low`, `high`, `covariance`, `n_contributing` (noise, distance)
    and `n_eff` (noise), as `correlations`.
    """
    import xarray as xr

    covariance = by_distance(ds) if isinstance(ds, xr.DataArray) else _readings(ds, name)[0]
    check_complete(covariance)
    return _correlations(covariance, confidence, present)


def _correlations(covariance: xr.DataArray, confidence: float, present: xr.DataArray | None) -> xr.Dataset:
    """C(r)/C(0) with its interval at every noise level; missing readings are left out."""
    import xarray as xr

    of, of_present = replicated(covariance, present)

    def normalised(mean: np.ndarray) -> np.ndarray:
        c = of_present(mean)
        return c / c[..., :1]

    variance = covariance.isel(distance=0, drop=True)
    number, sure = effective_number(variance), np.abs(covariance) > _ROUNDING * variance
    joint = covariance.where(sure, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        below = normalised(of.mean) < -_FAR_BELOW * of.error(normalised)
        contributing = np.where(below, effective_number(-joint), 2 * effective_number(joint))
        contributing = np.minimum(contributing, number[:, None])
        correlation, low, high = of.interval(normalised, confidence, contributing)
    dims = ("noise", "distance")
    axes = {key: coordinate for key, coordinate in covariance.coords.items() if set(coordinate.dims) <= set(dims)}
    curves = {"correlation": correlation, "low": low, "high": high, "covariance": of_present(of.mean)}
    curves["n_contributing"] = contributing
    return xr.Dataset({**{key: (dims, values) for key, values in curves.items()}, "n_eff": ("noise", number)}, coords=axes)


def present_pairs(covariance: xr.DataArray) -> xr.DataArray:
    """Share of the pairs of sites at each distance that an item has, (item, distance), for items of different lengths.

    The probe `changes` reads arrays of one length N. Sites beyond the end of an item of n < N sites never change, so that they
    add nothing to the sum of the covariances at distance r, which the probe divides by the number of pairs of N sites: 2 (N - r)
    for r > 0. The item has 2 (n - r) pairs, or none. With the reading c_i(r) of item i, and the share
    p_i(r) = max(n_i - r, 0)/(N - r), the mean over all pairs that exist is therefore

        C(r) = mean_i c_i(r) / mean_i p_i(r),

    a ratio of averages over items. The susceptibility needs no such correction: N drops out of sum_ij C_ij / sum_i C_ii.

    Parameters
    ----------
    covariance : DataArray (noise, item, distance)
        `change_covariance` of items on a line, with a coordinate `length` along item, and all distances 0 .. N - 1.
    """
    r, n = covariance.distance, covariance["length"]
    return (n - r).clip(0) / (r.size - r)


def replicated(covariance: xr.DataArray, present: xr.DataArray | None = None) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """Replicates of the mean readings, and the function that gives C(r), (noise, distance), from their means."""
    if present is None:
        return replicates(covariance), lambda mean: mean
    import xarray as xr

    both = xr.concat(xr.broadcast(covariance, present.where(covariance.notnull())), dim="part")

    def of_present(mean: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # distances at which no item has a pair
            return mean[:, 0] / mean[:, 1]

    return replicates(both), of_present


def effective_number(variance: xr.DataArray) -> np.ndarray:
    """Number of originals that decide a ratio of their covariances, `n_eff = (sum_g V_g)^2 / sum_g V_g^2`, at every noise level.

    Parameters
    ----------
    variance : DataArray (noise, item, ..)
        V, the mean variance of the changes of an item: `change_covariance` at distance 0. Grammars count instead of items if
        there are several in a coordinate along item. Negative numbers, of covariances at other distances, count as 0.

    Returns
    -------
    array (noise, ..)
        1 if only one original varies, their number if all vary equally, 0 if none does.
    """
    if "grammar" in variance.coords and len(np.unique(variance.grammar)) > 1:
        variance = variance.groupby("grammar").sum("item").rename(grammar="item")
    values = np.nan_to_num(variance.transpose("noise", "item", ...).values.astype(float)).clip(0)
    squares = (values**2).sum(axis=1)
    return np.divide(values.sum(axis=1) ** 2, squares, out=np.zeros(squares.shape), where=squares > 0)


def _readings(ds: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Covariance by distance, and the sum of all covariances over the number of sites, else a ValueError."""

    wanted = [f"{name}_{key}" if name else key for key in ("change_covariance", "change_covariance_sum")]
    for key in wanted:
        check_dims(key, ds[key], ("noise", "item"))
        check_complete(ds[key])
    return by_distance(ds[wanted[0]]), ds[wanted[1]]


def by_distance(covariance: xr.DataArray) -> xr.DataArray:
    """A covariance with its dim of distances named "distance", whatever prefix it has in the results of an experiment."""
    return covariance.rename({dim: "distance" for dim in covariance.dims if str(dim).endswith("_distance")})


def check_complete(readings: xr.DataArray) -> None:
    """ValueError if readings are missing, since means would then be over different originals at each noise level."""
    if readings.isnull().any():
        raise ValueError(f"{readings.name or 'covariance'} has missing readings; finish the run, or leave out what is missing")


def chi_parts(ds: xr.Dataset, name: str = "") -> xr.DataArray:
    """Two readings along the dim `part` whose means over items have the ratio chi, to find numbers on its curve.

    The sum of the covariances of all pairs over the number of sites, and the mean variance; as `susceptibility_of`.
    """
    return _parts(*_readings(ds, name))


def _parts(covariance: xr.DataArray, total: xr.DataArray) -> xr.DataArray:
    import xarray as xr

    return xr.concat([total, covariance.isel(distance=0, drop=True)], dim="part")


def chi_of(parts: xr.DataArray, confidence: float = 0.95) -> np.ndarray:
    """chi and the ends of its interval, (3, noise), from the readings of `chi_parts`."""
    of = replicates(parts)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changed
        chi = of.mean[:, 0] / of.mean[:, 1]
    half = of.half_width(log_chi, confidence, effective_number(parts.isel(part=1)))
    return np.stack([chi, chi * np.exp(-half), chi * np.exp(half)])


def log_chi(means: np.ndarray) -> np.ndarray:
    """log chi (noise,) of the means of `chi_parts` (noise, 2); NaN where chi is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        chi = means[:, 0] / means[:, 1]
        return np.log(np.where(chi > 0, chi, np.nan))


def labelled(covariances: Covariances) -> tuple[xr.DataArray, xr.DataArray]:
    """The covariance by distance, and the sum of all covariances over the number of sites, as of a run with one noise level."""
    import xarray as xr

    coords = {"distance": covariances.distance.values}
    covariance = xr.DataArray(covariances.covariance[None], coords, ("noise", "item", "distance"))
    return covariance, xr.DataArray(covariances.total[None], dims=("noise", "item"))
