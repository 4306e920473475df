"""Calibration: a test of whether reconstructions are draws from the posterior, which needs no
ground truth.

Given a noisy datum x_t, an original x_0 and two independent draws x̂, x̂' from p(x_0 | x_t), the
*clones*, have one law. So for every symmetric f the *gap* E f(x_0, x̂) - E f(x̂, x̂') is 0. What no
f can see is in docs/sampler.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.checks import checked_array, checked_integer, checked_numbers, expect
from uturn.core.messages import shown
from uturn.core.random import Purpose, checked_seed, keys
from uturn.measures.clones import as_real, between_clones
from uturn.measures.estimates import checked_share
from uturn.measures.intervals import mean_interval
from uturn.measures.readings import WITHIN, check_dims, complete_items
from uturn.measures.relabelling import MARGIN, p_values
from uturn.measures.replicates import replicates


class Calibration(NamedTuple):
    """Gaps of one or several readings, and the exact test that they are 0. All arrays have the
    shape (...) of the readings.

    `gap`, `low`, `high`: mean of f(x_0, x̂) - f(x̂, x̂') over items, and its 95 % interval of
    Student's t. `p_value` of the exact test of each single reading; `adjusted` by Holm. `visible`:
    size of a gap that the strictest of the tests detects with a probability of about one half;
    infinite where readings differ in too few items for so small a p-value. `level`: false-alarm
    rate of all tests together. `relabellings`: largest number of random relabellings B; no p-value
    is below 1 / (B + 1).
    """

    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    adjusted: np.ndarray
    visible: np.ndarray
    level: float
    relabellings: int

    @property
    def passed(self) -> bool:
        """Whether all adjusted p-values are above the level."""
        return bool((self.adjusted > self.level).all())


def calibrate(
    with_original: Any,
    with_clones: Any,
    level: float = 1e-3,
    relabellings: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Test whether original and clones are exchangeable given the noisy datum: `E f(x_0, x̂) = E
    f(x̂, x̂')`.

    Let g_j be the mean of f between datum j and the others, minus the mean of f among these others,
    where data are the original (j = 0) and its K clones. The test draws the original uniformly
    among the K + 1 data, for every item and B times, and compares the mean G of g_0 over items with
    the means G* under relabelling: `p = (1 + number of |G*| >= |G|) / (B + 1)`. It is exact for one
    noisy datum of each original, chosen beforehand.

    `with_original` (items, K, ...): f between the original and each of K >= 2 clones, for one or
    several symmetric f (trailing axes). `with_clones` (items, K, ...): mean of f between each clone
    and the K - 1 others. `level`: false-alarm rate of all tests together (Holm). `relabellings`: B,
    by default 100 times the number of tests over the level. `seed`: of the relabellings, which are
    the same for all tests of one call.

    >>> import uturn as ut
    >>> x = ut.random.uniforms(ut.random.keys(0, range(500)), 4)  # an original and three clones, all drawn alike
    >>> like = -abs(x[:, :, None] - x[:, None, :])
    >>> found = calibrate(like[:, 0, 1:], like[:, 1:, 1:].sum(2) / 2, level=0.01)
    >>> found.passed, abs(float(found.gap)) < float(found.visible)
    (True, True)
    """
    from scipy.stats import norm

    level = checked_share("level", level)
    gaps = exchanged_gaps(with_original, with_clones)
    items, shape = len(gaps), gaps.shape[2:]
    tests = math.prod(shape)
    B = (
        math.ceil(100 * tests / level)
        if relabellings is None
        else checked_integer("relabellings", relabellings, 1)
    )
    # Readings of each test as shares of their largest size, since the relabellings count gaps that
    # differ by 1e-6 as equal.
    size = np.maximum(
        *(
            np.abs(np.asarray(values, float)).max(axis=(0, 1))
            for values in (with_original, with_clones)
        )
    )
    table = np.ascontiguousarray(
        (gaps / np.where(size > 0, size, 1)).reshape(items, gaps.shape[1], tests)
    )
    p_value = p_values(table, B, int(keys(checked_seed(seed), Purpose.CALIBRATION))).reshape(shape)
    # Standard deviation of G* over all relabellings: the g_j of an item add up to 0.
    spread = np.sqrt((gaps**2).mean(axis=1).sum(axis=0)) / items
    reachable = _smallest_log_p(table).reshape(shape) <= math.log(level / tests)
    visible = np.where(reachable, norm.isf(level / tests / 2) * spread, np.inf)
    gap, low, high = np.moveaxis(mean_interval(gaps[:, 0]), -1, 0)
    return Calibration(gap, low, high, p_value, holm(p_value), visible, level, B)


def calibration(
    ds: xr.Dataset, variable: str | Sequence[str], *, level: float = 1e-3, seed: int = 0
) -> xr.Dataset:
    """Test whether the reconstructions of a run are draws from the posterior, reading by reading.

    The gap E f(x_0, x̂) - E f(x̂, x̂') is above 0 if clones resemble the original too much, and
    below 0 if they resemble each other too much. The test is that of `calibrate`, on trajectory 0
    of every item; all trajectories enter the gap and its interval. Items with missing or infinite
    readings are left out.

    `ds`: a finished run with `clones` >= 2. `variable`: one or several symmetric variables, those
    with a twin `clone_<variable>`. Ranked variables h(x; y), those with a twin
    `original_<variable>`, have f(a, b) = h(a) + h(b) and the gap E h(x_0; y) - E h(x̂; y). `level`:
    false-alarm rate of all tests of the call together. `seed`: of the relabellings.

    The Dataset has `gap`, `low`, `high` (NaN ends if the gap is the same in all items), `p`
    (p-value), `p_holm` (adjusted by Holm) and `visible`, as in `Calibration`, along noise and the
    other dims of the variable; for several variables noise and `reading`, named "variable" or
    "variable, dim = value". Attributes: `passed` (no p_holm <= level), `level`, `relabellings`,
    `items` (tested), `trajectories`, `clones`.
    """
    names = checked_variables(ds, variable)
    level, several, complete = (
        checked_share("level", level),
        not isinstance(variable, str),
        items_tested(ds, names),
    )
    where = f"variable = {shown(variable)}: items that have all their readings"
    expect(complete.sum() > 1, where, int(complete.sum()), "at least two")
    ds = ds.isel(item=complete)
    pairs = [_pair(ds, name, several) for name in names]
    originals, twins = (
        xr.concat([pair[k] for pair in pairs], "reading") if several else pairs[0][k]
        for k in (0, 1)
    )
    first, rows = (
        values.isel(trajectory=0, missing_dims="ignore").values for values in (originals, twins)
    )
    tests = calibrate(first, rows, level, seed=seed)
    differences = (originals - twins).transpose("noise", "item", ...)
    gap, *ends = np.moveaxis(replicates(differences).interval(lambda mean: mean), -1, 0)
    size = (
        abs(differences)
        .max([dim for dim in differences.dims if dim in WITHIN or dim == "item"])
        .values
    )
    # Equal gaps say nothing about their spread.
    low, high = np.where(ends[1] - ends[0] > 1e-9 * size, ends, np.nan)
    numbers = {
        "gap": gap,
        "low": low,
        "high": high,
        "p": tests.p_value,
        "p_holm": tests.adjusted,
        "visible": tests.visible,
    }
    layout = originals.isel(item=0, clone=0, trajectory=0, drop=True, missing_dims="ignore")
    result = xr.Dataset(
        {name: (layout.dims, values) for name, values in numbers.items()}, layout.coords
    )
    sizes = {
        "items": ds.sizes["item"],
        "trajectories": ds.sizes.get("trajectory", 1),
        "clones": ds.sizes["clone"],
    }
    return result.assign_attrs(
        variable=", ".join(names),
        passed=tests.passed,
        level=level,
        relabellings=tests.relabellings,
        **sizes,
    )


def checked_variables(ds: Any, variable: Any) -> list[str]:
    """Names of variables with twins in a dataset with clones, or a ValueError."""
    names = [variable] if isinstance(variable, str) else list(variable)
    expect(
        names and len(set(names)) == len(names),
        "variable",
        variable,
        "the name of a variable, or different names",
    )
    clones = ds.sizes.get("clone", 1)
    measured = json.loads(ds.attrs.get("spec", "{}")).get("clones", clones)
    expect(
        clones == measured and clones > 1,
        "ds: clones",
        clones,
        f"all {measured} of the run, and at least 2",
    )
    known = [str(name) for name in ds.data_vars if twin_of(ds, str(name))]
    for name in names:
        expect(
            name in known,
            "variable",
            name,
            f"one that is symmetric or ranked, and so has a twin: one of {known}",
        )
        check_dims(f"variable {name!r}", ds[name], ("noise", "item"))
    missing = ds.attrs.get("missing_tasks", 0)
    expect(
        not missing, "missing tasks of the run", missing, "a finished run; run it again to its end"
    )
    return names


def twin_of(ds: xr.Dataset, name: str) -> str:
    """The variable with which one is tested: `clone_<name>`, or `original_<name>` if it is
    ranked; "" if there is none.
    """
    if f"clone_{name}" in ds:
        return f"clone_{name}"
    original, dims = f"original_{name}", ds[name].dims
    return (
        original
        if original in ds and {"trajectory", "clone"} <= set(dims) == {*ds[original].dims, "clone"}
        else ""
    )


def items_tested(ds: xr.Dataset, names: Sequence[str]) -> np.ndarray:
    """Which items have all readings of some variables and of their twins, so that they can be
    relabelled: bool (items,).
    """
    return complete_items(ds, [key for name in names for key in (name, twin_of(ds, name))])


def _pair(ds: xr.Dataset, name: str, several: bool) -> list[xr.DataArray]:
    """f between original and clones, and between clones: float64 (item, clone, noise[, reading],
    .., trajectory).
    """
    last = [dim for dim in ds[name].dims if dim == "trajectory"]
    readings, twin = ds[name].astype(float), ds[twin_of(ds, name)].astype(float)
    of_pairs = [readings, twin]
    # F(a, b) = h(a) + h(b); only differences of h count, so large values need no digits.
    if "clone" not in twin.dims:
        mean = (readings.sum("clone") + twin) / (readings.sizes["clone"] + 1)
        readings, twin = readings - mean, twin - mean
        others = (readings.sum("clone") - readings) / (readings.sizes["clone"] - 1)
        of_pairs = [readings + twin, readings + others]
    pair = []
    for values in of_pairs:
        values = values.transpose("item", "clone", "noise", ..., *last)
        pair.append(
            joined(values, name).transpose("item", "clone", "noise", "reading", ...)
            if several
            else values
        )
    return pair


def joined(values: xr.DataArray, name: str) -> xr.DataArray:
    """Readings with the dims of a variable beyond noise, item and draws as one dim `reading`,
    which has labels of a study.
    """
    dims = [str(dim) for dim in values.dims if dim not in ("noise", *WITHIN)]
    if not dims:
        return values.expand_dims(reading=[name])
    stacked = values.stack(reading=dims)
    places = [
        dict(zip(dims, np.atleast_1d(place), strict=True))
        for place in stacked.reading.values.tolist()
    ]
    return stacked.drop_vars(["reading", *dims]).assign_coords(
        reading=[label_of(name, place) for place in places]
    )


def label_of(name: str, place: Mapping[str, Any]) -> str:
    """The label of a reading: its variable, and for one of several levels its place along each
    dim.
    """
    return ", ".join([name, *(f"{dim} = {value}" for dim, value in place.items())])


def exchanged_gaps(with_original: Any, with_clones: Any) -> np.ndarray:
    """g_j of every datum j (see `calibrate`), float64 (items, K + 1, ...); j = 0 is the true
    original.

    With f_k = f(x_0, x̂_k) and r_k the mean of f between clone k and the other clones, the mean of
    datum k > 0 with all others is (f_k + (K-1) r_k)/K, and the sum over all pairs of data is sum_k
    f_k + (K-1)/2 sum_k r_k.
    """
    f, r = (
        checked_numbers(name, values)
        for name, values in (("with_original", with_original), ("with_clones", with_clones))
    )
    fits = f.ndim > 1 and f.shape == r.shape and min(f.shape[:2]) > 1 and f.size
    where = "shapes of with_original and with_clones"
    expect(fits, where, (f.shape, r.shape), "both (items, clones, ...), at least two of each")
    K = f.shape[1]
    # By datum j, over all others.
    with_others = np.concatenate([f.mean(axis=1, keepdims=True), (f + (K - 1) * r) / K], axis=1)
    total = f.sum(axis=1, keepdims=True) + (K - 1) / 2 * r.sum(axis=1, keepdims=True)
    return with_others - (total - K * with_others) / (K * (K - 1) / 2)


def _smallest_log_p(gaps: np.ndarray) -> np.ndarray:
    """Log of a lower bound on the p-values of gaps (items, K + 1, tests): all labels on the
    largest gaps, or on the smallest.
    """
    ends = [
        (signed >= signed.max(axis=1, keepdims=True) - MARGIN).mean(axis=1)
        for signed in (gaps, -gaps)
    ]
    return np.minimum(*(np.log(share).sum(axis=0) for share in ends))


def holm(p_values: Any) -> np.ndarray:
    """Adjusted p-values of Holm: rejecting those <= a has a false-alarm rate of at most a, for
    any dependence of the tests.
    """
    p = np.asarray(p_values, float)
    flat = p.ravel()
    order = np.argsort(flat)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)).clip(max=1)
    return adjusted.reshape(p.shape)


def paired(data: Any, f: Callable[[Any, Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate`, arrays (items, K, ...), from data (items, K + 1, ...):
    original, then clones.

    `f`: (items, ...), (items, ...) -> (items, ...), symmetric in its two arguments; it is given
    integers as float64.
    """
    data = as_real(checked_array("data", data))
    fits = data.ndim > 1 and data.shape[1] > 2
    expect(
        fits,
        "shape of data",
        data.shape,
        "(items, clones + 1, ...), an original and at least two clones",
    )
    original, clones = data[:, 0], data[:, 1:]
    first = [np.asarray(f(original, clones[:, k]), float) for k in range(clones.shape[1])]
    return np.stack(first, axis=1), between_clones(clones, clones.shape[1], f)
