"""Estimators on curves whose answers are known, and intervals that hold the truth as often as they say."""

import importlib
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from uturn.experiment import Experiment
from uturn.paper import FIGURES
from uturn.statistics import crossing, estimate, grammar_means, inversion, replicates, shift, transition

EXAMPLES = Path(__file__).parents[1] / "examples"
SIMULATED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "intervals.py"))

X = np.linspace(0, 1, 101)


def logistic(centre, width):
    return 1 / (1 + np.exp((X - centre) / width))


def test_crossing():
    assert crossing([0, 1, 2], [1, 0.5, 0], 0.25) == pytest.approx(1.5)
    assert np.isnan(crossing([0, 1], [1, 0.5], 0.25))
    assert crossing([0, 1, 2, 3], [1, 0, 1, 0], 0.5) == pytest.approx(2.5)  # the last fall
    assert crossing([0, 1, 2, 3], [1, 0, 1, 0], 0.5, first=True) == pytest.approx(0.5)


def test_transition_of_a_logistic():
    found = transition(X, logistic(0.4, 0.03), 1.0, 0.0)
    assert found.location == pytest.approx(0.4, abs=1e-3)
    assert found.width == pytest.approx(2 * np.log(3) * 0.03, rel=0.02)
    assert found.sharpness == pytest.approx(found.location / found.width)


def test_inversion():
    high, low = logistic(0.5, 0.02), logistic(0.5, 0.1)
    assert inversion(X, high, low) == pytest.approx(0.5, abs=1e-2)
    assert np.isnan(inversion(X, low - 1, low))


def test_shift_finds_displacements_of_either_sign():
    for d in (-0.05, 0.0, 0.013):
        assert shift(X, logistic(0.5 + d, 0.04), X, logistic(0.5, 0.04)) == pytest.approx(d, abs=1e-4)


def data(items=40, trajectories=3, grammars=4, seed=0):
    rng = np.random.default_rng(seed)
    grammar = np.arange(items) * grammars // items
    height = 0.5 + 0.2 * rng.standard_normal(grammars)[grammar]  # grammars differ
    values = height[None, :, None] + 0.05 * rng.standard_normal((2, items, trajectories))
    return xr.DataArray(values, dims=("noise", "item", "trajectory"), coords={"noise": [0.1, 0.2], "grammar": ("item", grammar)})


def plain(curve):
    return float(curve[0])


@pytest.mark.parametrize("grammars", [2, 5, 8, 40])
def test_interval_of_a_mean_is_that_of_student_over_grammars(grammars):
    values = data(grammars=grammars)
    means = grammar_means(values).isel(noise=0)
    expected = stats.t.interval(0.9, grammars - 1, means.mean(), stats.sem(means))
    found = estimate(values, plain, confidence=0.9)
    assert found.value == pytest.approx(float(values[0].mean()))
    np.testing.assert_allclose(found[1:], expected)
    # Negative control: items alone are overconfident where grammars differ.
    blind = estimate(values.drop_vars("grammar"), plain, confidence=0.9)
    assert grammars == 40 or blind.high - blind.low < 0.8 * (found.high - found.low)


def test_a_statistic_is_one_number():
    with pytest.raises(ValueError, match=r"array of shape \(2,\); expected one number"):
        estimate(data(), lambda curve: curve)


def test_trajectories_are_not_counted_as_a_level_of_their_own():
    values = data(trajectories=16).drop_vars("grammar")
    of_items = stats.t.interval(0.95, 39, values[0].mean(), stats.sem(values[0].mean("trajectory")))
    np.testing.assert_allclose(estimate(values, plain)[1:], of_items)
    np.testing.assert_allclose(estimate(values.mean("trajectory"), plain)[1:], of_items)


def test_groups_of_unequal_size():
    values = data(items=30).assign_coords(grammar=("item", np.repeat([7, 1, 3, 4], [3, 5, 12, 10])))
    without = np.array([values[0].where(values.grammar != g).mean() for g in (1, 3, 4, 7)])
    jackknife = np.sqrt(3 / 4 * ((without - float(values[0].mean())) ** 2).sum())
    assert replicates(values).error(plain) == pytest.approx(jackknife)
    shuffled = values.isel(item=np.random.default_rng(0).permutation(30))
    np.testing.assert_allclose(estimate(shuffled, plain), estimate(values, plain))


def test_many_items_make_64_groups():
    values = data(items=6400, trajectories=1, grammars=1)
    found = replicates(values)
    assert found.groups == 64
    assert found.deviations.shape == (64, 2)
    assert found.error(plain) == pytest.approx(stats.sem(values[0].squeeze().values), rel=0.25)  # 64 numbers: 9 %, 1 s.d.
    assert replicates(data(items=130, grammars=130)).groups == 64


def test_missing_readings_are_left_out():
    values = data(grammars=1)
    broken = values.copy()
    broken[0, 3] = np.nan
    np.testing.assert_allclose(
        estimate(broken, plain), estimate(values.isel(item=[i for i in range(40) if i != 3]), plain), rtol=0.02
    )
    assert replicates(broken).mean[0] == pytest.approx(float(broken[0].mean()))


def test_an_interval_where_the_statistic_does_not_exist_in_most_replicates():
    values = data()
    middle, whole = float(values[0].mean()), estimate(values, plain)
    for exists in (
        lambda c: c[0] <= middle + 1e-12,  # on one side
        lambda c: abs(c[0] - middle) < 1e-3,  # in small steps
    ):
        found = estimate(values, lambda c, exists=exists: float(c[0]) if exists(c) else float("nan"))
        np.testing.assert_allclose(found, whole)


def test_no_interval_without_a_value_or_with_one_group():
    one = data(items=1, grammars=1)
    assert np.isfinite(estimate(one, plain).value)
    assert np.isnan(estimate(one, plain)[1:]).all()
    assert np.isnan(estimate(data(), lambda c: float("nan"))).all()
    assert np.isnan(estimate(data(), lambda c: float("inf"))[1:]).all()
    same = data() * 0 + 1
    assert estimate(same, plain) == (1, 1, 1)


def test_statistics_of_several_numbers():
    values = data()
    both = replicates(values).interval(lambda c: np.array([c[0], c[1] if c[1] > values[1].mean() else np.nan, np.nan]))
    assert both.shape == (3, 3)
    np.testing.assert_allclose(both[:, 0], estimate(values, plain))
    assert np.isnan(both[:, 1:]).all()  # no value, so no interval
    for confidence in (0.0, 95, "high", True):
        with pytest.raises(ValueError, match="confidence"):
            estimate(values, plain, confidence)


RUNS = 200
FEWEST = stats.binom.ppf(2e-4, RUNS, 0.92)  # of intervals that hold the truth: one false alarm in 5,000 designs


def covered(design, runs=RUNS, grammars=True):
    """How many intervals hold the known place where a curve of coin tosses falls."""
    hits = 0
    for seed in range(runs):
        readings, statistic, truth = SIMULATED["curve_readings"](design, 10_000 + seed)
        found = estimate(readings if grammars else readings.drop_vars("grammar"), statistic)
        hits += found.low <= truth <= found.high
    return hits


@pytest.mark.parametrize("name", ["1 grammar, 1 trajectory", "2 grammars", "4 grammars", "16 trajectories"])
def test_intervals_hold_the_truth(name):
    assert covered(SIMULATED["DESIGNS"][name]) >= FEWEST


def test_intervals_that_ignore_grammars_do_not():
    assert covered(SIMULATED["DESIGNS"]["6 grammars that differ much"], grammars=False) < FEWEST


def test_estimates_keep_level_dims_last():
    values = data().expand_dims(tree_level=2)  # a dim in front
    found = estimate(values, lambda curve: float(curve.shape == (2, 2)))
    assert found.value == 1


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_no_figure_has_fewer_than_six_independent_groups(scale):
    """A verdict may rest on the interval of any run, and few groups make intervals that are too wide to decide anything."""
    modules = [importlib.import_module(f"uturn.paper.{figure}") for figure in FIGURES]
    runs = [run for module in modules if hasattr(module, "experiments") for run in module.experiments(scale).values()]
    specs = [run.to_dict() for run in runs] + [Experiment.from_file(EXAMPLES / "epsilon.toml").to_dict()]
    for spec in specs:
        grammars = spec["source"].get("grammars", 1)
        assert (grammars if grammars > 1 else spec["items"]) >= 6
