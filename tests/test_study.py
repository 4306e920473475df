"""`uturn.study`: the rules of `Variable`, places on all axes against plain loops, differences,
medians, hostile attributes.
"""

import json
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import beta
from scipy.stats import t as student
from typer.testing import CliRunner

import uturn as ut
from forging import passed
from small import one_line_error
from uturn.cli import app
from uturn.core.protocols import Variable
from uturn.measures.calibration import holm
from uturn.measures.changes import correlations, susceptibility
from uturn.measures.statistics import replicates, with_interval
from uturn.pages import report, write_study
from uturn.studies import difference, named_runs, study_of, tidy
from uturn.studies.axes import Axes, common_axis
from uturn.studies.charts import changes_charts
from uturn.studies.checked_run import Run
from uturn.studies.figure import draw_studies, draw_study
from uturn.studies.headline import headline_of
from uturn.studies.moves import Moves
from uturn.studies.paired import table_of
from uturn.studies.readings import read_readings
from uturn.studies.schema import NAMES
from uturn.studies.tables import remarks

DIMS = ("noise", "item", "trajectory")
RHM = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3}
STRINGS = {
    "source": RHM,
    "corruption": {"type": "masking", "noise": [0.5]},
    "backward": {"type": "exact"},
}
NOISE = np.array([0.1, 0.3, 0.4, 0.7, 1.0])


def dataset(variables, noise=NOISE, attrs=None, **coords):
    """A run made by hand: {name: (values, Variable)}, with the reading instructions in the
    attribute of each array.
    """
    data = {
        name: (
            variable.dims,
            values,
            {"long_name": variable.long_name, "reading": json.dumps(variable.instructions())},
        )
        for name, (values, variable) in variables.items()
    }
    return xr.Dataset(data, {"noise": np.asarray(noise, float), **coords}, attrs or {})


def falling(end=0.1, items=12, noise=NOISE, seed=0, scatter=0.1, start=1.0):
    """Readings (noise, item, trajectory) that go from start to about `end`, faster for some
    items.
    """
    rng = np.random.default_rng(seed)
    finite = np.where(np.isfinite(noise), noise, 2 * np.max(noise[np.isfinite(noise)]))
    steep = 2 + scatter * rng.standard_normal((1, items, 2)) * 5
    return end + (start - end) * np.exp(-steep * finite[:, None, None] ** 2 * 2)


def plain_place(x, curve, start, chance, share):
    """The first x at which a curve, 0 of the way at its start, has gone a share of the way to
    chance; by a loop over segments.
    """
    way = [(value - start) / (chance - start) for value in curve]
    for (a, b), (u, v) in zip(pairwise(x), pairwise(way), strict=True):
        if u < share <= v:
            return a + (b - a) * (share - u) / (v - u)
    return np.nan


def places_of(found, reading, axis="noise"):
    return found.place.sel(reading=reading, axis=axis, estimate="value").values


def check_places(found, reading, curve, start, chance):
    """The numbers of a reading on the axis noise against `plain_place`."""
    x = np.r_[0, found.noise.values[1:]]
    expected = [
        plain_place(x, [start, *curve], start, chance, share) for share in (0.25, 0.5, 0.75)
    ]
    np.testing.assert_allclose(places_of(found, reading), expected, rtol=1e-9)
    one = found.sel(reading=reading, axis="noise")
    np.testing.assert_allclose(one.curve[:, 0], [start, *curve])
    np.testing.assert_allclose(one.half_life[0], expected[1])
    np.testing.assert_allclose(one.width[0], expected[2] - expected[0])
    np.testing.assert_allclose(one.start, start)


# --- where a curve starts and ends ----------------------------------------------------------------


def mean(values):
    return values.mean((1, 2))


@pytest.mark.parametrize(
    ("rules", "start", "chance"),
    [
        ({"start": 1}, 1, None),
        ({"start": "before"}, 0.9, None),
        ({"start": "at_first", "chance": "at_last"}, 0.95, -0.1),
        ({"start": 1, "chance": "same:label"}, 1, (36 + 9 + 9) / 144),
        ({"start": "same:guess=label"}, 0.8, None),
    ],
)
def test_start_and_chance(rules, start, chance):
    values = falling()
    before = np.full((5, 12), 0.9) + np.arange(12) * 0.01 - 0.055
    before[1:] = 7
    run = dataset(
        {
            "kept": (values, Variable(DIMS, "kept", **rules)),
            "before": (before, Variable(("noise", "item"), "before", role="record")),
        },
        at_first=0.95,
        at_last=-0.1,
        label=(
            ("item", [0] * 6 + [1] * 3 + [2] * 3)
            if "same:label" in rules.values()
            else ("item", [0] * 10 + [-1] * 2)
        ),
        guess=("item", [0] * 8 + [1] * 4),
    )
    found = ut.study(run)
    curve = mean(values)
    check_places(found, "kept", curve, start, curve[-1] if chance is None else chance)
    assert float(found.chance[0]) == pytest.approx(
        np.nan if chance is None else chance, nan_ok=True
    )
    assert ("where chance is not known, the value at noise 1" in "".join(remarks(found))) == (
        chance is None
    )


@pytest.mark.parametrize("labels", [["a", "b", ""], [0, 1, -1], [0.5, 1.5, np.nan]])
def test_originals_without_a_label_agree_with_none(labels):
    run = ut.readings(
        {"same": falling()},
        NOISE,
        start=1,
        chance="same:label",
        coords={"label": ("item", labels * 4)},
    )
    assert float(ut.study(run).chance[0]) == 0.5
    assert list(ut.choose(run, "same", keep=0.5, by="label").by) == labels[:2]
    alone = run.assign_coords(label=("item", labels[2:] * 12))
    assert "where chance is not known" in "".join(remarks(ut.study(alone)))


def test_start_and_chance_differ_by_level():
    values = np.stack([falling(0.1), falling(0.4, seed=1)], -1)
    variable = Variable((*DIMS, "layer"), "kept", start="top", chance="floor")
    run = dataset(
        {"kept": (values, variable)},
        layer=["a", "b"],
        top=("layer", [1.0, 0.95]),
        floor=("layer", [0.0, 0.3]),
    )
    found = ut.study(run)
    for k, layer in enumerate("ab"):
        check_places(
            found, f"kept, layer = {layer}", mean(values[..., k]), [1.0, 0.95][k], [0.0, 0.3][k]
        )
    assert found.level.values.tolist() == ["a", "b"]
    assert found.chance.values.tolist() == [0.0, 0.3]


def test_a_start_of_items_moves_with_them():
    """The start of an item is part of its replicate: with the same fall of all items, the
    half-life is known exactly.
    """
    begin = np.random.default_rng(0).standard_normal(12)
    values = begin[None, :, None] - np.array([0.1, 0.7, 0.8, 1.0, 1.2])[:, None, None] * np.ones(
        (1, 12, 2)
    )
    run = dataset(
        {"log": (values, Variable(DIMS, "log-likelihood", start="begin"))}, begin=("item", begin)
    )
    found = ut.study(run)
    check_places(found, "log", mean(values), begin.mean(), mean(values)[-1])
    # The two levels around it, and no more.
    assert found.half_life.sel(axis="noise").values[0, 1:].tolist() == [0.1, 0.3]
    by_chance = run.assign_coords(end=begin.mean() - 1.2)
    by_chance.log.attrs["reading"] = '{"start": "begin", "chance": "end"}'
    # An end that does not move with them.
    assert np.ptp(ut.study(by_chance).half_life.sel(axis="noise").values) > 0.25


def test_a_distance_rises():
    values = 1.5 - falling(0.2)
    run = dataset(
        {"distance": (values, Variable(DIMS, "distance", start=0, chance=1.2, bounds=(0, None)))}
    )
    found = ut.study(run)
    check_places(found, "distance", mean(values), 0, 1.2)
    assert found.start.item() == 0
    assert (found.curve.sel(estimate="low") >= 0).all()


def test_a_curve_that_falls_twice_has_its_place_at_the_first_fall():
    values = np.array([0.9, 0.2, 0.8, 0.3, 0.1])[:, None, None] * np.ones((1, 12, 2))
    found = ut.study(dataset({"kept": (values, Variable(DIMS, "kept", start=1))}))
    check_places(found, "kept", mean(values), 1, 0.1)
    assert 0.1 < found.half_life.sel(axis="noise")[0, 0] < 0.3


def test_without_a_start_there_are_no_places():
    values = falling()
    found = ut.study(dataset({"kept": (values, Variable(DIMS, "kept"))}))
    assert np.isnan(found[["place", "half_life", "width", "start"]].to_array()).all()
    np.testing.assert_allclose(found.curve[0, 1:, 0], mean(values))
    assert remarks(found) == ["kept: no start is given: no half-life"]


def test_equal_start_and_chance_have_no_half_life():
    run = dataset(
        {"kept": (falling(), Variable(DIMS, "kept", start=1, chance="same:label"))},
        label=("item", np.zeros(12)),
    )
    found = ut.study(run)
    assert np.isnan(found.place).all()
    assert "chance equals the value without noise" in str(found.remark.item())


# --- bounds and intervals -------------------------------------------------------------------------


def test_bounds_clip_intervals_and_shares_have_those_of_proportions():
    values = np.clip(falling(0.05), 0, 1)
    values[0] = 1  # all kept
    bounded = {"start": 1, "bounds": (-1, 1)}
    share, cosine, free = (ut.study(dataset({"kept": (values, Variable(DIMS, "kept", **rules))})).curve[0, 1:].values
                           for rules in ({"start": 1, "bounds": (0, 1)}, bounded, {"start": 1}))  # fmt: skip
    assert share[0, 1] < 1  # 12 of 12 kept is no certainty
    assert share[0, 2] == 1
    assert cosine[0].tolist() == [1, 1, 1]  # Student's t of equal readings
    np.testing.assert_allclose(share[:, 0], free[:, 0])
    np.testing.assert_allclose(cosine, np.clip(free, -1, 1))
    values = np.random.default_rng(0).choice([0.3, 1], (5, 3, 2))
    wide, tight = (ut.study(dataset({"kept": (values, Variable(DIMS, "kept", start=1, bounds=bounds))})).curve[0, 1:].values
                   for bounds in ((None, None), (0.3, 1)))  # fmt: skip
    assert wide.min() < 0.3
    assert wide.max() > 1
    np.testing.assert_array_equal(tight, np.clip(wide, 0.3, 1))


@pytest.mark.parametrize("bounds", [(0, 1), (None, 0.5)])
def test_bounds_that_the_readings_leave_are_not_used(bounds):
    values = 2 * falling() - 0.5
    found, free = (
        ut.study(dataset({"kept": (values, Variable(DIMS, "kept", bounds=limits))}))
        for limits in (bounds, (None,) * 2)
    )
    np.testing.assert_array_equal(found.curve, free.curve)
    assert f"readings from {values.min():.3g} to {values.max():.3g} leave the bounds" in str(
        found.remark.item()
    )
    rounded = np.clip(falling(), 0, 1).astype(np.float32) + np.float32(1e-7)
    near = ut.study(dataset({"kept": (rounded, Variable(DIMS, "kept", start=1, bounds=(0, 1)))}))
    assert str(near.remark.item()) == ""


def test_the_spread_of_grammars_is_said_of_grammars():
    values = np.array([0.5, 0.51, 0.6, 0.61, 0.91, 0.92, 0.9, 0.905, 0.895, 0.9, 0.89, 0.88])[
        None, :, None
    ] * np.ones((5, 1, 1))
    run = dataset(
        {"kept": (values, Variable(DIMS, "kept", start=1, bounds=(0, 1)))},
        grammar=("item", np.arange(12) // 2),
    )
    (of_grammars,) = ut.study(run).remark.values
    assert "the spread comes from two grammars" in of_grammars
    single = run.drop_vars("grammar").isel(item=slice(0, None, 2))
    assert "the spread comes from two originals" in ut.study(single).remark.values[0]


def test_readings_that_are_missing_for_some_items():
    """Items without any reading of a level have no part in its mean; other levels keep them."""
    values = np.stack([falling(0.1), falling(0.2, seed=1)], -1)
    values[:, 3:5, :, 1] = np.nan
    variable = Variable((*DIMS, "region"), "kept", start=1)
    found = ut.study(dataset({"kept": (values, variable)}, region=["a", "b"]))
    check_places(found, "kept, region = a", mean(values[..., 0]), 1, mean(values[..., 0])[-1])
    there = mean(np.delete(values[..., 1], [3, 4], axis=1))
    check_places(found, "kept, region = b", there, 1, there[-1])
    alone = ut.study(
        dataset({"kept": (np.delete(values, [3, 4], axis=1), variable)}, region=["a", "b"])
    )
    np.testing.assert_array_equal(alone.curve[1], found.curve[1])
    nothing = ut.study(
        dataset({"kept": (values * np.array([1, np.nan]), variable)}, region=["a", "b"])
    )
    assert np.isnan(nothing.place[1]).all()
    np.testing.assert_array_equal(nothing.place[0], found.place[0])


def test_a_name_with_a_semicolon_does_not_split_a_remark():
    values = falling()
    values[:, 3] = np.nan
    names = [f"p; {k}" for k in range(12)]
    variable = Variable(DIMS, "kept", start=1)
    found = ut.study(dataset({"kept": (values, variable)}, item_name=("item", names)))
    assert "no readings of p, 3" in remarks(found)


def test_a_single_original_has_no_intervals():
    values = falling(items=1)
    found = ut.study(dataset({"kept": (values, Variable(DIMS, "kept", start=1))}))
    check_places(found, "kept", mean(values), 1, mean(values)[-1])
    assert np.isnan(found.curve[0, 1:, 1:]).all()
    assert "a single original: no intervals" in remarks(found)


def test_noise_may_be_in_any_order():
    run = dataset(
        {"kept": (falling(), Variable(DIMS, "kept", start=1))}, step=("noise", [1, 3, 4, 7, 10])
    )
    order = [3, 0, 4, 1, 2]
    xr.testing.assert_identical(ut.study(run.isel(noise=order)), ut.study(run))


# --- axes -----------------------------------------------------------------------------------------


def test_a_width_can_reach_from_the_level_before_its_first_end_to_that_after_its_second():
    """All originals fall from 1 at .3 to .5 at .6 and to 0 at .9: each end of the width lies
    anywhere between two levels.
    """
    values = np.array([1.0, 1.0, 0.5, 0.0])[:, None].repeat(15, 1)
    found = ut.study(ut.readings({"near": values}, [0.1, 0.3, 0.6, 0.9], start=1, chance=0))
    np.testing.assert_allclose(
        found.width.sel(reading="near", axis="noise"), [0.3, 0.0, 0.6], atol=1e-9
    )


def test_places_and_widths_on_all_axes():
    """Steps are interpolated linearly; abar, log-SNR and sigma in the angle whose tangent is
    sigma.
    """
    abar = np.array([0.97, 0.8, 0.65, 0.2, 0.01])
    values = falling()
    run = dataset(
        {"kept": (values, Variable(DIMS, "kept", start=1, chance=0.0))},
        step=("noise", [100, 300, 400, 700, 1000]),
        effective_epsilon=("noise", [0.2, 0.3, 0.6, 0.8, 1.0]),
        strength=(
            "noise",
            [0.5, 1.0, 1.5, 2.0, 4.0],
            {"clean": 0.25, "long_name": "strength of the noise"},
        ),
        log_snr=("noise", np.log(abar / (1 - abar))),
        abar=("noise", abar),
    )
    found = ut.study(run)
    assert found.axis.values.tolist() == [
        "noise",
        "effective_epsilon",
        "step",
        "strength",
        "abar",
        "log_snr",
        "sigma",
    ]
    assert found.strength.attrs["long_name"] == "strength of the noise"
    at = [plain_place([0, *NOISE], [1, *mean(values)], 1, 0, share) for share in (0.25, 0.5, 0.75)]
    angles = np.interp(at, [0, *NOISE], [0, *np.arctan(np.sqrt((1 - abar) / abar))])
    expected = {
        "step": np.interp(at, [0, *NOISE], [0, 100, 300, 400, 700, 1000]),
        "effective_epsilon": np.interp(at, [0, *NOISE], [0, 0.2, 0.3, 0.6, 0.8, 1.0]),
        "strength": np.interp(at, [0, *NOISE], [0.25, 0.5, 1.0, 1.5, 2.0, 4.0]),
        "abar": np.cos(angles) ** 2,
        "log_snr": -2 * np.log(np.tan(angles)),
        "sigma": np.tan(angles),
    }
    for axis, numbers in expected.items():
        np.testing.assert_allclose(places_of(found, "kept", axis), numbers, rtol=1e-9, err_msg=axis)
        width = found.width.sel(reading="kept", axis=axis)
        np.testing.assert_allclose(width[0], abs(numbers[2] - numbers[0]), rtol=1e-9, err_msg=axis)
        assert width[1] <= width[0] <= width[2]
    ends = found.half_life.sel(reading="kept").values
    assert (ends[:, 1] <= ends[:, 0]).all()
    assert (ends[:, 0] <= ends[:, 2]).all()
    assert np.isposinf(found.log_snr[0])
    assert found.sigma[0] == 0


def test_an_infinite_noise_level_is_chance_and_no_place():
    """Gaussian diffusion at t = inf: no place lies beyond the last finite level, whose curve
    goes on to the chance level.
    """
    noise = np.array([0.1, 0.5, 1.0, 2.0, np.inf])
    values = falling(0.05, noise=noise, scatter=0.02)
    values[-1] = 0.02
    run = dataset(
        {"kept": (values, Variable(DIMS, "kept", start=1))},
        noise,
        log_snr=("noise", [2.0, 0.5, -1.0, -4.0, -np.inf]),
    )
    found = ut.study(run)
    curve = mean(values)
    expected = [
        plain_place([0, *noise[:-1]], [1, *curve[:-1]], 1, curve[-1], share)
        for share in (0.25, 0.5, 0.75)
    ]
    np.testing.assert_allclose(places_of(found, "kept"), expected)
    assert np.isfinite(found.half_life).all()
    assert np.isfinite(places_of(found, "kept", "log_snr")).all()
    late = run.assign(kept=run.kept.where(np.isinf(run.noise), 0.9))
    late.kept.attrs = run.kept.attrs
    assert np.isnan(ut.study(late).half_life).all()
    draw_study(found)


def test_axes_of_a_run_that_has_noise_zero():
    run = dataset({"kept": (falling(), Variable(DIMS, "kept", start=1))}, [0.0, 0.2, 0.5, 0.8, 1.0])
    assert Axes.of(run).noise.tolist() == [0.0, 0.2, 0.5, 0.8, 1.0]
    found = ut.study(run)
    # The measured value, and not the declared start.
    np.testing.assert_allclose(found.curve[0, :, 0], mean(run.kept.values))


# --- ordered series, records, changes, families ---------------------------------------------------


def test_inversion_of_ordered_series():
    """Where the last level falls below the first; a series for every combination of the other
    dims.
    """
    first, last = mean(falling(0.3, scatter=0)), np.array([0.99, 0.9, 0.4, 0.2, 0.1])
    levels = np.stack([first, (first + last) / 2, last], -1)
    rng = np.random.default_rng(0)
    values = levels[:, None, None, :, None] + 0.02 * rng.standard_normal((1, 20, 2, 3, 1))
    # Of the second model the order is the reverse.
    values = np.concatenate([values, values[:, :, :, ::-1]], axis=-1)
    run = dataset(
        {
            "kept": (values, Variable((*DIMS, "layer", "model"), "kept", start=1, order="layer")),
            "spans": (values[..., 0], Variable((*DIMS, "layer"), "kept", start=1)),
        },
        layer=["x", "y", "z"],
        model=["a", "b"],
    )
    found = ut.study(run)
    assert found.series.values.tolist() == ["kept, model = a", "kept, model = b"]
    assert (found["first"].values.tolist(), found["last"].values.tolist()) == (
        ["x", "x"],
        ["z", "z"],
    )
    gap = values[..., 2, 0].mean((1, 2)) - values[..., 0, 0].mean((1, 2))
    k = next(k for k in range(4) if gap[k] > 0 >= gap[k + 1])
    swap = NOISE[k] + (NOISE[k + 1] - NOISE[k]) * gap[k] / (gap[k] - gap[k + 1])
    assert found.inversion.sel(
        series="kept, model = a", axis="noise", estimate="value"
    ) == pytest.approx(swap)
    assert np.isnan(found.inversion.sel(series="kept, model = b")).all()
    assert found.series_remark.values.tolist() == ["", "the levels do not swap order"]


def test_an_inversion_is_sure_where_an_interval_lies_below_0():
    """Means of last minus first level: above 0, then .01 below it, with a spread of the
    originals that is large or small.
    """
    below = np.array([0.2, 0.2, 0.1, -0.01, -0.01])[:, None] + np.linspace(-1, 1, 21) * [
        [[1.0]],
        [[0.01]],
    ]
    unsure = (
        "not sure: at no noise is the last level below the first, in one test of all noise levels"
    )
    for last, remark in zip(0.5 + below, (unsure, ""), strict=True):
        values = np.stack([np.full_like(last, 0.5), last], -1)[:, :, None]
        reading = Variable((*DIMS, "layer"), "kept", start=1, order="layer")
        found = ut.study(dataset({"kept": (values, reading)}, layer=["x", "y"]))
        assert 0.4 < found.inversion.sel(axis="noise", estimate="value").item() < 0.7
        assert found.series_remark.item() == remark


@pytest.mark.parametrize(
    ("dims", "values", "why"),
    [
        (("noise", "trajectory"), np.ones((5, 2)), "it has no dim item"),
        ((*DIMS, "site"), np.ones((5, 12, 2, 0)), "it has no values"),
    ],
)
def test_what_has_no_curve_is_named_and_the_rest_is_studied(dims, values, why, tmp_path):
    other = {
        "odd": (values, Variable(dims, "odd", start=1, order="site" if "site" in dims else None))
    }
    found = ut.study(dataset({"kept": (falling(), Variable(DIMS, "kept", start=1)), **other}))
    assert found.reading.values.tolist() == ["kept"]
    assert f"odd is not studied: {why}" in remarks(found)
    run = dataset(
        {
            **other,
            "record": (np.ones((5, 12)), Variable(("noise", "item"), "record", role="record")),
        }
    )
    alone = write_study(run, tmp_path)  # nothing can be drawn
    assert {f"odd is not studied: {why}", "nothing in the run has a curve"} <= set(remarks(alone))
    assert "nothing in the run has a curve" in repr(alone)
    assert xr.open_zarr(tmp_path / "study.zarr").sizes["reading"] == 0
    assert not (tmp_path / "study.png").exists()
    assert draw_studies({"a": alone, "b": alone}) is None


def test_the_names_of_a_study_are_known(strings):
    """Every name that a study has besides noise axes is reserved."""
    found = ut.study(strings)
    assert {"gap", "chi", "inversion"} <= set(found.variables)
    assert set(found.variables) - set(found.axis.values) <= NAMES


def test_changes_are_those_of_the_measures():
    rng = np.random.default_rng(0)
    covariance = (
        np.exp(-np.arange(6) / 2)
        * (1 + 0.1 * rng.standard_normal((5, 12, 1)))
        * np.array([1, 2, 3, 2, 1])[:, None, None]
    )
    total = covariance @ np.array([1, 2, 2, 2, 2, 2]) * np.array([1, 1.5, 3, 1.4, 1.1])[:, None]
    run = dataset(
        {
            "big_change_covariance": (
                covariance,
                Variable(
                    ("noise", "item", "big_distance"), "covariance", role="changes", unit="blocks"
                ),
            ),
            "big_change_covariance_sum": (
                total,
                Variable(("noise", "item"), "sum", role="changes"),
            ),
        },
        big_distance=np.arange(6.0),
    )
    found = ut.study(run).isel(changes=0)
    assert (found.changes.item(), found.unit_of_distance.item()) == ("big", "blocks")
    plain = run.rename(
        {name: str(name).removeprefix("big_") for name in (*run.data_vars, "big_distance")}
    )
    chi = susceptibility(plain)
    np.testing.assert_array_equal(
        found.chi[1:], np.stack([chi[name] for name in ("chi", "low", "high")], -1)
    )
    np.testing.assert_array_equal(found.correlation[1:, :, 0], correlations(plain).correlation)
    np.testing.assert_allclose(found.chi[1:, 0], total.mean(1) / covariance[..., 0].mean(1))
    assert found.peak_at.sel(axis="noise")[0] == pytest.approx(0.4, abs=0.1)
    assert found.peak[0] == found.chi[3, 0]
    assert np.isnan(found.chi[0]).all()
    names = [panel.name for panel in changes_charts(found)]
    assert names == ["chi", "correlation", "xi"]
    without = found.assign(xi=np.nan * found.xi)
    assert [panel.name for panel in changes_charts(without)] == names[:2]
    alone = without.isel(distance=[0])
    assert [panel.name for panel in changes_charts(alone)] == names[:1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
@pytest.mark.parametrize("twin", [False, True])
def test_a_calibration_leaves_out_incomplete_originals(value, twin):
    rng = np.random.default_rng(0)
    dims, variables = (*DIMS, "clone"), {}
    for name in ("a", "b"):
        values, clones = rng.random((2, 5, 12, 2, 2))
        if name == "a":
            (clones if twin else values)[2, 3, 0, 0] = value
        variables[name] = (values, Variable(dims, name, start=1, symmetric=True))
        variables[f"clone_{name}"] = (clones, Variable(dims, name, role="record"))
    run = dataset(variables)
    found, said = (
        ut.study(run),
        "the calibration of a, b leaves out 1 of 12 originals: readings are missing",
    )
    assert (said in remarks(found)) == (not np.isfinite(value))
    expected = ut.study(run if np.isfinite(value) else run.drop_isel(item=3))
    np.testing.assert_array_equal(found.gap_p, expected.gap_p)
    assert np.isfinite(found.gap_p[:, 1:]).all()
    few = ut.study(run.isel(item=[2, 3]))
    assert (
        "the calibration of a is not tested: some of its readings are missing" in remarks(few)
    ) == (not np.isfinite(value))


@pytest.fixture(scope="module")
def strings():
    """A run of strings with clones: an exact posterior."""
    return ut.run(
        ut.Experiment.from_dict(
            {
                "items": 60,
                "trajectories": 2,
                "clones": 2,
                "source": {
                    "type": "rhm",
                    "vocab_size": 8,
                    "multiplicity": 4,
                    "branching": 2,
                    "depth": 3,
                    "grammars": 2,
                },
                "corruption": {"type": "masking", "noise": [0.2, 0.5, 0.8, 1.0]},
                "backward": {"type": "exact"},
                "probes": [
                    *(
                        {"type": kind}
                        for kind in ("tree_levels", "parsed_levels", "messages", "tree_nodes")
                    ),
                    {"type": "changes", "name": "leaf"},
                ],
            }
        )
    )


def test_families_are_tested_together(strings):
    found = ut.study(strings)
    apart = {name: ut.calibration(strings, [name]) for name in ("unchanged", "parsed")}
    for name, of in apart.items():
        rows = found.variable.values == name
        np.testing.assert_array_equal(found.gap_p.values[rows, 1:].T, of.p_holm)
        np.testing.assert_allclose(of.p_holm.values.ravel(), holm(of.p.values.ravel()))
        np.testing.assert_array_equal(found.gap.values[rows, 1:, 0].T, of.gap)
        assert np.isnan(found.gap_p.values[rows, 0]).all()
    assert passed(found) == {"tree_levels": True, "parsed_levels": True}
    assert np.isnan(found.gap_p.values[found.variable.values == "belief"]).all()
    together = strings.copy()
    for name in ("unchanged", "parsed"):
        table = json.loads(strings[name].attrs["reading"]) | {"family": "both"}
        together[name] = strings[name].assign_attrs(reading=json.dumps(table))
    joint, both = ut.study(together), ut.calibration(strings, ["unchanged", "parsed"])
    rows = np.isin(joint.variable.values, ["unchanged", "parsed"])
    np.testing.assert_array_equal(
        np.sort(joint.gap_p.values[rows, 1:].ravel()), np.sort(both.p_holm.values.ravel())
    )
    assert list(passed(joint)) == ["both"]
    # More tests, larger p.
    assert (joint.gap_p.values[rows] >= found.gap_p.values[rows])[:, 1:].all()


# --- damaged and hostile attributes ---------------------------------------------------------------

WRONG = {
    "no JSON": "{",
    "no table": "[]",
    "deep": "[" * 100_000,
    "unknown role": '{"role": "picture"}',
    "NaN": '{"chance": NaN}',
    "more digits than Python reads": '{"start": %s}' % ("9" * 5000),
    "bounds fall": '{"bounds": [1, 0]}',
    "order is no dim": '{"order": "layer"}',
    "start of text": '{"start": "file"}',
    "start by site": '{"start": "token"}',
    "chance beyond bounds": '{"chance": -1, "bounds": [0, null]}',
}


@pytest.mark.parametrize(
    "attribute", [*WRONG.values(), 3, ["x"]], ids=[*WRONG, "no text", "a list of texts"]
)
def test_damaged_instructions_are_errors_of_one_line(attribute):
    run = dataset(
        {"kept": (falling(), Variable(DIMS, "kept", start=1))},
        file=("item", [f"{k}.png" for k in range(12)]),
        token=(("item", "site"), np.zeros((12, 3))),
    )
    run.kept.attrs["reading"] = attribute
    with one_line_error(r"^kept: ", characters=400):
        ut.study(run)


@pytest.mark.parametrize("spec", ["[]", "[" * 100_000, '{"probes": [3]}'])
def test_a_damaged_spec_is_an_error_of_one_line(spec):
    run = dataset({"kept": (falling(), Variable(DIMS, "kept", start=1))}, attrs={"spec": spec})
    del run.kept.attrs["reading"]
    with one_line_error("the run's attribute 'spec' is"):
        ut.study(run)


def test_an_unfinished_run():
    run = dataset(
        {"kept": (falling(), Variable(DIMS, "kept", start=1))}, attrs={"missing_tasks": 3}
    )
    with pytest.raises(ValueError, match="the run is not finished: 3 tasks are missing"):
        ut.study(run)
    assert "the run is not finished: 3 tasks are missing" in remarks(study_of(run))


# --- tables, frames, plain data -------------------------------------------------------------------


def test_tidy(strings):
    found = ut.study(strings)
    curves, numbers = tidy(found)
    assert len(curves) == found.sizes["reading"] * found.sizes["noise"]
    one = curves[(curves.reading == "belief, tree_level = 2") & (curves.noise == 0.5)]
    chosen = found.sel(reading="belief, tree_level = 2", noise=0.5)
    assert one[["value", "low", "high"]].values[0].tolist() == chosen.curve.values.tolist()
    assert (one.level.item(), one.probe.item(), one.variable.item()) == (
        "2",
        "tree_levels",
        "belief",
    )
    row = numbers[
        (numbers.of == "belief, tree_level = 2")
        & (numbers.quantity == "half_life")
        & (numbers.axis == "noise")
    ]
    assert (
        row[["value", "low", "high"]].values[0].tolist()
        == chosen.half_life.sel(axis="noise").values.tolist()
    )
    quantities = {
        "place 0.25",
        "place 0.5",
        "place 0.75",
        "half_life",
        "width",
        "inversion",
        "peak_at",
        "peak",
    }
    assert set(numbers.quantity) == quantities
    both = tidy({"a": found, "b": found})
    assert len(both.curves) == 2 * len(curves)
    assert both.numbers.run.unique().tolist() == ["a", "b"]


def specified(**changes):
    table = {
        "seed": 0,
        "source": {"type": "rhm", "multiplicity": 4},
        "corruption": {"type": "epsilon", "noise": [0.1, 0.3, 0.4, 0.7, 1.0]},
        "probes": [{"type": "tree_levels"}],
    }
    attrs = {"spec": json.dumps({**table, **changes})}
    return dataset({"kept": (falling(), Variable(DIMS, "kept", start=1))}, attrs=attrs)


def test_runs_are_named_by_what_differs():
    sources = [{"type": "rhm", "multiplicity": m} for m in (2, 4, 8)]
    runs = {f"runs/{k}": specified(source=source) for k, source in enumerate(sources)}
    assert list(named_runs(runs)) == ["multiplicity = 2", "multiplicity = 4", "multiplicity = 8"]
    two = {
        "a": specified(seed=1),
        "b": specified(seed=1, source=sources[0]),
        "c": specified(source=sources[0]),
    }
    assert list(named_runs(two)) == [
        "multiplicity = 4, seed = 1",
        "multiplicity = 2, seed = 1",
        "multiplicity = 2, seed = 0",
    ]
    assert list(named_runs({"a": specified(), "b": specified()})) == ["a", "b"]
    same = {"a": specified(seed=1), "b": specified(seed=1), "c": specified()}
    assert list(named_runs(same)) == ["seed = 1 (a)", "seed = 1 (b)", "seed = 0 (c)"]
    assert list(named_runs({"a": specified()})) == ["a"]
    tables = {
        f"{place}.csv": specified(source={"type": "readings", "path": f"/data/{place}.csv"})
        for place in "ab"
    }
    assert list(named_runs(tables)) == ["a.csv", "b.csv"]
    types = {
        "a": specified(),
        "b": specified(source={"type": "own"}, corruption={"type": "masking", "noise": [1.0]}),
    }
    first = next(iter(named_runs(types)))
    assert "source.type = rhm" in first
    assert "corruption.type = epsilon" in first


def test_runs_with_different_units_share_an_axis():
    steps = {"step": ("noise", [1, 3, 4, 7, 10])}

    def run(words, **coords):
        found = dataset({"kept": (falling(), Variable(DIMS, "kept", start=1))}, **coords)
        found.noise.attrs["long_name"] = words
        return ut.study(found)

    same = [run("masked fraction"), run("masked fraction")]
    assert common_axis(same) == "noise"
    other = [run("masked fraction", **steps), run("epsilon", **steps)]
    assert common_axis(other) == "step"
    with pytest.raises(ValueError, match="expected an axis in common"):
        common_axis([same[0], other[1]])
    figure = draw_studies({"a": other[0], "b": other[1]})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [0, 1, 3, 4, 7, 10])


def test_readings_in_several_units_share_no_chart():
    of_units = {
        unit: ut.readings({"rmsd": NOISE[:, None] * [1, 2, 3]}, NOISE, start=0, units=unit)
        for unit in ("nm", "Å", "")
    }
    studies = {unit: ut.study(run) for unit, run in of_units.items()}
    message = "unit of rmsd = 'Å': expected 'nm', as in the first run"
    with pytest.raises(ValueError, match=message):
        difference({unit: of_units[unit] for unit in ("nm", "Å")})
    for names in (("nm", "Å"), ("", "nm", "Å")):
        with pytest.raises(ValueError, match=message):
            draw_studies({unit: studies[unit] for unit in names})
    assert common_axis([studies["nm"], studies[""]]) == "noise"  # an unknown unit


# --- folders of results ---------------------------------------------------------------------------


def pages_of(folder):
    """The titles of the runs that the page of a folder shows, from the data in it."""
    text = (folder / "index.html").read_text()
    return set(re.findall(r"multiplicity = (\d)", text)), "rhm-one" in text


def runs_of(*multiplicities):
    return named_runs(
        {str(m): specified(source={"type": "rhm", "multiplicity": m}) for m in multiplicities}
    )


def test_a_page_shows_the_last_study_of_its_folder(tmp_path):
    """Datasets of an earlier call, of which there were more or fewer, are removed."""
    one = specified().assign_attrs(description="rhm-one")
    write_study(one, tmp_path)
    assert pages_of(tmp_path) == (set(), True)
    write_study(runs_of(2, 4, 8), tmp_path)
    assert pages_of(tmp_path) == ({"2", "4", "8"}, False)
    write_study(runs_of(3, 5), tmp_path)
    assert pages_of(tmp_path) == ({"3", "5"}, False)
    write_study(one, tmp_path)
    assert pages_of(tmp_path) == (set(), True)
    assert [path.name for path in tmp_path.glob("*.zarr")] == ["study.zarr"]
    assert report([tmp_path])[1] == []


def foreign(path, kind):
    """Something that is no study at a path, and a file that must stay."""
    if kind == "store":
        spec = {**STRINGS, "items": 2, "probes": [{"type": "tree_levels"}]}
        ut.run(ut.Experiment.from_dict(spec), path)
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("")
    elif kind == "damaged":
        path.mkdir()
        (path / "zarr.json").write_text("[" * 100_000)
    else:
        target = path.parent.parent / "target"
        write_study(specified(), target)
        path.symlink_to(target / "study.zarr")


@pytest.mark.parametrize("kind", ["store", "folder", "damaged", "link"])
def test_what_is_no_study_is_not_replaced(kind, tmp_path):
    out, name = tmp_path / "out", "study.zarr"
    out.mkdir()
    foreign(out / name, kind)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for runs in (specified(), runs_of(2, 4)):
        with pytest.raises(
            ValueError,
            match=(
                rf"'{name}' in out = .*: expected another folder; it is none of the studies written"
                r" there$"
            ),
        ):
            write_study(runs, out)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


# --- what the readings can show -------------------------------------------------------------------


def test_originals_count_equally_if_readings_are_missing():
    """An original with one version weighs as much as one with four: the mean of originals, their
    spread, their number.
    """
    rng = np.random.default_rng(3)
    values = np.sort(rng.random((5, 9, 4)), 0)[::-1].copy()
    values[:, 2:5, 1:] = np.nan
    values[3, 7, 2] = np.nan
    found = ut.study(dataset({"kept": (values, Variable(DIMS, "kept"))})).curve[0, 1:].values
    of_originals = np.nanmean(values, 2)
    half = student.ppf(0.975, 8) * of_originals.std(1, ddof=1) / 3
    np.testing.assert_allclose(found[:, 0], of_originals.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found[:, 2] - found[:, 0], half, rtol=1e-12)
    share = ut.study(dataset({"kept": (values, Variable(DIMS, "kept", bounds=(0, 1)))}))
    np.testing.assert_allclose(share.curve[0, 1:, 0], of_originals.mean(1), rtol=1e-12)


def test_each_reading_shows_how_many_originals_it_has():
    few = falling(items=11)
    few[:, 4:] = np.nan
    run = dataset(
        {
            "kept": (falling(items=11), Variable(DIMS, "kept", start=1)),
            "part": (few, Variable(DIMS, "part", start=1)),
        }
    )
    found = ut.study(run)
    assert found.originals.values.tolist() == [11, 4]
    assert "part: 4 of 11 originals have this reading" in remarks(found)
    assert not [line for line in remarks(ut.study(run[["part"]])) if "have this reading" in line]


def flat(kind, rng):
    """Readings (noise, item) of 30 originals that do not change with noise."""
    return {
        "tosses": (rng.random((4, 30)) < 0.4).astype(float),
        "covariate": np.repeat(rng.lognormal(size=(1, 30)), 4, 0),
        "scattered": rng.normal(3, 2, (1, 30)) + rng.normal(size=(4, 30)),
    }[kind]


@pytest.mark.parametrize("kind", ["tosses", "covariate", "scattered"])
def test_a_reading_that_does_not_change_has_no_half_life(kind):
    noise, rng = [0.2, 0.3, 0.6, 0.8], np.random.default_rng(8)
    rules = {}, {"start": 1, "bounds": (None, None)}
    unknown, given = (
        ut.study(ut.readings({"r": flat(kind, rng)}, noise, **rule)) for rule in rules
    )
    assert np.isnan(unknown[["place", "half_life", "width", "start"]].to_array()).all()
    assert np.isnan(unknown.curve[0, 0]).all()  # nothing shows a value without noise
    if kind == "tosses":
        assert (
            "r: no change between 0.2 and 0.8: the 95 % interval of the difference holds 0"
            in remarks(unknown)
        )
        # From a start that is known, half of the change lies below the first level.
        assert np.isfinite(given.half_life).all()
    same = ut.study(ut.readings({"r": flat(kind, rng)}, [0.0, *noise[1:]]))
    assert np.isnan(same.half_life).all()
    assert [line for line in remarks(same) if line.startswith("r: no change between 0 and 0.8")]


def test_few_flat_readings_have_a_half_life():
    """False alarms of the test of first against last level: .05, so 11 to 30 of 400 with
    probability .98.
    """
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=(1, 16, 1)), 2, 0) + rng.normal(size=(2, 16, 400))
    run = dataset(
        {"r": (values, Variable(("noise", "item", "kind"), "r", start=0.5, guessed=True))},
        [0.2, 0.9],
    )
    assert 11 <= np.isfinite(ut.study(run).start).sum() <= 30


# --- originals that occur several times -----------------------------------------------------------


def test_originals_that_occur_several_times_are_refused():
    """By their labels; copies with labels of their own by their readings, of any kind."""
    tosses = np.sort(np.random.default_rng(0).random((5, 90, 2)) < 0.5, 0)[::-1].astype(float)
    for values in (falling(items=21), tosses):
        run = dataset(
            {
                "kept": (
                    values,
                    Variable(
                        DIMS, "kept", start=1, bounds=(0, 1) if values is tosses else (None, None)
                    ),
                )
            }
        )
        run = run.assign_coords(item=np.arange(run.sizes["item"]))
        ut.study(run)
        for copies in (2, 3):
            repeated = xr.concat([run] * copies, "item")
            renumbered = repeated.assign_coords(item=np.arange(repeated.sizes["item"]))
            with pytest.raises(
                ValueError, match=f"item = 0 occurs {copies} times; expected each original once"
            ):
                ut.study(repeated)
            for function in (ut.study, lambda ds: ut.choose(ds, "kept", 0.9)):
                with pytest.raises(
                    ValueError,
                    match=(
                        f"occur {copies} times or a multiple of that; expected each original once"
                    ),
                ):
                    function(renumbered)
    # Few originals, of many values.
    few = ut.readings({"d": np.tile(falling(items=7)[..., 0], 2)}, NOISE, start=1)
    with pytest.raises(ValueError, match="occur 2 times or a multiple of that"):
        ut.study(few)
    alone = run.isel(item=[7] * 40)
    with pytest.raises(ValueError, match="item = 7 occurs 40 times"):
        ut.choose(alone, "kept", 0.9)
    with pytest.raises(ValueError, match="the readings of all originals occur 40 times"):
        ut.choose(alone.assign_coords(item=np.arange(40)), "kept", 0.9)
    named = run.assign_coords(item_name=("item", ["a"] * 2 + [f"b{k}" for k in range(88)]))
    with pytest.raises(ValueError, match="item_name = 'a' occurs 2 times"):
        ut.study(named)


def test_originals_that_are_alike_are_none_that_are_repeated():
    """All kept, equal by construction, or few values: 400 runs of 200 originals with readings 0
    and 1.
    """
    kept = Variable(("noise", "item"), "kept", start=1, bounds=(0, 1))
    ut.study(dataset({"kept": (np.ones((5, 60)), kept)}))
    ut.study(dataset({"kept": (NOISE[::-1, None] * np.ones((1, 60)), kept)}))
    rng = np.random.default_rng(2)
    for _ in range(400):
        Run.finished(
            dataset({"kept": ((rng.random((5, 200)) < NOISE[::-1, None] ** 2).astype(float), kept)})
        )


# --- inversions and turns -------------------------------------------------------------------------


@pytest.mark.parametrize(("errors", "is_sure"), [(2.2, False), (3.5, True)])
def test_an_inversion_is_sure_in_one_test_of_all_levels(errors, is_sure):
    """The last level lies above the first at nine noises, and at the tenth some standard errors
    below.
    """
    spread = student.ppf((np.arange(60) + 0.5) / 60, 50)
    spread *= np.sqrt(60) / spread.std(ddof=1)  # the mean has the standard error 1
    first, last = np.zeros((10, 60)), np.tile(spread + 1, (10, 1))
    last[9] -= 1 + errors
    values = xr.DataArray(np.stack([first, last], -1), dims=("noise", "item", "layer"))
    run = ut.readings(
        {"s": values},
        np.linspace(0.1, 1, 10),
        start=9,
        chance=-9,
        bounds=(None, None),
        order={"s": "layer"},
    )
    remark = ut.study(run).series_remark.item()
    assert remark == (
        ""
        if is_sure
        else (
            "not sure: at no noise is the last level below the first, in one test of all noise"
            " levels"
        )
    )


def _moves(curve, seed, originals=40):
    tosses = np.random.default_rng(seed).random((len(curve), originals)) < np.array(curve)[:, None]
    values = xr.DataArray(tosses.astype(float), dims=("noise", "item"))
    return Moves.of(replicates(values), np.linspace(0, 0.9, len(curve)), 0)


def test_a_curve_that_turns_has_a_remark_that_says_where():
    values = np.array([0.3, 0.31, 0.45, 0.6, 0.45, 0.32, 0.3])[:, None] * np.random.default_rng(
        0
    ).lognormal(0, 0.2, (7, 40))
    remark = ut.study(ut.readings({"r": values}, np.linspace(0, 0.9, 7))).remark.values[0]
    assert re.search(
        r"the curve rises from 0\.3\d* at noise 0 to 0\.59\d* at noise 0\.45 and falls again to"
        r" 0\.3\d* at",
        remark,
    )
    assert "the last level does not differ from the first, though others do: no half-life" in remark
    assert "no change" not in remark
    assert re.fullmatch(
        r"the curve falls from .* and rises again to .*",
        _moves([0.99, 0.6, 0.1, 0.1, 0.6, 0.9], 1).turn.text,
    )


def test_curves_that_only_fall_or_are_flat_do_not_turn():
    """.01 of curves turn at most: 8 or more of 300 with probability .01. Of flat ones, .05
    change: 12 or more of 100, .004.
    """
    curves = [0.3] * 10, np.linspace(0.9, 0.2, 10), [0.9, 0.6, *[0.4] * 8]
    moves = [[_moves(curve, seed) for seed in range(100)] for curve in curves]
    assert sum(bool(of.turn) for some in moves for of in some) < 8
    assert sum(of.changes for of in moves[0]) < 12


def test_a_guessed_start_is_a_number_of_the_study():
    """Of a table without noise 0; the headline says so, and a study without it is an older one."""
    kept = (np.arange(40) >= np.array([4, 12, 28, 36])[:, None]).astype(float)
    noise = [0.2, 0.4, 0.6, 0.8]
    guessed = ut.study(ut.readings({"kept": kept}, noise))
    declared = ut.study(ut.readings({"kept": kept}, noise, start=1))
    assert (guessed.guess.item(), np.isnan(declared.guess.item())) == (1.0, True)
    assert "its start is taken as 1, which is a guess" in headline_of(guessed).claim
    assert "guess" not in headline_of(declared).claim
    with pytest.raises(ValueError, match="of an older version; make it again"):
        headline_of(guessed.drop_vars("guess"))


# --- the difference of two runs -------------------------------------------------------------------


def distances(x, speed, names, seed, versions=3):
    """Distances (noise, item, trajectory) that rise with noise, faster for some originals."""
    rng = np.random.default_rng(seed)
    values = speed[None, :, None] * x[:, None, None] ** 2 + 0.05 * rng.random(
        (len(x), len(names), versions)
    )
    return ut.readings({"d": values}, x, start=0, chance=2.0, coords={"item": names})


def test_the_difference_of_two_runs_is_paired():
    """Originals by their names, in any order; the levels that both have; Student's t of the
    differences of originals.
    """
    rng, x = np.random.default_rng(5), np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    speed, names = rng.uniform(1, 3, 13), np.array([f"m{k:02d}" for k in range(13)])
    second = np.r_[11, 3, 12, 0:3, 4:10]  # other originals, in another order, at other levels
    a = distances(x, speed, names, 1)
    b = distances(np.r_[0.1, x[1:]], 1.3 * speed[second], names[second], 2, versions=2)
    a.d[2, 0, :] = np.nan
    b.d[1, 0, 1] = np.nan
    found = difference({"a": a, "b": b})
    assert found.noise.values.tolist() == x[1:].tolist()
    assert found.originals.item() == 12
    of_a, of_b = a.d.mean("trajectory")[1:, second].values, b.d.mean("trajectory")[1:].values
    for k in range(4):
        apart = (of_b[k] - of_a[k])[~np.isnan(of_a[k] + of_b[k])]
        half = student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
        value, low, high = found.curve.values[0, k]
        assert value == pytest.approx(apart.mean(), rel=1e-5)
        # Where an original is missing, the degrees of freedom are those of nearly equal groups.
        if k != 1:
            np.testing.assert_allclose([value - low, high - value], half, rtol=5e-3)
    alone = [ut.study(run).curve.sel(noise=0.8).values[0] for run in (a, b)]
    assert np.ptp(found.curve.sel(noise=0.8).values[0, 1:]) < 0.6 * np.hypot(
        *(np.ptp(ends[1:]) for ends in alone)
    )


def test_the_difference_of_half_lives():
    """The same fall later by .05, for originals that differ: the difference is known much better
    than either place.
    """
    x, centre = (
        np.linspace(0.02, 0.98, 49),
        0.4 + 0.1 * np.random.default_rng(3).standard_normal((1, 30)),
    )
    log_snr = np.log((1 - x) / x)
    runs = {
        name: ut.readings(
            {"kept": 1 / (1 + np.exp((x[:, None] - centre - late) / 0.05))},
            x,
            start=1,
            chance=0,
            coords={"log_snr": ("noise", log_snr)},
        )
        for name, late in (("early", 0.0), ("late", 0.05))
    }
    found = difference(runs)
    places = [ut.study(run).half_life.sel(reading="kept") for run in runs.values()]
    np.testing.assert_allclose(found.half_lives.values[0], places)
    np.testing.assert_allclose(found.half_life[0, :, 0], (places[1] - places[0])[:, 0])
    value, low, high = found.half_life.sel(axis="noise").values[0]
    assert value == pytest.approx(0.05, abs=0.005)
    assert 0.045 < low < high < 0.055  # what both curves have in common cancels
    (row,) = table_of(found).rows
    assert row[1:4] == tuple(
        with_interval(place) for place in (*found.half_lives.values[0, :, 0], found.half_life[0, 0])
    )
    assert float(found.half_life.sel(axis="log_snr", estimate="value")[0]) < 0
    back = difference({"late": runs["late"], "early": runs["early"]})
    np.testing.assert_allclose(
        back.half_life.values[0, 0], -found.half_life.values[0, 0][[0, 2, 1]], atol=1e-12
    )


def _lost(spread, shift, seed, originals=60):
    """Readings 0 and 1 of two runs at levels .1 apart: noises at which originals are lost have
    correlation .9 and a shift.
    """
    rng = np.random.default_rng(seed)
    x, centre, (own, other) = (
        np.linspace(0.1, 1, 10),
        0.4 + 0.1 * rng.random(),
        rng.standard_normal((2, originals)),
    )
    lost_at = centre + spread * own, centre + shift + spread * (0.9 * own + np.sqrt(0.19) * other)
    kept = [np.where(x[:, None] < noise, 1.0, 0.0) for noise in lost_at]
    return {
        name: ut.readings({"kept": of}, x, start=1, chance=0)
        for name, of in zip("ab", kept, strict=True)
    }


def test_a_shift_of_half_lives_that_is_smaller_than_a_step_is_seen():
    """95 % intervals of 40 runs: five misses or more with probability .05, and 32 seen or more
    (`coverage_of_studies.py`).
    """
    ends = [
        difference(_lost(0.05, 0.07, seed)).half_life.sel(axis="noise").values[0]
        for seed in range(40)
    ]
    assert sum(low <= 0.07 <= high for _, low, high in ends) >= 36
    assert sum(low > 0 for _, low, _ in ends) >= 32
    run = _lost(0.05, 0, 0)["a"]
    assert difference({"a": run, "again": run}).half_life.values.tolist() == [[[0, 0, 0]]]


def test_half_lives_of_falls_within_a_step_differ_by_less_than_two_steps():
    """All originals are lost between two levels: the readings do not say where, in either run."""
    value, low, high = difference(_lost(0, 0, 0)).half_life.sel(axis="noise").values[0]
    assert (value, low, high) == pytest.approx((0, -0.1, 0.1))


def test_differences_of_shares_where_all_originals_agree_have_a_width():
    kept = np.ones((3, 25))
    lost = np.where([[False], [False], [True]], np.arange(25) < 20, True)
    runs = {
        name: ut.readings({"kept": of}, [0.2, 0.5, 0.8], start=1)
        for name, of in (("a", kept), ("b", lost * 1.0))
    }
    curve = difference(runs).curve.values[0]
    lost_of_25 = 1 - 0.025 ** (1 / 25)
    np.testing.assert_allclose(curve[0], [0, -lost_of_25, lost_of_25])
    low, high = beta.ppf(0.025, 20, 6), beta.ppf(0.975, 21, 5)  # no correlation with a constant
    np.testing.assert_allclose(
        curve[2], [-0.2, -0.2 - (0.8 - low), -0.2 + np.hypot(high - 0.8, lost_of_25)], rtol=0.03
    )


def test_differences_of_shares_are_paired():
    """Newcombe's interval of 20 and 21 kept of 40: narrow if 20 are kept in both, wider than
    without pairing if only 1 is.
    """
    item = np.arange(40)
    widths = []
    for second, both in ((item < 21, 20), (item >= 19, 1)):
        kept = {"a": item < 20, "b": second}
        runs = {
            name: ut.readings({"kept": of[None] * 1.0}, [0.5], start=1) for name, of in kept.items()
        }
        (p, low_p, high_p), (q, low_q, high_q) = (
            ut.study(run).curve.sel(noise=0.5).values[0] for run in runs.values()
        )
        correlation = (both / 40 - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))

        def end(of_second, of_first, correlation=correlation):
            return np.sqrt(of_second**2 - 2 * correlation * of_second * of_first + of_first**2)

        expected = [q - p, q - p - end(q - low_q, high_p - p), q - p + end(high_q - q, p - low_p)]
        found = difference(runs).curve.sel(noise=0.5).values[0]
        np.testing.assert_allclose(found, expected, atol=1e-9)
        widths.append(found[2] - found[1])
    assert widths[0] < 0.3 * widths[1]


def test_differences_of_other_originals_are_refused():
    x, names = NOISE, ["a", "b", "c"]
    run = distances(x, np.ones(3), names, 0)
    source = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2}
    rest = {
        "corruption": {"type": "epsilon", "noise": [0.3, 0.6]},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    own = [
        ut.run(ut.Experiment.from_dict({"items": 4, "seed": seed, "source": source, **rest}))
        for seed in (0, 1)
    ]
    other = ut.readings({"e": run.d.values}, x, coords={"item": names})
    for pair, message in (
        ({"a": run}, "expected two"),
        (dict(zip("ab", own, strict=True)), "expected the same originals in both runs"),
        (
            {"a": run, "b": distances(x, np.ones(3), ["d", "e", "f"], 0)},
            "originals that both runs have = 0",
        ),
        (
            {"a": run, "b": distances(x + 0.01, np.ones(3), names, 0)},
            "noise levels that both runs have = 0",
        ),
        ({"a": run, "b": other}, "expected readings that both have"),
        (
            {
                name: run.assign_coords(label=("item", of))
                for name, of in (("a", [0, 1, 2]), ("b", [0, 2, 1]))
            },
            "label of the",
        ),
        (
            {"a": run, "b": run.assign_coords(noise=("noise", x, {"long_name": "t/T"}))},
            "expected one axis in common",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            difference(pair)


@pytest.mark.usefixtures("unsaved_figures")
def test_the_command_writes_the_difference(tmp_path):
    x, names, speed = NOISE, [f"m{k}" for k in range(8)], np.linspace(1, 2, 8)
    for k, name in enumerate("ab"):
        table = distances(x, speed + k, names, k).to_dataframe().reset_index()
        table.assign(item=table["item_name"].astype(str)).drop(columns="item_name").to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    stores, out = [str(tmp_path / f"{name}.csv") for name in "ab"], tmp_path / "out"
    done = CliRunner().invoke(
        app, ["study", *stores, "--start", "d=0", "--difference", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "paired over 8 originals" in " ".join(done.output.split())
    numbers = json.loads((out / "difference.json").read_text())["readings"][0]
    expected = difference(
        {
            name: read_readings(store, start={"d": 0})
            for name, store in zip("ab", stores, strict=True)
        }
    )
    assert [level["low"] for level in numbers["curve"]] == expected.curve.values[0, :, 1].tolist()
    frame = pd.read_csv(out / "difference.csv")
    of_half_life = frame[(frame.quantity == "half_life") & (frame.run.str.contains(" minus "))]
    np.testing.assert_allclose(
        of_half_life[["value", "low", "high"]], expected.half_life[0], rtol=1e-9
    )
    assert (out / "difference.png").is_file()
    page = (out / "index.html").read_text()
    assert "difference.json</code>" not in page, "it is no damaged figure"
    assert "difference [95 % interval]" in page
    assert with_interval(expected.curve.values[0, -1]) in page
    write_study(
        {
            name: read_readings(store, start={"d": 0})
            for name, store in zip("ab", stores, strict=True)
        },
        out,
    )
    assert not list(out.glob("difference.*"))
    alone = CliRunner().invoke(app, ["study", stores[0], "--difference"])
    assert isinstance(alone.exception, ValueError)


# --- medians --------------------------------------------------------------------------------------


def test_medians_of_readings_with_heavy_tails():
    """The median of the means of originals, its places, and the same in the difference of two
    runs; shares stay means.
    """
    rng, x = np.random.default_rng(7), np.linspace(0.05, 1, 20)
    scale = rng.lognormal(0, 1.5, (1, 31, 1))
    values = scale * x[:, None, None] ** 1.5 * rng.lognormal(0, 0.1, (20, 31, 2))
    values[4, 9, 1] = np.nan
    kept = (rng.random((20, 31, 2)) > x[:, None, None]).astype(float)
    run = ut.readings({"d": values, "kept": kept}, x, start={"d": 0, "kept": 1}, chance={"d": 1.0})
    found, usual = ut.study(run, centre="median"), ut.study(run)
    medians = np.median(np.nanmean(run.d.values.astype(float), 2), 1)
    check_places(found, "d", medians, 0, 1)
    xr.testing.assert_identical(
        found.sel(reading="kept"), usual.sel(reading="kept").assign_attrs(found.attrs)
    )
    assert "the curves of d are medians over originals" in remarks(found)
    assert not [line for line in remarks(usual) if "median" in line]
    outlier = run.assign(
        d=run.d.where((run.item != int(scale.argmax())) | run.d.isnull(), 1e4 * x[:, None, None])
    )
    outlier.d.attrs = run.d.attrs
    np.testing.assert_array_equal(ut.study(outlier, centre="median").place[0], found.place[0])
    twice = difference(
        {"a": run, "b": run.assign(d=(2 * run.d).assign_attrs(run.d.attrs))}, "median"
    )
    np.testing.assert_allclose(twice.curve.sel(reading="d", estimate="value"), medians, rtol=1e-6)
    with pytest.raises(ValueError, match="centre = 'mode': expected one of mean, median"):
        ut.study(run, centre="mode")


def test_intervals_of_medians_hold_the_truth():
    """Of 300 runs of 25 lognormal numbers, .95 would be 273 to 295 with probability .99;
    `benchmarks/intervals.py` finds .93.
    """
    draws = np.random.default_rng(11).lognormal(0, 2, (1, 25, 300))
    of = replicates(xr.DataArray(draws, dims=("noise", "item", "run")), "median")
    _, low, high = of.interval(lambda c: c[0]).T
    assert 268 <= ((low <= 1) & (1 <= high)).sum() <= 295
    groups = xr.DataArray(
        draws[:, :, :5].repeat(4, 1), dims=("noise", "item", "run")
    ).assign_coords(grammar=("item", np.arange(100) // 4))
    ends = replicates(groups, "median").interval(lambda c: c[0])
    # Four copies in a group are one reading.
    np.testing.assert_allclose(ends, of.interval(lambda c: c[0])[:5])
