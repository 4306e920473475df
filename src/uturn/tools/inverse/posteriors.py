"""Tests of a posterior sampler by the readings of its clones: a family of exact tests, effect
sizes, and the kind of error.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from uturn.core import display
from uturn.core.checks import expect
from uturn.core.messages import shown
from uturn.measures.calibration import calibration, holm, items_tested, twin_of
from uturn.measures.estimates import ESTIMATE, checked_share, with_interval
from uturn.measures.intervals import mean_curves, proportion
from uturn.measures.ranks import ranks
from uturn.measures.readings import WITHIN
from uturn.studies.tables import TextTable, for_terminal

NONE_SEEN = "none seen"
OTHER = "some other error"
DEAF = "deaf to the data"
KINDS = {
    DEAF: "clones fit the measurement far worse than the original does",
    "shifted": "clones have another mean than the originals",
    "too sure": "clones are closer to each other, or to the measurement, than to the original",
    "not sure enough": "clones are farther from each other than from the original",
    "wrong modes": "clones share a class more or less often than the original does with them",
    "unlike the data": (
        "clones have another probability than the originals, but their spread is right"
    ),
}
"""Kinds of errors, in the order in which they are looked for, and what is then seen."""
BLIND = {
    "distance": "a sampler that ignores y; values drawn one by one",
    "same_component": "errors within a class; a sampler that ignores y",
    "log_likelihood": "errors in what y does not determine",
    "log_prior": "a sampler that ignores y; wrong weights of the modes",
    "reference_distance": "errors that keep the distances to the reference",
    "mean_value": "errors that keep the mean of the values",
    "coverage": "a sampler that ignores y; values drawn one by one",
    "z_squared": "a sampler that ignores y; values drawn one by one",
}
"""What a test cannot see, by reading (`plain_name`)."""
_FAMILY = ("distance", "same_component", "log_likelihood", "log_prior")
_BESIDE = ("reference_distance", "mean_value")
_CLEAR = 0.05  # p-value up to which a test counts in the choice of the kind
_MATTERS = 0.03  # relative gap of the distance, or difference of shares, from which on it counts
# Relative gap of the distance below which clones can be deaf; "unlike the data" below twice this
# value.
_SMALL = 0.1
# A mean is shifted if it differs from 0 by more than this many half-widths of its 95 % interval.
_FAR = 1.5


class PosteriorTests(xr.Dataset):
    """The dataset of `uturn.posterior_tests`, which prints as its tables."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not {"p", "kind"} <= set(self.data_vars) or "noise" not in self.dims:
            return super().__repr__()
        tables = [for_terminal(TextTable(title_of(at), *rows_of(at))) for at in by_level(self)]
        return display.text(*tables, *filter(None, self.attrs["remark"].split("; ")))


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
    `rank_p_holm` (noise, reading), NaN where there is no such test; `rank_difference` (noise,
    reading, rank), `difference` of `uturn.ranks`; `coverage`, `z_squared` (noise, estimate),
    numbers without a test, to be compared with `coverage_expected` = (K - 1) / (K + 1) and 1;
    `kind` (noise), one of `KINDS` of this module, "some other error", or "none seen"; `decided`
    (noise), the test of means that rejects most clearly, such as "log_prior", or that of ranks,
    "ranks of log_prior", if no mean rejects; `residual` (noise), root mean square residual of the
    clones from the measurement, in those of the originals, for Gaussian noise. Coordinates of a
    reading: `family` ("posterior", "beside"), `effect_unit`, `blind` (what its test cannot see).
    Attributes: `passed`, `passed_beside`, `level`, `items`, `clones`, `remark`.

    Examples
    --------
    >>> import uturn as ut
    >>> x = ut.random.normals(ut.random.keys(0, range(300)), 5 * 8).reshape(300, 5, 8)  # an original and four clones
    >>> x[:, 1:] *= 0.5
    >>> rms = lambda a, b: np.sqrt(((a - b) ** 2).mean(-1))
    >>> found = ut.posterior_tests(ut.readings(ut.readings_of(x[:, 0], x[None, :, None, 1:], rms, "distance"), [1.0], start=0))
    >>> found.kind.item(), found.effect.sel(reading="distance", estimate="value").item()
    ('too sure', 0.34...)
    """
    names, remarks = _names(ds)
    ranked = [
        name
        for some in names.values()
        for name in some
        if not twin_of(ds, name).startswith("clone_")
    ]
    tests = {}
    for family, some in names.items():
        if some:  # the relabellings, and what is visible, are those of all tests of the family
            share = len(some) / (len(some) + len(set(some) & set(ranked)))
            tests[family] = calibration(
                ds, some, level=checked_share("level", level) * share, seed=seed
            )
    if "posterior" not in tests:
        raise ValueError(
            f"ds = {shown(ds)}: no reading of the family {', '.join(_FAMILY)} can be tested;"
            " expected a run with clones >= 2, at least 2 items and the probe 'posterior'"
        )
    families = {
        family: ("reading", [family] * test.sizes["reading"]) for family, test in tests.items()
    }
    of_all = xr.concat(
        [test.assign_coords(family=families[family]) for family, test in tests.items()], "reading"
    )
    of_all = of_all.transpose("noise", "reading")
    readings = [str(name) for name in of_all.reading.values]
    size = xr.ones_like(of_all.p)
    variance = xr.full_like(of_all.p, np.nan)
    if "distance" in readings:
        size.loc[{"reading": "distance"}] = ds.distance.mean(
            [dim for dim in ds.distance.dims if dim != "noise"]
        )
    for name in ranked:
        variance.loc[{"reading": name}] = ds[twin_of(ds, name)].isel(trajectory=0).var("item")
    gap = (
        of_all[["gap", "low", "high"]]
        .to_array("estimate")
        .assign_coords(estimate=ESTIMATE)
        .transpose(..., "estimate")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        result = of_all[["p", "p_holm"]].assign(
            gap=gap, effect=gap / size, visible=of_all.visible / size
        )
    result = result.assign(
        {key: xr.full_like(of_all.p, np.nan) for key in ("rank_p", "rank_p_holm")}
    )
    if ranked:
        of_ranks = ranks(ds, ranked, level=level, seed=seed)[["p", "difference"]].reindex(
            reading=readings
        )
        result = result.assign(
            {
                f"rank_{key}": values
                for key, values in of_ranks.transpose("noise", "reading", ...).items()
            }
        )
    both = np.stack([result.p.values, result.rank_p.values])  # (means and ranks, noise, reading)
    for family in tests:
        there = np.isfinite(both) & (result.family.values == family)
        both[there] = holm(both[there])
    result = result.assign(
        p_holm=result.p.copy(data=both[0]), rank_p_holm=result.p.copy(data=both[1])
    )
    for name in ("coverage", "z_squared"):
        if name in ds:
            result[name] = (proportion if name == "coverage" else mean_curves)(ds[name])
    K = ds.sizes["clone"]
    result["coverage_expected"] = (K - 1) / (K + 1)
    result = result.assign_coords(
        effect_unit=("reading", [_unit_of_effect(ds, name) for name in readings]),
        blind=("reading", [BLIND[plain_name(name)] for name in readings]),
    )
    result["kind"] = (
        "noise",
        [_kind(at, level) for at in by_level(result.assign(variance=variance))],
    )
    result["decided"] = ("noise", [_decided(at, level) for at in by_level(result)])
    fits = np.array([plain_name(name) == "log_likelihood" for name in readings])
    with np.errstate(invalid="ignore", divide="ignore"):
        misfit = (result.gap.sel(estimate="value") / variance).values[:, fits]
    result["residual"] = (
        "noise",
        np.sqrt((1 + misfit).clip(0))[:, 0] if fits.any() else np.full(len(misfit), np.nan),
    )
    passed = {
        family: bool((np.nanmin(both, axis=(0, 1))[result.family.values == family] > level).all())
        for family in names
    }
    result.attrs = {
        "passed": passed["posterior"],
        "passed_beside": passed["beside"],
        "level": float(level),
        "items": tests["posterior"].attrs["items"],
        "clones": K,
        "remark": "; ".join(remarks),
    }
    return PosteriorTests(result.data_vars, result.coords, result.attrs)


def _names(ds: Any) -> tuple[dict[str, list[str]], list[str]]:
    """The readings of the family and those beside it that have values for a test, and remarks on
    those that have none.
    """
    expect(
        isinstance(ds, xr.Dataset),
        "ds",
        ds,
        "the dataset that uturn.run gives for an experiment with clones >= 2",
    )
    tested = [
        str(name)
        for name in ds.data_vars
        if set(ds[name].dims) <= {"noise", *WITHIN} and twin_of(ds, str(name))
    ]
    # The first, if there are several classifiers.
    by_plain_name = {plain_name(name): name for name in reversed(tested)}
    names: dict[str, list[str]] = {}
    remarks = []
    for key, some in (("posterior", _FAMILY), ("beside", _BESIDE)):
        there = [by_plain_name[name] for name in some if name in by_plain_name]
        names[key] = [name for name in there if items_tested(ds, [name]).sum() >= 2]
        remarks += [
            f"{name} is not tested: it has no readings" for name in there if name not in names[key]
        ]
    if "log_likelihood" not in names["posterior"]:
        remarks.append("without log p(y | x), no test sees a sampler that ignores the measurement")
    return names, remarks


def plain_name(name: str) -> str:
    """The name of a reading in this module: "same_component" also for the class by a classifier,
    `<probe>_same_class`.
    """
    return "same_component" if name.endswith("same_class") else name


def _unit_of_effect(ds: xr.Dataset, name: str) -> str:
    if plain_name(name) == "same_component":
        return "difference of shares"
    return (
        "share"
        if name == "distance"
        else str(json.loads(ds[name].attrs.get("reading", "{}")).get("unit", ""))
    )


def _kind(tests: xr.Dataset, level: float) -> str:
    """The kind of error at one noise level, from the tests that reject and the signs and sizes
    of their effects.
    """
    if not any((tests[key] <= level).any() for key in ("p_holm", "rank_p_holm")):
        return NONE_SEEN
    readings = [plain_name(str(name)) for name in tests.reading.values]
    effects = dict(zip(readings, tests.effect.sel(estimate="value").values.tolist(), strict=True))
    clear = {
        name: effects[name] for name, p in zip(readings, tests.p.values, strict=True) if p <= _CLEAR
    }
    # A log-density that is lower by its variance among originals, about half the number of values
    # that count, has a relative size of 1; clones whose errors have c^2 times the right variance
    # have about c^2 - 1.
    variances = dict(zip(readings, tests.variance.values, strict=True))
    with np.errstate(divide="ignore"):  # all originals may have one log-density
        relative = {
            name: clear[name] / variances[name]
            for name in ("log_prior", "log_likelihood")
            if name in clear
        }
    # Above 0: clones closer to each other than to the original; less probable than it; fitting y
    # less than it.
    closer = effects.get("distance", 0.0)
    improbable = relative.get("log_prior", 0.0)
    misfit = relative.get("log_likelihood", 0.0)
    modes = abs(clear.get("same_component", 0.0))
    spread = clear.get("distance", 0.0)
    spread = spread if abs(spread) >= _MATTERS else 0.0
    if misfit > 1 and abs(closer) < _SMALL:
        return DEAF
    if "mean_value" in readings:
        of_mean = tests.isel(reading=readings.index("mean_value"))
        value, low, high = of_mean.effect.values
        if of_mean.p_holm <= level and abs(value) > _FAR * (high - low) / 2:
            return "shifted"
    if improbable > 3 and abs(closer) < 2 * _SMALL:
        return "unlike the data"
    if modes >= _MATTERS and modes > abs(spread):
        return "wrong modes"
    if spread or improbable < 0:
        return "not sure enough" if spread < 0 else "too sure"
    if improbable > 0:
        return "not sure enough" if misfit > 0 else "unlike the data"
    if misfit:
        return DEAF if misfit > 0 else "too sure"
    return OTHER


def _decided(tests: xr.Dataset, level: float) -> str:
    """The test that rejects most clearly: by p, then by effect over what is visible, since
    relabellings bound p from below.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.abs(tests.effect.sel(estimate="value").values / tests.visible.values)
    for key, words in (("p_holm", ""), ("rank_p_holm", "ranks of ")):
        first = int(np.lexsort((-size, tests[key].values))[0])  # NaN are last
        if tests[key].values[first] <= level:
            return f"{words}{tests.reading.values[first]}"
    return ""


def by_level(tests: xr.Dataset) -> list[xr.Dataset]:
    return [tests.isel(noise=k) for k in range(tests.sizes["noise"])]


def untested(at: xr.Dataset) -> dict[str, tuple[np.ndarray, float]]:
    """The numbers of one noise level that have no test: their value with its interval, and what
    exact draws give.
    """
    expected = {"coverage": float(at.coverage_expected), "z_squared": 1.0}
    return {name: (at[name].values, number) for name, number in expected.items() if name in at}


def meaning_of(at: xr.Dataset) -> str:
    """What the kind of error at one noise level means, and how far clones that fit the
    measurement worse are from it.
    """
    kind = str(at.kind.item())
    residual = float(at.residual)
    far = (
        f", with residuals about {residual:.2g} times as large"
        if kind == DEAF and np.isfinite(residual)
        else ""
    )
    return f"{KINDS[kind]}{far}" if kind in KINDS else ""


def decision_of(at: xr.Dataset) -> str:
    """The test that decided at one noise level, with its p-value by Holm; "" if none rejects."""
    if not at.decided.item():
        return ""
    decided = str(at.decided.item())
    p = at["rank_p_holm" if decided.startswith("ranks of ") else "p_holm"].sel(
        reading=decided.removeprefix("ranks of ")
    )
    return f"decided by {decided}, p = {float(p):.2g}"


def title_of(at: xr.Dataset) -> str:
    """The kind of error at one noise level in words, and the test that decided."""
    meaning = f" ({words})" if (words := meaning_of(at)) else ""
    return "; ".join(
        filter(None, [f"noise {float(at.noise):.3g}: {at.kind.item()}{meaning}", decision_of(at)])
    )


def rows_of(at: xr.Dataset) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the table of one noise level."""
    heads = ("reading", "effect [95 % interval]", "p by Holm", "p of ranks", "cannot see")
    rows: list[tuple[str, ...]] = []
    for reading in at.reading.values:
        of = at.sel(reading=reading)
        effect = f"{with_interval(of.effect.values)} {of.effect_unit.item()}".rstrip()
        p, rank_p = (
            f"{float(of[key]):.2g}" if np.isfinite(of[key]) else ""
            for key in ("p_holm", "rank_p_holm")
        )
        beside = "" if of.family.item() == "posterior" else " (beside)"
        rows.append((f"{reading}{beside}", effect, p, rank_p, str(of.blind.item())))
    for name, (values, expected) in untested(at).items():
        rows.append(
            (name, f"{with_interval(values)}, expected {expected:.3g}", "", "", BLIND[name])
        )
    return heads, rows
