"""Calibration: a test of whether reconstructions are draws from the posterior, which needs no
ground truth.

Given a noisy datum x_t, an original x_0 and two independent draws x̂, x̂' from p(x_0 | x_t), the
*clones*, have one law. So for every symmetric f the *gap* E f(x_0, x̂) - E f(x̂, x̂') is 0. What no
f can see is in docs/sampler.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from uturn.core.checks import checked_array, checked_integer, checked_numbers, expect
from uturn.core.messages import shown
from uturn.core.random import Purpose, checked_seed, keys
from uturn.measures.clones import Comparer, as_real, between_clones
from uturn.measures.estimates import Estimate, checked_share
from uturn.measures.intervals import mean_interval
from uturn.measures.readings import WITHIN, check_dims, complete_items, own_dims
from uturn.measures.relabelling import MARGIN, p_values
from uturn.measures.replicates import replicates
from uturn.measures.report import Line, Report, Tests, Verdict, verdict_of


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
    with_original: ArrayLike,
    with_clones: ArrayLike,
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
    items, data, *shape = gaps.shape
    tests = math.prod(shape)
    if relabellings is None:
        relabellings = math.ceil(100 * tests / level)
    relabellings = checked_integer("relabellings", relabellings, 1)
    # The relabellings count gaps that differ by 1e-6 as equal, so gaps are divided by the largest
    # reading of their test.
    size = np.maximum(_largest_size(with_original), _largest_size(with_clones))
    scaled = gaps / np.where(size > 0, size, 1)
    table = np.ascontiguousarray(scaled.reshape(items, data, tests))
    stream = int(keys(checked_seed(seed), Purpose.CALIBRATION))
    p_value = p_values(table, relabellings, stream).reshape(shape)
    # Standard deviation of G* over all relabellings: the g_j of an item add up to 0.
    variances = (gaps**2).mean(axis=1)
    spread = np.sqrt(variances.sum(axis=0)) / items
    is_reachable = _smallest_log_p(table).reshape(shape) <= math.log(level / tests)
    visible = np.where(is_reachable, norm.isf(level / tests / 2) * spread, np.inf)
    gap, low, high = np.moveaxis(mean_interval(gaps[:, 0]), -1, 0)
    return Calibration(gap, low, high, p_value, holm(p_value), visible, level, relabellings)


def _largest_size(readings: ArrayLike) -> np.ndarray:
    """Largest absolute value of the readings of each test, (...)."""
    return np.asarray(np.abs(np.asarray(readings, float)).max(axis=(0, 1)))


_REMARKS = (
    "a gap above 0: reconstructions resemble the original more than each other; below 0: less",
    "an error that does not change these readings is not seen",
)


class CalibrationTests(Tests):
    """The dataset of `uturn.calibration`."""

    __slots__ = ()

    def _is_whole(self) -> bool:
        has_numbers = {"gap", "low", "high", "p_holm", "visible"} <= set(self.data_vars)
        return has_numbers and {"variable", "level"} <= set(self.attrs)

    @property
    def report(self) -> Report:
        """A line for each noise level and reading, with its gap, which is 0 for draws from the
        posterior.
        """
        dims = [str(dim) for dim in self.gap.dims]
        lines = []
        for index in np.ndindex(self.gap.shape):
            place = {
                dim: self[dim].values[k] if dim in self.coords else k
                for dim, k in zip(dims, index, strict=True)
            }
            values = self.isel(dict(zip(dims, index, strict=True)))
            lines.append(self._line(place, values))
        title = f"Calibration of {self.variable}: are reconstructions draws from the posterior?"
        return Report("calibration", title, tuple(lines), float(self.level), _REMARKS)

    def _line(self, place: Mapping[str, object], values: xr.Dataset) -> Line:
        levels = dict(place)
        name = str(levels.pop("reading", self.variable))
        p = float(values.p_holm)
        visible = float(values.visible)
        verdict = verdict_of(p, float(self.level))
        remark = f"detects a gap from about {visible:.2g}"
        if not np.isfinite(visible):
            verdict = Verdict.UNTESTED
            remark = "too few originals to detect a gap"
        return Line(
            label_of(name, levels),
            verdict,
            measured=Estimate(float(values.gap), float(values.low), float(values.high)),
            expected=0.0,
            p=p,
            remark=remark,
        )


def calibration(
    ds: xr.Dataset, variable: str | Sequence[str], *, level: float = 1e-3, seed: int = 0
) -> CalibrationTests:
    """Test whether the reconstructions of a run are draws from the posterior, reading by reading.

    The gap E f(x_0, x̂) - E f(x̂, x̂') is above 0 if clones resemble the original too much, and
    below 0 if they resemble each other too much. The test is `calibrate`, on trajectory 0
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
    `items` (tested), `trajectories`, `clones`. It prints as its `report`, a `Report` with a line for
    each noise level and reading.
    """
    names = checked_variables(ds, variable)
    level = checked_share("level", level)
    complete = items_tested(ds, names)
    where = f"variable = {shown(variable)}: items that have all their readings"
    expect(complete.sum() > 1, where, int(complete.sum()), "at least two")
    ds = ds.isel(item=complete)
    readings = _of_variables(ds, names, has_labels=not isinstance(variable, str))
    first = readings.isel(trajectory=0)
    tests = calibrate(first.with_original.values, first.with_clones.values, level, seed=seed)
    gap, low, high = _mean_gap(readings)
    numbers = {
        "gap": gap,
        "low": low,
        "high": high,
        "p": tests.p_value,
        "p_holm": tests.adjusted,
        "visible": tests.visible,
    }
    layout = first.with_original.isel(item=0, clone=0, drop=True)
    variables = {name: (layout.dims, values) for name, values in numbers.items()}
    return CalibrationTests(variables, layout.coords).assign_attrs(
        variable=", ".join(names),
        passed=tests.passed,
        level=level,
        relabellings=tests.relabellings,
        items=ds.sizes["item"],
        trajectories=ds.sizes.get("trajectory", 1),
        clones=ds.sizes["clone"],
    )


class _Readings(NamedTuple):
    """A reading f of pairs of data, float64 (item, clone, noise[, reading], .., trajectory)."""

    with_original: xr.DataArray
    """f between the original and a clone."""
    with_clones: xr.DataArray
    """Mean of f between a clone and the other clones."""

    def isel(self, trajectory: int) -> _Readings:
        """The readings of one trajectory."""
        return _Readings(
            self.with_original.isel(trajectory=trajectory, drop=True, missing_dims="ignore"),
            self.with_clones.isel(trajectory=trajectory, drop=True, missing_dims="ignore"),
        )


def _mean_gap(readings: _Readings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean gap over items and trajectories, and the ends of its interval, (noise, ..); NaN ends
    where all gaps are equal, since these say nothing about their spread.
    """
    differences = readings.with_original - readings.with_clones
    differences = differences.transpose("noise", "item", ...)
    gap, low, high = np.moveaxis(replicates(differences).interval(lambda mean: mean), -1, 0)
    draws = [dim for dim in differences.dims if dim in WITHIN]
    size = abs(differences).max(draws).values
    has_spread = high - low > 1e-9 * size
    return gap, np.where(has_spread, low, np.nan), np.where(has_spread, high, np.nan)


def checked_variables(ds: xr.Dataset, variable: str | Sequence[str]) -> list[str]:
    """Names of variables with twins in a dataset with clones, or a ValueError."""
    names = [variable] if isinstance(variable, str) else list(variable)
    are_different = names and len(set(names)) == len(names)
    expect(are_different, "variable", variable, "the name of a variable, or different names")
    clones = ds.sizes.get("clone", 1)
    of_run = json.loads(ds.attrs.get("spec", "{}")).get("clones", clones)
    is_whole = clones == of_run and clones > 1
    expect(is_whole, "ds: clones", clones, f"all {of_run} of the run, and at least 2")
    with_twins = [str(name) for name in ds.data_vars if twin_of(ds, str(name))]
    expected = f"one that is symmetric or ranked, and so has a twin: one of {with_twins}"
    for name in names:
        expect(name in with_twins, "variable", name, expected)
        check_dims(f"variable {name!r}", ds[name], ("noise", "item"))
    missing = ds.attrs.get("missing_tasks", 0)
    way = "a finished run; run it again to its end"
    expect(not missing, "missing tasks of the run", missing, way)
    return names


def twin_of(ds: xr.Dataset, name: str) -> str:
    """The twin with which a variable is tested: `clone_<name>`, or `original_<name>` if it is
    ranked; "" if there is none.
    """
    if f"clone_{name}" in ds:
        return f"clone_{name}"
    original = f"original_{name}"
    if original not in ds:
        return ""
    dims = set(ds[name].dims)
    is_ranked = {"trajectory", "clone"} <= dims == {*ds[original].dims, "clone"}
    return original if is_ranked else ""


def items_tested(ds: xr.Dataset, names: Sequence[str]) -> np.ndarray:
    """Which items have all readings of some variables and of their twins, so that they can be
    relabelled: bool (items,).
    """
    pairs = [*names, *(twin_of(ds, name) for name in names)]
    return complete_items(ds, pairs)


def _of_variables(ds: xr.Dataset, names: Sequence[str], has_labels: bool) -> _Readings:
    """The readings of one variable, or of several along a dim `reading` with labels."""
    if not has_labels:
        readings = _of_variable(ds, names[0])
        return _Readings(_ordered(readings.with_original), _ordered(readings.with_clones))
    with_original = []
    with_clones = []
    for name in names:
        readings = _of_variable(ds, name)
        with_original.append(_labelled(readings.with_original, name))
        with_clones.append(_labelled(readings.with_clones, name))
    return _Readings(xr.concat(with_original, "reading"), xr.concat(with_clones, "reading"))


def _of_variable(ds: xr.Dataset, name: str) -> _Readings:
    readings = ds[name].astype(float)
    twin = ds[twin_of(ds, name)].astype(float)
    if "clone" in twin.dims:
        return _Readings(readings, twin)
    # f(a, b) = h(a) + h(b). Only differences of h count, so large values need no digits.
    mean = (readings.sum("clone") + twin) / (readings.sizes["clone"] + 1)
    readings = readings - mean
    twin = twin - mean
    others = (readings.sum("clone") - readings) / (readings.sizes["clone"] - 1)
    return _Readings(readings + twin, readings + others)


def _ordered(values: xr.DataArray) -> xr.DataArray:
    last = [dim for dim in values.dims if dim == "trajectory"]
    return values.transpose("item", "clone", "noise", ..., *last)


def _labelled(values: xr.DataArray, name: str) -> xr.DataArray:
    """Readings of one variable with a dim `reading`."""
    return joined(_ordered(values), name).transpose("item", "clone", "noise", "reading", ...)


def joined(values: xr.DataArray, name: str) -> xr.DataArray:
    """Readings with the dims of a variable beyond noise, item and draws as one dim `reading`,
    which has labels of a study.
    """
    dims = own_dims(values)
    if not dims:
        return values.expand_dims(reading=[name])
    stacked = values.stack(reading=dims)
    labels = []
    for place in stacked.reading.values.tolist():
        coordinates = zip(dims, np.atleast_1d(place), strict=True)
        labels.append(label_of(name, dict(coordinates)))
    return stacked.drop_vars(["reading", *dims]).assign_coords(reading=labels)


def label_of(name: str, place: Mapping[str, object]) -> str:
    """The label of a reading: its variable, and for one of several levels its place along each
    dim.
    """
    return ", ".join([name, *(f"{dim} = {value}" for dim, value in place.items())])


def exchanged_gaps(with_original: ArrayLike, with_clones: ArrayLike) -> np.ndarray:
    """g_j of every datum j (see `calibrate`), float64 (items, K + 1, ...); j = 0 is the true
    original.

    With f_k = f(x_0, x̂_k) and r_k the mean of f between clone k and the other clones, the mean of
    datum k > 0 with all others is (f_k + (K-1) r_k)/K, and the sum over all pairs of data is sum_k
    f_k + (K-1)/2 sum_k r_k.
    """
    f = checked_numbers("with_original", with_original)
    r = checked_numbers("with_clones", with_clones)
    fits = f.ndim > 1 and f.shape == r.shape and min(f.shape[:2]) > 1 and f.size
    where = "shapes of with_original and with_clones"
    expect(fits, where, (f.shape, r.shape), "both (items, clones, ...), at least two of each")
    K = f.shape[1]
    # By datum j, over all others.
    with_others = np.concatenate([f.mean(axis=1, keepdims=True), (f + (K - 1) * r) / K], axis=1)
    total = f.sum(axis=1, keepdims=True) + (K - 1) / 2 * r.sum(axis=1, keepdims=True)
    among_others = (total - K * with_others) / (K * (K - 1) / 2)
    return np.asarray(with_others - among_others)


def _smallest_log_p(gaps: np.ndarray) -> np.ndarray:
    """Log of a lower bound on the p-values of gaps (items, K + 1, tests): all labels on the
    largest gaps, or on the smallest.
    """
    return np.asarray(np.minimum(_log_share_of_largest(gaps), _log_share_of_largest(-gaps)))


def _log_share_of_largest(gaps: np.ndarray) -> np.ndarray:
    is_largest = gaps >= gaps.max(axis=1, keepdims=True) - MARGIN
    return np.asarray(np.log(is_largest.mean(axis=1)).sum(axis=0))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values of Holm: rejecting those <= a has a false-alarm rate of at most a, for
    any dependence of the tests.
    """
    p = np.asarray(p_values, float)
    flat = p.ravel()
    order = np.argsort(flat)
    multiples = flat[order] * np.arange(len(flat), 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(multiples).clip(max=1)
    return adjusted.reshape(p.shape)


def paired(data: ArrayLike, f: Comparer) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate`, arrays (items, K, ...), from data (items, K + 1, ...):
    original, then clones.

    `f`: (items, ...), (items, ...) -> (items, ...), symmetric in its two arguments; it is given
    integers as float64.
    """
    values = as_real(checked_array("data", data))
    fits = values.ndim > 1 and values.shape[1] > 2
    expected = "(items, clones + 1, ...), an original and at least two clones"
    expect(fits, "shape of data", values.shape, expected)
    original = values[:, 0]
    clones = values[:, 1:]
    num_clones = clones.shape[1]
    first = [np.asarray(f(original, clones[:, k]), float) for k in range(num_clones)]
    return np.stack(first, axis=1), between_clones(clones, num_clones, f)
