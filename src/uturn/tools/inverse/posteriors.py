"""Tests of a posterior sampler by the readings of its clones: a family of exact tests, effect
sizes, and the kind of error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.messages import shown
from uturn.measures.calibration import calibration, holm, items_tested, twin_of
from uturn.measures.estimates import ESTIMATE, checked_share
from uturn.measures.intervals import mean_curves, proportion
from uturn.measures.ranks import ranks
from uturn.measures.readings import WITHIN
from uturn.measures.report import Line, Report, Tests
from uturn.tools.inverse.at_level import levels_of, readings_at
from uturn.tools.inverse.kinds import decisive_test, kind_of
from uturn.tools.inverse.readings import BESIDE, POSTERIOR, READINGS, plain_name

_NOT_DEAF = "without log p(y | x), no test sees a sampler that ignores the measurement"


class PosteriorTests(Tests):
    """The dataset of `uturn.posterior_tests`."""

    __slots__ = ()

    def _is_whole(self) -> bool:
        return {"p", "kind", "residual"} <= set(self.data_vars) and "noise" in self.dims

    @property
    def report(self) -> Report:
        """The kind of error at each noise level, and a line for each test. A test beside the family
        that rejects fails, too.
        """
        level = float(self.level)
        lines: list[Line] = []
        for tests in levels_of(self):
            lines += tests.lines(level)
        families = len(set(self.family.values.tolist()))
        return Report(
            "posterior-tests",
            "Posterior sampler: are the clones draws from the posterior?",
            tuple(lines),
            families * level,
            remarks=tuple(filter(None, [self.remark])),
            docs="inverse-problems",
        )


def posterior_tests(ds: xr.Dataset, level: float = 1e-3, seed: int = 0) -> PosteriorTests:
    """Test whether the clones of a run are draws from the posterior, and say which kind of error
    they have.

    The family is `distance`, `same_component` (or the first `same_class` of a classifier),
    `log_likelihood` and `log_prior`, as far as the run has them (probe `posterior`). They are
    tested by relabelling (`uturn.calibration`). A ranked reading h(x; y) is tested twice: by the
    difference of means E h(x_0; y) - E h(x̂; y), and by its ranks (`uturn.ranks`), which see errors
    that keep the mean, such as heavy tails. Holm's adjustment is over both tests of all readings of
    the family and all noise levels. Beside the family, with a false-alarm rate of their own, stand
    both tests of `reference_distance`, whose ranks are the test of coverage TARP
    (arXiv:2302.03026), and of `mean_value`. The kind is a guess from the signs and sizes of the
    effects, made only where a test has rejected; its error rates are in benchmarks/README.md.
    `level`: false-alarm rate of the family, and again of the tests beside it, over all noise
    levels.

    The Dataset has `gap` (noise, reading, estimate); `effect`, the gap in the unit `effect_unit`:
    of distances as a share of the mean distance of original and clone (1 for clones that are all
    equal), of log-densities in nats, of classes a difference of shares; `visible`, size of an
    effect that the test detects with a probability of about one half; `p`, `p_holm`, `rank_p`,
    `rank_p_holm` (noise, reading), NaN where there is no such test; `variance` (noise, reading), of
    a ranked reading among originals; `rank_difference` (noise, reading, rank), `difference` of
    `uturn.ranks`; `coverage`, `z_squared` (noise, estimate), numbers without a test, to be compared
    with `coverage_expected` = (K - 1) / (K + 1) and 1; `kind` (noise), one of
    `uturn.tools.inverse.kinds.Kind`; `decided` (noise), the test of means that rejects most
    clearly, such as "log_prior", or the test of ranks, "ranks of log_prior", if no mean rejects;
    `residual` (noise), root mean square residual of the clones from the measurement, in units of
    the residual of the originals, for Gaussian noise. Coordinates of a reading: `family`
    ("posterior", "beside"), `effect_unit`, `blind` (what its test cannot see). Attributes:
    `passed`, `passed_beside`, `level`, `items`, `clones`, `remark`. It prints as its `report`, a
    `Report` with a line for each test.

    Examples
    --------
    >>> import uturn as ut
    >>> x = ut.random.normals(ut.random.keys(0, range(300)), 5 * 8).reshape(300, 5, 8)  # an original and four clones
    >>> x[:, 1:] *= 0.5
    >>> rms = lambda a, b: np.sqrt(((a - b) ** 2).mean(-1))
    >>> found = ut.posterior_tests(ut.readings(ut.readings_of(x[:, 0], x[None, :, None, 1:], rms, "distance"), [1.0], start=0))
    >>> found.kind.item(), found.effect.sel(reading="distance", estimate="value").item()
    ('too sure', 0.34...)
    >>> found.report.passed, found.report["distance, noise = 1"].verdict.value
    (False, 'FAILS')
    """
    chosen = Chosen.of(ds)
    level = checked_share("level", level)
    if not chosen.names[POSTERIOR]:
        family = ", ".join(_names_of(POSTERIOR))
        raise ValueError(
            f"ds = {shown(ds)}: no reading of the family {family} can be tested;"
            " expected a run with clones >= 2, at least 2 items and the probe 'posterior'"
        )
    means = _tests_of_means(ds, chosen, level, seed)
    result = _with_effects(ds, chosen, means)
    result = _with_ranks(ds, chosen, result, level, seed)
    result = _adjusted(result)
    result = _with_untested(ds, result)
    result = _with_kinds(result, level)
    return PosteriorTests(result.data_vars, result.coords).assign_attrs(
        passed=_is_passed(result, POSTERIOR, level),
        passed_beside=_is_passed(result, BESIDE, level),
        level=level,
        items=means.attrs["items"],
        clones=ds.sizes["clone"],
        remark="; ".join(chosen.remarks),
    )


# --- which readings are tested --------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The variables of a run that are tested."""

    names: Mapping[str, Sequence[str]]
    """By family, in the order of `READINGS`."""
    ranked: Sequence[str]
    """Variables of one datum, which are tested by their ranks, too."""
    remarks: Sequence[str]
    """About variables that are not tested."""

    @classmethod
    def of(cls, ds: xr.Dataset) -> Chosen:
        expected = "the dataset that uturn.run gives for an experiment with clones >= 2"
        expect(isinstance(ds, xr.Dataset), "ds", ds, expected)
        by_plain_name: dict[str, str] = {}
        for name in map(str, ds.data_vars):
            if set(ds[name].dims) <= {"noise", *WITHIN} and twin_of(ds, name):
                by_plain_name.setdefault(plain_name(name), name)
        names: dict[str, list[str]] = {}
        remarks = []
        for family in (POSTERIOR, BESIDE):
            names[family] = []
            for reading in _names_of(family):
                if reading not in by_plain_name:
                    continue
                name = by_plain_name[reading]
                if items_tested(ds, [name]).sum() >= 2:
                    names[family].append(name)
                else:
                    remarks.append(f"{name} is not tested: it has no readings")
        if "log_likelihood" not in names[POSTERIOR]:
            remarks.append(_NOT_DEAF)
        tested = [*names[POSTERIOR], *names[BESIDE]]
        ranked = [name for name in tested if not twin_of(ds, name).startswith("clone_")]
        return cls(names, ranked, remarks)


def _names_of(family: str) -> list[str]:
    return [reading.name for reading in READINGS.values() if reading.family == family]


# --- tests ----------------------------------------------------------------------------------------


def _tests_of_means(ds: xr.Dataset, chosen: Chosen, level: float, seed: int) -> xr.Dataset:
    """The relabelling tests of all families, with a coordinate `family`."""
    tests = []
    for family, names in chosen.names.items():
        if not names:
            continue
        # The level of a family is shared by all of its tests, of means and of ranks.
        ranked = set(names) & set(chosen.ranked)
        share = len(names) / (len(names) + len(ranked))
        test = calibration(ds, names, level=level * share, seed=seed)
        tests.append(test.assign_coords(family=("reading", [family] * test.sizes["reading"])))
    whole = xr.concat(tests, "reading", combine_attrs="override").transpose("noise", "reading")
    found = xr.Dataset(whole.data_vars, whole.coords, whole.attrs)
    return found.assign_coords(reading=found.reading.values.astype(str))


def _with_effects(ds: xr.Dataset, chosen: Chosen, means: xr.Dataset) -> xr.Dataset:
    """Gaps, effects in their units, and p-values of the means."""
    variables = means.reading.values.tolist()
    unit = xr.ones_like(means.p)
    if "distance" in variables:
        draws = [dim for dim in ds.distance.dims if dim != "noise"]
        unit.loc[{"reading": "distance"}] = ds.distance.mean(draws)
    variance = xr.full_like(means.p, np.nan)
    for name in chosen.ranked:
        originals = ds[twin_of(ds, name)].isel(trajectory=0)
        variance.loc[{"reading": name}] = originals.var("item")
    gap = means[["gap", "low", "high"]].to_array("estimate").assign_coords(estimate=ESTIMATE)
    gap = gap.transpose(..., "estimate")
    with np.errstate(invalid="ignore", divide="ignore"):
        result = means[["p", "p_holm"]].assign(
            gap=gap, effect=gap / unit, visible=means.visible / unit, variance=variance
        )
    return result.assign_coords(
        effect_unit=("reading", [_unit_of_effect(ds, name) for name in variables]),
        blind=("reading", [READINGS[plain_name(name)].blind for name in variables]),
    )


def _unit_of_effect(ds: xr.Dataset, name: str) -> str:
    if plain_name(name) == "same_component":
        return "difference of shares"
    if name == "distance":
        return "share"
    instructions = json.loads(ds[name].attrs.get("reading", "{}"))
    return str(instructions.get("unit", ""))


def _with_ranks(
    ds: xr.Dataset, chosen: Chosen, result: xr.Dataset, level: float, seed: int
) -> xr.Dataset:
    """The tests of ranks, NaN for readings of two data."""
    none = xr.full_like(result.p, np.nan)
    result = result.assign(rank_p=none, rank_p_holm=none)
    if not chosen.ranked:
        return result
    tests = ranks(ds, chosen.ranked, level=level, seed=seed)[["p", "difference"]]
    tests = tests.reindex(reading=result.reading.values).transpose("noise", "reading", ...)
    return result.assign(rank_p=tests.p, rank_difference=tests.difference)


def _adjusted(result: xr.Dataset) -> xr.Dataset:
    """p-values by Holm over means and ranks of each family together."""
    p = np.stack([result.p.values, result.rank_p.values])
    for family in np.unique(result.family.values):
        is_tested = np.isfinite(p) & (result.family.values == family)
        p[is_tested] = holm(p[is_tested])
    p_means, p_ranks = p
    return result.assign(
        p_holm=result.p.copy(data=p_means), rank_p_holm=result.p.copy(data=p_ranks)
    )


def _with_untested(ds: xr.Dataset, result: xr.Dataset) -> xr.Dataset:
    """The means of the readings without a test, and the coverage of exact draws."""
    K = ds.sizes["clone"]
    result = result.assign(coverage_expected=(K - 1) / (K + 1))
    if "coverage" in ds:
        result["coverage"] = proportion(ds.coverage)
    if "z_squared" in ds:
        result["z_squared"] = mean_curves(ds.z_squared)
    return result


def _with_kinds(result: xr.Dataset, level: float) -> xr.Dataset:
    """The kind of error at each noise level, the test that decided, and the residual."""
    kinds = []
    decided = []
    for k in range(result.sizes["noise"]):
        readings = readings_at(result.isel(noise=k))
        kinds.append(kind_of(readings, level).value)
        decided.append(decisive_test(readings, level))
    return result.assign(
        kind=("noise", kinds), decided=("noise", decided), residual=("noise", _residuals(result))
    )


def _residuals(result: xr.Dataset) -> np.ndarray:
    """sqrt(1 + gap / variance) of log p(y | x), which has the variance of half as many squares of
    residuals as there are measured values.
    """
    if "log_likelihood" not in result.reading:
        return np.full(result.sizes["noise"], np.nan)
    likelihood = result.sel(reading="log_likelihood")
    with np.errstate(invalid="ignore", divide="ignore"):
        misfit = likelihood.gap.sel(estimate="value").values / likelihood.variance.values
    return np.asarray(np.sqrt((1 + misfit).clip(0)))


def _is_passed(result: xr.Dataset, family: str, level: float) -> bool:
    """Whether no test of a family rejects."""
    tests = result[["p_holm", "rank_p_holm"]].to_array()
    least = np.nanmin(tests.values, axis=(0, 1))
    return bool((least[result.family.values == family] > level).all())
